"""Colours of tokens, the same on screen and in print: steps of a scale, and which ink can be read on each."""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from jola_interp.plots.map_layout import SCALES

Kind = Literal["magnitude", "signed"]
STEPS = 64
"""A scale has one colour more, so that one of them is the true zero of a signed one."""
PAGE = "#161616"
"""A dark page."""


@cache
def colours(kind: Kind, dark: bool = False) -> tuple[str, ...]:
    """The colours of a scale from its lower end to its upper one, as #rrggbb: those of the maps.

    ``magnitude`` is the same on any page. The zero of ``signed`` is the page's own colour, so that on a dark one it is
    the weak colours of the scale that stand out.
    """
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap, to_hex

    scale = SCALES[kind]
    if isinstance(scale, str):
        colour_map = colormaps[scale]
    else:
        stops = (scale[1], PAGE, scale[-2]) if dark else scale
        colour_map = LinearSegmentedColormap.from_list(kind, stops, N=STEPS + 1)
    return tuple(to_hex(colour) for colour in colour_map(np.linspace(0, 1, STEPS + 1)))


def steps(levels: Float[np.ndarray, " token"], kind: Kind) -> Int[np.ndarray, " token"]:
    """Which colour each level has; −1 for NaN.

    Args:
        levels: shares of a scale, in [0, 1] or, ``signed``, in [−1, 1].
    """
    places = (levels + 1) / 2 if kind == "signed" else levels
    return np.where(np.isnan(levels), -1, np.round(np.nan_to_num(places) * STEPS)).astype(np.int64)


def ink(background: str) -> str:
    """Black or white, whichever has the higher contrast on ``background`` (WCAG 2: 4.58 or more on any colour)."""
    luminance = _luminance(background)
    return "#000000" if (luminance + 0.05) ** 2 > 0.05 * 1.05 else "#FFFFFF"


def _luminance(colour: str) -> float:
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])
