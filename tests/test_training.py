"""fit: deterministic, resumable, interruptible, frozen, and careful with what is there."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import jola_interp as ji
from jola_interp import checkpoint, objective, training
from jola_interp.backends import BackendName
from jola_interp.callbacks import Callback, LiveMap, TrainingState
from jola_interp.convergence import blown_up
from jola_interp.edits.base import Edit, HeadShape
from jola_interp.models import Model
from jola_interp.runs import Run
from jola_interp.tasks import Task
from jola_interp.training import TrainingDivergedError, fit

MakeModel = Callable[..., Model]
SMALL: dict[str, Any] = {"epochs": 3, "batch_size": 4, "max_length": 200, "max_new_tokens": 4, "wrapper": "plain"}


def files_of(folder: Path) -> dict[str, bytes]:
    """All files but the one that may differ."""
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "timing.json"
    }


class InterruptAt(Callback):
    """Ctrl-C after a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step(self, state: TrainingState) -> None:
        if state.step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("backend", ["lens", "hooks"])
def test_same_seed_gives_the_same_bytes_and_another_seed_others(
    make_model: MakeModel, toy_task: Task, tmp_path: Path, backend: BackendName
) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        fit(make_model(), toy_task, backend=backend, out=tmp_path / name, seed=seed, **SMALL)
    first, second, third = (files_of(tmp_path / name) for name in "abc")
    assert first.keys() == {
        "config.json", "edit.safetensors", "gates.safetensors", "metrics.jsonl", "scores.json", "predictions.jsonl",
        "convergence.json",
    }  # fmt: skip
    assert first == second
    assert first["edit.safetensors"] != third["edit.safetensors"]


@pytest.mark.parametrize("preset", ["paper", "reference"])
@pytest.mark.parametrize("step", [1, 4, 6, 11])
def test_resumed_run_equals_uninterrupted_run(
    make_model: MakeModel, toy_task: Task, tmp_path: Path, step: int, preset: str
) -> None:
    options = {**SMALL, "preset": preset, "accumulation": 2, "checkpoint_every": 2, "batch_size": 3, "patience": None}
    fit(make_model(), toy_task, out=tmp_path / "whole", **options)
    broken = fit(make_model(), toy_task, out=tmp_path / "broken", callbacks=[InterruptAt(step)], **options)
    assert broken.status == "interrupted"
    assert broken.config["progress"]["steps"] == step
    assert len(broken.gates) and broken.selected() is not None
    resumed = fit(make_model(), toy_task, out=tmp_path / "broken", resume=True, **options)
    assert resumed.status == "finished"
    assert files_of(tmp_path / "broken") == files_of(tmp_path / "whole")


class KillAt(Callback):
    """What the kernel does when memory is short: nothing is tidied up."""

    def on_step(self, state: TrainingState) -> None:
        if state.step == 5:
            import os

            os.kill(os.getpid(), signal.SIGKILL)


KILLED = """
import sys, tempfile
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.conftest import build_hf, byte_tokenizer
from tests.test_training import KillAt, SMALL
from jola_interp.models import load_model
from jola_interp.tasks import load_task
from jola_interp.training import fit
model = load_model(build_hf("llama"), tokenizer=byte_tokenizer(Path(tempfile.mkdtemp())))
task = load_task("agreement", n_train=24, n_validation=6, n_test=6)
callbacks = [KillAt()] if sys.argv[3] == "kill" else []
fit(model, task, out=sys.argv[2], callbacks=callbacks, resume=sys.argv[3] == "resume", checkpoint_every=2, **SMALL)
"""


def test_killed_run_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    root = str(Path(__file__).resolve().parents[1])

    def run(folder: str, how: str) -> int:
        command = [sys.executable, "-c", KILLED, root, str(tmp_path / folder), how]
        return subprocess.run(command, cwd=root, capture_output=True).returncode

    assert run("whole", "whole") == 0
    assert run("killed", "kill") == -signal.SIGKILL
    assert not (tmp_path / "killed" / "config.json").exists()
    assert run("killed", "resume") == 0
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


def test_training_changes_no_base_weight_and_not_the_callers_random_state(
    make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    model = make_model()
    assert model.bridge is not None
    weights = {name: value.clone() for name, value in model.bridge.state_dict().items()}
    # Not the state of `random`: beartype, which checks annotations in these tests, draws from it.
    torch.manual_seed(5)
    np.random.seed(5)
    before = (torch.get_rng_state(), np.random.get_state()[1].tolist())
    fit(model, toy_task, out=tmp_path / "run", **SMALL)
    after = model.bridge.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in weights.items())
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()


def test_training_lowers_the_loss_and_moves_the_gates(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    run = fit(make_model(), toy_task, out=tmp_path / "run", **{**SMALL, "epochs": 10})
    assert run.metrics.validation_ce.min() < 0.8 * run.scores["base"]["nll"]["value"]
    moved = np.abs(run.gates.log_alpha("multiplicative")[-1] - run.gates.log_alpha("multiplicative")[0])
    assert moved.max() > 1
    assert run.scores["edited"]["nll"]["value"] < run.scores["base"]["nll"]["value"]


def test_best_epoch_is_kept_on_cross_entropy_alone(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    run = fit(make_model(), toy_task, out=tmp_path / "run", lr=0.5, patience=None, **{**SMALL, "epochs": 5})
    values = run.metrics.validation_ce.dropna().tolist()
    progress = run.config["progress"]
    assert progress["best_epoch"] == int(np.argmin(values)) and progress["best_value"] == min(values)
    step = int(run.metrics[run.metrics.validation_ce == min(values)].step.iloc[0])
    recorded = run.gates.at(step)["additive"]
    np.testing.assert_array_equal(run.log_alphas()["additive"], recorded)


def test_early_stopping_counts_validations_without_a_better_one(
    make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    run = fit(
        make_model(),
        toy_task,
        preset="paper",
        out=tmp_path / "run",
        lr=50.0,
        lr_schedule="constant",
        patience=1,
        **{**SMALL, "epochs": 30},
    )
    assert run.config["progress"]["stopped"] == "patience"
    assert run.config["progress"]["epochs"] == run.config["progress"]["best_epoch"] + 2


def test_accumulated_micro_batches_equal_one_large_batch(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    task = Task("eight", toy_task.train[:8], toy_task.validation, (), kind="text")  # so that one step holds all rows
    common = {**SMALL, "epochs": 2, "backend": "hooks", "adam_epsilon": 1e-3}
    whole = fit(make_model(), task, out=tmp_path / "a", **{**common, "batch_size": 8})
    parts = fit(make_model(), task, out=tmp_path / "b", **{**common, "batch_size": 3, "accumulation": 3})
    assert whole.metrics.ce.dropna().tolist() == pytest.approx(parts.metrics.ce.dropna().tolist(), rel=1e-5)
    for name, tensor in whole.edit.tensors().items():
        torch.testing.assert_close(tensor, parts.edit.tensors()[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("found", [None, (2, 12.3)])
def test_a_training_that_blows_up_says_so(
    make_model: MakeModel,
    toy_task: Task,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    found: tuple[int, float] | None,
) -> None:
    said: list[str] = []
    seen: list[list[float]] = []
    monkeypatch.setattr(training.logger, "warning", lambda text, *values: said.append(text % values))
    monkeypatch.setattr(training.convergence, "blown_up", lambda losses: seen.append(losses) or found)
    run = fit(make_model(), toy_task, "attention", out=tmp_path / "run", evaluate=False, **SMALL)
    assert seen == [run.metrics["ce"].dropna().tolist()]
    told = [text for text in said if "training loss rose to 12.3 nats about step 3" in text]
    assert bool(told) is (found is not None)


def test_the_highest_mean_of_five_losses_is_held_against_the_first_five() -> None:
    calm = [0.8, 2.9, 1.0, 2.9, 1.0, 2.9, 1.0]  # an easy batch comes first
    assert blown_up(calm) is None
    assert blown_up([*calm, *[4.4] * 5, 1.0]) == (9, pytest.approx(4.4))
    assert blown_up([1.0, 9.0, 9.0]) is None  # too few to tell


def test_not_finite_loss_stops_with_step_and_rows_and_keeps_the_last_good_state(
    make_model: MakeModel, toy_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = objective.cross_entropy, []

    def poisoned(model: Model, batch: Any) -> torch.Tensor:
        calls.append(batch.rows)
        return real(model, batch) * (float("nan") if len(calls) == 4 else 1.0)

    monkeypatch.setattr(objective, "cross_entropy", poisoned)
    with pytest.raises(TrainingDivergedError, match="step 4 is not finite") as caught:
        fit(make_model(), toy_task, out=tmp_path / "run", **SMALL)
    assert caught.value.rows == calls[3]
    kept = Run.load(tmp_path / "run")
    assert kept.status == "diverged" and kept.config["progress"]["steps"] == 3
    assert all(bool(torch.isfinite(value).all()) for value in kept.edit.tensors().values())


def test_the_callers_edit_and_configuration_are_not_changed(
    make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    model = make_model()
    edit, config = ji.JoLA(model.head_shape, heads=["L1H0", "L0H3"]), ji.TrainConfig(**SMALL)
    run = fit(model, toy_task, edit, config, evaluate=False, out=tmp_path / "run")
    assert not edit.initialised and not any(bool(p.any()) for p in edit.parameters())
    assert config.evaluate is True
    trained = run.edit.site("heads").vectors["additive"].abs().sum(-1) > 0
    assert [tuple(unit) for unit in trained.nonzero().tolist()] == [(0, 3), (1, 0)]


def test_an_initialised_edit_is_trained_further(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    model = make_model()
    first = fit(model, toy_task, evaluate=False, out=tmp_path / "a", **SMALL)
    second = fit(model, toy_task, first.edit, evaluate=False, out=tmp_path / "b", **SMALL)
    np.testing.assert_array_equal(second.gates.at(0)["additive"], first.log_alphas()["additive"])


@pytest.mark.parametrize(
    "switches",
    [
        {"gates": "none"},
        {"gates": "shared"},
        {"operations": "add"},
        {"operations": "multiply"},
        {"sites": ("heads", "mlp")},
        {"sites": ("mlp",)},
    ],
    ids=str,
)
def test_every_ablation_trains_and_travels(
    make_model: MakeModel, toy_task: Task, tmp_path: Path, switches: dict[str, Any]
) -> None:
    model = make_model()
    run = fit(model, toy_task, ji.JoLA(model.head_shape, **switches), out=tmp_path / "run", **SMALL)
    again = Run.load(run.path)
    assert all(torch.equal(value, again.edit.tensors()[name]) for name, value in run.edit.tensors().items())
    assert again.scores["edited"]["nll"]["value"] < again.scores["base"]["nll"]["value"]
    assert again._repr_html_()


def test_a_run_is_not_overwritten_unasked_and_nothing_else_is_deleted(
    make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    model, out = make_model(), tmp_path / "run"
    fit(model, toy_task, out=out, evaluate=False, **SMALL)
    before = files_of(out)
    with pytest.raises(FileExistsError, match="resume=True.*overwrite=True"):
        fit(model, toy_task, out=out, evaluate=False, **SMALL)
    with pytest.raises(ValueError, match="another train"):
        fit(model, toy_task, out=out, resume=True, evaluate=False, **{**SMALL, "epochs": 4})
    assert files_of(out) == before
    assert fit(model, toy_task, out=out, resume=True, evaluate=False, **SMALL).status == "finished"
    (out / "notes.txt").write_text("mine")
    fit(model, toy_task, out=out, overwrite=True, evaluate=False, seed=9, **SMALL)
    assert (out / "notes.txt").read_text() == "mine"
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds no Run"):
        fit(model, toy_task, out=other, overwrite=True, evaluate=False, **SMALL)


def test_runs_are_filed_by_task_edit_seed_and_settings(
    make_model: MakeModel, toy_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = {**SMALL, "epochs": 1, "evaluate": False}
    first, second = fit(make_model(), toy_task, **options), fit(make_model(), toy_task, penalty=0.1, **options)
    assert first.path.parent == Path("runs/toy") and first.path.name.startswith("jola-s42-")
    assert first.path != second.path


def test_a_checkpoint_of_another_training_is_refused(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    out = tmp_path / "run"
    fit(make_model(), toy_task, out=out, callbacks=[InterruptAt(2)], **SMALL)
    with pytest.raises(ValueError, match="other settings, data or model"):
        fit(make_model(), toy_task, out=out, resume=True, seed=7, **SMALL)
    assert (out / "checkpoint" / checkpoint.FILE).exists()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"epochs": 0}, "epochs must be an integer ≥ 1; got 0"),
        ({"lr": -1.0}, "lr must be a positive number"),
        ({"penalty": float("nan")}, "penalty"),
        ({"penalty_schedule": "steep"}, "penalty_schedule must be one of"),
        ({"momentum": 0.9}, "unknown training field momentum"),
        ({"preset": "own"}, "preset must be one of selective, paper, reference"),
        ({"edit": "lora2"}, "edit must be an Edit, a method or one of zero-shot, few-shot"),
        ({"backend": "jax"}, "backend must be one of lens, hooks"),
        ({"wrapper": "no field"}, "wrapper must be one of"),
    ],
    ids=str,
)
def test_bad_arguments_stop_before_any_work(
    make_model: MakeModel, toy_task: Task, tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    out = tmp_path / "run"
    with pytest.raises(ValueError, match=match):
        fit(make_model(), toy_task, out=out, **{**SMALL, **changes})
    assert not out.exists()


def test_loggers_and_callbacks_see_every_step_and_may_stop(
    make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    class Log:
        seen: list[tuple[int, dict[str, float]]] = []

        def log(self, step: int, values: dict[str, float]) -> None:
            self.seen.append((step, values))

    class StopAt(Callback):
        def on_step(self, state: TrainingState) -> None:
            state.stop = state.step == 4

    log = Log()
    run = fit(make_model(), toy_task, out=tmp_path / "run", loggers=[log], callbacks=[StopAt()], **SMALL)
    assert [step for step, values in log.seen if "ce" in values] == [1, 2, 3, 4]
    assert {"ce", "penalty", "lambda_additive", "lambda_multiplicative", "lr", "gate_lr"} <= log.seen[0][1].keys()
    assert run.config["progress"]["stopped"] == "callback"
    assert run.gates.scalars["ce"][1:].tolist() == [values["ce"] for _, values in log.seen if "ce" in values]


def test_wandb_and_tensorboard_take_the_scalars_and_are_imported_only_when_asked_for(
    make_model: MakeModel, toy_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[tuple[Any, ...]]] = {"wandb": [], "tensorboard": []}

    class WandbRun:
        def log(self, values: dict[str, float], step: int) -> None:
            seen["wandb"].append((step, values.get("ce")))

    class SummaryWriter:
        def __init__(self, folder: str):
            self.folder = folder

        def add_scalar(self, name: str, value: float, step: int) -> None:
            if name == "ce":
                seen["tensorboard"].append((step, value))

        def flush(self) -> None:
            pass

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **_: WandbRun()))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=SummaryWriter))
    loggers = [ji.WandbLogger(project="x"), ji.TensorBoardLogger(str(tmp_path / "events"))]
    run = fit(make_model(), toy_task, out=tmp_path / "run", loggers=loggers, **{**SMALL, "evaluate": False})
    expected = [(row.step, row.ce) for row in run.metrics.itertuples() if row.ce == row.ce]
    assert seen["tensorboard"] == expected
    assert [entry for entry in seen["wandb"] if entry[1] is not None] == expected


def test_live_map_draws_outside_a_notebook_too(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    drawn: list[str] = []

    class Watching(LiveMap):
        def on_step(self, state: TrainingState) -> None:
            drawn.append(self.render(state))

    fit(make_model(), toy_task, out=tmp_path / "run", callbacks=[Watching()], evaluate=False, **SMALL)
    assert len(drawn) == 18 and all(text.startswith("<svg") and "additive: P(open)" in text for text in drawn)


def test_steps_are_counted_right_when_an_interrupted_run_had_reached_its_last(
    make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    options = {**SMALL, "max_steps": 4}
    whole = fit(make_model(), toy_task, out=tmp_path / "whole", **options)
    fit(make_model(), toy_task, out=tmp_path / "broken", callbacks=[InterruptAt(4)], **options)
    resumed = fit(make_model(), toy_task, out=tmp_path / "broken", resume=True, **options)
    assert whole.config["progress"]["steps"] == resumed.config["progress"]["steps"] == 4
    assert files_of(tmp_path / "broken") == files_of(tmp_path / "whole")


def test_not_finite_validation_stops_with_its_rows_and_keeps_the_best(
    make_model: MakeModel, toy_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, validations = objective.cross_entropy, []

    def poisoned(model: Model, batch: Any) -> torch.Tensor:
        loss = real(model, batch)
        if torch.is_grad_enabled():
            return loss
        validations.append(batch.rows)
        return loss * (float("nan") if len(validations) == 2 else 1.0)

    monkeypatch.setattr(objective, "cross_entropy", poisoned)
    with pytest.raises(TrainingDivergedError, match="validation loss of step 12 is not finite .validation rows"):
        fit(make_model(), toy_task, preset="paper", out=tmp_path / "run", **SMALL)
    kept = Run.load(tmp_path / "run")
    assert kept.status == "diverged" and kept.config["progress"]["best_epoch"] == 0


def test_nothing_is_lost_before_training_can_begin(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    model, out = make_model(), tmp_path / "run"
    fit(model, toy_task, out=out, evaluate=False, **SMALL)
    before = files_of(out)
    for changes, match in (
        ({"backend": "hooks", "overwrite": True}, "plain model"),  # booted by the first training
        ({"resume": True, "overwrite": True}, "contradict"),
        ({"max_length": 4, "overwrite": True}, "max_length"),
    ):
        with pytest.raises(ValueError, match=match):
            fit(model, toy_task, out=out, evaluate=False, **{**SMALL, **changes})
        assert files_of(out) == before
    mine = tmp_path / "mine"
    (mine / "checkpoint").mkdir(parents=True)
    (mine / "checkpoint" / "model.pt").write_bytes(b"mine")
    (mine / "README.md").write_text("mine")
    for changes in ({}, {"overwrite": True}):
        with pytest.raises(FileExistsError, match="holds no Run"):
            fit(model, toy_task, out=mine, evaluate=False, **{**SMALL, **changes})
    assert (mine / "checkpoint" / "model.pt").read_bytes() == b"mine"
    (out / "checkpoint").mkdir()
    (out / "checkpoint" / "model.pt").write_bytes(b"mine")
    fit(model, toy_task, out=out, evaluate=False, overwrite=True, **SMALL)
    assert (out / "checkpoint" / "model.pt").read_bytes() == b"mine"


def test_what_a_killed_process_left_of_a_checkpoint_is_tidied_up(
    make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    fit(make_model(), toy_task, out=tmp_path / "run", callbacks=[InterruptAt(2)], **SMALL)
    (tmp_path / "run" / "checkpoint" / f".{checkpoint.FILE}-abc").write_bytes(b"half")
    fit(make_model(), toy_task, out=tmp_path / "run", resume=True, **SMALL)
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_resuming_a_finished_run_of_another_edit_is_refused(
    make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    model, out = make_model(), tmp_path / "run"
    first = ji.JoLA(model.head_shape, heads=["L0H0"])
    fit(model, toy_task, first, out=out, evaluate=False, **SMALL)
    with pytest.raises(ValueError, match="another identity"):
        other = ji.JoLA(model.head_shape, heads=["L1H3"])
        fit(model, toy_task, other, out=out, evaluate=False, resume=True, **SMALL)


def test_an_interrupted_evaluation_leaves_a_finished_run(
    make_model: MakeModel, toy_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(training, "evaluate", interrupted)
        run = fit(make_model(), toy_task, out=tmp_path / "run", **SMALL)
    assert run.status == "finished" and run.scores == {}
    assert fit(make_model(), toy_task, out=tmp_path / "run", resume=True, **SMALL).scores


class Shift(Edit):
    """An edit of one's own, without gates: z' = z + a on all heads."""

    type_name = "test-shift"

    def __init__(self, shape: HeadShape):
        super().__init__()
        self.shape = shape
        self.a = torch.nn.Parameter(torch.zeros(shape.layers, shape.heads, shape.d_head))

    def points(self) -> list[tuple[int, Any]]:
        return [(layer, "heads") for layer in range(self.shape.layers)]

    def initialise(self, generator: torch.Generator) -> Edit:
        self.initialised = True
        return self

    def forward(self, activation: torch.Tensor, layer: int, site: Any, context: Any) -> torch.Tensor:
        return activation + self.a[layer].to(activation)

    def settings(self) -> dict[str, Any]:
        return {}

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"a": self.a.detach()}

    def load_tensors(self, tensors: Any) -> Edit:
        self.a.data.copy_(tensors["a"])
        return self

    def parameter_groups(self) -> dict[str, list[torch.nn.Parameter]]:
        return {"vectors": [self.a]}

    def n_parameters(self) -> int:
        return self.a.numel()

    def masks(self) -> dict[Any, torch.Tensor]:
        return {"heads": torch.ones(self.shape.layers, self.shape.heads, dtype=torch.bool)}

    def restricted(self, heads: Any = None, kinds: Any = None, strength: float = 1.0) -> Edit:
        part = Shift(self.shape)
        part.a.data.copy_(strength * self.a.data)
        return part


def test_an_edit_of_ones_own_trains_travels_and_scores(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    model = make_model()
    run = fit(model, toy_task, Shift(model.head_shape), out=tmp_path / "run", **SMALL)
    again = Run.load(run.path)
    assert torch.equal(again.edit.tensors()["a"], run.edit.tensors()["a"]) and again._repr_html_()
    assert run.scores["edited"]["nll"]["value"] < run.scores["base"]["nll"]["value"]


def test_configuration_round_trips_through_json() -> None:
    for preset in ji.PRESETS.values():
        assert ji.TrainConfig(**json.loads(json.dumps(preset.train.to_dict()))) == preset.train
