"""Transfer between tasks, and its correlation with overlap."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from jola_interp.analysis.transfer import mantel_test, transfer

TASKS = ("a", "b", "c", "d", "e")


def rows(gain: np.ndarray, seeds: int = 2, noise: float = 0.0, flipped: bool = False) -> pd.DataFrame:
    """NLL (or, flipped, accuracy) of edits that gain a share of what the target's own edit gains."""
    generator, sign = np.random.default_rng(0), -1.0 if flipped else 1.0
    found = []
    for i, source in enumerate(TASKS):
        for j, target in enumerate(TASKS):
            for seed in range(seeds):
                own = 1 + 0.1 * seed
                score = 3 - gain[i, j] * own + noise * generator.normal()
                told = {"base": sign * 3.0, "own": sign * (3.0 - own), "score": sign * score}
                found.append({"source": source, "target": target, "seed": seed, **told})
    return pd.DataFrame(found)


def random_gain(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((5, 5))


@pytest.mark.parametrize("flipped", [False, True])
def test_relative_gain_is_the_share_whichever_direction_is_better(flipped: bool) -> None:
    gain = random_gain()
    found = transfer(rows(gain, flipped=flipped))
    assert found.tasks == TASKS
    np.testing.assert_allclose(found.gain, gain)
    np.testing.assert_allclose(found.low, gain, atol=1e-6)
    assert (found.rows == 2).all() and len(found.to_frame()) == 25


def test_intervals_over_seeds_hold_the_gain_and_one_seed_has_none() -> None:
    found = transfer(rows(random_gain(), seeds=4, noise=0.1))
    assert (found.low < found.gain).all() and (found.gain < found.high).all()
    assert np.isnan(transfer(rows(random_gain(), seeds=1)).low).all()


def test_a_target_whose_own_edit_gains_nothing_has_no_share() -> None:
    frame = rows(random_gain())
    frame.loc[frame["target"] == "b", "own"] = 3.0
    found = transfer(frame)
    assert np.isnan(found.gain[:, 1]).all() and np.isfinite(found.gain[:, 0]).all()
    assert "5 pairs of tasks have no share" in " ".join(found.notes)


def test_correlation_is_spearmans_off_the_diagonal_and_follows_the_names() -> None:
    gain, shared = random_gain(1), random_gain(2)
    shared = shared + shared.T
    found = transfer(rows(gain), shared, TASKS, overlap_name="Jaccard")
    off = ~np.eye(5, dtype=bool)
    assert found.mantel is not None
    assert found.mantel.rho == pytest.approx(spearmanr(gain[off], shared[off])[0])
    order = [3, 1, 4, 0, 2]
    moved = transfer(rows(gain), shared[np.ix_(order, order)], tuple(TASKS[i] for i in order))
    assert moved.mantel is not None and moved.mantel.rho == pytest.approx(found.mantel.rho)
    assert moved.mantel.p == pytest.approx(found.mantel.p) and found.mantel.exact


def test_p_is_the_share_of_all_orders_and_uniform_where_there_is_nothing() -> None:
    """Overlap that is the transfer itself: only the order as it is reaches it, one in 120."""
    gain = random_gain(1)
    assert mantel_test(gain, gain).p == pytest.approx(1 / 120)
    p = [mantel_test(random_gain(i), random_gain(100 + i)).p for i in range(60)]
    assert 0.38 < np.mean(p) < 0.62 and np.mean(np.array(p) <= 0.1) < 0.22


def test_rows_for_shuffled_labels_in_an_overlap_are_left_out() -> None:
    wider = np.random.default_rng(0).random((6, 6))
    found = transfer(rows(random_gain()), wider, (*TASKS, "labels shuffled"))
    assert found.tasks == TASKS and found.overlap is not None
    np.testing.assert_array_equal(found.overlap, wider[:5, :5])


def test_constant_overlaps_and_few_tasks_have_no_correlation() -> None:
    assert np.isnan(mantel_test(random_gain(), np.ones((5, 5))).rho)
    two = rows(random_gain())
    two = two[two["source"].isin(["a", "b"]) & two["target"].isin(["a", "b"])]
    assert transfer(two, np.ones((2, 2)), ("a", "b")).mantel is None


def test_what_does_not_fit_is_refused() -> None:
    frame = rows(random_gain())
    with pytest.raises(ValueError, match="frame has no column own; it needs source, target, score, base, own"):
        transfer(frame.drop(columns="own"))
    with pytest.raises(ValueError, match="tasks lacks c, d, e"):
        transfer(frame, tasks=("a", "b"))
    with pytest.raises(ValueError, match=r"overlap must be \[task, task\] with tasks named; got \[2, 2\]"):
        transfer(frame, np.ones((2, 2)), TASKS)
    with pytest.raises(ValueError, match="frame must have a row"):
        transfer(frame[:0])
