"""`metricid evaluate --save-calibration`, and options that stored embeddings cannot take."""

import json
import re

import numpy as np
import pytest

from metricid.cli.main import main
from metricid.data import EmbeddingSet, Manifest
from metricid.errors import InputError
from metricid.evaluation import PROTOCOLS
from metricid.evaluation.calibration import Calibration, calibrate


def people(count, images, noise, seed=0):
    rng = np.random.default_rng(seed)
    identity = np.repeat([f"person {i}" for i in range(count)], images)
    vectors = rng.standard_normal((count, 8)).repeat(images, axis=0)
    return (vectors + noise * rng.standard_normal(vectors.shape)).astype(np.float32), identity


@pytest.fixture
def stored(tmp_path):
    """Embeddings of 15 people, with a card that names their model."""
    vectors, identity = people(15, 4, 0.8)
    paths = [f"{i}.jpg" for i in range(len(identity))]
    file = tmp_path / "stored.parquet"
    card = {"model": {"fingerprint": "f" * 64}, "flip": True}
    EmbeddingSet(vectors, Manifest.from_columns(path=paths, identity=identity.tolist()), card).write(file)
    return file


def brute_force(vectors, identity, far):
    """The lowest observed cosine at which at most `far` of the different pairs pass, and the TAR there."""
    unit = vectors.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    same, different = [], []
    for i in range(len(unit)):
        for j in range(i):
            (same if identity[i] == identity[j] else different).append(float(unit[i] @ unit[j]))
    same, different = np.array(same), np.array(different)
    allowed = [t for t in np.concatenate([same, different]) if (different >= t).mean() <= far]
    return min(allowed), float((same >= min(allowed)).mean()), len(same), len(different)


def test_the_card_holds_the_thresholds_of_brute_force(stored, tmp_path, capfd):
    card = tmp_path / "new" / "card.json"
    arguments = ["--protocol", "verification", "--save-calibration", str(card)]
    assert main(["evaluate", str(stored), *arguments]) == 0
    err = capfd.readouterr().err
    values = json.loads(card.read_text())
    vectors, identity = people(15, 4, 0.8)
    assert set(values) == {"model", "flip", "metric", "pairs", "thresholds"}
    assert (values["model"], values["flip"], values["metric"]) == ("f" * 64, True, "cosine")
    # 1,680 pairs of two people: one of them is a rate of 6e-4.
    assert [p["far"] for p in values["thresholds"]] == [0.1, 0.01, 0.001]
    for point in values["thresholds"]:
        threshold, tar, same, different = brute_force(vectors, identity, point["far"])
        assert point["threshold"] == pytest.approx(threshold, abs=1e-6)
        assert point["tar"] == pytest.approx(tar)
        assert values["pairs"] == {"same": same, "different": different}
    assert "down to FAR 0.001" in err and "90 pairs of one identity and 1,680 of two" in err
    assert "fewer than 30 false accepts stand behind FAR 0.01, 0.001" in err


def test_a_card_is_read_as_it_was_written(tmp_path):
    vectors, identity = people(12, 3, 0.5)
    result = PROTOCOLS["verification"](vectors, {"identity": identity})
    card = calibrate(result, model="m", flip=False)
    card.write(tmp_path / "card.json")
    assert Calibration.read(tmp_path / "card.json") == card
    assert card.at(0.01).far == 0.01
    with pytest.raises(InputError, match=r"FAR 1e-06: .* has thresholds for 0\.1, 0\.01"):
        card.at(1e-6)


def test_the_pairs_file_gives_a_card_too():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((40, 6)).astype(np.float32)
    table = {"pairs": rng.integers(0, 40, (200, 2)), "same": np.arange(200) % 2 == 0}
    card = calibrate(PROTOCOLS["lfw"](vectors, table), model="m", flip=True)
    assert (card.same, card.different) == (100, 100)
    assert [p.far for p in card.thresholds] == [0.1, 0.01] and card.uncertain == (0.1, 0.01)


def test_too_few_pairs_give_no_card():
    vectors, identity = people(2, 2, 0.1)
    result = PROTOCOLS["verification"](vectors, {"identity": identity})
    with pytest.raises(InputError, match="4 pairs of different identities are too few"):
        calibrate(result, model="m", flip=False)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"model": "m", "flip": true, "metric": "cosine", "pairs": {}, "thresholds": []}'],
)
def test_other_files_are_no_cards(tmp_path, text):
    file = tmp_path / "card.json"
    file.write_text(text)
    with pytest.raises(InputError, match=r"card\.json: (no readable|not a) calibration card"):
        Calibration.read(file)


def test_a_card_that_is_not_there_says_how_to_make_one(tmp_path):
    with pytest.raises(
        InputError, match=r"card \(No such file or directory\); make one with metricid evaluate"
    ):
        Calibration.read(tmp_path / "card.json")


@pytest.fixture
def refused(capfd):
    def check(arguments, *words):
        code = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        said = [line for line in re.split(r"[\r\n]+", err) if line.startswith("metricid")]
        assert (code, out, len(said)) == (2, "", 1), err
        assert all(word in said[0] for word in words), said[0]

    return check


def test_a_card_needs_a_protocol_over_pairs_a_model_and_a_json_name(stored, tmp_path, refused):
    card = tmp_path / "card.json"
    words = ["evaluate", stored, "--save-calibration"]
    refused([*words, card, "--protocol", "identification"], "needs protocol verification or lfw")
    refused([*words, tmp_path / "card.txt", "--protocol", "verification"], "ends in .json")
    refused([*words, "/dev/null/card.json", "--protocol", "verification"], "can be written to")
    anonymous = tmp_path / "anonymous.parquet"
    whole = EmbeddingSet.read(stored)
    EmbeddingSet(whole.embeddings, whole.table, {}).write(anonymous)
    words = ["evaluate", anonymous, "--protocol", "verification", "--save-calibration", card]
    refused(words, "names no model")
    words = ["evaluate", "quickstart", "--baseline", "random", "--protocol", "verification"]
    refused([*words, "--save-calibration", card], "a baseline is no model to calibrate")
    assert not card.exists()


@pytest.mark.parametrize(
    "option",
    [
        ("--batch-size", "8"),
        ("--workers", "0"),
        ("--on-corrupt", "skip"),
        ("--device", "cpu"),
        ("--precision", "fp32"),
        ("--no-flip",),
        ("--onnx", "mean=1"),
        ("--recipe", "quickstart"),
        ("--layout", "folder"),
    ],
)
def test_stored_embeddings_refuse_what_is_for_images(stored, option, refused):
    refused(["evaluate", stored, *option], f"{option[0].replace('--no-', '--')} is for images")
