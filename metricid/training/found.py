"""What the miners of a training find in its batches, and which of them never come to it."""

from metricid.data.samplers import Sampler
from metricid.losses.objective import Objective
from metricid.losses.pairwise import PairwiseLoss
from metricid.losses.remembered import RememberedLoss
from metricid.mining import HardIdentitySampler, Miner

FEW = 10  # batches in which a miner may find nothing before that is worth a line


def never_used(objective: Objective, sampler: Sampler, batches: int) -> dict[str, str]:
    """What a recipe asks for and a training is too short for: a line for each such option.

    Args:
        objective: the terms.
        sampler: of the training.
        batches: of the whole training.
    """
    lines = {}
    first = sampler.random_batches if isinstance(sampler, HardIdentitySampler) else None
    if first is not None and first >= batches:
        lines["data.sampler"] = (
            f"the first {first} batches are random, and the training has {batches}, so none is of hard "
            "identities; set warmup and delay lower, or train longer"
        )
    for term in objective.terms:
        if isinstance(term.loss, RememberedLoss) and batches <= term.loss.warmup:
            lines[f"{term.name}.memory.warmup"] = (
                f"is {term.loss.warmup} batches, and the training has {batches}, so the memory is never "
                "used; set it lower, or as a share such as 0.1"
            )
    return lines


class Findings:
    """Reads the tallies of the miners, and says which of them have found nothing for long.

    Args:
        objective: the terms.
    """

    def __init__(self, objective: Objective):
        self._miners: dict[str, Miner] = {}
        for name, loss in objective.losses.items():
            miners = (part.miner for part in loss.modules() if isinstance(part, PairwiseLoss))
            miner = next((found for found in miners if found is not None), None)
            if miner is not None:
                self._miners[name] = miner
        self._empty = dict.fromkeys(self._miners, 0)
        self._said = dict.fromkeys(self._miners, 0)

    def read(self) -> tuple[dict[str, float], list[tuple[str, int]]]:
        """What was found since the last call; waits for the device.

        Returns:
            Pairs or triplets per batch, by term; and the terms that have found nothing for so many batches.
            A stretch is told once it is `FEW` batches long, and again whenever it has doubled.
        """
        means: dict[str, float] = {}
        lines = []
        for name, miner in self._miners.items():
            tally = miner.tally.read()
            if tally is None:
                continue
            found, batches = tally
            means[name] = found / batches
            self._empty[name] = 0 if found else self._empty[name] + batches
            if not self._empty[name]:
                self._said[name] = 0
            elif self._empty[name] >= max(FEW, 2 * self._said[name]):
                self._said[name] = self._empty[name]
                lines.append((name, self._empty[name]))
        return means, lines

    def advice(self, name: str, batches: int) -> str:
        """A line for the terminal about a term that learns nothing."""
        return (
            f"{name}: its miner {self._miners[name]!r} found nothing in the last {batches} batches, so this "
            "term trains nothing; give data.sampler several images of each of several identities, or take "
            "another miner"
        )
