"""The neighbour search against plain loops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from metricid.mining import BackgroundSearch, Neighbours, RunningCenters, alike_pairs, find_neighbours, topk
from metricid.mining import neighbours as neighbours_module
from metricid.mining.partition import partitioned_search
from metricid.mining.topk import first_largest


def by_loops(vectors, k):
    """Ids and similarities by the definition, row by row; -1 and 0 where there is nobody."""
    vectors = vectors.double().numpy()
    ids, similarity = [], []
    for i, one in enumerate(vectors):
        found = []
        for j, other in enumerate(vectors):
            if j != i and one.any() and other.any():
                found.append((-float(one @ other / np.sqrt((one @ one) * (other @ other))), j))
        found = (sorted(found) + [(0.0, -1)] * k)[:k]
        ids.append([j for _, j in found])
        similarity.append([-s for s, _ in found])
    return torch.tensor(ids, dtype=torch.int32), torch.tensor(similarity)


# Rows of +-1 with 4 entries have norm 2, so that every cosine is exact in float32 and ties are ties.
SIGNS = st.lists(
    st.one_of(st.just([0.0] * 4), st.lists(st.sampled_from([-1.0, 1.0]), min_size=4, max_size=4)),
    min_size=1,
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(rows=SIGNS, k=st.integers(1, 45), high=st.integers(1, 7), wide=st.integers(1, 9))
def test_ties_duplicates_unseen_and_few_identities_are_as_by_loops(rows, k, high, wide):
    vectors = torch.tensor(rows)
    before = topk.ROWS_CPU, topk.CELLS_CPU
    topk.ROWS_CPU, topk.CELLS_CPU = high, high * wide
    try:
        table = find_neighbours(vectors, k)
    finally:
        topk.ROWS_CPU, topk.CELLS_CPU = before
    ids, similarity = by_loops(vectors, k)
    torch.testing.assert_close(table.ids, ids, rtol=0, atol=0)
    torch.testing.assert_close(table.similarity.double(), similarity, rtol=0, atol=1e-9, check_dtype=False)
    assert table.ids.dtype == torch.int32 and table.similarity.dtype == torch.float16
    assert table.recall == 1.0


@settings(max_examples=50, deadline=None)
@given(number=st.integers(1, 80), k=st.integers(1, 20), seed=st.integers(0, 2**31), wide=st.integers(5, 30))
def test_vectors_of_any_length_are_as_by_loops(number, k, seed, wide):
    vectors = torch.randn(number, 8, generator=torch.Generator().manual_seed(seed)) * 7
    before = topk.CELLS_CPU
    topk.CELLS_CPU = wide * topk.ROWS_CPU
    try:
        table = find_neighbours(vectors.bfloat16().float(), k)
    finally:
        topk.CELLS_CPU = before
    ids, similarity = by_loops(vectors.bfloat16().float(), k)
    assert_close(table.ids, ids, rtol=0, atol=0)
    assert_close(table.similarity.double(), similarity.double(), rtol=0, atol=6e-4)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 6),
    values=st.lists(st.integers(0, 3), min_size=1, max_size=30),
    k=st.integers(1, 30),
    seed=st.integers(0, 1000),
)
def test_the_leftmost_of_equal_ones_are_taken(rows, values, k, seed):
    rng = np.random.default_rng(seed)
    scores = np.stack([rng.permutation(values) for _ in range(rows)]).astype(np.float32)
    k = min(k, scores.shape[1])
    got, columns = first_largest(torch.from_numpy(scores), k)
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(columns.numpy(), expected)
    np.testing.assert_array_equal(got.numpy(), np.take_along_axis(scores, expected, 1))


def test_the_vectors_are_not_changed_and_a_copy_is_searched():
    vectors = torch.randn(20, 4)
    before = vectors.clone()
    expected = find_neighbours(vectors, 3)
    assert_close(vectors, before, rtol=0, atol=0)
    search = BackgroundSearch(vectors, 3)
    vectors.normal_()
    assert_close(search.result().ids, expected.ids, rtol=0, atol=0)
    assert search.ready and search.result().seconds > 0


def test_a_search_in_the_background_raises_where_it_is_asked_for():
    vectors = torch.randn(5, 3)
    vectors[2, 1] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        BackgroundSearch(vectors, 2).result()


@pytest.mark.parametrize(
    ("vectors", "k"), [(torch.ones(3), 1), (torch.ones(3, 2, dtype=torch.int64), 1), (torch.ones(3, 2), 0)]
)
def test_unusable_arguments_are_refused(vectors, k):
    with pytest.raises(ValueError, match=r"must be"):
        find_neighbours(vectors, k)


def clustered(number, dim, seed):
    """Families of 20 around centers, as unit vectors."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(max(number // 20, 1), dim, generator=generator)
    rows = centers[torch.arange(number) % len(centers)] + 0.7 * torch.randn(number, dim, generator=generator)
    return torch.nn.functional.normalize(rows, dim=1)


@pytest.mark.parametrize("fast", [True, False])
def test_the_partition_finds_most_and_says_how_many(fast, monkeypatch):
    monkeypatch.setattr("metricid.mining.partition._fast_bfloat16", lambda: fast)
    monkeypatch.setattr("metricid.mining.partition.BLOCK", 1500)
    monkeypatch.setattr("metricid.mining.partition.HELD", 10_000)
    vectors = clustered(4000, 16, seed=1)
    vectors[[7, 1999]] = 0
    exact = find_neighbours(vectors, 10)
    table = find_neighbours(vectors, 10, exact_up_to=3999)
    hits = (exact.ids[:, :, None] == table.ids[:, None, :]).any(2) & (exact.ids >= 0)
    recall = float(hits.sum()) / int((exact.ids >= 0).sum())
    assert 0.9 < recall < 1
    assert abs(table.recall - recall) < 0.03
    assert (table.ids[[7, 1999]] == -1).all() and not torch.isin(table.ids, torch.tensor([7, 1999])).any()
    # What is found is right: similarities are those of the vectors, falling, of others only, nobody twice.
    cosine = torch.einsum("cd,ckd->ck", vectors, vectors[table.ids.long().clamp_min(0)])
    real = table.ids >= 0
    assert_close(table.similarity.float()[real], cosine[real], rtol=0, atol=6e-4)
    assert (table.similarity[:, :-1] >= table.similarity[:, 1:])[real[:, 1:]].all()
    assert (table.ids != torch.arange(4000)[:, None]).all()
    ordered = table.ids[real.all(1)].sort(dim=1).values
    assert (ordered[:, 1:] > ordered[:, :-1]).all()
    again = find_neighbours(vectors, 10, exact_up_to=3999)
    assert_close(again.ids, table.ids, rtol=0, atol=0)


@settings(max_examples=25, deadline=None)
@given(number=st.integers(1, 60), k=st.integers(1, 12), seed=st.integers(0, 1000))
def test_a_partition_visited_whole_is_exact(number, k, seed):
    vectors = clustered(number, 8, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("metricid.mining.partition.TARGET", 1.0)
        patch.setattr("metricid.mining.partition.MOST_VISITED", 1.0)
        patch.setattr("metricid.mining.partition._fast_bfloat16", bool)
        ids, _ = partitioned_search(vectors, torch.ones(number, dtype=torch.bool), k)
    assert_close(ids, find_neighbours(vectors, k).ids, rtol=0, atol=0)


def test_recall_counts_the_true_neighbours_that_the_table_holds():
    vectors = torch.randn(50, 6)
    unit, known = neighbours_module.unit_vectors(vectors), torch.ones(50, dtype=torch.bool)
    ids = find_neighbours(vectors, 4).ids
    ids[:, 1] = -1
    assert neighbours_module._recall(unit, known, ids, 0) == pytest.approx(0.75)


@settings(max_examples=60, deadline=None)
@given(rows=SIGNS, k=st.integers(1, 12), guard=st.sampled_from([-0.6, 0.1, 0.4, 0.9]))
def test_alike_pairs_are_those_of_either_side_above_the_guard(rows, k, guard):
    vectors = torch.tensor(rows)
    ids, similarity = by_loops(vectors, k)
    expected = {}
    for i, (others, values) in enumerate(zip(ids.tolist(), similarity.tolist(), strict=True)):
        for j, value in zip(others, values, strict=True):
            if j >= 0 and value > guard:
                expected[min(i, j), max(i, j)] = value
    pairs, values = alike_pairs(find_neighbours(vectors, k), guard)
    assert dict(zip(map(tuple, pairs.tolist()), values.tolist(), strict=True)) == expected
    assert [tuple(p) for p in pairs.tolist()] == sorted(expected, key=lambda pair: (-expected[pair], pair))
    assert pairs.shape == (len(expected), 2)


def test_no_pair_of_an_empty_table():
    empty = Neighbours(torch.empty(0, 3, dtype=torch.int32), torch.empty(0, 3, dtype=torch.float16))
    assert alike_pairs(empty, 0.5)[0].shape == (0, 2)


@settings(max_examples=60, deadline=None)
@given(
    batches=st.lists(st.lists(st.integers(0, 4), min_size=0, max_size=8), max_size=6),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    seed=st.integers(0, 1000),
)
def test_running_centers_equal_their_definition(batches, momentum, seed):
    generator = torch.Generator().manual_seed(seed)
    module, expected, seen = RunningCenters(5, 3, momentum=momentum), torch.zeros(5, 3), [0] * 5
    for labels in batches:
        x = torch.randn(len(labels), 3, generator=generator)
        module.update(x, torch.tensor(labels, dtype=torch.int64))
        for identity in set(labels):
            mine = [row / row.norm() for row, label in zip(x, labels, strict=True) if label == identity]
            mean = sum(mine) / len(mine)
            first = not seen[identity]
            expected[identity] = mean if first else momentum * expected[identity] + (1 - momentum) * mean
            seen[identity] += 1
    assert_close(module.vectors, expected)
    assert module.batches.tolist() == seen
    other = RunningCenters(5, 3)
    other.load_state_dict(module.state_dict())
    assert_close(other.vectors, module.vectors, rtol=0, atol=0)


def test_distances_are_one_minus_the_cosine_to_the_own_center():
    module = RunningCenters(2, 2)
    module.update(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
    x, y = torch.tensor([[2.0, 0.0], [1.0, 1.0], [-1.0, 0.0]]), torch.tensor([0, 1, 0])
    assert_close(module.distances(x, y), torch.tensor([0.0, 1 - 0.5**0.5, 2.0]))


@pytest.mark.parametrize("options", [{"identities": 0}, {"dim": 0}, {"momentum": 1.0}, {"momentum": -0.1}])
def test_centers_refuse_options_out_of_range(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        RunningCenters(**({"identities": 2, "dim": 2} | options))


def test_centers_refuse_shapes_that_do_not_fit():
    module = RunningCenters(3, 2)
    with pytest.raises(ValueError, match="embeddings must be"):
        module.update(torch.ones(2, 3), torch.tensor([0, 1]))
    for wrong in (-1, 3):
        with pytest.raises(ValueError, match="labels must be from 0 to 2"):
            module.update(torch.ones(2, 2), torch.tensor([0, wrong]))
    with pytest.raises(ValueError, match=r"labels must be a tensor \[2\]"):
        module.update(torch.ones(2, 2), torch.tensor([0]))


def test_an_approximate_search_among_equal_vectors_finds_some() -> None:
    """All centres of the partition coincide, and one list has all members."""
    table = find_neighbours(torch.ones(3000, 8), 5, exact_up_to=10)
    assert (table.ids >= 0).all() and (table.similarity > 0.99).all()
    assert (table.ids != torch.arange(3000)[:, None]).all()
