"""`metricid embed`: what is in the file, what survives a kill, and what a user's mistakes get."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from pyarrow.parquet import ParquetWriter

from metricid.cli.main import main
from metricid.data.embedding_parts import PartFolder
from metricid.data.embedding_set import EmbeddingSet
from metricid.data.manifest import Manifest
from metricid.models.embedder import Embedder, EmbedderConfig, Preprocessing, embedder_to_dict
from metricid.models.inference import CheckpointModel
from metricid.training.checkpoint import write_checkpoint

SIZE = (24, 32)
QUICK = ["--workers", "0", "--batch-size", "8", "--part-images", "16", "--precision", "fp32"]


def make_model(file, seed=0, name="small"):
    torch.manual_seed(seed)
    embedder = Embedder(EmbedderConfig("test_resnet", Preprocessing(SIZE), neck="bnneck")).eval()
    state = {"embedder": embedder_to_dict(embedder.config), "model": embedder.state_dict()}
    write_checkpoint(file, state | {"ema": None, "config": {"name": name}})
    return embedder


class Desk:
    """A folder with a model and some photos of unknown use."""

    def __init__(self, folder, capsys):
        self.folder, self.capsys = folder, capsys
        self.embedder = make_model(folder / "model.pt")
        self.model = str(folder / "model.pt")
        self.photos = folder / "photos"
        self.target = folder / "e.parquet"

    def add_photos(self, count=60, people=6):
        rng = np.random.default_rng(count)
        for number in range(count):
            file = self.photos / f"p{number % people}" / f"{number:04d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(file), rng.integers(0, 256, (*SIZE, 3), np.uint8))
        return self

    def words(self, *more, data=None):
        return ["embed", self.model, str(data or self.photos), "-o", str(self.target), *QUICK, *more]

    def embed(self, *more, data=None):
        """The outcome as the command prints it."""
        code = main([*self.words("--json", *more, data=data)])
        captured = self.capsys.readouterr()
        assert code == 0, captured.err
        self.said = captured.err
        return json.loads(captured.out)

    def refused(self, *more, data=None):
        """The one line that the command prints."""
        self.capsys.readouterr()
        code = main(self.words(*more, data=data))
        captured = self.capsys.readouterr()
        assert code == 2, captured.err
        assert captured.out == "" and "Traceback" not in captured.err
        return captured.err.splitlines()[-1]

    def expected(self, path, flip=False):
        """The embedding of one image, computed without our loader, one image at a time."""
        pixels = cv2.cvtColor(cv2.imread(str(self.photos / path)), cv2.COLOR_BGR2RGB)
        x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.inference_mode():
            vector = self.embedder(x).embedding
            return (vector + self.embedder(x.flip(3)).embedding if flip else vector)[0].numpy()

    @property
    def parts(self):
        return self.folder / "e.parquet.parts"

    def files(self):
        return sorted(file.name for file in self.folder.iterdir())


@pytest.fixture
def desk(tmp_path, capsys):
    return Desk(tmp_path, capsys)


@pytest.fixture
def counted(monkeypatch):
    """The number of images that a model has embedded since."""
    seen = []
    original = CheckpointModel.embed

    def embed(self, images, *, flip):
        seen.append(len(images))
        return original(self, images, flip=flip)

    monkeypatch.setattr(CheckpointModel, "embed", embed)
    return seen


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("suffix", [".parquet", ".npy"])
def test_every_image_gets_its_embedding(desk, flip, suffix):
    desk.add_photos(37)
    desk.target = desk.folder / f"e{suffix}"
    outcome = desk.embed(*(["--flip"] if flip else []))
    stored = EmbeddingSet.read(desk.target)
    assert stored.table.paths == sorted(stored.table.paths) and len(stored) == 37
    for path, identity, vector in zip(
        stored.table.paths, stored.table.identities, stored.embeddings, strict=True
    ):
        assert path.startswith(f"{identity}/")
        np.testing.assert_allclose(vector, desk.expected(path, flip), rtol=1e-4, atol=1e-5)
    assert (outcome["images"], outcome["skipped"], outcome["embedded"]) == (37, 0, 37)
    assert outcome["images_per_second"] > 0
    extra = {"e.csv", "e.json"} if suffix == ".npy" else set()
    assert set(desk.files()) == {f"e{suffix}", "model.pt", "photos"} | extra


def test_the_card_says_what_made_it(desk):
    desk.add_photos(5).embed("--license", "research only", "--normalise")
    card = EmbeddingSet.read(desk.target).card
    assert (
        card["model"]["fingerprint"]
        == CheckpointModel(desk.embedder, name="", device=torch.device("cpu")).fingerprint
    )
    assert card["model"]["name"] == "small (model.pt)"
    assert card["model"]["preprocessing"]["size"] == list(SIZE)
    assert (card["license"], card["normalised"], card["flip"]) == ("research only", True, False)
    assert (card["format"], card["dtype"], card["float16_error"]) == (1, "float32", None)
    assert (card["images"], card["skipped"]) == (5, 0)
    assert card["created"].endswith("+00:00")


def test_pandas_and_duckdb_open_it(desk):
    duckdb = pytest.importorskip("duckdb")
    desk.add_photos(20)
    for dtype in ("float32", "float16"):
        desk.embed("--dtype", dtype, "--overwrite")
        expected = EmbeddingSet.read(desk.target)
        frame = pd.read_parquet(desk.target)
        assert list(frame.columns) == ["path", "identity", "embedding"]
        assert frame.embedding[0].dtype == dtype
        np.testing.assert_array_equal(np.stack(frame.embedding).astype(np.float32), expected.embeddings)
        rows = duckdb.sql(
            f"select identity, count(*), min(len(embedding)) from '{desk.target}' group by identity"
        ).fetchall()
        assert sorted(rows) == [(f"p{i}", 4 if i < 2 else 3, 96) for i in range(6)]
        first = duckdb.sql(f"select embedding from '{desk.target}' order by path limit 1").fetchall()[0][0]
        np.testing.assert_array_equal(np.array(first, np.float32), expected.embeddings[0])


def test_float16_states_its_error(desk):
    desk.add_photos(40).embed("--part-images", "48")
    exact = EmbeddingSet.read(desk.target).embeddings
    outcome = desk.embed("--part-images", "48", "--dtype", "float16", "--overwrite")
    half = EmbeddingSet.read(desk.target)
    assert not np.array_equal(half.embeddings, exact)
    np.testing.assert_array_equal(half.embeddings, exact.astype(np.float16).astype(np.float32))

    def cosines(x):
        x = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1)[:, None]
        return x @ x.T

    error = outcome["float16_error"]
    assert error["max_abs"] == pytest.approx(np.abs(half.embeddings - exact).max())
    change = np.abs(cosines(half.embeddings) - cosines(exact)).max()
    assert error["max_cosine_change"] == pytest.approx(change, rel=1e-6)
    assert (error["pairs"], half.card["float16_error"]) == (40 * 39 // 2, error)
    assert change <= error["cosine_bound"] < 0.01


def test_normalised_embeddings_have_length_one(desk):
    desk.add_photos(20).embed()
    plain = EmbeddingSet.read(desk.target).embeddings
    desk.embed("--normalise", "--overwrite")
    unit = EmbeddingSet.read(desk.target).embeddings
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(unit, plain / np.linalg.norm(plain, axis=1)[:, None], rtol=1e-5, atol=1e-7)


def test_photos_of_unknown_people_are_identities_of_their_own(desk):
    desk.add_photos(3, people=1)
    (desk.photos / "p0" / "0001.png").rename(desk.photos / "stranger.png")
    desk.embed()
    assert "1 of 3 images lie in no folder" in desk.said
    stored = EmbeddingSet.read(desk.target).table
    named = dict(zip(stored.paths, stored.identities, strict=True))
    assert named == {"p0/0000.png": "p0", "p0/0002.png": "p0", "stranger.png": "stranger.png"}


def test_archives_and_tables_give_the_same_as_the_folder(desk):
    desk.add_photos(20).embed()
    folder = EmbeddingSet.read(desk.target)
    archive = desk.folder / "photos.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(desk.photos, arcname=".")
    table = folder.table.with_column("camera", "c1").with_column("split", ["query", "gallery"] * 10)
    table.write(desk.folder / "t.csv")
    (desk.folder / "paths.csv").write_text("path\n" + "\n".join(table.paths[:3]) + "\n")
    desk.embed("--overwrite", data=archive)
    again = EmbeddingSet.read(desk.target)
    assert again.table == folder.table
    np.testing.assert_array_equal(again.embeddings, folder.embeddings)
    desk.embed("--overwrite", "--root", str(archive), "--split", "query", data=desk.folder / "t.csv")
    queries = EmbeddingSet.read(desk.target)
    assert queries.table == table.select(np.arange(0, 20, 2))
    np.testing.assert_allclose(queries.embeddings, folder.embeddings[::2], rtol=1e-5, atol=1e-6)
    desk.embed("--overwrite", "--root", str(desk.photos), data=desk.folder / "paths.csv")
    assert "has no column 'identity'" in desk.said
    assert EmbeddingSet.read(desk.target).table == Manifest.from_columns(table.paths[:3], table.paths[:3])


def test_layouts_known_by_name(desk):
    desk.embed("--option", "identities=3", "--option", "images=2", data="synthetic_faces")
    assert desk.embed("--overwrite", "--option", "identities=2", data="synthetic_pedestrians")["images"] > 2
    line = desk.refused("--overwrite", "--layout", "synthetic_faces")
    assert "generates its images; give synthetic_faces in place of" in line
    desk.add_photos(4)
    assert "--option: is of a layout" in desk.refused("--overwrite", "--option", "identities=3")
    assert desk.embed("--overwrite", "--layout", "folder")["images"] == 4
    assert "not named as expected" in desk.refused("--overwrite", "--layout", "market1501")


class Run:
    """The command in a process of its own; a fork of this one, which has everything imported."""

    def __init__(self, words):
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            code = 70
            try:
                code = main(words)
            finally:
                os._exit(code)

    def wait_for(self, condition):
        while not condition():
            assert os.waitpid(self.pid, os.WNOHANG) == (0, 0), "the command is over before it could be met"
            time.sleep(0.001)

    def end(self, number=None):
        """The exit code, after a signal to the process and its workers."""
        if number is not None:
            os.killpg(self.pid, number)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_a_killed_run_goes_on_with_what_is_missing(desk, counted):
    desk.add_photos(400)
    desk.embed("--workers", "1")
    whole = EmbeddingSet.read(desk.target)
    desk.target.unlink()
    for least in (2, 6):
        process = Run(desk.words("--workers", "1"))
        process.wait_for(lambda least=least: len(list(desk.parts.glob("part-*.arrow"))) >= least)
        assert process.end(signal.SIGKILL) == -signal.SIGKILL
        assert not desk.target.exists()
    finished = len(list(desk.parts.glob("part-*.arrow")))
    assert 6 <= finished < 25
    counted.clear()
    outcome = desk.embed()
    assert sum(counted) == outcome["embedded"] == 400 - 16 * finished
    assert outcome["embedded_before"] == 16 * finished
    assert f"{16 * finished} of 400 images are done; continuing" in desk.said
    resumed = EmbeddingSet.read(desk.target)
    np.testing.assert_array_equal(resumed.embeddings, whole.embeddings)
    assert resumed.table == whole.table
    assert desk.files() == ["e.parquet", "model.pt", "photos"]


def test_killed_when_the_file_is_there_the_message_says_how_to_end_the_run(desk, monkeypatch):
    desk.add_photos(40)
    with monkeypatch.context() as patch:
        patch.setattr(PartFolder, "remove", lambda self: os.kill(os.getpid(), signal.SIGKILL))
        assert Run(desk.words()).end() == -signal.SIGKILL
    assert desk.target.exists() and desk.parts.exists()
    line = desk.refused()
    assert "e.parquet: exists" in line and "e.parquet.parts" in line and "--overwrite" in line
    assert desk.embed("--overwrite")["embedded"] == 0
    assert desk.files() == ["e.parquet", "model.pt", "photos"]
    assert "parts" not in desk.refused()


def test_what_a_killed_writer_left_is_removed_whatever_the_name_and_nothing_of_others(desk):
    """`[1]` and `*` in a name are no patterns."""
    desk.add_photos(4)
    for name, mine in (("a[1].parquet", "a[1].parquet"), ("*.parquet", "other.parquet")):
        (desk.folder / f".{mine}.x.tmp").touch()
        assert main([*desk.words(), "-o", str(desk.folder / name)]) == 0
    assert sorted(file for file in desk.files() if file.startswith(".")) == [".other.parquet.x.tmp"]


def test_killed_while_the_file_is_written_nothing_is_half_there(desk, monkeypatch):
    """A process that dies in the middle of the final write leaves no file, all parts, and no rubbish."""
    desk.add_photos(40)
    plain = ParquetWriter.write_table

    def once(self, *given):
        plain(self, *given)
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(ParquetWriter, "write_table", once)
        assert Run(desk.words()).end() == -signal.SIGKILL
    assert not desk.target.exists()
    assert any(file.startswith(".e.parquet.") for file in desk.files())
    assert desk.embed()["embedded"] == 0
    assert len(EmbeddingSet.read(desk.target)) == 40
    assert desk.files() == ["e.parquet", "model.pt", "photos"]


def test_two_processes_give_the_same_bits_as_one(desk):
    desk.add_photos(90)
    desk.embed()
    expected = EmbeddingSet.read(desk.target)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port]
    process = subprocess.run(
        [*launch, "-m", "metricid.cli.main", *desk.words("--overwrite", "--json")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    outcome = json.loads(process.stdout)
    assert (outcome["images"], outcome["embedded"]) == (90, 90)
    both = EmbeddingSet.read(desk.target)
    np.testing.assert_array_equal(both.embeddings, expected.embeddings)
    assert both.table == expected.table
    assert desk.files() == ["e.parquet", "model.pt", "photos"]


def fail_after(monkeypatch, images):
    """A disk that is full once so many images are embedded."""
    original, seen = CheckpointModel.embed, []

    def embed(self, batch, *, flip):
        seen.extend(batch)
        if len(seen) > images:
            raise KeyboardInterrupt
        return original(self, batch, flip=flip)

    monkeypatch.setattr(CheckpointModel, "embed", embed)


@pytest.fixture
def half_done(desk):
    """40 of 60 images: two parts and a half."""
    desk.add_photos(60)
    with pytest.MonkeyPatch.context() as patch:
        fail_after(patch, 40)
        assert main(desk.words()) == 130
    desk.capsys.readouterr()
    assert sorted(file.name for file in desk.parts.glob("part-*")) == [
        "part-00000000.arrow",
        "part-00000001.arrow",
    ]
    return desk


def test_parts_of_another_model_or_other_options_are_not_mixed_in(half_done, counted):
    make_model(half_done.folder / "other.pt", seed=1)
    right, half_done.model = half_done.model, str(half_done.folder / "other.pt")
    line = half_done.refused()
    assert "holds parts of another run (model " in line and "--overwrite" in line
    half_done.model = right
    assert "flip False, now True" in half_done.refused("--flip")
    assert "batch size 8, now 4" in half_done.refused("--batch-size", "4")
    assert not counted
    half_done.model = str(half_done.folder / "other.pt")
    assert half_done.embed("--overwrite")["embedded"] == 60
    assert "parts of another run removed" in half_done.said


def test_the_same_model_from_another_place_goes_on(half_done):
    (half_done.folder / "model.pt").rename(half_done.folder / "moved.pt")
    half_done.model = str(half_done.folder / "moved.pt")
    assert half_done.embed()["embedded_before"] == 32


def test_parts_of_changed_images_are_made_again(half_done):
    path = sorted(half_done.photos.rglob("*.png"))[20]
    cv2.imwrite(str(path), np.zeros((*SIZE, 3), np.uint8))
    outcome = half_done.embed()
    assert "1 parts are of other or changed images" in half_done.said
    assert (outcome["embedded_before"], outcome["embedded"]) == (16, 44)
    stored = EmbeddingSet.read(half_done.target)
    name = str(path.relative_to(half_done.photos))
    vector = stored.embeddings[stored.table.paths.index(name)]
    np.testing.assert_allclose(vector, half_done.expected(name), rtol=1e-4, atol=1e-5)


def test_an_overwriting_run_goes_on_and_leaves_the_old_file_until_it_is_done(half_done):
    half_done.target.write_bytes(b"old")
    assert "exists" in half_done.refused()
    assert half_done.target.read_bytes() == b"old"
    assert half_done.embed("--overwrite")["embedded_before"] == 32
    assert len(EmbeddingSet.read(half_done.target)) == 60


def test_a_damaged_part_is_made_again(half_done):
    part = half_done.parts / "part-00000001.arrow"
    part.write_bytes(part.read_bytes()[:100])
    assert half_done.embed()["embedded_before"] == 16


def test_unreadable_images(desk, counted):
    desk.add_photos(60)
    paths = sorted(desk.photos.rglob("*.png"))
    broken = paths[40]
    broken.write_bytes(broken.read_bytes()[:50])
    assert str(broken) in desk.refused()
    assert not desk.target.exists()
    counted.clear()
    outcome = desk.embed("--on-corrupt", "skip")
    assert (outcome["images"], outcome["skipped"], outcome["embedded_before"]) == (59, 1, 32)
    assert sum(counted) == 27
    assert "1 of 60 images cannot be read and are left out: " in desk.said and broken.name in desk.said
    stored = EmbeddingSet.read(desk.target)
    assert stored.table.paths == [str(p.relative_to(desk.photos)) for p in paths if p != broken]
    assert stored.card["skipped"] == 1
    for row in (0, 39, 40, 58):
        np.testing.assert_allclose(
            stored.embeddings[row], desk.expected(stored.table.paths[row]), rtol=1e-4, atol=1e-5
        )


def test_a_part_without_any_readable_image(desk):
    desk.add_photos(60)
    for path in sorted(desk.photos.rglob("*.png"))[14:50]:
        path.write_bytes(b"no image")
    outcome = desk.embed("--on-corrupt", "skip")
    assert (outcome["images"], outcome["skipped"]) == (24, 36)
    for path in desk.photos.rglob("*.png"):
        path.write_bytes(b"no image")
    assert "not one of the 60 images can be read" in desk.refused("--on-corrupt", "skip", "--overwrite")


def test_what_cannot_be_made_is_said_before_the_work(desk, counted):
    desk.add_photos(4)
    desk.target = desk.folder / "e.csv"
    assert "must end in .parquet or .npy" in desk.refused()
    desk.target = desk.folder / "photos"
    assert "must end in .parquet or .npy" in desk.refused()
    desk.target = desk.folder / "model.pt" / "e.parquet"
    assert "cannot be written" in desk.refused()
    desk.target = desk.folder / "e.npy"
    (desk.folder / "e.csv").write_text("mine")
    assert "e.csv: exists and is of no embedding set" in desk.refused()
    assert (desk.folder / "e.csv").read_text() == "mine"
    desk.target = desk.folder / "e.parquet"
    desk.target.write_text("mine")
    assert "e.parquet: exists; choose another name, or replace it with --overwrite" in desk.refused()
    said = desk.refused("-o", "x" * 300 + ".npy")
    assert said.endswith(": cannot be written (File name too long); choose another place")
    for words, said in (
        (("--onnx", "sice=112x112"), "--onnx: unknown option of an ONNX file 'sice'; did you mean 'size'"),
        (("--onnx", "size=112"), "--onnx size=112: has the form HEIGHTxWIDTH"),
        (("--batch-size", "0"), "--batch-size: must be at least 1"),
        (("--layout", "lwf"), "--layout: unknown layout 'lwf'; did you mean 'lfw'"),
        (("--device", "cuad"), "device: 'cuad' is none of"),
    ):
        assert said in desk.refused(*words)  # before anything that lies on the disk
    desk.target.unlink()
    assert "nowhere: does not exist; give a folder" in desk.refused(data=desk.folder / "nowhere")
    assert "--root: is for the images of a table" in desk.refused("--root", str(desk.folder))
    assert "--split: no image of" in desk.refused("--split", "query")
    (desk.folder / "empty").mkdir()
    assert "no images found" in desk.refused(data=desk.folder / "empty")
    (desk.folder / "e.parquet.parts").mkdir()
    (desk.folder / "e.parquet.parts" / "notes.txt").write_text("mine")
    assert "holds notes.txt, which is no part" in desk.refused()
    assert (desk.folder / "e.parquet.parts" / "notes.txt").read_text() == "mine"
    assert not counted


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to(desk):
    desk.add_photos(4)
    closed = desk.folder / "closed"
    closed.mkdir(mode=0o555)
    desk.target = closed / "e.parquet"
    assert "cannot be written" in desk.refused()


def test_a_model_that_cannot_be_used(desk):
    desk.add_photos(4)
    desk.model = str(desk.folder / "nowhere.pt")
    assert "no such run folder or checkpoint; give the folder that metricid train made" in desk.refused()
    (desk.folder / "cut.pt").write_bytes((desk.folder / "model.pt").read_bytes()[:5000])
    desk.model = str(desk.folder / "cut.pt")
    assert "damaged or not a checkpoint" in desk.refused()
    assert desk.files() == ["cut.pt", "model.pt", "photos"]


def test_a_full_disk_keeps_what_is_done(desk, monkeypatch):
    desk.add_photos(60)
    plain, count = os.fsync, []

    def full(handle):
        count.append(handle)
        if len(count) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert "the disk is full; free some space and run the same command again" in desk.refused()
    done = len(list(desk.parts.glob("part-*.arrow")))
    assert done >= 1 and not list(desk.parts.glob(".*.tmp"))
    assert desk.embed()["embedded_before"] == 16 * done


@pytest.mark.parametrize(("value", "message"), [("nan", "not finite"), ("0", "embedding is zero and cannot")])
def test_vectors_that_are_no_vectors(desk, monkeypatch, value, message):
    desk.add_photos(40)
    original = CheckpointModel.embed

    def embed(self, images, *, flip):
        vectors = original(self, images, flip=flip).clone()
        vectors[1] = float(value)
        return vectors

    monkeypatch.setattr(CheckpointModel, "embed", embed)
    line = desk.refused("--normalise")
    second = sorted(desk.photos.rglob("*.png"))[1]
    assert message in line and str(second.relative_to(desk.photos)) in line
    assert not desk.target.exists()


def test_two_runs_do_not_make_one_file(desk):
    desk.add_photos(300)
    process = Run(desk.words("--workers", "1"))
    process.wait_for(lambda: list(desk.parts.glob("part-*.arrow")))
    os.kill(process.pid, signal.SIGSTOP)
    try:
        assert "another process is making it" in desk.refused()
    finally:
        os.kill(process.pid, signal.SIGCONT)
    assert process.end() == 0
    assert len(EmbeddingSet.read(desk.target)) == 300


def test_evaluate_takes_the_file(desk, capsys):
    desk.add_photos(40).embed("--dtype", "float16", "--flip")
    capsys.readouterr()
    assert main(["evaluate", str(desk.target), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["results"][0]
    assert result["subject"] == "e.parquet, flip-sum"
    stored = EmbeddingSet.read(desk.target)
    unit = stored.embeddings / np.linalg.norm(stored.embeddings, axis=1)[:, None]
    scores = unit @ unit.T
    np.fill_diagonal(scores, -2)
    hits = stored.table.identities[scores.argmax(axis=1)] == stored.table.identities
    assert result["metrics"]["rank-1"] == pytest.approx(hits.mean())
