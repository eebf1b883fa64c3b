"""What can watch a training: callbacks, loggers, and the live heads map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from jola_interp import gates, sketch
from jola_interp.config import TrainConfig
from jola_interp.edits.base import Edit
from jola_interp.history import GateHistory


@dataclass
class TrainingState:
    """What a callback sees. Setting ``stop`` ends training after the current step, with a validation."""

    step: int
    n_steps: int
    epoch: int
    edit: Edit
    history: GateHistory
    config: TrainConfig
    scalars: dict[str, float]
    stop: bool = False


class Callback:
    """Override what you need. ``on_step`` follows each optimiser step, ``on_epoch`` each validation."""

    def on_start(self, state: TrainingState) -> None:
        """Before the first step (or the first after resuming)."""

    def on_step(self, state: TrainingState) -> None:
        """After an optimiser step."""

    def on_epoch(self, state: TrainingState) -> None:
        """After a validation; ``state.scalars`` holds ``validation_ce``."""

    def on_end(self, state: TrainingState) -> None:
        """After the last step."""


class Logger(Protocol):
    """Anything with ``log(step, dict)``."""

    def log(self, step: int, values: Mapping[str, float]) -> Any:
        """Take the scalars of one optimiser step or validation."""


class WandbLogger:
    """Scalars to Weights & Biases. Needs ``pip install jola_interp[wandb]``; arguments go to ``wandb.init``."""

    def __init__(self, **options: Any):
        import wandb

        self.run = wandb.init(**options)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)


class TensorBoardLogger:
    """Scalars to TensorBoard event files. Needs ``pip install jola_interp[tensorboard]``."""

    def __init__(self, folder: str):
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(folder)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()


class LiveMap(Callback):
    """A heads map of P(open) that updates in the notebook while training (``fit(..., live=True)``)."""

    def __init__(self, every: int = 5):
        self.every = every
        self._display: Any = None

    def on_start(self, state: TrainingState) -> None:
        from IPython.display import HTML, display

        self._display = display(HTML(self.render(state)), display_id=True)

    def on_step(self, state: TrainingState) -> None:
        if state.step % self.every == 0:
            self._update(state)

    def on_end(self, state: TrainingState) -> None:
        self._update(state)

    def render(self, state: TrainingState) -> str:
        """The map as HTML."""
        maps: dict[str, np.ndarray] = {
            kind: gates.p_open(value).cpu().numpy().astype(np.float32)
            for (site, kind), value in state.edit.log_alphas().items()
            if site == "heads"
        }
        ce = state.scalars.get("ce")
        caption = f"step {state.step} of {state.n_steps}" + ("" if ce is None else f", CE {ce:.3f}")
        return sketch.heads_svg(maps, caption)

    def _update(self, state: TrainingState) -> None:
        from IPython.display import HTML

        if self._display is not None:  # None outside a notebook
            self._display.update(HTML(self.render(state)))
