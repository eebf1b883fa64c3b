"""What a model scores on the benchmark tasks, before and after JoLA on 200 examples.

    python benchmarks/tasks.py --source DIRECTORY --out DIRECTORY            score, train, and print one table
    python benchmarks/tasks.py … --tasks commonsense/arc_e gem/e2e_nlg       only these
    python benchmarks/tasks.py … --train commonsense/arc_e                   train on these (default: six of the tasks)
    python benchmarks/tasks.py … --record                                    write what `task.describe(model=…)` shows

Whatever is finished in the output directory is not computed again, and what was cut short goes on where it stopped.
Every task that is trained is scored base beside edited on the same rows; the others are scored zero-shot. Choices are
scored by both protocols: `generate` (4 beams, 16 new tokens) and `likelihood` (of the trained answer strings).
"""

import argparse
import json
import pathlib
import shlex
import sys

import torch

import jola_interp as ji
from jola_interp.evaluation.tables import render, score_table
from jola_interp.tasks.describe import verdict

RECORD = pathlib.Path(ji.__file__).parent / "tasks" / "measured.json"
TRAINED = ("gem/e2e_nlg", "gem/web_nlg", "commonsense/siqa", "commonsense/winogrande", "commonsense/arc_e")
TRAINED += ("commonsense/boolq",)
SHOWN = {"choice": ("accuracy", "likelihood_accuracy", "label_nll", "format_nll"), "text": ("bleu", "rouge_l", "nll")}


def main() -> None:
    options = read_options()
    if options.threads:
        torch.set_num_threads(options.threads)
    source = pathlib.Path(options.source)
    names = options.tasks or sorted(f"{path.parent.name}/{path.name}" for path in source.glob("*/*/") if path.is_dir())
    found = {name: score(name, options) for name in names}
    for kind, metrics in SHOWN.items():
        chosen = [scores for scores in found.values() if (metrics[0] in scores["base"])]
        if chosen:
            sys.stdout.write(f"\n{kind}\n\n{render(score_table(chosen, metrics=metrics), 'markdown')}\n")
    if options.record:
        record(found, options)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="directory of <suite>/<task>/{train,validation,test} files")
    parser.add_argument("--out", default="runs/tasks", help="where Runs and scores go")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tasks", nargs="*", help="default: all in the source")
    parser.add_argument("--train", nargs="*", default=list(TRAINED), help="tasks to train JoLA on")
    parser.add_argument("--rows", type=int, default=300, help="test rows of each task")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--threads", type=int, help="threads of PyTorch")
    parser.add_argument("--record", action="store_true", help="write measured.json beside the package's tasks")
    return parser.parse_args()


def score(name: str, options: argparse.Namespace) -> dict:
    """The scores of one task, from disk where they are there."""
    trained = name in options.train
    how = f"jola-e{options.epochs}" if trained else "zero_shot"
    out = pathlib.Path(options.out) / options.model.replace("/", ".") / f"{how}-n{options.rows}-s{options.seed}"
    folder = out / name
    if (folder / "scores.json").exists():
        return json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    sizes = {"n_train": 200, "n_validation": 100, "n_test": options.rows} if trained else {"n_train": 1}
    task = ji.load_task(name, source=options.source, seed=options.seed, **(sizes | {"n_test": options.rows}))
    if not trained:
        return ji.evaluate(model_of(options), task, out=folder)
    fields = {"epochs": options.epochs, "seed": options.seed}
    run = ji.fit(model_of(options), task, preset="paper", out=folder, resume=True, **fields)
    return run.scores


LOADED: dict = {}


def model_of(options: argparse.Namespace) -> ji.Model:
    """One model for all tasks, so that all base scores are of the same arithmetic."""
    if options.model not in LOADED:
        LOADED[options.model] = ji.load_model(options.model)
        LOADED[options.model].bridge  # noqa: B018  (boots TransformerLens)
    return LOADED[options.model]


def record(found: dict, options: argparse.Namespace) -> None:
    """Put these scores into the file that `task.describe(model=…)` reads; other models and tasks in it stay."""
    known = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    settings = {"rows": options.rows, "epochs": options.epochs, "seed": options.seed, "model": options.model}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    command = shlex.join(["python", "benchmarks/tasks.py", "--source", "DIRECTORY", *words])
    of_model = known.setdefault(options.model, {})
    for name, scores in found.items():
        if "accuracy" not in scores["base"]:
            continue
        measured = {}
        for side, label in (("base", "zero_shot"), ("edited", "jola")):
            for metric, protocol in (("accuracy", "generate"), ("likelihood_accuracy", "likelihood")):
                if side in scores:
                    value = scores[side][metric]
                    measured[f"{label}.{protocol}"] = [round(value[key], 1) for key in ("value", "low", "high")]
        majority = round(scores["majority"], 1)
        entry = {"n": scores["n"], "majority": majority, "scores": measured}
        of_model[name] = {**entry, "verdict": verdict(majority, measured), "command": command}
    text = json.dumps(known, indent=1, sort_keys=True)
    RECORD.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
