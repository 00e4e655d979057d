"""The parts of the page that the framework has no component for, as HTML; all foreign text is escaped."""

from collections.abc import Callable, Sequence

import numpy as np
from markupsafe import Markup

from metricid.demo.rates import SUPPORTED, PairRates
from metricid.demo.studio import Confusions, Look, Studio
from metricid.report.pictures import encode_pictures
from metricid.report.search_view import Confusion

_PICTURES = 1_500_000  # bytes of the pictures of one answer
_CHART = (560, 132)  # width and height

Read = Callable[[str], np.ndarray | None]


def problem(text: str) -> str:
    """What went wrong, where the answer would stand."""
    return str(Markup('<p class="m-problem" role="alert">{}</p>').format(text))


def hint(text: str) -> str:
    """What to do next."""
    return str(Markup('<p class="m-hint">{}</p>').format(text))


def photo(image: np.ndarray, note: str, text: str) -> str:
    """The uploaded photo with its size."""
    height, width = image.shape[:2]
    told = Markup('<p class="m-note">{}</p>').format(note) if note else ""
    shown = _picture(lambda _: image, ["photo"]).get("photo", Markup())
    return str(
        Markup('<figure class="m-photo">{}<figcaption>{}, {} x {} pixels</figcaption></figure>{}').format(
            shown, text, width, height, told
        )
    )


def threshold_text(rates: PairRates, threshold: float) -> str:
    """What the threshold means, with a chart of both kinds of pairs."""
    sample = (
        f" (a sample of {rates.images:,} of {rates.total:,} images)" if rates.images < rates.total else ""
    )
    return str(
        Markup(
            '<div class="m-threshold"><p><strong>FAR {far}</strong>: of {impostor:,} pairs of different '
            "people among the test images{sample}, {passed:,} score {threshold:.3f} or more{doubt}.<br>"
            "<strong>TAR {tar:.2%}</strong>: so many of {genuine:,} pairs of one person do.</p>{chart}</div>"
        ).format(
            far=rate(rates, threshold),
            impostor=rates.table.impostor_pairs,
            sample=sample,
            passed=rates.false_accepts(threshold),
            threshold=threshold,
            doubt=doubt(rates, threshold),
            tar=rates.tar(threshold),
            genuine=rates.table.genuine_pairs,
            chart=_chart(rates, threshold),
        )
    )


def rate(rates: PairRates, threshold: float) -> str:
    """The false accept rate at a threshold as a text that claims no more than the pairs do."""
    passed, pairs = rates.false_accepts(threshold), rates.table.impostor_pairs
    if passed == 0:
        return f"below {_percent(1 / pairs)} (1 in {pairs:,})"
    often = f" (1 in {pairs / passed:,.0f})" if passed < pairs / 2 else ""
    return _percent(passed / pairs) + often


def doubt(rates: PairRates, threshold: float) -> str:
    """Whether too few pairs bear the rate."""
    return ", too few to rely on" if rates.false_accepts(threshold) < SUPPORTED else ""


def hits(look: Look, studio: Studio, threshold: float) -> str:
    """The found images, best first, each a match or not."""
    matches = sum(hit.score >= threshold for hit in look.hits)
    strangers = studio.rates.far(threshold) * studio.gallery.images
    head = Markup(
        '<p class="m-head" role="status">{} of the {} nearest of {} score at least {:.3f}. '
        "Among {:,} images of strangers, {} would by chance.</p>"
    ).format(
        matches, len(look.hits), studio.gallery.name, threshold, studio.gallery.images, _about(strangers)
    )
    shown = _picture(studio.gallery.picture, [hit.path for hit in look.hits])
    cards = [
        Markup(
            '<li class="m-card {kind}"><span class="m-rank">{rank}</span>{picture}'
            '<span class="m-name" title="{path}">{name}</span>'
            '<span class="m-score">{score:.3f} <span class="m-verdict">{verdict}</span></span></li>'
        ).format(
            kind="m-match" if hit.score >= threshold else "m-other",
            rank=rank,
            picture=shown.get(hit.path, Markup('<span class="m-none">no picture</span>')),
            path=hit.path,
            name=hit.identity or hit.path,
            score=hit.score,
            verdict="match" if hit.score >= threshold else "no match",
        )
        for rank, hit in enumerate(look.hits, 1)
    ]
    return str(Markup('{}<ol class="m-cards">{}</ol>').format(head, Markup().join(cards)))


def verdict(score: float, studio: Studio, threshold: float) -> str:
    """Whether two photos show one person, and at which false accept rate one may say so."""
    rates = studio.rates
    same = score >= threshold
    return str(
        Markup(
            '<div class="m-compare {kind}" role="status"><p class="m-big">{text}</p>'
            "<p>Score {score:.3f}, threshold {threshold:.3f}.</p>"
            "<p>A threshold that just accepts them has a FAR of <strong>{far}</strong>{doubt}; "
            "{missed:.2%} of the pairs of one person score lower.</p></div>"
        ).format(
            kind="m-match" if same else "m-other",
            text="Same person" if same else "Not the same person, or not recognised",
            score=score,
            threshold=threshold,
            far=rate(rates, score),
            doubt=f" ({doubt(rates, score)[2:]})" if doubt(rates, score) else "",
            missed=1 - rates.tar(score),
        )
    )


def confusion_name(pair: Confusion) -> str:
    """A line for the list of pairs."""
    return f"{pair.first} / {pair.second}: {pair.times} of {pair.queries} queries"


def confusions_text(found: Confusions) -> str:
    """What the list of pairs is."""
    if found.why_none:
        return hint(f"Nothing to show: {found.why_none}.")
    if not found.pairs:
        return hint(f"No identity was taken for another: every nearest image is right ({found.rule}).")
    more = (
        f" The {len(found.pairs)} most frequent of {found.total:,} pairs."
        if found.total > len(found.pairs)
        else ""
    )
    return hint(f"Identities of the test images that are found in each other's place; {found.rule}.{more}")


def confusion(pair: Confusion, studio: Studio, threshold: float) -> str:
    """Both identities of a pair in pictures, the two images that are most alike first."""
    sides = []
    rows = {str(studio.identity_at(row)): row for row in (pair.query_row, pair.found_row)}
    for identity in (pair.first, pair.second):
        paths = studio.images_of(identity, rows[identity])
        shown = _picture(studio.run_images.picture, paths)
        images = [
            Markup('<li class="m-card{}">{}</li>').format(
                " m-alike" if place == 0 else "",
                shown.get(path, Markup('<span class="m-none">no picture</span>')),
            )
            for place, path in enumerate(paths)
        ]
        sides.append(
            Markup('<section class="m-side"><h4>{}</h4><ol class="m-cards">{}</ol></section>').format(
                identity, Markup().join(images)
            )
        )
    return str(
        Markup(
            '<div role="status"><p class="m-head">{times} of {queries} queries of these two find the other '
            "first. The framed images are the most alike: score {score:.3f}, {match} at the threshold "
            "{threshold:.3f}; FAR from that score on {far}.</p><div class='m-sides'>{sides}</div></div>"
        ).format(
            times=pair.times,
            queries=pair.queries,
            score=pair.score,
            match="a match" if pair.score >= threshold else "no match",
            threshold=threshold,
            far=rate(studio.rates, pair.score),
            sides=Markup().join(sides),
        )
    )


def _picture(read: Read, paths: Sequence[str]) -> dict[str, Markup]:
    """`img` elements of those images that can be read."""
    return {
        path: Markup('<img src="{}" width="{}" height="{}" alt="{}">').format(
            Markup(found.uri), found.width, found.height, path
        )
        for path, found in encode_pictures(read, paths, _PICTURES).items()
    }


def _percent(share: float) -> str:
    """Two significant digits, never as a power of ten."""
    shown = f"{float(f'{share:.2g}') * 100:.15f}".rstrip("0").rstrip(".")
    return f"{shown}%"


def _about(count: float) -> str:
    if count == 0:
        return "hardly any"
    return f"about {count:,.0f}" if count >= 10 else f"about {float(f'{count:.2g}'):g}"


def _chart(rates: PairRates, threshold: float) -> Markup:
    """Histograms of both kinds of pairs over the score, and the threshold among them."""
    width, height = _CHART
    x, genuine, impostor = rates.shares()
    low, high = float(x[0]), max(float(x[-1]), 1.0)
    top = max(float(genuine.max()), float(impostor.max()))

    def across(score: float) -> float:
        return round(width * (min(max(score, low), high) - low) / (high - low), 1)

    def area(shares: np.ndarray) -> str:
        points = [f"{across(a)},{round(height * (1 - b / top), 1)}" for a, b in zip(x, shares, strict=True)]
        return " ".join([f"{across(low)},{height}", *points, f"{across(float(x[-1]))},{height}"])

    return Markup(
        '<div class="m-chart"><svg viewBox="0 0 {w} {h}" role="img" aria-label="{label}">'
        '<polygon class="m-impostor" points="{impostor}"/><polygon class="m-genuine" points="{genuine}"/>'
        '<line x1="{at}" x2="{at}" y1="0" y2="{h}"/></svg>'
        "<p class='m-ticks'><span>{low:.2f}</span><span>{middle:.2f}</span><span>{high:.2f}</span></p>"
        '<p class="m-legend"><span class="m-impostor">different people</span> '
        '<span class="m-genuine">one person</span> <span class="m-line">threshold</span></p></div>'
    ).format(
        w=width,
        h=height,
        label=f"Scores of pairs of different people and of one person; the threshold is {threshold:.3f}",
        impostor=area(impostor),
        genuine=area(genuine),
        at=across(threshold),
        low=low,
        middle=(low + high) / 2,
        high=high,
    )
