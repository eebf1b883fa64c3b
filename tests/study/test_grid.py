"""Cells and grids: their order, their names, their file, and what they refuse."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jola_interp.config import TrainConfig
from jola_interp.methods import method
from jola_interp.study.cell import Cell
from jola_interp.study.design import FILE, Design
from jola_interp.study.grid import cells_of, chosen
from jola_interp.study.study import Study

WORDS = st.text("abcXY/. -", min_size=1, max_size=6).filter(str.strip)
AXES = st.fixed_dictionaries(
    {"models": st.lists(WORDS, min_size=1, max_size=2), "tasks": st.lists(WORDS, min_size=1, max_size=2)},
    optional={
        "methods": st.lists(st.sampled_from(["jola", "lora", {"name": "lora", "options": {"r": 4}}]), min_size=1),
        "seeds": st.lists(st.integers(0, 9) | st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=3),
        "labels": st.lists(st.sampled_from(["real", "shuffled"]), min_size=1, max_size=2),
        "n_train": st.lists(st.integers(1, 500), min_size=1, max_size=2),
        "n_test": st.none() | st.integers(1, 9),
        "penalty": st.lists(st.floats(0, 10), min_size=1, max_size=2),
        "clip": st.none() | st.lists(st.sampled_from([None, 1.0]), min_size=1),
        "adam_betas": st.sampled_from([(0.9, 0.99), [[0.9, 0.99], [0.5, 0.9]]]),
        "preset": st.sampled_from(["paper", ["paper", "selective"]]),
    },
)


def test_models_vary_slowest_then_seeds_then_the_rest_in_order() -> None:
    axes = {"models": ["a", "b"], "tasks": ["t", "u"], "seeds": [3, 1], "n_train": [5, 9], "penalty": [0.2, 0.1]}
    found = [(cell.model, cell.seed, cell.task, cell.n_train, cell.train["penalty"]) for cell in cells_of(axes)]
    assert found == list(product(["a", "b"], [3, 1], ["t", "u"], [5, 9], [0.2, 0.1]))


def test_a_seed_decides_the_draw_too_unless_there_are_draws() -> None:
    def pairs(**seeds: Any) -> list[tuple[int, int | None]]:
        return [(cell.seed, cell.draw) for cell in cells_of({"models": "a", "tasks": "t", **seeds})]

    assert pairs(seeds=[0, 1]) == [(0, 0), (1, 1)]
    assert pairs(seeds=[0, 1], draws=[7, 8]) == [(0, 7), (0, 8), (1, 7), (1, 8)]
    assert pairs(seeds=[(0, 7), (1, 8)]) == [(0, 7), (1, 8)]


@settings(max_examples=40, deadline=None)
@given(AXES)
def test_different_cells_have_different_names_that_are_directories(axes: dict[str, Any]) -> None:
    cells = cells_of(axes)
    names = [cell.name.casefold() for cell in cells]
    assert len(set(names)) == len(cells) == len({repr(cell) for cell in cells})
    assert all("/" not in name and not name.startswith(".") and len(name) < 120 for name in names)


@settings(max_examples=15, deadline=None)
@given(axes=AXES, block=AXES)
def test_a_file_gives_the_design_back(tmp_path_factory: pytest.TempPathFactory, axes: Any, block: Any) -> None:
    design = Design.from_dict({**axes, "also": [block], "backend": "hooks", "load": {"device_map": "auto"}})
    file = tmp_path_factory.mktemp("study") / FILE
    design.write(file)
    assert Design.read(file) == design
    assert [cell.name for cell in Design.read(file).cells] == [cell.name for cell in design.cells]
    listed = Design.from_dict({"cells": design.cells})
    listed.write(file)
    assert Design.read(file).cells == listed.cells == design.cells


def test_a_cell_is_the_same_however_it_is_written() -> None:
    plain = Cell("a", "t", "lora", {}, train={"penalty": 1.0, "adam_betas": [0.9, 0.99]})
    options = dict(method("lora").options)
    for same in (
        Cell("a", "t", "lora", options, draw=42, train={"adam_betas": (0.9, 0.99), "penalty": 1}),
        Cell.from_dict({"model": "a", "task": "t", "method": "lora", "adam_betas": [0.9, 0.99], "penalty": "1e0"}),
    ):
        assert same == plain and same.name == plain.name and hash(same) == hash(plain)


def test_every_field_of_a_cell_is_in_its_name() -> None:
    cell = Cell("a", "t")
    others = [
        Cell("b", "t"), Cell("a", "u"), Cell("a", "t", "lora"), Cell("a", "t", seed=1), Cell("a", "t", draw=1),
        Cell("a", "t", n_train=1), Cell("a", "t", n_validation=1), Cell("a", "t", n_test=1),
        Cell("a", "t", labels="shuffled"), Cell("a", "t", preset="paper"), Cell("a", "t", train={"penalty": 0.4}),
        Cell("a", "t", "lora", {"r": 3}),
    ]  # fmt: skip
    assert len({one.name for one in (cell, *others)}) == len(others) + 1


def test_further_grids_replace_axes_and_cells_come_once() -> None:
    base = {"models": "a", "tasks": ["t", "u"], "seeds": [0, 1]}
    design = Design.from_dict({**base, "also": [{"labels": "shuffled", "seeds": 0}, {"tasks": ["u"], "seeds": [1, 2]}]})
    found = [(cell.task, cell.seed, cell.labels) for cell in design.cells]
    assert found == [
        ("t", 0, "real"), ("u", 0, "real"), ("t", 1, "real"), ("u", 1, "real"),
        ("t", 0, "shuffled"), ("u", 0, "shuffled"), ("u", 2, "real"),
    ]  # fmt: skip


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no models": ({"models": []}, "models is empty"),
    "no tasks": ({"models": "a"}, "tasks is empty"),
    "unknown axis": ({"taks": "t"}, "unknown field taks; there are: models, seeds"),
    "seed as a training field": ({"seed": 3}, "unknown field seed; there are"),
    "unknown method": ({"methods": "jolla"}, "method must be one of .*jola.*got 'jolla'"),
    "unknown option": ({"methods": {"name": "lora", "options": {"rank": 3}}}, "'lora' has no option rank; it has: r"),
    "method's form": ({"methods": [["jola"]]}, "method must be a name"),
    "value of a training field": ({"penalty": [0.1, -1]}, r"penalty must be a number ≥ 0; got -1\.0"),
    "seed": ({"seeds": [0, "x"]}, "seed must be an integer ≥ 0; got 'x'"),
    "triple": ({"seeds": [[0, 1, 2]]}, r"seeds must hold integers, or pairs .* got \[0, 1, 2\]"),
    "pairs beside draws": ({"seeds": [[0, 1]], "draws": 3}, r"seeds: \[0, 1\] is a pair"),
    "rows": ({"n_train": 0}, "n_train must be an integer ≥ 1; got 0"),
    "labels": ({"labels": "fake"}, "labels must be one of real, shuffled; got 'fake'"),
    "preset": ({"preset": "own"}, "preset must be one of selective, paper, reference; got 'own'"),
    "backend": ({"backend": "lense"}, "backend must be one of lens, .*got 'lense'"),
    "also": ({"also": {"seeds": 1}}, "also must be a list"),
    "block": ({"also": ["seeds"]}, "also must hold mappings"),
    "cells and axes": ({"cells": [{"model": "a", "task": "t"}]}, "one by one, which leaves nothing to models"),
    "model": ({"models": [3]}, "model must be a name or a path; got 3"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_used_is_named_with_its_value(case: str, tmp_path: Path) -> None:
    changes, message = BAD[case]
    base = {"models": "a", "tasks": "t"} if changes.get("models", "a") != "a" or "models" not in changes else {}
    with pytest.raises(ValueError, match=message):
        Study(tmp_path / "study", **{**base, **changes})
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("content", ["- a list", "a: [", "modles: a", "{models: a, tasks: t, penalty: -1}"])
def test_a_bad_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(ValueError, match=str(tmp_path / FILE)):
        Study.load(tmp_path)


def test_a_study_gains_cells_but_loses_none(tmp_path: Path) -> None:
    base: dict[str, Any] = {"models": "a", "tasks": ["t"], "seeds": [0, 1]}
    Study(tmp_path, **base).save()
    before = (tmp_path / FILE).read_bytes()
    refused: list[tuple[dict[str, Any], str]] = [
        ({"seeds": [0]}, r"seed holds 1, asked for \[0\]"),
        ({"models": "b"}, r"model holds 'a', asked for \['b'\]"),
        ({"penalty": 0.3}, "penalty holds None, asked for 0.3"),
        ({"backend": "hooks"}, "backend is 'lens', asked for 'hooks'"),
    ]
    for changes, message in refused:
        with pytest.raises(ValueError, match=message):
            Study(tmp_path, **base | changes)
    assert (tmp_path / FILE).read_bytes() == before
    larger = Study(tmp_path, **base | {"seeds": [0, 1, 2]})
    larger.save()
    assert Study.load(tmp_path).cells == larger.cells


def test_an_older_object_of_a_study_drops_none_of_its_cells(tmp_path: Path) -> None:
    axes: dict[str, Any] = {"models": "a", "tasks": "t"}
    old, crossing = Study(tmp_path, **axes, seeds=[0]), Study(tmp_path, **axes, seeds=[0, 2])
    larger = Study(tmp_path, **axes, seeds=[0, 1])
    larger.save()
    before = (tmp_path / FILE).read_bytes()
    old.save()
    assert old.cells == larger.cells
    with pytest.raises(ValueError, match="a study gains cells but loses none"):
        crossing.save()
    with pytest.raises(ValueError, match="backend is 'lens', asked for 'hooks'"):
        crossing.design = Design.from_dict({**axes, "seeds": [0], "backend": "hooks"})
        crossing.save()
    assert (tmp_path / FILE).read_bytes() == before


def test_a_cell_is_found_by_what_it_leaves_to_preset_and_method() -> None:
    cell, usual = Cell("a", "t"), TrainConfig()
    assert cell.has(penalty=usual.penalty, seed=range(50), epochs=[6], adam_betas=usual.adam_betas)
    assert not cell.has(epochs=usual.epochs) and Cell("a", "t", preset="paper").has(epochs=usual.epochs)
    assert Cell("a", "t", train={"penalty": 0.1}).has(penalty=0.1)
    own = method("lofit").train
    assert own and Cell("a", "t", "lofit").has(**{name: own[name] for name in own})


def test_every_training_field_can_be_an_axis() -> None:
    defaults = TrainConfig().to_dict()
    for name in defaults.keys() - {"seed"}:
        (cell,) = cells_of({"models": "a", "tasks": "t", "preset": "paper", name: defaults[name]})
        assert cell.train == {name: defaults[name]}


def test_cells_are_chosen_by_number() -> None:
    cells = cells_of({"models": "a", "tasks": "t", "seeds": range(12)})
    assert [cell.seed for cell in chosen(cells, "0-2,5, 7-7,1")] == [0, 1, 2, 5, 7]
    assert [cell.seed for cell in chosen(cells, [3, 1])] == [1, 3]
    assert chosen(cells, None) == list(cells)
    for bad in ("", "a", "3-1", "1-", "-1"):
        with pytest.raises(ValueError, match="cells must be"):
            chosen(cells, bad)
    with pytest.raises(ValueError, match="cells must be from 0 to 11; got 12"):
        chosen(cells, "0-12")
