"""``fit``: train an edit on a task with the base model frozen, and leave a Run on disk."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from jola_interp import _files, budget, checkpoint, convergence
from jola_interp._log import logger
from jola_interp._version import __version__
from jola_interp.activations import unit_rms
from jola_interp.backends import BACKENDS, BackendName, attach, require_unedited
from jola_interp.batching import Encoded, batches_of, collate, encode_examples, pad_id
from jola_interp.callbacks import Callback, LiveMap, Logger, TrainingState
from jola_interp.checkpoint import Progress, Snapshot
from jola_interp.config import DEFAULT_PRESET, PRESETS, TrainConfig, resolve
from jola_interp.edits.base import Edit, Site
from jola_interp.edits.composite import Composite
from jola_interp.edits.jola import JoLA
from jola_interp.evaluation.evaluator import evaluate
from jola_interp.history import GateHistory
from jola_interp.memory import PeakMemory
from jola_interp.methods.registry import methods
from jola_interp.methods.setup import Setup
from jola_interp.methods.table import Method
from jola_interp.models import Model, load_model, plain
from jola_interp.objective import AnswerTargets, TeacherTargets
from jola_interp.optimisation import make_objective, make_optimizer, rate_factors, streams
from jola_interp.runs import (
    FORMAT,
    Run,
    clear_run,
    clear_scores,
    edit_digest,
    edit_settings,
    read_config,
    require_replaceable,
    write_run,
)
from jola_interp.tasks import Example, Task, load_task

if TYPE_CHECKING:
    from transformer_lens import TransformerBridge
    from transformers import PreTrainedModel

_OCCUPIED = "out: there is a Run at {}; pass resume=True to go on, or overwrite=True"


class TrainingDivergedError(RuntimeError):
    """The loss or its gradient was not finite; the last good state is on disk.

    Attributes:
        step: the optimiser step that failed.
        rows: indices of its training rows.
        path: the Run with the state before that step.
    """

    def __init__(self, what: str, step: int, rows: Sequence[int], path: Path | None = None):
        self.what, self.step, self.rows, self.path = what, step, tuple(rows), path
        kept = f"; the state before it is kept in {path}" if path else ""
        split = "validation" if what.startswith("validation") else "training"
        super().__init__(f"the {what} of step {step} is not finite ({split} rows {list(rows)}){kept}")


def fit(
    model: str | Path | Model | PreTrainedModel | TransformerBridge,
    task: str | Path | Task,
    edit: str | Edit | Method = "jola",
    config: TrainConfig | None = None,
    *,
    preset: str = DEFAULT_PRESET,
    backend: BackendName = "lens",
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    live: bool = False,
    teacher: Edit | None = None,
    loggers: Iterable[Logger] = (),
    callbacks: Iterable[Callback] = (),
    **overrides: Any,
) -> Run:
    """Train an edit and return the Run that it left on disk.

    Ctrl-C keeps what there is: the Run returned has the status ``interrupted``, and ``resume=True`` goes on to the same
    bytes as if nothing had happened. The caller's random state, model weights, edit and configuration are not touched.

    Args:
        model: a name, a path, a loaded model or a :class:`Model` (see :func:`load_model`).
        task: a name, a folder of JSONL files, or a :class:`Task`.
        edit: a name out of :func:`methods`; a method with options of its own (:func:`method`); or an edit, which is
            copied, and given starting values unless it has some. An edit of your own keeps its own inference gate and
            starting log α; a name takes the preset's. Methods that act on weights (LoRA, full fine-tuning) train on a
            plain model, loaded anew where this one has been booted, whatever ``backend`` says.
        config: training fields; None takes the preset's, with those of the method.
        preset: ``selective`` (gates that decide), ``paper`` or ``reference``.
        backend: ``lens`` (TransformerLens), ``hooks`` (plain PyTorch hooks, SDPA attention) or ``nnsight``.
        out: the Run's directory; None is ``runs/<task>/<edit>-s<seed>-<hash of all settings>``.
        resume: go on from the checkpoint in ``out``; a finished Run there is simply returned.
        overwrite: replace a Run in ``out``.
        live: in Jupyter, show a heads map that updates while training.
        teacher: train on what this edit of the same model makes it say, not on the answers' own tokens: the loss is
            KL(teacher ‖ edited) at the answer positions. Its log-probabilities of all training and validation rows
            are kept on the model's device in float32: 4 bytes × answer tokens × vocabulary.
        loggers: anything with ``log(step, dict)``.
        callbacks: see :class:`Callback`.
        **overrides: single fields of the configuration, such as ``epochs=5``.

    Raises:
        ValueError: a field, name or row that cannot be used, before any training.
        FileExistsError: a Run in ``out``, and neither ``resume`` nor ``overwrite``.
        KeyboardInterrupt: a method that trains in stages was interrupted in one of them; ``resume=True`` goes on.
        TrainingDivergedError: a loss or gradient that is not finite; the state before it is kept.
    """
    _require_one_process()
    method = _method_of(edit)
    fields = method.fields(own=config is not None) if method else {}
    settings = resolve(config, preset, {**fields, **overrides})
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got {backend!r}")
    if resume and overwrite:
        raise ValueError("resume and overwrite contradict each other: pass one of them")
    data = task if isinstance(task, Task) else load_task(task)
    base = load_model(model)
    if (method or edit).on_weights:  # type: ignore[union-attr]
        base, backend = plain(base), "hooks"
    untrained = method.make(base, PRESETS[preset].edit) if method else copy.deepcopy(cast(Edit, edit))
    plan = _Plan(base, data, untrained, settings, preset, backend, teacher, method)
    folder = Path(out) if out is not None else plan.default_folder()
    require_replaceable(folder)
    run = _finished(plan, folder) if resume else None
    if run is None:
        plan = _prepared(plan, folder, resume, overwrite)
        run = _existing(folder, plan, resume, overwrite)
    if run is None:
        watchers = [*callbacks, LiveMap()] if live else list(callbacks)
        run = _Trainer(plan, folder, list(loggers), watchers).run(resume)
    if run.status == "finished" and settings.evaluate and data.test and not run.scores:
        _score(run, data, base)
    return run


def _require_one_process() -> None:
    """Under ``torchrun`` or ``accelerate launch`` every process would train the same Run, in the same folder."""
    found = os.environ.get("WORLD_SIZE", "1")
    if found.isdigit() and int(found) > 1:
        raise ValueError(
            f"WORLD_SIZE must be 1 (or unset) for fit, got {found}: it trains in one process. For data-parallel "
            "training see jola_interp.hf_trainer; to train one Run in each process, unset it in their environment"
        )


def _require_gradients(model: Model) -> None:
    """bitsandbytes has no backward pass through 4-bit weights on a CPU, where PyTorch goes on with wrong gradients."""
    for name, module in model.hf.named_modules():
        if type(module).__name__ == "Linear4bit" and module.weight.device.type == "cpu":
            raise ValueError(
                f"{model.name}: {name} holds 4-bit weights on the CPU, through which bitsandbytes gives no gradients: "
                "train on a GPU, or load it in 8 bits; applying a trained edit works"
            )


def _score(run: Run, task: Task, model: Model) -> None:
    try:
        evaluate(run, task, model)
    except KeyboardInterrupt:
        logger.warning("evaluation interrupted: the Run has no scores; ji.evaluate(run, task) makes them")


def _method_of(edit: str | Edit | Method) -> Method | None:
    """The method that is meant; None for an edit of one's own."""
    if isinstance(edit, Edit | Method):
        return edit if isinstance(edit, Method) else None
    if edit not in (known := methods()):
        raise ValueError(f"edit must be an Edit, a method or one of {', '.join(known)}; got {edit!r}")
    return known[edit]


def _prepared(plan: _Plan, folder: Path, resume: bool, overwrite: bool) -> _Plan:
    """The plan with the edit that its method chooses or measures first; most methods have nothing to prepare."""
    method = plan.method
    if method is None or method.prepare is None:
        return plan
    if plan.teacher is not None:
        raise ValueError(f"teacher: {method.name} chooses by the answers' own tokens; hand in the edit it would train")
    if (folder / "config.json").exists() and not (resume or overwrite):
        raise FileExistsError(_OCCUPIED.format(folder))
    if overwrite:  # what stands there is gone from here on, and resume=True goes on with the new
        clear_run(folder)
    setup = Setup(plan.model, plan.task, plan.settings, plan.backend, folder, fit, plan.preset)
    edit = method.ready(setup)
    settings = dataclasses.replace(plan.settings, **setup.fields)
    before = {name: plan.settings.to_dict()[name] for name in setup.fields}
    return _Plan(plan.model, plan.task, edit, settings, plan.preset, plan.backend, plan.teacher, method, before)


def _finished(plan: _Plan, folder: Path) -> Run | None:
    """The finished Run of a method that prepares, made with the same settings: nothing is chosen or measured again."""
    method, file = plan.method, folder / "config.json"
    if method is None or method.prepare is None or not file.exists():
        return None
    if (folder / "checkpoint" / checkpoint.FILE).exists():
        return None
    found, expected = read_config(file), plan.description()
    record = found["method"] or {}
    found["train"] = {**found["train"], **record.get("before", {})}
    same = {name: record.get(name) for name in ("name", "options")} == method.record()
    alike = all(found[section] == expected[section] for section in ("preset", "backend", "model", "task", "train"))
    return Run.load(folder, plan.model) if same and alike and found["status"] == "finished" else None


class _Plan:
    """What is to be trained on what: everything that decides the outcome, and its hash."""

    def __init__(
        self,
        model: Model,
        task: Task,
        edit: Edit,
        settings: TrainConfig,
        preset_name: str,
        backend: BackendName,
        teacher: Edit | None = None,
        method: Method | None = None,
        before: Mapping[str, Any] | None = None,
    ):
        if model.tokenizer is None:
            raise ValueError("the model has no tokenizer: load_model(model, tokenizer=...)")
        if edit.shape != model.head_shape:
            raise ValueError(f"the edit is made for {edit.shape}, {model.name} has {model.head_shape}")
        self.heads = budget.heads_to_keep(edit, settings.target_heads)
        for split in ("train", "validation"):
            if not getattr(task, split):
                raise ValueError(f"task {task.name!r}: the {split} split is empty")
        self.model, self.task, self.edit, self.settings = model, task, edit, settings
        self.preset, self.backend, self.teacher, self.method = preset_name, backend, teacher, method
        self.before = dict(before or {})  # training fields that the method changed, as they were
        BACKENDS[backend].ready(model)
        require_unedited(model, "fit")
        _require_gradients(model)
        self.train = self._encode(task.train)
        self.validation = self._encode(task.validation)
        # What cannot be encoded should be known now, not after training.
        test = self._encode(task.test) if settings.evaluate else []
        encoded = {"train": self.train, "validation": self.validation, "test": test}
        self.cut = {split: sum(row.cut for row in rows) for split, rows in encoded.items()}
        self.steps_per_epoch = math.ceil(math.ceil(len(self.train) / settings.batch_size) / settings.accumulation)
        groups = edit.parameter_groups()
        steps = min(settings.max_steps or math.inf, settings.epochs * self.steps_per_epoch).__int__()
        self.n_steps = steps if groups else 0
        self.gate_steps = settings.gate_steps(self.n_steps) if "gates" in groups else 0
        if isinstance(edit, JoLA) and not edit.units_known:
            edit.set_units(unit_rms(model, self.train, list(edit.sites), backend))  # type: ignore[arg-type]
        known = edit.initialised or isinstance(edit, Composite)  # some of whose parts may be
        self.starting_tensors = edit_digest(edit) if known else "drawn"

    def _encode(self, rows: Sequence[Example]) -> list[Encoded]:
        settings = self.settings
        return encode_examples(
            rows,
            self.model.tokenizer,  # type: ignore[arg-type]
            wrapper=settings.wrapper,
            max_length=settings.max_length,
            eos=settings.eos,
            template=self.task.template if settings.answers == "worded" else "{answer}",
        )

    def description(self) -> dict[str, Any]:
        """``config.json`` but for status and progress."""
        return describe(
            self.model, self.task, self.edit, self.settings, self.preset, self.backend, self.cut, self.teacher
        )

    @property
    def identity(self) -> str:
        """SHA-256 over the description and the edit's mask and starting values."""
        masks = {site: mask.tolist() for site, mask in self.edit.masks().items()}
        content = {**self.description(), "masks": masks, "start": self.starting_tensors}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def default_folder(self) -> Path:
        name, digest = self.edit.type_name, self.identity
        if self.method is not None:
            name = self.method.name
            if self.method.prepare is not None:  # what it will choose is not known yet; its options decide
                record = json.dumps([digest, self.method.record()], sort_keys=True)
                digest = hashlib.sha256(record.encode()).hexdigest()
        return Path("runs") / self.task.name / f"{name}-s{self.settings.seed}-{digest[:8]}"


def describe(
    model: Model, task: Task, edit: Edit, settings: TrainConfig, preset: str, backend: str,
    cut: Mapping[str, int] | None = None, teacher: Edit | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What ``config.json`` says of a training's model, rows, edit and settings; ``cut``: rows that lost their start."""
    return {
        "format": FORMAT,
        "jola_interp": __version__,
        "preset": preset,
        "backend": backend,
        "model": {**model.identity(), "source": model.source if model.source == model.name else None},
        "task": {
            "name": task.name,
            "kind": task.kind,
            "metric": task.metric,
            "sizes": task.sizes,
            "fingerprint": task.fingerprint,
            "source": task.source,
            "seed": task.seed,
            "cut": dict(cut or {}),
            "teacher": None if teacher is None else edit_digest(teacher),
        },
        "edit": edit_settings(edit),
        "train": settings.to_dict(),
    }


def _existing(folder: Path, plan: _Plan, resume: bool, overwrite: bool) -> Run | None:
    """Check that ``folder`` can be trained in; a finished Run of the same plan is returned when resuming."""
    config = folder / "config.json"
    begun = (folder / "checkpoint" / checkpoint.FILE).exists()
    if overwrite or not (config.exists() or begun):
        return None
    if not resume:
        raise FileExistsError(_OCCUPIED.format(folder))
    if begun:
        checkpoint.read(folder / "checkpoint", plan.identity)  # refuses another training's
        return None
    _require_same_plan(folder, read_config(config), plan)
    return Run.load(folder, plan.model)


def _require_same_plan(folder: Path, recorded: dict[str, Any], plan: _Plan) -> None:
    expected = {**plan.description(), "status": "finished", "identity": plan.identity}
    for field in (*sorted(expected.keys() - {"identity", "jola_interp"}), "identity"):
        if recorded[field] != expected[field]:
            raise ValueError(
                f"resume: the Run at {folder} has another {field}: {recorded[field]}, now {expected[field]}"
            )


class _Trainer:
    """One training: the loop, what it logs, and its state between steps."""

    def __init__(self, plan: _Plan, folder: Path, loggers: list[Logger], callbacks: list[Callback]):
        self.plan, self.folder, self.settings = plan, folder, plan.settings
        self.model, self.edit = plan.model, plan.edit
        self.loggers, self.callbacks = loggers, callbacks
        start, gates, data = streams(self.settings.seed)
        if not self.edit.initialised:
            self.edit.initialise(start)
        self.edit.to(self.model.device)
        self.gates_rng, self.data_rng = gates, data
        self.epoch_rng = data.get_state()
        self.optimizer = make_optimizer(self.edit, self.settings)
        self.objective = make_objective(self.edit, self.settings, plan.n_steps, plan.gate_steps, plan.heads)
        self.progress = Progress()
        self.best: dict[str, torch.Tensor] = {}
        self.rows: list[dict[str, Any]] = []
        self.history = self._history()
        self.view = TrainingState(0, plan.n_steps, 0, self.edit, self.history, self.settings, {})
        self.boundary = self._capture()

    # -- the loop --------------------------------------------------------------------------------------------------

    def run(self, resume: bool) -> Run:
        """Train from the start or the checkpoint and write the Run."""
        if resume:
            clear_scores(self.folder)  # they are of the edit as it stood when it was interrupted
            with suppress(FileNotFoundError):
                self._restore(checkpoint.read(self.folder / "checkpoint", self.plan.identity))
        else:
            prepared = self.plan.method is not None and self.plan.method.prepare is not None
            clear_run(self.folder, stages=not prepared)
        started, self.begun_at, self.memory = time.perf_counter(), self.progress.step, PeakMemory(self.model.device)
        status = "finished"
        self.targets = self._targets()
        with self._attach() as attached, self._bar() as bar:
            self.attached, self.bar = attached, bar
            try:
                self._loop()
            except KeyboardInterrupt:
                status = "interrupted"
                self._restore(self.boundary)
                self._write_checkpoint()
            except TrainingDivergedError as error:
                self._restore(self.boundary)
                self._write_checkpoint()
                self._write("diverged", time.perf_counter() - started)
                raise TrainingDivergedError(error.what, error.step, error.rows, self.folder) from error
        return self._write(status, time.perf_counter() - started)

    def _loop(self) -> None:
        if self.progress.step == 0:
            self.history.record(0, self.edit.log_alphas())
        self._call("on_start")
        while self.progress.stopped is None:
            self._epoch()
        self._call("on_end")

    def _epoch(self) -> None:
        """The rest of the current epoch, then a validation."""
        groups = self._groups()
        for group in groups[self.progress.batch :]:
            if self.progress.stopping or self.progress.step >= self.plan.n_steps:
                break
            self._step(group)
            every = self.settings.checkpoint_every
            if every and self.progress.step % every == 0:
                self._write_checkpoint()
        if self.progress.stopping and not self._gates_fixed:
            self._keep_to_budget(last=True)
        self._validate()
        self.progress.epoch += 1
        self.progress.batch = 0
        self.progress.stopped = self._reason_to_stop()
        self.epoch_rng = self.data_rng.get_state()
        self.boundary = self._capture()
        self._write_checkpoint()
        self._call("on_epoch")

    def _groups(self) -> list[list[list[Encoded]]]:
        """This epoch's optimiser steps: lists of micro-batches."""
        lengths = [len(row.ids) for row in self.plan.train]
        settings = self.settings
        rows = batches_of(lengths, settings.batch_size, self.data_rng, settings.bucketed)
        batches = [[self.plan.train[row] for row in batch] for batch in rows]
        return [batches[i : i + settings.accumulation] for i in range(0, len(batches), settings.accumulation)]

    def _step(self, group: list[list[Encoded]]) -> None:
        """One optimiser step: one draw of the gates, shared by the micro-batches of ``group``."""
        rates = self._set_learning_rates()
        self.optimizer.zero_grad(set_to_none=True)
        fixed = self._gates_fixed
        if fixed:
            self.attached.clear()
        else:
            self.attached.draw(self.gates_rng)
        ce = self._backward(group)
        steered = self._steer()
        penalty_term = self.objective.penalty(self.edit)
        weights = self.objective.weights()
        if penalty_term.requires_grad:
            penalty_term.backward()
        if fixed:
            self._hold_gates()
        penalty = penalty_term.item()
        norm = self._clip(group)
        self.optimizer.step()
        self.objective.tick(ce + penalty)
        self.progress.step += 1
        self.progress.batch += 1
        if not fixed:
            self._keep_to_budget(last=self._gates_fixed)
        scalars = {"ce": ce, "penalty": penalty, "loss": ce + penalty, "grad_norm": norm, **rates, **steered}
        scalars |= {f"lambda_{kind}": weights[kind] for _, kind in self.history.keys}
        self._after_step(scalars)

    @property
    def _gates_fixed(self) -> bool:
        """Whether gates no longer train: each stands at its inference gate."""
        return self.progress.step >= self.plan.gate_steps

    def _hold_gates(self) -> None:
        """Without a gradient AdamW leaves a parameter, and its moments, alone."""
        for parameter in self.edit.parameter_groups().get("gates", []):
            parameter.grad = None

    def _steer(self) -> dict[str, float]:
        """Under a budget, let λ see how many heads are open; the target and that number, for the log."""
        steering = self.objective.schedule
        if not isinstance(steering, budget.HeadBudget):
            return {}
        count = float(budget.smooth_heads(cast(JoLA, self.edit).site("heads")).sum())
        target = steering.target if self._gates_fixed else steering.observe(count)
        return {"target_heads": target, "smooth_heads": count}

    def _keep_to_budget(self, last: bool) -> None:
        """Under a budget, keep gates within reach of λ; with the last step that they train in comes the cut to K."""
        if self.plan.heads is None:
            return
        edit = cast(JoLA, self.edit)
        if last:
            budget.cut(edit.site("heads"), self.plan.heads, edit.inference)
        else:
            budget.hold(edit.site("heads"))

    def _backward(self, group: list[list[Encoded]]) -> float:
        """Mean cross-entropy over the answer tokens of all micro-batches, with its gradient accumulated."""
        pad = pad_id(self._tokenizer)
        total = sum(row.n_answer for rows in group for row in rows)
        mean = 0.0
        for rows in group:
            batch = collate(rows, pad, self.model.device)
            loss = self.targets.loss(self.model, batch) / total
            self._require_finite("loss", loss.item(), group)
            loss.backward()
            mean += loss.item()
        return mean

    def _clip(self, group: list[list[Encoded]]) -> float:
        """Clip the gradient of all parameters together; returns its norm before."""
        parameters = [p for p in self.edit.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.settings.clip or math.inf))
        self._require_finite("gradient", norm, group)
        return norm

    def _require_finite(self, what: str, value: float, group: list[list[Encoded]]) -> None:
        if not math.isfinite(value):
            raise TrainingDivergedError(what, self.progress.step + 1, [row.row for rows in group for row in rows])

    def _after_step(self, scalars: dict[str, float]) -> None:
        step = self.progress.step
        opened = {f"open_{kind}": float(value) for kind, value in self._expected_open().items()}
        scalars |= opened
        self._log({"step": step, "epoch": self.progress.epoch, **scalars})
        if step % self.settings.log_every == 0 or step == self.plan.n_steps:
            self.history.record(step, self.edit.log_alphas())
        self.bar.update()
        shown = {"loss": f"{scalars['loss']:.3f}"} | {name: f"{value:.0f}" for name, value in opened.items()}
        self.bar.set_postfix(shown | {"λ": f"{self.objective.schedule.value():.3g}"}, refresh=False)
        self.view.scalars = scalars
        self.boundary = self._capture()  # before callbacks: an interrupt from one of them keeps this step
        self._call("on_step")
        if self.view.stop:
            self.progress.stopping = True
            self.boundary = self._capture()

    def _expected_open(self) -> dict[str, torch.Tensor]:
        """Kind to Σ P(open): how many gates are expected to be open."""
        total = sum(int(mask.sum()) for mask in self.edit.masks().values())
        kinds = len({kind for _, kind in self.history.keys})
        with torch.no_grad():
            return {kind: share * total * kinds for kind, share in self.edit.penalty("mean").items() if kinds}

    # -- validation ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _validate(self) -> None:
        """Cross-entropy with the inference gates; notes whether this epoch is the best."""
        self.attached.clear()
        values = self._validation_losses()
        value = values[f"validation_{self.settings.stop_on}"]
        progress = self.progress
        self._log({"step": progress.step, "epoch": progress.epoch, **values})
        self.view.scalars = values
        if self.settings.gate_share < 1 and not self._gates_fixed:
            return  # its gates are still on their way
        progress.epochs_without_better += 1
        if progress.best_value is None or value < progress.best_value:
            progress.best_value, progress.best_epoch, progress.epochs_without_better = (
                value,
                progress.epoch,
                0,
            )
            self.best = checkpoint.edit_tensors(self.edit)

    def _validation_losses(self) -> dict[str, float]:
        """``validation_ce`` per answer token; with ``stop_on="loss"`` also the mean loss of the validation batches."""
        rows, pad = self.plan.validation, pad_id(self._tokenizer)
        total, weighted = 0.0, 0.0
        for chosen in batches_of([len(row.ids) for row in rows], self.settings.evaluation_batch_size):
            batch = collate([rows[i] for i in chosen], pad, self.model.device)
            ce = float(self.targets.loss(self.model, batch, validation=True))
            if not math.isfinite(ce):
                raise TrainingDivergedError("validation loss", self.progress.step, batch.rows)
            total += ce
            if self.settings.stop_on == "loss":
                loss = ce / batch.n_answer_tokens + float(self.objective.penalty(self.edit))
                weighted += loss * len(chosen)
                self.objective.tick(loss)
        values = {"validation_ce": total / sum(row.n_answer for row in rows)}
        if self.settings.stop_on == "loss":
            values["validation_loss"] = weighted / len(rows)
        return values

    def _reason_to_stop(self) -> str | None:
        if self.progress.stopping or self.view.stop:
            return "callback"
        if self.settings.patience and self.progress.epochs_without_better >= self.settings.patience:
            return "patience"
        if self.progress.epoch >= self.settings.epochs:
            return "epochs"
        return "max_steps" if self.progress.step >= self.plan.n_steps else None

    # -- state -----------------------------------------------------------------------------------------------------

    def _capture(self) -> Snapshot:
        tensors = {
            **{f"edit.{name}": value for name, value in checkpoint.edit_tensors(self.edit).items()},
            **{
                f"adam.{name}": value for name, value in checkpoint.optimizer_tensors(self.optimizer, self.edit).items()
            },
            **{f"best.{name}": value for name, value in self.best.items()},
            "rng.gates": self.gates_rng.get_state(),
            "rng.data": self.epoch_rng,
        }
        return Snapshot(tensors, copy.copy(self.progress), self.objective.state(), len(self.rows))

    def _restore(self, snapshot: Snapshot) -> None:
        """Go back (or forward) to a snapshot; one from disk also brings the rows and the history."""
        tensors = snapshot.tensors
        checkpoint.load_edit_tensors(self.edit, checkpoint.section(tensors, "edit"))
        checkpoint.load_optimizer_tensors(self.optimizer, self.edit, checkpoint.section(tensors, "adam"))
        self.best = checkpoint.section(tensors, "best")
        self.gates_rng.set_state(tensors["rng.gates"].cpu())
        self.data_rng.set_state(tensors["rng.data"].cpu())
        self.epoch_rng = tensors["rng.data"].cpu()
        self.progress = copy.copy(snapshot.progress)
        self.objective.restore(snapshot.objective)
        if snapshot.history:
            self.rows = list(snapshot.rows)
            masks, capacity = self._masks(), self._capacity()
            self.history = GateHistory.from_tensors(snapshot.history, masks, capacity)
            self.view.history = self.history
        del self.rows[snapshot.n_rows :]
        self.history.truncate(self.progress.step)
        self.boundary = snapshot

    def _write_checkpoint(self) -> None:
        state = self.boundary
        full = Snapshot(
            state.tensors,
            state.progress,
            state.objective,
            state.n_rows,
            self.rows[: state.n_rows],
            self.history.tensors(),
        )
        checkpoint.write(self.folder / "checkpoint", full, self.plan.identity)

    # -- the end ---------------------------------------------------------------------------------------------------

    def _write(self, status: str, seconds: float) -> Run:
        """Write the Run as it stands: the best epoch's edit if there is one and the configuration asks for it."""
        progress = self.progress
        self.history.record(progress.step, self.edit.log_alphas())
        if self.settings.restore_best and self.best:
            checkpoint.load_edit_tensors(self.edit, self.best)
        done: dict[str, Any] = {"steps": progress.step, "epochs": progress.epoch, "best_epoch": progress.best_epoch}
        done |= {"best_value": progress.best_value, "stopped": progress.stopped}
        method = {**self.plan.method.record(), "before": self.plan.before} if self.plan.method else None
        known = {"identity": self.plan.identity, "status": status, "progress": done, "method": method}
        config = {**self.plan.description(), **known}
        self.edit.requires_grad_(False).to("cpu")
        self.peak = self.memory.read()
        if status == "finished":
            self._warn_if_blown_up()
            if self.edit.log_alphas():
                self._measure_convergence()
        _files.write_jsonl(self.folder / "metrics.jsonl", self.rows)
        _files.write_json(self.folder / "timing.json", self._timing(seconds))
        write_run(self.folder, config, self.edit, self.history)
        if status == "finished":
            checkpoint.remove(self.folder / "checkpoint")
        return Run.load(self.folder, self.model)

    def _timing(self, seconds: float) -> dict[str, Any]:
        return {
            "train_seconds": round(seconds, 3),
            "steps": self.progress.step - self.begun_at,  # fewer than all where the training was resumed
            "peak_memory_bytes": self.peak,
            "host": platform.node(),
            "platform": platform.platform(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "model_source": self.model.source,
        }

    # -- parts -----------------------------------------------------------------------------------------------------

    def _attach(self) -> Any:
        return attach(self.edit, self.model, self.plan.backend)

    def _bar(self) -> Any:
        from tqdm.auto import tqdm

        quiet = logger.getEffectiveLevel() > 30
        return tqdm(total=self.plan.n_steps, initial=self.progress.step, desc=self.plan.task.name, disable=quiet)

    @property
    def _tokenizer(self) -> Any:
        return self.model.tokenizer

    def _set_learning_rates(self) -> dict[str, float]:
        settings, plan = self.settings, self.plan
        vectors, gates = rate_factors(settings, self.progress.step, plan.n_steps, plan.gate_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * (gates if group["group"] == "gates" else vectors)
        gated = any(group["group"] == "gates" for group in self.optimizer.param_groups)
        return {"lr": settings.lr * vectors} | ({"gate_lr": settings.gate_lr * gates} if gated else {})

    def _targets(self) -> AnswerTargets:
        if self.plan.teacher is None:
            return AnswerTargets()
        with attach(self.plan.teacher, self.model, self.plan.backend):
            return TeacherTargets(self.model, self.plan.train, self.plan.validation)

    def _warn_if_blown_up(self) -> None:
        rows = [row for row in self.rows if "ce" in row]
        if found := convergence.blown_up([row["ce"] for row in rows]):
            place, height = found
            logger.warning(
                "%s: the training loss rose to %.1f nats about step %d, from %.1f at first: lr=%g may be too high; "
                "which gates stay open after such a rise says little",
                self.plan.task.name, height, rows[place]["step"], rows[0]["ce"], self.settings.lr,
            )  # fmt: skip

    def _measure_convergence(self) -> None:
        """``convergence.json``: whether the gates of the edit that was kept have decided."""
        weights = self.objective.weights()
        rates = [row["gate_lr"] for row in self.rows if "gate_lr" in row]
        found = convergence.measure(
            cast(JoLA, self.edit), self.model, self.plan.validation, weights=weights, sum_gate_lr=sum(rates),
            seed=self.settings.seed, backend=self.plan.backend, form=self.settings.penalty_form, targets=self.targets,
        )  # fmt: skip
        _files.write_json(self.folder / convergence.FILE, found.to_dict())

    def _masks(self) -> dict[Site, np.ndarray]:
        return {site: mask.cpu().numpy() for site, mask in self.edit.masks().items()}

    def _capacity(self) -> int:
        return self.plan.n_steps // self.settings.log_every + 3  # step 0, the end, and an early end

    def _history(self) -> GateHistory:
        return GateHistory(self._masks(), list(self.edit.log_alphas()), self._capacity())

    def _log(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        scalars = {name: value for name, value in row.items() if name != "step"}
        for log in self.loggers:
            log.log(row["step"], scalars)

    def _call(self, event: str) -> None:
        self.view.step, self.view.epoch = self.progress.step, self.progress.epoch
        for callback in self.callbacks:
            getattr(callback, event)(self.view)
