"""Search: an index in a folder, and stores for more than one file holds. Arrays and tables only."""

from metricid.search.build import ArraySource, VectorSource
from metricid.search.index import SearchIndex
from metricid.search.kinds import KINDS
from metricid.search.store import Condition, Filter, Hits, Store

__all__ = ["KINDS", "ArraySource", "Condition", "Filter", "Hits", "SearchIndex", "Store", "VectorSource"]
