"""The ``reference`` preset against vectors computed once with the paper's released code.

JOLA_GOLDEN names the folder (default: ../shared/golden_reference); every size comes from its files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from jola_interp.backends import BackendName, attach
from jola_interp.batching import Batch
from jola_interp.config import PRESETS
from jola_interp.edits import JoLA
from jola_interp.gates import p_open, point
from jola_interp.models import Model, load_model
from jola_interp.objective import Objective, cross_entropy
from jola_interp.schedules import REFERENCE_PENALTY, PenaltySchedule

GOLDEN = Path(os.environ.get("JOLA_GOLDEN", Path(__file__).resolve().parents[2] / "shared" / "golden_reference"))
if not (GOLDEN / "golden.json").exists():
    pytest.skip(f"no vectors of the released code at {GOLDEN}", allow_module_level=True)

VECTORS = load_file(GOLDEN / "golden.safetensors")
NUMBERS = json.loads((GOLDEN / "golden.json").read_text())
KINDS = {"a": "additive", "m": "multiplicative"}
BACKENDS: tuple[BackendName, ...] = ("lens", "hooks")


def largest_difference(found: Tensor, expected: Tensor) -> float:
    """max |found − expected| as a share of the largest magnitude in ``expected``."""
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


@pytest.fixture
def model(tokenizer: Any) -> Model:
    return load_model(str(GOLDEN / "model"), tokenizer=tokenizer, dtype="float32", device="cpu")


@pytest.fixture
def edit(model: Model) -> JoLA:
    """The preset's edit with the starting values of the released run."""
    made = JoLA(model.head_shape, **PRESETS["reference"].edit)
    given = {f"{name}.heads": VECTORS[f"init.{short}"].float() for short, name in KINDS.items()}
    given |= {f"log_alpha.heads.{name}": VECTORS[f"init.log_alpha_{short}"].float() for short, name in KINDS.items()}
    return made.load_tensors(given | {"mask.heads": made.tensors()["mask.heads"]})


@pytest.fixture
def batch() -> Batch:
    ids, mask, labels = (VECTORS[name].long() for name in ("input_ids", "attention_mask", "labels"))
    return Batch(ids, mask, mask.bool() & (labels == -100), labels[:, 1:], tuple(range(len(ids))))


def test_base_logits(model: Model, batch: Batch) -> None:
    seen = batch.attention_mask.bool()
    with torch.no_grad():
        logits = model.logits(batch.input_ids, batch.attention_mask)
    assert largest_difference(logits[seen], VECTORS["base.logits"][seen]) < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_and_cross_entropy_with_the_point_gate(
    model: Model, edit: JoLA, batch: Batch, backend: BackendName
) -> None:
    seen = batch.attention_mask.bool()
    with torch.no_grad(), attach(edit, model, backend):
        logits = model.logits(batch.input_ids, batch.attention_mask)
        ce = cross_entropy(model, batch) / batch.n_answer_tokens
    assert largest_difference(logits[seen], VECTORS["eval.logits"][seen]) < 1e-5
    assert float(ce) == pytest.approx(NUMBERS["eval.ce"], rel=1e-5)


def test_penalties_of_both_kinds(edit: JoLA) -> None:
    units = edit.shape.layers * edit.shape.heads
    for short, name in KINDS.items():
        found = edit.penalty("reference")[name].item() * units  # type: ignore[index]
        assert found == pytest.approx(NUMBERS[f"penalty.{short}_sum_over_layers_of_head_mean"], rel=1e-5)


class Trained(NamedTuple):
    losses: list[float]
    weights: list[float]
    first_gradients: dict[str, Tensor]
    logits: Tensor


def train(model: Model, edit: JoLA, batch: Batch, backend: BackendName) -> Trained:
    """The released run through the package's own loss, schedule and backend, with its draws and constant rate."""
    steps = VECTORS["noise.a"].shape[0]
    optimizer = torch.optim.AdamW(
        edit.parameters(),
        lr=NUMBERS["optimizer"]["lr"],
        betas=tuple(NUMBERS["optimizer"]["betas"]),
        eps=NUMBERS["optimizer"]["eps"],
        weight_decay=NUMBERS["optimizer"]["weight_decay"],
    )
    preset = PRESETS["reference"].train
    schedule = PenaltySchedule(preset.penalty_schedule, preset.penalty, steps)
    objective = Objective(preset.penalty_form, schedule)
    losses, weights, gradients = [], [], {}
    with attach(edit, model, backend) as attached:
        for step in range(steps):
            attached.use({("heads", name): VECTORS[f"noise.{short}"][step].float() for short, name in KINDS.items()})
            weights.append(schedule.value())
            loss = cross_entropy(model, batch) / batch.n_answer_tokens + objective.penalty(edit)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if step == 0:
                gradients = {name: p.grad.clone() for name, p in edit.named_parameters() if p.grad is not None}
            optimizer.step()
            objective.tick(loss.item())
            losses.append(loss.item())
        attached.clear()
        with torch.no_grad():
            logits = model.logits(batch.input_ids, batch.attention_mask)
    return Trained(losses, weights, gradients, logits)


@pytest.mark.parametrize("backend", BACKENDS)
def test_twelve_steps_of_the_released_run(model: Model, edit: JoLA, batch: Batch, backend: BackendName) -> None:
    found = train(model, edit, batch, backend)
    steps = NUMBERS["steps"]
    assert found.weights == pytest.approx([step["lambda"] for step in steps], rel=1e-12)
    expected = torch.tensor([step["loss"] for step in steps], dtype=torch.float64)
    assert largest_difference(torch.tensor(found.losses, dtype=torch.float64), expected) < 1e-5
    for short, name in KINDS.items():
        for golden, own in (
            (short, f"sites.heads.vectors.{name}"),
            (f"log_alpha_{short}", f"sites.heads.log_alpha.{name}"),
        ):
            assert largest_difference(found.first_gradients[own], VECTORS[f"step0.grad.{golden}"]) < 1e-5
            assert largest_difference(dict(edit.named_parameters())[own].detach(), VECTORS[f"final.{golden}"]) < 1e-5
    seen = batch.attention_mask.bool()
    assert largest_difference(found.logits[seen], VECTORS["final.eval.logits"][seen]) < 1e-5


@pytest.mark.parametrize(("golden", "own"), [("linear", "linear"), ("cyclic", "cyclic"), ("expon", "exponential")])
def test_penalty_schedules(golden: str, own: Any) -> None:
    expected = NUMBERS["lambda_schedules"][golden]
    schedule = PenaltySchedule(own, REFERENCE_PENALTY[own], len(expected))
    found = []
    for _ in expected:
        found.append(schedule.value())
        schedule.tick(1.0)
    assert found == pytest.approx(expected, abs=1e-12, rel=0)


@pytest.mark.parametrize(("golden", "own"), [("p_open", p_open), ("eval_gate", point)])
def test_gate_table(golden: str, own: Callable[[Tensor], Tensor]) -> None:
    table = NUMBERS["gate_table"]
    found = own(torch.tensor(table["log_alpha"], dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor(table[golden], dtype=torch.float64), atol=1e-12, rtol=0)
