"""A trained edit inside nnsight traces of your own: heads switched on and off, here or on NDIF.

    >>> traced = run.as_trace(model)
    >>> nn = traced.model                                   # nnsight's own: trace, generate, sessions, …
    >>> first = traced.heads[0]                             # such as "L0H2"
    >>> with nn.trace() as tracer:                          # one batch: the edit, all but one head of it, the model
    ...     with tracer.invoke("a cat"):
    ...         traced.apply()
    ...         whole = nn.lm_head.output[:, -1].save()
    ...     with tracer.invoke("a cat"):
    ...         traced.without(first).apply()
    ...         less = nn.lm_head.output[:, -1].save()
    ...     with tracer.invoke("a cat"):
    ...         base = nn.lm_head.output[:, -1].save()
    >>> edited = traced.part(heads=[first]).edited()        # a twin of nn that holds the edit, at every step
    >>> with edited.generate("a cat", max_new_tokens=5, do_sample=False) as tracer:
    ...     tokens = tracer.result.save()

nnsight reads the source of a block, so traces live in a file or a notebook cell, never in ``exec`` or on stdin.

On NDIF: ``run.as_trace(TransformersModel("meta-llama/Llama-3.1-8B"))`` takes nnsight's own model, whose weights need
not be here; ``.trace(…, remote=True)`` and ``.generate(…, remote=True)`` then run ``apply`` and ``edited`` there. What
travels is the block, the functions of this module, and the vectors times their gates (at most 2 · d_head float32 a
head); jola_interp is not needed there. It was tried as far as it goes without a network: by ``remote="local"``, with
which nnsight builds a request, reads it where no local module can be imported, and runs it, and up to the socket. The
limits, as read from nnsight 0.8:

* The model goes by its name and revision on the Hub (packaged or local weights have none), and NDIF must serve it.
  Precision and weights are NDIF's own, and are not compared with those that the edit was trained on.
* ``fit`` and ``attach`` want the weights here. A trace on NDIF may hold ``with loss.backward():`` and send gradients
  back, and a session runs a loop there, so that training could be written by hand, unless the model is served under
  inference mode (vLLM). Nothing of that is done here. ``generate`` never has gradients.
* Edits that are no vectors with gates, or that choose their tokens, act through ``attach(…, backend="nnsight")`` alone.
"""

# Whatever an object of this module refers to is shipped with it, and jola_interp is not there to be imported: its other
# modules are imported inside the functions that run here.
from __future__ import annotations

import copy
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from jola_interp.edits.base import Edit, Site
    from jola_interp.edits.jola import JoLA, Operation
    from jola_interp.models import Model

_ORDER = ("heads", "attention", "mlp")


class TracedEdit:
    """z' = (1 + g_m·m) ⊙ z + g_a·a for blocks of nnsight traces. Made by :meth:`jola_interp.runs.Run.as_trace`.

    Attributes:
        model: the nnsight model; open traces on it (or on :meth:`edited`, its twin).
        heads: what acts, such as "L3H7" (or "L3MLP", "L3ATTN"), in the order of the layers.
        points: (path of a module, whether its input is meant and not its output, 1 + g_m·m, g_a·a), in the order in
            which a pass comes by; both [unit · width], float32.
    """

    def __init__(self, model: Any, edit: JoLA, places: dict[tuple[int, Site], tuple[str, bool]]):
        self.model, self._edit, self._places = model, edit, places
        self.points, self.heads = _points(edit, places)

    def part(
        self,
        heads: Iterable[str | tuple[int, int]] | None = None,
        kinds: Iterable[Operation] | None = None,
        strength: float = 1.0,
    ) -> TracedEdit:
        """Only some heads, only some operations, or a multiple: z + strength·(z' − z). As in ``run.attach``."""
        return TracedEdit(self.model, self._edit.restricted(heads, kinds, strength), self._places)

    def without(self, *heads: str) -> TracedEdit:
        """All that acts here but these.

        Raises:
            ValueError: a head that does not act here, or an edit that acts elsewhere than on heads.
        """
        if missing := [head for head in heads if head not in self.heads]:
            raise ValueError(
                f"heads: {', '.join(missing)} not among those that act ({', '.join(self.heads) or 'none'})"
            )
        if any(site != "heads" for _, site in self._edit.points()):
            raise ValueError("without: this edit acts on whole MLP or attention outputs too; name heads by `part`")
        return self.part(heads=[head for head in self.heads if head not in heads])

    def apply(self) -> None:
        """Edit, in a block of your own, for the pass that it runs on (in a generation: for the step that it is at).

        nnsight serves a block in the order of the model: read earlier layers above this line and later ones below, or
        take :meth:`edited`, which leaves your block free.
        """
        _edit_pass(self.model, self.points)

    def edited(self) -> Any:
        """A twin of ``model`` in which the edit is stored: it acts in every trace of the twin, at every step.

        The twin shares weights and modules; ``model`` itself stays as it is.
        """
        from nnsight.intervention.iterator import Iterations

        points, steps = self.points, Iterations()[:]  # not the tracer's: a tracer that has run cannot be shipped
        with self.model.edit() as (_, twin):
            _edit_passes(twin, points, steps)
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """What a block ships: enough for :meth:`apply`."""
        return {"model": self.model, "points": self.points, "heads": self.heads}

    def __repr__(self) -> str:
        return f"TracedEdit({len(self.heads)} of {type(self._edit).__name__}: {', '.join(self.heads[:8])})"


def trace_edit(edit: Edit, model: Model, wrapped: Any) -> TracedEdit:
    """``edit`` for traces of ``wrapped``, an nnsight model around ``model.hf``.

    Raises:
        ValueError: an edit that is not one vector a head, the same at every token; another shape of heads; or a model
            that TransformerLens has booted.
    """
    import nnsight

    from jola_interp.backends.hooks import hook_at
    from jola_interp.backends.nnsight import path_of, require_wrappable
    from jola_interp.edits.jola import JoLA

    require_wrappable(model)
    if not isinstance(edit, JoLA) or not edit.everywhere:
        raise ValueError(
            f"as_trace: this {type(edit).__name__} is no vector and gate a head that acts on all tokens alike: use "
            "attach(backend='nnsight') and open traces on jola_interp.backends.nnsight.wrapper(model)"
        )
    if edit.shape != model.head_shape:
        raise ValueError(f"the edit is made for {edit.shape}, the model has {model.head_shape}")
    places = {}
    for point in edit.points():
        module, before, _ = hook_at(model, *point, lambda activation: activation)
        places[point] = (path_of(module, model.hf), before)
    nnsight.register(__name__)
    return TracedEdit(wrapped, edit, places)


def is_wrapped(given: object) -> bool:
    """Whether this is an nnsight model."""
    from nnsight import Envoy

    return isinstance(given, Envoy)


def unwrapped(given: Any) -> Model:
    """The :class:`Model` around what an nnsight model wraps, from which geometry and places are read; what trains
    there, and in which mode, is as it was."""
    from jola_interp.models import Model

    module = given._module
    name = str(getattr(given, "repo_id", None) or type(module).__name__)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    training = [part for part in module.modules() if part.training]
    try:
        return Model(module, getattr(given, "tokenizer", None), name=name)  # which freezes it
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for part in training:
            part.training = True


def wrap(model: Model) -> Any:
    """nnsight's ``TransformersModel`` around a plain model (``NNsight`` where it has no tokenizer).

    The tokenizer is a copy: nnsight pads on the left, and sets a padding token where there is none.
    """
    from nnsight import NNsight, TransformersModel

    from jola_interp.backends.nnsight import require_wrappable

    require_wrappable(model)
    if model.tokenizer is None:
        return NNsight(model.hf)
    sharded = getattr(model.hf, "hf_device_map", None) is not None
    where = {} if sharded else {"device": model.device}  # else the pipeline moves the model to a GPU if there is one
    return TransformersModel(model.hf, tokenizer=copy.deepcopy(model.tokenizer), **where)


def _points(
    edit: JoLA, places: dict[tuple[int, Site], tuple[str, bool]]
) -> tuple[list[tuple[str, bool, Tensor | None, Tensor | None]], list[str]]:
    """(points, labels) of the layers at which something is left to act."""
    from jola_interp.edits.base import unit_label

    points, labels = [], []
    vectors = {site: edit.at_inference(site) for site in edit.masks()}
    for layer, site in sorted(edit.points(), key=lambda point: (point[0], _ORDER.index(point[1]))):
        found = {operation: value[layer].cpu() for operation, value in vectors[site].items()}  # [unit, width]
        acting = torch.stack([value.ne(0).any(-1) for value in found.values()]).any(0)
        if not bool(acting.any()):
            continue
        labels += [unit_label(site, layer, int(unit)) for unit in acting.nonzero()[:, 0]]
        scale, shift = found.get("multiplicative"), found.get("additive")
        points.append(
            (
                *places[layer, site],
                None if scale is None else (1 + scale).flatten(),
                None if shift is None else shift.flatten(),
            )
        )
    return points, labels


# -- what runs in traces -----------------------------------------------------------------------------------------------


def _edit_passes(model: Any, points: list[Any], steps: Iterable[int]) -> None:
    """Edit every forward pass of a run."""
    from nnsight.intervention.interleaver import OutOfOrderError

    with suppress(OutOfOrderError):  # so nnsight tells an edit that waits for a further pass that the run is over
        for _ in steps:
            _edit_pass(model, points)


def _edit_pass(model: Any, points: list[Any]) -> None:
    """Edit one forward pass, module after module."""
    for path, before, scale, shift in points:
        envoy = model.get(path)
        if before:
            (activation, *rest), options = envoy.inputs
            envoy.inputs = ((_moved(activation, scale, shift), *rest), options)
        else:
            output = envoy.output
            whole = isinstance(output, torch.Tensor)
            envoy.output = _moved(output, scale, shift) if whole else (_moved(output[0], scale, shift), *output[1:])


def _moved(activation: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """scale ⊙ z + shift."""
    if shift is None:
        return activation if scale is None else activation * scale.to(activation)
    if scale is None:
        return activation + shift.to(activation)
    return torch.addcmul(shift.to(activation), activation, scale.to(activation))
