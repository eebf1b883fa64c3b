"""The true change of the logits is that of whole passes in which one part, or a random vector, acts alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jola_interp.analysis import true_change as module
from jola_interp.analysis.lens import Lens
from jola_interp.analysis.parts import drawn, glance_at, knobs, parts_of
from jola_interp.analysis.readout import readout
from jola_interp.analysis.rows import output_weights, prepared
from jola_interp.backends.restart import RestartError
from jola_interp.models import Model
from jola_interp.tasks import Task
from tests.readout_by_hand import VOCABULARY, mean_logits, run_of, small, whole

MakeModel = Callable[..., Model]


@pytest.mark.parametrize("booted", [False, True])
def test_true_change_is_that_of_whole_passes_with_the_part_alone(
    build: MakeModel, toy_task: Task, tmp_path: Path, booted: bool
) -> None:
    model = build(num_hidden_layers=3)
    vectors = {kind: small(model, (1, 0), (1, 2), (2, 3), size=0.5, seed=7) for kind in ("additive", "multiplicative")}
    run = run_of(model, tmp_path, vectors)
    if booted:
        assert model.bridge is not None
    table = readout(run, toy_task, tokens=VOCABULARY, draws=1)
    base = mean_logits(model, toy_task)
    for place, (label, kind) in enumerate(zip(table.labels, table.kinds, strict=True)):
        heads = [label] if "H" in label else [f"{label}H{head}" for head in range(4)]
        with run.attach(model, heads=heads, kinds=[kind]):
            change = mean_logits(model, toy_task) - base
        change -= change.mean()
        np.testing.assert_allclose(whole(table, place, "true"), change, atol=1e-5 * np.abs(base).max())
    assert set(table.kinds[: len(table) - 3]) == {"additive", "multiplicative"}


@pytest.mark.parametrize("units", ["raw", "rms"])
def test_random_vectors_act_as_the_part_in_whose_place_they_are(
    build: MakeModel, toy_task: Task, tmp_path: Path, units: str
) -> None:
    model = build()
    vectors = {kind: small(model, (0, 1), (1, 2), size=0.5) for kind in ("additive", "multiplicative")}
    run = run_of(model, tmp_path, vectors, units=units)
    site = run.edit.site("heads")
    site.unit.mul_(2.0 if units == "rms" else 1.0)
    site.log_alpha["additive"].data.fill_(0.3)  # a gate well below 1
    read = prepared(run, toy_task, model, what="readout")
    parts = parts_of(run, model, knobs(run.edit), glance_at(read, []), 4)
    beside = drawn(model, parts, 2, torch.Generator().manual_seed(3))
    found = module.true_change(read, Lens(model), list(zip(parts, beside, strict=True)), 2, [])
    base = mean_logits(model, toy_task)
    assert {part.kind for part in parts} == {"additive", "multiplicative"} and found.change.shape[1] == 3
    for part, own, changes in zip(parts, beside, found.change, strict=True):
        np.testing.assert_allclose(own.written.norm(dim=-1), float(own.written[0].norm()), rtol=1e-4)
        gates = site.gate_values("expected", {})[part.kind][part.layer, list(part.heads), None].detach()
        unit = site.unit[part.layer, list(part.heads), None] if part.kind == "additive" else 1.0
        for gated, change in zip(own.vectors, changes, strict=True):
            for vector in site.vectors.values():
                vector.data.zero_()
            site.vectors[part.kind].data[part.layer, list(part.heads)] = gated / gates / unit
            with run.attach(model):
                expected = mean_logits(model, toy_task) - base
            np.testing.assert_allclose(change.numpy(), expected, atol=1e-5 * np.abs(base).max())
            assert np.abs(expected).max() > 1e-3


def test_whole_passes_give_what_restarted_ones_give(
    build: MakeModel, toy_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build()
    run = run_of(model, tmp_path, {"additive": small(model, (0, 0), (1, 2), size=0.5)})
    restarted = readout(run, toy_task, tokens=VOCABULARY, contrast=("a", "b"))

    def refuse(*_: Any, **__: Any) -> Any:
        raise RestartError("no")

    monkeypatch.setattr(module, "recorded", refuse)
    naive = readout(run, toy_task, tokens=VOCABULARY, contrast=("a", "b"))
    for place in range(len(naive)):
        lens, true = whole(naive, place, "delta"), whole(naive, place, "true")
        np.testing.assert_allclose(whole(restarted, place, "delta"), lens, atol=1e-4 * np.abs(lens).max())
        np.testing.assert_allclose(whole(restarted, place, "true"), true, atol=1e-4 * np.abs(true).max())
    np.testing.assert_allclose(restarted.contrast_edited, naive.contrast_edited, rtol=1e-4, atol=1e-4)


def test_multiplicative_part_is_the_mean_scaled_z_of_tokens_that_are_not_first(
    build: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    model = build()
    m = small(model, (0, 2), size=0.5)
    table = readout(run_of(model, tmp_path, {"multiplicative": m}), toy_task, draws=1)
    seen: list[torch.Tensor] = []
    handle = model.o_proj(0).register_forward_pre_hook(lambda _, args: seen.append(args[0][0, 1:]))
    mean_logits(model, toy_task)
    handle.remove()
    z = torch.cat(seen).view(-1, 4, 8)[:, 2].mean(0)
    assert (table.labels[0], table.kinds[0]) == ("L0H2", "multiplicative")
    expected = float(((m[0, 2] * z) @ output_weights(model, 0)[2]).norm())
    assert table.norm[0] == pytest.approx(expected, rel=1e-2)  # the gate is .9996 at inference
