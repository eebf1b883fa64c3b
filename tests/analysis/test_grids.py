"""Tables of gates: what they hold, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jola_interp import analysis, selection
from jola_interp.analysis import GridMap, Sheet
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


def test_hover_columns_are_the_vectors_norms(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    hover = analysis.gate_maps(run)["additive"].hover
    assert list(hover) == ["‖a‖", "‖m‖"]
    expected = run.edit.site("heads").vectors["multiplicative"].norm(dim=-1)
    np.testing.assert_allclose(hover["‖m‖"], expected.detach(), rtol=1e-6)


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
    assert {"label", "layer", "unit", "marked", "‖a‖", "‖m‖"} <= set(table)


def test_grids_refuse_what_does_not_fit() -> None:
    values = np.zeros((2, 3))
    for changes, wrong in (
        ({"mask": np.ones((3, 2), bool)}, "mask must have the shape"),
        ({"hover": {"‖a‖": np.zeros(2)}}, "‖a‖ must have the shape"),
        ({"kind": "taste"}, "kind must be one of"),
        ({"range": (1.0, 1.0)}, "range must be"),
    ):
        with pytest.raises(ValueError, match=wrong):
            grid(values, **changes)
    with pytest.raises(ValueError, match="not empty"):
        grid(np.zeros((0, 3)))
    with pytest.raises(ValueError, match="equally long"):
        Sheet(((grid(values),), (grid(values), grid(values))), "t")
    with pytest.raises(ValueError, match="headings must have 1 entries"):
        Sheet(((grid(values),),), "t", headings=("a", "b"))
