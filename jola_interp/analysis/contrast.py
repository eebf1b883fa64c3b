"""What of the logits is compared: the right option with the wrong ones, or one text with another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from jola_interp.analysis.rows import Rows
from jola_interp.analysis.token_texts import visible
from jola_interp.batching import encode_answer
from jola_interp.evaluation.likelihood import label_spans
from jola_interp.tasks import Example


@dataclass(frozen=True)
class Contrast:
    """Σ weight · logit at the position of a row that predicts answer token ``place``."""

    row: int
    place: int
    tokens: tuple[int, ...]
    weights: tuple[float, ...]

    def of(self, logits: Float[Tensor, "answer vocab"]) -> float:
        """Its value."""
        return float(logits[self.place, list(self.tokens)].double() @ torch.tensor(self.weights).to(logits).double())


def contrasts_of(rows: Rows, contrast: tuple[str, str] | None) -> list[Contrast]:
    """One per row: right option against the mean of the wrong ones, or one text against another.

    A row is left out where no wrong option differs from the right one at its first telling token.
    """
    train = rows.run.config["train"]
    pair = None if contrast is None else _pair(rows, contrast)
    found = []
    for row, example in enumerate(rows.examples):
        options = _options(rows, example, train) if rows.task.kind == "choice" else []
        place = label_spans(options)[0][0] if options else 0
        if pair is not None:
            found.append(Contrast(row, place, pair, (1.0, -1.0)))
        elif options:
            right = options[rows.task.options_of(example).index(example.answer)][place]
            wrong = [option[place] for option in options if option[place] != right]
            if wrong:
                found.append(Contrast(row, place, (right, *wrong), (1.0, *[-1 / len(wrong)] * len(wrong))))
    return found


def _options(rows: Rows, example: Example, train: Mapping[str, Any]) -> list[tuple[int, ...]]:
    """Each option as training would write it, in tokens."""
    texts = [rows.task.worded(name, train["answers"]) for name in rows.task.options_of(example)]
    return [tuple(encode_answer(text, cast(Any, rows.model.tokenizer), train["eos"])) for text in texts]


def _pair(rows: Rows, contrast: tuple[str, str]) -> tuple[int, int]:
    """The first tokens of two texts."""
    if len(contrast) != 2 or not all(isinstance(text, str) for text in contrast):
        raise ValueError(f"contrast must be two texts, such as (' a', ' b'); got {contrast!r}")
    first = [encode_answer(text, cast(Any, rows.model.tokenizer), False)[:1] for text in contrast]
    if not all(first) or first[0] == first[1]:
        raise ValueError(f"contrast must be two texts that begin with different tokens; got {contrast!r}")
    return first[0][0], first[1][0]


def words_of(contrast: tuple[str, str] | None) -> str:
    if contrast is None:
        return "logit of the right option − mean logit of the wrong ones"
    first, second = (visible(text) for text in contrast)
    return f"logit of {first} − logit of {second}"
