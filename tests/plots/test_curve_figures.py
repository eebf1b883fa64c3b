"""Curves of both renderers go through the table's points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jola_interp import analysis, plots
from jola_interp.runs import Run
from tests.runs_by_hand import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("run"), moving=True, steps=60)


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
