"""Effects of single gates side by side: opened alone against closed alone, and both as layer × head maps.

    surplus[gate] = alone[gate] − out[gate]        nats per answer token

Above 0 others stand in for the gate (redundancy), below 0 it works with others only (synergy).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from jola_interp.analysis.effects import Effects, Gate
from jola_interp.analysis.grids import GridMap, Sheet, reach
from jola_interp.analysis.ranking import gate_key
from jola_interp.edits.base import HeadShape, unit_label
from jola_interp.evidence.endpoint import Paired, paired

if TYPE_CHECKING:
    import pandas as pd

CLEAR = 2.0
"""Standard errors from 0 at which an effect counts as clear."""


@dataclass(frozen=True, eq=False)
class Interplay:
    """Each gate's effect when it alone is opened, beside that when it alone is closed. Made by :func:`interplay`.

    Attributes:
        title: model and task; "" if not known.
        gates: those that act.
        out, alone: by row, nats per token.
        gain: NLL(base) − NLL(edited) of each row.
    """

    title: str
    gates: tuple[Gate, ...]
    out: Float[np.ndarray, "gate row"] = field(repr=False)
    alone: Float[np.ndarray, "gate row"] = field(repr=False)
    gain: Float[np.ndarray, " row"] = field(repr=False)

    @property
    def labels(self) -> tuple[str, ...]:
        """Such as "L3H7", one per gate."""
        return tuple(gate.label for gate in self.gates)

    @property
    def surplus(self) -> Float[np.ndarray, " gate"]:
        """alone − out: above 0 others stand in for the gate, below 0 it works with others only."""
        return np.asarray((self.alone - self.out).mean(1))

    @property
    def clear(self) -> Bool[np.ndarray, " gate"]:
        """Whether the surplus is more than two standard errors from 0, paired by row."""
        return np.asarray(np.abs(self.surplus) > CLEAR * standard_errors(self.alone - self.out))

    def top(self, k: int) -> tuple[int, ...]:
        """Places of the ``k`` gates that gain most alone or cost most when left out, best first."""
        best = np.maximum(self.out.mean(1), self.alone.mean(1))
        return tuple(int(place) for place in np.argsort(-best, kind="stable")[:k])

    def sentence(self) -> str:
        """The sums beside the gain of all together, and how many gates are redundant or synergic."""
        redundant, synergic = (int((self.clear & (sign * self.surplus > 0)).sum()) for sign in (1, -1))
        chance = math.erfc(CLEAR / math.sqrt(2)) / 2 * len(self.gates)
        return (
            f"Opened alone the {len(self.gates)} gates gain {_told(self.alone.sum(0))} nat per token in sum, closed "
            f"alone they cost {_told(self.out.sum(0))}, all together they gain {_told(self.gain)}; {redundant} gain "
            f"clearly more alone than they cost when left out (others stand in), {synergic} clearly less (they need "
            f"others), at {CLEAR:g} standard errors (by chance {chance:.1f} of each)."
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per gate: label, kind, layer, head, out, alone, surplus, surplus_se, clear."""
        import pandas as pd

        return pd.DataFrame(
            {
                "label": self.labels,
                "kind": [gate.kind for gate in self.gates],
                "layer": [gate.layer for gate in self.gates],
                "head": [gate.unit for gate in self.gates],
                "out": self.out.mean(1),
                "alone": self.alone.mean(1),
                "surplus": self.surplus,
                "surplus_se": standard_errors(self.alone - self.out),
                "clear": self.clear,
            }
        )


def interplay(effects: Effects, alone: Effects, title: str = "") -> Interplay:
    """Put what :func:`leave_one_out` and :func:`add_one_in` gave for the same gates and rows side by side.

    Raises:
        ValueError: tables of the wrong kind, of different numbers of rows, or without a gate in common.
    """
    for name, table, method in (("effects", effects, "exact"), ("alone", alone, "alone")):
        if table.method != method:
            raise ValueError(f"{name} must be a table of method {method!r}; got {table.method!r}")
    if len(effects.nll) != len(alone.nll):
        raise ValueError(f"rows: {len(effects.nll)} left out and {len(alone.nll)} alone; measure both on the same rows")
    places = {gate_key(gate): i for i, gate in enumerate(alone.gates) if alone.measured[i]}
    both = [i for i, gate in enumerate(effects.gates) if effects.measured[i] and gate.acts and gate_key(gate) in places]
    if not both and effects.measured.any() and alone.measured.any():
        raise ValueError("effects and alone have no measured gate in common")
    gates = tuple(effects.gates[i] for i in both)
    found = alone.by_row[[places[gate_key(gate)] for gate in gates]]
    return Interplay(title, gates, effects.by_row[both], found, np.asarray(alone.nll - effects.nll))


def standard_errors(by_row: Float[np.ndarray, "gate row"]) -> Float[np.ndarray, " gate"]:
    """Of the mean over rows; NaN for a single row."""
    n = by_row.shape[1]
    return np.asarray(by_row.std(1, ddof=1) / math.sqrt(n)) if n > 1 else np.full(len(by_row), np.nan)


def _told(differences: Float[np.ndarray, " row"]) -> Paired | str:
    return paired(differences) if len(differences) > 1 else f"{float(differences.mean()):+.3f}"


# -- effects as maps -----------------------------------------------------------------------------------------------


def effect_sheet(effects: Effects, shape: HeadShape | None = None, title: str = "") -> Sheet:
    """Effects of the gates of heads as layer × head maps, one for each kind, on one scale around 0.

    A gate that does not act is left blank: its effect is 0 exactly, not a small number.

    Args:
        effects: exact ones, gradient estimates, or gates alone.
        shape: of the model; None is what the gates span.
        title: model and task.

    Raises:
        ValueError: no gate at heads.
    """
    heads = [i for i, gate in enumerate(effects.gates) if gate.site == "heads"]
    if not heads:
        raise ValueError("effects: no gate at heads, so there is no layer × head map of them")
    layers = 1 + max(effects.gates[i].layer for i in heads) if shape is None else shape.layers
    units = 1 + max(effects.gates[i].unit for i in heads) if shape is None else shape.heads
    group = 0 if shape is None else shape.group
    ends = reach("signed", effects.effect[effects.measured])
    kinds = dict.fromkeys(effects.gates[i].kind for i in heads)
    panels = tuple(_effect_map(effects, kind, (layers, units), ends, group) for kind in kinds)
    return Sheet((panels,), title, effect_notes(effects))


def effect_notes(effects: Effects) -> tuple[str, ...]:
    """What an effect is, and how many could be noise."""
    words = {
        "exact": "NLL without the gate − NLL with it: what is lost when it alone is closed",
        "gradient": "−g·∂NLL/∂g, to first order what is lost when the gate alone is closed",
        "alone": "NLL(base) − NLL with this gate alone: what it gains by itself",
    }
    measured, se = int(effects.measured.sum()), effects.se[effects.measured]
    notes = [f"{words[effects.method]}; mean over {effects.by_row.shape[1]} rows. Above 0 it helps."]
    if measured and np.isfinite(se).all():
        effect, known = effects.effect[effects.measured], effects.reliability
        clear, harmful = int((np.abs(effect) > CLEAR * se).sum()), int((effect < -CLEAR * se).sum())
        chance = math.erfc(CLEAR / math.sqrt(2)) * measured
        told = "" if math.isnan(known) else f"; reliability over halves of the rows {known:.2f}"
        notes.append(
            f"{clear} of {measured} gates lie more than {CLEAR:g} standard errors from 0, {harmful} of them below it "
            f"(they harm); {chance:.1f} would by chance{told}."
        )
    return tuple(notes)


def _effect_map(effects: Effects, kind: str, shape: tuple[int, int], ends: tuple[float, float], group: int) -> GridMap:
    """One kind; NaN and unmasked where a gate was not measured."""
    values, ratio, gate_of = (np.full(shape, np.nan) for _ in range(3))
    with np.errstate(invalid="ignore", divide="ignore"):
        told = zip(effects.gates, effects.effect, effects.effect / effects.se, effects.measured, strict=True)
        for gate, effect, times, measured in told:
            if measured and gate.site == "heads" and gate.kind == kind:
                at = (gate.layer, gate.unit)
                values[at], ratio[at], gate_of[at] = effect, times, gate.value
    known = sum(gate.site == "heads" and gate.kind == kind for gate in effects.gates)
    labels = [[unit_label("heads", i, j) for j in range(shape[1])] for i in range(shape[0])]
    return GridMap(
        values=values,
        title=kind,
        labels=np.array(labels, dtype=object),
        mask=np.isfinite(values),
        range=ends,
        kind="signed",
        hover={"effect / se": ratio, "gate": gate_of},
        group=group,
        unit="effect (nats per answer token)",
        absent="does not act" if known == shape[0] * shape[1] else "does not act, or not asked for",
    )
