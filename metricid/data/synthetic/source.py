"""An image source that draws its images when they are read."""

import re
from abc import ABC, abstractmethod
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from metricid.data.manifest import Manifest
from metricid.data.synthetic.drawing import Dice
from metricid.errors import InputError

_LIMITS = {
    "identities": (1, 10**9),
    "images": (1, 10**6),
    "first_identity": (0, 10**9),
    "seed": (0, 2**63 - 1),
}
_LAST_IDENTITY = 10**9
_SIDES = (16, 1024)


class SyntheticSource(ABC):
    """Base of the generated data sets: names, limits and the manifest; a subclass draws one image.

    A path such as `face-v1/s0/112x112/000123/0004` holds everything the pixels depend on, so the fingerprint
    of the manifest is one of the images as well. Nothing is stored but the options: instances pickle, and any
    process reads any path to the same pixels.
    """

    kind: ClassVar[str]
    version: ClassVar[int]

    def __init__(
        self,
        seed: int,
        identities: int,
        images: int,
        size: tuple[int, int],
        first_identity: int,
        attributes: bool,
        missing: float,
    ) -> None:
        self.seed = self._whole("seed", seed)
        self.identities = self._whole("identities", identities)
        self.images = self._whole("images", images)
        self.first_identity = self._whole("first_identity", first_identity)
        if self.first_identity + self.identities > _LAST_IDENTITY:
            raise InputError(f"{self.kind}: first_identity + identities must be at most {_LAST_IDENTITY}")
        self.size = self._checked_size(size)
        if not 0 <= missing < 1:
            raise InputError(f"{self.kind}: missing must be a share from 0 to below 1, not {missing!r}")
        if missing and not attributes:
            raise InputError(f"{self.kind}: missing is for the cells of attributes; set attributes: true")
        self.attributes, self.missing = attributes, missing

    @property
    def name(self) -> str:
        """What a result table calls this data."""
        last = self.first_identity + self.identities - 1
        return f"{self._stem()} identities {self.first_identity}-{last} x {self.images}"

    def paths(self) -> list[str]:
        """Every path, identity by identity."""
        return [self.path(identity, image) for identity in self._numbers() for image in range(self.images)]

    def path(self, identity: int, image: int) -> str:
        """The path of image number `image` of identity number `identity`."""
        return f"{self._stem()}/{identity:06d}/{image:04d}"

    def manifest(self) -> Manifest:
        """Path and identity of every image, and its attributes where they are asked for.

        An identity's name depends on the seed and its number alone. (In families it depends on their options,
        too.)
        """
        names = [
            f"{self.kind}-{self._people()}-{number:06d}"
            for number in self._numbers()
            for _ in range(self.images)
        ]
        return Manifest.from_columns(
            path=self.paths(), identity=names, camera=self._cameras(), **self._columns()
        )

    def read(self, path: str) -> np.ndarray:
        """Draws one image.

        Returns:
            uint8 [H, W, 3] RGB.

        Raises:
            InputError: this source has no such path.
        """
        found = self._find(path)
        if found is None:
            raise InputError(
                f"{path!r}: no such generated image; this source has {self.path(self.first_identity, 0)} "
                f"to {self.path(self.first_identity + self.identities - 1, self.images - 1)}"
            )
        return self.draw(*found)

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str) and self._find(path) is not None

    def __len__(self) -> int:
        return self.identities * self.images

    @abstractmethod
    def draw(self, identity: int, image: int) -> np.ndarray:
        """uint8 [H, W, 3] RGB: a pure function of the seed, the size and the two numbers."""

    def describe(self, identity: int) -> dict[str, str]:
        """What a person looks like, by column."""
        return {}

    def _cells(self, identity: int, image: int) -> dict[str, str]:
        """What is to be told of one image alone, by column."""
        return {}

    def _columns(self) -> dict[str, Any]:
        columns: dict[str, Any] = {}
        for identity in self._numbers() if self.attributes else ():
            said = self.describe(identity)
            for image in range(self.images):
                dice = Dice(0x3155, self.seed, identity, image)
                for name, cell in {**said, **self._cells(identity, image)}.items():
                    columns.setdefault(name, []).append("" if dice.chance(self.missing) else cell)
        return columns

    def _cameras(self) -> list[str] | None:
        return None

    def _stem(self) -> str:
        return f"{self.kind}-v{self.version}/{self._people()}/{self.size[0]}x{self.size[1]}"

    def _people(self) -> str:
        """Who the people are, as part of a path: all options that an identity depends on."""
        return f"s{self.seed}"

    def _numbers(self) -> range:
        return range(self.first_identity, self.first_identity + self.identities)

    def _find(self, path: str) -> tuple[int, int] | None:
        match = _pattern(self._stem()).fullmatch(path)
        if match is None:
            return None
        identity, image = int(match[1]), int(match[2])
        known = identity in self._numbers() and image < self.images and self.path(identity, image) == path
        return (identity, image) if known else None

    def _whole(self, option: str, value: int, limits: tuple[int, int] | None = None) -> int:
        low, high = limits or _LIMITS[option]
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
            raise InputError(
                f"{self.kind}: {option} must be a whole number from {low} to {high}, not {value!r}"
            )
        return int(value)

    def _checked_size(self, size: tuple[int, int]) -> tuple[int, int]:
        low, high = _SIDES
        sides = list(size) if isinstance(size, tuple | list) else []
        if len(sides) != 2 or not all(
            isinstance(side, int | np.integer) and not isinstance(side, bool) and low <= side <= high
            for side in sides
        ):
            raise InputError(
                f"{self.kind}: size must be (height, width), each from {low} to {high}, not {size!r}"
            )
        return (int(sides[0]), int(sides[1]))


@lru_cache(maxsize=16)
def _pattern(stem: str) -> re.Pattern[str]:
    return re.compile(re.escape(stem) + r"/([0-9]{6,9})/([0-9]{4,6})")
