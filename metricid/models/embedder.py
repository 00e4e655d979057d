"""The model of metricid: backbone + pooling + neck."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import timm
import torch
from torch import Tensor, nn

from metricid.errors import InputError
from metricid.models.backbone import build_backbone, feature_map, freeze_unused, quiet_timm
from metricid.models.pooling import Average, GeM
from metricid.models.weights import first_line

Pooling = Literal["avg", "gem", "native"]
Neck = Literal["none", "bnneck", "linear_bn"]


@dataclass(frozen=True)
class Preprocessing:
    """How pixels become the network's input; it travels with the weights.

    Attributes:
        size: (height, width) in pixels.
        mean, std: per channel, for values in [0, 1], in the order of `color_order`.
        color_order: what the network was trained on. Images come in as RGB and are swapped where it says BGR.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    color_order: Literal["RGB", "BGR"] = "RGB"


class MappedOutput(NamedTuple):
    """An `EmbedderOutput` with the feature map [B, C, h, w] that was pooled."""

    features: Tensor
    embedding: Tensor
    map: Tensor


class EmbedderOutput(NamedTuple):
    """`features` [B, F] before the neck, `embedding` [B, D] after it; neither is normalised."""

    features: Tensor
    embedding: Tensor


@dataclass(frozen=True)
class EmbedderConfig:
    """All that is needed to build the same network again."""

    backbone: str
    preprocessing: Preprocessing
    pooling: Pooling = "avg"
    neck: Neck = "none"
    embedding_dim: int | None = None
    backbone_options: dict[str, Any] = field(default_factory=dict)
    output: Literal["embedding", "features"] = "embedding"


class Embedder(nn.Module):
    """Turns images into embeddings: a timm backbone, pooling, and a neck.

    Necks:
        none: the embedding is the pooled feature, through a linear layer if `embedding_dim` differs from its
            width.
        bnneck: batch normalisation without a learned shift; triplet and center losses read the `features`
            before, softmax losses the `embedding` after it (Luo et al., CVPRW 2019, fig. 5). With
            `embedding_dim`, a linear layer comes before the features.
        linear_bn: linear layer to `embedding_dim`, then batch normalisation (the head of face networks).

    Args:
        config: the structure.
        pretrained: take timm's weights for the backbone.
        weights: a local weight file for the backbone instead.

    Attributes:
        channels_last: memory order of what `normalize` gives; set it as that of the weights.
        map_channels: C of the feature map [B, C, h, w] that is pooled; None for tokens and native pooling.

    Raises:
        InputError: an unknown backbone, an option it refuses, weights that do not fit.
    """

    pixel_shift: Tensor
    pixel_scale: Tensor

    def __init__(self, config: EmbedderConfig, *, pretrained: bool = False, weights: str | None = None):
        super().__init__()
        quiet_timm()
        self.config = config
        size = config.preprocessing.size
        options = dict(config.backbone_options)
        self.backbone = build_backbone(
            config.backbone, size=size, pretrained=pretrained, weights=weights, options=options
        )
        self.pooling = _build_pooling(config.pooling)
        self.map_channels: int | None = None
        width = self._measure_width(size)
        dim = config.embedding_dim or width
        if config.neck == "linear_bn" and config.embedding_dim is None:
            raise InputError(
                "model.embedding_dim: neck linear_bn needs it, for example model.embedding_dim=512"
            )
        self.reduction: nn.Module = nn.Identity()
        if config.neck != "linear_bn" and dim != width:
            self.reduction = nn.Linear(width, dim, bias=False)
        self.feature_dim = width if config.neck == "linear_bn" else dim
        self.embedding_dim = dim
        self.neck = _build_neck(config.neck, width, dim)
        scale = 255.0 * torch.tensor(config.preprocessing.std)
        shift = 255.0 * torch.tensor(config.preprocessing.mean)
        self.register_buffer("pixel_shift", shift.view(1, 3, 1, 1), persistent=False)
        self.channels_last = True
        self.register_buffer("pixel_scale", (1.0 / scale).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor, *, with_map: bool = False) -> EmbedderOutput | MappedOutput:
        """Embeds a batch.

        Args:
            images: uint8 `[B, H, W, 3]` RGB pixels, or a normalised float `[B, 3, H, W]` batch.
            with_map: also give the feature map; needs `map_channels`.

        Returns:
            `features` [B, F] and `embedding` [B, D].
        """
        x = self.normalize(images) if images.dtype == torch.uint8 else images
        pooled, found = self._pool(x)
        features = self.reduction(pooled)
        embedding = self.neck(features)
        if with_map and found is not None:
            return MappedOutput(features, embedding, found)
        return EmbedderOutput(features, embedding)

    def embed(
        self, images: Tensor, *, flip: bool = False, output: EmbedderOutput | MappedOutput | None = None
    ) -> Tensor:
        """What search and evaluation use: the `output` of the configuration, not normalised.

        Args:
            images: as in `forward`.
            flip: add that of the mirrored images, f(x) + f(flip x), as face benchmarks do.
            output: what `forward` gives for these images, if that is known already.

        Returns:
            float32 [B, `output_dim`].
        """
        vectors = getattr(self(images) if output is None else output, self.config.output).float()
        if flip:
            mirrored = images.flip(2 if images.dtype == torch.uint8 else 3)
            vectors = vectors + getattr(self(mirrored), self.config.output).float()
        return vectors

    @property
    def output_dim(self) -> int:
        """Width of what `embed` gives."""
        return self.embedding_dim if self.config.output == "embedding" else self.feature_dim

    def normalize(self, images: Tensor) -> Tensor:
        """RGB pixels, uint8 `[B, H, W, 3]`, to the network's float32 input `[B, 3, H, W]`."""
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"expected uint8 images [B, H, W, 3], got shape {tuple(images.shape)}")
        x = images.permute(0, 3, 1, 2)
        if self.config.preprocessing.color_order == "BGR":
            x = x.flip(1)
        order = torch.channels_last if self.channels_last else torch.contiguous_format
        return x.float().sub_(self.pixel_shift).mul_(self.pixel_scale).contiguous(memory_format=order)

    def _pool(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """One vector per image, and what it was pooled from."""
        if self.pooling is None:
            return self.backbone(x), None
        found = feature_map(self.backbone, x)
        return self.pooling(found.flatten(2)), found

    def _measure_width(self, size: tuple[int, int]) -> int:
        """One forward pass: what the model says of its width is not always what it gives."""
        self.eval()
        try:
            pooled, found = self._pool(torch.zeros(1, 3, *size))
        except (RuntimeError, AssertionError, ValueError, TypeError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"data.size: {self.config.backbone} cannot take {size[0]}x{size[1]} images "
                f"({first_line(error)})"
            ) from error
        if not isinstance(pooled, Tensor) or pooled.ndim != 2:
            shape = tuple(pooled.shape) if isinstance(pooled, Tensor) else type(pooled).__name__
            raise InputError(
                f"model.pooling: {self.config.backbone} gives {shape} with pooling {self.config.pooling}, "
                "not one vector per image; use model.pooling=avg"
            )
        self.map_channels = found.shape[1] if found is not None and found.ndim == 4 else None
        freeze_unused(self.backbone, pooled)
        self.train()
        return pooled.shape[1]


Channels = tuple[float, float, float]


def default_preprocessing(backbone: str, *, pretrained: bool) -> tuple[Channels, Channels]:
    """Mean and std unless told otherwise: those of the pretrained weights, else 0.5 (pixels in [-1, 1])."""
    config = timm.get_pretrained_cfg(backbone) if pretrained else None
    if config is None:
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    return tuple(config.mean), tuple(config.std)


def embedder_to_dict(config: EmbedderConfig) -> dict[str, Any]:
    """A plain mapping that JSON, YAML and a weights-only checkpoint can hold."""
    return asdict(config)


def embedder_from_dict(values: dict[str, Any]) -> EmbedderConfig:
    """The inverse of `embedder_to_dict`.

    Raises:
        InputError: a key is missing or unknown.
    """
    try:
        pixels = values["preprocessing"]
        preprocessing = Preprocessing(
            size=tuple(pixels["size"]),
            mean=tuple(pixels["mean"]),
            std=tuple(pixels["std"]),
            color_order=pixels["color_order"],
        )
        return EmbedderConfig(**{**values, "preprocessing": preprocessing})
    except (KeyError, TypeError) as error:
        raise InputError(f"not the description of an embedder ({first_line(error)})") from error


def _build_pooling(kind: Pooling) -> nn.Module | None:
    if kind == "native":
        return None
    return GeM() if kind == "gem" else Average()


def _build_neck(kind: Neck, width: int, dim: int) -> nn.Module:
    if kind == "none":
        return nn.Identity()
    norm = nn.BatchNorm1d(dim)
    if kind == "bnneck":
        norm.bias.requires_grad_(False)
        return norm
    linear = nn.Linear(width, dim, bias=False)
    nn.init.trunc_normal_(linear.weight, std=width**-0.5)
    return nn.Sequential(linear, norm)
