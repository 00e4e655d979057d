"""How pixels get into an ONNX file: by the card of our exports, or by shapes and options in others."""

from dataclasses import dataclass
from typing import Any, Literal

import torch

from metricid.errors import InputError
from metricid.models.embedder import Channels, Preprocessing
from metricid.models.onnx_file import OnnxFile

Layout = Literal["NCHW", "NHWC"]
LAYOUTS: tuple[Layout, Layout] = ("NCHW", "NHWC")
DTYPES: dict[str, torch.dtype] = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(uint8)": torch.uint8,
}


@dataclass(frozen=True)
class OnnxOptions:
    """What an ONNX file of another program does not say itself.

    Attributes:
        size: (height, width) of the input, where the file leaves it open.
        layout: where the channels are, if the shape does not tell.
        mean, std: of the network's input (pixel - mean) / std, for pixels from 0 to 255, per channel in the
            order of `color_order`. Not for files that take uint8 pixels.
        color_order: RGB unless given.
        output: name of the embedding, where the file has several outputs.
    """

    size: tuple[int, int] | None = None
    layout: Layout | None = None
    mean: Channels | None = None
    std: Channels | None = None
    color_order: Literal["RGB", "BGR"] | None = None
    output: str | None = None

    def given(self) -> list[str]:
        """Names of the options that are set."""
        return [name for name, value in vars(self).items() if value is not None]


@dataclass(frozen=True)
class OnnxPlan:
    """How pixels get into the file's input, and which output is the embedding."""

    input: str
    output: str
    layout: Layout
    dtype: torch.dtype
    batch: int | None
    preprocessing: Preprocessing
    swap: bool
    raw: bool


def plan_own(file: OnnxFile, session: Any, given: list[str]) -> OnnxPlan:
    """By the card that the export wrote."""
    card = file.card
    assert card is not None
    if given:
        raise InputError(f"{file.name}: says itself how it wants its pixels; leave out --onnx {given[0]}=...")
    try:
        pixels, source = card["preprocessing"], card["input"]
        preprocessing = Preprocessing(
            size=(int(pixels["size"][0]), int(pixels["size"][1])),
            mean=_three(pixels["mean"]),
            std=_three(pixels["std"]),
            color_order=pixels["color_order"],
        )
        raw = source["dtype"] == "uint8"
        plan = OnnxPlan(
            source["name"],
            card["output"]["name"],
            source["layout"],
            torch.uint8 if raw else torch.float32,
            None,  # the batch of our exports is open
            preprocessing,
            swap=not raw and preprocessing.color_order == "BGR",
            raw=raw,
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"{file.name}: its metadata cannot be used ({error}); export it again") from error
    inputs, outputs = _names(session.get_inputs()), _names(session.get_outputs())
    if plan.input not in inputs or plan.output not in outputs:
        raise InputError(
            f"{file.name}: its metadata names {plan.input} and {plan.output}, but it has "
            f"{', '.join([*inputs, *outputs])}; export it again"
        )
    return plan


def plan_foreign(name: str, session: Any, options: OnnxOptions) -> OnnxPlan:
    """By the shapes in the file, and by the options where it leaves something open."""
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise InputError(
            f"{name}: has {len(inputs)} inputs ({', '.join(_names(inputs))}); an embedder takes images alone"
        )
    entry = inputs[0]
    if entry.type not in DTYPES:
        raise InputError(
            f"{name}: input {entry.name} is {entry.type}; images must be float32, float16 or uint8"
        )
    shape = [side if isinstance(side, int) and side > 0 else None for side in entry.shape]
    if len(shape) != 4:
        raise InputError(
            f"{name}: input {entry.name} has {len(shape)} dimensions ({entry.shape}); images have four"
        )
    layout = _layout(name, shape, options.layout)
    rows = 2 if layout == "NCHW" else 1
    size = _size(name, (shape[rows], shape[rows + 1]), options.size)
    raw = DTYPES[entry.type] == torch.uint8
    mean, std = _scaling(name, raw, options)
    order = options.color_order or "RGB"
    return OnnxPlan(
        entry.name,
        _output(name, session, options.output),
        layout,
        DTYPES[entry.type],
        shape[0],
        Preprocessing(size, mean, std, order),
        swap=order == "BGR",
        raw=raw,
    )


def _layout(name: str, shape: list[int | None], asked: Layout | None) -> Layout:
    """Where the channels are: by the side of length 3, or as asked."""
    fits: dict[Layout, bool] = {"NCHW": shape[1] in (3, None), "NHWC": shape[3] in (3, None)}
    if asked is not None:
        if not fits[asked]:
            raise InputError(f"{name}: its input {shape} cannot be {asked}; leave out --onnx layout={asked}")
        return asked
    certain = [layout for layout, side in zip(LAYOUTS, (1, 3), strict=True) if shape[side] == 3]
    if len(certain) == 1:
        return certain[0]
    if not any(fits.values()):
        raise InputError(
            f"{name}: its input {shape} has no three colour channels; metricid embeds RGB images"
        )
    raise InputError(f"{name}: does not say where the channels are; give --onnx layout=NCHW (or NHWC)")


def _size(name: str, fixed: tuple[int | None, int | None], asked: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width: those of the file, and as asked where it leaves them open."""
    if asked is not None:
        for side, wanted in zip(fixed, asked, strict=True):
            if side not in (None, wanted):
                raise InputError(
                    f"{name}: takes images of {fixed[0] or 'any'}x{fixed[1] or 'any'} (height x width), "
                    f"not {asked[0]}x{asked[1]}; correct --onnx size="
                )
        return asked
    if fixed[0] is None or fixed[1] is None:
        raise InputError(f"{name}: does not say its image size; give --onnx size=HEIGHTxWIDTH")
    return fixed[0], fixed[1]


def _scaling(name: str, raw: bool, options: OnnxOptions) -> tuple[Channels, Channels]:
    """Mean and std as in `Preprocessing`, for pixels in [0, 1]; uint8 pixels go in as they are."""
    if raw:
        if options.mean is not None or options.std is not None:
            raise InputError(f"{name}: takes uint8 pixels as they are; leave out --onnx mean= and std=")
        return (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)
    if options.mean is None or options.std is None:
        raise InputError(
            f"{name}: does not say how pixels are scaled; give --onnx mean= and --onnx std=, for pixels from "
            "0 to 255 (InsightFace: mean=127.5 std=127.5; ImageNet: mean=123.675,116.28,103.53 "
            "std=58.395,57.12,57.375)"
        )
    if min(options.std) <= 0:
        raise InputError(f"--onnx std={_text(options.std)}: must be above 0")
    if max(options.std) < 1:
        raise InputError(
            f"--onnx std={_text(options.std)}: mean and std count pixels from 0 to 255, "
            "these seem to count from 0 to 1; multiply both by 255"
        )
    return _per_255(options.mean), _per_255(options.std)


def _three(values: Any) -> Channels:
    first, second, third = map(float, values)
    return first, second, third


def _text(values: Channels) -> str:
    return ",".join(f"{value:g}" for value in values)


def _per_255(values: Channels) -> Channels:
    return values[0] / 255, values[1] / 255, values[2] / 255


def _output(name: str, session: Any, asked: str | None) -> str:
    names = _names(session.get_outputs())
    if asked is not None:
        if asked not in names:
            raise InputError(f"{name}: has no output {asked}, but {', '.join(names)}; correct --onnx output=")
        return asked
    if len(names) > 1:
        raise InputError(
            f"{name}: has {len(names)} outputs ({', '.join(names)}); say which is the embedding: "
            "--onnx output=NAME"
        )
    return names[0]


def _names(entries: Any) -> list[str]:
    return [entry.name for entry in entries]
