"""Rules, statuses and selections."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jola_interp import selection


def logit_of_p_open(probability: float) -> float:
    return float(np.log(probability / (1 - probability)) - 0.7913088)


GRID = {
    "additive": np.array([[-6.0, 3.0], [3.0, -6.0]], dtype=np.float32),
    "multiplicative": np.array([[-6.0, -6.0], [2.0, 1.0]], dtype=np.float32),
}


def test_the_four_statuses() -> None:
    assert selection.status(GRID).tolist() == [[0, 1], [3, 2]]


def test_selection_is_ordered_by_the_larger_gate_and_counts_all_units() -> None:
    found = selection.select(GRID)
    assert list(found) == ["L0H1", "L1H0", "L1H1"]
    assert found.statuses == ("additive", "both", "multiplicative")
    assert found.counts() == {"none": 1, "additive": 1, "multiplicative": 1, "both": 1}
    assert list(found.top(2)) == ["L0H1", "L1H0"]
    assert list(found.to_frame().columns) == [
        "label", "layer", "head", "status", "p_open_additive", "p_open_multiplicative",
    ]  # fmt: skip


def test_units_that_are_not_editable_are_never_selected_nor_counted() -> None:
    grid = {kind: np.where([[True, False], [True, True]], value, np.nan) for kind, value in GRID.items()}
    found = selection.select(grid, "top=4:p_open")
    assert "L0H1" not in list(found) and found.total == 3


def test_a_shared_gate_opens_both() -> None:
    assert selection.status({"shared": np.array([[3.0, -6.0]], dtype=np.float32)}).tolist() == [[3, 0]]


@given(st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_top_k_selects_k_heads_and_none_better_is_left_out(k: int, seed: int) -> None:
    draws = np.random.default_rng(seed).normal(size=(2, 5, 6)).astype(np.float32)
    grid = {"additive": draws[0], "multiplicative": draws[1]}
    found = selection.select(grid, f"top={k}:p_open")
    assert len(found) == k
    larger = draws.max(0)
    inside = {unit: larger[unit] for unit in found.units}
    outside = [larger[i, j] for i in range(5) for j in range(6) if (i, j) not in inside]
    assert not outside or min(inside.values()) >= max(outside)


@pytest.mark.parametrize(
    ("rule", "threshold"),
    [("p_open>0.5", -0.7913088), ("point>0", -2.3978953), ("expected>0.0881", -2.3978953)],
)
def test_rules_cut_where_the_method_says(rule: str, threshold: float) -> None:
    grid = {"additive": np.array([[threshold - 0.01, threshold + 0.01]], dtype=np.float32)}
    assert selection.open_gates(grid, rule)["additive"].tolist() == [[False, True]]


@pytest.mark.parametrize("rule", ["", "p_open", "p_open<0.5", "top=0.5:p_open", "size>1", "top=3:size", "p_open>0.5>1"])
def test_rules_outside_the_grammar_are_refused(rule: str) -> None:
    with pytest.raises(ValueError, match="rule"):
        selection.parse_rule(rule)
