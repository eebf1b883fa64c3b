"""Does a cheap number tell which gates matter: P(open), size and gradient, held to the effect of closing each gate.

    ρ = Spearman's rank correlation with the exact effects, over gates that act
    ρ/√reliability: the same without the noise of the effects

Beside ρ stand its interval over gates and what random rankings reach.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from jola_interp import selection
from jola_interp.analysis.effects import Effects, Gate
from jola_interp.analysis.ranking import gate_key
from jola_interp.analysis.summary import title_of
from jola_interp.analysis.tables import stored
from jola_interp.analysis.usage import Usage
from jola_interp.evaluation.metrics import RESAMPLES, middle
from jola_interp.runs import Run

if TYPE_CHECKING:
    import pandas as pd

ALL = "all"
"""Every kind of gate together."""
NAMES = {"p_open": "P(open)", "size": "size", "gradient": "gradient estimate"}
"""What scores are called in words."""
PERMUTATIONS = 1000


@dataclass(frozen=True)
class Agreement:
    """Spearman's ρ of a score with the exact effects, over gates that act.

    Attributes:
        score: ``p_open``, ``size`` or ``gradient``.
        kind: of the gates; "all" is every kind together.
        gates: how many.
        rho: ρ; NaN with fewer than three gates, or where scores or effects do not vary.
        low, high: 95 % bootstrap interval over gates.
        reliability: of the effects over halves of the rows (:attr:`Effects.reliability`).
        null: 95 % of random rankings have |ρ| below this.
        p: share of random rankings with a ρ at least as far from 0.
    """

    score: str
    kind: str
    gates: int
    rho: float
    low: float
    high: float
    reliability: float
    null: float
    p: float

    @property
    def corrected(self) -> float:
        """ρ/√reliability: what ρ would be without the noise of the effects; NaN where nothing is reliable.

        Above 1 by chance, or where score and effects share noise. Source: Spearman 1904 ("The proof and measurement of
        association between two things"), for correlations; with ranks it is an approximation.
        """
        return self.rho / math.sqrt(self.reliability) if self.reliability > 0 else math.nan

    def __str__(self) -> str:
        if math.isnan(self.rho):
            return "ρ undefined"
        return f"ρ = {self.rho:+.2f} [{self.low:+.2f}, {self.high:+.2f}]".replace("-", "−")


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """Does a cheap number rank the gates that act as their exact effects do? Made by :func:`faithfulness`.

    Attributes:
        title: model and task.
        rows: on how many rows the effects were measured.
        gates: those that act, as in the table of effects.
        effect, se: exact effects and their standard errors over rows, nats per token.
        scores: name to values, of those scores that are known.
        units: name to what its values are, as an axis says it.
        agreements: a row for each score and kind.
    """

    title: str
    rows: int
    gates: tuple[Gate, ...]
    effect: Float[np.ndarray, " gate"] = field(repr=False)
    se: Float[np.ndarray, " gate"] = field(repr=False)
    scores: Mapping[str, Float[np.ndarray, " gate"]] = field(repr=False)
    units: Mapping[str, str] = field(repr=False)
    agreements: tuple[Agreement, ...] = field(repr=False)

    @property
    def labels(self) -> tuple[str, ...]:
        """Such as "L3H7", one per gate."""
        return tuple(gate.label for gate in self.gates)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of gates, each once, in the order in which they come."""
        return tuple(dict.fromkeys(gate.kind for gate in self.gates))

    def of(self, score: str, kind: str = ALL) -> Agreement:
        """One agreement.

        Raises:
            ValueError: a score or kind that is not there.
        """
        for found in self.agreements:
            if (found.score, found.kind) == (score, kind):
                return found
        known = ", ".join(f"{found.score}/{found.kind}" for found in self.agreements)
        raise ValueError(f"score/kind must be one of {known}; got {score}/{kind}")

    def top(self, k: int) -> tuple[int, ...]:
        """Places of the ``k`` gates that help most, best first."""
        return tuple(int(place) for place in np.argsort(-self.effect, kind="stable")[:k])

    def heading(self, score: str) -> str:
        """ρ over all gates; kind by kind where kinds cannot be ranked together."""
        found = [row for row in self.agreements if row.score == score]
        if not found or not math.isnan(found[0].rho):
            return str(found[0]) if found else ""
        told = [f"{row.kind} {row.rho:+.2f}" for row in found[1:] if not math.isnan(row.rho)]
        return f"ρ: {', '.join(told)}".replace("-", "−") if told else "ρ undefined"

    def sentence(self) -> str:
        """Every score over all gates, in words."""
        if not self.agreements:
            return "No gate that acts was measured, so no ranking can be held to its effects."
        told = []
        for score in self.scores:
            found = self.of(score)
            if math.isnan(found.rho):
                told.append(f"{NAMES[score]}: {self.heading(score)}")
                continue
            shared = score == "gradient" or math.isnan(found.corrected)  # on the same rows errors are not independent
            without = "" if shared else f", {found.corrected:+.2f} without the noise of the effects"
            told.append(f"{NAMES[score]}: {found}{without.replace('-', '−')}")
        first = self.agreements[0]
        null = "" if math.isnan(first.null) else f"; random rankings stay within ±{first.null:.2f}"
        return (
            f"Rank agreement with the exact effects of the {len(self.gates)} gates that act ({self.rows} rows, "
            f"reliability {first.reliability:.2f}): {'; '.join(told)} (95 % over gates{null})."
        )

    def notes(self) -> tuple[str, ...]:
        """What must be known to read the agreements."""
        found = ["Bars: 2 standard errors over rows; ρ is Spearman's, 95 % over gates."]
        if "gradient" in self.scores:
            found.append("Gradients that were taken on the rows of the effects share their noise: that ρ is flattered.")
        if len(self.kinds) > 1 and "size" in self.scores and math.isnan(self.of("size").rho):
            found.append("Sizes of different kinds are in different units, so they have no ρ together.")
        return (self.sentence(), *found)

    def to_frame(self) -> pd.DataFrame:
        """One row per agreement: score, kind, gates, rho, low, high, reliability, corrected, null, p."""
        import pandas as pd

        names = ["score", "kind", "gates", "rho", "low", "high", "reliability", "corrected", "null", "p"]
        return pd.DataFrame([[getattr(row, name) for name in names] for row in self.agreements], columns=names)


def faithfulness(
    run: Run, effects: Effects, estimate: Effects | None = None, usage: Usage | None = None, *, seed: int = 0
) -> Faithfulness:
    """Spearman's ρ of P(open), size and gradient estimate with exact effects, over gates that act; no pass is run.

    Args:
        run: whose gates.
        effects: exact, measured on rows that were not trained on (or what :func:`add_one_in` gave).
        estimate: gradient estimates of the same gates; None is the column beside the effects, if there is one. Taken
            on other rows they share no noise with the effects.
        usage: sizes; None is the Run's table ``usage``, and without one ‖g·v‖ of each gate's own vectors, which can be
            ranked within a kind alone.
        seed: of bootstrap and permutations.

    Raises:
        ValueError: effects that are gradients themselves, or an estimate that lacks a gate.
    """
    if effects.method == "gradient":
        raise ValueError("effects must be exact (leave_one_out or add_one_in); got gradient estimates")
    places = [i for i, gate in enumerate(effects.gates) if gate.acts and effects.measured[i]]
    acting = tuple(effects.gates[i] for i in places)
    scores = {"p_open": np.array([_gate_p_open(run, gate) for gate in acting])} if run.edit.log_alphas() else {}
    units = {"p_open": "P(open)", "gradient": "gradient estimate (nats per token)"}
    found = usage or stored(run, "usage", Usage)
    scores["size"] = np.array([_gate_size(run, gate, found) for gate in acting])
    units["size"] = "‖g·v‖" if found is None else "size (share of the stream's norm)"
    guessed = _estimates(effects, estimate, acting)
    scores |= {} if guessed is None else {"gradient": guessed}
    by_row = effects.by_row[places]
    kept = replace(effects, gates=acting, by_row=by_row, measured=effects.measured[places], estimate=None)
    comparable = found is not None or len(set(kept.kinds)) < 2
    return Faithfulness(
        title=title_of(run),
        rows=effects.by_row.shape[1],
        gates=acting,
        effect=kept.effect,
        se=kept.se,
        scores=scores,
        units={name: units[name] for name in scores},
        agreements=_agreements(kept, scores, comparable, seed),
    )


def _agreements(
    effects: Effects, scores: Mapping[str, Float[np.ndarray, " gate"]], comparable: bool, seed: int
) -> tuple[Agreement, ...]:
    """All kinds together first, then each where there are several; sizes together only where they can be compared."""
    kinds = tuple(dict.fromkeys(effects.kinds))
    rows = []
    for kind in (ALL, *(kinds if len(kinds) > 1 else ())) if len(effects) else ():
        places = np.array([kind in (ALL, other) for other in effects.kinds])
        gates = tuple(gate for gate, wanted in zip(effects.gates, places, strict=True) if wanted)
        part = replace(effects, gates=gates, by_row=effects.by_row[places], measured=effects.measured[places])
        reliability = part.reliability
        for name, values in scores.items():
            told = values[places] if comparable or kind != ALL or name != "size" else np.full(len(gates), np.nan)
            rho, low, high, null, p = rank_agreement(told, part.effect, seed)
            rows.append(Agreement(name, kind, len(gates), rho, low, high, reliability, null, p))
    return tuple(rows)


def rank_agreement(
    first: Float[np.ndarray, " gate"], second: Float[np.ndarray, " gate"], seed: int = 0
) -> tuple[float, float, float, float, float]:
    """(ρ, low, high, null, p): Spearman's ρ, its bootstrap interval, and what permutations give; NaN if undefined."""
    n = len(first)
    if n < 3 or not (np.isfinite(first).all() and np.isfinite(second).all()):
        return (math.nan,) * 5
    rho = float(_rank_correlation(first[None], second[None])[0])
    if math.isnan(rho):
        return (math.nan,) * 5
    generator = np.random.default_rng(seed)
    picks = generator.integers(n, size=(RESAMPLES, n))
    drawn = _rank_correlation(first[picks], second[picks])
    permuted = generator.permuted(np.tile(second, (PERMUTATIONS, 1)), axis=1)
    null = np.abs(_rank_correlation(np.tile(first, (PERMUTATIONS, 1)), permuted))
    p = float((1 + (null >= abs(rho) - 1e-12).sum()) / (1 + PERMUTATIONS))
    return rho, *middle(drawn[np.isfinite(drawn)]), float(np.quantile(null, 0.95)), p


def _rank_correlation(
    first: Float[np.ndarray, "draw gate"], second: Float[np.ndarray, "draw gate"]
) -> Float[np.ndarray, " draw"]:
    """Spearman's ρ of each row, ties at their mean rank; NaN where a row does not vary."""
    from scipy.stats import rankdata

    ranks = [rankdata(values, axis=1) for values in (first, second)]
    x, y = (values - values.mean(1, keepdims=True) for values in ranks)
    below = np.sqrt((x**2).sum(1) * (y**2).sum(1))
    return np.asarray(np.divide((x * y).sum(1), below, out=np.full(len(x), np.nan), where=below > 0))


def _gate_p_open(run: Run, gate: Gate) -> float:
    log_alpha = run.edit.site(gate.site).log_alpha[gate.kind].detach().cpu().numpy()
    return float(selection.measure("p_open", log_alpha)[gate.layer, gate.unit])


def _gate_size(run: Run, gate: Gate, found: Usage | None) -> float:
    """What a gate writes over the stream's norm; without a table of it ‖g·v‖ of the vectors that listen to it."""
    part = run.edit.site(gate.site)
    operations = [name for name in part.operations if gate.kind in (name, "shared")]
    if found is not None:
        if gate.site != "heads":
            return math.nan
        return float(np.sum([found.size(name)[gate.layer, gate.unit] for name in operations]))
    norms = [float(part.vector(name)[gate.layer, gate.unit].detach().norm()) for name in operations]
    return gate.value * sum(norms)


def _estimates(effects: Effects, estimate: Effects | None, gates: Sequence[Gate]) -> Float[np.ndarray, " gate"] | None:
    """The gradient's estimate for each of ``gates``; None where there is none."""
    if estimate is None and effects.estimate is None:
        return None
    table, values = (effects, effects.estimate) if estimate is None else (estimate, estimate.effect)
    assert values is not None
    known = {gate_key(gate): float(value) for gate, value in zip(table.gates, values, strict=True)}
    if missing := [gate.label for gate in gates if gate_key(gate) not in known]:
        raise ValueError(f"estimate lacks {len(missing)} of the gates whose effects are known, such as {missing[0]}")
    return np.array([known[gate_key(gate)] for gate in gates])
