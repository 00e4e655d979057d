"""`metricid report` from the command line: what it writes, and what it says when something is wrong."""

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from report.made_up import HOSTILE, people, write_faces

from metricid.cli import report
from metricid.cli.main import main
from metricid.config import find_recipe, read_recipe
from metricid.data import EmbeddingSet, Manifest
from metricid.training.build import check_recipe
from metricid.training.distributed import World
from metricid.training.session import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with `photos` and the run folder `small`: a tiny network, a few steps."""
    folder = tmp_path_factory.mktemp("report")
    write_faces(folder / "photos")
    values = read_recipe(find_recipe("quickstart"))
    values |= {"name": "small", "runs": str(folder), "train": {"images": 160, "precision": "fp32"}}
    values["data"] |= {
        "train": "folder",
        "root": str(folder / "photos"),
        "size": [32, 32],
        "options": {},
        "split": {"train_identities": 14, "validation_identities": 4},
        "sampler": {"name": "pk", "identities": 4, "images": 2},
        "workers": 0,
    }
    values["model"] = {"backbone": "test_resnet", "neck": "bnneck"}
    values["log"] = {"every": 2, "report": False}
    train(check_recipe(values, "small"), World(0, 1, torch.device("cpu")))
    return folder


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of that run, to be damaged."""
    return Path(shutil.copytree(trained / "small", tmp_path / "small"))


def refused(capsys, *words) -> str:
    """The one line of a command that ends with exit code 2."""
    assert main(["report", *map(str, words)]) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("metricid report: ")]
    assert out == ""
    assert len(lines) == 1
    return lines[0]


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def test_a_run_becomes_a_page(run, capsys):
    assert main(["report", str(run), "--precision", "fp32", "--queries", "3", "--top", "4", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    page = text_of(run / "report.html")
    assert told["report"] == str(run / "report.html")
    assert told["bytes"] == (run / "report.html").stat().st_size < 10_000_000
    assert told["pictures"] > 20
    results = json.loads((run / "results.json").read_text())["results"]
    assert f"{100 * results[0]['metrics']['rank-1']:.2f}%" in page
    assert "raw pixels, no flip" in page
    assert "computed again" not in page  # the lists belong to the numbers of the table
    assert page.count('class="query"') == 9
    assert len(re.findall(r"<svg viewBox.{0,40}role=.img.", page)) == 8
    assert "test_resnet" in page
    assert "waiting for images" in page
    assert not re.search(r"(src|href|action)\s*=\s*[\"'](?!data:|#)", page)
    assert not re.search(r"url\(|@import|https?:", page.replace("http://www.w3.org", ""))


def test_the_same_seed_gives_the_same_lists_another_one_others(run, tmp_path):
    pages = []
    for number, seed in enumerate((0, 0, 1)):
        file = tmp_path / f"{number}.html"
        assert main(["report", str(run), "-o", str(file), "--seed", str(seed)]) == 0
        pages.append(re.sub(r"Report of [\d :-]+", "", text_of(file)))
    assert pages[0] == pages[1] != pages[2]


def test_a_page_without_pictures_reads_no_image(run, trained, tmp_path, capsys):
    stored = tmp_path / "test.parquet"
    assert main(["evaluate", str(trained / "small"), "--save-embeddings", str(stored)]) == 0
    moved = ["data.root=/nowhere/at/all"]
    assert main(["report", str(run), *moved, "--no-pictures"]) == 0
    page = text_of(run / "report.html")
    assert "No image was read" in page
    assert "<img" not in page
    assert "Training" in page
    assert main(["report", str(run), *moved, "--no-pictures", "--embeddings", str(stored)]) == 0
    page = text_of(run / "report.html")
    assert page.count('class="query"') == 18
    assert "<img" not in page
    capsys.readouterr()
    line = refused(capsys, run, *moved)
    assert "/nowhere/at/all" in line
    assert "--root" in line
    assert "--no-pictures" in line
    assert main(["report", str(run), *moved, "--root", str(trained / "photos")]) == 0
    assert "<img" in text_of(run / "report.html")


def test_results_of_evaluate_become_a_page(trained, tmp_path, capsys):
    folder, stored = tmp_path / "results", tmp_path / "test.npy"
    words = ["evaluate", str(trained / "small"), "-o", str(folder), "--save-embeddings", str(stored)]
    assert main(words) == 0
    assert main(["report", str(folder)]) == 0
    page = text_of(folder / "report.html")
    assert "Evaluation" in page
    assert 'id="training"' not in page
    assert 'id="lists"' not in page
    assert "Without embeddings there are no ranked lists" in page
    capsys.readouterr()
    assert "--root" in refused(capsys, folder, "--embeddings", stored)
    assert main(["report", str(folder), "--embeddings", str(stored), "--root", str(trained / "photos")]) == 0
    page = text_of(folder / "report.html")
    assert 'id="lists"' in page
    assert "computed again" not in page


def test_stored_embeddings_become_a_page(tmp_path, capsys):
    write_faces(tmp_path / "photos", identities=12, images=6)
    paths = sorted(
        f.relative_to(tmp_path / "photos").as_posix() for f in (tmp_path / "photos").rglob("*.jpg")
    )
    vectors, _, cameras = people(np.random.default_rng(0))
    names = [path.split("/")[0].replace("person 03", HOSTILE) for path in paths]
    split = ["query" if i % 4 == 0 else "gallery" for i in range(len(names))]
    table = Manifest.from_columns(paths, names, camera=cameras, split=split)
    file = tmp_path / "mine.parquet"
    EmbeddingSet(vectors, table, {"model": HOSTILE}).write(file)
    assert main(["report", str(file), "--root", str(tmp_path / "photos"), "--map", "pca"]) == 0
    page = text_of(tmp_path / "mine.html")
    assert "Market rule" in page
    assert "same camera, not counted" in page
    assert page.count("<script>") == 1
    assert "<img src=x" not in page
    assert "alert(1)&lt;/script&gt;" in page
    assert main(["report", str(file), "--no-pictures", "--protocol", "identification"]) == 0
    assert "Market rule" not in text_of(tmp_path / "mine.html")
    capsys.readouterr()
    assert "give --root FOLDER, or --no-pictures" in refused(capsys, file)
    (tmp_path / "photos" / "person 03" / "0.jpg").unlink()
    line = refused(capsys, file, "--root", tmp_path / "photos")
    assert "person 03/0.jpg" in line
    assert "did you mean" in refused(capsys, file, "--no-pictures", "--protocol", "identificaton")
    single = table.select(np.arange(0, 72, 6)).with_column("split", "")
    EmbeddingSet(vectors[::6].copy(), single, {}).write(file)
    assert "two images of one of them" in refused(capsys, file, "--no-pictures")


def test_a_damaged_picture_leaves_a_place_with_its_name(run, trained, tmp_path, capsys):
    photos = Path(shutil.copytree(trained / "photos", tmp_path / "photos"))
    stored = tmp_path / "test.parquet"
    assert main(["evaluate", str(run), "--save-embeddings", str(stored)]) == 0
    tested = EmbeddingSet.read(stored).table.paths
    for path in tested[: len(tested) // 2]:
        (photos / path).write_bytes(b"\xff\xd8 no picture")
    words = ["report", str(run), "--root", str(photos)]
    assert main([*words, "--embeddings", str(stored)]) == 0
    page = text_of(run / "report.html")
    assert 'class="nopicture"' in page
    assert "<img" in page
    capsys.readouterr()
    assert tested[0] in refused(capsys, *words[1:])


def test_changed_test_images_are_said(run, trained, tmp_path):
    photos = Path(shutil.copytree(trained / "photos", tmp_path / "photos"))
    folders = sorted(photos.iterdir())
    for folder, other in zip(folders, folders[1:] + folders[:1], strict=True):
        shutil.copy(other / "0.jpg", folder / "again.jpg")  # a picture of somebody else
    assert main(["report", str(run), "--root", str(photos)]) == 0
    page = text_of(run / "report.html")
    assert "The test images have changed since the run" in page
    assert "computed again for this part: rank-1 is" in page


def test_a_damaged_log_and_environment_cost_only_their_parts(run):
    log = run / "log.jsonl"
    lines = log.read_bytes().splitlines()
    log.write_bytes(b"\n".join([b"\xff" * 40, *lines[:3], lines[3][:20], *lines[4:]]) + b'\n{"event"')
    (run / "environment.json").write_text("{")
    assert main(["report", str(run), "--no-pictures"]) == 0
    page = text_of(run / "report.html")
    assert re.search(r"damaged log lines, left out</dt><dd>2</dd>", page)
    assert "<summary>environment" not in page


def test_a_run_that_evaluated_nothing(run):
    values = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps(values | {"results": []}))
    assert main(["report", str(run), "evaluation.protocols=[]", "data.split.validation_identities=0"]) == 0
    page = text_of(run / "report.html")
    assert "No protocol was evaluated" in page
    assert 'class="query"' in page


def test_what_is_no_run_is_refused(run, tmp_path, capsys):
    assert "no such folder" in refused(capsys, tmp_path / "none")
    assert "no such folder" in refused(capsys, "quickstart")
    assert "does not exist" in refused(capsys, tmp_path / "none.parquet", "--no-pictures")
    (tmp_path / "empty").mkdir()
    assert "holds no results.json" in refused(capsys, tmp_path / "empty")
    for folder in ("checkpoints",):
        shutil.rmtree(run / folder)
    assert "holds no checkpoint" in refused(capsys, run)
    (run / "results.json").write_text('{"results": [')
    assert "damaged" in refused(capsys, run)
    (run / "results.json").unlink()
    assert "train the run to its end" in refused(capsys, run)
    (run / "recipe.yaml").write_text("a: [")
    assert "recipe.yaml: damaged" in refused(capsys, run)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--queries", "0"], "--queries: must be at least 1 and at most 21"),
        (["--queries", "22"], "--queries: must be at least 1 and at most 21"),
        (["--top", "21"], "--top: must be at least 1 and at most 20"),
        (["--seed", "-1"], "--seed"),
        (["--batch-size", "0"], "--batch-size"),
        (["--workers", "-1"], "--workers"),
        (["--protocol", "reid"], "--protocol: has no meaning for"),
        (["-o", "report.pdf"], "must be a file whose name ends in .html"),
        (["-o", "/dev/null/report.html"], "is no folder that can be written to"),
        (["--manifest", "x.csv"], "--manifest: is for layout manifest"),
        (["--embeddings", "none.parquet"], "none.parquet: does not exist"),
        (["data.rot=/x"], "data.rot"),
    ],
)
def test_options_that_do_not_fit(run, words, said, capsys):
    assert said in _all(capsys, run, words)
    assert not (run / "report.html").exists()


def _all(capsys, run, words) -> str:
    assert main(["report", str(run), *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return err


def test_generated_data_takes_no_root(run, capsys):
    words = ("data.train=synthetic_faces", "data.root=null")
    assert "generates its images" in refused(capsys, run, *words, "--root", "/x")


def test_a_failed_page_leaves_the_old_one(run, capsys):
    page = run / "report.html"
    page.write_text("old")
    assert "/nowhere: does not exist" in refused(capsys, run, "data.root=/nowhere")
    assert page.read_text() == "old"


def test_the_page_of_the_docs_has_every_option_and_its_commands_are_understood():
    parser = argparse.ArgumentParser(exit_on_error=False)
    report.add_arguments(parser)
    text = (Path(__file__).parent.parent.parent / "docs" / "report.md").read_text(encoding="utf-8")
    table = text.split("## Options")[1].split("\n## ")[0]
    named = {
        name for row in table.splitlines() for name in re.findall(r"`(--?[a-z-]+)`", row.split(" | ")[0])
    }
    assert named == {flag for action in parser._actions for flag in action.option_strings} - {"-h", "--help"}
    lines = re.findall(r"^metricid report (.+)$", text, re.MULTILINE)
    assert len(lines) == 5
    for line in lines:
        parser.parse_args(shlex.split(line))
    for name, default in (("--queries", "6"), ("--top", "10"), ("--seed", "0"), ("--map", "pca")):
        assert parser.get_default(name.strip("-")) == type(parser.get_default(name.strip("-")))(default)
        assert re.search(rf"^\| `{name}` \| `{default}` \|", table, re.MULTILINE)


def test_a_map_whose_package_is_missing_is_refused_before_anything_is_read(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "umap", None)
    assert "umap-learn is not installed" in refused(capsys, tmp_path / "no.run", "--map", "umap")


def test_pairs_that_a_sampler_kept_apart_are_shown(run):
    trained = Manifest.read(run / "manifests" / "train.csv")
    first, second = trained.identity_names()[:2]
    (run / "suspects.csv").write_text(f"identity,other,cosine\n{first},{second},0.97\n")
    assert main(["report", str(run), "--precision", "fp32"]) == 0
    section = text_of(run / "report.html").split('id="suspects"')[1].split("</section>")[0]
    assert "Among the images trained on, the centers of the two" in section
    article = section.split("<article")[1].split("</article>")[0]
    assert first in article and second in article and article.count("<img") == 6


def test_the_templates_travel_in_a_wheel(tmp_path):
    """What setuptools puts into a build is what lies in the folder."""
    root = Path(__file__).parent.parent.parent
    names = {file.name for file in (root / "metricid/report/templates").iterdir()}
    pages = {"base.html", "report.html", "compare.html", "suspects.html"}
    assert pages | {"parts.html", "suspect_parts.html", "report.css", "report.js"} == names
    source = tmp_path / "source"
    wanted = shutil.ignore_patterns("__pycache__")
    for folder in ("metricid", "configs"):
        shutil.copytree(root / folder, source / folder, ignore=wanted)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(root / name, source / name)
    build = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path / "built")]
    made = subprocess.run(build, cwd=source, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-2000:]
    assert {file.name for file in (tmp_path / "built/metricid/report/templates").iterdir()} == names
