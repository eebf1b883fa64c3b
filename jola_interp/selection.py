"""Which heads count as selected, and how each is used: arithmetic on log α, under a named rule.

Rules, one grammar everywhere:

    p_open>0.5        the default: more likely open than not
    expected>0.0881   E[g] above its value where the point gate closes
    point>0           not exactly 0 under the released code's gate
    top=32:p_open     the 32 heads whose larger gate is largest
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from jola_interp import gates
from jola_interp.edits.base import Site, unit_label

if TYPE_CHECKING:
    import pandas as pd

STATUSES = ("none", "additive", "multiplicative", "both")
"""What the codes 0 to 3 of a status array mean."""
DEFAULT_RULE = "p_open>0.5"
MEASURES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "p_open": gates.p_open,
    "expected": gates.expected,
    "point": gates.point,
}
"""How open a gate is, by name."""

_THRESHOLD = re.compile(r"(\w+)\s*>\s*(-?\d*\.?\d+(?:e-?\d+)?)")
_TOP = re.compile(r"top\s*=\s*(\d+)\s*:\s*(\w+)")

LogAlphas = Mapping[str, Float[np.ndarray, "layer unit"]]
"""Kind of gate to its log α; NaN where a unit is not editable."""


@dataclass(frozen=True)
class Rule:
    """A parsed rule: either a threshold on a measure, or a number of heads to keep by it."""

    text: str
    measure: str
    threshold: float | None = None
    top: int | None = None


def parse_rule(text: str) -> Rule:
    """Read a rule.

    Raises:
        ValueError: text outside the grammar, or an unknown measure.
    """
    stripped = text.strip()
    if match := _THRESHOLD.fullmatch(stripped):
        rule = Rule(stripped, match[1], threshold=float(match[2]))
    elif match := _TOP.fullmatch(stripped):
        rule = Rule(stripped, match[2], top=int(match[1]))
    else:
        raise ValueError(f"rule: {text!r} reads neither 'measure>number' nor 'top=K:measure' (such as p_open>0.5)")
    if rule.measure not in MEASURES:
        raise ValueError(f"rule: measure must be one of {', '.join(MEASURES)}; got {rule.measure!r}")
    return rule


def measure(name: str, log_alpha: Float[np.ndarray, "*gates"]) -> Float[np.ndarray, "*gates"]:
    """``p_open``, ``expected`` or ``point`` of an array of log α; NaN stays NaN."""
    values: np.ndarray = MEASURES[name](torch.from_numpy(np.ascontiguousarray(log_alpha))).numpy()
    return np.where(np.isnan(log_alpha), np.nan, values).astype(np.float32)


def open_gates(log_alphas: LogAlphas, rule: str = DEFAULT_RULE) -> dict[str, Bool[np.ndarray, "layer unit"]]:
    """Kind to whether each gate counts as open under ``rule``."""
    parsed = parse_rule(rule)
    values = {kind: np.nan_to_num(measure(parsed.measure, x), nan=-1.0) for kind, x in log_alphas.items()}
    if parsed.threshold is not None:
        return {kind: value > parsed.threshold for kind, value in values.items()}
    larger = np.max(list(values.values()), axis=0)
    order = np.argsort(-larger, axis=None, kind="stable")[: parsed.top]
    kept = np.zeros(larger.size, dtype=bool)
    kept[order] = larger.reshape(-1)[order] >= 0  # what is not editable is never kept
    floor = larger.reshape(-1)[kept].min() if kept.any() else np.inf
    return {kind: (value >= floor) & kept.reshape(larger.shape) for kind, value in values.items()}


def status(log_alphas: LogAlphas, rule: str = DEFAULT_RULE) -> Int[np.ndarray, "layer unit"]:
    """0 none, 1 additive, 2 multiplicative, 3 both; a shared gate opens both."""
    opened = open_gates(log_alphas, rule)
    either = opened.get("shared")
    additive = opened.get("additive", either)
    multiplicative = opened.get("multiplicative", either)
    code = np.zeros(next(iter(opened.values())).shape, dtype=np.int8)
    if additive is not None:
        code += additive.astype(np.int8)
    if multiplicative is not None:
        code += 2 * multiplicative.astype(np.int8)
    return code


@dataclass(frozen=True)
class Selection:
    """The units that a rule selects, best first. Iterating gives labels such as "L3H7".

    Attributes:
        rule: the rule, as given.
        site: ``heads`` or ``mlp``.
        labels: "L3H7", one per selected unit.
        units: (layer, unit) pairs.
        statuses: how each is used: additive, multiplicative or both.
        values: kind to the rule's measure for each selected unit.
        total: how many units were editable.
    """

    rule: str
    site: Site
    labels: tuple[str, ...]
    units: tuple[tuple[int, int], ...]
    statuses: tuple[str, ...]
    values: Mapping[str, Float[np.ndarray, " selected"]]
    total: int

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[str]:
        return iter(self.labels)

    def counts(self) -> dict[str, int]:
        """Status to number of units, "none" included."""
        found = {name: self.statuses.count(name) for name in STATUSES[1:]}
        return {"none": self.total - len(self), **found}

    def top(self, k: int) -> Selection:
        """The first ``k`` of them."""
        values = {kind: value[:k] for kind, value in self.values.items()}
        return Selection(self.rule, self.site, self.labels[:k], self.units[:k], self.statuses[:k], values, self.total)

    def to_frame(self) -> pd.DataFrame:
        """One row per unit: label, layer, head, status and the measure of each gate."""
        import pandas as pd

        columns: dict[str, Any] = {
            "label": self.labels,
            "layer": [layer for layer, _ in self.units],
            "head": [unit for _, unit in self.units],
            "status": self.statuses,
        }
        name = parse_rule(self.rule).measure
        return pd.DataFrame(columns | {f"{name}_{kind}": value for kind, value in self.values.items()})

    def __repr__(self) -> str:
        shown = ", ".join(self.labels[:8]) + (", …" if len(self) > 8 else "")
        return f"Selection({self.rule}: {len(self)} of {self.total} {self.site}{': ' + shown if shown else ''})"


def select(log_alphas: LogAlphas, rule: str = DEFAULT_RULE, site: Site = "heads") -> Selection:
    """The units with a gate of either kind open under ``rule``, ordered by their larger gate."""
    codes = status(log_alphas, rule)
    name = parse_rule(rule).measure
    values = {kind: measure(name, x) for kind, x in log_alphas.items()}
    larger = np.max(list(values.values()), axis=0)
    chosen = np.flatnonzero(codes.reshape(-1))
    chosen = chosen[np.argsort(-larger.reshape(-1)[chosen], kind="stable")]
    units = tuple((int(i) // codes.shape[1], int(i) % codes.shape[1]) for i in chosen)
    return Selection(
        rule=rule,
        site=site,
        labels=tuple(unit_label(site, *unit) for unit in units),
        units=units,
        statuses=tuple(STATUSES[codes.reshape(-1)[i]] for i in chosen),
        values={kind: value.reshape(-1)[chosen] for kind, value in values.items()},
        total=int(np.isfinite(larger).sum()),
    )
