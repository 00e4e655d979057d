"""Mining: which samples of a batch to compare, and which identities to put into the next."""

from metricid.mining.background import BackgroundSearch
from metricid.mining.centers import RunningCenters, RunningDistances
from metricid.mining.guard import alike_pairs
from metricid.mining.inbatch import Triplets, batch_all, batch_hard, pair_masks, semi_hard
from metricid.mining.memory import CrossBatchMemory
from metricid.mining.miners import MINERS, Beside, Miner, build_miner, pair_weights
from metricid.mining.neighbours import Neighbours, find_neighbours
from metricid.mining.sampler import HardIdentitySampler

__all__ = [
    "MINERS",
    "BackgroundSearch",
    "Beside",
    "CrossBatchMemory",
    "HardIdentitySampler",
    "Miner",
    "Neighbours",
    "RunningCenters",
    "RunningDistances",
    "Triplets",
    "alike_pairs",
    "batch_all",
    "batch_hard",
    "build_miner",
    "find_neighbours",
    "pair_masks",
    "pair_weights",
    "semi_hard",
]
