"""Tokens as a reader sees them: each token's own text, and signs for what would not show."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SIGNS = {" ": "·", "\n": "↵", "\t": "⇥"}
REST, CARRIER = "⋯", "◌"
"""What stands for a token that goes on with a character which an earlier one began, and beneath a mark alone."""
BROKEN = "\ufffd"
"""What tokenizers give for bytes that are not, or not yet, a character."""
LONGEST_CHARACTER = 4
"""Bytes of UTF-8, so tokens that a character can take."""
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}
_JOINER = "\u200d"


def token_texts(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """What each token adds to the text of those before it.

    The texts together are the text of all. Where a character takes several tokens, the first has it and the others are
    empty; a token of bytes that belong to no character is U+FFFD.
    """
    texts: list[str] = []
    before = 0  # where the tokens begin behind which the next ones are read: some tokenizers drop a leading space
    while len(texts) < len(ids):
        start = len(texts)
        group = _group(ids, before, start, tokenizer)
        texts += group
        before = start
    return tuple(texts)


def _group(ids: Sequence[int], before: int, start: int, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Texts of the fewest tokens from ``start`` on that are whole characters."""
    known = _decoded(ids[before:start], tokenizer)
    for end in range(start + 1, min(start + LONGEST_CHARACTER, len(ids)) + 1):
        added = _decoded(ids[before:end], tokenizer)[len(known) :]
        if BROKEN not in added:
            return [added] + [""] * (end - start - 1)
    return [_decoded(ids[start : start + 1], tokenizer)]


def _decoded(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def visible(text: str) -> str:
    """The text with a sign for every space, line end, tabulator and control character; ⋯ for an empty one.

    Marks that would sit on the character before them get a circle to sit on; what has no sign is shown as its code.
    """
    if not text:
        return REST
    shown = "".join(_shown(character, len(text) > 1) for character in text)
    return CARRIER + shown if unicodedata.category(text[0]).startswith("M") else shown


def token_name(token: int, tokenizer: PreTrainedTokenizerBase | None) -> str:
    """One token by itself, visibly, with the space that it begins with; "#151700" where the tokenizer has none."""
    if tokenizer is None or token >= len(tokenizer) or (piece := tokenizer.convert_ids_to_tokens(token)) is None:
        return f"#{token}"
    text = _decoded([token], tokenizer)
    if str(piece).startswith("▁") and not text.startswith(" "):  # SentencePiece drops the space of a first token
        text = f" {text}"
    return visible(str(piece) if not text or BROKEN in text else text)


def _shown(character: str, inside: bool) -> str:
    if character in SIGNS:
        return SIGNS[character]
    hidden = unicodedata.category(character) in _HIDDEN and not (inside and character == _JOINER)
    return f"⟨{ord(character):X}⟩" if hidden else character
