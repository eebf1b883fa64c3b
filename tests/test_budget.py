"""A budget on heads: λ finds the price at which K are open, and K are kept, whatever it found."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jola_interp as ji
from jola_interp import budget, cli, gates
from jola_interp.budget import HeadBudget
from jola_interp.config import TrainConfig, preset
from jola_interp.edits import HeadShape, JoLA
from jola_interp.evidence.case import open_case
from jola_interp.methods.budget import BUDGET
from jola_interp.models import Model, load_model
from jola_interp.runs import Run
from jola_interp.tasks import Example, Task
from tests.conftest import build_hf
from tests.runs_by_hand import make_run
from tests.test_planted_head import trained

MakeModel = Callable[..., Model]
SMALL: dict[str, Any] = {"max_steps": 20, "batch_size": 4, "evaluate": False, "backend": "hooks"}
SELECTIVE: dict[str, Any] = preset("selective").edit
CUT = 13
"""The step with which gates are fixed: ``gate_share`` .65 of 20."""
FILES = ("edit.safetensors", "gates.safetensors", "metrics.jsonl", "convergence.json", "config.json")


def small(model: Model, task: Task, edit: Any, out: Path, **fields: Any) -> Run:
    return ji.fit(model, task, edit, out=out, **{**SMALL, **fields})


def open_heads(edit: JoLA) -> torch.Tensor:
    """[layer, head] True where a gate of the edit is not 0 at inference."""
    part = edit.site("heads")
    values = torch.stack(list(part.gate_values(edit.inference, {}).values()))
    return (values > 0).any(0) & part.mask


def edit_at(**log_alphas: float) -> JoLA:
    """Five heads; every gate of a kind at one log α but for small differences from head to head."""
    edit = JoLA(HeadShape(1, 5, 5, 4, 20), gates="shared" if "shared" in log_alphas else "separate")
    for kind, value in log_alphas.items():
        edit.site("heads").log_alpha[kind].data = value + 0.01 * torch.arange(5.0)[None]
    return edit


# -- what a Run ends with ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "kept", "switches"),
    [
        (1, 1, {}),
        (3, 3, {"gates": "shared"}),
        (0.5, 4, {"operations": "add", "inference": "point"}),
        (5, 5, {"inference": "expected"}),
        (8, 8, {}),
        (2, 2, {"heads": ["L0H1", "L0H3", "L1H0"]}),
    ],
)
def test_exactly_k_heads_are_open(
    make_model: MakeModel, toy_task: Task, tmp_path: Path, target: float, kept: int, switches: dict[str, Any]
) -> None:
    """Under every gate and every rule, and as the Run is loaded again."""
    model = make_model()
    edit = JoLA(model.head_shape, **{**SELECTIVE, **switches})
    run = small(model, toy_task, edit, tmp_path / "run", target_heads=target)
    found = Run.load(run.path).edit
    assert int(open_heads(found).sum()) == kept
    for rule in ("p_open>0.5", "expected>0.0881", "point>0"):
        chosen = run.selected(rule)
        assert len(chosen) == kept
        assert all(bool(open_heads(found)[unit]) for unit in chosen.units)
    assert set(run.selected()) <= set(switches.get("heads", run.selected()))


def test_the_cut_costs_nothing(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    """CE is the same with sampled, expected, point and hard gates, at vectors that move the model."""
    run = small(make_model(), toy_task, "jola", tmp_path / "run", target_heads=3, max_steps=60, epochs=20)
    ce = run.convergence.ce  # type: ignore[union-attr]
    assert max(ce.values()) - min(ce.values()) < 1e-4
    assert run.metrics["ce"].dropna().iloc[-1] < 0.9 * run.metrics["ce"].dropna().iloc[0]


@pytest.mark.parametrize("head", [1, 3])
def test_the_planted_head_is_among_those_that_are_kept(head: int, tokenizer: Any, tmp_path: Path) -> None:
    for kept in (1, 3):
        run = trained(head, tokenizer, tmp_path / f"{kept}", target_heads=kept)
        chosen = list(run.selected())
        assert len(chosen) == kept and f"L0H{head}" in chosen
        ce = run.convergence.ce  # type: ignore[union-attr]
        assert abs(ce["hard"] - ce["expected"]) < 0.01


@pytest.mark.parametrize("planted", [["L0H1", "L1H2"], ["L1H1", "L1H3"]])
def test_heads_of_a_planted_edit_are_those_that_are_kept(planted: list[str], tokenizer: Any, tmp_path: Path) -> None:
    """In a model wide enough (H·d_head < d_model) that no head can write what another does."""
    model = load_model(build_hf("llama", hidden_size=96, head_dim=8), tokenizer=tokenizer)
    teacher = JoLA(model.head_shape, gates="none", heads=planted, init_std=1.0)
    teacher.initialise(torch.Generator().manual_seed(0))
    rows = [Example(f"{i * 7919 % 1000:03d}?", f"{i * 31 % 97}", id=str(i)) for i in range(80)]
    task = Task("planted", tuple(rows[:72]), tuple(rows[72:]), (), kind="text")
    fields = {"max_steps": 150, "epochs": 1000, "patience": None, "wrapper": "{instruction}", "eos": False}
    for kept in (2, 4):
        run = small(
            model, task, "jola", tmp_path / f"{kept}", target_heads=kept, teacher=teacher, batch_size=16, **fields
        )
        assert len(run.selected()) == kept and set(planted) <= set(run.selected())


def test_vectors_train_on_after_the_cut_and_only_then_can_an_epoch_be_kept(
    make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    run = small(make_model(), toy_task, "jola", tmp_path / "run", target_heads=2, restore_best=False)
    log_alpha = run.gates.log_alpha("additive")
    assert (log_alpha[1:CUT] <= budget.CEILING + 1e-6).all()
    assert (np.abs(log_alpha[CUT:]) >= budget.FAR).all()
    assert (log_alpha[CUT:] == log_alpha[CUT]).all()
    assert run.metrics["ce"].dropna().iloc[CUT:].nunique() > 5
    assert run.config["progress"]["best_epoch"] >= 2  # epochs end at steps 6, 12, 18 and 20


def test_one_that_is_stopped_before_the_cut_keeps_k_heads_too(
    make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    class Stop(ji.Callback):
        def on_step(self, state: Any) -> None:
            state.stop = state.step == 4

    run = small(make_model(), toy_task, "jola", tmp_path / "run", target_heads=3, callbacks=[Stop()])
    assert run.config["progress"]["steps"] == 4
    assert int(open_heads(run.edit).sum()) == 3


# -- λ -------------------------------------------------------------------------------------------------------------


def steered(heads: int, gate_steps: int, learning_rate: float, scale: float) -> list[tuple[float, float]]:
    """S_t and K_t of 270 heads whose gates train on Σ worth·(1 − g) alone, worths over four orders of magnitude."""
    worth = scale * 10.0 ** (-4 * torch.rand(9, 30, generator=torch.Generator().manual_seed(1)))
    edit = JoLA(HeadShape(9, 30, 30, 4, 120), gates="shared", **SELECTIVE)
    edit.initialise(torch.Generator().manual_seed(0))
    part, draws = edit.site("heads"), torch.Generator().manual_seed(2)
    optimizer = torch.optim.AdamW(edit.parameter_groups()["gates"], lr=learning_rate, eps=1e-6)
    steering = HeadBudget(heads, 270, 0.4, round(0.6 * gate_steps), learning_rate)
    found = []
    for _ in range(gate_steps):
        optimizer.zero_grad()
        uniform = gates.uniform_like(part.log_alpha["shared"], draws)
        loss = (worth * (1 - gates.sample(part.log_alpha["shared"], uniform))).sum()
        count = float(budget.smooth_heads(part).sum())
        found.append((count, steering.observe(count)))
        (loss + steering.value() * edit.penalty()["shared"]).backward()
        optimizer.step()
        budget.hold(part)
    return found


@pytest.mark.parametrize("gate_steps", [65, 650])
@pytest.mark.parametrize("heads", [4, 32, 128])
def test_the_price_is_found_untuned(heads: int, gate_steps: int) -> None:
    """Within a third at the end, whatever K, the number of steps, and what heads are worth."""
    for scale in (0.01, 1.0):
        count, target = steered(heads, gate_steps, 1.0, scale)[-1]
        assert target == pytest.approx(heads)
        assert 3 / 4 < count / heads < 4 / 3


def test_heads_cost_while_there_are_too_many_and_are_paid_for_below() -> None:
    above, below = HeadBudget(8, 100, 0.4, 0, 1.0), HeadBudget(8, 100, 0.4, 0, 1.0)
    prices = []
    for _ in range(3):
        above.observe(16.0)
        below.observe(4.0)
        prices.append(above.value())
        assert below.value() == pytest.approx(-above.value())
    assert 0 < prices[0] < prices[1] < prices[2]
    exact = HeadBudget(8, 100, 0.4, 0, 1.0)
    exact.observe(8.0)
    assert exact.value() == 0


def test_the_target_falls_from_all_heads_to_k() -> None:
    steering = HeadBudget(8, 100, 0.4, 10, 1.0)
    targets = [steering.observe(50.0) for _ in range(13)]
    assert targets[0] == 100 and targets[10:] == pytest.approx([8.0] * 3)
    assert all(later < earlier for earlier, later in zip(targets[:10], targets[1:11], strict=True))


def test_restored_budget_goes_on_as_if_never_stopped() -> None:
    whole, first, second = (HeadBudget(8, 100, 0.4, 10, 0.5) for _ in range(3))
    counts = [100.0, 95.0, 80.0, 30.0, 7.0, 6.0]
    for count in counts[:3]:
        whole.observe(count)
        first.observe(count)
    second.restore(json.loads(json.dumps(first.state())))
    assert second.value() == whole.value()
    for count in counts[3:]:
        assert second.observe(count) == whole.observe(count)
        assert second.value() == whole.value()


def test_lambda_the_target_and_the_smooth_number_are_logged(
    make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    rows = small(make_model(), toy_task, "jola", tmp_path / "run", target_heads=2).metrics
    rows = rows[rows["ce"].notna()]
    targets, counts = rows["target_heads"].to_numpy(), rows["smooth_heads"].to_numpy()
    assert targets[0] == 8 and (targets[8:] == pytest.approx(2.0))  # `penalty_warmup` .4 of 20 steps
    assert (counts[CUT:] == pytest.approx(2.0, abs=1e-3)) and 7 < counts[0] < 8
    prices = rows["lambda_additive"].to_numpy()
    assert len(set(prices[:CUT])) == CUT and len(set(prices[CUT - 1 :])) == 1
    assert (rows["lambda_multiplicative"] == rows["lambda_additive"]).all()


@pytest.mark.parametrize("last", [9, CUT, 15])
def test_a_resumed_run_equals_an_uninterrupted_one(
    make_model: MakeModel, toy_task: Task, tmp_path: Path, last: int
) -> None:
    class Stop(ji.Callback):
        def on_step(self, state: Any) -> None:
            if state.step == last:
                raise KeyboardInterrupt

    small(make_model(), toy_task, "jola", tmp_path / "whole", target_heads=3)
    broken = tmp_path / "broken"
    assert small(make_model(), toy_task, "jola", broken, target_heads=3, callbacks=[Stop()]).status == "interrupted"
    small(make_model(), toy_task, "jola", broken, target_heads=3, resume=True)
    for name in FILES:
        assert (tmp_path / "whole" / name).read_bytes() == (broken / name).read_bytes(), name


# -- the arithmetic ------------------------------------------------------------------------------------------------


def test_smooth_heads_are_those_of_which_some_gate_is_open() -> None:
    edit = edit_at(additive=0.5, multiplicative=-1.0)
    additive, multiplicative = (gates.p_open(v) for v in edit.site("heads").log_alpha.values())
    expected = 1 - (1 - additive) * (1 - multiplicative)
    torch.testing.assert_close(budget.smooth_heads(edit.site("heads")), expected.detach().double())
    one = edit_at(shared=0.5).site("heads")
    torch.testing.assert_close(budget.smooth_heads(one), gates.p_open(one.log_alpha["shared"]).detach().double())
    one.mask[0, 2] = False
    assert budget.smooth_heads(one)[0, 2] == 0


@pytest.mark.parametrize("inference", ["expected", "point", "hard"])
def test_all_gates_agree_after_the_cut_and_the_order_of_heads_is_kept(inference: Any) -> None:
    edit = edit_at(additive=1.0, multiplicative=-1.5)
    part = edit.site("heads")
    before = budget.smooth_heads(part)
    budget.cut(part, 2, inference)
    values = [torch.stack([at(v) for v in part.log_alpha.values()]) for at in gates.INFERENCE.values()]
    for found in values[1:]:
        torch.testing.assert_close(found, values[0], rtol=0, atol=2e-5)
    assert torch.equal(budget.smooth_heads(part).argsort(), before.argsort())
    assert values[2].amax(0).tolist() == [[0, 0, 0, 1, 1]]
    # −1.5 lies between ln 11 below 0, where the point gate closes, and −.79, where the hard one does.
    assert bool(values[2][1].any()) == (inference != "hard")


def test_a_head_that_is_kept_though_shut_opens_its_likelier_gate() -> None:
    part = edit_at(additive=-6.0, multiplicative=-5.0).site("heads")
    budget.cut(part, 1, "hard")
    assert gates.hard(part.log_alpha["multiplicative"]).tolist() == [[0, 0, 0, 0, 1]]
    assert not gates.hard(part.log_alpha["additive"]).any()


def test_what_cannot_be_edited_is_neither_kept_nor_moved() -> None:
    edit = JoLA(HeadShape(1, 5, 5, 4, 20), heads=["L0H1", "L0H3"], **SELECTIVE)
    part = edit.initialise(torch.Generator().manual_seed(0)).site("heads")
    budget.cut(part, 2, "hard")
    assert open_heads(edit).tolist() == [[False, True, False, True, False]]
    assert all((value[~part.mask] == 0).all() for value in part.log_alpha.values())


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -3, 1.5, 0.0, True, "8", math.nan, math.inf])
def test_targets_that_are_no_number_of_heads_are_named(value: Any) -> None:
    with pytest.raises(ValueError, match=f"target_heads must be .* a share between 0 and 1, or None; got {value!r}"):
        TrainConfig(gate_share=0.5, target_heads=value)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("gate_share", 1.0, "gate_share must be below 1 with target_heads=8.*got 1.0"),
        ("penalty_form", "reference", 'penalty_form must be "mean" with target_heads=8'),
        ("penalty_schedule", "cyclic", 'penalty_schedule must be "constant" with target_heads=8'),
        ("penalty", 0.0, "penalty must be a positive number with target_heads=8"),
    ],
)
def test_fields_that_do_not_go_with_a_target_are_named(field: str, value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TrainConfig(**{"gate_share": 0.5, "target_heads": 8, field: value})


@pytest.mark.parametrize(
    ("target", "switches", "said"),
    [
        (9, {}, "target_heads must be from 1 to 8, .*got 9"),
        (3, {"heads": ["L0H0", "L1H1"]}, "target_heads must be from 1 to 2, .*got 3"),
        (0.05, {}, "target_heads must be from 1 to 8, .*got 0.05, which is 0"),
        (2, {"gates": "none"}, "target_heads needs JoLA's gates on heads; got 2"),
        (2, {"sites": ("mlp",)}, "target_heads needs JoLA's gates on heads; got 2"),
        (2, {"sites": ("heads", "mlp")}, "target_heads counts heads; got 2 .* also acts at mlp"),
    ],
)
def test_targets_that_do_not_fit_the_edit_are_refused_before_training(
    make_model: MakeModel, toy_task: Task, tmp_path: Path, target: float, switches: dict[str, Any], said: str
) -> None:
    model = make_model()
    with pytest.raises(ValueError, match=said):
        small(model, toy_task, JoLA(model.head_shape, **switches), tmp_path / "run", target_heads=target)
    assert not (tmp_path / "run").exists()


# -- configurations and methods ------------------------------------------------------------------------------------


def test_a_target_is_kept_in_configurations() -> None:
    for given, kept in ((8, 8), (8.0, 8), (0.25, 0.25), (None, None)):
        settings = TrainConfig(gate_share=0.5, target_heads=given)
        again = TrainConfig(**json.loads(json.dumps(settings.to_dict())))
        assert again == settings
        assert again.target_heads == kept and type(again.target_heads) is type(kept)


def test_runs_from_before_budgets_have_none(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    config = json.loads((run.path / "config.json").read_text())
    del config["train"]["target_heads"]
    (run.path / "config.json").write_text(json.dumps({**config, "format": 4}))
    assert Run.load(run.path).config["train"]["target_heads"] is None


def test_the_command_line_takes_numbers_and_shares() -> None:
    assert cli._flag_type(int | float | None) == float | None
    assert cli._or_none("target_heads", 0) is None


def test_the_method_trains_to_its_budget(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    (method,) = BUDGET
    run = small(make_model(), toy_task, method(k=3), tmp_path / "run")
    assert {"name": "jola-budget", "options": {"k": 3}}.items() <= run.config["method"].items()
    assert run.config["train"]["target_heads"] == 3 and run.edit.inference == "hard"
    assert len(run.selected()) == 3
    same = small(make_model(), toy_task, JoLA(make_model().head_shape, **SELECTIVE), tmp_path / "same", target_heads=3)
    assert (run.path / "edit.safetensors").read_bytes() == (same.path / "edit.safetensors").read_bytes()
    assert method(k=3).n_parameters(make_model()) == 2 * 8 * (8 + 1)


def test_a_k_that_does_not_fit_is_named(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    (method,) = BUDGET
    for k, said in ((9, "k must be from 1 to 8, .*got 9"), ("x", "k must be an integer ≥ 1 .*got 'x'")):
        with pytest.raises(ValueError, match=said):
            small(make_model(), toy_task, method(k=k), tmp_path / "run")
    with pytest.raises(ValueError, match="target_heads is the method's own: k=3; got 5"):
        small(make_model(), toy_task, method(k=3), tmp_path / "run", target_heads=5)


def test_a_refit_without_gates_has_no_budget(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    model = make_model()
    run = small(model, toy_task, "jola", tmp_path / "run", target_heads=3)
    case = open_case(run, toy_task, model, steps=2)
    edit = JoLA(model.head_shape, gates="none", heads=list(run.selected()))
    assert case.train(edit, "refit", max_steps=2).config["train"]["target_heads"] is None
    assert dataclasses.replace(case.settings, seed=1).target_heads == 3
