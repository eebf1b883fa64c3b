"""Names that a study uses: what is neither a task nor a path is told before the first training, not after the last."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

from jola_interp.tasks import task_names


def check_tasks(tasks: Iterable[str]) -> None:
    """Refuse what no machine could load: a misspelt name. A path need not be there: another machine may have it.

    Raises:
        ValueError: a text that is no task's name, no path that exists, and has no separator, or the suite of one.
    """
    names = task_names()
    suites = {name.split("/")[0] for name in names if "/" in name}
    for task in dict.fromkeys(tasks):
        elsewhere = "/" in task and task.split("/")[0] not in suites
        if task in names or elsewhere or Path(task).expanduser().exists():
            continue
        close = difflib.get_close_matches(task.lower(), names, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"tasks must hold names (see task_names()) or paths such as './rows'; got {task!r}{hint}")
