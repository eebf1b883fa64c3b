"""Figures of effects: they draw the tables, name the nulls, and stand on nothing that was not measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jola_interp import plots
from jola_interp.analysis.effects import Effects, Gate, select_gates
from jola_interp.analysis.faithfulness import faithfulness
from jola_interp.analysis.interplay import interplay
from jola_interp.analysis.ranking import RANDOM, KeepCurves, Refitted, refitted
from jola_interp.analysis.tables import NotMeasuredError, save_table
from jola_interp.plots.chart import Chart, Panel, Series
from jola_interp.plots.effects import (
    alone_against_out,
    alone_against_out_chart,
    effect_map,
    effects_against,
    effects_against_chart,
    keep_drop,
    keep_drop_chart,
)
from jola_interp.runs import Run, edit_digest
from tests.evidence_by_hand import question
from tests.runs_by_hand import make_run

ROWS = 20


def curves(heads: int = 23, orders: tuple[str, ...] = ("p_open", "size", "effect"), rows: int = ROWS) -> KeepCurves:
    """Gains that rise to 0.9 nat, the faster the better the order; random orders rise evenly."""
    draws = np.random.default_rng(0)
    grid = np.unique([0, *np.geomspace(1, heads, 9).round()]).astype(int) if heads else np.array([0])
    share = grid / max(heads, 1)
    row = 0.9 + 0.2 * draws.normal(size=rows)
    powers = {"p_open": 0.6, "size": 0.5, "effect": 0.25}

    def gains(power: float, wobble: float = 0.0) -> np.ndarray:
        noise = wobble * draws.normal(size=(len(grid), 1)) + 0.05 * draws.normal(size=(len(grid), rows))
        noise[0] = noise[-1] = 0
        return np.asarray(share[:, None] ** power * row + noise * (share[:, None] > 0) * (share[:, None] < 1))

    random = np.stack([gains(1.0, 0.08) for _ in range(20)])
    return KeepCurves(
        title="tiny on toy",
        labels=tuple(f"L{i // 4}H{i % 4}" for i in range(heads)),
        sizes=grid,
        orders={name: draws.permutation(heads) for name in orders},
        keep={name: gains(powers[name]) for name in orders},
        drop={name: row - gains(powers[name]) for name in orders},
        random_keep=random,
        random_drop=row - random,
        base=np.full(rows, 2.5),
        edited=2.5 - row if heads else np.full(rows, 2.5),
        selected=min(heads, 9),
        ordered_on=ROWS,
        refits=Refitted(9, 0.87, (0.7, 0.75, 0.84), 0.6),
    )


def effects_of(run: Run, method: str = "exact", rows: int = ROWS) -> Effects:
    """Effects that grow with the gate, and a few that harm."""
    gates = select_gates(run.edit)
    draws = np.random.default_rng(1)
    acts = np.array([gate.acts for gate in gates])
    mean = np.array([gate.value**2 for gate in gates]) * draws.gamma(1.0, 0.02, len(gates)) - 0.002
    by_row = np.where(acts[:, None], mean[:, None] + 0.01 * draws.normal(size=(len(gates), rows)), 0.0)
    if method == "alone":
        by_row *= 1.5
    estimate = np.where(acts, 0.8 * mean, 0.0) if method == "exact" else None
    return Effects(method, gates, by_row, np.full(rows, 1.6 if method == "exact" else 2.5), acts, estimate)  # type: ignore[arg-type]


def keep(run: Run, name: str, table: Any) -> None:
    save_table(run, name, table, {"edit": edit_digest(run.edit)})


def series(panel: Panel, name: str, look: str) -> Series:
    return next(one for one in panel.series if (one.name, one.look) == (name, look))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path / "run", layers=6, heads=4)


# -- keep and drop -------------------------------------------------------------------------------------------------


def test_curves_go_through_the_gains_and_their_intervals() -> None:
    table = curves()
    for what, panel in zip(("keep", "drop"), keep_drop_chart(table).panels, strict=True):
        for name, words in (("p_open", "by P(open)"), ("size", "by size"), ("effect", "by exact effect")):
            found, points = table.curve(name, what), series(panel, words, "points")  # type: ignore[arg-type]
            assert np.array_equal(points.y, found.gain) and np.array_equal(series(panel, words, "line").y, found.gain)
            assert points.low is not None and np.array_equal(points.low, found.low)
            assert points.high is not None and np.array_equal(points.high, found.high)
        random = table.curve(RANDOM, what)  # type: ignore[arg-type]
        band = series(panel, "random orders (20)", "band")
        assert np.array_equal(band.low, random.low) and np.array_equal(band.high, random.high)  # type: ignore[arg-type]
        assert [int(text) for _, text in panel.x_ticks] == list(table.sizes)
        assert {rule.at for rule in panel.rules if rule.axis == "y"} == {0.0, float(table.gain.mean())}


def test_kept_and_dropped_are_on_one_scale() -> None:
    kept, dropped = keep_drop_chart(curves()).panels
    assert kept.y_range == dropped.y_range and kept.y_range is not None
    low, high = kept.y_range
    for one in (*kept.series, *dropped.series):
        for values in (one.y, one.low, one.high):
            assert values is None or (values.min() >= low and values.max() <= high)


def test_points_of_one_size_stand_around_its_place() -> None:
    panel = keep_drop_chart(curves()).panels[0]
    places = np.stack([one.x for one in panel.series if one.look == "points"])
    steps = np.arange(places.shape[1])
    np.testing.assert_allclose(places.mean(0), steps, atol=1e-12)
    assert np.abs(places - steps).max() < 0.25


def test_the_selected_heads_are_marked_between_the_sizes() -> None:
    table = curves()
    for panel in keep_drop_chart(table).panels:
        (mark,) = [rule.at for rule in panel.rules if rule.axis == "x"]
        below = np.flatnonzero(table.sizes <= 9).max()
        assert below <= mark < below + 1
    plain = dataclasses.replace(table, selected=None)
    assert not [rule for rule in keep_drop_chart(plain).panels[0].rules if rule.axis == "x"]


def test_refits_stand_beside_what_they_answer() -> None:
    table = curves()
    kept, dropped = keep_drop_chart(table).panels
    assert set(series(kept, "refit of the 9 selected heads", "line").y) == {0.87}
    band = series(kept, "refits of random sets (3)", "band")
    assert band.low is not None and set(band.low) == {0.7} and band.high is not None and set(band.high) == {0.84}
    assert set(series(dropped, "refit of all other heads", "line").y) == {0.6}
    assert [one.name for one in dropped.series if "refit" in one.name] == ["refit of all other heads"]
    bare = keep_drop_chart(dataclasses.replace(table, refits=None))
    assert not any("refit" in one.name for panel in bare.panels for one in panel.series)


def test_a_run_gives_the_table_with_the_refits_of_its_card(run: Run) -> None:
    keep(run, "keep", dataclasses.replace(curves(), refits=None))
    question(run)
    card = refitted(run)
    assert card is not None
    figure = keep_drop(run)
    drawn = {trace.name: trace for trace in figure.data if trace.name}
    assert set(drawn[f"refit of the {card.heads} selected heads"].y) == {card.selected}


# -- gates ---------------------------------------------------------------------------------------------------------


def test_points_are_the_gates_with_two_standard_errors(run: Run) -> None:
    table = faithfulness(run, effects_of(run))
    chart = effects_against_chart(table, top=3)
    assert [panel.x_label for panel in chart.panels] == list(table.units.values())
    assert list(table.scores) == ["p_open", "size", "gradient"]
    best = {table.labels[place] for place in table.top(3)}
    for name, panel in zip(table.scores, chart.panels, strict=True):
        x = np.concatenate([one.x for one in panel.series])
        assert sorted(x) == sorted(table.scores[name])
        assert {one.labels[i] for one in panel.series for i in one.named} == best
        for one in panel.series:
            places = [i for i, gate in enumerate(table.gates) if gate.kind == one.name]
            assert np.array_equal(one.y, table.effect[places])
            assert one.high is not None
            np.testing.assert_allclose(one.high - one.y, 2 * table.se[places])
        assert panel.title == table.heading(name)
    assert any(table.sentence() in note for note in chart.notes)


def test_alone_and_left_out_share_a_diagonal(run: Run) -> None:
    table = interplay(effects_of(run), effects_of(run, "alone"), "tiny on toy")
    (panel,) = alone_against_out_chart(table, top=2).panels
    assert any(rule.axis == "diagonal" for rule in panel.rules)
    for one in panel.series:
        places = [i for i, gate in enumerate(table.gates) if gate.kind == one.name]
        assert np.array_equal(one.x, table.out.mean(1)[places]) and np.array_equal(one.y, table.alone.mean(1)[places])
    assert sum(len(one.named) for one in panel.series) == 2


# -- drawn ---------------------------------------------------------------------------------------------------------


def text_of(figure: Any, renderer: str) -> str:
    if renderer == "plotly":
        return str(figure.to_json())
    return " ".join(text.get_text() for text in [*figure.texts, *(t for axes in figure.axes for t in axes.texts)])


@pytest.mark.parametrize("renderer", ["plotly", "matplotlib"])
def test_every_figure_is_drawn_from_a_run_with_its_tables(run: Run, tmp_path: Path, renderer: Any) -> None:
    for name, table in (("keep", curves()), ("effects", effects_of(run)), ("alone", effects_of(run, "alone"))):
        keep(run, name, table)
    suffix = "html" if renderer == "plotly" else "svg"
    for draw in (keep_drop, effect_map, effects_against, alone_against_out):
        figure = draw(run, renderer=renderer)  # type: ignore[operator]
        assert plots.save(figure, tmp_path / f"{draw.__name__}.{suffix}").stat().st_size > 2000
        assert "tiny on toy" in text_of(figure, renderer)


@pytest.mark.parametrize("renderer", ["plotly", "matplotlib"])
def test_the_smallest_tables_are_drawn(tmp_path: Path, renderer: Any) -> None:
    run = make_run(tmp_path / "one", layers=1, heads=1, kv_heads=1)
    gates = (Gate("heads", "additive", 0, 0, 1.0, True),)
    out = Effects("exact", gates, np.full((1, 1), 0.1), np.ones(1), np.ones(1, dtype=bool))
    shut = dataclasses.replace(out, by_row=np.zeros((1, 1)), measured=np.zeros(1, dtype=bool))
    alone, alone_shut = (dataclasses.replace(one, method="alone") for one in (out, shut))
    figures = [
        *(keep_drop(curves(heads, ("effect",), rows), renderer=renderer) for heads, rows in ((1, 1), (0, 2))),
        *(effect_map(one, renderer=renderer) for one in (out, shut)),
        *(effects_against(faithfulness(run, one), renderer=renderer) for one in (out, shut)),
        *(alone_against_out(interplay(*both), renderer=renderer) for both in ((out, alone), (shut, alone_shut))),
    ]
    suffix = "html" if renderer == "plotly" else "svg"
    for place, figure in enumerate(figures):
        assert plots.save(figure, tmp_path / f"{place}.{suffix}").stat().st_size > 1000


@pytest.mark.parametrize("draw", [keep_drop, effect_map, effects_against, alone_against_out])
def test_what_was_not_measured_says_how_to_measure_it(run: Run, draw: Any) -> None:
    with pytest.raises(NotMeasuredError, match="measure it with"):
        draw(run)
    if draw is alone_against_out:
        keep(run, "effects", effects_of(run))
        with pytest.raises(NotMeasuredError, match="'alone'"):
            draw(run)


def test_renderer_width_and_number_of_names_are_checked_first(run: Run) -> None:
    for draw in (keep_drop, effect_map, effects_against, alone_against_out):
        with pytest.raises(ValueError, match="renderer must be plotly or matplotlib"):
            draw(run, renderer="svg")  # type: ignore[arg-type, operator]
    for named in (effects_against, alone_against_out):
        with pytest.raises(ValueError, match="top must be an integer ≥ 0; got -1"):
            named(run, top=-1)  # type: ignore[operator]


def test_charts_are_tables_too() -> None:
    chart = keep_drop_chart(curves())
    assert isinstance(chart, Chart)
    assert {"by exact effect", "random orders (20)"} <= set(chart.to_frame()["series"])
