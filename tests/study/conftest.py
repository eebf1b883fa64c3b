"""A tiny model and tiny tasks in directories, where other processes find them, too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import build_hf

FAST: dict[str, Any] = {
    "n_train": 8, "n_validation": 2, "n_test": 2, "batch_size": 4, "epochs": 2, "max_length": 80, "wrapper": "plain",
    "max_new_tokens": 2, "backend": "hooks", "dtype": "float32",
}  # fmt: skip


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> str:
    """A tiny model in a directory."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    build_hf("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_task(folder: Path) -> str:
    """A directory of rows that say which animal it was."""
    folder.mkdir(parents=True)
    animals = ["cat", "dog", "owl", "fox"]
    for split, count in {"train": 24, "validation": 4, "test": 4}.items():
        rows = [
            {"instruction": f"{split} {i}: {animals[i % 4]}?", "answer": f"a {animals[i % 4]}"} for i in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(folder)


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A task in a directory."""
    return write_task(tmp_path_factory.mktemp("tasks") / "animals")
