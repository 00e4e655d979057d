"""Two processes against one: gradients of backbone and head on the joined batch."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from two_ranks import in_two_ranks

from metricid.errors import InputError
from metricid.losses.objective import Objective
from metricid.models.embedder import Embedder, EmbedderConfig, Preprocessing
from metricid.training.distributed import (
    JoinedBatchNorm,
    any_rank,
    gather_objects,
    join_batchnorm,
    pick_device,
    wrap_ddp,
)
from metricid.training.module import TrainingModule
from metricid.training.precision import pick_precision

TERMS = [
    {"loss": "softmax", "label_smoothing": 0.1},
    {"loss": "arcface", "scale": 16.0, "weight": 0.5},
    {"loss": "triplet", "on": "features", "miner": "batch_hard"},
    {"loss": "contrastive", "on": "embedding", "weight": 0.3},
    {"loss": "center", "on": "features", "weight": 0.01},
    {"loss": "triplet", "name": "later", "start": 0.9},
]


def build(dtype):
    torch.manual_seed(0)
    options = {"zero_init_last": False}
    structure = EmbedderConfig(
        "resnet10t", Preprocessing((32, 32)), neck="bnneck", embedding_dim=16, backbone_options=options
    )
    embedder = Embedder(structure)
    objective = Objective.from_config(TERMS, num_classes=6, feature_dim=16, embedding_dim=16)
    return embedder.to(dtype), objective.to(dtype)


def batch(dtype):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(16, 3, 32, 32, generator=generator).to(dtype), torch.arange(16) // 4


def gradients(embedder, objective):
    named = {f"embedder.{n}": p.grad for n, p in embedder.named_parameters() if p.requires_grad}
    return named | {f"objective.{n}": p.grad for n, p in objective.named_parameters()}


def on_rank(world):
    found = {}
    for dtype in (torch.float64, torch.float32):
        embedder, objective = build(dtype)
        join_batchnorm(embedder, world.device)
        embedder.train()
        module = TrainingModule(embedder, objective, pick_precision("fp32", world.device), True)
        wrapped = wrap_ddp(module, world.device, sync_buffers=False)
        images, labels = batch(dtype)
        part = slice(8 * world.rank, 8 * world.rank + 8)
        output, _, _ = wrapped(images[part], labels[part], 0.5)
        output.total.backward()
        buffers = {n: b.clone() for n, b in embedder.named_buffers()}
        found[dtype] = ({n: g.clone() for n, g in gradients(embedder, objective).items()}, buffers)
    flags = (any_rank(world.rank == 1, world), any_rank(False, world), gather_objects(world.rank, world))
    return (found, flags)


@pytest.fixture(scope="module")
def ranks():
    return in_two_ranks(on_rank)


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_gradients_of_backbone_and_head_equal_the_single_process_on_the_joined_batch(ranks, dtype, tolerance):
    embedder, objective = build(dtype)
    embedder.train()
    images, labels = batch(dtype)
    features, embedding = embedder(images)
    objective(features, embedding, labels, 0.5).total.backward()
    expected = gradients(embedder, objective)
    for rank in (0, 1):
        found, buffers = ranks[rank][0][dtype]
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            assert torch.dist(found[name], gradient) <= tolerance * gradient.norm() + tolerance, name
        for name, buffer in embedder.named_buffers():
            assert_close(buffers[name], buffer, atol=tolerance, rtol=tolerance, msg=name)
    assert expected["objective.losses.softmax.weight"].norm() > 1e-2
    assert expected["embedder.backbone.conv1.0.weight"].norm() > 1e-2


def test_flags_and_objects_reach_every_rank(ranks):
    assert [ranks[rank][1] for rank in (0, 1)] == [(True, False, [0, 1])] * 2


def test_batchnorm_with_its_activation_keeps_the_names_of_its_weights():
    embedder, _ = build(torch.float32)
    names = set(embedder.state_dict())
    join_batchnorm(embedder, torch.device("cpu"))
    assert set(embedder.state_dict()) == names
    assert any(isinstance(m, JoinedBatchNorm) for m in embedder.modules())
    assert not any(type(m) in (nn.BatchNorm1d, nn.BatchNorm2d) for m in embedder.modules())


@pytest.mark.parametrize("backbone", ["mobilenetv3_small_050", "resnet10t"])
def test_joined_batchnorm_changes_nothing_in_evaluation(backbone):
    torch.manual_seed(0)
    embedder = Embedder(EmbedderConfig(backbone, Preprocessing((32, 32)), neck="bnneck")).eval()
    images = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        expected = embedder(images).embedding
        found = join_batchnorm(embedder, torch.device("cpu"))(images).embedding
    assert_close(found, expected)


def test_a_device_that_is_not_there_is_named():
    assert pick_device("cpu").type == "cpu"
    assert pick_device("auto").type in ("cpu", "cuda", "mps")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no CUDA GPU.*device=auto"):
            pick_device("cuda")
    with pytest.raises(InputError, match="numbered from 0|no CUDA GPU"):
        pick_device("cuda:99")


def test_half_precision_needs_a_gpu_and_auto_picks_what_the_device_computes():
    with pytest.raises(InputError, match="fp16 needs a CUDA GPU"):
        pick_precision("fp16", torch.device("cpu"))
    assert pick_precision("auto", torch.device("cpu")).name in ("bf16", "fp32")
    assert pick_precision("auto", torch.device("mps")).name == "fp32"
