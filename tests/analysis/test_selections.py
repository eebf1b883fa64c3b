"""Gates of many Runs side by side: what the Runs hold, under labels that part them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jola_interp import selection
from jola_interp.analysis.selections import Origin, Selections, selections
from jola_interp.runs import Run
from tests.runs_by_hand import make_run

OPEN, SHUT = 4.0, -4.0


def of_sets(sets: Any, tasks: Any, seeds: Any, labels: Any = None, group: int = 0) -> Selections:
    """Selections with one kind of gate, open where ``sets`` [run, layer, head] says so."""
    chosen = np.asarray(sets, dtype=bool)
    told = ["real"] * len(chosen) if labels is None else labels
    origins = [Origin(task, seed=seed, labels=label) for task, seed, label in zip(tasks, seeds, told, strict=True)]
    values = np.where(chosen, OPEN, SHUT).astype(np.float32)
    norms = np.stack([np.where(chosen, 1.0, 0.1), np.zeros(chosen.shape)], axis=1).astype(np.float32)
    return Selections(values[:, None], ("additive",), tuple(origins), norms=norms, group=group)


def random_sets(generator: np.random.Generator, runs: int, layers: int, heads: int, share: float = 0.3) -> np.ndarray:
    return generator.random((runs, layers, heads)) < share


def trained(folder: Path, task: str, seed: int = 0, **more: Any) -> Run:
    return make_run(folder / f"{task}{seed}", names=("tiny", task), train={"seed": seed}, **more)


def test_selections_hold_what_the_runs_hold(tmp_path: Path) -> None:
    runs = [trained(tmp_path, "a", 0), trained(tmp_path, "b", 1)]
    found = selections(runs)
    assert found.shape == (3, 4) and found.group == 2 and found.tasks == ("a", "b")
    for place, run in enumerate(runs):
        for kind, value in run.log_alphas().items():
            np.testing.assert_array_equal(found.log_alpha[place, found.kinds.index(kind)], value)
        for rule in ("p_open>0.5", "point>0", "top=3:p_open"):
            expected = {tuple(unit) for unit in run.selection(rule).units}
            assert {tuple(unit) for unit in np.argwhere(found.sets(rule)[place]).tolist()} == expected
    assert [one.seed for one in found.origins] == [0, 1] and found.origins[0].path == str(runs[0].path)
    frame = found.to_frame()
    assert list(frame["selected"]) == [len(run.selection()) for run in runs]


def test_sets_of_a_kind_are_those_whose_gate_of_that_kind_is_open(tmp_path: Path) -> None:
    found = selections([trained(tmp_path, "a")])
    opened = selection.open_gates(trained(tmp_path / "again", "a").log_alphas())
    for kind in ("additive", "multiplicative"):
        np.testing.assert_array_equal(found.sets(kind=kind)[0], opened[kind])
    shared = selections([trained(tmp_path / "shared", "a", gates="shared")])
    np.testing.assert_array_equal(shared.sets(kind="additive"), shared.sets(kind="multiplicative"))
    with pytest.raises(ValueError, match="kind must be one of shared; got 'other'"):
        shared.sets(kind="other")


def test_p_open_of_a_head_is_that_of_either_gate() -> None:
    log_alpha = np.array([[[[0.0]], [[1.0]]]], dtype=np.float32)
    found = Selections(log_alpha, ("additive", "multiplicative"), (Origin("a"),))
    each = selection.measure("p_open", np.array([0.0, 1.0]))
    assert found.p_open()[0, 0, 0] == pytest.approx(1 - (1 - each[0]) * (1 - each[1]), rel=1e-6)


def test_norms_are_those_of_the_vectors_behind_their_gates(tmp_path: Path) -> None:
    run = trained(tmp_path, "a")
    found = selections([run])
    assert found.norms is not None
    for place, kind in enumerate(found.operations):
        expected = run.edit.site("heads").vectors[kind].detach().norm(dim=-1).numpy()
        np.testing.assert_allclose(found.norms[0, place], expected, rtol=1e-6)


def test_sizes_do_not_depend_on_the_units_of_offsets() -> None:
    generator = np.random.default_rng(0)
    norms = generator.random((2, 2, 3, 4)).astype(np.float32)
    plain = of_sets(np.ones((2, 3, 4)), "ab", (0, 0))
    one = Selections(plain.log_alpha, plain.kinds, plain.origins, norms=norms)
    scaled = norms * np.array([100.0, 1.0], dtype=np.float32)[:, None, None]
    other = Selections(plain.log_alpha, plain.kinds, plain.origins, norms=scaled)
    np.testing.assert_allclose(one.sizes(), other.sizes(), rtol=1e-5)


def test_select_split_and_mapping_go_by_label(tmp_path: Path) -> None:
    runs = [trained(tmp_path, "a", 0), trained(tmp_path, "a", 1), trained(tmp_path, "b", 0)]
    told: dict[Any, dict[str, Any]] = {
        runs[0].path: {},
        runs[1].path: {"labels": "shuffled", "n_train": 50},
        runs[2]: {},
    }
    found = selections(told)
    assert [one.n_train for one in found.origins] == [9, 50, 9]
    assert found.select(labels="shuffled").origins[0].seed == 1
    assert len(found.select(task=["a", "b"], labels="real")) == 2
    assert {task: len(part) for task, part in found.split("task").items()} == {"a": 2, "b": 1}
    with pytest.raises(ValueError, match=r"no run with task='c'; there are: a, b"):
        found.select(task="c")
    with pytest.raises(ValueError, match="label must be one of task, seed"):
        found.select(colour="red")


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    run = trained(tmp_path, "a")
    with pytest.raises(ValueError, match="runs is empty"):
        selections([])
    with pytest.raises(ValueError, match=r"labels: \['colour'\] are unknown"):
        selections({run: {"colour": "red"}})
    with pytest.raises(ValueError, match="rule: 'open' reads neither"):
        selections([run], "open")
    with pytest.raises(ValueError, match=r"different head shapes \(3 × 4, 2 × 4\)"):
        selections([run, trained(tmp_path / "small", "a", layers=2)])
    with pytest.raises(ValueError, match="no gates at heads"):
        selections([trained(tmp_path / "ungated", "a", gates="none")])
    with pytest.raises(ValueError, match="may edit different heads"):
        selections([run, trained(tmp_path / "part", "a", 1, only={"layers": [0]})]).editable()
    with pytest.raises(ValueError, match=r"log_alpha must be \[1, 1, layer, head\]"):
        Selections(np.zeros((2, 1, 3, 4), np.float32), ("additive",), (Origin("a"),))
