"""Figures of shifts draw the table's numbers, first tokens apart, each beside its random edit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jola_interp import plots
from jola_interp.analysis.shifts import CLASSES, KINDS, LAYER_MEASURES, MEANS, MEASURES, NOTIONS, SOURCES, Shifts
from jola_interp.analysis.tables import NotMeasuredError, save_table
from jola_interp.plots import shifts as figures
from jola_interp.plots import style
from jola_interp.plots.chart import Chart, Panel, Series
from jola_interp.runs import Run, edit_digest
from tests.runs_by_hand import make_run

DRAWN = (
    figures.shift_maps,
    figures.shift_positions,
    figures.shift_kinds,
    figures.layer_shifts,
    figures.shift_pca,
)
POSITIONS = ("0", "1", "2–3", "4–7", "8–15")
AROUND = ("−7…−4", "−3…−2", "−1", "0", "+1", "+2…+3")


def table_of(layers: int = 6, heads: int = 4, planes: int = 4, tokens: int = 30, seed: int = 0) -> Shifts:
    """A table of random numbers; no two are equal."""
    draws = np.random.default_rng(seed)

    def sizes(*shape: int) -> dict[str, np.ndarray]:
        return {source: draws.uniform(0.05, 0.5, shape) for source in SOURCES}

    mean, layer = sizes(len(MEASURES), 3, layers, heads), sizes(len(LAYER_MEASURES), 3, layers)
    for one in (mean, layer):
        for values in one.values():
            values[1] = draws.uniform(-1, 1, values[1].shape)  # cosines
    width = 8
    arrays = {
        "components": np.stack([np.linalg.qr(draws.normal(size=(width, 2)))[0].T for _ in range(planes)])
        if planes
        else np.zeros((0, 2, width)),
        "explained": np.tile([0.42, 0.13], (planes, 1)),
        "base": draws.normal(size=(planes, tokens, 2)),
        "offset": draws.normal(size=(planes, 2)),
        "offset_share": draws.uniform(0, 1, planes),
        "moved_share": draws.uniform(0, 1, planes),
        "answer": np.arange(tokens) % 3 == 0,
    }
    arrays["edited"] = arrays["base"] + arrays["offset"][:, None] + 0.2 * draws.normal(size=(planes, tokens, 2))
    return Shifts(
        title="tiny on toy",
        split="test",
        rows=9,
        dtype="float32",
        normalised=False,
        mask=np.ones((layers, heads), dtype=bool),
        group=0,
        tokens=np.array([9, 200, 100]),
        mean=mean,
        sd=sizes(len(MEASURES), 3, layers, heads),
        layer_mean=layer,
        layer_sd=sizes(len(LAYER_MEASURES), 3, layers),
        position_bins=POSITIONS,
        position_tokens=np.array([9, 9, 18, 36, 72]),
        position=sizes(len(POSITIONS), layers),
        answer_bins=AROUND,
        answer_tokens=np.array([36, 18, 9, 9, 9, 18]),
        answer=sizes(len(AROUND), layers),
        kind_tokens=np.array([9, 9, 80, 120, 0, 30, 61]),
        kind=sizes(len(KINDS), layers),
        plane_heads=tuple(f"L{i % layers}H{i % heads}" for i in range(planes)),
        plane_arrays=arrays,
    )


@pytest.fixture(scope="module")
def table() -> Shifts:
    return table_of()


def named(panel: Panel, name: str, look: str = "line") -> Series:
    found = [series for series in panel.series if series.name == name and series.look == look]
    assert len(found) == 1, name
    return found[0]


# -- maps --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["local", "total"])
@pytest.mark.parametrize("of", ["norm", "cosine", "residual"])
def test_maps_hold_each_class_above_its_random_edit(table: Shifts, which: Any, of: Any) -> None:
    sheet = figures.maps_sheet(table, which, of)
    assert sheet.headings == ("first tokens", "prompt", "answer")
    assert len({(panel.range, panel.unit, panel.kind, panel.log) for panel in sheet.panels}) == 1
    for random, row in enumerate(sheet.rows):
        for place, panel in enumerate(row):
            expected = table.of(which, of, random=bool(random))[place]
            assert np.array_equal(panel.values, 1 - expected if of == "cosine" else expected)
            assert np.array_equal(panel.hover["sd"], table.of(which, of, random=bool(random), sd=True)[place])
            assert np.array_equal(panel.hover["‖z‖"], table.of(which, "size", random=bool(random))[place])
            assert panel.values.max() <= panel.range[1]


def test_colours_are_logarithmic_over_three_decades(table: Shifts) -> None:
    values = {source: array.copy() for source, array in table.mean.items()}
    values["local"][0, 1, 2, 3], values["local"][0, :, 0, 0] = 1e-7, 0.0
    sheet = figures.maps_sheet(dataclasses.replace(table, mean=values), "local", "norm")
    assert {(panel.kind, panel.log) for panel in sheet.panels} == {("magnitude", True)}
    low, high = sheet.panels[0].range
    assert high == max(values[source][0].max() for source in ("local", "random_local"))
    assert low == pytest.approx(high / 1000)
    assert any("do not move at all: 1 of 24." in note for note in sheet.notes)
    assert any("logarithmic, and end at" in note for note in sheet.notes)


def test_heads_that_are_not_editable_are_blank_locally_and_drawn_in_total(table: Shifts) -> None:
    mask = table.mask.copy()
    mask[1, 2] = False
    part = dataclasses.replace(table, mask=mask)
    local, total = (figures.maps_sheet(part, which, "norm").panels[1] for which in ("local", "total"))
    assert np.isnan(local.values[1, 2]) and not local.mask[1, 2] and np.isfinite(local.values).sum() == 23
    assert np.isfinite(total.values).all() and total.mask.all()


# -- charts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["local", "total"])
def test_positions_are_means_of_groups_of_layers_beside_random(table: Shifts, which: Any) -> None:
    by_place, by_answer = figures.positions_chart(table, which).panels
    assert by_place.y_range == by_answer.y_range and by_place.y_log == by_answer.y_log
    for panel, one, first in ((by_place, table.position, 1), (by_answer, table.answer, 0)):
        groups = {"layers 0–1": [0, 1], "layers 2–3": [2, 3], "layer 4": [4], "layer 5": [5]}
        for name, layers in groups.items():
            assert np.allclose(named(panel, name).y, one[which][first:, layers].mean(1))
        assert np.allclose(named(panel, "all layers").y, one[which][first:].mean(1))
        random = named(panel, "all layers, random directions")
        assert np.allclose(random.y, one[f"random_{which}"][first:].mean(1)) and random.dash == "dash"
        assert len({series.colour for series in panel.series}) == 6
    points = named(by_place, "layers 0–1", "points")
    assert np.allclose(points.y, table.position[which][:1, :2].mean()) and list(points.x) == [0]
    assert not any(series.look == "points" for series in by_answer.series)
    assert [text for _, text in by_answer.x_ticks] == list(AROUND)
    assert [rule.at for rule in by_answer.rules] == [2.5]  # before "0"


def test_every_random_line_stands_on_the_range_of_its_draws(table: Shifts) -> None:
    factors = (0.5, 1.0, 1.5)
    draws = {
        f"{name}/random_{which}": np.stack([factor * getattr(table, name)[f"random_{which}"] for factor in factors])
        for name in MEANS
        for which in NOTIONS
    }
    several = dataclasses.replace(table, draws=draws)
    by_place, by_answer = figures.positions_chart(several, "total").panels
    for panel, first in ((by_place, 1), (by_answer, 0)):
        band, line = named(panel, "random directions: range", "band"), named(panel, "all layers, random directions")
        np.testing.assert_allclose((band.low, band.high), (0.5 * line.y, 1.5 * line.y))
        assert len(band.x) == len(POSITIONS if first else AROUND) - first
    for panel in figures.kinds_chart(several).panels:
        points = named(panel, "all layers, random directions", "points")
        np.testing.assert_allclose(points.arms, (0.5 * points.x, 1.5 * points.x))
        assert panel.horizontal and named(panel, "all layers", "points").arms is None
    for panel in figures.layers_chart(several).rows[0]:
        for which in NOTIONS:
            line, band = (
                named(panel, f"{which}, random directions"),
                named(panel, f"{which}, random directions: range", "band"),
            )
            np.testing.assert_allclose((band.low, band.high), (0.5 * line.y, 1.5 * line.y))
    sheet = figures.maps_sheet(several, "total", "norm")
    assert all("largest draw" in panel.hover for panel in sheet.rows[1])
    outside, heads = several.beyond("total", "norm")
    assert heads == 24 and any(f"{outside} of 24; 12 would be by chance" in note for note in sheet.notes)
    for chart in (figures.positions_chart, figures.kinds_chart, figures.layers_chart):
        notes = (chart(several, "total") if chart is figures.positions_chart else chart(several)).notes  # type: ignore[call-arg]
        assert any("mean of 3 draws" in note for note in notes)
    for draw in DRAWN:
        for renderer in ("plotly", "matplotlib"):
            draw(several, renderer=renderer)  # type: ignore[operator]


def test_the_heads_of_planes_are_said_to_be_those_that_move_most(table: Shifts) -> None:
    new = dataclasses.replace(table, planes_by="local ‖Δz‖/‖z‖")
    assert any("those with the largest local ‖Δz‖/‖z‖." in note for note in figures.planes_chart(new).notes)
    assert any("not relative to ‖z‖" in note for note in figures.planes_chart(table).notes)  # of an earlier version


def test_kinds_that_do_not_occur_are_left_out(table: Shifts) -> None:
    chart = figures.kinds_chart(table)
    for panel, which in zip(chart.panels, ("local", "total"), strict=True):
        assert panel.title == which
        assert [text.split(" · ")[0] for _, text in panel.y_ticks] == [kind for kind in KINDS if kind != "digit"]
        assert panel.y_ticks[2] == (2.0, "word start · 80")
        found = [place for place, kind in enumerate(KINDS) if kind != "digit"]
        assert np.allclose(named(panel, "layers 0–1", "points").x, table.kind[which][found, :2].mean(1))
        random = named(panel, "all layers, random directions", "points")
        assert np.allclose(random.x, table.kind[f"random_{which}"][found].mean(1))


def test_layers_show_both_notions_and_both_edits(table: Shifts) -> None:
    chart = figures.layers_chart(table)
    assert [panel.title for panel in chart.rows[0]] == ["prompt", "answer", "first tokens"]
    for row, measure in zip(chart.rows, ("residual", "cosine"), strict=True):
        for panel, group in zip(row, ("prompt", "answer", "first"), strict=True):
            assert len(panel.series) == 4
            for which in ("local", "total"):
                for name, random in ((which, False), (f"{which}, random directions", True)):
                    expected = table.of_layer(which, measure, random=random)[CLASSES.index(group)]  # type: ignore[arg-type]
                    series = named(panel, name)
                    assert np.array_equal(series.y, expected) and series.colour == figures.COLOURS[which]
                    assert series.dash == ("dash" if random else "solid")
    prompt, answer, first = chart.rows[0]
    assert prompt.y_range == answer.y_range != first.y_range
    assert {panel.y_range for panel in chart.rows[1]} == {(-1.0, 1.0)}


def test_axes_are_logarithmic_where_values_differ_much_and_none_is_zero() -> None:
    assert figures._shared([np.array([0.1, 0.5])]) == (False, (0.0, pytest.approx(0.525)))
    assert figures._shared([np.array([0.01, np.nan]), np.array([0.5])])[0]
    assert not figures._shared([np.array([0.0, 0.5])])[0]
    for nothing in ([], [np.full(3, np.nan)], [np.zeros(3)]):
        assert figures._shared(nothing) == (False, (0.0, 1.0))


def test_planes_draw_an_arrow_per_token_and_the_offset(table: Shifts) -> None:
    chart = figures.planes_chart(table)
    assert [len(row) for row in chart.rows] == [3, 1]
    for panel, plane in zip(chart.panels, table.planes, strict=True):
        assert panel.square and panel.title.startswith(f"{plane.label}, in the plane: offset ")
        assert panel.x_label == "PC1 (42\u00a0% of the variance)" and panel.y_label == "PC2 (13\u00a0% of the variance)"
        for name, chosen in (("prompt", ~plane.answer), ("answer", plane.answer)):
            arrows = named(panel, name, "arrows")
            assert arrows.x_from is not None and arrows.y_from is not None
            assert np.array_equal(np.column_stack([arrows.x_from, arrows.y_from]), plane.base[chosen])
            assert np.array_equal(np.column_stack([arrows.x, arrows.y]), plane.edited[chosen])
        offset = named(panel, "offset g_a·a", "arrows")
        times = figures._magnified(plane)
        assert (offset.x[0], offset.y[0]) == tuple(times * plane.offset) and offset.colour == style.INK
        assert (f"drawn × {times:g}" in panel.title) == (times > 1)
    assert any("a direction at random has 25 %" in note for note in chart.notes)  # 2 of 8


def test_short_offsets_are_drawn_longer_and_long_ones_as_they_are(table: Shifts) -> None:
    plane = table.planes[0]
    reached = np.abs(np.concatenate([plane.base, plane.edited])).max()
    for length, times in ((1.0, 1), (0.3, 2), (0.01, 50), (1e-20, 1), (0.0, 1)):
        offset = np.array([length * reached, 0.0])
        assert figures._magnified(dataclasses.replace(plane, offset=offset)) == times


def test_a_head_without_offset_has_no_thick_arrow(table: Shifts) -> None:
    arrays = {**table.plane_arrays, "offset": np.zeros((4, 2)), "offset_share": np.full(4, np.nan)}
    chart = figures.planes_chart(dataclasses.replace(table, plane_arrays=arrays))
    assert all(panel.title.startswith(f"L{i}H{i}, in the plane: shifts") for i, panel in enumerate(chart.panels))
    assert not any(series.name.startswith("offset") for panel in chart.panels for series in panel.series)


def test_every_figure_says_how_many_and_what_misleads(table: Shifts) -> None:
    rounded = dataclasses.replace(table, dtype="bfloat16", normalised=True)
    made: list[Any] = [figures.maps_sheet(rounded, "total", of) for of in ("norm", "cosine", "residual")]  # type: ignore[arg-type]
    made += [figures.positions_chart(rounded, "local"), figures.kinds_chart(rounded)]
    made += [figures.layers_chart(rounded), figures.planes_chart(rounded)]
    for one in made:
        text = " ".join(one.notes)
        assert "bfloat16, which rounds by up to 0.004" in text and "normalises what attention writes" in text
        assert one.title.startswith("tiny on toy: ")
        counted = "200 prompt, 100 answer and 9 first tokens of 9 test rows" in text or "n = 30 tokens" in text
        assert counted or "how many tokens" in text
    assert not table.caveats()


# -- drawn -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("renderer", ["plotly", "matplotlib"])
@pytest.mark.parametrize("shape", ["whole", "one head", "nothing moves", "all NaN"])
def test_every_table_is_drawn(renderer: Any, shape: str, tmp_path: Path) -> None:
    table = table_of(1, 1, 1, 1) if shape == "one head" else table_of()
    if shape in ("nothing moves", "all NaN"):
        value = 0.0 if shape == "nothing moves" else np.nan
        names = ("mean", "sd", "layer_mean", "layer_sd", "position", "answer", "kind")
        changes = {name: {k: np.full_like(v, value) for k, v in getattr(table, name).items()} for name in names}
        empty = table_of(planes=0)
        table = dataclasses.replace(table, plane_heads=(), plane_arrays=empty.plane_arrays, **changes)
    for place, draw in enumerate(DRAWN):
        figure = draw(table, renderer=renderer)  # type: ignore[operator]
        if renderer == "plotly":
            assert plots.save(figure, tmp_path / f"{place}.html").stat().st_size > 1000
        else:
            assert figure.axes and all(axes.get_title(loc="left") is not None for axes in figure.axes)


def test_a_run_gives_the_table_that_it_keeps(table: Shifts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run: Run = make_run(tmp_path / "run")
    for draw in DRAWN:
        with pytest.raises(NotMeasuredError, match="holds no table 'shifts'"):
            draw(run)  # type: ignore[operator]
    save_table(run, "shifts", table, {"edit": edit_digest(run.edit)})
    kept: list[Chart] = []
    monkeypatch.setattr(figures, "draw", lambda chart, *_: kept.append(chart))
    figures.layer_shifts(run)
    figures.layer_shifts(table)
    assert kept[0].to_frame().equals(kept[1].to_frame())


def test_bad_arguments_are_refused(table: Shifts) -> None:
    for draw in DRAWN:
        with pytest.raises(ValueError, match="renderer must be plotly or matplotlib; got 'bokeh'"):
            draw(table, renderer="bokeh")  # type: ignore[operator]
    for draw in (figures.shift_maps, figures.shift_positions):
        with pytest.raises(ValueError, match="which must be one of local, total; got 'both'"):
            draw(table, "both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="of must be one of norm, cosine, residual; got 'delta'"):
        figures.shift_maps(table, "local", "delta")  # type: ignore[arg-type]
