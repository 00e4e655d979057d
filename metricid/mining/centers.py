"""Running records of a training: a mean embedding of each identity, and how far each image is from it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metricid.mining.checks import check_rows

__all__ = ["RunningCenters", "RunningDistances"]


class RunningCenters(nn.Module):
    """The running mean of each identity's embeddings, scaled to length 1 before they are averaged.

    The first batch that holds an identity sets its center to the mean of its embeddings there; every later
    one moves it: center = momentum * center + (1 - momentum) * mean. Identities not seen yet have a row of
    zeros. Buffers are saved with the module. With several processes give all of them the gathered batch, and
    all hold the same.

    Example:
        >>> centers = RunningCenters(identities=3, dim=2, momentum=0.5)
        >>> centers.update(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([1, 1]))
        >>> centers.vectors.tolist()
        [[0.0, 0.0], [0.5, 0.5], [0.0, 0.0]]
    """

    vectors: Tensor
    batches: Tensor

    def __init__(self, identities: int, dim: int, *, momentum: float = 0.9):
        """
        Args:
            identities: C.
            dim: D.
            momentum: what stays of a center when a batch holds its identity, in [0, 1).

        Raises:
            ValueError: an option outside its range.
        """
        super().__init__()
        if identities < 1 or dim < 1:
            raise ValueError(f"identities and dim must be at least 1, not {identities} and {dim}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), not {momentum}")
        self.momentum = momentum
        self.register_buffer("vectors", torch.zeros(identities, dim))
        self.register_buffer("batches", torch.zeros(identities, dtype=torch.int64))

    @torch.no_grad()
    def update(self, embeddings: Tensor, labels: Tensor) -> None:
        """Takes in a batch; the host does not wait for the device.

        Args:
            embeddings: [B, D], any float dtype.
            labels: [B] int64 in [0, C).

        Raises:
            ValueError: shapes or dtypes do not fit, or, on the CPU, a label is no identity's.
        """
        check_rows(embeddings, labels, self.vectors.shape[1])
        if not len(labels):
            return
        number = len(self.vectors)
        if labels.device.type == "cpu" and not 0 <= int(labels.min()) <= int(labels.max()) < number:
            raise ValueError(f"labels must be from 0 to {number - 1}, the number of an identity")
        mean = _means(F.normalize(embeddings.detach().float(), dim=1), labels)
        stays = torch.where(self.batches[labels] > 0, self.momentum, 0.0).unsqueeze(1)
        self.vectors[labels] = stays * self.vectors[labels] + (1 - stays) * mean
        self.batches[labels] = self.batches[labels] + 1

    @torch.no_grad()
    def distances(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """[B] cosine distance, 1 - cosine, of each embedding to its identity's center."""
        return 1 - F.cosine_similarity(embeddings.detach().float(), self.vectors[labels], dim=1)


class RunningDistances(nn.Module):
    """How far each image was from the center of its identity when a batch last held it.

    Buffers are saved with the module. With several processes give all of them the gathered batch, and all
    hold the same.

    Args:
        images: N.

    Raises:
        ValueError: N below 1.

    Example:
        >>> record = RunningDistances(3)
        >>> record.update(torch.tensor([0.5, 0.25]), torch.tensor([2, 0]))
        >>> record.known(otherwise=0.0).tolist()
        [0.25, 0.0, 0.5]
    """

    distances: Tensor

    def __init__(self, images: int):
        super().__init__()
        if images < 1:
            raise ValueError(f"images must be at least 1, not {images}")
        self.register_buffer("distances", torch.full((images,), torch.nan))

    @torch.no_grad()
    def update(self, distances: Tensor, images: Tensor) -> None:
        """Takes in a batch; of an image that is in it more than once the mean.

        Args:
            distances: [B].
            images: [B] int64 in [0, N).

        Raises:
            ValueError: shapes do not fit.
        """
        if distances.dim() != 1 or images.shape != distances.shape:
            raise ValueError(
                "distances and images must be [B] both, not "
                f"{tuple(distances.shape)} and {tuple(images.shape)}"
            )
        if len(images):
            self.distances[images] = _means(distances.detach().float()[:, None], images)[:, 0]

    def known(self, *, otherwise: float) -> Tensor:
        """[N] on the CPU, with a number for the images that no batch has held yet."""
        return self.distances.cpu().nan_to_num(nan=otherwise)


def _means(rows: Tensor, labels: Tensor) -> Tensor:
    """[B, D], for each row the mean of those with its label, to the bit the same for all of these.

    So the order in which they are then written to one place does not matter.
    """
    same = labels[:, None] == labels[None, :]
    mean = (same.float() @ rows) / same.sum(dim=1, keepdim=True)
    return mean[same.to(torch.uint8).argmax(dim=1)]
