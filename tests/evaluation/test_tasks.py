"""Measures of tasks against scikit-learn, and where they are not defined."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sklearn import metrics as sk

from metricid.evaluation import ProtocolResult, format_table
from metricid.evaluation.tasks import attribute_metrics, category_metrics, mask_overlap, number_metrics

CLASSES = st.lists(st.tuples(*[st.integers(0, 4)] * 2), min_size=1, max_size=40)
SCORES = st.lists(
    st.tuples(st.sampled_from([0.0, 0.2, 0.5, 0.7, 1.0]), st.booleans()), min_size=2, max_size=40
).filter(lambda rows: 0 < sum(yes for _, yes in rows) < len(rows))


@given(CLASSES)
@pytest.mark.filterwarnings("ignore:y_pred contains classes")
def test_category_measures_are_those_of_scikit_learn(rows):
    predicted, truth = map(np.array, zip(*rows, strict=True))
    found = category_metrics(predicted, truth)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(truth, predicted))
    assert found["balanced accuracy"] == pytest.approx(sk.balanced_accuracy_score(truth, predicted))
    assert found["macro-F1"] == pytest.approx(sk.f1_score(truth, predicted, average="macro"))


def test_a_class_that_was_never_trained_counts_as_wrong():
    found = category_metrics(["red", "red", "blue"], ["red", "pink", "blue"])
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["balanced accuracy"] == pytest.approx((1 + 0 + 1) / 3)
    assert found["macro-F1"] == pytest.approx((2 / 3 + 0 + 1) / 3)


@given(SCORES)
def test_attribute_measures_are_those_of_scikit_learn(rows):
    scores, truth = map(np.array, zip(*rows, strict=True))
    found, left_out = attribute_metrics(scores[:, None], truth[:, None].astype(float), ["hat"])
    assert left_out == []
    assert found["mA"] == pytest.approx(sk.balanced_accuracy_score(truth, scores >= 0.5))
    assert found["AP hat"] == pytest.approx(sk.average_precision_score(truth, scores))


def test_missing_attributes_do_not_count_and_one_sided_ones_have_no_measure():
    truth = np.array([[1, 1, np.nan], [0, 1, np.nan], [np.nan, 1, np.nan], [1, np.nan, np.nan]])
    scores = np.array([[0.9, 0.1, 0.5], [0.6, 0.1, 0.5], [0.0, 0.1, 0.5], [0.2, 0.1, 0.5]])
    found, left_out = attribute_metrics(scores, truth, ["hat", "bag", "tie"])
    assert left_out == ["bag", "tie"]
    known = [0, 1, 3]
    assert found["mA"] == found["mA hat"] == pytest.approx((1 / 2 + 0 / 1) / 2)
    assert found["mAP"] == pytest.approx(sk.average_precision_score(truth[known, 0], scores[known, 0]))
    assert "mA bag" not in found
    assert attribute_metrics(scores[:, 1:], truth[:, 1:], ["bag", "tie"]) == ({}, ["bag", "tie"])


@given(st.lists(st.tuples(*[st.floats(-100, 100)] * 2), min_size=1, max_size=30))
@example([(0.0, 9.391168420040902e-35)] * 3)  # their mean is another number than they are
def test_number_measures_are_those_of_scikit_learn(rows):
    predicted, truth = map(np.array, zip(*rows, strict=True))
    found = number_metrics(predicted, truth)
    assert found["MAE"] == pytest.approx(sk.mean_absolute_error(truth, predicted))
    assert found["RMSE"] == pytest.approx(np.sqrt(sk.mean_squared_error(truth, predicted)))
    if np.ptp(truth) > 1e-6:
        assert found["R2"] == pytest.approx(sk.r2_score(truth, predicted), rel=1e-6, abs=1e-9)
    if np.ptp(truth) == 0:
        assert "R2" not in found


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_overlaps_of_masks_are_those_of_scikit_learn(rows):
    predicted, truth = (np.array(side)[None] for side in zip(*rows, strict=True))
    dice, iou = mask_overlap(predicted, truth)
    if predicted.any() or truth.any():
        assert dice == pytest.approx(sk.f1_score(truth[0], predicted[0], zero_division=0.0))
        assert iou == pytest.approx(sk.jaccard_score(truth[0], predicted[0], zero_division=0.0))
    else:
        assert (dice, iou) == (1.0, 1.0)


@pytest.mark.parametrize(
    "call",
    [
        lambda: category_metrics([], []),
        lambda: category_metrics([1], [1, 2]),
        lambda: number_metrics([[1.0]], [1.0]),
        lambda: attribute_metrics(np.zeros((2, 3)), np.zeros((2, 3)), ["hat"]),
        lambda: mask_overlap(np.zeros((2, 3), bool), np.zeros((3, 2), bool)),
    ],
)
def test_arrays_that_do_not_fit_are_refused(call):
    with pytest.raises(ValueError, match=r"shape|names"):
        call()


def test_measures_that_are_no_rates_are_shown_as_they_are():
    result = ProtocolResult(
        "number", "age", {"MAE": 4.25, "R2": -0.5}, {"known": 3}, units={"MAE": "years", "R2": ""}
    )
    text = format_table([result])
    assert "4.25 years" in text and "-0.5" in text and "%" not in text
    assert result.to_json()["units"] == {"MAE": "years", "R2": ""}
