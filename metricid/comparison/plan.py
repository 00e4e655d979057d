"""The plan of a comparison: which runs, how long, and the file that a continued comparison holds to."""

import copy
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from metricid._version import __version__
from metricid.comparison.entries import Entry
from metricid.config import RunConfig
from metricid.data.factory import build_splits
from metricid.data.samplers import build_sampler
from metricid.errors import InputError
from metricid.losses import LOSSES
from metricid.training.run_folder import changed_options, write_json

PLAN = "plan.json"
_PARTNER_KINDS = ("pair", "tuple", "ranking")
_FEWEST_PARTNERS = 0.1  # share of the images of a batch that have another image of their identity in it
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class PlannedRun:
    """One training of a comparison.

    Attributes:
        entry: name of the objective.
        seed: of weights, batches and augmentation.
        folder: the run folder.
        recipe: the whole recipe as plain values, but for the device.
    """

    entry: str
    seed: int
    folder: Path
    recipe: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """Everything that the runs of a comparison have in common, and in what they differ.

    Attributes:
        folder: of the comparison.
        recipe: resolved recipe; its objective, seed and length are those of no run.
        entries: the objectives.
        seeds: each objective runs once with each.
        images: images that every run sees.
        budget: seconds of training that `images` was chosen for; None if it was given.
        trial: objective -> images per second in the short trial that `images` was chosen by.
        left_out: objective -> why its trial failed, so that it had no say in the number of images.
    """

    folder: Path
    recipe: dict[str, Any]
    entries: tuple[Entry, ...]
    seeds: tuple[int, ...]
    images: int
    budget: float | None = None
    trial: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def runs(self) -> list[PlannedRun]:
        """All runs, seed by seed, so that the first seed of all objectives is done before any second one."""
        return [self.run(entry, seed) for seed in self.seeds for entry in self.entries]

    def run(self, entry: Entry, seed: int) -> PlannedRun:
        """The run of an objective with a seed."""
        name = f"{entry.slug}_seed{seed}"
        recipe = copy.deepcopy(self.recipe)
        recipe |= {"name": name, "seed": seed, "runs": str(self.folder)}
        recipe |= {"objective": copy.deepcopy(entry.objective), "balance": copy.deepcopy(entry.balance)}
        recipe["train"] |= {"epochs": None, "images": self.images}
        if entry.sampler is not None:
            recipe["data"]["sampler"] = copy.deepcopy(entry.sampler)
        return PlannedRun(entry.name, seed, self.folder / name, recipe)

    def write(self) -> None:
        """Writes the plan file."""
        values = {
            "metricid": __version__,
            "recipe": self.recipe,
            "entries": [entry.plain() for entry in self.entries],
            "seeds": list(self.seeds),
            "images": self.images,
            "budget_seconds": self.budget,
            "trial_images_per_second": self.trial,
            "trial_failures": self.left_out,
        }
        write_json(self.folder / PLAN, values)


def read_plan(folder: Path) -> Plan | None:
    """The plan of a folder; None if it holds no comparison.

    Raises:
        InputError: the file is damaged, or the folder holds something else.
    """
    file = folder / PLAN
    if not file.is_file():
        if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise InputError(f"{folder}: holds other files and no {PLAN}; choose another --name")
        return None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return Plan(
            folder,
            dict(values["recipe"]),
            tuple(
                Entry(e["name"], e["objective"], e["balance"], e.get("sampler")) for e in values["entries"]
            ),
            tuple(int(seed) for seed in values["seeds"]),
            int(values["images"]),
            values["budget_seconds"],
            dict(values["trial_images_per_second"]),
            dict(values.get("trial_failures", {})),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: damaged; choose another --name, or remove {folder}") from error


def join_plans(old: Plan, new: Plan) -> Plan:
    """The plan that a continued comparison follows: the old one, with objectives and seeds added.

    Args:
        old: of the folder.
        new: as asked for now; its images are those of the old one unless others were asked for.

    Raises:
        InputError: they are two comparisons; one line says in what they differ.
    """
    changed = changed_options(
        _shared(old.recipe), RunConfig.model_validate_json(json.dumps(_shared(new.recipe)))
    )
    known = {entry.name: entry for entry in old.entries}
    for entry in new.entries:
        if entry.name in known and known[entry.name] != entry:
            was, now = known[entry.name].plain(), entry.plain()
            changed += [
                f"{entry.name}: {key}: {was[key]} -> {now[key]}" for key in was if was[key] != now[key]
            ]
    missing = [name for name in known if name not in {entry.name for entry in new.entries}]
    if missing:
        changed.append(f"objectives: {', '.join(missing)} would be left out")
    if new.seeds[: len(old.seeds)] != old.seeds:
        changed.append(f"seeds: {', '.join(map(str, old.seeds))} -> {', '.join(map(str, new.seeds))}")
    if new.images != old.images:
        changed.append(f"images: {old.images} -> {new.images}")
    if changed:
        raise InputError(
            f"{old.folder}: holds another comparison ({'; '.join(changed[:4])}"
            f"{'; ...' if len(changed) > 4 else ''}); choose another --name"
        )
    return replace(new, budget=old.budget, trial=old.trial, left_out=old.left_out)


def _shared(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe without what it says of no run."""
    free = {"objective": [{"loss": "softmax"}], "balance": None, "seed": 0}
    return recipe | free | {"train": recipe["train"] | {"epochs": None, "images": 1}}


def parse_budget(text: str) -> float:
    """Seconds of `90s`, `10m`, `1.5h` or `1h30m`.

    Raises:
        InputError: not such a time, or zero.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)([smh])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise InputError(f"--budget: {text!r} is no time; write 90s, 10m, 1.5h or 1h30m")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if seconds <= 0:
        raise InputError(f"--budget: {text!r} leaves no time to train; give more")
    return seconds


@dataclass(frozen=True)
class Batches:
    """What the sampler of a recipe gives.

    Attributes:
        step_images: images of one optimiser step.
        recipe_images: images that the recipe's own length comes to.
        partners: share of the images of a batch that have another image of their identity in it.
    """

    step_images: int
    recipe_images: int
    partners: float


def look_at_batches(config: RunConfig) -> Batches:
    """Opens the data of a recipe and draws the first batches, without reading an image.

    Raises:
        InputError: data that cannot be found or used.
    """
    train = build_splits(config.data, make_queries=config.evaluation.query_gallery).train
    labels = train.labels({name: label for label, name in enumerate(train.identity_names())})
    sampler = build_sampler(config.data.sampler, labels=labels, seed=config.seed, rank=0, world_size=1)
    step = sampler.batch_size * config.train.accumulate
    if config.train.images is not None:
        steps = round(config.train.images / step)
    else:
        assert config.train.epochs is not None
        steps = config.train.epochs * sampler.num_batches(0) // config.train.accumulate
    shares = []
    for _, rows in zip(range(20), sampler.batches(0), strict=False):
        _, place, counts = np.unique(labels[rows], return_inverse=True, return_counts=True)
        shares.append(float(np.mean(counts[place] > 1)))
    return Batches(step, max(1, steps) * step, float(np.mean(shares)))


def partner_problems(entries: Sequence[Entry], sampler: dict[str, Any], partners: float) -> list[str]:
    """Objectives with a loss that compares images of one identity, where batches hold next to none."""
    if partners >= _FEWEST_PARTNERS:
        return []
    problems = []
    for entry in entries:
        names = [term["loss"] for term in entry.objective if "task" not in term]
        known = [name for name in names if name in LOSSES.names()]
        needy = [name for name in known if getattr(LOSSES.get(name), "kind", "") in _PARTNER_KINDS]
        if needy:
            problems.append(
                f"{entry.name}: {needy[0]} compares images of one identity, but with sampler "
                f"{sampler['name']!r} only {partners:.0%} of the images of a batch have another of theirs; "
                "set data.sampler='{name: pk, identities: 16, images: 4}' for all objectives"
            )
    return problems
