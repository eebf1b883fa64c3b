"""Attaching edits to a model: what all backends share."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from jola_interp.edits.base import Context, Edit, Noise, Site
from jola_interp.models import Model

Transform = Callable[[Tensor], Tensor]
"""Activation in, edited activation out: [batch, pos, head, d_head] for heads, [batch, pos, d_model] elsewhere."""

_ATTACHED: weakref.WeakKeyDictionary[nn.Module, list[Edit]] = weakref.WeakKeyDictionary()


class EditNotLiveError(RuntimeError):
    """An evaluation ran without the edit that it was meant to measure."""


class Backend(ABC):
    """Where activations can be reached in a model."""

    name: str

    @abstractmethod
    def ready(self, model: Model) -> nn.Module:
        """Prepare ``model`` and return the module whose forward starts a pass."""

    @abstractmethod
    def insert(self, model: Model, layer: int, site: Site, transform: Transform) -> Callable[[], None]:
        """Run ``transform`` at a point from now on; returns what takes it away again."""

    def opened(self, model: Model, edits: Sequence[Edit]) -> AbstractContextManager[None]:  # noqa: ARG002
        """Entered before the first point of ``edits`` is inserted, and left after the last is taken away."""
        return nullcontext()


class Attachment:
    """Edits that are live on a model. Made by :func:`jola_interp.backends.attach`.

    Every forward pass of the model prepares each edit anew from its current parameters, so training loops and
    notebooks need no call of their own. :meth:`draw` switches to sampled gates, :meth:`clear` back to inference.
    """

    def __init__(self, edits: Sequence[Edit], model: Model):
        self.edits, self.model = tuple(edits), model
        self.forwards = 0
        self.calls: Counter[tuple[int, int, Site]] = Counter()
        self._noise: list[Noise | None] = [None] * len(self.edits)
        self._contexts = [Context() for _ in self.edits]

    def draw(self, generator: torch.Generator) -> None:
        """Draw the gates of one optimiser step; they hold, for any number of passes, until the next call."""
        self._noise = [edit.draw(generator) for edit in self.edits]

    def use(self, *noise: Noise) -> None:
        """Use given draws, one per edit, instead of random ones."""
        self._noise = list(noise)

    def clear(self) -> None:
        """Back to the inference gates."""
        self._noise = [None] * len(self.edits)

    def check_live(self) -> None:
        """Raise :class:`EditNotLiveError` unless every point of every edit has acted in every pass so far."""
        if self.forwards == 0:
            raise EditNotLiveError("the model has not run at all while the edit was attached")
        for index, edit in enumerate(self.edits):
            for layer, site in edit.points():
                seen = self.calls[index, layer, site]
                if seen < self.forwards:
                    raise EditNotLiveError(
                        f"{type(edit).__name__} acted at layer {layer} ({site}) in {seen} of {self.forwards} passes; "
                        "were its hooks removed (reset_hooks) while it was attached?"
                    )

    def begin_pass(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the whole model: note the masks and do each edit's once-a-pass arithmetic."""
        self.forwards += 1
        mask, cache = kwargs.get("attention_mask"), kwargs.get("past_key_values")
        ids = kwargs.get("input_ids", args[0] if args else None)
        if mask is None and cache is not None and ids is not None:  # `generate` leaves out a mask that is all 1
            mask = ids.new_ones(ids.shape[0], cache.get_seq_length() + ids.shape[1])
        decoding = mask is not None and ids is not None and mask.dim() == 2 and ids.shape[1] < mask.shape[1]
        for index, edit in enumerate(self.edits):
            context = Context(mask, self.model.prompt_mask, decoding, self._noise[index])
            context.prepared = edit.prepare(context, self.model.dtype)
            self._contexts[index] = context

    def transform(self, index: int, layer: int, site: Site, activation: Tensor) -> Tensor:
        """What the hook at one point does."""
        self.calls[index, layer, site] += 1
        edited: Tensor = self.edits[index](activation, layer, site, self._contexts[index])
        return edited


@contextmanager
def attached(edits: Sequence[Edit], model: Model, backend: Backend) -> Iterator[Attachment]:
    """Insert edits at their points, in order; on leaving, also by an exception, take away just those."""
    present = _ATTACHED.setdefault(model.hf, [])
    for place, edit in enumerate(edits):
        _check(edit, model, [*present, *edits[:place]])
    root = backend.ready(model)
    attachment = Attachment(edits, model)
    with ExitStack() as stack:
        present.extend(edits)
        stack.callback(_remove_edits, present, edits)
        stack.enter_context(backend.opened(model, edits))
        handle = root.register_forward_pre_hook(attachment.begin_pass, with_kwargs=True)
        stack.callback(handle.remove)
        for index, edit in enumerate(edits):
            stack.enter_context(edit.installed(model.hf))
            for layer, site in edit.points():
                stack.callback(backend.insert(model, layer, site, partial(attachment.transform, index, layer, site)))
        yield attachment


def _remove_edits(present: list[Edit], edits: Sequence[Edit]) -> None:
    gone = {id(edit) for edit in edits}
    present[:] = [edit for edit in present if id(edit) not in gone]


def attached_edits(model: Model) -> tuple[Edit, ...]:
    """The edits that are live on a model now."""
    return tuple(_ATTACHED.get(model.hf, ()))


def require_unedited(model: Model, what: str) -> None:
    """Raise ValueError if an edit is live: ``what`` would take the edited model for the base model."""
    if attached_edits(model):
        raise ValueError(f"{what} needs the model without edits, but one is attached: leave its `with` block first")


def _check(edit: Edit, model: Model, present: Sequence[Edit]) -> None:
    """What would otherwise fail in the middle of a forward pass."""
    if not isinstance(edit, Edit):
        raise TypeError(f"attach takes edits, got {type(edit).__name__}")
    if edit.shape != model.head_shape:
        raise ValueError(f"the edit is made for {edit.shape}, the model has {model.head_shape}")
    if any(edit.overlaps(other) for other in present):
        raise ValueError(f"this {type(edit).__name__} is attached to {model.name} already: it would act twice")
    if edit.on_weights and model.booted:
        raise ValueError(
            f"{type(edit).__name__} acts on weights, and {model.name} has been booted by TransformerLens, which wraps "
            f"them: use a plain model, such as load_model({(model.source or 'path')!r}), with backend='hooks'"
        )
    if not model.dtype.is_floating_point:
        raise ValueError(f"{model.name} computes in {model.dtype}; edits need floating-point activations")
