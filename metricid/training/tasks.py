"""The tasks beside the identity, on test images: what the heads of a checkpoint say, and how right it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
from torch import Tensor

from metricid.data.manifest import Manifest
from metricid.data.masks import read_mask
from metricid.data.sources import ImageSource
from metricid.errors import InputError
from metricid.evaluation import ProtocolResult
from metricid.evaluation.tasks import attribute_metrics, category_metrics, mask_overlap, number_metrics
from metricid.losses.objective import Objective
from metricid.losses.recipe import SIDE_KEYS, column_key, loss_options, term_names
from metricid.losses.side_terms import AttributeTask, CategoryTask, MaskTask, NumberTask
from metricid.losses.term import Place
from metricid.models.embedder import Embedder, EmbedderOutput, MappedOutput
from metricid.models.weights import first_line
from metricid.training.columns import ColumnRule, Columns
from metricid.training.distributed import World, gather_objects

Predictor = CategoryTask | AttributeTask | NumberTask | MaskTask


@dataclass(frozen=True)
class Head:
    """One task of a trained model.

    Attributes:
        name: of its term.
        rule: how its columns are read.
        on: what it reads of the embedder.
        term: has `predict`.
    """

    name: str
    rule: ColumnRule
    on: Place
    term: Predictor


class TaskHeads:
    """The heads of a checkpoint; reads the batches that its embedder embeds, and judges them at the end."""

    def __init__(self, heads: list[Head]):
        self.heads = heads
        self._said: dict[str, list[np.ndarray]] = {head.name: [] for head in heads}

    @classmethod
    def load(cls, state: Mapping[str, Any], embedder: Embedder, source: Path) -> "TaskHeads":
        """The heads of a checkpoint, in evaluation mode.

        Args:
            state: of the checkpoint.
            embedder: of the same.
            source: its file, for messages.

        Raises:
            InputError: the checkpoint does not hold what its recipe says.
        """
        terms = state["config"]["objective"]
        named = [(n, t) for n, t in zip(term_names(terms), terms, strict=True) if "task" in t]
        if not named:
            return cls([])
        columns = Columns.from_plain(state.get("columns", {}))
        keys = ("on", *SIDE_KEYS)
        plain = [
            {"name": name, **{k: term[k] for k in keys if k in term}, **loss_options(term)}
            for name, term in named
        ]
        try:
            objective = Objective.from_config(
                plain,
                num_classes=len(state["label_map"]),
                feature_dim=embedder.feature_dim,
                embedding_dim=embedder.embedding_dim,
                columns=columns.facts(),
                map_channels=embedder.map_channels,
            )
            known = objective.state_dict().keys()
            objective.load_state_dict({k: v for k, v in state["objective"].items() if k in known})
        except (ValueError, KeyError, RuntimeError) as error:
            raise InputError(f"{source}: its task heads cannot be used ({first_line(error)})") from error
        heads = []
        for built, (name, options) in zip(objective.eval().terms, named, strict=True):
            rule = columns.rules[column_key(options) or ""]
            heads.append(Head(name, rule, built.on, cast(Predictor, built.loss)))
        return cls(heads)

    def missing(self, table: Manifest) -> list[str]:
        """The columns of the tasks that a table has not."""
        names = dict.fromkeys(name for head in self.heads for name in head.rule.names)
        return [name for name in names if name not in table.table.column_names]

    def available(self, table: Manifest) -> "TaskHeads":
        """The heads whose columns a table has."""
        missing = set(self.missing(table))
        return TaskHeads([head for head in self.heads if not missing & set(head.rule.names)])

    def watching(self, embedder: Embedder) -> Embedder:
        """The embedder, whose batches are read by these heads, too."""
        for head in self.heads:
            head.term.to(embedder.pixel_shift.device)
        return cast(Embedder, _Watched(embedder, self)) if self.heads else embedder

    @property
    def read_map(self) -> bool:
        """Whether a head reads the feature map."""
        return any(isinstance(head.term, MaskTask) for head in self.heads)

    @torch.inference_mode()
    def see(self, output: EmbedderOutput | MappedOutput, size: tuple[int, int]) -> None:
        """Keeps what each head says of a batch of images of a size; of a mask, one bit a pixel."""
        for head in self.heads:
            if isinstance(head.term, MaskTask):
                found = head.term.predict(cast(MappedOutput, output).map, size) >= 0.5
                said = np.packbits(found.flatten(1).cpu().numpy(), axis=1)
            else:
                said = head.term.predict(getattr(output, head.on)).cpu().numpy()
            self._said[head.name].append(said)

    def results(
        self, table: Manifest, source: ImageSource, size: tuple[int, int], world: World, subject: str = ""
    ) -> list[ProtocolResult]:
        """How right the heads were, each beside a guess that looks at no image.

        Args:
            table: the images seen, on all ranks, in order.
            source: where masks are.
            size: (height, width) of what the network saw.
            world: this process among its peers.
            subject: what is evaluated.

        Raises:
            InputError: a value in the table that is not of the task's kind.
        """
        parts = gather_objects({name: np.concatenate(said) for name, said in self._said.items()}, world)
        found = []
        for head in self.heads:
            said = np.concatenate([part[head.name] for part in parts])
            if head.rule.kind == "mask":
                found += _mask(head, said, table, source, size, subject)
            else:
                found += JUDGES[head.rule.kind](head, said, table, subject)
        return found


class _Watched:
    """An embedder that shows each batch to the heads."""

    def __init__(self, embedder: Embedder, heads: TaskHeads):
        self._embedder, self._heads = embedder, heads

    def __getattr__(self, name: str) -> Any:
        return getattr(self._embedder, name)

    def embed(self, images: Tensor, *, flip: bool = False) -> Tensor:
        output = self._embedder(images, with_map=self._heads.read_map)
        self._heads.see(output, self._embedder.config.preprocessing.size)
        return self._embedder.embed(images, flip=flip, output=output)


def _category(head: Head, said: np.ndarray, table: Manifest, subject: str) -> list[ProtocolResult]:
    rule = head.rule
    classes = np.array(rule.classes, object)
    truth = np.array(rule.texts(table)[0], object)
    known = truth != ""
    unseen = int((known & ~np.isin(truth, classes)).sum())
    counts = {"known": int(known.sum()), "missing": int((~known).sum()), "of classes never trained": unseen}
    guesses = {subject: classes[said.argmax(axis=1)], "majority class": None}
    guesses["majority class"] = np.full(len(table), classes[int(np.argmax(rule.counts))], object)
    notes = (
        [f"{unseen} images are of classes that training has not seen; they count as wrong."] if unseen else []
    )
    return [
        ProtocolResult(
            "category",
            f"{rule.names[0]}, {len(classes)} classes, no flip",
            category_metrics(guess[known], truth[known]) if known.any() else {},
            counts,
            notes=notes if known.any() else [f"No image has a value of {rule.names[0]}."],
            subject=who,
        )
        for who, guess in guesses.items()
    ]


def _attributes(head: Head, said: np.ndarray, table: Manifest, subject: str) -> list[ProtocolResult]:
    rule = head.rule
    truth = rule.encode(table).numpy()
    known = int((~np.isnan(truth)).sum())
    counts = {"known": known, "missing": truth.size - known}
    usual = np.broadcast_to(np.array(rule.shares), truth.shape)
    found = []
    for who, scores in {subject: said, "majority": usual}.items():
        metrics, left_out = attribute_metrics(scores, truth, rule.names)
        notes = (
            [f"Left out, for want of a known yes or a known no: {', '.join(left_out)}."] if left_out else []
        )
        variant = f"{', '.join(rule.names)}, threshold 0.5, no flip"
        found.append(ProtocolResult("attributes", variant, metrics, counts, notes=notes, subject=who))
    return found


def _number(head: Head, said: np.ndarray, table: Manifest, subject: str) -> list[ProtocolResult]:
    rule = head.rule
    truth = rule.encode(table).numpy()
    known = ~np.isnan(truth)
    counts = {"known": int(known.sum()), "missing": int((~known).sum())}
    usual = np.full(len(table), rule.mean)
    found = []
    for who, guess in {subject: said, "training mean": usual}.items():
        metrics = number_metrics(guess[known], truth[known]) if known.any() else {}
        notes = [] if known.any() else [f"No image has a value of {rule.names[0]}."]
        variant = f"{rule.names[0]}, in its unit, no flip"
        units = dict.fromkeys(metrics, "")
        found.append(
            ProtocolResult("number", variant, metrics, counts, notes=notes, units=units, subject=who)
        )
    return found


def _mask(
    head: Head, said: np.ndarray, table: Manifest, source: ImageSource, size: tuple[int, int], subject: str
) -> list[ProtocolResult]:
    """The mean over images; a mask is brought to the size that the network saw."""
    name = head.rule.names[0]
    overlaps = []
    for path, image, bits in zip(head.rule.texts(table)[0], table.paths, said, strict=True):
        if path:
            overlaps.append(_overlap(source, path, image, bits, size))
    counts = {"known": len(overlaps), "missing": len(table) - len(overlaps)}
    means = np.array(overlaps).mean(axis=0) if overlaps else np.zeros((2, 2))
    return [
        ProtocolResult(
            "mask",
            f"{name}, mean over images, {size[0]}x{size[1]} pixels, no flip",
            {"Dice": float(values[0]), "IoU": float(values[1])} if overlaps else {},
            counts,
            notes=[] if overlaps else [f"No image has a value of {name}."],
            subject=who,
        )
        for who, values in zip((subject, "whole image"), means, strict=True)
    ]


def _overlap(
    source: ImageSource, path: str, image: str, bits: np.ndarray, size: tuple[int, int]
) -> list[tuple[float, float]]:
    """Dice and IoU of a prediction, and of a mask that covers the image."""
    truth = read_mask(source, path, source.read(image).shape[:2], image)
    height, width = size
    truth = cv2.resize(truth, (width, height), interpolation=cv2.INTER_NEAREST_EXACT).astype(bool)
    guess = np.unpackbits(bits, count=height * width).reshape(size).astype(bool)
    return [mask_overlap(guess, truth), mask_overlap(np.ones_like(truth), truth)]


JUDGES = {"category": _category, "attributes": _attributes, "number": _number}
