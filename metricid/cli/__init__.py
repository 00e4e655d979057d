"""The commands of `metricid`; the scripts in `tools/` are the same functions."""
