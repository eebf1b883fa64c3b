"""A small trained Run to be questioned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import jola_interp as ji
from jola_interp.evidence.case import Case, open_case
from jola_interp.models import Model
from jola_interp.runs import Run
from jola_interp.tasks import Task

Trained = Callable[..., tuple[Run, Task, Model]]


@pytest.fixture
def trained(make_model: Callable[..., Model], toy_task: Task, tmp_path: Path) -> Trained:
    """``trained(...)``: (Run, task, model) of a few steps on a tiny model; arguments are those of ``fit``."""

    def train(task: Task = toy_task, **changes: Any) -> tuple[Run, Task, Model]:
        model = make_model()
        settings: dict[str, Any] = {
            "preset": "selective",
            "max_steps": 12,
            "batch_size": 8,
            "evaluate": False,
            **changes,
        }
        edit = settings.pop("edit", "jola")
        run = ji.fit(model, task, edit, backend="hooks", out=tmp_path / "run", **settings)
        return run, task, model

    return train


@pytest.fixture
def case(trained: Trained) -> Case:
    run, task, model = trained()
    return open_case(run, task, model, steps=4)
