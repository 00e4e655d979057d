from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from metricid.evaluation import PROTOCOLS, Curve
from metricid.report import plot_cmc, plot_result, plot_roc, plot_scores, plots

COUNTS = {"genuine pairs": 10, "impostor pairs": 100}
LINE = Curve(np.array([0.0, 0.01, 1.0]), np.array([0.0, 0.5, 1.0]), "x", "y")


def colors_in(file: Path) -> set[tuple[int, ...]]:
    image = cv2.imread(str(file), cv2.IMREAD_COLOR_RGB)
    assert image.shape[0] > 400
    assert image.shape[1] > 600
    return set(map(tuple, image.reshape(-1, 3).tolist()))


def test_every_protocol_result_can_be_plotted(tmp_path):
    rng = np.random.default_rng(0)
    ids = rng.integers(10, size=100)
    x = rng.standard_normal((10, 8))[ids] + rng.standard_normal((100, 8))
    table = {"identity": ids, "camera": rng.integers(3, size=100), "split": ["query", "gallery"] * 50}
    written = [
        f for name in ("reid", "verification") for f in plot_result(PROTOCOLS[name](x, table), tmp_path)
    ]
    names = ["reid_cmc.png", "verification_roc.png", "verification_scores.png"]
    assert [f.name for f in written] == names == sorted(f.name for f in tmp_path.iterdir())
    for file in written:
        assert (0, 114, 178) in colors_in(file)  # the first line is drawn


def test_lines_shading_and_thresholds_are_drawn(tmp_path):
    plot_roc({"a": LINE, "b": LINE.thin(2)}, tmp_path / "roc.png", counts=COUNTS, supported_far=0.3)
    assert {(0, 114, 178), (213, 94, 0), (240, 240, 240)} <= colors_in(tmp_path / "roc.png")
    bins = np.linspace(-1, 1, 20)
    score = Curve(bins, np.full(20, 0.05), "score", "share")
    plot_scores(score, score, tmp_path / "none.png", counts=COUNTS, thresholds={"t": np.inf})
    plot_scores(score, score, tmp_path / "one.png", counts=COUNTS, thresholds={"t": 0.0})
    assert (tmp_path / "none.png").read_bytes() != (tmp_path / "one.png").read_bytes()


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn, as matplotlib has them."""
    figures = []

    class Kept(plots.Figure):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            figures.append(self)

    monkeypatch.setattr(plots, "Figure", Kept)
    return figures


def test_long_titles_and_counts_lie_inside_the_figure(tmp_path, drawn):
    title = (
        "reid of market-resnet50-bnneck (best.pt), flip-sum: "
        + "600/151 MAXIMUM MOMENTUM identity split, " * 6
    )
    names = ("queries", "gallery", "queries without positive", "identities", "cameras", "distractors")
    plot_cmc({"a": LINE}, tmp_path / "a.png", counts=dict.fromkeys(names, 15_913_000), title=title)
    (figure,) = drawn
    for text in (figure._suptitle, figure.axes[0].title):
        box = text.get_window_extent()
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1


def test_every_plot_names_its_subject(tmp_path, drawn):
    rng = np.random.default_rng(0)
    table = {"identity": np.arange(60) % 9, "camera": np.arange(60) % 4, "split": ["query", "gallery"] * 30}
    for name in ("reid", "verification"):
        result = PROTOCOLS[name](rng.standard_normal((60, 4)), table)
        plot_result(replace(result, subject="best.pt, no flip"), tmp_path)
        plot_result(result, tmp_path)
    titles = [figure._suptitle.get_text().replace("\n", " ") for figure in drawn]
    assert [t.split(":")[0] for t in titles] == [
        "reid of best.pt, no flip",
        "reid",
        *["verification of best.pt, no flip"] * 2,
        *["verification"] * 2,
    ]


def test_a_roc_starts_with_the_rate_without_false_accepts(tmp_path, drawn):
    curve = Curve(np.array([0.0, 0.0, 0.02, 1.0]), np.array([0.0, 0.4, 0.5, 1.0]), "x", "y")
    plot_roc({"a": curve}, tmp_path / "roc.png", counts=COUNTS)
    line = drawn[0].axes[0].lines[0]
    assert line.get_xdata().tolist() == [0.01, 0.01, 0.02, 1.0]
    assert line.get_ydata().tolist() == [0.0, 0.4, 0.5, 1.0]
    assert line.get_drawstyle() == "steps-post"
    assert drawn[0].axes[0].get_xlim() == (0.01, 1.0)


def test_a_failed_plot_leaves_the_old_file(tmp_path):
    file = tmp_path / "cmc.png"
    file.write_bytes(b"old")
    with pytest.raises(ValueError, match="no curve"):
        plot_cmc({}, file, counts=COUNTS)
    with pytest.raises(ValueError, match="same bins"):
        plot_scores(LINE, LINE.thin(2), file, counts=COUNTS)
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]
