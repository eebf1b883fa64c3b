"""A Run's folded checkpoint in an environment without jola_interp: the same texts and scores, and as fast as the base?

    python benchmarks/exported.py RUN                                float32 and bfloat16, on all rows that are scored
    python benchmarks/exported.py RUN --rows 200 --dtype float32     the first 200 of them, in float32 alone
    python benchmarks/exported.py RUN --attached                     and what the Run itself writes in each dtype, here
    python benchmarks/exported.py RUN --venv DIR                     the environment is made there, or taken from there
    python benchmarks/exported.py RUN --python PATH                  another one, whatever is installed in it

For each dtype the edit is folded, base and folded checkpoint are loaded by stock transformers in a new virtual
environment (PyTorch and transformers of the versions that run here; `exported_child.py` runs there), and write behind
the Run's test prompts as its evaluation did. Their texts are scored here, beside those that the Run keeps
(`evaluate(run, task)` comes first). The base model's texts are a control: where they differ from the Run's, it is not
for the fold. In bfloat16 a fold rounds weights, and the Run may have been scored in another dtype: --attached tells
these apart. Speed is of a fixed number of new tokens, in turn in one process.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import jola_interp as ji
from jola_interp import export
from jola_interp.batching import encode_prompt
from jola_interp.evaluation.compare import Comparison, compare
from jola_interp.evaluation.generation import generate_texts
from jola_interp.models import anew
from jola_interp.prompts import wrap
from jola_interp.runs import edit_digest

HERE = Path(__file__).resolve().parent
DTYPES = ("float32", "bfloat16")
PACKAGES = ("torch", "transformers")
KEPT = ("id", "instruction", "answer", "references")
"""What is compared by, of a row of ``predictions.jsonl``."""
Rows = Sequence[dict[str, Any]]


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """What came of one dtype."""

    dtype: str
    check: export.Check
    answer: dict[str, Any]
    tokenised_alike: int
    base: Comparison
    """The Run's base texts, and those of the base model there."""
    folded: Comparison
    """The Run's edited texts, and those of the folded checkpoint."""
    equal: dict[str, int]
    """Rows with the same text, by what is compared."""
    attached: Comparison | None
    """The texts of the Run, attached here in this dtype, and those of the folded checkpoint."""


def main() -> None:
    options = read_options()
    if options.threads:
        torch.set_num_threads(options.threads)
    ji.set_verbosity("error")
    run = ji.Run.load(options.run)
    rows = scored_rows(run, options.rows)
    with folder_of(options.work) as work, python_of(options) as python:
        found = [of_dtype(run, rows, dtype, work, python, options) for dtype in options.dtype]
    text = report(run, rows, found, options)
    sys.stdout.write(text)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text, encoding="utf-8")
    pd.concat([scores_of(one) for one in found]).to_csv(options.out.with_suffix(".csv"), index=False)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="directory of a Run that has been evaluated")
    parser.add_argument("--dtype", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--rows", type=int, help="only the first so many of the rows that are scored")
    parser.add_argument("--attached", action="store_true", help="generate with the edit attached, too (hooks)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--venv", type=Path, help="virtual environment to make, or to use if it is there")
    where.add_argument("--python", type=Path, help="interpreter of another environment")
    parser.add_argument("--work", type=Path, help="where checkpoints go; those that are there are used")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds")
    parser.add_argument("--timed-rows", type=int, default=8, help="prompts of a timed batch")
    parser.add_argument("--timed-tokens", type=int, default=32, help="new tokens of a timed row")
    parser.add_argument("--threads", type=int, help="threads of PyTorch")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "exported.md")
    return parser.parse_args()


def scored_rows(run: ji.Run, wanted: int | None) -> Rows:
    """Rows whose texts the Run keeps.

    Raises:
        ValueError: it keeps none, or too few of them, or no free text; or a prompt was cut.
    """
    rows = run.predictions
    if not rows or "edited" not in rows[0]:
        raise ValueError(f"{run.path} keeps no texts: evaluate it first, ji.evaluate(run, task, rows=200)")
    if run.config["task"]["kind"] != "text":
        raise ValueError(f"{run.path}: texts are compared, and the answers of {run.config['task']['name']} are choices")
    if wanted is not None and not 1 <= wanted <= len(rows):
        raise ValueError(f"rows must be from 1 to {len(rows)}, which is how many are scored; got {wanted}")
    if any(row.get("cut") for row in rows[:wanted]):
        raise ValueError(f"{run.path}: prompts were cut to {run.scores['protocol']['max_length']} tokens when scored")
    return rows[:wanted]


@contextmanager
def folder_of(given: Path | None) -> Iterator[Path]:
    """Where checkpoints go: gone in the end, if no place is given."""
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(scratch)


# -- the environment -----------------------------------------------------------------------------------------------


@contextmanager
def python_of(options: argparse.Namespace) -> Iterator[Path]:
    """The interpreter that the checkpoints are loaded in."""
    if options.python is not None:
        yield options.python.absolute()
        return
    with folder_of(options.venv) as folder:
        yield environment(folder)


def environment(folder: Path) -> Path:
    """A virtual environment with PACKAGES in the versions that run here, and what they need.

    Raises:
        RuntimeError: it can't be made, or holds jola_interp.
    """
    python = folder.absolute() / "bin" / "python"
    if not python.exists():
        called(sys.executable, "-m", "venv", str(folder))
    pins = [f"{name}=={version(name).partition('+')[0]}" for name in PACKAGES]
    called(str(python), "-m", "pip", "install", "--quiet", *pins)  # seconds, where they are there
    if called(str(python), "-I", "-m", "pip", "list", "--format=freeze").count("jola"):
        raise RuntimeError(f"{folder} holds jola_interp: name another directory")
    return python


def called(*command: str) -> str:
    """What a command says. Raises RuntimeError with what it complains of."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=surroundings())
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:4])} … failed:\n{done.stderr[-3000:]}")
    return done.stdout


def surroundings() -> dict[str, str]:
    """This environment's variables, but for those that would bring its packages along."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


# -- one dtype -----------------------------------------------------------------------------------------------------


def of_dtype(run: ji.Run, rows: Rows, dtype: str, work: Path, python: Path, options: argparse.Namespace) -> Found:
    check = checkpoints(run, dtype, work)
    answer = asked(run, rows, dtype, work, python, options)
    protocol, tokenizer = run.scores["protocol"], run.model.tokenizer
    assert tokenizer is not None
    own = [list(encode_prompt(row["instruction"], tokenizer, protocol["wrapper"]).ids) for row in rows]
    texts = answer["texts"]
    kept = {side: [row[side] for row in rows] for side in ("base", "edited")}
    pairs = {"base": (kept["base"], texts["base"]), "folded": (kept["edited"], texts["folded"])}
    if options.attached:
        pairs["attached"] = (attached_texts(run, rows, dtype), texts["folded"])
    found = {name: compared(rows, *pair) for name, pair in pairs.items()}
    equal = {name: sum(a == b for a, b in zip(*pair, strict=True)) for name, pair in pairs.items()}
    alike = sum(a == b for a, b in zip(own, answer["ids"], strict=True))
    return Found(dtype, check, answer, alike, found["base"], found["folded"], equal, found.get("attached"))


def checkpoints(run: ji.Run, dtype: str, work: Path) -> export.Check:
    """``base-<dtype>`` and ``folded-<dtype>``, and how far the fold is from the edited model."""
    base, fold = work / f"base-{dtype}", work / f"folded-{dtype}"
    if not base.exists():
        model = anew(run.model, dtype)
        model.hf.save_pretrained(base)
        assert model.tokenizer is not None
        model.tokenizer.save_pretrained(base)
    if not fold.exists():
        export.fold(run, fold, dtype=dtype)
    note = json.loads((fold / "jola_export.json").read_text(encoding="utf-8"))
    if note["edit"]["digest"] != edit_digest(run.edit):
        raise ValueError(f"{fold} is the fold of another edit: name another directory")
    return export.Check(**note["check"])


def asked(run: ji.Run, rows: Rows, dtype: str, work: Path, python: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What exported_child.py answers in the other environment."""
    protocol = run.scores["protocol"]
    prompts = [wrap(row["instruction"], protocol["wrapper"], run.model.tokenizer) for row in rows]
    job = {
        "models": {name: str((work / f"{name}-{dtype}").absolute()) for name in ("base", "folded")},
        "dtype": dtype, "device": str(run.model.device), "threads": options.threads,
        "prompts": [prompt.text for prompt in prompts], "special_tokens": prompts[0].special_tokens,
        **{name: protocol[name] for name in ("max_new_tokens", "beams", "batch_size")},
        "rounds": options.rounds, "timed_rows": options.timed_rows, "timed_tokens": options.timed_tokens,
    }  # fmt: skip
    files = [work / f"{name}-{dtype}.json" for name in ("job", "answer")]
    files[0].write_text(json.dumps(job), encoding="utf-8")
    called(str(python), "-I", str(HERE / "exported_child.py"), *(str(file.absolute()) for file in files))
    answer: dict[str, Any] = json.loads(files[1].read_text(encoding="utf-8"))
    return answer


def attached_texts(run: ji.Run, rows: Rows, dtype: str) -> list[str]:
    """What the Run writes with its edit attached to the model in ``dtype``, by hooks."""
    model, protocol = anew(run.model, dtype), run.scores["protocol"]
    names = ("wrapper", "max_length", "max_new_tokens", "beams", "batch_size")
    with run.attach(model, backend="hooks") as live:
        texts = generate_texts(model, [row["instruction"] for row in rows], **{name: protocol[name] for name in names})
    live.check_live()
    return texts


def compared(rows: Rows, first: Sequence[str], second: Sequence[str]) -> Comparison:
    """Every score of two sets of texts of the same rows."""
    sides = [
        [
            {**{key: row[key] for key in KEPT if key in row}, "edited": text}
            for row, text in zip(rows, texts, strict=True)
        ]
        for texts in (first, second)
    ]
    return compare(*sides)


# -- tables --------------------------------------------------------------------------------------------------------


def report(run: ji.Run, rows: Rows, found: Sequence[Found], options: argparse.Namespace) -> str:
    scores, name = run.scores, run.config["task"]["name"]
    metric, kept = scores["metric"], scores["edited"][scores["metric"]]
    parts = [
        f"# {run.config['model']['name']} on {name}, folded, without jola_interp\n",
        f"{len(rows)} rows. The Run ({run.config['backend']}, {scores['dtype']}) says of {scores['n']} rows: {metric} "
        f"{kept['value']:.2f} [{kept['low']:.2f}, {kept['high']:.2f}]. Intervals are of 95 %.\n",
    ]
    return "\n".join([*parts, *(section(one, len(rows), options) for one in found)])


def section(one: Found, n: int, options: argparse.Namespace) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in one.answer["versions"].items())
    there = "imported" if one.answer["imported"] else "not imported"
    told = f"installed, {there}" if one.answer["jola_interp"] else "not installed"
    equal = [f"{one.equal['folded']} of {n} with those of the Run"]
    if one.attached is not None:
        equal.append(f"{one.equal['attached']} of {n} with those of the edit attached in {one.dtype}")
    lines = [
        f"## {one.dtype}\n",
        scores_of(one).to_markdown(index=False, floatfmt=".2f"),
        "",
        f"* Texts of the folded checkpoint that are equal: {', '.join(equal)}; of the base model: "
        f"{one.equal['base']} of {n}.",
        f"* The fold, {one.check.in_words()}.",
        f"* {speed(one.answer['seconds'], min(n, options.timed_rows), options.timed_tokens)}",
        f"* There: {versions}; jola_interp {told}; {one.answer['classes']['folded']} (base: "
        f"{one.answer['classes']['base']}); prompts tokenised alike: {one.tokenised_alike} of {n}.",
        "",
    ]
    return "\n".join(lines)


def scores_of(one: Found) -> pd.DataFrame:
    """A line for each score of each comparison."""
    table = []
    pairs = {"base": one.base, "edited": one.folded, "edited, attached here": one.attached}
    for what, comparison in pairs.items():
        for score, pair in comparison.pairs.items() if comparison else ():
            values = {"the Run": pair.first, "there": pair.second, "difference": pair.difference}
            cells = {name: f"{v.value:.2f} [{v.low:.2f}, {v.high:.2f}]" for name, v in values.items()}
            table.append({"dtype": one.dtype, "model": what, "score": score, **cells, "p": pair.difference.p})
    return pd.DataFrame(table)


def speed(seconds: dict[str, list[float]], rows: int, tokens: int) -> str:
    """Tokens per second, and ratios round by round."""
    rates = {name: rows * tokens / statistics.median(values) for name, values in seconds.items()}
    ratios = {
        name: sorted(base / own for base, own in zip(seconds["base"], seconds[name], strict=True))
        for name in ("folded", "again")
    }
    shown = {
        name: f"{statistics.median(values):.3f} (rounds: {values[0]:.3f} to {values[-1]:.3f})"
        for name, values in ratios.items()
    }
    return (
        f"Tokens/s of {rows} rows × {tokens} new tokens, medians of {len(seconds['base'])} rounds: base "
        f"{rates['base']:.1f}, folded {rates['folded']:.1f}; ratio {shown['folded']}; of the base model loaded again: "
        f"{shown['again']}."
    )


if __name__ == "__main__":
    main()
