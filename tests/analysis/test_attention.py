"""Patterns are the model's own, an edit moves them from below only, and the model is left as it was."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jola_interp.analysis.attention import (
    LONGEST_TICK,
    MOST_TICKS,
    AttentionPatterns,
    attention,
    attention_sheet,
    entropy,
    total_variation,
)
from jola_interp.analysis.attention_weights import AttentionError
from jola_interp.analysis.tables import read_table, write_table
from jola_interp.backends import attach
from jola_interp.models import Model
from jola_interp.tasks import Example, Task
from tests.analysis.test_tokens import HOSTILE, random_edit, run_of
from tests.conftest import ARCHITECTURES, build_hf

MakeModel = Callable[..., Model]
HEADS = ["L0H1", "L1H0", "L1H3"]
TEXT = "the cat sat"


def hooks_of(model: Model) -> list[int]:
    return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.hf.modules()]


@pytest.fixture
def patterns(make_model: MakeModel, tmp_path: Path) -> AttentionPatterns:
    """Three heads on two texts of different lengths."""
    model = make_model()
    return attention(run_of(model, tmp_path), [TEXT, "a dog and 猫"], HEADS, controls=3)


# -- what is measured --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("booted", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_patterns_are_the_models_own(make_model: MakeModel, tmp_path: Path, architecture: str, booted: bool) -> None:
    model = make_model(architecture)
    if booted:
        assert model.bridge is not None
    found = attention(run_of(model, tmp_path), TEXT, HEADS, controls=1)
    with torch.no_grad():
        ids = torch.tensor([model.tokenizer(TEXT).input_ids])  # type: ignore[misc]
        expected = build_hf(architecture, "eager")(ids, output_attentions=True).attentions
    assert np.isfinite(found.before).all() and np.isfinite(found.after).all()
    for place, (layer, head) in enumerate([(0, 1), (1, 0), (1, 3)]):
        np.testing.assert_allclose(found.before[0, place], expected[layer][0, head], atol=1e-5)
        for pattern in found.pattern(0, place):
            np.testing.assert_allclose(pattern.sum(-1), 1, atol=1e-5)
            assert (pattern >= 0).all() and not np.triu(pattern, 1).any()


def test_an_edit_moves_patterns_of_layers_above_it_only(make_model: MakeModel, tmp_path: Path) -> None:
    for edited, moves in ((0, True), (1, False)):
        model = make_model()
        found = attention(run_of(model, tmp_path, random_edit(model, layers=[edited])), TEXT, HEADS, controls=1)
        assert not found.change[:, 0].any() and not found.distance[:, 0].any()
        assert found.change[:, 1:].any() == moves
        assert found.random_distance[:, :, 1:].any() == moves
        assert found.acting == (0, int(moves), int(moves))


def test_closed_gates_do_not_act(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    edit = random_edit(model)
    for value in edit.site("heads").log_alpha.values():
        value.data[0] = -20.0
    found = attention(run_of(model, tmp_path, edit), TEXT, HEADS, controls=1)
    assert found.acting == (0, 0, 0) and not found.change.any() and not found.random_distance.any()


def test_an_edit_of_zero_changes_nothing(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    found = attention(run_of(model, tmp_path, random_edit(model, init_std=0.0)), TEXT, HEADS, controls=2)
    assert not found.change.any() and not found.random_distance.any()
    frame = found.to_frame()
    for name in ("first", "entropy"):
        np.testing.assert_allclose(frame[f"{name}_before"], frame[f"{name}_after"])
        np.testing.assert_allclose(frame[f"{name}_before"], frame[f"{name}_random"])


def test_a_row_is_read_as_if_alone(make_model: MakeModel, tmp_path: Path) -> None:
    rows = tuple(Example("x" * (1 + 9 * i) + "?", "a" * (1 + i), id=f"r{i}") for i in range(4))
    task = Task("lengths", (), (), rows, kind="text")
    run = run_of(make_model(), tmp_path)
    together = attention(run, [2, 0], HEADS, task=task, controls=1)
    assert together.names == ("r2", "r0")
    for place, row in enumerate([2, 0]):
        alone = attention(run, row, HEADS, task=task, controls=1)
        length = len(alone.text[0])
        assert "".join(alone.text[0]) == f"{rows[row].instruction}{rows[row].answer}<eos>"
        for one, other in zip(together.pattern(place, 1), alone.pattern(0, 1), strict=True):
            assert one.shape == (length, length) and np.array_equal(one, other)
        beyond = together.before[place, :, length:]
        assert np.isnan(beyond).all() and np.isnan(together.distance[place, :, length:]).all()
        np.testing.assert_array_equal(together.random_distance[:, place, :, :length], alone.random_distance[:, 0])


# -- the model ---------------------------------------------------------------------------------------------------------


def test_the_model_is_left_as_it_was(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    ids = torch.tensor([[1, 2, 3]])
    before, hooks = model.hf(ids).logits, hooks_of(model)
    attention(run_of(model, tmp_path), TEXT, HEADS)
    assert model.hf.config._attn_implementation == "sdpa"
    assert torch.equal(model.hf(ids).logits, before) and hooks_of(model) == hooks


def test_a_booted_model_is_left_as_it_was(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    points = [block.attn.hook_pattern for block in model.bridge.blocks]
    own = points[1].add_hook(lambda *_, **__: None)
    run = run_of(model, tmp_path)
    hooks = hooks_of(model)
    attention(run, TEXT, HEADS)
    assert hooks_of(model) == hooks and [len(point.fwd_hooks) for point in points] == [0, 1]
    assert points[1].fwd_hooks[0] is own


@pytest.mark.parametrize("fails", ["logits", "pattern"])
def test_the_model_is_left_as_it_was_after_an_exception(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    model = make_model()
    run, hooks = run_of(model, tmp_path), hooks_of(model)
    seen = []

    def broken(*_: Any, **__: Any) -> Any:
        seen.append(model.hf.config._attn_implementation)
        if len(seen) < 3:  # one pass before the switch, the base pass behind it
            return original(*_, **__)
        raise KeyboardInterrupt if fails == "logits" else RuntimeError("out of memory")

    original = model.logits
    monkeypatch.setattr(model, "logits", broken)
    with pytest.raises((KeyboardInterrupt, RuntimeError)):
        attention(run, TEXT, HEADS)
    assert seen == ["sdpa", "eager", "eager"]
    assert model.hf.config._attn_implementation == "sdpa" and hooks_of(model) == hooks


def test_another_model_under_eager_attention_is_refused(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    switch = type(model.hf).set_attn_implementation

    def harmful(name: str) -> None:
        switch(model.hf, name)
        model.hf.lm_head.weight.data.mul_(1.01 if name == "eager" else 1 / 1.01)

    monkeypatch.setattr(model.hf, "set_attn_implementation", harmful)
    with pytest.raises(AttentionError, match="logits under eager attention are off by"):
        attention(run_of(model, tmp_path), TEXT, HEADS)
    assert model.hf.config._attn_implementation == "sdpa"


def test_attention_that_keeps_its_weights_to_itself_is_refused(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    attn = model.hf.model.layers[1].self_attn
    forward = attn.forward
    monkeypatch.setattr(attn, "forward", lambda *args, **kwargs: (forward(*args, **kwargs)[0], None))
    with pytest.raises(AttentionError, match=r"layer 1 .* gave no attention weights of shape \[4, 11, 11\]"):
        attention(run_of(model, tmp_path), TEXT, HEADS)


def test_a_model_that_cannot_be_switched_is_refused(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    monkeypatch.setattr(model.hf, "_can_set_attn_implementation", lambda: False)
    with pytest.raises(AttentionError, match='load_model\\(..., attn_implementation="eager"\\)'):
        attention(run_of(model, tmp_path), TEXT, HEADS)
    assert model.hf.config._attn_implementation == "sdpa"


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_total_variation_is_a_distance_between_zero_and_one() -> None:
    one, other = np.array([0.5, 0.5, 0.0]), np.array([0.0, 0.25, 0.75])
    assert total_variation(one, one) == 0 and total_variation(np.eye(2)[0], np.eye(2)[1]) == 1
    assert total_variation(one, other) == total_variation(other, one) == 0.75
    assert total_variation(np.array([0.5, 0.5, np.nan]), np.array([0.0, 1.0, np.nan])) == 0.5
    assert np.isnan(total_variation(np.full(3, np.nan), one))


def test_entropy_is_that_of_so_many_equal_choices() -> None:
    for count in (1, 2, 7):
        assert entropy(np.full(count, 1 / count)) == pytest.approx(np.log(count))
    assert entropy(np.array([1.0, 0.0, np.nan])) == 0
    assert np.isnan(entropy(np.full(3, np.nan)))


def test_summaries_leave_out_the_first_query(patterns: AttentionPatterns) -> None:
    frame = patterns.to_frame()
    assert list(zip(frame["row"], frame["head"], strict=True)) == [(r, h) for r in patterns.names for h in HEADS]
    for place, found in enumerate(frame.to_dict("records")):
        row, head = divmod(place, len(HEADS))
        before, after = patterns.pattern(row, head)
        distances = total_variation(before, after)[1:].astype(float)
        assert found["n"] == len(distances) == len(patterns.text[row]) - 1
        assert found["distance"] == pytest.approx(distances.mean())
        assert found["distance_sd"] == pytest.approx(distances.std(ddof=1))
        assert found["first_after"] == pytest.approx(after[1:, 0].mean())
        assert found["entropy_before"] == pytest.approx(entropy(before)[1:].mean())
        random = patterns.random_distance[:, row, head, 1 : len(patterns.text[row])].astype(float).mean(1)
        assert found["distance_random"] == pytest.approx(random.mean())
        assert found["distance_random_sd"] == pytest.approx(random.std(ddof=1))


def test_the_top_heads_are_those_whose_patterns_change_most(patterns: AttentionPatterns) -> None:
    assert set(patterns.top(2).heads) == {"L1H0", "L1H3"} and patterns.top(9).heads[-1] == "L0H1"
    best = patterns.top(1)
    np.testing.assert_array_equal(best.after[:, 0], patterns.after[:, patterns.place(best.heads[0])])
    means = [np.nanmean(patterns.distance[:, head, 1:]) for head in range(3)]
    assert best.heads[0] == HEADS[int(np.argmax(means))]
    assert best.acting == (1,) and best.random_distance.shape == (3, 2, 1, patterns.before.shape[2])


def test_the_table_is_kept_whole(patterns: AttentionPatterns, tmp_path: Path) -> None:
    write_table(patterns, tmp_path / "table.safetensors", {})
    back = read_table(AttentionPatterns, tmp_path / "table.safetensors")
    for field in dataclasses.fields(AttentionPatterns):
        one, other = getattr(patterns, field.name), getattr(back, field.name)
        assert np.array_equal(one, other, equal_nan=True) if isinstance(one, np.ndarray) else one == other
    assert back.to_frame().equals(patterns.to_frame())


def test_a_single_token_and_no_control_are_a_table(make_model: MakeModel, tmp_path: Path) -> None:
    found = attention(run_of(make_model(), tmp_path), "a", (1, 0), controls=0)
    assert found.heads == ("L1H0",) and found.before.tolist() == [[[[1.0]]]]
    frame = found.to_frame()
    assert frame["n"].tolist() == [0] and frame[["distance", "distance_random", "first_before"]].isna().all(None)
    assert "a single token" in attention_sheet(found).notes[0]


# -- the sheet ---------------------------------------------------------------------------------------------------------


def test_a_sheet_shows_before_after_and_change(patterns: AttentionPatterns) -> None:
    sheet = attention_sheet(patterns, row=1, heads=["L1H3", 0])
    assert sheet.names == ("L1H3", "L0H1") and sheet.headings == ("base", "edited", "edited − base")
    length = len(patterns.text[1])
    past = np.tril(np.ones((length, length), dtype=bool))
    for panels, head in zip(sheet.rows, ("L1H3", "L0H1"), strict=True):
        before, after = patterns.pattern(1, head)
        for panel, values in zip(panels, (before, after, after - before), strict=True):
            assert np.array_equal(panel.values[past], values[past])
            assert np.array_equal(np.isnan(panel.values), ~past) and np.array_equal(panel.mask, past)
            assert panel.flipped and (panel.x_label, panel.y_label) == ("key", "query")
            assert [text for _, text in panel.x_ticks] == [text for _, text in panel.y_ticks] == list(patterns.text[1])
        assert [panel.kind for panel in panels] == ["probability", "probability", "signed"]
        assert panels[0].range == panels[1].range == (0, 1)
        assert panels[0].labels[2, 1] == f"2 {patterns.text[1][2]} → 1 {patterns.text[1][1]}"
    low, high = sheet.rows[0][2].range
    assert -low == high == np.abs(patterns.change[1, [2, 0], :length, :length]).max()
    notes = " ".join(sheet.notes)
    assert "no edit acts below it" in notes and "random edits" in notes and "layers below it" in notes
    log = attention_sheet(patterns, row=1, heads=["L1H3"], log=True)
    assert [panel.log for panel in log.panels] == [True, True, False]
    assert np.array_equal(log.panels[1].values, sheet.panels[1].values, equal_nan=True)


def test_ticks_of_long_rows_are_thinned(make_model: MakeModel, tmp_path: Path) -> None:
    run = run_of(make_model(), tmp_path, max_length=400)
    for length in (MOST_TICKS, MOST_TICKS + 1, 5 * MOST_TICKS):
        sheet = attention_sheet(attention(run, "x" * length, "L1H0", controls=0))
        ticks = sheet.panels[0].x_ticks
        assert len(ticks) <= MOST_TICKS and ticks[0][0] == 0
        assert len({second[0] - first[0] for first, second in zip(ticks, ticks[1:], strict=False)}) == 1
        assert (len(ticks) == length) == (length <= MOST_TICKS)
        assert all(len(text) <= LONGEST_TICK for _, text in ticks)


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "heads", "options", "message"),
    [
        ([], "L0H0", {}, "rows must be texts, or numbers"),
        ([TEXT, 1], "L0H0", {}, "rows must be texts, or numbers"),
        (-1, "L0H0", {}, "rows must be texts, or numbers"),
        (0, "L0H0", {}, "task: rows given by number need the task"),
        ("", "L0H0", {}, "texts is empty"),
        (TEXT, [], {}, "heads must be one head or more; got none"),
        (TEXT, "L2H0", {}, "L2H0 is not in this model"),
        (TEXT, "L0H0", {"controls": -1}, "controls must be an integer ≥ 0; got -1"),
    ],
)
def test_bad_input_is_refused(
    make_model: MakeModel, tmp_path: Path, rows: Any, heads: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        attention(run_of(make_model(), tmp_path), rows, heads, **options)


def test_a_row_that_is_not_there_is_refused(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    run = run_of(make_model(), tmp_path)
    with pytest.raises(ValueError, match="the test split has rows 0 … 5; got 6"):
        attention(run, [0, 6], "L0H0", task=toy_task)
    with attach(run.edit, run.model, "hooks"), pytest.raises(ValueError, match="without edits"):
        attention(run, HOSTILE, "L0H0")


def test_a_sheet_of_what_is_not_there_is_refused(patterns: AttentionPatterns) -> None:
    with pytest.raises(ValueError, match="row must be one of 0 … 1; got 2"):
        attention_sheet(patterns, 2)
    with pytest.raises(ValueError, match="head must be one of L0H1, L1H0, L1H3; got 'L0H0'"):
        attention_sheet(patterns, 0, ["L0H0"])
    with pytest.raises(ValueError, match="heads: none is left"):
        attention_sheet(patterns, 0, [])
