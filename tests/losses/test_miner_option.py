"""The option `miner` of the pairwise losses: what weights mean, odd batches, gradients, recipes, a peer."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from clusters import clusters
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning import miners as pml_miners
from pytorch_metric_learning import reducers as pml_reducers
from torch import Tensor
from torch.testing import assert_close

from metricid.losses import LOSSES, ContrastiveLoss, MarginLoss, Objective, TripletLoss
from metricid.losses.checks import OptionError
from metricid.losses.functional import npair_loss, triplet_loss
from metricid.losses.matrices import Pairs
from metricid.losses.mined import choose, keep
from metricid.losses.pairwise import PairwiseLoss
from metricid.mining import MINERS, Beside, Miner, build_miner, pair_masks, pair_weights
from metricid.mining.miners import BatchAll

# Every loss that takes a miner, in the forms that compute differently.
VARIANTS: dict[str, dict[str, Any]] = {
    "contrastive": {"loss": "contrastive", "negative_margin": 1.6},
    "contrastive_mean": {"loss": "contrastive", "reduction": "mean", "form": "linear"},
    "contrastive_pairs": {"loss": "contrastive", "reduction": "pairs", "normalize": False},
    "snr": {"loss": "snr_contrastive", "negative_margin": 3.0},
    "multi_similarity": {"loss": "multi_similarity", "epsilon": None},
    "circle": {"loss": "circle", "scale": 8.0},
    "margin": {"loss": "margin", "negatives": "all", "nu": 0.1},
    "supcon": {"loss": "supcon", "temperature": 0.5},
    "supcon_in": {"loss": "supcon", "temperature": 0.5, "form": "in"},
    "ntxent": {"loss": "ntxent", "temperature": 0.5},
    "nca": {"loss": "nca"},
    "nca_probability": {"loss": "nca", "form": "probability"},
    "tuplet": {"loss": "tuplet_margin", "scale": 4.0, "variance_weight": 0.5},
    "lifted": {"loss": "lifted_structure"},
    "generalized_lifted": {"loss": "generalized_lifted"},
    "angular": {"loss": "angular"},
    "weighted_triplet": {"loss": "weighted_triplet"},
    "triplet": {"loss": "triplet", "margin": 1.0},
    "triplet_nonzero": {"loss": "triplet", "margin": 1.0, "reduction": "mean_nonzero", "squared": True},
    "triplet_soft": {"loss": "triplet", "margin": None},
    "triplet_swap": {"loss": "triplet", "margin": 1.0, "swap": True, "reduction": "mean_nonzero"},
}
ALL = {name: {"miner": None, **options} for name, options in VARIANTS.items()}
REFUSE = ("fast_ap", "histogram", "quadruplet", "ranked_list", "recall_at_k", "smooth_ap")


class Fixed(Miner):
    """Gives the weights it was made with."""

    name = "fixed"
    by_rows = False

    def __init__(self, weights: Tensor):
        super().__init__()
        self.weights = weights

    def __call__(
        self, sheet: Tensor, positive: Tensor, negative: Tensor, beside: Beside | None = None
    ) -> Tensor:
        return self.weights.to(sheet.dtype) * (positive | negative)


def with_miner(name: str, miner: Miner | None) -> PairwiseLoss:
    loss: PairwiseLoss = LOSSES.build(ALL[name])
    loss.miner = miner
    return loss


@pytest.mark.parametrize("name", VARIANTS)
def test_a_pair_with_a_weight_counts_as_so_many_copies(name: str) -> None:
    """Of one anchor, against references of which each is there as often as its weight says."""
    x, labels = clusters(seed=1)
    y, others = clusters(classes=5, seed=2)
    weights = torch.randint(0, 4, (len(x), len(y)), generator=torch.Generator().manual_seed(3))
    for i in range(len(x)):
        times = weights[i]
        mined = with_miner(name, Fixed(weights[i : i + 1]))(x[i : i + 1], labels[i : i + 1], y, others)
        copied = LOSSES.build(ALL[name])(
            *(x[i : i + 1], labels[i : i + 1]), y.repeat_interleave(times, 0), others.repeat_interleave(times)
        )
        assert_close(mined, copied)
        for got, wanted in zip(grads(mined, x, y), grads(copied, x, y), strict=True):
            assert_close(got, wanted)


def grads(value: Tensor, *leaves: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(value, leaves))


@pytest.mark.parametrize("name", VARIANTS)
def test_the_batch_itself_is_as_references_without_self_pairs(name: str) -> None:
    x, labels = clusters()
    weights = torch.randint(0, 4, (len(x), len(x)), generator=torch.Generator().manual_seed(3)).double()
    weights = (weights * torch.rand(weights.shape, dtype=torch.float64)).fill_diagonal_(0)
    if name == "lifted":  # the partner's negatives are those of its own row, or of a column
        weights = (weights + weights.T) / 2
    own = with_miner(name, Fixed(weights))(x, labels)
    y = x.detach().clone().requires_grad_()
    apart = with_miner(name, Fixed(weights))(x, labels, y, labels)
    beside = with_miner(name, Fixed(weights))(x, labels, y[:0], labels[:0], with_batch=True)
    assert_close(own, apart)
    assert_close(own, beside)
    assert_close(grads(own, x)[0], sum(grads(apart, x, y)))
    # A loss that averages over anchors weighs them as it does without a miner.
    ones = with_miner(name, Fixed(torch.ones_like(weights)))(x, labels)
    assert_close(ones, LOSSES.build(ALL[name])(x, labels))


def test_npair_mines_among_its_pairs() -> None:
    x, labels = clusters(classes=4, images=3)
    anchors, partners = x[0::3], x[1::3]
    weights = torch.randint(0, 3, (4, 4), generator=torch.Generator().manual_seed(1)).double()
    weights[0, 0] = 0
    terms, counted = [], 0.0
    for i in range(4):
        logits = anchors[i] @ partners.T
        rest = sum(float(weights[i, k]) * (logits[k] - logits[i]).exp() for k in range(4) if k != i)
        terms.append(weights[i, i] * torch.log1p(torch.as_tensor(rest)))
        counted += float(weights[i, i])

    class Small(Fixed):
        def __call__(self, sheet: Tensor, *rest: Any) -> Tensor:  # type: ignore[override]
            size = len(self.weights)
            padded = sheet.new_zeros(sheet.shape)
            padded[:size, :size] = self.weights
            return padded

    mined = npair_loss(x, labels, miner=Small(weights))
    assert_close(mined, torch.stack(terms).sum() / counted)


ODD = {
    "one": [0],
    "single": [0, 1, 2, 3],
    "same": [5, 5, 5],
    "few": [0, 0, 1],
    "usual": [0, 0, 0, 1, 1, 2],
}


@pytest.mark.parametrize("miner", MINERS.names())
@pytest.mark.parametrize("labels", ODD.values(), ids=ODD)
def test_odd_batches_give_finite_losses_and_gradients(miner: str, labels: list[int]) -> None:
    torch.manual_seed(0)
    for options in [*VARIANTS.values(), {"loss": "npair"}]:
        loss = LOSSES.build({**options, "miner": miner})
        for x in (torch.randn(len(labels), 6), torch.full((len(labels), 6), 0.7)):
            x.requires_grad_()
            for references in ((), (torch.randn(4, 6), torch.tensor([0, 1, 5, 7]))):
                for with_batch in (False, True) if references else (False,):
                    value = loss(x, torch.tensor(labels), *references, with_batch=with_batch)
                    (grad,) = torch.autograd.grad(value, x)
                    assert value.isfinite()
                    assert grad.isfinite().all()
                    if len(labels) == 1 and not references:
                        assert value == 0
        spoiled = torch.randn(len(labels), 6)
        spoiled[0, 0] = torch.nan
        assert loss(spoiled, torch.tensor(labels)).isnan()


@pytest.mark.parametrize("miner", MINERS.names())
@pytest.mark.parametrize("name", ["contrastive", "multi_similarity", "triplet", "angular", "lifted"])
def test_gradients_are_those_of_what_was_chosen(miner: str, name: str) -> None:
    """Weights carry no gradient, so they are held while the embeddings move."""
    x, labels = clusters(classes=3, dim=4)
    chosen = build_miner(miner)
    assert chosen is not None
    torch.manual_seed(0)
    unit = F.normalize(x.detach(), dim=1)
    sheet = {"cosine": unit @ unit.T, "sphere": torch.cdist(unit, unit)}.get(chosen.measure)
    if sheet is None:
        sheet = torch.cdist(x.detach(), x.detach())
    fixed = Fixed(pair_weights(chosen(sheet, *pair_masks(labels), Beside(4)), sheet))
    loss = with_miner(name, fixed)
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), (x,), fast_mode=True)


@pytest.mark.parametrize("miner", sorted(set(MINERS.names()) - {"distance_weighted", "batch_all"}))
def test_weights_found_by_the_loss_are_those_of_the_matrix(miner: str) -> None:
    """In blocks of rows, with references, and whatever the miner measures."""
    x, labels = (t.detach() for t in clusters(classes=12, images=4))
    y, others = (t.detach() for t in clusters(classes=12, images=50, seed=4))
    loss = LOSSES.build({"loss": "contrastive", "normalize": False, "reduction": "pairs", "miner": miner})
    chosen = build_miner(miner)
    assert chosen is not None
    units = F.normalize(x, dim=1), F.normalize(y, dim=1)
    sheet = units[0] @ units[1].T if chosen.measure == "cosine" else torch.cdist(x, y)
    across = torch.cdist(y, y)
    found = chosen(sheet, *pair_masks(labels, others), Beside(8, lambda rows: across[rows]))
    fixed = LOSSES.build({"loss": "contrastive", "normalize": False, "reduction": "pairs"})
    fixed.miner = Fixed(pair_weights(found, sheet))
    assert_close(loss(x, labels, y, others), fixed(x, labels, y, others))


def test_a_large_batch_is_mined_in_blocks() -> None:
    x, labels = (t.detach() for t in clusters(classes=200, images=4))
    for miner in ("batch_hard", "semi_hard", "semi_hard_all", "easy_positive", "hdc", "adaptive_weights"):
        chosen = build_miner(miner)
        assert chosen is not None
        sheet = torch.cdist(x, x)
        fixed = ContrastiveLoss(normalize=False)
        fixed.miner = Fixed(pair_weights(chosen(sheet, *pair_masks(labels)), sheet))
        assert_close(ContrastiveLoss(normalize=False, miner=miner)(x, labels), fixed(x, labels))


def test_the_same_seed_draws_the_same_negatives() -> None:
    x, labels = clusters()
    values = []
    for _ in range(2):
        torch.manual_seed(7)
        values.append(ContrastiveLoss(miner="distance_weighted", negative_margin=1.9)(x, labels))
    assert torch.equal(*values)
    # The margin loss draws in the same way by itself.
    torch.manual_seed(3)
    built_in = MarginLoss()(x, labels)
    torch.manual_seed(3)
    assert_close(MarginLoss(negatives="all", miner="distance_weighted")(x, labels), built_in)


def test_the_selection_of_multi_similarity_is_its_miner() -> None:
    x, labels = clusters()
    inside = LOSSES.build({"loss": "multi_similarity", "epsilon": 0.2})(x, labels)
    beside = LOSSES.build(
        {"loss": "multi_similarity", "epsilon": None, "miner": {"name": "multi_similarity", "epsilon": 0.2}}
    )(x, labels)
    assert_close(inside, beside)


# Against pytorch-metric-learning. Its semi-hard band ends at the margin inclusively, which no random
# distances meet. Not here: angular, whose peer puts the middle of anchor and positive on the sphere.
MEAN = pml_reducers.MeanReducer()

PEERS: dict[str, tuple[PairwiseLoss, Any, Any]] = {
    "contrastive, semi-hard": (
        ContrastiveLoss(form="linear", reduction="mean", miner={"name": "semi_hard_all", "margin": 0.3}),
        pml.ContrastiveLoss(reducer=MEAN),
        pml_miners.TripletMarginMiner(margin=0.3, type_of_triplets="semihard"),
    ),
    "contrastive, multi-similarity": (
        ContrastiveLoss(form="linear", miner="multi_similarity"),
        pml.ContrastiveLoss(),
        pml_miners.MultiSimilarityMiner(epsilon=0.1),
    ),
    "contrastive, hdc": (
        ContrastiveLoss(form="linear", miner={"name": "hdc", "share": 0.25}),
        pml.ContrastiveLoss(),
        pml_miners.HDCMiner(filter_percentage=0.25),
    ),
    "triplet, semi-hard": (
        TripletLoss(margin=0.3, normalize=True, miner="semi_hard_all"),
        pml.TripletMarginLoss(margin=0.3, reducer=MEAN),
        pml_miners.TripletMarginMiner(margin=0.3, type_of_triplets="semihard"),
    ),
    "triplet, easy positive": (
        TripletLoss(margin=0.3, normalize=True, miner="easy_positive"),
        pml.TripletMarginLoss(margin=0.3, reducer=MEAN),
        pml_miners.BatchEasyHardMiner(pos_strategy="easy", neg_strategy="semihard"),
    ),
    "multi-similarity, batch hard": (
        LOSSES.build({"loss": "multi_similarity", "epsilon": None, "miner": "batch_hard"}),
        pml.MultiSimilarityLoss(alpha=2, beta=50, base=0.5),
        pml_miners.BatchHardMiner(),
    ),
}


@pytest.mark.parametrize("name", PEERS)
def test_equals_pytorch_metric_learning(name: str) -> None:
    mine, peer, miner = PEERS[name]
    x, labels = clusters(classes=6, images=4, dim=16)
    value, expected = mine(x, labels), peer(x, labels, miner(x, labels))
    assert expected > 0
    assert_close(value, expected, rtol=1e-6, atol=1e-7)
    assert_close(*(torch.autograd.grad(v, x)[0] for v in (value, expected)), rtol=1e-5, atol=1e-7)


def test_triplets_of_weights_count_as_their_product() -> None:
    x, labels = clusters()
    weights = torch.rand(len(x), len(x), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    d = torch.cdist(x, x)
    total, counted = 0.0, 0.0
    positive, negative = pair_masks(labels)
    for a in range(len(x)):
        for p in positive[a].nonzero()[:, 0]:
            for n in negative[a].nonzero()[:, 0]:
                times = weights[a, p] * weights[a, n]
                total = total + times * F.relu(d[a, p] - d[a, n] + 1)
                counted += float(times)
    mined = with_miner("triplet", Fixed(weights))(x, labels)
    assert_close(mined, total / counted)
    assert_close(grads(mined, x)[0], grads(total / counted, x)[0])  # type: ignore[operator, arg-type]


def test_a_triplet_loss_lends_its_margin_to_a_miner_without_one() -> None:
    x, labels = clusters()
    named = TripletLoss(margin=0.1, miner="semi_hard")(x, labels)
    assert_close(TripletLoss(margin=0.1, miner={"name": "semi_hard", "margin": 0.1})(x, labels), named)
    assert_close(triplet_loss(x, labels, margin=0.1, miner="semi_hard"), named)
    wide = TripletLoss(margin=0.1, miner={"name": "semi_hard", "margin": None})(x, labels)
    assert not torch.isclose(wide, named)


def test_no_miner_is_all_pairs() -> None:
    x, labels = clusters()
    for name, options in VARIANTS.items():
        plain = LOSSES.build(ALL[name])
        everything = LOSSES.build({**options, "miner": "batch_all"})
        for loss in (plain, everything):
            assert isinstance(loss.miner, BatchAll) if options["loss"] == "triplet" else loss.miner is None
        assert torch.equal(plain(x, labels), everything(x, labels))


@pytest.mark.parametrize("name", REFUSE)
def test_losses_over_the_whole_ranking_refuse_a_miner(name: str) -> None:
    with pytest.raises(OptionError, match=r"miner: is not for this loss, which .*; leave it out"):
        LOSSES.build({"loss": name, "miner": "batch_hard"})
    ((path, text),) = Objective.problems([{"loss": name, "miner": "batch_hard"}])
    assert path == "0.miner"
    assert "is not for this loss" in text


def test_every_pairwise_loss_takes_or_refuses_a_miner() -> None:
    pairwise = {n for n in LOSSES.names() if issubclass(LOSSES.get(n), PairwiseLoss)}
    assert pairwise == {options["loss"] for options in VARIANTS.values()} | {"npair", *REFUSE}


@pytest.mark.parametrize(
    ("options", "path", "message"),
    [
        ({"loss": "supcon", "miner": "semihard"}, "0.miner", "unknown miner 'semihard'; did you mean"),
        ({"loss": "supcon", "miner": {"name": "hdc", "share": 2}}, "0.miner", "share: must lie in"),
        ({"loss": "triplet", "miner": 3}, "0.miner", "expected a text"),
        ({"loss": "margin", "miner": "hdc"}, "0.negatives", "must be 'all' beside a miner"),
        (
            {"loss": "triplet", "swap": True, "miner": "hdc", "memory": {"size": 8}},
            "0.memory",
            "is not for swap: true and miner: hdc",
        ),
    ],
)
def test_what_a_recipe_asks_for_wrongly_is_explained(options: Any, path: str, message: str) -> None:
    found = Objective.problems([options])
    assert [key for key, _ in found] == [path]
    assert message in found[0][1]


def test_all_problems_of_a_loss_come_together() -> None:
    found = Objective.problems([{"loss": "circle", "margin": 2.0, "miner": {"name": "hdc", "share": 2.0}}])
    assert {path for path, _ in found} == {"0.margin", "0.miner"}


def test_what_a_loss_is_made_of_can_be_read() -> None:
    assert "miner=semi_hard(margin=0.1)" in repr(ContrastiveLoss(miner={"name": "semi_hard", "margin": 0.1}))
    assert "miner" not in repr(ContrastiveLoss())


@pytest.mark.parametrize("miner", MINERS.names())
def test_off_the_cpu_mining_reads_no_value_back(miner: str) -> None:
    """A meta tensor has no values: reading one on the host raises."""
    x, y = torch.empty(8, 6, device="meta"), torch.empty(5, 6, device="meta")
    labels, others = (torch.empty(len(t), dtype=torch.int64, device="meta") for t in (x, y))
    chosen = build_miner(miner)
    assert chosen is not None
    for pairs in (Pairs(x, x, labels, labels, own=True), Pairs(x, y, labels, others, own=False)):
        weights = keep(pairs, chosen).weights
        assert weights is not None
        assert weights.shape == (8, len(pairs.y))
        assert not chosen.in_triplets or len(choose(pairs, chosen, squared=True).valid) == 8
