"""The face of one person: every attribute that belongs to the identity, as polygons."""

from dataclasses import dataclass

import numpy as np

from metricid.data.synthetic.drawing import Colour, Dice, blend, ellipse, hsv, ribbon, shade
from metricid.data.synthetic.face_hair import Hair, choose_hair, hair_before, hair_behind
from metricid.data.synthetic.face_sheet import BakedSheet, Sheet, Skull

_SKIN: tuple[Colour, ...] = (
    (252, 226, 206), (244, 206, 176), (230, 184, 146), (206, 154, 112),
    (168, 116, 80), (126, 82, 56), (88, 58, 44),
)  # fmt: skip
_IRIS: tuple[Colour, ...] = (
    (62, 36, 20), (104, 62, 30), (132, 104, 44), (84, 126, 66),
    (66, 118, 168), (110, 160, 200), (120, 128, 134),
)  # fmt: skip
# The parts of a face, each with random numbers of its own.
_KEYS = {
    "head": 0xFACE, "hair": 0x4A12, "marks": 0x5C1A, "beard": 0xBEA2, "eyes": 0xE1E5,
    "nose": 0x205E, "mouth": 0x3017, "brows": 0xB205, "extras": 0x61A5,
}  # fmt: skip
_EVERYBODYS = ("head", "hair", "eyes", "nose", "mouth", "brows")
MOST_ALIKE = len(_KEYS) - 1
_FAMILIES = 1 << 40  # number of the first family, above those of all identities
_QUARTER = np.linspace(0.0, np.pi / 2, 11)
_T = np.linspace(0.0, 1.0, 9)
_ARCH = np.sin(np.pi * _T)
_MIRROR = np.array([-1.0, 1.0])


@dataclass(frozen=True)
class Person:
    """What a picture needs to know of an identity."""

    sheet: BakedSheet
    behind: int  # so many shapes are drawn before the shoulders
    skin: Colour
    skull: Skull
    look: dict[str, str]  # what a witness might say, by column of a manifest


def skin_colour(dice: Dice) -> Colour:
    """From light to dark, with a tinge of its own."""
    tone = dice.between(0.0, len(_SKIN) - 1.001)
    skin = blend(_SKIN[int(tone)], _SKIN[int(tone) + 1], tone % 1)
    return (
        skin[0],
        min(skin[1] * (1 + dice.around(0.05)), 255.0),
        min(skin[2] * (1 + dice.around(0.12)), 255.0),
    )


def build_person(seed: int, identity: int, family: int = 1, alike: int = 0) -> Person:
    """The polygons of identity number `identity`; see `SyntheticFaces` for families."""
    dice = {
        part: Dice(_KEYS[part], seed, number)
        for part, number in part_owners(seed, identity, family, alike).items()
    }
    head, eyes = dice["head"], dice["eyes"]
    skin = skin_colour(head)
    skull = Skull(head.between(0.45, 0.6), head.between(0.6, 0.7), head.between(0.6, 0.78), 0.45)
    hair = choose_hair(dice["hair"])
    sheet = Sheet(skull)
    hair_behind(sheet, hair, skull)
    behind = len(sheet)
    earrings = _ears(sheet, head, skin, hair, skull)
    contour = _contour(head, skull)
    sheet.add(contour, skin, depth=0.0)
    _skin_marks(sheet, dice["marks"], skin, skull)
    beard = _beard(sheet, dice["beard"], skin, hair.colour, skull)
    place = (eyes.between(0.2, 0.27), eyes.between(-0.1, 0.03))
    _nose(sheet, dice["nose"], skin, place[1])
    _mouth(sheet, dice["mouth"], skin, skull)
    reach = _eyes(sheet, eyes, skin, place)
    _brows(sheet, dice["brows"], hair, place, reach)
    hair_before(sheet, hair, skull)
    headband, glasses = _extras(sheet, dice["extras"], skull, place, hair)
    worn = {
        "glasses": glasses,
        "headband": headband,
        "earrings": earrings,
        "long_hair": hair.length > 0.2,
    }
    look = {
        "hair": hair.outline,
        "beard": beard,
        **{name: str(int(value)) for name, value in worn.items()},
        "face_ratio": f"{(skull.top + skull.chin) / (2 * skull.width):.3f}",
    }
    return Person(sheet.bake(), behind, skin, skull, look)


def part_owners(seed: int, identity: int, family: int, alike: int) -> dict[str, int]:
    """The number that each part of a face is drawn from: the person's own, or that of the family.

    One of the parts that everybody has is the person's own, so that no two members look the same.
    """
    if family == 1:
        return dict.fromkeys(_KEYS, identity)
    dice = Dice(0xFA31, seed, identity)
    own = dice.pick(_EVERYBODYS)
    others = sorted((part for part in _KEYS if part != own), key=lambda _: dice.one())
    common = dict.fromkeys(others[:alike], _FAMILIES + identity // family)
    return {part: common.get(part, identity) for part in _KEYS}


def _contour(dice: Dice, skull: Skull) -> np.ndarray:
    """Skull above, jaw below; the jaw goes from pointed to square."""
    sin, cos = np.sin(_QUARTER), np.cos(_QUARTER)
    square, round_ = dice.between(1.5, 3.6), dice.between(0.42, 0.72)
    cheek = dice.between(-0.03, 0.05)
    upper = np.stack([skull.width * sin**0.92, -skull.top * cos], axis=1)
    lower_x = skull.width * np.maximum(1 - sin**square, 0) ** round_ + cheek * np.sin(np.pi * sin)
    lower = np.stack([lower_x, skull.chin * sin], axis=1)
    right = np.concatenate([upper, lower[1:]])
    return np.concatenate([right, (right * _MIRROR)[::-1]])


def _both(
    sheet: Sheet, points: np.ndarray, colour: Colour, *, lift: float = 0.0, depth: float | None = None
) -> None:
    sheet.add(points, colour, lift=lift, depth=depth)
    sheet.add(points * _MIRROR, colour, lift=lift, depth=depth)


def _ears(sheet: Sheet, dice: Dice, skin: Colour, hair: Hair, skull: Skull) -> bool:
    """Whether there are earrings."""
    out, tall, y = dice.between(0.05, 0.12), dice.between(0.11, 0.18), dice.between(-0.02, 0.1)
    if not hair.covers_ears:
        _both(
            sheet,
            ellipse(skull.width + 0.02, y, out, tall, dice.between(-0.3, 0.2)),
            shade(skin, 0.9),
            depth=-0.06,
        )
        _both(sheet, ellipse(skull.width + 0.035, y, out * 0.5, tall * 0.6), shade(skin, 0.74), depth=-0.05)
    earrings = dice.chance(0.24)
    if earrings:
        metal = dice.pick(((236, 200, 90), (220, 222, 230), hsv(dice.one(), 0.8, 0.9)))
        size = dice.between(0.03, 0.06)
        _both(sheet, ellipse(skull.width + 0.05, y + tall + size * 0.7, size, size), metal, depth=0.0)
    return earrings


def _skin_marks(sheet: Sheet, dice: Dice, skin: Colour, skull: Skull) -> None:
    if dice.chance(0.5):
        blush = blend(
            skin, dice.pick(((235, 90, 90), (240, 120, 110), (180, 60, 70))), dice.between(0.12, 0.38)
        )
        x, y, size = dice.between(0.26, 0.34), dice.between(0.16, 0.26), dice.between(0.07, 0.13)
        _both(sheet, ellipse(x, y, size, size * 0.75), blush)
    if dice.chance(0.35):  # lines from nose to mouth
        line = np.stack([0.13 + 0.1 * _T + 0.04 * _ARCH, 0.18 + 0.2 * _T], axis=1)
        _both(sheet, ribbon(line, dice.between(0.014, 0.028)), shade(skin, dice.between(0.7, 0.85)))
    if dice.chance(0.25):  # lines on the forehead
        for row in range(1 + dice.below(3)):
            line = np.stack([0.44 * _T - 0.22, -0.3 - 0.08 * row - 0.02 * _ARCH], axis=1)
            sheet.add(ribbon(line, 0.016), shade(skin, 0.82))
    if dice.chance(0.3):
        spot = shade(skin, dice.between(0.62, 0.78))
        for _ in range(7 + dice.below(9)):
            x, y, size = dice.between(0.05, 0.4), dice.between(0.06, 0.26), dice.between(0.012, 0.022)
            sheet.add(ellipse(x * dice.pick((-1, 1)), y, size, size, points=6), spot)
    for _ in range(dice.pick((0, 1, 2, 3), (45, 30, 15, 10))):
        x, y, size = dice.between(-0.36, 0.36), dice.between(-0.3, 0.45), dice.between(0.02, 0.036)
        sheet.add(ellipse(x, y, size, size, points=8), blend(skin, (52, 26, 20), 0.8), lift=0.01)
    if dice.chance(0.1):  # a scar
        x, y, turn, long = (
            dice.between(-0.34, 0.34),
            dice.between(-0.3, 0.4),
            dice.between(0, 3.1),
            dice.between(0.08, 0.16),
        )
        line = np.array([[x, y], [x, y]]) + np.array([[-1], [1]]) * long * np.array(
            [np.cos(turn), np.sin(turn)]
        )
        sheet.add(ribbon(line, 0.03), blend(skin, (255, 225, 215), 0.55))
    if skull.chin > 0.68 and dice.chance(0.4):  # a cleft chin
        sheet.add(ellipse(0.0, skull.chin - 0.09, 0.018, 0.045, points=8), shade(skin, 0.78))


def _beard(sheet: Sheet, dice: Dice, skin: Colour, hair: Colour, skull: Skull) -> str:
    """Its kind."""
    kind = dice.pick(("none", "stubble", "full", "goatee", "moustache", "both"), (56, 9, 12, 8, 9, 6))
    colour = blend(
        shade(hair, dice.between(0.6, 0.95)), skin, 0.58 if kind == "stubble" else dice.between(0.0, 0.15)
    )
    if kind in ("stubble", "full"):
        sin = np.sin(np.linspace(0.12, np.pi / 2, 9))
        width = skull.width * np.maximum(1 - sin**2.4, 0) ** 0.5 + 0.02
        jaw = np.stack(
            [width, skull.chin * sin * (1.0 if kind == "stubble" else dice.between(1.0, 1.16))], axis=1
        )
        reach, top = dice.between(0.2, 0.34), dice.between(0.22, 0.32)
        cheek = np.array([[0.0, top + 0.02], [reach, top], [skull.width * 0.86, 0.02]])
        half = np.concatenate([jaw[::-1], cheek[::-1]])
        sheet.add(np.concatenate([half, (half * _MIRROR)[::-1]]), colour, lift=0.005)
    if kind in ("goatee", "both"):
        wide, tall = dice.between(0.09, 0.2), dice.between(0.09, 0.18)
        sheet.add(ellipse(0.0, skull.chin - 0.06, wide, tall), colour, lift=0.02)
    if kind in ("moustache", "both", "full", "goatee"):
        reach, droop = dice.between(0.15, 0.27), dice.between(-0.04, 0.1)
        line = np.stack([reach * (2 * _T - 1), 0.275 + droop * (2 * _T - 1) ** 2], axis=1)
        sheet.add(ribbon(line, dice.between(0.05, 0.1) * (0.25 + 0.75 * _ARCH)), colour, lift=0.05)
    return kind


def _nose(sheet: Sheet, dice: Dice, skin: Colour, eye_y: float) -> None:
    tip, wide = dice.between(0.14, 0.25), dice.between(0.065, 0.14)
    bridge, hook = dice.between(0.02, 0.05), dice.between(-0.03, 0.05)
    dark, out = shade(skin, dice.between(0.72, 0.84)), dice.between(0.1, 0.2)
    side = dice.pick((-1.0, 1.0))
    wall = np.array(
        [[bridge, eye_y], [bridge + 0.02 + hook, (eye_y + tip) / 2], [wide, tip], [wide * 0.3, tip + 0.03]]
    )
    sheet.add(np.concatenate([wall, [[0.0, eye_y + 0.05]]]) * [side, 1.0], shade(skin, 0.88), lift=out * 0.4)
    if dice.chance(0.6):
        line = np.array([[0.0, eye_y + 0.04], [0.0, tip - 0.05]])
        sheet.add(ribbon(line, bridge), blend(skin, (255, 250, 240), 0.3), lift=out * 0.9)
    sheet.add(ellipse(0.0, tip, wide, dice.between(0.045, 0.075)), dark, lift=out * 0.8)
    sheet.add(ellipse(0.0, tip - 0.022, wide * 0.8, 0.05), shade(skin, dice.between(0.98, 1.06)), lift=out)
    _both(
        sheet,
        ellipse(wide * 0.5, tip + 0.024, wide * 0.24, 0.017, points=8),
        shade(skin, 0.4),
        lift=out * 0.9,
    )


def _mouth(sheet: Sheet, dice: Dice, skin: Colour, skull: Skull) -> None:
    y = skull.chin * dice.between(0.5, 0.6)
    half, upper, lower = dice.between(0.14, 0.25), dice.between(0.025, 0.07), dice.between(0.035, 0.085)
    curve, bow = dice.around(0.05), dice.between(0.0, 0.03)
    lips = blend(skin, dice.pick(((176, 62, 66), (150, 70, 62), (110, 48, 50))), dice.between(0.3, 0.65))
    if dice.chance(0.22):
        lips = hsv(dice.between(0.88, 1.04), dice.between(0.6, 0.9), dice.between(0.45, 0.9))
    across = 2 * _T - 1
    middle = np.stack([half * across, y + curve * (across**2 - 0.5)], axis=1)
    smile = np.stack([0.06 * across, -0.07 * (across**2 - 0.4)], axis=1)
    top = middle - np.stack([0 * _T, upper * _ARCH**0.7 - bow * np.exp(-((across / 0.25) ** 2))], axis=1)
    bottom = middle + np.stack([0 * _T, lower * _ARCH**0.8], axis=1)
    drop = np.stack([-0.03 * across, 0.12 * _ARCH], axis=1)

    def rim(*edges: np.ndarray) -> np.ndarray:
        return np.concatenate([edges[0], edges[1][::-1]])

    still = np.zeros_like(drop)
    sheet.add(
        rim(middle, middle),
        (70, 22, 24),
        lift=0.04,
        moves={"smile": rim(smile, smile), "open": rim(still, drop)},
    )
    teeth = np.stack([0 * _T, 0.045 * _ARCH], axis=1)
    sheet.add(
        rim(middle, middle),
        (246, 242, 232),
        lift=0.04,
        moves={"smile": rim(smile, smile), "open": rim(still, teeth)},
    )
    moves = {"smile": rim(smile, smile)}
    sheet.add(rim(top, middle), shade(lips, 0.86), lift=0.05, moves=moves)
    sheet.add(rim(middle, bottom), lips, lift=0.05, moves=moves | {"open": rim(drop, drop)})
    seam = ribbon(middle, 0.016)
    sheet.add(seam, shade(lips, 0.45), lift=0.05, moves={"smile": rim(smile, smile)})


def _eyes(sheet: Sheet, dice: Dice, skin: Colour, place: tuple[float, float]) -> float:
    """Draws both eyes, gives back their half width."""
    half, opened = dice.between(0.09, 0.145), dice.between(0.05, 0.095)
    tilt, peak = dice.around(0.32), dice.between(0.38, 0.62)
    radius = dice.between(0.055, 0.08)
    iris = blend(dice.pick(_IRIS), dice.pick(_IRIS), dice.between(0, 0.3))
    lid = blend(shade(skin, dice.between(0.72, 0.95)), skin, 0.2)
    if dice.chance(0.2):
        lid = blend(skin, hsv(dice.one(), 0.7, 0.8), dice.between(0.35, 0.7))
    lash, bags = dice.between(0.015, 0.045), dice.chance(0.25)
    arch = np.sin(np.pi * _T ** (np.log(0.5) / np.log(peak))) ** 0.85
    x = half * (2 * _T - 1)
    turn = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
    upper, lower = np.stack([x, -opened * arch], axis=1), np.stack([x, 0.6 * opened * _ARCH], axis=1)
    brim = np.stack([x * 1.06, -(np.maximum(opened, radius) + 0.035) * _ARCH], axis=1)
    under = np.stack([x * 1.04, (0.6 * opened + radius * 0.6) * _ARCH], axis=1)
    close = np.stack([0 * _T, (1.5 * opened) * arch], axis=1)
    for side in (1.0, -1.0):
        flip = np.array([side, 1.0])
        centre = np.array([place[0] * side, place[1]])

        def at(points: np.ndarray, flip: np.ndarray = flip, centre: np.ndarray = centre) -> np.ndarray:
            return (points @ turn) * flip + centre

        gaze = {"look_x": np.array([0.45 * (half - radius * 0.6), 0.0]), "look_y": np.array([0.0, 0.02])}
        sheet.add(at(np.concatenate([upper, lower[::-1]])), (250, 248, 244), lift=0.01)
        sheet.add(ellipse(centre[0], centre[1], radius, radius), iris, lift=0.01, moves=gaze)
        sheet.add(
            ellipse(centre[0], centre[1], radius * 0.5, radius * 0.5, points=8),
            (14, 12, 14),
            lift=0.01,
            moves=gaze,
        )
        glint = ellipse(
            centre[0] - radius * 0.35, centre[1] - radius * 0.35, radius * 0.26, radius * 0.26, points=6
        )
        sheet.add(glint, (255, 255, 255), lift=0.01, moves=gaze)
        sheet.add(at(np.concatenate([lower, under[::-1]])), shade(skin, 0.86 if bags else 0.97), lift=0.01)
        shut = np.concatenate([close, 0 * close])
        sheet.add(at(np.concatenate([upper, brim[::-1]])), lid, lift=0.01, moves={"close": shut})
        line = at(ribbon(upper * 1.03, lash))
        sheet.add(line, (36, 24, 24), lift=0.015, moves={"close": np.concatenate([close, close[::-1]])})
    return half


def _brows(sheet: Sheet, dice: Dice, hair: Hair, place: tuple[float, float], reach: float) -> None:
    half, thick = reach * dice.between(0.95, 1.35), dice.between(0.02, 0.065)
    gap, arch, tilt = dice.between(0.12, 0.19), dice.between(0.0, 0.07), dice.around(0.06)
    taper = dice.between(0.2, 1.0)
    colour = blend(shade(hair.colour, dice.between(0.5, 0.9)), (40, 28, 24), dice.between(0.1, 0.4))
    across = 2 * _T - 1
    line = np.stack([half * across, -gap + tilt * across - arch * _ARCH], axis=1) + place
    brow = ribbon(line, thick * (1 - taper * 0.8 * _T))
    raised = {"raise": np.array([0.0, -0.06])}
    sheet.add(brow, colour, lift=0.03, moves=raised)
    sheet.add(brow * _MIRROR, colour, lift=0.03, moves=raised)


def _extras(
    sheet: Sheet, dice: Dice, skull: Skull, place: tuple[float, float], hair: Hair
) -> tuple[bool, bool]:
    """Things that this person always wears: whether a headband, whether glasses."""
    headband = dice.chance(0.16) and hair.outline not in ("mohawk", "bald")
    if headband:
        band = hsv(dice.one(), dice.between(0.4, 0.9), dice.between(0.4, 0.95))
        y, arch = -dice.between(0.4, 0.5), dice.between(0.0, 0.08)
        line = np.stack([(skull.width * 1.02) * (2 * _T - 1), y - arch * _ARCH], axis=1)
        sheet.add(ribbon(line, dice.between(0.07, 0.14)), band, lift=0.06)
    if not dice.chance(0.38):
        return headband, False
    frame = dice.pick(
        ((28, 26, 30), (96, 60, 34), (200, 168, 84), (190, 194, 204), hsv(dice.one(), 0.8, 0.75))
    )
    wide, tall, thick = dice.between(0.14, 0.195), dice.between(0.1, 0.17), dice.between(0.018, 0.045)
    square, turn = dice.between(0.45, 1.1), dice.around(0.25)
    angle = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    cos, sin = np.cos(angle), np.sin(angle)
    rim = np.stack([np.sign(cos) * np.abs(cos) ** square, np.sign(sin) * np.abs(sin) ** square], axis=1)
    rotate = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    outer, inner = rim * [wide, tall] @ rotate + place, rim * [wide - thick, tall - thick] @ rotate + place
    bridge = np.array([[place[0] - wide + 0.01, place[1] - 0.03], [-place[0] + wide - 0.01, place[1] - 0.03]])
    for flip in (np.array([1.0, 1.0]), _MIRROR):
        sheet.add(outer * flip, frame, lift=0.08, hole=inner * flip)
        arm = np.array([[place[0] + wide - 0.01, place[1] - 0.04], [skull.width + 0.01, place[1] - 0.02]])
        sheet.add(ribbon(arm, thick) * flip, frame, depth=0.05)
    sheet.add(ribbon(bridge, thick), frame, lift=0.08)
    return headband, True
