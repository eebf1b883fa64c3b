"""One gate per head on the model's own output: its ends are exact, its pressures opposite, its parts act alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import jola_interp as ji
from jola_interp.backends import attach
from jola_interp.edits import Context, HeadShape
from jola_interp.edits.head_gates import CLIP, HeadGates, _check_switches
from jola_interp.models import Model
from jola_interp.runs import Run, edit_from_settings, edit_settings
from jola_interp.tasks import Task

MakeModel = Callable[..., Model]
SHAPE = HeadShape(layers=3, heads=4, kv_heads=2, d_head=8, d_model=32)
IDS = torch.tensor([[5, 17, 200, 33, 90, 12, 7]])


def made(seed: int = 0, **switches: Any) -> HeadGates:
    return HeadGates(SHAPE, **switches).initialise(torch.Generator().manual_seed(seed))


def apply(edit: HeadGates, z: torch.Tensor, layer: int = 1) -> torch.Tensor:
    state = Context()
    state.prepared = edit.prepare(state, z.dtype)
    result: torch.Tensor = edit(z, layer, "heads", state)
    return result


def logits(model: Model, edit: HeadGates | None = None, backend: Any = "hooks") -> torch.Tensor:
    with torch.no_grad():
        if edit is None:
            return model.logits(IDS, torch.ones_like(IDS), 1)
        with attach(edit, model, backend):
            return model.logits(IDS, torch.ones_like(IDS), 1)


def test_edit_is_the_equation_of_the_paper() -> None:
    edit, z = made(), torch.randn(2, 5, 4, 8)
    torch.testing.assert_close(apply(edit, z), torch.sigmoid(edit.theta[1])[:, None] * z)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("theta", [17.0, 20.0, 300.0])
def test_large_theta_and_a_new_edit_are_the_identity_bit_for_bit(theta: float, dtype: torch.dtype) -> None:
    z = torch.randn(2, 5, 4, 8).to(dtype)
    edit = HeadGates(SHAPE)
    assert torch.equal(apply(edit, z), z)
    edit.theta.data.fill_(theta)
    assert torch.equal(apply(edit, z), z)
    assert bool((edit.values() == 1).all())


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_gate_of_0_removes_the_head_from_the_model(architecture: str, make_model: MakeModel) -> None:
    model = make_model(architecture)
    edit = HeadGates(model.head_shape)
    edit.theta.data[0, 2] = -104.0
    assert edit.values()[0, 2] == 0
    gated, base = logits(model, edit), logits(model)
    width = model.head_shape.d_head
    weight = model.o_proj(0).weight.data  # [d_model, head·d_head]; GPT-2 has it the other way round
    own = slice(2 * width, 3 * width)
    (weight[own] if architecture == "gpt2" else weight[:, own]).zero_()
    torch.testing.assert_close(gated, logits(model))
    assert not torch.allclose(gated, base)


def test_both_backends_gate_alike_and_leave_the_model_as_it_was(make_model: MakeModel) -> None:
    model, other = make_model("llama", attention="eager"), make_model("llama", attention="eager")
    edit = HeadGates(model.head_shape).initialise(torch.Generator().manual_seed(0))
    before = logits(model)
    hooked = logits(model, edit)
    assert torch.equal(logits(model), before)
    torch.testing.assert_close(logits(other, edit, "lens"), hooked)


@pytest.mark.parametrize("clip", ["ahead", "both"])
def test_pressures_are_opposite_and_end_where_they_are_clipped(clip: Any) -> None:
    theta = torch.linspace(-9, 9, 12).reshape(3, 4)
    reached = {"close": theta > -CLIP, "open": theta < CLIP}
    for name, sign in (("close", 1), ("open", -1)):
        edit = HeadGates(SHAPE, pressure=name, clip=clip)  # type: ignore[arg-type]
        edit.theta.data.copy_(theta)
        (penalty,) = edit.penalty().values()
        penalty.backward()
        felt = theta.abs() < CLIP if clip == "both" else reached[name]
        torch.testing.assert_close(edit.theta.grad, sign * felt / 12)
        if clip == "both":
            torch.testing.assert_close(penalty, sign * theta.clamp(-CLIP, CLIP).mean())
        assert edit.sign == sign


def test_heads_without_a_gate_cost_nothing() -> None:
    edit = made(heads=["L1H2", (2, 0)])
    (penalty,) = edit.penalty().values()
    torch.testing.assert_close(penalty, edit.theta[[1, 2], [2, 0]].clamp(min=-CLIP).mean())
    penalty.backward()
    assert edit.theta.grad is not None
    assert edit.theta.grad.ne(0).nonzero().tolist() == [[1, 2], [2, 0]]


def test_gates_start_uniformly_or_where_told() -> None:
    gates = HeadGates(HeadShape(64, 64, 64, 2, 128)).initialise(torch.Generator().manual_seed(0)).values()
    quantiles = torch.tensor([0.1, 0.5, 0.9])
    torch.testing.assert_close(gates.quantile(quantiles), quantiles, atol=0.02, rtol=0)
    torch.testing.assert_close(made(start=0.9).values(), torch.full((3, 4), 0.9))


def test_only_named_heads_have_a_gate() -> None:
    edit = made(heads=["L1H2", (2, 0)])
    assert edit.points() == [(1, "heads"), (2, "heads")]
    assert edit.n_parameters() == 2
    assert edit.masks()["heads"].nonzero().tolist() == [[1, 2], [2, 0]]
    z = torch.randn(1, 3, 4, 8)
    assert (apply(edit, z) != z).any(-1).any(0).any(0).tolist() == [False, False, True, False]
    edit.values().sum().backward()
    assert edit.theta.grad is not None
    assert edit.theta.grad.ne(0).nonzero().tolist() == [[1, 2], [2, 0]]


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, -1.0, 2.0])
def test_a_part_of_an_edit_goes_a_share_of_the_way_at_its_heads_alone(strength: float) -> None:
    edit, z = made(), torch.randn(2, 5, 4, 8)
    part = apply(edit.restricted(["L1H2"], strength=strength), z)
    expected = z.clone()
    expected[:, :, 2] += strength * (apply(edit, z) - z)[:, :, 2]
    torch.testing.assert_close(part, expected)
    assert torch.equal(part[:, :, [0, 1, 3]], z[:, :, [0, 1, 3]])


def test_parts_without_scaling_heads_or_strength_are_the_identity_and_the_whole_is_the_edit() -> None:
    edit, z = made(), torch.randn(2, 5, 4, 8)
    for part in (edit.restricted(kinds=["additive"]), edit.restricted([]), edit.restricted(strength=0.0)):
        assert torch.equal(apply(part, z), z)
    assert torch.equal(apply(edit.restricted(), z), apply(edit, z))
    assert torch.equal(apply(edit.restricted(kinds=["multiplicative"]), z), apply(edit, z))


def test_settings_and_tensors_make_an_equal_edit() -> None:
    edit = made(pressure="open", heads=["L0H1", "L2H2"], start=0.3).restricted(strength=0.5)
    tensors = {name: value.clone() for name, value in edit.tensors().items()}
    again = edit_from_settings(edit_settings(edit), SHAPE).load_tensors(tensors)
    assert isinstance(again, HeadGates)
    assert edit_settings(again) == edit_settings(edit)
    assert torch.equal(again.values(), edit.values())
    assert again.initialised


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"start": 0.0}, "start must be between 0 and 1"),
        ({"start": 1.5}, "start must be between 0 and 1"),
        ({"heads": []}, "no head is left"),
        ({"heads": ["L9H0"]}, "L9H0 is not in this model"),
    ],
)
def test_bad_switches_are_refused(switches: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HeadGates(SHAPE, **switches)


def test_unknown_words_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="pressure must be one of close, open; got 'shut'"):
        _check_switches("shut", None, "both")
    with pytest.raises(ValueError, match="clip must be one of ahead, both; got 'none'"):
        _check_switches("open", None, "none")


def test_bad_parts_and_tensors_are_refused() -> None:
    edit = made()
    with pytest.raises(ValueError, match="kinds must be a subset"):
        edit.restricted(kinds=["shared"])
    with pytest.raises(ValueError, match="strength must be a finite number"):
        edit.restricted(strength=float("nan"))
    with pytest.raises(ValueError, match="L0H7 is not in this model"):
        edit.restricted(["L0H7"])
    good = edit.tensors()
    for bad, message in (
        ({"theta.heads": good["theta.heads"]}, "missing"),
        ({**good, "theta.heads": torch.zeros(2, 4)}, "expected torch.float32"),
        ({**good, "theta.heads": torch.full((3, 4), torch.nan)}, "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            edit.load_tensors(bad)


def test_fit_trains_gates_alone_and_their_run_loads_attaches_and_scores(
    make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    model = make_model("llama")
    weights = {name: value.clone() for name, value in model.hf.state_dict().items()}
    edit = HeadGates(model.head_shape, pressure="close")
    run = ji.fit(model, toy_task, edit, backend="hooks", max_steps=4, max_new_tokens=2, out=tmp_path / "run")
    assert all(torch.equal(value, weights[name]) for name, value in model.hf.state_dict().items())
    assert bool((edit.values() == 1).all())  # the caller's own edit is as it was
    again = Run.load(run.path, model)
    assert isinstance(again.edit, HeadGates)
    assert torch.equal(again.edit.values(), run.edit.values())
    assert run.scores["edited"] != run.scores["base"]
    assert not again.gates.keys
    assert not [name for name in again.metrics if name.startswith("open_")]  # P(open) is no word about these gates
    with pytest.raises(ValueError, match="no gates"):
        again.selection()
    with again.attach(model, strength=0.0) as attached:
        unchanged = model.logits(IDS, torch.ones_like(IDS), 1)
    attached.check_live()
    assert torch.equal(unchanged, logits(model))
