"""``jola-interp study``: make, run and look at studies from a shell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from jola_interp.selection import DEFAULT_RULE
from jola_interp.study.claims import TAKEOVER
from jola_interp.study.design import Design, read_yaml
from jola_interp.study.engines import ENGINES, Engine
from jola_interp.study.study import Study

app = typer.Typer(help="Many trainings in one directory, run by any number of workers.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="The study's directory.")]


@app.command()
def new(
    folder: Folder,
    file: Annotated[Path | None, typer.Option("--from", help="A YAML file that describes it.")] = None,
    model: Annotated[list[str] | None, typer.Option("--model", "-m", help="A model; again for more.")] = None,
    task: Annotated[list[str] | None, typer.Option("--task", "-t", help="A task; again for more.")] = None,
    method: Annotated[list[str] | None, typer.Option("--method", help="A method; again for more.")] = None,
    field: Annotated[
        list[str] | None, typer.Option("--set", help="Any other field, its value as YAML: seeds=[0,1], penalty=0.3.")
    ] = None,
) -> None:
    """Write study.yaml, or add cells to one that is there; options win over the file."""
    import yaml

    asked: dict[str, Any] = read_yaml(file) if file is not None else {}
    given = {"models": model, "tasks": task, "methods": method}
    asked |= {name: value for name, value in given.items() if value}
    for text in field or []:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set reads FIELD=VALUE; got {text!r}")
        asked[name] = yaml.safe_load(value)
    study = Study.of(Design.from_dict(asked), folder)
    typer.echo(f"{study.save()}: {len(study)} cells, from 0 to {len(study) - 1}")


@app.command("run")
def run_command(
    folder: Folder,
    engine: Annotated[str, typer.Option(help=" or ".join(ENGINES) + ".")] = ENGINES[0],
    workers: Annotated[int, typer.Option(help="Processes of the local engine.")] = 1,
    cells: Annotated[str | None, typer.Option(help="Only these, by number: 0-9 or 0,2,5-7.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of each worker; default: the cores, divided.")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Also run again what failed.")] = False,
    takeover: Annotated[float, typer.Option(help="Seconds of silence after which a worker counts as dead.")] = TAKEOVER,
    mirror: Annotated[str | None, typer.Option(help="Copy finished cells to this fsspec address, too.")] = None,
    num_cpus: Annotated[float, typer.Option(help="Ray: cores of a cell, fractions included.")] = 1,
    num_gpus: Annotated[float, typer.Option(help="Ray: GPUs of a cell, fractions included.")] = 0,
    address: Annotated[str | None, typer.Option(help="Ray: a cluster; default: a local one.")] = None,
) -> None:
    """Run what is to do. What is finished stays, what was cut short goes on; exit code 1 says that a cell failed."""
    study = Study.load(folder)
    places: dict[str, Any] = {"num_cpus": num_cpus, "num_gpus": num_gpus, "address": address}
    chosen: Engine = engine  # type: ignore[assignment]  # refused there if it is none
    found = study.run(
        chosen, workers=workers, cells=cells, threads=threads, retry=retry, takeover=takeover, mirror=mirror, **places
    )
    typer.echo(str(found))
    failed = {one.number for one in found.cells if one.state == "failed"}
    if failed & set(study.numbers(cells)):
        raise typer.Exit(1)


@app.command("status")
def status_command(
    folder: Folder, as_json: Annotated[bool, typer.Option("--json", help="Every cell, as JSON.")] = False
) -> None:
    """How many cells are to do, running, failed and finished, and how long the rest may take."""
    found = Study.load(folder).status()
    rows = found.to_frame().astype(object)
    typer.echo(json.dumps(rows.where(rows.notna(), None).to_dict("records"), indent=2) if as_json else str(found))


@app.command("transfer")
def transfer_command(
    folder: Folder,
    rows: Annotated[int, typer.Option(help="Test rows of each target.")] = 50,
    retrain: Annotated[
        list[str] | None, typer.Option(help="Instead: train every task's heads anew on this task; again for more.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Of each of these trainings; default: as many as the cells'.")
    ] = None,
    random: Annotated[int, typer.Option(help="Draws of random heads beside them.")] = 0,
) -> None:
    """Each task's edit on the other tasks' rows, as CSV; what is known is not computed again."""
    study = Study.load(folder)
    found = study.retrain(retrain, steps, random) if retrain else study.transfer(rows)
    typer.echo(found.to_csv(index=False), nl=False)


@app.command("report")
def report_command(
    folder: Folder,
    out: Annotated[Path | None, typer.Option(help="The HTML file; default: report.html in the study.")] = None,
    rule: Annotated[str, typer.Option(help="Which heads count as selected.")] = DEFAULT_RULE,
) -> None:
    """One self-contained HTML file: are heads shared, stable, worth anything elsewhere?"""
    from jola_interp.report import report

    typer.echo(str(report(Study.load(folder), out, rule=rule)))


@app.command("keep")
def keep_command(folder: Folder, path: Annotated[Path, typer.Argument(help="Where to.")]) -> None:
    """Copy what the study can be read and drawn from, without its Runs."""
    typer.echo(str(Study.load(folder).keep(path)))


@app.command("table")
def table_command(folder: Folder) -> None:
    """One row a finished cell, as CSV: axes, scores with intervals, open gates, selected heads."""
    typer.echo(Study.load(folder).frame().to_csv(index=False), nl=False)
