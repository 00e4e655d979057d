"""`metricid COMMAND ...`: the door to all commands, and the one place where errors become exit codes."""

import argparse
import importlib
import io
import os
import re
import sys
from collections.abc import Sequence

from metricid._version import __version__
from metricid.cli.own_modules import import_own_modules, refuse_while_importing
from metricid.errors import InputError

COMMANDS = {
    "train": "train an embedding model from a recipe, and evaluate it",
    "compare": "several objectives on equal terms: a leaderboard with intervals over seeds",
    "embed": "turn images into embeddings: one file for search and evaluation",
    "evaluate": "evaluate a checkpoint, stored embeddings or a baseline",
    "export": "write a trained model as ONNX, in float or int8, checked on images",
    "advise": "read a table and say which objective, sampler and margin to start from, and why",
    "prepare": "turn a data set into manifests: check it, split it by identity",
    "demo": "a local page: search with a photo, compare two, browse confusions",
    "report": "one HTML page about a run: curves, ranked lists, confusions, map, training",
    "suspects": "labels that are probably wrong, by stored embeddings",
    "search": "index embeddings, find the most alike, add and forget people",
}
_STORE = re.compile(r"(^|=)(pgvector|qdrant|postgres|postgresql)://")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: the command line without the program; that of the process if None.

    Returns:
        0, 2 for a mistake of the user's, 128 + N when signal N ended it. Our own faults raise.

    Raises:
        RuntimeError: called while a module of METRICID_IMPORT is imported, which would start it once more.
    """
    refuse_while_importing()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="metricid",
        description="Metric learning for faces and re-identification.",
        epilog="commands:\n" + "\n".join(f"  {name:10} {text}" for name, text in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"metricid {__version__}")
    parser.add_argument("command", choices=list(COMMANDS), metavar="COMMAND")
    command = parser.parse_args(arguments[:1]).command
    for stream in (sys.stdout, sys.stderr):  # names of files need not be UTF-8
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    rank = os.environ.get("RANK", "0")
    who = f"metricid {command}" if rank == "0" else f"[rank {rank}] metricid {command}"
    try:
        import_own_modules()
        module = importlib.import_module(f"metricid.cli.{command}")
        own = argparse.ArgumentParser(prog=f"metricid {command}", description=COMMANDS[command])
        module.add_arguments(own)
        if command != "search" and any(_STORE.search(argument) for argument in arguments[1:]):
            raise InputError("the URL of a store is for metricid search; give a file or a folder here")
        return module.run(_parse(own, arguments[1:]))
    except InputError as error:
        print(f"{who}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"metricid {command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a name too long, a folder that may not be read, a full disk
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        print(f"{who}: {where}{error.strerror or error}", file=sys.stderr)
        return 2


def _parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """Takes words after options as well as before them."""
    try:
        return parser.parse_intermixed_args(arguments)
    except TypeError:  # a command with commands of its own
        options, rest = parser.parse_known_args(arguments)
    if "--" in rest:  # what follows are words, whatever they begin with
        end = rest.index("--")
        strange, rest = rest[:end], rest[:end] + rest[end + 1 :]
    else:
        strange = rest
    if rest and ("words" not in options or any(word.startswith("-") for word in strange)):
        shown = " ".join("***" if "://" in word else word for word in rest)  # URLs hold passwords
        parser.error(f"unrecognized arguments: {shown}")
    if rest:
        options.words += rest
    return options


if __name__ == "__main__":
    sys.exit(main())
