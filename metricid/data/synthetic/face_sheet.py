"""A face as a stack of coloured polygons in space, with the few ways in which an expression moves them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from metricid.data.synthetic.drawing import Colour, fill

MOVES = ("smile", "open", "raise", "close", "look_x", "look_y")


@dataclass(frozen=True)
class Skull:
    """The solid that features lie on.

    Lengths are such that the head is some 1.1 wide and 1.4 high; y points down and is 0 between the ears.
    """

    width: float
    top: float
    chin: float
    depth: float

    def height(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """How far the surface at (x, y) stands out towards the camera."""
        fall = np.where(y < 0, self.top * 1.1, self.chin * 1.1)
        return self.depth * np.sqrt(np.maximum(1 - (x / (self.width * 1.04)) ** 2 - (y / fall) ** 2, 0.0))


@dataclass
class _Shape:
    colour: Colour
    contours: list[slice]


@dataclass
class Sheet:
    """Collects polygons back to front, then draws them under any pose and expression."""

    skull: Skull
    _flat: list[np.ndarray] = field(default_factory=list)
    _depth: list[tuple[int, bool, float]] = field(default_factory=list)
    _moves: list[tuple[slice, str, np.ndarray]] = field(default_factory=list)
    _shapes: list[_Shape] = field(default_factory=list)
    _size: int = 0

    def __len__(self) -> int:
        """How many polygons there are so far."""
        return len(self._shapes)

    def add(
        self,
        points: np.ndarray,
        colour: Colour,
        *,
        lift: float = 0.0,
        depth: float | None = None,
        moves: Mapping[str, np.ndarray] | None = None,
        hole: np.ndarray | None = None,
    ) -> None:
        """Puts a polygon on top of the others.

        Args:
            points: [n, 2].
            colour: RGB.
            lift: distance from the surface of the skull.
            depth: if given, the polygon is flat at this depth and not on the skull.
            moves: by name of the expression, the offset [n, 2] (or [2]) at full strength.
            hole: [m, 2], left open.
        """
        contours = []
        for contour in (points,) if hole is None else (points, hole):
            part = slice(self._size, self._size + len(contour))
            contours.append(part)
            self._flat.append(contour)
            self._depth.append((len(contour), depth is None, lift if depth is None else depth))
            self._size = part.stop
        for name, offset in (moves or {}).items():
            self._moves.append((contours[0], name, offset))
        self._shapes.append(_Shape(colour, contours))

    def bake(self) -> "BakedSheet":
        """The same as arrays."""
        flat = np.concatenate(self._flat)
        counts = [count for count, _, _ in self._depth]
        on_skull = np.repeat([on for _, on, _ in self._depth], counts)
        depth = np.repeat([value for _, _, value in self._depth], counts)
        depth = depth + on_skull * self.skull.height(flat[:, 0], flat[:, 1])
        moves = np.zeros((len(MOVES), len(flat), 2), dtype=np.float32)
        for part, name, offset in self._moves:
            moves[MOVES.index(name), part] += offset
        space = np.concatenate([flat, depth[:, None]], axis=1).astype(np.float32)
        moving = np.flatnonzero(moves.any(axis=(0, 2)))
        return BakedSheet(space, moving, moves[:, moving], self._shapes)


@dataclass(frozen=True)
class BakedSheet:
    """Points [N, 3], the M of them that expressions move, the moves [len(MOVES), M, 2], and the shapes."""

    space: np.ndarray
    moving: np.ndarray
    moves: np.ndarray
    shapes: list[_Shape]

    def project(self, camera: np.ndarray, strength: np.ndarray) -> np.ndarray:
        """Where the points fall.

        Args:
            camera: [2, 4], an affine map from space to the plane.
            strength: [len(MOVES)], how much of each move.

        Returns:
            float32 [N, 2].
        """
        space = self.space.copy()
        space[self.moving, :2] += np.tensordot(strength.astype(np.float32), self.moves, axes=1)
        return space @ camera[:, :3].T.astype(np.float32) + camera[:, 3].astype(np.float32)

    def draw(self, image: np.ndarray, subpixels: np.ndarray, start: int, stop: int | None) -> None:
        """Fills shapes `start` to `stop` whose projected points are `subpixels` (int32 [N, 2])."""
        for shape in self.shapes[start:stop]:
            fill(image, [subpixels[part] for part in shape.contours], shape.colour)
