"""The kinds of index: which one for how many rows, how each is made, searched and read back."""

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import faiss as _faiss
import numpy as np
from numpy.typing import NDArray

from metricid.errors import InputError
from metricid.registry import unknown
from metricid.search.store import Vectors

# The stubs of faiss lack what its Python wrappers add.
faiss: Any = _faiss

KINDS = ("flat", "hnsw", "ivf_sq8", "rabitq")
FLAT_ROWS = 200_000
HNSW_ROWS = 2_000_000
NEIGHBOURS = 32  # of a node of the HNSW graph
BUILD_EFFORT = 80  # candidates kept while a node is put into the graph
SAMPLES_PER_LIST = 40  # faiss warns below 39
REFINED = 10  # candidates per result that RaBitQ scores again with 8 bits
RANGE_STEPS = 256
HNSW_EFFORTS = (32, 64, 128, 256, 512)

_Ids = NDArray[np.int64]


def check_kind(kind: str) -> None:
    """`kind` is one of `KINDS`, and this faiss has it.

    Raises:
        InputError: it is not.
    """
    if kind not in KINDS:
        raise InputError(f"--kind: {unknown('kind', kind, ['auto', *KINDS])}")
    if kind == "rabitq" and not hasattr(faiss, "IndexIVFRaBitQ"):
        raise InputError(
            f"--kind: faiss {faiss.__version__} has no RaBitQ; install a newer one or use ivf_sq8"
        )


def pick_kind(wanted: str, rows: int, now: str | None = None) -> str:
    """The kind for so many rows.

    Args:
        wanted: `auto` or a kind.
        rows: how many there will be.
        now: the kind that the index has; `auto` never goes back to a smaller one.
    """
    if rows == 0:
        return "flat"  # nothing to train the others with
    if wanted != "auto":
        return wanted
    fitting = "flat" if rows <= FLAT_ROWS else "hnsw" if rows <= HNSW_ROWS else "ivf_sq8"
    return fitting if now is None else max(fitting, now, key=KINDS.index)


def list_count(rows: int) -> int:
    """Lists of an inverted file: about 4 sqrt(rows), a power of two, with enough rows to train each."""
    return max(1, min(2 ** round(math.log2(4 * math.sqrt(rows))), rows // SAMPLES_PER_LIST))


def sample_size(kind: str, rows: int) -> int:
    """How many rows train the kind; 0 for kinds that learn nothing."""
    return min(rows, max(SAMPLES_PER_LIST * list_count(rows), 1000)) if kind in ("ivf_sq8", "rabitq") else 0


class VectorIndex:
    """A FAISS index of one kind over unit vectors; a row's number is its place in the order of adding."""

    def __init__(self, kind: str, index: Any):
        self.kind = kind
        self.index = index
        self.dimension = int(index.d)

    @classmethod
    def new(
        cls, kind: str, dimension: int, rows: int, sample: Vectors, ranges: Vectors | None = None
    ) -> "VectorIndex":
        """An empty index.

        Args:
            kind: one of `KINDS`.
            dimension: D.
            rows: how many will be added, which sets the number of lists.
            sample: [S, D] to train with, see `sample_size`.
            ranges: what 8-bit codes span, from `code_ranges` of another index; from the sample if None.
        """
        metric = faiss.METRIC_INNER_PRODUCT
        if kind == "flat":
            return cls(kind, faiss.IndexFlatIP(dimension))
        if kind == "hnsw":
            graph = faiss.IndexHNSWFlat(dimension, NEIGHBOURS, metric)
            graph.hnsw.efConstruction = BUILD_EFFORT
            return cls(kind, graph)
        lists = list_count(rows)
        recipe = f"IVF{lists},SQ8" if kind == "ivf_sq8" else f"IVF{lists},RaBitQ,Refine(SQ8)"
        made = cls(kind, faiss.index_factory(dimension, recipe, metric))
        made._inverted.cp.spherical = True
        made._inverted.cp.min_points_per_centroid = 1  # few rows need no warning
        if kind == "ivf_sq8":
            # Codes that do not depend on the lists survive a rebuild unchanged.
            made._inverted.by_residual = False
        made.index.train(sample)
        made._set_ranges(_widened(made.code_ranges()) if ranges is None else ranges)
        return made

    @classmethod
    def load(cls, kind: str, file: Path, mapped: bool) -> "VectorIndex":
        """Reads a file; `mapped` leaves the vectors on the disk until they are needed.

        Raises:
            InputError: not a whole file of this kind.
        """
        flag = getattr(faiss, "IO_FLAG_MMAP_IFC", faiss.IO_FLAG_MMAP) if mapped else 0
        try:
            index = faiss.read_index(str(file), flag)
        except (RuntimeError, MemoryError) as error:
            reason = " ".join(str(error).split())[-120:]
            raise InputError(f"{file}: not a whole FAISS file ({reason}); build the index again") from None
        expected = {
            "flat": "IndexFlat",
            "hnsw": "IndexHNSWFlat",
            "ivf_sq8": "IndexIVFScalarQuantizer",
            "rabitq": "IndexRefine",
        }[kind]
        if not isinstance(index, getattr(faiss, expected)):
            raise InputError(f"{file}: holds a {type(index).__name__}, but the card says {kind}")
        return cls(kind, index)

    def __len__(self) -> int:
        return int(self.index.ntotal)

    @property
    def _inverted(self) -> Any:
        return faiss.downcast_index(self.index.base_index) if self.kind == "rabitq" else self.index

    @property
    def _coded(self) -> Any:
        """The part with the 8-bit codes."""
        return faiss.downcast_index(self.index.refine_index) if self.kind == "rabitq" else self.index

    def code_ranges(self) -> Vectors | None:
        """[2 D] smallest value and span per dimension of 8-bit codes; None for kinds without."""
        if self.kind in ("flat", "hnsw"):
            return None
        return faiss.vector_to_array(self._coded.sq.trained)

    def _set_ranges(self, ranges: Vectors | None) -> None:
        if ranges is not None:
            faiss.copy_array_to_vector(ranges, self._coded.sq.trained)

    def add(self, vectors: Vectors) -> None:
        """Adds unit vectors [N, D]."""
        self.index.add(vectors)

    def efforts(self) -> tuple[int, ...]:
        """What `search` can be told to spend, rising; one value for an exact kind."""
        if self.kind == "flat":
            return (0,)
        if self.kind == "hnsw":
            return HNSW_EFFORTS
        lists = self._inverted.nlist
        return (*(2**n for n in range(lists.bit_length()) if 2**n < lists), lists)

    def search(self, queries: Vectors, k: int, effort: int) -> tuple[Vectors, _Ids]:
        """The best rows as the kind finds them, every place filled.

        Args:
            queries: [Q, D] unit vectors.
            k: at most the number of rows.
            effort: candidates kept (HNSW) or lists visited (the others).

        Returns:
            scores [Q, k], row numbers [Q, k].
        """
        scores, ids = _faiss_search(self.index, queries, k, search_parameters(self.kind, effort, k))
        if np.minimum.reduce(ids[:, -1], initial=0) < 0:
            # Too few candidates within the effort: a graph in pieces, or short lists.
            short = (ids[:, -1] < 0).nonzero()[0]
            scores[short], ids[short] = self.exact(np.ascontiguousarray(queries[short]), k)
        return scores, ids

    def exact(self, queries: Vectors, k: int, mask: NDArray[np.bool_] | None = None) -> tuple[Vectors, _Ids]:
        """The best rows among those of `mask` [N] by comparing with each, as exactly as vectors are kept."""
        chosen = None if mask is None else faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))
        if self.kind == "ivf_sq8":
            visits = faiss.SearchParametersIVF(sel=chosen, nprobe=self.index.nlist)
            return _faiss_search(self.index, queries, k, visits)
        whole = faiss.downcast_index(self.index.storage) if self.kind == "hnsw" else self.index
        if self.kind == "rabitq":
            whole = self._coded
        return _faiss_search(whole, queries, k, faiss.SearchParameters(sel=chosen))

    def vectors(self, rows: _Ids) -> Vectors:
        """[N, D] the vectors of some row numbers as they are kept: float32, or decoded from 8 bits."""
        if self.kind == "ivf_sq8" and self.index.direct_map.no():
            self.index.make_direct_map()
        return np.asarray(self._coded.reconstruct_batch(rows))


@lru_cache(16)
def search_parameters(kind: str, effort: int, k: int) -> Any:
    """What FAISS is told for an effort (see `VectorIndex.search`); None for the exact kind."""
    if kind == "flat":
        return None
    if kind == "hnsw":
        return faiss.SearchParametersHNSW(efSearch=max(effort, k))
    if kind == "ivf_sq8":
        return faiss.SearchParametersIVF(nprobe=effort)
    visits = faiss.IVFRaBitQSearchParameters(nprobe=effort)
    return faiss.IndexRefineSearchParameters(k_factor=REFINED, base_index_params=visits)


def _widened(ranges: Vectors | None) -> Vectors | None:
    """Ranges rounded outwards, so that they hold no coordinate of any one vector."""
    if ranges is None:
        return None
    low, span = ranges.reshape(2, -1).astype(np.float64)
    bottom = np.floor(low * RANGE_STEPS) / RANGE_STEPS
    top = np.ceil((low + span) * RANGE_STEPS) / RANGE_STEPS
    return np.concatenate([bottom, np.maximum(top - bottom, 1 / RANGE_STEPS)]).astype(np.float32)


def _faiss_search(index: Any, queries: Vectors, k: int, parameters: Any) -> tuple[Vectors, _Ids]:
    """The search of FAISS itself: `faiss.contrib.torch_utils`, which other libraries import, puts one without
    parameters in its place and keeps this one under another name."""
    search = getattr(index, "search_numpy", None) or index.search
    return search(queries, k, params=parameters)
