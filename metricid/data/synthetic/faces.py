"""Generated faces. `face_shapes` has the person; here is everything that changes from picture to picture."""

from functools import lru_cache
from typing import ClassVar

import numpy as np

from metricid.data.synthetic.drawing import (
    Colour,
    Dice,
    background,
    blend,
    ellipse,
    expose,
    fill,
    hsv,
    light_up,
    ribbon,
    sense,
    shade,
    to_subpixels,
)
from metricid.data.synthetic.face_shapes import MOST_ALIKE, Person, build_person
from metricid.data.synthetic.source import SyntheticSource

_build_person = lru_cache(maxsize=1024)(build_person)
_DOWN = np.linspace(0.0, 1.0, 5)


class SyntheticFaces(SyntheticSource):
    """Drawn faces of any number of people.

    To the identity belong the shape of the head, skin, hair, brows, eyes, nose, mouth, beard, marks on the
    skin, and glasses, headband and earrings where the person wears them. Pose, place, size, expression, gaze,
    light, clothes, occluder, background, blur and noise change from image to image.

    Args:
        seed: another seed, other people.
        identities: how many people.
        images: how many images of each.
        size: (height, width) in pixels.
        first_identity: number of the first person, so that two sources of one seed can have different people.
        family: so many people in a row look alike; 1: nobody does, but by chance.
        alike: of the nine parts of a face (head and skin, hair, skin marks, beard, eyes, nose, mouth, brows,
            what is worn) so many are those of the family, others for each member; 0 to 8.
        attributes: add columns to the manifest that say what the person looks like: `hair` (the cut), `beard`
            (its kind, or none), `glasses`, `headband`, `earrings`, `long_hair` (1 or 0), and `face_ratio`,
            the height of the head over its width.
        missing: share of these cells that is empty, chosen at random, but the same for one seed.

    Raises:
        InputError: an option is out of range.

    >>> faces = SyntheticFaces(identities=2, images=3)
    >>> faces.paths()[-1], faces.read(faces.paths()[-1]).shape
    ('face-v1/s0/112x112/000001/0002', (112, 112, 3))
    """

    kind: ClassVar[str] = "face"
    version: ClassVar[int] = 1  # raise it with every change that changes a pixel

    def __init__(
        self,
        seed: int = 0,
        identities: int = 500,
        images: int = 16,
        size: tuple[int, int] = (112, 112),
        first_identity: int = 0,
        family: int = 1,
        alike: int = 6,
        attributes: bool = False,
        missing: float = 0.0,
    ) -> None:
        super().__init__(seed, identities, images, size, first_identity, attributes, missing)
        self.family = self._whole("family", family, (1, 10**6))
        self.alike = self._whole("alike", alike, (0, MOST_ALIKE))

    def describe(self, identity: int) -> dict[str, str]:
        """See the base class."""
        return dict(_build_person(self.seed, identity, self.family, self.alike).look)

    def draw(self, identity: int, image: int) -> np.ndarray:
        """See the base class."""
        person = _build_person(self.seed, identity, self.family, self.alike)
        dice = Dice(0x1AA6E, self.seed, identity, image)
        height, width = self.size
        unit = min(height, width) / 2
        canvas = background(dice, self.size, _scenery(dice))

        camera = _pose(dice) * unit
        camera[:, 3] += (width / 2, height / 2)
        strength = np.array(
            [dice.around(0.9), max(0.0, dice.around(1.1)), dice.around(0.8), max(0.0, dice.around(0.8)),
             dice.around(1.0), dice.around(1.0)]
        )  # fmt: skip
        points = to_subpixels(person.sheet.project(camera, strength))
        person.sheet.draw(canvas, points, 0, person.behind)
        _draw_shoulders(canvas, dice, camera, person)
        person.sheet.draw(canvas, points, person.behind, None)
        if dice.chance(0.2):
            _occlude(canvas, dice, unit)

        key = np.array([dice.between(-1.0, 1.0), dice.between(-1.0, 0.5), dice.between(0.15, 1.0)])
        strong, warm = dice.between(0.2, 0.6), dice.around(0.08)
        dim = dice.between(0.9, 1.1) - 0.5 * strong
        head = np.array([[0.75 * camera[0, 0], 0, camera[0, 3]], [0, 0.9 * camera[1, 1], camera[1, 3]]])
        canvas = light_up(
            canvas,
            key,
            (dim - 0.4 * warm, dim, dim + 0.4 * warm),
            (strong + warm, strong, strong - warm),
            head,
        )
        gain = tuple(1 + dice.around(0.08) for _ in range(3))
        canvas = expose(canvas, (gain[0], gain[1], gain[2]), dice.between(0.85, 1.18))
        blur = max(0.0, dice.between(-0.6, 0.8)) * unit / 56
        return sense(canvas, dice, blur, dice.between(1.0, 7.0), 0.5 if dice.chance(0.08) else 1.0)

    def _people(self) -> str:
        return super()._people() + (f"f{self.family}a{self.alike}" if self.family > 1 else "")


def _any_colour(dice: Dice) -> Colour:
    return hsv(dice.one(), dice.between(0.05, 0.4), dice.between(0.3, 0.9))


def _scenery(dice: Dice) -> list[Colour]:
    """Three colours that go together."""
    base = _any_colour(dice)
    return [blend(base, _any_colour(dice), 0.3) for _ in range(3)]


def _pose(dice: Dice) -> np.ndarray:
    """From space to the plane, [2, 4], in half images about the centre."""
    yaw, pitch, roll = dice.around(0.5), dice.around(0.25), dice.around(0.24)
    zoom = dice.between(0.98, 1.18)
    cos_y, sin_y, cos_p, sin_p = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
    turn = np.array([[cos_y, 0.0, sin_y], [sin_p * sin_y, cos_p, -sin_p * cos_y]])
    cos_r, sin_r = np.cos(roll), np.sin(roll)
    turn = zoom * np.array([[cos_r, -sin_r], [sin_r, cos_r]]) @ turn
    shift = np.array([[dice.around(0.14)], [dice.around(0.14) + 0.03]])
    return np.concatenate([turn, shift], axis=1)


def _draw_shoulders(canvas: np.ndarray, dice: Dice, camera: np.ndarray, person: Person) -> None:
    """Neck and clothes; they hang from the head but do not turn with it."""
    zoom = float(np.hypot(camera[0, 0], camera[1, 0]) + np.hypot(camera[0, 1], camera[1, 1])) / 2
    origin = camera[:, 3]
    chin, wide = person.skull.chin, dice.between(0.75, 1.0)
    cloth = hsv(dice.one(), dice.between(0.05, 0.5), dice.between(0.25, 0.9))
    collar = dice.between(0.16, 0.3)
    neck = np.array([[-0.24, 0.3], [0.24, 0.3], [0.26, chin + 0.35], [-0.26, chin + 0.35]])
    slope = np.stack([0.22 + (wide - 0.22) * _DOWN, chin + 0.14 + 0.3 * _DOWN**2], axis=1)
    body = np.concatenate([slope, [[wide + 0.05, 2.2], [-wide - 0.05, 2.2]], (slope * [-1, 1])[::-1]])
    throat = np.array([[-0.21, chin + 0.1], [0.21, chin + 0.1], [0.0, chin + 0.1 + collar]])
    for points, colour in (
        (neck, shade(person.skin, 0.78)),
        (body, cloth),
        (throat, shade(person.skin, 0.82)),
    ):
        fill(canvas, [to_subpixels(points * zoom + origin)], colour)
    if dice.chance(0.5):
        edge = np.array([[-0.22, chin + 0.1], [0.0, chin + 0.12 + collar], [0.22, chin + 0.1]])
        trim = ribbon(edge, dice.between(0.05, 0.12))
        fill(canvas, [to_subpixels(trim * zoom + origin)], blend(cloth, _any_colour(dice), 0.7))


def _occlude(canvas: np.ndarray, dice: Dice, unit: float) -> None:
    """Something in front of the face, coming in from an edge: a cup, a bar, a leaf."""
    height, width = canvas.shape[:2]
    angle = dice.between(0, 2 * np.pi)
    away = dice.between(0.62, 0.95)
    x, y = np.cos(angle) * away, np.sin(angle) * away
    colour = _any_colour(dice)
    kind = dice.below(3)
    if kind == 0:
        shape = ellipse(x, y, dice.between(0.2, 0.34), dice.between(0.2, 0.34), dice.between(0, 3))
    elif kind == 1:
        along = angle + dice.between(1.2, 1.9)
        reach = np.array([[np.cos(along), np.sin(along)]]) * 2.2
        shape = ribbon(np.concatenate([reach, -reach]) + np.array([x, y]), dice.between(0.1, 0.24))
    else:
        shape = ellipse(x, y, dice.between(0.24, 0.4), dice.between(0.1, 0.2), angle, points=6)
    fill(canvas, [to_subpixels(shape * unit + [width / 2, height / 2])], colour)
