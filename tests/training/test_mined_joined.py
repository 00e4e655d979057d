"""Losses with a miner in two processes: what is mined in the joined batch is what one process mines in it."""

import pytest
import torch
from torch.testing import assert_close
from two_ranks import in_two_ranks

from metricid.losses.objective import Objective
from metricid.models.embedder import Embedder, EmbedderConfig, Preprocessing
from metricid.training.distributed import join_batchnorm, wrap_ddp
from metricid.training.found import Findings
from metricid.training.module import TrainingModule
from metricid.training.precision import pick_precision

HARD = {"name": "hard_top_k", "positives": 2, "negatives": 3}
BAND = {"name": "semi_hard_all", "margin": 0.5}
MINED = {
    "batch_hard": {"loss": "triplet", "on": "features", "miner": "batch_hard"},
    "semi_hard_all": {"loss": "triplet", "normalize": True, "miner": BAND},
    "semi_hard_all_pairs": {"loss": "contrastive", "miner": BAND},
    "distance_weighted": {"loss": "margin", "negatives": "all", "miner": "distance_weighted"},
    "multi_similarity": {"loss": "supcon", "miner": "multi_similarity"},
    "hard_top_k": {"loss": "multi_similarity", "on": "features", "miner": HARD},
    "all": {"loss": "triplet", "on": "features", "miner": "batch_all"},
}
BATCHES = 2


def build(term):
    torch.manual_seed(0)
    embedder = Embedder(EmbedderConfig("test_resnet", Preprocessing((32, 32)), neck="bnneck"))
    terms = [{"loss": "softmax", "weight": 0.5}, {"name": "mined"} | term]
    sizes = {"feature_dim": embedder.feature_dim, "embedding_dim": embedder.embedding_dim}
    return embedder.double().train(), Objective.from_config(terms, num_classes=4, **sizes).double()


def batch(number):
    """Each identity has images in both halves, so that pairs lie across the processes."""
    generator = torch.Generator().manual_seed(number)
    return torch.randn(16, 3, 32, 32, generator=generator).double(), torch.arange(16) % 4


def passes(forward, embedder, objective, part):
    """Values, sums of the gradients and tallies of some batches; `part` of each goes through."""
    torch.manual_seed(7)  # of what a miner draws
    values = []
    for number in range(BATCHES):
        images, labels = batch(number)
        output = forward(images[part], labels[part], 0.5)
        output.total.backward()
        values.append(output.terms["mined"].item())
    named = [*embedder.named_parameters(prefix="embedder"), *objective.named_parameters(prefix="objective")]
    gradients = {name: p.grad.clone() for name, p in named if p.grad is not None}
    return values, gradients, Findings(objective).read()


def on_rank(world):
    found = {}
    for name, term in MINED.items():
        embedder, objective = build(term)
        join_batchnorm(embedder, world.device)
        module = TrainingModule(embedder, objective, pick_precision("fp32", world.device), True)
        wrapped = wrap_ddp(module, world.device, sync_buffers=False)
        part = slice(8 * world.rank, 8 * world.rank + 8)
        found[name] = passes(lambda *given, run=wrapped: run(*given)[0], embedder, objective, part)
    return found


@pytest.fixture(scope="module")
def ranks():
    return in_two_ranks(on_rank)


def alone(name, part=slice(0, 16)):
    embedder, objective = build(MINED[name])
    run = lambda images, labels, progress: objective(*embedder(images), labels, progress)  # noqa: E731
    return passes(run, embedder, objective, part)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", MINED)
def test_two_processes_mine_and_learn_what_one_does_from_the_joined_batch(ranks, name):
    values, gradients, (counts, told) = alone(name)
    for rank in (0, 1):
        found_values, found_gradients, found = ranks[rank][name]
        assert found_values == pytest.approx(values, rel=1e-9)
        assert found_gradients.keys() == gradients.keys()
        for key, gradient in gradients.items():
            assert_close(found_gradients[key], gradient, rtol=1e-9, atol=1e-11, msg=key)
        assert found == (counts, told)
    assert counts["mined"] > 0
    head = "objective.losses.mined.beta" if name == "distance_weighted" else "objective.losses.softmax.weight"
    for key in (head, "embedder.backbone.conv1.0.weight"):
        assert gradients[key].norm() > 1e-3
    # A process by itself would find other pairs in its half.
    apart, _, (fewer, _) = alone(name, slice(0, 8))
    assert fewer["mined"] < counts["mined"]
    assert apart != pytest.approx(values, rel=1e-3)
