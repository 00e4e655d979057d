"""From the data section of a recipe to images, manifests and batches."""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import yaml

from metricid.config import DataConfig, Problem, SplitConfig, expand
from metricid.data.align import size_problem
from metricid.data.aligned import AlignedSource
from metricid.data.layouts import LAYOUTS, market1501
from metricid.data.manifest import Manifest, check_files
from metricid.data.samplers import SAMPLERS
from metricid.data.sources import ImageSource, open_source
from metricid.data.splits import query_gallery, split_identities
from metricid.data.synthetic import SyntheticFaces, SyntheticPedestrians
from metricid.data.transforms import transform_problems
from metricid.errors import InputError
from metricid.registry import signature_problems, unknown

SYNTHETIC: dict[str, Callable[..., Any]] = {
    "synthetic_faces": SyntheticFaces,
    "synthetic_pedestrians": SyntheticPedestrians,
}
MAX_COUNT = 100_000
_COUNTS = ("batch_size", "identities", "images")  # of a sampler; its other options have ranges of their own
_ALIGNED_ALREADY = "data.align=false (embed and evaluate: --aligned) where the images are aligned already"
EVALUATION_SPLITS = ("query", "gallery", "test")
DISTRACTORS = {"market1501": (market1501.DISTRACTOR,)}


@dataclass(frozen=True)
class Splits:
    """The images of a recipe and who trains, validates and tests."""

    source: ImageSource
    train: Manifest
    validation: Manifest | None
    test: Manifest | None

    def manifests(self) -> dict[str, Manifest]:
        """Those that exist, by name."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: manifest for name, manifest in named.items() if manifest is not None}


def layout_names() -> list[str]:
    """All values that `data.train` may have."""
    return sorted([*LAYOUTS, *SYNTHETIC, "manifest"])


def open_layout(
    layout: str,
    *,
    root: str | None,
    manifest: str | None = None,
    options: Mapping[str, Any] | None = None,
    max_pixels: int = 50_000_000,
    option: str = "data.root",
) -> tuple[ImageSource, Manifest]:
    """Opens images and reads or makes their table.

    Args:
        layout: one of `layout_names()`.
        root: folder or tar file; `$VARIABLES` are replaced.
        manifest: the table, for layout `manifest`; paths in it are relative to `root` or to its own folder.
        options: options of the layout.
        max_pixels: limit on the pixels of one image.
        option: name of the option that gives the root, for messages.

    Raises:
        InputError: anything that cannot be found or does not fit.
    """
    options = dict(options or {})
    problems = _layout_problems(layout, options)
    if problems:
        raise InputError(f"data.options: {'; '.join(problems)}")
    if layout in SYNTHETIC:
        source = SYNTHETIC[layout](**options)
        return source, source.manifest()
    if layout == "manifest":
        if manifest is None:
            raise InputError(
                "data.manifest: data.train=manifest needs the table: data.manifest=/path/to/table.csv"
            )
        file = expand(manifest, "data.manifest")
        source = open_source(file.parent if root is None else expand(root, option), max_pixels=max_pixels)
        table = Manifest.read(file)
        check_files(table, source)
        return source, table
    if layout not in LAYOUTS:
        raise InputError(f"data.train: {unknown('layout', layout, layout_names())}")
    if root is None:
        raise InputError(f"{option}: layout {layout} needs a folder or tar file: {option}=/path")
    source = open_source(expand(root, option), max_pixels=max_pixels)
    return source, LAYOUTS[layout](source, **options)


def build_splits(config: DataConfig, *, make_queries: bool) -> Splits:
    """Opens the data of a recipe and splits it by identity.

    Args:
        config: the data section.
        make_queries: divide the test and validation images into query and gallery by (identity, camera).

    Raises:
        InputError: paths, layouts or splits that cannot be used.
    """
    options = dict(config.options)
    if config.train in SYNTHETIC:
        options.setdefault("size", tuple(config.size))
    source, table = open_layout(
        config.train,
        root=config.root,
        manifest=config.manifest,
        options=options,
        max_pixels=config.max_pixels,
    )
    if config.align:
        source = AlignedSource(source, table, config.size, "data.align", _ALIGNED_ALREADY)
    distractors = DISTRACTORS.get(config.train, ())
    train, test = split_table(table, config.split, distractors)
    validation = None
    if config.split is not None and config.split.validation_identities:
        keep = len(train.identity_names()) - config.split.validation_identities
        if keep < 1:
            raise InputError(
                f"data.split.validation_identities: {config.split.validation_identities} of the "
                f"{len(train.identity_names())} training identities leave none to train on"
            )
        train, validation = split_identities(train, keep, config.split.seed + 1)
    if len(train.identity_names()) < 2:
        raise InputError(
            f"data: {len(train.identity_names())} identity to train on ({source.name}); "
            "metric learning needs at least two: check data.root and data.split"
        )
    if make_queries:
        test = query_gallery(test, distractors) if test is not None else None
        validation = query_gallery(validation) if validation is not None else None
    return Splits(source, train, validation, test)


def split_table(
    table: Manifest,
    split: SplitConfig | None,
    distractors: Collection[str] = (),
    *,
    option: str = "data.split.train_identities",
) -> tuple[Manifest, Manifest | None]:
    """Divides a table into training and test rows, by identity or by its `split` column.

    Where the column names both training and evaluation rows, a split by identity divides the training rows
    alone: nobody of the official test set trains.

    Args:
        table: all rows.
        split: the section of the recipe; None goes by the column, and without a column all rows train.
        distractors: names that stand for nobody and never train; see `DISTRACTORS`.
        option: name of the option that gives the number of identities, for messages.

    Raises:
        InputError: a split that the data cannot give.
    """
    column = table.column("split")
    trainable = ~np.isin(table.identities, list(distractors))
    if split is None:
        if column is None:
            return table.select(trainable), None
        tested = np.isin(column, EVALUATION_SPLITS)
        return _rows(table, (column == "train") & trainable, "train"), table.select(
            tested
        ) if tested.any() else None
    if split.train is not None and split.test is not None:
        if column is None:
            raise InputError(
                "data.split: train and test name values of a column 'split', which the data has not"
            )
        return _rows(table, (column == split.train) & trainable, split.train), _rows(
            table, column == split.test, split.test
        )
    assert split.train_identities is not None
    if column is not None and np.isin(column, EVALUATION_SPLITS).any() and (column == "train").any():
        table = table.select(column == "train")
    try:
        return split_identities(table, split.train_identities, split.seed, split.min_images, distractors)
    except InputError as error:
        raise InputError(f"{option}: {error}") from error


def _rows(table: Manifest, chosen: np.ndarray, name: str) -> Manifest:
    if not chosen.any():
        found = sorted(set(np.asarray(table.column("split"), dtype=str).tolist()))
        raise InputError(f"data.split: no image has split {name!r}; found: {', '.join(found)}")
    return table.select(chosen)


def pick_workers(setting: int | str, world_size: int, device: torch.device) -> int:
    """Loader processes: as given, or one less than the cores that each rank of this node has, at most 8.

    A network on a CPU with one or two cores gets none: its threads would wait for the one whose core a worker
    takes, which costs more than reading in turns.

    Args:
        setting: a number, or `auto`.
        world_size: ranks, where `torchrun` does not say how many are on this node.
        device: where the network runs.
    """
    if isinstance(setting, int):
        return setting
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = cores // int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    if device.type == "cpu" and share <= 2:
        return 0
    return max(1, min(8, share - 1))


def layout_options(layout: str, texts: Sequence[str]) -> dict[str, Any]:
    """Options of a layout from `name=value` texts; the values are YAML.

    Raises:
        InputError: another form, or options that the layout has not.
    """
    if layout not in layout_names():
        raise InputError(unknown("layout", layout, layout_names()))
    options = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--option {text}: has the form NAME=VALUE, for example seed=1")
        options[name] = yaml.safe_load(value)
    problems = _layout_problems(layout, options)
    if problems:
        raise InputError(f"--option: {'; '.join(problems)}")
    return options


def _layout_problems(layout: str, options: Mapping[str, Any]) -> list[str]:
    target = SYNTHETIC.get(layout) or LAYOUTS.get(layout)
    if target is None:
        return [f"layout {layout} takes no options"] if options else []
    return signature_problems(target, options, ("source",))


def data_problems(values: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with the open-ended parts of a recipe's data section: layout, sampler, augmentation."""
    data = values.get("data")
    if not isinstance(data, Mapping):
        return []
    problems = []
    layout = data.get("train")
    if isinstance(layout, str):
        if layout not in layout_names():
            problems.append(("data.train", unknown("layout", layout, layout_names())))
        options = data.get("options", {})
        if isinstance(options, Mapping):
            problems += _dotted("data.options", options, _layout_problems(layout, options))
        if layout in SYNTHETIC and data.get("root") is not None:
            problems.append(("data.root", f"layout {layout} generates its images; set data.root=null"))
        if layout in layout_names() and layout != "manifest" and data.get("manifest") is not None:
            problems.append(
                ("data.manifest", f"is for train: manifest, this is {layout}; set data.manifest=null")
            )
    size = data.get("size", (112, 112))
    whole = isinstance(size, (list, tuple)) and len(size) == 2 and all(type(side) is int for side in size)
    if data.get("align") is True and whole and (problem := size_problem((size[0], size[1]))):
        problems.append(("data.size", f"{problem}; choose such a size, or set data.align=false"))
    sampler = data.get("sampler", {"name": "shuffle", "batch_size": 64})
    if isinstance(sampler, Mapping):
        given = ("labels", "seed", "rank", "world_size")
        found = SAMPLERS.problems(sampler, given)
        problems += _dotted("data.sampler", sampler, found or _count_problems(sampler))
    augment = data.get("augment", {"preset": "plain"})
    if isinstance(augment, Mapping):
        problems += _dotted("data.augment", augment, transform_problems(augment))
    return problems


def _count_problems(sampler: Mapping[str, Any]) -> list[str]:
    """Counts of a sampler with which no batch can be made."""
    return [
        f"{name}: must lie between 1 and {MAX_COUNT}, got {value}"
        for name, value in sampler.items()
        if name in _COUNTS and isinstance(value, int) and not 1 <= value <= MAX_COUNT
    ]


def _dotted(section: str, options: Mapping[str, Any], messages: Sequence[str]) -> list[Problem]:
    """Problems of an open-ended section; a message that begins with an option goes to that option's path."""
    found = []
    for message in messages:
        name, colon, text = message.partition(": ")
        found.append((f"{section}.{name}", text) if colon and name in options else (section, message))
    return found
