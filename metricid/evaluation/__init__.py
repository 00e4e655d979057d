"""Evaluation of embeddings: arrays in, measures with their counts out."""

from metricid.evaluation.arrays import combine_flip
from metricid.evaluation.curves import Curve
from metricid.evaluation.protocols import NEEDED, PROTOCOLS
from metricid.evaluation.results import ProtocolResult, format_table
from metricid.evaluation.retrieval import RetrievalResult, leave_one_out, retrieval
from metricid.evaluation.scores import OperatingPoint, ScoreTable
from metricid.evaluation.verification import (
    FAR_TARGETS,
    PairVerificationResult,
    VerificationResult,
    verification_all_pairs,
    verification_pairs,
)

__all__ = [
    "FAR_TARGETS",
    "NEEDED",
    "PROTOCOLS",
    "Curve",
    "OperatingPoint",
    "PairVerificationResult",
    "ProtocolResult",
    "RetrievalResult",
    "ScoreTable",
    "VerificationResult",
    "combine_flip",
    "format_table",
    "leave_one_out",
    "retrieval",
    "verification_all_pairs",
    "verification_pairs",
]
