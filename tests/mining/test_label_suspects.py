"""Lists of probably wrong labels, against loops over single images."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metricid.mining import noise, suspects
from metricid.mining.noise import (
    compare_images,
    far_images,
    pick_suspects,
    suspect_images,
    suspect_pairs,
)
from metricid.mining.suspects import find_suspects, halves_cosine, typical_images


def people(identities: int, images: int, dim: int = 32, spread: float = 0.5, seed: int = 0):
    """Images around random centers, of lengths from 0.1 to 10, in random order."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(identities), images))
    centers = rng.standard_normal((identities, dim)) / np.sqrt(dim)
    vectors = centers[labels] + spread * rng.standard_normal((len(labels), dim)) / np.sqrt(dim)
    vectors *= 10 ** rng.uniform(-1, 1, (len(labels), 1))
    return torch.tensor(vectors, dtype=torch.float32), torch.tensor(labels)


def cosine(a, b):
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def by_hand(vectors, labels, apart=()):
    """own, other and cosine of each image, one at a time in float64."""
    x, y = vectors.double().numpy(), labels.numpy()
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    barred = {tuple(pair) for pair in apart} | {tuple(pair)[::-1] for pair in apart}
    rows = []
    for i in range(len(y)):
        rest = [j for j in range(len(y)) if y[j] == y[i] and j != i]
        own = cosine(unit[i], unit[rest].sum(axis=0)) if rest else np.nan
        others = [c for c in sorted(set(y.tolist())) if c != y[i] and (int(y[i]), c) not in barred]
        cosines = [cosine(unit[i], unit[y == c].sum(axis=0)) for c in others]
        place = int(np.argmax(cosines)) if others else -1
        rows.append((own, others[place] if others else -1, cosines[place] if others else -np.inf))
    own, other, near = zip(*rows, strict=True)
    return np.array(own), np.array(other), np.array(near)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks so small that a few images need several of them in both directions."""
    monkeypatch.setattr(noise, "ROWS_CPU", 7)
    monkeypatch.setattr(noise, "CELLS_CPU", 7 * 4)
    for module in (noise, suspects):
        monkeypatch.setattr(module, "CHUNK", 5)


@pytest.mark.parametrize("apart", [(), ((0, 1), (5, 2), (2, 9))])
def test_a_comparison_equals_its_definition(small_blocks, apart):
    vectors, labels = people(11, 4, spread=1.5)
    labels[labels == 10] = torch.tensor([10, 11, 12, 13])  # identities with one image
    found = compare_images(vectors, labels, apart=torch.tensor(apart, dtype=torch.int64).view(-1, 2))
    own, other, near = by_hand(vectors, labels, apart)
    np.testing.assert_allclose(found.own.numpy(), own, atol=1e-5)
    np.testing.assert_allclose(found.cosine.numpy(), near, atol=1e-5)
    assert found.other.tolist() == other.tolist()
    assert int(np.isnan(own).sum()) == 4


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 0.5))
def test_suspects_are_those_above_the_gap_the_largest_first(seed, gap):
    vectors, labels = people(6, 3, spread=2.0, dim=8, seed=seed)
    found = suspect_images(vectors, labels, gap=gap)
    own, other, near = by_hand(vectors, labels)
    sure = np.abs(near - own - gap) > 1e-5
    assert {r for r in found.rows.tolist() if sure[r]} == set(
        np.flatnonzero((near - own > gap) & sure).tolist()
    )
    difference = (found.cosine - found.own).numpy()
    assert (np.diff(difference) <= 0).all()
    np.testing.assert_allclose(found.own.numpy(), own[found.rows.numpy()], atol=1e-5)
    assert found.other.tolist() == other[found.rows.numpy()].tolist()


def test_planted_labels_are_found_and_named():
    vectors, labels = people(40, 6)
    wrong = torch.tensor([3, 50, 99, 200])
    right = labels[wrong].clone()
    labels[wrong] = (right + 7) % 40
    found = suspect_images(vectors, labels)
    assert sorted(found.rows.tolist()) == wrong.tolist()
    assert found.other.tolist() == [int(right[wrong == row]) for row in found.rows]


def test_an_identity_cut_in_two_is_a_pair_and_hides_its_images_from_the_other_list():
    vectors, labels = people(30, 8)
    mine = (labels == 4).nonzero().squeeze(1)
    labels[mine[:3]] = 30
    pairs, cosines = suspect_pairs(vectors, labels, 0.7)
    assert pairs.tolist() == [[4, 30]] and 0.7 < float(cosines) <= 1
    flooded = compare_images(vectors, labels)
    assert set(flooded.other[mine].tolist()) == {4, 30}
    kept = compare_images(vectors, labels, apart=pairs)
    assert not set(kept.other[mine].tolist()) & {4, 30}
    assert len(pick_suspects(kept)) == 0


def test_pairs_equal_a_loop_over_all_pairs(small_blocks):
    vectors, labels = people(25, 3, dim=4)
    unit = vectors.double() / vectors.double().norm(dim=1, keepdim=True)
    centers = torch.stack([unit[labels == c].sum(dim=0) for c in range(25)]).numpy()
    expected = {(a, b): cosine(centers[a], centers[b]) for a in range(25) for b in range(a + 1, 25)}
    expected = {pair: value for pair, value in expected.items() if value > 0.8}
    pairs, cosines = suspect_pairs(vectors, labels, 0.8)
    order = sorted(expected, key=expected.__getitem__, reverse=True)
    assert [tuple(pair) for pair in pairs.tolist()] == order and len(order) > 3
    np.testing.assert_allclose(cosines.numpy(), [expected[pair] for pair in order], atol=1e-5)


def test_all_lists_at_once_with_the_guard_of_the_set(small_blocks):
    vectors, labels = people(30, 8, dim=128)
    mine = (labels == 4).nonzero().squeeze(1)
    labels[mine[::2]] = 30
    stray = int((labels == 11).nonzero()[0])
    labels[stray] = 20
    found = find_suspects(vectors, labels)
    assert found.guard == pytest.approx(float(halves_cosine(vectors, labels).quantile(0.25)))
    assert found.pairs.tolist() == [[4, 30]] and found.images.rows.tolist() == [stray]
    assert not len(find_suspects(vectors, labels, guard=0.999, gap=1.9).pairs)
    with pytest.raises(ValueError, match="no identity has two images"):
        find_suspects(vectors[:4], torch.arange(4))


def test_an_image_far_from_everybody_is_listed_apart():
    vectors, labels = people(40, 6, spread=0.4)
    everybody = torch.nn.functional.normalize(vectors, dim=1).mean(dim=0)
    vectors += 20 * vectors.norm(dim=1, keepdim=True) * everybody  # a set with a common direction
    vectors[17] = -everybody
    found = compare_images(vectors, labels)
    assert far_images(found).rows.tolist() == [17]
    assert 17 not in pick_suspects(found, 0.1).rows


def test_halves_are_as_alike_as_parts_of_one_person():
    vectors, labels = people(50, 8, spread=1.0, dim=256)
    found = halves_cosine(vectors, labels)
    # In many dimensions the cosine of means of n is 1 / (1 + spread^2 / n).
    assert len(found) == 50 and float(found.mean()) == pytest.approx(1 / (1 + 1 / 4), abs=0.02)
    assert (found.diff() >= 0).all()
    assert len(halves_cosine(vectors[:3], torch.tensor([0, 1, 2]))) == 0


def test_typical_images_are_nearest_to_their_center_and_suspects_last():
    vectors, labels = people(5, 4)
    unit = torch.nn.functional.normalize(vectors, dim=1)
    found = typical_images(vectors, labels, torch.tensor([3, 1, 3]), 4)
    assert set(found) == {1, 3}
    for name, rows in found.items():
        center = unit[labels == name].sum(dim=0)
        assert rows == sorted(rows, key=lambda row: -float(unit[row] @ center)) and len(rows) == 4
    first = found[3][0]
    again = typical_images(vectors, labels, torch.tensor([3]), 4, leave_out=torch.tensor([first]))
    assert again[3] == [*found[3][1:], first]


def test_lengths_and_precision_play_no_part():
    vectors, labels = people(20, 5, spread=1.0)
    plain = compare_images(vectors, labels)
    for other in (vectors * 1e-18, vectors * 1e18, vectors.double()):
        found = compare_images(other, labels)
        torch.testing.assert_close(found.own, plain.own, atol=1e-5, rtol=0)
        assert found.other.tolist() == plain.other.tolist()
    half = compare_images(vectors.half(), labels)
    torch.testing.assert_close(half.cosine, plain.cosine, atol=2e-3, rtol=0)


def test_one_identity_and_single_images_give_empty_lists():
    vectors = torch.eye(3)
    alone = compare_images(vectors, torch.zeros(3, dtype=torch.int64))
    assert (
        alone.other.tolist() == [-1] * 3 and not len(pick_suspects(alone, 0)) and not len(far_images(alone))
    )
    single = suspect_images(vectors, torch.arange(3), gap=0)
    assert len(single) == 0
    nobody = suspect_images(torch.empty(0, 3), torch.empty(0, dtype=torch.int64))
    assert len(nobody) == 0


def test_labels_may_leave_numbers_out():
    vectors, labels = people(10, 4, spread=1.5)
    plain, wide = compare_images(vectors, labels), compare_images(vectors, labels * 3, identities=40)
    assert (3 * plain.other).tolist() == wide.other.tolist()
    torch.testing.assert_close(plain.cosine, wide.cosine)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([0, 1])}, "3 embeddings need as many"),
        ({"labels": torch.tensor([0, 1, -1])}, r"labels must be in \[0, 2\)"),
        ({"labels": torch.tensor([0, 1, 5]), "identities": 3}, r"labels must be in \[0, 3\)"),
        ({"embeddings": torch.full((3, 2), torch.nan)}, "not finite"),
        ({"embeddings": torch.ones(3)}, r"\[N, D\] float matrix"),
        ({"gap": -0.1}, "gap must be at least 0"),
        ({"apart": torch.tensor([[0, 9]])}, "outside"),
        ({"apart": torch.tensor([0, 1])}, r"must be \[S, 2\]"),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    given = {"embeddings": torch.ones(3, 2), "labels": torch.tensor([0, 1, 1])} | change
    with pytest.raises(ValueError, match=message):
        suspect_images(**given)


@pytest.mark.parametrize("guard", [-1.0, 1.0, 1.5, float("nan")])
def test_a_guard_is_a_cosine(guard):
    with pytest.raises(ValueError, match="guard must be above -1 and below 1"):
        suspect_pairs(torch.eye(2), torch.arange(2), guard)
