"""An ONNX file before anything runs: whole or damaged, what it says of itself, and its fingerprint."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from metricid.errors import InputError
from metricid.models.weights import first_line

CARD_KEY = "metricid"
CARD_FORMAT = 1
CARD_FIELDS = {"name", "fingerprint", "graph", "precision", "preprocessing", "input", "output"}


@dataclass(frozen=True)
class OnnxFile:
    """The bytes of a model and what they say.

    Attributes:
        name: how messages call it.
        data: the file's content, without tensors that lie in files beside it.
        card: what `metricid export` wrote into the metadata; None in other programs' files.
        digest: SHA-256 over graph and weights as hex; the metadata does not count.
        path: where it lies, if weights lie in files beside it.
    """

    name: str
    data: bytes
    card: dict[str, Any] | None
    digest: str
    path: Path | None = None

    @classmethod
    def read(cls, path: str | Path) -> "OnnxFile":
        """Reads a file and checks it; nothing in it is run.

        Raises:
            InputError: missing, not ONNX, damaged, weights missing beside it, or an extra is not installed.
        """
        file = Path(path)
        try:
            data = file.read_bytes()
        except OSError as error:
            raise InputError(f"{file}: cannot be read ({error.strerror}); give an .onnx file") from None
        return cls.parse(data, str(file), file)

    @classmethod
    def parse(cls, data: bytes, name: str, path: Path | None = None) -> "OnnxFile":
        """The same for bytes in memory; `path` says where weights beside it would lie.

        Raises:
            InputError: as `read`.
        """
        onnx = import_onnx()
        try:
            model = onnx.load_from_string(data)
        except Exception as error:  # random bytes make the parser fail in any way
            raise InputError(
                f"{name}: not an ONNX file, or a damaged one ({first_line(error)}); "
                "export or download it again"
            ) from None
        if not model.graph.node or not model.opset_import:
            raise InputError(f"{name}: not an ONNX file, or a damaged one; export or download it again")
        card = _card(model, name)
        digest = graph_digest(model)
        outside = _external_files(model, name, path)
        for file in outside:
            with file.open("rb") as content:
                digest = _sha256(digest + hashlib.file_digest(content, "sha256").hexdigest())
        return cls(name, data, card, digest, path if outside else None)


def import_onnx() -> Any:
    """The package `onnx`.

    Raises:
        InputError: it is not installed.
    """
    try:
        import onnx
    except ImportError:
        raise _missing("onnx") from None
    return onnx


def import_onnxruntime() -> Any:
    """The package `onnxruntime`, told to report nothing.

    From 1.31 on it gives a machine an identifier and sends what runs there to its makers, unless the
    environment forbids that before the import. Who works with faces has not agreed to it.

    Raises:
        InputError: it is not installed.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        import onnxruntime
    except ImportError:
        raise _missing("onnxruntime") from None
    onnxruntime.disable_telemetry_events()  # where somebody imported it before us
    return onnxruntime


def _missing(package: str) -> InputError:
    return InputError(
        f"{package} is not installed: ONNX files need the extra export: pip install 'metricid[export]'"
    )


def graph_digest(model: Any) -> str:
    """SHA-256 of a `ModelProto` without its metadata, as hex."""
    bare = type(model)()
    bare.CopyFrom(model)
    bare.ClearField("metadata_props")
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _card(model: Any, name: str) -> dict[str, Any] | None:
    """Our metadata, if there is any."""
    text = next((entry.value for entry in model.metadata_props if entry.key == CARD_KEY), None)
    if text is None:
        return None
    try:
        card = json.loads(text)
    except ValueError:
        card = None
    if not isinstance(card, dict):
        raise InputError(f"{name}: its metadata {CARD_KEY!r} is no JSON object; export it again")
    if card.get("format") != CARD_FORMAT:
        raise InputError(
            f"{name}: its metadata has format {card.get('format')}, this version reads {CARD_FORMAT}; "
            "update metricid, or export it again"
        )
    if not card.keys() >= CARD_FIELDS:
        missing = ", ".join(sorted(CARD_FIELDS - card.keys()))
        raise InputError(f"{name}: its metadata {CARD_KEY!r} lacks {missing}; export it again")
    return card


def _external_files(model: Any, name: str, path: Path | None) -> list[Path]:
    """Files beside the model that hold weights, each once, in the order of their first use."""
    found: dict[Path, None] = {}
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key != "location":
                continue
            place = PurePosixPath(entry.value)
            if place.is_absolute() or ".." in place.parts:
                raise InputError(f"{name}: refused, its weights point outside its folder ({entry.value})")
            file = (path.parent if path else Path()) / place
            if path is None or not file.is_file():
                raise InputError(f"{name}: its weights lie in {entry.value}, which is missing; put it beside")
            found[file] = None
    return list(found)
