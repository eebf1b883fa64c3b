"""Overlaps and their null: random sets of the same layer profile."""

from __future__ import annotations

import numpy as np
import pytest

from jola_interp.evidence.overlap import overlap, random_like

EDITABLE = np.ones((6, 8), dtype=bool)
SOME = [(0, 1), (0, 5), (3, 2), (3, 3), (5, 7)]


def test_a_set_overlaps_itself_wholly_and_more_than_chance() -> None:
    found = overlap(SOME, SOME, EDITABLE)
    assert found.jaccard == 1.0 and found.shared == len(SOME)
    assert found.p < 0.05 and found.chance < 0.5


def test_disjoint_sets_share_nothing_and_p_is_one() -> None:
    found = overlap(SOME, [(1, 0), (2, 4)], EDITABLE)
    assert (found.jaccard, found.shared, found.p) == (0.0, 0, 1.0)


def test_a_shared_layer_profile_is_no_overlap() -> None:
    """Two sets that fill the same layer wholly must overlap: the null says so."""
    whole_layer = [(2, head) for head in range(8)]
    found = overlap(whole_layer, whole_layer, EDITABLE)
    assert found.jaccard == found.chance == 1.0 and found.p == 1.0


def test_random_sets_keep_the_number_of_heads_in_every_layer_and_what_is_editable() -> None:
    editable = EDITABLE.copy()
    editable[3, 4:] = False
    generator = np.random.default_rng(0)
    seen = set()
    for _ in range(200):
        heads = random_like(SOME, editable, generator)
        assert sorted(layer for layer, _ in heads) == [0, 0, 3, 3, 5]
        assert all(editable[unit] for unit in heads)
        seen |= set(heads)
    assert {head for layer, head in seen if layer == 3} == {0, 1, 2, 3}
    assert {head for layer, head in seen if layer == 5} == set(range(8))


def test_chance_is_that_of_the_hypergeometric_law() -> None:
    """One head each of one layer of 8: they meet one time in eight."""
    found = overlap([(1, 0)], [(1, 3)], EDITABLE)
    assert found.chance == pytest.approx(1 / 8, abs=0.03)


def test_a_head_that_is_not_editable_is_refused() -> None:
    editable = EDITABLE.copy()
    editable[0, 1] = False
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        overlap(SOME, SOME, editable)
