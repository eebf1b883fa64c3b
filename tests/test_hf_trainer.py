"""Under Hugging Face's Trainer an edit takes the steps that it takes under fit, and checkpoints hold nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

import jola_interp as ji
from jola_interp.batching import encode_examples
from jola_interp.hf_trainer import IGNORED, EditedModel, GateCallback
from jola_interp.tasks import Task

MakeModel = Callable[..., ji.Model]
STEPS = 6
SETTINGS = ji.PRESETS["selective"].train


def config(**fields: Any) -> ji.TrainConfig:
    """``selective``, the toy task's rows in one batch, no early stop."""
    return ji.config.resolve(SETTINGS, "selective", {"max_steps": STEPS, "epochs": STEPS, "batch_size": 24, **fields})  # type: ignore[attr-defined]


def rows_of(model: ji.Model, task: Task, settings: ji.TrainConfig) -> list[dict[str, list[int]]]:
    """What a user's own code would make of the task: ids, and labels that leave the prompt out."""
    found = encode_examples(
        task.train, model.tokenizer, wrapper=settings.wrapper, max_length=settings.max_length, eos=settings.eos,
        template="{answer}",
    )  # fmt: skip
    return [
        {"input_ids": list(row.ids), "labels": [IGNORED] * row.n_prompt + list(row.ids[row.n_prompt :])}
        for row in found
    ]


def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Padded on the right, as the Trainer's users do it."""
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(name: str, value: int) -> torch.Tensor:
        return torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in rows])

    ids = padded("input_ids", 256)
    return {"input_ids": ids, "attention_mask": (ids != 256).long(), "labels": padded("labels", IGNORED)}


def arguments(folder: Path, **fields: Any) -> TrainingArguments:
    given: dict[str, Any] = {"max_steps": STEPS, "per_device_train_batch_size": 24, "max_grad_norm": SETTINGS.clip}
    given |= {"use_cpu": True, "report_to": [], "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True}
    return TrainingArguments(output_dir=str(folder), **{**given, **fields})


def trained(model: ji.Model, task: Task, folder: Path, **fields: Any) -> tuple[EditedModel, Trainer]:
    settings = config()
    edited = EditedModel(model, config=settings)
    rows = rows_of(model, task, settings)
    trainer = Trainer(
        edited,
        arguments(folder, **fields),
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=collate,
        optimizers=edited.optimizers(STEPS),
        callbacks=[GateCallback(edited)],
    )
    trainer.train()
    return edited, trainer


def test_it_takes_the_steps_of_fit(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    settings = config(patience=None, restore_best=False)
    run = ji.fit(make_model(), toy_task, "jola", settings, backend="hooks", out=tmp_path / "fit", evaluate=False)
    edited, _ = trained(make_model(), toy_task, tmp_path / "trainer")
    mine, theirs = edited.edit.tensors(), run.edit.tensors()
    moved = {name: (theirs[name] - start).abs().max() for name, start in _start(run).items()}
    for name in moved:
        assert moved[name] > 0
        assert (mine[name] - theirs[name]).abs().max() <= 1e-5 * moved[name], name


def _start(run: ji.Run) -> dict[str, torch.Tensor]:
    """What both begin with."""
    edit = ji.JoLA(run.edit.shape, **ji.PRESETS["selective"].edit)
    edit.initialise(ji.optimisation.streams(42)[0])  # type: ignore[attr-defined]
    return {name: tensor for name, tensor in edit.tensors().items() if not name.startswith("mask")}


def test_the_history_holds_every_step_and_ends_with_the_edit(
    make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    edited, trainer = trained(make_model(), toy_task, tmp_path)
    assert edited.history.steps.tolist() == list(range(STEPS + 1))
    for (site, kind), value in edited.edit.log_alphas().items():
        assert torch.equal(torch.from_numpy(edited.history.at(STEPS, site)[kind]), value.detach())
    logged = [row for row in trainer.state.log_history if "grad_norm" in row]
    assert len(logged) == STEPS and all({"lambda_additive", "open_additive", "ce"} <= row.keys() for row in logged)


def test_only_the_edit_trains_and_only_the_edit_is_kept(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.hf.state_dict().items()}
    edited, _ = trained(model, toy_task, tmp_path, save_strategy="steps", save_steps=STEPS)
    kept = load_file(tmp_path / f"checkpoint-{STEPS}" / "model.safetensors")
    assert set(kept) == {f"edit.{name}" for name in edited.edit.state_dict()}
    assert all(torch.equal(value, before[name]) for name, value in model.hf.state_dict().items())


def test_what_was_trained_is_a_run(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    model = make_model()
    edited, _ = trained(model, toy_task, tmp_path / "trainer", eval_strategy="steps", eval_steps=3)
    edited.close()
    run = edited.save(tmp_path / "run", toy_task)
    assert all(torch.equal(value, edited.edit.tensors()[name]) for name, value in run.edit.tensors().items())
    assert run.metrics["validation_ce"].notna().sum() == 2
    assert ji.report(run).exists() and ji.evaluate(run, toy_task, model)["n"] == len(toy_task.test)
    with pytest.raises(FileExistsError, match="is not empty"):
        edited.save(tmp_path / "run", toy_task)


def test_evaluation_uses_the_inference_gates_and_no_penalty(make_model: MakeModel, toy_task: Task) -> None:
    model = make_model()
    with EditedModel(model, config=config()) as edited:
        batch = collate(rows_of(model, toy_task, config()))
        edited.train()
        edited.begin_step(0)
        drawn = edited(**batch).loss
        edited.eval()
        with torch.no_grad():
            first, second = edited(**batch).loss, edited(**batch).loss
    assert torch.equal(first, second) and drawn > first


def test_closing_leaves_the_model_as_it_was(make_model: MakeModel) -> None:
    model = make_model()
    hooks = [len(module._forward_pre_hooks) for module in model.hf.modules()]
    with EditedModel(model):
        assert [len(module._forward_pre_hooks) for module in model.hf.modules()] != hooks
    assert [len(module._forward_pre_hooks) for module in model.hf.modules()] == hooks


def test_micro_batches_share_the_gates_of_a_step(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    whole, _ = trained(make_model(), toy_task, tmp_path / "whole")
    parts, _ = trained(
        make_model(), toy_task, tmp_path / "parts", per_device_train_batch_size=6, gradient_accumulation_steps=4
    )
    # Rows are as long as each other, so that the mean of means is the mean.
    assert parts.history.steps.tolist() == whole.history.steps.tolist()
    assert [row["penalty"] for row in parts.rows][:1] == [row["penalty"] for row in whole.rows][:1]


def test_a_budget_is_refused(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match="target_heads must be None under a Trainer"):
        EditedModel(make_model(), config=config(target_heads=4))
