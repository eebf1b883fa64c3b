"""What an edit is: a small module that changes activations at named places and knows nothing of models or files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

Site = Literal["heads", "mlp", "attention", "residual", "query", "key", "value", "up", "gate", "norm1", "norm2"]
"""Where an edit may act, by the TransformerLens hook point ``blocks.L.…``:

``heads`` ``attn.hook_z`` the output z of each attention head before W_O, [batch, pos, head, d_head] · ``mlp``
``mlp.hook_out`` the output of the MLP, [batch, pos, d_model] · ``attention`` ``attn.hook_out`` that of the attention
behind W_O, [batch, pos, d_model] · ``residual`` ``hook_resid_post`` the residual stream behind the block, [batch, pos,
d_model] · ``query``, ``key``, ``value`` ``attn.q.hook_out`` and so on, the outputs of their projections before any norm
or rotation, [batch, pos, head, d_head] (key-value heads for the last two) · ``up``, ``gate`` ``mlp.in.hook_out`` and
``mlp.gate.hook_out``, [batch, pos, d_mlp] · ``norm1``, ``norm2`` ``ln1.hook_out`` and ``ln2.hook_out``, the norms
before the attention and before the MLP, [batch, pos, d_model]. Not every architecture has all of them."""
Kind = Literal["additive", "multiplicative", "shared"]
"""Kinds of gates. ``shared`` is one gate for both operations."""
Noise = dict[tuple[str, str], Tensor]
"""The uniform draws of one optimiser step: (site, kind) to u of shape [layer, unit]."""
PenaltyForm = Literal["mean", "reference"]

SITES: tuple[Site, ...] = ("heads", "mlp", "attention")
"""Where vectors with gates may act."""

_WHOLE: dict[Site, str] = {"mlp": "MLP", "attention": "ATTN"}


@dataclass(frozen=True)
class HeadShape:
    """The attention geometry of a model. Heads are QUERY heads, also under grouped-query attention."""

    layers: int
    heads: int
    kv_heads: int
    d_head: int
    d_model: int

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "kv_heads", "d_head", "d_model"):
            if getattr(self, name) < 1:
                raise ValueError(f"head_shape.{name} must be at least 1, got {getattr(self, name)}")
        if self.heads % self.kv_heads:
            raise ValueError(f"head_shape.kv_heads must divide heads ({self.heads}), got {self.kv_heads}")

    @property
    def group(self) -> int:
        """Query heads that share a key-value head; 0 where every head has its own."""
        return self.heads // self.kv_heads if self.kv_heads < self.heads else 0

    def units(self, site: Site) -> tuple[int, int, int]:
        """(layers, units a layer, width of a unit): [L, H, d_head] for heads, [L, 1, d_model] for the others."""
        return (self.layers, self.heads, self.d_head) if site == "heads" else (self.layers, 1, self.d_model)


@dataclass
class Context:
    """What an edit may know about the forward pass that it takes part in.

    Attributes:
        attention_mask: [batch, pos] 1 for tokens, 0 for padding; None if the caller passed none.
        prompt_mask: [batch, pos] 1 on prompt tokens; None if not known.
        decoding: True when the pass continues a cached prefix (a generation step after the first).
        noise: the gate draws of this optimiser step; None at inference.
        prepared: whatever :meth:`Edit.prepare` returned for this pass.
    """

    attention_mask: Tensor | None = None
    prompt_mask: Tensor | None = None
    decoding: bool = False
    noise: Noise | None = None
    prepared: Any = field(default=None, repr=False)


class Edit(nn.Module, ABC):
    """Base of all edits. A subclass says where it acts, what it does there, and what it costs.

    The life of an edit: built as the identity, given its starting values by :meth:`initialise`, attached to a model
    by a backend, and then, for every forward pass, :meth:`prepare` once and :meth:`forward` at each of its points.
    """

    type_name: ClassVar[str]
    """The name under which a Run records the class."""
    types: ClassVar[dict[str, type[Edit]]] = {}
    """Every subclass by its name, so that a Run of an edit of your own loads once its class is defined."""
    on_weights: ClassVar[bool] = False
    """Whether the edit acts on weights, by :meth:`installed`, rather than at hook points. It then needs a model that
    TransformerLens has not wrapped."""
    everywhere: bool = True
    """Whether the edit acts on every position alike, so that a prompt may be run in two parts. One that looks for the
    first or last prompt positions says False."""
    shape: HeadShape
    initialised: bool = False
    """Whether the parameters hold values worth keeping; ``fit`` initialises an edit that does not."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "type_name" in cls.__dict__:
            Edit.types[cls.type_name] = cls

    @abstractmethod
    def points(self) -> list[tuple[int, Site]]:
        """The (layer, site) pairs at which the edit acts."""

    @abstractmethod
    def initialise(self, generator: torch.Generator) -> Edit:
        """Draw starting values from the CPU ``generator``; returns the edit itself."""

    @abstractmethod
    def forward(self, activation: Tensor, layer: int, site: Site, context: Context) -> Tensor:
        """The edited activation, of the same shape and dtype."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """JSON-ready arguments from which an equal edit (but for its tensors) can be built."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Name to tensor, as stored in ``edit.safetensors``."""

    @abstractmethod
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> Edit:
        """Take over what :meth:`tensors` gave. Raises ValueError on unknown, missing, misshapen or non-finite ones."""

    @abstractmethod
    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by what has a learning rate of its own: ``vectors``, or ``additive`` and ``multiplicative`` ones
        apart, and, where there are any, ``gates``."""

    @abstractmethod
    def n_parameters(self) -> int:
        """How many numbers train: one per vector component and one per gate, editable units only."""

    @abstractmethod
    def masks(self) -> dict[Site, Tensor]:
        """Site to [layer, unit], True where a unit is editable; only the sites at which the edit acts."""

    @abstractmethod
    def restricted(
        self,
        heads: Iterable[str | tuple[int, int]] | None = None,
        kinds: Iterable[str] | None = None,
        strength: float = 1.0,
    ) -> Edit:
        """A copy that edits only some heads, only by some operations, or by a multiple of the trained edit."""

    def overlaps(self, other: Edit) -> bool:
        """Whether attaching both would apply the same edit twice."""
        return self is other

    def installed(self, module: nn.Module) -> AbstractContextManager[None]:
        """Let an edit that acts on weights be live on the plain Hugging Face ``module``; leaving puts all back."""
        return nullcontext()

    def prepare(self, context: Context, dtype: torch.dtype) -> Any:
        """Arithmetic to be done once a pass for all layers. What it returns comes back as ``context.prepared``."""
        return None

    def draw(self, generator: torch.Generator) -> Noise:
        """The randomness of one optimiser step. Edits without gates need none."""
        return {}

    def log_alphas(self) -> dict[tuple[Site, Kind], Tensor]:
        """(site, kind) to log α [layer, unit], detached; empty for edits without gates."""
        return {}

    def penalty(self, form: PenaltyForm = "mean") -> dict[Kind, Tensor]:
        """Kind of gate to its share of the sparsity penalty, a scalar; empty for edits without gates."""
        return {}


@torch.no_grad()
def take_over(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Copy ``given`` into ``own``, name by name, in place; nothing is copied unless all of it fits.

    Raises:
        ValueError: missing or unknown names, another shape or dtype, or numbers that are not finite.
    """
    if given.keys() != own.keys():
        missing, unknown = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
        raise ValueError(f"tensors: missing {missing or 'none'}, unknown {unknown or 'none'}")
    for name, target in own.items():
        found = given[name]
        if found.shape != target.shape or found.dtype != target.dtype:
            raise ValueError(
                f"{name}: expected {target.dtype} {list(target.shape)}, found {found.dtype} {list(found.shape)}"
            )
        if not bool(torch.isfinite(found).all()):
            raise ValueError(f"{name}: expected finite numbers, found NaN or infinity")
    for name, target in own.items():
        target.copy_(given[name])


def unit_label(site: Site, layer: int, unit: int) -> str:
    """``L3H7`` for a head, ``L3MLP`` for an MLP, ``L3ATTN`` for an attention output."""
    return f"L{layer}H{unit}" if site == "heads" else f"L{layer}{_WHOLE[site]}"


def parse_units(names: Iterable[str | tuple[int, int]], shape: HeadShape) -> list[tuple[int, int]]:
    """Heads as (layer, head) pairs, from labels ("L3H7") or pairs.

    Raises:
        ValueError: a label that does not read L<layer>H<head>, or a head outside ``shape``.
    """
    return [_parse_unit(name, shape) for name in names]


def _parse_unit(name: str | tuple[int, int], shape: HeadShape) -> tuple[int, int]:
    if isinstance(name, str):
        layer_text, separator, head_text = name.upper().removeprefix("L").partition("H")
        if not (separator and layer_text.isdigit() and head_text.isdigit()):
            raise ValueError(f"heads: {name!r} is not a head; write L<layer>H<head>, such as L3H7")
        layer, head = int(layer_text), int(head_text)
    else:
        layer, head = (int(number) for number in name)
    if not (0 <= layer < shape.layers and 0 <= head < shape.heads):
        raise ValueError(
            f"heads: L{layer}H{head} is not in this model (layers 0–{shape.layers - 1}, heads 0–{shape.heads - 1})"
        )
    return layer, head
