"""Charts as inline SVG: colours come from the page's style, so that they follow its light and dark theme."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import ArrayLike, NDArray

WIDTH, HEIGHT = 440, 290  # at 390 pixels of screen the text is still 10 pixels high
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 42
_STYLES = 6  # classes s0..s5 of the style sheet

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        label: what it shows.
        low: value at its start.
        high: value at its end; above `low`.
        log: whether it is logarithmic (`low` > 0 then).
        percent: whether values are fractions, written as percent.
    """

    label: str
    low: float
    high: float
    log: bool = False
    percent: bool = False

    def place(self, values: ArrayLike) -> Floats:
        """Positions from 0 (low) to 1 (high); values outside are moved to the edge."""
        inside = np.clip(np.asarray(values, dtype=np.float64), self.low, self.high)
        if self.log:
            return np.log(inside / self.low) / math.log(self.high / self.low)
        return (inside - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        """Round values inside the axis with their text."""
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            if last > first:
                every = max(1, math.ceil((last - first) / 6))
                return [(10.0**e, _power(e)) for e in range(first, last + 1, every)]
        step = _round_step((self.high - self.low) / 5)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [(i * step, self._text(i * step, step)) for i in range(first, last + 1)]

    def _text(self, value: float, step: float) -> str:
        factor, unit = (100.0, "%") if self.percent else (1.0, "")
        digits = max(0, -math.floor(math.log10(step * factor) + 1e-9))
        if not self.percent and (abs(value) >= 1e5 or digits > 3):
            if not value:
                return "0"
            places = math.floor(math.log10(abs(value)) + 1e-9) - math.floor(math.log10(step) + 1e-9)
            places = min(max(places, 1), 5)  # enough to tell ticks apart
            mantissa, exponent = f"{value:.{places}e}".split("e")
            return f"{float(mantissa):g}e{int(exponent)}"
        return f"{value * factor + 0.0:.{digits}f}{unit}"


@dataclass(frozen=True)
class LegendEntry:
    """One line of a legend: `style` is a class of the style sheet, `mark` the shape shown before the text."""

    style: str
    mark: str
    text: str


@dataclass
class Chart:
    """A chart in the making; `svg()` ends it.

    Attributes:
        title: heading above the chart.
        summary: what a person who cannot see the chart is told.
        x: horizontal axis.
        y: vertical axis.
        note: sentence under the chart.
        legend: entries, made by the drawing methods.
    """

    title: str
    summary: str
    x: Axis
    y: Axis
    note: str = ""
    legend: list[LegendEntry] = field(default_factory=list)
    _shapes: list[Markup] = field(default_factory=list)

    def line(
        self, x: ArrayLike, y: ArrayLike, name: str, style: int, *, step: bool = False, dots: bool = False
    ) -> None:
        """A line through points; with `step`, each value holds until the next point."""
        px, py = self._pixels(x, y)
        if step:
            px, py = np.repeat(px, 2)[1:], np.repeat(py, 2)[:-1]
        name_class = f"s{style % _STYLES}"
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(px, py, strict=True))
        self._shapes.append(Markup('<polyline class="line {}" points="{}"/>').format(name_class, points))
        if dots or len(px) == 1:
            for a, b in zip(px, py, strict=True):
                self._shapes.append(
                    Markup('<circle class="dot {}" cx="{}" cy="{}" r="2.5"/>').format(
                        name_class, f"{a:.1f}", f"{b:.1f}"
                    )
                )
        self.legend.append(LegendEntry(name_class, "line", name))

    def area(
        self, x: ArrayLike, low: ArrayLike, high: ArrayLike, name: str, style: int, *, outline: bool = True
    ) -> None:
        """The space between two lines over the same x."""
        px, bottom = self._pixels(x, low)
        top = self._pixels(x, high)[1]
        name_class = f"s{style % _STYLES}"
        there = [f"{a:.1f},{b:.1f}" for a, b in zip(px, top, strict=True)]
        back = [f"{a:.1f},{b:.1f}" for a, b in zip(px[::-1], bottom[::-1], strict=True)]
        self._shapes.append(
            Markup('<polygon class="area {}" points="{}"/>').format(name_class, " ".join(there + back))
        )
        if outline:
            self._shapes.append(
                Markup('<polyline class="line {}" points="{}"/>').format(name_class, " ".join(there))
            )
        self.legend.append(LegendEntry(name_class, "area", name))

    def vertical(self, x: float, name: str, style: int) -> None:
        """A vertical line at a value."""
        (px,), _ = self._pixels([x], [self.y.low])
        name_class = f"mark m{style % 4}"
        self._shapes.append(
            Markup('<line class="{}" x1="{x}" x2="{x}" y1="{}" y2="{}"/>').format(
                name_class, _TOP, HEIGHT - _BOTTOM, x=f"{px:.1f}"
            )
        )
        self.legend.append(LegendEntry(name_class, "line", name))

    def band(self, low: float, high: float, name: str) -> None:
        """Shades the part between two values of x."""
        (left, right), _ = self._pixels([low, high], [self.y.low] * 2)
        self._shapes.insert(
            0,
            Markup('<rect class="band" x="{}" y="{}" width="{}" height="{}"/>').format(
                f"{left:.1f}", _TOP, f"{right - left:.1f}", HEIGHT - _TOP - _BOTTOM
            ),
        )
        self.legend.append(LegendEntry("band", "area", name))

    def diagonal(self, x: ArrayLike, y: ArrayLike, name: str) -> None:
        """A thin dotted line for comparison."""
        px, py = self._pixels(x, y)
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(px, py, strict=True))
        self._shapes.append(Markup('<polyline class="chance" points="{}"/>').format(points))
        self.legend.append(LegendEntry("chance", "line", name))

    def points(self, x: ArrayLike, y: ArrayLike, titles: Sequence[str], style: int | None) -> None:
        """Single points, each with a text on hovering; `style` None draws the many in the background."""
        px, py = self._pixels(x, y)
        css = "point" if style is None else f"point s{style % _STYLES}"
        shape = 0 if style is None else style % _STYLES
        template = Markup('<path class="{}" transform="translate({} {})" d="{}"><title>{}</title></path>')
        for a, b, title in zip(px, py, titles, strict=True):
            self._shapes.append(template.format(css, f"{a:.1f}", f"{b:.1f}", SHAPES[shape], title))

    def svg(self) -> Markup:
        """The chart as an SVG element."""
        parts = [
            Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}" class="chart">').format(
                WIDTH, HEIGHT, f"{self.title}. {self.summary}"
            )
        ]
        bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
        for value, text in self.x.ticks():
            (px,), _ = self._pixels([value], [self.y.low])
            parts.append(_tick(px, _TOP, px, bottom, px, bottom + 15, text, "middle"))
        for value, text in self.y.ticks():
            _, (py,) = self._pixels([self.x.low], [value])
            parts.append(_tick(_LEFT, py, right, py, _LEFT - 6, py + 4, text, "end"))
        parts.extend(self._shapes)
        parts.append(Markup('<path class="axis" d="M{} {}V{}H{}"/>').format(_LEFT, _TOP, bottom, right))
        parts.append(
            Markup('<text class="label" x="{}" y="{}" text-anchor="middle">{}</text>').format(
                (_LEFT + right) / 2, HEIGHT - 6, self.x.label
            )
        )
        parts.append(
            Markup(
                '<text class="label" transform="translate(12 {}) rotate(-90)" text-anchor="middle">'
            ).format((_TOP + bottom) / 2)
            + escape(self.y.label)
            + Markup("</text>")
        )
        parts.append(Markup("</svg>"))
        return Markup("").join(parts)

    def _pixels(self, x: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats]:
        width, height = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
        return _LEFT + width * self.x.place(x), _TOP + height * (1 - self.y.place(y))


# Circle, square, triangle, diamond, cross, plus: identities differ by shape as well as by colour.
SHAPES = (
    "M-3 0a3 3 0 1 0 6 0a3 3 0 1 0 -6 0Z",
    "M-3.5 -3.5h7v7h-7Z",
    "M0 -4.5L4.5 3.5H-4.5Z",
    "M0 -5L5 0L0 5L-5 0Z",
    "M-4 -2.5L-2.5 -4L0 -1.5L2.5 -4L4 -2.5L1.5 0L4 2.5L2.5 4L0 1.5L-2.5 4L-4 2.5L-1.5 0Z",
    "M-1.2 -4.5h2.4v3.3h3.3v2.4h-3.3v3.3h-2.4v-3.3h-3.3v-2.4h3.3Z",
)


def span(values: ArrayLike, *, zero: bool = False) -> tuple[float, float]:
    """Lowest and highest finite value with some air; two different numbers in any case."""
    array = np.asarray(values, dtype=np.float64)
    array = array[np.isfinite(array)]
    if not len(array):
        return 0.0, 1.0
    low, high = float(array.min()), float(array.max())
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    air = 0.04 * (high - low)
    if air <= 1e-9 * max(abs(low), abs(high)):
        air = max(abs(high), 1e-9) * 0.1
    return low if zero and low == 0 else low - air, high + air


def _tick(x1: float, y1: float, x2: float, y2: float, tx: float, ty: float, text: str, anchor: str) -> Markup:
    return Markup(
        '<line class="grid" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>'
        '<text class="tick" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>'
    ).format(x1, y1, x2, y2, tx, ty, anchor, text)


def _round_step(step: float) -> float:
    base = 10.0 ** math.floor(math.log10(step))
    return next(base * factor for factor in (1, 2, 5, 10) if base * factor >= step * (1 - 1e-9))


def _power(exponent: int) -> str:
    return f"{10.0**exponent:g}" if -4 <= exponent <= 4 else f"1e{exponent}"
