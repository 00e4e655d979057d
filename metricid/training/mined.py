"""Gives a sampler that mines the vectors of the identities while the network is trained."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch import Tensor, nn

from metricid.data.table_io import write_table
from metricid.errors import InputError
from metricid.losses.objective import Objective
from metricid.losses.side_terms import class_vectors
from metricid.losses.term import Gather
from metricid.mining import HardIdentitySampler, RunningCenters

SUSPECTS = "suspects.csv"


class MinedBatches:
    """What a `hard_identity` sampler needs from a training, and leaves in its log and folder.

    Args:
        sampler: the sampler.
        objective: the terms; one of them has the vectors, if the sampler asks for `classifier` or `centers`.
        identities: names of the identities, in the order of their classes.
        embedding_dim: width of the embedding, for running means.
        ahead: batches that are drawn before those at work are done.

    Raises:
        InputError: no term has such vectors, nothing is searched, or a table would be needed before
            its search can begin.
    """

    def __init__(
        self,
        sampler: HardIdentitySampler,
        objective: Objective,
        identities: list[str],
        embedding_dim: int,
        ahead: int,
    ):
        if sampler.delay is None:
            raise InputError(
                "data.sampler.refresh: null searches for no neighbours, so all batches would be random; give "
                "the batches between two searches, such as 1000"
            )
        if sampler.delay <= ahead:
            raise InputError(
                f"data.sampler.delay: {sampler.delay} batches from a search to its use, but the loader draws "
                f"{ahead} ahead; set data.sampler.delay (and refresh) above {ahead}"
            )
        self.sampler, self.identities = sampler, identities
        self.centers: RunningCenters | None = None
        self._vectors: Callable[[], Tensor]
        if sampler.vectors == "mean":
            self.centers = RunningCenters(len(identities), embedding_dim)
            self._vectors = self._running
        else:
            loss = _source(objective, sampler.vectors, len(identities))
            self._vectors = lambda: _rows(loss, len(identities))

    def _running(self) -> Tensor:
        assert self.centers is not None
        return self.centers.vectors

    def update(self, embedding: Tensor, labels: Tensor, gather: Gather | None) -> None:
        """Takes in a batch of a finite step.

        Args:
            embedding: [B, D] of this rank.
            labels: [B].
            gather: joins the batches of all ranks.
        """
        if self.centers is not None:
            self.centers.to(embedding.device)
            self.centers.update(*(gather(embedding, labels) if gather else (embedding, labels)))

    def after_step(self, done: int) -> None:
        """After every step, a skipped one too.

        Args:
            done: batches since the training began.
        """
        self.sampler.after_step(done, self._vectors)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint; the same on all ranks."""
        centers = None if self.centers is None else self.centers.state_dict()
        return {"sampler": self.sampler.state_dict(), "centers": centers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.sampler.load_state_dict(state["sampler"])
        if self.centers is not None:
            self.centers.load_state_dict(state["centers"])

    def write_suspects(self, folder: Path) -> int:
        """Writes the pairs of identities above the guard, the most alike first; no file where there is none.

        Returns:
            Their number.
        """
        pairs, cosines = self.sampler.suspects()
        order = cosines.argsort(descending=True, stable=True).tolist()
        if order:
            first, second = ([self.identities[int(pairs[i, side])] for i in order] for side in (0, 1))
            cosine = pa.array([float(cosines[i]) for i in order], pa.float32())
            write_table(pa.table({"identity": first, "other": second, "cosine": cosine}), folder / SUSPECTS)
        return len(order)


def mined_batches(
    sampler: Any, objective: Objective, label_map: Mapping[str, int], embedding_dim: int, ahead: int
) -> MinedBatches | None:
    """`MinedBatches` for a sampler that mines, None for another."""
    if not isinstance(sampler, HardIdentitySampler):
        return None
    names = sorted(label_map, key=label_map.__getitem__)
    return MinedBatches(sampler, objective, names, embedding_dim, ahead)


def _source(objective: Objective, wanted: str, identities: int) -> nn.Module:
    """The loss whose vectors stand for the identities."""
    for term in objective.terms:
        has_centers = isinstance(getattr(term.loss, "centers", None), Tensor)
        vectors = _matrix(term.loss)
        fits = vectors is not None and len(vectors) % identities == 0
        if fits and has_centers == (wanted == "centers"):
            return term.loss
    example = "center" if wanted == "centers" else "softmax"
    raise InputError(
        f"data.sampler.vectors: {wanted} needs a term of the objective that has them, such as {example}; "
        "add one, or take vectors: mean"
    )


def _matrix(loss: nn.Module) -> Tensor | None:
    """The centers of a loss, trained or not, else its class vectors."""
    centers = getattr(loss, "centers", None)
    return centers if isinstance(centers, Tensor) else class_vectors(loss)


def _rows(loss: nn.Module, identities: int) -> Tensor:
    """[C, D]; of an identity with several rows their mean."""
    vectors = _matrix(loss)
    assert vectors is not None
    return vectors.detach().unflatten(0, (identities, -1)).mean(dim=1)
