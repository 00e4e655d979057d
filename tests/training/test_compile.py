"""`train.compile`, and the memory order of pixels and weights: faster ways to the same training."""

import re
import shutil

import pytest
import torch
import torch._inductor.config
from run_states import final_state, validations
from torch.testing import assert_close

from metricid.cli.main import main
from metricid.models.embedder import Embedder
from metricid.training.checkpoint import CheckpointStore, load_embedder, open_checkpoint

pytestmark = pytest.mark.timeout(290)
CLOSE = {"atol": 1e-4, "rtol": 1e-3}


@pytest.fixture
def smooth(small):
    """Four steps in float32 with an optimiser that does not magnify rounding; every batch has six images."""
    small.set(data__sampler={"name": "pk", "identities": 3, "images": 2}, evaluation__batch_size=6)
    small.set(train={"images": 24, "precision": "fp32"}, objective=[{"loss": "softmax"}])
    small.set(optim={"name": "sgd", "lr": 0.02}, data__augment={"preset": "plain"})
    return small.set(evaluation__every=1, checkpoint={"every_steps": 1, "keep": 9})


def weights(run):
    state = final_state(run)
    return {**state["model"], **{f"objective.{name}": value for name, value in state["objective"].items()}}


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs g++")
def test_a_compiled_run_trains_validates_resumes_and_opens_without_a_compiler(smooth, monkeypatch, tmp_path):
    cache = tmp_path / "cache"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(cache))
    smooth.set(name="plain").train()
    plain = smooth.run
    outcome = smooth.set(name="compiled", train__compile=True).train()
    compiled = smooth.run
    assert any("convolution" in file.read_text() for file in cache.rglob("*.py")), "the network was compiled"
    assert weights(compiled).keys() == weights(plain).keys()
    assert_close(weights(compiled), weights(plain), **CLOSE)
    results = [
        [r["metrics"]["rank-1"] for _, rs in validations(run) for r in rs] for run in (compiled, plain)
    ]
    assert results[0] == pytest.approx(results[1], abs=0.1)

    (compiled / "results.json").unlink()
    for path in CheckpointStore(compiled / "checkpoints").steps()[:2]:
        path.unlink()
    torch.compiler.reset()
    expected = outcome.values["results"][0]["metrics"]
    assert smooth.train().values["results"][0]["metrics"] == pytest.approx(expected, abs=0.1)
    assert_close(weights(compiled), weights(plain), **CLOSE)

    path, state = open_checkpoint(compiled, pytest.fail)
    embedder = load_embedder(state, path)
    assert embedder._compiled_call_impl is None
    assert embedder.state_dict().keys() == state["model"].keys()


def test_without_a_compiler_one_line_says_what_to_do(smooth, monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    file = smooth.set(train__compile=True).write()
    torch.compiler.reset()
    with torch._inductor.config.patch({"cpp.cxx": (None, "/no/such/g++")}):  # where CXX is read at the start
        assert main(["train", str(file)]) == 2
    err = capfd.readouterr().err
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    assert re.match(r"metricid train: train\.compile: .*/no/such/g\+\+.*install.*train\.compile=false$", last)
    assert [p.name for p in smooth.run.rglob("*") if p.is_file()] == [".lock"]


def test_channels_last_is_another_order_of_the_same_numbers(smooth, monkeypatch):
    orders = []
    normalize = Embedder.normalize

    def noted(self, images):
        pixels = normalize(self, images)
        for tensor in (pixels, next(p for p in self.backbone.parameters() if p.ndim == 4)):
            orders.append(tensor.is_contiguous(memory_format=torch.channels_last))
        return pixels

    monkeypatch.setattr(Embedder, "normalize", noted)
    smooth.set(name="last").train()
    last, trained_last = smooth.run, orders[:8]
    orders.clear()
    smooth.set(name="first", train__channels_last=False).train()
    assert trained_last == [True] * 8
    assert orders[:8] == [False] * 8
    assert_close(weights(last), weights(smooth.run), **CLOSE)
