"""`metricid prepare LAYOUT ROOT -o FOLDER`: a data set as checked manifests, split by identity."""

import argparse
import json
from pathlib import Path

from tqdm import tqdm

from metricid.config import SplitConfig, expand
from metricid.data.decode import ImageError
from metricid.data.factory import (
    DISTRACTORS,
    SYNTHETIC,
    layout_names,
    layout_options,
    open_layout,
    split_table,
)
from metricid.data.manifest import Manifest
from metricid.data.sources import ImageSource
from metricid.data.splits import query_gallery
from metricid.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("layout", help="one of: " + ", ".join(layout_names()))
    parser.add_argument("root", nargs="?", help="folder or tar file (none for generated identities)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the manifests")
    parser.add_argument("--manifest", help="table to check and split, for layout manifest")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the layout, such as seed=1",
    )
    parser.add_argument("--train-identities", help="number (600) or share (0.8) of identities that train")
    parser.add_argument("--min-images", type=int, help="leave out identities with fewer images")
    parser.add_argument("--seed", type=int, help="seed of the split (default 0)")
    parser.add_argument(
        "--query-gallery", action="store_true", help="divide the test images by (identity, camera)"
    )
    parser.add_argument(
        "--decode", action="store_true", help="also decode every image and name the unreadable ones"
    )
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")


def run(options: argparse.Namespace) -> int:
    """Writes all.csv, or train.csv and test.csv, and prints their counts."""
    layout_given = layout_options(options.layout, options.option)
    _check_options(options)
    source, table = open_layout(
        options.layout,
        root=options.root,
        manifest=options.manifest and str(expand(options.manifest, "--manifest")),
        options=layout_given,
        option="ROOT",
    )
    if options.decode:
        _decode_all(source, table)
    parts = {"all": table}
    if options.train_identities is not None:
        split = SplitConfig(
            train_identities=_number(options.train_identities),
            min_images=1 if options.min_images is None else options.min_images,
            seed=0 if options.seed is None else options.seed,
        )
        distractors = DISTRACTORS.get(options.layout, ())
        train, test = split_table(table, split, distractors, option="--train-identities")
        if options.query_gallery and test is not None:
            test = query_gallery(test, distractors)
        parts = {"train": train} | ({"test": test} if test is not None else {})
    counts = {}
    for name, part in parts.items():
        part.write(options.output / f"{name}.csv")
        counts[name] = {"images": len(part), "identities": len(part.identity_names()), **_splits(part)}
    if options.json:
        print(json.dumps(counts, indent=2))
    else:
        for name, values in counts.items():
            print(f"{options.output / name}.csv: " + ", ".join(f"{v} {k}" for k, v in values.items()))
    return 0


def _check_options(options: argparse.Namespace) -> None:
    layout = options.layout
    if layout in SYNTHETIC and options.root is not None:
        raise InputError(f"ROOT: layout {layout} generates its images and takes none")
    if layout not in SYNTHETIC and layout != "manifest" and options.root is None:
        raise InputError(f"ROOT: layout {layout} needs a folder or tar file: metricid prepare {layout} /path")
    if (layout == "manifest") != (options.manifest is not None):
        raise InputError("--manifest: layout manifest needs the table, and no other layout takes one")
    if options.min_images is not None and options.min_images < 1:
        raise InputError(f"--min-images: must be at least 1, got {options.min_images}")
    if options.train_identities is None:
        for option in ("query_gallery", "min_images", "seed"):
            value = getattr(options, option)
            if value is not None and value is not False:
                raise InputError(f"--{option.replace('_', '-')}: is part of a split; give --train-identities")


def _number(text: str) -> int | float:
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        if value >= 1 if kind is int else 0 < value < 1:
            return value
    raise InputError(
        f"--train-identities: {text!r} is neither a number of at least 1 nor a share between 0 and 1"
    )


def _splits(part: Manifest) -> dict[str, int]:
    column = part.column("split")
    if column is None:
        return {}
    return {f"in split {name}": int((column == name).sum()) for name in sorted(set(column))}


def _decode_all(source: ImageSource, table: Manifest) -> None:
    bad = []
    for path in tqdm(table.paths, desc="decode", unit="img", leave=False):
        try:
            source.read(path)
        except ImageError as error:
            bad.append(str(error))
    if bad:
        shown = "\n".join(f"  {line}" for line in bad[:20])
        more = f"\n  and {len(bad) - 20} more" if len(bad) > 20 else ""
        raise InputError(
            f"{source.name}: {len(bad)} unreadable images; remove or replace them\n{shown}{more}"
        )
