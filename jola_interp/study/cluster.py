"""The ``ray`` engine: each cell a Ray task, on a local cluster or on one that is there. Ray decides what runs where."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from jola_interp._log import logger, set_verbosity
from jola_interp.study.cell import Cell
from jola_interp.study.job import Job
from jola_interp.study.place import CELLS, Place
from jola_interp.study.processes import DEATHS, bury
from jola_interp.study.worker import Event, Report, StudyDirectoryError, Worker

POLL = 1.0
"""Seconds between two looks at what has ended."""
TOLD = 12
"""Cells that a warning names."""
_WORKERS: dict[str, tuple[Worker, dict[str, Cell]]] = {}
"""In a process of Ray's: the worker of each job that it has seen, with its models and tasks."""


def run_ray(job: Job, report: Report, *, num_cpus: float = 1, num_gpus: float = 0, address: str | None = None) -> None:
    """Run a job on Ray.

    Args:
        job: its cells become one task each, in their order.
        report: told what happened to each, once it has ended.
        num_cpus, num_gpus: what Ray sets aside for a cell; fractions let cells share.
        address: of a cluster, or "auto"; None is the one that is connected already, or else a local one, which ends
            with this call. Every node must see the study's directory under the same path.

    Raises:
        ImportError: Ray is not installed.
        StudyDirectoryError: the study's directory cannot be written to.
        KeyboardInterrupt: what was running has been told to stop, and goes on next time.
    """
    ray = import_ray()
    own = not ray.is_initialized()
    if own:
        ray.init(address=address) if address else ray.init(include_dashboard=False)
    # A task whose process dies is run again elsewhere; the claim of the dead is free on its own machine.
    options = {"num_cpus": num_cpus, "num_gpus": num_gpus, "max_retries": DEATHS - 1}
    task = ray.remote(run_cell).options(**options)
    shared = ray.put(job.to_json())  # once: it names all cells
    pending = {task.remote(shared, name): name for name in job.cells}
    try:
        while pending:
            done, _ = ray.wait(list(pending), num_returns=len(pending), timeout=POLL)
            for one in done:
                _collect(ray, one, pending.pop(one), job, report)
        _tell_unsettled(job)
    finally:
        for left in pending:
            ray.cancel(left)
        if pending:
            ray.wait(list(pending), num_returns=len(pending), timeout=60)
        if own:
            ray.shutdown()


def import_ray() -> Any:
    """Ray, or what to do. Raises ImportError."""
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ImportError("engine 'ray' needs Ray: pip install 'jola-interp[ray]'") from error


def run_cell(job: str, name: str) -> dict[str, Any]:
    """One cell, in a process of Ray's: its events, and whether the study's directory could be written to."""
    worker, cells = _worker(job)
    events: list[Event] = []
    try:
        worker.work([cells[name]], events.append)
    except StudyDirectoryError as error:
        return {"events": events, "unwritable": str(error)}
    return {"events": events, "unwritable": None}


def _worker(text: str) -> tuple[Worker, dict[str, Cell]]:
    """This process' worker for a job, made when its first cell comes."""
    if text not in _WORKERS:
        import torch

        job = Job.from_json(text)
        set_verbosity(job.verbosity)
        if Path(job.directory).is_dir():  # relative paths mean what they mean where the study was started
            os.chdir(job.directory)
        if job.threads is not None:
            torch.set_num_threads(job.threads)
        worker, cells = job.worker()
        _WORKERS.clear()  # another job's models would lie beside these
        _WORKERS[text] = worker, {cell.name: cell for cell in cells}
    return _WORKERS[text]


def _collect(ray: Any, task: Any, name: str, job: Job, report: Report) -> None:
    """Report a task that has ended; one whose process died again and again leaves an error with its cell."""
    try:
        found = ray.get(task)
    except ray.exceptions.RayError as error:
        logger.warning("%s: %s", name, error)
        bury(Path(job.study), name, error)
        report(Event(name, "failed", message=f"{type(error).__name__}: {error}"))
        return
    if found["unwritable"]:
        raise StudyDirectoryError(found["unwritable"])
    for event in found["events"]:
        report(event)


def _tell_unsettled(job: Job) -> None:
    """Name cells whose tasks have ended without them: another holds them, if only until a dead node's claim is free."""
    left = [name for name in job.cells if not Place(Path(job.study) / CELLS / name).settled]
    if left:
        logger.warning(
            "%d cells are neither finished nor failed, since others hold them; those of a node that died are free "
            "after %g s without a heartbeat, and running the study again takes them up: %s",
            len(left), job.takeover, ", ".join(left[:TOLD]) + (", …" if len(left) > TOLD else ""),
        )  # fmt: skip
