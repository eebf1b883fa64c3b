"""A worker: it goes through cells, claims those that are free, trains them, and notes what came of each."""

from __future__ import annotations

import errno
import gc
import platform
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from jola_interp import _files, checkpoint
from jola_interp.callbacks import Callback, TrainingState
from jola_interp.models import Model, load_model
from jola_interp.study import claims
from jola_interp.study.cell import Cell
from jola_interp.study.design import Design
from jola_interp.study.place import CELLS, Place, standing
from jola_interp.study.summary import summarise
from jola_interp.tasks import Task, load_task
from jola_interp.training import fit

if TYPE_CHECKING:
    from jola_interp.backends import BackendName
    from jola_interp.runs import Run

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
"""Errors of a disk, whatever file they name."""
TASKS = 16
"""Tasks that a worker keeps."""


class StudyDirectoryError(OSError):
    """The study's directory cannot be written to; nothing that is finished is lost."""


@dataclass(frozen=True)
class Event:
    """What happened to a cell: ``started``, ``finished``, ``failed``, or ``lost`` to another process.

    Attributes:
        cell: its name.
        kind: which of these.
        seconds: that it took.
        message: what a person should know of it.
    """

    cell: str
    kind: Literal["started", "finished", "failed", "lost"]
    seconds: float = 0.0
    message: str = ""


Report = Callable[[Event], None]


@dataclass
class Worker:
    """Models and tasks that are at hand, and the study that they are for.

    Attributes:
        study: its directory.
        design: its settings.
        takeover: seconds without a heartbeat after which its claims are free.
        mirror: an fsspec address to which finished cells are copied, too.
    """

    study: Path
    design: Design
    takeover: float = claims.TAKEOVER
    mirror: str | None = None
    _models: dict[tuple[str, bool], Model] = field(default_factory=dict, repr=False)
    _tasks: dict[tuple[Any, ...], Task] = field(default_factory=dict, repr=False)
    _described: bool = field(default=False, repr=False)  # whether study.yaml is on the mirror

    def work(self, cells: Sequence[Cell], report: Report = lambda _: None) -> None:
        """Run what is to do among ``cells``, in their order, and leave what others hold.

        Raises:
            StudyDirectoryError: the study's directory cannot be written to.
            KeyboardInterrupt: what was running has been kept, and goes on next time.
        """
        for cell in cells:
            place = Place.of(self.study, cell)
            with writing(self.study):
                if standing(place).state != "to do" or (claim := claims.acquire(place.path, self.takeover)) is None:
                    continue
                with claim:
                    if not place.settled:  # the claim before may have ended well just now
                        report(Event(cell.name, "started"))
                        report(self._attempt(cell, place, claim))

    def _attempt(self, cell: Cell, place: Place, claim: claims.Claim) -> Event:
        started = time.perf_counter()
        try:
            run = self._train(cell, place, claim)
            claim.check()
            seconds = time.perf_counter() - started
            _files.write_json(place.summary, summarise(cell, run, seconds))
        except claims.ClaimLostError as error:
            return Event(cell.name, "lost", message=str(error))
        except Exception as error:
            # Whose cell was taken over may stumble over the other's files: that is no error of the cell or the disk.
            if claim.lost:
                return Event(cell.name, "lost", message=f"taken over; {type(error).__name__}: {error}")
            if isinstance(error, OSError) and concerns(error, self.study):
                raise
            keep_error(place, error)
            return Event(cell.name, "failed", time.perf_counter() - started, f"{type(error).__name__}: {error}")
        return Event(cell.name, "finished", seconds, self._copied(cell))

    def _train(self, cell: Cell, place: Place, claim: claims.Claim) -> Run:
        method = cell.to_method()
        model, task = self.model(cell.model, method.on_weights), self.task(cell)
        tidy(place.run)
        run = fit(
            model, task, method, preset=cell.preset, backend=cast("BackendName", self.design.backend), out=place.run,
            resume=True, callbacks=[Watch(claim)], seed=cell.seed, **cell.train,
        )  # fmt: skip
        # fit keeps what there is at an interrupt and returns: here it has to go on to whoever waits for this worker.
        if run.status != "finished" or (run.config["train"]["evaluate"] and task.test and not run.scores):
            raise KeyboardInterrupt(f"{place.run} is {run.status}; the same study goes on from there")
        return run

    def model(self, name: str, on_weights: bool = False) -> Model:
        """A model, loaded once while cells ask for no other; methods on weights share one that is never booted."""
        key = (name, on_weights and self.design.backend == "lens")
        if key not in self._models:
            for other in [other for other in self._models if other[0] != name]:
                del self._models[other]
            gc.collect()  # models hold circles: without it two would lie side by side for a while
            self._models[key] = load_model(name, dtype=self.design.dtype, **self.design.load)
        return self._models[key]

    def task(self, cell: Cell) -> Task:
        """A cell's rows, built once a worker."""
        key = (cell.task, cell.n_train, cell.n_validation, cell.n_test, cell.draw, cell.labels)
        if key not in self._tasks:
            if len(self._tasks) >= TASKS:
                self._tasks.clear()
            self._tasks[key] = rows_of(cell, self.design.source)
        return self._tasks[key]

    def _copied(self, cell: Cell) -> str:
        """Copy it to the mirror; what went wrong with that, for a finished cell is finished without it."""
        if self.mirror is None:
            return ""
        from jola_interp.study.mirror import copy_cell, copy_description

        try:
            if not self._described:
                copy_description(self.study, self.mirror)
                self._described = True
            copy_cell(self.study, cell.name, self.mirror)
        except Exception as error:  # a bucket has errors of its own
            return f"not copied to {self.mirror}: {error}; Study.mirror() copies what is missing there"
        return ""


class Watch(Callback):
    """Ends a training whose cell was taken over by another process.

    It is asked at every start, step, epoch and end. What remains: ``fit`` validates and writes its checkpoint before
    ``on_epoch``, and writes and scores the Run after ``on_end``. Whoever is suspended there for longer than the
    takeover still writes once into a directory that is another's; its summary it does not write any more.
    """

    def __init__(self, claim: claims.Claim):
        self.claim = claim

    def on_start(self, state: TrainingState) -> None:  # noqa: ARG002
        self.claim.check()

    def on_step(self, state: TrainingState) -> None:  # noqa: ARG002
        self.claim.check()

    def on_epoch(self, state: TrainingState) -> None:  # noqa: ARG002
        self.claim.check()

    def on_end(self, state: TrainingState) -> None:  # noqa: ARG002
        self.claim.check()


def rows_of(cell: Cell, source: str = "hub") -> Task:
    """The rows of a cell; with ``labels="shuffled"`` those to learn from have answers that mean nothing."""
    sizes = {"n_train": cell.n_train, "n_validation": cell.n_validation, "n_test": cell.n_test}
    task = load_task(cell.task, seed=cast(int, cell.draw), source=source, **sizes)  # type: ignore[arg-type]
    if cell.labels == "real":
        return task
    from jola_interp.evidence.nulls import with_shuffled_labels

    return with_shuffled_labels(task, cast(int, cell.draw))


def tidy(run: Path) -> None:
    """Remove what a kill inside a write has left: scratch files, and directories of checkpoints that hold none.

    ``fit`` takes a directory with nothing else in it for somebody else's.
    """
    if not run.is_dir():
        return
    for scratch in [path for path in run.rglob(".*") if path.is_file()]:
        scratch.unlink(missing_ok=True)
    for folder in [run / "checkpoint", *run.glob("stages/*/checkpoint")]:
        if folder.is_dir() and not any(folder.iterdir()):
            checkpoint.remove(folder)
    for stage in run.glob("stages/*"):
        if stage.is_dir() and not any(stage.iterdir()):
            stage.rmdir()


def keep_error(place: Place, error: BaseException) -> None:
    """``error.json``: type, message, traceback, host and time of a failure."""
    trace = "".join(traceback.format_exception(error))
    content = {"type": type(error).__name__, "message": str(error), "traceback": trace}
    _files.write_json(place.error, {**content, "host": platform.node(), "time": time.strftime("%Y-%m-%d %H:%M:%S")})


@contextmanager
def writing(study: Path) -> Iterator[None]:
    """Errors of the study's directory as one that says so.

    Raises:
        StudyDirectoryError: in place of an OSError that concerns it.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, StudyDirectoryError) or not concerns(error, study):
            raise
        done = sum(1 for _ in (study / CELLS).glob("*/summary.json"))
        raise StudyDirectoryError(
            f"study: {study} cannot be written to: {error.strerror or error}; {done} finished cells are kept, and the "
            "same command goes on from there"
        ) from error


def concerns(error: OSError, study: Path) -> bool:
    """Whether it is about the study's directory, or a disk that is full, and no fault of the cell."""
    if error.errno in FULL:
        return True
    named = [Path(str(name)) for name in (error.filename, error.filename2) if isinstance(name, str | Path)]
    return error.errno is not None and any(path.is_relative_to(study) for path in named)
