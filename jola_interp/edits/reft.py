"""ReFT: a low-rank change of the residual stream at the first and the last positions of a prompt."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from jola_interp.edits.base import Context, Edit, HeadShape, Site, take_over

ReFTKind = Literal["loreft", "direft"]
Start = Literal["identity", "linear"]
Places = tuple[Tensor, Tensor]
"""(rows, columns) of the edited positions in a batch, both [n]."""


@dataclass(frozen=True, slots=True)
class _Pass:
    """What is the same for all layers of a pass: by set, where it acts; [set, layer, …], what it does there."""

    width: int
    places: list[Places]
    inner: Tensor
    bias: Tensor
    outer: Tensor


class ReFT(Edit):
    """h' = h + Rᵀ(W h + b − R h) (LoReFT) or h' = h + W₂ᵀ(W₁ h + b) (DiReFT), at the ends of the prompt.

    h ∈ R^d is the residual stream behind a block; R, W, W₁, W₂ ∈ R^{r×d}, b ∈ R^r; the rows of R are orthonormal. It
    acts on the first ``p`` and the last ``s`` PROMPT tokens of each row (of a prompt mask, or, where the caller
    generates, of the tokens that fill the cache), never on padding. A prompt shorter than p + s is edited at each token
    once; with weights of their own for both ends a token takes those of the nearer one. Parameters: 2·r·d + r per
    layer, twice that if not ``shared``, R counted as r·d.

    Args:
        shape: the model's head shape.
        kind: ``loreft`` or ``direft``.
        r: rank.
        p, s: how many positions at the start and at the end of the prompt.
        shared: whether both ends share their weights.
        layers: only these; None is all.
        orthonormal: whether the rows of W₂ are kept orthonormal; None is what the kind says: those of LoReFT are, those
            of DiReFT are not (the authors' library has both).
        start: ``identity`` R random and W = R, b = 0 (DiReFT: W₂ = 0, or, kept orthonormal, W₁ = 0, b = 0), so that
            training begins at the model itself · ``linear`` W, b and a free W₂ as ``nn.Linear`` draws them, U(±1/√d),
            which is what the authors' library does: it moves h by about sqrt(4r/3d)·‖h‖ in every layer before the
            first step, .05 at d = 4096 and .14 at d = 576.

    Raises:
        ValueError: an unknown word, a rank above d_model, no position, a layer outside the model, or LoReFT without
            orthonormal rows.

    Source: Wu et al. 2024 (arXiv 2404.03592), §3.2, eq. 2 and 3; dropout is left out. The rows are held as Householder
    reflectors (:func:`orthonormal_rows`).
    """

    type_name: ClassVar[str] = "reft"
    everywhere = False
    share: Tensor

    def __init__(
        self,
        shape: HeadShape,
        *,
        kind: ReFTKind = "loreft",
        r: int = 8,
        p: int = 7,
        s: int = 7,
        shared: bool = True,
        layers: Iterable[int] | None = None,
        orthonormal: bool | None = None,
        start: Start = "identity",
    ):
        super().__init__()
        _check_words(kind, start, shared, orthonormal)
        _check_counts(shape, r, p, s)
        self.shape, self.kind, self.r, self.p, self.s = shape, kind, r, p, s
        self.shared, self.start = shared, start
        self.orthonormal = kind == "loreft" if orthonormal is None else orthonormal
        self.layers = chosen_layers(shape, layers)
        sets = 1 if shared or not (p and s) else 2
        size = (sets, len(self.layers), r, shape.d_model)
        self.outer = nn.Parameter(torch.zeros(size))
        self.inner = nn.Parameter(torch.zeros(size))
        self.bias = nn.Parameter(torch.zeros(size[:-1]))
        self.register_buffer("share", torch.ones(()))
        if kind == "loreft":
            self.inner.data.copy_(self.rows().detach())

    def rows(self) -> Float[Tensor, "set layer rank d_model"]:
        """R, or W₂: orthonormal rows out of the stored reflectors, or the rows as they are."""
        return orthonormal_rows(self.outer) if self.orthonormal else self.outer

    def points(self) -> list[tuple[int, Site]]:
        return [(layer, "residual") for layer in self.layers]

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> ReFT:
        """Orthonormal rows uniformly at random (the QR factor of a Gaussian); the rest as ``start`` says."""
        bound = 1 / math.sqrt(self.shape.d_model)
        if self.orthonormal:
            gaussian = torch.randn(self.outer.shape, generator=generator)
            self.outer.copy_(torch.geqrf(gaussian.mT)[0].mT)
        else:
            _uniform(self.outer, bound, generator)
        for parameter in (self.inner, self.bias):
            _uniform(parameter, bound, generator)
        if self.start == "identity":
            self._start_as_identity()
        self.initialised = True
        return self

    def _start_as_identity(self) -> None:
        """One factor of the change is 0, the other is not: a gradient reaches it at the first step."""
        if self.kind == "direft" and not self.orthonormal:
            self.outer.zero_()
            return
        self.inner.copy_(self.rows() if self.kind == "loreft" else torch.zeros_like(self.inner))
        self.bias.zero_()

    def prepare(self, context: Context, dtype: torch.dtype) -> _Pass | None:  # noqa: ARG002
        """Positions and weights of a pass, R once for all layers; None where nothing is edited (decoding).

        LoReFT's change is Rᵀ((W − R) h + b), so that both kinds are the same two products. They are made in float32 and
        only their result is rounded to the model's dtype: a bfloat16 R is orthonormal to two digits.

        Raises:
            ValueError: no attention mask, or a prompt mask of another shape.
        """
        sides = prompt_ends(context, self.p, self.s)
        if sides is None:
            return None
        prefix, suffix = sides
        where = [prefix | suffix] if len(self.outer) == 1 else [prefix, suffix]
        outer = self.rows()
        inner = self.inner - outer if self.kind == "loreft" else self.inner
        places = [_places(chosen) for chosen in where]
        return _Pass(prefix.shape[1], places, inner, self.bias, outer * self.share)

    def forward(
        self,
        activation: Float[Tensor, "batch new d_model"],
        layer: int,
        site: Site,  # noqa: ARG002
        context: Context,
    ) -> Float[Tensor, "batch new d_model"]:
        passing: _Pass | None = context.prepared
        if passing is None:
            return activation
        at = self.layers.index(layer)
        behind = passing.width - activation.shape[1]  # columns that a cache holds
        wide = torch.promote_types(activation.dtype, torch.float32)
        for number, place in enumerate(passing.places):
            rows, columns = (index.to(activation.device) for index in _from(place, behind))
            inner, bias, outer = (
                part[number, at].to(activation.device, wide) for part in (passing.inner, passing.bias, passing.outer)
            )
            picked = activation[rows, columns].to(wide)  # [n, d_model]
            edited = picked + (picked @ inner.T + bias) @ outer
            activation = activation.index_put((rows, columns), edited.to(activation.dtype))
        return activation

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"vectors": [self.outer, self.inner, self.bias]}

    def n_parameters(self) -> int:
        return self.outer.numel() + self.inner.numel() + self.bias.numel()

    def masks(self) -> dict[Site, Tensor]:
        return {}

    def settings(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "r": self.r,
            "p": self.p,
            "s": self.s,
            "shared": self.shared,
            "layers": self.layers,
            "orthonormal": self.orthonormal,
            "start": self.start,
        }

    def tensors(self) -> dict[str, Tensor]:
        """``outer`` [set, layer, r, d_model] W₂, or the reflectors of R (:meth:`rows` gives R); ``inner`` W; ``bias`` b
        [set, layer, r]; ``share`` how much of the change is made."""
        trained = {name: value.detach() for name, value in self.named_parameters()}
        return {**trained, "share": self.share}

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> ReFT:
        take_over(self.tensors(), tensors)
        self.initialised = True
        return self

    @torch.no_grad()
    def restricted(
        self,
        heads: Iterable[str | tuple[int, int]] | None = None,
        kinds: Iterable[str] | None = None,
        strength: float = 1.0,
    ) -> ReFT:
        """A copy that makes a multiple of the change: h + strength·(h' − h); 0 is the identity.

        Raises:
            ValueError: heads or kinds, of which there are none, or a strength that is not finite.
        """
        require_whole(heads, kinds, strength)
        clone = copy.deepcopy(self)
        clone.share.mul_(strength)
        return clone


def orthonormal_rows(reflectors: Float[Tensor, "*sets rank width"]) -> Float[Tensor, "*sets rank width"]:
    """R with R Rᵀ = I: the first r rows of (H₁ ⋯ H_r)ᵀ, H_i = I − 2 v_i v_iᵀ/‖v_i‖², v_i = e_i + the i-th row right of
    its diagonal.

    Every R is reached, but for the signs of its rows, which W and b take up. This is the "householder" map of
    :func:`torch.nn.utils.parametrizations.orthogonal`, in three ways unlike it. That one keeps a d × d base in a buffer
    (64 MB a layer at d = 4096) or signs on the diagonal, which weight decay takes to 0 and R with them; here the
    diagonal and what is left of it are not read. And the derivative of ``householder_product`` took 27 s for 32 layers
    of 8 × 4096 on two CPU cores, that of the compact form H₁ ⋯ H_r = I − V T Vᵀ, T⁻¹ = the upper triangle of VᵀV with
    half its diagonal, 0.02 s. In float64 where the device has it, and then rounded: rows are orthonormal to 1e-7.

    Source: Joffrain et al. 2006, "Accumulating Householder transformations, revisited" (ACM TOMS 32 (2)), for T.
    """
    rank, width = reflectors.shape[-2:]
    wide = reflectors.dtype if reflectors.device.type == "mps" else torch.float64
    unit = torch.eye(width, rank, dtype=wide, device=reflectors.device)
    v = reflectors.to(wide).mT.tril(-1) + unit  # [*sets, width, rank]
    products = v.mT @ v
    inverse = products.triu() - torch.diag_embed(products.diagonal(dim1=-2, dim2=-1)) / 2
    q = unit - v @ torch.linalg.solve_triangular(inverse, v[..., :rank, :].mT, upper=True)
    rows: Tensor = q.mT.to(reflectors.dtype)
    return rows


def prompt_ends(
    context: Context, first: int, last: int
) -> tuple[Bool[Tensor, "batch pos"], Bool[Tensor, "batch pos"]] | None:
    """(the first ``first`` prompt tokens of each row, the last ``last``), no token in both; None while decoding.

    Without a prompt mask the caller generates: all real tokens of the pass that fills the cache are prompt, what comes
    behind a cached prefix is answer. (Without a cache no pass tells the two apart: hand in a prompt mask.) A token
    within reach of both ends belongs to the nearer one.

    Raises:
        ValueError: no attention mask [batch, pos], or a prompt mask of another shape.
    """
    mask, given = context.attention_mask, context.prompt_mask
    if mask is None or mask.dim() != 2:
        raise ValueError("an edit of the prompt's ends needs the attention mask [batch, pos]: padding is no prompt")
    if given is None and context.decoding:
        return None
    prompt = mask.bool()
    if given is not None:
        if given.shape != mask.shape:
            raise ValueError(f"prompt_mask must be {list(mask.shape)}, as the attention mask; got {list(given.shape)}")
        prompt = prompt & given.to(mask.device).bool()
    before = prompt.cumsum(1) - 1  # prompt tokens on the left of this one
    after = prompt.sum(1, keepdim=True) - 1 - before
    in_first, in_last = prompt & (before < first), prompt & (after < last)
    nearer = before <= after
    return in_first & (nearer | ~in_last), in_last & ~(nearer & in_first)


def chosen_layers(shape: HeadShape, layers: Iterable[int] | None) -> list[int]:
    """Layers in order; None is all.

    Raises:
        ValueError: none at all, or one that is not in the model.
    """
    if layers is None:
        return list(range(shape.layers))
    chosen = sorted(set(layers))
    if not chosen or any(type(layer) is not int or not 0 <= layer < shape.layers for layer in chosen):
        raise ValueError(f"layers must be some of 0 to {shape.layers - 1}, or None; got {chosen}")
    return chosen


def require_whole(heads: object, kinds: object, strength: float) -> None:
    """Refuse to take a part of an edit that has neither heads nor kinds.

    Raises:
        ValueError: heads or kinds are given, or a strength that is not finite.
    """
    for name, given in (("heads", heads), ("kinds", kinds)):
        if given is not None:
            raise ValueError(f"{name} must be None: this edit acts on the residual stream and has no {name}")
    if not math.isfinite(strength):
        raise ValueError(f"strength must be a finite number, got {strength}")


def _uniform(parameter: Tensor, bound: float, generator: torch.Generator) -> None:
    parameter.copy_((2 * torch.rand(parameter.shape, generator=generator) - 1) * bound)


def _places(chosen: Bool[Tensor, "batch pos"]) -> Places:
    rows, columns = chosen.nonzero(as_tuple=True)
    return rows, columns


def _from(place: Places, behind: int) -> Places:
    """The positions among the new tokens of a pass, of which ``behind`` lie in a cache."""
    rows, columns = place
    if not behind:
        return place
    new = columns >= behind
    return rows[new], columns[new] - behind


def _check_words(kind: str, start: str, shared: object, orthonormal: object) -> None:
    for name, value, words in (("kind", kind, ReFTKind), ("start", start, Start)):
        if value not in get_args(words):
            raise ValueError(f"{name} must be one of {', '.join(get_args(words))}; got {value!r}")
    if not isinstance(shared, bool):
        raise ValueError(f"shared must be True or False; got {shared!r}")
    if orthonormal is not None and not isinstance(orthonormal, bool):
        raise ValueError(f"orthonormal must be True, False or None; got {orthonormal!r}")
    if kind == "loreft" and orthonormal is False:
        raise ValueError("orthonormal must be True or None for kind 'loreft': its rows are orthonormal; got False")


def _check_counts(shape: HeadShape, r: object, p: object, s: object) -> None:
    if type(r) is not int or not 1 <= r <= shape.d_model:
        raise ValueError(f"r must be an integer from 1 to d_model = {shape.d_model}; got {r!r}")
    for name, value in (("p", p), ("s", s)):
        if type(value) is not int or value < 0:
            raise ValueError(f"{name} must be an integer ≥ 0; got {value!r}")
    if p == s == 0:
        raise ValueError("p and s are both 0: no position is left to edit")
