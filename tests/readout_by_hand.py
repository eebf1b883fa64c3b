"""Edits with vectors set by hand on tiny models, and what a readout of them is held against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from jola_interp.analysis.readout import Readout
from jola_interp.edits import JoLA
from jola_interp.models import Model
from jola_interp.runs import Run
from jola_interp.tasks import Example, Task
from tests.conftest import ARCHITECTURES
from tests.runs_by_hand import make_run

VOCABULARY = 258
_GROUPED = ARCHITECTURES["llama"][1]
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "granite": ("GraniteConfig", {**_GROUPED, "residual_multiplier": 0.25, "logits_scaling": 4.0}),
    "gemma2": ("Gemma2Config", {**_GROUPED, "head_dim": 8, "final_logit_softcapping": 1.0}),
    "cohere": ("CohereConfig", {**_GROUPED, "logit_scale": 0.5}),
}
"""A residual multiplier, a softcap and a logit scale."""


def run_of(model: Model, folder: Path, vectors: dict[str, dict[tuple[int, int], Any]], **switches: Any) -> Run:
    """A Run of an edit with open gates that has just these vectors."""
    shape = model.head_shape
    run = make_run(folder, shape.layers, shape.heads, shape.kv_heads)
    edit = JoLA(shape, init_log_alpha=8.0, init_spread=0.0, init_std=0.0, **switches)
    edit.initialise(torch.Generator().manual_seed(0))
    for kind, heads in vectors.items():
        for unit, vector in heads.items():
            edit.site("heads").vectors[kind].data[unit] = torch.as_tensor(vector, dtype=torch.float32)
    train = {**run.config["train"], "wrapper": "{instruction}"}
    config = {**run.config, "model": {**model.identity(), "source": None}, "train": train, "backend": "hooks"}
    return Run(run.path, config, edit, run.gates, model)


def small(model: Model, *units: tuple[int, int], size: float = 1e-3, seed: int = 0) -> dict[tuple[int, int], Any]:
    generator = torch.Generator().manual_seed(seed)
    return {unit: size * torch.randn(model.head_shape.d_head, generator=generator) for unit in units}


def idle(model: Model) -> Model:
    """Nothing behind the attention of layer 0 does anything."""
    with torch.no_grad():
        for layer in range(model.head_shape.layers):
            for parameter in model.component(layer, "mlp").parameters():
                parameter.zero_()
            for parameter in model.o_proj(layer).parameters() if layer else ():
                parameter.zero_()
    return model


def one_token(run: Run) -> Task:
    """A row whose answer is one token without EOS: a single position is read."""
    run.config["train"] = {**run.config["train"], "eos": False}
    return Task("one", (Example("x", "y"),), (), (Example("which?", "a"),), kind="text")


def whole(table: Readout, place: int, name: str) -> np.ndarray:
    """[vocab] of a table that kept every token, by id."""
    found = np.zeros(VOCABULARY)
    found[table.top_ids[place]] = getattr(table, f"top_{name}")[place]
    return found


def mean_logits(model: Model, task: Task) -> np.ndarray:
    """Over the positions that predict answer tokens, a row at a time."""
    found = []
    for example in task.test:
        prompt = model.tokenizer(example.instruction).input_ids
        answer = [*model.tokenizer(example.answer).input_ids, model.tokenizer.eos_token_id]
        ids = torch.tensor([[*prompt, *answer]])
        with torch.no_grad():
            logits = model.logits(ids, torch.ones_like(ids))[0]
        found.append(logits[len(prompt) - 1 : -1])
    return np.asarray(torch.cat(found).double().mean(0))
