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
from jola_interp.plots import style
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
    assert additive.hovertemplate.startswith("<b>L%{y}H%{x}</b><br>P(open) %{z:.3f}<br>‖a‖ %{customdata[0]:.3f}")
    np.testing.assert_allclose(additive.customdata[..., 1], analysis.gate_maps(run)["additive"].hover["‖m‖"])
    assert status.text[0][0] in ("none", "additive", "multiplicative", "both")


def test_layer_zero_is_at_the_bottom(run: Run) -> None:
    assert list(plots.heads(run).layout.yaxis.range) == [-0.5, 2.5]
    assert plots.heads(run, renderer="matplotlib").axes[0].get_ylim() == (-0.5, 2.5)


def test_lines_part_heads_that_share_keys(run: Run, tmp_path: Path) -> None:
    assert [shape.x0 for shape in plots.heads(run).layout.shapes] == [1.5, 1.5, 1.5]
    paper = plots.heads(run, renderer="matplotlib")
    assert [line.get_xdata()[0] for line in paper.axes[0].lines[2:]] == [1.5]
    assert not plots.heads(make_run(tmp_path, kv_heads=4)).layout.shapes


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
