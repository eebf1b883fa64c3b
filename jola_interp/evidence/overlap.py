"""Do two trainings select the same heads, more than sets of their sizes in the same layers would by chance?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

Units = Iterable[tuple[int, int]]
DRAWS = 2000


@dataclass(frozen=True)
class Overlap:
    """|A ∩ B| / |A ∪ B| of two sets of heads, beside its null.

    Attributes:
        jaccard: in [0, 1]; 1 for two empty sets.
        shared: |A ∩ B|.
        sizes: |A| and |B|.
        chance: mean Jaccard of ``DRAWS`` pairs of random sets that have A's and B's numbers of heads in every layer.
        p: share of those pairs that overlap at least as much, the observed pair counted among them.
    """

    jaccard: float
    shared: int
    sizes: tuple[int, int]
    chance: float
    p: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "sizes": list(self.sizes)}


def overlap(
    first: Units,
    second: Units,
    editable: Bool[np.ndarray, "layer head"],
    seed: int = 0,
    *,
    others: Bool[np.ndarray, "layer head"] | None = None,
) -> Overlap:
    """Compare two sets of heads. Numbers per layer are kept in the null, so that a shared layer profile is none.

    Args:
        first, second: (layer, head) pairs.
        editable: heads that could have been selected.
        seed: of the random sets.
        others: heads that could have been selected for ``second``, where they are not the same.

    Raises:
        ValueError: a head that is not editable.
    """
    others = editable if others is None else others
    a, b = _mask(first, editable), _mask(second, others)
    generator = np.random.default_rng(seed)
    random = np.array([
        _jaccard(_shuffled(a, editable, generator), _shuffled(b, others, generator)) for _ in range(DRAWS)
    ])  # fmt: skip
    found = _jaccard(a, b)
    return Overlap(
        jaccard=found,
        shared=int((a & b).sum()),
        sizes=(int(a.sum()), int(b.sum())),
        chance=float(random.mean()),
        p=float((1 + (random >= found).sum()) / (DRAWS + 1)),
    )


def random_like(
    heads: Sequence[tuple[int, int]], editable: Bool[np.ndarray, "layer head"], generator: np.random.Generator
) -> tuple[tuple[int, int], ...]:
    """A random set with the same number of heads in every layer, in order of layer and head."""
    mask = _shuffled(_mask(heads, editable), editable, generator)
    return tuple((int(layer), int(head)) for layer, head in np.argwhere(mask))


def _mask(heads: Units, editable: Bool[np.ndarray, "layer head"]) -> Bool[np.ndarray, "layer head"]:
    mask = np.zeros_like(editable, dtype=bool)
    for unit in heads:
        mask[unit] = True
    if (mask & ~editable).any():
        raise ValueError(f"heads: {np.argwhere(mask & ~editable)[0].tolist()} (layer, head) is not editable")
    return mask


def _shuffled(
    mask: Bool[np.ndarray, "layer head"], editable: Bool[np.ndarray, "layer head"], generator: np.random.Generator
) -> Bool[np.ndarray, "layer head"]:
    """The same number of heads in every layer, drawn from those that are editable."""
    order = np.where(editable, generator.random(mask.shape), np.inf)
    ranks = order.argsort(1).argsort(1)
    return np.asarray(ranks < mask.sum(1, keepdims=True))


def _jaccard(a: Bool[np.ndarray, "layer head"], b: Bool[np.ndarray, "layer head"]) -> float:
    either = int((a | b).sum())
    return float((a & b).sum() / either) if either else 1.0
