"""How public benchmarks name their files: one module per layout, each with `read(source, **options)`."""

from collections.abc import Callable

from metricid.data.layouts import folder, lfw, market1501, omniglot
from metricid.data.manifest import Manifest

LAYOUTS: dict[str, Callable[..., Manifest]] = {
    "folder": folder.read,
    "lfw": lfw.read,
    "market1501": market1501.read,
    "omniglot": omniglot.read,
}

__all__ = ["LAYOUTS", "folder", "lfw", "market1501", "omniglot"]
