"""The calibration card: which cosine to ask for at which false accept rate, for one model."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metricid.errors import InputError
from metricid.evaluation.results import ProtocolResult
from metricid.files import atomic_write

FARS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


@dataclass(frozen=True)
class Threshold:
    """One operating point.

    Attributes:
        far: false accept rate that is kept to.
        threshold: two images are called one identity if their cosine is at least this.
        tar: share of genuine pairs accepted there.
    """

    far: float
    threshold: float
    tar: float


@dataclass(frozen=True)
class Calibration:
    """Thresholds measured on pairs of images, for embeddings of one model made in one way.

    Attributes:
        model: fingerprint of the model.
        flip: whether the embeddings are those of image and mirrored image together.
        same: pairs of one identity that were compared.
        different: pairs of two identities.
        thresholds: by falling false accept rate; none below one false accept, 1 / `different`.
        metric: what the thresholds count.
    """

    model: str
    flip: bool
    same: int
    different: int
    thresholds: tuple[Threshold, ...]
    metric: str = "cosine"

    def at(self, far: float) -> Threshold:
        """The operating point for a false accept rate.

        Raises:
            InputError: the card has none for it; the message names those that it has.
        """
        for point in self.thresholds:
            if math.isclose(point.far, far, rel_tol=1e-9):
                return point
        known = ", ".join(f"{point.far:g}" for point in self.thresholds)
        raise InputError(
            f"FAR {far:g}: the calibration card has thresholds for {known} ({self.different:,} pairs of "
            "different identities); take one of these, or calibrate on more images"
        )

    @property
    def uncertain(self) -> tuple[float, ...]:
        """Rates of the card that rest on fewer than 30 expected false accepts (the rule of 30)."""
        return tuple(p.far for p in self.thresholds if p.far * self.different < 30 * (1 - 1e-9))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "model": self.model,
            "flip": self.flip,
            "metric": self.metric,
            "pairs": {"same": self.same, "different": self.different},
            "thresholds": [vars(point) for point in self.thresholds],
        }

    def write(self, path: str | Path) -> None:
        """Writes the card as JSON.

        Raises:
            InputError: the file cannot be written.
        """
        with atomic_write(path, "w") as file:
            json.dump(self.to_json(), file, indent=2, allow_nan=False)
            file.write("\n")

    @classmethod
    def read(cls, path: str | Path) -> "Calibration":
        """Reads a card.

        Raises:
            InputError: missing, no JSON, or no calibration card.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            reason = (isinstance(error, OSError) and error.strerror) or error
            raise InputError(
                f"{path}: no readable calibration card ({reason}); "
                "make one with metricid evaluate RUN --protocol verification --save-calibration FILE"
            ) from None
        try:
            points = tuple(
                Threshold(float(p["far"]), float(p["threshold"]), float(p["tar"]))
                for p in values["thresholds"]
            )
            card = cls(
                str(values["model"]),
                bool(values["flip"]),
                int(values["pairs"]["same"]),
                int(values["pairs"]["different"]),
                points,
                str(values["metric"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}: not a calibration card ({type(error).__name__}: {error}); "
                "make one with metricid evaluate --save-calibration"
            ) from None
        if card.metric != "cosine" or not card.thresholds:
            raise InputError(
                f"{path}: a calibration card needs metric cosine and at least one threshold; "
                "make one with metricid evaluate --save-calibration"
            )
        return card


def calibrate(result: ProtocolResult, *, model: str, flip: bool) -> Calibration:
    """The card of a result of the protocol `verification` or `lfw`.

    The thresholds are the conservative ones: as many pairs accepted as possible while the rate is kept to.
    Rates below one false accept among the pairs are left out, since nothing is known of them.

    Args:
        result: of a protocol over pairs.
        model: fingerprint of the model that made the embeddings.
        flip: whether they are flip sums.

    Raises:
        InputError: too few pairs for any rate.
    """
    different = result.counts["impostor pairs"]
    points = []
    for far in FARS:
        tar, threshold = (
            result.metrics.get(name) for name in (f"TAR@FAR={far:g}", f"threshold at FAR={far:g} (cosine)")
        )
        if far * different < 1 - 1e-9 or tar is None or threshold is None or not math.isfinite(threshold):
            continue
        points.append(Threshold(far, threshold, tar))
    if not points:
        raise InputError(
            f"calibration: {different} pairs of different identities are too few for a false accept rate of "
            f"{FARS[0]:g}; evaluate on more images"
        )
    return Calibration(model, flip, result.counts["genuine pairs"], different, tuple(points))
