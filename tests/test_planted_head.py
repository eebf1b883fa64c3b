"""Recovery: where one head alone can solve a task, its gates open and all others close; where none can, all close."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jola_interp as ji
from jola_interp.models import Model, load_model
from jola_interp.tasks import Example, Task
from tests.conftest import build_hf


def planted_model(head: int | None, tokenizer: Any) -> Model:
    """Only one direction u of the residual stream reaches the answer's logit; only ``head`` of layer 0 writes to it."""
    hf = build_hf("llama")
    answer = tokenizer("a").input_ids[0]
    with torch.no_grad():
        u = torch.randn(32, generator=torch.Generator().manual_seed(0))
        u /= u.norm()
        hf.lm_head.weight.zero_()
        hf.lm_head.weight[answer] = 6 * u
        hf.model.embed_tokens.weight.sub_(torch.outer(hf.model.embed_tokens.weight @ u, u))
        for layer in range(2):
            block = hf.model.layers[layer]
            kept = block.self_attn.o_proj.weight.clone()
            for weight in (block.self_attn.o_proj.weight, block.mlp.down_proj.weight):
                weight.sub_(torch.outer(u, u @ weight))
            if layer == 0 and head is not None:
                own = slice(8 * head, 8 * head + 8)
                block.self_attn.o_proj.weight[:, own] = kept[:, own]
    return load_model(hf, tokenizer=tokenizer)


def trained(head: int | None, tokenizer: Any, out: Path, **fields: Any) -> ji.Run:
    """JoLA on the planted model, at a price at which no gate stays open for nothing."""
    rows = [Example(f"{i * 7919 % 1000:03d}?", "a", id=str(i)) for i in range(80)]
    return ji.fit(
        planted_model(head, tokenizer),
        Task("planted", tuple(rows[:60]), tuple(rows[60:]), (), kind="text"),
        backend="hooks",
        penalty=1.0,
        epochs=25,
        patience=None,
        restore_best=False,
        wrapper="{instruction}",
        eos=False,
        out=out,
        **fields,
    )


@pytest.mark.parametrize("head", [1, 3, None])
def test_the_planted_head_opens_and_all_others_close(head: int | None, tokenizer: Any, tmp_path: Path) -> None:
    """Where λ is at its full weight for most of the training; under the default see below."""
    run = trained(head, tokenizer, tmp_path / "run", penalty_warmup=0.2)
    opens = np.maximum(run.gates.p_open("additive")[-1], run.gates.p_open("multiplicative")[-1])
    planted = np.zeros((2, 4), dtype=bool)
    if head is not None:
        planted[0, head] = True
        assert list(run.selected()) == [f"L0H{head}"]
    assert (opens[planted] > 0.95).all()
    assert (opens[~planted] < 0.05).all()


@pytest.mark.parametrize("head", [1, 3, None])
def test_the_default_finds_the_planted_head_and_nothing_where_there_is_none(
    head: int | None, tokenizer: Any, tmp_path: Path
) -> None:
    """It may keep a head beside it that only helped on the way (one more, in both cases, when this was written)."""
    chosen = list(trained(head, tokenizer, tmp_path / "run").selected())
    assert chosen[:1] == ([] if head is None else [f"L0H{head}"])
    assert len(chosen) <= (0 if head is None else 2)
