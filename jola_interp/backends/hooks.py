"""Plain PyTorch hooks on the Hugging Face model: SDPA or flash attention, sharded or quantised models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from jola_interp.backends.base import Backend, Transform
from jola_interp.edits.base import Site
from jola_interp.models import Model

OUTPUTS: dict[Site, str] = {
    "mlp": "mlp",
    "residual": "",
    "query": "attn.q",
    "key": "attn.k",
    "value": "attn.v",
    "up": "mlp.in",
    "gate": "mlp.gate",
    "norm1": "ln1",
    "norm2": "ln2",
}
"""The component of a block, in TransformerLens' words, whose output is the activation; the block itself is ""."""
PER_HEAD: tuple[Site, ...] = ("query", "key", "value")


class HooksBackend(Backend):
    name = "hooks"

    def ready(self, model: Model) -> nn.Module:
        if model.booted:
            raise ValueError(
                f"backend 'hooks' needs a plain model; {model.name} has been booted by TransformerLens, which cannot "
                "be undone: use backend='lens', or load the model anew"
            )
        return model.hf

    def insert(self, model: Model, layer: int, site: Site, transform: Transform) -> Callable[[], None]:
        module, before, hook = hook_at(model, layer, site, transform)
        return (module.register_forward_pre_hook(hook) if before else module.register_forward_hook(hook)).remove


def hook_at(model: Model, layer: int, site: Site, transform: Transform) -> tuple[nn.Module, bool, Callable[..., Any]]:
    """(the plain module, whether its input is meant and not its output, PyTorch's forward (pre-)hook to put there)."""
    shape = model.head_shape
    if site == "heads":
        return model.o_proj(layer), True, _on_z(transform, shape.heads, shape.d_head)
    module = model.o_proj(layer) if site == "attention" else model.component(layer, OUTPUTS[site])
    return module, False, _on_output(_by_head(transform, shape.d_head) if site in PER_HEAD else transform)


def _on_z(transform: Transform, heads: int, d_head: int) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    """z is the input of W_O, with its heads side by side."""

    def hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        flat: Tensor = args[0]  # [batch, pos, heads · d_head]
        if flat.shape[-1] != heads * d_head:
            raise ValueError(f"z has {flat.shape[-1]} columns, expected {heads} heads × {d_head}")
        edited = transform(flat.unflatten(-1, (heads, d_head)))
        return (edited.flatten(-2), *args[1:])

    return hook


def _by_head(transform: Transform, d_head: int) -> Transform:
    """A projection's output has its heads side by side."""
    return lambda flat: transform(flat.unflatten(-1, (-1, d_head))).flatten(-2)


def _on_output(transform: Transform) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (transform(output[0]), *output[1:])
        return transform(output)

    return hook
