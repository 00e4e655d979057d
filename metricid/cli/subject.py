"""What `metricid evaluate` can evaluate: a run, a checkpoint, an ONNX file, a baseline."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metricid.cli.model import ONNX_SUFFIX, onnx_options, open_model, open_trained
from metricid.config import DataConfig, EvaluationConfig, RunConfig, find_recipe, read_recipe
from metricid.data.factory import SYNTHETIC, Splits, build_splits
from metricid.data.manifest import Manifest
from metricid.errors import InputError
from metricid.models.embedder import Embedder
from metricid.models.inference import InferenceModel, embedder_fingerprint
from metricid.training.build import build_embedder, check_recipe
from metricid.training.checkpoint import load_embedder, seed_everything
from metricid.training.distributed import World
from metricid.training.tasks import TaskHeads
from metricid.yaml_files import apply_overrides


@dataclass(frozen=True)
class Subject:
    """What is evaluated; neither embedder nor model for the pixel baseline.

    Attributes:
        name: for the table.
        data: of its recipe, or what other data starts from.
        settings: of its recipe; None for an ONNX file without one.
        embedder: of a checkpoint.
        model: of an ONNX file.
        tasks: heads of a checkpoint beside the identity.
    """

    name: str
    data: DataConfig
    settings: EvaluationConfig | None
    embedder: Embedder | None = None
    model: InferenceModel | None = None
    tasks: TaskHeads | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images that it takes."""
        if self.model is not None:
            return self.model.preprocessing.size
        return self.data.size if self.embedder is None else self.embedder.config.preprocessing.size

    @property
    def fingerprint(self) -> str | None:
        """That of the model."""
        if self.model is not None:
            return self.model.fingerprint
        return None if self.embedder is None else embedder_fingerprint(self.embedder)


def open_subject(options: argparse.Namespace, path: Path, world: World) -> Subject:
    """The model or baseline that the command line names.

    Raises:
        InputError: nothing that can be opened, or options that do not fit it.
    """
    if path.suffix.lower() == ONNX_SUFFIX and not options.baseline:
        return _onnx(options, path, world)
    for name in ("onnx", "recipe"):
        if getattr(options, name):
            raise InputError(f"--{name}: is for ONNX files, {path} is none")
    if options.save_calibration is not None and options.baseline:
        raise InputError("--save-calibration: a baseline is no model to calibrate; leave out --baseline")
    return _baseline(options) if options.baseline else _trained(path, options.overrides)


def pick_tasks(options: argparse.Namespace, subject: Subject, table: Manifest) -> TaskHeads:
    """The task heads to evaluate: those whose columns the table has, unless `--tasks` says otherwise.

    Raises:
        InputError: they are asked for, and the subject or the table lacks them.
    """
    tasks = subject.tasks or TaskHeads([])
    if options.tasks is False or not (tasks.heads or options.tasks):
        return TaskHeads([])
    if not tasks.heads:
        what = "an ONNX file" if subject.model is not None else "a baseline" if options.baseline else None
        raise InputError(
            f"--tasks: {options.subject} has no task heads; "
            + (f"{what} has none, evaluate the run itself" if what else "its objective names no task")
        )
    missing = tasks.missing(table)
    if missing and options.tasks:
        raise InputError(f"--tasks: {table.name} has no column {missing[0]!r}")
    if missing:
        warn(f"{table.name}: has no column {', '.join(map(repr, missing))}; tasks that need it are left out")
    return tasks.available(table)


def _onnx(options: argparse.Namespace, path: Path, world: World) -> Subject:
    """An ONNX file, with the recipe that is to count for it."""
    if world.distributed:
        raise InputError(f"{path}: an ONNX file is evaluated by one process; start without torchrun")
    if options.overrides and options.recipe is None:
        raise InputError(f"{options.overrides[0]}: an ONNX file has no recipe; give one with --recipe")
    config = None if options.recipe is None else _recipe(options.recipe, options.overrides)
    model = open_model(
        path, device=options.device, precision=options.precision, onnx=onnx_options(options.onnx)
    )
    data = DataConfig(train="folder") if config is None else config.data
    return Subject(model.name, data, config.evaluation if config else None, model=model)


def _trained(path: Path, overrides: list[str]) -> Subject:
    if path.suffix in (".yaml", ".yml") or (not path.exists() and path.parent == Path()):
        raise InputError(
            f"{path}: no run folder, checkpoint or embeddings; "
            "a recipe is evaluated with --baseline pixels or --baseline random"
        )
    checkpoint, state = open_trained(path)
    config = _stored_recipe(state, checkpoint, overrides)
    name = f"{config.name} ({checkpoint.name})"
    embedder = load_embedder(state, checkpoint)
    tasks = TaskHeads.load(state, embedder, checkpoint)
    return Subject(name, config.data, config.evaluation, embedder, tasks=tasks)


def warn(line: str) -> None:
    """A line for people, beside the results."""
    print(line, file=sys.stderr)


def run_splits(
    config: RunConfig,
    *,
    root: str | None = None,
    manifest: str | None = None,
    max_pixels: int | None = None,
    hint: str = "",
) -> Splits:
    """A run's own data, where it is now.

    Args:
        config: its recipe.
        root: folder or tar file with the images, if they have moved.
        manifest: the run's table, if it has moved.
        max_pixels: another limit than the recipe's.
        hint: what else may be done where the images are not found.

    Raises:
        InputError: options that do not fit the layout, or data that is not there.
    """
    data = config.data
    if root is not None and data.train in SYNTHETIC:
        raise InputError(f"--root: layout {data.train} generates its images and takes none")
    if manifest is not None and data.train != "manifest":
        raise InputError(f"--manifest: is for layout manifest, this is {data.train}")
    given = {"root": root, "manifest": manifest, "max_pixels": max_pixels}
    data = data.model_copy(update={name: value for name, value in given.items() if value is not None})
    try:
        return build_splits(data, make_queries=config.evaluation.query_gallery)
    except InputError as error:
        if root is not None or data.train in SYNTHETIC:
            raise
        also = f"; {hint}" if hint else ""
        raise InputError(f"{error} (if the images have moved, say where with --root{also})") from error


def check_overrides(overrides: Sequence[str]) -> None:
    """A trained model takes other data and other ways to evaluate it, and nothing else.

    The size of its images is its own, though it is written among the data.

    Raises:
        InputError: names an override of something else.
    """
    for text in overrides:
        name = text.partition("=")[0].strip()
        if "=" in text and (name == "data.size" or not name.startswith(("data.", "evaluation."))):
            raise InputError(
                f"{text}: a trained model stays as it is; only data.* and evaluation.* can be changed"
            )


def own_recipe(path: Path, overrides: Sequence[str] = ()) -> tuple[Path, RunConfig]:
    """The checkpoint that a run folder or checkpoint file stands for, and the recipe stored in it.

    Raises:
        InputError: nothing there, nothing readable, or overrides that do not fit.
    """
    checkpoint, state = open_trained(path)
    return checkpoint, _stored_recipe(state, checkpoint, overrides)


def _stored_recipe(state: dict[str, Any], checkpoint: Path, overrides: Sequence[str]) -> RunConfig:
    return check_recipe(apply_overrides(state["config"], overrides), f"{checkpoint}: stored recipe")


def _recipe(text: str, overrides: list[str]) -> RunConfig:
    """The recipe of a run or checkpoint, or one by file or name."""
    path = Path(text)
    if path.is_dir() or path.suffix == ".pt":
        return own_recipe(path, overrides)[1]
    file = find_recipe(text)
    return check_recipe(read_recipe(file, overrides), str(file))


def _baseline(options: argparse.Namespace) -> Subject:
    config = _recipe(options.subject, options.overrides)
    if options.baseline == "pixels":
        return Subject("raw pixels", config.data, config.evaluation)
    seed_everything(config.seed)
    return Subject("untrained network", config.data, config.evaluation, build_embedder(config))
