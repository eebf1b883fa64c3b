"""A cell of a study: one training, said in plain words that a file can hold."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any, Self, get_args, get_type_hints

from jola_interp.config import DEFAULT_PRESET, TrainConfig, resolve
from jola_interp.methods import Method, method

LABELS = ("real", "shuffled")
"""``shuffled``: training and validation rows with answers that mean nothing; test rows keep theirs."""
SEED = 42
READABLE = 100
"""Characters of a cell's name before its hash."""


@dataclass(frozen=True)
class Cell:
    """One training. Two cells that say the same, however it is written, are equal and have one name.

    A training field that is named is part of what a cell says, even where the preset has the same value: under another
    version of the preset it would still hold. Such a cell and one that leaves it to the preset are two cells.

    Attributes:
        model: a name or a path (see ``load_model``).
        task: a name or a path (see ``load_task``).
        method: a name out of ``methods()``.
        options: the method's options that differ from its own.
        seed: of starting values, gate draws and data order.
        draw: of the rows; None is ``seed``.
        n_train, n_validation, n_test: rows; None leaves it to the task.
        labels: ``real`` or ``shuffled``.
        preset: what the training fields start from.
        train: training fields that are named, in place of the preset's and the method's.

    Raises:
        ValueError: a field that cannot be used, with its value and what is allowed.
    """

    model: str
    task: str
    method: str = "jola"
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = SEED
    draw: int | None = None
    n_train: int = 200
    n_validation: int | None = None
    n_test: int | None = None
    labels: str = "real"
    preset: str = DEFAULT_PRESET
    train: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("model", "task"):
            object.__setattr__(self, name, _text(name, getattr(self, name)))
        chosen, options = read_method({"name": self.method, "options": self.options})
        object.__setattr__(self, "method", chosen)
        object.__setattr__(self, "options", options)
        _require("seed", self.seed, _is_count(self.seed, 0), "an integer ≥ 0")
        object.__setattr__(self, "draw", self.seed if self.draw is None else self.draw)
        _require("draw", self.draw, _is_count(self.draw, 0), "an integer ≥ 0, or None for that of the seed")
        _require("n_train", self.n_train, _is_count(self.n_train, 1), "an integer ≥ 1")
        for name in ("n_validation", "n_test"):
            value = getattr(self, name)
            _require(name, value, value is None or _is_count(value, 1), "an integer ≥ 1 or None")
        _require("labels", self.labels, self.labels in LABELS, f"one of {', '.join(LABELS)}")
        _require("preset", self.preset, isinstance(self.preset, str), "a name")
        train = {name: _training_value(name, self.train[name]) for name in sorted(self.train, key=str)}
        object.__setattr__(self, "train", train)
        self.value("lr")  # refuses what fit would refuse

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Self:
        """The reverse of :meth:`to_dict`; training fields stand beside the others.

        Raises:
            ValueError: an unknown or a missing field, or a value that cannot be used.
        """
        own = {one.name for one in fields(cls)} - {"train"}
        if unknown := sorted(map(str, given.keys() - own - training_fields())):
            raise ValueError(
                f"cell: unknown field {', '.join(unknown)}; there are: {', '.join(sorted(own))}, {TRAINING}"
            )
        if missing := sorted({"model", "task"} - given.keys()):
            raise ValueError(f"cell: {', '.join(missing)} is missing in {dict(given)!r}")
        train = {name: value for name, value in given.items() if name not in own}
        return cls(**{name: value for name, value in given.items() if name in own}, train=train)

    def to_dict(self) -> dict[str, Any]:
        """What tells this cell from others: all that is not as it would be anyway, the preset in any case."""
        found: dict[str, Any] = {"model": self.model, "task": self.task, "method": self.method, "preset": self.preset}
        found |= {"seed": self.seed, "n_train": self.n_train}
        optional: dict[str, Any] = {"n_validation": self.n_validation, "n_test": self.n_test}
        optional["options"] = dict(self.options) or None
        optional["draw"] = None if self.draw == self.seed else self.draw
        optional["labels"] = None if self.labels == LABELS[0] else self.labels
        return found | {name: value for name, value in optional.items() if value is not None} | dict(self.train)

    @cached_property
    def name(self) -> str:
        """What its directory is called: readable, with ten digits of the SHA-256 of all that it says."""
        digest = hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:10]
        model = self.model.rstrip("/").rsplit("/", 1)[-1]
        task = self.task.strip("./")
        chosen = [f"{name}{_short(value)}" for name, value in (*self.options.items(), *self.train.items())]
        seed = f"s{self.seed}" if self.draw == self.seed else f"s{self.seed}d{self.draw}"
        parts = [model, task, self.method, *chosen, f"n{self.n_train}", seed]
        parts += [self.labels] if self.labels != LABELS[0] else []
        readable = re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(parts)).lstrip(".-")
        return f"{readable[:READABLE]}-{digest}"

    def value(self, name: str) -> Any:
        """The value of a field, or of a training field as preset, method and cell together have it.

        Raises:
            ValueError: no such field, or training fields that cannot be used.
        """
        if name in {one.name for one in fields(self)} - {"train"}:
            return getattr(self, name)
        if name not in training_fields():
            own = ", ".join(one.name for one in fields(self) if one.name != "train")
            raise ValueError(f"cells have no {name}; they have: {own}, {TRAINING}")
        found = _settings(self.method, json.dumps(self.options), self.preset, json.dumps(self.train))
        return _training_value(name, getattr(found, name))

    def has(self, **axes: Any) -> bool:
        """Whether each field has the value that is given, or one of several (a list, tuple, set or range).

        Raises:
            ValueError: no such field.
        """
        return all(
            [_is_among(self.value(name), name, wanted) for name, wanted in axes.items()]
        )  # every name is looked at

    def to_method(self) -> Method:
        """The method with its options."""
        return method(self.method, **self.options)

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"Cell({', '.join(f'{name}={value!r}' for name, value in self.to_dict().items())})"


@cache
def training_fields() -> frozenset[str]:
    """Fields of :class:`TrainConfig` that a cell may name; the seed is a field of the cell's own."""
    return frozenset(one.name for one in fields(TrainConfig)) - {"seed"}


TRAINING = "and training fields (see TrainConfig)"


def read_method(given: Any) -> tuple[str, dict[str, Any]]:
    """Name and changed options of ``"lofit"``, ``{"name": "lofit", "options": {"k": 64}}`` or a :class:`Method`.

    Raises:
        ValueError: another form, or an unknown method or option.
    """
    if isinstance(given, Method):
        given = given.record()
    if isinstance(given, str):
        given = {"name": given}
    if not isinstance(given, Mapping) or "name" not in given or given.keys() - {"name", "options"}:
        raise ValueError(f"method must be a name, a Method, or a mapping of name and options; got {given!r}")
    options = given.get("options") or {}
    if not isinstance(options, Mapping) or not isinstance(given["name"], str):
        raise ValueError(f"method must be a name, with options by name; got {given!r}")
    plain = method(given["name"], **options).options if options else {}  # as JSON gives them back
    name, changed = _changed(given["name"], json.dumps(dict(plain)))
    return name, dict(changed)


@lru_cache(maxsize=1024)
def _changed(name: str, options: str) -> tuple[str, dict[str, Any]]:
    """The method's name, and those of its options that are not its own."""
    usual = method(name).options
    return name, {key: value for key, value in json.loads(options).items() if value != usual[key]}


@cache
def _hints() -> dict[str, Any]:
    return get_type_hints(TrainConfig)


def _training_value(name: str, value: Any) -> Any:
    """As JSON and YAML give it back, and a float where the field is one: 1 and 1.0 are one penalty.

    YAML 1.1 reads 2e-2, without a point, as text: the number that was meant is read.
    """
    value = list(value) if isinstance(value, tuple) else value
    if isinstance(value, list):
        return [_training_value(name, part) for part in value]
    hint = _hints().get(name)
    kinds = {*get_args(hint), hint}
    if {float, tuple[float, float]} & kinds and isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if whole and float in kinds and int not in kinds else value


@lru_cache(maxsize=4096)
def _settings(name: str, options: str, preset: str, train: str) -> TrainConfig:
    """The training fields in force; cells differ in little, so that few of these are ever computed."""
    given = json.loads(train)
    if "seed" in given:
        raise ValueError("seed is a field of the cell (seeds of the study), not of its training")
    return resolve(None, preset, {**method(name, **json.loads(options)).fields(own=False), **given})


def _is_among(value: Any, name: str, wanted: Any) -> bool:
    several = isinstance(wanted, list | tuple | set | frozenset | range)
    return value in [_training_value(name, one) for one in ((wanted, *wanted) if several else (wanted,))]


def _short(value: Any) -> str:
    return "_".join(map(_short, value)) if isinstance(value, list) else str(value)


def _text(name: str, value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    _require(name, value, isinstance(value, str) and bool(value.strip()), "a name or a path")
    return str(value)


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**63


def _require(name: str, value: object, holds: bool, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {allowed}; got {value!r}")
