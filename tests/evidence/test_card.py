"""The card: parts are kept, resumed, told in words, and the verdict follows from them alone."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

import jola_interp as ji
from jola_interp import runs
from jola_interp.edits import HeadShape, JoLA
from jola_interp.evidence import card as cards
from jola_interp.evidence.card import CHEAP, NAMES, Card, Options, evidence_card
from jola_interp.evidence.words import VERDICTS, verdict_of
from jola_interp.tasks import Task
from tests.evidence.conftest import Trained

SMALL = Options(sets=2, pairs=2, rows=4, k=2)


def test_the_whole_card_of_a_tiny_run(trained: Trained) -> None:
    run, task, model = trained()
    weights, edit = model.weights_digest(), runs.edit_digest(run.edit)
    card = evidence_card(run, task, model, "all", steps=3, options=SMALL)
    assert tuple(card.parts) == NAMES and not card.not_run
    assert card.verdict in VERDICTS
    assert len(card.sentences()) == 1 + len(NAMES)
    stored = json.loads((run.path / "evidence.json").read_text(encoding="utf-8"))
    assert stored == card.to_dict()
    assert (model.weights_digest(), runs.edit_digest(run.edit)) == (weights, edit)
    assert run.timing["evidence_seconds"].keys() == set(NAMES)
    loaded = Card.load(run)
    assert loaded is not None and loaded.to_dict() == card.to_dict()


def test_finished_parts_are_not_computed_again(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    run, task, model = trained()
    first = evidence_card(run, task, model, ["gain", "norm_matched"], steps=3)
    assert first.not_run == tuple(name for name in NAMES if name not in ("gain", "norm_matched"))

    def refuse(*_: Any) -> dict[str, Any]:
        raise AssertionError("computed again")

    kept = tuple(
        dataclasses.replace(part, compute=refuse if part.name in first.parts else part.compute) for part in cards.PARTS
    )
    monkeypatch.setattr(cards, "PARTS", kept)
    again = evidence_card(run, task, model, ["gain", "norm_matched", "scope"], steps=3)
    assert again.parts["gain"] == first.parts["gain"] and "scope" in again.parts
    assert dict(evidence_card(run, task, model, ["gain"], steps=4).parts) == dict(
        again.parts
    )  # it does not depend on the steps
    with pytest.raises(AssertionError, match="computed again"):
        evidence_card(run, task, model, ["gain"], rule="p_open>0.4")


def test_what_was_asked_for_differently_is_computed_anew_and_the_rest_stays(trained: Trained) -> None:
    run, task, model = trained()
    evidence_card(run, task, model, ["refits", "gain"], steps=2, options=Options(sets=1))
    more = evidence_card(run, task, model, ["refits"], steps=2, options=Options(sets=2))
    assert len(more.parts["refits"]["random"]) == 2 and "gain" in more.parts
    assert evidence_card(run, task, model, "convergence").parts.keys() == {"convergence", "gain", "refits"}


def test_a_part_that_cannot_be_had_says_why_and_keeps_no_other_waiting(trained: Trained, toy_task: Task) -> None:
    run, task, model = trained(toy_task, edit=JoLA(HeadShape(2, 4, 2, 8, 32), operations="add", inference="hard"))
    card = evidence_card(run, task, model, ["units", "gain"], steps=2)
    assert "this edit has additive" in card.parts["units"]["not_applicable"]
    assert "gain" in card.parts and any("Could not be had" in line for line in card.sentences())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rule": "p_opn>0.5"}, "measure must be one of"),
        ({"steps": 0}, "steps must be 1 or more"),
    ],
)
def test_what_cannot_be_used_leaves_the_card_as_it_is(trained: Trained, changes: dict[str, Any], says: str) -> None:
    run, task, model = trained()
    evidence_card(run, task, model, ["gain"])
    before = (run.path / "evidence.json").read_bytes()
    with pytest.raises(ValueError, match=says):
        evidence_card(run, task, model, ["gain"], **changes)
    with pytest.raises(ValueError, match="sets must be an integer, 1 or more; got 0"):
        Options(sets=0)
    assert (run.path / "evidence.json").read_bytes() == before


def test_a_run_that_was_trained_anew_loses_its_card(trained: Trained) -> None:
    run, task, model = trained()
    evidence_card(run, task, model, ["gain"], steps=3)
    ji.fit(model, task, backend="hooks", out=run.path, overwrite=True, max_steps=2, evaluate=False)
    assert Card.load(run) is None


def test_unknown_parts_are_refused_before_any_work(trained: Trained) -> None:
    run, task, model = trained()
    with pytest.raises(ValueError, match="got luck"):
        evidence_card(run, task, model, ["gain", "luck"])
    assert not (run.path / "evidence.json").exists()
    assert set(CHEAP) < set(NAMES)


GAIN = {"gain": {"value": 1.0, "low": 0.9, "high": 1.1}, "testable": True, "label": None}
LABEL = {"base": 1.0, "edited": 0.2}
GOOD = {
    "convergence": {"converged": True},
    "gain": GAIN,
    "refits": {"localised": True},
    "rivals": {"u": 1, "ended": "gain lost"},
}


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "localised"),
        ({"convergence": {"converged": False}}, "not converged"),
        ({"gain": {**GAIN, "gain": {"value": 0.1, "low": -0.1, "high": 0.3}}}, "no gain"),
        ({"gain": {**GAIN, "testable": False}}, "untestable"),
        ({"refits": {"localised": False}}, "not localised"),
        ({"gain": {**GAIN, "label": LABEL, "label_gain": {"low": -0.1}}}, "format"),
        ({"gain": {**GAIN, "label": LABEL, "label_gain": {"low": 0.1}}}, "localised"),
        ({"norm_matched": {"random": [0.95]}}, "no gain"),
        ({"convergence": {"converged": None}}, "open"),
        ({"convergence": None}, "open"),
        ({"refits": {"localised": None}}, "open"),
        ({"refits": {"not_applicable": "why"}}, "open"),
        ({"rivals": {"u": 1, "ended": "unclear"}}, "open"),
        ({"rivals": {"u": 0, "ended": "no gain"}}, "no gain"),
        ({"rivals": {"u": 2, "ended": "gain lost"}}, "replaceable"),
        ({"rivals": {"u": 4, "ended": "limit"}}, "one of many"),
        ({"rivals": {"u": 1, "ended": "no heads left"}}, "open"),
        ({"refits": None}, "open"),
        ({"rivals": None}, "open"),
    ],
)
def test_the_verdict_follows_from_the_parts(changes: dict[str, Any], verdict: str) -> None:
    parts = {name: found for name, found in {**GOOD, **changes}.items() if found is not None}
    assert verdict_of(parts) == verdict


def test_a_newer_card_is_refused(trained: Trained) -> None:
    run, _, _ = trained()
    (run.path / "evidence.json").write_text('{"format": 99}', encoding="utf-8")
    with pytest.raises(ValueError, match="found 99, expected 1"):
        Card.load(run)
