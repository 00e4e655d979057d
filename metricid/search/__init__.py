"""Search: an index in a folder, and stores for more than one file holds. Arrays and tables only."""

from metricid.search.store import Condition, Filter, Hits, Store

__all__ = ["Condition", "Filter", "Hits", "Store"]
