"""The command line: train, score, compare, describe and show from a shell."""

from __future__ import annotations

import ast
import inspect
import json
import sys
import textwrap
import types
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from jola_interp._version import __version__
from jola_interp.config import DEFAULT_PRESET, TrainConfig
from jola_interp.edits.base import SITES, Site
from jola_interp.evaluation.protocol import Options, ProtocolName
from jola_interp.selection import DEFAULT_RULE
from jola_interp.study.commands import app as study_app

if TYPE_CHECKING:
    from jola_interp.models import Model
    from jola_interp.runs import Run
    from jola_interp.tasks import Task

app = typer.Typer(
    help="JoLA: which attention heads does a task need, and how are they used?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(study_app, name="study")
_options = {"debug": False}
LONGEST_ERROR = 500
"""Characters of an error's line."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
ModelName = Annotated[str, typer.Option("--model", "-m", help="Built-in name, Hub id, directory or .gguf file.")]
OptionalModel = Annotated[str | None, typer.Option("--model", "-m", help="Default: the one it was trained on.")]
RunPath = Annotated[Path, typer.Argument(help="A Run's directory.")]
Backend = Annotated[str, typer.Option(help="lens (TransformerLens hook points), hooks (plain PyTorch) or nnsight.")]
TestRows = Annotated[int | None, typer.Option(help="Test rows; default: the task's.")]
TaskName = Annotated[str | None, typer.Option("--task", "-t", help="A task by name (see `jola-interp tasks`).")]
DataFolder = Annotated[Path | None, typer.Option(help="A directory of train, validation and test files, or one file.")]
Source = Annotated[str, typer.Option(help="Where rows of a benchmark come from: hub, or a directory of them.")]
DataSeed = Annotated[int, typer.Option(help="Which rows are drawn, or generated.")]


def main() -> None:
    """Run the command line: an error is one clear line and exit code 2, or a traceback with --debug."""
    try:
        app()
    except (ValueError, TypeError, KeyError, OSError, RuntimeError, ImportError) as error:
        if _options["debug"]:
            raise
        typer.echo(f"error: {_one_line(error)}", err=True)
        sys.exit(2)


def _one_line(error: BaseException) -> str:
    """The message without line breaks, at most LONGEST_ERROR characters: the Hub's have many."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST_ERROR else f"{text[: LONGEST_ERROR - 25].rstrip()} … (--debug shows all)"


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No messages and no progress bars.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options for all commands; the callback of --version has done its work by now."""
    from jola_interp._log import set_verbosity

    _options["debug"] = debug
    if quiet:
        set_verbosity("CRITICAL")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Directory of the Run, its report and its figures.")] = Path("runs/demo"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted demo stopped.")] = False,
) -> None:
    """Train JoLA on SmolLM2-135M and 200 generated examples, offline, and draw what it chose (a few minutes)."""
    from jola_interp.report import report as write

    run = demo_run(out, resume)
    _print_run(run, [*_draw(run), write(run)])


def demo_run(out: Path, resume: bool = False) -> Run:
    """The demo's Run: four epochs are enough for the gates to decide, and short enough to wait for."""
    from jola_interp.tasks import load_task
    from jola_interp.training import fit

    task = load_task("restaurants", n_test=60)
    return fit("smollm2-135m", task, epochs=4, penalty=1.0, out=out, resume=resume, overwrite=not resume)


@app.command()
def models(as_json: Json = False) -> None:
    """Models that can be named."""
    from jola_interp.models import known_models

    _print_rows(known_models(), as_json)


@app.command("methods")
def methods_command(
    model: Annotated[str | None, typer.Option("--model", "-m", help="Count the parameters for this model.")] = None,
    as_json: Json = False,
) -> None:
    """What `fit --method` takes: JoLA, what it is compared with, its ablations."""
    from jola_interp.methods import methods

    frame = methods().to_frame(model)
    columns = list(frame) if as_json else [name for name in frame if name not in ("points", "note", "share")]
    rows = frame[columns].astype(object).where(frame[columns].notna(), None)
    _print_rows(rows.to_dict("records"), as_json)


@app.command()
def tasks(
    pin: Annotated[bool, typer.Option("--pin", help="Ask the Hub for today's commits and keep to them.")] = False,
    out: Annotated[Path | None, typer.Option(help="Where --pin writes; default: your own configuration.")] = None,
    as_json: Json = False,
) -> None:
    """Tasks that can be named: built in, or of a benchmark. A directory of {train,validation,test}.jsonl works, too."""
    from jola_interp.tasks import task_table

    if pin:
        from jola_interp.tasks import pin as write_pins

        commits = write_pins(out)
        _print_rows([{"data set": name, "commit": commit} for name, commit in commits.items()], as_json)
        return
    rows = task_table()
    if as_json:
        _print_rows(rows, as_json)
        return
    built_in = [row for row in rows if "hub" not in row]
    _print_rows([{key: row[key] for key in ("name", "kind", "metric", "requires")} for row in built_in], False)
    typer.echo("")
    shown = ("name", "kind", "metric", "hub", "revision")
    _print_rows([{key: row[key] for key in shown} for row in rows if "hub" in row], False)


@app.command()
def describe(
    task: TaskName = None,
    data: DataFolder = None,
    source: Source = "hub",
    n_train: Annotated[int, typer.Option(help="Training rows.")] = 200,
    n_validation: Annotated[int | None, typer.Option(help="Validation rows.")] = None,
    n_test: TestRows = None,
    data_seed: DataSeed = 42,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Count in its tokens, show what it scored.")
    ] = None,
    wrapper: Annotated[str, typer.Option(help="reference, paper, chat, plain or a template.")] = "reference",
) -> None:
    """A task's sizes, labels, lengths, majority baseline and one prompt."""
    from jola_interp.models import load_tokenizer

    sizes = {"n_train": n_train, "n_validation": n_validation, "n_test": n_test}
    rows = _load_rows(task, data, source, seed=data_seed, **sizes)
    tokenizer = load_tokenizer(model) if model else None
    typer.echo(str(rows.describe(tokenizer, wrapper=wrapper, model=model)))


def fit_command(
    model: ModelName = "smollm2-135m",
    task: TaskName = None,
    data: DataFolder = None,
    source: Source = "hub",
    n_train: Annotated[int, typer.Option(help="Training rows.")] = 200,
    n_validation: Annotated[int | None, typer.Option(help="Validation rows.")] = None,
    n_test: TestRows = None,
    data_seed: DataSeed = 42,
    method: Annotated[str, typer.Option(help="What to train; `jola-interp methods` lists them.")] = "jola",
    option: Annotated[
        list[str] | None, typer.Option(help="An option of the method, such as k=64; again for more.")
    ] = None,
    preset: Annotated[str, typer.Option(help="selective, paper or reference.")] = DEFAULT_PRESET,
    config: Annotated[Path | None, typer.Option(help="YAML or JSON file of training fields.")] = None,
    backend: Backend = "lens",
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16: what the base model computes in.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="The Run's directory.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the Run in --out.")] = False,
    **training: Any,
) -> None:
    """Train an edit; every training field is an option, and wins over --config, the method's own, and --preset."""
    from jola_interp import config as configuration
    from jola_interp.methods import method as find_method
    from jola_interp.models import load_model
    from jola_interp.training import fit

    given = {name: _or_none(name, value) for name, value in training.items() if value is not None}
    fields_in_file = _read_config(config) if config is not None else {}
    chosen = find_method(method, **dict(map(_read_option, option or [])))
    settings = configuration.resolve(None, preset, {**chosen.fields(own=False), **fields_in_file, **given})
    sizes = {"n_train": n_train, "n_validation": n_validation, "n_test": n_test}
    rows = _load_rows(task, data, source, seed=data_seed, **sizes)
    base = load_model(model, dtype=dtype)
    places: dict[str, Any] = {"preset": preset, "backend": backend, "out": out}
    run = fit(base, rows, chosen, settings, resume=resume, overwrite=overwrite, **places)
    _print_run(run, [])


@app.command()
def evaluate(
    subject: Annotated[str, typer.Argument(help="A Run's directory, or a model's name: then it is scored as it is.")],
    task: Annotated[
        list[str] | None, typer.Option("--task", "-t", help="Again for more tasks. Default: the Run's own.")
    ] = None,
    data: DataFolder = None,
    source: Source = "hub",
    protocol: Annotated[ProtocolName, typer.Option("--protocol", "-p", help="Both ways of scoring, or one.")] = "all",
    options: Annotated[
        Options, typer.Option(help="What likelihood compares: answers, or what they stand for.")
    ] = "label",
    n_test: Annotated[int | None, typer.Option(min=1, help="Only the first so many test rows.")] = None,
    data_seed: Annotated[int | None, typer.Option(help="Which rows are drawn; default: the Run's, or 42.")] = None,
    model: OptionalModel = None,
    beams: Annotated[int | None, typer.Option(min=1, help="Beams; default: the Run's, or the paper's.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Rows in a batch; default: the Run's, or 16.")] = None,
    bertscore: Annotated[str | None, typer.Option(help="Also BERTScore, with this encoder; default names it.")] = None,
    dtype: Annotated[str, typer.Option(help="Of a model alone: auto, float32 or bfloat16.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Directory for scores and predictions, a folder a task.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace scores of more rows or of another protocol.")
    ] = False,
    table: Annotated[
        Literal["markdown", "csv", "latex"] | None, typer.Option(help="One table of all tasks, in this format.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Score base and edited model on one or more tasks, also ones that the Run was not trained on (transfer).

    The Run's own scores are replaced only by those of its own test rows and model; other tasks' lie beside them.
    """
    from jola_interp.evaluation.evaluator import evaluate as score

    run = _run_or_none(subject)
    settings: dict[str, Any] = {"protocol": protocol, "options": options, "beams": beams, "batch_size": batch_size}
    settings["bertscore"] = True if bertscore == "default" else bertscore or False
    chosen = [_rows_to_score(run, name, data, source, n_test, data_seed) for name in task or (None,)]
    target = _model_for(run, model) if run else _plain_model(subject, model, dtype)
    found = []
    for rows in chosen:
        place = out / rows.name if out is not None and len(chosen) > 1 else out
        given: dict[str, Any] = {"rows": n_test, "out": place, "overwrite": overwrite, **settings}
        found.append(score(run, rows, target, **given) if run else score(target, rows, **given))  # type: ignore[arg-type]
    _print_scores(found, table, as_json)


@app.command()
def compare(
    first: RunPath,
    second: Annotated[Path | None, typer.Argument(help="Another Run; without one, base against edited.")] = None,
    task: Annotated[str | None, typer.Option("--task", "-t", help="A task both were scored on; default: own.")] = None,
    common: Annotated[bool, typer.Option("--common", help="Only the rows that both have.")] = False,
    table: Annotated[
        Literal["markdown", "csv", "latex"] | None, typer.Option(help="A table for a paper: first, second, difference.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Two Runs on the same rows: second − first with paired intervals and tests. Needs no model."""
    from jola_interp.evaluation.compare import compare as compare_runs
    from jola_interp.evaluation.tables import render

    found = compare_runs(first, second, common=common, task=task)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        typer.echo(str(found) if table is None else render(found.to_frame(), table).rstrip("\n"))


@app.command("side-effects")
def side_effects_command(
    run: RunPath,
    texts: Annotated[Path | None, typer.Option(help="A .txt, a text a line; default: generated ones.")] = None,
    model: OptionalModel = None,
    as_json: Json = False,
) -> None:
    """Perplexity and KL(base ‖ edited) on text the edit was not trained for, beside a random edit of equal norm."""
    from jola_interp.evaluation.side_effects import side_effects
    from jola_interp.runs import Run

    found = side_effects(Run.load(run), texts, model)
    typer.echo(json.dumps(found.to_dict(), indent=2) if as_json else str(found))


def _run_and_task(run: Path, data: Path | None, source: str) -> tuple[Run, Task]:
    """A Run and the task that it was trained on, rebuilt with its recorded sizes."""
    from jola_interp.runs import Run

    found = Run.load(run)
    return found, _rows_to_score(found, None, data, source, None, None)


@app.command("analyse")
def analyse_command(
    run: RunPath,
    part: Annotated[list[str] | None, typer.Option(help="all, or parts by name.")] = None,
    data: DataFolder = None,
    source: Source = "hub",
    model: OptionalModel = None,
    rows: Annotated[int | None, typer.Option(help="Test rows of every part; default: each part's own.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Measure anew what is there.")] = False,
) -> None:
    """Measure what figures need (shifts, usage, readout, effects, …) and keep it in the Run."""
    from jola_interp.analysis.measured import analyse
    from jola_interp.runs import ANALYSIS

    found, task = _run_and_task(run, data, source)
    parts = "all" if part in (None, ["all"]) else part
    for name in analyse(found, task, _model_for(found, model), parts, rows=rows, overwrite=overwrite):
        typer.echo(str(found.path / ANALYSIS / f"{name}.safetensors"))


# -- evidence ------------------------------------------------------------------------------------------------------

Steps = Annotated[int | None, typer.Option(help="Optimiser steps of each refit; default: as many as the Run took.")]


def _echo(result: Any, text: str, as_json: bool) -> None:
    """What was found, as JSON or in words."""
    typer.echo(json.dumps(result.to_dict(), indent=2) if as_json else text)


@app.command("evidence")
def evidence_command(
    run: RunPath,
    part: Annotated[list[str] | None, typer.Option(help="cheap (no training), all, or parts by name.")] = None,
    data: DataFolder = None,
    source: Source = "hub",
    model: OptionalModel = None,
    steps: Steps = None,
    sets: Annotated[int, typer.Option(help="Random sets of the refit null.")] = 19,
    pairs: Annotated[int, typer.Option(help="Other (seed, rows) pairs, 2 or more; 8 for a headline.")] = 4,
    rows: Annotated[int, typer.Option(help="Rows of the exact leave-one-out.")] = 64,
    k: Annotated[int | None, typer.Option("-k", help="Heads in a rival set.")] = None,
    as_json: Json = False,
) -> None:
    """Is there a "which", and is it these heads? A finished part is kept until what it rests on changes."""
    from jola_interp.evidence.card import Options as Spending
    from jola_interp.evidence.card import evidence_card

    found, task = _run_and_task(run, data, source)
    wanted = part or ["cheap"]
    parts = wanted[0] if len(wanted) == 1 else wanted
    options = Spending(sets=sets, pairs=pairs, rows=rows, k=k)
    card = evidence_card(found, task, _model_for(found, model), parts, steps=steps, options=options)
    _echo(card, repr(card), as_json)


@app.command("audit")
def audit_command(
    run: RunPath,
    data: DataFolder = None,
    source: Source = "hub",
    model: OptionalModel = None,
    as_json: Json = False,
) -> None:
    """Which reported numbers are facts: each is measured again under the exact symmetries of model and edit."""
    from jola_interp.evidence.audit import audit

    found, task = _run_and_task(run, data, source)
    result = audit(found, task, _model_for(found, model))
    _echo(result, repr(result), as_json)


@app.command("calibrate")
def calibrate_command(
    run: RunPath,
    data: DataFolder = None,
    source: Source = "hub",
    model: OptionalModel = None,
    planted: Annotated[
        list[int] | None, typer.Option("--heads", help="Planted heads, once for each planting; default: the Run's.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Plant edits of known heads, of the Run's sizes, in its model; train as the Run was; count what is found."""
    from jola_interp.evidence.calibration import calibrate

    found, task = _run_and_task(run, data, source)
    target = _model_for(found, model) or found.model
    result = calibrate(target, task, found, heads=planted, backend=found.config["backend"])
    _echo(result, repr(result), as_json)


@app.command("rivals")
def rivals_command(
    run: RunPath,
    data: DataFolder = None,
    source: Source = "hub",
    model: OptionalModel = None,
    steps: Steps = None,
    k: Annotated[int | None, typer.Option("-k", help="Heads in a set.")] = None,
    margin: Annotated[float, typer.Option(help="Share of the first set's gain that a rival has to reach.")] = 0.9,
    most: Annotated[int, typer.Option(help="Stop after so many sets.")] = 4,
    as_json: Json = False,
) -> None:
    """Forbid the heads that were found, train again, until the gain is lost: how many disjoint sets do the task?"""
    from jola_interp.evidence.rivals import rivals

    found, task = _run_and_task(run, data, source)
    result = rivals(found, task, _model_for(found, model), k=k, margin=margin, most=most, steps=steps)
    _echo(result, result.sentence(), as_json)


@app.command("export")
def export_command(
    run: RunPath,
    path: Annotated[Path, typer.Argument(help="Where to; must not exist, or be empty.")],
    kind: Annotated[
        Literal["fold", "lora", "ia3"], typer.Option(help="A checkpoint with the edit in it, or an adapter of peft.")
    ] = "fold",
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, …; default: as the Run was trained.")] = None,
    only: Annotated[
        Literal["additive", "multiplicative"] | None, typer.Option(help="Only this part of the edit; default: both.")
    ] = None,
    model: OptionalModel = None,
    as_json: Json = False,
) -> None:
    """Write a Run's edit as weights that need no jola_interp, once they are seen to do what the edit does."""
    from jola_interp import export
    from jola_interp.runs import Run

    options: dict[str, Any] = {"model": model, "dtype": dtype, "kinds": None if only is None else [only]}
    found = Run.load(run)
    made = export.fold(found, path, **options) if kind == "fold" else export.to_peft(found, path, kind, **options)
    _echo(made, made.in_words(), as_json)


@app.command()
def generate(
    run: RunPath,
    text: Annotated[str, typer.Argument(help="An instruction; it is wrapped as in training.")],
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.")] = 64,
    model: OptionalModel = None,
) -> None:
    """What the base and the edited model answer."""
    from jola_interp.runs import Run

    found = Run.load(run)
    row = found.generate(text, _model_for(found, model), max_new_tokens=max_new_tokens).iloc[0]
    typer.echo(f"base    {row['base']}\nedited  {row['edited']}")


@app.command()
def show(
    run: RunPath,
    rule: Annotated[str, typer.Option(help="p_open>0.5, expected>0.0881, point>0 or top=K:measure.")] = DEFAULT_RULE,
    site: Annotated[str | None, typer.Option(help="heads or mlp; default: heads, if the edit acts there.")] = None,
    as_json: Json = False,
) -> None:
    """Scores and selected heads (or MLPs) of a Run; needs no model."""
    from jola_interp.runs import Run

    found = Run.load(run)
    place = _site(found, site)
    gated = any(at == place for at, _ in found.edit.log_alphas())
    chosen = found.selection(rule, place) if gated else None
    if as_json:
        heads = chosen.to_frame().to_dict("records") if chosen is not None else []
        counts = chosen.counts() if chosen is not None else {}
        content = {"config": found.config, "scores": found.scores, "rule": rule, "site": place, "counts": counts}
        typer.echo(json.dumps({**content, "heads": heads}, indent=2))
        return
    _print_run(found, [], rule)
    if chosen:
        typer.echo(f"\n{chosen.top(20).to_frame().to_string(index=False, float_format='{:.3f}'.format)}")
        if len(chosen) > 20:
            typer.echo(f"… and {len(chosen) - 20} more (--json has them all)")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Directories of Runs.")],
    out: Annotated[Path | None, typer.Option(help="The HTML file; default: in the Run, if there is one only.")] = None,
) -> None:
    """Write one self-contained HTML file about a Run, or about several side by side."""
    from jola_interp.report import report as write

    typer.echo(str(write(runs, out)))


# -- options of `fit`, one per training field ----------------------------------------------------------------------


def _with_training_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give ``command`` one optional flag per field of TrainConfig, helped by the sentence under the field."""
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    hints, help_texts = get_type_hints(TrainConfig), _field_sentences()
    extra = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                _flag_type(hints[field.name]), _flag(field.name, help_texts[field.name], field.default)
            ],
        )
        for field in fields(TrainConfig)
    ]
    keyword_only = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    command.__signature__ = signature.replace(parameters=[*keyword_only, *extra])  # type: ignore[attr-defined]
    return command


def _flag(name: str, sentence: str, default: Any) -> Any:
    off = " 0 is none." if _may_be_none(name) else ""
    return typer.Option(help=f"{sentence}{off} [paper: {default}]", rich_help_panel="Training fields")


def _may_be_none(name: str) -> bool:
    return types.NoneType in get_args(get_type_hints(TrainConfig)[name])


def _read_option(text: str) -> tuple[str, Any]:
    """``k=64`` as a name and a value."""
    import yaml

    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ValueError(f"--option must read name=value, such as k=64; got {text!r}")
    return name, yaml.safe_load(value)


def _or_none(name: str, value: Any) -> Any:
    """A flag cannot say None, so 0 does, for fields where None is allowed and 0 is not."""
    return None if value == 0 and _may_be_none(name) else value


def _flag_type(hint: Any) -> Any:
    """The type of a flag that may be left out. Literals are checked by TrainConfig, which knows what is allowed."""
    if get_origin(hint) in (Union, types.UnionType):
        parts = [part for part in get_args(hint) if part is not types.NoneType]
        hint = float if float in parts else parts[0]  # a number of either kind reads as a float
    if get_origin(hint) is Literal:
        hint = str
    return hint | None


def _field_sentences() -> dict[str, str]:
    """The string under each field of TrainConfig."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(TrainConfig))).body[0]
    assert isinstance(tree, ast.ClassDef)
    sentences = {}
    for node, following in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(node, ast.AnnAssign) and isinstance(following, ast.Expr):
            assert isinstance(node.target, ast.Name) and isinstance(following.value, ast.Constant)
            sentences[node.target.id] = " ".join(str(following.value.value).split())
    return sentences


def _read_config(path: Path) -> dict[str, Any]:
    """Training fields from YAML (which JSON is, too)."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"config: {path} is neither YAML nor JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"config: {path} must hold fields and values, found {type(content).__name__}")
    return {name: _number(value) if _takes_floats(name) else value for name, value in content.items()}


def _takes_floats(name: object) -> bool:
    hint = get_type_hints(TrainConfig).get(str(name))
    return hint is float or float in get_args(hint)


def _number(value: Any) -> Any:
    """YAML 1.1 reads 2e-2, without a point, as text: make it the number that was meant. Other text stays."""
    if isinstance(value, list):
        return [_number(part) for part in value]
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _load_rows(task: str | None, data: Path | None, source: str, **sizes: Any) -> Task:
    from jola_interp.tasks import load_task

    if (task is None) == (data is None):
        raise ValueError("give either --task NAME or --data DIRECTORY")
    return load_task(task if task is not None else data, source=source, **sizes)  # type: ignore[arg-type]


# -- what is evaluated ---------------------------------------------------------------------------------------------


def _run_or_none(subject: str) -> Run | None:
    """The Run in a directory; None for a model's name or directory."""
    from jola_interp.runs import Run

    if Path(subject).is_dir() and not (Path(subject) / "edit.safetensors").exists():
        if (Path(subject) / "config.json").exists():
            return None
        raise FileNotFoundError(f"no Run and no model at {subject}: there is no config.json")
    return Run.load(subject) if Path(subject).is_dir() else None


def _plain_model(subject: str, model: str | None, dtype: str) -> Model:
    from jola_interp.models import load_model

    if model is not None:
        raise ValueError("--model goes with a Run; a model alone is named once")
    return load_model(subject, dtype=dtype)


def _rows_to_score(
    run: Run | None, task: str | None, data: Path | None, source: str, n_test: int | None, data_seed: int | None
) -> Task:
    """The Run's own task, rebuilt with its recorded sizes, or another one, of which only the test rows matter.

    Raises:
        ValueError: rows of the user's own that were not given, or more test rows than the Run's task has.
    """
    from jola_interp.tasks import task_names

    if run is None:
        seed = 42 if data_seed is None else data_seed
        return _load_rows(task, data, source, n_train=1, n_validation=1, n_test=n_test, seed=seed)
    recorded = run.config["task"]
    seed = next(value for value in (data_seed, recorded.get("seed"), 42) if value is not None)
    own, sizes = recorded["name"], recorded["sizes"]
    name = own if task is None and data is None else task
    if name == own and data is None and own not in task_names():
        raise ValueError(f"this Run was trained on rows of your own ({own}): give --data DIRECTORY, where they are")
    if (_name_of(data) if data is not None and task is None else name) != own:
        return _load_rows(name, data, source, n_train=1, n_validation=1, n_test=n_test, seed=seed)
    if n_test is not None and n_test > sizes["test"]:
        raise ValueError(f"--n-test must be at most {sizes['test']}, the test rows of {own} in this Run; got {n_test}")
    options = {"n_train": sizes["train"], "n_validation": sizes["validation"] or None, "seed": seed}
    return _load_rows(name, data, source, n_test=sizes["test"] or None, **options)


def _name_of(data: Path) -> str:
    """What a task from a directory or a file is called."""
    return data.resolve().stem if data.is_file() else data.resolve().name


def _model_for(run: Run, name: str | None) -> Model | None:
    """The model that is to stand in for the Run's own, in the Run's dtype; None for its own."""
    from jola_interp.models import load_model

    return load_model(name, dtype=run.config["model"]["dtype"]) if name else None


def _site(run: Run, wanted: str | None) -> Site:
    """Where to look for selected units: ``wanted``, or the first site of the edit (heads come first)."""
    sites: list[Site] = [site for site in SITES if site in run.edit.masks()]
    found = next((site for site in sites if wanted in (site, None)), None)
    if found is None:
        raise ValueError(f"--site must be one of {', '.join(sites)}, where this edit acts; got {wanted!r}")
    return found


# -- what is printed and written -----------------------------------------------------------------------------------


def _print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    import pandas as pd

    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    frame = pd.DataFrame(rows)
    widths = {column: int(frame[column].astype(str).str.len().max()) for column in frame}
    left = {column: f"{{!s:<{width}}}".format for column, width in widths.items()}
    typer.echo(frame.to_string(index=False, justify="left", formatters=left))


def _score_rows(scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per score: base and edited with their 95 % intervals."""

    def shown(score: Mapping[str, Any]) -> str:
        return f"{score['value']:.2f} [{score['low']:.2f}, {score['high']:.2f}]"

    sides = [side for side in ("base", "edited") if side in scores]
    rows = [{"score": name, **{side: shown(scores[side][name]) for side in sides}} for name in scores["base"]]
    for row in rows:
        if found := scores.get("paired", {}).get(row["score"]):
            row |= {"edited − base": shown(found), "p": f"{found['p']:.3f}"}
    return rows


def _print_scores(
    found: list[dict[str, Any]], table: Literal["markdown", "csv", "latex"] | None, as_json: bool
) -> None:
    """One task: a line a score. Several, or a format asked for: a line a task."""
    from jola_interp.evaluation.tables import render, score_table

    if as_json:
        typer.echo(json.dumps(found[0] if len(found) == 1 else found, indent=2))
    elif table is not None or len(found) > 1:
        typer.echo(render(score_table(found), table or "markdown").rstrip("\n"))
    else:
        _print_rows(_score_rows(found[0]), False)


def _print_run(run: Run, written: list[Path], rule: str = DEFAULT_RULE) -> None:
    from jola_interp.analysis.summary import kept_label

    typer.echo(f"{run.config['model']['name']} on {run.config['task']['name']}: {run.status}")
    if run.scores:
        typer.echo("")
        _print_rows(_score_rows(run.scores), False)
    typer.echo("\n" + "\n".join(_gates_in_words(run, rule)))
    seconds = run.timing.get("train_seconds")
    took = f" in {seconds:.0f} s" if seconds else ""
    typer.echo(f"{run.config['progress']['steps']} steps{took}; kept: {kept_label(run)}")
    typer.echo("\n".join(["", *(str(path) for path in [run.path, *written])]))


def _gates_in_words(run: Run, rule: str) -> list[str]:
    """One line per site of the edit: how many units use their gates how."""
    sites = ", ".join(run.edit.masks())
    if run.edit.type_name != "jola":
        return [f"no JoLA gates: the edit is {run.edit.type_name} ({sites}), of which rules select nothing"]
    gated = {site for site, _ in run.edit.log_alphas()}
    if not gated:
        return [f"no gates: every editable unit acts ({sites})"]
    lines = []
    for site in SITES:
        if site in gated:
            counts = run.selection(rule, site).counts()
            noun = "heads" if site == "heads" else "MLPs"
            lines.append(f"{noun} open ({rule}): " + ", ".join(f"{count} {name}" for name, count in counts.items()))
    return lines


def _draw(run: Run) -> list[Path]:
    """The demo's figures as PNG."""
    from jola_interp import plots

    folder = run.path / "figures"
    folder.mkdir(exist_ok=True)
    drawers: dict[str, Callable[..., Any]] = {
        "heads": plots.heads,
        "gate_snapshots": plots.gate_snapshots,
        "gate_trajectories": plots.gate_trajectories,
        "loss": plots.loss,
    }
    return [plots.save(draw(run, renderer="matplotlib"), folder / f"{name}.png") for name, draw in drawers.items()]


app.command("fit")(_with_training_options(fit_command))
