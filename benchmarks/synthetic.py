"""How fast the generated images are drawn, and how far raw pixels get in telling the people apart.

    python benchmarks/synthetic.py [--identities 100] [--images 8] [--seconds 3]

Prints a table: images per second on one core (identity by identity, and in random order as a sampler reads
them) and the leave-one-out rank-1 of nearest neighbours (L2) on raw pixels and on the mean colour.
"""

import argparse
import time

import cv2
import numpy as np

from metricid.data.synthetic import SyntheticFaces, SyntheticPedestrians

Source = SyntheticFaces | SyntheticPedestrians


def rate(source: Source, paths: list[str], seconds: float) -> float:
    """Images per second of this process's own CPU time, so that a busy machine does not lower it."""
    for path in paths[:20]:
        source.read(path)
    count, start, stop = 0, time.process_time(), time.perf_counter() + seconds
    while time.perf_counter() < stop:
        source.read(paths[count % len(paths)])
        count += 1
    return count / (time.process_time() - start)


def rank1(features: np.ndarray, identities: np.ndarray) -> float:
    """Leave-one-out nearest neighbour, L2."""
    features = features.astype(np.float64)
    squares = (features**2).sum(axis=1)
    distance = squares[:, None] + squares[None] - 2 * features @ features.T
    np.fill_diagonal(distance, np.inf)
    return float((identities[distance.argmin(axis=1)] == identities).mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--identities", type=int, default=100)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=3.0, help="per speed figure")
    options = parser.parse_args()
    cv2.setNumThreads(1)

    print(f"{options.identities} identities x {options.images} images, one core")
    titles = ("data", "pixels", "img/s in order", "img/s random", "raw pixels", "mean colour")
    print(("{:<12} {:>8}" + " {:>15}" * 4).format(*titles))
    for kind in (SyntheticFaces, SyntheticPedestrians):
        source: Source = kind(identities=1000, images=16)
        paths = source.paths()
        ordered = rate(source, paths, options.seconds)
        shuffled = np.random.default_rng(0).permutation(len(paths))
        scattered = rate(source, [paths[i] for i in shuffled], options.seconds)

        few = kind(identities=options.identities, images=options.images)
        images = np.stack([few.read(path) for path in few.paths()])
        identities = np.repeat(np.arange(options.identities), options.images)
        raw, colour = (
            rank1(images.reshape(len(images), -1), identities),
            rank1(images.mean((1, 2)), identities),
        )
        size = f"{few.size[0]}x{few.size[1]}"
        print(f"{few.kind:<12} {size:>8} {ordered:>15.0f} {scattered:>15.0f} {raw:>15.1%} {colour:>15.1%}")


if __name__ == "__main__":
    main()
