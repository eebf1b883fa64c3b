"""A pass restarted at a layer is the whole pass it stands for, runs less, and leaves the model as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from jola_interp.backends import Attachment, EditNotLiveError, attach
from jola_interp.backends.restart import RestartError, blocks, recorded, restarted
from jola_interp.edits import JoLA
from jola_interp.models import Model, load_model
from tests.backends.test_backends import IDS, MASK, hooks_of, largest_difference, made
from tests.conftest import ARCHITECTURES, build_hf

MakeModel = Callable[..., Model]
LAYERS = 4
READ = torch.tensor([[False, True, True, False], [True, True, True, False]])
KEEP = READ.shape[1]


@pytest.fixture
def four_layers(make_model: MakeModel) -> Callable[..., Model]:
    def make(architecture: str = "llama", booted: bool = False, **changes: Any) -> Model:
        depth = "n_layer" if architecture == "gpt2" else "num_hidden_layers"
        model = make_model(architecture, **{depth: LAYERS}, **changes)
        if booted:
            assert model.bridge is not None
        return model

    return make


def attached_to(model: Model, edit: JoLA) -> Any:
    return attach(edit.requires_grad_(False), model, "lens" if model.booted else "hooks")


def change(edit: JoLA, layer: int) -> None:
    """Another edit at ``layer``: heads and MLP."""
    for parameter in edit.parameters():
        parameter.data[layer].add_(0.7)


def marked(model: Model) -> Tensor:
    """The logits at READ, in a pass that gives no others."""
    return model.forward(IDS, MASK, KEEP).logits[0]


@torch.no_grad()
@pytest.mark.parametrize("booted", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_restarted_pass_equals_a_whole_pass(four_layers: MakeModel, architecture: str, booted: bool) -> None:
    model = four_layers(architecture, booted)
    for layer in range(LAYERS):
        edit = made(model)
        with attached_to(model, edit) as attached:
            with recorded(model, attached) as recording:
                before = model.logits(IDS, MASK)
            with recorded(model, attached, read=READ) as partly:
                marked(model)
            change(edit, layer)
            expected = model.logits(IDS, MASK)
            with restarted(recording, layer):
                found = model.logits(IDS, MASK)
            with restarted(partly, layer):
                few = marked(model)
            attached.check_live()
        real = MASK.bool()
        assert torch.equal(found[real], expected[real])
        assert not torch.equal(expected[real], before[real])
        assert largest_difference(few, expected[:, -KEEP:][READ]) <= 1e-6


@torch.no_grad()
@pytest.mark.parametrize("booted", [False, True])
def test_only_what_can_change_and_is_read_is_computed(four_layers: MakeModel, booted: bool) -> None:
    model = four_layers(booted=booted)
    seen: list[tuple[str, tuple[int, ...]]] = []
    for layer in range(LAYERS):
        name = model._path(f"blocks.{layer}.mlp.out")
        point = model.bridge.blocks[layer].mlp.out.original_component if booted else model.hf.get_submodule(name)
        point.register_forward_hook(lambda _, __, out, at=f"mlp {layer}": seen.append((at, tuple(out.shape))))
    unembedding = model.hf.get_output_embeddings()
    unembedding.register_forward_hook(lambda _, __, out: seen.append(("logits", tuple(out.shape))))
    with recorded(model, read=READ) as recording:
        marked(model)
    seen.clear()
    with restarted(recording, 2):
        marked(model)
    n, width = int(READ.sum()), model.head_shape.d_model
    assert seen == [("mlp 2", (2, 7, width)), ("mlp 3", (2, KEEP, width)), ("logits", (1, n, model.vocab_size))]


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("booted", [False, True])
def test_leaving_restores_the_model_also_by_an_exception(
    four_layers: MakeModel, architecture: str, booted: bool
) -> None:
    model = four_layers(architecture, booted)
    hooks, base = hooks_of(model), model.logits(IDS, MASK)
    forwards = {name: module.__dict__.get("forward") for name, module in model.hf.named_modules()}
    with pytest.raises(RuntimeError, match="recording"), recorded(model, read=READ):
        marked(model)
        raise RuntimeError("recording")
    with recorded(model, read=READ) as recording:
        marked(model)
    with pytest.raises(RuntimeError, match="restarting"), restarted(recording, 2):
        marked(model)
        raise RuntimeError("restarting")
    assert hooks_of(model) == hooks
    assert {name: module.__dict__.get("forward") for name, module in model.hf.named_modules()} == forwards
    assert torch.equal(model.logits(IDS, MASK), base)


@torch.no_grad()
def test_a_forward_that_stood_on_a_block_is_put_back(four_layers: MakeModel) -> None:
    """As accelerate leaves one on the blocks of a sharded model."""
    model = four_layers()
    block = blocks(model)[0]
    own, calls = type(block).forward, []

    def dispatched(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return own(block, *args, **kwargs)

    block.forward = dispatched
    with recorded(model) as recording:
        expected = model.logits(IDS, MASK)
    calls.clear()
    with restarted(recording, 1):
        assert torch.equal(model.logits(IDS, MASK), expected)
        assert not calls
    assert block.forward is dispatched


@torch.no_grad()
@pytest.mark.parametrize("booted", [False, True])
def test_users_own_hooks_on_blocks_act_once_in_a_restarted_pass(four_layers: MakeModel, booted: bool) -> None:
    model = four_layers(booted=booted)
    block = model.bridge.blocks[0] if booted else blocks(model)[0]
    block.register_forward_hook(lambda _, __, output: output * 1.5)
    whole = model.logits(IDS, MASK)
    with recorded(model) as recording:
        model.logits(IDS, MASK)
    for layer in range(LAYERS):
        with restarted(recording, layer):
            assert torch.equal(model.logits(IDS, MASK), whole)


@torch.no_grad()
@pytest.mark.parametrize("booted", [False, True])
def test_check_live_still_notices_an_edit_that_does_not_act(four_layers: MakeModel, booted: bool) -> None:
    def remove_hook(model: Model, layer: int) -> None:
        if booted:
            model.bridge.blocks[layer].attn.hook_z.remove_hooks()
        else:
            model.o_proj(layer)._forward_pre_hooks.clear()

    def restarts(model: Model, attached: Attachment, before: int | None, after: int | None) -> None:
        with recorded(model, attached) as recording:
            if before is not None:
                remove_hook(model, before)
            model.logits(IDS, MASK)
        if after is not None:
            remove_hook(model, after)
        with restarted(recording, 2):
            model.logits(IDS, MASK)

    for removed in ((None, None), (1, None), (3, None), (None, 3)):
        model = four_layers(booted=booted)
        with attached_to(model, made(model, sites=("heads",))) as attached:
            restarts(model, attached, *removed)
            if removed == (None, None):
                attached.check_live()
                continue
            with pytest.raises(EditNotLiveError, match=f"layer {removed[0] or removed[1]} "):
                attached.check_live()


@torch.no_grad()
def test_a_recording_serves_its_own_batch_only(four_layers: MakeModel) -> None:
    model = four_layers()
    with recorded(model) as recording:
        model.logits(IDS, MASK)
    with restarted(recording, 2):
        with pytest.raises(ValueError, match="input_ids is not that of the recorded pass"):
            model.logits(IDS + 1, MASK)
        with pytest.raises(ValueError, match=r"found \[1, 7\], recorded \[2, 7\]"):
            model.logits(IDS[:1], MASK[:1])
        with pytest.raises(ValueError, match="attention_mask"):
            model.logits(IDS, torch.ones_like(MASK))
        with pytest.raises(ValueError, match="prompt_mask"):
            model.logits(IDS, MASK, prompt_mask=MASK.bool())
        model.logits(IDS, MASK, keep=2)  # which logits are wanted is no part of the batch


@torch.no_grad()
def test_what_cannot_be_restarted_is_refused(four_layers: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = four_layers()
    with recorded(model) as idle:
        pass
    with pytest.raises(ValueError, match="no pass was finished"), restarted(idle, 0):
        pass
    with recorded(model) as recording:
        model.logits(IDS, MASK)
        with pytest.raises(ValueError, match="cache"):
            model.forward(IDS, MASK, use_cache=True)
    for layer in (-1, LAYERS):
        with pytest.raises(ValueError, match="layer must be 0 to 3"), restarted(recording, layer):
            pass
    with pytest.raises(ValueError, match="no position is marked"), recorded(model, read=torch.zeros_like(READ)):
        pass
    with recorded(model, read=READ[:1]), pytest.raises(ValueError, match=r"\[1, 4\] positions to choose from"):
        marked(model)
    monkeypatch.setattr(model.hf, "get_output_embeddings", lambda: None)
    with pytest.raises(ValueError, match="no output embeddings"), recorded(model, read=READ):
        pass
    monkeypatch.setattr(model, "_path", lambda _: "nowhere")
    with pytest.raises(ValueError, match="4 transformer blocks .* cannot be found"), recorded(model):
        pass


@torch.no_grad()
def test_blocks_that_read_more_than_the_residual_stream_are_noticed(four_layers: MakeModel) -> None:
    """Block 2 also adds what block 0's MLP gave, which a restarted pass would take from another batch."""
    model, kept = four_layers(), {}
    first, third = model.component(0, "mlp"), model.component(2, "mlp")
    first.register_forward_hook(lambda _, __, output: kept.update(output=output))
    handle = third.register_forward_hook(lambda _, __, output: output + kept["output"])
    for _ in range(2):  # it is not forgotten by trying again
        with pytest.raises(RestartError, match="restarted from layer 2 differs"), recorded(model):
            pass
    handle.remove()
    with recorded(model):
        model.logits(IDS, MASK)


@torch.no_grad()
def test_blocks_that_miss_what_an_earlier_one_leaves_are_noticed(four_layers: MakeModel) -> None:
    model, kept = four_layers(), {}
    model.component(0, "mlp").register_forward_hook(lambda _, __, output: kept.update(output=output))
    model.component(2, "mlp").register_forward_hook(lambda _, __, output: output + kept.pop("output"))
    with pytest.raises(RestartError, match="KeyError"), recorded(model):
        pass


@torch.no_grad()
def test_equality_is_checked_once_for_a_model_and_again_when_it_is_booted(four_layers: MakeModel) -> None:
    model, passes = four_layers(), []
    model.hf.register_forward_pre_hook(lambda *_: passes.append(1))
    for expected in (True, False):
        passes.clear()
        with recorded(model):
            assert bool(passes) == expected
    assert model.bridge is not None
    passes.clear()
    with recorded(model):
        assert passes


@torch.no_grad()
def test_restarts_work_in_bfloat16(tokenizer: Any) -> None:
    model = load_model(build_hf("llama", num_hidden_layers=LAYERS).bfloat16(), tokenizer=tokenizer)
    with recorded(model) as recording:
        expected = model.logits(IDS, MASK)
    with restarted(recording, 2):
        assert torch.equal(model.logits(IDS, MASK)[MASK.bool()], expected[MASK.bool()])
