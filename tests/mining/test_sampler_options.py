"""Options of the hard-identity sampler: what is refused, and in which words."""

import math

import numpy as np
import pytest

from metricid.data.samplers import build_sampler
from metricid.errors import InputError
from metricid.mining import HardIdentitySampler

LABELS = np.repeat(np.arange(30), 3)
INTEGERS = ("identities", "images", "ramp", "warmup", "neighbours", "refresh", "delay", "exact_up_to", "seed")
NUMBERS = ("share", "share_start", "temperature", "max_repeat", "guard", "far_share")
NULL = ("warmup", "refresh", "delay", "guard")
COSINE = "must be a cosine above -1 and up to 1, not"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"identities": 0}, "identities: must be at least 1, not 0"),
        ({"identities": 31}, "identities: 31 needs 31 identities"),
        ({"identities": 10**30}, "identities: 1000000000000000000000000000000 needs"),
        ({"images": 0}, "images: must be from 1 to 10000, not 0"),
        ({"images": 10**30}, "images: must be from 1 to 10000, not 1000"),
        ({"neighbours": 0}, "neighbours: must be from 1 to 10000, not 0"),
        ({"neighbours": 10**30}, "neighbours: must be from 1 to 10000, not 1000"),
        ({"exact_up_to": 0}, "exact_up_to: must be at least 1, not 0"),
        ({"share": 1.0}, "share: must be at least 0 and below 1, not 1.0"),
        ({"share": math.nan}, "share: must be at least 0 and below 1, not nan"),
        ({"share_start": -0.1}, "share_start: must be at least 0 and below 1, not -0.1"),
        ({"far_share": 1.1}, "far_share: must be from 0 to 1, not 1.1"),
        ({"far_share": -0.1}, "far_share: must be from 0 to 1, not -0.1"),
        ({"far_share": math.nan}, "far_share: must be from 0 to 1, not nan"),
        ({"max_repeat": 1.9}, "max_repeat: must be from 2 to 1e6, not 1.9"),
        ({"max_repeat": math.nan}, "max_repeat: must be from 2 to 1e6, not nan"),
        ({"max_repeat": math.inf}, "max_repeat: must be from 2 to 1e6, not inf"),
        ({"refresh": 0}, "refresh: must be at least 1, not 0"),
        ({"delay": 0}, "delay: must be at least 1, not 0"),
        ({"delay": 1001}, "delay: must not be above refresh=1000, but is 1001"),
        ({"ramp": -1}, "ramp: must be at least 0, not -1"),
        ({"warmup": -1}, "warmup: must be at least 0, not -1"),
        ({"temperature": -0.1}, "temperature: must be 0, or from 1e-6 to 1e6, not -0.1"),
        ({"temperature": 1e-300}, "temperature: must be 0, or from 1e-6 to 1e6, not 1e-300"),
        ({"temperature": math.inf}, "temperature: must be 0, or from 1e-6 to 1e6, not inf"),
        ({"guard": 7}, f"guard: {COSINE} 7"),
        ({"guard": -1.0}, f"guard: {COSINE} -1.0"),
        ({"guard": math.nan}, f"guard: {COSINE} nan"),
        ({"guard": -math.inf}, f"guard: {COSINE} -inf"),
        ({"guard": np.float64(1.5)}, f"guard: {COSINE} 1.5"),
        ({"epoch": "image"}, "epoch: must be 'images' or 'identities', not 'image'"),
        ({"vectors": "rows"}, "vectors: must be 'mean' or 'classifier' or 'centers', not 'rows'"),
        ({"offline": {"images": 10**30}}, "offline.images: must be from 1 to 10000, not 1000"),
        ({"rank": 1}, "rank 1 is outside"),
    ],
)
def test_options_out_of_range_are_refused_in_one_line(options, message):
    with pytest.raises(InputError) as raised:
        HardIdentitySampler(LABELS, **({"identities": 4} | options))
    assert str(raised.value).startswith(message) and "\n" not in str(raised.value)


@pytest.mark.parametrize("name", INTEGERS + NUMBERS)
def test_options_of_another_type_are_refused_in_one_line(name):
    wanted = ("an integer" if name in INTEGERS else "a number") + (" or null" if name in NULL else "")
    for value in ("3", True, [1], *([2.5, math.inf] if name in INTEGERS else [])):
        with pytest.raises(InputError) as raised:
            HardIdentitySampler(LABELS, **({"identities": 4} | {name: value}))
        assert str(raised.value) == f"{name}: expected {wanted}, got {value!r}"
    if name not in NULL:
        with pytest.raises(InputError, match=f"^{name}: expected {wanted}, got None$"):
            HardIdentitySampler(LABELS, **({"identities": 4} | {name: None}))


def test_numbers_of_numpy_and_the_ends_of_the_ranges_are_taken():
    plain = HardIdentitySampler(LABELS, 4, 2, share=0.5, guard=0.5, refresh=None)
    given = HardIdentitySampler(
        LABELS, np.int64(4), np.int32(2), share=np.float32(0.5), guard=np.float64(0.5), refresh=None
    )
    for mine, theirs in zip(plain.batches(0), given.batches(0), strict=True):
        assert (mine == theirs).all()
    for options in (
        {"guard": 1.0, "far_share": 1.0, "max_repeat": 2.0, "temperature": 0.0, "share": 0.0, "ramp": 0},
        {"guard": -0.999, "max_repeat": 1e6, "temperature": 1e6, "warmup": 0, "neighbours": 10_000},
        {"ramp": 10**30, "exact_up_to": 10**30, "refresh": 10**30, "warmup": 10**30, "seed": -(10**30)},
    ):
        sampler = HardIdentitySampler(LABELS, **({"identities": 4, "images": 2} | options))
        assert len(list(sampler.batches(0))) == len(sampler)


def test_a_recipe_hears_of_it_with_its_own_path():
    options = {"name": "hard_identity", "identities": 4, "images": 2, "guard": 7}
    with pytest.raises(InputError) as raised:
        build_sampler(options, labels=LABELS, seed=0, rank=0, world_size=1)
    assert str(raised.value) == f"data.sampler.guard: {COSINE} 7"
