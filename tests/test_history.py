"""The gate history: what is recorded is what comes back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from jola_interp import gates
from jola_interp.edits.base import Kind, Site
from jola_interp.history import GateHistory

KEYS: list[tuple[Site, Kind]] = [("heads", "additive"), ("heads", "multiplicative")]
MASK: dict[Site, np.ndarray] = {"heads": np.array([[True, True, False], [True, True, True]])}


def made() -> tuple[GateHistory, dict[int, dict[tuple[Site, Kind], torch.Tensor]]]:
    history, given = GateHistory(MASK, KEYS, 8), {}
    generator = torch.Generator().manual_seed(0)
    for step in (0, 2, 4, 5):
        given[step] = {key: 3 * torch.randn(2, 3, generator=generator) for key in KEYS}
        history.record(step, given[step])
    return history, given


def test_views_are_the_gate_functions_of_what_was_recorded() -> None:
    history, given = made()
    views = {"p_open": gates.p_open, "expected": gates.expected, "point": gates.point}
    for name, function in views.items():
        for site, kind in KEYS:
            expected = np.stack([function(given[step][site, kind]).numpy() for step in (0, 2, 4, 5)])
            found = getattr(history, name)(kind)
            np.testing.assert_allclose(found[:, MASK["heads"]], expected[:, MASK["heads"]], rtol=1e-6)
            assert np.isnan(found[:, ~MASK["heads"]]).all()


def test_at_gives_the_last_record_not_after_a_step() -> None:
    history, given = made()
    found = history.at(3)["additive"][MASK["heads"]]
    np.testing.assert_array_equal(found, given[2]["heads", "additive"].numpy()[MASK["heads"]])
    assert history.status().shape == (4, 2, 3)


def test_recording_a_step_again_replaces_it_and_truncating_forgets() -> None:
    history, given = made()
    history.record(5, given[0])
    assert history.steps.tolist() == [0, 2, 4, 5]
    np.testing.assert_array_equal(history.at()["additive"], history.at(0)["additive"])
    history.truncate(2)
    assert history.steps.tolist() == [0, 2]


def test_history_travels_through_tensors_and_parquet(tmp_path: Path) -> None:
    history, _ = made()
    twin = GateHistory.from_tensors(history.tensors(), MASK)
    pd.testing.assert_frame_equal(twin.to_frame(), history.to_frame())
    frame = pd.read_parquet(history.to_parquet(tmp_path / "gates.parquet"))
    assert len(frame) == 4 * 5 * 2
    assert list(frame.columns) == [
        "step", "site", "layer", "head", "label", "kind", "log_alpha", "p_open", "expected", "point",
    ]  # fmt: skip
    row = frame[(frame.step == 4) & (frame.label == "L1H2") & (frame.kind == "additive")].iloc[0]
    assert row.p_open == pytest.approx(float(history.p_open("additive")[2, 1, 2]))


def test_a_kind_that_is_not_there_is_named() -> None:
    history = GateHistory(MASK, KEYS[:1], 2)
    history.record(0, {KEYS[0]: torch.zeros(2, 3)})
    with pytest.raises(KeyError, match="no multiplicative gates.*heads additive"):
        history.p_open("multiplicative")
