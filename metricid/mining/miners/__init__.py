"""Miners by name: which pairs or triplets of a batch a loss learns from, and how much from each."""

from collections.abc import Mapping
from typing import Any

from metricid.mining.miners.bands import Angular, SemiHardAll, TripletSet
from metricid.mining.miners.base import MINERS, Beside, Mined, Miner, pair_weights
from metricid.mining.miners.columns import (
    BatchHard,
    DistanceWeighted,
    EasyPositive,
    SemiHard,
    distance_weighted,
)
from metricid.mining.miners.weighing import (
    AdaptiveWeights,
    BatchAll,
    HardPercentile,
    HardTopK,
    MultiSimilarity,
    multi_similarity,
)

__all__ = [
    "MINERS",
    "AdaptiveWeights",
    "Angular",
    "BatchAll",
    "BatchHard",
    "Beside",
    "DistanceWeighted",
    "EasyPositive",
    "HardPercentile",
    "HardTopK",
    "Mined",
    "Miner",
    "MultiSimilarity",
    "SemiHard",
    "SemiHardAll",
    "TripletSet",
    "build_miner",
    "distance_weighted",
    "multi_similarity",
    "pair_weights",
]


def build_miner(choice: str | Mapping[str, Any] | Miner | None) -> Miner | None:
    """The miner that somebody asks for.

    Args:
        choice: a name, `{name: ..., option: ...}`, or a miner; None for none.

    Raises:
        ValueError: unknown name or options, or options out of range.

    Example:
        >>> build_miner({"name": "semi_hard", "margin": 0.1})
        semi_hard(margin=0.1)
    """
    if choice is None or isinstance(choice, Miner):
        return choice
    if not isinstance(choice, str | Mapping):
        raise ValueError(f"expected a name, or {{name: semi_hard, margin: 0.2}} and the like, got {choice!r}")
    options = {"name": choice} if isinstance(choice, str) else choice
    problems = MINERS.problems(options)
    if problems:
        raise ValueError("; ".join(problems))
    miner: Miner = MINERS.build(options)
    return miner
