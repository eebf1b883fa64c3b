"""Tokens in a row, each with a number as its colour: one container holds what both renderers draw."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from jola_interp.analysis.tokens import Of, Tokens

UNITS: dict[str, str] = {
    "shift": "‖Σ Δz W_O‖ / ‖stream‖, mean over layers",
    "logp": "Δ log p, edited − base, nats",
}


@dataclass(frozen=True, eq=False)
class TokenStrip:
    """One entry per token that is shown, row after row.

    Attributes:
        kind: ``magnitude`` values in [0, limit] · ``signed`` values around a true zero, in [−limit, limit].
        title: what and whose.
        unit: what the colours mean.
        headings: above each row.
        text: of each token, made visible.
        breaks: [token] whether the line ends behind it.
        row: [token] as an index of ``headings``.
        values: [token]; NaN where there is none.
        apart: [token] whether a token is left out of the scale (a row's first).
        answer: [token] whether it is of the answer.
        hover: numbers of each token, in lines.
        limit: the end of the colour scale.
        notes: sentences below.
    """

    kind: Literal["magnitude", "signed"]
    title: str
    unit: str
    headings: tuple[str, ...]
    text: tuple[str, ...] = field(repr=False)
    breaks: Bool[np.ndarray, " token"] = field(repr=False)
    row: Int[np.ndarray, " token"] = field(repr=False)
    values: Float[np.ndarray, " token"] = field(repr=False)
    apart: Bool[np.ndarray, " token"] = field(repr=False)
    answer: Bool[np.ndarray, " token"] = field(repr=False)
    hover: tuple[str, ...] = field(repr=False)
    limit: float = 1.0
    notes: tuple[str, ...] = ()

    @property
    def levels(self) -> Float[np.ndarray, " token"]:
        """Values as shares of the scale, in [−1, 1] or [0, 1]; NaN where there is none, or where it is apart."""
        shares = np.where(self.apart, np.nan, self.values / self.limit)
        return np.asarray(np.clip(shares, -1.0 if self.kind == "signed" else 0.0, 1.0))

    @property
    def ends(self) -> tuple[str, str]:
        """The ends of the scale in words; ≤ and ≥ where values lie beyond."""
        known = self.values[~self.apart & np.isfinite(self.values)]
        below, above = (known < -self.limit).any(), (known > self.limit).any()
        if self.kind == "magnitude":
            return "0", f"{'≥ ' if above else ''}{self.limit:.3g}"
        return f"{'≤ ' if below else ''}−{self.limit:.3g}", f"{'≥ ' if above else ''}+{self.limit:.3g}"


def token_strip(
    table: Tokens, of: Of = "shift", rows: Iterable[int] | None = None, limit: float | None = None
) -> TokenStrip:
    """The tokens of some rows with one of their two numbers.

    Args:
        table: measured.
        of: ``shift``, or ``logp`` for its change.
        rows: which of the table's; None is all.
        limit: the end of the colour scale (both ends for ``logp``); None is the largest value among these rows, firsts
            left out.

    Raises:
        ValueError: an unknown measure, no row or one that is not there, or a limit that is not above 0.
    """
    values = table.values(of)
    chosen = list(range(len(table.names))) if rows is None else list(rows)
    if not chosen or any(row not in range(len(table.names)) for row in chosen):
        raise ValueError(f"rows must be some of 0 … {len(table.names) - 1}; got {chosen}")
    if limit is not None and not 0 < limit < np.inf:
        raise ValueError(f"limit must be a number above 0; got {limit!r}")
    places = np.concatenate([np.flatnonzero(table.row == row) for row in chosen])
    known = np.abs(values[places][~table.first[places]])
    largest = float(np.nanmax(known, initial=0.0))
    return TokenStrip(
        kind="magnitude" if of == "shift" else "signed",
        title=f"{table.title}: {'shift of the stream' if of == 'shift' else 'change of log p'} at each token",
        unit=UNITS[of],
        headings=tuple(f"{table.names[row]} · {table.cost(row).sentence()}" for row in chosen),
        text=tuple(table.visible[place] for place in places),
        breaks=np.array(["\n" in table.text[place] for place in places], dtype=bool),
        row=np.repeat(np.arange(len(chosen)), [int((table.row == row).sum()) for row in chosen]),
        values=values[places],
        apart=table.first[places],
        answer=~table.prompt[places],
        hover=tuple(_hover(table, int(place)) for place in places),
        limit=limit or largest or 1.0,
        notes=_notes(table, of, places),
    )


def _hover(table: Tokens, place: int) -> str:
    """What is known of a token, in lines."""
    part = "prompt" if table.prompt[place] else "answer"
    lines = [f"{table.visible[place]}   token {table.ids[place]} at {table.position[place]}, {part}"]
    if table.first[place]:
        lines.append("first token: no prediction; its shift is left out of the scale")
    else:
        log_p = f"log p {table.base[place]:.3f} → {table.edited[place]:.3f} nats ({table.change[place]:+.3f})"
        others = ", ".join(f"{value:+.3f}" for value in table.random[:, place] - table.base[place])
        lines.append(f"{log_p}; random directions {others}" if others else log_p)
    beside = "" if np.isnan(table.random_shift[place]) else f"; random directions {table.random_shift[place]:.3g}"
    lines.append(f"shift {table.shift[place]:.3g}{beside}")
    heads = ", ".join(f"{name} {value:.3g}" for name, value in table.top_heads(place))
    lines.append(f"most by {heads}" if heads else "no head writes")
    return "\n".join(lines)


def _notes(table: Tokens, of: Of, places: Int[np.ndarray, " shown"]) -> tuple[str, ...]:
    """What the colours are, what misleads in them, and of how many tokens."""
    counted = places[~table.first[places]]
    count = f"n = {len(counted)} tokens without the first of each row."
    if of == "shift":
        first = ", ".join(f"{value:.3g}" for value in table.shift[places][table.first[places]])
        own, other = (_mean(values[counted]) for values in (table.shift, table.random_shift))
        beside = "" if np.isnan(other) else f"; of random directions of the same norms {other:.3g}"
        return (
            "Local: Δz = edit(z) − z in one edited pass; the stream is the base model's where it enters the block.",
            f"Hatched: a row's first token, where attention rests and the stream is of another size; shift {first}.",
            f"Mean {own:.3g}{beside}. A large shift need not matter: the change of log p says whether it does.",
            count,
        )
    changes = np.abs(table.random - table.base)[:, counted]
    beside = f"; of random directions of the same norms {_mean(changes):.3g} ({len(changes)} draws)"
    return (
        "log p of a token is read at the position before it, where the edit acted; a row's first token has none.",
        f"Mean |Δ log p| {_mean(np.abs(table.change[counted])):.3g} nats{beside if len(changes) else ''}.",
        count,
    )


def _mean(values: np.ndarray) -> float:
    """NaN of nothing, without a warning."""
    return float(values.mean()) if values.size else float("nan")
