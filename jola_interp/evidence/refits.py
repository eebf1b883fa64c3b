"""The refit null: would any heads do? Train from scratch on random sets, and on everything that was not selected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from jola_interp.evidence.case import Case, Heads
from jola_interp.evidence.endpoint import Paired, paired
from jola_interp.evidence.overlap import random_like

if TYPE_CHECKING:
    import pandas as pd

SETS = 19
"""Random sets: with 19 of them the smallest p is 1/20."""
LEVEL = 0.05
"""What p has to reach. Fewer than 19 sets cannot, and then nothing is told."""
SAME = 0.9
"""Random sets that share more than this of the selected heads, on average, are no other sets."""
NOT_LOCALISED = 0.95
"""A complement that reaches this share of the gain says that the task is not in the selected heads alone."""


@dataclass(frozen=True, eq=False)
class Refits:
    """Edits without gates, trained anew on fixed sets of heads with the same steps and learning rates.

    Attributes:
        heads: the selected heads.
        steps: optimiser steps of each refit.
        base: mean NLL of the test rows without an edit, in nats per token.
        selected: mean NLL after a refit of the selected heads.
        gain: base − selected, row by row.
        random: [set] mean NLL after refits of random sets with as many heads in each layer.
        shared: [set] how many of the selected heads each random set happens to hold.
        p: (1 + #random sets at least as good)/(1 + #sets).
        advantage: NLL(mean of the random refits) − NLL(selected refit), row by row; positive favours the selection.
        complement: mean NLL after a refit of all heads that were not selected; None where all were.
        share: (base − complement)/(base − selected), the complement's share of the gain; None where there is none.
    """

    heads: Heads
    steps: int
    base: float
    selected: float
    gain: Paired
    random: tuple[float, ...]
    shared: tuple[int, ...]
    p: float
    advantage: Paired
    complement: float | None
    share: float | None

    @property
    def localised(self) -> bool | None:
        """Whether the selection gains, beats the random sets at p ≤ .05, and the rest without it does not reach 95 % of
        its gain. None where that could not come out: too few sets, or random ones that are nearly the selection."""
        if self.gain.low <= 0 or (self.share is not None and self.share >= NOT_LOCALISED):
            return False
        told = 1 / (1 + len(self.random)) <= LEVEL and self.alike <= SAME
        return self.p <= LEVEL if told else None

    @property
    def alike(self) -> float:
        """Which share of the selected heads the random sets hold, on average."""
        return float(np.mean(self.shared) / len(self.heads))

    def sentence(self) -> str:
        """The answer in words."""
        better = sum(value <= self.selected for value in self.random)
        if self.complement is None:
            rest = "every head was selected, so there is no complement"
        elif self.share is None:
            rest = "there is no gain for the complement to reach"
        else:
            rest = f"the complement reaches {100 * self.share:.0f} % of the gain"
        return (
            f"Refitting the {len(self.heads)} selected heads gains {self.gain} nat; {better} of {len(self.random)} "
            f"random sets of the same layer profile (which hold {100 * self.alike:.0f} % of them) do at least as well "
            f"(p = {self.p:.2f}), the selection being better by {self.advantage} nat on average; {rest}."
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "heads": [list(unit) for unit in self.heads],
            "steps": self.steps,
            "base": self.base,
            "selected": self.selected,
            "gain": self.gain.to_dict(),
            "alike": self.alike,
            "random": list(self.random),
            "shared": list(self.shared),
            "p": self.p,
            "advantage": self.advantage.to_dict(),
            "complement": self.complement,
            "share": self.share,
            "localised": self.localised,
            "sentence": self.sentence(),
        }

    def to_frame(self) -> pd.DataFrame:
        """One row per refit: which, nll, gain, shared."""
        import pandas as pd

        rows = [("selected", self.selected, len(self.heads))]
        rows += [(f"random {i}", *found) for i, found in enumerate(zip(self.random, self.shared, strict=True))]
        rows += [("complement", self.complement, 0)] if self.complement is not None else []
        frame = pd.DataFrame(rows, columns=["which", "nll", "shared"])
        return frame.assign(gain=self.base - frame["nll"])


def refits(case: Case, sets: int = SETS, seed: int = 0) -> Refits:
    """Refit the selection, ``sets`` random sets of the same number of heads per layer, and the complement.

    All of them train both vectors of every head of the set without gates, from the same starting values, on the same
    batches, for ``case.steps`` steps: the sets differ, nothing else does.

    Raises:
        ValueError: fewer than one set; a Run that selected no head.
    """
    if sets < 1:
        raise ValueError(f"sets must be 1 or more, got {sets}")
    chosen = case.selected
    if not chosen:
        raise ValueError(f"{case.run.path}: {case.rule} selects no head, so there is nothing to refit")
    generator = np.random.default_rng(seed)
    draws = [random_like(chosen, case.editable, generator) for _ in range(sets)]
    selected = case.refit(chosen, "refit/selected").nll
    rest = tuple(unit for unit in map(tuple, np.argwhere(case.editable).tolist()) if unit not in set(chosen))
    complement = case.refit(rest, "refit/complement").nll if rest else None  # type: ignore[arg-type]
    random = [case.refit(heads, f"refit/random-{seed}-{i:02d}").nll for i, heads in enumerate(draws)]
    return _summary(case, chosen, selected, random, draws, complement)


def _summary(
    case: Case,
    chosen: Heads,
    selected: Float[np.ndarray, " row"],
    random: Sequence[Float[np.ndarray, " row"]],
    draws: Sequence[Heads],
    complement: Float[np.ndarray, " row"] | None,
) -> Refits:
    base, own = float(case.base.nll.mean()), float(selected.mean())
    means = [float(values.mean()) for values in random]
    rest = None if complement is None else float(complement.mean())
    return Refits(
        heads=chosen,
        steps=case.steps,
        base=base,
        selected=own,
        gain=paired(case.base.nll - selected),
        random=tuple(means),
        shared=tuple(len(set(chosen) & set(heads)) for heads in draws),
        p=(1 + sum(value <= own for value in means)) / (1 + len(means)),
        advantage=paired(np.mean(random, axis=0) - selected),
        complement=rest,
        share=None if rest is None or base <= own else (base - rest) / (base - own),
    )
