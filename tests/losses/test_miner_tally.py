"""How much the miners of losses found, as their tallies count it."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from clusters import clusters

from metricid.losses import Objective, TripletLoss
from metricid.losses.remembered import RememberedLoss
from metricid.mining.miners import BatchAll


def test_a_recipe_with_miners_trains_and_tallies() -> None:
    terms = [
        {"loss": "supcon", "miner": "multi_similarity"},
        {"loss": "triplet", "miner": {"name": "semi_hard_all", "margin": 5.0}},
        {"loss": "triplet", "miner": {"name": "hard_top_k", "negatives": 2}, "memory": {"size": 20}},
        {"loss": "contrastive", "miner": "angular", "memory": {"size": 20}},
        {"loss": "lifted_structure"},
    ]
    assert Objective.problems(terms) == []
    objective = Objective.from_config(terms, 4, 8, 8)
    x, labels = clusters()
    for _ in range(2):
        output = objective(x.float(), x.float(), labels, progress=0.5)
        output.total.backward()
        objective.after_step(x.float(), x.float(), labels)
    tallies = {}
    for name, loss in objective.losses.items():
        inner = loss.loss if isinstance(loss, RememberedLoss) else loss
        tallies[name] = None if inner.miner is None else inner.miner.tally.read()
    assert tallies["lifted_structure"] is None
    assert all(tally is not None and tally[0] > 0 and tally[1] == 2 for tally in list(tallies.values())[:4])
    # Of 12 anchors one positive with two negatives each: 3 pairs, in the batch and in the memory.
    assert tallies["triplet_2"] == (12 * 3 * 2, 2)


def test_the_tally_of_triplets_counts_triplets() -> None:
    x, labels = clusters(classes=2, images=2)
    loss = TripletLoss()
    loss(x, labels)
    assert loss.miner is not None
    assert loss.miner.tally.read() == (4, 1)
    loss(x[:2], labels[:2])
    assert loss.miner.tally.read() == (0, 1)


@pytest.mark.parametrize("miner", ["batch_all", None])
@pytest.mark.parametrize(
    "options",
    [
        {"margin": 0.3},
        {"margin": 0.3, "reduction": "mean_nonzero"},
        {"margin": 0.5, "squared": True},
        {"margin": 0.3, "normalize": True, "swap": True},
        {"margin": None},
        {"margin": 0.0},
    ],
)
def test_the_tally_of_all_triplets_counts_those_with_a_loss(options: Any, miner: str | None) -> None:
    x, labels = clusters(classes=5, images=4, seed=3)
    past, past_labels = clusters(classes=5, images=2, seed=4)
    loss = TripletLoss(miner=miner, **options)
    assert isinstance(loss.miner, BatchAll)
    for y, y_labels in ((x, labels), (past, past_labels)):
        expected = 0
        a, b = (F.normalize(t, dim=1) if options.get("normalize") else t for t in (x, y))
        power = 2 if options.get("squared") else 1
        for i, p, n in itertools.product(range(len(a)), range(len(b)), range(len(b))):
            if (y is x and i == p) or labels[i] != y_labels[p] or labels[i] == y_labels[n]:
                continue
            far = (a[i] - b[n]).norm() ** power
            if options.get("swap"):
                far = torch.minimum(far, (b[p] - b[n]).norm() ** power)
            gap = (a[i] - b[p]).norm() ** power - far
            expected += options["margin"] is None or bool(gap + options["margin"] > 0)
        references = () if y is x else (past, past_labels)
        loss(x.clone().requires_grad_(), labels, *references).backward()
        with torch.no_grad():
            loss(x, labels, *references)
        assert loss.miner.tally.read() == (2 * expected, 2)
        assert expected > 0


def test_all_triplets_without_a_loss_are_tallied_as_none() -> None:
    loss = TripletLoss(miner="batch_all", margin=0.1)
    x = torch.tensor([[0.0], [0.0], [5.0], [5.0]])
    assert loss.miner is not None
    loss(x, torch.tensor([0, 0, 1, 1]))
    loss(x, torch.tensor([0, 0, 0, 0]))
    assert loss.miner.tally.read() == (0, 2)
