"""Runs in groups, and means over pairs of them: other seeds of one task, and two tasks.

Pairs of runs share runs, so how well a mean is known shows from leaving out a run, or a task, at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from jola_interp.analysis.chance import Estimate, adjusted, estimate, jackknife_errors, reached, student
from jola_interp.analysis.selections import SHUFFLED, SHUFFLED_RUNS, Selections

SHUFFLED_GROUP = "labels shuffled"
Means = Float[np.ndarray, "*draw group group"]


class Cells:
    """Means over pairs of runs, for every pair of groups: [run, run] to [group, group].

    Args:
        groups: [run] which group each is in, from 0.
        pairs: [run, run] symmetric, which pairs count.
        count: how many groups there are.
    """

    def __init__(self, groups: Sequence[int], pairs: Bool[np.ndarray, "run run"], count: int):
        self.members = np.eye(count)[np.asarray(groups, dtype=np.intp)]  # [run, group]
        self.pairs = (pairs & ~np.eye(len(pairs), dtype=bool)).astype(np.float64)
        both = self._sums(np.ones_like(self.pairs))
        self.weights = both
        self.counts = np.where(np.eye(count, dtype=bool), both / 2, both).astype(int)
        """[group, group] pairs of runs."""

    def means(self, values: Float[np.ndarray, "*draw run run"]) -> Float[np.ndarray, "*draw group group"]:
        """Mean over the pairs that count and have a number; NaN where there is none."""
        known = np.isfinite(values)
        if known.all():
            weights = self.weights
            sums = self._sums(values)
        else:
            weights, sums = self._sums(known), self._sums(np.where(known, values, 0.0))
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(np.where(weights > 0, sums / weights, np.nan))

    def intervals(
        self, values: Float[np.ndarray, "run run"]
    ) -> tuple[Float[np.ndarray, "group group"], Float[np.ndarray, "group group"]]:
        """Lower and upper ends: the jackknife over the runs of both groups, t with the smaller group's degrees."""
        mean, error = self.means(values), self._errors(values)
        sizes = self.members.sum(0)
        least = np.minimum.outer(sizes, sizes)
        t = np.array([[student(n) if n > 1 else np.nan for n in row] for row in least])
        return mean - t * error, mean + t * error

    def _errors(self, values: Float[np.ndarray, "run run"]) -> Float[np.ndarray, "group group"]:
        """Each run left out of its group in turn; the parts of both groups add up."""
        known = self.pairs * np.isfinite(values)
        filled = np.where(known > 0, values, 0.0)
        by_run, n_by_run = filled @ self.members, known @ self.members  # [run, group]
        sums, counts = self.members.T @ by_run, self.members.T @ n_by_run
        own = self.members > 0
        squares = np.zeros_like(sums)
        for g in range(sums.shape[0]):
            mine = own[:, g]
            twice = np.where(np.arange(len(sums)) == g, 2.0, 1.0)  # a pair within a group was counted twice
            with np.errstate(invalid="ignore", divide="ignore"):
                without = (sums[g] - twice * by_run[mine]) / (counts[g] - twice * n_by_run[mine])  # [run of g, group]
            error, n = jackknife_errors(without)
            whole = n == mine.sum()
            squares[g] += np.where(whole, error**2, np.nan)
        total = squares + squares.T
        return np.sqrt(np.where(np.eye(len(sums), dtype=bool), total / 2, total))

    def _sums(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(self.members.T @ (values * self.pairs) @ self.members)


@dataclass(frozen=True, eq=False)
class RunGroups:
    """Runs by task, and which pairs of them are compared. Made by :func:`group_runs`.

    Attributes:
        names: tasks, and last the runs with shuffled labels, where there are any.
        members: [run] place of each run's group.
        tasks: how many of the groups are tasks.
        seeds: [run] of the trainings.
        together: whether pairs of one seed are compared, for there are no others.
        cells: means over the pairs.
    """

    names: tuple[str, ...]
    members: tuple[int, ...]
    tasks: int
    seeds: tuple[int, ...]
    together: bool
    cells: Cells


def group_runs(found: Selections) -> RunGroups:
    """Tasks as groups; pairs of runs that share a seed start from the same gates, so they are left out."""
    of_run = [SHUFFLED_GROUP if one.labels == SHUFFLED else one.task for one in found.origins]
    names = [name for name in dict.fromkeys(of_run) if name != SHUFFLED_GROUP]
    tasks = len(names)
    names += [SHUFFLED_GROUP] if SHUFFLED_GROUP in of_run else []
    members = [names.index(name) for name in of_run]
    seeds = np.array([one.seed for one in found.origins])
    usable = seeds[:, None] != seeds
    together = len(seeds) > 1 and not usable.any()
    cells = Cells(members, usable | together, len(names))
    return RunGroups(tuple(names), tuple(members), tasks, tuple(int(one) for one in seeds), together, cells)


def with_own_shuffled(found: Selections, groups: RunGroups, values: Float[np.ndarray, "run run"]) -> np.ndarray:
    """[task] mean over the pairs of a run with a run on the same task's shuffled labels; NaN where there is none."""
    tasks = np.array([one.task for one in found.origins], dtype=object)
    shuffled = np.array([one.labels == SHUFFLED for one in found.origins])
    known = (groups.cells.pairs > 0) & np.isfinite(values)
    means = []
    for name in groups.names[: groups.tasks]:
        mine = tasks == name
        pairs = known & np.outer(mine & ~shuffled, mine & shuffled)
        means.append(values[pairs].mean() if pairs.any() else np.nan)
    return np.array(means)


def named(found: Selections, place: int) -> str:
    """A run as tables call it."""
    one = found.origins[place]
    draw = "" if one.draw is None else f", data {one.draw}"
    return f"{one.task}{SHUFFLED_RUNS if one.labels == SHUFFLED else ''}, seed {one.seed}{draw}"


def adjusted_cells(found: Float[np.ndarray, "group group"], null: Means) -> Float[np.ndarray, "group group"]:
    """p of a symmetric matrix for as many tests as it has cells."""
    first, second = np.triu_indices(len(found))
    p = np.empty_like(found)
    p[first, second] = p[second, first] = adjusted(found[first, second], null[:, first, second])
    return p


# -- questions -----------------------------------------------------------------------------------------------------


def questions(
    groups: RunGroups, values: Float[np.ndarray, "run run"], null: Means, seed: int
) -> tuple[Estimate, Estimate, Estimate]:
    """Mean between other seeds of a task, mean between two tasks, and the first less the second.

    p of the first two by the draws of ``null``, of the last by exchanging the tasks of runs; intervals by the jackknife
    over tasks.
    """
    tasks = groups.tasks
    means, random = groups.cells.means(values)[:tasks, :tasks], null[:, :tasks, :tasks]
    swapped = exchanged(groups, values, len(null), seed)
    made = []
    for read, drawn in ((within, random), (between, random), (difference, swapped)):
        value = float(read(means))
        p = float(reached(np.array(value), read(drawn)))
        made.append(estimate(value, without_each(means, read), p))
    return made[0], made[1], made[2]


def without_each(
    means: Float[np.ndarray, "group group"], read: Callable[[np.ndarray], np.ndarray]
) -> Float[np.ndarray, " group"]:
    """What ``read`` makes of a matrix of tasks without each task in turn."""
    count = len(means)
    kept = [np.delete(np.arange(count), i) for i in range(count)]
    return np.array([read(means[np.ix_(one, one)]) if len(one) else np.nan for one in kept])


def within(means: Float[np.ndarray, "*draw group group"]) -> Float[np.ndarray, "*draw"]:
    return _mean(np.diagonal(means, axis1=-2, axis2=-1))


def between(means: Float[np.ndarray, "*draw group group"]) -> Float[np.ndarray, "*draw"]:
    first, second = np.triu_indices(means.shape[-1], 1)
    return _mean(means[..., first, second])


def difference(means: Float[np.ndarray, "*draw group group"]) -> Float[np.ndarray, "*draw"]:
    return np.asarray(within(means) - between(means))


def _mean(values: Float[np.ndarray, "*draw n"]) -> Float[np.ndarray, "*draw"]:
    known = np.isfinite(values)
    count = known.sum(-1)
    return np.asarray(np.where(count > 0, np.where(known, values, 0.0).sum(-1) / np.maximum(count, 1), np.nan))


def exchanged(groups: RunGroups, values: Float[np.ndarray, "run run"], draws: int, seed: int) -> Means:
    """Cells where runs exchange tasks: with those of their own seed, so that what a seed does stays where it is."""
    generator, places = np.random.default_rng(seed + 1), np.array(groups.members)
    real = np.flatnonzero(places < groups.tasks)
    seeds = np.array(groups.seeds)[real]
    blocks = [real[seeds == one] for one in np.unique(seeds)]
    if all(len(block) == 1 for block in blocks):  # no two runs share a seed
        blocks = [real]
    means = np.empty((draws, groups.tasks, groups.tasks))
    for draw in range(draws):
        drawn = places.copy()
        for block in blocks:
            drawn[block] = places[generator.permutation(block)]
        moved = Cells(drawn.tolist(), groups.cells.pairs > 0, len(groups.names))
        means[draw] = moved.means(values)[: groups.tasks, : groups.tasks]
    return means
