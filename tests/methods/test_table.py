"""Methods by name: what the table says of each, and that ``fit`` trains what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import jola_interp as ji
from jola_interp import Task, fit
from jola_interp.models import Model
from jola_interp.runs import Run

MakeModel = Callable[..., Model]


def small(model: Model, task: Task, name: str | ji.Method, out: Path, **changes: object) -> Run:
    options = {"max_steps": 2, "batch_size": 4, "wrapper": "plain", "max_new_tokens": 3, "patience": None}
    return fit(model, task, name, out=out, **(options | changes))  # type: ignore[arg-type]


def fitting(name: str) -> ji.Method:
    """With options for a model of eight heads and short prompts."""
    found = ji.method(name)
    fewer = {"k": 2, "p": 2, "s": 2, "pairs": 4, "budget": 200}
    return found(**{option: value for option, value in fewer.items() if option in found.options})


def test_every_method_says_what_it_is(make_model: MakeModel) -> None:
    frame = ji.methods().to_frame(make_model())
    assert list(frame["name"]) == list(ji.methods())
    for column in ("equation", "points", "source"):
        assert (frame[column].str.len() > 0).all()
    counts = dict(zip(frame["name"], frame["parameters"], strict=True))
    assert counts["zero-shot"] == 0
    assert counts["jola"] == 2 * 2 * 4 * 8 + 2 * 2 * 4
    assert counts["attention"] == 2 * 2 * 4 * 8
    assert counts["mlp"] == 2 * 2 * 32


@pytest.mark.parametrize("name", list(ji.methods()))
def test_every_method_trains_saves_and_loads(make_model: MakeModel, toy_task: Task, tmp_path: Path, name: str) -> None:
    model = make_model()
    before = model.weights_digest()
    run = small(model, toy_task, fitting(name), tmp_path / "run", backend="hooks")
    assert run.status == "finished"
    assert run.config["method"]["name"] == name
    assert model.weights_digest() == before
    again = Run.load(tmp_path / "run", model)
    assert ji.evaluate(again, toy_task, model, save=False)["edited"] == run.scores["edited"]


def test_zero_shot_is_the_base_model(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    run = small(make_model(), toy_task, "zero-shot", tmp_path / "run")
    assert run.scores["edited"] == run.scores["base"]
    assert run.config["progress"]["steps"] == 0


def test_the_same_name_and_seed_give_the_same_bytes(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    for name in ("one", "two"):
        small(make_model(), toy_task, "attention", tmp_path / name)
    for file in ("edit.safetensors", "config.json", "metrics.jsonl", "scores.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_bad_names_and_options_are_named() -> None:
    with pytest.raises(ValueError, match="method must be one of zero-shot, .*got 'nothing'"):
        ji.method("nothing")
    with pytest.raises(ValueError, match="method 'jola' has no option k; it has: gates, "):
        ji.method("jola", k=3)
