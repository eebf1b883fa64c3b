"""What a Run holds, in tables: scores, settings, examples, and how to train it again."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from jola_interp.analysis.recipe import changed_edit, changed_training, command, named_method, python_lines
from jola_interp.edits.jola import JoLA
from jola_interp.report.page import table, text_cell
from jola_interp.report.sentences import interval, metric_name

if TYPE_CHECKING:
    from jola_interp.runs import Run

EXAMPLES = 5
"""How many test rows are shown."""


def scores(run: Run) -> str:
    """Base beside edited, with intervals, the protocol and the metrics' signatures."""
    found = run.scores
    if not found:
        return "<p>None. <code>jola-interp evaluate RUN</code> writes them.</p>"
    rows = [
        [metric_name(name), interval(base), interval(found["edited"][name]), str(base["n"]), escape(base["method"])]
        for name, base in found["base"].items()
    ]
    protocol = "; ".join(f"{name} {value}" for name, value in found["protocol"].items())
    notes = [f"Protocol: {protocol}."]
    notes += [f"{metric_name(name)}: {signature}." for name, signature in found.get("signatures", {}).items()]
    head = ["Score", "Base", "Edited", "Rows", "95 % interval by"]
    return table(head, rows) + "".join(f'<p class="note">{escape(note)}</p>' for note in notes)


def settings(run: Run) -> str:
    """Every setting; those that differ from the preset stand out."""
    found, changed = run.config, {**changed_training(run), **_changed_edit(run)}
    groups = {
        "Model": {name: value for name, value in found["model"].items() if name != "head_shape"}
        | found["model"]["head_shape"],
        "Task": {name: value for name, value in found["task"].items() if name != "sizes"} | found["task"]["sizes"],
        "Edit": {**found["edit"], **{name: value for name, value in changed.items() if name in ("layers", "heads")}},
        "Training": found["train"],
    }
    tables = []
    for name, values in groups.items():
        listed = _pairs(values, {} if name in ("Model", "Task") else changed)  # a preset names no model and no task
        tables.append(f'<div class="{name.lower()}"><h3>{name}</h3>{listed}</div>')
    note = f'<p class="note">Bold: not as in the preset {escape(str(found["preset"]))}.</p>'
    return f'<div class="settings">{"".join(tables)}</div>{note}'


def _changed_edit(run: Run) -> dict[str, Any]:
    """Against the preset, which only has switches for JoLA."""
    return changed_edit(run) if run.edit.type_name == JoLA.type_name else {}


def _pairs(values: Mapping[str, Any], changed: Mapping[str, Any]) -> str:
    """A definition list: it may flow over several columns, which a table may not."""
    rows = []
    for name, value in values.items():
        text = escape(", ".join(map(str, value)) if isinstance(value, list) else str(value))
        shown = f"<strong>{text}</strong>" if name in changed else text
        rows.append(f"<div><dt>{escape(name)}</dt><dd>{shown}</dd></div>")
    return f"<dl>{''.join(rows)}</dl>"


def examples(run: Run) -> str:
    """The first test rows, as the base model and the edited one answered them."""
    rows = run.predictions
    if not rows:
        return "<p>None: the Run has no predictions.</p>"
    shown = rows[:EXAMPLES]
    cells = [[text_cell(row.get(name, "")) for name in ("instruction", "base", "edited", "answer")] for row in shown]
    side_by_side = table(["Instruction", "Base model", "Edited model", "Reference"], cells, "examples")
    return f"<p>The first {len(shown)} of {len(rows)} test rows, not picked.</p>{side_by_side}"


def reproduce(run: Run) -> str:
    """Lines that train the Run again, and the fingerprints of its rows and weights."""
    found = run.config
    return (
        f"{recipe(run)}"
        "<p>The rows depend on the seed they were drawn with (42 unless you chose one). The right rows and "
        f"weights give these fingerprints: task <code>{escape(found['task']['fingerprint'][:16])}</code>, model "
        f"<code>{escape(found['model']['fingerprint'][:16])}</code>.</p>"
    )


def recipe(run: Run) -> str:
    """The lines alone."""
    if run.edit.type_name != JoLA.type_name and named_method(run) is None:
        return (
            f"<p>Lines are written for JoLA only; this edit is <code>{escape(run.edit.type_name)}</code>, with the "
            "switches above.</p>"
        )
    line = command(run)
    shell = f"<pre>{escape(line)}</pre>" if line else "<p>The command line has no words for this edit.</p>"
    return f"<pre>{escape(python_lines(run))}</pre>{shell}"
