"""Do trainings on different tasks select the same heads, more than their layer profiles make them, and more than other
seeds of one task do?

    jaccard      |A ∩ B| / |A ∪ B|
    coefficient  |A ∩ B| / min(|A|, |B|)
    weighted     Σ min(p, q) / Σ max(p, q)        Ruzicka, on P(open) of each head, whatever the rule

of every pair of runs, less its mean where each run's heads are shuffled within their layers
(:mod:`~jola_interp.analysis.chance`), and averaged over the pairs of runs of each two tasks. Two empty sets have 1.

Runs that share a seed start from the same gates, whatever the task: such pairs are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from jola_interp.analysis.chance import DRAWS, ROUNDING, Estimate, LayerShuffle, reached
from jola_interp.analysis.run_pairs import Cells, RunGroups, adjusted_cells, group_runs, named, questions
from jola_interp.analysis.selections import Given, Selections, as_selections, one_kind

if TYPE_CHECKING:
    import pandas as pd

Index = Literal["jaccard", "weighted", "coefficient"]
INDICES: tuple[Index, ...] = get_args(Index)
ANY_RULE = "P(open)"
"""Under this name stands what does not depend on a rule."""
Key = tuple[Index, str]


@dataclass(frozen=True, eq=False)
class OverlapMatrix:
    """One index under one rule, task by task; on the diagonal other seeds of the same task.

    Attributes:
        index, rule: which.
        value: [group, group] mean over pairs of runs.
        chance: [group, group] its mean where heads are shuffled within their layers, each run by itself.
        low, high: [group, group] 95 % interval of ``excess``: jackknife over the runs of both groups.
        p: [group, group] share of the shuffles that reach ``value``, one-sided.
        adjusted: [group, group] the same for as many tests as there are cells (max T of the shuffles).
        pair_value, pair_chance, pair_p: [run, run] of the single pairs.
        within: mean excess between other seeds of a task, over tasks; p by the shuffles.
        between: mean excess between two tasks, over the pairs of tasks; p by the shuffles.
        difference: within − between; p by exchanging the tasks of runs, those of one seed with one another where runs
            share seeds, one-sided. Intervals of all three: jackknife over tasks.
        same_seed: mean excess between two tasks in runs of the same seed; NaN without such a pair.
    """

    index: Index
    rule: str
    value: Float[np.ndarray, "group group"]
    chance: Float[np.ndarray, "group group"]
    low: Float[np.ndarray, "group group"]
    high: Float[np.ndarray, "group group"]
    p: Float[np.ndarray, "group group"]
    adjusted: Float[np.ndarray, "group group"]
    pair_value: Float[np.ndarray, "run run"]
    pair_chance: Float[np.ndarray, "run run"]
    pair_p: Float[np.ndarray, "run run"]
    within: Estimate
    between: Estimate
    difference: Estimate
    same_seed: float

    @property
    def excess(self) -> Float[np.ndarray, "group group"]:
        """[group, group] value − chance."""
        return np.asarray(self.value - self.chance)

    def sentence(self) -> str:
        """The answer in words."""
        told = f"{self.index} ({self.rule}), above chance: between seeds of a task {_told(self.within)}, between tasks"
        told = f"{told} {_told(self.between)}; difference {_told(self.difference)}"
        if not math.isnan(self.difference.mde):
            told += f"; one of {self.difference.mde:.3f} would have been found"
        return f"{told}."


@dataclass(frozen=True, eq=False)
class Overlaps:
    """Overlaps of the selections of many runs. Made by :func:`overlaps`.

    Attributes:
        groups: tasks ordered by clustering, and last the runs with shuffled labels.
        members: [run] place of each run's group.
        names: [run] task, seed and draw.
        pairs: [group, group] how many pairs of runs each cell is a mean over.
        tasks: how many of the groups are tasks.
        matrices: each index under each rule.
        draws: shuffles.
        notes: what a reader must know.
    """

    groups: tuple[str, ...]
    members: tuple[int, ...]
    names: tuple[str, ...]
    pairs: Int[np.ndarray, "group group"]
    tasks: int
    matrices: tuple[OverlapMatrix, ...]
    draws: int
    notes: tuple[str, ...] = ()

    @property
    def rules(self) -> tuple[str, ...]:
        """The rules, ``P(open)`` among them."""
        return tuple(dict.fromkeys(matrix.rule for matrix in self.matrices))

    def matrix(self, index: Index = "jaccard", rule: str | None = None) -> OverlapMatrix:
        """One index under one rule; None is the first.

        Raises:
            ValueError: another index or rule.
        """
        for matrix in self.matrices:
            if matrix.index == index and rule in (None, matrix.rule):
                return matrix
        known = ", ".join(f"{matrix.index} ({matrix.rule})" for matrix in self.matrices)
        raise ValueError(f"no {index!r} under {rule!r}; there are: {known}")

    def to_frame(self) -> pd.DataFrame:
        """One row per index, rule and two groups: index, rule, first, second, pairs, value, chance, excess, low, high,
        p, adjusted."""
        import pandas as pd

        at = [(i, j) for i in range(len(self.groups)) for j in range(i, len(self.groups))]
        rows = [
            {"index": one.index, "rule": one.rule, "first": self.groups[i], "second": self.groups[j]}
            | {"pairs": int(self.pairs[i, j]), "value": one.value[i, j], "chance": one.chance[i, j]}
            | {"excess": one.excess[i, j], "low": one.low[i, j], "high": one.high[i, j]}
            | {"p": one.p[i, j], "adjusted": one.adjusted[i, j]}
            for one in self.matrices
            for i, j in at
        ]
        return pd.DataFrame(rows)

    def runs_frame(self) -> pd.DataFrame:
        """One row per index, rule and pair of runs, those that share a seed too: index, rule, first, second, value,
        chance, excess, p."""
        import pandas as pd

        first, second = np.triu_indices(len(self.members), 1)
        names = np.array(self.names, dtype=object)
        frames = [
            pd.DataFrame({
                "index": one.index, "rule": one.rule, "first": names[first], "second": names[second],
                "value": one.pair_value[first, second], "chance": one.pair_chance[first, second],
                "excess": (one.pair_value - one.pair_chance)[first, second], "p": one.pair_p[first, second],
            })
            for one in self.matrices
        ]  # fmt: skip
        return pd.concat(frames, ignore_index=True)

    def summary_frame(self) -> pd.DataFrame:
        """One row per index, rule and question (within, between, difference): value, low, high, p, n, mde."""
        import pandas as pd

        names = ("within", "between", "difference")
        rows = [
            {"index": one.index, "rule": one.rule, "question": name, **getattr(one, name).to_dict()}
            for one in self.matrices
            for name in names
        ]
        return pd.DataFrame(rows)


def overlaps(
    given: Given, over: Iterable[str] | None = None, *, kind: str | None = None, draws: int = DRAWS, seed: int = 0
) -> Overlaps:
    """Overlap of the heads that runs select, by task, beside chance.

    Args:
        given: selections, or Runs; of one model, method and penalty.
        over: rules to select by; None is that of the selections. Sizes of sets follow from the rule, and overlaps from
            the sizes: ``top=K:p_open`` makes all sets equally large.
        kind: gates of one kind alone; None is a gate of either kind.
        draws: shuffles for chance and p.
        seed: of the shuffles.

    Raises:
        ValueError: no run, runs that cannot be compared, no rule or one outside the grammar, or no draw.
    """
    found = one_kind(as_selections(given))
    rules = (found.rule,) if over is None else tuple(dict.fromkeys(over))
    if not rules or draws < 1:
        raise ValueError(f"over must name a rule and draws be 1 or more; got {rules} and {draws}")
    shuffle = LayerShuffle(found.editable())
    sets = shuffle.pack(np.stack([found.sets(rule, kind) for rule in rules])).astype(np.float64)
    weights = shuffle.pack(found.p_open(kind))
    groups = group_runs(found)
    observed = dict(_indices(sets, weights, rules))
    null = _null(sets, weights, rules, shuffle, groups.cells, observed, draws, seed)
    made = [_matrix(key, observed[key], null[key], groups, seed) for key in observed]
    order = _order(made[0].excess, groups.tasks)
    places = np.argsort(order)
    return Overlaps(
        groups=tuple(groups.names[i] for i in order),
        members=tuple(int(places[member]) for member in groups.members),
        names=tuple(named(found, place) for place in range(len(found))),
        pairs=groups.cells.counts[np.ix_(order, order)],
        tasks=groups.tasks,
        matrices=tuple(_ordered(matrix, order) for matrix in made),
        draws=draws,
        notes=_notes(found, draws, groups.together, made[0]),
    )


def _order(excess: Float[np.ndarray, "group group"], tasks: int) -> list[int]:
    """Tasks by average linkage on how little they overlap, neighbours alike; what is no task stays behind them."""
    from scipy.cluster import hierarchy
    from scipy.spatial.distance import squareform

    if tasks < 3:
        return list(range(len(excess)))
    near = excess[:tasks, :tasks]
    top = np.nanmax(near) if np.isfinite(near).any() else 0.0
    apart = np.where(np.isfinite(near), top - near, top - np.nanmin(near) if np.isfinite(near).any() else 0.0)
    np.fill_diagonal(apart, 0.0)
    tree = hierarchy.linkage(squareform((apart + apart.T) / 2, checks=False), "average", optimal_ordering=True)
    return [int(i) for i in hierarchy.leaves_list(tree)] + list(range(tasks, len(excess)))


# -- indices and their null ----------------------------------------------------------------------------------------


def _indices(
    sets: Float[np.ndarray, "rule run unit"], weights: Float[np.ndarray, "run unit"], rules: Sequence[str]
) -> Iterator[tuple[Key, Float[np.ndarray, "run run"]]]:
    sizes, shared = sets.sum(-1), sets @ sets.transpose(0, 2, 1)
    less = np.minimum(sizes[:, :, None], sizes[:, None, :])
    jaccard = _ratio(shared, sizes[:, :, None] + sizes[:, None, :] - shared)
    coefficient = _ratio(shared, less)
    for place, rule in enumerate(rules):
        yield ("jaccard", rule), jaccard[place]
        yield ("coefficient", rule), coefficient[place]
    yield ("weighted", ANY_RULE), _ruzicka(weights)


def _ruzicka(weights: Float[np.ndarray, "run unit"]) -> Float[np.ndarray, "run run"]:
    count = len(weights)
    shared = np.zeros((count, count))
    for i in range(count):
        shared[i, i:] = np.minimum(weights[i], weights[i:]).sum(-1)
    shared = np.maximum(shared, shared.T)
    totals = weights.sum(-1)
    return _ratio(shared, totals[:, None] + totals - shared)


def _ratio(shared: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """1 where there is nothing to share: an empty set is in any other."""
    return np.where(whole > 0, shared / np.where(whole > 0, whole, 1), 1.0)


@dataclass(eq=False)
class _Null:
    """What shuffles gave: the pairs' sums, how many reached what was found, and every draw's means of cells."""

    sums: Float[np.ndarray, "run run"]
    reached: Float[np.ndarray, "run run"]
    cells: Float[np.ndarray, "draw group group"]


def _null(
    sets: Float[np.ndarray, "rule run unit"],
    weights: Float[np.ndarray, "run unit"],
    rules: Sequence[str],
    shuffle: LayerShuffle,
    cells: Cells,
    observed: Mapping[Key, Float[np.ndarray, "run run"]],
    draws: int,
    seed: int,
) -> dict[Key, _Null]:
    """One draw at a time: a run's set under every rule and its weights are shuffled alike."""
    generator, groups = np.random.default_rng(seed), cells.members.shape[1]
    null = {
        key: _Null(np.zeros_like(one), np.zeros_like(one), np.empty((draws, groups, groups)))
        for key, one in observed.items()
    }
    for draw in range(draws):
        order = shuffle.draw(generator, len(weights))
        moved = np.take_along_axis(sets, np.broadcast_to(order, sets.shape), axis=-1)
        for key, one in _indices(moved, np.take_along_axis(weights, order, axis=-1), rules):
            null[key].sums += one
            null[key].reached += one >= observed[key] - ROUNDING
            null[key].cells[draw] = cells.means(one)
    return null


# -- one matrix ----------------------------------------------------------------------------------------------------


def _matrix(
    key: Key, observed: Float[np.ndarray, "run run"], null: _Null, groups: RunGroups, seed: int
) -> OverlapMatrix:
    draws, cells = len(null.cells), groups.cells
    pair_chance = null.sums / draws
    excess, value, chance = observed - pair_chance, cells.means(observed), cells.means(pair_chance)
    low, high = cells.intervals(excess)
    p = reached(value, null.cells)
    asked = questions(groups, excess, null.cells - chance, seed)
    return OverlapMatrix(
        *key,
        value=value,
        chance=chance,
        low=low,
        high=high,
        p=p,
        adjusted=adjusted_cells(value, null.cells),
        pair_value=observed,
        pair_chance=pair_chance,
        pair_p=(1 + null.reached) / (1 + draws),
        within=asked[0],
        between=asked[1],
        difference=asked[2],
        same_seed=_same_seed(excess, groups),
    )


def _ordered(matrix: OverlapMatrix, order: Sequence[int]) -> OverlapMatrix:
    at = np.ix_(order, order)
    names = ("value", "chance", "low", "high", "p", "adjusted")
    return replace(matrix, **{name: getattr(matrix, name)[at] for name in names})


def _same_seed(excess: Float[np.ndarray, "run run"], groups: RunGroups) -> float:
    seeds, places = np.array(groups.seeds), np.array(groups.members)
    alike = (seeds[:, None] == seeds) & (places[:, None] != places)
    alike &= (places < groups.tasks)[:, None] & (places < groups.tasks)
    return float(excess[alike].mean()) if alike.any() else math.nan


def _notes(found: Selections, draws: int, together: bool, first: OverlapMatrix) -> tuple[str, ...]:
    counts, heads = [int(one.sum()) for one in found.sets()], int(found.editable().sum())
    told = [
        f"{len(found)} runs; {found.rule} selects {min(counts)} to {max(counts)} of {heads} heads.",
        f"Chance: each run's heads shuffled within their layers, {draws} draws.",
    ]
    if together:
        return (*told, "All pairs share their seed, from which gates start: overlaps hold what that alone makes alike.")
    if not math.isnan(first.same_seed):
        told.append(
            f"Runs of one seed start from the same gates, so pairs of them are left out (their {first.index} between "
            f"tasks: {first.same_seed:+.3f} above chance; of other seeds {first.between.value:+.3f})."
        )
    return tuple(told)


def _told(one: Estimate) -> str:
    return f"{one} (p = {one.p:.2g})"
