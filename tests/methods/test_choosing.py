"""Heads by other means than gates: each rule finds what is planted, takes exactly K, and costs what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import jola_interp as ji
from jola_interp import training
from jola_interp.activations import unit_rms
from jola_interp.backends import attach
from jola_interp.batching import collate, encode_examples
from jola_interp.callbacks import Callback
from jola_interp.config import TrainConfig
from jola_interp.edits import HeadGates, JoLA
from jola_interp.edits.subset import Subset
from jola_interp.methods import Method, Setup, choosing
from jola_interp.methods.choosing import CHOOSING
from jola_interp.methods.lofit import LOFIT
from jola_interp.models import Model
from jola_interp.objective import cross_entropy
from jola_interp.runs import STAGES, Run
from jola_interp.tasks import Example, Task
from tests.evidence.test_causal import NEEDED
from tests.evidence.test_causal import TASK as CAUSAL_TASK
from tests.evidence.test_causal import planted_model as causal_model
from tests.test_planted_head import planted_model

MakeModel = Callable[..., Model]
METHODS = {method.name: method for method in (*CHOOSING, *LOFIT)}
TRAININGS = {
    "random-heads": [],
    "norm-heads": ["scales"],
    "effective-heads": ["all-heads"],
    "gradient-heads": [],
    "dsp-heads": ["subset"],
    "chg-heads": ["closing", "gates"],
    "dsp": [],
    "chg": ["gates"],
    "lofit": ["scales"],
}
"""What each trains before its own edit."""
SIZED = [name for name in METHODS if name != "chg"]
FILES = ("edit.safetensors", "config.json", "metrics.jsonl")
ROWS = tuple(Example(f"{i * 7919 % 1000:03d}?", "a", id=str(i)) for i in range(80))
PLANTED = Task("planted", ROWS[:60], ROWS[60:], (), kind="text")


def small(model: Model, task: Task, method: Method, out: Path, **changes: Any) -> Run:
    options = {"max_steps": 2, "batch_size": 4, "wrapper": "plain", "evaluate": False, "backend": "hooks"}
    return ji.fit(model, task, method, out=out, **(options | changes))  # type: ignore[arg-type]


def setup_of(model: Model, task: Task, folder: Path, backend: Any = "hooks", **fields: Any) -> Setup:
    settings = TrainConfig(**{"wrapper": "{instruction}", "eos": False, "batch_size": 8, "patience": None, **fields})
    return Setup(model, task, settings, backend, folder, ji.fit)


def heads_of(run: Run) -> list[tuple[int, int]]:
    return [(layer, head) for layer, head in run.edit.masks()["heads"].nonzero().tolist()]


# -- what is planted is found ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [1, 3])
@pytest.mark.parametrize("rule", ["norm", "effective", "gradient", "dsp"])
def test_the_head_that_alone_can_solve_the_task_is_chosen(rule: str, head: int, tokenizer: Any, tmp_path: Path) -> None:
    setup = setup_of(planted_model(head, tokenizer), PLANTED, tmp_path, epochs=12, lr=2e-2)
    assert getattr(choosing, f"{rule}_heads")(setup, 1) == [(0, head)]


def test_causal_gating_chooses_the_head_that_the_model_needs(tokenizer: Any, tmp_path: Path) -> None:
    setup = setup_of(causal_model(tokenizer), CAUSAL_TASK, tmp_path, max_steps=40)
    assert choosing.chg_heads(setup, 1) == [(0, NEEDED)]


# -- exactly K, at the price that is told ------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize("name", SIZED)
def test_exactly_k_heads_are_edited_and_the_size_is_known_before(
    name: str, k: int, make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    model = make_model()
    method = METHODS[name](k=k)
    run = small(model, toy_task, method, tmp_path / "run")
    assert run.edit.n_parameters() == method.n_parameters(model)
    acting = run.edit.chosen() if isinstance(run.edit, Subset) else heads_of(run)
    assert len(set(acting)) == k
    assert run.config["method"] == {"name": name, "options": dict(method.options), "before": {}}


@pytest.mark.parametrize("name", list(METHODS))
def test_trainings_before_the_last_lie_in_its_stages(
    name: str, make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    options = {} if name == "chg" else {"k": 2}
    small(make_model(), toy_task, METHODS[name](**options), tmp_path / "run")
    stages = tmp_path / "run" / STAGES
    assert (sorted(path.name for path in stages.iterdir()) if stages.exists() else []) == TRAININGS[name]


def test_the_edit_is_trained_anew_on_what_was_chosen(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    """As an edit of one's own on these heads, with the same settings, would be."""
    run = small(make_model(), toy_task, METHODS["norm-heads"](k=3), tmp_path / "run")
    assert run.edit.gates == "none"
    assert run.edit.operations == "both"
    own = JoLA(run.edit.shape, gates="none", heads=heads_of(run))
    settings = {**run.config["train"], "adam_betas": tuple(run.config["train"]["adam_betas"])}
    plain = ji.fit(make_model(), toy_task, own, TrainConfig(**settings), backend="hooks", out=tmp_path / "plain")
    for name, value in plain.edit.tensors().items():
        assert torch.equal(run.edit.tensors()[name], value)


def test_gates_of_the_method_go_on_from_the_fit_without_a_penalty(
    make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    run = small(make_model(), toy_task, METHODS["chg"], tmp_path / "run")
    start = Run.load(tmp_path / "run" / STAGES / "gates")
    assert isinstance(run.edit, HeadGates)
    assert (start.config["train"]["penalty"], run.config["train"]["penalty"]) == (0.0, 0.1)
    # Adam moves a parameter by at most its learning rate a step, and a little more through its bias correction.
    assert 0 < (run.edit.theta - start.edit.theta).abs().max() < 2.5 * run.config["train"]["gate_lr"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", list(METHODS))
def test_the_same_seed_gives_the_same_bytes_and_resuming_trains_nothing_again(
    name: str, make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    method = METHODS[name] if name == "chg" else METHODS[name](k=2)
    for place in ("one", "two"):
        small(make_model(), toy_task, method, tmp_path / place)
    for file in FILES:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    files = [path for path in (tmp_path / "one").rglob("*") if path.is_file()]
    written = {path: path.stat().st_mtime_ns for path in files}
    small(make_model(), toy_task, method, tmp_path / "one", resume=True)
    assert written == {path: path.stat().st_mtime_ns for path in files}


class _Stop(Callback):
    def on_step(self, state: Any) -> None:
        if state.step == 1:
            raise KeyboardInterrupt


def test_one_interrupted_in_a_stage_goes_on_to_the_same_bytes(
    make_model: MakeModel, toy_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, fit = METHODS["chg-heads"](k=2), training.fit
    small(make_model(), toy_task, method, tmp_path / "whole")

    def stopping(*args: Any, **options: Any) -> Run:
        return fit(*args, **options, callbacks=[_Stop()] if Path(options["out"]).name == "closing" else [])

    monkeypatch.setattr(training, "fit", stopping)
    with pytest.raises(KeyboardInterrupt, match="resume=True goes on"):
        small(make_model(), toy_task, method, tmp_path / "parts")
    monkeypatch.setattr(training, "fit", fit)
    small(make_model(), toy_task, method, tmp_path / "parts", resume=True)
    for file in FILES:
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes()


@pytest.mark.parametrize("name", SIZED)
def test_more_heads_than_there_are_are_refused_before_any_work(
    name: str, make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    for k in (9, 0):
        with pytest.raises(ValueError, match=f"k must be an integer from 1 to 8, .*got {k}"):
            small(make_model(), toy_task, METHODS[name](k=k), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("rule", ["random", "norm", "effective", "gradient", "dsp", "chg"])
def test_each_rule_refuses_them_too(rule: str, make_model: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"from 1 to 8, .*got 9"):
        getattr(choosing, f"{rule}_heads")(setup_of(make_model(), toy_task, tmp_path / "run"), 9)
    assert not (tmp_path / "run").exists()


# -- random ------------------------------------------------------------------------------------------------------------


def test_random_heads_differ_by_draw_and_seed_and_by_nothing_else(
    make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    model = make_model(num_hidden_layers=6)
    drawn = {draw: choosing.random_heads(setup_of(model, toy_task, tmp_path), 5, draw=draw) for draw in range(8)}
    assert len({tuple(heads) for heads in drawn.values()}) == 8
    assert all(len(set(heads)) == 5 and heads == sorted(heads) for heads in drawn.values())
    other = setup_of(model, PLANTED, tmp_path / "other", lr=1.0, epochs=3, penalty=7.0)
    assert choosing.random_heads(other, 5, draw=3) == drawn[3]
    assert choosing.random_heads(setup_of(model, toy_task, tmp_path, seed=1), 5, draw=3) != drawn[3]


def test_runs_on_random_heads_differ_in_their_heads_alone(
    make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    """Steps of learning rate nearly 0 show where vectors start: where two draws share a head, at the same values."""
    runs = [
        small(make_model(), toy_task, METHODS["random-heads"](k=6, draw=d), tmp_path / f"{d}", lr=1e-12) for d in (0, 1)
    ]
    shared = torch.stack([run.edit.masks()["heads"] for run in runs]).all(0)
    assert 4 <= int(shared.sum()) < 6
    one, two = (run.edit.site("heads").vectors["additive"][shared] for run in runs)
    torch.testing.assert_close(one, two)
    assert runs[0].config["train"] == runs[1].config["train"]


def test_random_heads_like_others_have_as_many_in_each_layer(
    make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    setup = setup_of(make_model(), toy_task, tmp_path)
    for draw in range(5):
        found = choosing.random_heads(setup, 4, draw=draw, like=[3, 1])
        assert [sum(layer == at for layer, _ in set(found)) for at in range(2)] == [3, 1]
    for bad in ([4], [5, 0], [1, 1], [5, -1]):
        with pytest.raises(ValueError, match="like must be 2 numbers from 0 to 4, one a layer, that add up to k = 4"):
            choosing.random_heads(setup, 4, like=bad)
    for draw in (-1, 0.5, True):
        with pytest.raises(ValueError, match="draw must be an integer ≥ 0"):
            choosing.random_heads(setup, 4, draw=draw)  # type: ignore[arg-type]


# -- what heads are chosen by ------------------------------------------------------------------------------------------


def test_top_is_the_largest_first_equal_ones_in_order_and_nan_last() -> None:
    scores = torch.tensor([[1.0, 3.0, float("nan")], [3.0, -1.0, 0.0]])
    assert choosing.top(scores, 5) == [(0, 1), (1, 0), (0, 0), (1, 2), (1, 1)]


@pytest.mark.parametrize("backend", ["hooks", "lens"])
def test_sensitivity_is_the_slope_of_the_cross_entropy_in_a_factor_on_the_head(
    backend: Any, make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    model = make_model(attention="eager", scale=4.0)
    found = choosing.sensitivities(setup_of(model, toy_task, tmp_path, backend))
    rows = encode_examples(toy_task.train, model.tokenizer, wrapper="{instruction}", eos=False)  # type: ignore[arg-type]
    batch, step = collate(rows, 0), 1e-3

    def loss(layer: int, head: int, factor: float) -> float:
        edit = JoLA(model.head_shape, gates="none", operations="multiply", scope="not_first")
        edit.site("heads").vectors["multiplicative"].data[layer, head] = factor
        with attach(edit, model, backend), torch.no_grad():
            return cross_entropy(model, batch).item()

    for unit in ((0, 1), (1, 2)):
        slope = (loss(*unit, step) - loss(*unit, -step)) / (2 * step)
        assert found[unit].item() == pytest.approx(abs(slope), rel=0.02, abs=0.02)


def test_effective_size_is_in_units_of_the_heads_own_output(
    make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    setup = setup_of(make_model(), toy_task, tmp_path)
    edit = JoLA(setup.model.head_shape, gates="none")
    rows = encode_examples(toy_task.train, setup.model.tokenizer, wrapper="{instruction}", eos=False)  # type: ignore[arg-type]
    rms = unit_rms(setup.model, rows, backend="hooks")["heads"]
    vectors = edit.site("heads").vectors
    vectors["multiplicative"].data[0, 1] = -0.3  # m ⊙ z is .3 times as large as z
    vectors["additive"].data[0, 2] = 2 * rms[0, 2] * torch.tensor([1.0, -1.0]).repeat(4)
    vectors["additive"].data[1, 3] = rms[1, 3]
    vectors["multiplicative"].data[1, 3] = 0.5
    expected = torch.zeros(2, 4, dtype=torch.float64)
    expected[0, 1], expected[0, 2], expected[1, 3] = 0.3, 2.0, 1.5
    torch.testing.assert_close(choosing.effective_sizes(setup, edit), expected, rtol=1e-5, atol=1e-6)


def test_effective_size_weighs_components_by_how_large_they_are(
    make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    """Scaling one component each, squares add up to those of scaling all of them."""
    setup = setup_of(make_model(), toy_task, tmp_path)
    sizes = []
    for component in (*range(8), slice(None)):
        edit = JoLA(setup.model.head_shape, gates="none")
        edit.site("heads").vectors["multiplicative"].data[..., component] = 1.0
        sizes.append(choosing.effective_sizes(setup, edit))
    torch.testing.assert_close(torch.stack(sizes[:8]).square().sum(0), sizes[8].square(), rtol=1e-5, atol=1e-6)
    assert (torch.stack(sizes[:8]).std(0) > 0.01).all()


def test_measuring_leaves_the_model_as_it_was(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    model = make_model()
    before, gradients = model.weights_digest(), [p.requires_grad for p in model.hf.parameters()]
    setup = setup_of(model, toy_task, tmp_path)
    choosing.sensitivities(setup)
    choosing.effective_sizes(setup, JoLA(model.head_shape, gates="none"))
    assert model.weights_digest() == before
    assert [p.requires_grad for p in model.hf.parameters()] == gradients
    assert all(p.grad is None for p in model.hf.parameters())
