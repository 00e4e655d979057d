"""Time and peak memory of the pairwise losses beside pytorch-metric-learning and plain PyTorch.

Plain is the loss as one writes it from its definition, with dense matrices (`plain_losses.py`); `cells.py`
says how it is measured. Where two values differ, stderr says so.

    python benchmarks/losses.py --sizes 512,2048
    python benchmarks/losses.py --only supcon,ntxent --device cuda
"""

from collections.abc import Callable
from typing import Any

from cells import Step, run

ROWS = (
    "triplet_all",
    "triplet_hard",
    "contrastive",
    "multi_similarity",
    "circle",
    "supcon",
    "ntxent",
    "margin",
    "nca",
    "npair",
    "lifted_structure",
    "generalized_lifted",
    "angular",
    "snr_contrastive",
    "tuplet_margin",
    "ranked_list",
    "histogram",
    "fast_ap",
    "smooth_ap",
)


def ours(name: str) -> Step:
    """Our loss of a row."""
    from metricid.losses import LOSSES

    options: dict[str, dict[str, Any]] = {
        "triplet_all": {
            **{"loss": "triplet", "miner": "batch_all", "normalize": True, "margin": 0.05},
            "reduction": "mean_nonzero",
        },
        "triplet_hard": {"loss": "triplet", "normalize": True, "margin": 0.05, "reduction": "mean_nonzero"},
        "ntxent": {"loss": "ntxent", "temperature": 0.07},
        "nca": {"loss": "nca", "normalize": True},
        "margin": {"loss": "margin", "learn_beta": False},
        "contrastive": {"loss": "contrastive", "form": "linear"},
        "ranked_list": {"loss": "ranked_list", "temperature": 5.0},
    }
    return LOSSES.build(options.get(name, {"loss": name}))


def peer(name: str) -> Step:
    """The loss of pytorch-metric-learning with the same meaning, and its miner where the row has one."""
    from pytorch_metric_learning import losses, miners

    simple: dict[str, Callable[[], Step]] = {
        "triplet_all": lambda: losses.TripletMarginLoss(margin=0.05),
        "contrastive": losses.ContrastiveLoss,
        "circle": losses.CircleLoss,
        "supcon": losses.SupConLoss,
        "ntxent": lambda: losses.NTXentLoss(temperature=0.07),
        "nca": losses.NCALoss,
        "npair": losses.NPairsLoss,
        "lifted_structure": losses.LiftedStructureLoss,
        "generalized_lifted": losses.GeneralizedLiftedStructureLoss,
        "angular": lambda: losses.AngularLoss(alpha=45),
        "snr_contrastive": losses.SignalToNoiseRatioContrastiveLoss,
        "tuplet_margin": losses.TupletMarginLoss,
        "ranked_list": lambda: losses.RankedListLoss(margin=0.4, Tn=5, alpha=1.2),
        "histogram": lambda: losses.HistogramLoss(n_bins=100),
        "fast_ap": losses.FastAPLoss,
        "smooth_ap": losses.SmoothAPLoss,
    }
    if name in simple:
        return simple[name]()
    mined = {
        "triplet_hard": (lambda: losses.TripletMarginLoss(margin=0.05), miners.BatchHardMiner),
        "multi_similarity": (
            lambda: losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5),
            lambda: miners.MultiSimilarityMiner(epsilon=0.1),
        ),
        "margin": (losses.MarginLoss, miners.DistanceWeightedMiner),
    }
    loss, miner = (build() for build in mined[name])
    return lambda x, labels: loss(x, labels, miner(x, labels))


def plain(name: str) -> Step:
    """The loss in PyTorch alone."""
    from plain_losses import LOSSES

    return LOSSES[name]


if __name__ == "__main__":
    run(__file__, __doc__, ROWS, {"metricid": ours, "pytorch-metric-learning": peer, "plain": plain})
