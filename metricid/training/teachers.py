"""Teachers of a distillation: a trained model, or embeddings that it has left behind."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from metricid.config import expand
from metricid.data.embedding_set import EmbeddingSet
from metricid.data.manifest import Manifest
from metricid.errors import InputError
from metricid.losses.catalog import LOSSES
from metricid.losses.recipe import loss_options, offers, term_names
from metricid.losses.side_terms import Classifier
from metricid.losses.term import Taught
from metricid.training.checkpoint import load_embedder, open_checkpoint
from metricid.training.precision import Precision

STORED = (".parquet", ".npy")


class Teacher(Protocol):
    """Says what it makes of a batch."""

    width: int

    def of(self, images: Tensor, rows: Tensor) -> Taught:
        """What it says.

        Args:
            images: [B, H, W, 3] uint8 on the device, as the student sees them.
            rows: [B] int64, rows of the training manifest.
        """
        ...


class StoredTeacher:
    """Embeddings of the training images from a file; augmentation does not change them.

    Args:
        embeddings: the file's.
        manifest: of the training images; matched by path.
        device: of the training.

    Raises:
        InputError: an image without an embedding.
    """

    def __init__(self, embeddings: EmbeddingSet, manifest: Manifest, device: torch.device, name: str):
        place = {path: row for row, path in enumerate(embeddings.table.paths)}
        missing = [path for path in manifest.paths if path not in place]
        if missing:
            raise InputError(
                f"{name}: has no embedding of {len(missing)} of the {len(manifest)} training images, such as "
                f"{missing[0]} (its own are such as {next(iter(place))}); embed the training images with the "
                "teacher, from the same root"
            )
        rows = [place[path] for path in manifest.paths]
        self.vectors = torch.from_numpy(embeddings.embeddings[rows])
        self.width = self.vectors.shape[1]
        self.device = device

    def of(self, images: Tensor, rows: Tensor) -> Taught:
        """As `Teacher.of`."""
        return Taught(self.vectors[rows].to(self.device, non_blocking=True))


class TrainedTeacher:
    """A checkpoint that looks at the same augmented images as the student, in its own size and scaling.

    Args:
        path: run folder or checkpoint.
        label_map: of the student; given where its logits are wanted.
        device: of the training.
        precision: of the training.

    Raises:
        InputError: no readable checkpoint, or logits are wanted of one that has no classifier or not all of
            the student's identities.
    """

    def __init__(
        self, path: Path, label_map: Mapping[str, int] | None, device: torch.device, precision: Precision
    ):
        source, state = open_checkpoint(path, lambda line: print(line, file=sys.stderr))
        self.embedder = load_embedder(state, source).to(device).requires_grad_(False)
        self.width = self.embedder.output_dim
        self.precision = precision
        self.head: Classifier | None = None
        if label_map is not None:
            self.head, self.on = _classifier(state, source, self.embedder, device)
            theirs = state.get("label_map", {})
            missing = [name for name in label_map if name not in theirs]
            if missing:
                raise InputError(
                    f"{source}: does not know {len(missing)} of the {len(label_map)} identities, such as "
                    f"{missing[0]!r}; distil its embeddings instead of its logits"
                )
            self.order = torch.tensor([theirs[name] for name in label_map], device=device)

    @torch.no_grad()
    def of(self, images: Tensor, rows: Tensor) -> Taught:
        """As `Teacher.of`."""
        x = self.embedder.normalize(images)
        size = self.embedder.config.preprocessing.size
        if tuple(x.shape[2:]) != tuple(size):
            x = F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)
        with self.precision.autocast():
            output = self.embedder(x)
            logits = None if self.head is None else self.head.logits(getattr(output, self.on))[:, self.order]
        return Taught(getattr(output, self.embedder.config.output).float(), logits)


def open_teacher(
    text: str,
    manifest: Manifest,
    label_map: Mapping[str, int] | None,
    device: torch.device,
    precision: Precision,
) -> Teacher:
    """The teacher that a recipe names.

    Args:
        text: run folder, checkpoint, or embedding file; `$VARIABLES` are replaced.
        manifest: of the training images.
        label_map: given where logits are wanted.
        device: of the training.
        precision: of the training.

    Raises:
        InputError: nothing there that can teach these images.
    """
    path = expand(text, "objective.teacher")
    if path.suffix.lower() in STORED:
        if label_map is not None:
            raise InputError(
                f"{path}: holds embeddings, logit_distillation needs the logits of a run folder or checkpoint"
            )
        return StoredTeacher(EmbeddingSet.read(path), manifest, device, str(path))
    return TrainedTeacher(path, label_map, device, precision)


def _classifier(
    state: dict[str, Any], source: Path, embedder: Any, device: torch.device
) -> tuple[Classifier, str]:
    """The first term of the teacher's objective that has logits, with its weights; and what it reads."""
    terms = state["config"]["objective"]
    named = zip(term_names(terms), terms, strict=True)
    found = next(((name, term) for name, term in named if offers(term, "logit_distillation")), None)
    if found is None or "objective" not in state:
        raise InputError(
            f"{source}: holds no classifier such as softmax, and so no logits; distil its embeddings "
            "(embedding_distillation, rkd_distance)"
        )
    name, options = found
    on = options.get("on", "embedding")
    classes = len(state["label_map"])
    loss = LOSSES.build(
        loss_options(options),
        num_classes=classes,
        embedding_dim=embedder.feature_dim if on == "features" else embedder.embedding_dim,
        class_counts=[1] * classes,
    )
    prefix = f"losses.{name}."
    own = {k.removeprefix(prefix): v for k, v in state["objective"].items() if k.startswith(prefix)}
    try:
        loss.load_state_dict(own)
    except RuntimeError as error:
        why = str(error).splitlines()[-1].strip()  # the first line names the class alone
        raise InputError(f"{source}: its classifier {name} cannot be read ({why[:160]})") from error
    return loss.to(device).requires_grad_(False).eval(), on
