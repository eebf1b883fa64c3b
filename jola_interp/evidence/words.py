"""The answers of the evidence card in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jola_interp.evidence.refits import NOT_LOCALISED
from jola_interp.evidence.rivals import MOST

VERDICTS = {
    "not converged": "The gates did not decide, so nothing was selected.",
    "no gain": "The edit does not lower the NLL of the test rows, or random directions of its size do as well.",
    "untestable": "The right option costs no less than guessing: what was learnt is the format.",
    "format": "What tells the right option from the others did not get cheaper: what was learnt is the format.",
    "not localised": f"Random heads do as well, or all heads left out reach {100 * NOT_LOCALISED:.0f} % of the gain.",
    "one of many": f"At least {MOST} disjoint sets of heads do the task.",
    "replaceable": "Other, disjoint heads do as well: these heads can do the task, but it does not need them.",
    "localised": "These heads do what random heads and all others do not, and no other set replaces them.",
    "open": "What would decide it was not run, or did not come out either way.",
}  # fmt: skip
"""What each verdict means."""
NOT_APPLICABLE = "not_applicable"
"""Under this key a part that could not be had says why."""


def verdict_of(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """The strongest word that the parts allow; see :data:`VERDICTS`. What would refute comes before what is missing."""
    had = {name: found for name, found in parts.items() if NOT_APPLICABLE not in found}
    stamp, gain, refit, rival = (had.get(name) for name in ("convergence", "gain", "refits", "rivals"))
    if stamp is not None and stamp["converged"] is False:
        return "not converged"
    if found := _of_the_gain(gain, had.get("norm_matched")):
        return found
    if refit is not None and refit["localised"] is False:
        return "not localised"
    if rival is not None and rival["u"] == 0:
        return "no gain"
    if rival is not None and rival["u"] > 1:
        return "one of many" if rival["u"] >= MOST else "replaceable"
    alone = rival is not None and rival["u"] == 1 and rival["ended"] == "gain lost"
    whole = alone and gain is not None and refit is not None and refit["localised"] is True
    return "localised" if whole and stamp is not None and stamp["converged"] is True else "open"


def _of_the_gain(gain: Mapping[str, Any] | None, directions: Mapping[str, Any] | None) -> str | None:
    """What there is to localise: None where nothing speaks against it."""
    if gain is None:
        return None
    if gain["gain"]["low"] <= 0 or (directions is not None and max(directions["random"]) >= gain["gain"]["low"]):
        return "no gain"
    if not gain["testable"]:
        return "untestable"
    return "format" if gain["label"] is not None and gain["label_gain"]["low"] <= 0 else None


def in_words(name: str, found: Mapping[str, Any]) -> str:
    """What a part found, in a sentence."""
    if NOT_APPLICABLE in found:
        return f"Could not be had: {found[NOT_APPLICABLE]}"
    return str(found["sentence"]) if "sentence" in found else WORDS[name](found)


def _interval(found: Mapping[str, Any]) -> str:
    return f"{found['value']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"


def _share(value: float | None) -> str:
    return "an unknown share" if value is None else f"{100 * value:.0f} %"


def _p(value: float) -> str:
    return "p < .001" if value < 0.001 else f"p = {value:.3f}"


def _gain_words(found: Mapping[str, Any]) -> str:
    text = f"NLL {found['base']:.3f} → {found['edited']:.3f} nats per token, gain {_interval(found['gain'])}."
    if found.get("label"):
        label = found["label"]
        guess = min(found["chance"], found["majority"])
        text += (
            f" The label tokens alone cost {label['base']:.3f} → {label['edited']:.3f} nats; guessing costs {guess:.3f}"
            f" (ahead by {_interval(found['ahead'])}); the edit lowers them by {_interval(found['label_gain'])}."
        )
    return text


def _norm_words(found: Mapping[str, Any]) -> str:
    best = max(found["random"])
    return (
        f"Gain {_interval(found['gain'])}; best of {len(found['random'])} random edits of the same norms {best:+.3f}."
    )


def _scope_words(found: Mapping[str, Any]) -> str:
    return "Gain " + ", ".join(f"{name.replace('_', ' ')} {one['value']:+.3f}" for name, one in found.items()) + "."


def _prefix_words(found: Mapping[str, Any]) -> str:
    told = (f"{length} tokens {_interval(one['gain'])}" for length, one in found.items())
    return f"Gain behind {'; '.join(told)}."


def _effects_words(found: Mapping[str, Any]) -> str:
    first = ", ".join(f"{row['label']} ({row['kind'][:4]}.) {row['effect']:+.4f}" for row in found["top"][:3])
    reliability = "unknown" if found["reliability"] is None else f"{found['reliability']:.2f}"
    return (
        f"Closing one of {found['gates']} open gates costs more than two standard errors for {found['clear']} "
        f"({found['rows']} rows, reliability {reliability}); the most for {first or 'none'}."
    )


def _bias_words(found: Mapping[str, Any]) -> str:
    return (
        f"Offsets on all heads gain {_interval(found['gain']['offsets'])}, a trained bias of W_O "
        f"{_interval(found['gain']['bias'])}, each at its best learning rate; NLL(offsets) − NLL(bias) = "
        f"{_interval(found['difference'])}.{_edge(found)}"
    )


def _retrained_words(found: Mapping[str, Any]) -> str:
    overlap = found["overlap"]
    return (
        f"It selects {found['selected']} heads ({_share(found['decided'])} of the gates decided); Jaccard with the "
        f"Run's {overlap['jaccard']:.2f}, chance {overlap['chance']:.2f} ({_p(overlap['p'])}); gain "
        f"{_interval(found['gain'])}."
    )


def _basis_words(found: Mapping[str, Any]) -> str:
    counts = {
        name: ", ".join(f"{count} {status}" for status, count in one.items() if status != "none")
        for name, one in found["counts"].items()
    }
    return f"{_retrained_words(found)} Uses here: {counts['run']}; in the other basis: {counts['rotated']}."


def _tax_words(found: Mapping[str, Any]) -> str:
    gated, ungated = found["rates"]["gated"], found["rates"]["ungated"]
    return (
        "CE with gates and λ = 0 less CE without gates, each at its best learning rate "
        f"({gated:g} and {ungated:g} times the Run's): {_interval(found['tax'])} nat.{_edge(found)}"
    )


def _edge(found: Mapping[str, Any]) -> str:
    """A best rate at the edge of those tried may not be the best."""
    return f" At the edge of the rates tried: {', '.join(found['at_edge'])}." if found["at_edge"] else ""


def _units_words(found: Mapping[str, Any]) -> str:
    told = "; ".join(
        f"{row['units']}, lr ratio {row['ratio']:g}: {row['additive']} additive, {row['multiplicative']} multiplicative"
        for row in found["rows"]
    )
    end = "The sign changes: it is." if found["changes_sign"] else "The sign does not change."
    return f"{end} Open gates by ({told})."


def _audit_words(found: Mapping[str, Any]) -> str:
    tags: dict[str, list[str]] = {}
    for row in found["numbers"]:
        tags.setdefault(row["tag"], []).append(row["name"])
    return " ".join(f"{tag.capitalize()}: {', '.join(names)}." for tag, names in tags.items())


WORDS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "gain": _gain_words,
    "norm_matched": _norm_words,
    "scope": _scope_words,
    "prefixes": _prefix_words,
    "audit": _audit_words,
    "leave_one_out": _effects_words,
    "bias": _bias_words,
    "label_shuffle": _retrained_words,
    "random_base": _retrained_words,
    "basis": _basis_words,
    "noise_tax": _tax_words,
    "units": _units_words,
}
