"""How to train a Run again: a few lines of Python, and one command."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

import numpy as np

from jola_interp import config
from jola_interp.edits.base import Site, unit_label
from jola_interp.edits.jola import JoLA
from jola_interp.methods.jola import SWITCHES
from jola_interp.methods.registry import methods
from jola_interp.methods.table import Method
from jola_interp.tasks import task_names
from jola_interp.tasks.local import LOCAL
from jola_interp.tasks.suites import SUITES

if TYPE_CHECKING:
    from jola_interp.runs import Run

FOLDER = "path/to/benchmarks"


def named_method(run: Run) -> Method | None:
    """The method that the Run was made by, if it is one of the table's other than JoLA itself."""
    record = run.config["method"]
    if record is None or record["name"] == "jola" or record["name"] not in (known := methods()):
        return None
    return known[record["name"]](**record["options"])


def changed_training(run: Run) -> dict[str, Any]:
    """Training fields that differ from the preset's and the method's; the penalty is among them where its schedule
    is."""
    usual, train = config.preset(run.config["preset"]).train.to_dict(), run.config["train"]
    if (method := named_method(run)) is not None:
        usual |= method.fields(own=False)
        train = {**train, **run.config["method"].get("before", {})}  # what its preparation found out, it will again
    differing = {name for name, value in train.items() if name not in usual or usual[name] != value}
    if "penalty_schedule" in differing:
        differing.add("penalty")  # a schedule given alone may bring another penalty than the preset's
    return {name: value for name, value in train.items() if name in differing}


def changed_edit(run: Run) -> dict[str, Any]:
    """Switches of the edit that differ from the preset's, and the layers or heads that it was restricted to."""
    usual = JoLA(run.edit.shape, **config.preset(run.config["preset"]).edit).settings()
    changed = {name: value for name, value in run.edit.settings().items() if usual[name] != value}
    return changed | _restriction(run)


def python_lines(run: Run) -> str:
    """Python that trains the Run again, given the same data seed."""
    recorded, fields = run.config, changed_training(run)
    lines = ["import jola_interp as ji", "", _model_line(run), f"task = ji.load_task({_task_arguments(run)})"]
    arguments = ["model", "task"]
    if (method := named_method(run)) is not None:
        options = "".join(f", {name}={value!r}" for name, value in _changed_options(method).items())
        arguments.append(f"ji.method({method.name!r}{options})" if options else repr(method.name))
    elif switches := changed_edit(run):
        start = config.preset(recorded["preset"]).edit
        named = "".join(f", {name}={value!r}" for name, value in {**start, **switches}.items())
        lines.append(f"edit = ji.JoLA(model.head_shape{named})")
        arguments.append("edit")
    arguments += [f"preset={recorded['preset']!r}", f"backend={recorded['backend']!r}"]
    arguments += [f"{name}={value!r}" for name, value in fields.items()]
    return "\n".join([*lines, f"run = ji.fit({', '.join(arguments)})", "ji.report(run)"])


def command(run: Run) -> str | None:
    """The same as one command; None where the command line has no words for it."""
    recorded, method = run.config, named_method(run)
    options = _changed_options(method) if method is not None else changed_edit(run)
    if recorded["model"]["source"] is None or method is None and options.keys() - SWITCHES.keys():
        return None
    task, sizes = recorded["task"]["name"], recorded["task"]["sizes"]
    words = ["jola-interp", "fit", "--model", recorded["model"]["source"], "--dtype", recorded["model"]["dtype"]]
    words += ["--task", task] if task in task_names() else ["--data", f"path/to/{task}"]
    words += ["--source", FOLDER] if _is_local_benchmark(run) else []
    for split, flag in (("train", "--n-train"), ("validation", "--n-validation"), ("test", "--n-test")):
        words += [flag, str(sizes[split])] if sizes[split] else []
    words += ["--method", method.name] if method is not None else []
    for name, value in options.items():
        words_only = isinstance(value, list) and all(isinstance(part, str) for part in value)
        text = ",".join(value) if words_only else json.dumps(value).strip('"')
        words += ["--option", f"{name}={text}"]
    words += ["--preset", recorded["preset"], "--backend", recorded["backend"]]
    for name, value in changed_training(run).items():
        words += _flag(name, value)
    return shlex.join(words)


def _changed_options(method: Method) -> dict[str, Any]:
    usual = methods()[method.name].options
    return {name: value for name, value in method.options.items() if usual[name] != value}


def _flag(name: str, value: Any) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    if isinstance(value, list):
        return [flag, *map(str, value)]
    return [flag, "0" if value is None else str(value)]  # the command line writes None as 0


def _model_line(run: Run) -> str:
    model = run.config["model"]
    if model["source"] is None:
        return f"model = ji.load_model(...)  # {model['name']}: a model that was handed in"
    return f"model = ji.load_model({model['source']!r}, dtype={model['dtype']!r})"


def _task_arguments(run: Run) -> str:
    task = run.config["task"]
    place = task["name"] if task["name"] in task_names() else f"path/to/{task['name']}"
    sizes = "".join(f", n_{split}={size}" for split, size in task["sizes"].items() if size)
    source = f", source={FOLDER!r}" if _is_local_benchmark(run) else ""
    return f"{place!r}{sizes}{source}"


def _is_local_benchmark(run: Run) -> bool:
    """Whether rows of a named benchmark came from a folder and not from the Hub."""
    task = run.config["task"]
    return task["name"] in SUITES and task.get("source") == LOCAL


def _restriction(run: Run) -> dict[str, Any]:
    """``layers`` where whole layers are editable or not, ``heads`` where single ones are."""
    sites: list[Site] = list(run.edit.sites)  # type: ignore[arg-type]
    masks = {site: run.edit.site(site).mask.cpu().numpy() for site in sites}
    if all(mask.all() for mask in masks.values()):
        return {}
    if all(np.array_equal(mask.any(1), mask.all(1)) for mask in masks.values()):
        return {"layers": [int(layer) for layer in np.flatnonzero(next(iter(masks.values())).any(1))]}
    return {"heads": [unit_label("heads", int(i), int(j)) for i, j in np.argwhere(masks["heads"])]}
