"""Pairwise losses at the edges, against pytorch-metric-learning, in recipes and with learned parts."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from clusters import clusters
from pairwise_oracles import TABLE
from pytorch_metric_learning import distances as pml_distances
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning import miners as pml_miners
from pytorch_metric_learning import reducers as pml_reducers
from torch import Tensor
from torch.testing import assert_close

from metricid.losses import (
    LOSSES,
    AngularLoss,
    CircleLoss,
    FastAPLoss,
    GeneralizedLiftedLoss,
    HistogramLoss,
    LiftedStructureLoss,
    MarginLoss,
    MultiSimilarityLoss,
    NCALoss,
    NPairLoss,
    NTXentLoss,
    Objective,
    QuadrupletLoss,
    RankedListLoss,
    RecallAtKLoss,
    SmoothAPLoss,
    SNRContrastiveLoss,
    SupConLoss,
    TripletLoss,
    TupletMarginLoss,
)
from metricid.losses.functional import distance_margin_loss
from metricid.losses.matrices import Pairs, compare
from metricid.losses.pairs import _draw

MEAN = pml_reducers.MeanReducer()
RAW = {"distance": pml_distances.LpDistance(normalize_embeddings=False)}
# Of each loss of ours, the peer that means the same. Not here: the margin loss, which the peer sums over
# triplets, so that a pair counts as often as it occurs in one; ranked list, whose peer adds 1e-5 to each
# weight; quadruplet, weighted triplet and recall@k, which it lacks.
PEERS: dict[str, tuple[torch.nn.Module, torch.nn.Module, Any]] = {
    "multi_similarity": (
        MultiSimilarityLoss(),
        pml.MultiSimilarityLoss(alpha=2, beta=50, base=0.5),
        pml_miners.MultiSimilarityMiner(epsilon=0.1),
    ),
    "circle": (CircleLoss(), pml.CircleLoss(m=0.4, gamma=80, reducer=MEAN), None),
    "snr_contrastive": (
        SNRContrastiveLoss(),
        pml.SignalToNoiseRatioContrastiveLoss(distance=pml_distances.SNRDistance(normalize_embeddings=False)),
        None,
    ),
    "ntxent": (NTXentLoss(temperature=0.07), pml.NTXentLoss(temperature=0.07), None),
    "supcon": (SupConLoss(), pml.SupConLoss(temperature=0.1), None),
    "nca": (NCALoss(normalize=True, scale=3.0), pml.NCALoss(softmax_scale=3), None),
    "npair": (
        NPairLoss(),
        pml.NPairsLoss(distance=pml_distances.DotProductSimilarity(normalize_embeddings=False)),
        None,
    ),
    "lifted": (LiftedStructureLoss(), pml.LiftedStructureLoss(**RAW), None),
    "generalized_lifted": (GeneralizedLiftedLoss(), pml.GeneralizedLiftedStructureLoss(**RAW), None),
    "angular": (  # the peer leaves the negatives at their length
        AngularLoss(alpha=40),
        lambda x, y: pml.AngularLoss(alpha=40)(F.normalize(x, dim=1), y),  # type: ignore[dict-item]
        None,
    ),
    "tuplet": (TupletMarginLoss(), pml.TupletMarginLoss(), None),
    "variance": (
        TupletMarginLoss(variance_weight=1.0),
        lambda x, y: pml.TupletMarginLoss()(x, y) + pml.IntraPairVarianceLoss()(x, y),  # type: ignore[dict-item]
        None,
    ),
    "histogram": (HistogramLoss(), pml.HistogramLoss(n_bins=100), None),
    "fast_ap": (FastAPLoss(), pml.FastAPLoss(num_bins=10), None),
    "triplet_swap": (
        TripletLoss(miner="batch_all", swap=True, normalize=True, margin=0.2),
        pml.TripletMarginLoss(margin=0.2, swap=True, reducer=MEAN),
        None,
    ),
}


def batch(classes: int = 4, images: int = 4, dim: int = 16) -> tuple[Tensor, Tensor]:
    return clusters(classes, images, dim, seed=classes * images, scale=0.3)


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("classes", [2, 16])
def test_equals_pytorch_metric_learning(name: str, classes: int) -> None:
    mine, peer, miner = PEERS[name]
    x, labels = batch(classes)
    expected = peer(x, labels, miner(x, labels)) if miner else peer(x, labels)
    value = mine(x, labels)
    # The peer adds the smallest normal number inside its logarithms, and finds bins in float32.
    assert_close(value, expected, rtol=1e-5 if name == "histogram" else 1e-7, atol=1e-7)
    grads = torch.autograd.grad(value, x)[0], torch.autograd.grad(expected, x)[0]
    assert_close(*grads, rtol=1e-6, atol=2e-6 if name == "histogram" else 1e-7)


def test_smooth_ap_equals_the_peer_that_counts_the_anchor() -> None:
    x, labels = batch(classes=4, images=4)  # the peer's groups are right only for as many classes as images
    actual = SmoothAPLoss()(x, labels, references=x, reference_labels=labels)
    expected = pml.SmoothAPLoss(temperature=0.01)(x, labels)
    assert_close(actual.float(), expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize(
    "labels", [[0], [0, 1], [0, 1, 2, 3], [5, 5, 5], [0, 0, 1]], ids=["one", "two", "single", "same", "few"]
)
@pytest.mark.parametrize("equal", [False, True])
def test_odd_batches_give_finite_losses_and_gradients(name: str, labels: list[int], equal: bool) -> None:
    loss, _ = TABLE[name]
    torch.manual_seed(0)
    x = torch.full((len(labels), 6), 0.7) if equal else torch.randn(len(labels), 6)
    x.requires_grad_()
    value = loss(x, torch.tensor(labels))
    value.backward()
    assert value.isfinite()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    if len(labels) == 1:
        assert value.item() == 0
        assert (x.grad == 0).all()
    elif labels in ([0, 1, 2, 3], [5, 5, 5]) and not name.startswith(PAIRWISE_SUMS):
        has_positives_alone = labels == [5, 5, 5] and not name.startswith(NEED_NEGATIVES)
        assert has_positives_alone or value.item() == pytest.approx(0, abs=1e-6)


# Positive and negative pairs add up here, each without the other.
PAIRWISE_SUMS = ("contrastive", "snr", "multi_similarity", "margin", "ranked_list", "tuplet")
NEED_NEGATIVES = ("angular", "circle", "general", "histo", "lifted", "quadruplet", "triplet", "weighted")


@pytest.mark.parametrize("name", TABLE)
def test_a_nan_embedding_shows_and_strides_do_not_matter(name: str) -> None:
    loss, _ = TABLE[name]
    x, labels = batch()
    assert_close(loss(x.T.contiguous().T, labels), loss(x, labels))
    spoiled = x.detach().clone()
    spoiled[2, 1] = math.nan
    assert loss(spoiled, labels).isnan()
    assert loss(spoiled[2:3], labels[2:3]).isnan()
    with torch.no_grad():
        assert_close(loss(x, labels), loss(x, labels).detach())


@pytest.mark.parametrize("name", TABLE)
def test_backward_can_be_repeated(name: str) -> None:
    loss, _ = TABLE[name]
    x, labels = batch()
    value = loss(x, labels)
    first, second = (torch.autograd.grad(value, x, retain_graph=True)[0] for _ in range(2))
    assert_close(first, second)
    assert_close(torch.autograd.grad(3 * value, x)[0], 3 * first)


def test_an_anchor_stays_its_own_partner_when_passed_as_reference() -> None:
    x, labels = batch(classes=3, images=2)
    kept = SupConLoss(temperature=0.5)(x, labels, references=x, reference_labels=labels)
    z = F.normalize(x, dim=1)
    logits = z @ z.T / 0.5
    same = labels[:, None] == labels[None, :]
    assert_close(kept, -(logits.log_softmax(dim=1) * same).sum(dim=1).div(2).mean())


@pytest.mark.parametrize(
    ("references", "labels", "message"),
    [
        (torch.zeros(3, 4), None, "go together"),
        (None, torch.zeros(3, dtype=torch.int64), "go together"),
        (torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64), "references: embeddings have 5 dimensions"),
        (torch.zeros(3, 4), torch.zeros(2, dtype=torch.int64), "references: 3 embeddings came with 2 labels"),
        (torch.zeros(3, 4), torch.zeros(3), "references: labels must be an int64"),
    ],
)
def test_references_that_do_not_fit_are_named(references: Any, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SupConLoss()(torch.zeros(2, 4), torch.tensor([0, 1]), references, labels)


# Smooth-AP and recall@k hold the positives of a few anchors against all samples while these anchors pass.
@pytest.mark.parametrize("name", [name for name in TABLE if name not in ("smooth_ap", "recall_at_k")])
def test_no_cube_is_kept_for_backward(name: str) -> None:
    saved = []
    loss, _ = TABLE[name]
    x = torch.randn(96, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        loss(x, torch.arange(96) // 4)
    assert saved
    assert max(saved) <= 96 * 96


def test_beta_is_learned_and_weighs_as_the_paper_says() -> None:
    x, labels = batch(classes=3, images=3)
    beta = torch.tensor([1.0, 1.25, 0.75], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, b: distance_margin_loss(x, labels, b, nu=0.1, negatives="all"), (x, beta)
    )
    z = F.normalize(x.detach(), dim=1)
    total, active = 0.0, 0
    for i in range(9):
        for j in range(9):
            if i != j:
                d, b = float((z[i] - z[j]).norm()), float(beta.detach()[labels[i]])
                value = 0.2 + (d - b if labels[i] == labels[j] else b - d)
                total, active = total + max(value, 0), active + (value > 0)
    total += 0.1 * float(beta.detach()[labels].sum())
    value = distance_margin_loss(x, labels, beta, nu=0.1, negatives="all")
    assert float(value.detach()) == pytest.approx(total / active, rel=1e-12)
    loss = MarginLoss(per_class=True, num_classes=3)
    loss(x, labels).backward()
    assert loss.beta.dtype == torch.float32
    assert loss.beta.grad is not None and loss.beta.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="label 3"):
        loss(x, labels + 1)


def test_distance_weighted_draws_follow_the_density() -> None:
    """Drawn frequencies against 1 / q(d), with one anchor repeated and many positives."""
    torch.manual_seed(0)
    d = torch.tensor([0.1, 0.2, 0.7, 0.9, 1.1, 1.3, 1.5])
    positive = torch.tensor([True] * 2 + [False] * 5)
    rows = 20000
    drawn = _draw(d.repeat(rows, 1), positive.repeat(rows, 1), ~positive.repeat(rows, 1), dim=8)
    assert (drawn.sum(dim=1) == 2).all()
    assert (drawn[:, [0, 1, 6]] == 0).all()  # positives, and a negative beyond 1.4
    q = d.double() ** 6 * (1 - d.double() ** 2 / 4) ** 2.5
    expected = (1 / q[2:6]) / (1 / q[2:6]).sum()
    assert_close(drawn[:, 2:6].double().mean(dim=0) / 2, expected, atol=0.01, rtol=0)
    one = torch.tensor([[True, False, False]])
    far = _draw(torch.tensor([[0.1, 1.6, 1.7]]), one, ~one, 8)  # none near enough: any of them
    assert far[0, 1:].sum() == 1


def test_every_loss_is_built_from_a_recipe() -> None:
    names = ["angular", "circle", "fast_ap", "generalized_lifted", "histogram", "lifted_structure", "margin"]
    names += ["multi_similarity", "nca", "npair", "ntxent", "quadruplet", "ranked_list", "recall_at_k"]
    names += ["smooth_ap", "snr_contrastive", "tuplet_margin", "weighted_triplet"]
    objective = Objective.from_config([{"loss": name} for name in names], 4, 16, 16)
    x, labels = batch()
    output = objective(x.float(), x.float(), labels, progress=0.5)
    output.total.backward()
    assert set(output.terms) == set(names)
    assert all(loss.pairwise for loss in objective.losses.values())
    assert (
        Objective.problems([{"loss": "margin", "per_class": True}, {"loss": "triplet", "swap": True}]) == []
    )


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SupConLoss(form="both"), "form: must be one of"),  # type: ignore[arg-type]
        (lambda: NCALoss(scale=0.0), "scale: must be positive"),
        (lambda: TupletMarginLoss(margin=90.0), "margin: must lie in"),
        (lambda: MultiSimilarityLoss(base=2.0, epsilon=-1.0), "base: .*; epsilon: "),
        (lambda: CircleLoss(margin=1.0), "margin: must lie in"),
        (lambda: MarginLoss(per_class=True), "per_class: needs num_classes"),
        (lambda: MarginLoss(normalize=False), "normalize: must be true"),
        (lambda: AngularLoss(alpha=70.0), "alpha: must lie in"),
        (lambda: QuadrupletLoss(margin=-1.0), "margin: must be at least 0"),
        (lambda: RankedListLoss(margin=1.5), "margin: must lie in"),
        (lambda: HistogramLoss(bins=1), "bins: must be at least 2"),
        (lambda: RecallAtKLoss(ks=()), "ks: must be whole numbers"),
    ],
)
def test_options_out_of_range_are_named(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_rows_in_blocks_equal_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one row each, against one block for all."""
    x, labels = batch(classes=6, images=3)
    whole = {name: loss(x, labels) for name, (loss, _) in TABLE.items()}
    for module in ("matrices", "distances", "tuples"):
        monkeypatch.setattr(
            f"metricid.losses.{module}.row_blocks",
            lambda x, columns, width=1, least=1: (slice(i, i + 1) for i in range(len(x))),
        )
    monkeypatch.setattr("metricid.losses.distances.ROWS", 1)
    for name, (loss, _) in TABLE.items():
        value = loss(x, labels)
        assert_close(value, whole[name])
        assert_close(torch.autograd.grad(value, x)[0], torch.autograd.grad(whole[name], x)[0])
        with torch.no_grad():
            assert_close(loss(x, labels), whole[name].detach())
    assert compare(x, labels).most_positives() == 2


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("triplet", {"miner": "batch_all"}),
        ("smooth_ap", {}),
        ("recall_at_k", {}),
        ("angular", {}),
        ("lifted_structure", {}),
    ],
)
def test_more_slots_than_positives_change_nothing(name, options, monkeypatch):
    """Off the CPU the number of slots is that of the references, as nobody waits to know it better."""
    torch.manual_seed(3)
    x = torch.randn(12, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 4, 4])
    loss = LOSSES.build({"loss": name, **options})
    values = []
    for most in (Pairs.most_positives, lambda pairs: len(pairs.y)):
        monkeypatch.setattr(Pairs, "most_positives", most)
        value = loss(x, labels)
        values.append((value.detach(), *torch.autograd.grad(value, x)))
    assert values[0][0] > 0
    assert_close(values[0], values[1], rtol=1e-12, atol=1e-12)
