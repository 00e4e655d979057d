"""From the options of `metricid demo` to what the page shows."""

import argparse

import cv2
import numpy as np
import pyarrow as pa
import pytest

from metricid.cli import demo
from metricid.cli.main import main
from metricid.cli.model import open_model
from metricid.demo.gallery import StoredImages
from metricid.errors import InputError
from metricid.evaluation import verification_all_pairs
from metricid.search import ArraySource, SearchIndex
from metricid.training.checkpoint import open_checkpoint, write_checkpoint


def studio_of(*words):
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    arguments = [*map(str, words), "--device", "cpu", "--precision", "fp32", "--workers", "0"]
    return demo._studio(parser.parse_args(arguments))


@pytest.fixture(scope="module")
def moved(run_folder, faces, tmp_path_factory):
    """A checkpoint whose recipe names files that now lie elsewhere: (checkpoint, where they are)."""
    folder = tmp_path_factory.mktemp("moved")
    table = faces.manifest()
    for path in table.paths:
        file = folder / "here" / (path + ".png")
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), faces.read(path)[:, :, ::-1])
    _, state = open_checkpoint(run_folder, print)
    data = {**state["config"]["data"], "train": "folder", "root": str(folder / "gone"), "options": {}}
    file = folder / "best.pt"
    write_checkpoint(file, {**state, "config": {**state["config"], "data": data}})
    return file, folder / "here"


def test_the_rates_are_those_of_the_evaluation(run_folder):
    studio = studio_of(run_folder)
    search = studio._search
    result = verification_all_pairs(search.embeddings, search.identities)
    point = result.point(0.1)
    assert studio.rates.far(point.threshold) == pytest.approx(point.far)
    assert studio.rates.tar(point.threshold) == pytest.approx(point.tar)
    assert studio.rates.table.impostor_pairs == result.impostor_pairs
    assert studio.name == "small (best.pt)" and studio.gallery.images == len(search.identities)


def test_images_that_have_moved_are_found_by_root(moved):
    checkpoint, here = moved
    with pytest.raises(InputError, match="no such folder.*say where with --root|does not exist.*with --root"):
        studio_of(checkpoint)
    for words in (("--root", here), (f"data.root={here}",)):
        studio = studio_of(checkpoint, *words)
        assert studio.gallery.picture(studio.run_images.path_at(0)).shape == (32, 32, 3)


def test_options_for_other_data_are_refused(run_folder, moved):
    with pytest.raises(InputError, match="--root: layout synthetic_faces generates its images"):
        studio_of(run_folder, "--root", "photos")
    with pytest.raises(InputError, match="--manifest: is for layout manifest, this is folder"):
        studio_of(moved[0], "--manifest", "table.csv")


def test_a_recipe_without_test_identities_is_refused(moved):
    with pytest.raises(InputError, match="has no test identities"):
        studio_of(moved[0], "data.split=null", "--root", moved[1])


def test_an_index_of_this_model_is_searched_in_place_of_the_test_images(run_folder, moved, faces, tmp_path):
    model = open_model(run_folder, device="cpu", precision="fp32")
    paths = faces.paths()[::3]
    vectors = np.random.default_rng(0).normal(size=(len(paths), model.output_dim)).astype(np.float32)
    rows = pa.table({"path": [path + ".png" for path in paths], "identity": [p.split("/")[3] for p in paths]})
    about = {"model": model.describe(), "flip": True}
    SearchIndex.build(tmp_path / "all.index", ArraySource(vectors, rows), about=about)
    studio = studio_of(run_folder, "--index", tmp_path / "all.index", "--index-root", moved[1])
    assert isinstance(studio.gallery, StoredImages) and studio.gallery.images == len(paths)
    hits = studio.look((vectors[5] / np.linalg.norm(vectors[5])).astype(np.float32), 3).hits
    assert hits[0].path == paths[5] + ".png"
    assert studio.gallery.picture(hits[0].path).shape == (32, 32, 3)
    assert studio.gallery.picture("absent.png") is None

    with pytest.raises(InputError, match="made without the mirrored image, and .* add evaluation.flip=false"):
        SearchIndex.build(
            tmp_path / "plain.index", ArraySource(vectors, rows), about={**about, "flip": False}
        )
        studio_of(run_folder, "--index", tmp_path / "plain.index")
    studio = studio_of(run_folder, "evaluation.flip=false", "--index", tmp_path / "plain.index")
    assert studio.gallery.images == len(paths)
    with pytest.raises(InputError, match=f"{run_folder} does not fit .*other.index: model is small"):
        other = {**about, "model": {**about["model"], "fingerprint": "0" * 64}}
        SearchIndex.build(tmp_path / "other.index", ArraySource(vectors, rows), about=other)
        studio_of(run_folder, "--index", tmp_path / "other.index")
    with pytest.raises(InputError, match="all.index: has no rows to search; add some first"):
        SearchIndex(tmp_path / "all.index").remove(keys=[path + ".png" for path in paths])
        studio_of(run_folder, "--index", tmp_path / "all.index")


def test_a_wrong_index_is_named_before_any_image_is_embedded(run_folder, tmp_path, monkeypatch):
    def embeds(*_, **__):
        raise AssertionError("images were embedded first")

    monkeypatch.setattr(demo, "embed_images", embeds)
    with pytest.raises(InputError, match="nope.index: is no index .*search build"):
        studio_of(run_folder, "--index", tmp_path / "nope.index")


def test_a_trained_model_is_not_changed_by_an_override(capfd):
    assert main(["demo", "runs/none", "model.backbone=resnet50", "--port", "0"]) == 2
    assert "model.backbone=resnet50: a trained model stays as it is" in capfd.readouterr().err


def test_a_run_that_is_not_there_says_what_to_give(tmp_path):
    with pytest.raises(InputError, match="no run folder or checkpoint .*metricid train made"):
        studio_of(tmp_path / "runs" / "none")
