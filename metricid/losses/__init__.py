"""Losses: modules that hold options and parameters, over the pure functions of `functional`.

Each maps embeddings [B, D] of any float dtype and labels [B] int64 to a scalar. `LOSSES` knows them by the
names that recipes use; `Objective` sums several.
"""

from metricid.losses.adversarial import ADVERSARIAL, TradesLoss, VirtualAdversarialLoss
from metricid.losses.arcface import ArcFace, CombinedMarginSoftmax, DynamicArcFace
from metricid.losses.catalog import LOSSES
from metricid.losses.center import CenterLoss, ContrastiveCenterLoss, IslandLoss
from metricid.losses.classification import BinaryCrossEntropy, FocalLoss
from metricid.losses.contrastive import ContrastiveLoss, SNRContrastiveLoss
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
from metricid.losses.groups import AngularLoss, GeneralizedLiftedLoss, LiftedStructureLoss, QuadrupletLoss
from metricid.losses.hinge import HingeLoss
from metricid.losses.imbalance import LDAM, BalancedSoftmax, ClassBalanced
from metricid.losses.margin_softmax import (
    CircleSoftmax,
    CosFace,
    MVSoftmax,
    NormalizedSoftmax,
    SphereFace,
    SphereFace2,
)
from metricid.losses.margin_softmax_adaptive import AdaCos, AdaFace, CurricularFace, ElasticFace, MagFace
from metricid.losses.objective import Objective, ObjectiveOutput
from metricid.losses.proxies import ProxyAnchor, ProxyNCA, SoftTriple
from metricid.losses.rankings import FastAPLoss, HistogramLoss, RankedListLoss, RecallAtKLoss, SmoothAPLoss
from metricid.losses.regression import TASKS, HuberLoss, MAELoss, MSELoss, SmoothL1Loss
from metricid.losses.regularisers import FeatureNormLoss, KoLeoLoss, RingLoss, UniformityLoss, ZeroMeanLoss
from metricid.losses.softmax import SoftmaxCrossEntropy
from metricid.losses.supcon import NCALoss, NPairLoss, NTXentLoss, SupConLoss, TupletMarginLoss
from metricid.losses.term import Side, Taught, Term
from metricid.losses.triplet import TripletLoss, WeightedTripletLoss
from metricid.losses.weighted_pairs import CircleLoss, MarginLoss, MultiSimilarityLoss
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
    "LDAM",
    "LOSSES",
    "REGULARISERS",
    "TASKS",
    "AdaCos",
    "AdaFace",
    "AngularLoss",
    "ArcFace",
    "BalancedSoftmax",
    "BinaryCrossEntropy",
    "CenterLoss",
    "CircleLoss",
    "CircleSoftmax",
    "ClassBalanced",
    "CombinedMarginSoftmax",
    "ContrastiveCenterLoss",
    "ContrastiveLoss",
    "CosFace",
    "CurricularFace",
    "DiceLoss",
    "DomainAdversarialLoss",
    "DynamicArcFace",
    "ElasticFace",
    "EmbeddingDistillation",
    "FastAPLoss",
    "FeatureNormLoss",
    "FocalLoss",
    "GanDiscriminatorLoss",
    "GanGeneratorLoss",
    "GeneralizedLiftedLoss",
    "HingeLoss",
    "HistogramLoss",
    "HuberLoss",
    "IslandLoss",
    "KoLeoLoss",
    "L1Penalty",
    "L2Penalty",
    "LiftedStructureLoss",
    "LogitDistillation",
    "MAELoss",
    "MSELoss",
    "MVSoftmax",
    "MagFace",
    "MarginLoss",
    "MultiSimilarityLoss",
    "NCALoss",
    "NPairLoss",
    "NTXentLoss",
    "NormalizedSoftmax",
    "Objective",
    "ObjectiveOutput",
    "OrthogonalityLoss",
    "ProxyAnchor",
    "ProxyNCA",
    "QuadrupletLoss",
    "RKDAngle",
    "RKDDistance",
    "RankedListLoss",
    "RecallAtKLoss",
    "RegularFace",
    "RingLoss",
    "SNRContrastiveLoss",
    "SeparationLoss",
    "Side",
    "SimilarityPreserving",
    "SmoothAPLoss",
    "SmoothL1Loss",
    "SoftTriple",
    "SoftmaxCrossEntropy",
    "SphereFace",
    "SphereFace2",
    "SupConLoss",
    "Taught",
    "Term",
    "TradesLoss",
    "TripletLoss",
    "TupletMarginLoss",
    "UniformityLoss",
    "VirtualAdversarialLoss",
    "WeightedTripletLoss",
    "ZeroMeanLoss",
]
