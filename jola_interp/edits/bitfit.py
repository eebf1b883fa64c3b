"""BitFit: y' = y + b on the outputs of projections and norms."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jola_interp.edits.base import Context, Edit, HeadShape, Site, take_over

QKV: tuple[Site, ...] = ("query", "key", "value")
ALL: tuple[Site, ...] = (*QKV, "attention", "mlp", "up", "gate", "norm1", "norm2")
"""Every output of a block that a bias is added to, in architectures that have them."""
_KINDS = ("additive", "multiplicative")


class BitFit(Edit):
    """y' = y + b at every token, b = 0 at first, one b per layer and site.

    Where the model has a bias b₀ there, b is what is added to it: its gradient is that of b₀, and training either is
    the same. Where it has none (Llama's linears, every RMSNorm), b is a new one. The queries, keys and values are those
    before any norm and rotation, a b for each query head or key-value head.

    Parameters: L·(H + 2K)·d_head for the queries, keys and values; ``all`` adds L·(4·d_model + 2·d_mlp) in a gated
    MLP with norms before its parts, as Llama's.

    Args:
        shape: the model's head shape.
        biases: ``qkv`` · ``all`` also the outputs of W_O, of the MLP, of its up and gate projections, and of the norms
            before the attention and before the MLP · or the sites by name. An architecture may lack some of ``all``
            (OLMo 2 has no norm before, GPT-2 no gate): name those that it has.
        d_mlp: the width of the MLP, for ``up`` and ``gate``.

    Raises:
        ValueError: an unknown site, none, or ``up`` or ``gate`` without ``d_mlp``.

    Source: Ben Zaken et al. 2022 (arXiv 2106.10199), §3.
    """

    type_name: ClassVar[str] = "bitfit"

    def __init__(self, shape: HeadShape, *, biases: str | Iterable[Site] = "qkv", d_mlp: int | None = None):
        super().__init__()
        self.shape, self.d_mlp = shape, d_mlp
        sites = parse_biases(biases)
        if {"up", "gate"} & set(sites) and (d_mlp is None or d_mlp < 1):
            raise ValueError(f"d_mlp must be the width of the MLP where up or gate has a bias; got {d_mlp}")
        self.b = nn.ParameterDict({site: torch.zeros(shape.layers, *self._unit(site)) for site in sites})

    def points(self) -> list[tuple[int, Site]]:
        return [(layer, site) for site in self._sites() for layer in range(self.shape.layers)]

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> BitFit:  # noqa: ARG002
        """b = 0: the identity. Nothing is drawn."""
        for bias in self.b.values():
            bias.zero_()
        self.initialised = True
        return self

    def prepare(self, context: Context, dtype: torch.dtype) -> dict[str, tuple[Tensor, ...]]:  # noqa: ARG002
        """Site to b [unit, width] per layer, in ``dtype``."""
        return {site: bias.to(dtype).unbind() for site, bias in self.b.items()}

    def forward(
        self, activation: Float[Tensor, "batch pos *unit width"], layer: int, site: Site, context: Context
    ) -> Float[Tensor, "batch pos *unit width"]:
        bias: Tensor = context.prepared[site][layer]
        return activation + bias.to(activation)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"vectors": list(self.b.values())}

    def n_parameters(self) -> int:
        return sum(bias.numel() for bias in self.b.values())

    def masks(self) -> dict[Site, Tensor]:
        """None: there are no units to choose among."""
        return {}

    def settings(self) -> dict[str, Any]:
        return {"biases": list(self.b), "d_mlp": self.d_mlp}

    def tensors(self) -> dict[str, Tensor]:
        """``b.<site>`` [layer, head, d_head] for queries, keys and values, [layer, 1, width] elsewhere."""
        return {f"b.{site}": bias.detach() for site, bias in self.b.items()}

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> BitFit:
        take_over(self.tensors(), tensors)
        self.initialised = True
        return self

    @torch.no_grad()
    def restricted(
        self,
        heads: Iterable[str | tuple[int, int]] | None = None,
        kinds: Iterable[str] | None = None,
        strength: float = 1.0,
    ) -> BitFit:
        """A copy with a multiple of the biases.

        Args:
            heads: must be None.
            kinds: as for other edits; biases add, so that without "additive" nothing is left. None keeps them.
            strength: y + strength·b.

        Raises:
            ValueError: heads, an unknown kind, or a strength that is not finite.
        """
        kept = kept_kinds(self, heads, kinds, strength)
        clone = copy.deepcopy(self)
        for bias in clone.b.values():
            bias.mul_(strength * ("additive" in kept))
        return clone

    def _sites(self) -> list[Site]:
        return [site for site in ALL if site in self.b]

    def _unit(self, site: Site) -> tuple[int, int]:
        """(units a layer, width of one)."""
        shape = self.shape
        if site in QKV:
            return (shape.heads if site == "query" else shape.kv_heads), shape.d_head
        return 1, (self.d_mlp or 0) if site in ("up", "gate") else shape.d_model


def parse_biases(biases: str | Iterable[Site]) -> list[Site]:
    """The sites that are meant, in the order of ``ALL``. Raises ValueError on an unknown one, or none."""
    named: dict[str, tuple[Site, ...]] = {"qkv": QKV, "all": ALL}
    given: set[str] = set(named.get(biases) or biases.split(",")) if isinstance(biases, str) else set(biases)
    if not given or given - set(ALL):
        raise ValueError(f"biases must be qkv, all, or some of {', '.join(ALL)}; got {biases!r}")
    return [site for site in ALL if site in given]


def kept_kinds(
    edit: Edit, heads: Iterable[str | tuple[int, int]] | None, kinds: Iterable[str] | None, strength: float
) -> set[str]:
    """The kinds that are left of an edit without heads. Raises ValueError on what it cannot be cut down to."""
    if heads is not None:
        raise ValueError(f"heads must be None for {type(edit).__name__}, which has no heads to keep; got {heads}")
    kept = set(_KINDS if kinds is None else kinds)
    if unknown := kept - set(_KINDS):
        raise ValueError(f"kinds must be a subset of {_KINDS}, got {sorted(unknown)}")
    if not math.isfinite(strength):
        raise ValueError(f"strength must be a finite number, got {strength}")
    return kept
