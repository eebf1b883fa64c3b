"""The table of methods: name, equation, hook points, source, options, and how each is built."""

from __future__ import annotations

import dataclasses
import html
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jola_interp.edits.base import Edit
from jola_interp.methods.setup import Setup
from jola_interp.models import Model, load_model

if TYPE_CHECKING:
    import pandas as pd

Build = Callable[..., Edit]
"""(model, **options) to an untrained edit, of the size that the trained one will have."""
Prepare = Callable[..., Edit]
"""(setup, **options) to the edit that is to be trained, after trainings or measurements of its own."""


@dataclass(frozen=True)
class Method:
    """A way to fine-tune, as ``fit`` takes it: ``fit(model, task, method("lofit", k=64))``.

    Calling one gives a copy with other options.

    Attributes:
        name: what it is called by.
        equation: what it does to an activation or a weight.
        points: the TransformerLens hook points at which it acts, or the weights.
        source: paper, and where in it.
        build: ``(model, **options)`` to an untrained edit.
        prepare: ``(setup, **options)`` to the edit to train, for methods that first choose or measure something.
        options: what can be chosen, with the defaults.
        train: training fields to start from, beside those of the preset; a configuration of one's own replaces them.
        fixed: training fields without which it would be another method; a configuration of one's own keeps them.
        preset_edit: whether a preset's starting values for gates are its own too (JoLA and its gated ablations).
        on_weights: whether it needs a plain model of its own.
        note: what a reader of its numbers must know.
    """

    name: str
    equation: str
    points: str
    source: str
    build: Build
    prepare: Prepare | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    preset_edit: bool = False
    on_weights: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", {name: self._plain(name, value) for name, value in self.options.items()})

    def __call__(self, **options: Any) -> Method:
        """With other options. Raises ValueError on one that the method does not have, or that JSON cannot hold."""
        if unknown := sorted(options.keys() - self.options.keys()):
            known = ", ".join(self.options) or "none"
            raise ValueError(f"method {self.name!r} has no option {', '.join(unknown)}; it has: {known}")
        return dataclasses.replace(self, options={**self.options, **options})

    def make(self, model: Model, start: Mapping[str, Any] | None = None) -> Edit:
        """The untrained edit. ``start`` is a preset's starting values for gates."""
        gates = dict(start or {}) if self.preset_edit else {}
        return self.build(model, **gates, **self.options)

    def ready(self, setup: Setup) -> Edit:
        """The edit that is to be trained: prepared, where the method has to choose or measure something first."""
        return self.make(setup.model) if self.prepare is None else self.prepare(setup, **self.options)

    def fields(self, own: bool) -> dict[str, Any]:
        """Training fields that it brings; ``own`` says that there is a configuration of one's own."""
        return {**({} if own else self.train), **self.fixed}

    def n_parameters(self, model: Model) -> int:
        """How many numbers train."""
        return self.make(model).n_parameters()

    def record(self) -> dict[str, Any]:
        """What a Run keeps of it."""
        return {"name": self.name, "options": dict(self.options)}

    def _plain(self, name: str, value: Any) -> Any:
        """``value`` as a Run's JSON gives it back."""
        found = list(value) if isinstance(value, tuple | range | set | frozenset) else value
        try:
            return json.loads(json.dumps(found))
        except TypeError as error:
            raise ValueError(
                f"method {self.name!r}: option {name} must be a number, a text, None or a list of these; got {value!r}"
            ) from error


class Methods(dict[str, Method]):
    """Name to :class:`Method`; iterating gives the names, in the order of the table."""

    def to_frame(self, model: str | Model | None = None) -> pd.DataFrame:
        """One row a method: name, equation, points, options, source, note; for a model also ``parameters``, how many
        numbers train, and ``share``, out of the model's own; None where the model is too small for the options."""
        import pandas as pd

        rows = [self._row(found) for found in self.values()]
        if model is not None:
            target = load_model(model)
            total = sum(parameter.numel() for parameter in target.hf.parameters())
            for row, found in zip(rows, self.values(), strict=True):
                row["parameters"] = _counted(found, target)
                row["share"] = None if row["parameters"] is None else row["parameters"] / total
        frame = pd.DataFrame(rows)
        return frame if model is None else frame.astype({"parameters": "Int64"})

    def _row(self, found: Method) -> dict[str, Any]:
        options = ", ".join(f"{name}={value}" for name, value in found.options.items())
        texts = {name: getattr(found, name) for name in ("name", "equation", "points", "source", "note")}
        return {**texts, "options": options}

    def _repr_html_(self) -> str:
        frame = self.to_frame()[["name", "equation", "points", "options", "source"]]
        return f"<div>{frame.to_html(index=False, escape=True, border=0)}</div>"

    def __repr__(self) -> str:
        return html.unescape("\n".join(f"{name:24} {found.equation}" for name, found in self.items()))


def _counted(found: Method, model: Model) -> int | None:
    try:
        return found.n_parameters(model)
    except ValueError:  # more heads than there are, a site that the architecture lacks
        return None
