"""Small trainings under the Trainer, of which every gradient and every draw of the gates is kept.

In one process by calling :func:`train`, in two by a launcher:

    accelerate launch --multi_gpu --num_processes 2 --main_process_port 0 -m tests.data_parallel_by_hand FOLDER

``--multi_gpu`` is what makes accelerate start several processes, on CPUs too; with ``--cpu`` it leaves that to mpirun.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

import jola_interp as ji
from jola_interp import _files
from jola_interp.hf_trainer import EditedModel, GateCallback
from jola_interp.tasks import Example, Task
from tests.conftest import build_hf, byte_tokenizer
from tests.test_hf_trainer import STEPS, arguments, collate, rows_of

ROWS = 12
"""Rows of an optimiser step, whatever the number of processes."""
TRAININGS: dict[str, dict[str, Any]] = {
    "whole": {},
    "accumulated": {"gradient_accumulation_steps": 2},
    "checkpointed": {"activation_checkpointing": True},
}
"""By name, what else the Trainer is told."""


class Keeper(TrainerCallback):
    """By step: the gradients that the optimiser is given, and the uniform draws of the gates."""

    def __init__(self, edited: EditedModel):
        self.edited, self.kept = edited, dict[str, torch.Tensor]()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        step = state.global_step
        for name, parameter in self.edited.edit.named_parameters():
            if parameter.grad is not None:
                self.kept[f"gradient.{step}.{name}"] = parameter.grad.clone()
        for (_, kind), draw in (self.edited.attached._noise[0] or {}).items():
            self.kept[f"draw.{step}.{kind}"] = draw.clone()


def task() -> Task:
    """24 + 8 rows with answers of three lengths, so that no two micro-batches need have as many labels."""
    animals = ["cat", "dog", "owl", "fox", "bee", "ant"]
    rows = [Example(f"row {i}: {animals[i % 6]}?", f"a {animals[i % 6]}." * (1 + 4 * (i % 3))) for i in range(34)]
    return Task("toy", tuple(rows[:24]), tuple(rows[24:32]), tuple(rows[32:]), kind="text", metric="bleu")


def settings() -> ji.TrainConfig:
    """Gates that stop training on the way, and a λ that follows the loss."""
    return dataclasses.replace(ji.PRESETS["selective"].train, penalty_schedule="performance", wrapper="plain")


def told(name: str) -> dict[str, Any]:
    """For the Trainer. Gradients are not clipped: a factor on all of them would not show."""
    processes, more = int(os.environ.get("WORLD_SIZE", "1")), TRAININGS[name]
    each = ROWS // processes // more.get("gradient_accumulation_steps", 1)
    given: dict[str, Any] = {"per_device_train_batch_size": each, "max_grad_norm": 0.0, "ddp_timeout": 60}
    given |= {"per_device_eval_batch_size": 24 // processes, "eval_strategy": "steps", "eval_steps": STEPS // 2}
    return given | more


def train(folder: Path, name: str) -> None:
    """Leave ``<name>-<rank>.safetensors``, ``<name>-<rank>.json`` and, from ``save``, ``<name>-run-<rank>``."""
    rank, toy = int(os.environ.get("RANK", "0")), task()
    (tokens := folder / f"tokenizer-{rank}").mkdir(parents=True, exist_ok=True)
    model = ji.load_model(build_hf("llama"), tokenizer=byte_tokenizer(tokens))
    edited = EditedModel(model, config=settings())
    keeper, rows = Keeper(edited), rows_of(model, toy, settings())
    Trainer(
        edited,
        arguments(folder / "trainer", **told(name)),
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=collate,
        optimizers=edited.optimizers(),
        callbacks=[GateCallback(edited), keeper],
    ).train()
    calls = {f"{layer}": count for (_, layer, _), count in edited.attached.calls.items()}
    notes: dict[str, Any] = {"rows": edited.rows, "forwards": edited.attached.forwards, "calls": calls}
    run = edited.save(folder / f"{name}-run-{rank}", toy, wrapper="plain")
    parts = {"edit": edited.edit.tensors(), "run": run.edit.tensors(), "history": run.gates.tensors()}
    found = {f"{part}.{key}": value for part, tensors in parts.items() for key, value in tensors.items()}
    _files.write_tensors(folder / f"{name}-{rank}.safetensors", {**keeper.kept, **found})
    notes["train"] = run.config["train"]
    _files.write_json(folder / f"{name}-{rank}.json", notes)


def main() -> None:
    for name in TRAININGS:
        train(Path(sys.argv[1]), name)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
