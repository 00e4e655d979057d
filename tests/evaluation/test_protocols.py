import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose

from metricid.evaluation import (
    PROTOCOLS,
    Curve,
    combine_flip,
    format_table,
    leave_one_out,
    retrieval,
    verification_all_pairs,
    verification_pairs,
)

RNG = np.random.default_rng(0)
N = 160
IDENTITY = np.array([f"person {i}" for i in RNG.integers(20, size=N)], dtype=object)
CENTERS = {name: RNG.standard_normal(12) for name in sorted(set(IDENTITY))}
X = np.stack([CENTERS[name] for name in IDENTITY]).astype(np.float32) + RNG.standard_normal((N, 12)).astype(
    np.float32
)
PAIRS = RNG.integers(N, size=(200, 2))
TABLE = {
    "identity": IDENTITY,
    "camera": np.array([f"c{i}" for i in RNG.integers(4, size=N)], dtype=object),
    "split": np.array(["query", "gallery", "gallery", "train"] * (N // 4), dtype=object),
    "pairs": PAIRS,
    "same": IDENTITY[PAIRS[:, 0]] == IDENTITY[PAIRS[:, 1]],
}
Q, G = TABLE["split"] == "query", TABLE["split"] == "gallery"


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_has_one_signature_and_survives_json(name):
    result = PROTOCOLS[name](X, TABLE, variant_prefix="100/20 identity split")
    assert result.protocol == name
    assert result.variant.startswith("100/20 identity split, ")
    plain = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert plain["metrics"].keys() == result.metrics.keys()
    assert plain["counts"] == result.counts
    assert all(len(curve["x"]) == len(curve["y"]) <= 500 for curve in plain["curves"].values())
    table = format_table([result])
    title, *lines = table.splitlines()
    assert result.variant in title
    assert all(f"{value:,} {key}" in title for key, value in result.counts.items())
    for metric in result.shown():
        value = result.metrics[metric]
        text = f"{value:.4f}" if metric.startswith("threshold") else f"{100 * value:.2f}%"
        assert any(line.startswith(metric) and text in line for line in lines)


def test_subjects_of_one_protocol_stand_side_by_side():
    model = replace(PROTOCOLS["identification"](X, TABLE), subject="model")
    pixels = replace(model, subject="pixels", metrics={k: v / 2 for k, v in model.metrics.items()})
    other = replace(PROTOCOLS["verification"](X, TABLE), subject="model")
    first, second = format_table([model, other, pixels]).split("\n\n")
    assert first.splitlines()[1].split() == ["model", "pixels"]
    rank1 = 100 * model.metrics["rank-1"]
    assert first.splitlines()[2].split() == ["rank-1", f"{rank1:.2f}%", f"{rank1 / 2:.2f}%"]
    assert second.startswith("verification (")


def test_reid_is_retrieval_with_cameras():
    result = PROTOCOLS["reid"](X, TABLE, distractors=["person 3"], metric="euclidean", bootstrap=50)
    camera = TABLE["camera"]
    expected = retrieval(
        X[Q],
        X[G],
        IDENTITY[Q],
        IDENTITY[G],
        camera[Q],
        camera[G],
        distractors=["person 3"],
        metric="euclidean",
    )
    for name in ("rank-1", "rank-5", "rank-10", "mAP", "mINP"):
        assert result.metrics[name] == expected.metrics[name]
        low, high = result.intervals[name]
        assert low <= result.metrics[name] <= high
    assert result.counts["queries"] == expected.queries
    assert result.counts["queries without positive"] == expected.queries_without_positive > 0
    assert result.counts["distractors"] == np.sum(IDENTITY[G] == "person 3") > 0
    assert any("not counted" in note for note in result.notes)


def test_identification_and_recall_leave_one_out():
    expected = leave_one_out(X, IDENTITY)
    result = PROTOCOLS["identification"](X, TABLE)
    assert result.metrics["rank-5"] == expected.recall_at(5)
    result = PROTOCOLS["retrieval"](X, TABLE | {"split": None}, ks=(1, 10), bootstrap=20)
    assert list(result.metrics) == ["Recall@1", "Recall@10", "R-precision", "MAP@R"] == list(result.intervals)
    assert result.metrics["Recall@10"] == expected.recall_at(10)
    assert result.metrics["MAP@R"] == expected.map_at_r
    assert "leave one out" in result.variant


def test_recall_with_a_split_searches_queries_in_the_gallery():
    result = PROTOCOLS["retrieval"](X, TABLE)
    expected = retrieval(X[Q], X[G], IDENTITY[Q], IDENTITY[G])
    assert result.metrics["Recall@1"] == expected.rank1
    assert "query in gallery" in result.variant


def test_verification_states_what_the_pairs_can_bear():
    result = PROTOCOLS["verification"](X, TABLE, far_targets=(1e-1, 1e-4), bootstrap=20)
    expected = verification_all_pairs(X, IDENTITY, far_targets=(1e-1, 1e-4))
    assert result.metrics["TAR@FAR=0.1"] == expected.tar_at(1e-1)
    assert result.metrics["TAR@FAR=0.1 (nearest)"] == expected.tar_at(1e-1, "nearest")
    assert result.metrics["threshold at FAR=0.1 (cosine)"] == expected.point(1e-1).threshold
    assert result.unsupported == ["TAR@FAR=0.0001", "TAR@FAR=0.0001 (nearest)"]
    assert f"{expected.reliable_far:.1e} (rule of 30)" in result.notes[0]
    assert f"{100 * result.metrics['TAR@FAR=0.0001']:.2f}%*" in format_table([result])
    assert "threshold at FAR=0.1 (cosine)" in result.shown()
    assert "threshold at FAR=0.0001 (cosine)" not in result.shown()
    assert result.counts["genuine pairs"] + result.counts["impostor pairs"] == N * (N - 1) // 2


def test_rates_below_one_false_accept_are_not_shown():
    far = (1e-2, 1e-4, 1e-5)
    result = PROTOCOLS["verification"](X, TABLE, far_targets=far)
    assert 1e-5 < 1 / result.counts["impostor pairs"] < 1e-4
    assert [n for n in result.shown() if n.startswith("TAR")] == ["TAR@FAR=0.01", "TAR@FAR=0.0001"]
    assert "TAR@FAR=1e-05" in result.to_json()["metrics"]
    even = replace(result, counts={"impostor pairs": 10_000})
    assert "TAR@FAR=0.0001" in even.shown()


def test_too_many_pairs_for_the_bootstrap_give_a_note_and_no_intervals(monkeypatch):
    few = PROTOCOLS["verification"](X, TABLE, bootstrap=20)
    assert few.intervals
    monkeypatch.setattr("metricid.evaluation.protocols.EXACT_PAIRS", 1000)
    many = PROTOCOLS["verification"](X, TABLE, bootstrap=20)
    assert not many.intervals
    assert many.metrics == few.metrics
    assert "No intervals: 12,720 pairs are too many for the bootstrap (limit 1,000)." in many.notes


def test_lfw_names_every_variant():
    result = PROTOCOLS["lfw"](X, TABLE, variant_prefix="flip-sum")
    expected = verification_pairs(X[PAIRS[:, 0]], X[PAIRS[:, 1]], TABLE["same"])
    assert result.variant == "flip-sum, LFW 10-fold, squared L2, step 0.01"
    assert result.metrics["accuracy"] == expected.accuracy.mean
    assert result.metrics["accuracy (exact sweep)"] == expected.accuracy_exact.mean
    assert result.metrics["AUC"] == expected.auc
    assert "VAL@FAR=0.001" in result.unsupported or "VAL@FAR=0.001" not in result.metrics


def test_val_is_left_out_loudly_when_a_fold_has_one_kind():
    order = np.argsort(TABLE["same"], kind="stable")
    result = PROTOCOLS["lfw"](X, {"pairs": PAIRS[order], "same": TABLE["same"][order]})
    assert not any(name.startswith("VAL") for name in result.metrics)
    assert any("VAL@FAR is left out" in note for note in result.notes)


def test_an_infinite_threshold_is_null_in_json():
    result = PROTOCOLS["verification"](np.ones((6, 2)), {"identity": ["a", "b"] * 3}, far_targets=(0.1,))
    assert math.isinf(result.metrics["threshold at FAR=0.1 (cosine)"])
    assert result.to_json()["metrics"]["threshold at FAR=0.1 (cosine)"] is None


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("reid", {"camera": None}, "protocol reid needs the column 'camera'"),
        (
            "reid",
            {"camera": np.where(np.arange(N) == 7, None, TABLE["camera"])},
            "empty in 1 rows, first in row 7",
        ),
        (
            "reid",
            {"camera": np.where(np.arange(N) > 7, "", TABLE["camera"])},
            "empty in 152 rows, first in row 8",
        ),
        ("reid", {"split": np.full(N, "gallery")}, "names no 'query' row"),
        ("reid", {"split": np.full(N, "query")}, "names no 'gallery' row"),
        ("identification", {"identity": IDENTITY[:5]}, r"has shape \[5\], but there are 160 embeddings"),
        ("verification", {"identity": np.full(N, "a")}, "of one identity"),
        ("verification", {"identity": [7, "7"] * (N // 2)}, "mix strings and integers"),
        ("retrieval", {"identity": np.arange(N), "split": None}, "no query has a positive"),
        ("lfw", {"same": None}, "needs the column 'same'"),
        ("lfw", {"pairs": PAIRS[:, 0]}, r"pairs must be \[P, 2\]"),
    ],
)
def test_bad_tables_are_one_clear_line(name, change, message):
    with pytest.raises(ValueError, match=message) as caught:
        PROTOCOLS[name](X, TABLE | change)
    assert "\n" not in str(caught.value)


@given(arrays(np.float32, (4, 3), elements=st.floats(0.125, 8, width=32)))
def test_flip_sum_is_the_raw_sum_normalised_once(x):
    flipped = x[:, ::-1] * np.float32(3)
    total = x.astype(np.float64) + flipped
    expected = total / np.linalg.norm(total, axis=1, keepdims=True)
    assert_allclose(combine_flip(x, flipped), expected, rtol=1e-5)
    assert_allclose(np.linalg.norm(combine_flip(x, mode="none"), axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.eye(2), np.eye(2), "mean"), "'sum' or 'none'"),
        ((np.eye(2),), "needs the embeddings of the mirrored"),
        ((np.eye(2), np.eye(3)), "differ in shape"),
        ((np.eye(2), -np.eye(2)), "zero vector"),
    ],
)
def test_bad_flips_are_one_clear_line(arguments, message):
    with pytest.raises(ValueError, match=message):
        combine_flip(*arguments)


def test_a_thinned_curve_keeps_its_ends_and_its_small_rates():
    x = np.logspace(-6, 0, 20_000)
    curve = Curve(x, x**0.2, "false accept rate", "true accept rate").thin(100)
    assert len(curve.x) <= 100
    assert (curve.x[0], curve.x[-1]) == (x[0], x[-1])
    assert np.sum(curve.x < 1e-3) > 20
    assert np.sum(curve.x > 0.1) > 20
    assert_allclose(np.interp(x, curve.x, curve.y), x**0.2, atol=0.02)
