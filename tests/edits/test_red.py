"""RED is JoLA without gates at the MLP, with s = 1 + m and b = a."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import jola_interp as ji
from jola_interp.backends import attach
from jola_interp.edits.base import Edit
from jola_interp.edits.jola import JoLA
from jola_interp.edits.red import RED
from jola_interp.methods.weights import WEIGHTS
from jola_interp.models import Model
from jola_interp.runs import Run, edit_from_settings, edit_settings
from jola_interp.tasks import Task
from tests.conftest import ARCHITECTURES

MakeModel = Callable[..., Model]
IDS = torch.tensor([[256, 256, 256, 5, 17, 80, 3], [9, 44, 2, 71, 8, 120, 6]])
MASK = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
METHOD = {found.name: found for found in WEIGHTS}["red"]


def pair(model: Model, seed: int = 0) -> tuple[RED, JoLA]:
    """RED, and JoLA at the MLP with the same values."""
    shape = model.head_shape
    other = JoLA(shape, gates="none", sites=("mlp",), init_std=0.3).initialise(torch.Generator().manual_seed(seed))
    edit = RED(shape).initialise(torch.Generator())
    vectors = other.site("mlp").vectors
    edit.s.data += vectors["multiplicative"].data[:, 0]
    edit.b.data += vectors["additive"].data[:, 0]
    return edit, other


def step(model: Model, edit: Edit, optimizer: torch.optim.Optimizer, backend: Any) -> Tensor:
    with attach(edit, model, backend) as attached:
        logits = model.logits(IDS, MASK)
        torch.logsumexp(logits, -1)[MASK.bool()].mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    attached.check_live()
    return logits.detach()[MASK.bool()]


def largest_difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_three_steps_are_those_of_ungated_jola_at_the_mlp(make_model: MakeModel, architecture: str) -> None:
    model = make_model(architecture)
    edit, other = pair(model)
    assert edit.n_parameters() == other.n_parameters()
    optimizers = [torch.optim.AdamW(e.parameters(), 1e-2, weight_decay=0.0) for e in (edit, other)]
    for _ in range(3):
        found, expected = (step(model, e, o, "hooks") for e, o in zip((edit, other), optimizers, strict=True))
        assert largest_difference(found, expected) <= 1e-6
    vectors = other.site("mlp").vectors
    assert largest_difference(edit.s.detach(), 1 + vectors["multiplicative"].detach()[:, 0]) <= 1e-6
    assert largest_difference(edit.b.detach(), vectors["additive"].detach()[:, 0]) <= 1e-6


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_backends_agree(make_model: MakeModel, architecture: str) -> None:
    plain, booted = make_model(architecture, "eager"), make_model(architecture, "eager")
    edit, _ = pair(plain)
    with torch.no_grad():
        with attach(edit, plain, "hooks"):
            expected = plain.logits(IDS, MASK)[MASK.bool()]
        with attach(edit, booted, "lens"):
            assert largest_difference(booted.logits(IDS, MASK)[MASK.bool()], expected) <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_new_edit_is_the_identity_bit_for_bit_and_leaving_restores(make_model: MakeModel, dtype: torch.dtype) -> None:
    model = make_model()
    model.hf.to(dtype)
    edit = RED(model.head_shape).initialise(torch.Generator())
    with torch.no_grad():
        base = model.logits(IDS, MASK)
        with attach(edit, model, "hooks"):
            assert torch.equal(model.logits(IDS, MASK), base)
        edit.s.data.fill_(2.0)
        with attach(edit, model, "hooks"):
            assert not torch.equal(model.logits(IDS, MASK), base)
        assert torch.equal(model.logits(IDS, MASK), base)


@pytest.mark.parametrize("strength", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("kinds", [None, ["additive"], ["multiplicative"]])
def test_parts_and_shares_are_those_of_jola(make_model: MakeModel, strength: float, kinds: list[str] | None) -> None:
    model = make_model()
    edit, other = pair(model)
    logits = []
    for part in (edit.restricted(kinds=kinds, strength=strength), other.restricted(kinds=kinds, strength=strength)):
        with torch.no_grad(), attach(part, model, "hooks"):
            logits.append(model.logits(IDS, MASK)[MASK.bool()])
    assert largest_difference(*logits) <= 1e-6
    with pytest.raises(ValueError, match="heads must be None for RED"):
        edit.restricted(heads=["L0H0"])


def test_a_run_trains_saves_and_loads(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch_size": 4, "wrapper": "plain", "max_steps": 3, "max_new_tokens": 2, "lr": 1e-2}
    for name in ("one", "two"):
        run = ji.fit(make_model(), toy_task, METHOD, out=tmp_path / name, **options)
    for file in ("edit.safetensors", "config.json", "metrics.jsonl", "scores.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    again = Run.load(run.path).edit
    assert edit_settings(again) == edit_settings(run.edit)
    copied = edit_from_settings(edit_settings(again), again.shape).load_tensors(again.tensors())
    assert all(torch.equal(copied.tensors()[name], value) for name, value in run.edit.tensors().items())
    assert bool((run.edit.tensors()["s.mlp"] != 1).any())
