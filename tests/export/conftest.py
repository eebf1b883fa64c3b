"""Runs of a given edit on a given tiny model, without a training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from jola_interp.edits import Edit, JoLA
from jola_interp.history import GateHistory
from jola_interp.models import Model
from jola_interp.runs import Run, write_run
from tests.runs_by_hand import _config

RunOf = Callable[..., Run]
IDS = torch.tensor([[256, 256, 256, 5, 17, 80, 3], [9, 44, 2, 71, 8, 120, 6], [33, 7, 99, 256, 256, 256, 256]])
MASK = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0]])


@pytest.fixture
def run_of(tmp_path: Path) -> RunOf:
    """``run_of(model, edit)``: a Run on disk that holds this edit, as ``fit`` on this model would have left it."""

    def make(model: Model, edit: Edit, name: str = "run") -> Run:
        masks = {site: mask.numpy() for site, mask in edit.masks().items()}
        history = GateHistory(masks, list(edit.log_alphas()), 1)
        history.record(0, edit.log_alphas())
        config: Any = _config(edit, 1, 0, ("tiny", "toy"), TRAIN)  # type: ignore[arg-type]
        config |= {"model": {**model.identity(), "source": None}, "backend": "hooks"}
        write_run(tmp_path / name, config, edit, history)
        return Run.load(tmp_path / name, model)

    return make


def made(model: Model, seed: int = 0, **switches: Any) -> JoLA:
    """An edit large enough to move logits, with gates that are open, shut and in between."""
    options: dict[str, Any] = {"init_std": 0.3, "init_log_alpha": 0.0, "init_spread": 4.0, **switches}
    return JoLA(model.head_shape, **options).initialise(torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model: Model) -> Tensor:
    """[token, vocab], of rows that are padded on the left, not at all, and on the right."""
    return model.logits(IDS, MASK)[MASK.bool()]


def edited_logits(run: Run, model: Model, **part: Any) -> Tensor:
    with run.attach(model, **part):
        return logits(model)


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest, as a share of the largest expected."""
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


def _train() -> dict[str, Any]:
    from jola_interp.config import preset

    return preset("paper").train.to_dict()


TRAIN = _train()
