"""The command line, as a user would call it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.testing

from jola_interp import __version__, cli, models
from jola_interp._log import logger
from jola_interp.config import TrainConfig, resolve
from jola_interp.edits.head_gates import HeadGates
from jola_interp.models import Model, load_model
from jola_interp.runs import Run
from jola_interp.schedules import REFERENCE_PENALTY
from jola_interp.tasks import Task, load_task
from jola_interp.training import fit
from tests.conftest import build_hf
from tests.report.test_report import ABLATIONS
from tests.runs_by_hand import make_run

FAST = ["--max-steps", "3", "--max-length", "300", "--wrapper", "plain", "--max-new-tokens", "3"]
SIZES = ["--n-train", "12", "--n-validation", "4", "--n-test", "4"]


@pytest.fixture
def checkpoint(tmp_path: Path, tokenizer: Any) -> str:
    """A tiny model in a directory."""
    folder = tmp_path / "tiny"
    build_hf("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def call(*words: str) -> str:
    """Standard output of a command that must succeed."""
    result = typer.testing.CliRunner().invoke(cli.app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return str(result.stdout)


def test_a_run_from_fit_to_report(checkpoint: str, tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    printed = call("fit", "--model", checkpoint, "--task", "agreement", "--out", out, *SIZES, *FAST)
    assert "heads open (p_open>0.5)" in printed and "accuracy" in printed and out in printed
    shown = json.loads(call("show", out, "--json"))
    assert shown["scores"] == Run.load(out).scores
    assert len(shown["heads"]) == 8 - shown["counts"]["none"]
    assert "L0H" in call("show", out, "--rule", "top=2:p_open")
    assert set(json.loads(call("evaluate", out, "--n-test", "4", "--json"))) >= {"base", "edited", "paired"}
    assert "base" in call("generate", out, "The keys to the cabinet", "--max-new-tokens", "2")
    assert Path(call("report", out).strip()).read_text().startswith("<!")


def write_rows(folder: Path, **counts: int) -> Path:
    """A directory of rows, all answered by yes."""
    folder.mkdir()
    for split, count in counts.items():
        rows = [{"id": str(i), "instruction": f"{split} {i}?", "answer": "yes"} for i in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("wanted", [[], ["--n-test", "3"]], ids=["all rows", "a sample"])
def test_real_rows_from_a_folder(checkpoint: str, tmp_path: Path, wanted: list[str]) -> None:
    data, out = str(write_rows(tmp_path / "data", train=12, validation=4, test=4)), str(tmp_path / "run")
    call("fit", "-m", checkpoint, "--data", data, "--n-train", "12", *wanted, "--out", out, *FAST)
    run = Run.load(out)
    count = 3 if wanted else 4
    assert run.config["task"]["name"] == "data" and run.config["task"]["sizes"]["test"] == count
    assert run.scores["n"] == count and run.scores["task_fingerprint"] == run.config["task"]["fingerprint"]
    assert run.scores["base"].keys() == run.scores["edited"].keys() >= {"bleu", "nll"}
    assert np.isfinite([score["value"] for name in ("base", "edited") for score in run.scores[name].values()]).all()
    assert all(row["instruction"].startswith("test ") and row["answer"] == "yes" for row in run.predictions)
    assert len({row["id"] for row in run.predictions}) == count
    with pytest.raises(ValueError, match=r"rows of your own \(data\): give --data"):
        call("evaluate", out)
    (tmp_path / "run" / "scores.json").unlink()
    call("evaluate", out, "--data", data)
    assert run.scores["task_fingerprint"] == run.config["task"]["fingerprint"]


def nll(scores: dict[str, Any]) -> list[float]:
    """Cross-entropy of the base and the edited model."""
    return [scores[name]["nll"]["value"] for name in ("base", "edited")]


def test_only_the_runs_own_rows_replace_its_scores(
    checkpoint: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logger, "propagate", True)
    out = str(tmp_path / "run")
    call(
        "fit",
        "-m",
        checkpoint,
        "-t",
        "agreement",
        "--dtype",
        "float32",
        "--out",
        out,
        *SIZES,
        *FAST,
        "--data-seed",
        "7",
    )
    files = [tmp_path / "run" / name for name in ("scores.json", "predictions.jsonl")]
    trained = Run.load(out).scores
    scores = json.loads(call("evaluate", out, "--json"))  # the seed of its data is the Run's
    assert Run.load(out).scores == scores and nll(scores) == pytest.approx(nll(trained), rel=1e-5)
    before = [file.read_bytes() for file in files]
    other = str(write_rows(tmp_path / "other", train=3, test=2))
    for words, why, n in (
        (["--n-test", "2"], "there are scores of 4 rows of agreement, these are of 2", 2),
        (["--data-seed", "8"], "not those it was trained with; some may be among its training rows", 4),
        (["--protocol", "likelihood"], "scores of protocol 'all', these are of 'likelihood'", 4),
    ):
        result = typer.testing.CliRunner().invoke(cli.app, ["evaluate", out, "--json", *words], catch_exceptions=False)
        assert json.loads(result.stdout)["n"] == n
        assert any("not kept with the Run" in message and why in message for message in caplog.messages)
        caplog.clear()
        assert [file.read_bytes() for file in files] == before
    call("evaluate", out, "--task", "topics", "--n-test", "5")
    call("evaluate", out, "--data", other)
    assert {name: scores["n"] for name, scores in Run.load(out).transfer.items()} == {"topics": 5, "other": 2}
    assert [file.read_bytes() for file in files] == before
    with pytest.raises(ValueError, match="--n-test must be at most 4"):
        call("evaluate", out, "--n-test", "5")
    call("evaluate", out, "--protocol", "likelihood", "--overwrite")
    assert "accuracy" not in Run.load(out).scores["base"]


def test_several_tasks_make_one_table(checkpoint: str, tmp_path: Path) -> None:
    words = ["evaluate", checkpoint, "-t", "topics", "-t", "ioi", "--n-test", "3", "-p", "likelihood"]
    out = tmp_path / "scores"
    table = call(*words, "--dtype", "float32", "--out", str(out), "--table", "csv").splitlines()
    assert table[0].startswith("task,") and [line.split(",")[0] for line in table[1:]] == ["topics", "ioi"]
    assert {path.name for path in out.iterdir()} == {"topics", "ioi"}
    with pytest.raises(FileExistsError, match="there are scores of 3 rows of topics, these are of 2"):
        call("evaluate", checkpoint, "-t", "topics", "--n-test", "2", "--out", str(out / "topics"))


def test_a_misspelt_task_is_refused_before_any_is_scored(checkpoint: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no task 'topic'"):
        call("evaluate", checkpoint, "-t", "ioi", "-t", "topic", "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_comparing_side_effects_and_describing(checkpoint: str, tmp_path: Path) -> None:
    runs = [str(tmp_path / name) for name in ("one", "two")]
    for out, penalty in zip(runs, ("0.1", "1.0"), strict=True):
        call("fit", "-m", checkpoint, "-t", "agreement", "--penalty", penalty, "--out", out, *SIZES, *FAST)
    assert "base → edited" in call("compare", runs[0]) and "accuracy" in call("compare", *runs, "--table", "latex")
    found = json.loads(call("compare", *runs, "--json"))
    assert found["scores"].keys() == Run.load(runs[0]).scores["base"].keys()
    texts = tmp_path / "texts.txt"
    texts.write_text("One text.\nAnother one.\n")
    printed = call("side-effects", runs[0], "--texts", str(texts))
    assert "control_kl" in printed and "edited_perplexity" in printed
    described = call("describe", "-t", "agreement", "-m", checkpoint, "--n-test", "10")
    assert "tokens" in described and "not measured" in described


def test_a_run_is_questioned_from_the_shell(checkpoint: str, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    call("fit", "-m", checkpoint, "-t", "agreement", "--out", run, "--no-evaluate", "--backend", "hooks", *SIZES, *FAST)
    card = json.loads(call("evidence", run, "--part", "gain", "--part", "convergence", "--json"))
    assert set(card["parts"]) == {"gain", "convergence"} and "refits" in card["not_run"]
    assert "Verdict" in call("evidence", run, "--part", "gain")
    tags = {number["tag"] for number in json.loads(call("audit", run, "--json"))["numbers"]}
    assert tags <= {"invariant", "basis-dependent", "not identified"} and len(tags) > 1
    assert "U = " in call("rivals", run, "-k", "1", "--steps", "2", "--most", "2")
    assert json.loads(call("calibrate", run, "--heads", "0", "--heads", "1", "--json"))["summary"]["sentence"]


def test_part_of_the_test_rows_is_their_beginning(tmp_path: Path) -> None:
    run = make_run(tmp_path, names=("tiny", "agreement"))
    run.config["task"]["sizes"] = {"train": 12, "validation": 4, "test": 4}
    assert cli._rows_to_score(run, None, None, "hub", 2, 42) == load_task(
        "agreement", n_train=12, n_validation=4, n_test=4
    )


def test_a_model_that_is_named_is_loaded_in_the_runs_dtype(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, loaded = str(tmp_path / "run"), []
    call("fit", "-m", checkpoint, "-t", "agreement", "--dtype", "bfloat16", "--out", out, *SIZES, *FAST)

    def load(name: str, dtype: str) -> Any:
        loaded.append((name, dtype))
        return load_model(name, dtype=dtype)

    monkeypatch.setattr(models, "load_model", load)
    trained = Run.load(out).scores
    scores = json.loads(call("evaluate", out, "--model", checkpoint, "--json"))
    assert Run.load(out).scores == scores and nll(scores) == pytest.approx(nll(trained), rel=1e-3)
    call("generate", out, "Hello", "--model", checkpoint, "--max-new-tokens", "2")
    assert loaded == 2 * [(checkpoint, "bfloat16")]


@pytest.mark.parametrize("switches", ABLATIONS.values(), ids=ABLATIONS)
def test_every_kind_of_run_is_trained_shown_reported_and_used(
    checkpoint: str, tmp_path: Path, switches: dict[str, Any]
) -> None:
    out = str(tmp_path / "run")
    flags = [word for name, value in switches.items() for word in ("--option", f"{name}={_word(value)}")]
    printed = call("fit", "-m", checkpoint, "-t", "agreement", "--out", out, *flags, "--no-evaluate", *SIZES, *FAST)
    assert "3 steps" in printed and "kept: " in printed
    gated, sites = switches.get("gates") != "none", switches.get("sites", ("heads",))
    for site in sites:
        shown, listed = call("show", out, "--site", site), json.loads(call("show", out, "--site", site, "--json"))
        assert ("no gates: every editable unit acts" in shown) == (not gated)
        assert (f"{'heads' if site == 'heads' else 'MLPs'} open (p_open>0.5)" in shown) == gated
        assert sum(listed["counts"].values()) == gated * (8 if site == "heads" else 2)
        used = sum(count for status, count in listed["counts"].items() if status != "none")
        assert (listed["site"], len(listed["heads"])) == (site, used)
    assert json.loads(call("show", out, "--json"))["site"] == sites[0]
    assert "edited" in call("generate", out, "The keys", "--max-new-tokens", "2")
    assert "JoLA" in Path(call("report", out).strip()).read_text()


@pytest.mark.parametrize("switches", ABLATIONS.values(), ids=ABLATIONS)
def test_every_kind_of_run_is_shown_with_its_scores(tmp_path: Path, switches: dict[str, Any]) -> None:
    make_run(tmp_path, **switches)
    assert (
        "52.00 [51.00, 53.00]" in call("show", str(tmp_path)) and Path(call("report", str(tmp_path)).strip()).exists()
    )


def test_a_run_without_jola_gates_is_shown_and_reported(
    make_model: Callable[..., Model], toy_task: Task, tmp_path: Path
) -> None:
    model, out = make_model(), str(tmp_path / "run")
    fit(model, toy_task, HeadGates(model.head_shape), backend="hooks", max_steps=2, evaluate=False, out=out)
    assert "no JoLA gates: the edit is head_gates (heads)" in call("show", out)
    listed = json.loads(call("show", out, "--json"))
    assert (listed["site"], listed["heads"], listed["counts"]) == ("heads", [], {})
    assert "This Run has no JoLA gates" in Path(call("report", out).strip()).read_text()


def test_a_run_in_which_nothing_is_selected_is_shown(tmp_path: Path) -> None:
    make_run(tmp_path)
    shown = json.loads(call("show", str(tmp_path), "--rule", "p_open>1", "--json"))
    assert shown["heads"] == [] and shown["counts"]["none"] == 12
    assert "12 none" in call("show", str(tmp_path), "--rule", "p_open>1")


def test_a_site_where_the_edit_does_not_act_is_refused(tmp_path: Path) -> None:
    make_run(tmp_path, sites=("mlp",))
    with pytest.raises(ValueError, match="--site must be one of mlp, where this edit acts; got 'heads'"):
        call("show", str(tmp_path), "--site", "heads")


def _word(value: Any) -> str:
    return value if isinstance(value, str) else ",".join(value)


def test_every_training_field_is_an_option_with_its_sentence() -> None:
    sentences = cli._field_sentences()
    assert sentences.keys() == {field.name for field in fields(TrainConfig)}
    assert all(sentence.endswith((".", ")")) for sentence in sentences.values())
    command: Any = typer.main.get_command(cli.app)
    options = {name for parameter in command.commands["fit"].params for name in parameter.opts}
    assert {"--" + field.name.replace("_", "-") for field in fields(TrainConfig)} <= options


def test_flags_win_over_the_file_and_the_file_over_the_preset(checkpoint: str, tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text("lr: 0.5\nepochs: 1\npatience: null\n")
    out = tmp_path / "run"
    words = [
        "-m",
        checkpoint,
        "-t",
        "agreement",
        "--config",
        str(file),
        "--epochs",
        "2",
        "--clip",
        "0",
        "--no-evaluate",
    ]
    call("fit", *words, "--preset", "reference", "--out", str(out), "--option", "gates=shared", *SIZES, *FAST)
    run = Run.load(out)
    train = run.config["train"]
    assert (train["epochs"], train["lr"], train["patience"], train["clip"]) == (2, 0.5, None, None)
    assert train["penalty_form"] == "reference" and run.edit.gates == "shared" and run.edit.inference == "point"


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text("lr: 2e-2\nclip: 1e0\nadam_betas: [0.9, 99e-2]\nwrapper: '12'\nepochs: 1e1\npenalty: much\n")
    read = cli._read_config(file)
    numbers = {"lr": 0.02, "clip": 1.0, "adam_betas": [0.9, 0.99]}
    assert read == {**numbers, "wrapper": "12", "epochs": "1e1", "penalty": "much"}
    assert resolve(None, "paper", numbers).lr == 0.02


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("evaluate", "no", "True or False"),
        ("eos", 1, "True or False"),
        ("bucketed", None, "True or False"),
        ("restore_best", "true", "True or False"),
        ("epochs", True, "an integer ≥ 1"),
        ("epochs", 2.0, "an integer ≥ 1"),
        ("patience", False, "an integer ≥ 1 or None"),
        ("seed", True, "an integer from 0 to 2^63 − 1"),
        ("seed", -1, "an integer from 0 to 2^63 − 1"),
        ("lr", "x", "a positive number"),
        ("lr", True, "a positive number"),
        ("gate_lr", float("nan"), "a positive number"),
        ("penalty", "much", "a number ≥ 0"),
        ("warmup", None, "a number ≥ 0"),
        ("clip", True, "a positive number or None"),
        ("adam_betas", 0.9, "two numbers in [0, 1)"),
        ("adam_betas", ["a", "b"], "two numbers in [0, 1)"),
        ("wrapper", None, "a text"),
        ("stop_on", 1, "one of ce, loss"),
    ],
)
def test_a_field_of_another_type_is_refused(field: str, value: Any, allowed: str) -> None:
    with pytest.raises(ValueError) as caught:
        resolve(None, "paper", {field: value})
    assert str(caught.value) == f"{field} must be {allowed}; got {value!r}"


@pytest.mark.parametrize(("schedule", "penalty"), REFERENCE_PENALTY.items())
def test_the_reference_penalty_goes_with_its_schedule(schedule: str, penalty: float) -> None:
    chosen = {"penalty_schedule": schedule}
    reference = resolve(None, "reference", chosen)
    assert (reference.penalty, reference.penalty_schedule) == (penalty, schedule)
    assert resolve(reference, "paper", {"penalty_schedule": "cyclic"}).penalty == 1.0
    assert resolve(None, "reference", {**chosen, "penalty": 0.7}).penalty == 0.7
    mine = resolve(None, "reference", {"penalty": 0.7})
    assert resolve(mine, "paper", chosen).penalty == 0.7
    assert resolve(None, "paper", chosen).penalty == TrainConfig().penalty


def test_models_and_tasks_are_listed() -> None:
    assert any(row["name"] == "smollm2-135m" for row in json.loads(call("models", "--json")))
    names = [row["name"] for row in json.loads(call("tasks", "--json"))]
    assert {"restaurants", "arithmetic", "agreement", "ioi", "topics"} <= set(names)
    assert "restaurants" in call("tasks")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["fit", "--task", "restaurant"], "restaurants"),
        (["fit"], "give either --task NAME or --data DIRECTORY"),
        (["fit", "--task", "agreement", "--epochs", "0"], "epochs must be an integer ≥ 1; got 0"),
        (["fit", "--task", "agreement", "--preset", "x"], "preset must be one of"),
        (["show", "nowhere"], "no Run at nowhere"),
        (["fit", "--data", "nowhere"], "nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_are_one_clear_line_and_exit_code_two(words: list[str], says: str) -> None:
    result = subprocess.run([sys.executable, "-m", "jola_interp", *words], capture_output=True, text=True)
    assert result.returncode == 2
    assert says in result.stderr and "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr


def test_an_error_of_many_lines_is_printed_as_one(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def fail() -> None:
        raise OSError("401 Client Error.\n\nAccess to   model x is restricted.\n" + "Log in. " * 200)

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2 and line.startswith("error: 401 Client Error. Access to model x is restricted. Log")
    assert len(line) <= len("error: ") + 500 and line.endswith("(--debug shows all)")


def test_the_version_needs_no_command() -> None:
    assert call("--version") == f"{__version__}\n"


def test_debug_shows_the_traceback() -> None:
    command = [sys.executable, "-m", "jola_interp", "--debug", "show", "nowhere"]
    assert "Traceback" in subprocess.run(command, capture_output=True, text=True).stderr
