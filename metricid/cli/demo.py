"""`metricid demo RUN`: a local page to try a trained model with photos."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metricid.cli.model import open_model
from metricid.cli.subject import check_overrides, own_recipe, run_splits, warn
from metricid.config import RunConfig, expand
from metricid.data.factory import DISTRACTORS, pick_workers
from metricid.data.sources import ImageSource, open_source
from metricid.demo.gallery import Gallery, RunImages, StoredImages
from metricid.demo.photos import PhotoReader
from metricid.demo.rates import PairRates
from metricid.demo.server import (
    address_of,
    check_door,
    check_extra,
    listen,
    private_folder,
    quiet_environment,
    serve,
)
from metricid.demo.studio import Studio
from metricid.errors import InputError
from metricid.models.inference import CheckpointModel
from metricid.report.search_view import plan_search
from metricid.search import SearchIndex
from metricid.search.store import check_same_model
from metricid.training.distributed import World, pick_device
from metricid.training.embedding import Embedded, embed_images
from metricid.training.precision import pick_precision

MOST_TOP = 50
COLUMNS = ("identity", "camera", "split")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("run", help="run folder or checkpoint (.pt)")
    parser.add_argument(
        "overrides", nargs="*", metavar="a.b=c", help="of the run's recipe, such as data.root=/moved"
    )
    parser.add_argument("--root", help="folder or tar file where the run's images are now")
    parser.add_argument("--manifest", help="where the run's own table is now")
    parser.add_argument("--index", type=Path, metavar="FOLDER", help="search this index, not the test images")
    parser.add_argument("--index-root", metavar="FOLDER", help="where the images of the index are")
    parser.add_argument("--top", type=int, default=10, help="images found at first")
    parser.add_argument("--host", default="127.0.0.1", help="address; others than this need --token")
    parser.add_argument("--port", type=int, default=7860, help="0 takes any that is free")
    parser.add_argument("--token", metavar="TEXT", help="nothing is shown without it; 16 characters at least")
    parser.add_argument("--browser", action=argparse.BooleanOptionalAction, help="open the page in a browser")
    parser.add_argument("--batch-size", type=int, help="images per forward pass")
    parser.add_argument("--workers", type=int, help="processes that read images")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N, mps")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])


@dataclass(frozen=True)
class _Run:
    """A trained model with its recipe, and its test images with their embeddings.

    Attributes:
        index: of `--index`, and whether its faces are aligned.
    """

    config: RunConfig
    model: CheckpointModel
    source: ImageSource
    embedded: Embedded
    index: tuple[StoredImages, bool] | None


def run(options: argparse.Namespace) -> int:
    """Serves the page until Ctrl-C."""
    check_extra()
    _check_numbers(options)
    check_overrides(options.overrides)
    check_door(options.host, options.token)
    if options.index_root is not None and options.index is None:
        raise InputError("--index-root: is for the images of an index; give --index")
    with listen(options.host, options.port) as taken:
        studio = _studio(options)
        address = address_of(taken, options.host)

        def ready() -> None:
            print(address, flush=True)
            warn("Ctrl-C ends it")
            if options.browser:
                _open_browser(address)

        with private_folder() as folder:
            quiet_environment(folder)
            from metricid.demo.page import build_app

            app = build_app(studio, top=options.top)
            serve(app, taken, host=options.host, token=options.token, ready=ready)
    warn("ended; no photo was kept")
    return 0


def _check_numbers(options: argparse.Namespace) -> None:
    limits = {
        "top": (1, MOST_TOP),
        "port": (0, 65535),
        "batch_size": (1, None),
        "workers": (0, None),
    }
    for name, (least, most) in limits.items():
        value = getattr(options, name)
        if value is not None and (value < least or (most is not None and value > most)):
            upper = "" if most is None else f" and at most {most}"
            raise InputError(f"--{name.replace('_', '-')}: must be at least {least}{upper}, got {value}")


def _studio(options: argparse.Namespace) -> Studio:
    """Opens the run, embeds its test images and measures them."""
    told = _open(options)
    config, table = told.config, told.embedded.table
    vectors = told.embedded.vectors
    flip = config.evaluation.flip
    distractors = (*config.evaluation.distractors, *DISTRACTORS.get(config.data.train, ()))
    known = ~np.isin(table.identities, list(distractors))
    rates = PairRates.from_embeddings(vectors[known], table.identities[known])
    try:
        images = RunImages(vectors, table, told.source)
        search = plan_search(
            vectors,
            {name: table.column(name) for name in COLUMNS},
            config.evaluation.protocols,
            config.evaluation.distractors,
        )
    except ValueError as error:
        raise InputError(f"{options.run}: {error}") from error
    gallery: Gallery = images
    aligned = config.data.align
    if told.index is not None:
        gallery, aligned = told.index
    reader = PhotoReader(told.model, flip=flip, max_pixels=config.data.max_pixels, aligned=aligned)
    return Studio(told.model.name, reader, images, gallery, rates, search)


def _open(options: argparse.Namespace) -> _Run:
    path = Path(options.run)
    if not (path.is_dir() or path.suffix == ".pt"):
        raise InputError(
            f"{path}: no run folder or checkpoint (.pt); give the folder that metricid train made, such as "
            "runs/quickstart"
        )
    checkpoint, config = own_recipe(path, options.overrides)
    splits = run_splits(config, root=options.root, manifest=options.manifest)
    if splits.test is None:
        raise InputError(
            f"{options.run}: its recipe has no test identities (data.split), and the page needs some"
        )
    device = pick_device(options.device)
    model = open_model(checkpoint, device=device, precision=options.precision)
    assert isinstance(model, CheckpointModel)
    # Before the embeddings: they take minutes, after which nobody wants to hear of a wrong name.
    index = None if options.index is None else _index(options, model, config.evaluation.flip)
    data = config.data
    embedded = embed_images(
        model.embedder,
        splits.source,
        splits.test,
        world=World(0, 1, device),
        precision=pick_precision(options.precision, device),
        batch_size=options.batch_size or config.evaluation.batch_size,
        flip=config.evaluation.flip,
        workers=pick_workers(data.workers if options.workers is None else options.workers, 1, device),
        on_corrupt=data.on_corrupt,
    )
    if embedded.skipped:
        warn(f"{len(embedded.skipped)} unreadable test images are left out, such as {embedded.skipped[0]}")
    return _Run(config, model, splits.source, embedded, index)


def _index(options: argparse.Namespace, model: CheckpointModel, flip: bool) -> tuple[StoredImages, bool]:
    """The index, if it is of this model, and whether its faces are aligned."""
    index = SearchIndex(options.index)
    if not len(index):
        raise InputError(f"{options.index}: has no rows to search; add some first")
    theirs = bool(index.card.get("flip"))
    ours = {"model": model.describe(), "flip": theirs, "dimension": model.output_dim}
    check_same_model(index.card, ours, str(options.index), str(options.run))
    if theirs != flip:
        raise InputError(
            f"{options.index}: its vectors are made {'with' if theirs else 'without'} the mirrored image, "
            f"and the recipe of the run says evaluation.flip={str(flip).lower()}; "
            f"add evaluation.flip={str(theirs).lower()}"
        )
    root = options.index_root
    source = None if root is None else open_source(expand(root, "--index-root"))
    return StoredImages(index, options.index.name, source), index.card.get("aligned") is True


def _open_browser(address: str) -> None:
    import webbrowser

    if not webbrowser.open(address):
        warn("no browser was found; open the address yourself")
