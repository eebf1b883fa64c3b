"""Where a checkpoint can keep a bias: a stock class, and its configuration, that has one where an edit needs it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from jola_interp.export.written import ExportError

FLAGS: tuple[tuple[str, ...], ...] = ((), ("attention_bias",), ("mlp_bias",), ("attention_bias", "mlp_bias"))
"""Fields of a configuration that give linears a bias; as few of them as will do."""
AS_LLAMA = ("Qwen2ForCausalLM", "MistralForCausalLM")
"""Classes that hard-code their biases and compute what LlamaForCausalLM does, unless their attention slides."""


def carrier(hf: Any, needed: set[str]) -> Any:
    """A model of sizes only (on "meta") whose linears ``needed`` have a bias, and those that have one in ``hf``.

    It is of the model's own class, without or with ``attention_bias`` and ``mlp_bias`` in its configuration; or, for
    Qwen 2 and Mistral whose attention does not slide, a LlamaForCausalLM.

    Raises:
        ExportError: no stock class has all of these.
    """
    wanted = needed | biased(hf)
    for made in _candidates(hf):
        if wanted <= biased(made):
            return made
    name, some = type(hf).__name__, sorted(needed - biased(hf))
    window = _window(hf.config)
    slides = f" (with sliding_window={window} it is no Llama either)" if name in AS_LLAMA and window else ""
    raise ExportError(
        f"{name} has no bias at {some[0]}, and no field of its configuration gives it one{slides}: offsets cannot be "
        "folded into a checkpoint that transformers loads. export.to_peft(run, path) makes a LoRA of an edit of heads "
        "instead"
    )


def biased(hf: nn.Module) -> set[str]:
    """Names of the modules that have a bias."""
    return {name.removesuffix(".bias") for name in hf.state_dict() if name.endswith(".bias")}


def _candidates(hf: Any) -> Iterator[Any]:
    classes = [(type(hf), copy.deepcopy(hf.config)), *_as_llama(hf)]
    for kind, config in classes:
        # What a GGUF file leaves in the configuration of the model that was read from it would be taken for the
        # precision of the checkpoint.
        vars(config).pop("quantization_config", None)
        for flags in FLAGS:
            text = config.get_text_config()
            if all(hasattr(text, flag) for flag in flags):
                yield sizes_of(kind, _with(config, flags))


def _with(config: Any, flags: tuple[str, ...]) -> Any:
    changed = copy.deepcopy(config)
    for flag in flags:
        setattr(changed.get_text_config(), flag, True)
    return changed


def sizes_of(kind: Any, config: Any) -> Any:
    """A model without values, of a configuration, which it keeps."""
    with torch.device("meta"):
        return kind(config)


def _as_llama(hf: Any) -> list[tuple[Any, Any]]:
    if type(hf).__name__ not in AS_LLAMA or _window(hf.config):
        return []
    from transformers import LlamaConfig, LlamaForCausalLM

    own = {"model_type", "architectures", "transformers_version"}
    given, known = hf.config.to_dict(), LlamaConfig().to_dict()
    return [(LlamaForCausalLM, LlamaConfig(**{key: given[key] for key in given if key in known and key not in own}))]


def _window(config: Any) -> int | None:
    """The width of a sliding attention, where a layer has one."""
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    window: int | None = getattr(config, "sliding_window", None)
    return window if "sliding_attention" in kinds else None
