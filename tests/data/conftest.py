"""Small generated image folders and archives."""

import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from image_files import encoded, picture


@pytest.fixture
def write_images(tmp_path: Path) -> Callable[..., Path]:
    """`write_images(["a/1.jpg", ...])` makes a folder of pictures, each from the number of its place."""

    def write(names: list[str], root: str = "images") -> Path:
        for seed, name in enumerate(names):
            file = tmp_path / root / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encoded(picture(seed), file.suffix))
        return tmp_path / root

    return write


@pytest.fixture
def pack() -> Callable[[Path], Path]:
    """`pack(folder)` makes `folder.tar` beside it."""

    def make(folder: Path) -> Path:
        archive = folder.with_suffix(".tar")
        with tarfile.open(archive, "w") as tar:
            tar.add(folder, arcname=".")
        return archive

    return make
