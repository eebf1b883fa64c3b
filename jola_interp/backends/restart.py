"""Passes that begin at a layer: after one whole pass, what stands below the first changed layer is not computed again.

A whole pass over a batch is recorded: what every transformer block returned. If afterwards an edit changes at layer l
and above only, blocks 0 … l − 1 would return just that again; they are made to hand it out, and the rest of the
model's own forward (masks, rotary embeddings, the last norm, the unembedding) runs as ever, whatever the architecture:

    with attach(edit, model) as attached, torch.no_grad():
        with recorded(model, attached) as recording:
            model.logits(ids, mask)
        ...                                      # change the edit at layers ≥ 5
        with restarted(recording, 5):
            model.logits(ids, mask)              # as a whole pass would give, for the price of layers 5 and above

Given the positions that are read (``recorded(…, read=…)``), both passes save at the other end too: behind the last
attention only those are computed.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial, wraps
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from jola_interp.backends.base import Attachment
from jola_interp.models import Model

Forward = Callable[..., Any]

_CHECKED: weakref.WeakKeyDictionary[nn.Module, set[bool]] = weakref.WeakKeyDictionary()
"""Models on which restarts were found to equal whole passes: plain (False), booted (True) or both."""
_ROUNDINGS, _BOUND = 8, 1e-5
"""How far a restarted pass may differ: so many roundings of its dtype, at least this share of the largest logit. A
product of fewer rows is added up in another order."""


class RestartError(RuntimeError):
    """A pass that would not have been the whole pass it stands for."""


class Recording:
    """What the blocks of a model returned in one whole pass over one batch. Made by :func:`recorded`.

    Attributes:
        model: whose blocks they are.
        states: the output of each block, a tensor or a tuple as the architecture has it.
        inputs: the tensors that the pass was given, by name.
        complete: whether the pass came to its end.
        acted: for each attachment, how often its edits acted in the pass, by (edit, layer, site).
        read: the positions to unembed; None is all that the pass is asked for.
    """

    def __init__(self, model: Model, attachments: Sequence[Attachment], read: Bool[Tensor, "batch kept"] | None = None):
        self.model, self.attachments, self.read = model, tuple(attachments), read
        self.blocks = blocks(model)
        self.states: list[Any] = [None] * len(self.blocks)
        self.inputs: dict[str, Tensor] = {}
        self.complete = False
        self.acted: list[Counter[Any]] = [Counter() for _ in self.attachments]

    def begin(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of a pass that is recorded."""
        self.inputs = _inputs(self.model, args, kwargs)
        self.complete = False
        self._before = [Counter(attached.calls) for attached in self.attachments]

    def keep(self, layer: int, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        """Forward hook of a block."""
        self.states[layer] = _detached(output)

    def end(self, *_: Any) -> None:
        """Forward hook of the whole model."""
        pairs = zip(self.attachments, self._before, strict=True)
        self.acted = [attached.calls - before for attached, before in pairs]
        self.complete = True

    def resume(self, layer: int, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of a pass from ``layer`` on: the same batch, and the skipped points count as having acted.

        They did act, in the pass that was recorded; so :meth:`Attachment.check_live` stays true to its word.
        """
        self._require_same(_inputs(self.model, args, kwargs))
        for attached, acted in zip(self.attachments, self.acted, strict=True):
            attached.calls.update({key: times for key, times in acted.items() if key[1] < layer})

    def _require_same(self, inputs: dict[str, Tensor]) -> None:
        for name in sorted(inputs.keys() | self.inputs.keys()):
            found, expected = inputs.get(name), self.inputs.get(name)
            if found is None or expected is None or found.shape != expected.shape or not torch.equal(found, expected):
                raise ValueError(
                    f"restarted: {name} is not that of the recorded pass (found {_shape(found)}, recorded "
                    f"{_shape(expected)}): a recording serves its own batch only"
                )


@contextmanager
def recorded(
    model: Model, *attachments: Attachment, read: Bool[Tensor, "batch kept"] | None = None
) -> Iterator[Recording]:
    """Record the next whole pass through ``model.forward`` or ``model.logits``; of several, the last.

    At the first use on a model it is checked, on a batch of a few tokens, that a pass restarted from any layer equals
    a whole pass.

    Args:
        model: plain or booted.
        attachments: what :func:`attach` gave for the edits that are live, so that their ``check_live`` counts passes
            rightly.
        read: True at the positions to unembed, out of the last ``kept`` of each row. In the recorded pass and in those
            restarted from it ``model.forward(…, keep=kept).logits`` is then [1, marked, vocab], in the order of
            ``read.nonzero()``, and positions that are not read are not computed where none reads them.

    Raises:
        ValueError: the blocks cannot be found, or a pass that fills or reads a cache.
        RestartError: this architecture's later blocks read more of earlier ones than the residual stream.
    """
    if model.booted not in _CHECKED.setdefault(model.hf, set()):
        _check(model, attachments)
        _CHECKED[model.hf].add(model.booted)
    with _recorded(model, attachments, read) as recording:
        yield recording


@contextmanager
def restarted(recording: Recording, layer: int) -> Iterator[None]:
    """Let passes over the recorded batch begin at block ``layer``: the blocks below return what was recorded.

    The edits at layers below ``layer`` must be as they were; nothing can tell if they are not. On leaving, also by an
    exception, the model is as it was.

    Raises:
        ValueError: a layer outside the model, a recording without a finished pass, or, at the pass, another batch.
    """
    if not 0 <= layer < len(recording.blocks):
        raise ValueError(f"layer must be 0 to {len(recording.blocks) - 1}; got {layer}")
    if not recording.complete:
        raise ValueError("recording: no pass was finished inside `recorded`, so there is nothing to restart from")
    with ExitStack() as stack:
        begin = partial(recording.resume, layer)
        stack.callback(recording.model.hf.register_forward_pre_hook(begin, with_kwargs=True).remove)
        for block, state in zip(recording.blocks[:layer], recording.states[:layer], strict=True):
            stack.enter_context(_replaced(block, _returning(state)))
        stack.enter_context(_reading(recording))
        yield


def blocks(model: Model) -> list[nn.Module]:
    """The plain transformer blocks, in order, also of a booted model.

    Raises:
        ValueError: they cannot be found.
    """
    layers = range(model.head_shape.layers)
    try:
        if model.booted:
            return [_plain(model.bridge.blocks[layer]) for layer in layers]
        return [model.hf.get_submodule(model._path(f"blocks.{layer}")) for layer in layers]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"the {len(layers)} transformer blocks of {model.name} ({type(model.hf).__name__}) cannot be found, so no "
            f"pass can be restarted: {error}"
        ) from error


# -- the check at first use --------------------------------------------------------------------------------------------


@torch.no_grad()
def _check(model: Model, attachments: Sequence[Attachment]) -> None:
    """Raise RestartError unless passes from every layer equal a whole one, on two rows of six tokens."""
    blocks(model)  # what cannot be found is another error
    try:
        layer = _differing_layer(model, attachments)
    except Exception as error:  # a block that misses what an earlier one would have left fails in a way of its own
        raise RestartError(f"{_cannot(model)}: {type(error).__name__}: {error}") from error
    if layer is not None:
        raise RestartError(f"{_cannot(model)}: a pass restarted from layer {layer} differs from a whole pass")


def _cannot(model: Model) -> str:
    return (
        f"passes of {type(model.hf).__name__} cannot be restarted (its later blocks may read more of earlier ones than "
        "the residual stream)"
    )


def _differing_layer(model: Model, attachments: Sequence[Attachment]) -> int | None:
    """A layer from which a restarted pass gives other logits than a whole pass; None if there is none.

    Another batch runs between recording and restarts, and these go from the last layer down: what an earlier block has
    left behind in some module is then that other batch's.
    """
    ids = torch.arange(1, 13, device=model.device).view(2, 6) % model.vocab_size
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]], device=model.device)
    read = torch.tensor([[False, True, True, False], [True, True, True, False]], device=model.device)
    with _recorded(model, attachments) as recording:
        whole = model.logits(ids, mask, read.shape[1])
    if not bool(torch.isfinite(whole).all()):
        raise ValueError("a whole pass gives logits that are not finite, so nothing can be compared")
    readings: list[tuple[Tensor | None, Tensor]] = [(None, whole)]
    if model.hf.get_output_embeddings() is not None:
        readings.append((read, whole[read][None]))
    model.forward(ids.flip(1), mask)
    for layer in reversed(range(len(recording.blocks))):
        for recording.read, expected in readings:
            with restarted(recording, layer):
                found = model.forward(ids, mask, read.shape[1]).logits
            if not _agree(found[:, -expected.shape[1] :], expected):
                return layer
    return None


def _agree(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    bound = max(_ROUNDINGS * torch.finfo(expected.dtype).eps, _BOUND)
    return float((found - expected).abs().max()) <= bound * float(expected.abs().max())


# -- inside ------------------------------------------------------------------------------------------------------------


@contextmanager
def _recorded(
    model: Model, attachments: Sequence[Attachment], read: Bool[Tensor, "batch kept"] | None = None
) -> Iterator[Recording]:
    recording = Recording(model, attachments, read)
    with ExitStack() as stack:
        stack.callback(model.hf.register_forward_pre_hook(recording.begin, with_kwargs=True).remove)
        stack.callback(model.hf.register_forward_hook(recording.end).remove)
        for layer, block in enumerate(recording.blocks):
            # First of the block's hooks: those of others act again, on what is recorded, when the pass is restarted.
            hook = block.register_forward_hook(partial(recording.keep, layer), prepend=True)
            stack.callback(hook.remove)
        stack.enter_context(_reading(recording))
        yield recording


@contextmanager
def _reading(recording: Recording) -> Iterator[None]:
    """Compute only the positions that are read, where nothing else reads them: behind the last attention.

    The last block's W_O and MLP see the last ``kept`` positions (the others get 0, and reach no logit), the unembedding
    those of them that are marked.

    Raises:
        ValueError: no position is marked, or the model has no output embeddings.
    """
    model, read = recording.model, recording.read
    if read is None:
        yield
        return
    if not bool(read.any()):
        raise ValueError("read: no position is marked")
    unembedding = model.hf.get_output_embeddings()
    if unembedding is None:
        raise ValueError(f"read: {model.name} has no output embeddings, so single positions cannot be unembedded")
    with ExitStack() as stack:
        for module in _behind_last_attention(recording):
            stack.enter_context(_replaced(module, _of_last(module.forward, read.shape[1])))
        plain = _plain(unembedding)
        stack.enter_context(_replaced(plain, _of_marked(plain.forward, read)))
        yield


def _inputs(model: Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors that decide a pass. How many logits are kept does not change what the blocks return."""
    if kwargs.get("past_key_values") is not None or kwargs.get("use_cache", True) is not False:
        raise ValueError(
            "a pass that fills or reads a cache cannot be recorded or restarted: skipped blocks would leave it empty; "
            "use model.forward or model.logits without one"
        )
    named = {**{f"argument {place}": value for place, value in enumerate(args)}, **kwargs}
    named["prompt_mask"] = model.prompt_mask
    return {k: v for k, v in named.items() if isinstance(v, Tensor) and k != "logits_to_keep"}


def _shape(value: Tensor | None) -> str:
    return "none" if value is None else str(list(value.shape))


def _detached(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.detach()
    return type(output)(map(_detached, output)) if isinstance(output, tuple | list) else output


def _plain(component: Any) -> nn.Module:
    """The plain module inside a bridge component."""
    inner = getattr(component, "original_component", None)
    return inner if isinstance(inner, nn.Module) else component


@contextmanager
def _replaced(module: nn.Module, forward: Forward) -> Iterator[None]:
    """Let ``forward`` be the module's for a while; its hooks stay. One that stood on the instance is put back."""
    own = {name: value for name, value in module.__dict__.items() if name == "forward"}
    module.__dict__["forward"] = wraps(module.forward)(forward)  # TransformerLens asks for its signature
    try:
        yield
    finally:
        del module.__dict__["forward"]
        module.__dict__.update(own)


def _returning(state: Any) -> Forward:
    return lambda *_args, **_kwargs: state


def _behind_last_attention(recording: Recording) -> list[nn.Module]:
    """The last block's W_O and MLP, as plain modules; one that cannot be told from the block is left out."""
    model, last = recording.model, len(recording.blocks) - 1
    found = [model.o_proj(last)]
    with suppress(AttributeError, KeyError, ValueError):  # a block without an MLP, or with its layers lying loose
        found.append(_plain(model.bridge.blocks[last].mlp) if model.booted else model.component(last, "mlp"))
    return [module for module in found if module is not recording.blocks[last]]


def _of_last(forward: Forward, kept: int) -> Forward:
    """``forward`` at the last ``kept`` positions, 0 before them."""

    def of_last(*args: Any, **kwargs: Any) -> Any:
        if not args or kwargs or len(args) > 1 or args[0].dim() != 3:
            return forward(*args, **kwargs)
        activation: Float[Tensor, "batch pos width"] = args[0]
        output = forward(activation[:, -kept:].contiguous())  # GPT-2's Conv1D takes a view
        before = max(0, activation.shape[1] - kept)
        return F.pad(output, (0, 0, before, 0)) if isinstance(output, Tensor) else forward(activation)

    return of_last


def _of_marked(forward: Forward, read: Bool[Tensor, "batch kept"]) -> Forward:
    """``forward`` at the marked ones of the last positions: [1, marked, width]."""

    def of_marked(activation: Float[Tensor, "batch pos width"], *args: Any, **kwargs: Any) -> Any:
        if activation.dim() != 3 or activation.shape[0] != read.shape[0] or activation.shape[1] < read.shape[1]:
            raise ValueError(
                f"read: {list(read.shape)} positions to choose from, the pass unembeds {list(activation.shape[:-1])}"
            )
        marked = activation[:, -read.shape[1] :][read.to(activation.device)]
        return forward(marked[None], *args, **kwargs)

    return of_marked
