"""What `metricid search` asks an index, and what the answers say."""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch

from metricid.cli.model import onnx_options, open_model
from metricid.cli.photos import open_photos
from metricid.cli.search_align import Alignment, Face
from metricid.cli.search_place import check_text, open_embeddings, say, shown
from metricid.data.align import mirrored, warp_face
from metricid.data.decode import decode_image
from metricid.data.embedding_file import COLUMN
from metricid.data.factory import pick_workers
from metricid.data.ordered import iterate_images
from metricid.data.query_photo import check_photo, photo_note
from metricid.data.transforms import build_transform, resize
from metricid.errors import InputError
from metricid.evaluation.calibration import Calibration, Threshold
from metricid.models.inference import InferenceModel
from metricid.search import Filter, SearchIndex, Store
from metricid.search.store import (
    IDENTITY,
    KEY,
    MissingRowError,
    Vectors,
    check_k,
    check_same_model,
    check_vectors,
)

FAR = 1e-3
BATCH = 64
IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm")


@dataclass(frozen=True)
class Answer:
    """A query and its hits, best first.

    Attributes:
        name: the image file or the key that was searched for.
        hits: `{score, column: value, ...}` each.
        picture: the image searched for, if it came as a file: [H, W, 3] uint8.
    """

    name: str
    hits: list[dict[str, Any]]
    picture: np.ndarray | None = None

    def to_json(self, verdicts: "Verdicts | None") -> dict[str, Any]:
        """Plain values; `match` where there is a threshold."""
        hits = [
            {"rank": rank, **({} if verdicts is None else {"match": verdicts.match(hit["score"])}), **hit}
            for rank, hit in enumerate(self.hits, 1)
        ]
        return {"query": self.name, "hits": hits}


@dataclass(frozen=True)
class Verdicts:
    """From which score two images are called one identity."""

    point: Threshold

    @classmethod
    def at(cls, card: Calibration, far: float | None) -> "Verdicts":
        """The threshold for a rate; for 0.001 if None, or the lowest rate that the card has above it."""
        if far is not None:
            return cls(card.at(far))
        usable = [p for p in card.thresholds if p.far >= FAR or math.isclose(p.far, FAR)]
        return cls(min(usable or card.thresholds, key=lambda p: p.far))

    @classmethod
    def check(cls, file: str, about: Mapping[str, Any], place: str) -> Calibration:
        """Reads a card and checks that it is of the model of the vectors, made in the same way.

        Args:
            file: the card.
            about: card of the vectors.
            place: how messages call the vectors.

        Raises:
            InputError: no card, or one of another model or flip.
        """
        card, model = Calibration.read(file), about.get("model")
        fingerprint = model.get("fingerprint") if isinstance(model, Mapping) else None
        run = quote(about.get("model_path") or "RUN")
        flip = bool(about.get("flip"))
        again = (
            f"metricid evaluate {run} --protocol verification --{'' if flip else 'no-'}flip "
            f"--save-calibration {quote(file)}"
        )
        if card.model != fingerprint:
            ours = "an unknown model" if fingerprint is None else f"model {str(fingerprint)[:12]}"
            raise InputError(
                f"{file}: was measured for model {card.model[:12]}, the vectors of {shown(place)} are of "
                f"{ours}; calibrate with the model of the index: {again}"
            )
        if card.flip != flip:
            raise InputError(
                f"{file}: was measured {_mirror(card.flip)}, the vectors of {shown(place)} are made "
                f"{_mirror(flip)}, by the same model; calibrate as they are made: {again}; or embed again: "
                f"metricid embed {run} IMAGES{' --flip' if card.flip else ''} -o FILE"
            )
        return card

    @classmethod
    def stored(cls, values: Any, place: str) -> Calibration:
        """The card that an index remembers.

        Args:
            values: of the card of the index.
            place: how messages call the index.

        Raises:
            InputError: they are no calibration card.
        """
        try:
            points = tuple(
                Threshold(float(p["far"]), float(p["threshold"]), float(p["tar"]))
                for p in values["thresholds"]
            )
            same, different = (int(values["pairs"][part]) for part in ("same", "different"))
            if points:
                return Calibration(str(values["model"]), bool(values["flip"]), same, different, points)
        except (KeyError, TypeError, ValueError):
            pass
        raise InputError(
            f"{shown(place)}: the thresholds in its card cannot be read; give --calibration FILE, "
            "or build the index again"
        )

    def match(self, score: float) -> bool:
        """Whether a score says one identity."""
        return score >= self.point.threshold

    def word(self, score: float) -> str:
        """The same in words."""
        return "match" if self.match(score) else "no match"

    def __str__(self) -> str:
        return f"match from {self.point.threshold:.4f}, FAR {self.point.far:g}"

    def to_json(self) -> dict[str, float]:
        """Plain values."""
        return {"far": self.point.far, "threshold": self.point.threshold, "tar": self.point.tar}


def _mirror(flip: Any) -> str:
    return "with the mirrored image (--flip)" if flip else "without the mirrored image (no --flip)"


def path_of_model(path: str) -> str:
    """What a card remembers: the path from the root, so that it is found from any folder."""
    return str(Path(path).resolve())


def model_for(card: Mapping[str, Any], options: argparse.Namespace, name: str) -> InferenceModel:
    """The model that made the vectors: that of `--model`, or the one that the card remembers.

    Raises:
        InputError: none is known, it cannot be opened, or it is another one.
    """
    path = options.model or card.get("model_path")
    if path is None:
        raise InputError(f"{name}: does not know where its model is; give --model RUN")
    if options.model is None and not Path(path).exists():
        raise InputError(f"{name}: its model is no longer at {path}; give --model RUN")
    onnx = onnx_options(options.onnx or (stored_onnx(card, name) if options.model is None else ()))
    model = open_model(path, device=options.device, onnx=onnx if onnx.given() else None)
    theirs = {"model": model.describe(), "flip": card.get("flip"), "dimension": model.output_dim}
    check_same_model(card, theirs, name, str(path))
    return model


def stored_onnx(card: Mapping[str, Any], name: str) -> list[str]:
    """The `--onnx` that a card remembers beside its model.

    Raises:
        InputError: the card holds something else there.
    """
    texts = card.get("onnx") or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InputError(
            f"{name}: the options of the model in its card cannot be read; give --model and --onnx"
        )
    return texts


def answer_images(
    store: Store, model: InferenceModel, faces: Sequence[Face], k: int, where: Filter | None
) -> list[Answer]:
    """Searches for the people on some image files, as `Alignment.queries` gives them."""
    pictures = [read_image(*face, model.preprocessing.size) for face in faces]
    hits = store.query(embed_pictures(model, pictures, bool(store.card.get("flip"))), k, where)
    return [
        Answer(file, hits.of(i), picture)
        for i, ((file, _), picture) in enumerate(zip(faces, pictures, strict=True))
    ]


def answer_rows(store: Store, rows: Sequence[str], k: int, where: Filter | None) -> list[Answer]:
    """Searches for rows of the store, which are left out of their own answers.

    Args:
        rows: keys; or numbers, in an index in a folder, where no key is such a number.

    Raises:
        InputError: a row is not there.
    """
    if not rows:
        return []
    keys = [_key(store, row) for row in rows]
    try:
        vectors, _ = store.get(keys)
    except MissingRowError as error:
        if isinstance(store, SearchIndex) or not any(key.isdecimal() for key in error.keys):
            raise
        raise InputError(
            f"--row: {error}; a row of a store goes by its {KEY} (numbers are for an index in a folder)"
        ) from None
    count = store.stats()["rows"]
    check_k(k, count)
    hits = store.query(vectors, min(k + 1, count), where)
    return [
        Answer(key, [hit for hit in hits.of(place) if hit[KEY] != key][:k]) for place, key in enumerate(keys)
    ]


def _key(store: Store, row: str) -> str:
    if not isinstance(store, SearchIndex) or not row.isdecimal() or store.has(row):
        return row
    if int(row) >= len(store):
        raise InputError(f"--row: the index has rows 0 to {len(store) - 1}, got {row}")
    return store.rows[KEY][int(row)].as_py()


def answer_embeddings(store: Store, file: str, k: int, where: Filter | None, name: str) -> list[Answer]:
    """Searches for every row of an embedding file."""
    reader = open_embeddings(file)
    check_same_model(store.card, {**reader.card, "dimension": reader.dimension}, name, file)
    answers: list[Answer] = []
    for vectors, rows in reader.blocks():
        hits = store.query(check_vectors(vectors, name=file, first=len(answers)), k, where)
        answers += [Answer(key, hits.of(place)) for place, key in enumerate(rows[KEY].to_pylist())]
    return answers


def read_image(file: str, landmarks: np.ndarray | None, size: tuple[int, int]) -> np.ndarray:
    """An image to search for, [H, W, 3] uint8; standard error tells what lowers its scores.

    Args:
        file: its path.
        landmarks: [5, 2] that it is aligned by, to `size`; None leaves it as it is.
        size: (height, width) that the model takes.

    Raises:
        InputError: no image, landmarks that place no face, or one on which nobody can be seen.
    """
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); give the path of an image") from None
    image = decode_image(content, file)
    if landmarks is not None:
        try:
            image = warp_face(image, landmarks, size)
        except InputError as error:
            raise InputError(f"{file}: {error}") from None
        if mirrored(landmarks[None])[0]:
            say(f"{file}: its landmarks are mirrored, expect lower scores; the left eye is that on the left")
    check_photo(image, size, file)
    if note := photo_note(image, size):
        say(f"{file}: {note}")
    return image


def embed_pictures(model: InferenceModel, pictures: Sequence[np.ndarray], flip: bool) -> Vectors:
    """[N, D] float32 of images of any size."""
    resized = [resize(picture, model.preprocessing.size) for picture in pictures]
    return np.concatenate(
        [
            model.embed(torch.from_numpy(np.stack(resized[i : i + BATCH])), flip=flip).cpu().numpy()
            for i in range(0, len(resized), BATCH)
        ]
    )


def embed_photos(
    model: InferenceModel,
    data: Sequence[str],
    *,
    identity: str | None,
    root: str | None,
    flip: bool,
    alignment: Alignment,
) -> tuple[Vectors, pa.Table]:
    """Vectors and rows of new images.

    Args:
        model: of the index.
        data: one folder, tar file or table, or any number of image files.
        identity: whom image files show; each is an identity of its own if None.
        root: where the images of a table are.
        flip: as in the index.
        alignment: as in the index.
    """
    if all(Path(file).suffix.lower() in IMAGES for file in data):
        for file in data:
            check_text("add", file)
        pictures = [read_image(*face, model.preprocessing.size) for face in alignment.queries(data)]
        rows = {KEY: list(data), IDENTITY: [identity or file for file in data]}
        return embed_pictures(model, pictures, flip), pa.table(rows)
    if len(data) > 1:
        raise InputError(f"add: {data[1]!r}: give one folder, tar file or table, or image files only")
    if identity is not None:
        raise InputError("--identity: is for single images; a folder or table names its own identities")
    source, table = open_photos(data[0], root=root)
    source = alignment.source(source, table, data[0], model.preprocessing.size)
    batches = iterate_images(
        source,
        table.paths,
        build_transform("plain", size=model.preprocessing.size, train=False),
        batch_size=BATCH,
        workers=pick_workers("auto", 1, torch.device("cpu")),
        on_corrupt="error",
    )
    vectors = np.empty((len(table), model.output_dim), np.float32)
    for images, places in batches:
        vectors[places] = model.embed(images, flip=flip).cpu().numpy()
    return vectors, table.table


def is_embedding_file(path: str) -> bool:
    """Whether this is a file of stored embeddings rather than a table of images."""
    file = Path(path)
    if file.suffix.lower() == ".npy":
        return True
    if file.suffix.lower() != ".parquet" or not file.is_file():
        return False
    try:
        return COLUMN in pyarrow.parquet.read_schema(file).names
    except (pa.ArrowException, OSError) as error:
        why = " ".join(str(error).split())
        raise InputError(
            f"{file}: not a readable Parquet file ({why}); copy it again, or make it anew"
        ) from None
