"""Figures of usage hold the table's numbers: gates beside sizes, exact zeros in a lane of their own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import PathCollection

from jola_interp import selection
from jola_interp.analysis.effects import Effects, Gate
from jola_interp.analysis.tables import NotMeasuredError, save_table
from jola_interp.analysis.usage import FIRST, KINDS, OTHERS, WHOLE, Usage, _gate_values, _training
from jola_interp.plots import style
from jola_interp.plots import usage as figures
from jola_interp.plots.chart import Chart, Panel
from jola_interp.runs import Run, edit_digest
from tests.evidence_by_hand import question
from tests.runs_by_hand import make_run

FIGURES: tuple[Any, ...] = (figures.uses, figures.uses_by_layer, figures.effective_size)
RENDERERS: tuple[Any, ...] = ("plotly", "matplotlib")


def table_of(run: Run, seed: int = 0, scale: float = 0.1) -> Usage:
    """A Run's gates before vectors of random size; nothing of the model is needed."""
    draws, shape, part = np.random.default_rng(seed), run.edit.shape, run.edit.site("heads")
    log_alphas = run.log_alphas()
    mask = part.mask.numpy()
    sizes = {kind: scale * 10 ** draws.normal(0, 0.7, (2, 2, *mask.shape)) for kind in part.operations}
    return Usage(
        title="tiny on toy", task="toy", split="test", rows=2, tokens=(40, 2), rule=selection.DEFAULT_RULE,
        gates="shared" if "shared" in part.kinds else "separate", operations=tuple(part.operations),
        training=_training(run), status=selection.status(log_alphas).astype(np.int64), editable=mask,
        **_gate_values(run.edit, log_alphas),
        per_gate={kind: np.where(mask, size, np.nan) for kind, size in sizes.items()},
        layer_sums={kind: draws.uniform(0.1, 1, (2, len(mask))) for kind in (*part.operations, WHOLE)},
        z_norm=np.ones((2, *mask.shape)), stream=draws.uniform(1, 2, (2, len(mask))), d_head=shape.d_head,
        group=shape.heads // shape.kv_heads if shape.kv_heads < shape.heads else 0,
    )  # fmt: skip


def effects_of(run: Run, rows: int = 5, method: Any = "exact", kinds: Any = KINDS) -> Effects:
    draws = np.random.default_rng(1)
    gates = tuple(
        Gate("heads", kind, layer, unit, 0.5, True)
        for layer in range(run.edit.shape.layers)
        for unit in range(run.edit.shape.heads)
        for kind in kinds
    )
    return Effects(
        method, gates, draws.normal(0.01, 0.02, (len(gates), rows)), np.ones(rows), np.ones(len(gates), bool)
    )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path / "run", layers=4, heads=6, kv_heads=3)


@pytest.fixture
def table(run: Run) -> Usage:
    return table_of(run)


def points(panel: Panel) -> dict[str, tuple[float, float]]:
    """Label to place."""
    return {
        label: (float(x), float(y))
        for series in panel.series
        for label, x, y in zip(series.labels, series.x, series.y, strict=True)
    }


# -- a point per head --------------------------------------------------------------------------------------------------


def test_gates_stand_at_their_probabilities_and_sizes_at_what_is_written(table: Usage) -> None:
    gates, sizes = figures.uses_chart(table).panels
    found, written = points(gates), points(sizes)
    assert set(found) == set(written) == set(table.labels[table.editable])
    for (layer, head), label in np.ndenumerate(table.labels):
        expected = [table.p_open[kind][layer, head] for kind in KINDS]
        np.testing.assert_allclose(found[label], expected, rtol=1e-6)
        for place, kind in enumerate(KINDS):
            size = table.size(kind)[layer, head]
            if size > 0:
                assert written[label][place] == pytest.approx(size)


def test_exact_zeros_stand_in_a_lane_before_the_first_decade(table: Usage) -> None:
    panel = figures.uses_chart(table).panels[1]
    (lane, word), (first, _) = panel.x_ticks[:2]
    sizes = [table.size(kind) for kind in KINDS]
    smallest = min(size[size > 0].min() for size in sizes)
    assert word == "0" and lane < first <= smallest and panel.x_range is not None and panel.x_range[0] < lane
    written = points(panel)
    zeros = 0
    for place, size in enumerate(sizes):
        for at in zip(*np.nonzero(size == 0), strict=True):
            assert written[table.labels[at]][place] == pytest.approx(lane)
            zeros += 1
    assert zeros > 0  # the Run by hand has shut gates
    assert panel.x_log and panel.y_log and panel.x_range == panel.y_range
    still = int(((sizes[0] == 0) & (sizes[1] == 0)).sum())
    assert any(f"({still} heads of 24 write nothing)" in note for note in figures.uses_chart(table).notes)


@pytest.mark.parametrize("scale", [0.0, 1e-9, 1e6])
def test_any_size_has_a_place(run: Run, scale: float) -> None:
    panel = figures.uses_chart(table_of(run, scale=scale)).panels[1]
    assert panel.x_range is not None and 0 < panel.x_range[0] < panel.x_range[1]
    for x, y in points(panel).values():
        assert panel.x_range[0] < min(x, y) and max(x, y) < panel.x_range[1]
    assert len(panel.x_ticks) <= 8


def test_points_have_the_colours_and_numbers_of_their_status(table: Usage) -> None:
    for panel in figures.uses_chart(table).panels:
        names = [series.name for series in panel.series]
        assert names == [f"{name} · {count}" for name, count in table.counts().items() if count]
        for series in panel.series:
            status = series.name.split(" · ")[0]
            code = selection.STATUSES.index(status)
            assert series.colour == (style.STATUSES[code] if code else style.GREY)
            assert set(series.labels) == set(table.labels[table.editable & (table.status == code)])


def test_the_heads_that_write_most_are_named_in_every_panel(table: Usage, run: Run) -> None:
    chart = figures.uses_chart(table, effects_of(run))
    expected = {use.label for use in table.top(figures.NAMED)}
    assert len(chart.panels) == 3
    for panel in chart.panels:
        assert {series.labels[i] for series in panel.series for i in series.named} == expected


def test_the_rule_is_drawn_where_it_is_one_on_p_open(table: Usage) -> None:
    def rules(rule: str) -> list[float]:
        return [line.at for line in figures.uses_chart(dataclasses.replace(table, rule=rule)).panels[0].rules]

    assert rules("p_open>0.5") == [0.5, 0.5] and rules("p_open>0.9") == [0.9, 0.9]
    assert rules("expected>0.0881") == rules("top=3:p_open") == []


def test_effects_stand_at_what_is_lost(table: Usage, run: Run) -> None:
    effects = effects_of(run)
    panel = figures.uses_chart(table, effects).panels[2]
    lost = {(gate.label, gate.kind): value for gate, value in zip(effects.gates, effects.effect, strict=True)}
    for label, at in points(panel).items():
        np.testing.assert_allclose(at, [lost[label, kind] for kind in KINDS])
    hover = panel.series[0].hover["standard error, additive"]
    places = [i for i, gate in enumerate(effects.gates) if gate.kind == "additive"]
    by_label = {effects.gates[i].label: effects.se[i] for i in places}
    np.testing.assert_allclose(hover, [by_label[label] for label in panel.series[0].labels])
    assert "to first order" in figures.uses_chart(table, effects_of(run, method="gradient")).panels[2].title


def test_effects_that_do_not_fit_are_refused_or_left_out(table: Usage, run: Run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not of gates alone"):
        figures.uses_chart(table, effects_of(run, method="alone"))
    larger = make_run(tmp_path / "larger", layers=5, heads=6, kv_heads=3)
    with pytest.raises(ValueError, match="L4H0 is not among the table's 4 × 6 heads"):
        figures.uses_chart(table, effects_of(larger))
    some = figures.uses_chart(table, effects_of(run, kinds=("additive",)))
    assert len(some.panels) == 2 and "was not measured (part 'effects')" in some.notes[-1]


def test_a_runs_own_effects_are_taken(table: Usage, run: Run) -> None:
    about = {"edit": edit_digest(run.edit)}
    save_table(run, "usage", table, about)
    assert len(figures.uses(run, renderer="matplotlib").axes) == 2
    save_table(run, "effects", effects_of(run), about)
    assert len(figures.uses(run, renderer="matplotlib").axes) == 3
    assert len(figures.uses(table, effects_of(run), renderer="matplotlib").axes) == 3


# -- by layer ----------------------------------------------------------------------------------------------------------


def stacked(panel: Panel) -> dict[str, np.ndarray]:
    """Name to the height of its own bars; each begins where the one below ends."""
    found, foot = {}, np.zeros(len(panel.series[0].x))
    for series in panel.series:
        if series.look == "bars":
            np.testing.assert_allclose(series.low, foot)
            found[series.name], foot = series.y - series.low, series.y
    return found


def test_bars_are_the_layers_counts_and_sizes(table: Usage) -> None:
    left, right = figures.layers_chart(table).panels
    heads, sizes = stacked(left), stacked(right)
    for code, name in enumerate(selection.STATUSES[1:], start=1):
        expected = (table.editable & (table.status == code)).sum(1)
        np.testing.assert_array_equal(heads.get(name, np.zeros(4)), expected)
    shut = figures.layers_chart(dataclasses.replace(table, status=np.zeros_like(table.status))).panels[0]
    assert not np.concatenate(list(stacked(shut).values())).any()
    for kind in KINDS:
        np.testing.assert_allclose(sizes[kind], np.nansum(table.size(kind), axis=1))
    dots = right.series[-1]
    assert dots.look == "points" and np.array_equal(dots.y, table.layer_sums[WHOLE][OTHERS])
    assert "none" not in heads


def test_both_figures_of_layers_agree_on_colours(table: Usage) -> None:
    left, right = figures.layers_chart(table).panels
    colours = {series.name: series.colour for series in left.series}
    assert colours["additive"] == style.KINDS["additive"] and colours["multiplicative"] == style.KINDS["multiplicative"]
    for series in right.series[:-1]:
        assert series.colour == style.KINDS[series.name]


# -- maps --------------------------------------------------------------------------------------------------------------


def test_maps_are_gates_and_what_they_write_at_the_expected_gate(table: Usage) -> None:
    sheet = figures.size_sheet(table)
    assert sheet.names == KINDS and len(sheet.rows) == 2
    for kind, (gates, written) in zip(KINDS, sheet.rows, strict=True):
        assert np.array_equal(gates.values, table.p_open[kind], equal_nan=True)
        np.testing.assert_allclose(written.values, table.expected[kind] * table.per_gate[kind][1, OTHERS])
        np.testing.assert_allclose(
            written.hover["at first tokens, E[g]"], table.expected[kind] * table.per_gate[kind][1, FIRST]
        )
        for panel in (gates, written):
            assert panel.marked is not None
            low, high = table.p_open[kind] >= 0.05, table.p_open[kind] <= 0.95
            assert np.array_equal(panel.marked, low & high) and panel.marked.any()
            assert panel.group == 2


def test_sizes_of_both_kinds_have_one_scale_and_gates_theirs(table: Usage) -> None:
    rows = figures.size_sheet(table).rows
    sizes = [row[1] for row in rows]
    largest = max(panel.values.max() for panel in sizes)
    assert sizes[0].range == sizes[1].range == (largest / 1000, largest) and sizes[0].log and sizes[1].log
    assert all(row[0].range == (0.0, 1.0) and row[0].kind == "probability" for row in rows)
    assert sizes[0].unit == sizes[1].unit != ""


# -- all of them -------------------------------------------------------------------------------------------------------


def charts(table: Usage) -> list[Any]:
    return [figures.uses_chart(table), figures.layers_chart(table), figures.size_sheet(table)]


def test_notes_hold_what_misleads(table: Usage, run: Run) -> None:
    for found in charts(table):
        text = " ".join(found.notes)
        assert "An offset's head is not identified where other heads of the layer could host it" in text
        assert "Units decide" in text and "first tokens apart" in text
    save_table(run, "usage", table, {"edit": edit_digest(run.edit)})
    question(run, ["units"])
    known = figures._table(run)
    for found in charts(known):
        assert "is an artefact of units here" in " ".join(found.notes)


def test_what_was_not_measured_is_said(run: Run) -> None:
    for figure in FIGURES:
        with pytest.raises(NotMeasuredError, match="holds no table 'usage'"):
            figure(run)


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"operations": "add"},
        {"operations": "multiply"},
        {"gates": "shared"},
        {"only": {"heads": ["L0H1"]}},
        {"layers": 1, "heads": 1, "kv_heads": 1},
    ],
    ids=str,
)
def test_every_kind_of_edit_is_drawn(tmp_path: Path, renderer: Any, switches: dict[str, Any]) -> None:
    table = table_of(make_run(tmp_path, **switches))
    for figure in FIGURES:
        assert figure(table, renderer=renderer) is not None


@pytest.mark.parametrize("renderer", RENDERERS)
def test_nothing_at_all_is_drawn(table: Usage, renderer: Any) -> None:
    """Sizes unknown, no gate open."""
    nothing = {kind: np.full_like(value, np.nan) for kind, value in table.per_gate.items()}
    shut = {kind: np.zeros_like(value) for kind, value in table.gate.items()}
    empty = np.zeros_like(table.status)
    for changes in ({"per_gate": nothing}, {"gate": shut, "status": empty}):
        for figure in FIGURES:
            assert figure(dataclasses.replace(table, **changes), renderer=renderer) is not None


def test_both_renderers_draw_the_same_points(table: Usage) -> None:
    chart: Chart = figures.uses_chart(table)
    screen, paper = figures.uses(table), figures.uses(table, renderer="matplotlib")
    for place, panel in enumerate(chart.panels):
        expected = sorted(points(panel).values())
        axis = "x" if place == 0 else f"x{place + 1}"
        traces = [one for one in screen.data if one.xaxis == axis and one.mode == "markers" and one.x is not None]
        drawn = sorted((float(x), float(y)) for one in traces for x, y in zip(one.x, one.y, strict=True))
        np.testing.assert_allclose(drawn, expected)
        scattered = [one.get_offsets() for one in paper.axes[place].collections if isinstance(one, PathCollection)]
        marked = [line.get_xydata() for line in paper.axes[place].lines if line.get_linestyle() == "None"]
        printed = np.concatenate([np.empty((0, 2)), *scattered, *marked])
        np.testing.assert_allclose(sorted(map(tuple, printed.tolist())), expected)


def test_renderer_and_width_are_checked(table: Usage) -> None:
    for figure in FIGURES:
        with pytest.raises(ValueError, match="renderer must be plotly or matplotlib; got 'bokeh'"):
            figure(table, renderer="bokeh")
        with pytest.raises(ValueError, match="pass renderer='matplotlib'"):
            figure(table, width=3.25)


def test_printed_figures_have_their_width_and_keep_their_text_inside(table: Usage) -> None:
    for figure in FIGURES:
        for width in style.WIDTHS:
            drawn = figure(table, renderer="matplotlib", width=width)
            box = drawn.get_tightbbox()
            assert drawn.get_figwidth() == width and box.x0 > -0.01 and box.x1 < width + 0.01
