"""Made-up embeddings of classes that overlap."""

import torch
from torch import Tensor


def clusters(
    classes: int = 4, images: int = 3, dim: int = 8, seed: int = 0, scale: float = 0.5
) -> tuple[Tensor, Tensor]:
    """`images` embeddings of each of `classes` classes in float64, which take gradients, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(images)
    centers = torch.randn(classes, dim, generator=generator, dtype=torch.float64)
    noise = torch.randn(len(labels), dim, generator=generator, dtype=torch.float64)
    return (scale * (centers[labels] + noise)).requires_grad_(), labels
