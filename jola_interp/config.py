"""How to train: one frozen dataclass, and the presets the package ships."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from jola_interp import budget
from jola_interp.edits.base import PenaltyForm
from jola_interp.prompts import check_wrapper
from jola_interp.schedules import REFERENCE_PENALTY, LearningRateScheduleName, PenaltyScheduleName
from jola_interp.tasks.base import Answers


@dataclass(frozen=True)
class TrainConfig:
    """Everything that ``fit`` can be told. The defaults are the ``paper`` preset.

    Raises:
        ValueError: a field of another type or outside its range, named with its value and what is allowed.
    """

    epochs: int = 20
    """Passes over the training rows, at most."""
    max_steps: int | None = None
    """Optimiser steps at most; None leaves it to ``epochs``."""
    batch_size: int = 8
    """Rows in one forward pass."""
    accumulation: int = 1
    """Forward passes per optimiser step; they share one draw of the gates."""
    bucketed: bool = True
    """Batches of rows of similar length (still in seeded random order) rather than fully random ones."""

    lr: float = 2e-2
    """Peak learning rate of the vectors. The paper says 5e-4, its code 5e-3; this is a starting point."""
    gate_lr: float = 0.4
    """Peak learning rate of log α. Σ of it over the steps bounds how far a gate can travel."""
    lr_schedule: LearningRateScheduleName = "cosine"
    """Shape of both learning rates after warm-up."""
    lr_ratio: float = 1.0
    """Learning rate of a over that of m, their geometric mean being ``lr``: lr·√ratio and lr/√ratio."""
    gate_lr_schedule: LearningRateScheduleName | None = None
    """Shape of the gates' learning rate over the steps in which they train; None is that of ``lr_schedule``."""
    gate_share: float = 1.0
    """Share of the steps in which gates train, from the first. Afterwards each stands at its inference gate and the
    vectors train alone, so that what is kept was trained as it is used; only epochs that end in this phase can be kept
    or stop the training."""
    warmup: float = 0.1
    """Warm-up: a share of all steps if below 1, else a number of steps."""
    adam_betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's β₁ and β₂."""
    adam_epsilon: float = 1e-6
    """AdamW's ε."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay, on vectors and gates alike."""
    clip: float | None = 1.0
    """Largest norm of the gradient of all parameters together; None does not clip."""

    penalty: float = 0.4
    """Weight of the sparsity penalty. Under ``penalty_form="mean"`` the penalty is the mean P(open) over all gates, so
    one value means the same for any model size. On SmolLM2-135M (540 gates) 0.02 left 375 gates with P(open) > 1/2
    and 0.3 left 132 on E2E NLG (150 steps), 1.0 left 121 in the demo (100 steps). Under "reference" it is
    the scale of λ (see ``PenaltySchedule``)."""
    penalty_form: PenaltyForm = "mean"
    """``mean``: CE + λ·(w_a·Σ P_a + w_m·Σ P_m)/gates. ``reference``: CE + λ·penalty_a + (1 − λ)·penalty_m, skipped when
    λ = 0, as the released code has it."""
    penalty_schedule: PenaltyScheduleName = "constant"
    """How λ moves over the steps."""
    penalty_warmup: float = 0.0
    """λ rises from 0 over these first steps: a share of all if below 1, else a number."""
    target_heads: int | float | None = None
    """A number of heads, or a share of them below 1: λ is then learned so that the smooth number of open heads falls to
    it (over ``penalty_warmup``; 0 is three fifths of the steps in which gates train), ``penalty`` is only the scale
    that it starts from, and exactly so many heads are kept where gates are fixed, which ``gate_share`` below 1 must say
    when (see :mod:`jola_interp.budget`)."""
    additive_weight: float = 1.0
    """w_a, the weight of additive (and shared) gates in the ``mean`` form."""
    multiplicative_weight: float = 1.0
    """w_m, the weight of multiplicative gates in the ``mean`` form."""

    patience: int | None = 2
    """Stop after this many validations without a better one; None trains to the end."""
    stop_on: Literal["ce", "loss"] = "ce"
    """What early stopping and the best epoch look at: validation cross-entropy alone, or with the penalty added (which
    also makes λ tick on validation batches, as in the released code)."""
    restore_best: bool = True
    """Keep the parameters of the best epoch rather than the last."""

    wrapper: str = "reference"
    """Prompt style: "reference" (the released code's), "paper" (Table 6), "chat" (the model's chat template), "plain",
    or a template of your own that holds {instruction}."""
    answers: Answers = "worded"
    """``worded``: answers as the task words them ("The answer is (C)" in MMLU-Pro). ``bare``: the option alone, as the
    released code trains it."""
    max_length: int = 400
    """Longest row in tokens; longer instructions lose their start, answers lose nothing."""
    eos: bool = True
    """Whether answers end in EOS, so that the model learns to stop."""

    evaluate: bool = True
    """Score the base and the edited model on the test rows when training ends."""
    evaluation_batch_size: int = 16
    """Rows in one batch of validation and evaluation."""
    beams: int | None = None
    """Beams when generating; 1 is greedy; None is 4 for choices, as in the paper, and 1 for text."""
    max_new_tokens: int | None = None
    """Longest generation; None is 16 for choices and 64 for text."""

    seed: int = 42
    """Seeds the starting values, the gate draws and the data order, each in a stream of its own."""
    log_every: int = 1
    """Record the gates every so many steps (the first and the last always)."""
    checkpoint_every: int | None = None
    """Also write a checkpoint every so many steps; one is written after each epoch in any case."""

    def __post_init__(self) -> None:
        self._check_counts()
        self._check_numbers()
        self._check_betas()
        self._check_words()
        self._check_target()

    def _check_counts(self) -> None:
        for name in (
            "epochs",
            "batch_size",
            "accumulation",
            "max_length",
            "log_every",
            "evaluation_batch_size",
        ):
            self._require(name, _is_count(getattr(self, name)), "an integer ≥ 1")
        for name in ("max_steps", "patience", "beams", "max_new_tokens", "checkpoint_every"):
            value = getattr(self, name)
            self._require(name, value is None or _is_count(value), "an integer ≥ 1 or None")
        holds = self.seed == 0 and type(self.seed) is int or _is_count(self.seed) and self.seed < 2**63
        self._require("seed", holds, "an integer from 0 to 2^63 − 1")

    def _check_numbers(self) -> None:
        for name in ("lr", "gate_lr", "lr_ratio", "adam_epsilon"):
            value = getattr(self, name)
            self._require(name, _is_number(value) and value > 0, "a positive number")
        for name in ("penalty", "weight_decay", "additive_weight", "multiplicative_weight", "warmup", "penalty_warmup"):
            value = getattr(self, name)
            self._require(name, _is_number(value) and value >= 0, "a number ≥ 0")
        share = self.gate_share
        self._require("gate_share", _is_number(share) and 0 < share <= 1, "a number above 0, at most 1")
        self._require("clip", self.clip is None or _is_number(self.clip) and self.clip > 0, "a positive number or None")

    def _check_betas(self) -> None:
        betas = self.adam_betas
        pair = isinstance(betas, tuple | list) and len(betas) == 2
        holds = pair and all(_is_number(beta) and 0 <= beta < 1 for beta in betas)
        self._require("adam_betas", holds, "two numbers in [0, 1)")
        object.__setattr__(self, "adam_betas", tuple(betas))

    def _check_words(self) -> None:
        """Switches and names."""
        for name in ("bucketed", "restore_best", "eos", "evaluate"):
            self._require(name, isinstance(getattr(self, name), bool), "True or False")
        self._require("wrapper", isinstance(self.wrapper, str), "a text")
        check_wrapper(self.wrapper)
        choices = {
            "lr_schedule": get_args(LearningRateScheduleName),
            "penalty_schedule": get_args(PenaltyScheduleName),
            "penalty_form": get_args(PenaltyForm),
            "stop_on": ("ce", "loss"),
            "answers": get_args(Answers),
        }
        for name, allowed in choices.items():
            self._require(name, getattr(self, name) in allowed, f"one of {', '.join(allowed)}")
        shapes = get_args(LearningRateScheduleName)
        known = self.gate_lr_schedule is None or self.gate_lr_schedule in shapes
        self._require("gate_lr_schedule", known, f"one of {', '.join(shapes)}, or None")

    def _check_target(self) -> None:
        """A budget on heads, and what it cannot go with."""
        target = self.target_heads
        if target is None:
            return
        self._require("target_heads", budget.is_target(target), f"{budget.ALLOWED}, or None")
        object.__setattr__(self, "target_heads", int(target) if target >= 1 else float(target))
        because = f" with target_heads={target}"
        learned = f"{because}, which learns λ itself"
        self._require("penalty_form", self.penalty_form == "mean", f'"mean"{learned}')
        self._require("penalty_schedule", self.penalty_schedule == "constant", f'"constant"{learned}')
        self._require("penalty", self.penalty > 0, f"a positive number{because}: it is the scale of λ")
        # Without a hard phase the kept epoch could be one before the cut, and no vector would be trained as it is used.
        self._require("gate_share", self.gate_share < 1, f"below 1{because}: the vectors train on after the cut")

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise ValueError(f"{name} must be {allowed}; got {getattr(self, name)!r}")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {**asdict(self), "adam_betas": list(self.adam_betas)}

    def warmup_steps(self, n_steps: int) -> int:
        """Warm-up of the learning rates in steps."""
        return _steps_of(self.warmup, n_steps)

    def penalty_warmup_steps(self, n_steps: int) -> int:
        """Warm-up of λ in steps."""
        return _steps_of(self.penalty_warmup, n_steps)

    def gate_steps(self, n_steps: int) -> int:
        """How many steps, from the first, gates train in; at least one."""
        return max(1, round(self.gate_share * n_steps))


def _steps_of(share: float, n_steps: int) -> int:
    """A share of all steps if below 1, else a number of them."""
    return round(share * n_steps) if share < 1 else int(share)


def _is_count(value: object) -> bool:
    """An integer ≥ 1; True is none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: object) -> bool:
    """A finite real number; True is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Preset:
    """A named way to train JoLA: how it starts, which gate it uses at inference, and a training configuration."""

    edit: dict[str, Any]
    """Arguments for :class:`jola_interp.JoLA` beside the switches."""
    train: TrainConfig
    source: str
    """Where it comes from, in a sentence."""


PRESETS: dict[str, Preset] = {
    "selective": Preset(
        {"inference": "hard", "init_log_alpha": 2.0},
        TrainConfig(
            epochs=6,
            lr=5e-2,
            gate_lr=1.0,
            gate_lr_schedule="constant",
            gate_share=0.65,
            penalty_warmup=0.4,
        ),
        "JoLA §3 with gates that decide: the vectors grow fast (learning rate .05) while λ rises over two fifths of "
        "the steps; the gates move far and fast (learning rate 1, not annealed) and are then fixed, open or shut, "
        "while the vectors train on.",
    ),
    "paper": Preset(
        {"inference": "expected", "init_log_alpha": 2.0},
        TrainConfig(),
        "JoLA §3: one λ for both gates, gates start open, E[g] at inference; learning rates and λ from trials.",
    ),
    "reference": Preset(
        {"inference": "point", "init_log_alpha": 0.0},
        TrainConfig(
            lr=5e-3,
            gate_lr=5e-3,
            warmup=50,
            adam_epsilon=1e-8,
            penalty=REFERENCE_PENALTY["exponential"],
            penalty_form="reference",
            penalty_schedule="exponential",
            stop_on="loss",
            eos=False,
            answers="bare",
            beams=4,
            bucketed=False,
        ),
        "The released code, commit e2b73ce: weight λ on additive and 1 − λ on multiplicative gates, the point gate.",
    ),
}


DEFAULT_PRESET = "selective"
"""What ``fit`` and the demo use: of the three the one whose gates decide."""


def preset(name: str) -> Preset:
    """A preset by name. Raises ValueError on an unknown one."""
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}; got {name!r}")
    return PRESETS[name]


def resolve(config: TrainConfig | None, preset_name: str, overrides: dict[str, Any]) -> TrainConfig:
    """The configuration in force: ``config``, or else the preset's, with single fields overridden.

    Under ``penalty_form="reference"`` the penalty goes with the schedule: overriding ``penalty_schedule`` alone also
    takes the penalty that the released code has for that schedule (``REFERENCE_PENALTY``).

    Raises:
        ValueError: an unknown preset, an unknown field, or a value that is not allowed.
    """
    base = preset(preset_name).train if config is None else config
    if unknown := sorted(map(str, overrides.keys() - base.to_dict().keys())):
        raise ValueError(f"unknown training field {', '.join(unknown)}; there are: {', '.join(base.to_dict())}")
    settings = replace(base, **overrides)
    if settings.penalty_form == "reference" and "penalty_schedule" in overrides and "penalty" not in overrides:
        chosen = config is not None and config.penalty != REFERENCE_PENALTY[config.penalty_schedule]
        return settings if chosen else replace(settings, penalty=REFERENCE_PENALTY[settings.penalty_schedule])
    return settings
