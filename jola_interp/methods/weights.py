"""Methods that change weights or biases everywhere: LoRA, full fine-tuning, BitFit, RED, and a bias of W_O alone.

The learning rates are those of the papers, where they name one. They are for thousands of steps: a comparison at few
steps has to search a grid for each method.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from jola_interp.backends.lens import HOOK_NAMES
from jola_interp.edits.base import Edit, Site
from jola_interp.edits.bitfit import BitFit, parse_biases
from jola_interp.edits.composite import Composite
from jola_interp.edits.full import FullFineTuning
from jola_interp.edits.jola import JoLA
from jola_interp.edits.lora import LoRA
from jola_interp.edits.red import RED
from jola_interp.methods.jola import HEADS, MLP, PAPER, UNGATED
from jola_interp.methods.table import Method
from jola_interp.models import Model

QKV = "blocks.L.attn.q|k|v.hook_out"
ATTENTION = "blocks.L.attn.hook_out"
LORA_LR, FULL_LR, BITFIT_LR, RED_LR = 2e-4, 1e-5, 5e-4, 2e-4
"""BitFit's and RED's are of the JoLA paper's grids (1e-4, 5e-4; 5e-5, 2e-4, 6e-2). It has none for LoRA: 2e-4 is what
Hu et al. train GPT-2 with. 1e-5 is common for whole models."""


def lora(model: Model, r: int = 8, alpha: int | float = 16, targets: str | Iterable[str] = "all-linear") -> Edit:
    """:class:`LoRA` for the model."""
    return LoRA.of(plain_module(model), r=r, alpha=alpha, targets=targets)


def full(model: Model) -> Edit:
    """:class:`FullFineTuning` for the model."""
    return FullFineTuning.of(plain_module(model))


def bitfit(model: Model, biases: str | Iterable[Site] = "qkv") -> Edit:
    """:class:`BitFit` for the model; of "all" only the sites that its architecture has.

    Raises:
        ValueError: a site named that it lacks.
    """
    block, width = _block(model)
    sites = parse_biases(biases)
    present = [site for site in sites if _has(block, HOOK_NAMES[site])]
    if biases != "all" and present != sites:
        absent = ", ".join(site for site in sites if site not in present)
        raise ValueError(f"biases: {model.name} ({type(model.hf).__name__}) has no {absent}")
    return BitFit(model.head_shape, biases=present, d_mlp=width if {"up", "gate"} & set(present) else None)


def red(model: Model) -> Edit:
    """:class:`RED` for the model."""
    return RED(model.head_shape)


def o_proj_bias(model: Model) -> Edit:
    """A bias of W_O: :class:`JoLA` at the attention's output, offsets only, without gates, from 0."""
    return JoLA(model.head_shape, sites=("attention",), gates="none", operations="add", init_std=0.0)


def attention_biases(model: Model, biases: str | Iterable[Site] = "qkv") -> Edit:
    """JoLA on all heads without gates, and BitFit, trained together."""
    return Composite(model.head_shape, [JoLA(model.head_shape, gates="none"), bitfit(model, biases)])


def plain_module(model: Model) -> nn.Module:
    """The plain Hugging Face model; of one that TransformerLens has wrapped another of its kind, of sizes only."""
    if not model.booted:
        return model.hf
    with torch.device("meta"):
        return type(model.hf)(copy.deepcopy(model.hf.config))


def _block(model: Model) -> tuple[Any, int]:
    """TransformerLens' plan of a block, which tells what an architecture has (booted or not), and the MLP's width."""
    adapter = model._adapter
    return adapter.get_component_mapping()["blocks"], int(adapter.cfg.d_mlp)


def _has(block: Any, hook_name: str) -> bool:
    """Whether a block has the component of a hook point, such as ``mlp.gate`` of ``mlp.gate.hook_out``."""
    component = block
    for name in hook_name.split(".")[:-1]:
        inner = getattr(component, "submodules", None) or {}
        component = inner[name] if name in inner else getattr(component, name, None)
    return component is not None


def _trained(rate: float) -> dict[str, Any]:
    return {**UNGATED, "lr": rate}


WEIGHTS = (
    Method(
        "lora",
        "W' = W + (α/r)·B·A",
        "the linears of every block",
        "LoRA (arXiv 2106.09685) §4.1, by the peft library",
        lora,
        options={"r": 8, "alpha": 16, "targets": "all-linear"},
        train=_trained(LORA_LR),
        on_weights=True,
        note="lr 2e-4, as its paper trains GPT-2; the JoLA paper gives no grid for it",
    ),
    Method(
        "bitfit",
        "y' = y + b",
        QKV,
        "BitFit (arXiv 2106.10199) §3",
        bitfit,
        options={"biases": "qkv"},
        train=_trained(BITFIT_LR),
        note="biases are new ones, from 0, where the architecture has none; lr 5e-4 of the JoLA paper's 1e-4, 5e-4",
    ),
    Method(
        "red",
        "h' = s ⊙ h + b",
        MLP,
        "RED (arXiv 2402.15179) §3",
        red,
        train=_trained(RED_LR),
        note="it has no rank, whatever Table 7 of the JoLA paper says; lr 2e-4 of that paper's 5e-5, 2e-4, 6e-2",
    ),
    Method(
        "o-proj-bias",
        "h' = W_O z + b",
        ATTENTION,
        "what offsets of heads add up to in a layer",
        o_proj_bias,
        train=UNGATED,
        note="the null for additive heads: L·d_model numbers do what all of JoLA's offsets can",
    ),
    Method(
        "full",
        "θ' = θ + Δ",
        "all parameters",
        "fine-tuning of the whole model",
        full,
        train=_trained(FULL_LR),
        on_weights=True,
        note="of a copy, in float32; for small models",
    ),
)
BIASES = (
    Method(
        "attention-biases",
        "z' = (1 + m) ⊙ z + a, y' = y + b",
        f"{HEADS}, {QKV}",
        f"{PAPER} Fig. 2, Table 2, attention and biases without gates",
        attention_biases,
        options={"biases": "qkv"},
        train=UNGATED,
        note="one learning rate for both, that of the other ablations",
    ),
)
