"""Made-up people: pictures of them, embeddings of them, and what a search for them must find."""

from pathlib import Path

import cv2
import numpy as np

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


def write_faces(folder: Path, identities: int = 24, images: int = 5) -> None:
    """Pictures with a common pattern per identity, one folder each."""
    rng = np.random.default_rng(0)
    for number in range(identities):
        pattern = cv2.resize(
            rng.integers(0, 256, (4, 4, 3), np.uint8), (40, 48), interpolation=cv2.INTER_CUBIC
        )
        place = folder / f"person {number:02d}"
        place.mkdir(parents=True)
        for image in range(images):
            noisy = np.clip(pattern + rng.normal(0, 25, pattern.shape), 0, 255).astype(np.uint8)
            cv2.imwrite(str(place / f"{image}.jpg"), noisy)


def people(rng: np.random.Generator, identities: int = 12, images: int = 6, noise: float = 1.0):
    """Embeddings [N, 16], names [N] and cameras [N] of made-up people."""
    centers = rng.standard_normal((identities, 16))
    vectors = centers.repeat(images, axis=0) + noise * rng.standard_normal((identities * images, 16))
    names = np.repeat(np.array([f"person {i}" for i in range(identities)], dtype=object), images)
    cameras = np.array([str(i % 3) for i in range(len(names))], dtype=object)
    return vectors.astype(np.float32), names, cameras


def brute_force(search, row):
    """Gallery rows by descending cosine, their ranks (None where the camera rule hides them), and the AP."""
    vectors = search.embeddings.astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = [int(g) for g in search.gallery if not (search.leave_one_out and g == row)]
    order = sorted(rows, key=lambda g: -round(float(vectors[g] @ vectors[row]), 6))
    ranks, right, rank = [], [], 0
    for other in order:
        same = search.identities[other] == search.identities[row]
        hidden = same and search.cameras is not None and search.cameras[other] == search.cameras[row]
        rank += not hidden
        ranks.append(None if hidden else rank)
        if same and not hidden:
            right.append(rank)
    precision = float(np.mean([(i + 1) / r for i, r in enumerate(right)])) if right else float("nan")
    return order, ranks, precision
