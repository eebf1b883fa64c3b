"""Under Hugging Face's Trainer an edit takes the steps that it takes under fit, and checkpoints hold nothing else."""

from __future__ import annotations

import dataclasses
import doctest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

import jola_interp as ji
from jola_interp import hf_trainer
from jola_interp.activations import unit_rms
from jola_interp.batching import encode_examples
from jola_interp.hf_trainer import IGNORED, EditedModel, GateCallback
from jola_interp.tasks import Task

MakeModel = Callable[..., ji.Model]
STEPS = 6
SETTINGS = ji.PRESETS["selective"].train
TOLERANCE = 1e-5
"""Share of the way by which sums in another order (of rows, of micro-batches) may differ; measured: 1e-6."""


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


def prepared(
    model: ji.Model, task: Task, folder: Path, n_steps: int | None = None, **fields: Any
) -> tuple[EditedModel, Trainer]:
    settings = config()
    edited = EditedModel(model, config=settings)
    rows = rows_of(model, task, settings)
    trainer = Trainer(
        edited,
        arguments(folder, **fields),
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=collate,
        optimizers=edited.optimizers(n_steps),
        callbacks=[GateCallback(edited)],
    )
    return edited, trainer


def trained(model: ji.Model, task: Task, folder: Path, **fields: Any) -> tuple[EditedModel, Trainer]:
    edited, trainer = prepared(model, task, folder, **fields)
    trainer.train()
    return edited, trainer


def assert_took_the_same_steps(edited: EditedModel, edit: ji.JoLA) -> None:
    """Every tensor within ``TOLERANCE`` of the largest that any of its numbers has moved."""
    mine, theirs = edited.edit.tensors(), edit.tensors()
    for name, start in _start(edit).items():
        moved = (theirs[name] - start).abs().max()
        assert moved > 0
        assert (mine[name] - theirs[name]).abs().max() <= TOLERANCE * moved, name


@pytest.mark.parametrize("n_steps", [STEPS, None])
def test_it_takes_the_steps_of_fit(make_model: MakeModel, toy_task: Task, tmp_path: Path, n_steps: int | None) -> None:
    settings = config(patience=None, restore_best=False)
    run = ji.fit(make_model(), toy_task, "jola", settings, backend="hooks", out=tmp_path / "fit", evaluate=False)
    length: Any = {} if n_steps else {"max_steps": -1, "num_train_epochs": STEPS}
    edited, trainer = prepared(make_model(), toy_task, tmp_path / "trainer", n_steps, **length)
    trainer.train()
    assert_took_the_same_steps(edited, run.edit)
    rates = run.metrics["gate_lr"].dropna().tolist()
    assert [row["gate_lr"] for row in edited.rows] == pytest.approx(rates) and max(rates) > 0


def test_accumulation_takes_the_steps_of_fit_where_answers_differ_in_length(
    make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    """A micro-batch counts by its labels, and the penalty once."""
    uneven = [dataclasses.replace(row, answer=row.answer * (1 + 4 * (i % 3))) for i, row in enumerate(toy_task.train)]
    task = dataclasses.replace(toy_task, train=tuple(uneven))
    settings = config(patience=None, restore_best=False, batch_size=6, accumulation=4)
    run = ji.fit(make_model(), task, "jola", settings, backend="hooks", out=tmp_path / "fit", evaluate=False)
    edited, _ = trained(
        make_model(), task, tmp_path / "trainer", per_device_train_batch_size=6, gradient_accumulation_steps=4
    )
    assert_took_the_same_steps(edited, run.edit)
    for name in ("ce", "penalty", "loss"):
        assert [row[name] for row in edited.rows] == pytest.approx(run.metrics[name].dropna().tolist(), rel=1e-4)


def _start(trained_edit: ji.JoLA) -> dict[str, torch.Tensor]:
    """What both begin with."""
    edit = ji.JoLA(trained_edit.shape, **ji.PRESETS["selective"].edit)
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
    parts, trainer = prepared(
        make_model(), toy_task, tmp_path / "parts", per_device_train_batch_size=6, gradient_accumulation_steps=4
    )
    draws, draw = [], parts.attached.draw
    parts.attached.draw = lambda generator: (draws.append(len(parts.rows)), draw(generator))[1]  # type: ignore
    trainer.train()
    assert draws == list(range(parts.gate_steps)) and 1 < parts.gate_steps < STEPS
    assert parts.attached.forwards == 4 * whole.attached.forwards
    assert_took_the_same_steps(parts, whole.edit)  # type: ignore[arg-type]


def test_without_a_number_of_steps_there_is_no_schedule(make_model: MakeModel) -> None:
    edited = EditedModel(make_model(), config=config())
    for n_steps in (-1, 0):
        with pytest.raises(ValueError, match=f"n_steps must be at least 1.*got {n_steps}"):
            edited.optimizers(n_steps)


def test_units_are_to_be_set_before(make_model: MakeModel, toy_task: Task) -> None:
    model = make_model()
    edit = ji.JoLA(model.head_shape, units="rms")
    with pytest.raises(ValueError, match=r"units of this edit are not known.*set_units"):
        EditedModel(model, edit)
    rows = encode_examples(toy_task.train, model.tokenizer)  # type: ignore[arg-type]
    edit.set_units(unit_rms(model, rows, backend="hooks"))
    with EditedModel(model, edit) as edited:
        assert torch.equal(edited.edit.site("heads").unit, edit.site("heads").unit)  # type: ignore[operator]


def test_training_without_the_callback_raises(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    model = make_model()
    with EditedModel(model, config=config()) as edited:
        rows = rows_of(model, toy_task, config())
        given: Any = {"train_dataset": rows, "data_collator": collate, "optimizers": edited.optimizers(STEPS)}
        with pytest.raises(RuntimeError, match="no gates were drawn for this step"):
            Trainer(edited, arguments(tmp_path), **given).train()
        edited.begin_step(0)
        edited(**collate(rows)).loss.backward()
        edited.end_step(1)
        with pytest.raises(RuntimeError, match="no gates were drawn for this step"):
            edited(**collate(rows))


def test_the_run_says_what_was_done(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    """Of the Trainer, what it was told; of the rows, what ``save`` is told; of the gates, what is measured."""
    done: Any = {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 2, "max_grad_norm": 0.0}
    edited, _ = trained(make_model(), toy_task, tmp_path / "out", max_steps=-1, num_train_epochs=3, **done)
    run = edited.save(tmp_path / "run", toy_task, wrapper="plain", max_length=99)
    told = {name: run.config["train"][name] for name in ("batch_size", "accumulation", "epochs", "max_steps", "clip")}
    assert told == {"batch_size": 6, "accumulation": 2, "epochs": 3, "max_steps": None, "clip": None}
    assert run.config["train"]["wrapper"] == "plain" and run.config["train"]["max_length"] == 99
    assert run.config["progress"]["epochs"] == 3 and run.metrics["epoch"].tolist() == [0, 0, 1, 1, 2, 2]
    assert run.convergence is not None and run.convergence.rows == len(toy_task.validation)
    assert run.convergence.sum_gate_lr == pytest.approx(run.metrics["gate_lr"].sum()) and "gate_lr" in run.metrics
    assert edited.attached.edits == (edited.edit,)  # and it is still live
    with pytest.raises(ValueError, match="unknown training field wrapping"):
        edited.save(tmp_path / "other", toy_task, wrapping="plain")


def test_the_history_ends_with_the_edit_that_the_trainer_went_back_to(
    make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    """``greater_is_better`` makes it the first of two, the worse."""
    back: Any = {"eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 3}
    back |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    edited, trainer = trained(make_model(), toy_task, tmp_path / "out", **back)
    assert trainer.state.best_model_checkpoint.endswith("-3")  # type: ignore[union-attr]
    third = edited.history.at(3)["additive"]
    assert (edited.history.at(STEPS)["additive"] != third).any()
    run = edited.save(tmp_path / "run", toy_task)
    assert (run.gates.at()["additive"] == third).all() and run.gates.steps.tolist() == list(range(STEPS + 1))
    assert (run.log_alphas()["additive"] == third).all() and not run.config["train"]["restore_best"]


def test_the_documented_example_runs(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    assert hf_trainer.__doc__ is not None
    model = make_model()
    known: Any = {"ji": ji, "Trainer": Trainer, "EditedModel": EditedModel, "GateCallback": GateCallback}
    known |= {"name": model, "args": arguments(tmp_path / "out"), "rows": rows_of(model, toy_task, config())}
    known |= {"collate": collate, "path": tmp_path / "run", "task": toy_task}
    steps = doctest.DocTestParser().get_examples(hf_trainer.__doc__)
    exec("".join(step.source for step in steps), known)
    assert known["opens"].shape == (STEPS + 1, 2, 4) and known["run"].path == tmp_path / "run"


def test_a_budget_is_refused(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match="target_heads must be None under a Trainer"):
        EditedModel(make_model(), config=config(target_heads=4))
