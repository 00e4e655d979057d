"""A curve is two arrays and what they mean."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Curve:
    """Points of a curve, x ascending.

    Attributes:
        x: [n] float64.
        y: [n] float64.
        x_label: what x is.
        y_label: what y is.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    x_label: str
    y_label: str

    def thin(self, points: int) -> "Curve":
        """At most `points` of the points, ends included, spread evenly along the drawn line.

        Half of the points are spent on the line over x, half on the line over log x, because a ROC curve is
        read in both ways.
        """
        if len(self.x) <= points:
            return self
        positive = self.x[self.x > 0]
        floor = float(positive.min()) if len(positive) else 1.0
        keep = {0, len(self.x) - 1}
        for axis in (self.x, np.log10(np.maximum(self.x, floor))):
            length = np.zeros(len(self.x))
            np.cumsum(_share(axis) + _share(self.y), out=length[1:])
            marks = np.linspace(0.0, length[-1], points // 2)[1:-1]
            keep.update(np.searchsorted(length, marks).tolist())
        index = np.array(sorted(keep))
        return Curve(self.x[index], self.y[index], self.x_label, self.y_label)

    def to_json(self, points: int = 500) -> dict[str, Any]:
        """A plain dict of lists, thinned."""
        few = self.thin(points)
        return {"x": few.x.tolist(), "y": few.y.tolist(), "x_label": self.x_label, "y_label": self.y_label}


def _share(axis: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n - 1] length of each step as a share of the axis' range."""
    step = np.abs(np.diff(axis))
    total = step.sum()
    return step / total if total > 0 else step
