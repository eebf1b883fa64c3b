"""Tables that cost passes of the model, kept beside their Run: measured once, drawn anywhere.

A table is a frozen dataclass of arrays, mappings of arrays, tuples of dataclasses and plain values. Its file is
``<run>/analysis/<name>.safetensors``: arrays as tensors, everything else as JSON in the header.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from jola_interp import _files
from jola_interp._version import __version__
from jola_interp.runs import ANALYSIS, edit_digest

if TYPE_CHECKING:
    from jola_interp.models import Model
    from jola_interp.runs import Run
    from jola_interp.tasks import Task

FORMAT = 1
SETTINGS = ("inference", "scope")
"""Switches of an edit that its tensors do not hold, and on which what is measured depends."""
T = TypeVar("T")


class NotMeasuredError(ValueError):
    """A table that a Run does not hold, or that was measured on another edit; says how to measure it."""


def about(run: Run, task: Task, model: Model, by: Callable[..., Any] | None = None, **options: Any) -> dict[str, Any]:
    """What a table is measured on, with and by, JSON-ready: where it differs, another table is needed.

    Args:
        run, task, model: the edit, its inference gate and scope; rows; weights and their precision.
        by: the function that measures it; those of its options that are not given are recorded as it has them.
        **options: what it is given.
    """
    known = {"edit": edit_digest(run.edit), **_settings(run), "task": task.name, "rows_of": task.fingerprint}
    known |= {"model": model.fingerprint, "dtype": str(model.dtype).removeprefix("torch."), "version": __version__}
    return dict(_plain({**known, **({} if by is None else _defaults(by)), **options}))


def _settings(run: Run) -> dict[str, Any]:
    return {name: value for name, value in run.edit.settings().items() if name in SETTINGS}


def _defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """The options of a function, which are its arguments by name alone."""
    found = inspect.signature(function).parameters.values()
    return {one.name: one.default for one in found if one.kind is one.KEYWORD_ONLY and one.default is not one.empty}


def save_table(run: Run, name: str, table: Any, measured_on: Mapping[str, Any]) -> Path:
    """Keep a table beside its Run, as ``analysis/<name>.safetensors``.

    Args:
        run: where to.
        name: see above.
        table: a dataclass as the module says.
        measured_on: what :func:`about` gave.
    """
    folder = run.path / ANALYSIS
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}.safetensors"
    write_table(table, file, measured_on)
    return file


def load_table(run: Run, name: str, kind: type[T]) -> T:
    """The table that was kept under a name.

    Raises:
        NotMeasuredError: there is none, or it belongs to another edit.
    """
    file = run.path / ANALYSIS / f"{name}.safetensors"
    command = f"jola-interp analyse RUN --part {name}"
    if not file.exists():
        raise NotMeasuredError(f"{run.path} holds no table {name!r}: measure it with ji.analyse(run) or {command}")
    told, own = about_table(run, name), {"edit": edit_digest(run.edit), **_settings(run)}
    # Earlier versions did not tell of settings.
    if told.get("edit") != own["edit"] or any(told.get(key, value) != value for key, value in own.items()):
        raise NotMeasuredError(f"{file} was measured on another edit than this Run's: measure it anew with {command}")
    return read_table(kind, file)


def stored(run: Run, name: str, kind: type[T]) -> T | None:
    """The same; None where :func:`load_table` would refuse."""
    try:
        return load_table(run, name, kind)
    except NotMeasuredError:
        return None


def about_table(run: Run, name: str) -> dict[str, Any]:
    """What a kept table was measured on; empty if there is none."""
    file = run.path / ANALYSIS / f"{name}.safetensors"
    return dict(_header(file)["about"]) if file.exists() else {}


def write_table(table: Any, file: Path, measured_on: Mapping[str, Any]) -> None:
    """Write a dataclass; equal tables give equal bytes."""
    tensors: dict[str, torch.Tensor] = {}
    plain: dict[str, Any] = {}
    maps: dict[str, list[str]] = {}
    for field in dataclasses.fields(table):
        value = getattr(table, field.name)
        if _is_array(value):
            tensors[field.name] = torch.from_numpy(np.ascontiguousarray(value))
        elif isinstance(value, Mapping) and value and all(map(_is_array, value.values())):
            maps[field.name] = list(value)
            tensors |= {f"{field.name}.{key}": torch.from_numpy(np.ascontiguousarray(x)) for key, x in value.items()}
        else:
            plain[field.name] = _plain(value)
    header = {"format": FORMAT, "table": type(table).__name__, "about": dict(measured_on), "plain": plain, "maps": maps}
    content = json.dumps(header, ensure_ascii=False, allow_nan=False, sort_keys=True)
    # safetensors refuses a file without tensors.
    _files.write_tensors(file, tensors or {"_": torch.zeros(0)}, {"header": content})


def read_table(kind: type[T], file: Path) -> T:
    """Read what :func:`write_table` wrote.

    Raises:
        ValueError: another table.
        NotMeasuredError: another format, or other fields: another version of this package wrote it. A field that may be
            None is None where an earlier version did not measure it.
    """
    header = _header(file)
    if header["table"] != kind.__name__:
        raise ValueError(f"{file}: found {header['table']}, expected {kind.__name__}")
    tensors = {name: value.numpy() for name, value in _files.read_tensors(file).items()}
    types = typing.get_type_hints(kind)
    known = {*header["plain"], *header["maps"], *(name for name in tensors if "." not in name)} - {"_"}
    later = {field.name for field in dataclasses.fields(kind) if field.default is None}  # type: ignore[arg-type]
    if header["format"] != FORMAT or known - set(types) or set(types) - known - later:
        raise NotMeasuredError(f"{file}: another version of jola_interp measured it: measure it anew")
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.name in header["plain"]:
            values[field.name] = _rebuilt(types[field.name], header["plain"][field.name])
        elif field.name in header["maps"]:
            values[field.name] = {key: tensors[f"{field.name}.{key}"] for key in header["maps"][field.name]}
        elif field.name in known:
            values[field.name] = tensors[field.name]
    return kind(**values)


def _header(file: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(file, "np") as opened:
        content = (opened.metadata() or {}).get("header")
    if content is None:
        raise ValueError(f"{file}: found no header, expected a table of jola_interp")
    return dict(json.loads(content))


def _is_array(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype != object


def _plain(value: Any) -> Any:
    """JSON-ready; NaN, which JSON lacks, as the word."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):  # of objects: names
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value


def _rebuilt(kind: Any, value: Any) -> Any:
    """A value of JSON as its field's type has it: tuples, dataclasses, arrays of names, NaN."""
    if value is None or kind is Any:
        return value
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if type(None) in inner:  # an optional field
        return _rebuilt(next(arg for arg in inner if arg is not type(None)), value)
    if dataclasses.is_dataclass(kind):
        types = typing.get_type_hints(kind)
        return kind(**{name: _rebuilt(types[name], item) for name, item in value.items()})  # type: ignore[operator]
    if origin is tuple:
        kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        return tuple(_rebuilt(one, item) for one, item in zip(kinds, value, strict=True))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {name: _rebuilt(inner[1], item) for name, item in value.items()}
    if kind is float:
        return float(value)
    return np.array(value, dtype=object) if kind is np.ndarray else value
