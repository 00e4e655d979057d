"""Teachers, regularisers, adversarial terms and columns in real trainings, through the recipe."""

import json
import signal

import numpy as np
import pytest
import torch
from run_states import equal_but_for_the_clock, final_state
from small_recipe import Small
from torch.testing import assert_close

from metricid.data.embedding_set import EmbeddingSet
from metricid.data.manifest import Manifest
from metricid.errors import InputError
from metricid.losses.distillation import embedding_distillation_loss
from metricid.training import trainer
from metricid.training.build import build_run
from metricid.training.checkpoint import load_embedder, open_checkpoint, seed_everything, write_checkpoint
from metricid.training.distributed import World
from metricid.training.precision import pick_precision
from metricid.training.signals import Stopped
from metricid.training.teachers import TrainedTeacher, open_teacher

CPU = torch.device("cpu")
ONE = World(0, 1, CPU)
FP32 = pick_precision("fp32", CPU)
EVERY_KIND = [
    {"loss": "softmax", "name": "id"},
    {"loss": "regularface", "of": "id", "weight": 0.1},
    {"loss": "l2", "of": "network", "weight": 0.0001},
    {"loss": "rkd_distance", "teacher": "$TEACHER", "on": "features"},
    {"loss": "rkd_angle", "teacher": "$TEACHER", "end": 0.5},
    {"loss": "similarity_preserving", "teacher": "$STORED"},
    {"loss": "embedding_distillation", "teacher": "$STORED", "form": "cosine"},
    {"loss": "logit_distillation", "teacher": "$TEACHER", "weight": 0.1},
    {"loss": "virtual_adversarial"},
    {"loss": "trades", "steps": 1, "weight": 0.1},
    {"loss": "domain_adversarial", "hidden": [16], "weight": 0.1},
]


def pedestrians(folder):
    small = Small(folder).set(
        data__train="synthetic_pedestrians",
        data__options={"identities": 8, "images": 4, "cameras": 3},
        data__split={"train_identities": 5},
        data__sampler={"name": "pk", "identities": 3, "images": 2},
        train={"images": 36, "precision": "fp32"},
        log={"every": 1, "report": False},
        objective=[{"loss": "softmax"}],
        evaluation__every=0,
    )
    return small


@pytest.fixture(scope="module")
def school(tmp_path_factory):
    """A teacher that was trained for a moment: its run folder, state, and a file of embeddings, shuffled."""
    folder = tmp_path_factory.mktemp("school")
    small = pedestrians(folder).set(name="teacher", seed=3, train__images=6)
    small.train()
    _, state = open_checkpoint(small.run, pytest.fail)
    table = build_run(small.config(), ONE).splits.train
    vectors = np.random.default_rng(0).normal(size=(len(table), 5)).astype(np.float32)
    order = np.random.default_rng(1).permutation(len(table))
    shuffled = Manifest.from_columns(
        path=[table.paths[i] for i in order], identity=[table.column("identity")[int(i)] for i in order]
    )
    EmbeddingSet(vectors[order], shuffled, {}).write(folder / "stored.parquet")
    return {
        "run": small.run,
        "state": state,
        "stored": folder / "stored.parquet",
        "table": table,
        "vectors": vectors,
    }


@pytest.fixture
def student(school, tmp_path, monkeypatch):
    monkeypatch.setenv("TEACHER", str(school["run"]))
    monkeypatch.setenv("STORED", str(school["stored"]))
    return pedestrians(tmp_path)


def images(size=(32, 32), batch=4):
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (batch, *size, 3), dtype=torch.uint8, generator=generator)


def changed(school, path, **parts):
    """The teacher's checkpoint with other parts."""
    write_checkpoint(path, {**school["state"], **parts})
    return path


def seeded(small):
    """The parts of a run as a training builds them."""
    seed_everything(small.config().seed)
    return build_run(small.config(), ONE)


def steps(run):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "step"]


def test_every_kind_trains_and_a_stopped_run_ends_bit_identical(student, monkeypatch):
    student.set(objective=EVERY_KIND, train__gradients="pcgrad", checkpoint__every_steps=100)
    asked = []
    of = TrainedTeacher.of

    def noted(self, *arguments):
        asked.append(self)
        assert not self.embedder.training
        return of(self, *arguments)

    monkeypatch.setattr(TrainedTeacher, "of", noted)
    student.set(name="whole").train()
    log = steps(student.run)
    assert len(log) == 6 and len(asked) == 6
    names = {"id", *(term["loss"] for term in EVERY_KIND[1:])}
    assert set(log[0]["terms"]) == names
    assert set(log[-1]["terms"]) == names - {"rkd_angle"}
    for line in log:
        assert all(np.isfinite(list(line["terms"].values())))
        assert all(value > 0 for name, value in line["terms"].items() if name != "regularface")
    # Step 1 has not moved the network yet: the first L2 is that of the fresh weights.
    run = seeded(student)
    squares = sum(
        (p.detach() ** 2).sum() for p in run.embedder.parameters() if p.requires_grad and p.ndim > 1
    )
    assert log[0]["terms"]["l2"] == pytest.approx(0.5 * float(squares), rel=1e-5)

    step = trainer.Trainer._step

    def stopping(self, *arguments):
        step(self, *arguments)
        if self.position.step == 2:
            self.stop.number = signal.SIGTERM

    monkeypatch.setattr(trainer.Trainer, "_step", stopping)
    with pytest.raises(Stopped, match="after step 3 of 6"):
        student.set(name="again").train()
    monkeypatch.setattr(trainer.Trainer, "_step", step)
    student.train()
    whole, again = (final_state(student.folder / "runs" / name) for name in ("whole", "again"))
    equal_but_for_the_clock(whole, again)
    assert [line["terms"] for line in steps(student.run)] == [line["terms"] for line in log]


def test_a_teacher_is_no_part_of_the_student(student, school):
    """Neither its start nor its checkpoint depends on who teaches."""
    plain = seeded(student)
    terms = [{"loss": "softmax"}, {"loss": "embedding_distillation", "teacher": "$TEACHER"}]
    taught = seeded(student.set(objective=terms))
    assert_close(taught.embedder.state_dict(), plain.embedder.state_dict(), rtol=0, atol=0)
    assert_close(taught.objective.state_dict(), plain.objective.state_dict(), rtol=0, atol=0)
    trained = {id(p) for group in taught.optimizer.param_groups for p in group["params"]}
    teacher = taught.side.teachers["$TEACHER"].embedder
    assert not any(p.requires_grad or id(p) in trained for p in teacher.parameters())
    assert_close(teacher.state_dict(), school["state"]["ema"] or school["state"]["model"], rtol=0, atol=0)


def test_who_teaches_herself_has_nothing_to_learn(school):
    teacher = TrainedTeacher(school["run"], None, CPU, FP32)
    student = load_embedder(school["state"], school["run"])
    with torch.no_grad():
        taught = teacher.of(images(), torch.arange(4))
        assert embedding_distillation_loss(student(images()).embedding, taught.embedding) == 0
    assert taught.logits is None
    assert taught.embedding.norm() > 0.1


def test_a_teacher_looks_at_its_own_size(school, tmp_path):
    """Images of one colour are the same in every size."""
    structure = school["state"]["embedder"]
    structure = structure | {"preprocessing": structure["preprocessing"] | {"size": [48, 40]}}
    path = changed(school, tmp_path / "large.pt", embedder=structure)
    teacher = TrainedTeacher(path, None, CPU, FP32)
    student = load_embedder(school["state"], path)
    colours = torch.tensor([[0, 120, 255], [9, 8, 7]], dtype=torch.uint8)[:, None, None]
    with torch.no_grad():
        expected = teacher.embedder(colours.expand(2, 48, 40, 3)).embedding
        small = student(colours.expand(2, 32, 32, 3)).embedding
    found = teacher.of(colours.expand(2, 32, 32, 3), torch.arange(2)).embedding
    assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert torch.dist(expected, small) > 1e-3


def test_logits_stand_in_the_students_order(school, tmp_path):
    theirs, weight = school["state"]["label_map"], school["state"]["objective"]["losses.softmax.weight"]
    mine = {name: label for label, name in enumerate(sorted(theirs, reverse=True)[:4])}
    assert [theirs[name] for name in mine] != list(range(4))
    taught = TrainedTeacher(school["run"], mine, CPU, FP32).of(images(), torch.arange(4))
    for name, label in mine.items():
        assert_close(taught.logits[:, label], taught.embedding @ weight[theirs[name]], atol=1e-4, rtol=1e-4)
    assert taught.logits.shape == (4, 4)


def test_the_classifier_of_a_teacher_is_found_where_it_reads(school, tmp_path):
    weight = school["state"]["objective"]["losses.softmax.weight"]
    terms = [{"loss": "mine_alone"}, {"loss": "triplet"}, {"loss": "arcface", "on": "features", "scale": 4.0}]
    state = {"losses.arcface.weight": 3 * weight}
    config = school["state"]["config"] | {"objective": terms}
    path = changed(school, tmp_path / "arc.pt", objective=state, config=config)
    teacher = TrainedTeacher(path, school["state"]["label_map"], CPU, FP32)
    with torch.no_grad():
        features = torch.nn.functional.normalize(teacher.embedder(images()).features)
    expected = 4 * features @ torch.nn.functional.normalize(weight).T
    assert_close(teacher.of(images(), torch.arange(4)).logits, expected, atol=1e-5, rtol=1e-4)


def test_stored_embeddings_are_matched_by_path(student, school):
    terms = [{"loss": "softmax"}, {"loss": "embedding_distillation", "teacher": "$STORED"}]
    run = build_run(student.set(objective=terms).config(), ONE)
    assert run.objective.losses["embedding_distillation"].loss.projection.weight.shape[0] == 5
    batch = next(iter(run.loader.epoch(0, 0)))
    side = run.side.of(batch, batch.images, {"$STORED"})
    assert run.splits.train.paths == school["table"].paths
    assert_close(side.teachers["$STORED"].embedding.numpy(), school["vectors"][batch.index.numpy()])
    assert run.side.of(batch, batch.images, set()).teachers == {}


def config_of(state, **changes):
    return state["config"] | changes


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda school, folder: folder / "none", r"none: no such run folder or checkpoint"),
        (lambda school, folder: folder, r": holds no checkpoint; expected .*best.pt"),
        (lambda school, folder: "$NO_SUCH_TEACHER/x", r"objective.teacher: .* uses \$NO_SUCH_TEACHER"),
        (lambda school, folder: "", r"objective.teacher: is empty"),
        (lambda school, folder: folder / "none.parquet", "none.parquet"),
        (lambda school, folder: school["stored"], "holds embeddings, logit_distillation needs the logits"),
        (
            lambda school, folder: changed(
                school,
                folder / "triplet.pt",
                config=config_of(school["state"], objective=[{"loss": "triplet"}, {"loss": "mine_alone"}]),
            ),
            "triplet.pt: holds no classifier such as softmax, and so no logits; distil its embeddings",
        ),
        (
            lambda school, folder: changed(school, folder / "bare.pt", objective={}),
            "bare.pt: its classifier softmax cannot be read",
        ),
        (
            lambda school, folder: changed(
                school, folder / "other.pt", label_map={str(i): i for i in range(5)}
            ),
            "other.pt: does not know 5 of the 5 identities, such as 'pedestrian-s0-",
        ),
    ],
)
def test_a_teacher_that_cannot_teach_is_one_clear_line(student, school, tmp_path, make, message):
    terms = [{"loss": "softmax"}, {"loss": "logit_distillation", "teacher": str(make(school, tmp_path))}]
    with pytest.raises(InputError, match=message) as error:
        student.set(objective=terms).train()
    assert "\n" not in str(error.value)
    assert not student.run.exists()


def test_files_that_are_no_checkpoints_are_one_clear_line(student, tmp_path):
    for name in ("model.onnx", "notes.txt", "weights.pt"):
        (tmp_path / name).write_bytes(b"no checkpoint at all")
        with pytest.raises(InputError, match=name) as error:
            open_teacher(
                str(tmp_path / name), Manifest.from_columns(path=["a"], identity=["b"]), None, CPU, FP32
            )
        assert "\n" not in str(error.value)


def test_an_image_without_an_embedding_is_named(student, school, tmp_path):
    table = school["table"]
    few = EmbeddingSet.read(school["stored"])
    keep = [row for row, path in enumerate(few.table.paths) if path != table.paths[3]]
    columns = {"path": [few.table.paths[row] for row in keep], "identity": ["x"] * len(keep)}
    EmbeddingSet(few.embeddings[keep], Manifest.from_columns(**columns), {}).write(tmp_path / "few.parquet")
    terms = [{"loss": "softmax"}, {"loss": "rkd_distance", "teacher": str(tmp_path / "few.parquet")}]
    with pytest.raises(
        InputError, match=f"no embedding of 1 of the {len(table)} training images, such as {table.paths[3]}"
    ):
        build_run(student.set(objective=terms).config(), ONE)


def test_a_column_that_is_not_there_is_named(student):
    terms = [{"loss": "softmax"}, {"loss": "domain_adversarial", "column": "room"}]
    with pytest.raises(InputError, match="has no column 'room', which the objective names"):
        student.set(objective=terms).train()
