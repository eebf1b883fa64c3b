"""What a gate is worth: by restarts as by whole passes, to first order by a gradient, 0 where it is closed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jola_interp as ji
from jola_interp.analysis.effects import (
    Effects,
    Gate,
    closed,
    estimated_effects,
    exact_effects,
    gradient_estimate,
    leave_one_out,
    select_gates,
)
from jola_interp.backends import attach
from jola_interp.batching import Encoded, answer_losses, collate, encode_examples
from jola_interp.edits import JoLA
from jola_interp.evaluation.likelihood import batch_losses, negative_log_likelihoods
from jola_interp.models import Model, load_model
from jola_interp.runs import Run
from jola_interp.tasks import Example, Task
from tests.conftest import ARCHITECTURES, build_hf
from tests.test_planted_head import planted_model

MakeModel = Callable[..., Model]
LAYERS = 3


def deep(make_model: MakeModel, architecture: str = "llama", booted: bool = False) -> Model:
    depth = "n_layer" if architecture == "gpt2" else "num_hidden_layers"
    model = make_model(architecture, **{depth: LAYERS})
    if booted:
        assert model.bridge is not None
    return model


def made(model: Model, **switches: Any) -> JoLA:
    """A random edit large enough to matter, whose gates are all open unless said otherwise."""
    given = {"sites": ("heads", "mlp"), "init_std": 0.3, "init_spread": 0.0, **switches}
    return JoLA(model.head_shape, **given).initialise(torch.Generator().manual_seed(0))  # type: ignore[arg-type]


def backend(model: Model) -> Any:
    return "lens" if model.booted else "hooks"


@pytest.fixture
def rows(tokenizer: Any) -> list[Encoded]:
    """Prompts and answers of several lengths."""
    words = ["cat", "doggy", "owl", "foxes", "bee", "antelope", "ox"]
    examples = [Example(f"{'x' * (i % 4)}{i}: {word}?", f"a {word}.", id=str(i)) for i, word in enumerate(words)]
    return encode_examples(examples, tokenizer, wrapper="{instruction}")


@pytest.fixture
def run(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> Run:
    return ji.fit(
        make_model(), toy_task, backend="hooks", epochs=1, wrapper="{instruction}", evaluate=False, out=tmp_path / "run"
    )


# -- exact -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("booted", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_restarts_give_what_whole_passes_give(
    make_model: MakeModel, rows: list[Encoded], architecture: str, booted: bool
) -> None:
    model = deep(make_model, architecture, booted)
    edit = made(model)
    options: dict[str, Any] = {"backend": backend(model), "batch_size": 4}
    found = exact_effects(edit, model, rows, **options)
    expected = exact_effects(edit, model, rows, naive=True, **options)
    assert found.gates == expected.gates
    assert np.abs(expected.effect).min() > 1e-5  # every gate matters here, else equality would mean nothing
    bound = 1e-6 * expected.nll.max()
    assert np.abs(found.nll - expected.nll).max() <= bound
    assert np.abs(found.by_row - expected.by_row).max() <= bound


@pytest.mark.parametrize("naive", [False, True])
def test_closed_gates_have_no_effect_whether_run_or_not(
    make_model: MakeModel, rows: list[Encoded], naive: bool
) -> None:
    model = deep(make_model)
    edit = made(model)
    part = edit.site("heads")
    part.log_alpha["additive"].data[1, 2] = -20.0  # closed
    part.vectors["multiplicative"].data[2, 0] = 0  # open, with nothing behind it
    silent = {("L1H2", "additive"), ("L2H0", "multiplicative")}
    options: dict[str, Any] = {"backend": "hooks", "naive": naive}
    found = exact_effects(edit, model, rows, **options)
    every = exact_effects(edit, model, rows, every=True, **options)
    assert every.measured.all()
    for place, key in enumerate(zip(found.labels, found.kinds, strict=True)):
        assert found.measured[place] == (key not in silent)
        assert bool(every.by_row[place].any()) == bool(found.by_row[place].any()) == (key not in silent)
    assert np.array_equal(found.by_row, every.by_row)


def test_effect_of_the_only_gate_is_what_the_edit_gains(make_model: MakeModel, rows: list[Encoded]) -> None:
    model = deep(make_model)
    edit = made(model, sites=("heads",), heads=["L1H2"], operations="add")
    found = exact_effects(edit, model, rows, backend="hooks")
    totals, counts = negative_log_likelihoods(model, rows)
    with attach(edit, model, "hooks"):
        edited, _ = negative_log_likelihoods(model, rows)
    assert found.labels == ("L1H2",)
    np.testing.assert_allclose(found.by_row[0], (totals - edited) / counts, atol=1e-5)
    np.testing.assert_allclose(found.nll, edited / counts, atol=1e-5)


@pytest.mark.parametrize("head", [1, 3])
def test_the_planted_head_has_the_largest_effect(head: int, tokenizer: Any) -> None:
    model = planted_model(head, tokenizer)
    examples = [Example(f"{i * 7919 % 1000:03d}?", "a", id=str(i)) for i in range(12)]
    encoded = encode_examples(examples, tokenizer, wrapper="{instruction}", eos=False)
    edit = made(model, sites=("heads",))
    found = exact_effects(edit, model, encoded, backend="hooks")
    guessed = estimated_effects(edit, model, encoded, backend="hooks")
    here = np.array([label == f"L0H{head}" for label in found.labels])
    for effects in (found, guessed):
        size = np.abs(effects.effect)
        assert size[here].max() > 5 * size[~here].max()  # the others reach the answer through the last norm only


@pytest.mark.parametrize("booted", [False, True])
def test_edit_and_model_are_left_as_they_were(
    make_model: MakeModel, rows: list[Encoded], booted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = deep(make_model, booted=booted)
    edit = made(model)
    tensors = {name: value.clone() for name, value in edit.tensors().items()}
    with torch.no_grad():
        before = batch_losses(model, rows)
        exact_effects(edit, model, rows, backend=backend(model))
        estimated_effects(edit, model, rows, backend=backend(model))
        calls = iter(range(5))
        original = JoLA.prepare

        def failing(self: JoLA, *args: Any) -> Any:
            next(calls)  # StopIteration at the sixth pass
            return original(self, *args)

        with monkeypatch.context() as patch:
            patch.setattr(JoLA, "prepare", failing)
            with pytest.raises(RuntimeError):
                exact_effects(edit, model, rows, backend=backend(model))
        assert np.array_equal(batch_losses(model, rows), before)
    assert all(torch.equal(value, tensors[name]) for name, value in edit.tensors().items())
    assert edit.site("heads").vectors["additive"].requires_grad
    assert not [name for name, module in model.hf.named_modules() if "forward" in module.__dict__]


def test_closing_is_undone_by_an_exception(make_model: MakeModel) -> None:
    edit = made(deep(make_model), gates="shared")
    gate = next(gate for gate in select_gates(edit) if gate.label == "L1H2")
    vectors = edit.site("heads").vectors
    before = {name: vector.data.clone() for name, vector in vectors.items()}
    with pytest.raises(RuntimeError), closed(edit, gate):
        for name, vector in vectors.items():
            assert not vector[1, 2].any()
            assert vector.data.ne(before[name]).sum() == before[name][1, 2].numel()
        raise RuntimeError
    assert all(torch.equal(vector.data, before[name]) for name, vector in vectors.items())


# -- gradient ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("switches", [{}, {"gates": "shared"}, {"gates": "none"}, {"operations": "multiply"}])
def test_estimate_of_a_small_edit_is_exact_to_first_order(
    tokenizer: Any, rows: list[Encoded], switches: dict[str, Any]
) -> None:
    """The error falls with the square of the edit. In float64, on an architecture that keeps to it throughout."""
    model = load_model(build_hf("gpt2", n_layer=LAYERS).double(), tokenizer=tokenizer)
    errors, sizes = [], []
    for strength in (3e-2, 3e-3):
        edit = made(model, **switches).restricted(strength=strength)
        exact = exact_effects(edit, model, rows, backend="hooks").effect
        guessed = estimated_effects(edit, model, rows, backend="hooks").effect
        errors.append(np.abs(guessed - exact).max())
        sizes.append(np.abs(exact).max())
    assert errors[1] < 0.01 * sizes[1]
    assert 0.008 < errors[1] / errors[0] < 0.012  # 1/100 would be exact


@pytest.mark.parametrize("booted", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
def test_estimates_are_minus_vector_times_gradient(
    make_model: MakeModel, rows: list[Encoded], architecture: str, booted: bool
) -> None:
    """⟨v, ∂NLL/∂v⟩ = g·∂NLL/∂g, by one backward pass to the vectors themselves."""
    model = deep(make_model, architecture, booted)
    edit = made(model)
    with attach(edit, model, backend(model)):
        batch = collate(rows, 0)
        logits = model.logits(batch.input_ids, batch.attention_mask, batch.keep, batch.prompt_mask)
        counts = torch.tensor([row.n_answer for row in rows])
        (answer_losses(logits, batch.labels).sum(1) / counts).mean().backward()
    found = estimated_effects(edit, model, rows, backend=backend(model), batch_size=3)
    expected = []
    for gate in found.gates:
        vector = edit.site(gate.site).vectors[gate.kind]
        gradient = vector.grad[gate.layer, gate.unit]  # type: ignore[index]
        expected.append(-float(vector.detach()[gate.layer, gate.unit] @ gradient))
    np.testing.assert_allclose(found.effect, expected, atol=1e-5 * np.abs(expected).max())


# -- of a Run ----------------------------------------------------------------------------------------------------------


def test_a_runs_effects_are_of_its_edit_on_rows_encoded_as_in_training(
    run: Run, toy_task: Task, tokenizer: Any
) -> None:
    train = run.config["train"]
    encoded = encode_examples(
        toy_task.test[:5],
        tokenizer,
        wrapper="{instruction}",
        max_length=train["max_length"],
        eos=train["eos"],
    )
    expected = exact_effects(run.edit, run.model, encoded, backend="hooks")
    found = leave_one_out(run, toy_task, rows=5, estimate=True)
    assert np.array_equal(found.by_row, expected.by_row)
    assert found.estimate is not None
    assert np.array_equal(found.estimate, gradient_estimate(run, toy_task, rows=5).effect)
    assert "estimate" in found.to_frame() and "estimate" not in expected.to_frame()
    part = leave_one_out(run, toy_task, rows=5, units=["L1H2", (0, 3)], kinds=["additive"])
    assert part.labels == ("L0H3", "L1H2") and set(part.kinds) == {"additive"}
    places = [place for place, gate in enumerate(found.gates) if gate in part.gates]
    assert np.array_equal(part.by_row, found.by_row[places])
    validation = leave_one_out(run, toy_task, split="validation", units=["L1H2"])
    assert validation.by_row.shape[1] == len(toy_task.validation)


def test_bad_input_is_refused_before_any_pass(run: Run, toy_task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a pass was run")

    with run.attach(), pytest.raises(ValueError, match="without edits"):
        leave_one_out(run, toy_task)
    monkeypatch.setattr(Model, "forward", never)
    bad = {
        "split": ("train", "split must be one of validation, test; got 'train'"),
        "rows": (0, "rows must be an integer ≥ 1; got 0"),
        "batch_size": (True, "batch_size must be an integer ≥ 1"),
        "kinds": (["shared"], r"kinds must be a subset of \['additive', 'multiplicative'\], got \['shared'\]"),
        "units": (["L9H0"], r"\['L9H0'\] are not editable units"),
    }
    for name, (value, message) in bad.items():
        for function in (leave_one_out, gradient_estimate):
            with pytest.raises(ValueError, match=message):
                function(run, toy_task, **{name: value})
    with pytest.raises(ValueError, match="no gate is left"):
        leave_one_out(run, toy_task, kinds=[])
    with pytest.raises(ValueError, match="the test split is empty"):
        leave_one_out(run, dataclasses.replace(toy_task, test=()))


# -- the table ---------------------------------------------------------------------------------------------------------


def table(by_row: np.ndarray, measured: np.ndarray | None = None) -> Effects:
    gates = tuple(Gate("heads", "additive", i // 4, i % 4, 0.5, True) for i in range(len(by_row)))
    chosen = np.ones(len(by_row), dtype=bool) if measured is None else measured
    return Effects("exact", gates, by_row, np.ones(by_row.shape[1]), chosen)


def test_reliability_is_the_share_of_variance_that_is_no_noise() -> None:
    draws = np.random.default_rng(0)
    gates, rows, noise = 3000, 40, 5.0
    signal = draws.normal(size=(gates, 1))
    expected = 1 / (1 + noise**2 / rows)  # of the means over all rows
    assert table(signal + noise * draws.normal(size=(gates, rows))).reliability == pytest.approx(expected, abs=0.03)
    assert table(np.repeat(signal, rows, 1)).reliability == pytest.approx(1)
    assert abs(table(draws.normal(size=(gates, rows))).reliability) < 0.1


def test_reliability_counts_measured_gates_only_and_is_nan_without_enough() -> None:
    draws = np.random.default_rng(0)
    values = draws.normal(size=(60, 20))
    measured = np.arange(60) < 40
    values[~measured] = 0
    assert table(values, measured).reliability == table(values[:40]).reliability
    for too_few in (values[:2], values[:, :3], np.zeros((5, 8))):
        assert np.isnan(table(too_few).reliability)


def test_standard_errors_and_order() -> None:
    values = np.random.default_rng(0).normal(size=(8, 25)) + np.arange(8)[:, None] % 3
    effects = table(values)
    frame = effects.top(3).to_frame()
    assert list(frame["effect"]) == sorted(values.mean(1), reverse=True)[:3]
    for label, effect, se in zip(frame["label"], frame["effect"], frame["se"], strict=True):
        row = values[effects.labels.index(label)]
        assert effect == pytest.approx(row.mean())
        assert se == pytest.approx(np.sqrt(((row - row.mean()) ** 2).sum() / 24 / 25))
    assert np.isnan(table(values[:, :1]).se).all()
