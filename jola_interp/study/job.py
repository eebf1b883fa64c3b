"""What an engine is asked to do, in a form that another process can read."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from jola_interp._log import logger
from jola_interp.study.cell import Cell
from jola_interp.study.claims import TAKEOVER
from jola_interp.study.design import FILE, Design
from jola_interp.study.worker import Worker

QUIET = 31
"""The level above warnings, at which ``fit`` draws no bar: several workers at once have one terminal."""


@dataclass(frozen=True)
class Job:
    """Cells of a study that are to be run.

    Attributes:
        study: the study's directory, absolute.
        cells: names, in the order in which they are taken up.
        threads: of PyTorch, in each worker; None leaves it to PyTorch.
        takeover: seconds without a heartbeat after which a claim is free.
        mirror: an fsspec address to which finished cells are copied, too.
        directory: against which relative paths of models, tasks and sources are read.
        verbosity: of the package's logger in other processes.
    """

    study: str
    cells: tuple[str, ...]
    threads: int | None = None
    takeover: float = TAKEOVER
    mirror: str | None = None
    directory: str = "."
    verbosity: int = QUIET

    @classmethod
    def of(cls, study: Path, cells: Sequence[Cell], threads: int | None, takeover: float, mirror: str | None) -> Self:
        """A job that starts here."""
        level = max(logger.getEffectiveLevel(), QUIET)
        return cls(str(study), tuple(cell.name for cell in cells), threads, takeover, mirror, os.getcwd(), level)

    def worker(self) -> tuple[Worker, list[Cell]]:
        """A worker with nothing loaded yet, and the cells as ``study.yaml`` has them."""
        study = Path(self.study)
        design = Design.read(study / FILE)
        by_name = {cell.name: cell for cell in design.cells}
        return Worker(study, design, self.takeover, self.mirror), [by_name[name] for name in self.cells]

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The reverse of :meth:`to_json`."""
        found = json.loads(text)
        return cls(**{**found, "cells": tuple(found["cells"])})
