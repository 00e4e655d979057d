"""Evaluation of embeddings: arrays in, measures with their counts out."""

from metricid.evaluation.arrays import combine_flip
from metricid.evaluation.curves import Curve
from metricid.evaluation.retrieval import RetrievalResult, leave_one_out, retrieval

__all__ = ["Curve", "RetrievalResult", "combine_flip", "leave_one_out", "retrieval"]
