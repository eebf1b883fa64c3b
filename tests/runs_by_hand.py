"""Runs made by hand, without a model: gates drift apart from one start, losses fall, two rows are predicted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from jola_interp import _files
from jola_interp.config import preset
from jola_interp.convergence import FILE, Convergence
from jola_interp.edits import HeadShape, JoLA
from jola_interp.history import GateHistory
from jola_interp.runs import FORMAT, Run, edit_settings, write_run


def make_run(
    folder: Path,
    layers: int = 3,
    heads: int = 4,
    kv_heads: int = 2,
    steps: int = 12,
    best_epoch: int = 1,
    names: tuple[str, str] = ("tiny", "toy"),
    evaluated: bool = True,
    moving: bool = False,
    train: dict[str, Any] | None = None,
    only: dict[str, Any] | None = None,
    **switches: Any,
) -> Run:
    """A Run of three epochs that keeps the best one's gates; ``only`` restricts its edit to some units."""
    edit = JoLA(HeadShape(layers, heads, kv_heads, 4, 8), **{**preset("paper").edit, **switches, **(only or {})})
    edit.initialise(torch.Generator().manual_seed(0))
    epoch_ends = [steps // 3, 2 * steps // 3, steps]
    history = _history(edit, steps)
    for (site, kind), value in edit.log_alphas().items():
        then = history.at(epoch_ends[best_epoch], site)[kind]  # type: ignore[arg-type]
        value.copy_(torch.from_numpy(np.nan_to_num(then)))  # what log_alphas gives shares memory with the parameter
    config = _config(edit, steps, best_epoch, names, {**preset("paper").train.to_dict(), **(train or {})})
    write_run(folder, config, edit, history)
    _files.write_jsonl(folder / "metrics.jsonl", _metrics(edit, steps, epoch_ends, moving))
    if evaluated:
        _files.write_json(folder / "scores.json", _scores(names[1]))
        _files.write_jsonl(folder / "predictions.jsonl", _predictions())
    return Run.load(folder)


def _history(edit: JoLA, steps: int) -> GateHistory:
    """log α from 2 at step 0 to anything between −8 and 8 at the end, along straight lines."""
    masks: Any = {site: edit.site(site).mask.numpy() for site in edit.sites}  # type: ignore[arg-type]
    history = GateHistory(masks, list(edit.log_alphas()), steps + 1)
    generator = torch.Generator().manual_seed(1)
    ends = {key: 16 * torch.rand(value.shape, generator=generator) - 8 for key, value in edit.log_alphas().items()}
    for step in range(steps + 1):
        history.record(step, {key: 2 + (end - 2) * step / steps for key, end in ends.items()})
    return history


def _config(edit: JoLA, steps: int, best_epoch: int, names: tuple[str, str], train: dict[str, Any]) -> dict[str, Any]:
    shape = {name: getattr(edit.shape, name) for name in ("layers", "heads", "kv_heads", "d_head", "d_model")}
    model = {"name": names[0], "class": "Tiny", "head_shape": shape, "vocab_size": 258, "dtype": "float32"}
    task = {"name": names[1], "kind": "text", "metric": "bleu", "sizes": {"train": 9, "validation": 3, "test": 2}}
    progress = {"steps": steps, "epochs": 3, "best_epoch": best_epoch, "best_value": 0.5, "stopped": "epochs"}
    return {
        "format": FORMAT,
        "jola_interp": "0.1.0",
        "identity": "0" * 64,
        "preset": "paper",
        "method": None,
        "backend": "lens",
        "model": {**model, "fingerprint": "ab" * 32, "source": names[0]},
        "task": {
            **task,
            "fingerprint": "cd" * 32,
            "source": "rows",
            "seed": 42,
            "cut": {"train": 0, "validation": 0, "test": 0},
        },
        "edit": edit_settings(edit),
        "train": train,
        "status": "finished",
        "progress": progress,
    }


def _metrics(edit: JoLA, steps: int, epoch_ends: list[int], moving: bool) -> list[dict[str, Any]]:
    kinds = sorted({kind for _, kind in edit.log_alphas()})
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        epoch = next(i for i, end in enumerate(epoch_ends) if step <= end)
        row: dict[str, Any] = {"step": step, "epoch": epoch, "ce": 2.0 / step, "penalty": 0.1 if kinds else 0.0}
        row |= {f"lambda_{kind}": 0.4 + (0.01 * step if moving else 0.0) for kind in kinds}
        row |= {f"open_{kind}": 10.0 - 0.5 * step for kind in kinds}
        rows.append(row)
        if step == epoch_ends[epoch]:
            rows.append({"step": step, "epoch": epoch, "validation_ce": 0.5 + 0.1 * abs(epoch - 1)})
    return rows


def _scores(task: str) -> dict[str, Any]:
    def score(value: float) -> dict[str, Any]:
        return {"value": value, "low": value - 1, "high": value + 1, "n": 2, "method": "bootstrap"}

    return {
        "task": task,
        "metric": "bleu",
        "n": 2,
        "protocol": {"beams": 1},
        "signatures": {"bleu": "nrefs:1|case:mixed", "rouge": "rouge-score 0.1.2"},
        "base": {"bleu": score(11.0), "nll": score(2.5)},
        "edited": {"bleu": score(52.0), "nll": score(1.5)},
        "paired": {"bleu": score(41.0) | {"p": 0.001}, "nll": score(-1.0) | {"p": 0.0321}},
    }


def _predictions() -> list[dict[str, Any]]:
    hostile = "<script>alert('x')</script> & \"quoted\""
    return [
        {"id": "0", "instruction": "Say <b>hello</b>", "answer": "hello", "base": hostile, "edited": "hello"},
        {"id": "1", "instruction": "Say more", "answer": "m" * 2000, "base": "", "edited": "more"},
    ]


def stamped(run: Run, **more: Any) -> Run:
    """The Run, had training left a convergence stamp."""
    ce = {"sampled": 0.52, "expected": 0.51, "point": 0.505, "hard": 0.5}
    values: dict[str, Any] = {"gates": 24, "decided": 20, "sum_gate_lr": 3.0, "reach": 0.1, "ce": ce}
    values |= {"sampled_se": 0.002, "stationarity": None, "rows": 32, "draws": 4} | more
    _files.write_json(run.path / FILE, Convergence(**values).to_dict())
    return run
