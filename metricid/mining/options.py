"""What the options of a `hard_identity` sampler may be."""

from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple

from metricid.mining.checks import RangeError

__all__ = ["MOST", "check_options"]

MOST = 10_000  # images of an identity in a batch, or neighbours of one: more is a slip, and fills the memory


class _Rule(NamedTuple):
    holds: Callable[[Any], bool]
    text: str
    kind: Any = Real
    nullable: bool = False


def _words(*known: str) -> _Rule:
    return _Rule(lambda value: value in known, f"must be {' or '.join(map(repr, known))}", str)


_COUNT = _Rule(lambda value: value >= 1, "must be at least 1", Integral)
_FEW = _Rule(lambda value: 1 <= value <= MOST, f"must be from 1 to {MOST}", Integral)
_STEPS = _Rule(lambda value: value >= 0, "must be at least 0", Integral)
_SHARE = _Rule(lambda value: 0 <= value < 1, "must be at least 0 and below 1")
_RULES = {
    "identities": _COUNT,
    "images": _FEW,
    "epoch": _words("images", "identities"),
    "vectors": _words("mean", "classifier", "centers"),
    "share": _SHARE,
    "share_start": _SHARE,
    "ramp": _STEPS,
    "warmup": _STEPS._replace(nullable=True),
    "neighbours": _FEW,
    "temperature": _Rule(lambda value: value == 0 or 1e-6 <= value <= 1e6, "must be 0, or from 1e-6 to 1e6"),
    "refresh": _COUNT._replace(nullable=True),
    "delay": _COUNT._replace(nullable=True),
    "max_repeat": _Rule(lambda value: 2 <= value <= 1e6, "must be from 2 to 1e6"),
    "guard": _Rule(lambda value: -1 < value <= 1, "must be a cosine above -1 and up to 1", nullable=True),
    "far_share": _Rule(lambda value: 0 <= value <= 1, "must be from 0 to 1"),
    "exact_up_to": _COUNT,
    "seed": _Rule(lambda value: True, "", Integral),
}
_KINDS = {Integral: "an integer", Real: "a number", str: "a text"}


def check_options(options: Mapping[str, Any]) -> None:
    """Refuses options of another type, outside their range, or that do not go together.

    Args:
        options: all of the sampler but labels, rank, world_size and `offline`.

    Raises:
        RangeError: names the first of them.
    """
    for name, value in options.items():
        rule = _RULES[name]
        if value is None and rule.nullable:
            continue
        if not isinstance(value, rule.kind) or isinstance(value, bool):
            wanted = _KINDS[rule.kind] + (" or null" if rule.nullable else "")
            raise RangeError(name, f"expected {wanted}, got {value!r}")
        if not rule.holds(value):
            raise RangeError(name, f"{rule.text}, not {repr(value) if rule.kind is str else value}")
    refresh, delay = options["refresh"], options["delay"]
    if refresh is not None and delay is not None and delay > refresh:
        raise RangeError("delay", f"must not be above refresh={refresh}, but is {delay}")
