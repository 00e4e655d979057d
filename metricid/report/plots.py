"""ROC, CMC and score histogram as PNG files."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import wrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from metricid.evaluation import Curve, ProtocolResult
from metricid.files import atomic_write

COLORS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
)  # Okabe-Ito: safe for color blindness
_INK, _GRID = "#333333", "#dddddd"


@contextmanager
def _figure(file: str | Path, title: str, counts: Mapping[str, int]) -> Iterator[Axes]:
    """An empty, styled plot that is written to `file` when the block ends well."""
    figure = Figure(figsize=(7.0, 4.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    heading = "\n".join(wrap(title, 72))
    figure.suptitle(heading, fontsize=9.5, fontweight="bold", color=_INK)
    numbers = ", ".join(f"{value:,} {name}" for name, value in counts.items())
    axes.set_title("\n".join(wrap(numbers, 84)), fontsize=9, color="#666666")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.tick_params(colors=_INK, labelsize=9)
    axes.grid(color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    yield axes
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9, labelcolor=_INK)
    with atomic_write(Path(file)) as stream:
        figure.savefig(stream, format="png")


def plot_roc(
    curves: Mapping[str, Curve],
    file: str | Path,
    *,
    counts: Mapping[str, int],
    title: str = "ROC",
    supported_far: float | None = None,
) -> None:
    """True accept rate over the false accept rate (logarithmic), one line per name.

    The left end of a line is the rate without any false accept.

    Args:
        curves: name for the legend -> ROC curve.
        file: PNG file to write.
        counts: shown under the title, such as genuine and impostor pairs.
        title: of the plot.
        supported_far: rates below are shaded, as too few impostor pairs bear them.

    Raises:
        ValueError: no curve, or one without a positive false accept rate.
    """
    _check(curves)
    lowest = min(float(curve.x[curve.x > 0].min()) for curve in curves.values())
    left = 10.0 ** min(np.floor(np.log10(lowest)), -1.0)
    with _figure(file, title, counts) as axes:
        for color, (name, curve) in zip(_colors(curves), curves.items(), strict=True):
            x = np.maximum(curve.x, left)  # FAR = 0 has no place on a logarithmic axis
            axes.step(x, curve.y, where="post", label=name, color=color, linewidth=1.8)
        chance = np.logspace(np.log10(left), 0, 200)
        axes.plot(chance, chance, color="#999999", linewidth=1, linestyle=":", label="chance")
        if supported_far is not None and supported_far > left:
            axes.axvspan(left, min(supported_far, 1.0), color="#f0f0f0", zorder=0)
            axes.text(
                left * 1.15, 0.985, "fewer than 30 false accepts", fontsize=8, color="#777777", va="top"
            )
        axes.set_xscale("log")
        axes.set_xlim(left, 1.0)
        axes.set_ylim(0.0, 1.005)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlabel("false accept rate", color=_INK)
        axes.set_ylabel("true accept rate", color=_INK)


def plot_cmc(
    curves: Mapping[str, Curve], file: str | Path, *, counts: Mapping[str, int], title: str = "CMC"
) -> None:
    """Identification rate over the rank, one line per name.

    Args:
        curves: name for the legend -> CMC curve.
        file: PNG file to write.
        counts: shown under the title, such as queries and gallery.
        title: of the plot.

    Raises:
        ValueError: no curve.
    """
    _check(curves)
    with _figure(file, title, counts) as axes:
        for color, (name, curve) in zip(_colors(curves), curves.items(), strict=True):
            label = f"{name} (rank-1 {100 * curve.y[0]:.1f}%)"
            axes.plot(curve.x, curve.y, label=label, color=color, linewidth=1.8, marker="o", markersize=3)
        axes.set_xlim(0.5, max(float(curve.x[-1]) for curve in curves.values()) + 0.5)
        lowest = min(float(curve.y[0]) for curve in curves.values())
        axes.set_ylim(max(0.0, np.floor(10 * lowest - 0.5) / 10), 1.005)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlabel("rank", color=_INK)
        axes.set_ylabel("identification rate", color=_INK)


def plot_scores(
    genuine: Curve,
    impostor: Curve,
    file: str | Path,
    *,
    counts: Mapping[str, int],
    thresholds: Mapping[str, float] | None = None,
    title: str = "Scores",
) -> None:
    """Histograms of the genuine and the impostor scores, with thresholds as lines.

    Args:
        genuine: share of the genuine pairs per bin.
        impostor: share of the impostor pairs, on the same bins.
        file: PNG file to write.
        counts: shown under the title.
        thresholds: name -> score; infinite ones are left out.
        title: of the plot.

    Raises:
        ValueError: the histograms do not share their bins.
    """
    if not np.array_equal(genuine.x, impostor.x):
        raise ValueError("the genuine and the impostor histogram must have the same bins")
    half = (genuine.x[1] - genuine.x[0]) / 2
    edges = np.append(genuine.x - half, genuine.x[-1] + half)
    lines = {name: value for name, value in (thresholds or {}).items() if np.isfinite(value)}
    with _figure(file, title, counts) as axes:
        for curve, name, color in (
            (impostor, "impostor pairs", COLORS[1]),
            (genuine, "genuine pairs", COLORS[0]),
        ):
            axes.stairs(curve.y, edges, fill=True, color=color, alpha=0.35)
            axes.stairs(curve.y, edges, color=color, linewidth=1.4, label=name)
        for style, (name, value) in zip(_styles(len(lines)), lines.items(), strict=True):
            axes.axvline(value, color=_INK, linewidth=1.2, linestyle=style, label=f"{name}: {value:.3f}")
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(bottom=0.0)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlabel("cosine similarity", color=_INK)
        axes.set_ylabel("share of pairs per bin", color=_INK)


def plot_result(result: ProtocolResult, folder: str | Path) -> list[Path]:
    """Every plot a protocol result has curves for, as `<protocol>_roc.png`, `_scores.png`, `_cmc.png`.

    Args:
        result: of any protocol.
        folder: existing folder to write to; older plots of the same names are replaced.

    Returns:
        The files written.
    """
    files = []
    title = f"{result.protocol} of {result.subject}" if result.subject else result.protocol
    title += f": {result.variant}"
    if "cmc" in result.curves:
        files.append(Path(folder) / f"{result.protocol}_cmc.png")
        plot_cmc({result.protocol: result.curves["cmc"]}, files[-1], counts=result.counts, title=title)
    if "roc" in result.curves:
        files.append(Path(folder) / f"{result.protocol}_roc.png")
        name = f"EER {100 * result.metrics['EER']:.2f}%, AUC {result.metrics['AUC']:.4f}"
        plot_roc(
            {name: result.curves["roc"]},
            files[-1],
            counts=result.counts,
            title=title,
            supported_far=30 / result.counts["impostor pairs"],
        )
        files.append(Path(folder) / f"{result.protocol}_scores.png")
        names = (
            "threshold at EER (cosine)",
            "threshold at FAR=0.01 (cosine)",
            "threshold at FAR=0.001 (cosine)",
        )
        plot_scores(
            result.curves["genuine_scores"],
            result.curves["impostor_scores"],
            files[-1],
            counts=result.counts,
            thresholds={n.removesuffix(" (cosine)"): result.metrics[n] for n in names if n in result.metrics},
            title=title,
        )
    return files


def _check(curves: Mapping[str, Curve]) -> None:
    if not curves:
        raise ValueError("no curve to plot")


def _colors(curves: Mapping[str, Curve]) -> list[str]:
    return [COLORS[i % len(COLORS)] for i in range(len(curves))]


def _styles(count: int) -> Sequence[str]:
    return [("-", "--", ":", "-.")[i % 4] for i in range(count)]
