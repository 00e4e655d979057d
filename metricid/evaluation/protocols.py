"""Protocols by name: embeddings and the columns of their table in, a `ProtocolResult` out.

All have one signature, so that a command line can call any of them: `protocol(embeddings, table, **options)`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metricid.evaluation.arrays import FloatArray, as_column, check_embeddings
from metricid.evaluation.results import ProtocolResult
from metricid.evaluation.retrieval import RetrievalResult, leave_one_out, retrieval
from metricid.evaluation.verification import (
    EXACT_PAIRS,
    FAR_TARGETS,
    VerificationResult,
    verification_all_pairs,
    verification_pairs,
)

Table = Mapping[str, ArrayLike | None]


def reid(
    embeddings: ArrayLike,
    table: Table,
    *,
    variant_prefix: str = "",
    metric: str = "cosine",
    distractors: Sequence[str | int] = (),
    bootstrap: int = 0,
    seed: int = 0,
    memory_mb: float = 256.0,
) -> ProtocolResult:
    """Person or vehicle re-identification by the Market-1501 rule.

    Args:
        embeddings: [N, D].
        table: columns `identity`, `camera`, `split` ([N] each); split is `query`, `gallery`, or unused.
        variant_prefix: what the caller knows about the data, put before the variant.
        metric: `cosine` or `euclidean`.
        distractors: identities that stay in the gallery and never match.
        bootstrap: resamples of the query identities for 95% intervals.
        seed: of the bootstrap.
        memory_mb: bound on the working memory.

    Raises:
        ValueError: a column is missing or has gaps, no query or no gallery, or what `retrieval` raises.
    """
    items = check_embeddings(embeddings)
    identity, camera = _column(table, "identity", items, "reid"), _column(table, "camera", items, "reid")
    query, gallery = _query_gallery(_column(table, "split", items, "reid"), "reid")
    result = retrieval(
        items[query],
        items[gallery],
        identity[query],
        identity[gallery],
        camera[query],
        camera[gallery],
        metric=metric,
        distractors=distractors,
        bootstrap=bootstrap,
        seed=seed,
        memory_mb=memory_mb,
    )
    variant = f"Market rule, AP not interpolated, {metric}"
    names = ["rank-1", "rank-5", "rank-10", "mAP", "mINP"]
    out = _ranked("reid", _joined(variant_prefix, variant), result, names)
    counts = {"identities": len(set(identity[query].tolist())), "cameras": len(set(camera.tolist()))}
    out.counts.update(counts)
    if distractors:
        out.counts["distractors"] = int(np.isin(identity[gallery], list(distractors)).sum())
    return out


def identification(
    embeddings: ArrayLike,
    table: Table,
    *,
    variant_prefix: str = "",
    metric: str = "cosine",
    bootstrap: int = 0,
    seed: int = 0,
    memory_mb: float = 256.0,
) -> ProtocolResult:
    """Closed-set identification, leave one out: each image is searched among all others.

    Args:
        embeddings: [N, D].
        table: column `identity`.
        variant_prefix: what the caller knows about the data, put before the variant.
        metric: `cosine` or `euclidean`.
        bootstrap: resamples of the identities for 95% intervals.
        seed: of the bootstrap.
        memory_mb: bound on the working memory.

    Raises:
        ValueError: a column is missing or has gaps, or what `leave_one_out` raises.
    """
    items = check_embeddings(embeddings)
    identity = _column(table, "identity", items, "identification")
    result = leave_one_out(
        items, identity, metric=metric, bootstrap=bootstrap, seed=seed, memory_mb=memory_mb
    )
    variant = _joined(variant_prefix, f"leave one out, self removed by index, {metric}")
    out = _ranked("identification", variant, result, ["rank-1", "rank-5", "rank-10", "mAP"])
    out.counts["identities"] = len(set(identity.tolist()))
    return out


def retrieval_recall(
    embeddings: ArrayLike,
    table: Table,
    *,
    variant_prefix: str = "",
    metric: str = "cosine",
    ks: Sequence[int] = (1, 2, 4, 8),
    bootstrap: int = 0,
    seed: int = 0,
    memory_mb: float = 256.0,
) -> ProtocolResult:
    """Recall@k, R-precision and MAP@R (CUB, Cars196, SOP, In-Shop, Omniglot).

    Where the `split` column names `query` and `gallery`, queries are searched in the gallery (In-Shop); else
    every image among all others.

    Args:
        embeddings: [N, D].
        table: column `identity`, optional `split`.
        variant_prefix: what the caller knows about the data, put before the variant.
        metric: `cosine` or `euclidean`.
        ks: the k of Recall@k (1, 10, 100, 1000 for SOP).
        bootstrap: resamples of the query identities for 95% intervals.
        seed: of the bootstrap.
        memory_mb: bound on the working memory.

    Raises:
        ValueError: a column is missing or has gaps, or what `retrieval` raises.
    """
    items = check_embeddings(embeddings)
    identity = _column(table, "identity", items, "retrieval")
    split = table.get("split")
    options: dict[str, Any] = {
        "metric": metric,
        "topk": tuple(ks),
        "bootstrap": bootstrap,
        "seed": seed,
        "memory_mb": memory_mb,
    }
    if split is not None and {"query", "gallery"} <= set(np.asarray(split).tolist()):
        query, gallery = _query_gallery(_column(table, "split", items, "retrieval"), "retrieval")
        result = retrieval(items[query], items[gallery], identity[query], identity[gallery], **options)
        searched, ids = "query in gallery", identity[query]
    else:
        result = leave_one_out(items, identity, **options)
        searched, ids = "leave one out, self removed by index", identity
    variant = _joined(variant_prefix, f"{searched}, {metric}")
    ranks = [f"rank-{k}" for k in ks]
    out = _ranked("retrieval", variant, result, [*ranks, "R-precision", "MAP@R"])
    out.counts["identities"] = len(set(ids.tolist()))
    return _renamed(out, {f"rank-{k}": f"Recall@{k}" for k in ks})


def verification_all(
    embeddings: ArrayLike,
    table: Table,
    *,
    variant_prefix: str = "",
    far_targets: Sequence[float] = FAR_TARGETS,
    bootstrap: int = 0,
    seed: int = 0,
) -> ProtocolResult:
    """TAR@FAR, EER and AUC over all pairs of the images.

    The time grows with the square of N; see `verification_all_pairs` beyond 1e10 pairs.

    Args:
        embeddings: [N, D].
        table: column `identity`.
        variant_prefix: what the caller knows about the data, put before the variant.
        far_targets: false accept rates.
        bootstrap: resamples of the identities for 95% intervals of TAR@FAR; beyond 2^24 pairs, which are not
            held in memory, there are none, and a note says so.
        seed: of the bootstrap.

    Raises:
        ValueError: a column is missing or has gaps, or what `verification_all_pairs` raises.
    """
    items = check_embeddings(embeddings)
    identity = _column(table, "identity", items, "verification")
    pairs, notes = len(items) * (len(items) - 1) // 2, []
    if bootstrap and pairs > EXACT_PAIRS:
        notes.append(f"No intervals: {pairs:,} pairs are too many for the bootstrap (limit {EXACT_PAIRS:,}).")
        bootstrap = 0
    result = verification_all_pairs(items, identity, far_targets=far_targets, bootstrap=bootstrap, seed=seed)
    out = _verified("verification", _joined(variant_prefix, "all pairs, cosine"), result, {}, [], notes)
    out.counts.update(images=len(items), identities=len(set(identity.tolist())))
    return out


def lfw_pairs(
    embeddings: ArrayLike,
    table: Table,
    *,
    variant_prefix: str = "",
    far_targets: Sequence[float] = FAR_TARGETS,
    val_far: float = 1e-3,
) -> ProtocolResult:
    """10-fold accuracy on given pairs as on LFW, VAL@FAR, TAR@FAR, EER and AUC.

    Args:
        embeddings: [N, D]; already combined with those of the mirrored images, if that is wanted.
        table: `pairs` ([P, 2] rows of the embeddings), `same` ([P] genuine or not), optional `folds` ([P]).
        variant_prefix: what the caller knows about the data and the flip, put before the variant.
        far_targets: false accept rates.
        val_far: false accept rate of VAL@FAR.

    Raises:
        ValueError: a column is missing, or what `verification_pairs` raises.
    """
    missing = [name for name in ("pairs", "same") if table.get(name) is None]
    if missing:
        raise ValueError(
            f"protocol lfw needs the column {missing[0]!r}: give the pairs file of the benchmark"
        )
    pairs = np.asarray(table["pairs"])
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"pairs must be [P, 2] rows of the embeddings, not shape {list(pairs.shape)}")
    result = verification_pairs(
        pairs[:, 0],
        pairs[:, 1],
        np.asarray(table["same"]),
        embeddings=embeddings,
        folds=table.get("folds"),
        far_targets=far_targets,
        val_far=val_far,
    )
    metrics = {
        "accuracy": result.accuracy.mean,
        "accuracy std": result.accuracy.std,
        "accuracy (exact sweep)": result.accuracy_exact.mean,
        "accuracy std (exact sweep)": result.accuracy_exact.std,
        "threshold of accuracy (squared L2)": float(result.accuracy.thresholds.mean()),
    }
    unsupported, notes = [], []
    if result.val is None:
        notes.append("VAL@FAR is left out: a fold holds no genuine or no impostor pair.")
    else:
        name = f"VAL@FAR={val_far:g}"
        metrics |= {name: float(result.val.val.mean()), f"{name} std": float(result.val.val.std())}
        metrics[f"{name} realised FAR"] = float(result.val.far.mean())
        if val_far < result.reliable_far:
            unsupported.append(name)
    variant = _joined(variant_prefix, f"LFW {len(result.accuracy.accuracy)}-fold, squared L2, step 0.01")
    return _verified("lfw", variant, result, metrics, unsupported, notes)


PROTOCOLS: dict[str, Callable[..., ProtocolResult]] = {
    "reid": reid,
    "identification": identification,
    "retrieval": retrieval_recall,
    "verification": verification_all,
    "lfw": lfw_pairs,
}


NEEDED: dict[str, tuple[str, ...]] = {
    "reid": ("identity", "camera", "split"),
    "identification": ("identity",),
    "retrieval": ("identity",),
    "verification": ("identity",),
    "lfw": ("pairs", "same"),
}


def _column(table: Table, name: str, items: FloatArray, protocol: str) -> NDArray[Any]:
    """A column without gaps, as long as the embeddings."""
    values = table.get(name)
    if values is None:
        raise ValueError(f"protocol {protocol} needs the column {name!r}, which the table does not have")
    column = as_column(values)
    if column.shape != (len(items),):
        raise ValueError(
            f"column {name!r} has shape {list(column.shape)}, but there are {len(items)} embeddings"
        )
    gaps = [i for i, value in enumerate(column.tolist()) if value is None or value == ""]
    if gaps:
        raise ValueError(
            f"column {name!r} is empty in {len(gaps)} rows, first in row {gaps[0]} (counted from 0): "
            f"protocol {protocol} needs it everywhere"
        )
    return column


def _query_gallery(split: NDArray[Any], protocol: str) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    query, gallery = np.flatnonzero(split == "query"), np.flatnonzero(split == "gallery")
    for name, rows in (("query", query), ("gallery", gallery)):
        if not len(rows):
            raise ValueError(f"protocol {protocol}: the split column names no {name!r} row")
    return query, gallery


def _joined(prefix: str, variant: str) -> str:
    return f"{prefix}, {variant}" if prefix else variant


def _ranked(protocol: str, variant: str, result: RetrievalResult, names: Sequence[str]) -> ProtocolResult:
    values = result.metrics
    left_out = result.queries_without_positive
    return ProtocolResult(
        protocol,
        variant,
        metrics={name: values[name] for name in names},
        counts={
            "queries": result.queries,
            "gallery": result.gallery,
            "queries without positive": left_out,
        },
        curves={"cmc": result.curve},
        notes=[f"{left_out} queries have no positive in the gallery and are not counted."]
        if left_out
        else [],
        intervals={name: result.intervals[name] for name in names if name in result.intervals},
    )


def _renamed(result: ProtocolResult, names: Mapping[str, str]) -> ProtocolResult:
    return ProtocolResult(
        result.protocol,
        result.variant,
        {names.get(k, k): v for k, v in result.metrics.items()},
        result.counts,
        result.curves,
        result.notes,
        {names.get(k, k): v for k, v in result.intervals.items()},
    )


def _verified(
    protocol: str,
    variant: str,
    result: VerificationResult,
    metrics: Mapping[str, float],
    unsupported: Sequence[str],
    notes: Sequence[str],
) -> ProtocolResult:
    """A protocol result from error rates, after the metrics, unsupported names and notes already there."""
    metrics, unsupported, notes = dict(metrics), list(unsupported), list(notes)
    for point in result.points:
        name = f"TAR@FAR={point.target:g}" + (" (nearest)" if point.rule == "nearest" else "")
        metrics[name] = point.tar
        if not point.supported:
            unsupported.append(name)
    metrics |= {"EER": result.eer, "AUC": result.auc}
    for point in result.points:
        if point.rule == "conservative":
            metrics[f"threshold at FAR={point.target:g} (cosine)"] = point.threshold
    metrics["threshold at EER (cosine)"] = result.eer_threshold
    if unsupported:
        notes.append(
            f"Unsupported: {result.impostor_pairs:,} impostor pairs bear rates from "
            f"{result.reliable_far:.1e} (rule of 30) and say nothing below {result.smallest_far:.1e} (1/N)."
        )
    if result.auc_error:
        notes.append(f"AUC is exact to {result.auc_error:.1e}.")
    return ProtocolResult(
        protocol,
        variant,
        metrics,
        counts={"genuine pairs": result.genuine_pairs, "impostor pairs": result.impostor_pairs},
        curves={
            "roc": result.roc,
            "genuine_scores": result.genuine_scores,
            "impostor_scores": result.impostor_scores,
        },
        notes=notes,
        intervals=dict(result.intervals),
        unsupported=unsupported,
    )
