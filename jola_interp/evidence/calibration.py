"""Would JoLA find heads that are known to be used? Plant sparse edits in the model itself, train on what they say."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from jola_interp import _files, selection
from jola_interp.config import TrainConfig, preset, resolve
from jola_interp.edits.jola import JoLA, Operation
from jola_interp.evidence.case import FOLDER, fresh, training_digest
from jola_interp.evidence.planting import Ground, PlantedGate, Planting, Prior, default_prior, plant, prior_of
from jola_interp.models import load_model
from jola_interp.runs import Run, edit_digest
from jola_interp.tasks import Task, load_task
from jola_interp.training import fit

if TYPE_CHECKING:
    import pandas as pd

    from jola_interp.backends import BackendName
    from jola_interp.models import Model

LEVEL = 0.95
"""Coverage of every interval."""
POWER = 0.8
"""The power that the smallest edit is told for."""
ENOUGH = 10
"""Planted gates below which no smallest edit is told."""
PRICE = 0.25
"""What a gate costs where no penalty is given: this share of what the median planted gate is worth."""
HEADS = (0, 1, 2, 4, 8, 1, 2, 4)
"""Planted heads of each planting where no Run says how many."""
WITH_RUN = 5
"""Plantings beside the empty one where a Run says how many heads."""
SETTINGS = (
    "gate_lr",
    "gate_lr_schedule",
    "gate_share",
    "lr",
    "adam_betas",
    "penalty",
    "penalty_form",
    "penalty_warmup",
    "target_heads",
)
"""Training fields that decide how far a log α travels: only where they agree does it mean the same in another Run."""


# -- results -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rate:
    """hits/n with Wilson's 95 % interval, heads (or gates) of one planting counted as independent."""

    value: float
    low: float
    high: float
    hits: int
    n: int

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}] ({self.hits} of {self.n})"


@dataclass(frozen=True)
class Chance:
    """What power and false discoveries come to where the selected heads of each planting are shuffled in their layers.

    power: mean over planted heads of 1 − C(n − m, s)/C(n, s): of the n heads of its layer s are selected, and m are the
    head itself and those that could host it. false_discovery: Σ s·(share of the layer's heads that belong to no planted
    one)/Σ s. NaN where nothing was planted, or nothing selected.
    """

    power: float
    false_discovery: float


@dataclass(frozen=True)
class Curve:
    """P(really used | log α), non-decreasing: knots, linear between them, constant beyond."""

    log_alpha: Float[np.ndarray, " knot"]
    probability: Float[np.ndarray, " knot"]

    def __call__(self, log_alpha: Float[np.ndarray, "*gates"]) -> Float[np.ndarray, "*gates"]:
        """NaN stays NaN."""
        values = np.interp(log_alpha, self.log_alpha, self.probability)
        return np.where(np.isnan(log_alpha), np.nan, values)


@dataclass(frozen=True)
class Brier:
    """Mean (p − really used)² over all gates: p = P(open) before, p = the curve of the OTHER plantings after."""

    before: float
    after: float
    gates: int


@dataclass(frozen=True)
class Group:
    """A planted head and the heads that could host all that one of its gates does: what is found is one of them.

    Attributes:
        unit: the planted head.
        hosts: planted operation to the heads, its own among them, that could host it.
    """

    unit: tuple[int, int]
    hosts: Mapping[Operation, tuple[tuple[int, int], ...]]

    @property
    def members(self) -> set[tuple[int, int]]:
        """All heads of the group."""
        return {self.unit}.union(*self.hosts.values())


@dataclass(frozen=True, eq=False)
class Trial:
    """One planting, and the gates of the JoLA that was trained on it.

    Attributes:
        name: of its Run's directory.
        planted: what was planted, gate by gate.
        log_alpha: kind of gate to log α [layer, head]; NaN where a head was not editable.
        effect: KL(teacher ‖ base), in nats per answer token.
        left: KL(teacher ‖ trained edit) on the validation rows, in nats per answer token.
        rule: which gates count as open.
    """

    name: str
    planted: tuple[PlantedGate, ...]
    log_alpha: Mapping[str, Float[np.ndarray, "layer head"]]
    effect: float
    left: float
    rule: str = selection.DEFAULT_RULE

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """One for each planted head."""
        found: dict[tuple[int, int], dict[Operation, tuple[tuple[int, int], ...]]] = {}
        for gate in self.planted:
            hosts = tuple((gate.layer, head) for head in (gate.head, *gate.hosts))
            found.setdefault((gate.layer, gate.head), {})[gate.operation] = hosts
        return tuple(Group(unit, hosts) for unit, hosts in found.items())

    @cached_property
    def open(self) -> dict[str, Bool[np.ndarray, "layer head"]]:
        """Kind to which gates are open."""
        return selection.open_gates(self.log_alpha, self.rule)

    @cached_property
    def status(self) -> Int[np.ndarray, "layer head"]:
        """How each head was found: codes into ``selection.STATUSES``."""
        return selection.status(self.log_alpha, self.rule)

    @cached_property
    def grouped(self) -> set[tuple[int, int]]:
        """Heads of any group."""
        return set().union(*(group.members for group in self.groups))

    @property
    def editable(self) -> Bool[np.ndarray, "layer head"]:
        """Heads that have a gate."""
        return np.asarray(np.any([np.isfinite(value) for value in self.log_alpha.values()], axis=0))

    @property
    def selected(self) -> list[tuple[int, int]]:
        """Heads with an open gate."""
        return [(int(layer), int(head)) for layer, head in np.argwhere(self.status > 0)]

    def kinds(self, operation: Operation) -> list[str]:
        """The kind of the gate that the operation listens to."""
        return [kind for kind in (operation, "shared") if kind in self.log_alpha]

    def hosting(self, operation: Operation) -> set[tuple[int, int]]:
        """Heads that are or could be the home of a planted gate of that operation."""
        return {unit for group in self.groups for unit in group.hosts.get(operation, ())}

    def is_found(self, gate: PlantedGate) -> bool:
        """Whether its own gate, or that of a head that could host it, is open."""
        heads = (gate.head, *gate.hosts)
        return any(self.open[kind][gate.layer, head] for kind in self.kinds(gate.operation) for head in heads)

    def statuses(self) -> Iterator[tuple[int, int]]:
        """(planted, found) codes: of each group as a whole, and of each head that is in none."""
        for group in self.groups:
            planted = sum(1 << get_args(Operation).index(operation) for operation in group.hosts)
            yield planted, int(np.bitwise_or.reduce([self.status[unit] for unit in group.members]))
        for layer, head in np.argwhere(self.editable):
            if (layer, head) not in self.grouped:
                yield 0, int(self.status[layer, head])

    def gates(self, kind: str) -> tuple[Float[np.ndarray, " gate"], Bool[np.ndarray, " gate"]]:
        """(log α, whether it was planted) of each gate of a kind; a group counts once, by its highest log α."""
        values = self.log_alpha[kind].copy()
        hosting = [hosts for group in self.groups if (hosts := self._hosts(group, kind))]
        highest = [max(self.log_alpha[kind][unit] for unit in hosts) for hosts in hosting]
        for unit in {unit for hosts in hosting for unit in hosts}:
            values[unit] = np.nan
        others = values[np.isfinite(values)]
        truth = np.concatenate([np.ones(len(highest), bool), np.zeros(len(others), bool)])
        return np.concatenate([np.array(highest, dtype=float), others]), truth

    def _hosts(self, group: Group, kind: str) -> set[tuple[int, int]]:
        """Heads whose gate of that kind could open for the group: for either operation where the gate is shared."""
        return {unit for operation, hosts in group.hosts.items() if kind in self.kinds(operation) for unit in hosts}

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; None stands for NaN."""
        cells = {kind: np.where(np.isfinite(value), value, None) for kind, value in self.log_alpha.items()}  # type: ignore[call-overload]
        return {
            "name": self.name,
            "planted": [gate.to_dict() for gate in self.planted],
            "log_alpha": {kind: value.tolist() for kind, value in cells.items()},
            "effect": self.effect,
            "left": self.left,
            "rule": self.rule,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """What :meth:`to_dict` gave."""
        log_alpha = {kind: np.array(value, dtype=np.float32) for kind, value in content["log_alpha"].items()}
        planted = tuple(PlantedGate.from_dict(gate) for gate in content["planted"])
        return cls(**{**content, "log_alpha": log_alpha, "planted": planted})


@dataclass(frozen=True, eq=False)
class Calibration:
    """What JoLA makes of edits that are known; made by :func:`calibrate`. All that is told follows from the trials.

    A head counts as found if it, or a head that could host what was planted on it, is selected; none of these is a
    false discovery then. Power is the share of planted heads that were found, the false-discovery rate the share of
    selected heads that belong to no planted one.

    Attributes:
        model, task: names.
        settings: the training's fields and, under "edit", the trained edit's switches.
        trials: one for each planting.
    """

    model: str
    task: str
    settings: Mapping[str, Any]
    trials: tuple[Trial, ...]

    # -- rates -----------------------------------------------------------------------------------------------------

    @cached_property
    def power(self) -> Rate | None:
        """Share of planted heads found; None where none was planted."""
        groups = [(trial, group) for trial in self.trials for group in trial.groups]
        return _rate([any(trial.status[unit] for unit in group.members) for trial, group in groups])

    @cached_property
    def false_discovery(self) -> Rate | None:
        """Share of selected heads that belong to no planted one; None where none was selected."""
        return _rate([unit not in trial.grouped for trial in self.trials for unit in trial.selected])

    @cached_property
    def by_chance(self) -> Chance:
        """Both rates for as many heads in every layer, drawn at random."""
        found, false, selected = [], 0.0, 0
        for trial in self.trials:
            editable = trial.editable.sum(1)
            chosen = np.bincount([layer for layer, _ in trial.selected], minlength=len(editable))
            owned = np.bincount([layer for layer, _ in trial.grouped], minlength=len(editable))
            selected += int(chosen.sum())
            false += float((chosen * (1 - owned / np.maximum(editable, 1))).sum())
            for group in trial.groups:
                n, s = int(editable[group.unit[0]]), int(chosen[group.unit[0]])
                found.append(1 - math.comb(n - len(group.members), s) / math.comb(n, s))
        return Chance(float(np.mean(found)) if found else math.nan, false / selected if selected else math.nan)

    @cached_property
    def gate_power(self) -> dict[Operation, Rate | None]:
        """Operation to the share of its planted gates found, as that operation."""
        gates = [(gate.operation, trial.is_found(gate)) for trial in self.trials for gate in trial.planted]
        return {name: _rate([hit for operation, hit in gates if operation == name]) for name in get_args(Operation)}

    @cached_property
    def gate_false_discovery(self) -> dict[Operation, Rate | None]:
        """Operation to the share of its open gates that no planted gate of that operation explains."""
        return {
            name: _rate([
                (int(layer), int(head)) not in trial.hosting(name)
                for trial in self.trials
                for kind in trial.kinds(name)
                for layer, head in np.argwhere(trial.open[kind])
            ])
            for name in get_args(Operation)
        }  # fmt: skip

    @cached_property
    def null_open(self) -> Rate | None:
        """Share of all gates open where nothing was planted; None without such a planting."""
        empty = [trial for trial in self.trials if not trial.planted]
        return _rate([
            bool(hit)
            for trial in empty
            for kind, value in trial.open.items()
            for hit in value[np.isfinite(trial.log_alpha[kind])]
        ])  # fmt: skip

    @cached_property
    def confusion(self) -> Int[np.ndarray, "planted found"]:
        """Numbers of heads by status, planted × found, in the order of ``selection.STATUSES``; a group counts once."""
        table = np.zeros((len(selection.STATUSES),) * 2, dtype=int)
        for trial in self.trials:
            for planted, found in trial.statuses():
                table[planted, found] += 1
        return table

    # -- how small -------------------------------------------------------------------------------------------------

    @cached_property
    def smallest_effect(self) -> float | None:
        """The least effect (KL in nats per answer token of a planted gate alone) found with power ≥ .8.

        By logistic regression of found on ln effect over all planted gates, a weak ridge (1/50) on the slope. Never
        below the least effect planted; None where fewer than ``ENOUGH`` gates were planted, power does not rise with
        effect, or .8 is not reached within what was planted.
        """
        gates = [(gate.effect, trial.is_found(gate)) for trial in self.trials for gate in trial.planted]
        return _smallest(gates)

    @cached_property
    def smallest_size(self) -> dict[Operation, float | None]:
        """Operation to the least size found with power ≥ .8: ‖a‖/(√d_head·rms(z)), ‖m‖/√d_head. As above."""
        gates = [(gate, trial.is_found(gate)) for trial in self.trials for gate in trial.planted]
        return {
            name: _smallest([(g.size, hit) for g, hit in gates if g.operation == name]) for name in get_args(Operation)
        }

    # -- how sure --------------------------------------------------------------------------------------------------

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """Kind of gate to P(planted | log α) over all gates of all plantings.

        Isotonic regression (pool adjacent violators; Zadrozny and Elkan 2002, "Transforming classifier scores into
        accurate multiclass probability estimates"), one pseudo-gate against the trend at either end, so that no
        finite number of plantings makes 0 or 1 of it.
        """
        return {kind: _isotonic(*self._gates(kind, self.trials)) for kind in self._kinds}

    @cached_property
    def brier(self) -> Brier | None:
        """Brier score of P(open) and, each planting judged by the curves of the others, of the curves; None where
        there are no others."""
        if len(self.trials) < 2:
            return None
        before, after = [], []
        for left_out in self.trials:
            rest = [trial for trial in self.trials if trial is not left_out]
            for kind in left_out.log_alpha:
                x, truth = left_out.gates(kind)
                before.append((selection.measure("p_open", x) - truth) ** 2)
                after.append((_isotonic(*self._gates(kind, rest))(x) - truth) ** 2)
        gates = np.concatenate(before)
        return Brier(float(gates.mean()), float(np.concatenate(after).mean()), len(gates))

    def probability(self, run: Run) -> dict[str, Float[np.ndarray, "layer head"]]:
        """Kind to the probability that each gate's operation is really used at its head, given its log α.

        It holds for edits like those planted: among as many heads, by a training with the same settings. NaN where a
        head is not editable. Warns where the Run was trained with other gate settings, since a log α of another
        learning rate or penalty means something else.

        Raises:
            ValueError: a Run with a kind of gates that was not calibrated.
        """
        log_alphas = run.log_alphas()
        if missing := sorted(log_alphas.keys() - self.curves.keys()):
            raise ValueError(f"run: its {', '.join(missing)} gates were not calibrated, {', '.join(self.curves)} were")
        train = json.loads(json.dumps(run.config["train"]))
        if other := [name for name in SETTINGS if train[name] != self.settings.get(name)]:
            told = ", ".join(f"{name} {train[name]} (calibrated: {self.settings.get(name)})" for name in other)
            warnings.warn(f"{run.path} was trained with other settings: {told}", stacklevel=2)
        return {kind: self.curves[kind](value) for kind, value in log_alphas.items()}

    @property
    def _kinds(self) -> list[str]:
        return sorted({kind for trial in self.trials for kind in trial.log_alpha})

    @staticmethod
    def _gates(kind: str, trials: Sequence[Trial]) -> tuple[np.ndarray, np.ndarray]:
        parts = [trial.gates(kind) for trial in trials if kind in trial.log_alpha]
        return np.concatenate([x for x, _ in parts]), np.concatenate([truth for _, truth in parts])

    # -- showing and keeping ---------------------------------------------------------------------------------------

    def sentence(self) -> str:
        """The answer in words."""
        chance = self.by_chance
        found = f"power {self.power}, by chance {chance.power:.2f}" if self.power else "nothing was planted"
        false = "nothing was selected"
        if self.false_discovery:
            false = f"false-discovery rate {self.false_discovery}, by chance {chance.false_discovery:.2f}"
        least = f"; edits worth {self.smallest_effect:.3f} nat or more are found" if self.smallest_effect else ""
        return f"{len(self.trials)} plantings: {found}; {false}{least}."

    def to_frame(self) -> pd.DataFrame:
        """One row per quantity: value, ends of its 95 % interval, of how many; NaN where it cannot be told."""
        import pandas as pd

        rates: dict[str, Rate | None] = {"power": self.power, "false_discovery": self.false_discovery}
        rates |= {f"power_{name}": rate for name, rate in self.gate_power.items()}
        rates |= {f"false_discovery_{name}": rate for name, rate in self.gate_false_discovery.items()}
        rates |= {"null_open": self.null_open}
        rows = [{"quantity": name, **(asdict(rate) if rate else {})} for name, rate in rates.items()]
        numbers = {"smallest_effect": self.smallest_effect}
        numbers |= {f"smallest_size_{name}": value for name, value in self.smallest_size.items()}
        numbers |= {f"{name}_by_chance": value for name, value in asdict(self.by_chance).items()}
        if self.brier:
            numbers |= {"brier_p_open": self.brier.before, "brier_calibrated": self.brier.after}
        rows += [{"quantity": name, "value": value} for name, value in numbers.items()]
        columns = ["quantity", "value", "low", "high", "hits", "n"]
        return pd.DataFrame(rows, columns=columns).set_index("quantity").astype(float)

    def planted_frame(self) -> pd.DataFrame:
        """One row per planted gate: trial, label, layer, head, operation, size, effect, hosts, found."""
        import pandas as pd

        columns = ["trial", "label", "layer", "head", "operation", "size", "effect", "hosts", "found"]
        rows = [
            {"trial": trial.name, "label": gate.label, **gate.to_dict(), "found": trial.is_found(gate)}
            for trial in self.trials
            for gate in trial.planted
        ]
        return pd.DataFrame(rows, columns=columns)

    def confusion_frame(self) -> pd.DataFrame:
        """:attr:`confusion` with its labels."""
        import pandas as pd

        index = pd.Index(selection.STATUSES, name="planted")
        return pd.DataFrame(self.confusion, index, pd.Index(selection.STATUSES, name="found"))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the trials, and under "summary" what follows from them."""
        summary = {
            "sentence": self.sentence(),
            "power": self.power and asdict(self.power),
            "false_discovery": self.false_discovery and asdict(self.false_discovery),
            "by_chance": {key: None if math.isnan(x) else x for key, x in asdict(self.by_chance).items()},
            "gate_power": {name: rate and asdict(rate) for name, rate in self.gate_power.items()},
            "gate_false_discovery": {name: rate and asdict(rate) for name, rate in self.gate_false_discovery.items()},
            "null_open": self.null_open and asdict(self.null_open),
            "confusion": self.confusion.tolist(),
            "smallest_effect": self.smallest_effect,
            "smallest_size": self.smallest_size,
            "brier": self.brier and asdict(self.brier),
        }
        trials = [trial.to_dict() for trial in self.trials]
        return {
            "model": self.model,
            "task": self.task,
            "settings": dict(self.settings),
            "summary": summary,
            "trials": trials,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """What :meth:`to_dict` gave; the summary is made anew."""
        trials = tuple(Trial.from_dict(trial) for trial in content["trials"])
        return cls(content["model"], content["task"], content["settings"], trials)

    def save(self, path: str | Path) -> Path:
        """Write :meth:`to_dict` as JSON; returns the path."""
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        _files.write_json(file, self.to_dict())
        return file

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what :meth:`save` wrote."""
        return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))

    def __repr__(self) -> str:
        return f"Calibration({self.model} on {self.task}: {self.sentence()})"


# -- calibrating ---------------------------------------------------------------------------------------------------


def calibrate(
    model: str | Path | Model,
    task: str | Path | Task,
    run: Run | str | Path | None = None,
    *,
    heads: Sequence[int] | None = None,
    prior: Prior | None = None,
    min_effect: float = 0.0,
    edit: JoLA | None = None,
    config: TrainConfig | None = None,
    preset: str = "selective",
    rule: str = selection.DEFAULT_RULE,
    backend: BackendName = "lens",
    seed: int = 0,
    out: str | Path | None = None,
    **overrides: Any,
) -> Calibration:
    """Plant edits in the model, train JoLA on KL(planted ‖ edited) at the answers of the task, and count what it finds.

    The training is that of ``run`` if there is one: same edit, same fields, same penalty, since a nat of KL is a nat of
    cross-entropy. Without one the penalty is scaled to what was planted: a gate costs a quarter (``PRICE``) of what
    the median planted gate alone is worth, λ = price · number of gates, in every planting alike.

    Each planting's training is a Run in ``out``, in a folder whose name ends in eight characters that differ where
    trainings differ; one that is finished there is read instead of trained, so that a calibration that was cut short
    goes on where it stopped.

    Args:
        model, task: as for ``fit``.
        run: a Run of this model, whose selected heads' statuses, sizes and layers the planted edits are drawn from.
        heads: planted heads, a number for each planting. None: 0 and five times as many as the Run selects; without
            a Run ``HEADS``, none above half of the heads.
        prior: what planted edits are drawn from; None is the Run's, or
            :func:`~jola_interp.evidence.planting.default_prior`.
        min_effect: see :func:`~jola_interp.evidence.planting.plant`.
        edit: what is trained; None is the Run's switches, or the preset's.
        config: training fields; None is the Run's, or the preset's.
        preset: where neither a Run nor ``config`` or ``edit`` says otherwise.
        rule: which gates count as open.
        backend: as for ``fit``.
        seed: of the plantings; each has a stream of its own, so that more of them leave the others as they are.
        out: where the Runs go. None is ``evidence/calibration`` in the Run's directory, or
            ``runs/<task>/calibration-s<seed>``.
        **overrides: single training fields.

    Raises:
        ValueError: an edit without gates on heads, a number of heads that can't be planted, no penalty and nothing
            planted to scale it to, or what ``fit`` and :func:`~jola_interp.evidence.planting.plant` refuse.
        KeyboardInterrupt: a training was interrupted; the same call goes on.
    """
    selection.parse_rule(rule)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be an integer ≥ 0, got {seed!r}")
    found = run if isinstance(run, Run) or run is None else Run.load(run)
    data = task if isinstance(task, Task) else load_task(task)
    target = load_model(model)
    if found is not None:
        found.check_model(target)
    settings = _settings(found, config, preset, overrides)
    student = _student(target, found, edit, preset)
    ground = Ground(target, data, settings, "lens" if target.booted else backend)
    prior = prior or _prior(found, student, ground, rule)
    numbers = _numbers(heads, found, student, rule)
    mask = student.masks()["heads"].cpu().numpy()
    plantings = [
        plant(ground, prior, number, np.random.default_rng([seed, i]), among=mask, min_effect=min_effect)
        for i, number in enumerate(numbers)
    ]
    if found is None and config is None and "penalty" not in overrides:
        settings = replace(settings, penalty=_scaled_penalty(plantings, student))
    folder = _folder(out, found, data, seed)
    ends = [_digest(ground, data, planting, student, settings, preset) for planting in plantings]
    trials = tuple(
        recover(ground, data, planting, student, settings, folder / f"planting-{i:03d}-{end}", preset=preset, rule=rule)
        for i, (planting, end) in enumerate(zip(plantings, ends, strict=True))
    )
    return Calibration(target.name, data.name, recorded(settings, student), trials)


def recover(
    ground: Ground,
    task: Task,
    planting: Planting,
    edit: JoLA,
    settings: TrainConfig,
    out: Path,
    *,
    preset: str = "selective",
    rule: str = selection.DEFAULT_RULE,
) -> Trial:
    """Train ``edit`` on what the planted edit says, and read its gates.

    Raises:
        KeyboardInterrupt: the training was interrupted; the same call goes on.
    """
    run = fit(
        ground.model, task, edit, replace(settings, evaluate=False), preset=preset, backend=ground.backend,
        out=out, resume=True, teacher=planting.teacher,
    )  # fmt: skip
    if run.status != "finished":
        raise KeyboardInterrupt(f"{out}: {run.status}; the same call goes on")
    left = float(run.metrics["validation_ce"].dropna().iloc[-1])
    return Trial(out.name, planting.gates, run.log_alphas(), planting.effect, max(0.0, left), rule)


def recorded(settings: TrainConfig, edit: JoLA) -> dict[str, Any]:
    """What a Calibration says of how it was trained."""
    return {**settings.to_dict(), "edit": edit.settings()}


def _settings(run: Run | None, config: TrainConfig | None, name: str, overrides: dict[str, Any]) -> TrainConfig:
    if config is None and run is not None:
        train = run.config["train"]
        config = TrainConfig(**{**train, "adam_betas": tuple(train["adam_betas"])})
    return resolve(config, name, {"evaluate": False, "checkpoint_every": None, **overrides})


def _student(model: Model, run: Run | None, edit: JoLA | None, name: str) -> JoLA:
    if edit is None:
        edit = JoLA(model.head_shape, **preset(name).edit) if run is None else fresh(run.edit)
    if "heads" not in edit.sites or not edit.site("heads").kinds:
        raise ValueError("edit: calibration is about heads that gates select; this edit has no gates on heads")
    return edit


def _prior(run: Run | None, edit: JoLA, ground: Ground, rule: str) -> Prior:
    if run is not None:
        return prior_of(run, ground.rms, rule)
    return default_prior(ground.shape, edit.site("heads").operations)


def _numbers(heads: Sequence[int] | None, run: Run | None, edit: JoLA, rule: str) -> list[int]:
    editable = int(edit.masks()["heads"].sum())
    if heads is None:
        given = HEADS if run is None else (0, *[len(run.selection(rule))] * WITH_RUN)
        heads = [min(number, editable // 2) for number in given] if run is None else given
    if wrong := [number for number in heads if not 0 <= number <= editable]:
        raise ValueError(f"heads must be numbers from 0 to {editable}, the heads that can be edited; got {wrong}")
    if not len(heads):
        raise ValueError("heads is empty: name the number of planted heads of each planting, such as (0, 4, 4)")
    return list(heads)


def _scaled_penalty(plantings: Sequence[Planting], edit: JoLA) -> float:
    """λ at which one gate costs ``PRICE`` of the median effect."""
    effects = [gate.effect for planting in plantings for gate in planting.gates]
    if not effects:
        raise ValueError("heads: nothing is planted, so that no penalty can be scaled to it: give penalty=")
    gates = sum(int(edit.masks()[site].sum()) for site, _ in edit.log_alphas())
    return PRICE * float(np.median(effects)) * gates


def _digest(ground: Ground, task: Task, planting: Planting, edit: JoLA, settings: TrainConfig, preset: str) -> str:
    """Of a planting's training: what is trained, from where, and on what the planted edit says."""
    teacher, start = edit_digest(planting.teacher), edit_digest(edit) if edit.initialised else "drawn"
    return training_digest(edit, settings, task, ground.model, ground.backend, preset, teacher, start)


def _folder(out: str | Path | None, run: Run | None, task: Task, seed: int) -> Path:
    if out is not None:
        return Path(out)
    return run.path / FOLDER / "calibration" if run else Path("runs") / task.name / f"calibration-s{seed}"


# -- arithmetic ----------------------------------------------------------------------------------------------------


def _rate(hits: Sequence[bool]) -> Rate | None:
    from scipy.stats import binomtest

    if not len(hits):
        return None
    count, n = int(np.sum(hits)), len(hits)
    interval = binomtest(count, n).proportion_ci(LEVEL, method="wilson")
    return Rate(count / n, float(interval.low), float(interval.high), count, n)


def _isotonic(log_alpha: Float[np.ndarray, " gate"], truth: Bool[np.ndarray, " gate"]) -> Curve:
    """Least squares under monotony, with a planted pseudo-gate below all others and one that was not above."""
    from scipy.optimize import isotonic_regression

    knots, place = np.unique(log_alpha, return_inverse=True)
    weights = np.bincount(place).astype(float)
    shares = np.bincount(place, weights=truth) / weights
    fitted = isotonic_regression(np.r_[1.0, shares, 0.0], weights=np.r_[1.0, weights, 1.0]).x
    return Curve(knots, np.asarray(fitted[1:-1]))


def _smallest(gates: Sequence[tuple[float, bool]]) -> float | None:
    """x at which σ(b₀ + b₁ ln x) = .8."""
    from scipy.optimize import minimize

    if len(gates) < ENOUGH or not (least := min(value for value, _ in gates)) > 0:
        return None
    x, hit = np.log([value for value, _ in gates]), np.array([found for _, found in gates], dtype=float)
    if hit.all():
        return float(least)
    centre, scale = x.mean(), x.std() or 1.0

    def loss(b: Float[np.ndarray, " 2"]) -> float:
        z = b[0] + b[1] * (x - centre) / scale
        return float(np.logaddexp(0, z).sum() - hit @ z + b[1] ** 2 / 100)

    intercept, slope = minimize(loss, np.zeros(2)).x
    if not slope > 0:
        return None
    reached = centre + scale * (np.log(POWER / (1 - POWER)) - intercept) / slope
    return max(float(np.exp(reached)), float(least)) if reached <= x.max() else None
