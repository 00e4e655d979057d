"""The promises of the hard-identity sampler, checked batch by batch."""

import io
import math
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from metricid.data.samplers import SAMPLERS
from metricid.errors import InputError
from metricid.mining import BackgroundSearch, HardIdentitySampler, Neighbours, find_neighbours

FREE = {"refresh": None, "guard": None}


def labels_of(counts, seed=0):
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)) * 3 + 5, counts))


def joined(make, world, epoch, start=0):
    """Steps of an epoch: the batches of all ranks, one after the other."""
    ranks = [list(make(rank, world).batches(epoch, start)) for rank in range(world)]
    return [np.concatenate(step) for step in zip(*ranks, strict=True)]


def random_table(number, k, seed):
    """Any table: nobody its own neighbour, some columns empty, hubs that everyone is confused with."""
    rng = np.random.default_rng(seed)
    weights = rng.random((number, number)) * rng.random(number) ** 4
    np.fill_diagonal(weights, -1)
    ids = np.argsort(-weights, axis=1)[:, :k]
    ids = np.where(np.take_along_axis(weights, ids, 1) > 0.02, ids, -1)
    similarity = np.where(ids >= 0, np.sort(rng.random(ids.shape), axis=1)[:, ::-1], 0)
    return Neighbours(torch.from_numpy(ids.astype(np.int32)), torch.from_numpy(similarity).half())


@settings(max_examples=150, deadline=None)
@given(
    counts=st.lists(st.integers(1, 12), min_size=2, max_size=40),
    identities=st.integers(1, 8),
    images=st.integers(1, 5),
    world=st.integers(1, 3),
    mode=st.sampled_from(["images", "identities"]),
    share=st.sampled_from([0.0, 0.3, 0.5, 0.75, 0.95]),
    k=st.integers(1, 12),
    factor=st.sampled_from([2.0, 2.5, 4.0]),
    far=st.sampled_from([0.0, 0.07, 0.5, 0.85, 1.0]),
    guard=st.sampled_from([None, 0.5]),
    seed=st.integers(-5, 2**40),
    epoch=st.integers(0, 3),
)
def test_batches_hold_their_promises(
    counts, identities, images, world, mode, share, k, factor, far, guard, seed, epoch
):
    if len(counts) < identities * world:
        identities, world = 1, 1
    labels, table = labels_of(counts, 3), random_table(len(counts), k, 7)
    distances = np.random.default_rng(1).random(len(labels))

    def make(rank, world):
        options = {"epoch": mode, "share": share, "max_repeat": factor, "far_share": far, "refresh": None}
        given_by_caller = {"seed": seed, "rank": rank, "world_size": world}
        sampler = HardIdentitySampler(labels, identities, images, guard=guard, **options, **given_by_caller)
        sampler.use(table)
        sampler.set_distances(distances)
        return sampler

    one = make(0, 1)
    steps = joined(make, world, epoch)
    assert len(steps) == make(0, world).num_batches(epoch)
    appearances = dict.fromkeys(np.unique(labels).tolist(), 0)
    for step in steps:
        assert step.dtype == np.int64 and step.shape == (identities * images * world,)
        who = labels[step].reshape(-1, images)
        assert (who == who[:, :1]).all()
        assert len(set(who[:, 0].tolist())) == identities * world  # nobody twice, nor on two ranks
        for identity, block in zip(who[:, 0].tolist(), step.reshape(-1, images), strict=True):
            appearances[identity] += 1
            times = np.unique(block, return_counts=True)[1]
            assert len(times) == min((labels == identity).sum(), images)
            assert times.max() - times.min() <= 1
    mean = sum(appearances.values()) / len(appearances)
    assert min(appearances.values()) >= 1
    assert max(appearances.values()) <= math.ceil(factor * mean)
    if world == 1:
        start = len(steps) // 2
        np.testing.assert_array_equal(
            np.stack(steps[start:] or [0]), np.stack(list(one.batches(epoch, start)) or [0])
        )


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_together_draw_what_one_process_draws(world):
    labels, table = labels_of([3, 9, 5, 7, 1, 1, 12, 4, 4, 8, 20, 2, 6]), random_table(13, 6, 0)

    def make(rank, world):
        sampler = HardIdentitySampler(labels, 6 // world, 3, seed=4, rank=rank, world_size=world, **FREE)
        sampler.use(table)
        return sampler

    for one, many in zip(joined(make, 1, 2), joined(make, world, 2), strict=True):
        np.testing.assert_array_equal(one, many)


def families(number, size):
    """A table in which the members of each family of `size` are each other's neighbours."""
    ids = [[j for j in range(i - i % size, i - i % size + size) if j != i] for i in range(number)]
    values = torch.full((number, size - 1), 0.6).half()
    return Neighbours(torch.tensor(ids, dtype=torch.int32), values)


@pytest.mark.parametrize(("share", "beside"), [(0.0, 0), (0.5, 1), (0.75, 3)])
def test_each_seed_stands_beside_its_share_of_look_alikes(share, beside):
    labels = np.repeat(np.arange(4000), 2)
    sampler = HardIdentitySampler(labels, 16, 2, "identities", share=share, **FREE)
    sampler.use(families(4000, 20))
    met = []
    for batch in sampler.batches(0):
        family = labels[batch].reshape(16, 2)[:, 0] // 20
        met.append((family[:, None] == family).sum(1).mean() - 1)
    assert len(met) == 4000 / (16 * (1 - share))
    assert abs(np.mean(met) - beside) < 0.15 + 0.1 * beside


def test_the_draw_follows_the_softmax_of_the_similarity():
    number, temperature = 400, 0.2
    offsets = np.array([1, 2, 3])
    ids = (np.arange(number)[:, None] + 100 * offsets) % number
    values = torch.tensor([[0.8, 0.5, 0.3]]).half().repeat(number, 1)
    sampler = HardIdentitySampler(
        np.repeat(np.arange(number), 2), 2, 1, temperature=temperature, max_repeat=1000, **FREE
    )
    sampler.use(Neighbours(torch.from_numpy(ids.astype(np.int32)), values))
    found = np.zeros(3)
    for epoch in range(12):
        pairs = np.stack(list(sampler.batches(epoch))) // 2
        step = (pairs[:, 1] - pairs[:, 0]) % number // 100
        found += np.bincount(step, minlength=4)[1:]
    weights = np.exp(np.array([0.8, 0.5, 0.3]) / temperature)
    total = found.sum()
    np.testing.assert_allclose(found / total, weights / weights.sum(), atol=4 * 0.5 / np.sqrt(total))


def test_temperature_zero_takes_the_nearest():
    table = random_table(60, 5, 3)
    sampler = HardIdentitySampler(np.arange(60), 2, 1, temperature=0.0, max_repeat=60, **FREE)
    sampler.use(table)
    for seed, other in sampler.batches(0):
        assert other == table.ids[seed, 0] or table.ids[seed, 0] == -1


def test_pairs_above_the_guard_are_not_put_together_on_purpose_and_are_listed():
    """Twins 2i, 2i+1 and a cousin of both: neither a twin's seed nor a cousin's brings the pair together."""
    number = 300
    names = np.arange(number)
    twin, cousin = names ^ 1, (names + 10) % number
    ids = torch.from_numpy(np.stack([twin, cousin, cousin ^ 1], 1).astype(np.int32))
    table = Neighbours(ids, torch.tensor([[0.97, 0.7, 0.7]]).half().repeat(number, 1))
    together = {}
    for guard in (None, 0.9):
        sampler = HardIdentitySampler(
            names, 4, 1, "identities", share=0.75, guard=guard, refresh=None, temperature=1.0
        )
        sampler.use(table)
        together[guard] = sum(len(set(b.tolist()) & {i ^ 1 for i in b.tolist()}) for b in sampler.batches(0))
        pairs, values = sampler.suspects()
        if guard is None:
            assert len(pairs) == 0
        else:
            assert pairs.tolist() == [[i, i + 1] for i in range(0, number, 2)]
            assert torch.allclose(values, torch.tensor(0.97), atol=1e-3)
    assert together[None] > 200
    assert together[0.9] < 40  # by chance: 300 batches with 6 pairs each, of which one in 299 is a twin's


@pytest.mark.parametrize("one_sided", [0, 1])
def test_the_guard_holds_when_only_one_side_lists_the_pair(one_sided):
    """0 and 1 are twins, and both are neighbours of 2; 0 lists 1 or 1 lists 0."""
    ids = torch.full((12, 3), -1, dtype=torch.int32)
    values = torch.zeros(12, 3).half()
    ids[2, :2], values[2, :2] = torch.tensor([0, 1], dtype=torch.int32), torch.tensor([0.6, 0.6]).half()
    ids[one_sided, 0], values[one_sided, 0] = 1 - one_sided, 0.97
    for guard in (None, 0.95):
        sampler = HardIdentitySampler(
            np.arange(12), 3, 1, share=0.7, guard=guard, refresh=None, max_repeat=12
        )
        sampler.use(Neighbours(ids, values))
        beside = [
            set(batch[1:3].tolist()) & {0, 1}
            for e in range(40)
            for batch in sampler.batches(e)
            if batch[0] == 2
        ]
        assert len(beside) > 30
        together = sum(len(found) == 2 for found in beside)
        # With the guard a random identity fills the place, the twin one time in ten.
        assert together == len(beside) if guard is None else together < 13


class Model:
    """A training without a network: one vector per identity, moved a little by every batch it is in."""

    def __init__(self, number):
        self.vectors = torch.randn(number, 5, generator=torch.Generator().manual_seed(0))

    def step(self, identities, done):
        noise = torch.randn(len(identities), 5, generator=torch.Generator().manual_seed(done))
        self.vectors[identities] += 0.3 * noise


OPTIONS = {
    "share": 0.75, "share_start": 0.25, "ramp": 9, "warmup": 7, "neighbours": 4, "refresh": 6, "delay": 5,
    "far_share": 0.35,
}  # fmt: skip


def run(sampler, model, epochs, ahead, stop=None, log=None):
    """Trains; the loader draws `ahead` batches before they are used. Gives the batches used."""
    log = [] if log is None else log
    labels = np.repeat(np.arange(30), 3)
    length = sampler.num_batches(0)
    first, skip = divmod(sampler.state_dict()["done"], length)
    for epoch in range(first, epochs):
        stream, queue = sampler.batches(epoch, skip), []
        for batch in range(skip, length):
            while len(queue) <= ahead and (new := next(stream, None)) is not None:
                queue.append(new)
            used = queue.pop(0)
            log.append(used)
            done = epoch * length + batch + 1
            model.step(np.unique(labels[used]), done)
            sampler.after_step(done, lambda: model.vectors)
            if done % 11 == 0:
                sampler.set_distances(np.random.default_rng(done).random(90))
            if done == stop:
                return log
        skip = 0
    return log


def make(**changes):
    return HardIdentitySampler(np.repeat(np.arange(30), 3), 4, 2, seed=5, **(OPTIONS | changes))


def test_a_run_that_is_continued_anywhere_draws_the_same_batches():
    whole = run(make(), Model(30), 2, ahead=0)
    assert len(whole) == 2 * make().num_batches(0) == 60
    for stop in range(1, 60):
        sampler, model = make(), Model(30)
        first = run(sampler, model, 2, ahead=stop % 5, stop=stop)
        file = io.BytesIO()
        torch.save(sampler.state_dict(), file)
        file.seek(0)
        again = make()
        again.load_state_dict(torch.load(file, weights_only=True))
        rest = run(again, model, 2, ahead=(stop + 2) % 5)
        np.testing.assert_array_equal(np.stack(first + rest), np.stack(whole))


def test_tables_come_into_force_at_their_batch_however_long_the_search_takes(monkeypatch):
    expected = run(make(), Model(30), 1, ahead=0)
    gate = threading.Event()
    monkeypatch.setattr(
        "metricid.mining.background.find_neighbours",
        lambda *a, **k: (gate.wait(10), find_neighbours(*a, **k))[1],
    )
    sampler = make()
    waits = []

    def release(*_):
        waits.append(gate.is_set())
        gate.set()

    stepped = []
    original = sampler.after_step
    sampler.after_step = lambda done, vectors: (
        original(done, vectors),
        stepped.append(done),
        done == 4 and release(),
    )
    got = run(sampler, Model(30), 1, ahead=0)
    assert waits == [False]  # steps went on while the first search, begun after 2, could not end
    np.testing.assert_array_equal(np.stack(got), np.stack(expected))


def test_status_tells_the_age_of_the_table_and_the_share_reached():
    sampler, model = make(), Model(30)
    assert sampler.status()["table_age"] is None and sampler.status()["hard_share"] is None
    for done, age in ((7, None), (8, 5), (13, 10), (14, 5)):
        sampler, model = make(), Model(30)
        run(sampler, model, 1, ahead=0, stop=done)
        assert sampler.status()["table_age"] == age
    run(sampler, model, 2, ahead=2, stop=40)
    status = sampler.status()
    assert status["hard_share"] == 0.75  # the ramp is over
    assert status["search_seconds"] > 0 and status["search_recall"] == 1.0
    assert status["search_waited_seconds"] >= 0


def test_the_share_rises_from_the_warm_up_on():
    sampler = make()
    run(sampler, Model(30), 1, ahead=0)
    shares = [step.hard for step in sampler._course.steps]
    assert shares[:7] == [0] * 7
    assert shares[7] == 1 and shares[16:] == [3] * 14
    assert shares[7:17] == sorted(shares[7:17])


def test_a_loader_that_draws_too_far_ahead_is_told():
    with pytest.raises(RuntimeError, match=r"sampler\.delay"):
        run(make(), Model(30), 2, ahead=6)


@pytest.mark.parametrize(("epoch", "start"), [(-1, 0), (0, -1), (0, 10**6)])
def test_a_batch_that_does_not_exist_is_refused(epoch, start):
    with pytest.raises(ValueError, match=f"no batch {start} of epoch {epoch}"):
        next(make(refresh=None, delay=None).batches(epoch, start))


@pytest.mark.parametrize(
    ("options", "random"),
    [
        ({}, 7),
        ({"warmup": 3}, 6),
        ({"delay": None}, 10),  # begun after 4 of the 7, and 6 later
        ({"refresh": None, "delay": None}, None),
        ({"refresh": None, "delay": None, "offline": {}}, 30),
    ],
)
def test_how_many_batches_are_random(options, random):
    assert make(**options).random_batches == random


def test_what_is_no_table_of_the_identities_is_refused():
    table, sampler = random_table(30, 4, 0), make(refresh=None, delay=None)
    ids, similarity = table.ids, table.similarity
    for wrong, message in (
        (Neighbours(ids[:29], similarity[:29]), "29 rows for 30"),
        (Neighbours(ids, similarity[:, :2]), "of one shape"),
        (Neighbours(ids[:, :0], similarity[:, :0]), "of one shape"),
        (Neighbours(ids + 1, similarity), "ids from 0 to 29"),
    ):
        with pytest.raises(ValueError, match=message):
            sampler.use(wrong)
    with pytest.raises(InputError, match="no state of a hard_identity sampler"):
        sampler.load_state_dict({})
    with pytest.raises(ValueError, match=r"a tensor \[30, D\], not a ndarray"):
        make().after_step(2, np.zeros((30, 4)))


def test_a_program_that_ends_during_a_search_ends_well():
    """With a search so long that it is at work, in the exact way and in the approximate one."""
    script = """
import sys, time, torch
from metricid.mining import BackgroundSearch
search = BackgroundSearch(torch.randn(60_000, 64), 10, exact_up_to=int(sys.argv[1]))
time.sleep(0.3)
assert not search.ready
sys.exit(7)
"""
    for exact_up_to in ("100000", "10"):
        found = subprocess.run([sys.executable, "-c", script, exact_up_to], capture_output=True, text=True)
        assert found.returncode == 7, found.stderr


def test_a_search_that_is_stopped_ends():
    search = BackgroundSearch(torch.randn(60_000, 64), 10)
    search.end()
    assert search.ready
    with pytest.raises(InterruptedError, match="was stopped"):
        search.result()


def test_forgetting_after_step_is_told():
    with pytest.raises(RuntimeError, match="after_step has not been called"):
        list(make().batches(0))


def test_batches_whose_tables_are_gone_are_not_drawn_differently():
    sampler = make()
    run(sampler, Model(30), 2, ahead=0)
    with pytest.raises(RuntimeError, match="no longer kept"):
        list(sampler.batches(1, 1)) and list(sampler.batches(0))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_data_loader_of_pytorch_takes_the_sampler_epoch_by_epoch(workers):
    sampler, expected = make(refresh=None, delay=None), make(refresh=None, delay=None)
    for one in (sampler, expected):
        one.use(random_table(30, 4, 0))
    loader = DataLoader(TensorDataset(torch.arange(90)), batch_sampler=sampler, num_workers=workers)
    assert len(loader) == 30
    done = 0
    for epoch in range(3):
        for (rows,), wanted in zip(loader, expected.batches(epoch), strict=True):
            np.testing.assert_array_equal(rows.numpy(), wanted)
            done += 1
            sampler.after_step(done)
            expected.after_step(done)
    assert sampler.state_dict()["done"] == 90


def test_the_registry_builds_it():
    sampler = SAMPLERS.build(
        {"name": "hard_identity", "identities": 4, "images": 2, "guard": None},
        labels=np.repeat(np.arange(9), 2), seed=1, rank=1, world_size=2,
    )  # fmt: skip
    assert isinstance(sampler, HardIdentitySampler)
    assert (sampler.batch_size, sampler.rank, sampler.world_size) == (8, 1, 2)
    assert SAMPLERS.problems({"name": "hard_identity", "share": "much"}, ("labels",)) != []


def test_what_does_not_fit_is_refused():
    sampler = make()
    with pytest.raises(ValueError, match="30 identities"):
        sampler.after_step(2, torch.randn(29, 5))
    with pytest.raises(ValueError, match="refresh=None"):
        sampler.use(random_table(30, 4, 0))
    with pytest.raises(ValueError, match="29 rows for 30"):
        make(refresh=None, delay=None).use(random_table(29, 4, 0))
    with pytest.raises(ValueError, match=r"\[90\] finite"):
        sampler.set_distances(np.zeros(89))
    with pytest.raises(InputError, match="of 2 identities"):
        state = HardIdentitySampler(np.array([1, 2]), 2, 1).state_dict()
        sampler.load_state_dict(state)
    other = HardIdentitySampler(np.repeat(np.arange(30), 3), 4, 2, seed=6, **(OPTIONS | {"offline": {}}))
    with pytest.raises(
        InputError, match=r"with seed 6 \(here 5\), offline \{'every': 1, 'images': 20\} \(here None\); make"
    ):
        sampler.load_state_dict(other.state_dict())
    with pytest.raises(InputError, match="one label per image"):
        HardIdentitySampler(np.array([]))
    with pytest.raises(InputError, match="one identity only"):
        HardIdentitySampler(np.array([1, 1]), 1)


def test_a_state_with_numbers_of_numpy_among_the_options_is_read_again():
    options = {"share": np.float64(0.25), "temperature": np.float32(0.5).astype(float)}
    file = io.BytesIO()
    torch.save(make(**options).state_dict(), file)
    file.seek(0)
    make(share=0.25, temperature=0.5).load_state_dict(torch.load(file, weights_only=True))
