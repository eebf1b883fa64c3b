"""A number beside random draws of it: how many reach it, and where most of them end."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def p_values(found: Float[np.ndarray, "*n"], null: Float[np.ndarray, "*n draw"]) -> Float[np.ndarray, "*n"]:
    """(1 + draws that reach it)/(1 + draws), elementwise; 1 where there is nothing."""
    reached = ~(np.asarray(null) < np.asarray(found)[..., None])
    return np.asarray((1 + reached.sum(-1)) / (1 + null.shape[-1]))


def ends(null: Float[np.ndarray, "*n draw"]) -> Float[np.ndarray, "*n"]:
    """What 95 % of the draws stay below; NaN where one is."""
    return np.asarray(np.quantile(null, 0.95, axis=-1))
