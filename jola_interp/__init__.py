"""jola_interp: which attention heads did fine-tuning need, how were they used, and would it pick them again?

    import jola_interp as ji
    run = ji.fit("smollm2-135m", "restaurants")    # progress bar; a Run on disk
    ji.plots.heads(run)                            # interactive layer × head map of P(open)
    ji.report(run)                                 # one HTML file

Everything is imported when first used, so that ``import jola_interp`` is quick.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from jola_interp._log import default_verbosity, set_verbosity
from jola_interp._version import __version__

if TYPE_CHECKING:
    from jola_interp import analysis, export, gates, plots
    from jola_interp.analysis.measured import analyse
    from jola_interp.backends import attach
    from jola_interp.callbacks import Callback, TensorBoardLogger, WandbLogger
    from jola_interp.config import PRESETS, TrainConfig
    from jola_interp.edits import Edit, HeadShape, JoLA
    from jola_interp.evaluation.compare import compare
    from jola_interp.evaluation.evaluator import evaluate
    from jola_interp.evaluation.harness import evaluate_with_harness
    from jola_interp.evaluation.side_effects import side_effects
    from jola_interp.evidence.audit import audit
    from jola_interp.evidence.calibration import calibrate
    from jola_interp.evidence.card import Card, evidence_card
    from jola_interp.evidence.rivals import rivals
    from jola_interp.explore import explore
    from jola_interp.history import GateHistory
    from jola_interp.methods import Method, method, methods
    from jola_interp.models import Model, load_model
    from jola_interp.report import report
    from jola_interp.runs import Run
    from jola_interp.study import Study
    from jola_interp.tasks import Example, MinimalPair, Task, load_task, minimal_pairs, task_names
    from jola_interp.training import TrainingDivergedError, fit

_HOMES = {
    "analyse": "analysis.measured",
    "attach": "backends",
    "Callback": "callbacks",
    "TensorBoardLogger": "callbacks",
    "WandbLogger": "callbacks",
    "PRESETS": "config",
    "TrainConfig": "config",
    "Edit": "edits",
    "HeadShape": "edits",
    "JoLA": "edits",
    "compare": "evaluation.compare",
    "evaluate": "evaluation.evaluator",
    "evaluate_with_harness": "evaluation.harness",
    "side_effects": "evaluation.side_effects",
    "audit": "evidence.audit",
    "calibrate": "evidence.calibration",
    "Card": "evidence.card",
    "evidence_card": "evidence.card",
    "rivals": "evidence.rivals",
    "explore": "explore",
    "GateHistory": "history",
    "Method": "methods",
    "method": "methods",
    "methods": "methods",
    "Model": "models",
    "load_model": "models",
    "report": "report",
    "Run": "runs",
    "Example": "tasks",
    "Task": "tasks",
    "MinimalPair": "tasks",
    "load_task": "tasks",
    "minimal_pairs": "tasks",
    "task_names": "tasks",
    "Study": "study",
    "TrainingDivergedError": "training",
    "fit": "training",
}
_MODULES = ("analysis", "export", "gates", "plots")

__all__ = [
    "PRESETS", "Callback", "Card", "Edit", "Example", "GateHistory", "HeadShape", "JoLA", "Method", "MinimalPair",
    "Model", "Run", "Study", "Task", "TensorBoardLogger", "TrainConfig", "TrainingDivergedError", "WandbLogger",
    "__version__", "analyse", "analysis", "attach", "audit", "calibrate", "compare", "evaluate",
    "evaluate_with_harness", "evidence_card", "explore", "export", "fit", "gates", "load_model", "load_task", "method",
    "methods", "minimal_pairs", "plots", "report", "rivals", "set_verbosity", "side_effects", "task_names",
]  # fmt: skip

default_verbosity()


class _Package(ModuleType):
    """Importing a submodule binds its name here; where a function has the same name, that is what users call."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


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
