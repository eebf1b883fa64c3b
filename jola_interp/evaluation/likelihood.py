"""Log-likelihoods: of the answers, and of each option of a choice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from jola_interp.batching import Encoded, answer_losses, batches_of, collate, encode_examples, pad_id
from jola_interp.models import Model
from jola_interp.tasks.base import Example, Task


@torch.no_grad()
def negative_log_likelihoods(
    model: Model, rows: Sequence[Encoded], batch_size: int = 16
) -> tuple[Float[np.ndarray, " row"], Float[np.ndarray, " row"]]:
    """(Σ −log p in nats, number of tokens) of each row's answer, EOS included where it was encoded."""
    totals, counts = np.zeros(len(rows)), np.zeros(len(rows))
    pad = pad_id(model.tokenizer) if model.tokenizer is not None else 0
    for chosen in batches_of([len(row.ids) for row in rows], batch_size):
        batch = collate([rows[i] for i in chosen], pad, model.device)
        logits = model.logits(batch.input_ids, batch.attention_mask, batch.keep, batch.prompt_mask)
        losses = answer_losses(logits, batch.labels)
        totals[chosen] = losses.sum(1).cpu().numpy()
        counts[chosen] = [rows[i].n_answer for i in chosen]
    return totals, counts


def option_likelihoods(
    model: Model,
    task: Task,
    examples: Sequence[Example],
    *,
    wrapper: str = "reference",
    max_length: int = 400,
    eos: bool = True,
    batch_size: int = 16,
) -> list[Float[np.ndarray, " option"]]:
    """log p (nats, summed over tokens) of each option as an answer, per row: the string that training would score.

    Raises:
        ValueError: a model without a tokenizer.
    """
    if model.tokenizer is None:
        raise ValueError("the model has no tokenizer: load_model(model, tokenizer=...)")
    pairs = [
        Example(instruction=example.instruction, answer=option)
        for example in examples
        for option in task.options_of(example)
    ]
    rows = encode_examples(pairs, model.tokenizer, wrapper=wrapper, max_length=max_length, eos=eos)
    totals, _ = negative_log_likelihoods(model, rows, batch_size)
    ends = np.cumsum([len(task.options_of(example)) for example in examples])
    return [-part for part in np.split(totals, ends[:-1])]
