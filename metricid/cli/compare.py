"""`metricid compare RECIPE --losses a,b`: objectives side by side, on equal terms."""

import argparse
import json
import os
import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from metricid.comparison.entries import OWN, Entry, check_entries, parse_losses, read_objectives
from metricid.comparison.leaderboard import Leaderboard, rank
from metricid.comparison.outcomes import known_measures, read_outcomes
from metricid.comparison.page import render
from metricid.comparison.plan import (
    Batches,
    Plan,
    join_plans,
    look_at_batches,
    parse_budget,
    partner_problems,
    read_plan,
)
from metricid.comparison.precheck import build_problems
from metricid.comparison.queue import (
    Device,
    failure_of,
    forget_failure,
    is_finished,
    locked_folder,
    work_off,
)
from metricid.comparison.trial import measure_speeds
from metricid.comparison.writers import text_table, values, write_all
from metricid.config import DEVICE, RunConfig, find_recipe, read_recipe
from metricid.errors import InputError
from metricid.losses.balance import balance_problems
from metricid.losses.objective import Objective
from metricid.registry import unknown
from metricid.training.build import check_recipe
from metricid.training.distributed import pick_device
from metricid.training.signals import StopRequest

# Many runs: a report of each costs time, a second checkpoint of each disk space. A recipe may say otherwise.
_OWN_DEFAULTS: dict[str, dict[str, Any]] = {"log": {"report": False}, "checkpoint": {"keep": 1}}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("recipe", help="a .yaml file, or the name of a recipe of the package")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="for all runs, such as data.root=/data")
    parser.add_argument("--losses", metavar="A,B+C:x=1", help="objectives: names, sums, options; 'recipe'")
    parser.add_argument("--objectives", type=Path, metavar="FILE", help="YAML: name -> list of terms")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each objective (default: 3)")
    parser.add_argument("--images", type=int, help="images that each run sees (default: the recipe's)")
    parser.add_argument(
        "--budget", metavar="10m", help="training time of the slowest objective, in its place"
    )
    parser.add_argument("--devices", help="cpu, or cuda:0,cuda:1: one run at a time on each")
    parser.add_argument("--protocols", help="what is measured (default: the recipe's, and verification)")
    parser.add_argument("--by", metavar="MEASURE", help="what to rank by (default: the recipe's best)")
    parser.add_argument("--name", help="of the comparison (default: the recipe's)")
    parser.add_argument("--retry", action="store_true", help="repeat the runs that failed")
    parser.add_argument("--list", action="store_true", help="print the plan and end")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(options: argparse.Namespace) -> int:
    """Trains what is not trained yet; prints the leaderboard and writes it after every run."""
    config, entries = _checked(options)
    devices = _devices(options.devices, config.device)
    by = _ranked_by(options.by, config)
    folder = Path(config.runs) / f"compare_{config.name}"
    old = read_plan(folder)
    plan = _plan(options, config, entries, folder, old, devices[0])
    if options.list:
        _print_plan(plan, devices, options.json)
        return 0
    with locked_folder(folder):
        plan.write()
        if options.retry:
            for each in plan.runs():
                forget_failure(each)
        return _work(plan, by, devices, as_json=options.json)


def _work(plan: Plan, by: str, devices: Sequence[Device], *, as_json: bool) -> int:
    todo = [run for run in plan.runs() if not is_finished(run) and failure_of(run) is None]
    total = len(plan.entries) * len(plan.seeds)
    print(
        f"{total} runs of {plan.images:,} images in {plan.folder}; {total - len(todo)} have ended before",
        file=sys.stderr,
    )
    board = _write(plan, by)
    with StopRequest(impatient=False) as stop:
        work_off(todo, devices, stop, lambda _: _write(plan, by))
    if todo:
        board = _write(plan, by)
    if stop.number is not None:
        print(
            f"metricid compare: stopped by {signal.Signals(stop.number).name}; {board.finished} of {total} "
            "runs have results; the same command continues",
            file=sys.stderr,
        )
        return 128 + stop.number
    if as_json:
        print(json.dumps(values(board), indent=2))
    else:
        print(f"{text_table(board)}\nwritten: {plan.folder}/compare.html, leaderboard.md, .csv, .json")
    failed = sum(len(row.failures) for row in board.rows)
    if failed:
        raise InputError(f"{failed} of {total} runs failed; the leaderboard says why, --retry repeats them")
    return 0


def _write(plan: Plan, by: str) -> Leaderboard:
    board = rank(plan, read_outcomes(plan), by)
    write_all(board, render(board))
    return board


def _checked(options: argparse.Namespace) -> tuple[RunConfig, list[Entry]]:
    """The recipe and the objectives; every mistake in them at once."""
    file = find_recipe(options.recipe)
    recipe = read_recipe(file, options.overrides)
    problems = _number_problems(options)
    if options.name is not None and not problems:
        recipe["name"] = options.name
    for section, own in _OWN_DEFAULTS.items():
        if isinstance(recipe.get(section) or {}, dict):
            recipe[section] = own | (recipe.get(section) or {})
    if isinstance(recipe.get("evaluation") or {}, dict):
        recipe["evaluation"] = _evaluation(options, recipe.get("evaluation") or {})
    config = None
    entries: list[Entry] = []
    try:
        config = check_recipe(recipe, str(file))
    except InputError as error:
        problems.append(str(error))
    terms = recipe.get("objective")
    plain = {"objective": terms if isinstance(terms, list) else [], "balance": recipe.get("balance")}
    for read in (
        lambda: parse_losses(options.losses, plain) if options.losses is not None else [],
        lambda: read_objectives(options.objectives) if options.objectives is not None else [],
    ):
        try:
            entries += read()
        except InputError as error:
            problems.append(str(error))
    if options.losses is None and options.objectives is None:
        problems.append(f"--losses: name the objectives, such as --losses softmax,arcface,{OWN}")
    for check in (check_entries, _check_terms):
        try:
            check(entries)
        except InputError as error:
            problems.append(str(error))
    if problems or config is None:
        raise InputError("\n".join(problems))
    return config, entries


def _evaluation(options: argparse.Namespace, given: dict[str, Any]) -> dict[str, Any]:
    """The recipe's evaluation with verification, or the protocols asked for; baselines need no training."""
    protocols = given.get("protocols", ["identification"])
    if options.protocols is not None:
        protocols = [name.strip() for name in options.protocols.split(",")]
    elif isinstance(protocols, list) and "verification" not in protocols:
        protocols = [*protocols, "verification"]
    return given | {"protocols": protocols, "baselines": []}


def _check_terms(entries: Sequence[Entry]) -> None:
    problems = []
    for entry in entries:
        found = [
            (f"objective.{path}".rstrip("."), text) for path, text in Objective.problems(entry.objective)
        ]
        if entry.balance is not None:
            found += [("balance", text) for text in balance_problems(entry.balance)]
        problems += [f"{entry.name}: {path}: {text}" for path, text in found]
    if problems:
        raise InputError("\n".join(problems))


def _number_problems(options: argparse.Namespace) -> list[str]:
    problems = []
    if not 1 <= options.seeds <= 100:
        problems.append(f"--seeds: must be 1 to 100, got {options.seeds}")
    if options.images is not None and options.images < 1:
        problems.append(f"--images: must be at least 1, got {options.images}")
    if options.images is not None and options.budget is not None:
        problems.append("--budget: give either --images or --budget; both say how long a run is")
    if options.name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", options.name):
        problems.append(f"--name: {options.name!r}: letters, digits, '.', '_' and '-' make a folder's name")
    if options.budget is not None:
        try:
            parse_budget(options.budget)
        except InputError as error:
            problems.append(str(error))
    return problems


def _ranked_by(by: str | None, config: RunConfig) -> str:
    known = known_measures(config.evaluation.protocols)
    if not known:
        raise InputError("evaluation.protocols: is empty; name what the comparison measures")
    if by is not None and by not in known:
        raise InputError(f"--by: {unknown('measure', by, known)}")
    return by or config.evaluation.best


def _devices(text: str | None, default: str) -> list[Device]:
    names = [name.strip() for name in (text or default).split(",")]
    if len(set(names)) < len(names):
        raise InputError(f"--devices: {text}: a device is named twice; each trains one run at a time")
    if any(not re.fullmatch(DEVICE, name) for name in names):
        raise InputError(f"--devices: {text}: each is auto, cpu, mps, cuda or cuda:N")
    if len(names) > 1 and not all(name.startswith("cuda:") for name in names):
        raise InputError(f"--devices: {text}: only GPUs (cuda:0,cuda:1) can share a comparison")
    devices = []
    for name in names:
        try:
            pick_device(name)
        except InputError as error:
            raise InputError(f"--devices: {str(error).removeprefix('device: ')}") from error
        environment = dict(os.environ)
        option = name
        if name.startswith("cuda:"):
            # A run then knows its GPU as `cuda` alone, and can be continued on another one.
            number, option = int(name.removeprefix("cuda:")), "cuda"
            visible = [each for each in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]
            environment["CUDA_VISIBLE_DEVICES"] = visible[number] if visible else str(number)
        devices.append(Device(name, option, environment))
    return devices


def _plan(
    options: argparse.Namespace,
    config: RunConfig,
    entries: Sequence[Entry],
    folder: Path,
    old: Plan | None,
    device: Device,
) -> Plan:
    """The plan asked for, joined with that of the folder."""
    batches = look_at_batches(config)
    seeds = tuple(range(config.seed, config.seed + options.seeds))
    plan = Plan(folder, config.plain(), tuple(entries), seeds, _images(options.images, batches))
    problems = [problem for entry in entries for problem in _batch_problems(plan, entry, batches, config)]
    firsts = [plan.run(entry, seeds[0]) for entry in entries]
    problems += build_problems([run for run in firsts if not run.folder.exists()])
    if problems:
        raise InputError("\n".join(problems))
    if options.budget is None:
        return plan if old is None else join_plans(old, plan)
    budget = parse_budget(options.budget)
    if old is not None:
        if old.budget != budget:
            was = f"{old.budget:.0f} s" if old.budget else f"{old.images} images"
            raise InputError(
                f"{folder}: holds another comparison (budget: {was} -> {budget:.0f} s); choose another --name"
            )
        return join_plans(old, replace(plan, images=old.images))
    print(f"a short trial of {len(entries)} objectives, to turn the budget into images", file=sys.stderr)
    speeds, failures = measure_speeds(firsts, device.option, device.environment)
    for name, reason in failures.items():
        print(f"{name}: its trial failed: {reason}; the images are chosen without it", file=sys.stderr)
    steps = max(1, int(min(speeds.values()) * budget // batches.step_images))
    return replace(plan, images=steps * batches.step_images, budget=budget, trial=speeds, left_out=failures)


def _batch_problems(plan: Plan, entry: Entry, batches: Batches, config: RunConfig) -> list[str]:
    """What keeps the batches of an objective from being its own, or like those of the others."""
    if entry.sampler is None:
        return partner_problems([entry], config.data.sampler, batches.partners)
    try:
        own = look_at_batches(check_recipe(plan.run(entry, plan.seeds[0]).recipe, entry.name))
    except InputError:
        return []  # building the run tells
    if own.step_images != batches.step_images:
        return [
            f"{entry.name}: its sampler gives {own.step_images} images to a step, that of the recipe "
            f"{batches.step_images}; make them equal"
        ]
    return partner_problems([entry], entry.sampler, own.partners)


def _images(asked: int | None, batches: Batches) -> int:
    """Whole steps, as the training rounds them."""
    if asked is None:
        return batches.recipe_images
    return max(1, round(asked / batches.step_images)) * batches.step_images


def _print_plan(plan: Plan, devices: Sequence[Device], as_json: bool) -> None:
    runs = plan.runs()
    slowest = min(plan.trial.values(), default=None)
    seconds = None if slowest is None else len(runs) * plan.images / slowest / len(devices)
    if as_json:
        listed = [
            {"objective": r.entry, "seed": r.seed, "folder": str(r.folder), "state": _state(r)} for r in runs
        ]
        print(json.dumps({"images": plan.images, "runs": listed, "most_training_seconds": seconds}, indent=2))
        return
    for each in runs:
        print(f"{each.entry}  seed {each.seed}  {_state(each)}  {each.folder}")
    time = "unknown without --budget" if seconds is None else f"at most about {seconds / 60:.0f} min"
    print(f"{len(runs)} runs of {plan.images:,} images; training time in all: {time}")


def _state(run: Any) -> str:
    if is_finished(run):
        return "finished"
    return "waiting" if failure_of(run) is None else "failed"
