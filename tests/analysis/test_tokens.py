"""Each token's log p is the model's own, each shift is what heads write there; padding never shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from jola_interp.analysis.rows import output_weights
from jola_interp.analysis.tables import read_table, write_table
from jola_interp.analysis.token_strips import token_strip
from jola_interp.analysis.token_texts import BROKEN, CARRIER, REST, token_name, token_texts, visible
from jola_interp.analysis.tokens import Tokens, tokens, tokens_of
from jola_interp.backends import attach
from jola_interp.batching import encode_examples
from jola_interp.config import TrainConfig
from jola_interp.edits import JoLA
from jola_interp.evidence.endpoint import Endpoint
from jola_interp.models import Model
from jola_interp.runs import Run
from jola_interp.tasks import Example, Task

MakeModel = Callable[..., Model]
HOSTILE = "<script>alert('x')</script> \"q\" & $a_1$\n\t猫🦉 é"
ARRAYS = ("ids", "row", "position", "prompt", "base", "edited", "random", "shift", "random_shift", "heads", "moved")


def run_of(model: Model, folder: Path, edit: JoLA | None = None, **train: Any) -> Run:
    """A Run of an edit that nobody trained."""
    config = {
        "train": TrainConfig(wrapper="{instruction}", **train).to_dict(),
        "backend": "hooks",
        "model": {"name": "tiny", **model.identity()},
        "task": {"name": "toy"},
    }
    return Run(folder, config, edit or random_edit(model), cast(Any, None), model)


def random_edit(model: Model, **switches: Any) -> JoLA:
    """Large enough to matter, all gates open unless said otherwise."""
    given = {"init_std": 0.3, "init_spread": 0.0, **switches}
    return JoLA(model.head_shape, **given).initialise(torch.Generator().manual_seed(0))


@pytest.fixture
def task() -> Task:
    """Rows of quite different lengths."""
    rows = [Example("x" * (1 + 7 * i) + "?", "a" * (1 + i % 3), id=f"r{i}") for i in range(5)]
    return Task("lengths", (), (), (*rows[3:], *rows[:3], Example(HOSTILE, "ok", id="hostile")), kind="text")


@pytest.fixture
def run(make_model: MakeModel, tmp_path: Path) -> Run:
    return run_of(make_model(), tmp_path)


# -- log p -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["all", "not_first", "prompt", "answer"])
@pytest.mark.parametrize("booted", [False, True])
def test_log_p_of_an_answer_adds_up_to_the_rows_nll(
    make_model: MakeModel, task: Task, tmp_path: Path, booted: bool, scope: str
) -> None:
    model = make_model()
    if booted:
        assert model.bridge is not None
    run = run_of(model, tmp_path, random_edit(model, scope=scope))
    settings = TrainConfig(wrapper="{instruction}")
    endpoint = Endpoint(model, task, task.test, settings, "lens" if booted else "hooks")
    found = tokens(run, task, rows=6, batch_size=4, controls=1)
    for values, edit in ((found.base, None), (found.edited, run.edit.restricted())):
        expected = endpoint.losses(edit).nll
        for row in range(6):
            answer = (found.row == row) & ~found.prompt
            assert -values[answer].sum() / answer.sum() == pytest.approx(expected[row], abs=1e-5)
    costs = [found.cost(row) for row in range(6)]
    np.testing.assert_allclose([cost.base for cost in costs], endpoint.losses().nll, atol=1e-5)
    assert all(cost.what == "answer" for cost in costs)
    assert np.abs(found.change[~found.first]).max() > 0.1


def test_padding_never_shows(run: Run, task: Task) -> None:
    together = tokens(run, task, rows=6, batch_size=6)
    apart = tokens(run, task, rows=6, batch_size=1)
    encoded = encode_examples(task.test, run.model.tokenizer, wrapper="{instruction}")  # type: ignore[arg-type]
    assert together.ids.tolist() == [token for row in encoded for token in row.ids]
    assert together.prompt.tolist() == [i < row.n_prompt for row in encoded for i in range(len(row.ids))]
    assert run.model.tokenizer.pad_token_id not in together.ids  # type: ignore[union-attr]
    assert together.text == apart.text
    for name in ("base", "edited", "random", "shift", "random_shift", "moved"):
        one, other = getattr(together, name), getattr(apart, name)
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5, err_msg=name)


def test_only_the_first_token_of_each_row_has_no_log_p(run: Run, task: Task) -> None:
    found = tokens(run, task, rows=6)
    assert found.first.sum() == 6
    for values in (found.base, found.edited, *found.random):
        assert np.array_equal(np.isnan(values), found.first)
    assert np.isfinite(found.shift).all() and np.isfinite(found.moved).all()


# -- shift -------------------------------------------------------------------------------------------------------------


def test_an_edit_of_zero_changes_nothing_anywhere(make_model: MakeModel, task: Task, tmp_path: Path) -> None:
    model = make_model()
    found = tokens(run_of(model, tmp_path, random_edit(model, init_std=0.0)), task, rows=6, controls=2)
    for values in (found.change, *(found.random - found.base)):
        assert (values[~found.first] == 0).all()
    assert not found.shift.any() and not found.moved.any() and not found.random_shift.any()
    assert all(not found.top_heads(i) for i in range(len(found)))


def test_the_shift_is_what_the_heads_write_over_the_stream(make_model: MakeModel, task: Task, tmp_path: Path) -> None:
    model = make_model()
    edit = random_edit(model, gates="none", operations="add", heads=["L1H2", "L1H3"])
    run = run_of(model, tmp_path, edit)
    found = tokens(run, task, rows=1, top=4)
    weights = output_weights(model, 1)
    offsets = edit.site("heads").vectors["additive"][1].detach()
    written = torch.stack([offsets[head] @ weights[head] for head in (2, 3)])
    with torch.no_grad():
        output = model.hf(torch.tensor([found.ids.tolist()]), output_hidden_states=True)
    stream = output.hidden_states[1][0].norm(dim=-1).numpy()
    np.testing.assert_allclose(found.shift, written.sum(0).norm().item() / stream / 2, rtol=1e-4)  # of two layers
    larger = int(written.norm(dim=-1).argmax()) + 2
    for place in range(len(found)):
        named = found.top_heads(place)
        assert [name for name, _ in named] == [f"L1H{larger}", f"L1H{5 - larger}"]
        np.testing.assert_allclose([x for _, x in named], sorted(written.norm(dim=-1) / stream[place])[::-1], rtol=1e-4)


def test_a_scope_is_seen_in_the_shifts(make_model: MakeModel, task: Task, tmp_path: Path) -> None:
    model = make_model()
    found = tokens(run_of(model, tmp_path, random_edit(model, scope="answer")), task, rows=6)
    assert np.array_equal(found.shift > 0, ~found.prompt)
    assert np.array_equal(found.random_shift > 0, ~found.prompt)


def test_random_edits_are_beside_the_edit_only_if_asked_for(run: Run, task: Task) -> None:
    none = tokens(run, task, rows=2, controls=0)
    assert none.random.shape == (0, len(none)) and np.isnan(none.random_shift).all()
    assert "random" not in none.cost(0).sentence() and "random" not in " ".join(token_strip(none, "logp").notes)
    some = tokens(run, task, rows=2, controls=2)
    assert some.random.shape == (2, len(some)) and (some.random_shift > 0).all()
    assert not np.allclose(some.random[0], some.random[1], equal_nan=True)
    assert np.array_equal(tokens(run, task, rows=2, controls=1, seed=1).random[0], some.random[1], equal_nan=True)
    assert "random directions" in some.cost(0).sentence()


def test_the_model_is_left_as_it_was(run: Run, task: Task) -> None:
    ids = torch.tensor([[1, 2, 3]])
    before = run.model.hf(ids).logits
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in run.model.hf.modules()]
    tokens(run, task, rows=2)
    assert torch.equal(run.model.hf(ids).logits, before)
    assert hooks == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in run.model.hf.modules()]


# -- texts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [HOSTILE, " a  b", "👩‍🚀 x", "", "naïve café", "\u202eabc", "नमस्ते"])
def test_the_texts_of_tokens_are_the_text(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text).input_ids
    found = token_texts(ids, tokenizer)
    assert len(found) == len(ids) and "".join(found) == text
    lengths = [len(character.encode()) for character in text]
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    assert [i for i, one in enumerate(found) if one] == starts  # a character stands at the first of its bytes


def test_bytes_of_no_character_are_shown_as_such(tokenizer: Any) -> None:
    ids = tokenizer("a猫b").input_ids
    assert token_texts([ids[0], ids[1], ids[4]], tokenizer) == ("a", BROKEN, "b")  # one byte of three
    assert token_texts(ids[2:], tokenizer) == (BROKEN, BROKEN, "b")  # a row that was cut within a character
    assert token_texts([*ids, tokenizer.eos_token_id], tokenizer)[-1] == "<eos>"


def test_what_would_not_show_gets_a_sign() -> None:
    assert visible(" a\n\tb") == "·a↵⇥b"
    assert visible("") == REST
    assert visible("\u0301") == f"{CARRIER}\u0301"  # an accent alone
    assert visible("\u202e") == "⟨202E⟩" and visible("\x00") == "⟨0⟩"  # else it would turn the line around
    assert visible("👩\u200d🚀") == "👩\u200d🚀" and visible("\u200d") == "⟨200D⟩"


def test_white_space_of_a_token_is_visible(tokenizer: Any) -> None:
    ids = tokenizer(" \n\tx").input_ids
    assert [token_name(token, tokenizer) for token in ids] == ["·", "↵", "⇥", "x"]
    assert token_name(10_000, tokenizer) == token_name(10_000, None) == "#10000"
    assert token_name(tokenizer.eos_token_id, tokenizer) == "<eos>"
    part = tokenizer("é").input_ids[0]  # half of a character
    assert token_name(part, tokenizer) == tokenizer.convert_ids_to_tokens(part)


def test_a_leading_space_survives_sentencepiece() -> None:
    class Pieces:
        def __len__(self) -> int:
            return 2

        def convert_ids_to_tokens(self, token: int) -> str:
            return ("▁the", "▁")[token]

        def decode(self, ids: list[int], **_: Any) -> str:
            return ("the", "")[ids[0]]

    assert [token_name(token, Pieces()) for token in range(2)] == ["·the", "·"]


def test_free_text_is_all_prompt_with_or_without_a_wrapper(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    run = run_of(model, tmp_path)
    run.config["train"]["wrapper"] = "Q: {instruction}\nA:"
    wrapped, raw = tokens_of(run, HOSTILE), tokens_of(run, [HOSTILE, "b c"], wrapper="raw")
    assert "".join(wrapped.text) == f"Q: {HOSTILE}\nA:" and wrapped.wrapper == "Q: {instruction}\nA:"
    assert "".join(raw.text) == f"{HOSTILE}b c" and raw.wrapper == "raw"
    assert raw.prompt.all() and raw.names == ("text 0", "text 1")
    assert raw.cost(1).what == "text" and raw.cost(1).n == 2
    with torch.no_grad():
        logits = model.hf(torch.tensor([raw.ids[raw.row == 1].tolist()])).logits[0].log_softmax(-1)
    expected = [logits[i, token] for i, token in enumerate(raw.ids[raw.row == 1][1:])]
    np.testing.assert_allclose(raw.base[raw.row == 1][1:], expected, atol=1e-5)


def test_a_long_text_loses_its_start(make_model: MakeModel, tmp_path: Path) -> None:
    run = run_of(make_model(), tmp_path, max_length=8)
    assert "".join(tokens_of(run, "0123456789abc").text) == "56789abc"


def test_one_token_is_a_table(run: Run) -> None:
    found = tokens_of(run, "a")
    assert len(found) == 1 and found.first.all()
    assert found.cost(0).n == 0 and np.isnan(found.cost(0).base)
    assert len(found.top(3)) == 0
    for of in ("shift", "logp"):
        assert np.isnan(token_strip(found, of).levels).all()  # type: ignore[arg-type]


def test_a_model_of_one_head_has_tokens(make_model: MakeModel, task: Task, tmp_path: Path) -> None:
    model = make_model(num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1)
    found = tokens(run_of(model, tmp_path), task, rows=2, top=3)
    assert found.labels == ("L0H0",) and found.heads.shape == (len(found), 1)
    np.testing.assert_allclose(found.moved[:, 0], found.shift, rtol=1e-6)


# -- the table ---------------------------------------------------------------------------------------------------------


def test_the_table_is_kept_whole(run: Run, task: Task, tmp_path: Path) -> None:
    found = tokens(run, task, rows=6, controls=2)
    for name, table in (("some", found), ("none", tokens(run, task, rows=1, controls=0))):
        file = tmp_path / f"{name}.safetensors"
        write_table(table, file, {})
        back = read_table(Tokens, file)
        for field in dataclasses.fields(Tokens):
            one, other = getattr(table, field.name), getattr(back, field.name)
            if field.name in ARRAYS:
                assert np.array_equal(one, other, equal_nan=True) and one.dtype == other.dtype
            else:
                assert one == other
        assert back.to_frame().equals(table.to_frame())


def test_the_frame_names_every_token(run: Run, task: Task) -> None:
    found = tokens(run, task, rows=6, controls=2)
    frame = found.to_frame()
    assert list(frame["row"].unique()) == [row.id for row in task.test]
    np.testing.assert_array_equal(frame["change"], frame["logp_edited"] - frame["logp_base"])
    assert frame["token"].tolist() == [visible(text) for text in frame["text"]]
    assert set(frame["part"]) == {"prompt", "answer"}


@pytest.mark.parametrize("of", ["shift", "logp"])
def test_the_top_tokens_are_the_most_changed_and_never_a_first(run: Run, task: Task, of: Any) -> None:
    found = tokens(run, task, rows=6)
    best = found.top(5, of)
    values = np.abs(found.values(of))[~found.first]
    np.testing.assert_array_equal(np.abs(best.values(of)), np.sort(values)[::-1][:5])
    assert not best.first.any() and len(found.top(10**6)) == len(values)


def test_a_strip_shows_the_rows_that_are_asked_for(run: Run, task: Task) -> None:
    found = tokens(run, task, rows=6)
    strip = token_strip(found, "shift", rows=[4, 1])
    assert np.array_equal(strip.values, np.concatenate([found.shift[found.row == row] for row in (4, 1)]))
    assert [heading.partition(" · ")[0] for heading in strip.headings] == [found.names[4], found.names[1]]
    assert strip.limit == pytest.approx(strip.values[~strip.apart].max())
    assert np.array_equal(np.isnan(strip.levels), strip.apart)
    cut = token_strip(found, "logp", limit=0.01)
    assert np.nanmax(cut.levels) == 1 and np.nanmin(cut.levels) == -1
    assert cut.ends == ("≤ −0.01", "≥ +0.01")


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 0}, "top must be an integer ≥ 1; got 0"),
        ({"controls": -1}, "controls must be an integer ≥ 0; got -1"),
        ({"batch_size": True}, "batch_size must be an integer ≥ 1; got True"),
        ({"rows": 0}, "rows must be an integer ≥ 1; got 0"),
        ({"split": "train"}, "split must be one of validation, test; got 'train'"),
    ],
)
def test_bad_input_is_refused_before_any_pass(run: Run, task: Task, options: dict[str, Any], message: str) -> None:
    run.model.hf.forward = None  # type: ignore[method-assign, assignment]
    with pytest.raises(ValueError, match=message):
        tokens(run, task, **options)


@pytest.mark.parametrize(("texts", "message"), [([], "got none"), ("", "texts is empty"), (["a", " "], "empty")])
def test_no_text_is_refused(run: Run, texts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokens_of(run, texts)


def test_an_edit_without_heads_is_refused(make_model: MakeModel, task: Task, tmp_path: Path) -> None:
    model = make_model()
    with pytest.raises(ValueError, match="mlp, not on heads"):
        tokens(run_of(model, tmp_path, random_edit(model, sites=("mlp",))), task)


def test_an_edited_model_is_refused(run: Run, task: Task) -> None:
    with attach(run.edit, run.model, "hooks"), pytest.raises(ValueError, match="without edits"):
        tokens(run, task)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"of": "nll"}, "of must be one of shift, logp; got 'nll'"),
        ({"rows": [9]}, "rows must be some of 0 … 1; got \\[9\\]"),
        ({"rows": []}, "rows must be some of 0 … 1"),
        ({"limit": 0}, "limit must be a number above 0; got 0"),
    ],
)
def test_a_strip_of_nothing_is_refused(run: Run, task: Task, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        token_strip(tokens(run, task, rows=2, controls=0), **options)
