"""What a threshold means: how often pairs of images of different people, and of the same, reach it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metricid.errors import InputError
from metricid.evaluation import FAR_TARGETS, ScoreTable
from metricid.evaluation.all_pairs import AllPairs, score_table
from metricid.evaluation.arrays import check_embeddings, encode
from metricid.evaluation.verification import EXACT_PAIRS

MOST_IMAGES = 10_000  # 5e7 pairs: some seconds; all pairs of a large test set would keep the page waiting
SUPPORTED = 30  # false accepts that a rate should rest on (the rule of 30)


@dataclass(frozen=True)
class PairRates:
    """Error rates at any threshold, from all pairs of a set of images.

    Attributes:
        table: counts of pairs by their cosine.
        images: how many images the pairs are made of.
        total: how many there were; more than `images` where a sample was drawn.
    """

    table: ScoreTable
    images: int
    total: int

    @classmethod
    def from_embeddings(
        cls, embeddings: ArrayLike, identities: ArrayLike, *, most: int = MOST_IMAGES, seed: int = 0
    ) -> "PairRates":
        """Compares all images with each other.

        Args:
            embeddings: [N, D]; need not be normalised.
            identities: [N] text.
            most: more images than these are sampled, without regard to the identity, so that both rates stay
                unbiased.
            seed: of the sample.

        Raises:
            InputError: no pair of one identity, or none of two.
        """
        items = check_embeddings(embeddings)
        (codes,) = encode([("identities", identities, len(items))])
        total = len(items)
        if total > most:
            chosen = np.sort(np.random.default_rng(seed).choice(total, most, replace=False))
            items, codes = items[chosen], codes[chosen]
        counts = np.bincount(codes)
        if (counts > 0).sum() < 2 or counts.max() < 2:
            raise InputError(
                "test images: a false accept rate needs two identities, and two images of one of them; "
                f"there are {(counts > 0).sum()} identities with at most {counts.max()} images"
            )
        try:
            table = score_table(AllPairs(items, codes), FAR_TARGETS, EXACT_PAIRS)
        except ValueError as error:
            raise InputError(f"test images: {error}") from error
        return cls(table, len(items), total)

    def false_accepts(self, threshold: float) -> int:
        """Pairs of different identities whose cosine is at least the threshold."""
        return int(self.table.impostor[np.searchsorted(self.table.levels, threshold) :].sum())

    def far(self, threshold: float) -> float:
        """False accept rate: the share of pairs of different identities that reach the threshold."""
        return self.false_accepts(threshold) / self.table.impostor_pairs

    def tar(self, threshold: float) -> float:
        """True accept rate: the share of pairs of one identity that reach it."""
        return float(
            self.table.genuine[np.searchsorted(self.table.levels, threshold) :].sum()
            / self.table.genuine_pairs
        )

    def choices(self) -> dict[float, float]:
        """False accept rates that enough pairs support, falling, with the threshold that keeps to each.

        The thresholds are rounded up to the third digit, which lowers the rate and never raises it.
        """
        found = {}
        for target in FAR_TARGETS:
            point = self.table.point(target, "conservative")
            if point.supported and np.isfinite(point.threshold):
                found[target] = min(1.0, float(np.ceil(point.threshold * 1000 - 1e-9)) / 1000)
        return found

    def start(self) -> float:
        """The threshold to start with: of a rate of 1 in 1,000, or of the nearest above that has support."""
        found = self.choices()
        usual = [threshold for target, threshold in found.items() if target >= 1e-3]
        return usual[-1] if usual else round(self.table.threshold(self.table.eer_index()), 3)

    def shares(self, bins: int = 60) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Histograms, [bins] each: bin centres, shares of the pairs of one identity, and of two."""
        genuine, impostor = (self.table.histogram(which, bins) for which in ("genuine", "impostor"))
        return genuine.x, genuine.y, impostor.y
