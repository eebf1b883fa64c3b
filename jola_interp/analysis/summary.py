"""What the gates of a Run came to, in numbers: how many heads, how many gates decided, which step was kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float

from jola_interp import gates, selection
from jola_interp.convergence import UNDECIDED
from jola_interp.edits.base import SITES, Site

if TYPE_CHECKING:
    import pandas as pd

    from jola_interp.runs import Run


@dataclass(frozen=True)
class KindSummary:
    """The gates of one kind: how many there are, have P(open) > .5, and have decided."""

    gates: int
    open: int
    decided: int


@dataclass(frozen=True)
class GateSummary:
    """What the kept edit's gates say under a rule.

    Attributes:
        rule: the rule for the statuses.
        site: ``heads`` or ``mlp``.
        statuses: status to number of units; "none" included.
        units: how many units are editable.
        settled: selected units whose gates have all decided.
        acting: units with a gate that is not 0 at inference; they change activations, selected or not.
        kinds: kind of gate to its counts.
    """

    rule: str
    site: Site
    statuses: Mapping[str, int]
    units: int
    settled: int
    acting: int
    kinds: Mapping[str, KindSummary]

    @property
    def noun(self) -> str:
        """What a unit of the site is called."""
        return "heads" if self.site == "heads" else "MLPs"

    @property
    def selected(self) -> int:
        """Units that the rule selects."""
        return sum(count for status, count in self.statuses.items() if status != "none")

    @property
    def gates(self) -> int:
        """Gates of all kinds."""
        return sum(kind.gates for kind in self.kinds.values())

    @property
    def decided(self) -> int:
        """Gates with P(open) < .05 or > .95."""
        return sum(kind.decided for kind in self.kinds.values())

    @property
    def decided_share(self) -> float:
        """decided/gates, in [0, 1]."""
        return self.decided / self.gates

    def sentences(self) -> tuple[str, ...]:
        """How many gates are decided, and how many selected heads rest on decided gates alone."""
        low, high = (f"{bound:g}".lstrip("0") for bound in UNDECIDED)
        share = percent(self.decided_share)
        decided = f"{self.decided:,} of {self.gates:,} gates ({share}) are decided: P(open) < {low} or > {high}."
        chosen = f"{self.rule} selects {self.selected:,} of {self.units:,} {self.noun}"
        if self.decided == self.gates:
            return decided, f"{chosen}."
        return decided, f"Hatching marks the others. {chosen}, {self.settled:,} of them with decided gates only."

    def to_frame(self) -> pd.DataFrame:
        """One row per kind of gate: kind, gates, open, decided, decided_share."""
        import pandas as pd

        rows = [
            {"kind": name, "gates": kind.gates, "open": kind.open, "decided": kind.decided}
            for name, kind in self.kinds.items()
        ]
        frame = pd.DataFrame(rows)
        return frame.assign(decided_share=frame["decided"] / frame["gates"])


def gate_summary(run: Run, rule: str = selection.DEFAULT_RULE, site: Site = "heads") -> GateSummary:
    """Count what the gates of the kept edit came to.

    Raises:
        ValueError: a rule outside the grammar, an unknown site, or an edit without gates there.
    """
    log_alphas = gates_at(run, site)
    chosen = run.selection(rule, site)
    unsettled = np.any([undecided(value) for value in log_alphas.values()], axis=0)
    acting = np.any([_acts(run.edit.inference, value) for value in log_alphas.values()], axis=0)
    return GateSummary(
        rule=rule,
        site=site,
        statuses=chosen.counts(),
        units=chosen.total,
        settled=sum(not unsettled[unit] for unit in chosen.units),
        acting=int(acting.sum()),
        kinds={kind: _count(value) for kind, value in log_alphas.items()},
    )


def undecided(log_alpha: Float[np.ndarray, "*gates"]) -> Bool[np.ndarray, "*gates"]:
    """.05 ≤ P(open) ≤ .95, elementwise; False where log α is NaN."""
    values = selection.measure("p_open", log_alpha)
    return np.asarray((values >= UNDECIDED[0]) & (values <= UNDECIDED[1]))


def gates_at(run: Run, site: Site) -> dict[str, Float[np.ndarray, "layer unit"]]:
    """Kind to log α of the kept edit.

    Raises:
        ValueError: an unknown site, or an edit without gates there.
    """
    if site not in SITES:
        raise ValueError(f"site must be one of {', '.join(SITES)}; got {site!r}")
    if site not in run.edit.sites:
        raise ValueError(f"site: this edit acts at {', '.join(run.edit.sites)}, not at {site}")
    return run.log_alphas(site)


def kept_epoch(run: Run) -> int | None:
    """The epoch (from 0) whose parameters the Run kept; None if it kept those of the last step."""
    best = run.config["progress"].get("best_epoch")
    return best if run.config["train"].get("restore_best") else None


def kept_step(run: Run) -> int:
    """The optimiser step whose parameters the Run kept: the best epoch's last, or the last of all."""
    epoch, rows = kept_epoch(run), run.metrics
    if epoch is not None and "validation_ce" in rows:
        found = rows[rows["validation_ce"].notna() & (rows["epoch"] == epoch)]["step"]
        if len(found):
            return int(found.iloc[-1])
    return int(run.config["progress"]["steps"])


def kept_label(run: Run) -> str:
    """Such as "epoch 5 of 6, step 125"; epochs are counted from 1."""
    epoch, step = kept_epoch(run), kept_step(run)
    if epoch is None:
        return f"step {step}, the last"
    return f"epoch {epoch + 1} of {run.config['progress']['epochs']}, step {step}"


def title_of(run: Run) -> str:
    """Model and task, as figures name them."""
    return f"{run.config['model']['name']} on {run.config['task']['name']}"


def percent(share: float) -> str:
    """Such as "94 %"; never rounded up to 100 or down to 0, and with a decimal above 99 or below 1."""
    value = 100 * share
    if value in (0, 100):
        return f"{value:.0f} %"
    digits = 0 if 1 <= value <= 99 else 1
    return f"{min(max(value, 0.1), 99.9):.{digits}f} %"


def _acts(inference: str, log_alpha: Float[np.ndarray, "layer unit"]) -> Bool[np.ndarray, "layer unit"]:
    values = gates.INFERENCE[inference](torch.from_numpy(np.ascontiguousarray(log_alpha))).numpy()
    return np.asarray(np.nan_to_num(values) > 0)


def _count(log_alpha: Float[np.ndarray, "layer unit"]) -> KindSummary:
    total = int(np.isfinite(log_alpha).sum())
    opened = int((selection.measure("p_open", log_alpha) > 0.5).sum())
    return KindSummary(total, opened, total - int(undecided(log_alpha).sum()))
