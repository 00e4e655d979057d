"""Search, comparison and confusions, and how they are told."""

import re
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest

from metricid.data.decode import ImageError
from metricid.data.manifest import Manifest
from metricid.demo import markup
from metricid.demo.gallery import RunImages, StoredImages
from metricid.demo.rates import PairRates
from metricid.demo.studio import Studio
from metricid.demo.style import STYLE
from metricid.report.search_view import plan_search
from metricid.search import ArraySource, SearchIndex

EVIL = '<script>alert("x")</script>'


class Pictures:
    """Grey images by path; those named `broken` cannot be read."""

    name = "pictures"

    def read(self, path):
        if "broken" in path:
            raise ImageError(f"{path}: broken")
        return np.full((20, 10, 3), 128, np.uint8)

    def paths(self):
        return []

    def __contains__(self, path):
        return True


def studio_of(vectors, names, paths=None):
    paths = paths or [f"{name}/{i}.jpg" for i, name in enumerate(names)]
    table = Manifest.from_columns(path=paths, identity=names)
    images = RunImages(vectors, table, Pictures())
    search = plan_search(vectors, {"identity": table.identities}, ["identification"])
    return Studio("run", None, images, images, PairRates.from_embeddings(vectors, names), search)


@pytest.fixture
def studio(people):
    return studio_of(*people)


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


class Tags(HTMLParser):
    """The elements of a piece of HTML, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words += data


def test_search_gives_the_nearest_images_in_order(studio, people):
    vectors = unit(people[0])
    look = studio.look(vectors[7], 5)
    scores = vectors @ vectors[7]
    order = np.argsort(-scores, kind="stable")[:5]
    assert [hit.path for hit in look.hits] == [studio.run_images.path_at(row) for row in order]
    assert [hit.score for hit in look.hits] == pytest.approx(scores[order].clip(-1, 1).tolist())
    assert look.hits[0].score == pytest.approx(1, abs=1e-6) and look.hits[0].score <= 1


def test_an_index_gives_what_the_images_give(studio, people, tmp_path):
    rows = pa.table({"path": list(studio.run_images._paths), "identity": people[1].tolist()})
    index = SearchIndex.build(tmp_path / "people.index", ArraySource(people[0], rows))
    stored = StoredImages(index, "people.index", None)
    vector = unit(people[0])[3]
    expected = studio.gallery.nearest(vector, 6)
    found = stored.nearest(vector, 6)
    assert [(hit.path, hit.identity) for hit in found] == [(hit.path, hit.identity) for hit in expected]
    assert [hit.score for hit in found] == pytest.approx([hit.score for hit in expected], abs=1e-6)
    assert len(stored.nearest(vector, 500)) == 48 == stored.images
    assert stored.picture("p00/0.jpg") is None


def test_match_and_no_match_follow_the_threshold(studio, people):
    look = studio.look(unit(people[0])[7], 5)
    threshold = look.hits[2].score
    told = Tags(markup.hits(look, studio, threshold))
    assert "3 of the 5 nearest of 48 test images" in told.words
    kinds = [attrs["class"] for tag, attrs in told.tags if tag == "li"]
    assert kinds == ["m-card m-match"] * 3 + ["m-card m-other"] * 2
    assert len(re.findall("no match", told.words)) == 2
    assert all(attrs["alt"] for tag, attrs in told.tags if tag == "img")


def test_a_picture_that_cannot_be_read_leaves_the_rest(people):
    vectors, names = people
    paths = [f"{'broken' if i == 7 else 'fine'}/{i}.jpg" for i in range(len(names))]
    studio = studio_of(vectors, names, paths)
    told = Tags(markup.hits(studio.look(unit(vectors)[7], 4), studio, 0.5))
    assert "no picture" in told.words
    assert sum(tag == "img" for tag, _ in told.tags) == 3


def test_names_from_outside_stay_text(people):
    vectors, names = people
    names = names.copy()
    names[4:8] = EVIL
    studio = studio_of(vectors, names, [f"{i}{EVIL}.jpg" for i in range(len(names))])
    look = studio.look(unit(vectors)[5], 4)
    pair = next(p for p in studio.confusions.pairs if EVIL in (p.first, p.second))
    for text in (
        markup.hits(look, studio, 0.5),
        markup.confusion(pair, studio, 0.5),
        markup.problem(EVIL),
        markup.photo(np.zeros((20, 20, 3), np.uint8), EVIL, EVIL),
    ):
        assert not [tag for tag, _ in Tags(text).tags if tag == "script"]
        assert EVIL in Tags(text).words


@pytest.mark.parametrize("shift", [1e-6, -1e-6])
def test_two_photos_are_one_person_from_the_threshold_on(studio, people, shift):
    a, b = unit(people[0])[[0, 1]]
    score = studio.compare(a, b)
    told = Tags(markup.verdict(score, studio, score + shift)).words
    assert ("Same person" in told) == (shift < 0)
    far = (studio.rates.table.impostor[studio.rates.table.levels >= score].sum()) / 1056
    assert markup.rate(studio.rates, score) in told
    assert float(markup.rate(studio.rates, score).split("%")[0]) / 100 == pytest.approx(far, rel=0.05)


def test_a_rate_of_no_pair_is_told_as_a_bound(studio):
    assert markup.rate(studio.rates, 1.0) == "below 0.095% (1 in 1,056)"
    assert "too few to rely on" in markup.threshold_text(studio.rates, 0.99)
    assert "too few to rely on" not in markup.threshold_text(studio.rates, -0.99)
    assert markup.rate(studio.rates, -1.0) == "100%"


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (1 / 2_386_413, "0.000042%"),
        (0.00094, "0.094%"),
        (0.3449, "34%"),
        (1, "100%"),
        (1 / 3e9, "0.000000033%"),
    ],
)
def test_a_small_share_is_written_out(share, text):
    assert markup._percent(share) == text


def test_each_dark_selector_has_a_rule_of_its_own():
    """The framework scopes only the first `.dark` of a list: the others would match nothing."""
    rules = [rule.partition("{")[0] for rule in STYLE.split("}")]
    assert not [rule for rule in rules if rule.count(".dark") > 1]
    assert any(".dark" in rule for rule in rules)


def test_confusions_are_the_wrong_nearest_images(studio, people):
    vectors, names = unit(people[0]).astype(np.float64), people[1]
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    nearest = names[scores.argmax(axis=1)]
    counted = {}
    for own, found in zip(names, nearest, strict=True):
        if own != found:
            counted[tuple(sorted((own, found)))] = counted.get(tuple(sorted((own, found))), 0) + 1
    assert counted
    assert {(p.first, p.second): p.times for p in studio.confusions.pairs} == counted
    assert studio.confusions.total == len(counted)


def test_a_confusion_shows_both_people_with_the_most_alike_first(studio):
    pair = studio.confusions.pairs[0]
    told = Tags(markup.confusion(pair, studio, 0.5))
    pictures = [attrs["alt"] for tag, attrs in told.tags if tag == "img"]
    assert len(pictures) == len(set(pictures)) == 8
    assert [p.split("/")[0] for p in pictures] == [pair.first] * 4 + [pair.second] * 4
    paths = {studio.run_images.path_at(row) for row in (pair.query_row, pair.found_row)}
    assert {pictures[0], pictures[4]} == paths


def test_nothing_confused_and_nothing_measured_are_told():
    apart = np.eye(3, dtype=np.float32).repeat(2, axis=0)
    studio = studio_of(apart, np.array(list("aabbcc"), object))
    assert "No identity was taken for another" in markup.confusions_text(studio.confusions)
    columns = {"identity": list("aabb"), "split": ["query", "query", "gallery", "gallery"]}
    search = plan_search(np.eye(4, dtype=np.float32), columns, ["retrieval"])
    nobody = Studio("run", None, studio.run_images, studio.run_images, studio.rates, search)
    assert nobody.confusions.pairs == [] and nobody.confusions.why_none
    assert "Nothing to show" in markup.confusions_text(nobody.confusions)
