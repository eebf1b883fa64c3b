"""Where a head looks before and after an edit: patterns [query, key], and how much of the change any edit would make.

    distance[q] = ½ Σ_k |p_edited(k | q) − p_base(k | q)|           total variation, in [0, 1]
    entropy[q]  = −Σ_k p(k | q) ln p(k | q)                         nats

An edit acts on z, behind the pattern: what it does at a head, or at any head of the same layer, cannot change that
head's pattern for the text at hand. A pattern moves only through what the edit does in LOWER layers; in layer 0 never.
The first query sees the first token alone, so it is left out of every mean. The first token as a KEY is where attention
rests ("attention sink", Xiao et al. 2024, arXiv 2309.17453): how much of it goes there is told apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float

from jola_interp.analysis.attention_weights import patterns
from jola_interp.analysis.grids import GridMap, Sheet, Ticks, reach
from jola_interp.analysis.rows import Rows, Split, prepared
from jola_interp.analysis.token_texts import token_texts, visible
from jola_interp.analysis.tokens import free_text
from jola_interp.edits.base import Edit, parse_units, unit_label
from jola_interp.edits.jola import JoLA
from jola_interp.evaluation.side_effects import random_control
from jola_interp.models import Model

if TYPE_CHECKING:
    import pandas as pd

    from jola_interp.runs import Run
    from jola_interp.tasks import Task

TABLE = "text-attention"
"""The name under which a Run keeps the table: it holds text from the data."""
MOST_TICKS, LONGEST_TICK = 60, 12
"""Token texts along an axis, and their characters."""
FAINTEST = 1e-3
"""The lower end of logarithmic colours."""
MOST_LABELS = 128
"""Longer rows have no text on hovering: it would be tokens² strings."""


@dataclass(frozen=True, eq=False)
class AttentionPatterns:
    """Patterns of some heads on some rows; made by :func:`attention`.

    Attributes:
        title: model, task or "free text".
        names: of the rows.
        heads: labels.
        text: of each row's tokens, made visible.
        before, after: [row, head, query, key] patterns of the base and of the edited model; NaN beyond a row's tokens.
        random_distance: [draw, row, head, query] total variation between the base pattern and that under an edit with
            vectors of the same norms and random directions; NaN beyond a row's tokens.
        random_first, random_entropy: [draw, row, head, query] attention to the first token, and entropy, under those.
        acting: [head] how many of the lower layers the edit acts in: 0 says that the pattern cannot change.
    """

    title: str
    names: tuple[str, ...]
    heads: tuple[str, ...]
    text: tuple[tuple[str, ...], ...] = field(repr=False)
    before: Float[np.ndarray, "row head query key"] = field(repr=False)
    after: Float[np.ndarray, "row head query key"] = field(repr=False)
    random_distance: Float[np.ndarray, "draw row head query"] = field(repr=False)
    random_first: Float[np.ndarray, "draw row head query"] = field(repr=False)
    random_entropy: Float[np.ndarray, "draw row head query"] = field(repr=False)
    acting: tuple[int, ...] = ()

    @property
    def change(self) -> Float[np.ndarray, "row head query key"]:
        """``after`` − ``before``."""
        return np.asarray(self.after - self.before)

    @property
    def distance(self) -> Float[np.ndarray, "row head query"]:
        """Total variation between the two patterns of each query; NaN beyond a row's tokens."""
        return total_variation(self.before, self.after)

    def pattern(
        self, row: int, head: int | str
    ) -> tuple[Float[np.ndarray, "query key"], Float[np.ndarray, "query key"]]:
        """(before, after) of one head on one row, without padding.

        Args:
            row: its place in the table.
            head: its place, or its label.

        Raises:
            ValueError: a row or head that is not in the table.
        """
        place = self.place(head)
        self._check_row(row)
        length = len(self.text[row])
        return self.before[row, place, :length, :length], self.after[row, place, :length, :length]

    def place(self, head: int | str) -> int:
        """Of a head, given so or by its label. Raises ValueError for one that is not in the table."""
        found = self.heads.index(head) if head in self.heads else head
        if not isinstance(found, int) or not 0 <= found < len(self.heads):
            raise ValueError(f"head must be one of {', '.join(self.heads)}; got {head!r}")
        return found

    def top(self, k: int) -> AttentionPatterns:
        """The ``k`` heads whose patterns change most: mean distance over rows and queries."""
        means = np.array([_mean(self.distance[:, head, 1:]) for head in range(len(self.heads))])
        order = np.argsort(-np.nan_to_num(means, nan=-1.0), kind="stable")[: max(k, 0)]
        return AttentionPatterns(
            self.title,
            self.names,
            tuple(self.heads[i] for i in order),
            self.text,
            self.before[:, order],
            self.after[:, order],
            self.random_distance[:, :, order],
            self.random_first[:, :, order],
            self.random_entropy[:, :, order],
            tuple(self.acting[i] for i in order),
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per row and head: means over queries but the first; those of random edits are means over draws.

        Columns: row, head, n (queries), distance and distance_sd (over queries), distance_random and
        distance_random_sd (over draws), then for first (attention to the first token) and entropy: before, after,
        random. NaN where a row has one token, or where there was no draw.
        """
        import pandas as pd

        places = [(row, head) for row in range(len(self.names)) for head in range(len(self.heads))]
        return pd.DataFrame([self.summary(row, head) for row, head in places])

    def summary(self, row: int, head: int) -> dict[str, Any]:
        """One row of :meth:`to_frame`."""
        queries = slice(1, len(self.text[row]))
        distance = self.distance[row, head, queries]
        draws = np.array([_mean(values[row, head, queries]) for values in self.random_distance])
        found: dict[str, Any] = {
            "row": self.names[row],
            "head": self.heads[head],
            "n": len(distance),
            "distance": _mean(distance),
            "distance_sd": _sd(distance),
            "distance_random": _mean(draws),
            "distance_random_sd": _sd(draws),
        }
        for name, of, random in (("first", _first, self.random_first), ("entropy", entropy, self.random_entropy)):
            found[f"{name}_before"] = _mean(of(self.before[row, head, queries]))
            found[f"{name}_after"] = _mean(of(self.after[row, head, queries]))
            found[f"{name}_random"] = _mean(random[:, row, head, queries])
        return found

    def _check_row(self, row: int) -> None:
        if row not in range(len(self.names)):
            raise ValueError(f"row must be one of 0 … {len(self.names) - 1}; got {row!r}")


def attention(
    run: Run,
    rows: str | int | Sequence[str] | Sequence[int],
    heads: str | tuple[int, int] | Iterable[str | tuple[int, int]],
    model: str | Model | None = None,
    *,
    task: str | Task | None = None,
    split: Split = "test",
    wrapper: str = "run",
    controls: int = 5,
    seed: int = 0,
) -> AttentionPatterns:
    """Patterns of some heads under the base and the edited model, and what random edits of the same norms do to them.

    Each row is read alone, under the model's own attention as it computes it when asked for weights: a plain Hugging
    Face model is switched to eager attention for the passes (its logits are held against those before) and back, also
    after an exception; a booted one is read at TransformerLens' ``hook_pattern``.
    Costs 2 + ``controls`` passes a row (3 + ``controls`` on a plain model), whose patterns of all heads in the layers
    asked for are held at once: layers · heads · tokens² numbers.

    Args:
        run: whose kept edit.
        rows: texts of your own, or rows of the task by number, prompt and answer; one or several.
        heads: "L3H7" or (3, 7), or several; a Selection.
        model: None is the Run's own.
        task, split: where numbered rows are from; a name or a Task.
        wrapper: what stands around texts (see :func:`~jola_interp.analysis.tokens.tokens_of`).
        controls: how many edits with vectors of the same norms and random directions to run.
        seed: of the first of them.

    Raises:
        ValueError: no or unknown heads or rows, numbered rows without a task, or a model with an edit on it.
        AttentionError: the architecture does not give its weights, or gives other logits under eager attention.
    """
    if isinstance(controls, bool) or not isinstance(controls, int) or controls < 0:
        raise ValueError(f"controls must be an integer ≥ 0; got {controls!r}")
    units = _units(heads, run)
    read, names, title = _rows(run, rows, model, task, split, wrapper)
    edits: list[Edit | None] = [None, run.edit, *(random_control(run.edit, seed + i) for i in range(controls))]
    before, after, *random = _padded(patterns(read, edits, units))
    empty = np.empty((0, *before.shape[:-1]))
    return AttentionPatterns(
        title,
        names,
        heads=tuple(unit_label("heads", *unit) for unit in units),
        text=tuple(
            tuple(map(visible, token_texts(row.ids, read.model.tokenizer)))  # type: ignore[arg-type]
            for row in read.encoded
        ),
        before=before,
        after=after,
        random_distance=np.array([total_variation(before, other) for other in random]) if random else empty,
        random_first=np.array([_first(other) for other in random]) if random else empty,
        random_entropy=np.array([entropy(other) for other in random]) if random else empty,
        acting=_acting(run.edit, units),
    )


def attention_sheet(
    table: AttentionPatterns, row: int = 0, heads: Iterable[int | str] | None = None, log: bool = False
) -> Sheet:
    """Before, after and change of each head on one row; a row of maps per head, queries from the top down.

    Args:
        table: measured.
        row: which row of the table.
        heads: which of its heads; None is all.
        log: weights on logarithmic colours from ``FAINTEST`` to 1: most are far below the few that 0 to 1 shows.

    Raises:
        ValueError: a row or head that is not in the table.
    """
    table._check_row(row)
    chosen = [table.place(head) for head in (range(len(table.heads)) if heads is None else heads)]
    if not chosen:
        raise ValueError("heads: none is left to show")
    pairs = [table.pattern(row, head) for head in chosen]
    bounds = reach("signed", *(after - before for before, after in pairs))
    text, draws = table.text[row], len(table.random_distance)
    panels = [_maps(text, table.heads[head], *pair, bounds, log) for head, pair in zip(chosen, pairs, strict=True)]
    notes = [_sentence(table.summary(row, head), table.acting[head], draws) for head in chosen]
    notes.append("An edit acts behind the pattern: a head's pattern changes only through edits in layers below it.")
    spread = f", of random edits of the same norms over {draws} draws" if draws else ""
    notes.append(f"Means ± sd over the {len(text) - 1} queries but the first, which sees one token{spread}.")
    return Sheet(
        tuple(panels),
        f"{table.title}: attention on {table.names[row]}",
        tuple(notes),
        headings=("base", "edited", "edited − base"),
        names=tuple(table.heads[head] for head in chosen),
    )


# -- numbers -----------------------------------------------------------------------------------------------------------


def total_variation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """½ Σ |a − b| over the last axis; NaN only where all of it is NaN."""
    gaps = np.abs(a - b)
    known = np.isfinite(gaps)
    return np.where(known.any(-1), 0.5 * np.where(known, gaps, 0.0).sum(-1), np.nan)


def entropy(patterns: np.ndarray) -> np.ndarray:
    """−Σ p ln p over the last axis, in nats, with 0 ln 0 = 0; NaN only where all of it is NaN."""
    known = np.isfinite(patterns)
    weights = np.where(known & (patterns > 0), patterns, 1.0)  # 1 ln 1 = 0
    return np.where(known.any(-1), np.abs((weights * np.log(weights)).sum(-1)), np.nan)


def _first(patterns: np.ndarray) -> np.ndarray:
    return np.asarray(patterns[..., 0])


def _mean(values: np.ndarray) -> float:
    """Of what is not NaN; NaN of nothing, without a warning."""
    known = values[np.isfinite(values)].astype(float)
    return float(known.mean()) if known.size else float("nan")


def _sd(values: np.ndarray) -> float:
    known = values[np.isfinite(values)].astype(float)
    return float(known.std(ddof=1)) if known.size > 1 else float("nan")


# -- arguments and results ---------------------------------------------------------------------------------------------


def _units(heads: str | tuple[int, int] | Iterable[str | tuple[int, int]], run: Run) -> list[tuple[int, int]]:
    pair = isinstance(heads, tuple) and len(heads) == 2 and all(isinstance(x, int) for x in heads)
    given = [heads] if isinstance(heads, str) or pair else list(heads)
    units = list(dict.fromkeys(parse_units(given, run.edit.shape)))  # type: ignore[arg-type]
    if not units:
        raise ValueError("heads must be one head or more; got none")
    return units


def _rows(
    run: Run,
    rows: str | int | Sequence[str] | Sequence[int],
    model: str | Model | None,
    task: str | Task | None,
    split: Split,
    wrapper: str,
) -> tuple[Rows, tuple[str, ...], str]:
    """(the rows, their names, a title)."""
    given: list[Any] = [rows] if isinstance(rows, str | int) else list(rows)
    name, own = run.config["model"]["name"], run.config["task"]["name"]
    if given and all(isinstance(row, str) for row in given):
        read, _ = free_text(run, given, model, wrapper, "attention")
        return read, tuple(f"text {i}" for i in range(len(given))), f"{name} on free text, edit of {own}"
    if not given or any(isinstance(row, bool) or not isinstance(row, int) or row < 0 for row in given):
        raise ValueError(f"rows must be texts, or numbers of rows (0, 1, …), one or more; got {rows!r}")
    if task is None:
        raise ValueError("task: rows given by number need the task that they are from")
    read = prepared(run, task, model, split=split, rows=max(given) + 1, what="attention")
    if max(given) >= len(read.examples):
        raise ValueError(f"rows: the {split} split has rows 0 … {len(read.examples) - 1}; got {max(given)}")
    names = tuple(read.examples[row].id or f"{split} row {row}" for row in given)
    kept = replace(
        read, examples=tuple(read.examples[row] for row in given), encoded=tuple(read.encoded[row] for row in given)
    )
    return kept, names, f"{name} on {read.task.name}, {split}"


def _padded(found: Sequence[Sequence[np.ndarray]]) -> Float[np.ndarray, "edit row head query key"]:
    """Patterns [row][edit] [head, query, key] as one array, NaN beyond a row's tokens."""
    longest = max(of_edits[0].shape[-1] for of_edits in found)
    shape = (len(found[0]), len(found), len(found[0][0]), longest, longest)
    whole = np.full(shape, np.nan, dtype=np.float32)
    for row, of_edits in enumerate(found):
        length = of_edits[0].shape[-1]
        whole[:, row, :, :length, :length] = np.stack(of_edits)
    return whole


def _acting(edit: JoLA, units: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """In how many layers below each unit an edit changes anything at inference."""
    moving = torch.zeros(edit.shape.layers, dtype=torch.bool)
    for site in edit.masks():
        for gated in edit.at_inference(site).values():
            moving |= gated.ne(0).flatten(1).any(1).cpu()
    return tuple(int(moving[:layer].sum()) for layer, _ in units)


def _maps(
    text: Sequence[str], head: str, before: np.ndarray, after: np.ndarray, bounds: tuple[float, float], log: bool
) -> tuple[GridMap, GridMap, GridMap]:
    """The three maps of one head; keys behind a query are blank."""
    length = len(text)
    past = np.tril(np.ones((length, length), dtype=bool))
    labels = np.full((length, length), "", dtype=object)
    if length <= MOST_LABELS:
        named = [f"{i} {one}" for i, one in enumerate(text)]
        labels[:] = [[f"{query} → {key}" for key in named] for query in named]
    ticks = _ticks(text)
    given: dict[str, Any] = {
        "labels": labels, "mask": past, "absent": "later than the query", "x_label": "key", "y_label": "query",
        "x_ticks": ticks, "y_ticks": ticks, "flipped": True,
    }  # fmt: skip
    scale: dict[str, Any] = {"range": (0.0, 1.0), "kind": "probability"}
    if log:
        scale = {"range": (FAINTEST, 1.0), "kind": "magnitude", "log": True}
    whole: dict[str, Any] = {**given, **scale, "unit": "attention"}
    change: dict[str, Any] = {**given, "range": bounds, "kind": "signed", "unit": "edited − base"}
    return (
        GridMap(np.where(past, before, np.nan), f"{head}, base", **whole),
        GridMap(np.where(past, after, np.nan), f"{head}, edited", **whole),
        GridMap(np.where(past, after - before, np.nan), f"{head}, edited − base", **change),
    )


def _ticks(text: Sequence[str]) -> Ticks:
    """Every token's text, or, above ``MOST_TICKS`` of them, those at even steps."""
    step = -(-len(text) // MOST_TICKS)
    short = [one if len(one) <= LONGEST_TICK else f"{one[: LONGEST_TICK - 1]}…" for one in text]
    return tuple((float(i), short[i]) for i in range(0, len(text), step))


def _sentence(found: Mapping[str, Any], acting: int, draws: int) -> str:
    """A head's numbers in words, each beside its null."""

    def beside(name: str, sd: bool = False) -> str:
        spread = f" ± {found[f'{name}_random_sd']:.2g}" if sd and draws > 1 else ""
        return f" (random edits {found[f'{name}_random']:.3g}{spread})" if draws else ""

    if not found["n"]:
        return f"{found['head']}: a single token, nothing to compare."
    spread = f" ± {found['distance_sd']:.2g}" if found["n"] > 1 else ""
    below = f"the edit acts in {acting} of the layers below" if acting else "no edit acts below it, so nothing can move"
    return (
        f"{found['head']}: total variation {found['distance']:.3g}{spread}{beside('distance', sd=True)}; "
        f"to the first token {found['first_before']:.3g} → {found['first_after']:.3g}{beside('first')}; "
        f"entropy {found['entropy_before']:.3g} → {found['entropy_after']:.3g} nats{beside('entropy')}; {below}."
    )
