"""Rivals: where it is known how many heads can do a task alone, so many are found, and none where there is no task."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jola_interp as ji
from jola_interp.evidence.case import Case
from jola_interp.evidence.endpoint import RowLosses
from jola_interp.evidence.rivals import Rivals, rivals
from jola_interp.models import Model, load_model
from jola_interp.tasks import Example, Task
from tests.conftest import build_hf

STEPS = {"epochs": 10_000, "max_steps": 60, "batch_size": 8, "patience": None, "restore_best": False, "log_every": 40}


def planted_model(heads: Sequence[int], tokenizer: Any) -> Model:
    """logit("a") = 6u·h, all others are 0; only these heads of layer 0, which hear no other head, write u."""
    hf = build_hf("llama")
    with torch.no_grad():
        u = torch.randn(32, generator=torch.Generator().manual_seed(0))
        u /= u.norm()
        hf.lm_head.weight.zero_()
        hf.lm_head.weight[tokenizer("a").input_ids[0]] = 6 * u
        hf.model.embed_tokens.weight.sub_(torch.outer(hf.model.embed_tokens.weight @ u, u))
        for layer, block in enumerate(hf.model.layers):
            for weight in (block.self_attn.o_proj.weight, block.mlp.down_proj.weight):
                weight.sub_(torch.outer(u, u @ weight))
            for head in heads if layer == 0 else ():
                across = torch.randn(8, generator=torch.Generator().manual_seed(head))
                block.self_attn.o_proj.weight[:, 8 * head : 8 * head + 8] += torch.outer(u, 2 * across / across.norm())
    return load_model(hf, tokenizer=tokenizer)


def searched(heads: Sequence[int], tokenizer: Any, folder: Path) -> Rivals:
    """Train, and look for rivals of one head."""
    rows = [Example(f"{i * 7919 % 1000:03d}?", "a", id=str(i)) for i in range(96)]
    task = Task("planted", tuple(rows[:64]), tuple(rows[64:72]), tuple(rows[72:]), kind="text")
    model = planted_model(heads, tokenizer)
    run = ji.fit(
        model, task, preset="selective", backend="hooks", wrapper="{instruction}", eos=False, evaluate=False,
        lr=0.1, gate_lr=0.3, penalty=4.0, out=folder / "run", **STEPS,
    )  # fmt: skip
    return ji.rivals(run, task, model, k=1, steps=40)


@pytest.mark.parametrize("heads", [(2,), (0, 3), (0, 1, 3)])
def test_every_head_that_can_do_the_task_is_found_and_then_the_gain_is_lost(
    heads: tuple[int, ...], tokenizer: Any, tmp_path: Path
) -> None:
    found = searched(heads, tokenizer, tmp_path)
    assert found.u == len(heads) and found.ended == "gain lost"
    assert sorted(unit for one in found.sets for unit in one.heads) == [(0, head) for head in heads]
    assert found.failed is not None and found.failed.share < found.margin
    assert set(found.roles["core"]) == ({f"L0H{heads[0]}"} if len(heads) == 1 else set())


def test_where_no_head_writes_what_the_answer_hears_there_is_no_set(tokenizer: Any, tmp_path: Path) -> None:
    found = searched((), tokenizer, tmp_path)
    assert found.u == 0 and found.ended == "no gain" and not found.sets
    assert found.failed is not None and abs(found.failed.gain.value) < 1e-5
    assert found.roles["core"] == found.roles["contingent"] == [] and found.sentence().startswith("U = 0")
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["u"] == 0
    assert list(found.to_frame()["kept"]) == [False]


@pytest.mark.parametrize("gain", [[1e-7] * 6, [-1.0] * 6, [1.0, -1.0, 0.5, -0.4, 0.2, -0.1], [0.0] * 6])
def test_a_first_set_that_gains_nothing_is_not_compared_with_others(
    gain: list[float], case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refit(self: Case, *_: object) -> RowLosses:
        return RowLosses(self.base.nll - np.array(gain))

    monkeypatch.setattr(Case, "refit", refit)
    monkeypatch.delattr(Case, "retrain")  # nothing is searched for
    found = rivals(case, k=2)
    assert found.u == 0 and found.ended == "no gain"
