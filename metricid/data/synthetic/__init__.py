"""Generated people: images of known identity, drawn when they are read, the same everywhere for one seed."""

from metricid.data.synthetic.faces import SyntheticFaces
from metricid.data.synthetic.pedestrians import SyntheticPedestrians

__all__ = ["SyntheticFaces", "SyntheticPedestrians"]
