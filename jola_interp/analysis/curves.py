"""Training as curves: how each gate moved, and what the loss was made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from jola_interp import selection
from jola_interp.analysis.summary import gates_at, kept_epoch, kept_step, title_of
from jola_interp.convergence import UNDECIDED
from jola_interp.edits.base import Kind, Site, unit_label

if TYPE_CHECKING:
    import pandas as pd

    from jola_interp.runs import Run

MOST_LINES, MOST_STEPS = 300, 150
"""Above these a figure of trajectories thins out, and says so."""


@dataclass(frozen=True, eq=False)
class Trajectories:
    """P(open) of one kind of gate over training.

    Attributes:
        kind: kind of gate.
        steps: [step] optimiser steps.
        values: [step, unit] P(open) of the units in ``labels``.
        labels: [unit] names of the editable units, in order of layer and unit.
        top: indices into ``labels`` of the gates most open at the end, the most open first.
        shown: indices into ``labels`` of the units that a figure draws beside the top ones.
        kept: the optimiser step whose parameters the Run kept.
        title: model and task.
        notes: what was thinned out, if anything was.
        travel: [step] Σ of the gates' learning rate up to each step; None where it was not logged.
        lowest, highest: [step] P(open) of a log α that went down from the lowest start, or up from the highest, by all
            of ``travel``; None without it. Adam moves a parameter by about one learning rate a step and seldom by more
            (Kingma & Ba 2015, §2.1): what lies outside was out of reach, whatever the loss said.
    """

    kind: Kind
    steps: Int[np.ndarray, " step"]
    values: Float[np.ndarray, "step unit"]
    labels: tuple[str, ...]
    top: tuple[int, ...]
    shown: tuple[int, ...]
    kept: int
    title: str
    notes: tuple[str, ...] = ()
    travel: Float[np.ndarray, " step"] | None = None
    lowest: Float[np.ndarray, " step"] | None = None
    highest: Float[np.ndarray, " step"] | None = None

    def travel_at(self, steps: Iterable[float]) -> list[float]:
        """``travel`` at the last record not after each of ``steps``; 0 before the first."""
        if self.travel is None:
            return []
        rows = np.searchsorted(self.steps, np.asarray(list(steps)), side="right") - 1
        return [float(self.travel[row]) if row >= 0 else 0.0 for row in rows]

    def reach(self) -> str:
        """What the cone says, in words; "" where the gates' learning rate was not logged."""
        if self.travel is None or self.lowest is None or self.highest is None:
            return ""
        band = (
            "Band: P(open) within reach of a log α that moves by one learning rate a step, about the most that Adam "
            f"does; Σ gate learning rate {self.travel[-1]:.3g}"
        )
        shut = np.flatnonzero(self.lowest < UNDECIDED[0])
        if not len(shut):
            return f"{band}, too little for any gate to shut (P(open) < {UNDECIDED[0]:g})."
        return f"{band}; gates can be shut from step {self.steps[shut[0]]} on."

    def to_frame(self) -> pd.DataFrame:
        """Tidy: step, label, kind, p_open, top (1 for the most open gate at the end, …; NaN for the others)."""
        import pandas as pd

        steps, units = len(self.steps), len(self.labels)
        rank = np.full(units, np.nan)
        rank[list(self.top)] = np.arange(1, len(self.top) + 1)
        columns = {
            "step": np.repeat(self.steps, units),
            "label": np.tile(np.array(self.labels, dtype=object), steps),
            "kind": self.kind,
            "p_open": self.values.reshape(-1),
            "top": np.tile(rank, steps),
        }
        return pd.DataFrame(columns)


def trajectories(run: Run, kind: Kind, top: int = 6, site: Site = "heads") -> Trajectories:
    """P(open) of every gate of a kind at every recorded step (at most 150 of them, evenly spaced).

    Args:
        run: whose history.
        kind: "additive", "multiplicative" or "shared".
        top: how many gates to name, by log α at the last record.
        site: ``heads`` or ``mlp``.

    Raises:
        ValueError: an edit without such gates, a negative ``top``, or a Run without a record of its gates.
    """
    if (kinds := list(gates_at(run, site))) and kind not in kinds:
        raise ValueError(f"kind must be one of {', '.join(kinds)} (the gates of this edit); got {kind!r}")
    if top < 0:
        raise ValueError(f"top must be 0 or more; got {top}")
    if not len(run.gates):
        raise ValueError("this Run has no record of its gates")
    mask = run.edit.site(site).mask.cpu().numpy()
    rows = _thinned(len(run.gates), MOST_STEPS)
    log_alpha = run.gates.log_alpha(kind, site)[rows][:, mask]  # [step, unit]
    shown = _thinned(log_alpha.shape[1], MOST_LINES)
    notes = []
    if len(shown) < log_alpha.shape[1]:
        notes.append(f"Grey: {len(shown)} of {log_alpha.shape[1]:,} gates, evenly spaced.")
    steps = run.gates.steps[rows]
    travel = gate_travel(run, steps)
    lowest, highest = (None, None) if travel is None else _cone(log_alpha[0], travel)
    return Trajectories(
        kind=kind,
        steps=steps,
        values=selection.measure("p_open", log_alpha),
        labels=tuple(unit_label(site, int(layer), int(unit)) for layer, unit in np.argwhere(mask)),
        top=tuple(int(i) for i in np.argsort(-log_alpha[-1], kind="stable")[:top]),
        shown=tuple(int(i) for i in shown),
        kept=kept_step(run),
        title=title_of(run),
        notes=tuple(notes),
        travel=travel,
        lowest=lowest,
        highest=highest,
    )


def gate_travel(run: Run, steps: Int[np.ndarray, " step"]) -> Float[np.ndarray, " step"] | None:
    """Σ_{k ≤ step} gate_lr_k: about how far any log α can have travelled; None where a step did not log ``gate_lr``."""
    rows = run.metrics
    if not {"gate_lr", "ce"} <= set(rows):
        return None
    train = rows[rows["ce"].notna()]
    if train["gate_lr"].isna().any():
        return None
    travelled = np.concatenate([[0.0], np.cumsum(train["gate_lr"].to_numpy(dtype=float))])
    return travelled[np.searchsorted(train["step"].to_numpy(), steps, side="right")]


def _cone(
    starts: Float[np.ndarray, " unit"], travel: Float[np.ndarray, " step"]
) -> tuple[Float[np.ndarray, " step"], Float[np.ndarray, " step"]]:
    """P(open) at the lowest start − travel and at the highest start + travel."""
    moved = travel - travel[0]
    return selection.measure("p_open", starts.min() - moved), selection.measure("p_open", starts.max() + moved)


@dataclass(frozen=True, eq=False)
class Losses:
    """What training logged, as aligned arrays.

    Attributes:
        steps: [step] optimiser steps.
        ce: [step] cross-entropy of the training batch, with sampled gates, in nats per answer token.
        smooth: [step] its centred mean over ``window`` steps.
        window: see ``smooth``.
        penalty: [step] the sparsity penalty as it entered the loss, weights included.
        opens: kind to [step] Σ P(open) over all gates of the kind.
        weights: kind to [step] λ of the kind.
        gates: how many gates there are of each kind.
        validation_steps, validation_epochs: [epoch] when validation ran (epochs from 0).
        validation_ce: [epoch] cross-entropy of the validation rows, with the gates of inference.
        best: index of the best validation; None if there was none.
        kept: whether the Run keeps the best epoch's parameters.
        title: model and task.
    """

    steps: Int[np.ndarray, " step"]
    ce: Float[np.ndarray, " step"]
    smooth: Float[np.ndarray, " step"]
    window: int
    penalty: Float[np.ndarray, " step"]
    opens: Mapping[str, Float[np.ndarray, " step"]]
    weights: Mapping[str, Float[np.ndarray, " step"]]
    gates: int
    validation_steps: Int[np.ndarray, " epoch"]
    validation_epochs: Int[np.ndarray, " epoch"]
    validation_ce: Float[np.ndarray, " epoch"]
    best: int | None
    kept: bool
    title: str
    notes: tuple[str, ...] = field(default=())

    @property
    def weights_move(self) -> bool:
        """Whether any λ changes over training."""
        return any(len(value) and np.ptp(value) > 0 for value in self.weights.values())

    def to_frame(self) -> pd.DataFrame:
        """Tidy: step, split (train or validation), series, value."""
        import pandas as pd

        series = {"ce": self.ce, "ce_smooth": self.smooth, "penalty": self.penalty}
        series |= {f"open_{kind}": value for kind, value in self.opens.items()}
        series |= {f"lambda_{kind}": value for kind, value in self.weights.items()}
        frames = [
            pd.DataFrame({"step": self.steps, "split": "train", "series": name, "value": value})
            for name, value in series.items()
        ]
        validation = {"step": self.validation_steps, "split": "validation", "series": "ce"}
        return pd.concat([*frames, pd.DataFrame({**validation, "value": self.validation_ce})], ignore_index=True)


def losses(run: Run) -> Losses:
    """Cross-entropy, weighted penalty, Σ P(open) and λ of every step, and the validations.

    Raises:
        ValueError: a Run whose ``metrics.jsonl`` holds no training step.
    """
    rows = run.metrics
    train = rows[rows["ce"].notna()] if "ce" in rows else rows
    if not len(train):
        raise ValueError("metrics.jsonl of this Run holds no training step")
    ce = train["ce"].to_numpy(dtype=float)
    smooth, window = smoothed(ce)
    validations = rows[rows["validation_ce"].notna()] if "validation_ce" in rows else rows[:0]
    opens, weights = _by_kind(train, "open_"), _by_kind(train, "lambda_")
    total = sum(int(mask.sum()) for mask in run.edit.masks().values())
    return Losses(
        steps=train["step"].to_numpy(dtype=np.int64),
        ce=ce,
        smooth=smooth,
        window=window,
        penalty=train["penalty"].to_numpy(dtype=float),
        opens=opens,
        weights={kind: weights[kind] for kind in opens if kind in weights},
        gates=total,
        validation_steps=validations["step"].to_numpy(dtype=np.int64),
        validation_epochs=validations["epoch"].to_numpy(dtype=np.int64),
        validation_ce=validations["validation_ce"].to_numpy(dtype=float) if len(validations) else np.empty(0),
        best=_best(run, validations),
        kept=kept_epoch(run) is not None,
        title=title_of(run),
        notes=_notes(weights, total) if opens else (),
    )


def smoothed(values: Float[np.ndarray, " step"]) -> tuple[Float[np.ndarray, " step"], int]:
    """The centred mean over a twentieth of the values, and how many that are; NaN is left out, and stays NaN."""
    import pandas as pd

    window = max(1, len(values) // 20) | 1  # odd, so that a centre exists
    mean = pd.Series(values).rolling(window, center=True, min_periods=1).mean().to_numpy(dtype=float)
    return np.where(np.isnan(values), np.nan, mean), window


def _by_kind(train: pd.DataFrame, prefix: str) -> dict[str, np.ndarray]:
    names = [str(name) for name in train if str(name).startswith(prefix)]
    return {name.removeprefix(prefix): train[name].to_numpy(dtype=float) for name in names}


def _best(run: Run, validations: pd.DataFrame) -> int | None:
    found = np.flatnonzero(validations["epoch"].to_numpy() == run.config["progress"].get("best_epoch"))
    return int(found[-1]) if len(found) else None


def _notes(weights: Mapping[str, np.ndarray], gates: int) -> tuple[str, ...]:
    """How many gates there are, and λ in words where it stands still."""
    count = f"{gates:,} gate{'' if gates == 1 else 's'}{' of each kind' if len(weights) > 1 else ''}."
    fixed = {kind: float(value[0]) for kind, value in weights.items() if np.ptp(value) == 0}
    if not fixed or len(fixed) < len(weights):
        return (count,)
    if len(set(fixed.values())) == 1:
        return (count, f"λ = {next(iter(fixed.values())):g}, constant.")
    return (count, ", ".join(f"λ = {value:g} ({kind})" for kind, value in fixed.items()) + ", constant.")


def _thinned(length: int, most: int) -> np.ndarray:
    """At most ``most`` indices, evenly spaced, the first and the last among them."""
    if length <= most:
        return np.arange(length)
    return np.unique(np.linspace(0, length - 1, most).round().astype(np.int64))
