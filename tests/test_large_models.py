"""Models that do not lie in one memory, or in whole numbers: edits on plain hooks, as far as a CPU can show it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import jola_interp as ji
from jola_interp.backends import attach
from jola_interp.models import Model
from jola_interp.tasks import Task
from tests.conftest import build_hf

MakeModel = Callable[..., Model]
IDS = torch.tensor([[5, 17, 42, 99, 3], [7, 7, 1, 250, 30]])
ONES = torch.ones_like(IDS)
QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 4, "wrapper": "plain", "backend": "hooks", "evaluate": False}


@pytest.fixture
def offloaded(tokenizer: Any, tmp_path: Path) -> tuple[Model, Model]:
    """A model, and the same with one of its layers on disk."""
    pytest.importorskip("accelerate", reason="device_map needs accelerate")
    saved = tmp_path / "model"
    build_hf("llama").save_pretrained(saved)
    places = dict.fromkeys(("model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    shared: dict[str, Any] = {"tokenizer": tokenizer, "dtype": "float32"}
    spread = ji.load_model(
        saved, device_map={**places, "model.layers.1": "disk"}, offload_folder=tmp_path / "offloaded", **shared
    )
    assert spread.hf.model.layers[1].self_attn.o_proj.weight.is_meta
    return ji.load_model(saved, **shared), spread


def test_a_layer_on_disk_changes_no_logit_and_no_gradient(offloaded: tuple[Model, Model]) -> None:
    found = []
    for model in offloaded:
        edit = ji.JoLA(model.head_shape, gates="none", init_std=0.3).initialise(torch.Generator().manual_seed(0))
        with attach(edit, model, "hooks"):
            logits = model.logits(IDS, ONES)
            logits.logsumexp(-1).sum().backward()
        found.append([logits.detach(), *(parameter.grad for parameter in edit.parameters())])
    plain, spread = found
    assert any(bool(grad.any()) for grad in plain[1:])
    assert all(torch.equal(a, b) for a, b in zip(plain, spread, strict=True))


def test_training_with_a_layer_on_disk_leaves_the_same_edit(
    offloaded: tuple[Model, Model], toy_task: Task, tmp_path: Path
) -> None:
    runs = [ji.fit(model, toy_task, out=tmp_path / str(place), **QUICK) for place, model in enumerate(offloaded)]
    plain, spread = (run.edit.tensors() for run in runs)
    assert all(torch.equal(plain[name], spread[name]) for name in plain)
    assert runs[0].config["model"]["fingerprint"] == runs[1].config["model"]["fingerprint"]
    texts = [run.generate(["row 1: dog?"], model) for run, model in zip(runs, offloaded, strict=True)]
    assert texts[0].equals(texts[1])


@pytest.fixture
def quantised(tokenizer: Any, tmp_path: Path) -> Callable[[int], Model]:
    pytest.importorskip("bitsandbytes", reason="quantised weights need bitsandbytes")
    from transformers import BitsAndBytesConfig

    saved = tmp_path / "model"
    build_hf("llama", hidden_size=64, intermediate_size=128).save_pretrained(saved)  # blocks of 64 weights

    def load(bits: int) -> Model:
        config = BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
        return ji.load_model(saved, tokenizer=tokenizer, quantization_config=config, device_map="cpu")

    return load


def test_an_edit_trains_on_8_bit_weights(quantised: Callable[[int], Model], toy_task: Task, tmp_path: Path) -> None:
    model = quantised(8)
    base = model.logits(IDS, ONES)
    run = ji.fit(model, toy_task, out=tmp_path / "run", lr=5e-2, **QUICK)
    with torch.no_grad(), run.attach(model, backend="hooks"):
        assert (model.logits(IDS, ONES) - base).abs().max() > 0
    assert torch.equal(model.logits(IDS, ONES), base)
    assert run.metrics["ce"].dropna().iloc[-1] < run.metrics["ce"].dropna().iloc[0]


def test_4_bit_weights_on_a_cpu_take_a_trained_edit_and_refuse_to_train_one(
    quantised: Callable[[int], Model], toy_task: Task, tmp_path: Path
) -> None:
    model = quantised(4)
    with torch.no_grad():
        base = model.logits(IDS, ONES)
        edit = ji.JoLA(model.head_shape, gates="none", init_std=0.3).initialise(torch.Generator().manual_seed(0))
        with attach(edit, model, "hooks"):
            assert (model.logits(IDS, ONES) - base).abs().max() > 0
        assert torch.equal(model.logits(IDS, ONES), base)
    with pytest.raises(ValueError, match="q_proj holds 4-bit weights on the CPU.*8 bits"):
        ji.fit(model, toy_task, out=tmp_path / "run", **QUICK)
    assert not (tmp_path / "run").exists()
