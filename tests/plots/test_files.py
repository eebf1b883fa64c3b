"""What is written is complete, and equal for equal figures."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from jola_interp import plots
from jola_interp.runs import Run
from tests.runs_by_hand import make_run

NAMES = ("heads", "gate_snapshots", "gate_trajectories", "loss")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("run"))


def saved(run: Run, name: str, path: Path, **options: Any) -> bytes:
    return plots.save(getattr(plots, name)(run, renderer="matplotlib", **options), path).read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_equal_figures_give_equal_bytes(run: Run, name: str, tmp_path: Path) -> None:
    first = saved(run, name, tmp_path / "a.svg")
    assert saved(run, name, tmp_path / "b.svg") == first
    assert b"<dc:date>" not in first and b"<text" in first  # no date, and text that can be searched


def test_a_users_style_neither_changes_figures_nor_is_changed(run: Run, tmp_path: Path) -> None:
    plain = saved(run, "loss", tmp_path / "a.svg")
    with matplotlib.rc_context({"xtick.labelsize": 30, "axes.facecolor": "red", "savefig.bbox": "tight"}):
        before = dict(matplotlib.rcParams)
        assert saved(run, "loss", tmp_path / "b.svg") == plain
        assert dict(matplotlib.rcParams) == before


def test_pyplot_is_left_alone(run: Run) -> None:
    plots.heads(run, renderer="matplotlib")
    if "matplotlib.pyplot" in sys.modules:
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []


@pytest.mark.parametrize("name", NAMES)
def test_no_button_sends_a_figure_away(run: Run, name: str) -> None:
    figure = getattr(plots, name)(run, renderer="plotly")
    assert "sendChartToCloud" in figure.layout.modebar.remove  # else plotly 7 shows "Share chart…"


def test_a_notebook_shows_the_figure_as_a_picture(run: Run) -> None:
    assert plots.loss(run, renderer="matplotlib", width=3.25)._repr_png_().startswith(b"\x89PNG")


def test_fonts_are_embedded_in_pdf(run: Run, tmp_path: Path) -> None:
    first = saved(run, "loss", tmp_path / "a.pdf")
    assert first.startswith(b"%PDF") and b"/FontFile2" in first and b"/Type3" not in first
    assert saved(run, "loss", tmp_path / "b.pdf") == first


@pytest.mark.parametrize("width", [3.25, 6.75])
def test_the_printed_width_is_the_one_asked_for(run: Run, tmp_path: Path, width: float) -> None:
    text = saved(run, "heads", tmp_path / "a.svg", width=width).decode()
    found = re.search(r'<svg [^>]*width="([\d.]+)pt"', text)
    assert found and float(found[1]) == pytest.approx(72 * width)


def test_interactive_files_need_no_network(run: Run, tmp_path: Path) -> None:
    text = plots.save(plots.heads(run), tmp_path / "deep" / "down" / "a.html").read_text(encoding="utf-8")
    assert "<script src=" not in text and "plotly.js v" in text


def test_suffixes_that_do_not_fit_are_refused_before_anything_is_written(run: Run, tmp_path: Path) -> None:
    screen, paper = plots.loss(run), plots.loss(run, renderer="matplotlib")
    with pytest.raises(ValueError, match=r"plotly figure is written as .html, got 'a.png'; .*renderer='matplotlib'"):
        plots.save(screen, tmp_path / "new" / "a.png")
    with pytest.raises(ValueError, match=r"matplotlib figure .* got 'a.html'; .*renderer='plotly'"):
        plots.save(paper, tmp_path / "new" / "a.html")
    with pytest.raises(ValueError, match=r"\.pdf or \.svg or \.png, got 'a.tiff'$"):
        plots.save(paper, tmp_path / "new" / "a.tiff")
    with pytest.raises(TypeError, match="got str"):
        plots.save("figure", tmp_path / "new" / "a.png")
    assert not (tmp_path / "new").exists()
