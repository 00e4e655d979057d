"""The data side of an advice: split, size, augmentation, model, length, and what to measure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from metricid.advice.figures import Figures
from metricid.advice.plan import Division, Line

SMALL, LARGE = 20_000, 200_000  # training images: batches of 32 below, of 128 from here on
FACES_AT_FULL_SIZE = 5_000
TALL = 200  # height in pixels from which 256 x 128 adds something
RULE_OF_30 = 30
SHIFTS = {
    "crop": 0.0,
    "warp": 1.0,
    "color": 0.0,
    "gray": 0.0,
    "blur": 0.0,
    "low_resolution": 0.0,
    "erase": 0.0,
}


@dataclass(frozen=True)
class Part:
    """A part of a recipe, and the lines that go with it."""

    values: dict[str, Any]
    lines: tuple[Line, ...]
    optim: dict[str, Any] = field(default_factory=dict)


def batch_size(images: int) -> int:
    """Images in a batch."""
    return 32 if images < SMALL else 64 if images < LARGE else 128


def epoch_images(division: Division, sampler: dict[str, Any]) -> int:
    """Images of an epoch."""
    if sampler.get("epoch") == "identities":
        return division.train * int(sampler["images"])
    return division.train_images


def split_line(division: Division) -> Line:
    """Who trains and who tests."""
    spread = division.spread
    if division.kind == "all":
        return Line(
            "split",
            "everybody trains, nobody tests",
            f"{spread.identities:,} identities, {spread.identities - spread.singletons:,} have two images",
            "too few to hold some out; evaluate the model on other people.",
            "docs/data.md, Splits",
            "data.split",
        )
    how = {
        "column": f"as the split column says: {division.train:,} train",
        "named": f"by the split column: {division.train:,} train",
        "drawn": f"{division.train + division.validation:,} of {spread.identities:,} identities train",
    }[division.kind]
    if division.validation:
        how += f", {division.validation} of them pick the best checkpoint"
    if division.left_out:
        how += f"; the {division.left_out:,} with one image are left out"
    images, each = division.test_images, division.test_images / division.test
    impostors = round(images * (images - each) / 2)
    basis = f"about {images:,} test images of {division.test:,} identities: {impostors:,} impostor pairs"
    why = "nobody may be on both sides, or the test measures memory"
    if impostors > RULE_OF_30:
        rate = f"{RULE_OF_30 / impostors:.1e} (rule of 30, for independent pairs)"
        why += f"; so many pairs bear false accept rates from {rate}"
    if division.validation:
        why += "; a checkpoint picked on the test identities would flatter itself"
    if division.left_out:
        why += (
            "; an identity with one image has no positive, neither in a batch nor in the test. Its images "
            "are worth keeping as distractors in the gallery"
        )
    return Line("split", how, basis, why + ".", "docs/data.md, Splits; ISO/IEC 19795-1", "data.split")


def input_lines(figures: Figures, division: Division, kind: str, known: str) -> Part:
    """Size and augmentation, by what the images show."""
    shapes = figures.shapes
    size = _size(figures, division, kind)
    if shapes is None:
        seen = "no image was read"
    else:
        seen = f"{shapes.width} x {shapes.height} pixels (width x height, medians of {shapes.sampled} images)"
    what = f"{kind}, {known}" if known else f"{kind}, a guess from the shape alone (--shows says it)"
    why, source = {
        "people": ("standing people are twice as high as wide", "configs/reid/market_r18_cpu_long.yaml"),
        "faces": (
            "from scratch and for few people, 80 x 80 does as well as 112 x 112 and is twice as fast; with "
            "many, 112 x 112 is the size of the usual template",
            "configs/face/lfw_r18_cpu.yaml; Deng et al., CVPR 2019",
        ),
        "vehicles": ("a start; 256 x 256 is usual with a pretrained network", "He et al., arXiv 2006.02631"),
        "other": (
            "small data learns little from more pixels; larger when details matter",
            "configs/omniglot.yaml",
        ),
    }[kind]
    size_line = Line(
        "size", f"{size[0]} x {size[1]} (height x width)", f"{seen}; {what}", why + ".", source, "data.size"
    )
    augment, why, source = _augment(division, kind)
    text = ", ".join(f"{k} {v}" for k, v in augment.items() if k != "preset" and v) or "as the preset has it"
    line = Line(
        "augmentation", f"preset {augment['preset']}: {text}", what, why + ".", source, "data.augment"
    )
    return Part({"size": list(size), "augment": augment}, (size_line, line))


def _size(figures: Figures, division: Division, kind: str) -> tuple[int, int]:
    shapes = figures.shapes
    if kind == "people":
        return (256, 128) if shapes is not None and shapes.height >= TALL else (128, 64)
    if kind == "vehicles":
        return (128, 128)
    if kind == "faces":
        side = 112 if division.train >= FACES_AT_FULL_SIZE else 80
        if shapes is not None:
            side = min(side, max(32, min(shapes.height, shapes.width) // 16 * 16))
        return (side, side)
    longest = 64 if division.train_images < SMALL else 112
    if shapes is None:
        return (longest, longest)
    scale = longest / max(shapes.height, shapes.width)
    height, width = (max(32, round(side * scale / 16) * 16) for side in (shapes.height, shapes.width))
    return (height, width)


def _augment(division: Division, kind: str) -> tuple[dict[str, Any], str, str]:
    if division.unlabelled:
        strong = {"preset": "face", "crop": 1.0, "crop_area": 0.4, "color": 0.8, "gray": 0.2, "blur": 0.5}
        return (
            strong,
            "what is learned is to ignore the augmentation, so it must be strong",
            "Chen et al., ICML 2020",
        )
    if kind == "people":
        values = {
            "preset": "reid",
            "crop": 1.0,
            "crop_pad": 0.06,
            "color": 0.3,
            "erase": 0.3,
            "erase_area": 0.25,
        }
        return (
            values,
            "some twenty passes over the images overfit without",
            "configs/reid/market_r18_cpu_long.yaml",
        )
    if kind == "vehicles":
        return {"preset": "reid"}, "as for people: shifts, mirroring, erasing", "Luo et al., CVPRW 2019"
    if kind == "faces" and division.train < FACES_AT_FULL_SIZE:
        values = {"preset": "face", **SHIFTS, "warp_degrees": 0.0, "warp_shift": 0.05}
        return (
            values,
            "aligned faces: mirroring and small shifts; not aligned ones want the preset as it is",
            ("configs/face/lfw_r18_cpu.yaml"),
        )
    if kind == "faces":
        return {"preset": "face"}, "mirroring, and photos as poor as those to come", "Kim et al., CVPR 2022"
    values = {"preset": "face", **SHIFTS, "flip": 0.0, "warp_degrees": 10.0, "warp_shift": 0.08}
    return (
        values,
        "small turns and shifts; flip: 0.5 only where a mirrored image shows the same identity",
        ("configs/omniglot.yaml"),
    )


def model_lines(division: Division, many: bool, kind: str) -> Part:
    """Network and width of the embedding."""
    large = many or division.train_images >= LARGE
    values: dict[str, Any] = {"backbone": "resnet50" if large else "resnet18", "neck": "bnneck"}
    if large and kind == "faces":
        values |= {"neck": "linear_bn", "embedding_dim": 512}
    if not large and kind == "faces":
        values["output"] = "features"
    width = 512 if not large or kind == "faces" else 2048
    basis = f"{division.train_images:,} training images"
    source = "Luo et al., CVPRW 2019; Deng et al., CVPR 2019" if large else "configs/"
    why = (
        "published baselines of this size start here"
        if large
        else "all recipes of this package were measured with it, from scratch; pretrained: true starts from "
        "ImageNet and is the first thing to try on few images (a download)"
    )
    network = Line("model", f"{values['backbone']}, neck {values['neck']}", basis, why + ".", source, "model")
    size = Line(
        "embedding",
        f"{width} numbers",
        f"{division.train:,} training identities",
        f"the network's own width, or 512 for faces; {width * 4 // 1024} KB per image in an index. Halve it "
        "(neck: linear_bn, embedding_dim: 256) where that is too much.",
        source,
        "model",
    )
    return Part(values, (network, size))


def training_lines(division: Division, sampler: dict[str, Any]) -> Part:
    """How long, how fast."""
    count = division.train_images
    images = max(20 * count, min(50_000, 100 * count))
    batch = int(sampler.get("batch_size") or sampler["identities"] * sampler["images"])
    margin = sampler["name"] == "shuffle"
    optim = {
        "name": "sgd",
        "lr": 0.05,
        "weight_decay": 0.0005,
        "schedule": "cosine",
        "warmup": 0.1,
        "final_lr": 0.01,
    }
    line = Line(
        "length",
        f"{images:,} images, in batches of {batch}; SGD, rate 0.05",
        f"{count:,} training images: {images / count:.0f} passes",
        "on Market, 21 passes instead of 5 raised rank-1 from 71.7% to 84.2%; a first look needs a quarter "
        "of them. Few images get small batches, for more steps.",
        "docs/results.md, the recipes",
        "train",
    )
    return Part({"images": images, "clip_norm": 5.0 if margin else None}, (line,), optim)


def evaluation_lines(
    figures: Figures, division: Division, kind: str, epochs: float, distractors: Sequence[str] = ()
) -> Part:
    """Protocols, and how often they are run on the validation identities."""
    cameras = figures.cameras
    across = cameras is not None and len(cameras.shares) > 1 and 2 * cameras.on_one <= cameras.identities
    if across and cameras is not None:
        protocols, best = ["reid"], "mAP"
        basis = (
            f"{len(cameras.shares)} cameras; {cameras.identities - cameras.on_one:,} of "
            f"{cameras.identities:,} identities were seen by more than one"
        )
        why = "the task is to find people again on another camera: images of the same camera must not count"
    else:
        protocols = ["identification", "verification"] if kind == "faces" else ["identification"]
        protocols, best = (["retrieval"], "Recall@1") if kind == "other" else (protocols, "rank-1")
        basis = (
            "no cameras"
            if cameras is None
            else (
                f"{len(cameras.shares)} cameras; {cameras.on_one:,} of {cameras.identities:,} identities "
                "were seen by one only"
            )
        )
        why = "each image against all others; " + (
            "faces are also compared in pairs, at a threshold" if kind == "faces" else "no camera tells more"
        )
    values: dict[str, Any] = {
        "protocols": protocols,
        "best": best,
        "every": max(1, round(epochs / 20)) if division.validation else 0,
        "flip": kind != "other",
    }
    if across:
        values["query_gallery"] = not (
            division.kind == "column" and {"query", "gallery"} <= set(figures.split_counts)
        )
        values |= {"distractors": list(distractors)} if distractors and figures.distractor_images else {}
    if division.test:
        values |= {
            "variant": f"{division.train + division.validation}/{division.test} identities",
            "baselines": ["pixels"],
        }
    line = Line("protocol", " + ".join(protocols), basis, why + ".", "docs/evaluate.md", "evaluation")
    return Part(values, (line,))
