"""Models behind one interface: their embeddings, and fingerprints that follow the weights alone."""

import json
from contextlib import nullcontext

import pytest
import torch
import yaml

from metricid.cli.model import open_model
from metricid.errors import InputError
from metricid.models.embedder import Embedder, EmbedderConfig, Preprocessing, embedder_to_dict
from metricid.models.inference import (
    CheckpointModel,
    InferenceModel,
    embedder_fingerprint,
    weights_fingerprint,
)
from metricid.training.checkpoint import write_checkpoint

CPU = torch.device("cpu")


def embedder(seed=0, **options):
    torch.manual_seed(seed)
    return Embedder(EmbedderConfig("test_resnet", Preprocessing((32, 24)), neck="bnneck", **options))


def store(file, network, ema=None):
    state = {"embedder": embedder_to_dict(network.config), "model": network.state_dict(), "ema": ema}
    write_checkpoint(file, state | {"config": {"name": "run"}})
    return file


def images(count=3):
    return torch.randint(0, 256, (count, 32, 24, 3), dtype=torch.uint8)


@pytest.mark.parametrize("flip", [False, True])
def test_a_checkpoint_embeds_as_its_network_does(tmp_path, flip):
    network = embedder().eval()
    model = open_model(store(tmp_path / "m.pt", network), device="cpu", precision="fp32")
    batch = images()
    with torch.inference_mode():
        x = (batch.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
        expected = network(x).embedding + (network(x.flip(3)).embedding if flip else 0)
    found = model.embed(batch, flip=flip)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert isinstance(model, InferenceModel)
    assert found.dtype == torch.float32 and found.shape == (3, model.output_dim)


def test_the_description_is_json_and_names_what_matters(tmp_path):
    model = open_model(store(tmp_path / "m.pt", embedder()), device="cpu", precision="bf16")
    said = json.loads(json.dumps(model.describe()))
    assert said == model.describe()
    assert (said["kind"], said["name"], said["precision"]) == ("checkpoint", "run (m.pt)", "bf16")
    assert said["preprocessing"]["size"] == [32, 24]
    assert (said["dimension"], said["fingerprint"]) == (model.output_dim, model.fingerprint)


def test_the_fingerprint_does_not_depend_on_the_place(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    first = open_model(store(tmp_path / "a.pt", embedder()), device="cpu")
    second = open_model(store(tmp_path / "elsewhere" / "b.pt", embedder()), device="cpu", precision="fp32")
    averaged = open_model(store(tmp_path / "c.pt", embedder(1), ema=embedder().state_dict()), device="cpu")
    assert first.fingerprint == second.fingerprint == averaged.fingerprint
    assert len(first.fingerprint) == 64
    assert first.fingerprint == embedder_fingerprint(embedder().to(memory_format=torch.channels_last))


def test_the_fingerprint_follows_every_weight_and_option():
    plain = embedder()
    base, seen = embedder_fingerprint(plain), set()
    for name, value in plain.state_dict().items():
        changed = embedder()
        with torch.no_grad():
            changed.state_dict()[name].view(-1)[:1].add_(1)
        assert not torch.equal(changed.state_dict()[name], value)
        seen.add(embedder_fingerprint(changed))
    other_mean = Embedder(
        EmbedderConfig("test_resnet", Preprocessing((32, 24), mean=(0, 0, 0)), neck="bnneck")
    )
    other_mean.load_state_dict(plain.state_dict())
    seen |= {embedder_fingerprint(other_mean), embedder_fingerprint(embedder(output="features"))}
    assert base not in seen and len(seen) == len(plain.state_dict()) + 2


def test_shapes_and_types_are_part_of_a_fingerprint():
    given = [
        {"a": torch.zeros(4)},
        {"a": torch.zeros(2, 2)},
        {"a": torch.zeros(2, dtype=torch.float64)},
        {"a": torch.zeros(4, dtype=torch.int32)},
        {"b": torch.zeros(4)},
        {"a": torch.zeros(8, dtype=torch.bfloat16)},
        {"a": torch.tensor(0.0)},
    ]
    assert len({weights_fingerprint({}, weights) for weights in given}) == len(given)
    one, two = {"a": torch.ones(1), "b": torch.zeros(1)}, {"b": torch.zeros(1), "a": torch.ones(1)}
    assert weights_fingerprint({"x": 1, "y": 2}, one) == weights_fingerprint({"y": 2, "x": 1}, two)


def test_a_model_is_put_in_evaluation_mode():
    network = embedder().train()
    model = CheckpointModel(network, name="m", device=CPU, autocast=nullcontext)
    batch = images(4)
    torch.testing.assert_close(model.embed(batch, flip=False)[:1], model.embed(batch[:1], flip=False))


def test_a_run_folder_opens_by_its_best_checkpoint(tmp_path):
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"name": "run"}))
    store(folder / "checkpoints" / "step-000000001.pt", embedder(1))
    best = store(folder / "checkpoints" / "best.pt", embedder(2))
    assert open_model(folder).fingerprint == open_model(best).fingerprint == embedder_fingerprint(embedder(2))


def test_what_is_no_model(tmp_path):
    with pytest.raises(InputError, match="no such run folder or checkpoint"):
        open_model(tmp_path / "nothing")
    (tmp_path / "x.pt").write_text("x")
    with pytest.raises(InputError, match="damaged or not a checkpoint"):
        open_model(tmp_path / "x.pt")
    with pytest.raises(InputError, match="fp16 needs a CUDA GPU"):
        open_model(store(tmp_path / "m.pt", embedder()), device="cpu", precision="fp16")
