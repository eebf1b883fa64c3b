"""An edit under Hugging Face's ``Trainer`` (or TRL's): the frozen model as a module with no parameters but the edit's.

    >>> model = ji.load_model(name)                     # such as "smollm2-135m"
    >>> edited = EditedModel(model, ji.JoLA(model.head_shape))
    >>> trainer = Trainer(edited, args, train_dataset=rows, data_collator=collate, optimizers=edited.optimizers(),
    ...                   callbacks=[GateCallback(edited)])
    >>> result = trainer.train()
    >>> opens = edited.history.p_open("additive")       # [step, layer, head]
    >>> run = edited.save(path, task)                   # a Run, for figures and analysis

Checkpoints of the Trainer hold the edit alone. ``fit`` needs none of this; it is for those whose loop is the Trainer,
and for data-parallel training, which ``torchrun`` or ``accelerate launch`` start with the script as it stands: several
processes take the steps that one takes with all their rows, and the main one alone writes files. Each loads the model
onto its own device, ``ji.load_model(name, device=accelerate.PartialState().device)``. (Also on CPUs, where ``use_cpu``
belongs in the arguments, accelerate starts several processes with ``--multi_gpu`` only: ``--cpu`` leaves it to mpirun.)
"""

# ruff: noqa: ARG002 - what a callback is called with is for the Trainer to say
from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.modeling_outputs import CausalLMOutput

from jola_interp import _files, convergence, selection
from jola_interp.backends import BackendName, attach
from jola_interp.batching import encode_examples
from jola_interp.config import DEFAULT_PRESET, TrainConfig, preset, resolve
from jola_interp.edits.base import Edit
from jola_interp.edits.jola import JoLA
from jola_interp.history import GateHistory
from jola_interp.models import Model, load_model
from jola_interp.optimisation import make_objective, make_optimizer, rate_factors, streams
from jola_interp.runs import Run, edit_digest, write_run
from jola_interp.tasks import Task
from jola_interp.training import describe

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LambdaLR
    from transformers import TrainerControl, TrainerState, TrainingArguments

IGNORED = -100
"""Labels that count for nothing, as everywhere in transformers."""


class EditedModel(nn.Module):
    """loss = mean −log p(label) + Σ_k weight_k(λ) · penalty_k, of the frozen model with an edit attached.

    The mean is over the labels of an optimiser step, as under ``fit``: today's Trainer tells their number N, and a
    micro-batch with n of them is given n/N of its own loss, so that the parts add up to that loss, the penalty once.
    Without N it is the micro-batch's own mean.

    In data-parallel training N counts the labels of all processes, so that the mean over processes of the gradients,
    each times their number (so the Trainer), is the gradient of one process with all rows, the penalty once. Their
    gates are drawn alike, by ``config.seed``, and what is noted is of all rows. (Where rows do not fill the last batch
    of an epoch, accelerate fills it up with the epoch's first.)

    The base model is no submodule: ``parameters()`` and ``state_dict()`` are the edit's, so that the Trainer's
    optimiser and its checkpoints hold nothing else. Gates are drawn once an optimiser step (:class:`GateCallback`) and
    shared by its micro-batches; in ``eval()`` they are those of inference, and the loss has no penalty.

    Args:
        model: as for ``fit``.
        edit: what is trained; it is copied. None is JoLA as the preset has it.
        config: learning rates, Adam's settings, penalty, schedules and seed; epochs, batches, lengths and clipping are
            the Trainer's, and taken over from it when it begins. None takes the preset's.
        backend: how the activations are reached.

    Raises:
        ValueError: an edit of another model, one in units that are not known yet, or a budget of heads, which only
            ``fit`` keeps.
    """

    accepts_loss_kwargs: ClassVar[bool] = True
    """Tells the Trainer that ``forward`` takes ``num_items_in_batch``, and ``loss_type`` that labels are shifted."""
    loss_type: ClassVar[str] = "ForCausalLM"

    def __init__(
        self,
        model: str | Path | Model,
        edit: Edit | None = None,
        config: TrainConfig | None = None,
        *,
        preset_name: str = DEFAULT_PRESET,
        backend: BackendName = "hooks",
    ):
        super().__init__()
        base = load_model(model)
        self.settings, self.preset_name, self.backend = config or preset(preset_name).train, preset_name, backend
        if self.settings.target_heads is not None:
            raise ValueError(f"target_heads must be None under a Trainer, got {self.settings.target_heads}: use ji.fit")
        self.edit = copy.deepcopy(edit) if edit else JoLA(base.head_shape, **preset(preset_name).edit)
        if any(isinstance(part, JoLA) and not part.units_known for part in self.edit.modules()):
            raise ValueError(
                'units="rms": the units of this edit are not known, and a Trainer has no rows to measure them on: '
                "edit.set_units(jola_interp.activations.unit_rms(model, rows)) first"
            )
        start, self.gates_rng, _ = streams(self.settings.seed)
        if not self.edit.initialised:
            self.edit.initialise(start)
        self.edit.to(base.device)
        self._base = (base,)  # in a tuple, a module is no submodule
        self._attach()
        self._scheduler: LambdaLR | None = None
        self._stepping = False  # between begin_step and end_step
        self.plan(1)

    def _attach(self) -> None:
        self._stack, self._live = ExitStack(), True
        self.attached = self._stack.enter_context(attach(self.edit, self.base, self.backend))

    @property
    def base(self) -> Model:
        return self._base[0]

    def plan(self, n_steps: int) -> None:
        """Schedules and history for ``n_steps`` optimiser steps; :class:`GateCallback` knows the number.

        Raises:
            ValueError: fewer than one.
        """
        if n_steps < 1:
            raise ValueError(
                f"n_steps must be at least 1, or None to learn it from the Trainer; got {n_steps} (with "
                "num_train_epochs, args.max_steps is -1)"
            )
        self.n_steps = n_steps
        self.gate_steps = self.settings.gate_steps(n_steps) if self.edit.log_alphas() else 0
        self.objective = make_objective(self.edit, self.settings, n_steps, self.gate_steps)
        masks = {site: mask.cpu().numpy() for site, mask in self.edit.masks().items()}
        self.history = GateHistory(masks, list(self.edit.log_alphas()), n_steps + 1)
        self.history.record(0, self.edit.log_alphas())
        self.rows: list[dict[str, float]] = []
        self._losses: list[tuple[float, int, float]] = []  # (Σ −log p, labels, penalty) of a step's micro-batches
        if self._scheduler is not None:
            self._reschedule(self._scheduler)

    def adopt(self, args: TrainingArguments, state: TrainerState) -> None:
        """Take over from the Trainer what it decides, so that the Run says what was done, and :meth:`plan` its steps.

        ``restore_best`` is False: whatever edit the Trainer leaves, the history ends with it (:meth:`save`).

        Raises:
            ValueError: several processes that would not take the steps of one with all their rows.
        """
        _check_processes(args, self.base, self.settings)
        self.settings = dataclasses.replace(
            self.settings,
            batch_size=args.train_batch_size,
            accumulation=args.gradient_accumulation_steps * args.world_size,
            epochs=max(1, state.num_train_epochs),
            max_steps=args.max_steps if args.max_steps > 0 else None,
            clip=float(args.max_grad_norm) if args.max_grad_norm else None,
            bucketed="length" in str(getattr(args, "train_sampling_strategy", "")),
            patience=None,
            restore_best=False,
            log_every=1,
        )
        self.plan(state.max_steps)

    def optimizers(self, n_steps: int | None = None) -> tuple[torch.optim.AdamW, LambdaLR]:
        """What ``Trainer(optimizers=…)`` takes: learning rates for vectors and for gates, each with its schedule.

        Args:
            n_steps: of a loop of your own; under a Trainer :class:`GateCallback` learns the number when it begins.

        Raises:
            ValueError: fewer than one.
        """
        if n_steps is not None:
            self.plan(n_steps)
        optimizer = make_optimizer(self.edit, self.settings)

        def factor(place: int) -> Any:
            return lambda step: rate_factors(self.settings, step, self.n_steps, self.gate_steps)[place]

        places = [int(group["group"] == "gates") for group in optimizer.param_groups]
        self._scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, [factor(place) for place in places])
        return optimizer, self._scheduler

    def _reschedule(self, scheduler: LambdaLR) -> None:
        """The first step's rates, which a scheduler has set before the number of steps was known."""
        groups, peaks, factors = scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas
        for group, peak, factor in zip(groups, peaks, factors, strict=True):
            group["lr"] = peak * factor(scheduler.last_epoch)

    def forward(
        self,
        input_ids: Int[Tensor, "batch pos"],
        attention_mask: Int[Tensor, "batch pos"] | None = None,
        labels: Int[Tensor, "batch pos"] | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> CausalLMOutput:
        """Logits, and the loss where there are ``labels`` (−100: not counted), as transformers' models do it.

        Args:
            num_items_in_batch: how many labels count in the optimiser step; None is those of this batch.

        Raises:
            RuntimeError: a loss to train on is asked for, and no gates were drawn for the step.
        """
        if self.training and labels is not None and not self._stepping:
            raise RuntimeError(
                "no gates were drawn for this step: Trainer(callbacks=[GateCallback(edited)]), or call begin_step and "
                "end_step yourself (and eval() for a loss at the inference gates)"
            )
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        prompt = None if labels is None else (labels == IGNORED) & (mask == 1)
        with self._blocks_train():
            logits = self.base.logits(input_ids, mask, prompt_mask=prompt)
        loss = None if labels is None else self._loss(logits, labels, num_items_in_batch)
        return CausalLMOutput(loss=loss, logits=logits)

    def _loss(
        self, logits: Float[Tensor, "batch pos vocab"], labels: Int[Tensor, "batch pos"], total: Tensor | int | None
    ) -> Float[Tensor, ""]:
        counted: Bool[Tensor, "batch pos"] = labels[:, 1:] != IGNORED
        predictions = logits[:, :-1][counted].float()
        total_ce = nn.functional.cross_entropy(predictions, labels[:, 1:][counted], reduction="sum")
        n = int(counted.sum())
        share = 1.0 if total is None else n / float(total)  # of the step's labels
        ce = total_ce / max(1, n)
        if not self.training:
            return share * ce
        penalty = self.objective.penalty(self.edit).to(ce.device)
        self._losses.append((total_ce.item(), n, penalty.item()))
        return share * (ce + penalty)

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """``TrainingArguments(activation_checkpointing=True)``: the backward pass runs the model's blocks again.

        Raises:
            ValueError: the backend is nnsight, or the blocks themselves drop out.
        """
        if self.backend == "nnsight":
            raise ValueError("activation_checkpointing: nnsight edits no block that runs again; use backend='hooks'")
        for module in self.base.hf.modules():
            rate = getattr(module, "dropout", None) if hasattr(module, "gradient_checkpointing") else None
            if isinstance(rate, float) and rate:
                raise ValueError(
                    f"activation_checkpointing: {type(module).__name__} would drop out {rate} of the frozen model's "
                    "activations: load it with dropout=0.0"
                )
        self.base.hf.activation_checkpointing_enable(activation_checkpointing_kwargs, **options)

    @contextmanager
    def _blocks_train(self) -> Iterator[None]:
        """transformers runs again only blocks in training mode; what is inside them stays as it is, without dropout."""
        wanted = self.training and torch.is_grad_enabled()
        blocks = [m for m in self.base.hf.modules() if wanted and getattr(m, "gradient_checkpointing", False)]
        before = [block.training for block in blocks]
        for block in blocks:
            block.training = True
        try:
            yield
        finally:  # else a later `generate` would lose its cache
            for block, mode in zip(blocks, before, strict=True):
                block.training = mode

    # -- steps, called by GateCallback -----------------------------------------------------------------------------

    def begin_step(self, step: int, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Draw the gates of an optimiser step; behind ``gate_share`` of the steps each stands at its inference gate."""
        fixed = step >= self.gate_steps
        gates = self._require_gate_grad(not fixed)
        self.attached.clear() if fixed else self.attached.draw(self.gates_rng)
        self._rates = {} if optimizer is None else _gate_rate(optimizer, gates)
        self._stepping = True

    def end_step(self, step: int, epoch: int = 0) -> None:
        """Note losses (of all processes' rows) and gates after ``step`` optimiser steps, and move λ on."""
        sums, counts, penalties = zip(*self._losses, strict=True)
        total, n = _over_processes([sum(sums), sum(counts)], self.base.device)
        ce, penalty = total / max(1, n), penalties[-1]
        self._losses.clear()
        self._require_gate_grad(True)  # as a further Trainer, which asks before the first step, must find them
        self._stepping = False
        self.history.record(step, self.edit.log_alphas())
        losses = {"ce": ce, "penalty": penalty, "loss": ce + penalty}
        told = {**losses, **self._rates, **self._weights(), **self._open_gates()}
        self.rows.append({"step": step, "epoch": epoch, **told})
        self.objective.tick(ce + penalty)

    def _require_gate_grad(self, wanted: bool) -> list[nn.Parameter]:
        gates = self.edit.parameter_groups().get("gates", [])
        for parameter in gates:
            parameter.requires_grad_(wanted)
        return gates

    def note_validation(self, step: int, epoch: int, ce: float) -> None:
        """Beside the steps, as ``fit`` keeps it."""
        self.rows.append({"step": step, "epoch": epoch, "validation_ce": ce})

    def _weights(self) -> dict[str, float]:
        return {f"lambda_{kind}": self.objective.weights()[kind] for _, kind in self.history.keys}

    def _open_gates(self) -> dict[str, float]:
        """Σ P(open) of each kind."""
        return {
            f"open_{kind}": float(np.nansum(selection.measure("p_open", self.history.log_alpha(kind, site)[-1])))
            for site, kind in self.history.keys
        }

    def train(self, mode: bool = True) -> Self:
        """Evaluation runs at the inference gates."""
        if not mode and hasattr(self, "attached"):
            self.attached.clear()
        return super().train(mode)

    # -- the end ---------------------------------------------------------------------------------------------------

    def save(self, path: str | Path, task: Task, **fields: Any) -> Run:
        """Write a Run: edit, gate history, losses, settings, and whether the gates have decided.

        The history ends with the edit that is kept: where the Trainer went back to an earlier one
        (``load_best_model_at_end``), the last step's record is that one's gates.

        Of several processes the main one writes, at ``path``. The others, if they call this at all, wait for nothing
        and get the Run as it will be, whose further files (``run.metrics``) may not be there yet.

        Args:
            path: where to; must not exist, or be an empty directory.
            task: holds the rows that it was trained on; convergence is measured on its validation rows.
            **fields: of :class:`TrainConfig`, as they were in your rows, which cannot be seen from here: ``wrapper``,
                ``max_length``, ``eos`` and ``answers`` must be named if ``evaluate(run)`` is to prompt as you did.

        Raises:
            FileExistsError: there is a Run, or anything else, at ``path``.
            ValueError: an unknown field, or a value that is not allowed.
        """
        folder, writes = Path(path), _is_main_process()
        if writes and folder.exists() and any(folder.iterdir()):
            raise FileExistsError(f"path: {folder} is not empty; choose another directory")
        settings = resolve(self.settings, self.preset_name, fields)
        stamp = self._convergence(task, settings) if writes else None
        self.history.record(int(self.history.steps[-1]), self.edit.log_alphas())
        found = describe(self.base, task, self.edit, settings, self.preset_name, self.backend)
        epochs = int(self.rows[-1]["epoch"]) + 1 if self.rows else 0
        done: dict[str, Any] = {"steps": int(self.history.steps[-1]), "epochs": epochs, "stopped": "trainer"}
        done |= {"best_epoch": None, "best_value": None}
        identity = hashlib.sha256(json.dumps([found, edit_digest(self.edit)], sort_keys=True).encode()).hexdigest()
        config = {**found, "identity": identity, "status": "finished", "progress": done, "method": None}
        kept = copy.deepcopy(self.edit).requires_grad_(False).to("cpu")
        if not writes:
            return Run(folder, config, cast(JoLA, kept), self.history)
        folder.mkdir(parents=True, exist_ok=True)
        _files.write_jsonl(folder / "metrics.jsonl", self.rows)
        if stamp is not None:
            _files.write_json(folder / convergence.FILE, stamp.to_dict())
        write_run(folder, config, kept, self.history)
        return Run.load(folder)

    def _convergence(self, task: Task, settings: TrainConfig) -> convergence.Convergence | None:
        """As ``fit`` measures it; None without gates, validation rows or a tokenizer to read them with."""
        if not (self.edit.log_alphas() and task.validation and self.base.tokenizer):
            return None
        rows = encode_examples(
            task.validation, self.base.tokenizer, wrapper=settings.wrapper, max_length=settings.max_length,
            eos=settings.eos, template=task.template if settings.answers == "worded" else "{answer}",
        )  # fmt: skip
        travelled = sum(row.get("gate_lr", 0.0) for row in self.rows)
        live = self._live
        self.close()  # it is measured on the plain model
        try:
            return convergence.measure(
                cast(JoLA, self.edit), self.base, rows, weights=self.objective.weights(), sum_gate_lr=travelled,
                seed=settings.seed, backend=self.backend, form=settings.penalty_form,
            )  # fmt: skip
        finally:
            if live:
                self._attach()

    def close(self) -> None:
        """Take the edit away from the model; the edit and its history stay."""
        self._stack.close()
        self._live = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_processes(args: TrainingArguments, model: Model, settings: TrainConfig) -> None:
    """Raise ValueError where several processes or devices would not take the steps of one with all their rows."""
    if args.n_gpu > 1:
        raise ValueError(
            f"n_gpu must be 1 in a process, got {args.n_gpu}: the edit is attached to one model. Start a process for "
            "each GPU (torchrun, accelerate launch), or name one in CUDA_VISIBLE_DEVICES"
        )
    if args.world_size == 1:
        return
    if args.fsdp or args.deepspeed:
        raise ValueError("fsdp and deepspeed must not be set: an edit is small, and every process holds all of it")
    if not args.average_tokens_across_devices:
        raise ValueError(
            f"average_tokens_across_devices must be True with {args.world_size} processes: else a label counts for "
            "more in a process that has few of them"
        )
    if settings.gate_share < 1 and (args.ddp_find_unused_parameters is False or args.ddp_static_graph):
        raise ValueError(
            f"gate_share must be 1 with ddp_find_unused_parameters=False or ddp_static_graph=True, got "
            f"{settings.gate_share}: gates that no longer train have no gradient for processes to exchange"
        )
    if (args.device.type, args.device.index or 0) != (model.device.type, model.device.index or 0):
        raise ValueError(
            f"device: process {args.process_index} trains on {args.device}, but its model is on {model.device}: "
            "load_model(name, device=accelerate.PartialState().device)"
        )


def _over_processes(values: list[float], device: torch.device) -> list[float]:
    """Each value summed over the processes of a data-parallel training."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return values
    found = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(found)
    return cast(list[float], found.tolist())


def _is_main_process() -> bool:
    """Whether this process is the only or the first one."""
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    return alone or torch.distributed.get_rank() == 0


def _gate_rate(optimizer: torch.optim.Optimizer, gates: list[nn.Parameter]) -> dict[str, float]:
    """``gate_lr`` of the step that begins; nothing without gates."""
    known = {id(parameter) for parameter in gates}
    groups = [group for group in optimizer.param_groups if known & {id(parameter) for parameter in group["params"]}]
    return {"gate_lr": float(groups[0]["lr"])} if groups else {}


def _epoch(state: TrainerState) -> int:
    """The epoch, from 0, that a step belongs to: the Trainer's is 1 at the end of the first."""
    return max(0, math.ceil(state.epoch or 0) - 1)


class GateCallback(TrainerCallback):
    """Draws the gates before each optimiser step, notes them behind it, and logs λ and the number of open gates.

    Args:
        edited: what the Trainer trains.
    """

    def __init__(self, edited: EditedModel):
        self.edited = edited

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Now the number of steps is known, and what the Trainer was told."""
        if state.global_step:
            raise ValueError(
                "resume_from_checkpoint: a Trainer's checkpoint holds the edit, but not where the gates' random stream "
                "and λ stood; ji.fit(resume=True) goes on to the same bytes"
            )
        self.edited.adopt(args, state)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, optimizer: Any = None, **_: Any
    ) -> None:
        """One draw for all micro-batches of a step."""
        self.edited.begin_step(state.global_step, optimizer)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The state behind step ``global_step``."""
        self.edited.end_step(state.global_step, _epoch(state))

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Beside the Trainer's own numbers."""
        if logs is not None and self.edited.rows:
            for found in (logs, state.log_history[-1]):
                found |= {
                    name: value for name, value in self.edited.rows[-1].items() if name not in {**found, "loss": 0}
                }

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **_: Any
    ) -> None:
        """The loss of the evaluation has no penalty in it: it is the validation cross-entropy."""
        if metrics and "eval_loss" in metrics:
            self.edited.note_validation(state.global_step, _epoch(state), metrics["eval_loss"])
