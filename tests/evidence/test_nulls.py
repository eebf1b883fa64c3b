"""Nulls: what they leave alone, what they destroy, and that they are not trained twice."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from jola_interp.evidence import nulls
from jola_interp.evidence.case import Case, open_case
from jola_interp.evidence.refits import refits
from jola_interp.evidence.rivals import most_open, rivals
from jola_interp.models import Model
from jola_interp.tasks import Example, Task
from tests.evidence.conftest import Trained


def test_refits_differ_in_their_heads_alone_and_are_read_back_the_second_time(case: Case) -> None:
    found = refits(case, sets=3)
    made = sorted(path.name for path in (case.folder / "refit").iterdir())
    assert len(made) == 5 - (found.complement is None)
    times = {path: path.stat().st_mtime_ns for path in case.folder.rglob("config.json")}
    assert refits(case, sets=3).to_dict() == found.to_dict()
    assert {path: path.stat().st_mtime_ns for path in case.folder.rglob("config.json")} == times
    assert found.p in {1 / 4, 2 / 4, 3 / 4, 1.0}
    profile = np.bincount([layer for layer, _ in found.heads], minlength=2)
    for path in (case.folder / "refit").glob("random*"):
        run = type(case.run).load(path)
        assert run.config["progress"]["steps"] == case.steps
        assert (run.edit.masks()["heads"].sum(1).numpy() == profile).all()


def test_refits_of_a_run_that_selected_nothing_are_refused(case: Case) -> None:
    nothing = dataclasses.replace(case, rule="p_open>0.9999")
    with pytest.raises(ValueError, match="selects no head"):
        refits(nothing)


def test_rival_sets_are_disjoint_and_the_first_is_the_runs_own(case: Case) -> None:
    found = rivals(case, k=2, margin=1e-9, most=3)
    heads = [set(rival.heads) for rival in [*found.sets, *([found.failed] if found.failed else [])]]
    assert heads[0] == set(most_open(case.run, 2)) and found.sets[0].share == 1.0
    assert all(not a & b for i, a in enumerate(heads) for b in heads[i + 1 :])
    assert all(len(one) == 2 for one in heads)
    assert found.u <= 3 and found.ended in ("gain lost", "no heads left", "limit")
    with pytest.raises(ValueError, match="k must be 1 to 8, got 9"):
        rivals(case, k=9)
    with pytest.raises(ValueError, match="margin must be above 0"):
        rivals(case, margin=0.0)


def test_shuffled_texts_are_the_same_answers_on_other_prompts(case: Case) -> None:
    rows = case.task.train
    mixed = nulls._shuffled(case.task, rows, seed=1)
    assert [row.instruction for row in mixed] == [row.instruction for row in rows]
    assert sorted(row.answer for row in mixed) == sorted(row.answer for row in rows)
    assert np.mean([a.answer == b.answer for a, b in zip(rows, mixed, strict=True)]) < 0.5


def test_shuffled_choices_say_nothing_of_the_prompt() -> None:
    rows = tuple(Example(f"pick {i}", "ab"[i % 2], options=("a", "b"), id=str(i)) for i in range(400))
    task = Task("choices", rows, (), (), kind="choice")
    mixed = nulls._shuffled(task, rows, seed=1)
    right = np.mean([a.answer == b.answer for a, b in zip(rows, mixed, strict=True)])
    assert 0.4 < right < 0.6


def test_random_weights_keep_architecture_dtype_and_the_base_model(make_model: Callable[..., Model]) -> None:
    model = make_model()
    before = model.weights_digest()
    first, same, other = (nulls.random_weights(model, seed) for seed in (1, 1, 2))
    assert first.head_shape == model.head_shape and first.dtype == model.dtype
    assert first.weights_digest() == same.weights_digest() != other.weights_digest()
    assert model.weights_digest() == before


def test_norm_matched_edits_are_as_large_and_elsewhere(case: Case) -> None:
    found = nulls.norm_matched(case, directions=3)
    assert len(found["random"]) == 3 and len(set(found["random"])) == 3
    assert found["p"] in {1 / 4, 2 / 4, 3 / 4, 1.0}


def test_replicates_train_on_other_rows_and_never_on_tested_ones(trained: Trained, toy_task: Task) -> None:
    train = (*toy_task.train, toy_task.test[0])
    leaky = dataclasses.replace(toy_task, train=train[1:], test=toy_task.test[1:])
    run, task, model = trained(leaky)
    case = open_case(run, task, model, steps=3)
    drawn = dataclasses.replace(leaky, train=(*toy_task.train[:12], *leaky.test), test=())
    found = nulls.replicates(case, pairs=2, draws=[drawn, drawn])
    assert len(found.runs) == 2 and not found.resampled
    sizes = [type(run).load(path).config["task"]["sizes"]["train"] for path in case.folder.glob("replicate-*")]
    assert sizes == [12, 12]
    assert nulls.replicates(case, pairs=2).resampled
    with pytest.raises(ValueError, match="pairs must be 2 or more, got 1"):
        nulls.replicates(case, pairs=1)


def test_a_sign_test_needs_five_to_reach_a_twentieth() -> None:
    assert nulls.sign_test([1, 1, 1]) == 0.25
    assert nulls.sign_test([1] * 5) == pytest.approx(1 / 16)
    assert nulls.sign_test([1] * 6) < 0.05
    assert nulls.sign_test([0, 0]) == 1.0


def test_a_random_base_gains_on_itself_and_the_case_stays(case: Case) -> None:
    before = case.model.weights_digest()
    found = nulls.random_base(case)
    assert found.gain.n == len(case.task.test)
    assert case.model.weights_digest() == before
    assert torch.isfinite(torch.tensor(found.decided))
