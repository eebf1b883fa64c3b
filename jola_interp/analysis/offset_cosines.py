"""Do trainings write the same offsets at the heads that they share?

    cosine(i, j) = mean over heads open in both of cos(g·a of run i, g·a of run j)

of every pair of runs, averaged over the pairs of each two tasks. Chance: the offset of a head beside that of another
head, cos(aᵢ[h], aⱼ[π(h)]), with one π for all pairs. That keeps how offsets of these trainings are spread over the
components of z, of which random directions in R^d_head know nothing; the components of two heads have no more to do
with each other than that. What neither knows: a head's own favoured directions, which any training may find, and what
a task's prompts and answers have in common whatever its labels say. Runs with shuffled labels, where there are any,
show both: of other tasks the first, of the same task both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from jola_interp.analysis.chance import Estimate, mean_over, reached
from jola_interp.analysis.run_pairs import (
    Cells,
    RunGroups,
    adjusted_cells,
    group_runs,
    named,
    questions,
    with_own_shuffled,
)
from jola_interp.analysis.selections import Selections, one_kind, selections, vectors_of
from jola_interp.runs import Run

if TYPE_CHECKING:
    import pandas as pd

DRAWS = 500
CHUNK = 4_000_000
"""Numbers of shuffled offsets that are held at once."""


@dataclass(frozen=True, eq=False)
class OffsetCosines:
    """Cosines of offsets, task by task; on the diagonal other seeds of one task. Made by :func:`offset_cosines`.

    Attributes:
        groups: tasks in the order in which they came, and last the runs with shuffled labels.
        tasks: how many of the groups are tasks.
        names: [run] task, seed and draw.
        value: [group, group] mean over pairs of runs; NaN where no pair has a head in common.
        low, high: [group, group] 95 % interval: jackknife over the runs of both groups.
        chance, chance_low, chance_high: [group, group] mean and middle 95 % for offsets of other heads.
        p, adjusted: [group, group] share of the draws that reach ``value``, one-sided; for as many tests as there are
            cells (max T of the draws).
        heads: [group, group] heads open in both, mean over pairs of runs.
        pairs: [group, group] pairs of runs with a head in common.
        pair_value, pair_heads: [run, run].
        within, between, difference: over tasks: other seeds of one task, two tasks, and their difference, with p of the
            first two by the draws, of the last by exchanging tasks; intervals: jackknife over tasks.
        d_head: components of an offset: random directions have a cosine of 0 ± 1/sqrt(d_head).
        notes: what a reader must know.
        shuffled: [task] mean over pairs of a task's runs with its runs with shuffled labels; None without such pairs.
        content: over the tasks that have both, other seeds of one task less ``shuffled``.
    """

    groups: tuple[str, ...]
    tasks: int
    names: tuple[str, ...]
    value: Float[np.ndarray, "group group"]
    low: Float[np.ndarray, "group group"]
    high: Float[np.ndarray, "group group"]
    chance: Float[np.ndarray, "group group"]
    chance_low: Float[np.ndarray, "group group"]
    chance_high: Float[np.ndarray, "group group"]
    p: Float[np.ndarray, "group group"]
    adjusted: Float[np.ndarray, "group group"]
    heads: Float[np.ndarray, "group group"]
    pairs: Int[np.ndarray, "group group"]
    pair_value: Float[np.ndarray, "run run"]
    pair_heads: Int[np.ndarray, "run run"]
    within: Estimate
    between: Estimate
    difference: Estimate
    d_head: int
    notes: tuple[str, ...] = ()
    shuffled: Float[np.ndarray, " task"] | None = None
    content: Estimate | None = None

    def to_frame(self) -> pd.DataFrame:
        """One row per two groups: first, second, pairs, heads, value, low, high, chance, chance_low, chance_high, p,
        adjusted; of a task with itself ``shuffled``, too."""
        import pandas as pd

        first, second = np.triu_indices(len(self.groups))
        names = np.array(self.groups, dtype=object)
        told = ("pairs", "heads", "value", "low", "high", "chance", "chance_low", "chance_high", "p", "adjusted")
        values = {name: getattr(self, name)[first, second] for name in told}
        frame = pd.DataFrame({"first": names[first], "second": names[second], **values})
        if self.shuffled is None:
            return frame
        own = np.append(self.shuffled, np.full(len(self.groups) - self.tasks, np.nan))
        return frame.assign(shuffled=np.where(first == second, own[first], np.nan))

    def runs_frame(self) -> pd.DataFrame:
        """One row per pair of runs, those that share a seed too: first, second, heads, value."""
        import pandas as pd

        first, second = np.triu_indices(len(self.names), 1)
        names = np.array(self.names, dtype=object)
        values = {"heads": self.pair_heads[first, second], "value": self.pair_value[first, second]}
        return pd.DataFrame({"first": names[first], "second": names[second], **values})

    def sentence(self) -> str:
        """The answer in words."""
        within, between, apart = (f"{one} (p = {one.p:.2g})" for one in (self.within, self.between, self.difference))
        told = (
            f"Cosine of offsets at heads open in both: between seeds of a task {within}, between tasks {between}, "
            f"difference {apart}; of random directions 0 ± {1 / math.sqrt(self.d_head):.2f} a head."
        )
        if self.shuffled is None or self.content is None:
            return told
        mean = np.nanmean(np.where(np.isfinite(np.diagonal(self.value)[: self.tasks]), self.shuffled, np.nan))
        return (
            f"{told} With the task's own rows under shuffled labels {mean:+.3f}, {self.content} less "
            f"({self.content.n} tasks)."
        )


def offset_cosines(
    given: Selections | Iterable[Run | str | Path], *, rule: str | None = None, draws: int = DRAWS, seed: int = 0
) -> OffsetCosines:
    """Cosines of what runs add at the heads whose additive gate is open in both.

    Args:
        given: Runs, or selections whose Runs still lie at their paths; of one model, method and penalty.
        rule: when an additive gate is open; None is that of the selections.
        draws: pairings of different heads, for chance and p.
        seed: of those.

    Raises:
        ValueError: no run, runs that cannot be compared or have no offsets, a rule outside the grammar, or no draw.
    """
    if draws < 1:
        raise ValueError(f"draws must be 1 or more; got {draws}")
    runs = None if isinstance(given, Selections) else [run if isinstance(run, Run) else Run.load(run) for run in given]
    found = one_kind(given if isinstance(given, Selections) else selections(runs or []))
    directions = _directions(found, runs)
    is_open = found.sets(rule, "additive").reshape(len(found), -1) & directions.any(-1)
    used = is_open.any(0)  # heads that are open nowhere have no cosine
    directions, is_open = directions[:, used] * is_open[:, used, None], is_open[:, used]
    groups = group_runs(found)
    sums, counts = paired_sums(directions, is_open, np.arange(is_open.shape[1]))
    observed = _means(sums, counts)
    null = _null(directions, is_open, groups.cells, draws, seed)
    return _table(found, groups, observed, counts, null, directions.shape[-1], seed)


def paired_sums(
    directions: Float[np.ndarray, "run head d_head"],
    is_open: Bool[np.ndarray, "run head"],
    order: Int[np.ndarray, " head"],
) -> tuple[Float[np.ndarray, "run run"], Int[np.ndarray, "run run"]]:
    """Σ of the cosines of head h of one run with head ``order[h]`` of another, over those that are open, and how many.

    Directions have length 1, or 0 where not open.
    """
    count, heads, d_head = directions.shape
    sums = np.zeros((count, count))
    step = max(1, CHUNK // max(1, count * d_head))
    for start in range(0, heads, step):
        here = order[start : start + step]
        first = directions[:, start : start + step].reshape(count, -1)
        sums += first @ directions[:, here].reshape(count, -1).T
    shared = is_open.astype(np.float64) @ is_open[:, order].T.astype(np.float64)
    return sums, shared.astype(np.int64)


def _directions(found: Selections, runs: Sequence[Run] | None) -> Float[np.ndarray, "run head d_head"]:
    """Offsets at inference over their lengths; 0 where there is none."""
    opened = runs if runs is not None else [_load(one.path) for one in found.origins]
    made = []
    for run in opened:
        offsets = vectors_of(run).get("additive")
        if offsets is None:
            raise ValueError(f"{run.path} has no offsets: its edit adds nothing at heads")
        flat = offsets.reshape(-1, offsets.shape[-1]).astype(np.float32)
        lengths = np.linalg.norm(flat, axis=-1, keepdims=True)
        made.append(np.where(lengths > 0, flat / np.where(lengths > 0, lengths, 1), 0))
    return np.stack(made)


def _load(path: str) -> Run:
    if not path:
        raise ValueError("these selections do not say where their Runs are: hand in the Runs")
    return Run.load(path)


def _means(sums: Float[np.ndarray, "run run"], counts: Int[np.ndarray, "run run"]) -> Float[np.ndarray, "run run"]:
    return np.asarray(np.where(counts > 0, sums / np.maximum(counts, 1), np.nan))


def _null(
    directions: Float[np.ndarray, "run head d_head"],
    is_open: Bool[np.ndarray, "run head"],
    cells: Cells,
    draws: int,
    seed: int,
) -> Float[np.ndarray, "draw group group"]:
    """Means of cells where each head is paired with another; both orders of a pair of runs count half."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        sums, counts = paired_sums(directions, is_open, generator.permutation(is_open.shape[1]))
        found.append(cells.means(_means(sums + sums.T, counts + counts.T)))
    return np.stack(found)


def _table(
    found: Selections,
    groups: RunGroups,
    observed: Float[np.ndarray, "run run"],
    counts: Int[np.ndarray, "run run"],
    null: Float[np.ndarray, "draw group group"],
    d_head: int,
    seed: int,
) -> OffsetCosines:
    cells, known = groups.cells, np.isfinite(observed)
    value, (low, high) = cells.means(observed), cells.intervals(observed)
    p, asked = reached(value, null), questions(groups, observed, null, seed)
    shuffled = with_own_shuffled(found, groups, observed)
    less = np.diagonal(value)[: groups.tasks] - shuffled
    return OffsetCosines(
        groups=groups.names,
        tasks=groups.tasks,
        names=tuple(named(found, place) for place in range(len(found))),
        value=value,
        low=low,
        high=high,
        chance=_over_draws(null),
        chance_low=_over_draws(null, 0.025),
        chance_high=_over_draws(null, 0.975),
        p=p,
        adjusted=adjusted_cells(value, null),
        heads=cells.means(np.where(known, counts, np.nan)),
        pairs=Cells(groups.members, (cells.pairs > 0) & known, len(groups.names)).counts,
        pair_value=observed,
        pair_heads=counts,
        within=asked[0],
        between=asked[1],
        difference=asked[2],
        d_head=d_head,
        notes=_notes(found, len(null), groups.together),
        shuffled=shuffled if np.isfinite(shuffled).any() else None,
        content=mean_over(less) if np.isfinite(less).any() else None,
    )


def _over_draws(
    null: Float[np.ndarray, "draw group group"], quantile: float | None = None
) -> Float[np.ndarray, "group group"]:
    """Mean or quantile over draws, of those that have a number; NaN where none has."""
    found = np.full(null.shape[1:], np.nan)
    for at in np.ndindex(found.shape):
        values = null[:, at[0], at[1]]
        values = values[np.isfinite(values)]
        if len(values):
            found[at] = values.mean() if quantile is None else np.quantile(values, quantile)
    return found


def _notes(found: Selections, draws: int, together: bool) -> tuple[str, ...]:
    pairs = "all pairs share their seed" if together else "pairs of runs with other seeds"
    return (
        f"{len(found)} runs, {pairs}; g·a at inference, at heads whose additive gate is open in both.",
        f"Chance: the offset of a head beside that of another head, {draws} draws, 95 % of it. It does not know "
        "directions that any training would find at a head; runs with shuffled labels do.",
    )
