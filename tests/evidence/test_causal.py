"""Causal head gating finds what was planted: a head that the task needs, one that harms it, six that do not matter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jola_interp as ji
from jola_interp.callbacks import Callback
from jola_interp.edits import JoLA
from jola_interp.edits.head_gates import HeadGates
from jola_interp.evidence import causal as module
from jola_interp.evidence.case import open_case
from jola_interp.evidence.causal import CLASSES, CausalHeads, causal_heads, needed
from jola_interp.evidence.endpoint import paired
from jola_interp.evidence.overlap import overlap
from jola_interp.models import Model, load_model
from jola_interp.runs import Run
from jola_interp.tasks import Example, Task
from tests.conftest import build_hf

NEEDED, HARMFUL, WIDTH, STEPS = 1, 3, 8, 40
ROWS = tuple(Example(f"{i * 7919 % 1000:03d}?", "a", id=str(i)) for i in range(80))
TASK = Task("planted", ROWS[:48], ROWS[48:56], ROWS[56:], kind="text")


def planted_model(tokenizer: Any) -> Model:
    """Only a direction u reaches the answer's logit; of all heads, in layer 0 one writes along u, one against it.

    What the other heads write is small, so that it hardly changes the norm that the last layer divides by.
    """
    hf = build_hf("llama")
    first = hf.model.layers[0].self_attn.o_proj
    seen: list[torch.Tensor] = []
    with torch.no_grad():
        u = torch.randn(32, generator=torch.Generator().manual_seed(0))
        u /= u.norm()
        hf.lm_head.weight.zero_()
        hf.lm_head.weight[tokenizer("a").input_ids[0]] = 1.2 * u
        hf.model.embed_tokens.weight.sub_(torch.outer(hf.model.embed_tokens.weight @ u, u))
        for layer in hf.model.layers:
            for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
                weight.sub_(torch.outer(u, u @ weight)).mul_(0.05)
        with first.register_forward_pre_hook(lambda _, args: seen.append(args[0][:, -1])):
            hf(torch.tensor([tokenizer(row.instruction).input_ids for row in ROWS]))
        for head, size in ((NEEDED, 1.5), (HARMFUL, -0.75)):
            own = slice(WIDTH * head, WIDTH * head + WIDTH)
            readout = torch.linalg.lstsq(seen[0][:, own], torch.ones(len(ROWS), 1)).solution[:, 0]  # z·readout ≈ 1
            first.weight[:, own] = size * torch.outer(u, readout)
    return load_model(hf, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Model:
    return planted_model(tokenizer)


@pytest.fixture(scope="module")
def weights(model: Model) -> dict[str, torch.Tensor]:
    """As they were before anything was trained on them."""
    return {name: value.clone() for name, value in model.hf.state_dict().items()}


@pytest.fixture(scope="module")
def run(model: Model, weights: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Run:  # noqa: ARG001
    """A JoLA Run on the planted model, whose gates are set by hand: it selects the needed head and one other."""
    made = ji.fit(
        model, TASK, backend="hooks", max_steps=2, evaluate=False, wrapper="{instruction}",
        eos=False, out=tmp_path_factory.mktemp("planted") / "run",
    )  # fmt: skip
    for value in made.edit.log_alphas().values():  # they share memory with the parameters
        value.fill_(-8)
        value[0, NEEDED] = value[1, 2] = 8
    return made


@pytest.fixture(scope="module")
def found(run: Run) -> CausalHeads:
    return causal_heads(run, TASK, steps=STEPS)


def by_hand(g_plus: list[list[float]], g_minus: list[list[float]]) -> CausalHeads:
    plus, minus = np.array(g_plus), np.array(g_minus)
    difference = paired(np.array([0.0, 0.1]))
    shared = overlap(needed(plus, minus), ((0, 0),), np.isfinite(plus))
    return CausalHeads(plus, minus, 5, 0.1, 1.0, difference, difference, ((0, 0),), shared)


def test_the_needed_head_stays_open_the_harmful_one_closed_and_the_others_follow_the_pressure(
    found: CausalHeads,
) -> None:
    expected = {f"L{layer}H{head}": "irrelevant" for layer in range(2) for head in range(4)}
    expected |= {f"L0H{NEEDED}": "facilitating", f"L0H{HARMFUL}": "interfering"}
    assert dict(zip(found.labels, found.classes, strict=True)) == expected
    assert found.needed == ((0, NEEDED),)
    assert found.decided == 1
    for score, head in (("facilitation", NEEDED), ("interference", HARMFUL)):
        assert found.top(1, score) == (f"L0H{head}",)  # type: ignore[arg-type]


def test_other_starts_find_the_same_heads(run: Run, found: CausalHeads) -> None:
    assert causal_heads(run, TASK, steps=STEPS, seed=1).classes == found.classes


def test_closing_the_harmful_head_helps_under_either_pressure(found: CausalHeads) -> None:
    assert found.opened.high < 0
    assert found.closed.high < 0


def test_overlap_is_of_the_needed_heads_with_the_selection(found: CausalHeads) -> None:
    assert set(found.selected) == {(0, NEEDED), (1, 2)}
    assert found.overlap == overlap(found.needed, found.selected, np.ones((2, 4), dtype=bool))
    assert (found.overlap.shared, found.overlap.jaccard) == (1, 0.5)


def test_runs_reload_and_are_not_trained_again_and_the_model_is_as_it_was(
    run: Run, found: CausalHeads, model: Model, weights: dict[str, torch.Tensor]
) -> None:
    assert all(torch.equal(value, weights[name]) for name, value in model.hf.state_dict().items())
    case = open_case(run, TASK, steps=STEPS)
    folders = {name: next((case.folder / "causal").glob(f"{name}-s42-*")) for name in ("start", "open", "close")}
    for name, gates in (("open", found.g_plus), ("close", found.g_minus)):
        edit: Any = Run.load(folders[name]).edit
        assert isinstance(edit, HeadGates)
        assert edit.pressure == name
        np.testing.assert_array_equal(edit.values().detach().numpy(), gates)
    written = {path: path.stat().st_mtime_ns for folder in folders.values() for path in folder.iterdir()}
    again = causal_heads(case)
    np.testing.assert_array_equal(again.g_plus, found.g_plus)
    assert again.to_dict() == found.to_dict()
    assert written == {path: path.stat().st_mtime_ns for folder in folders.values() for path in folder.iterdir()}


class _Stop(Callback):
    def on_step(self, state: Any) -> None:
        if state.step == 3:
            raise KeyboardInterrupt


def test_an_interrupted_fit_raises_and_goes_on_to_the_same_gates(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = causal_heads(run, TASK, steps=5, out=tmp_path / "whole")
    fit: Callable[..., Run] = module.fit
    stopping = lambda *a, **k: fit(*a, **k, callbacks=[_Stop()] if "close" in str(k["out"]) else [])  # noqa: E731
    monkeypatch.setattr(module, "fit", stopping)
    with pytest.raises(KeyboardInterrupt, match="goes on"):
        causal_heads(run, TASK, steps=5, out=tmp_path / "parts")
    monkeypatch.setattr(module, "fit", fit)
    parts = causal_heads(run, TASK, steps=5, out=tmp_path / "parts")
    np.testing.assert_array_equal(parts.g_plus, whole.g_plus)
    np.testing.assert_array_equal(parts.g_minus, whole.g_minus)


def test_both_fits_go_on_from_where_the_shared_one_ended(run: Run, tmp_path: Path) -> None:
    causal_heads(run, TASK, steps=3, out=tmp_path)
    runs = {path.name.split("-")[0]: Run.load(path) for path in (tmp_path / "causal").iterdir()}
    assert runs["start"].config["train"]["penalty"] == 0
    assert {name: run.config["train"]["penalty"] for name, run in runs.items() if name != "start"} == {
        "open": module.PENALTY,
        "close": module.PENALTY,
    }
    start: Any = runs["start"].edit
    for name in ("open", "close"):
        edit: Any = runs[name].edit
        # Adam moves a parameter by at most its learning rate a step, and a little more through its bias correction.
        assert 0 < (edit.theta - start.theta).abs().max() < 3 * module.LR


def test_another_question_in_the_same_folder_is_another_training(run: Run, tmp_path: Path) -> None:
    one = causal_heads(run, TASK, steps=1, out=tmp_path, rule="top=1:p_open")
    assert len(one.selected) == 1 and len(list((tmp_path / "causal").iterdir())) == 3
    causal_heads(run, TASK, steps=1, out=tmp_path, penalty=0.2)
    names = sorted(path.name.split("-")[0] for path in (tmp_path / "causal").iterdir())
    assert names == ["close", "close", "open", "open", "start"]  # the fit without a penalty is the same for both
    trained = dict(run.config["train"])
    run.config["train"] |= {"batch_size": trained["batch_size"] // 2}  # the questioned Run was trained anew
    try:
        causal_heads(run, TASK, steps=1, out=tmp_path)
    finally:
        run.config["train"] = trained
    assert len(list((tmp_path / "causal").iterdir())) == 8


def test_scores_and_classes_are_those_of_table_1() -> None:
    hand = by_hand([[0.9, 0.8, 0.1, 0.2]], [[0.7, 0.2, 0.05, 0.6]])
    assert hand.classes == CLASSES
    assert hand.counts == dict.fromkeys(CLASSES, 1)
    np.testing.assert_allclose(hand.facilitation, hand.g_minus)
    np.testing.assert_allclose(hand.irrelevance, [[0.9 * 0.3, 0.8 * 0.8, 0.1 * 0.95, 0.2 * 0.4]])
    np.testing.assert_allclose(hand.interference, [[0.1, 0.2, 0.9, 0.8]])
    assert hand.top(2) == ("L0H0", "L0H3")
    assert hand.top(1, "irrelevance") == ("L0H1",)
    assert hand.decided == 0
    assert "1 contradictory" in hand.sentence()
    assert "0 % of the gates have decided" in hand.sentence()


def test_heads_without_a_gate_are_in_no_table() -> None:
    nan = float("nan")
    hand = by_hand([[0.9, nan], [nan, 0.99]], [[0.6, nan], [nan, 0.8]])
    assert hand.labels == ("L0H0", "L1H1")
    assert hand.needed == ((1, 1), (0, 0))  # the more open one first
    frame = hand.to_frame()
    assert list(frame["label"]) == ["L0H0", "L1H1"]
    assert list(frame["selected"]) == [True, False]
    assert list(frame["irrelevance"]) == pytest.approx([0.9 * 0.4, 0.99 * 0.2])
    stored = json.loads(json.dumps(hand.to_dict(), allow_nan=False))
    assert stored["g_plus"] == [[0.9, None], [None, 0.99]]
    assert stored["needed"] == ["L1H1", "L0H0"]


def test_only_heads_that_the_run_could_select_are_gated(model: Model, tmp_path: Path) -> None:
    edit = JoLA(model.head_shape, layers=[0], heads=["L0H1", "L0H2"])
    options: dict[str, Any] = {"backend": "hooks", "max_steps": 1, "evaluate": False, "out": tmp_path / "run"}
    found = causal_heads(ji.fit(model, TASK, edit, **options), TASK, model)
    assert found.labels == ("L0H1", "L0H2")
    assert found.steps == 1
    assert np.isnan(found.g_plus).sum() == 6


def test_bad_input_is_refused_before_any_training(run: Run, tmp_path: Path) -> None:
    case = open_case(run, TASK, out=tmp_path / "evidence")
    for options, message in (
        ({"penalty": 0}, "penalty must be a finite number above 0"),
        ({"penalty": float("nan")}, "penalty must be a finite number above 0"),
        ({"steps": 0}, "steps must be 1 or more, got 0"),
        ({"task": TASK}, "task: a Case has its own"),
        ({"out": tmp_path}, "out: a Case has its own"),
        ({"rule": "top=1:p_open"}, "rule: a Case has its own"),
    ):
        with pytest.raises(ValueError, match=message):
            causal_heads(case, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="score must be"):
        by_hand([[0.9]], [[0.9]]).top(1, "needed")  # type: ignore[arg-type]
    assert not (tmp_path / "evidence").exists()
