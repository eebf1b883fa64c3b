"""Counts of gates: they add up, agree with selection, and stand beside an exact null."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jola_interp import analysis, selection
from jola_interp.analysis import profile
from jola_interp.analysis.tables import read_table, write_table
from jola_interp.edits.jola import JoLA
from tests.runs_by_hand import make_run, stamped

RULES = ["p_open>0.5", "expected>0.0881", "point>0", "top=5:p_open"]


def same(one: Any, other: Any) -> bool:
    if dataclasses.is_dataclass(one):
        fields = [field.name for field in dataclasses.fields(one)]
        return type(one) is type(other) and all(same(getattr(one, name), getattr(other, name)) for name in fields)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


# -- layers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_counts_per_layer_add_up_to_the_selection(tmp_path: Path, rule: str) -> None:
    run = make_run(tmp_path)
    found, chosen = profile.layer_profile(run, rule), run.selection(rule)
    assert {status: count.sum() for status, count in found.counts.items()} == chosen.counts()
    assert np.array_equal(sum(found.counts.values()), found.editable)
    assert list(found.selected) == [sum(layer == i for layer, _ in chosen.units) for i in range(3)]
    for kind, value in run.log_alphas().items():
        np.testing.assert_allclose(found.expected[kind], selection.measure("p_open", value).sum(1), rtol=1e-6)
        assert np.array_equal(found.opened[kind], selection.open_gates(run.log_alphas(), rule)[kind].sum(1))


def test_the_random_band_is_that_of_every_draw_there_is() -> None:
    editable, selected = np.array([4, 3, 0, 2]), np.array([3, 0, 0, 1])
    found = profile._random_counts(editable, selected)
    layer_of = np.repeat(np.arange(4), editable)
    draws = np.array([np.bincount(layer_of[list(d)], minlength=4) for d in itertools.combinations(range(9), 4)])
    np.testing.assert_allclose(found["random_mean"], draws.mean(0))
    below = (draws <= selected).mean(0)
    above = (draws >= selected).mean(0)
    np.testing.assert_allclose(found["p"], np.minimum(1, 2 * np.minimum(below, above)))
    low, high = found["random_low"], found["random_high"]
    outside = (draws < low) | (draws > high)
    assert (outside.mean(0) <= 0.05).all()
    assert found["by_chance"] == pytest.approx(outside.mean(0).sum())
    assert (
        ((draws < low).mean(0) <= 0.025) & ((draws <= low).mean(0) >= 0.025)
    ).all()  # and no wider than it has to be
    assert (((draws > high).mean(0) <= 0.025) & (((draws >= high).mean(0) > 0.025) | (high == 0))).all()


@pytest.mark.parametrize(("rule", "count"), [("p_open>1", 0), ("p_open>0", 12)])
def test_with_nothing_or_everything_selected_chance_leaves_no_room(tmp_path: Path, rule: str, count: int) -> None:
    found = profile.layer_profile(make_run(tmp_path), rule)
    assert found.selected.sum() == count
    for value in (found.random_low, found.random_mean, found.random_high):
        assert np.array_equal(value, found.selected)
    assert (found.p == 1).all() and not found.outside.any() and found.by_chance == 0


def test_layers_without_editable_heads_are_empty_and_not_tested(tmp_path: Path) -> None:
    found = profile.layer_profile(make_run(tmp_path, only={"layers": [2]}))
    assert list(found.editable) == [0, 0, 4] and list(found.selected[:2]) == [0, 0]
    assert all(np.array_equal(value[:2], [0, 0]) for value in found.expected.values())
    assert (found.p[:2] == 1).all() and (found.p_holm[:2] == 1).all()
    assert "of 1 layer," in found.sentences()[1]


def test_holms_correction_is_of_the_tested_layers_alone(tmp_path: Path) -> None:
    found = dataclasses.replace(
        profile.layer_profile(make_run(tmp_path, layers=4)),
        editable=np.array([4, 4, 0, 4]),
        p=np.array([0.02, 0.01, 1.0, 0.5]),
    )
    np.testing.assert_allclose(found.p_holm, [0.04, 0.03, 1.0, 0.5])


# -- thresholds --------------------------------------------------------------------------------------------------------


def test_every_threshold_counts_what_the_rule_of_that_threshold_selects(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    found = profile.thresholds(run)
    for row in range(0, 101, 7):
        rule = f"p_open>{found.thresholds[row]:.2f}"
        assert found.counts["either"][row] == len(run.selection(rule))
        opened = selection.open_gates(run.log_alphas(), rule)
        assert {kind: value.sum() for kind, value in opened.items()} == {k: found.counts[k][row] for k in opened}
    assert all((np.diff(value) <= 0).all() for value in found.counts.values())
    assert found.counts["either"][0] == found.units == 12 and found.counts["either"][-1] == 0


@pytest.mark.parametrize("rule", ["p_open>0.5", "expected>0.0881", "point>0", "expected>0.7", "point>0.25"])
def test_a_mark_stands_where_its_rule_begins_to_open_and_counts_what_it_selects(tmp_path: Path, rule: str) -> None:
    run = make_run(tmp_path)
    (mark,) = profile.thresholds(run, rules=[rule]).marks
    assert mark.counts["either"] == len(run.selection(rule))
    edge = np.log(mark.threshold / (1 - mark.threshold)) - 0.7913  # p_open = σ(log α + .7913)
    sides = {"additive": np.array([[edge - 1e-3, edge + 1e-3]])}
    assert selection.open_gates(sides, rule)["additive"].tolist() == [[False, True]]


def test_what_is_called_closed_is_exactly_zero_under_the_point_gate(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    found = profile.thresholds(run, rules=[])
    assert found.marks == ()
    points = {kind: selection.measure("point", value) for kind, value in run.log_alphas().items()}
    assert found.closed == {kind: (value == 0).sum() for kind, value in points.items()}
    assert f"{found.closed['additive']} additive (" in found.sentences()[1]


def test_thresholds_refuse_rules_without_one(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with pytest.raises(ValueError, match="rules must be of the form .* got 'top=3:p_open'"):
        profile.thresholds(run, rules=["top=3:p_open"])
    with pytest.raises(ValueError, match="points must be 2 or more; got 1"):
        profile.thresholds(run, points=1)


# -- all ---------------------------------------------------------------------------------------------------------------

TABLES = [analysis.layer_profile, analysis.thresholds, analysis.budget, analysis.closing, analysis.gate_gap]


@pytest.mark.parametrize("table", TABLES)
def test_tables_can_be_kept(tmp_path: Path, table: Any) -> None:
    found = table(stamped(make_run(tmp_path / "run")))
    file = tmp_path / "table.safetensors"
    write_table(found, file, {})
    assert same(read_table(type(found), file), found)


@pytest.mark.parametrize("table", [*TABLES[:4], analysis.strips])
@pytest.mark.parametrize(
    "switches",
    [
        {"layers": 1, "heads": 1, "kv_heads": 1, "steps": 3},
        {"gates": "shared"},
        {"operations": "add"},
        {"sites": ("mlp",), "steps": 3},
    ],
)
def test_every_kind_of_edit_has_its_tables(tmp_path: Path, table: Any, switches: dict[str, Any]) -> None:
    run = make_run(tmp_path, **switches)
    site = switches.get("sites", ("heads",))[0]
    found = table(run, site=site)
    assert len(found.to_frame()) and (found.sentences() if hasattr(found, "sentences") else found.notes)


@pytest.mark.parametrize("table", [*TABLES[:4], analysis.strips])
def test_tables_refuse_edits_without_gates_there(tmp_path: Path, table: Any) -> None:
    with pytest.raises(ValueError, match="no gates at heads"):
        table(make_run(tmp_path / "a", gates="none"))
    with pytest.raises(ValueError, match="acts at heads, not at mlp"):
        table(make_run(tmp_path / "b"), site="mlp")


@pytest.mark.parametrize("table", [analysis.layer_profile, analysis.budget])
def test_tables_refuse_rules_outside_the_grammar(tmp_path: Path, table: Any) -> None:
    with pytest.raises(ValueError, match="rule: 'half of them' reads neither"):
        table(make_run(tmp_path), "half of them")


def test_frames_have_a_row_per_thing(tmp_path: Path) -> None:
    run = stamped(make_run(tmp_path))
    rows = [len(table(run).to_frame()) for table in TABLES]
    assert rows == [3, 3 * 101 + 3 * 3, 13, 24, 4]


def test_an_edit_is_left_as_it_was(tmp_path: Path) -> None:
    run = stamped(make_run(tmp_path))
    assert isinstance(run.edit, JoLA)
    before = {name: value.clone() for name, value in run.edit.tensors().items()}
    for table in (*TABLES, analysis.strips):
        table(run)
    assert all(torch.equal(value, before[name]) for name, value in run.edit.tensors().items())
