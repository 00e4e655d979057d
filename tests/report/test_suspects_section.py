"""The section of probably wrong labels: when a page has it, and what it shows."""

import csv

import numpy as np
import pytest
from made_up import people

from metricid.errors import InputError
from metricid.report import Report, render
from metricid.report.suspects import read_pairs, suspects_of


def read(path):
    return None if path.startswith("0/") else np.full((20, 10, 3), 128, np.uint8)


def made_up(noise=0.2):
    vectors, names, _ = people(np.random.default_rng(1), identities=10, images=5, noise=noise)
    return vectors, names, [f"{i}/{j}.jpg" for i in range(10) for j in range(5)]


def test_clean_labels_give_no_section():
    vectors, names, paths = made_up()
    assert suspects_of(vectors, names, paths, None, about="", top=5) is None
    assert 'id="suspects"' not in render(Report("clean", "Example", []))


def test_what_says_nothing_is_no_section():
    vectors, names, paths = made_up()
    one, each = np.full(50, "one", dtype=object), np.array(paths, dtype=object)
    assert suspects_of(vectors, one, paths, None, about="", top=5) is None
    assert suspects_of(vectors, each, paths, None, about="", top=5) is None
    assert suspects_of(vectors[:0], names[:0], [], None, about="", top=5) is None


def test_wrong_labels_are_shown_beside_both_identities():
    vectors, names, paths = made_up()
    names[12], names[31] = names[40], names[0]
    names[45:48] = "second name"
    view = suspects_of(vectors, names, paths, read, about="Among the images evaluated", top=5)
    assert view is not None and (view.all_pairs, view.all_images, view.all_far) == (1, 2, 0)
    assert {entry.image.path for entry in view.images} == {"2/2.jpg", "6/1.jpg"}
    for entry in view.images:
        assert entry.rest.name == entry.image.identity and entry.cosine > entry.own
        assert entry.image.path not in {face.path for face in entry.rest.images}
        assert len(entry.other.images) == 3
    page = render(Report("noisy", "Example", [], suspects=[view]))
    assert '<a href="#suspects">' in page and page.count('id="suspects"') == 1
    assert "Images that probably show somebody else: 2" in page
    assert page.count("<img") == sum(
        len(p.images) for pair in view.pairs for p in (pair.first, pair.second)
    ) + sum(
        (face.picture is not None)
        for entry in view.images
        for face in (entry.image, *entry.rest.images, *entry.other.images)
    )
    assert 'class="nopicture" title="0/' in page  # cannot be read


def test_no_more_than_asked_for_is_shown_and_the_rest_counted():
    vectors, names, paths = made_up(noise=1.5)
    view = suspects_of(vectors, names, paths, None, about="", top=2)
    assert view is not None and len(view.images) == 2 < view.all_images
    page = render(Report("noisy", "Example", [], suspects=[view]))
    assert f"the first 2 of {view.all_images}" in page and "<img" not in page


def test_identities_to_ignore_play_no_part():
    vectors, names, paths = made_up()
    names[12] = "distractor"
    view = suspects_of(vectors, names, paths, None, about="", top=5)
    assert view is not None and {p.first.name for p in view.pairs} == {"distractor"}
    assert suspects_of(vectors, names, paths, None, about="", top=5, ignore=["distractor"]) is None


@pytest.fixture
def listed(tmp_path):
    file = tmp_path / "suspects.csv"
    with open(file, "w", newline="", encoding="utf-8") as text:
        csv.writer(text).writerows([["identity", "other", "cosine"], ["a,b", "c", 0.99], ["c", "gone", 0.96]])
    return file


def test_the_pairs_of_a_training_are_shown_with_its_images(listed, tmp_path):
    paths = ["x/1.jpg", "x/2.jpg", "y/1.jpg", "z.jpg"]
    view = read_pairs(
        listed, ["a,b", "a,b", "c", "z"], paths, read, about="Among the images trained on", top=9
    )
    assert view is not None and view.all_pairs == 2 and view.guard is None
    assert [face.path for face in view.pairs[0].first.images] == ["x/1.jpg", "x/2.jpg"]
    page = render(Report("run", "Training run", [], suspects=[view]))
    assert page.count("<img") == 4 and "above the guard of the sampler" in page
    assert read_pairs(tmp_path / "none.csv", [], [], None, about="", top=9) is None


def test_a_damaged_list_is_named(listed):
    listed.write_text("identity,other,cosine\na,b,much\n")
    with pytest.raises(InputError, match="suspects.csv: damaged"):
        read_pairs(listed, [], [], None, about="", top=9)
    listed.write_text("identity,other,cosine\n")
    assert read_pairs(listed, [], [], None, about="", top=9) is None
