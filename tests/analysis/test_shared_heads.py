"""Core heads, specialists and heads that nobody selects, beside chance."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jola_interp.analysis.selections import Origin, Selections
from jola_interp.analysis.shared_heads import CATEGORIES, shared_heads, shared_tail
from tests.analysis.test_selections import OPEN, SHUT, of_sets, random_sets

SEEDS = st.integers(0, 10_000)


def studied(tasks: int = 5, seeds: int = 3, group: int = 0) -> Selections:
    """L0H0 in all tasks, one head of its own in each, one in a single run of the first task, some shared by two."""
    sets = np.zeros((tasks * seeds, 4, 6), dtype=bool)
    for run in range(len(sets)):
        task = run // seeds
        sets[run, 0, 0] = True
        sets[run, 1, task] = True
        sets[run, 3, task // 2] = True
    sets[0, 2, 0] = True
    names = [f"t{run // seeds}" for run in range(len(sets))]
    return of_sets(sets, names, [run % seeds for run in range(len(sets))], group=group)


def test_every_head_has_the_category_that_its_tasks_make() -> None:
    found = shared_heads(studied(), draws=50)
    assert found.heads("core") == ("L0H0",) and found.needed == 4
    assert set(found.heads("specialist")) == {*(f"L1H{i}" for i in range(5)), "L3H2"}
    assert set(found.heads("several tasks")) == {"L3H0", "L3H1"}
    assert found.heads("now and then") == ("L2H0",)
    assert found.count("never").heads == 24 - 1 - 6 - 2 - 1
    assert found.top(1) == (("L0H0", 5),)
    assert found.by_layer.sum() == 24 and found.by_layer.sum(0).tolist() == [one.heads for one in found.counts]
    frame = found.to_frame().set_index("label")
    assert frame.loc["L1H2", "of"] == "t2" and frame.loc["L0H0", "tasks"] == 5
    assert len(found.layers_frame()) == 4 * len(CATEGORIES)


def test_expected_counts_keep_how_many_heads_there_are_in_a_layer() -> None:
    """Layers 0, 1 and 3 have one head in each of five tasks: four or five of them meet at one of six heads with
    probability 6·(5·(1/6)⁴·(5/6) + (1/6)⁵) = .0201, so .0602 core heads are expected."""
    found = shared_heads(studied(), draws=4000)
    np.testing.assert_allclose(found.expected_by_layer.sum(1), 6)
    assert found.expected_by_layer[2, CATEGORIES.index("core")] == 0  # one run there
    assert found.count("core").expected == pytest.approx(0.0602, abs=0.02)
    assert found.count("core").p_more == pytest.approx(0.06, abs=0.02)


def test_independent_tasks_have_as_many_core_heads_as_expected() -> None:
    p = []
    for seed in range(60):
        sets = np.repeat(random_sets(np.random.default_rng(seed), 4, 6, 8, 0.5), 2, axis=0)
        found = shared_heads(of_sets(sets, [f"t{i // 2}" for i in range(8)], [0, 1] * 4), 0.75, draws=99, seed=seed)
        p.append(found.count("core").p_more)
        assert found.count("now and then").heads == 0
    assert 0.4 < np.mean(p) < 0.68 and np.mean(np.array(p) <= 0.1) < 0.22  # counts tie, so p is rather too large


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_the_chance_of_sharing_is_that_of_counting_all_pairs_of_sets(seed: int) -> None:
    generator = np.random.default_rng(seed)
    sizes = np.array([3, 2])
    first, second = generator.integers(0, sizes + 1), generator.integers(0, sizes + 1)
    both = int(generator.integers(0, 5))
    every = [one for one in product([0, 1], repeat=5)]
    fits = [
        [one for one in every if sum(one[:3]) == counts[0] and sum(one[3:]) == counts[1]] for counts in (first, second)
    ]
    shared = [sum(a * b for a, b in zip(one, other, strict=True)) for one in fits[0] for other in fits[1]]
    assert shared_tail(both, sizes, first, second) == pytest.approx(np.mean(np.array(shared) >= both))


def two_kinds(alike: bool, runs: int = 6) -> Selections:
    generator = np.random.default_rng(3)
    additive = np.repeat(random_sets(generator, 1, 6, 8), runs, axis=0)  # the same in every run
    multiplicative = additive if alike else np.repeat(random_sets(generator, 1, 6, 8), runs, axis=0)
    values = np.where(np.stack([additive, multiplicative], axis=1), OPEN, SHUT).astype(np.float32)
    origins = tuple(Origin(f"t{i // 2}", seed=i % 2) for i in range(runs))
    return Selections(values, ("additive", "multiplicative"), origins)


def test_kinds_that_meet_are_found() -> None:
    found = shared_heads(two_kinds(alike=True), draws=200)
    assert found.kinds[0].both == found.kinds[0].additive and found.kinds[0].p < 0.01
    assert all(run.p < 0.01 for run in found.kinds[1:]) and found.kind_excess is not None
    assert found.kind_excess.value > 0.5
    assert len(found.kinds_frame()) == 7


def test_runs_that_repeat_each_other_are_not_so_many_findings() -> None:
    """All runs have the same sets: together they tell no more than one."""
    found = shared_heads(two_kinds(alike=False), draws=800)
    assert found.kinds[0].p == pytest.approx(found.kinds[1].p, abs=0.06)
    assert found.kinds[0].expected == pytest.approx(6 * found.kinds[1].expected)


def test_core_heads_behind_one_key_value_head_are_counted() -> None:
    sets = np.zeros((4, 3, 6), dtype=bool)
    sets[:, 0, :3] = sets[:, 2, 3:] = True  # two whole groups of three
    found = shared_heads(of_sets(sets, "abcd", range(4), group=3), draws=300)
    assert found.key_value is not None
    assert found.key_value.pairs == 6 and found.key_value.expected < 4 and found.key_value.p < 0.05
    groups = found.groups_frame()
    assert groups["core"].tolist() == [3, 0, 0, 0, 0, 3] and groups["never"].sum() == 12


def test_shuffled_labels_are_left_out() -> None:
    sets = random_sets(np.random.default_rng(0), 3, 3, 4)
    found = shared_heads(of_sets(sets, "aba", range(3), ["real", "real", "shuffled"]), draws=5)
    assert found.tasks == ("a", "b") and found.votes.shape[0] == 2
    np.testing.assert_array_equal(found.votes, sets[:2])


@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (3, 4)])
def test_empty_and_full_sets_and_a_single_run_do_not_break(fill: bool, shape: tuple[int, int]) -> None:
    found = shared_heads(of_sets(np.full((1, *shape), fill), "a", [0]), draws=5)
    assert found.count("core" if fill else "never").heads == shape[0] * shape[1]
    assert all(one.p_more == 1 for one in found.counts)
    assert "one task" in " ".join(found.notes)


def test_what_cannot_be_asked_is_refused() -> None:
    with pytest.raises(ValueError, match=r"share must be in \(0, 1\] and draws 1 or more; got 1.5"):
        shared_heads(studied(), 1.5)
    with pytest.raises(ValueError, match="category must be one of never"):
        shared_heads(studied(), draws=5).heads("most")
