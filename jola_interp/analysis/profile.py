"""Gates counted: by layer, by threshold, over training, and under each way to read them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from jola_interp import gates, selection
from jola_interp.analysis.curves import smoothed
from jola_interp.analysis.grids import GridMap, Sheet
from jola_interp.analysis.summary import gate_summary, gates_at, kept_label, kept_step, percent, title_of
from jola_interp.analysis.tables import NotMeasuredError
from jola_interp.convergence import GATE_GAP, UNDECIDED
from jola_interp.edits.base import Site, unit_label

if TYPE_CHECKING:
    import pandas as pd

    from jola_interp.runs import Run

EITHER = "either"
"""Beside the kinds of gates: heads with a gate of any kind open."""
MARKED = (selection.DEFAULT_RULE, "expected>0.0881", "point>0")
"""The rules that :func:`thresholds` marks."""
PAPER_CLOSED = {"additive": 0.86, "multiplicative": 0.94}
"""Shares of gates that the paper reports as closed (JoLA §3); it gives no threshold."""
MOST_ROWS, MOST_COLUMNS = 300, 150
"""Of a strip; larger ones average neighbouring heads and leave out records, and say so."""
_SPACINGS = tuple(digit * 10**power for power in range(8) for digit in (1, 2, 5))


# -- by layer ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LayerProfile:
    """Heads and gates per layer, beside what as many heads drawn at random would give.

    Attributes:
        rule: when a gate counts as open.
        site: where the gates act.
        editable: [layer] editable heads.
        counts: status to [layer] heads of it; "none" included.
        expected: kind to [layer] Σ P(open).
        opened: kind to [layer] gates open under the rule.
        random_mean, random_low, random_high: [layer] selected heads if as many were drawn at random over all editable
            heads: mean, and the ends of the range that holds at least 95 % (hypergeometric, exact).
        p: [layer] two-sided p of the count under that law, 2·min(P(≤ count), P(≥ count)), at most 1.
        by_chance: how many layers are expected outside the range.
        gates, decided: how many gates there are, and with P(open) < .05 or > .95.
        kept: which state of training this is.
        title: model and task.
    """

    rule: str
    site: str
    editable: Int[np.ndarray, " layer"]
    counts: Mapping[str, Int[np.ndarray, " layer"]]
    expected: Mapping[str, Float[np.ndarray, " layer"]]
    opened: Mapping[str, Int[np.ndarray, " layer"]]
    random_mean: Float[np.ndarray, " layer"]
    random_low: Float[np.ndarray, " layer"]
    random_high: Float[np.ndarray, " layer"]
    p: Float[np.ndarray, " layer"]
    by_chance: float
    gates: int
    decided: int
    kept: str
    title: str

    @property
    def selected(self) -> Int[np.ndarray, " layer"]:
        """Heads that the rule selects."""
        return np.asarray(self.editable - self.counts["none"])

    @property
    def outside(self) -> Bool[np.ndarray, " layer"]:
        """True where the count is outside the random range."""
        return np.asarray((self.selected < self.random_low) | (self.selected > self.random_high))

    @property
    def p_holm(self) -> Float[np.ndarray, " layer"]:
        """``p`` corrected for having looked at every layer with an editable head (Holm 1979)."""
        corrected, tested = np.ones(len(self.p)), np.flatnonzero(self.editable > 0)
        order = tested[np.argsort(self.p[tested], kind="stable")]
        factors = len(order) - np.arange(len(order))
        corrected[order] = np.minimum(np.maximum.accumulate(factors * self.p[order]), 1.0)
        return corrected

    def sentences(self) -> tuple[str, ...]:
        """How many are selected, whether layers differ by more than chance, and how many gates are undecided."""
        total, layers = int(self.editable.sum()), int((self.editable > 0).sum())
        opens = ", ".join(f"{value.sum():.1f} {kind}" for kind, value in self.expected.items())
        found = (
            f"{self.rule} selects {self.selected.sum():,} of {total:,} {_noun(self.site)}; Σ P(open): {opens}.",
            "Band: 95 % of counts if as many were drawn at random over all editable ones (hypergeometric, exact); "
            f"outside it: {self.outside.sum()} of {_counted(layers, 'layer')}, {self.by_chance:.1f} expected by "
            f"chance; {(self.p_holm < 0.05).sum()} with p < .05 after Holm's correction.",
        )
        if self.decided == self.gates:
            return found
        return *found, f"{self.gates - self.decided:,} of {self.gates:,} gates are undecided."

    def to_frame(self) -> pd.DataFrame:
        """One row per layer: layer, editable, selected, each status, expected_ and open_ of each kind, the null, p."""
        import pandas as pd

        columns = {"layer": np.arange(len(self.editable)), "editable": self.editable, "selected": self.selected}
        columns |= dict(self.counts)
        columns |= {f"expected_{kind}": value for kind, value in self.expected.items()}
        columns |= {f"open_{kind}": value for kind, value in self.opened.items()}
        columns |= {name: getattr(self, name) for name in ("random_mean", "random_low", "random_high", "p", "p_holm")}
        return pd.DataFrame(columns)


def layer_profile(run: Run, rule: str = selection.DEFAULT_RULE, site: Site = "heads") -> LayerProfile:
    """Heads of each status, Σ P(open) and open gates per layer of the kept edit.

    Raises:
        ValueError: a rule outside the grammar, an unknown site, or an edit without gates there.
    """
    log_alphas = gates_at(run, site)
    codes, opened = selection.status(log_alphas, rule), selection.open_gates(log_alphas, rule)
    mask = ~np.isnan(next(iter(log_alphas.values())))
    editable, summary = mask.sum(1), gate_summary(run, rule, site)
    null = _random_counts(editable, ((codes > 0) & mask).sum(1))
    return LayerProfile(
        rule=rule,
        site=site,
        editable=editable,
        counts={name: ((codes == code) & mask).sum(1) for code, name in enumerate(selection.STATUSES)},
        expected={kind: np.nansum(_p_open(value), 1, dtype=float) for kind, value in log_alphas.items()},
        opened={kind: value.sum(1) for kind, value in opened.items()},
        **null,  # type: ignore[arg-type]
        gates=summary.gates,
        decided=summary.decided,
        kept=kept_label(run),
        title=title_of(run),
    )


def _random_counts(
    editable: Int[np.ndarray, " layer"], selected: Int[np.ndarray, " layer"]
) -> dict[str, Float[np.ndarray, " layer"] | float]:
    """Counts per layer of Σ ``selected`` heads drawn without replacement from Σ ``editable``: the exact law."""
    from scipy.stats import hypergeom

    total, drawn = int(editable.sum()), int(selected.sum())
    law = hypergeom(max(total, 1), editable, drawn)
    low, high = np.maximum(law.ppf(0.025), 0.0), np.minimum(law.ppf(0.975), editable).astype(float)
    p = np.minimum(2 * np.minimum(law.cdf(selected), law.sf(selected - 1)), 1.0)
    beyond = law.cdf(low - 1) + law.sf(high)
    mean = editable * (drawn / max(total, 1))
    return {"random_mean": mean, "random_low": low, "random_high": high, "p": p, "by_chance": float(beyond.sum())}


# -- by threshold ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mark:
    """What one rule counts, and where it stands on the axis of P(open).

    Attributes:
        rule: such as "point>0".
        threshold: the P(open) above which it takes a gate as open.
        counts: kind, and "either", to heads.
    """

    rule: str
    threshold: float
    counts: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class Thresholds:
    """How many heads have a gate above a threshold, for every threshold.

    Attributes:
        site: where the gates act.
        thresholds: [threshold] on P(open), from 0 to 1.
        counts: kind, and "either", to [threshold] heads with P(open) above it.
        marks: what named rules count.
        closed: kind to gates that are exactly 0 under the released code's point gate.
        units: editable heads.
        title: model and task.
    """

    site: str
    thresholds: Float[np.ndarray, " threshold"]
    counts: Mapping[str, Int[np.ndarray, " threshold"]]
    marks: tuple[Mark, ...]
    closed: Mapping[str, int]
    units: int
    title: str

    def sentences(self) -> tuple[str, ...]:
        """What the rules count, what the paper's code would call closed, and how much the threshold decides."""
        low, high = (self.at(bound) for bound in UNDECIDED)
        ruled = ", ".join(f"{mark.counts[EITHER]:,} by {mark.rule}" for mark in self.marks)
        closed = ", ".join(f"{n:,} {kind} ({percent(n / self.units)})" for kind, n in self.closed.items())
        edge = float(gates.p_open(torch.tensor(gates.LOG_ALPHA_CLOSED)))
        paper = " and ".join(f"{100 * share:.0f} % of {kind}" for kind, share in PAPER_CLOSED.items())
        return (
            f"Of {self.units:,} {_noun(self.site)}: {ruled or 'no rule marked'}. Thresholds of {UNDECIDED[0]:g} and "
            f"{UNDECIDED[1]:g} select {low:,} and {high:,}: which one is chosen decides about {low - high:,}.",
            f"Exactly 0 under the released code's point gate (log α ≤ −ln 11, P(open) ≤ {edge:.3f}): {closed} gates. "
            f"JoLA reports {paper} gates closed, by a threshold on E[g] that it does not give; with the settings of "
            "its released code (Σ gate learning rate 1.25) no gate gets as far as 0.",
        )

    def at(self, threshold: float) -> int:
        """Heads with a gate of any kind above the last tabled threshold not above ``threshold``."""
        row = int(np.searchsorted(self.thresholds, threshold + 1e-9, side="right")) - 1
        return int(self.counts[EITHER][max(row, 0)])

    def to_frame(self) -> pd.DataFrame:
        """Tidy: kind (or "either"), threshold, heads, share; rows of marks have their rule."""
        import pandas as pd

        frames = [
            pd.DataFrame({"kind": kind, "threshold": self.thresholds, "heads": value, "rule": ""})
            for kind, value in self.counts.items()
        ]
        rows = [
            {"kind": kind, "threshold": mark.threshold, "heads": count, "rule": mark.rule}
            for mark in self.marks
            for kind, count in mark.counts.items()
        ]
        table = pd.concat([*frames, pd.DataFrame(rows)] if rows else frames, ignore_index=True)
        return table.assign(share=table["heads"] / self.units)


def thresholds(run: Run, site: Site = "heads", rules: Iterable[str] = MARKED, points: int = 101) -> Thresholds:
    """Heads of the kept edit whose P(open) exceeds each of ``points`` thresholds from 0 to 1.

    Args:
        run: whose gates.
        site: where the gates act.
        rules: what to mark; each of the form "measure>number".
        points: how many thresholds, at least 2.

    Raises:
        ValueError: a rule of another form, too few points, an unknown site, or an edit without gates there.
    """
    if points < 2:
        raise ValueError(f"points must be 2 or more; got {points}")
    marked = tuple(rules)
    if ranked := [rule for rule in marked if selection.parse_rule(rule).threshold is None]:
        raise ValueError(f"rules must be of the form 'measure>number', such as p_open>0.5; got {ranked[0]!r}")
    log_alphas = gates_at(run, site)
    bars = np.linspace(0, 1, points).astype(np.float32)  # as selection compares: p_open is float32
    values = {kind: _p_open(value) for kind, value in log_alphas.items()}
    values[EITHER] = np.max(list(values.values()), axis=0)
    units = int(np.isfinite(values[EITHER]).sum())
    exactly_open = selection.open_gates(log_alphas, "point>0")
    return Thresholds(
        site=site,
        thresholds=np.linspace(0, 1, points),
        counts={kind: _above(value[np.isfinite(value)], bars) for kind, value in values.items()},
        marks=tuple(_mark(rule, log_alphas) for rule in marked),
        closed={kind: units - int(value.sum()) for kind, value in exactly_open.items()},
        units=units,
        title=title_of(run),
    )


def _above(values: Float[np.ndarray, " gate"], bars: Float[np.ndarray, " threshold"]) -> Int[np.ndarray, " threshold"]:
    return len(values) - np.searchsorted(np.sort(values), bars, side="right")


def _mark(rule: str, log_alphas: selection.LogAlphas) -> Mark:
    counts = {kind: int(value.sum()) for kind, value in _opened(log_alphas, rule).items()}
    return Mark(rule, _place(rule), counts)


def _place(rule: str) -> float:
    """The P(open) above which a rule takes a gate as open: all measures rise with log α, so bisection finds it."""
    parsed = selection.parse_rule(rule)
    low, high = -40.0, 40.0
    for _ in range(80):
        middle = (low + high) / 2
        value = float(selection.MEASURES[parsed.measure](torch.tensor(middle, dtype=torch.float64)))
        low, high = (low, middle) if value > (parsed.threshold or 0.0) else (middle, high)
    return float(gates.p_open(torch.tensor(high, dtype=torch.float64)))


# -- over training -----------------------------------------------------------------------------------------------------


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
            f"At step {self.steps[-1]}, of {self.units:,} {_noun(self.site)}: {ends}.",
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
    opened = [{k: int(v.sum()) for k, v in _opened(record, rule).items()} for record in records]
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
    values = {kind: _p_open(run.gates.log_alpha(kind, site)[:, mask]) for kind in kinds}  # type: ignore[arg-type]
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


# -- under each way to read gates --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class GateGap:
    """Cross-entropy of the same validation rows with sampled gates, as in training, and with each inference gate.

    Attributes:
        gates: [gate] "sampled", "expected", "point", "hard".
        ce: [gate] nats per answer token; of "sampled" the mean over the draws.
        low, high: [gate] 95 % interval over the draws (Student's t); NaN for gates that are not drawn.
        used: the gate that the Run uses at inference.
        bound: the largest |CE(sampled) − CE(hard)| of a converged Run.
        rows, draws: validation rows, and draws of the gates on each.
        title: model and task.
    """

    gates: tuple[str, ...]
    ce: Float[np.ndarray, " gate"]
    low: Float[np.ndarray, " gate"]
    high: Float[np.ndarray, " gate"]
    used: str
    bound: float
    rows: int
    draws: int
    title: str

    @property
    def above_sampled(self) -> Float[np.ndarray, " gate"]:
        """CE − CE(sampled)."""
        return np.asarray(self.ce - self.ce[self.gates.index("sampled")])

    def sentences(self) -> tuple[str, ...]:
        """What the gate in use costs beside training's, and what the interval is of."""
        gap = dict(zip(self.gates, self.above_sampled, strict=True))
        others = "" if self.used == "hard" else f" CE(hard) − CE(sampled) = {gap['hard']:+.4f} nat."
        return (
            f"CE({self.used}, used at inference) − CE(sampled, as trained) = {gap[self.used]:+.4f} nat.{others} "
            f"Dotted: CE(sampled) ± {self.bound:g}, within which CE(hard) of a converged Run lies.",
            f"{self.rows} validation rows, the same for all. Bar: 95 % interval over {self.draws} draws of the gates; "
            "the other gates are not drawn. How far CE varies between rows is not stored and not in the bar.",
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per gate: gate, ce, low, high, above_sampled, used."""
        import pandas as pd

        columns = {"gate": self.gates, "ce": self.ce, "low": self.low, "high": self.high}
        used = [gate == self.used for gate in self.gates]
        return pd.DataFrame(columns | {"above_sampled": self.above_sampled, "used": used})


def gate_gap(run: Run) -> GateGap:
    """CE of the kept edit with sampled, expected, point and hard gates, from the stamp that training left.

    Raises:
        ValueError: the Run has no stamp.
    """
    from scipy.stats import t

    stamp = run.convergence
    if stamp is None:
        raise NotMeasuredError(
            f"{run.path} has no convergence.json: only a finished training of an edit with gates leaves one"
        )
    names = tuple(stamp.ce)
    ce = np.array([stamp.ce[name] for name in names], dtype=float)
    half = float(t.ppf(0.975, stamp.draws - 1)) * stamp.sampled_se if stamp.draws > 1 else math.nan
    arms = np.array([half if name == "sampled" else np.nan for name in names])
    return GateGap(
        gates=names,
        ce=ce,
        low=ce - arms,
        high=ce + arms,
        used=str(run.edit.inference),
        bound=GATE_GAP,
        rows=stamp.rows,
        draws=stamp.draws,
        title=title_of(run),
    )


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
        values = np.stack([_p_open(record[kind][mask]) for record in records], axis=1)  # [gate, step]
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


def _p_open(log_alpha: Float[np.ndarray, "*gates"]) -> Float[np.ndarray, "*gates"]:
    return selection.measure("p_open", log_alpha)


def _opened(log_alphas: selection.LogAlphas, rule: str) -> dict[str, Bool[np.ndarray, "layer unit"]]:
    """Kind, and "either", to what the rule takes as open."""
    opened = selection.open_gates(log_alphas, rule)
    return {**opened, EITHER: np.any(list(opened.values()), axis=0)}


def _expected(log_alphas: selection.LogAlphas) -> dict[str, float]:
    """Kind to Σ P(open); "either" to Σ 1 − Π (1 − P(open))."""
    values = {kind: _p_open(value).astype(float) for kind, value in log_alphas.items()}
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


def _noun(site: str) -> str:
    return "heads" if site == "heads" else "units"


def _counted(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
