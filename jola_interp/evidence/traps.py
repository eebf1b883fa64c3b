"""Known traps, each with the training or the passes that show whether this Run stepped into it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jola_interp import selection
from jola_interp.batching import Encoded, encode_answer
from jola_interp.edits.jola import JoLA
from jola_interp.evidence.case import TO_THE_END, Case, fresh
from jola_interp.evidence.endpoint import paired
from jola_interp.evidence.nulls import described, in_dtype
from jola_interp.evidence.symmetries import rotated
from jola_interp.runs import Run

RATIOS = (1 / 16, 1 / 4, 1.0, 4.0, 16.0)
"""Learning rates of a over those of m."""
RATES = (4.0, 1.0, 0.25, 0.0625)
"""Multiples of the Run's learning rate at which edits are trained that want different ones; each counts at its best."""
PREFIXES = (0, 64, 256)
NEUTRAL = "\n"
"""What a neutral prefix is made of."""


def content(case: Case) -> dict[str, Any]:
    """Format or content? The label tokens' NLL apart from the format's, beside what guessing costs.

    ``chance`` is ln(number of options), the mean over rows; ``majority`` the entropy of the test rows' own labels (the
    NLL of the best constant forecast). A choice task whose label NLL is not below the smaller of them, with its
    interval, is "untestable at this size". Texts have no label tokens: None.
    """
    if case.base.label is None or case.edited.label is None:
        return {"testable": True, "label": None}
    options = [case.task.options_of(row) for row in case.task.test]
    chance = float(np.mean([np.log(len(names)) for names in options]))
    places = [names.index(row.answer) for names, row in zip(options, case.task.test, strict=True)]
    shares = np.bincount(places) / len(places)
    majority = float(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())
    guess = min(chance, majority)
    ahead = paired(guess - case.edited.label)
    return {
        "testable": ahead.low > 0,
        "label": {"base": float(case.base.label.mean()), "edited": float(case.edited.label.mean())},
        "chance": chance,
        "majority": majority,
        "ahead": ahead.to_dict(),
        "label_gain": paired(case.base.label - case.edited.label).to_dict(),
    }


def scope(case: Case) -> dict[str, Any]:
    """Gain of the trained edit where it acts on some tokens only: all, all but the first, the prompt, the answer."""
    edit = case.run.edit
    found = {}
    for name in ("all", "not_first", "prompt", "answer"):
        part = fresh(edit, scope=name).load_tensors(edit.tensors())
        found[name] = paired(case.base.nll - case.endpoint.losses(part).nll).to_dict()
    return found


def prefixes(case: Case, lengths: Sequence[int] = PREFIXES) -> dict[str, Any]:
    """Gain behind a neutral prefix of so many tokens: length to the base's NLL and the gain.

    Raises:
        ValueError: a negative length.
    """
    if min(lengths) < 0:
        raise ValueError(f"lengths must be 0 or more, got {min(lengths)}")
    tokenizer: Any = case.model.tokenizer
    own_bos = tokenizer("x").input_ids[:1] == [tokenizer.bos_token_id]  # a chat template's first token is none
    bos = tokenizer.bos_token_id if own_bos else None
    neutral = encode_answer(NEUTRAL, tokenizer, eos=False)
    found = {}
    for length in lengths:
        filler = (neutral * length)[:length]
        rows = [_behind(row, filler, bos) for row in case.endpoint.rows]
        base = case.endpoint.losses(None, rows).nll
        edited = case.endpoint.losses(case.run.edit.restricted(), rows).nll
        found[str(length)] = {"base": float(base.mean()), "gain": paired(base - edited).to_dict()}
    return found


def noise_tax(case: Case, rates: Sequence[float] = RATES) -> dict[str, Any]:
    """CE(JoLA, λ = 0) − CE(no gates), each at its best learning rate by validation.

    Only g·a acts, so gated and ungated edits want different rates; at one rate the comparison is none.
    """
    edits = {"gated": fresh(case.run.edit), "ungated": fresh(case.run.edit, gates="none")}
    free = {"penalty": 0.0, "target_heads": None}
    best = {name: _best_rate(case, edit, f"noise-tax/{name}", rates, **free) for name, edit in edits.items()}
    nll = {name: case.score(run).nll for name, (_, run) in best.items()}
    tax = paired(nll["gated"] - nll["ungated"])
    return {"tax": tax.to_dict(), "nll": {name: float(values.mean()) for name, values in nll.items()}} | _rates(
        best, rates
    )


def bias_baseline(case: Case, rates: Sequence[float] = RATES) -> dict[str, Any]:
    """Offsets on all heads against a trained bias of W_O, both without gates, with the same steps and seed, each at its
    best learning rate by validation (a bias does not pass through W_O: its units are others).

    Σ_h a_h W_O[h] is one vector a layer: where H·d_head = d_model all offsets of a layer together ARE such a bias.
    ``difference`` is NLL(offsets) − NLL(bias), row by row.
    """
    own = case.run.edit
    layers = [int(layer) for layer in np.flatnonzero(case.editable.any(1))]
    offsets = fresh(own, gates="none", operations="add", sites=("heads",))
    bias = JoLA(own.shape, gates="none", operations="add", sites=("attention",), layers=layers, scope=own.scope)
    edits = {"offsets": offsets, "bias": bias}
    best = {name: _best_rate(case, edit, f"bias/{name}", rates) for name, edit in edits.items()}
    nll = {name: case.score(run).nll for name, (_, run) in best.items()}
    return {
        "nll": {name: float(values.mean()) for name, values in nll.items()},
        "gain": {name: paired(case.base.nll - values).to_dict() for name, values in nll.items()},
        "difference": paired(nll["offsets"] - nll["bias"]).to_dict(),
        "parameters": {"offsets": offsets.n_parameters(), "bias": bias.n_parameters()},
    } | _rates(best, rates)


def units(case: Case, ratios: Sequence[float] = RATIOS, kinds: Sequence[str] = ("raw", "rms")) -> dict[str, Any]:
    """Open additive − open multiplicative gates against lr_a/lr_m, with a as it is and in units of rms(z).

    ``changes_sign``: whether "additive matters more" depends on the ratio or the unit; then it is an artefact of them.
    Trained without the rest of the Run's schedule being touched: the ratio and the unit differ, nothing else does.

    Raises:
        ValueError: an edit without gates of both kinds.
    """
    if (found := sorted(case.run.log_alphas())) != ["additive", "multiplicative"]:
        raise ValueError(f"units: additive are held against multiplicative gates; this edit has {', '.join(found)}")
    rows: list[dict[str, Any]] = []
    for unit in kinds:
        for ratio in ratios:
            edit = fresh(case.run.edit, units=unit)
            run = case.retrain(f"units/{unit}-{ratio:g}", edit=edit, lr_ratio=ratio)
            opened = {kind: int(mask.sum()) for kind, mask in selection.open_gates(run.log_alphas(), case.rule).items()}
            nll = float(case.score(run).nll.mean())
            rows.append({"units": unit, "ratio": ratio, **opened, "nll": nll})
    signs = {np.sign(row["additive"] - row["multiplicative"]) for row in rows}
    return {"rows": rows, "changes_sign": len(signs - {0}) > 1}


def basis(case: Case, seed: int = 0) -> dict[str, Any]:
    """Train again on the same model in another value–output basis (W_V → W_V R, W_O → Rᵀ W_O): the same logits, the
    same offsets possible, another meaning of m. Which heads, and which uses, does it select then?"""
    model = rotated(case.model, seed)  # in float32
    in_dtype(model.hf, case.model)
    run = case.retrain(f"basis-{seed}", model=model)
    endpoint = case.endpoint_on(model)
    gain = paired(endpoint.losses().nll - endpoint.losses(run.edit.restricted()).nll)
    found = dataclasses.replace(described(case, f"basis {seed}", run), gain=gain)
    counts = {name: one.selection(case.rule).counts() for name, one in (("run", case.run), ("rotated", run))}
    return found.to_dict() | {"counts": counts}


def _best_rate(case: Case, edit: JoLA, name: str, rates: Sequence[float], **changes: Any) -> tuple[float, Run]:
    """The rate, in multiples of the Run's, and its training: that of the lowest last validation, on ALL its rows."""
    task = dataclasses.replace(case.task, test=())
    changes = {**TO_THE_END, "max_steps": case.steps, **changes}
    runs = {
        rate: case.train(fresh(edit), f"{name}-{rate:g}", task, lr=case.settings.lr * rate, **changes) for rate in rates
    }
    return min(runs.items(), key=lambda item: float(item[1].metrics["validation_ce"].dropna().iloc[-1]))


def _rates(best: Mapping[str, tuple[float, Run]], rates: Sequence[float]) -> dict[str, Any]:
    """Which rate was the best for each, and for which it is the largest or smallest that was tried."""
    edges = {max(rates), min(rates)} if len(rates) > 1 else set()
    return {
        "rates": {name: rate for name, (rate, _) in best.items()},
        "at_edge": [name for name, (rate, _) in best.items() if rate in edges],
    }


def _behind(row: Encoded, filler: Sequence[int], bos: int | None) -> Encoded:
    """The row with ``filler`` in front of its prompt, behind a BOS if it starts with one."""
    start = int(bos is not None and row.ids[0] == bos)
    ids = (*row.ids[:start], *filler, *row.ids[start:])
    return Encoded(ids, row.n_prompt + len(filler), row.row, row.cut)
