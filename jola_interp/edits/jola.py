"""JoLA and its ablations: z' = (1 + g_m·m) ⊙ z + g_a·a with one gate, two gates or none."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, cast, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from jola_interp import gates as hardconcrete
from jola_interp.edits.base import (
    SITES,
    Context,
    Edit,
    HeadShape,
    Kind,
    Noise,
    PenaltyForm,
    Site,
    parse_units,
    take_over,
)

Gates = Literal["separate", "shared", "none"]
Operations = Literal["both", "add", "multiply"]
InferenceGate = Literal["expected", "point", "hard"]
Operation = Literal["additive", "multiplicative"]
Scope = Literal["all", "not_first", "prompt", "answer"]
Units = Literal["raw", "rms"]

_OPERATIONS: dict[Operations, tuple[Operation, ...]] = {
    "both": ("additive", "multiplicative"),
    "add": ("additive",),
    "multiply": ("multiplicative",),
}


class SiteEdit(nn.Module):
    """The vectors and gates of one site, as full arrays [layer, unit, width] with a mask of editable units."""

    mask: Tensor
    unit: Tensor

    def __init__(self, mask: Bool[Tensor, "layer unit"], width: int, operations: tuple[Operation, ...], gates: Gates):
        super().__init__()
        self.operations, self.gates = operations, gates
        self.register_buffer("mask", mask)
        self.register_buffer("unit", torch.ones(mask.shape))
        self.vectors = nn.ParameterDict({name: torch.zeros(*mask.shape, width) for name in operations})
        # A gate shared by a single operation is just that operation's gate.
        shared: tuple[Kind, ...] = ("shared",) if len(operations) == 2 else operations
        by_gates: dict[Gates, tuple[Kind, ...]] = {"separate": operations, "shared": shared, "none": ()}
        self.kinds = by_gates[gates]
        self.log_alpha = nn.ParameterDict({kind: torch.zeros(mask.shape) for kind in self.kinds})

    def gate_of(self, operation: Operation) -> Kind:
        """The kind of the gate that ``operation`` listens to."""
        return "shared" if "shared" in self.kinds else operation

    def gate_values(self, inference: InferenceGate, draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Kind to gate [layer, unit]: sampled where ``draws`` holds uniforms, else the ``inference`` gate."""
        at_inference = hardconcrete.INFERENCE[inference]
        return {
            kind: hardconcrete.sample(log_alpha, draws[kind]) if kind in draws else at_inference(log_alpha)
            for kind, log_alpha in self.log_alpha.items()
        }

    def gated(self, operation: Operation, gates: Mapping[str, Tensor]) -> Float[Tensor, "layer unit width"] | None:
        """g·v for one operation, 0 where not editable; None where the edit has no such operation."""
        if operation not in self.vectors:
            return None
        weight = self.mask.to(self.vectors[operation].dtype)
        if self.gates != "none":
            weight = weight * gates[self.gate_of(operation)]
        return weight[..., None] * self.vector(operation)

    def vector(self, operation: Operation) -> Float[Tensor, "layer unit width"]:
        """m, or a = unit · ã where ã is what trains (``unit`` is 1 unless the edit has units of its own)."""
        found: Tensor = self.vectors[operation]
        return found * self.unit[..., None] if operation == "additive" else found


class JoLA(Edit):
    """z' = (1 + g_m·m) ⊙ z + g_a·a on every head (or MLP, or attention) output, the same at every token of its scope.

    m, a ∈ R^width are vectors, g_m, g_a ∈ [0, 1] HardConcrete gates (:mod:`jola_interp.gates`). Both gates 0 is the
    identity, bit for bit. Parameters: 2·L·H·d_head + 2·L·H for the full method on heads.

    Args:
        shape: the model's head shape (``model.head_shape``).
        gates: ``separate`` one gate per operation (JoLA) · ``shared`` one for both · ``none`` g = 1.
        operations: ``both`` · ``add`` offset only · ``multiply`` scale only.
        sites: any non-empty subset of ``("heads", "mlp", "attention")``. At ``attention`` the unit is a layer's whole
            attention output: with ``gates="none", operations="add"`` that is a trained bias of W_O.
        layers: restrict the edit to these layers; None is all.
        heads: restrict the ``heads`` site to these heads, as "L3H7" or (3, 7); None is all.
        inference: the gate used at inference: ``expected`` (the paper: E[g], 0 where the point gate is 0), ``point``
            (the released code) or ``hard``.
        init_std: standard deviation of the starting vectors.
        init_log_alpha: where gates start: 2 is open (P(open) = .94), 0 is half-way (.69).
        init_spread: half-width of the uniform noise around it; None is the released code's Xavier bound
            sqrt(6/(H + 1)).
        scope: the tokens that are edited: ``all`` · ``not_first`` all but the first, where much of the attention rests
            · ``prompt`` · ``answer`` the tokens that are written (so not the position that predicts the first of them).
        units: ``raw`` trains a itself · ``rms`` trains ã with a = ã·rms(z_head) (see :meth:`set_units`), so that one
            learning rate moves a head by the same share of its output whether by a or by m.

    Raises:
        ValueError: an unknown switch, a layer or head outside the model, or nothing left to edit.

    Source: JoLA (arXiv 2502.01179) §3.1–3.3, eq. 4–7; ablations of its §5.
    """

    type_name: ClassVar[str] = "jola"

    def __init__(
        self,
        shape: HeadShape,
        *,
        gates: Gates = "separate",
        operations: Operations = "both",
        sites: Iterable[Site] = ("heads",),
        layers: Iterable[int] | None = None,
        heads: Iterable[str | tuple[int, int]] | None = None,
        inference: InferenceGate = "expected",
        init_std: float = 1e-3,
        init_log_alpha: float = 2.0,
        init_spread: float | None = None,
        scope: Scope = "all",
        units: Units = "raw",
    ):
        super().__init__()
        _check_switches(gates=gates, operations=operations, inference=inference, scope=scope, units=units)
        self.shape, self.gates, self.operations, self.inference = shape, gates, operations, inference
        self.scope, self.units, self.everywhere = scope, units, scope == "all"
        self.units_known = units == "raw"
        self.origin = object()  # shared by the parts of one edit (`restricted`)
        self.init_std, self.init_log_alpha, self.init_spread = init_std, init_log_alpha, init_spread
        self.sites = nn.ModuleDict()
        for site in _checked_sites(sites):
            mask = _editable(shape, site, layers, heads)
            self.sites[site] = SiteEdit(mask, shape.units(site)[2], _OPERATIONS[operations], gates)
        if not self.points():
            raise ValueError("layers/heads: nothing is left to edit")

    @torch.no_grad()
    def set_units(self, rms: Mapping[Site, Float[Tensor, "layer unit"]]) -> JoLA:
        """Take rms(z) of every unit (:func:`jola_interp.activations.unit_rms`) as the unit of its offset.

        Raises:
            ValueError: ``units`` is "raw", or a site, shape or number (positive, finite) that does not fit.
        """
        if self.units == "raw":
            raise ValueError("set_units: this edit has units='raw', in which offsets are trained as they are")
        for name, part in self._parts():
            given = rms.get(name)
            if given is None or given.shape != part.unit.shape or not bool((given > 0).all() & given.isfinite().all()):
                raise ValueError(f"rms.{name} must be {list(part.unit.shape)} positive, finite numbers")
            part.unit.copy_(given)
        self.units_known = True
        return self

    def site(self, name: Site) -> SiteEdit:
        """The vectors and gates of one site."""
        return cast(SiteEdit, self.sites[name])

    @torch.no_grad()
    def at_inference(self, site: Site = "heads") -> dict[Operation, Float[Tensor, "layer unit width"]]:
        """Operation to g·v as it acts at inference, 0 where not editable; only the operations that the edit has."""
        part = self.site(site)
        gates = part.gate_values(self.inference, {})
        return {operation: cast(Tensor, part.gated(operation, gates)) for operation in part.operations}

    def points(self) -> list[tuple[int, Site]]:
        return [
            (layer, cast(Site, name))
            for name in self.sites
            for layer in range(self.shape.layers)
            if bool(self.site(cast(Site, name)).mask[layer].any())
        ]

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> JoLA:
        """m, a ~ N(0, init_std²), log α ~ init_log_alpha + U(±init_spread); non-editable units stay at 0."""
        for name, part in self._parts():
            editable = part.mask
            for vector in part.vectors.values():
                draw = torch.randn(vector.shape, generator=generator) * self.init_std
                vector.copy_(draw * editable[..., None])
            spread = self.init_spread
            if spread is None:
                spread = math.sqrt(6 / (self.shape.units(name)[1] + 1))
            for log_alpha in part.log_alpha.values():
                noise = (2 * torch.rand(log_alpha.shape, generator=generator) - 1) * spread
                log_alpha.copy_((self.init_log_alpha + noise) * editable)
        self.initialised = True
        return self

    def draw(self, generator: torch.Generator) -> Noise:
        return {key: hardconcrete.uniform_like(value, generator) for key, value in self.log_alphas().items()}

    def prepare(self, context: Context, dtype: torch.dtype) -> dict[str, list[tuple[Tensor | None, Tensor | None]]]:
        """Site to (1 + g_m·m, g_a·a) per layer: gate maths in float32 for all layers at once, then ``dtype``."""
        prepared: dict[str, list[tuple[Tensor | None, Tensor | None]]] = {}
        for name, part in self._parts():
            draws = {kind: u for (site, kind), u in (context.noise or {}).items() if site == name}
            values = part.gate_values(self.inference, draws)
            scale, shift = part.gated("multiplicative", values), part.gated("additive", values)
            scales = [None] * self.shape.layers if scale is None else (1 + scale).to(dtype).unbind()
            shifts = [None] * self.shape.layers if shift is None else shift.to(dtype).unbind()
            prepared[name] = list(zip(scales, shifts, strict=True))
        return prepared

    def forward(
        self, activation: Float[Tensor, "batch pos *unit width"], layer: int, site: Site, context: Context
    ) -> Float[Tensor, "batch pos *unit width"]:
        edited = self._edited(activation, layer, site, context.prepared)
        if self.scope == "all":
            return edited
        where = _tokens(self.scope, context, activation)  # [batch, pos]
        return torch.where(where[(...,) + (None,) * (activation.dim() - 2)], edited, activation)

    def _edited(
        self,
        activation: Float[Tensor, "batch pos *unit width"],
        layer: int,
        site: Site,
        prepared: dict[str, list[tuple[Tensor | None, Tensor | None]]],
    ) -> Float[Tensor, "batch pos *unit width"]:
        scale, shift = prepared[site][layer]
        if shift is None:
            return activation if scale is None else activation * scale.to(activation)
        if scale is None:
            return activation + shift.to(activation)
        # One pass over the activation; `.to` is free unless layers live on several devices.
        return torch.addcmul(shift.to(activation), activation, scale.to(activation))

    def log_alphas(self) -> dict[tuple[Site, Kind], Tensor]:
        return {
            (name, cast(Kind, kind)): value.detach()
            for name, part in self._parts()
            for kind, value in part.log_alpha.items()
        }

    def penalty(self, form: PenaltyForm = "mean") -> dict[Kind, Tensor]:
        """Kind to its part of the penalty.

        ``mean``: Σ P(open) of that kind over the number of all gates, so that the parts add up to the mean P(open)
        (the paper's sum, on a scale that means the same for any model size). ``reference``: the released code's
        Σ_layers mean_heads clamp(P(open), 1e-6, 1 − 1e-6) / (L·H).
        """
        total = sum(int(part.mask.sum()) * len(part.kinds) for _, part in self._parts())
        parts: dict[Kind, Tensor] = {}
        for name, part in self._parts():
            layers, units, _ = self.shape.units(name)
            divisor = total if form == "mean" else units * layers * units
            for kind, log_alpha in part.log_alpha.items():
                opens = hardconcrete.p_open(log_alpha)
                if form == "reference":
                    opens = opens.clamp(1e-6, 1 - 1e-6)
                term = (opens * part.mask).sum() / divisor
                parts[cast(Kind, kind)] = parts.get(cast(Kind, kind), torch.zeros_like(term)) + term
        return parts

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        groups: dict[str, list[nn.Parameter]] = {}
        for _, part in self._parts():
            for operation, vector in part.vectors.items():
                groups.setdefault(operation, []).append(cast(nn.Parameter, vector))
        gates = [p for _, part in self._parts() for p in part.log_alpha.values()]
        return groups | {"gates": gates} if gates else groups

    def n_parameters(self) -> int:
        return sum(
            int(part.mask.sum()) * (len(part.vectors) * self.shape.units(name)[2] + len(part.kinds))
            for name, part in self._parts()
        )

    def masks(self) -> dict[Site, Tensor]:
        return {name: part.mask for name, part in self._parts()}

    def overlaps(self, other: Edit) -> bool:
        """Parts of one edit overlap where both have a vector that is not 0."""
        if self is other or not isinstance(other, JoLA) or self.origin is not other.origin:
            return self is other
        return any(
            bool((vector.ne(0).any(-1) & other.site(name).vectors[operation].ne(0).any(-1)).any())
            for name, part in self._parts()
            for operation, vector in part.vectors.items()
        )

    def settings(self) -> dict[str, Any]:
        """The switches. Which units are editable is not among them: that is the stored ``mask``."""
        return {
            "gates": self.gates,
            "operations": self.operations,
            "sites": list(self.sites),
            "inference": self.inference,
            "init_std": self.init_std,
            "init_log_alpha": self.init_log_alpha,
            "init_spread": self.init_spread,
            "scope": self.scope,
            "units": self.units,
        }

    def tensors(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, part in self._parts():
            found[f"mask.{name}"] = part.mask
            if self.units == "rms":
                found[f"unit.{name}"] = part.unit
            found |= {f"{operation}.{name}": vector.detach() for operation, vector in part.vectors.items()}
            found |= {f"log_alpha.{name}.{kind}": value.detach() for kind, value in part.log_alpha.items()}
        return found

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> JoLA:
        take_over(self.tensors(), tensors)
        self.initialised = self.units_known = True
        return self

    @torch.no_grad()
    def restricted(
        self,
        heads: Iterable[str | tuple[int, int]] | None = None,
        kinds: Iterable[str] | None = None,
        strength: float = 1.0,
    ) -> JoLA:
        """A copy that edits only some heads, only by some operations, or by a multiple of the trained edit.

        Args:
            heads: heads to keep ("L3H7" or (3, 7)); the MLP site is dropped when given. None keeps all.
            kinds: subset of ("additive", "multiplicative"). None keeps both.
            strength: factor on both vectors, z + strength·(z' − z); 0 is the identity, 1 the trained edit.

        Raises:
            ValueError: a head outside the model, an unknown kind, or a strength that is not finite.
        """
        kept: set[str] = set(get_args(Operation) if kinds is None else kinds)
        if unknown := kept - set(get_args(Operation)):
            raise ValueError(f"kinds must be a subset of {get_args(Operation)}, got {sorted(unknown)}")
        if not math.isfinite(strength):
            raise ValueError(f"strength must be a finite number, got {strength}")
        clone = copy.deepcopy(self)
        clone.origin = self.origin
        chosen = None if heads is None else _editable(self.shape, "heads", None, heads)
        for name, part in clone._parts():
            keep = part.mask
            if chosen is not None:
                keep = part.mask & (chosen.to(part.mask.device) if name == "heads" else False)
            for operation, vector in part.vectors.items():
                vector.mul_(strength * keep[..., None] * (operation in kept))
        return clone

    def _parts(self) -> list[tuple[Site, SiteEdit]]:
        return [(cast(Site, name), cast(SiteEdit, part)) for name, part in self.sites.items()]


def _check_switches(**given: str) -> None:
    words = {"gates": Gates, "operations": Operations, "inference": InferenceGate, "scope": Scope, "units": Units}
    allowed = {name: get_args(choices) for name, choices in words.items()}
    for name, value in given.items():
        if value not in allowed[name]:
            raise ValueError(f"{name} must be one of {', '.join(allowed[name])}; got {value!r}")


def _tokens(scope: Scope, context: Context, activation: Float[Tensor, "batch pos *rest"]) -> Bool[Tensor, "batch pos"]:
    """Which of the new tokens ``scope`` edits.

    Without a prompt mask the caller generates: what stands behind a cached prefix is answer, the rest is prompt.
    """
    batch, new = activation.shape[:2]
    device = activation.device
    if scope == "not_first":
        if context.attention_mask is None:
            raise ValueError(
                "scope='not_first' needs the attention mask: the first token is the first that is no padding"
            )
        real = context.attention_mask.to(device)
        return ((real.cumsum(1) != 1) | (real == 0))[:, -new:]
    if context.prompt_mask is None:
        return torch.full((batch, new), context.decoding == (scope == "answer"), device=device)
    prompt = context.prompt_mask.to(device)[:, -new:].bool()
    return prompt if scope == "prompt" else ~prompt


def _checked_sites(sites: Iterable[Site]) -> list[Site]:
    chosen = set(sites)
    if not chosen or chosen - set(SITES):
        raise ValueError(f"sites must be a non-empty subset of {SITES}, got {sorted(chosen)}")
    return [site for site in SITES if site in chosen]


def _editable(
    shape: HeadShape, site: Site, layers: Iterable[int] | None, heads: Iterable[str | tuple[int, int]] | None
) -> Bool[Tensor, "layer unit"]:
    """True where a unit may be edited."""
    n_layers, n_units, _ = shape.units(site)
    mask = torch.ones(n_layers, n_units, dtype=torch.bool)
    if layers is not None:
        chosen = sorted(set(layers))
        if outside := [layer for layer in chosen if not 0 <= layer < n_layers]:
            raise ValueError(f"layers: {outside} are not in this model (layers 0–{n_layers - 1})")
        mask = torch.zeros_like(mask)
        mask[chosen] = True
    if heads is not None and site == "heads":
        named = torch.zeros_like(mask)
        for layer, head in parse_units(heads, shape):
            named[layer, head] = True
        mask &= named
    return mask
