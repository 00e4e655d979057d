"""Error rates at a threshold against a count over all pairs."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metricid.demo.rates import PairRates
from metricid.errors import InputError


def scores_of_pairs(vectors, names):
    unit = vectors.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    same, different = [], []
    for a, b in combinations(range(len(unit)), 2):
        (same if names[a] == names[b] else different).append(float(unit[a] @ unit[b]))
    return np.array(same), np.array(different)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(-1, 1))
def test_rates_are_shares_of_the_pairs_that_reach_the_threshold(seed, threshold):
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(24, 5)).astype(np.float32)
    names = random.integers(0, 6, 24).astype(str)
    if len(set(names)) < 2 or max(np.unique(names, return_counts=True)[1]) < 2:
        return
    rates = PairRates.from_embeddings(vectors, names)
    same, different = scores_of_pairs(vectors, names)
    assert rates.false_accepts(threshold) == (different >= threshold).sum()
    assert rates.far(threshold) == pytest.approx((different >= threshold).mean())
    assert rates.tar(threshold) == pytest.approx((same >= threshold).mean())


def test_offered_thresholds_keep_to_their_rate_and_a_slightly_lower_one_does_not(people):
    vectors, names = people
    rates = PairRates.from_embeddings(vectors, names)
    _, different = scores_of_pairs(vectors, names)
    found = rates.choices()
    assert list(found) == [0.1]  # 1,056 pairs: a rate of 0.01 would rest on 11 false accepts
    assert (different >= found[0.1]).mean() <= 0.1 < (different >= found[0.1] - 0.02).mean()
    assert found[0.1] == round(found[0.1], 3)
    assert rates.start() == found[0.1]


def test_the_page_starts_at_equal_errors_where_no_rate_is_supported(people):
    vectors, names = people
    rates = PairRates.from_embeddings(vectors[:16], names[:16])
    assert rates.choices() == {}
    same, different = scores_of_pairs(vectors[:16], names[:16])
    start = rates.start()
    assert (different >= start).mean() == pytest.approx((same < start).mean(), abs=1 / len(same))


def test_the_page_starts_at_one_in_a_thousand_where_that_is_supported():
    random = np.random.default_rng(1)
    vectors = random.normal(size=(400, 6)).astype(np.float32)
    rates = PairRates.from_embeddings(vectors, np.arange(400) // 2)
    assert rates.start() == rates.choices()[1e-3]
    assert rates.far(rates.start()) <= 1e-3


def test_a_large_set_is_sampled_and_says_so(people):
    vectors, names = people
    whole = PairRates.from_embeddings(vectors, names)
    sample = PairRates.from_embeddings(vectors, names, most=30)
    assert (whole.images, whole.total) == (48, 48)
    assert (sample.images, sample.total) == (30, 48)
    assert sample.table.genuine_pairs + sample.table.impostor_pairs == 30 * 29 // 2


@pytest.mark.parametrize("names", [["a"] * 6, list("abcdef")])
def test_images_without_pairs_of_both_kinds_are_refused(names):
    with pytest.raises(InputError, match="needs two identities, and two images of one"):
        PairRates.from_embeddings(np.eye(6, dtype=np.float32), names)


def test_a_zero_vector_is_refused():
    with pytest.raises(InputError, match="zero vector"):
        PairRates.from_embeddings(np.zeros((4, 2), np.float32), list("aabb"))


def test_histograms_hold_all_pairs(people):
    rates = PairRates.from_embeddings(*people)
    x, genuine, impostor = rates.shares(20)
    assert len(x) == len(genuine) == len(impostor) == 20
    assert genuine.sum() == pytest.approx(1) and impostor.sum() == pytest.approx(1)
