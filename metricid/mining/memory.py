"""The embeddings of past batches, to compare the present one with."""

from typing import Any

import torch
from torch import Tensor, nn

from metricid.mining.checks import check_rows

__all__ = ["CrossBatchMemory"]


class CrossBatchMemory(nn.Module):
    """The last embeddings that were pushed, with their labels (Wang et al., CVPR 2020, section 3.2).

    A ring: the newest embeddings take the places of the oldest. How many there are follows from the sizes of
    what was pushed, so that the host never waits for the device. Nothing in it has a gradient. All of it is
    saved with the module: the rows as buffers, the place of the next row, the number of rows and that of the
    batches so far as numbers beside them. With several processes push the gathered batch in all of them, and
    all hold the same.

    Args:
        size: M, in images.
        dim: D.

    Raises:
        ValueError: size or dim below 1.

    Example:
        >>> memory = CrossBatchMemory(size=3, dim=1)
        >>> memory.push(torch.tensor([[1.0], [2.0]]), torch.tensor([7, 8]))
        >>> memory.push(torch.tensor([[3.0], [4.0]]), torch.tensor([9, 9]))
        >>> rows, labels = memory.references()
        >>> rows.flatten().tolist(), labels.tolist()
        ([4.0, 2.0, 3.0], [9, 8, 9])
    """

    embeddings: Tensor
    labels: Tensor

    def __init__(self, size: int, dim: int):
        super().__init__()
        if size < 1 or dim < 1:
            raise ValueError(f"size and dim must be at least 1, not {size} and {dim}")
        try:
            self.register_buffer("embeddings", torch.zeros(size, dim))
        except RuntimeError:
            raise ValueError(
                f"size: {size} embeddings of {dim} numbers do not fit into the machine's memory; take fewer"
            ) from None
        self.register_buffer("labels", torch.zeros(size, dtype=torch.int64))
        self.pointer = 0
        self.filled = 0
        self.pushes = 0

    @property
    def size(self) -> int:
        """How many embeddings it can hold."""
        return len(self.labels)

    def __len__(self) -> int:
        """How many it holds."""
        return self.filled

    @torch.no_grad()
    def push(self, embeddings: Tensor, labels: Tensor) -> None:
        """Takes in a batch; of one larger than the memory its last rows.

        Call it after the backward pass of a loss that was given `references`, which changes here.

        Args:
            embeddings: [B, D], any float dtype.
            labels: [B] int64.

        Raises:
            ValueError: shapes do not fit.
        """
        check_rows(embeddings, labels, self.embeddings.shape[1])
        kept = min(len(labels), self.size)
        embeddings, labels = embeddings[len(labels) - kept :], labels[len(labels) - kept :]
        before_end = min(kept, self.size - self.pointer)
        for rows, place in ((slice(before_end), self.pointer), (slice(before_end, kept), 0)):
            count = rows.stop - (rows.start or 0)
            self.embeddings[place : place + count] = embeddings[rows].to(self.embeddings.dtype)
            self.labels[place : place + count] = labels[rows]
        self.pointer = (self.pointer + kept) % self.size
        self.filled = min(self.filled + kept, self.size)
        self.pushes += 1

    def references(self) -> tuple[Tensor, Tensor]:
        """What it holds, in no meaningful order.

        Returns:
            embeddings [N, D] and labels [N], N = `len(self)`; views that the next `push` changes.
        """
        return self.embeddings[: self.filled], self.labels[: self.filled]

    def get_extra_state(self) -> dict[str, int]:
        """What `state_dict` holds beside the buffers."""
        return {"pointer": self.pointer, "filled": self.filled, "pushes": self.pushes}

    def set_extra_state(self, state: Any) -> None:
        """The inverse of `get_extra_state`."""
        self.pointer, self.filled, self.pushes = state["pointer"], state["filled"], state["pushes"]

    def extra_repr(self) -> str:
        return f"size={self.size}, dim={self.embeddings.shape[1]}"
