"""A timm network as a feature extractor: built, its weights found, its true width measured."""

import difflib
import logging
from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn

from metricid.config import expand
from metricid.errors import InputError
from metricid.models.weights import first_line, load_weights_file

CLASSIFIERS = ("fc.", "classifier.", "head.fc.", "head.weight", "head.bias", "last_linear.", "logits.")
# Arguments of timm.create_model that change what comes out, or where the weights come from.
RESERVED = (
    "checkpoint_path",
    "features_only",
    "global_pool",
    "in_chans",
    "num_classes",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
)


def backbone_problem(name: str) -> str | None:
    """One line if timm has no such network or weight tag, with the nearest names; None if it has."""
    architecture, _, tag = name.partition(".")
    if timm.is_model(architecture):
        try:
            timm.get_pretrained_cfg(name)
        except RuntimeError:
            known = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
            return f"{architecture} has no weight tag {tag!r} (known: {', '.join(known) or 'none'})"
        return None
    near = difflib.get_close_matches(name, timm.list_models(), n=3)
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    return f"unknown backbone {name!r}{hint} (any name of timm.list_models())"


def build_backbone(
    name: str,
    *,
    size: tuple[int, int],
    pretrained: bool = False,
    weights: str | None = None,
    options: dict[str, Any] | None = None,
) -> nn.Module:
    """Builds a timm network without its classifier.

    Args:
        name: a timm model name, with or without a weight tag.
        size: (height, width) in pixels; passed on to networks of a fixed input size.
        pretrained: take timm's weights (a download, or timm's cache).
        weights: a local `.safetensors` or `.pth` file instead; passed through timm's own converters.
        options: further arguments of the timm constructor, such as `output_stride: 16`.

    Raises:
        InputError: unknown network, refused option, weights that cannot be had or do not fit.
    """
    problem = backbone_problem(name)
    if problem:
        raise InputError(f"model.backbone: {problem}")
    for option in RESERVED:
        if option in (options or {}):
            raise InputError(
                f"model.backbone_options: {option} is set by metricid; see model.pooling, "
                "model.embedding_dim, model.pretrained and model.weights"
            )
    arguments: dict[str, Any] = {"num_classes": 0, **(options or {})}
    config = timm.get_pretrained_cfg(name)
    if config is not None and config.fixed_input_size:
        arguments.setdefault("img_size", size)
    if weights is None and not pretrained:
        return _create(name, arguments)
    if weights is not None:
        state = {
            k: v
            for k, v in load_weights_file(expand(weights, "model.weights")).items()
            if not k.startswith(CLASSIFIERS)
        }
        arguments.update(
            pretrained=True, pretrained_cfg_overlay={"state_dict": state, "source": "", "num_classes": 0}
        )
        source = f"model.weights={weights}"
    else:
        arguments["pretrained"] = True
        source = "model.pretrained=true"
    try:
        return timm.create_model(name, **arguments)
    except Exception as error:
        if weights is not None:
            raise InputError(f"{source}: the weights do not fit {name} ({first_line(error)})") from error
        raise InputError(
            f"{source}: the weights of {name} could not be had "
            f"({type(error).__name__}: {first_line(error)}); without a network, "
            "pass a local file: model.weights=/path/to/file.safetensors"
        ) from error


def _create(name: str, arguments: dict[str, Any]) -> nn.Module:
    try:
        return timm.create_model(name, pretrained=False, **arguments)
    except (
        TypeError,
        ValueError,
        AssertionError,
        AttributeError,
        RuntimeError,
        KeyError,
        NotImplementedError,
    ) as error:
        given = {k: v for k, v in arguments.items() if k != "num_classes"}
        raise InputError(
            f"model.backbone: {name} cannot be built with {given} ({first_line(error)})"
        ) from error


def feature_map(backbone: nn.Module, images: Tensor) -> Tensor:
    """The last feature map of the network `[B, C, h, w]`, or its tokens `[B, C, N]`, no prefix tokens."""
    forward: Callable[[Tensor], Tensor] = backbone.forward_features  # type: ignore[assignment]
    x = forward(images)
    if x.ndim == 4:
        if getattr(backbone, "output_fmt", None) == "NHWC":
            x = x.permute(0, 3, 1, 2)
        return x
    if x.ndim == 3:
        return x[:, getattr(backbone, "num_prefix_tokens", 0) :].transpose(1, 2)
    raise InputError(
        f"model.pooling: this backbone gives features of shape {tuple(x.shape)}, without positions to pool; "
        "use model.pooling=native"
    )


def quiet_timm() -> None:
    """timm and its downloader narrate every retry; our own message says what matters."""
    for name in ("timm", "huggingface_hub", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)


def freeze_unused(backbone: nn.Module, pooled: Tensor) -> None:
    """Marks the parameters that `pooled` does not depend on (a head that is left out) as not trained."""
    parameters = [p for p in backbone.parameters() if p.requires_grad]
    used = torch.autograd.grad(pooled.sum(), parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, used, strict=True):
        if gradient is None:
            parameter.requires_grad_(False)
