"""Who would train and who would test, and the form that an advice has."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from metricid.advice.figures import Counts, Figures, Spread, spread

TESTED = ("query", "gallery", "test")
TRAIN_SHARE = 0.8
LEAST_TO_HOLD_OUT = 10
LEAST_TO_VALIDATE = 200
MOST_VALIDATION = 100


@dataclass(frozen=True)
class Line:
    """One advice.

    Attributes:
        topic: what it is about.
        choice: what to start from.
        basis: the figures of the table that it is based on.
        why: the reason.
        source: where the evidence for the reason comes from.
        section: dotted path in the recipe above which it stands as a comment.
    """

    topic: str
    choice: str
    basis: str
    why: str
    source: str
    section: str


@dataclass(frozen=True)
class Plan:
    """What to start from.

    Attributes:
        lines: the advice.
        warnings: what in the table will hurt, whatever is chosen.
        recipe: a recipe without the place of the data; None where nothing can be trained.
        problem: why there is no recipe; empty where there is one.
    """

    lines: tuple[Line, ...]
    warnings: tuple[str, ...]
    recipe: dict[str, Any] | None
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "advice": [asdict(line) for line in self.lines],
            "warnings": list(self.warnings),
            "recipe": self.recipe,
            "problem": self.problem or None,
        }


@dataclass(frozen=True)
class Division:
    """Who trains and who tests.

    Attributes:
        kind: `column` (the split column says train and test), `named` (it has two values that share nobody),
            `drawn` (identities are drawn) or `all` (everybody trains).
        split: the section `data.split` of the recipe.
        counts: images of each identity on the training side, or of all identities that could be drawn.
        train: of these, how many identities train.
        validation: identities that pick the best checkpoint.
        test, test_images: identities and images that test; expected values where they are drawn.
        left_out: singletons that are left out.
    """

    kind: str
    split: dict[str, Any] | None
    counts: Counts
    train: int
    validation: int
    test: int
    test_images: int
    left_out: int

    @property
    def spread(self) -> Spread:
        """Of `counts`."""
        return spread(self.counts)

    @property
    def train_images(self) -> int:
        """Images that train; expected where identities are drawn."""
        return round(int(self.counts.sum()) * self.train / len(self.counts))

    @property
    def unlabelled(self) -> bool:
        """No identity has two images: labels say nothing."""
        return int(self.counts.max()) == 1


def divide(figures: Figures) -> Division | None:
    """Proposes who trains; None where fewer than two identities would."""
    parts = figures.split_counts
    if "train" in parts and any(name in parts for name in TESTED):
        return _by_column(figures)
    several = all(len(counts) > 1 and counts.max() > 1 for counts in parts.values())
    if len(parts) == 2 and several and not figures.shared and not any(name in parts for name in TESTED):
        return _named(parts)
    return _drawn(figures, free=not parts or "train" in parts)


def _by_column(figures: Figures) -> Division | None:
    counts = figures.split_counts["train"]
    if len(counts) < 2:
        return None
    tested = [figures.split_counts[name] for name in TESTED if name in figures.split_counts]
    images = sum(int(c.sum()) for c in tested)
    return Division("column", None, counts, len(counts), 0, max(map(len, tested)), images, 0)


def _named(parts: Mapping[str, Counts]) -> Division:
    train, test = sorted(parts, key=lambda name: (name != "train", -int(parts[name].sum()), name))
    counts = parts[train]
    validation = _validation(len(counts)) if counts.min() > 1 else 0
    split: dict[str, Any] = {"train": train, "test": test}
    split |= {"validation_identities": validation} if validation else {}
    return Division(
        "named",
        split,
        counts,
        len(counts) - validation,
        validation,
        len(parts[test]),
        int(parts[test].sum()),
        0,
    )


def _drawn(figures: Figures, free: bool) -> Division | None:
    counts = figures.counts
    several = counts[counts > 1]
    if len(counts) < 2:
        return None
    if len(several) < LEAST_TO_HOLD_OUT:
        if free:
            counts = figures.split_counts.get("train", counts)
            return Division("all", None, counts, len(counts), 0, 0, 0, 0) if len(counts) > 1 else None
        if len(several) < 4:
            return None
    train = min(round(TRAIN_SHARE * len(several)), len(several) - 2)  # a test needs two identities to confuse
    validation = _validation(train)
    left_out = len(counts) - len(several)
    split: dict[str, Any] = {"train_identities": train}
    split |= {"min_images": 2} if left_out else {}
    split |= {"validation_identities": validation} if validation else {}
    split["seed"] = 0
    test = len(several) - train
    images = round(int(several.sum()) * test / len(several))
    return Division("drawn", split, several, train - validation, validation, test, images, left_out)


def _validation(train: int) -> int:
    return min(MOST_VALIDATION, round(0.1 * train)) if train >= LEAST_TO_VALIDATE else 0
