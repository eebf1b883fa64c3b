"""Folding: the edit goes into the weights of a plain checkpoint, which costs nothing at inference."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jola_interp._log import logger
from jola_interp.edits import Edit, FullFineTuning, LoRA
from jola_interp.edits.jola import Operation
from jola_interp.edits.lora import key_of
from jola_interp.export import card, stored
from jola_interp.export.affine import Affine, Points, affine, parts_of
from jola_interp.export.carriers import biased, carrier
from jola_interp.export.checking import Check, Linear, as_linear, compare
from jola_interp.export.places import Place, Point, places_of
from jola_interp.export.subject import Subject, opened
from jola_interp.export.written import Export, ExportError, require_vacant, weight_bytes, write_note, writing
from jola_interp.models import Model
from jola_interp.runs import Run

POST_NORM = "post_feedforward_layernorm"


@dataclass(frozen=True, eq=False)
class Change:
    """What is to become of one linear: y = outputs(W inputs(x) + b)."""

    inputs: Affine | None = None
    outputs: Affine | None = None


def fold(
    run: Run | str | Path,
    path: str | Path,
    *,
    model: str | Path | Model | None = None,
    dtype: str | torch.dtype | None = None,
    heads: Iterable[str | tuple[int, int]] | None = None,
    kinds: Iterable[Operation] | None = None,
    strength: float = 1.0,
    check: bool = True,
) -> Export:
    """W_O ← W_O·diag(1 + g_m·m), b_O ← b_O + W_O·(g_a·a), W_O on the right being the base model's: a plain checkpoint.

    It has no cost at inference and is loaded by ``AutoModelForCausalLM.from_pretrained(path)``, without jola_interp.
    The arithmetic is in float64, the result in ``dtype``. Gates are those at inference. Where the architecture has no
    bias at W_O it gets one: by ``attention_bias`` in the configuration (Llama, Qwen 3, Gemma 3, OLMo 2; the other new
    biases are 0), or as a LlamaForCausalLM (Qwen 2, Mistral without a sliding window). Edits at other places are folded
    likewise where that is exact: BitFit, RED, LoRA, full fine-tuning, steering.

    Args:
        run: a Run, or its directory.
        path: where to; must not exist, or be an empty directory. With the checkpoint go tokenizer, generation
            configuration, a model card, and ``jola_export.json``.
        model: to fold into; None is the Run's own.
        dtype: "float32", "bfloat16", …; None is the model's. In half precision W_O·(1 + g·m) is rounded: the drift is
            reported, and ``dtype="float32"`` or :func:`to_peft` avoid it.
        heads, kinds, strength: only a part of the edit, as for ``run.attach``.
        check: compare with the edited model, as loaded back from disk, before the directory appears.

    Returns:
        Where it is and how far from the edited model (:class:`Export`).

    Raises:
        ExportError: an edit that weights cannot hold (ReFT, a scope of some tokens), an architecture without a place
            for its bias (Phi-3), or a difference over its bound: a stored number that is not the float64 fold rounded
            once, or logits (in half precision: a mean KL of over a tenth of the base model's). Nothing is left at
            ``path``.
        FileExistsError: ``path`` is taken.
    """
    target = require_vacant(path)
    subject = opened(run, model, dtype, heads=heads, kinds=kinds, strength=strength)
    result = Folded(subject.base, subject.edit)
    checkpoint = result.checkpoint()
    with writing(target) as scratch:
        checkpoint.save_pretrained(scratch)
        if subject.base.tokenizer is not None:
            subject.base.tokenizer.save_pretrained(scratch)
        found = _checked(subject, result, scratch) if check else None
        name = type(checkpoint).__name__
        size = weight_bytes(scratch)
        made = Export(target, "fold", subject.dtype, name, size, result.layers, found)
        if found is not None and found.bound is None:
            logger.warning(
                "folding in %s rounds weights (W_O z by %.1e of |W_O| |z|): logits move by up to %.2g of %.2g, mean KL "
                "%.1e nats; dtype='float32' or to_peft keep W_O exact", subject.dtype, found.at_o_proj or 0.0,
                found.logits, found.largest_logit, found.kl,
            )  # fmt: skip
        write_note(scratch, made, subject.run, subject.edit, subject.base)
        card.write(scratch, made, subject)
    return made


class Folded:
    """The base model's tensors with the edit in them.

    Attributes:
        tensors: name to new value, of the parameters that are not the base model's.
        layers: those they belong to, such as "L3"; of a whole model "all".
        places: linear, by name, to the points before and behind it.
    """

    def __init__(self, base: Model, edit: Edit):
        self.base, self.hf = base, base.hf
        self.tensors: dict[str, Tensor] = {}
        self.layers: tuple[str, ...] = ()
        self._own = dict(self.hf.named_parameters())
        with torch.no_grad():
            self._whole([part for part in parts_of(edit) if isinstance(part, FullFineTuning)])
            low_rank = [part for part in parts_of(edit) if isinstance(part, LoRA)]
            points = affine(edit)
            self.places = places_of(base, points)
            changes = changes_of(base, points, self.places)
            for name in {*changes, *(name for part in low_rank for name in part.sizes)}:
                self._linear(name, changes.get(name, Change()), low_rank)
        self.layers = self.layers or labels(self.tensors)

    def checkpoint(self) -> Any:
        """The model to be saved: a stock class with the base model's tensors, the new ones, and 0 for other biases."""
        needed = {name.removesuffix(".bias") for name in self.tensors if name.endswith(".bias")}
        made = carrier(self.hf, needed)
        state = {**self.hf.state_dict(), **self.tensors}
        for name, size in made.state_dict().items():
            if name not in state:  # a bias that comes with another
                state[name] = torch.zeros(size.shape, dtype=self.hf.dtype)
        made.load_state_dict(state, assign=True)
        made.tie_weights()
        if self.hf.can_generate():
            made.generation_config = copy.deepcopy(self.hf.generation_config)
        return made.eval()

    def _whole(self, parts: list[FullFineTuning]) -> None:
        """All parameters of a fine-tuned model: θ + s·(θ' − θ)."""
        for part in parts:
            for name, held in part.tensors().items():
                base = self._own[name]
                value = torch.lerp(base.to(held), held, part.strength) if part.strength != 1 else held
                self.tensors[name] = value.to(base.dtype)
            self.layers = ("all",)

    def _linear(self, name: str, change: Change, low_rank: list[LoRA]) -> None:
        """W' and b' of one linear, in float64, then in the dtype of the base model's."""
        module: Any = self.hf.get_submodule(name)
        require_plain(module, name)
        tuned = {leaf: self.tensors[key] for leaf in ("weight", "bias") if (key := f"{name}.{leaf}") in self.tensors}
        weight, bias = as_linear(module, tuned)
        for part in low_rank:
            if name in part.sizes:
                down, up = (held[key_of(name)].detach().double().cpu() for held in (part.A, part.B))
                weight = weight + part.alpha / part.r * (up @ down)
        weight, bias = folded(weight, bias, change)
        self._put(f"{name}.weight", weight if isinstance(module, nn.Linear) else weight.T, module.weight)
        if module.bias is not None or bool(bias.any()):
            self._put(f"{name}.bias", bias, module.weight if module.bias is None else module.bias)

    def _put(self, name: str, value: Tensor, like: Tensor) -> None:
        """Keep ``value`` unless it is the base model's."""
        new = value.to(like.dtype).contiguous()
        own = self._own.get(name)
        if own is None or not torch.equal(new, own.detach().cpu()) or name in self.tensors:
            self.tensors[name] = new


def folded(
    weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"], change: Change
) -> tuple[Float[Tensor, "out in"], Float[Tensor, " out"]]:
    """W' = diag(s_out)·W·diag(s_in), b' = s_out ⊙ (b + W c_in) + c_out: with the W before any scaling."""
    if change.inputs is not None:
        bias = bias + weight @ change.inputs.shift
        weight = weight * change.inputs.scale
    if change.outputs is not None:
        weight = weight * change.outputs.scale[:, None]
        bias = bias * change.outputs.scale + change.outputs.shift
    return weight, bias


def changes_of(base: Model, points: Points, places: Mapping[str, Place]) -> dict[str, Change]:
    """Linear, by name, to what is to become of it.

    Raises:
        ExportError: a change of the residual stream that a norm stands before, or that scales it.
    """
    for (layer, site), given in points.items():
        if site == "residual":
            _require_offset_behind_mlp(base, layer, given)
    return {
        name: Change(_composed(points, place.before), _composed(points, place.behind)) for name, place in places.items()
    }


def _composed(points: Points, order: Iterable[Point]) -> Affine | None:
    """One after another; None of none."""
    found: Affine | None = None
    for point in order:
        found = points[point] if found is None else found.then(points[point])
    return found


def require_plain(module: Any, name: str) -> None:
    """Refuse what is not a linear with floating-point weights at hand."""
    from transformers.pytorch_utils import Conv1D

    if not isinstance(module, nn.Linear | Conv1D):
        raise ExportError(f"{name} is a {type(module).__name__}, no plain linear: nothing can be folded into it")
    if module.weight.is_meta or not module.weight.is_floating_point():
        kept = "offloaded" if module.weight.is_meta else f"quantised ({module.weight.dtype})"
        raise ExportError(f"{name} is {kept}: fold into the model in plain precision, model=load_model(path)")


def labels(names: Iterable[str]) -> tuple[str, ...]:
    """The layers that parameters belong to, as "L3": the first number in a name is that of its layer."""
    numbers = {int(part) for name in names for part in name.split(".")[:4] if part.isdecimal()}
    return tuple(f"L{number}" for number in sorted(numbers))


def _checked(subject: Subject, result: Folded, scratch: Path) -> Check:
    """Compare what ``from_pretrained`` reads back. Raises ExportError over a bound."""
    from transformers import AutoModelForCausalLM

    base = subject.base
    attention = base.hf.config._attn_implementation
    read: Any = AutoModelForCausalLM.from_pretrained(
        scratch, dtype=base.dtype, attn_implementation=attention, output_loading_info=True
    )
    loaded, info = read
    if odd := sorted({*info["missing_keys"], *info["unexpected_keys"]}):
        raise ExportError(f"transformers does not read the checkpoint back as it was written: {odd[0]}")
    if missing := {n.removesuffix(".bias") for n in result.tensors if n.endswith(".bias")} - biased(loaded):
        raise ExportError(f"transformers reads the checkpoint back without the bias of {min(missing)}")
    exported = Model(loaded.to(base.device), base.tokenizer, name=base.name)

    def linear(layer: int) -> Linear:
        return as_linear(exported.o_proj(layer))

    off = stored.off(subject.edit, base, loaded, result.places)
    found = replace(compare(subject.run, subject.edit, base, exported, linear, base.dtype), stored=off)
    subject.require(found)
    return found


def _require_offset_behind_mlp(base: Model, layer: int, given: Affine) -> None:
    if given.scales:
        raise ExportError(f"the residual stream is scaled behind block {layer}: no weights of the block can do that")
    if hasattr(base.component(layer), POST_NORM):
        raise ExportError(
            f"{type(base.hf).__name__} has a norm between the MLP and the residual stream: an offset behind block "
            f"{layer} cannot be folded"
        )
