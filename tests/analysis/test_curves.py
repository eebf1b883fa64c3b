"""Trajectories and losses: what training logged, unchanged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jola_interp import _files, analysis, selection
from jola_interp.analysis import curves
from jola_interp.history import GateHistory
from jola_interp.runs import Run
from tests.runs_by_hand import make_run


def rated(run: Run, rate: float) -> Run:
    """The Run, had it logged a gate learning rate that rises by ``rate`` a step."""
    rows = _files.read_jsonl(run.path / "metrics.jsonl")
    _files.write_jsonl(
        run.path / "metrics.jsonl", [row | ({"gate_lr": rate * row["step"]} if "ce" in row else {}) for row in rows]
    )
    return Run.load(run.path)


def test_trajectories_are_the_history(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    found = analysis.trajectories(run, "multiplicative", top=3)
    np.testing.assert_allclose(found.values, run.gates.p_open("multiplicative").reshape(13, 12), rtol=1e-6)
    assert found.labels[5] == "L1H1" and found.shown == tuple(range(12))
    ends = run.gates.log_alpha("multiplicative")[-1].reshape(-1)
    assert list(found.top) == list(np.argsort(-ends)[:3])


def test_trajectories_leave_out_what_is_not_editable(tmp_path: Path) -> None:
    found = analysis.trajectories(make_run(tmp_path, only={"layers": [2]}), "additive")
    assert found.labels == ("L2H0", "L2H1", "L2H2", "L2H3") and not np.isnan(found.values).any()


def test_many_trajectories_are_thinned_and_say_so(tmp_path: Path) -> None:
    found = analysis.trajectories(make_run(tmp_path, layers=20, heads=32, steps=400), "additive")
    assert len(found.shown) == curves.MOST_LINES and len(found.steps) <= curves.MOST_STEPS
    assert found.steps[0] == 0 and found.steps[-1] == 400
    assert found.values.shape == (len(found.steps), 640)  # the table keeps every unit
    assert found.notes == ("Grey: 300 of 640 gates, evenly spaced.",)


def test_trajectories_refuse_gates_that_are_not_there(tmp_path: Path) -> None:
    run = make_run(tmp_path, operations="add")
    with pytest.raises(ValueError, match="one of additive .* got 'multiplicative'"):
        analysis.trajectories(run, "multiplicative")
    with pytest.raises(ValueError, match="top must be 0 or more; got -1"):
        analysis.trajectories(run, "additive", top=-1)
    run.gates.truncate(-1)
    with pytest.raises(ValueError, match="no record of its gates"):
        analysis.trajectories(run, "additive")


def test_the_travel_of_gates_is_the_sum_of_their_learning_rate_recorded_or_not(tmp_path: Path) -> None:
    run = rated(make_run(tmp_path), 0.1)
    masks = {site: mask.numpy() for site, mask in run.edit.masks().items()}
    run.gates = GateHistory.from_tensors({name: value[::4] for name, value in run.gates.tensors().items()}, masks)
    found = analysis.trajectories(run, "additive")
    assert list(found.steps) == [0, 4, 8, 12] and found.travel is not None
    np.testing.assert_allclose(found.travel, [0.1 * sum(range(1, step + 1)) for step in found.steps])
    np.testing.assert_allclose(found.travel_at([-1, 3, 5.5, 99]), [0, *found.travel[[0, 1, 3]]])


def test_what_moves_by_one_learning_rate_a_step_stays_within_the_cone_and_reaches_its_edge(tmp_path: Path) -> None:
    run = rated(make_run(tmp_path), 0.1)
    starts = np.array([-1.0, 0.5, 2.0])
    rates = np.array([0.1 * step for step in range(1, 13)])
    drawn = np.random.default_rng(0).uniform(-1, 1, (12, 3)) * rates[:, None]
    drawn[:, 0], drawn[:, 2] = -rates, rates  # straight down from the lowest, straight up from the highest
    path = starts + np.vstack([np.zeros(3), np.cumsum(drawn, axis=0)])
    travel = curves.gate_travel(run, run.gates.steps)
    assert travel is not None
    values = selection.measure("p_open", path)
    lowest, highest = curves._cone(starts, travel)
    assert ((values >= lowest[:, None] - 1e-6) & (values <= highest[:, None] + 1e-6)).all()
    np.testing.assert_allclose(values[:, 0], lowest, rtol=1e-5)
    np.testing.assert_allclose(values[:, 2], highest, rtol=1e-5)


def test_the_cone_opens_from_where_gates_start(tmp_path: Path) -> None:
    found = analysis.trajectories(rated(make_run(tmp_path), 0.1), "additive")
    assert found.lowest is not None and found.highest is not None
    assert found.lowest[0] == found.values[0].min() and found.highest[0] == found.values[0].max()
    assert (np.diff(found.lowest) < 0).all() and (np.diff(found.highest) >= 0).all()


def test_a_cone_that_no_gate_can_shut_in_says_so(tmp_path: Path) -> None:
    short = analysis.trajectories(rated(make_run(tmp_path / "a"), 0.01), "additive")
    long = analysis.trajectories(rated(make_run(tmp_path / "b"), 0.5), "additive")
    assert "too little for any gate to shut" in short.reach() and short.lowest is not None
    assert (short.lowest > 0.05).all()
    assert long.lowest is not None
    first = long.steps[np.flatnonzero(long.lowest < 0.05)[0]]
    assert f"from step {first} on" in long.reach()


def test_without_a_logged_gate_learning_rate_there_is_no_cone(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    found = analysis.trajectories(run, "additive")
    assert (found.travel, found.lowest, found.highest, found.reach(), found.travel_at([1])) == (
        None,
        None,
        None,
        "",
        [],
    )
    rows = _files.read_jsonl(tmp_path / "metrics.jsonl")  # nor where some steps lack it
    _files.write_jsonl(tmp_path / "metrics.jsonl", [rows[0] | {"gate_lr": 1.0}, *rows[1:]])
    assert analysis.trajectories(Run.load(tmp_path), "additive").travel is None


def test_losses_are_the_metrics(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    found, rows = analysis.losses(run), run.metrics
    train, validation = rows[rows["ce"].notna()], rows[rows["validation_ce"].notna()]
    assert np.array_equal(found.ce, train["ce"]) and np.array_equal(found.penalty, train["penalty"])
    assert np.array_equal(found.opens["multiplicative"], train["open_multiplicative"])
    assert np.array_equal(found.validation_ce, validation["validation_ce"])
    assert list(found.validation_steps) == [4, 8, 12]
    assert found.best == 1 and found.gates == 12


def test_lambda_is_a_note_while_it_stands_still(tmp_path: Path) -> None:
    still, moving = analysis.losses(make_run(tmp_path / "a")), analysis.losses(make_run(tmp_path / "b", moving=True))
    assert not still.weights_move and still.notes == ("12 gates of each kind.", "λ = 0.4, constant.")
    assert moving.weights_move and moving.notes == ("12 gates of each kind.",)


def test_the_smooth_curve_is_a_centred_mean(tmp_path: Path) -> None:
    found = analysis.losses(make_run(tmp_path, steps=60))
    assert found.window == 3
    np.testing.assert_allclose(found.smooth[1:-1], np.convolve(found.ce, np.ones(3) / 3, "valid"))


def test_a_gap_in_the_curve_stays_a_gap_in_the_smooth_one() -> None:
    values = np.array([np.nan, *np.arange(60.0)])
    smooth, window = curves.smoothed(values)
    assert window == 3 and np.isnan(smooth[0]) and smooth[1] == 0.5  # of steps 1 and 2, the gap left out
    np.testing.assert_allclose(smooth[2:-1], values[2:-1])


def test_losses_of_an_edit_without_gates_have_no_gates(tmp_path: Path) -> None:
    found = analysis.losses(make_run(tmp_path, gates="none"))
    assert found.opens == {} and found.weights == {} and found.notes == ()


def test_losses_need_a_training_step(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    del run.metrics
    with pytest.raises(ValueError, match="holds no training step"):
        analysis.losses(run)


def test_tables_of_curves_are_tidy(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    table = analysis.losses(run).to_frame()
    assert set(table["split"]) == {"train", "validation"}
    assert list(table[(table.split == "validation")]["value"]) == [0.6, 0.5, 0.6]
    paths = analysis.trajectories(run, "additive", top=2).to_frame()
    assert len(paths) == 13 * 12 and sorted(paths["top"].dropna().unique()) == [1, 2]
    row = paths[(paths.step == 12) & (paths.label == "L1H2")]["p_open"].item()
    assert row == pytest.approx(run.gates.p_open("additive")[-1, 1, 2])


def test_the_kept_step_is_the_best_epochs_last(tmp_path: Path) -> None:
    assert analysis.kept_step(make_run(tmp_path / "a", best_epoch=0)) == 4
    assert analysis.kept_step(make_run(tmp_path / "b", best_epoch=0, train={"restore_best": False})) == 12


def test_the_summary_counts_gates_and_heads(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    found = analysis.gate_summary(run)
    opens = {kind: selection.measure("p_open", value) for kind, value in run.log_alphas().items()}
    settled = {kind: (value < 0.05) | (value > 0.95) for kind, value in opens.items()}
    assert found.gates == 24 and found.decided == sum(value.sum() for value in settled.values())
    assert found.selected == len(run.selected()) == sum(n for s, n in found.statuses.items() if s != "none")
    both = settled["additive"] & settled["multiplicative"]
    assert found.settled == sum(both[unit] for unit in run.selected().units)
    assert found.acting == sum((np.max(list(run.log_alphas().values()), axis=0) > -np.log(11)).reshape(-1))
    assert list(found.to_frame()["decided"]) == [value.sum() for value in settled.values()]


@pytest.mark.parametrize(("share", "text"), [(1.0, "100 %"), (0.9996, "99.9 %"), (0.8, "80 %"), (0.0001, "0.1 %")])
def test_shares_are_never_rounded_to_all_or_none(share: float, text: str) -> None:
    assert analysis.summary.percent(share) == text
