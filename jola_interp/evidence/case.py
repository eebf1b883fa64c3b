"""What every piece of evidence starts from: a Run, its task and model, the fixed test rows, and where trainings go."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from jola_interp import selection
from jola_interp._version import __version__
from jola_interp.analysis.rows import same_task
from jola_interp.config import TrainConfig
from jola_interp.edits.base import Edit, unit_label
from jola_interp.edits.jola import JoLA
from jola_interp.evidence.endpoint import Endpoint, RowLosses
from jola_interp.runs import Run, edit_settings
from jola_interp.tasks import Task
from jola_interp.training import fit

if TYPE_CHECKING:
    from jola_interp.backends import BackendName
    from jola_interp.models import Model

FOLDER = "evidence"
"""Where in a Run's directory the trainings lie that were made to question it."""
VALIDATION_ROWS = 16
"""Validation rows of those trainings; refits choose nothing by them."""
TO_THE_END: dict[str, Any] = {"epochs": 10_000, "patience": None, "restore_best": False}
"""As many steps as were asked for, and the last one kept: nothing is chosen on the way."""
Heads = tuple[tuple[int, int], ...]
"""(layer, head) pairs."""


@dataclass(frozen=True, eq=False)
class Case:
    """A Run to be questioned.

    Attributes:
        run: the Run; its edit acts on heads and has gates.
        task: the rows that it was trained on.
        model: the model that it was trained on, without an edit.
        folder: where trainings go, a Run each; what is finished there is not trained again.
        steps: optimiser steps of each refit (a training without gates on fixed heads).
        rule: which heads count as selected.
    """

    run: Run
    task: Task
    model: Model
    folder: Path
    steps: int
    rule: str = selection.DEFAULT_RULE

    @property
    def settings(self) -> TrainConfig:
        """How the Run was trained."""
        train = self.run.config["train"]
        return TrainConfig(**{**train, "adam_betas": tuple(train["adam_betas"])})

    @property
    def backend(self) -> BackendName:
        """A model that is booted can only be reached through its bridge."""
        return "lens" if self.model.booted else self.run.config["backend"]

    @cached_property
    def endpoint(self) -> Endpoint:
        """All test rows."""
        return self.endpoint_on(self.model)

    def endpoint_on(self, model: Model) -> Endpoint:
        """All test rows on another model."""
        backend: BackendName = "lens" if model.booted else self.run.config["backend"]
        return Endpoint(model, self.task, self.task.test, self.settings, backend)

    @cached_property
    def base(self) -> RowLosses:
        """The test rows without an edit."""
        return self.endpoint.losses()

    @cached_property
    def edited(self) -> RowLosses:
        """The test rows under the Run's edit."""
        return self.endpoint.losses(self.run.edit.restricted())

    @property
    def gain(self) -> Float[np.ndarray, " row"]:
        """NLL(base) − NLL(edited), row by row."""
        return np.asarray(self.base.nll - self.edited.nll)

    @cached_property
    def selected(self) -> Heads:
        """The heads that the rule selects, best first."""
        return self.run.selection(self.rule).units

    @property
    def editable(self) -> Bool[np.ndarray, "layer head"]:
        """Which heads the Run could have selected."""
        return self.run.edit.masks()["heads"].cpu().numpy()

    @property
    def small_task(self) -> Task:
        """The same training rows, with few to validate on and none to test on: the endpoint does that."""
        return dataclasses.replace(self.task, validation=self.task.validation[:VALIDATION_ROWS], test=())

    def refit(self, heads: Iterable[tuple[int, int]], name: str, **changes: Any) -> RowLosses:
        """Train an edit without gates on these heads from scratch and score it; the same steps and learning rates for
        any set of heads."""
        edit = fresh(self.run.edit, gates="none", sites=("heads",), inference="expected")  # without gates, a word only
        mask = edit.site("heads").mask
        mask.zero_()
        for unit in heads:
            mask[unit] = True
        return self.score(self.train(edit, name, max_steps=self.steps, **changes))

    def retrain(self, name: str, **changes: Any) -> Run:
        """Train an edit like the Run's again, with changes: ``task``, ``model``, ``edit``, or training fields."""
        given = {key: changes.pop(key) for key in ("task", "model") if key in changes}
        edit = changes.pop("edit", None) or fresh(self.run.edit)
        return self.train(edit, name, **given, **changes)

    def train(self, edit: JoLA, name: str, task: Task | None = None, model: Model | None = None, **changes: Any) -> Run:
        """``fit`` into ``folder/name``; one that is finished there is read instead."""
        settings = dataclasses.replace(self.settings, evaluate=False, checkpoint_every=None)
        if edit.gates == "none":
            settings = dataclasses.replace(settings, gate_share=1.0, target_heads=None, **TO_THE_END)
        target = model or self.model
        backend: BackendName = "lens" if target.booted else self.run.config["backend"]
        settings = dataclasses.replace(settings, **changes)
        rows = task or self.small_task
        # Another question never finds an older one's answer.
        place = self.folder / f"{name}-{training_digest(edit, settings, rows, target, backend)}"
        preset = self.run.config["preset"]
        run = fit(target, rows, edit, settings, preset=preset, backend=backend, out=place, resume=True)
        if run.status != "finished":  # Ctrl-C ends one training; what asks for it must not go on with half of it
            raise KeyboardInterrupt(f"{run.path} is {run.status}; the same call goes on where it stopped")
        return run

    def score(self, run: Run) -> RowLosses:
        """The test rows under another Run's edit on this case's model."""
        return self.endpoint.losses(run.edit.restricted())

    def labels(self, heads: Heads) -> list[str]:
        """Such as "L3H7"."""
        return [unit_label("heads", *unit) for unit in heads]


def open_case(
    run: Run | str | Path,
    task: str | Path | Task | None = None,
    model: str | Path | Model | None = None,
    *,
    steps: int | None = None,
    rule: str = selection.DEFAULT_RULE,
    out: str | Path | None = None,
) -> Case:
    """Check everything that evidence about a Run needs.

    Args:
        run: a Run or its directory.
        task: the task that it was trained on, with the same rows; None loads it by its name.
        model: None is the Run's own.
        steps: optimiser steps of each refit; None is as many as the Run took.
        rule: which heads count as selected.
        out: where the trainings go; None is ``evidence/`` in the Run's directory.

    Raises:
        ValueError: an edit without gates on heads; a Run that is not finished; a rule outside the grammar; another task
            or other rows than the Run was trained on; no test rows; a number of steps below 1.
    """
    found = run if isinstance(run, Run) else Run.load(run)
    if not isinstance(found.edit, JoLA) or "heads" not in found.edit.masks() or not found.edit.log_alphas():
        raise ValueError(f"{found.path}: evidence is about heads that gates selected; this edit has none")
    if found.status != "finished":
        raise ValueError(f"{found.path} is {found.status}; evidence is about a finished Run (resume=True finishes it)")
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be 1 or more, got {steps}")
    selection.parse_rule(rule)
    data = same_task(found, task)
    if len(data.test) < 2:
        raise ValueError(f"task: {data.name!r} has {len(data.test)} test rows; evidence needs two or more")
    target = found.ready(model, "evidence")
    folder = Path(out) if out is not None else found.path / FOLDER
    return Case(found, data, target, folder, steps or int(found.config["progress"]["steps"]), rule)


def fresh(edit: JoLA, **changes: Any) -> JoLA:
    """An edit of the same switches and mask, without values."""
    clone = JoLA(edit.shape, **{**edit.settings(), **changes})
    for site, mask in edit.masks().items():
        if site in clone.masks():
            clone.site(site).mask.copy_(mask)
    return clone


def training_digest(edit: Edit, settings: TrainConfig, task: Task, model: Model, backend: str, *more: str) -> str:
    """Eight characters that differ where trainings differ."""
    masks = {site: mask.tolist() for site, mask in edit.masks().items()}
    content = [edit_settings(edit), masks, settings.to_dict()]
    content += [task.name, task.fingerprint, task.kind, task.metric, task.source, task.seed]
    content += [model.identity(), model.source, backend, __version__, *more]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
