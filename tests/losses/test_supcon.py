"""Supervised contrastive loss against its definition and pytorch-metric-learning."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import losses as pml
from torch.testing import assert_close

from metricid.losses import SupConLoss
from metricid.losses.functional import supcon_loss


def by_loop(x, y, temperature):
    z = [row / row.norm() for row in x]
    anchors = []
    for i in range(len(y)):
        positives = [p for p in range(len(y)) if p != i and y[p] == y[i]]
        if not positives:
            continue
        below = sum(torch.exp(z[i] @ z[a] / temperature) for a in range(len(y)) if a != i)
        terms = [-torch.log(torch.exp(z[i] @ z[p] / temperature) / below) for p in positives]
        anchors.append(sum(terms) / len(positives))
    return sum(anchors) / len(anchors) if anchors else 0.0 * x.sum()


def make(labels, dim=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(len(labels), dim, generator=generator, dtype=dtype).requires_grad_(), torch.tensor(
        labels
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.sampled_from([0.07, 0.5, 2.0]))
def test_equals_its_definition_for_any_labels(labels, temperature):
    x, y = make(labels)
    value, expected = supcon_loss(x, y, temperature=temperature), by_loop(x, y, temperature)
    assert_close(value, expected)
    assert_close(*(torch.autograd.grad(v, x)[0] for v in (value, expected)))


def test_equals_pytorch_metric_learning():
    x, y = make([0, 0, 1, 1, 1, 2, 2], dtype=torch.float32)
    assert_close(SupConLoss(temperature=0.2)(x, y), pml.SupConLoss(temperature=0.2)(x, y))


def test_gradcheck():
    x, y = make([0, 1, 0, 1, 2])
    assert torch.autograd.gradcheck(lambda x: supcon_loss(x, y, temperature=0.3), (x,))


@pytest.mark.parametrize("labels", [[0], [0, 1, 2]])
def test_without_positives_it_is_zero_with_a_graph(labels):
    x, y = make(labels, dtype=torch.float32)
    value = supcon_loss(x, y)
    value.backward()
    assert value.item() == 0
    assert_close(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("labels", [[0], [0, 1, 2], [0, 0, 1]])
def test_a_nan_embedding_shows(labels):
    x, y = make(labels)
    with torch.no_grad():
        x[-1, 0] = math.nan
    assert supcon_loss(x, y).isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_embeddings_stay_finite(dtype):
    x = torch.ones(6, 4, dtype=dtype, requires_grad=True)
    value = supcon_loss(x, torch.arange(6) // 2, temperature=0.01)
    value.backward()
    assert value.item() == pytest.approx(math.log(5), rel=1e-3)
    assert torch.isfinite(x.grad).all()


def test_autocast_changes_nothing():
    x, y = make([0, 0, 1, 1], dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        value = SupConLoss()(x, y)
    assert value.dtype == torch.float32
    assert_close(value, SupConLoss()(x, y))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_a_temperature_out_of_range_is_named(temperature):
    with pytest.raises(ValueError, match="temperature"):
        SupConLoss(temperature=temperature)
