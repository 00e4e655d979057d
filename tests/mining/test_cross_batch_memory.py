"""The memory of past batches against a plain list."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from metricid.losses import TripletLoss
from metricid.mining import CrossBatchMemory


def batch(size, seed, dim=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, dim, generator=generator), torch.randint(0, 9, (size,), generator=generator)


def held(memory):
    """Its rows as a sorted list of (label, row)."""
    rows, labels = memory.references()
    return sorted(zip(labels.tolist(), rows.tolist(), strict=True))


@given(size=st.integers(1, 12), pushes=st.lists(st.integers(0, 17), max_size=9))
def test_it_holds_what_a_list_would(size, pushes):
    memory, kept, place = CrossBatchMemory(size, dim=3), [], 0
    for seed, count in enumerate(pushes):
        rows, labels = batch(count, seed)
        memory.push(rows, labels)
        kept = (kept + list(zip(labels.tolist(), rows.tolist(), strict=True)))[-size:]
        assert len(memory) == memory.filled == len(kept)
        assert held(memory) == sorted(kept)
        place = (place + min(count, size)) % size
        assert memory.pointer == place


def test_the_oldest_row_goes_first_around_the_end():
    memory = CrossBatchMemory(5, dim=1)
    for first in (0, 3, 6):
        labels = torch.arange(first, first + 3)
        memory.push(labels[:, None].float(), labels)
    assert memory.labels.tolist() == [5, 6, 7, 8, 4]
    assert memory.embeddings.flatten().tolist() == [5, 6, 7, 8, 4]
    assert memory.pointer == 4


def test_a_memory_larger_than_what_was_pushed_shows_no_empty_places():
    memory = CrossBatchMemory(100, dim=3)
    rows, labels = batch(7, 0)
    memory.push(rows, labels)
    assert_close(memory.references(), (rows, labels), rtol=0, atol=0)
    assert [len(part) for part in CrossBatchMemory(100, dim=3).references()] == [0, 0]


@pytest.mark.parametrize("cut", [0, 1, 4, 7])
def test_a_saved_memory_goes_on_as_the_one_that_was_not(cut):
    whole, before = CrossBatchMemory(10, dim=3), CrossBatchMemory(10, dim=3)
    for seed in range(9):
        whole.push(*batch(3, seed))
        if seed < cut:
            before.push(*batch(3, seed))
    after = CrossBatchMemory(10, dim=3)
    after.load_state_dict(before.state_dict())
    for seed in range(cut, 9):
        after.push(*batch(3, seed))
    assert (after.pointer, after.filled) == (whole.pointer, whole.filled)
    assert torch.equal(after.embeddings, whole.embeddings) and torch.equal(after.labels, whole.labels)


def test_nothing_in_it_has_a_gradient_and_its_dtype_stays():
    memory = CrossBatchMemory(4, dim=3)
    rows, labels = batch(4, 0)
    leaf = rows.bfloat16().requires_grad_()
    memory.push(leaf * 2, labels)
    assert memory.embeddings.dtype == torch.float32 and not memory.embeddings.requires_grad
    assert list(memory.parameters()) == []


def test_a_push_before_the_backward_pass_is_an_error_and_not_a_wrong_gradient():
    memory = CrossBatchMemory(4, dim=3)
    memory.push(*batch(4, 0))
    x, labels = batch(4, 1)
    loss = TripletLoss(miner="batch_all")(x.requires_grad_(), labels, *memory.references())
    memory.push(*batch(4, 2))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="at least 1, not 0 and 3"):
        CrossBatchMemory(0, 3)
    memory = CrossBatchMemory(4, dim=3)
    with pytest.raises(ValueError, match=r"embeddings must be a tensor \[B, 3\], not \(2, 4\)"):
        memory.push(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"embeddings must be a tensor \[B, 3\], not a ndarray"):
        memory.push(np.zeros((2, 3)), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"labels must be a tensor \[2\], not \(3,\)"):
        memory.push(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"labels must be integers, not torch.float32"):
        memory.push(torch.zeros(2, 3), torch.tensor([0.7, 1.9]))
    with pytest.raises(ValueError, match="size: 10000000000000 embeddings of 8 numbers do not fit"):
        CrossBatchMemory(10**13, 8)
