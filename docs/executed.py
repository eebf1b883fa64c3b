"""The notebooks as pages: with outputs where they have been run, figures drawn by one plotly.js beside the site."""

import json
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import plotly.io
from plotly.offline import get_plotlyjs

ROOT = pathlib.Path(__file__).resolve().parents[1]
EXECUTED, NOTEBOOKS = ROOT / "build" / "notebooks", ROOT / "notebooks"
FIGURE = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
SCRIPT = "plotly.min.js"


def bring(pages: pathlib.Path, static: pathlib.Path) -> None:
    """Fill ``pages`` with the notebooks, and ``static`` with what draws their figures.

    Sphinx reads its own folder only, so they are copied: as ``make notebooks`` has left them, or as they are committed.
    """
    for folder in (pages, static):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook = _newest(path)
        figures = [data for data in _outputs(notebook) if FIGURE in data]
        for place, data in enumerate(figures):
            data["text/html"] = _drawn(data.pop(FIGURE), first=place == 0)
        _without_widgets(notebook)
        (pages / path.name).write_text(json.dumps(notebook), encoding="utf-8")
    (static / SCRIPT).write_text(get_plotlyjs(), encoding="utf-8")


def _newest(path: pathlib.Path) -> dict[str, Any]:
    """A notebook as it ran, if it has been run as it is now; else without outputs."""
    files = [file for file in (path, EXECUTED / path.name) if file.exists()]
    committed, ran = (json.loads(files[place].read_text(encoding="utf-8")) for place in (0, -1))
    sources = [[cell["source"] for cell in notebook["cells"]] for notebook in (committed, ran)]
    return ran if sources[0] == sources[1] else committed


def _outputs(notebook: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            yield output.get("data", {})


def _without_widgets(notebook: dict[str, Any]) -> None:
    """No progress bars and the like: what draws them is fetched from elsewhere and hides plotly.js from the page."""
    notebook["metadata"].pop("widgets", None)
    for cell in notebook["cells"]:
        if "outputs" in cell:
            cell["outputs"] = [output for output in cell["outputs"] if WIDGET not in output.get("data", {})]


def _drawn(figure: dict[str, Any], first: bool) -> str:
    """HTML that draws a figure, in a box that scrolls on narrow pages; the first of a page loads plotly.js."""
    drawn = plotly.io.to_html(
        {name: figure[name] for name in ("data", "layout")}, include_plotlyjs=False, full_html=False, validate=False
    )
    script = f'<script src="../_static/{SCRIPT}"></script>' if first else ""
    return f'{script}<div style="overflow-x: auto">{drawn}</div>'
