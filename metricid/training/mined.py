"""Gives a sampler that mines the vectors of the identities while the network is trained."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn

from metricid.data.manifest import Manifest
from metricid.data.table_io import write_table
from metricid.errors import InputError
from metricid.losses.objective import Objective
from metricid.losses.side_terms import class_vectors
from metricid.losses.term import Gather
from metricid.mining import HardIdentitySampler, RunningCenters, RunningDistances, alike_pairs
from metricid.mining.noise import suspect_images
from metricid.mining.offline import OfflineTables

SUSPECTS = "suspects.csv"
SUSPECT_IMAGES = "suspect_images.csv"
ALIKE_IMAGES = "alike_images.csv"


class MinedBatches:
    """What a `hard_identity` sampler needs from a training, and leaves in its log and folder.

    Args:
        sampler: the sampler.
        objective: the terms; one of them has the vectors, if the sampler asks for `classifier` or `centers`.
        identities: names of the identities, in the order of their classes.
        images: N, training images.
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
        images: int,
        embedding_dim: int,
        ahead: int,
    ):
        if sampler.delay is None and sampler.offline is None:
            raise InputError(
                "data.sampler.refresh: null searches for no neighbours, so all batches would be random; give "
                "the batches between two searches, such as 1000, or set data.sampler.offline"
            )
        if sampler.delay is not None and sampler.delay <= ahead:
            raise InputError(
                f"data.sampler.delay: {sampler.delay} batches from a search to its use, but the loader draws "
                f"{ahead} ahead; set data.sampler.delay (and refresh) above {ahead}"
            )
        self.sampler, self.identities = sampler, identities
        # What an offline pass measures is not recorded from the steps as well.
        recorded = sampler.far > 0 and sampler.offline is None
        running = recorded or (sampler.vectors == "mean" and sampler.delay is not None)
        self.centers = RunningCenters(len(identities), embedding_dim) if running else None
        self.distances = RunningDistances(images) if recorded else None
        self._vectors: Callable[[], Tensor] = self._running
        if sampler.vectors != "mean":
            loss = _source(objective, sampler.vectors, len(identities))
            self._vectors = lambda: _rows(loss, len(identities))

    def _running(self) -> Tensor:
        assert self.centers is not None
        return self.centers.vectors

    def before_epoch(self) -> None:
        """Before the first batch of an epoch is drawn: tells the sampler which images are far."""
        if self.distances is not None:
            self.sampler.set_distances(self.distances.known(otherwise=0.0).numpy())

    def update(self, embedding: Tensor, labels: Tensor, index: Tensor, gather: Gather | None) -> None:
        """Takes in a batch of a finite step.

        Args:
            embedding: [B, D] of this rank.
            labels: [B].
            index: [B] int64, the rows of its images in the training table.
            gather: joins the batches of all ranks.
        """
        if self.centers is None:
            return
        self.centers.to(embedding.device)
        self.centers.update(*(gather(embedding, labels) if gather else (embedding, labels)))
        if self.distances is not None:
            self.distances.to(embedding.device)
            far, rows = self.centers.distances(embedding, labels)[:, None], index.to(embedding.device)
            far, rows = gather(far, rows) if gather else (far, rows)
            self.distances.update(far[:, 0], rows)

    def after_step(self, done: int) -> None:
        """After every step, a skipped one too.

        Args:
            done: batches since the training began.
        """
        self.sampler.after_step(done, self._vectors)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint; the same on all ranks."""
        parts = {"centers": self.centers, "distances": self.distances}
        states = {name: None if part is None else part.state_dict() for name, part in parts.items()}
        return {"sampler": self.sampler.state_dict(), **states}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.sampler.load_state_dict(state["sampler"])
        for part, saved in ((self.centers, state["centers"]), (self.distances, state["distances"])):
            if part is not None:
                part.load_state_dict(saved)

    def list_images(
        self, folder: Path, table: Manifest, vectors: Tensor, found: OfflineTables
    ) -> dict[str, int]:
        """Writes which images have probably wrong labels, and which are alike across identities.

        Args:
            folder: takes a list of each kind, in place of those of an earlier pass; no file for an empty one.
            table: the training images.
            vectors: [N, D], their embeddings.
            found: what was found among them.

        Returns:
            The length of each list.
        """
        labels = torch.from_numpy(table.labels({name: i for i, name in enumerate(self.identities)}))
        guard = self.sampler.guard
        apart = None if guard is None else alike_pairs(found.identities, guard)[0]
        wrong = suspect_images(vectors, labels, apart=apart, identities=len(self.identities))
        rows = wrong.rows.tolist()
        columns: dict[str, Any] = {
            "path": [table.path_at(row) for row in rows],
            "identity": [self.identities[i] for i in labels[wrong.rows].tolist()],
            "own_cosine": _cosines(wrong.own),
            "other": [self.identities[i] for i in wrong.other.tolist()],
            "cosine": _cosines(wrong.cosine),
        }
        _write(columns, folder / SUSPECT_IMAGES)
        pairs, cosines = torch.empty(0, 2, dtype=torch.int64), torch.empty(0)
        if guard is not None:
            pairs, cosines = alike_pairs(found.images, guard)
        columns = {}
        for end, side in (("", 0), ("other_", 1)):
            columns[f"{end}path"] = [table.path_at(row) for row in pairs[:, side].tolist()]
            columns[f"{end}identity"] = [self.identities[i] for i in labels[pairs[:, side]].tolist()]
        columns["cosine"] = _cosines(cosines)
        _write(columns, folder / ALIKE_IMAGES)
        return {"suspect_images": len(rows), "alike_images": len(pairs)}

    def write_suspects(self, folder: Path) -> int:
        """Writes the pairs of identities above the guard, the most alike first; no file where there is none.

        Returns:
            Their number.
        """
        pairs, cosines = self.sampler.suspects()
        first, second = ([self.identities[i] for i in pairs[:, side].tolist()] for side in (0, 1))
        columns = {"identity": first, "other": second, "cosine": _cosines(cosines)}
        _write(columns, folder / SUSPECTS)
        return len(pairs)


def _write(columns: Mapping[str, Any], file: Path) -> None:
    """Writes a list; removes the file where the list is empty."""
    table = pa.table(dict(columns))
    if len(table):
        write_table(table, file)
    else:
        file.unlink(missing_ok=True)


def _cosines(values: Tensor) -> pa.Array:
    return pa.array(values.tolist(), pa.float32())


def mined_batches(
    sampler: Any,
    objective: Objective,
    label_map: Mapping[str, int],
    images: int,
    embedding_dim: int,
    ahead: int,
) -> MinedBatches | None:
    """`MinedBatches` for a sampler that mines, None for another."""
    if not isinstance(sampler, HardIdentitySampler):
        return None
    names = sorted(label_map, key=label_map.__getitem__)
    return MinedBatches(sampler, objective, names, images, embedding_dim, ahead)


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
