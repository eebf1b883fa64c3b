"""Cosines of offsets: of vectors that were put there, beside those of other heads."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from jola_interp.analysis.offset_cosines import offset_cosines, paired_sums
from jola_interp.analysis.selections import selections
from jola_interp.runs import Run
from tests.analysis.test_selections import trained

module = import_module("jola_interp.analysis.offset_cosines")  # its name is that of a function there


def with_offsets(folder: Path, task: str, seed: int, offsets: np.ndarray) -> Run:
    """A Run whose gates are open and whose offsets are as given."""
    run = trained(folder, task, seed, layers=offsets.shape[0], heads=offsets.shape[1], kv_heads=1)
    part = run.edit.site("heads")
    with torch.no_grad():
        for gate in part.log_alpha.values():
            gate.fill_(5.0)
        part.vectors["additive"].copy_(torch.from_numpy(offsets).float())
    return run


def study(folder: Path, own: float, shared: float, tasks: int = 3, seeds: int = 3, noise: float = 1.0) -> list[Run]:
    generator = np.random.default_rng(0)
    shape = (3, 6, 4)
    common, runs = generator.normal(size=shape), []
    for task in range(tasks):
        mine = generator.normal(size=shape)
        for seed in range(seeds):
            offsets = shared * common + own * mine + noise * generator.normal(size=shape)
            runs.append(with_offsets(folder, f"t{task}", seed, offsets))
    return runs


def test_equal_offsets_have_one_and_opposite_ones_minus_one(tmp_path: Path) -> None:
    offsets = np.random.default_rng(0).normal(size=(3, 4, 4))
    runs = [with_offsets(tmp_path, "a", 0, offsets), with_offsets(tmp_path, "b", 1, 7 * offsets)]
    found = offset_cosines([*runs, with_offsets(tmp_path, "c", 2, -offsets)], draws=100)
    assert found.value[0, 1] == pytest.approx(1, abs=1e-5) and found.value[0, 2] == pytest.approx(-1, abs=1e-5)
    assert found.p[0, 1] < 0.02 and found.p[0, 2] > 0.98 and found.heads[0, 1] == 12
    assert np.isnan(found.value[0, 0])  # one seed


def test_only_heads_that_are_open_in_both_count(tmp_path: Path) -> None:
    offsets = np.random.default_rng(0).normal(size=(2, 4, 4))
    first, second = with_offsets(tmp_path, "a", 0, offsets), with_offsets(tmp_path, "b", 1, offsets)
    with torch.no_grad():
        second.edit.site("heads").log_alpha["additive"][0] = -9.0  # the first layer is shut
    other = offsets.copy()
    other[1] *= -1
    third = with_offsets(tmp_path, "c", 2, other)
    found = offset_cosines([first, second, third], draws=5)
    assert found.pair_heads[0, 1] == 4 and found.pair_heads[0, 2] == 8
    assert found.pair_value[1, 2] == pytest.approx(-1, abs=1e-5)
    assert found.pair_value[0, 2] == pytest.approx(0, abs=1e-5)


def test_what_tasks_share_and_have_of_their_own_is_told_apart(tmp_path: Path) -> None:
    found = offset_cosines(study(tmp_path, own=1.0, shared=1.0), draws=200)
    assert found.within.value > found.between.value + 0.1 and found.between.p < 0.02
    assert found.difference.p < 0.05
    chance = found.chance[np.triu_indices(3)]
    assert np.abs(chance).max() < 0.1 and "random directions 0 ± 0.50" in found.sentence()
    assert (found.chance_low <= found.chance).all() and (found.chance <= found.chance_high).all()
    frame = found.to_frame()
    assert len(frame) == 6 and len(found.runs_frame()) == 36 and set(frame["pairs"]) == {3, 6}


def test_a_task_under_shuffled_labels_shows_what_its_labels_add(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator, told, opened = np.random.default_rng(0), {}, {}
    for task in range(6):
        prompts, content = generator.normal(size=(2, 3, 6, 4))
        for labels, seed in (("real", 0), ("real", 1), ("shuffled", 0), ("shuffled", 1)):
            offsets = prompts + (labels == "real") * content + 0.1 * generator.normal(size=(3, 6, 4))
            run = with_offsets(tmp_path / labels, f"t{task}", seed, offsets)
            told[run], opened[str(run.path)] = {"labels": labels}, run
    monkeypatch.setattr(module, "_load", opened.__getitem__)  # what is on disk has other offsets
    found = offset_cosines(selections(told), draws=5)
    assert found.shuffled is not None and found.content is not None
    names = ("t0, seed 0, data 42", "t0 (labels shuffled), seed 1, data 42")
    first, second = map(found.names.index, names)
    assert found.shuffled.shape == (6,) and 0.5 < found.shuffled[0] < 0.9 < found.value[0, 0]
    assert found.shuffled[0] == pytest.approx(found.pair_value[first, second], abs=0.1)
    assert found.content.low > 0 and found.content.n == 6
    assert found.content.value == pytest.approx(np.mean(np.diag(found.value)[:6] - found.shuffled))
    assert "under shuffled labels" in found.sentence()
    plain = offset_cosines([run for run, labels in told.items() if labels["labels"] == "real"], draws=5)
    assert plain.shuffled is None and plain.content is None and "shuffled" not in plain.sentence()


def test_p_is_uniform_for_unrelated_offsets(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    runs = [with_offsets(tmp_path, f"t{i}", i, generator.normal(size=(3, 4, 4))) for i in range(14)]
    found = offset_cosines(runs, draws=200)
    p = found.p[np.triu_indices(14, 1)]
    assert 0.38 < p.mean() < 0.62 and np.mean(p <= 0.1) < 0.25
    assert abs(found.between.value) < 0.06


def test_selections_find_their_runs_and_shut_gates_have_no_cosine(tmp_path: Path) -> None:
    stored = selections([trained(tmp_path / "stored", name, seed) for name in "ab" for seed in (0, 1)])
    assert offset_cosines(stored, draws=5).pairs.shape == (2, 2)
    shut = [with_offsets(tmp_path / "shut", name, seed, np.ones((1, 1, 4))) for name in "ab" for seed in (0, 1)]
    with torch.no_grad():
        for run in shut:
            for gate in run.edit.site("heads").log_alpha.values():
                gate.fill_(-9.0)
    found = offset_cosines(shut, draws=5)
    assert np.isnan(found.value).all() and found.pairs.sum() == 0 and np.isnan(found.within.value)


def test_sums_do_not_depend_on_how_they_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    directions, order = generator.normal(size=(3, 11, 4)), generator.permutation(11)
    whole = paired_sums(directions, np.ones((3, 11), dtype=bool), order)
    monkeypatch.setattr(module, "CHUNK", 30)
    np.testing.assert_allclose(paired_sums(directions, np.ones((3, 11), dtype=bool), order)[0], whole[0])
    expected = sum(float(directions[0, h] @ directions[1, order[h]]) for h in range(11))
    assert whole[0][0, 1] == pytest.approx(expected)


def test_edits_without_offsets_are_refused(tmp_path: Path) -> None:
    run = trained(tmp_path, "a", operations="multiply")
    with pytest.raises(ValueError, match="has no offsets: its edit adds nothing"):
        offset_cosines([run])
    with pytest.raises(ValueError, match="draws must be 1 or more"):
        offset_cosines([run], draws=0)
