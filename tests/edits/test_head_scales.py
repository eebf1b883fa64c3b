"""LoFiT's first step: its equation, and a penalty that is really paid though there are no gates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import jola_interp as ji
from jola_interp.edits import Context, HeadShape
from jola_interp.edits.lofit import HeadScales
from jola_interp.models import Model
from jola_interp.runs import Run, edit_from_settings, edit_settings
from jola_interp.tasks import Task

MakeModel = Callable[..., Model]
SHAPE = HeadShape(layers=3, heads=4, kv_heads=2, d_head=8, d_model=32)


def made(seed: int = 0, **switches: Any) -> HeadScales:
    return HeadScales(SHAPE, init_std=1.0, **switches).initialise(torch.Generator().manual_seed(seed))  # type: ignore[return-value]


def apply(edit: HeadScales, z: torch.Tensor, layer: int = 1) -> torch.Tensor:
    state = Context()
    state.prepared = edit.prepare(state, z.dtype)
    result: torch.Tensor = edit(z, layer, "heads", state)
    return result


def trained(model: Model, task: Task, edit: HeadScales, out: Path, **fields: Any) -> Run:
    options = {"backend": "hooks", "batch_size": 4, "wrapper": "plain", "evaluate": False, "max_steps": 6}
    return ji.fit(model, task, edit, out=out, **(options | fields))  # type: ignore[arg-type]


def test_edit_is_the_equation_of_step_1() -> None:
    edit, z = made(), torch.randn(2, 5, 4, 8)
    torch.testing.assert_close(apply(edit, z), (1 + edit.scales[1]) * z)
    torch.testing.assert_close(edit.sizes(), edit.scales.square().sum(-1).sqrt())


def test_parameters_are_one_a_component_of_every_head() -> None:
    edit = HeadScales(SHAPE)
    assert edit.n_parameters() == 3 * 4 * 8 == sum(p.numel() for p in edit.parameters())
    assert list(edit.parameter_groups()) == ["multiplicative"]
    assert HeadScales(SHAPE, heads=["L1H2", (2, 0)]).n_parameters() == 2 * 8


@pytest.mark.parametrize("form", ["mean", "reference"])
def test_penalty_is_the_sum_of_absolute_values_whatever_the_form(form: Any) -> None:
    edit = made()
    (term,) = edit.penalty(form).values()
    torch.testing.assert_close(term, edit.scales.abs().sum())
    term.backward()
    torch.testing.assert_close(edit.site("heads").vectors["multiplicative"].grad, edit.scales.sign())


def test_heads_that_are_not_editable_cost_nothing() -> None:
    edit = made(heads=["L1H2"])
    edit.site("heads").vectors["multiplicative"].data.fill_(0.5)  # as no training would leave it
    assert edit.penalty()["multiplicative"].item() == 0.5 * 8
    assert edit.sizes().nonzero().tolist() == [[1, 2]]


def test_training_pays_and_logs_lambda_times_the_sum(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    model = make_model()
    edit = HeadScales(model.head_shape).initialise(torch.Generator().manual_seed(0))
    run = trained(model, toy_task, edit, tmp_path / "run", penalty=0.25, penalty_warmup=0.0)  # type: ignore[arg-type]
    steps = run.metrics[run.metrics["ce"].notna()]
    assert steps["penalty"].iloc[0] == pytest.approx(0.25 * edit.scales.abs().sum().item())  # type: ignore[attr-defined]
    assert list(steps["loss"]) == pytest.approx(list(steps["ce"] + steps["penalty"]))
    assert (steps["penalty"] > 0).all()
    assert not run.gates.keys
    assert not [name for name in run.metrics if name.startswith(("open_", "lambda_"))]  # these are of gates


def test_a_heavier_penalty_leaves_smaller_scales(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    sums = []
    for penalty in (0.0, 1.0):
        edit = HeadScales(make_model().head_shape)
        fields = {"penalty": penalty, "penalty_warmup": 0.0, "lr": 5e-3, "restore_best": False, "max_steps": 30}
        run = trained(make_model(), toy_task, edit, tmp_path / f"{penalty}", **fields)
        sums.append(run.edit.penalty()["multiplicative"].item())
    assert sums[1] < 0.5 * sums[0]


def test_its_run_loads_as_it_is(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    run = trained(make_model(), toy_task, HeadScales(make_model().head_shape, heads=["L1H2"]), tmp_path / "run")
    again = Run.load(run.path)
    assert isinstance(again.edit, HeadScales)
    assert torch.equal(again.edit.scales, run.edit.scales)  # type: ignore[attr-defined]
    assert again.edit.masks()["heads"].nonzero().tolist() == [[1, 2]]


def test_settings_and_tensors_make_an_equal_edit_and_parts_of_it_act_alone() -> None:
    edit, z = made(heads=["L1H2", "L1H3"], scope="not_first"), torch.randn(2, 5, 4, 8)
    tensors = {name: value.clone() for name, value in edit.tensors().items()}
    again = edit_from_settings(edit_settings(edit), SHAPE).load_tensors(tensors)
    assert edit_settings(again) == edit_settings(edit)
    assert torch.equal(again.scales, edit.scales)  # type: ignore[attr-defined]
    whole = made()
    half = apply(whole.restricted(["L1H2"], strength=0.5), z)  # type: ignore[arg-type]
    torch.testing.assert_close(half[:, :, 2], (1 + whole.scales[1, 2] / 2) * z[:, :, 2])
    assert torch.equal(half[:, :, [0, 1, 3]], z[:, :, [0, 1, 3]])
