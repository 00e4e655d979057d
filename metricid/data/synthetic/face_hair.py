"""Hair: a cut is an outline, a hairline and a length, each of a few kinds with numbers of its own."""

from dataclasses import dataclass

import numpy as np

from metricid.data.synthetic.drawing import Colour, Dice, blend, ellipse, hsv, ribbon, shade
from metricid.data.synthetic.face_sheet import Sheet, Skull

_NATURAL: tuple[Colour, ...] = (
    (24, 20, 22), (46, 30, 22), (84, 52, 32), (124, 80, 46), (150, 66, 32), (196, 98, 40),
    (176, 134, 78), (222, 186, 116), (240, 222, 176), (134, 132, 134), (222, 222, 226),
)  # fmt: skip
_U = np.linspace(1.0, -1.0, 15)
_DOWN = np.linspace(0.0, 1.0, 7)


@dataclass(frozen=True)
class Hair:
    """The cut of one person; `outline` is `"bald"` where there is none."""

    colour: Colour
    outline: str
    line: str
    length: float  # y to which it falls behind the head; up to 0.2 it does not
    dice: Dice

    @property
    def covers_ears(self) -> bool:
        return self.length > 0.2 and self.outline != "bald"


def hair_colour(dice: Dice) -> Colour:
    """A natural colour, or for one person in four a dyed one."""
    if dice.chance(0.25):
        return hsv(dice.one(), dice.between(0.45, 0.85), dice.between(0.5, 0.95))
    first, second = dice.pick(_NATURAL), dice.pick(_NATURAL)
    return blend(first, second, dice.between(0.0, 0.25))


def choose_hair(dice: Dice) -> Hair:
    """Colour, outline, hairline and length of one identity's hair."""
    colour = hair_colour(dice)
    outline = dice.pick(
        ("smooth", "tall", "spiky", "curly", "afro", "flat", "mohawk", "bun", "buzz", "bald"),
        (24, 10, 9, 13, 7, 7, 5, 9, 8, 6),
    )
    line = dice.pick(("arch", "fringe", "parted", "peak", "receding", "jagged"), (16, 22, 26, 8, 9, 14))
    length = 0.0
    if outline in ("smooth", "tall", "curly", "flat") and dice.chance(0.62):
        length = dice.between(0.25, 1.15)
    if outline in ("buzz", "mohawk") or (line in ("fringe", "jagged") and outline == "flat"):
        line = dice.pick(("arch", "peak", "receding"))
    return Hair(colour, outline, line, length, dice)


def hair_behind(sheet: Sheet, hair: Hair, skull: Skull) -> None:
    """What falls behind the head and the shoulders."""
    if hair.outline == "bald":
        return
    dice, dark = hair.dice, shade(hair.colour, 0.72)
    if hair.outline == "bun":
        side, radius = dice.pick((0.0, 0.0, -0.34, 0.34)), dice.between(0.14, 0.26)
        for middle in (side, -side) if side and dice.chance(0.5) else (side,):
            sheet.add(ellipse(middle, -skull.top - 0.12, radius, radius * 0.9), dark, depth=-0.1)
    if hair.length <= 0.2:
        return
    flare, wave, waves = dice.between(-0.05, 0.2), dice.between(0.0, 0.05), dice.between(1.5, 4.0)
    if hair.outline == "curly":
        wave, waves = dice.between(0.03, 0.06), dice.between(4.0, 6.0)
    y = -0.35 + (hair.length + 0.35) * _DOWN
    x: np.ndarray = skull.width + 0.1 + flare * _DOWN + wave * np.sin(waves * 2 * np.pi * _DOWN)
    right = np.stack([x, y], axis=1)
    tip = np.array([[0.0, hair.length + dice.between(-0.12, 0.06)]])
    sheet.add(np.concatenate([right, tip, (right * [-1, 1])[::-1]]), dark, depth=-0.18)


def hair_before(sheet: Sheet, hair: Hair, skull: Skull) -> None:
    """The cap, the fringe, the strands that shine, and locks beside the face."""
    if hair.outline == "bald":
        return
    dice = hair.dice
    colour = hair.colour
    side_y = dice.between(0.12, 0.3) if hair.covers_ears else dice.between(-0.12, 0.2)
    outer = _outer(hair.outline, dice, skull, side_y)
    inner = _hairline(hair.line, dice, skull, side_y)
    sheet.add(np.concatenate([outer, inner]), colour, lift=0.03)
    if hair.outline == "mohawk":
        sheet.add(
            _crest(dice, skull),
            hsv(dice.one(), 0.7, 0.9) if dice.chance(0.5) else shade(colour, 1.2),
            lift=0.05,
        )
    if hair.covers_ears and dice.chance(0.7):
        _locks(sheet, hair, skull, dice)
    if hair.outline != "buzz":
        _shine(
            sheet,
            dice,
            outer,
            inner,
            blend(colour, (255, 250, 235), dice.between(0.14, 0.34)),
            shade(colour, 0.7),
        )


def _outer(outline: str, dice: Dice, skull: Skull, side_y: float) -> np.ndarray:
    """From the left side over the top to the right side, [n, 2]."""
    count = 37 if outline in ("spiky", "curly", "afro") else 21
    t = np.linspace(0.0, 1.0, count)
    angle = np.pi * (1 - t)
    sides, top = dice.between(0.035, 0.08), dice.between(0.05, 0.12)
    if outline == "buzz" or outline == "mohawk":
        sides, top = 0.015, 0.02
    elif outline == "tall":
        sides, top = dice.between(0.0, 0.05), dice.between(0.16, 0.28)
    elif outline == "afro":
        sides, top = dice.between(0.18, 0.3), dice.between(0.2, 0.3)
    elif outline == "curly":
        sides, top = dice.between(0.08, 0.16), dice.between(0.1, 0.2)
    power = dice.between(0.42, 0.6) if outline == "flat" else dice.between(0.85, 1.05)
    cos, sin = np.cos(angle), np.sin(angle)
    x = (skull.width + sides) * np.sign(cos) * np.abs(cos) ** power
    y = -(skull.top + top) * np.abs(sin) ** power
    ripple = np.ones(count)
    if outline == "spiky":
        ripple += dice.between(0.1, 0.2) * (np.arange(count) % 4 == 2) * (0.4 + 0.6 * sin)
    elif outline in ("curly", "afro"):
        bumps = dice.between(4.0, 8.0)
        ripple += dice.between(0.05, 0.1) * (np.abs(np.sin(np.pi * bumps * t)) - 0.4)
    arc = np.stack([x * ripple, y * ripple], axis=1)
    foot = max(side_y, 0.02)
    return np.concatenate([[[arc[0, 0], foot]], arc, [[arc[-1, 0], foot]]])


def _hairline(line: str, dice: Dice, skull: Skull, side_y: float) -> np.ndarray:
    """From the right side along the forehead to the left side, [n, 2]."""
    reach = 0.94 * skull.width
    height = dice.between(0.34, 0.46)
    y: np.ndarray = -height * (1 - np.abs(_U) ** dice.between(2.5, 7.0))
    if line == "fringe":
        y = -dice.between(0.17, 0.3) + 0.15 * np.abs(_U) ** 8 + dice.around(0.09) * _U
    elif line == "jagged":
        y = (
            -dice.between(0.2, 0.3)
            - dice.between(0.07, 0.14) * (np.arange(len(_U)) % 2)
            + dice.around(0.16) * _U
        )
    elif line == "parted":
        start = dice.pick((0.0, -1.0, 1.0)) * dice.between(0.25, 0.6)
        away = np.abs(_U - start) / (1 + abs(start))
        y = -(height + 0.1) + (height - dice.between(-0.05, 0.12)) * away ** dice.between(0.7, 1.6)
    elif line == "peak":
        y = y + dice.between(0.08, 0.16) * np.exp(-((_U / 0.22) ** 2)) - 0.06
    elif line == "receding":
        y = y - dice.between(0.1, 0.16) - 0.08 * np.sin(np.pi * np.abs(_U)) * (np.abs(_U) < 0.95)
    y = np.minimum(np.maximum(y, -skull.top * 0.93), side_y)
    burn = np.array([[skull.width * 1.0, side_y], [reach, side_y]])
    edge = np.stack([reach * _U, y], axis=1)
    return np.concatenate([burn, edge, (burn * [-1, 1])[::-1]])


def _crest(dice: Dice, skull: Skull) -> np.ndarray:
    wide, tall = dice.between(0.1, 0.17), dice.between(0.16, 0.3)
    spread = np.linspace(-1.0, 1.0, 9)
    top = np.stack([wide * 1.3 * spread, -skull.top - tall * (1 - 0.4 * spread**2)], axis=1)
    top[1::2, 1] += dice.between(0.0, 0.1)
    return np.concatenate([top, [[wide * 0.8, -0.42], [-wide * 0.8, -0.42]]])


def _locks(sheet: Sheet, hair: Hair, skull: Skull, dice: Dice) -> None:
    thick, end = dice.between(0.1, 0.2), min(hair.length, dice.between(0.3, 1.0))
    bend = dice.between(-0.05, 0.12)
    y = -0.3 + (end + 0.3) * _DOWN
    line = np.stack([skull.width * 1.02 + bend * np.sin(np.pi * _DOWN), y], axis=1)
    lock = ribbon(line, thick * (1 - 0.75 * _DOWN**2))
    colour = shade(hair.colour, 0.9)
    sheet.add(lock, colour, depth=0.05)
    sheet.add(lock * [-1, 1], colour, depth=0.05)


def _shine(
    sheet: Sheet, dice: Dice, outer: np.ndarray, inner: np.ndarray, light: Colour, dark: Colour
) -> None:
    """Strands between the outline and the hairline."""
    crown = outer[np.linspace(2, len(outer) - 3, 11).astype(int)]
    front = inner[::-1][np.linspace(2, len(inner) - 3, 11).astype(int)]
    for _ in range(2 + dice.below(3)):
        share, first = dice.between(0.2, 0.8), dice.below(6)
        part = slice(first, first + 4 + dice.below(3))
        strand = crown[part] * share + front[part] * (1 - share)
        sheet.add(ribbon(strand, dice.between(0.015, 0.04)), light if dice.chance(0.55) else dark, lift=0.05)
