"""The default backend: TransformerLens hook points on the bridge of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from jola_interp.backends.base import Backend, Transform
from jola_interp.edits.base import Site
from jola_interp.models import Model

HOOK_NAMES: dict[Site, str] = {
    "heads": "attn.hook_z",
    "mlp": "mlp.hook_out",
    "attention": "attn.hook_out",
    "residual": "hook_resid_post",
    "query": "attn.q.hook_out",
    "key": "attn.k.hook_out",
    "value": "attn.v.hook_out",
    "up": "mlp.in.hook_out",
    "gate": "mlp.gate.hook_out",
    "norm1": "ln1.hook_out",
    "norm2": "ln2.hook_out",
}


def hook_name(layer: int, site: Site) -> str:
    """Such as ``blocks.3.attn.hook_z`` for the heads of layer 3.

    Not ``hook_mlp_out`` or ``hook_attn_out``: on Gemma and OLMo 2 they lie behind a further normalisation.
    """
    return f"blocks.{layer}.{HOOK_NAMES[site]}"


class LensBackend(Backend):
    name = "lens"

    def ready(self, model: Model) -> nn.Module:
        root: nn.Module = model.bridge.original_model
        return root

    def insert(self, model: Model, layer: int, site: Site, transform: Transform) -> Callable[[], None]:
        # On the hook point itself and not through `bridge.add_hook` by name: in compatibility mode that calls a hook
        # once for each alias of the point, and the edit would act twice.
        point = _point(model, layer, site)

        def on_activation(activation: Tensor, **_: Any) -> Tensor:
            return transform(activation)

        handle = point.add_hook(on_activation)

        def remove() -> None:
            handle.hook.remove()
            point.fwd_hooks[:] = [other for other in point.fwd_hooks if other is not handle]

        return remove


def _point(model: Model, layer: int, site: Site) -> Any:
    point = model.bridge.blocks[layer]
    try:
        for part in HOOK_NAMES[site].split("."):
            point = getattr(point, part)
    except AttributeError as error:
        raise ValueError(f"{model.name} ({type(model.hf).__name__}) has no {hook_name(layer, site)}") from error
    return point
