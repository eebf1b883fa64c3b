"""Chance that keeps the layer profile, and intervals of means over pairs of runs.

Chance: whatever a run has at its heads is shuffled among the editable heads of each layer, so that a run keeps its
number of heads in every layer. Two selections that only prefer the same layers are then no more alike than chance.

Intervals: the delete-one jackknife over runs (or tasks) with Student's t. A mean over pairs of runs has far fewer
independent parts than pairs, and a bootstrap of four runs would compare runs with copies of themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from jola_interp.evidence.endpoint import detectable

DRAWS = 2000
ROUNDING = 1e-9
"""A draw that falls short of what was found by less than this reaches it."""


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval.

    Attributes:
        value, low, high: NaN where there is too little to tell.
        p: of "there is nothing"; the docstring of what holds it says by which null and on which side.
        n: how many runs or tasks it rests on.
        mde: the smallest true value that n of them would show (p < .05, two-sided t) four times in five, given the
            spread that was seen.
    """

    value: float
    low: float
    high: float
    p: float
    n: int
    mde: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]".replace(" [+nan, +nan]", "")


class LayerShuffle:
    """Shuffles of the editable heads within their layers.

    Args:
        editable: [layer, head].
    """

    def __init__(self, editable: Bool[np.ndarray, "layer head"]):
        self.editable, self.units = editable, int(editable.sum())
        counts = editable.sum(1)
        starts = np.cumsum(counts) - counts
        # Layers with as many editable heads are shuffled at once.
        self._blocks = [starts[counts == n][:, None] + np.arange(n) for n in np.unique(counts[counts > 1])]

    def pack(self, values: np.ndarray) -> np.ndarray:
        """[…, layer, head] as [..., unit]: the editable heads, layer by layer."""
        return np.ascontiguousarray(values[..., self.editable])

    def draw(self, generator: np.random.Generator, count: int) -> Int[np.ndarray, "count unit"]:
        """So many independent shuffles, as places of packed heads."""
        order = np.tile(np.arange(self.units), (count, 1))
        for block in self._blocks:
            order[:, block] = generator.permuted(np.broadcast_to(block, (count, *block.shape)), axis=-1)
        return order

    def chunks(self, draws: int, each: int, most: int = 4_000_000) -> Iterator[int]:
        """``draws`` in parts, none of which needs more than about ``most`` numbers at ``each`` shuffles a draw."""
        step = max(1, most // max(1, each * self.units))
        while draws > 0:
            yield min(step, draws)
            draws -= step


def reached(found: np.ndarray, null: np.ndarray) -> np.ndarray:
    """p = (1 + draws that reach what was found)/(1 + draws), elementwise over the first axis of ``null``; NaN where
    there is nothing."""
    count = (null >= np.asarray(found) - ROUNDING).sum(0)
    return np.where(np.isnan(found), np.nan, (1 + count) / (1 + len(null)))


def adjusted(found: Float[np.ndarray, " test"], null: Float[np.ndarray, "draw test"]) -> Float[np.ndarray, " test"]:
    """p for as many tests as there are: share of the draws whose largest standardised value reaches that of each.

    Unlike a correction that multiplies p, it can be small with few draws and many tests. 1 where draws do not differ,
    NaN where there is nothing.

    Source: Westfall and Young 1993, single-step max T.
    """
    known = np.isfinite(null)
    count = np.maximum(known.sum(0), 1)
    mean = np.where(known, null, 0.0).sum(0) / count
    spread = np.sqrt(np.where(known, (null - mean) ** 2, 0.0).sum(0) / count)
    varies = spread > ROUNDING
    unit = np.where(varies, spread, 1.0)
    most = np.where(known & varies, (null - mean) / unit, -np.inf).max(1, initial=-np.inf)
    p = (1 + (most[:, None] >= (found - mean) / unit - ROUNDING).sum(0)) / (1 + len(null))
    return np.where(np.isnan(found), np.nan, np.where(varies, p, 1.0))


def jackknife_errors(
    without: Float[np.ndarray, "*shape"],
) -> tuple[Float[np.ndarray, "*rest"], Int[np.ndarray, "*rest"]]:
    """sqrt((n − 1)/n · Σ (θ₍₋ᵢ₎ − mean)²) over the first axis, of values without each part in turn, and n; NaN is no
    part."""
    known = np.isfinite(without)
    n = known.sum(0)
    kept = np.where(known, without, 0.0)
    mean = kept.sum(0) / np.maximum(n, 1)
    squares = np.where(known, (kept - mean) ** 2, 0.0).sum(0)
    return np.where(n > 1, np.sqrt(squares * (n - 1) / np.maximum(n, 1)), np.nan), n


def estimate(value: float, without: Float[np.ndarray, " left"], p: float = math.nan) -> Estimate:
    """A value with the interval that its values without each part in turn give: Student's t, n − 1 degrees."""
    error, n = (float(x) for x in jackknife_errors(np.asarray(without, dtype=float)))
    half = student(n) * error if n > 1 else math.nan
    mde = detectable(int(n)) * error if n > 1 else math.nan
    return Estimate(float(value), float(value) - half, float(value) + half, float(p), int(n), mde)


def mean_over(values: Float[np.ndarray, " part"]) -> Estimate:
    """Mean of the finite ones with the interval over them; NaN where there is none."""
    known = np.asarray(values)[np.isfinite(values)]
    if not len(known):
        return estimate(math.nan, known)
    return estimate(known.mean(), np.array([np.delete(known, i).mean() for i in range(len(known)) if len(known) > 1]))


def student(n: float) -> float:
    """The .975 quantile of Student's t with n − 1 degrees of freedom."""
    from scipy import stats

    return float(stats.t.ppf(0.975, n - 1))
