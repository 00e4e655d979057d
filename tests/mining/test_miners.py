"""Every miner against loops over its definition: ties, duplicates, one class, no positives, references."""

import inspect
import math
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from metricid.mining import MINERS, Beside, Miner, Triplets, build_miner, pair_masks, pair_weights
from metricid.mining.miners import TripletSet, distance_weighted
from metricid.mining.miners.base import Tally
from metricid.mining.miners.weighing import _selected, _sorted


class Problem(NamedTuple):
    """Points on a coarse grid, so that distances tie and points coincide."""

    x: Tensor
    y: Tensor
    labels: Tensor
    others: Tensor
    own: bool

    @property
    def sheet(self) -> Tensor:
        return torch.cdist(self.x, self.y, compute_mode="donot_use_mm_for_euclid_dist")

    @property
    def masks(self) -> tuple[Tensor, Tensor]:
        return pair_masks(self.labels, None if self.own else self.others)

    @property
    def beside(self) -> Beside:
        if self.own:
            return Beside(self.x.shape[1])
        across = torch.cdist(self.y, self.y, compute_mode="donot_use_mm_for_euclid_dist")
        return Beside(self.x.shape[1], lambda rows: across[rows])

    def anchors(self) -> list[tuple[int, list[int], list[int]]]:
        found = []
        for a, label in enumerate(self.labels.tolist()):
            others = list(enumerate(self.others.tolist()))
            near = [j for j, other in others if other == label and not (self.own and j == a)]
            found.append((a, near, [j for j, other in others if other != label]))
        return found

    def mine(self, name: str, **options: object) -> Tensor:
        """Weights of the pairs."""
        return pair_weights(self.found(name, **options), self.sheet)

    def found(self, name: str, **options: object) -> Tensor | Triplets:
        miner = build_miner({"name": name, **options})
        assert miner is not None
        return miner(self.sheet, *self.masks, self.beside)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    def points(count: int) -> Tensor:
        cells = draw(st.lists(st.integers(-2, 2), min_size=3 * count, max_size=3 * count))
        return torch.tensor(cells, dtype=torch.float64).reshape(count, 3)

    def classes(count: int) -> Tensor:
        return torch.tensor(draw(st.lists(st.integers(0, most), min_size=count, max_size=count)))

    size, most = draw(st.integers(1, 7)), draw(st.integers(0, 6))  # most = 0: one class
    if draw(st.booleans()):
        x, labels = points(size), classes(size)
        return Problem(x, x, labels, labels, own=True)
    other = draw(st.integers(1, 8))
    return Problem(points(size), points(other), classes(size), classes(other), own=False)


many = settings(max_examples=120, deadline=None)


def listed(found: Triplets) -> Counter[tuple[int, int, int]]:
    rows = found.valid.nonzero().tolist()
    return Counter((a, int(found.positive[a, s]), int(found.negative[a, s])) for a, s in rows)


@given(problems())
@many
def test_batch_all_keeps_every_pair_once(problem: Problem) -> None:
    expected = torch.zeros_like(problem.sheet)
    for a, near, far in problem.anchors():
        expected[a, near + far] = 1
    assert torch.equal(problem.mine("batch_all"), expected)


@given(problems())
@many
def test_batch_hard_is_the_farthest_positive_and_the_nearest_negative(problem: Problem) -> None:
    d = problem.sheet.tolist()
    found = problem.found("batch_hard")
    assert isinstance(found, Triplets)
    triplets = {a: (p, n) for a, p, n in listed(found)}
    for a, near, far in problem.anchors():
        assert (a in triplets) == bool(near and far)
        if a in triplets:
            p, n = triplets[a]
            assert p in near
            assert n in far
            assert d[a][p] == max(d[a][j] for j in near)
            assert d[a][n] == min(d[a][j] for j in far)


@given(problems(), st.sampled_from([None, 0.5, 1.0]))
@many
def test_semi_hard_takes_one_negative_for_each_pair(problem: Problem, margin: float | None) -> None:
    d = problem.sheet.tolist()
    found = problem.found("semi_hard", margin=margin)
    assert isinstance(found, Triplets)
    chosen = {(a, p): n for a, p, n in listed(found).elements()}
    assert len(chosen) == int(found.valid.sum())
    for a, near, far in problem.anchors():
        for p in near:
            limit = math.inf if margin is None else d[a][p] + margin
            fits = [n for n in far if d[a][p] < d[a][n] < limit]
            assert ((a, p) in chosen) == bool(fits)
            if fits:
                assert chosen[a, p] in fits
                assert d[a][chosen[a, p]] == min(d[a][n] for n in fits)
    assert all(p in problem.anchors()[a][1] for a, p in chosen)


@given(problems(), st.sampled_from([None, 0.5, 1.0]))
@many
def test_semi_hard_all_takes_all_of_them(problem: Problem, margin: float | None) -> None:
    d = problem.sheet.tolist()
    expected = {
        (a, p, n)
        for a, near, far in problem.anchors()
        for p in near
        for n in far
        if d[a][p] < d[a][n] < (math.inf if margin is None else d[a][p] + margin)
    }
    assert_same_triplets(problem, build_miner({"name": "semi_hard_all", "margin": margin}), expected)


@given(problems(), st.sampled_from([20.0, 37.3, 70.0]))
@many
def test_angular_measures_the_angle_at_the_negative(problem: Problem, angle: float) -> None:
    expected = set()
    for a, near, far in problem.anchors():
        for p in near:
            middle = (problem.x[a] + problem.y[p]) / 2
            half = float((problem.x[a] - problem.y[p]).norm()) / 2
            for n in far:
                seen = math.atan2(half, float((problem.y[n] - middle).norm()))
                if math.degrees(seen) > angle:
                    expected.add((a, p, n))
    assert_same_triplets(problem, build_miner({"name": "angular", "angle": angle}), expected)


def assert_same_triplets(problem: Problem, miner: Miner | None, expected: set[tuple[int, int, int]]) -> None:
    """The blocks of a miner hold these triplets once each, and its weights say in how many a pair is."""
    assert isinstance(miner, TripletSet)
    seen = []
    for columns, valid in miner.triplets(problem.sheet, *problem.masks, problem.beside):
        seen += [(a, int(columns[a, s]), n) for a, s, n in valid.nonzero().tolist()]
    assert len(seen) == len(set(seen))
    assert set(seen) == expected
    weights = torch.zeros_like(problem.sheet)
    for a, p, n in expected:
        weights[a, p] += 1
        weights[a, n] += 1
    assert torch.equal(miner(problem.sheet, *problem.masks, problem.beside), weights)


@given(problems(), st.sampled_from(["semi_hard", "hard", "all"]))
@many
def test_easy_positive(problem: Problem, negatives: str) -> None:
    d = problem.sheet.tolist()
    weights = problem.mine("easy_positive", negatives=negatives)
    for a, near, far in problem.anchors():
        kept = weights[a].nonzero()[:, 0].tolist()
        positives, chosen = [j for j in kept if j in near], [j for j in kept if j in far]
        assert (weights[a, kept] == 1).all()
        nearest = min((d[a][p] for p in near), default=None)
        if negatives == "all":
            assert chosen == far
            assert [d[a][p] for p in positives] == ([] if nearest is None else [nearest])
            continue
        usable = [n for n in far if nearest is not None and (negatives == "hard" or d[a][n] > nearest)]
        assert len(positives) == len(chosen) == bool(usable)
        if usable:
            assert d[a][positives[0]] == nearest
            assert d[a][chosen[0]] == min(d[a][n] for n in usable)


@given(problems(), st.sampled_from([1, 2, None]), st.sampled_from([1, 3, None]))
@many
def test_hard_top_k(problem: Problem, positives: int | None, negatives: int | None) -> None:
    d = problem.sheet.tolist()
    weights = problem.mine("hard_top_k", positives=positives, negatives=negatives)
    assert set(weights.flatten().tolist()) <= {0.0, 1.0}
    for a, near, far in problem.anchors():
        for columns, count, sign in ((near, positives, 1), (far, negatives, -1)):
            hardness = sorted((sign * d[a][j] for j in columns), reverse=True)
            kept = sorted((sign * d[a][j] for j in columns if weights[a, j]), reverse=True)
            assert kept == hardness[: len(columns) if count is None else count]
        assert not weights[a].sum() or all(j in near + far for j in weights[a].nonzero()[:, 0].tolist())


@given(problems(), st.sampled_from([0.0, 0.1, 1.0]))
@many
def test_multi_similarity_keeps_what_a_pair_of_the_other_kind_challenges(
    problem: Problem, epsilon: float
) -> None:
    s = problem.sheet.tolist()  # any numbers do for cosines here
    expected = torch.zeros_like(problem.sheet)
    for a, near, far in problem.anchors():
        for p in near:
            expected[a, p] = bool(far) and s[a][p] - epsilon < max(s[a][n] for n in far)
        for n in far:
            expected[a, n] = bool(near) and s[a][n] + epsilon > min(s[a][p] for p in near)
    assert torch.equal(problem.mine("multi_similarity", epsilon=epsilon), expected)


@given(problems(), st.sampled_from([0.1, 0.2, 0.5, 1.0]))
@many
def test_hdc_keeps_a_share_of_each_kind_over_the_whole_batch(problem: Problem, share: float) -> None:
    d = problem.sheet
    weights = problem.mine("hdc", share=share)
    near = [(a, p) for a, positives, _ in problem.anchors() for p in positives]
    far = [(a, n) for a, _, negatives in problem.anchors() for n in negatives]
    expected = torch.zeros_like(d)
    for pairs, sign in ((near, -1), (far, 1)):
        values = sorted(sign * float(d[pair]) for pair in pairs)
        wanted = -(-round(share * 10) * len(values) // 10)  # ceil, in whole numbers
        for pair in pairs:
            expected[pair] = sign * float(d[pair]) <= values[wanted - 1]
    assert torch.equal(weights, expected)
    for mask in problem.masks:  # what other devices compute
        if mask.any():
            for sheet in (d, d.bfloat16()):
                for largest in (False, True):
                    assert _selected(sheet, mask, share, largest) == _sorted(sheet, mask, share, largest)


@given(problems(), st.sampled_from([0.3, 1.0]))
@many
def test_adaptive_weights_are_softmaxes_that_average_one(problem: Problem, temperature: float) -> None:
    d = problem.sheet.tolist()
    expected = torch.zeros_like(problem.sheet)
    for a, near, far in problem.anchors():
        for columns, sign in ((near, 1), (far, -1)):
            total = sum(math.exp(sign * d[a][j] / temperature) for j in columns)
            for j in columns:
                expected[a, j] = len(columns) * math.exp(sign * d[a][j] / temperature) / total
    assert_close(problem.mine("adaptive_weights", temperature=temperature), expected)


@given(problems())
@many
def test_distance_weighted_draws_one_negative_for_each_pair(problem: Problem) -> None:
    sphere = problem.sheet / 4
    found = distance_weighted(sphere, *problem.masks, dim=3, limit=0.75)
    triplets = listed(found)
    assert sorted((a, p) for a, p, _ in triplets.elements()) == sorted(
        (a, p) for a, near, far in problem.anchors() for p in near if far
    )
    for a, _, n in triplets:
        far = problem.anchors()[a][2]
        assert n in far
        assert sphere[a, n] < 0.75 or all(sphere[a, j] >= 0.75 for j in far)


@pytest.mark.parametrize("dim", [2, 3, 8, 512])
def test_distance_weighted_follows_the_density_of_the_sphere(dim: int) -> None:
    """Drawn frequencies against 1 / q(d) in exact arithmetic, with distances below the cutoff."""
    d = torch.tensor([0.3, 0.45, 0.5, 0.8, 1.1, 1.38, 1.41, 1.9], dtype=torch.float64)
    negative = torch.tensor([False] + [True] * 7)
    rows = 40000
    masks = (~negative).repeat(rows, 1), negative.repeat(rows, 1)
    generator = torch.Generator().manual_seed(1)
    before = torch.get_rng_state()
    found = distance_weighted(d.float().repeat(rows, 1), *masks, dim, generator=generator)
    assert torch.equal(torch.get_rng_state(), before)
    again = distance_weighted(
        d.float().repeat(rows, 1), *masks, dim, generator=torch.Generator().manual_seed(1)
    )
    assert torch.equal(found.negative, again.negative)
    assert found.valid.shape == (rows, 1)

    def inverse(value: float) -> Fraction:
        at = Fraction(max(value, 0.5))
        squared = at ** (2 * (dim - 2)) * (1 - at * at / 4) ** (dim - 3)  # q(d)^2 is rational
        return 1 / squared

    inverses = [inverse(float(value)) for value in d[1:6]]
    largest = max(inverses)
    weights = torch.tensor([math.sqrt(float(value / largest)) for value in inverses])
    expected = torch.zeros(8)
    expected[1:6] = weights / weights.sum()
    drawn = found.negative[:, 0].bincount(minlength=8) / rows
    assert_close(drawn, expected, atol=0.012, rtol=0)


def test_without_a_near_negative_all_of_them_are_alike() -> None:
    d = torch.tensor([[0.1, 1.5, 1.6, 1.99]]).repeat(30000, 1)
    positive = torch.tensor([[True, False, False, False]]).repeat(30000, 1)
    torch.manual_seed(0)
    drawn = distance_weighted(d, positive, ~positive, 128).negative[:, 0].bincount(minlength=4) / 30000
    assert_close(drawn, torch.tensor([0, 1 / 3, 1 / 3, 1 / 3]), atol=0.012, rtol=0)


@pytest.mark.parametrize("name", MINERS.names())
@pytest.mark.parametrize("size", [1, 6])
def test_off_the_cpu_no_value_is_read_back(name: str, size: int) -> None:
    """A meta tensor has no values: reading one on the host raises."""
    miner = build_miner(name)
    assert miner is not None
    masks = pair_masks(torch.empty(size, dtype=torch.int64, device="meta"))
    sheet = torch.empty(size, size, device="meta")
    found = miner(sheet, *masks, Beside(dim=16))
    assert pair_weights(found, sheet).shape == (size, size)
    miner.tally.add(found.valid.sum() if isinstance(found, Triplets) else (found > 0).sum())


@pytest.mark.parametrize("name", MINERS.names())
def test_nan_distances_choose_without_an_error(name: str) -> None:
    miner = build_miner(name)
    assert miner is not None
    torch.manual_seed(0)
    sheet = torch.rand(6, 6)
    sheet[2] = sheet[:, 2] = math.nan
    found = miner(sheet, *pair_masks(torch.tensor([0, 0, 0, 1, 1, 1])), Beside(dim=16))
    assert pair_weights(found, sheet).shape == (6, 6)


@pytest.mark.parametrize("name", MINERS.names())
def test_what_a_miner_is_called_is_what_it_is_registered_as(name: str) -> None:
    miner = build_miner(name)
    assert miner is not None
    assert miner.name == name
    assert miner.source
    found = miner(torch.rand(4, 4), *pair_masks(torch.tensor([0, 0, 1, 1])), Beside(dim=16))
    assert isinstance(found, Triplets) == miner.in_triplets
    assert not miner.single or (isinstance(found, Triplets) and found.valid.shape == (4, 1))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("semihard", "unknown miner 'semihard'; did you mean 'semi_hard'"),
        ({"name": "semi_hard", "margn": 0.1}, "unknown option 'margn'; did you mean 'margin'"),
        ({"margin": 0.1}, "needs the key 'name'"),
        ({"name": "semi_hard", "margin": -0.1}, "margin: must be at least 0, or null for no limit, got -0.1"),
        ({"name": "semi_hard", "margin": "big"}, "margin: expected a number or null, got 'big'"),
        ({"name": "semi_hard_all", "margin": math.inf}, "margin: must be at least 0"),
        ({"name": "hard_top_k", "negatives": 0}, "negatives: must be at least 1, or null for all, got 0"),
        ({"name": "easy_positive", "negatives": "soft"}, "negatives: expected"),
        ({"name": "multi_similarity", "epsilon": -1.0}, "epsilon: must be at least 0, got -1"),
        ({"name": "distance_weighted", "cutoff": 1.5}, "limit: must be above the cutoff"),
        ({"name": "distance_weighted", "cutoff": 0.0}, "cutoff: must lie in"),
        ({"name": "angular", "angle": 90.0}, "angle: must lie in"),
        ({"name": "hdc", "share": 0.0}, "share: must lie in"),
        ({"name": "adaptive_weights", "temperature": 0.0}, "temperature: must be positive"),
        (["semi_hard"], "expected a name, or"),
    ],
)
def test_what_cannot_be_built_is_explained(choice: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_miner(choice)  # type: ignore[arg-type]


def test_distance_weighted_asks_for_the_width_of_the_embeddings() -> None:
    miner = build_miner("distance_weighted")
    assert miner is not None
    with pytest.raises(ValueError, match="pass Beside"):
        miner(torch.rand(2, 2), *pair_masks(torch.tensor([0, 0])))


def test_a_tally_counts_until_it_is_read() -> None:
    tally = Tally()
    assert tally.read() is None
    tally.add(torch.tensor(3))
    tally.add(torch.tensor(2**24 + 1))
    assert tally.read() == (2**24 + 4, 2)
    assert tally.read() is None


def test_the_table_of_the_page_has_every_miner_and_its_defaults() -> None:
    page = (Path(__file__).parents[2] / "docs" / "mining.md").read_text(encoding="utf-8")
    table = page.split("| miner | what it chooses | options | source |\n")[1].split("\n\n")[0]
    stated = {}
    for line in table.splitlines()[1:]:
        name, _, options, _ = (cell.strip() for cell in line.strip("|").split(" | "))
        stated[name.strip(" `")] = dict(re.findall(r"`(\w+)` \(([^)]+)\)", options))
    expected = {}
    for name in MINERS.names():
        parameters = inspect.signature(MINERS.get(name)).parameters
        expected[name] = {option: str(p.default) for option, p in parameters.items()}
    assert stated == expected
