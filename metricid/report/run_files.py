"""What lies in a run or results folder, read with care: it may be half written, edited or hostile."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metricid.errors import InputError
from metricid.evaluation import Curve, ProtocolResult

Floats = NDArray[np.float64]
MOST_TEXT = 200_000  # characters of a recipe that a page shows


@dataclass(frozen=True)
class Window:
    """A log line of a training: what happened since the line before it."""

    step: int
    images: int
    lr: float
    loss: float
    terms: Mapping[str, float]
    seconds: float
    waiting: float


@dataclass(frozen=True)
class Validation:
    """A validation during the training; metrics by protocol."""

    step: int
    metrics: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class TrainingLog:
    """`log.jsonl`.

    Attributes:
        windows: log lines of steps, ascending.
        validations: ascending.
        nonfinite: skipped steps.
        damaged: lines that could not be used; a last one that is being written is none of them.
    """

    windows: list[Window] = field(default_factory=list)
    validations: list[Validation] = field(default_factory=list)
    nonfinite: int = 0
    damaged: int = 0


def read_results(folder: Path) -> tuple[dict[str, Any], list[ProtocolResult]]:
    """`results.json` of a run or of `metricid evaluate -o`: its values, and its results as objects.

    Raises:
        InputError: there is none, or it is no such file.
    """
    file = folder / "results.json"
    if not file.is_file():
        raise InputError(
            f"{folder}: holds no results.json; train the run to its end, "
            f"or make results with: metricid evaluate RUN -o {folder}"
        )
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return values, [_result(entry) for entry in values["results"]]
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{file}: damaged or not a file of results; remove it and evaluate the run again"
        ) from error


def read_log(file: Path) -> TrainingLog | None:
    """A training log; None where there is none. Damaged lines are counted and left out.

    Raises:
        InputError: the file cannot be read at all.
    """
    if not file.is_file():
        return None
    try:
        lines = file.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from error
    windows: list[Window] = []
    validations: list[Validation] = []
    nonfinite = damaged = 0
    for line in lines:
        try:
            entry = json.loads(line)
            event = entry["event"]
            if event == "step":
                window = _window(entry, windows[-1].images if windows else 0)
                if windows and window.step <= windows[-1].step:
                    raise ValueError("steps go back")
                windows.append(window)
            elif event == "validation":
                metrics = {str(r["protocol"]): _numbers(r["metrics"]) for r in entry["results"]}
                validations.append(Validation(int(entry["step"]), metrics))
            elif event == "nonfinite":
                nonfinite += 1
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            damaged += line.endswith((b"\n", b"\r"))
    return TrainingLog(windows, validations, nonfinite, damaged)


def read_environment(file: Path) -> dict[str, Any] | None:
    """`environment.json`; None where there is none or it is no JSON object."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def read_text(file: Path) -> str | None:
    """A text file, cut where it is longer than a page should show; None where there is none."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text if len(text) <= MOST_TEXT else text[:MOST_TEXT] + "\n[cut]"


def _result(entry: Mapping[str, Any]) -> ProtocolResult:
    """The inverse of `ProtocolResult.to_json`."""
    curves = {
        str(name): Curve(_array(c["x"]), _array(c["y"]), str(c["x_label"]), str(c["y_label"]))
        for name, c in entry["curves"].items()
    }
    for curve in curves.values():
        if curve.x.shape != curve.y.shape or curve.x.ndim != 1 or not len(curve.x):
            raise ValueError("a curve whose x and y differ")
    return ProtocolResult(
        str(entry["protocol"]),
        str(entry["variant"]),
        {str(k): math.inf if v is None else float(v) for k, v in entry["metrics"].items()},
        {str(k): int(v) for k, v in entry["counts"].items()},
        curves,
        [str(note) for note in entry["notes"]],
        {str(k): (float(low), float(high)) for k, (low, high) in entry["intervals"].items()},
        [str(name) for name in entry["unsupported"]],
        str(entry["subject"]),
        {str(name): str(unit) for name, unit in entry.get("units", {}).items()},
    )


def _array(values: Any) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError("a curve with a value that is not finite")
    return array


def _window(entry: Mapping[str, Any], images_before: int) -> Window:
    images, speed = int(entry["images"]), float(entry["images_per_second"])
    seconds = max(images - images_before, 0) / speed if speed > 0 else 0.0
    share = min(max(float(entry["wait_share"]), 0.0), 1.0)
    return Window(
        int(entry["step"]),
        images,
        float(entry["lr"]),
        float(entry["loss"]),
        _numbers(entry["terms"]),
        seconds,
        seconds * share,
    )


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Numbers; a NaN or an infinity is text in the log."""
    return {str(name): float(value) for name, value in values.items() if value is not None}
