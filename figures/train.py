"""Train the Runs behind the figures anew, measure what the figures need, and keep the small files of each.

make runs ARGS="--source DIRECTORY"   all of them; benchmarks from <suite>/<task> files there (default: the Hub)
make runs ARGS="--only ioi"           only these

Trainings and tables that are finished in --work are not made again. What is kept holds no text of a benchmark: no
predictions, no tables of tokens.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import jola_interp as ji
from jola_interp.evidence.card import CHEAP
from jola_interp.runs import ANALYSIS, SHARED_FILES, WITH_TEXT

HERE = Path(__file__).resolve().parent
KEPT = HERE / "runs"
RUNS = {
    "e2e_nlg": "gem/e2e_nlg",
    "web_nlg": "gem/web_nlg",
    "siqa": "commonsense/siqa",
    "ioi": "ioi",
}
"""Name of a folder to its task."""
LONG = ("web_nlg", "siqa")
"""Where rows are long, or most heads selected: dear tables on 8 rows, and none of the dearest parts of the card."""
SLOWER = {"siqa": {"lr": 2e-2}}
"""Where the preset's learning rate of vectors (5e-2) makes the training blow up, as 3e-2 does."""
FEWER, FEWEST = {"keep": 16, "alone": 16}, {"keep": 8, "alone": 8, "effects": 8}
"""Test rows of the dear tables, and where rows are long; the others read as many as ji.analyse does."""
DEAREST = {"leave_one_out", "audit"}
ROWS = {"n_train": 200, "n_validation": 48, "n_test": 100}


def main() -> None:
    options = read_options()
    if options.threads:
        torch.set_num_threads(options.threads)
    model = ji.load_model("smollm2-135m")
    for name in options.only:
        work = options.work / name
        task = load(name, options.source)
        run = train(model, task, work, **SLOWER.get(name, {}))
        evidence = options.evidence or [part for part in CHEAP if name not in LONG or part not in DEAREST]
        measure(run, task, model, evidence, options.parts or ji.analysis.PARTS, FEWEST if name in LONG else FEWER)
        keep(work, KEPT / name)


def measure(
    run: ji.Run, task: ji.Task, model: ji.Model, evidence: Sequence[str], parts: Sequence[str], rows: dict[str, int]
) -> None:
    """Card, tables and scores, as far as they are not there; ``rows`` of the tables that are dear."""
    ji.evidence_card(run, task, model, evidence)
    for part in parts:
        ji.analyse(run, task, model, part, rows=rows.get(part))
    if not run.scores:
        ji.evaluate(run, task, model)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--source", default="hub", help="hub, or a directory of <suite>/<task> files")
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "figures")
    parser.add_argument("--parts", nargs="+", help="tables, see ji.analyse")
    parser.add_argument("--evidence", nargs="+", help="parts of the evidence card")
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


def load(name: str, source: str) -> ji.Task:
    task = RUNS[name]
    return ji.load_task(task, **ROWS, **({"source": source} if "/" in task else {}))


def train(model: ji.Model, task: ji.Task, work: Path, **slower: float) -> ji.Run:
    """100 steps of 4 rows, plain prompts: the Runs of ``benchmarks/evidence.py``."""
    settings: dict[str, Any] = {"max_steps": 100, "batch_size": 4, "wrapper": "plain", **slower}
    settings |= {"backend": "hooks", "preset": "selective"}
    return ji.fit(model, task, out=work, resume=True, evaluate=False, **settings)


def keep(work: Path, place: Path) -> None:
    """Copy the small files; what was there is replaced."""
    fresh = place.with_name(f".{place.name}")
    shutil.rmtree(fresh, ignore_errors=True)
    (fresh / ANALYSIS).mkdir(parents=True)
    for name in SHARED_FILES:
        if (work / name).exists():
            shutil.copyfile(work / name, fresh / name)
    for file in (work / ANALYSIS).glob("*.safetensors"):
        if not file.match(WITH_TEXT):
            shutil.copyfile(file, fresh / ANALYSIS / file.name)
    shutil.rmtree(place, ignore_errors=True)
    fresh.rename(place)


if __name__ == "__main__":
    main()
