"""Tasks beside the identity: missing values, whole runs, two processes, bad input."""

import copy
import json
import signal

import cv2
import numpy as np
import pytest
import torch
from run_states import equal_but_for_the_clock, equal_to_the_bit, final_state
from torch.testing import assert_close
from two_ranks import in_two_ranks

from metricid.cli.main import main
from metricid.data.dataset import ImageDataset
from metricid.data.loader import Loader
from metricid.data.manifest import Manifest
from metricid.data.masks import read_mask
from metricid.data.samplers import ShuffleSampler
from metricid.data.sources import FolderSource
from metricid.data.synthetic import SyntheticPedestrians
from metricid.data.transforms import build_transform
from metricid.errors import InputError
from metricid.losses.objective import Objective
from metricid.losses.recipe import Column
from metricid.losses.term import Side
from metricid.training import trainer
from metricid.training.build import check_recipe
from metricid.training.columns import Columns
from metricid.training.session import train
from metricid.training.signals import Stopped

TASKS = {
    "category": {"task": "category", "column": "color"},
    "focal": {"task": "category", "column": "color", "loss": "focal"},
    "attributes": {"task": "attributes", "columns": ["hat", "bag"]},
    "number": {"task": "number", "column": "age"},
}
FACTS = {"color": Column((3, 2, 1)), "hat,bag": Column(), "age": Column((), 30.0, 10.0)}
VALUES = {
    "color": torch.tensor([0, -1, 2, 1, -1, 0]),
    "hat,bag": torch.tensor([[1, 0], [np.nan, np.nan], [0, 1], [1, 1], [np.nan, np.nan], [0, 0]]).float(),
    "age": torch.tensor([20.0, np.nan, 30, 60, np.nan, 41]),
}
KNOWN = torch.tensor([True, False, True, True, False, True])


def loss_of(task, x, values):
    torch.manual_seed(0)
    objective = Objective.from_config(
        [TASKS[task]], num_classes=2, feature_dim=4, embedding_dim=4, columns=FACTS
    )
    output = objective(x, x, torch.zeros(len(x), dtype=torch.int64), 0.5, side=Side(columns=values))
    output.total.backward()
    return output.total.detach(), [p.grad for p in objective.parameters()]


@pytest.mark.parametrize("task", TASKS)
def test_missing_values_leave_the_loss_of_the_known_rows_and_no_gradient(task):
    x = torch.randn(6, 4, requires_grad=True)
    loss, gradients = loss_of(task, x, VALUES)
    rows = x.detach()[KNOWN].requires_grad_()
    expected, expected_gradients = loss_of(task, rows, {key: v[KNOWN] for key, v in VALUES.items()})
    assert_close(loss, expected)
    assert_close(gradients, expected_gradients)
    assert_close(x.grad[KNOWN], rows.grad)
    assert x.grad[KNOWN].abs().sum() > 0
    assert (x.grad[~KNOWN] == 0).all()
    nothing, gradients = loss_of(
        task, x.detach().requires_grad_()[~KNOWN], {k: v[~KNOWN] for k, v in VALUES.items()}
    )
    assert nothing == 0
    assert all((gradient == 0).all() for gradient in gradients)


def with_tasks(small):
    """Generated people, small and few, whose columns are tasks."""
    small.set(
        data__train="synthetic_pedestrians",
        data__size=[32, 16],
        data__options={"identities": 16, "images": 6, "attributes": True, "missing": 0.3},
        data__augment={"preset": "reid"},
        balance={"name": "uncertainty"},
        objective=[
            {"loss": "softmax"},
            {"task": "category", "column": "color", "loss": "focal", "weight": 0.3},
            {"task": "attributes", "columns": ["hat", "carries"], "on": "features", "weight": 0.3},
            {"task": "number", "column": "height", "weight": {"linear": [0.1, 0.3]}},
            {"task": "mask", "column": "mask", "weight": 0.3},
        ],
    )
    return small


def test_a_run_measures_its_tasks_and_evaluate_finds_the_same(small, capsys):
    outcome = with_tasks(small).train()
    results = {r["protocol"]: r for r in outcome.values["results"] if r["subject"].startswith("small")}
    assert list(results) == ["identification", "category", "attributes", "number", "mask"]
    test = Manifest.read(small.run / "manifests" / "test.csv")
    missing = {name: int((test.column(name) == "").sum()) for name in ("color", "hat", "carries", "height")}
    assert results["category"]["counts"]["missing"] == missing["color"] > 0
    assert results["attributes"]["counts"]["missing"] == missing["hat"] + missing["carries"]
    assert results["number"]["counts"] == {
        "known": len(test) - missing["height"],
        "missing": missing["height"],
    }
    guess = next(r for r in outcome.values["results"] if r["subject"] == "training mean")
    train_heights = Manifest.read(small.run / "manifests" / "train.csv").column("height")
    mean = np.mean([float(text) for text in train_heights if text])
    known = np.array([float(text) for text in test.column("height") if text])
    assert guess["metrics"]["MAE"] == pytest.approx(np.abs(known - mean).mean(), rel=1e-5)
    counts = [int((test.column("mask") != "").sum()), int((test.column("mask") == "").sum())]
    assert list(results["mask"]["counts"].values()) == counts
    whole = next(r for r in outcome.values["results"] if r["subject"] == "whole image")["metrics"]
    people = SyntheticPedestrians(size=(32, 16), identities=16, images=6, attributes=True)
    shares = [people.read(path)[:, :, 0].mean() / 255 for path in test.column("mask") if path]
    assert whole["IoU"] == pytest.approx(np.mean(shares))
    page = (small.run / "report.html").read_text()
    assert "balanced accuracy" in page and "RMSE" in page
    capsys.readouterr()
    assert main(["evaluate", str(small.run), "--json", "--tasks", "--precision", "fp32"]) == 0
    again = json.loads(capsys.readouterr().out)["results"]
    assert [r["metrics"] for r in again] == [r["metrics"] for r in outcome.values["results"]]
    assert main(["evaluate", str(small.run), "--json", "--no-tasks"]) == 0
    assert [r["protocol"] for r in json.loads(capsys.readouterr().out)["results"]] == ["identification"]


def test_other_data_is_measured_by_the_words_of_the_training(small, capsys):
    with_tasks(small).train()
    other = ["evaluate", str(small.run), "--layout", "synthetic_pedestrians", "--option", "identities=5"]
    other += ["--option", "images=4", "--option", "seed=3", "--json", "--protocol", "identification"]
    assert main(other) == 0
    out, err = capsys.readouterr()
    assert [r["protocol"] for r in json.loads(out)["results"]] == ["identification"]
    assert "has no column 'color', 'hat', 'carries', 'height', 'mask'; tasks that need it are left out" in err
    assert main([*other, "--tasks"]) == 2
    assert "--tasks: manifest has no column 'color'" in capsys.readouterr().err
    assert main([*other, "--option", "attributes=true"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    category = next(r for r in results if r["protocol"] == "category")
    stored = final_state(small.run)["columns"]["color"]
    table = Manifest.read(small.run / "manifests" / "train.csv").column("color")
    assert stored["classes"] == sorted(set(table) - {""})
    assert category["counts"]["known"] == 20
    assert main([*other, "--recipe", "x"]) == 2


def test_what_has_no_heads_says_so(small, capsys):
    small.train()
    assert main(["evaluate", str(small.run), "--tasks"]) == 2
    assert "has no task heads; its objective names no task" in capsys.readouterr().err
    assert main(["evaluate", str(small.run), "--tasks", "--baseline", "pixels"]) == 2
    assert "a baseline has none, evaluate the run itself" in capsys.readouterr().err
    stored = str(small.run / "e.parquet")
    assert main(["evaluate", str(small.run), "--save-embeddings", stored]) == 0
    assert main(["evaluate", stored, "--tasks"]) == 2
    assert "--tasks is for images, these are stored embeddings" in capsys.readouterr().err


def test_a_run_with_tasks_continues_to_the_bit(small):
    with_tasks(small).set(name="whole").train()
    whole = final_state(small.run)
    small.set(name="parts")
    with pytest.MonkeyPatch.context() as patch:
        step = trainer.Trainer._step

        def stopping(self, *arguments):
            step(self, *arguments)
            if self.position.step == 3:
                self.stop.number = signal.SIGTERM

        patch.setattr(trainer.Trainer, "_step", stopping)
        with pytest.raises(Stopped):
            small.train()
    small.train()
    equal_but_for_the_clock(whole, final_state(small.run))
    equal_to_the_bit(whole["columns"], final_state(small.run)["columns"])


def on_rank(world, values):
    train(check_recipe(values, "two.yaml"), world)


@pytest.mark.timeout(180)
def test_two_processes_end_as_one_on_the_joined_batch(small):
    with_tasks(small).set(
        optim={"name": "sgd", "lr": 0.02},
        train={"images": 32, "precision": "fp32"},
        evaluation__every=0,
        name="one",
    )
    one = small.train().values
    expected = final_state(small.run)
    small.set(name="two")
    small.values["data"]["sampler"]["identities"] //= 2
    in_two_ranks(on_rank, copy.deepcopy(small.values))
    found = final_state(small.run)
    for part in ("model", "objective"):
        for name, value in expected[part].items():
            assert_close(found[part][name], value, rtol=1e-4, atol=1e-5, msg=name)
    two = json.loads((small.run / "results.json").read_text())
    for first, second in zip(one["results"], two["results"], strict=True):
        assert first["counts"] == second["counts"]


PEOPLE = {
    "path": [f"{i}.png" for i in range(4)],
    "identity": ["ann", "ann", "bob", "bob"],
    "color": ["red", "", "blue", "red"],
    "age": ["20", "", "31.5", "1e1"],
    "hat": ["1", "", "No", "yes"],
}


@pytest.mark.parametrize(
    ("term", "changes", "message"),
    [
        ({"task": "category", "column": "colour"}, {}, "has no column 'colour', which the objective names"),
        (
            {"task": "number", "column": "age"},
            {"age": ["1", "abc", "3", ""]},
            "manifest: column age (image 1.png) is 'abc', not a number; leave it empty if unknown",
        ),
        (
            {"task": "number", "column": "age"},
            {"age": ["1", "inf", "3", ""]},
            "column age (image 1.png) is 'inf'",
        ),
        (
            {"task": "number", "column": "age"},
            {"age": ["3", "", "3", "3"]},
            "is 3 throughout; nothing to learn",
        ),
        ({"task": "number", "column": "age"}, {"age": ["3", "", "", ""]}, "holds 1 values; nothing to learn"),
        (
            {"task": "attributes", "columns": ["hat"]},
            {"hat": ["1", "0", "maybe", ""]},
            "column hat (image 2.png) is 'maybe'; an attribute is 1 or 0",
        ),
        (
            {"task": "attributes", "columns": ["hat"]},
            {"hat": [""] * 4},
            "column hat of the training images is empty",
        ),
        ({"task": "category", "column": "color"}, {"color": ["red", "", "red", ""]}, "holds 'red' alone"),
        ({"task": "category", "column": "color"}, {"color": [""] * 4}, "is empty; it needs two classes"),
    ],
)
def test_columns_that_cannot_be_learned_are_one_line(term, changes, message):
    with pytest.raises(InputError) as caught:
        Columns.learn([term], Manifest.from_columns(**(PEOPLE | changes)))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("suffix", "row"), [(".csv", "row 5"), (".parquet", "row 3 (counted from 0)")])
def test_a_bad_cell_is_told_with_file_row_and_column_also_in_a_part_of_the_table(tmp_path, suffix, row):
    file = tmp_path / f"people{suffix}"
    Manifest.from_columns(**(PEOPLE | {"age": ["20", "", "3", "old"]})).write(file)
    part = Manifest.read(file).select([3, 0]).with_column("split", "train")
    with pytest.raises(InputError) as caught:
        Columns.learn([TASKS["number"]], part)
    told = f"{file}: {row}, column age (image 3.png) is 'old', not a number; leave it empty if unknown"
    assert str(caught.value) == told


def test_columns_become_numbers():
    terms = [TASKS["category"], {"task": "attributes", "columns": ["hat"]}, TASKS["number"]]
    columns = Columns.learn(terms, Manifest.from_columns(**PEOPLE))
    values = columns.encode(Manifest.from_columns(**(PEOPLE | {"color": ["red", "", "pink", "blue"]})))
    assert values["color"].tolist() == [1, -1, -1, 0]
    assert_close(values["hat"], torch.tensor([[1], [np.nan], [0], [1]]).float(), equal_nan=True)
    assert_close(values["age"], torch.tensor([20, np.nan, 31.5, 10]).float(), equal_nan=True)
    assert columns.rules["hat"].shares == pytest.approx((2 / 3,))
    assert columns.rules["age"].mean == pytest.approx(20.5)
    assert columns.rules["color"].counts == (1, 2)
    assert Columns.from_plain(columns.plain()) == columns


def test_a_mask_that_is_missing_leaves_the_loss_of_the_others_and_no_gradient():
    found = torch.randn(4, 5, 2, 2, requires_grad=True)
    target = (torch.rand(4, 8, 6) > 0.5).to(torch.uint8)
    target[2] = 255
    losses = []
    for rows in ([0, 1, 2, 3], [0, 1, 3]):
        torch.manual_seed(0)
        objective = Objective.from_config(
            [{"task": "mask", "column": "mask"}],
            num_classes=2,
            feature_dim=4,
            embedding_dim=4,
            columns={"mask": Column()},
            map_channels=5,
        )
        side = Side(columns={"mask": target[rows]}, map=found[rows])
        x = torch.zeros(len(rows), 4)
        output = objective(x, x, torch.zeros(len(rows), dtype=torch.int64), 0.5, side=side)
        found.grad = None
        output.total.backward()
        losses.append((output.total.detach(), found.grad, objective.losses["mask"].conv.weight.grad))
    assert_close(losses[0], losses[1])
    assert (losses[0][1][2] == 0).all() and losses[0][1][[0, 1, 3]].abs().sum() > 0
    head = objective.losses["mask"]
    small = torch.einsum("bchw,c->bhw", found, head.conv.weight[0, :, 0, 0]) + head.conv.bias
    logits = torch.nn.functional.interpolate(small[:, None], size=(8, 6), mode="bilinear")[:, 0]
    p, g = logits.sigmoid()[[0, 1, 3]].flatten(1), target[[0, 1, 3]].flatten(1).float()
    dice = 1 - (2 * (p * g).sum(1) + 1) / ((p * p).sum(1) + (g * g).sum(1) + 1)
    assert_close(losses[0][0], dice.mean().detach())


GEOMETRY = {"color": 0.0, "erase": 0.0, "low_resolution": 0.0, "blur": 0.0, "gray": 0.0, "crop": 1.0}


@pytest.mark.parametrize(
    ("preset", "options"), [("plain", {}), ("face", GEOMETRY | {"warp": 1.0}), ("reid", GEOMETRY)]
)
def test_the_mask_goes_where_the_pixels_go(preset, options):
    transform = build_transform(preset, (64, 48), train=True, **options)
    blocks = (np.random.default_rng(0).random((6, 5)) > 0.5).astype(np.uint8)
    mask = cv2.resize(blocks, (75, 90), interpolation=cv2.INTER_NEAREST)
    image = np.repeat(mask[:, :, None] * 255, 3, axis=2)
    results = []
    for seed in range(20):
        pixels, moved = transform.with_mask(image, mask, seed)
        assert (pixels == transform(image, seed)).all(), "the mask changes no pixel"
        assert moved.shape == (64, 48) and set(np.unique(moved)) <= {0, 1}
        assert ((pixels[:, :, 0] > 127) == (moved == 1)).mean() > 0.93
        results.append(moved.tobytes())
    assert (len(set(results)) > 1) == (preset != "plain")


def test_what_is_no_geometry_leaves_the_mask_alone():
    options = {"color": 1.0, "erase": 1.0, "low_resolution": 1.0, "blur": 1.0, "gray": 1.0}
    transform = build_transform("reid", (64, 48), train=True, flip=0.0, crop=0.0, **options)
    mask = np.zeros((64, 48), np.uint8)
    mask[10:40, 5:30] = 1
    image = np.full((64, 48, 3), 200, np.uint8)
    pixels, moved = transform.with_mask(image, mask, 3)
    assert (moved == mask).all() and (pixels != image).any()


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_bring_masks_and_say_which_are_missing(workers):
    people = SyntheticPedestrians(identities=4, images=4, size=(32, 16), attributes=True, missing=0.4)
    table = people.manifest()
    masks = table.column("mask").tolist()
    transform = build_transform("plain", (32, 16), train=True)
    dataset = ImageDataset(people, table, table.labels(), transform, seed=0, masks=masks)
    loader = Loader(dataset, ShuffleSampler(table.labels(), batch_size=8, seed=0), workers=workers)
    seen = 0
    for batch in loader.epoch(0):
        for row, mask in zip(batch.index.tolist(), batch.masks.numpy(), strict=True):
            truth = people.read(masks[row])[:, :, 0] // 255 if masks[row] else np.full((32, 16), 255)
            assert (mask == truth).all()
            seen += 1
    loader.close()
    assert seen == 16 and "" in masks
    plain = ImageDataset(people, table, table.labels(), transform, seed=0)
    assert plain.__getitems__([(0, 0, 0)]).masks is None


NAMES = ["a0", "a1", "b0", "b1", "c0", "c1"]


def with_photos(small, folder, masks, **changes):
    """Three people, two images each, of which some have masks."""
    for name in (*NAMES, "mask"):
        shade = 255 if name == "mask" else 90
        cv2.imwrite(str(folder / f"{name}.png"), np.full((20, 10, 3), shade, np.uint8))
    cells = masks + [""] * (len(NAMES) - len(masks))
    table = Manifest.from_columns([f"{n}.png" for n in NAMES], [n[0] for n in NAMES], mask=cells)
    table.write(folder / "people.csv")
    sampler = {"name": "shuffle", "batch_size": 6}
    data = {"train": "manifest", "manifest": str(folder / "people.csv"), "sampler": sampler}
    return small.set(
        data={**data, "size": [32, 32], "workers": 0, **changes.pop("data", {})},
        objective=[{"loss": "softmax"}, {"task": "mask", "column": "mask"}],
        train={"images": 12, "precision": "fp32"},
        **changes,
    )


def test_masks_of_files_are_read_and_bad_ones_named(small, tmp_path):
    cv2.imwrite(str(tmp_path / "large.png"), np.full((40, 20, 3), 255, np.uint8))
    (tmp_path / "broken.png").write_bytes(b"no image")
    with_photos(small, tmp_path, ["mask.png", "", "mask.png"]).train()
    for name, masks, message in (
        ("lost", ["mask.png", "", "", "lost.png"], r"the mask 'lost.png' of b1.png does not exist"),
        ("large", ["large.png"], "large.png: the mask has 20 x 40 pixels, but its image a0.png 10 x 20"),
        ("broken", ["broken.png", "mask.png"], "broken.png: not an image"),
        ("none", [], "column mask of the training images is empty"),
    ):
        with pytest.raises(InputError, match=message):
            with_photos(small, tmp_path, masks, name=name).train()
    masks = ["broken.png", "mask.png"]
    values = with_photos(small, tmp_path, masks, name="skip", data={"on_corrupt": "skip"}).train().values
    assert values["skipped_images"] == ["broken.png"]


def test_masks_of_test_images_are_read_before_anything_is_trained(small, tmp_path):
    with_photos(small, tmp_path, ["mask.png"], data={"sampler": {"name": "shuffle", "batch_size": 4}})
    for name in ("d0", "d1"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((20, 10, 3), 90, np.uint8))
    cv2.imwrite(str(tmp_path / "large.png"), np.full((40, 20, 3), 255, np.uint8))
    (tmp_path / "broken.png").write_bytes(b"no image")
    names, split = [*NAMES, "d0", "d1"], ["train"] * 4 + ["test"] * 4

    def people(mask):
        cells = ["mask.png"] * 7 + [mask]
        paths = [f"{name}.png" for name in names]
        table = Manifest.from_columns(paths, [name[0] for name in names], mask=cells, split=split)
        table.write(tmp_path / "people.csv")
        return small.set(name=mask.removesuffix(".png"))

    for mask, message in (
        ("large.png", "large.png: the mask has 20 x 40 pixels, but its image d1.png 10 x 20"),
        ("broken.png", "broken.png: not an image"),
    ):
        with pytest.raises(InputError, match=message):
            people(mask).train()
        assert not small.run.exists()
    assert "mask" in [result["protocol"] for result in people("mask.png").train().values["results"]]
    # An unreadable image is left out of the evaluation, and its mask with it.
    (tmp_path / "d1.png").write_bytes(b"no image")
    results = people("large.png").set(data__on_corrupt="skip").train().values["results"]
    assert {r["counts"]["known"] for r in results if r["protocol"] == "mask"} == {3}


def test_masks_of_zeros_and_ones_and_of_black_and_white_are_the_same(tmp_path):
    marks = np.zeros((6, 4), np.uint8)
    marks[2:, 1:] = 1
    for name, scale in (("ones", 1), ("white", 255)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), marks * scale)
        assert (read_mask(FolderSource(tmp_path), f"{name}.png", (6, 4), "a.png") == marks).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__pooling": "native"}, "task mask needs a backbone with a feature map"),
        (
            {"model__backbone": "test_vit", "data__size": [160, 160]},
            "task mask needs a backbone with a feature",
        ),
        ({"objective": [{"task": "mask", "column": "mask", "on": "features"}]}, "on: is not for task mask"),
        ({"objective": [{"task": "mask", "column": "mask", "form": "multiclass"}]}, "a mask takes dice with"),
        ({"objective": [{"task": "mask", "column": "mask", "loss": "mse"}]}, "a mask takes dice with form"),
        ({"objective": [{"task": "mask", "column": "mask"}] * 2}, "a recipe has one mask at most"),
        ({"objective": [{"task": "mask"}]}, "is required: the name of a manifest column"),
    ],
)
def test_masks_that_cannot_be_learned_are_one_line(small, changes, message):
    with_tasks(small).values.pop("balance")
    with pytest.raises(InputError, match=message):
        small.set(**changes).train()
