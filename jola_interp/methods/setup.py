"""What a method with a fitting of its own is given: model, rows, settings, and trainings of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jola_interp.config import DEFAULT_PRESET, TrainConfig
from jola_interp.edits.base import Edit
from jola_interp.models import Model
from jola_interp.runs import STAGES, Run
from jola_interp.tasks import Task

if TYPE_CHECKING:
    from jola_interp.backends import BackendName

Stage = Callable[..., Run]


@dataclass
class Setup:
    """One fitting: what it may read, and what it leaves.

    Attributes:
        model: frozen, without an edit.
        task: its training and validation rows are there to be used; its test rows are not.
        settings: how the edit will be trained; :attr:`fields` changes them.
        backend: how activations are reached.
        folder: the Run's directory; trainings of its own go to ``stages/<name>`` in it.
        fit: trains an edit (:func:`jola_interp.fit`).
        preset: the name of the preset that the settings started from.
        fields: training fields that the fitting found out, such as a prompt of its own.
    """

    model: Model
    task: Task
    settings: TrainConfig
    backend: BackendName
    folder: Path
    fit: Stage
    preset: str = DEFAULT_PRESET
    fields: dict[str, Any] = field(default_factory=dict)

    def train(self, edit: Edit, name: str, **changes: Any) -> Run:
        """Train ``edit`` on the same rows into ``stages/<name>``, settings as the method's own but for ``changes``; one
        that is finished there is read instead, one that was cut short goes on.

        Raises:
            KeyboardInterrupt: it was interrupted; what there is lies in its folder.
        """
        rows = dataclasses.replace(self.task, test=())
        settings = dataclasses.replace(self.settings, **{"evaluate": False, **changes})
        places: dict[str, Any] = {"preset": self.preset, "backend": self.backend, "out": self.folder / STAGES / name}
        run = self.fit(self.model, rows, edit, settings, **places, resume=True)
        if run.status != "finished":
            raise KeyboardInterrupt(f"{run.path} is {run.status}; the same call with resume=True goes on")
        return run

    def generator(self, stream: int = 0) -> np.random.Generator:
        """Random numbers that depend on the seed alone, another stream for each ``stream``."""
        return np.random.default_rng([self.settings.seed, stream])
