"""Draw every picture of this folder anew, and write README.md, which says what each is.

make figures                               from the Runs in figures/runs, the studies in figures/studies, and the
                                           demo's Run in runs/demo (trained if not there)
make figures ARGS="--only ioi studies/heads"   only these

No model is needed but for the demo: the tables hold all that is drawn. `make runs` trains the Runs anew.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd

import jola_interp as ji
from jola_interp.cli import demo_run
from jola_interp.report.studies import figures_of, in_words
from jola_interp.study.answers import Answers

HERE = Path(__file__).resolve().parent
RUNS, STUDIES, DEMO = HERE / "runs", "studies", HERE.parent / "runs" / "demo"
OF_THE_DEMO = ("heads", "gate_snapshots", "gate_trajectories", "loss")
HEAD = """# Figures

All of it is made by `make figures` (this file too). `heads.png` and the other three beside it are of the Run that
`make demo` leaves in `runs/demo`, which the command trains first where it is not there; the folders are of the Runs in
`runs/`: configuration, edit, gates, losses, evidence and measured tables, no text of a benchmark. `make runs`
(`figures/train.py`) trains those anew. The folders of `studies/` hold what the pictures in them are drawn from:
`study.yaml`, a summary of each cell, and the gates, cosines and tables of transfer in `answers/`.
"""
AGAIN = {
    "heads": """Made by these commands (hours; they go on where they were stopped), given outside this repository,
where a directory `benchmarks` holds the benchmarks as <suite>/<task> files:

    jola-interp study new heads --from REPOSITORY/figures/studies/heads/study.yaml
    jola-interp study run heads --threads 2
    jola-interp study transfer heads --rows 50
    jola-interp study transfer heads --retrain ioi --retrain gem/e2e_nlg --steps 50 --random 2
    jola-interp study keep heads REPOSITORY/figures/studies/heads

`answers.txt` has the answers in words, the CSV files their numbers."""
}
PICTURES = "pictures.csv"
"""What was drawn of a study, and what to see in it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    runs = sorted(path.name for path in RUNS.glob("*") if path.is_dir())
    studies = sorted(f"{STUDIES}/{file.parent.name}" for file in (HERE / STUDIES).glob("*/study.yaml"))
    known = ["demo", *runs, *studies]
    parser.add_argument("--only", nargs="+", choices=known, default=known)
    only = parser.parse_args().only
    if "demo" in only:
        draw_demo()
    for name in runs:
        if name in only:
            draw_run(name)
    for name in studies:
        if name in only:
            draw_study(name)
    (HERE / "README.md").write_text(manifest(runs, studies), encoding="utf-8")


def draw_demo() -> None:
    if not (DEMO / "scores.json").exists():
        demo_run(DEMO)
    run = ji.Run.load(DEMO)
    for name in OF_THE_DEMO:
        ji.plots.save(getattr(ji.plots, name)(run, renderer="matplotlib"), HERE / f"{name}.png", dpi=150)


def draw_run(name: str) -> None:
    """The gallery of a Run; pictures of an older gallery are removed."""
    folder = HERE / name
    for file in folder.glob("*.png"):
        file.unlink()
    for entry, figure in ji.plots.gallery(ji.Run.load(RUNS / name), renderer="matplotlib"):
        ji.plots.save(figure, folder / f"{entry.name}.png", dpi=110)


def draw_study(name: str) -> None:
    """All that a study can be asked, as pictures, tables and words; older ones are removed."""
    study, folder = ji.Study.load(HERE / name), HERE / name
    for file in [*folder.glob("*.png"), *folder.glob("*.csv")]:
        file.unlink()
    found, frame, drawn = study.ask(), study.frame(), []
    for picture, heading, figure, see in figures_of(found, frame, renderer="matplotlib"):
        ji.plots.save(figure, folder / f"{picture}.png", dpi=110)
        drawn.append({"file": f"{picture}.png", "question": heading, "see": see})
    pd.DataFrame(drawn).to_csv(folder / PICTURES, index=False)
    frame.to_csv(folder / "cells.csv", index=False)
    for table, rows in tables(found).items():
        rows.to_csv(folder / f"{table}.csv", index=False)
    said = [*in_words(found), *found.overlaps.notes]
    (folder / "answers.txt").write_text("\n".join([*said, ""]), encoding="utf-8")


def tables(found: Answers) -> dict[str, Any]:
    made = {
        "overlaps": found.overlaps.to_frame(),
        "overlap_summary": found.overlaps.summary_frame(),
        "stability": found.stability.to_frame(),
        "frequency": found.stability.frequency_frame(),
    }
    if found.shared is not None:
        made |= {"shared_heads": found.shared.to_frame(), "shared_counts": found.shared.counts_frame()}
        kinds = found.shared.kinds_frame()
        made["shared_kinds"] = kinds.assign(run=[Path(run).parent.name for run in kinds["run"]])  # no path
    if found.cosines is not None:
        made["offset_cosines"] = found.cosines.to_frame()
    for name, one in (("transfer", found.transfer), ("transfer_offsets", found.carried), ("heads", found.heads)):
        if one is not None:
            made[name] = one.to_frame()
    return made


# -- what each is ------------------------------------------------------------------------------------------------------


def manifest(runs: list[str], studies: list[str]) -> str:
    """What each picture is, of what, and what to see in it."""
    see = {entry.name: entry.see for entry in ji.plots.GALLERY}
    demo = [f"| `{name}.png` | {see[name]} |" for name in OF_THE_DEMO]
    parts = [HEAD, section("The demo", "`make demo`", demo)]
    for name in runs:
        run = ji.Run.load(RUNS / name)
        rows = [f"| `{file.name}` | {see[file.stem]} |" for file in pictures(name)]
        parts.append(section(f"{name}/", told(name, run.config), rows))
    return "\n".join([*parts, *map(study_section, studies)])


def pictures(name: str) -> list[Path]:
    """In the gallery's order."""
    order = [entry.name for entry in ji.plots.GALLERY]
    return sorted((HERE / name).glob("*.png"), key=lambda file: order.index(file.stem))


def told(name: str, config: dict[str, Any]) -> str:
    """Model, task, rows and settings of a Run."""
    model, task, train = config["model"], config["task"], config["train"]
    sizes = " + ".join(str(task["sizes"][split]) for split in ("train", "validation", "test"))
    return (
        f"{model['name']} ({model['dtype']}) on {task['name']}, {sizes} rows, preset `{config['preset']}` with vectors "
        f"at {train['lr']:g}, {config['progress']['steps']} steps of {train['batch_size']} rows, seed {train['seed']}, "
        f'data seed {task["seed"]}; `make runs ARGS="--only {name}"`'
    )


def study_section(name: str) -> str:
    study = ji.Study.load(HERE / name)
    real = [cell for cell in study.cells if cell.labels == "real"]
    tasks, seeds, models = (sorted({getattr(cell, axis) for cell in real}) for axis in ("task", "seed", "model"))
    about = (
        f"{len(real)} Runs of {', '.join(models)} on {', '.join(tasks)}, seeds {', '.join(map(str, seeds))}, and "
        f"{len(study) - len(real)} with shuffled labels; see `study.yaml`."
    )
    drawn = pd.read_csv(HERE / name / PICTURES).itertuples()
    rows = [f"| `{one.file}` | {one.question} ({one.see}) |" for one in drawn]
    return section(f"{name}/", f"{about} {AGAIN.get(study.path.name, '')}".rstrip(), rows)


def section(title: str, about: str, rows: list[str]) -> str:
    table = "\n".join(["| file | what to see |", "|---|---|", *rows])
    return f"## {title}\n\n{about}\n\n{table}\n"


if __name__ == "__main__":
    main()
