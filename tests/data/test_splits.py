import random
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricid.data.layouts import LAYOUTS, lfw
from metricid.data.manifest import Manifest
from metricid.data.sources import open_source
from metricid.data.splits import query_gallery, split_identities
from metricid.errors import InputError


def people(counts):
    names = [f"p{i:03d}" for i, count in enumerate(counts) for _ in range(count)]
    return Manifest.from_columns([f"{name}/{row}.jpg" for row, name in enumerate(names)], names)


@given(
    counts=st.lists(st.integers(1, 5), min_size=2, max_size=30),
    seed=st.integers(0, 9),
    least=st.integers(1, 2),
)
def test_nobody_is_on_both_sides_and_nobody_is_lost(counts, seed, least):
    usable = [f"p{i:03d}" for i, count in enumerate(counts) if count >= least]
    if len(usable) < 2:
        return
    train, test = split_identities(people(counts), len(usable) // 2, seed, min_images=least)
    random.Random(seed).shuffle(usable)
    assert set(train.identities) == set(usable[: len(usable) // 2])
    assert set(test.identities) == set(usable[len(usable) // 2 :])
    assert set(train.column("split")) == {"train"}
    assert set(test.column("split")) == {"test"}
    assert len(train) + len(test) == sum(count for count in counts if count >= least)


def test_a_fraction_is_of_the_usable_identities():
    manifest = people([1] * 50 + [2] * 10)
    train, test = split_identities(manifest, 0.29, 0, min_images=2)
    assert (len(train.identity_names()), len(test.identity_names())) == (3, 7)


def test_rows_keep_their_order():
    train, test = split_identities(people([3] * 20), 12, 4)
    for part in (train, test):
        rows = [int(path.split("/")[1][:-4]) for path in part.paths]
        assert rows == sorted(rows)


@pytest.mark.parametrize("train", [0, 5, 6, -1, 0.0, 1.0, 0.05])
def test_an_empty_side_is_refused(train):
    with pytest.raises(InputError, match=re.escape(f"cannot put {train} of 5 identities")):
        split_identities(people([2] * 5), train, 0)


def test_the_first_image_of_each_identity_and_camera_is_a_query():
    rows = [("b/2", "b", "1"), ("a/3", "a", "2"), ("a/1", "a", "1"), ("a/2", "a", "1"), ("b/1", "b", "1")]
    path, identity, camera = map(list, zip(*rows, strict=True))
    split = query_gallery(Manifest.from_columns(path, identity, camera=camera)).column("split")
    assert split.tolist() == ["gallery", "query", "query", "gallery", "query"]


def test_distractors_are_tested_and_never_asked():
    names = ["0", "0", "a", "a", "b", "b"]
    table = Manifest.from_columns(list("uvwxyz"), names, camera=["1", "2"] * 3)
    train, test = split_identities(table, 1, 0, distractors=("0",))
    assert len(train) == 2
    assert sorted({"0", "a", "b"} - set(train.identities)) == test.identity_names()
    split = query_gallery(table, ("0",)).column("split")
    assert split.tolist() == ["gallery"] * 2 + ["query"] * 4


def test_queries_need_cameras():
    with pytest.raises(InputError, match="has no column 'camera'"):
        query_gallery(people([2, 2]))


def test_the_reference_split_of_market1501(real_data):
    manifest = LAYOUTS["market1501"](open_source(real_data / "market1501_train.tar"))
    assert (len(manifest), len(manifest.identity_names())) == (12936, 751)
    assert sorted(set(manifest.column("camera"))) == list("123456")
    train, test = split_identities(manifest, 600, 0)
    assert len(train) == 10262
    split = query_gallery(test).column("split")
    assert ((split == "query").sum(), (split == "gallery").sum()) == (668, 2006)


def test_the_reference_split_of_lfw(real_data):
    source = open_source(real_data / "lfw_aligned112.tar")
    manifest = LAYOUTS["lfw"](source)
    assert (len(manifest), len(manifest.identity_names())) == (13233, 5749)
    train, test = split_identities(manifest, 0.8, 0, min_images=2)
    assert (len(train), len(test), len(test.identity_names())) == (6907, 2257, 336)
    pairs = lfw.read_pairs(source, manifest)
    assert len(pairs.a) == 6000
    np.testing.assert_array_equal(manifest.identities[pairs.a] == manifest.identities[pairs.b], pairs.same)
    np.testing.assert_array_equal(np.bincount(pairs.fold, pairs.same), [300] * 10)
    np.testing.assert_array_equal(np.bincount(pairs.fold), [600] * 10)


def test_the_small_sets_of_omniglot_are_disjoint(real_data):
    source = open_source(real_data / "omniglot_small.tar")
    manifest = LAYOUTS["omniglot"](source)
    split = manifest.column("split")
    one, two = (manifest.select(split == name) for name in ("small1", "small2"))
    assert (len(one), len(two)) == (2720, 2120)
    assert not set(one.column("group")) & set(two.column("group"))
    everything = LAYOUTS["omniglot"](source, disjoint=False)
    assert len(everything) == 5840
    left_out = set(everything.paths) - set(manifest.paths)
    assert left_out
    for path in left_out:
        twin = path.replace("images_background_small2", "images_background_small1")
        assert source.read_bytes(path) == source.read_bytes(twin)
