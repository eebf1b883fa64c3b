"""LoRA: W' = W + (α/r)·B·A on the linears of every block, by the layers of the ``peft`` library."""

from __future__ import annotations

import copy
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from jola_interp.edits.base import Context, Edit, HeadShape, Site, take_over

ALL = "all-linear"
Sizes = Mapping[str, tuple[int, int]]
"""Module name to (d_in, d_out)."""
_ADAPTER = "default"
_ABSENT = object()
_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook",
)  # fmt: skip
"""What a PyTorch module keeps of the hooks on its forward and backward pass."""


class LoRA(Edit):
    """W' = W + (α/r)·B·A on linears, A [r, d_in] and B [d_out, r] in float32 whatever the model's dtype; W is frozen.

    The layers of ``peft`` do the arithmetic, y = W x + (α/r)·B (A x): :meth:`installed` puts one around every linear
    and hands it this edit's A and B. Parameters: Σ r·(d_in + d_out).

    Args:
        shape: the model's head shape.
        r: the rank.
        alpha: α; the change is multiplied by α/r.
        targets: "all-linear" is every linear but the unembedding (the seven of each block, in Llama), or the last parts
            of module names, as a list or as one text with commas: "q_proj,v_proj".
        sizes: module name to (d_in, d_out), as :meth:`of` finds them; without, :meth:`load_tensors` finds them in what
            is stored.

    Raises:
        ValueError: a rank or α that is not positive, or no targets.

    Source: Hu et al. 2021 (arXiv 2106.09685), §4.1.
    """

    type_name: ClassVar[str] = "lora"
    on_weights: ClassVar[bool] = True

    def __init__(
        self,
        shape: HeadShape,
        *,
        r: int = 8,
        alpha: int | float = 16,
        targets: str | Iterable[str] = ALL,
        sizes: Sizes | None = None,
    ):
        super().__init__()
        if isinstance(r, bool) or not isinstance(r, int) or r < 1:
            raise ValueError(f"r must be an integer ≥ 1; got {r!r}")
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
            raise ValueError(f"alpha must be a positive number; got {alpha!r}")
        self.shape, self.r, self.alpha, self.targets = shape, r, alpha, parse_targets(targets)
        self.A, self.B = nn.ParameterDict(), nn.ParameterDict()
        self.sizes: dict[str, tuple[int, int]] = {}
        self._declare(sizes or {})

    @classmethod
    def of(cls, hf: nn.Module, *, r: int = 8, alpha: int | float = 16, targets: str | Iterable[str] = ALL) -> LoRA:
        """A LoRA of the size of a plain Hugging Face model (on "meta" too: then it can be counted).

        Raises:
            ValueError: a target that no linear of the model is named by, or a model that has adapters already.
        """
        from jola_interp.models import _head_shape

        chosen = parse_targets(targets)
        return cls(_head_shape(hf.config), r=r, alpha=alpha, targets=chosen, sizes=linears_of(hf, chosen))

    def points(self) -> list[tuple[int, Site]]:
        return []

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> LoRA:
        """A ~ U(±1/√d_in), which is the Kaiming-uniform that ``peft`` takes, and B = 0: W' is W."""
        if not self.sizes:
            raise ValueError("sizes: this LoRA has not seen a model; make it by LoRA.of(model.hf)")
        for name in self.sizes:
            nn.init.kaiming_uniform_(self.A[key_of(name)], a=math.sqrt(5), generator=generator)
            self.B[key_of(name)].zero_()
        self.initialised = True
        return self

    def forward(self, activation: Tensor, layer: int, site: Site, context: Context) -> Tensor:  # noqa: ARG002
        return activation

    @contextmanager
    def installed(self, module: nn.Module) -> Iterator[None]:
        """Put ``peft`` layers with this edit's own A and B around the linears of ``module``; leaving takes them away.

        Hooks stay at their places: those on a linear act on the whole W' x while the edit is live.

        Raises:
            ValueError: the model lacks a linear of this size, has adapters already, or holds one on another device.
        """
        linears = self._found_in(module)
        flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
        before = vars(module).get("peft_config", _ABSENT)
        lent: list[str] = []
        try:
            self._inject(module)
            _set_flags(flags)  # peft freezes everything else, another edit's parameters too
            for name, linear in linears.items():
                _swap_hooks(linear, module.get_submodule(name))
                lent.append(name)
            yield
        finally:
            for name, linear in linears.items():
                if name in lent:
                    _swap_hooks(linear, module.get_submodule(name))
                _put(module, name, linear)
            vars(module).pop("peft_config", None)
            if before is not _ABSENT:
                vars(module)["peft_config"] = before
            _set_flags(flags)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"vectors": list(self.parameters())}

    def n_parameters(self) -> int:
        return sum(self.r * (d_in + d_out) for d_in, d_out in self.sizes.values())

    def masks(self) -> dict[Site, Tensor]:
        return {}

    def settings(self) -> dict[str, Any]:
        """The switches. The modules and their sizes are not among them: the stored tensors tell."""
        return {"r": self.r, "alpha": self.alpha, "targets": self.targets}

    def tensors(self) -> dict[str, Tensor]:
        """``A.<module>`` [r, d_in] and ``B.<module>`` [d_out, r]."""
        pairs = {"A": self.A, "B": self.B}
        return {f"{which}.{name}": held[key_of(name)].detach() for which, held in pairs.items() for name in self.sizes}

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> LoRA:
        if not self.sizes:
            self._declare(_sizes_in(tensors))
        take_over(self.tensors(), tensors)
        self.initialised = True
        return self

    @torch.no_grad()
    def restricted(
        self,
        heads: Iterable[str | tuple[int, int]] | None = None,
        kinds: Iterable[str] | None = None,
        strength: float = 1.0,
    ) -> LoRA:
        """A copy with a multiple of the change: W + strength·(W' − W).

        Raises:
            ValueError: heads or kinds, which weights have none of, or a strength that is not finite.
        """
        require_whole(self, heads, kinds, strength)
        clone = copy.deepcopy(self)
        for up in clone.B.values():
            up.mul_(strength)
        return clone

    def _declare(self, sizes: Sizes) -> None:
        for name, (d_in, d_out) in sizes.items():
            self.A[key_of(name)] = nn.Parameter(torch.zeros(self.r, d_in))
            self.B[key_of(name)] = nn.Parameter(torch.zeros(d_out, self.r))
        self.sizes = {name: (d_in, d_out) for name, (d_in, d_out) in sizes.items()}

    def _found_in(self, module: nn.Module) -> dict[str, nn.Module]:
        """Name to linear, all of them checked before any is touched."""
        linears = {name: linear for name, linear in _linears(module) if name in self.sizes}
        found = {name: _size(linear) for name, linear in linears.items()}
        if not self.sizes or found != self.sizes:
            odd = sorted(name for name in self.sizes if found.get(name) != self.sizes[name])
            raise ValueError(f"this LoRA is not of this model's size: {', '.join(odd[:3]) or 'it has no sizes yet'}")
        for name, linear in linears.items():
            device, own = _device(linear), self.A[key_of(name)].device
            if device != own:
                raise ValueError(f"{name} lies on {device}, its LoRA on {own}: edit.to({str(device)!r}) first")
        return linears

    def _inject(self, module: nn.Module) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        # A pattern, and not a list of names: peft would first condense the list, and match ends of names.
        names = "|".join(re.escape(name) for name in self.sizes)
        config = LoraConfig(r=self.r, lora_alpha=self.alpha, target_modules=names, lora_dropout=0.0, bias="none")  # type: ignore[arg-type]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")  # peft then sets it as it should be
            # On "meta" peft draws no starting values, which would change the caller's random state.
            inject_adapter_in_model(config, module, _ADAPTER, low_cpu_mem_usage=True)
        for name in self.sizes:
            layer: Any = module.get_submodule(name)
            layer.lora_A[_ADAPTER].weight = self.A[key_of(name)]
            layer.lora_B[_ADAPTER].weight = self.B[key_of(name)]
            layer.train(layer.base_layer.training)


def parse_targets(targets: str | Iterable[str]) -> str | list[str]:
    """ "all-linear", or the last parts of module names. Raises ValueError on none."""
    if isinstance(targets, str):
        if targets == ALL:
            return ALL
        targets = targets.split(",")
    chosen = [str(target).strip() for target in targets]
    if not chosen or not all(chosen):
        raise ValueError(f"targets must be {ALL!r} or names of linears, such as ['q_proj', 'v_proj']; got {chosen}")
    return chosen


def linears_of(hf: nn.Module, targets: str | list[str] = ALL) -> dict[str, tuple[int, int]]:
    """Name to (d_in, d_out) of the linears (GPT-2's Conv1D among them) that ``targets`` names; never the unembedding.

    Raises:
        ValueError: a target that names none, or a model that has adapters of ``peft`` already.
    """
    getter = getattr(hf, "get_output_embeddings", None)
    unembedding = getter() if getter is not None else None
    sizes = {name: _size(linear) for name, linear in _linears(hf) if linear is not unembedding}
    if targets == ALL:
        return sizes
    chosen = {name for target in targets for name in sizes if f".{name}".endswith(f".{target}")}
    if missing := [t for t in targets if not any(f".{name}".endswith(f".{t}") for name in sizes)]:
        known = sorted({name.rpartition(".")[2] for name in sizes})
        raise ValueError(f"targets: no linear is named {', '.join(missing)}; there are {', '.join(known)}")
    return {name: size for name, size in sizes.items() if name in chosen}


def key_of(name: str) -> str:
    """A module's or parameter's name as PyTorch takes it for one of ours: it allows no dots."""
    return name.replace(".", "/")


def require_whole(
    edit: Edit, heads: Iterable[str | tuple[int, int]] | None, kinds: Iterable[str] | None, strength: float
) -> None:
    """Refuse what an edit of weights cannot be cut down to."""
    for name, value in (("heads", heads), ("kinds", kinds)):
        if value is not None:
            raise ValueError(f"{name} must be None for {type(edit).__name__}, which acts on whole weights; got {value}")
    if not math.isfinite(strength):
        raise ValueError(f"strength must be a finite number, got {strength}")


def _linears(hf: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers.pytorch_utils import Conv1D

    for name, module in hf.named_modules():
        if isinstance(module, BaseTunerLayer):
            raise ValueError(f"{name} has an adapter of peft on it already: attach one at a time, or unload the other")
        if isinstance(module, nn.Linear | Conv1D):
            yield name, module


def _size(linear: Any) -> tuple[int, int]:
    """(d_in, d_out); Conv1D keeps its weight the other way round, as [d_in, d_out]."""
    if isinstance(linear, nn.Linear):
        return linear.in_features, linear.out_features
    d_in, d_out = linear.weight.shape
    return d_in, d_out


def _device(linear: nn.Module) -> torch.device:
    return next(linear.parameters()).device


def _sizes_in(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """Name to (d_in, d_out), from ``A.<name>`` [r, d_in] and ``B.<name>`` [d_out, r]."""
    names = [name.removeprefix("A.") for name in tensors if name.startswith("A.")]
    sizes: dict[str, tuple[int, int]] = {}
    for name in names:
        down, up = tensors[f"A.{name}"], tensors.get(f"B.{name}")
        if up is None or down.dim() != 2 or up.dim() != 2:
            raise ValueError(f"{name}: expected A [r, d_in] and B [d_out, r], both of them")
        sizes[name] = (down.shape[1], up.shape[0])
    if not sizes:
        raise ValueError(f"tensors: expected A.<module> and B.<module>, found {sorted(tensors)[:3]}")
    return sizes


def _put(module: nn.Module, name: str, child: nn.Module) -> None:
    """Make ``child`` the module of that name again."""
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, child)


def _swap_hooks(first: nn.Module, second: nn.Module) -> None:
    """Each gets the other's hooks, as the same objects: handles that remove them go on working."""
    for name in _HOOKS:
        vars(first)[name], vars(second)[name] = vars(second)[name], vars(first)[name]


def _set_flags(flags: Iterable[tuple[nn.Parameter, bool]]) -> None:
    for parameter, flag in flags:
        parameter.requires_grad_(flag)
