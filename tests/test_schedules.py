"""λ and learning-rate schedules against values worked by hand."""

from __future__ import annotations

import math

import pytest

from jola_interp.schedules import (
    REFERENCE_PENALTY,
    PenaltySchedule,
    PenaltyScheduleName,
    learning_rate_factor,
)


def values(name: PenaltyScheduleName, losses: list[float], n_steps: int = 30) -> list[float]:
    schedule = PenaltySchedule(name, REFERENCE_PENALTY[name], n_steps)
    found = []
    for loss in losses:
        found.append(schedule.value())
        schedule.tick(loss)
    return found


def test_constant_stays_at_the_released_value() -> None:
    assert values("constant", [1.0] * 5) == [4e-5] * 5


def test_performance_rises_when_the_loss_falls_and_falls_when_it_does_not() -> None:
    losses = [3.0, 2.0, 2.5, 2.5, 2.4]  # the first is compared with 50; an equal loss is no improvement
    assert values("performance", [*losses, 0.0]) == pytest.approx([0.1, 0.11, 0.12, 0.11, 0.10, 0.11], abs=1e-12)


def test_performance_stays_within_zero_and_one() -> None:
    falling = values("performance", [-float(i) for i in range(200)])
    rising = values("performance", [100.0 + i for i in range(50)])
    assert max(falling) == pytest.approx(1.0) and min(rising) == 0.0


@pytest.mark.parametrize("name", ["constant", "linear", "cyclic", "performance", "exponential"])
def test_restored_schedule_goes_on_as_if_never_stopped(name: PenaltyScheduleName) -> None:
    whole, first = PenaltySchedule(name, 0.3, 10), PenaltySchedule(name, 0.3, 10)
    losses = [2.0, 1.0, 1.5, 0.5, 0.7]
    for loss in losses[:3]:
        whole.tick(loss)
        first.tick(loss)
    second = PenaltySchedule(name, 0.3, 10)
    second.restore(first.state())
    for loss in losses[3:]:
        assert second.value() == whole.value()
        whole.tick(loss)
        second.tick(loss)


def test_learning_rate_warms_up_then_follows_a_cosine_to_zero() -> None:
    factors = [learning_rate_factor("cosine", step, 12, 2) for step in range(13)]
    assert factors[:3] == [0.0, 0.5, 1.0]
    assert factors[7] == pytest.approx(0.5)
    assert factors[12] == pytest.approx(0.0, abs=1e-12)
    assert learning_rate_factor("linear", 7, 12, 2) == pytest.approx(0.5)
    assert learning_rate_factor("constant", 11, 12, 2) == 1.0
    assert math.isfinite(learning_rate_factor("cosine", 0, 1, 0))


@pytest.mark.parametrize(
    ("name", "penalty", "n_steps", "field"),
    [("other", 0.1, 5, "penalty_schedule"), ("linear", -1.0, 5, "penalty"), ("linear", 0.1, 0, "n_steps")],
)
def test_bad_arguments_are_named(name: str, penalty: float, n_steps: int, field: str) -> None:
    with pytest.raises(ValueError, match=field):
        PenaltySchedule(name, penalty, n_steps)  # type: ignore[arg-type]
