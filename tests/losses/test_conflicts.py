"""PCGrad against algorithm 1 of its paper, step by step on copies of the gradients."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from metricid.losses.conflicts import project_conflicts


def algorithm_1(gradients: Tensor, orders: list[list[int]]) -> Tensor:
    """Yu et al., NeurIPS 2020: a copy of each gradient, projected on the normal plane of others in turn."""
    changed = []
    for i, order in enumerate(orders):
        g = gradients[i].clone()
        for j in order:
            if torch.dot(g, gradients[j]) < 0:
                g = g - torch.dot(g, gradients[j]) / gradients[j].norm() ** 2 * gradients[j]
        changed.append(g)
    return torch.stack(changed).sum(dim=0)


def random_orders(terms: int, seed: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [[int(j) for j in rng.permutation(terms) if j != i] for i in range(terms)]


@settings(deadline=None, max_examples=60)
@given(terms=st.integers(1, 6), size=st.integers(1, 12), seed=st.integers(0, 10**6))
def test_equals_the_loop_over_copies(terms: int, size: int, seed: int) -> None:
    gradients = torch.randn(terms, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    orders = random_orders(terms, seed)
    before = gradients.clone()
    assert_close(project_conflicts(gradients, orders), algorithm_1(gradients, orders), atol=1e-9, rtol=1e-9)
    assert torch.equal(gradients, before)


def test_single_precision_is_near_double_precision() -> None:
    gradients = torch.randn(4, 5000, dtype=torch.float64) * torch.tensor([1.0, 1e-4, 30.0, 1.0])[:, None]
    orders = random_orders(4, 0)
    found = project_conflicts(gradients.float(), orders)
    assert found.dtype == torch.float32
    assert_close(found.double(), algorithm_1(gradients, orders), atol=1e-4, rtol=1e-5)


@settings(deadline=None, max_examples=30)
@given(terms=st.integers(1, 5), seed=st.integers(0, 10**6))
def test_without_conflicts_it_is_the_plain_sum(terms: int, seed: int) -> None:
    gradients = torch.rand(terms, 7, generator=torch.Generator().manual_seed(seed))  # no entry below 0
    assert_close(project_conflicts(gradients, random_orders(terms, seed)), gradients.sum(dim=0))


def test_two_terms_no_longer_oppose_each_other() -> None:
    torch.manual_seed(0)
    for _ in range(20):
        a, b = torch.randn(2, 6, dtype=torch.float64)
        joined = project_conflicts(torch.stack([a, b]), [[1], [0]])
        assert joined @ a > -1e-12
        assert joined @ b > -1e-12


@pytest.mark.parametrize("terms", [1, 3])
def test_gradients_of_zero_change_nothing(terms: int) -> None:
    gradients = torch.zeros(terms + 1, 5)
    gradients[0] = torch.tensor([1.0, -2.0, 0.0, 3.0, 0.5])
    orders = random_orders(terms + 1, 1)
    assert torch.equal(project_conflicts(gradients, orders), gradients[0])
    assert torch.equal(project_conflicts(torch.zeros(2, 5), [[1], [0]]), torch.zeros(5))


def test_exact_opposites_cancel_and_a_lone_gradient_stays() -> None:
    g = torch.tensor([3.0, -1.0, 2.0])
    assert_close(project_conflicts(torch.stack([g, -5 * g]), [[1], [0]]), torch.zeros(3), atol=1e-6, rtol=0)
    assert torch.equal(project_conflicts(g[None], [[]]), g)


def test_the_order_matters_and_is_kept() -> None:
    gradients = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [-1.0, -2.0]], dtype=torch.float64)
    first, second = ([[1, 2], [0, 2], [0, 1]], [[2, 1], [2, 0], [1, 0]])
    for orders in (first, second):
        assert_close(project_conflicts(gradients, orders), algorithm_1(gradients, orders))
    assert not torch.allclose(project_conflicts(gradients, first), project_conflicts(gradients, second))


def test_values_that_are_not_finite_stay_visible() -> None:
    gradients = torch.ones(2, 3)
    gradients[1, 0] = float("nan")
    assert not project_conflicts(gradients, [[1], [0]]).isfinite().all()
