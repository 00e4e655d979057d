"""Charts, pictures, maps, names and files of a run, each alone."""

import base64
import json
import sys
import types
import xml.etree.ElementTree as ElementTree

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from made_up import HOSTILE, people

from metricid.errors import InputError
from metricid.evaluation import PROTOCOLS
from metricid.report import Choice, Report, look_at_people, render
from metricid.report.charts import result_charts, training_charts
from metricid.report.embedding_map import embedding_map
from metricid.report.page import People
from metricid.report.pictures import encode_pictures
from metricid.report.run_files import read_log, read_results
from metricid.report.svg import Axis, Chart, span
from metricid.report.text import broken, shown, tail

SVG = "{http://www.w3.org/2000/svg}"


def parsed(chart):
    text = str(chart.svg())
    return ElementTree.fromstring(text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


def places(element) -> np.ndarray:
    return np.array([list(map(float, pair.split(","))) for pair in element.get("points").split()])


def test_a_line_lies_where_its_values_say():
    chart = Chart("t", "s", Axis("x", 0.0, 10.0), Axis("y", 0.0, 1.0))
    chart.line([0, 5, 10], [0, 0.5, 1], "a", 0)
    (line,) = parsed(chart).iter(f"{SVG}polyline")
    left, middle, right = places(line)
    assert middle == pytest.approx((left + right) / 2)
    assert left[0] < right[0]
    assert left[1] > right[1]  # y grows upwards


def test_a_step_holds_its_value_and_log_axes_are_even():
    chart = Chart("t", "s", Axis("x", 1e-4, 1.0, log=True), Axis("y", 0.0, 1.0))
    chart.line([1e-4, 1e-2, 1.0], [0.2, 0.4, 0.9], "a", 0, step=True)
    points = places(next(parsed(chart).iter(f"{SVG}polyline")))
    assert len(points) == 5
    assert points[0, 1] == points[1, 1] != points[2, 1] == points[3, 1]
    assert points[1, 0] - points[0, 0] == pytest.approx(points[4, 0] - points[2, 0])
    assert [text for _, text in chart.x.ticks()] == ["0.0001", "0.001", "0.01", "0.1", "1"]


@given(low=st.floats(-1e6, 1e6), width=st.floats(1e-6, 1e7), percent=st.booleans())
@example(low=6.1e-5, width=1e-6, percent=False)  # a learning rate that hardly changes
@example(low=2.5e5, width=2.6e2, percent=False)
def test_ticks_lie_inside_the_axis_and_are_their_text(low, width, percent):
    axis = Axis("x", low, low + width, percent=percent)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 7
    slack = 1e-6 * width
    for value, text in ticks:
        assert low - slack <= value <= low + width + slack
        told = float(text.rstrip("%")) / (100 if percent else 1)
        assert told == pytest.approx(value, rel=0.06, abs=0.6 * width / 5)
    assert len({text for _, text in ticks}) == len(ticks) or width < 1e-3 * abs(low)


@given(st.lists(st.one_of(st.floats(allow_nan=True, allow_infinity=True), st.just(0.0)), max_size=5))
def test_a_span_is_never_empty(values):
    values = [v for v in values if not np.isfinite(v) or abs(v) < 1e30]
    low, high = span(values)
    assert np.isfinite([low, high]).all()
    assert low < high


def test_names_in_charts_are_escaped():
    chart = Chart(HOSTILE, HOSTILE, Axis(HOSTILE, 0, 1), Axis(HOSTILE, 0, 1))
    chart.points([0.5], [0.5], [HOSTILE], 0)
    root = parsed(chart)
    assert root.find(f".//{SVG}script") is None
    assert next(root.iter(f"{SVG}title")).text == HOSTILE


def test_result_charts_say_what_the_curves_say():
    vectors, names, _ = people(np.random.default_rng(0))
    results = [PROTOCOLS[name](vectors, {"identity": names}) for name in ("identification", "verification")]
    (cmc,) = result_charts(results[:1])
    curve = results[0].curves["cmc"]
    points = places(next(parsed(cmc).iter(f"{SVG}polyline")))
    height = (points[:, 1] - points[0, 1]) / (points[-1, 1] - points[0, 1])
    assert height == pytest.approx((curve.y - curve.y[0]) / (curve.y[-1] - curve.y[0]), abs=0.01)
    assert cmc.legend[0].text.startswith("identification, rank-1")  # a result without a subject
    roc, scores = result_charts(results[1:])
    assert (roc.title, scores.title) == ("ROC", "Scores")
    assert any("fewer than 30" in entry.text for entry in roc.legend)
    threshold = results[1].metrics["threshold at EER (cosine)"]
    assert any(entry.text == f"threshold at EER: {threshold:.3f}" for entry in scores.legend)


def test_a_small_result_draws_without_thresholds_it_cannot_support():
    vectors, names, _ = people(np.random.default_rng(0), identities=2, images=2)
    charts = result_charts([PROTOCOLS["verification"](vectors, {"identity": names})])
    assert not [entry for entry in charts[1].legend if "FAR=0.001" in entry.text]
    flat = np.ones((6, 4), np.float32)
    for name in ("identification", "verification"):
        for chart in result_charts([PROTOCOLS[name](flat, {"identity": list("aabbcc")})]):
            assert "nan" not in str(chart.svg())


def test_shown_makes_names_safe_to_read():
    assert shown("Ann") == "Ann"
    assert shown("a" * 99, 10) == "a" * 9 + "…"
    assert shown("a\u202eb\x00c\nd") == "a\ufffdb\ufffdc d"
    assert shown("\ud800") == "\ufffd"
    assert tail("folder/" * 9 + "1.jpg", 8) == "…r/1.jpg"
    assert tail("1.jpg", 8) == "1.jpg"


def test_a_long_name_may_go_on_after_an_underscore():
    assert broken("Clara_Harris") == "Clara_<wbr>Harris"
    assert broken("<b>_&") == "&lt;b&gt;_<wbr>&amp;"


def noise(path: str) -> np.ndarray:
    rng = np.random.default_rng(int(path))
    return rng.integers(0, 256, (200, 100, 3), np.uint8)


def decoded(picture) -> np.ndarray:
    data = base64.b64decode(picture.uri.removeprefix("data:image/jpeg;base64,"))
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB).astype(int)


def test_pictures_are_small_upright_and_in_colour():
    image = np.zeros((300, 600, 3), np.uint8)
    image[:, :300] = (250, 10, 20)
    picture = encode_pictures(lambda path: image, ["a"], 10**6)["a"]
    assert (picture.width, picture.height) == (128, 64)
    pixels = decoded(picture)
    assert pixels.shape == (64, 128, 3)
    assert pixels[30, 20] == pytest.approx([250, 10, 20], abs=12)
    assert pixels[30, 100] == pytest.approx([0, 0, 0], abs=12)
    line = encode_pictures(lambda path: np.zeros((1, 5000, 3), np.uint8), ["a"], 10**6)["a"]
    assert (line.width, line.height) == (128, 1)


@pytest.mark.parametrize("budget", [10**6, 200_000, 60_000, 20_000, 3_000, 0])
def test_pictures_keep_within_the_budget(budget):
    places = [str(i % 30) for i in range(45)]
    pictures = encode_pictures(lambda path: None if path == "7" else noise(path), places, budget)
    assert "7" not in pictures
    assert sum(len(pictures[path].uri) for path in places if path in pictures) <= budget
    if budget >= 60_000:
        assert len(pictures) == 29
    if budget == 10**6:
        assert pictures["0"].height == 128


def test_pca_keeps_what_two_components_can_keep():
    rng = np.random.default_rng(0)
    vectors, names, _ = people(rng, identities=8, images=5)
    laid_out = embedding_map(vectors, names, "pca")
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    centred = unit - unit.mean(axis=0)
    values, axes = np.linalg.eigh(centred.T.astype(float) @ centred)
    expected = centred @ axes[:, [-1, -2]]
    assert np.abs(laid_out.points) == pytest.approx(np.abs(expected), abs=1e-5)
    assert f"{values[-1] / values.sum():.0%}" in laid_out.labels[0]
    again = embedding_map(vectors[::-1].copy(), names[::-1], "pca")
    assert again.points == pytest.approx(laid_out.points[::-1], abs=1e-5)


def test_a_map_samples_and_keeps_the_marked():
    vectors, names, _ = people(np.random.default_rng(0), identities=40, images=5)
    laid_out = embedding_map(vectors, names, "pca", always=["person 7"], limit=20)
    assert len(laid_out.rows) == len(set(laid_out.rows.tolist())) == 20
    assert (names[laid_out.rows] == "person 7").sum() == 5
    assert embedding_map(vectors[:2], names[:2], "pca") is None
    same = embedding_map(np.ones((5, 3), np.float32), names[:5], "pca")
    assert (same.points == 0).all()
    assert np.isfinite(embedding_map(vectors[:, :1].copy(), names, "pca").points).all()


def test_tsne_puts_people_apart():
    pytest.importorskip("sklearn")
    vectors, names, _ = people(np.random.default_rng(0), identities=4, images=10, noise=0.1)
    points = embedding_map(vectors, names, "tsne").points
    centers = np.array([points[names == name].mean(axis=0) for name in sorted(set(names))])
    own = np.array([sorted(set(names)).index(name) for name in names])
    distance = np.linalg.norm(points[:, None] - centers[None], axis=2)
    assert (distance.argmin(axis=1) == own).all()


@pytest.mark.parametrize(("method", "module"), [("tsne", "sklearn.manifold"), ("umap", "umap")])
def test_a_missing_package_is_one_line(monkeypatch, method, module):
    monkeypatch.setitem(sys.modules, module, None)
    vectors, names, _ = people(np.random.default_rng(0))
    with pytest.raises(InputError, match=f"--map {method}: .* is not installed; pip install"):
        embedding_map(vectors, names, method)


def test_umap_gets_unit_vectors_and_a_seed(monkeypatch):
    asked = {}

    class Fake:
        def __init__(self, **options):
            asked.update(options)

        def fit_transform(self, unit):
            asked["norms"] = np.linalg.norm(unit, axis=1)
            return unit[:, :2]

    module = types.ModuleType("umap")
    module.UMAP = Fake
    monkeypatch.setitem(sys.modules, "umap", module)
    vectors, names, _ = people(np.random.default_rng(0))
    assert embedding_map(vectors, names, "umap", seed=3).points.shape == (72, 2)
    assert asked.pop("norms") == pytest.approx(np.ones(72))
    rest = {"metric": "cosine", "random_state": 3, "n_jobs": 1}
    assert asked == {"n_neighbors": 15, "init": "spectral", **rest}
    assert embedding_map(vectors[:3], names[:3], "umap", seed=3).points.shape == (3, 2)
    assert asked.pop("norms") == pytest.approx(np.ones(3))
    assert asked == {"n_neighbors": 2, "init": "random", **rest}


def test_umap_itself_lays_out_few_points_and_many():
    pytest.importorskip("umap", reason="umap-learn is not installed")
    vectors, names, _ = people(np.random.default_rng(0))
    for count in (3, 4, 5, 72):
        laid = embedding_map(vectors[:count], names[:count], "umap", seed=3)
        assert laid.points.shape == (count, 2) and np.isfinite(laid.points).all()
    distance = np.linalg.norm(laid.points[:, None] - laid.points, axis=2)
    same = names[:, None] == names
    assert distance[same].mean() < distance[~same].mean() / 3
    again = embedding_map(vectors, names, "umap", seed=3)
    np.testing.assert_array_equal(again.points, laid.points)


GOOD = {"event": "step", "step": 2, "epoch": 0, "images": 32, "lr": 0.1, "loss": 2.0, "terms": {"a": 2.0}}
GOOD |= {"images_per_second": 16.0, "wait_share": 0.25}


def test_a_log_gives_times_and_survives_damage(tmp_path):
    lines = [
        json.dumps(GOOD),
        json.dumps(GOOD | {"step": 4, "images": 64, "loss": "nan", "terms": {"a": "inf"}}),
        '{"event": "step", "st',
        "[1, 2]",
        json.dumps(GOOD | {"step": 3}),  # goes back
        json.dumps({"event": "nonfinite", "step": 5}),
        json.dumps({"event": "validation", "step": 4, "results": [{"protocol": "p", "metrics": {"m": 0.5}}]}),
        json.dumps({"event": "validation", "step": 5, "results": 7}),
        json.dumps(GOOD | {"step": 6, "images": 96, "images_per_second": 0.0}),
        json.dumps({"event": "from the future"}),
        "\x00\x00",
    ]
    file = tmp_path / "log.jsonl"
    file.write_bytes("\n".join(lines).encode() + b"\n\xff\xfe\n" + b"[" * 100_000)
    log = read_log(file)
    assert [(w.step, w.seconds, w.waiting) for w in log.windows] == [
        (2, 2.0, 0.5),
        (4, 2.0, 0.5),
        (6, 0.0, 0.0),
    ]
    assert [v.metrics["p"]["m"] for v in log.validations] == [0.5]
    assert (log.nonfinite, log.damaged) == (1, 6)
    for chart in training_charts(log):
        text = str(chart.svg())
        assert "nan" not in text
        assert "inf" not in text
    assert read_log(tmp_path / "none.jsonl") is None
    page = render(Report("t", "k", [], log=log))
    assert "No protocol was evaluated" in page
    assert "damaged log lines" in page
    assert "1.0 s (25.0%)" in page


def test_a_long_log_is_thinned_but_keeps_its_means(tmp_path):
    file = tmp_path / "log.jsonl"
    lines = (json.dumps(GOOD | {"step": s, "images": 16 * s, "loss": s % 2}) for s in range(1, 20_001))
    file.write_text("\n".join(lines))
    charts = training_charts(read_log(file))
    assert sum(len(str(chart.svg())) for chart in charts) < 100_000
    rate = next(chart for chart in charts if chart.title == "Learning rate")
    assert "0.1 to 0.1" in rate.summary


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"results": 3}',
        '{"results": [{}]}',
        '{"results": [{"subject": "s", "protocol": "p", "variant": "", "metrics": {"a": "x"}}]}',
        "[" * 100_000,
    ],
)
def test_damaged_results_are_one_line(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(InputError, match=r"results.json: damaged") as caught:
        read_results(tmp_path)
    assert "\n" not in str(caught.value)


def test_results_come_back_as_they_were(tmp_path):
    vectors, names, _ = people(np.random.default_rng(0))
    results = [
        PROTOCOLS[n](vectors, {"identity": names}, bootstrap=20) for n in ("identification", "verification")
    ]
    (tmp_path / "results.json").write_text(json.dumps({"results": [r.to_json() for r in results]}))
    _, again = read_results(tmp_path)
    assert [r.to_json() for r in again] == [r.to_json() for r in results]
    assert [[r.cell(n) for n in r.shown()] for r in again] == [
        [r.cell(n) for n in r.shown()] for r in results
    ]


def test_nobody_to_search_is_said():
    vectors = np.eye(4, dtype=np.float32)
    columns = {"identity": np.array(list("abcd"), dtype=object)}
    seen = look_at_people(vectors, columns, list("1234"), None, protocols=["identification"])
    assert isinstance(seen, People)
    assert not seen.lists
    page = render(Report("t", "k", [], people=seen))
    assert "There are no ranked lists: no query has a positive in the gallery" in page


def test_a_page_stays_below_its_limit():
    vectors, names, _ = people(np.random.default_rng(0), identities=700, images=4, noise=3.0)
    names = np.array([f"{'very long name ' * 400}{name}" for name in names], dtype=object)
    paths = [f"{i}/" + "x" * 4000 for i in range(len(names))]
    rng = np.random.default_rng(0)
    seen = look_at_people(
        vectors,
        {"identity": names},
        paths,
        lambda path: rng.integers(0, 256, (128, 128, 3), np.uint8),
        protocols=["identification"],
        choice=Choice(queries=21, top=20, seed=0),
    )
    page = render(Report("t", "k", [], people=seen, recipe="x" * 200_000))
    assert len(seen.pictures) > 500
    assert len(page.encode()) < 10_000_000
    with pytest.raises(InputError, match=r"--queries and --top"):
        render(Report("t", "k", [], people=seen), most_bytes=1_000_000)
