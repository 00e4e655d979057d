"""What it costs to store embeddings as float16."""

from collections.abc import Iterable
from typing import Any

import numpy as np

_PAIR_BLOCK = 512


def float16_error(blocks: Iterable[np.ndarray]) -> dict[str, Any]:
    """Measures the error of float16 on embeddings that pass by once.

    Cosines are compared within groups of up to 512 consecutive rows, as all pairs of a large set are too
    many. For the rest there is a bound: rounding turns a vector by an angle a, and no cosine changes by more
    than the two angles together, 2 max(a).

    Args:
        blocks: float32 [b, D] each, finite and within the range of float16.

    Returns:
        `max_abs` (largest error of a component), `max_cosine_change` (over the `pairs` compared) and
        `cosine_bound` (for any pair).
    """
    largest = change = angle = 0.0
    pairs = 0
    for block in blocks:
        rounded = block.astype(np.float16).astype(np.float32)
        largest = max(largest, float(np.abs(rounded - block).max(initial=0.0)))
        before, after = _unit(block), _unit(rounded)
        # The chord between unit vectors is 2 sin(a / 2), exact also where the cosine is 1 to all digits.
        chord = np.linalg.norm(before - after, axis=1).max(initial=0.0)
        angle = max(angle, 2.0 * float(np.arcsin(min(1.0, chord / 2.0))))
        for start in range(0, len(block), _PAIR_BLOCK):
            a, b = before[start : start + _PAIR_BLOCK], after[start : start + _PAIR_BLOCK]
            change = max(change, float(np.abs(a @ a.T - b @ b.T).max(initial=0.0)))
            pairs += len(a) * (len(a) - 1) // 2
    return {
        "max_abs": largest,
        "max_cosine_change": change,
        "pairs": pairs,
        "cosine_bound": 2.0 * angle,
    }


def _unit(block: np.ndarray) -> np.ndarray:
    """float64 rows of length 1; a zero row stays zero."""
    wide = block.astype(np.float64)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), np.finfo(np.float64).tiny)
