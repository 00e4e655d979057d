"""Figures and advice for a terminal: aligned, plain text."""

import textwrap
from collections.abc import Iterator

from metricid.advice.figures import Cameras, Figures, Shapes, Spread
from metricid.advice.noise import LEAST_SENSITIVITY, NoiseEstimate
from metricid.advice.plan import Plan

LABEL = 20
BAR = 30
SHOWN_CAMERAS = 8
SHOWN_SPLITS = 6
EXAMPLES = 5


def format_figures(
    figures: Figures, noise: NoiseEstimate | None, notes: dict[str, str], names: list[str], width: int
) -> str:
    """The figures of a table.

    Args:
        figures: of the table.
        noise: of its labels.
        notes: what to say in place of figures that are missing: `image size`, `label noise`.
        names: [N] paths by row, for the examples of `noise`; those that no example needs may be empty.
        width: of the terminal.
    """
    rows = list(_spread(figures.spread))
    if figures.distractor_images:
        rows.append(("distractors", f"{figures.distractor_images:,} images of nobody, not counted above"))
    rows += [("cameras", text) for text in _cameras(figures.cameras)]
    rows.append(("splits", _splits(figures)))
    rows.append(
        ("image size", notes.get("image size", "") if figures.shapes is None else _shapes(figures.shapes))
    )
    rows += [("label noise", text) for text in (_noise(noise, names) if noise else [notes["label noise"]])]
    return "\n".join(_lines(rows, width))


def format_plan(plan: Plan, width: int) -> str:
    """The advice, each line with its figures, its reason and where that comes from."""
    out = []
    for line in plan.lines:
        out += _lines([(line.topic, line.choice)], width)
        for label, text in (("figures", line.basis), ("why", line.why), ("evidence", line.source)):
            out += _wrapped(f"  {label}", text, width)
    if plan.problem:
        out += _wrapped("no recipe", plan.problem, width)
    return "\n".join(out)


def format_warnings(plan: Plan, width: int) -> str:
    """The warnings, one below the other."""
    return "\n".join(text for warning in plan.warnings for text in _wrapped("warning", warning, width))


def _lines(rows: list[tuple[str, str]], width: int) -> list[str]:
    """Label and text; a label that is that of the row above is not repeated."""
    out: list[str] = []
    before = ""
    for label, text in rows:
        out += _wrapped("" if label == before else label, text, width)
        before = label
    return out


def _wrapped(label: str, text: str, width: int) -> list[str]:
    plain = "".join(c if c.isprintable() else "\ufffd" for c in text)
    if "  " in plain:  # a bar of the histogram keeps its columns
        return [f"{label:{LABEL}}{plain}"]
    return textwrap.wrap(
        plain,
        max(width, 2 * LABEL),
        initial_indent=f"{label:{LABEL}}",
        subsequent_indent=" " * LABEL,
        break_on_hyphens=False,
    ) or [label]


def _spread(spread: Spread) -> Iterator[tuple[str, str]]:
    yield "images", f"{spread.images:,}"
    yield "identities", f"{spread.identities:,}"
    yield (
        "images per identity",
        f"{spread.smallest:,} to {spread.largest:,}; quartiles {spread.lower:,}, {spread.median:,}, "
        f"{spread.upper:,}; mean {spread.mean:.1f}",
    )
    most = max(n for *_, n in spread.histogram)
    labels = [str(a) if a == b else f"{a}-{b}" for a, b, _ in spread.histogram]
    for label, (*_, n) in zip(labels, spread.histogram, strict=True):
        bar = "#" * max(round(BAR * n / most), 1 if n else 0)
        yield "images per identity", f"{label:>{max(map(len, labels))}}  {n:>9,}  {bar}".rstrip()
    yield (
        "singletons",
        f"{spread.singletons:,} identities have one image ({spread.singletons / spread.identities:.1%}), "
        f"{spread.singletons / spread.images:.1%} of the images"
        if spread.singletons
        else "none: every identity has two images or more",
    )
    yield (
        "tail",
        f"Gini {spread.gini:.2f}; the largest 1% of the identities hold {spread.top_1:.0%} of the images, "
        f"the largest 10% {spread.top_10:.0%}; largest / smallest {spread.imbalance:,.0f}",
    )
    yield (
        "effective number",
        f"{spread.effective:,.0f} identities of equal size would be as varied (exp of the entropy)",
    )


def _cameras(cameras: Cameras | None) -> Iterator[str]:
    if cameras is None:
        yield "none given"
        return
    order = sorted(cameras.shares, key=lambda name: (-cameras.shares[name], name))
    shown = ", ".join(f"{name} {cameras.shares[name]:.0%}" for name in order[:SHOWN_CAMERAS])
    yield f"{len(order)}; share of the images: {shown}" + (", ..." if len(order) > SHOWN_CAMERAS else "")
    yield (
        f"{cameras.on_one:,} of {cameras.identities:,} identities on one camera only; {cameras.median} "
        "cameras per identity (median)"
        + (f"; {cameras.unknown:,} images without a camera" if cameras.unknown else "")
    )


def _splits(figures: Figures) -> str:
    if figures.splits is None:
        return "none given"
    shown = [
        f"{name or '(empty)'}: {images:,} images of {identities:,} identities"
        for name, (images, identities) in list(figures.splits.items())[:SHOWN_SPLITS]
    ]
    more = len(figures.splits) - SHOWN_SPLITS
    return "; ".join(shown + ([f"and {more} more"] if more > 0 else []))


def _shapes(shapes: Shapes) -> str:
    return (
        f"{shapes.width} x {shapes.height} (width x height, medians of {shapes.sampled} images), height / "
        f"width {shapes.aspect:.2f}"
    )


def _noise(noise: NoiseEstimate, names: list[str]) -> Iterator[str]:
    seen = (
        f"{noise.suspects:,} of {noise.examined:,} images look like another identity; of labels made wrong "
        f"on purpose {noise.sensitivity:.0%} would"
    )
    if noise.share is None or noise.at_most is None:
        yield (
            f"cannot be told: {seen}, and at least {LEAST_SENSITIVITY:.0%} should; for {noise.own_first:.0%} "
            "of the images the nearest one is of their own identity: take a better model"
        )
        return
    yield (
        f"about {noise.share:.1%} of the labels are wrong (95% interval {noise.low:.1%} to {noise.high:.1%}; "
        f"{noise.at_most:.1%} if the model never erred)"
    )
    yield f"{seen}; the nearest image is of the own identity for {noise.own_first:.0%}"
    for row, like in noise.examples[:EXAMPLES]:
        yield f"e.g. {names[row]} looks like {names[like]}"
