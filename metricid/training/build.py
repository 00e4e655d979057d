"""From a recipe to the parts of a run: data, model, objective, optimiser."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from metricid.config import Problem, RunConfig, parse_recipe
from metricid.data.aligned import AlignedSource
from metricid.data.dataset import ImageDataset
from metricid.data.factory import Splits, build_splits, data_problems, pick_workers
from metricid.data.loader import Loader
from metricid.data.masks import check_mask_images, check_masks
from metricid.data.samplers import build_sampler
from metricid.data.synthetic.source import SyntheticSource
from metricid.data.transforms import build_transform
from metricid.errors import InputError
from metricid.evaluation import PROTOCOLS
from metricid.losses.balance import balance_problems
from metricid.losses.objective import Objective
from metricid.models.backbone import backbone_problem
from metricid.models.embedder import Embedder, EmbedderConfig, Preprocessing, default_preprocessing
from metricid.registry import unknown
from metricid.training.columns import column_texts
from metricid.training.distributed import World, join_batchnorm
from metricid.training.mined import MinedBatches, mined_batches
from metricid.training.optim import build_optimizer, parameter_groups
from metricid.training.precision import Precision, pick_precision
from metricid.training.side import SideData, build_side
from metricid.training.validation import check_columns


@dataclass(frozen=True)
class Run:
    """Everything that a training loop moves."""

    config: RunConfig
    world: World
    splits: Splits
    label_map: dict[str, int]
    loader: Loader
    side: SideData
    mined: MinedBatches | None
    embedder: Embedder
    objective: Objective
    optimizer: torch.optim.Optimizer
    precision: Precision

    @property
    def batch_images(self) -> int:
        """Images of one batch over all ranks."""
        return self.loader.sampler.batch_size * self.world.size

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole training."""
        accumulate = self.config.train.accumulate
        if self.config.train.images is not None:
            return max(1, round(self.config.train.images / (self.batch_images * accumulate)))
        assert self.config.train.epochs is not None
        return max(1, self.config.train.epochs * self.loader.sampler.num_batches(0) // accumulate)


def check_recipe(values: Mapping[str, Any], source: str) -> RunConfig:
    """Validates a recipe: its schema, and names and options of layouts, samplers, losses, backbones.

    Raises:
        InputError: all mistakes at once, each with its dotted path.
    """
    return parse_recipe(
        values, source, (data_problems, _model_problems, _objective_problems, _protocol_problems)
    )


def build_embedder(config: RunConfig) -> Embedder:
    """The model of a recipe, with fresh or pretrained weights.

    Raises:
        InputError: unknown backbone, refused options, weights that cannot be had.
    """
    model = config.model
    size = config.data.size
    from_weights = model.pretrained or model.weights is not None
    mean, std = default_preprocessing(model.backbone, pretrained=from_weights)
    preprocessing = Preprocessing(size, model.mean or mean, model.std or std, model.color_order)
    structure = EmbedderConfig(
        backbone=model.backbone,
        preprocessing=preprocessing,
        pooling=model.pooling,
        neck=model.neck,
        embedding_dim=model.embedding_dim,
        backbone_options=model.backbone_options,
        output=model.output,
    )
    return Embedder(structure, pretrained=model.pretrained, weights=model.weights)


def build_run(config: RunConfig, world: World) -> Run:
    """Builds all parts of a run; nothing is written.

    Raises:
        InputError: data, model or sizes that do not fit together.
    """
    precision = pick_precision(config.train.precision, world.device)
    splits = build_splits(config.data, make_queries=config.evaluation.query_gallery)
    for part in (splits.validation, splits.test):
        if part is not None:
            check_columns(config.evaluation.protocols, part)
    label_map = {name: label for label, name in enumerate(splits.train.identity_names())}
    labels = splits.train.labels(label_map)
    sampler = build_sampler(
        config.data.sampler, labels=labels, seed=config.seed, rank=world.rank, world_size=world.size
    )
    dataset = ImageDataset(
        splits.source,
        splits.train,
        labels,
        build_transform(config.data.augment, size=config.data.size, train=True),
        seed=config.seed,
        on_corrupt=config.data.on_corrupt,
        masks=_masks(config.objective, splits),
    )
    loader = Loader(
        dataset,
        sampler,
        workers=pick_workers(config.data.workers, world.size, world.device),
        prefetch=config.data.prefetch,
        pin_memory=world.device.type == "cuda",
    )
    embedder = build_embedder(config)
    side = build_side(config, splits.train, label_map, world.device, precision)
    if splits.test is not None:
        side.columns.encode(splits.test)  # a value that cannot be read is told before the training, not after
    try:
        objective = Objective.from_config(
            config.objective,
            num_classes=len(label_map),
            feature_dim=embedder.feature_dim,
            embedding_dim=embedder.embedding_dim,
            class_counts=np.bincount(labels, minlength=len(label_map)).tolist(),
            balance=config.balance,
            columns=side.columns.facts(),
            teachers=side.teacher_widths(),
            map_channels=embedder.map_channels,
            pixels=(embedder.config.preprocessing.mean, embedder.config.preprocessing.std),
        )
    except ValueError as error:
        where = "" if str(error).startswith("objective.") else "objective: "
        raise InputError(f"{where}{error}") from error
    ahead = loader.workers * config.data.prefetch + config.train.accumulate
    mined = mined_batches(sampler, objective, label_map, len(labels), embedder.embedding_dim, ahead)
    embedder.to(world.device)
    objective.to(world.device)
    embedder.channels_last = config.train.channels_last
    if config.train.channels_last:
        embedder.to(memory_format=torch.channels_last)
    if world.distributed and config.train.sync_batchnorm:
        join_batchnorm(embedder, world.device)
    groups = parameter_groups(embedder, objective.trained_parts(), config.optim)
    optimizer = build_optimizer(groups, config.optim, world.device)
    return Run(
        config, world, splits, label_map, loader, side, mined, embedder, objective, optimizer, precision
    )


def _masks(terms: Sequence[Mapping[str, Any]], splits: Splits) -> list[str] | None:
    """The path of each training image's mask, or None where no term reads masks.

    All files are there, and those of the test images fit them: they are read after the training only.
    """
    column = next((term["column"] for term in terms if term.get("task") == "mask"), None)
    if column is None:
        return None
    if isinstance(splits.source, AlignedSource):
        raise InputError(
            "data.align: masks are not warped with their faces; align both before, or leave out task mask"
        )
    for part in (splits.test, splits.train):
        if part is not None:
            paths = column_texts(part, column)
            check_masks(paths, splits.source, part.paths)
    if splits.test is not None and not isinstance(splits.source, SyntheticSource):  # they draw what fits
        check_mask_images(column_texts(splits.test, column), splits.source, splits.test.paths)
    return paths


def _model_problems(values: Mapping[str, Any]) -> list[Problem]:
    model = values.get("model")
    backbone = model.get("backbone") if isinstance(model, Mapping) else None
    problem = backbone_problem(backbone) if isinstance(backbone, str) else None
    return [("model.backbone", problem)] if problem else []


def _objective_problems(values: Mapping[str, Any]) -> list[Problem]:
    balance = values.get("balance")
    found = [("balance", line) for line in balance_problems(balance)] if isinstance(balance, Mapping) else []
    terms = values.get("objective")
    if not isinstance(terms, list) or not terms or not all(isinstance(term, Mapping) for term in terms):
        return found
    if isinstance(balance, Mapping) and len(terms) == 1:
        found.append(("balance", "one term has nothing to be balanced with; leave balance out"))
    found += [(f"objective.{path}".rstrip("."), message) for path, message in Objective.problems(terms)]
    return found + _plateau_problems(values, terms)


def _plateau_problems(values: Mapping[str, Any], terms: Sequence[Mapping[str, Any]]) -> list[Problem]:
    """Weights that wait for validations, in a recipe that has none."""
    data, evaluation = values.get("data"), values.get("evaluation")
    split = data.get("split") if isinstance(data, Mapping) else None
    validates = isinstance(split, Mapping) and split.get("validation_identities")
    if validates and not (isinstance(evaluation, Mapping) and evaluation.get("every") == 0):
        return []
    message = "waits for validations; set data.split.validation_identities and evaluation.every above 0"
    waiting = [place for place, term in enumerate(terms) if _waits(term.get("weight"))]
    return [(f"objective.{place}.weight.plateau", message) for place in waiting]


def _waits(weight: Any) -> bool:
    return isinstance(weight, Mapping) and "plateau" in weight


def _protocol_problems(values: Mapping[str, Any]) -> list[Problem]:
    evaluation = values.get("evaluation")
    names = evaluation.get("protocols", ["identification"]) if isinstance(evaluation, Mapping) else []
    if not isinstance(names, list) or not isinstance(evaluation, Mapping):
        return []
    usable = sorted(name for name in PROTOCOLS if name != "lfw")
    problems: list[Problem] = []
    for i, name in enumerate(names):
        if name == "lfw":
            message = "needs a pairs file; after the training: metricid evaluate RUN --layout lfw --root ..."
            problems.append((f"evaluation.protocols.{i}", message))
        elif isinstance(name, str) and name not in PROTOCOLS:
            problems.append((f"evaluation.protocols.{i}", unknown("protocol", name, usable)))
    if evaluation.get("distractors") and "reid" not in names:
        problems.append(("evaluation.distractors", "only protocol reid has distractors; leave them out"))
    best = evaluation.get("best", "rank-1")
    if names and not problems and isinstance(best, str) and isinstance(names[0], str):
        known = _measures(names[0])
        if best not in known:
            problems.append(("evaluation.best", unknown(f"measure of {names[0]}", best, known)))
    return problems


def _measures(protocol: str) -> list[str]:
    """The measures of a protocol of which more is better, asked from itself on four made-up images."""
    table = {"identity": ["a", "a", "b", "b"], "camera": list("1212"), "split": ["query", "gallery"] * 2}
    measures = PROTOCOLS[protocol](np.eye(4, dtype=np.float32), table).metrics
    return [name for name in measures if name != "EER" and not name.startswith("threshold")]
