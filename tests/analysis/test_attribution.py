"""Direct logit attribution: it adds up to the true change where nothing answers, and is of the asked contrast."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from jola_interp.analysis.readout import readout
from jola_interp.models import Model
from jola_interp.tasks import Task
from tests.readout_by_hand import idle, run_of, small

MakeModel = Callable[..., Model]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3", "granite"])
def test_attributions_add_up_to_the_true_change_where_later_layers_are_idle(
    build: MakeModel, choices: Task, tmp_path: Path, architecture: str
) -> None:
    model = idle(build(architecture))
    vectors = {kind: small(model, (0, 1), (0, 2), size=1e-3) for kind in ("additive", "multiplicative")}
    table = readout(run_of(model, tmp_path, vectors), choices)
    assert table.attribution is not None and table.attribution_null is not None
    assert set(np.flatnonzero(table.attribution)) == {1, 2}
    change = float((table.contrast_edited - table.contrast_base).mean())
    assert float(table.attribution.sum()) == pytest.approx(change, rel=1e-2)
    assert not table.attribution_null[1].any() and table.attribution_null[0, 1].all()


def test_contrast_is_right_against_wrong_at_the_token_that_tells(
    build: MakeModel, choices: Task, tmp_path: Path
) -> None:
    model = build()
    run = run_of(model, tmp_path, {"additive": small(model, (0, 1), size=0.5)})
    table = readout(run, choices, rows=4)
    digits = {name: model.tokenizer(name).input_ids[0] for name in "123"}

    def contrasts() -> list[float]:
        found = []
        for example in choices.test[:4]:
            ids = torch.tensor([model.tokenizer(f"{example.instruction}answer").input_ids])
            with torch.no_grad():
                logits = model.logits(ids, torch.ones_like(ids))[0, -1]
            right = example.answer[-1]
            wrong = [float(logits[token]) for name, token in digits.items() if name != right]
            found.append(float(logits[digits[right]]) - sum(wrong) / 2)
        return found

    np.testing.assert_allclose(table.contrast_base, contrasts(), rtol=1e-4, atol=1e-4)
    with run.attach(model):
        np.testing.assert_allclose(table.contrast_edited, contrasts(), rtol=1e-4, atol=1e-4)


def test_a_text_task_has_an_attribution_only_for_a_contrast(build: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    run = run_of(build(), tmp_path, {"additive": {(0, 0): torch.ones(8)}})
    plain, asked = readout(run, toy_task), readout(run, toy_task, contrast=(" a", "bc"))
    assert plain.attribution is None and plain.contrast == ""
    with pytest.raises(ValueError, match="contrast: there is none"):
        plain.attribution_sheet()
    assert asked.contrast == "logit of ·a − logit of bc"
    frame = asked.attributions()
    assert frame["label"][0] == "L0H0" and len(frame) == 8
    assert (frame["p"][1:] == 1).all() and frame["se"][0] > 0
    sheet = asked.attribution_sheet()
    assert [panel.kind for panel in sheet.panels] == ["signed", "signed"]
    assert sheet.panels[0].range == sheet.panels[1].range
    assert f"{len(toy_task.test)} test rows" in sheet.notes[0]
