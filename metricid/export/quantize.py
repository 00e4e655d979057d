"""An exported model in 8-bit integers: scales from images, weights and activations both quantised."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from metricid.errors import InputError
from metricid.export.graph import strip_traces, with_card
from metricid.models.onnx import OnnxModel, onnx_fingerprint
from metricid.models.onnx_file import graph_digest, import_onnx, import_onnxruntime
from metricid.models.weights import first_line

BATCH = 16


def quantize_int8(model: OnnxModel, images: Tensor) -> bytes:
    """Static quantisation (QDQ): the range of each activation is that over the calibration images.

    Weights are int8 per output channel, activations uint8 per tensor, as x86 and ARM processors compute
    fastest.

    Args:
        model: an export of ours, in float.
        images: uint8 [N, H, W, 3], RGB, of the model's size: some hundred images of the kind that the model
            will see, and that it is not evaluated on.

    Returns:
        The content of the file. Its card has a fingerprint of its own and names that of its source.

    Raises:
        InputError: not a float export of ours, no images, or a graph that cannot be quantised.
    """
    card = model.file.card
    if card is None or card["precision"] != "float32":
        raise InputError(f"{model.file.name}: only a float file of metricid export can be quantised")
    if len(images) == 0:
        raise InputError("int8: needs images to calibrate with")
    onnx = import_onnx()
    import_onnxruntime()  # before any module of it
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(prefix="metricid-int8-") as folder, _quiet():
        plain, prepared, quantised = (Path(folder) / f"{name}.onnx" for name in ("plain", "prepared", "int8"))
        plain.write_bytes(model.file.data)
        try:
            quant_pre_process(str(plain), str(prepared))
            quantize_static(
                str(prepared),
                str(quantised),
                _reader(model, images),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        except Exception as error:  # the quantiser fails in many ways; the first line names the operator
            raise InputError(f"int8: this network cannot be quantised ({first_line(error)})") from error
        result: Any = onnx.load(str(quantised))
    strip_traces(result)
    fingerprint = onnx_fingerprint({"graph": graph_digest(result), "source": card["fingerprint"]})
    return with_card(result, {**card, "fingerprint": fingerprint, "precision": "int8"})


def _reader(model: OnnxModel, images: Tensor) -> Any:
    """The quantiser's view of the images."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches = iter(images.split(BATCH))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self._batches, None)
            return None if batch is None else model.feed(batch)

    return Reader()


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser writes a warning for each bias on the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
