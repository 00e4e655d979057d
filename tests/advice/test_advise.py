"""`metricid advise` from the command line: what it reads, prints, writes and refuses."""

import argparse
import json
import os
import re
import stat
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from metricid.cli.advise import add_arguments
from metricid.cli.main import main
from metricid.config import read_recipe
from metricid.data import EmbeddingSet, Manifest
from metricid.training.build import check_recipe

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """`photos` of 30 people, 4 each, from two cameras; `people.csv`; `vectors.parquet` with two swapped."""
    folder = tmp_path_factory.mktemp("advise")
    rng = np.random.default_rng(0)
    paths, names, cameras = [], [], []
    for person in range(30):
        (folder / "photos" / f"p{person:02d}").mkdir(parents=True)
        for number in range(4):
            path = f"p{person:02d}/{number}.png"
            cv2.imwrite(str(folder / "photos" / path), rng.integers(0, 255, (32, 16, 3), np.uint8))
            paths.append(path)
            names.append(f"p{person:02d}")
            cameras.append("ab"[number % 2])
    table = Manifest.from_columns(paths, names, camera=cameras)
    table.write(folder / "people.csv")
    vectors = rng.normal(size=(30, 16))[np.arange(120) // 4] + 0.1 * rng.normal(size=(120, 16))
    vectors[[0, 40]] = vectors[[40, 0]]
    EmbeddingSet(vectors.astype(np.float32), table, {}).write(folder / "vectors.parquet")
    return folder


def said(capsys, *words):
    assert main(["advise", *map(str, words)]) == 0
    return capsys.readouterr().out


def refused(capsys, *words):
    """The one line of a command that ends with exit code 2."""
    assert main(["advise", *map(str, words)]) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith("metricid advise: ") and not out
    return line


def test_the_page_has_figures_reasons_and_evidence(place, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    out = said(capsys, place / "people.csv", "--root", place / "photos")
    assert "identities          30\n" in out and "16 x 32 (width x height" in out
    assert "people, a guess from the shape alone" in " ".join(out.split())
    advice = out[out.index("Advice") :]
    topics = re.findall(r"^(\w+) ", advice, re.MULTILINE)
    assert topics[:4] == ["objective", "margin", "sampler", "split"]
    for label in ("figures", "why", "evidence"):
        assert len(re.findall(rf"^  {label} ", advice, re.MULTILINE)) == len(topics)
    assert max(map(len, out.splitlines()[1:])) <= 100


@pytest.mark.parametrize(
    "words", [["photos"], ["--layout", "folder", "--root", "photos"], ["people.csv", "--root", "photos"]]
)
def test_the_same_images_by_folder_and_by_table(place, capsys, monkeypatch, words):
    monkeypatch.chdir(place)
    found = json.loads(said(capsys, *words, "--json"))
    assert found["figures"]["spread"]["images"] == 120
    assert found["recipe"]["data"]["root"] == "photos"
    assert (found["figures"]["cameras"] is None) == ("people.csv" not in words)
    assert found["label_noise"] is None


def test_generated_people_need_no_files(capsys):
    words = (
        "synthetic_pedestrians",
        "--option",
        "identities=20",
        "--option",
        "images=4",
        "--option",
        "size=[64, 32]",
    )
    with pytest.raises(SystemExit):  # argparse: the option takes one word at a time
        main(["advise", *words, "--option"])
    capsys.readouterr()
    found = json.loads(said(capsys, *words[:5], "--json"))
    assert found["recipe"]["data"]["options"] == {"identities": 20, "images": 4}
    assert found["recipe"]["evaluation"]["protocols"] == ["reid"]


def test_embeddings_tell_of_wrong_labels_by_path(place, capsys, tmp_path):
    table = Manifest.read(place / "people.csv")
    turned = table.select(np.arange(119, -1, -1))
    turned.write(tmp_path / "turned.csv")
    words = ("--root", place / "photos", "--embeddings", place / "vectors.parquet", "--json")
    noise = json.loads(said(capsys, tmp_path / "turned.csv", *words))["label_noise"]
    assert noise["suspects"] == 2 and noise["share"] == pytest.approx(2 / 120, abs=0.005)
    assert {a for a, _ in noise["examples"]} == {table.paths[0], table.paths[40]}
    assert {b.split("/")[0] for _, b in noise["examples"]} == {table.identities[0], table.identities[40]}
    out = said(capsys, place / "vectors.parquet")
    assert "of the labels are wrong" in out and "e.g. p00/0.png looks like p10/" in out
    assert "image size          unknown" in out
    apart = json.loads(said(capsys, place / "people.csv", *words, "--other-cameras"))["label_noise"]
    assert {a for a, _ in apart["examples"][:2]} == {table.paths[0], table.paths[40]}
    assert all(a[-5] in "02" and b[-5] in "13" for a, b in apart["examples"][:2]), "of another camera"


def test_a_table_without_its_images_still_has_figures(place, capsys, tmp_path):
    target = tmp_path / "people.csv"
    Manifest.read(place / "people.csv").write(target)
    assert "no images were found beside the table" in said(capsys, target)
    assert "a recipe needs a table and its images" in refused(capsys, target, "--write", tmp_path / "r.yaml")
    assert not (tmp_path / "r.yaml").exists()


def test_the_recipe_that_is_written_trains(place, capsys, tmp_path):
    file = tmp_path / "my recipe.yaml"
    out = said(capsys, place / "people.csv", "--root", place / "photos", "--write", file)
    assert f"metricid train '{file}'" in out
    text = file.read_text()
    config = check_recipe(read_recipe(file), "written")
    assert config.name == "my-recipe" and config.data.sampler["images"] == 4
    for topic in (
        "objective",
        "margin",
        "sampler",
        "split",
        "size",
        "augmentation",
        "model",
        "length",
        "protocol",
    ):
        assert f"# {topic}: " in text
    batch = config.data.sampler["identities"] * config.data.sampler["images"]
    words = [
        f"train.images={2 * batch}",
        "model.backbone=test_resnet",
        f"runs={tmp_path}",
        "log.report=false",
    ]
    assert main(["train", str(file), *words, "device=cpu", "data.workers=0", "train.precision=fp32"]) == 0
    out = capsys.readouterr().out
    assert "reid" in out and f"trained on {2 * batch} images" in out


def test_singletons_train_on_two_views(place, capsys, tmp_path):
    table = Manifest.read(place / "people.csv").select(np.arange(0, 120, 4))
    table.write(tmp_path / "one.csv")
    file = tmp_path / "one.yaml"
    said(capsys, tmp_path / "one.csv", "--root", place / "photos", "--write", file)
    words = ["train.images=64", "model.backbone=test_resnet", f"runs={tmp_path}", "log.report=false"]
    assert main(["train", str(file), *words, "device=cpu", "data.workers=0", "train.precision=fp32"]) == 0


def test_a_file_is_replaced_only_by_force_and_whole(place, capsys, tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("mine")
    words = (place / "people.csv", "--root", place / "photos", "--write", file)
    assert "exists" in refused(capsys, *words)
    assert file.read_text() == "mine"
    said(capsys, *words, "--force", "--json")
    assert file.read_text().startswith("# Advice") and os.listdir(tmp_path) == ["r.yaml"]
    assert stat.S_IMODE(file.stat().st_mode) & 0o400


def test_hostile_names_stay_on_their_line(place, capsys, tmp_path):
    table = Manifest.from_columns(
        [f"{i}.jpg" for i in range(6)], list("aabbcc"), camera=["x\x1b[2J\ny", "b"] * 3, split=["s\rt"] * 6
    )
    table.write(tmp_path / "t.parquet")
    out = said(capsys, tmp_path / "t.parquet")
    assert "\x1b" not in out and "\r" not in out and "x\ufffd[2J\ufffdy" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "DATA: give a table"),
        (["nowhere"], "nowhere"),
        (["nowhere.csv"], "does not exist"),
        (["nowhere.parquet"], "does not exist"),
        (["nowhere.npy"], "does not exist"),
        (["photos", "--layout", "faces"], "unknown layout 'faces'"),
        (["photos", "--layout", "market1501"], "0002_c1s1_000451_03.jpg"),
        (["--layout", "manifest", "--root", "photos"], "needs the table"),
        (["photos", "--root", "photos"], "--root"),
        (["synthetic_faces", "--root", "photos"], "generates its images"),
        (["people.csv", "--option", "seed=1"], "a table takes none"),
        (["people.csv", "--root", "nowhere"], "nowhere"),
        (["people.csv", "--root", "photos", "--other-cameras"], "--embeddings"),
        (["people.csv", "--root", "photos", "--embeddings", "nowhere.npy"], "does not exist"),
        (["people.csv", "--root", "photos", "--embeddings", "people.csv"], "must end in .parquet or .npy"),
        (["vectors.parquet", "--embeddings", "vectors.parquet"], "give one of the two"),
        (["photos", "--embeddings", "vectors.parquet", "--other-cameras"], "no column 'camera'"),
        (["photos/p00", "--layout", "folder"], "identity"),
        (["people.csv", "--seed", "-1"], "--seed"),
        (["people.csv", "--force"], "--force"),
        (["people.csv", "--write", "out.json"], "ends in .yaml"),
        (["people.csv", "--write", "people.csv/out.yaml"], "no folder"),
        (["vectors.parquet", "--write", "out.yaml"], "give the table as DATA"),
        (["one.csv", "--root", "photos", "--write", "out.yaml"], "one identity"),
        (["empty.csv"], "no image of an identity"),
        (["other.csv", "--embeddings", "vectors.parquet"], "has no path of other.csv"),
        (["half.csv", "--root", "photos"], "does not exist"),
        (["zero.parquet"], "zero vector"),
    ],
)
def test_a_mistake_is_one_line(place, capsys, monkeypatch, words, message):
    monkeypatch.chdir(place)
    table = Manifest.read("people.csv")
    table.select(np.arange(4)).write("one.csv")
    (place / "empty.csv").write_text("path,identity\n")
    (place / "other.csv").write_text("path,identity\nx.jpg,a\ny.jpg,b\n")
    (place / "half.csv").write_text("path,identity\np00/0.png,a\ny.jpg,b\n")
    EmbeddingSet(np.zeros((120, 2), np.float32), table, {}).write("zero.parquet")
    assert message in refused(capsys, *words)
    assert not (place / "out.yaml").exists()


def _named(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), np.zeros((32, 16, 3), np.uint8))
    return folder


def test_names_like_those_of_market1501_are_seen(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "100")
    hint = "if the names are those of Market-1501, add --layout market1501"
    names = [f"{person:04d}_c{camera}s1_000001_00.png" for person in (2, 7) for camera in (1, 2)]
    flat = _named(tmp_path / "flat", [f"train/{name}" for name in names])
    (first, *others) = json.loads(said(capsys, flat, "--json"))["warnings"]
    assert first.startswith("one identity only: ") and first.endswith(f"add others; {hint}") and not others
    assert hint in " ".join(said(capsys, flat).split())
    assert refused(capsys, flat, "--write", tmp_path / "out.yaml").endswith(f"; {hint}")
    assert hint not in said(capsys, flat, "--layout", "market1501", "--json")

    several = [f"{name}_c1s1_000001_00.png" for name in ("0002", "0007", "-1", "0009")]
    official = _named(tmp_path / "official", [f"{part}/{n}" for part in ("query", "train") for n in several])
    (first, *_) = json.loads(said(capsys, official, "--json"))["warnings"]
    assert first == f"2 folders were taken for identities, and the file names tell of 4; {hint}"


@pytest.mark.parametrize(
    "names",
    [
        ["ann/1.png", "ann/0002_c1s1_000001_00.png", "ann/0003_c1s1_000001_00.png"],
        ["ann/0002_c1s1_000001_00.png", "ann/0002_c2s1_000001_00.png"],
        ["0002/0002_c1s1_000001_00.png", "0003/0003_c2s1_000001_00.png"],
    ],
    ids=["other names", "one identity indeed", "a folder per identity"],
)
def test_other_names_give_no_hint_at_a_layout(capsys, tmp_path, names):
    assert "--layout" not in said(capsys, _named(tmp_path / "photos", names), "--json")


def test_the_page_of_the_docs_has_every_option_with_its_default():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    expected = {a.option_strings[-1]: a.default for a in parser._actions if a.dest not in ("help", "data")}
    text = (ROOT / "docs/advise.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(--[a-z-]+)` \| `([^`]+)` \|", text, re.MULTILINE)
    assert {name: yaml.safe_load(default) for name, default in rows} == expected


@pytest.mark.parametrize(
    ("words", "sampler", "split"),
    [
        (
            ["market1501_train.tar", "--layout", "market1501"],
            {"name": "pk", "identities": 8, "images": 4},
            {"train_identities": 601, "validation_identities": 60, "seed": 0},
        ),
        (
            ["lfw_aligned112.tar", "--layout", "lfw"],
            {"name": "pk", "identities": 16, "images": 2, "epoch": "identities"},
            {"train_identities": 1344, "min_images": 2, "validation_identities": 100, "seed": 0},
        ),
        (
            ["omniglot_small.tar", "--layout", "omniglot"],
            {"name": "pk", "identities": 8, "images": 4},
            {"train": "small1", "test": "small2"},
        ),
    ],
)
def test_real_data(real_data, capsys, words, sampler, split):
    found = json.loads(said(capsys, real_data / words[0], *words[1:], "--json"))
    assert found["recipe"]["data"]["sampler"] == sampler
    assert found["recipe"]["data"]["split"] == split
    assert [term["loss"] for term in found["recipe"]["objective"]] == ["softmax", "supcon"]
