"""The built-in tasks. A new one is a file here with a `build`, and a line in BUILTIN."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from jola_interp.tasks.base import Task
from jola_interp.tasks.builtin import agreement, arithmetic, ioi, restaurants, topics


class Builtin(NamedTuple):
    """`build(n_train, n_validation, n_test, seed)` makes the Task; the description is one line."""

    build: Callable[[int, int, int, int], Task]
    description: str


BUILTIN: dict[str, Builtin] = {
    "restaurants": Builtin(restaurants.build, "a restaurant described in one or two sentences from a list of facts"),
    "arithmetic": Builtin(arithmetic.build, "sums and differences of two numbers, with four options"),
    "agreement": Builtin(agreement.build, "is or are: verb agreement, with and without an attractor noun"),
    "ioi": Builtin(ioi.build, "indirect object identification: who is given something"),
    "topics": Builtin(topics.build, "the topic of a short text, one of six"),
}
