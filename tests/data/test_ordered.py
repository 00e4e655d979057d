import threading

import numpy as np
import pytest
import torch
from image_files import encoded, picture

from metricid.data.decode import ImageError
from metricid.data.ordered import iterate_images
from metricid.data.sources import FolderSource, open_source
from metricid.data.transforms import build_transform
from metricid.errors import InputError

NAMES = [f"{who}/{i}.png" for who in "abcdef" for i in range(4)]
PLAIN = build_transform("plain", (24, 20), False)


@pytest.fixture
def root(write_images):
    return write_images(NAMES)


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_in_order_whoever_reads(root, threads, workers):
    paths = NAMES[::-1][:11]
    batches = list(iterate_images(open_source(root), paths, PLAIN, batch_size=5, workers=workers))
    assert [len(images) for images, _ in batches] == [5, 5, 1]
    places = np.concatenate([places for _, places in batches])
    assert places.dtype == np.int64 and places.tolist() == list(range(11))
    images = torch.cat([images for images, _ in batches])
    expected = np.stack([picture(NAMES.index(path)) for path in paths])
    assert images.dtype == torch.uint8
    np.testing.assert_array_equal(images.numpy(), expected)


def test_the_transform_gets_the_place(root, threads):
    given = {}

    def note(image, seed):
        given[seed] = image
        return image

    list(iterate_images(open_source(root), NAMES, note, batch_size=7, workers=0))
    assert sorted(given) == list(range(24))
    for place, image in given.items():
        np.testing.assert_array_equal(image, picture(place))


def test_unreadable_images_are_left_out_or_named(root, threads):
    for name in (*NAMES[4:8], NAMES[9]):
        (root / name).write_bytes(encoded(picture(0), ".png")[:-20])
    source, skipped = open_source(root), []
    with pytest.raises(ImageError, match=r"b/0\.png: the image is cut off"):
        list(iterate_images(source, NAMES, PLAIN, batch_size=4, workers=0))
    batches = list(
        iterate_images(source, NAMES, PLAIN, batch_size=4, workers=0, on_corrupt="skip", skipped=skipped)
    )
    assert [len(images) for images, _ in batches] == [4, 3, 4, 4, 4]  # nothing of the second batch
    assert batches[1][1].tolist() == [8, 10, 11]
    np.testing.assert_array_equal(batches[1][0][1].numpy(), picture(10))
    assert skipped == [*NAMES[4:8], NAMES[9]]
    with pytest.raises(InputError, match=r"none\.png: cannot be read"):
        list(iterate_images(source, [*NAMES, "none.png"], PLAIN, batch_size=4, workers=0, on_corrupt="skip"))


def test_nothing_gives_no_batch(root, threads):
    assert list(iterate_images(open_source(root), [], PLAIN, batch_size=4, workers=0)) == []


def test_files_are_read_together_and_other_sources_by_one_thread(root):
    class Meeting(FolderSource):
        """Whose readers wait for each other."""

        def read(self, path):
            meeting.wait(timeout=20)
            return super().read(path)

    class Other:
        """A source of another program."""

        name, seen = "other", set()

        def read(self, path):
            self.seen.add(threading.get_ident())
            return picture(NAMES.index(path))

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        meeting = threading.Barrier(2)
        assert len(list(iterate_images(Meeting(root), NAMES, PLAIN, batch_size=8, workers=0))) == 3
        list(iterate_images(Other(), NAMES, PLAIN, batch_size=8, workers=0))
    finally:
        torch.set_num_threads(before)
    assert len(Other.seen) == 1
