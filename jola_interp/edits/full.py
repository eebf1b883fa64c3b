"""Full fine-tuning: θ' = θ + Δ for every parameter of a model, held beside the model, whose own stay as they are."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from jola_interp.edits.base import Context, Edit, HeadShape, Site, take_over
from jola_interp.edits.lora import key_of, require_whole


class FullFineTuning(Edit):
    """θ' = θ + Δ for all parameters θ of a model. Held, trained and stored is θ', which starts at θ.

    θ' is float32 where the model is of less: at the learning rates of fine-tuning, rounding would swallow the steps of
    bfloat16 weights. Such a model then computes with θ' rounded to its own dtype, and the gradients that arrive there
    are added up in float32. Memory: beside the model, θ', its gradient, AdamW's two moments, and what ``fit`` keeps of
    all these to go back to. That is for small models.

    Args:
        shape: the model's head shape.
        strength: what acts is θ + strength·(θ' − θ).
        like: name to a tensor of the shape and dtype of each parameter, as :meth:`of` reads them; without,
            :meth:`load_tensors` finds them in what is stored.
    """

    type_name: ClassVar[str] = "full"
    on_weights: ClassVar[bool] = True

    def __init__(self, shape: HeadShape, *, strength: float = 1.0, like: Mapping[str, Tensor] | None = None):
        super().__init__()
        require_whole(self, None, None, strength)
        self.shape, self.strength = shape, strength
        self.theta = nn.ParameterDict()
        self.names: list[str] = []
        self._base: weakref.ref[nn.Module] | None = None
        for name, value in (like or {}).items():
            self._hold(name, torch.empty_like(value, dtype=_held(name, value), device="meta"))

    @classmethod
    def of(cls, hf: nn.Module) -> FullFineTuning:
        """For a plain Hugging Face model. Its values are copied by :meth:`initialise`, until when this is a size only.

        Raises:
            ValueError: a quantised model.
        """
        from jola_interp.models import _head_shape

        made = cls(_head_shape(hf.config), like=dict(hf.named_parameters()))  # tied ones are named once
        made._base = weakref.ref(hf)
        return made

    def points(self) -> list[tuple[int, Site]]:
        return []

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> FullFineTuning:  # noqa: ARG002
        """θ' = θ, as the model holds it now. Nothing is drawn.

        Raises:
            ValueError: the model is gone, or has no weights but only their sizes.
        """
        base = None if self._base is None else self._base()
        if base is None:
            raise ValueError("this edit knows no model to start from; make it by FullFineTuning.of(model.hf)")
        found = dict(base.named_parameters())
        if empty := [name for name in self.names if found[name].is_meta]:
            raise ValueError(f"the model holds sizes only: {empty[0]} lies on 'meta'")
        for name in self.names:
            self._hold(name, found[name].detach().to(_held(name, found[name]), copy=True))
        self.initialised = True
        return self

    def forward(self, activation: Tensor, layer: int, site: Site, context: Context) -> Tensor:  # noqa: ARG002
        return activation

    @contextmanager
    def installed(self, module: nn.Module) -> Iterator[None]:
        """Let ``module`` compute with θ'; leaving puts its own Parameter objects back. Tied ones stay tied.

        Raises:
            ValueError: another model's names, shapes or device, or no values yet.
        """
        base = self._found_in(module)
        places = [
            (owner, leaf, parameter)
            for owner in module.modules()
            for leaf, parameter in owner._parameters.items()
            if parameter is not None
        ]
        acting = {id(base[name]): self._acting(base[name], name) for name in self.names}
        rounded = [pair for pair in acting.values() if pair.parameter is not pair.held]
        handle = module.register_forward_pre_hook(_Refresh(rounded))
        try:
            for owner, leaf, parameter in places:
                owner._parameters[leaf] = acting[id(parameter)].parameter
            yield
        finally:
            for owner, leaf, parameter in places:
                owner._parameters[leaf] = parameter
            handle.remove()

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"vectors": list(self.theta.values())}

    def n_parameters(self) -> int:
        return sum(value.numel() for value in self.theta.values())

    def masks(self) -> dict[Site, Tensor]:
        return {}

    def overlaps(self, other: Edit) -> bool:
        """Of two only the second would act."""
        return isinstance(other, FullFineTuning)

    def settings(self) -> dict[str, Any]:
        """The strength. Names and sizes are not among the settings: the stored tensors tell."""
        return {"strength": self.strength}

    def tensors(self) -> dict[str, Tensor]:
        """θ' by the model's own names; tied ones once."""
        return {name: self.theta[key_of(name)].detach() for name in self.names}

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> FullFineTuning:
        expected = self.tensors() if self.names else tensors
        fresh = {name: torch.empty_like(v, dtype=_held(name, v), device="cpu") for name, v in expected.items()}
        if not fresh:
            raise ValueError("tensors: expected the parameters of a model, found none")
        take_over(fresh, tensors)
        for name, value in fresh.items():
            self._hold(name, value)
        self.initialised = True
        return self

    def restricted(
        self,
        heads: Iterable[str | tuple[int, int]] | None = None,
        kinds: Iterable[str] | None = None,
        strength: float = 1.0,
    ) -> FullFineTuning:
        """A copy with a multiple of the change: θ + strength·(θ' − θ).

        Raises:
            ValueError: heads or kinds, which weights have none of, or a strength that is not finite.
        """
        require_whole(self, heads, kinds, strength)
        clone = copy.deepcopy(self)
        clone.strength = self.strength * strength
        return clone

    def _hold(self, name: str, value: Tensor) -> None:
        """Make ``value`` the θ' of that name, trainable if the one before was."""
        key = key_of(name)
        trains = self.theta[key].requires_grad if key in self.theta else True
        self.theta[key] = nn.Parameter(value, requires_grad=trains)
        if name not in self.names:
            self.names.append(name)

    def _found_in(self, module: nn.Module) -> dict[str, nn.Parameter]:
        """Name to parameter of the model, all of them checked before any is touched."""
        base, own = dict(module.named_parameters()), self.tensors()
        sizes = {name: value.shape for name, value in own.items()}
        if sizes != {name: value.shape for name, value in base.items()}:
            odd = sorted(n for n in sizes.keys() | base.keys() if n not in base or sizes.get(n) != base[n].shape)
            raise ValueError(f"this edit holds other parameters than the model: {', '.join(odd[:3])}")
        for name, value in own.items():
            if value.is_meta:
                raise ValueError("this edit holds sizes only: call initialise, load_tensors, or fit")
            if value.device != base[name].device:
                raise ValueError(f"{name} lies on {base[name].device}, its copy on {value.device}: edit.to(...) first")
        return base

    def _acting(self, base: nn.Parameter, name: str) -> _Acting:
        held = self.theta[key_of(name)]
        return _Acting(held, base, self.strength)


class _Acting:
    """One parameter while the edit is live: θ' itself, or its image θ + s·(θ' − θ) in the model's dtype.

    Attributes:
        held: θ', which trains.
        parameter: what the model computes with. If that is an image, its gradient goes to ``held``.
    """

    def __init__(self, held: nn.Parameter, base: nn.Parameter, strength: float):
        self.held, self.base, self.strength = held, base, strength
        self.parameter, self.seen = held, -1
        if strength == 1 and held.dtype == base.dtype:
            return
        self.parameter = nn.Parameter(torch.empty_like(base), requires_grad=held.requires_grad)
        if held.requires_grad:
            self.parameter.register_post_accumulate_grad_hook(self._hand_on)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Follow θ', if it has changed since the last time."""
        if self.held._version == self.seen:
            return
        self.seen = self.held._version
        if self.strength == 1:
            self.parameter.copy_(self.held)
        else:
            base = self.base.to(self.held.dtype)
            self.parameter.copy_(torch.lerp(base, self.held.detach(), self.strength))

    def _hand_on(self, image: Tensor) -> None:
        if image.grad is None:
            return
        gradient = image.grad.to(self.held.dtype) * self.strength
        self.held.grad = gradient if self.held.grad is None else self.held.grad + gradient
        image.grad = None


class _Refresh:
    """A forward pre-hook: images follow what the optimiser has done to θ' since the last pass."""

    def __init__(self, images: Iterable[_Acting]):
        self.images = tuple(images)

    def __call__(self, _module: nn.Module, _args: Any) -> None:
        for image in self.images:
            image.refresh()


def _held(name: str, parameter: Tensor) -> torch.dtype:
    """The dtype in which θ' is held."""
    if not parameter.is_floating_point():
        raise ValueError(f"{name} is {parameter.dtype}: a quantised model cannot be trained whole")
    return torch.promote_types(parameter.dtype, torch.float32)
