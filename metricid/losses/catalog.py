"""The names by which recipes speak of losses."""

from metricid.registry import Registry

LOSSES = Registry("loss", key="loss")
