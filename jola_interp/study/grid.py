"""Axes to cells: the product of what they hold, in one order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from jola_interp.config import DEFAULT_PRESET
from jola_interp.methods import Method
from jola_interp.study.cell import SEED, TRAINING, Cell, read_method, training_fields

DEFAULTS: dict[str, Any] = {
    "models": [], "seeds": [SEED], "draws": None, "tasks": [], "methods": ["jola"], "labels": ["real"],
    "n_train": [200], "n_validation": [None], "n_test": [None], "preset": [DEFAULT_PRESET],
}  # fmt: skip
"""Every axis that is no training field, with what it holds where nothing is said."""


def read_axes(given: Mapping[str, Any]) -> dict[str, Any]:
    """Axes as a file can hold them: lists of plain values, unknown ones refused.

    A single value is a list of one. A training field of pairs (``adam_betas``) is an axis where it is a list of pairs.

    Raises:
        ValueError: an unknown axis, an empty one, or a method that cannot be used.
    """
    if unknown := sorted(map(str, given.keys() - DEFAULTS.keys() - training_fields())):
        raise ValueError(f"study: unknown field {', '.join(unknown)}; there are: {', '.join(DEFAULTS)}, {TRAINING}")
    found = {name: _values(name, value) for name, value in given.items() if not (name == "draws" and value is None)}
    for name, values in found.items():
        if not values:
            raise ValueError(f"{name} is empty; it must hold at least one value")
    if "methods" in found:
        found["methods"] = [_plain_method(one) for one in found["methods"]]
    return found


def cells_of(axes: Mapping[str, Any]) -> tuple[Cell, ...]:
    """The product over models, seeds, draws, tasks, methods, labels, sizes, preset, then training fields.

    The first varies slowest: a model is done with before the next is loaded, and the whole grid under one seed before
    the next seed. A seed that is a pair holds its draw.

    Raises:
        ValueError: no models, no tasks, pairs beside draws, or a value that a cell refuses.
    """
    given = {**DEFAULTS, **read_axes(axes)}
    for name in ("models", "tasks"):
        if not given[name]:
            raise ValueError(f"{name} is empty; it must hold at least one name or path")
    fields = sorted(given.keys() - DEFAULTS.keys())
    order = [given["models"], _seeds(given["seeds"], given["draws"])]
    order += [given[name] for name in ("tasks", "methods", "labels", "n_train", "n_validation", "n_test", "preset")]
    order += [given[name] for name in fields]
    return unique(_cell(fields, *point) for point in product(*order))


def unique(cells: Iterable[Cell]) -> tuple[Cell, ...]:
    """The cells in their order, each once."""
    return tuple({cell.name: cell for cell in cells}.values())


def chosen(cells: Sequence[Cell], which: str | Sequence[int] | None) -> list[Cell]:
    """Cells by number: ``"0-9"``, ``"3"``, ``"0,2,5-7"``, or a list of numbers; None is all.

    Raises:
        ValueError: another form, or a number that no cell has.
    """
    if which is None:
        return list(cells)
    try:
        numbers = _numbers(which) if isinstance(which, str) else [int(number) for number in which]
    except (TypeError, ValueError):
        raise ValueError(f'cells must be numbers such as "0-9" or "0,2,5-7"; got {which!r}') from None
    for number in numbers:
        if not 0 <= number < len(cells):
            raise ValueError(f"cells must be from 0 to {len(cells) - 1}; got {number} in {which!r}")
    return [cells[number] for number in sorted(set(numbers))]


def _cell(
    fields: Sequence[str], model: Any, seeds: tuple[Any, Any], task: Any, method: Any, labels: Any, *rest: Any
) -> Cell:
    n_train, n_validation, n_test, preset, *values = rest
    name, options = read_method(method)
    train = dict(zip(fields, values, strict=True))
    seed, draw = seeds
    return Cell(model, task, name, options, seed, draw, n_train, n_validation, n_test, labels, preset, train)


def _seeds(seeds: Sequence[Any], draws: Sequence[Any] | None) -> list[tuple[Any, Any]]:
    """(seed, draw) pairs: of each seed with every draw, or with its own."""
    paired = [seed for seed in seeds if isinstance(seed, Sequence) and not isinstance(seed, str)]
    if draws is not None:
        if paired:
            raise ValueError(
                f"seeds: {paired[0]!r} is a pair of seed and draw, which leaves nothing to draws={draws!r}"
            )
        return [(seed, draw) for seed in seeds for draw in draws]
    for pair in paired:
        if len(pair) != 2:
            raise ValueError(f"seeds must hold integers, or pairs of seed and draw; got {pair!r}")
    return [tuple(seed) if seed in paired else (seed, None) for seed in seeds]


def _values(name: str, value: Any) -> list[Any]:
    """The values of an axis, as plain as YAML has them."""
    if name == "adam_betas":
        pairs = list(value) if _is_list(value) and value and _is_list(value[0]) else [value]
        return [list(pair) if _is_list(pair) else pair for pair in pairs]
    listed = list(value) if _is_list(value) else [value]
    return [str(one) if isinstance(one, Path) else list(one) if _is_list(one) else one for one in listed]


def _is_list(value: object) -> bool:
    """Whether it is several values; a text or a mapping is one."""
    return isinstance(value, Iterable) and not isinstance(value, str | Mapping | Method | Path)


def _plain_method(given: Any) -> Any:
    """A method's name alone where its options are its own."""
    name, options = read_method(given)
    return {"name": name, "options": options} if options else name


def _numbers(text: str) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        end = int(last) if dash else int(first)
        if end < int(first):
            raise ValueError(part)
        found += range(int(first), end + 1)
    return found
