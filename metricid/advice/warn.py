"""What in a table will hurt a training or a test, whatever is chosen."""

from collections.abc import Iterator

from metricid.advice.figures import Figures
from metricid.advice.noise import NoiseEstimate
from metricid.advice.plan import Division

MANY_SINGLETONS = 0.3
FEW_TESTED = 50
NOISY = 0.05
USUAL_P = 8


def warnings_of(figures: Figures, division: Division | None, noise: NoiseEstimate | None) -> Iterator[str]:
    """One line each, with the figure it is about and what to do."""
    spread = figures.spread
    if spread.identities == 1:
        yield "one identity only: telling identities apart needs two or more; add others"
    elif spread.singletons == spread.identities:
        yield (
            "no identity has two images: supervised metric learning needs two images of an identity; group "
            "the images by identity, or learn from two views of each image as the recipe does"
        )
    elif spread.singletons > MANY_SINGLETONS * spread.identities:
        yield (
            f"{spread.singletons:,} of {spread.identities:,} identities "
            f"({spread.singletons / spread.identities:.0%}) have one image, "
            f"{spread.singletons / spread.images:.0%} of all images: they have no positive; if some are the "
            "same person under two names, join them"
        )
    if figures.shared:
        yield (
            f"{figures.shared:,} identities are in more than one split: a test on identities that were "
            "trained on measures memory; split by identity"
        )
    yield from _cameras(figures)
    if figures.shapes is not None and figures.shapes.unreadable:
        total = figures.shapes.sampled + figures.shapes.unreadable
        yield (
            f"{figures.shapes.unreadable} of {total} sampled images cannot be read; metricid prepare ... "
            "--decode names all of them"
        )
    if division is not None:
        yield from _sides(division)
    if noise is not None and noise.share is not None and noise.share >= NOISY:
        yield (
            f"about {noise.share:.0%} of the labels are probably wrong: cleaning them helps more than any "
            "loss; start with the examples above"
        )


def _cameras(figures: Figures) -> Iterator[str]:
    cameras = figures.cameras
    if cameras is None:
        return
    if cameras.unknown:
        yield (
            f"{cameras.unknown:,} images have no camera: they would count as taken by one camera more; fill "
            "the column"
        )
    if len(cameras.shares) == 1:
        yield "one camera only: re-identification across cameras can be neither learned nor measured"
    elif cameras.on_one:
        yield (
            f"{cameras.on_one:,} of {cameras.identities:,} identities were seen by one camera only: as "
            "queries they have no positive (same identity and camera do not count) and are not counted"
        )
    largest = max(cameras.shares, key=lambda name: cameras.shares[name])
    if len(cameras.shares) > 2 and cameras.shares[largest] > 0.6:
        yield (
            f"camera {largest} took {cameras.shares[largest]:.0%} of the images: what is learned is mostly "
            "how people look there"
        )


def _sides(division: Division) -> Iterator[str]:
    if division.train < USUAL_P:
        yield (
            f"{division.train} training identities are fewer than the {USUAL_P} that a batch usually holds: "
            "each batch shows all of them, and there is little to compare; expect a model of these alone"
        )
    if division.test and division.test_images <= division.test:
        yield "no test identity has two images: nothing can be found in the test; change the split column"
    if 0 < division.test < FEW_TESTED:
        yield (
            f"{division.test} test identities: a few of them decide the result; take "
            "evaluation.bootstrap=1000 for intervals over identities"
        )
