"""What is learnt on one task and used on another, and whether tasks that share heads share that too.

    relative gain = (score − base)/(own − base)

``score`` of the source task's edit (or of its heads, trained anew) on the target, ``base`` without an edit, ``own`` of
the target's own edit: 1 is as good as its own, 0 is nothing, below 0 is harm. Whether lower or higher is better does
not matter. Means over seeds are taken above and below before dividing.

Correlation with overlap: Spearman's over ordered pairs of tasks. Pairs share tasks, so p is by exchanging the tasks of
the overlaps (Mantel 1967): all orders of them where there are few enough, else random ones.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from jola_interp.analysis.chance import ROUNDING, jackknife_errors, student

if TYPE_CHECKING:
    import pandas as pd

DRAWS = 9999
NEEDED = ("source", "target", "score", "base", "own")
LEAST = 3
"""Tasks with which a correlation over pairs says anything at all."""


@dataclass(frozen=True)
class Mantel:
    """Spearman's correlation of transfer and overlap over ordered pairs of tasks.

    Attributes:
        rho: the correlation; NaN where one of both is constant.
        p: share of the orders of tasks whose |ρ| is as large, two-sided.
        critical: the least |ρ| that would have p < .05; one that is truly smaller would mostly be missed.
        pairs, tasks: how many.
        exact: whether all orders were tried.
    """

    rho: float
    p: float
    critical: float
    pairs: int
    tasks: int
    exact: bool

    def sentence(self) -> str:
        """The answer in words."""
        return (
            f"Spearman's ρ = {self.rho:+.2f} over {self.pairs} ordered pairs of {self.tasks} tasks (p = {self.p:.2g} "
            f"by exchanging tasks; |ρ| from {self.critical:.2f} would be p < .05)."
        )


@dataclass(frozen=True, eq=False)
class Transfer:
    """Relative gain of each task's edit on each other. Made by :func:`transfer`.

    Attributes:
        tasks: names, sources along the first axis.
        gain: [source, target]; 1 on the diagonal where it was given, NaN where nothing was, or where the target's own
            edit gains nothing.
        low, high: [source, target] 95 % interval: jackknife over rows (seeds); NaN of one.
        rows: [source, target] how many.
        overlap: [task, task] what it is held against; None without.
        overlap_name: what that is.
        mantel: their correlation; None without overlaps or with fewer than three tasks.
        notes: what a reader must know.
    """

    tasks: tuple[str, ...]
    gain: Float[np.ndarray, "source target"]
    low: Float[np.ndarray, "source target"]
    high: Float[np.ndarray, "source target"]
    rows: Int[np.ndarray, "source target"]
    overlap: Float[np.ndarray, "task task"] | None = None
    overlap_name: str = ""
    mantel: Mantel | None = None
    notes: tuple[str, ...] = ()

    def to_frame(self) -> pd.DataFrame:
        """One row per ordered pair: source, target, gain, low, high, rows, overlap."""
        import pandas as pd

        source, target = (at.reshape(-1) for at in np.indices(self.gain.shape))
        names = np.array(self.tasks, dtype=object)
        values = {name: getattr(self, name)[source, target] for name in ("gain", "low", "high", "rows")}
        shared = np.nan if self.overlap is None else self.overlap[source, target]
        return pd.DataFrame({"source": names[source], "target": names[target], **values, "overlap": shared})


def transfer(
    frame: pd.DataFrame,
    overlap: Float[np.ndarray, "task task"] | None = None,
    tasks: tuple[str, ...] | None = None,
    *,
    overlap_name: str = "overlap",
    draws: int = DRAWS,
    seed: int = 0,
) -> Transfer:
    """Relative gains between tasks, and their correlation with an overlap.

    Args:
        frame: columns source, target, score, base, own; one row per pair of tasks and seed.
        overlap: of the tasks' heads, in the order of ``tasks`` (``Overlaps.matrix().excess`` and ``Overlaps.groups``).
        tasks: names; None is those of the frame in the order in which they come.
        overlap_name: what it is.
        draws: orders of tasks, where there are too many to try all.
        seed: of those.

    Raises:
        ValueError: missing columns, no row, tasks that are not in ``tasks``, an overlap of another shape, or no draw.
    """
    if missing := [name for name in NEEDED if name not in frame]:
        raise ValueError(f"frame has no column {', '.join(missing)}; it needs {', '.join(NEEDED)}")
    if not len(frame) or draws < 1:
        raise ValueError(f"frame must have a row and draws be 1 or more; got {len(frame)} and {draws}")
    there = tuple(dict.fromkeys([*frame["source"], *frame["target"]]))
    names = there if tasks is None else tuple(tasks)
    if unknown := [name for name in there if name not in names]:
        raise ValueError(f"tasks lacks {', '.join(unknown)}, which the frame has")
    if overlap is not None and (tasks is None or overlap.shape != (len(names), len(names))):
        raise ValueError(f"overlap must be [task, task] with tasks named; got {list(overlap.shape)} and {tasks}")
    kept = [i for i, name in enumerate(names) if name in there]  # such as no row for shuffled labels
    names = tuple(names[i] for i in kept)
    shared = None if overlap is None else overlap[np.ix_(kept, kept)]
    gain, low, high, rows, lost = _gains(frame, names)
    mantel = None if shared is None or len(names) < LEAST else mantel_test(gain, shared, draws, seed)
    told = _notes(rows, lost, mantel)
    return Transfer(names, gain, low, high, rows, shared, overlap_name if shared is not None else "", mantel, told)


def mantel_test(
    gain: Float[np.ndarray, "task task"], overlap: Float[np.ndarray, "task task"], draws: int = DRAWS, seed: int = 0
) -> Mantel:
    """Spearman's correlation off the diagonal, and p by exchanging the tasks of ``overlap``."""
    count = len(gain)
    off = ~np.eye(count, dtype=bool)
    known = off & np.isfinite(gain) & np.isfinite(overlap)
    rho = _spearman(gain, overlap, known)
    exact = math.factorial(count) <= draws
    random = []
    for order in _orders(count, draws, seed):
        moved = overlap[np.ix_(order, order)]
        random.append(abs(_spearman(gain, moved, off & np.isfinite(gain) & np.isfinite(moved))))
    null = np.array(random)
    null = null[np.isfinite(null)]
    if math.isnan(rho) or not len(null):
        return Mantel(math.nan, math.nan, math.nan, int(known.sum()), count, exact)
    more = int((null >= abs(rho) - ROUNDING).sum())
    p = more / len(null) if exact else (1 + more) / (1 + len(null))  # all orders hold the one that was found
    return Mantel(rho, p, float(np.quantile(null, 0.95)), int(known.sum()), count, exact)


def _orders(count: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    if math.factorial(count) <= draws:
        yield from (np.array(order) for order in itertools.permutations(range(count)))
        return
    generator = np.random.default_rng(seed)
    yield from (generator.permutation(count) for _ in range(draws))


def _spearman(first: np.ndarray, second: np.ndarray, known: np.ndarray) -> float:
    from scipy.stats import rankdata

    a, b = rankdata(first[known]), rankdata(second[known])
    a, b = a - a.mean() if len(a) else a, b - b.mean() if len(b) else b
    whole = math.sqrt(float((a**2).sum() * (b**2).sum()))
    return float((a * b).sum() / whole) if whole else math.nan


def _gains(frame: Any, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """Gains, ends of their intervals, rows, and in how many pairs of tasks the target's own edit gains nothing."""
    shape = (len(names), len(names))
    gain, low, high, rows = np.full(shape, np.nan), np.full(shape, np.nan), np.full(shape, np.nan), np.zeros(shape, int)
    lost = 0
    for (source, target), part in frame.groupby(["source", "target"], sort=False):
        at = names.index(source), names.index(target)
        above = (part["score"] - part["base"]).to_numpy(dtype=float)
        below = (part["own"] - part["base"]).to_numpy(dtype=float)
        rows[at] = len(part)
        if not abs(below.sum()) > ROUNDING:
            lost += 1
            continue
        gain[at] = above.sum() / below.sum()
        if len(part) > 1:
            low[at], high[at] = _interval(above, below)
    return gain, low, high, rows, lost


def _interval(above: Float[np.ndarray, " row"], below: Float[np.ndarray, " row"]) -> tuple[float, float]:
    rest = below.sum() - below
    without = np.where(np.abs(rest) > ROUNDING, (above.sum() - above) / np.where(rest, rest, 1), np.nan)
    error, n = jackknife_errors(without)
    if n < len(above):
        return math.nan, math.nan
    half = student(int(n)) * float(error)
    value = float(above.sum() / below.sum())
    return value - half, value + half


def _notes(rows: Int[np.ndarray, "source target"], lost: int, mantel: Mantel | None) -> tuple[str, ...]:
    counts: Mapping[str, int] = {"least": int(rows[rows > 0].min()), "most": int(rows.max())}
    span = str(counts["least"]) if counts["least"] == counts["most"] else f"{counts['least']} to {counts['most']}"
    told = [f"Gain over the target's base as a share of its own edit's; {span} pairs of Runs for two tasks."]
    if lost:
        told.append(f"{lost} pairs of tasks have no share: the target's own edit gains nothing.")
    return (*told, mantel.sentence()) if mantel else tuple(told)
