"""`metricid embed RUN` without DATA: the run's own test images, as its evaluation finds them."""

import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from pandas import read_parquet

from metricid.cli.main import main
from metricid.config import read_recipe
from metricid.data.embedding_set import EmbeddingSet
from metricid.data.manifest import Manifest
from metricid.data.synthetic import SyntheticFaces
from metricid.training.build import check_recipe
from metricid.training.distributed import World
from metricid.training.session import train

QUICK = ["--workers", "0", "--precision", "fp32"]
RECIPE = """
data:
  size: [32, 32]
  sampler: {name: pk, identities: 4, images: 2}
  workers: 0
model: {backbone: test_resnet, neck: bnneck}
objective: [{loss: softmax}]
train: {images: 32, precision: fp32}
log: {report: false}
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two trained runs: `drawn` of generated faces, `listed` of a table with cameras over a folder."""
    folder = tmp_path_factory.mktemp("own")
    faces = SyntheticFaces(identities=12, images=4, size=(32, 32))
    table = faces.manifest()
    table = table.with_column("camera", [str(row % 2) for row in range(len(table))])
    for path in table.paths:
        file = folder / "photos" / f"{path}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), faces.read(path)[:, :, ::-1])
    paths = [f"{path}.png" for path in table.paths]
    table = Manifest.from_columns(paths, table.identities.tolist(), camera=table.column("camera").tolist())
    table.write(folder / "photos.csv")
    split = {"train_identities": 8}
    places = {
        "drawn": {"train": "synthetic_faces", "options": {"identities": 12, "images": 4}, "split": split},
        "listed": {
            "train": "manifest",
            "root": str(folder / "photos"),
            "manifest": str(folder / "photos.csv"),
            "split": split,
        },
        "untested": {"train": "synthetic_faces", "options": {"identities": 12, "images": 4}},
    }
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE)
    for name, data in places.items():
        values = read_recipe(recipe) | {"name": name, "runs": str(folder)}
        values["data"] = values["data"] | data
        if name == "listed":
            values["evaluation"] = {"protocols": ["reid"], "best": "mAP", "query_gallery": True}
        train(check_recipe(values, name), World(0, 1, torch.device("cpu")))
    return folder


def embed(*words):
    assert main(["embed", *map(str, words), *QUICK]) == 0


def refused(capsys, *words):
    """The one line of a command that ends with exit code 2."""
    capsys.readouterr()
    assert main(["embed", *map(str, words), *QUICK]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = [line for line in err.splitlines() if line.startswith("metricid embed: ")]
    return line


def test_generated_test_images_get_the_embeddings_that_they_get_by_name(runs, tmp_path, capsys):
    run = runs / "drawn"
    assert main(["embed", str(run), "--json", *QUICK]) == 0
    assert json.loads(capsys.readouterr().out)["file"] == str(run / "embeddings.parquet")
    own = EmbeddingSet.read(run / "embeddings.parquet")
    test = Manifest.read(run / "manifests" / "test.csv")
    assert own.table.fingerprint() == test.fingerprint() and len(own) == 16
    named = tmp_path / "all.parquet"
    embed(run, "synthetic_faces", "--option", "identities=12", "--option", "images=4", "-o", named)
    everyone = EmbeddingSet.read(named)
    vectors = dict(zip(everyone.table.paths, everyone.embeddings, strict=True))
    assert len(vectors) == 48
    for path, vector in zip(own.table.paths, own.embeddings, strict=True):
        np.testing.assert_allclose(vector, vectors[path], rtol=1e-4, atol=1e-5)
    assert own.card["model"]["fingerprint"] == everyone.card["model"]["fingerprint"]


def test_a_table_gives_the_same_and_all_its_columns(runs, tmp_path):
    run, own, named = runs / "listed", tmp_path / "own.parquet", tmp_path / "named.parquet"
    embed(run, "-o", own)
    embed(run, run / "manifests" / "test.csv", "--root", runs / "photos", "-o", named)
    mine, theirs = read_parquet(own), read_parquet(named)
    assert set(mine.columns) == {"path", "identity", "camera", "split", "embedding"}
    assert set(mine["split"]) == {"query", "gallery"}  # as the recipe divides them
    assert set(mine["camera"]) == {"0", "1"}
    for name in ("path", "identity", "camera", "split"):
        assert mine[name].tolist() == theirs[name].tolist()
    np.testing.assert_array_equal(np.stack(mine["embedding"]), np.stack(theirs["embedding"]))


def test_the_set_evaluates_to_the_numbers_of_the_run(runs, tmp_path, capsys):
    run, file = runs / "listed", tmp_path / "flipped.npy"
    embed(run, "-o", file, "--flip")
    capsys.readouterr()
    assert main(["evaluate", str(file), "--protocol", "reid", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["results"][0]
    expected = json.loads((run / "results.json").read_text())["results"][0]
    assert found["counts"] == expected["counts"]
    assert found["metrics"] == pytest.approx(expected["metrics"], abs=1e-9)


def test_a_row_of_the_set_is_searched_for_without_a_photo(runs, tmp_path, capsys):
    run, file, index = runs / "drawn", tmp_path / "own.parquet", tmp_path / "own.index"
    embed(run, "-o", file)
    stored = EmbeddingSet.read(file)
    assert main(["search", "build", str(file), "-o", str(index), "--model", str(run)]) == 0
    capsys.readouterr()
    assert main(["search", "query", str(index), "--row", "3", "-k", "5", "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)["queries"]
    unit = stored.embeddings / np.linalg.norm(stored.embeddings, axis=1, keepdims=True)
    cosines = unit @ unit[3]
    nearest = [int(row) for row in np.argsort(-cosines) if row != 3][:5]
    assert answer["query"] == stored.table.paths[3]
    assert [hit["path"] for hit in answer["hits"]] == [stored.table.paths[row] for row in nearest]
    assert [hit["score"] for hit in answer["hits"]] == pytest.approx(cosines[nearest], abs=1e-5)
    assert [hit["identity"] for hit in answer["hits"]] == [stored.table.identities[row] for row in nearest]


def test_the_set_is_replaced_when_asked_to(runs, tmp_path, capsys):
    run = shutil.copytree(runs / "drawn", tmp_path / "drawn")
    (run / "embeddings.parquet").unlink(missing_ok=True)
    embed(run)
    before = (run / "embeddings.parquet").stat().st_ino
    assert "embeddings.parquet: exists" in refused(capsys, run)
    embed(run, "--overwrite")
    assert (run / "embeddings.parquet").stat().st_ino != before


def test_one_side_of_a_divided_test_set(runs, tmp_path, capsys):
    file = tmp_path / "gallery.parquet"
    embed(runs / "listed", "-o", file, "--split", "gallery")
    assert set(EmbeddingSet.read(file).table.column("split")) == {"gallery"}
    line = refused(capsys, runs / "listed", "-o", tmp_path / "x.parquet", "--split", "tset")
    assert "no test image" in line and "'tset'" in line


def test_images_and_a_table_that_have_moved(runs, tmp_path, capsys):
    run = runs / "listed"
    photos, table = tmp_path / "photos", tmp_path / "table.csv"
    (runs / "photos").rename(photos)
    (runs / "photos.csv").rename(table)
    try:
        line = refused(capsys, run, "-o", tmp_path / "a.parquet")
        assert "say where with --root; or give DATA" in line
        embed(run, "-o", tmp_path / "a.parquet", "--root", photos, "--manifest", table)
    finally:
        photos.rename(runs / "photos")
        table.rename(runs / "photos.csv")
    assert len(EmbeddingSet.read(tmp_path / "a.parquet")) == 16


def test_an_unreadable_image_is_treated_as_the_recipe_says(runs, tmp_path, capsys):
    photos = shutil.copytree(runs / "photos", tmp_path / "photos")
    test = Manifest.read(runs / "listed" / "manifests" / "test.csv")
    (photos / test.paths[0]).write_bytes(b"\xff\xd8 no picture")
    words = [runs / "listed", "-o", tmp_path / "a.parquet", "--root", photos]
    assert test.paths[0] in refused(capsys, *words)
    embed(*words, "--on-corrupt", "skip")
    assert test.paths[0] in capsys.readouterr().err
    assert len(EmbeddingSet.read(tmp_path / "a.parquet")) == 15
    line = refused(capsys, *words[:3], "--max-pixels", "9", "--overwrite")
    assert "pixels" in line


def test_what_cannot_be_found_is_said(runs, tmp_path, capsys):
    run = runs / "drawn"
    checkpoint = next((run / "checkpoints").glob("*.pt"))
    assert "no test identities (data.split); give DATA" in refused(capsys, runs / "untested")
    assert "give -o FILE" in refused(capsys, checkpoint)
    assert "give -o FILE" in refused(capsys, tmp_path / "nowhere")
    out = ["-o", tmp_path / "a.parquet"]
    assert "no such run folder or checkpoint; give" in refused(capsys, tmp_path / "nowhere", *out)
    (tmp_path / "empty").mkdir()
    assert "holds no checkpoint" in refused(capsys, tmp_path / "empty")
    assert "says nothing of test images; give DATA" in refused(capsys, "model.onnx", *out)
    assert "-o: give the file to write" in refused(capsys, run, "synthetic_faces")
    assert "--manifest: is for the run's own" in refused(
        capsys, run, "synthetic_faces", *out, "--manifest", "t.csv"
    )
    assert "--layout: says what DATA is" in refused(capsys, run, *out, "--layout", "folder")
    assert "--option: says what DATA is" in refused(capsys, run, *out, "--option", "seed=1")
    assert "generates its images and takes none" in refused(capsys, run, *out, "--root", tmp_path)
    assert "--manifest: is for layout manifest" in refused(capsys, run, *out, "--manifest", "t.csv")
    assert not (tmp_path / "a.parquet").exists()
    assert not list((tmp_path / "empty").iterdir())
