"""Methods by name: what the table says of each, and that ``fit`` trains what it says."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import jola_interp as ji
from jola_interp import Task, fit
from jola_interp.analysis import recipe
from jola_interp.methods import Setup
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


def test_a_finished_run_of_a_method_that_prepares_is_returned_without_preparing(
    make_model: MakeModel, toy_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, name = make_model(), fitting("lofit")
    first = small(model, toy_task, name, tmp_path / "run", evaluate=False)
    shutil.rmtree(tmp_path / "run" / "stages")  # as after a download
    monkeypatch.setattr(Setup, "train", lambda *_, **__: pytest.fail("a stage was trained again"))
    again = small(model, toy_task, name, tmp_path / "run", evaluate=False, resume=True)
    assert again.config == first.config
    with pytest.raises(pytest.fail.Exception, match="trained again"):  # other options are another Run
        small(model, toy_task, name(k=3), tmp_path / "run", evaluate=False, resume=True)


def test_overwriting_begins_with_nothing_and_takes_only_what_is_the_packages(
    make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    model, out = make_model(), tmp_path / "run"
    small(model, toy_task, fitting("lofit"), out, evaluate=False)
    (out / "stages" / "mine").mkdir()
    (out / "stages" / "mine" / "notes.txt").write_text("keep")
    run = small(model, toy_task, fitting("norm-heads"), out, evaluate=False, overwrite=True)
    assert run.config["method"]["name"] == "norm-heads"
    small(model, toy_task, "attention", out, evaluate=False, overwrite=True)
    assert [path.name for path in (out / "stages").iterdir()] == ["mine"]
    other = tmp_path / "other"
    (other / "stages" / "mine").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="holds no Run"):
        small(model, toy_task, "attention", other, evaluate=False, overwrite=True)


def test_what_makes_a_method_stays_under_a_configuration_of_ones_own(
    make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    config = ji.TrainConfig(max_steps=1, evaluate=False, lr=0.003, wrapper="plain")
    run = fit(make_model(), toy_task, "jola-lambda-linear", config, out=tmp_path / "run")
    assert (run.config["train"]["penalty_schedule"], run.config["train"]["lr"]) == ("linear", 0.003)


def test_options_are_kept_as_json_gives_them_back() -> None:
    assert ji.method("loreft", layers=range(2, 4)).options["layers"] == [2, 3]
    with pytest.raises(ValueError, match="option layers must be a number"):
        ji.method("loreft", layers=object())


@pytest.mark.parametrize("name", ["repe", "few-shot", "loreft", "lofit"])
def test_the_recipe_of_a_run_makes_it_again(make_model: MakeModel, toy_task: Task, tmp_path: Path, name: str) -> None:
    run = small(make_model(), toy_task, fitting(name), tmp_path / "run", evaluate=False)
    lines = recipe.python_lines(run)
    compile(lines, "recipe", "exec")
    assert "wrapper='plain'" in lines and "row 3" not in lines
    run.config["model"]["source"] = "smollm2-135m"
    assert f"--method {name}" in (recipe.command(run) or "")


def test_an_edit_of_weights_has_no_hooks_to_hand_out(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    run = small(make_model(), toy_task, "lora", tmp_path / "run", evaluate=False)
    with pytest.raises(ValueError, match="LoRA acts on weights"):
        run.fwd_hooks()
