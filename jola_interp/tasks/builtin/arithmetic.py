"""Sums and differences of two numbers, with four options.

What a model must know: to add and subtract numbers below 100, and to name the option that holds the result.

How it is balanced: sums and differences in turn; the right option in each of the four places equally often;
and the right result equally often the smallest, second, third and largest of the four, so neither a place nor
"take the middle one" does better than chance. All wrong options are 1, 2, 3 or 10 away.

Each pair of numbers (47 + 12 and 12 + 47 are the same pair) stands in one sum and one difference, both in the
same split, so no split asks about a pair of another. That makes 9,120 rows: 6,384
for train, 1,368 each for validation and test.
"""

from __future__ import annotations

from collections.abc import Iterator

from jola_interp.tasks.base import Example, Task
from jola_interp.tasks.builtin.deck import Deck, deal

NAME = "arithmetic"
REQUIRES = "adding and subtracting numbers below 100, and naming the option that holds the result"
ANSWERS = ("answer1", "answer2", "answer3", "answer4")
OPERATIONS = ("sum", "difference")
# At least 3 apart, so that three wrong results can lie below a difference without being negative.
PAIRS = tuple((a, b) for a in range(5, 100) for b in range(2, a - 2))
AWAY = (1, 2, 3, 10)


def build(n_train: int, n_validation: int, n_test: int, seed: int) -> Task:
    """The task with these numbers of rows; TaskError above 6,384 for train or 1,368 for validation or test."""
    piles = {operation: len(PAIRS) for operation in OPERATIONS}
    splits = deal(NAME, seed, piles, _rows, (n_train, n_validation, n_test))
    return Task(NAME, *splits, kind="choice", options=ANSWERS, pattern=r"answer[1-4]", requires=REQUIRES)


def _rows(deck: Deck[str]) -> Iterator[Example]:
    ranks, places = deck.rounds(range(4)), deck.rounds(range(4))
    for wanted, rank, place in zip(deck.rounds(OPERATIONS), ranks, places, strict=True):
        operation, number = deck.draw(wanted)
        a, b = PAIRS[number]
        result = a + b if operation == "sum" else a - b
        options = _options(deck, result, rank, place)
        yield Example(_instruction(_question(deck, operation, a, b), options), ANSWERS[place])


def _options(deck: Deck[str], result: int, rank: int, place: int) -> list[int]:
    """Four numbers, the result at this place, and this many of the others below it."""
    below = deck.rng.sample([d for d in AWAY if d <= result], rank)
    above = deck.rng.sample(AWAY, 3 - rank)
    wrong = [result - d for d in below] + [result + d for d in above]
    deck.rng.shuffle(wrong)
    return [*wrong[:place], result, *wrong[place:]]


def _question(deck: Deck[str], operation: str, a: int, b: int) -> str:
    if operation == "difference":
        return deck.rng.choice(
            (
                f"What is {a} - {b}?",
                f"How much is {a} minus {b}?",
                f"What is left of {a} after {b} is taken away?",
            )
        )
    first, second = (a, b) if deck.rng.random() < 0.5 else (b, a)
    return deck.rng.choice(
        (
            f"What is {first} + {second}?",
            f"How much is {first} plus {second}?",
            f"What is the sum of {first} and {second}?",
        )
    )


def _instruction(question: str, options: list[int]) -> str:
    listed = " ".join(f"Answer{i}: {option}" for i, option in enumerate(options, start=1))
    return (
        f"Please choose the correct answer to the question: {question}\n\n{listed}\n\n"
        f"Answer format: {'/'.join(ANSWERS)}"
    )
