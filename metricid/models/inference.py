"""A model as a user of embeddings sees it: pixels in, vectors out, and a name that cannot be mistaken."""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from metricid.models.embedder import Embedder, Preprocessing, embedder_to_dict

Autocast = Callable[[], AbstractContextManager[object]]


@runtime_checkable
class InferenceModel(Protocol):
    """What embeds: a checkpoint, an ONNX file.

    Attributes:
        name: for people.
        fingerprint: SHA-256 over configuration and weights, as hex, wherever the file lies.
        output_dim: width D of an embedding.
        preprocessing: image size and normalisation; `embed` applies the normalisation itself.
        batch_limit: the one batch size that the model takes, or None if it takes any.
    """

    name: str
    fingerprint: str
    output_dim: int
    preprocessing: Preprocessing
    batch_limit: int | None

    def embed(self, images: Tensor, *, flip: bool) -> Tensor:
        """Embeds images.

        Args:
            images: uint8 [B, H, W, 3], RGB, of the size of `preprocessing`, on any device.
            flip: add the embedding of the mirrored images, f(x) + f(flip x).

        Returns:
            float32 [B, D] on the model's device, not normalised.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """What a card says of the model, as JSON: kind, name, fingerprint, dimension, preprocessing, ..."""
        ...


class CheckpointModel:
    """An `Embedder` in evaluation mode on one device; it fulfils `InferenceModel`.

    Args:
        embedder: is moved to the device and put in evaluation mode.
        name: for people.
        device: where it runs.
        autocast: context of the forward pass; None computes in float32.
        precision: name of that arithmetic, for the card.
        aligns: whether its images were aligned by landmarks in the training.
    """

    batch_limit: int | None = None

    def __init__(
        self,
        embedder: Embedder,
        *,
        name: str,
        device: torch.device,
        autocast: Autocast | None = None,
        precision: str = "fp32",
        aligns: bool = False,
    ):
        self.fingerprint = embedder_fingerprint(embedder)
        self.embedder = embedder.to(device).eval()
        if embedder.channels_last:
            self.embedder.to(memory_format=torch.channels_last)
        self.name, self.device, self.precision, self.aligns = name, device, precision, aligns
        self.output_dim = embedder.output_dim
        self.preprocessing = embedder.config.preprocessing
        self._autocast: Autocast = autocast or nullcontext

    def embed(self, images: Tensor, *, flip: bool) -> Tensor:
        """As `InferenceModel.embed`."""
        with torch.inference_mode(), self._autocast():
            return self.embedder.embed(images.to(self.device, non_blocking=True), flip=flip)

    def describe(self) -> dict[str, Any]:
        """As `InferenceModel.describe`; `embedder` holds the whole structure."""
        return {
            "kind": "checkpoint",
            "name": self.name,
            "fingerprint": self.fingerprint,
            "dimension": self.output_dim,
            "preprocessing": preprocessing_to_dict(self.preprocessing),
            "precision": self.precision,
            "embedder": json.loads(json.dumps(embedder_to_dict(self.embedder.config))),
        }


def preprocessing_to_dict(preprocessing: Preprocessing) -> dict[str, Any]:
    """As plain JSON values."""
    return json.loads(json.dumps(asdict(preprocessing)))


def embedder_fingerprint(embedder: Embedder) -> str:
    """SHA-256 over the structure and every weight and buffer of the state, as hex."""
    return weights_fingerprint(embedder_to_dict(embedder.config), embedder.state_dict())


def weights_fingerprint(configuration: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over a configuration and named tensors, as hex; the order of either does not matter.

    Args:
        configuration: what JSON can write.
        weights: name -> tensor of any type and device.
    """
    digest = hashlib.sha256(json.dumps(configuration, sort_keys=True).encode())
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
