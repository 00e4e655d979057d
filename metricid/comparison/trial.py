"""A short trial of each objective in a process of its own: how many images per second it trains.

`python -m metricid.comparison.trial FILE` trains each recipe of a JSON file for a few steps and writes what
it measured to stdout as JSON.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from metricid.cli.own_modules import import_own_modules
from metricid.comparison.plan import PlannedRun
from metricid.errors import InputError
from metricid.report.run_files import read_log
from metricid.training.build import build_run, check_recipe
from metricid.training.checkpoint import seed_everything
from metricid.training.distributed import start_world, stop_world
from metricid.training.trainer import Trainer

STEPS = 14
WARM_UP = 4  # the first steps allocate memory and choose kernels


def measure_speeds(
    runs: Sequence[PlannedRun], device: str, environment: Mapping[str, str]
) -> tuple[dict[str, float], dict[str, str]]:
    """Images per second of each objective, from a few steps each.

    Args:
        runs: one of each objective.
        device: as in a recipe.
        environment: of the process.

    Returns:
        Objective -> images per second, without those whose trial failed; and of these, objective -> why.

    Raises:
        InputError: no trial succeeded; the message is the first one's.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trial.json"
        recipes = {run.entry: run.recipe | {"device": device, "runs": folder} for run in runs}
        file.write_text(json.dumps(recipes), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", __name__, str(file)],
            capture_output=True,
            text=True,
            env=dict(environment),
            start_new_session=True,
        )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise InputError(f"the trial failed: {lines[-1]}")
    speeds, failures = json.loads(done.stdout)
    if not speeds:
        name, reason = next(iter(failures.items()))
        raise InputError(f"the trial failed: {name}: {reason}")
    return speeds, failures


def _speed(recipe: dict[str, Any], batch_steps: int) -> float:
    """Images per second of one objective after the first steps."""
    recipe["train"] |= {"epochs": None, "images": 1}
    recipe["evaluation"]["every"] = 0
    recipe["log"] |= {"every": 1, "tensorboard": False}
    recipe["checkpoint"] |= {"every_steps": None, "every_minutes": None}
    config = check_recipe(recipe, recipe["name"])
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    world = start_world(config.device)
    seed_everything(config.seed)
    run = build_run(config, world)
    trainer = Trainer(run, config.folder)
    trainer.total_steps = batch_steps
    trainer.fit()
    log = read_log(config.folder / "log.jsonl")
    assert log is not None
    windows = log.windows[WARM_UP:]
    images = log.windows[-1].images - log.windows[WARM_UP - 1].images
    return images / sum(window.seconds for window in windows)


def main() -> None:
    """Measures every recipe of the file."""
    recipes = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    speeds: dict[str, float] = {}
    failures: dict[str, str] = {}
    try:
        with contextlib.redirect_stdout(sys.stderr):
            import_own_modules()
    except InputError as error:
        sys.exit(str(error))
    for name, recipe in recipes.items():
        try:
            with contextlib.redirect_stdout(sys.stderr):
                speeds[name] = _speed(recipe, STEPS)
        except (InputError, ValueError, RuntimeError) as error:  # the others are measured nevertheless
            failures[name] = " ".join(str(error).split())
    stop_world()
    print(json.dumps([speeds, failures]))


if __name__ == "__main__":
    main()
