"""The charts of a report: curves of results, of the training, and the embedding map."""

import re
from collections.abc import Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from metricid.evaluation import ProtocolResult
from metricid.report.embedding_map import EmbeddingMap
from metricid.report.run_files import Floats, TrainingLog, Window
from metricid.report.svg import Axis, Chart, LegendEntry, span
from metricid.report.text import shown

MOST_LINES = 6  # more lines cannot be told apart
_POINTS = 300
_THRESHOLDS = ("FAR=0.001", "FAR=0.01", "EER")


def result_charts(block: Sequence[ProtocolResult]) -> list[Chart]:
    """CMC, ROC and score histogram of results of one protocol on the same data, as far as they have them.

    The histogram is that of the first result.
    """
    charts = []
    ranked = [r for r in block if "cmc" in r.curves][:MOST_LINES]
    verified = [r for r in block if "roc" in r.curves][:MOST_LINES]
    if ranked:
        charts.append(_cmc(ranked))
    if verified:
        charts.append(_roc(verified))
    if verified and {"genuine_scores", "impostor_scores"} <= verified[0].curves.keys():
        charts.append(_scores(verified[0]))
    return charts


def _cmc(results: Sequence[ProtocolResult]) -> Chart:
    lowest = min(float(r.curves["cmc"].y[0]) for r in results)
    longest = max(float(r.curves["cmc"].x[-1]) for r in results)
    firsts = "; ".join(f"{_who(r)}: {r.curves['cmc'].y[0]:.1%} at rank 1" for r in results)
    chart = Chart(
        "CMC",
        f"Share of queries whose identity is among the first ranks. {firsts}.",
        Axis("rank", 0.0, max(longest, 2.0)),
        Axis("queries found", max(0.0, np.floor(10 * lowest - 0.5) / 10), 1.0, percent=True),
        "Share of queries that find their identity by this rank.",
    )
    for style, result in enumerate(results):
        curve = result.curves["cmc"]
        chart.line(curve.x, curve.y, f"{_who(result)}, rank-1 {curve.y[0]:.1%}", style, dots=True)
    return chart


def _roc(results: Sequence[ProtocolResult]) -> Chart:
    positive = [r.curves["roc"].x[r.curves["roc"].x > 0] for r in results]
    lowest = min((float(x.min()) for x in positive if len(x)), default=0.1)
    left = 10.0 ** min(float(np.floor(np.log10(lowest))), -1.0)
    told = "; ".join(f"{_who(r)}: EER {r.cell('EER')}, AUC {r.cell('AUC')}" for r in results)
    chart = Chart(
        "ROC",
        f"True accept rate over false accept rate. {told}.",
        Axis("false accept rate", left, 1.0, log=True),
        Axis("true accept rate", 0.0, 1.0, percent=True),
        "Up and left is better. The left end is the rate without any false accept.",
    )
    pairs = results[0].counts.get("impostor pairs", 0)
    if pairs and left < 30 / pairs:
        chart.band(left, min(30 / pairs, 1.0), "fewer than 30 false accepts: too few pairs to rely on")
    for style, result in enumerate(results):
        curve = result.curves["roc"]
        chart.line(curve.x, curve.y, f"{_who(result)}, EER {result.cell('EER')}", style, step=True)
    chance = np.logspace(np.log10(left), 0, 60)
    chart.diagonal(chance, chance, "chance")
    return chart


def _scores(result: ProtocolResult) -> Chart:
    genuine, impostor = result.curves["genuine_scores"], result.curves["impostor_scores"]
    half = (genuine.x[1] - genuine.x[0]) / 2 if len(genuine.x) > 1 else 0.01
    edges = np.append(genuine.x - half, genuine.x[-1] + half)
    highest = max(float(genuine.y.max()), float(impostor.y.max()), 1e-6)
    chart = Chart(
        "Scores",
        f"Cosine of genuine and impostor pairs of {_who(result)}; EER {result.cell('EER')}.",
        Axis("cosine similarity", float(edges[0]), float(edges[-1])),
        Axis("share of pairs", 0.0, 1.05 * highest, percent=True),
        "A pair is accepted from the threshold on. The less the two hills overlap, the better.",
    )
    for style, curve, name in ((1, impostor, "impostor pairs"), (0, genuine, "genuine pairs")):
        x, y = np.repeat(edges, 2)[1:-1], np.repeat(curve.y, 2)
        chart.area(x, np.zeros_like(y), y, name, style)
    for style, name in enumerate(_THRESHOLDS):
        value = result.metrics.get(f"threshold at {name} (cosine)", np.inf)
        if edges[0] <= value <= edges[-1] and f"TAR@{name}" not in result.unsupported:
            chart.vertical(value, f"threshold at {name}: {value:.3f}", style)
    return chart


def training_charts(log: TrainingLog) -> list[Chart]:
    """Loss terms, learning rate, validation and waiting over the steps."""
    charts = []
    if log.windows:
        x = Axis("step", 0.0, float(max(log.windows[-1].step, 1)))
        charts += [_loss(log.windows, x), _rate(log.windows, x), _waiting(log.windows, x)]
    if log.validations:
        last = max(log.validations[-1].step, log.windows[-1].step if log.windows else 1)
        chart = _validation(log, Axis("step", 0.0, float(last)))
        charts += [chart] if chart is not None else []
    return charts


def _loss(windows: Sequence[Window], x: Axis) -> Chart:
    names = list(dict.fromkeys(name for window in windows for name in window.terms))
    series = {
        name: _series(windows, [window.terms.get(name, np.nan) for window in windows])
        for name in names[: MOST_LINES - 1]
    }
    if len(names) > 1:
        series["total"] = _series(windows, [window.loss for window in windows])
    values = np.concatenate([y for _, y in series.values()]) if series else np.zeros(0)
    chart = Chart(
        "Loss",
        "Loss terms over the training steps. " + "; ".join(map(_ends, series, series.values())),
        x,
        Axis("loss, not weighted" if "total" not in series else "loss", *span(values, zero=True)),
        "Terms as they are before their weights; the total is the weighted sum." if "total" in series else "",
    )
    for style, (name, (steps, y)) in enumerate(series.items()):
        if len(steps):
            chart.line(steps, y, name, style)
    return chart


def _rate(windows: Sequence[Window], x: Axis) -> Chart:
    steps, rate = _series(windows, [window.lr for window in windows])
    chart = Chart(
        "Learning rate", _ends("Rate", (steps, rate)), x, Axis("learning rate", *span(rate, zero=True))
    )
    if len(steps):
        chart.line(steps, rate, "learning rate", 0)
    return chart


def _waiting(windows: Sequence[Window], x: Axis) -> Chart:
    steps, share = _series(windows, [w.waiting / w.seconds if w.seconds > 0 else np.nan for w in windows])
    mean = float(np.mean(share)) if len(share) else 0.0
    chart = Chart(
        "Where the time went",
        f"Share of the time spent waiting for images and computing; {mean:.1%} waiting on average.",
        x,
        Axis("share of the time", 0.0, 1.0, percent=True),
        "Waiting: no batch was ready, reading images was the limit.",
    )
    if len(steps):
        chart.area(steps, share, np.ones_like(share), "computing", 0, outline=False)
        chart.area(steps, np.zeros_like(share), share, "waiting for images", 1)
    return chart


def _validation(log: TrainingLog, x: Axis) -> Chart | None:
    """The rates of the first protocol that the validations measured."""
    protocol = next((name for v in log.validations for name in v.metrics), None)
    if protocol is None:
        return None
    rates = (
        name
        for name in log.validations[-1].metrics.get(protocol, {})
        if not re.search(r"threshold|nearest|std", name)
    )
    series = {}
    for name in islice(rates, MOST_LINES):
        points = [(v.step, v.metrics.get(protocol, {}).get(name, np.nan)) for v in log.validations]
        array = np.array([p for p in points if np.isfinite(p[1])], dtype=np.float64).reshape(-1, 2)
        series[name] = (array[:, 0], array[:, 1])
    if not series:
        return None
    values = np.concatenate([y for _, y in series.values()])
    low, high = span(values)
    chart = Chart(
        "Validation",
        f"{protocol} on the validation identities. " + "; ".join(map(_ends, series, series.values())),
        x,
        Axis(protocol, max(low, 0.0), min(high, 1.0) if high <= 1.1 else high, percent=high <= 1.1),
        "On identities that neither train nor test; the best checkpoint is chosen by them.",
    )
    for style, (name, (steps, y)) in enumerate(series.items()):
        if len(steps):
            chart.line(steps, y, name, style, dots=len(steps) < 60)
    return chart


def map_chart(laid_out: EmbeddingMap, identities: NDArray, marked: Sequence[str], total: int) -> Chart:
    """The embedding map; the marked identities have colours and shapes, all others are grey."""
    x, y = laid_out.points[:, 0], laid_out.points[:, 1]
    names = identities[laid_out.rows]
    titles = [shown(name) for name in names]
    part = f"{len(names):,} of {total:,} images" if len(names) < total else f"all {total:,} images"
    chart = Chart(
        "Embedding map",
        f"{laid_out.method} of {part}; marked: {', '.join(map(shown, marked)) or 'none'}.",
        Axis(laid_out.labels[0], *span(x)),
        Axis(laid_out.labels[1], *span(y)),
        f"{part[0].upper()}{part[1:]}.",
    )
    others = ~np.isin(names, list(marked))
    if others.any():
        chart.points(x[others], y[others], _picked(titles, others), None)
    for style, name in enumerate(marked):
        mine = names == name
        if mine.any():
            chart.points(x[mine], y[mine], _picked(titles, mine), style)
            chart.legend.append(LegendEntry(f"s{style}", f"shape{style}", name))
    return chart


def _series(windows: Sequence[Window], values: Sequence[float]) -> tuple[Floats, Floats]:
    """Steps and finite values; long logs as means over equal numbers of lines."""
    pairs = np.stack([[window.step for window in windows], values], axis=1).astype(np.float64)
    pairs = pairs[np.isfinite(pairs[:, 1])]
    if len(pairs) > _POINTS:
        pairs = np.array([part.mean(axis=0) for part in np.array_split(pairs, _POINTS)])
    return pairs[:, 0], pairs[:, 1]


def _who(result: ProtocolResult) -> str:
    return result.subject or result.protocol


def _picked(titles: Sequence[str], chosen: NDArray[np.bool_]) -> list[str]:
    return [titles[place] for place in np.flatnonzero(chosen).tolist()]


def _ends(name: str, series: tuple[Floats, Floats]) -> str:
    y = series[1]
    return f"{name} from {y[0]:.4g} to {y[-1]:.4g}" if len(y) else f"{name}: no finite value"
