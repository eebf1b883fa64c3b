"""Writing figures: equal figures give equal bytes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from jola_interp import _files

SUFFIXES = {"plotly": (".html",), "matplotlib": (".pdf", ".svg", ".png")}
_NO_DATE: dict[str, dict[str, Any]] = {
    ".pdf": {"CreationDate": None},
    ".svg": {"Date": None},
    ".png": {"Software": None},
}


def save(figure: Any, path: str | Path, dpi: int = 300) -> Path:
    """Write a figure: plotly as one self-contained .html, matplotlib as .pdf, .svg or .png. Returns the path.

    Args:
        figure: what a function of this package returned.
        path: where to; missing directories are made, an existing file is replaced.
        dpi: resolution of .png, and of what .pdf and .svg hold as pixels (very large maps).

    Raises:
        ValueError: a suffix that does not go with the figure.
        TypeError: neither a plotly nor a matplotlib figure.
    """
    target = Path(path)
    made_by = type(figure).__mro__
    modules = {base.__module__.split(".")[0] for base in made_by}
    name = next((name for name in SUFFIXES if name in modules), None)
    if name is None:
        raise TypeError(f"figure must be a plotly or matplotlib figure; got {type(figure).__name__}")
    suffix = target.suffix.lower()
    if suffix not in SUFFIXES[name]:
        other = next(key for key in SUFFIXES if key != name)
        hint = f"; draw it with renderer={other!r} for {suffix}" if suffix in SUFFIXES[other] else ""
        allowed = " or ".join(SUFFIXES[name])
        raise ValueError(f"path: a {name} figure is written as {allowed}, got {target.name!r}{hint}")
    content = _html(figure) if name == "plotly" else _print(figure, suffix, dpi)
    target.parent.mkdir(parents=True, exist_ok=True)
    _files.write_bytes(target, content)
    return target


def _html(figure: Any) -> bytes:
    text = figure.to_html(include_plotlyjs=True, full_html=True, div_id="figure", config={"displaylogo": False})
    return str(text).encode()


def _print(figure: Any, suffix: str, dpi: int) -> bytes:
    from jola_interp.plots.printed import printing

    content = io.BytesIO()
    with printing():
        figure.savefig(content, format=suffix[1:], dpi=dpi, metadata=_NO_DATE[suffix])
    return content.getvalue()
