"""Stability over seeds and draws: indices that equal what is worked out by hand, beside nulls that hold."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jola_interp.analysis.selections import Selections
from jola_interp.analysis.stability import (
    KUNCHEVA,
    LARGEST,
    NOGUEIRA,
    SELECTED,
    equal_sets,
    kuncheva,
    nogueira,
    nogueira_interval,
    rank_agreement,
    stability,
)
from tests.analysis.test_selections import of_sets, random_sets

QUICK = settings(max_examples=25, deadline=None)
SEEDS = st.integers(0, 10_000)
WORKED = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 0]], dtype=bool)


def test_nogueiras_index_equals_the_worked_example() -> None:
    """Three runs of four heads: {0, 1}, {0, 2}, {0, 1}.

    f = 1, 2/3, 1/3, 0. s² = M/(M − 1)·f(1 − f) = 3/2·(0, 2/9, 2/9, 0) = 0, 1/3, 1/3, 0; its mean over heads 1/6.
    k̄ = 2, so k̄/d·(1 − k̄/d) = 1/2·1/2 = 1/4. Φ = 1 − (1/6)/(1/4) = 1/3.

    All runs have k = 2, so the last term of φ_i is Φ/2·(2·(1/2)(1/2) − 1/2 − 1/2 + 1) = Φ/2·1/2 = 1/12, and
    φ_i = 4·(mean over heads of z_i·f − 1/4 + 1/12) = 4·(mean − 1/6).
    Runs 1 and 3: mean (1 + 2/3)/4 = 5/12, φ = 4·(5/12 − 2/12) = 1. Run 2: (1 + 1/3)/4 = 1/3, φ = 4·(1/3 − 1/6) = 2/3.
    Mean φ = 8/9; Σ(φ − mean)² = 1/81 + 4/81 + 1/81 = 6/81 = 2/27. v = 4/M²·2/27 = 8/243.
    """
    assert float(nogueira(WORKED)) == pytest.approx(1 / 3)
    low, high = nogueira_interval(WORKED)
    half = 1.959964 * float(Fraction(8, 243)) ** 0.5
    assert (low, high) == (pytest.approx(1 / 3 - half, abs=1e-6), pytest.approx(1 / 3 + half, abs=1e-6))


def test_kunchevas_index_equals_the_worked_example() -> None:
    """The same runs: pairs share 1, 2 and 1 heads; (r·4 − 4)/(2·2) = 0, 1, 0, mean 1/3."""
    assert float(kuncheva(WORKED)) == pytest.approx(1 / 3)


@QUICK
@given(SEEDS, st.integers(2, 6))
def test_identical_sets_are_wholly_stable(seed: int, runs: int) -> None:
    one = random_sets(np.random.default_rng(seed), 1, 3, 5)[0]
    one[0, 0], one[0, 1] = True, False
    sets = np.tile(one.reshape(-1), (runs, 1))
    assert float(nogueira(sets)) == pytest.approx(1) and float(kuncheva(sets)) == pytest.approx(1)
    assert nogueira_interval(sets) == pytest.approx((1, 1))


@QUICK
@given(SEEDS, st.integers(2, 6), st.integers(1, 11))
def test_both_indices_agree_on_sets_of_one_size(seed: int, runs: int, k: int) -> None:
    sets = equal_sets(np.random.default_rng(seed).random((runs, 12)), k)
    assert (sets.sum(1) == k).all()
    assert float(nogueira(sets)) == pytest.approx(float(kuncheva(sets)))


@QUICK
@given(SEEDS)
def test_stability_does_not_depend_on_the_order_of_runs_and_heads(seed: int) -> None:
    generator = np.random.default_rng(seed)
    sets = random_sets(generator, 4, 1, 12).reshape(4, 12)
    moved = sets[generator.permutation(4)][:, generator.permutation(12)]
    np.testing.assert_allclose(nogueira(sets), nogueira(moved))
    np.testing.assert_allclose(nogueira_interval(sets), nogueira_interval(moved))


@QUICK
@given(SEEDS)
def test_rank_agreement_is_the_mean_of_spearmans_correlations(seed: int) -> None:
    from scipy.stats import rankdata, spearmanr

    values = np.random.default_rng(seed).normal(size=(4, 10)).round(1)
    expected = np.mean([spearmanr(values[i], values[j])[0] for i in range(4) for j in range(i)])
    assert float(rank_agreement(rankdata(values, axis=1))) == pytest.approx(expected)


def test_random_selections_are_near_zero_with_uniform_p() -> None:
    p, values = [], []
    for seed in range(100):
        generator = np.random.default_rng(seed)
        found = of_sets(random_sets(generator, 3, 6, 8), "aaa", range(3))
        gates = generator.normal(size=found.log_alpha.shape).astype(np.float32)
        found = dataclasses.replace(found, log_alpha=found.log_alpha + gates)
        table = stability(found, draws=79, seed=seed)
        values.append(table.score("a").value)
        p.append(table.score("a", "rank additive").p)  # shares of heads tie, ranks do not
    assert abs(np.mean(values)) < 0.02
    assert 0.4 < np.mean(p) < 0.6 and np.mean(np.array(p) <= 0.1) < 0.2


def test_intervals_cover_with_four_runs_and_the_asymptotic_one_is_told_beside() -> None:
    generator = np.random.default_rng(0)
    likely = generator.beta(0.3, 1.2, 60)
    truth = float(nogueira(generator.random((20_000, 60)) < likely))
    covered = []
    for _ in range(80):
        sets = (generator.random((4, 60)) < likely).reshape(4, 6, 10)
        score = stability(of_sets(sets, "aaaa", range(4)), draws=2).score("a")
        covered.append(score.low <= truth <= score.high)
        assert (score.asymptotic_low, score.asymptotic_high) == nogueira_interval(sets.reshape(4, -1))
    assert np.mean(covered) > 0.88


def test_chance_knows_the_layer_profile() -> None:
    sets = np.zeros((4, 6, 8), dtype=bool)
    generator = np.random.default_rng(0)
    sets[:, 2] = generator.random((4, 8)) < 0.6  # all in one layer, at random there
    score = stability(of_sets(sets, "aaaa", range(4)), draws=300).score("a")
    assert score.value > 0.3 and score.chance > 0.3 and score.chance_low < score.value < score.chance_high


def stable(runs: int = 4) -> Selections:
    """Three heads in every run, two at random; the largest vectors are elsewhere in every run."""
    generator = np.random.default_rng(1)
    sets = np.zeros((runs, 5, 6), dtype=bool)
    sets[:, [0, 2, 4], [1, 3, 5]] = True
    for one in sets:
        one.reshape(-1)[generator.choice(30, 2, replace=False)] = True
    found = of_sets(sets, ["a"] * runs, range(runs))
    norms = generator.random((runs, 2, 5, 6)).astype(np.float32)
    return dataclasses.replace(found, norms=norms)


def test_stable_selections_beat_random_heads_and_unstable_vectors() -> None:
    table = stability(stable(), draws=300)
    for index in (NOGUEIRA, KUNCHEVA):
        selected, largest = table.score("a", index), table.score("a", index, LARGEST)
        assert selected.value > largest.value + 0.3 and selected.p < 0.01 < largest.p
        margin = table.margins["a", index]
        above = [score.value - score.chance for score in (selected, largest)]
        assert margin.value == pytest.approx(above[0] - above[1]) and margin.mde > 0
    assert {label for label, share in table.top("a", 3) if share == 1} == {"L0H1", "L2H3", "L4H5"}
    assert table.score("a", "rank additive").value > 0
    np.testing.assert_array_equal(table.frequency[0], stable().sets().mean(0))


def test_vectors_that_prefer_the_same_layers_are_no_more_stable_than_chance() -> None:
    """Their sets are alike, but so are random sets of their layers; the selection is alike beyond that."""
    found = stable()
    generator = np.random.default_rng(2)
    steep = (100 ** np.arange(5))[None, None, :, None] * (1 + generator.random((4, 2, 5, 6)))
    table = stability(dataclasses.replace(found, norms=steep.astype(np.float32)), draws=300)
    selected, largest = table.score("a"), table.score("a", way=LARGEST)
    assert largest.value > selected.value - 0.2 and largest.chance > 0.3 > selected.chance
    above = table.above_chance()
    assert above["difference"].value == pytest.approx(above[SELECTED].value - above[LARGEST].value)
    assert (
        table.margins["a", NOGUEIRA].value == pytest.approx(above["difference"].value)
        and above["difference"].value > 0.2
    )


def test_largest_vectors_are_as_many_as_were_selected() -> None:
    found = dataclasses.replace(stable(), norms=stable().norms)
    table = stability(found, draws=10)
    assert table.sizes[0] == tuple(found.sets().sum((1, 2)))
    same = dataclasses.replace(found, norms=of_sets(found.sets(), ["a"] * 4, range(4)).norms)
    both = stability(same, draws=10)
    assert both.score("a").value == pytest.approx(both.score("a", NOGUEIRA, LARGEST).value)


def test_seeds_and_draws_of_the_data_are_told_apart() -> None:
    sets = random_sets(np.random.default_rng(0), 4, 4, 4)
    found = of_sets(sets, "aaaa", [0, 1, 0, 1])
    origins = tuple(dataclasses.replace(one, draw=place // 2) for place, one in enumerate(found.origins))
    found = dataclasses.replace(found, origins=origins)
    assert stability(found, "seeds", draws=5).groups == ("a, data 0", "a, data 1")
    assert stability(found, "draws", draws=5).groups == ("a, seed 0", "a, seed 1")
    assert stability(found, draws=5).groups == ("a",)
    with pytest.raises(ValueError, match="no two runs of a task differ in their seed alone"):
        stability(found.select(seed=0), "seeds")
    with pytest.raises(ValueError, match="over must be one of runs, seeds, draws"):
        stability(found, "tasks")  # type: ignore[arg-type]


@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize("shape", [(1, 1), (3, 4)])
def test_empty_and_full_sets_single_runs_and_single_heads_have_no_index(
    fill: bool, runs: int, shape: tuple[int, int]
) -> None:
    table = stability(of_sets(np.full((runs, *shape), fill), ["a"] * runs, range(runs)), draws=5)
    assert np.isnan(table.score("a").value) and np.isnan(table.score("a").p)
    assert (table.frequency == float(fill)).all()
    assert len(table.to_frame()) == len(table.scores)
    assert len(table.frequency_frame()) == shape[0] * shape[1]


def test_kuncheva_refuses_sets_of_several_sizes_and_scores_have_names() -> None:
    with pytest.raises(ValueError, match=r"needs sets of one size; got \[1, 2\]"):
        kuncheva(np.array([[True, False], [True, True]]))
    table = stability(stable(), draws=5)
    with pytest.raises(ValueError, match="no 'nogueira' of 'selected' for 'b'"):
        table.score("b", way=SELECTED)
