"""What an edit gains, beside what it has to beat; and what a stored audit lets one say of its heads."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from jola_interp.analysis.summary import title_of

if TYPE_CHECKING:
    import pandas as pd

    from jola_interp.evidence.audit import Audit
    from jola_interp.evidence.card import Card
    from jola_interp.runs import Run

TRAINED, REFITTED, DISJOINT = "The edit as trained", "Refits without gates", "Disjoint sets, refitted"
EMPTY, WHOLE = "Nothing to learn", "All heads, no gates"
OWN = ("gain", "norm_matched")
"""Parts that hold the edit's own gain."""


@dataclass(frozen=True)
class Control:
    """One gain.

    Attributes:
        what: of what; the random sets all have the same.
        group: the question that it belongs to.
        gain: NLL(base) − NLL(edited), in nats per answer token, the mean over the test rows.
        low, high: 95 % interval, paired by row; NaN where the card holds the mean alone.
        asked: whether this is what is in question; what has to be beaten, otherwise.
    """

    what: str
    group: str
    gain: float
    low: float = math.nan
    high: float = math.nan
    asked: bool = False


@dataclass(frozen=True)
class Controls:
    """All gains of an evidence card.

    Attributes:
        rows: one each; those of a group, and of a ``what``, stand together.
        title: model and task.
        notes: how to read a figure of them.
    """

    rows: tuple[Control, ...]
    title: str
    notes: tuple[str, ...] = ()

    @property
    def groups(self) -> dict[str, tuple[tuple[Control, ...], ...]]:
        """Group to its lines: the rows of one ``what`` each."""
        return {
            group: tuple(tuple(line) for _, line in groupby(found, key=lambda row: row.what))
            for group, found in groupby(self.rows, key=lambda row: row.group)
        }

    @property
    def range(self) -> tuple[float, float]:
        """From the lowest to the highest gain or end of an interval, 0 included."""
        ends = [end for row in self.rows for end in (row.gain, row.low, row.high) if not math.isnan(end)]
        return min(0.0, *ends), max(0.0, *ends)

    def to_frame(self) -> pd.DataFrame:
        """One row per gain: what, group, gain, low, high."""
        import pandas as pd

        names = ["what", "group", "gain", "low", "high"]
        return pd.DataFrame([[getattr(row, name) for name in names] for row in self.rows], columns=names)


def controls(run: Run) -> Controls:
    """Every gain in the evidence card of a Run.

    Raises:
        ValueError: no card, or none of its parts is about a gain; says which command makes one.
    """
    from jola_interp.evidence.card import Card

    card = Card.load(run)
    command = f"jola-interp evidence {run.path}"
    if card is None:
        raise ValueError(f"{run.path} has no evidence.json, so no gain was held against a control: run `{command}`")
    rows = _as_trained(card.had)
    rows += [row for name, read in READERS.items() if name in card.had for row in read(card.had[name])]
    if not rows:
        named = " ".join(f"--part {name}" for name in ("gain", "norm_matched"))
        raise ValueError(f"{run.path}: no part of its evidence.json is about a gain: run `{command} {named}`")
    return Controls(tuple(rows), title_of(run), _notes(card, rows))


def has_controls(card: Card) -> bool:
    """Whether :func:`controls` finds anything in a card."""
    return any(name in card.had for name in (*OWN, *READERS))


def stored_audit(found: Mapping[str, Any]) -> Audit:
    """The audit that an evidence card keeps as a table: what it says of a head needs no model."""
    from jola_interp.evaluation.metrics import Score
    from jola_interp.evidence.audit import Audit, HeadAudit, Number

    plain = ("model", "task", "rows", "span", "margin", "seed", "max_logit_change")
    deltas = [None if head["delta"] is None else Score(**head["delta"]) for head in found["heads"]]
    heads = [{**head, "delta": delta} for head, delta in zip(found["heads"], deltas, strict=True)]
    return Audit(
        **{name: found[name] for name in plain},
        numbers=tuple(Number(**{**number, "moved_by": tuple(number["moved_by"])}) for number in found["numbers"]),
        heads=tuple(HeadAudit(**head) for head in heads),
        layer_sums=tuple(found["layer_sums"]),
        notes=tuple(found["notes"]),
    )


# -- reading the parts ---------------------------------------------------------------------------------------------


def _as_trained(parts: Mapping[str, Mapping[str, Any]]) -> list[Control]:
    """The edit's own gain, which two parts hold, and that of random directions."""
    own = next((parts[name]["gain"] for name in OWN if name in parts), None)
    random = parts.get("norm_matched", {}).get("random", ())
    rows = [] if own is None else [_measured("the edit", TRAINED, own, asked=True)]
    return rows + [Control(f"random directions ({len(random)})", TRAINED, value) for value in random]


def _of_refits(found: Mapping[str, Any]) -> list[Control]:
    base, sets = found["base"], found["random"]
    rows = [Control(f"selected heads ({len(found['heads'])})", REFITTED, base - found["selected"], asked=True)]
    rows += [Control(f"random sets ({len(sets)})", REFITTED, base - value) for value in sets]
    rest = found["complement"]
    return rows + ([] if rest is None else [Control("all other heads", REFITTED, base - rest)])


def _of_rivals(found: Mapping[str, Any]) -> list[Control]:
    """The set at which the gain was lost comes last; it is the Run's own where that had none."""
    sets = [*found["sets"], *([found["failed"]] if found["failed"] else [])]
    names = [f"set {place}" for place in range(1, len(sets) + 1)]
    if found["failed"]:
        names[-1] += ": gain lost"
    names[0] = "set 1: the Run's own"
    group = f"{DISJOINT} (K = {found['k']})"
    return [_measured(name, group, one["gain"], asked=one is sets[0]) for name, one in zip(names, sets, strict=True)]


def _of_shuffled(found: Mapping[str, Any]) -> list[Control]:
    return [_measured("labels shuffled", EMPTY, found["gain"])]


def _of_random_base(found: Mapping[str, Any]) -> list[Control]:
    return [_measured("random weights", EMPTY, found["gain"])]


def _of_bias(found: Mapping[str, Any]) -> list[Control]:
    gains = found["gain"]
    return [_measured("offsets", WHOLE, gains["offsets"], asked=True), _measured("bias of W_O", WHOLE, gains["bias"])]


def _measured(what: str, group: str, gain: Mapping[str, float], asked: bool = False) -> Control:
    return Control(what, group, gain["value"], gain["low"], gain["high"], asked)


READERS: dict[str, Callable[[Mapping[str, Any]], list[Control]]] = {
    "refits": _of_refits,
    "rivals": _of_rivals,
    "label_shuffle": _of_shuffled,
    "random_base": _of_random_base,
    "bias": _of_bias,
}
"""Part of a card to how its gains are read, in the order in which they are drawn, after those in ``OWN``."""


def _notes(card: Card, rows: list[Control]) -> tuple[str, ...]:
    groups = {row.group for row in rows}
    notes = [
        "Gain: NLL(base) − NLL(edited) of the answers, mean over the test rows; bars: its 95 % interval over rows."
    ]
    if any(row.asked for row in rows):
        notes.append("Blue is in question, orange is what it has to beat; dashed: the blue gain of the group.")
        notes.append("Bars that overlap are no test of a difference; the card has those, paired by row.")
    if groups - {TRAINED, EMPTY}:
        steps = sorted({one["steps"] for one in card.asked.values() if "steps" in one})
        notes.append(f"Refits take {' or '.join(map(str, steps))} steps each.")
    if "random_base" in card.had:
        notes.append("Random weights: gain over that model's own NLL.")
    return tuple(notes)
