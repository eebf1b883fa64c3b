"""The loss under each way to read gates: sampled as in training, expected, point and hard."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from jola_interp.analysis.summary import title_of
from jola_interp.analysis.tables import NotMeasuredError
from jola_interp.convergence import GATE_GAP

if TYPE_CHECKING:
    import pandas as pd

    from jola_interp.runs import Run


@dataclass(frozen=True, eq=False)
class GateGap:
    """Cross-entropy of the same validation rows with sampled gates, as in training, and with each inference gate.

    Attributes:
        gates: [gate] "sampled", "expected", "point", "hard".
        ce: [gate] nats per answer token; of "sampled" the mean over the draws.
        low, high: [gate] 95 % interval over the draws (Student's t); NaN for gates that are not drawn.
        used: the gate that the Run uses at inference.
        bound: the largest |CE(sampled) − CE(hard)| of a converged Run.
        rows, draws: validation rows, and draws of the gates on each.
        title: model and task.
    """

    gates: tuple[str, ...]
    ce: Float[np.ndarray, " gate"]
    low: Float[np.ndarray, " gate"]
    high: Float[np.ndarray, " gate"]
    used: str
    bound: float
    rows: int
    draws: int
    title: str

    @property
    def above_sampled(self) -> Float[np.ndarray, " gate"]:
        """CE − CE(sampled)."""
        return np.asarray(self.ce - self.ce[self.gates.index("sampled")])

    def sentences(self) -> tuple[str, ...]:
        """What the gate in use costs beside training's, and what the interval is of."""
        gap = dict(zip(self.gates, self.above_sampled, strict=True))
        others = "" if self.used == "hard" else f" CE(hard) − CE(sampled) = {gap['hard']:+.4f} nat."
        return (
            f"CE({self.used}, used at inference) − CE(sampled, as trained) = {gap[self.used]:+.4f} nat.{others} "
            f"Dotted: CE(sampled) ± {self.bound:g}, within which CE(hard) of a converged Run lies.",
            f"{self.rows} validation rows, the same for all. Bar: 95 % interval over {self.draws} draws of the gates; "
            "the other gates are not drawn. How far CE varies between rows is not stored and not in the bar.",
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per gate: gate, ce, low, high, above_sampled, used."""
        import pandas as pd

        columns = {"gate": self.gates, "ce": self.ce, "low": self.low, "high": self.high}
        used = [gate == self.used for gate in self.gates]
        return pd.DataFrame(columns | {"above_sampled": self.above_sampled, "used": used})


def gate_gap(run: Run) -> GateGap:
    """CE of the kept edit with sampled, expected, point and hard gates, from the stamp that training left.

    Raises:
        ValueError: the Run has no stamp.
    """
    from scipy.stats import t

    stamp = run.convergence
    if stamp is None:
        raise NotMeasuredError(
            f"{run.path} has no convergence.json: only a finished training of an edit with gates leaves one"
        )
    names = tuple(stamp.ce)
    ce = np.array([stamp.ce[name] for name in names], dtype=float)
    half = float(t.ppf(0.975, stamp.draws - 1)) * stamp.sampled_se if stamp.draws > 1 else math.nan
    arms = np.array([half if name == "sampled" else np.nan for name in names])
    return GateGap(
        gates=names,
        ce=ce,
        low=ce - arms,
        high=ce + arms,
        used=str(run.edit.inference),
        bound=GATE_GAP,
        rows=stamp.rows,
        draws=stamp.draws,
        title=title_of(run),
    )
