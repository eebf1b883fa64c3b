"""How to train: one frozen dataclass, and the two presets the package ships."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from jola_interp.edits.base import PenaltyForm
from jola_interp.schedules import REFERENCE_PENALTY, LearningRateScheduleName, PenaltyScheduleName


@dataclass(frozen=True)
class TrainConfig:
    """Everything that ``fit`` can be told. The defaults are the ``paper`` preset.

    Raises:
        ValueError: a field outside its range, named with its value and what is allowed.
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
    """Peak learning rate of the vectors. The paper says 5e-4, its code 5e-3; see the README for what trials say."""
    gate_lr: float = 0.4
    """Peak learning rate of log α. Σ of it over the steps bounds how far a gate can travel."""
    lr_schedule: LearningRateScheduleName = "cosine"
    """Shape of both learning rates after warm-up."""
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
    one value means the same for any model size: 0.02 leaves nearly all gates open, 0.3 to 0.5 closes most
    multiplicative and many additive gates, 2 and more closes nearly all and costs score. Under "reference" it is the
    scale of λ (see ``PenaltySchedule``)."""
    penalty_form: PenaltyForm = "mean"
    """``mean``: CE + λ·(w_a·Σ P_a + w_m·Σ P_m)/gates. ``reference``: CE + λ·penalty_a + (1 − λ)·penalty_m, skipped when
    λ = 0, as the released code has it."""
    penalty_schedule: PenaltyScheduleName = "constant"
    """How λ moves over the steps."""
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
    """Prompt wrapper: "reference", "plain", or a template of your own that holds {instruction}."""
    max_length: int = 400
    """Longest row in tokens; longer prompts lose their start, answers lose nothing."""
    eos: bool = True
    """Whether answers end in EOS, so that the model learns to stop."""

    evaluate: bool = True
    """Score the base and the edited model on the test rows when training ends."""
    evaluation_batch_size: int = 16
    """Rows in one batch of validation and evaluation."""
    beams: int = 1
    """Beams when generating; 1 is greedy."""
    max_new_tokens: int | None = None
    """Longest generation; None is 16 for choices and 64 for text."""

    seed: int = 42
    """Seeds the starting values, the gate draws and the data order, each in a stream of its own."""
    log_every: int = 1
    """Record the gates every so many steps (the first and the last always)."""
    checkpoint_every: int | None = None
    """Also write a checkpoint every so many steps; one is written after each epoch in any case."""

    def __post_init__(self) -> None:
        for name in (
            "epochs",
            "batch_size",
            "accumulation",
            "max_length",
            "log_every",
            "beams",
            "evaluation_batch_size",
        ):
            self._require(name, isinstance(getattr(self, name), int) and getattr(self, name) >= 1, "an integer ≥ 1")
        for name in ("max_steps", "patience", "max_new_tokens", "checkpoint_every"):
            value = getattr(self, name)
            self._require(name, value is None or (isinstance(value, int) and value >= 1), "an integer ≥ 1 or None")
        for name in ("lr", "gate_lr", "adam_epsilon"):
            self._require(name, 0 < getattr(self, name) < float("inf"), "a positive number")
        for name in ("penalty", "weight_decay", "additive_weight", "multiplicative_weight", "warmup"):
            self._require(name, 0 <= getattr(self, name) < float("inf"), "a number ≥ 0")
        self._require("clip", self.clip is None or self.clip > 0, "a positive number or None")
        self._require("seed", isinstance(self.seed, int) and 0 <= self.seed < 2**63, "an integer from 0 to 2^63 − 1")
        betas = tuple(self.adam_betas)
        self._require("adam_betas", len(betas) == 2 and all(0 <= b < 1 for b in betas), "two numbers in [0, 1)")
        object.__setattr__(self, "adam_betas", betas)
        choices = {
            "lr_schedule": get_args(LearningRateScheduleName),
            "penalty_schedule": get_args(PenaltyScheduleName),
            "penalty_form": get_args(PenaltyForm),
            "stop_on": ("ce", "loss"),
        }
        for name, allowed in choices.items():
            self._require(name, getattr(self, name) in allowed, f"one of {', '.join(allowed)}")

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise ValueError(f"{name} must be {allowed}; got {getattr(self, name)!r}")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {**asdict(self), "adam_betas": list(self.adam_betas)}

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> TrainConfig:
        """From fields by name. Raises ValueError on names that do not exist."""
        names = [field.name for field in fields(cls)]
        if unknown := sorted(given.keys() - set(names)):
            raise ValueError(f"unknown training field {', '.join(unknown)}; there are: {', '.join(names)}")
        return cls(**given)

    def warmup_steps(self, n_steps: int) -> int:
        """Warm-up in steps."""
        return round(self.warmup * n_steps) if self.warmup < 1 else int(self.warmup)


@dataclass(frozen=True)
class Preset:
    """A named way to train JoLA: how it starts, which gate it uses at inference, and a training configuration."""

    edit: dict[str, Any]
    """Arguments for :class:`jola_interp.JoLA` beside the switches."""
    train: TrainConfig
    source: str
    """Where it comes from, in a sentence."""


PRESETS: dict[str, Preset] = {
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
            beams=4,
            bucketed=False,
        ),
        "The released code, commit e2b73ce: weight λ on additive and 1 − λ on multiplicative gates, the point gate.",
    ),
}


def preset(name: str) -> Preset:
    """A preset by name. Raises ValueError on an unknown one."""
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}; got {name!r}")
    return PRESETS[name]


def resolve(config: TrainConfig | None, preset_name: str, overrides: dict[str, Any]) -> TrainConfig:
    """The configuration in force: ``config``, or else the preset's, with single fields overridden."""
    base = preset(preset_name).train if config is None else config
    if unknown := sorted(overrides.keys() - base.to_dict().keys()):
        raise ValueError(f"unknown training field {', '.join(unknown)}; there are: {', '.join(base.to_dict())}")
    return replace(base, **overrides)
