"""Models of one network side by side on real images: how far vectors and measures differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metricid.data.dataset import OnCorrupt
from metricid.data.manifest import Manifest
from metricid.data.sources import ImageSource
from metricid.errors import InputError
from metricid.evaluation import PROTOCOLS, ProtocolResult
from metricid.export.vectors import embed_with
from metricid.models.inference import InferenceModel

SHARE = 1e-4
RELATIVE_ERROR = 1e-3


@dataclass(frozen=True)
class Deviation:
    """How far vectors lie from those of the reference.

    Attributes:
        absolute: the largest difference of a component.
        relative: the same over the largest component of the reference.
        cosine: the largest 1 - cosine of an image's two vectors.
    """

    absolute: float
    relative: float
    cosine: float


@dataclass(frozen=True)
class Measure:
    """One measure of every model.

    Attributes:
        name: such as `rank-1`.
        values: a fraction for each model, in their order.
        count: queries or genuine pairs behind it.
        supported: whether the pairs suffice by the rule of 30.
    """

    name: str
    values: tuple[float, ...]
    count: int
    supported: bool

    def agrees(self, which: int) -> bool:
        """Whether a model gives the same as the first: to one in 10,000 queries or pairs, or one in all.

        Two scores nearer to each other than float32 resolves may change places; nothing else may.
        """
        return abs(self.values[which] - self.values[0]) <= max(SHARE, 1 / self.count) * (1 + 1e-9)


@dataclass(frozen=True)
class Check:
    """What a comparison found; the first model is the reference.

    Attributes:
        models: their names.
        images: that were embedded by all.
        identities: among them.
        flip: whether the mirrored image was added.
        deviations: of every model but the first.
        measures: rank-1 and TAR@FAR; none where the images have no identities to tell apart.
        skipped: unreadable images left out.
    """

    models: tuple[str, ...]
    images: int
    identities: int
    flip: bool
    deviations: tuple[Deviation, ...]
    measures: tuple[Measure, ...]
    skipped: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "images": self.images,
            "identities": self.identities,
            "skipped": self.skipped,
            "flip": self.flip,
            "models": list(self.models),
            "max_error": {
                name: vars(found) for name, found in zip(self.models[1:], self.deviations, strict=True)
            },
            "measures": {
                m.name: {
                    "count": m.count,
                    "supported": m.supported,
                    **dict(zip(self.models, m.values, strict=True)),
                }
                for m in self.measures
            },
        }

    def table(self) -> str:
        """The same for people."""
        what = "flip-sum" if self.flip else "no flip"
        title = f"check ({self.images:,} images, {self.identities:,} identities, {what}; cosine)"
        names = ("max |error|", "max |error| / max |value|", "max 1 - cosine")
        rows = [["", *self.models]]
        for name, key in zip(names, ("absolute", "relative", "cosine"), strict=True):
            rows.append([name, "", *(f"{getattr(found, key):.1e}" for found in self.deviations)])
        for m in self.measures:
            rows.append([m.name, *(f"{100 * v:.2f}%" + ("" if m.supported else "*") for v in m.values)])
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [title]
        for row in rows:
            cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
            lines.append("  ".join(cells).rstrip())
        if not self.measures:
            lines.append("note: no two identities with several images here: rank-1 and TAR are not compared")
        if not all(m.supported for m in self.measures):
            lines.append(
                "note: * too few impostor pairs to say how good the model is; enough to compare with"
            )
        return "\n".join(lines)

    def problem(self, which: int = 1) -> str | None:
        """One line if a float model differs from the reference by more than rounding, else None."""
        name, found = self.models[which], self.deviations[which - 1]
        if not found.relative <= RELATIVE_ERROR:  # NaN too
            return (
                f"{name} differs from {self.models[0]} by up to {found.relative:.1e} of the largest value "
                f"(allowed {RELATIVE_ERROR:g})"
            )
        for m in self.measures:
            if not m.agrees(which):
                before, after = m.values[0], m.values[which]
                return f"{name} gives {m.name} {100 * after:.2f}%, {self.models[0]} {100 * before:.2f}%"
        return None

    def loss(self, which: int) -> Measure | None:
        """The supported measure of which a model loses most against the first."""
        supported = [m for m in self.measures if m.supported]
        return max(supported, key=lambda m: m.values[0] - m.values[which], default=None)


def check_models(
    models: Mapping[str, InferenceModel],
    source: ImageSource,
    table: Manifest,
    *,
    flip: bool,
    batch_size: int = 32,
    workers: int = 0,
    on_corrupt: OnCorrupt = "error",
    distractors: Sequence[str] = (),
) -> Check:
    """Embeds the same images with every model and compares vectors, rank-1 and TAR@FAR.

    Rank-1 is by the re-ID rule where the table has cameras and queries, else leave-one-out.

    Args:
        models: by name; the first is the reference.
        source: where the images are.
        table: which images.
        flip: add the mirrored image.
        batch_size: images per forward pass.
        workers: reading processes.
        on_corrupt: `skip` leaves unreadable images out.
        distractors: gallery identities that never match.

    Raises:
        InputError: an image cannot be read, none is left, or a model gives values that are not finite.
    """
    vectors, table, skipped = embed_with(
        models,
        source,
        table,
        flip=flip,
        batch_size=batch_size,
        workers=workers,
        on_corrupt=on_corrupt,
        label="check",
    )
    for name, found in vectors.items():
        if not np.isfinite(found).all():
            raise InputError(f"{name} gives values that are not finite; nothing can be compared")
    reference, *others = vectors.values()
    return Check(
        models=tuple(models),
        images=len(table),
        identities=len(set(table.identities.tolist())),
        flip=flip,
        deviations=tuple(_deviation(reference, other) for other in others),
        measures=_measures(list(vectors.values()), table, distractors),
        skipped=len(skipped),
    )


def some_identities(table: Manifest, limit: int) -> Manifest:
    """Whole identities, drawn by chance but always the same, of together at most `limit` images (0: all)."""
    if limit == 0 or len(table) <= limit:
        return table
    names, which, counts = np.unique(table.identities.astype(str), return_inverse=True, return_counts=True)
    chosen = np.zeros(len(names), bool)
    total = 0
    for identity in np.random.default_rng(0).permutation(len(names)):
        if total + counts[identity] <= limit:
            chosen[identity] = True
            total += int(counts[identity])
    return table.select(chosen[which])


def _deviation(reference: np.ndarray, other: np.ndarray) -> Deviation:
    a, b = reference.astype(np.float64), other.astype(np.float64)
    absolute = float(np.abs(a - b).max())
    lengths = np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), np.finfo(np.float64).tiny)
    cosine = float((1 - (a * b).sum(axis=1) / lengths).max())
    largest = max(float(np.abs(a).max()), float(np.finfo(np.float64).tiny))
    return Deviation(absolute, absolute / largest, max(cosine, 0.0))


def _measures(
    vectors: Sequence[np.ndarray], table: Manifest, distractors: Sequence[str]
) -> tuple[Measure, ...]:
    counts = np.unique(table.identities.astype(str), return_counts=True)[1]
    if len(counts) < 2 or counts.max() < 2:
        return ()
    columns = {name: table.column(name) for name in ("identity", "camera", "split")}
    split = columns["split"]
    by_query = split is not None and {"query", "gallery"} <= set(split.tolist())
    names = ["reid" if by_query and columns["camera"] is not None else "identification", "verification"]
    found = []
    for name in names:
        extra: dict[str, Any] = {"distractors": distractors} if name == "reid" else {}
        try:
            results = [PROTOCOLS[name](rows, columns, **extra) for rows in vectors]
        except ValueError as error:
            raise InputError(f"check: {name}: {error}") from error
        kept = [m for m in results[0].shown() if m == "rank-1" or m.startswith("TAR@")]
        found += [_measure(measure, results) for measure in kept]
    return tuple(found)


def _measure(name: str, results: Sequence[ProtocolResult]) -> Measure:
    counts = results[0].counts
    behind = counts["genuine pairs"] if "genuine pairs" in counts else counts["queries"]
    values = tuple(result.metrics[name] for result in results)
    return Measure(name, values, behind, name not in results[0].unsupported)
