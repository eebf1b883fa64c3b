"""The command line, as a user would call it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer.testing

from jola_interp import cli
from jola_interp.config import TrainConfig
from jola_interp.runs import Run
from tests.conftest import build_hf

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
    assert set(json.loads(call("evaluate", out, "--n-test", "4", "--json"))) >= {"base", "edited", "nll_gain"}
    assert "base" in call("generate", out, "The keys to the cabinet", "--max-new-tokens", "2")
    assert Path(call("report", out).strip()).read_text().startswith("<!")


def test_real_rows_from_a_folder(checkpoint: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for split, count in (("train", 12), ("validation", 4), ("test", 4)):
        rows = [
            {"id": str(i), "instruction": f"{split} {i}?", "answer": "yes", "references": ["yes"]} for i in range(count)
        ]
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    call("fit", "-m", checkpoint, "--data", str(data), "--n-train", "12", "--out", str(tmp_path / "run"), *FAST)
    assert Run.load(tmp_path / "run").config["task"]["name"] == "data"


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
    call("fit", *words, "--preset", "reference", "--out", str(out), "--gates", "shared", *SIZES, *FAST)
    run = Run.load(out)
    train = run.config["train"]
    assert (train["epochs"], train["lr"], train["patience"], train["clip"]) == (2, 0.5, None, None)
    assert train["penalty_form"] == "reference" and run.edit.gates == "shared" and run.edit.inference == "point"


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


def test_debug_shows_the_traceback() -> None:
    command = [sys.executable, "-m", "jola_interp", "--debug", "show", "nowhere"]
    assert "Traceback" in subprocess.run(command, capture_output=True, text=True).stderr
