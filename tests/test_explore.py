"""The explorer shows what the Run says, for whatever its widgets are set to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jola_interp as ji
from jola_interp import selection
from jola_interp.analysis.effects import Effects, Gate
from jola_interp.analysis.head import head_facts
from jola_interp.analysis.tables import save_table
from jola_interp.runs import Run, edit_digest
from tests.runs_by_hand import make_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path)


def shown(explorer: Any) -> np.ndarray:
    return np.array(explorer.map.data[0].z, dtype=float)


def test_the_map_is_that_of_the_chosen_step(run: Run) -> None:
    explorer = ji.explore(run)
    explorer.shown.value = "additive"
    assert np.allclose(shown(explorer), selection.measure("p_open", run.log_alphas()["additive"]))
    explorer.step.value = 0
    assert np.allclose(shown(explorer), run.gates.p_open("additive")[0])
    explorer.measure.value = "expected"
    assert np.allclose(shown(explorer), run.gates.expected("additive")[0])


def test_statuses_and_counts_follow_the_threshold(run: Run) -> None:
    explorer = ji.explore(run)
    explorer.threshold.value = 0.9
    expected = selection.status(run.log_alphas(), "p_open>0.9")
    assert np.array_equal(shown(explorer), expected)
    assert f"selects {int((expected > 0).sum())} of 12" in explorer.count.value


def test_a_click_chooses_the_head_and_shows_its_path(run: Run) -> None:
    explorer = ji.explore(run)

    class Points:
        point_inds = [[2, 1]]

    explorer._clicked(None, Points(), None)
    assert explorer.head.value == "L2H1" and "L2H1" in explorer.path.layout.title.text
    assert (list(explorer.map.data[1].x), list(explorer.map.data[1].y)) == ([1], [2])
    for trace in explorer.path.data:
        assert np.allclose(trace.y, run.gates.p_open(trace.name)[:, 2, 1])
    assert "status" not in explorer.facts.value and "P(open)" in explorer.facts.value


def test_no_button_sends_a_figure_away(run: Run) -> None:
    explorer = ji.explore(run)
    assert all("sendChartToCloud" in figure.layout.modebar.remove for figure in (explorer.map, explorer.path))


def test_a_click_beside_the_editable_heads_changes_nothing(tmp_path: Path) -> None:
    explorer = ji.explore(make_run(tmp_path, only={"layers": [1]}))

    class Points:
        point_inds = [[2, 1]]

    before = explorer.head.value
    explorer._clicked(None, Points(), None)
    assert explorer.head.value == before


def test_a_head_tells_what_was_measured_and_what_was_not(run: Run) -> None:
    facts = {fact.name: fact.text for fact in head_facts(run, "l1h2")}
    assert "jola-interp analyse RUN --part effects" in facts["loss without it"]
    gates = (Gate("heads", "additive", 1, 2, 1.0, True), Gate("heads", "multiplicative", 1, 2, 0.0, False))
    effects = Effects("exact", gates, np.array([[0.25, 0.75], [0.0, 0.0]]), np.zeros(2), np.array([True, False]))
    save_table(run, "effects", effects, {"edit": edit_digest(run.edit)})
    assert {fact.name: fact.text for fact in head_facts(run, "L1H2")}["loss without it"].startswith("additive +0.5000")
    assert {fact.name: fact.text for fact in head_facts(run, "L0H0")}["loss without it"].startswith("0: no gate")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": "top=3:p_open"}, "explore needs a threshold"),
        ({"rule": "wide"}, "reads neither"),
        ({"site": "mlp"}, "this edit acts at heads"),
    ],
)
def test_what_cannot_be_explored_is_refused(run: Run, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ji.explore(run, **arguments)


def test_an_unknown_head_is_refused(run: Run) -> None:
    with pytest.raises(ValueError, match="no editable unit"):
        head_facts(run, "L9H9")
