"""Losses: modules that hold options and parameters, over the pure functions of `functional`.

Each maps embeddings [B, D] of any float dtype and labels [B] int64 to a scalar. `LOSSES` knows them by the
names that recipes use; `Objective` sums several.
"""

from metricid.losses.arcface import ArcFace
from metricid.losses.catalog import LOSSES
from metricid.losses.center import CenterLoss
from metricid.losses.contrastive import ContrastiveLoss
from metricid.losses.objective import Objective, ObjectiveOutput, Term
from metricid.losses.softmax import SoftmaxCrossEntropy
from metricid.losses.supcon import SupConLoss
from metricid.losses.triplet import TripletLoss

__all__ = [
    "LOSSES",
    "ArcFace",
    "CenterLoss",
    "ContrastiveLoss",
    "Objective",
    "ObjectiveOutput",
    "SoftmaxCrossEntropy",
    "SupConLoss",
    "Term",
    "TripletLoss",
]
