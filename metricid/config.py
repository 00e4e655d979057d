"""The schema of a run, the recipes that come with the package, and every mistake in one reported at once."""

import difflib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from metricid.errors import InputError
from metricid.yaml_files import apply_overrides, read_yaml

Problem = tuple[str, str]
MAX_WORKERS = 512
DEVICE = r"^(auto|cpu|mps|cuda(:\d{1,2})?)$"
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Beta = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """Base of all sections: unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class SplitConfig(Section):
    """Which identities train, validate and test. Either drawn by identity, or named in the `split` column."""

    train_identities: int | float | None = Field(
        None, description="number or share of the identities that train; the others test"
    )
    validation_identities: Annotated[int, Field(ge=0)] = Field(
        0, description="identities taken from the training side to pick the best checkpoint"
    )
    min_images: Count = Field(1, description="identities with fewer images are left out first")
    seed: int = 0
    train: str | None = Field(None, description="value of the split column that trains")
    test: str | None = Field(None, description="value of the split column that tests")

    @model_validator(mode="after")
    def _one_way(self) -> "SplitConfig":
        by_column = self.train is not None or self.test is not None
        if (self.train_identities is not None) == by_column:
            raise ValueError("give either train_identities, or both train and test")
        if by_column and (self.train is None or self.test is None):
            raise ValueError("give both train and test")
        if by_column and self.min_images != 1:
            raise ValueError("min_images is for train_identities; beside train and test it has no effect")
        if by_column and self.seed != 0 and not self.validation_identities:
            raise ValueError("seed is for train_identities and validation_identities; nothing is drawn here")
        n = self.train_identities
        if n is not None and (n <= 0 or (isinstance(n, float) and n >= 1)):
            raise ValueError("train_identities is a count of at least 1 or a share between 0 and 1")
        return self


class DataConfig(Section):
    """Where the images are, how they are split, augmented, sampled and read."""

    train: str = Field(
        description="layout: folder, manifest, market1501, lfw, omniglot, synthetic_faces, ..."
    )
    root: Text | None = Field(None, description="folder or .tar file; $VARIABLES are replaced")
    manifest: Text | None = Field(None, description="CSV or Parquet table, for train: manifest")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the layout")
    size: tuple[Count, Count] = Field((112, 112), description="height and width in pixels")
    align: bool = Field(False, description="warp faces to the template by the landmarks of the table")
    split: SplitConfig | None = None
    augment: dict[str, Any] = Field(default_factory=lambda: {"preset": "plain"})
    sampler: dict[str, Any] = Field(default_factory=lambda: {"name": "shuffle", "batch_size": 64})
    workers: Annotated[int, Field(ge=0, le=MAX_WORKERS)] | Literal["auto"] = "auto"
    prefetch: Count = 4
    on_corrupt: Literal["error", "skip"] = "error"
    max_pixels: Count = Field(50_000_000, description="an image with more pixels is refused before decoding")


class ModelConfig(Section):
    """Backbone, pooling, neck."""

    backbone: str = "resnet18"
    pooling: Literal["avg", "gem", "native"] = "avg"
    neck: Literal["none", "bnneck", "linear_bn"] = "bnneck"
    embedding_dim: Annotated[int, Field(ge=1, le=65536)] | None = None
    pretrained: bool = False
    weights: Text | None = Field(None, description="local weight file for the backbone")
    backbone_options: dict[str, Any] = Field(default_factory=dict)
    mean: tuple[float, float, float] | None = None
    std: tuple[Positive, Positive, Positive] | None = None
    color_order: Literal["RGB", "BGR"] = "RGB"
    output: Literal["embedding", "features"] = Field(
        "embedding", description="what the trained model gives: after the neck, or before it"
    )

    @model_validator(mode="after")
    def _one_source(self) -> "ModelConfig":
        if self.pretrained and self.weights is not None:
            raise ValueError("give either pretrained: true or weights")
        return self


class OptimConfig(Section):
    """Optimiser and learning-rate schedule. Fractions are shares of the whole training."""

    name: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: Positive = 1e-3
    head_lr: Positive = Field(
        1.0, description="learning rate of the objective's parameters, as a multiple of lr"
    )
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    momentum: Fraction = 0.9
    nesterov: bool = True
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    schedule: Literal["cosine", "poly", "multistep", "constant"] = "cosine"
    warmup: Fraction = Field(0.05, description="share of the training with a linearly rising rate")
    final_lr: Fraction = Field(0.0, description="rate at the end as a multiple of lr (cosine, poly)")
    power: Positive = 2.0
    milestones: list[Fraction] = Field(default_factory=lambda: [0.5, 0.75])
    gamma: Fraction = 0.1


class TrainConfig(Section):
    """How long and in which arithmetic."""

    epochs: Count | None = None
    images: Count | None = Field(None, description="number of images to see in all, instead of epochs")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    channels_last: bool = True
    compile: bool = False
    accumulate: Count = Field(1, description="batches per optimiser step")
    clip_norm: Positive | None = 5.0
    gradients: Literal["sum", "pcgrad"] = Field(
        "sum", description="how the gradients of the terms become one; pcgrad removes conflicts"
    )
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    max_nonfinite: Count = 10
    sync_batchnorm: bool = True
    threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None, description="CPU threads of the training process"
    )

    @model_validator(mode="after")
    def _one_length(self) -> "TrainConfig":
        if (self.epochs is None) == (self.images is None):
            raise ValueError("give either epochs or images")
        if self.compile and self.gradients == "pcgrad":
            raise ValueError(
                "gradients: pcgrad goes back through the network for each term, which compile forbids"
            )
        return self


class EvaluationConfig(Section):
    """What is measured, during the training and after it."""

    protocols: list[str] = Field(default_factory=lambda: ["identification"])
    every: Annotated[int, Field(ge=0)] = Field(
        1, description="validate every N epochs and at the end; 0 = never"
    )
    best: str = Field(
        "rank-1", description="metric of the first protocol by which the best checkpoint is kept"
    )
    flip: bool = True
    batch_size: Count = 128
    query_gallery: bool = Field(
        False, description="the first image of each (identity, camera) is a query, the others are the gallery"
    )
    distractors: list[str] = Field(
        default_factory=list,
        description="gallery identities that never match (Market-1501: ['0'])",
    )
    variant: str = Field("", description="text that names the split beside each number")
    baselines: list[Literal["pixels", "random"]] = Field(default_factory=list)
    bootstrap: Annotated[int, Field(ge=0)] = 0


class CheckpointConfig(Section):
    """When the whole state is written, and how many are kept."""

    every_epochs: Count = 1
    every_steps: Count | None = None
    every_minutes: Positive | None = 5.0
    keep: Count = 2


class LogConfig(Section):
    """What is written down beside the results. The JSONL log always is."""

    every: Count = Field(10, description="steps between log lines")
    tensorboard: bool = False
    report: bool = Field(True, description="write report.html at the end; it shows test images and names")


class RunConfig(Section):
    """A whole run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    device: Annotated[str, Field(pattern=DEVICE)] = "auto"
    runs: Text = Field("runs", description="folder in which the run folder is made")
    data: DataConfig
    model: ModelConfig = Field(default_factory=ModelConfig)
    objective: list[dict[str, Any]] = Field(min_length=1)
    balance: dict[str, Any] | None = Field(
        None, description="how factors on the terms are found: uncertainty, dwa, gradnorm"
    )
    optim: OptimConfig = Field(default_factory=OptimConfig)
    train: TrainConfig
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    log: LogConfig = Field(default_factory=LogConfig)

    @model_validator(mode="after")
    def _best_by_a_protocol(self) -> "RunConfig":
        split = self.data.split
        if split is not None and split.validation_identities and not self.evaluation.protocols:
            raise ValueError(
                "evaluation.protocols needs a protocol to pick the best checkpoint by, "
                "as data.split.validation_identities asks; name one, or set those to 0"
            )
        return self

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.runs) / self.name

    def plain(self) -> dict[str, Any]:
        """The configuration as plain values, for YAML, JSON and checkpoints."""
        return self.model_dump(mode="json")


def recipe_folder() -> Path:
    """The folder of the recipes that come with the package."""
    packaged = Path(__file__).parent / "configs"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "configs"


def find_recipe(name: str) -> Path:
    """A recipe by file name, or by its name among those that come with the package.

    Raises:
        InputError: there is none; the message names those that exist.
    """
    file = Path(name)
    if file.suffix in (".yaml", ".yml"):
        if file.is_file():
            return file
        inside = recipe_folder() / file.relative_to("configs") if file.parts[:1] == ("configs",) else None
        if inside is not None and inside.is_file():
            return inside
        raise InputError(f"{name}: no such recipe file")
    known = {f.stem: f for f in sorted(recipe_folder().rglob("*.yaml"))}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise InputError(f"{name}: no such recipe{hint} (a .yaml file or one of: {', '.join(known)})")


def read_recipe(file: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Reads a YAML recipe and applies `a.b=c` overrides (`c` is YAML; list entries by number).

    Raises:
        InputError: not YAML, not a mapping, or an override without `=`.
    """
    values = read_yaml(file)
    if not isinstance(values, dict):
        raise InputError(f"{file}: a recipe is a mapping of sections (data, model, objective, ...)")
    values.setdefault("name", file.stem)
    return apply_overrides(values, overrides)


def parse_recipe(
    values: Mapping[str, Any],
    source: str,
    checks: Iterable[Callable[[Mapping[str, Any]], list[Problem]]] = (),
) -> RunConfig:
    """Validates a recipe.

    Args:
        values: what the YAML file holds, overrides applied.
        source: file name for the message.
        checks: further checks, each from the raw values to (dotted path, message) pairs.

    Raises:
        InputError: all mistakes, one per line, each with its dotted path.
    """
    problems: list[Problem] = []
    config = None
    try:
        text = json.dumps(values, default=str)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"{source}: a recipe holds names, numbers, texts and lists, "
            f"and no part of it holds itself ({error})"
        ) from error
    try:
        # JSON mode is strict about types and takes a list for a tuple, as YAML gives it.
        config = RunConfig.model_validate_json(text)
    except ValidationError as error:
        problems += [_describe(details) for details in error.errors()]
    for check in checks:
        problems += check(values)
    if problems or config is None:
        lines = sorted({f"  {path}: {message}" for path, message in problems})
        count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        raise InputError("\n".join([f"{source}: {count}", *lines]))
    return config


def expand(path: str, option: str) -> Path:
    """Replaces `$VARIABLES` and `~` in a path.

    Raises:
        InputError: a variable is not set, or the path is empty.
    """
    if not path:
        raise InputError(f"{option}: is empty; give a path, or leave it out")
    text = os.path.expanduser(os.path.expandvars(path))
    missing = re.findall(r"\$\{?(\w+)\}?", text)
    if missing:
        raise InputError(
            f"{option}: {path} uses ${missing[0]}, which is not set; "
            f"run 'export {missing[0]}=...' or give the path itself: {option}=/path"
        )
    return Path(text)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted paths whose values differ, as `path: old -> new`."""
    result = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            result += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            result.append(f"{prefix}{key}: {before} -> {after}")
    return result


def _describe(details: Any) -> Problem:
    location = [str(part) for part in details["loc"] if not _is_variant(part)]
    path = ".".join(location) or "recipe"
    kind = details["type"]
    if kind == "extra_forbidden":
        known = _known_keys(location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1)
        return path, "unknown key" + (
            f"; did you mean {near[0]!r}?" if near else f" (known: {', '.join(known)})"
        )
    if kind == "missing":
        return path, "is required"
    if kind == "value_error":
        return path, str(details["ctx"]["error"])
    message = details["msg"][:1].lower() + details["msg"][1:]
    return path, f"{message}, got {details['input']!r}"


def _is_variant(part: Any) -> bool:
    """Pydantic names the branch of a union in the location; a person wants the dotted path alone."""
    names = ("int", "float", "str", "bool", "constrained-int", "constrained-str")
    return isinstance(part, str) and (part in names or part.endswith("]"))


def _known_keys(location: Sequence[str]) -> list[str]:
    model: type[BaseModel] = RunConfig
    for part in location:
        annotation = model.model_fields[part].annotation
        options = [annotation, *get_args(annotation)]
        model = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return list(model.model_fields)
