import os
import re

import numpy as np
import pytest

from metricid.data.layouts import LAYOUTS, lfw
from metricid.data.manifest import check_files
from metricid.data.sources import FolderSource, open_source
from metricid.errors import InputError


@pytest.fixture
def read(write_images):
    def read(layout, names, **options):
        source = FolderSource(write_images(names, layout))
        manifest = LAYOUTS[layout](source, **options)
        check_files(manifest, source)
        return manifest

    return read


def rows(manifest, *columns):
    return list(zip(*(manifest.column(c).tolist() for c in ("path", *columns)), strict=True))


def test_folders_are_identities(read):
    manifest = read("folder", ["b/1.jpg", "a/x/2.jpg", "a/1.jpg"])
    assert rows(manifest, "identity") == [("a/1.jpg", "a"), ("a/x/2.jpg", "a/x"), ("b/1.jpg", "b")]


def test_market1501_as_it_is_published(read):
    manifest = read(
        "market1501",
        [
            "Market/bounding_box_train/0002_c1s1_000451_03.jpg",
            "Market/bounding_box_train/0007_c3s1_000451_03.jpg",
            "Market/query/0001_c2s1_000301_00.jpg",
            "Market/query/0000_c2s1_000301_00.jpg",
            "Market/bounding_box_test/0001_c6s1_000451_03.jpg",
            "Market/bounding_box_test/0000_c5s1_000451_03.jpg",
            "Market/bounding_box_test/-1_c1s1_000401_03.jpg",
            "Market/gt_bbox/0001_c1s1_001051_00.jpg",
        ],
    )
    assert rows(manifest, "identity", "camera", "split") == [
        ("Market/bounding_box_test/0000_c5s1_000451_03.jpg", "0", "5", "gallery"),
        ("Market/bounding_box_test/0001_c6s1_000451_03.jpg", "0001", "6", "gallery"),
        ("Market/bounding_box_train/0002_c1s1_000451_03.jpg", "0002", "1", "train"),
        ("Market/bounding_box_train/0007_c3s1_000451_03.jpg", "0007", "3", "train"),
        ("Market/query/0001_c2s1_000301_00.jpg", "0001", "2", "query"),
    ]


def test_market1501_names_without_its_folders_train(read):
    manifest = read("market1501", ["0002_c1s1_1.jpg", "-1_c1s1_2.jpg", "0000_c1s1_3.jpg", "x/11_c2.jpg"])
    assert rows(manifest, "identity", "camera", "split") == [
        ("0002_c1s1_1.jpg", "0002", "1", "train"),
        ("x/11_c2.jpg", "11", "2", "train"),
    ]


def test_market1501_cameras_are_whole_numbers(read):
    manifest = read("market1501", ["0001_c1s1_1.jpg", "0001_c012_2.jpg", "0001_c12_3.jpg", "0001_c002_4.jpg"])
    cameras = dict(zip(manifest.paths, manifest.column("camera"), strict=True))
    assert list(cameras.values()) == ["2", "12", "12", "1"]


def test_lfw_names(read):
    manifest = read("lfw", ["lfw/Al_Gore/Al_Gore_0002.jpg", "lfw/Al_Gore/Al_Gore_0001.jpg", "A/A_0001.png"])
    assert manifest.identities.tolist() == ["A", "Al_Gore", "Al_Gore"]


def test_omniglot_names_and_shared_alphabets(read):
    names = [
        "images_background_small1/Greek/character01/1_01.png",
        "images_background_small2/Greek/character01/1_01.png",
        "images_background_small2/Greek/character02/2_01.png",
        "images_evaluation/Manipuri/character01/3_01.png",
    ]
    manifest = read("omniglot", names)
    assert rows(manifest, "identity", "group", "split") == [
        (names[0], "Greek/character01", "Greek", "small1"),
        (names[2], "Greek/character02", "Greek", "small2"),
        (names[3], "Manipuri/character01", "Manipuri", "evaluation"),
    ]
    assert len(read("omniglot", names, disjoint=False)) == 4


@pytest.mark.parametrize(
    ("layout", "names", "message"),
    [
        *[(layout, [], "no images found; expected ") for layout in LAYOUTS],
        (
            "folder",
            ["1.jpg", "a/2.jpg"],
            "1 images are not named as expected (one folder of images per identity",
        ),
        ("market1501", ["a/1.jpg"], "1 images are not named as expected (0002_c1s1_000451_03.jpg"),
        ("market1501", ["query/-1_c1.jpg"], "only junk images"),
        ("market1501", ["0001-2_c1.jpg"], "1 images are not named as expected"),
        ("lfw", ["A/A_0001.jpg", "A/B_0001.jpg"], "expected (Name/Name_0001.jpg): A/B_0001.jpg"),
        ("lfw", ["A_0001.jpg"], "not named as expected"),
        ("omniglot", ["Greek/character01/1.png"], "not named as expected (images_background/Alphabet/"),
        (
            "market1501",
            [f"{i}.jpg" for i in range(5)],
            "5 images are not named as expected (0002_c1s1_000451_03.jpg = identity, camera, ...): "
            "0.jpg, 1.jpg, 2.jpg, ...",
        ),
    ],
)
def test_another_layout_is_one_line_that_says_what_was_expected(
    write_images, tmp_path, layout, names, message
):
    root = write_images(names)
    root.mkdir(exist_ok=True)
    (root / "notes.txt").write_text("no image")
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        LAYOUTS[layout](FolderSource(root))
    assert str(caught.value).startswith(str(root))
    assert "\n" not in str(caught.value)


PEOPLE = ["A/A_0001.png", "A/A_0002.png", "B/B_0001.png", "C/C_0001.png", "C/C_0003.png"]
PAIRS = "2\t1\nA\t1\t2\nA\t1\tB\t1\nC\t1\t3\nB\t1\tC\t3\n"


@pytest.mark.parametrize("packed", [False, True])
def test_pairs_are_rows_of_the_manifest(write_images, pack, packed):
    root = write_images(PEOPLE)
    (root / "pairs.txt").write_text(PAIRS)
    source = open_source(pack(root) if packed else root)
    pairs = lfw.read_pairs(source, lfw.read(source))
    assert pairs.a.tolist() == [0, 0, 3, 2]
    assert pairs.b.tolist() == [1, 2, 4, 4]
    assert pairs.same.tolist() == [True, False, True, False]
    assert pairs.fold.tolist() == [0, 0, 1, 1]
    assert pairs.a.dtype == np.int64


def test_a_list_without_folds_is_one_fold(write_images):
    root = write_images(PEOPLE)
    (root / "dev.txt").write_text("2\nA 1 2\nC 1 3\nA 1 B 1\nB 1 C 3\n\n")
    source = open_source(root)
    pairs = lfw.read_pairs(source, lfw.read(source), "dev.txt")
    assert pairs.same.tolist() == [True, True, False, False]
    assert pairs.fold.tolist() == [0] * 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1 must be 'folds pairs'"),
        ("ten 300\n", "line 1 must be 'folds pairs'"),
        ("0 300\n", "line 1 must be 'folds pairs'"),
        (PAIRS.rsplit("B\t1", 1)[0], "3 pairs, but line 1 promises 2 x 2 x 1; the file is cut off"),
        (PAIRS.replace("C\t1\t3", "C\t1\tC\t3"), "line 4 must be 'name i j' (same person), but is"),
        (PAIRS.replace("B\t1\tC\t3", "C\t1\t3"), "line 5 must be 'name1 i name2 j' (two people)"),
        (PAIRS.replace("C\t1\t3", "C\t1\tx"), "line 4: 'x' is not an image number"),
        (PAIRS.replace("C\t1\t3", "C\t1\t2"), "line 4: C_0002 is not in "),
        (PAIRS.replace("A\t1\tB", "D\t1\tB"), "line 3: D_0001 is not in "),
    ],
)
def test_a_wrong_pair_list_is_named_by_line(write_images, text, message):
    root = write_images(PEOPLE)
    (root / "pairs.txt").write_text(text)
    source = open_source(root)
    with pytest.raises(InputError, match=re.escape(f"{root}/pairs.txt: {message}")):
        lfw.read_pairs(source, lfw.read(source))


def test_a_missing_pair_list(write_images):
    source = open_source(write_images(PEOPLE))
    with pytest.raises(InputError, match=r"pairs\.txt: cannot be read"):
        lfw.read_pairs(source, lfw.read(source))


def test_names_that_are_not_utf8_are_shown(write_images):
    root = write_images(["ann/1.jpg", "ann/2.jpg"])
    os.rename(os.fsencode(root / "ann/2.jpg"), os.fsencode(root / "ann") + b"/\xff.jpg")
    with pytest.raises(InputError, match=r"1 file names are not UTF-8; rename them: 'ann/.*udcff.jpg'"):
        LAYOUTS["folder"](FolderSource(root))
