"""An edit under Hugging Face's ``Trainer`` (or TRL's): the frozen model as a module with no parameters but the edit's.

    edited = EditedModel("smollm2-135m", ji.JoLA(model.head_shape))
    trainer = Trainer(edited, args, train_dataset=rows, optimizers=edited.optimizers(args.max_steps),
                      callbacks=[GateCallback(edited)])
    trainer.train()
    edited.history.p_open("additive")  # [step, layer, head]
    edited.save(path)                  # a Run, for figures and analysis

Checkpoints of the Trainer hold the edit alone. ``fit`` needs none of this; it is for those whose loop is the Trainer.
"""

# ruff: noqa: ARG002 - what a callback is called with is for the Trainer to say
from __future__ import annotations

import copy
import hashlib
import json
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.modeling_outputs import CausalLMOutput

from jola_interp import _files, selection
from jola_interp.backends import BackendName, attach
from jola_interp.config import DEFAULT_PRESET, TrainConfig, preset
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

    The base model is no submodule: ``parameters()`` and ``state_dict()`` are the edit's, so that the Trainer's
    optimiser and its checkpoints hold nothing else. Gates are drawn once an optimiser step (:class:`GateCallback`) and
    shared by its micro-batches; in ``eval()`` they are those of inference, and the loss has no penalty.

    Args:
        model: as for ``fit``.
        edit: what is trained; it is copied. None is JoLA as the preset has it.
        config: learning rates, Adam's settings, penalty, schedules and seed; epochs, batches and lengths are the
            Trainer's. None takes the preset's.
        backend: how the activations are reached.

    Raises:
        ValueError: an edit of another model, or a budget of heads, which only ``fit`` keeps.
    """

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
        start, self.gates_rng, _ = streams(self.settings.seed)
        if not self.edit.initialised:
            self.edit.initialise(start)
        self.edit.to(base.device)
        self._base = (base,)  # in a tuple, a module is no submodule
        self._stack = ExitStack()
        self.attached = self._stack.enter_context(attach(self.edit, base, backend))
        self.plan(1)

    @property
    def base(self) -> Model:
        """The frozen model."""
        return self._base[0]

    def plan(self, n_steps: int) -> None:
        """Schedules and history for ``n_steps`` optimiser steps; :class:`GateCallback` knows the number."""
        self.n_steps = n_steps
        self.gate_steps = self.settings.gate_steps(n_steps) if self.edit.log_alphas() else 0
        self.objective = make_objective(self.edit, self.settings, n_steps, self.gate_steps)
        masks = {site: mask.cpu().numpy() for site, mask in self.edit.masks().items()}
        self.history = GateHistory(masks, list(self.edit.log_alphas()), n_steps + 1)
        self.history.record(0, self.edit.log_alphas())
        self.rows: list[dict[str, float]] = []
        self._losses: list[tuple[float, float]] = []  # (cross-entropy, penalty) of the micro-batches of a step

    def optimizers(self, n_steps: int) -> tuple[torch.optim.AdamW, LambdaLR]:
        """What ``Trainer(optimizers=…)`` takes: learning rates for vectors and for gates, each with its schedule."""
        optimizer = make_optimizer(self.edit, self.settings)
        gate_steps = self.settings.gate_steps(n_steps)

        def factor(place: int) -> Any:
            return lambda step: rate_factors(self.settings, step, n_steps, gate_steps)[place]

        places = [int(group["group"] == "gates") for group in optimizer.param_groups]
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, [factor(place) for place in places])

    def forward(
        self,
        input_ids: Int[Tensor, "batch pos"],
        attention_mask: Int[Tensor, "batch pos"] | None = None,
        labels: Int[Tensor, "batch pos"] | None = None,
    ) -> CausalLMOutput:
        """Logits, and the loss where there are ``labels`` (−100: not counted), as transformers' models do it."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        prompt = None if labels is None else (labels == IGNORED) & (mask == 1)
        logits = self.base.logits(input_ids, mask, prompt_mask=prompt)
        return CausalLMOutput(loss=None if labels is None else self._loss(logits, labels), logits=logits)

    def _loss(self, logits: Float[Tensor, "batch pos vocab"], labels: Int[Tensor, "batch pos"]) -> Float[Tensor, ""]:
        counted: Bool[Tensor, "batch pos"] = labels[:, 1:] != IGNORED
        predictions = logits[:, :-1][counted].float()
        loss = nn.functional.cross_entropy(predictions, labels[:, 1:][counted])
        if not self.training:
            return loss
        penalty = self.objective.penalty(self.edit).to(loss.device)
        self._losses.append((loss.item(), penalty.item()))
        return loss + penalty

    # -- steps, called by GateCallback -----------------------------------------------------------------------------

    def begin_step(self, step: int) -> None:
        """Draw the gates of an optimiser step; behind ``gate_share`` of the steps each stands at its inference gate."""
        fixed = step >= self.gate_steps
        for parameter in self.edit.parameter_groups().get("gates", []):
            parameter.requires_grad_(not fixed)
        self.attached.clear() if fixed else self.attached.draw(self.gates_rng)

    def end_step(self, step: int, epoch: int = 0) -> None:
        """Note losses and gates after ``step`` optimiser steps, and move λ on."""
        ce, penalty = (sum(part) / len(self._losses) for part in zip(*self._losses, strict=True))
        self._losses.clear()
        self.history.record(step, self.edit.log_alphas())
        losses = {"ce": ce, "penalty": penalty, "loss": ce + penalty}
        self.rows.append({"step": step, "epoch": epoch, **losses, **self._weights(), **self._open_gates()})
        self.objective.tick(ce + penalty)

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

    def save(self, path: str | Path, task: Task) -> Run:
        """Write a Run: edit, gate history, losses and settings. ``task`` holds the rows that it was trained on.

        Raises:
            FileExistsError: there is a Run, or anything else, at ``path``.
        """
        folder = Path(path)
        if folder.exists() and any(folder.iterdir()):
            raise FileExistsError(f"path: {folder} is not empty; choose another directory")
        found = describe(self.base, task, self.edit, self.settings, self.preset_name, self.backend)
        epochs = int(self.rows[-1]["epoch"]) if self.rows else 0
        done = {
            "steps": int(self.history.steps[-1]),
            "epochs": epochs,
            "best_epoch": None,
            "best_value": None,
            "stopped": "trainer",
        }
        identity = hashlib.sha256(json.dumps([found, edit_digest(self.edit)], sort_keys=True).encode()).hexdigest()
        config = {**found, "identity": identity, "status": "finished", "progress": done, "method": None}
        kept = copy.deepcopy(self.edit).requires_grad_(False).to("cpu")
        folder.mkdir(parents=True, exist_ok=True)
        _files.write_jsonl(folder / "metrics.jsonl", self.rows)
        write_run(folder, config, kept, self.history)
        return Run.load(folder)

    def close(self) -> None:
        """Take the edit away from the model; the edit and its history stay."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class GateCallback(TrainerCallback):
    """Draws the gates before each optimiser step, notes them behind it, and logs λ and the number of open gates.

    Args:
        edited: what the Trainer trains.
    """

    def __init__(self, edited: EditedModel):
        self.edited = edited

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Now the number of steps is known."""
        if state.global_step:
            raise ValueError(
                "resume_from_checkpoint: a Trainer's checkpoint holds the edit, but not where the gates' random stream "
                "and λ stood; ji.fit(resume=True) goes on to the same bytes"
            )
        self.edited.plan(state.max_steps)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """One draw for all micro-batches of a step."""
        self.edited.begin_step(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The state behind step ``global_step``."""
        self.edited.end_step(state.global_step, int(state.epoch or 0))

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
            self.edited.note_validation(state.global_step, int(state.epoch or 0), metrics["eval_loss"])
