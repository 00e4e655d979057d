import numpy as np
import pytest
from image_files import encoded, picture

from metricid.data.dataset import ImageDataset, mix
from metricid.data.decode import ImageError
from metricid.data.manifest import Manifest
from metricid.data.sources import FolderSource
from metricid.data.transforms import build_transform
from metricid.errors import InputError

NAMES = [f"{who}/{i}.png" for who, count in (("a", 3), ("b", 2), ("c", 1)) for i in range(count)]
PLAIN = build_transform("plain", (24, 20), False)


@pytest.fixture
def root(write_images):
    return write_images(NAMES)


def dataset(root, transform=PLAIN, **options):
    manifest = Manifest.from_columns(NAMES, [name[0] for name in NAMES])
    return ImageDataset(FolderSource(root), manifest, manifest.labels(), transform, seed=5, **options)


def test_items_are_rows_of_the_manifest(root):
    images = dataset(root)
    assert len(images) == 6
    for row in range(6):
        image, label, index = images[0, 17, row]
        np.testing.assert_array_equal(image, picture(row))
        assert (label, index) == ([0, 0, 0, 1, 1, 2][row], row)


def test_augmentation_follows_seed_epoch_and_position(root):
    images = dataset(root, lambda image, seed: np.full((2, 2, 3), seed % 251, np.uint8))
    values = {key: images[(*key, 0)].image[0, 0, 0] for key in [(0, 0), (0, 1), (1, 0), (1, 1)]}
    assert values == {(e, p): mix(5, e, p) % 251 for e, p in values}
    assert images[1, 1, 3].image[0, 0, 0] == values[1, 1]


def test_mixed_seeds_are_all_different_and_in_64_bits():
    seeds = [mix(seed, epoch, place) for seed in range(10) for epoch in range(20) for place in range(500)]
    assert len(set(seeds)) == 100_000
    assert 0 <= min(seeds) < max(seeds) < 2**64
    bits = np.array([[seed >> bit & 1 for bit in range(64)] for seed in seeds[:2000]])
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.07


def test_a_batch_holds_the_items(root):
    images = dataset(root)
    chunk = images.__getitems__([(0, place, row) for place, row in enumerate([4, 0, 5])])
    assert chunk.error is None
    np.testing.assert_array_equal(chunk.images.numpy(), np.stack([picture(4), picture(0), picture(5)]))
    assert chunk.labels.tolist() == [1, 0, 2]
    assert chunk.rows.tolist() == [4, 0, 5]


def test_a_corrupt_image_stops_by_default_and_names_the_file(root):
    (root / "a/1.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"a/1\.png: the file is empty"):
        dataset(root)[0, 0, 1]
    chunk = dataset(root).__getitems__([(0, 0, 0), (0, 1, 1)])
    assert isinstance(chunk.error, ImageError)


def test_skip_takes_the_next_readable_image_of_the_identity(root):
    images = dataset(root, on_corrupt="skip")
    (root / "a/1.png").write_bytes(b"no image")
    assert images[0, 0, 1].row == 2
    (root / "a/2.png").write_bytes(encoded(picture(2), ".png")[:-30])
    images = dataset(root, on_corrupt="skip")
    image, label, row = images[0, 0, 1]
    assert (label, row) == (0, 0)
    np.testing.assert_array_equal(image, picture(0))


def test_skip_takes_another_identity_only_where_none_is_left(root):
    (root / "c/0.png").write_bytes(b"no image")
    (root / "a/0.png").write_bytes(b"no image")
    sample = dataset(root, on_corrupt="skip")[0, 0, 5]
    assert (sample.label, sample.row) == (0, 1)


def test_skipped_files_are_reported_once(root):
    (root / "a/1.png").write_bytes(b"no image")
    images = dataset(root, on_corrupt="skip")
    keys = [(0, place, row) for place, row in enumerate([1, 0, 1])]
    assert images.__getitems__(keys).corrupt == ["a/1.png"]
    assert images.__getitems__(keys).corrupt == []
    assert images.__getitems__(keys).rows.tolist() == [2, 0, 2]


def test_nothing_readable_is_an_error_even_with_skip(root):
    for name in NAMES:
        (root / name).write_bytes(b"no image")
    with pytest.raises(InputError, match="not one of the 6 images can be read"):
        dataset(root, on_corrupt="skip")[0, 0, 0]


def test_a_missing_file_is_an_error_even_with_skip(root):
    (root / "a/1.png").unlink()
    with pytest.raises(InputError, match=r"a/1\.png: cannot be read"):
        dataset(root, on_corrupt="skip")[0, 0, 1]


def test_wrong_use_is_one_line(root):
    manifest = Manifest.from_columns(["a"], ["a"])
    source = FolderSource(root)
    with pytest.raises(InputError, match=r"\(2,\) labels for 1 images"):
        ImageDataset(source, manifest, np.zeros(2), PLAIN, seed=0)
    with pytest.raises(InputError, match="has no images"):
        ImageDataset(source, manifest.select([]), np.zeros(0), PLAIN, seed=0)
    with pytest.raises(InputError, match="on_corrupt must be"):
        dataset(root, on_corrupt="ignore")
