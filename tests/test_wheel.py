"""A wheel built from the repository and unpacked elsewhere has its recipes inside."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.timeout(240)
def test_a_wheel_carries_the_recipes_and_finds_them(tmp_path):
    source = tmp_path / "source"  # a build leaves folders behind, which do not belong into the checkout
    for name in ("metricid", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        str(source),
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
    ]
    made = subprocess.run([*build, "-w", str(tmp_path)], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    inside = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(inside)
    recipes = {f.relative_to(ROOT / "configs").as_posix() for f in (ROOT / "configs").rglob("*.yaml")}
    assert {
        n.removeprefix("metricid/configs/") for n in names if n.startswith("metricid/configs/")
    } == recipes
    assert not [n for n in names if n.startswith(("tests", "benchmarks"))]
    code = "import metricid; from metricid.cli.main import main; print(metricid.__file__); main()"
    ran = subprocess.run(
        [sys.executable, "-c", code, "train", "quickstart", "--print-config"],
        env=os.environ | {"PYTHONPATH": str(inside)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stdout.startswith(str(inside))
    assert "name: quickstart" in ran.stdout
