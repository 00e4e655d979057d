"""Generated pedestrians. `pedestrian_outfit` has the person; here are the cameras and the moment."""

from dataclasses import dataclass
from functools import lru_cache
from math import pi
from typing import ClassVar

import cv2
import numpy as np

from metricid.data.synthetic.drawing import (
    Colour,
    Dice,
    background,
    blend,
    expose,
    fill,
    hsv,
    light_up,
    ribbon,
    sense,
    shade,
    to_subpixels,
)
from metricid.data.synthetic.pedestrian_figure import Figure, View
from metricid.data.synthetic.pedestrian_outfit import choose_outfit, describe
from metricid.data.synthetic.source import SyntheticSource

_outfit = lru_cache(maxsize=4096)(choose_outfit)
_MASK = "/mask"


@dataclass(frozen=True)
class _Camera:
    """What all pictures of one camera have in common."""

    gain: Colour
    gamma: float
    zoom: float
    horizon: float
    wall: tuple[Colour, ...]
    ground: tuple[Colour, ...]
    blur: float
    noise: float
    sun: float


class SyntheticPedestrians(SyntheticSource):
    """Drawn pedestrians of any number of people, seen by several cameras.

    To the identity belong build, skin, hair or hat, clothes and their patterns, shoes and bag. Each camera
    has its own colours, exposure, distance, place and sharpness; direction of walking, step, crop, light and
    occluder change from image to image. The images of one person go round the cameras: with
    `images >= cameras` all of them see her.

    Args:
        seed: another seed, other people and cameras.
        identities: how many people.
        images: how many images of each.
        size: (height, width) in pixels.
        cameras: how many cameras.
        first_identity: number of the first person, so that two sources of one seed can have different people.
        attributes: add columns to the manifest that say what the person looks like: `color` (of the clothes
            above), `bag`, `hat`, `skirt`, `bare_legs`, `carries` (1 or 0), `height` (in cm), and `mask`, the
            path of an image that is white where the person is.
        missing: share of these cells that is empty, chosen at random, but the same for one seed.

    Raises:
        InputError: an option is out of range.

    >>> people = SyntheticPedestrians(identities=2, images=3)
    >>> people.paths()[-1], people.read(people.paths()[-1]).shape
    ('pedestrian-v1/s0/c6/128x64/000001/0002', (128, 64, 3))
    """

    kind: ClassVar[str] = "pedestrian"
    version: ClassVar[int] = 1  # raise it with every change that changes a pixel

    def __init__(
        self,
        seed: int = 0,
        identities: int = 500,
        images: int = 16,
        size: tuple[int, int] = (128, 64),
        cameras: int = 6,
        first_identity: int = 0,
        attributes: bool = False,
        missing: float = 0.0,
    ) -> None:
        super().__init__(seed, identities, images, size, first_identity, attributes, missing)
        self.cameras = self._whole("cameras", cameras, (1, 1000))

    def describe(self, identity: int) -> dict[str, str]:
        """See the base class."""
        return describe(_outfit(self.seed, identity))

    def _cells(self, identity: int, image: int) -> dict[str, str]:
        return {"mask": self.path(identity, image) + _MASK}

    def read(self, path: str) -> np.ndarray:
        """As of the base class; also the mask of an image, grey as RGB."""
        found = self._find(path.removesuffix(_MASK)) if path.endswith(_MASK) else None
        return super().read(path) if found is None else self.draw_mask(*found)

    def __contains__(self, path: object) -> bool:
        return super().__contains__(path.removesuffix(_MASK) if isinstance(path, str) else path)

    def camera(self, identity: int, image: int) -> int:
        """The camera, counted from 0, that took an image."""
        return (Dice(0xCA3E, self.seed, identity).below(self.cameras) + image) % self.cameras

    def draw(self, identity: int, image: int) -> np.ndarray:
        """See the base class."""
        camera = _camera(self.seed, self.camera(identity, image))
        dice = Dice(0x9EDE, self.seed, identity, image)
        height, _ = self.size
        canvas = _street(camera, dice, self.size)
        view = _view(camera, dice, self.size)
        scale = view.scale
        outfit = _outfit(self.seed, identity)
        shadow = np.array([[view.x, view.y], [view.x + camera.sun * 0.3 * scale, view.y - 0.03 * scale]])
        fill(canvas, [to_subpixels(ribbon(shadow, 0.09 * scale))], shade(camera.ground[0], 0.45))
        Figure(canvas, outfit, view).draw()
        if dice.chance(0.2):
            _occlude(canvas, dice, view)

        key = np.array([camera.sun + dice.around(0.5), -0.5, 0.7])
        strong = dice.between(0.15, 0.6)
        dim = dice.between(0.95, 1.1) - 0.6 * strong
        body = np.array([[0.2 * scale, 0, view.x], [0, 0.6 * scale, view.y - 0.55 * scale]])
        canvas = light_up(canvas, key, (dim, dim, dim), (strong, strong, strong), body)
        red, green, blue = (part * (1 + dice.around(0.08)) for part in camera.gain)
        canvas = expose(canvas, (red, green, blue), camera.gamma * (1 + dice.around(0.12)))
        blur = max(0.0, camera.blur + dice.around(0.3)) * height / 128
        return sense(canvas, dice, blur, camera.noise, 0.5 if dice.chance(0.1) else 1.0)

    def draw_mask(self, identity: int, image: int) -> np.ndarray:
        """uint8 [H, W, 3]: 255 where the person is seen in the picture of the same numbers, 0 elsewhere."""
        camera = _camera(self.seed, self.camera(identity, image))
        dice = Dice(0x9EDE, self.seed, identity, image)
        canvas = _street(camera, dice, self.size)
        view = _view(camera, dice, self.size)
        # Where the same figure on black and on white looks alike, it covers the ground.
        grounds = np.zeros_like(canvas), np.full_like(canvas, 255)
        for ground in grounds:
            Figure(ground, _outfit(self.seed, identity), view).draw()
        seen = cv2.absdiff(*grounds)[:, :, 0] < 128
        if dice.chance(0.2):
            covered = np.zeros_like(canvas)
            _occlude(covered, dice, view, (255, 255, 255))
            seen &= covered[:, :, 0] < 128
        return np.repeat(np.where(seen, 255, 0).astype(np.uint8)[:, :, None], 3, axis=2)

    def _stem(self) -> str:
        return f"{self.kind}-v{self.version}/s{self.seed}/c{self.cameras}/{self.size[0]}x{self.size[1]}"

    def _cameras(self) -> list[str]:
        numbers = (
            self.camera(identity, image) for identity in self._numbers() for image in range(self.images)
        )
        return [f"c{number + 1}" for number in numbers]


@lru_cache(maxsize=1024)
def _camera(seed: int, number: int) -> _Camera:
    dice = Dice(0xCA3, seed, number)
    wall = hsv(dice.one(), dice.between(0.0, 0.3), dice.between(0.5, 0.95))
    ground = hsv(dice.one(), dice.between(0.0, 0.25), dice.between(0.4, 0.8))
    return _Camera(
        gain=(1 + dice.around(0.18), 1 + dice.around(0.1), 1 + dice.around(0.18)),
        gamma=dice.between(0.8, 1.25),
        zoom=dice.between(0.9, 1.08),
        horizon=dice.between(0.2, 0.6),
        wall=tuple(blend(wall, hsv(dice.one(), 0.35, dice.between(0.3, 1.0)), 0.3) for _ in range(3)),
        ground=tuple(blend(ground, hsv(dice.one(), 0.3, dice.between(0.2, 1.0)), 0.2) for _ in range(3)),
        blur=dice.between(0.0, 0.8),
        noise=dice.between(1.5, 8.0),
        sun=dice.between(-1.0, 1.0),
    )


def _street(camera: _Camera, dice: Dice, size: tuple[int, int]) -> np.ndarray:
    """The wall above, the ground below, and something standing there."""
    height, width = size
    canvas = background(dice, size, camera.wall)
    canvas = cv2.convertScaleAbs(canvas, alpha=1 + dice.around(0.3))
    if dice.chance(0.5):
        x, wide = dice.between(0, width), dice.between(0.1, 0.6) * width
        box = np.array(
            [[x - wide / 2, -2.0], [x + wide / 2, -2.0], [x + wide / 2, height], [x - wide / 2, height]]
        )
        fill(
            canvas, [to_subpixels(box)], blend(dice.pick(camera.wall), hsv(dice.one(), 0.5, dice.one()), 0.6)
        )
    horizon = int(height * min(max(camera.horizon + dice.around(0.12), 0.1), 0.8))
    canvas[horizon:] = cv2.convertScaleAbs(
        background(dice, (height - horizon, width), camera.ground), alpha=1 + dice.around(0.2)
    )
    return canvas


def _view(camera: _Camera, dice: Dice, size: tuple[int, int]) -> View:
    height, width = size
    scale = 0.9 * min(height, 2.0 * width) * camera.zoom * (1 + dice.around(0.1))
    return View(
        turn=dice.between(-pi, pi),
        stride=dice.between(-1.0, 1.0),
        look=dice.around(0.6),
        lean=dice.around(0.05),
        scale=scale,
        x=width * (0.5 + dice.around(0.14)),
        y=height * 0.5 + scale * (0.49 + dice.around(0.06)),
    )


def _occlude(canvas: np.ndarray, dice: Dice, view: View, paint: Colour | None = None) -> None:
    """A post, a hedge, or the edge of another person; in a colour of its own, or in `paint`."""
    height, width = canvas.shape[:2]
    colour = hsv(dice.one(), dice.between(0.05, 0.6), dice.between(0.15, 0.8))
    colour = paint or colour
    kind = dice.below(3)
    if kind == 0:
        x, half = dice.between(0, width), dice.between(0.02, 0.06) * width
        box = np.array([[x - half, -2], [x + half, -2], [x + half, height + 2], [x - half, height + 2]])
    elif kind == 1:
        y = view.y - dice.between(0.08, 0.28) * view.scale
        box = np.array(
            [[-2, y], [width + 2, y + dice.around(0.05) * height], [width + 2, height + 2], [-2, height + 2]]
        )
    else:
        x = 0.0 if dice.chance(0.5) else float(width)
        reach = dice.between(0.12, 0.3) * width
        y = dice.between(0.15, 0.5) * height
        box = np.array(
            [[x - reach, y], [x, y - reach], [x + reach, y], [x + reach, height + 2], [x - reach, height + 2]]
        )
    fill(canvas, [to_subpixels(box)], colour)
