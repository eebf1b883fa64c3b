"""Figures of studies: what is drawn equals what was found, by both renderers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from jola_interp import plots
from jola_interp.analysis.offset_cosines import OffsetCosines, offset_cosines
from jola_interp.analysis.overlaps import INDICES, Overlaps, overlaps
from jola_interp.analysis.selections import Selections
from jola_interp.analysis.shared_heads import CATEGORIES, SharedHeads, shared_heads
from jola_interp.analysis.stability import LARGEST, NOGUEIRA, SELECTED, Stability, stability
from jola_interp.analysis.study_curves import curves
from jola_interp.analysis.transfer import Transfer, transfer
from jola_interp.plots import studies, study_charts
from jola_interp.plots.chart import Panel, Series
from tests.analysis.test_offset_cosines import study
from tests.analysis.test_selections import of_sets, random_sets
from tests.analysis.test_study_curves import cells

RENDERERS: tuple[Any, ...] = ("plotly", "matplotlib")
TASKS = ("a", "b", "c")


def studied(tasks: int = 3, seeds: int = 3, shuffled: int = 1) -> Selections:
    """Tasks with heads of their own; the last runs have shuffled labels."""
    generator = np.random.default_rng(0)
    own = random_sets(generator, tasks, 5, 6, 0.2)
    sets = np.concatenate([np.repeat(own, seeds, axis=0), random_sets(generator, shuffled, 5, 6, 0.2)])
    sets = sets ^ (generator.random(sets.shape) < 0.05)
    names = [f"{chr(97 + i // seeds)}" for i in range(tasks * seeds)] + ["a"] * shuffled
    labels = ["real"] * (tasks * seeds) + ["shuffled"] * shuffled
    return of_sets(sets, names, [i % seeds for i in range(tasks * seeds)] + list(range(shuffled)), labels, group=3)


@pytest.fixture(scope="module")
def table() -> Overlaps:
    return overlaps(studied(), ["p_open>0.5", "top=6:p_open"], draws=200)


@pytest.fixture(scope="module")
def stable() -> Stability:
    return stability(studied(), draws=50)


@pytest.fixture(scope="module")
def shared() -> SharedHeads:
    return shared_heads(studied(), draws=50)


@pytest.fixture(scope="module")
def moved(table: Overlaps) -> Transfer:
    generator = np.random.default_rng(0)
    rows = [
        {"source": one, "target": other, "seed": seed, "base": 3.0, "own": 2.0, "score": 2.5 + generator.normal() / 5}
        for one in TASKS for other in TASKS if one != other for seed in range(3)
    ]  # fmt: skip
    return transfer(pd.DataFrame(rows), table.matrix().excess, table.groups, overlap_name="Jaccard above chance")


@pytest.fixture
def cosines(tmp_path: Path) -> OffsetCosines:
    return offset_cosines(study(tmp_path, 1, 1), draws=50)


def series_of(panel: Panel, name: str) -> Series:
    [found] = [one for one in panel.series if one.name == name]
    return found


@pytest.mark.parametrize("index", INDICES)
def test_a_matrix_shows_the_excess_with_stars_where_it_is_clear(table: Overlaps, index: Any) -> None:
    found = table.matrix(index)
    [panel] = studies.overlap_sheet(table, index).panels
    np.testing.assert_array_equal(panel.values, found.excess)
    assert panel.kind == "signed" and panel.square and panel.flipped
    assert [text for _, text in panel.x_ticks] == list(table.groups) == [text for _, text in panel.y_ticks]
    assert panel.texts is not None
    starred = np.array([[str(text).endswith("*") for text in row] for row in panel.texts])
    np.testing.assert_array_equal(starred, found.adjusted < 0.05)
    assert starred.any() and not starred.all()
    np.testing.assert_array_equal(panel.hover["p"], found.p)


def test_matrices_of_many_tasks_hatch_what_is_not_clear() -> None:
    many = overlaps(studied(14, 2), draws=20)
    [panel] = studies.overlap_sheet(many).panels
    assert panel.texts is None and panel.hatch == "p ≥ .05" and panel.marked is not None
    clear = (many.matrix().adjusted < 0.05) | np.isnan(many.matrix().excess)
    np.testing.assert_array_equal(panel.marked, ~clear)
    figure = studies.overlap_matrix(many)
    assert {trace.name for trace in figure.data} >= {"p ≥ .05"}


def test_texts_are_written_in_their_cells(table: Overlaps) -> None:
    [panel] = studies.overlap_sheet(table).panels
    assert panel.texts is not None
    screen = studies.overlap_matrix(table).data[0]
    assert [list(row) for row in screen.text] == [list(row) for row in panel.texts]
    axes = studies.overlap_matrix(table, renderer="matplotlib").axes[0]
    written = {(int(text.get_position()[1]), int(text.get_position()[0])): text.get_text() for text in axes.texts}
    expected = {at: str(text) for at, text in np.ndenumerate(panel.texts) if np.isfinite(panel.values[at])}
    assert written == expected


def test_square_maps_have_cells_as_high_as_wide(table: Overlaps) -> None:
    figure = studies.overlap_matrix(table, renderer="matplotlib", width=3.25)
    box, size = figure.axes[0].get_position(), figure.get_size_inches()
    assert box.width * size[0] == pytest.approx(box.height * size[1])
    screen = studies.overlap_matrix(table)
    x, y = (np.ptp(screen.layout[axis].domain) for axis in ("xaxis", "yaxis"))
    margin = screen.layout.margin
    inner = screen.layout.width - margin.l - margin.r, screen.layout.height - margin.t - margin.b
    assert x * inner[0] == pytest.approx(y * inner[1], rel=1e-3)


def test_frequencies_fill_their_rows_and_single_runs_are_named_instead(stable: Stability) -> None:
    sheet = studies.frequency_sheet(stable)
    assert [panel.title for panel in sheet.panels] == [f"{task} (3 runs)" for task in TASKS]
    np.testing.assert_array_equal(sheet.panels[1].values, stable.frequency[1])
    assert "Not drawn, of one run alone: a (labels shuffled)." in sheet.notes
    for tasks in range(1, 15):
        groups = tuple(f"t{i}" for i in range(tasks))
        one = dataclasses.replace(
            stable, groups=groups, sizes=((1, 1),) * tasks, frequency=np.repeat(stable.frequency[:1], tasks, axis=0)
        )
        drawn = studies.frequency_sheet(one)
        assert tasks <= len(drawn.panels) <= tasks + 1
        assert (drawn.panels[-1].title == "mean of all") == (len(drawn.panels) > tasks)


def test_the_map_of_shared_heads_has_their_categories_and_colours_of_its_own(shared: SharedHeads) -> None:
    status, tasks = studies.shared_sheet(shared).panels
    np.testing.assert_array_equal(status.values, shared.codes)
    np.testing.assert_array_equal(tasks.values, shared.n_tasks)
    assert status.counts() == {one.category: one.heads for one in shared.counts}
    figure = studies.shared_map(shared)
    colours = [colour for _, colour in figure.data[0].colorscale]
    assert len(set(colours)) == len(CATEGORIES) and len(colours) == 2 * len(CATEGORIES)


def test_bars_of_stability_bear_the_tables_values_beside_their_nulls(stable: Stability) -> None:
    chart = study_charts.stability_chart(stable)
    panel = chart.panels[0]
    assert [text for _, text in panel.y_ticks] == [f"{task} (3 runs)" for task in TASKS]
    for way in (SELECTED, LARGEST):
        bars = series_of(panel, way)
        scores = [stable.score(task, NOGUEIRA, way) for task in TASKS]
        assert bars.look == "bars" and list(bars.x) == [score.value for score in scores]
        assert bars.low is not None and list(bars.low) == [score.low for score in scores]
    null = series_of(panel, study_charts.RANDOM)
    assert list(null.x) == [stable.score(task, way=way).chance for way in (SELECTED, LARGEST) for task in TASKS]
    assert len(chart.panels) == 3 and "additive" in chart.panels[2].title


def test_cosines_of_a_task_stand_beside_those_with_other_tasks_and_heads(cosines: OffsetCosines) -> None:
    panel = study_charts.cosine_chart(cosines).panels[0]
    np.testing.assert_array_equal(series_of(panel, study_charts.SAME).x, np.diag(cosines.value))
    other = series_of(panel, study_charts.OTHER)
    assert sorted(other.x) == sorted(cosines.value[~np.eye(3, dtype=bool)])
    np.testing.assert_array_equal(np.round(other.y), np.repeat([0, 1, 2], 2))
    np.testing.assert_array_equal(series_of(panel, "other heads (chance)").x, np.diag(cosines.chance))
    [matrix] = studies.offset_sheet(cosines).panels
    np.testing.assert_array_equal(matrix.values, cosines.value)


def test_cells_are_written_without_their_leading_zero_alone(moved: Transfer) -> None:
    gain = np.array([[-10.02, 0.5, -0.25], [20.05, 0.0, np.nan], [-0.001, 1.0, 0.1]])
    [panel] = studies.transfer_sheet(dataclasses.replace(moved, gain=gain)).panels
    assert panel.texts is not None
    assert list(np.ravel(panel.texts)) == ["−10.02", "+.50", "−.25", "+20.05", "+.00", "", "−.00", "+1.00", "+.10"]


def test_transfer_stands_over_overlap_pair_by_pair(moved: Transfer) -> None:
    points = study_charts.transfer_chart(moved).panels[0].series[0]
    assert moved.overlap is not None and len(points.x) == 6
    for label, x, y in zip(points.labels, points.x, points.y, strict=True):
        i, j = (moved.tasks.index(name) for name in label.split(" → "))
        assert (x, y) == (moved.overlap[i, j], moved.gain[i, j])
    [panel] = studies.transfer_sheet(moved).panels
    np.testing.assert_array_equal(panel.values, moved.gain)
    with pytest.raises(ValueError, match="this table holds no overlap"):
        study_charts.transfer_chart(dataclasses.replace(moved, overlap=None))


def test_curves_are_drawn_with_their_bands_and_seeds() -> None:
    found = curves(cells(), "n_train", "nll", by="task")
    panel = study_charts.curves_chart(found, "training rows", x_log=True).panels[0]
    for line in found.lines:
        drawn = {one.look: one for one in panel.series if one.name == line.name}
        np.testing.assert_array_equal(drawn["line"].y, line.mean)
        np.testing.assert_array_equal(drawn["points"].y, line.points_y)
        assert drawn["band"].low is not None
        np.testing.assert_array_equal(drawn["band"].low, line.low)
    assert panel.x_label == "training rows" and panel.y_label == "nll" and panel.x_log
    with pytest.raises(ValueError, match="x_log: n_train = 0 has no place"):
        study_charts.curves_chart(curves(cells().replace({"n_train": {10: 0}}), "n_train", "nll"), x_log=True)


def test_the_summary_has_both_questions_for_every_rule(table: Overlaps) -> None:
    panel = study_charts.overlap_chart(table).panels[0]
    assert len(panel.y_ticks) == len(table.matrices) == 5
    assert list(series_of(panel, study_charts.SAME).x) == [one.within.value for one in table.matrices]
    assert list(series_of(panel, study_charts.OTHER).x) == [one.between.value for one in table.matrices]


@pytest.mark.parametrize("renderer", RENDERERS)
def test_both_renderers_draw_all_of_it(
    table: Overlaps, stable: Stability, shared: SharedHeads, moved: Transfer, cosines: OffsetCosines, tmp_path: Path,
    renderer: Any,
) -> None:  # fmt: skip
    line = curves(cells(), "n_train", "nll")
    figures = [
        studies.overlap_matrix(table, renderer=renderer),
        studies.overlap_matrix(table, "weighted", renderer=renderer),
        studies.offset_matrix(cosines, renderer=renderer), studies.selection_frequency(stable, renderer=renderer),
        studies.shared_map(shared, renderer=renderer), studies.transfer_matrix(moved, renderer=renderer),
        study_charts.overlap_summary(table, renderer=renderer), study_charts.stability_bars(stable, renderer=renderer),
        study_charts.offset_agreement(cosines, renderer=renderer),
        study_charts.transfer_against_overlap(moved, renderer=renderer),
        study_charts.study_curves(line, renderer=renderer),
    ]  # fmt: skip
    suffix = "html" if renderer == "plotly" else "svg"
    for place, figure in enumerate(figures):
        assert plots.save(figure, tmp_path / f"{place}.{suffix}").stat().st_size > 2000


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("fill", [False, True])
def test_a_single_run_of_a_single_head_is_drawn(fill: bool, renderer: Any) -> None:
    one = of_sets(np.full((1, 1, 1), fill), ["a"], [0])
    shared, stable = overlaps(one, draws=5), stability(one, draws=5)
    figures = [
        studies.overlap_matrix(shared, renderer=renderer),
        study_charts.overlap_summary(shared, renderer=renderer),
        studies.selection_frequency(stable, renderer=renderer),
        study_charts.stability_bars(stable, renderer=renderer),
        studies.shared_map(shared_heads(one, draws=5), renderer=renderer),
    ]
    assert all(len(figure.data if renderer == "plotly" else figure.axes) > 0 for figure in figures)


def test_renderer_and_width_are_checked_first(table: Overlaps) -> None:
    for draw in (studies.overlap_matrix, study_charts.overlap_summary):
        with pytest.raises(ValueError, match="renderer must be plotly or matplotlib"):
            draw(table, renderer="svg")  # type: ignore[arg-type, operator]
        with pytest.raises(ValueError, match="pass renderer='matplotlib' with it"):
            draw(table, width=3)  # type: ignore[operator]
