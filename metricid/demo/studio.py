"""What the page can do, without the page: search, compare, confusions."""

from dataclasses import dataclass

import numpy as np

from metricid.demo.gallery import Gallery, Hit, RunImages
from metricid.demo.photos import Photo, PhotoReader
from metricid.demo.rates import PairRates
from metricid.report.search_view import Confusion, Search, confusions, measure

MOST_CONFUSIONS = 100
IMAGES_OF_IDENTITY = 8


@dataclass(frozen=True)
class Look:
    """The unit vector [D] of a photo, and what was found for it."""

    vector: np.ndarray
    hits: list[Hit]


@dataclass(frozen=True)
class Confusions:
    """Pairs of identities of the run that are taken for each other, the most frequent first.

    Attributes:
        pairs: at most `MOST_CONFUSIONS`.
        total: how many there are.
        rule: who was searched among whom, in words.
        why_none: why nothing could be measured, or empty.
    """

    pairs: list[Confusion]
    total: int
    rule: str
    why_none: str = ""


class Studio:
    """A model, images to search among, and the error rates that belong to a score.

    Args:
        name: of the run, for people.
        reader: embeds photos.
        run_images: the test images of the run; the confusions are theirs.
        gallery: where photos are searched; often the same.
        rates: of all pairs of the run's test images.
        search: how the run's evaluation searches them.
    """

    def __init__(
        self,
        name: str,
        reader: PhotoReader,
        run_images: RunImages,
        gallery: Gallery,
        rates: PairRates,
        search: Search,
    ):
        self.name, self.gallery, self.rates, self.run_images = name, gallery, rates, run_images
        self._reader, self._search = reader, search
        self._rows: dict[str, list[int]] = {}
        for row, identity in enumerate(search.identities.tolist()):
            self._rows.setdefault(str(identity), []).append(row)
        self.confusions = _confusions(search)

    def photo(self, data: bytes) -> Photo:
        """A photo from the bytes of its file.

        Raises:
            InputError: it cannot be used.
        """
        return self._reader.read(data)

    def look(self, vector: np.ndarray, k: int) -> Look:
        """The `k` images of the gallery that are nearest to a photo's vector."""
        return Look(vector, self.gallery.nearest(vector, k))

    def compare(self, first: np.ndarray, second: np.ndarray) -> float:
        """The cosine of the vectors of two photos."""
        return float(np.clip(first.astype(np.float64) @ second.astype(np.float64), -1, 1))

    def identity_at(self, row: int) -> str:
        """The identity of a row of the run's test images."""
        return str(self._search.identities[row])

    def images_of(self, identity: str, first: int) -> list[str]:
        """Paths of some images of an identity of the run: the row `first`, then others in order."""
        others = [row for row in self._rows.get(identity, []) if row != first]
        return [self.run_images.path_at(row) for row in [first, *others][:IMAGES_OF_IDENTITY]]


def _confusions(search: Search) -> Confusions:
    try:
        measured = measure(search)
    except ValueError as error:
        return Confusions([], 0, search.rule, str(error).rstrip("."))
    pairs, _ = confusions(search, measured)
    return Confusions(pairs[:MOST_CONFUSIONS], len(pairs), search.rule)
