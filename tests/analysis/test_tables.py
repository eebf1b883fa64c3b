"""Tables kept beside a Run come back as they were, and only for the edit that they were measured on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import Float

from jola_interp.analysis.effects import Effects, Gate
from jola_interp.analysis.tables import (
    NotMeasuredError,
    about_table,
    load_table,
    read_table,
    save_table,
    stored,
    write_table,
)
from jola_interp.runs import edit_digest
from tests.runs_by_hand import make_run


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    values: Float[np.ndarray, "layer head"]
    by_kind: Mapping[str, Float[np.ndarray, " layer"]]
    labels: tuple[str, ...]
    gates: tuple[Gate, ...]
    chance: float
    none: Float[np.ndarray, " layer"] | None
    pairs: tuple[tuple[int, int], ...]
    empty: Mapping[str, Float[np.ndarray, " layer"]]


def sample() -> Sample:
    return Sample(
        values=np.array([[1.0, np.nan], [-np.inf, 3.0]]),
        by_kind={"additive": np.arange(2.0), "multiplicative": np.ones(2)},
        labels=("L0H1", "↵ <b>"),
        gates=(Gate("heads", "additive", 0, 1, 0.5, True),),
        chance=float("nan"),
        none=None,
        pairs=((0, 1), (2, 3)),
        empty={},
    )


def assert_equal(found: object, expected: object) -> None:
    for field in dataclasses.fields(expected):  # type: ignore[arg-type]
        one, other = getattr(found, field.name), getattr(expected, field.name)
        assert type(one) is type(other), field.name
        if isinstance(other, Mapping):
            assert one.keys() == other.keys()
        np.testing.assert_equal(one, other)


def test_a_table_comes_back_as_it_was(tmp_path: Path) -> None:
    write_table(sample(), tmp_path / "a", {"rows": 3})
    assert_equal(read_table(Sample, tmp_path / "a"), sample())


def test_equal_tables_give_equal_bytes(tmp_path: Path) -> None:
    for name in "ab":
        write_table(sample(), tmp_path / name, {"rows": 3})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_effects_come_back_as_they_were(tmp_path: Path) -> None:
    gates = tuple(Gate("heads", kind, 0, 1, 1.0, True) for kind in ("additive", "multiplicative"))
    effects = Effects("exact", gates, np.ones((2, 3)), np.zeros(3), np.array([True, False]), None)
    write_table(effects, tmp_path / "a", {})
    assert_equal(read_table(Effects, tmp_path / "a"), effects)


def test_another_table_is_refused_by_name(tmp_path: Path) -> None:
    write_table(sample(), tmp_path / "a", {})
    with pytest.raises(ValueError, match="found Sample, expected Effects"):
        read_table(Effects, tmp_path / "a")


def test_what_was_not_measured_says_how_to_measure_it(tmp_path: Path) -> None:
    with pytest.raises(NotMeasuredError, match="jola-interp analyse RUN --part shifts"):
        load_table(make_run(tmp_path), "shifts", Sample)


def test_a_table_of_another_edit_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    save_table(run, "shifts", sample(), {"edit": edit_digest(run.edit), "rows": 3})
    assert_equal(load_table(run, "shifts", Sample), sample())
    assert about_table(run, "shifts")["rows"] == 3
    for vector in run.edit.site("heads").vectors.values():
        vector.data.add_(1.0)
    with pytest.raises(NotMeasuredError, match="another edit"):
        load_table(run, "shifts", Sample)


def test_what_an_earlier_version_did_not_measure_is_none(tmp_path: Path) -> None:
    write_table(sample(), tmp_path / "a", {})

    @dataclasses.dataclass(frozen=True, eq=False)
    class Later(Sample):
        added: Float[np.ndarray, " layer"] | None = None

    Later.__name__ = "Sample"
    found = read_table(Later, tmp_path / "a")
    assert found.added is None
    assert_equal(found, sample())
    write_table(dataclasses.replace(found, added=np.ones(2)), tmp_path / "b", {})
    with pytest.raises(NotMeasuredError, match="another version"):  # nor does an earlier one read what it does not know
        read_table(Sample, tmp_path / "b")


def test_a_table_of_another_version_is_measured_anew(tmp_path: Path) -> None:
    write_table(sample(), tmp_path / "a", {})

    @dataclasses.dataclass(frozen=True, eq=False)
    class Later(Sample):
        added: int = 0

    Later.__name__ = "Sample"
    with pytest.raises(NotMeasuredError, match="another version"):
        read_table(Later, tmp_path / "a")


def test_stored_gives_what_loading_gives_and_none_where_that_refuses(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert stored(run, "shifts", Sample) is None
    save_table(run, "shifts", sample(), {"edit": edit_digest(run.edit)})
    assert_equal(stored(run, "shifts", Sample), sample())
    save_table(run, "shifts", sample(), {"edit": "another"})
    assert stored(run, "shifts", Sample) is None
