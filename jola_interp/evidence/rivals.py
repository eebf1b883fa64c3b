"""Is there a which? Forbid the heads that were found, train again, and see whether others do as well."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jola_interp.edits.base import unit_label
from jola_interp.evidence.case import Case, Heads, fresh, open_case
from jola_interp.evidence.endpoint import Paired, paired
from jola_interp.selection import DEFAULT_RULE

if TYPE_CHECKING:
    import pandas as pd

    from jola_interp.models import Model
    from jola_interp.runs import Run
    from jola_interp.tasks import Task

MARGIN = 0.9
"""A rival set has to reach this share of the first set's gain."""
MOST = 4
"""Sets to look for: a task that has four is done by one of many."""
ROUNDING = 1e-5
"""Nats: a smaller gain is what float32 rounds, and not one."""


@dataclass(frozen=True)
class Rival:
    """One set of heads.

    Attributes:
        heads: (layer, head) pairs.
        gain: NLL(base) − NLL(refit on these heads alone), over the test rows.
        share: gain over the first set's; 0 where that is none.
        short: NLL(refit) − NLL(first refit), row by row; 0 where it does as well.
        beyond: gain − margin · the first set's gain, row by row: the set counts where this is not below 0.
    """

    heads: Heads
    gain: Paired
    share: float
    short: Paired
    beyond: Paired

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        found = {"heads": [unit_label("heads", *unit) for unit in self.heads], "gain": self.gain.to_dict()}
        return found | {"share": self.share, "short": self.short.to_dict(), "beyond": self.beyond.to_dict()}


@dataclass(frozen=True)
class Rivals:
    """Disjoint sets of K heads that each do the task.

    Attributes:
        k: heads in a set.
        margin: share of the first set's gain that a rival has to reach.
        sets: those that did, the Run's own first; none where that one has no gain to share.
        failed: the set at which the gain was lost, or was not there; None where the search ended before.
        ended: why the search ended: "gain lost" (the next set is below the margin, with its interval), "unclear" (below
            it, but not with its interval), "no heads left", "limit" or "no gain".
        selected: how many heads the Run selected; where K is less, U is told of their K most open ones.
    """

    k: int
    margin: float
    sets: tuple[Rival, ...]
    failed: Rival | None
    ended: str
    selected: int

    @property
    def u(self) -> int:
        """U: number of disjoint sets within the margin."""
        return len(self.sets)

    @property
    def roles(self) -> dict[str, list[str]]:
        """``core`` heads of the Run's own set where no other set does (U = 1); ``contingent`` heads of sets that
        another set can stand in for (U > 1); ``noise`` heads of the set at which the gain was lost, or missing."""
        named = [[unit_label("heads", *unit) for unit in found.heads] for found in self.sets]
        flat = [label for labels in named for label in labels]
        lost = [unit_label("heads", *unit) for unit in self.failed.heads] if self.failed else []
        alone = self.u == 1 and self.ended == "gain lost"
        return {"core": flat if alone else [], "contingent": [] if alone else flat, "noise": lost}

    def sentence(self) -> str:
        """The answer in words."""
        if self.failed is not None and self.ended == "no gain":
            gain = self.failed.gain
            return f"U = 0: a refit of the Run's own {self.k} heads gains {gain} nat, so there is nothing to share."
        end = {
            "gain lost": "; the next set loses the gain",
            "unclear": "; the next set may or may not (its interval holds the margin)",
            "no heads left": "; fewer than that many heads were left to try",
            "limit": "; the search stopped there",
        }[self.ended]
        count = f"U = {self.u} disjoint set{'s' if self.u > 1 else ''} of {self.k} heads"
        verdict = "one of many" if self.u >= MOST else "replaceable" if self.u > 1 else "open"
        if self.u == 1 and self.ended == "gain lost":
            verdict = "not replaced"
        part = f" (of {self.selected} selected)" if self.k < self.selected else ""
        return f"{count}{part} reach {100 * self.margin:.0f} % of the first one's gain{end}: {verdict}."

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "k": self.k,
            "u": self.u,
            "margin": self.margin,
            "sets": [found.to_dict() for found in self.sets],
            "failed": self.failed.to_dict() if self.failed else None,
            "ended": self.ended,
            "selected": self.selected,
            "roles": self.roles,
            "sentence": self.sentence(),
        }

    def to_frame(self) -> pd.DataFrame:
        """One row per set: set, heads, gain, share, kept."""
        import pandas as pd

        rows = [(found, True) for found in self.sets] + ([(self.failed, False)] if self.failed else [])
        return pd.DataFrame(
            {
                "set": range(1, len(rows) + 1),
                "heads": [" ".join(unit_label("heads", *unit) for unit in found.heads) for found, _ in rows],
                "gain": [found.gain.value for found, _ in rows],
                "share": [found.share for found, _ in rows],
                "kept": [kept for _, kept in rows],
            }
        )


def rivals(
    run: Case | Run | str | Path,
    task: str | Path | Task | None = None,
    model: str | Path | Model | None = None,
    *,
    k: int | None = None,
    margin: float = MARGIN,
    most: int = MOST,
    steps: int | None = None,
    rule: str = DEFAULT_RULE,
    out: str | Path | None = None,
) -> Rivals:
    """Find disjoint sets of K heads that do the task, until the gain is lost.

    The first set is the Run's: its K heads with the largest P(open). Then JoLA is trained with all heads found so far
    forbidden, at the same price per gate, and its K most open heads are the next candidate. A candidate counts if a
    refit of it alone (no gates, the same steps and learning rates for all) reaches ``margin`` of the first set's gain.
    Where the first set itself gains nothing (the 95 % interval of its gain does not lie above 0, or it is rounding),
    U = 0 and nothing is searched for.

    Args:
        run: a Run, its directory, or an opened case (then what follows up to ``model`` is that of the case).
        task: what the Run was trained on, the same rows; None loads it by its name.
        model: None is the Run's own.
        k: heads in a set; None is as many as the Run selected, but at most a quarter of all, so that there could be
            four sets.
        margin: in (0, 1].
        most: stop after so many sets.
        steps: optimiser steps of each refit; None is as many as the Run took.
        rule: which heads count as selected.
        out: where the trainings go; None is ``evidence/`` in the Run's directory.

    Raises:
        ValueError: a number outside its range, or a Run that selected no head.
    """
    case = run if isinstance(run, Case) else open_case(run, task, model, steps=steps, rule=rule, out=out)
    if not 0 < margin <= 1:
        raise ValueError(f"margin must be above 0, at most 1, got {margin}")
    if most < 1:
        raise ValueError(f"most must be 1 or more, got {most}")
    total = int(case.editable.sum())
    size = min(len(case.selected), max(1, total // MOST)) if k is None else k
    if not 1 <= size <= total:
        raise ValueError(f"k must be 1 to {total}, got {size} ({case.rule} selects {len(case.selected)} heads)")
    heads = most_open(case.run, size)
    first = case.refit(heads, f"rivals/k{size}/0-refit").nll
    sets = [_rival(case, heads, first, first, margin)]
    end = partial(Rivals, size, margin, selected=len(case.selected))
    if not sets[0].gain.low > ROUNDING:  # any heads reach a share of nothing
        return end((), sets[0], "no gain")
    forbidden = set(heads)
    while len(sets) < most:
        if total - len(forbidden) < size:
            return end(tuple(sets), None, "no heads left")
        heads = _next(case, forbidden, size, len(sets))
        nll = case.refit(heads, f"rivals/k{size}/{len(sets)}-refit").nll
        found = _rival(case, heads, nll, first, margin)
        if found.beyond.value < 0:
            return end(tuple(sets), found, "gain lost" if found.beyond.high < 0 else "unclear")
        sets.append(found)
        forbidden |= set(heads)
    return end(tuple(sets), None, "limit")


def most_open(run: Run, k: int) -> Heads:
    """The k heads whose larger gate is most likely open; ties in order of layer and head."""
    larger = np.nanmax([np.nan_to_num(x, nan=-np.inf) for x in run.log_alphas().values()], axis=0)
    order = np.argsort(-larger, axis=None, kind="stable")[:k]
    return tuple((int(i) // larger.shape[1], int(i) % larger.shape[1]) for i in order)


def _next(case: Case, forbidden: set[tuple[int, int]], k: int, place: int) -> Heads:
    edit = fresh(case.run.edit)
    mask = edit.site("heads").mask
    before = int(mask.sum())
    for unit in forbidden:
        mask[unit] = False
    price = case.settings.penalty
    if case.settings.penalty_form == "mean":  # over the editable gates: with fewer of them each would cost more
        price *= int(mask.sum()) / before
    budget = case.settings.target_heads
    if budget is not None:
        budget = min(int(mask.sum()), round(budget * before) if budget < 1 else int(budget))
    run = case.retrain(f"rivals/k{k}/{place}-search", edit=edit, penalty=price, target_heads=budget)
    return most_open(run, k)


def _rival(case: Case, heads: Heads, nll: np.ndarray, first: np.ndarray, margin: float) -> Rival:
    whole, own = case.base.nll - first, paired(case.base.nll - nll)
    share = own.value / float(whole.mean()) if whole.mean() > 0 else 0.0
    return Rival(heads, own, share, paired(nll - first), paired(case.base.nll - nll - margin * whole))
