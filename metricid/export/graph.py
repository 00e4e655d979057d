"""An embedder as one self-contained ONNX file that says how it wants its pixels."""

import copy
import datetime
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from metricid._version import __version__
from metricid.errors import InputError
from metricid.models.embedder import Embedder
from metricid.models.inference import embedder_fingerprint, preprocessing_to_dict
from metricid.models.onnx_file import CARD_FORMAT, CARD_KEY, graph_digest, import_onnx, import_onnxruntime
from metricid.models.weights import first_line

InputKind = Literal["normalised", "pixels"]
INPUTS: dict[InputKind, dict[str, str]] = {
    "normalised": {
        "name": "images",
        "layout": "NCHW",
        "dtype": "float32",
        "values": "(pixel / 255 - mean) / std per channel, channels in color_order",
    },
    "pixels": {"name": "images", "layout": "NHWC", "dtype": "uint8", "values": "RGB pixels, 0 to 255"},
}
OUTPUT = "embedding"
LIMIT = 2**31 - 1


class _Embedding(nn.Module):
    """The one output that search and evaluation use."""

    def __init__(self, embedder: Embedder):
        super().__init__()
        self.embedder = embedder

    def forward(self, images: Tensor) -> Tensor:
        return self.embedder.embed(images)


def export_onnx(
    embedder: Embedder, *, name: str, input_kind: InputKind = "normalised", license: str | None = None
) -> bytes:
    """Exports through PyTorch's graph capture; the batch size stays open.

    Args:
        embedder: the model; it is not changed.
        name: of the model, for its card.
        input_kind: `normalised` takes float32 [N, 3, H, W], as runtimes for production expect it; `pixels`
            takes uint8 [N, H, W, 3] RGB and normalises inside the graph.
        license: what the file says of its terms.

    Returns:
        The content of the file, card included.

    Raises:
        InputError: a network that cannot be captured, or beyond the 2 GiB that one ONNX file can hold.
    """
    import_onnxruntime()  # names the missing extra before the work
    onnx = import_onnx()
    if sum(p.numel() * p.element_size() for p in embedder.state_dict().values()) > LIMIT:
        raise InputError("the model has over 2 GiB of weights, more than one ONNX file can hold")
    module = _Embedding(copy.deepcopy(embedder).float().cpu()).eval()
    module.embedder.channels_last = False
    module.to(memory_format=torch.contiguous_format)
    height, width = embedder.config.preprocessing.size
    # Two images: a batch of one would be taken for a constant.
    images = torch.zeros(2, 3, height, width)
    if input_kind == "pixels":
        images = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    try:
        with _quiet():
            program: Any = torch.onnx.export(
                module,
                (images,),
                dynamo=True,
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
                input_names=[INPUTS[input_kind]["name"]],
                output_names=[OUTPUT],
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter fails in many ways; the first line names the construct
        raise InputError(
            f"{embedder.config.backbone} cannot be exported to ONNX with an open batch size "
            f"({first_line(error)})"
        ) from error
    model = onnx.load_from_string(program.model_proto.SerializeToString())
    strip_traces(model)
    fingerprint = embedder_fingerprint(embedder)
    card = {
        "format": CARD_FORMAT,
        "kind": "embedder",
        "name": name,
        "fingerprint": fingerprint,
        "source": fingerprint,
        "precision": "float32",
        "dimension": embedder.output_dim,
        "normalised": False,
        "preprocessing": preprocessing_to_dict(embedder.config.preprocessing),
        "input": INPUTS[input_kind],
        "output": {"name": OUTPUT, "shape": "[N, dimension]"},
        "license": license,
        "created": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "metricid": __version__,
    }
    return with_card(model, card)


def strip_traces(model: Any) -> None:
    """Removes what the exporter notes beside each node: stack traces with the paths of this machine."""
    graph = model.graph
    for entry in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        entry.ClearField("metadata_props")
        entry.ClearField("doc_string")


def with_card(model: Any, card: dict[str, Any]) -> bytes:
    """The model with its card (and the digest of its graph in it) as the content of a file."""
    model.ClearField("metadata_props")
    entry = model.metadata_props.add()
    entry.key = CARD_KEY
    entry.value = json.dumps({**card, "graph": graph_digest(model)})
    return model.SerializeToString(deterministic=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter narrates on several loggers; its exceptions say what matters."""
    names = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
    before = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
