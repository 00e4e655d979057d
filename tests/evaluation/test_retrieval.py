import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn.metrics import average_precision_score

from metricid.evaluation import leave_one_out, ranking, retrieval
from metricid.evaluation.arrays import unique_rows
from metricid.evaluation.intervals import mean_intervals

from .oracles import loop_retrieval


def random_search(seed=0, queries=40, gallery=150, identities=12, cameras=3, dim=8):
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((identities, dim))
    q_ids, g_ids = rng.integers(identities, size=queries), rng.integers(identities, size=gallery)
    query = (centers[q_ids] + rng.standard_normal((queries, dim))).astype(np.float32)
    items = (centers[g_ids] + rng.standard_normal((gallery, dim))).astype(np.float32)
    return (
        query,
        items,
        q_ids,
        g_ids,
        rng.integers(cameras, size=queries),
        rng.integers(cameras, size=gallery),
    )


def assert_equals_loop(result, rows):
    assert result.queries_without_positive == sum(row is None for row in rows)
    counted = [row for row in rows if row is not None]
    assert result.queries == len(counted)
    assert_array_equal(result.first_rank, [0 if row is None else row["first"] for row in rows])
    assert_array_equal(result.positives, [0 if row is None else row["positives"] for row in rows])
    assert_allclose(result.mAP, np.mean([row["ap"] for row in counted]), rtol=1e-12)
    assert_allclose(result.mINP, np.mean([row["inp"] for row in counted]), rtol=1e-12)
    assert_allclose(result.r_precision, np.mean([row["rp"] for row in counted]), rtol=1e-12)
    assert_allclose(result.map_at_r, np.mean([row["map_at_r"] for row in counted]), rtol=1e-12)
    assert_allclose(result.cmc, np.mean([row["cmc"] for row in counted], axis=0), rtol=1e-12)


@st.composite
def tied_searches(draw):
    """Small integer vectors: exact in float32, full of ties and duplicates."""
    dim, queries, gallery = draw(st.integers(1, 3)), draw(st.integers(1, 8)), draw(st.integers(1, 40))
    vectors = st.lists(st.integers(-2, 2), min_size=dim, max_size=dim)
    ids = st.integers(0, 3)

    def column(size, values):
        return np.array(draw(st.lists(values, min_size=size, max_size=size)))

    offset = draw(
        st.sampled_from([0, 100])
    )  # far from the origin the squares are large, the differences small
    return {
        "query": column(queries, vectors).astype(np.float32) + offset,
        "gallery": column(gallery, vectors).astype(np.float32) + offset,
        "q_ids": column(queries, ids),
        "g_ids": column(gallery, ids),
        "q_cams": column(queries, st.integers(0, 2)) if draw(st.booleans()) else None,
        "g_cams": column(gallery, st.integers(0, 2)),
        "own": column(queries, st.integers(-1, gallery - 1)) if draw(st.booleans()) else None,
        "distractors": draw(st.sampled_from([(), (0,), (0, 3)])),
    }


@settings(max_examples=150, deadline=None)
@given(tied_searches(), st.sampled_from([1e-6, 0.01, 256.0]))
def test_equals_the_definition_with_ties_duplicates_cameras_and_distractors(case, memory_mb):
    cams = None if case["q_cams"] is None else case["g_cams"]
    rows = loop_retrieval(
        case["query"],
        case["gallery"],
        case["q_ids"],
        case["g_ids"],
        case["q_cams"],
        cams,
        case["own"],
        case["distractors"],
    )
    arguments = (case["query"], case["gallery"], case["q_ids"], case["g_ids"], case["q_cams"], cams)
    options = {"self_index": case["own"], "distractors": case["distractors"], "memory_mb": memory_mb}
    if all(row is None for row in rows):
        with pytest.raises(ValueError, match="no query has a positive"):
            retrieval(*arguments, metric="euclidean", **options)
        return
    assert_equals_loop(retrieval(*arguments, metric="euclidean", **options), rows)


def test_cosine_equals_the_definition_on_unit_vectors():
    query, gallery, *columns = random_search()
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, gallery)]
    assert_equals_loop(retrieval(query, gallery, *columns), loop_retrieval(*unit, *columns))


def test_average_precision_equals_scikit_learn_without_ties():
    query, gallery, q_ids, g_ids, _, _ = random_search(seed=3)
    result = retrieval(query, gallery, q_ids, g_ids, metric="euclidean")
    distance = ((query[:, None].astype(np.float64) - gallery[None]) ** 2).sum(2)
    expected = [average_precision_score(g_ids == q, -d) for q, d in zip(q_ids, distance, strict=True)]
    assert_allclose(result.average_precision, expected, rtol=1e-12)


def test_leave_one_out_equals_pytorch_metric_learning():
    query, _, ids, *_ = random_search(seed=5, queries=200)
    result = leave_one_out(query, ids, metric="euclidean")
    peer = AccuracyCalculator(
        include=("precision_at_1", "r_precision", "mean_average_precision_at_r"),
        k="max_bin_count",
        device=torch.device("cpu"),
    ).get_accuracy(torch.from_numpy(query), torch.from_numpy(ids))
    assert_allclose(result.rank1, peer["precision_at_1"], rtol=1e-6)
    assert_allclose(result.r_precision, peer["r_precision"], rtol=1e-6)
    assert_allclose(result.map_at_r, peer["mean_average_precision_at_r"], rtol=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_the_memory_limit_changes_nothing(metric):
    search = random_search(seed=7, queries=300, gallery=1500, dim=24)
    reference = retrieval(*search, metric=metric, memory_mb=1000)
    for memory_mb in (0.5, 2.0, 5.0):  # 64, 64 and 128 queries at a time
        other = retrieval(*search, metric=metric, memory_mb=memory_mb)
        assert_array_equal(other.first_rank, reference.first_rank)
        assert_array_equal(other.average_precision, reference.average_precision)


def test_the_memory_limit_changes_no_bit_of_a_distance(monkeypatch):
    search = random_search(seed=7, queries=150, gallery=1500, dim=100)
    plain, seen = ranking._distances, []

    def spy(query, gallery):
        seen.append(plain(query, gallery))
        return seen[-1].copy()

    monkeypatch.setattr(ranking, "_distances", spy)
    everything = []
    for memory_mb in (1e-6, 0.1, 2.0, 1000):
        seen.clear()
        retrieval(*search, memory_mb=memory_mb)
        everything.append(np.concatenate(seen))
    for other in everything[1:]:
        assert_array_equal(other, everything[0])


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_equal_embeddings_tie_wherever_they_lie(metric):
    """Every gallery vector occurs 7 times, scattered: copies must rank in gallery order."""
    rng = np.random.default_rng(0)
    base = rng.standard_normal((61, 37)).astype(np.float32)
    place = rng.permutation(np.repeat(np.arange(61), 7))
    query = rng.standard_normal((20, 37)).astype(np.float32)
    ids = rng.integers(5, size=len(place))  # duplicates under different identities
    result = retrieval(query, base[place], np.full(20, 2), ids, metric=metric)
    wide, unit = base.astype(np.float64), query.astype(np.float64)
    if metric == "cosine":
        wide /= np.linalg.norm(wide, axis=1, keepdims=True)
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    for q in range(20):
        order = np.argsort(((wide - unit[q]) ** 2).sum(1)[place], kind="stable")
        ranks = np.flatnonzero(ids[order] == 2) + 1
        assert_allclose(result.average_precision[q], np.mean(np.arange(1, len(ranks) + 1) / ranks))


def test_a_collapsed_model_ranks_by_gallery_order():
    ids = np.array([1, 2, 1, 2, 2, 1])
    result = leave_one_out(np.full((6, 19), 0.3), ids)
    assert_array_equal(result.first_rank, [2, 3, 1, 2, 2, 1])


def test_an_almost_collapsed_model_keeps_its_order():
    """All cosines above 0.99999999: squared norms would drown the differences in float32."""
    rng = np.random.default_rng(1)
    ids = np.repeat(np.arange(20), 5)
    small = 1e-5 * (rng.standard_normal((20, 16))[ids] + 0.3 * rng.standard_normal((100, 16)))
    spread = (np.full(16, 1.0) + small).astype(np.float32)
    unit = spread.astype(np.float64) / np.linalg.norm(spread.astype(np.float64), axis=1, keepdims=True)
    rows = loop_retrieval(unit, unit, ids, ids, own=np.arange(100))
    result = leave_one_out(spread, ids)
    assert abs(result.mAP - np.mean([row["ap"] for row in rows])) < 0.01
    assert result.rank1 > 0.5


def test_self_is_removed_by_index_not_as_the_nearest():
    """Item 1 is a duplicate of item 0 under another identity, so the nearest item of 1 is not itself."""
    x = np.array([[1.0, 0.0], [1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    assert_array_equal(leave_one_out(x, [0, 1, 0, 1], metric="euclidean").first_rank, [2, 3, 1, 3])


@pytest.mark.parametrize("big", [2**24, 2**53, 2**62])
def test_large_integer_identities_stay_apart(big):
    result = retrieval([[1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]], [big + 1], [big, big + 1])
    assert result.rank1 == 0
    assert result.first_rank[0] == 2


def test_short_gallery_repeats_the_last_value():
    cmc = retrieval([[1.0, 0.0]], [[0.9, 0.1], [0.0, 1.0]], ["a"], ["b", "a"], max_rank=5).cmc
    assert_array_equal(cmc, [0, 1, 1, 1, 1])


def test_huge_and_tiny_vectors_are_measured():
    query, gallery, *columns = random_search(seed=9)
    reference = retrieval(query, gallery, *columns, metric="euclidean")
    for factor in (2.0**100, 2.0**-100):
        scaled = retrieval(query * factor, gallery * factor, *columns, metric="euclidean")
        assert_array_equal(scaled.first_rank, reference.first_rank)


def test_bootstrap_covers_the_value_and_is_seeded():
    search = random_search(seed=2, queries=300, identities=60)
    a, b, c = (retrieval(*search, bootstrap=200, seed=s) for s in (0, 0, 1))
    assert a.intervals == b.intervals != c.intervals
    for name, value in a.metrics.items():
        low, high = a.intervals[name]
        assert low < value < high


def test_bootstrap_equals_drawing_identities_one_by_one():
    rng = np.random.default_rng(0)
    ids, values = rng.integers(100, 110, size=70), rng.random(70)
    names, rng, means = np.unique(ids), np.random.default_rng(5), []
    for _ in range(30):
        drawn = [names[i] for i in rng.integers(len(names), size=len(names))]
        means.append(np.mean([v for name in drawn for v in values[ids == name]]))
    intervals = mean_intervals({"mAP": values}, ids, replicates=30, seed=5)
    assert_allclose(intervals["mAP"], np.quantile(means, [0.025, 0.975]))


def test_equal_numbers_are_equal_rows():
    rows, which = unique_rows(np.array([[0.0, 1.0], [2.0, 3.0], [-0.0, 1.0]]))
    assert_array_equal(rows[which], [[0, 1], [2, 3], [0, 1]])
    assert len(rows) == 2
    assert unique_rows(np.eye(3)) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": [[1.0, np.nan]]}, "query row 0 .* NaN"),
        ({"gallery": [[1.0, 0.0], [np.inf, 1.0]]}, "gallery row 1 .* infinity"),
        ({"gallery": [[1.0, 0.0], [0.0, 0.0]]}, "gallery row 1 .* zero vector"),
        ({"query": np.zeros((0, 2))}, "query is empty"),
        ({"gallery": np.zeros((0, 2)), "gallery_ids": []}, "gallery is empty"),
        ({"query": [1.0, 0.0]}, r"query must be a \[N, D\] array"),
        ({"query": [["a", "b"]]}, r"query must be a \[N, D\] array"),
        ({"query": [[1.0, 0.0, 0.0]]}, "3 dimensions, gallery 2"),
        ({"query_ids": ["a", "b"]}, "query_ids has shape"),
        ({"query_ids": [1]}, "mix strings and integers"),
        ({"query_ids": [1.0]}, "query_ids must be strings or integers"),
        ({"query_ids": [None]}, "query_ids must be strings or integers; row 0"),
        ({"query_ids": ["zz"]}, "no query has a positive"),
        ({"query_cams": [1]}, "given together"),
        ({"self_index": [2]}, "self_index must lie in"),
        ({"self_index": [0.0]}, "self_index must be 1 integers"),
        ({"metric": "dot"}, "metric must be"),
        ({"topk": (0,)}, "must be positive"),
        ({"distractors": [0]}, "mix strings and integers"),
        ({"gallery_ids": [7, "7"]}, "mix strings and integers"),
        ({"gallery_ids": ["7", 7.5]}, "gallery_ids must be strings or integers; row 1"),
    ],
)
def test_bad_input_is_one_clear_line(change, message):
    given_ = {
        "query": [[1.0, 0.0]],
        "gallery": [[1.0, 0.0], [0.0, 1.0]],
        "query_ids": ["a"],
        "gallery_ids": ["a", "b"],
    }
    with pytest.raises(ValueError, match=message) as caught:
        retrieval(**(given_ | change))
    assert "\n" not in str(caught.value)
