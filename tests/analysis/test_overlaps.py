"""Overlaps across tasks: what indices must do, and what chance is."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jola_interp.analysis.chance import LayerShuffle, adjusted, reached
from jola_interp.analysis.overlaps import INDICES, Overlaps, overlaps
from jola_interp.analysis.run_pairs import SHUFFLED_GROUP, Cells
from jola_interp.analysis.selections import Selections
from jola_interp.evidence.overlap import overlap
from tests.analysis.test_selections import of_sets, random_sets

QUICK = settings(max_examples=15, deadline=None)
SEEDS = st.integers(0, 10_000)


def pair(a: Any, b: Any) -> Selections:
    return of_sets([a, b], ["a", "b"], [0, 1])


def value(found: Overlaps, index: Any) -> float:
    return float(found.matrix(index).value[0, 1])


def spread_gates(generator: np.random.Generator, found: Selections) -> Selections:
    """The same sets, with other values of log α on the same side of the rule."""
    noise = generator.uniform(-2, 2, found.log_alpha.shape).astype(np.float32)
    return dataclasses.replace(found, log_alpha=found.log_alpha + noise)


@QUICK
@given(SEEDS)
def test_identical_sets_have_one(seed: int) -> None:
    sets = random_sets(np.random.default_rng(seed), 1, 3, 5)[0]
    found = overlaps(pair(sets, sets), draws=20)
    assert all(value(found, index) == pytest.approx(1) for index in INDICES)


@QUICK
@given(SEEDS)
def test_overlap_does_not_depend_on_the_order_of_the_runs(seed: int) -> None:
    first, second = random_sets(np.random.default_rng(seed), 2, 3, 5)
    one, other = overlaps(pair(first, second), draws=300), overlaps(pair(second, first), draws=300)
    for index in INDICES:
        assert value(one, index) == pytest.approx(value(other, index))
        np.testing.assert_allclose(one.matrix(index).excess, one.matrix(index).excess.T)
        np.testing.assert_allclose(one.matrix(index).chance[0, 1], other.matrix(index).chance[0, 1], atol=0.06)


@QUICK
@given(SEEDS)
def test_overlap_does_not_depend_on_the_names_of_heads_within_layers(seed: int) -> None:
    generator = np.random.default_rng(seed)
    found = spread_gates(generator, of_sets(random_sets(generator, 3, 4, 5), "abc", range(3)))
    order = generator.permuted(np.tile(np.arange(5), (4, 1)), axis=1)
    moved = np.take_along_axis(found.log_alpha, order[None, None], axis=-1)
    one, other = (overlaps(each, draws=300) for each in (found, dataclasses.replace(found, log_alpha=moved)))
    for index in INDICES:
        # Tasks may be drawn in another order; the overlaps of two of them stay.
        for a, b in (("a", "b"), ("a", "c"), ("b", "c")):
            at, there = ((each.groups.index(a), each.groups.index(b)) for each in (one, other))
            assert one.matrix(index).value[at] == pytest.approx(other.matrix(index).value[there])
            assert one.matrix(index).chance[at] == pytest.approx(other.matrix(index).chance[there], abs=0.06)


@QUICK
@given(SEEDS)
def test_a_shared_head_more_is_more_overlap(seed: int) -> None:
    first, second = random_sets(np.random.default_rng(seed), 2, 3, 5)
    free = np.argwhere(~first & ~second)
    if not len(free) or not (first | second).any():
        return
    more, other = first.copy(), second.copy()
    more[tuple(free[0])] = other[tuple(free[0])] = True
    before, after = overlaps(pair(first, second), draws=2), overlaps(pair(more, other), draws=2)
    for index in INDICES:
        assert value(after, index) >= value(before, index) - 1e-12
    if not np.array_equal(first, second):
        assert value(after, "jaccard") > value(before, "jaccard")


def test_independent_random_sets_are_near_zero_above_chance() -> None:
    generator = np.random.default_rng(0)
    found = overlaps(of_sets(random_sets(generator, 24, 6, 8), [f"t{i % 6}" for i in range(24)], range(24)), draws=300)
    for index in INDICES:
        matrix = found.matrix(index)
        assert abs(matrix.within.value) < 0.04 and abs(matrix.between.value) < 0.02
        assert np.abs(matrix.excess).max() < 0.15 and matrix.chance.min() > 0.05


def test_a_shared_layer_profile_is_no_overlap() -> None:
    sets = np.zeros((2, 3, 6), dtype=bool)
    sets[:, 1] = True
    matrix = overlaps(pair(*sets), draws=50).matrix()
    assert matrix.value[0, 1] == matrix.chance[0, 1] == 1 and matrix.p[0, 1] == 1 and matrix.adjusted[0, 1] == 1


def test_p_is_uniform_where_there_is_nothing() -> None:
    p, q = [], []
    for seed in range(120):
        sets = random_sets(np.random.default_rng(seed), 4, 6, 8)
        matrix = overlaps(of_sets(sets, "aabb", [0, 1, 2, 3]), draws=79, seed=seed).matrix("weighted")
        p.append(matrix.between.p)
        q.append(matrix.adjusted[np.triu_indices(2)].min())
    assert 0.42 < np.mean(p) < 0.6 and 0.0 < np.mean(np.array(p) <= 0.1) < 0.19
    assert np.mean(np.array(q) <= 0.1) < 0.19  # any of three cells


def test_a_pair_agrees_with_the_overlap_of_the_evidence_card() -> None:
    first, second = random_sets(np.random.default_rng(3), 2, 5, 6)
    editable = np.ones((5, 6), dtype=bool)
    units = [[(int(i), int(j)) for i, j in np.argwhere(one)] for one in (first, second)]
    expected = overlap(units[0], units[1], editable)
    matrix = overlaps(pair(first, second)).matrix()
    assert matrix.value[0, 1] == pytest.approx(expected.jaccard)
    assert matrix.chance[0, 1] == pytest.approx(expected.chance, abs=0.01)
    assert matrix.p[0, 1] == pytest.approx(expected.p, abs=0.05)


def shared_and_own(tasks: int = 5, seeds: int = 3) -> Selections:
    """A head that all select, and in each task three of its own in every run."""
    generator = np.random.default_rng(5)
    sets = np.zeros((tasks * seeds, 6, 8), dtype=bool)
    for run in range(len(sets)):
        sets[run, 0, 0] = True
        own = np.random.default_rng(run // seeds).choice(40, 3, replace=False)
        sets[run].reshape(-1)[8 + own] = True
        sets[run].reshape(-1)[8 + generator.choice(40, 2, replace=False)] = True
    return of_sets(sets, [f"t{i // seeds}" for i in range(len(sets))], [i % seeds for i in range(len(sets))])


def test_own_heads_are_told_from_shared_ones() -> None:
    matrix = overlaps(shared_and_own(), draws=300).matrix()
    assert matrix.difference.value > 0.2 and matrix.difference.p < 0.02
    assert matrix.difference.low > 0 and matrix.difference.mde > 0
    assert matrix.between.value > 0.02 and matrix.within.value > matrix.between.value


def test_pairs_of_one_seed_are_left_out_and_said() -> None:
    found = overlaps(shared_and_own(3, 2), draws=20)
    assert found.pairs.tolist() == [[1, 2, 2], [2, 1, 2], [2, 2, 1]]
    assert not np.isnan(found.matrix().same_seed) and "of one seed" in " ".join(found.notes)
    alike = dataclasses.replace(
        shared_and_own(3, 1),
        origins=tuple(dataclasses.replace(one, seed=7) for one in shared_and_own(3, 1).origins),
    )
    together = overlaps(alike, draws=20)
    assert together.pairs[0, 1] == 1 and "share their seed" in " ".join(together.notes)


def test_neighbours_in_a_matrix_are_the_tasks_that_overlap_and_shuffled_labels_come_last() -> None:
    generator = np.random.default_rng(1)
    first, second = random_sets(generator, 2, 5, 8, 0.2)
    sets = [first, second, first, second, random_sets(generator, 1, 5, 8)[0]]
    found = overlaps(of_sets(sets, "abcda", range(5), ["real"] * 4 + ["shuffled"]), draws=50)
    assert found.groups[-1] == SHUFFLED_GROUP and found.tasks == 4
    assert {frozenset(found.groups[:2]), frozenset(found.groups[2:4])} == {frozenset("ac"), frozenset("bd")}
    assert found.matrix().value[0, 1] == 1
    assert np.isnan(found.matrix().value[-1, -1]) and np.isnan(found.matrix().p[-1, -1])


def test_rules_stand_side_by_side_and_equal_sizes_are_equal() -> None:
    generator = np.random.default_rng(2)
    chosen = spread_gates(generator, of_sets(random_sets(generator, 4, 5, 6), "aabb", [0, 1, 2, 3]))
    found = overlaps(chosen, ["p_open>0.5", "top=5:p_open"], draws=30)
    assert found.rules == ("p_open>0.5", "top=5:p_open", "P(open)")
    np.testing.assert_allclose(
        found.matrix("coefficient", "top=5:p_open").value,
        2 / (1 + 1 / found.matrix("jaccard", "top=5:p_open").value),
        atol=0.2,
    )
    frame = found.to_frame()
    assert len(frame) == 5 * 3 and set(frame["rule"]) == set(found.rules)
    assert len(found.runs_frame()) == 5 * 6 and len(found.summary_frame()) == 5 * 3
    with pytest.raises(ValueError, match="no 'jaccard' under 'point>0'"):
        found.matrix("jaccard", "point>0")


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (4, 1), (3, 3)])
@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("runs", [1, 2, 3])
def test_empty_and_full_sets_single_runs_and_single_heads_do_not_break(shape: Any, fill: bool, runs: int) -> None:
    found = overlaps(of_sets(np.full((runs, *shape), fill), ["a", "b", "a"][:runs], range(runs)), draws=10)
    for matrix in found.matrices:
        known = np.isfinite(matrix.value)
        assert (matrix.value[known] == 1).all() and np.allclose(matrix.excess[known], 0)
        assert (matrix.p[known] == 1).all()


def test_runs_that_differ_by_more_than_task_and_seed_are_refused() -> None:
    found = of_sets(np.ones((2, 2, 2)), "ab", (0, 1))
    origins = (found.origins[0], dataclasses.replace(found.origins[1], method="lofit"))
    with pytest.raises(ValueError, match=r"several values of method \(jola, lofit\)"):
        overlaps(dataclasses.replace(found, origins=origins))
    with pytest.raises(ValueError, match="over must name a rule and draws be 1 or more"):
        overlaps(found, [])


@QUICK
@given(SEEDS)
def test_shuffles_stay_within_layers_and_editable_heads(seed: int) -> None:
    generator = np.random.default_rng(seed)
    editable = generator.random((4, 5)) < 0.7
    shuffle = LayerShuffle(editable)
    values = np.arange(20).reshape(4, 5)
    layer_of = np.nonzero(editable)[0]
    for order in shuffle.draw(generator, 3):
        moved = shuffle.pack(values)[order]
        assert sorted(moved) == sorted(values[editable]) and (moved // 5 == layer_of).all()


def test_means_over_pairs_are_those_of_a_loop() -> None:
    generator = np.random.default_rng(0)
    values = generator.random((6, 6))
    values = values + values.T
    groups, pairs = [0, 0, 1, 1, 1, 2], generator.random((6, 6)) < 0.8
    pairs = pairs | pairs.T
    found = Cells(groups, pairs, 3)
    for g in range(3):
        for h in range(3):
            each = [
                values[i, j] for i in range(6) for j in range(6)
                if i != j and groups[i] == g and groups[j] == h and pairs[i, j]
            ]  # fmt: skip
            mean = found.means(values)[g, h]
            assert mean == pytest.approx(np.mean(each)) if each else np.isnan(mean)


def test_intervals_over_runs_cover_the_truth() -> None:
    """Each run deviates by a number of its own that all its pairs share: pairs are not independent."""
    covered = []
    for seed in range(300):
        own = np.random.default_rng(seed).normal(size=8)
        values = 1 + own[:, None] + own
        low, high = Cells([0] * 4 + [1] * 4, np.ones((8, 8), bool), 2).intervals(values)
        covered.append((low <= 1) & (high >= 1))
    assert (np.mean(covered, axis=0) > 0.9).all()


def test_p_for_all_cells_is_no_smaller_than_that_of_one() -> None:
    generator = np.random.default_rng(0)
    found, null = generator.normal(1, 1, 10), generator.normal(0, 1, (500, 10))
    assert (adjusted(found, null) >= reached(found, null) - 0.02).all()
    assert adjusted(np.array([9.0]), null[:, :1])[0] == pytest.approx(1 / 501)
