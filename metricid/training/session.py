"""A whole run: build, train or continue, evaluate, write down."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from metricid.config import RunConfig
from metricid.errors import InputError
from metricid.evaluation import ProtocolResult, format_table
from metricid.files import atomic_write
from metricid.report.plots import plot_result
from metricid.training.build import Run, build_embedder, build_run
from metricid.training.checkpoint import load_embedder, open_checkpoint, seed_everything
from metricid.training.distributed import World, barrier, gather_objects
from metricid.training.embedding import Embedded
from metricid.training.run_folder import check_same_recipe, write_environment, write_json, write_recipe
from metricid.training.run_page import NO_TEST, REPORT, run_material, write_page
from metricid.training.tasks import TaskHeads
from metricid.training.trainer import Trainer
from metricid.training.validation import (
    embed_for_protocols,
    evaluate_model,
    evaluate_pixels,
    flip_text,
    run_protocols,
)


@dataclass(frozen=True)
class Outcome:
    """What a run ended with.

    Attributes:
        values: for programs.
        text: for people.
        problem: why there is no report, though one was asked for; the results are written nevertheless.
    """

    values: dict[str, Any]
    text: str
    problem: str | None = None


def train(config: RunConfig, world: World) -> Outcome:
    """Trains a recipe to its end and evaluates it; an unfinished run is continued, a finished one shown.

    Raises:
        InputError: whatever of the user's cannot be used.
        Stopped: a signal ended the training after its state was saved.
    """
    folder = config.folder
    check_same_recipe(folder, config)
    finished = _finished(config)
    if finished is not None:
        return finished
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    seed_everything(config.seed)
    run = build_run(config, world)
    with _locked(folder, world):
        seed_everything(config.seed + world.rank)
        trainer = Trainer(run, folder)
        trainer.resume()
        if world.is_main:
            _remove_temporary_files(folder)
            write_recipe(folder, config)
            write_environment(folder, config, run.splits.manifests(), world.device)
        barrier(world)
        trainer.fit()
        return _conclude(run, trainer, folder)


def _conclude(run: Run, trainer: Trainer, folder: Path) -> Outcome:
    config, world, test = run.config, run.world, run.splits.test
    position = trainer.position
    results: list[ProtocolResult] = []
    embedded: Embedded | None = None
    checkpoint, state = open_checkpoint(folder, trainer.say)
    if test is not None:
        source, data, options = run.splits.source, config.data, config.evaluation
        embedder = load_embedder(state, checkpoint).to(world.device)
        tasks = TaskHeads.load(state, embedder, checkpoint)
        watched = tasks.watching(embedder)
        embedded = embed_for_protocols(watched, source, test, data, options, world, run.precision)
        name = f"{config.name} ({checkpoint.name})"
        results += run_protocols(embedded, options, subject=name, how=flip_text(options))
        for baseline in options.baselines:
            if baseline == "pixels":
                results += evaluate_pixels(source, test, data, options)
            else:
                seed_everything(config.seed)
                embedder = build_embedder(config).to(world.device)
                results += evaluate_model(
                    embedder, source, test, data, options, world, run.precision, "untrained network"
                )
        results += tasks.results(embedded.table, source, config.data.size, world, name)
    seconds = position.train_seconds
    values = {
        "run": str(folder),
        "checkpoint": str(checkpoint),
        "steps": position.step,
        "images": position.images,
        "train_seconds": round(seconds, 1),
        "images_per_second": round(position.images / seconds, 1) if seconds else None,
        "wait_share": round(position.wait_seconds / seconds, 4) if seconds else None,
        "nonfinite_steps": position.nonfinite,
        "skipped_images": sorted(set().union(*gather_objects(trainer.skipped_images(), world))),
        "results": [result.to_json() for result in results],
    }
    text = _text(values, results)
    if world.is_main:
        if run.mined is not None:
            values["suspects"] = run.mined.write_suspects(folder)
        for result in results[: len(config.evaluation.protocols)]:
            plot_result(result, folder / "curves")
        with atomic_write(folder / "results.txt", "w") as file:
            file.write(text + "\n")
        write_json(folder / "results.json", values)
    barrier(world)
    if not (world.is_main and config.log.report):
        return Outcome(values, text)
    problem = _write_report(run, folder, embedded)
    return Outcome(values, text if problem else f"{text}\nreport: {folder / REPORT}", problem)


def _write_report(run: Run, folder: Path, embedded: Embedded | None) -> str | None:
    """Writes the page about a run whose results are on disk; what went wrong, if it could not be done."""
    notes = [NO_TEST] if embedded is None else []
    try:
        write_page(folder / REPORT, run_material(folder, run.config, embedded, run.splits.source, notes))
    except InputError as error:
        cause = error.__cause__
        reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(error)
        return (
            f"{folder}: the results are written, but {REPORT} could not be made ({reason}); "
            f"make it with: metricid report {folder}"
        )
    return None


def _text(values: dict[str, Any], results: list[ProtocolResult]) -> str:
    lines = [format_table(results)] if results else ["no test identities: nothing was evaluated"]
    speed = values["images_per_second"]
    lines.append(
        f"\ntrained on {values['images']} images in {values['train_seconds']:.0f} s"
        + (f" ({speed:.0f} img/s, {values['wait_share']:.1%} of it waiting for images)" if speed else "")
    )
    if values["nonfinite_steps"]:
        lines.append(f"{values['nonfinite_steps']} steps were skipped: their loss was not finite")
    if values["skipped_images"]:
        lines.append(f"{len(values['skipped_images'])} images could not be read and were skipped")
    lines.append(f"run folder: {values['run']}")
    return "\n".join(lines)


def _finished(config: RunConfig) -> Outcome | None:
    """The outcome of a run that has ended: its results are written when all else but the report is."""
    folder = config.folder
    results, text = folder / "results.json", folder / "results.txt"
    if not results.is_file() or not text.is_file():
        return None
    try:
        values = json.loads(results.read_text(encoding="utf-8"))
        table = text.read_text(encoding="utf-8").rstrip()
    except ValueError as error:
        raise InputError(f"{results}: damaged; remove it to evaluate the run again") from error
    lines = [f"{folder} is finished; these are its results\n", table]
    if (folder / REPORT).is_file():
        lines.append(f"report: {folder / REPORT}")
    elif config.log.report:
        lines.append(f"no report yet; make it with: metricid report {folder}")
    return Outcome(values, "\n".join(lines))


@contextmanager
def _locked(folder: Path, world: World) -> Iterator[None]:
    """Keeps a second process out of a run folder; the lock ends with the process, however it ends."""
    if not world.is_main:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "w")  # noqa: SIM115 (held for the whole run)
    except OSError as error:
        raise InputError(
            f"{folder}: the run folder cannot be made ({error.strerror}); choose runs=/path"
        ) from error
    with file:
        try:
            # Not flock: forked loader processes would hold it on for a moment after this process is killed.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise InputError(
                f"{folder}: another process is training here; wait for it or give name=..."
            ) from error
        yield


def _remove_temporary_files(folder: Path) -> None:
    """Removes what a killed process was writing."""
    for path in folder.rglob(".*.tmp"):
        path.unlink(missing_ok=True)
