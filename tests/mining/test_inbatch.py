"""Miners against brute force over all triples, with ties, duplicates, one class and no positives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metricid.mining import batch_all, batch_hard, pair_masks, semi_hard


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """A distance matrix on a coarse grid (many ties) and labels of few classes."""
    size = draw(st.integers(1, 8))
    labels = draw(st.lists(st.integers(0, draw(st.integers(0, 7))), min_size=size, max_size=size))
    cells = draw(st.lists(st.integers(0, 4), min_size=size * size, max_size=size * size))
    return torch.tensor(cells, dtype=torch.float32).reshape(size, size) / 2, torch.tensor(labels)


def triples(labels: Tensor) -> set[tuple[int, int, int]]:
    rows = labels.tolist()
    every = range(len(rows))
    return {
        (a, p, n) for a in every for p in every for n in every if a != p and rows[a] == rows[p] != rows[n]
    }


@given(problems())
@settings(max_examples=150, deadline=None)
def test_batch_hard(problem: tuple[Tensor, Tensor]) -> None:
    distances, labels = problem
    found = batch_hard(distances, *pair_masks(labels))
    valid = triples(labels)
    for a in range(len(labels)):
        own = [(p, n) for b, p, n in valid if a == b]
        assert bool(found.valid[a, 0]) == bool(own)
        if own:
            p, n = int(found.positive[a, 0]), int(found.negative[a, 0])
            assert (a, p, n) in valid
            assert distances[a, p] == max(distances[a, q] for q, _ in own)
            assert distances[a, n] == min(distances[a, q] for _, q in own)


@given(problems(), st.sampled_from([None, 0.5, 1.0]))
@settings(max_examples=150, deadline=None)
def test_semi_hard(problem: tuple[Tensor, Tensor], margin: float | None) -> None:
    distances, labels = problem
    found = semi_hard(distances, *pair_masks(labels), margin)
    valid = triples(labels)
    chosen = {}
    for a, slot in found.valid.nonzero().tolist():
        pair = (a, int(found.positive[a, slot]))
        assert pair not in chosen
        chosen[pair] = int(found.negative[a, slot])
    for a, p in {(a, p) for a, p, _ in valid}:
        limit = float("inf") if margin is None else distances[a, p] + margin
        fitting = [
            distances[a, n]
            for b, q, n in valid
            if (b, q) == (a, p) and distances[a, p] < distances[a, n] < limit
        ]
        assert ((a, p) in chosen) == bool(fitting)
        if fitting:
            assert (a, p, chosen[a, p]) in valid
            assert distances[a, chosen[a, p]] == min(fitting)
    assert set(chosen) <= {(a, p) for a, p, _ in valid}


@given(problems(), st.sampled_from([1, 100, 1 << 22]))
@settings(max_examples=150, deadline=None)
def test_batch_all_is_every_triple_once(problem: tuple[Tensor, Tensor], block: int) -> None:
    _, labels = problem
    seen = []
    for columns, valid in batch_all(*pair_masks(labels), block=block):
        assert valid.numel() <= max(block, len(labels) ** 2)
        seen += [(a, int(columns[a, s]), n) for a, s, n in valid.nonzero().tolist()]
    assert len(seen) == len(set(seen))
    assert set(seen) == triples(labels)


def test_masks_know_self_by_index_and_not_by_distance() -> None:
    positive, negative = pair_masks(torch.tensor([3, 3, 5]))
    assert positive.tolist() == [[False, True, False], [True, False, False], [False, False, False]]
    assert negative.tolist() == [[False, False, True], [False, False, True], [True, True, False]]
    distances = torch.tensor(
        [[0.0, 0.0, 2.0], [0.0, 0.0, 2.0], [2.0, 2.0, 0.0]]
    )  # 0 and 1 are one image twice
    found = batch_hard(distances, positive, negative)
    assert found.positive[:2, 0].tolist() == [1, 0]
    assert found.valid[:, 0].tolist() == [True, True, False]


def test_a_batch_against_other_samples() -> None:
    torch.manual_seed(0)
    labels, others = torch.tensor([0, 1, 2]), torch.tensor([1, 0, 0, 1, 1])
    positive, negative = pair_masks(labels, others)
    assert torch.equal(positive, labels[:, None] == others[None])
    assert torch.equal(negative, ~positive)
    distances = torch.rand(3, 5)
    found = batch_hard(distances, positive, negative)
    assert found.valid[:, 0].tolist() == [True, True, False]
    assert distances[0, found.positive[0, 0]] == distances[0, 1:3].max()
    assert distances[0, found.negative[0, 0]] == distances[0, [0, 3, 4]].min()
    assert sum(int(valid.sum()) for _, valid in batch_all(positive, negative)) == 2 * 3 + 3 * 2
    assert semi_hard(distances, positive, negative).valid.shape == (3, 3)


@pytest.mark.parametrize("size", [1, 6])
def test_off_the_cpu_no_value_is_read_back(size: int) -> None:
    """A meta tensor has no values: reading one on the host raises."""
    labels = torch.empty(size, dtype=torch.int64, device="meta")
    positive, negative = pair_masks(labels)
    distances = torch.empty(size, size, device="meta")
    assert batch_hard(distances, positive, negative).positive.shape == (size, 1)
    assert semi_hard(distances, positive, negative, 0.3).negative.shape == (size, size)
    assert sum(columns.shape[1] for columns, _ in batch_all(positive, negative, block=size * size)) == size


def test_the_host_and_the_device_paths_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Off the CPU the slots of a row are not counted but taken all; the triplets are the same."""
    torch.manual_seed(0)
    labels = torch.randint(4, (12,))
    masks = pair_masks(labels)
    distances = torch.rand(12, 12)
    packed = semi_hard(distances, *masks, 0.4)
    monkeypatch.setattr("metricid.mining.inbatch._width", lambda useful: useful.shape[1])
    full = semi_hard(distances, *masks, 0.4)
    assert full.valid.shape == (12, 12)
    assert packed.valid.shape[1] < 12

    def listed(found) -> list:  # type: ignore[no-untyped-def]
        rows = found.valid.nonzero()
        return sorted((a, int(found.positive[a, s]), int(found.negative[a, s])) for a, s in rows.tolist())

    assert listed(packed) == listed(full)
