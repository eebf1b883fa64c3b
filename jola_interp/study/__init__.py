"""Studies: many trainings in one directory, run by any number of workers, read as one table."""

from __future__ import annotations

from jola_interp.study.cell import Cell
from jola_interp.study.claims import ClaimLostError
from jola_interp.study.status import CellStatus, Status
from jola_interp.study.study import Study
from jola_interp.study.worker import StudyDirectoryError

__all__ = ["Cell", "CellStatus", "ClaimLostError", "Status", "Study", "StudyDirectoryError"]
