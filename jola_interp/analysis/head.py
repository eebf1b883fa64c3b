"""Everything that a Run knows of one head, in words: gates, and what was measured, audited or read out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jola_interp import selection
from jola_interp.analysis.controls import stored_audit
from jola_interp.analysis.effects import Effects
from jola_interp.analysis.readout import Readout
from jola_interp.analysis.shifts import NOTIONS, Shifts
from jola_interp.analysis.summary import gates_at, percent, undecided
from jola_interp.analysis.tables import stored
from jola_interp.analysis.usage import KINDS, Usage
from jola_interp.edits.base import Site, unit_label

if TYPE_CHECKING:
    from jola_interp.runs import Run


@dataclass(frozen=True)
class Fact:
    """A name, and what is known under it."""

    name: str
    text: str


def head_facts(run: Run, label: str, rule: str = selection.DEFAULT_RULE, step: int | None = None) -> tuple[Fact, ...]:
    """What is known of a head; what was not measured says how to measure it.

    Args:
        run: whose.
        label: "L3H7", or "L3MLP".
        rule: which gates count as open.
        step: gates after this step; None is the kept edit. Everything measured is of the kept edit.

    Raises:
        ValueError: no editable head of that name, or a rule outside the grammar.
    """
    site: Site = {"MLP": "mlp", "ATTN": "attention"}.get(label.upper().lstrip("L0123456789"), "heads")  # type: ignore[assignment]
    log_alphas = gates_at(run, site) if step is None else run.gates.at(step, site)
    mask = run.edit.site(site).mask.cpu().numpy()
    places = {unit_label(site, int(i), int(j)): (int(i), int(j)) for i, j in np.argwhere(mask)}
    if label.upper() not in places:
        raise ValueError(f"label: {label!r} is no editable unit of this edit; the first is {next(iter(places))}")
    unit = places[label.upper()]
    found = [Fact("use", _use(log_alphas, unit, rule))]
    if site == "heads":
        name = label.upper()
        found += [*_size(run, unit), *_shift(run, unit), *_effect(run, name), *_written(run, name), *_owner(run, name)]
    return tuple(found)


def _use(log_alphas: selection.LogAlphas, unit: tuple[int, int], rule: str) -> str:
    status = selection.STATUSES[int(selection.status(log_alphas, rule)[unit])]
    opens = ", ".join(f"{kind} {float(selection.measure('p_open', x)[unit]):.3f}" for kind, x in log_alphas.items())
    open_end = any(bool(undecided(value)[unit]) for value in log_alphas.values())
    return f"{status} under {rule}; P(open): {opens}{' (undecided)' if open_end else ''}"


def _size(run: Run, unit: tuple[int, int]) -> Iterator[Fact]:
    found = stored(run, "usage", Usage)
    if found is None:
        yield _missing("writes", "usage")
        return
    told = (f"{kind} {percent(float(found.size(kind)[unit]))}" for kind in KINDS)
    yield Fact("writes", f"{', '.join(told)} of the residual stream's norm (not-first tokens)")


def _shift(run: Run, unit: tuple[int, int]) -> Iterator[Fact]:
    found = stored(run, "shifts", Shifts)
    if found is None:
        yield _missing("moves", "shifts")
        return
    told = (f"{which} {float(found.pooled(which, 'norm')[unit]):.2f}" for which in NOTIONS)
    yield Fact("moves", f"‖Δz‖/‖z‖: {', '.join(told)} (not-first tokens)")


def _written(run: Run, label: str) -> Iterator[Fact]:
    found = stored(run, "readout", Readout)
    if found is None:
        yield _missing("readout", "readout")
        return
    frame = found.to_frame()
    rows = frame[frame["label"] == label]
    for row in rows.itertuples():
        yield Fact(f"readout, {row.kind}", str(row.top))
    if not len(rows):
        yield Fact("readout", "not among the heads that write most")


def _missing(fact: str, part: str) -> Fact:
    return Fact(fact, f"not measured (jola-interp analyse RUN --part {part})")


def _effect(run: Run, label: str) -> Iterator[Fact]:
    effects = stored(run, "effects", Effects)
    if effects is None:
        yield _missing("loss without it", "effects")
        return
    frame = effects.to_frame()
    told = [
        f"{row.kind} {row.effect:+.4f}" + ("" if math.isnan(row.se) else f" ± {2 * row.se:.4f}")
        for row in frame[frame["label"] == label].itertuples()
        if row.measured
    ]
    text = ", ".join(told) + " nats per answer token (± 2 standard errors)" if told else "0: no gate of it acts"
    yield Fact("loss without it", text)


def _owner(run: Run, label: str) -> Iterator[Fact]:
    from jola_interp.evidence.card import Card

    card = Card.load(run)
    if card is None or "audit" not in card.had:
        yield Fact("audit", "not run (jola-interp evidence RUN)")
        return
    yield Fact("audit", stored_audit(card.had["audit"]).sentence(label))
