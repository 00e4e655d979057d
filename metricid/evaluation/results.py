"""What every protocol returns: measures with their variant, counts and curves; as a table and as JSON."""

import math
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
    """

    protocol: str
    variant: str
    metrics: dict[str, float]
    counts: dict[str, int]
    curves: dict[str, Curve] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    intervals: dict[str, Interval] = field(default_factory=dict)
    unsupported: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """A plain dict for `json.dumps`: curves of at most 500 points, an infinite threshold as None."""
        return {
            "protocol": self.protocol,
            "variant": self.variant,
            "metrics": {k: v if math.isfinite(v) else None for k, v in self.metrics.items()},
            "counts": dict(self.counts),
            "intervals": {k: list(v) for k, v in self.intervals.items()},
            "unsupported": list(self.unsupported),
            "notes": list(self.notes),
            "curves": {k: v.to_json() for k, v in self.curves.items()},
        }

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """(protocol, measure, value, details, variant) of each measure, ready to print.

        Details are the interval, whether the data support the value, and what belongs to an operating point:
        the rate at the nearest false accept rate and the threshold.
        """
        rows = []
        for name, value in self.metrics.items():
            rate = name.removeprefix("TAR@")
            if name.endswith(" (nearest)") or name.startswith("threshold at FAR="):
                continue  # details of their TAR@FAR
            text = f"{value:.4f}" if name.startswith("threshold") else f"{100 * value:.2f}%"
            details = []
            if name in self.unsupported:
                details.append("UNSUPPORTED")
            if name in self.intervals:
                low, high = self.intervals[name]
                details.append(f"[{100 * low:.2f}, {100 * high:.2f}]")
            if f"{name} (nearest)" in self.metrics:
                details.append(f"nearest {100 * self.metrics[f'{name} (nearest)']:.2f}%")
                details.append(f"cosine >= {self.metrics[f'threshold at {rate} (cosine)']:.4f}")
            rows.append((self.protocol, name, text, " ".join(details), self.variant))
        return rows


def format_table(results: Sequence[ProtocolResult]) -> str:
    """A table for a terminal: protocol, measure, value, details, variant; below it counts and notes.

    Example:
        >>> print(format_table([ProtocolResult("identification", "cosine", {"rank-1": 0.5}, {"queries": 2})]))
        protocol        measure  value   details  variant
        --------------  -------  ------  -------  -------
        identification  rank-1   50.00%           cosine
        identification: queries 2
    """
    header = ("protocol", "measure", "value", "details", "variant")
    rows = [row for result in results for row in result.rows()]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [header, tuple("-" * width for width in widths), *rows]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    for result in results:
        text.append(f"{result.protocol}: " + ", ".join(f"{k} {v:,}" for k, v in result.counts.items()))
        text.extend(f"  note: {note}" for note in result.notes)
    return "\n".join(line.rstrip() for line in text)
