"""`metricid suspects` from the command line: what it lists, writes and refuses."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from report.made_up import HOSTILE, people, write_faces

from metricid.cli.main import main
from metricid.data import EmbeddingSet, Manifest

WRONG = 7
CUT = "person 03"


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Pictures of 24 people, 5 of each."""
    folder = tmp_path_factory.mktemp("suspects") / "photos"
    write_faces(folder)
    return folder


@pytest.fixture
def stored(tmp_path) -> Path:
    """Embeddings of them, one with the label of another person, and one person cut in two."""
    vectors, _, _ = people(np.random.default_rng(0), identities=24, images=5, noise=0.3)
    paths = [f"person {i:02d}/{j}.jpg" for i in range(24) for j in range(5)]
    names = [path.split("/")[0] for path in paths]
    names[WRONG] = "person 20"
    for row in (15, 16):
        assert names[row] == CUT
        names[row] = "nobody"
    return write(tmp_path / "photos.parquet", vectors, paths, names)


def write(file: Path, vectors, paths, names) -> Path:
    EmbeddingSet(vectors, Manifest.from_columns(path=paths, identity=names), {"model": "made up"}).write(file)
    return file


def listed(capsys, *words) -> dict:
    assert main(["suspects", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *words) -> str:
    """The one line of a command that ends with exit code 2."""
    assert main(["suspects", *map(str, words)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return err


def test_a_wrong_label_and_a_person_under_two_names_are_listed(stored, capsys):
    found = listed(capsys, stored)
    assert [(row["identity"], row["other"]) for row in found["pairs"]] == [("nobody", CUT)]
    (image,) = found["suspect_images"]
    assert (image["path"], image["identity"], image["other"]) == ("person 01/2.jpg", "person 20", "person 01")
    assert image["own_cosine"] + 0.1 < image["cosine"]
    assert found["counts"] == {"pairs": 1, "images": 1, "far": 0}
    assert found["images"] == 120 and found["identities"] == 25


def test_the_text_says_what_was_found(stored, capsys):
    assert main(["suspects", str(stored)]) == 0
    text = capsys.readouterr().out
    assert "120 images of 25 identities" in text
    assert "1 pairs of identities that are probably one (guard 0." in text and "by halves" in text
    assert "person 01/2.jpg (person 20)" in text


@pytest.mark.parametrize("suffix", ["csv", "parquet", "json"])
def test_files_hold_whole_lists(stored, tmp_path, capsys, suffix):
    file = tmp_path / f"lists.{suffix}"
    found = listed(capsys, stored, "--gap", "0", "--guard", "0.1", "--top", "1", "--out", file)
    if suffix == "json":
        rows = [(row["identity"], row["other"]) for row in json.loads(file.read_text())["pairs"]]
    elif suffix == "csv":
        with open(file, newline="", encoding="utf-8") as text:
            read = list(csv.DictReader(text))
        rows = [(row["identity"], row["other"]) for row in read if row["kind"] == "pair"]
        assert next(row["path"] for row in read if row["kind"] == "pair") == ""
    else:
        read = pyarrow.parquet.read_table(file).to_pylist()
        rows = [(row["identity"], row["other"]) for row in read if row["kind"] == "pair"]
    assert len(rows) == found["counts"]["pairs"] > 5 and len(found["pairs"]) == 1
    assert rows[0] == (found["pairs"][0]["identity"], found["pairs"][0]["other"])


def test_the_page_shows_the_images_beside_both_identities(stored, photos, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["suspects", str(stored), "--html", str(page), "--root", str(photos)]) == 0
    assert str(page) in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    assert "Identities that are probably one person: 1" in text
    assert "Images that probably show somebody else: 1" in text
    assert text.count("<img") == 3 + 2 + 1 + 3 + 3
    assert not re.search(r"(src|href|action)\s*=\s*[\"'](?!data:|#)", text)
    assert main(["suspects", str(stored), "--html", str(page), "--no-pictures"]) == 0
    assert "<img" not in page.read_text(encoding="utf-8")


def test_names_with_html_in_them_stay_text(stored, tmp_path, capsys):
    vectors, names, _ = people(np.random.default_rng(0), identities=6, images=4, noise=0.3)
    paths = [f"{i} {HOSTILE}.jpg" for i in range(24)]
    names[5], names[0] = names[20], HOSTILE
    file, page = write(tmp_path / "bad.parquet", vectors, paths, names.tolist()), tmp_path / "page.html"
    assert main(["suspects", str(file), "--html", str(page), "--no-pictures", "--guard", "0.5"]) == 0
    text = page.read_text(encoding="utf-8")
    assert "<img" not in text and text.count("<script>") == 1 and "&lt;script&gt;" in text


def test_an_identity_that_stands_for_nobody_is_left_out(stored, capsys):
    found = listed(capsys, stored, "--ignore", "nobody")
    assert found["pairs"] == [] and found["identities"] == 24 and found["images"] == 118
    assert "has no identity 'else'" in refused(capsys, stored, "--ignore", "else")


def test_single_images_are_said_and_only_paired(tmp_path, capsys):
    vectors, names, _ = people(np.random.default_rng(0), identities=12, images=4, noise=0.2)
    names[0] = "alone"
    file = write(tmp_path / "e.npy", vectors, [f"{i}.jpg" for i in range(48)], names.tolist())
    found = listed(capsys, file, "--guard", "0.8")
    assert found["single_images"] == 1 and found["suspect_images"] == []
    assert [(row["identity"], row["other"]) for row in found["pairs"]] == [("alone", "person 0")]
    assert main(["suspects", str(file)]) == 0
    assert "1 of 13 identities have one image" in capsys.readouterr().out


def test_one_image_of_everybody_needs_a_guard(tmp_path, capsys):
    vectors, _, _ = people(np.random.default_rng(0), identities=12, images=1)
    paths = [f"{i}.jpg" for i in range(12)]
    file = write(tmp_path / "e.parquet", vectors, paths, paths)
    assert "no identity has two images" in (line := refused(capsys, file)) and "--guard" in line
    found = listed(capsys, file, "--guard", "0.9")
    assert found["single_images"] == 12 and found["counts"]["images"] == 0


def test_one_identity_is_refused(tmp_path, capsys):
    file = write(tmp_path / "e.parquet", np.eye(3, dtype=np.float32), ["a", "b", "c"], ["one"] * 3)
    assert "has fewer than two identities; wrong labels take two or more" in refused(capsys, file)


def test_embeddings_without_identities_are_refused(stored, tmp_path, capsys):
    table = pyarrow.parquet.read_table(stored).drop_columns(["identity"])
    pyarrow.parquet.write_table(table, tmp_path / "none.parquet")
    assert "identity" in refused(capsys, tmp_path / "none.parquet")


def test_an_empty_set_is_refused(tmp_path, capsys):
    file = write(tmp_path / "e.parquet", np.empty((0, 4), np.float32), [], [])
    assert "has no images" in refused(capsys, file)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--guard", "1"], "--guard: must be above -1 and below 1, got 1.0"),
        (["--guard", "-1.5"], "--guard: must be above -1"),
        (["--guard", "nan"], "--guard: must be above -1"),
        (["--gap", "-0.1"], "--gap: must be at least 0"),
        (["--top", "0"], "--top: must be from 1 to 100"),
        (["--top", "101"], "--top: must be from 1 to 100"),
        (["--seed", "-1"], "--seed: must be from 0 to"),
        (["--seed", str(2**70)], "--seed: must be from 0 to"),
        (["--out", "lists.txt"], "must be a file whose name ends in .csv or .parquet or .json"),
        (["--html", "page.txt"], "must be a file whose name ends in .html"),
        (["--root", "photos"], "--root: is for the pictures of a page"),
        (["--no-pictures"], "--no-pictures: is for the pictures of a page"),
        (["--html", "page.html"], "does not say where its images are; give --root FOLDER"),
        (["--device", "tpu"], "device: 'tpu' is none of"),
    ],
)
def test_options_that_cannot_be_used(stored, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert message in refused(capsys, stored, *words)
    assert sorted(tmp_path.iterdir()) == before


def test_the_file_to_read_is_never_replaced(stored, capsys):
    before = stored.read_bytes()
    assert "is the file to read" in refused(capsys, stored, "--out", stored)
    assert stored.read_bytes() == before


def test_missing_pictures_leave_no_page(stored, photos, tmp_path, capsys):
    some = Path(shutil.copytree(photos, tmp_path / "some"))
    (some / "person 05" / "1.jpg").unlink()
    page = tmp_path / "page.html"
    assert "person 05/1.jpg" in refused(capsys, stored, "--html", page, "--root", some)
    assert "nowhere: does not exist" in refused(
        capsys, stored, "--html", page, "--root", tmp_path / "nowhere"
    )
    assert not page.exists()


def test_a_picture_that_cannot_be_read_is_named_in_its_place(stored, photos, tmp_path):
    some = Path(shutil.copytree(photos, tmp_path / "some"))
    (some / "person 01" / "2.jpg").write_bytes(b"no picture")
    page = tmp_path / "page.html"
    assert main(["suspects", str(stored), "--html", str(page), "--root", str(some)]) == 0
    assert 'class="nopicture" title="person 01/2.jpg"' in page.read_text(encoding="utf-8")


def test_a_folder_needs_stored_embeddings(stored, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    assert f"make it with: metricid embed {folder}" in refused(capsys, folder)
    shutil.copy(stored, folder / "embeddings.parquet")
    assert listed(capsys, folder)["counts"]["images"] == 1
    assert "give embeddings" in refused(capsys, tmp_path / "photos.txt")
    assert "does not exist" in refused(capsys, tmp_path / "none.parquet")
