"""Stored edits of an nnsight wrapper around the plain Hugging Face model, for those whose tools are nnsight's.

nnsight edits only what it runs itself: calling a wrapped model gives the base model. While an edit is attached, a call
of the model is therefore run through the wrapper, one run a forward pass. So ``model.logits``, ``model.hf.generate``
(at every decoding step), evaluation loops and lm-eval see the edit, as under the other backends. Traces of your own
see it too, if they are opened on the same wrapper:

    nn = wrapper(model)
    with attach(edit, model, backend="nnsight"):
        with nn.trace(input_ids=ids, attention_mask=mask) as tracer:
            cache = tracer.cache(include_inputs=True)       # activations as the edit leaves them

nnsight is imported when it is first used, since importing it changes PyTorch for the whole process: ``Tensor.backward``
is replaced (afterwards ``with context(): loss.backward()`` written on ONE line silently does nothing), and every object
gets a ``save``. What wrapping leaves on the model's modules passes calls through; the other backends work as before.

Here is the model: an edit is trained and attached where the weights are. On NDIF, where only nnsight's wrapper of the
model is at hand, a trained edit can be applied (:meth:`jola_interp.runs.Run.as_trace`).
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from torch import nn

from jola_interp.backends.base import Backend, Transform
from jola_interp.backends.hooks import hook_at
from jola_interp.edits.base import Edit, Site
from jola_interp.models import Model

_WRAPPERS: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Any]] = weakref.WeakKeyDictionary()
"""One wrapper a model, for as long as it is attached to or someone holds it."""


class NNsightBackend(Backend):
    name = "nnsight"

    def ready(self, model: Model) -> nn.Module:
        require_wrappable(model)
        if any(getattr(module, "gradient_checkpointing", False) for module in model.hf.modules()):
            raise ValueError(
                f"backend 'nnsight' cannot edit {model.name} under gradient checkpointing, where the backward pass "
                "runs blocks again: nnsight edits only what it runs itself; use backend='hooks'"
            )
        return model.hf

    @contextmanager
    def opened(self, model: Model, edits: Sequence[Edit]) -> Iterator[None]:
        if found := [type(edit).__name__ for edit in edits if edit.on_weights]:
            raise ValueError(
                f"{found[0]} acts on weights, and may put other modules where nnsight has wrapped the model's own: use "
                "backend='hooks'"
            )
        wrapped = wrapper(model)
        slot = model.hf.__dict__
        traced = slot["forward"]
        if not isinstance(traced, _Traced):
            traced = slot["forward"] = _Traced(wrapped, traced)
        traced.holders += 1
        try:
            yield
        finally:
            traced.holders -= 1
            if not traced.holders:
                slot["forward"] = traced.plain

    def insert(self, model: Model, layer: int, site: Site, transform: Transform) -> Callable[[], None]:
        wrapped = wrapper(model)
        module, before, hook = hook_at(model, layer, site, transform)
        envoy = wrapped.get(path := path_of(module, model.hf))
        if envoy._module is not module:
            raise ValueError(f"{path} of {model.name} is no longer the module that nnsight has wrapped: wrap it anew")
        follow = functools.partial(_at_input if before else _at_output, envoy, hook)
        stored = _store(wrapped, follow)

        def remove() -> None:
            wrapped._edits[:] = [other for other in wrapped._edits if other is not stored]

        return remove


def wrapper(model: Model) -> Any:
    """The ``nnsight.NNsight`` of a model: the same one as long as you hold it, or an edit is attached through it.

    Raises:
        ValueError: the model has been booted by TransformerLens.
    """
    require_wrappable(model)
    made = _WRAPPERS.get(model.hf, lambda: None)()
    if made is None:
        from nnsight import NNsight

        made = NNsight(model.hf)
        _WRAPPERS[model.hf] = weakref.ref(made)
    return made


def require_wrappable(model: Model) -> None:
    """Raise ValueError if TransformerLens has wrapped the model: nnsight would find no module at its usual place."""
    if model.booted:
        raise ValueError(
            f"nnsight needs a plain model; {model.name} has been booted by TransformerLens, which cannot be undone: "
            f"load it anew, load_model({(model.source or 'path')!r}), or use backend='lens'"
        )


def path_of(module: nn.Module, root: nn.Module) -> str:
    """The dotted name of ``module`` under ``root``."""
    name: str = next(name for name, found in root.named_modules() if found is module)
    return name


class _Traced:
    """The forward of a whole model to which edits are attached: a call from outside a trace is run as one."""

    def __init__(self, wrapped: Any, plain: Callable[..., Any]):
        functools.update_wrapper(self, plain)  # `generate` asks for the signature
        self.wrapped, self.plain, self.holders = wrapped, plain, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from nnsight.intervention.source import STATE

        if self.wrapped.interleaver.interleaving:
            return self.plain(*args, **kwargs)
        if self.wrapped._module.__dict__[STATE].active()[0] is not None:
            raise ValueError(
                "this trace was opened on another nnsight wrapper of the model than the one that an edit is attached "
                "through, and one of the two would be lost: open it on jola_interp.backends.nnsight.wrapper(model), or "
                "attach with backend='hooks'"
            )
        return self.wrapped.interleave(self.plain, *args, **kwargs)


def _store(wrapped: Any, follow: Callable[[Iterable[int]], None]) -> Any:
    """Store an edit that follows the model through all forward passes of a run, and return it."""
    with wrapped.edit(inplace=True) as tracer:
        follow(tracer.iter[:])
    return wrapped._edits[-1]


def _at_input(envoy: Any, hook: Callable[..., Any], steps: Iterable[int]) -> None:
    from nnsight.intervention.interleaver import OutOfOrderError

    with suppress(OutOfOrderError):  # so nnsight tells an edit that waits for a further pass that the run is over
        for _ in steps:
            args, kwargs = envoy.inputs
            envoy.inputs = (hook(envoy._module, args), kwargs)


def _at_output(envoy: Any, hook: Callable[..., Any], steps: Iterable[int]) -> None:
    from nnsight.intervention.interleaver import OutOfOrderError

    with suppress(OutOfOrderError):
        for _ in steps:
            envoy.output = hook(envoy._module, (), envoy.output)
