"""How many labels are probably wrong, from nearest neighbours among stored embeddings; arrays only."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

NEIGHBOURS = 5
LEAST_IMAGES = 3
LEAST_SENSITIVITY = 0.5  # embeddings that would find fewer of the wrong labels say nothing about the others
LEAST_EXAMINED = 30
MOST_EXAMINED = 20_000
EXAMPLES = 10
_STEPS = 8  # thresholds between no proof and the median of what planted labels give
_BLOCK_BYTES = 64 * 2**20
_Z = 1.96  # 95%


@dataclass(frozen=True)
class NoiseEstimate:
    """What nearest neighbours say of the labels.

    Attributes:
        examined: images looked at, of identities with at least 3 images to compare with.
        own_first: share of them whose nearest neighbour is of their own identity.
        suspects: those that look like another identity.
        sensitivity: share of labels made wrong on purpose that would be suspects.
        share: estimated share of wrong labels; None where nothing can be said.
        low, high: its 95% interval from the number of images alone (Wilson); None likewise.
        at_most: suspects / sensitivity, as if the model never erred; None likewise.
        examples: (row, row of the nearest image of the identity it looks like) of the clearest suspects.
    """

    examined: int
    own_first: float
    suspects: int
    sensitivity: float
    share: float | None
    low: float | None
    high: float | None
    at_most: float | None
    examples: tuple[tuple[int, int], ...]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self) | {"examples": [list(pair) for pair in self.examples]}


def estimate_noise(
    embeddings: NDArray[np.floating[Any]],
    identities: NDArray[np.int64],
    *,
    cameras: NDArray[np.int64] | None = None,
    seed: int = 0,
    most: int = MOST_EXAMINED,
    advance: Callable[[int], Any] | None = None,
) -> NoiseEstimate | None:
    """Estimates the share of wrong labels.

    An image is a suspect if, of its 5 nearest neighbours by cosine, more are of one other identity than of
    its own, more than half of those which that identity could give, and its mean cosine to that identity's
    images is above that to its own (itself left out). The difference of the two means is the proof.

    Models err, so suspects are not wrong labels yet. Each image examined is also given the label of a random
    other image, which is wrong for certain, and judged again. `share` is the ratio of the two shares of
    suspects, or of those whose proof is above a threshold where that ratio is clearly smaller: the greatest
    part that wrong labels can make up (mixture proportion estimation; Blanchard, Lee and Scott, JMLR 2010).
    Errors of a model mostly have little proof, wrong labels much. Counting what is confidently another class,
    instead of all errors, is the idea of confident learning (Northcutt et al., JAIR 2021).

    Args:
        embeddings: [N, D], no zero rows.
        identities: [N] codes.
        cameras: [N] codes: images of the same camera then see nothing of each other, so that near-duplicate
            frames cannot vouch for each other. None: an image only does not see itself.
        seed: of the images examined and of the planted labels.
        most: examine a random sample of so many images; neighbours are exact among all N.

        advance: is told of so many images more that are examined.

    Returns:
        None where fewer than 30 images can be examined, or there is one identity only.
    """
    gallery = _Gallery(embeddings, identities, np.arange(len(identities)) if cameras is None else cameras)
    rng = np.random.default_rng(seed)
    rows = np.flatnonzero(gallery.visible(np.arange(len(identities)), gallery.codes) >= LEAST_IMAGES - 1)
    if len(rows) < LEAST_EXAMINED or gallery.identities < 2:
        return None
    pool = rows
    if len(rows) > most:
        rows = np.sort(rng.choice(rows, most, replace=False))
    planted = _planted(gallery, rows, pool, rng)
    proofs, planted_proofs, nearest = (np.empty(len(rows)) for _ in range(3))
    own_first = 0
    for part, (found, order) in _neighbours(gallery, rows):
        chunk = rows[part]
        proofs[part], nearest[part] = _proof(gallery, chunk, order, gallery.codes[chunk])
        planted_proofs[part], _ = _proof(gallery, chunk, order, planted[part])
        own_first += int((found[:, 0] == gallery.codes[chunk]).sum())
        if advance is not None:
            advance(len(chunk))
    planted_proofs = planted_proofs[planted >= 0]
    if not len(planted_proofs):
        return None
    return _estimate(rows, proofs, planted_proofs, nearest, own_first / len(rows))


def _estimate(
    rows: NDArray[np.int64],
    proofs: NDArray[np.float64],
    planted: NDArray[np.float64],
    nearest: NDArray[np.float64],
    own_first: float,
) -> NoiseEstimate:
    """Compares the proofs of the given labels with those of the planted ones."""
    suspects, sensitivity = int((proofs > 0).sum()), float((planted > 0).mean())
    clearest = [i for i in np.argsort(-proofs, kind="stable")[:EXAMPLES] if proofs[i] > 0]
    examples = tuple((int(rows[i]), int(nearest[i])) for i in clearest)
    seen = (len(rows), own_first, suspects, sensitivity)
    if sensitivity < LEAST_SENSITIVITY:
        return NoiseEstimate(*seen, None, None, None, None, examples)
    chosen = (suspects, sensitivity)
    surely, least = _wilson(suspects, len(rows), 1.0)[0] / sensitivity, math.inf
    for threshold in np.quantile(planted[planted > 0], np.linspace(0, 0.5, _STEPS + 1)[1:]):
        count, reached = int((proofs > threshold).sum()), float((planted > threshold).mean())
        # Without errors of the model all ratios are alike but for chance, and the smallest of several would
        # be too small: one replaces the first only where it is below it by more than a standard error each.
        bound = _wilson(count, len(rows), 1.0)[1] / reached
        if bound < min(least, surely):
            chosen, least = (count, reached), bound
    count, reached = chosen
    low, high = (min(1.0, max(0.0, side / reached)) for side in _wilson(count, len(rows), _Z))
    share, at_most = count / len(rows) / reached, suspects / len(rows) / sensitivity
    return NoiseEstimate(*seen, min(1.0, share), low, high, min(1.0, at_most), examples)


class _Gallery:
    """Unit vectors with sums by identity, and by identity and camera, of which an image's view is made."""

    def __init__(self, embeddings: Any, identities: NDArray[Any], cameras: NDArray[Any]):
        wide = np.asarray(embeddings, np.float32)
        # Of the largest value first: squares of very long vectors would overflow.
        wide = wide / np.abs(wide).max(axis=1, keepdims=True)
        self.vectors = wide / np.linalg.norm(wide, axis=1, keepdims=True)
        _, self.codes = np.unique(identities, return_inverse=True)
        _, self.cameras = np.unique(cameras, return_inverse=True)
        self.identities = int(self.codes.max()) + 1
        self._step = int(self.cameras.max()) + 1
        self._pairs, where = np.unique(self.codes * self._step + self.cameras, return_inverse=True)
        self._counts, self._sums = self._added(self.codes, self.identities)
        self._pair_counts, self._pair_sums = self._added(where, len(self._pairs))

    def _added(self, groups: NDArray[np.int64], size: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        order = np.argsort(groups, kind="stable")
        counts = np.bincount(groups, minlength=size)
        return counts, np.add.reduceat(self.vectors[order], np.cumsum(counts) - counts, axis=0)

    def _hidden(self, rows: NDArray[np.int64], codes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Place of (identity, own camera) among the pairs, or -1 where that camera never saw it."""
        wanted = codes * self._step + self.cameras[rows]
        place = np.minimum(np.searchsorted(self._pairs, wanted), len(self._pairs) - 1)
        return np.where(self._pairs[place] == wanted, place, -1)

    def visible(self, rows: NDArray[np.int64], codes: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many images of an identity each row sees."""
        hidden = self._hidden(rows, codes)
        return self._counts[codes] - np.where(hidden >= 0, self._pair_counts[hidden], 0)

    def likeness(self, rows: NDArray[np.int64], codes: NDArray[np.int64]) -> NDArray[np.float64]:
        """Mean cosine of each row to the images of an identity that it sees, at least one."""
        hidden = self._hidden(rows, codes)
        sums = self._sums[codes] - np.where(hidden >= 0, 1, 0)[:, None] * self._pair_sums[hidden]
        return np.einsum("bd,bd->b", self.vectors[rows], sums, dtype=np.float64) / self.visible(rows, codes)


def _planted(
    gallery: _Gallery, rows: NDArray[np.int64], pool: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """For each row the label of a random other image, -1 where three draws gave none that could be used."""
    labels = np.full(len(rows), -1, np.int64)
    for _ in range(3):
        drawn = gallery.codes[rng.choice(pool, len(rows))]
        usable = (drawn != gallery.codes[rows]) & (gallery.visible(rows, drawn) >= LEAST_IMAGES - 1)
        labels = np.where((labels < 0) & usable, drawn, labels)
    return labels


def _neighbours(
    gallery: _Gallery, rows: NDArray[np.int64]
) -> Iterator[tuple[slice, tuple[NDArray[np.int64], NDArray[np.int64]]]]:
    """Blocks of rows with the codes [b, k] and rows [b, k] of their nearest neighbours, nearest first.

    Where a row sees fewer than k images, code and row are -1.
    """
    size = len(gallery.codes)
    k = min(NEIGHBOURS, size - 1)
    step = max(1, _BLOCK_BYTES // (8 * size))
    for start in range(0, len(rows), step):
        part = slice(start, min(start + step, len(rows)))
        chunk = rows[part]
        cosine = gallery.vectors[chunk] @ gallery.vectors.T
        cosine[gallery.cameras[chunk][:, None] == gallery.cameras[None, :]] = -np.inf
        near = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        values = np.take_along_axis(cosine, near, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        near, values = np.take_along_axis(near, order, axis=1), np.take_along_axis(values, order, axis=1)
        seen = np.isfinite(values)
        yield part, (np.where(seen, gallery.codes[near], -1), np.where(seen, near, -1))


def _proof(
    gallery: _Gallery, rows: NDArray[np.int64], near: NDArray[np.int64], labels: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """[b] by how much each row is more like another identity than like `labels`, and a neighbour of that one.

    Zero or less where it is no suspect. `near` holds the rows of the k nearest neighbours.
    """
    proof, witness = np.full(len(rows), -np.inf), np.full(len(rows), -1, np.int64)
    judged = np.flatnonzero(labels >= 0)
    rows, near, labels = rows[judged], near[judged], labels[judged]
    codes = np.where(near >= 0, gallery.codes[near], -1)
    votes = (codes[:, :, None] == codes[:, None, :]).sum(axis=2)
    own = (codes == labels[:, None]).sum(axis=1)
    could = np.stack([gallery.visible(rows, column) for column in np.maximum(codes, 0).T], axis=1)
    fits = (codes >= 0) & (codes != labels[:, None]) & (could >= 2)
    fits &= (votes > own[:, None]) & (2 * votes > np.minimum(near.shape[1], could))
    best = np.argmax(np.where(fits, votes, 0), axis=1)
    at = np.arange(len(rows))
    suspect = fits[at, best]
    other = np.where(suspect, codes[at, best], labels)
    gain = gallery.likeness(rows, other) - gallery.likeness(rows, labels)
    proof[judged] = np.where(suspect, gain, -np.inf)
    witness[judged] = near[at, best]
    return proof, witness


def _wilson(count: int, total: int, z: float) -> tuple[float, float]:
    """Interval of a share, z standard errors to each side (Wilson, JASA 1927)."""
    p = count / total
    middle, wide = p + z**2 / (2 * total), z * math.sqrt(p * (1 - p) / total + z**2 / (4 * total**2))
    return (middle - wide) / (1 + z**2 / total), (middle + wide) / (1 + z**2 / total)
