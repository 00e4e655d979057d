"""What both kinds of generated image share: reproducible dice, polygons, backgrounds, light and sensor.

All lengths are in scene units, never in pixels, so that one scene can be drawn at any size. Images are uint8
[H, W, 3] RGB.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

import cv2
import numpy as np

Colour = tuple[float, float, float]
_T = TypeVar("_T")

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_SHIFT = 4  # fractional bits of a vertex: 1/16 pixel
_TILE = 256
_BLOCK = 64


def _mix(value: int) -> int:
    """SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014): one 64-bit number to another."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def uniforms(state: int, start: int, count: int) -> np.ndarray:
    """Numbers `start .. start + count` of the SplitMix64 stream `state`, as float64 [count] in [0, 1).

    Written out here rather than taken from `numpy.random`, whose streams may change between versions.
    """
    value = np.arange(start + 1, start + count + 1, dtype=np.uint64) * np.uint64(_GOLDEN) + np.uint64(state)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    value ^= value >> np.uint64(31)
    return (value >> np.uint64(11)).astype(np.float64) * 2.0**-53


class Dice:
    """Random numbers that depend on nothing but the integers of the key.

    >>> a, b = Dice(0, 7, 1), Dice(0, 7, 1)
    >>> a.between(2.0, 3.0) == b.between(2.0, 3.0)
    True
    """

    def __init__(self, *key: int) -> None:
        state = 0
        for part in key:
            state = _mix((state + _GOLDEN + part) & _MASK)
        self._state = state
        self._drawn = 0
        self._values: list[float] = []

    def one(self) -> float:
        """Uniform in [0, 1)."""
        if not self._values:
            self._values = uniforms(self._state, self._drawn, _BLOCK).tolist()
            self._values.reverse()
            self._drawn += _BLOCK
        return self._values.pop()

    def between(self, low: float, high: float) -> float:
        """Uniform in [low, high)."""
        return low + (high - low) * self.one()

    def around(self, spread: float) -> float:
        """Symmetric about 0, mostly small, never beyond `spread` (triangular)."""
        return spread * (self.one() - self.one())

    def below(self, count: int) -> int:
        """An integer in [0, count)."""
        return int(self.one() * count)

    def chance(self, probability: float) -> bool:
        return self.one() < probability

    def pick(self, choices: Sequence[_T], weights: Sequence[float] | None = None) -> _T:
        """One of `choices`; `weights` need not sum to one."""
        if weights is None:
            return choices[self.below(len(choices))]
        left = self.one() * sum(weights)
        for choice, weight in zip(choices, weights, strict=True):
            left -= weight
            if left < 0:
                return choice
        return choices[-1]


def blend(a: Colour, b: Colour, share: float) -> Colour:
    """`share` of `b`, the rest of `a`."""
    keep = 1.0 - share
    return (a[0] * keep + b[0] * share, a[1] * keep + b[1] * share, a[2] * keep + b[2] * share)


def shade(colour: Colour, factor: float) -> Colour:
    """Darker (`factor` < 1) or lighter; stays within 0..255."""
    return (min(colour[0] * factor, 255.0), min(colour[1] * factor, 255.0), min(colour[2] * factor, 255.0))


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """RGB 0..255 of a hue in turns, saturation and value in [0, 1]."""
    turn = 6.0 * (hue % 1.0)
    high = 255.0 * value
    red, green, blue = (
        high * (1 - saturation * (1 - min(max(part, 0.0), 1.0)))
        for part in (abs(turn - 3) - 1, 2 - abs(turn - 2), 2 - abs(turn - 4))
    )
    return (red, green, blue)


def ribbon(line: np.ndarray, width: float | np.ndarray) -> np.ndarray:
    """The outline [2n, 2] of a pen stroke [n, 2]; `width` is one number or one for each point."""
    along = np.empty_like(line)
    along[1:-1] = line[2:] - line[:-2]
    along[0] = line[1] - line[0]
    along[-1] = line[-1] - line[-2]
    length = np.sqrt(along[:, :1] ** 2 + along[:, 1:] ** 2) + 1e-9
    side = along[:, ::-1] * np.array([-0.5, 0.5]) / length * np.reshape(width, (-1, 1))
    return np.concatenate([line + side, (line - side)[::-1]])


def ellipse(
    x: float, y: float, width: float, height: float, turn: float = 0.0, points: int = 14
) -> np.ndarray:
    """[points, 2]; `width` and `height` are half axes, `turn` is in radians."""
    axes = np.array([[width, 0.0], [0.0, height]])
    if turn != 0.0:
        cos, sin = np.cos(turn), np.sin(turn)
        axes = axes @ np.array([[cos, sin], [-sin, cos]])
    return _circle(points) @ axes + np.array((x, y))


@lru_cache(maxsize=32)
def _circle(points: int) -> np.ndarray:
    angle = np.arange(points) * (2 * np.pi / points)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def to_subpixels(points: np.ndarray) -> np.ndarray:
    """Pixel coordinates [n, 2] to the fixed-point integers that `fill` takes."""
    return np.rint(points * (1 << _SHIFT)).astype(np.int32)


def fill(image: np.ndarray, contours: Sequence[np.ndarray], colour: Colour) -> None:
    """Fills polygons given in subpixels, antialiased; where two contours overlap there is a hole."""
    cv2.fillPoly(image, contours, colour, cv2.LINE_AA, _SHIFT)


def background(dice: Dice, size: tuple[int, int], colours: Sequence[Colour]) -> np.ndarray:
    """A random part of a random texture at a random scale, coloured along a ramp of three or more colours."""
    height, width = size
    texture = _textures()[dice.below(len(_textures()))]
    zoom = dice.between(0.35, 0.95)
    tall = max(2, int(zoom * _TILE * min(1.0, height / width)))
    wide = max(2, int(zoom * _TILE * min(1.0, width / height)))
    y, x = dice.below(_TILE - tall + 1), dice.below(_TILE - wide + 1)
    patch = texture[y : y + tall, x : x + wide]
    if dice.chance(0.5):
        patch = patch[:, ::-1]
    grey = cv2.resize(patch, (width, height), interpolation=cv2.INTER_LINEAR)
    stops = np.array(colours, dtype=np.float32)[:, None]
    ramp = cv2.resize(stops, (1, 256), interpolation=cv2.INTER_LINEAR).astype(np.uint8)
    return cv2.applyColorMap(grey, ramp.reshape(256, 1, 3))


@lru_cache(maxsize=1)
def _textures() -> list[np.ndarray]:
    """Grey tiles [_TILE, _TILE], the same in every process: clouds, stripes, tiles, spots, slopes."""
    tiles = [_clouds(kind, cells) for kind, cells in enumerate((3, 5, 8, 14, 30))]
    y, x = np.mgrid[0:_TILE, 0:_TILE] / _TILE
    waves = [
        np.sin(2 * np.pi * (5 * x + 2 * y)),
        np.sin(2 * np.pi * 9 * x),
        np.sin(2 * np.pi * (3 * y - 4 * x)),
    ]
    waves += [
        np.sign(np.sin(2 * np.pi * 6 * x) * np.sin(2 * np.pi * 6 * y)),
        np.sin(14 * np.hypot(x - 0.3, y - 0.6)),
    ]
    waves += [
        2 * x - 1,
        2 * y - 1,
        np.where((y * 12 % 1 < 0.1) | ((x * 6 + (y * 12 // 1) * 0.5) % 1 < 0.06), -0.8, 0.3),
    ]
    for kind, wave in enumerate(waves):
        grey = 128 + 80 * wave + 0.5 * (_clouds(10 + kind, 6).astype(np.float64) - 128)
        tiles.append(np.clip(grey, 0, 255).astype(np.uint8))
    for kind in range(3):
        tile = _clouds(20 + kind, 3)
        dice = Dice(0x7157, kind)
        for _ in range(60):
            centre = (dice.below(_TILE), dice.below(_TILE))
            cv2.circle(tile, centre, 4 + dice.below(26), dice.between(20, 235), -1, cv2.LINE_AA)
        tiles.append(tile)
    return tiles


def _clouds(kind: int, cells: int) -> np.ndarray:
    total = np.zeros((_TILE, _TILE), dtype=np.float32)
    for octave in range(4):
        side = min(cells << octave, _TILE)
        coarse = (
            uniforms(_mix(kind * 64 + octave), 0, side * side).reshape(side, side).astype(np.float32) - 0.5
        )
        total += cv2.resize(coarse, (_TILE, _TILE), interpolation=cv2.INTER_CUBIC) * 0.55**octave
    return np.clip(128 + 190 * total, 0, 255).astype(np.uint8)


def light_up(
    image: np.ndarray, key: np.ndarray, ambient: Colour, direct: Colour, place: np.ndarray
) -> np.ndarray:
    """Lambert shading of a ball at `place`, its rim's light carried on into the surroundings.

    Args:
        image: uint8 [H, W, 3].
        key: direction to the light, [3] (x right, y down, z to the camera).
        ambient: factor on each channel without direct light.
        direct: what the light adds to the factor where it falls straight on.
        place: float [2, 3], from the ball's [-1, 1] square to pixels.

    Returns:
        uint8 [H, W, 3].
    """
    normals, to_square = _ball()
    lit = np.maximum(normals @ (key / np.linalg.norm(key)).astype(np.float32), 0.0)
    field = lit[..., None] * (128 * np.array(direct, dtype=np.float32)) + 128 * np.array(
        ambient, dtype=np.float32
    )
    small = np.clip(field, 0, 255).astype(np.uint8)
    large = cv2.warpAffine(
        small,
        place @ to_square,
        (image.shape[1], image.shape[0]),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return cv2.multiply(image, large, scale=1 / 128)


@lru_cache(maxsize=1)
def _ball(side: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Normals [side, side, 3] of a ball that fills the square; the map [3, 3] from pixels to [-1, 1]."""
    step = 2.0 / (side - 1)
    y, x = np.mgrid[0:side, 0:side] * step - 1.0
    radius = np.hypot(x, y)
    pull = np.where(radius > 0.92, 0.92 / np.maximum(radius, 1e-6), 1.0)
    x, y = x * pull, y * pull
    normals = np.stack([x, y, np.sqrt(1 - x * x - y * y)], axis=-1).astype(np.float32)
    return normals, np.array([[step, 0, -1.0], [0, step, -1.0], [0, 0, 1.0]])


def expose(image: np.ndarray, gain: Colour, gamma: float) -> np.ndarray:
    """Each channel to the power `gamma`, times its gain."""
    curve = _ramp() ** gamma
    table = np.minimum(curve[:, None] * (255.0 * np.array(gain)), 255.0).astype(np.uint8)
    return cv2.LUT(image, table.reshape(1, 256, 3))


@lru_cache(maxsize=1)
def _ramp() -> np.ndarray:
    return np.arange(256) / 255.0


def sense(image: np.ndarray, dice: Dice, blur: float, noise: float, detail: float = 1.0) -> np.ndarray:
    """A camera's faults: lost resolution, blur, noise.

    Args:
        image: uint8 [H, W, 3].
        dice: where the noise is taken from.
        blur: standard deviation in pixels; below 0.3 nothing is blurred.
        noise: standard deviation in grey levels.
        detail: share of the pixels in each direction that the camera resolves.

    Returns:
        uint8 [H, W, 3].
    """
    height, width = image.shape[:2]
    if detail < 0.95:
        small = (max(2, round(width * detail)), max(2, round(height * detail)))
        image = cv2.resize(cv2.resize(image, small, interpolation=cv2.INTER_AREA), (width, height))
    if blur >= 0.3:
        image = cv2.GaussianBlur(image, (0, 0), blur)
    grain = _grain(max(height, width) + 64)
    y, x = dice.below(len(grain) - height + 1), dice.below(len(grain) - width + 1)
    share = noise / _GRAIN_STD
    return cv2.addWeighted(image, 1.0, grain[y : y + height, x : x + width], share, -128.0 * share)


_GRAIN_STD = 32.0


@lru_cache(maxsize=4)
def _grain(side: int) -> np.ndarray:
    """Noise [S, S, 3] with mean 128, S >= side: the sum of three uniform numbers, close enough to a bell."""
    side = max(side, _TILE)
    total = uniforms(_mix(0x6EA1), 0, 3 * side * side * 3).reshape(3, side, side, 3).sum(axis=0) - 1.5
    return np.clip(np.rint(128 + 2 * _GRAIN_STD * total), 0, 255).astype(np.uint8)
