"""The ``local`` engine: workers as processes of this machine, its cores divided between them.

A worker is ``python -m jola_interp.study``: not a fork, which PyTorch's threads and CUDA do not survive, nor a spawn,
which would import the caller's script again. It reads its job from standard input, and stops in good order when that
is closed: so none outlives the process that started it, however that one ends.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jola_interp._log import logger
from jola_interp.study import claims
from jola_interp.study.job import Job
from jola_interp.study.place import CELLS, Place
from jola_interp.study.worker import Event, Report, StudyDirectoryError, keep_error

INTERRUPTED, UNWRITABLE = 130, 3
"""Exit codes of a worker."""
DEATHS = 2
"""How many workers a cell may kill before it counts as failed."""
COMMAND = ("-P", "-m", "jola_interp.study")
"""What Python is to run; -P, so that no file of the working directory stands in for a module."""
POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class WorkerDiedError(RuntimeError):
    """Workers were killed while they ran this cell: most often for want of memory."""


@dataclass
class Child:
    """A worker, and the cell that it is at."""

    process: subprocess.Popen[bytes]
    number: int
    cell: str | None = None


def run_processes(job: Job, workers: int, report: Report) -> None:
    """Run a job with so many workers; one that dies is replaced, and the cell that it was at goes on.

    Raises:
        StudyDirectoryError: the study's directory cannot be written to; all workers have stopped.
        RuntimeError: a worker ended before its first cell.
        KeyboardInterrupt: all workers have stopped, and kept what they had.
    """
    messages: queue.Queue[tuple[Child, dict[str, Any] | None]] = queue.Queue()
    children: list[Child] = []
    deaths: Counter[str] = Counter()
    try:
        for number in range(workers):
            children.append(_start(job, number, workers, messages))
        while children:
            child, message = messages.get()
            if message is not None:
                _take(child, message, report)
                continue
            children.remove(child)
            if _died(child):
                _count_death(child, job, deaths, report)
                children.append(_start(job, child.number, workers, messages))
    finally:
        stop(children)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment(base: Mapping[str, str], number: int, workers: int, threads: int | None, gpus: int) -> dict[str, str]:
    """Variables for a worker: its threads, its GPU in turn where there are several, and no progress bars."""
    each = str(threads or max(1, cores() // workers))
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [package, base.get("PYTHONPATH")]))
    found = {**base, **dict.fromkeys(POOLS, each), "TQDM_DISABLE": "1", "PYTHONPATH": path}
    if gpus > 1:
        visible = base.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
        names = visible.split(",")
        found["CUDA_VISIBLE_DEVICES"] = names[number % len(names)]
    return found


def stop(children: Sequence[Child]) -> None:
    """Let workers keep what they have and end; a second Ctrl-C ends them at once."""
    for child in children:
        assert child.process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, and left what it was told unread
            child.process.stdin.close()
    try:
        for child in children:
            child.process.wait()
    except KeyboardInterrupt:
        for child in children:
            child.process.kill()
        raise


def _start(job: Job, number: int, workers: int, messages: queue.Queue[Any]) -> Child:
    import torch

    gpus = torch.cuda.device_count()
    variables = environment(os.environ, number, workers, job.threads, gpus)
    # A session of its own: Ctrl-C in the terminal reaches this process alone, which then stops its workers once.
    process = subprocess.Popen(
        [sys.executable, *COMMAND], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=variables, start_new_session=True
    )
    child = Child(process, number)
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it has ended already; whoever listens learns how
        process.stdin.write(f"{job.to_json()}\n".encode())
        process.stdin.flush()
    threading.Thread(target=_listen, args=(child, messages), daemon=True).start()
    return child


def _listen(child: Child, messages: queue.Queue[Any]) -> None:
    """Pass on a worker's messages, then, whatever comes, that it has ended."""
    assert child.process.stdout is not None
    try:
        with child.process.stdout as lines:
            for line in lines:
                if (message := _message(line)) is not None:
                    messages.put((child, message))
    finally:
        messages.put((child, None))


def _message(line: bytes) -> dict[str, Any] | None:
    """None of what is no message, such as half of one, which a kill has left."""
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if isinstance(found, dict):
        return found
    logger.warning("a worker said %r, which is no message", line.decode(errors="replace").strip())
    return None


def _take(child: Child, message: Mapping[str, Any], report: Report) -> None:
    if "unwritable" in message:
        raise StudyDirectoryError(message["unwritable"])
    event = Event(**message)
    child.cell = event.cell if event.kind == "started" else None
    report(event)


def _died(child: Child) -> bool:
    return child.process.wait() not in (0, INTERRUPTED, UNWRITABLE)


def _count_death(child: Child, job: Job, deaths: Counter[str], report: Report) -> None:
    """Note a worker's death; a cell that kills one after another fails."""
    code = child.process.returncode
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    if child.cell is None:
        raise RuntimeError(f"a worker ended with {how} outside any cell; what it said stands above")
    deaths[child.cell] += 1
    logger.warning("%s: its worker ended with %s", child.cell, how)
    if deaths[child.cell] >= DEATHS:
        error = WorkerDiedError(f"{deaths[child.cell]} workers ended while they ran this cell, the last with {how}")
        bury(Path(job.study), child.cell, error)
        report(Event(child.cell, "failed", message=str(error)))


def bury(study: Path, name: str, error: Exception) -> None:
    """Keep an error for a cell whose worker could not do so itself, unless another has the cell by now."""
    place = Place(study / CELLS / name)
    claim = claims.acquire(place.path)
    if claim is not None:
        with claim:
            if not place.settled:
                keep_error(place, error)
