"""How many of an identity's far images a batch of the hard-identity sampler shows."""

import math

import numpy as np
import pytest

from metricid.mining import HardIdentitySampler

FREE = {"refresh": None, "guard": None}
LABELS = np.repeat(np.arange(40), 16)


def far_of(distances):
    """The images in the farthest quarter of their identity, found one identity at a time."""
    rows = [np.flatnonzero(identity == LABELS) for identity in range(40)]
    return [row for own in rows for row in own[np.argsort(-distances[own])][:4]]


def test_far_images_come_more_often_once_distances_are_known():
    labels = np.repeat(np.arange(8), 16)
    distances = np.random.default_rng(0).random(128)
    far = {i for k in range(8) for i in np.flatnonzero(labels == k)[np.argsort(-distances[labels == k])[:4]]}
    for share, expected in ((0.0, 0.25), (0.5, 0.5), (1.0, 1.0)):
        sampler = HardIdentitySampler(labels, 4, 4, far_share=share, **FREE)
        before = np.isin(np.concatenate(list(sampler.batches(0))), list(far)).mean()
        sampler.set_distances(distances)
        shown = np.concatenate([np.concatenate(list(sampler.batches(epoch))) for epoch in range(4)])
        assert abs(np.isin(shown, list(far)).mean() - expected) < 0.06
        assert abs(before - 0.25) < 0.12
    assert len(set(np.concatenate(list(HardIdentitySampler(labels, 4, 4, **FREE).batches(0))))) == 128


@pytest.mark.parametrize(
    ("share", "images"), [(0.05, 4), (0.1, 3), (0.3, 4), (0.25, 4), (0.1, 10), (0.9, 4), (1e-3, 4)]
)
def test_a_share_that_is_no_whole_number_of_images_is_reached_on_average(share, images):
    distances = np.random.default_rng(0).random(len(LABELS))
    sampler = HardIdentitySampler(LABELS, 8, images, far_share=share, seed=3, **FREE)
    sampler.set_distances(distances)
    wanted, far, shown = share * images, far_of(distances), []
    for epoch in range(6):
        batches = np.stack([b.reshape(8, images) for b in sampler.batches(epoch)])
        for identity in range(40):
            blocks = batches[(LABELS[batches] == identity).all(axis=2)]
            numbers = np.isin(blocks, far).sum(axis=1)
            assert {math.floor(wanted + 1e-9), math.ceil(wanted - 1e-9)} >= set(numbers.tolist())
            assert all(len(set(block)) == images for block in blocks.tolist())
            # As even as whole numbers can be: no stretch of batches is an image away from its share.
            so_far = numbers.cumsum() - wanted * np.arange(1, len(numbers) + 1)
            assert so_far.max() - min(so_far.min(), 0) < 1 + 1e-9
            shown += numbers.tolist()
    # Counted from a uniform start: the variance of a stretch is below 1/4 of an image.
    assert abs(np.mean(shown) - wanted) < 4 * 0.5 * math.sqrt(6 * 40) / len(shown)
    assert sum(shown) > 0


def test_the_images_of_a_fraction_belong_to_the_seed_and_the_epoch_alone():
    distances = np.random.default_rng(0).random(len(LABELS))

    def batches(seed, start=0, epoch=1):
        sampler = HardIdentitySampler(LABELS, 8, 4, far_share=0.3, seed=seed, **FREE)
        sampler.set_distances(distances)
        return np.stack(list(sampler.batches(epoch, start)))

    whole = batches(3)
    assert (batches(3) == whole).all()
    assert (batches(3, start=7) == whole[7:]).all()
    assert (batches(4) != whole).any()
    assert (batches(3, epoch=2) != whole).any()
