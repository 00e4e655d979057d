"""Draws one outfit in space: round trunk, four limbs, a head, seen from any side."""

from dataclasses import dataclass
from math import cos, hypot, pi, sin, sqrt

import numpy as np

from metricid.data.synthetic.drawing import Colour, blend, ellipse, fill, ribbon, shade, to_subpixels
from metricid.data.synthetic.pedestrian_outfit import Outfit

_SKIN_OF_LEGS = 0.95
_Pixel = tuple[float, float]


@dataclass(frozen=True)
class View:
    """Where the camera stands and how the person walks.

    `turn` is 0 when she walks towards the camera, pi when away; `stride` in [-1, 1] is the phase of the step;
    `scale` is pixels per body height; (`x`, `y`) the pixel between the feet.
    """

    turn: float
    stride: float
    look: float
    lean: float
    scale: float
    x: float
    y: float


@dataclass(frozen=True)
class _Barrel:
    """A trunk or a skirt: at height `y[i]` an ellipse with half axes `wide[i]` (across) and `deep[i]`."""

    y: np.ndarray
    wide: np.ndarray
    deep: np.ndarray


class Figure:
    """One picture of one outfit."""

    def __init__(self, canvas: np.ndarray, outfit: Outfit, view: View) -> None:
        self._canvas = canvas
        self._outfit = outfit
        self._view = view
        self._cos, self._sin = cos(view.turn), sin(view.turn)
        build = outfit.build
        self._top_y, self._hip_y = 0.82, 0.49
        self._trunk = self._make_trunk()
        self._shoulder = build.shoulder

    def draw(self) -> None:
        """From the far side to the near side."""
        outfit = self._outfit
        near = 1.0 if self._sin < 0 else -1.0  # the side of the body that is nearer to the camera
        facing = self._cos > 0
        if outfit.bag.kind == "backpack" and facing:
            self._backpack()
        if facing:
            self._long_hair()
        self._arm(-near)
        self._leg(-near)
        self._leg(near)
        self._skirt()
        self._clothes()
        if outfit.bag.kind == "messenger":
            self._messenger()
        if outfit.bag.kind == "backpack" and facing:
            for side in (-1.0, 1.0):
                self._panel(
                    self._trunk, 0.02, 0.55, side * 0.62 - 0.13, side * 0.62 + 0.13, outfit.bag.colour
                )
        self._arm(near)
        self._head()
        if not facing:
            self._long_hair()
            if outfit.bag.kind == "backpack":
                self._backpack()

    def _at(self, x: float, y: float, z: float) -> tuple[float, float]:
        """Body coordinates (x to her left, y up from the ground, z forwards) to pixels."""
        view, tall = self._view, self._outfit.build.tall
        across = x * self._cos + z * self._sin + view.lean * y
        return view.x + view.scale * across, view.y - view.scale * tall * y

    def _polygon(self, points: np.ndarray, colour: Colour) -> None:
        fill(self._canvas, [to_subpixels(points)], colour)

    def _disc(self, centre: tuple[float, float], wide: float, tall: float, colour: Colour) -> None:
        """Half axes in body heights."""
        scale = self._view.scale
        self._polygon(ellipse(centre[0], centre[1], wide * scale, tall * scale), colour)

    def _limb(self, start: _Pixel, end: _Pixel, first: float, last: float, colour: Colour) -> None:
        """From joint to joint, with its half widths there; the end is round."""
        (x, y), (to_x, to_y) = start, end
        share = self._view.scale / (hypot(to_x - x, to_y - y) + 1e-9)
        a, b = (y - to_y) * share, (to_x - x) * share
        corners = (
            (x + a * first, y + b * first),
            (to_x + a * last, to_y + b * last),
            (to_x - a * last, to_y - b * last),
            (x - a * first, y - b * first),
        )
        self._polygon(np.array(corners), colour)
        self._disc(end, last, last, colour)

    def _make_trunk(self) -> _Barrel:
        build, top = self._outfit.build, self._outfit.top
        t = np.linspace(0.0, 1.0, 9)
        y = self._top_y + (top.hem - self._top_y) * t
        waist = 0.86 * (build.shoulder + build.hip) / 2 + 0.6 * build.belly
        keys = [-self._top_y, 0.035 - self._top_y, -0.6, -self._hip_y]
        wide = np.interp(-y, keys, [0.62 * build.shoulder, build.shoulder, waist, build.hip])
        deep = np.interp(
            -y, keys, [0.5 * build.deep, build.deep, build.deep * 0.95 + build.belly, build.deep]
        )
        flare = top.flare * np.maximum(0.0, t - 0.45) * 1.8
        return _Barrel(y, wide + flare, deep + flare)

    def _half_widths(self, barrel: _Barrel) -> np.ndarray:
        return np.sqrt((barrel.wide * self._cos) ** 2 + (barrel.deep * self._sin) ** 2)

    def _panel(
        self, barrel: _Barrel, top: float, bottom: float, start: float, stop: float, colour: Colour
    ) -> None:
        """Colours a barrel between two heights (0 top, 1 hem) and two angles (0 front, pi/2 her left)."""
        middle = (start + stop) / 2 + self._view.turn
        middle = (middle + pi) % (2 * pi) - pi
        low = max(middle - (stop - start) / 2, -pi / 2)
        high = min(middle + (stop - start) / 2, pi / 2)
        if low >= high:
            return
        t = np.linspace(top, bottom, 5)
        rows = np.linspace(0.0, 1.0, len(barrel.y))
        y = np.interp(t, rows, barrel.y)
        half = np.interp(t, rows, self._half_widths(barrel))
        self._strip(y, half * sin(low), half * sin(high), colour)

    def _strip(self, y: np.ndarray, left: np.ndarray, right: np.ndarray, colour: Colour) -> None:
        view = self._view
        middle = view.x + view.scale * view.lean * y
        down = view.y - view.scale * self._outfit.build.tall * y
        a = np.stack([middle + view.scale * left, down], axis=1)
        b = np.stack([middle + view.scale * right, down], axis=1)
        self._polygon(np.concatenate([a, b[::-1]]), colour)

    def _clothes(self) -> None:
        top, trunk = self._outfit.top, self._trunk
        half = self._half_widths(trunk)
        self._strip(trunk.y, -half, half, top.main)
        bars, pattern = top.bars, top.pattern
        if pattern in ("rows", "checks"):
            for bar in range(bars + 1):
                start = (bar + 0.35) / (bars + 1)
                self._panel(trunk, start, start + 0.5 / (bars + 1), -pi, pi, top.second)
        if pattern in ("columns", "checks"):
            thin = 0.5 if pattern == "columns" else 0.28
            colour = top.second if pattern == "columns" else blend(top.second, top.main, 0.35)
            count = bars + 3
            for bar in range(count):
                angle = 2 * pi * bar / count
                self._panel(trunk, 0.0, 1.0, angle - thin * pi / count, angle + thin * pi / count, colour)
        if pattern == "block":
            self._panel(trunk, top.share, 1.0, -pi, pi, top.second)
        if pattern == "logo":
            self._panel(trunk, 0.2, 0.2 + 0.6 * top.share, -0.5, 0.5, top.second)
            self._panel(trunk, 0.12, 0.12 + 0.8 * top.share, pi - 0.75, pi + 0.75, top.second)
        if pattern == "open":
            self._panel(trunk, 0.0, 1.0, -0.9 * top.share, 0.9 * top.share, top.second)
            self._panel(trunk, 0.9, 1.0, -pi, pi, shade(top.main, 0.7))
        if pattern == "sash":
            for step in range(6):
                angle = -1.1 + 0.4 * step
                for back in (0.0, pi):
                    self._panel(
                        trunk, step / 6, (step + 1.6) / 6.6, back + angle, back + angle + 0.5, top.second
                    )
        if top.belt is not None:
            waist = float(np.interp(-0.545, -trunk.y, np.linspace(0, 1, len(trunk.y))))
            self._panel(trunk, max(waist - 0.05, 0.0), min(waist + 0.05, 1.0), -pi, pi, top.belt)

    def _skirt(self) -> None:
        bottom, build = self._outfit.bottom, self._outfit.build
        if bottom.kind != "skirt":
            return
        t = np.linspace(0.0, 1.0, 5)
        barrel = _Barrel(0.54 + (bottom.hem - 0.54) * t, build.hip + 0.05 * t, build.deep + 0.05 * t)
        half = self._half_widths(barrel)
        self._strip(barrel.y, -half, half, bottom.main)
        if bottom.stripe is not None:
            self._panel(barrel, 0.75, 1.0, -pi, pi, bottom.stripe)

    def _leg(self, side: float) -> None:
        build, bottom, step = self._outfit.build, self._outfit.bottom, self._view.stride * side
        hip = (side * build.hip * 0.48, self._hip_y, 0.0)
        knee = (side * build.hip * 0.5, 0.27, 0.07 * step + 0.015)
        lift = 0.05 * max(0.0, -step)
        foot = (side * build.hip * 0.5, 0.03 + lift, 0.16 * step - 0.02)
        skin = shade(build.skin, _SKIN_OF_LEGS)
        colour = bottom.main if bottom.kind != "skirt" else skin
        dim = 0.86 if side * self._sin > 0 else 1.0
        points = [self._at(*joint) for joint in (hip, knee, foot)]
        below = shade(colour if bottom.kind == "trousers" else skin, dim)
        self._limb(
            points[1],
            points[2],
            bottom.wide * 0.8,
            bottom.wide * (0.7 if bottom.kind == "trousers" else 0.5),
            below,
        )
        self._limb(points[0], points[1], bottom.wide * 1.15, bottom.wide * 0.85, shade(colour, dim))
        if bottom.stripe is not None and bottom.kind != "skirt" and side * self._sin <= 0.1:
            edge = np.array(points if bottom.kind == "trousers" else points[:2])
            self._polygon(ribbon(edge, 0.022 * self._view.scale), bottom.stripe)
        shoe = shade(bottom.shoe, dim)
        toe = self._at(foot[0], foot[1] - 0.012, foot[2] + 0.05)
        if bottom.boot > 0.05:
            shin = min(bottom.boot / 0.24, 1.0)
            top = tuple(f + (k - f) * shin for f, k in zip(points[2], points[1], strict=True))
            self._limb((top[0], top[1]), points[2], bottom.wide * 0.85, bottom.wide * 0.72, shoe)
        self._limb(points[2], toe, 0.032, 0.024, shoe)

    def _arm(self, side: float) -> None:
        build, top, step = self._outfit.build, self._outfit.top, -self._view.stride * side
        shoulder = (side * build.shoulder * 0.95, self._top_y - 0.035, 0.0)
        elbow = (side * (build.shoulder + 0.022), 0.64, 0.05 * step - 0.01)
        hand = (side * (build.shoulder + 0.012), 0.48, 0.13 * step + 0.03)
        points = [self._at(*joint) for joint in (shoulder, elbow, hand)]
        dim = 0.84 if side * self._sin > 0 else 0.93
        skin, sleeve = shade(build.skin, dim), shade(top.sleeve, dim)
        self._disc(points[2], 0.024, 0.026, skin)
        self._limb(points[1], points[2], 0.03, 0.024, sleeve if top.sleeves == 1.0 else skin)
        if top.sleeves == 1.0:
            self._disc(points[2], 0.02, 0.022, skin)
        self._limb(points[0], points[1], 0.037, 0.03, sleeve if top.sleeves else skin)
        bag = self._outfit.bag
        if bag.kind == "handbag" and bag.side == side:
            x, y = points[2]
            wide, tall, scale = bag.wide * max(abs(self._sin), 0.5), bag.tall * 0.8, self._view.scale
            handle = np.array(
                [
                    [x - wide * 0.5 * scale, y + 0.07 * scale],
                    [x, y],
                    [x + wide * 0.5 * scale, y + 0.07 * scale],
                ]
            )
            self._polygon(ribbon(handle, 0.014 * scale), bag.trim)
            self._box(x, y + (0.06 + tall) * scale, wide, tall, bag.colour)
            self._box(x, y + (0.06 + 0.5 * tall) * scale, wide, tall * 0.14, bag.trim)

    def _box(self, x: float, y: float, wide: float, tall: float, colour: Colour) -> None:
        """A rectangle with cut corners; centre in pixels, half sides in body heights."""
        a, b, scale = wide * self._view.scale, tall * self._view.scale, self._view.scale
        cut = min(0.02 * scale, a * 0.4, b * 0.4)
        quarter = np.array([[a, cut - b], [a, b - cut], [a - cut, b], [cut - a, b]])
        corner = np.concatenate([quarter, -quarter])
        self._polygon(corner + np.array([x, y]), colour)

    def _backpack(self) -> None:
        build, bag = self._outfit.build, self._outfit.bag
        wide = sqrt((bag.wide * self._cos) ** 2 + (0.055 * self._sin) ** 2)
        x, y = self._at(0.0, 0.8 - bag.tall * 1.15, -(build.deep + 0.045))
        self._box(x, y, wide, bag.tall * 1.2, bag.colour)
        self._box(x, y + 0.5 * bag.tall * self._view.scale, wide * 0.72, bag.tall * 0.45, bag.trim)

    def _messenger(self) -> None:
        bag, build = self._outfit.bag, self._outfit.build
        for step in range(8):
            angle = bag.side * (-1.15 + 0.3 * step)
            for middle in (angle, pi - angle):
                self._panel(self._trunk, step / 9, (step + 1.8) / 9, middle - 0.13, middle + 0.3, bag.trim)
        x, y = self._at(bag.side * (build.hip + 0.03), 0.47, 0.0)
        wide = sqrt((0.045 * self._cos) ** 2 + (bag.wide * self._sin) ** 2)
        if bag.side * self._sin <= 0.5:
            self._box(x, y, wide, bag.tall * 0.75, bag.colour)
            self._box(x, y - 0.3 * bag.tall * self._view.scale, wide, bag.tall * 0.2, bag.trim)

    def _head(self) -> None:
        build, head = self._outfit.build, self._outfit.head
        size = build.head / build.tall
        neck_top, neck_foot = self._at(0, 0.86, 0.0), self._at(0, 0.8, 0.0)
        self._limb(neck_top, neck_foot, 0.03, 0.034, shade(build.skin, 0.8))
        scarf = self._outfit.top.scarf
        if scarf is not None:
            self._disc(self._at(0, 0.825, 0.01), 0.062, 0.032, scarf)
        x, y = self._at(0.0, 0.92, 0.012)
        turn = self._view.turn + self._view.look
        to_camera, across = cos(turn), sin(turn)
        scale = self._view.scale
        colour = {"cap": head.hair, "hood": head.cloth, "bald": build.skin}.get(head.style, head.hair)
        grow = {"afro": 1.5, "hood": 1.22, "bald": 1.0}.get(head.style, 1.1)
        lift = 0.2 * size * scale if head.style == "afro" else 0.0
        self._disc((x, y - lift), size * grow, size * grow * 1.15, colour)
        if head.style == "bun":
            self._disc(
                (x - 0.6 * size * across * scale, y - 1.35 * size * scale),
                0.5 * size,
                0.45 * size,
                shade(colour, 0.85),
            )
        if to_camera > -0.35:
            wide = size * min(1.0, 0.62 + 0.38 * max(to_camera, 0.0))
            fx, fy = x + (size - wide + 0.1 * size) * across * scale, y + 0.16 * size * scale
            self._disc((fx, fy), wide * 0.92, size * 0.98, build.skin)
            if head.beard:
                self._disc((fx, fy + 0.62 * size * scale), wide * 0.75, size * 0.42, shade(head.hair, 0.8))
            if to_camera > 0.2:
                for side in (-0.4, 0.4):
                    eye = (fx + (side * to_camera + 0.45 * across) * size * scale, fy - 0.05 * size * scale)
                    self._disc(eye, 0.13 * size, 0.15 * size, (30, 22, 22))
        if head.style == "cap":
            arch = np.linspace(pi, 2 * pi, 9)
            dome = np.stack([1.14 * np.cos(arch), 1.15 * np.sin(arch) - 0.2], axis=1) * (
                size * scale
            ) + np.array([x, y])
            self._polygon(dome, head.cloth)
            brim = (x + 0.8 * size * across * scale, y - 0.22 * size * scale)
            self._disc(brim, size * (1.1 - 0.25 * abs(across)), 0.17 * size, shade(head.cloth, 0.7))

    def _long_hair(self) -> None:
        build, head = self._outfit.build, self._outfit.head
        if head.style not in ("long", "tail"):
            return
        size = build.head / build.tall
        reach, wide = (0.26, 0.5) if head.style == "tail" else (0.2, 1.18)
        crown, end = self._at(0.0, 0.92, -0.01), self._at(0.0, 0.92 - reach, -0.05)
        self._limb(crown, end, size * wide, size * wide * 0.85, shade(head.hair, 0.88))
