"""Builds every objective's run once before anything is trained: what would fail at the start is told now."""

from collections.abc import Sequence

import torch

from metricid.comparison.fresh import fresh_problems
from metricid.comparison.plan import PlannedRun
from metricid.errors import InputError
from metricid.training.build import build_run, check_recipe
from metricid.training.distributed import World


def build_problems(runs: Sequence[PlannedRun]) -> list[str]:
    """What keeps runs from being built: a missing teacher or column, vectors that no term has, ...

    They are built on the CPU in single precision, one after another; nothing is written.

    Args:
        runs: one of each objective.

    Returns:
        One line for each objective that cannot be built; what all of them say stands there once. Names that
        the processes of the runs would not know stand alone.
    """
    if lacking := fresh_problems(runs):
        return lacking
    said = {}
    for run in runs:
        try:
            recipe = run.recipe | {"device": "cpu", "train": run.recipe["train"] | {"precision": "fp32"}}
            build_run(check_recipe(recipe, run.entry), World(0, 1, torch.device("cpu")))
        except InputError as error:
            said[run.entry] = str(error)
    if len(said) == len(runs) and len(set(said.values())) == 1:
        return list(said.values())[:1]
    return [f"{name}: {text}" for name, text in said.items()]
