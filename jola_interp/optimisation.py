"""What a training steps with: random streams, an optimiser with a rate for each group, and how λ and rates move."""

from __future__ import annotations

import math

import numpy as np
import torch

from jola_interp import budget
from jola_interp.config import TrainConfig
from jola_interp.edits.base import Edit
from jola_interp.objective import Objective
from jola_interp.schedules import PenaltySchedule, learning_rate_factor


def streams(seed: int) -> tuple[torch.Generator, torch.Generator, torch.Generator]:
    """Generators for starting values, gates and the order of rows; none moves another."""
    states = np.random.SeedSequence(seed).generate_state(3, np.uint64)
    start, gates, data = (torch.Generator().manual_seed(int(state >> np.uint64(1))) for state in states)
    return start, gates, data


def make_optimizer(edit: Edit, settings: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the edit's parameter groups; each has its ``group`` name and its ``peak`` learning rate."""
    spread = math.sqrt(settings.lr_ratio)
    rates = {"vectors": settings.lr, "additive": settings.lr * spread, "multiplicative": settings.lr / spread}
    rates["gates"] = settings.gate_lr
    groups = [
        {"params": parameters, "lr": rates[name], "peak": rates[name], "group": name}
        for name, parameters in edit.parameter_groups().items()
    ] or [{"params": [torch.zeros(0)], "lr": 0.0, "peak": 0.0, "group": "none"}]  # nothing trains: no step is taken
    return torch.optim.AdamW(
        groups, betas=settings.adam_betas, eps=settings.adam_epsilon, weight_decay=settings.weight_decay
    )


def make_objective(
    edit: Edit, settings: TrainConfig, n_steps: int, gate_steps: int, heads: int | None = None
) -> Objective:
    """The penalty's form and weights; λ moves by the configuration's schedule, or by a budget of ``heads``."""
    weights = settings.additive_weight, settings.multiplicative_weight
    warmup = settings.penalty_warmup_steps(n_steps)
    if heads is None:
        steady = PenaltySchedule(settings.penalty_schedule, settings.penalty, max(1, n_steps), warmup)
        return Objective(settings.penalty_form, steady, weights)
    falling = min(warmup or round(budget.ANNEAL * gate_steps), gate_steps)
    total = int(edit.masks()["heads"].sum())
    steered = budget.HeadBudget(heads, total, settings.penalty, falling, settings.gate_lr)
    return Objective(settings.penalty_form, steered, weights)


def rate_factors(settings: TrainConfig, step: int, n_steps: int, gate_steps: int) -> tuple[float, float]:
    """What the peak learning rates of vectors and of gates are multiplied by in step ``step`` (the first is 0)."""
    warmup = settings.warmup_steps(n_steps)
    shape = settings.gate_lr_schedule or settings.lr_schedule
    vectors = learning_rate_factor(settings.lr_schedule, step, n_steps, warmup)
    return vectors, 0.0 if step >= gate_steps else learning_rate_factor(shape, step, gate_steps, warmup)
