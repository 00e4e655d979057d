"""Means and paired differences against SciPy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from metricid.comparison.statistics import Difference, against_best, mean_of, t_quantile

rates = st.lists(st.integers(0, 1000).map(lambda n: n / 1000), min_size=2, max_size=12)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 10, 29, 99])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99])
def test_quantiles_are_those_of_students_distribution(freedom, confidence):
    expected = stats.t.ppf(0.5 + confidence / 2, freedom)
    assert t_quantile(freedom, confidence) == pytest.approx(expected, rel=1e-10)


@given(rates)
def test_the_interval_of_a_mean_is_scipys(values):
    found = mean_of(values)
    if len(set(values)) > 1:
        low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
        assert (found.value - found.half, found.value + found.half) == pytest.approx((low, high), abs=1e-12)
    else:
        assert found.half == pytest.approx(0, abs=1e-12)
    assert (found.value, found.count) == (pytest.approx(np.mean(values)), len(values))


def test_one_value_has_no_interval_and_none_no_mean():
    assert mean_of([0.5]).half is None
    with pytest.raises(ValueError, match="needs a value"):
        mean_of([])


@given(rates, st.data())
def test_worse_is_what_the_paired_test_calls_significant(best, data):
    own = data.draw(st.lists(st.sampled_from(best), min_size=len(best), max_size=len(best)))
    differences = np.round(1000 * (np.array(own) - best))
    found = against_best(own, best)
    if len(set(differences)) == 1:
        return
    test = stats.ttest_rel(own, best)
    if abs(test.pvalue - 0.05) > 1e-9:
        assert found.verdict == ("worse" if test.pvalue < 0.05 and differences.mean() < 0 else "noise")


def test_pairs_take_out_what_the_seeds_share():
    best, own = [0.60, 0.70, 0.80], [0.589, 0.690, 0.791]  # far apart by seed, always a hundredth below
    assert stats.ttest_ind(own, best).pvalue > 0.8
    assert against_best(own, best).verdict == "worse"
    assert against_best([0.62, 0.68, 0.79], best).verdict == "noise"


def test_what_cannot_be_known_is_said():
    assert against_best([None, 0.5], [0.5, None]) == Difference("unknown")
    one = against_best([0.4, None], [0.5, 0.6])
    assert (one.verdict, one.mean, one.half, one.count) == ("unknown", pytest.approx(-0.1), None, 1)
    assert against_best([0.5, 0.25], [0.75, 0.5]).verdict == "unknown"  # no spread to judge by
    assert against_best([0.5, 0.25], [0.5, 0.25]).verdict == "noise"  # the same results
