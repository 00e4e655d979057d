"""The estimate of wrong labels: against planted ones, and its parts against loops."""

import numpy as np
import pytest

from metricid.advice import noise
from metricid.advice.noise import estimate_noise


def people(identities=100, images=10, spread=1.0, width=64, seed=0):
    """Gaussian clusters: vectors [N, D], and who is shown [N]."""
    rng = np.random.default_rng(seed)
    shown = np.repeat(np.arange(identities), images)
    centers = rng.normal(size=(identities, width))
    return (centers[shown] + spread * rng.normal(size=(len(shown), width))).astype(np.float32), shown


def with_wrong(shown, share, seed=1):
    """Labels of which a share is wrong for certain, and the rows of those."""
    rng = np.random.default_rng(seed)
    labels = shown.copy()
    rows = rng.choice(len(shown), round(share * len(shown)), replace=False)
    for row in rows:
        labels[row] = rng.choice(shown[shown != shown[row]])
    return labels, rows


@pytest.mark.parametrize("spread", [0.5, 1.0, 1.3])
@pytest.mark.parametrize(("share", "tolerance"), [(0.0, 0.003), (0.05, 0.01), (0.2, 0.02)])
def test_planted_noise_is_found(spread, share, tolerance):
    vectors, shown = people(spread=spread)
    labels, _ = with_wrong(shown, share)
    found = estimate_noise(vectors, labels)
    assert found.share == pytest.approx(share, abs=tolerance)
    assert found.low <= found.share <= found.high


@pytest.mark.parametrize("share", [0.0, 0.05])
def test_errors_of_a_weak_model_are_not_taken_for_wrong_labels(share):
    vectors, shown = people(identities=50, images=20, width=16)
    labels, _ = with_wrong(shown, share)
    found = estimate_noise(vectors, labels)
    assert found.at_most > share + 0.05, "the model errs, or this tests nothing"
    assert found.share == pytest.approx(share, abs=0.02)


def test_examples_are_wrong_labels_and_look_like_whom_they_show():
    vectors, shown = people()
    labels, rows = with_wrong(shown, 0.05)
    found = estimate_noise(vectors, labels)
    assert len(found.examples) == noise.EXAMPLES
    assert {row for row, _ in found.examples} <= set(rows.tolist())
    assert all(shown[row] == shown[like] for row, like in found.examples)


def test_embeddings_that_say_nothing_give_no_estimate():
    vectors, shown = people(spread=20.0)
    found = estimate_noise(vectors, shown)
    assert found.share is None and found.low is None and found.at_most is None
    assert found.sensitivity < noise.LEAST_SENSITIVITY


@pytest.mark.parametrize(("identities", "images"), [(1, 50), (100, 2), (9, 3)])
def test_too_few_images_to_compare_with_give_none(identities, images):
    vectors, shown = people(identities, images)
    assert estimate_noise(vectors, shown) is None


def test_length_of_vectors_and_names_of_identities_do_not_matter():
    vectors, shown = people(identities=30)
    labels, _ = with_wrong(shown, 0.1)
    scale = np.random.default_rng(0).uniform(1e-30, 1e30, (len(vectors), 1)).astype(np.float32)
    plain, scaled = estimate_noise(vectors, labels), estimate_noise(vectors * scale, labels * 7 + 3)
    assert scaled.share == pytest.approx(plain.share, abs=0.005)
    assert scaled.suspects == plain.suspects


def test_blocks_change_nothing(monkeypatch):
    vectors, shown = people(identities=20)
    labels, _ = with_wrong(shown, 0.1)
    whole = estimate_noise(vectors, labels)
    monkeypatch.setattr(noise, "_BLOCK_BYTES", 8 * len(labels) * 7)
    assert estimate_noise(vectors, labels) == whole


def test_a_sample_of_the_rows_gives_the_like():
    vectors, shown = people()
    labels, _ = with_wrong(shown, 0.1)
    found = estimate_noise(vectors, labels, most=400)
    assert found.examined == 400
    assert found.share == pytest.approx(0.1, abs=0.04)


def suspects_by_hand(vectors, labels, cameras):
    """Row -> proof, by the definition and with loops."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = unit.astype(np.float64) @ unit.T.astype(np.float64)
    found, examined = {}, 0
    for row in range(len(labels)):
        seen = [i for i in range(len(labels)) if cameras[i] != cameras[row]]
        if sum(labels[i] == labels[row] for i in seen) < 2:
            continue
        examined += 1
        near = sorted(seen, key=lambda i: -cosine[row, i])[: noise.NEIGHBOURS]
        votes = [labels[i] for i in near]
        most, proof = 0, None
        for name in dict.fromkeys(votes):
            could = [i for i in seen if labels[i] == name]
            many = votes.count(name)
            if name == labels[row] or len(could) < 2 or many <= votes.count(labels[row]):
                continue
            if 2 * many > min(noise.NEIGHBOURS, len(could)) and many > most:
                own = [i for i in seen if labels[i] == labels[row]]
                most, proof = many, cosine[row, could].mean() - cosine[row, own].mean()
        if proof is not None and proof > 0:
            found[row] = proof
    return found, examined


@pytest.mark.parametrize("by_camera", [False, True])
def test_suspects_equal_their_definition(by_camera):
    vectors, shown = people(identities=12, images=8, width=12, seed=3)
    labels, _ = with_wrong(shown, 0.15)
    cameras = np.random.default_rng(5).integers(0, 3, len(labels))
    found = estimate_noise(vectors, labels, cameras=cameras if by_camera else None)
    expected, examined = suspects_by_hand(vectors, labels, cameras if by_camera else np.arange(len(labels)))
    assert found.examined == examined
    assert found.suspects == len(expected) > 5
    clearest = sorted(expected, key=lambda row: -expected[row])[: noise.EXAMPLES]
    assert [row for row, _ in found.examples] == clearest


def test_frames_of_one_camera_do_not_vouch_for_each_other():
    """Wrong tracks: all images of an identity from one camera carry another one's label."""
    vectors, shown = people(identities=60, images=12, spread=0.6)
    cameras = np.tile(np.repeat(np.arange(3), 4), 60)
    labels = shown.copy()
    for track in range(0, 60, 5):
        labels[(shown == track) & (cameras == 0)] = (track + 1) % 60
    share = (labels != shown).mean()
    assert estimate_noise(vectors, labels, cameras=cameras).share == pytest.approx(share, abs=0.02)
    assert estimate_noise(vectors, labels).share < share / 2
