"""Several edits as one: trained together, counted together, stored together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from jola_interp.edits.base import Context, Edit, HeadShape, Kind, Noise, PenaltyForm, Site
from jola_interp.edits.jola import InferenceGate, JoLA, SiteEdit


class Composite(Edit):
    """z' = e_n(… e_2(e_1(z))): what ``attach([e_1, …, e_n], model)`` does, as one edit.

    At a point where several act they act in their order. At most one of them has gates of one kind at one site; gates
    are read off a composite as off that part (``inference``, ``site``, ``log_alphas``).

    Args:
        shape: the model's head shape.
        parts: the edits, or their settings with their ``type``. Those that have values keep them.

    Raises:
        ValueError: no parts, one made for another head shape, two with the same gates, or a gated site at which another
            part has units of its own to choose among.
    """

    type_name: ClassVar[str] = "composite"

    def __init__(self, shape: HeadShape, parts: Sequence[Edit | Mapping[str, Any]]):
        super().__init__()
        self.shape = shape
        self.parts = nn.ModuleList([_made(shape, part) for part in parts])
        _check(self._parts(), shape)
        self.initialised = all(part.initialised for part in self._parts())
        self.everywhere = all(part.everywhere for part in self._parts())
        self._acting: dict[tuple[int, Site], tuple[int, ...]] = {}

    @property
    def on_weights(self) -> bool:  # type: ignore[override]
        """Whether one of the parts acts on weights."""
        return any(part.on_weights for part in self._parts())

    @property
    def inference(self) -> InferenceGate:
        """The gate used at inference, of the parts that have gates; setting it sets it for all of them."""
        return self._gated()[0].inference

    @inference.setter
    def inference(self, gate: InferenceGate) -> None:
        for part in self._gated():
            part.inference = gate

    @property
    def init_log_alpha(self) -> float:
        """Where gates start."""
        return self._gated()[0].init_log_alpha

    def site(self, name: Site) -> SiteEdit:
        """The vectors and gates of one site, of the part that has gates there."""
        found = [part for part in self._gated() if any(site == name for site, _ in part.log_alphas())]
        if not found:
            raise KeyError(f"no part of this edit has gates at {name}")
        return found[0].site(name)

    def points(self) -> list[tuple[int, Site]]:
        acting: dict[tuple[int, Site], tuple[int, ...]] = {}
        for place, part in enumerate(self._parts()):
            for point in part.points():
                acting[point] = (*acting.get(point, ()), place)
        self._acting = acting
        return list(acting)

    def initialise(self, generator: torch.Generator) -> Composite:
        """Starting values for the parts that have none, in their order; for all if all have some.

        Raises:
            ValueError: a JoLA with ``units="rms"`` whose units are not known: ``fit`` measures them for a JoLA alone.
        """
        again = self.initialised
        for part in self._parts():
            if isinstance(part, JoLA) and not part.units_known:
                raise ValueError("parts: a JoLA with units='rms' needs its units first: set_units(unit_rms(...))")
            if again or not part.initialised:
                part.initialise(generator)
        self.initialised = True
        return self

    def prepare(self, context: Context, dtype: torch.dtype) -> list[Context]:
        """A context for each part, with what it has prepared."""
        return [dataclasses.replace(context, prepared=part.prepare(context, dtype)) for part in self._parts()]

    def forward(self, activation: Tensor, layer: int, site: Site, context: Context) -> Tensor:
        if not self._acting:
            self.points()
        for place in self._acting[layer, site]:
            activation = self.parts[place](activation, layer, site, context.prepared[place])
        return activation

    @contextmanager
    def installed(self, module: nn.Module) -> Iterator[None]:
        with ExitStack() as stack:
            for part in self._parts():
                stack.enter_context(part.installed(module))
            yield

    def draw(self, generator: torch.Generator) -> Noise:
        return {key: value for part in self._parts() for key, value in part.draw(generator).items()}

    def log_alphas(self) -> dict[tuple[Site, Kind], Tensor]:
        return {key: value for part in self._parts() for key, value in part.log_alphas().items()}

    def penalty(self, form: PenaltyForm = "mean") -> dict[Kind, Tensor]:
        """Kind to its share. ``mean``: over the gates of all parts, a part counting by how many it has; ``reference``:
        the sum of the parts'."""
        given = [(part.penalty(form), _gates(part)) for part in self._parts()]
        total = sum(gates for penalty, gates in given if penalty)
        shares: dict[Kind, Tensor] = {}
        for penalty, gates in given:
            for kind, term in penalty.items():
                weighted = term * (gates / total) if form == "mean" else term
                shares[kind] = shares[kind] + weighted if kind in shares else weighted
        return shares

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        groups: dict[str, list[nn.Parameter]] = {}
        for part in self._parts():
            for name, parameters in part.parameter_groups().items():
                groups.setdefault(name, []).extend(parameters)
        return groups

    def n_parameters(self) -> int:
        return sum(part.n_parameters() for part in self._parts())

    def masks(self) -> dict[Site, Tensor]:
        """Those of the sites with gates where there are any, so that what is counted by them is gates; else all."""
        gated = {site for site, _ in self.log_alphas()}
        chosen: dict[Site, Tensor] = {}
        for part in self._parts():
            for site, mask in part.masks().items():
                if not gated or site in gated:
                    chosen[site] = chosen[site] | mask if site in chosen else mask
        return chosen

    def overlaps(self, other: Edit) -> bool:
        """Whether a part would act twice."""
        others = other._parts() if isinstance(other, Composite) else [other]
        return self is other or any(part.overlaps(single) for part in self._parts() for single in others)

    def settings(self) -> dict[str, Any]:
        return {"parts": [{"type": part.type_name, **part.settings()} for part in self._parts()]}

    def tensors(self) -> dict[str, Tensor]:
        """``<place>.<name>``, the parts counted from 0."""
        return {
            f"{place}.{name}": value
            for place, part in enumerate(self._parts())
            for name, value in part.tensors().items()
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> Composite:
        own: list[dict[str, Tensor]] = [{} for _ in self.parts]
        for name, value in tensors.items():
            place, _, inner = name.partition(".")
            if not place.isdecimal() or int(place) >= len(own):
                raise ValueError(f"{name}: expected <place>.<name>, the place below {len(own)}")
            own[int(place)][inner] = value
        for number, (part, given) in enumerate(zip(self._parts(), own, strict=True)):
            try:
                part.load_tensors(given)
            except ValueError as error:
                raise ValueError(f"part {number} ({part.type_name}): {error}") from error
        self.initialised, self._acting = True, {}
        return self

    def restricted(
        self,
        heads: Iterable[str | tuple[int, int]] | None = None,
        kinds: Iterable[str] | None = None,
        strength: float = 1.0,
    ) -> Composite:
        """A copy whose every part is restricted alike.

        Raises:
            ValueError: as the parts do; so with ``heads`` where one of them has none.
        """
        chosen = None if heads is None else list(heads)
        some = None if kinds is None else list(kinds)
        return Composite(self.shape, [part.restricted(chosen, some, strength) for part in self._parts()])

    def _parts(self) -> list[Edit]:
        return [cast(Edit, part) for part in self.parts]

    def _gated(self) -> list[JoLA]:
        found = [part for part in self._parts() if isinstance(part, JoLA | Composite) and part.log_alphas()]
        if not found:
            raise ValueError(f"no part of this edit has gates: {', '.join(part.type_name for part in self._parts())}")
        return cast(list[JoLA], found)


def _made(shape: HeadShape, part: Edit | Mapping[str, Any]) -> Edit:
    if isinstance(part, Edit):
        return part
    options = dict(part)
    name = options.pop("type", None)
    if name not in Edit.types:
        raise ValueError(f"parts: type must be one of {', '.join(Edit.types)}; got {name!r}")
    return Edit.types[name](shape, **options)


def _check(parts: Sequence[Edit], shape: HeadShape) -> None:
    if not parts:
        raise ValueError("parts: at least one edit is needed")
    seen: set[tuple[Site, Kind]] = set()
    for part in parts:
        if part.shape != shape:
            raise ValueError(f"parts: a {type(part).__name__} is made for {part.shape}, the composite for {shape}")
        if twice := sorted(seen & part.log_alphas().keys()):
            site, kind = twice[0]
            raise ValueError(f"parts: two have {kind} gates at {site}, which could not be told apart")
        seen |= part.log_alphas().keys()
    gated = {site for site, _ in seen}
    for site in gated:
        if sum(site in part.masks() for part in parts) > 1:
            raise ValueError(f"parts: one has gates at {site}, another chooses units there: give them one edit")


def _gates(part: Edit) -> int:
    """How many gates a part has; one whose gates have no log α has one per unit."""
    masks, keys = part.masks(), list(part.log_alphas())
    return sum(int(masks[site].sum()) for site, _ in keys) or sum(int(mask.sum()) for mask in masks.values())
