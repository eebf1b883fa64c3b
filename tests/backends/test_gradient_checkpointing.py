"""Blocks that run again in the backward pass are edited again, by the same gates: gradients are the same to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointError
from transformers import Trainer

import jola_interp as ji
from jola_interp.backends import BackendName, attach
from jola_interp.edits import JoLA
from jola_interp.hf_trainer import EditedModel, GateCallback
from jola_interp.models import Model
from jola_interp.tasks import Task
from tests.backends.test_backends import IDS, MASK, made
from tests.test_hf_trainer import STEPS, arguments, collate, config, rows_of

MakeModel = Callable[..., Model]
NAMES: tuple[BackendName, ...] = ("hooks", "lens")
ARCHITECTURES = ("llama", "gpt2", "gemma3", "pythia")
SITES = ("heads", "mlp", "attention")
PROMPT = MASK.bool() & (torch.arange(7) < 5)
STILL = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
"""Training mode without dropout, which GPT-2 has by default."""


def checkpointing(make_model: MakeModel, architecture: str, backend: BackendName, on: bool) -> Model:
    model = make_model(architecture, **(STILL if architecture == "gpt2" else {}))
    if backend == "lens":
        assert model.bridge is not None
    if on:
        model.hf.activation_checkpointing_enable()
    model.hf.train()  # in evaluation mode, transformers runs nothing again
    return model


def loss_of(model: Model) -> Tensor:
    logits = model.logits(IDS, MASK, prompt_mask=PROMPT)
    return torch.logsumexp(logits, -1)[MASK.bool()].sum()


def gradients(edit: JoLA, model: Model, backend: BackendName) -> tuple[list[Tensor], set[int]]:
    """Of every parameter, with gates drawn; and how often each point acted."""
    with attach(edit, model, backend) as attached:
        attached.draw(torch.Generator().manual_seed(7))
        loss = loss_of(model)
        attached.draw(torch.Generator().manual_seed(8))  # the next step's, which is not this one's
        found = torch.autograd.grad(loss, list(edit.parameters()))
    attached.check_live()
    return list(found), set(attached.calls.values())


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_are_the_same_to_the_bit(make_model: MakeModel, architecture: str, backend: BackendName) -> None:
    plain, again = (checkpointing(make_model, architecture, backend, on) for on in (False, True))
    for switches in ({}, {"scope": "answer"}, {"gates": "shared", "operations": "add"}):
        edit = made(plain, sites=SITES, init_log_alpha=0.0, **switches)  # 2: most gates at 1, without a gradient
        expected, once = gradients(edit, plain, backend)
        found, twice = gradients(edit, again, backend)
        assert once == {1} and max(twice) == 2  # a block runs again as far as something is needed of it
        named = zip(edit.named_parameters(), expected, strict=True)
        assert all(bool(value.any()) for (name, _), value in named if "heads" in name)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("backend", NAMES)
def test_an_edit_taken_away_before_the_backward_pass_is_noticed(make_model: MakeModel, backend: BackendName) -> None:
    model = checkpointing(make_model, "llama", backend, True)
    edit = made(model, sites=SITES)
    with attach(edit, model, backend):
        loss = loss_of(model)
    with pytest.raises(CheckpointError):
        loss.backward()


@pytest.mark.parametrize("backend", NAMES)
def test_fit_leaves_the_same_run(make_model: MakeModel, toy_task: Task, tmp_path: Path, backend: BackendName) -> None:
    given: dict[str, Any] = {"epochs": 1, "batch_size": 8, "wrapper": "plain", "evaluate": False}
    runs, passes = [], []
    for on in (False, True):
        model, seen = checkpointing(make_model, "llama", backend, on), []
        model.o_proj(0).register_forward_pre_hook(lambda *_, seen=seen: seen.append(1))
        runs.append(ji.fit(model, toy_task, backend=backend, out=tmp_path / str(on), **given))
        passes.append(len(seen))
    assert passes[1] >= passes[0] + 3  # once more in each of three steps
    for name in ("edit.safetensors", "gates.safetensors", "metrics.jsonl"):
        assert (runs[0].path / name).read_bytes() == (runs[1].path / name).read_bytes()


def under_the_trainer(
    model: Model, task: Task, folder: Path, backend: BackendName = "hooks", **told: Any
) -> EditedModel:
    edited = EditedModel(model, config=config(), backend=backend)
    given: Any = {"train_dataset": rows_of(model, task, config()), "data_collator": collate}
    given |= {"optimizers": edited.optimizers(), "callbacks": [GateCallback(edited)]}
    Trainer(edited, arguments(folder, **told), **given).train()
    return edited


@pytest.mark.parametrize("backend", NAMES)
def test_the_trainers_argument_takes_the_same_steps(
    make_model: MakeModel, toy_task: Task, tmp_path: Path, backend: BackendName
) -> None:
    """Dropout stays off, and the cache works again afterwards."""
    made_with = {"attn_pdrop": 0.5, "resid_pdrop": 0.5}
    models = [make_model("gpt2", **made_with) for _ in range(2)]
    plain = under_the_trainer(models[0], toy_task, tmp_path, backend)
    again = under_the_trainer(models[1], toy_task, tmp_path, backend, activation_checkpointing=True)
    assert set(plain.attached.calls.values()) == {STEPS} and set(again.attached.calls.values()) == {2 * STEPS}
    expected = plain.edit.tensors()
    assert all(torch.equal(value, expected[name]) for name, value in again.edit.tensors().items())
    assert not any(module.training for module in models[1].hf.modules())
    options: Any = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 256}
    written = [model.hf.generate(input_ids=IDS, attention_mask=MASK, **options) for model in models]
    assert torch.equal(*written)


def test_what_cannot_run_again_is_refused(make_model: MakeModel) -> None:
    traced = EditedModel(make_model(), backend="nnsight")
    with pytest.raises(ValueError, match="nnsight edits no block that runs again"):
        traced.activation_checkpointing_enable()
    edited = EditedModel(model := make_model())
    model.component(1).dropout = 0.1  # as OPT's blocks have it
    with pytest.raises(ValueError, match="would drop out 0.1"):
        edited.activation_checkpointing_enable()
    assert not model.hf.is_activation_checkpointing
