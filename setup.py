"""Puts the recipes of `configs/` into the wheel: `metricid train quickstart` runs where it is installed."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
    """Copies `configs/` to `metricid/configs/` of a build; a checkout keeps the one folder."""

    def run(self) -> None:
        """Builds, then copies."""
        super().run()
        if not self.editable_mode:
            source = Path(__file__).parent / "configs"
            shutil.copytree(source, Path(self.build_lib) / "metricid" / "configs", dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithRecipes})
