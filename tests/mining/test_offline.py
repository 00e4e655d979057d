"""Batches in which images meet the images that they are confused with, against loops over all images."""

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from metricid.errors import InputError
from metricid.mining import HardIdentitySampler, RunningDistances, find_neighbours
from metricid.mining import neighbours as neighbours_module
from metricid.mining.tables import by_owner

ONLY = {"offline": {}, "refresh": None, "guard": None, "warmup": 0}


def cosines(vectors):
    rows = vectors.double().numpy()
    lengths = np.sqrt((rows**2).sum(1))
    return (rows @ rows.T) / np.maximum(lengths[:, None] * lengths[None, :], 1e-30)


def hardest_by_loops(vectors, owners, k):
    """For each image those of others, the most alike first."""
    near, found = cosines(vectors), []
    for i in range(len(owners)):
        others = [
            j for j in range(len(owners)) if owners[j] != owners[i] and vectors[i].any() and vectors[j].any()
        ]
        others.sort(key=lambda j, i=i: (-near[i, j], j))
        found.append((others + [-1] * k)[:k])
    return torch.tensor(found, dtype=torch.int32).view(len(owners), k)


def some(number, dim, seed):
    return torch.randn(number, dim, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(
    owners=st.lists(st.integers(0, 6), min_size=1, max_size=50),
    k=st.integers(1, 12),
    seed=st.integers(0, 10**6),
    unknown=st.integers(0, 3),
    half=st.booleans(),
)
def test_the_hardest_negatives_are_those_of_the_definition(owners, k, seed, unknown, half):
    vectors = some(len(owners), 6, seed)
    vectors[:unknown] = 0
    if half:
        vectors = torch.nn.functional.normalize(vectors, dim=1).half()
    table = find_neighbours(vectors, k, owners=torch.tensor(owners), normalized=half)
    expected = hardest_by_loops(vectors, owners, k)
    assert_close(table.ids, expected, rtol=0, atol=0)
    near = torch.from_numpy(cosines(vectors)).gather(1, expected.clamp_min(0).long())
    assert_close(table.similarity.double(), near.where(expected >= 0, 0.0), rtol=0, atol=1e-3)
    rows = torch.arange(len(owners)).tensor_split(3)
    parts = [find_neighbours(vectors, k, owners=torch.tensor(owners), normalized=half, rows=r) for r in rows]
    assert_close(torch.cat([part.ids for part in parts]), table.ids, rtol=0, atol=0)


def test_above_a_size_the_search_is_approximate_and_never_finds_an_image_of_the_same_identity():
    generator = torch.Generator().manual_seed(1)
    owners = torch.arange(4000) % 100
    people = torch.randn(100, 24, generator=generator)
    vectors = people[owners] + 0.8 * torch.randn(4000, 24, generator=generator)
    exact = find_neighbours(vectors, 10, owners=owners)
    table = find_neighbours(vectors, 10, owners=owners, exact_up_to=1000)
    assert (table.ids >= 0).all()
    assert (owners[table.ids.long()] != owners[:, None]).all()
    same = (exact.ids[:, :, None] == table.ids[:, None, :]).any(2).float().mean()
    assert 0.8 < same < 1 and abs(table.recall - same) < 0.05
    half = torch.arange(1500, 3500)
    part = find_neighbours(vectors, 10, owners=owners, exact_up_to=1000, rows=half)
    assert_close(part.ids, table.ids[half], rtol=0, atol=0)
    alone = find_neighbours(vectors, 3, owners=torch.zeros(4000, dtype=torch.int64), exact_up_to=1000)
    assert (alone.ids == -1).all() and alone.recall == 1.0


def test_owners_have_to_fit():
    with pytest.raises(ValueError, match="4 vectors need as many owners"):
        find_neighbours(torch.ones(4, 2), 1, owners=torch.zeros(3))


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(1, 9), min_size=2, max_size=25),
    identities=st.integers(1, 6),
    images=st.integers(1, 4),
    world=st.integers(1, 3),
    mode=st.sampled_from(["images", "identities"]),
    share=st.sampled_from([0.3, 0.5, 0.8]),
    k=st.integers(1, 8),
    factor=st.sampled_from([2.0, 4.0]),
    far=st.sampled_from([0.0, 0.5, 1.0]),
    guard=st.sampled_from([None, 0.3]),
    temperature=st.sampled_from([0.0, 0.2]),
    seed=st.integers(0, 2**40),
)
def test_batches_hold_the_promises_of_the_sampler(
    counts, identities, images, world, mode, share, k, factor, far, guard, temperature, seed
):
    if len(counts) < identities * world:
        identities, world = 1, 1
    labels = np.random.default_rng(3).permutation(np.repeat(np.arange(len(counts)) * 2, counts))
    vectors = some(len(labels), 3, 0)

    def make(rank, world, identities):
        sampler = HardIdentitySampler(
            labels, identities, images, mode, share=share, max_repeat=factor, far_share=far, guard=guard,
            temperature=temperature, refresh=None, warmup=0, offline={"images": k}, seed=seed, rank=rank,
            world_size=world,
        )  # fmt: skip
        sampler.use_embeddings(vectors)
        return sampler

    ranks = [list(make(rank, world, identities).batches(0)) for rank in range(world)]
    one = make(0, 1, identities * world)
    appearances = dict.fromkeys(np.unique(labels).tolist(), 0)
    for step, alone in zip(zip(*ranks, strict=True), one.batches(0), strict=True):
        joined = np.concatenate(step)
        np.testing.assert_array_equal(joined, alone)
        who = labels[joined].reshape(-1, images)
        assert (who == who[:, :1]).all()
        assert len(set(who[:, 0].tolist())) == identities * world  # nobody twice, nor on two ranks
        for identity, block in zip(who[:, 0].tolist(), joined.reshape(-1, images), strict=True):
            appearances[identity] += 1
            assert len(set(block.tolist())) == min((labels == identity).sum(), images)
    mean = sum(appearances.values()) / len(appearances)
    assert min(appearances.values()) >= 1 and max(appearances.values()) <= math.ceil(factor * mean)
    start = one.num_batches(0) // 2
    again = make(0, 1, identities * world)
    whole = list(one.batches(0))
    for got, expected in zip(again.batches(0, start), whole[start:], strict=True):
        np.testing.assert_array_equal(got, expected)


def test_each_image_stands_beside_its_hardest_negative():
    labels, vectors = np.repeat(np.arange(60), 3), some(180, 8, 0)
    hardest = hardest_by_loops(vectors, labels, 1)[:, 0].tolist()
    sampler = HardIdentitySampler(labels, 2, 1, "identities", temperature=0.0, max_repeat=60, **ONLY)
    sampler.use_embeddings(vectors)
    met = [tuple(batch.tolist()) for epoch in range(3) for batch in sampler.batches(epoch)]
    assert len(met) == 180 and all(other == hardest[seed] for seed, other in met)


def test_with_several_images_the_one_that_one_of_the_seed_is_confused_with_is_shown():
    labels, vectors = np.repeat(np.arange(40), 8), some(320, 16, 0)
    hardest, alike = hardest_by_loops(vectors, labels, 4).numpy(), cosines(vectors)
    sampler = HardIdentitySampler(
        labels, 2, 3, "identities", temperature=0.0, max_repeat=60, **(ONLY | {"offline": {"images": 4}})
    )
    sampler.use_embeddings(vectors)
    for epoch in range(3):
        for batch in sampler.batches(epoch):
            seed, other = batch.reshape(2, 3)
            near = {image: alike[seed, image].max() for image in set(hardest[seed].ravel().tolist())}
            shown = [image for image in near if labels[image] == labels[other[0]]]
            assert max(near[image] for image in shown) >= max(near.values()) - 1e-3  # 16 bits
            shown.sort(key=lambda image, near=near: -near[image])
            assert set(shown[:3]) <= set(other.tolist())


def test_where_no_images_are_left_the_table_of_identities_is_asked():
    """Image 0 of each identity looks like its partner's; the directions of identities make others alike."""
    labels = np.repeat(np.arange(30), 2)
    sampler = HardIdentitySampler(
        labels,
        4,
        1,
        "identities",
        share=0.75,
        temperature=0.0,
        max_repeat=60,
        **(ONLY | {"offline": {"images": 1}}),
    )
    vectors = some(60, 5, 2)
    found = sampler.use_embeddings(vectors)
    whole = vectors.view(30, 2, 5) / vectors.view(30, 2, 5).norm(dim=2, keepdim=True)
    near = torch.from_numpy(cosines(whole.sum(1))).fill_diagonal_(-2)
    assert_close(found.identities.ids[:, :3].long(), near.topk(3).indices, rtol=0, atol=0)
    hardest = hardest_by_loops(vectors, labels, 1)[:, 0].numpy()
    for batch in sampler.batches(0):
        seed, *others = batch.tolist()
        first = labels[hardest[seed]]
        ranked = [
            i for i in near[labels[seed]].argsort(descending=True).tolist() if i not in (first, labels[seed])
        ]
        assert labels[others].tolist() == [first, *ranked[:2]]
        assert others[0] == hardest[seed]


def test_the_pass_says_how_far_each_image_is():
    labels, vectors = np.repeat(np.arange(8), 16), some(128, 6, 1)
    sampler = HardIdentitySampler(labels, 4, 4, far_share=1.0, **ONLY)
    before = set(np.concatenate(list(sampler.batches(0))).tolist())
    found = sampler.use_embeddings(vectors)
    unit = vectors.double() / vectors.double().norm(dim=1, keepdim=True)
    expected = 1 - torch.stack(
        [torch.cosine_similarity(unit[i], unit[labels == labels[i]].mean(0), dim=0) for i in range(128)]
    )
    np.testing.assert_allclose(found.distances, expected.numpy(), atol=1e-5)
    farthest = {
        i
        for k in range(8)
        for i in np.flatnonzero(labels == k)[np.argsort(-expected.numpy()[labels == k])[:4]]
    }
    confused = HardIdentitySampler(labels, 4, 4, far_share=1.0, share=0.0, **ONLY)
    confused.use_embeddings(vectors)
    assert set(np.concatenate(list(confused.batches(0))).tolist()) == farthest
    assert len(before) > 100


def test_images_above_the_guard_bring_nobody_together():
    """Each identity has an image that is nearly that of its twin, and one somewhat like a cousin's."""
    number = 300
    rng = torch.Generator().manual_seed(0)
    twin, cousin = torch.randn(150, 64, generator=rng), torch.randn(150, 64, generator=rng)
    own = torch.randn(number, 64, generator=rng)
    who = torch.arange(number)
    rows = torch.stack([twin[who // 2], cousin[(who + 1) % number // 2] + 0.6 * own, own], 1).reshape(-1, 64)
    labels = np.repeat(np.arange(number), 3)
    together = {}
    for guard in (None, 0.95):
        sampler = HardIdentitySampler(
            labels, 4, 3, "identities", temperature=0.0, **(ONLY | {"guard": guard, "offline": {"images": 2}})
        )
        sampler.use_embeddings(rows)
        batches = [set(labels[batch].tolist()) for batch in sampler.batches(0)]
        together[guard] = sum(len(batch & {i ^ 1 for i in batch}) for batch in batches)
    assert together[None] > 250
    assert together[0.95] < 30


def test_images_that_could_not_be_embedded_are_nobodys():
    labels, vectors = np.repeat(np.arange(10), 4), some(40, 6, 0)
    vectors[[3, 17]] = 0
    sampler = HardIdentitySampler(labels, 4, 2, far_share=0.5, **ONLY)
    found = sampler.use_embeddings(vectors)
    assert (found.images.ids[[3, 17]] == -1).all() and not torch.isin(
        found.images.ids, torch.tensor([3, 17])
    ).any()
    assert found.distances[[3, 17]].tolist() == [0, 0]
    assert len(list(sampler.batches(0))) == sampler.num_batches(0)


OPTIONS = {
    "share": 0.75, "warmup": 7, "neighbours": 4, "refresh": 6, "delay": 5, "far_share": 0.5,
    "offline": {"every": 2, "images": 5},
}  # fmt: skip
LABELS = np.repeat(np.arange(12), 3)


def run(sampler, vectors, epochs, ahead, stop=None):
    """Trains without a network: every batch moves the embeddings of its images. Gives the batches used."""
    log, length = [], sampler.num_batches(0)
    first, skip = divmod(sampler.state_dict()["done"], length)
    for epoch in range(first, epochs):
        if not skip and sampler.offline_due(epoch):
            sampler.use_embeddings(vectors)
        stream, queue = sampler.batches(epoch, skip), []
        for batch in range(skip, length):
            while len(queue) <= ahead and (new := next(stream, None)) is not None:
                queue.append(new)
            used = queue.pop(0)
            log.append(used)
            done = epoch * length + batch + 1
            vectors[used] += 0.3 * some(len(used), 5, done)
            sampler.after_step(done, lambda: vectors.view(12, 3, 5).mean(1))
            if done == stop:
                return log
        skip = 0
    return log


def make():
    return HardIdentitySampler(LABELS, 4, 2, seed=5, **OPTIONS)


def test_a_run_that_is_continued_anywhere_draws_the_same_batches():
    whole = run(make(), some(36, 5, 0), 4, ahead=0)
    length = make().num_batches(0)
    for stop in range(1, 4 * length, 2):
        sampler, vectors = make(), some(36, 5, 0)
        first = run(sampler, vectors, 4, ahead=stop % 5, stop=stop)
        file = io.BytesIO()
        torch.save(sampler.state_dict(), file)
        file.seek(0)
        again = make()
        again.load_state_dict(torch.load(file, weights_only=True))
        rest = run(again, vectors, 4, ahead=(stop + 2) % 5)
        np.testing.assert_array_equal(np.stack(first + rest), np.stack(whole))


def test_a_pass_is_due_before_every_nth_epoch_after_the_warm_up():
    def due(**options):
        sampler = HardIdentitySampler(LABELS, 4, 2, **({"refresh": None} | options))
        assert sampler.num_batches(0) == 6
        return [epoch for epoch in range(7) if sampler.offline_due(epoch)]

    assert due(offline={}) == [1, 2, 3, 4, 5, 6]  # the first epoch is random
    assert due(offline={"every": 2}, warmup=0) == [0, 2, 4, 6]
    assert due(offline={"every": 3}, warmup=7) == [2, 5]
    assert due(offline=None) == []
    sampler = HardIdentitySampler(LABELS, 4, 2, **ONLY)
    sampler.use_embeddings(some(36, 5, 0))
    assert not sampler.offline_due(0) and sampler.offline_due(1)


def test_status_tells_the_age_of_the_pass():
    sampler, vectors = make(), some(36, 5, 0)
    length = sampler.num_batches(0)
    run(sampler, vectors, 4, ahead=0, stop=length)
    assert sampler.status()["offline_age"] is None
    run(sampler, vectors, 4, ahead=0, stop=2 * length + 1)
    assert sampler.status()["offline_age"] == length  # epochs 1 and 3 have a pass
    run(sampler, vectors, 4, ahead=0, stop=3 * length + 3)
    assert sampler.status()["offline_age"] == 2


def test_epochs_whose_tables_are_gone_are_not_drawn_differently():
    sampler = make()
    run(sampler, some(36, 5, 0), 6, ahead=0)
    with pytest.raises(RuntimeError, match="no longer kept"):
        list(sampler.batches(2))


@pytest.mark.parametrize(
    ("offline", "message"),
    [
        ({"every": 0}, "offline.every: must be at least 1, not 0"),
        ({"images": -1}, "offline.images: must be at least 1, not -1"),
        ({"images": "many"}, "offline.images: expected an integer, got 'many'"),
        ({"evry": 1}, "offline: unknown option 'evry'; did you mean 'every'"),
    ],
)
def test_wrong_options_are_one_line(offline, message):
    with pytest.raises(InputError, match=message) as raised:
        HardIdentitySampler(LABELS, 4, 2, offline=offline)
    assert "\n" not in str(raised.value)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="needs offline"):
        HardIdentitySampler(LABELS, 4, 2).use_embeddings(some(36, 5, 0))
    with pytest.raises(ValueError, match=r"\[36, D\], one row per image, not \(12, 5\)"):
        make().use_embeddings(some(12, 5, 0))
    with pytest.raises(ValueError, match="not finite"):
        make().use_embeddings(some(36, 5, 0).index_fill_(0, torch.tensor([3]), torch.nan))


def test_images_in_an_order_are_identities_in_an_order():
    owners = np.array([0, 0, 1, 1, 2])
    assert list(by_owner(np.array([3, 4, 0, 2, 3], np.int32), owners)) == [(1, [3, 2]), (2, [4]), (0, [0])]


@given(
    batches=st.lists(
        st.lists(st.tuples(st.integers(0, 5), st.floats(0, 2, width=32)), max_size=8), max_size=6
    )
)
def test_the_record_of_distances_is_the_last_of_each_image(batches):
    record, expected = RunningDistances(6), {}
    for batch in batches:
        rows = [row for row, _ in batch]
        record.update(torch.tensor([value for _, value in batch]), torch.tensor(rows, dtype=torch.int64))
        for row in set(rows):
            expected[row] = np.mean([value for one, value in batch if one == row])
    known = record.known(otherwise=-1.0)
    np.testing.assert_allclose(known, [expected.get(row, -1.0) for row in range(6)], rtol=1e-5, atol=1e-6)
    other = RunningDistances(6)
    other.load_state_dict(record.state_dict())
    assert_close(other.known(otherwise=-1.0), known, rtol=0, atol=0)


def test_a_large_set_is_searched_on_the_way_that_is_for_it(monkeypatch):
    """The sampler hands its `exact_up_to` on."""
    seen = []
    original = neighbours_module.partitioned_search
    monkeypatch.setattr(
        neighbours_module,
        "partitioned_search",
        lambda *a, **k: (seen.append(len(a[0])), original(*a, **k))[1],
    )
    labels = np.repeat(np.arange(200), 10)
    sampler = HardIdentitySampler(labels, 4, 2, exact_up_to=1500, **ONLY)
    found = sampler.use_embeddings(some(2000, 8, 0))
    assert seen == [2000] and 0.5 < found.images.recall <= 1 and found.identities.recall == 1
