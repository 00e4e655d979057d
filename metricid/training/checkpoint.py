"""The whole state of a run in one file that is either whole or absent."""

import random
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from metricid.errors import InputError
from metricid.files import atomic_write
from metricid.models.embedder import Embedder, EmbedderConfig, embedder_from_dict
from metricid.models.weights import first_line

FORMAT = 1
KEYS = {"format", "embedder", "model", "ema", "config"}
STEP_KEYS = {
    *("objective", "optimizer", "scaler", "ema_updates", "random", "world_size", "position"),
    *("label_map", "fingerprint", "skipped_images", "log_position"),
}
STEP_FILE = re.compile(r"step-(\d{9})\.pt")


class CheckpointStore:
    """The checkpoints of one run: `step-NNNNNNNNN.pt`, the newest `keep` of them, and `best.pt`.

    Args:
        folder: where they lie.
        keep: how many step checkpoints stay.
    """

    def __init__(self, folder: Path, keep: int = 2):
        self.folder = folder
        self.keep = keep

    @property
    def best(self) -> Path:
        """The checkpoint of the best validation; it may not exist."""
        return self.folder / "best.pt"

    def steps(self) -> list[Path]:
        """Step checkpoints, newest first."""
        if not self.folder.is_dir():
            return []
        return sorted((f for f in self.folder.iterdir() if STEP_FILE.fullmatch(f.name)), reverse=True)

    def save(self, state: dict[str, Any], step: int) -> Path:
        """Writes the state of a step, then removes the oldest beyond `keep`.

        Raises:
            InputError: the disk is full or not writable; earlier checkpoints stay as they are.
        """
        path = self.folder / f"step-{step:09d}.pt"
        write_checkpoint(path, state)
        for old in self.steps()[self.keep :]:
            old.unlink(missing_ok=True)
        return path

    def newest(self, warn: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
        """The newest readable step checkpoint; damaged ones are named by `warn` and passed over.

        Raises:
            InputError: there are checkpoints and all of them are damaged.
        """
        damaged = []
        for path in self.steps():
            try:
                state = read_checkpoint(path)
                if not state.keys() >= STEP_KEYS:
                    raise InputError(f"{path}: lacks {', '.join(sorted(STEP_KEYS - state.keys()))}")
                return path, state
            except InputError as error:
                damaged.append(path)
                warn(f"{error}; trying the checkpoint before it")
        if damaged:
            raise InputError(
                f"{self.folder}: every checkpoint is damaged ({len(damaged)} of them); remove the run folder "
                "to start again, or give the run another name: name=..."
            )
        return None


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes a checkpoint atomically."""
    with atomic_write(path) as file:
        target: Any = _Target(file)
        try:
            torch.save({**state, "format": FORMAT}, target)
        except RuntimeError as error:
            if target.error is None:
                raise
            raise target.error from error


class _Target:
    """A file that remembers why a write failed: torch.save reports a full disk as a fault of its own."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint after checking every stored checksum; code inside it is not run.

    Raises:
        InputError: missing, damaged, or not a checkpoint of metricid.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            raise InputError(f"{path}: damaged (wrong checksum in {broken})")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path}: damaged or not a checkpoint ({first_line(error)})") from error
    if not isinstance(state, dict) or "format" not in state or "embedder" not in state:
        raise InputError(
            f"{path}: not a checkpoint of metricid; to start from its weights use model.weights={path}"
        )
    if not state.keys() >= KEYS:
        raise InputError(f"{path}: not a whole checkpoint, it lacks {', '.join(sorted(KEYS - state.keys()))}")
    if state["format"] != FORMAT:
        raise InputError(f"{path}: checkpoint format {state['format']}, this version reads format {FORMAT}")
    return state


def open_checkpoint(path: Path, warn: Callable[[str], None]) -> tuple[Path, dict[str, Any]]:
    """The checkpoint of a file or run folder, read: the best one if the run validated, else the newest.

    Of a run folder, a damaged checkpoint is named by `warn` and passed over.

    Raises:
        InputError: nothing there, or nothing readable.
    """
    if not path.is_dir():
        if not path.exists():
            raise InputError(f"{path}: no such run folder or checkpoint")
        return path, read_checkpoint(path)
    store = CheckpointStore(path / "checkpoints")
    found = [store.best, *store.steps()] if store.best.is_file() else store.steps()
    if not found:
        raise InputError(f"{path}: holds no checkpoint; expected {store.folder}/step-*.pt or best.pt")
    for candidate in found:
        try:
            return candidate, read_checkpoint(candidate)
        except InputError as error:
            warn(f"{error}; trying another checkpoint of the run")
    raise InputError(f"{path}: every checkpoint is damaged ({len(found)} of them)")


def load_embedder(state: dict[str, Any], source: Path) -> Embedder:
    """Builds the embedder of a checkpoint and loads its weights: the averaged ones if there are any.

    Raises:
        InputError: the weights do not belong to the described structure.
    """
    embedder = Embedder(embedder_from_dict(state["embedder"]))
    load_weights(embedder, state["ema"] or state["model"], source, embedder.config)
    return embedder.eval()


def load_weights(
    module: torch.nn.Module, weights: dict[str, Any], source: Path, config: EmbedderConfig
) -> None:
    """Loads weights strictly.

    Raises:
        InputError: names or shapes of another architecture.
    """
    try:
        module.load_state_dict(weights)
    except (RuntimeError, AttributeError) as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]] or [first_line(error)]
        raise InputError(
            f"{source}: a checkpoint of another architecture than {config.backbone} with neck {config.neck} "
            f"({lines[0][:160]})"
        ) from error


def random_state() -> dict[str, Any]:
    """The state of every random generator that a step may use."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    assert isinstance(keys, np.ndarray)
    version, internal, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": [
            str(kind),
            torch.from_numpy(keys.astype(np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ],
        "python": [version, list(internal), gauss_next],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """The inverse of `random_state`."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and PyTorch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
