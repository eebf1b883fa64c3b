"""Studies that are run: once each, whatever happens on the way, and always to the same table."""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.testing

from jola_interp import _files, checkpoint
from jola_interp.config import DEFAULT_PRESET, PRESETS
from jola_interp.runs import Run
from jola_interp.study import worker
from jola_interp.study.cell import Cell
from jola_interp.study.claims import ClaimLostError, acquire, latest
from jola_interp.study.commands import app
from jola_interp.study.design import FILE
from jola_interp.study.job import Job
from jola_interp.study.names import check_tasks
from jola_interp.study.place import Place
from jola_interp.study.processes import COMMAND, INTERRUPTED, environment
from jola_interp.study.study import Study
from jola_interp.study.worker import Event, StudyDirectoryError, Worker, rows_of
from tests.study.conftest import FAST, write_task


@pytest.fixture(scope="module")
def make(tiny: str, rows: str) -> Callable[..., Study]:
    """``make(path, seeds=[0, 1])``: a study of the tiny model on the tiny task."""

    def made(path: Path, **changes: Any) -> Study:
        return Study(path, **{"models": tiny, "tasks": rows, "seeds": [0, 1], **FAST, **changes})

    return made


@pytest.fixture(scope="module")
def undisturbed(make: Callable[..., Study], tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Two cells with real labels and one with shuffled ones, run in one go."""
    study = make(tmp_path_factory.mktemp("studies") / "undisturbed", also=ALSO)
    study.run(threads=1)
    return study


ALSO = [{"labels": "shuffled", "seeds": 0}]


def csv(study: Study) -> str:
    return str(study.frame().to_csv(index=False))


def files(study: Study) -> dict[str, bytes]:
    """Every file of every Run but the one that tells the time."""
    runs = [path for path in (study.path / "cells").glob("*/run/**/*") if path.is_file()]
    return {str(path.relative_to(study.path)): path.read_bytes() for path in runs if path.name != "timing.json"}


def forbid(*_: Any, **__: Any) -> Any:
    raise AssertionError("this must not be called")


def test_the_table_has_a_row_a_cell_with_its_axes_and_scores(undisturbed: Study) -> None:
    frame = undisturbed.frame()
    assert list(frame["cell"]) == [cell.name for cell in undisturbed.cells]
    assert list(frame["seed"]) == [0, 1, 0] and list(frame["labels"]) == ["real", "real", "shuffled"]
    for cell, row in zip(undisturbed.cells, frame.itertuples(), strict=True):
        run = Run.load(undisturbed.path / row.path)
        metric = run.scores["metric"]
        assert row.value == run.scores["edited"][metric]["value"] and row.nll == run.scores["edited"]["nll"]["value"]
        assert row.base_value == run.scores["base"][metric]["value"]
        assert (row.selected or "").split() == list(run.selection())
        counts = run.selection().counts()
        assert row.open_additive == counts["additive"] + counts["both"]
        assert row.batch_size == run.config["train"]["batch_size"] == 4
        assert run.config["train"]["seed"] == cell.seed and run.config["task"]["seed"] == cell.draw


def test_runs_are_found_by_their_axes(undisturbed: Study) -> None:
    (found,) = undisturbed.runs(labels="real", seed=[1, 2])
    assert (found.labels, found.seed) == ("real", 1)
    assert len(undisturbed.runs(batch_size=4)) == 3 and not undisturbed.runs(batch_size=5)
    assert len(undisturbed.runs(penalty=PRESETS[DEFAULT_PRESET].train.penalty)) == 3  # which no cell names
    with pytest.raises(ValueError, match="cells have no sed; they have: model"):
        undisturbed.runs(labels="none", sed=1)


def test_shuffled_labels_are_to_learn_from_and_never_to_be_judged_by(rows: str) -> None:
    real, mixed = (rows_of(Cell("m", rows, n_train=8, labels=labels)) for labels in ("real", "shuffled"))
    assert mixed.test == real.test
    assert [row.instruction for row in mixed.train] == [row.instruction for row in real.train]
    assert [row.answer for row in mixed.train] != [row.answer for row in real.train]


def test_a_second_run_trains_nothing(undisturbed: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    before = csv(undisturbed)
    monkeypatch.setattr(worker, "fit", forbid)
    monkeypatch.setattr(worker, "load_model", forbid)
    found = undisturbed.run(retry=True)
    assert found.counts == {"to do": 0, "running": 0, "failed": 0, "finished": 3}
    assert csv(undisturbed) == before


def test_a_model_and_a_task_are_loaded_once(
    make: Callable[..., Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def noting(name: str) -> Callable[..., Any]:
        original = getattr(worker, name)

        def call(*args: Any, **given: Any) -> Any:
            loaded.append(f"{name} {given.get('attn_implementation', '')}".strip())
            return original(*args, **given)

        return call

    for name in ("load_model", "load_task"):
        monkeypatch.setattr(worker, name, noting(name))
    make(tmp_path, seeds=[0, 1], draws=7, evaluate=False, epochs=1, load={"attn_implementation": "eager"}).run()
    assert loaded == ["load_model eager", "load_task"]


KILLED = "import sys; from jola_interp.study.study import Study; Study.load(sys.argv[1]).run(threads=1)"


def start(study: Study) -> subprocess.Popen[bytes]:
    """Run a study in a process of its own."""
    return subprocess.Popen([sys.executable, "-c", KILLED, str(study.path)], env=environment(os.environ, 0, 1, 1, 0))


def caught(study: Study, process: subprocess.Popen[bytes], before: dict[Path, int]) -> Cell:
    """A cell in the middle of its training: a checkpoint newer than those of ``before``, and no end yet."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and process.poll() is None:
        for cell in study.cells:
            file = Place.of(study.path, cell).run / "checkpoint" / checkpoint.FILE
            if file.exists() and file.stat().st_mtime_ns != before.get(file):
                before[file] = file.stat().st_mtime_ns
                return cell
        time.sleep(0.002)
    raise AssertionError(f"no cell was caught in the middle; exit code {process.poll()}")


def test_killed_three_times_in_mid_cell_the_table_is_that_of_an_undisturbed_study(
    make: Callable[..., Study], tmp_path: Path
) -> None:
    longer = {"epochs": 20, "patience": None, "checkpoint_every": 1, "gate_share": 1.0}
    killed, calm = make(tmp_path / "killed", **longer), make(tmp_path / "calm", **longer)
    killed.save()
    seen: dict[Path, int] = {}
    for _ in range(3):
        process = start(killed)
        cell = caught(killed, process, seen)
        process.send_signal(signal.SIGKILL)
        process.wait()
        holder = latest(Place.of(killed.path, cell).path)
        assert holder is not None and holder.pid == process.pid and holder.dead
        assert not Place.of(killed.path, cell).settled
    killed.run(threads=1)  # the dead one's claim is seen through at once: no ten minutes pass
    calm.run(threads=1)
    assert csv(killed) == csv(calm) and files(killed) == files(calm)
    assert len(killed.frame()) == 2


def test_two_workers_run_each_cell_once_and_to_the_same_table(
    make: Callable[..., Study], undisturbed: Study, tmp_path: Path
) -> None:
    study = make(tmp_path / "study", also=ALSO)
    study.run(workers=2, threads=1)
    assert csv(study) == csv(undisturbed) and files(study) == files(undisturbed)
    claims = [sorted(path.name for path in Place.of(study.path, cell).path.glob("claim-*")) for cell in study.cells]
    assert claims == [["claim-0.json"]] * 3


def test_a_worker_whose_parent_is_gone_keeps_its_cell_and_ends(make: Callable[..., Study], tmp_path: Path) -> None:
    study = make(tmp_path, seeds=0, epochs=400, patience=None, checkpoint_every=1)
    study.save()
    variables = environment(os.environ, 0, 1, 1, 0)
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": variables}
    with subprocess.Popen([sys.executable, *COMMAND], **pipes) as process:
        process.stdin.write(f"{Job.of(study.path, study.cells, 1, 600, None).to_json()}\n".encode())  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
        cell = caught(study, process, {})
        process.stdin.close()  # type: ignore[union-attr]
        assert process.wait(60) == INTERRUPTED
    place = Place.of(study.path, cell)
    assert Run.load(place.run).status == "interrupted" and not place.settled
    assert study.status().counts["to do"] == 1
    assert acquire(place.path) is not None


def test_a_failed_cell_keeps_its_error_and_stops_no_other(
    make: Callable[..., Study], rows: str, tmp_path: Path
) -> None:
    late = tmp_path / "late"
    study = make(tmp_path / "study", tasks=[str(late), rows], seeds=0, evaluate=False)
    assert study.run().counts == {"to do": 0, "running": 0, "failed": 1, "finished": 1}
    (error,) = study.errors().values()
    assert error["type"] == "TaskError" and "late" in error["message"] and "Traceback" in error["traceback"]
    assert "TaskError" in repr(study.status()) and "TaskError" in study.status()._repr_html_()
    write_task(late)
    assert study.run().counts["failed"] == 1  # not unasked
    assert study.run(retry=True).counts["finished"] == 2
    assert not study.errors()


@pytest.mark.parametrize("phase", ["training", "evaluation"])
def test_an_interrupt_ends_the_study_and_loses_nothing(
    phase: str, make: Callable[..., Study], undisturbed: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    study = make(tmp_path, also=ALSO)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if phase == "training":
            patch.setattr(worker.Watch, "on_step", interrupt)
        else:
            patch.setattr("jola_interp.training.evaluate", interrupt)
        study.run(threads=1)
    assert study.status().counts == {"to do": 3, "running": 0, "failed": 0, "finished": 0}
    study.run(threads=1)
    assert csv(study) == csv(undisturbed) and files(study) == files(undisturbed)


def test_a_cell_that_was_taken_over_is_left_to_the_other(
    make: Callable[..., Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make(tmp_path, seeds=0)
    place = Place.of(study.path, study.cells[0])
    original = worker.Watch.on_step

    def overtaken(watch: worker.Watch, state: Any) -> None:
        (place.path / "claim-1.json").write_text(json.dumps({"machine": "another", "owner": "other"}))
        original(watch, state)

    monkeypatch.setattr(worker.Watch, "on_step", overtaken)
    assert study.run().counts["running"] == 1
    assert not place.settled and not (place.run / "config.json").exists()


def test_an_error_in_a_cell_that_was_taken_over_is_no_error_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(tmp_path / "study", models="m", tasks="t")
    place = Place.of(study.path, study.cells[0])

    def stumble(*_: Any, **__: Any) -> Any:
        (place.path / "claim-1.json").write_text(json.dumps({"machine": "another", "owner": "other"}))
        raise FileNotFoundError(errno.ENOENT, "gone", str(place.run / "checkpoint"))

    monkeypatch.setattr(Worker, "_train", stumble)
    events: list[Event] = []
    Worker(study.path, study.design).work(study.cells, events.append)
    assert [event.kind for event in events] == ["started", "lost"] and not place.error.exists()


@pytest.mark.parametrize("moment", ["on_start", "on_step", "on_epoch", "on_end"])
def test_a_lost_claim_ends_a_training_wherever_it_is(moment: str, tmp_path: Path) -> None:
    claim = acquire(tmp_path)
    assert claim is not None
    watch = worker.Watch(claim)
    getattr(watch, moment)(None)
    (tmp_path / "claim-1.json").write_text("{}")
    with pytest.raises(ClaimLostError):
        getattr(watch, moment)(None)


def test_a_kill_inside_the_first_checkpoint_stands_in_nobodys_way(
    make: Callable[..., Study], undisturbed: Study, tmp_path: Path
) -> None:
    study = make(tmp_path, also=ALSO)
    run = Place.of(study.path, study.cells[0]).run
    (run / "checkpoint").mkdir(parents=True)
    (run / "checkpoint" / f".{checkpoint.FILE}-abc").write_bytes(b"half of it")
    (run / "stages" / "first" / "checkpoint").mkdir(parents=True)
    study.run(threads=1)
    assert csv(study) == csv(undisturbed) and files(study) == files(undisturbed)


@pytest.mark.parametrize("moment", [3, 9, 14])
def test_a_full_disk_is_one_clear_error_and_no_finished_cell_is_lost(
    moment: int, make: Callable[..., Study], undisturbed: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, written = make(tmp_path / "study", also=ALSO), []
    study.save()
    original = _files.write_bytes

    def write(path: Path, content: bytes) -> None:
        written.append(path)
        if len(written) > moment:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(path, content)

    with (
        monkeypatch.context() as patch,
        pytest.raises(StudyDirectoryError, match="cannot be written to: No space") as told,
    ):
        patch.setattr(_files, "write_bytes", write)
        study.run(threads=1)
    finished = len(study.frame())
    assert f"{finished} finished cells are kept" in str(told.value) and "\n" not in str(told.value)
    assert study.status().counts == {"to do": 3 - finished, "running": 0, "failed": 0, "finished": finished}
    study.run(threads=1)
    assert csv(study) == csv(undisturbed) and files(study) == files(undisturbed)


@pytest.mark.parametrize("name", [".", FILE, "cells"])
def test_a_directory_that_cannot_be_written_is_one_clear_error(
    name: str, make: Callable[..., Study], tmp_path: Path
) -> None:
    study = make(tmp_path / "study", evaluate=False)
    if name != ".":
        study.path.mkdir()
    if name == FILE:
        (study.path / name).mkdir()  # a directory where a file should be, or the reverse
    else:
        (study.path / name).write_text("")
    with pytest.raises(StudyDirectoryError, match="study: .*study cannot be written to"):
        study.run()


def test_ten_thousand_finished_cells_would_cost_ten_thousand_small_files(
    undisturbed: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file a finished cell, and no Run: what a table costs does not depend on the size of Runs."""
    study = Study(tmp_path, models="m", tasks="t", seeds=range(200))
    study.save()
    one = Place.of(undisturbed.path, undisturbed.cells[0]).summary.read_text()
    for cell in study.cells[:150]:
        place = Place.of(tmp_path, cell)
        place.path.mkdir(parents=True)
        place.summary.write_text(one)
    opened: list[str] = []

    def noting(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: Any, *args: Any, **given: Any) -> Any:
            opened.append(str(file))
            return original(file, *args, **given)

        return call

    for module in (io, builtins):
        monkeypatch.setattr(module, "open", noting(module.open))
    monkeypatch.setattr(Run, "load", forbid)
    assert len(study.frame()) == 150
    assert study.status().counts["to do"] == 50
    read = [name for name in opened if name.startswith(str(tmp_path))]
    assert sum(name.endswith("summary.json") for name in read) <= 2 * 200
    assert len(read) <= 2 * (150 + 2 * 50)  # two listings; of what is to do, an error is looked for, too


def test_finished_cells_are_copied_to_a_mirror_that_is_a_study_again(undisturbed: Study, tmp_path: Path) -> None:
    address = f"file://{tmp_path}/mirror"
    assert len(undisturbed.mirror(address)) == 3
    assert undisturbed.mirror(address) == []
    copy = Study.load(tmp_path / "mirror")
    assert csv(copy) == csv(undisturbed) and files(copy) == files(undisturbed)


def test_a_worker_mirrors_a_study_below_any_directory_with_its_description(tmp_path: Path) -> None:
    study = Study(tmp_path / "checkpoint" / "study", models="m", tasks="t")
    study.save()
    place = Place.of(study.path, study.cells[0])
    (place.run / "checkpoint").mkdir(parents=True)
    for file in (place.summary, place.run / "config.json", place.run / "checkpoint" / checkpoint.FILE):
        file.write_text("{}")
    address = tmp_path / "mirror"
    assert Worker(study.path, study.design, mirror=f"file://{address}")._copied(study.cells[0]) == ""
    assert Study.load(address).cells == study.cells
    assert {path.name for path in address.rglob("*.*") if path.is_file()} == {FILE, "summary.json", "config.json"}


def test_a_mirror_that_fails_is_told_and_fails_no_cell(
    make: Callable[..., Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr("jola_interp.study.study.logger.warning", lambda text, *args: told.append(text % args))
    study = make(tmp_path, seeds=0, evaluate=False, epochs=1)
    assert study.run(mirror="nosuchprotocol://bucket").counts["finished"] == 1
    assert len(told) == 1 and "finished: not copied to nosuchprotocol://bucket" in told[0]


def test_status_estimates_what_is_left_by_cells_of_the_same_kind(
    undisturbed: Study, make: Callable[..., Study]
) -> None:
    assert undisturbed.status().seconds_left == 0
    more = make(undisturbed.path, seeds=[0, 1, 2, 3], also=ALSO)  # not saved: the study on disk stays
    took = [one.seconds for one in more.status().cells if one.seconds is not None]
    assert len(took) == 3
    assert more.status().seconds_left == pytest.approx(2 * sum(took) / 3)


def call(*words: str, code: int = 0) -> str:
    result = typer.testing.CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == code, result.output
    return str(result.stdout)


def test_a_study_from_the_command_line(tiny: str, rows: str, tmp_path: Path) -> None:
    folder, file = str(tmp_path / "study"), tmp_path / "my.yaml"
    file.write_text(json.dumps({"tasks": ["absent/task", rows], "seeds": [0, 1], **FAST, "evaluate": False}))
    assert "4 cells, from 0 to 3" in call("new", folder, "--from", str(file), "-m", tiny, "--set", "epochs=1")
    assert "1 finished" in call("run", folder, "--cells", "1")
    assert "1 failed" in call("run", folder, "--cells", "0-1", code=1)
    states = [row["state"] for row in json.loads(call("status", folder, "--json"))]
    assert states == ["failed", "finished", "to do", "to do"]
    assert "4 cells: 2 to do, 1 failed, 1 finished" in call("status", folder)
    assert call("table", folder) == csv(Study.load(folder))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"engine": "slurm"}, "engine must be one of local, ray; got 'slurm'"),
        ({"workers": 0}, "workers must be an integer ≥ 1; got 0"),
        ({"num_gpus": 0.5}, "num_gpus belongs to engine 'ray'"),
        ({"threads": 0}, "threads must be"),
        ({"takeover": 0}, "takeover must be"),
        ({"cells": "0-9"}, "cells must be from 0 to 1"),
        ({"tasks": ["agreemnt"]}, "tasks must hold names .* got 'agreemnt'; did you mean 'agreement'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_run_cannot_use_is_refused_before_anything_is_written(
    given: dict[str, Any], message: str, make: Callable[..., Study], tmp_path: Path
) -> None:
    study = make(tmp_path / "study", **{name: given[name] for name in given.keys() & {"tasks"}})
    with pytest.raises(ValueError, match=message):
        study.run(**{name: given[name] for name in given.keys() - {"tasks"}})
    assert not (tmp_path / "study").exists()


def test_a_path_that_another_machine_may_have_is_no_misspelt_name(tmp_path: Path) -> None:
    check_tasks(["agreement", "commonsense/arc_c", "elsewhere/rows", "./rows", str(tmp_path)])
    for name in ("rows", "commonsense/arc"):
        with pytest.raises(ValueError, match=f"got '{name}'"):
            check_tasks(["agreement", name])
