"""No training: the model as it is, asked plainly or with examples in the prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jola_interp._log import logger
from jola_interp.batching import encode_prompt
from jola_interp.edits.base import Edit
from jola_interp.edits.identity import Identity
from jola_interp.evaluation.protocol import NEW_TOKENS
from jola_interp.methods.setup import Setup
from jola_interp.methods.table import Method
from jola_interp.models import Model
from jola_interp.prompts import CHAT, WRAPPERS, check_wrapper, wrap

BETWEEN = "\n\n"
"""Behind each example: the end of its answer, and an empty line."""


def unedited(model: Model) -> Edit:
    """The model as it is."""
    return Identity(model.head_shape)


def examples_in_prompt(model: Model, k: int | None = None, budget: int = 1024) -> Edit:
    """The model as it is, once the options of :func:`few_shot` have been checked. Raises ValueError on bad ones."""
    if k is not None and not _is_count(k):
        raise ValueError(f"k must be an integer ≥ 1, or None for as many as fit in budget; got {k!r}")
    if not _is_count(budget):
        raise ValueError(f"budget must be an integer ≥ 1, in tokens; got {budget!r}")
    return unedited(model)


def few_shot(setup: Setup, k: int | None = None, budget: int = 1024) -> Edit:
    """prompt(x) = w(x₁) y₁ ⏎⏎ … w(x_k) y_k ⏎⏎ w(x), with w the wrapper of the settings (Brown et al. 2020, §2).

    The examples are training rows in the seed's order, their answers worded as those that are trained. Rows whose text
    would read as a field of a template (braces), and rows too long to be shown at all, are passed over.

    Sets the training fields ``wrapper``, to the prompt as a template, and ``max_length``, to the settings' and the
    tokens of the examples; with the longest generation behind it that is never more than the model's context.

    Args:
        k: examples; fewer, and a warning, where more would not fit. None is as many as fit in ``budget``.
        budget: tokens of all examples together; only without ``k``.

    Raises:
        ValueError: an option outside its range, the wrapper ``chat``, or no room for one example.
    """
    edit = examples_in_prompt(setup.model, k, budget)
    settings, wrapper = setup.settings, setup.settings.wrapper
    if wrapper == CHAT:
        raise ValueError(
            f"few-shot: wrapper {CHAT!r} can't hold examples: a chat template decides anew for each prompt what "
            "becomes of earlier turns and of white space, which a fixed text can't follow; pass another wrapper, such "
            "as 'plain', or the turns of your model written out around {instruction}"
        )
    room = _room(setup)
    own = WRAPPERS.get(wrapper, wrapper)
    limit = room if k is not None else budget if room is None else min(room, budget)
    chosen = _chosen(setup, own, k, limit)
    if not chosen:
        raise ValueError(
            f"few-shot: not one example fits in {limit} tokens (budget {budget}; the model's context less max_length "
            f"{settings.max_length} and the longest generation: {room})"
        )
    if k is not None and len(chosen) < k:
        logger.warning("few-shot: %d of %d examples: no more rows or no more room (%s tokens)", len(chosen), k, limit)
    longer = settings.max_length + _tokens(setup, chosen, own)
    setup.fields |= {"wrapper": "".join(chosen) + own, "max_length": longer}
    return edit


def _chosen(setup: Setup, own: str, k: int | None, limit: int | None) -> list[str]:
    """The first examples of the seed's order: ``k`` of them, or those before the first that is too much."""
    taken: list[str] = []
    for text in _examples(setup):
        if len(taken) == k:
            break
        if not _is_template("".join([*taken, text]) + own):
            continue
        if limit is not None and _tokens(setup, [text], own) > limit:
            continue
        if limit is not None and _tokens(setup, [*taken, text], own) > limit:
            break
        taken.append(text)
    return taken


def _examples(setup: Setup) -> Iterator[str]:
    """Training rows in the seed's order, as they stand in a prompt."""
    settings, task = setup.settings, setup.task
    for place in setup.generator().permutation(len(task.train)):
        row = task.train[place]
        asked = wrap(row.instruction, settings.wrapper).text
        yield f"{asked}{task.worded(row.answer, settings.answers)}{BETWEEN}"


def _is_template(text: str) -> bool:
    try:
        check_wrapper(text)
    except ValueError:
        return False
    return True


def _tokens(setup: Setup, examples: Sequence[str], own: str) -> int:
    """How many tokens a prompt has more for the examples in front of it."""
    tokenizer = setup.model.tokenizer
    assert tokenizer is not None  # fit has refused a model without one
    plain, longer = (len(encode_prompt("x", tokenizer, text).ids) for text in (own, "".join(examples) + own))
    return longer - plain


def _room(setup: Setup) -> int | None:
    """Tokens of the model's context beside the longest row and generation; None where it has no end."""
    settings = setup.settings
    context = getattr(setup.model.hf.config.get_text_config(), "max_position_embeddings", None)
    new = settings.max_new_tokens or NEW_TOKENS[setup.task.kind]
    return None if context is None else int(context) - settings.max_length - new


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


PROMPTING = (
    Method(
        "zero-shot",
        "z' = z",
        "none",
        "the same prompt and decoding, without an edit",
        unedited,
    ),
    Method(
        "few-shot",
        "z' = z",
        "none",
        "Brown et al. 2020 (arXiv 2005.14165), §2: examples in the prompt",
        examples_in_prompt,
        few_shot,
        {"k": None, "budget": 1024},
        note="The Run's base side has the examples in its prompt too, so its edited and base scores are the same: "
        "compare it with another Run's base. A likelihood counts the EOS behind an answer, which no example shows. The "
        "examples, rows of the data, stand in config.json as the wrapper.",
    ),
)
