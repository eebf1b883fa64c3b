"""What may change in (model, edit) without changing the function: gate–vector scale, value basis, hosts of an offset.

    scale       (g, v) → (g', v·g/g')                                only the product g·v acts
    basis       W_V → W_V R, W_O → Rᵀ W_O, a → a R, R orthogonal     one R per key-value group
    re-hosting  a_h → 0, g_j·a_j → g_j·a_j + b_j for j ≠ h           Σ_j b_j W_O[j] = g_a·a_h W_O[h]

The first two hold for every trained edit, up to rounding. The third is exact where the offset's effect lies in the
span of the other heads' W_O, and leaves a residue elsewhere (:class:`Rehosted` says how much). What they are applied
to is left as it is; what they return is new. JoLA (arXiv 2502.01179) §3 for the edit; ``spec/method.md`` §7 for the
bias that a layer's offsets amount to.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from jola_interp import gates
from jola_interp.backends import require_unedited
from jola_interp.edits.base import Context, HeadShape, Site, parse_units, unit_label
from jola_interp.edits.jola import JoLA, SiteEdit
from jola_interp.models import Model, load_model

RANK = 1e-6
"""Directions of W_O below this share of its largest singular value count as none: float32 weights say no more."""
AGREE = 1e-4
"""Base logits of a rotated model differ by less than this share of the largest; rounding is a tenth of it or less."""
SAME, ROUNDINGS = 1e-5, 4
"""Logits of a model made again without its bridge differ by at most this share of the largest, or by so many rounding
steps (eps) of the model's dtype where those are larger: 16-bit arithmetic in another order agrees no better."""
WRAPPING = "._original_component"
"""What TransformerLens puts into the names of the weights that it wraps."""
CLOSED_LOG_ALPHA = -6.0
"""Where a gate is put that has nothing left to gate: P(open) = .005, closed under every gate at inference."""

# -- models and their weights --------------------------------------------------------------------------------------


def fresh(model: Model) -> Model:
    """A plain float32 copy of ``model``, which stays as it is; loaded anew where TransformerLens has wrapped it.

    A wrapped model that was handed in, and so cannot be loaded, is made again from its configuration and its own
    weights; the copy's logits are held against the wrapped model's.

    Raises:
        ValueError: a booted model that is not found where it came from, or cannot be made again without its wrapping;
            quantised weights; an edit is attached.
    """
    require_unedited(model, "a copy")
    if not model.booted:
        _require_floats(model)
        return Model(copy.deepcopy(model.hf).float(), model.tokenizer, name=model.name)
    if model.source is None:
        return _remade(model)
    found = load_model(model.source, tokenizer=model.tokenizer, device=model.device, dtype="float32")
    if found.fingerprint != model.fingerprint:
        raise ValueError(f"{model.source} now holds other weights than {model.name}: pass model=load_model(path)")
    return found


def _remade(model: Model) -> Model:
    """The model inside the bridge once more, plain: its class, its configuration, the weights under their own names."""
    _require_floats(model)
    stored: dict[str, list[Tensor]] = {}
    for name, value in model.hf.state_dict().items():
        stored.setdefault(name.replace(WRAPPING, ""), []).append(value)
    with torch.random.fork_rng(devices=[]):  # a new model draws weights
        hf = type(model.hf)(copy.deepcopy(model.hf.config)).float()
    wanted = hf.state_dict().keys()
    if missing := sorted(name for name in wanted if name not in stored):
        raise _not_undone(model, f"{missing[0]} is not among its weights")
    if differing := [name for name in wanted if any(not torch.equal(stored[name][0], v) for v in stored[name][1:])]:
        raise _not_undone(model, f"it holds {differing[0]} twice, with other values")
    if len({parameter.device for parameter in model.hf.parameters()}) > 1:
        raise _not_undone(model, "it lies on several devices")
    hf.load_state_dict({name: stored[name][0] for name in wanted})
    found = Model(nn.Module.to(hf, model.device), model.tokenizer, name=model.name)
    check = found if model.dtype == torch.float32 else Model(copy.deepcopy(hf).to(model.dtype), None, name=model.name)
    if not (change := logit_change(probe(model), probe(check))) <= max(SAME, ROUNDINGS * torch.finfo(model.dtype).eps):
        raise _not_undone(model, f"made again from its weights, its logits move by {change:.1e} of the largest")
    return found


def _not_undone(model: Model, why: str) -> ValueError:
    return ValueError(
        f"{model.name} has been wrapped by TransformerLens, which cannot be undone here ({why}), and was handed in, so "
        "that it cannot be loaded again: pass model=load_model(path)"
    )


def probe(model: Model, rows: int = 2, length: int = 24, seed: int = 0) -> Float[Tensor, "row pos vocab"]:
    """Logits at random token ids, the same for the same vocabulary and seed: what two equal functions agree on.

    The first half of each row counts as prompt, so that an edit of any scope acts somewhere.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(model.vocab_size, (rows, length), generator=generator).to(model.device)
    prompt = torch.arange(length, device=ids.device).expand_as(ids) < length // 2
    with torch.no_grad():
        return model.logits(ids, torch.ones_like(ids), prompt_mask=prompt).cpu().double()


def logit_change(before: Float[Tensor, "*any vocab"], after: Float[Tensor, "*any vocab"]) -> float:
    """max |after − before| / max |before|."""
    return float((after - before).abs().max() / before.abs().max())


def output_weight(model: Model, layer: int) -> Float[Tensor, "head d_head d_model"]:
    """W_O of one layer, per query head, in float64 on the CPU: head h writes z_h @ W_O[h].

    Raises:
        ValueError: an output projection that is not a plain matrix of H·d_head by d_model.
    """
    shape, module = model.head_shape, model.o_proj(layer)
    weight: Any = getattr(module, "weight", None)
    if weight is None or not weight.is_floating_point() or weight.numel() != shape.heads * shape.d_head * shape.d_model:
        raise ValueError(f"{type(model.hf).__name__}: W_O of layer {layer} is {type(module).__name__}, no plain matrix")
    flat = weight.detach().to("cpu", torch.float64)
    # Linear keeps [out, in]; what is left (GPT-2's Conv1D) keeps [in, out].
    flat = flat.T if isinstance(module, nn.Linear) else flat
    per_unit: Tensor = flat.reshape(shape.heads, shape.d_head, shape.d_model)
    return per_unit


def hosted_share(model: Model) -> Float[np.ndarray, "layer head"]:
    """‖W_O[h] P‖² / ‖W_O[h]‖², P the projector onto the rows of all other heads' W_O in the layer.

    1: whatever head h writes its layer-mates could write together; 0: none of it. Squared Frobenius norms, float64.
    """
    shape = model.head_shape
    found = np.zeros((shape.layers, shape.heads))
    for layer in range(shape.layers):
        weight = output_weight(model, layer)
        for head in range(shape.heads if shape.heads > 1 else 0):
            _, _, basis = _others(weight, head)
            found[layer, head] = float((weight[head] @ basis.T).square().sum() / weight[head].square().sum())
    return found


# -- a: gate–vector scale ------------------------------------------------------------------------------------------


@torch.no_grad()
def rescaled(edit: JoLA, p_open: float | None = None) -> JoLA:
    """(g, v) → (g', v·g/g') for every gate that is open at inference: P(open) is another, g·v is the same.

    Respects the edit's inference gate. ``expected`` and ``point`` are open above P(open) = .167, so a gate can be
    carried across 1/2; ``hard`` is 1 wherever it is open, so there P(open) moves between 1/2 and 1 and v stays.

    Args:
        edit: it stays as it is.
        p_open: where to put every open gate; None moves each to the other side of 1/2 (``hard``: of 3/4).

    Raises:
        ValueError: a ``p_open`` at which the inference gate would be closed.
    """
    lowest = 0.5 if edit.inference == "hard" else float(_p_open(gates.LOG_ALPHA_CLOSED))
    if p_open is not None and not lowest < p_open < 1:
        raise ValueError(f"p_open must lie between {lowest:.4f} and 1 (the {edit.inference} gate); got {p_open}")
    clone = copy.deepcopy(edit)
    for part in _parts(clone):
        for kind, log_alpha in part.log_alpha.items():
            moved = _moved(log_alpha, edit.inference, p_open)
            gate = gates.INFERENCE[edit.inference]
            opened = (gate(log_alpha) > 0) & part.mask
            ratio = torch.where(opened, gate(log_alpha) / gate(moved), 1.0)
            log_alpha.copy_(torch.where(opened, moved, log_alpha))
            for name in part.operations:
                if part.gate_of(name) == kind:
                    part.vectors[name].mul_(ratio[..., None])
    return clone


def _moved(log_alpha: Float[Tensor, "layer unit"], inference: str, p_open: float | None) -> Tensor:
    """log α at the target."""
    if p_open is not None:
        return torch.full_like(log_alpha, _log_alpha(p_open))
    middle, low, high = (0.75, 0.6, 0.9) if inference == "hard" else (0.5, 0.3, 0.9)
    return torch.where(gates.p_open(log_alpha) > middle, _log_alpha(low), _log_alpha(high)).to(log_alpha)


def _p_open(log_alpha: float) -> float:
    return float(gates.p_open(torch.tensor(log_alpha, dtype=torch.float64)))


def _log_alpha(p_open: float) -> float:
    """The inverse of P(open) = σ(log α − β ln(−γ/ζ))."""
    return math.log(p_open / (1 - p_open)) + gates.BETA * gates.LOG_ALPHA_CLOSED


# -- b: value–output basis -----------------------------------------------------------------------------------------


def rotations(shape: HeadShape, seed: int = 0) -> Float[Tensor, "layer group d_head d_head"]:
    """R, uniform over the orthogonal matrices (Haar; Mezzadri 2007), one per layer and key-value group, in float64."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(
        shape.layers, shape.kv_heads, shape.d_head, shape.d_head, generator=generator, dtype=torch.float64
    )
    orthogonal, upper = torch.linalg.qr(drawn)
    signed: Tensor = orthogonal * upper.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
    return signed


def per_head(turns: Float[Tensor, "layer group d_head d_head"], shape: HeadShape) -> Float[Tensor, "layer head d d"]:
    """The R of each query head: neighbours in a group share it."""
    return turns.repeat_interleave(shape.heads // shape.kv_heads, dim=1)


@torch.no_grad()
def rotated(model: Model, seed: int = 0) -> Model:
    """W_V → W_V R and W_O → Rᵀ W_O in every layer: the same function, each head's values in another basis.

    Args:
        model: it stays as it is.
        seed: of :func:`rotations`.

    Returns:
        A plain float32 copy; of bfloat16 weights too, which could not be turned exactly.

    Raises:
        ValueError: an architecture whose values come out of a fused projection, or whose logits are not the same
            afterwards (values that are normalised or gated between W_V and W_O); or see :func:`fresh`.
    """
    _check_seed(seed)
    if not model.booted:
        _value_and_output(model, 0)  # before a copy is made for nothing
    copied = fresh(model)
    before, turns = probe(copied), rotations(model.head_shape, seed)
    for layer in range(model.head_shape.layers):
        _turn(*_value_and_output(copied, layer), turns[layer], model.head_shape)
    if not (change := logit_change(before, probe(copied))) < AGREE:
        raise ValueError(
            f"{type(model.hf).__name__}: logits move by {change:.1e} of the largest when values are turned and turned "
            "back: something stands between W_V and W_O that depends on the basis"
        )
    return Model(copied.hf, model.tokenizer, name=f"{model.name}-rotated-{seed}")


def rotated_edit(edit: JoLA, turns: Float[Tensor, "layer group d_head d_head"]) -> JoLA:
    """a → a R and m → diag(Rᵀ diag(m) R): the edit by its own definition in the rotated basis.

    Exact for offsets. Rᵀ diag(m) R is no diagonal, so no m' does what m did; its diagonal is the nearest (least
    squares). :class:`TurnedJoLA` keeps all of it.
    """
    clone = copy.deepcopy(edit)
    if "heads" not in clone.sites:
        return clone
    part, turn = clone.site("heads"), per_head(turns, edit.shape)
    with torch.no_grad():
        for name, vector in part.vectors.items():
            old = vector.to("cpu", torch.float64)
            pattern = "lhd,lhde->lhe" if name == "additive" else "lhd,lhde,lhde->lhe"
            matrices = [turn] if name == "additive" else [turn, turn]
            vector.copy_(torch.einsum(pattern, old, *matrices))
    return clone


class TurnedJoLA(JoLA):
    """z' = z (I + Rᵀ diag(g_m·m) R) + g_a·a R on heads: the function of a JoLA, exactly, in the rotated basis.

    For passes; it is not among the edits that a Run can hold. Other sites as in the JoLA that it is made from.
    """

    def __init__(self, edit: JoLA, turns: Float[Tensor, "layer group d_head d_head"]):
        super().__init__(edit.shape, **edit.settings())
        self.load_tensors(edit.tensors())
        self.to(next(iter(edit.tensors().values())).device).requires_grad_(False)
        self.matrices: Tensor | None = None
        self.shifts: Tensor | None = None
        if "heads" in self.sites:
            turn, acting = per_head(turns, self.shape), self.at_inference("heads")
            scale, shift = acting.get("multiplicative"), acting.get("additive")
            if scale is not None:
                self.matrices = torch.einsum("lhdi,lhd,lhde->lhie", turn, scale.cpu().double(), turn)
            if shift is not None:
                self.shifts = torch.einsum("lhd,lhde->lhe", shift.cpu().double(), turn)

    def prepare(self, context: Context, dtype: torch.dtype) -> dict[str, list[tuple[Tensor | None, Tensor | None]]]:
        prepared = super().prepare(context, dtype)
        if "heads" in self.sites:
            none: list[Tensor | None] = [None] * self.shape.layers
            matrices = none if self.matrices is None else list(self.matrices.to(dtype))
            shifts = none if self.shifts is None else list(self.shifts.to(dtype))
            prepared["heads"] = list(zip(matrices, shifts, strict=True))
        return prepared

    def _edited(
        self,
        activation: Float[Tensor, "batch pos *unit width"],
        layer: int,
        site: Site,
        prepared: dict[str, list[tuple[Tensor | None, Tensor | None]]],
    ) -> Float[Tensor, "batch pos *unit width"]:
        if site != "heads":
            return super()._edited(activation, layer, site, prepared)
        matrix, shift = prepared[site][layer]
        edited = activation
        if matrix is not None:
            edited = edited + torch.einsum("bphd,hde->bphe", activation, matrix.to(activation))
        return edited if shift is None else edited + shift.to(activation)


def _value_and_output(model: Model, layer: int) -> tuple[nn.Linear, nn.Linear]:
    """W_V and W_O of a layer of a plain model.

    Raises:
        ValueError: there is no W_V of its own, or either is no linear layer of the size that heads need.
    """
    shape, name = model.head_shape, type(model.hf).__name__
    try:
        value: Any = model.hf.get_submodule(model._path(f"blocks.{layer}.attn.v"))
    except (AttributeError, KeyError, ValueError):
        value = None
    output = model.o_proj(layer)
    sizes = {"W_V": (value, "out_features", shape.kv_heads), "W_O": (output, "in_features", shape.heads)}
    for part, (module, side, count) in sizes.items():
        if not isinstance(module, nn.Linear) or getattr(module, side) != count * shape.d_head:
            raise ValueError(
                f"{name}: layer {layer} has no {part} of its own of {count} heads × {shape.d_head} (a fused "
                "projection, or another layout): its value basis cannot be turned"
            )
    assert isinstance(value, nn.Linear) and isinstance(output, nn.Linear)
    return value, output


def _turn(value: nn.Linear, output: nn.Linear, turn: Float[Tensor, "group d_head d_head"], shape: HeadShape) -> None:
    """In place: rows of W_V (and its bias) and columns of W_O, in float64."""
    groups, width = shape.kv_heads, shape.d_head
    for stored in (value.weight, value.bias):
        if stored is not None:
            rows = stored.detach().to("cpu", torch.float64).reshape(groups, width, -1)  # [group, d_head, in]
            stored.copy_(torch.einsum("gde,gdi->gei", turn, rows).reshape(stored.shape))
    every = turn.repeat_interleave(shape.heads // groups, dim=0)
    columns = output.weight.detach().to("cpu", torch.float64).reshape(-1, shape.heads, width)  # [out, head, d_head]
    output.weight.copy_(torch.einsum("hde,ohd->ohe", every, columns).reshape(output.weight.shape))


# -- c: re-hosting -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rehosted:
    """One head's offset on its layer-mates; made by :func:`rehosted`.

    Attributes:
        label: whose offset.
        edit: the edit with the offset moved.
        share: ‖e P‖²/‖e‖² of its effect e = g_a·a_h W_O[h], P the projector onto the span of the other heads' W_O; 1 is
            exactly re-hostable.
        cost: ‖b‖/‖g_a·a_h‖ of the least b that does it.
        left: ‖e − Σ b_j W_O[j]‖ / ‖Σ_h g_a·a_h W_O[h]‖: what was not carried, as a share of all that the layer adds.
        effect: ‖e‖.
    """

    label: str
    edit: JoLA
    share: float
    cost: float
    left: float
    effect: float


@torch.no_grad()
def rehosted(edit: JoLA, model: Model, head: str | tuple[int, int]) -> Rehosted:
    """a_h → 0 and g_j·a_j → g_j·a_j + b_j (j ≠ h), b of least norm with Σ_j b_j W_O[j] ≈ g_a·a_h W_O[h].

    Least squares by the pseudo-inverse in float64, without a ridge. A host whose gate is closed is given the gate of
    head h (and, where its gate is shared, m = 0); a head that was not editable becomes so. The additive gate of head h,
    which has nothing left to gate, is closed.

    Args:
        edit: it stays as it is.
        model: whose W_O; booted or not.
        head: whose offset is to be moved.

    Raises:
        ValueError: no such head, an edit without offsets on heads, a head that adds nothing, or one without mates.
    """
    [(layer, unit)] = parse_units([head], edit.shape)
    label = unit_label("heads", layer, unit)
    acting = offsets(edit)  # [layer, head, d_head]
    if not bool(acting[layer, unit].any()):
        raise ValueError(f"head: {label} adds nothing (its offset or its gate is 0): there is nothing to move")
    if edit.shape.heads < 2:
        raise ValueError(f"head: {label} is the only head of its layer: no other can host its offset")
    weight = output_weight(model, layer)
    effect = acting[layer, unit] @ weight[unit]  # [d_model]
    left_vectors, values, basis = _others(weight, unit)
    carried = effect @ basis.T
    hosted = ((carried / values) @ left_vectors.T).reshape(-1, edit.shape.d_head)  # [head − 1, d_head]
    total = torch.einsum("hd,hdm->m", acting[layer], weight)
    residue = effect - carried @ basis
    return Rehosted(
        label=label,
        edit=_with_hosts(edit, layer, unit, hosted),
        share=float(carried.square().sum() / effect.square().sum()),
        cost=float(hosted.norm() / acting[layer, unit].norm()),
        left=float(residue.norm() / total.norm()) if bool(total.any()) else math.inf,
        effect=float(effect.norm()),
    )


def offsets(edit: JoLA) -> Float[Tensor, "layer head d_head"]:
    """g_a·a as it acts at inference, in float64 on the CPU.

    Raises:
        ValueError: an edit without offsets on heads.
    """
    found = edit.at_inference("heads").get("additive") if "heads" in edit.sites else None
    if found is None:
        raise ValueError("edit: it adds no offsets to heads, so none can be moved")
    return found.to("cpu", torch.float64)


def _others(
    weight: Float[Tensor, "head d_head d_model"], head: int
) -> tuple[Float[Tensor, "row rank"], Float[Tensor, " rank"], Float[Tensor, "rank d_model"]]:
    """The singular value decomposition of the other heads' W_O, without directions below ``RANK``."""
    rest = torch.cat([weight[:head], weight[head + 1 :]]).flatten(0, 1)  # [(head − 1)·d_head, d_model]
    left, values, basis = torch.linalg.svd(rest, full_matrices=False)
    kept = values > RANK * values[0]
    return left[:, kept], values[kept], basis[kept]


def _with_hosts(edit: JoLA, layer: int, unit: int, hosted: Float[Tensor, "host d_head"]) -> JoLA:
    clone = copy.deepcopy(edit)
    part = clone.site("heads")
    hosts = [j for j in range(edit.shape.heads) if j != unit]
    gate = _opened(part, clone, layer, unit, hosts)
    vector = part.vectors["additive"]
    weight = gate * part.unit[layer, hosts].to("cpu", torch.float64)  # g·unit: what a trained number acts with
    vector[layer, hosts] += (hosted / weight[:, None]).to(vector)
    vector[layer, unit] = 0
    if "additive" in part.log_alpha:  # a shared gate has m to gate still
        part.log_alpha["additive"][layer, unit] = CLOSED_LOG_ALPHA
    return clone


def _opened(part: SiteEdit, edit: JoLA, layer: int, unit: int, hosts: list[int]) -> Float[Tensor, " host"]:
    """The additive gates of the hosts, once those that were closed or not editable are as open as head h's."""
    new = [j for j in hosts if not bool(part.mask[layer, j])]
    part.mask[layer, new] = True
    for vector in part.vectors.values():
        vector[layer, new] = 0
    if not part.kinds:
        return torch.ones(len(hosts), dtype=torch.float64)
    log_alpha = part.log_alpha[part.gate_of("additive")]
    closed = [j for j in hosts if j in new or not float(gates.INFERENCE[edit.inference](log_alpha)[layer, j])]
    log_alpha[layer, closed] = log_alpha[layer, unit].clone()
    # What a closed gate held back must not act now that it opens.
    for name in part.operations:
        if part.gate_of(name) == part.gate_of("additive"):
            part.vectors[name][layer, closed] = 0
    return gates.INFERENCE[edit.inference](log_alpha)[layer, hosts].to("cpu", torch.float64)


# -- inside --------------------------------------------------------------------------------------------------------


def _parts(edit: JoLA) -> list[SiteEdit]:
    return [edit.site(site) for site in edit.masks()]


def _require_floats(model: Model) -> None:
    for name, parameter in model.hf.named_parameters():
        if not parameter.is_floating_point() or parameter.is_meta:
            raise ValueError(f"{model.name}: {name} is {parameter.dtype}: the model must be loaded whole, unquantised")


def _check_seed(seed: int) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be a whole number, 0 or more, not {seed!r}")
