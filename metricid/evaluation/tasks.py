"""How well tasks beside the identity are done: categories, attributes, numbers and masks."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metricid.evaluation.arrays import FloatArray


def category_metrics(predicted: ArrayLike, truth: ArrayLike) -> dict[str, float]:
    """Accuracy, balanced accuracy and macro-F1 of a category.

    Balanced accuracy is the mean recall over the classes that occur in `truth`; macro-F1 the mean of
    2 TP / (2 TP + FP + FN) over those that occur in either.

    Args:
        predicted: [N] a class for each image, as numbers or names.
        truth: [N] likewise; a class that can never be predicted counts as wrong.

    Raises:
        ValueError: no image, or other shapes.

    Example:
        >>> category_metrics(["red", "red", "blue"], ["red", "blue", "blue"])["accuracy"]
        0.6666666666666666
    """
    guessed, right = np.asarray(predicted), np.asarray(truth)
    _check_rows(guessed, right)
    _, codes = np.unique(np.concatenate([guessed, right]).astype(str), return_inverse=True)
    guess, real = codes[: len(guessed)], codes[len(guessed) :]
    size = int(codes.max()) + 1
    hits = np.bincount(real[guess == real], minlength=size)
    guesses, reals = np.bincount(guess, minlength=size), np.bincount(real, minlength=size)
    occurs = reals > 0
    return {
        "accuracy": float(hits.sum() / len(real)),
        "balanced accuracy": float((hits[occurs] / reals[occurs]).mean()),
        "macro-F1": float((2 * hits / (guesses + reals)).mean()),
    }


def attribute_metrics(
    scores: ArrayLike, truth: ArrayLike, names: Sequence[str]
) -> tuple[dict[str, float], list[str]]:
    """Mean accuracy mA and average precision of yes-or-no attributes.

    mA of an attribute is (TP / P + TN / N) / 2, where a score of 0.5 or more is a yes; mA as a whole is their
    mean (Li et al., RAP, IEEE TIP 2019). AP is sum (R_n - R_n-1) P_n over the distinct scores.

    Args:
        scores: [N, A] in [0, 1].
        truth: [N, A] 1, 0, or NaN where it is missing.
        names: of the A attributes.

    Returns:
        The measures, and the names of the attributes without a known yes or a known no, which have none.

    Raises:
        ValueError: no image, or other shapes.
    """
    guess, real = np.asarray(scores, np.float64), np.asarray(truth, np.float64)
    _check_rows(guess, real)
    if guess.shape[1:] != (len(names),):
        raise ValueError(f"{len(names)} names for scores of shape {list(guess.shape)}")
    balanced: dict[str, float] = {}
    precision: dict[str, float] = {}
    left_out = []
    for column, name in enumerate(names):
        known = ~np.isnan(real[:, column])
        score, yes = guess[known, column], real[known, column] > 0
        if yes.all() or not yes.any():
            left_out.append(name)
            continue
        said = score >= 0.5
        balanced[name] = float((said[yes].mean() + (~said[~yes]).mean()) / 2)
        precision[name] = average_precision(score, yes)
    if not balanced:
        return {}, left_out
    metrics = {"mA": float(np.mean(list(balanced.values()))), "mAP": float(np.mean(list(precision.values())))}
    metrics |= {f"mA {name}": value for name, value in balanced.items()}
    return metrics | {f"AP {name}": value for name, value in precision.items()}, left_out


def average_precision(scores: FloatArray, positive: NDArray[np.bool_]) -> float:
    """Sum of (R_n - R_n-1) P_n over the distinct scores, from the highest.

    Args:
        scores: [N]; equal ones are one threshold.
        positive: [N], at least one True.
    """
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(positive[order])
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    recall = hits[last] / hits[-1]
    return float((np.diff(recall, prepend=0.0) * hits[last] / (last + 1)).sum())


def number_metrics(predicted: ArrayLike, truth: ArrayLike) -> dict[str, float]:
    """Mean absolute error, root of the mean squared error, and R^2 = 1 - squared error / variance.

    Args:
        predicted: [N] in the unit of the column.
        truth: [N]; where it does not vary, there is no R^2.

    Raises:
        ValueError: no image, or other shapes.
    """
    guess, real = np.asarray(predicted, np.float64), np.asarray(truth, np.float64)
    _check_rows(guess, real)
    wrong = guess - real
    metrics = {"MAE": float(np.abs(wrong).mean()), "RMSE": float(np.sqrt(np.square(wrong).mean()))}
    spread = np.square(real - real.mean()).sum()
    if np.ptp(real) > 0 and spread > 0:  # rounding gives equal values a spread, and takes it from tiny ones
        metrics["R2"] = float(1 - np.square(wrong).sum() / spread)
    return metrics


def mask_overlap(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> tuple[float, float]:
    """Dice = 2 |A and B| / (|A| + |B|) and IoU = |A and B| / |A or B|; 1 where both masks are empty.

    Args:
        predicted: [H, W] of one image.
        truth: [H, W].

    Raises:
        ValueError: other shapes.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"masks of shape {list(predicted.shape)} and {list(truth.shape)}")
    both = int(np.count_nonzero(predicted & truth))
    either = int(np.count_nonzero(predicted | truth))
    return (2 * both / (both + either), both / either) if either else (1.0, 1.0)


def _check_rows(predicted: NDArray[np.generic], truth: NDArray[np.generic]) -> None:
    if predicted.shape != truth.shape or not len(truth):
        raise ValueError(
            f"predictions of shape {list(predicted.shape)} for values of shape {list(truth.shape)}: "
            "they must be alike and not empty"
        )
