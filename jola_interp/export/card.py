"""The model card: what an export is, of which model, how well it does, and how to load it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jola_interp._version import __version__
from jola_interp.edits import LoRA
from jola_interp.edits.base import unit_label
from jola_interp.export.affine import Points, affine
from jola_interp.runs import Run

if TYPE_CHECKING:
    from jola_interp.export.checking import Check
    from jola_interp.export.subject import Subject
    from jola_interp.export.written import Export

FILE = "README.md"
PICTURE = "heads.png"
"""The map of the heads, beside a card that shows it."""
MOST_HEADS = 24
"""Labels that are written out of one kind."""
WHAT = {
    "fold": "A plain Hugging Face checkpoint: the edit is in the weights, inference costs what the base model's does.",
    "lora": "A LoRA adapter (peft) on the output projections of the attention; it goes with the base model.",
    "ia3": "An IA3 adapter (peft): one factor per input of the output projections; it goes with the base model.",
}
TAGS = {"fold": ("transformers",), "lora": ("peft", "lora"), "ia3": ("peft", "ia3")}


def write(folder: Path, made: Export, subject: Subject) -> None:
    """``README.md`` of an export."""
    heads = heads_by_kind(affine(subject.edit), subject.edit.shape.d_head)
    text = model_card(
        subject.run, made.kind, heads=heads, check=made.check, rank=made.rank, dtype=made.dtype,
        saved_as=made.architecture, revision=subject.base.options.get("revision"), whole=subject.whole,
    )  # fmt: skip
    (folder / FILE).write_text(text, encoding="utf-8")


def model_card(
    run: Run,
    kind: str = "run",
    *,
    heads: Mapping[str, list[str]] | None = None,
    check: Check | None = None,
    rank: int = 0,
    dtype: str | None = None,
    saved_as: str | None = None,
    revision: str | None = None,
    whole: bool = True,
    repo: str = "PATH",
    shows: str | None = None,
) -> str:
    """The card as Markdown, with the Hub's header.

    Args:
        run: the Run that it tells of.
        kind: ``fold``, ``lora``, ``ia3``; ``run`` is the Run itself, as ``push_to_hub`` uploads it.
        heads: status to labels (:func:`heads_by_kind`); None reads the Run's edit, as far as that can be read.
        check: how far the export is from the edited model.
        rank: the largest of a LoRA.
        dtype: of the export.
        saved_as: the class of a checkpoint, where it is another than the base model's.
        revision: of the base model.
        whole: whether all of the edit is in it: the scores of the Run are those of all of it.
        repo: what stands for the place in the code: a path, or a repository.
        shows: what ``heads.png`` shows, in words, where it lies beside the card.
    """
    parts = [
        _header(run, kind, revision),
        f"# {run.config['task']['name']}: {_method(run)} on {run.config['model']['name']}",
        _what(run, kind),
        _facts(run, kind, rank, dtype, saved_as, revision),
        "## Edit\n\n" + _edit_in_words(heads if heads is not None else _heads_of(run), whole),
        *([f"![{_alternative(shows)}]({PICTURE})"] if shows else []),
        "## Scores\n\n" + (_scores(run) if whole else "Only a part of the Run's edit is in it, and not scored here."),
    ]
    if check is not None:
        parts.append("## Exactness\n\n" + _exactness(check))
    parts.append("## How to load it\n\n" + _loading(run, kind, repo, revision))
    return "\n\n".join(parts) + "\n"


def heads_by_kind(points: Points, d_head: int) -> dict[str, list[str]]:
    """Status to labels of the heads that act at inference: "additive", "multiplicative" and "both"."""
    found: dict[str, list[str]] = {"additive": [], "multiplicative": [], "both": []}
    for (layer, site), given in sorted(points.items(), key=lambda item: item[0]):
        if site != "heads":
            continue
        scales, shifts = (value.view(-1, d_head) for value in (given.scale, given.shift))
        for head, (scale, shift) in enumerate(zip(scales, shifts, strict=True)):
            added, scaled = bool((shift != 0).any()), bool((scale != 1).any())
            if added or scaled:
                status = "both" if added and scaled else "additive" if added else "multiplicative"
                found[status].append(unit_label("heads", layer, head))
    return found


def _heads_of(run: Run) -> dict[str, list[str]]:
    try:
        return heads_by_kind(affine(run.edit), run.edit.shape.d_head)
    except ValueError:
        return {}


def _what(run: Run, kind: str) -> str:
    if kind == "lora" and isinstance(run.edit, LoRA):
        linears = sorted({name.rpartition(".")[2] for name in run.edit.sizes})
        return f"A LoRA adapter (peft) as it was trained, on {', '.join(linears)}; it goes with the base model."
    return WHAT.get(kind, "A Run of jola_interp: the trained edit, the history of its gates and its scores.")


def _header(run: Run, kind: str, revision: str | None) -> str:
    """The YAML that the Hub reads. A base model is named if it is on the Hub."""
    source = str(run.config["model"]["source"] or "")
    lines = ["---", f"library_name: {'transformers' if kind == 'fold' else 'jola_interp' if kind == 'run' else 'peft'}"]
    if source.count("/") == 1 and not source.startswith((".", "/", "~")):
        lines.append(f"base_model: {source}")
        if revision:
            lines.append(f"base_model_revision: {revision}")
    lines += ["pipeline_tag: text-generation", "tags:"]
    return "\n".join([*lines, *(f"- {tag}" for tag in ("jola", "activation-editing", *TAGS.get(kind, ()))), "---"])


def _method(run: Run) -> str:
    name = (run.config["method"] or {}).get("name")
    return str(name or run.edit.type_name)


def _facts(run: Run, kind: str, rank: int, dtype: str | None, saved_as: str | None, revision: str | None) -> str:
    model, task, config = run.config["model"], run.config["task"], run.config
    rows = [
        ("Task", f"{task['name']} ({task['sizes']['train']} training rows, metric {task['metric']})"),
        ("Base model", model["source"] or model["name"]),
        ("Revision", revision),
        ("Fingerprint of the base model", f"`{model['fingerprint'][:16]}`"),
        ("Class", model["class"]),
        ("Saved as", saved_as if saved_as != model["class"] else None),
        ("Precision", dtype or model["dtype"]),
        ("Largest rank", rank or None),
        ("Parameters trained", f"{run.edit.n_parameters():,}"),
        ("Preset, seed", f"{config['preset']}, {config['train']['seed']}"),
        ("Written by", f"jola_interp {__version__}"),
    ]
    if config["train"]["wrapper"] and kind != "run":
        rows.insert(1, ("Prompt", f"as trained: wrapper `{_inline(config['train']['wrapper'])}`"))
    return _table(("", ""), [(name, str(value)) for name, value in rows if value is not None])


def _edit_in_words(heads: Mapping[str, list[str]], whole: bool) -> str:
    counted = {name: labels for name, labels in heads.items() if labels}
    part = "" if whole else "A part of the Run's edit. "
    if not counted:
        return f"{part}It acts on no single heads."
    rows = []
    for name, labels in counted.items():
        more = f", … ({len(labels) - MOST_HEADS} more)" if len(labels) > MOST_HEADS else ""
        rows.append((name, str(len(labels)), ", ".join(labels[:MOST_HEADS]) + more))
    note = f"{part}Heads that act at inference, z' = (1 + g_m·m) ⊙ z + g_a·a:"
    return f"{note}\n\n{_table(('kind', 'heads', 'which'), rows)}"


def _scores(run: Run) -> str:
    scores = run.scores
    if not scores:
        return "The Run has not been scored."

    def shown(score: Mapping[str, Any]) -> str:
        return f"{score['value']:.2f} [{score['low']:.2f}, {score['high']:.2f}]"

    rows = [(name, shown(scores["base"][name]), shown(score)) for name, score in scores["edited"].items()]
    note = f"Of the Run (edit attached, {run.config['model']['dtype']}), on {scores['n']} test rows; 95 % intervals."
    return f"{note}\n\n{_table(('score', 'base', 'edited'), rows)}"


def _exactness(check: Check) -> str:
    found = check.in_words()
    drift = " Half precision rounds weights and activations; a float32 fold or an adapter keeps W_O exact."
    return f"{found[0].upper()}{found[1:]}.{drift if check.bound is None else ''}"


def _loading(run: Run, kind: str, repo: str, revision: str | None) -> str:
    base = run.config["model"]["source"] or run.config["model"]["name"]
    at = f'"{base}"' + (f', revision="{revision}"' if revision else "")
    note = ""
    if kind != "fold" and base == "smollm2-135m":
        note = "\n\n`smollm2-135m` is jola_interp's packaged model: `ji.load_model` finds it, transformers does not."
    ways = _ways(kind, repo, at)
    if kind == "run" and not _has_weights(run):
        ways = dict(list(ways.items())[:1])  # as an edit alone
    found = [f"{title}:\n\n```python\n{_lines(code)}\n```" for title, code in ways.items()]
    return "\n\n".join(found) + note


def _has_weights(run: Run) -> bool:
    """Whether the edit can be written as weights; what one architecture cannot carry, the export says."""
    try:
        affine(run.edit)
    except ValueError:
        return False
    return True


def _ways(kind: str, repo: str, at: str) -> dict[str, list[str]]:
    """Title to code; ``at`` is the base model as an argument."""
    ours, also = "import jola_interp as ji", "from jola_interp import export"
    run, base = 'run = ji.Run.from_pretrained("{}")', f"model = ji.load_model({at})"
    attached = [base, "with run.attach(model):", "    ..."]
    if kind == "run":
        both = [ours, also, run.format(repo), base]
        return {
            "With jola_interp, head by head": [ours, run.format(repo), *attached],
            "With transformers alone, as a checkpoint": [
                *both, 'export.fold(run, "CHECKPOINT", model=model)', "", *_stock('"CHECKPOINT"')
            ],
            "With peft, as an adapter": [
                *both, 'export.to_peft(run, "ADAPTER", model=model)', "", *_adapter(at, "ADAPTER")
            ],
        }  # fmt: skip
    made_from = [ours, f"{run.format('RUN')}    # the Run that this was made from", *attached]
    if kind == "fold":
        return {
            "With transformers alone": _stock(f'"{repo}"'),
            "With jola_interp": [ours, f'model = ji.load_model("{repo}")'],
            "As an edit, head by head": made_from,
        }
    edit = [f'edit = export.from_peft("{repo}", model)', "with ji.attach(edit, model):", "    ..."]
    return {
        "With peft": _adapter(at, repo),
        "With jola_interp": [ours, also, base, *edit] if kind == "ia3" else made_from,
    }


def _stock(where: str) -> list[str]:
    return [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        f'model = AutoModelForCausalLM.from_pretrained({where}, dtype="auto")',
        f"tokenizer = AutoTokenizer.from_pretrained({where})",
    ]


def _adapter(at: str, path: str) -> list[str]:
    return ["from peft import PeftModel", *_stock(at), f'model = PeftModel.from_pretrained(model, "{path}")']


def _lines(code: Iterable[str]) -> str:
    return "\n".join(code)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _alternative(text: str) -> str:
    """Text for the brackets of a picture: one line, with nothing in it that ends them."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]")


def _inline(text: str) -> str:
    """One line for a table."""
    shown = text.replace("\n", "\\n").replace("`", "'")
    return shown if len(shown) <= 80 else f"{shown[:79]}…"
