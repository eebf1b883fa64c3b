"""The whole evidence card of a Run per task: is there a "which", and is it these heads?

    python benchmarks/evidence.py --tasks ioi                                    a built-in task
    python benchmarks/evidence.py --source DIRECTORY --tasks gem/e2e_nlg ioi     benchmarks from local files
    python benchmarks/evidence.py … --parts refits replicates rivals             only these parts

Parts run from cheap to dear, each for all tasks before the next; whatever is finished in --out is not computed again.
The cards are <out>/<task>/evidence.json; their sentences are printed, and how long each part took.
"""

import argparse
import pathlib
import sys
import time

import torch

import jola_interp as ji
from jola_interp.evidence.card import NAMES, Options, evidence_card

FIRST_DRAW = 1000
ROWS = {"n_train": 200, "n_validation": 48, "n_test": 100}


def main() -> None:
    options = read_options()
    if options.threads:
        torch.set_num_threads(options.threads)
    ji.set_verbosity("WARNING")
    model = ji.load_model(options.model)
    runs = {name: train(model, name, options) for name in options.tasks}
    for part in options.parts:
        for name, run in runs.items():
            question(run, model, name, part, options)
    for run in runs.values():
        sys.stdout.write(f"{ji.Card.load(run)}\n\n")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["ioi"])
    parser.add_argument("--source", default="hub", help="hub, or a directory of <suite>/<task> files")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--out", default="runs/evidence")
    parser.add_argument("--parts", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--max-steps", type=int, default=100, help="steps of the Run")
    parser.add_argument("--steps", type=int, default=60, help="steps of each refit")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--wrapper", default="plain")
    parser.add_argument("--sets", type=int, default=19)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


def load(name: str, options: argparse.Namespace, seed: int = 42) -> ji.Task:
    source = {"source": options.source} if "/" in name else {}
    return ji.load_task(name, seed=seed, **ROWS, **source)


def train(model: ji.Model, name: str, options: argparse.Namespace) -> ji.Run:
    task = load(name, options)
    fields = {"max_steps": options.max_steps, "batch_size": options.batch_size, "wrapper": options.wrapper}
    out = pathlib.Path(options.out) / task.name.replace("/", "_")
    return ji.fit(model, task, backend="hooks", out=out, resume=True, evaluate=False, **fields)


def question(run: ji.Run, model: ji.Model, name: str, part: str, options: argparse.Namespace) -> None:
    started = time.perf_counter()
    draws = [load(name, options, FIRST_DRAW + i) for i in range(options.pairs)] if part == "replicates" else None
    spending = Options(sets=options.sets, pairs=options.pairs, draws=draws)
    card = evidence_card(run, load(name, options), model, [part], steps=options.steps, options=spending)
    sys.stdout.write(f"{name} {part} {time.perf_counter() - started:.0f} s: {card.verdict}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
