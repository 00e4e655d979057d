"""What every protocol returns: measures with their variant, counts and curves; as a table and as JSON."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from metricid.evaluation.curves import Curve
from metricid.evaluation.intervals import Interval


@dataclass(frozen=True)
class ProtocolResult:
    """The outcome of one protocol.

    Attributes:
        protocol: its name in `PROTOCOLS`.
        variant: everything that must be known to compare the numbers, in words.
        metrics: rates as fractions, thresholds as they are.
        counts: images, pairs, queries, those left out.
        curves: `cmc`, `roc`, `genuine_scores`, `impostor_scores`.
        notes: what a reader must know; whole sentences.
        intervals: metric -> 95% bootstrap interval.
        unsupported: metrics the number of impostor pairs cannot support.
        subject: what was evaluated: a model, a baseline.
        units: measures that are no rates, with their unit or ''.
    """

    protocol: str
    variant: str
    metrics: dict[str, float]
    counts: dict[str, int]
    curves: dict[str, Curve] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    intervals: dict[str, Interval] = field(default_factory=dict)
    unsupported: list[str] = field(default_factory=list)
    subject: str = ""
    units: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A plain dict for `json.dumps`: curves of at most 500 points, an infinite threshold as None."""
        return {
            "subject": self.subject,
            "protocol": self.protocol,
            "variant": self.variant,
            "metrics": {k: v if math.isfinite(v) else None for k, v in self.metrics.items()},
            "counts": dict(self.counts),
            "intervals": {k: list(v) for k, v in self.intervals.items()},
            "unsupported": list(self.unsupported),
            "units": dict(self.units),
            "notes": list(self.notes),
            "curves": {k: v.to_json() for k, v in self.curves.items()},
        }

    def cell(self, name: str) -> str:
        """A measure as text: `83.11% [81.2, 85.0]`, with `*` where the data cannot support it."""
        if name not in self.metrics:
            return ""
        value = self.metrics[name]
        if name in self.units:
            return f"{value:.4g} {self.units[name]}".rstrip()
        text = f"{value:.4f}" if name.startswith("threshold") else f"{100 * value:.2f}%"
        if name in self.unsupported:
            text += "*"
        if name in self.intervals:
            low, high = self.intervals[name]
            text += f" [{100 * low:.2f}, {100 * high:.2f}]"
        return text

    def shown(self) -> list[str]:
        """Measures for the terminal; `to_json` has the rest.

        Left out are TAR at a false accept rate below 1 / impostor pairs, where no false accept is allowed and
        all such rates say the same; the rates at the nearest false accept rate; and the thresholds of
        unsupported rates. Rates from 1 to 30 false accepts are shown, with the `*` of `cell`.
        """
        unsupported = tuple(f"threshold at {name.removeprefix('TAR@')} " for name in self.unsupported)
        return [
            name
            for name in self.metrics
            if not name.endswith(" (nearest)")
            and not (unsupported and name.startswith(unsupported))
            and not self._below_one_false_accept(name)
        ]

    def _below_one_false_accept(self, name: str) -> bool:
        target = re.fullmatch(r"TAR@FAR=([\d.e-]+)", name)
        return target is not None and float(target[1]) * self.counts["impostor pairs"] < 1 - 1e-9


def format_table(results: Sequence[ProtocolResult]) -> str:
    """Tables for a terminal: a block for each protocol, variant and data; in it a column for each subject.

    Example:
        >>> from dataclasses import replace
        >>> first = ProtocolResult("identification", "cosine", {"rank-1": 0.5}, {"queries": 2}, subject="a")
        >>> second = replace(first, metrics={"rank-1": 0.25}, subject="pixels")
        >>> print(format_table([first, second]))
        identification (cosine; 2 queries)
                     a  pixels
        rank-1  50.00%  25.00%
    """
    blocks: dict[str, list[ProtocolResult]] = {}
    for result in results:
        counts = ", ".join(f"{value:,} {name}" for name, value in result.counts.items())
        blocks.setdefault(f"{result.protocol} ({result.variant}; {counts})", []).append(result)
    return "\n\n".join("\n".join(_block(title, members)) for title, members in blocks.items())


def _block(title: str, members: Sequence[ProtocolResult]) -> list[str]:
    names = list(dict.fromkeys(name for result in members for name in result.shown()))
    columns = [["", *names]] + [[r.subject, *(r.cell(name) for name in names)] for r in members]
    widths = [max(map(len, column)) for column in columns]
    lines = [title]
    for row in zip(*columns, strict=True):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        line = "  ".join(cells).rstrip()
        if line:
            lines.append(line)
    return lines + [f"note: {note}" for note in dict.fromkeys(n for r in members for n in r.notes)]
