"""Any data set with one folder per identity."""

import posixpath

from metricid.data.layouts.listing import check_names, image_paths
from metricid.data.manifest import Manifest
from metricid.data.sources import ImageSource

EXPECTED = "one folder of images per identity, identity/image.jpg"


def read(source: ImageSource) -> Manifest:
    """The identity is the folder that holds the image, as a path relative to the root (`a/b` where nested).

    Raises:
        InputError: no images, or images that lie in no folder.
    """
    paths = image_paths(source, EXPECTED)
    identities = [posixpath.dirname(path) for path in paths]
    check_names(source, [path for path, i in zip(paths, identities, strict=True) if not i], EXPECTED)
    return Manifest.from_columns(paths, identities, name=source.name)
