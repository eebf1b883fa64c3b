"""Tables of gates: what they hold, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from jola_interp import analysis, selection
from jola_interp.analysis import GridMap, Sheet
from jola_interp.analysis.gate_maps import compare_heads
from jola_interp.analysis.grids import reach
from jola_interp.edits.base import Context
from jola_interp.evidence.overlap import overlap
from tests.runs_by_hand import make_run


def grid(values: np.ndarray, **changes: object) -> GridMap:
    given = {
        "title": "a title",
        "labels": np.full(values.shape, "x", dtype=object),
        "mask": np.isfinite(values),
        "range": (0.0, 1.0),
        "kind": "probability",
    }
    return GridMap(values, **{**given, **changes})  # type: ignore[arg-type]


def test_gate_maps_are_p_open_of_the_kept_edit(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for kind, log_alpha in run.log_alphas().items():
        found = analysis.gate_maps(run)[kind]
        assert np.array_equal(found.values, selection.measure("p_open", log_alpha))
        assert found.range == (0.0, 1.0) and found.kind == "probability"
        assert found.labels[2, 3] == "L2H3"


def test_gate_maps_at_a_step_are_that_records(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for kind, found in analysis.gate_maps(run, step=5).items():
        np.testing.assert_allclose(found.values, run.gates.p_open(kind)[5], rtol=1e-6)  # type: ignore[arg-type]
        assert not found.hover  # the history knows no vectors


def test_hover_columns_are_the_norms_of_what_acts(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    hover = analysis.gate_maps(run)["additive"].hover
    assert list(hover) == ["‖g_a a‖", "‖g_m m‖"]
    prepared = run.edit.prepare(Context(), torch.float32)["heads"]
    for name, given in (
        ("‖g_m m‖", [scale - 1 for scale, _ in prepared]),
        ("‖g_a a‖", [shift for _, shift in prepared]),
    ):
        expected = torch.stack(given).detach().norm(dim=-1)
        np.testing.assert_allclose(hover[name], expected, rtol=1e-3)  # 1 + g·m − 1 is rounded


def test_norms_do_not_change_when_gate_and_vector_trade_a_factor(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    before, part = analysis.gate_maps(run)["additive"].hover, run.edit.site("heads")
    was = part.gate_values(run.edit.inference, {})["additive"]
    with torch.no_grad():
        part.log_alpha["additive"].fill_(9.0)
        now = part.gate_values(run.edit.inference, {})["additive"]
        part.vectors["additive"].mul_((was / now)[..., None])
    np.testing.assert_allclose(analysis.gate_maps(run)["additive"].hover["‖g_a a‖"], before["‖g_a a‖"], rtol=1e-5)


def test_units_that_are_not_editable_have_no_value(tmp_path: Path) -> None:
    run = make_run(tmp_path, only={"layers": [1]})
    for panel in analysis.head_maps(run).panels:
        assert np.isnan(panel.values[[0, 2]]).all() and np.isfinite(panel.values[1]).all()
        assert not panel.hatched[0].size or set(panel.hatched[0]) == {1}
        assert set(panel.to_frame()["layer"]) == {1}


@pytest.mark.parametrize(
    ("switches", "panels", "statuses"),
    [
        ({}, ["additive", "multiplicative", "status"], ["none", "additive", "multiplicative", "both"]),
        ({"operations": "add"}, ["additive", "status"], ["none", "additive"]),
        ({"operations": "multiply"}, ["multiplicative", "status"], ["none", "multiplicative"]),
        ({"gates": "shared"}, ["shared", "status"], ["none", "both"]),
    ],
)
def test_panels_are_the_kinds_of_gates_that_there_are(
    tmp_path: Path, switches: dict[str, str], panels: list[str], statuses: list[str]
) -> None:
    sheet = analysis.head_maps(make_run(tmp_path, **switches))
    assert [panel.title for panel in sheet.panels] == panels
    assert list(sheet.panels[-1].counts()) == statuses


def test_statuses_add_up_and_agree_with_the_selection(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for rule in ("p_open>0.5", "expected>0.0881", "top=3:p_open"):
        found = analysis.status_map(run, rule)
        assert found.counts() == run.selected(rule).counts()
        labels = found.labels[found.values > 0]
        assert set(labels) == set(run.selected(rule).labels)


def test_marked_gates_are_those_neither_open_nor_shut(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    maps = analysis.gate_maps(run)
    for found in maps.values():
        assert found.marked is not None
        assert np.array_equal(found.marked, (found.values >= 0.05) & (found.values <= 0.95))
    either = np.any([found.marked for found in maps.values()], axis=0)
    assert np.array_equal(analysis.status_map(run).marked, either)


def test_an_edit_without_gates_is_refused_clearly(tmp_path: Path) -> None:
    run = make_run(tmp_path, gates="none")
    for draw in (analysis.gate_maps, analysis.status_map, analysis.head_maps, analysis.snapshots):
        with pytest.raises(ValueError, match="no gates at heads"):
            draw(run)


def test_sites_are_checked(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with pytest.raises(ValueError, match="acts at heads, not at mlp"):
        analysis.gate_maps(run, site="mlp")
    with pytest.raises(ValueError, match="one of heads, mlp, attention; got 'tail'"):
        analysis.gate_maps(run, site="tail")  # type: ignore[arg-type]


def test_mlp_units_are_drawn_as_one_column(tmp_path: Path) -> None:
    run = make_run(tmp_path, sites=("heads", "mlp"))
    sheet = analysis.head_maps(run, site="mlp")
    assert all(panel.shape == (3, 1) and panel.x_label == "MLP" and panel.group == 0 for panel in sheet.panels)
    assert sheet.panels[0].labels[1, 0] == "L1MLP"


def test_heads_are_grouped_only_where_they_share_keys(tmp_path: Path) -> None:
    assert analysis.gate_maps(make_run(tmp_path / "a", heads=4, kv_heads=2))["additive"].group == 2
    assert analysis.gate_maps(make_run(tmp_path / "b", heads=4, kv_heads=4))["additive"].group == 0


def test_snapshots_are_five_records_from_first_to_last(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=12)
    sheet = analysis.snapshots(run)
    assert sheet.headings == ("step 0", "step 3", "step 6", "step 9", "step 12")
    assert sheet.names == ("additive", "multiplicative")
    for row, kind in zip(sheet.rows, sheet.names, strict=True):
        for panel, step in zip(row, (0, 3, 6, 9, 12), strict=True):
            expected = run.gates.p_open(kind)[step]  # type: ignore[arg-type]
            np.testing.assert_allclose(panel.values, expected, rtol=1e-6)


def test_snapshots_at_given_steps_come_once_and_in_order(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=12)
    assert analysis.snapshots(run, [7, 2, 7]).headings == ("step 2", "step 7")
    for steps, wrong in (([13], r"\[13\]"), ([-1, 4], r"\[-1\]"), ([], "at least one")):
        with pytest.raises(ValueError, match=wrong):
            analysis.snapshots(run, steps)


def test_few_records_give_few_snapshots(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=3)
    run.gates.truncate(1)
    assert analysis.snapshots(run).headings == ("step 0", "step 1")


def test_tables_hold_what_maps_hold(tmp_path: Path) -> None:
    sheet = analysis.head_maps(make_run(tmp_path))
    table = sheet.to_frame()
    assert len(table) == 3 * 12
    additive = table[table["panel"] == "additive"]
    assert np.array_equal(additive["value"].to_numpy(float).reshape(3, 4), sheet.panels[0].values)
    assert set(table[table["panel"] == "status"]["value"]) <= {"none", "additive", "multiplicative", "both"}
    assert {"label", "layer", "unit", "marked", "‖g_a a‖", "‖g_m m‖"} <= set(table)


def test_grids_refuse_what_does_not_fit() -> None:
    values = np.zeros((2, 3))
    for changes, wrong in (
        ({"mask": np.ones((3, 2), bool)}, "mask must have the shape"),
        ({"hover": {"‖a‖": np.zeros(2)}}, "‖a‖ must have the shape"),
        ({"kind": "taste"}, "kind must be one of"),
        ({"range": (1.0, 1.0)}, "range must be"),
        ({"kind": "signed"}, "0 within it"),
        ({"kind": "signed", "range": (-1.0, 0.0)}, "0 within it"),
        ({"log": True, "range": (0.1, 1.0)}, "log needs kind 'magnitude'"),
        ({"log": True, "kind": "magnitude"}, "range above 0"),
    ):
        with pytest.raises(ValueError, match=wrong):
            grid(values, **changes)
    with pytest.raises(ValueError, match="not empty"):
        grid(np.zeros((0, 3)))
    with pytest.raises(ValueError, match="equally long"):
        Sheet(((grid(values),), (grid(values), grid(values))), "t")
    with pytest.raises(ValueError, match="headings must have 1 entries"):
        Sheet(((grid(values),),), "t", headings=("a", "b"))


def test_reach_holds_all_values_and_suits_its_kind() -> None:
    values, more = np.array([[0.5, np.nan], [0.0, 3.0]]), np.array([-4.0, 1.0])
    assert reach("probability", values) == (0.0, 1.0)
    assert reach("magnitude", values) == (0.0, 3.0)
    assert reach("signed", values, more) == (-4.0, 4.0)
    low, high = reach("magnitude", values, log=True)
    assert 0 < low <= 0.5 and high == 3.0
    nothing = np.full((2, 2), np.nan)
    for kind, log in (("magnitude", False), ("magnitude", True), ("signed", False)):
        for empty in (nothing, np.zeros((2, 2))):
            ends = reach(kind, empty, log=log)  # type: ignore[arg-type]
            grid(nothing, kind=kind, range=ends, log=log)  # a range that fits
    assert reach("status") == (0.0, 3.0)


def test_signed_colours_reach_equally_far_to_both_sides() -> None:
    assert grid(np.zeros((1, 1)), kind="signed", range=(-0.5, 2.0)).limits == (-2.0, 2.0)
    assert grid(np.zeros((1, 1)), kind="magnitude", range=(0.5, 2.0)).limits == (0.5, 2.0)


def test_margins_are_means_of_values_and_counts_of_codes() -> None:
    values = np.array([[0.2, 0.4, np.nan], [np.nan, np.nan, np.nan]])
    (means,) = grid(values).margin()
    assert means[0] == pytest.approx(0.3) and np.isnan(means[1])
    codes = np.array([[0.0, 1.0, 1.0], [3.0, np.nan, 0.0]])
    counted = grid(codes, kind="status", range=(0.0, 3.0), categories=(0, 1, 2, 3)).margin()
    assert counted.tolist() == [[2, 0], [0, 0], [0, 1]]  # additive, multiplicative, both


def test_blank_is_what_has_no_place_on_the_scale() -> None:
    values = np.array([[0.0, np.nan, 2.0]])
    assert grid(values, kind="magnitude").blank.tolist() == [[False, True, False]]
    logarithmic = grid(values, kind="magnitude", range=(0.1, 2.0), log=True)
    assert logarithmic.blank.tolist() == [[True, True, False]]


def test_codes_have_the_words_they_are_given() -> None:
    words = ("neither", "A alone", "B alone", "both Runs")
    found = grid(np.array([[0.0, 3.0, 3.0, np.nan]]), kind="status", range=(0.0, 3.0), categories=(0, 3), words=words)
    assert found.counts() == {"neither": 1, "both Runs": 2}
    assert found.names().tolist() == [["neither", "both Runs", "both Runs", ""]]


def test_a_comparison_holds_both_runs_and_their_difference(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b", best_epoch=2)
    sheet = compare_heads(first, second)
    (a, *_), (b, *_), (difference, *_, chosen) = sheet.rows
    assert difference.kind == "signed" and difference.range == (-1.0, 1.0) and np.any(difference.values)
    np.testing.assert_allclose(difference.values, b.values - a.values)
    for run, code in ((first, 1), (second, 2)):
        by_code = chosen.labels[np.isin(chosen.values, [code, 3])]
        assert set(by_code) == set(run.selection().labels)
    turned = compare_heads(second, first).rows[2][0]
    np.testing.assert_allclose(turned.values, -difference.values)


def test_a_comparison_with_itself_has_no_difference(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    sheet = compare_heads(run, run)
    for panel in sheet.rows[2][:-1]:
        assert not panel.values.any()
    counts = sheet.rows[2][-1].counts()
    assert counts["A alone"] == counts["B alone"] == 0
    assert "Jaccard 1.00" in " ".join(sheet.notes)


def test_overlap_stands_beside_chance_in_the_notes(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "a", layers=6), make_run(tmp_path / "b", layers=6, best_epoch=2)
    rule = "p_open>0.9"
    expected = overlap(first.selection(rule).units, second.selection(rule).units, np.ones((6, 4), bool))
    notes = " ".join(compare_heads(first, second, rule).notes)
    assert f"Jaccard {expected.jaccard:.2f}; " in notes and f": {expected.chance:.2f} (p = {expected.p:.2g})" in notes
    assert "no overlap to measure" in " ".join(compare_heads(first, second, "p_open>1").notes)


def test_one_unit_a_layer_has_no_chance_value(tmp_path: Path) -> None:
    run = make_run(tmp_path, sites=("heads", "mlp"))
    notes = " ".join(compare_heads(run, run, site="mlp").notes)
    assert "Jaccard" in notes and "random sets" not in notes


def test_only_heads_that_both_may_edit_are_compared(tmp_path: Path) -> None:
    some, all_of_them = make_run(tmp_path / "a", only={"layers": [1]}), make_run(tmp_path / "b")
    sheet = compare_heads(some, all_of_them)
    for panel in sheet.rows[2]:
        assert np.isnan(panel.values[[0, 2]]).all() and np.isfinite(panel.values[1]).all()
    assert "of 4 heads that both may edit" in " ".join(sheet.notes)


def test_kinds_of_gates_that_one_run_lacks_are_named(tmp_path: Path) -> None:
    both, additive = make_run(tmp_path / "a"), make_run(tmp_path / "b", operations="add")
    sheet = compare_heads(both, additive)
    assert [panel.title for panel in sheet.rows[0]] == ["additive", "status"]
    assert "multiplicative (A)" in sheet.notes[-1]
    shared = make_run(tmp_path / "c", gates="shared")
    with pytest.raises(ValueError, match=r"run_a has \(additive, multiplicative\); got shared"):
        compare_heads(both, shared)


def test_runs_of_other_shapes_are_not_compared(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b", layers=2)
    with pytest.raises(ValueError, match="layers=3.*layers=2"):
        compare_heads(first, second)
    with pytest.raises(ValueError, match="no gates at heads"):
        compare_heads(first, make_run(tmp_path / "c", gates="none"))


def test_a_map_of_attention_outputs_names_its_axis(tmp_path: Path) -> None:
    run = make_run(tmp_path, sites=("heads", "attention"))
    found = analysis.gate_maps(run, site="attention")["additive"]
    assert found.x_label == "attention" and found.labels[1, 0] == "L1ATTN"
