"""Examples in the prompt: training rows, worded and wrapped as trained, as many as there is room for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import jola_interp as ji
from jola_interp import Example, Task, fit
from jola_interp._log import logger
from jola_interp.models import Model
from jola_interp.prompts import WRAPPERS
from jola_interp.runs import Run

MakeModel = Callable[..., Model]
FIELDS = {"max_length": 100, "max_new_tokens": 3, "wrapper": "plain"}


def prompted(model: Model, task: Task, out: Path, changes: dict[str, object] | None = None, **options: object) -> Run:
    fields = {**FIELDS, **(changes or {})}
    return fit(model, task, ji.method("few-shot", **options), out=out, backend="hooks", **fields)  # type: ignore[arg-type]


def shown(run: Run, task: Task, wrapper: str = "plain") -> list[Example]:
    """The rows in a prompt, read back from it; every character of it is accounted for."""
    left, found = str(run.config["train"]["wrapper"]), []
    before, after = WRAPPERS[wrapper].split("{instruction}")
    while left != WRAPPERS[wrapper]:
        [row] = [
            row
            for row in task.train
            if left.startswith(f"{before}{row.instruction}{after}{task.worded(row.answer)}\n\n")
        ]
        found.append(row)
        left = left.removeprefix(f"{before}{row.instruction}{after}{task.worded(row.answer)}\n\n")
    return found


@pytest.mark.parametrize("wrapper", ["plain", "reference"])
def test_the_prompt_is_k_training_rows_as_they_are_trained_and_then_the_instruction(
    make_model: MakeModel, toy_task: Task, tmp_path: Path, wrapper: str
) -> None:
    task = replace(toy_task, template="It is {answer}")
    changes = {"wrapper": wrapper, "evaluate": False, "max_length": 180}
    run = prompted(make_model(max_position_embeddings=1024), task, tmp_path, changes, k=2)
    rows = shown(run, task, wrapper)
    assert len(rows) == 2 and rows[0] != rows[1]


def test_bare_answers_stand_bare_in_the_prompt(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    task = replace(toy_task, template="It is {answer}")
    run = prompted(make_model(), task, tmp_path, {"answers": "bare", "evaluate": False}, k=1)
    assert "It is" not in run.config["train"]["wrapper"]


def test_another_seed_shows_other_rows_and_the_same_seed_the_same(
    make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    model = make_model()
    prompts = []
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        run = prompted(model, toy_task, tmp_path / name, {"seed": seed, "evaluate": False}, k=3)
        prompts.append(run.config["train"]["wrapper"])
    assert prompts[0] == prompts[1] != prompts[2]


def test_without_k_there_are_as_many_examples_as_fit_the_budget(
    make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    run = prompted(make_model(), toy_task, tmp_path, {"evaluate": False}, budget=70)
    text = str(run.config["train"]["wrapper"]).removesuffix("{instruction}\n")
    rows = shown(run, toy_task)
    longest = max(len(f"{row.instruction}\n{row.answer}\n\n") for row in toy_task.train)
    assert len(rows) >= 2
    assert 70 - longest < len(text) <= 70  # a token a byte
    assert run.config["train"]["max_length"] == FIELDS["max_length"] + len(text)  # type: ignore[operator]


def test_examples_and_generation_stay_within_the_context(
    make_model: MakeModel,
    toy_task: Task,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logger, "propagate", True)
    model = make_model(max_position_embeddings=160)
    run = prompted(model, toy_task, tmp_path, k=20)
    rows = shown(run, toy_task)
    assert 0 < len(rows) < 20
    assert run.config["train"]["max_length"] + 3 <= 160
    assert f"few-shot: {len(rows)} of 20 examples" in caplog.text
    with pytest.raises(ValueError, match="few-shot: not one example fits in 7 tokens"):
        prompted(make_model(max_position_embeddings=110), toy_task, tmp_path / "none", k=1)


def test_the_run_is_scored_with_the_prompt_on_both_sides(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    model = make_model()
    run, plain = prompted(model, toy_task, tmp_path / "few", k=4), tmp_path / "zero"
    zero = fit(model, toy_task, "zero-shot", out=plain, backend="hooks", **FIELDS)  # type: ignore[arg-type]
    assert run.status == "finished" and run.config["progress"]["steps"] == 0
    assert run.scores["base"] == run.scores["edited"]
    assert run.scores["edited"]["nll"] != zero.scores["edited"]["nll"]
    assert run.scores["cut"] == 0
    again = Run.load(tmp_path / "few", model)
    assert ji.evaluate(again, toy_task, model, save=False)["edited"] == run.scores["edited"]


def test_a_finished_prompt_is_returned_though_its_settings_have_become_others(
    make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    model = make_model()
    first = prompted(model, toy_task, tmp_path, k=2)
    again = fit(model, toy_task, ji.method("few-shot", k=2), out=tmp_path, backend="hooks", resume=True, **FIELDS)  # type: ignore[arg-type]
    assert again.config == first.config


def test_rows_that_read_as_a_template_are_passed_over(make_model: MakeModel, tmp_path: Path) -> None:
    bad = ["say {this}", "say {instruction}", "the end {", "of it }"]
    rows = [{"instruction": text, "answer": "no"} for text in bad] + [{"instruction": "say it", "answer": "yes"}]
    held = [{"instruction": "say that", "answer": "yes"}]
    task = Task.from_rows(rows, held, [{"instruction": "say what", "answer": "yes"}], kind="text", metric="bleu")
    run = prompted(make_model(), task, tmp_path, {"evaluate": False}, k=5)
    texts = [row.instruction for row in shown(run, task)]
    assert "say it" in texts and not {"say {this}", "say {instruction}"} & set(texts)
    assert len({"the end {", "of it }"} & set(texts)) >= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be an integer ≥ 1, or None.*got 0"),
        ({"k": True}, "k must be an integer ≥ 1, or None.*got True"),
        ({"budget": 0}, "budget must be an integer ≥ 1.*got 0"),
    ],
)
def test_options_outside_their_range_are_refused_before_any_work(
    make_model: MakeModel, toy_task: Task, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prompted(make_model(), toy_task, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_the_chat_wrapper_is_refused_and_the_message_says_what_to_do(
    make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    model = make_model()
    assert model.tokenizer is not None
    model.tokenizer.chat_template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"
    try:
        with pytest.raises(ValueError, match="few-shot: wrapper 'chat' can't hold examples.*such as 'plain'"):
            prompted(model, toy_task, tmp_path, {"wrapper": "chat"})
    finally:
        model.tokenizer.chat_template = None
