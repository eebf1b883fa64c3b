"""What all plotly figures share: margins, title, notes. Sizes are pixels of a figure of fixed size."""

from __future__ import annotations

import html
from typing import Any

import plotly.graph_objects as go

from jola_interp.plots import style

LEFT, TOP, RIGHT, BOTTOM = 58, 76, 16, 50
"""Margins around the panels; the notes come on top of the last."""
_LINE, _CHARACTER = 17, 6.4
FONT = {"family": "Inter, Helvetica Neue, Arial, sans-serif", "size": 12, "color": style.INK}


def axes_of(number: int) -> tuple[str, str]:
    """Names of the axes of the n-th panel (from 1): x, y, x2, y2, …"""
    suffix = "" if number == 1 else str(number)
    return f"x{suffix}", f"y{suffix}"


def escaped(text: str) -> str:
    """Text as plotly shows it: without this, < and & would be read as markup."""
    return html.escape(text, quote=False)


def lay_out(
    figure: go.Figure,
    size: tuple[float, float],
    title: str,
    notes: list[str] | tuple[str, ...],
    right: float = RIGHT,
    **more: Any,
) -> None:
    """Give a figure its size, from that of the area of its panels; its title above and its notes below."""
    width, height = size
    lines = style.wrapped(notes, int((width + right) / _CHARACTER))
    bottom = BOTTOM + (10 + _LINE * len(lines) if lines else 0)
    figure.update_layout(
        template="none",
        font=FONT,
        paper_bgcolor="white",
        modebar={"remove": [style.SHARE]},
        width=round(LEFT + width + right),
        height=round(TOP + height + bottom),
        margin={"l": LEFT, "r": right, "t": TOP, "b": bottom, "autoexpand": False},
        title={
            "text": escaped(title),
            "x": 0,
            "xref": "paper",
            "xanchor": "left",
            "y": 1 - 22 / (TOP + height + bottom),
            "yanchor": "middle",
            "font": {"size": 15},
        },
        **more,
    )
    if lines:
        add_text(figure, "<br>".join(map(escaped, lines)), (0, 0), yanchor="top", yshift=-BOTTOM, align="left")


def add_text(figure: go.Figure, text: str, at: tuple[float, float], **options: Any) -> None:
    """Text (already escaped) at a place in fractions of the area of the panels; starts there unless told otherwise."""
    defaults = {"xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom", "font": {"size": 12}}
    figure.add_annotation(text=text, x=at[0], y=at[1], showarrow=False, **{**defaults, **options})
