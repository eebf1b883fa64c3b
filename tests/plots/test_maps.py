"""Both renderers draw the numbers of the table, on fixed scales."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from matplotlib.collections import QuadMesh

from jola_interp import analysis, plots
from jola_interp.analysis import GridMap, Sheet
from jola_interp.analysis.grids import reach
from jola_interp.plots import map_layout, style
from jola_interp.plots.maps import compare_heads
from jola_interp.runs import Run
from tests.runs_by_hand import make_run

DRAWN = {"heads": analysis.head_maps, "gate_snapshots": analysis.snapshots}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("run"))


def heatmaps(figure: go.Figure) -> list[go.Heatmap]:
    return [trace for trace in figure.data if isinstance(trace, go.Heatmap)]


def meshes(figure: Any) -> list[QuadMesh]:
    """The panels' meshes, without that of the colour bar."""
    panels = [axes for axes in figure.axes if axes.get_label() != "colour bar"]
    return [mesh for axes in panels for mesh in axes.collections if isinstance(mesh, QuadMesh)]


def lines(figure: go.Figure) -> list[Any]:
    return [shape for shape in figure.layout.shapes if shape.type == "line"]


def hatched(figure: Any, panel: int) -> list[tuple[float, float]]:
    dark, light = (sorted(zip(*line.get_data(), strict=True)) for line in figure.axes[panel].lines[:2])
    assert dark == light
    return dark


@pytest.mark.parametrize("name", DRAWN)
def test_both_renderers_draw_the_table(run: Run, name: str) -> None:
    table = DRAWN[name](run)
    screen = heatmaps(getattr(plots, name)(run))
    paper = meshes(getattr(plots, name)(run, renderer="matplotlib"))
    assert len(screen) == len(paper) == len(table.panels)
    for panel, trace, mesh in zip(table.panels, screen, paper, strict=True):
        assert np.array_equal(trace.z, panel.values, equal_nan=True)
        drawn = np.ma.filled(mesh.get_array(), np.nan).reshape(panel.shape)
        assert np.array_equal(drawn, panel.values, equal_nan=True)


def test_probabilities_are_drawn_from_zero_to_one(run: Run) -> None:
    figure = plots.heads(run)
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, 1)
    assert [trace.coloraxis for trace in heatmaps(figure)] == ["coloraxis", "coloraxis", None]
    cividis = [colour for _, colour in go.Figure(layout_coloraxis_colorscale="cividis").layout.coloraxis.colorscale]
    assert [colour for _, colour in figure.layout.coloraxis.colorscale] == cividis
    for mesh in meshes(plots.heads(run, renderer="matplotlib"))[:2]:
        assert mesh.get_clim() == (0, 1) and mesh.get_cmap().name == "cividis"


def test_statuses_have_one_colour_each(run: Run) -> None:
    trace = heatmaps(plots.heads(run))[-1]
    assert (trace.zmin, trace.zmax, len(trace.colorscale)) == (-0.5, 3.5, 8)
    mesh = meshes(plots.heads(run, renderer="matplotlib"))[-1]
    assert mesh.get_clim() == (-0.5, 3.5)
    for code, colour in enumerate(style.STATUSES):
        rgb = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        np.testing.assert_allclose(mesh.to_rgba([code])[0][:3], rgb)  # type: ignore[arg-type]


def test_the_legend_counts_the_statuses(run: Run) -> None:
    counts = analysis.status_map(run).counts()
    names = [trace.name for trace in plots.heads(run).data if trace.showlegend]
    assert names == [f"{name} · {count}" for name, count in counts.items()] + ["undecided gate"]
    legend = plots.heads(run, renderer="matplotlib").legends[0]
    assert [text.get_text() for text in legend.get_texts()] == [
        *(f"{name} {count}" for name, count in counts.items()),
        "undecided gate",
    ]


def test_undecided_gates_are_hatched_in_both(run: Run) -> None:
    screen, paper = plots.heads(run), plots.heads(run, renderer="matplotlib")
    marks = [trace for trace in screen.data if trace.name == "undecided gate" and not trace.showlegend]
    for index, panel in enumerate(analysis.head_maps(run).panels):
        expected = sorted((unit, layer) for layer, unit in zip(*panel.hatched, strict=True))
        strokes = marks[2 * index : 2 * index + 2]
        assert all(sorted(zip(one.x, one.y, strict=True)) == expected for one in strokes)
        assert hatched(paper, index) == expected
    text = " ".join(note.text.replace("<br>", " ") for note in screen.layout.annotations)
    assert "of 24 gates" in text and "decided" in text


def test_hovering_names_the_head_its_gate_and_its_vectors(run: Run) -> None:
    additive, _, status = heatmaps(plots.heads(run))
    assert additive.hovertemplate.startswith("<b>L%{y}H%{x}</b><br>P(open) %{z:.3f}<br>‖g_a a‖ %{customdata[0]:.3f}")
    np.testing.assert_allclose(additive.customdata[..., 1], analysis.gate_maps(run)["additive"].hover["‖g_m m‖"])
    assert status.text[0][0] in ("none", "additive", "multiplicative", "both")


def test_layer_zero_is_at_the_bottom(run: Run) -> None:
    assert list(plots.heads(run).layout.yaxis.range) == [-0.5, 2.5]
    assert plots.heads(run, renderer="matplotlib").axes[0].get_ylim() == (-0.5, 2.5)


def test_lines_part_heads_that_share_keys(run: Run, tmp_path: Path) -> None:
    assert [line.x0 for line in lines(plots.heads(run))] == [1.5, 1.5, 1.5]
    paper = plots.heads(run, renderer="matplotlib")
    assert [line.get_xdata()[0] for line in paper.axes[0].lines[2:]] == [1.5]
    assert not lines(plots.heads(make_run(tmp_path, kv_heads=4)))


@pytest.mark.parametrize("renderer", ["plotly", "matplotlib"])
@pytest.mark.parametrize(
    "switches",
    [
        {"operations": "add"},
        {"operations": "multiply"},
        {"gates": "shared"},
        {"only": {"heads": ["L0H1"]}},
        {"layers": 1, "heads": 1, "kv_heads": 1},
    ],
    ids=str,
)
def test_every_kind_of_edit_is_drawn(tmp_path: Path, renderer: Any, switches: dict[str, Any]) -> None:
    run = make_run(tmp_path, **switches)
    for draw in (plots.heads, plots.gate_snapshots):
        assert draw(run, renderer=renderer) is not None


@pytest.mark.parametrize("renderer", ["plotly", "matplotlib"])
def test_edits_without_gates_are_refused(tmp_path: Path, renderer: Any) -> None:
    run = make_run(tmp_path, gates="none")
    for draw in (plots.heads, plots.gate_snapshots, plots.gate_trajectories):
        with pytest.raises(ValueError, match="no gates at heads"):
            draw(run, renderer=renderer)


def hand_made(values: np.ndarray, kind: Any = "probability", high: float = 1.0) -> Sheet:
    labels = np.full(values.shape, "", dtype=object)
    return Sheet(((GridMap(values, "a $x$ <b>", labels, np.isfinite(values), (0.0, high), kind),),), "t <i> $y$")


def test_maps_of_nothing_are_drawn() -> None:
    empty = hand_made(np.full((2, 2), np.nan, dtype=np.float32))
    assert np.isnan(heatmaps(plots.sheet(empty))[0].z).all()
    assert meshes(plots.sheet(empty, "matplotlib"))[0].get_array().mask.all()  # type: ignore[union-attr]


def test_magnitudes_keep_the_range_they_are_given() -> None:
    table = hand_made(np.array([[0.5, 7.0]]), "magnitude", 9.0)
    assert plots.sheet(table).layout.coloraxis.cmax == 9
    assert meshes(plots.sheet(table, "matplotlib"))[0].get_clim() == (0, 9)


def test_names_from_data_are_no_markup_and_no_formulas() -> None:
    table = hand_made(np.zeros((1, 1)))
    figure = plots.sheet(table)
    assert figure.layout.title.text == "t &lt;i&gt; $y$"
    assert figure.layout.annotations[0].text == "a $x$ &lt;b&gt;"
    paper = plots.sheet(table, "matplotlib")
    assert not any(text.get_parse_math() for text in paper.texts) and not paper.axes[0]._left_title.get_parse_math()


def test_ticks_thin_out_on_large_maps() -> None:
    table = hand_made(np.zeros((100, 128), dtype=np.float32))
    figure, paper = plots.sheet(table), plots.sheet(table, "matplotlib", width=3.25)
    assert len(figure.layout.xaxis.tickvals) <= 16 and len(figure.layout.yaxis.tickvals) <= 30
    assert len(paper.axes[0].get_xticks()) <= 20 and len(paper.axes[0].get_yticks()) <= 20
    assert paper.axes[0].collections[0].get_rasterized()


def test_tick_places_are_even_and_follow_groups() -> None:
    assert style.tick_places(9, 7, 3) == [0, 3, 6]
    assert style.tick_places(30, 6) == [0, 5, 10, 15, 20, 25]
    assert style.tick_places(32, 5, 4) == [0, 8, 16, 24]
    assert style.tick_places(1, 1) == [0]


def test_labels_are_moved_apart_in_their_order() -> None:
    values = [1.0, 1.0, 0.99, 0.2, 0.0]
    moved = style.spread(values, 0.1, 0.0, 1.0)
    assert sorted(np.argsort(moved)[:2]) == [3, 4] and moved[3] == 0.2
    assert np.diff(sorted(moved)).min() >= 0.1 - 1e-9
    assert min(moved) >= 0 and max(moved) <= 1
    assert len(style.spread([0.5] * 50, 0.1, 0.0, 1.0)) == 50
    assert style.spread([], 0.1, 0, 1) == []


def test_renderer_and_width_are_checked(run: Run) -> None:
    with pytest.raises(ValueError, match="renderer must be plotly or matplotlib; got 'bokeh'"):
        plots.heads(run, renderer="bokeh")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pass renderer='matplotlib'"):
        plots.loss(run, width=3.25)
    with pytest.raises(ValueError, match="between 2 and 20 inches"):
        plots.gate_trajectories(run, renderer="matplotlib", width=82)
    with pytest.raises(ValueError, match="rule"):
        plots.heads(run, "open a bit")


# -- panels of several scales --------------------------------------------------------------------------------------


def named(shape: tuple[int, int]) -> np.ndarray:
    return np.array([[f"L{i}H{j}" for j in range(shape[1])] for i in range(shape[0])], dtype=object)


def one(values: np.ndarray, kind: Any, **more: Any) -> GridMap:
    more = {"range": reach(kind, values, log=more.get("log", False)), "mask": np.isfinite(values), **more}
    return GridMap(values, more.pop("title", "a title"), more.pop("labels", named(values.shape)), kind=kind, **more)


def several() -> Sheet:
    values = np.random.default_rng(0).normal(size=(6, 5))
    panels = (
        one(abs(values) / 9, "probability"),
        one(abs(values), "magnitude", unit="share of the stream's norm"),
        one(values, "signed", unit="ΔCE, nats"),
        one(abs(values), "magnitude", unit="share", log=True),
    )
    return Sheet((panels,), "t", ("a note",), margin=True)


def bars(figure: Any) -> list[Any]:
    return [axes for axes in figure.axes if axes.get_label() == "colour bar"]


def margins(figure: Any) -> list[Any]:
    return [axes for axes in figure.axes if axes.get_label() == "margin"]


def test_each_scale_has_a_colour_bar_of_its_own() -> None:
    table = several()
    figure = plots.sheet(table)
    axes = [figure.layout[trace.coloraxis] for trace in heatmaps(figure)]
    assert [one.colorbar.title.text.replace("<br>", " ") for one in axes] == [panel.measure for panel in table.panels]
    assert len({one.colorbar.x for one in axes}) == 4
    paper = plots.sheet(table, "matplotlib")
    labels = [one.get_xlabel().replace("\n", " ") for one in bars(paper)]
    assert labels == [panel.measure for panel in table.panels]
    for bar, axis in zip(bars(paper), paper.axes, strict=False):
        assert bar.get_position().x0 == pytest.approx(axis.get_position().x0)  # under its own column


def test_panels_of_one_scale_share_a_bar() -> None:
    values = np.array([[1.0, 2.0]])
    same = [one(values, "magnitude", unit="nats", range=(0.0, high)) for high in (3.0, 3.0, 4.0)]
    figure = plots.sheet(Sheet((tuple(same),), "t"))
    assert [trace.coloraxis for trace in heatmaps(figure)] == ["coloraxis", "coloraxis", "coloraxis2"]
    assert len(bars(plots.sheet(Sheet((tuple(same),), "t"), "matplotlib"))) == 2


def test_no_title_stands_for_panels_of_several() -> None:
    values = np.array([[1.0, 2.0]])
    panels = tuple(one(values, "magnitude", title=title) for title in ("local", "total"))
    (bar,) = map_layout.bars_of(Sheet((panels,), "t")).values()
    assert bar.text == "value"
    (bar,) = map_layout.bars_of(Sheet((panels[:1],), "t")).values()
    assert bar.text == "local"


def test_bars_stand_beside_their_rows_and_never_on_each_other() -> None:
    values = np.random.default_rng(0).random((6, 5))
    rows = tuple((one(values, "magnitude", unit=f"unit {i}"),) * 2 for i in range(3))
    figure = plots.sheet(Sheet(rows, "t"))
    traces = heatmaps(figure)
    for row in range(3):
        trace = traces[2 * row]
        bar, axis = figure.layout[trace.coloraxis].colorbar, figure.layout[trace.yaxis.replace("y", "yaxis")]
        assert bar.y == pytest.approx(axis.domain[1])
    together = tuple(one(values, "magnitude", unit=f"unit {i}") for i in range(2))
    figure = plots.sheet(Sheet((together, together[::-1]), "t"))
    (top, low) = sorted((figure.layout[name].colorbar for name in ("coloraxis", "coloraxis2")), key=lambda bar: -bar.y)
    area = figure.layout.height - figure.layout.margin.t - figure.layout.margin.b
    assert top.y - top.len / area >= low.y or top.x != low.x


def test_signed_colours_are_white_at_zero_and_as_far_both_ways() -> None:
    values = np.array([[-1.0, 0.0, 4.0]])
    table = Sheet(((one(values, "signed", range=(-1.0, 4.0)),),), "t")
    axis = plots.sheet(table).layout.coloraxis
    assert (axis.cmin, axis.cmax) == (-4, 4)
    assert axis.colorscale[2] == (0.5, "#FFFFFF")
    (mesh,) = meshes(plots.sheet(table, "matplotlib"))
    assert mesh.get_clim() == (-4, 4)
    np.testing.assert_allclose(mesh.to_rgba([0.0])[0], 1, atol=0.01)  # type: ignore[arg-type]


def test_the_ends_of_signed_colours_are_equally_dark_and_neither_red_nor_green() -> None:
    low, high = (
        np.array([int(end[i : i + 2], 16) for i in (1, 3, 5)]) for end in np.array(map_layout.SCALES["signed"])[[0, -1]]
    )
    grey = np.array([0.2126, 0.7152, 0.0722])
    assert abs(grey @ low - grey @ high) < 20
    assert low[2] == low.max() and high[0] > high[1] > high[2]


def test_blank_cells_are_no_zeros() -> None:
    values = np.array([[np.nan, 0.0]])
    for kind, ground in (("signed", map_layout.BLANK_BESIDE_WHITE), ("magnitude", map_layout.BLANK)):
        table = Sheet(((one(values, kind),),), "t")
        assert plots.sheet(table).layout.plot_bgcolor == ground[0]
        paper = plots.sheet(table, "matplotlib")
        np.testing.assert_allclose(paper.axes[0].get_facecolor()[:3], int(ground[1][1:3], 16) / 255)
    with_none = np.array([[0.0, 1.0]])
    status = one(with_none, "status", range=(0.0, 3.0), categories=(0, 1))
    beside = Sheet(((status, one(values, "signed")),), "t")
    assert heatmaps(plots.sheet(beside))[0].colorscale[0][1] == style.STATUSES[0]  # not darkened by the ground


def test_logarithmic_colours_show_logarithms_and_leave_zeros_blank() -> None:
    values = np.array([[0.0, 0.01, 1.0, np.nan]])
    table = Sheet(((one(values, "magnitude", log=True, unit="share"),),), "t")
    figure = plots.sheet(table)
    (trace,) = heatmaps(figure)
    np.testing.assert_allclose(trace.z, [[np.nan, -2, 0, np.nan]])
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (-2, 0)
    assert list(figure.layout.coloraxis.colorbar.ticktext) == ["0.01", "0.1", "1"]
    assert "share %{customdata[0]:.4g}" in trace.hovertemplate
    np.testing.assert_allclose(trace.customdata[0, 1:3, 0], [0.01, 1.0])
    (mesh,) = meshes(plots.sheet(table, "matplotlib"))
    assert mesh.norm(0.1) == pytest.approx(0.5) and mesh.get_array().mask.tolist() == [[True, False, False, True]]
    assert [entry.name for entry in map_layout.legend_of(table)] == ["not editable", "0"]


@pytest.mark.parametrize(("low", "high"), [(1e-4, 10.0), (0.2, 0.9), (3.0, 3.1), (1e-12, 1e6), (1.0, 10.0)])
def test_logarithmic_ticks_are_few_and_within_the_scale(low: float, high: float) -> None:
    places = map_layout.log_ticks(low, high)
    assert 2 <= len(places) <= 7 and all(low <= place <= high for place in places)


def test_hovering_says_the_label_that_a_cell_has() -> None:
    values = np.zeros((2, 2))
    plain = heatmaps(plots.sheet(Sheet(((one(values, "probability"),),), "t")))[0]
    assert plain.hovertemplate.startswith("<b>L%{y}H%{x}</b>") and plain.hovertext is None
    labels = np.array([["<s> → a", "b"], ["c", "d"]], dtype=object)
    other = heatmaps(plots.sheet(Sheet(((one(values, "probability", labels=labels),),), "t")))[0]
    assert other.hovertemplate.startswith("<b>%{hovertext}</b>")
    assert other.hovertext[0][0] == "&lt;s&gt; → a" and other.hovertext[1][1] == "d"
    none = one(values, "probability", labels=np.full((2, 2), "", dtype=object), x_label="key", y_label="query")
    assert "query %{y}, key %{x}" in heatmaps(plots.sheet(Sheet(((none,),), "t")))[0].hovertemplate


def attention() -> Sheet:
    words = tuple((float(i), f"{'long' * (i % 3)}$w$<{i}>") for i in range(8))
    panel = one(
        np.tril(np.ones((8, 8))), "magnitude", x_ticks=words, y_ticks=words, flipped=True, x_label="key",
        y_label="query", absent="", mask=np.tril(np.ones((8, 8), bool)),
    )  # fmt: skip
    return Sheet(((panel, panel),), "t")


def test_texts_stand_at_their_places_as_they_are() -> None:
    figure, paper = plots.sheet(attention()), plots.sheet(attention(), "matplotlib")
    assert list(figure.layout.yaxis.tickvals) == list(range(8))
    assert figure.layout.xaxis.ticktext[1] == "long$w$&lt;1&gt;"
    assert [text.get_text() for text in paper.axes[0].get_yticklabels()][1] == "long$w$<1>"
    assert not any(text.get_parse_math() for text in paper.axes[0].get_xticklabels())
    assert not map_layout.legend_of(attention())


def test_flipped_maps_begin_at_the_top() -> None:
    figure, paper = plots.sheet(attention()), plots.sheet(attention(), "matplotlib")
    assert list(figure.layout.yaxis.range) == [7.5, -0.5] and paper.axes[0].get_ylim() == (7.5, -0.5)


def test_many_texts_are_thinned_and_long_ones_cut() -> None:
    ticks = tuple((float(i), "x" * 90) for i in range(400))
    for most in (1, 7, 400, 1000):
        found = map_layout.thinned(ticks, most)
        assert 0 < len(found) <= most and all(len(text) <= map_layout.LONGEST for _, text in found)
    assert map_layout.thinned((), 5) == ()


def test_margins_are_the_tables_and_zoom_with_their_maps(run: Run) -> None:
    table = analysis.head_maps(run)
    figure, paper = plots.heads(run), plots.heads(run, renderer="matplotlib")
    drawn = [trace for trace in figure.data if isinstance(trace, go.Bar)]
    expected = [lengths for panel in table.panels for lengths in panel.margin()]
    assert len(drawn) == len(expected) == 1 + 1 + 3
    for trace, lengths in zip(drawn, expected, strict=True):
        np.testing.assert_allclose(trace.x, lengths)
    for trace in drawn:
        assert figure.layout[trace.yaxis.replace("y", "yaxis")].matches in ("y", "y2", "y3")
    for axes, panel in zip(margins(paper), table.panels, strict=True):
        widths = [patch.get_width() for patch in axes.patches]
        np.testing.assert_allclose(widths, panel.margin().reshape(-1))
    assert figure.layout.legend.traceorder == "normal"


def test_maps_of_one_unit_a_layer_have_no_margin(tmp_path: Path) -> None:
    run = make_run(tmp_path, sites=("heads", "mlp"))
    figure, paper = plots.heads(run, site="mlp"), plots.heads(run, site="mlp", renderer="matplotlib")
    assert not margins(paper) and not any(isinstance(trace, go.Bar) for trace in figure.data)


def test_two_runs_are_drawn_below_each_other(run: Run, tmp_path: Path) -> None:
    other = make_run(tmp_path, best_epoch=2)
    figure = compare_heads(run, other)
    assert len(heatmaps(figure)) == 9
    names = [trace.name for trace in figure.data if trace.showlegend]
    a, b = (analysis.status_map(one).counts() for one in (run, other))
    assert names[:4] == [f"{name} · {a[name]} / {b[name]}" for name in a]
    paper = compare_heads(run, other, renderer="matplotlib", width=3.25)
    assert len(meshes(paper)) == 9 and len(bars(paper)) == 2


def inside(figure: Any) -> None:
    """No text, legend or axes leaves the page."""
    renderer = figure.canvas.get_renderer()
    width, height = figure.bbox.size
    for artist in [*figure.axes, *figure.texts, *figure.legends]:
        box = artist.get_tightbbox(renderer)
        if box is not None:
            assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1, artist


@pytest.mark.parametrize("width", [3.25, 6.75])
@pytest.mark.parametrize("name", ["several", "attention", "compared"])
def test_nothing_leaves_the_page(run: Run, tmp_path: Path, name: str, width: float) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    if name == "compared":
        figure = compare_heads(run, make_run(tmp_path, best_epoch=2), renderer="matplotlib", width=width)
    else:
        figure = plots.sheet({"several": several, "attention": attention}[name](), "matplotlib", width)
    FigureCanvasAgg(figure)
    inside(figure)


@pytest.mark.parametrize("renderer", ["plotly", "matplotlib"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 2)])
@pytest.mark.parametrize("value", [np.nan, 0.0, 1.0])
def test_every_kind_of_map_is_drawn_of_nothing_and_of_one(renderer: Any, shape: tuple[int, int], value: float) -> None:
    values = np.full(shape, value)
    kinds: list[tuple[Any, bool]] = [
        ("probability", False),
        ("magnitude", False),
        ("signed", False),
        ("magnitude", True),
    ]
    panels = tuple(one(values, kind, log=log) for kind, log in kinds)
    assert plots.sheet(Sheet((panels, panels[::-1]), "t", margin=True), renderer) is not None


def test_equal_sheets_give_equal_pictures(tmp_path: Path) -> None:
    first, second = (plots.save(plots.sheet(several(), "matplotlib"), tmp_path / f"{i}.svg") for i in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_large_maps_stay_small_files() -> None:
    values = np.random.default_rng(0).random((100, 128)).astype(np.float32)
    marked, hover = np.ones(values.shape, bool), {name: values for name in "abcd"}
    two = {name: values for name in "ab"}  # as many as gates have in `plots.heads`, and statuses four
    gates = one(values, "probability", marked=marked, hover=two, group=16)
    codes = one(np.floor(4 * values), "status", range=(0.0, 3.0), categories=(0, 1, 2, 3), marked=marked, hover=hover)
    figure = plots.sheet(Sheet(((gates, gates, codes),), "t", margin=True))
    assert len(figure.to_html(include_plotlyjs=False)) < 3_000_000
    # A node for each of 12,800 cells would be slow to draw.
    assert all("markers" not in trace.mode or len(trace.x) < 2000 for trace in figure.data if trace.type == "scatter")
    drawn = [trace for trace in figure.data if trace.type == "scatter" and trace.mode == "lines"]
    assert sum(int(np.isnan(trace.x).sum()) for trace in drawn) == 3 * values.size
