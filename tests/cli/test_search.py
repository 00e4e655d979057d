"""`metricid search` from photos to answers, and what a user's mistakes get."""

import argparse
import json
import os
import re
import shutil
import socket
from pathlib import Path

import cv2
import matplotlib.image
import numpy as np
import pytest
import torch
from photos_recipe import PEOPLE

from metricid.cli.main import main
from metricid.cli.search import add_arguments
from metricid.data.embedding_set import EmbeddingSet
from metricid.data.manifest import Manifest
from metricid.evaluation.calibration import Calibration, Threshold
from metricid.search import SearchIndex


def test_a_photo_finds_its_own_row_first(shop):
    stats = shop.build("--model", shop.run)
    assert (stats["kind"], stats["rows"], stats["recall"]["value"]) == ("flat", 20, 1.0)
    photo = shop.photos / "eve" / "2.png"
    answer = shop.json("query", shop.index, photo, "-k", 3)["queries"][0]
    assert answer["query"] == str(photo)
    assert [hit["rank"] for hit in answer["hits"]] == [1, 2, 3]
    assert answer["hits"][0]["path"] == "eve/2.png"
    assert answer["hits"][0]["score"] == pytest.approx(1, abs=1e-4)
    text = shop.ok("query", shop.index, photo, "-k", 3)
    assert re.search(r"^1 +1\.0000 +eve +eve/2.png$", text, re.MULTILINE)


def test_scores_are_the_cosines_of_the_stored_embeddings(shop):
    shop.build()
    stored = EmbeddingSet.read(shop.embeddings)
    unit = stored.embeddings / np.linalg.norm(stored.embeddings, axis=1, keepdims=True)
    place = stored.table.paths.index("kim/1.png")
    expected = np.sort(np.delete(unit @ unit[place], place))[::-1][:5]
    for row in ("kim/1.png", str(place)):
        hits = shop.json("query", shop.index, "--row", row, "-k", 5)["queries"][0]["hits"]
        assert [hit["score"] for hit in hits] == pytest.approx(expected.tolist(), abs=1e-5)
        assert "kim/1.png" not in [hit["path"] for hit in hits]


def test_a_file_of_many_and_a_filter(shop):
    shop.build()
    words = ["query", shop.index, "--embeddings", shop.embeddings, "--where", "identity=bob", "-k", 6]
    answers = shop.json(*words)["queries"]
    assert len(answers) == 20
    assert all([hit["identity"] for hit in answer["hits"]] == ["bob"] * 4 for answer in answers)


def calibration(shop, flip=True, model=None):
    fingerprint = SearchIndex(shop.index).card["model"]["fingerprint"] if model is None else model
    points = (Threshold(0.1, 0.5, 1.0), Threshold(0.01, 0.9999, 0.5))
    file = shop.folder / "calibration.json"
    Calibration(fingerprint, flip, 30, 160, points).write(file)
    return file


def test_a_table_stays_a_table_whatever_a_name_holds(shop, tmp_path):
    stored = EmbeddingSet.read(shop.embeddings)
    long, torn = "x" * 1_000_000, "two\nlines \x1b[31mred"
    names = [long, torn, *stored.table.identities[2:]]
    table = Manifest.from_columns(path=stored.table.paths, identity=names)
    EmbeddingSet(stored.embeddings, table, stored.card).write(tmp_path / "odd.parquet")
    shop.json("build", tmp_path / "odd.parquet", "-o", shop.index)
    lines = shop.ok("query", shop.index, "--row", "5", "-k", 19).splitlines()
    assert len(lines) == 21 and max(map(len, lines)) < 300
    assert not any("\x1b" in line for line in lines) and any("two lines" in line for line in lines)
    hits = shop.json("query", shop.index, "--row", "5", "-k", 19)["queries"][0]["hits"]
    assert {long, torn} < {hit["identity"] for hit in hits}


def test_a_threshold_tells_match_from_no_match(shop):
    shop.build("--model", shop.run)
    card = calibration(shop)
    photo = shop.photos / "lee" / "0.png"
    found = shop.json("query", shop.index, photo, "--calibration", card, "--far", 0.01, "-k", 20)
    assert found["threshold"] == {"far": 0.01, "threshold": 0.9999, "tar": 0.5}
    for hit in found["queries"][0]["hits"]:
        assert hit["match"] == (hit["score"] >= 0.9999)
    shop.build("--overwrite", "--calibration", card, "--model", shop.run)
    text = shop.ok("query", shop.index, photo)
    assert "(match from 0.9999, FAR 0.01)" in text  # the lowest rate that the card has
    assert re.search(r"lee/0.png +match$", text, re.MULTILINE)
    shop.refused("query", shop.index, photo, "--far", 0.001, says="thresholds for 0.1, 0.01")


def test_a_calibration_of_another_model_is_refused(shop):
    shop.build("--model", shop.run)
    photo = shop.photos / "lee" / "0.png"
    other = calibration(shop, model="abc")
    says = (
        "for model abc, the vectors of .*people.index are of model .*; calibrate with the model of the index"
    )
    shop.refused("query", shop.index, photo, "--calibration", other, says=says)
    shop.refused("query", shop.index, photo, "--far", 0.1, says="--far: needs a calibration card")


@pytest.mark.parametrize("flip", [True, False])
def test_a_calibration_of_the_other_flip_is_refused_with_the_command_that_mends_it(shop, tmp_path, flip):
    vectors, index = shop.trained / ("photos.parquet" if flip else "plain.parquet"), tmp_path / "i.index"
    shop.json("build", vectors, "-o", index, "--model", shop.run)
    shop.json("build", vectors, "-o", shop.index)
    card = calibration(shop, flip=not flip)
    shop.refused("query", index, "--row", "0", "--calibration", card, says="by the same model")
    ours, theirs = ("--flip", "--no-flip") if flip else ("--no-flip", "--flip")
    mended = tmp_path / "calibration.json"
    told = re.search(
        r"calibrate as they are made: metricid (.*?); or embed again: metricid (.*)$", shop.err, re.M
    )
    assert told, shop.err
    assert ours in told[1].split() and theirs not in told[1].split()
    assert told[2] == f"embed {Path(shop.run).resolve()} IMAGES{'' if flip else ' --flip'} -o FILE"
    shop.refused("build", vectors, "-o", index, "--calibration", card, "--overwrite", says=f"RUN .* {ours} ")
    assert main([*told[1].split(), "--workers", "0"]) == 0  # what it says can be typed
    assert Calibration.read(mended).flip == flip
    shop.ok("query", index, "--row", "0", "--calibration", mended)


def test_vectors_of_another_width_than_their_card_says_are_refused(shop, tmp_path):
    shop.build()
    stored = EmbeddingSet.read(shop.embeddings)
    width = stored.embeddings.shape[1]
    narrow = tmp_path / "narrow.parquet"
    EmbeddingSet(stored.embeddings[:, :5], stored.table, stored.card).write(narrow)
    says = f"narrow.parquet: its vectors are 5 wide, its card says that the model gives {width}"
    shop.refused("build", narrow, "-o", tmp_path / "narrow.index", says=says)
    shop.refused("add", shop.index, narrow, says=says)
    shop.refused("query", shop.index, "--embeddings", narrow, says=says)
    assert not (tmp_path / "narrow.index").exists()


def test_a_photo_that_is_pressed_into_another_shape_gets_a_note(shop, tmp_path):
    shop.build("--model", shop.run)
    noise = np.random.default_rng(0).integers(0, 255, (60, 2000, 3), dtype=np.uint8)
    wide, good, small = (tmp_path / f"{name}.png" for name in ("wide", "good", "small"))
    for file, picture in ((wide, noise), (good, noise[:40, :40]), (small, noise[:12, :12])):
        cv2.imwrite(str(file), picture)
    assert len(shop.json("query", shop.index, wide, good, small, "-k", 1)["queries"]) == 3
    assert f"{wide}: has 2000 x 60 pixels and is pressed into 32 x 32: cut it" in shop.err
    assert f"{small}: has 12 x 12 pixels, the model looks at 32 x 32: expect lower scores" in shop.err
    assert str(good) not in shop.err
    shop.json("add", shop.index, wide)
    assert f"{wide}: has 2000 x 60 pixels and is pressed" in shop.err


def test_a_grid_shows_queries_and_hits(shop):
    shop.build("--model", shop.run)
    photo, grid = shop.photos / "ann" / "0.png", shop.folder / "grid.png"
    words = ["query", shop.index, photo, "--row", "bob/1.png", "-k", 4, "--grid", grid]
    shop.ok(*words, "--root", shop.photos, "--calibration", calibration(shop))
    picture = matplotlib.image.imread(grid)
    assert picture.shape[0] > 250 and picture.shape[1] > 500
    green = np.abs(picture[..., :3] - np.array([10, 125, 50]) / 255).max(axis=2) < 0.02
    assert green.any(), "the frame of a match"
    assert "pictures" not in shop.err
    (shop.folder / "other").mkdir()
    shop.ok(*words, "--root", shop.folder / "other")
    assert "other: 9 of 10 pictures are missing, damaged or unreadable; is --root right?" in shop.err
    shop.refused(*words, says="--grid: needs the images of the index: --root")
    shop.refused(*words[:-1], "grid.jpg", "--root", shop.photos, says="must be the name of a .png")


def test_a_small_index_is_searched_without_k(shop):
    shop.build()
    shop.json("remove", shop.index, *(word for person in PEOPLE[1:] for word in ("--key", f"{person}/0.png")))
    for person in PEOPLE[1:]:
        shop.json("remove", shop.index, "--identity", person)
    assert shop.json("stats", shop.index)["rows"] == 4
    assert len(shop.json("query", shop.index, "--embeddings", shop.embeddings)["queries"][0]["hits"]) == 4
    assert len(shop.json("query", shop.index, "--row", 0)["queries"][0]["hits"]) == 3
    shop.refused("query", shop.index, "--row", 0, "-k", 5, says="-k: must be between 1 and the 4 rows")
    shop.json("remove", shop.index, "--identity", "ann")
    shop.refused("query", shop.index, "--embeddings", shop.embeddings, says="has no rows; add some first")


def test_names_that_are_not_utf8(shop, tmp_path):
    shop.build("--model", shop.run)
    foreign = os.fsdecode(b"caf\xe9")
    photo = tmp_path / f"{foreign}.png"
    shutil.copy(shop.photos / "ann" / "0.png", photo)
    shop.ok("query", shop.index, photo, "-k", 1)
    assert "caf\ufffd.png" in shop.out
    shop.refused("add", shop.index, photo, says="add: '.*caf.udce9.png' is not UTF-8")
    for words in (
        ("add", shop.index, photo, "--identity", foreign),
        ("remove", shop.index, "--identity", foreign),
    ):
        shop.refused(*words, says="--identity: 'caf.udce9' is not UTF-8")
    words = ("query", shop.index, "--row", 0, "--where", f"identity={foreign}")
    shop.refused(*words, says="--where: 'identity=caf.udce9' is not UTF-8")


def test_a_grid_takes_any_name_and_any_number_of_queries(shop, tmp_path):
    stored = EmbeddingSet.read(shop.embeddings)
    names = [["a $x_$ b", "$\\broken$", "50$"][i % 3] for i in range(20)]
    table = Manifest.from_columns(path=stored.table.paths, identity=names)
    EmbeddingSet(stored.embeddings, table, stored.card).write(tmp_path / "dollars.parquet")
    shop.ok("build", tmp_path / "dollars.parquet", "-o", shop.index)
    grid = tmp_path / "grid.png"
    shop.ok("query", shop.index, "--row", 0, "-k", 4, "--grid", grid, "--root", shop.photos)
    assert matplotlib.image.imread(grid).shape[1] > 500
    (tmp_path / "some" / "ann").mkdir(parents=True)
    (tmp_path / "some" / "ann" / "1.png").write_bytes(b"no image")
    shop.ok("query", shop.index, "--row", 0, "-k", 4, "--grid", grid, "--root", tmp_path / "some")
    none = EmbeddingSet(stored.embeddings[:0], table.select(np.array([], np.int64)), stored.card)
    none.write(tmp_path / "none.parquet")
    words = ["query", shop.index, "--embeddings", tmp_path / "none.parquet", "-k", 4]
    assert shop.json(*words)["queries"] == []
    shop.refused(*words, "--grid", grid, "--root", shop.photos, says="--grid: there is no query to draw")


@pytest.mark.parametrize(
    "value", ["x", [], {}, {"thresholds": []}, {"thresholds": [{"far": "x"}], "pairs": {}, "model": "m"}]
)
def test_thresholds_of_a_card_that_was_changed_by_hand(shop, value):
    shop.build()
    file = Path(shop.index) / "card.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"calibration": value}))
    shop.refused(
        "query", shop.index, "--row", 0, "-k", 2, says="the thresholds in its card cannot be read; give"
    )


def test_photos_are_added_and_a_person_is_forgotten(shop, tmp_path):
    shop.build("--model", shop.run)
    new = tmp_path / "zoe.png"
    shutil.copy(shop.photos / "ann" / "0.png", new)
    assert shop.json("add", shop.index, new, "--identity", "zoe") == {
        "index": shop.index,
        "added": 1,
        "rows": 21,
    }
    found = shop.json("query", shop.index, new, "-k", 2)["queries"][0]["hits"]
    assert {hit["identity"] for hit in found} == {"ann", "zoe"}
    shop.refused("add", shop.index, new, "--identity", "zoe", says="in the index already")
    assert shop.json("remove", shop.index, "--identity", "zoe")["removed"] == 1
    assert shop.json("remove", shop.index, "--key", "ann/0.png", "--key", "bob/0.png")["rows"] == 18
    shop.refused("remove", shop.index, "--identity", "zoe", says="no row of the index has identity 'zoe'")
    shop.refused("remove", shop.index, "--key", "zoe", says="not in the index: 'zoe'")
    shop.refused("remove", shop.index, says="either --identity or --key")


def test_a_folder_and_an_embedding_file_are_added(shop, tmp_path):
    shop.build("--model", shop.run)
    shutil.copytree(shop.photos, tmp_path / "more" / "archive")
    for person in PEOPLE:
        (tmp_path / "more" / "archive" / person).rename(tmp_path / "more" / f"new-{person}")
    assert shop.json("add", shop.index, tmp_path / "more")["rows"] == 40
    first, second = shop.json("query", shop.index, "--row", "new-kim/3.png", "-k", 1)["queries"], None
    assert first[0]["hits"][0]["path"] == "kim/3.png"
    stored = EmbeddingSet.read(shop.embeddings)
    second = tmp_path / "second.parquet"
    renamed = Manifest.from_columns(
        path=[f"second/{path}" for path in stored.table.paths], identity=list(stored.table.identities)
    )
    EmbeddingSet(stored.embeddings, renamed, stored.card).write(second)
    assert shop.json("add", shop.index, second)["rows"] == 60
    shop.refused("add", shop.index, second, says="20 of 20 rows are in the index already")
    assert shop.json("add", shop.index, second, "--replace")["rows"] == 60


def test_stats(shop):
    shop.build()
    text = shop.ok("stats", shop.index, "--verify")
    assert "20 rows of" in text and "kind flat" in text and "shop (" in text and "mirrored" in text
    stats = shop.json("stats", shop.index)
    assert stats["disk_bytes"] == sum(
        file.stat().st_size for file in (shop.folder / "people.index").iterdir()
    )


def test_another_model_preprocessing_or_width_is_refused_by_name(shop, tmp_path):
    shop.build("--model", shop.run)
    plain = str(shop.trained / "plain.parquet")
    says = (
        "plain.parquet does not fit .*flip is False there, True in the index; the model is the same: "
        "run metricid embed again with --flip, or build a new index from embeddings made without --flip"
    )
    shop.refused("add", shop.index, plain, says=says)
    shop.json("build", plain, "-o", tmp_path / "plain.index")
    says = "flip is True there, False .* embed again without --flip, or .* made with --flip$"
    shop.refused("add", tmp_path / "plain.index", shop.embeddings, says=says)
    stored = EmbeddingSet.read(shop.embeddings)
    for change, says in (
        ({"fingerprint": "f" * 64, "name": "other"}, r"other \(fingerprint ffffffffffff\) there, shop"),
        (
            {"preprocessing": {"size": [64, 64]}},
            r"is .*size \[64, 64\].* there, .*size \[32, 32\]",
        ),
        ({"dimension": 7}, "dimension is 7 there"),
    ):
        card = stored.card | {"model": stored.card["model"] | change}
        vectors = stored.embeddings[:, : change.get("dimension")]
        EmbeddingSet(vectors, stored.table, card).write(tmp_path / "other.parquet")
        shop.refused("add", shop.index, tmp_path / "other.parquet", says=says)
        shop.refused("query", shop.index, "--embeddings", tmp_path / "other.parquet", says=says)
    torch.manual_seed(1)
    again = [shop.trained / "shop.yaml", "seed=5", "name=other", f"runs={tmp_path}"]
    assert main(["train", *map(str, again)]) == 0
    photo = shop.photos / "ann" / "0.png"
    shop.refused("query", shop.index, photo, "--model", tmp_path / "other", says="other .* there, shop .* in")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"this is no image", "no.*image|not.*image|format"),
        ((4, 4), "4 x 4 pixels .* show too little; .* at least 8 x 8"),
        ((64, 64), "one colour"),
        (None, "cannot be read"),
    ],
)
def test_a_query_image_on_which_nobody_can_be_seen(shop, tmp_path, content, says):
    shop.build("--model", shop.run)
    file = tmp_path / "query.png"
    if isinstance(content, tuple):
        cv2.imwrite(str(file), np.full((*content, 3), 77, np.uint8))
    elif content is not None:
        file.write_bytes(content)
    shop.refused("query", shop.index, file, says=f"query.png.*({says})")


def test_words_that_do_not_fit_together(shop):
    shop.build()
    photo = shop.photos / "ann" / "0.png"
    shop.refused("build", shop.embeddings, says="either -o INDEX or --store URL")
    shop.refused("build", shop.embeddings, "-o", shop.index, says="is an index already; use --overwrite")
    shop.refused(
        "build", shop.embeddings, "-o", f"{shop.index}2", "--kind", "hsnw", says="did you mean 'hnsw'"
    )
    shop.refused("query", shop.index, says="give an image, --row or --embeddings")
    shop.refused("query", shop.index, photo, says="does not know where its model is; give --model")
    shop.refused("query", shop.index, "--row", "nobody", says="not in the index: 'nobody'")
    shop.refused("query", shop.index, "--row", "99", says="rows 0 to 19, got 99")
    shop.refused("query", shop.index, "--row", "0", "-k", 21, says="-k: must be between 1 and the 20 rows")
    shop.refused("query", shop.index, "--row", "0", "--where", "camra=1", says="unknown column 'camra'")
    shop.refused("query", shop.index, "--row", "0", "--where", "camera", says="must be COLUMN=VALUE")
    shop.refused("query", shop.index + "x", "--row", "0", says="is no index")
    shop.refused("stats", shop.index, "more", says="takes one index, got also 'more'")
    shop.refused("stats", says="name the index")
    shop.refused("add", shop.index, says="give an embedding file")
    shop.refused("query", "redis://x/y", "--row", "0", says="unknown store 'redis'")


def test_a_model_that_was_moved_is_asked_for(shop, tmp_path):
    shutil.copytree(shop.run, tmp_path / "run")
    shop.build("--model", tmp_path / "run")
    shutil.move(tmp_path / "run", tmp_path / "moved")
    photo = shop.photos / "ann" / "0.png"
    shop.refused("query", shop.index, photo, says="its model is no longer at .*run; give --model RUN")
    shop.ok("query", shop.index, photo, "--model", tmp_path / "moved")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("build", "none.parquet", "-o", "x.index", "--kind", "falt"), "--kind: unknown kind 'falt'"),
        (("build", "none.parquet", "-o", "x.index", "--target", 2), "--target: must be a recall above 0"),
        (("build", "none.parquet", "-o", "x.index", "--onnx", "sice=9x9"), "did you mean 'size'"),
        (("query", "none.index", "a.jpg", "--onnx", "size=9"), "--onnx size=9: has the form"),
        (("query", "none.index", "a.jpg", "--device", "cuad"), "device: 'cuad' is none of"),
        (("query", "none.index", "a.jpg", "-k", 0), "-k: must be at least 1, got 0"),
        (("query", "none.index", "a.jpg", "--far", 5), "--far: must be a rate above 0 and below 1, got 5"),
        (("add", "none.index", "a.jpg", "--onnx", "mean=x"), "--onnx mean=x: takes one number"),
    ],
)
def test_a_wrong_option_is_named_before_a_missing_file(shop, words, says):
    shop.refused(*words, says=says)


def test_a_refused_build_leaves_nothing(shop, tmp_path):
    stored = EmbeddingSet.read(shop.embeddings)
    zero = stored.embeddings.copy()
    zero[7] = 0
    EmbeddingSet(zero, stored.table, stored.card).write(tmp_path / "zero.parquet")
    shop.build()
    for words in (["add", shop.index, tmp_path / "zero.parquet"], ["query", shop.index, "--embeddings"]):
        shop.refused(
            *words, *[tmp_path / "zero.parquet"][: words[0] == "query"], says="zero.parquet: row 7 .*zero"
        )
    place = tmp_path / "new" / "people.index"
    shop.refused("build", tmp_path / "zero.parquet", "-o", place, says="row 7 .* zero vector")
    assert not place.parent.exists()
    shop.refused(
        "build", shop.embeddings, "-o", "x" * 300, says="cannot be made into an index .File name too long"
    )


def test_damaged_embedding_files_make_no_index(shop, tmp_path):
    cut = tmp_path / "cut.parquet"
    cut.write_bytes((shop.trained / "photos.parquet").read_bytes()[:-40])
    shop.refused("build", cut, "-o", shop.index, says="cut.parquet: not a readable Parquet file")
    shop.refused("add", shop.index, cut, says="is no index")
    assert not (tmp_path / "people.index").exists()


@pytest.mark.parametrize("action", ["build", "query", "add", "remove", "stats"])
def test_the_page_has_every_option_of_an_action(action):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    actions = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    known = {flag for a in actions.choices[action]._actions for flag in a.option_strings} - {"-h", "--help"}
    page = (Path(__file__).parents[2] / "docs" / "search.md").read_text(encoding="utf-8")
    table = page.split(f"| option of `{action}` |")[1].split("\n\n")[0]
    rows = [line for line in table.splitlines()[2:] if line.startswith("|")]
    assert {flag for row in rows for flag in re.findall(r"`(-[-a-z]+)`", row.split("|")[1])} == known


def test_a_store_takes_the_place_of_the_folder(shop):
    pytest.importorskip("qdrant_client")
    url = f"qdrant://{shop.folder}/server/people"
    stats = shop.json("build", shop.embeddings, "--store", url, "--model", shop.run)
    assert stats["rows"] == 20
    photo = shop.photos / "eve" / "2.png"
    words = ["query", "--store", url, photo, "--row", "kim/1.png", "-k", 2]
    first, second = shop.json(*words)["queries"]
    assert first["hits"][0]["path"] == "eve/2.png"
    assert "kim/1.png" not in [hit["path"] for hit in second["hits"]]
    for row in ("5", "nobody"):
        shop.refused("query", "--store", url, "--row", row, says=f"not in the index: '{row}'")
        assert ("a row of a store goes by its path (numbers are for" in shop.err) == (row == "5")
    assert shop.json("add", "--store", url, shop.embeddings)["added"] == 20
    assert shop.json("remove", "--store", url, "--identity", "eve")["rows"] == 16
    assert shop.json("stats", "--store", url)["rows"] == 16
    assert "with the mirrored image" in shop.ok("stats", "--store", url)
    shop.refused("build", shop.embeddings, "--store", url, "--kind", "flat", says="options of a store are in")


@pytest.mark.parametrize("option", [["--store"], []])
@pytest.mark.parametrize("action", ["query", "add", "remove", "stats"])
def test_a_url_with_a_slash_too_few_is_no_folder_and_shows_no_password(shop, option, action):
    url = "pgvector:/ann:hunter2@127.0.0.1/db"
    more = {"query": ["x.jpg"], "add": ["x.jpg"], "remove": ["--identity", "ann"], "stats": []}[action]
    shop.refused(action, *option, url, *more, says="unknown store")
    assert "hunter2" not in shop.err


def test_a_file_is_checked_to_its_end_before_a_store_gets_its_first_row(shop, tmp_path, monkeypatch):
    pytest.importorskip("qdrant_client")
    monkeypatch.setattr("metricid.cli.search.UPLOAD_ROWS", 5)
    url = f"qdrant://{tmp_path}/server/people"
    shop.json("build", shop.embeddings, "--store", url)
    shop.json("remove", "--store", url, "--identity", "ann")
    stored = EmbeddingSet.read(shop.embeddings)
    stored.embeddings[-1] = 0
    stored.write(tmp_path / "zero.parquet")
    shop.refused("add", "--store", url, tmp_path / "zero.parquet", says="zero.parquet: row 19 .* zero vector")
    assert shop.json("stats", "--store", url)["rows"] == 16


def test_a_key_over_http_is_one_line_without_the_key(shop, monkeypatch):
    pytest.importorskip("qdrant_client")
    monkeypatch.setenv("METRICID_QDRANT_API_KEY", "s3cret-key")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"qdrant://127.0.0.1:{probe.getsockname()[1]}/people"
    for words in (["stats", "--store", url], ["build", shop.embeddings, "--store", url]):
        assert shop.search(*words) == 2
        note, refusal = shop.err.splitlines()
        assert note == f"{url}: the API key is sent unencrypted; beyond one machine, use ?tls=true"
        assert refusal.startswith("metricid search: ") and "s3cret" not in shop.err
    assert shop.search("stats", "--store", f"{url}?tls=true") == 2 and "unencrypted" not in shop.err
