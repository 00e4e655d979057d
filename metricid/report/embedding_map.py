"""Embeddings in two dimensions: PCA, or t-SNE and UMAP where they are installed."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metricid.errors import InputError
from metricid.evaluation.arrays import FloatArray, IntArray, normalise

METHODS = ("pca", "tsne", "umap")
_PACKAGES = {"tsne": ("sklearn.manifold", "scikit-learn"), "umap": ("umap", "umap-learn")}
MOST_POINTS = 2000


@dataclass(frozen=True)
class EmbeddingMap:
    """Places of some embeddings on a plane.

    Attributes:
        rows: [n] which embeddings.
        points: [n, 2] where they are.
        labels: what the two axes are.
        method: one of `METHODS`.
    """

    rows: IntArray
    points: NDArray[np.float64]
    labels: tuple[str, str]
    method: str


def embedding_map(
    embeddings: FloatArray,
    identities: NDArray[Any],
    method: str,
    *,
    always: Sequence[str] = (),
    seed: int = 0,
    limit: int = MOST_POINTS,
) -> EmbeddingMap | None:
    """Lays embeddings, scaled to length 1, out on a plane.

    Args:
        embeddings: [N, D], no zero vector.
        identities: [N].
        method: `pca`, `tsne` or `umap`.
        always: identities whose images are shown in any case, as far as the limit goes.
        seed: of the sample and of the method.
        limit: most points; beyond it a sample is shown, and the map is made of that alone.

    Returns:
        The map, or None for fewer than three embeddings.

    Raises:
        InputError: the method's package is not installed.
    """
    check_method(method)
    if len(embeddings) < 3:
        return None
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(embeddings))
    wanted = np.isin(identities[order], list(always))
    rows = np.sort(np.concatenate([order[wanted], order[~wanted]])[:limit])
    unit = normalise(embeddings[rows], dtype=np.float64)
    make = {"pca": _pca, "tsne": _tsne, "umap": _umap}[method]
    points, labels = make(unit, seed)
    return EmbeddingMap(rows, points, labels, method)


def check_method(method: str) -> None:
    """The method can be used on this machine.

    Raises:
        ValueError: there is no such method.
        InputError: its package is not installed.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    if method in _PACKAGES:
        module, package = _PACKAGES[method]
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise InputError(f"--map {method}: {package} is not installed; pip install {package}") from error


def _pca(unit: NDArray[np.float64], seed: int) -> tuple[NDArray[np.float64], tuple[str, str]]:
    centred = unit - unit.mean(axis=0)
    left, singular, right = np.linalg.svd(centred, full_matrices=False)
    if len(singular) < 2:  # embeddings of one dimension
        left, singular = np.pad(left, ((0, 0), (0, 1))), np.pad(singular, (0, 1))
        right = np.pad(right, ((0, 1), (0, 0)))
    # The sign of a component is arbitrary: the largest weight is made positive, so that pages are comparable.
    sign = np.sign(right[np.arange(2), np.abs(right[:2]).argmax(axis=1)])
    total = np.square(singular).sum()
    share = np.square(singular[:2]) / total if total > 0 else np.zeros(2)
    points = left[:, :2] * singular[:2] * np.where(sign == 0, 1, sign)
    return points, (
        f"first component ({share[0]:.0%} of the variance)",
        f"second ({share[1]:.0%})",
    )


def _tsne(unit: NDArray[np.float64], seed: int) -> tuple[NDArray[np.float64], tuple[str, str]]:
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(unit) - 1) / 3)
    points = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(unit.astype(np.float32))
    return np.asarray(points, dtype=np.float64), ("t-SNE 1", "t-SNE 2")


def _umap(unit: NDArray[np.float64], seed: int) -> tuple[NDArray[np.float64], tuple[str, str]]:
    from umap import UMAP  # type: ignore[import-not-found, unused-ignore]

    model = UMAP(
        n_neighbors=min(15, len(unit) - 1),
        metric="cosine",
        init="spectral" if len(unit) > 3 else "random",  # needs one eigenvector more than it has axes
        random_state=seed,
        n_jobs=1,  # with a seed there are no more, and a warning where they are asked for
    )
    return np.asarray(model.fit_transform(unit.astype(np.float32)), dtype=np.float64), ("UMAP 1", "UMAP 2")
