"""The logit lens of what W_O writes: through the final norm, linearised, and the unembedding.

    Δlogits = κ ⊙ U · mean_p N'(r_p) · v                 less its mean over the vocabulary
    N'(r) v = w ⊙ (c(v) − r̂ · mean(r̂ ⊙ c(v))) / s(r)     c(v) = v − mean(v) for a LayerNorm, v for an RMSNorm;
                                                         s(r) = sqrt(mean c(r)² + ε), r̂ = c(r)/s(r)

U is the unembedding, w the weight of the final norm, r_p the stream that enters it. N' is the whole derivative of the
norm. (With the scale frozen, as is usual, the term along r̂ is missing.) A norm between W_O and the stream (Gemma 2
and 3, OLMo 2, GLM 4) is linearised in the same way at what enters it, a residual multiplier (Granite) is a factor. κ is
a logit scale (Cohere, Granite), measured, times the mean over p of 1 − (logit/cap)² where logits are capped (Gemma 2:
the mean of products is taken as the product of means). Without a place r: N' v = w ⊙ c(v), of which only the direction
means something. Source: nostalgebraist 2020.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from jola_interp.models import Model, _unwrapped

VOCABULARY = 16384
"""Rows of the unembedding that are multiplied at once."""
AGREE, ROUNDINGS = 1e-3, 8
"""How far norm and unembedding, put together here, may miss the model's own logits: this share of the largest, or so
many roundings of its dtype."""
_LARGE, _SMALL = 1e3, 1e-4
"""Sizes of the vectors by which a norm is read: its ε is nothing beside the square of one, and all beside the other."""


@dataclass(frozen=True, eq=False)
class Point:
    """Where a norm is linearised: r̂ = c(r)/s(r) and s(r) of ``n`` places."""

    unit: Float[Tensor, "n d_model"]
    scale: Float[Tensor, "n 1"]


class LinearNorm:
    """N(x) = w ⊙ c(x)/s(x) + b, read off a module by what it does, and its derivative at given places.

    Attributes:
        weight, bias: w and b, float32, whatever the module makes of its parameters (Gemma: 1 + weight).
        centred: whether c takes the mean away (LayerNorm) or does nothing (RMSNorm).
        epsilon: ε.

    Raises:
        ValueError: the module is neither.
    """

    @torch.no_grad()
    def __init__(self, module: nn.Module, width: int, device: torch.device):
        self.module = module
        probe = _balanced(width).to(device)
        self.bias = self.plain(torch.zeros_like(probe))
        written = self.plain(_LARGE * probe) - self.bias
        self.weight = written * probe.square().mean().sqrt() / probe
        moved = self.plain(_LARGE * (probe + 1)) - self.bias
        self.centred = torch.allclose(moved, written, rtol=AGREE, atol=AGREE * float(written.abs().max()))
        self.epsilon = self._epsilon(_SMALL * probe)
        self._check(width, device)

    def at(self, stream: Float[Tensor, "n d_model"]) -> Point:
        """The places of some vectors."""
        centred = self._centred(stream)
        scale = (centred.square().mean(-1, keepdim=True) + self.epsilon).sqrt()
        return Point(centred / scale, scale)

    def forward(self, v: Float[Tensor, "n d_model"], at: Point | None) -> Float[Tensor, "n d_model"]:
        """N' v; w ⊙ c(v) without a place."""
        centred = self._centred(v)
        return self.weight * (centred if at is None else _less(centred, at))

    def backward(self, u: Float[Tensor, "n d_model"], at: Point | None) -> Float[Tensor, "n d_model"]:
        """N'ᵀ u."""
        weighted = self.weight * u
        return self._centred(weighted if at is None else _less(weighted, at))

    def _centred(self, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def plain(self, x: Float[Tensor, "*n d_model"]) -> Float[Tensor, "*n d_model"]:
        """N(x) of the module itself, in float32."""
        parameters = {name: value.float() for name, value in self.module.named_parameters()}
        return cast(Tensor, torch.func.functional_call(self.module, parameters, (x,))).to(x)

    def _epsilon(self, x: Float[Tensor, " d_model"]) -> float:
        """s(x)² − mean x² of a small vector."""
        weighted, written = self.weight * x, self.plain(x) - self.bias
        scale = weighted.square().sum() / (weighted * written).sum()
        return max(float(scale.square() - x.square().mean()), 0.0)

    def _check(self, width: int, device: torch.device) -> None:
        x = torch.randn(4, width, generator=torch.Generator().manual_seed(0)).to(device)
        point, written = self.at(x), self.plain(x)
        if not torch.allclose(self.weight * point.unit + self.bias, written, atol=AGREE * float(written.abs().max())):
            raise ValueError(f"readout: {type(self.module).__name__} is neither a LayerNorm nor an RMSNorm")


class Lens:
    """The way from what W_O writes to the logits of one model, plain or booted.

    Attributes:
        model: whose.
        modules: name to the module of each norm as it is called in a pass: "final", and a layer's where one stands
            between W_O and the stream.
        scale: of the logits over what the unembedding gives.
        cap: the softcap of the logits; None is none.

    Raises:
        ValueError: no final norm or unembedding is found, or they do not give the model's logits.
    """

    def __init__(self, model: Model):
        self.model = model
        config = model.hf.config.get_text_config()
        self.cap: float | None = getattr(config, "final_logit_softcapping", None)
        self.residual = float(getattr(config, "residual_multiplier", None) or 1.0)
        unembedding = _unwrapped(model.hf.get_output_embeddings())
        weight = getattr(unembedding, "weight", None)
        shape, final = model.head_shape, component(model, "ln_final")
        if final is None or weight is None or not weight.is_floating_point() or weight.shape[1] != shape.d_model:
            raise ValueError(
                f"readout: {model.name} ({type(model.hf).__name__}) has no final norm and plain unembedding "
                f"[vocabulary, {shape.d_model}] that could be found"
            )
        self.weight: Tensor = weight
        self.bias: Tensor | None = getattr(unembedding, "bias", None)
        found = {layer: component(model, f"blocks.{layer}.ln1_post") for layer in range(shape.layers)}
        self.modules: dict[str | int, nn.Module] = {"final": final}
        self.modules |= {layer: module for layer, module in found.items() if module is not None}
        self.norms = {
            name: LinearNorm(_unwrapped(module), shape.d_model, weight.device) for name, module in self.modules.items()
        }
        self.points: dict[str | int, Point] = {}
        self.slope: Tensor | float = 1.0
        self.scale = self._calibrated()

    @property
    def vocabulary(self) -> int:
        """How many tokens have a logit."""
        return int(self.weight.shape[0])

    def place(
        self, streams: Mapping[str | int, Float[Tensor, "n d_model"]], slope: Float[Tensor, " vocab"] | float = 1.0
    ) -> None:
        """Linearise every norm at what enters it, and the cap by its mean slope there."""
        self.points = {name: self.norms[name].at(stream) for name, stream in streams.items()}
        self.slope = 1.0 if self.cap is None else slope

    def through(self, written: Float[Tensor, "k d_model"], layer: int) -> Float[Tensor, "k d_model"]:
        """What the unembedding is given of vectors that W_O writes at a layer: the mean over places."""
        means = []
        for v in written.to(self.weight.device):
            for name in (layer, "final"):
                if name in self.norms:
                    v = self.norms[name].forward(v.expand(1, -1) if v.dim() == 1 else v, self.points.get(name))
            means.append(self.residual * v.mean(0))
        return torch.stack(means)

    def logits(self, normed: Float[Tensor, "k d_model"]) -> Float[Tensor, "k vocab"]:
        """Δlogits of them, less their mean over the vocabulary."""
        change = self._products(normed) * self.scale * self.slope
        return change - change.mean(-1, keepdim=True)

    def towards(
        self, tokens: Int[Tensor, " token"], weights: Float[Tensor, " token"], logits: Float[Tensor, " token"]
    ) -> Float[Tensor, " d_model"]:
        """u with Σ weight · Δlogit = u · (what the unembedding is given), at a place with these logits."""
        slope = 1.0 if self.cap is None else 1 - (logits / self.cap).square()
        return (weights * slope * self.scale) @ self.weight[tokens].float()

    def _products(self, normed: Float[Tensor, "k d_model"]) -> Float[Tensor, "k vocab"]:
        """With the unembedding, in float32, some of its rows at a time."""
        return torch.cat([normed @ part.float().T for part in self.weight.split(VOCABULARY)], -1)

    def _calibrated(self) -> float:
        """The scale, on two rows of six tokens; refuses logits that are no scaled (and capped) unembedding."""
        model = self.model
        ids = torch.arange(1, 13, device=model.device).view(2, 6) % model.vocab_size
        with inputs({"final": self.modules["final"]}) as kept:
            logits = model.logits(ids, torch.ones_like(ids)).float()
        normed = self.norms["final"].plain(kept["final"].float().to(self.weight.device)).flatten(0, 1)
        plain = (self._products(normed) + (0.0 if self.bias is None else self.bias.float())).to(logits)
        plain = plain.view_as(logits)
        if self.cap is not None:
            scale, plain = 1.0, self.cap * torch.tanh(plain / self.cap)
        else:
            scale = float((plain * logits).sum() / plain.square().sum())
        worst = float((logits - scale * plain).abs().max() / logits.abs().max())
        if not worst <= max(AGREE, ROUNDINGS * torch.finfo(model.dtype).eps):
            raise ValueError(
                f"readout: the logits of {model.name} ({type(model.hf).__name__}) are not the unembedding of its final "
                f"norm: they differ by {worst:.2g} of the largest"
            )
        return scale


def _less(x: Tensor, at: Point) -> Tensor:
    """(x − r̂ · mean(r̂ ⊙ x))/s."""
    return (x - at.unit * (at.unit * x).mean(-1, keepdim=True)) / at.scale


def _balanced(width: int) -> Float[Tensor, " width"]:
    """±1 in turn, with mean 0 also where the width is odd."""
    x = torch.ones(width)
    x[1::2] = -1
    if width % 2 and width > 1:
        x[-3:] = torch.tensor([1.0, 1.0, -2.0])
    return x


def component(model: Model, path: str) -> nn.Module | None:
    """The module at a TransformerLens path as it is called in a pass, booted or not; None if there is none."""
    try:
        if not model.booted:
            return model.hf.get_submodule(model._path(path))
        found: Any = model.bridge
        for name in path.split("."):
            found = found[int(name)] if name.isdigit() else getattr(found, name)
        return found if isinstance(found, nn.Module) else None
    except (AttributeError, IndexError, KeyError, ValueError):
        return None


@contextmanager
def inputs(modules: Mapping[str | int, nn.Module]) -> Iterator[dict[str | int, Tensor]]:
    """Keep what enters each module in the next pass."""
    kept: dict[str | int, Tensor] = {}

    def keeping(name: str | int) -> Any:
        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            kept[name] = (args[0] if args else next(iter(kwargs.values()))).detach()

        return keep

    handles = [m.register_forward_pre_hook(keeping(name), with_kwargs=True) for name, m in modules.items()]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()
