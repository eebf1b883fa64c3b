"""The endpoint: one number a row, paired, with what could have been detected."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from jola_interp.config import TrainConfig
from jola_interp.edits import JoLA
from jola_interp.evaluation.likelihood import negative_log_likelihoods
from jola_interp.evidence.case import Case, open_case
from jola_interp.evidence.endpoint import Endpoint, paired
from jola_interp.models import Model
from jola_interp.tasks import Example, Task
from tests.evidence.conftest import Trained


def test_a_rows_loss_is_its_total_over_its_tokens(case: Case) -> None:
    totals, counts = negative_log_likelihoods(case.model, case.endpoint.rows)
    assert np.allclose(case.base.nll, totals / counts, rtol=1e-6)
    assert case.base.label is None


def test_label_tokens_are_those_that_tell_options_apart(make_model: Callable[..., Model]) -> None:
    model = make_model()
    rows = [Example(f"pick {i}", ("ab1", "ab2")[i % 2], options=("ab1", "ab2"), id=str(i)) for i in range(6)]
    task = Task("choices", tuple(rows[:2]), tuple(rows[2:4]), tuple(rows[4:]), kind="choice")
    endpoint = Endpoint(model, task, task.test, TrainConfig(), "hooks")
    width = endpoint.rows[0].n_answer
    spans = endpoint.label_spans
    assert spans is not None and all(0 < last - first < width for first, last in spans)
    found = endpoint.losses()
    assert found.label is not None and (found.label < found.nll * width).all() and (found.label > 0).all()


def test_a_closed_edit_costs_nothing_and_leaves_nothing_behind(case: Case) -> None:
    closed = JoLA(case.model.head_shape, inference="hard", init_log_alpha=-9.0, init_spread=0.0)
    closed.initialise(torch.Generator().manual_seed(0))
    assert np.array_equal(case.endpoint.losses(closed).nll, case.base.nll)
    assert np.array_equal(case.endpoint.losses().nll, case.base.nll)


def test_intervals_cover_and_the_detectable_effect_is_detected_four_times_in_five() -> None:
    generator = np.random.default_rng(0)
    effect = paired(generator.normal(size=60)).mde
    trials = [paired(generator.normal(effect, 1.0, size=60)) for _ in range(600)]
    covered = np.mean([found.low <= effect <= found.high for found in trials])
    detected = np.mean([found.p < 0.05 for found in trials])
    assert 0.92 < covered < 0.98
    assert 0.7 < detected < 0.9


def test_what_cannot_be_paired_is_refused() -> None:
    with pytest.raises(ValueError, match="two rows or more, got 1"):
        paired(np.zeros(1))
    assert paired(np.zeros(5)).p == 1.0


def test_a_case_refuses_another_task_and_an_edit_without_gates(trained: Trained, toy_task: Task) -> None:
    run, _, model = trained()
    other = Task("toy", toy_task.train[:-1], toy_task.validation, toy_task.test, kind="text", metric="bleu")
    with pytest.raises(ValueError, match="hand in the same Task"):
        open_case(run, other, model)
    with pytest.raises(ValueError, match="steps must be 1 or more, got 0"):
        open_case(run, toy_task, model, steps=0)
    run.edit = JoLA(model.head_shape, gates="none")
    with pytest.raises(ValueError, match="this edit has none"):
        open_case(run, toy_task, model)
