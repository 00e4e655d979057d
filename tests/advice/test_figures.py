"""The figures of a table, each against its definition in another form."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricid.advice.figures import describe, gini, histogram, spread, top_share

COUNTS = st.lists(st.integers(1, 400), min_size=1, max_size=60).map(lambda v: np.array(v, np.int64))


@given(COUNTS)
def test_gini_is_the_mean_difference_over_twice_the_mean(counts):
    differences = [abs(int(a) - int(b)) for a in counts for b in counts]
    expected = sum(differences) / len(differences) / (2 * counts.mean())
    assert gini(counts) == pytest.approx(expected, abs=1e-12)


@given(COUNTS)
def test_histogram_bins_double_and_hold_everybody(counts):
    bins = histogram(counts)
    for first, last, number in bins:
        assert number == sum(first <= n <= last for n in counts)
        assert math.log2(last).is_integer()
    assert sum(n for *_, n in bins) == len(counts)
    assert all(later[0] == earlier[1] + 1 for earlier, later in pairwise(bins))
    assert bins[0][2] > 0 and bins[-1][2] > 0


@given(COUNTS)
def test_effective_number_lies_between_one_and_all(counts):
    found = spread(counts).effective
    entropy = -sum(n / counts.sum() * math.log(n / counts.sum()) for n in counts)
    assert found == pytest.approx(math.exp(entropy))
    assert 1 - 1e-9 <= found <= len(counts) + 1e-9


def test_equal_sizes_have_no_tail():
    found = spread(np.full(7, 5))
    assert found.gini == 0 and found.imbalance == 1
    assert found.effective == pytest.approx(7)
    assert found.top_10 == pytest.approx(1 / 7)


@pytest.mark.parametrize(
    ("part", "expected"), [(0.01, 60 / 100), (0.1, 60 / 100), (0.2, 70 / 100), (1.0, 1.0)]
)
def test_top_share(part, expected):
    assert top_share(np.array([60, 10, 5, 5, 4, 4, 3, 3, 3, 3]), part) == pytest.approx(expected)


@given(COUNTS)
def test_quartiles_are_observed_and_bound_their_share(counts):
    found = spread(counts)
    for value, part in ((found.lower, 0.25), (found.median, 0.5), (found.upper, 0.75)):
        assert value in counts
        assert (counts >= value).mean() >= 1 - part - 1e-9


@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.sampled_from(["1", "2", "3", ""])), min_size=1, max_size=40
    )
)
def test_cameras_equal_a_count_by_hand(rows):
    identities = np.array([a for a, _ in rows], object)
    found = describe(identities, cameras=np.array([b for _, b in rows], object)).cameras
    known = [(a, b) for a, b in rows if b]
    if not known:
        assert found is None
        return
    seen = {a: {b for x, b in known if x == a} for a, _ in known}
    assert found.on_one == sum(len(v) == 1 for v in seen.values())
    assert found.identities == len(seen)
    assert found.unknown == len(rows) - len(known)
    assert found.shares == {b: n / len(known) for b, n in Counter(b for _, b in known).items()}


def test_query_gallery_and_test_are_one_side():
    apart = describe(list("aabb"), splits=np.array(["train", "train", "query", "gallery"], object))
    assert apart.shared == 0
    assert apart.splits == {"gallery": (1, 1), "query": (1, 1), "train": (2, 1)}
    assert describe(list("aabb"), splits=np.array(["train", "test", "query", "gallery"], object)).shared == 1


def test_distractors_are_nobody():
    found = describe(list("000ab"), distractors=("0",))
    assert found.spread.identities == 2 and found.distractor_images == 3
    with pytest.raises(ValueError, match="no image of an identity"):
        describe(["0"], distractors=("0",))


@pytest.mark.parametrize(
    ("sides", "kind"),
    [
        ([[128, 64]] * 9 + [[112, 112]], "people"),
        ([[112, 112], [100, 90]], "faces"),
        ([[60, 100]], "vehicles"),
        ([[128, 64]] * 5 + [[112, 112]] * 5, "other"),
        ([[140, 100]], "other"),
    ],
)
def test_the_shape_tells_what_is_shown_only_where_it_is_clear(sides, kind):
    found = describe(["a"] * 3, sides=np.array(sides), unreadable=2).shapes
    assert found.kind == kind and found.sampled == len(sides) and found.unreadable == 2
