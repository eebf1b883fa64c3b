"""Two processes take the steps that one takes with all their rows, and the first of them alone writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import jola_interp as ji
from jola_interp.hf_trainer import EditedModel
from jola_interp.runs import Run
from jola_interp.tasks import Task
from tests.conftest import ROOT
from tests.data_parallel_by_hand import TRAININGS, settings, train
from tests.test_hf_trainer import STEPS, collate, rows_of

LAUNCH = ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")
PLAIN = ("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0")
SECONDS = 400
FIRST, LATER = 1e-6, 1e-5
"""Largest difference, as a share of the largest number: of the first gradients, and once Adam has divided small ones by
their own size. Measured: 4e-7; 1.2e-6 for gradients, 6e-7 for the edit."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """All trainings in this process, and in two that ``accelerate launch`` starts."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    for name in TRAININGS:
        train(one, name)
    launch(two)
    return one, two


def launch(folder: Path) -> None:
    command = [sys.executable, "-m", *LAUNCH, *PLAIN, "-m", "tests.data_parallel_by_hand", str(folder)]
    here = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=here, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.terminate()  # it passes this on to its workers
        output, _ = process.communicate(timeout=30)
        pytest.fail(f"no end after {SECONDS} s:\n{output[-5000:]}")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the launcher leads a session: its workers go, too
    assert process.returncode == 0, output[-5000:]


def tensors_of(folder: Path, name: str, rank: int, part: str) -> dict[str, Tensor]:
    found = load_file(folder / f"{name}-{rank}.safetensors")
    return {key: value for key, value in found.items() if key.startswith(part)}


def notes_of(folder: Path, name: str, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{name}-{rank}.json").read_text(encoding="utf-8"))
    return found


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], bound: float) -> None:
    assert found.keys() == expected.keys() and expected
    for key, value in expected.items():
        moved = (found[key].float() - value.float()).abs().max()
        assert moved <= bound * value.float().abs().max(), key


@pytest.mark.parametrize("name", TRAININGS)
def test_two_processes_have_the_gradients_of_one_with_all_rows(folders: tuple[Path, Path], name: str) -> None:
    one, two = folders
    for rank in (0, 1):
        for step in range(STEPS):
            expected = tensors_of(one, name, 0, f"gradient.{step}.")
            assert_close(tensors_of(two, name, rank, f"gradient.{step}."), expected, LATER if step else FIRST)


@pytest.mark.parametrize("name", TRAININGS)
def test_two_processes_leave_the_edit_and_the_history_of_one(folders: tuple[Path, Path], name: str) -> None:
    one, two = folders
    for part in ("edit.", "history."):
        first, second = (tensors_of(two, name, rank, part) for rank in (0, 1))
        assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
        assert_close(first, tensors_of(one, name, 0, part), LATER)


@pytest.mark.parametrize("name", TRAININGS)
def test_gates_are_drawn_alike_and_anew_at_every_step(folders: tuple[Path, Path], name: str) -> None:
    one, two = folders
    draws = [tensors_of(*where, "draw.") for where in ((one, name, 0), (two, name, 0), (two, name, 1))]
    assert len(draws[0]) == 2 * settings().gate_steps(STEPS) < 2 * STEPS  # behind that, gates are fixed
    for other in draws[1:]:
        assert other.keys() == draws[0].keys() and all(torch.equal(other[key], draws[0][key]) for key in other)
    assert not torch.equal(draws[0]["draw.0.additive"], draws[0]["draw.1.additive"])


@pytest.mark.parametrize("name", TRAININGS)
def test_what_is_noted_is_of_all_rows(folders: tuple[Path, Path], name: str) -> None:
    """λ follows the loss, so processes that noted their own would train by other weights."""
    one, two = folders
    expected = notes_of(one, name, 0)["rows"]
    assert len({row["lambda_additive"] for row in expected if "ce" in row}) > 3
    for rank in (0, 1):
        for found, row in zip(notes_of(two, name, rank)["rows"], expected, strict=True):
            assert found == pytest.approx(row, rel=LATER)
    assert notes_of(two, name, 0)["rows"] == notes_of(two, name, 1)["rows"]


@pytest.mark.parametrize("name", TRAININGS)
def test_only_the_main_process_writes(folders: tuple[Path, Path], name: str) -> None:
    _, two = folders
    run = Run.load(two / f"{name}-run-0")
    assert run.convergence is not None and len(run.metrics) == STEPS + 2
    assert not (two / f"{name}-run-1").exists()
    for rank in (0, 1):
        held = tensors_of(two, name, rank, "run.")
        assert all(torch.equal(held[f"run.{key}"], value) for key, value in run.edit.tensors().items())
    told = {key: run.config["train"][key] for key in ("batch_size", "accumulation")}
    assert told["batch_size"] * told["accumulation"] == 12


def test_checkpointing_runs_every_block_again(folders: tuple[Path, Path]) -> None:
    for folder, ranks in zip(folders, (1, 2), strict=True):
        for rank in range(ranks):
            for name, passes in (("whole", 1), ("checkpointed", 2)):
                notes = notes_of(folder, name, rank)
                evaluated = notes["forwards"] - STEPS
                assert set(notes["calls"].values()) == {passes * STEPS + evaluated}


def test_what_would_not_equal_one_process_is_refused(make_model: Callable[..., ji.Model]) -> None:
    edited = EditedModel(make_model(), config=settings())
    sound = {
        "world_size": 2,
        "process_index": 1,
        "device": torch.device("cpu:0"),
        "average_tokens_across_devices": True,
    }
    sound |= {"ddp_find_unused_parameters": None, "ddp_static_graph": None, "n_gpu": 1, "fsdp": [], "deepspeed": None}
    refused = {
        "n_gpu must be 1 in a process, got 2": {"n_gpu": 2, "world_size": 1},
        "fsdp and deepspeed must not be set": {"fsdp": ["full_shard"]},
        "average_tokens_across_devices must be True with 2": {"average_tokens_across_devices": False},
        "gate_share must be 1 .* got 0.65": {"ddp_find_unused_parameters": False},
        "gate_share must be 1": {"ddp_static_graph": True},
        "process 1 trains on cuda:1, but its model is on cpu": {"device": torch.device("cuda:1")},
    }
    for message, fields in refused.items():
        with pytest.raises(ValueError, match=message):
            edited.adopt(SimpleNamespace(**{**sound, **fields}), SimpleNamespace())  # type: ignore[arg-type]


def test_between_steps_gates_ask_for_a_gradient(make_model: Callable[..., ji.Model], toy_task: Task) -> None:
    """A further Trainer that wrapped the model while they are fixed would never exchange theirs."""
    model = make_model()
    edited = EditedModel(model, config=settings())
    edited.plan(STEPS)
    gates = edited.edit.parameter_groups()["gates"]
    edited.begin_step(STEPS - 1)
    assert not any(gate.requires_grad for gate in gates)
    edited(**collate(rows_of(model, toy_task, settings())))
    edited.end_step(STEPS)
    assert gates and all(gate.requires_grad for gate in gates)


def test_fit_is_refused_where_several_processes_would_train_the_same_run(
    make_model: Callable[..., ji.Model], toy_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="WORLD_SIZE must be 1 .* got 2.*hf_trainer"):
        ji.fit(make_model(), toy_task, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("WORLD_SIZE", "1")
    fields: Any = {"max_steps": 1, "evaluate": False, "wrapper": "plain"}
    assert ji.fit(make_model(), toy_task, backend="hooks", out=tmp_path / "run", **fields).status == "finished"
