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

from jola_interp import _files, selection
from jola_interp.analysis import profile
from jola_interp.analysis.tables import NotMeasuredError, read_table, write_table
from jola_interp.convergence import FILE, Convergence
from jola_interp.edits.jola import JoLA
from jola_interp.history import GateHistory
from jola_interp.runs import Run
from tests.runs_by_hand import make_run

RULES = ["p_open>0.5", "expected>0.0881", "point>0", "top=5:p_open"]


def stamped(run: Run, **more: Any) -> Run:
    ce = {"sampled": 0.52, "expected": 0.51, "point": 0.505, "hard": 0.5}
    values: dict[str, Any] = {"gates": 24, "decided": 20, "sum_gate_lr": 3.0, "reach": 0.1, "ce": ce}
    values |= {"sampled_se": 0.002, "stationarity": None, "rows": 32, "draws": 4} | more
    _files.write_json(run.path / FILE, Convergence(**values).to_dict())
    return run


def rated(run: Run, last: int) -> Run:
    """The Run, had it logged a gate learning rate that is 0 after step ``last``."""
    rows = _files.read_jsonl(run.path / "metrics.jsonl")
    rates = [{"gate_lr": 0.1 if row["step"] <= last else 0.0} if "ce" in row else {} for row in rows]
    _files.write_jsonl(run.path / "metrics.jsonl", [row | rate for row, rate in zip(rows, rates, strict=True)])
    return Run.load(run.path)


def with_history(run: Run, log_alphas: Mapping[str, np.ndarray]) -> Run:
    """The Run, had its heads' gates gone these ways, [step, layer, head]."""
    tensors = {
        f"log_alpha.heads.{kind}": torch.from_numpy(value.astype(np.float32)) for kind, value in log_alphas.items()
    }
    steps = torch.arange(len(next(iter(log_alphas.values()))))
    masks = {site: mask.numpy() for site, mask in run.edit.masks().items()}
    run.gates = GateHistory.from_tensors({"step": steps, **tensors}, masks)
    return run


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


# -- over training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_the_budget_is_the_history_counted(tmp_path: Path, rule: str) -> None:
    run = make_run(tmp_path, moving=True)
    found = profile.budget(run, rule)
    opens = {kind: run.gates.p_open(kind).astype(float) for kind in ("additive", "multiplicative")}  # type: ignore[arg-type]
    for kind, value in opens.items():
        np.testing.assert_allclose(found.expected[kind], value.sum((1, 2)))
    either = 1 - (1 - opens["additive"]) * (1 - opens["multiplicative"])
    np.testing.assert_allclose(found.expected["either"], either.sum((1, 2)))
    codes = run.gates.status(rule)
    assert np.array_equal(found.opened["either"], (codes > 0).sum((1, 2)))
    assert np.array_equal(found.opened["additive"], (codes % 2 == 1).sum((1, 2)))
    rows = run.metrics[run.metrics["ce"].notna()]
    assert np.isnan(found.ce[0]) and np.array_equal(found.ce[1:], rows["ce"])
    assert np.array_equal(found.weights["additive"][1:], rows["lambda_additive"])


def test_a_gate_decides_at_the_first_record_from_which_it_stays(tmp_path: Path) -> None:
    run = make_run(tmp_path, layers=2, heads=8, kv_heads=8)
    walks = {
        kind: np.cumsum(np.random.default_rng(seed).normal(0, 2.5, (40, 2, 8)), axis=0)
        for seed, kind in enumerate(("additive", "multiplicative"))
    }
    found = profile.closing(with_history(run, walks))
    opens = np.concatenate([run.gates.p_open(k).reshape(40, 16) for k in ("additive", "multiplicative")], axis=1)  # type: ignore[arg-type]
    for gate, path in enumerate(opens.T):
        sides = np.where(path < 0.05, "shut", np.where(path > 0.95, "open", "undecided"))
        stays = [step for step in range(40) if (sides[step:] == sides[-1]).all() and sides[-1] != "undecided"]
        assert found.outcomes[gate] == sides[-1]
        assert found.decided[gate] == stays[0] if stays else np.isnan(found.decided[gate])
        earlier = sides[: stays[0] if stays else 40]
        start = next((i for i, side in enumerate(earlier) if side == "undecided"), len(earlier))
        assert found.returned[gate] == (earlier[start:] != "undecided").any()
    assert {"shut", "open", "undecided"} == set(found.outcomes) and found.returned.any()  # the walks tried everything
    assert found.labels[17] == "L0H1" and found.kinds[17] == "multiplicative"


def test_decided_gates_never_grow_fewer_and_end_as_the_outcomes(tmp_path: Path) -> None:
    found = profile.closing(make_run(tmp_path))
    for name, counts in found.over_time().items():
        kind, outcome = name.split(", ")
        assert (np.diff(counts) >= 0).all()
        ends = [o == outcome for k, o in zip(found.kinds, found.outcomes, strict=True) if k == kind]
        assert counts[-1] == sum(ends)


def test_the_first_to_decide_come_first(tmp_path: Path) -> None:
    found = profile.closing(make_run(tmp_path))
    ranked = found.top(len(found))
    known = ranked.decided[~np.isnan(ranked.decided)]
    assert np.array_equal(known, np.sort(found.decided[~np.isnan(found.decided)]))
    assert np.isnan(ranked.decided[len(known) :]).all()
    frame = found.to_frame()
    for label, kind, step in zip(ranked.labels, ranked.kinds, ranked.decided, strict=True):
        row = frame[(frame.label == label) & (frame.kind == kind)]["step"].item()
        assert row == step or np.isnan(row) and np.isnan(step)
    assert len(found.top(3)) == 3


def test_when_gates_were_fixed_is_told_where_it_was_logged(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert profile.closing(run).fixed is None
    assert profile.closing(rated(run, 8)).fixed == 8


def test_tables_over_training_need_a_record(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.gates.truncate(-1)
    for table in (profile.budget, profile.closing, profile.strips):
        with pytest.raises(ValueError, match="no record of its gates"):
            table(run)


# -- ways to read gates ------------------------------------------------------------------------------------------------


def test_the_gap_is_the_stamp_with_an_interval_over_draws(tmp_path: Path) -> None:
    found = profile.gate_gap(stamped(make_run(tmp_path)))
    assert found.gates == ("sampled", "expected", "point", "hard") and found.used == "expected"
    np.testing.assert_allclose(found.above_sampled, [0, -0.01, -0.015, -0.02])
    assert np.isnan(found.low[1:]).all() and np.isnan(found.high[1:]).all()
    # 95 % of Student's t with 3 degrees of freedom lie within ±3.1824 (any table of it).
    np.testing.assert_allclose([found.low[0], found.high[0]], [0.52 - 3.1824 * 0.002, 0.52 + 3.1824 * 0.002], rtol=1e-6)


def test_one_draw_has_no_interval(tmp_path: Path) -> None:
    found = profile.gate_gap(stamped(make_run(tmp_path), draws=1))
    assert np.isnan(found.low).all() and np.isnan(found.high).all()


def test_without_a_stamp_there_is_no_gap(tmp_path: Path) -> None:
    with pytest.raises(NotMeasuredError, match="no convergence.json"):
        profile.gate_gap(make_run(tmp_path))


# -- strips ------------------------------------------------------------------------------------------------------------


def test_a_strip_is_the_history_on_its_side(tmp_path: Path) -> None:
    run = make_run(tmp_path, only={"layers": [0, 2]})
    (panels,) = profile.strips(run).rows
    for panel, kind in zip(panels, ("additive", "multiplicative"), strict=True):
        opens = run.gates.p_open(kind)[:, [0, 2]].reshape(13, 8)  # type: ignore[arg-type]
        np.testing.assert_allclose(panel.values, opens.T, rtol=1e-6)
        assert panel.labels[4, 7] == "L2H0"
        assert panel.x_ticks == ((0, "0"), (5, "5"), (10, "10"))
        assert panel.y_ticks == ((1.5, "0"), (5.5, "2"))


def test_large_strips_keep_the_number_of_open_gates(tmp_path: Path) -> None:
    run = make_run(tmp_path, layers=25, heads=26, kv_heads=13, steps=160, only={"layers": list(range(1, 25))})
    found = profile.strips(run)
    for panel, kind in zip(found.panels, ("additive", "multiplicative"), strict=True):
        assert panel.shape[0] <= profile.MOST_ROWS and panel.shape[1] == profile.MOST_COLUMNS
        sizes = [1 if "-" not in str(name) else _size(str(name)) for name in panel.labels[:, 0]]
        assert sum(sizes) == 24 * 26
        shown = np.unique(np.linspace(0, 160, profile.MOST_COLUMNS).round().astype(int))
        assert [text for _, text in panel.x_ticks] == ["0", "50", "100", "150"]
        np.testing.assert_allclose(
            np.interp([at for at, _ in panel.x_ticks], range(len(shown)), shown), [0, 50, 100, 150]
        )
        opens = np.nansum(run.gates.p_open(kind), axis=(1, 2))[shown]  # type: ignore[arg-type]
        np.testing.assert_allclose((panel.values * np.array(sizes)[:, None]).sum(0), opens, rtol=1e-4)
    assert "mean of up to 3 neighbouring heads" in found.notes[0] and "150 of 161 records" in found.notes[1]


def _size(name: str) -> int:
    """Of "L3H4-6": 3."""
    first, last = name.split("H")[1].split("-")
    return int(last) - int(first) + 1


# -- all ---------------------------------------------------------------------------------------------------------------

TABLES = [profile.layer_profile, profile.thresholds, profile.budget, profile.closing, profile.gate_gap]


@pytest.mark.parametrize("table", TABLES)
def test_tables_can_be_kept(tmp_path: Path, table: Any) -> None:
    found = table(stamped(make_run(tmp_path / "run")))
    file = tmp_path / "table.safetensors"
    write_table(found, file, {})
    assert same(read_table(type(found), file), found)


@pytest.mark.parametrize("table", [*TABLES[:4], profile.strips])
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


@pytest.mark.parametrize("table", [*TABLES[:4], profile.strips])
def test_tables_refuse_edits_without_gates_there(tmp_path: Path, table: Any) -> None:
    with pytest.raises(ValueError, match="no gates at heads"):
        table(make_run(tmp_path / "a", gates="none"))
    with pytest.raises(ValueError, match="acts at heads, not at mlp"):
        table(make_run(tmp_path / "b"), site="mlp")


@pytest.mark.parametrize("table", [profile.layer_profile, profile.budget])
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
    for table in (*TABLES, profile.strips):
        table(run)
    assert all(torch.equal(value, before[name]) for name, value in run.edit.tensors().items())
