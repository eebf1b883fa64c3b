"""Tokens as HTML: no script, nothing loaded, light and dark. All text of the data is escaped."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jola_interp import _files
from jola_interp.analysis.token_strips import TokenStrip
from jola_interp.plots.token_colours import PAGE, STEPS, Kind, colours, ink, steps

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""What a page may load: nothing."""
_STYLE = """
.jola-tokens { --page: #fff; --ink: #222; --soft: #5c5c5c; --line: #8c8c8c; --hatch: #cfcfcf;
  background: var(--page); color: var(--ink);
  font: 13px/1.5 Inter, "Helvetica Neue", Arial, sans-serif; padding: 14px 16px; max-width: 1100px; text-align: left; }
.jola-tokens .title { font-size: 15px; margin-bottom: 8px; }
.jola-tokens .head { color: var(--soft); margin: 12px 0 2px; overflow-wrap: anywhere; }
.jola-tokens .line { font: 13px/1.95 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; direction: ltr;
  overflow-wrap: anywhere; white-space: normal; }
.jola-tokens .t { padding: .14em .06em; margin-right: 1px; border-radius: 2px; unicode-bidi: isolate; }
.jola-tokens .apart { outline: 1px solid var(--line); outline-offset: -1px;
  background: repeating-linear-gradient(135deg, transparent 0 4px, var(--hatch) 4px 5px); }
.jola-tokens .a { border-bottom: 2px solid var(--ink); }
.jola-tokens .key { display: flex; flex-wrap: wrap; align-items: center; gap: 4px 10px; color: var(--soft);
  font-size: 12px; margin: 4px 0; }
.jola-tokens .bar { display: inline-block; width: 180px; height: 11px; background: var(--bar); }
.jola-tokens .note { color: var(--soft); font-size: 12px; margin-top: 12px; max-width: 80em; }
""".strip()
_DARK = f"--page: {PAGE}; --ink: #e8e8e8; --soft: #a8a8a8; --line: #7c7c7c; --hatch: #4a4a4a;"


@dataclass(frozen=True)
class TokenHtml:
    """Tokens that a notebook shows; :meth:`save` writes them as a page.

    Attributes:
        title: of the page.
        fragment: the figure with its own style sheet, to be put into a page.
    """

    title: str
    fragment: str = field(repr=False)

    def _repr_html_(self) -> str:
        return self.fragment

    @property
    def page(self) -> str:
        """The whole page."""
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<meta name="color-scheme" content="light dark"><title>{html.escape(self.title)}</title>'
            "<style>body { margin: 0; background: #fff; } "
            f"@media (prefers-color-scheme: dark) {{ body {{ background: {PAGE}; }} }}</style>"
            f"</head>\n<body>\n{self.fragment}\n</body></html>\n"
        )

    def save(self, path: str | Path) -> Path:
        """Write the page as .html; missing directories are made, an existing file is replaced. Returns the path.

        Raises:
            ValueError: another suffix.
        """
        target = Path(path)
        if target.suffix.lower() != ".html":
            raise ValueError(
                f"path: tokens on screen are written as .html, got {target.name!r}; draw them with "
                "renderer='matplotlib' for print"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        _files.write_bytes(target, self.page.encode())
        return target


def draw_strip(strip: TokenStrip) -> TokenHtml:
    """A strip as HTML: a span per token, a line end behind every ↵."""
    chosen = steps(strip.levels, strip.kind)
    rows = []
    for row, heading in enumerate(strip.headings):
        spans = "".join(_span(strip, int(i), int(chosen[i])) for i in np.flatnonzero(strip.row == row))
        rows.append(f'<div class="head">{_escaped(heading)}</div><div class="line">{spans}</div>')
    # Notebooks look for formulas in what they show: these classes tell MathJax to leave this alone.
    parts = [
        f"<style>{_STYLE}\n{_sheet(strip.kind, sorted({int(step) for step in chosen if step >= 0}))}</style>",
        f'<div class="jola-tokens {strip.kind} tex2jax_ignore mathjax_ignore">',
        f'<div class="title">{_escaped(strip.title)}</div>',
        _key(strip),
        *rows,
        f'<div class="note">{_escaped(" ".join(strip.notes))}</div></div>',
    ]
    return TokenHtml(strip.title, "\n".join(parts))


def _span(strip: TokenStrip, place: int, step: int) -> str:
    classes = ["t", "apart" if step < 0 else f"k{step}"] + ["a"] * bool(strip.answer[place])
    hover = html.escape(strip.hover[place]).replace("\n", "&#10;")
    text = _escaped(strip.text[place])
    return (
        f'<span class="{" ".join(classes)}" title="{hover}">{text}</span>{"<br>" if strip.breaks[place] else "<wbr>"}'
    )


def _escaped(text: str) -> str:
    """Every dollar sign in an element of its own: two of them in one text would be a formula in a notebook."""
    return html.escape(text).replace("$", "<span>$</span>")


def _sheet(kind: Kind, used: list[int]) -> str:
    """Rules for the colours that occur and for the bar of the legend, on light and on dark pages."""
    light, dark = (_rules(kind, used, is_dark) for is_dark in (False, True))
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n.jola-tokens {{ {_DARK} }}\n{dark}\n}}"


def _rules(kind: Kind, used: list[int], dark: bool) -> str:
    scale = colours(kind, dark)
    bar = ", ".join(scale[:: STEPS // 16])
    rules = [f".jola-tokens.{kind} {{ --bar: linear-gradient(to right, {bar}); }}"]
    rules += [
        f".jola-tokens.{kind} .k{step} {{ background: {scale[step]}; color: {ink(scale[step])}; }}" for step in used
    ]
    return "\n".join(rules)


def _key(strip: TokenStrip) -> str:
    """The scale with its ends (and its zero), and what hatching and the line below mean."""
    low, high = strip.ends
    signed = strip.kind == "signed"
    if signed:
        low, high = f"less likely {low}", f"{high} likelier"
    apart = "first token: no prediction" if signed else "first token: not on the scale"
    keys = [
        f"<span>{_escaped(strip.unit)}:</span><span>{low}</span>",
        f'<span class="bar" role="img" aria-label="from {low} to {high}"></span><span>{high}</span>',
        f'<span class="t apart">&nbsp;&nbsp;&nbsp;</span><span>{apart}</span>',
    ]
    if strip.answer.any():
        keys.append('<span class="a">&nbsp;&nbsp;&nbsp;</span><span>answer</span>')
    return f'<div class="key">{"".join(keys)}</div>'
