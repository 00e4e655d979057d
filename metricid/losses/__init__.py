"""Losses: modules that hold options and parameters, over the pure functions of `functional`.

Each maps embeddings [B, D] of any float dtype and labels [B] int64 to a scalar. `LOSSES` knows them by the
names that recipes use; `Objective` sums several.
"""

from metricid.losses.adversarial import ADVERSARIAL, TradesLoss, VirtualAdversarialLoss
from metricid.losses.arcface import ArcFace
from metricid.losses.catalog import LOSSES
from metricid.losses.center import CenterLoss, ContrastiveCenterLoss, IslandLoss
from metricid.losses.contrastive import ContrastiveLoss
from metricid.losses.dice import DiceLoss
from metricid.losses.distillation import (
    DISTILLATION,
    EmbeddingDistillation,
    LogitDistillation,
    RKDAngle,
    RKDDistance,
    SimilarityPreserving,
)
from metricid.losses.domain import DomainAdversarialLoss, GanDiscriminatorLoss, GanGeneratorLoss
from metricid.losses.objective import Objective, ObjectiveOutput, Term
from metricid.losses.regression import TASKS, HuberLoss, MAELoss, MSELoss, SmoothL1Loss
from metricid.losses.regularisers import FeatureNormLoss, KoLeoLoss, RingLoss, UniformityLoss, ZeroMeanLoss
from metricid.losses.softmax import SoftmaxCrossEntropy
from metricid.losses.supcon import SupConLoss
from metricid.losses.triplet import TripletLoss
from metricid.losses.weights import (
    REGULARISERS,
    L1Penalty,
    L2Penalty,
    OrthogonalityLoss,
    RegularFace,
    SeparationLoss,
)

__all__ = [
    "ADVERSARIAL",
    "DISTILLATION",
    "LOSSES",
    "REGULARISERS",
    "TASKS",
    "ArcFace",
    "CenterLoss",
    "ContrastiveCenterLoss",
    "ContrastiveLoss",
    "DiceLoss",
    "DomainAdversarialLoss",
    "EmbeddingDistillation",
    "FeatureNormLoss",
    "GanDiscriminatorLoss",
    "GanGeneratorLoss",
    "HuberLoss",
    "IslandLoss",
    "KoLeoLoss",
    "L1Penalty",
    "L2Penalty",
    "LogitDistillation",
    "MAELoss",
    "MSELoss",
    "Objective",
    "ObjectiveOutput",
    "OrthogonalityLoss",
    "RKDAngle",
    "RKDDistance",
    "RegularFace",
    "RingLoss",
    "SeparationLoss",
    "SimilarityPreserving",
    "SmoothL1Loss",
    "SoftmaxCrossEntropy",
    "SupConLoss",
    "Term",
    "TradesLoss",
    "TripletLoss",
    "UniformityLoss",
    "VirtualAdversarialLoss",
    "ZeroMeanLoss",
]
