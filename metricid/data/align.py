"""Faces brought to one place by five landmarks: arrays only, the images behind them are in `aligned`."""

import cv2
import numpy as np

from metricid.errors import InputError

# Left eye, right eye (as the image shows them), tip of the nose, left and right corner of the mouth: where
# they lie in 112 x 112 pixels, x before y (Deng et al., ArcFace, CVPR 2019, and models trained in its way).
_TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
_LEAST_SPREAD = 1e-3  # pixels; landmarks nearer to each other than this are one point


def size_problem(size: tuple[int, int]) -> str:
    """Why there is no template of this (height, width), or an empty text."""
    height, width = size
    if height == width and height > 0 and (height % 112 == 0 or height % 128 == 0):
        return ""
    return f"faces are aligned to squares of a multiple of 112 or 128 pixels, not to {height} x {width}"


def template(size: tuple[int, int]) -> np.ndarray:
    """The five points of an aligned face.

    Args:
        size: (height, width), a square. Multiples of 112 scale the template; multiples of 128 have a margin,
            8 of 128 pixels wide on either side and all of it below.

    Returns:
        [5, 2] float64, (x, y) in pixels.

    Raises:
        InputError: there is no template of this size.
    """
    problem = size_problem(size)
    if problem:
        raise InputError(problem)
    if size[0] % 112 == 0:
        return _TEMPLATE * (size[0] / 112)
    return (_TEMPLATE + np.array([8.0, 0.0])) * (size[0] / 128)


def landmark_problem(points: np.ndarray) -> str:
    """Why five landmarks [5, 2] place no face, or an empty text."""
    if not np.isfinite(points).all():
        return "its landmarks are not finite numbers"
    if np.ptp(points, axis=0).max() < _LEAST_SPREAD:
        x, y = points[0]
        return f"its five landmarks are one point ({x:g}, {y:g}), which places no face"
    return ""


def similarity(points: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The turn, scale and shift that bring points nearest to others, in the sum of squared distances.

    Umeyama, "Least-squares estimation of transformation parameters between two point patterns", PAMI 1991,
    eq. 40 to 43. There is no reflection: the matrix has a positive determinant.

    Args:
        points: [N, 2], (x, y).
        target: [N, 2], where they should go.

    Returns:
        [2, 3] float64; `matrix[:, :2] @ point + matrix[:, 2]` is near its target.

    Raises:
        InputError: the points are not finite or all one.
    """
    points, target = np.asarray(points, np.float64), np.asarray(target, np.float64)
    problem = landmark_problem(points)
    if problem:
        raise InputError(problem)
    from_mean, to_mean = points.mean(axis=0), target.mean(axis=0)
    centred = points - from_mean
    covariance = (target - to_mean).T @ centred / len(points)
    left, values, right = np.linalg.svd(covariance)
    signs = np.array([1.0, np.sign(np.linalg.det(left) * np.linalg.det(right))])
    rotation = (left * signs) @ right
    scale = (values * signs).sum() / centred.var(axis=0).sum()
    if not scale > 0:
        raise InputError("its landmarks are as near to a mirrored face as to a face, which places none")
    linear = scale * rotation
    return np.column_stack([linear, to_mean - linear @ from_mean])


def mirrored(landmarks: np.ndarray) -> np.ndarray:
    """Which faces have left and right exchanged: no turn brings them to the template, a mirror does.

    Args:
        landmarks: [N, 5, 2].

    Returns:
        [N] bool.
    """
    centred = landmarks - landmarks.mean(axis=1, keepdims=True)
    target = _TEMPLATE - _TEMPLATE.mean(axis=0)
    return np.linalg.det(np.einsum("pi,npj->nij", target, centred)) < 0


def warp_face(image: np.ndarray, points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The face of an image in the place of the template.

    Args:
        image: [H, W, 3] uint8.
        points: [5, 2], (x, y) in pixels of the image.
        size: (height, width) of the result.

    Returns:
        [*size, 3] uint8, interpolated linearly; black where the image has no pixels.

    Raises:
        InputError: a size without a template, or landmarks that place no face.
    """
    matrix = similarity(points, template(size))
    return cv2.warpAffine(image, matrix, (size[1], size[0]), flags=cv2.INTER_LINEAR, borderValue=(0, 0, 0))
