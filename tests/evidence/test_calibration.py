"""What is planted is what was asked for; what counts as found follows from it; and JoLA finds it on a tiny model."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jola_interp as ji
from jola_interp import selection
from jola_interp.backends import attach
from jola_interp.backends.restart import RestartError
from jola_interp.batching import Encoded
from jola_interp.edits.jola import JoLA
from jola_interp.evidence import calibration as module
from jola_interp.evidence import planting as planting_module
from jola_interp.evidence.calibration import Calibration, Trial, calibrate
from jola_interp.evidence.planting import Ground, PlantedGate, Prior, default_prior, plant, prior_of
from jola_interp.models import Model, load_model
from jola_interp.objective import TeacherTargets
from jola_interp.runs import Run
from jola_interp.tasks import Example, Task
from tests.conftest import build_hf
from tests.runs_by_hand import make_run

CONFIG = ji.TrainConfig(
    epochs=1000, max_steps=220, batch_size=16, lr=0.1, gate_lr=0.3, gate_lr_schedule="constant", gate_share=0.85,
    penalty_warmup=0.4, adam_betas=(0.9, 0.98), adam_epsilon=1e-8, patience=None, restore_best=False, evaluate=False,
    wrapper="{instruction}", eos=False, log_every=50,
)  # fmt: skip
"""Trains long enough for gates to decide on a model of this size."""
MIN_EFFECT = 0.05
TWINS = ((1, 0), (1, 2))
OPEN, SHUT = 8.0, -8.0


# -- a model with twins --------------------------------------------------------------------------------------------


@pytest.fixture
def letters() -> Task:
    """Random letters answered by random letters."""
    drawn = np.random.default_rng(0).choice(list("abcdefghijklmnop"), size=(136, 8))
    rows = [Example("".join(row[:4]), "".join(row[4:]), id=str(i)) for i, row in enumerate(drawn)]
    return Task("letters", tuple(rows[:128]), tuple(rows[128:]), (), kind="text")


@pytest.fixture
def twinned(tokenizer: Any) -> Model:
    """Two layers of four heads, H·d_head half of d_model; heads 0 and 2 of layer 1 are the same."""
    hf = build_hf("llama", hidden_size=64, num_key_value_heads=4, head_dim=8)
    attention = hf.model.layers[1].self_attn
    with torch.no_grad():
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            projection.weight[16:24] = projection.weight[:8]
        attention.o_proj.weight[:, 16:24] = attention.o_proj.weight[:, :8]
    return load_model(hf, tokenizer=tokenizer)


@pytest.fixture
def ground(twinned: Model, letters: Task) -> Ground:
    return Ground(twinned, letters, CONFIG, "hooks")


def drawn(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# -- planting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tokens", "expected"), [(1, 1), (7, 1), (8, 2), (20, 3), (99, 3)])
def test_effects_are_measured_on_as_few_rows_as_hold_enough_answer_tokens(tokens: int, expected: int) -> None:
    rows = [Encoded(tuple(range(10)), 3, row) for row in range(3)]
    assert len(planting_module._first_with(rows, tokens)) == expected


def test_each_planted_gate_is_worth_what_was_asked_for_and_is_of_the_size_it_says(ground: Ground) -> None:
    planting = plant(ground, default_prior(ground.shape), 4, drawn(), min_effect=MIN_EFFECT)
    assert len({(gate.layer, gate.head) for gate in planting.gates}) == 4
    part = planting.teacher.site("heads")
    for gate in planting.gates:
        vector = part.vectors[gate.operation][gate.layer, gate.head]
        unit = float(ground.rms[gate.layer, gate.head]) if gate.operation == "additive" else 1.0
        assert gate.effect >= MIN_EFFECT
        assert gate.size == pytest.approx(float(vector.norm()) / math.sqrt(8) / unit, rel=1e-5)
        alone = planting.teacher.restricted([gate.label], [gate.operation])
        assert gate.effect == pytest.approx(ground.effect(alone), rel=1e-4)


def test_only_planted_heads_are_edited_and_nothing_planted_changes_nothing(ground: Ground) -> None:
    planting = plant(ground, default_prior(ground.shape), 2, drawn())
    planted = {(gate.operation, gate.layer, gate.head) for gate in planting.gates}
    for operation, vector in planting.teacher.site("heads").vectors.items():
        acting = {(operation, int(i), int(j)) for i, j in vector.any(-1).nonzero()}
        assert acting == {entry for entry in planted if entry[0] == operation}
    empty = plant(ground, default_prior(ground.shape), 0, drawn())
    assert empty.gates == () and ground.effect(empty.teacher) == 0


@pytest.mark.parametrize("restarts", [True, False])
def test_the_worth_of_an_edit_is_the_kl_of_two_whole_passes(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, restarts: bool
) -> None:
    if not restarts:

        def refused(*_: Any, **__: Any) -> Any:
            raise RestartError("this architecture cannot be restarted")

        monkeypatch.setattr(planting_module, "recorded", refused)
    for layer in range(ground.shape.layers):
        edit = JoLA(ground.shape, gates="none", heads=[(layer, 1)], init_std=0.3).initialise(torch.Generator())
        with attach(edit, ground.model, "hooks"):
            teacher = TeacherTargets(ground.model, ground.rows, ())
        whole = sum(float(teacher.loss(ground.model, batch)) for batch in ground._batches)
        tokens = sum(batch.n_answer_tokens for batch in ground._batches)
        assert whole > 0
        assert ground.effect(edit) == pytest.approx(whole / tokens, rel=1e-4)


def test_in_bfloat16_too_a_student_that_says_what_the_teacher_says_costs_nothing(ground: Ground) -> None:
    model = load_model(ground.model.hf.bfloat16(), tokenizer=ground.model.tokenizer)
    targets = TeacherTargets(model, ground.rows, ())
    assert model.dtype == torch.bfloat16
    assert [float(targets.loss(model, batch)) for batch in ground._batches] == [0.0] * len(ground._batches)


def test_the_same_seed_plants_the_same_edit(ground: Ground) -> None:
    first, again, other = (plant(ground, default_prior(ground.shape), 3, drawn(seed)) for seed in (1, 1, 2))
    assert first.gates == again.gates != other.gates
    for name, tensor in first.teacher.tensors().items():
        assert torch.equal(tensor, again.teacher.tensors()[name])


def test_planted_edits_keep_to_the_heads_and_statuses_they_are_drawn_from(ground: Ground) -> None:
    among = np.zeros((2, 4), dtype=bool)
    among[0, 1:3] = among[1, 3] = True
    prior = Prior(("both",), {"additive": (0.5,), "multiplicative": (2.0,)}, (1.0, 0.0))
    planting = plant(ground, prior, 2, drawn(), among=among)
    found = {(gate.layer, gate.head, gate.operation): gate.size for gate in planting.gates}
    sizes = {"additive": 0.5, "multiplicative": 2.0}
    assert found.keys() == {(0, head, operation) for head in (1, 2) for operation in sizes}
    assert all(size == pytest.approx(sizes[key[2]], rel=1e-5) for key, size in found.items())


@pytest.mark.parametrize("operation", ["additive", "multiplicative"])
def test_twins_are_exchangeable_and_other_heads_are_not(ground: Ground, operation: Any) -> None:
    vector = torch.randn(8, generator=torch.Generator().manual_seed(0))
    (layer, first), (_, second) = TWINS
    assert ground.hosts(layer, first, operation, vector) == (second,)
    assert ground.hosts(layer, second, operation, vector) == (first,)
    shares = ground.shares(layer, first, operation, vector)
    assert shares[[first, second]] == pytest.approx([1, 1], abs=1e-6)
    assert ((shares >= 0) & (shares < 1 + 1e-6)).all() and shares[[1, 3]].max() < 0.9
    assert ground.hosts(layer, 1, operation, vector) == ground.hosts(0, 0, operation, vector) == ()


def test_heads_of_equal_output_but_other_attention_exchange_offsets_and_no_scales(
    twinned: Model, letters: Task
) -> None:
    with torch.no_grad():
        weight = twinned.hf.model.layers[1].self_attn.v_proj.weight
        weight[16:24] = torch.randn(8, 64, generator=torch.Generator().manual_seed(1)) * weight.std()
    ground = Ground(twinned, letters, CONFIG, "hooks")
    vector = torch.ones(8)
    assert ground.hosts(1, 0, "additive", vector) == (2,)
    assert ground.hosts(1, 0, "multiplicative", vector) == ()


def test_a_prior_of_a_run_holds_the_statuses_and_sizes_of_its_selected_heads(tmp_path: Path) -> None:
    run = make_run(tmp_path, train={"adam_betas": [0.9, 0.999]}, inference="hard")
    chosen, part = run.selected(), run.edit.site("heads")
    prior = prior_of(run, torch.full((3, 4), 0.5))
    assert sorted(prior.statuses) == sorted(chosen.statuses)
    opened = selection.open_gates(run.log_alphas())
    expected = {
        operation: [
            float(part.vectors[operation][i, j].detach().norm()) / 2 / unit for i, j in np.argwhere(opened[operation])
        ]
        for operation, unit in (("additive", 0.5), ("multiplicative", 1.0))
    }
    for operation, sizes in expected.items():
        assert prior.sizes[operation] == pytest.approx(sizes, rel=1e-5)  # type: ignore[index]
    counts = [sum(layer == i for layer, _ in chosen.units) for i in range(3)]
    assert np.argsort(prior.layers, kind="stable").tolist() == np.argsort(counts, kind="stable").tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 9}, "heads: 9 were to be planted"),
        ({"min_effect": 1e6}, "min_effect"),
        ({"prior": {"layers": (1.0,)}}, "prior.layers has 1 weights"),
        ({"prior": {"statuses": ("none",)}}, "prior.statuses"),
        ({"prior": {"sizes": {"additive": (1.0,)}}}, "multiplicative"),
        ({"prior": {"layers": (0.0, 0.0)}}, "prior.layers must be weights"),
    ],
)
def test_what_cannot_be_planted_is_refused(ground: Ground, changes: dict[str, Any], message: str) -> None:
    usual = default_prior(ground.shape)
    fields = {"statuses": usual.statuses, "sizes": usual.sizes, "layers": usual.layers}
    with pytest.raises(ValueError, match=message):
        prior = Prior(**{**fields, **changes.get("prior", {})})
        plant(ground, prior, changes.get("heads", 1), drawn(), min_effect=changes.get("min_effect", 0.0))


# -- counting ------------------------------------------------------------------------------------------------------


def gate(head: int, operation: Any = "additive", hosts: tuple[int, ...] = (), effect: float = 0.1) -> PlantedGate:
    return PlantedGate(0, head, operation, 1.0, effect, hosts)


def trial(
    *planted: PlantedGate, add: tuple[int, ...] = (), multiply: tuple[int, ...] = (), heads: int = 6, name: str = "t"
) -> Trial:
    """One layer of heads, the named ones open."""
    log_alpha = {kind: np.full((1, heads), SHUT, dtype=np.float32) for kind in ("additive", "multiplicative")}
    log_alpha["additive"][0, list(add)] = OPEN
    log_alpha["multiplicative"][0, list(multiply)] = OPEN
    return Trial(name, planted, log_alpha, effect=0.1, left=0.0)


def calibration(*trials: Trial) -> Calibration:
    return Calibration("tiny", "toy", {}, trials)


def test_rates_count_heads_and_gates() -> None:
    found = calibration(trial(gate(0), gate(1), gate(2, "multiplicative"), add=(0, 4), multiply=(2, 5)))
    assert (found.power.hits, found.power.n) == (2, 3)  # type: ignore[union-attr]
    assert (found.false_discovery.hits, found.false_discovery.n) == (2, 4)  # type: ignore[union-attr]
    by_kind = {name: (rate.hits, rate.n) for name, rate in found.gate_power.items() if rate}
    assert by_kind == {"additive": (1, 2), "multiplicative": (1, 1)}
    assert found.power.low < 2 / 3 < found.power.high  # type: ignore[union-attr]


@pytest.mark.parametrize("opened", [(0,), (3,), (0, 3)])
def test_a_group_is_found_by_any_of_its_heads_and_none_of_them_is_false(opened: tuple[int, ...]) -> None:
    found = calibration(trial(gate(0, hosts=(3,)), add=opened))
    assert found.power.value == 1 and found.false_discovery.value == 0  # type: ignore[union-attr]
    assert found.confusion.tolist() == [[4, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_the_other_operation_at_a_host_finds_the_head_but_not_the_gate() -> None:
    found = calibration(trial(gate(0, hosts=(3,)), multiply=(3,)))
    assert found.power.value == 1 and found.gate_power["additive"].value == 0  # type: ignore[union-attr]
    assert found.gate_false_discovery["multiplicative"].value == 1  # type: ignore[union-attr]
    assert found.confusion[1].tolist() == [0, 0, 1, 0]


def test_the_confusion_has_every_head_once_in_the_row_of_what_was_planted() -> None:
    both = (gate(1), gate(1, "multiplicative"))
    found = calibration(trial(*both, gate(2), add=(1, 4), multiply=(1,)), trial(gate(0), add=(0,)))
    assert found.confusion.sum(1).tolist() == [9, 2, 0, 1]
    assert found.confusion.tolist() == [[8, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]


def test_nothing_planted_gives_no_power_and_counts_open_gates() -> None:
    found = calibration(trial(add=(2,)), trial())
    assert found.power is None and found.false_discovery.value == 1  # type: ignore[union-attr]
    assert (found.null_open.hits, found.null_open.n) == (1, 24)  # type: ignore[union-attr]
    assert calibration(trial(gate(0))).null_open is None


def test_chance_is_what_shuffled_selections_reach() -> None:
    found = calibration(trial(gate(0), gate(1, hosts=(2,)), add=(0, 4, 5)), trial(gate(3), add=(1,)), trial(add=(0, 2)))
    generator, heads = drawn(), found.trials[0].editable.shape[1]
    power, false = [], []
    for _ in range(4000):
        for one, hosts in zip(found.trials, ([{0}, {1, 2}], [{3}], []), strict=True):
            chosen = set(generator.choice(heads, len(one.selected), replace=False).tolist())
            power += [bool(chosen & group) for group in hosts]
            false += [not any(head in group for group in hosts) for head in chosen]
    assert found.by_chance.power == pytest.approx(np.mean(power), abs=0.015)
    assert found.by_chance.false_discovery == pytest.approx(np.mean(false), abs=0.015)
    assert f"by chance {found.by_chance.power:.2f}; false" in found.sentence()


def test_a_shared_gate_finds_either_operation() -> None:
    log_alpha = {"shared": np.array([[OPEN, OPEN, SHUT]], dtype=np.float32)}
    found = calibration(Trial("t", (gate(0), gate(1, "multiplicative"), gate(2)), log_alpha, 0.1, 0.0))
    assert [rate.value for rate in found.gate_power.values()] == [0.5, 1.0]  # type: ignore[union-attr]


def test_a_shared_gate_of_a_group_is_one_gate() -> None:
    log_alpha = {"shared": np.array([[OPEN, SHUT, 1.0, SHUT]], dtype=np.float32)}
    both = (gate(0, hosts=(2,)), gate(0, "multiplicative", hosts=(3,)))
    values, truth = Trial("t", both, log_alpha, 0.1, 0.0).gates("shared")
    assert (values.tolist(), truth.tolist()) == ([OPEN, SHUT], [True, False])


# -- how small, how sure -------------------------------------------------------------------------------------------


def test_the_smallest_effect_is_where_a_logistic_curve_reaches_the_power() -> None:
    generator = drawn()
    effects = np.exp(generator.uniform(np.log(0.001), np.log(1), 4000))
    true = 0.05  # power .8 there: σ(2 ln(x/0.05) + ln 4)
    power = 1 / (1 + np.exp(-(2 * np.log(effects / true) + math.log(4))))
    pairs = list(zip(effects.tolist(), (generator.random(4000) < power).tolist(), strict=True))
    assert module._smallest(pairs) == pytest.approx(true, rel=0.15)


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([(0.1, True)] * 9, None),  # too few
        ([(0.2, True)] * 9 + [(0.1, True)], 0.1),  # all are found: no less was planted
        ([(0.1 * i, False) for i in range(1, 13)], None),
        ([(0.1 * i, i < 6) for i in range(1, 13)], None),  # falls with effect
    ],
)
def test_the_smallest_effect_is_told_only_where_it_can_be(pairs: Any, expected: float | None) -> None:
    assert module._smallest(pairs) == expected


def test_the_curve_rises_stays_inside_0_and_1_and_is_right_on_average() -> None:
    generator = drawn()
    x = generator.normal(0, 4, 3000)
    truth = generator.random(3000) < 1 / (1 + np.exp(-(x - 3)))
    curve = module._isotonic(x, truth)
    assert (np.diff(curve.probability) >= 0).all()
    assert curve.probability.min() > 0 and curve.probability.max() < 1
    for middle in (0.0, 3.0, 5.0):
        assert float(curve(np.array(middle))) == pytest.approx(1 / (1 + math.exp(3 - middle)), abs=0.1)


def test_the_curve_of_the_others_has_the_better_brier_score_where_open_gates_mislead() -> None:
    trials = [trial(gate(0), add=(0, 1, 2, 3), name=str(i)) for i in range(12)]
    brier = calibration(*trials).brier
    assert brier is not None and brier.after < brier.before - 0.05
    assert calibration(trials[0]).brier is None


def test_a_run_is_given_the_probability_of_each_of_its_gates(tmp_path: Path) -> None:
    run = make_run(tmp_path, only={"layers": [0, 1]})
    found = Calibration("tiny", "toy", run.config["train"], (trial(gate(0), add=(0, 1)), trial(gate(2), add=(2,))))
    probability = found.probability(run)
    for kind, log_alpha in run.log_alphas().items():
        assert np.array_equal(np.isnan(probability[kind]), np.isnan(log_alpha))
        order = np.argsort(log_alpha[:2], axis=None)
        assert (np.diff(probability[kind][:2].reshape(-1)[order]) >= 0).all()
    other = Calibration("tiny", "toy", {**run.config["train"], "gate_lr": 9.0}, found.trials)
    with pytest.warns(UserWarning, match="gate_lr 0.4 .calibrated: 9.0."):
        other.probability(run)
    with pytest.raises(ValueError, match="shared gates were not calibrated"):
        found.probability(make_run(tmp_path / "shared", gates="shared"))


def test_a_calibration_reads_back_from_json_as_it_was_written(tmp_path: Path) -> None:
    masked = trial(gate(0, hosts=(3,)), gate(1, "multiplicative"), add=(3,), multiply=(5,))
    masked.log_alpha["additive"][0, 4] = np.nan
    found = calibration(masked, trial())
    again = Calibration.load(found.save(tmp_path / "deep" / "calibration.json"))
    assert again.to_dict() == found.to_dict() == json.loads(json.dumps(found.to_dict()))
    assert again.to_frame().equals(found.to_frame())
    assert again.planted_frame()["found"].tolist() == [True, False]


# -- calibrating ---------------------------------------------------------------------------------------------------


def calibrated(model: Model, task: Task, out: Path, **changes: Any) -> Calibration:
    edit = ji.JoLA(model.head_shape, inference="hard", init_log_alpha=2.0, units="rms")
    gates = 2 * 8
    options = {"heads": (0, 1, 1, 2), "config": CONFIG, "edit": edit, "penalty": 0.5 * MIN_EFFECT * gates}
    return calibrate(model, task, backend="hooks", min_effect=MIN_EFFECT, out=out, **{**options, **changes})


def test_planted_heads_are_found_and_nothing_is_where_nothing_was_planted(
    twinned: Model, letters: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = calibrated(twinned, letters, tmp_path)
    assert found.null_open.hits == 0  # type: ignore[union-attr]
    assert found.power.value == 1  # type: ignore[union-attr]
    assert [trial.left < 0.1 * trial.effect for trial in found.trials if trial.planted] == [True] * 3
    assert [Run.load(tmp_path / trial.name).status for trial in found.trials] == ["finished"] * 4

    def train(*_: Any) -> None:
        raise AssertionError("a finished planting is trained again")

    monkeypatch.setattr("jola_interp.training._Trainer.run", train)
    assert calibrated(twinned, letters, tmp_path).to_dict() == found.to_dict()


def test_the_penalty_is_scaled_to_what_was_planted_or_taken_from_the_run(
    twinned: Model, letters: Task, tmp_path: Path
) -> None:
    short = {"max_steps": 3, "wrapper": "{instruction}", "eos": False}
    scaled = calibrate(twinned, letters, heads=(2, 1), backend="hooks", out=tmp_path / "scaled", **short)
    effects = [gate.effect for trial in scaled.trials for gate in trial.planted]
    assert scaled.settings["penalty"] == pytest.approx(module.PRICE * np.median(effects) * 16)
    run = ji.fit(twinned, letters, backend="hooks", out=tmp_path / "run", evaluate=False, penalty=0.07, **short)
    like_it = calibrate(twinned, letters, run, heads=(1,), backend="hooks", out=tmp_path / "like")
    assert like_it.settings["penalty"] == 0.07
    assert like_it.settings["edit"] == run.edit.settings()
    ours, theirs = Run.load(tmp_path / "like" / like_it.trials[0].name).config["train"], run.config["train"]
    assert {name for name in theirs if ours[name] != theirs[name]} <= {"checkpoint_every"}
    cut = replace(letters, validation=letters.validation[:4])
    for rows, changes in ((cut, {}), (letters, {"seed": 1}), (letters, {"heads": (2,)}), (letters, {"lr": 0.03})):
        # another question in the same folder is another training, beside this one
        calibrate(twinned, rows, run, backend="hooks", out=tmp_path / "like", **{"heads": (1,), **changes})
    assert len(list((tmp_path / "like").glob("planting-000-*"))) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": (1, 9)}, r"heads must be numbers from 0 to 8.*\[9\]"),
        ({"heads": ()}, "heads is empty"),
        ({"gates": "none"}, "no gates on heads"),
        ({"sites": ("mlp",)}, "no gates on heads"),
        ({"rule": "open"}, "rule"),
        ({"seed": -1}, "seed must be"),
        ({"heads": (0,), "config": None, "penalty": None}, "give penalty="),
    ],
)
def test_what_cannot_be_calibrated_is_refused_before_any_training(
    twinned: Model, letters: Task, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    switches = {name: changes.pop(name) for name in ("gates", "sites") if name in changes}
    options: dict[str, Any] = {"config": CONFIG, "penalty": 0.1, "edit": ji.JoLA(twinned.head_shape, **switches)}
    options = {name: value for name, value in {**options, **changes}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        calibrate(twinned, letters, backend="hooks", out=tmp_path / "none", **options)
    assert not (tmp_path / "none").exists()
