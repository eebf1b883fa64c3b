"""A heads map of a few kilobytes of SVG: what a Run shows of itself in a notebook, and the live view in training."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

# Anchors of the cividis colour map, dark (0) to light (1); in between we interpolate.
_CIVIDIS = np.array(
    [
        [0, 34, 78],
        [33, 58, 108],
        [80, 88, 109],
        [111, 112, 115],
        [138, 134, 120],
        [173, 160, 112],
        [212, 191, 90],
        [254, 232, 56],
    ]
)
_CELL, _GAP, _TOP = 9, 28, 30


def colour(value: float) -> str:
    """Hex colour of a probability; grey for NaN."""
    if not np.isfinite(value):
        return "#dddddd"
    place = float(np.clip(value, 0, 1)) * (len(_CIVIDIS) - 1)
    low = min(int(place), len(_CIVIDIS) - 2)
    mixed = _CIVIDIS[low] + (place - low) * (_CIVIDIS[low + 1] - _CIVIDIS[low])
    return "#" + "".join(f"{round(channel):02x}" for channel in mixed)


def heads_svg(p_open: Mapping[str, Float[np.ndarray, "layer unit"]], caption: str = "") -> str:
    """P(open) as one panel per kind of gate: layers from bottom (0) to top, heads from left to right.

    Args:
        p_open: kind of gate to values in [0, 1]; NaN is drawn grey.
        caption: a line above the panels.
    """
    panels, left = [], 0
    height = 0
    for kind, values in p_open.items():
        layers, units = values.shape
        panels.append(_panel(kind, values, left))
        left += max(units * _CELL, 90) + _GAP
        height = max(height, _TOP + layers * _CELL + 16)
    head = f'<text x="0" y="11" font-size="11" font-weight="bold">{_escape(caption)}</text>' if caption else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{max(left, 360)}" height="{height}" role="img" '
        f'font-family="sans-serif" fill="currentColor">{head}{"".join(panels)}</svg>'
    )


def _panel(kind: str, values: Float[np.ndarray, "layer unit"], left: int) -> str:
    layers, units = values.shape
    cells = [
        f'<rect x="{left + head * _CELL}" y="{_TOP + (layers - 1 - layer) * _CELL}" width="{_CELL - 1}" '
        f'height="{_CELL - 1}" fill="{colour(float(values[layer, head]))}"><title>L{layer}H{head}: P(open) '
        f"{values[layer, head]:.2f}</title></rect>"
        for layer in range(layers)
        for head in range(units)
    ]
    title = f'<text x="{left}" y="{_TOP - 5}" font-size="10">{_escape(kind)}: P(open)</text>'
    foot = f'<text x="{left}" y="{_TOP + layers * _CELL + 11}" font-size="9">heads 0–{units - 1}, layer 0 below</text>'
    return title + "".join(cells) + foot


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
