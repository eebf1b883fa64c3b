"""RePE reads training rows, chooses on validation rows, trains nothing, and leaves a record of its choice."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from jola_interp.batching import collate
from jola_interp.config import TrainConfig
from jola_interp.edits.repe import Steering, reading_vectors
from jola_interp.methods.repe import (
    REPE,
    candidates,
    contrasts,
    control,
    cross_entropy,
    encoded,
    read,
    wrong_answer,
)
from jola_interp.methods.setup import Setup
from jola_interp.models import Model
from jola_interp.runs import STAGES, Run
from jola_interp.tasks import Example, Task
from jola_interp.training import fit

MakeModel = Callable[..., Model]
METHOD = REPE[0]
SETTINGS = TrainConfig(wrapper="plain", evaluation_batch_size=5, evaluate=False)


def setup_of(model: Model, task: Task, folder: Path = Path("nowhere"), backend: Any = "hooks") -> Setup:
    return Setup(model, task, SETTINGS, backend, folder, fit)


def choice_task() -> Task:
    rows = [Example(f"is {i} odd?", "yes" if i % 2 else "no", id=str(i)) for i in range(12)]
    return Task("odd", tuple(rows[:8]), tuple(rows[8:]), (), kind="choice", options=("yes", "no", "perhaps"))


def fitted(model: Model, task: Task, out: Path, **options: Any) -> Run:
    return fit(model, task, METHOD(**options), SETTINGS, backend="hooks", out=out)


def files_of(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "timing.json")
    return {path.name: path.read_bytes() for path in files}


# -- contrasts ---------------------------------------------------------------------------------------------------------


def test_contrasts_are_training_rows_with_their_own_and_with_a_wrong_answer(
    make_model: MakeModel, toy_task: Task
) -> None:
    for task in (toy_task, choice_task()):
        right, wrong = contrasts(setup_of(make_model(), task), 7)
        assert len(set(right)) == len(wrong) == 7
        assert set(right) <= set(task.train)
        for one, other in zip(right, wrong, strict=True):
            assert dataclasses.replace(other, answer=one.answer) == one
            assert other.answer != one.answer
            allowed = task.options if task.kind == "choice" else {row.answer for row in task.train}
            assert other.answer in allowed
    assert len(contrasts(setup_of(make_model(), toy_task), 10_000)[0]) == len(toy_task.train)


def test_another_rows_answer_that_counts_as_right_here_is_no_wrong_answer(make_model: MakeModel) -> None:
    train = [Example("a?", "one", ("one", "two")), Example("b?", "two"), Example("c?", "three")]
    task = Task("few", tuple(train), tuple(train), ())
    generator = setup_of(make_model(), task).generator()
    assert {wrong_answer(task, train[0], generator) for _ in range(20)} == {"three"}
    alone = Task("alone", tuple(train[:2]), tuple(train[:2]), ())
    with pytest.raises(ValueError, match="task 'alone': no training row has an answer that would be wrong for 'a"):
        wrong_answer(alone, train[0], generator)


@pytest.mark.parametrize("backend", ["lens", "hooks"])
def test_reading_takes_the_last_token_and_the_mean_norm_without_first_tokens_and_padding(
    make_model: MakeModel, toy_task: Task, backend: Any
) -> None:
    model, plain = make_model(attention="eager"), make_model(attention="eager")
    setup = setup_of(model, toy_task, backend=backend)
    rows = encoded(setup, [*toy_task.train[:6], Example("a much longer one than the others are", "a cat.")])
    last, norms = read(setup, rows)
    lengths = []
    for place, row in enumerate(rows):
        batch = collate([row], 0)
        with torch.no_grad():
            output = plain.hf(batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True)
        stream = output.hidden_states[1][0]  # behind block 0
        torch.testing.assert_close(last[place, 0], stream[-1], atol=1e-5, rtol=1e-5)
        lengths.append(stream[1:].norm(dim=-1))
    torch.testing.assert_close(norms[0], torch.cat(lengths).mean(), atol=1e-4, rtol=1e-5)


# -- the choice --------------------------------------------------------------------------------------------------------


def test_candidates_are_single_layers_over_the_whole_depth_and_the_middle_half() -> None:
    for n in (1, 2, 7, 30, 80):
        found = candidates(n)
        singles = [layers[0] for layers in found if len(layers) == 1]
        assert singles[0] == 0
        assert singles[-1] == n - 1
        assert len(singles) == len(set(singles)) == min(8, n)
        assert len(found) == len(set(found)) <= 9
        middle = list(found[-1])
        assert middle == list(range(middle[0], middle[-1] + 1))
        assert middle[0] == n - 1 - middle[-1]
        if n >= 30:
            assert abs(len(middle) - n / 2) <= 1


def test_layers_controlled_together_share_out_the_strength() -> None:
    norms = torch.tensor([1.0, 2.0, 4.0, 8.0])
    strength = control(norms, (1, 3), 0.5)
    torch.testing.assert_close(strength, torch.tensor([0.0, 0.5, 0.0, 2.0]))
    torch.testing.assert_close((strength / norms).sum(), torch.tensor(0.5))


@pytest.mark.parametrize("task", [None, choice_task()], ids=["text", "choice"])
def test_the_control_with_the_lowest_validation_cross_entropy_is_kept_and_recorded(
    make_model: MakeModel, toy_task: Task, tmp_path: Path, task: Task | None
) -> None:
    model, used = make_model(), task or toy_task
    run = fitted(model, used, tmp_path / "run", strengths=(0.1, 1.0))
    assert run.status == "finished"
    assert run.config["progress"]["steps"] == 0
    record = json.loads((run.path / STAGES / "repe.json").read_text())
    assert [(tuple(trial["layers"]), trial["strength"]) for trial in record["trials"]] == [
        (layers, strength) for layers in candidates(2) for strength in (0.1, 1.0)
    ]
    chosen, edit = record["chosen"], run.edit
    assert chosen["ce"] == min(trial["ce"] for trial in record["trials"])
    assert len({trial["ce"] for trial in record["trials"]}) > 1
    assert isinstance(edit, Steering)
    assert [layer for layer, _ in edit.points()] == chosen["layers"]
    torch.testing.assert_close(edit.direction.norm(dim=-1), torch.ones(2))
    expected = control(torch.tensor(record["mean_norm"]), chosen["layers"], chosen["strength"])
    torch.testing.assert_close(edit.strength, expected)
    # All validation rows are within `rows`: what was chosen by is what the Run reports.
    validation = run.metrics["validation_ce"].dropna().tolist()
    assert validation == [pytest.approx(chosen["ce"], rel=1e-5)]
    rows = encoded(setup_of(model, used), used.validation, eos=True)
    assert cross_entropy(setup_of(model, used), Steering(model.head_shape), rows) == pytest.approx(record["base_ce"])


def test_directions_follow_the_labels(make_model: MakeModel, toy_task: Task) -> None:
    """Right answers lie further along v than the wrong ones of most pairs, in every layer."""
    setup = setup_of(make_model(), toy_task)
    right, wrong = contrasts(setup, 24)
    last, _ = read(setup, [*encoded(setup, right), *encoded(setup, wrong)])
    vectors = reading_vectors(last[:24] - last[24:])
    further = ((last[:24] - last[24:]) * vectors).sum(-1) > 0
    assert bool((further.float().mean(0) >= 0.5).all())


def test_same_seed_gives_the_same_bytes_and_test_rows_play_no_part(
    make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    first, again = (fitted(make_model(), toy_task, tmp_path / name) for name in ("first", "again"))
    assert files_of(first.path) == files_of(again.path)
    blind = fitted(make_model(), dataclasses.replace(toy_task, test=()), tmp_path / "blind")
    assert files_of(blind.path)["edit.safetensors"] == files_of(first.path)["edit.safetensors"]
    resumed = fit(make_model(), toy_task, METHOD, SETTINGS, backend="hooks", out=first.path, resume=True)
    assert files_of(resumed.path) == files_of(again.path)


def test_a_run_loads_and_steers_as_it_did(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    model = make_model()
    run = fitted(model, toy_task, tmp_path / "run", layers=[1], strengths=[0.5])
    assert [layer for layer, _ in run.edit.points()] == [1]
    ids = torch.tensor([[5, 17, 200, 33]])
    found = []
    for one in (run, Run.load(tmp_path / "run", model)):
        with one.attach(model), torch.no_grad():
            found.append(model.logits(ids, torch.ones_like(ids)))
    assert torch.equal(*found)
    with torch.no_grad():
        assert not torch.equal(found[0], model.logits(ids, torch.ones_like(ids)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": 0}, "pairs must be an integer ≥ 1; got 0"),
        ({"rows": 1.5}, "rows must be an integer ≥ 1; got 1.5"),
        ({"layers": [2]}, r"layers must be some of 0 to 1, or None; got \[2\]"),
        ({"strengths": ()}, r"strengths must be some finite numbers; got \[\]"),
        ({"strengths": (float("nan"),)}, r"strengths must be some finite numbers; got \[nan\]"),
        ({"strengths": 0.1}, "strengths must be some finite numbers; got 0.1"),
    ],
)
def test_bad_options_are_named_before_any_work(
    make_model: MakeModel, toy_task: Task, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fitted(make_model(), toy_task, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
