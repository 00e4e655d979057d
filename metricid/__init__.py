"""metricid: train, mine and evaluate embeddings of faces, people and vehicles."""

from metricid._version import __version__

__all__ = ["__version__"]
