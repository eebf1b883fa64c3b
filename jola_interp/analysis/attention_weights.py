"""The attention weights of a model as it runs: read in the pass, and nothing left behind.

A booted model is read at TransformerLens' ``hook_pattern``. A plain Hugging Face model computes weights that can be
read under eager attention alone: it is switched for the passes, its logits are held against those before, and it is
switched back, also after an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from jola_interp.analysis.rows import Rows
from jola_interp.backends import attach
from jola_interp.batching import Batch, collate
from jola_interp.edits.base import Edit
from jola_interp.models import Model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROUNDINGS, BOUND = 16, 1e-4
"""How far logits under eager attention may be from those before: so many roundings of the dtype, at least this share of
the largest one."""


class AttentionError(RuntimeError):
    """Patterns that cannot be had, or would not be those of the model that was asked about."""


@torch.no_grad()
def patterns(
    read: Rows, edits: Sequence[Edit | None], units: Sequence[tuple[int, int]]
) -> list[list[Float[np.ndarray, "head query key"]]]:
    """Patterns of the units for each row and, in it, each edit; None is the base model."""
    layers = sorted({layer for layer, _ in units})
    batches = [collate([row], read.pad, read.model.device) for row in read.encoded]
    before = [None if read.model.booted else _logits(read, None, batch) for batch in batches]
    found: list[list[np.ndarray]] = [[] for _ in batches]
    with _eager(read.model), _watched(read.model, layers) as kept:
        for place, batch in enumerate(batches):
            for edit in edits:
                kept.clear()
                logits = _logits(read, edit, batch)
                if edit is None:
                    _check_same(before[place], logits, read.model)
                _check_weights(kept, layers, read.model, batch)
                found[place].append(np.stack([kept[layer][head].numpy() for layer, head in units]))
    return found


def _logits(read: Rows, edit: Edit | None, batch: Batch) -> Float[Tensor, " vocab"]:
    """At the last position."""
    live = None if edit is None else edit.restricted().to(read.model.device).requires_grad_(False)
    with nullcontext() if live is None else attach(live, read.model, read.backend) as attached:
        logits = read.model.logits(batch.input_ids, batch.attention_mask, 1, batch.prompt_mask)[0, -1]
        if attached is not None:
            attached.check_live()
    return logits


@contextmanager
def _eager(model: Model) -> Iterator[None]:
    """Eager attention, which alone computes weights that can be read; a booted model computes so already.

    Raises:
        AttentionError: the architecture cannot be switched.
    """
    hf = model.hf
    before = _implementation(hf)
    if model.booted or before == "eager":
        yield
        return
    try:
        hf.set_attn_implementation("eager")
        if hf.config.get_text_config()._attn_implementation != "eager":
            raise AttentionError(
                f"{type(hf).__name__} cannot be switched to eager attention, which alone shows its weights: load it "
                'with load_model(..., attn_implementation="eager")'
            )
        yield
    finally:
        hf.set_attn_implementation(before)


def _implementation(hf: PreTrainedModel) -> str | dict[str, str]:
    """As :meth:`set_attn_implementation` takes it: one name, or one for the model and each part of it."""
    own = str(hf.config._attn_implementation)
    parts = {name: getattr(hf.config, name, None) for name in hf.config.sub_configs}
    named = {name: str(part._attn_implementation) for name, part in parts.items() if part is not None}
    return {"": own, **named} if any(name != own for name in named.values()) else own


@contextmanager
def _watched(model: Model, layers: Iterable[int]) -> Iterator[dict[int, Tensor]]:
    """Layer to the attention weights of the latest pass, [head, query, key] of its only row; nothing is left behind.

    Hooks of our own: ``output_attentions=True`` would leave hooks of transformers' own on the model for good.
    """
    kept: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for layer in layers:
            stack.callback(_watch(model, layer, kept))
        yield kept


def _watch(model: Model, layer: int, kept: dict[int, Tensor]) -> Callable[[], None]:
    """Begin to keep a layer's weights; returns what ends it."""

    def keep(weights: object) -> None:
        if isinstance(weights, Tensor) and weights.dim() == 4:
            kept[layer] = weights[0].detach().float().cpu()

    if not model.booted:

        def on_output(_module: nn.Module, _args: Any, output: Any) -> None:
            keep(output[1] if isinstance(output, tuple) and len(output) > 1 else None)

        module = model.hf.get_submodule(model._path(f"blocks.{layer}.attn"))
        return module.register_forward_hook(on_output).remove
    point = getattr(model.bridge.blocks[layer].attn, "hook_pattern", None)
    if point is None:
        raise AttentionError(f"the attention of layer {layer} of {model.name} has no hook_pattern")

    def on_pattern(weights: Tensor, **_: Any) -> None:
        keep(weights)

    handle = point.add_hook(on_pattern)

    def remove() -> None:
        handle.hook.remove()
        point.fwd_hooks[:] = [other for other in point.fwd_hooks if other is not handle]

    return remove


def _check_weights(kept: Mapping[int, Tensor], layers: Iterable[int], model: Model, batch: Batch) -> None:
    """Raise AttentionError unless a pass gave the weights of all layers."""
    length = batch.input_ids.shape[1]
    expected = (model.head_shape.heads, length, length)
    for layer in layers:
        found = kept.get(layer)
        if found is None or found.shape != expected:
            shape = "none" if found is None else list(found.shape)
            raise AttentionError(
                f"layer {layer} of {model.name} ({type(model.hf).__name__}) gave no attention weights of shape "
                f"{list(expected)} (found: {shape})"
            )


def _check_same(before: Tensor | None, eager: Tensor, model: Model) -> None:
    """Raise AttentionError unless the logits are those of the model as it was; None is not to be compared."""
    if before is None:
        return
    bound = max(ROUNDINGS * torch.finfo(model.dtype).eps, BOUND) * float(before.float().abs().max())
    gap = float((before.float() - eager.float()).abs().max())
    if not gap <= bound:
        raise AttentionError(
            f"{model.name}: logits under eager attention are off by {gap:.3g} (allowed: {bound:.3g}), so its patterns "
            "would be those of another model"
        )
