import gzip
import io
import multiprocessing
import os
import pickle
import tarfile
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from image_files import encoded, picture

from metricid.data.decode import ImageError
from metricid.data.sources import FolderSource, ImageSource, TarSource, open_source
from metricid.errors import InputError

NAMES = ["a/1.jpg", "a/2.PNG", "b/c/3.bmp", "top.webp"]


@pytest.fixture
def folder(write_images):
    root = write_images(NAMES)
    (root / "pairs.txt").write_text("10 300\n")
    (root / ".hidden").mkdir()
    (root / "b/.cache/deep").mkdir(parents=True)
    for hidden in (".hidden/4.jpg", "a/._1.jpg", "b/.cache/deep/2.jpg"):
        (root / hidden).write_bytes(b"x")
    return root


@pytest.fixture(params=["folder", "tar"])
def source(request, folder, pack):
    return open_source(folder if request.param == "folder" else pack(folder))


def test_paths_are_the_visible_images_in_order(source):
    assert isinstance(source, ImageSource)
    assert source.paths() == NAMES


def test_images_and_other_files_are_read(source):
    np.testing.assert_array_equal(source.read("b/c/3.bmp"), picture(2))
    np.testing.assert_array_equal(source.read("a/2.PNG"), picture(1))
    assert source.read_bytes("pairs.txt") == b"10 300\n"
    assert "a/1.jpg" in source
    assert "pairs.txt" in source
    assert "a/9.jpg" not in source
    assert "a" not in source


def test_a_missing_image_is_the_users_mistake_and_not_a_corrupt_one(source):
    for path in ("a/9.jpg", "a"):
        with pytest.raises(InputError, match=rf"{path}: ") as caught:
            source.read(path)
        assert not isinstance(caught.value, ImageError)


def test_a_corrupt_image_is_named_with_its_source(source):
    with pytest.raises(ImageError, match=rf"^{source.name}/pairs\.txt: not an image"):
        source.read("pairs.txt")


def test_limits_and_suffixes_are_passed_on(folder, pack):
    for root in (folder, pack(folder)):
        source = open_source(root, max_pixels=100, suffixes=(".jpg",))
        assert source.paths() == ["a/1.jpg"]
        with pytest.raises(ImageError, match="limit of 100"):
            source.read("a/1.jpg")


def test_links_are_followed_but_not_in_circles(write_images, tmp_path):
    root, far = write_images(["a/1.jpg"]), write_images(["2.jpg"], "far")
    (root / "a/far").symlink_to(far)
    (root / "a/loop").symlink_to(root)
    (far / "back").symlink_to(root / "a")
    assert FolderSource(root).paths() == ["a/1.jpg", "a/far/2.jpg"]
    (tmp_path / "alias").symlink_to(root)
    assert FolderSource(tmp_path / "alias").paths() == ["a/1.jpg", "a/far/2.jpg"]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_tar_is_read_in_other_processes(folder, pack, method):
    source = TarSource(pack(folder))
    source.read("a/1.jpg")
    with ProcessPoolExecutor(
        1 if method == "spawn" else 2, mp_context=multiprocessing.get_context(method)
    ) as pool:
        images = list(pool.map(source.read, NAMES * 3))
    for image, name in zip(images, NAMES * 3, strict=True):
        np.testing.assert_array_equal(image, source.read(name))


def test_each_process_has_its_own_handle(folder, pack):
    source = TarSource(pack(folder))
    source.read("top.webp")
    inherited = source._handle
    again = pickle.loads(pickle.dumps(source))
    assert again._handle is None
    np.testing.assert_array_equal(again.read("top.webp"), source.read("top.webp"))
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def child():
        source.read("top.webp")
        theirs.send((source._handle, source._process == os.getpid()))

    process = context.Process(target=child)
    process.start()
    handle, own = ours.recv()
    process.join()
    assert own
    assert handle != inherited


def test_links_within_a_tar_lead_to_their_targets(folder):
    os.link(folder / "a/1.jpg", folder / "a/hard.jpg")
    os.symlink("../top.webp", folder / "a/soft.webp")
    archive = folder.with_suffix(".tar")
    with tarfile.open(archive, "w") as tar:
        tar.add(folder, arcname="data")
    source = TarSource(archive)
    np.testing.assert_array_equal(source.read("data/a/hard.jpg"), source.read("data/a/1.jpg"))
    np.testing.assert_array_equal(source.read("data/a/soft.webp"), source.read("data/top.webp"))


def test_long_names_of_all_tar_dialects(tmp_path):
    name = "x" * 90 + "/" + "y" * 150 + "/ü.png"
    for dialect in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        archive = tmp_path / f"{dialect}.tar"
        data = encoded(picture(3), ".png")
        with tarfile.open(archive, "w", format=dialect) as tar:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        np.testing.assert_array_equal(TarSource(archive).read(name), picture(3))


def test_a_tar_cut_anywhere_is_refused(folder, pack):
    archive = pack(folder)
    data = archive.read_bytes()
    end = len(data.rstrip(b"\0"))
    with tarfile.open(archive) as tar:
        members = [member.offset for member in tar]
    for length in {1, 300, 512, 700, *members[1:], *(m + 100 for m in members), end - 1, end}:
        archive.write_bytes(data[:length])
        with pytest.raises(InputError, match=r"images.tar: .*(cut off|not a whole)"):
            TarSource(archive)


def test_a_damaged_header_in_the_middle_is_refused(folder, pack):
    archive = pack(folder)
    data = bytearray(archive.read_bytes())
    with tarfile.open(archive) as tar:
        middle = [member.offset for member in tar][3]
    data[middle + 150] ^= 0xFF
    archive.write_bytes(data)
    with pytest.raises(InputError, match="cut off or damaged"):
        TarSource(archive)


def test_archives_without_random_access_are_refused(folder, pack):
    archive = pack(folder)
    packed = folder.parent / "images.tar.gz"
    packed.write_bytes(gzip.compress(archive.read_bytes()))
    with pytest.raises(
        InputError, match="is compressed and allows no random access; unpack it once with gunzip"
    ):
        open_source(packed)


def test_a_tar_that_changes_under_a_run_is_noticed(folder, pack):
    archive = pack(folder)
    source = TarSource(archive)
    archive.write_bytes(archive.read_bytes() + bytes(512))
    with pytest.raises(InputError, match="changed while it was in use"):
        source.read("a/1.jpg")


def test_roots_that_are_neither(tmp_path):
    (tmp_path / "notes.txt").write_text("not an archive " * 100)
    (tmp_path / "empty.tar").write_bytes(b"")
    for name, message in (
        ("none", "does not exist; give a folder of images or a .tar file"),
        ("notes.txt", "not a whole tar"),
        ("empty.tar", "not a whole tar"),
    ):
        with pytest.raises(InputError, match=message):
            open_source(tmp_path / name)
    with pytest.raises(InputError, match="no such folder"):
        FolderSource(tmp_path / "none")


def test_real_archives_list_what_tarfile_lists(real_data):
    archive = real_data / "market1501_train.tar"
    source = TarSource(archive)
    with tarfile.open(archive) as tar:
        expected = {m.name: m.size for m in tar if m.isreg()}
        assert source.paths() == sorted(expected)
        for name in source.paths()[::3000]:
            assert source.read_bytes(name) == tar.extractfile(name).read()
            assert source.read(name).shape == (128, 64, 3)


def test_a_folder_that_cannot_be_read_is_not_left_out_in_silence(folder, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if os.path.basename(path) == "locked":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    (folder / "locked").mkdir()
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"locked: cannot be read \(Permission denied\)"):
        FolderSource(folder).paths()


def test_an_archive_that_cannot_be_read_is_named(folder, pack, monkeypatch):
    file = pack(folder)

    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(file), "open", refuse)
    with pytest.raises(InputError, match=r"tar: cannot be read \(Permission denied\)"):
        TarSource(file)
