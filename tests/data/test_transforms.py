import subprocess
import sys
from dataclasses import fields, replace

import cv2
import numpy as np
import pytest
from image_files import picture

from metricid.data.transforms import FaceAugmentation, ReidAugmentation, build_transform, transform_problems
from metricid.errors import InputError

CHANCES = {
    "face": ["flip", "crop", "warp", "color", "gray", "blur", "low_resolution", "erase"],
    "reid": ["flip", "crop", "color", "gray", "blur", "low_resolution", "erase"],
}
CASES = [(preset, name) for preset, names in CHANCES.items() for name in names]


def only(preset, size=(48, 40), **chances):
    return build_transform(preset, size, True, **{**dict.fromkeys(CHANCES[preset], 0.0), **chances})


@pytest.mark.parametrize("preset", ["face", "reid", "plain"])
@pytest.mark.parametrize("shape", [(48, 40), (100, 90), (20, 70), (1, 1)])
def test_output_has_exactly_the_size_for_any_input(preset, shape):
    transform = build_transform(preset, (48, 40), True)
    image = picture(0, *shape)
    for seed in range(40):
        result = transform(image, seed)
        assert result.shape == (48, 40, 3)
        assert result.dtype == np.uint8
        assert result.flags.c_contiguous


@pytest.mark.parametrize(("preset", "name"), CASES)
def test_each_operation_depends_on_the_seed_alone(preset, name):
    transform, again = only(preset, **{name: 0.6}), only(preset, **{name: 0.6})
    image, other = picture(1, 48, 40), picture(2, 70, 60)
    original = image.copy()
    first = [transform(image, seed) for seed in range(30)]
    for seed in reversed(range(30)):
        again(other, seed + 1000)
        np.testing.assert_array_equal(again(image, seed), first[seed])
    np.testing.assert_array_equal(image, original)
    changed = [not np.array_equal(result, image) for result in first]
    assert 5 < sum(changed) < 30


@pytest.mark.parametrize("preset", ["face", "reid"])
def test_the_whole_preset_depends_on_the_seed_alone(preset):
    options = dict.fromkeys(CHANCES[preset], 0.5)
    transform, again = (build_transform(preset, (48, 40), True, **options) for _ in range(2))
    image = picture(1, 50, 60)
    first = [transform(image, seed) for seed in range(50)]
    for seed in reversed(range(50)):
        np.testing.assert_array_equal(again(image, seed), first[seed])
    assert len({result.tobytes() for result in first}) > 45


@pytest.mark.parametrize(("preset", "name"), [case for case in CASES if case[1] != "crop"])
def test_an_operation_happens_as_often_as_its_probability_says(preset, name):
    transform, image = only(preset, **{name: 0.3}), picture(3, 48, 40)
    changed = np.mean([not np.array_equal(transform(image, seed * 7919), image) for seed in range(1000)])
    assert abs(changed - (1 - 0.7**2 if name == "color" else 0.3)) < 0.06


def test_nearby_seeds_give_independent_choices():
    transform, image = only("face", flip=0.5), picture(3, 48, 40)
    flips = np.array([np.array_equal(transform(image, seed), image[:, ::-1]) for seed in range(1000)])
    assert abs(flips.mean() - 0.5) < 0.06
    assert abs((flips[1:] == flips[:-1]).mean() - 0.5) < 0.06


def test_flip_mirrors_and_gray_removes_colour():
    image = picture(4, 48, 40)
    np.testing.assert_array_equal(only("face", flip=1.0)(image, 0), image[:, ::-1])
    gray = only("reid", gray=1.0)(image, 0)
    assert (gray == gray[..., :1]).all()


def test_pad_and_crop_shifts_by_at_most_the_pad():
    image = np.full((50, 40, 3), 200, np.uint8)
    transform = only("reid", size=(50, 40), crop=1.0, crop_pad=0.1)
    black = np.array([(transform(image, seed) == 0).all(axis=2).mean(axis=(0, 1)) for seed in range(300)])
    assert black.max() <= 1 - 0.9 * (1 - 5 / 40) + 1e-9
    assert black.max() > 0.1
    assert len(set(black.tolist())) > 10


def test_erasing_fills_a_rectangle_with_the_mean_colour():
    image = np.zeros((64, 64, 3), np.uint8)
    shares = []
    for seed in range(200):
        erased = (only("face", size=(64, 64), erase=1.0)(image, seed) == (124, 116, 104)).all(axis=2)
        rows, columns = np.flatnonzero(erased.any(axis=1)), np.flatnonzero(erased.any(axis=0))
        assert erased.sum() == len(rows) * len(columns)
        shares.append(erased.mean())
    assert 0.15 < max(shares) <= 0.21
    noise = only("face", size=(64, 64), erase=1.0, erase_fill="noise")(image, 1)
    assert len(np.unique(noise)) > 20


def test_low_resolution_and_blur_remove_detail():
    image = np.random.default_rng(0).integers(0, 256, (48, 40, 3), np.uint8)
    sharpness = cv2.Laplacian(image, cv2.CV_64F).var()
    for name in ("blur", "low_resolution"):
        results = [cv2.Laplacian(only("face", **{name: 1.0})(image, s), cv2.CV_64F).var() for s in range(20)]
        assert np.mean(results) < 0.5 * sharpness


@pytest.mark.parametrize("preset", ["face", "reid", "plain"])
def test_without_training_only_the_size_changes(preset):
    image = picture(5, 96, 80)
    transform = build_transform(preset, (48, 40), False)
    expected = cv2.resize(image, (40, 48), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(transform(image, 3), expected)
    small = picture(5, 10, 12)
    grown = cv2.resize(small, (40, 48), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(transform(small, 3), grown)


@pytest.mark.parametrize("cls", [FaceAugmentation, ReidAugmentation])
def test_every_option_can_be_zero_or_one_or_is_refused(cls):
    preset = {FaceAugmentation: "face", ReidAugmentation: "reid"}[cls]
    for option in fields(cls):
        for value in (0.0, 0.5, 1.0) if option.type is float else ("mean", "noise", "black"):
            options = {**dict.fromkeys(CHANCES[preset], 0.7), option.name: value}
            if transform_problems({"preset": preset, **options}):
                assert option.name in ("crop_area", "low_resolution_scale")
                continue
            transform = build_transform(preset, (32, 24), True, **options)
            for seed in range(10):
                assert transform(picture(6, 40, 30), seed).shape == (32, 24, 3)
    assert replace(cls(), flip=0.1).flip == 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "faces"}, "unknown augmentation preset 'faces'; did you mean 'face'"),
        ({}, "needs the key 'preset'"),
        ({"preset": "face", "flp": 0.5}, "unknown option 'flp'; did you mean 'flip'"),
        ({"preset": "face", "flip": 1.5}, "flip: must lie between 0 and 1, got 1.5"),
        ({"preset": "reid", "erase": -0.1}, "erase: must lie between 0 and 1"),
        ({"preset": "reid", "erase": "often"}, "erase: expected a number, got 'often'"),
        ({"preset": "reid", "erase_fill": "red"}, "erase_fill: expected"),
        ({"preset": "face", "crop_area": 0.0}, "crop_area: must lie between 0.01 and 1"),
        ({"preset": "face", "low_resolution_scale": 0.9}, "between 0.01 and 0.75"),
        ({"preset": "plain", "flip": 0.5}, "takes no options, got 'flip'"),
    ],
)
def test_wrong_options_are_named(options, message):
    assert any(message in problem for problem in transform_problems(options))
    with pytest.raises(InputError, match="augmentation: ") as caught:
        build_transform(options, (32, 24), True)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_impossible_size_is_refused():
    with pytest.raises(InputError, match="size: must be at least 1 x 1, got 0 x 24"):
        build_transform("plain", (0, 24), True)


def test_the_package_imports_albumentations_only_when_it_augments():
    program = (
        "import sys, metricid.data; from metricid.data import build_transform;"
        "build_transform('face', (8, 8), False); assert 'albumentations' not in sys.modules;"
        "build_transform('face', (8, 8), True); assert 'albumentations' in sys.modules;"
        "import os; assert os.environ['NO_ALBUMENTATIONS_UPDATE'] == '1'"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
