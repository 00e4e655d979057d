"""Where a training stands, and what it did since the last log line."""

import time
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Position:
    """Where a training stands; everything else of its course follows from the seed."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    images: int = 0
    nonfinite: int = 0
    nonfinite_in_a_row: int = 0
    best: float | None = None
    train_seconds: float = 0.0
    wait_seconds: float = 0.0
    validation_due: bool = False


@dataclass
class Window:
    """Sums between two log lines; `weights` and `norms` are those of the latest step."""

    started: float = field(default_factory=time.perf_counter)
    wait: float = 0.0
    steps: int = 0
    images: int = 0
    loss: float = 0.0
    terms: dict[str, Tensor] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    norms: dict[str, Tensor] = field(default_factory=dict)

    def add(self, total: float, terms: dict[str, Tensor], images: int) -> None:
        """One step."""
        self.steps += 1
        self.images += images
        self.loss += total
        for name, value in terms.items():
            self.terms[name] = self.terms.get(name, 0.0) + value
            self.seen[name] = self.seen.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """Mean of each term over the steps in which it took part."""
        return {name: float(value) / self.seen[name] for name, value in self.terms.items()}
