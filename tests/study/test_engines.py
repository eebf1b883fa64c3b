"""Engines: workers that die are replaced, one error ends all, and Ray gives the same table."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest

from jola_interp.study import cluster, processes
from jola_interp.study.job import Job
from jola_interp.study.place import standing
from jola_interp.study.processes import environment, run_processes
from jola_interp.study.study import Place, Study
from jola_interp.study.worker import Event, StudyDirectoryError
from tests.study.conftest import FAST


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Four cells; the stand-ins for workers below never look at them."""
    study = Study(tmp_path / "study", models="m", tasks="t", seeds=range(4))
    study.save()
    return Job.of(study.path, study.cells, 1, 600, None)


def stand_in(monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Let workers be this script instead: ``job``, ``send`` and ``note`` (a directory) are there."""
    script = """
import json, os, pathlib, signal, sys
job = json.loads(sys.stdin.readline())
note = pathlib.Path(job["study"])
def send(**message): print(json.dumps(message), flush=True)
def event(cell, kind): send(cell=cell, kind=kind, seconds=0.0, message="")
"""
    monkeypatch.setattr(processes, "COMMAND", ("-c", script + body))


def test_a_worker_that_dies_is_replaced_and_its_cell_goes_on(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    body = """
first = not (note / "died").exists()
(note / "died").touch()
for cell in job["cells"]:
    event(cell, "started")
    if first: os.kill(os.getpid(), signal.SIGKILL)
    event(cell, "finished")
"""
    stand_in(monkeypatch, body)
    events: list[Event] = []
    run_processes(job, 1, events.append)
    assert [event.cell for event in events if event.kind == "finished"] == list(job.cells)


def test_half_a_message_of_a_worker_that_was_killed_stops_nothing(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    body = """
first = not (note / "died").exists()
(note / "died").touch()
for cell in job["cells"]:
    event(cell, "started")
    print("7", "a library's own words", sep="\\n", flush=True)
    if first:
        print('{"cell": "', end="", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    event(cell, "finished")
"""
    stand_in(monkeypatch, body)
    events: list[Event] = []
    run_processes(job, 1, events.append)
    assert [event.cell for event in events if event.kind == "finished"] == list(job.cells)


def test_no_worker_outlives_one_that_could_not_be_started(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "sys.stdin.read()")
    original, started = processes._start, []

    def start(job: Job, number: int, *rest: Any) -> processes.Child:
        if number:
            raise OSError("no more processes")
        started.append(original(job, number, *rest))
        return started[0]

    monkeypatch.setattr(processes, "_start", start)
    with pytest.raises(OSError, match="no more processes"):
        run_processes(job, 2, lambda _: None)
    assert started[0].process.poll() is not None


def test_a_cell_that_kills_one_worker_after_another_fails_and_the_rest_go_on(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = """
for cell in job["cells"]:
    if (note / "cells" / cell / "error.json").exists() or (note / cell).exists(): continue
    event(cell, "started")
    if cell == job["cells"][1]: os._exit(9)
    (note / cell).touch()
    event(cell, "finished")
"""
    stand_in(monkeypatch, body)
    events: list[Event] = []
    run_processes(job, 1, events.append)
    assert sorted(event.cell for event in events if event.kind == "finished") == sorted({*job.cells} - {job.cells[1]})
    found = standing(Place(Path(job.study) / "cells" / job.cells[1]))
    assert found.state == "failed" and found.error["type"] == "WorkerDiedError"
    assert "2 workers" in found.error["message"] and "exit code 9" in found.error["message"]


def test_one_directory_that_cannot_be_written_ends_all_workers(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    body = """
me = str(os.getpid())
try:
    (note / "first").mkdir()
    while not (note / "second").exists(): pass
    send(unwritable="study: it is full")
    sys.exit(3)
except FileExistsError:
    (note / "second").write_text(me)
    sys.stdin.read()
    (note / "told").touch()
    sys.exit(130)
"""
    stand_in(monkeypatch, body)
    with pytest.raises(StudyDirectoryError, match="it is full"):
        run_processes(job, 2, lambda _: None)
    assert (Path(job.study) / "told").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int((Path(job.study) / "second").read_text()), 0)


def test_a_worker_that_cannot_start_is_no_endless_circle(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "sys.exit(1)")
    with pytest.raises(RuntimeError, match="a worker ended with exit code 1 outside any cell"):
        run_processes(job, 2, lambda _: None)


def test_an_interrupt_reaches_every_worker_once(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    body = """
event(job["cells"][0], "started")
sys.stdin.read()
(note / f"told-{os.getpid()}").touch()
sys.exit(130)
"""
    stand_in(monkeypatch, body)
    started: list[Event] = []

    def report(event: Event) -> None:
        started.append(event)
        if len(started) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_processes(job, 2, report)
    assert len(list(Path(job.study).glob("told-*"))) == 2


def test_workers_divide_the_cores_and_take_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "cores", lambda: 8)
    assert [environment({}, i, 3, None, 0)["OMP_NUM_THREADS"] for i in range(3)] == ["2", "2", "2"]
    assert environment({"OMP_NUM_THREADS": "8"}, 0, 2, 3, 0)["OMP_NUM_THREADS"] == "3"
    assert environment({}, 0, 99, None, 0)["OMP_NUM_THREADS"] == "1"
    assert [environment({}, i, 4, None, 2)["CUDA_VISIBLE_DEVICES"] for i in range(4)] == ["0", "1", "0", "1"]
    visible = {"CUDA_VISIBLE_DEVICES": "3,5"}
    assert [environment(visible, i, 3, None, 2)["CUDA_VISIBLE_DEVICES"] for i in range(3)] == ["3", "5", "3"]
    assert "CUDA_VISIBLE_DEVICES" not in environment({}, 0, 2, None, 1)


def test_a_job_is_read_as_it_was_written(job: Job) -> None:
    assert Job.from_json(job.to_json()) == job
    assert "\n" not in job.to_json()
    worker, cells = job.worker()
    assert [cell.name for cell in cells] == list(job.cells) and json.loads(job.to_json())["study"] == str(worker.study)


def test_without_ray_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'jola-interp\[ray\]'"):
        Study(tmp_path / "study", models="m", tasks="t").run("ray")
    assert not (tmp_path / "study").exists()


class Ray:
    """As much of Ray as ``run_ray`` needs: a task is the name of its cell, and none of them settles it."""

    def __init__(self) -> None:
        self.stored: list[Any] = []
        self.sent: list[tuple[Any, str]] = []

    def is_initialized(self) -> bool:
        return True

    def put(self, value: Any) -> Any:
        self.stored.append(value)
        return value

    def remote(self, *given: Any) -> Any:
        """Of a function, then of its arguments."""
        if len(given) == 1:
            return self
        self.sent.append(given)
        return given[1]

    def options(self, **_: Any) -> Any:
        return self

    def wait(self, tasks: list[str], **_: Any) -> tuple[list[str], list[str]]:
        return tasks, []


def test_a_ray_job_is_sent_once_and_cells_that_nobody_settled_are_named(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    ray = Ray()
    monkeypatch.setattr(cluster, "import_ray", lambda: ray)
    monkeypatch.setattr(cluster, "_collect", lambda *_: None)
    monkeypatch.setattr(cluster.logger, "warning", lambda text, *args: told.append(text % args))
    first = Place(Path(job.study) / "cells" / job.cells[0])
    first.path.mkdir(parents=True)
    first.error.write_text("{}")
    cluster.run_ray(job, lambda _: None)
    assert [name for _, name in ray.sent] == list(job.cells)
    assert ray.stored == [job.to_json()] and all(sent is ray.stored[0] for sent, _ in ray.sent)
    assert len(told) == 1 and told[0].startswith("3 cells") and all(name in told[0] for name in job.cells[1:])
    assert job.cells[0] not in told[0]


@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="Ray is not installed: not checked that a local Ray cluster gives the table of the local engine, with a "
    "fraction of a core a cell, and that a failed cell keeps its error there",
)
def test_a_local_ray_cluster_gives_the_same_table(tiny: str, rows: str, tmp_path: Path) -> None:
    import ray

    given: dict[str, Any] = {"models": tiny, "tasks": [rows, "absent/task"], "seeds": [0, 1], **FAST}
    local, cluster = Study(tmp_path / "local", **given), Study(tmp_path / "ray", **given)
    local.run(threads=1)
    ray.init(num_cpus=1, include_dashboard=False, object_store_memory=80 * 2**20)
    try:
        found = cluster.run("ray", threads=1, num_cpus=0.5)
        assert ray.is_initialized()  # a cluster that was there stays
    finally:
        ray.shutdown()
    assert found.counts == local.status().counts == {"to do": 0, "running": 0, "failed": 2, "finished": 2}
    assert cluster.frame().to_csv() == local.frame().to_csv()
    assert [error["type"] for error in cluster.errors().values()] == ["TaskError"] * 2
