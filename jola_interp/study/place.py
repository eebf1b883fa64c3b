"""Where a cell lies, and how it stands, from what is there: a directory is the only state of a study."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from jola_interp.study import claims
from jola_interp.study.cell import Cell

CELLS = "cells"
State = Literal["to do", "running", "failed", "finished"]
STATES: tuple[State, ...] = get_args(State)


@dataclass(frozen=True)
class Place:
    """The directory of a cell: ``run/`` (a Run, and nothing of the study), and beside it what the study notes.

    Attributes:
        path: ``<study>/cells/<name of the cell>``.
    """

    path: Path

    @classmethod
    def of(cls, study: Path, cell: Cell) -> Place:
        """Where a cell of a study lies."""
        return cls(study / CELLS / cell.name)

    @property
    def run(self) -> Path:
        """The Run's directory."""
        return self.path / "run"

    @property
    def summary(self) -> Path:
        """What a table needs of a finished cell; with it the cell is finished."""
        return self.path / "summary.json"

    @property
    def error(self) -> Path:
        """Why a cell failed; it is taken up again once this file is gone."""
        return self.path / "error.json"

    @property
    def settled(self) -> bool:
        """Whether it is finished or has failed."""
        return self.summary.exists() or self.error.exists()


@dataclass(frozen=True)
class Standing:
    """How a cell stands.

    Attributes:
        state: to do (perhaps begun), running, failed or finished.
        summary: of a finished cell, else empty.
        error: of a failed cell, else empty: type, message, traceback, host.
        holder: who claimed it last, where it is not finished.
    """

    state: State
    summary: Mapping[str, Any]
    error: Mapping[str, Any]
    holder: claims.Holder | None


def standing(place: Place) -> Standing:
    """How a cell stands now; one file is read of a finished cell.

    Raises:
        ValueError: a summary or an error that is no JSON object.
    """
    if found := read_object(place.summary):
        return Standing("finished", found, {}, None)
    holder = claims.latest(place.path)
    if holder is not None and holder.alive:
        return Standing("running", {}, {}, holder)
    found = read_object(place.error)
    return Standing("failed" if found else "to do", {}, found, holder)


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file.

    Raises:
        ValueError: something else is in it.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{file} holds no JSON: {error}; remove it, and the cell is looked at again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} must hold a JSON object, found {type(found).__name__}")
    return found
