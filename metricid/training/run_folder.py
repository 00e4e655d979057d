"""What a run folder says of itself, so that nobody has to ask how a number came about."""

import json
import os
import platform
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError

from metricid._version import __version__
from metricid.config import RunConfig, differences
from metricid.data.manifest import Manifest
from metricid.errors import InputError
from metricid.files import atomic_write

PACKAGES = ("torch", "torchvision", "timm", "albumentations", "faiss-cpu", "numpy", "opencv-python-headless")
# These change where and how a run is watched, not what it computes: a resumed run may have others.
FREE_OPTIONS = ("runs", "log.", "checkpoint.", "data.workers", "data.prefetch", "data.root", "data.manifest")


def write_recipe(folder: Path, config: RunConfig) -> None:
    """Writes the resolved configuration."""
    with atomic_write(folder / "recipe.yaml", "w") as file:
        yaml.safe_dump(config.plain(), file, sort_keys=False)


def read_run_recipe(folder: Path) -> dict[str, Any] | None:
    """The resolved configuration of a run folder, None if there is no run.

    Raises:
        InputError: the file is not readable YAML.
    """
    file = folder / "recipe.yaml"
    if not file.is_file():
        return None
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: damaged; give the run another name: name=...") from error
    return values if isinstance(values, dict) else None


def changed_options(old: dict[str, Any], config: RunConfig) -> list[str]:
    """Options in which a stored recipe differs from this one and that change what is computed.

    An option that the stored recipe is too old to have had its default.
    """
    with suppress(ValidationError):
        old = RunConfig.model_validate_json(json.dumps(old, default=str)).plain()
    return [d for d in differences(old, config.plain()) if not d.startswith(FREE_OPTIONS)]


def check_same_recipe(folder: Path, config: RunConfig) -> None:
    """Refuses to continue a run under another recipe.

    Raises:
        InputError: names what differs.
    """
    old = read_run_recipe(folder)
    if old is None:
        return
    changed = changed_options(old, config)
    if changed:
        raise InputError(
            f"{folder}: holds a run with another recipe ({'; '.join(changed[:4])}"
            f"{'; ...' if len(changed) > 4 else ''}); give this one another name: name=..."
        )


def write_environment(
    folder: Path, config: RunConfig, manifests: dict[str, Manifest], device: torch.device
) -> None:
    """Writes versions, git revision, seed, device and a fingerprint of each manifest; saves the manifests."""
    for name, manifest in manifests.items():
        manifest.write(folder / "manifests" / f"{name}.csv")
    values = {
        "metricid": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git": git_revision(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "seed": config.seed,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpus": os.cpu_count(),
        "data": {
            name: {
                "images": len(manifest),
                "identities": len(manifest.identity_names()),
                "fingerprint": manifest.fingerprint(),
            }
            for name, manifest in manifests.items()
        },
    }
    write_json(folder / "environment.json", values)


def write_json(path: Path, values: Any) -> None:
    """Writes JSON atomically."""
    with atomic_write(path, "w") as file:
        json.dump(values, file, indent=2)
        file.write("\n")


def git_revision() -> str | None:
    """The revision of the source tree that the package runs from, `+changes` if it is modified."""
    root = Path(__file__).parent.parent.parent
    if not (root / ".git").exists():
        return None
    try:
        ask = ["git", "-C", str(root)]
        revision = subprocess.run([*ask, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        status = subprocess.run([*ask, "status", "--porcelain"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if revision.returncode:
        return None
    return revision.stdout.strip() + ("+changes" if status.stdout.strip() else "")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
