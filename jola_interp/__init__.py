"""jola_interp: which attention heads did fine-tuning need, how were they used, and would it pick them again?

    import jola_interp as ji
    run = ji.fit("smollm2-135m", "restaurants")    # progress bar; a Run on disk
    ji.plots.heads(run)                            # interactive layer × head map of P(open)
    ji.report(run)                                 # one HTML file

Everything is imported when first used, so that ``import jola_interp`` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from jola_interp._log import default_verbosity, set_verbosity
from jola_interp._version import __version__

if TYPE_CHECKING:
    from jola_interp import gates, plots
    from jola_interp.backends import attach
    from jola_interp.callbacks import Callback, TensorBoardLogger, WandbLogger
    from jola_interp.config import PRESETS, TrainConfig
    from jola_interp.edits import Edit, HeadShape, JoLA
    from jola_interp.evaluation.evaluator import evaluate
    from jola_interp.history import GateHistory
    from jola_interp.models import Model, load_model
    from jola_interp.report import report
    from jola_interp.runs import Run
    from jola_interp.tasks import Example, Task, load_task, task_names
    from jola_interp.training import TrainingDivergedError, fit, methods

_HOMES = {
    "attach": "backends",
    "Callback": "callbacks",
    "TensorBoardLogger": "callbacks",
    "WandbLogger": "callbacks",
    "PRESETS": "config",
    "TrainConfig": "config",
    "Edit": "edits",
    "HeadShape": "edits",
    "JoLA": "edits",
    "evaluate": "evaluation.evaluator",
    "GateHistory": "history",
    "Model": "models",
    "load_model": "models",
    "report": "report",
    "Run": "runs",
    "Example": "tasks",
    "Task": "tasks",
    "load_task": "tasks",
    "task_names": "tasks",
    "TrainingDivergedError": "training",
    "fit": "training",
    "methods": "training",
}
_MODULES = ("gates", "plots")

__all__ = [
    "PRESETS", "Callback", "Edit", "Example", "GateHistory", "HeadShape", "JoLA", "Model", "Run", "Task",
    "TensorBoardLogger", "TrainConfig", "TrainingDivergedError", "WandbLogger", "__version__", "attach", "evaluate",
    "fit", "gates", "load_model", "load_task", "methods", "plots", "report", "set_verbosity", "task_names",
]  # fmt: skip

default_verbosity()


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"jola_interp.{_HOMES[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"jola_interp.{name}")
    else:
        raise AttributeError(f"module 'jola_interp' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
