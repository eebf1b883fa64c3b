"""Full fine-tuning trains a copy as PyTorch would train the model, and the model stays what it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jola_interp as ji
from jola_interp.backends import attach
from jola_interp.callbacks import Callback
from jola_interp.edits.full import FullFineTuning
from jola_interp.methods.weights import WEIGHTS
from jola_interp.models import Model
from jola_interp.runs import Run, edit_from_settings, edit_settings
from jola_interp.tasks import Task
from tests.conftest import build_hf

MakeModel = Callable[..., Model]
IDS = torch.tensor([[5, 17, 200, 33, 90, 12, 7], [9, 44, 2, 71, 8, 120, 6]])
METHOD = {found.name: found for found in WEIGHTS}["full"]


def made(hf: nn.Module) -> FullFineTuning:
    return FullFineTuning.of(hf).initialise(torch.Generator())


def moved(hf: nn.Module, seed: int = 0) -> FullFineTuning:
    """One whose weights are others than the model's."""
    edit, generator = made(hf), torch.Generator().manual_seed(seed)
    for value in edit.theta.values():
        value.data += 0.05 * torch.randn(value.shape, generator=generator).to(value.dtype)
    return edit


def loss_of(hf: Any) -> tuple[Tensor, Tensor]:
    logits = hf(input_ids=IDS).logits
    return logits.detach(), torch.logsumexp(logits.float(), -1).mean()


def parameters_of(hf: nn.Module) -> dict[str, Any]:
    """Every place of a parameter: the object, its flag, its value."""
    found = hf.named_parameters(remove_duplicate=False)
    return {name: (id(p), p.requires_grad, p.detach().float().numpy().tobytes()) for name, p in found}


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])  # GPT-2's unembedding is tied to its embedding
def test_three_steps_are_those_of_the_model_itself(architecture: str) -> None:
    hf = build_hf(architecture).requires_grad_(False)
    other = copy.deepcopy(hf).requires_grad_(True)
    edit, before = made(hf), parameters_of(hf)
    own, theirs = torch.optim.AdamW(edit.parameters(), 1e-3), torch.optim.AdamW(other.parameters(), 1e-3)
    with edit.installed(hf):
        for _ in range(3):
            (logits, loss), (expected, expected_loss) = loss_of(hf), loss_of(other)
            assert torch.equal(logits, expected)
            loss.backward()
            expected_loss.backward()
            for optimizer in (own, theirs):
                optimizer.step()
                optimizer.zero_grad()
    assert edit.n_parameters() == sum(parameter.numel() for parameter in other.parameters())
    for name, parameter in other.named_parameters():
        assert torch.equal(edit.tensors()[name], parameter)
        assert not torch.equal(parameter, hf.get_parameter(name))
    assert parameters_of(hf) == before


def test_a_bfloat16_model_is_trained_in_float32_by_its_own_gradients() -> None:
    """θ' follows AdamW in float32; the model computes with θ' rounded, also after a step that rounds to nothing."""
    hf = build_hf("llama").to(torch.bfloat16).requires_grad_(False)
    edit, base = made(hf), loss_of(hf)[0]
    optimizer = torch.optim.AdamW(edit.parameters(), 1e-5)
    start = {name: value.clone() for name, value in edit.tensors().items()}
    with edit.installed(hf):
        assert torch.equal(loss_of(hf)[0], base)
        for _ in range(3):
            twin = copy.deepcopy(build_hf("llama")).to(torch.bfloat16)
            twin.load_state_dict({name: value.to(torch.bfloat16) for name, value in edit.tensors().items()})
            (logits, loss), (expected, expected_loss) = loss_of(hf), loss_of(twin)
            assert torch.equal(logits, expected)
            loss.backward()
            expected_loss.backward()
            for name, parameter in twin.named_parameters():
                held = edit.theta[name.replace(".", "/")]
                assert held.grad.dtype == held.dtype == torch.float32
                assert torch.equal(held.grad, parameter.grad.float())  # type: ignore[union-attr]
            optimizer.step()
            optimizer.zero_grad()
    moved_in = [float((value - start[name]).abs().max()) for name, value in edit.tensors().items()]
    assert min(moved_in) > 0
    lost = [bool((value.bfloat16() == start[name].bfloat16()).all()) for name, value in edit.tensors().items()]
    assert any(lost)  # what bfloat16 itself would never have learned
    assert torch.equal(loss_of(hf)[0], base)


def test_micro_batches_add_up_in_float32() -> None:
    hf = build_hf("llama").to(torch.bfloat16).requires_grad_(False)
    edit = made(hf)
    with edit.installed(hf):
        loss_of(hf)[1].backward()
        once = {name: p.grad.clone() for name, p in edit.named_parameters()}  # type: ignore[union-attr]
        loss_of(hf)[1].backward()
    for name, parameter in edit.named_parameters():
        assert torch.equal(parameter.grad, 2 * once[name])  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_leaving_restores_everything_also_by_an_exception(dtype: torch.dtype) -> None:
    hf = build_hf("gpt2").to(dtype)
    next(hf.parameters()).requires_grad_(False)
    before, hooks, base = parameters_of(hf), len(hf._forward_pre_hooks), loss_of(hf)[0]
    with pytest.raises(RuntimeError, match="in the middle"), moved(hf).installed(hf):
        assert not torch.equal(loss_of(hf)[0], base)
        assert hf.get_input_embeddings().weight is hf.get_output_embeddings().weight
        raise RuntimeError("in the middle")
    assert parameters_of(hf) == before
    assert len(hf._forward_pre_hooks) == hooks
    assert torch.equal(loss_of(hf)[0], base)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_strength_goes_a_share_of_the_way(strength: float, dtype: torch.dtype) -> None:
    hf = build_hf("llama").to(dtype).requires_grad_(False)
    edit, twin = moved(hf), copy.deepcopy(hf)
    for name, parameter in twin.named_parameters():
        parameter.data.copy_(torch.lerp(parameter.float(), edit.tensors()[name], strength))
    with torch.no_grad(), edit.restricted(strength=strength).installed(hf):
        assert torch.equal(loss_of(hf)[0], loss_of(twin)[0])
    with pytest.raises(ValueError, match="heads must be None for FullFineTuning"):
        edit.restricted(heads=["L0H0"])


def test_settings_and_tensors_make_an_equal_edit(make_model: MakeModel) -> None:
    model = make_model("gpt2")
    edit = moved(model.hf).restricted(strength=0.5)
    again = edit_from_settings(edit_settings(edit), model.head_shape).load_tensors(edit.tensors())
    assert again.n_parameters() == edit.n_parameters()
    with torch.no_grad():
        with edit.installed(model.hf):
            expected = loss_of(model.hf)[0]
        with attach(again, model, "hooks"):
            assert torch.equal(loss_of(model.hf)[0], expected)


class Interrupt(Callback):
    def on_step(self, state: Any) -> None:
        if state.step == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_trains_a_copy_resumes_to_the_same_bytes_and_loads(
    make_model: MakeModel, toy_task: Task, tmp_path: Path, dtype: torch.dtype
) -> None:
    model = make_model("llama")
    model.hf.to(dtype)
    before, base = parameters_of(model.hf), loss_of(model.hf)[0]
    options: dict[str, Any] = {"batch_size": 4, "wrapper": "plain", "max_steps": 4, "max_new_tokens": 2, "lr": 1e-3}
    whole = ji.fit(model, toy_task, METHOD, out=tmp_path / "whole", **options)
    cut = ji.fit(model, toy_task, METHOD, out=tmp_path / "cut", callbacks=[Interrupt()], **options)
    assert cut.status == "interrupted"
    again = ji.fit(model, toy_task, METHOD, out=tmp_path / "cut", resume=True, **options)
    for file in ("edit.safetensors", "metrics.jsonl", "scores.json", "config.json"):
        assert (whole.path / file).read_bytes() == (again.path / file).read_bytes()
    assert parameters_of(model.hf) == before
    assert torch.equal(loss_of(model.hf)[0], base)
    with torch.no_grad(), Run.load(whole.path, model).attach(model):
        assert not torch.equal(loss_of(model.hf)[0], base)
    losses = whole.metrics["ce"].dropna()
    assert losses.iloc[-1] < losses.iloc[0]


def test_what_does_not_fit_is_refused(make_model: MakeModel) -> None:
    model = make_model("llama")
    edit = moved(model.hf)
    with pytest.raises(ValueError, match="other parameters than the model"), edit.installed(build_hf("qwen2")):
        pass
    with pytest.raises(ValueError, match="holds sizes only"), FullFineTuning.of(model.hf).installed(model.hf):
        pass
    with (
        attach(edit, model, "hooks"),
        pytest.raises(ValueError, match="already"),
        attach(moved(model.hf), model, "hooks"),
    ):
        pass
    with torch.device("meta"):
        empty = type(model.hf)(model.hf.config)
    sized = FullFineTuning.of(empty)
    assert sized.n_parameters() == edit.n_parameters()
    with pytest.raises(ValueError, match="holds sizes only: .* lies on 'meta'"):
        sized.initialise(torch.Generator())
    with pytest.raises(ValueError, match="knows no model"):
        FullFineTuning(model.head_shape).initialise(torch.Generator())
    good = edit.tensors()
    name = next(iter(good))
    for bad, message in (
        ({}, "missing"),
        ({**good, name: good[name][:1]}, r"expected torch.float32 \[258, 32\]"),
        ({**good, name: torch.full_like(good[name], torch.nan)}, "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            edit.load_tensors(bad)
    with pytest.raises(ValueError, match="found none"):
        FullFineTuning(model.head_shape).load_tensors({})
    with pytest.raises(ValueError, match="a quantised model"):
        FullFineTuning(model.head_shape, like={"weight": torch.zeros(2, dtype=torch.int8)})
