"""What the embeddings of the whole training set say: who and what is confused with whom and what."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from metricid.mining.checks import RangeError, check_at_least
from metricid.mining.neighbours import CHUNK, Neighbours, find_neighbours, unit_vectors
from metricid.mining.noise import identity_sums
from metricid.mining.options import MOST
from metricid.registry import signature_problems

__all__ = ["Join", "OfflineOptions", "OfflineTables", "search_embeddings"]

Join = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class OfflineOptions:
    """The `offline` of a `hard_identity` sampler.

    Attributes:
        every: epochs from one pass over the training set to the next.
        images: k, the images of other identities most like an image, among which hard ones are drawn.
    """

    every: int = 1
    images: int = 20

    @classmethod
    def read(cls, options: Mapping[str, int]) -> "OfflineOptions":
        """The options as a recipe gives them.

        Raises:
            RangeError: an unknown option, or one that is no number or outside its range.
        """
        for problem in signature_problems(cls, options):
            name, colon, text = problem.partition(": ")
            known = colon and name in options
            raise RangeError(f"offline.{name}", text) if known else RangeError("offline", problem)
        check_at_least({f"offline.{name}": value for name, value in options.items()}, 1)
        found = cls(**options)
        if found.images > MOST:
            raise RangeError("offline.images", f"must be from 1 to {MOST}, not {found.images}")
        return found


@dataclass(frozen=True)
class OfflineTables:
    """What was found.

    Attributes:
        images: [N, k] the images of other identities most like each image.
        identities: [C, k] the identities most like each, by the mean direction of their images.
        distances: [N] float32, 1 - cosine of each image with the center of its identity; 0 for one that could
            not be embedded.
    """

    images: Neighbours
    identities: Neighbours
    distances: NDArray[np.float32]


@torch.no_grad()
def search_embeddings(
    vectors: Tensor,
    labels: Tensor,
    options: OfflineOptions,
    *,
    neighbours: int,
    exact_up_to: int,
    normalized: bool = False,
    share: tuple[Tensor, Join] | None = None,
) -> OfflineTables:
    """Finds each image's hardest negatives, each identity's neighbours, and images far from their own.

    Time is O(N x N x D) up to `exact_up_to` images, on a GPU with any number of them. Memory beyond the
    embeddings is a copy of them unless they are `normalized`, and the tables.

    Args:
        vectors: [N, D], any float dtype; a row of zeros for an image that could not be embedded. The search
            runs on its device.
        labels: [N] int64 in [0, C) on the CPU.
        options: how many images are kept for each.
        neighbours: identities that are kept for each.
        exact_up_to: see `find_neighbours`.
        normalized: the rows have length 1, or 0, and are used in place.
        share: rows [R] that this process searches for, and what joins such parts of all processes in their
            order; None: all rows here.

    Raises:
        ValueError: another number of labels, or a value that is not finite.
    """
    unit = vectors if normalized else unit_vectors(vectors, exact_up_to)
    rows, join = (None, None) if share is None else share
    images = find_neighbours(
        unit, options.images, exact_up_to=exact_up_to, normalized=True, owners=labels, rows=rows
    )
    if join is not None:
        images = Neighbours(join(images.ids), join(images.similarity), images.seconds, images.recall)
    # On the CPU, where sums do not depend on the order in which threads arrive.
    sums, _ = identity_sums(unit, labels, device="cpu")
    identities = find_neighbours(sums.to(unit.device), neighbours, exact_up_to=exact_up_to)
    distances = torch.zeros(len(unit))
    for part, home, to in zip(unit.split(CHUNK), labels.split(CHUNK), distances.split(CHUNK), strict=True):
        part = part.float().cpu()
        to.copy_((1 - F.cosine_similarity(part, sums[home], dim=1)).masked_fill(part.norm(dim=1) == 0, 0))
    return OfflineTables(images, identities, distances.numpy())
