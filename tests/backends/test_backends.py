"""Lens and hooks give the same numbers on every architecture, and leave everything as they found it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from jola_interp.backends import BACKENDS, BackendName, EditNotLiveError, attach
from jola_interp.edits import JoLA
from jola_interp.models import Model, load_model
from tests.conftest import ARCHITECTURES, build_hf

MakeModel = Callable[..., Model]
NAMES: tuple[BackendName, ...] = ("lens", "hooks")
IDS = torch.tensor([[256, 256, 256, 5, 17, 80, 3], [9, 44, 2, 71, 8, 120, 6]])
MASK = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])


def made(model: Model, seed: int = 0, **switches: Any) -> JoLA:
    """An edit of every site, large enough to move logits."""
    switches.setdefault("sites", ("heads", "mlp"))
    return JoLA(model.head_shape, init_std=0.5, **switches).initialise(torch.Generator().manual_seed(seed))


def logits_and_gradients(model: Model, edit: JoLA, backend: BackendName) -> tuple[Tensor, list[Tensor]]:
    parameters = list(edit.parameters())
    with attach(edit, model, backend) as attached:
        attached.draw(torch.Generator().manual_seed(7))
        logits = model.logits(IDS, MASK)
        loss = torch.logsumexp(logits, -1)[MASK.bool()].sum()
        gradients = torch.autograd.grad(loss, parameters)
    return logits.detach()[MASK.bool()], list(gradients)


def largest_difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def hooks_of(model: Model) -> dict[str, list[Any]]:
    """Everything that PyTorch and TransformerLens keep about hooks, module by module."""
    owner = model.bridge if model.booted else model.hf
    state = {}
    for name, module in owner.named_modules():
        state[name] = [
            list(module._forward_hooks.items()),
            list(module._forward_pre_hooks.items()),
            list(module._forward_pre_hooks_with_kwargs),
            list(module._backward_hooks.items()),
            list(getattr(module, "fwd_hooks", [])),
        ]
    return state


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_backends_agree_on_logits_and_gradients(make_model: MakeModel, architecture: str) -> None:
    plain, booted = make_model(architecture, "eager"), make_model(architecture, "eager")
    edit = made(plain)
    expected, gradients = logits_and_gradients(plain, edit, "hooks")
    found, other = logits_and_gradients(booted, edit, "lens")
    assert largest_difference(found, expected) <= 1e-6
    assert max(largest_difference(a, b) for a, b in zip(other, gradients, strict=True)) <= 1e-5
    fused = make_model(architecture, "sdpa")
    assert largest_difference(logits_and_gradients(fused, edit, "hooks")[0], expected) <= 1e-5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_edit_moves_logits_and_closed_gates_do_not(make_model: MakeModel, architecture: str) -> None:
    for backend in NAMES:
        model = make_model(architecture)
        if backend == "lens":
            assert model.bridge is not None
        with torch.no_grad():
            base = model.logits(IDS, MASK)
            with attach(made(model), model, backend) as attached:
                assert not torch.equal(model.logits(IDS, MASK), base)
            attached.check_live()
            closed = made(model, init_log_alpha=-20.0)
            with attach(closed, model, backend):
                assert torch.equal(model.logits(IDS, MASK), base)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("backend", NAMES)
def test_leaving_restores_hooks_parameters_and_logits(
    make_model: MakeModel, architecture: str, backend: BackendName
) -> None:
    model = make_model(architecture)
    if backend == "lens":
        assert model.bridge is not None  # booting comes before what is to be restored
    owner = model.bridge if model.booted else model.hf
    parameters = {name: value.clone() for name, value in owner.state_dict().items() if isinstance(value, Tensor)}
    hooks, base = hooks_of(model), model.logits(IDS, MASK)
    with pytest.raises(RuntimeError, match="in the middle"), attach(made(model), model, backend):
        model.logits(IDS, MASK)
        raise RuntimeError("in the middle")
    assert hooks_of(model) == hooks
    assert torch.equal(model.logits(IDS, MASK), base)
    after = owner.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in parameters.items())
    assert not any(parameter.requires_grad for parameter in owner.parameters())


@pytest.mark.parametrize("backend", NAMES)
def test_the_same_edit_twice_is_an_error_and_different_edits_compose(
    make_model: MakeModel, backend: BackendName
) -> None:
    model = make_model()
    first, second = made(model, 1), made(model, 2)
    with attach(first, model, backend), pytest.raises(ValueError, match="already"), attach(first, model, backend):
        pass
    with torch.no_grad():
        with attach([first, second], model, backend):
            together = model.logits(IDS, MASK)
        with attach(first, model, backend), attach(second, model, backend):
            nested = model.logits(IDS, MASK)
        with attach(first, model, backend):
            alone = model.logits(IDS, MASK)
    assert torch.equal(together, nested)
    assert not torch.equal(together, alone)


def test_users_own_hooks_survive_and_still_fire(make_model: MakeModel) -> None:
    model, seen = make_model(), []
    model.bridge.add_hook("blocks.0.attn.hook_z", lambda _, **__: seen.append("lens"))
    model.hf.get_submodule("lm_head").register_forward_pre_hook(lambda *_: seen.append("torch"))
    with attach(made(model), model, "lens"):
        model.logits(IDS, MASK)
    model.logits(IDS, MASK)
    assert seen == ["lens", "torch"] * 2


def test_an_edit_acts_once_in_compatibility_mode(make_model: MakeModel) -> None:
    model = make_model("llama")
    edit = made(model, sites=("heads",))
    with torch.no_grad():
        with attach(edit, model, "lens"):
            expected = model.logits(IDS, MASK)
        model.bridge.enable_compatibility_mode(no_processing=True)
        with attach(edit, model, "lens") as attached:
            assert torch.equal(model.logits(IDS, MASK)[MASK.bool()], expected[MASK.bool()])
    assert set(attached.calls.values()) == {1}


@pytest.mark.parametrize("backend", NAMES)
def test_edit_acts_at_every_decoding_step(make_model: MakeModel, backend: BackendName) -> None:
    """Generation with the cache equals generation by repeated full passes with the edit."""
    model = make_model()
    edit = made(model)
    with torch.no_grad(), attach(edit, model, backend) as attached:
        found = model.hf.generate(
            input_ids=IDS, attention_mask=MASK, max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=256
        )
        assert attached.forwards == 6
        attached.check_live()
        ids, mask = IDS, MASK
        for _ in range(6):
            logits = model.logits(ids, mask, keep=1)[:, -1]
            logits[:, 257] = -torch.inf  # min_new_tokens forbids EOS
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
            mask = torch.cat([mask, torch.ones(2, 1, dtype=mask.dtype)], 1)
    assert torch.equal(found, ids)


def test_bridge_and_wrapped_model_see_the_same_edit(make_model: MakeModel) -> None:
    model = make_model()
    with torch.no_grad(), attach(made(model), model, "lens") as attached:
        through_bridge = model.bridge(IDS, attention_mask=MASK)
        wrapped = model.logits(IDS, MASK)
    assert attached.forwards == 2
    torch.testing.assert_close(through_bridge[MASK.bool()], wrapped[MASK.bool()])


def test_removed_hooks_are_noticed(make_model: MakeModel) -> None:
    model = make_model()
    with attach(made(model), model, "lens") as attached:
        model.logits(IDS, MASK)
        attached.check_live()
        model.bridge.reset_hooks()
        model.logits(IDS, MASK)
        with pytest.raises(EditNotLiveError, match="1 of 2 passes"):
            attached.check_live()
    with attach(made(model), model, "lens") as idle, pytest.raises(EditNotLiveError, match="not run"):
        idle.check_live()


def test_context_tells_prefill_from_decoding_and_hands_on_the_masks(make_model: MakeModel) -> None:
    model, seen = make_model(), []

    class Watching(JoLA):
        def prepare(self, context: Any, dtype: torch.dtype) -> Any:
            seen.append((context.decoding, tuple(context.attention_mask.shape)))
            return super().prepare(context, dtype)

    edit = Watching(model.head_shape).initialise(torch.Generator().manual_seed(0))
    with attach(edit, model, "hooks"):
        model.hf.generate(
            input_ids=IDS, attention_mask=MASK, max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=256
        )
    assert seen == [(False, (2, 7)), (True, (2, 8)), (True, (2, 9))]


def test_gradient_checkpointing_gives_the_same_gradients(make_model: MakeModel) -> None:
    plain, saving = make_model(), make_model()
    edit = made(plain)
    _, expected = logits_and_gradients(plain, edit, "hooks")
    saving.hf.activation_checkpointing_enable()
    saving.hf.train()  # checkpointing is off in eval mode; these models have no dropout
    with attach(edit, saving, "hooks") as attached:
        attached.draw(torch.Generator().manual_seed(7))
        embeds = saving.hf.get_input_embeddings()(IDS).requires_grad_()
        logits = saving.hf(
            inputs_embeds=embeds, attention_mask=MASK, position_ids=(MASK.cumsum(1) - 1).clamp(min=0)
        ).logits
        loss = torch.logsumexp(logits, -1)[MASK.bool()].sum()
        found = torch.autograd.grad(loss, list(edit.parameters()))
    assert max(largest_difference(a, b) for a, b in zip(found, expected, strict=True)) <= 1e-5


def test_what_cannot_work_is_refused_before_any_pass(make_model: MakeModel) -> None:
    model, other = make_model(), make_model("gemma3")
    with pytest.raises(ValueError, match="made for"), attach(made(other), model):
        pass
    with pytest.raises(ValueError, match="backend must be one of lens, hooks, nnsight"):
        attach(made(model), model, "pyvene")  # type: ignore[arg-type]
    assert model.bridge is not None
    with pytest.raises(ValueError, match="plain model"), attach(made(model), model, "hooks"):
        pass
    assert set(BACKENDS) == {"lens", "hooks", "nnsight"}


def test_private_path_translation_agrees_with_a_booted_bridge(make_model: MakeModel) -> None:
    """The hooks backend relies on private modules of TransformerLens: this notices when they change."""
    for architecture in ARCHITECTURES:
        model = make_model(architecture)
        before = [model.o_proj(layer) for layer in range(2)]
        assert model.bridge is not None
        assert [model.o_proj(layer) for layer in range(2)] == before, architecture


def test_bfloat16_backends_agree_bit_for_bit_or_nearly(tokenizer: Any) -> None:
    outputs = []
    for backend in NAMES:
        model = load_model(build_hf("llama", "eager").bfloat16(), tokenizer=tokenizer)
        with torch.no_grad(), attach(made(model), model, backend):
            outputs.append(model.logits(IDS, MASK)[MASK.bool()].float())
    assert largest_difference(*outputs) <= 2**-7  # one rounding of bfloat16
