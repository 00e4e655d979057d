"""Mining: which samples of a batch to compare. Tensors in, tensors out."""

from metricid.mining.inbatch import Triplets, batch_all, batch_hard, pair_masks, semi_hard

__all__ = ["Triplets", "batch_all", "batch_hard", "pair_masks", "semi_hard"]
