"""What a study is made of, and its file: ``study.yaml``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from jola_interp import _files
from jola_interp.backends import BACKENDS
from jola_interp.study.cell import Cell
from jola_interp.study.grid import cells_of, read_axes, unique

FILE = "study.yaml"
SETTINGS = {"backend": "lens", "dtype": "auto", "source": "hub", "load": {}}
"""What all cells of a study have in common, with the defaults."""


@dataclass(frozen=True)
class Design:
    """Cells, by axes or one by one, and what they have in common.

    Attributes:
        axes: one grid; values are lists.
        also: more grids, each the first one with some axes replaced.
        listed: cells one by one, in place of axes.
        backend, dtype: see ``fit`` and ``load_model``.
        source: where rows of a benchmark come from (see ``load_task``).
        load: further arguments of ``load_model``, such as ``device_map: auto``.
    """

    axes: Mapping[str, Any] = field(default_factory=dict)
    also: tuple[Mapping[str, Any], ...] = ()
    listed: tuple[Cell, ...] = ()
    backend: str = "lens"
    dtype: str = "auto"
    source: str = "hub"
    load: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Self:
        """From what ``study.yaml`` holds: axes, ``also``, or ``cells``, and the settings.

        Raises:
            ValueError: an unknown or empty field, a value that cannot be used, or axes beside cells.
        """
        settings = {name: given.get(name, usual) for name, usual in SETTINGS.items()}
        axes = {name: value for name, value in given.items() if name not in {*SETTINGS, "also", "cells"}}
        also, listed = given.get("also") or (), given.get("cells")
        if listed is not None and (axes or also):
            raise ValueError(f"cells are given one by one, which leaves nothing to {', '.join(axes) or 'also'}")
        for name, value in {"also": also, "cells": listed or ()}.items():
            if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
                raise ValueError(f"{name} must be a list; got {value!r}")
        _check_settings(settings)
        settings["source"], settings["load"] = str(settings["source"]), dict(settings["load"])
        made = cls(read_axes(axes), tuple(map(_block, also)), unique(map(_cell, listed or ())), **settings)
        if not made.cells:
            raise ValueError("cells is empty; it must hold at least one cell")
        return made

    def to_dict(self) -> dict[str, Any]:
        """What ``study.yaml`` holds."""
        settings = {name: getattr(self, name) for name, usual in SETTINGS.items() if getattr(self, name) != usual}
        if self.listed:
            return {"cells": [cell.to_dict() for cell in self.listed], **settings}
        more = {"also": [dict(block) for block in self.also]} if self.also else {}
        return {**self.axes, **more, **settings}

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """All cells, each once: those of the axes, then of each further grid; or the listed ones."""
        return self.listed or unique(self._expanded())

    def _expanded(self) -> Iterator[Cell]:
        for block in ({}, *self.also):
            yield from cells_of({**self.axes, **block})

    # -- on disk ---------------------------------------------------------------------------------------------------

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read ``study.yaml``.

        Raises:
            ValueError: it is no YAML, or what it holds cannot be used; the message begins with the file.
        """
        content = read_yaml(file)
        try:
            return cls.from_dict(content)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error

    def write(self, file: Path) -> None:
        """Write ``study.yaml``; a reader never meets half of it."""
        _files.write_bytes(file, self.to_yaml().encode())

    def to_yaml(self) -> str:
        """What ``study.yaml`` holds, as text."""
        import yaml

        content = json.loads(json.dumps(self.to_dict()))  # lists that two cells share would become YAML's references
        text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
        return text

    def holds(self, other: Design) -> bool:
        """Whether it has all cells of another, and the same settings."""
        alike = all(getattr(self, name) == getattr(other, name) for name in SETTINGS)
        return alike and {*other.cells} <= {*self.cells}

    def require_extends(self, recorded: Design, file: Path) -> None:
        """Refuse to stand in for ``recorded`` unless it has all of its cells and the same settings.

        Raises:
            ValueError: naming the field, what the file holds and what is asked for.
        """
        for name in SETTINGS:
            held, asked = getattr(recorded, name), getattr(self, name)
            if held != asked:
                raise ValueError(f"{file}: {name} is {held!r}, asked for {asked!r}; choose another directory")
        names = {cell.name for cell in self.cells}
        missing = [cell for cell in recorded.cells if cell.name not in names]
        if missing:
            name, held, asked = _difference(missing[0], self.cells)
            raise ValueError(
                f"{file}: {name} holds {held!r}, asked for {asked!r}; a study gains cells but loses none: "
                "ask for those that it has, too, or choose another directory"
            )


def read_yaml(file: Path) -> dict[str, Any]:
    """Fields and values of a YAML file (which JSON is, too).

    Raises:
        ValueError: it holds something else.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where libyaml is there
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is neither YAML nor JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold fields and values, found {type(content).__name__}")
    return content


def _difference(missing: Cell, cells: Sequence[Cell]) -> tuple[str, Any, Any]:
    """The field by which a cell is missing: one of which no cell has its value, or else that of the nearest cell."""
    own = missing.to_dict()
    others = [cell.to_dict() for cell in cells]
    for name, value in own.items():
        found = [other.get(name) for other in others]
        if value not in found:
            return name, value, list({repr(one): one for one in found}.values())
    nearest = min(others, key=lambda other: sum(other.get(name) != own.get(name) for name in own.keys() | other.keys()))
    name = next(name for name in (*own, *nearest) if own.get(name) != nearest.get(name))
    return name, own.get(name), nearest.get(name)


def _block(given: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise ValueError(f"also must hold mappings from axes to values; got {given!r}")
    return read_axes(given)


def _cell(given: Any) -> Cell:
    if isinstance(given, Cell):
        return given
    if not isinstance(given, Mapping):
        raise ValueError(f"cells must hold cells, or mappings from fields to values; got {given!r}")
    return Cell.from_dict(given)


def _check_settings(given: Mapping[str, Any]) -> None:
    allowed = {
        "backend": (given["backend"] in BACKENDS, f"one of {', '.join(BACKENDS)}"),
        "dtype": (isinstance(given["dtype"], str), "auto or the name of a dtype"),
        "source": (isinstance(given["source"], str | Path), '"hub" or a path'),
        "load": (isinstance(given["load"], Mapping), "a mapping from arguments of load_model to values"),
    }
    for name, (holds, words) in allowed.items():
        if not holds:
            raise ValueError(f"{name} must be {words}; got {given[name]!r}")
