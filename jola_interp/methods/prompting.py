"""No training: the model as it is, asked plainly or with examples in the prompt."""

from __future__ import annotations

from jola_interp.edits.identity import Identity
from jola_interp.methods.table import Method

PROMPTING = (
    Method(
        "zero-shot",
        "z' = z",
        "none",
        "the same prompt and decoding, without an edit",
        lambda model: Identity(model.head_shape),
    ),
)
