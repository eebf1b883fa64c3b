"""The gates of many Runs side by side: what every question across tasks, seeds and draws of the data is asked of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from jaxtyping import Bool, Float

from jola_interp import selection
from jola_interp.edits.base import unit_label
from jola_interp.runs import Run

if TYPE_CHECKING:
    import pandas as pd

REAL, SHUFFLED = "real", "shuffled"
SHUFFLED_RUNS = " (labels shuffled)"
"""What is added to a task's name for its runs with shuffled labels."""
"""Whether the answers that a Run was trained on are those of its task."""
Vectors = Mapping[str, Float[np.ndarray, "layer head d_head"]]


@dataclass(frozen=True)
class Origin:
    """Which training a selection is from.

    Attributes:
        task, model, method: by name.
        seed: of the training.
        draw: the seed of the data draw; None of rows at hand.
        labels: ``real`` or ``shuffled``.
        n_train: rows it was trained on.
        penalty: of the gates; None where the method has none.
        path: the Run's directory.
    """

    task: str
    seed: int = 0
    draw: int | None = None
    method: str = "jola"
    labels: str = REAL
    n_train: int | None = None
    penalty: float | None = None
    model: str = ""
    path: str = ""


LABELS = tuple(field.name for field in fields(Origin))


@dataclass(frozen=True, eq=False)
class Selections:
    """log α of every head of many Runs of one head shape. Made by :func:`selections`.

    Attributes:
        log_alpha: [run, kind, layer, head]; NaN where a head is not editable or a Run has no gates of that kind.
        kinds: kinds of gates.
        origins: which training each is from.
        rule: under which heads count as selected, where no other is given.
        norms: [run, operation, layer, head] ‖a‖ and ‖m‖ without the final gates; NaN where there are no vectors.
        operations: additive, multiplicative.
        group: query heads that share a key-value head; 0 where every head has its own.

    Raises:
        ValueError: arrays and labels that do not fit each other, or a rule outside the grammar.
    """

    log_alpha: Float[np.ndarray, "run kind layer head"]
    kinds: tuple[str, ...]
    origins: tuple[Origin, ...]
    rule: str = selection.DEFAULT_RULE
    norms: Float[np.ndarray, "run operation layer head"] | None = None
    operations: tuple[str, ...] = ("additive", "multiplicative")
    group: int = 0

    def __post_init__(self) -> None:
        selection.parse_rule(self.rule)
        expected = (len(self.origins), len(self.kinds))
        if self.log_alpha.ndim != 4 or self.log_alpha.shape[:2] != expected:
            raise ValueError(
                f"log_alpha must be [{expected[0]}, {expected[1]}, layer, head]; got {self.log_alpha.shape}"
            )
        beside = (len(self.origins), len(self.operations), *self.log_alpha.shape[2:])
        if self.norms is not None and self.norms.shape != beside:
            raise ValueError(f"norms must be {list(beside)}; got {list(self.norms.shape)}")

    def __len__(self) -> int:
        return len(self.origins)

    @property
    def shape(self) -> tuple[int, int]:
        """(layers, heads)."""
        return cast(tuple[int, int], self.log_alpha.shape[2:])

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks, in the order in which they come."""
        return tuple(dict.fromkeys(origin.task for origin in self.origins))

    @property
    def labels(self) -> np.ndarray:
        """[layer, head] names such as "L3H7"."""
        layers, heads = self.shape
        return np.array([[unit_label("heads", i, j) for j in range(heads)] for i in range(layers)], dtype=object)

    def values(self, label: str) -> tuple[Any, ...]:
        """The distinct values of a label, in the order in which they come.

        Raises:
            ValueError: no such label.
        """
        if label not in LABELS:
            raise ValueError(f"label must be one of {', '.join(LABELS)}; got {label!r}")
        return tuple(dict.fromkeys(getattr(origin, label) for origin in self.origins))

    def editable(self) -> Bool[np.ndarray, "layer head"]:
        """Which heads could be selected, the same in every Run.

        Raises:
            ValueError: no Run, or Runs in which different heads are editable.
        """
        if not len(self):
            raise ValueError("selections hold no run")
        masks = np.isfinite(self.log_alpha).any(1)
        if other := [i for i, mask in enumerate(masks) if not np.array_equal(mask, masks[0])]:
            raise ValueError(
                f"{self._name(0)} and {self._name(other[0])} may edit different heads, so that chance differs: .select "
                "runs of one kind"
            )
        return np.asarray(masks[0])

    def select(self, **labels: Any) -> Selections:
        """The runs whose labels are as given: a value, or a list, tuple or set of them.

        Raises:
            ValueError: an unknown label, or no run left; says which values there are.
        """
        kept = np.ones(len(self), dtype=bool)
        for name, wanted in labels.items():
            there = self.values(name)
            allowed = wanted if isinstance(wanted, list | tuple | set | frozenset) else [wanted]
            kept &= np.array([getattr(origin, name) in allowed for origin in self.origins], dtype=bool)
            if not kept.any():
                raise ValueError(f"no run with {name}={wanted!r}; there are: {', '.join(map(str, there))}")
        return self.take(np.flatnonzero(kept))

    def take(self, places: Iterable[int]) -> Selections:
        """The runs at some places, in that order."""
        at = np.array(list(places), dtype=np.intp)
        norms = None if self.norms is None else self.norms[at]
        return replace(self, log_alpha=self.log_alpha[at], norms=norms, origins=tuple(self.origins[i] for i in at))

    def split(self, label: str) -> dict[Any, Selections]:
        """Value of a label to the runs that have it."""
        return {value: self.select(**{label: value}) for value in self.values(label)}

    def sets(self, rule: str | None = None, kind: str | None = None) -> Bool[np.ndarray, "run layer head"]:
        """Which heads a rule selects: with a gate of either kind open, or one of ``kind`` (a shared gate is both).

        Raises:
            ValueError: a rule outside the grammar, or a kind that there are no gates of.
        """
        text = self.rule if rule is None else rule
        selection.parse_rule(text)
        kinds = self._of_kind(kind)
        found = np.zeros((len(self), *self.shape), dtype=bool)
        for place, log_alpha in enumerate(self.log_alpha):
            opened = selection.open_gates(dict(zip(self.kinds, log_alpha, strict=True)), text)
            found[place] = np.any([opened[name] for name in kinds], axis=0)
        return found

    def p_open(self, kind: str | None = None) -> Float[np.ndarray, "run layer head"]:
        """P(a gate of the head is open) = 1 − Π over kinds of (1 − P(open)), or that of one kind; 0 if not editable."""
        at = [self.kinds.index(name) for name in self._of_kind(kind)]
        each = np.nan_to_num(selection.measure("p_open", self.log_alpha[:, at])).astype(np.float64)
        return np.asarray(1 - np.prod(1 - each, axis=1))

    def sizes(self) -> Float[np.ndarray, "run layer head"]:
        """How large each head's vectors are, without units: the norms of a and of m, each over its root mean square in
        its Run, squared, added and rooted. Final gates do not enter: where they are 0 or 1, the heads that act would be
        the largest by construction. Their history does: behind a gate that is shut nothing trains.

        Raises:
            ValueError: selections without vectors.
        """
        if self.norms is None or not np.isfinite(self.norms).any((1, 2, 3)).all():
            raise ValueError("these selections hold no vectors: make them from Runs of JoLA")
        squares = np.nan_to_num(self.norms.astype(np.float64)) ** 2
        units = squares.mean((2, 3), keepdims=True)
        return np.asarray(np.sqrt((squares / np.where(units > 0, units, 1)).sum(1)))

    def to_frame(self) -> pd.DataFrame:
        """One row per run: its labels, how many heads the rule selects, and how many gates of each kind are open."""
        import pandas as pd

        frame = pd.DataFrame([asdict(origin) for origin in self.origins], columns=list(LABELS))
        frame["selected"] = self.sets().sum((1, 2))
        for kind in self.kinds:
            frame[f"open_{kind}"] = self.sets(kind=kind).sum((1, 2))
        return frame

    def __repr__(self) -> str:
        layers, heads = self.shape
        return f"Selections({len(self)} runs of {len(self.tasks)} tasks, {layers} × {heads} heads, {self.rule})"

    def _of_kind(self, kind: str | None) -> tuple[str, ...]:
        if kind is None:
            return self.kinds
        found = tuple(name for name in self.kinds if name in (kind, "shared"))
        if not found or kind not in (*self.kinds, *self.operations):
            raise ValueError(f"kind must be one of {', '.join(self.kinds)}; got {kind!r}")
        return found

    def _name(self, place: int) -> str:
        origin = self.origins[place]
        return origin.path or f"{origin.task}, seed {origin.seed}"


Given = Selections | Iterable[Run | str | Path]
"""Selections, or the Runs to make them of."""


def selections(
    runs: Iterable[Run | str | Path] | Mapping[Run | str | Path, Mapping[str, Any]],
    rule: str = selection.DEFAULT_RULE,
) -> Selections:
    """Read the gates of Runs; no model is needed.

    Args:
        runs: Runs or their directories; or a mapping from each to labels that it does not tell itself, or not so
            (``{"runs/a": {"labels": "shuffled"}}``; see :class:`Origin`).
        rule: under which heads count as selected (see :mod:`jola_interp.selection`).

    Raises:
        ValueError: no Run, one without gates on heads, Runs of different head shapes, an unknown label, or a rule
            outside the grammar.
    """
    selection.parse_rule(rule)
    told = dict(runs) if isinstance(runs, Mapping) else {run: {} for run in runs}
    if unknown := {name for labels in told.values() for name in labels} - set(LABELS):
        raise ValueError(f"labels: {sorted(unknown)} are unknown; there are {', '.join(LABELS)}")
    opened = [run if isinstance(run, Run) else Run.load(run) for run in told]
    if not opened:
        raise ValueError("runs is empty: there is nothing to select from")
    gates = [run.log_alphas() for run in opened]
    shape = _one_shape(opened)
    kinds = tuple(sorted({kind for found in gates for kind in found}))
    blank = np.full((shape.layers, shape.heads), np.nan, dtype=np.float32)
    origins = [replace(_origin(run), **labels) for run, labels in zip(opened, told.values(), strict=True)]
    return Selections(
        np.stack([[found.get(kind, blank) for kind in kinds] for found in gates]),
        kinds,
        tuple(origins),
        rule,
        np.stack([_norms(run, blank) for run in opened]),
        group=shape.group,
    )


def as_selections(given: Given) -> Selections:
    """``given`` itself, or what :func:`selections` makes of Runs."""
    return given if isinstance(given, Selections) else selections(given)


def one_kind(found: Selections) -> Selections:
    """The selections, if they are of one model, method and penalty.

    Raises:
        ValueError: they are not, so that runs would differ by more than the task and the seed.
    """
    for label in ("model", "method", "penalty"):
        if len(values := found.values(label)) > 1:
            told = ", ".join(map(str, values))
            raise ValueError(f"the runs have several values of {label} ({told}): .select({label}=…) one of them")
    found.editable()
    return found


def vectors_of(run: Run) -> Vectors:
    """Operation to g·v of every head as it acts at inference; empty where the edit has no such vectors."""
    at_inference = getattr(run.edit, "at_inference", None)
    if at_inference is None or "heads" not in run.edit.masks():
        return {}
    return {name: value.detach().cpu().numpy() for name, value in at_inference("heads").items()}


def _norms(run: Run, blank: np.ndarray) -> np.ndarray:
    if not vectors_of(run):
        return np.stack([blank, blank])
    part = run.edit.site("heads")
    norms = {name: part.vector(name).detach().cpu().float().norm(dim=-1).numpy() for name in part.operations}
    return np.stack([norms.get(name, blank) for name in ("additive", "multiplicative")])


def _one_shape(runs: list[Run]) -> Any:
    shapes = {(run.edit.shape.layers, run.edit.shape.heads, run.edit.shape.group): run.edit.shape for run in runs}
    if len(shapes) > 1:
        told = ", ".join(f"{layers} × {heads}" for layers, heads, _ in shapes)
        raise ValueError(f"the Runs are of models of different head shapes ({told}): make selections of each model")
    return next(iter(shapes.values()))


def _origin(run: Run) -> Origin:
    config = run.config
    task, method = config["task"], config["method"]
    return Origin(
        task=task["name"],
        seed=config["train"]["seed"],
        draw=task["seed"],
        method=run.edit.type_name if method is None else method["name"],
        labels=task.get("labels", REAL),
        n_train=task["sizes"]["train"],
        penalty=config["train"].get("penalty"),
        model=config["model"]["name"],
        path=str(run.path),
    )
