"""The loss under each way to read gates is what training's stamp holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jola_interp.analysis import gate_gap
from jola_interp.analysis.tables import NotMeasuredError
from tests.runs_by_hand import make_run, stamped


def test_the_gap_is_the_stamp_with_an_interval_over_draws(tmp_path: Path) -> None:
    found = gate_gap(stamped(make_run(tmp_path)))
    assert found.gates == ("sampled", "expected", "point", "hard") and found.used == "expected"
    np.testing.assert_allclose(found.above_sampled, [0, -0.01, -0.015, -0.02])
    assert np.isnan(found.low[1:]).all() and np.isnan(found.high[1:]).all()
    # 95 % of Student's t with 3 degrees of freedom lie within ±3.1824 (any table of it).
    np.testing.assert_allclose([found.low[0], found.high[0]], [0.52 - 3.1824 * 0.002, 0.52 + 3.1824 * 0.002], rtol=1e-6)


def test_one_draw_has_no_interval(tmp_path: Path) -> None:
    found = gate_gap(stamped(make_run(tmp_path), draws=1))
    assert np.isnan(found.low).all() and np.isnan(found.high).all()


def test_without_a_stamp_there_is_no_gap(tmp_path: Path) -> None:
    with pytest.raises(NotMeasuredError, match="no convergence.json"):
        gate_gap(make_run(tmp_path))
