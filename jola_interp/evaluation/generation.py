"""Generation: batched, left-padded, with KV cache, greedy or beam; stops at EOS or the first newline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from jola_interp.backends.base import attached_edits
from jola_interp.batching import batches_of, encode_prompt, left_pad, pad_id, warn_of_cuts
from jola_interp.models import Model, unembedded_at_once

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def generate_texts(
    model: Model,
    instructions: Sequence[str],
    *,
    wrapper: str = "reference",
    max_length: int = 400,
    max_new_tokens: int = 64,
    beams: int = 1,
    batch_size: int = 16,
) -> list[str]:
    """What the model writes after each wrapped instruction: its new tokens up to EOS or the first newline, stripped.

    Whatever edit is attached to the model acts at every decoding step. Deterministic; no sampling.

    Args:
        instructions: in any order; batches are made of similar lengths.
        wrapper: how they become prompts, see :mod:`jola_interp.prompts`.
        max_length: a longer prompt loses the start of its instruction.
        beams: 1 is greedy.

    Raises:
        ValueError: a model without a tokenizer, or a wrapper that leaves no room within ``max_length``.
    """
    prompts, _ = encode_prompts(model, instructions, wrapper, max_length)
    batches = batches_of([len(prompt) for prompt in prompts], batch_size)
    texts = [""] * len(prompts)
    for rows, written in generate(model, prompts, batches, max_new_tokens, beams):
        for row, text in zip(rows, written, strict=True):
            texts[row] = text
    return texts


def encode_prompts(
    model: Model, instructions: Sequence[str], wrapper: str, max_length: int
) -> tuple[list[tuple[int, ...]], list[bool]]:
    """(token ids of each prompt, whether it was cut to ``max_length``)."""
    if model.tokenizer is None:
        raise ValueError("the model has no tokenizer: load_model(model, tokenizer=...)")
    whole = [encode_prompt(text, model.tokenizer, wrapper) for text in instructions]
    cuts = [len(prompt.ids) > max_length for prompt in whole]
    warn_of_cuts(cuts, max_length)
    return [prompt.within(max_length) for prompt in whole], cuts


@torch.no_grad()
def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    batches: Sequence[Sequence[int]],
    max_new_tokens: int,
    beams: int = 1,
) -> Iterator[tuple[Sequence[int], list[str]]]:
    """For each batch of rows: (the rows, what the model writes after each)."""
    tokenizer = model.tokenizer
    assert tokenizer is not None  # encode_prompts has seen to it
    options = _options(model, tokenizer, max_new_tokens, beams)
    for rows in batches:
        ids, mask = left_pad([prompts[row] for row in rows], pad_id(tokenizer))
        ids, mask = ids.to(model.device), mask.to(model.device)
        start = _shared_prompts(model, ids, mask, beams)
        with unembedded_at_once(model.hf), _neutral_defaults(model.hf) as generator:
            output = generator.generate(input_ids=ids, attention_mask=mask, **options, **start)
        new = output[:, ids.shape[1] :].tolist()
        yield rows, [first_line(str(tokenizer.decode(tokens, skip_special_tokens=True))) for tokens in new]


def _shared_prompts(
    model: Model, ids: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"], beams: int
) -> dict[str, Any]:
    """The cache of all but the last prompt token, computed once a row and not once a beam, as `generate` would."""
    whole = not all(edit.everywhere for edit in attached_edits(model))
    if beams == 1 or ids.shape[1] == 1 or whole:
        return {}
    cache = model.forward(ids[:, :-1], mask[:, :-1], keep=1, use_cache=True).past_key_values
    cache.batch_repeat_interleave(beams)
    return {"past_key_values": cache}


def first_line(text: str) -> str:
    """The text before the first newline, stripped."""
    return text.split("\n", 1)[0].strip()


def _options(model: Model, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, beams: int) -> dict[str, Any]:
    from transformers import GenerationConfig, StoppingCriteriaList

    eos = tokenizer.eos_token_id
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        num_beams=beams,
        do_sample=False,
        pad_token_id=pad_id(tokenizer),
        eos_token_id=eos,
    )
    options: dict[str, Any] = {"generation_config": config}
    if beams == 1:  # a beam that has reached its newline may still be overtaken, so beams go on
        options["stopping_criteria"] = StoppingCriteriaList(
            [_AtNewline(_newline_tokens(tokenizer, model.vocab_size).to(model.device))]
        )
    return options


class _AtNewline:
    """Rows whose last token holds a newline are done."""

    def __init__(self, ends: Bool[Tensor, " vocab"]):
        self.ends = ends

    def __call__(self, input_ids: Tensor, *_: Any, **__: Any) -> Bool[Tensor, " batch"]:
        return self.ends[input_ids[:, -1]]


@lru_cache(maxsize=4)
def _newline_tokens(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> Bool[Tensor, " vocab"]:
    """True for tokens with a newline; a model may have more rows than its tokenizer has tokens."""
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    ends = torch.zeros(max(vocab_size, len(texts)), dtype=torch.bool)
    ends[: len(texts)] = torch.tensor(["\n" in text for text in texts])
    return ends


@contextmanager
def _neutral_defaults(hf: Any) -> Iterator[Any]:
    """Without the model's own generation defaults, which `generate` mixes in (a repetition penalty, for example)."""
    from transformers import GenerationConfig

    own = hf.generation_config
    hf.generation_config = GenerationConfig()
    try:
        yield hf
    finally:
        hf.generation_config = own
