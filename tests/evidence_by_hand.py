"""Evidence made by hand, without a model: an ``evidence.json`` of realistic numbers beside a Run made by hand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from jola_interp import _files
from jola_interp.convergence import FILE, Convergence
from jola_interp.evaluation.metrics import Score
from jola_interp.evidence.audit import Audit, HeadAudit, Number
from jola_interp.evidence.card import NAMES, Card
from jola_interp.evidence.endpoint import Paired
from jola_interp.evidence.nulls import Replicates, Retrained
from jola_interp.evidence.overlap import Overlap
from jola_interp.evidence.refits import Refits
from jola_interp.evidence.rivals import Rival, Rivals
from jola_interp.runs import EVIDENCE, Run, edit_digest

BASE, GAIN = 2.528, 0.92
"""NLL without an edit and what the edit gains, in nats per token."""


def question(run: Run, parts: Iterable[str] = NAMES, **changes: Any) -> Card:
    """Write ``evidence.json`` with some parts into a Run's directory; ``changes`` replace what a part found."""
    everything = {**_cheap(), **_trainings(), **changes}
    found = {name: everything[name] for name in NAMES if name in set(parts) and name in everything}
    settings = {"edit": edit_digest(run.edit)}
    asked = {name: {"steps": 60, "rule": "p_open>0.5"} for name in found}
    about = f"{run.config['model']['name']} on {run.config['task']['name']}, seed 42"
    card = Card(about, found, asked, settings)
    _files.write_json(run.path / EVIDENCE, card.to_dict())
    return card


def stamp(run: Run, decided: int = 534, gap: float = 0.0015) -> Convergence:
    """Write ``convergence.json``: ``decided`` of 540 gates, and CE(sampled) − CE(hard)."""
    ce = {"sampled": 1.6 + gap, "expected": 1.6, "point": 1.6, "hard": 1.6}
    found = Convergence(540, decided, 59.5, 1e-25, ce, 1e-3, 0.4, 32, 4)
    _files.write_json(run.path / FILE, found.to_dict())
    return found


def audited() -> Audit:
    """One head that adds for itself, one whose offset others could host, one that scales only, one that does both."""
    numbers = (
        Number("P(open) additive", "not identified", {"scale": 0.3, "basis": 0.0}, ("scale",)),
        Number("‖Σ_h g_a a W_O‖", "invariant", {"scale": 0.0, "basis": 0.0}, ()),
        Number("‖m‖", "basis-dependent", {"scale": 0.0, "basis": 0.4}, ("basis",)),
        Number("score", "invariant", {"scale": 0.0, "basis": 0.0}, ()),
    )
    delta = Score(0.002, -0.001, 0.005, 16, "t")
    heads = (
        HeadAudit("L1H2", 1, 2, "additive", 1.25, 0.97, 1.1, 0.03, delta, identified=False),
        HeadAudit("L2H1", 2, 1, "additive", 2.5, 0.41, 1.9, 0.6, Score(0.3, 0.2, 0.4, 16, "t"), identified=True),
        HeadAudit("L0H3", 0, 3, "multiplicative"),
        HeadAudit("L2H3", 2, 3, "both", 0.7, 0.93, 1.0, 0.07, delta, identified=False),
    )
    return Audit(
        "tiny", "toy", 16, 0.9, 0.01, 0, numbers, heads, (0.2, 1.3, 2.6), {"scale": 1e-6, "basis": 2e-6}, ("a note",)
    )


def _paired(value: float, half: float = 0.066) -> Paired:
    return Paired(value, value - half, value + half, 1e-9 if abs(value) > half else 0.4, 100, 1.4 * half)


def _gain(value: float, half: float = 0.066) -> dict[str, Any]:
    return _paired(value, half).to_dict()


def _retrained(name: str, gain: float, jaccard: float, decided: float = 0.97) -> Retrained:
    return Retrained(name, _paired(gain), 21, Overlap(jaccard, 4, (23, 21), 0.05, 0.12), decided)


def _cheap() -> dict[str, Any]:
    converged = Convergence(540, 534, 59.5, 1e-25, {"sampled": 1.6015, "hard": 1.6}, 1e-3, 0.4, 32, 4)
    scopes = {"all": 0.92, "not_first": 0.919, "prompt": 0.585, "answer": 0.569}
    top = [
        {"label": label, "kind": kind, "effect": effect, "se": 0.004}
        for label, kind, effect in (("L1H2", "additive", 0.081), ("L2H1", "additive", 0.052), ("L0H3", "mult", 0.011))
    ]
    return {
        "convergence": converged.to_dict() | {"sentence": converged.sentence()},
        "gain": {
            "base": BASE, "edited": BASE - GAIN, "gain": _gain(GAIN), "selected": 23, "testable": True, "label": None,
        },
        "norm_matched": {"gain": _gain(GAIN), "random": [-0.144, -0.186, -0.067, -0.289, -0.195], "p": 1 / 6},
        "scope": {name: _gain(value) for name, value in scopes.items()},
        "prefixes": {
            length: {"base": BASE, "gain": _gain(value)} for length, value in (("0", 0.92), ("64", 0.88), ("256", 0.71))
        },
        "audit": audited().to_dict(),
        "leave_one_out": {"rows": 64, "gates": 25, "clear": 14, "reliability": 0.91, "top": top},
    }  # fmt: skip


def _trainings() -> dict[str, Any]:
    random = tuple(float(BASE - gain) for gain in np.random.default_rng(0).uniform(0.80, 0.95, 19))
    own = BASE - 0.93
    shared = Overlap(0.11, 5, (23, 25), 0.05, 0.08)
    runs = tuple(_retrained(f"seed {seed}", gain, 0.2) for seed, gain in ((1000, 0.9), (1001, 0.88)))
    rows = [
        {"units": unit, "ratio": ratio, "additive": 20, "multiplicative": count, "nll": 1.6}
        for unit in ("raw", "rms") for ratio, count in ((0.0625, 3), (1.0, 11), (16.0, 44))
    ]  # fmt: skip
    return {
        "bias": {
            "nll": {"offsets": 1.6, "bias": 1.61},
            "gain": {"offsets": _gain(0.931), "bias": _gain(0.915)},
            "difference": _gain(-0.016, 0.03),
            "parameters": {"offsets": 17280, "bias": 17280},
            "rates": {"offsets": 1.0, "bias": 4.0},
            "at_edge": ["bias"],
        },
        "label_shuffle": _retrained("label_shuffle", -0.3, 0.14).to_dict(),
        "random_base": _retrained("random_base", 0.1, 0.04).to_dict(),
        "basis": _retrained("basis 0", 0.91, 0.36).to_dict()
        | {"counts": {name: {"none": 247, "additive": 19, "both": 4} for name in ("run", "rotated")}},
        "causal": {"overlap": shared.to_dict(), "sentence": "The task needs 25 of 270 heads of the model as it is."},
        "noise_tax": {
            "tax": _gain(0.02, 0.03), "nll": {}, "rates": {"gated": 1.0, "ungated": 0.25}, "at_edge": [],
        },
        "replicates": Replicates(runs, _paired(0.15, 0.02), 0.5, True, ((0, 2), (1, 0))).to_dict(),
        "refits": Refits(
            heads=((1, 2), (2, 1), (0, 3), (2, 3)), steps=60, base=BASE, selected=own, gain=_paired(BASE - own),
            random=random, shared=(1,) * len(random), p=0.45, advantage=_paired(0.04, 0.02),
            complement=BASE - 0.928, share=0.998,
        ).to_dict(),
        "rivals": _rivals((0.97, 0.95, 0.9)).to_dict(),
        "calibration": {"sentence": "4 of 5 planted heads were found; 2 of 6 findings were not planted."},
        "units": {"rows": rows, "changes_sign": True},
    }  # fmt: skip


def _rivals(shares: tuple[float, ...]) -> Rivals:
    """The Run's own set and others that reach these shares of its gain."""
    sets = tuple(
        Rival(
            ((place, 0), (place, 1)),
            _paired(0.93 * share),
            share,
            _paired(0.93 * (1 - share)),
            _paired(0.93 * (share - 0.9)),
        )
        for place, share in enumerate((1.0, *shares))
    )
    return Rivals(2, 0.9, sets, None, "limit", 4)
