"""What a user's mistakes get: one clear line, exit code 2, and nothing half-written."""

import errno
import re
import struct
import zlib

import cv2
import numpy as np
import pytest
import torch
import yaml
from photos_recipe import photos_recipe

from metricid.cli.main import main
from metricid.models.embedder import Embedder, EmbedderConfig, Preprocessing, embedder_to_dict
from metricid.training.checkpoint import write_checkpoint

PIXELS = ["evaluate", "quickstart", "--baseline", "pixels"]


class Shop:
    """A folder of photos with a recipe beside it."""

    def __init__(self, folder):
        self.folder = folder
        self.photos = folder / "photos"
        rng = np.random.default_rng(0)
        for person in ("ann", "bob", "eve", "kim", "lee"):
            (self.photos / person).mkdir(parents=True)
            for number in range(4):
                pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
                cv2.imwrite(str(self.photos / person / f"{number}.jpg"), pixels)
        self.values = photos_recipe(folder, "shop", size=[32, 32])

    def recipe(self):
        file = self.folder / "shop.yaml"
        file.write_text(yaml.safe_dump(self.values))
        return str(file)

    def train(self, *overrides):
        return main(["train", self.recipe(), *overrides])

    @property
    def run(self):
        return self.folder / "runs" / "shop"


@pytest.fixture
def shop(tmp_path):
    return Shop(tmp_path)


@pytest.fixture
def refused(capfd, shop):
    """Checks the code, the one line, and that no run folder appeared."""

    def check(code, *words, lines=1, run_folder=False):
        out, err = capfd.readouterr()
        said = [
            line
            for line in re.split(r"[\r\n]+", err)
            if re.match(r"metricid|  \S", line) and "%|" not in line
        ]
        assert code == 2, err
        assert "Traceback" not in err
        assert out == ""
        assert len(said) == lines, err
        for word in words:
            assert word in err, err
        assert shop.run.exists() == run_folder
        assert not list(shop.folder.rglob("*.tmp"))

    return check


def test_the_shop_trains_and_its_run_evaluates(shop, capfd):
    assert shop.train() == 0
    assert "rank-1" in capfd.readouterr().out
    assert main(["evaluate", str(shop.run), "--protocol", "identification,verification"]) == 0
    assert "TAR@FAR" in capfd.readouterr().out


def test_a_moved_data_set_is_evaluated_from_its_new_place(shop, refused, capfd):
    assert shop.train() == 0
    moved = shop.folder / "moved"
    shop.photos.rename(moved)
    capfd.readouterr()
    refused(main(["evaluate", str(shop.run)]), "photos: does not exist", run_folder=True)
    assert main(["evaluate", str(shop.run), f"data.root={moved}"]) == 0
    assert main(["evaluate", str(shop.run), "--root", str(moved)]) == 0


def test_a_wrong_path(shop, refused):
    refused(shop.train("data.root=/no/such/place"), "/no/such/place: does not exist")


def test_an_empty_folder(shop, refused):
    empty = shop.folder / "empty"
    empty.mkdir()
    refused(shop.train(f"data.root={empty}"), str(empty), "no images")


def test_a_zero_byte_jpeg(shop, refused):
    for file in shop.photos.rglob("1.jpg"):
        file.write_bytes(b"")
    refused(shop.train(), "1.jpg", "empty", run_folder=True)
    assert not (shop.run / "checkpoints").exists()


def test_a_text_file_called_jpg(shop, refused):
    for file in shop.photos.rglob("1.jpg"):
        file.write_text("I am a text")
    refused(shop.train(), "1.jpg", "not an image", run_folder=True)


def test_bad_images_can_be_skipped_and_are_counted(shop, capfd):
    (shop.photos / "ann" / "1.jpg").write_bytes(b"")
    (shop.photos / "bob" / "2.jpg").write_text("text")
    (shop.photos / "lee" / "2.jpg").write_bytes((shop.photos / "lee" / "2.jpg").read_bytes()[:300])
    assert shop.train("data.on_corrupt=skip", "train.images=60") == 0
    out = capfd.readouterr().out
    assert "could not be read" in out or "left out" in out


def bomb(path, side=20_000):
    """A valid PNG header that promises side x side pixels, in a few bytes."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def test_a_pixel_bomb_is_refused_before_it_is_decoded(shop, refused):
    for file in shop.photos.rglob("1.jpg"):
        file.unlink()
        bomb(file.with_suffix(".png"))
    refused(shop.train(), "1.png", "20000", "max_pixels", run_folder=True)


def test_the_limit_on_pixels_is_an_option(shop, refused):
    refused(shop.train("data.max_pixels=100"), "32 x 32", "max_pixels", run_folder=True)


def test_a_csv_with_a_missing_column(shop, refused):
    table = shop.folder / "table.csv"
    table.write_text("path,person\nann/0.jpg,ann\n")
    code = shop.train("data.train=manifest", f"data.manifest={table}")
    refused(code, "table.csv", "identity")


def test_a_csv_with_bad_rows_names_each(shop, refused):
    table = shop.folder / "table.csv"
    table.write_text("path,identity\nann/0.jpg,ann\nann/0.jpg,ann\nbob/1.jpg,\n")
    refused(shop.train("data.train=manifest", f"data.manifest={table}"), "row 3", "row 4")


def test_a_csv_that_names_missing_files(shop, refused):
    table = shop.folder / "table.csv"
    table.write_text("path,identity\nann/0.jpg,ann\nbob/77.jpg,bob\n")
    code = shop.train("data.train=manifest", f"data.manifest={table}")
    refused(code, "row 3", "bob/77.jpg")


def test_one_identity_only(shop, refused):
    refused(shop.train("data.split.train_identities=1"), "at least two")


def test_fewer_identities_than_p(shop, refused):
    refused(shop.train("data.sampler.identities=64"), "64", "identities")


def test_weights_of_another_architecture(shop, refused):
    embedder = Embedder(EmbedderConfig("resnet10t", Preprocessing((32, 32))))
    torch.save({"model": embedder.state_dict()}, shop.folder / "other.pth")
    refused(shop.train(f"model.weights={shop.folder / 'other.pth'}"), "other.pth", "do not fit test_resnet")


def test_a_checkpoint_of_another_architecture(shop, refused):
    embedder = Embedder(EmbedderConfig("test_resnet", Preprocessing((32, 32))))
    described = embedder_to_dict(embedder.config) | {"backbone": "resnet10t"}
    config = {k: v for k, v in shop.values.items() if k != "runs"}
    state = {"embedder": described, "model": embedder.state_dict(), "ema": None, "config": config}
    write_checkpoint(shop.folder / "x.pt", state)
    refused(main(["evaluate", str(shop.folder / "x.pt")]), "another architecture than resnet10t")


def test_a_full_disk_at_the_start_leaves_no_half_files(shop, refused, monkeypatch):
    import os

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refused(shop.train(), "the disk is full", run_folder=True)
    assert [p.name for p in shop.run.rglob("*") if p.is_file()] == [".lock"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_where_there_is_none(shop, refused):
    refused(shop.train("device=cuda"), "no CUDA GPU", "device=auto")


def test_an_unknown_backbone(shop, refused):
    refused(shop.train("model.backbone=resnet81"), "model.backbone", "resnet81", "did you mean", lines=2)


def test_a_recipe_that_is_not_there(refused):
    refused(main(["train", "quickstrat"]), "did you mean quickstart")
    refused(main(["train", "nowhere.yaml"]), "nowhere.yaml: no such recipe file")


def test_a_protocol_without_its_columns_is_refused_before_the_images_are_embedded(shop, refused, capfd):
    assert shop.train() == 0
    capfd.readouterr()
    refused(
        main(["evaluate", str(shop.run), "--protocol", "reid"]), "needs the column 'camera'", run_folder=True
    )


def test_a_key_that_is_no_text_is_named(shop, refused):
    shop.values["objective"] = [{"loss": "softmax", 1: 2}]
    refused(shop.train(), "objective.0", "unknown option 1", lines=2)


def test_several_mistakes_at_once(shop, refused):
    code = shop.train("optim.lr=-1", "data.sampler.identites=4", "objective.0.loss=sofmax", "trian.epochs=3")
    refused(code, "optim.lr", "data.sampler", "objective.0", "trian", "4 problems", lines=5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate", "/no/run"], ["/no/run"]),
        (["evaluate", "quickstart"], ["--baseline"]),
        (["evaluate", "none.parquet"], ["none.parquet"]),
        (["evaluate", "quickstart", "--baseline", "pixels", "--protocol", "rank1"], ["unknown protocol"]),
        (["evaluate", "quickstart", "--baseline", "pixels", "--layout", "folder"], ["--root"]),
        (["prepare", "folder", "/no/place", "-o", "x"], ["/no/place"]),
        (["prepare", "synthetic_faces", "-o", "x", "--option", "sead=1"], ["did you mean 'seed'"]),
        (["prepare", "synthetic_faces", "-o", "x", "--option", "seed"], ["NAME=VALUE"]),
        (["evaluate", "none.parquet", "--layout", "folder"], ["--layout is for images"]),
        (["prepare", "foldr", "/no/place", "-o", "x"], ["did you mean 'folder'"]),
        (["prepare", "synthetic_faces", "-o", "x", "--train-identities", "most"], ["--train-identities"]),
        (["prepare", "synthetic_faces", "-o", "x", "--query-gallery"], ["give --train-identities"]),
        (["prepare", "synthetic_faces", "-o", "x", "--min-images", "2"], ["give --train-identities"]),
        (["prepare", "synthetic_faces", "-o", "x", "--seed", "0"], ["--seed", "give --train-identities"]),
        (
            ["prepare", "manifest", "-o", "x", "--manifest", "t.csv", "--option", "seed=1"],
            ["takes no options"],
        ),
        (["prepare", "synthetic_faces", "-o", "x", "--min-images", "0"], ["--min-images: must be"]),
        (["prepare", "synthetic_faces", "/here", "-o", "x"], ["ROOT", "takes none"]),
        (["prepare", "folder", "-o", "x"], ["ROOT: layout folder needs"]),
        (["prepare", "manifest", "-o", "x"], ["--manifest: layout manifest needs the table"]),
        ([*PIXELS, "--layout", "synthetic_faces", "--root", "/here"], ["--root", "takes none"]),
        ([*PIXELS, "--root", "/here"], ["--root", "takes none"]),
        ([*PIXELS, "--layout", "manifest"], ["--manifest: --layout manifest needs"]),
        ([*PIXELS, "--split", "test"], ["--split: ", "--layout"]),
        ([*PIXELS, "--pairs", "pairs.txt"], ["--pairs: ", "--layout"]),
        ([*PIXELS, "--option", "seed=1"], ["--option: ", "--layout"]),
        ([*PIXELS, "--device", "gpu"], ["device: 'gpu' is none of"]),
        ([*PIXELS, "--save-embeddings", "x.csv"], ["--save-embeddings: x.csv", ".parquet or .npy"]),
        ([*PIXELS, "-o", "/dev/null/x"], ["--output: /dev/null is no folder"]),
    ],
)
def test_evaluate_and_prepare_refuse_in_one_line(refused, arguments, words):
    refused(main(arguments), *words)


def test_a_precision_that_does_not_exist_is_refused(capfd):
    with pytest.raises(SystemExit) as ended:
        main([*PIXELS, "--precision", "half"])
    assert ended.value.code == 2
    assert "invalid choice: 'half'" in capfd.readouterr().err


def test_results_are_printed_before_a_file_that_fails(shop, capfd):
    place = shop.folder / "out"
    (place / "results.json").mkdir(parents=True)
    assert main(["evaluate", shop.recipe(), "--baseline", "pixels", "-o", str(place)]) == 2
    out, err = capfd.readouterr()
    assert "rank-1" in out
    assert "results.json: cannot be written" in err


def test_another_rank_says_which_one_it_is(monkeypatch, capfd):
    monkeypatch.setenv("RANK", "1")
    assert main(["train", "nowhere"]) == 2
    assert capfd.readouterr().err.startswith("[rank 1] metricid train: nowhere")


def test_prepare_names_unreadable_images_and_writes_nothing(shop, refused):
    (shop.photos / "ann" / "1.jpg").write_bytes(b"")
    (shop.photos / "bob" / "2.jpg").write_text("text")
    code = main(["prepare", "folder", str(shop.photos), "-o", str(shop.folder / "out"), "--decode"])
    refused(code, "2 unreadable images", "ann/1.jpg", "bob/2.jpg", lines=3)
    assert not (shop.folder / "out").exists()


def test_prepare_speaks_of_its_own_options_where_a_split_fails(shop, refused):
    out = str(shop.folder / "out")
    code = main(["prepare", "folder", str(shop.photos), "-o", out, "--train-identities", "5"])
    refused(code, "prepare: --train-identities: ", "cannot put 5 of 5 identities")
    refused(shop.train("data.split.train_identities=5"), "train: data.split.train_identities: ", "5 of 5")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.train=manifest", "data.manifest=t.csv", "data.options.recursive=true"], "takes no options"),
        (["data.split={train: a, test: b, min_images: 2}"], "data.split: min_images is for train_identities"),
        (["data.split={train: a, test: b, seed: 3}"], "data.split: seed is for train_identities"),
    ],
)
def test_options_of_data_without_effect_are_refused(shop, refused, overrides, words):
    refused(shop.train(*overrides), words, lines=2)


def test_a_seed_beside_named_splits_may_draw_who_validates(shop, capfd):
    split = "data.split={train: a, test: b, seed: 3, validation_identities: 2}"
    assert shop.train(split, "--print-config") == 0
    assert yaml.safe_load(capfd.readouterr().out)["data"]["split"]["seed"] == 3


def test_prepare_writes_splits_that_train(shop, capfd):
    out = shop.folder / "out"
    options = ["--train-identities", "0.6", "--seed", "3"]
    assert main(["prepare", "folder", str(shop.photos), "-o", str(out), *options]) == 0
    assert "train.csv: 12 images, 3 identities" in capfd.readouterr().out
    code = shop.train(
        "data.train=manifest",
        f"data.manifest={out / 'train.csv'}",
        "data.split=null",
        "evaluation.protocols=[]",
    )
    assert code == 0, capfd.readouterr().err
