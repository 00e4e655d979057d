"""Embedding files block by block, float16, and the memory that this takes."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metricid.data.embedding_file import EmbeddingReader, write_embeddings
from metricid.data.embedding_set import EmbeddingSet
from metricid.data.float16 import float16_error
from metricid.data.manifest import Manifest
from metricid.errors import InputError


def table(count):
    return Manifest.from_columns([f"{i}.jpg" for i in range(count)], [f"p{i % 3}" for i in range(count)])


def vectors(count, width=5, scale=1.0):
    return (scale * np.random.default_rng(count).standard_normal((count, width))).astype(np.float32)


def pieces(array, size):
    return [array[start : start + size] for start in range(0, len(array), size)]


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(1, 40),
    written=st.integers(1, 41),
    read=st.integers(1, 41),
    suffix=st.sampled_from([".parquet", ".npy"]),
    dtype=st.sampled_from(["float32", "float16"]),
)
def test_blocks_of_any_size_come_back_in_order(tmp_path_factory, count, written, read, suffix, dtype):
    file = tmp_path_factory.mktemp("blocks") / f"e{suffix}"
    original = vectors(count)
    write_embeddings(file, table(count), pieces(original, written), {"a": 1}, dimension=5, dtype=dtype)
    reader = EmbeddingReader(file)
    assert (len(reader), reader.dimension, reader.dtype, reader.card) == (count, 5, dtype, {"a": 1})
    blocks = list(reader.blocks(read))
    assert all(len(block) == len(rows) <= read and block.dtype == np.float32 for block, rows in blocks)
    np.testing.assert_array_equal(
        np.concatenate([block for block, _ in blocks]), original.astype(dtype).astype(np.float32)
    )
    assert pa.concat_tables([rows for _, rows in blocks])["path"].to_pylist() == reader.table.paths
    assert EmbeddingSet.read(file).table == table(count)


@pytest.mark.parametrize("suffix", [".parquet", ".npy"])
def test_what_does_not_fit_leaves_no_file(tmp_path, suffix):
    file = tmp_path / f"e{suffix}"
    cases = [
        ([vectors(3)], "float32", "3 embeddings for 4 rows"),
        ([vectors(3), vectors(3)], "float32", "6 embeddings for 4 rows"),
        ([vectors(3), np.full((1, 5), np.nan, np.float32)], "float32", r"row 3 \(counted from 0\) holds NaN"),
        (
            [vectors(2), vectors(2, scale=1e6)],
            "float16",
            r"2\.jpg: its embedding has values of up to .*65504",
        ),
    ]
    for blocks, dtype, message in cases:
        with pytest.raises(InputError, match=message):
            write_embeddings(file, table(4), blocks, {}, dimension=5, dtype=dtype)
        assert list(tmp_path.iterdir()) == []


def test_the_row_of_a_bad_value_counts_over_blocks(tmp_path):
    values = vectors(10)
    values[7, 2] = np.inf
    lists = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 5)
    stored = table(10).table.append_column("embedding", lists).replace_schema_metadata({b"metricid": b"{}"})
    pyarrow.parquet.write_table(stored, tmp_path / "e.parquet")
    blocks = EmbeddingReader(tmp_path / "e.parquet").blocks(4)
    assert len(next(blocks)[0]) == 4
    with pytest.raises(InputError, match=r"e.parquet: row 7 \(counted from 0\) holds NaN or infinity"):
        next(blocks)


def test_a_column_of_no_manifest_is_refused_unread(tmp_path, monkeypatch):
    file = tmp_path / "e.parquet"
    write_embeddings(file, table(4), [vectors(4)], {}, dimension=5)
    stored = pyarrow.parquet.read_table(file)
    pyarrow.parquet.write_table(stored.append_column("note", pa.array([["x" * 1000]] * 4)), file)
    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "read", lambda *_: pytest.fail("the columns were read"))
    with pytest.raises(InputError, match="column 'note' must hold text or numbers, but holds list<"):
        EmbeddingReader(file)


def test_damage_inside_the_file_is_one_line(tmp_path):
    file = tmp_path / "e.parquet"
    write_embeddings(file, table(200), [vectors(200)], {}, dimension=5)
    data = bytearray(file.read_bytes())
    start = data.index(vectors(200)[0].tobytes())
    data[start - 40 : start] = b"\xff" * 40  # the header of the page of vectors
    file.write_bytes(data)
    with pytest.raises(InputError, match="not a readable Parquet file") as caught:
        EmbeddingSet.read(file)
    assert "\n" not in str(caught.value)


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 700), scale=st.sampled_from([1e-3, 1.0, 100.0]), block=st.integers(1, 700))
def test_the_error_of_float16_against_its_definition(count, scale, block):
    original = vectors(count, scale=scale)
    rounded = original.astype(np.float16).astype(np.float64)

    def cosines(x):
        x = x.astype(np.float64)
        x /= np.linalg.norm(x, axis=1)[:, None]
        return x @ x.T

    error = float16_error(pieces(original, block))
    assert error["max_abs"] == pytest.approx(np.abs(rounded - original).max(), rel=1e-6)
    change = np.abs(cosines(rounded) - cosines(original)).max()
    assert error["max_cosine_change"] <= change * (1 + 1e-9) + 1e-15
    assert change <= error["cosine_bound"] * (1 + 1e-9) + 1e-15
    if block >= count and count <= 512:
        assert error["max_cosine_change"] == pytest.approx(change, abs=1e-15)
        assert error["pairs"] == count * (count - 1) // 2


def test_zero_vectors_have_no_error():
    assert float16_error([np.zeros((3, 2), np.float32)]) == {
        "max_abs": 0.0,
        "max_cosine_change": 0.0,
        "pairs": 3,
        "cosine_bound": 0.0,
    }


MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np
from metricid.data.embedding_file import EmbeddingReader, write_embeddings
from metricid.data.embedding_parts import PartFolder
from metricid.data.float16 import float16_error
from metricid.data.manifest import Manifest

count, target = int(sys.argv[1]), Path(sys.argv[2])
names = [f"{i}.jpg" for i in range(count)]
table = Manifest.from_columns(names, names)
parts = PartFolder(target, count, 500)
block = np.random.default_rng(0).standard_normal((500, 1024)).astype(np.float32)
with parts.locked():
    for part in range(len(parts)):
        parts.write(part, np.array(parts.rows(part)), block, "")
    read = lambda: (parts.read(part)[1] for part in range(len(parts)))
    float16_error(read())
    write_embeddings(target, table, read(), {}, dimension=1024)
    if target.suffix == ".parquet":  # a mapped .npy file counts as memory while it is read
        assert sum(len(vectors) for vectors, _ in EmbeddingReader(target).blocks(500)) == count
    parts.remove()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.parametrize("suffix", [".parquet", ".npy"])
def test_memory_does_not_grow_with_the_number_of_embeddings(tmp_path, suffix):
    peaks = []
    for count in (2_000, 16_000):
        words = [sys.executable, "-c", MEMORY, str(count), str(tmp_path / f"{count}{suffix}")]
        peaks.append(int(subprocess.run(words, capture_output=True, check=True, timeout=120).stdout))
    assert peaks[1] - peaks[0] < 20, "for 55 MiB more of embeddings"
