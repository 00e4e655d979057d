import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.model_selection import KFold

from metricid.evaluation import all_pairs, verification_all_pairs, verification_pairs
from metricid.evaluation.folds import contiguous_folds
from metricid.evaluation.scores import ScoreTable

TARGETS = (0.5, 1e-1, 1e-2, 1e-3)


def faces(seed=0, n=120, identities=15, dim=16, noise=1.0):
    rng = np.random.default_rng(seed)
    ids = rng.integers(identities, size=n)
    x = rng.standard_normal((identities, dim))[ids] + noise * rng.standard_normal((n, dim))
    return x.astype(np.float32), ids


def pair_list(seed=0, pairs=600, noise=1.0):
    rng = np.random.default_rng(seed)
    same = np.tile(np.repeat([True, False], pairs // 20), 10)
    a = rng.standard_normal((len(same), 16))
    b = np.where(same[:, None], a, rng.standard_normal(a.shape)) + noise * rng.standard_normal(a.shape)
    return a.astype(np.float32), b.astype(np.float32), same


def unit(x):
    wide = x.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def sklearn_rates(same, scores, target):
    """Conservative and nearest TAR, EER and AUC from scikit-learn's ROC."""
    far, tar, _ = roc_curve(same, scores, drop_intermediate=False)
    gap = np.abs(far - target)
    near = far == far[gap == gap.min()].max()
    crossing = np.argmax(far >= 1 - tar)
    before, after = 1 - tar[crossing - 1] - far[crossing - 1], far[crossing] - 1 + tar[crossing]
    eer = (far[crossing - 1] * after + far[crossing] * before) / (before + after)
    return tar[far <= target].max(), tar[near].max(), eer, roc_auc_score(same, scores)


def assert_equals_sklearn(result, same, scores, auc_tolerance=1e-12):
    assert (result.genuine_pairs, result.impostor_pairs) == (same.sum(), (~same).sum())
    for target in TARGETS:
        conservative, nearest, eer, auc = sklearn_rates(same, scores, target)
        point, near = result.point(target), result.point(target, "nearest")
        assert_allclose(point.tar, conservative, rtol=1e-12)
        assert_allclose(near.tar, nearest, rtol=1e-12)
        assert point.far <= target
        for p in (point, near):  # the threshold does what it says
            edge = p.threshold - 1e-12
            assert_allclose((scores[same] >= edge).mean(), p.tar, rtol=1e-12)
            assert_allclose((scores[~same] >= edge).mean(), p.far, rtol=1e-12)
    assert_allclose(result.eer, eer, rtol=1e-9)
    assert_allclose(result.auc, auc, rtol=0, atol=auc_tolerance)


def all_scores(x, ids):
    first, second = np.triu_indices(len(x), 1)
    cosine = unit(x) @ unit(x).T
    return ids[first] == ids[second], cosine[first, second]


@pytest.mark.parametrize("seed", range(3))
def test_all_pairs_equal_scikit_learn(seed):
    x, ids = faces(seed)
    assert_equals_sklearn(verification_all_pairs(x, ids, far_targets=TARGETS), *all_scores(x, ids))


@pytest.mark.parametrize("seed", range(3))
def test_streamed_histogram_equals_scikit_learn(seed, monkeypatch):
    """Small tiles and coarse bins, so that every bin holds several pairs and operating bins must be split."""
    monkeypatch.setattr(all_pairs, "_TILE", 7)
    monkeypatch.setattr(all_pairs, "_BINS", 64)
    x, ids = faces(seed, n=100)
    result = verification_all_pairs(x, ids, far_targets=TARGETS, exact_pairs=1000)
    assert 0 < result.auc_error < 0.02
    assert_equals_sklearn(result, *all_scores(x, ids), auc_tolerance=result.auc_error)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_duplicates_tie_and_streaming_agrees(data):
    """Scattered copies of few vectors: the scores of equal pairs must be equal in every tile."""
    base = np.random.default_rng(data.draw(st.integers(0, 99))).standard_normal((6, 5)).astype(np.float32)
    place = np.array(data.draw(st.lists(st.integers(0, 5), min_size=4, max_size=40)))
    ids = np.array(data.draw(st.lists(st.integers(0, 2), min_size=len(place), max_size=len(place))))
    sizes = np.bincount(ids)
    if (sizes > 0).sum() < 2 or sizes.max() < 2:
        return
    exact = verification_all_pairs(base[place], ids, far_targets=TARGETS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(all_pairs, "_TILE", 3)
        tiled = verification_all_pairs(base[place], ids, far_targets=TARGETS)
        streamed = verification_all_pairs(base[place], ids, far_targets=TARGETS, exact_pairs=0)
    same, scores = all_scores(base[place], ids)
    scores = scores.round(9)
    for result in (exact, tiled, streamed):
        for target in TARGETS:
            conservative, nearest, eer, auc = sklearn_rates(same, scores, target)
            assert_allclose(result.tar_at(target), conservative, rtol=1e-12)
            assert_allclose(result.tar_at(target, "nearest"), nearest, rtol=1e-12)
        assert_allclose(result.eer, eer, rtol=1e-9, atol=1e-12)
        assert_allclose(result.auc, auc, atol=max(1e-12, result.auc_error))


def test_a_collapsed_model_accepts_all_or_nothing():
    result = verification_all_pairs(np.full((50, 9), 0.1), np.arange(50) % 5, exact_pairs=0)
    assert result.auc == 0.5
    assert result.eer == 0.5
    assert result.tar_at(0.1) == 0
    assert result.point(0.1).threshold == np.inf
    assert result.auc_error == 0


def test_large_identities_stay_apart():
    result = verification_all_pairs(np.eye(3) + 0.1, [2**53, 2**53 + 1, 2**53])
    assert (result.genuine_pairs, result.impostor_pairs) == (1, 2)


def lfw_loop(distance, same, thresholds_of):
    """The LFW protocol fold by fold, threshold by threshold."""
    accuracies, chosen = [], []
    for train, test in KFold(10, shuffle=False).split(distance):
        best, best_accuracy = None, -1.0
        for t in thresholds_of(distance[train]):
            accuracy = np.mean((distance[train] < t) == same[train])
            if accuracy > best_accuracy + 1e-12:
                best, best_accuracy = t, accuracy
        chosen.append(best)
        accuracies.append(np.mean((distance[test] < best) == same[test]))
    return np.array(accuracies), np.array(chosen)


@pytest.mark.parametrize("pairs", [600, 620])
def test_ten_fold_accuracy_equals_the_protocol(pairs):
    a, b, same = pair_list(pairs=pairs)
    a, b, same = a[:-3], b[:-3], same[:-3]  # folds of unequal size
    result = verification_pairs(a, b, same)
    distance = ((unit(a) - unit(b)) ** 2).sum(1)
    for measured, thresholds in (
        (result.accuracy, lambda d: np.arange(0, 4, 0.01)),
        (result.accuracy_exact, lambda d: [*sorted(set(d)), np.inf]),
    ):
        accuracies, chosen = lfw_loop(distance, same, thresholds)
        assert_array_equal(measured.accuracy, accuracies)
        assert_allclose(measured.thresholds, chosen, rtol=1e-12)
        assert measured.mean == accuracies.mean()
        assert measured.std == np.sqrt(np.mean((accuracies - accuracies.mean()) ** 2))


def test_same_means_strictly_below_the_threshold():
    """All distances are 2 (orthogonal): at threshold 2 nothing is accepted, at 2.01 everything."""
    a, b = np.tile([1.0, 0.0], (20, 1)), np.tile([0.0, 1.0], (20, 1))
    same = np.array([True, True, False] * 6 + [True, False])
    result = verification_pairs(a, b, same)
    assert_array_equal(result.accuracy.thresholds, np.full(10, np.arange(0, 4, 0.01)[201]))
    assert_array_equal(result.accuracy_exact.thresholds, np.full(10, np.inf))
    assert result.accuracy.mean == same.mean()


def test_folds_are_those_of_kfold():
    for pairs in (10, 17, 6000):
        tests = [test for _, test in KFold(10, shuffle=False).split(np.zeros(pairs))]
        assert_array_equal(
            contiguous_folds(pairs), np.concatenate([[i] * len(t) for i, t in enumerate(tests)])
        )


def test_given_folds_in_any_order_equal_contiguous_ones():
    a, b, same = pair_list()
    order = np.random.default_rng(0).permutation(len(same))
    folds = np.array([f"fold {i}" for i in contiguous_folds(len(same))])
    plain = verification_pairs(a, b, same)
    mixed = verification_pairs(a[order], b[order], same[order], folds=folds[order])
    assert_allclose(sorted(mixed.accuracy.accuracy), sorted(plain.accuracy.accuracy))
    assert mixed.tar_at(0.01) == plain.tar_at(0.01)


def test_val_at_far_equals_the_protocol():
    a, b, same = pair_list(pairs=2000, noise=0.8)
    result = verification_pairs(a, b, same, val_far=0.02).val
    distance = ((unit(a) - unit(b)) ** 2).sum(1)
    grid = np.arange(0, 4, 0.001)
    for fold, (train, test) in enumerate(KFold(10, shuffle=False).split(distance)):
        impostors = distance[train][~same[train]]
        largest = {}
        for t in grid:
            largest[np.mean(impostors < t)] = t
        rates = sorted(largest)
        assert_allclose(result.thresholds[fold], np.interp(0.02, rates, [largest[r] for r in rates]))
        inside = distance[test] < result.thresholds[fold]
        assert result.val[fold] == inside[same[test]].mean()
        assert result.far[fold] == inside[~same[test]].mean()
    assert 0.005 < result.far.mean() < 0.05


def test_given_pairs_equal_scikit_learn_and_rows_equal_embeddings():
    a, b, same = pair_list(seed=4)
    scores = 1 - ((unit(a) - unit(b)) ** 2).sum(1) / 2
    result = verification_pairs(a, b, same, far_targets=TARGETS)
    assert_equals_sklearn(result, same, scores)
    rows = np.arange(len(a))
    by_row = verification_pairs(
        rows, rows + len(a), same, embeddings=np.concatenate([a, b]), far_targets=TARGETS
    )
    assert by_row.points == result.points
    assert_array_equal(by_row.accuracy.accuracy, result.accuracy.accuracy)


def test_rates_beyond_the_data_are_marked():
    x, ids = faces(n=150)
    result = verification_all_pairs(x, ids)
    assert result.reliable_far == 30 / result.impostor_pairs == 30 * result.smallest_far
    assert 1e-3 < result.reliable_far < 1e-2
    assert {p.target for p in result.points if p.supported} == {1e-1, 1e-2}


def test_exactly_thirty_expected_errors_support_a_rate():
    table = ScoreTable(np.array([0.0, 1.0]), np.array([0, 5]), np.array([3000, 0]))
    assert table.point(0.01, "conservative").supported
    assert not table.point(0.0099, "conservative").supported


def test_curves_lie_on_the_roc_and_histograms_add_up():
    x, ids = faces(seed=5, n=200)
    result = verification_all_pairs(x, ids)
    same, scores = all_scores(x, ids)
    far, tar, _ = roc_curve(same, scores, drop_intermediate=False)
    points = set(zip(far.round(12), tar.round(12), strict=True))
    assert all(p in points for p in zip(result.roc.x.round(12), result.roc.y.round(12), strict=True))
    assert (result.roc.x[0], result.roc.y[0], result.roc.x[-1], result.roc.y[-1]) == (0, 0, 1, 1)
    assert_allclose(np.trapezoid(result.roc.y, result.roc.x), result.auc, atol=2e-3)
    for curve, chosen in ((result.genuine_scores, same), (result.impostor_scores, ~same)):
        assert_allclose(curve.y.sum(), 1)
        assert_allclose((curve.x * curve.y).sum(), scores[chosen].mean(), atol=0.01)


def bootstrap_loop(x, ids, target, replicates, seed):
    """Identities drawn with replacement; the pairs of each draw listed one by one."""
    rng = np.random.default_rng(seed)
    names = list(dict.fromkeys(ids.tolist()))
    score = unit(x) @ unit(x).T
    rates = []
    for _ in range(replicates):
        drawn = [names[i] for i in rng.integers(len(names), size=len(names))]
        genuine, impostor = [], []
        for i, one in enumerate(drawn):
            own = np.flatnonzero(ids == one)
            genuine += [score[p, q] for p in own for q in own if p < q]
            for other in drawn[i + 1 :]:
                if other != one:
                    impostor += [score[p, q] for p in own for q in np.flatnonzero(ids == other)]
        impostor = np.sort(impostor)[::-1]
        refused = impostor[int(np.floor(target * len(impostor) + 1e-9))]
        rates.append(np.mean(np.array(genuine) > refused))
    return np.quantile(rates, [0.025, 0.975])


def test_bootstrap_equals_listing_the_pairs():
    x, ids = faces(seed=8, n=60, identities=12)
    result = verification_all_pairs(x, ids, far_targets=(0.1, 0.03), bootstrap=25, seed=3)
    for target in (0.1, 0.03):
        assert_allclose(
            result.intervals[f"TAR@FAR={target:g}"], bootstrap_loop(x, ids, target, 25, 3), rtol=1e-9
        )


GOOD = {"a": np.eye(20) + 0.1, "b": np.eye(20), "same": [True, False] * 10}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": np.zeros((20, 20))}, "a row 0 .* zero vector"),
        ({"b": np.full((20, 20), np.nan)}, "b row 0 .* NaN"),
        ({"b": np.eye(21)}, "differ in shape"),
        ({"same": [True] * 20}, "all 20 pairs are of one kind"),
        ({"same": [True] * 3}, "same has shape"),
        ({"same": [2] * 20}, "same must hold booleans"),
        ({"folds": [0] * 20}, "one fold only"),
        ({"folds": [0]}, "folds has shape"),
        ({"far_targets": (0.0,)}, "false accept rates must lie"),
        ({"val_far": 2.0}, "false accept rates must lie"),
        ({"embeddings": np.eye(20)}, "a must be rows of embeddings"),
        ({"embeddings": np.eye(20), "a": [0], "b": [20]}, "b refers to rows outside the 20 embeddings"),
        ({"embeddings": np.eye(20), "a": [0], "b": [0, 1]}, "a holds 1 rows, b 2"),
        ({"a": np.eye(9), "b": np.eye(9), "same": [1, 0, 1] * 3}, "too few for ten folds"),
    ],
)
def test_bad_pairs_are_one_clear_line(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        verification_pairs(**(GOOD | change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("x", "ids", "options", "message"),
    [
        (np.eye(3), [1, 1, 1], {}, "of one identity"),
        (np.eye(3), [1, 2, 3], {}, "every identity occurs once"),
        (np.eye(3), [1, 2], {}, "ids has shape"),
        (np.eye(3), [1, 1, 2], {"exact_pairs": 2, "bootstrap": 5}, "needs exact_pairs >= 3"),
        (np.eye(3), [1, 1, 2], {"far_targets": ()}, "false accept rates must lie"),
    ],
)
def test_bad_sets_are_one_clear_line(x, ids, options, message):
    with pytest.raises(ValueError, match=message):
        verification_all_pairs(x, ids, **options)
