"""Gates counted: by layer, and by threshold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from jola_interp import gates, selection
from jola_interp.analysis.summary import gate_summary, gates_at, kept_label, percent, title_of
from jola_interp.convergence import UNDECIDED
from jola_interp.edits.base import Site

if TYPE_CHECKING:
    import pandas as pd

    from jola_interp.runs import Run

EITHER = "either"
"""Beside the kinds of gates: heads with a gate of any kind open."""
MARKED = (selection.DEFAULT_RULE, "expected>0.0881", "point>0")
"""The rules that :func:`thresholds` marks."""
PAPER_CLOSED = {"additive": 0.86, "multiplicative": 0.94}
"""Shares of gates that the paper reports as closed (JoLA §3); it gives no threshold."""


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
            f"{self.rule} selects {self.selected.sum():,} of {total:,} {noun(self.site)}; Σ P(open): {opens}.",
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
        expected={kind: np.nansum(p_open(value), 1, dtype=float) for kind, value in log_alphas.items()},
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
            f"Of {self.units:,} {noun(self.site)}: {ruled or 'no rule marked'}. Thresholds of {UNDECIDED[0]:g} and "
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
    values = {kind: p_open(value) for kind, value in log_alphas.items()}
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
    counts = {kind: int(value.sum()) for kind, value in opened_by(log_alphas, rule).items()}
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


# -- shared ------------------------------------------------------------------------------------------------------------


def p_open(log_alpha: Float[np.ndarray, "*gates"]) -> Float[np.ndarray, "*gates"]:
    return selection.measure("p_open", log_alpha)


def opened_by(log_alphas: selection.LogAlphas, rule: str) -> dict[str, Bool[np.ndarray, "layer unit"]]:
    """Kind, and "either", to what the rule takes as open."""
    opened = selection.open_gates(log_alphas, rule)
    return {**opened, EITHER: np.any(list(opened.values()), axis=0)}


def noun(site: str) -> str:
    return "heads" if site == "heads" else "units"


def _counted(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
