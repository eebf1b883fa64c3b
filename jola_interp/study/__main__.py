"""A worker of the ``local`` engine: a job on standard input, messages on standard output, a JSON object a line."""

from __future__ import annotations

import _thread
import json
import os
import signal
import sys
import threading
from dataclasses import asdict

from jola_interp._log import set_verbosity
from jola_interp.study.job import Job
from jola_interp.study.processes import INTERRUPTED, UNWRITABLE
from jola_interp.study.worker import Event, StudyDirectoryError


def main() -> int:
    """Run the job; returns the exit code."""
    messages = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no message
    # Started from a script in the background, a process ignores SIGINT, and with it interrupt_main.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def send(message: object) -> None:
        os.write(messages, f"{json.dumps(message)}\n".encode())

    def report(event: Event) -> None:
        send(asdict(event))

    try:
        job = Job.from_json(_line())
        threading.Thread(target=_stop_with_parent, daemon=True).start()
        _prepare(job)
        worker, cells = job.worker()
        worker.work(cells, report)
    except StudyDirectoryError as error:
        send({"unwritable": str(error)})
        return UNWRITABLE
    except (KeyboardInterrupt, BrokenPipeError):  # nobody listens any more
        return INTERRUPTED
    return 0


def _prepare(job: Job) -> None:
    import torch

    set_verbosity(job.verbosity)
    torch.set_num_threads(job.threads or int(os.environ["OMP_NUM_THREADS"]))


def _line() -> bytes:
    """The first line of standard input, byte by byte: the rest of it is watched by another thread."""
    found = b""
    while not found.endswith(b"\n"):
        if not (byte := os.read(0, 1)):
            raise KeyboardInterrupt
        found += byte
    return found


def _stop_with_parent() -> None:
    """Interrupt the training once standard input is closed: the process that started this one wants it, or is gone."""
    while os.read(0, 4096):
        pass
    _thread.interrupt_main()


if __name__ == "__main__":
    sys.exit(main())
