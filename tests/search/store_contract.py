"""What a store on a server must do, whichever it is; each store's own tests derive from the class."""

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metricid.errors import InputError
from metricid.search.remote import RemoteStore, Retry, open_store
from metricid.search.store import Filter

FAST = Retry(tries=3, wait=0.01)
PREPROCESSING = {"size": [112, 112], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
MODEL = {
    "kind": "checkpoint",
    "name": "first",
    "fingerprint": "a" * 64,
    "dimension": 16,
    "preprocessing": PREPROCESSING,
}
CARD = {"dimension": 16, "model": MODEL, "flip": True}
TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=20)


def people(count: int, seed: int = 0, prefix: str = "") -> tuple[list[str], np.ndarray, pa.Table]:
    """Keys, vectors [count, 16] of any length, and rows with text and number columns."""
    draw = np.random.default_rng(seed)
    vectors = draw.normal(size=(count, 16)).astype(np.float32) * 3
    keys = [f"{prefix}{i:05d}.jpg" for i in range(count)]
    rows = pa.table(
        {
            "path": keys,
            "identity": [f"person {i // 4}" for i in range(count)],
            "camera": [str(i % 3) for i in range(count)],
            "quality": pa.array(draw.random(count), pa.float32()),
        }
    )
    return keys, vectors, rows


def brute_force(
    vectors: np.ndarray, queries: np.ndarray, keys: list[str], k: int, allowed: Any = True
) -> Any:
    """Cosine in float64 over everything: keys [Q, k] and scores [Q, k]."""
    stored, asked = (
        v.astype(np.float64) / np.linalg.norm(v.astype(np.float64), axis=1, keepdims=True)
        for v in (vectors, queries)
    )
    scores = np.where(allowed, asked @ stored.T, -np.inf)
    order = np.argsort(-scores, axis=1)[:, :k]
    return np.array(keys, object)[order], np.take_along_axis(scores, order, axis=1)


def contents(store: RemoteStore, keys: list[str]) -> list[Any]:
    """Everything that a store holds under some keys."""
    vectors, rows = store.get(keys)
    return [vectors.tobytes(), rows.to_pylist(), store.stats()["rows"]]


def refused(call: Any, *parts: str) -> str:
    """Asserts that a call ends in one line with these parts; gives the line."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in parts), message
    assert caught.value.__cause__ is None and (
        caught.value.__context__ is None or caught.value.__suppress_context__
    )
    return message


class StoreContract:
    """Derived classes give the fixture `url` of a store that does not exist yet, and `killer`."""

    killer = ""  # Python that has the process killed in the middle of its third batch of 20 rows

    @pytest.fixture
    def store(self, url):
        store = open_store(url, card=CARD, retry=FAST)
        yield store
        store.close()

    def test_answers_equal_brute_force(self, store):
        keys, vectors, rows = people(400)
        queries = np.random.default_rng(1).normal(size=(7, 16)).astype(np.float32)
        assert store.add(keys, vectors, rows) == 400
        store.finish()
        for k in (1, 10, 400):
            hits = store.query(queries, k)
            expected, scores = brute_force(vectors, queries, keys, k)
            np.testing.assert_array_equal(hits.keys, expected)
            np.testing.assert_allclose(hits.scores, scores, atol=2e-6)
        assert hits.rows.schema.equals(rows.schema)
        assert (
            hits.rows.slice(0, 400).to_pylist()
            == rows.take([keys.index(key) for key in hits.keys[0]]).to_pylist()
        )
        assert store.stats()["recall"]["value"] > 0.97
        assert store.stats()["recall"]["at"] == 10

    @pytest.mark.parametrize(
        ("texts", "passes"),
        [
            (["camera=2"], lambda i: i % 3 == 2),
            (["camera!=2"], lambda i: i % 3 != 2),
            (["identity=person 1", "camera=0"], lambda i: i // 4 == 1 and i % 3 == 0),
            (["camera!=0", "camera!=1", "identity!=person 0"], lambda i: i % 3 == 2 and i >= 4),
        ],
    )
    def test_filtered_answers_equal_brute_force(self, store, texts, passes):
        keys, vectors, rows = people(200)
        store.add(keys, vectors, rows)
        store.finish()
        allowed = np.array([passes(i) for i in range(200)])
        hits = store.query(vectors[:5], 20, Filter.parse(texts))
        expected, scores = brute_force(vectors, vectors[:5], keys, min(20, allowed.sum()), allowed)
        np.testing.assert_array_equal(hits.keys, expected)
        np.testing.assert_allclose(hits.scores, scores, atol=2e-6)

    @pytest.mark.parametrize("aligned", [True, False])
    def test_stats_say_how_the_vectors_were_made(self, url, aligned):
        store = open_store(url, card=CARD | {"aligned": aligned}, retry=FAST)
        store.add(*people(3))
        assert (store.stats()["flip"], store.stats()["aligned"]) == (True, aligned)
        store.close()

    def test_questions_that_have_no_answer(self, store):
        keys, vectors, rows = people(10)
        refused(lambda: store.query(vectors, 1), "no rows")
        store.add(keys, vectors, rows)
        refused(lambda: store.query(vectors, 1, Filter.parse(["camera=9"])), "camera=9")
        refused(lambda: store.query(vectors, 1, Filter.parse(["camra=1"])), "camra", "did you mean 'camera'")
        refused(lambda: store.query(vectors, 1, Filter.parse(["quality=1"])), "quality")
        refused(lambda: store.query(vectors, 11), "-k", "10 rows")
        refused(lambda: store.query(vectors, 0), "-k")
        refused(lambda: store.query(vectors[:, :8], 1), "8 wide", "16")

    def test_adding_again_changes_nothing(self, store):
        keys, vectors, rows = people(50)
        assert store.add(keys, vectors, rows) == 50
        before = contents(store, keys)
        assert store.add(keys, vectors, rows) == 0
        more = people(60)
        assert store.add(*more, replace=True) == 60
        assert store.add(*more) == 0
        assert store.stats()["rows"] == 60
        assert contents(store, keys) != before

    def test_other_content_under_a_known_key_needs_replace(self, store):
        keys, vectors, rows = people(50)
        store.add(keys[:40], vectors[:40], rows.slice(0, 40))
        before = contents(store, keys[:40])
        changed = vectors.copy()
        changed[30] += 1
        refused(lambda: store.add(keys, changed, rows), "00030.jpg", "there already")
        other = rows.set_column(2, "camera", pa.array(["7"] * 50))
        refused(lambda: store.add(keys, vectors, other), "00000.jpg", "there already")
        assert contents(store, keys[:40]) == before
        assert store.add(keys, changed, rows, replace=True) == 11
        unit = changed / np.linalg.norm(changed, axis=1, keepdims=True)
        np.testing.assert_allclose(store.get(keys)[0], unit, atol=1e-6)

    def test_get_gives_what_was_added_in_the_order_asked_for(self, store):
        keys, vectors, rows = people(30)
        store.add(keys, vectors, rows)
        order = [7, 3, 29, 3]
        found, table = store.get([keys[i] for i in order])
        unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True))[order]
        np.testing.assert_allclose(found, unit, atol=1e-7)
        assert table.equals(rows.take(order))
        refused(lambda: store.get([keys[0], "nobody.jpg"]), "nobody.jpg")

    def test_remove_by_key_and_by_identity(self, store):
        keys, vectors, rows = people(40)
        store.add(keys, vectors, rows)
        store.finish()
        assert store.remove(keys=keys[:2]) == 2
        assert store.remove(identity="person 5") == 4
        gone = {*keys[:2], *keys[20:24]}
        assert store.stats()["rows"] == 34
        hits = store.query(vectors[[0, 21]], 34)
        assert set(hits.keys.ravel()) == set(keys) - gone
        refused(lambda: store.get([keys[20]]), keys[20])
        refused(lambda: store.remove(keys=[keys[9], keys[0]]), keys[0])
        refused(lambda: store.remove(identity="person 5"), "person 5")
        refused(store.remove, "either")
        assert store.stats()["rows"] == 34
        assert store.add(keys, vectors, rows) == 6

    def test_bad_vectors_and_rows_change_nothing(self, store):
        keys, vectors, rows = people(5)
        for value, text in ((np.nan, "NaN"), (0.0, "zero vector")):
            bad = vectors.copy()
            bad[3] = value
            refused(lambda bad=bad: store.add(keys, bad, rows), "row 3", text)
        twice = rows.set_column(0, "path", pa.array([*keys[:4], keys[0]]))
        refused(lambda: store.add([*keys[:4], keys[0]], vectors, twice), keys[0], "0 and 4")
        refused(lambda: store.add(keys, np.ones((5, 8), np.float32), rows), "8 wide")
        refused(
            lambda: store.add(keys, vectors, rows.append_column("embedding", rows["camera"])), "embedding"
        )
        null = pa.array(["a", "b", "c", "d\0e", "f"])
        refused(
            lambda: store.add(keys, vectors, rows.set_column(2, "camera", null)), "row 3", "null character"
        )
        assert store.stats()["rows"] == 0

    def test_later_rows_bring_and_lack_columns(self, store):
        keys, vectors, rows = people(8)
        store.add(keys[:4], vectors[:4], rows.slice(0, 4).drop_columns(["quality"]))
        late = rows.slice(4).drop_columns(["camera"]).append_column("site", pa.array(["hall"] * 4))
        store.add(keys[4:], vectors[4:], late)
        _, found = store.get(keys)
        assert found["camera"].to_pylist() == ["0", "1", "2", "0", "", "", "", ""]
        assert found["site"].to_pylist() == [""] * 4 + ["hall"] * 4
        assert found["quality"].to_pylist() == [None] * 4 + rows["quality"].to_pylist()[4:]
        for text, expected in (("site=", keys[:4]), ("site!=", keys[4:]), ("site!=hall", keys[:4])):
            hits = store.query(vectors[:1], 8, Filter.parse([text]))
            assert sorted(hits.keys[0]) == expected, text
        numbers = rows.slice(0, 4).set_column(2, "camera", pa.array([1.0] * 4))
        refused(lambda: store.add(keys[:4], vectors[:4], numbers, replace=True), "camera", "string", "float")

    def test_numbers_that_are_none_are_null(self, store):
        keys, vectors, rows = people(4)
        odd = pa.array([np.nan, np.inf, None, 0.25], pa.float32())
        store.add(keys, vectors, rows.set_column(3, "quality", odd))
        assert store.get(keys)[1]["quality"].to_pylist() == [None, None, None, 0.25]

    def test_any_text_comes_back(self, store):
        @settings(max_examples=15, deadline=None)
        @given(
            values=st.lists(
                st.tuples(TEXT.filter(str.strip), TEXT), min_size=1, max_size=5, unique_by=lambda v: v[0]
            ),
            column=st.sampled_from(
                ["a b", "a.b", "a[0]", "sélection", "select", "x'; DROP TABLE y; --", "%s", "{a}"]
            ),
        )
        def check(values, column):
            known = [key for key, _ in values]
            rows = pa.table({"path": known, column: [text for _, text in values]})
            vectors = np.eye(16, dtype=np.float32)[: len(values)]
            store.add(known, vectors, rows, replace=True)
            assert store.get(known)[1][column].to_pylist() == [text for _, text in values]
            hits = store.query(vectors[:1], 1, Filter.parse([f"{column}={values[0][1]}"]))
            assert hits.rows[column].to_pylist() == [values[0][1]]
            hits = store.query(vectors[:1], store.stats()["rows"], Filter.parse([f"path={known[0]}"]))
            assert hits.keys.tolist() == [[known[0]]]

        check()

    def test_the_card_is_kept_and_another_model_is_refused(self, store, url):
        keys, vectors, rows = people(20)
        store.add(keys, vectors, rows)
        store.finish()
        store.close()
        again = open_store(url, retry=FAST)
        assert {name: again.card[name] for name in CARD} == CARD
        again.close()

        def opened(**changes):
            return lambda: open_store(url, card={**CARD, "model": {**MODEL, **changes}}, retry=FAST)

        refused(opened(fingerprint="b" * 64), "a" * 12, "b" * 12)
        refused(opened(dimension=8), "dimension is 8", "16 in the index")
        refused(opened(preprocessing={**PREPROCESSING, "size": [128, 128]}), "[128, 128]", "[112, 112]")
        open_store(url, card=CARD, retry=FAST).close()

    def test_a_later_build_names_model_and_thresholds_anew(self, store, url):
        keys, vectors, rows = people(20)
        store.add(keys, vectors, rows)
        store.finish()
        recall = store.card["recall"]
        store.close()
        for named in ({"model_path": "/a.onnx", "onnx": ["size=8x8"]}, {"calibration": {"pairs": 3}}, {}):
            later = open_store(url, card={**CARD, "model_path": None, **named}, retry=FAST)
            assert later.add(keys, vectors, rows) == 0
            later.close()
        again = open_store(url, retry=FAST)
        known = {"model_path": "/a.onnx", "onnx": ["size=8x8"], "calibration": {"pairs": 3}, "recall": recall}
        assert {name: again.card.get(name) for name in known} == known
        again.close()
        open_store(url, card={**CARD, "model_path": "/b.pt"}, retry=FAST).close()
        again = open_store(url, retry=FAST)
        assert (again.card["model_path"], again.card["onnx"]) == ("/b.pt", None), (
            "options were the other file's"
        )
        again.close()

    def test_recall_is_measured_again_when_the_store_has_grown(self, store):
        keys, vectors, rows = people(130)
        measured = []
        for count in (50, 51, 100, 130):
            store.add(keys[:count], vectors[:count], rows.slice(0, count))
            store.finish()
            measured.append(store.stats()["recall"]["rows"])
        assert measured == [50, 50, 100, 130]

    def test_a_store_that_does_not_exist_is_not_made_by_a_question(self, url):
        refused(lambda: open_store(url, retry=FAST), "build it first")
        refused(lambda: open_store(url, retry=FAST), "build it first")

    def test_an_unknown_option_is_refused_without_its_value(self, url):
        def opened(option):
            return lambda: open_store(f"{url}{'&' if '?' in url else '?'}{option}", card=CARD, retry=FAST)

        assert "hunter2" not in refused(opened("password=hunter2"), "'password'")
        refused(opened("ef_sarch=5"), "did you mean 'ef_search'")
        refused(opened("ef_search=many"), "ef_search", "many")
        refused(opened("m=0"), "m must be")
        refused(opened("m=16&m=8"), "the option 'm' is given twice; keep one")

    def test_a_killed_upload_is_continued_by_the_same_call(self, url):
        batched = f"{url}{'&' if '?' in url else '?'}batch=20"
        script = (
            "import os, signal, sys, json\n"
            "from metricid.search.remote import open_store\n"
            "from search.store_contract import CARD, people\n"
            f"{self.killer}\n"
            "store = open_store(sys.argv[1], card=CARD)\n"
            "store.add(*people(200))\n"
            "store.finish()\n"
        )
        place = str(Path(__file__).parent.parent)
        ended = subprocess.run(
            [sys.executable, "-c", script, batched],
            capture_output=True,
            env={**os.environ, "PYTHONPATH": place},
        )
        assert ended.returncode == -9, ended.stderr.decode()
        keys, vectors, rows = people(200)
        store = open_store(batched, card=CARD, retry=FAST)
        there = store.stats()["rows"]
        assert 0 < there < 200
        assert store.add(keys, vectors, rows) == 200 - there
        store.finish()
        after = contents(store, keys)
        clean = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        assert after[1:] == [rows.to_pylist(), 200]
        np.testing.assert_allclose(np.frombuffer(after[0], np.float32).reshape(200, 16), clean, atol=1e-6)
        hits = store.query(vectors, 1)
        assert hits.keys[:, 0].tolist() == keys
        store.close()


def dumped(store: RemoteStore) -> str:
    """All that a store tells about itself."""
    return json.dumps([store.stats(), store.card], default=str) + repr(store)


def check_options(options: type, kind: str) -> None:
    """Asserts that the page has a table with every option of a store, and its default."""
    page = (Path(__file__).parents[2] / "docs/stores.md").read_text(encoding="utf-8")
    table = re.search(rf"^\| option of `{kind}` \|.*?(?=\n\n)", page, re.MULTILINE | re.DOTALL)
    assert table is not None
    stated = dict(re.findall(r"^\| `(\w+)` \| (?:`([^`]*)`|none) \|", table.group(), re.MULTILINE))
    defaults = {}
    for option in fields(options):
        value = option.default
        text = (
            ",".join(value) if isinstance(value, tuple) else str(value).lower() if value is not None else ""
        )
        defaults[option.name] = text
    assert stated == defaults
