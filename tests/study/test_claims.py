"""Claims: at most one of any number of processes holds a cell, and a dead holder holds nothing."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import platform
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from jola_interp.study import claims
from jola_interp.study.claims import ClaimLostError, acquire, latest, path_of

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="claims are for POSIX file systems")


def leave(folder: Path, *, age: float = 0.0, takeover: float = 60.0, **changes: Any) -> Path:
    """A claim as another machine has left it, last heard of ``age`` seconds ago."""
    folder.mkdir(parents=True, exist_ok=True)
    holder = latest(folder)
    path = path_of(folder, 0 if holder is None else holder.generation + 1)
    content = {"owner": "other", "host": "elsewhere", "machine": "another", "pid": 1, "process": "1", "since": 0.0}
    path.write_text(json.dumps(content | {"takeover": takeover} | changes))
    then = time.time() - age
    os.utime(path, (then, then))
    return path


def winners(folder: Path, contenders: int) -> list[claims.Claim]:
    """Claims that so many threads get when they all try at once."""
    barrier, found = threading.Barrier(contenders), []

    def contend() -> None:
        barrier.wait()
        if (claim := acquire(folder)) is not None:
            found.append(claim)

    threads = [threading.Thread(target=contend) for _ in range(contenders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("stale", [False, True], ids=["fresh cell", "stale claim"])
def test_one_of_many_threads_wins(tmp_path: Path, stale: bool) -> None:
    for i in range(25):
        folder = tmp_path / str(i)
        if stale:
            leave(folder, age=100)
        won = winners(folder, 16)
        assert len(won) == 1
        assert won[0].generation == int(stale)


def contend_for(folders: list[Path], out: Path, start: Any, end: Any) -> None:
    """In a process of its own: try for every cell, note those won, and live until all others are done."""
    start.wait()
    won = [folder.name for folder in folders if acquire(folder) is not None]
    out.write_text(" ".join(won))
    end.wait()
    os._exit(0)


def test_of_several_processes_never_two_win_a_cell(tmp_path: Path) -> None:
    folders = [tmp_path / f"cell-{i}" for i in range(150)]
    for folder in folders[::2]:
        leave(folder, age=100)
    context = multiprocessing.get_context("fork")
    start, end = context.Barrier(4), context.Barrier(4)
    outs = [tmp_path / f"won-{i}" for i in range(4)]
    processes = [context.Process(target=contend_for, args=(folders, out, start, end)) for out in outs]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    won = " ".join(out.read_text() for out in outs).split()
    assert sorted(won) == sorted(folder.name for folder in folders)


def test_who_finds_a_claim_stale_too_late_loses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(tmp_path, age=100)
    seen = latest(tmp_path)
    first = acquire(tmp_path)
    assert first is not None
    monkeypatch.setattr(claims, "latest", lambda _: seen)  # as the second saw it before the first took it
    assert acquire(tmp_path) is None
    assert path_of(tmp_path, 1).exists() and not path_of(tmp_path, 2).exists()


def test_a_heartbeat_keeps_a_claim_young_and_it_is_never_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "machine", lambda: "this one")
    monkeypatch.setattr(claims, "LONGEST", 0.02)
    claim = acquire(tmp_path, takeover=6000)
    assert claim is not None
    monkeypatch.setattr(claims, "machine", lambda: "an observer")  # who can only go by the heartbeat
    with claim:
        for _ in range(3):
            os.utime(path_of(tmp_path, 0), (0.5, time.time() - 5000))
            while latest(tmp_path).age > 1000:  # type: ignore[union-attr]  # until the next heartbeat
                time.sleep(0.01)
            assert acquire(tmp_path, takeover=6000) is None
        claim.check()
    assert acquire(tmp_path) is not None


def test_a_claim_without_a_heartbeat_is_free_after_its_own_time_and_not_before(tmp_path: Path) -> None:
    leave(tmp_path, age=50, takeover=6000)
    assert acquire(tmp_path, takeover=1) is None  # the holder's word counts: it beats no faster than that
    leave(tmp_path, age=6100, takeover=6000)
    taken = acquire(tmp_path, takeover=1)
    assert taken is not None and taken.generation == 2


def test_letting_go_frees_a_cell_at_once(tmp_path: Path) -> None:
    for generation in range(3):
        claim = acquire(tmp_path)
        assert claim is not None and claim.generation == generation
        with claim:
            assert acquire(tmp_path) is None


def test_an_error_in_the_block_frees_the_cell(tmp_path: Path) -> None:
    claim = acquire(tmp_path)
    assert claim is not None
    with pytest.raises(KeyboardInterrupt), claim:
        raise KeyboardInterrupt
    assert acquire(tmp_path) is not None


def test_a_dead_process_of_this_machine_holds_nothing(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        acquire(tmp_path)
        os._exit(0)
    while (holder := latest(tmp_path)) is None or holder.pid != child:
        time.sleep(0.01)
    while claims.process(child):  # until it is at least a zombie, which is not yet reaped
        time.sleep(0.01)
    assert acquire(tmp_path) is not None
    os.waitpid(child, 0)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="start times of processes are read from /proc")
def test_another_process_with_the_id_of_the_holder_does_not_hold_its_claim(tmp_path: Path) -> None:
    here = {"machine": claims.machine(), "pid": os.getppid()}
    leave(tmp_path / "same", **here, process=claims.process(os.getppid()))
    leave(tmp_path / "other", **here, process="1")
    assert acquire(tmp_path / "same") is None
    assert acquire(tmp_path / "other") is not None


def test_a_process_of_another_machine_is_not_judged_by_ours(tmp_path: Path) -> None:
    leave(tmp_path, machine="another", host=platform.node(), pid=2**22 + 1)
    assert acquire(tmp_path) is None


def test_a_suspended_holder_learns_that_it_has_lost(tmp_path: Path) -> None:
    claim = acquire(tmp_path)
    assert claim is not None
    claim.check()
    leave(tmp_path)
    with pytest.raises(ClaimLostError, match=tmp_path.name):
        claim.check()


def test_a_claim_that_is_being_written_counts_as_held(tmp_path: Path) -> None:
    path_of(tmp_path, 0).write_text('{"own')
    assert acquire(tmp_path) is None


def test_a_claim_that_could_not_be_written_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(claims.os, "fdopen", full)
        acquire(tmp_path)
    assert acquire(tmp_path) is not None
