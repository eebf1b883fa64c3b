"""Scores against the size of the data, the penalty or the model: means over seeds with a bootstrap over seeds.

Interval: the expanded percentile bootstrap. Whole seeds are drawn with replacement, the same for all places of a line;
the quantiles are Φ(±sqrt(n/(n − 1))·t), with Student's t of n − 1 degrees, since the plain percentiles of four seeds
cover far less than they say. With so few it reaches from the worst draw to the best.

Source: Hesterberg 2015, The American Statistician 69(4), §5.2 (expanded percentile interval).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from jola_interp.analysis.chance import DRAWS, Estimate, student
from jola_interp.evidence.endpoint import paired

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class StudyCurve:
    """One line.

    Attributes:
        name: of the line: its values of the columns that part lines.
        x: [place] rising.
        mean: [place] over seeds; a seed with several rows counts once, by their mean.
        low, high: [place] 95 % interval; NaN of one seed.
        seeds: [place] how many.
        points_x, points_y: [point] each seed's own value.
        points_seed: whose.
        change: last place − first, over the seeds that have both (Student's t, two-sided); None with fewer than two
            places or such seeds.
    """

    name: str
    x: Float[np.ndarray, " place"]
    mean: Float[np.ndarray, " place"]
    low: Float[np.ndarray, " place"]
    high: Float[np.ndarray, " place"]
    seeds: Int[np.ndarray, " place"]
    points_x: Float[np.ndarray, " point"]
    points_y: Float[np.ndarray, " point"]
    points_seed: tuple[str, ...]
    change: Estimate | None


@dataclass(frozen=True, eq=False)
class StudyCurves:
    """Lines of one score. Made by :func:`curves`.

    Attributes:
        x, y: columns.
        lines: one each.
        draws: of seeds.
        notes: what a reader must know.
    """

    x: str
    y: str
    lines: tuple[StudyCurve, ...]
    draws: int
    notes: tuple[str, ...] = ()

    def to_frame(self) -> pd.DataFrame:
        """One row per line and place: name, x, mean, low, high, seeds."""
        import pandas as pd

        frames = [
            pd.DataFrame({
                "name": line.name, self.x: line.x, self.y: line.mean, "low": line.low, "high": line.high,
                "seeds": line.seeds,
            })
            for line in self.lines
        ]  # fmt: skip
        return pd.concat(frames, ignore_index=True)


def curves(
    frame: pd.DataFrame,
    x: str,
    y: str,
    *,
    by: str | Sequence[str] = (),
    unit: str = "seed",
    draws: int = DRAWS,
    seed: int = 0,
) -> StudyCurves:
    """Means of ``y`` at every ``x`` with intervals over seeds, a line for each value of ``by``.

    Args:
        frame: one row per finished cell of a study, or several; rows without ``x`` or ``y`` are left out.
        x, y: columns of numbers (n_train, penalty, parameters; a score, a number of heads).
        by: columns that part the lines.
        unit: what was drawn at random, so what another study would have others of.
        draws: of seeds.
        seed: of those draws.

    Raises:
        ValueError: a column that is not there or holds no numbers, no row left, or no draw.
    """
    parts = [by] if isinstance(by, str) else list(by)
    if missing := [name for name in (x, y, unit, *parts) if name not in frame]:
        raise ValueError(f"frame has no column {', '.join(missing)}; it has {', '.join(map(str, frame.columns))}")
    if words := [name for name in (x, y) if frame[name].dtype.kind not in "iufb"]:
        raise ValueError(f"{', '.join(words)}: not numbers; got {frame[words[0]].dtype}")
    rows = frame[np.isfinite(frame[x].astype(float)) & np.isfinite(frame[y].astype(float))]
    if not len(rows) or draws < 1:
        raise ValueError(f"frame must have a row with {x} and {y}, and draws be 1 or more; got {len(rows)} and {draws}")
    groups = rows.groupby(parts, sort=False, dropna=False) if parts else [((), rows)]
    lines = tuple(_line(" · ".join(map(str, key)), one, x, y, unit, draws, seed) for key, one in groups)
    return StudyCurves(x, y, lines, draws, _notes(lines, unit, draws))


def expanded_quantiles(n: int) -> tuple[float, float]:
    """Φ(±sqrt(n/(n − 1))·t) with t the .025 quantile of Student's t, n − 1 degrees; (0, 1) is the whole range."""
    from scipy.stats import norm

    low = float(norm.cdf(-math.sqrt(n / (n - 1)) * student(n)))
    return low, 1 - low


def _line(name: str, rows: Any, x: str, y: str, unit: str, draws: int, seed: int) -> StudyCurve:
    table = rows.assign(**{x: rows[x].astype(float), y: rows[y].astype(float)}).groupby([unit, x])[y].mean().unstack(x)
    values, places = table.to_numpy(dtype=float), table.columns.to_numpy(dtype=float)  # [seed, place]
    known = np.isfinite(values)
    low, high = _band(values, draws, seed)
    at_seed, at_place = np.nonzero(known)
    return StudyCurve(
        name=name,
        x=places,
        mean=_means(values[None])[0],
        low=low,
        high=high,
        seeds=known.sum(0),
        points_x=places[at_place],
        points_y=values[known],
        points_seed=tuple(f"{unit} {table.index[i]}" for i in at_seed),
        change=_change(values),
    )


def _band(
    values: Float[np.ndarray, "seed place"], draws: int, seed: int
) -> tuple[Float[np.ndarray, " place"], Float[np.ndarray, " place"]]:
    chosen = np.random.default_rng(seed).integers(0, len(values), (draws, len(values)))
    drawn = _means(values[chosen])
    ends = np.full((2, values.shape[1]), np.nan)
    for place, n in enumerate(np.isfinite(values).sum(0)):
        known = drawn[:, place][np.isfinite(drawn[:, place])]
        if n > 1 and len(known):
            ends[:, place] = np.quantile(known, expanded_quantiles(int(n)))
    return ends[0], ends[1]


def _means(values: Float[np.ndarray, "draw seed place"]) -> Float[np.ndarray, "draw place"]:
    known = np.isfinite(values)
    count = known.sum(1)
    return np.asarray(np.where(count > 0, np.where(known, values, 0.0).sum(1) / np.maximum(count, 1), np.nan))


def _change(values: Float[np.ndarray, "seed place"]) -> Estimate | None:
    difference = values[:, -1] - values[:, 0]
    difference = difference[np.isfinite(difference)]
    if values.shape[1] < 2 or len(difference) < 2:
        return None
    found = paired(difference)
    return Estimate(found.value, found.low, found.high, found.p, found.n, found.mde)


def _notes(lines: Sequence[StudyCurve], unit: str, draws: int) -> tuple[str, ...]:
    counts = np.concatenate([line.seeds for line in lines])
    span = f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
    told = [f"Means over {unit}s ({span} at a place), 95 % by a bootstrap over {unit}s ({draws} draws, expanded)."]
    if counts.min() == 1:
        told.append(f"No interval where there is one {unit} alone.")
    elif counts.min() < 6:
        told.append(f"With so few {unit}s it reaches from the worst to the best of them, and may still be too narrow.")
    for line in lines:
        if line.change is not None:
            told.append(f"{line.name or 'Last − first'}: {line.change} from first to last (p = {line.change.p:.2g}).")
    return tuple(told)
