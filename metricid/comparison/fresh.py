"""Whether the process of a run knows all losses and samplers: a script may have registered some here alone.

`python -m metricid.comparison.fresh` checks the recipes of a JSON list on stdin, and writes what is wrong
with them to stdout as JSON.
"""

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path

from metricid.cli.own_modules import OWN_MODULES, import_own_modules, own_modules
from metricid.comparison.plan import PlannedRun
from metricid.data.samplers import SAMPLERS
from metricid.data.transforms import PRESETS
from metricid.errors import InputError
from metricid.losses.adversarial import ADVERSARIAL
from metricid.losses.balance import BALANCES
from metricid.losses.catalog import LOSSES
from metricid.losses.distillation import DISTILLATION
from metricid.losses.regression import TASKS
from metricid.losses.weights import REGULARISERS
from metricid.mining.miners.base import MINERS
from metricid.training.build import check_recipe

_REGISTRIES = (LOSSES, REGULARISERS, DISTILLATION, ADVERSARIAL, TASKS, BALANCES, MINERS, SAMPLERS, PRESETS)


def fresh_problems(runs: Sequence[PlannedRun]) -> list[str]:
    """What runs name that is registered in this process, but would not be in their own.

    Only if something from outside the package is registered here, a fresh process is asked: what a class's
    module says of where it is registered can be wrong.

    Args:
        runs: the first one of each objective is looked at.

    Returns:
        One line, or none.
    """
    modules = {
        name: registry.get(name).__module__
        for registry in _REGISTRIES
        for name in registry.names()
        if not registry.get(name).__module__.startswith("metricid.")
    }
    if not modules or not runs:
        return []
    firsts: dict[str, PlannedRun] = {}
    for run in runs:
        firsts.setdefault(run.entry, run)
    unknown, problem = _ask(json.dumps([run.recipe for run in firsts.values()]), tuple(own_modules()))
    if problem:
        return [problem]
    lacking = {words: modules[name] for words, name in unknown if name in modules}
    return [_refusal(list(lacking), set(lacking.values()))] if lacking else []


@lru_cache(maxsize=1)  # asked again when the runs begin
def _ask(recipes: str, _modules: tuple[str, ...]) -> tuple[list[tuple[str, str]], str]:
    """What a fresh process does not know, as (words, name), and why it failed; empty if it did not."""
    done = subprocess.run([sys.executable, "-m", __name__], input=recipes, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return [], f"the process of a run would fail: {said[-1]}"
    unknown = [
        each for text in json.loads(done.stdout) for each in re.findall(r"unknown ([\w ]+ '(.+?)')", text)
    ]
    return unknown, ""


def _refusal(lacking: Sequence[str], modules: Collection[str]) -> str:
    """One line about what is lacking, such as "loss 'mine'", and the modules of its classes."""
    is_are, them = ("is", "it") if len(lacking) == 1 else ("are", "them")
    given = own_modules()
    needed = sorted(_module_name(module) for module in modules)
    text = (
        f"{', '.join(lacking)} {is_are} registered in this process only, but each run is a process of its "
        f"own; set {OWN_MODULES} to the module that registers {them}"
    )
    if set(needed) <= set(given):
        return f"{text} when it is imported: {', '.join(needed)} does not (`if __name__ == '__main__':`?)"
    if "" in needed:
        return f"{text}, a file such as my_losses.py ({OWN_MODULES}=my_losses)"
    return f"{text}, as in {OWN_MODULES}={','.join(dict.fromkeys([*given, *needed]))}"


def _module_name(module: str) -> str:
    """By which another process can import a class's module; empty for a session without a file."""
    if module != "__main__":
        return module
    program = sys.modules["__main__"]
    spec = getattr(program, "__spec__", None)
    return spec.name if spec is not None else Path(getattr(program, "__file__", None) or "").stem


def main() -> None:
    """Checks recipes as the process of a run does."""
    recipes, said = json.load(sys.stdin), []
    try:
        with contextlib.redirect_stdout(sys.stderr):
            import_own_modules()
    except InputError as error:
        sys.exit(str(error))
    for recipe in recipes:
        try:
            check_recipe(recipe, recipe["name"])
        except InputError as error:
            said.append(str(error))
    print(json.dumps(said))


if __name__ == "__main__":
    main()
