"""Gates over training: how many are open, when each decides, and all of them step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from jola_interp import selection
from jola_interp.analysis.curves import smoothed
from jola_interp.analysis.grids import GridMap, Sheet
from jola_interp.analysis.profile import EITHER, noun, opened_by, p_open
from jola_interp.analysis.summary import gates_at, kept_label, kept_step, title_of
from jola_interp.convergence import UNDECIDED
from jola_interp.edits.base import Site, unit_label

if TYPE_CHECKING:
    import pandas as pd

    from jola_interp.runs import Run

MOST_ROWS, MOST_COLUMNS = 300, 150
"""Of a strip; larger ones average neighbouring heads and leave out records, and say so."""
_SPACINGS = tuple(digit * 10**power for power in range(8) for digit in (1, 2, 5))


# -- the budget, and when gates decide ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Budget:
    """How many gates are open over training, by expectation and under a rule, beside λ and the loss.

    Attributes:
        rule: when a gate counts as open.
        site: where the gates act.
        steps: [step] optimiser steps at which gates were recorded.
        expected: kind to [step] Σ P(open); "either" is Σ 1 − Π (1 − P(open)), the heads with an open gate if gates
            open independently.
        opened: kind to [step] gates open under the rule; "either" is the selected heads.
        weights: kind to [step] λ; NaN where it was not logged, as at step 0.
        ce: [step] cross-entropy of the training batch that led to the record, in nats per answer token; gates are
            sampled in it until they are fixed.
        smooth: [step] its centred mean over ``window`` records.
        window: see ``smooth``.
        units: editable heads.
        kept: the step whose parameters the Run kept.
        title: model and task.
    """

    rule: str
    site: str
    steps: Int[np.ndarray, " step"]
    expected: Mapping[str, Float[np.ndarray, " step"]]
    opened: Mapping[str, Int[np.ndarray, " step"]]
    weights: Mapping[str, Float[np.ndarray, " step"]]
    ce: Float[np.ndarray, " step"]
    smooth: Float[np.ndarray, " step"]
    window: int
    units: int
    kept: int
    title: str

    def sentences(self) -> tuple[str, ...]:
        """Where the counts ended, and how far expectation and rule are apart."""
        ends = "; ".join(
            f"{kind} {value[-1]:.1f} expected, {self.opened[kind][-1]:,} by the rule"
            for kind, value in self.expected.items()
        )
        return (
            f"At step {self.steps[-1]}, of {self.units:,} {noun(self.site)}: {ends}.",
            f"Solid: Σ P(open), what the penalty is made of. Dashed: gates open under {self.rule}. They part where "
            "gates are undecided.",
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per record: step, expected_, open_ and lambda_ of each kind, ce, ce_smooth."""
        import pandas as pd

        columns = {"step": self.steps}
        columns |= {f"expected_{kind}": value for kind, value in self.expected.items()}
        columns |= {f"open_{kind}": value for kind, value in self.opened.items()}
        columns |= {f"lambda_{kind}": value for kind, value in self.weights.items()}
        return pd.DataFrame(columns | {"ce": self.ce, "ce_smooth": self.smooth})


def budget(run: Run, rule: str = selection.DEFAULT_RULE, site: Site = "heads") -> Budget:
    """Expected and counted open gates at every record of the gates, with λ and the training loss.

    Raises:
        ValueError: a rule outside the grammar, an unknown site, an edit without gates there, or a Run without a
            record of its gates.
    """
    selection.parse_rule(rule)
    kinds = list(gates_at(run, site))
    _require_records(run)
    records = [run.gates.at(int(step), site) for step in run.gates.steps]
    expected = [_expected(record) for record in records]
    opened = [{k: int(v.sum()) for k, v in opened_by(record, rule).items()} for record in records]
    ce = _scalar(run, "ce")
    smooth, window = smoothed(ce)
    return Budget(
        rule=rule,
        site=site,
        steps=run.gates.steps.copy(),
        expected={kind: np.array([row[kind] for row in expected]) for kind in (*kinds, EITHER)},
        opened={kind: np.array([row[kind] for row in opened]) for kind in (*kinds, EITHER)},
        weights={kind: _scalar(run, f"lambda_{kind}") for kind in kinds},
        ce=ce,
        smooth=smooth,
        window=window,
        units=int(run.edit.site(site).mask.sum()),
        kept=kept_step(run),
        title=title_of(run),
    )


@dataclass(frozen=True, eq=False)
class Closing:
    """When each gate decided: the first record from which its P(open) stays < .05, or > .95, to the end.

    Attributes:
        site: where the gates act.
        steps: [step] optimiser steps at which gates were recorded; the resolution of ``decided``.
        labels: [gate] name of its head.
        kinds: [gate] its kind.
        decided: [gate] that step; NaN for a gate that never decides.
        ends: [gate] P(open) at the last record.
        returned: [gate] True where P(open) went beyond .05 or .95 before and came back; where it began does not count.
        fixed: the last step that moved gates, after which they stand still; None where their learning rate was not
            logged.
        ce, smooth, window: as in :class:`Budget`.
        kept: the step whose parameters the Run kept.
        title: model and task.
    """

    site: str
    steps: Int[np.ndarray, " step"]
    labels: tuple[str, ...]
    kinds: tuple[str, ...]
    decided: Float[np.ndarray, " gate"]
    ends: Float[np.ndarray, " gate"]
    returned: Bool[np.ndarray, " gate"]
    fixed: int | None
    ce: Float[np.ndarray, " step"]
    smooth: Float[np.ndarray, " step"]
    window: int
    kept: int
    title: str

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def outcomes(self) -> tuple[str, ...]:
        """[gate] "shut", "open" or "undecided"."""
        sides = np.where(self.ends < 0.5, "shut", "open")
        return tuple(np.where(np.isnan(self.decided), "undecided", sides).tolist())

    def over_time(self) -> dict[str, Int[np.ndarray, " step"]]:
        """Such as "additive, shut" to [step] gates of the kind that have decided so by then, for good."""
        kinds, outcomes = np.array(self.kinds), np.array(self.outcomes)
        found = {}
        for kind in dict.fromkeys(self.kinds):
            for outcome in ("shut", "open"):
                then = np.sort(self.decided[(kinds == kind) & (outcomes == outcome)])
                found[f"{kind}, {outcome}"] = np.searchsorted(then, self.steps, side="right")
        return found

    def top(self, k: int) -> Closing:
        """The ``k`` gates that decided first; those of the same step in the order of kinds, layers and heads."""
        order = np.argsort(self.decided, kind="stable")[:k]  # NaN comes last
        return replace(
            self,
            labels=tuple(self.labels[i] for i in order),
            kinds=tuple(self.kinds[i] for i in order),
            decided=self.decided[order],
            ends=self.ends[order],
            returned=self.returned[order],
        )

    def sentences(self) -> tuple[str, ...]:
        """How many decided, how many never had to move, how many came back, and from when gates stood still."""
        outcomes, at_once = self.outcomes, int((self.decided == self.steps[0]).sum())
        shut, opened = outcomes.count("shut"), outcomes.count("open")
        low, high = UNDECIDED
        found = [
            f"{len(self):,} gates: {shut:,} shut (P(open) < {low:g} to the end), {opened:,} open (> {high:g}), "
            f"{len(self) - shut - opened:,} undecided. {at_once:,} were so at step {self.steps[0]}, untrained; "
            f"{self.returned.sum():,} went beyond a bound before and came back."
        ]
        if self.fixed is not None and self.fixed < self.steps[-1]:
            found.append(f"Dotted: step {self.fixed}, after which gates are fixed; no later count is of training.")
        return tuple(found)

    def to_frame(self) -> pd.DataFrame:
        """One row per gate: label, kind, step (NaN if never), outcome, p_open at the end, returned."""
        import pandas as pd

        return pd.DataFrame(
            {
                "label": self.labels,
                "kind": self.kinds,
                "step": self.decided,
                "outcome": self.outcomes,
                "p_open": self.ends,
                "returned": self.returned,
            }
        )


def closing(run: Run, site: Site = "heads") -> Closing:
    """The step at which each gate decided, over the records of the gates.

    Raises:
        ValueError: an unknown site, an edit without gates there, or a Run without a record of its gates.
    """
    kinds = list(gates_at(run, site))
    _require_records(run)
    mask = run.edit.site(site).mask.cpu().numpy()
    names = tuple(unit_label(site, int(layer), int(unit)) for layer, unit in np.argwhere(mask))
    values = {kind: p_open(run.gates.log_alpha(kind, site)[:, mask]) for kind in kinds}  # type: ignore[arg-type]
    found = [_decisions(value, run.gates.steps) for value in values.values()]
    ce = _scalar(run, "ce")
    smooth, window = smoothed(ce)
    return Closing(
        site=site,
        steps=run.gates.steps.copy(),
        labels=names * len(kinds),
        kinds=tuple(kind for kind in kinds for _ in names),
        decided=np.concatenate([decided for decided, _ in found]),
        ends=np.concatenate([value[-1] for value in values.values()]),
        returned=np.concatenate([returned for _, returned in found]),
        fixed=_last_move(run),
        ce=ce,
        smooth=smooth,
        window=window,
        kept=kept_step(run),
        title=title_of(run),
    )


def _decisions(
    values: Float[np.ndarray, "step gate"], steps: Int[np.ndarray, " step"]
) -> tuple[Float[np.ndarray, " gate"], Bool[np.ndarray, " gate"]]:
    """The step from which P(open) stays beyond one bound (NaN: never), and whether it went beyond one before that."""
    shut, opened = values < UNDECIDED[0], values > UNDECIDED[1]
    ends_shut, beyond = shut[-1], shut | opened
    stays = np.where(ends_shut, shut, opened)  # on the side of the end
    tail = np.where(stays.all(0), len(steps), np.argmin(stays[::-1], axis=0))  # records of the last stay
    first = len(steps) - tail
    decided = np.where(tail > 0, steps[np.minimum(first, len(steps) - 1)].astype(float), np.nan)
    before = np.arange(len(steps))[:, None] < first
    moved = np.cumsum(~beyond, axis=0) > 0  # where a gate began is the noise of its start, no decision
    return decided, np.asarray((beyond & before & moved).any(0))


def _last_move(run: Run) -> int | None:
    """The last step with a learning rate of the gates above 0; None where it was not logged."""
    rows = run.metrics
    if "gate_lr" not in rows:
        return None
    moved = rows[rows["gate_lr"] > 0]["step"]
    return int(moved.iloc[-1]) if len(moved) else 0


# -- step by head ------------------------------------------------------------------------------------------------------


def strips(run: Run, site: Site = "heads") -> Sheet:
    """P(open) over training as step × head maps, a panel per kind: heads in order of layer, layer 0 at the bottom.

    At most 150 records and 300 rows: beyond that records are left out evenly, and a row is the mean P(open) of
    neighbouring heads of one layer, the share of them expected to be open.

    Raises:
        ValueError: an unknown site, an edit without gates there, or a Run without a record of its gates.
    """
    kinds = list(gates_at(run, site))
    _require_records(run)
    mask = run.edit.site(site).mask.cpu().numpy()
    size = _group_size(mask.sum(1))
    starts, names, layers = _groups(mask, size, site)
    steps = _thinned(run.gates.steps, MOST_COLUMNS)
    records = [run.gates.at(int(step), site) for step in steps]
    labels = np.array([[name] * len(steps) for name in names], dtype=object)  # with the step they would be megabytes
    common = {
        "labels": labels,
        "mask": np.ones(labels.shape, dtype=bool),
        "x_ticks": _step_ticks(steps, 6),
        "y_ticks": _layer_ticks(layers, 12),
    }
    panels = []
    for kind in kinds:
        values = np.stack([p_open(record[kind][mask]) for record in records], axis=1)  # [gate, step]
        sizes = np.diff([*starts, len(values)])[:, None]
        shares = (np.add.reduceat(values, starts, axis=0) / sizes).astype(np.float32)
        panels.append(_strip(shares, kind, common))
    return Sheet((tuple(panels),), f"{title_of(run)}: P(open) over training", _strip_notes(run, steps, size))


def _strip(values: Float[np.ndarray, "row step"], kind: str, common: Mapping[str, object]) -> GridMap:
    named = {"range": (0.0, 1.0), "kind": "probability", "x_label": "optimiser step", "y_label": "layer"}
    return GridMap(values=values, title=f"{kind} gates", **named, **common)  # type: ignore[arg-type]


def _strip_notes(run: Run, steps: Int[np.ndarray, " step"], size: int) -> tuple[str, ...]:
    notes = [f"A row is {'a head' if size == 1 else f'the mean of up to {size} neighbouring heads of a layer'}."]
    if len(steps) < len(run.gates):
        notes.append(f"{len(steps)} of {len(run.gates):,} records, evenly spaced.")
    return *notes, f"The Run keeps {kept_label(run)}."


def _group_size(editable: Int[np.ndarray, " layer"]) -> int:
    """The smallest number of neighbours a row for which there are at most ``MOST_ROWS`` rows; a row holds one layer."""
    most = int(editable.max())
    return next((n for n in range(1, most) if int((-(-editable // n)).sum()) <= MOST_ROWS), most)


def _groups(mask: Bool[np.ndarray, "layer unit"], size: int, site: Site) -> tuple[list[int], list[str], list[int]]:
    """Where each row begins among the editable units, its name, and its layer."""
    starts, names, layers, place = [], [], [], 0
    for layer, row in enumerate(mask):
        units = np.flatnonzero(row)
        for group in (units[i : i + size] for i in range(0, len(units), size)):
            first = unit_label(site, layer, int(group[0]))
            starts.append(place)
            names.append(first if len(group) == 1 else f"{first}-{group[-1]}")  # "L3H0-31"; a dash is six bytes of HTML
            layers.append(layer)
            place += len(group)
    return starts, names, layers


def _step_ticks(steps: Int[np.ndarray, " step"], most: int) -> tuple[tuple[float, str], ...]:
    """At most ``most`` round steps, each at the column of its record or between those beside it."""
    apart = next(n for n in _SPACINGS if steps[-1] // n - (steps[0] - 1) // n <= most)
    shown = range(-(-int(steps[0]) // apart) * apart, int(steps[-1]) + 1, apart)
    return tuple((float(np.interp(step, steps, np.arange(len(steps)))), str(step)) for step in shown)


def _layer_ticks(layers: list[int], most: int) -> tuple[tuple[float, str], ...]:
    """The middle row of every layer, or of every 2nd, 5th, 10th, …, so that there are at most ``most``."""
    known, rows = sorted(set(layers)), np.array(layers)
    apart = next(n for n in _SPACINGS if sum(layer % n == 0 for layer in known) <= most)
    return tuple((float(np.flatnonzero(rows == layer).mean()), str(layer)) for layer in known if layer % apart == 0)


# -- shared ------------------------------------------------------------------------------------------------------------


def _expected(log_alphas: selection.LogAlphas) -> dict[str, float]:
    """Kind to Σ P(open); "either" to Σ 1 − Π (1 − P(open))."""
    values = {kind: p_open(value).astype(float) for kind, value in log_alphas.items()}
    values[EITHER] = 1 - np.prod([1 - value for value in values.values()], axis=0)
    return {kind: float(np.nansum(value)) for kind, value in values.items()}


def _scalar(run: Run, name: str) -> Float[np.ndarray, " step"]:
    """What training logged under a name, at the records of the gates; NaN where it did not."""
    values, records = run.gates.scalars.get(name), len(run.gates)
    return np.full(records, np.nan) if values is None else np.array(values[:records], dtype=float)


def _require_records(run: Run) -> None:
    if not len(run.gates):
        raise ValueError("this Run has no record of its gates")


def _thinned(values: Int[np.ndarray, " n"], most: int) -> Int[np.ndarray, " m"]:
    return values[_evenly(len(values), most)]


def _evenly(length: int, most: int) -> list[int]:
    """At most ``most`` places of ``length``, evenly spaced, the first and the last among them."""
    return sorted({round(place) for place in np.linspace(0, length - 1, min(length, most)).tolist()})
