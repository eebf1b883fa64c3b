"""The controls panel draws the gains of the card, all of them, in both renderers alike."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jola_interp import analysis, plots
from jola_interp.analysis import Controls
from jola_interp.analysis.controls import stored_audit
from jola_interp.evidence.card import NAMES, Card
from jola_interp.plots import style
from jola_interp.runs import Run
from tests.evidence_by_hand import audited, question
from tests.runs_by_hand import make_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = make_run(tmp_path)
    question(run)
    return run


def lines(table: Controls) -> dict[str, list[tuple[float, float, float]]]:
    found: dict[str, list[tuple[float, float, float]]] = {}
    for row in table.rows:
        found.setdefault(row.what, []).append((row.gain, row.low, row.high))
    return found


def on_screen(figure: Any) -> dict[str, list[tuple[float, float, float]]]:
    """Gain and ends of each trace; NaN where it draws no interval."""
    found = {}
    for trace in figure.data:
        gains, nothing = np.array(trace.x), np.full(len(trace.x), math.nan)
        drawn = trace.error_x.array is not None
        low = gains - np.array(trace.error_x.arrayminus) if drawn else nothing
        high = gains + np.array(trace.error_x.array) if drawn else nothing
        found[trace.name] = list(zip(gains.tolist(), low.tolist(), high.tolist(), strict=True))
    return found


def on_paper(figure: Any) -> dict[str, list[tuple[float, float, float]]]:
    """The same of each container; a bar of no length is no interval."""
    found = {}
    for bars in figure.axes[0].containers:
        gains = bars.lines[0].get_xdata()
        ends = [segment[:, 0].tolist() for segment in bars.lines[2][0].get_segments()]
        ends = [[math.nan, math.nan] if low == high else [low, high] for low, high in ends]
        found[bars.get_label()] = [(float(gain), *end) for gain, end in zip(gains, ends, strict=True)]
    return found


def test_both_renderers_draw_the_table(run: Run) -> None:
    table = analysis.controls(run)
    expected = lines(table)
    screen, paper = on_screen(plots.controls(run)), on_paper(plots.controls(run, renderer="matplotlib"))
    assert list(screen) == list(paper) == list(expected)
    for name, rows in expected.items():
        np.testing.assert_allclose(screen[name], rows, atol=1e-12, err_msg=name)
        np.testing.assert_allclose(paper[name], rows, atol=1e-12, err_msg=name)


def test_the_table_holds_every_gain_of_the_card(run: Run) -> None:
    card = Card.load(run)
    assert card is not None
    frame = analysis.controls(run).to_frame()
    assert list(frame) == ["what", "group", "gain", "low", "high"]
    gains = {what: list(found) for what, found in frame.groupby("what", sort=False)["gain"]}
    refits, rivals = card.parts["refits"], card.parts["rivals"]
    assert gains["the edit"] == [card.parts["gain"]["gain"]["value"]]
    assert gains["random directions (5)"] == card.parts["norm_matched"]["random"]
    assert gains["random sets (19)"] == [refits["base"] - value for value in refits["random"]]
    assert gains["all other heads"] == [refits["base"] - refits["complement"]]
    assert [gains[name][0] for name in gains if name.startswith("set ")] == [
        one["gain"]["value"] for one in rivals["sets"]
    ]
    assert gains["labels shuffled"] == [card.parts["label_shuffle"]["gain"]["value"]]
    assert gains["random weights"] == [card.parts["random_base"]["gain"]["value"]]
    assert gains["bias of W_O"] == [card.parts["bias"]["gain"]["bias"]["value"]]
    assert len(frame) == 1 + 5 + 1 + 19 + 1 + 4 + 2 + 2


def test_the_gain_in_question_is_a_rule_through_its_group(run: Run) -> None:
    asked = {row.group: row.gain for row in analysis.controls(run).rows if row.asked}
    screen = [shape.x0 for shape in plots.controls(run).layout.shapes if shape.line.dash == "dash"]
    rules = plots.controls(run, renderer="matplotlib").axes[0].collections
    dashed = [rule.get_segments()[0][0, 0] for rule in rules if rule.get_linestyle()[0][1]]
    assert screen == dashed == list(asked.values()) and len(asked) == 4


def test_what_is_in_question_and_what_it_has_to_beat_differ_in_colour(run: Run) -> None:
    asked = {row.what: row.asked for row in analysis.controls(run).rows}
    for trace in plots.controls(run).data:
        assert trace.marker.color == (style.BLUE if asked[trace.name] else style.ORANGE)


def test_zero_and_every_interval_are_within_the_axis(run: Run) -> None:
    low, high = analysis.controls(run).range
    assert low < 0 < high
    for left, right in (
        plots.controls(run).layout.xaxis.range,
        plots.controls(run, renderer="matplotlib").axes[0].get_xlim(),
    ):
        assert left < low and right > high


@pytest.mark.parametrize("parts", [["gain"], ["norm_matched"], ["refits"], ["bias", "random_base"]])
@pytest.mark.parametrize("renderer", ["plotly", "matplotlib"])
def test_what_is_there_is_drawn(tmp_path: Path, parts: list[str], renderer: Any) -> None:
    run = make_run(tmp_path)
    question(run, parts)
    figure = plots.controls(run, renderer=renderer)
    drawn = on_screen(figure) if renderer == "plotly" else on_paper(figure)
    assert list(drawn) == list(lines(analysis.controls(run)))


def test_a_set_that_lost_the_gain_is_named_so_and_the_runs_own_stays_its_own(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    found = dict(question(run).parts["rivals"])
    first, second = found["sets"][:2]
    question(run, ["rivals"], rivals={**found, "sets": [first], "failed": second, "ended": "gain lost"})
    assert [row.what for row in analysis.controls(run).rows] == ["set 1: the Run's own", "set 2: gain lost"]
    question(run, ["rivals"], rivals={**found, "sets": [], "failed": first, "ended": "no gain"})
    assert [(row.what, row.asked) for row in analysis.controls(run).rows] == [("set 1: the Run's own", True)]


def test_a_selection_of_all_heads_has_no_complement(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    found = question(run).parts["refits"]
    question(run, ["refits"], refits={**found, "complement": None, "share": None})
    assert "all other heads" not in lines(analysis.controls(run))


@pytest.mark.parametrize("renderer", ["plotly", "matplotlib"])
def test_without_a_card_the_error_names_the_command(tmp_path: Path, renderer: Any) -> None:
    run = make_run(tmp_path)
    with pytest.raises(ValueError, match=r"no evidence\.json.*`jola-interp evidence .*`"):
        plots.controls(run, renderer=renderer)
    question(run, ["convergence", "scope"])
    with pytest.raises(ValueError, match="no part .* is about a gain: run `jola-interp evidence .* --part gain"):
        plots.controls(run, renderer=renderer)


def test_the_printed_panel_has_the_width_asked_for_and_its_text_stays_inside(run: Run) -> None:
    for width in style.WIDTHS:
        figure = plots.controls(run, renderer="matplotlib", width=width)
        assert figure.get_figwidth() == width
        box = figure.get_tightbbox()
        assert box.x0 > 0 and box.x1 < width + 0.01


def test_a_stored_audit_says_what_the_audit_said(run: Run) -> None:
    card = Card.load(run)
    assert card is not None
    stored, fresh = stored_audit(card.parts["audit"]), audited()
    assert stored.to_dict() == fresh.to_dict()
    assert [stored.sentence(head.label) for head in stored.heads] == [
        fresh.sentence(head.label) for head in fresh.heads
    ]


def test_a_notebook_shows_the_card_as_a_table_of_text(run: Run) -> None:
    card = question(run, set(NAMES) - {"refits"}, causal={"sentence": "<script>alert(1)</script>"})
    shown = card._repr_html_()
    assert f"Verdict: {card.verdict}" in shown and "Not run: refits." in shown
    assert shown.count("<tr>") == len(card.parts)
    assert "<script" not in shown and "&lt;script&gt;" in shown
