"""Curves over seeds: means that count a seed once, and intervals that cover."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from jola_interp.analysis.study_curves import curves, expanded_quantiles


def cells(seeds: int = 5, slope: float = -1.0, noise: float = 0.1, seed: int = 0) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    rows = [
        {"n_train": n, "seed": s, "task": task, "nll": slope * np.log10(n) + noise * generator.normal()}
        for n in (10, 100, 1000) for s in range(seeds) for task in ("a", "b")
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_a_line_is_the_mean_over_seeds_and_a_seed_counts_once() -> None:
    frame = cells()
    more = pd.concat([frame, frame[(frame["seed"] == 0)]])  # a seed with twice as many rows
    found, again = curves(frame, "n_train", "nll"), curves(more, "n_train", "nll")
    [line] = found.lines
    assert line.x.tolist() == [10, 100, 1000] and line.seeds.tolist() == [5, 5, 5]
    expected = frame.groupby(["n_train", "seed"])["nll"].mean().groupby("n_train").mean()
    np.testing.assert_allclose(line.mean, expected)
    np.testing.assert_allclose(again.lines[0].mean, line.mean)
    assert (line.low <= line.mean).all() and (line.mean <= line.high).all()
    assert line.change is not None and line.change.value == pytest.approx(line.mean[-1] - line.mean[0])
    assert line.change.high < 0 and line.change.n == 5


def test_lines_are_parted_by_columns_and_rows_without_numbers_are_left_out() -> None:
    frame = cells()
    frame.loc[(frame["task"] == "b") & (frame["n_train"] == 10), "nll"] = np.nan
    found = curves(frame, "n_train", "nll", by="task")
    assert [line.name for line in found.lines] == ["a", "b"]
    assert [len(line.x) for line in found.lines] == [3, 2]
    assert len(found.to_frame()) == 5


def test_one_seed_has_no_interval_and_is_said() -> None:
    found = curves(cells(1), "n_train", "nll")
    assert np.isnan(found.lines[0].low).all() and found.lines[0].change is None
    assert "No interval where there is one seed alone" in " ".join(found.notes)


def test_bands_never_leave_the_seeds() -> None:
    for seeds in (2, 3, 4):
        [line] = curves(cells(seeds), "n_train", "nll").lines
        for place, x in enumerate(line.x):
            mine = line.points_y[line.points_x == x]
            assert mine.min() - 1e-12 <= line.low[place] <= line.high[place] <= mine.max() + 1e-12


def test_intervals_cover_as_often_as_they_say_with_enough_seeds() -> None:
    covered = []
    for seed in range(150):
        [line] = curves(cells(10, seed=seed), "n_train", "nll", draws=300, seed=seed).lines
        truth = -np.log10(line.x)
        covered.append((line.low <= truth) & (truth <= line.high))
    assert 0.9 < np.mean(covered) < 0.99


def test_expanded_quantiles_are_wider_the_fewer_there_are() -> None:
    lows = [expanded_quantiles(n)[0] for n in (3, 5, 10, 1000)]
    assert lows == sorted(lows) and lows[-1] == pytest.approx(0.025, abs=1e-3)


def test_draws_are_the_same_for_the_same_seed() -> None:
    one, other = (curves(cells(), "n_train", "nll", seed=3).to_frame() for _ in range(2))
    pd.testing.assert_frame_equal(one, other)


def test_columns_that_are_not_there_or_no_numbers_are_refused() -> None:
    frame = cells()
    with pytest.raises(ValueError, match="frame has no column penalty; it has n_train, seed, task, nll"):
        curves(frame, "penalty", "nll")
    with pytest.raises(ValueError, match="task: not numbers"):
        curves(frame, "task", "nll")
    with pytest.raises(ValueError, match="frame must have a row"):
        curves(frame[:0], "n_train", "nll")
