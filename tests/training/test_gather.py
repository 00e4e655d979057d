"""Terms that stay with the images of their process, beside terms that see those of all."""

import pytest
import torch
from torch.testing import assert_close
from two_ranks import in_two_ranks

from metricid.losses.objective import Objective
from metricid.losses.term import Side, Taught
from metricid.training.distributed import gather_batch

DIM = 6
OWN = [
    {"loss": "triplet", "on": "features", "miner": "batch_hard", "gather": False},
    {"loss": "supcon", "memory": {"size": 12}, "weight": 0.5, "gather": False},
    {"loss": "proxy_anchor", "gather": False},
    {"loss": "rkd_distance", "teacher": "t", "weight": 3.0, "gather": False},
    {"loss": "koleo", "gather": False},
]
JOINED = [{"loss": "triplet", "on": "features", "name": "joined"}, {"loss": "contrastive", "gather": True}]


def build(terms):
    torch.manual_seed(0)
    made = Objective.from_config(terms, 4, DIM, DIM, teachers={"t": DIM}).double()
    for term in made.terms:
        if term.name == "supcon":
            generator = torch.Generator().manual_seed(7)
            rows = torch.randn(12, DIM, generator=generator, dtype=torch.float64)
            term.loss.memory.push(rows, torch.arange(12) % 4)
    return made


def batch(part=slice(None)):
    """Features and embeddings of 16 images with a graph, labels, and what a teacher says."""
    generator = torch.Generator().manual_seed(1)
    features, embedding, taught = torch.randn(3, 16, DIM, generator=generator, dtype=torch.float64)
    places = [x[part].clone().requires_grad_() for x in (features, embedding)]
    return places, (torch.arange(16) // 4)[part], Side(teachers={"t": Taught(taught[part])})


def gradients(places, objective):
    return [x.grad for x in places], {name: p.grad for name, p in objective.named_parameters()}


def on_rank(world):
    objective = build([*OWN, *JOINED])
    places, labels, side = batch(slice(8 * world.rank, 8 * world.rank + 8))
    output = objective(*places, labels, 0.5, gather_batch, side=side)
    output.total.backward()
    objective.after_step(*places, labels, gather_batch)
    memory = objective.losses["supcon"].memory
    return (*gradients(places, objective), output.terms, memory.embeddings.clone(), memory.labels.clone())


@pytest.mark.timeout(120)
def test_the_gradient_is_the_mean_of_what_each_process_finds_among_its_own():
    found = in_two_ranks(on_rank)
    whole, labels, side = batch()
    joined = build(JOINED)
    joined(*whole, labels, 0.5, side=side).total.backward()
    proxies = []
    for rank, (places, parameters, values, memory, kept) in enumerate(found):
        part = slice(8 * rank, 8 * rank + 8)
        alone, own, own_side = batch(part)
        objective = build(OWN)
        output = objective(*alone, own, 0.5, side=own_side)
        output.total.backward()
        for name, value in output.terms.items():
            assert_close(values[name], value, rtol=1e-12, atol=1e-12)
        # Each process carries its share of the joined terms times two, as the mean over two will halve it.
        for place, mine, all_images in zip(places, alone, whole, strict=True):
            assert_close(place, mine.grad + 2 * all_images.grad[part], rtol=1e-10, atol=1e-12)
        assert parameters.keys() == {"losses.proxy_anchor.weight"}
        proxies.append(parameters["losses.proxy_anchor.weight"])
        assert_close(proxies[rank], objective.losses["proxy_anchor"].weight.grad, rtol=1e-10, atol=1e-12)
        # What is remembered is of all processes all the same.
        objective.after_step(*whole, labels)
        assert_close(memory, objective.losses["supcon"].memory.embeddings, rtol=0, atol=0)
        assert_close(kept, objective.losses["supcon"].memory.labels)
    assert not torch.allclose(*proxies)
    assert not torch.allclose(found[0][2]["joined"], found[0][2]["triplet"])


def test_it_is_for_losses_that_look_at_several_images_at_once():
    problems = Objective.problems(
        [
            {"loss": "softmax", "gather": True},
            {"loss": "center", "gather": False},
            {"loss": "triplet", "gather": "no"},
            {"loss": "embedding_distillation", "teacher": "t", "gather": False},
            {"task": "category", "column": "hat", "gather": False},
            *OWN,
        ]
    )
    assert problems == [
        ("0.gather", "is not for loss softmax"),
        ("1.gather", "is not for loss center"),
        ("2.gather", "expected true or false, got 'no'"),
        ("3.gather", "is not for loss embedding_distillation"),
        ("4.gather", "is not for task category"),
    ]
