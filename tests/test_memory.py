"""The highest memory is that of the work since the measurement began, and of no other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import jola_interp as ji
from jola_interp import memory
from jola_interp.memory import PeakMemory
from jola_interp.tasks import Task

MIB = 2**20
needs_linux = pytest.mark.skipif(not memory._RESET.exists(), reason="only Linux lets a process start its peak anew")


def touched(mib: int) -> torch.Tensor:
    return torch.ones(mib * MIB, dtype=torch.uint8)


@needs_linux
def test_the_peak_counts_what_came_and_went_since_the_beginning() -> None:
    touched(400)
    measured = PeakMemory(torch.device("cpu"))
    before = measured.read()
    touched(200)
    after = measured.read()
    assert before is not None and after is not None and 150 * MIB < after - before < 300 * MIB


@needs_linux
def test_a_run_keeps_its_peak_with_its_times(
    make_model: Callable[..., ji.Model], toy_task: Task, tmp_path: Path
) -> None:
    run = ji.fit(make_model(), toy_task, max_steps=1, evaluate=False, out=tmp_path / "run", backend="hooks")
    assert run.timing["peak_memory_bytes"] > 50 * MIB


def test_what_a_system_does_not_tell_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_RESET", tmp_path / "no" / "such")
    assert PeakMemory(torch.device("cpu")).read() is None
    assert PeakMemory(torch.device("meta")).read() is None
