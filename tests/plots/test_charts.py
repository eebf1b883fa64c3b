"""Both renderers draw the numbers of a chart, all of them and no others, in places where they can be read."""

from __future__ import annotations

import base64
import dataclasses
import html
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from jola_interp import plots
from jola_interp.plots import chart_places, printed_charts, style
from jola_interp.plots.chart import Chart, Look, Panel, Rule, Series
from jola_interp.plots.charts import draw
from jola_interp.plots.printed_charts import RULER as PAPER
from jola_interp.plots.screen_charts import RULER as SCREEN
from jola_interp.plots.style import WIDTHS, Renderer

NAN = float("nan")
ODD = ("<b>L0H1</b>", "a & b", "$x$ and $y$", "·the↵", "%{x}", "_under")
"""What a tokenizer or a user may come up with."""


def array(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)


def series(look: Look = "line", n: int = 12, name: str = "a", seed: int = 0, **changes: Any) -> Series:
    """Numbers of every kind that a look may need, with two gaps that leave a point alone."""
    draws = np.random.default_rng(seed)
    x, y = np.arange(n, dtype=float), draws.normal(size=n).round(3)
    y[3:5] = y[6:7] = NAN
    fields: dict[str, Any] = {"x": x, "y": y, "name": name, "look": look}
    if look == "arrows":
        fields |= {"x_from": x - 1.5, "y_from": draws.normal(size=n).round(3)}
    if look in ("points", "band"):
        fields |= {"low": y - 0.25, "high": y + 0.5}
    if look == "bars":
        fields |= {"low": y - draws.uniform(0.1, 1, n).round(3)}
    return Series(**{**fields, **changes})


def lying(one: Series) -> Series:
    return dataclasses.replace(one, x=one.y, y=one.x)


def one_panel(*all_series: Series, **options: Any) -> Chart:
    return Chart(((Panel(all_series, **options),),), "a chart")


def decoded(values: Any) -> Any:
    """Numbers of a trace, also where plotly has packed them."""
    if isinstance(values, dict):
        return np.frombuffer(base64.b64decode(values["bdata"]), dtype=values["dtype"])
    return np.array(values, dtype=float)


# -- the numbers ---------------------------------------------------------------------------------------------------

Drawn = dict[str, np.ndarray]


def wanted(one: Series) -> Drawn:
    """The numbers of a series that can be drawn."""
    names = {"line": "xy", "bars": ("x", "y", "low"), "points": ("x", "y", "low", "high"), "band": ("x", "low", "high")}
    fields = {**names, "arrows": ("x_from", "y_from", "x", "y")}[one.look]
    return {name: getattr(one, name)[one.there] for name in fields}


def on_screen(figure: Any, look: Look, flat: bool) -> Drawn:
    trace = figure.data[0]
    x, y = decoded(trace.x), decoded(trace.y)
    if look == "line":
        return {"x": x[np.isfinite(y)], "y": y[np.isfinite(y)]}
    if look == "arrows":
        return {"x_from": x[0::3], "y_from": y[0::3], "x": x[1::3], "y": y[1::3]}
    if look == "band":
        return from_outlines(_runs(np.column_stack([y, x] if flat else [x, y])))
    place, value = (y, x) if flat else (x, y)
    if look == "bars":
        return {"x": place, "low": decoded(trace.base), "y": decoded(trace.base) + value}
    error = trace.error_x if flat else trace.error_y
    return {"x": place, "y": value, "low": value - decoded(error.arrayminus), "high": value + decoded(error.array)}


def _runs(points: np.ndarray) -> list[np.ndarray]:
    gaps = np.flatnonzero(np.isnan(points[:, 0]))
    return [part[np.isfinite(part[:, 0])] for part in np.split(points, gaps) if np.isfinite(part[:, 0]).any()]


def from_outlines(outlines: list[np.ndarray]) -> Drawn:
    """The lower and upper end at each place of closed outlines; the place is the first column."""
    points = np.concatenate(outlines)
    places = np.unique(points[:, 0])
    ends = [points[points[:, 0] == place, 1] for place in places]
    return {"x": places, "low": array(*map(np.min, ends)), "high": array(*map(np.max, ends))}


def on_paper(figure: Any, look: Look, flat: bool) -> Drawn:
    axes = figure.axes[0]
    collections = {type(one): one for one in axes.collections}
    if look == "arrows":
        segments = np.array(collections[LineCollection].get_segments())
        tips = collections[PolyCollection].get_offsets()
        assert np.array_equal(tips, segments[:, 1])  # a head at the end of every shaft
        return {
            "x_from": segments[:, 0, 0], "y_from": segments[:, 0, 1], "x": segments[:, 1, 0], "y": segments[:, 1, 1],
        }  # fmt: skip
    if look == "band":
        fill = axes.collections[0]
        return from_outlines([path.vertices[:, ::-1] if flat else path.vertices for path in fill.get_paths()])
    if look == "bars":
        boxes = np.array([one.get_bbox().extents for one in axes.patches if isinstance(one, Rectangle)])
        left, low, right, high = boxes.T if not flat else boxes[:, [1, 0, 3, 2]].T
        return {"x": (left + right) / 2, "low": low, "y": high}
    line = next(line for line in axes.lines if line.get_label() == "a")
    x, y = (np.asarray(values) for values in line.get_data())
    there = np.isfinite(x) & np.isfinite(y)
    x, y = x[there], y[there]
    if look == "line":
        return {"x": x, "y": y}
    arms = [one for one in collections[LineCollection].get_segments() if len(one) == 2]
    ends = np.array(arms)[:, :, 0 if flat else 1]
    return {"x": y if flat else x, "y": x if flat else y, "low": ends[:, 0], "high": ends[:, 1]}


@pytest.mark.parametrize("look", ["line", "points", "bars", "band", "arrows"])
@pytest.mark.parametrize("flat", [False, True])
def test_both_renderers_draw_the_numbers_of_every_look(look: Look, flat: bool) -> None:
    upright = series(look)
    chart = one_panel(lying(upright) if flat and look in ("points", "bars", "band") else upright, horizontal=flat)
    flat = flat and look in ("points", "bars", "band")
    expected = wanted(upright)
    for drawn in (on_screen(draw(chart), look, flat), on_paper(draw(chart, "matplotlib"), look, flat)):
        there = np.isfinite(list(drawn.values())).all(axis=0)
        for name, values in expected.items():
            np.testing.assert_allclose(drawn[name][there], values, atol=1e-12, err_msg=name)


def test_a_line_keeps_its_gaps_and_a_point_between_two_gaps_is_a_dot() -> None:
    line = series()
    assert np.flatnonzero(line.alone).tolist() == [5]
    trace = draw(one_panel(line)).data[0]
    assert np.array_equal(decoded(trace.y), line.y, equal_nan=True) and not trace.connectgaps
    assert np.flatnonzero(decoded(trace.marker.size)).tolist() == [5]
    drawn = draw(one_panel(line), "matplotlib").axes[0].lines[0]
    assert np.array_equal(drawn.get_ydata(), line.y, equal_nan=True) and drawn.get_markevery() == [5]


def test_a_band_is_an_outline_for_every_run_without_a_gap() -> None:
    chart = one_panel(series("band"))
    trace = draw(chart).data[0]
    assert trace.fill == "toself" and len(_runs(np.column_stack([decoded(trace.x), decoded(trace.y)]))) == 3
    assert len(draw(chart, "matplotlib").axes[0].collections[0].get_paths()) == 3


def test_stacked_bars_begin_where_those_below_end_and_bars_with_two_ends_at_zero() -> None:
    x, lower, upper = np.arange(3.0), array(1, 2, 3), array(2, 4, 6)
    stacked = one_panel(Series(x, lower, "lower", "bars"), Series(x, upper, "upper", "bars", low=lower))
    figure, boxes = draw(stacked), draw(stacked, "matplotlib").axes[0].patches
    assert figure.layout.barmode == "overlay"
    assert decoded(figure.data[1].base).tolist() == lower.tolist() == [box.get_y() for box in boxes[3:]]
    spread = one_panel(Series(x, upper, "spread", "bars", low=lower, high=upper + 1))
    trace, axes = draw(spread).data[0], draw(spread, "matplotlib").axes[0]
    assert not decoded(trace.base).any() and {box.get_y() for box in axes.patches} == {0}
    assert decoded(trace.error_y.array).tolist() == [1, 1, 1]
    assert (
        np.array(axes.collections[0].get_segments())[:, :, 1].tolist() == np.column_stack([lower, upper + 1]).tolist()
    )


def test_bars_of_all_series_are_as_thick_and_leave_room_for_their_neighbours() -> None:
    panel = Panel(tuple(Series(np.arange(4) + side, np.ones(4), str(side), "bars") for side in (-0.2, 0.2)))
    for one in panel.series:
        left, right = panel.sides(one)
        np.testing.assert_allclose(right - left, 0.8 * 0.4)
    fixed = Panel((Series(np.arange(4.0), np.ones(4), "bins", "bars", size=1.0),))
    left, right = fixed.sides(fixed.series[0])
    assert right[:-1].tolist() == left[1:].tolist()
    log = Panel((Series(array(1, 10, 100), np.ones(3), "decades", "bars"),), x_log=True)
    np.testing.assert_allclose(np.log10(log.sides(log.series[0])), [[-0.4, 0.6, 1.6], [0.4, 1.4, 2.4]])


# -- axes ----------------------------------------------------------------------------------------------------------


def screen_range(figure: Any, axis: str) -> list[float]:
    found = figure.layout[axis]
    return [10**end for end in found.range] if found.type == "log" else list(found.range)


@pytest.mark.parametrize("log", [False, True])
def test_axes_are_alike_in_both_renderers_and_hold_all_that_is_drawn(log: bool) -> None:
    positive = dataclasses.replace(series("points"), x=10.0 ** np.arange(-6, 6), y=10.0 ** np.arange(12), low=None)
    right = Series(positive.x, -positive.y, "right")
    panel = Panel((positive,), x_log=log, y_log=log, flipped=True, second=(right,), rules=(Rule("y", 1e13),))
    figure, paper = draw(Chart(((panel,),), "")), draw(Chart(((panel,),), ""), "matplotlib")
    main, twin = paper.axes
    assert figure.layout.xaxis.type == main.get_xscale() == ("log" if log else "linear")
    np.testing.assert_allclose(screen_range(figure, "xaxis"), main.get_xlim())
    np.testing.assert_allclose(screen_range(figure, "yaxis"), main.get_ylim())
    np.testing.assert_allclose(screen_range(figure, "yaxis2"), twin.get_ylim())
    assert (
        main.get_ylim()[0] > 1e13 and main.get_ylim()[1] < 1 and twin.get_ylim()[0] < -1e11
    )  # flipped; not the second
    assert main.get_xlim()[0] < 1e-6 and main.get_xlim()[1] > 1e5


def test_series_of_the_second_axis_are_drawn_on_it_and_it_has_its_label() -> None:
    left, right = series(name="left"), series(name="right", seed=1)
    chart = one_panel(left, y_label="a", second=(right,), second_label="b & c", second_range=(-5.0, 5.0))
    figure, paper = draw(chart), draw(chart, "matplotlib")
    assert [trace.yaxis for trace in figure.data] == ["y", "y2"]
    second = figure.layout.yaxis2
    assert (second.side, second.overlaying, html.unescape(second.title.text)) == ("right", "y", "b & c")
    assert [axes.get_ylabel() for axes in paper.axes] == ["a", "b & c"]
    assert paper.axes[1].get_ylim() == (-5, 5) and paper.axes[1].lines[0].get_label() == "right"


@pytest.mark.parametrize("log", [False, True])
def test_one_unit_is_as_long_on_both_axes_of_a_square_panel(log: bool) -> None:
    points = Series(array(1, 2, 8), array(1, 3, 300), "a", "points")
    chart = one_panel(points, square=True, x_log=log, y_log=log, rules=(Rule("diagonal"),))
    figure, axes = draw(chart), draw(chart, "matplotlib").axes[0]
    layout = figure.layout
    area = layout.width - layout.margin.l - layout.margin.r, layout.height - layout.margin.t - layout.margin.b
    spans = [np.diff(axis.domain)[0] * side / np.ptp(axis.range) for axis, side in
             zip((layout.xaxis, layout.yaxis), area, strict=True)]  # fmt: skip
    assert spans[0] == pytest.approx(spans[1], rel=0.01) and layout.yaxis.scaleanchor == "x"
    box, ends = axes.get_window_extent(), (axes.get_xlim(), axes.get_ylim())
    across, up = (np.ptp(np.log10(end) if log else end) for end in ends)
    assert box.width / across == pytest.approx(box.height / up)
    assert ends[0][0] <= 1 and ends[1][1] >= 300


def test_rules_stand_at_their_places() -> None:
    rules = (Rule("x", 2.0, "dash"), Rule("y", 0.5), Rule("diagonal", dash="solid", colour=style.BLUE))
    chart = one_panel(series(), rules=rules)
    figure, axes = draw(chart), draw(chart, "matplotlib").axes[0]
    upright, level, diagonal = figure.layout.shapes
    assert (upright.x0, upright.x1, upright.line.dash, upright.line.color) == (2, 2, "dash", style.GREY)
    assert (level.y0, level.y1) == (0.5, 0.5)
    assert (diagonal.x0, diagonal.x1) == (diagonal.y0, diagonal.y1) and diagonal.line.color == style.BLUE
    drawn = [np.array(line.get_data()) for line in axes.lines[:3]]
    assert drawn[0][0].tolist() == [2, 2] and drawn[1][1].tolist() == [0.5, 0.5] and (drawn[2][0] == drawn[2][1]).all()


def test_bars_that_go_both_ways_stand_on_a_line() -> None:
    chart = one_panel(Series(np.arange(3.0), array(-1, 0, 2), "a", "bars"))
    (line,) = draw(chart).layout.shapes
    assert (line.y0, line.y1, line.line.dash) == (0, 0, "solid")
    assert draw(chart, "matplotlib").axes[0].lines[0].get_ydata() == [0, 0]
    assert not draw(one_panel(Series(np.arange(3.0), array(1, 0, 2), "a", "bars"))).layout.shapes


@pytest.mark.parametrize("axis", ["x", "y"])
def test_text_of_ticks_is_shown_as_it_stands(axis: str) -> None:
    places = np.arange(len(ODD), dtype=float)
    ticks = tuple(zip(places.tolist(), ODD, strict=True))
    chart = one_panel(Series(places, places, "a", "points"), **{f"{axis}_ticks": ticks})
    found = draw(chart).layout[f"{axis}axis"]
    assert [html.unescape(text.replace("<br>", "↲")) for text in found.ticktext] == list(ODD)
    assert list(found.tickvals) == places.tolist()
    assert not any("$" in text for text in found.ticktext)  # two of them would be read as a formula
    paper = draw(chart, "matplotlib").axes[0]
    labels = getattr(paper, f"get_{axis}ticklabels")()
    assert [label.get_text() for label in labels] == list(ODD) and not any(label.get_parse_math() for label in labels)


def test_ticks_that_would_touch_are_turned_and_then_thinned() -> None:
    def ticks(n: int, text: str) -> Any:
        return draw(one_panel(Series(np.arange(n) + 0.0, np.ones(n), "a", "bars"),
                              x_ticks=tuple((float(i), f"{text}{i}") for i in range(n)))).layout.xaxis  # fmt: skip

    assert (ticks(4, "t").tickangle, len(ticks(4, "t").tickvals)) == (0, 4)
    assert (ticks(25, "token").tickangle, len(ticks(25, "token").tickvals)) == (-90, 25)
    crowd = ticks(300, "token")
    assert crowd.tickangle == -90 and 20 < len(crowd.tickvals) < 60
    assert all(text == f"token{place:.0f}" for place, text in zip(crowd.tickvals, crowd.ticktext, strict=True))


def test_axes_that_count_have_whole_numbers_only() -> None:
    layers = one_panel(Series(np.arange(3.0), array(0.1, 0.2, 0.4), "a"), x_label="layer")
    assert draw(layers).layout.xaxis.dtick == 1 and draw(layers).layout.yaxis.dtick is None
    ticks = draw(layers, "matplotlib").axes[0].get_xticks()
    assert all(tick == round(tick) for tick in ticks)


# -- text ----------------------------------------------------------------------------------------------------------


def legend_on_screen(figure: Any) -> list[str]:
    return [html.unescape(trace.name) for trace in figure.data if trace.showlegend]


def legend_on_paper(figure: Any) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_a_name_is_in_the_legend_once_and_only_if_it_is_to_be_and_there_is_something() -> None:
    both = series(name="both & <>")
    left = Panel((both, series(name="left"), series(name="no", legend=False), series(name="", seed=2)))
    right = Panel(
        (series(name="both & <>", seed=1), Series(array(NAN), array(1), "nothing")), second=(series(name="_r"),)
    )
    chart = Chart(((left, right), (left,)), "")
    for names in (legend_on_screen(draw(chart)), legend_on_paper(draw(chart, "matplotlib"))):
        assert names == ["both & <>", "left", "_r"]
    figure = draw(chart)
    assert [trace.legendgroup for trace in figure.data].count("both & <>") == 3  # a click hides it everywhere
    assert not draw(one_panel(series(legend=False))).layout.showlegend
    assert not draw(one_panel(series(legend=False)), "matplotlib").legends


def test_points_too_pale_for_the_legend_have_an_entry_that_is_not() -> None:
    figure = draw(one_panel(series("points", opacity=0.1, size=2)))
    assert legend_on_screen(figure) == ["a"]
    (entry,) = (trace for trace in figure.data if trace.showlegend)
    assert entry.marker.opacity > 0.5 and entry.marker.size > 4 and entry.x == (None,)


def test_text_is_shown_as_it_stands() -> None:
    panel = Panel((series(name="$a$ <b>"),), title="$1 < $2 & 3", x_label="<i>x</i>", y_label="$y$")
    chart = Chart(((panel,),), "a & b <title> of $5", ("Costs $3 < $4 & more.",))
    figure = draw(chart)
    shown = [figure.layout.title.text, figure.layout.xaxis.title.text, figure.layout.yaxis.title.text,
             figure.data[0].name, *(one.text for one in figure.layout.annotations[:1])]  # fmt: skip
    expected = [chart.title, panel.x_label, panel.y_label, "$a$ <b>", panel.title]
    assert [html.unescape(text) for text in shown] == expected and not any("$" in text for text in shown)
    paper = draw(chart, "matplotlib")
    axes, (legend,) = paper.axes[0], paper.legends
    (title,) = (text for text in axes.get_children() if isinstance(text, Text) and text.get_text() == panel.title)
    texts = [*paper.texts, axes.xaxis.label, axes.yaxis.label, title, *legend.get_texts()]
    assert [text.get_text() for text in texts] == [chart.title, chart.notes[0], *expected[1:3], panel.title, "$a$ <b>"]
    assert not any(text.get_parse_math() for text in texts)


def test_named_points_have_their_labels_beside_them_in_both_renderers() -> None:
    labels = tuple(f"L{i}H{i}" for i in range(12))
    points = series("points", labels=labels, named=(0, 2, 4, 9))  # 4 has no value
    chart = one_panel(points, y_label="y")
    notes = [note for note in draw(chart).layout.annotations if note.xref == "x"]
    assert [(note.text, note.x, note.y) for note in notes] == [(labels[i], points.x[i], points.y[i]) for i in (0, 2, 9)]
    drawn = draw(chart, "matplotlib").axes[0].texts
    assert [(text.get_text(), *text.xy) for text in drawn] == [(note.text, note.x, note.y) for note in notes]


def test_labels_of_points_on_logarithmic_axes_are_at_the_points() -> None:
    chart = one_panel(Series(array(1, 1000), array(10, 100), "a", "points", labels=("p", "q"), named=(1,)),
                      x_log=True, y_log=True)  # fmt: skip
    (note,) = draw(chart).layout.annotations
    assert (note.x, note.y) == (pytest.approx(3), pytest.approx(2))  # plotly counts decades
    assert draw(chart, "matplotlib").axes[0].texts[0].xy == (1000, 100)


@pytest.mark.parametrize("ruler", [SCREEN, PAPER])
def test_labels_of_points_that_coincide_stand_apart_within_the_panel(ruler: chart_places.Ruler) -> None:
    at = array(*[0.5] * 6, 1.0, 0.0)
    names = tuple(f"L{i}H1{i}" for i in range(8))
    panel = Panel((Series(at, at, "a", "points", labels=names, named=tuple(range(8))),))
    inner = 300 if ruler is SCREEN else 2.0
    (frame,) = chart_places.arrange([[panel]], 0.75, ruler, inner).frames
    found = chart_places.beside(frame, ruler)
    assert {one.text for one in found} == set(names)
    boxes = []
    for one in found:
        x, y = frame.at(array(one.x), array(one.y))[0] + one.offset
        width, height = chart_places.em(one.text) * ruler.small, ruler.small
        left = x - (width if one.align == "right" else 0)
        boxes.append((left, y - height / 2, left + width, y + height / 2))
    for a, b in itertools.combinations(boxes, 2):
        assert min(a[2], b[2]) <= max(a[0], b[0]) + 1e-9 or min(a[3], b[3]) <= max(a[1], b[1]) + 1e-9
    assert all(x0 >= 0 and x1 <= frame.width and y0 >= 0 and y1 <= frame.height for x0, y0, x1, y1 in boxes)


def test_a_name_beyond_the_end_of_a_bar_finds_room_in_the_panel() -> None:
    bars = Series(array(5, 9), np.arange(2.0), "a", "bars", labels=("shorter", "a name of a bar"), named=(1,))
    figure = draw(one_panel(bars, horizontal=True), "matplotlib", 3.25)
    axes = figure.axes[0]
    assert axes.texts[0].get_window_extent().x1 <= axes.get_window_extent().x1
    assert axes.texts[0].get_window_extent().x0 >= axes.transData.transform((9, 1))[0]


@pytest.mark.parametrize("renderer", ["plotly", "matplotlib"])
@pytest.mark.parametrize("empty", [(), (Series(array(), array(), "a"),), (Series(array(NAN, 1), array(1, NAN), "a"),)])
def test_a_panel_without_a_point_says_so(renderer: Renderer, empty: tuple[Series, ...]) -> None:
    figure = draw(Chart(((Panel(empty), Panel((series(),))),), ""), renderer)
    if renderer == "plotly":
        assert [(one.text, one.xref) for one in figure.layout.annotations] == [(chart_places.NOTHING, "x domain")]
        assert list(figure.layout.xaxis.range) != list(figure.layout.xaxis2.range)
    else:
        assert [[text.get_text() for text in axes.texts] for axes in figure.axes] == [[chart_places.NOTHING], []]


def test_nothing_above_zero_is_nothing_to_show_on_a_logarithmic_axis() -> None:
    assert Panel((Series(array(1), array(-1), "a"),), y_log=True).empty
    assert not Panel((Series(array(1), array(-1), "a"),)).empty


def test_hovering_shows_label_name_numbers_and_columns() -> None:
    hover = {"gate & <g>": np.arange(12.0) / 7}
    points = series("points", name="50 %{x} of <all>", labels=tuple("<&$%{y}" + str(i) for i in range(12)), hover=hover)
    trace = draw(one_panel(points, x_label="layer", y_label="effect (nats)")).data[0]
    assert html.unescape(trace.hovertext[2]) == "<&$%{y}2"
    template = trace.hovertemplate
    assert "%{hovertext}" in template and "layer: %{x:" in template and "effect (nats): %{y:" in template
    assert "gate &amp; &lt;g&gt; %{customdata[2]" in template and "%{x}" not in template  # a name fills nothing in
    np.testing.assert_allclose(trace.customdata, np.column_stack([points.low, points.high, hover["gate & <g>"]]), 1e-6)


def test_hovering_names_the_tick_that_a_bar_stands_at() -> None:
    bars = Series(array(0.2, 1.2), array(3, 4), "a", "bars")
    trace = draw(one_panel(bars, x_ticks=((0.0, "zero"), (1.0, "one")))).data[0]
    assert list(trace.hovertext) == ["zero", "one"] and "x:" not in trace.hovertemplate


# -- places --------------------------------------------------------------------------------------------------------


def crowd(columns: int, rows: int = 1) -> Chart:
    """Panels with all that takes room: long names, second axes, turned ticks, titles of several lines."""
    long = "a name of a control that goes on for longer than anyone would like"
    bars = Panel((series("bars", labels=("a long label",) * 12, named=(0, 11)),), title=long, y_label=long,
                 x_ticks=tuple((float(i), f"{ODD[i % 6]} {i}") for i in range(12)))  # fmt: skip
    flat = Panel((lying(series("bars", name=long)),), horizontal=True, flipped=True, x_label=long,
                 y_ticks=tuple((float(i), long if i % 3 else f"L{i}") for i in range(12)))  # fmt: skip
    twin = Panel((series("points"),), second=(series(name="b", seed=1),), second_label=long, y_label="y", title="twin")
    small = Panel(
        (series("band", low=np.arange(12) * 1e-7, high=np.arange(12) * 1e-6, y=np.arange(12.0)),), x_label="x"
    )
    log = Panel((Series(10.0 ** np.arange(-9, 9), 10.0 ** np.arange(18), "log"),), x_log=True, y_log=True, y_label="y")
    square = Panel((series("arrows"),), square=True, title="square", x_label="x", y_label="y")
    kinds = itertools.cycle((bars, flat, twin, small, log, square))
    grid = tuple(tuple(next(kinds) for _ in range(columns if row == 0 else 1)) for row in range(rows))
    return Chart(grid, f"a figure whose title is {long}, and longer", ("A note that is long enough to be broken.",) * 4)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("columns", "rows"), [(6, 1), (2, 4)])
def test_no_text_leaves_the_paper(width: float, columns: int, rows: int) -> None:
    figure = draw(crowd(columns, rows), "matplotlib", width)
    assert figure.get_figwidth() == width
    box = figure.get_tightbbox()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= figure.get_figheight()


@pytest.mark.parametrize("width", WIDTHS)
def test_no_text_covers_another_panel_the_legend_or_the_notes(width: float) -> None:
    figure = draw(crowd(3, 2), "matplotlib", width)
    panels: dict[Any, list[Any]] = {}
    for axes in figure.axes:  # both axes of a panel are one
        panels.setdefault(axes.get_position().bounds, []).append(axes.get_tightbbox())
    boxes = [Bbox.union(parts) for parts in panels.values()]
    boxes += [part.get_window_extent() for part in (*figure.texts, *figure.legends)]
    for a, b in itertools.combinations(boxes, 2):
        common = Bbox.intersection(a, b)
        assert common is None or min(common.width, common.height) < 1  # pixel


@pytest.mark.parametrize("columns", [1, 3, 6])
def test_panels_on_screen_have_room_for_their_text_within_the_figure(columns: int) -> None:
    chart = crowd(columns, 2)
    figure = draw(chart)
    layout = figure.layout
    whole = layout.width - layout.margin.l - layout.margin.r, layout.height - layout.margin.t - layout.margin.b
    boxes = []
    for number in range(1, columns + 2):
        suffix = "" if number == 1 else str(number)
        across, up = layout[f"xaxis{suffix}"].domain, layout[f"yaxis{suffix}"].domain
        assert 0 <= across[0] < across[1] <= 1 and 0 <= up[0] < up[1] <= 1
        boxes.append((across[0], up[0], across[1], up[1]))
    for a, b in itertools.combinations(boxes, 2):
        assert min(a[2], b[2]) < max(a[0], b[0]) or min(a[3], b[3]) < max(a[1], b[1])
    widths = [round((box[2] - box[0]) * whole[0]) for box in boxes]
    assert len(set(widths)) == 1 and widths[0] >= 180
    if columns > 1:  # names of rows are between their panel and the one before it
        names = max(
            chart_places.em(html.unescape(line)) for text in layout.yaxis2.ticktext for line in text.split("<br>")
        )
        assert (boxes[1][0] - boxes[0][2]) * whole[0] > names * SCREEN.small


@pytest.mark.parametrize("columns", range(1, 7))
def test_a_column_breaks_rows_of_more_than_two_panels(columns: int) -> None:
    plain = tuple(Panel((series(name=str(i), seed=i),), y_label="y") for i in range(columns))
    figure = draw(Chart((plain,), ""), "matplotlib", 3.25)
    places = [axes.get_position() for axes in figure.axes]
    assert [axes.lines[0].get_label() for axes in figure.axes] == [str(i) for i in range(columns)]
    rows = [len(list(group)) for _, group in itertools.groupby(places, lambda place: round(place.y0, 6))]
    assert max(rows) <= 2 and sum(rows) == columns
    assert all(place.width * 3.25 > 0.9 for place in places)
    page = draw(Chart((plain,), ""), "matplotlib", 6.75)
    assert all(axes.get_position().width * 6.75 > 0.9 for axes in page.axes)


def test_rows_are_broken_into_rows_of_about_the_same_number() -> None:
    for panels, most in itertools.product(range(1, 7), range(1, 7)):
        row = [Panel((), title=str(i)) for i in range(panels)]
        found = chart_places.broken([row, row[:1]], most)
        assert [panel for part in found for panel in part] == [*row, row[0]]
        sizes = [len(part) for part in found[:-1]]
        assert max(sizes) <= most and len(sizes) == -(-panels // most)


def test_a_y_axis_that_neighbours_share_has_its_text_once() -> None:
    ticks = ((0.0, "zero"), (1.0, "one"))
    panel = Panel((Series(array(1, 2), array(0, 1), "a", "bars"),), horizontal=True, y_ticks=ticks, y_label="rows")
    other = dataclasses.replace(panel, y_range=(-3.0, 3.0))
    figure = draw(Chart(((panel, panel, other),), ""))
    axes = [figure.layout[name] for name in ("yaxis", "yaxis2", "yaxis3")]
    assert [one.showticklabels for one in axes] == [True, False, True]
    paper = draw(Chart(((panel, panel, other),), ""), "matplotlib")
    assert [one.get_ylabel() for one in paper.axes] == ["rows", "", "rows"]


def test_rows_of_names_get_a_panel_high_enough_to_read_them() -> None:
    def height(n: int) -> float:
        bars = Series(np.ones(n), np.arange(n) + 0.0, "a", "bars")
        ticks = tuple((float(i), f"row {i}") for i in range(n))
        axis = draw(one_panel(bars, horizontal=True, y_ticks=ticks)).layout
        assert len(axis.yaxis.tickvals) == n
        return float(axis.height)

    assert height(5) == height(10) < height(60)


@pytest.mark.parametrize("most", [4.0, 9.0, 30.0])
def test_folded_lines_fit_and_lose_nothing_unless_they_say_so(most: float) -> None:
    for text in (*ODD, "one", "some words and averyveryverylongone", "中文标记 and 한국어", "", "a  b", " the"):
        lines = chart_places.folded(text, most)
        assert all(chart_places.em(line) <= most for line in lines) and len(lines) <= 3
        kept = "".join("".join(lines).split())
        assert kept == "".join(text.split()) or lines[-1].endswith("…")


def test_text_that_the_font_lacks_gets_another_one_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, chinese = one_panel(series(name="ä ↵ Δ")), one_panel(series(), y_ticks=((0.0, "标记"),))
    installed = [SimpleNamespace(name=name) for name in ("DejaVu Sans", "Noto Sans CJK JP", "Comic")]
    monkeypatch.setattr(printed_charts.font_manager.fontManager, "ttflist", installed)
    assert printed_charts._fonts(plain) == ["DejaVu Sans"]
    assert printed_charts._fonts(chinese) == ["DejaVu Sans", "Noto Sans CJK JP"]


# -- as a whole ----------------------------------------------------------------------------------------------------


def test_equal_charts_give_equal_bytes(tmp_path: Path) -> None:
    first, second = (plots.save(draw(crowd(6), "matplotlib"), tmp_path / f"{i}.svg").read_bytes() for i in range(2))
    assert first == second and b"a name of a control" in first


@pytest.mark.parametrize("log", [False, True])
def test_twenty_thousand_points_stay_small(tmp_path: Path, log: bool) -> None:
    x, y = np.random.default_rng(0).uniform(1, 2, (2, 20_000))
    points = Series(x, y, "rows", "points", labels=tuple(map(str, range(20_000))), named=(5,), opacity=0.3)
    chart = one_panel(points, x_log=log)
    trace = draw(chart).data[-1]
    assert trace.type == "scattergl" and len(trace.x) == 20_000
    empty = plots.save(draw(one_panel(series())), tmp_path / "empty.html").stat().st_size
    assert plots.save(draw(chart), tmp_path / "a.html").stat().st_size - empty < 1.5e6
    printed = plots.save(draw(chart, "matplotlib", 3.25), tmp_path / "a.svg").read_bytes()
    assert printed.count(b"<image") == 1 and printed.count(b"<use") < 200  # pixels: as vectors it would be one for each
    assert draw(one_panel(series("points"))).data[0].type == "scatter"


def test_bars_after_a_line_are_drawn_over_it() -> None:
    over, under = one_panel(series(), series("bars", name="b")), one_panel(series("bars", name="b"), series())
    first, second = draw(over).data
    assert second.zorder > first.zorder
    assert {trace.zorder for trace in draw(under).data} == {None}
    axes = draw(over, "matplotlib").axes[0]
    assert axes.patches[0].get_zorder() > axes.lines[-1].get_zorder()


def test_dark_paper_repaints_all_text() -> None:
    """The report sets one colour for all text: none may have its own, and no line may be black or white."""
    ink = series("line", colour=style.INK, labels=tuple("abcdefghijkl"), named=(0, 1))
    figure = draw(one_panel(ink, series("arrows", name="b", seed=1), rules=(Rule("y", 0.5),), x_label="x", title="t"))
    layout = figure.layout
    fonts = [layout.legend.font, layout.title.font, layout.xaxis.tickfont, layout.xaxis.title.font]
    assert [font.color for font in (*fonts, *(note.font for note in layout.annotations))] == [None] * (4 + 3)
    assert layout.plot_bgcolor == layout.legend.bgcolor == "rgba(0,0,0,0)"
    drawn = str([trace.to_plotly_json() for trace in figure.data] + [shape.to_plotly_json() for shape in layout.shapes])
    assert not any(colour in drawn for colour in (style.INK, "black", "white", "#000", "#fff"))


def test_the_smallest_chart_is_drawn(tmp_path: Path) -> None:
    for look in ("line", "points", "bars", "band", "arrows"):
        one = Series(array(0), array(0), "a", look, low=array(0), high=array(0), x_from=array(0), y_from=array(0))
        assert plots.save(draw(one_panel(one), "matplotlib", 2), tmp_path / "a.svg").stat().st_size > 1000
        assert len(draw(one_panel(one)).data) == 1


def test_the_frame_holds_all_that_is_drawn() -> None:
    chart = one_panel(series("band"), second=(series("arrows", name="b"),), title="p")
    frame = chart.to_frame()
    assert list(frame) == ["panel", "series", "label", "x", "y", "low", "high", "x_from", "y_from"]
    assert len(frame) == 24 and set(frame["series"]) == {"a", "b"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"named": (12,), "labels": ("a",) * 12}, r"named must be in 0 … 11; got \[12\]"),
        ({"opacity": 0.0}, r"opacity must be in \(0, 1\]; got 0.0"),
        ({"look": "dots"}, "look must be one of line, points"),
        ({"low": np.zeros(3)}, r"low must be \[12\]; got \[3\]"),
        ({"named": (1,)}, "named points need labels"),
    ],
)
def test_series_that_cannot_be_drawn_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        series(**changes)


def test_panels_that_cannot_be_drawn_are_refused() -> None:
    with pytest.raises(ValueError, match=r"x_range of a logarithmic axis must be above 0; got \(0, 1\)"):
        Panel((), x_log=True, x_range=(0, 1))
    with pytest.raises(ValueError, match="both axes linear, or both logarithmic"):
        Panel((), y_log=True, rules=(Rule("diagonal"),))
    with pytest.raises(ValueError, match="nor longer than the first"):
        Chart(((Panel(()),), (Panel(()), Panel(()))), "")
    with pytest.raises(ValueError, match="width is the printed width"):
        draw(one_panel(series()), width=3.25)
