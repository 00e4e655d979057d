"""What belongs to a pedestrian: build, skin, hair, clothes, shoes, bag. Lengths are in body heights."""

import colorsys
from dataclasses import dataclass

from metricid.data.synthetic.drawing import Colour, Dice, blend, hsv
from metricid.data.synthetic.face_hair import hair_colour
from metricid.data.synthetic.face_shapes import skin_colour


@dataclass(frozen=True)
class Build:
    """Proportions of the body."""

    tall: float
    shoulder: float
    hip: float
    deep: float
    belly: float
    head: float
    skin: Colour


@dataclass(frozen=True)
class Head:
    """Hair, cap or hood, and beard."""

    style: str  # short, long, bun, tail, bald, cap, hood, afro
    hair: Colour
    cloth: Colour
    beard: bool


@dataclass(frozen=True)
class Top:
    """What the upper body wears."""

    main: Colour
    second: Colour
    sleeve: Colour
    pattern: str  # plain, rows, columns, checks, block, logo, open, sash
    bars: int
    share: float
    sleeves: float  # 0 none, 0.5 to the elbow, 1 to the wrist
    hem: float  # height above the ground
    flare: float
    scarf: Colour | None
    belt: Colour | None


@dataclass(frozen=True)
class Bottom:
    """Trousers, shorts or skirt, and shoes."""

    kind: str  # trousers, shorts, skirt
    main: Colour
    stripe: Colour | None
    hem: float
    wide: float
    shoe: Colour
    boot: float


@dataclass(frozen=True)
class Bag:
    """What is carried."""

    kind: str  # none, backpack, messenger, handbag
    colour: Colour
    trim: Colour
    wide: float
    tall: float
    side: float


@dataclass(frozen=True)
class Outfit:
    """All that belongs to a pedestrian."""

    build: Build
    head: Head
    top: Top
    bottom: Bottom
    bag: Bag


def choose_outfit(seed: int, identity: int) -> Outfit:
    """The pedestrian with number `identity`."""
    dice = Dice(0x9ED5, seed, identity)
    build = Build(
        tall=dice.between(0.88, 1.04),
        shoulder=dice.between(0.1, 0.145),
        hip=dice.between(0.085, 0.13),
        deep=dice.between(0.06, 0.095),
        belly=max(0.0, dice.between(-0.04, 0.05)),
        head=dice.between(0.058, 0.07),
        skin=skin_colour(dice),
    )
    style = dice.pick(
        ("short", "long", "bun", "tail", "bald", "cap", "hood", "afro"), (26, 20, 8, 10, 7, 14, 7, 8)
    )
    head = Head(style, hair_colour(dice), cloth_colour(dice), dice.chance(0.2))
    return Outfit(build, head, _top(dice), _bottom(dice), _bag(dice))


def colour_name(colour: Colour) -> str:
    """The everyday word for a colour, one of eight."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(part / 255 for part in colour))
    if value < 0.28:
        return "black"
    if saturation < 0.2:
        return "white" if value > 0.8 else "grey"
    ends = ((0.05, "red"), (0.19, "yellow"), (0.45, "green"), (0.7, "blue"), (0.92, "purple"), (1.01, "red"))
    return next(name for end, name in ends if hue < end)


def describe(outfit: Outfit) -> dict[str, str]:
    """What a witness might say of a person, by column of a manifest."""
    head, bottom = outfit.head, outfit.bottom
    yes_or_no = {
        "hat": head.style in ("cap", "hood"),
        "skirt": bottom.kind == "skirt" or outfit.top.flare > 0.03,  # or a dress
        "bare_legs": bottom.kind != "trousers",
        "carries": outfit.bag.kind != "none",
    }
    return {
        "color": colour_name(outfit.top.main),
        "bag": outfit.bag.kind,
        **{name: str(int(value)) for name, value in yes_or_no.items()},
        "height": f"{175 * outfit.build.tall:.1f}",
    }


def cloth_colour(dice: Dice) -> Colour:
    """Often dark, grey, white or denim, otherwise anything."""
    kind = dice.one()
    if kind < 0.16:
        return hsv(dice.one(), dice.between(0.0, 0.3), dice.between(0.1, 0.25))
    if kind < 0.28:
        return hsv(dice.one(), dice.between(0.0, 0.12), dice.between(0.4, 0.98))
    if kind < 0.38:
        return hsv(dice.between(0.57, 0.65), dice.between(0.35, 0.7), dice.between(0.35, 0.75))
    return hsv(dice.one(), dice.between(0.35, 0.9), dice.between(0.35, 0.95))


def _top(dice: Dice) -> Top:
    main, second = cloth_colour(dice), cloth_colour(dice)
    pattern = dice.pick(
        ("plain", "rows", "columns", "checks", "block", "logo", "open", "sash"), (20, 16, 9, 9, 15, 12, 18, 6)
    )
    kind = dice.pick(("shirt", "jacket", "coat", "dress"), (50, 25, 13, 12))
    hem = {"shirt": (0.45, 0.52), "jacket": (0.4, 0.47), "coat": (0.22, 0.34), "dress": (0.22, 0.36)}[kind]
    sleeves = 1.0 if kind in ("jacket", "coat") or dice.chance(0.35) else dice.pick((0.0, 0.5, 0.5, 1.0))
    return Top(
        main=main,
        second=second,
        sleeve=second if dice.chance(0.25) else main,
        pattern=pattern,
        bars=2 + dice.below(4),
        share=dice.between(0.3, 0.6),
        sleeves=sleeves,
        hem=dice.between(*hem),
        flare=dice.between(0.03, 0.09) if kind == "dress" else dice.between(0.0, 0.03),
        scarf=cloth_colour(dice) if dice.chance(0.15) else None,
        belt=cloth_colour(dice) if dice.chance(0.2) else None,
    )


def _bottom(dice: Dice) -> Bottom:
    kind = dice.pick(("trousers", "shorts", "skirt"), (62, 20, 18))
    main = cloth_colour(dice)
    hem = {"trousers": 0.04, "shorts": dice.between(0.26, 0.34), "skirt": dice.between(0.14, 0.36)}[kind]
    return Bottom(
        kind=kind,
        main=main,
        stripe=cloth_colour(dice) if dice.chance(0.2) else None,
        hem=hem,
        wide=dice.between(0.038, 0.065),
        shoe=cloth_colour(dice),
        boot=dice.between(0.1, 0.2) if dice.chance(0.25) else 0.03,
    )


def _bag(dice: Dice) -> Bag:
    kind = dice.pick(("none", "backpack", "messenger", "handbag"), (30, 30, 20, 20))
    colour = cloth_colour(dice)
    trim = blend(colour, cloth_colour(dice), 0.7)
    return Bag(kind, colour, trim, dice.between(0.06, 0.1), dice.between(0.07, 0.12), dice.pick((-1.0, 1.0)))
