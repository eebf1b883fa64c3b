"""``Study``: any set of trainings over models, tasks, methods, seeds and sizes, in one directory."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from jola_interp._log import logger
from jola_interp.methods import Method
from jola_interp.runs import Run
from jola_interp.selection import DEFAULT_RULE
from jola_interp.study.cell import Cell
from jola_interp.study.claims import TAKEOVER
from jola_interp.study.design import FILE, Design
from jola_interp.study.engines import Engine, check_engine, run_job
from jola_interp.study.grid import chosen
from jola_interp.study.job import Job
from jola_interp.study.names import check_tasks
from jola_interp.study.place import Place, standing
from jola_interp.study.status import Status, status_of
from jola_interp.study.summary import table
from jola_interp.study.worker import Event, writing

if TYPE_CHECKING:
    import pandas as pd

    from jola_interp.analysis.selections import Selections
    from jola_interp.study.answers import Answers

ROOT = "studies"


class Study:
    """A grid of trainings, each a Run; ``study.yaml`` in its directory says which, and the directory is all its state.

        study = ji.Study("studies/heads", models="smollm2-135m", tasks=["agreement", "restaurants"], seeds=range(4))
        study.run(workers=2)
        study.frame()

    Args:
        path: its directory; None is ``studies/<hash of what it is made of>``. Where one holds a study, what is asked
            for must have all of its cells, and may have more.
        models, tasks: names or paths.
        methods: names, ``method(name, **options)``, or mappings of name and options.
        seeds: integers, or pairs of (seed, data draw). A seed alone decides both, unless ``draws`` are given: then each
            seed goes with every draw.
        draws: seeds of the rows.
        n_train, n_validation, n_test: rows; None is the task's own number.
        labels: ``real``, ``shuffled``, or both.
        preset: what training fields start from.
        also: more grids: mappings, each like the first grid but for the axes that it names.
        cells: cells one by one, in place of all axes.
        backend, dtype, source, load: what all cells have in common (see :class:`~jola_interp.study.design.Design`).
        **train: training fields; a list of values is an axis, too.

    Every axis takes one value or several. The first of the signature varies slowest, but for seeds, which come
    next to models: the whole grid is there under one seed before the next begins.

    Raises:
        ValueError: a field that cannot be used, or a study in ``path`` that has other cells or settings; nothing has
            been written then.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        models: Any = None,
        tasks: Any = None,
        methods: str | Method | Sequence[Any] | None = None,
        seeds: int | Sequence[Any] | None = None,
        draws: int | Sequence[int] | None = None,
        n_train: int | Sequence[int] | None = None,
        n_validation: int | Sequence[int] | None = None,
        n_test: int | Sequence[int] | None = None,
        labels: str | Sequence[str] | None = None,
        preset: str | Sequence[str] | None = None,
        also: Sequence[Mapping[str, Any]] | None = None,
        cells: Iterable[Cell | Mapping[str, Any]] | None = None,
        backend: str | None = None,
        dtype: str | None = None,
        source: str | Path | None = None,
        load: Mapping[str, Any] | None = None,
        **train: Any,
    ):
        given = {
            "models": models, "tasks": tasks, "methods": methods, "seeds": seeds, "draws": draws, "n_train": n_train,
            "n_validation": n_validation, "n_test": n_test, "labels": labels, "preset": preset, "also": also,
            "backend": backend, "dtype": dtype, "source": source, "load": load,
            "cells": None if cells is None else list(cells),
        }  # fmt: skip
        asked = {name: value for name, value in given.items() if value is not None} | train
        self._open(path, Design.from_dict(asked))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The study in a directory, as its ``study.yaml`` has it.

        Raises:
            FileNotFoundError: there is none.
            ValueError: the file cannot be used; the message names it.
        """
        file = Path(path) / FILE
        if not file.exists():
            raise FileNotFoundError(f"no study at {path}: there is no {FILE}")
        study = cls.__new__(cls)
        study.path, study.design = Path(path).absolute(), Design.read(file)
        return study

    @classmethod
    def of(cls, design: Design, path: str | Path | None = None) -> Self:
        """A study by its :class:`~jola_interp.study.design.Design`, such as ``Design.read("study.yaml")``.

        Raises:
            ValueError: a study in ``path`` that has other cells or settings.
        """
        study = cls.__new__(cls)
        study._open(path, design)
        return study

    def _open(self, path: str | Path | None, design: Design) -> None:
        digest = hashlib.sha256(json.dumps(design.to_dict(), sort_keys=True).encode()).hexdigest()
        self.path = (Path(ROOT) / digest[:10] if path is None else Path(path)).absolute()
        self.design = design
        file = self.path / FILE
        if file.exists():
            design.require_extends(Design.read(file), file)

    # -- what it is ------------------------------------------------------------------------------------------------

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All cells, in the order in which they are taken up."""
        return self.design.cells

    def numbers(self, cells: str | Sequence[int] | None = None) -> list[int]:
        """Numbers of cells, as ``run`` takes them: ``"0-9"``, ``"0,2,5-7"``, a list, or None for all."""
        wanted = set(chosen(self.cells, cells))
        return [number for number, cell in enumerate(self.cells) if cell in wanted]

    def save(self) -> Path:
        """Write ``study.yaml``; returns it. :meth:`run` does so itself.

        Where it has gained cells since this object read it, the file stays, and this object has them, too.

        Raises:
            ValueError: it has gained cells that this object lacks, and lacks some that this one has.
            StudyDirectoryError: the directory cannot be written to.
        """
        file = self.path / FILE
        with writing(self.path):
            recorded = Design.read(file) if file.exists() else None
            if recorded is not None and recorded.holds(self.design) and len(recorded.cells) > len(self.cells):
                self.design = recorded
            elif recorded is None or recorded.to_dict() != self.design.to_dict():
                if recorded is not None:
                    self.design.require_extends(recorded, file)
                self.path.mkdir(parents=True, exist_ok=True)
                self.design.write(file)
        return file

    # -- running ---------------------------------------------------------------------------------------------------

    def run(
        self,
        engine: Engine = "local",
        *,
        workers: int = 1,
        cells: str | Sequence[int] | None = None,
        threads: int | None = None,
        retry: bool = False,
        takeover: float = TAKEOVER,
        mirror: str | None = None,
        num_cpus: float = 1,
        num_gpus: float = 0,
        address: str | None = None,
    ) -> Status:
        """Run what is to do, and return how the study stands.

        What is finished is never run again, what another process runs is left to it, and what was cut short goes on
        from its checkpoint. A cell that fails keeps its error, and the rest go on. Any number of these calls, on any
        machines that see the directory, can be at work on one study.

        Args:
            engine: ``local`` or ``ray`` (needs ``pip install jola-interp[ray]``).
            workers: of the local engine: 1 is this process itself, more are processes that divide its cores.
            cells: only these, by number: ``"0-9"``, ``"0,2,5-7"``, or a list; None is all.
            threads: of PyTorch in each worker; None divides the cores among the workers. Sums of floating-point numbers
                depend on it: name it where two machines or engines shall agree to the last bit.
            retry: also run again what failed.
            takeover: seconds without a sign of life after which a cell is taken from its worker. One that died on
                this machine is seen at once.
            mirror: an fsspec address to which finished cells are copied, too.
            num_cpus, num_gpus: of a cell on Ray; fractions are allowed.
            address: of a Ray cluster; None starts a local one, or takes the one that is connected.

        Raises:
            ValueError: an argument that cannot be used, or a cell to be run whose task is neither a task nor a path.
            StudyDirectoryError: the directory cannot be written to; what is finished is kept.
            KeyboardInterrupt: Ctrl-C; what was running is kept, and the same call goes on.
        """
        options = {"num_cpus": num_cpus, "num_gpus": num_gpus, "address": address}
        check_engine(engine, workers, options)
        _check_numbers(threads, takeover)
        wanted = chosen(self.cells, cells)
        check_tasks(cell.task for cell in wanted if self._open_to(cell, retry))
        self.save()
        if retry:
            self._forget_errors(wanted)
        job = Job.of(self.path, [cell for cell in wanted if self._open_to(cell)], threads, takeover, mirror)
        if job.cells:
            with _Progress(self.path.name, len(wanted), len(wanted) - len(job.cells)) as bar:
                run_job(job, engine, workers, options, bar.report)
        return self.status()

    def mirror(self, address: str) -> list[str]:
        """Copy finished cells that are not there yet to an fsspec address; returns their names."""
        from jola_interp.study.mirror import copy_study

        self.save()
        return copy_study(
            self.path, [cell.name for cell in self.cells if Place.of(self.path, cell).summary.exists()], address
        )

    def _forget_errors(self, cells: Sequence[Cell]) -> None:
        """Failed cells are to do again; their Runs stay, and go on from their checkpoints."""
        with writing(self.path):
            for place in (Place.of(self.path, cell) for cell in cells):
                if standing(place).state == "failed":
                    place.error.unlink(missing_ok=True)

    def _open_to(self, cell: Cell, retry: bool = False) -> bool:
        place = Place.of(self.path, cell)
        return not (place.summary.exists() if retry else place.settled)

    # -- reading ---------------------------------------------------------------------------------------------------

    def status(self) -> Status:
        """How every cell stands, and how long the rest may take."""
        return status_of(self.path, self.cells, time.time())

    def frame(self) -> pd.DataFrame:
        """One row a finished cell: its axes, scores with intervals, open gates, selected heads, and its Run's path
        within the study (see :func:`~jola_interp.study.summary.summarise`). The same whatever ran it, and when.
        """
        return table(self.cells, self.status().summaries)

    def runs(self, **axes: Any) -> dict[Cell, Run]:
        """Finished cells with their Runs: ``study.runs(task="agreement", labels="real")``.

        Args:
            **axes: only cells with this value, or one of these values, of a field or a training field, whether the cell
                names it or leaves it to preset and method.

        Raises:
            ValueError: a field that cells do not have.
        """
        found = [cell for cell in self.cells if cell.has(**axes)]
        return {cell: self.run_of(cell) for cell in found if Place.of(self.path, cell).summary.exists()}

    def run_of(self, cell: Cell | str) -> Run:
        """The Run of a finished cell, by the cell or its name.

        Raises:
            FileNotFoundError: it is not finished.
        """
        place = Place.of(self.path, cell) if isinstance(cell, Cell) else Place(self.path / "cells" / cell)
        if not place.summary.exists():
            raise FileNotFoundError(f"{place.path.name} is not finished in {self.path}")
        return Run.load(place.run)

    def selections(self, rule: str = DEFAULT_RULE) -> Selections:
        """The gates of all finished cells, with their labels (see :mod:`jola_interp.analysis`).

        Raises:
            ValueError: no finished cell with gates on heads, or a rule outside the grammar.
        """
        from jola_interp.study.answers import gates_of

        return gates_of(self, rule)

    def ask(self, rule: str = DEFAULT_RULE, **labels: Any) -> Answers:
        """Overlaps between tasks, stability over seeds, core heads, cosines of offsets and, where it was measured,
        transfer; each beside its null (see :func:`jola_interp.study.answers.ask`).

        Args:
            rule: which heads count as selected.
            **labels: which cells, where there are several models, methods or penalties.

        Raises:
            ValueError: cells that cannot be compared, or none.
        """
        from jola_interp.study.answers import ask

        return ask(self, rule, **labels)

    def transfer(self, rows: int = 50, **axes: Any) -> pd.DataFrame:
        """Measure each task's edit on the others' rows (:func:`jola_interp.study.transfer.carried_edits`)."""
        from jola_interp.study import answers
        from jola_interp.study.transfer import carried_edits

        return answers.keep_table(self, answers.TRANSFER, carried_edits(self, rows, **axes))

    def retrain(self, targets: Sequence[str], steps: int | None = None, random: int = 0, **axes: Any) -> pd.DataFrame:
        """Train each task's heads anew on others (:func:`jola_interp.study.transfer.retrained_heads`)."""
        from jola_interp.study import answers
        from jola_interp.study.transfer import retrained_heads

        found = retrained_heads(self, list(targets), steps, random, **axes)
        return answers.keep_table(self, answers.HEADS, found)

    def keep(self, path: str | Path) -> Path:
        """Copy what the study can be read and drawn from, without its Runs: description, summaries and answers.

        Raises:
            FileExistsError: there is something else at ``path``.
        """
        from jola_interp.study.answers import keep_small

        return keep_small(self, Path(path))

    def errors(self) -> dict[str, dict[str, Any]]:
        """Failed cells' names with type, message, traceback, host and time of what went wrong."""
        found = {cell.name: standing(Place.of(self.path, cell)) for cell in self.cells}
        return {name: dict(one.error) for name, one in found.items() if one.state == "failed"}

    def __len__(self) -> int:
        return len(self.cells)

    def __repr__(self) -> str:
        return repr(self.status())

    def _repr_html_(self) -> str:
        return self.status()._repr_html_()


class _Progress:
    """A bar of cells, with the time left; failures are told as they come."""

    def __init__(self, name: str, total: int, done: int):
        from tqdm.auto import tqdm

        self._bar = tqdm(total=total, initial=done, desc=name, unit="cell", disable=logger.getEffectiveLevel() > 30)
        self._failed = 0

    def report(self, event: Event) -> None:
        """Take an event."""
        if event.kind == "started":
            return
        if event.kind == "failed":
            self._failed += 1
            self._bar.set_postfix(failed=self._failed)
        if event.message:
            logger.warning("%s %s: %s", event.cell, event.kind, event.message)
        self._bar.update()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def _check_numbers(threads: int | None, takeover: float) -> None:
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise ValueError(f"threads must be an integer ≥ 1 or None; got {threads!r}")
    if isinstance(takeover, bool) or not isinstance(takeover, int | float) or not takeover > 0:
        raise ValueError(f"takeover must be a number of seconds above 0; got {takeover!r}")
