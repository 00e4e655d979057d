"""From the figures of a table to an advice: objective, margin, sampler; the data side is in `rules_data`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from metricid.advice.figures import Figures
from metricid.advice.noise import NoiseEstimate
from metricid.advice.plan import Division, Line, Plan, divide
from metricid.advice.rules_data import (
    batch_size,
    epoch_images,
    evaluation_lines,
    input_lines,
    model_lines,
    split_line,
    training_lines,
)
from metricid.advice.warn import warnings_of

MARGIN_IDENTITIES = 10_000
MARGIN_MEDIAN = 5
LONG_TAIL = 0.5
NOISY = 0.05
LARGE_SCALE = 50_000
CONFIDENCE = 0.9
TABLES = "docs/results.md, the losses at an equal number of images"


@dataclass(frozen=True)
class Traits:
    """What the rules ask of a table.

    Attributes:
        unlabelled: no identity has two images.
        many: so many identities with so many images that margin softmax losses were made for it.
        tail: the largest identities hold most of the images.
        noisy: estimated share of wrong labels, 0 where it is below 5% or unknown.
    """

    unlabelled: bool
    many: bool
    tail: bool
    noisy: float


def advise(
    figures: Figures,
    noise: NoiseEstimate | None = None,
    *,
    kind: str = "other",
    known: str = "",
    distractors: Sequence[str] = (),
) -> Plan:
    """The advice for a table.

    Args:
        figures: of the table.
        noise: the estimate for its labels, if there is one.
        kind: what the images show: `faces`, `people`, `vehicles`, `other`.
        known: how that is known, for the reason: the name of a layout, an option; empty where it is a guess
            from the shape.
        distractors: identities that stand for nobody, for the protocol that has them.
    """
    division = divide(figures)
    if division is None:
        problem = (
            f"{_ids(figures.spread.identities)} in the table, too few to train on some and tell others apart"
        )
        return Plan((), tuple(warnings_of(figures, None, noise)), None, problem)
    spread = division.spread
    share = noise.share if noise is not None and noise.share is not None else 0.0
    traits = Traits(
        unlabelled=division.unlabelled,
        many=division.train >= MARGIN_IDENTITIES
        and spread.median >= MARGIN_MEDIAN
        and kind in ("faces", "other"),
        tail=spread.gini >= LONG_TAIL,
        noisy=share if share >= NOISY else 0.0,
    )
    scale = scale_for(division.train)
    objective, objective_line = _objective(division, traits, scale)
    sampler, sampler_line = _sampler(division, traits)
    split, model = split_line(division), model_lines(division, traits.many, kind)
    inputs, training = input_lines(figures, division, kind, known), training_lines(division, sampler)
    epoch = epoch_images(division, sampler)
    measured = evaluation_lines(figures, division, kind, training.values["images"] / epoch, distractors)
    recipe: dict[str, Any] = {
        "data": inputs.values | {"split": division.split, "sampler": sampler},
        "model": model.values,
        "objective": objective,
        "optim": training.optim,
        "train": {"images": training.values["images"], "clip_norm": training.values["clip_norm"]},
        "evaluation": measured.values,
    }
    lines = (
        objective_line,
        _margin_line(division, traits, scale),
        sampler_line,
        split,
        *inputs.lines,
        *model.lines,
        *training.lines,
        *measured.lines,
    )
    return Plan(lines, tuple(warnings_of(figures, division, noise)), recipe)


def scale_bound(classes: int, confidence: float = CONFIDENCE) -> float:
    """Smallest s with which a class center can be given this probability (Wang et al., CVPR 2018, eq. 6).

    s >= (C - 1) / C log((C - 1) P / (1 - P)), for C centers as far apart as they can be.
    """
    return (classes - 1) / classes * math.log((classes - 1) * confidence / (1 - confidence))


def adacos_scale(classes: int) -> float:
    """sqrt(2) log(C - 1) (Zhang et al., CVPR 2019, eq. 12)."""
    return math.sqrt(2) * math.log(max(classes - 1, 2))


def scale_for(classes: int) -> float:
    """The scale to start from: 30, as CosFace's predecessors for some 10,000 classes, or 64 for many more."""
    return 64.0 if classes >= LARGE_SCALE else 30.0


def _objective(division: Division, traits: Traits, scale: float) -> tuple[list[dict[str, Any]], Line]:
    """The terms, and the reason for them."""
    spread = division.spread
    if traits.unlabelled:
        return [{"loss": "ntxent", "temperature": 0.1}], Line(
            "objective",
            "ntxent, temperature 0.1 (two augmented views of each image)",
            f"no identity has two images ({_n(spread.identities)} identities, as many images)",
            "no pair shows what an identity has in common, so supervised metric learning is impossible: it "
            "needs two images of an identity. What can be learned is to ignore the augmentation.",
            "Chen et al., ICML 2020 (SimCLR)",
            "objective",
        )
    if traits.many:
        return _margin_objective(division, traits, scale)
    why = (
        "in short trainings from scratch, supervised contrastive beside softmax was the best of six "
        "objectives on all three data sets (Market: rank-1 55.6%, with triplet 45.0%, ArcFace alone 19.8%)"
    )
    if traits.noisy:
        why += (
            ". It averages over the positives of an image, where batch-hard triplet takes the farthest, "
            "which is a wrong label as a rule; label smoothing helps against wrong labels, too"
        )
    if traits.tail:
        why += (
            ". No correction for class sizes in the loss (balanced_softmax, ldam): the sampler shows all "
            "identities equally often, and both together would overdo it"
        )
    source = TABLES + (
        "; Hermans et al., arXiv 1703.07737; Lukasik et al., ICML 2020" if traits.noisy else ""
    )
    terms: list[dict[str, Any]] = [
        {"loss": "softmax", "label_smoothing": 0.1},
        {"loss": "supcon", "temperature": 0.1},
    ]
    each = f"{spread.lower} to {spread.upper}" if spread.lower < spread.upper else f"{spread.lower}"
    basis = f"{_n(division.train)} training identities, {each} images each (quartiles)"
    return terms, Line("objective", _terms_text(terms), basis, why + ".", source, "objective")


def _margin_objective(division: Division, traits: Traits, scale: float) -> tuple[list[dict[str, Any]], Line]:
    """A margin softmax, for many identities."""
    spread = division.spread
    term: dict[str, Any]
    if traits.tail:
        term = {"loss": "dynamic_arcface", "scale": scale}
        reason = (
            f"the tail is long (Gini {spread.gini:.2f}): the margin falls from 0.5 for one image to 0.05 for "
            "the largest, so that small identities are kept apart, too"
        )
        source = "Ha et al., arXiv 2010.05350; Cao et al., NeurIPS 2019"
    else:
        term = {"loss": "cosface", "margin": _margin(traits), "scale": scale}
        reason = "identities are about equally large: one margin fits all; CosFace starts steadily"
        source = "Wang et al., CVPR 2018; Deng et al., CVPR 2019"
    if traits.noisy:
        term["sub_centers"] = 3
        reason += (
            f". With {_percent(traits.noisy)} wrong labels, three centers let the wrong ones gather in one"
        )
        source += "; sub-centers: Deng et al., ECCV 2020"
    why = (
        f"from {_n(MARGIN_IDENTITIES)} identities on (CASIA-WebFace has 10,575) nearly every published face "
        f"model is trained with a margin softmax: every image meets all identities in each step; {reason}."
    )
    basis = f"{_n(division.train)} training identities, {spread.median} images each (median)"
    return [term], Line("objective", _terms_text([term]), basis, why, source, "objective")


def _margin(traits: Traits) -> float:
    return 0.2 if traits.noisy else 0.35


def _margin_line(division: Division, traits: Traits, scale: float) -> Line:
    """Margin and scale: those of the recipe, or those to take with ArcFace in place of softmax."""
    classes = division.train
    basis = (
        f"{_n(classes)} classes: CosFace's bound for 90% is s >= {scale_bound(classes):.1f}, AdaCos's fixed "
        f"scale {adacos_scale(classes):.1f}"
    )
    section = "objective"
    if traits.unlabelled:
        return Line(
            "margin",
            "none; the temperature 0.1 takes its place",
            f"{_n(classes)} images, each an identity of its own",
            "a margin is between identities, and here none is known.",
            "Chen et al., ICML 2020, table 5",
            section,
        )
    if traits.many:
        margin = "0.05 to 0.5 by size" if traits.tail else f"{_margin(traits):g}"
        lower = "; smaller than the usual 0.35, which would push wrong labels hard" if traits.noisy else ""
        return Line(
            "margin",
            f"margin {margin}, scale {scale:g}",
            basis,
            "the scale must be above the bound, or no image can be sure of its class; from some 50,000 "
            f"classes on, 64 is usual, below it 30 starts more easily{lower}.",
            "Wang et al., CVPR 2018, eq. 6; Zhang et al., CVPR 2019, eq. 12",
            section,
        )
    few = traits.noisy > 0 or division.spread.median < 10
    return Line(
        "margin",
        "none to start with (supcon: temperature 0.1); for arcface in place of softmax: margin "
        f"{0.2 if few else 0.3:g}, scale {scale:g}",
        basis + f"; {division.spread.median} images per identity (median)",
        "the scale must be above the bound. The usual 0.5 and 64 come from millions of images; with 0.3 and "
        "24, ArcFace alone stayed far behind here in short trainings"
        + (
            "; few images per identity or wrong labels ask for a smaller margin still."
            if few
            else ": raise the margin when the loss falls."
        ),
        "Wang et al., CVPR 2018, eq. 6; Zhang et al., CVPR 2019, eq. 12; " + TABLES,
        section,
    )


def _sampler(division: Division, traits: Traits) -> tuple[dict[str, Any], Line]:
    """The sampler, and the reason for it."""
    spread, batch = division.spread, batch_size(division.train_images)
    if traits.many:
        values: dict[str, Any] = {"name": "shuffle", "batch_size": batch}
        return values, Line(
            "sampler",
            f"shuffle, batch_size {batch}",
            f"{_n(division.train)} training identities, {_n(division.train_images)} images",
            "a softmax compares each image with all classes and needs no positives in the batch; images "
            "drawn as they come keep the features general where sizes differ; the loss minds the tail.",
            "Deng et al., CVPR 2019; Kang et al., ICLR 2020",
            "data.sampler",
        )
    images = min(4, max(2, spread.lower))
    identities = min(max(2, batch // images), division.train)
    values = {"name": "pk", "identities": identities, "images": images}
    why = (
        "supcon finds its positives in the batch. K is at most the lower quartile of the images per "
        "identity: three quarters of the identities fill their places without repeating an image"
    )
    source = "Hermans et al., arXiv 1703.07737; configs/ (measured: 8 x 4 and 16 x 2)"
    if traits.unlabelled:
        why = "each image comes twice, augmented in two ways; that is the only positive there is"
        source = "Chen et al., ICML 2020"
    elif traits.tail:
        values["epoch"] = "identities"
        why += (
            f". An epoch shows each identity once, whatever its size: the largest 10% hold "
            f"{_percent(spread.top_10)} of the images and would fill the batches otherwise"
        )
    epoch = ", epoch identities" if "epoch" in values else ""
    basis = (
        f"lower quartile {spread.lower} images per identity, {_n(division.train)} training identities, "
        f"{_n(division.train_images)} images, Gini {spread.gini:.2f}"
    )
    choice = f"pk, P = {identities} identities x K = {images} images{epoch}"
    return values, Line("sampler", choice, basis, why + ".", source, "data.sampler")


def _terms_text(terms: list[dict[str, Any]]) -> str:
    """The terms on one line, with weight 1 where there are several."""
    texts = []
    for term in terms:
        options = ", ".join(f"{k} {v:g}" for k, v in term.items() if k != "loss")
        texts.append(f"{term['loss']} ({options})" if options else str(term["loss"]))
    return " + ".join(texts) + (", weight 1 each" if len(terms) > 1 else "")


def _ids(number: int) -> str:
    return "one identity" if number == 1 else f"{number:,} identities"


def _n(number: int) -> str:
    return f"{number:,}"


def _percent(share: float) -> str:
    return f"{share:.1%}" if share < 0.1 else f"{share:.0%}"
