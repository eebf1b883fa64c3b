"""One HTML file that says what a Run is, what it scored, and which heads it uses. It loads nothing from anywhere."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jola_interp.analysis.summary import title_of
from jola_interp.report.one import body_of
from jola_interp.report.page import write_page
from jola_interp.report.sentences import subtitle
from jola_interp.report.several import body_of_all, title_of_all
from jola_interp.report.studies import body_of_study, title_of_study
from jola_interp.runs import Run
from jola_interp.selection import DEFAULT_RULE
from jola_interp.study.study import Study


def report(
    runs: Run | Study | str | Path | Iterable[Run | str | Path],
    path: str | Path | None = None,
    *,
    rule: str = DEFAULT_RULE,
    **labels: Any,
) -> Path:
    """Write the report of a Run (summary, scores, evidence, figures, examples, settings, how to train it again), or of
    several (what each scored and selected, how far the selections overlap beside chance, their maps), or of a
    study (what its cells answer, with figures).

    The file needs neither the model nor a network, and follows the reader's choice of light or dark.

    Args:
        runs: any Run, its directory, or several, or a study; what a Run lacks (scores, evidence, predictions, gates)
            the report says.
        path: where to; None is ``report.html`` in the directory of the Run or study, and several have no such place.
        rule: of a study: which heads count as selected.
        **labels: of a study: which cells, where there are several models, methods or penalties.

    Returns:
        The path of the file.

    Raises:
        ValueError: no Run, or several without a path.
        FileNotFoundError: a directory that holds no Run.
    """
    if isinstance(runs, Study):
        target = runs.path / "report.html" if path is None else Path(path)
        return write_page(target, *title_of_study(runs), body_of_study(runs, rule, **labels))
    if isinstance(runs, Run | str | Path):
        run = runs if isinstance(runs, Run) else Run.load(runs)
        target = run.path / "report.html" if path is None else Path(path)
        return write_page(target, title_of(run), subtitle(run), body_of(run))
    opened = [run if isinstance(run, Run) else Run.load(run) for run in runs]
    if not opened:
        raise ValueError("runs is empty: there is nothing to report")
    if len(opened) == 1:
        return report(opened[0], path)
    if path is None:
        raise ValueError(f"path: say where the report of {len(opened)} Runs shall lie")
    return write_page(Path(path), *title_of_all(opened), body_of_all(opened))
