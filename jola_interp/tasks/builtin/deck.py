"""Rows dealt without repetition: what every built-in task is made with."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Generic, TypeVar

from jola_interp.tasks.base import Example, Splits, TaskError

T = TypeVar("T")
P = TypeVar("P", bound=Hashable)


class Deck(Generic[P]):
    """Piles of numbered contents, each content drawn at most once, so no two rows of any split share theirs.

    A content is a pile and a number below the size of the pile; a task turns it into text. Its size may be in
    the millions: only what was drawn takes memory.

    Args:
        task: the name of the task; two tasks of one seed draw differently.
        seed: the same seed gives the same draws, whatever PYTHONHASHSEED is.
        piles: number of contents in each pile.
    """

    def __init__(self, task: str, seed: int, piles: Mapping[P, int]) -> None:
        self.task = task
        # Seeding with text goes through SHA-512; hash() would depend on PYTHONHASHSEED.
        self.rng = random.Random(f"{task}:{seed}")
        self.left = dict(piles)
        self._draws = {pile: _shuffled(self.rng, size) for pile, size in piles.items()}

    def draw(self, pile: P) -> tuple[P, int]:
        """(pile, number) of a content not drawn before; from the fullest pile where this one is empty."""
        if not self.left[pile]:
            pile = max(self.left, key=self.left.__getitem__)
        self.left[pile] -= 1
        return pile, next(self._draws[pile])

    def rounds(self, values: Sequence[T]) -> Iterator[T]:
        """The values in a random order, then in another, without end: counts never differ by more than 1."""
        while True:
            block = list(values)
            self.rng.shuffle(block)
            yield from block

    def deal(
        self, rows: Callable[[Deck[P]], Iterator[Example]], n_train: int, n_validation: int, n_test: int
    ) -> Splits:
        """The three splits, each from a fresh `rows(self)`, so that each is balanced by itself.

        Test comes first and train last: a larger n_train leaves the other rows as they were.

        Raises:
            TaskError: more rows are asked for than there are.
        """
        total, asked = sum(self.left.values()), n_train + n_validation + n_test
        if asked > total:
            raise TaskError(
                f"task {self.task!r} has {total} distinct rows, but n_train {n_train}, n_validation "
                f"{n_validation} and n_test {n_test} ask for {asked}"
            )
        test = self._split(rows, "test", n_test)
        validation = self._split(rows, "validation", n_validation)
        return Splits(self._split(rows, "train", n_train), validation, test)

    def _split(self, rows: Callable[[Deck[P]], Iterator[Example]], split: str, n: int) -> tuple[Example, ...]:
        dealt = islice(rows(self), n)
        return tuple(replace(row, id=f"{self.task}-{split}-{i}") for i, row in enumerate(dealt))


def digits(number: int, sizes: Sequence[int]) -> list[int]:
    """The number in mixed radix: for each size a digit 0 ≤ d < size; another list for each number."""
    found = []
    for size in sizes:
        number, digit = divmod(number, size)
        found.append(digit)
    return found


def _shuffled(rng: random.Random, size: int) -> Iterator[int]:
    """0 … size − 1 in random order: a Fisher-Yates shuffle that keeps only the places it has touched."""
    moved: dict[int, int] = {}
    for i in range(size):
        j = rng.randrange(i, size)
        here = moved.pop(i, i)
        yield here if j == i else moved.get(j, j)
        if j != i:
            moved[j] = here
