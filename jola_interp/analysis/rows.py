"""The rows that an analysis reads, and what one pass over a batch of them shows: looked at, and let go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from jola_interp._log import logger
from jola_interp.backends import BackendName, attach
from jola_interp.backends.restart import blocks
from jola_interp.batching import Batch, Encoded, batches_of, collate, encode_examples, pad_id
from jola_interp.edits.base import Context, Site
from jola_interp.edits.jola import JoLA
from jola_interp.models import Model, anew
from jola_interp.runs import Run
from jola_interp.tasks import Example, Task, load_task

Split = Literal["validation", "test"]


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a task, encoded as in a Run's training, with the model to read them by.

    Attributes:
        run, model, task: checked against each other.
        examples: the rows.
        encoded: their tokens.
        backend: how to reach the model's activations.
    """

    run: Run
    model: Model
    task: Task
    examples: tuple[Example, ...]
    encoded: tuple[Encoded, ...]
    backend: BackendName

    def batches(self, size: int) -> Iterator[tuple[list[int], Batch]]:
        """Places in ``encoded`` and the batch of them, rows of like length together."""
        for places in batches_of([len(row.ids) for row in self.encoded], size):
            yield places, collate([self.encoded[i] for i in places], self.pad, self.model.device)

    @property
    def pad(self) -> int:
        """The token that fills rows up."""
        return pad_id(self.model.tokenizer) if self.model.tokenizer is not None else 0


def prepared(
    run: Run, task: str | Task, model: str | Model | None, *, split: Split = "test", rows: int = 64, what: str
) -> Rows:
    """The model, without an edit and as the Run's backend wants it, and the first rows of a split.

    Raises:
        ValueError: a field outside its range, an empty split, a model without tokenizer or with an edit on it.
    """
    if split not in get_args(Split):
        raise ValueError(f"split must be one of {', '.join(get_args(Split))}; got {split!r}")
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        raise ValueError(f"rows must be an integer ≥ 1; got {rows!r}")
    data = task if isinstance(task, Task) else load_task(task)
    examples = getattr(data, split)[:rows]
    if not examples:
        raise ValueError(f"task {data.name!r}: the {split} split is empty")
    if len(examples) < rows:
        logger.info("%s: %d %s rows, all that there are", what, len(examples), split)
    target = run.ready(model, what)
    if target.tokenizer is None:
        raise ValueError("the model has no tokenizer: load_model(model, tokenizer=...)")
    train = run.config["train"]
    encoded = encode_examples(
        examples,
        target.tokenizer,
        wrapper=train["wrapper"],
        max_length=train["max_length"],
        eos=train["eos"],
        template=data.template if train["answers"] == "worded" else "{answer}",
    )
    backend = "lens" if target.booted else cast(BackendName, run.config["backend"])
    return Rows(run, target, data, tuple(examples), tuple(encoded), backend)


def same_task(run: Run, task: str | Path | Task | None) -> Task:
    """The task of a Run, with the rows that it was trained on; None loads it by its name and recorded sizes.

    Raises:
        ValueError: another task, or other rows.
    """
    recorded = run.config["task"]
    if task is None:
        sizes = {f"n_{split}": size for split, size in recorded["sizes"].items() if size}
        task = load_task(
            recorded["name"], **sizes, **({"seed": recorded["seed"]} if recorded["seed"] is not None else {})
        )
    data = task if isinstance(task, Task) else load_task(task)
    if data.fingerprint != recorded["fingerprint"]:
        raise ValueError(
            f"task: {data.name!r} has the rows {data.fingerprint[:12]}, the Run was trained on {recorded['name']!r} "
            f"with {recorded['fingerprint'][:12]}: hand in the same Task"
        )
    return data


def precise(model: Model) -> Model:
    """The same weights in float32, loaded again where the model knows where from; else the model as it is.

    Tokenizer, device and what it was loaded with (``device_map``, ``revision``, ``attn_implementation``, …) stay.
    """
    known = model.source is not None and model.dtype != torch.float32
    return anew(model, "float32") if known else model


@dataclass(frozen=True, eq=False)
class Seen:
    """What the passes over one batch showed; padding is where ``real`` is False.

    Attributes:
        places: which of the rows.
        ids, real, prompt, first: [row, pos] tokens; whether it is one, is of the prompt, is the row's first.
        base: [layer] z of the base model, [row, pos, head, d_head].
        before: [layer] z as it reaches the edit in the edited pass (edits of lower layers have moved it).
        after: [layer] z' = edit(z) in the same pass.
        residual: [layer] the stream that enters each block of the base model, [row, pos, d_model].
        other_before, other_after: ``before`` and ``after`` of the other edit's pass; None where none was asked for.
    """

    places: list[int]
    ids: Int[Tensor, "row pos"]
    real: Bool[Tensor, "row pos"]
    prompt: Bool[Tensor, "row pos"]
    first: Bool[Tensor, "row pos"]
    base: list[Float[Tensor, "row pos head d_head"]]
    before: list[Float[Tensor, "row pos head d_head"]]
    after: list[Float[Tensor, "row pos head d_head"]]
    residual: list[Float[Tensor, "row pos d_model"]]
    other_before: list[Float[Tensor, "row pos head d_head"]] | None = None
    other_after: list[Float[Tensor, "row pos head d_head"]] | None = None


@torch.no_grad()
def watched(rows: Rows, batch_size: int = 4, *, edit: JoLA | None = None, other: JoLA | None = None) -> Iterator[Seen]:
    """Run the base and the edited model over all rows and hand out what each batch showed.

    Nothing of a batch is kept here once the next is asked for. A batch takes layers · batch_size · positions ·
    (3 · heads · d_head + d_model) numbers, and 2 · heads · d_head more with an ``other`` edit.

    Args:
        rows: what is read, and by whom.
        batch_size: rows in one pass.
        edit: in place of the Run's.
        other: another edit (a control), which has an edited pass of its own.

    Raises:
        ValueError: an edit that does not act on heads.
        EditNotLiveError: something did not act in a pass.
    """
    require_heads(rows.run)
    edits = [
        one.restricted().to(rows.model.device).requires_grad_(False)
        for one in (rows.run.edit if edit is None else edit, other)
        if one is not None
    ]
    for places, batch in rows.batches(batch_size):
        yield _seen(rows, edits, places, batch)


def require_heads(run: Run) -> None:
    """Raise ValueError unless a Run's edit acts on heads."""
    if "heads" not in run.edit.masks():
        raise ValueError(f"{run.path}: this edit acts at {', '.join(run.edit.masks())}, not on heads")


def output_weights(model: Model, layer: int) -> Float[Tensor, "head d_head d_model"]:
    """W_O of a layer as [head, d_head, d_model], float32: z_h @ W_O[h] is what head h writes to the stream.

    Without the bias, and before the further norm that some architectures have behind it (Gemma 3, OLMo 2).
    """
    from transformers.pytorch_utils import Conv1D

    shape = model.head_shape
    module = model.o_proj(layer)
    weight = getattr(module, "weight", None)
    stored = isinstance(weight, Tensor) and weight.is_floating_point() and not weight.is_meta
    if stored and isinstance(module, nn.Linear | Conv1D):
        plain: Tensor = module.weight.detach().float()
        plain = plain.T if isinstance(module, nn.Linear) else plain  # [heads · d_head, d_model]
    else:  # quantised, or kept elsewhere: by what it does to unit vectors
        eye = torch.eye(shape.heads * shape.d_head, device=model.device, dtype=model.dtype)
        bias = getattr(module, "bias", None)
        with torch.no_grad():
            written = module(eye).float()
        plain = written if bias is None else written - bias.detach().to(written)
    return plain.reshape(shape.heads, shape.d_head, -1)


class _Eye(JoLA):
    """The identity, which keeps what it is shown."""

    seen: list[Tensor]

    def prepare(self, context: Context, dtype: torch.dtype) -> Any:
        self.seen = []
        return super().prepare(context, dtype)

    def forward(self, activation: Tensor, layer: int, site: Site, context: Context) -> Tensor:  # noqa: ARG002
        self.seen.append(activation.detach())
        return activation


def _seen(rows: Rows, edits: list[JoLA], places: list[int], batch: Batch) -> Seen:
    """The base model's pass and one for each edit."""
    base = _Eye(rows.run.edit.shape, gates="none")
    with _streams(rows.model) as residual:
        _pass(rows, batch, [base])
    pairs: list[tuple[list[Tensor], list[Tensor]]] = []
    for edit in edits:
        before, after = (_Eye(edit.shape, gates="none") for _ in range(2))
        _pass(rows, batch, [before, edit, after])
        pairs.append((before.seen, after.seen))
    real = batch.attention_mask.bool()
    first = real & (real.cumsum(1) == 1)
    found = Seen(places, batch.input_ids, real, batch.prompt_mask, first, base.seen, *pairs[0], residual)
    return found if len(pairs) == 1 else replace(found, other_before=pairs[1][0], other_after=pairs[1][1])


def _pass(rows: Rows, batch: Batch, edits: list[JoLA]) -> None:
    with attach(edits, rows.model, rows.backend) as attached:
        rows.model.logits(batch.input_ids, batch.attention_mask, 1, batch.prompt_mask)
    attached.check_live()


@contextmanager
def _streams(model: Model) -> Iterator[list[Tensor]]:
    """Keep the stream that enters each block of the next pass."""
    kept: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kept.append((args[0] if args else kwargs["hidden_states"]).detach())

    with ExitStack() as stack:
        for block in blocks(model):
            stack.callback(block.register_forward_pre_hook(keep, with_kwargs=True).remove)
        yield kept
