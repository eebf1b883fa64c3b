"""Tasks: the built-in ones, generated from a seed, and any directory of JSON lines."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from jola_interp.tasks.base import Example, Task, TaskError
from jola_interp.tasks.builtin import BUILTIN
from jola_interp.tasks.files import load_folder

__all__ = ["Example", "Task", "TaskError", "load_task", "task_names", "task_table"]


def load_task(
    name_or_path: str | os.PathLike[str],
    *,
    n_train: int = 200,
    n_validation: int | None = None,
    n_test: int | None = None,
    seed: int = 42,
) -> Task:
    """A task by its name, or from a directory of `{train,validation,test}.jsonl`.

    Args:
        name_or_path: one of `task_names()`, or a directory. A built-in name wins over a directory of that
            name ("./topics" means the directory); a text with a path separator always means a directory.
        n_train: training rows.
        n_validation: validation rows. Default: 60 of a built-in task; 200 or what there is of a directory.
        n_test: test rows. Default: 100 of a built-in task; all of a directory.
        seed: which rows. The same seed gives the same rows in the same order. No number moves a row into another
            split, and a larger one keeps the rows of a smaller one. (Only in a directory without a
            validation file, where validation is cut from the training rows, may it lose rows to a larger n_train.)

    Raises:
        TaskError: unknown name, no such directory, a number that is not positive, more training rows than
            there are, or a file that cannot be used (the message names file, line and reason).
    """
    _check_numbers(n_train=n_train, n_validation=n_validation, n_test=n_test)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TaskError(f"seed must be a whole number, not {seed!r}")
    if isinstance(name_or_path, str) and name_or_path in BUILTIN:
        return BUILTIN[name_or_path].build(n_train, n_validation or 60, n_test or 100, seed)
    if _is_path(name_or_path):
        return load_folder(Path(name_or_path).expanduser(), n_train, n_validation, n_test, seed)
    raise TaskError(_unknown(name_or_path))


def task_names() -> list[str]:
    """The names of the built-in tasks, in alphabetical order."""
    return sorted(BUILTIN)


def task_table() -> list[dict[str, str]]:
    """One dict per built-in task: name, kind, metric, requires, description."""
    return [_table_row(name) for name in task_names()]


def _table_row(name: str) -> dict[str, str]:
    task = BUILTIN[name].build(1, 1, 1, 0)
    described = {"requires": task.requires, "description": BUILTIN[name].description}
    return {"name": name, "kind": task.kind, "metric": task.metric, **described}


def _check_numbers(**numbers: int | None) -> None:
    for field, n in numbers.items():
        if n is None and field != "n_train":
            continue
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise TaskError(f"{field} must be a whole number, 1 or more, not {n!r}")


def _is_path(value: str | os.PathLike[str]) -> bool:
    if isinstance(value, os.PathLike):
        return True
    if not isinstance(value, str):
        raise TaskError(f"a task is a name or a path, not {type(value).__name__}")
    return "/" in value or os.sep in value or os.path.isdir(value)


def _unknown(name: str | os.PathLike[str]) -> str:
    close = difflib.get_close_matches(str(name).lower(), task_names(), n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    names = ", ".join(task_names())
    return f"no task {name!r}.{hint} Built in: {names}; a directory of train.jsonl and test.jsonl works too"
