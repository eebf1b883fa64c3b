"""Gates over training: counts are the history counted, and gates decide when they stay."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from jola_interp import _files
from jola_interp.analysis import dynamics
from jola_interp.history import GateHistory
from jola_interp.runs import Run
from tests.runs_by_hand import make_run

RULES = ["p_open>0.5", "expected>0.0881", "point>0", "top=5:p_open"]


def rated(run: Run, last: int) -> Run:
    """The Run, had it logged a gate learning rate that is 0 after step ``last``."""
    rows = _files.read_jsonl(run.path / "metrics.jsonl")
    rates = [{"gate_lr": 0.1 if row["step"] <= last else 0.0} if "ce" in row else {} for row in rows]
    _files.write_jsonl(run.path / "metrics.jsonl", [row | rate for row, rate in zip(rows, rates, strict=True)])
    return Run.load(run.path)


def with_history(run: Run, log_alphas: Mapping[str, np.ndarray]) -> Run:
    """The Run, had its heads' gates gone these ways, [step, layer, head]."""
    tensors = {
        f"log_alpha.heads.{kind}": torch.from_numpy(value.astype(np.float32)) for kind, value in log_alphas.items()
    }
    steps = torch.arange(len(next(iter(log_alphas.values()))))
    masks = {site: mask.numpy() for site, mask in run.edit.masks().items()}
    run.gates = GateHistory.from_tensors({"step": steps, **tensors}, masks)
    return run


# -- over training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_the_budget_is_the_history_counted(tmp_path: Path, rule: str) -> None:
    run = make_run(tmp_path, moving=True)
    found = dynamics.budget(run, rule)
    opens = {kind: run.gates.p_open(kind).astype(float) for kind in ("additive", "multiplicative")}  # type: ignore[arg-type]
    for kind, value in opens.items():
        np.testing.assert_allclose(found.expected[kind], value.sum((1, 2)))
    either = 1 - (1 - opens["additive"]) * (1 - opens["multiplicative"])
    np.testing.assert_allclose(found.expected["either"], either.sum((1, 2)))
    codes = run.gates.status(rule)
    assert np.array_equal(found.opened["either"], (codes > 0).sum((1, 2)))
    assert np.array_equal(found.opened["additive"], (codes % 2 == 1).sum((1, 2)))
    rows = run.metrics[run.metrics["ce"].notna()]
    assert np.isnan(found.ce[0]) and np.array_equal(found.ce[1:], rows["ce"])
    assert np.array_equal(found.weights["additive"][1:], rows["lambda_additive"])


def test_a_gate_decides_at_the_first_record_from_which_it_stays(tmp_path: Path) -> None:
    run = make_run(tmp_path, layers=2, heads=8, kv_heads=8)
    walks = {
        kind: np.cumsum(np.random.default_rng(seed).normal(0, 2.5, (40, 2, 8)), axis=0)
        for seed, kind in enumerate(("additive", "multiplicative"))
    }
    found = dynamics.closing(with_history(run, walks))
    opens = np.concatenate([run.gates.p_open(k).reshape(40, 16) for k in ("additive", "multiplicative")], axis=1)  # type: ignore[arg-type]
    for gate, path in enumerate(opens.T):
        sides = np.where(path < 0.05, "shut", np.where(path > 0.95, "open", "undecided"))
        stays = [step for step in range(40) if (sides[step:] == sides[-1]).all() and sides[-1] != "undecided"]
        assert found.outcomes[gate] == sides[-1]
        assert found.decided[gate] == stays[0] if stays else np.isnan(found.decided[gate])
        earlier = sides[: stays[0] if stays else 40]
        start = next((i for i, side in enumerate(earlier) if side == "undecided"), len(earlier))
        assert found.returned[gate] == (earlier[start:] != "undecided").any()
    assert {"shut", "open", "undecided"} == set(found.outcomes) and found.returned.any()  # the walks tried everything
    assert found.labels[17] == "L0H1" and found.kinds[17] == "multiplicative"


def test_decided_gates_never_grow_fewer_and_end_as_the_outcomes(tmp_path: Path) -> None:
    found = dynamics.closing(make_run(tmp_path))
    for name, counts in found.over_time().items():
        kind, outcome = name.split(", ")
        assert (np.diff(counts) >= 0).all()
        ends = [o == outcome for k, o in zip(found.kinds, found.outcomes, strict=True) if k == kind]
        assert counts[-1] == sum(ends)


def test_the_first_to_decide_come_first(tmp_path: Path) -> None:
    found = dynamics.closing(make_run(tmp_path))
    ranked = found.top(len(found))
    known = ranked.decided[~np.isnan(ranked.decided)]
    assert np.array_equal(known, np.sort(found.decided[~np.isnan(found.decided)]))
    assert np.isnan(ranked.decided[len(known) :]).all()
    frame = found.to_frame()
    for label, kind, step in zip(ranked.labels, ranked.kinds, ranked.decided, strict=True):
        row = frame[(frame.label == label) & (frame.kind == kind)]["step"].item()
        assert row == step or np.isnan(row) and np.isnan(step)
    assert len(found.top(3)) == 3


def test_when_gates_were_fixed_is_told_where_it_was_logged(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert dynamics.closing(run).fixed is None
    assert dynamics.closing(rated(run, 8)).fixed == 8


def test_tables_over_training_need_a_record(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.gates.truncate(-1)
    for table in (dynamics.budget, dynamics.closing, dynamics.strips):
        with pytest.raises(ValueError, match="no record of its gates"):
            table(run)


# -- strips ------------------------------------------------------------------------------------------------------------


def test_a_strip_is_the_history_on_its_side(tmp_path: Path) -> None:
    run = make_run(tmp_path, only={"layers": [0, 2]})
    (panels,) = dynamics.strips(run).rows
    for panel, kind in zip(panels, ("additive", "multiplicative"), strict=True):
        opens = run.gates.p_open(kind)[:, [0, 2]].reshape(13, 8)  # type: ignore[arg-type]
        np.testing.assert_allclose(panel.values, opens.T, rtol=1e-6)
        assert panel.labels[4, 7] == "L2H0"
        assert panel.x_ticks == ((0, "0"), (5, "5"), (10, "10"))
        assert panel.y_ticks == ((1.5, "0"), (5.5, "2"))


def test_large_strips_keep_the_number_of_open_gates(tmp_path: Path) -> None:
    run = make_run(tmp_path, layers=25, heads=26, kv_heads=13, steps=160, only={"layers": list(range(1, 25))})
    found = dynamics.strips(run)
    for panel, kind in zip(found.panels, ("additive", "multiplicative"), strict=True):
        assert panel.shape[0] <= dynamics.MOST_ROWS and panel.shape[1] == dynamics.MOST_COLUMNS
        sizes = [1 if "-" not in str(name) else _size(str(name)) for name in panel.labels[:, 0]]
        assert sum(sizes) == 24 * 26
        shown = np.unique(np.linspace(0, 160, dynamics.MOST_COLUMNS).round().astype(int))
        assert [text for _, text in panel.x_ticks] == ["0", "50", "100", "150"]
        np.testing.assert_allclose(
            np.interp([at for at, _ in panel.x_ticks], range(len(shown)), shown), [0, 50, 100, 150]
        )
        opens = np.nansum(run.gates.p_open(kind), axis=(1, 2))[shown]  # type: ignore[arg-type]
        np.testing.assert_allclose((panel.values * np.array(sizes)[:, None]).sum(0), opens, rtol=1e-4)
    assert "mean of up to 3 neighbouring heads" in found.notes[0] and "150 of 161 records" in found.notes[1]


def _size(name: str) -> int:
    """Of "L3H4-6": 3."""
    first, last = name.split("H")[1].split("-")
    return int(last) - int(first) + 1
