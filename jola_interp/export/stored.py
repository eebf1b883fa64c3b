"""Whether what was written is the float64 fold, rounded once to the dtype that it is stored in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jola_interp.edits import Edit, FullFineTuning, LoRA
from jola_interp.edits.base import Context
from jola_interp.edits.lora import key_of
from jola_interp.export.affine import parts_of
from jola_interp.export.checking import as_linear
from jola_interp.export.places import Place, Point
from jola_interp.models import Model

EXACT = 1e-12
"""What adding in another order may change in float64, as a share of the sizes that are added up."""
PER_HEAD = ("heads", "query", "key", "value")
"""Sites whose activations are [batch, pos, head, d_head]."""
Exact = tuple[Float[Tensor, "*sizes"], Float[Tensor, "*sizes"]]
"""Numbers in float64, and the sizes that were added up to them."""


@torch.no_grad()
def off(edit: Edit, base: Model, exported: nn.Module, places: Mapping[str, Place]) -> float:
    """max |stored − exact| / (½ ε |exact| + 1e-12 size) over every parameter, ε of its dtype: ≤ 1 if rounded once.

    exact is W' = diag(s_out) W diag(s_in) and b' = e_out(b + W c_in), with c = e(0) and s = e(1) − c, e being the
    edit's own forward at a point and not the arithmetic by which W' and b' were made. Parameters that the edit does not
    change are the base model's, and new biases 0.

    Args:
        edit: on the CPU.
        base: a plain model without an edit.
        exported: what was read back from disk; its parameters have the names of the base model's.
        places: linear, by name, to the points before and behind it.
    """
    again = _Fold(edit, base, places)
    parameters = dict(exported.named_parameters())
    found = [torch.zeros((), dtype=torch.float64)]
    for name in again.linears:
        module = exported.get_submodule(name)
        parameters = {key: value for key, value in parameters.items() if key.rpartition(".")[0] != name}
        for stored, exact in zip(as_linear(module), again.linear(name), strict=True):
            found.append(_off(stored, exact, module.weight.dtype))  # type: ignore[arg-type]
    for name, value in parameters.items():
        found.append(_off(value.detach().to("cpu", torch.float64), again.parameter(name, value), value.dtype))
    return float(torch.stack(found).max())  # NaN where there is one


def _off(stored: Float[Tensor, "*sizes"], exact: Exact, dtype: torch.dtype) -> Float[Tensor, ""]:
    limits = torch.finfo(dtype)
    # Half precisions are rounded by way of float32.
    half = limits.eps / 2 + (torch.finfo(torch.float32).eps / 2 if limits.bits < 32 else 0.0)
    smallest = limits.smallest_normal * limits.eps / 2
    allowed = half * exact[0].abs() + EXACT * exact[1] + max(smallest, 1e-300)
    return ((stored - exact[0]).abs() / allowed).max()


class _Fold:
    """W', b' and all other parameters in float64."""

    def __init__(self, edit: Edit, base: Model, places: Mapping[str, Place]):
        self.edit, self.base, self.places = edit, base, places
        self.own = dict(base.hf.named_parameters(remove_duplicate=False))
        self.tuned = [part for part in parts_of(edit) if isinstance(part, FullFineTuning)]
        self.low_rank = [part for part in parts_of(edit) if isinstance(part, LoRA)]
        self.linears = sorted({*places, *(name for part in self.low_rank for name in part.sizes)})
        self.context = Context()
        self.context.prepared = edit.prepare(self.context, torch.float64)

    def parameter(self, name: str, like: Tensor) -> Exact:
        """What a parameter of no changed linear is to be, before it is rounded."""
        if name not in self.own:
            return (torch.zeros(like.shape, dtype=torch.float64),) * 2
        value = self.own[name].detach().to("cpu", torch.float64)
        size = torch.zeros_like(value)
        for part in self.tuned:
            held = part.tensors()[name]
            exact = torch.lerp(value, held.double(), part.strength)
            if part.strength != 1:  # then live, and so folded, in the precision of θ'
                size = (value.abs() + held.double().abs()) * (torch.finfo(held.dtype).eps / EXACT)
            value = exact
        return value, size

    def linear(self, name: str) -> Iterator[Exact]:
        """W' and b' of a changed one."""
        weight, bias = self._start(name)
        size = weight.abs()
        for part in self.low_rank:
            if name in part.sizes:
                down, up = (held[key_of(name)].detach().double().cpu() for held in (part.A, part.B))
                weight = weight + part.alpha / part.r * (up @ down)
                size = size + abs(part.alpha / part.r) * (up.abs() @ down.abs())
        place = self.places.get(name, Place())
        c_in, s_in = self._affine(place.before, weight.shape[1])
        c_out, s_out = self._affine(place.behind, weight.shape[0])
        shifted = bias + weight @ c_in
        before = bias.abs() + size @ c_in.abs()
        yield weight * s_in * s_out[:, None], size * (1 + s_in.abs()) * (1 + s_out.abs())[:, None]
        yield self._through(place.behind, shifted), before * (1 + s_out.abs()) + c_out.abs()

    def _start(self, name: str) -> tuple[Float[Tensor, "out in"], Float[Tensor, " out"]]:
        """W and b before the parts that lie about them: the base model's, or a fine-tuned model's as it is stored."""
        tuned: dict[str, Tensor] = {}
        for leaf in ("weight", "bias") if self.tuned else ():
            if (own := self.own.get(f"{name}.{leaf}")) is not None:
                tuned[leaf] = self.parameter(f"{name}.{leaf}", own)[0].to(own.dtype)
        return as_linear(self.base.hf.get_submodule(name), tuned)

    def _affine(self, points: Iterable[Point], width: int) -> tuple[Float[Tensor, " width"], Float[Tensor, " width"]]:
        """e(0), and e(1) − e(0)."""
        shift = self._through(points, torch.zeros(width, dtype=torch.float64))
        return shift, self._through(points, torch.ones(width, dtype=torch.float64)) - shift

    def _through(self, points: Iterable[Point], value: Float[Tensor, " width"]) -> Float[Tensor, " width"]:
        """e(value), point after point."""
        for layer, site in points:
            sizes = (1, 1, -1, self.edit.shape.d_head) if site in PER_HEAD else (1, 1, -1)
            value = self.edit(value.view(*sizes), layer, site, self.context).flatten()
        return value
