import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricid.data.embedding_set import EmbeddingSet
from metricid.data.manifest import LANDMARK_COLUMNS, Manifest, check_files
from metricid.data.splits import split_identities
from metricid.errors import InputError

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).filter(str.strip)


def small(**columns):
    return Manifest.from_columns(["b/1.jpg", "a/1.jpg", "a/2.jpg"], ["b", "a", "a"], **columns)


def with_landmarks():
    values = np.arange(30, dtype=np.float32).reshape(3, 10) / 7
    return small(camera=["1", "", "2"], **dict(zip(LANDMARK_COLUMNS, values.T, strict=True)))


def problems_of(tmp_path, text, name="m.csv"):
    file = tmp_path / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as caught:
        Manifest.read(file)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(file))
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_file_gives_back_the_same_table_and_fingerprint(tmp_path, suffix):
    manifest = with_landmarks()
    manifest.write(tmp_path / f"m{suffix}")
    again = Manifest.read(tmp_path / f"m{suffix}")
    assert again == manifest
    assert again.fingerprint() == manifest.fingerprint()
    np.testing.assert_array_equal(again.landmarks(), manifest.landmarks())


@given(rows=st.lists(st.tuples(TEXT, TEXT, st.text(max_size=5)), unique_by=lambda row: row[0], min_size=1))
def test_any_text_survives_a_csv_file(rows, tmp_path_factory):
    rows = [(p, i, "".join(c for c in g if c.isprintable())) for p, i, g in rows]
    path, identity, group = map(list, zip(*rows, strict=True))
    manifest = Manifest.from_columns(path, identity, group=group)
    file = tmp_path_factory.mktemp("csv") / "m.csv"
    manifest.write(file)
    assert Manifest.read(file).table.to_pylist() == manifest.table.to_pylist()


def test_labels_count_the_sorted_names_and_follow_a_given_map():
    manifest = small()
    assert manifest.identity_names() == ["a", "b"]
    assert manifest.labels().tolist() == [1, 0, 0]
    assert manifest.labels({"a": 7, "b": 3, "c": 5}).tolist() == [3, 7, 7]
    with pytest.raises(InputError, match=r"1 of 2 identities are not in the label map \('b'\)"):
        manifest.labels({"a": 0})


def test_names_sort_by_code_point_as_python_does():
    names = ["é", "z", "Z", "a", "\U0001f600", "ｚ"]
    manifest = Manifest.from_columns([f"{i}.jpg" for i in range(6)], names)
    assert manifest.identity_names() == sorted(names)
    assert [sorted(names)[label] for label in manifest.labels()] == names


def test_fingerprint_knows_content_and_order_but_not_storage():
    manifest = small(camera=["1", "2", "3"])
    chunked = pa.concat_tables([manifest.table.slice(0, 1), manifest.table.slice(1)])
    assert Manifest(chunked).fingerprint() == manifest.fingerprint()
    assert Manifest(chunked.select(["camera", "identity", "path"])).fingerprint() == manifest.fingerprint()
    assert manifest.select([1, 0, 2]).fingerprint() != manifest.fingerprint()
    assert small(camera=["1", "23", ""]).fingerprint() != manifest.fingerprint()
    assert small(split=["1", "2", "3"]).fingerprint() != manifest.fingerprint()


def test_selection_and_columns():
    manifest = small(camera=["1", "2", "3"])
    assert manifest.select([2, 0]).paths == ["a/2.jpg", "b/1.jpg"]
    assert manifest.select(np.array([False, True, False])).identities.tolist() == ["a"]
    assert len(manifest.select(np.array([], np.int64))) == 0
    assert len(manifest.select(np.zeros(3, bool))) == 0
    assert manifest.with_column("split", "train").column("split").tolist() == ["train"] * 3
    assert manifest.with_column("camera", ["x", "y", "z"]).column("camera").tolist() == ["x", "y", "z"]
    assert manifest.column("camera").tolist() == ["1", "2", "3"]
    assert manifest.column("media") is None
    assert manifest.landmarks() is None
    assert manifest.path_at(1) == "a/1.jpg"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.column("camra"), "unknown column 'camra'; did you mean 'camera'"),
        (lambda m: m.with_column("identiy", "1"), "unknown column 'identiy'; did you mean 'identity'"),
        (lambda m: m.with_column("score", "1"), "a column cannot be named 'score'"),
        (lambda m: m.with_column("age", [[1], [2], [3]]), "column 'age' must hold text or numbers"),
        (lambda m: small(age=[1, "x", object()]), "column age must hold text or numbers"),
        (lambda m: m.with_column("split", ["a"]), "1 values of split for 3 rows"),
        (lambda m: m.select(np.ones(2, bool)), "mask of shape"),
        (lambda m: m.select([3]), "outside 0..2"),
        (lambda m: m.select([-1]), "outside 0..2"),
        (lambda m: m.select([1, 1]), "(rows counted from 0): row 1: path 'a/1.jpg' is already in row 0"),
        (
            lambda m: Manifest.concat([m, m]),
            "(rows counted from 0): 3 problems: row 3: path 'b/1.jpg' is already in row 0",
        ),
        (lambda m: Manifest.concat([]), "nothing to concatenate"),
        (lambda m: Manifest.from_columns(["a"], [1]), "column identity must hold text"),
        (lambda m: Manifest.from_columns(["a"], ["x", "y"]), "differ in length"),
        (lambda m: small(x1=["1", "?", "2"]), "column x1 must hold numbers"),
    ],
)
def test_wrong_use_is_one_line(call, message):
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        call(small())
    assert "\n" not in str(caught.value)


def test_concat_fills_columns_that_only_some_have():
    other = Manifest.from_columns(["c.jpg"], ["c"], camera=["5"])
    assert Manifest.concat([small(), other]).column("camera").tolist() == ["", "", "", "5"]
    with pytest.raises(InputError, match="only some of the manifests have landmarks"):
        Manifest.concat([with_landmarks(), other])


def test_further_columns_are_text_and_go_everywhere(tmp_path):
    manifest = small(camera=["1", "2", "3"], hat=["yes", "", "no"], age=["007", "4.50", ""])
    assert manifest.table.column_names == ["path", "identity", "camera", "age", "hat"]
    assert manifest.column("age").tolist() == ["007", "4.50", ""]
    assert manifest.column("weight") is None
    assert manifest.select([2, 0]).column("hat").tolist() == ["no", "yes"]
    assert manifest.with_column("split", "train").column("hat").tolist() == ["yes", "", "no"]
    assert manifest.with_column("hat", "no").column("hat").tolist() == ["no"] * 3
    assert manifest.fingerprint() != small(camera=["1", "2", "3"]).fingerprint()
    assert manifest.fingerprint() != manifest.with_column("hat", "no").fingerprint()
    other = Manifest.from_columns(["c.jpg"], ["c"], bag=["1"])
    joined = Manifest.concat([manifest, other])
    assert joined.column("hat").tolist() == ["yes", "", "no", ""]
    assert joined.column("bag").tolist() == ["", "", "", "1"]
    for suffix in (".csv", ".parquet"):
        manifest.write(tmp_path / f"m{suffix}")
        again = Manifest.read(tmp_path / f"m{suffix}")
        assert again == manifest and again.fingerprint() == manifest.fingerprint()
    train, test = split_identities(manifest, 1, seed=0)
    assert sorted([*train.column("age"), *test.column("age")]) == ["", "007", "4.50"]
    stored = EmbeddingSet(np.eye(3, dtype=np.float32), manifest, {})
    for name in ("e.parquet", "e.npy"):
        stored.write(tmp_path / name)
        assert EmbeddingSet.read(tmp_path / name).table == manifest


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        (pa.array([1, None, 2**62]), ["1", "", str(2**62)]),
        (pa.array([0.1, float("nan"), 3.0]), ["0.1", "", "3"]),
        (pa.array([0.1, None, 1e20], pa.float32()), ["0.1", "", "1e+20"]),
        (pa.array([True, None, False]), ["true", "", "false"]),
        (pa.array(["a", None, "a"]).dictionary_encode(), ["a", "", "a"]),
        (pa.array([0.5, None, float("nan")]).dictionary_encode(), ["0.5", "", ""]),
        (pa.nulls(3), ["", "", ""]),
    ],
)
def test_a_parquet_column_of_any_single_values_becomes_text(tmp_path, values, texts):
    file = tmp_path / "m.parquet"
    pyarrow.parquet.write_table(small().table.append_column("own", values), file)
    assert Manifest.read(file).column("own").tolist() == texts


@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=5))
def test_numbers_as_text_read_back_as_the_same_numbers(values):
    paths = [f"{i}.jpg" for i in range(len(values))]
    texts = Manifest.from_columns(paths, paths, own=np.array(values)).column("own")
    assert [float(text) for text in texts] == values


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("path,identity,camra", "unknown column 'camra'; did you mean 'camera'? rename it"),
        ("path,identity,Split", "unknown column 'Split'; did you mean 'split'"),
        ("path,identity,", "a column has no name"),
        ("path,identity,embedding", "a column cannot be named 'embedding'"),
    ],
)
def test_a_name_that_cannot_be_meant_is_refused(tmp_path, header, message):
    assert message in problems_of(tmp_path, f"{header}\na,b,c\n")


def test_a_csv_header_over_two_lines_keeps_its_column_as_text(tmp_path):
    (tmp_path / "m.csv").write_text('path,identity,"shoe\nsize"\na,b,042\n')
    assert Manifest.read(tmp_path / "m.csv").column("shoe\nsize").tolist() == ["042"]


def test_a_missing_column_is_named(tmp_path):
    assert "the column 'identity' is missing" in problems_of(tmp_path, "path,camera\na.jpg,1\n")
    assert "unknown column 'identty'; did you mean 'identity'" in problems_of(tmp_path, "path,identty\na,1\n")
    assert "landmarks need all ten columns; y1, x2" in problems_of(tmp_path, "path,identity,x1\na,b,1\n")
    assert "column 'path' occurs twice" in problems_of(tmp_path, "path,path,identity\na,b,c\n")


def test_bad_rows_are_named_as_a_person_counts_them(tmp_path):
    text = "path,identity\na.jpg,x\nb.jpg,\na.jpg,y\n,z\n   ,z\n"
    assert problems_of(tmp_path, text).endswith(
        "4 problems: row 3: identity is empty; row 4: path 'a.jpg' is already in row 2; "
        "row 5: path is empty; row 6: path is empty"
    )


def test_of_many_problems_ten_are_shown_and_all_counted(tmp_path):
    message = problems_of(tmp_path, "path,identity\n" + "".join(f"{i}.jpg,\n" for i in range(25)))
    assert "25 problems: row 2:" in message
    assert "row 11: identity is empty; and 15 more" in message


def test_landmarks_must_be_finite_numbers(tmp_path):
    header = "path,identity," + ",".join(LANDMARK_COLUMNS) + "\n"
    numbers = ",1,2,3,4,5,6,7,8,9,10\n"
    good = header + "a,x" + numbers
    (tmp_path / "good.csv").write_text(good)
    assert Manifest.read(tmp_path / "good.csv").landmarks()[0, 1].tolist() == [3, 4]
    assert "row 3: x2 is not a number but 'left'" in problems_of(
        tmp_path, good + "b,x,1,2,left,4,5,6,7,8,9,10\n"
    )
    assert "row 3: y5 is not a number" in problems_of(tmp_path, good + "b,x,1,2,3,4,5,6,7,8,9,nan\n")
    assert "row 3: x1 is not a number but ''" in problems_of(tmp_path, good + "b,x,,2,3,4,5,6,7,8,9,10\n")


def test_ragged_and_blank_rows(tmp_path):
    assert "row 3 has 3 values for 2 columns" in problems_of(tmp_path, "path,identity\na,x\nb,y,z\nc,z\n")
    message = problems_of(tmp_path, "path,identity\na,x\n\nb,y\n")
    assert "row 3: identity is empty" in message
    assert "row 3: path is empty" in message
    (tmp_path / "end.csv").write_text("path,identity\r\na,x\r\n\r\n\r\n")
    assert len(Manifest.read(tmp_path / "end.csv")) == 1


def test_a_byte_order_mark_and_quotes_are_read(tmp_path):
    (tmp_path / "m.csv").write_bytes(b'\xef\xbb\xbfpath,identity\n"a,1.jpg","Say ""hi"""\nNA,null\n')
    manifest = Manifest.read(tmp_path / "m.csv")
    assert manifest.paths == ["a,1.jpg", "NA"]
    assert manifest.identities.tolist() == ['Say "hi"', "null"]


def test_files_that_are_no_tables(tmp_path):
    assert "first row must name the columns" in problems_of(tmp_path, "")
    assert "not UTF-8" in problems_of(tmp_path, b"path,identity\n" + b"\xff\xfe,x\n")
    assert "not a readable Parquet file" in problems_of(tmp_path, "path,identity\n", "m.parquet")
    for name, message in (("none.csv", "does not exist"), ("none.txt", "must end in .csv or .parquet")):
        with pytest.raises(InputError, match=message):
            Manifest.read(tmp_path / name)
    with pytest.raises(InputError, match=r"must end in \.csv or \.parquet"):
        small().write(tmp_path / "m.json")
    assert not (tmp_path / "m.json").exists()


def test_a_truncated_parquet_file_is_refused(tmp_path):
    small().write(tmp_path / "m.parquet")
    data = (tmp_path / "m.parquet").read_bytes()
    assert "not a readable Parquet file" in problems_of(tmp_path, data[:-20], "m.parquet")


def test_wrong_types_in_parquet(tmp_path):
    table = pa.table({"path": ["a"], "identity": pa.array([3])})
    pyarrow.parquet.write_table(table, tmp_path / "m.parquet")
    with pytest.raises(InputError, match="column 'identity' must hold text, but holds int64"):
        Manifest.read(tmp_path / "m.parquet")
    nulls = pa.table({"path": ["a", "b"], "identity": pa.array(["x", None]), "camera": pa.array([None, "1"])})
    pyarrow.parquet.write_table(nulls, tmp_path / "m.parquet")
    with pytest.raises(InputError, match=r"m.parquet \(rows counted from 0\): row 1: identity is empty"):
        Manifest.read(tmp_path / "m.parquet")
    assert Manifest(nulls.slice(0, 1)).column("camera").tolist() == [""]


def test_rows_are_counted_as_in_the_file_that_they_are_from(tmp_path):
    """A CSV file has a header, which an editor shows as row 1; a Parquet file has none."""
    table = pa.table({"path": ["a.jpg", "b.jpg", "a.jpg", ""], "identity": ["x", "", "y", "z"]})
    pyarrow.parquet.write_table(table, tmp_path / "m.parquet")
    (tmp_path / "m.csv").write_text("path,identity\na.jpg,x\nb.jpg,\na.jpg,y\n,z\n")
    said = "{}: 3 problems: row {}: identity is empty; row {}: path 'a.jpg' is already in row {}; "
    with pytest.raises(InputError) as csv:
        Manifest.read(tmp_path / "m.csv")
    assert str(csv.value) == said.format(tmp_path / "m.csv", 3, 4, 2) + "row 5: path is empty"
    with pytest.raises(InputError) as parquet:
        Manifest.read(tmp_path / "m.parquet")
    name = f"{tmp_path / 'm.parquet'} (rows counted from 0)"
    assert str(parquet.value) == said.format(name, 1, 2, 0) + "row 3: path is empty"


@pytest.mark.parametrize(
    ("file", "said"),
    [("m.csv", ": row 3: 'a/1.jpg'"), ("m.parquet", r" \(rows counted from 0\): row 1: 'a/1.jpg'")],
)
def test_missing_files_are_counted_likewise(tmp_path, file, said):
    small().write(tmp_path / file)
    manifest = Manifest.read(tmp_path / file).with_column("split", "test")
    with pytest.raises(InputError, match=f"{file}{said} does not exist"):
        check_files(manifest, {"b/1.jpg", "a/2.jpg"})


def test_dictionary_and_large_strings_are_text():
    table = pa.table(
        {
            "path": pa.array(["a", "b"], pa.large_string()),
            "identity": pa.array(["x", "x"]).dictionary_encode(),
        }
    )
    assert Manifest(table).identities.tolist() == ["x", "x"]


def test_missing_files_are_named_by_row():
    with pytest.raises(InputError, match=r"2 images missing in .*: row 0: 'b/1.jpg' does not exist; row 2"):
        check_files(small(), {"a/1.jpg"})
    check_files(small(), {"a/1.jpg", "a/2.jpg", "b/1.jpg"})


def test_an_empty_table_is_a_table(tmp_path):
    empty = small().select(np.zeros(3, bool))
    empty.write(tmp_path / "m.csv")
    assert len(Manifest.read(tmp_path / "m.csv")) == 0
    assert empty.labels().tolist() == []
    assert empty.paths == []


def test_one_image_under_two_spellings_is_a_duplicate():
    with pytest.raises(InputError, match=r"row 1: path './a//x.jpg' is already in row 0"):
        Manifest.from_columns(["a/x.jpg", "./a//x.jpg", "..b.jpg"], ["ann", "bob", "eve"])
    assert len(Manifest.from_columns(["./a.jpg", "../a.jpg", "a.jpg.", "/a.jpg"], ["ann"] * 4)) == 4


def test_string_views_are_text():
    view = pa.array(["a.jpg", "b.jpg"], pa.string_view())
    assert Manifest(pa.table({"path": view, "identity": view})).paths == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(("separator", "word"), [(";", "semicolons"), ("\t", "tabs")])
def test_another_separator_is_named(tmp_path, separator, word):
    file = tmp_path / "people.csv"
    file.write_text(f"path{separator}identity\na.jpg{separator}ann\n")
    with pytest.raises(InputError, match=f"people.csv: its columns are separated by {word}; save it with"):
        Manifest.read(file)
