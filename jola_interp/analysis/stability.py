"""Does another seed, or another draw of the data, select the same heads?

    nogueira   1 − (mean over heads of M/(M − 1)·f(1 − f)) / (k̄/d·(1 − k̄/d))
    kuncheva   mean over pairs of (r·d − k²)/(k·(d − k))            sets of equal size k alone
    rank       mean over pairs of Spearman's correlation of log α, a kind of gate at a time

with f in how many of M runs a head is selected, d editable heads, k̄ heads a run, r heads in both. 1 is "always the
same"; 0 is chance for sets drawn from all heads alike. Layers differ, so runs that agree on no more than layers are
above 0: beside each number stands what it is where heads are shuffled within layers.

Sources: Nogueira, Sechidis, Brown 2018, JMLR 18(174), eq. 5 and Theorem 7; Kuncheva 2007, AIA, eq. 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float

from jola_interp.analysis.chance import DRAWS, Estimate, LayerShuffle, estimate, mean_over, reached
from jola_interp.analysis.selections import SHUFFLED, SHUFFLED_RUNS, Given, Selections, as_selections, one_kind

if TYPE_CHECKING:
    import pandas as pd

Over = Literal["runs", "seeds", "draws"]
"""Runs of a task that differ in anything · in the seed alone · in the data draw alone."""
SELECTED, LARGEST = "selected", "largest vectors"
NOGUEIRA, KUNCHEVA = "nogueira", "kuncheva"
Z = 1.959963984540054


@dataclass(frozen=True)
class StabilityScore:
    """One index of one way to choose heads.

    Attributes:
        group: which runs.
        index: nogueira, kuncheva, or "rank additive" and so on.
        way: ``selected`` by the rule · ``largest vectors``: as many heads a run, those of the largest vectors.
        value, low, high: with a 95 % interval, jackknife over runs with Student's t. NaN of one run, of empty and of
            full sets; the interval of two runs too.
        chance, chance_low, chance_high: mean and middle 95 % of the same where heads are shuffled within layers: random
            sets with as many heads in every layer.
        p: share of the shuffles that reach ``value``, one-sided.
        runs: how many.
        asymptotic_low, asymptotic_high: nogueira's own 95 % interval, for many runs: of selections simulated for 270
            heads it covered 70 to 84 % with 4 runs, 85 to 92 % with 8 (the jackknife 96 to 98 %). NaN of the others.
    """

    group: str
    index: str
    way: str
    value: float
    low: float
    high: float
    chance: float
    chance_low: float
    chance_high: float
    p: float
    runs: int
    asymptotic_low: float = math.nan
    asymptotic_high: float = math.nan


@dataclass(frozen=True, eq=False)
class Stability:
    """How stable the selections of each group of runs are. Made by :func:`stability`.

    Attributes:
        groups: tasks, with what is held fixed.
        sizes: [group] heads selected by each run.
        frequency: [group, layer, head] share of the runs that select a head; NaN where it is not editable.
        scores: each index of each way and group.
        margins: group and index to how much further above chance the selected heads are than those of the largest
            vectors, paired by run (jackknife, with chance held fixed); p is NaN. Each has a chance of its own: sets
            that prefer the same layers are alike by it.
        labels: [layer, head] names.
        kv_group: query heads that share a key-value head; 0 where every head has its own.
        notes: what a reader must know.
    """

    groups: tuple[str, ...]
    sizes: tuple[tuple[int, ...], ...]
    frequency: Float[np.ndarray, "group layer head"]
    scores: tuple[StabilityScore, ...]
    margins: dict[tuple[str, str], Estimate]
    labels: np.ndarray
    kv_group: int = 0
    notes: tuple[str, ...] = ()

    @property
    def indices(self) -> tuple[str, ...]:
        """The names of the indices."""
        return tuple(dict.fromkeys(score.index for score in self.scores))

    def score(self, group: str, index: str = NOGUEIRA, way: str = SELECTED) -> StabilityScore:
        """One of them. Raises ValueError on another group, index or way."""
        for found in self.scores:
            if (found.group, found.index, found.way) == (group, index, way):
                return found
        raise ValueError(f"no {index!r} of {way!r} for {group!r}: groups are {', '.join(self.groups)}")

    def above_chance(self, index: str = NOGUEIRA) -> dict[str, Estimate]:
        """Way to the mean over groups of its value less its chance, and "difference": selected less largest vectors.

        Intervals: jackknife over groups. Only groups with real labels and a value of every way count; p is NaN.

        Raises:
            ValueError: another index.
        """
        if index not in self.indices:
            raise ValueError(f"index must be one of {', '.join(self.indices)}; got {index!r}")
        known = [one for one in self.scores if one.index == index and SHUFFLED_RUNS not in one.group]
        above = {
            way: np.array([one.value - one.chance for one in known if one.way == way])
            for way in dict.fromkeys(one.way for one in known)
        }
        if len(above) > 1:
            above["difference"] = above[SELECTED] - above[LARGEST]
        whole = np.isfinite(np.stack(list(above.values()))).all(0) if above else np.array([], dtype=bool)
        return {way: mean_over(values[whole]) for way, values in above.items()}

    def top(self, group: str, k: int) -> tuple[tuple[str, float], ...]:
        """The ``k`` heads of a group that most runs select: (label, share of runs)."""
        if group not in self.groups:
            raise ValueError(f"group must be one of {', '.join(self.groups)}; got {group!r}")
        values = np.nan_to_num(self.frequency[self.groups.index(group)], nan=-1.0).reshape(-1)
        order = [int(i) for i in np.argsort(-values, kind="stable")[:k] if values[i] >= 0]
        return tuple((str(self.labels.reshape(-1)[i]), float(values[i])) for i in order)

    def to_frame(self) -> pd.DataFrame:
        """One row per score: group, index, way, value, low, high, chance, chance_low, chance_high, p, runs,
        asymptotic_low, asymptotic_high; of selected heads margin, margin_low, margin_high, margin_mde (against the
        largest vectors)."""
        import pandas as pd

        rows = []
        for score in self.scores:
            margin = self.margins.get((score.group, score.index)) if score.way == SELECTED else None
            ends = {"margin": "value", "margin_low": "low", "margin_high": "high", "margin_mde": "mde"}
            rows.append(asdict(score) | {name: getattr(margin, key, math.nan) for name, key in ends.items()})
        return pd.DataFrame(rows)

    def frequency_frame(self) -> pd.DataFrame:
        """One row per group and editable head: group, label, layer, head, frequency, runs."""
        import pandas as pd

        group, layer, head = np.nonzero(np.isfinite(self.frequency))
        runs = np.array([len(sizes) for sizes in self.sizes])
        return pd.DataFrame({
            "group": np.array(self.groups, dtype=object)[group], "label": self.labels[layer, head], "layer": layer,
            "head": head, "frequency": self.frequency[group, layer, head], "runs": runs[group],
        })  # fmt: skip


def stability(
    given: Given, over: Over = "runs", *, rule: str | None = None, draws: int = DRAWS, seed: int = 0
) -> Stability:
    """How alike the selections of runs of one task are, beside random heads and heads of the largest vectors.

    Args:
        given: selections, or Runs; of one model, method and penalty. Runs with shuffled labels are groups of their own.
        over: what differs within a group.
        rule: to select by; None is that of the selections.
        draws: shuffles for chance and p.
        seed: of the shuffles.

    Raises:
        ValueError: no run, runs that cannot be compared, another ``over``, a rule outside the grammar, or no draw.
    """
    if over not in get_args(Over) or draws < 1:
        raise ValueError(f"over must be one of {', '.join(get_args(Over))} and draws 1 or more; got {over!r}, {draws}")
    found = one_kind(as_selections(given))
    shuffle, sets = LayerShuffle(found.editable()), found.sets(rule)
    groups = _groups(found, over)
    frequency = np.full((len(groups), *found.shape), np.nan)
    scores: list[StabilityScore] = []
    margins: dict[tuple[str, str], Estimate] = {}
    for place, (name, runs) in enumerate(groups.items()):
        frequency[place] = np.where(shuffle.editable, sets[runs].mean(0), np.nan)
        made, beside = _scores(name, found.take(runs), shuffle.pack(sets[runs]), shuffle, draws, seed)
        scores += made
        margins |= beside
    return Stability(
        groups=tuple(groups),
        sizes=tuple(tuple(int(n) for n in sets[runs].sum((1, 2))) for runs in groups.values()),
        frequency=frequency,
        scores=tuple(scores),
        margins=margins,
        labels=found.labels,
        kv_group=found.group,
        notes=_notes(groups, draws, any(score.way == LARGEST for score in scores)),
    )


# -- indices -------------------------------------------------------------------------------------------------------


def nogueira(sets: Bool[np.ndarray, "*draw run unit"]) -> Float[np.ndarray, "*draw"]:
    """1 − (mean over units of M/(M − 1)·f(1 − f)) / (k̄/d·(1 − k̄/d)); NaN of one run, and of empty or full sets.

    Source: Nogueira et al. 2018, eq. 5.
    """
    runs = sets.shape[-2]
    if runs < 2:
        return np.full(sets.shape[:-2], np.nan)
    share = sets.mean(-2)
    whole = share.mean(-1)
    expected = whole * (1 - whole)
    variance = runs / (runs - 1) * (share * (1 - share)).mean(-1)
    return np.asarray(np.where(expected > 0, 1 - variance / np.where(expected > 0, expected, 1), np.nan))


def nogueira_interval(sets: Bool[np.ndarray, "run unit"]) -> tuple[float, float]:
    """The asymptotic 95 % interval, Φ ± 1.96·sqrt(v) with v = 4/M²·Σ (φᵢ − mean φ)². Source: ibid., Theorem 7."""
    runs, units = sets.shape
    value = float(nogueira(sets))
    if math.isnan(value):
        return math.nan, math.nan
    share, sizes = sets.mean(0), sets.sum(1) / units
    whole = float(share.mean())
    parts = (sets * share).mean(1) - sizes * whole + value / 2 * (2 * sizes * whole - sizes - whole + 1)
    parts = parts / (whole * (1 - whole))
    half = Z * 2 / runs * math.sqrt(float(((parts - parts.mean()) ** 2).sum()))
    return value - half, value + half


def kuncheva(sets: Bool[np.ndarray, "*draw run unit"]) -> Float[np.ndarray, "*draw"]:
    """Mean over pairs of (r·d − k²)/(k·(d − k)); NaN of one run, and of empty or full sets.

    Raises:
        ValueError: sets of different sizes.

    Source: Kuncheva 2007, eq. 2.
    """
    runs, units = sets.shape[-2:]
    sizes = sets.sum(-1)
    if runs and (sizes != sizes[..., :1]).any():
        raise ValueError(f"Kuncheva's index needs sets of one size; got {np.unique(sizes).tolist()}")
    if runs < 2:
        return np.full(sets.shape[:-2], np.nan)
    k = sizes[..., 0].astype(np.float64)
    counts = sets.sum(-2).astype(np.float64)
    shared = ((counts**2).sum(-1) - sizes.sum(-1)) / (runs * (runs - 1))  # mean over pairs
    whole = k * (units - k)
    return np.asarray(np.where(whole > 0, (shared * units - k**2) / np.where(whole > 0, whole, 1), np.nan))


def rank_agreement(ranks: Float[np.ndarray, "*draw run unit"]) -> Float[np.ndarray, "*draw"]:
    """Mean over pairs of the correlation of rows; NaN of one run, or where a row is constant."""
    runs = ranks.shape[-2]
    centred = ranks - ranks.mean(-1, keepdims=True)
    norms = np.sqrt((centred**2).sum(-1, keepdims=True))
    if runs < 2:
        return np.full(ranks.shape[:-2], np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        rows = centred / norms
    return np.asarray((((rows.sum(-2)) ** 2).sum(-1) - runs) / (runs * (runs - 1)))


def equal_sets(values: Float[np.ndarray, "run unit"], k: int | Sequence[int]) -> Bool[np.ndarray, "run unit"]:
    """The ``k`` units of largest value of each run (the first of equals)."""
    order = np.argsort(-values, axis=1, kind="stable").argsort(1)
    return np.asarray(order < np.reshape(k, (-1, 1)))


# -- one group -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Asked:
    """An index of one way: what it is of ([run, unit]), and how it is computed."""

    index: str
    way: str
    of: np.ndarray
    read: Callable[[np.ndarray], np.ndarray]


def _scores(
    name: str, found: Selections, sets: Bool[np.ndarray, "run unit"], shuffle: LayerShuffle, draws: int, seed: int
) -> tuple[list[StabilityScore], dict[tuple[str, str], Estimate]]:
    asked = _asked(found, sets, shuffle)
    null = _null(asked, shuffle, len(found), draws, seed)
    made = [_score(name, one, null[:, place]) for place, one in enumerate(asked)]
    by_key = {(one.index, one.way): one for one in asked}
    scores = {(one.index, one.way): one for one in made}
    margins = {}
    for index in (NOGUEIRA, KUNCHEVA):
        if (index, LARGEST) in by_key:
            ours, theirs = by_key[index, SELECTED], by_key[index, LARGEST]
            chance = scores[index, SELECTED].chance - scores[index, LARGEST].chance
            value = scores[index, SELECTED].value - scores[index, LARGEST].value - chance
            margins[name, index] = estimate(value, _without(ours) - _without(theirs) - chance)
    return made, margins


def _asked(found: Selections, sets: Bool[np.ndarray, "run unit"], shuffle: LayerShuffle) -> list[_Asked]:
    from scipy.stats import rankdata

    k = round(float(sets.sum(1).mean()))
    asked = [
        _Asked(NOGUEIRA, SELECTED, sets, nogueira),
        _Asked(KUNCHEVA, SELECTED, equal_sets(shuffle.pack(found.p_open()), k), kuncheva),
    ]
    for kind in found.kinds:
        log_alpha = shuffle.pack(found.log_alpha[:, found.kinds.index(kind)])
        if np.isfinite(log_alpha).all():
            asked.append(_Asked(f"rank {kind}", SELECTED, rankdata(log_alpha, axis=1), rank_agreement))
    if found.norms is None or not np.isfinite(found.norms).any((1, 2, 3)).all():
        return asked
    sizes = shuffle.pack(found.sizes())
    largest = equal_sets(sizes, [int(n) for n in sets.sum(1)])
    return [
        *asked,
        _Asked(NOGUEIRA, LARGEST, largest, nogueira),
        _Asked(KUNCHEVA, LARGEST, equal_sets(sizes, k), kuncheva),
        _Asked("rank size", LARGEST, rankdata(sizes, axis=1), rank_agreement),
    ]


def _null(
    asked: Sequence[_Asked], shuffle: LayerShuffle, runs: int, draws: int, seed: int
) -> Float[np.ndarray, "draw asked"]:
    """The same shuffles for all that is asked."""
    generator, found = np.random.default_rng(seed), []
    for count in shuffle.chunks(draws, runs):
        order = shuffle.draw(generator, count * runs).reshape(count, runs, -1)
        moved = [one.read(np.take_along_axis(one.of[None], order, axis=-1)) for one in asked]
        found.append(np.stack(moved, axis=-1))
    return np.concatenate(found)


def _score(name: str, asked: _Asked, null: Float[np.ndarray, " draw"]) -> StabilityScore:
    beside = estimate(float(asked.read(asked.of)), _without(asked))
    known = null[np.isfinite(null)]
    chance, first, last = (known.mean(), *np.quantile(known, [0.025, 0.975])) if len(known) else (math.nan,) * 3
    return StabilityScore(
        name,
        asked.index,
        asked.way,
        value=beside.value,
        low=beside.low,
        high=beside.high,
        chance=float(chance),
        chance_low=float(first),
        chance_high=float(last),
        p=float(reached(np.array(beside.value), null)),
        runs=len(asked.of),
        **_asymptotic(asked),
    )


def _asymptotic(asked: _Asked) -> dict[str, float]:
    if asked.index != NOGUEIRA:
        return {}
    low, high = nogueira_interval(asked.of)
    return {"asymptotic_low": low, "asymptotic_high": high}


def _without(asked: _Asked) -> Float[np.ndarray, " run"]:
    """The index without each run in turn."""
    return np.array([float(asked.read(np.delete(asked.of, i, axis=0))) for i in range(len(asked.of))])


def _groups(found: Selections, over: Over) -> dict[str, list[int]]:
    """Name to the places of its runs; groups of one run only where there is no other."""
    groups: dict[str, list[int]] = {}
    for place, one in enumerate(found.origins):
        name = f"{one.task}{SHUFFLED_RUNS}" if one.labels == SHUFFLED else one.task
        held = {"runs": "", "seeds": f", data {one.draw}", "draws": f", seed {one.seed}"}[over]
        groups.setdefault(name + held, []).append(place)
    several = {name: runs for name, runs in groups.items() if len(runs) > 1}
    if over != "runs" and not several:
        other = "seed" if over == "seeds" else "data draw"
        raise ValueError(f"over={over!r}: no two runs of a task differ in their {other} alone; over='runs' takes all")
    return several if over != "runs" else groups


def _notes(groups: dict[str, list[int]], draws: int, largest: bool) -> tuple[str, ...]:
    counts = [len(runs) for runs in groups.values()]
    span = str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
    told = [
        f"{span} runs each. Chance: heads shuffled within layers, {draws} draws; 95 % of it.",
        "Bars: 95 %, jackknife over runs (Nogueira's asymptotic interval is too narrow for few; the table has it).",
        "Kuncheva's index needs sets of one size: here the k heads of each run with the largest P(a gate is open), k "
        "the rounded mean size.",
    ]
    if largest:
        told.append(
            "Largest vectors: as many heads a run, by the norms of a and m without the final gates. The two ways are "
            "not independent: behind a gate that is shut nothing trains."
        )
    return tuple(told)
