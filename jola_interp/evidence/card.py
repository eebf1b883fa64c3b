"""The evidence card: everything that must be true before a selection may be called one, on one screen.

Parts run from cheap to dear; what is finished is kept in ``evidence.json`` and not computed again, what was not run is
said to be missing.
"""

from __future__ import annotations

import html
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jola_interp import _files, selection
from jola_interp._log import logger
from jola_interp.analysis.effects import even_without_restarts, leave_one_out
from jola_interp.analysis.rows import precise
from jola_interp.analysis.tables import about, save_table
from jola_interp.evidence import nulls, traps
from jola_interp.evidence.audit import audit
from jola_interp.evidence.calibration import calibrate
from jola_interp.evidence.case import Case, open_case
from jola_interp.evidence.causal import causal_heads
from jola_interp.evidence.endpoint import paired
from jola_interp.evidence.refits import refits
from jola_interp.evidence.rivals import rivals
from jola_interp.evidence.words import NOT_APPLICABLE, VERDICTS, in_words, verdict_of
from jola_interp.runs import EVIDENCE, Run, edit_digest

if TYPE_CHECKING:
    from jola_interp.models import Model
    from jola_interp.tasks import Task

FORMAT = 1


@dataclass(frozen=True)
class Options:
    """How much to spend.

    Attributes:
        sets: random sets of the refit null.
        pairs: other (seed, rows) pairs.
        draws: other draws of the task for them; None lets them be made.
        rows: rows of the exact leave-one-out.
        audit_rows: rows on which the audit moves the offset of one selected head after the other.
        k: heads in a rival set; None is chosen by :func:`jola_interp.evidence.rivals`.

    Raises:
        ValueError: a number below what it must be at least, or fewer draws than pairs.
    """

    sets: int = 19
    pairs: int = 4
    draws: Sequence[Task] | None = None
    rows: int = 64
    audit_rows: int = 16
    k: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("sets", 1), ("pairs", 2), ("rows", 2), ("audit_rows", 2), ("k", 1)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ValueError(f"{name} must be an integer, {least} or more; got {value!r}")
        if self.draws is not None and len(self.draws) < self.pairs:
            raise ValueError(f"draws: {len(self.draws)} for {self.pairs} pairs")


@dataclass(frozen=True)
class Part:
    """One piece of evidence: its name, the question it answers, how many trainings that takes, and what was asked for
    beside (settings and options) that its answer depends on."""

    name: str
    question: str
    trainings: int
    compute: Callable[[Case, Options], dict[str, Any]]
    depends: tuple[str, ...] = ()

    def asked(self, case: Case, options: Options) -> dict[str, Any]:
        """What its answer depends on, JSON-ready: another answer is needed where this differs."""
        draws = None if options.draws is None else [task.fingerprint for task in options.draws]
        known = {**asdict(replace(options, draws=None)), "draws": draws, "steps": case.steps, "rule": case.rule}
        return {name: known[name] for name in self.depends}


def _convergence(case: Case, _: Options) -> dict[str, Any]:
    stamp = case.run.convergence
    if stamp is None:
        return {"converged": None, "sentence": "The Run has no convergence stamp: an older version trained it."}
    return stamp.to_dict() | {"sentence": stamp.sentence()}


def _gain(case: Case, _: Options) -> dict[str, Any]:
    found = {"base": float(case.base.nll.mean()), "edited": float(case.edited.nll.mean())}
    return found | {"gain": paired(case.gain).to_dict(), "selected": len(case.selected)} | traps.content(case)


def _leave_one_out(case: Case, options: Options) -> dict[str, Any]:
    """In float32: the effect of one gate can be smaller than what bfloat16 rounds away. The whole table is kept."""
    exact = precise(case.model)
    measured = {"rows": options.rows, "estimate": True}
    effects = even_without_restarts(leave_one_out, case.run, case.task, exact, **measured)
    save_table(case.run, "effects", effects, about(case.run, case.task, exact, leave_one_out, **measured))
    frame = effects.to_frame()[effects.measured].sort_values("effect", ascending=False)
    clear = frame[frame["effect"] > 2 * frame["se"]]
    return {
        "rows": int(effects.by_row.shape[1]),
        "gates": len(frame),
        "clear": len(clear),
        "reliability": effects.reliability,
        "top": frame.head(10)[["label", "kind", "effect", "se"]].to_dict("records"),
    }


def _norm_matched(case: Case, _: Options) -> dict[str, Any]:
    return nulls.norm_matched(case)


def _scope(case: Case, _: Options) -> dict[str, Any]:
    return traps.scope(case)


def _prefixes(case: Case, _: Options) -> dict[str, Any]:
    return traps.prefixes(case)


def _audit(case: Case, options: Options) -> dict[str, Any]:
    rows = min(options.audit_rows, len(case.task.test))
    return audit(case.run, case.task, case.model, rows=rows, rule=case.rule).to_dict()


def _bias(case: Case, _: Options) -> dict[str, Any]:
    return traps.bias_baseline(case)


def _label_shuffle(case: Case, _: Options) -> dict[str, Any]:
    return nulls.label_shuffle(case).to_dict()


def _random_base(case: Case, _: Options) -> dict[str, Any]:
    return nulls.random_base(case).to_dict()


def _basis(case: Case, _: Options) -> dict[str, Any]:
    return traps.basis(case)


def _causal(case: Case, _: Options) -> dict[str, Any]:
    return causal_heads(case).to_dict()


def _noise_tax(case: Case, _: Options) -> dict[str, Any]:
    return traps.noise_tax(case)


def _replicates(case: Case, options: Options) -> dict[str, Any]:
    return nulls.replicates(case, options.pairs, options.draws).to_dict()


def _refits(case: Case, options: Options) -> dict[str, Any]:
    return refits(case, options.sets).to_dict()


def _rivals(case: Case, options: Options) -> dict[str, Any]:
    return rivals(case, k=options.k).to_dict()


def _calibration(case: Case, _: Options) -> dict[str, Any]:
    """The summary; what it follows from is kept beside the trainings."""
    folder = case.folder / "calibration"
    found = calibrate(case.model, case.small_task, case.run, backend=case.backend, rule=case.rule, out=folder)
    found.save(folder / "calibration.json")
    summary: dict[str, Any] = found.to_dict()["summary"]
    return summary


def _units(case: Case, _: Options) -> dict[str, Any]:
    return traps.units(case)


PARTS: tuple[Part, ...] = (
    Part("convergence", "Did the gates decide?", 0, _convergence),
    Part("gain", "Is there a gain, and is it content or format?", 0, _gain, ("rule",)),
    Part("norm_matched", "Would random directions of the same size do?", 0, _norm_matched),
    Part("scope", "At which tokens does the edit work?", 0, _scope),
    Part("prefixes", "Does the gain survive a neutral prefix?", 0, _prefixes),
    Part("audit", "Which numbers are facts, which depend on the basis?", 0, _audit, ("rule", "audit_rows")),
    Part("leave_one_out", "Which open gates matter, one at a time?", 0, _leave_one_out, ("rows",)),
    Part("bias", "Are the offsets more than a bias of W_O?", 8, _bias, ("steps",)),
    Part("label_shuffle", "Does it choose the same heads when labels mean nothing?", 1, _label_shuffle, ("rule",)),
    Part("random_base", "What does it select where nothing was learnt?", 1, _random_base, ("rule",)),
    Part("basis", "Would another value basis select the same heads?", 1, _basis, ("rule",)),
    Part("causal", "Does Causal Head Gating need the same heads?", 3, _causal, ("rule",)),
    Part("noise_tax", "What do the gates cost?", 8, _noise_tax, ("steps",)),
    Part("replicates", "Would another seed and other rows agree?", 4, _replicates, ("rule", "pairs", "draws")),
    Part("refits", "Would any heads do?", 21, _refits, ("rule", "steps", "sets")),
    Part("rivals", "How many disjoint sets do as well?", 7, _rivals, ("rule", "steps", "k")),
    Part("calibration", "Would it find heads that are known to be used?", 6, _calibration, ("rule",)),
    Part("units", "Is additive against multiplicative an artefact of units?", 10, _units, ("rule",)),
)
"""All parts, from cheap to dear."""
NAMES = tuple(part.name for part in PARTS)
CHEAP = tuple(part.name for part in PARTS if not part.trainings)


@dataclass(frozen=True)
class Card:
    """The evidence about one Run.

    Attributes:
        run: what it is about, in words.
        parts: name of a part to what it found, JSON-ready; to ``{"not_applicable": why}`` where it could not be had.
        asked: name of a part to the settings and options that its answer depends on.
        settings: what the numbers belong to (digests of edit, rows and model).
    """

    run: str
    parts: Mapping[str, Mapping[str, Any]]
    asked: Mapping[str, Mapping[str, Any]]
    settings: Mapping[str, Any]

    @property
    def not_run(self) -> tuple[str, ...]:
        """Names of the parts that are missing."""
        return tuple(name for name in NAMES if name not in self.parts)

    @property
    def had(self) -> dict[str, Mapping[str, Any]]:
        """The parts that have an answer."""
        return {name: found for name, found in self.parts.items() if NOT_APPLICABLE not in found}

    @property
    def verdict(self) -> str:
        """A word out of :data:`jola_interp.evidence.words.VERDICTS`."""
        return verdict_of(self.parts)

    def sentences(self) -> list[str]:
        """The verdict, then the answer of every part that was run, in words."""
        lines = [f"Verdict: {self.verdict}. {VERDICTS[self.verdict]}"]
        for part in PARTS:
            if part.name in self.parts:
                lines.append(f"{part.question} {in_words(part.name, self.parts[part.name])}")
        if self.not_run:
            lines.append(f"Not run: {', '.join(self.not_run)}.")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """What ``evidence.json`` holds."""
        return {
            "format": FORMAT,
            "run": self.run,
            "settings": dict(self.settings),
            "verdict": self.verdict,
            "sentences": self.sentences(),
            "not_run": list(self.not_run),
            "asked": {name: dict(found) for name, found in self.asked.items()},
            "parts": {name: dict(found) for name, found in self.parts.items()},
        }

    @classmethod
    def load(cls, run: Run | str | Path) -> Card | None:
        """The card of a Run, from its ``evidence.json``; None if there is none.

        Raises:
            ValueError: a newer format.
        """
        folder = run.path if isinstance(run, Run) else Path(run)
        file = folder / EVIDENCE
        if not file.exists():
            return None
        content = json.loads(file.read_text(encoding="utf-8"))
        if content.get("format") != FORMAT:
            raise ValueError(f"{file}: format: found {content.get('format')}, expected {FORMAT}")
        return cls(content["run"], content["parts"], content["asked"], content["settings"])

    def __repr__(self) -> str:
        return "\n".join([f"Evidence for {self.run}", *(f"  {line}" for line in self.sentences())])

    def _repr_html_(self) -> str:
        rows = [
            (part.name, part.question, in_words(part.name, self.parts[part.name]))
            for part in PARTS
            if part.name in self.parts
        ]
        cell = '<td style="text-align: left; vertical-align: top">'
        table = "".join(f"<tr>{''.join(f'{cell}{html.escape(text)}</td>' for text in row)}</tr>" for row in rows)
        missing = f"<p>Not run: {html.escape(', '.join(self.not_run))}.</p>" if self.not_run else ""
        return (
            f"<p>Evidence for {html.escape(self.run)}<br><b>Verdict: {html.escape(self.verdict)}.</b> "
            f"{html.escape(VERDICTS[self.verdict])}</p><table>{table}</table>{missing}"
        )


def evidence_card(
    run: Run | str | Path,
    task: str | Path | Task | None = None,
    model: str | Path | Model | None = None,
    parts: str | Iterable[str] = "cheap",
    *,
    steps: int | None = None,
    rule: str = selection.DEFAULT_RULE,
    options: Options | None = None,
    out: str | Path | None = None,
) -> Card:
    """Question a Run: is there a "which", and is it these heads?

    A part that is in the card is computed anew only where the edit, the rows, the model or an option that its answer
    depends on has changed; parts that are not asked for stay as they are.

    Args:
        run: a Run or its directory; the card is kept there as ``evidence.json``, its trainings under ``evidence/``.
        task: the task that it was trained on, the same rows; None loads it by its name.
        model: None is the Run's own.
        parts: "cheap" (those without a training), "all", or names out of ``NAMES``.
        steps: optimiser steps of each refit; None is as many as the Run took.
        rule: which heads count as selected.
        options: how much to spend on the dear parts.
        out: another place for the trainings.

    Raises:
        ValueError: an unknown part, or a Run, task, rule or number that cannot be used, before any work.
    """
    wanted = _wanted(parts)
    spending = options or Options()
    case = open_case(run, task, model, steps=steps, rule=rule, out=out)
    settings = {
        "edit": edit_digest(case.run.edit),
        "task_fingerprint": case.task.fingerprint,
        "model_fingerprint": case.model.fingerprint,
    }
    kept = Card.load(case.run)
    card = kept if kept is not None and kept.settings == settings else Card(_about(case), {}, {}, settings)
    for part in PARTS:
        asked = part.asked(case, spending)
        known = NOT_APPLICABLE not in card.parts.get(part.name, {NOT_APPLICABLE: ""}) and card.asked[part.name] == asked
        if part.name in wanted and not known:
            card = _with_part(card, part, case, spending, asked)
            _files.write_json(case.run.path / EVIDENCE, card.to_dict())
    return card


def _with_part(card: Card, part: Part, case: Case, options: Options, asked: Mapping[str, Any]) -> Card:
    """The card with a part computed anew. One that cannot be had says why, and does not keep the others waiting."""
    logger.info("evidence: %s %s", part.name, part.question)
    started = time.perf_counter()
    try:
        found = _plain(part.compute(case, options))
    except (ValueError, RuntimeError, IndexError) as error:
        logger.warning("evidence: %s could not be had: %s", part.name, error)
        found = {NOT_APPLICABLE: f"{type(error).__name__}: {error}"}
    _note_time(case.run, part.name, time.perf_counter() - started)
    parts, answers = {**card.parts, part.name: found}, {**card.asked, part.name: dict(asked)}
    ordered = {name: parts[name] for name in NAMES if name in parts}
    return replace(card, parts=ordered, asked={name: answers[name] for name in ordered})


def _about(case: Case) -> str:
    return f"{case.run.config['model']['name']} on {case.task.name}, seed {case.settings.seed}"


def _wanted(parts: str | Iterable[str]) -> set[str]:
    if isinstance(parts, str):
        parts = {"cheap": CHEAP, "all": NAMES}.get(parts, (parts,))
    wanted = set(parts)
    if unknown := sorted(wanted - set(NAMES)):
        raise ValueError(f"parts must be 'cheap', 'all' or names out of {', '.join(NAMES)}; got {', '.join(unknown)}")
    return wanted


def _plain(found: Any) -> Any:
    """As it will be read back from JSON, so that a fresh card equals a loaded one; NaN, which JSON lacks, is None."""
    if isinstance(found, Mapping):
        return {str(name): _plain(value) for name, value in found.items()}
    if isinstance(found, list | tuple):
        return [_plain(value) for value in found]
    if isinstance(found, np.generic):
        return _plain(found.item())
    return None if isinstance(found, float) and not math.isfinite(found) else found


def _note_time(run: Run, part: str, seconds: float) -> None:
    """Times live in ``timing.json`` alone."""
    timing = run.timing
    spent = {**timing.get("evidence_seconds", {}), part: round(seconds, 1)}
    _files.write_json(run.path / "timing.json", {**timing, "evidence_seconds": spent})
