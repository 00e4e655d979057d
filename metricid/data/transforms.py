"""Augmentation presets for faces and whole bodies: pixels to pixels, all chance from one seed."""

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np

from metricid.errors import InputError
from metricid.registry import Registry

PRESETS = Registry("augmentation preset", key="preset")
_FILLS: dict[str, Any] = {"mean": (124.0, 116.0, 104.0), "noise": "random", "black": 0.0}
_MAX_ROTATION = 180.0
_MASK = 0xFFFFFFFFFFFFFFFF

Fill = Literal["mean", "noise", "black"]


@PRESETS.register("plain")
@dataclass(frozen=True)
class PlainAugmentation:
    """Nothing but the resize."""


@PRESETS.register("face")
@dataclass(frozen=True)
class FaceAugmentation:
    """For aligned faces. Plain names are probabilities, the others say how strong.

    Attributes:
        flip: mirror left to right.
        crop: cut out a part of at least `crop_area` of the image, of nearly the same aspect.
        warp: turn by up to `warp_degrees`, shift and scale by up to the fraction `warp_shift`.
        color: brightness, contrast and saturation, each by up to the fraction `color_strength`.
        gray: no colour at all.
        blur: Gaussian, sigma up to `blur_sigma` pixels.
        low_resolution: shrink to between `low_resolution_scale` and 3/4 of the size, and back.
        erase: paint over a rectangle of up to `erase_area` of the image with `erase_fill`.
    """

    flip: float = 0.5
    crop: float = 0.4
    crop_area: float = 0.75
    warp: float = 0.3
    warp_degrees: float = 10.0
    warp_shift: float = 0.06
    color: float = 0.5
    color_strength: float = 0.3
    gray: float = 0.05
    blur: float = 0.1
    blur_sigma: float = 2.0
    low_resolution: float = 0.1
    low_resolution_scale: float = 0.25
    erase: float = 0.1
    erase_area: float = 0.2
    erase_fill: Fill = "mean"


@PRESETS.register("reid")
@dataclass(frozen=True)
class ReidAugmentation:
    """For people or vehicles in a box. Plain names are probabilities, the others say how strong.

    Attributes:
        flip: mirror left to right.
        crop: shift by up to `crop_pad` of the height, black where nothing was (pad and crop).
        color: brightness, contrast and saturation, each by up to the fraction `color_strength`.
        gray: no colour at all.
        blur: Gaussian, sigma up to `blur_sigma` pixels.
        low_resolution: shrink to between `low_resolution_scale` and 3/4 of the size, and back.
        erase: paint over a rectangle of up to `erase_area` of the image with `erase_fill`
            (random erasing, Zhong et al., AAAI 2020).
    """

    flip: float = 0.5
    crop: float = 0.5
    crop_pad: float = 0.04
    color: float = 0.3
    color_strength: float = 0.15
    gray: float = 0.0
    blur: float = 0.0
    blur_sigma: float = 1.5
    low_resolution: float = 0.0
    low_resolution_scale: float = 0.4
    erase: float = 0.5
    erase_area: float = 0.33
    erase_fill: Fill = "mean"


class ImageTransform:
    """A row of albumentations operations with a resize among them.

    The result depends on the image and the seed alone: both generators that the operations share are reset in
    place for each image.
    """

    def __init__(self, size: tuple[int, int], before: Sequence[Any] = (), after: Sequence[Any] = ()):
        """
        Args:
            size: (height, width) of the result.
            before: operations on the image as it comes.
            after: operations on the resized image; they must keep its size.
        """
        self.size = size
        self._before, self._after = list(before), list(after)
        self._python = random.Random(0)
        self._bits = np.random.PCG64(0)
        self._state: Any = self._bits.state
        numbers = np.random.Generator(self._bits)
        for operation in (*self._before, *self._after):
            operation.set_random_state(numbers, self._python)

    def __call__(self, image: np.ndarray, seed: int) -> np.ndarray:
        """
        Args:
            image: [H, W, 3] uint8.
            seed: any integer.

        Returns:
            [*size, 3] uint8.
        """
        if self._before or self._after:
            self._reseed(seed)
        for operation in self._before:
            image = operation(image=image)["image"]
        image = resize(image, self.size)
        for operation in self._after:
            image = operation(image=image)["image"]
        return np.ascontiguousarray(image)

    def with_mask(self, image: np.ndarray, mask: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """The image as `__call__` gives it, and its mask, which goes wherever the pixels go.

        Args:
            image: [H, W, 3] uint8.
            mask: [H, W] uint8, 0 or 1; what comes in from outside the image is 0.
            seed: any integer.

        Returns:
            [*size, 3] uint8 and [*size] uint8; no value in between, each is the nearest one.
        """
        if self._before or self._after:
            self._reseed(seed)
        pair = {"image": image, "mask": mask}
        for operation in self._before:
            pair = operation(**pair)
        height, width = self.size
        pair["image"] = resize(pair["image"], self.size)
        if pair["mask"].shape != self.size:
            pair["mask"] = cv2.resize(pair["mask"], (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        for operation in self._after:
            pair = operation(**pair)
        return np.ascontiguousarray(pair["image"]), np.ascontiguousarray(pair["mask"])

    def _reseed(self, seed: int) -> None:
        seed &= _MASK
        self._python.seed(seed)
        # Two odd factors spread nearby seeds over the 128 bits of the state; PCG64 then permutes its output.
        low = seed * 0x9E3779B97F4A7C15 + 1 & _MASK
        high = seed * 0xD1342543DE82EF95 + 0x632BE59BD9B4E019 & _MASK
        self._state["state"]["state"] = high << 64 | low
        self._bits.state = self._state


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[H, W, 3] to [*size, 3]: averages areas where it shrinks, interpolates linearly where it grows."""
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    shrinks = height * width < image.shape[0] * image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def transform_problems(options: Mapping[str, Any]) -> list[str]:
    """What is wrong with `{preset: name, option: value, ...}`, one line each; empty if it can be built."""
    found = PRESETS.problems(options)
    if found:
        return found
    for name, value in options.items():
        top = _MAX_ROTATION if name == "warp_degrees" else 100.0 if name == "blur_sigma" else 1.0
        low = 0.01 if name in ("crop_area", "low_resolution_scale") else 0.0
        high = 0.75 if name == "low_resolution_scale" else top
        if isinstance(value, (int, float)) and not low <= value <= high:
            found.append(f"{name}: must lie between {low:g} and {high:g}, got {value}")
    return found


def build_transform(
    preset: str | Mapping[str, Any], size: Sequence[int], train: bool, **options: Any
) -> ImageTransform:
    """Builds the transform of a preset.

    Args:
        preset: `face`, `reid` or `plain`, or a mapping with the key `preset` and options.
        size: (height, width) of the result.
        train: False leaves only the resize, whatever the preset.
        **options: fields of the preset's class, in place of its defaults.

    Raises:
        InputError: unknown preset or option, wrong type, value out of range.
    """
    mapping = {"preset": preset, **options} if isinstance(preset, str) else {**preset, **options}
    problems = transform_problems(mapping)
    height, width = size
    if height < 1 or width < 1:
        problems.append(f"size: must be at least 1 x 1, got {height} x {width}")
    if problems:
        raise InputError(f"augmentation: {'; '.join(problems)}")
    chosen = PRESETS.build(mapping)
    if not train or isinstance(chosen, PlainAugmentation):
        return ImageTransform((height, width))
    before, after = _operations(chosen, height, width)
    return ImageTransform((height, width), before, after)


def _operations(
    chosen: FaceAugmentation | ReidAugmentation, height: int, width: int
) -> tuple[list[Any], list[Any]]:
    """The operations of a preset, without those that never happen."""
    alb = _albumentations()
    before, after = [], []
    if isinstance(chosen, FaceAugmentation):
        before.append(
            alb.RandomResizedCrop(
                (height, width),
                scale=(chosen.crop_area, 1.0),
                ratio=(0.9 * width / height, width / height / 0.9),
                area_for_downscale="image",
                p=chosen.crop,
            )
        )
        shift = chosen.warp_shift
        after.append(
            alb.Affine(
                scale=(1 - shift, 1 + shift),
                translate_percent=(-shift, shift),
                rotate=(-chosen.warp_degrees, chosen.warp_degrees),
                p=chosen.warp,
            )
        )
    elif chosen.crop and chosen.crop_pad:
        pad = max(1, round(chosen.crop_pad * height))
        after.append(
            alb.Sequential(
                [alb.Pad(pad), alb.RandomCrop(height, width)],
                p=chosen.crop,
            )
        )
    strength, sigma, area = chosen.color_strength, chosen.blur_sigma, chosen.erase_area
    aspect = width / height
    after += [
        alb.HorizontalFlip(p=chosen.flip),
        alb.RandomBrightnessContrast((-strength, strength), (-strength, strength), p=chosen.color),
        alb.ColorJitter((1, 1), (1, 1), (1 - strength, 1 + strength), (0, 0), p=chosen.color),
        alb.ToGray(p=chosen.gray),
        alb.GaussianBlur(blur_limit=0, sigma_limit=(min(0.5, sigma), sigma), p=chosen.blur if sigma else 0),
        alb.Downscale(
            (chosen.low_resolution_scale, 0.75),
            interpolation_pair={"downscale": cv2.INTER_AREA, "upscale": cv2.INTER_LINEAR},
            p=chosen.low_resolution,
        ),
        # Up to 3.3 times as long as the image's own shape: measured against a square, the operation would not
        # erase more than 15% of an image that is twice as tall as wide.
        alb.Erasing(
            scale=(min(0.02, area), area),
            ratio=(aspect / 3.3, aspect * 3.3),
            fill=_FILLS[chosen.erase_fill],
            p=chosen.erase if area else 0,
        ),
    ]
    return [o for o in before if o.p], [o for o in after if o.p]


def _albumentations() -> Any:
    """Imports albumentations without the look-up on the network that this makes (4.5 s when offline)."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations

    return albumentations
