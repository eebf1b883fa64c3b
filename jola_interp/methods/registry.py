"""All methods, in the order in which they are listed: the reference points, JoLA, the others, the ablations."""

from __future__ import annotations

from typing import Any

from jola_interp.methods.budget import BUDGET
from jola_interp.methods.choosing import CHOOSING
from jola_interp.methods.jola import ABLATIONS, JOLA
from jola_interp.methods.lofit import LOFIT
from jola_interp.methods.prompting import PROMPTING
from jola_interp.methods.reft import REFT
from jola_interp.methods.repe import REPE
from jola_interp.methods.table import Method, Methods
from jola_interp.methods.weights import BIASES, WEIGHTS

ALL: tuple[Method, ...] = (
    *PROMPTING, *JOLA, *BUDGET, *WEIGHTS, *REPE, *REFT, *LOFIT, *CHOOSING, *ABLATIONS, *BIASES,
)  # fmt: skip


def methods() -> Methods:
    """Everything that ``fit`` takes by name as ``edit``."""
    return Methods({found.name: found for found in ALL})


def method(name: str, **options: Any) -> Method:
    """A method by name, with options of its own: ``method("lora", r=16)``.

    Raises:
        ValueError: an unknown name or option.
    """
    known = methods()
    if name not in known:
        raise ValueError(f"method must be one of {', '.join(known)}; got {name!r}")
    return known[name](**options)
