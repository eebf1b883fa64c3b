"""Generation: batched, left-padded, with KV cache, greedy or beam; stops at EOS or the first newline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor

from jola_interp.batching import batches_of, cut_prompt, encode_prompt, left_pad, pad_id
from jola_interp.models import Model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@torch.no_grad()
def generate_texts(
    model: Model,
    instructions: Sequence[str],
    *,
    wrapper: str = "reference",
    max_length: int = 400,
    max_new_tokens: int = 64,
    beams: int = 1,
    batch_size: int = 16,
    progress: str | None = None,
) -> list[str]:
    """What the model writes after each wrapped instruction: its new tokens up to EOS or the first newline, stripped.

    Whatever edit is attached to the model acts at every decoding step. Deterministic; no sampling.

    Args:
        instructions: prompts, in any order; batches are made of similar lengths.
        max_length: longer prompts lose their start.
        beams: 1 is greedy.
        progress: a label for a progress bar; None shows none.

    Raises:
        ValueError: a model without a tokenizer.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ValueError("the model has no tokenizer: load_model(model, tokenizer=...)")
    encoded = [encode_prompt(text, tokenizer, wrapper) for text in instructions]
    prompts = [cut_prompt(prompt, max_length, tokenizer) for prompt in encoded]
    options = _options(model, tokenizer, max_new_tokens, beams)
    texts = [""] * len(prompts)
    for rows in _bar(batches_of([len(prompt) for prompt in prompts], batch_size), progress):
        ids, mask = left_pad([prompts[row] for row in rows], pad_id(tokenizer))
        device = model.device
        with _neutral_defaults(model.hf) as generator:
            output = generator.generate(input_ids=ids.to(device), attention_mask=mask.to(device), **options)
        for row, new in zip(rows, output[:, ids.shape[1] :].tolist(), strict=True):
            texts[row] = first_line(str(tokenizer.decode(new, skip_special_tokens=True)))
    return texts


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


def _bar(batches: list[list[int]], label: str | None) -> Any:
    from tqdm.auto import tqdm

    return tqdm(batches, desc=label, disable=label is None, leave=False)
