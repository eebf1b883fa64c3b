"""The page of a report and what it is built of; cells and headings are escaped by whoever knows that they are text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from jola_interp import _files

LONGEST = 700
"""How much of a text is shown."""


def write_page(path: Path, title: str, subtitle: str, body: str) -> Path:
    """One self-contained file; ``title`` and ``subtitle`` are plain text, ``body`` is HTML."""
    from plotly.offline import get_plotlyjs

    parts = {"title": escape(title), "subtitle": escape(subtitle), "body": body, "plotly": get_plotlyjs()}
    path.parent.mkdir(parents=True, exist_ok=True)
    _files.write_bytes(path, PAGE.substitute(parts).encode())
    return path


def section(heading: str, inner: str) -> str:
    """A heading and what stands below it."""
    return f"<section><h2>{escape(heading)}</h2>{inner}</section>"


def figure(name: str, heading: str, figure: Any, before: str = "", see: str = "") -> str:
    """A plotly figure below its heading; ``see`` says what to see in it."""
    figure.update_layout(title=None, margin_t=56, height=figure.layout.height - 20)  # the heading is the title
    inner = figure.to_html(
        include_plotlyjs=False, full_html=False, div_id=name, config={"displaylogo": False, "responsive": False}
    )
    said = f'<p class="note">{escape(see[:1].upper() + see[1:])}.</p>' if see else ""
    return f'<section><h2>{escape(heading)}</h2>{said}{before}<div class="figure">{inner}</div></section>'


def text_cell(value: object) -> str:
    """Text of a row, escaped and cut."""
    text = str(value)
    return escape(text if len(text) <= LONGEST else text[:LONGEST] + " …")


def listed(items: Iterable[str]) -> str:
    """A list of HTML items."""
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "plain") -> str:
    """Cells are escaped already."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root { --paper: #ffffff; --ink: #222222; --soft: #666666; --line: #dddddd; --box: #f5f5f3; --alarm: #fff3d6; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181c; --ink: #e4e4e4; --soft: #9a9a9a; --line: #3a3d42; --box: #202328; --alarm: #3d3218; }
}
body { margin: 2rem auto 4rem; padding: 0 1.25rem; max-width: 66rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 Inter, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
h3 { font-size: .95rem; margin: 0 0 .3rem; }
.subtitle, .note { color: var(--soft); font-size: .88rem; margin: .3rem 0; overflow-wrap: anywhere; }
li { margin: .3rem 0; }
.wide, .figure { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .28rem .9rem .28rem 0; border-bottom: 1px solid var(--line);
  font-weight: normal; }
thead th { color: var(--soft); }
.verdict { margin: 0 0 .8rem; }
.verdict strong { display: block; font-size: 1.9rem; line-height: 1.2; }
.evidence { font-size: .84rem; line-height: 1.35; }
.evidence td:first-child { white-space: nowrap; }
.evidence td:nth-child(2) { min-width: 13rem; }
.missing { color: var(--soft); }
.command { white-space: nowrap; }
.said { font-size: .9rem; margin-top: 1.2rem; }
.said ul { margin: .2rem 0; padding-left: 1.2rem; }
li:has(> .warning) { list-style: none; }
.examples td { width: 25%; min-width: 11rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; }
.settings { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1.5rem; }
.training { grid-column: 1 / -1; }
.training dl { columns: 17rem; column-gap: 1.5rem; }
dl { margin: 0; font-size: .88rem; }
dl div { display: flex; gap: 1rem; padding: .22rem 0; border-bottom: 1px solid var(--line); break-inside: avoid; }
dt { color: var(--soft); flex: 0 0 9rem; overflow-wrap: anywhere; }
dd { margin: 0; overflow-wrap: anywhere; min-width: 0; }
.warning { background: var(--alarm); padding: .7rem 1rem; border-radius: 4px; }
pre { background: var(--box); padding: .8rem 1rem; border-radius: 4px; overflow-x: auto; font-size: .85rem; }
code { background: var(--box); padding: 0 .25em; border-radius: 3px; font-size: .9em; }
</style>
<script>$plotly</script>
</head>
<body>
<h1>$title</h1>
<p class="subtitle">$subtitle</p>
$body
<script>
// Figures are drawn for white paper; on dark paper their ink and what is white in them change too.
(function () {
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  function paint() {
    var ink = dark.matches ? "#e4e4e4" : "#222222", paper = dark.matches ? "#16181c" : "#ffffff";
    document.querySelectorAll(".plotly-graph-div").forEach(function (plot) {
      var change = { "font.color": ink, "paper_bgcolor": paper }, shapes = plot.layout.shapes || [];
      plot.white = plot.white || shapes.map(function (shape) {
        return { "line.color": shape.line.color === "white", "fillcolor": shape.fillcolor === "white" };
      });
      shapes.forEach(function (shape, i) {
        Object.keys(plot.white[i]).forEach(function (part) {
          if (plot.white[i][part]) { change["shapes[" + i + "]." + part] = paper; }
        });
      });
      Plotly.relayout(plot, change);
    });
  }
  dark.addEventListener("change", paint);
  if (dark.matches) { paint(); }
})();
</script>
</body>
</html>
""")
