"""`metricid train RECIPE [a.b=c ...]`."""

import argparse
import json
import sys

import yaml

from metricid.config import find_recipe, read_recipe
from metricid.errors import InputError
from metricid.training.build import check_recipe
from metricid.training.distributed import start_world, stop_world
from metricid.training.session import train
from metricid.training.signals import Stopped


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("recipe", help="a .yaml file, or the name of a recipe of the package")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="for example optim.lr=0.01 name=second")
    parser.add_argument("--print-config", action="store_true", help="print the resolved recipe and end")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")


def run(options: argparse.Namespace) -> int:
    """Trains, evaluates, and prints the result table, the run folder and its report."""
    file = find_recipe(options.recipe)
    config = check_recipe(read_recipe(file, options.overrides), str(file))
    if options.print_config:
        yaml.safe_dump(config.plain(), sys.stdout, sort_keys=False)
        return 0
    world = start_world(config.device)
    try:
        outcome = train(config, world)
    except Stopped as stopped:
        if world.is_main:
            print(f"metricid train: {stopped}", file=sys.stderr)
        return 128 + stopped.number
    finally:
        stop_world()
    if world.is_main:
        print(json.dumps(outcome.values, indent=2) if options.json else outcome.text, flush=True)
        if outcome.problem is not None:
            raise InputError(outcome.problem)
    return 0
