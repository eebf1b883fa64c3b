"""Another way to choose heads: which of the model's own heads does the task need? Causal head gating beside the Run.

Nam et al. 2025 (arXiv 2505.13737) turn every head down by a gate g = σ(θ) and fit the gates, the model frozen, three
times: without a penalty, and from there once with a pressure to open (G⁺) and once with one to close (G⁻):

    loss = NLL(answers) ∓ λ · mean over heads of clip(θ)            − opens: G⁺,  + closes: G⁻        (eq. 1)

    open under both                          facilitating   score G⁻                 the task needs the head   (Table 1)
    open only under the pressure to open     irrelevant     score G⁺ · (1 − G⁻)
    closed under both                        interfering    score 1 − G⁺             the head does harm

What differs from a JoLA selection is the question: CHG removes heads from the model as it is, JoLA chooses where an
edit pays. A head can be either without the other.

Taken from the paper: λ = .1, starts from U(0, 1), a shared first fit, learning rates .1 and then .5. Chosen here: the
mean over heads where eq. 1 has a sum (as in its authors' code); NLL as the mean over answer tokens; the clip at |θ| = 4
at that end only to which the pressure pushes (:class:`HeadGates`: clipped at both, gates that start or drift past the
wrong end stay there and are misread; ``clip="both"`` has it back); learning rates that fall to 0 (there to .01 and .1);
the Run's own rows, wrapping, batch size and number of steps (there 500 steps of 64 rows). For irrelevance the text of
§3.3 has G⁻·(1 − G⁺), against Table 1 and its own explanation; the table is followed.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from jaxtyping import Bool, Float

from jola_interp.edits.base import unit_label
from jola_interp.edits.head_gates import Clip, HeadGates, Pressure
from jola_interp.evidence.case import Case, Heads, open_case, training_digest
from jola_interp.evidence.endpoint import Paired, paired
from jola_interp.evidence.overlap import Overlap, overlap
from jola_interp.methods.causal import LR, PENALTY, START_LR, recipe
from jola_interp.runs import edit_digest
from jola_interp.selection import DEFAULT_RULE
from jola_interp.training import fit

if TYPE_CHECKING:
    import pandas as pd

    from jola_interp.models import Model
    from jola_interp.runs import Run
    from jola_interp.tasks import Task

THRESHOLD = 0.5
"""A gate above it counts as open."""
DECIDED = (0.05, 0.95)
"""A gate between them has neither opened nor closed."""
CLASSES = ("facilitating", "irrelevant", "interfering", "contradictory")
"""What a head can be. ``contradictory``: open under the pressure to close, closed under the one to open; rare (§5)."""
Score = Literal["facilitation", "irrelevance", "interference"]


@dataclass(frozen=True, eq=False)
class CausalHeads:
    """What the two fits say of every head.

    Attributes:
        g_plus: [layer, head] gates fitted under the pressure to open; NaN where the Run could not have selected.
        g_minus: [layer, head] gates fitted under the pressure to close; NaN likewise.
        steps: optimiser steps of each of the three fits.
        penalty: λ.
        base: mean NLL of the test rows without gates, in nats per token.
        opened: NLL(under g_plus) − NLL(base), row by row; below 0 where closing heads that interfere helps.
        closed: NLL(under g_minus) − NLL(base), row by row; near 0 where the heads left open do the task alone.
        selected: the heads that the Run's edit selected.
        overlap: of the needed heads with them, beside chance.
    """

    g_plus: Float[np.ndarray, "layer head"]
    g_minus: Float[np.ndarray, "layer head"]
    steps: int
    penalty: float
    base: float
    opened: Paired
    closed: Paired
    selected: Heads
    overlap: Overlap

    @property
    def facilitation(self) -> Float[np.ndarray, "layer head"]:
        """G⁻."""
        return self.g_minus

    @property
    def irrelevance(self) -> Float[np.ndarray, "layer head"]:
        """G⁺ · (1 − G⁻)."""
        return np.asarray(self.g_plus * (1 - self.g_minus))

    @property
    def interference(self) -> Float[np.ndarray, "layer head"]:
        """1 − G⁺."""
        return np.asarray(1 - self.g_plus)

    @property
    def units(self) -> Heads:
        """The heads that have gates, by layer and head."""
        return tuple((int(layer), int(head)) for layer, head in np.argwhere(np.isfinite(self.g_plus)))

    @property
    def labels(self) -> tuple[str, ...]:
        """Of :attr:`units`, such as "L3H7"."""
        return tuple(unit_label("heads", *unit) for unit in self.units)

    @property
    def classes(self) -> tuple[str, ...]:
        """Of :attr:`units`, one of ``CLASSES`` each: which of the two gates are above ``THRESHOLD``."""
        return tuple(_class_of(self.g_plus[unit], self.g_minus[unit]) for unit in self.units)

    @property
    def counts(self) -> dict[str, int]:
        """Class to number of heads."""
        found = self.classes
        return {name: found.count(name) for name in CLASSES}

    @property
    def needed(self) -> Heads:
        """The facilitating heads, most open under the pressure to close first."""
        return needed(self.g_plus, self.g_minus)

    @property
    def decided(self) -> float:
        """Share of all gates, of both fits, that are below .05 or above .95."""
        gates = np.array([[self.g_plus[unit], self.g_minus[unit]] for unit in self.units])
        return float(((gates < DECIDED[0]) | (gates > DECIDED[1])).mean())

    def top(self, k: int, score: Score = "facilitation") -> tuple[str, ...]:
        """Labels of the ``k`` heads with the largest score, largest first."""
        if score not in ("facilitation", "irrelevance", "interference"):
            raise ValueError(f"score must be facilitation, irrelevance or interference, got {score!r}")
        values = np.array([getattr(self, score)[unit] for unit in self.units])
        return tuple(self.labels[i] for i in np.argsort(-values, kind="stable")[:k])

    def sentence(self) -> str:
        """The answer in words."""
        counts, found = self.counts, self.overlap
        odd = f", {counts['contradictory']} contradictory" if counts["contradictory"] else ""
        undecided = "" if self.decided >= DECIDED[1] else f" Only {100 * self.decided:.0f} % of the gates have decided."
        return (
            f"The task needs {counts['facilitating']} of {len(self.units)} heads of the model as it is, "
            f"{counts['irrelevant']} are irrelevant, {counts['interfering']} interfere{odd} (causal head gating, "
            f"λ = {self.penalty:g}); with the closing gates the answers cost {self.closed} nat against the base model. "
            f"{found.shared} of the {found.sizes[1]} selected heads are needed (Jaccard {found.jaccard:.2f}, chance "
            f"{found.chance:.2f}, p = {found.p:.2g}).{undecided}"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; gates are null where a head has none."""
        return {
            "g_plus": _listed(self.g_plus),
            "g_minus": _listed(self.g_minus),
            "steps": self.steps,
            "penalty": self.penalty,
            "base": self.base,
            "opened": self.opened.to_dict(),
            "closed": self.closed.to_dict(),
            "counts": self.counts,
            "needed": [unit_label("heads", *unit) for unit in self.needed],
            "selected": [unit_label("heads", *unit) for unit in self.selected],
            "overlap": self.overlap.to_dict(),
            "decided": self.decided,
            "sentence": self.sentence(),
        }

    def to_frame(self) -> pd.DataFrame:
        """One row per head: label, layer, head, g_plus, g_minus, the three scores, class, selected."""
        import pandas as pd

        units, chosen = self.units, set(self.selected)
        names = ("g_plus", "g_minus", "facilitation", "irrelevance", "interference")
        columns: dict[str, Any] = {
            "label": self.labels,
            "layer": [layer for layer, _ in units],
            "head": [head for _, head in units],
            **{name: [float(getattr(self, name)[unit]) for unit in units] for name in names},
            "class": self.classes,
            "selected": [unit in chosen for unit in units],
        }
        return pd.DataFrame(columns)


def causal_heads(
    case_or_run: Case | Run | str | Path,
    task: str | Path | Task | None = None,
    model: str | Path | Model | None = None,
    *,
    steps: int | None = None,
    penalty: float = PENALTY,
    clip: Clip = "ahead",
    seed: int | None = None,
    rule: str | None = None,
    out: str | Path | None = None,
) -> CausalHeads:
    """Fit causal head gates to a Run's task and hold the heads that they find needed against the Run's selection.

    Trains three Runs of :class:`HeadGates` under ``causal/`` in the case's folder: ``start`` without a penalty, then
    ``close`` and ``open`` from where it ended. What is finished there is not trained again, what was cut short goes on.
    Another seed starts from other gates and may find other heads: the paper finds few that are needed under all of ten.

    Args:
        case_or_run: a Case, or a Run or its directory.
        task: as for :func:`open_case`; a Case has its own.
        model: likewise.
        steps: optimiser steps of each fit; None is as many as the case's refits take (the Run's own number).
        penalty: λ, above 0.
        clip: see :class:`HeadGates`.
        seed: of the starting gates and the data order; None is the Run's.
        rule: which heads of the Run count as selected; None is ``p_open>0.5``. A Case has its own.
        out: where the trainings go; None is ``evidence/`` in the Run's directory.

    Raises:
        ValueError: what :func:`open_case` refuses; a Case with a task, model, rule or folder beside it; a penalty or a
            number of steps that is not above 0; an unknown clip.
        KeyboardInterrupt: a fit was interrupted; its Run is kept, and the same call goes on with it.
    """
    if not 0 < penalty < float("inf"):
        raise ValueError(f"penalty must be a finite number above 0 (both fits are the same at 0), got {penalty}")
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be 1 or more, got {steps}")
    case = _case(case_or_run, task, model, rule, out)
    case = dataclasses.replace(case, steps=steps) if steps is not None else case
    found = _Fits(case, penalty, clip, case.settings.seed if seed is None else seed)
    start = found.fit("start", "close", None)
    plus, minus = found.fit("open", "open", start), found.fit("close", "close", start)
    g_plus, g_minus = (_gates_of(run, case.editable) for run in (plus, minus))
    base = case.base.nll
    return CausalHeads(
        g_plus=g_plus,
        g_minus=g_minus,
        steps=case.steps,
        penalty=penalty,
        base=float(base.mean()),
        opened=paired(case.score(plus).nll - base),
        closed=paired(case.score(minus).nll - base),
        selected=case.selected,
        overlap=overlap(needed(g_plus, g_minus), case.selected, case.editable),
    )


def needed(g_plus: Float[np.ndarray, "layer head"], g_minus: Float[np.ndarray, "layer head"]) -> Heads:
    """The heads that both fits leave open, most open in ``g_minus`` first. NaN is not open."""
    open_in_both = (g_plus > THRESHOLD) & (g_minus > THRESHOLD)
    order = np.argsort(np.where(open_in_both, -g_minus, np.inf), axis=None, kind="stable")
    width = g_minus.shape[1]
    return tuple((int(i) // width, int(i) % width) for i in order[: int(open_in_both.sum())])


class _Fits:
    """The fits of one case: the same rows, steps and order of batches for each."""

    def __init__(self, case: Case, penalty: float, clip: Clip, seed: int):
        self.case, self.penalty, self.clip, self.seed = case, penalty, clip, seed
        self.heads: Heads = tuple((int(layer), int(head)) for layer, head in np.argwhere(case.editable))

    def fit(self, name: str, pressure: Pressure, start: Run | None) -> Run:
        """Train, without a penalty where there is no start, else from the gates of ``start``."""
        case = self.case
        edit = HeadGates(case.run.edit.shape, pressure=pressure, heads=self.heads, clip=self.clip)
        if start is not None:
            edit.load_tensors(start.edit.tensors())
        penalty, rate = (0.0, START_LR) if start is None else (self.penalty, LR)
        settings, task = self._settings(penalty, rate), case.small_task
        origin = "drawn" if start is None else edit_digest(edit)
        # Another question has another folder, or it would find this one's answer there and refuse it.
        preset = case.run.config["preset"]
        asked = training_digest(edit, settings, task, case.model, case.backend, preset, origin)
        run = fit(
            case.model, task, edit, settings, preset=preset, backend=case.backend,
            out=case.folder / "causal" / f"{name}-s{self.seed}-{asked}", resume=True,
        )  # fmt: skip
        if run.status != "finished":
            raise KeyboardInterrupt(f"{run.path} is {run.status}: the same call goes on with it")
        return run

    def _settings(self, penalty: float, rate: float) -> Any:
        """The Run's rows as it wrapped and batched them; the paper's optimiser (§6.2)."""
        fixed = {"epochs": 10_000, "evaluate": False, "checkpoint_every": None, "target_heads": None}
        changes = {**recipe(penalty, rate), **fixed, "seed": self.seed, "max_steps": self.case.steps}
        return dataclasses.replace(self.case.settings, **changes)


def _case(
    given: Case | Run | str | Path,
    task: str | Path | Task | None,
    model: Any,
    rule: str | None,
    out: str | Path | None,
) -> Case:
    if not isinstance(given, Case):
        return open_case(given, task, model, rule=DEFAULT_RULE if rule is None else rule, out=out)
    for name, value in (("task", task), ("model", model), ("rule", rule), ("out", out)):
        if value is not None:
            raise ValueError(f"{name}: a Case has its own; leave it out, or hand in the Run")
    return given


def _gates_of(run: Run, editable: Bool[np.ndarray, "layer head"]) -> Float[np.ndarray, "layer head"]:
    gates = cast(HeadGates, run.edit).values().detach().double().cpu().numpy()
    return np.where(editable, gates, np.nan)


def _class_of(g_plus: float, g_minus: float) -> str:
    opens = (bool(g_plus > THRESHOLD), bool(g_minus > THRESHOLD))
    return {
        (True, True): "facilitating",
        (True, False): "irrelevant",
        (False, False): "interfering",
        (False, True): "contradictory",
    }[opens]


def _listed(gates: Float[np.ndarray, "layer head"]) -> list[list[float | None]]:
    return [[None if np.isnan(value) else float(value) for value in row] for row in gates]
