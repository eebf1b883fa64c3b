"""What is JoLA worth beside other methods? All on the same rows and steps, with as many trials for one as for another.

    python benchmarks/methods.py --grid --tasks ioi                              a built-in task, the default methods
    python benchmarks/methods.py --grid --source DIRECTORY --tasks gem/e2e_nlg   benchmarks from local files
    python benchmarks/methods.py … --methods jola lora random-heads:k=8,draw=1   these, options behind a colon
    python benchmarks/methods.py … --methods jola-budget:k=8 random-heads:k=8,like=jola-budget-k8
                                                     as many heads in each layer as that method chose in the same pair
    python benchmarks/methods.py … --dry-run                                     what would be done, and how long

1. --grid: each method at the three learning rates of GRID, on one pair of seed and data draw. The one with the lowest
   cross-entropy on validation rows is taken; a best one at an end of its three says that the grid may have missed a
   better one. What has no learning rate has no trials, nor have variants of JoLA, which take its rate. Without --grid
   the rates of an earlier grid in --out are taken (of the same task, or of that of --rates), or else the method's own.
2. Each method with its rate over the pairs: seed and data draw 42, 43, … All its test rows are scored by likelihood;
   with --generate they are answered in writing, too. The first pair is that of the grid, whose Run is taken over.
3. --tables: grid.csv, methods.csv and methods.md (see `analysis.compare_methods`), for each task a picture of them, and
   where methods take several numbers of heads one of what each number gains.

Whatever is finished in --out is not computed again: <out>/<task>/grid/<method>-<rate> and <out>/<task>/<method>-<pair>.
Pairs are finished one after the other, for all methods, so that a campaign that is cut short compares what there is.
Times are those of the wall: on a machine that does other things beside, they say little.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import shutil
import statistics
import sys
from collections.abc import Iterator
from typing import Any, cast

import pandas as pd
import torch
import yaml

import jola_interp as ji
from jola_interp.analysis.methods_table import DRAW, LIKE, SIZE, MethodsTable, compare_methods
from jola_interp.analysis.ranking import acting_units
from jola_interp.edits.jola import JoLA
from jola_interp.evaluation.tables import render

FIRST_SEED = 42
ROWS = {"n_train": 200, "n_validation": 48, "n_test": 100}
GATED, UNGATED = (2e-2, 5e-2, 1.5e-1), (6e-3, 2e-2, 6e-2)
FREE = ("zero-shot", "few-shot", "repe")
"""Nothing trains, or what is tried is tried by the method itself."""
GRID: dict[str, tuple[float, float, float]] = {
    "jola": GATED,
    "jola-budget": GATED,
    "jola-shared-gate": GATED,
    "jola-scale": GATED,
    "jola-offset": GATED,
    "mlp-gated": GATED,
    "attention-mlp-gated": GATED,
    "attention": UNGATED,
    "attention-scale": UNGATED,
    "attention-offset": UNGATED,
    "attention-biases": UNGATED,
    "mlp": UNGATED,
    "attention-mlp": UNGATED,
    "o-proj-bias": UNGATED,
    "random-heads": UNGATED,
    "norm-heads": UNGATED,
    "effective-heads": UNGATED,
    "gradient-heads": UNGATED,
    "dsp-heads": UNGATED,
    "chg-heads": UNGATED,
    "dsp": UNGATED,
    "red": UNGATED,
    "lofit": (3e-3, 1e-2, 3e-2),
    "lora": (2e-4, 1e-3, 5e-3),
    "bitfit": (5e-4, 3e-3, 2e-2),
    "loreft": (9e-4, 3e-3, 9e-3),
    "direft": (9e-4, 3e-3, 9e-3),
    "full": (1e-5, 3e-5, 1e-4),
    "chg": (0.15, 0.5, 1.5),
}
"""Three learning rates a method. Those of the papers are for thousands of steps: where one would hardly move anything
in a hundred it is the lowest of the three (lora, bitfit, loreft) or left out (red: 5e-5, 2e-4). JoLA's are around its
preset's, lofit's around its own."""
AS_JOLA = (
    "jola-lambda-constant",
    "jola-lambda-linear",
    "jola-lambda-cyclic",
    "jola-lambda-performance",
    "jola-lambda-exponential",
    "jola-expected",
    "jola-point",
    "jola-hard",
    "jola-slow-gates",
    "jola-stop-on-loss",
)
"""JoLA but for one setting: with the rate that was chosen for it, so that nothing else differs."""
FIELD = {"chg": "gate_lr"}
"""What the rate is of, where that is not ``lr``."""
DEFAULT = (
    "zero-shot",
    "few-shot",
    "jola",
    "lora",
    "bitfit",
    "red",
    "repe",
    "loreft",
    "lofit",
    "o-proj-bias",
    "attention",
)
SCORES = [
    "task", "method", "score", "value", "gain", "gain_low", "gain_high", "gain_over", "difference", "difference_low",
    "difference_high", "difference_mde", "difference_over", "p",
]  # fmt: skip
"""Columns of the table of scores in methods.md."""
STATES = {True: "finished", False: "to do"}


def main() -> None:
    options = read_options()
    if options.grid and options.rates:
        raise SystemExit("--grid and --rates contradict each other: pass one of them")
    subjects = [read_method(text) for text in options.methods]
    labels = [one.label for one in subjects]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise SystemExit(f"--methods: {twice[0]} stands there twice")
    check_likes(subjects)
    if options.dry_run:
        say(plan(subjects, options))
        return
    if options.threads:
        torch.set_num_threads(options.threads)
    ji.set_verbosity("WARNING")
    model = ji.load_model(options.model)
    tables = {}
    for name in options.tasks:
        if options.grid:
            search_all(model, name, subjects, options)
        tables[name] = compare_methods(list(main_runs(model, name, subjects, options)), model=model)
        say(f"{tables[name]}\n")
        write_tables(tables, options)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["ioi"])
    parser.add_argument("--source", default="hub", help="hub, or a directory of <suite>/<task> files")
    known = [name for name in DEFAULT if name in ji.methods()]
    parser.add_argument("--methods", nargs="+", default=known, help="name, or name:option=value,option=value")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--pairs", type=int, default=4, help="of seed and data draw")
    parser.add_argument("--grid", action="store_true", help="choose learning rates first")
    parser.add_argument("--rates", metavar="TASK", help="take the rates that the grid in --out chose on this task")
    parser.add_argument("--generate", action="store_true", help="score written answers, too")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/methods"))
    parser.add_argument("--tables", type=pathlib.Path, help="where tables go; default: --out")
    parser.add_argument("--max-steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--wrapper", default="plain")
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--dry-run", action="store_true", help="list the Runs and how long they may take; train nothing"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="of a step, for --dry-run before a Run is finished")
    return parser.parse_args()


# -- methods -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Subject:
    """A method with its options.

    Attributes:
        label: of its folders.
        tuned: what it has its learning rate from: its label without the draw, so that draws share one.
        like: label of the method whose Run of the same pair says how many heads to take in each layer.
    """

    label: str
    tuned: str
    method: ji.Method
    like: str = ""

    @property
    def rates(self) -> tuple[dict[str, float], ...]:
        """The training fields of each trial."""
        name = self.method.name
        if name in FREE + AS_JOLA:
            return ()
        if name not in GRID:
            raise SystemExit(f"--grid: no learning rates for {name}; GRID has: {', '.join(GRID)}")
        return tuple({FIELD.get(name, "lr"): rate} for rate in GRID[name])

    def chosen(self, rates: dict[str, dict[str, float]]) -> dict[str, float]:
        """Its training fields among those that a grid chose; none where it tried nothing."""
        return rates.get("jola" if self.method.name in AS_JOLA else self.tuned, {})


def read_method(text: str) -> Subject:
    """``random-heads:k=8,draw=1`` as a method with these options."""
    name, _, given = text.partition(":")
    pairs = [part.partition("=") for part in given.split(",") if part]
    try:
        found = ji.method(name, **{key: yaml.safe_load(value) for key, _, value in pairs if key != LIKE})
    except ValueError as error:
        raise SystemExit(f"--methods: {error}") from None
    parts = {key: f"{key}{value}" for key, _, value in pairs}
    tuned = [part for key, part in parts.items() if key not in (DRAW, LIKE)]
    like = {key: value for key, _, value in pairs}.get(LIKE, "")
    return Subject("-".join([name, *parts.values()]), "-".join([name, *tuned]), found, like)


def check_likes(subjects: list[Subject]) -> None:
    """Every ``like`` names a method before it that chooses heads with JoLA's gates, and the same one for each size."""
    before: dict[str, Subject] = {}
    named: dict[str, str] = {}
    for one in subjects:
        if one.like and (one.like not in before or not before[one.like].method.name.startswith("jola")):
            known = ", ".join(label for label in before if label.startswith("jola")) or "none"
            raise SystemExit(f"--methods: like={one.like} of {one.label} must be a jola method before it: {known}")
        if one.like and named.setdefault(one.tuned, one.like) != one.like:
            raise SystemExit(f"--methods: {one.tuned} is to be like {named[one.tuned]} and like {one.like}: choose one")
        before[one.label] = one


def with_counts(subject: Subject, runs: dict[str, ji.Run]) -> Subject:
    """The same with as many heads in each layer as ``like`` chose; ``runs``: label to Run of this pair."""
    if not subject.like:
        return subject
    edit = cast(JoLA, runs[subject.like].edit)
    counts = [sum(at == layer for _, at, _ in acting_units(edit)) for layer in range(edit.shape.layers)]
    return dataclasses.replace(subject, method=subject.method(like=counts))


# -- Runs ----------------------------------------------------------------------------------------------------------


def folder_of(name: str, options: argparse.Namespace) -> pathlib.Path:
    return pathlib.Path(options.out) / name.replace("/", "_")


def trial_folder(name: str, subject: Subject, fields: dict[str, float], options: argparse.Namespace) -> pathlib.Path:
    return folder_of(name, options) / "grid" / f"{subject.label}-{next(iter(fields.values())):g}"


def main_folder(name: str, subject: Subject, seed: int, options: argparse.Namespace) -> pathlib.Path:
    return folder_of(name, options) / f"{subject.label}-s{seed}-d{seed}"


def load(name: str, seed: int, options: argparse.Namespace) -> ji.Task:
    source = {"source": options.source} if "/" in name else {}
    return ji.load_task(name, seed=seed, **ROWS, **source)


def train(
    model: ji.Model, task: ji.Task, subject: Subject, fields: dict[str, float], out: pathlib.Path, seed: int,
    options: argparse.Namespace,
) -> ji.Run:  # fmt: skip
    settings = {"max_steps": options.max_steps, "batch_size": options.batch_size, "wrapper": options.wrapper}
    settings |= {"seed": seed, "evaluate": False, **fields}
    run = ji.fit(model, task, subject.method, backend="hooks", out=out, resume=True, **settings)
    if run.status != "finished":
        raise SystemExit(f"{run.path} is {run.status}; the same command goes on")
    return run


def search_all(model: ji.Model, name: str, subjects: list[Subject], options: argparse.Namespace) -> None:
    """Write ``grid.csv`` and ``rates.json`` of a task; what is finished is only read."""
    task, rows = load(name, FIRST_SEED, options), []
    chosen = known_rates(name, options)
    for subject in tried(subjects):
        values = [trial(model, task, name, subject, fields, options) for fields in subject.rates]
        best = min(range(len(values)), key=values.__getitem__)
        if math.isinf(values[best]):
            raise SystemExit(f"{name}: {subject.label} diverged at every rate of GRID")
        chosen[subject.tuned] = subject.rates[best]
        for place, (fields, value) in enumerate(zip(subject.rates, values, strict=True)):
            [(field, rate)] = fields.items()
            ends = place == best and place in (0, len(values) - 1)
            row = {"task": name, "method": subject.tuned, "field": field, "rate": rate, "validation_ce": value}
            rows.append({**row, "chosen": place == best, "at_an_end": ends})
        say(f"{name} {subject.tuned} {chosen[subject.tuned]} of {[f'{value:.3f}' for value in values]}")
    folder = folder_of(name, options)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rates.json").write_text(json.dumps(chosen, indent=2) + "\n", encoding="utf-8")
    earlier = pd.read_csv(folder / "grid.csv") if (folder / "grid.csv").exists() else pd.DataFrame(columns=["method"])
    kept = earlier[~earlier["method"].isin([row["method"] for row in rows])]
    pd.DataFrame([*kept.to_dict("records"), *rows]).to_csv(folder / "grid.csv", index=False)


def tried(subjects: list[Subject]) -> list[Subject]:
    """The subjects that have rates to choose from, one of each that share theirs."""
    firsts = {one.tuned: one for one in reversed(subjects) if one.rates}
    return [one for one in subjects if firsts.get(one.tuned) is one]


def trial(
    model: ji.Model, task: ji.Task, name: str, subject: Subject, fields: dict[str, float], options: argparse.Namespace
) -> float:
    """The lowest cross-entropy on validation rows at a rate; infinite where the training diverged."""
    out = trial_folder(name, subject, fields, options)
    try:
        run = train(model, task, subject, fields, out, FIRST_SEED, options)
    except ji.TrainingDivergedError as error:
        say(f"{name} {subject.label} {fields}: {error}")
        return math.inf
    return float(run.config["progress"]["best_value"])


def known_rates(name: str, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Method to the rate that an earlier grid chose, on this task or on that of --rates."""
    file = folder_of(options.rates or name, options) / "rates.json"
    if options.rates and not file.exists():
        raise SystemExit(f"--rates: no grid of {options.rates} in {options.out}: there is no {file}")
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}


def main_runs(model: ji.Model, name: str, subjects: list[Subject], options: argparse.Namespace) -> Iterator[ji.Run]:
    """Every method's Run, trained and scored, pair by pair."""
    rates = known_rates(name, options)
    for seed in range(FIRST_SEED, FIRST_SEED + options.pairs):
        task, found = load(name, seed, options), dict[str, ji.Run]()
        for subject in subjects:
            subject = with_counts(subject, found)
            fields, out = subject.chosen(rates), main_folder(name, subject, seed, options)
            if seed == FIRST_SEED and fields and not options.rates and not subject.like:
                take_over(trial_folder(name, subject, fields, options), out)
            run = train(model, task, subject, fields, out, seed, options)
            score(run, task, model, options)
            say(f"{name} {out.name} {run.summary()}")
            found[subject.label] = run
            yield run


def take_over(trial: pathlib.Path, out: pathlib.Path) -> None:
    """The grid's Run at the chosen rate is that of the first pair: the same rows, seed and settings."""
    if not out.exists() and is_finished(trial):
        scratch = out.with_name(f".{out.name}")
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(trial, scratch)
        scratch.rename(out)


def score(run: ji.Run, task: ji.Task, model: ji.Model, options: argparse.Namespace) -> None:
    """All test rows, unless they are scored so already."""
    wanted = "all" if options.generate else "likelihood"
    done = run.scores.get("protocol", {}).get("name")
    if done != "all" and done != wanted:
        ji.evaluate(run, task, model, protocol=wanted, overwrite=True)


# -- tables --------------------------------------------------------------------------------------------------------


def write_tables(tables: dict[str, MethodsTable], options: argparse.Namespace) -> None:
    """All tasks that are done, in one table each of the grid and of the methods."""
    folder = pathlib.Path(options.tables or options.out)
    folder.mkdir(parents=True, exist_ok=True)
    frames = [table.to_frame().assign(task=name) for name, table in tables.items()]
    frame = pd.concat(frames, ignore_index=True)
    frame = frame[["task", *(column for column in frame if column != "task")]]
    frame.to_csv(folder / "methods.csv", index=False)
    notes = [f"\n{name}: {' '.join(table.notes)}\n" for name, table in tables.items()]
    text = "\n".join([render(frame[SCORES]), render(costs(frame))]).replace(" [nan, nan]", "")
    (folder / "methods.md").write_text(text + "".join(notes), encoding="utf-8")
    for name, table in tables.items():
        draw(table, folder, name.replace("/", "_"))
    grids = [file for name in tables if (file := folder_of(name, options) / "grid.csv").exists()]
    if grids:
        pd.concat([pd.read_csv(file) for file in grids]).to_csv(folder / "grid.csv", index=False)


def draw(table: MethodsTable, folder: pathlib.Path, name: str) -> None:
    against = "reference" if any(one.difference for one in table.standings) else "base"
    picture = ji.plots.methods(table, against=against, renderer="matplotlib")
    ji.plots.save(picture, folder / f"methods-{name}.png", dpi=110)
    if len({facts.options.get(SIZE) for facts in table.methods.values()} - {None}) > 1:
        ji.plots.save(ji.plots.heads_gain(table, renderer="matplotlib"), folder / f"heads-{name}.png", dpi=110)


def costs(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per task and method: what it is and costs, as text."""
    found = frame[frame["score"] == frame["score"].iloc[0]]
    table = found[["task", "method", "pairs"]].copy()
    shapes = {
        "parameters": "{:,.0f}",
        "share": "{:.3%}",
        "heads": "{:.1f}",
        "steps": "{:.0f}",
        "seconds_ratio": "{:.2f}",
    }
    for column, shape in shapes.items():
        table[column] = ["" if math.isnan(value) else shape.format(value) for value in found[column]]
    return table


# -- what would be done --------------------------------------------------------------------------------------------


def plan(subjects: list[Subject], options: argparse.Namespace) -> str:
    """Every Run with its state, and how long those that are missing may take."""
    rows = [row for name in options.tasks for row in planned(name, subjects, options)]
    frame = pd.DataFrame(rows)
    steps = int(frame.loc[frame["state"] == "to do", "steps"].sum())
    seconds, source = pace(options)
    told = (
        f"{len(frame)} Runs, {int((frame['state'] == 'to do').sum())} to do: {steps:,} steps, about "
        f"{steps * seconds / 3600:.1f} h at {seconds:.2f} s a step ({source}).\nNot in it: scoring, and stages of a "
        "method's own (lofit, *-heads, chg, repe)."
    )
    return f"{frame.to_string(index=False)}\n{told}"


def planned(name: str, subjects: list[Subject], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    rates = known_rates(name, options)
    for subject in tried(subjects) if options.grid else []:
        for fields in subject.rates:
            out = trial_folder(name, subject, fields, options)
            yield row_of(name, "grid", subject, fields, out, options.max_steps)
    for seed in range(FIRST_SEED, FIRST_SEED + options.pairs):
        for subject in subjects:
            fields = subject.chosen(rates)
            out = main_folder(name, subject, seed, options)
            row = row_of(name, "main", subject, fields, out, options.max_steps)
            if options.grid and subject.rates:
                row["rate"] = row["rate"] or "by the grid"
                taken = seed == FIRST_SEED and not subject.like and subject in tried(subjects)  # from the grid
                row["steps"] *= not taken
            yield row


def row_of(
    name: str, part: str, subject: Subject, fields: dict[str, float], out: pathlib.Path, steps: int
) -> dict[str, Any]:
    rate = " ".join(f"{field}={value:g}" for field, value in fields.items())
    steps = 0 if subject.method.name in FREE else steps
    told = {"task": name, "part": part, "method": subject.label, "rate": rate, "out": str(out), "steps": steps}
    return told | {"state": STATES[is_finished(out)]}


def is_finished(folder: pathlib.Path) -> bool:
    file = folder / "config.json"
    return file.exists() and json.loads(file.read_text(encoding="utf-8")).get("status") == "finished"


def pace(options: argparse.Namespace) -> tuple[float, str]:
    """Seconds a step: the middle one of the Runs in --out, or --seconds."""
    files = [file.with_name("timing.json") for file in pathlib.Path(options.out).rglob("config.json")]
    times = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]
    found = [time["train_seconds"] / time["steps"] for time in times if time.get("steps")]
    return (statistics.median(found), f"median of {len(found)} Runs") if found else (options.seconds, "--seconds")


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
