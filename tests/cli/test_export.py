"""`metricid export`, and ONNX files in place of a checkpoint in `metricid evaluate`."""

import json
import re

import cv2
import numpy as np
import onnx
import pytest
import torch
from torch import nn

from metricid.cli import export as command
from metricid.cli.main import main
from metricid.export import export_onnx
from metricid.models.embedder import embedder_to_dict
from metricid.models.inference import embedder_fingerprint
from metricid.models.onnx import OnnxModel
from metricid.training.build import build_embedder, check_recipe
from metricid.training.checkpoint import write_checkpoint

RECIPE = {
    "name": "small",
    "data": {
        "train": "synthetic_faces",
        "size": [32, 32],
        "options": {"identities": 24, "images": 6},
        "split": {"train_identities": 8, "validation_identities": 2},
        "workers": 0,
    },
    "model": {"backbone": "test_resnet", "neck": "bnneck"},
    "objective": [{"loss": "softmax"}],
    "train": {"images": 64},
}


def untrained(config, seed):
    """The recipe's network with weights that all matter."""
    torch.manual_seed(seed)
    embedder = build_embedder(config).eval()
    for module in embedder.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.2)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return embedder


@pytest.fixture(scope="module")
def config():
    return check_recipe(RECIPE, "small.yaml")


@pytest.fixture(scope="module")
def embedder(config):
    return untrained(config, 0)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, config, embedder):
    """A run folder with one checkpoint."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    state = {
        "embedder": embedder_to_dict(embedder.config),
        "model": embedder.state_dict(),
        "ema": None,
        "config": config.plain(),
    }
    write_checkpoint(folder / "checkpoints" / "best.pt", state)
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory, run_folder):
    """The file, with what the command printed as JSON."""
    file = tmp_path_factory.mktemp("exported") / "small.onnx"
    assert main(["export", str(run_folder), "-o", str(file)]) == 0
    return file


def result(capfd, *arguments):
    code = main([str(argument) for argument in arguments])
    out, err = capfd.readouterr()
    assert code == 0, err
    return json.loads(out)


@pytest.fixture
def refused(capfd):
    """The command ends with 2 and one line that holds these words."""

    def check(arguments, *words):
        code = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        said = [line for line in re.split(r"[\r\n]+", err) if line.startswith("metricid")]
        assert (code, out, len(said)) == (2, "", 1), err
        for word in words:
            assert word in said[0]

    return check


def test_an_export_says_what_it_compared(run_folder, embedder, tmp_path, capfd):
    file = tmp_path / "new" / "model.onnx"
    said = result(capfd, "export", run_folder, "-o", file, "--json", "--license", "CC0", "--no-flip")
    check = said["check"]
    assert (check["images"], check["identities"], check["flip"]) == (16 * 6, 16, False)
    assert said["checked_on"] == "test images of the run"
    assert check["max_error"]["ONNX"]["relative"] < 1e-5
    assert {"rank-1", "TAR@FAR=0.01"} <= set(check["measures"])
    for measure in check["measures"].values():
        assert measure["ONNX"] == pytest.approx(measure["PyTorch"], abs=1 / measure["count"])
    assert said["fingerprint"] == embedder_fingerprint(embedder)
    assert said["bytes"] == file.stat().st_size
    assert json.loads(onnx.load(file).metadata_props[0].value)["license"] == "CC0"


def test_the_measures_of_the_check_are_those_of_evaluate(run_folder, exported, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(command, "export_onnx", lambda *_, **__: exported.read_bytes())
    said = result(capfd, "export", run_folder, "-o", tmp_path / "model.onnx", "--json")
    protocols = ("--protocol", "identification,verification", "--precision", "fp32")
    found = result(capfd, "evaluate", run_folder, *protocols, "--json")["results"]
    metrics = {name: value for part in found for name, value in part["metrics"].items()}
    for name, measure in said["check"]["measures"].items():
        assert measure["PyTorch"] == pytest.approx(metrics[name])


def test_evaluate_takes_the_file_in_place_of_the_checkpoint(run_folder, exported, capfd):
    protocols = ("--protocol", "identification,verification", "--json")
    before = result(capfd, "evaluate", run_folder, *protocols, "--precision", "fp32")["results"]
    after = result(capfd, "evaluate", exported, "--recipe", run_folder, *protocols)["results"]
    assert "small.onnx, flip-sum" in after[0]["subject"]
    for a, b in zip(before, after, strict=True):
        assert a["counts"] == b["counts"] and a["variant"] == b["variant"]
        for name, value in a["metrics"].items():
            if value is not None:
                assert b["metrics"][name] == pytest.approx(value, abs=2e-3), name


def photos(folder, people=4, images=3):
    rng = np.random.default_rng(0)
    for person in range(people):
        (folder / str(person)).mkdir(parents=True)
        for number in range(images):
            pixels = rng.integers(0, 255, (40, 32, 3), dtype=np.uint8)
            cv2.imwrite(str(folder / str(person) / f"{number}.png"), pixels)
    return folder


def test_the_check_takes_other_images(run_folder, exported, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(command, "export_onnx", lambda *_, **__: exported.read_bytes())
    folder = photos(tmp_path / "photos")
    words = ("-o", tmp_path / "m.onnx", "--layout", "folder", "--root", folder, "--json")
    said = result(capfd, "export", run_folder, *words)
    assert said["check"]["images"] == 12 and "photos" in said["checked_on"]
    some = result(capfd, "export", run_folder, *words, "--check-images", "7")
    assert (some["check"]["images"], some["check"]["identities"]) == (6, 2)


def test_images_that_have_moved_are_asked_for(run_folder, tmp_path, refused):
    output = ["-o", tmp_path / "m.onnx"]
    moved = [run_folder, "data.train=folder", f"data.root={tmp_path / 'gone'}", "data.options={}"]
    refused(["export", *moved, *output], "gone", "say where with --root; or check on --layout")
    refused(["export", run_folder, *output, "--root", tmp_path], "--root: layout synthetic_faces generates")
    other = ["--layout", "folder", "--root", photos(tmp_path / "photos"), "--int8"]
    refused(["export", *moved, *output, *other], "--int8: calibrates on the run", "gone", "with data.root=")
    assert not (tmp_path / "m.onnx").exists()


def test_images_without_identities_are_compared_by_their_vectors(
    run_folder, exported, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(command, "export_onnx", lambda *_, **__: exported.read_bytes())
    folder = photos(tmp_path / "photos", people=1)
    words = ("-o", tmp_path / "m.onnx", "--layout", "folder", "--root", folder)
    assert main(["export", str(run_folder), *map(str, words)]) == 0
    out = capfd.readouterr().out
    assert "not compared" in out and "TAR@FAR" not in out


def test_a_foreign_file_is_evaluated_with_options(exported, run_folder, tmp_path, capfd):
    model = onnx.load(exported)
    model.ClearField("metadata_props")
    foreign = tmp_path / "foreign.onnx"
    onnx.save(model, foreign)
    words = ("--recipe", run_folder, "--onnx", "mean=127.5", "--onnx", "std=127.5,127.5,127.5", "--json")
    found = result(capfd, "evaluate", foreign, *words)["results"]
    expected = result(capfd, "evaluate", exported, "--recipe", run_folder, "--json")["results"]
    assert found[0]["metrics"] == expected[0]["metrics"]
    wrong = result(capfd, "evaluate", foreign, *words, "--onnx", "std=20")["results"]
    assert wrong[0]["metrics"] != expected[0]["metrics"]


def test_int8_states_what_it_costs(run_folder, tmp_path, capfd):
    file = tmp_path / "small.onnx"
    words = ("--int8", "--calibration-images", "40", "--max-drop", "1", "--json")
    said = result(capfd, "export", run_folder, "-o", file, *words)
    assert said["precision"] == "int8" and said["check"]["models"] == ["PyTorch", "ONNX", "int8"]
    assert said["source"] != said["fingerprint"]
    rank = said["check"]["measures"]["rank-1"]
    assert set(rank) == {"count", "supported", "PyTorch", "ONNX", "int8"}
    assert said["check"]["max_error"]["int8"]["relative"] > said["check"]["max_error"]["ONNX"]["relative"]
    assert OnnxModel(file).precision == "int8"


def test_pixels_as_input(run_folder, tmp_path, capfd):
    file = tmp_path / "small.onnx"
    said = result(capfd, "export", run_folder, "-o", file, "--input", "pixels", "--json")
    assert said["input"] == {"layout": "NHWC", "dtype": "uint8"}
    assert said["check"]["max_error"]["ONNX"]["relative"] < 1e-5


@pytest.fixture(scope="module")
def of_another(config):
    """The export of a network with other weights."""
    return export_onnx(untrained(config, 1), name="other")


@pytest.mark.parametrize("existing", [False, True])
def test_a_failed_check_leaves_the_folder_as_it_was(
    run_folder, of_another, tmp_path, monkeypatch, refused, existing
):
    monkeypatch.setattr(command, "export_onnx", lambda *_, **__: of_another)
    file = tmp_path / "model.onnx"
    if existing:
        file.write_bytes(b"the old one")
    refused(["export", run_folder, "-o", file], "not written, the check failed", "ONNX differs from PyTorch")
    assert [f.name for f in tmp_path.iterdir()] == (["model.onnx"] if existing else [])
    assert not existing or file.read_bytes() == b"the old one"


def test_int8_that_loses_too_much_is_not_written(
    run_folder, exported, config, tmp_path, monkeypatch, refused
):
    """With its weights all but rounded away, the model recognises hardly anybody."""
    model = onnx.load(exported)
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 4:
            values = np.random.default_rng(0).standard_normal(tensor.dims).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    monkeypatch.setattr(command, "export_onnx", lambda *_, **__: exported.read_bytes())
    monkeypatch.setattr(command, "quantize_int8", lambda *_: model.SerializeToString())
    words = ["export", run_folder, "-o", tmp_path / "m.onnx", "--int8", "--max-drop", "0.01"]
    refused(words, "not written, int8 lowers", "--max-drop 0.01")
    assert not list(tmp_path.iterdir())


def test_nan_in_an_export_is_refused(run_folder, exported, tmp_path, monkeypatch, refused):
    model = onnx.load(exported)
    tensor = next(t for t in model.graph.initializer if len(t.dims) == 4)
    values = np.full(tensor.dims, np.nan, np.float32)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    monkeypatch.setattr(command, "export_onnx", lambda *_, **__: model.SerializeToString())
    refused(["export", run_folder, "-o", tmp_path / "m.onnx"], "ONNX gives values that are not finite")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-o", "model.pt"], "must be a file whose name ends in .onnx"),
        (["-o", "/dev/null/model.onnx"], "no folder that can be written to"),
        (["-o", "m.onnx", "--int8", "--max-drop", "nan"], "--max-drop: must be at least 0"),
        (["-o", "m.onnx", "--int8", "--calibration-images", "0"], "--calibration-images: must be at least 1"),
        (["-o", "m.onnx", "--max-drop", "0.1"], "--max-drop: is for --int8"),
        (["-o", "m.onnx", "--calibration-images", "9"], "--calibration-images: is for --int8"),
        (["-o", "m.onnx", "data.size=[64,64]"], "data.size=[64,64]: a trained model stays as it is"),
        (["-o", "m.onnx", "--check-images", "-1"], "--check-images: must be at least 0"),
        (["-o", "m.onnx", "--option", "seed=1"], "--option: is for other data"),
        (["-o", "m.onnx", "--layout", "manifest"], "--manifest: --layout manifest needs the table"),
        (["-o", "m.onnx", "--layout", "folder"], "--root"),
    ],
)
def test_options_that_cannot_be(run_folder, words, message, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(["export", run_folder, *words], message)
    assert not list(tmp_path.iterdir())


def test_subjects_that_cannot_be_exported(exported, refused, tmp_path):
    refused(["export", exported, "-o", tmp_path / "m.onnx"], "is exported already")
    refused(["export", tmp_path / "none", "-o", tmp_path / "m.onnx", "model.backbone=x"], "stays as it is")
    refused(
        ["export", tmp_path / "none", "-o", tmp_path / "m.onnx"],
        "no such run folder or checkpoint; give the folder",
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "says nothing of test images; give --layout and --root, or --recipe"),
        (["data.root=/moved"], "has no recipe; give one with --recipe"),
        (["--layout", "folder", "--root", ".", "--precision", "bf16"], "--precision"),
        (["--layout", "folder", "--root", ".", "--onnx", "mean=1"], "says itself how it wants its pixels"),
        (["--layout", "folder", "--root", ".", "--onnx", "size"], "has the form NAME=VALUE"),
        (["--layout", "folder", "--root", ".", "--onnx", "size=112"], "has the form HEIGHTxWIDTH"),
        (["--layout", "folder", "--root", ".", "--onnx", "mean=1,2"], "takes one number, or three"),
        (["--layout", "folder", "--root", ".", "--onnx", "mean=nan"], "takes one number, or three"),
        (["--layout", "folder", "--root", ".", "--onnx", "layout=NCWH"], "is none of NCHW, NHWC"),
        (["--layout", "folder", "--root", ".", "--onnx", "sise=1x1"], "did you mean 'size'"),
    ],
)
def test_evaluate_refuses_what_an_onnx_file_cannot_be_asked(exported, words, message, refused):
    refused(["evaluate", exported, *words], message)


def test_options_of_onnx_files_are_refused_for_others(run_folder, refused):
    refused(["evaluate", run_folder, "--onnx", "mean=1"], "--onnx: is for ONNX files")
    refused(["evaluate", run_folder, "--recipe", run_folder], "--recipe: is for ONNX files")


def test_a_damaged_file_is_refused(exported, tmp_path, refused):
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(exported.read_bytes()[:5000])
    refused(["evaluate", damaged, "--layout", "folder", "--root", tmp_path], "not an ONNX file, or a damaged")
