"""`metricid export RUN -o model.onnx`: a trained model for production, checked before it is written."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metricid.cli.evaluate import check_folder
from metricid.cli.model import open_trained
from metricid.cli.subject import check_overrides, run_splits
from metricid.config import RunConfig, expand
from metricid.data.dataset import OnCorrupt
from metricid.data.factory import (
    DISTRACTORS,
    Splits,
    build_splits,
    layout_names,
    layout_options,
    open_layout,
    pick_workers,
)
from metricid.data.manifest import Manifest
from metricid.data.ordered import iterate_images
from metricid.data.sources import ImageSource
from metricid.data.splits import query_gallery
from metricid.data.transforms import build_transform
from metricid.errors import InputError
from metricid.export import Check, check_models, export_onnx, quantize_int8
from metricid.export.check import some_identities
from metricid.export.graph import INPUTS
from metricid.files import atomic_write
from metricid.models.inference import CheckpointModel, InferenceModel
from metricid.models.onnx import OnnxModel
from metricid.models.onnx_file import OnnxFile
from metricid.training.build import check_recipe
from metricid.training.checkpoint import load_embedder
from metricid.yaml_files import apply_overrides

PYTORCH, FLOAT, INT8 = "PyTorch", "ONNX", "int8"
OF_INT8 = {"calibration_images": 256, "max_drop": 0.05}  # defaults of the options that --int8 alone takes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("subject", help="run folder or checkpoint")
    parser.add_argument(
        "overrides", nargs="*", metavar="a.b=c", help="of the recipe, such as data.root=/moved"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the .onnx file")
    parser.add_argument(
        "--input",
        choices=list(INPUTS),
        default="normalised",
        help="normalised: float32 [N,3,H,W] (default); pixels: uint8 [N,H,W,3] RGB, normalised inside",
    )
    parser.add_argument("--int8", action="store_true", help="8-bit integers, calibrated on training images")
    parser.add_argument("--calibration-images", type=int, metavar="N", help="for --int8 (default: 256)")
    parser.add_argument(
        "--max-drop",
        type=float,
        metavar="SHARE",
        help="most that rank-1 or TAR@FAR may lose by --int8 (default: 0.05)",
    )
    parser.add_argument("--layout", help="check on other images: " + ", ".join(layout_names()))
    parser.add_argument("--root", help="folder or tar file of these, or where the run's own data is now")
    parser.add_argument("--manifest", help="table of these, or where the run's own table is now")
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="of the layout, such as seed=1"
    )
    parser.add_argument(
        "--check-images",
        type=int,
        default=2000,
        metavar="N",
        help="check on whole identities of together at most N images; 0 = all (default: 2000)",
    )
    parser.add_argument("--flip", action=argparse.BooleanOptionalAction, help="check with the mirrored image")
    parser.add_argument("--license", metavar="TEXT", help="terms of the model, kept in the file")
    parser.add_argument("--workers", type=int, help="processes that read images")
    parser.add_argument("--json", action="store_true", help="print the check as JSON")


def run(options: argparse.Namespace) -> int:
    """Exports, checks, writes, and prints what the check found."""
    _check_options(options)
    check_overrides(options.overrides)
    checkpoint, state = open_trained(Path(options.subject))
    config = check_recipe(apply_overrides(state["config"], options.overrides), f"{checkpoint}: stored recipe")
    own = _own_splits(config, options)
    source, table, which = _check_data(config, options, own)
    embedder = load_embedder(state, checkpoint)
    name = f"{config.name} ({checkpoint.name})"
    data = export_onnx(embedder, name=name, input_kind=options.input, license=options.license)
    models: dict[str, InferenceModel] = {
        PYTORCH: CheckpointModel(embedder, name=name, device=torch.device("cpu"))
    }
    models[FLOAT] = chosen = OnnxModel(OnnxFile.parse(data, str(options.output)))
    if options.int8:
        assert own is not None
        data = quantize_int8(chosen, _calibration_images(config, own, options.calibration_images))
        models[INT8] = chosen = OnnxModel(OnnxFile.parse(data, str(options.output)))
    found = check_models(
        models,
        source,
        some_identities(table, options.check_images),
        flip=config.evaluation.flip if options.flip is None else options.flip,
        workers=pick_workers(
            config.data.workers if options.workers is None else options.workers, 1, torch.device("cpu")
        ),
        on_corrupt=config.data.on_corrupt,
        distractors=_distractors(config, options),
    )
    _judge(found, options)
    with atomic_write(options.output) as file:
        file.write(data)
    _report(options, chosen, len(data), found, which)
    return 0


def _check_options(options: argparse.Namespace) -> None:
    """What can be known to be wrong before any work."""
    if options.output.suffix.lower() != ".onnx" or options.output.is_dir():
        raise InputError(f"-o: {options.output} must be a file whose name ends in .onnx")
    check_folder("-o", options.output.parent)
    for name, default in OF_INT8.items():
        if getattr(options, name) is None:
            setattr(options, name, default)
        elif not options.int8:
            raise InputError(f"--{name.replace('_', '-')}: is for --int8; add it, or leave this out")
    least = {"calibration_images": 1, "check_images": 0, "max_drop": 0, "workers": 0}
    for name, bound in least.items():
        value = getattr(options, name)
        if value is not None and not value >= bound:
            raise InputError(f"--{name.replace('_', '-')}: must be at least {bound}, got {value}")
    if options.layout is None and options.option:
        raise InputError("--option: is for other data than the run's own; give --layout and --root")
    if options.layout == "manifest" and options.manifest is None:
        raise InputError("--manifest: --layout manifest needs the table: --manifest /path/to/table.csv")
    if Path(options.subject).suffix.lower() == ".onnx":
        raise InputError(f"{options.subject}: is exported already; give the run folder or checkpoint")


def _own_splits(config: RunConfig, options: argparse.Namespace) -> Splits | None:
    """The run's own data; None where other images are checked and nothing is calibrated."""
    if options.layout is None:
        return run_splits(config, root=options.root, manifest=options.manifest, hint="or check on --layout")
    if not options.int8:
        return None
    try:
        return build_splits(config.data, make_queries=False)
    except InputError as error:  # --root is that of the other images
        raise InputError(
            f"--int8: calibrates on the run's own images: {error} "
            "(if they have moved, say where with data.root=)"
        ) from error


def _check_data(
    config: RunConfig, options: argparse.Namespace, own: Splits | None
) -> tuple[ImageSource, Manifest, str]:
    """The images that the check embeds: the run's test images or the next best, or other data."""
    if own is not None and options.layout is None:
        manifests = own.manifests()
        which = next(name for name in ("test", "validation", "train") if name in manifests)
        return own.source, manifests[which], f"{which} images of the run"
    source, table = open_layout(
        options.layout,
        root=options.root,
        manifest=options.manifest and str(expand(options.manifest, "--manifest")),
        options=layout_options(options.layout, options.option),
        max_pixels=config.data.max_pixels,
        option="--root",
    )
    if table.column("camera") is not None and table.column("split") is None:
        table = query_gallery(table, _distractors(config, options))
    return source, table, f"images of {source.name}"


def _distractors(config: RunConfig, options: argparse.Namespace) -> list[str]:
    if options.layout is None:
        return config.evaluation.distractors
    return list(DISTRACTORS.get(options.layout, ()))


def _calibration_images(config: RunConfig, splits: Splits, count: int) -> Tensor:
    """Training images, evenly spread over the table and so over identities: uint8 [N, H, W, 3]."""
    table = splits.train
    rows = np.unique(np.linspace(0, len(table) - 1, min(count, len(table))).round().astype(np.int64))
    on_corrupt: OnCorrupt = config.data.on_corrupt
    transform = build_transform({"preset": "plain"}, size=config.data.size, train=False)
    paths = table.select(rows).paths
    batches = iterate_images(splits.source, paths, transform, len(rows), on_corrupt=on_corrupt)
    found = [images for images, _ in batches]
    if not found:
        raise InputError("--int8: none of the chosen training images can be read; check data.root")
    return torch.cat(found)


def _judge(found: Check, options: argparse.Namespace) -> None:
    """Refuses a model that is not the one that was trained."""
    problem = found.problem()
    if problem:
        raise InputError(f"{options.output}: not written, the check failed: {problem}")
    worst = found.loss(2) if options.int8 else None
    if worst is not None and worst.values[0] - worst.values[2] > options.max_drop:
        raise InputError(
            f"{options.output}: not written, {INT8} lowers {worst.name} from {100 * worst.values[0]:.2f}% to "
            f"{100 * worst.values[2]:.2f}%, more than --max-drop {options.max_drop:g} allows; calibrate on "
            "more images, or export in float"
        )


def _report(options: argparse.Namespace, model: OnnxModel, size: int, found: Check, which: str) -> None:
    said: dict[str, Any] = {"file": str(options.output), "bytes": size, **model.describe()}
    if options.json:
        print(json.dumps({**said, "checked_on": which, "check": found.to_json()}, indent=2))
        return
    print(found.table())
    print(f"checked on the {which}")
    shape = INPUTS[options.input]
    print(
        f"{options.output}: {size / 1e6:.1f} MB, {model.precision}, input {shape['dtype']} "
        f"{shape['layout']}, {model.output_dim} values out, fingerprint {model.fingerprint[:12]}"
    )
