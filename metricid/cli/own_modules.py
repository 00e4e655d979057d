"""Modules of the user's own, with the losses, samplers, ... that they register: METRICID_IMPORT."""

import importlib
import importlib.util
import os
import sys

from metricid.errors import InputError

OWN_MODULES = "METRICID_IMPORT"
_importing: list[str] = []


def own_modules() -> list[str]:
    """The modules that the user wants in every process: `METRICID_IMPORT=module,module`."""
    return [name.strip() for name in os.environ.get(OWN_MODULES, "").split(",") if name.strip()]


def import_own_modules() -> None:
    """Imports the user's modules, so that the losses, samplers, ... that they register are known.

    They may lie in the current folder, which the path of a console script lacks; it is searched last.

    Raises:
        InputError: one cannot be imported.
    """
    names = own_modules()
    if names and not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())
    for name in names:
        if name.endswith(".py") or not all(part.isidentifier() for part in name.split(".")):
            raise InputError(
                f"{OWN_MODULES}: {name!r} is no name of a module; for the file my_losses.py it is my_losses"
            )
        _importing.append(name)
        try:
            _take_script(name)
            importlib.import_module(name)
        except (Exception, SystemExit) as error:
            missing = isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}.")
            raise InputError(
                f"{OWN_MODULES}: {name} cannot be imported ({_first_line(error)}); "
                + (
                    f"it must be an installed package, or in PYTHONPATH or {os.getcwd()}"
                    if missing
                    else f"correct it (python -c 'import {name}' shows where), or unset the variable"
                )
            ) from error
        finally:
            _importing.pop()


def _take_script(name: str) -> None:
    """Makes the program that runs the module of that name, if it is; it would register everything twice."""
    script = getattr(sys.modules["__main__"], "__file__", None)
    if script is None or name in sys.modules:
        return
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.origin and os.path.realpath(spec.origin) == os.path.realpath(script):
        sys.modules[name] = sys.modules["__main__"]


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def refuse_while_importing() -> None:
    """Keeps a module that runs a command when it is imported from starting that command once more.

    Raises:
        RuntimeError: called while a module of METRICID_IMPORT is imported.
    """
    if _importing:
        raise RuntimeError("it runs metricid when it is imported; do that below `if __name__ == '__main__':`")
