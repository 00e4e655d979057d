"""The index against brute force and plain faiss; what is added, removed, refused."""

import os
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metricid.errors import InputError
from metricid.search import KINDS, ArraySource, Filter, SearchIndex
from metricid.search import kinds as kinds_module
from metricid.search.store import check_vectors

from .people import DIMENSION, People

TOLERANCE = {"flat": 1e-6, "hnsw": 1e-6, "ivf_sq8": 0.01, "rabitq": 0.01}
QUERIES = People.make(20, seed=9).vectors


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_finds_what_brute_force_finds(people, build, kind):
    index = build(people, kind)
    hits = index.query(3 * QUERIES, 10)
    _, keys = people.nearest(QUERIES, 10)
    found = np.mean([len(set(a) & set(b)) for a, b in zip(keys, hits.keys, strict=True)]) / 10
    assert found == 1.0 if kind == "flat" else found > 0.9
    place = {key: row for row, key in enumerate(people.keys)}
    found_rows = people.vectors[[[place[key] for key in keys] for keys in hits.keys]]
    assert np.abs(hits.scores - np.einsum("qd,qkd->qk", QUERIES, found_rows)).max() < TOLERANCE[kind]
    assert (np.diff(hits.scores) <= 0).all()
    assert hits.rows["path"].to_pylist() == hits.keys.ravel().tolist()
    assert hits.rows["identity"].to_pylist() == [key.split("/")[0] for key in hits.keys.ravel()]
    assert hits.of(3)[0] == {"score": hits.scores[3, 0], **hits.rows.slice(30, 1).to_pylist()[0]}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", [["camera=2"], ["camera!=0", "identity=person-0007"]])
def test_the_answer_within_a_filter_is_exact(people, build, kind, where):
    chosen = Filter.parse(where)
    mask = np.array([c == "2" for c in people.rows["camera"].to_pylist()])
    if len(where) == 2:
        mask = np.array(
            [r["camera"] != "0" and r["identity"] == "person-0007" for r in people.rows.to_pylist()]
        )
    k = min(8, mask.sum())
    hits = build(people, kind).query(QUERIES, 8, chosen)
    scores, keys = people.nearest(QUERIES, k, mask)
    assert hits.scores.shape == (20, k)
    assert np.abs(hits.scores - scores).max() < TOLERANCE[kind]
    if TOLERANCE[kind] < 1e-3:
        assert (hits.keys == keys).all()
    assert set(hits.keys.ravel()) <= set(np.array(people.keys)[mask])


def test_flat_and_hnsw_give_what_plain_faiss_gives(people, build):
    hits = build(people, "hnsw").query(QUERIES, 5)
    plain = faiss.IndexFlatIP(DIMENSION)
    plain.add(people.vectors)
    scores, rows = plain.search(QUERIES, 5)
    assert (np.array(people.keys, object)[rows] == hits.keys).mean() > 0.97
    assert np.allclose(scores[:, 0], hits.scores[:, 0], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_every_place_is_filled_however_many_are_asked_for(people, build, kind):
    hits = build(people, kind).query(QUERIES, len(people.keys))
    assert all(set(keys) == set(people.keys) for keys in hits.keys)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2, 3, 50])
def test_few_rows_are_enough(build, kind, count):
    few = People.make(count)
    index = build(few, kind)
    assert index.query(few.vectors, 1).keys[:, 0].tolist() == few.keys
    index.remove(keys=few.keys)
    with pytest.raises(InputError, match="has no rows"):
        index.query(QUERIES, 1)
    index.add(few.keys, few.vectors, few.rows)
    assert index.stats()["kind"] == kind
    assert index.query(few.vectors, 1).keys[:, 0].tolist() == few.keys


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_grows_and_is_read_again(people, build, place, kind):
    index = build(people, kind)
    more = People.make(100, seed=5, prefix="new")
    assert index.add(more.keys, 2 * more.vectors, more.rows) == 100
    for opened in (index, SearchIndex(place), SearchIndex(place, mapped=False, verify=True)):
        assert len(opened) == 500
        assert opened.query(more.vectors, 1).keys[:, 0].tolist() == more.keys
        vectors, rows = opened.get([more.keys[7], people.keys[3]])
        assert np.abs(vectors - np.stack([more.vectors[7], people.vectors[3]])).max() < TOLERANCE[kind]
        assert rows["path"].to_pylist() == [more.keys[7], people.keys[3]]
    assert sorted(file.name for file in place.iterdir()) == [
        "card.json",
        "lock",
        "rows-2.parquet",
        "vectors-2.faiss",
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_replaced_only_when_asked(people, build, kind):
    index = build(people, kind)
    some, other = people.take([3, 5]), People.make(2, seed=8)
    with pytest.raises(InputError, match="2 of 2 rows are in the index already, such as 'person-0000/00003"):
        index.add(some.keys, other.vectors, some.rows)
    index.add(some.keys, other.vectors, some.rows, replace=True)
    assert len(index) == 400
    assert np.abs(index.get(some.keys)[0] - other.vectors).max() < 0.03


@pytest.mark.parametrize("kind", KINDS)
def test_removed_rows_are_gone_and_the_others_stay_as_they_were(people, build, kind):
    index = build(people, kind)
    left = people.take([i for i in range(400) if i // 5 != 7])
    before = index.get(left.keys)[0]
    assert index.remove(identity="person-0007") == 5
    assert len(index) == 395
    assert (index.get(left.keys)[0] == before).all()
    assert "person-0007" not in index.query(QUERIES, 395).rows["identity"].to_pylist()
    assert index.remove(keys=left.keys[:2]) == 2
    with pytest.raises(InputError, match="not in the index: 'person-0007/00035.jpg'"):
        index.get(["person-0007/00035.jpg"])


@pytest.mark.parametrize("kind", KINDS)
def test_no_byte_of_who_was_removed_stays_in_any_file(place, build, kind):
    """Names and vectors, as they are and as kinds of 8 bits keep them."""
    people = People.make(300, per_person=1)  # an identity alone in a list would be the centre of the list
    index = build(people, kind)
    key = people.keys[42]
    traces = [key.encode(), b"person-0042", people.vectors[42].tobytes(), index.get([key])[0].tobytes()]
    if kind in ("ivf_sq8", "rabitq"):
        coded = faiss.IndexScalarQuantizer(DIMENSION, faiss.ScalarQuantizer.QT_8bit)
        coded.is_trained = True
        faiss.copy_array_to_vector(index._index.code_ranges(), coded.sq.trained)
        traces.append(coded.sa_encode(people.vectors[42:43]).tobytes())

    def found():
        content = [file.read_bytes() for file in place.iterdir()]
        # The rows are compressed; what they say is looked for, too.
        content += [str(pq.read_table(file).to_pydict()).encode() for file in place.glob("*.parquet")]
        return [any(trace in data for data in content) for trace in traces]

    assert all(found()[:2]) and any(found()[2:]), "the test looks for what the files hold"
    index.remove(identity="person-0042")
    assert not any(found())
    rows = SearchIndex(place).rows
    assert key not in rows["path"].to_pylist()
    if kind in ("ivf_sq8", "rabitq"):
        centres = np.asarray(index._index._inverted.quantizer.reconstruct_n())
        assert np.abs(centres - people.vectors[42]).max(axis=1).min() > 1e-3


def test_filters_of_columns_that_do_not_exist_are_refused(people, build):
    index = build(people)
    with pytest.raises(InputError, match="unknown column 'camra'; did you mean 'camera'"):
        index.query(QUERIES, 1, Filter.parse(["camra=1"]))
    with pytest.raises(InputError, match="unknown column 'x1'"):
        index.query(QUERIES, 1, Filter.parse(["x1=1"]))
    with pytest.raises(InputError, match="no row has camera=7 and identity!=x"):
        index.query(QUERIES, 1, Filter.parse(["camera=7", "identity!=x"]))
    with pytest.raises(InputError, match="must be COLUMN=VALUE"):
        Filter.parse(["camera"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v[:, :8], "are 8 wide, the index holds vectors of 32"),
        (lambda v: v * np.float32("nan"), r"row 0 \(counted from 0\) holds NaN"),
        (lambda v: np.where(np.arange(20)[:, None] == 7, 0, v).astype("f4"), "row 7 .* zero vector"),
        (lambda v: v.astype("f8"), "must be float32"),
        (lambda v: v[0], "must be float32"),
    ],
)
def test_vectors_that_cannot_be_used_are_refused_at_every_door(people, build, place, change, message):
    index, bad = build(people), change(QUERIES)
    with pytest.raises(InputError, match=message):
        index.query(bad, 1)
    new = People.make(20, seed=1, prefix="new")
    with pytest.raises(InputError, match=message):
        index.add(new.keys, bad, new.rows)
    if "wide" not in message and bad.ndim == 2:
        with pytest.raises(InputError, match=message):
            SearchIndex.build(place.with_name("other"), ArraySource(bad, new.rows))
        assert not list(place.with_name("other").glob("*-*"))
    assert len(SearchIndex(place)) == 400


@pytest.mark.parametrize("scales", [[1.0], [1e-6, 1e6], [1e-30, 1.0, 1e30], [1e-42], [1e37]])
@pytest.mark.parametrize("width", [1, 3, 512])
def test_vectors_of_any_size_are_scaled_to_length_one(scales, width):
    random = np.random.default_rng(4)
    given = random.standard_normal((50, width)).astype(np.float32)
    given = np.concatenate([(given * np.float64(scale)).astype(np.float32) for scale in scales])
    given = np.asfortranarray(given[np.abs(given).max(axis=1) > 0])
    wide = given.astype(np.float64)
    unit = check_vectors(given)
    assert unit.dtype == np.float32 and unit.flags.c_contiguous
    np.testing.assert_allclose(unit, wide / np.linalg.norm(wide, axis=1, keepdims=True), atol=3e-7)


def test_hits_keep_the_rows_that_they_were_found_in(people, build):
    index = build(people)
    hits = index.query(QUERIES, 3)
    index.remove([people.keys[0]])
    index.close()
    assert hits.rows["path"].to_pylist() == hits.keys.ravel().tolist()


def test_values_too_large_to_be_squared_are_scaled_all_the_same(people, build):
    hits = build(people).query(QUERIES * np.float32(1e30), 3)
    assert np.allclose(hits.scores, people.nearest(QUERIES, 3)[0], atol=1e-6)


@pytest.mark.parametrize("k", [0, -1, 401])
def test_k_beyond_the_rows_is_refused(people, build, k):
    with pytest.raises(InputError, match="between 1 and the 400 rows"):
        build(people).query(QUERIES, k)


def test_duplicate_keys_are_refused(people, build, place):
    index = build(people)
    twice = People.make(4, prefix="new").take([0, 1, 1])
    with pytest.raises(InputError, match="rows 1 and 2 .* same path 'new-0000/00001.jpg'"):
        index.add(twice.keys, twice.vectors, twice.rows)
    far = [*range(kinds_module.FLAT_ROWS // 10), 0]  # in another chunk than its double
    many = People.make(len(far) - 1).take(far)
    with pytest.raises(InputError, match="1 values of path occur more than once"):
        SearchIndex.build(place.with_name("other"), many.source)
    assert not list(place.with_name("other").glob("*-*"))


def test_columns_of_old_and_new_rows_are_joined(people, build):
    index = build(people)
    new = People.make(2, prefix="new")
    rows = new.rows.drop_columns(["camera", "x1"]).append_column("group", pa.array(["a", "b"]))
    index.add(new.keys, new.vectors, rows)
    assert index.rows["camera"].to_pylist()[-2:] == ["", ""]
    assert np.isnan(index.rows["x1"].to_pylist()[-1])
    assert index.rows["group"].to_pylist() == [""] * 400 + ["a", "b"]
    assert index.query(new.vectors, 1, Filter.parse(["group=b"])).keys[0, 0] == new.keys[1]
    wrong = rows.set_column(1, "identity", pa.array([1.0, 2.0]))
    with pytest.raises(InputError, match="'identity' is text in one table and a number"):
        index.add(["q", "r"], new.vectors, wrong.drop_columns(["path"]))


def test_recall_and_effort_are_measured(build):
    people = People.make(4000, per_person=3)
    for kind in KINDS:
        index = build(people, kind, overwrite=kind != "flat", target=0.9)
        told = index.stats()["recall"]
        assert told["at"] == 10 and told["rows"] == 4000
        hits = index.query(people.vectors[:300], 11)
        _, nearest = people.nearest(people.vectors[:300], 11)
        found = [
            len((set(truth) - {own}) & (set(keys) - {own})) / 10
            for own, truth, keys in zip(people.keys, nearest, hits.keys, strict=False)
        ]
        assert told["value"] == pytest.approx(np.mean(found), abs=0.03), kind
        assert told["value"] >= 0.9 or kind == "rabitq"


def test_auto_goes_by_size_and_outgrows(people, build, monkeypatch):
    assert [kinds_module.pick_kind("auto", n) for n in (200_000, 200_001, 2_000_000, 2_000_001)] == [
        "flat",
        "hnsw",
        "hnsw",
        "ivf_sq8",
    ]
    monkeypatch.setattr(kinds_module, "FLAT_ROWS", 450)
    monkeypatch.setattr(kinds_module, "HNSW_ROWS", 550)
    index = build(people, "auto")
    assert index.stats()["kind"] == "flat"
    for number, kind in ((1, "hnsw"), (2, "ivf_sq8")):
        more = People.make(100, seed=number, prefix=f"more{number}")
        index.add(more.keys, more.vectors, more.rows)
        assert index.stats()["kind"] == kind
        assert index.query(more.vectors, 1).keys[:, 0].tolist() == more.keys
    index.remove(keys=more.keys)
    assert (index.stats()["kind"], len(index)) == ("ivf_sq8", 500)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, 11), min_size=1)), max_size=6))
def test_any_row_of_changes_leaves_what_a_dictionary_would_hold(tmp_path_factory, steps):
    everyone = People.make(12, per_person=2)
    index = SearchIndex.build(tmp_path_factory.mktemp("i") / "x", everyone.source)
    held = dict(zip(everyone.keys, everyone.vectors, strict=True))
    for adds, numbers in steps:
        some = everyone.take(sorted(numbers))
        if adds:
            index.add(some.keys, some.vectors, some.rows, replace=True)
            held |= dict(zip(some.keys, some.vectors, strict=True))
            continue
        if set(some.keys) <= set(held):
            index.remove(keys=some.keys)
            held = {key: vector for key, vector in held.items() if key not in some.keys}
        else:
            with pytest.raises(InputError, match="not in the index"):
                index.remove(keys=some.keys)
    assert sorted(index.rows["path"].to_pylist()) == sorted(held)
    if held:
        assert np.allclose(index.get(list(held))[0], np.stack(list(held.values())), atol=1e-7)


def test_searches_go_on_where_another_library_has_changed_faiss(tmp_path):
    """`faiss.contrib.torch_utils` replaces `search` by one that takes no parameters."""
    script = (
        "import sys, numpy as np, faiss, faiss.contrib.torch_utils\n"
        "from metricid.search import KINDS, Filter, SearchIndex\n"
        "from search.people import People\n"
        "people = People.make(60)\n"
        "for kind in KINDS:\n"
        "    index = SearchIndex.build(f'{sys.argv[1]}/{kind}', people.source, kind=kind)\n"
        "    assert index.query(people.vectors, 1).keys[:, 0].tolist() == people.keys\n"
        "    hits = index.query(people.vectors, 1, Filter.parse(['camera=1']))\n"
        "    assert hits.rows['camera'][0].as_py() == '1'\n"
        "    index.add(['new'], people.vectors[:1], people.rows.slice(0, 1).drop_columns(['path']))\n"
        "    assert index.remove(identity='person-0003') == 5\n"
    )
    paths = os.pathsep.join(map(str, Path(__file__).parents[1:3]))
    words = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr
