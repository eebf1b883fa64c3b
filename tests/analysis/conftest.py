"""Tiny models of more architectures, with a tokenizer, and a task of choices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from jola_interp.models import Model, load_model
from jola_interp.tasks import Example, Task
from tests.conftest import ARCHITECTURES, build_hf
from tests.readout_by_hand import MORE

MakeModel = Callable[..., Model]


@pytest.fixture
def build(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> MakeModel:
    for name, entry in MORE.items():
        monkeypatch.setitem(ARCHITECTURES, name, entry)

    def make(architecture: str = "llama", **changes: Any) -> Model:
        attention = "eager" if architecture == "gemma2" else "sdpa"
        return load_model(build_hf(architecture, attention, **changes), tokenizer=tokenizer)

    return make


@pytest.fixture
def choices() -> Task:
    rows = [
        Example(f"{i}: {animal}?", f"answer{1 + i % 2}", id=str(i))
        for i, animal in enumerate(["cat", "doggy", "owl", "foxes", "bee", "antelope", "ox", "ant"])
    ]
    return Task("pick", tuple(rows[:2]), (), tuple(rows[2:]), kind="choice", options=("answer1", "answer2", "answer3"))
