"""How far an export is from the edited model: at the output projections, and in the logits of padded rows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from jola_interp.backends import attach
from jola_interp.batching import left_pad, pad_id
from jola_interp.edits.base import Context, Edit
from jola_interp.evaluation.generation import encode_prompts
from jola_interp.models import Model

if TYPE_CHECKING:
    from jola_interp.runs import Run

BOUNDS: dict[torch.dtype, float] = {torch.float64: 1e-5, torch.float32: 1e-5}
"""Largest difference of logits, as a share of the largest logit. The norms of most models compute in float32 also where
the rest is float64. Half precisions have no bound: there a fold rounds weights, and KL_SHARE is asked for."""
AT_O_PROJ = 1e-12
"""Largest difference at W_O, in float64, beyond the rounding of what is stored."""
KL_SHARE = 0.1
"""In half precision, the most that mean KL(edited ‖ exported) may be of mean KL(edited ‖ base). KL grows with the
square of a small difference: an export that has lost a third of what the edit does to the logits is at 1/9, one that
has lost all of it at 1, and one whose rounding alone comes to a tenth is no longer that edit, whatever the reason."""
ROWS, LONGEST, SHORTER = 4, 48, 6
"""Rows that are compared, tokens of the longest, and by how much each is shorter than the one before it."""
Linear = tuple[Float[Tensor, "out in"], Float[Tensor, " out"]]
"""W and b in float64."""


@dataclass(frozen=True)
class Check:
    """The exported against the edited model, both in the export's precision.

    Attributes:
        logits: largest difference of a logit, over rows that are padded on the left and on the right.
        largest_logit: of the edited model.
        kl: mean over tokens of KL(edited ‖ exported), in nats.
        kl_base: mean over tokens of KL(edited ‖ base): how much there is to lose.
        bound: what ``logits``/``largest_logit`` may be; None in half precision, where ``logits`` and ``kl`` are the
            drift that comes of rounding, and ``kl`` may be ``KL_SHARE`` of ``kl_base``.
        at_o_proj: largest difference behind W_O on random z in float64, as a share of |W_O| |z|; None for edits
            without heads.
        at_o_proj_bound: what that may be: 1e-12, or the rounding of the stored numbers.
        tokens: how many were compared.
        stored: of a checkpoint, the largest difference of any stored number from the float64 fold, in units of what
            one rounding to the stored dtype may do (:func:`jola_interp.export.stored.off`): at most 1.
    """

    logits: float
    largest_logit: float
    kl: float
    kl_base: float
    bound: float | None
    at_o_proj: float | None
    at_o_proj_bound: float
    tokens: int
    stored: float | None = None

    @property
    def share(self) -> float:
        """``logits``/``largest_logit``."""
        return self.logits / self.largest_logit if self.largest_logit else self.logits

    def in_words(self) -> str:
        """The differences in one sentence."""
        behind = "" if self.at_o_proj is None else f"; W_O z by {self.at_o_proj:.1e} of |W_O| |z|, in float64"
        return (
            f"on {self.tokens} tokens, padded on the left and on the right, logits differ from the edited model's by "
            f"at most {self.logits:.2g} (largest: {self.largest_logit:.3g}), mean KL {self.kl:.1e} nats (of the base "
            f"model: {self.kl_base:.1e}){behind}"
        )

    @property
    def failure(self) -> str | None:
        """What is over its bound, with the numbers; None if nothing is."""
        if self.at_o_proj is not None and not self.at_o_proj <= self.at_o_proj_bound:
            return f"W_O z differs by {self.at_o_proj:.1e} of |W_O| |z|; the bound is {self.at_o_proj_bound:.0e}"
        if self.stored is not None and not self.stored <= 1:
            return f"a stored number is {self.stored:.1e} roundings away from the float64 fold; the bound is 1"
        if self.bound is not None and not self.share <= self.bound:
            return f"logits differ by {self.share:.1e} of the largest; the bound is {self.bound:.0e}"
        if self.bound is None and not self.kl <= KL_SHARE * self.kl_base:
            return (
                f"mean KL to the edited model is {self.kl:.1e} nats, and that of the base model {self.kl_base:.1e}: "
                f"the bound is {KL_SHARE:.0%} of it; dtype='float32' does not round the edit away"
            )
        return None


def compare(
    run: Run,
    edit: Edit,
    base: Model,
    exported: Model,
    linear: Callable[[int], Linear],
    stored: torch.dtype,
) -> Check:
    """Measure the difference.

    Args:
        run: whose test rows are read, if it keeps any.
        edit: on the CPU.
        base: a plain model; the edit is attached to it.
        exported: the model as loaded back.
        linear: layer to W_O and its bias (0 where it has none) as loaded back.
        stored: the dtype in which those were written.
    """
    behind = None if edit.on_weights else at_o_proj(edit, base, linear)
    live = _on(edit, base)
    worst, largest, kl, kl_base, tokens = 0.0, 0.0, 0.0, 0.0, 0
    for ids, mask in _batches(_rows(run, base), pad_id(base.tokenizer) if base.tokenizer else 0, base.device):
        with torch.no_grad(), attach(live, base, "hooks") as attached:
            expected = base.logits(ids, mask)[mask.bool()]  # [token, vocab]
        attached.check_live()
        with torch.no_grad():
            found, plain = (model.logits(ids, mask)[mask.bool()] for model in (exported, base))
        worst = max(worst, float((found.double() - expected.double()).abs().max()))
        largest = max(largest, float(expected.abs().max()))
        kl += float(_kl(expected, found))
        kl_base += float(_kl(expected, plain))
        tokens += len(expected)
    rounding = max(AT_O_PROJ, torch.finfo(stored).eps)
    mean, mean_base = (max(0.0, total / tokens) for total in (kl, kl_base))
    return Check(worst, largest, mean, mean_base, BOUNDS.get(base.dtype), behind, rounding, tokens)


@torch.no_grad()
def at_o_proj(edit: Edit, base: Model, linear: Callable[[int], Linear]) -> float | None:
    """max |W' z + b' − e(W e(z) + b)| / (|W'| |z| + |W| |z| + |b'|) over layers, random z, in float64.

    e is the edit's own forward, at z and behind W_O: nothing of this is the arithmetic by which W' was made.
    """
    context = Context()
    context.prepared = edit.prepare(context, torch.float64)
    acting = {point for point in edit.points() if point[1] in ("heads", "attention")}
    generator = torch.Generator().manual_seed(0)
    largest = None
    for layer in sorted({layer for layer, _ in acting}):
        shape = (1, 16, edit.shape.heads, edit.shape.d_head)
        z = torch.randn(shape, generator=generator, dtype=torch.float64)
        weight, bias = as_linear(base.o_proj(layer))
        edited = edit(z, layer, "heads", context) if (layer, "heads") in acting else z
        expected = edited.flatten(-2) @ weight.T + bias  # [1, 16, d_model]
        if (layer, "attention") in acting:
            expected = edit(expected, layer, "attention", context)
        new, offset = linear(layer)
        flat = z.flatten(-2)
        size = flat.abs() @ (new.abs() + weight.abs()).T + offset.abs()
        difference = ((flat @ new.T + offset - expected).abs() / size.clamp(min=1e-300)).max()
        largest = max(largest or 0.0, float(difference))
    return largest


def as_linear(module: Any, own: Mapping[str, Tensor] | None = None) -> Linear:
    """W [out, in] and b [out] of a linear in float64 on the CPU; b is 0 where there is none.

    Args:
        module: of PyTorch, or GPT-2's Conv1D.
        own: "weight" or "bias" to a tensor in place of the module's.
    """
    held = {"weight": module.weight, "bias": module.bias, **(own or {})}
    weight = held["weight"].detach().to("cpu", torch.float64)
    if not isinstance(module, nn.Linear):
        weight = weight.T  # Conv1D keeps [in, out]
    bias = held["bias"]
    return weight, weight.new_zeros(len(weight)) if bias is None else bias.detach().to("cpu", torch.float64)


def _on(edit: Edit, base: Model) -> Edit:
    return copy.deepcopy(edit).to(base.device).requires_grad_(False)


def _kl(edited: Float[Tensor, "token vocab"], exported: Float[Tensor, "token vocab"]) -> Tensor:
    """Σ over tokens of KL(edited ‖ exported)."""
    total = edited.new_zeros((), dtype=torch.float64)
    for one, other in zip(edited.split(64), exported.split(64), strict=True):
        first, second = one.double().log_softmax(-1), other.double().log_softmax(-1)
        total += (first.exp() * (first - second)).sum()
    return total


def _rows(run: Run, model: Model) -> list[list[int]]:
    """A few prompts of the Run's test rows, or random tokens; of different lengths, so that there is padding."""
    asked = [str(row["instruction"]) for row in run.predictions[:ROWS]]
    rows: list[list[int]] = []
    if model.tokenizer is not None and len(asked) == ROWS:
        options = run.config["train"]
        rows = [list(ids) for ids in encode_prompts(model, asked, options["wrapper"], options["max_length"])[0]]
    common = min([LONGEST, *map(len, rows)])
    if not rows or common <= SHORTER * (ROWS - 1):
        generator, common = torch.Generator().manual_seed(0), LONGEST
        rows = torch.randint(model.vocab_size, (ROWS, LONGEST), generator=generator).tolist()
    return [row[-common:][SHORTER * place :] for place, row in enumerate(rows)]


def _batches(
    rows: Sequence[Sequence[int]], pad: int, device: torch.device
) -> list[tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]]:
    """(input_ids, attention_mask) with padding on the left, and on the right."""
    backwards = left_pad([row[::-1] for row in rows], pad)
    pairs = [left_pad(rows, pad), (backwards[0].flip(1), backwards[1].flip(1))]
    return [(ids.to(device), mask.to(device)) for ids, mask in pairs]
