"""The state of a training between two optimiser steps: held in memory after each, written to disk now and then."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jola_interp import _files
from jola_interp.edits.base import Edit

FILE = "state.safetensors"


@dataclass
class Progress:
    """Where training is: ``step`` optimiser steps done, ``batch`` of them in the current ``epoch``."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best_value: float | None = None
    best_epoch: int | None = None
    epochs_without_better: int = 0
    stopping: bool = False
    """A callback has asked to stop; the validation is still to come."""
    stopped: str | None = None
    """Why training is over: "epochs", "max_steps", "patience" or "callback"; None while it goes on."""


@dataclass(frozen=True)
class Snapshot:
    """Everything that the next step depends on, plus how much had been logged.

    Attributes:
        tensors: ``edit.*`` parameters, ``adam.*`` moments, ``best.*`` parameters of the best epoch, ``rng.gates``, and
            ``rng.data`` as it was when the current epoch began.
        progress: counters and early stopping.
        objective: state of the λ schedule.
        n_rows: lines of metrics written so far.
    """

    tensors: dict[str, Tensor]
    progress: Progress
    objective: dict[str, Any]
    n_rows: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    history: dict[str, Tensor] = field(default_factory=dict)


def edit_tensors(edit: Edit) -> dict[str, Tensor]:
    """Copies of the trainable parameters, by name."""
    return {name: parameter.detach().clone() for name, parameter in edit.named_parameters()}


@torch.no_grad()
def load_edit_tensors(edit: Edit, tensors: dict[str, Tensor]) -> None:
    """The reverse of :func:`edit_tensors`."""
    for name, parameter in edit.named_parameters():
        parameter.copy_(tensors[name])


def optimizer_tensors(optimizer: torch.optim.Optimizer, edit: Edit) -> dict[str, Tensor]:
    """Copies of AdamW's moments and counters, by parameter name; empty before the first step."""
    return {
        f"{name}.{part}": value.detach().clone()
        for name, parameter in edit.named_parameters()
        for part, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, edit: Edit, tensors: dict[str, Tensor]) -> None:
    """The reverse of :func:`optimizer_tensors`."""
    optimizer.state.clear()
    for name, parameter in edit.named_parameters():
        parts = {key.rpartition(".")[2]: value for key, value in tensors.items() if key.rpartition(".")[0] == name}
        if parts:
            # AdamW keeps its step counter on the CPU and its moments with the parameter.
            optimizer.state[parameter] = {
                key: value.clone() if key == "step" else value.to(parameter.device, copy=True)
                for key, value in parts.items()
            }


def section(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under ``prefix.``, with the prefix taken off."""
    return {name.removeprefix(f"{prefix}."): value for name, value in tensors.items() if name.startswith(f"{prefix}.")}


def write(folder: Path, snapshot: Snapshot, identity: str) -> None:
    """One file, renamed into place; ``identity`` names the training that it belongs to."""
    folder.mkdir(parents=True, exist_ok=True)
    meta = {
        "identity": identity,
        "progress": asdict(snapshot.progress),
        "objective": snapshot.objective,
        "rows": snapshot.rows,
    }
    tensors = snapshot.tensors | {f"history.{name}": value for name, value in snapshot.history.items()}
    _files.write_tensors(folder / FILE, tensors, {"state": json.dumps(meta, allow_nan=False)})


def remove(folder: Path) -> None:
    """Remove the checkpoint, and what a killed process left of one; the folder too, if nothing else is in it."""
    if folder.is_dir():
        for file in (folder / FILE, *folder.glob(f".{FILE}-*")):
            file.unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()


def read(folder: Path, identity: str) -> Snapshot:
    """Read a checkpoint.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it belongs to another training.
    """
    from safetensors import safe_open

    file = folder / FILE
    if not file.exists():
        raise FileNotFoundError(f"resume: there is no checkpoint at {file}")
    with safe_open(file, "pt") as opened:
        meta = json.loads(opened.metadata()["state"])
    if meta["identity"] != identity:
        raise ValueError(
            f"resume: the checkpoint at {file} belongs to a training with other settings, data or model "
            f"({meta['identity'][:12]}, this one is {identity[:12]}); use another `out`, or overwrite=True"
        )
    tensors = _files.read_tensors(file)
    history = section(tensors, "history")
    kept = {name: value for name, value in tensors.items() if not name.startswith("history.")}
    rows = meta["rows"]
    return Snapshot(kept, Progress(**meta["progress"]), meta["objective"], len(rows), rows, history)
