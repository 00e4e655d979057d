from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metricid.data.samplers import (
    SAMPLERS,
    ClassBalancedSampler,
    PKSampler,
    ShuffleSampler,
    build_sampler,
)
from metricid.errors import InputError

COUNTS = st.lists(st.integers(1, 30), min_size=2, max_size=40)


def labels_of(counts, seed=0):
    labels = np.repeat(np.arange(len(counts)) * 3 + 5, counts)
    return np.random.default_rng(seed).permutation(labels)


def joined(make, world, epoch):
    """Steps of an epoch: the batches of all ranks, one after the other."""
    ranks = [list(make(rank, world).batches(epoch)) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    return [np.concatenate(step) for step in zip(*ranks, strict=True)]


@settings(max_examples=150)
@given(
    counts=COUNTS,
    identities=st.integers(1, 8),
    images=st.integers(1, 6),
    world=st.integers(1, 3),
    mode=st.sampled_from(["images", "identities"]),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 5),
)
def test_pk_batches_hold_their_promises(counts, identities, images, world, mode, seed, epoch):
    if len(counts) < identities * world:
        identities, world = 1, 1
    labels = labels_of(counts, seed)
    present = np.unique(labels)

    def make(rank, world):
        return PKSampler(labels, identities, images, mode, seed=seed, rank=rank, world_size=world)

    steps = joined(make, world, epoch)
    assert len(steps) == make(0, world).num_batches(epoch)
    draws = {identity: [] for identity in present}
    for step in steps:
        assert step.dtype == np.int64
        assert step.shape == (identities * images * world,)
        blocks = step.reshape(-1, images)
        who = labels[blocks]
        assert (who == who[:, :1]).all()
        assert len(set(who[:, 0])) == identities * world
        for identity, block in zip(who[:, 0], blocks, strict=True):
            n = int((labels == identity).sum())
            times = np.unique(block, return_counts=True)[1]
            assert len(times) == min(n, images)
            assert times.max() - times.min() <= 1
            draws[identity].append(block)
    # Every identity in every epoch, and images evenly: nobody's image twice before all were shown once.
    for identity, blocks in draws.items():
        shown = np.unique(np.concatenate(blocks), return_counts=True)[1] if blocks else np.array([])
        n = int((labels == identity).sum())
        total = images * len(blocks)
        assert total > 0
        assert len(shown) == min(n, total)
        assert shown.max() - shown.min() <= 1
    expected = len(present) if mode == "identities" else sum(max(1, int(n / images + 0.5)) for n in counts)
    assert len(steps) == -(-expected // (identities * world))


def test_an_identity_appears_in_proportion_to_its_images():
    counts = [4, 8, 12, 40, 3, 2, 6] * 20
    labels = labels_of(counts)
    sampler = PKSampler(labels, 8, 4)
    drawn = np.bincount(labels[np.concatenate(list(sampler.batches(0)))]) / 4
    drawn = drawn[drawn > 0]
    wanted = np.array([max(1, int(n / 4 + 0.5)) for n in counts])
    assert (drawn >= wanted).all()
    assert (drawn - wanted).sum() < 8


def test_one_huge_identity_is_in_no_batch_twice_and_does_not_lengthen_the_epoch():
    labels = labels_of([1000, 4, 4, 4, 4, 4])
    sampler = PKSampler(labels, 3, 4)
    batches = list(sampler.batches(0))
    assert len(batches) == -(-(250 + 5) // 3)
    for batch in batches:
        assert len(set(labels[batch])) == 3


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_together_draw_what_one_process_draws(world):
    labels = labels_of([3, 9, 5, 7, 1, 1, 12, 4, 4, 8, 20, 2, 6])
    makers = {
        "pk": lambda r, w: PKSampler(labels, 6 // w, 3, seed=4, rank=r, world_size=w),
        "shuffle": lambda r, w: ShuffleSampler(labels, 12 // w, seed=4, rank=r, world_size=w),
        "balanced": lambda r, w: ClassBalancedSampler(labels, 12 // w, seed=4, rank=r, world_size=w),
    }
    for make in makers.values():
        for one, many in zip(joined(make, 1, 2), joined(make, world, 2), strict=True):
            np.testing.assert_array_equal(one, many)


@pytest.mark.parametrize(
    "make",
    [
        lambda labels, **k: PKSampler(labels, 4, 2, **k),
        lambda labels, **k: ShuffleSampler(labels, 7, **k),
        lambda labels, **k: ClassBalancedSampler(labels, 7, **k),
    ],
)
def test_order_is_a_function_of_seed_and_epoch_and_can_start_anywhere(make):
    labels = labels_of([5] * 20)
    sampler = make(labels, seed=1)
    first = np.stack(list(sampler.batches(3)))
    np.testing.assert_array_equal(first, np.stack(list(make(labels, seed=1).batches(3))))
    for start in (0, 1, len(first) - 1):
        np.testing.assert_array_equal(np.stack(list(sampler.batches(3, start))), first[start:])
    assert list(sampler.batches(3, len(first))) == []
    assert not np.array_equal(np.stack(list(sampler.batches(4))), first)
    assert not np.array_equal(np.stack(list(make(labels, seed=2).batches(3))), first)


def test_identities_meet_at_random():
    """Pairs share batches as independent draws would; neighbours that stay together triple the variance."""
    known, chosen = 64, 8
    sampler = PKSampler(labels_of([8] * known), chosen, 2, seed=3)
    labels = labels_of([8] * known)
    names = {name: i for i, name in enumerate(np.unique(labels))}
    met = np.zeros((known, known))
    batches = 0
    for epoch in range(60):
        for batch in sampler.batches(epoch):
            who = [names[n] for n in set(labels[batch].tolist())]
            met[np.ix_(who, who)] += 1
            batches += 1
    pairs = met[np.triu_indices(known, 1)]
    expected = batches * chosen * (chosen - 1) / (known * (known - 1))
    assert abs(pairs.mean() / expected - 1) < 1e-9
    assert 0.7 < pairs.var() / expected < 1.5


def test_positions_of_an_identity_spread_over_the_epoch():
    labels = labels_of([16] * 50)
    sampler = PKSampler(labels, 5, 4, seed=0)
    target = labels[0]
    gaps = []
    for epoch in range(100):
        at = [step for step, batch in enumerate(sampler.batches(epoch)) if target in labels[batch]]
        assert len(at) == 4
        gaps += [b - a for a, b in pairwise(at)]
    assert 1 in gaps
    assert max(gaps) > 20


@given(count=st.integers(1, 200), size=st.integers(1, 40), world=st.integers(1, 4), epoch=st.integers(0, 3))
def test_shuffle_shows_every_image_with_equal_batches(count, size, world, epoch):
    labels = np.zeros(count, int)
    steps = joined(lambda r, w: ShuffleSampler(labels, size, rank=r, world_size=w), world, epoch)
    assert {len(step) for step in steps} == {size * world}
    assert len(steps) == -(-count // (size * world))
    times = np.bincount(np.concatenate(steps), minlength=count)
    assert times.min() >= 1
    assert times.max() - times.min() <= 1


@given(counts=COUNTS, size=st.integers(1, 40), world=st.integers(1, 4), epoch=st.integers(0, 3))
def test_class_balanced_shows_identities_equally_often(counts, size, world, epoch):
    labels = labels_of(counts)
    steps = joined(lambda r, w: ClassBalancedSampler(labels, size, rank=r, world_size=w), world, epoch)
    assert {len(step) for step in steps} == {size * world}
    drawn = np.concatenate(steps)
    times = np.unique(labels[drawn], return_counts=True)[1]
    assert len(times) == len(counts)
    # Whole rounds, plus what fills the last batch.
    assert times.max() - times.min() <= 1 + size * world // len(counts)
    assert times.min() >= max(1, len(labels) // len(counts))
    for identity in np.unique(labels):
        images = np.bincount(drawn[labels[drawn] == identity], minlength=len(labels))[labels == identity]
        assert images.max() - images.min() <= 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: PKSampler(labels_of([4] * 12), 16, 4),
            "identities: 16 needs 16 identities, and the data has 12; set it to 12 or less",
        ),
        (
            lambda: PKSampler(labels_of([4] * 12), 8, 4, rank=1, world_size=2),
            "identities: 8 x 2 processes needs 16 identities, and the data has 12; set it to 6 or less",
        ),
        (lambda: PKSampler(np.zeros(9, int), 1, 4), "one identity only"),
        (lambda: PKSampler(labels_of([4, 4]), 0, 4), "identities: must be at least 1, not 0"),
        (lambda: PKSampler(labels_of([4, 4]), 2, -1), "images: must be at least 1"),
        (lambda: PKSampler(labels_of([4, 4]), 2, 2, "image"), "epoch: must be"),
        (lambda: ShuffleSampler(np.zeros(3, int), 0), "batch_size: must be at least 1"),
        (lambda: ClassBalancedSampler(np.zeros(3, int), 0), "batch_size: must be at least 1"),
        (lambda: ShuffleSampler(np.array([], int), 4), "at least one image"),
        (lambda: ShuffleSampler(np.zeros(3, int), 4, rank=2, world_size=2), r"rank 2 is outside"),
    ],
)
def test_wrong_use_is_one_line(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"name": "pk", "identities": 3},
            "data.sampler.identities: 3 needs 3 identities, and the data has 2",
        ),
        ({"name": "shuffle", "batch_size": 0}, "data.sampler.batch_size: must be at least 1, not 0"),
        ({"name": "hard_identity", "identities": 2, "share": 1.0}, "data.sampler.share: must be at least 0"),
        (
            {"name": "hard_identity", "identities": 2, "offline": {"every": 0}},
            "data.sampler.offline.every: must be at least 1, not 0",
        ),
    ],
)
def test_in_a_recipe_an_option_out_of_range_is_named_by_its_path(options, message):
    with pytest.raises(InputError) as caught:
        build_sampler(options, labels=labels_of([4, 4]), seed=0, rank=0, world_size=1)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_recipes_name_samplers_by_their_options():
    labels = labels_of([4] * 10)
    pk = SAMPLERS.build(
        {"name": "pk", "identities": 5, "images": 2}, labels=labels, seed=1, rank=0, world_size=1
    )
    assert (pk.batch_size, pk.identities, pk.images) == (10, 5, 2)
    assert SAMPLERS.names() == ["class_balanced", "hard_identity", "pk", "shuffle"]
    given = ("labels", "seed", "rank", "world_size")
    assert SAMPLERS.problems({"name": "shuffle", "batch_size": 8}, given) == []
    assert "did you mean 'identities'" in SAMPLERS.problems({"name": "pk", "identites": 8}, given)[0]
