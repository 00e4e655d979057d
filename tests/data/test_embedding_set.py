import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from metricid.data.embedding_set import EmbeddingSet
from metricid.data.manifest import Manifest
from metricid.errors import InputError

CARD = {"model": "resnet18", "epoch": 3, "nested": {"size": [112, 112]}, "name": "Zoë"}


def some(count=4, width=3):
    table = Manifest.from_columns(
        [f"{i}.jpg" for i in range(count)], ["ann", "bo"] * (count // 2), camera=["1"] * count
    )
    vectors = np.random.default_rng(0).standard_normal((count, width)).astype(np.float32)
    return EmbeddingSet(vectors, table, CARD)


@pytest.mark.parametrize("suffix", [".parquet", ".npy"])
@pytest.mark.parametrize("count", [4, 0])
def test_a_file_gives_back_the_same_set(tmp_path, suffix, count):
    original = some(count)
    original.write(tmp_path / f"e{suffix}")
    again = EmbeddingSet.read(tmp_path / f"e{suffix}")
    np.testing.assert_array_equal(again.embeddings, original.embeddings)
    assert again.embeddings.dtype == np.float32
    assert again.embeddings.flags.writeable
    assert again.table == original.table
    assert again.card == CARD
    assert len(again) == count


def test_parquet_is_readable_without_us(tmp_path):
    original = some()
    original.write(tmp_path / "e.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "e.parquet")
    assert table.column_names == ["path", "identity", "camera", "embedding"]
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 3)
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist(), np.float32), original.embeddings)


def test_numpy_and_csv_are_readable_without_us(tmp_path):
    original = some()
    original.write(tmp_path / "e.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "e.npy"), original.embeddings)
    assert (tmp_path / "e.csv").read_text().splitlines()[1] == '"0.jpg","ann","1"'
    assert {file.name for file in tmp_path.iterdir()} == {"e.npy", "e.csv", "e.json"}


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.zeros((3, 2), np.float32), "3 embeddings for 4 rows"),
        (np.zeros((4, 2)), "must be float32 [N, D], got float64 [4, 2]"),
        (np.zeros(4, np.float32), "got float32 [4]"),
        (np.zeros((4, 0), np.float32), "got float32 [4, 0]"),
        (
            np.array([[0], [1], [np.nan], [np.inf]], np.float32),
            "row 2 (counted from 0) holds NaN or infinity",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(vectors, message):
    with pytest.raises(InputError, match=re.escape(message)):
        EmbeddingSet(vectors, some().table, {})


def test_a_card_must_be_json(tmp_path):
    for card in ({"x": np.zeros(2)}, {"x": float("nan")}):
        with pytest.raises(InputError, match="card cannot be written as JSON"):
            EmbeddingSet(some().embeddings, some().table, card).write(tmp_path / "e.npy")
    assert list(tmp_path.iterdir()) == []


def refused(path, message):
    with pytest.raises(InputError, match=message) as caught:
        EmbeddingSet.read(path)
    assert "\n" not in str(caught.value)


def test_wrong_places(tmp_path):
    refused(tmp_path / "none.npy", "none.npy: does not exist")
    refused(tmp_path / "e.csv", "must end in .parquet or .npy")
    with pytest.raises(InputError, match=r"must end in \.parquet or \.npy"):
        some().write(tmp_path / "e.bin")


@pytest.mark.parametrize("suffix", [".parquet", ".npy"])
def test_a_truncated_file_is_refused(tmp_path, suffix):
    file = tmp_path / f"e{suffix}"
    some().write(file)
    data = file.read_bytes()
    for length in (0, 5, 60, len(data) // 2, len(data) - 1):
        file.write_bytes(data[:length])
        refused(file, rf"e\{suffix}: not a (readable Parquet|whole \.npy) file")


@pytest.mark.parametrize("lost", [".csv", ".json"])
def test_a_missing_sidecar_is_named(tmp_path, lost):
    some().write(tmp_path / "e.npy")
    (tmp_path / f"e{lost}").unlink()
    refused(tmp_path / "e.npy", rf"e\{lost} is missing; keep")


def test_sidecars_that_do_not_fit_are_refused(tmp_path):
    some().write(tmp_path / "e.npy")
    some(6).table.write(tmp_path / "e.csv")
    refused(tmp_path / "e.npy", "4 embeddings for 6 rows")
    some().write(tmp_path / "e.npy")
    (tmp_path / "e.json").write_text("{")
    refused(tmp_path / "e.npy", r"e\.json: the card is no readable JSON")
    (tmp_path / "e.json").write_text("[]")
    refused(tmp_path / "e.npy", r"e\.json: the card must be a JSON object")


def test_a_parquet_file_of_another_program_lacks_the_card(tmp_path):
    some().write(tmp_path / "e.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "e.parquet")
    pyarrow.parquet.write_table(table.replace_schema_metadata(None), tmp_path / "e.parquet")
    refused(tmp_path / "e.parquet", "has no card, .*; embed again, or write it")


def other():
    """As many rows and dimensions as `some()`, and other content."""
    base = some()
    return EmbeddingSet(base.embeddings + 1, base.table.with_column("camera", "2"), {"model": "other"})


@pytest.mark.parametrize("replaced", [(".json",), (".csv",), (".npy",), (".json", ".csv")])
def test_files_of_two_writes_are_no_set(tmp_path, replaced):
    some().write(tmp_path / "e.npy")
    other().write(tmp_path / "new.npy")
    for suffix in replaced:
        (tmp_path / f"new{suffix}").rename(tmp_path / f"e{suffix}")
    refused(tmp_path / "e.npy", "do not belong together")
    other().write(tmp_path / "e.npy")
    assert EmbeddingSet.read(tmp_path / "e.npy").card == {"model": "other"}


def test_a_card_without_checksums_is_refused(tmp_path):
    some().write(tmp_path / "e.npy")
    (tmp_path / "e.json").write_text('{"card": {}}')
    refused(tmp_path / "e.npy", "do not belong together")


def test_a_table_of_the_users_is_not_replaced(tmp_path):
    some(6).table.write(tmp_path / "e.csv")
    before = (tmp_path / "e.csv").read_bytes()
    with pytest.raises(InputError, match=r"e\.csv: exists and is of no embedding set \(e\.json is missing"):
        some().write(tmp_path / "e.npy")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("e.csv", before)]


def test_foreign_files_are_refused(tmp_path):
    some().table.write(tmp_path / "m.parquet")
    refused(tmp_path / "m.parquet", "has no column 'embedding' of float32 or float16 lists")
    table = some().table.table
    lists = pa.array([[1.0, 2.0]] * 3 + [None], pa.list_(pa.float32(), 2))
    pyarrow.parquet.write_table(
        table.append_column("embedding", lists).replace_schema_metadata({b"metricid": b"{}"}),
        tmp_path / "n.parquet",
    )
    refused(tmp_path / "n.parquet", "1 rows have no embedding")
    nan = pa.array([[1.0, 2.0]] * 3 + [[1.0, float("nan")]], pa.list_(pa.float32(), 2))
    pyarrow.parquet.write_table(
        table.append_column("embedding", nan).replace_schema_metadata({b"metricid": b"{}"}),
        tmp_path / "n.parquet",
    )
    refused(tmp_path / "n.parquet", r"n.parquet: row 3 \(counted from 0\) holds NaN")
    some().write(tmp_path / "e.npy")
    np.save(tmp_path / "e.npy", np.array([{}], object), allow_pickle=True)
    refused(tmp_path / "e.npy", "not a whole .npy file")
