"""The HardConcrete arithmetic against its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from jola_interp import gates

# log α: P(open), P(g = 1), E[g], point (the table of the method, to its printed digits)
TABLE = [
    (-3.0, 0.0990, 0.0221, 0.0505, 0.0),
    (-2.0, 0.2299, 0.0578, 0.1251, 0.0430),
    (-1.0, 0.4480, 0.1429, 0.2755, 0.2227),
    (0.0, 0.6881, 0.3119, 0.5, 0.5),
    (1.0, 0.8571, 0.5520, 0.7245, 0.7773),
]


@pytest.mark.parametrize("row", TABLE)
def test_values_match_the_table_of_the_method(row: tuple[float, ...]) -> None:
    log_alpha = torch.tensor(row[0])
    found = [float(f(log_alpha)) for f in (gates.p_open, gates.p_one, gates.expected, gates.point)]
    assert found == pytest.approx(row[1:], abs=5.1e-5)


@given(st.floats(-50, 50))
def test_expected_gate_equals_an_adaptive_integral(value: float) -> None:
    def exceed(x: float) -> float:
        stretched = (x - gates.GAMMA) / (gates.ZETA - gates.GAMMA)
        return float(1 / (1 + np.exp(-(value - gates.BETA * math.log(stretched / (1 - stretched))))))

    reference = quad(exceed, 0, 1, epsabs=1e-12)[0]
    assert float(gates.expected(torch.tensor(value, dtype=torch.float32))) == pytest.approx(reference, abs=1e-6)


def test_samples_have_the_probabilities_and_mean_that_the_formulas_say() -> None:
    generator = torch.Generator().manual_seed(0)
    for value in (-3.0, -1.0, 0.0, 2.0):
        log_alpha = torch.full((200_000,), value)
        drawn = gates.sample(log_alpha, gates.uniform_like(log_alpha, generator))
        for share, formula in (
            ((drawn > 0).float().mean(), gates.p_open),
            ((drawn == 1).float().mean(), gates.p_one),
            (drawn.mean(), gates.expected),
        ):
            assert float(share) == pytest.approx(float(formula(log_alpha[0])), abs=0.006)  # 5 standard errors


@given(st.floats(-50, 50), st.floats(0, 1, exclude_max=True))
def test_values_and_gradients_are_finite_in_float32(value: float, uniform: float) -> None:
    for function in (gates.p_open, gates.p_one, gates.expected, gates.expected_or_closed, gates.point):
        log_alpha = torch.tensor(value, dtype=torch.float32, requires_grad=True)
        result = function(log_alpha)
        result.backward()
        assert 0 <= float(result.detach()) <= 1 + 1e-6
        assert log_alpha.grad is not None and bool(torch.isfinite(log_alpha.grad))
    log_alpha = torch.tensor(value, dtype=torch.float32, requires_grad=True)
    gates.sample(log_alpha, torch.tensor(uniform, dtype=torch.float32)).backward()
    assert log_alpha.grad is not None and bool(torch.isfinite(log_alpha.grad))


def test_paper_and_released_inference_gates_close_the_same_gates() -> None:
    log_alpha = torch.linspace(-6, 6, 10_001)
    assert torch.equal(gates.expected_or_closed(log_alpha) == 0, gates.point(log_alpha) == 0)
    assert float(gates.expected(torch.tensor(gates.LOG_ALPHA_CLOSED))) == pytest.approx(0.0881, abs=5e-5)


def test_hard_gate_opens_where_open_is_more_likely_than_not() -> None:
    log_alpha = torch.linspace(-3, 3, 1001)
    assert torch.equal(gates.hard(log_alpha) == 1, gates.p_open(log_alpha) > 0.5)


def test_draws_come_from_the_generator_alone() -> None:
    before = torch.random.get_rng_state()
    first = gates.uniform_like(torch.zeros(5), torch.Generator().manual_seed(3))
    second = gates.uniform_like(torch.zeros(5), torch.Generator().manual_seed(3))
    assert torch.equal(first, second)
    assert torch.equal(before, torch.random.get_rng_state())
