"""LoFiT: its first step decides where, its second, from scratch, is JoLA with those additive gates open."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import jola_interp as ji
from jola_interp.backends import attach
from jola_interp.edits import JoLA
from jola_interp.edits.lofit import HeadScales
from jola_interp.methods.choosing import first_heads
from jola_interp.methods.lofit import LOFIT
from jola_interp.models import Model
from jola_interp.runs import STAGES, Run
from jola_interp.tasks import Task
from tests.methods.test_choosing import heads_of, small

MakeModel = Callable[..., Model]
(METHOD,) = LOFIT
IDS = torch.tensor([[5, 17, 200, 33, 90, 12, 7], [1, 2, 3, 4, 5, 6, 7]])


def logits(model: Model, edit: JoLA | None, backend: Any) -> torch.Tensor:
    with torch.no_grad():
        if edit is None:
            return model.logits(IDS, torch.ones_like(IDS), 7)
        with attach(edit, model, backend):
            return model.logits(IDS, torch.ones_like(IDS), 7)


@pytest.mark.parametrize("backend", ["hooks", "lens"])
@pytest.mark.parametrize("inference", ["hard", "point"])
def test_step_2_is_jola_with_additive_gates_open_on_k_heads_and_all_others_closed(
    inference: Any, backend: Any, make_model: MakeModel
) -> None:
    model = make_model(attention="eager")
    heads = [(0, 1), (0, 3), (1, 2)]
    edit: Any = first_heads(model, 3, "add")
    assert edit.gates == "none" and edit.operations == "add"
    edit = JoLA(model.head_shape, gates="none", operations="add", heads=heads, init_std=0.3)
    edit.initialise(torch.Generator().manual_seed(0))
    gated = JoLA(model.head_shape, inference=inference, init_std=0.3).initialise(torch.Generator().manual_seed(1))
    part = gated.site("heads")
    for kind in ("additive", "multiplicative"):
        part.log_alpha[kind].data.fill_(-30.0)
    for unit in heads:
        part.log_alpha["additive"].data[unit] = 30.0
        part.vectors["additive"].data[unit] = edit.site("heads").vectors["additive"].data[unit]
    base = logits(model, None, backend)
    one, two = logits(model, edit, backend), logits(model, gated, backend)
    assert (one - two).abs().max() <= 1e-6 * one.abs().max()
    assert (one - base).abs().max() > 1e-3 * one.abs().max()


def test_the_k_heads_are_those_whose_scales_are_largest(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    run = small(make_model(), toy_task, METHOD(k=3), tmp_path / "run", max_steps=6)
    first = Run.load(tmp_path / "run" / STAGES / "scales").edit
    assert isinstance(first, HeadScales)
    kept = first.sizes()[run.edit.masks()["heads"]]
    assert len(kept) == 3
    assert kept.min() == first.sizes().flatten().sort(descending=True).values[2]


def test_each_step_trains_as_in_the_paper_and_the_second_from_scratch(
    make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    run = small(make_model(), toy_task, METHOD(k=3, l1=5e-3), tmp_path / "run")
    first = Run.load(tmp_path / "run" / STAGES / "scales")
    assert (first.config["train"]["lr"], run.config["train"]["lr"]) == (5e-3, 1e-2)
    assert first.config["train"]["penalty"] == 5e-3
    assert first.metrics["penalty"].dropna().gt(0).all()
    assert (run.metrics["penalty"].dropna() == 0).all()
    assert first.config["task"]["sizes"] == {**run.config["task"]["sizes"], "test": 0}  # test rows are not for choosing
    own = JoLA(run.edit.shape, gates="none", operations="add", heads=heads_of(run))
    plain = small(make_model(), toy_task, own, tmp_path / "plain", gate_share=1.0, penalty_warmup=0.0, lr=1e-2)  # type: ignore[arg-type]
    assert torch.equal(plain.edit.site("heads").vectors["additive"], run.edit.site("heads").vectors["additive"])
    assert run.edit.n_parameters() == 3 * 8


def test_a_preset_with_a_penalty_of_its_own_does_not_change_the_weight_of_the_norm(
    make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    for preset in ("selective", "paper", "reference"):
        small(make_model(), toy_task, METHOD(k=2), tmp_path / preset, preset=preset, lr_ratio=4.0)
    logged = [
        Run.load(tmp_path / preset / STAGES / "scales").metrics["penalty"].dropna().iloc[0]
        for preset in ("selective", "paper", "reference")
    ]
    assert logged[0] == logged[1] == logged[2]


def test_a_run_of_it_loads_and_scores_alike(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    model = make_model()
    run = small(model, toy_task, METHOD(k=3), tmp_path / "run", evaluate=True, max_new_tokens=3)
    again = Run.load(tmp_path / "run", model)
    assert ji.evaluate(again, toy_task, model, save=False)["edited"] == run.scores["edited"]


def test_a_bad_weight_is_refused_by_its_name(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    for l1 in (-1.0, float("nan"), "much"):
        with pytest.raises(ValueError, match="l1 must be a finite number ≥ 0; got"):
            small(make_model(), toy_task, METHOD(k=2, l1=l1), tmp_path / "run")
    assert not (tmp_path / "run").exists()
