"""Time and peak memory of the miners inside the batch, each with a loss, beside those of two other toolkits.

A step is to mine, the loss, and its gradients (`cells.py` says how it is measured). The rows that are no
triplets of their own (`multi_similarity`, `hdc`) have the contrastive loss, the others the triplet loss with
a margin of 0.2. `open-metric-learning` has three of these miners (`plain_miners.py`). `semi_hard` and
`adaptive_weights` have no peer. Where two toolkits mine differently, or draw at random, the values differ,
which stderr says.

    python benchmarks/mining.py --threads 1 --sizes 2048
    python benchmarks/mining.py --only hdc,angular --device cuda
"""

from typing import Any

from cells import Step, run

MARGIN = 0.2
ROWS = (
    "batch_all",
    "batch_hard",
    "hard_top_k",
    "easy_positive",
    "semi_hard",
    "semi_hard_all",
    "angular",
    "distance_weighted",
    "multi_similarity",
    "hdc",
    "adaptive_weights",
)
PAIRS = ("multi_similarity", "hdc", "adaptive_weights")


def ours(name: str) -> Step:
    """Our miner and loss."""
    from metricid.losses import LOSSES

    options: dict[str, Any] = {"loss": "contrastive", "form": "linear", "miner": name}
    if name not in PAIRS:
        reduction = "mean_nonzero" if name in ("batch_all", "semi_hard_all", "angular") else "mean"
        options = {"loss": "triplet", "margin": MARGIN, "normalize": True, "reduction": reduction}
        options["miner"] = {"name": name, "margin": MARGIN} if name.startswith("semi_hard") else name
    return LOSSES.build(options)


def peer(name: str) -> Step:
    """Miner and loss of pytorch-metric-learning."""
    from pytorch_metric_learning import losses, miners

    miner = {
        "batch_all": lambda: None,
        "batch_hard": miners.BatchHardMiner,
        "easy_positive": lambda: miners.BatchEasyHardMiner(
            pos_strategy=miners.BatchEasyHardMiner.EASY, neg_strategy=miners.BatchEasyHardMiner.SEMIHARD
        ),
        "semi_hard_all": lambda: miners.TripletMarginMiner(margin=MARGIN, type_of_triplets="semihard"),
        "angular": lambda: miners.AngularMiner(angle=20),
        "distance_weighted": miners.DistanceWeightedMiner,
        "multi_similarity": lambda: miners.MultiSimilarityMiner(epsilon=0.1),
        "hdc": lambda: miners.HDCMiner(filter_percentage=0.5),
    }[name]()
    loss = losses.ContrastiveLoss() if name in PAIRS else losses.TripletMarginLoss(margin=MARGIN)
    return loss if miner is None else lambda x, labels: loss(x, labels, miner(x, labels))


def other(name: str) -> Step:
    """Miner and loss of open-metric-learning, from their definitions."""
    from plain_miners import STEPS

    return STEPS[name]


if __name__ == "__main__":
    run(
        __file__,
        __doc__,
        ROWS,
        {"metricid": ours, "pytorch-metric-learning": peer, "open-metric-learning": other},
    )
