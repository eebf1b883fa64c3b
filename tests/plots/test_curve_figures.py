"""Curves of both renderers go through the table's points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jola_interp import _files, analysis, plots
from jola_interp.runs import Run
from tests.runs_by_hand import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("run"), moving=True, steps=60)


@pytest.fixture(scope="module")
def rated(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A Run that logged the learning rate of its gates."""
    folder = make_run(tmp_path_factory.mktemp("rated"), steps=60).path
    rows = _files.read_jsonl(folder / "metrics.jsonl")
    _files.write_jsonl(folder / "metrics.jsonl", [row | ({"gate_lr": 0.05} if "ce" in row else {}) for row in rows])
    return Run.load(folder)


def traces(figure: Any) -> dict[str, Any]:
    return {trace.name: trace for trace in figure.data}


def lines(figure: Any) -> dict[str, Any]:
    """By label; the labels that matplotlib makes up itself are left out."""
    found = [line for axes in figure.axes for line in axes.lines]
    return {line.get_label(): line for line in found if not str(line.get_label()).startswith("_")}


def test_both_renderers_draw_the_same_losses(run: Run) -> None:
    screen, paper = traces(plots.loss(run)), lines(plots.loss(run, renderer="matplotlib"))
    assert screen.keys() == paper.keys()
    for name, trace in screen.items():
        assert np.array_equal(trace.x, paper[name].get_xdata()) and np.array_equal(trace.y, paper[name].get_ydata())
    table = analysis.losses(run)
    assert np.array_equal(screen["train CE, each step"].y, table.ce)
    assert np.array_equal(screen["validation CE"].y, table.validation_ce)
    assert np.array_equal(screen["penalty (weighted)"].y, table.penalty)
    assert np.array_equal(screen["Σ P(open), additive"].y, table.opens["additive"])
    assert np.array_equal(screen["λ, multiplicative"].y, table.weights["multiplicative"])


def test_the_best_epoch_is_marked(run: Run) -> None:
    table, best = analysis.losses(run), traces(plots.loss(run))["best epoch (kept)"]
    assert table.best is not None
    assert (list(best.x), list(best.y)) == ([40], [table.validation_ce[table.best]])
    assert {shape.x0 for shape in plots.loss(run).layout.shapes} == {40}


def test_lambda_has_a_panel_only_where_it_moves(run: Run, tmp_path: Path) -> None:
    still = make_run(tmp_path)
    assert len(plots.loss(run, renderer="matplotlib").axes) == 3
    assert len(plots.loss(still, renderer="matplotlib").axes) == 2
    assert not any(name.startswith("λ") for name in traces(plots.loss(still)))


def test_an_edit_without_gates_has_one_panel(tmp_path: Path) -> None:
    run = make_run(tmp_path, gates="none")
    assert set(traces(plots.loss(run))) == {"train CE", "validation CE", "best epoch (kept)"}
    assert len(plots.loss(run, renderer="matplotlib", width=3.25).axes) == 1


def test_every_gate_is_a_grey_line_and_the_top_ones_are_named(run: Run) -> None:
    screen, paper = plots.gate_trajectories(run, top=2), plots.gate_trajectories(run, top=2, renderer="matplotlib")
    for index, kind in enumerate(("additive", "multiplicative")):
        table = analysis.trajectories(run, kind, top=2)  # type: ignore[arg-type]
        grey = traces(screen)[f"{kind} gates"].y.reshape(12, -1)
        assert np.isnan(grey[:, -1]).all() and np.array_equal(grey[:, :-1], table.values.T)
        segments = paper.axes[index].collections[0].get_segments()
        assert np.array_equal(np.stack(segments)[..., 1].astype(np.float32), table.values.T)
        for unit in table.top:
            name = table.labels[unit]
            axis = {"additive": "x", "multiplicative": "x2"}[kind]
            trace = next(t for t in screen.data if t.name == name and t.xaxis == axis)
            assert np.array_equal(trace.y, table.values[:, unit])
            line = next(line for line in paper.axes[index].lines if line.get_label() == name)
            assert np.array_equal(line.get_ydata(), table.values[:, unit])
            assert name in {text.get_text() for text in paper.axes[index].texts}


def test_both_renderers_draw_the_cone_of_the_table(rated: Run) -> None:
    screen, paper = plots.gate_trajectories(rated), plots.gate_trajectories(rated, renderer="matplotlib")
    for index, kind in enumerate(("additive", "multiplicative")):
        table = analysis.trajectories(rated, kind)  # type: ignore[arg-type]
        assert table.lowest is not None and table.highest is not None
        band = traces(screen)[f"within reach, {kind}"]
        assert np.array_equal(band.x, [*table.steps, *table.steps[::-1]])
        assert np.array_equal(band.y, [*table.lowest, *table.highest[::-1]])
        drawn = paper.axes[index].collections[-1].get_paths()[0].vertices
        corners = {(step, round(float(value), 5)) for step, value in zip(band.x, band.y, strict=True)}
        assert corners == {(step, round(float(value), 5)) for step, value in drawn}


def test_the_upper_axis_reads_the_sum_of_the_learning_rate_at_the_steps_below(rated: Run) -> None:
    screen, paper = plots.gate_trajectories(rated), plots.gate_trajectories(rated, renderer="matplotlib")
    upper = screen.layout.xaxis3
    assert (upper.overlaying, upper.side, upper.title.text) == ("x", "top", "Σ gate learning rate")
    assert list(upper.ticktext) == [f"{0.05 * step:.3g}" for step in upper.tickvals] and len(upper.tickvals) > 2
    assert list(upper.range) == list(screen.layout.xaxis.range)
    (printed,) = paper.axes[0].child_axes
    assert [text.get_text() for text in printed.get_xticklabels()] == list(upper.ticktext)
    assert list(printed.get_xticks()) == list(upper.tickvals)


def test_without_a_logged_learning_rate_there_is_neither_cone_nor_upper_axis(run: Run) -> None:
    screen, paper = plots.gate_trajectories(run), plots.gate_trajectories(run, renderer="matplotlib")
    assert not any("reach" in str(name) for name in traces(screen)) and "xaxis3" not in screen.layout
    assert all(not axes.child_axes and len(axes.collections) == 1 for axes in paper.axes)


def test_probabilities_run_from_zero_to_one(run: Run) -> None:
    screen, paper = plots.gate_trajectories(run), plots.gate_trajectories(run, renderer="matplotlib")
    assert list(screen.layout.yaxis.range) == list(screen.layout.yaxis2.range) == [-0.02, 1.02]
    assert all(axes.get_ylim() == (-0.02, 1.02) for axes in paper.axes)


@pytest.mark.parametrize("renderer", ["plotly", "matplotlib"])
@pytest.mark.parametrize("size", [(1, 1, 1, 3), (2, 2, 1, 3)])
def test_the_smallest_runs_are_drawn(tmp_path: Path, renderer: Any, size: tuple[int, int, int, int]) -> None:
    layers, heads, kv_heads, steps = size
    run = make_run(tmp_path, layers=layers, heads=heads, kv_heads=kv_heads, steps=steps)
    figures = [plots.gate_trajectories(run, top=0, renderer=renderer)]
    run.gates.truncate(0)
    figures += [plots.gate_trajectories(run, renderer=renderer), plots.loss(run, renderer=renderer)]
    suffix = "html" if renderer == "plotly" else "svg"
    for place, figure in enumerate(figures):
        assert plots.save(figure, tmp_path / f"{place}.{suffix}").stat().st_size > 1000


def test_a_column_stacks_panels_that_a_page_sets_side_by_side(run: Run) -> None:
    page, column = (plots.gate_trajectories(run, renderer="matplotlib", width=width) for width in (6.75, 3.25))
    assert page.axes[0].get_position().y0 == page.axes[1].get_position().y0
    assert column.axes[0].get_position().x0 == column.axes[1].get_position().x0
    assert (page.get_figwidth(), column.get_figwidth()) == (6.75, 3.25)
