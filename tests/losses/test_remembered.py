"""Terms of an objective with a memory of past batches."""

import copy

import pytest
import torch
from torch.testing import assert_close

from metricid.losses import LOSSES, ContrastiveLoss, Objective, TripletLoss
from metricid.losses.pairwise import PairwiseLoss
from metricid.mining import MINERS

SIZES = {"num_classes": 6, "feature_dim": 5, "embedding_dim": 4}


def objective(*terms):
    return Objective.from_config([dict(term) for term in terms], **SIZES)


def batch(seed, size=8, shift=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(size, 5, generator=generator)
    return features, features[:, :4] * 2, torch.randint(0, 3, (size,), generator=generator) + shift


def step(made, progress, features, embedding, labels, **slow):
    """One forward pass and what comes after it; the loss and its gradients."""
    features, embedding = (t.clone().requires_grad_() for t in (features, embedding))
    output = made(features, embedding, labels, progress)
    leaves = [features, embedding]
    gradients = torch.autograd.grad(output.total, leaves, allow_unused=True, materialize_grads=True)
    made.after_step(features, embedding, labels, **slow)
    return output.total.detach(), gradients


@pytest.mark.parametrize(("on", "place"), [("features", 0), ("embedding", 1)])
@pytest.mark.parametrize("shift", [0, 3])
def test_the_batch_meets_itself_and_the_past_but_no_row_meets_itself(on, place, shift):
    """Against the loss with a reference list of its own for each anchor; labels seen before, or new ones."""
    made = objective({"loss": "contrastive", "reduction": "pairs", "memory": {"size": 20}, "on": on})
    past = [batch(seed) for seed in range(3)]
    for parts in past:
        step(made, 0.5, *parts)
    parts = batch(9, shift=shift)
    total, gradients = step(made, 0.5, *parts)
    x, labels = parts[place].clone().requires_grad_(), parts[2]
    kept = torch.cat([old[place] for old in past])[-20:]
    kept_labels = torch.cat([old[2] for old in past])[-20:]
    loss, terms = ContrastiveLoss(reduction="pairs"), []
    for i in range(8):
        others = [j for j in range(8) if j != i]
        references, their_labels = torch.cat([x[others], kept]), torch.cat([labels[others], kept_labels])
        terms.append(loss(x[i : i + 1], labels[i : i + 1], references, their_labels))
    expected = torch.stack(terms).mean()
    assert_close(total, expected.detach())
    assert_close(gradients[place], torch.autograd.grad(expected, x)[0])


def test_an_empty_memory_and_one_that_warms_up_change_nothing():
    plain = objective({"loss": "triplet"})
    warm = objective({"loss": "triplet", "memory": {"size": 100, "warmup": 0.4}})
    for seed in range(4):
        parts = batch(seed)
        assert step(warm, 0.1 * seed, *parts)[0] == step(plain, 0.1 * seed, *parts)[0]
    assert len(warm.losses["triplet"].memory) == 32, "it is filled meanwhile"
    parts = batch(5)
    assert step(warm, 0.4, *parts)[0] != step(plain, 0.4, *parts)[0]


def test_a_warm_up_of_batches_counts_those_that_the_memory_took_in():
    plain = objective({"loss": "triplet"})
    warm = objective({"loss": "triplet", "memory": {"size": 100, "warmup": 3}})
    for seed in range(3):
        parts = batch(seed)
        assert step(warm, 0.9, *parts)[0] == step(plain, 0.9, *parts)[0]
    again = objective({"loss": "triplet", "memory": {"size": 100, "warmup": 3}})
    again.load_state_dict(warm.state_dict())
    parts = batch(5)
    totals = [step(made, 0.9, *parts)[0] for made in (plain, warm, again)]
    assert totals[0] != totals[1] == totals[2]


def test_a_term_outside_its_window_keeps_nothing():
    made = objective({"loss": "softmax"}, {"loss": "triplet", "start": 0.5, "memory": {"size": 100}})
    step(made, 0.4, *batch(0))
    assert len(made.losses["triplet"].memory) == 0
    step(made, 0.5, *batch(1))
    assert len(made.losses["triplet"].memory) == 8


def test_no_gradient_reaches_the_memory_and_a_learned_boundary_is_trained():
    made = objective({"loss": "margin", "negatives": "all", "memory": {"size": 16}})
    step(made, 0, *batch(0))
    features, embedding, labels = batch(1)
    made(features, embedding.requires_grad_(), labels, 0.5).total.backward()
    memory = made.losses["margin"].memory
    assert memory.embeddings.grad is None and not memory.embeddings.requires_grad
    (boundary,) = made.parameters()
    assert boundary.grad is not None and boundary.grad.abs() > 0
    assert made.inactive_parameters(0.5) == []


def test_a_memory_with_a_momentum_keeps_what_the_slow_network_says():
    made = objective(
        {"loss": "triplet", "on": "features", "memory": {"size": 8, "momentum": 0.9}},
        {"loss": "contrastive", "memory": {"size": 8, "momentum": 0.9}},
        {"loss": "supcon", "memory": {"size": 8}},
    )
    assert made.momentum == 0.9
    parts = batch(0)
    slow = parts[0] + 1, parts[1] - 1
    step(made, 0, *parts, slow=slow)
    kept = [made.losses[name].memory.embeddings for name in ("triplet", "contrastive", "supcon")]
    assert_close(kept, [slow[0], slow[1], parts[1]])
    with pytest.raises(ValueError, match="triplet: its memory has a momentum; pass `slow` to after_step"):
        step(made, 0, *parts)
    assert objective({"loss": "supcon", "memory": {"size": 8}}).momentum is None


def test_the_state_goes_on_bit_identical():
    terms = {"loss": "triplet", "memory": {"size": 20}}, {"loss": "supcon", "memory": {"size": 12}}
    whole, other = objective(*terms), objective(*terms)
    for seed in range(4):
        step(whole, 0.1, *batch(seed))
    other.load_state_dict(copy.deepcopy(whole.state_dict()))
    for seed in range(4, 8):
        assert step(whole, 0.1, *batch(seed))[0] == step(other, 0.1, *batch(seed))[0]
    memory = other.losses["triplet"].memory
    assert (memory.pointer, memory.filled) == (64 % 20, 20)


def test_a_gathered_batch_is_compared_and_kept():
    def gather(x, labels):
        return torch.cat([x, x + 1]), torch.cat([labels, labels])

    made = objective({"loss": "triplet", "memory": {"size": 100}})
    features, embedding, labels = batch(0)
    made(features, embedding, labels, 0.5, gather)
    made.after_step(features, embedding, labels, gather)
    rows, kept_labels = made.losses["triplet"].memory.references()
    assert_close((rows, kept_labels), gather(embedding, labels))
    value = made(features, embedding, labels, 0.5, gather).total
    expected = TripletLoss()(*gather(embedding, labels), rows, kept_labels, with_batch=True)
    assert_close(value, expected)


@pytest.mark.parametrize("name", LOSSES.names())
def test_every_loss_takes_a_memory_or_says_in_one_line_why_not(name):
    found = Objective.problems([{"loss": name, "memory": {"size": 16}}])
    found = [text for path, text in found if path == "0.memory"]
    if not issubclass(LOSSES.get(name), PairwiseLoss):
        assert found == [f"is not for loss {name}"]
    elif name in ("angular", "quadruplet", "recall_at_k", "smooth_ap"):
        assert "would compare all of the memory with itself" in found[0]
    else:
        made = objective({"loss": name, "memory": {"size": 16}})
        torch.manual_seed(0)
        totals = [step(made, 0.5, *batch(seed))[0] for seed in range(4)]
        assert all(total.isfinite() for total in totals)


@pytest.mark.parametrize(
    ("memory", "path", "message"),
    [
        (64, "0.memory", "expected a mapping such as {size: 8192}, got 64"),
        (None, "0.memory", "expected a mapping such as"),
        ({}, "0.memory.size", "is required"),
        ({"size": 0}, "0.memory.size", "must be at least 1 image, got 0"),
        ({"size": 64.5}, "0.memory.size", "expected an integer, got 64.5"),
        ({"size": 64, "warmup": 1.0}, "0.memory.warmup", "in [0, 1), or a whole number of batches, got 1.0"),
        ({"size": 64, "warmup": -1}, "0.memory.warmup", "in [0, 1), or a whole number of batches, got -1"),
        ({"size": 64, "momentum": 1}, "0.memory.momentum", "must be in [0, 1), such as 0.999"),
        (
            {"size": 64, "momentun": 0.9},
            "0.memory.momentun",
            "unknown option 'momentun'; did you mean 'momentum'?",
        ),
        ({"size": 64, "warmup": 0.8}, "0.memory.warmup", "ends at 0.8, the term already at 0.7"),
    ],
)
def test_options_that_cannot_be_are_refused_with_their_place(memory, path, message):
    terms = [{"loss": "triplet", "end": 0.7, "memory": memory}, {"loss": "softmax"}]
    ((found, text),) = Objective.problems(terms)
    assert found == path and message in text


@pytest.mark.parametrize(
    ("terms", "path", "message"),
    [
        (
            [{"loss": "triplet", "swap": True, "miner": "batch_all", "memory": {"size": 8}}],
            "0.memory",
            "is not for swap: true and miner: batch_all, which would compare all of the memory with itself; "
            "take swap: false, or a miner of single triplets (",
        ),
        (
            [{"task": "number", "column": "age", "memory": {"size": 8}}],
            "0.memory",
            "is not for task number",
        ),
        (
            [
                {"loss": "triplet", "memory": {"size": 8, "momentum": 0.9}},
                {"loss": "supcon", "memory": {"size": 8}},
                {"loss": "circle", "memory": {"size": 8, "momentum": 0.99}},
            ],
            "2.memory.momentum",
            "is 0.99, that of an earlier term 0.9; give both the same",
        ),
    ],
)
def test_combinations_that_cannot_be_are_refused(terms, path, message):
    ((found, text),) = Objective.problems(terms)
    assert found == path and message in text


@pytest.mark.parametrize("miner", [*MINERS.names(), None])
def test_a_swap_beside_a_memory_is_for_miners_of_single_triplets(miner):
    term = {"loss": "triplet", "swap": True, "miner": miner, "memory": {"size": 40}}
    problems, labels = Objective.problems([term]), torch.arange(12) % 4
    if miner in ("batch_hard", "semi_hard", "easy_positive", "distance_weighted"):
        assert problems == []
        objective = Objective.from_config([term], 4, 8, 8)
        for x in torch.randn(3, 12, 8, generator=torch.Generator().manual_seed(0)):
            value = objective(x, x, labels, 0.5).total
            objective.after_step(x, x, labels)
        assert value.isfinite() and value > 0
        return
    ((path, text),) = problems
    assert path == "0.memory" and "\n" not in text
    assert text.startswith(f"is not for swap: true and miner: {miner or 'batch_all'}, which")
    assert {"batch_hard", "semi_hard", "easy_positive", "distance_weighted"} == set(
        text.partition("(")[2].rstrip(")").split(", ")
    )
    assert Objective.problems([{**term, "swap": False}]) == []
    without = Objective.from_config([{k: v for k, v in term.items() if k != "memory"}], 4, 8, 8)
    x = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    assert without(x, x, labels, 0.5).total.isfinite()
