"""Which heads do nearly all tasks select, which only one, which none; and do additive and multiplicative gates meet?

A task selects a head if more than half of its runs do. Chance: the heads of each task are shuffled within their layers,
all its runs alike, so that what a task's runs have in common stays, and only what tasks have in common goes.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from jola_interp.analysis.chance import DRAWS, ROUNDING, Estimate, LayerShuffle, estimate
from jola_interp.analysis.selections import REAL, Given, Selections, as_selections, one_kind

if TYPE_CHECKING:
    import pandas as pd

CATEGORIES = ("never", "now and then", "specialist", "several tasks", "core")
"""Selected by no run · by runs, but by no task · by one task · by several · by nearly all of them."""
NEVER, SOMETIMES, SPECIALIST, SEVERAL, CORE = range(5)
Counts = Int[np.ndarray, "layer category"]


@dataclass(frozen=True)
class CategoryCount:
    """How many heads are of a category, beside chance.

    Attributes:
        category: one of :data:`CATEGORIES`.
        heads: how many.
        expected, low, high: mean and middle 95 % of the shuffles.
        p_more, p_fewer: share of the shuffles that have at least, or at most, as many.
    """

    category: str
    heads: int
    expected: float
    low: float
    high: float
    p_more: float
    p_fewer: float


@dataclass(frozen=True)
class GroupTest:
    """Do core heads share key-value heads?

    Attributes:
        pairs: pairs of core heads behind one key-value head.
        expected: of as many core heads in every layer, wherever there.
        p: share of the shuffles with at least as many pairs.
    """

    pairs: int
    expected: float
    p: float


@dataclass(frozen=True)
class KindOverlap:
    """Do additive and multiplicative gates open at the same heads?

    Attributes:
        run: path, or task and seed; "" of all runs together.
        additive, multiplicative, both: how many heads.
        expected: of ``both``, for as many of each in every layer.
        p: of at least as many in both, exact for a run. For all runs by shuffles of multiplicative gates that are the
            same in every run: runs that repeat each other are not counted as so many findings.
    """

    run: str
    additive: int
    multiplicative: int
    both: int
    expected: float
    p: float


@dataclass(frozen=True, eq=False)
class SharedHeads:
    """Heads by how many tasks select them. Made by :func:`shared_heads`.

    Attributes:
        tasks: names.
        rule: by which heads were selected.
        share: of the tasks that a core head needs; ``needed`` is that in tasks.
        needed: how many tasks select a core head at least.
        votes: [task, layer, head] share of the task's runs that select a head.
        chosen: [task, layer, head] more than half of them do.
        codes: [layer, head] place in :data:`CATEGORIES`; −1 where not editable.
        counts: one per category.
        by_layer, expected_by_layer: [layer, category] heads, and how many by chance.
        key_value: whether core heads share key-value heads; None where every head has its own, or none is a core head.
        kinds: additive against multiplicative gates: all runs together, then each; empty without both kinds.
        kind_excess: (both − expected)/expected over tasks, with its interval (jackknife over tasks); None without.
        labels: [layer, head] names.
        kv_group: query heads that share a key-value head; 0 where every head has its own.
        notes: what a reader must know.
    """

    tasks: tuple[str, ...]
    rule: str
    share: float
    needed: int
    votes: Float[np.ndarray, "task layer head"]
    chosen: Bool[np.ndarray, "task layer head"]
    codes: Int[np.ndarray, "layer head"]
    counts: tuple[CategoryCount, ...]
    by_layer: Counts
    expected_by_layer: Float[np.ndarray, "layer category"]
    key_value: GroupTest | None
    kinds: tuple[KindOverlap, ...]
    kind_excess: Estimate | None
    labels: np.ndarray
    kv_group: int = 0
    notes: tuple[str, ...] = ()

    @property
    def n_tasks(self) -> Int[np.ndarray, "layer head"]:
        """[layer, head] how many tasks select a head."""
        return np.asarray(self.chosen.sum(0))

    def heads(self, category: str) -> tuple[str, ...]:
        """Labels of the heads of a category, those that most tasks select first.

        Raises:
            ValueError: another category.
        """
        if category not in CATEGORIES:
            raise ValueError(f"category must be one of {', '.join(CATEGORIES)}; got {category!r}")
        places = np.flatnonzero(self.codes.reshape(-1) == CATEGORIES.index(category))
        order = places[np.argsort(-self.votes.mean(0).reshape(-1)[places], kind="stable")]
        return tuple(str(self.labels.reshape(-1)[i]) for i in order)

    def top(self, k: int) -> tuple[tuple[str, int], ...]:
        """The ``k`` heads that most tasks select: (label, tasks); the more runs, the earlier of equals."""
        votes = self.votes.mean(0).reshape(-1)
        counts = np.where(self.codes.reshape(-1) < 0, -1, self.n_tasks.reshape(-1))
        order = [i for i in np.lexsort((-votes, -counts)) if counts[i] >= 0][:k]
        return tuple((str(self.labels.reshape(-1)[i]), int(counts[i])) for i in order)

    def count(self, category: str) -> CategoryCount:
        """One of the counts. Raises ValueError on another category."""
        for found in self.counts:
            if found.category == category:
                return found
        raise ValueError(f"category must be one of {', '.join(CATEGORIES)}; got {category!r}")

    def to_frame(self) -> pd.DataFrame:
        """One row per editable head: label, layer, head, kv_head, category, tasks (how many), of (their names), votes
        (mean share of runs over tasks)."""
        import pandas as pd

        layer, head = np.nonzero(self.codes >= 0)
        names = np.array(self.tasks, dtype=object)
        return pd.DataFrame({
            "label": self.labels[layer, head], "layer": layer, "head": head, "kv_head": head // max(self.kv_group, 1),
            "category": np.array(CATEGORIES, dtype=object)[self.codes[layer, head]],
            "tasks": self.n_tasks[layer, head],
            "of": [", ".join(names[self.chosen[:, i, j]]) for i, j in zip(layer, head, strict=True)],
            "votes": self.votes.mean(0)[layer, head],
        })  # fmt: skip

    def counts_frame(self) -> pd.DataFrame:
        """One row per category: category, heads, expected, low, high, p_more, p_fewer."""
        import pandas as pd

        return pd.DataFrame([asdict(found) for found in self.counts])

    def layers_frame(self) -> pd.DataFrame:
        """One row per layer and category: layer, category, heads, expected."""
        import pandas as pd

        layer, category = (at.reshape(-1) for at in np.indices(self.by_layer.shape))
        names = np.array(CATEGORIES, dtype=object)[category]
        values = {"heads": self.by_layer.reshape(-1), "expected": self.expected_by_layer.reshape(-1)}
        return pd.DataFrame({"layer": layer, "category": names, **values})

    def groups_frame(self) -> pd.DataFrame:
        """One row per key-value head: layer, kv_head, and how many of its query heads are of each category."""
        import pandas as pd

        frame = self.to_frame()
        counts = pd.crosstab([frame["layer"], frame["kv_head"]], frame["category"])
        return counts.reindex(columns=list(CATEGORIES), fill_value=0).reset_index().rename_axis(columns=None)

    def kinds_frame(self) -> pd.DataFrame:
        """One row per run, all together first: run, additive, multiplicative, both, expected, p."""
        import pandas as pd

        return pd.DataFrame([asdict(found) for found in self.kinds])


def shared_heads(
    given: Given, share: float = 0.8, *, rule: str | None = None, draws: int = DRAWS, seed: int = 0
) -> SharedHeads:
    """Core heads, specialists and heads that are never selected, beside chance.

    Args:
        given: selections, or Runs; of one model, method and penalty. Runs with shuffled labels are left out.
        share: of the tasks that must select a core head, above 0 and at most 1.
        rule: to select by; None is that of the selections.
        draws: shuffles for chance and p.
        seed: of the shuffles.

    Raises:
        ValueError: no run, runs that cannot be compared, a share outside (0, 1], a rule outside the grammar, or no
            draw.
    """
    if not 0 < share <= 1 or draws < 1:
        raise ValueError(f"share must be in (0, 1] and draws 1 or more; got {share} and {draws}")
    found = one_kind(as_selections(given).select(labels=REAL))
    shuffle, tasks = LayerShuffle(found.editable()), found.tasks
    sets = found.sets(rule)
    of_task = np.array([tasks.index(one.task) for one in found.origins])
    votes = np.stack([sets[of_task == i].mean(0) for i in range(len(tasks))])
    needed = max(1, math.ceil(share * len(tasks) - ROUNDING))
    packed = shuffle.pack(votes)
    codes = np.full(found.shape, -1, dtype=np.int64)
    codes[shuffle.editable] = _codes(packed, needed)
    null = _null(packed, needed, shuffle, draws, seed)
    by_layer = np.stack([(codes == code).sum(1) for code in range(len(CATEGORIES))], axis=1)
    kinds, excess = _kinds(found, rule, shuffle, draws, seed)
    return SharedHeads(
        tasks=tasks,
        rule=rule or found.rule,
        share=share,
        needed=needed,
        votes=votes,
        chosen=votes > 0.5,
        codes=codes,
        counts=tuple(_count(code, by_layer.sum(0), null.sum(1)) for code in range(len(CATEGORIES))),
        by_layer=by_layer,
        expected_by_layer=null.mean(0),
        key_value=_key_value(codes == CORE, found.group, shuffle, draws, seed),
        kinds=kinds,
        kind_excess=excess,
        labels=found.labels,
        kv_group=found.group,
        notes=_notes(found, of_task, needed, draws),
    )


# -- categories ----------------------------------------------------------------------------------------------------


def _codes(votes: Float[np.ndarray, "*draw task unit"], needed: int) -> Int[np.ndarray, "*draw unit"]:
    chosen = (votes > 0.5).sum(-2)
    codes = np.where((votes > 0).any(-2), SOMETIMES, NEVER)
    codes = np.where(chosen == 1, SPECIALIST, np.where(chosen > 1, SEVERAL, codes))
    return np.asarray(np.where(chosen >= needed, CORE, codes))


def _null(
    votes: Float[np.ndarray, "task unit"], needed: int, shuffle: LayerShuffle, draws: int, seed: int
) -> Int[np.ndarray, "draw layer category"]:
    generator, found = np.random.default_rng(seed), []
    layer_of = np.nonzero(shuffle.editable)[0]
    layers, categories = len(shuffle.editable), len(CATEGORIES)
    for count in shuffle.chunks(draws, len(votes)):
        order = shuffle.draw(generator, count * len(votes)).reshape(count, len(votes), -1)
        codes = _codes(np.take_along_axis(votes[None], order, axis=-1), needed)
        places = (np.arange(count)[:, None] * layers + layer_of) * categories + codes
        counted = np.bincount(places.reshape(-1), minlength=count * layers * categories)
        found.append(counted.reshape(count, layers, categories))
    return np.concatenate(found)


def _count(code: int, heads: Int[np.ndarray, " category"], null: Int[np.ndarray, "draw category"]) -> CategoryCount:
    drawn, have = null[:, code], int(heads[code])
    low, high = np.quantile(drawn, [0.025, 0.975])
    more, fewer = (1 + (drawn >= have).sum()) / (1 + len(drawn)), (1 + (drawn <= have).sum()) / (1 + len(drawn))
    return CategoryCount(
        CATEGORIES[code], have, float(drawn.mean()), float(low), float(high), float(more), float(fewer)
    )


def _key_value(
    core: Bool[np.ndarray, "layer head"], group: int, shuffle: LayerShuffle, draws: int, seed: int
) -> GroupTest | None:
    if not group or not core.any():
        return None
    layer, head = np.nonzero(shuffle.editable)
    groups = (core.shape[1] - 1) // group + 1
    of_group = layer * groups + head // group
    packed = shuffle.pack(core)
    have = _pairs_within(packed[None], of_group)[0]
    order = shuffle.draw(np.random.default_rng(seed), draws)
    null = _pairs_within(packed[order], of_group)
    return GroupTest(int(have), float(null.mean()), float((1 + (null >= have).sum()) / (1 + draws)))


def _pairs_within(sets: Bool[np.ndarray, "draw unit"], of_group: Int[np.ndarray, " unit"]) -> np.ndarray:
    """[draw] pairs of members of a set that are in one group."""
    draw, unit = np.nonzero(sets)
    counts = np.zeros((len(sets), int(of_group.max()) + 1), dtype=np.int64)
    np.add.at(counts, (draw, of_group[unit]), 1)
    return np.asarray((counts * (counts - 1) // 2).sum(1))


# -- additive and multiplicative -----------------------------------------------------------------------------------


def _kinds(
    found: Selections, rule: str | None, shuffle: LayerShuffle, draws: int, seed: int
) -> tuple[tuple[KindOverlap, ...], Estimate | None]:
    if not {"additive", "multiplicative"} <= set(found.kinds):
        return (), None
    a, m = (shuffle.pack(found.sets(rule, kind)) for kind in ("additive", "multiplicative"))
    layer_of = np.nonzero(shuffle.editable)[0]
    runs = [
        _one_run(one.path or f"{one.task}, seed {one.seed}", a[i], m[i], layer_of)
        for i, one in enumerate(found.origins)
    ]
    both, expected = sum(run.both for run in runs), sum(run.expected for run in runs)
    order = shuffle.draw(np.random.default_rng(seed), draws)
    null = np.array([np.count_nonzero(a & m[:, one]) for one in order])
    p = float((1 + (null >= both).sum()) / (1 + draws))
    together = KindOverlap("", int(a.sum()), int(m.sum()), both, expected, p)
    return (together, *runs), _kind_excess(found, runs, p)


def _one_run(
    name: str, a: Bool[np.ndarray, " unit"], m: Bool[np.ndarray, " unit"], layer_of: Int[np.ndarray, " unit"]
) -> KindOverlap:
    sizes, first, second = (np.bincount(layer_of, weights=one).astype(int) for one in (np.ones_like(a), a, m))
    both = int((a & m).sum())
    known = sizes > 0
    expected = float((first[known] * second[known] / sizes[known]).sum())
    return KindOverlap(name, int(a.sum()), int(m.sum()), both, expected, shared_tail(both, sizes, first, second))


def shared_tail(
    both: int, sizes: Int[np.ndarray, " layer"], first: Int[np.ndarray, " layer"], second: Int[np.ndarray, " layer"]
) -> float:
    """P(two random sets share at least ``both`` heads), that have ``first`` and ``second`` of the ``sizes`` heads of
    each layer: hypergeometric in a layer, convolved over layers."""
    from scipy.stats import hypergeom

    law = np.ones(1)
    for size, one, other in zip(sizes, first, second, strict=True):
        if one and other:
            law = np.convolve(law, hypergeom.pmf(np.arange(min(one, other) + 1), size, one, other))
    return float(min(1.0, law[both:].sum()))


def _kind_excess(found: Selections, runs: list[KindOverlap], p: float) -> Estimate | None:
    """(both − expected)/expected, over the runs of all tasks and without each task in turn."""
    tasks = np.array([one.task for one in found.origins], dtype=object)
    both, expected = (np.array([getattr(run, name) for run in runs], dtype=float) for name in ("both", "expected"))
    if not expected.sum():
        return None

    def excess(kept: np.ndarray) -> float:
        return float(both[kept].sum() / expected[kept].sum() - 1) if expected[kept].sum() else math.nan

    without = [excess(tasks != task) for task in found.tasks]
    return estimate(excess(np.ones(len(runs), dtype=bool)), np.array(without), p)


def _notes(found: Selections, of_task: np.ndarray, needed: int, draws: int) -> tuple[str, ...]:
    counts = np.bincount(of_task)
    span: Any = counts[0] if len(set(counts.tolist())) == 1 else f"{counts.min()} to {counts.max()}"
    told = [
        f"{len(found.tasks)} tasks, {span} runs each; a task selects what more than half of its runs select; core: at "
        f"least {needed} of {len(found.tasks)} tasks.",
        f"Chance: heads of each task shuffled within layers, its runs alike, {draws} draws.",
    ]
    seeds = [[one.seed for one in found.origins if one.task == task] for task in found.tasks]
    if len(seeds) > 1 and any(set(first) & set(second) for i, first in enumerate(seeds) for second in seeds[:i]):
        told.append("Runs of one seed start from the same gates in every task, which alone makes tasks more alike.")
    if len(found.tasks) == 1:
        told.append("With one task its heads are core heads and none is a specialist.")
    return tuple(told)
