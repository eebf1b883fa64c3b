"""How few heads are enough: what an edit gains with its first k heads alone, and without them, in several orders.

    keep[k] = NLL(base) − NLL(the first k heads of the edit alone)        nats per answer token
    drop[k] = NLL(base) − NLL(the edit without its first k heads)

A head is kept or dropped with both its gates. Keeping all is the edit and dropping all the base model, whatever the
order; an order is worth what it keeps beyond random ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from jola_interp import selection
from jola_interp.analysis.effects import (
    Effects,
    Gate,
    collated,
    exact_effects,
    marked_losses,
    progress,
    read_at,
    select_gates,
)
from jola_interp.analysis.rows import Rows, Split, prepared
from jola_interp.analysis.summary import title_of
from jola_interp.analysis.tables import about_table, stored
from jola_interp.analysis.usage import KINDS, Usage, usage
from jola_interp.backends import Attachment, BackendName, attach
from jola_interp.backends.restart import Recording, recorded, restarted
from jola_interp.batching import Encoded, batches_of
from jola_interp.edits.base import Site, unit_label
from jola_interp.edits.jola import JoLA
from jola_interp.evaluation.likelihood import batch_losses
from jola_interp.evaluation.metrics import resampled_sums
from jola_interp.evidence.endpoint import paired
from jola_interp.models import Model
from jola_interp.runs import Run, edit_digest
from jola_interp.tasks import Task

if TYPE_CHECKING:
    import pandas as pd

Order = Literal["p_open", "size", "effect"]
What = Literal["keep", "drop"]
Unit = tuple[Site, int, int]
ORDERS: tuple[Order, ...] = get_args(Order)
RANDOM = "random"
NAMES = {"p_open": "P(open)", "size": "size", "effect": "exact effect"}
"""What orders are called in words."""
MOST_SIZES = 10

# -- keep and drop: the table --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Refitted:
    """What the refit null of an evidence card gains: trainings without gates, from scratch, on fixed sets of heads.

    Attributes:
        heads: how many were selected.
        selected: gain of a refit of the selected heads, nats per token over all test rows.
        random: of random sets with as many heads in each layer.
        complement: of all other heads; None where there are none.
    """

    heads: int
    selected: float
    random: tuple[float, ...]
    complement: float | None

    def sentence(self) -> str:
        """The gains in words."""
        low, high = min(self.random), max(self.random)
        rest = "" if self.complement is None else f", all other heads {self.complement:+.3f}"
        return (
            f"Refitted without gates, the {self.heads} selected heads gain {self.selected:+.3f} nat (all test rows), "
            f"{len(self.random)} random sets of the same layer profile {low:+.3f} to {high:+.3f}{rest}."
        )


@dataclass(frozen=True)
class HeadsFor:
    """The fewest heads that keep a share of the gain, out of the sizes that were measured.

    Attributes:
        order: in which order heads were added.
        share: of the whole edit's gain.
        heads: the smallest measured size that reaches it; None where the edit gains nothing.
        above: the measured size before it: the least number lies in (above, heads] if the curve rises there.
        low, high: 95 % bootstrap interval of ``heads`` over rows.
    """

    order: str
    share: float
    heads: int | None
    above: int | None
    low: int | None
    high: int | None

    def __str__(self) -> str:
        if self.heads is None:
            return "none"
        least = self.heads if self.above is None else self.above + 1  # between two measured sizes nothing is known
        return f"{self.heads if least == self.heads else f'{least} to {self.heads}'} [{self.low}, {self.high}]"


@dataclass(frozen=True, eq=False)
class Curve:
    """A gain over the number of heads kept or dropped, with the ends of its 95 % interval."""

    heads: Int[np.ndarray, " size"]
    gain: Float[np.ndarray, " size"]
    low: Float[np.ndarray, " size"]
    high: Float[np.ndarray, " size"]


@dataclass(frozen=True, eq=False)
class KeepCurves:
    """What parts of an edit gain, head after head. Made by :func:`keep_curves`.

    Attributes:
        title: model and task.
        labels: the heads (and MLPs) that act at inference, by layer.
        sizes: numbers of heads, from 0 to all.
        orders: name of an order to places in ``labels``, the first to be kept or dropped first.
        keep, drop: order to gain of the first k heads alone, and of the edit without them, for each k of ``sizes``.
        random_keep, random_drop: the same for random orders.
        base, edited: NLL of each row's answer without and with the whole edit, nats per token.
        selected: how many of the heads have a gate with P(open) > .5; None without gates.
        ordered_on: rows on which the effects were measured that gave the order by effect; 0 without it.
        refits: the refit null of the evidence card; None where it was not run.
    """

    title: str
    labels: tuple[str, ...]
    sizes: Int[np.ndarray, " size"]
    orders: Mapping[str, Int[np.ndarray, " head"]] = field(repr=False)
    keep: Mapping[str, Float[np.ndarray, "size row"]] = field(repr=False)
    drop: Mapping[str, Float[np.ndarray, "size row"]] = field(repr=False)
    random_keep: Float[np.ndarray, "draw size row"] = field(repr=False)
    random_drop: Float[np.ndarray, "draw size row"] = field(repr=False)
    base: Float[np.ndarray, " row"] = field(repr=False)
    edited: Float[np.ndarray, " row"] = field(repr=False)
    selected: int | None = None
    ordered_on: int = 0
    refits: Refitted | None = None

    @property
    def gain(self) -> Float[np.ndarray, " row"]:
        """NLL(base) − NLL(edited) of each row."""
        return np.asarray(self.base - self.edited)

    def top(self, k: int, order: str | None = None) -> tuple[str, ...]:
        """Labels of the first ``k`` heads of an order; None is the first order."""
        name = self._order(order)
        if name == RANDOM:
            raise ValueError("top: a random order has no first heads")
        return tuple(self.labels[place] for place in self.orders[name][:k])

    def curve(self, order: str | None = None, what: What = "keep") -> Curve:
        """Mean gain over rows with Student's interval; of "random", over draws, with the middle 95 % of the draws.

        Raises:
            ValueError: an order that was not measured, or neither keep nor drop.
        """
        if what not in get_args(What):
            raise ValueError(f"what must be keep or drop; got {what!r}")
        name = self._order(order)
        if name == RANDOM:
            draws = (self.random_keep if what == "keep" else self.random_drop).mean(2)  # [draw, size]
            low, high = np.quantile(draws, [0.025, 0.975], axis=0)
            return Curve(self.sizes, draws.mean(0), low, high)
        values = (self.keep if what == "keep" else self.drop)[name]
        half = _half_interval(values)
        mean = values.mean(1)
        return Curve(self.sizes, mean, mean - half, mean + half)

    def heads_for(self, share: float = 0.95, order: str | None = None, seed: int = 0) -> HeadsFor:
        """The fewest heads, first by an order, that keep ``share`` of the gain; "random" is the mean of those orders.

        The rows are resampled together for part and whole. A resample in which the edit gains nothing counts as
        needing all heads.

        Raises:
            ValueError: a share outside (0, 1], or an order that was not measured.
        """
        if not 0 < share <= 1:
            raise ValueError(f"share must be in (0, 1]; got {share!r}")
        name = self._order(order)
        kept = self.random_keep.mean(0) if name == RANDOM else self.keep[name]
        if not self.gain.mean() > 0:
            return HeadsFor(name, share, None, None, None, None)
        place = int(_first_at(kept.mean(1)[None], share)[0])
        resampled = self.sizes[_first_at(resampled_sums(kept.T, seed), share)]
        low, high = (int(value) for value in np.quantile(resampled, [0.025, 0.975], method="nearest"))
        above = int(self.sizes[place - 1]) if place else None
        return HeadsFor(name, share, int(self.sizes[place]), above, low, high)

    def p(self, order: str | None = None) -> float:
        """(1 + #random orders that keep at least as much)/(1 + #random orders).

        What is kept is the mean gain over the measured sizes between none and all. NaN where there are none.
        """
        name = self._order(order)
        if len(self.sizes) < 3 or name == RANDOM:
            return math.nan
        own = self.keep[name][1:-1].mean()
        others = self.random_keep[:, 1:-1].mean((1, 2))
        return float((1 + (others >= own).sum()) / (1 + len(others)))

    def sentences(self) -> tuple[str, ...]:
        """What the edit gains, how many heads keep it in each order and at random, and the refit null."""
        if len(self.gain) < 2:
            return (f"The {len(self.labels)} heads that act gain {self.gain.mean():+.3f} nat per token on one row.",)
        told = [
            f"The {len(self.labels)} heads that act gain {paired(self.gain)} nat per token ({len(self.gain)} rows)."
        ]
        if not self.gain.mean() > 0:
            return (*told, "There is no gain to keep.", *self._refit_words())
        parts = [f"{self.heads_for(order=name)} by {NAMES[name]} (p = {self.p(name):.2g})" for name in self.orders]
        told.append(
            f"95 % of it is kept by {', '.join(parts)} and {self.heads_for(order=RANDOM)} in random order (heads, "
            f"95 % over rows, out of sizes {', '.join(map(str, self.sizes))}; p against {len(self.random_keep)} "
            "random orders)."
        )
        return (*told, *self._refit_words())

    def sentence(self) -> str:
        """:meth:`sentences` as one text."""
        return " ".join(self.sentences())

    def notes(self) -> tuple[str, ...]:
        """What must be known to read the curves."""
        found = [
            f"Gain: NLL(base) − NLL(part of the edit), {len(self.base)} rows; bars 95 % over rows. Grey: "
            f"{len(self.random_keep)} random orders of the {len(self.labels)} heads that act, mean and middle 95 %."
        ]
        if self.ordered_on:
            found.append(f"The order by effect is from {self.ordered_on} other rows: on its own rows it would flatter.")
        if "p_open" in self.orders:
            found.append("P(open) is of a head's larger gate.")
        if self.selected is not None:
            found.append(f"Dotted upright: {self.selected} heads, as many as have a gate with P(open) > .5.")
        found.append(
            "Heads left out were trained to be there: what is lost is not what training without them would lose."
        )
        return (*found, *self._refit_words())

    def to_frame(self) -> pd.DataFrame:
        """One row per what (keep, drop), order and size: what, order, heads, gain, low, high."""
        import pandas as pd

        frames = []
        for what in get_args(What):
            for name in (*self.orders, RANDOM):
                found = self.curve(name, what)
                columns = {"heads": found.heads, "gain": found.gain, "low": found.low, "high": found.high}
                frames.append(pd.DataFrame({"what": what, "order": name, **columns}))
        return pd.concat(frames, ignore_index=True)

    def _order(self, name: str | None) -> str:
        found = next(iter(self.orders)) if name is None else name
        if found not in (*self.orders, RANDOM):
            raise ValueError(f"order must be one of {', '.join((*self.orders, RANDOM))}; got {found!r}")
        return found

    def _refit_words(self) -> tuple[str, ...]:
        return () if self.refits is None else (self.refits.sentence(),)


# -- keep and drop: measured ---------------------------------------------------------------------------------------


def keep_curves(
    run: Run,
    task: str | Task,
    model: str | Model | None = None,
    *,
    split: Split = "test",
    rows: int = 32,
    orders: Sequence[Order] | None = None,
    sizes: Sequence[int] | None = None,
    draws: int = 20,
    seed: int = 0,
    naive: bool = False,
    batch_size: int = 16,
) -> KeepCurves:
    """Gain of the first k heads of an edit alone, and of the edit without them, in several orders and at random.

    Heads are ordered by P(open) of their larger gate, by size (what their gates write over the stream's norm: the
    table ``usage``, measured here where the Run does not hold it) and by the exact effects of their gates, summed.
    Effects found on some rows are the better for the luck of these rows: half of the rows give the order (with what
    the Run's table ``effects`` holds beyond them), and all curves are of the other half.

    Costs at most 2·(orders + draws)·(sizes − 2) + 2 passes over the rows of the curves, each from the lowest layer at
    which the part differs from the whole edit or from none (random parts save little), and half a pass over the other
    rows for each gate that acts where the Run holds no table ``effects``.

    Args:
        run: whose kept edit is taken apart.
        task: whose rows to use, encoded as in training; a name or a Task.
        model: None is the Run's own.
        split: ``test`` or ``validation``.
        rows: the first so many rows of it.
        orders: out of ``p_open``, ``size`` and ``effect``; None is all that this edit has.
        sizes: numbers of heads; none and all are added. None is ten, or fewer, growing by a factor.
        draws: random orders.
        seed: of these.
        naive: run the whole model for every part.
        batch_size: rows in one pass; the states of one batch are kept twice, layers × rows × positions × d_model
            numbers each.

    Raises:
        ValueError: a field outside its range, an order that the edit does not have, an empty split, or an edit that is
            attached to the model already.
        RestartError: the architecture does not allow restarts; ``naive=True`` needs none.
    """
    _require_integers(rows=(rows, 1), draws=(draws, 1), seed=(seed, 0), batch_size=(batch_size, 1))
    wanted = _wanted(run.edit, orders)
    units = acting_units(run.edit)
    grid = _grid(sizes, len(units))
    read = prepared(run, task, model, split=split, rows=rows, what="keep_curves")
    if "effect" in wanted and len(read.encoded) < 2:
        raise ValueError(f"rows: the order by effect takes half of them, so 2 or more are needed; got {rows}")
    ordering = len(read.encoded) // 2 if "effect" in wanted else 0
    scores, ordered_on = _scores(read, units, wanted, split, ordering, naive, batch_size)
    named = {name: np.argsort(-score, kind="stable") for name, score in scores.items()}
    generator = np.random.default_rng(seed)
    shuffled = [generator.permutation(len(units)) for _ in range(draws)]
    parts = np.stack([_nested(order, grid) for order in (*named.values(), *shuffled)])  # [order, what, size, unit]
    kept = np.concatenate([np.zeros((1, len(units)), bool), np.ones((1, len(units)), bool), _flat(parts)])
    losses = part_losses(
        run.edit, read.model, read.encoded[ordering:], kept, units,
        backend=read.backend, naive=naive, batch_size=batch_size,
    )  # fmt: skip
    gains = (losses[0] - losses[2:]).reshape(*parts.shape[:3], -1)
    return KeepCurves(
        title=title_of(run),
        labels=tuple(unit_label(*unit) for unit in units),
        sizes=grid,
        orders=named,
        keep={name: gains[place, 0] for place, name in enumerate(named)},
        drop={name: gains[place, 1] for place, name in enumerate(named)},
        random_keep=gains[len(named) :, 0],
        random_drop=gains[len(named) :, 1],
        base=losses[0],
        edited=losses[1],
        selected=int((_p_open(run, units) > 0.5).sum()) if run.edit.log_alphas() else None,
        ordered_on=ordered_on,
        refits=refitted(run),
    )


def refitted(run: Run) -> Refitted | None:
    """The refit null of the Run's evidence card; None where there is none, or it is of another edit."""
    from jola_interp.evidence.card import Card

    card = Card.load(run)
    if card is None or card.settings.get("edit") != edit_digest(run.edit) or "refits" not in card.had:
        return None
    found = card.had["refits"]
    base, rest = found["base"], found["complement"]
    random = tuple(base - value for value in found["random"])
    return Refitted(len(found["heads"]), base - found["selected"], random, None if rest is None else base - rest)


def acting_units(edit: JoLA) -> tuple[Unit, ...]:
    """The heads (and MLPs) with a gate that changes anything at inference, by layer."""
    return tuple(dict.fromkeys((gate.site, gate.layer, gate.unit) for gate in select_gates(edit) if gate.acts))


@torch.no_grad()
def part_losses(
    edit: JoLA,
    model: Model,
    rows: Sequence[Encoded],
    kept: Bool[np.ndarray, "part unit"],
    units: Sequence[Unit],
    *,
    backend: BackendName = "lens",
    naive: bool = False,
    batch_size: int = 16,
) -> Float[np.ndarray, "part row"]:
    """Mean NLL of each row's answer under parts of an edit, nats per token; equal parts run once.

    Args:
        edit: the whole.
        model: without an edit.
        rows: encoded rows.
        kept: True where a part has a unit; all other units of the edit are left out of every part.
        units: what the columns are, all that act.
        backend, naive, batch_size: as for :func:`keep_curves`.
    """
    different, places = _distinct(kept)
    losses = np.zeros((len(different), len(rows)))
    board = _Board(edit.restricted().to(model.device).requires_grad_(False), units)
    passes = _whole_passes if naive else _restarted_passes
    with attach(board.edit, model, backend) as attached, progress(len(different), rows, batch_size, "parts") as bar:
        for chunk in batches_of([len(row.ids) for row in rows], batch_size):
            some = [rows[i] for i in chunk]
            for place, part in enumerate(passes(board, attached, some, different)):
                losses[place, chunk] = part
                bar.update()
        attached.check_live()
    return np.asarray((losses / np.array([row.n_answer for row in rows]))[places])


class _Board:
    """An edit whose units are switched on and off, in place."""

    def __init__(self, edit: JoLA, units: Sequence[Unit]):
        self.edit, self.units = edit, units
        self.layers = np.array([layer for _, layer, _ in units], dtype=np.int64)
        self.vectors = [
            (cast(Site, site), vector.data, vector.data.clone())
            for site in edit.sites
            for vector in edit.site(cast(Site, site)).vectors.values()
        ]

    def keep(self, chosen: Bool[np.ndarray, " unit"]) -> None:
        """Let these units act and no others."""
        masks = {site: torch.zeros(live.shape[:2]) for site, live, _ in self.vectors}
        for (site, layer, unit), wanted in zip(self.units, chosen, strict=True):
            masks[site][layer, unit] = float(wanted)
        for site, live, whole in self.vectors:
            live.copy_(whole * masks[site].to(whole)[..., None])

    def start(self, chosen: Bool[np.ndarray, " unit"], depth: int) -> tuple[int, int]:
        """(lowest layer that differs from no edit, lowest that differs from the whole); ``depth`` where none does."""
        inside, outside = self.layers[chosen], self.layers[~chosen]
        return (int(inside.min()) if len(inside) else depth), (int(outside.min()) if len(outside) else depth)


def _whole_passes(
    board: _Board, attached: Attachment, rows: list[Encoded], parts: Bool[np.ndarray, "part unit"]
) -> Iterator[np.ndarray]:
    """Σ −log p of each row's answer under each part, by whole passes."""
    for part in parts:
        board.keep(part)
        yield batch_losses(attached.model, rows)


def _restarted_passes(
    board: _Board, attached: Attachment, rows: list[Encoded], parts: Bool[np.ndarray, "part unit"]
) -> Iterator[np.ndarray]:
    """The same from recordings of no edit and of the whole, whichever a part leaves later."""
    model = attached.model
    batch, depth = collated(model, rows), model.head_shape.layers
    nothing = np.zeros(len(board.units), dtype=bool)
    recordings: list[tuple[Recording, np.ndarray]] = []
    for chosen in (nothing, ~nothing):
        board.keep(chosen)
        with recorded(model, attached, read=read_at(batch)) as recording:
            recordings.append((recording, marked_losses(model, batch)))
    for part in parts:
        starts = board.start(part, depth)
        recording, losses = recordings[int(starts[1] > starts[0])]
        if max(starts) < depth:
            board.keep(part)
            with restarted(recording, max(starts)):
                losses = marked_losses(model, batch)
        yield losses


def _nested(order: Int[np.ndarray, " unit"], grid: Int[np.ndarray, " size"]) -> Bool[np.ndarray, "2 size unit"]:
    """Which units are there when the first k of an order are kept, and when they are dropped."""
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order] = np.arange(len(order))
    first = ranks[None] < grid[:, None]
    return np.stack([first, ~first])


def _flat(parts: Bool[np.ndarray, "order what size unit"]) -> Bool[np.ndarray, "part unit"]:
    return parts.reshape(math.prod(parts.shape[:3]), parts.shape[3])


def _distinct(kept: Bool[np.ndarray, "part unit"]) -> tuple[Bool[np.ndarray, "other unit"], Int[np.ndarray, " part"]]:
    """The different parts, and for each part which of them it is."""
    seen: dict[bytes, int] = {}
    places = [seen.setdefault(part.tobytes(), len(seen)) for part in kept]
    firsts = [places.index(place) for place in range(len(seen))]
    return kept[firsts], np.array(places, dtype=np.int64)


def _half_interval(values: Float[np.ndarray, "size row"]) -> Float[np.ndarray, " size"]:
    """Half of Student's 95 % interval of the mean over rows; NaN for a single row."""
    from scipy import stats

    n = values.shape[1]
    if n < 2:
        return np.full(len(values), np.nan)
    return np.asarray(stats.t.ppf(0.975, n - 1) * values.std(1, ddof=1) / math.sqrt(n))


def _first_at(kept: Float[np.ndarray, "resample size"], share: float) -> Int[np.ndarray, " resample"]:
    """The first size that reaches ``share`` of the last; the last where that is no gain."""
    reached = kept >= share * kept[:, -1:]
    last = kept.shape[1] - 1
    return np.asarray(np.where(kept[:, -1] > 0, reached.argmax(1), last))


# -- orders --------------------------------------------------------------------------------------------------------


def _scores(
    read: Rows, units: Sequence[Unit], wanted: Sequence[str], split: Split, ordering: int, naive: bool, batch_size: int
) -> tuple[dict[str, Float[np.ndarray, " unit"]], int]:
    """What each order sorts by, and on how many rows the effects were measured."""
    found, ordered_on = {}, 0
    for name in wanted:
        if name == "p_open":
            found[name] = _p_open(read.run, units)
        elif name == "size":
            table = stored(read.run, "usage", Usage) or usage(
                read.run, read.task, read.model, split=split, rows=len(read.encoded)
            )
            sizes = np.sum([table.size(kind) for kind in KINDS], axis=0)
            found[name] = np.array([sizes[layer, unit] for _, layer, unit in units])
        else:
            effects, columns = _effects(read, split, ordering, naive, batch_size)
            found[name], ordered_on = _of_units(effects, columns, units), len(columns)
    return found, ordered_on


def _effects(
    read: Rows, split: Split, ordering: int, naive: bool, batch_size: int
) -> tuple[Effects, Int[np.ndarray, " row"]]:
    """Exact effects of all gates that act, and the columns of rows that no curve is drawn from."""
    found, told = stored(read.run, "effects", Effects), about_table(read.run, "effects")
    if found is not None and told.get("rows_of") == read.task.fingerprint:
        known = {gate_key(gate) for gate, measured in zip(found.gates, found.measured, strict=True) if measured}
        if all(gate_key(gate) in known for gate in select_gates(read.run.edit) if gate.acts):
            columns = np.arange(found.by_row.shape[1])
            if told.get("split", "test") == split:  # its rows are the first of the split, as the curves' are
                columns = columns[(columns < ordering) | (columns >= len(read.encoded))]
            return found, columns
    options: dict[str, Any] = {"backend": read.backend, "naive": naive, "batch_size": batch_size}
    return exact_effects(read.run.edit, read.model, read.encoded[:ordering], **options), np.arange(ordering)


def _of_units(effects: Effects, columns: Int[np.ndarray, " row"], units: Sequence[Unit]) -> Float[np.ndarray, " unit"]:
    """Effects of a unit's gates, summed."""
    means = effects.by_row[:, columns].mean(1)
    sums = dict.fromkeys(units, 0.0)
    for gate, mean in zip(effects.gates, means, strict=True):
        unit = (gate.site, gate.layer, gate.unit)
        if unit in sums:
            sums[unit] += float(mean)
    return np.array(list(sums.values()))


def _p_open(run: Run, units: Sequence[Unit]) -> Float[np.ndarray, " unit"]:
    """P(open) of each unit's larger gate."""
    opens = {site: [selection.measure("p_open", x) for x in run.log_alphas(site).values()] for site, _, _ in units}
    return np.array([max(float(x[layer, unit]) for x in opens[site]) for site, layer, unit in units])


def _wanted(edit: JoLA, orders: Sequence[Order] | None) -> tuple[str, ...]:
    gated = bool(edit.log_alphas())
    known = {"p_open": gated, "size": gated and list(edit.sites) == ["heads"], "effect": True}
    if orders is None:
        return tuple(name for name in ORDERS if known[name])
    if not orders or set(orders) - set(ORDERS) or len(set(orders)) < len(orders):
        raise ValueError(f"orders must be some of {', '.join(ORDERS)}, each once; got {tuple(orders)!r}")
    if missing := [name for name in orders if not known[name]]:
        raise ValueError(
            f"orders: {', '.join(missing)} need gates (size: at heads alone), which this edit does not have"
        )
    return tuple(orders)


def _grid(sizes: Sequence[int] | None, count: int) -> Int[np.ndarray, " size"]:
    """Numbers of heads, with 0 and all; by themselves all of them, or nine from 1 to ``count`` by a factor."""
    if sizes is None:
        grown = range(count) if count < MOST_SIZES else np.geomspace(1, count, MOST_SIZES - 1).round()
        sizes = [int(size) for size in grown]
    if wrong := [size for size in sizes if isinstance(size, bool) or not 0 <= size <= count or size != int(size)]:
        raise ValueError(f"sizes must be integers from 0 to {count}, the heads that act; got {wrong[0]!r}")
    return np.array(sorted({0, count, *map(int, sizes)}), dtype=np.int64)


def _require_integers(**given: tuple[Any, int]) -> None:
    for name, (value, least) in given.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer ≥ {least}; got {value!r}")


def gate_key(gate: Gate) -> tuple[str, str, int, int]:
    """What a gate is, whatever its value: site, kind, layer, unit."""
    return gate.site, gate.kind, gate.layer, gate.unit
