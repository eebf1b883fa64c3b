"""Rows to batches: masks, labels, lengths, order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jola_interp import batching
from jola_interp.tasks import Example

ROWS = [Example("say a", "a", id="0"), Example("say something longer", "it is longer", id="1")]


def test_answers_end_together_and_only_they_are_scored(tokenizer: Any) -> None:
    encoded = batching.encode_examples(ROWS, tokenizer, wrapper="plain")
    batch = batching.collate(encoded, pad=256)
    assert batch.attention_mask[:, -1].tolist() == [1, 1]
    assert tokenizer.decode(batch.labels[0][batch.labels[0] >= 0]) == "a<eos>"
    assert tokenizer.decode(batch.labels[1]) == "it is longer<eos>"
    assert batch.keep == len("it is longer") + 2
    for row, example in enumerate(ROWS):
        prompt = batch.input_ids[row][batch.prompt_mask[row]]
        assert tokenizer.decode(prompt[prompt != 256]).endswith(f"{example.instruction}\n")


def test_answer_loss_is_the_cross_entropy_of_the_answer_tokens(tokenizer: Any) -> None:
    batch = batching.collate(batching.encode_examples(ROWS, tokenizer), pad=256)
    logits = torch.randn(*batch.input_ids.shape, 258, generator=torch.Generator().manual_seed(0))
    found = batching.answer_losses(logits[:, -batch.keep :], batch.labels)
    for row in range(2):
        length = int((batch.labels[row] >= 0).sum())
        targets = batch.input_ids[row, -length:]
        logs = logits[row, -length - 1 : -1].log_softmax(-1)
        torch.testing.assert_close(found[row].sum(), -logs[range(length), targets].sum())


def test_long_prompts_lose_their_start_and_answers_lose_nothing(
    tokenizer: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching.logger, "propagate", True)
    row = Example("x" * 500 + " the end", "answer", id="0")
    [encoded] = batching.encode_examples([row], tokenizer, wrapper="plain", max_length=40)
    assert len(encoded.ids) == 40
    assert tokenizer.decode(encoded.ids).endswith("the end\nanswer<eos>")
    assert "1 of 1 rows were cut" in caplog.text
    with pytest.raises(ValueError, match="max_length: the answer of row 0"):
        batching.encode_examples([Example("x", "y" * 50, id="0")], tokenizer, max_length=40)


def test_a_cut_prompt_keeps_its_bos(tokenizer: Any) -> None:
    class WithBos:
        bos_token_id = 7

    assert batching.cut_prompt([7, 1, 2, 3, 4], 3, WithBos()) == [7, 3, 4]  # type: ignore[arg-type]
    assert batching.cut_prompt([1, 2, 3], 2, tokenizer) == [2, 3]
    assert batching.cut_prompt([7, 1], 2, WithBos()) == [7, 1]  # type: ignore[arg-type]


def test_eos_is_left_out_on_request(tokenizer: Any) -> None:
    [with_eos], [without] = (batching.encode_examples(ROWS[:1], tokenizer, eos=eos) for eos in (True, False))
    assert with_eos.ids == (*without.ids, 257)


def test_wrappers_by_name_or_template() -> None:
    assert batching.wrap_prompt("do {this}", "reference").endswith("### Instruction:\ndo {this}\n\n### Response:\n")
    assert batching.wrap_prompt("go", "Q: {instruction} A:") == "Q: go A:"
    with pytest.raises(ValueError, match="wrapper must be one of"):
        batching.wrap_prompt("go", "alpaca")


@given(st.lists(st.integers(1, 400), min_size=1, max_size=90), st.integers(1, 16), st.booleans())
def test_every_row_is_in_exactly_one_batch(lengths: list[int], size: int, bucketed: bool) -> None:
    for generator in (None, torch.Generator().manual_seed(1)):
        batches = batching.batches_of(lengths, size, generator, bucketed)
        assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
        assert all(1 <= len(batch) <= size for batch in batches)


def test_buckets_pad_less_than_random_batches_and_come_in_random_order() -> None:
    lengths = torch.randint(20, 200, (400,), generator=torch.Generator().manual_seed(0)).tolist()

    def padding(bucketed: bool) -> int:
        batches = batching.batches_of(lengths, 8, torch.Generator().manual_seed(1), bucketed)
        return sum(max(lengths[row] for row in batch) * len(batch) for batch in batches) - sum(lengths)

    assert padding(True) < padding(False) / 3
    first = batching.batches_of(lengths, 8, torch.Generator().manual_seed(1))
    again = batching.batches_of(lengths, 8, torch.Generator().manual_seed(1))
    other = batching.batches_of(lengths, 8, torch.Generator().manual_seed(2))
    assert first == again != other
