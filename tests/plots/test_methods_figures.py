"""Figures of methods: sorted, on the side of the zero where they belong, and drawn by both renderers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jola_interp import plots
from jola_interp.analysis.methods_table import MethodsTable, compare_methods, head_curves
from jola_interp.plots.chart import Panel, Series
from jola_interp.plots.methods import heads_gain, heads_gain_chart, methods, methods_chart
from jola_interp.runs import Run
from tests.analysis.test_methods_table import PAIRS, finished, head_runs, losses, predictions, runs_of


@pytest.fixture
def table(tmp_path: Path) -> MethodsTable:
    """JoLA, one that is better, one that is worse, and one that is not told apart and has a pair less."""
    runs = [*of(tmp_path, "jola", 0.5, 20), *of(tmp_path, "lora", 0.9, 28), *of(tmp_path, "bitfit", 0.1, 12)]
    return compare_methods([*runs, *of(tmp_path, "red", 0.5, 20, 2)])


def of(tmp_path: Path, name: str, lower: float, right: int, pairs: int = 3) -> list[Run]:
    runs, noise = [], ["jola", "lora", "bitfit", "red"].index(name)
    for pair in PAIRS[:pairs]:
        moved = lower + (0.2 * (-1) ** pair[0] if name == "red" else 0.0)
        rows = predictions(pair, *losses(pair, moved, noise), right + (name != "jola") * (pair[0] % 2))
        runs.append(finished(tmp_path / name / str(pair[0]), name, pair, rows, "likelihood_accuracy"))
    return runs


def rows_of(panel: Panel) -> dict[str, float]:
    """Name of a row to its place, counted from the top."""
    return {name: place for place, name in panel.y_ticks}


def at(panel: Panel, place: float) -> tuple[Series, int]:
    """The point on a row that is no single pair."""
    [found] = [(one, int(i)) for one in panel.series for i in np.flatnonzero(one.y == place)]
    return found


def test_methods_are_sorted_best_first_with_the_reference_at_zero(table: MethodsTable) -> None:
    nll, accuracy = methods_chart(table).panels
    names = list(rows_of(nll))
    assert [name.split(" (")[0] for name in names if not name.startswith("red")] == ["lora", "jola", "bitfit"]
    assert "red (2 of 3 pairs)" in names
    assert nll.flipped and rows_of(nll) == rows_of(accuracy)
    values = [float(one.x[i]) for one, i in (at(nll, place) for place in rows_of(nll).values())]
    assert values == sorted(values, reverse=True)
    one, i = at(nll, rows_of(nll)["jola"])
    assert one.name == "jola" and one.x[i] == 0 and one.low is None


def test_points_are_the_tables_means_and_intervals(table: MethodsTable) -> None:
    for panel, score in zip(methods_chart(table).panels, table.scores, strict=True):
        assert panel.title == score.replace("_", " ")
        for name in ("lora", "bitfit"):
            one, i = at(panel, rows_of(panel)[name])
            known = table.standing(name, score).difference
            assert known is not None and one.low is not None and one.high is not None
            assert (one.x[i], one.low[i], one.high[i]) == (known.value, known.low, known.high)
            assert one.name == ("better" if name == "lora" else "worse")
    one, _ = at(methods_chart(table).panels[0], rows_of(methods_chart(table).panels[0])["red (2 of 3 pairs)"])
    assert one.name == "not told apart"


def test_every_pair_is_a_small_point_on_its_methods_row(table: MethodsTable) -> None:
    panel = methods_chart(table).panels[0]
    [single] = [one for one in panel.series if one.name == "one pair"]
    assert len(single.x) == 3 + 3 + 2
    for name in ("lora", "bitfit"):
        known = table.standing(name).difference
        assert known is not None
        mine = [x for x, y in zip(single.x, single.y, strict=True) if round(y) == rows_of(panel)[name]]
        assert sorted(mine) == sorted(known.by_pair.values())


def test_against_the_base_every_method_has_its_gain(table: MethodsTable) -> None:
    panel = methods_chart(table, "base").panels[0]
    assert len(panel.y_ticks) == len(table.methods)
    one, i = at(panel, rows_of(panel)["jola"])
    assert one.x[i] == table.standing("jola").gain.value


def test_without_the_reference_there_are_only_gains(tmp_path: Path) -> None:
    table = compare_methods(runs_of(tmp_path, "lora", 0.3))
    with pytest.raises(ValueError, match="against='base' needs none"):
        methods_chart(table)
    assert len(methods_chart(table, "base").panels) == 1
    with pytest.raises(ValueError, match="against must be one of reference, base; got 'both'"):
        methods_chart(table, "both")  # type: ignore[arg-type]


def test_head_curves_are_drawn_as_they_are_on_a_log_axis(tmp_path: Path) -> None:
    table = compare_methods(head_runs(tmp_path))
    (panel,) = heads_gain_chart(table).panels
    assert panel.x_log
    for curve in head_curves(table):
        drawn = {one.look: one for one in panel.series if one.name == curve.way}
        assert np.array_equal(drawn["line"].x, curve.heads) and np.array_equal(drawn["line"].y, curve.gain)
        assert np.array_equal(drawn["band"].low, curve.low) and np.array_equal(drawn["band"].high, curve.high)  # type: ignore[arg-type]
    lines = [one for one in panel.series if one.look == "line"]
    assert len({(one.colour, one.dash) for one in lines}) == len(lines)


@pytest.mark.parametrize("renderer", ["plotly", "matplotlib"])
def test_both_renderers_draw_tables_and_runs(table: MethodsTable, tmp_path: Path, renderer: Any) -> None:
    suffix = "html" if renderer == "plotly" else "svg"
    heads = head_runs(tmp_path)
    figures = [
        methods(table, renderer=renderer), methods(table, "base", renderer=renderer), methods(heads, renderer=renderer),
        heads_gain(heads, renderer=renderer),
    ]  # fmt: skip
    for place, figure in enumerate(figures):
        assert plots.save(figure, tmp_path / f"{place}.{suffix}").stat().st_size > 2000


def test_renderer_and_width_are_checked_first(table: MethodsTable) -> None:
    for draw in (methods, heads_gain):
        with pytest.raises(ValueError, match="renderer must be plotly or matplotlib"):
            draw(table, renderer="svg")  # type: ignore[arg-type, operator]
        with pytest.raises(ValueError, match="pass renderer='matplotlib' with it"):
            draw(table, width=3)  # type: ignore[operator]
