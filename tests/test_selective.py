"""Gates that decide: the schedule of `selective`, the stamp, teachers, units and scopes."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jola_interp as ji
from jola_interp import convergence
from jola_interp.activations import unit_rms
from jola_interp.backends import attach
from jola_interp.batching import encode_examples
from jola_interp.config import TrainConfig, preset
from jola_interp.edits import JoLA
from jola_interp.edits.base import Context
from jola_interp.models import Model
from jola_interp.runs import Run
from jola_interp.schedules import PenaltySchedule
from jola_interp.tasks import Task
from tests.runs_by_hand import make_run

MakeModel = Callable[..., Model]
SMALL: dict[str, Any] = {"max_steps": 20, "batch_size": 4, "evaluate": False, "backend": "hooks"}


def test_selective_is_what_fit_does_unless_told(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    run = ji.fit(make_model(), toy_task, out=tmp_path / "run", **SMALL)
    assert run.config["preset"] == "selective" and run.edit.inference == "hard"
    train = run.config["train"]
    assert train == {**preset("selective").train.to_dict(), **{k: v for k, v in SMALL.items() if k in train}}


def test_gates_stand_still_and_vectors_train_on_after_their_share(
    make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    run = ji.fit(make_model(), toy_task, out=tmp_path / "run", gate_share=0.5, restore_best=False, **SMALL)
    log_alpha = run.gates.log_alpha("additive")
    moved = np.abs(np.diff(log_alpha, axis=0)).max((1, 2))
    assert (moved[1:10] > 0).all() and (moved[10:] == 0).all()
    rates = run.metrics["gate_lr"].dropna().to_numpy()
    assert (rates[10:] == 0).all() and (rates[2:10] > 0).all()
    assert run.metrics["ce"].dropna().iloc[10:].nunique() > 5


def test_only_an_epoch_with_fixed_gates_is_kept(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    """24 rows in batches of 4: epochs end at steps 6, 12, 18 and 20."""
    run = ji.fit(make_model(), toy_task, out=tmp_path / "run", gate_share=0.75, **SMALL)
    assert run.config["progress"]["best_epoch"] in (2, 3)


def test_a_resumed_selective_run_equals_an_uninterrupted_one(
    make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    class Stop(ji.Callback):
        def on_step(self, state: Any) -> None:
            if state.step == 13:
                raise KeyboardInterrupt

    ji.fit(make_model(), toy_task, out=tmp_path / "whole", **SMALL)
    ji.fit(make_model(), toy_task, out=tmp_path / "broken", callbacks=[Stop()], **SMALL)
    ji.fit(make_model(), toy_task, out=tmp_path / "broken", resume=True, **SMALL)
    for name in ("edit.safetensors", "gates.safetensors", "metrics.jsonl", "convergence.json", "config.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes(), name


def test_the_penalty_warms_up_and_then_is_what_it_was() -> None:
    schedule, plain = PenaltySchedule("constant", 0.4, 10, warmup_steps=4), PenaltySchedule("constant", 0.4, 10)
    values = []
    for _ in range(7):
        values.append(schedule.value())
        schedule.tick(1.0)
    assert values == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    assert plain.value() == 0.4


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("gate_share", 0.0, "above 0, at most 1"),
        ("gate_share", 1.5, "above 0, at most 1"),
        ("lr_ratio", 0.0, "a positive number"),
        ("penalty_warmup", -1, "a number ≥ 0"),
        ("gate_lr_schedule", "steps", "cosine, linear, constant, or None"),
    ],
)
def test_bad_fields_are_named(field: str, value: Any, allowed: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be .*{allowed}"):
        TrainConfig(**{field: value})


def test_the_ratio_of_learning_rates_keeps_their_geometric_mean(
    make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    """From vectors that are 0, one AdamW step moves every component by its learning rate."""
    options = {**SMALL, "max_steps": 1, "warmup": 0.0, "lr": 1e-3, "penalty": 0.0, "adam_epsilon": 1e-12}
    model = make_model()
    run = ji.fit(
        model, toy_task, JoLA(model.head_shape, init_std=0.0), out=tmp_path / "run", lr_ratio=4.0, restore_best=False,
        **options,
    )  # fmt: skip
    part = run.edit.site("heads")
    assert float(part.vectors["additive"].abs().median()) == pytest.approx(2e-3, rel=1e-3)
    assert float(part.vectors["multiplicative"].abs().median()) == pytest.approx(5e-4, rel=1e-3)


# -- the stamp -----------------------------------------------------------------------------------------------------


def stamp(**changes: Any) -> convergence.Convergence:
    ce = {"sampled": 1.0, "expected": 1.0, "point": 1.0, "hard": 1.0}
    fields = {"gates": 100, "decided": 95, "sum_gate_lr": 50.0, "reach": 0.0, "ce": ce, "sampled_se": 0.0}
    return convergence.Convergence(**{**fields, "stationarity": None, "rows": 8, "draws": 4, **changes})


def test_the_stamp_asks_for_decided_gates_and_for_no_gap() -> None:
    assert stamp().converged
    assert not stamp(decided=94).converged and "94 of 100" in stamp(decided=94).sentence()
    apart = stamp(ce={"sampled": 1.02, "expected": 1.0, "point": 1.0, "hard": 1.0})
    assert not apart.converged and apart.gap == pytest.approx(0.02) and "+0.020" in apart.sentence()
    assert convergence.Convergence.from_dict(json.loads(json.dumps(apart.to_dict()))) == apart


def test_a_run_that_did_not_converge_says_so_when_asked_for_heads(
    make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    run = ji.fit(make_model(), toy_task, out=tmp_path / "slow", gate_lr=1e-3, **SMALL)
    found = run.convergence
    assert found is not None and not found.converged and found.decided < 0.95 * found.gates
    assert found.sum_gate_lr == pytest.approx(run.metrics["gate_lr"].sum()) and 0.8 < found.reach < 0.95
    with pytest.warns(convergence.NotConvergedWarning, match="Not converged"):
        run.selected()
    notes = " ".join(note.text.replace("<br>", " ") for note in ji.plots.heads(run).layout.annotations)
    assert "Not converged" in notes


def test_a_converged_run_selects_without_a_word(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run.path / "convergence.json").write_text(json.dumps(stamp().to_dict()), encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(Run.load(run.path).selected())


def test_gates_far_apart_cost_the_same_sampled_and_hard(make_model: MakeModel, toy_task: Task) -> None:
    """At log α = ±12 a sampled gate is 0 or 1 but once in 10^5 draws; at 0 it is neither."""
    model = make_model()
    rows = encode_examples(toy_task.validation, model.tokenizer)  # type: ignore[arg-type]
    found = []
    for size in (12.0, 0.0):
        edit = JoLA(model.head_shape, init_std=0.5, inference="hard").initialise(torch.Generator().manual_seed(0))
        with torch.no_grad():
            for log_alpha in edit.site("heads").log_alpha.values():
                log_alpha.copy_(size * torch.sign(log_alpha - 2.0))
        options: dict[str, Any] = {"weights": {"additive": 0.4, "multiplicative": 0.4}, "sum_gate_lr": 1.0, "seed": 0}
        found.append(convergence.measure(edit, model, rows, backend="hooks", **options))
    far, near = found
    assert far.converged and abs(far.gap) < 1e-6 and far.stationarity is None
    assert not near.converged and near.decided == 0 and near.sampled_se > 0 and near.stationarity is not None


# -- teachers ------------------------------------------------------------------------------------------------------


def test_a_teacher_is_learnt_and_the_identity_teaches_nothing(
    make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    model = make_model()
    teacher = JoLA(model.head_shape, gates="none", operations="add", heads=["L1H2"], init_std=3.0)
    teacher.initialise(torch.Generator().manual_seed(1))
    student = JoLA(model.head_shape, gates="none", operations="add", heads=["L1H2"])
    options = {**SMALL, "max_steps": 150, "epochs": 99, "lr": 0.1, "patience": None}
    run = ji.fit(model, toy_task, student, teacher=teacher, out=tmp_path / "taught", **options)
    losses = run.metrics["ce"].dropna()
    assert losses.iloc[0] > 1e-2 and losses.iloc[-1] < 0.02 * losses.iloc[0]
    assert run.config["task"]["teacher"] == ji.runs.edit_digest(teacher)
    nothing = JoLA(model.head_shape, gates="none", operations="add", init_std=0.0).initialise(torch.Generator())
    idle = ji.fit(
        model, toy_task, JoLA(model.head_shape, gates="none", init_std=0.0), teacher=nothing, out=tmp_path / "idle",
        **{**SMALL, "max_steps": 1},
    )  # fmt: skip
    assert idle.metrics["ce"].dropna().iloc[0] == pytest.approx(0.0, abs=1e-6)


# -- units ---------------------------------------------------------------------------------------------------------


def test_rms_is_that_of_all_tokens_but_padding_and_the_first(make_model: MakeModel, toy_task: Task) -> None:
    model = make_model()
    rows = encode_examples(toy_task.train[:5], model.tokenizer)  # type: ignore[arg-type]
    seen: list[torch.Tensor] = []
    handle = model.o_proj(1).register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    for row in rows:
        ids = torch.tensor([row.ids])
        model.logits(ids, torch.ones_like(ids))
    handle.remove()
    shape = model.head_shape
    z = torch.cat([one[0, 1:].unflatten(-1, (shape.heads, shape.d_head)) for one in seen])
    found = unit_rms(model, rows, ("heads",), "hooks")["heads"]
    torch.testing.assert_close(found[1], z.square().mean((0, 2)).sqrt(), rtol=1e-4, atol=1e-6)


def test_an_offset_in_units_is_stored_with_them_and_acts_in_them(
    make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    model = make_model()
    run = ji.fit(model, toy_task, JoLA(model.head_shape, units="rms"), out=tmp_path / "run", **SMALL)
    part = Run.load(run.path).edit.site("heads")
    rows = encode_examples(toy_task.train, model.tokenizer)  # type: ignore[arg-type]
    torch.testing.assert_close(part.unit, unit_rms(model, rows, ("heads",), "hooks")["heads"])
    torch.testing.assert_close(part.vector("additive"), part.vectors["additive"] * part.unit[..., None])
    assert torch.equal(part.vector("multiplicative"), part.vectors["multiplicative"])
    with pytest.raises(ValueError, match="units='raw'"):
        JoLA(model.head_shape).set_units({"heads": part.unit})
    with pytest.raises(ValueError, match="positive, finite"):
        JoLA(model.head_shape, units="rms").set_units({"heads": 0 * part.unit})


# -- scopes and sites ----------------------------------------------------------------------------------------------


def test_a_scope_edits_its_tokens_alone(make_model: MakeModel) -> None:
    model = make_model()
    z = torch.randn(2, 5, 4, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    prompt = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]], dtype=torch.bool)
    changed = {}
    for scope in ("all", "not_first", "prompt", "answer"):
        edit = JoLA(model.head_shape, scope=scope, init_std=1.0).initialise(torch.Generator().manual_seed(0))
        context = Context(mask, prompt)
        context.prepared = edit.prepare(context, torch.float32)
        changed[scope] = (edit(z, 0, "heads", context) != z).flatten(2).any(-1)
    assert changed["all"].all()
    assert changed["not_first"].tolist() == [[True, False, True, True, True], [False, True, True, True, True]]
    assert torch.equal(changed["prompt"], prompt) and torch.equal(changed["answer"], ~prompt)


@pytest.mark.parametrize("scope", ["prompt", "answer", "not_first"])
def test_scoped_edits_say_the_same_generated_in_parts_and_whole(make_model: MakeModel, scope: Any) -> None:
    """Log-likelihoods of options with a cached prompt equal those of whole rows."""
    from jola_interp.evaluation.likelihood import negative_log_likelihoods, option_likelihoods
    from jola_interp.tasks import Example

    model = make_model()
    rows = [Example(f"pick {i}", ("ab1", "b2")[i % 2], options=("ab1", "b2"), id=str(i)) for i in range(4)]
    task = Task("choices", tuple(rows), (), (), kind="choice")
    edit = JoLA(model.head_shape, scope=scope, gates="none", init_std=1.0).initialise(torch.Generator().manual_seed(0))
    with attach(edit, model, "hooks"):
        parts = option_likelihoods(model, task, rows)
        encoded = encode_examples(rows, model.tokenizer)  # type: ignore[arg-type]
        whole, _ = negative_log_likelihoods(model, encoded)
    right = [-found[row.options.index(row.answer)] for row, found in zip(rows, parts, strict=True)]
    np.testing.assert_allclose(right, whole, rtol=1e-5)


def test_an_attention_offset_is_a_bias_of_the_output_projection(make_model: MakeModel) -> None:
    logits = {}
    ids = torch.tensor([[5, 9, 2, 7]])
    for backend in ("hooks", "lens"):
        model = make_model()
        edit = JoLA(model.head_shape, sites=("attention",), gates="none", operations="add", init_std=1.0)
        edit.initialise(torch.Generator().manual_seed(0))
        with attach(edit, model, backend):  # type: ignore[arg-type]
            logits[backend] = model.logits(ids, torch.ones_like(ids)).detach()
    model = make_model()
    for layer in range(model.head_shape.layers):
        bias = edit.site("attention").vectors["additive"][layer, 0].detach()
        model.o_proj(layer).bias = torch.nn.Parameter(bias, requires_grad=False)
    folded = model.logits(ids, torch.ones_like(ids))
    for found in logits.values():
        torch.testing.assert_close(found, folded, rtol=1e-5, atol=1e-5)
    assert edit.n_parameters() == model.head_shape.layers * model.head_shape.d_model
