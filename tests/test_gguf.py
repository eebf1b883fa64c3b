"""A GGUF file gives the model that it was made of, biases included, or is refused where its class has no room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jola_interp import load_model
from jola_interp.models import _lost_biases, _with_biases, anew
from tests.conftest import build_hf

IDS = torch.tensor([[5, 17, 42, 99, 3], [7, 7, 1, 250, 30]])
ONES = torch.ones_like(IDS)


def write_gguf(hf: Any, file: Path) -> Path:
    """The model as llama.cpp's converter writes it, in float32 and without a tokenizer."""
    from gguf import MODEL_ARCH_NAMES, GGUFWriter, get_tensor_name_map

    config, kind = hf.config, hf.config.model_type
    writer = GGUFWriter(str(file), kind)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    if kind == "llama":
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == kind)
    names = get_tensor_name_map(arch, config.num_hidden_layers)
    for name, value in hf.state_dict().items():
        writer.add_tensor(str(names.get_name(name, (".weight", ".bias"))), permuted(name, value.numpy(), config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def permuted(name: str, value: np.ndarray, config: Any) -> np.ndarray:
    """Rotary pairs side by side, not half a head apart."""
    if config.model_type != "llama" or not any(part in name for part in ("q_proj", "k_proj")):
        return value
    heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
    halves = value.reshape(heads, 2, len(value) // heads // 2, *value.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(value.shape))


def biased_llama(**fields: Any) -> Any:
    hf = build_hf("llama", **fields)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in hf.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(generator=generator)
    return hf


@pytest.mark.parametrize("fields", [["attention_bias"], ["mlp_bias"], ["attention_bias", "mlp_bias"]])
def test_biases_that_the_metadata_do_not_tell_of_are_kept(fields: list[str], tokenizer: Any, tmp_path: Path) -> None:
    hf = biased_llama(**dict.fromkeys(fields, True))
    file = write_gguf(hf, tmp_path / "mine.gguf")
    for loaded in (model := load_model(file, tokenizer=tokenizer, dtype="float32"), anew(model)):
        torch.testing.assert_close(loaded.logits(IDS, ONES), hf(IDS).logits, rtol=0, atol=1e-6)


def test_one_offset_alone_is_kept(tokenizer: Any, tmp_path: Path) -> None:
    hf = build_hf("llama", attention_bias=True)
    hf.model.layers[1].self_attn.o_proj.bias.data[3] = 1.0
    loaded = load_model(write_gguf(hf, tmp_path / "mine.gguf"), tokenizer=tokenizer, dtype="float32")
    assert loaded.hf.model.layers[1].self_attn.o_proj.bias[3] == 1.0


@pytest.mark.parametrize("biased", [False, True])
def test_biases_of_zeros_may_go(biased: bool, tokenizer: Any, tmp_path: Path) -> None:
    hf = build_hf("llama", attention_bias=biased)
    loaded = load_model(write_gguf(hf, tmp_path / "mine.gguf"), tokenizer=tokenizer, dtype="float32")
    assert not loaded.hf.config.attention_bias
    torch.testing.assert_close(loaded.logits(IDS, ONES), hf(IDS).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("architecture", ["gpt2", "qwen2"])
def test_biases_that_a_class_has_of_itself_are_not_lost(architecture: str, tmp_path: Path) -> None:
    hf = build_hf(architecture)
    for name, parameter in hf.named_parameters():
        if name.endswith("bias"):
            parameter.data.fill_(1.0)
    assert not _lost_biases(hf, write_gguf(hf, tmp_path / "mine.gguf"))


def test_a_class_without_room_for_a_bias_says_so(tmp_path: Path) -> None:
    file = write_gguf(biased_llama(attention_bias=True), tmp_path / "mine.gguf")
    with pytest.raises(ValueError, match="MistralForCausalLM.*load the checkpoint that it was made from"):
        _with_biases(build_hf("mistral"), file, lambda **_: build_hf("mistral"))
