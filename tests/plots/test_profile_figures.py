"""Counts of gates as figures: what is drawn is the table, and both renderers draw it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jola_interp import analysis as tables
from jola_interp import plots
from jola_interp.plots import profile as figures
from jola_interp.plots.chart import Chart, Series
from jola_interp.runs import Run
from tests.runs_by_hand import make_run, stamped

NAMES = ["layer_profile", "thresholds", "budget", "closing", "gate_gap", "strip"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return stamped(make_run(tmp_path_factory.mktemp("run"), moving=True, steps=60))


def series_of(chart: Chart) -> dict[str, Series]:
    return {series.name: series for panel in chart.panels for series in panel.series}


def test_bars_stand_on_each_other_and_end_at_the_selected_heads(run: Run) -> None:
    table = tables.layer_profile(run)
    (statuses,), _ = figures.chart_of_layers(table).rows
    foot = np.zeros(3)
    for series in (one for one in statuses.series if one.look == "bars"):
        assert np.array_equal(series.foot, foot)
        np.testing.assert_array_equal(series.hover["heads"], series.y - foot)
        assert np.array_equal(series.hover["heads"], table.counts[series.name.split(" · ")[0]])
        foot = series.y
    assert np.array_equal(foot, table.selected) and table.selected.any()


def test_the_random_band_is_as_wide_as_the_layers_and_behind_the_bars(run: Run) -> None:
    table = tables.layer_profile(run)
    band, *others = figures.chart_of_layers(table).panels[0].series
    assert band.look == "band" and others[0].look == "bars"
    assert list(band.x) == [-0.5, 0.5, 0.5, 1.5, 1.5, 2.5]
    assert band.low is not None and band.high is not None
    assert np.array_equal(band.low[::2], table.random_low) and np.array_equal(band.high[1::2], table.random_high)
    mean = next(series for series in others if series.name.endswith("mean"))
    assert np.array_equal(mean.y[::2], table.random_mean)


def test_expected_and_counted_gates_stand_beside_the_editable_heads(run: Run) -> None:
    table, drawn = tables.layer_profile(run), series_of(figures.chart_of_layers(tables.layer_profile(run)))
    for kind in ("additive", "multiplicative"):
        assert np.array_equal(drawn[f"Σ P(open), {kind}"].y, table.expected[kind])
        assert np.array_equal(drawn[f"p_open>0.5, {kind}"].y, table.opened[kind])
    assert np.array_equal(drawn["editable"].y, table.editable)


def test_marks_lie_on_the_line_of_heads_and_rules_of_one_place_share_one(run: Run) -> None:
    table = tables.thresholds(run)
    chart = figures.chart_of_thresholds(table)
    marks = [series for series in chart.panels[0].series if series.look == "points"]
    assert [mark.name.split(":")[0] for mark in marks] == ["p_open>0.5", "expected>0.0881, point>0"]
    line = series_of(chart)["either, by head"]
    assert np.array_equal(line.y, table.counts["either"])
    for mark in marks:
        row = int(np.searchsorted(line.x, mark.x[0] + 1e-6)) - 1  # the line falls from here to the next threshold
        assert line.y[row + 1] <= mark.y[0] <= line.y[row]
    assert [rule.at for rule in chart.panels[0].rules] == [mark.threshold for mark in table.marks]


def test_an_edit_with_one_kind_of_gate_has_no_line_for_either(tmp_path: Path) -> None:
    shared = make_run(tmp_path, gates="shared")
    for chart in (
        figures.chart_of_thresholds(tables.thresholds(shared)),
        figures.chart_of_budget(tables.budget(shared)),
    ):
        assert "shared" in series_of(chart) and not any("either" in name for name in series_of(chart))


def test_the_budget_draws_counts_weights_and_loss(run: Run) -> None:
    table = tables.budget(run)
    chart = figures.chart_of_budget(table)
    drawn = series_of(chart)
    for kind, name in (("additive", "additive"), ("either", "either, by head")):
        assert np.array_equal(drawn[name].y, table.expected[kind]) and drawn[name].dash == "solid"
        assert np.array_equal(drawn[f"{name}, p_open>0.5"].y, table.opened[kind])
        assert drawn[f"{name}, p_open>0.5"].dash == "dash"
    assert np.array_equal(drawn["λ, multiplicative"].y, table.weights["multiplicative"], equal_nan=True)
    assert np.array_equal(drawn["train CE"].y, table.ce, equal_nan=True)
    assert np.array_equal(drawn["train CE, mean of 3"].y, table.smooth, equal_nan=True)
    assert all(panel.rules[0].at == table.kept == 40 for panel in chart.panels)
    assert any("step 40, which the Run keeps" in note for note in chart.notes)


def test_closing_draws_every_outcome_of_every_kind(run: Run) -> None:
    table = tables.closing(run)
    drawn = series_of(figures.chart_of_closing(table))
    over_time = table.over_time()
    assert over_time.keys() < drawn.keys() and len(over_time) == 4
    for name, counts in over_time.items():
        assert np.array_equal(drawn[name].y, counts)
        assert drawn[name].dash == ("solid" if "shut" in name else "dash")


def test_the_gap_has_an_interval_where_gates_are_drawn_and_only_there(run: Run) -> None:
    table = tables.gate_gap(run)
    panel = figures.chart_of_gap(table).panels[0]
    sampled, others = panel.series
    assert sampled.arms is not None and others.arms is None
    assert (sampled.low, sampled.high) == (table.low[:1], table.high[:1])
    assert list(others.x) == [0.51, 0.505, 0.5] and others.labels == ("expected", "point", "hard")
    assert [rule.at for rule in panel.rules] == pytest.approx([0.51, 0.53])
    assert [text for _, text in panel.y_ticks if text.endswith("(used)")] == ["E[g], 0 below .0881 (used)"]


@pytest.mark.parametrize("name", ["layer_profile", "thresholds", "budget", "closing", "gate_gap"])
def test_notes_are_the_sentences_of_the_table(run: Run, name: str) -> None:
    table = getattr(tables, name)(run)
    charts = {
        "layer_profile": figures.chart_of_layers, "thresholds": figures.chart_of_thresholds,
        "budget": figures.chart_of_budget, "closing": figures.chart_of_closing, "gate_gap": figures.chart_of_gap,
    }  # fmt: skip
    chart = charts[name](table)  # type: ignore[operator]
    assert chart.notes[: len(table.sentences())] == table.sentences()
    assert chart.title.startswith("tiny on toy: ")


@pytest.mark.parametrize("name", NAMES)
def test_a_run_and_its_table_give_the_same_figure(run: Run, name: str) -> None:
    table = getattr(tables, "strips" if name == "strip" else name)(run)
    draw = getattr(figures, name)
    assert draw(run).to_json() == draw(table).to_json()


@pytest.mark.parametrize("renderer", ["plotly", "matplotlib"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(1, 1, 1, 3), (3, 4, 2, 12)])
def test_figures_of_any_size_are_drawn(tmp_path: Path, name: str, renderer: Any, size: tuple[int, ...]) -> None:
    layers, heads, kv_heads, steps = size
    run = stamped(make_run(tmp_path, layers=layers, heads=heads, kv_heads=kv_heads, steps=steps))
    figure = getattr(figures, name)(run, renderer=renderer)
    suffix = "html" if renderer == "plotly" else "svg"
    assert plots.save(figure, tmp_path / f"figure.{suffix}").stat().st_size > 1000


@pytest.mark.parametrize("name", NAMES)
def test_figures_refuse_renderers_and_widths_before_any_work(name: str) -> None:
    draw = getattr(figures, name)
    with pytest.raises(ValueError, match="renderer must be plotly or matplotlib; got 'ascii'"):
        draw(None, renderer="ascii")
    with pytest.raises(ValueError, match="pass renderer='matplotlib' with it"):
        draw(None, width=3.25)


def test_a_run_that_logged_nothing_is_drawn(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.gates.scalars = {}
    for name in ("budget", "closing"):
        table = getattr(tables, name)(run)
        assert np.isnan(table.ce).all()
        getattr(figures, name)(table), getattr(figures, name)(table, renderer="matplotlib", width=3.25)
