"""What is read of a study by those who ask it questions."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from jola_interp.runs import Run
from jola_interp.study.cell import Cell
from jola_interp.study.design import Design


class Readable(Protocol):
    """A study, as :class:`~jola_interp.study.study.Study` is one."""

    path: Path
    design: Design

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All cells."""

    def runs(self, **axes: Any) -> dict[Cell, Run]:
        """Finished cells with their Runs."""
