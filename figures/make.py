"""Draw every picture of this folder anew, and write README.md, which says what each is.

make figures                       from the Runs in figures/runs, and the demo's in runs/demo (trained if not there)
make figures ARGS="--only ioi"     one Run's

No model is needed but for the demo: the Runs' tables hold all that is drawn. `make runs` trains the Runs anew.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import jola_interp as ji
from jola_interp.cli import demo_run

HERE = Path(__file__).resolve().parent
RUNS, DEMO = HERE / "runs", HERE.parent / "runs" / "demo"
OF_THE_DEMO = ("heads", "gate_snapshots", "gate_trajectories", "loss")
HEAD = """# Figures

All of it is made by `make figures` (this file too). `heads.png` and the other three beside it are of the Run that
`make demo` leaves in `runs/demo`, which the command trains first where it is not there; the folders are of the Runs in
`runs/`: configuration, edit, gates, losses, evidence and measured tables, no text of a benchmark. `make runs`
(`figures/train.py`) trains those anew.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = sorted(path.name for path in RUNS.glob("*") if path.is_dir())
    parser.add_argument("--only", nargs="+", choices=["demo", *names], default=["demo", *names])
    only = parser.parse_args().only
    if "demo" in only:
        draw_demo()
    for name in names:
        if name in only:
            draw_run(name)
    (HERE / "README.md").write_text(manifest(names), encoding="utf-8")


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


def manifest(names: list[str]) -> str:
    """What each picture is, of what, and what to see in it."""
    see = {entry.name: entry.see for entry in ji.plots.GALLERY}
    demo = [f"| `{name}.png` | {see[name]} |" for name in OF_THE_DEMO]
    parts = [HEAD, section("The demo", "`make demo`", demo)]
    for name in names:
        run = ji.Run.load(RUNS / name)
        rows = [f"| `{file.name}` | {see[file.stem]} |" for file in pictures(name)]
        parts.append(section(f"{name}/", told(name, run.config), rows))
    return "\n".join(parts)


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


def section(title: str, about: str, rows: list[str]) -> str:
    table = "\n".join(["| file | what to see |", "|---|---|", *rows])
    return f"## {title}\n\n{about}\n\n{table}\n"


if __name__ == "__main__":
    main()
