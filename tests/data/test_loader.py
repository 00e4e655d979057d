import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch
from image_files import encoded, picture

from metricid.data import loader as loader_module
from metricid.data.dataset import ImageDataset
from metricid.data.decode import ImageError
from metricid.data.loader import Loader
from metricid.data.manifest import Manifest
from metricid.data.ordered import iterate_images
from metricid.data.samplers import PKSampler, ShuffleSampler
from metricid.data.sources import open_source
from metricid.data.transforms import build_transform
from metricid.errors import InputError

NAMES = [f"{who}/{i}.png" for who in "abcdef" for i in range(4)]
MANIFEST = Manifest.from_columns(NAMES, [name[0] for name in NAMES])
PLAIN = build_transform("plain", (24, 20), False)


@pytest.fixture
def root(write_images):
    return write_images(NAMES)


def loader(root, workers=0, sampler=None, transform=None, on_corrupt="error", **options):
    labels = MANIFEST.labels()
    images = ImageDataset(
        open_source(root),
        MANIFEST,
        labels,
        transform or build_transform("face", (24, 20), True),
        seed=3,
        on_corrupt=on_corrupt,
    )
    return Loader(images, sampler or PKSampler(labels, 2, 2, seed=1), workers=workers, **options)


def drawn(loader, epoch, start=0):
    batches = list(loader.epoch(epoch, start))
    return [torch.cat([getattr(b, name) for b in batches]).numpy() for name in ("images", "labels", "index")]


def assert_same(one, two):
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)


def test_batches_hold_the_sampled_images(root):
    batches = loader(root, sampler=ShuffleSampler(MANIFEST.labels(), 6, seed=2), transform=PLAIN)
    images, labels, index = drawn(batches, 0)
    assert images.dtype == np.uint8
    assert labels.dtype == index.dtype == np.int64
    assert sorted(index) == list(range(24))
    np.testing.assert_array_equal(images, np.stack([picture(row) for row in index]))
    np.testing.assert_array_equal(labels, MANIFEST.labels()[index])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_do_not_change_a_pixel_in_any_epoch(root, pack, workers):
    alone, together = loader(root), loader(pack(root), workers, prefetch=1)
    for epoch in (0, 1, 5):
        assert_same(drawn(alone, epoch), drawn(together, epoch))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_can_start_anywhere_and_be_left_anywhere(root, workers):
    batches = loader(root, workers)
    whole = drawn(batches, 2)
    for start in (0, 1, 4):
        assert_same(drawn(batches, 2, start), [part[start * 4 :] for part in whole])
    for _ in batches.epoch(2):
        break
    assert_same(drawn(batches, 2), whole)
    assert batches.num_batches(2) == len(whole[0]) // 4


def test_epochs_and_positions_are_augmented_differently(root):
    batches = loader(root, transform=lambda image, seed: np.full((2, 2, 3), seed % 256, np.uint8))
    values = np.concatenate([drawn(batches, epoch)[0][:, 0, 0, 0] for epoch in range(8)])
    assert len(set(values.tolist())) > 90


def test_the_ranks_of_a_step_draw_the_pixels_of_one_process(root):
    labels = MANIFEST.labels()
    one = drawn(loader(root, sampler=PKSampler(labels, 4, 2, seed=1)), 1)
    ranks = [
        drawn(loader(root, sampler=PKSampler(labels, 2, 2, seed=1, rank=rank, world_size=2)), 1)
        for rank in range(2)
    ]
    for whole, *parts in zip(one, *ranks, strict=True):
        split = [part.reshape(-1, 4, *part.shape[1:]) for part in parts]
        np.testing.assert_array_equal(np.concatenate(split, axis=1).reshape(whole.shape), whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_is_one_line_without_a_traceback(root, workers):
    (root / "c/1.png").write_bytes(b"")
    with pytest.raises(ImageError) as caught:
        drawn(loader(root, workers), 0)
    assert str(caught.value) == f"{root}/c/1.png: the file is empty"


def test_after_an_error_or_a_close_the_loader_starts_again(root):
    data = (root / "c/1.png").read_bytes()
    (root / "c/1.png").write_bytes(b"")
    batches, others = loader(root, 2), set(multiprocessing.active_children())
    with pytest.raises(ImageError) as caught:  # a handler keeps the traceback, and with it the frames
        drawn(batches, 0)
    assert batches._loader is None
    assert set(multiprocessing.active_children()) <= others, "workers were not released at once"
    del caught
    (root / "c/1.png").write_bytes(data)
    assert_same(drawn(batches, 1), drawn(loader(root), 1))
    batches.close()
    assert_same(drawn(batches, 2), drawn(loader(root), 2))


def test_skipped_images_are_replaced_within_the_identity_and_listed_once(root):
    for name in ("c/1.png", "e/3.png"):
        (root / name).write_bytes(b"no image")
    alone, together = (loader(root, workers, on_corrupt="skip") for workers in (0, 2))
    for epoch in range(3):
        images, labels, index = drawn(alone, epoch)
        assert_same((images, labels, index), drawn(together, epoch))
        assert len(images) == 24
        np.testing.assert_array_equal(labels, MANIFEST.labels()[index])
        assert not {NAMES.index("c/1.png"), NAMES.index("e/3.png")} & set(index)
    assert sorted(alone.corrupt) == sorted(together.corrupt) == ["c/1.png", "e/3.png"]


@pytest.mark.parametrize("kind", [ZeroDivisionError, RuntimeError])
def test_other_errors_keep_their_traceback(root, kind):
    def broken(image, seed):
        raise kind("a bug")

    with pytest.raises(kind, match=r"(?s)in broken.*a bug"):
        drawn(loader(root, 1, transform=broken), 0)


def test_want_of_shared_memory_in_a_worker_is_one_line(root):
    def full(image, seed):
        raise RuntimeError("unable to write to file </torch_1>: No space left on device (28)")

    with pytest.raises(InputError, match="want of memory or of shared memory"):
        drawn(loader(root, 1, transform=full), 0)


def test_a_killed_worker_is_one_line(root):
    def kill(image, seed):
        os.kill(os.getpid(), signal.SIGKILL)
        return image

    with pytest.raises(InputError, match="a loader process was killed, .* use fewer data.workers"):
        drawn(loader(root, 1, transform=kill), 0)


def test_waiting_time_is_counted(root):
    def slow(image, seed):
        time.sleep(0.01)
        return image

    batches = loader(root, transform=slow)
    drawn(batches, 0)
    assert batches.wait_seconds >= 0.24
    quick = loader(root, 1, transform=PLAIN)
    stream = quick.epoch(0)
    next(stream)
    before, began = quick.wait_seconds, time.perf_counter()
    for _ in range(3):
        time.sleep(0.3)
        next(stream)
    assert quick.wait_seconds - before <= time.perf_counter() - began - 0.9, "its own work is no waiting"


def test_impossible_options_are_named(root):
    for options in ({"workers": -1}, {"workers": 1, "prefetch": 0}):
        with pytest.raises(InputError, match="workers must be 0 or more and prefetch 1 or more"):
            loader(root, **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_inference_goes_in_order(root, workers):
    paths = NAMES[::-1][:11]
    batches = list(iterate_images(open_source(root), paths, PLAIN, 4, workers))
    assert [len(images) for images, _ in batches] == [4, 4, 3]
    assert np.concatenate([index for _, index in batches]).tolist() == list(range(11))
    expected = np.stack([picture(NAMES.index(path)) for path in paths])
    np.testing.assert_array_equal(torch.cat([images for images, _ in batches]).numpy(), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_inference_leaves_out_what_cannot_be_read(root, workers):
    for name in (*NAMES[4:8], NAMES[9]):
        (root / name).write_bytes(encoded(picture(0), ".png")[:-20])
    source, skipped = open_source(root), []
    with pytest.raises(ImageError, match=r"b/0\.png: the image is cut off"):
        list(iterate_images(source, NAMES, PLAIN, 4, workers))
    batches = list(iterate_images(source, NAMES, PLAIN, 4, workers, on_corrupt="skip", skipped=skipped))
    kept = np.concatenate([index for _, index in batches]).tolist()
    assert kept == [row for row in range(24) if row not in (4, 5, 6, 7, 9)]
    assert [len(images) for images, _ in batches] == [4, 3, 4, 4, 4]
    np.testing.assert_array_equal(batches[1][0][1].numpy(), picture(10))
    assert skipped == [*NAMES[4:8], NAMES[9]]


def test_inference_on_nothing_and_on_missing_files(root):
    assert list(iterate_images(open_source(root), [], PLAIN, 4, 2)) == []
    for workers in (0, 1):
        with pytest.raises(InputError, match=r"none\.png: cannot be read"):
            list(
                iterate_images(open_source(root), [*NAMES, "none.png"], PLAIN, 4, workers, on_corrupt="skip")
            )
    with pytest.raises(InputError, match="batch_size must be at least 1"):
        list(iterate_images(open_source(root), NAMES, PLAIN, 0))


PROGRAM = """
    import signal, sys, time
    import numpy as np
    from metricid.data import ImageDataset, Loader, Manifest, ShuffleSampler, build_transform, open_source

    def on_term(number, frame):
        print("parent got SIGTERM", flush=True)
    signal.signal(signal.SIGTERM, on_term)
    # A shell's background jobs begin with it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    source = open_source(sys.argv[1])
    manifest = Manifest.from_columns(source.paths(), ["x"] * len(source.paths()))
    labels, transform = manifest.labels(), build_transform("plain", (24, 20), False)
    dataset = ImageDataset(source, manifest, labels, transform, seed=0)
    loader = Loader(dataset, ShuffleSampler(labels, 2), workers=2)
    stream = loader.epoch(0)
    next(stream)
    try:
        print(*[worker.pid for worker in loader._loader._iterator._workers], flush=True)
        while True:
            time.sleep(0.1)
    except KeyboardInterrupt:
        print("batches after Ctrl-C:", sum(1 for _ in stream), flush=True)
"""


@pytest.fixture
def program(root):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), str(root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert len(workers) == 2
    yield process, workers
    process.kill()
    process.wait()
    process.stdout.close()
    process.stderr.close()


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks at processes in /proc")
def test_workers_leave_ctrl_c_to_the_training_process(program):
    process, workers = program
    os.killpg(process.pid, signal.SIGINT)
    assert process.stdout.readline() == "batches after Ctrl-C: 11\n"
    assert process.wait(20) == 0
    assert process.stderr.read() == ""
    assert not any(map(alive, workers))


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks at processes in /proc")
def test_workers_end_with_sigterm_and_with_a_killed_parent(program):
    process, workers = program
    process.kill()
    process.wait()
    os.kill(workers[0], signal.SIGTERM)
    assert wait_until(lambda: not alive(workers[0]), 2)
    assert wait_until(lambda: not alive(workers[1]), 15)


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="the sender of a signal cannot be told here")
def test_workers_leave_a_sigterm_to_all_processes_to_the_training_process(root):
    with_workers = loader(root, workers=2, sampler=ShuffleSampler(MANIFEST.labels(), 2))
    batches = with_workers.epoch(0)
    next(batches)
    workers = multiprocessing.active_children()
    subprocess.run(["kill", "-TERM", *(str(worker.pid) for worker in workers)], check=True)
    assert len(list(batches)) == 11
    assert all(worker.is_alive() for worker in workers)
    for worker in workers:
        worker.terminate()
        worker.join(5)
        assert worker.exitcode == 0


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="signals cannot be held back here")
def test_signals_that_come_while_workers_start_are_left_to_the_training_process(root, monkeypatch):
    start = loader_module._start_worker

    def signalled_start(*arguments):
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        start(*arguments)

    monkeypatch.setattr(loader_module, "_start_worker", signalled_start)
    with_workers = loader(root, workers=2, sampler=ShuffleSampler(MANIFEST.labels(), 2))
    assert len(list(with_workers.epoch(0))) == 12
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
