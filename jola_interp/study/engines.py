"""Engines: how the cells of a job come to run, in this process, in several, or on a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch

from jola_interp.study.job import Job
from jola_interp.study.worker import Report

Engine = Literal["local", "ray"]
ENGINES: tuple[Engine, ...] = get_args(Engine)
RAY_ONLY = {"num_cpus": 1, "num_gpus": 0, "address": None}
"""Options of Ray's, with their defaults."""


def check_engine(engine: str, workers: int, options: dict[str, Any]) -> None:
    """Refuse an engine or options that cannot be used.

    Raises:
        ValueError: naming the field, its value and what is allowed.
        ImportError: engine ``ray`` without Ray.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}; got {engine!r}")
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ValueError(f"workers must be an integer ≥ 1; got {workers!r}")
    for name, usual in RAY_ONLY.items():
        value = options[name]
        if engine != "ray" and value != usual:
            raise ValueError(f"{name} belongs to engine 'ray'; got {name}={value!r} with engine {engine!r}")
        if name != "address" and (isinstance(value, bool) or not isinstance(value, int | float) or value < 0):
            raise ValueError(f"{name} must be a number ≥ 0; got {value!r}")
    if engine == "ray":
        from jola_interp.study.cluster import import_ray

        if workers != 1:
            raise ValueError(f"workers belongs to engine 'local' (Ray counts num_cpus and num_gpus); got {workers}")
        import_ray()


def run_job(job: Job, engine: Engine, workers: int, options: dict[str, Any], report: Report) -> None:
    """Run a job; one local worker is this process itself.

    Raises:
        StudyDirectoryError: the study's directory cannot be written to.
        KeyboardInterrupt: what was running has been kept.
    """
    if engine == "ray":
        from jola_interp.study.cluster import run_ray

        run_ray(job, report, **options)
    elif workers > 1:
        from jola_interp.study.processes import run_processes

        run_processes(job, workers, report)
    else:
        worker, cells = job.worker()
        with _threads(job.threads):
            worker.work(cells, report)


@contextmanager
def _threads(wanted: int | None) -> Iterator[None]:
    """So many threads of PyTorch in this block; None leaves them alone."""
    before = torch.get_num_threads()
    if wanted is not None:
        torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)
