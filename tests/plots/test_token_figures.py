"""Tokens are drawn as they stand, whatever stands in them, on the colours of their numbers; patterns as maps."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from jola_interp import plots
from jola_interp.analysis.attention import AttentionPatterns, attention_sheet, entropy, total_variation
from jola_interp.analysis.tables import NotMeasuredError, save_table
from jola_interp.analysis.token_strips import TokenStrip
from jola_interp.analysis.token_strips import token_strip as strip_of
from jola_interp.analysis.token_texts import visible
from jola_interp.analysis.tokens import Tokens
from jola_interp.plots.attention import attention
from jola_interp.plots.printed_tokens import GAP, MARGIN, MISSING
from jola_interp.plots.token_colours import STEPS, colours, ink, steps
from jola_interp.plots.tokens import token_strip
from jola_interp.runs import edit_digest
from tests.runs_by_hand import make_run

HOSTILE = (
    "first", "<script>alert(1)</script>", '"', "'", "&amp;", "$", "$x^2$", "\n", "\t", "猫", "", "", "🦉", " a", "]]>",
    "<!--", "\u202e", "{x}", "\\alpha", "é", "\n\n", "</span>", "long" * 40, "end",
)  # fmt: skip


def table_of(texts: tuple[str, ...] = HOSTILE, rows: int = 2, draws: int = 2) -> Tokens:
    """The same texts in every row, with numbers that mean nothing."""
    generator, count = np.random.default_rng(0), rows * len(texts)
    position = np.tile(np.arange(len(texts)), rows)
    first = position == 0
    base, edited, *random = (np.where(first, np.nan, -generator.exponential(2.0, count)) for _ in range(2 + draws))
    return Tokens(
        title="tiny <b>on</b> $toy$",
        wrapper="raw",
        names=tuple(f"row <i>{i}</i>" for i in range(rows)),
        labels=("L0H0", "L0H1"),
        text=texts * rows,
        ids=np.arange(count),
        row=np.repeat(np.arange(rows), len(texts)),
        position=position,
        prompt=position < len(texts) - 3,
        base=base,
        edited=edited,
        random=np.array(random).reshape(draws, count),
        shift=np.where(first, 50.0, generator.uniform(0, 1, count)),
        random_shift=generator.uniform(0, 1, count),
        heads=generator.integers(0, 2, (count, 2)),
        moved=generator.uniform(0, 1, (count, 2)),
    )


class Page(HTMLParser):
    """The tokens of a page as a browser would read them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.tokens: list[tuple[str, list[str], str]] = []  # text, classes, title
        self.breaks: list[int] = []
        self.open = 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = {name: value or "" for name, value in attrs}
        self.attributes += list(given.items())
        if tag == "span" and (self.open or "title" in given):
            if not self.open:
                self.tokens.append(("", given["class"].split(), given["title"]))
            self.open += 1
        if tag == "br":
            self.breaks.append(len(self.tokens) - 1)

    def handle_endtag(self, tag: str) -> None:
        self.open -= tag == "span" and self.open > 0

    def handle_data(self, data: str) -> None:
        if self.open:
            text, classes, title = self.tokens[-1]
            self.tokens[-1] = (text + data, classes, title)


@pytest.fixture(params=["shift", "logp"])
def of(request: pytest.FixtureRequest) -> Any:
    return request.param


# -- on screen ---------------------------------------------------------------------------------------------------------


def test_whatever_stands_in_a_token_is_shown_as_text(of: Any) -> None:
    table = table_of()
    figure = token_strip(table, of)
    page = Page(figure.page)
    strip = strip_of(table, of)
    assert [text for text, _, _ in page.tokens] == [visible(text) for text in table.text]
    assert [title for _, _, title in page.tokens] == list(strip.hover)
    known = {"html", "head", "meta", "title", "style", "body", "div", "span", "br", "wbr"}
    assert set(page.tags) <= known and page.tags.count("style") == 2 and page.tags.count("title") == 1
    assert "<script" not in figure.page and "<b>on" not in figure.page and "<i>0" not in figure.page


def test_a_page_runs_and_loads_nothing(of: Any) -> None:
    figure = token_strip(table_of(), of)
    page = Page(figure.page)
    assert not [name for name, _ in page.attributes if name in ("src", "href", "srcset") or name.startswith("on")]
    sheets = "".join(re.findall(r"<style>(.*?)</style>", figure.page, re.S))
    assert "url(" not in sheets and "@import" not in sheets and "http" not in sheets
    assert "default-src 'none'" in dict(page.attributes).get("content", "") or "default-src 'none'" in figure.page
    assert figure._repr_html_() == figure.fragment and figure.fragment in figure.page


def test_no_two_dollars_stand_in_one_text(of: Any) -> None:
    class Texts(HTMLParser):
        def handle_data(self, data: str) -> None:
            assert data.count("$") < 2 or self.lasttag == "title", data

    Texts().feed(token_strip(table_of(), of).page)
    assert "mathjax_ignore" in token_strip(table_of(), of).fragment


def test_lines_end_behind_line_ends(of: Any) -> None:
    table = table_of()
    page = Page(token_strip(table, of).page)
    assert page.breaks == [i for i, text in enumerate(table.text) if "\n" in text]
    assert page.tokens[page.breaks[0]][0] == "↵" and page.tokens[page.breaks[1]][0] == "↵↵"


def test_tokens_have_the_colours_of_their_numbers(of: Any) -> None:
    table = table_of()
    strip = strip_of(table, of)
    figure = token_strip(table, of)
    page = Page(figure.page)
    for (_, classes, _), level, apart, answer in zip(page.tokens, strip.levels, strip.apart, strip.answer, strict=True):
        assert ("apart" in classes) == apart and ("a" in classes) == answer
        if not apart:
            share = level if of == "shift" else (level + 1) / 2
            assert f"k{round(share * STEPS)}" in classes
    used = {int(name[1:]) for _, classes, _ in page.tokens for name in classes if name[1:].isdigit()}
    light, _, dark = figure.fragment.partition("@media (prefers-color-scheme: dark)")
    for sheet, scale in ((light, colours(strip.kind)), (dark, colours(strip.kind, dark=True))):
        for step in used:
            assert f".k{step} {{ background: {scale[step]}; color: {ink(scale[step])}; }}" in sheet


def test_a_first_token_does_not_stretch_the_scale() -> None:
    table = table_of()  # whose first tokens are shifted by 50
    strip = strip_of(table)
    assert strip.limit <= 1 and f">{strip.limit:.3g}</span>" in token_strip(table).fragment
    assert "50" in " ".join(strip.notes) and "shift 50" in strip.hover[0]


def test_dark_pages_have_colours_of_their_own(of: Any) -> None:
    fragment = token_strip(table_of(), of).fragment
    light, _, dark = fragment.partition("@media (prefers-color-scheme: dark)")
    assert "--page: #fff" in light and "--page: #161616" in dark
    zero = {is_dark: colours("signed", is_dark)[STEPS // 2] for is_dark in (False, True)}
    assert zero == {False: "#ffffff", True: "#161616"}  # the page's own: no change, no colour


@pytest.mark.parametrize("kind", ["magnitude", "signed"])
@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read_on_every_colour(kind: Any, dark: bool) -> None:
    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    assert len(colours(kind, dark)) == STEPS + 1
    for colour in colours(kind, dark):
        low, high = sorted((luminance(colour), luminance(ink(colour))))
        assert (high + 0.05) / (low + 0.05) >= 4.5


@pytest.mark.parametrize("dark", [False, True])
def test_signs_are_told_by_blue_and_orange_not_by_red_and_green(dark: bool) -> None:
    low, high = colours("signed", dark)[0], colours("signed", dark)[-1]
    red, green, blue = ([int(colour[i : i + 2], 16) for colour in (low, high)] for i in (1, 3, 5))
    assert blue[0] > green[0] > red[0] and red[1] > green[1] > blue[1]
    assert steps(np.array([-1.0, 0.0, 1.0, np.nan]), "signed").tolist() == [0, STEPS // 2, STEPS, -1]
    assert steps(np.array([0.0, 1.0]), "magnitude").tolist() == [0, STEPS]


def test_a_page_is_saved_as_html_only(tmp_path: Path) -> None:
    figure = token_strip(table_of())
    target = figure.save(tmp_path / "new" / "strip.html")
    assert target.read_text(encoding="utf-8") == figure.page
    assert token_strip(table_of()).page == figure.page  # equal figures, equal bytes
    with pytest.raises(ValueError, match="written as .html, got 'strip.pdf'; .* renderer='matplotlib'"):
        figure.save(tmp_path / "strip.pdf")


# -- in print ----------------------------------------------------------------------------------------------------------


def boxes(figure: Any) -> list[Rectangle]:
    """The tokens' boxes, without the veil over hatched ones."""
    axes = next(axes for axes in figure.axes if axes.get_label() == "tokens")
    return [patch for patch in axes.patches if patch.get_alpha() is None]


@pytest.mark.parametrize("width", [2.0, 3.25, 6.75])
def test_printed_tokens_stay_within_the_width_and_apart(of: Any, width: float) -> None:
    figure = token_strip(table_of(), of, renderer="matplotlib", width=width)
    assert figure.get_size_inches()[0] == pytest.approx(width)
    lines: dict[float, list[tuple[float, float]]] = {}
    for box in boxes(figure):
        lines.setdefault(round(box.get_y(), 4), []).append((box.get_x(), box.get_x() + box.get_width()))
    for spans in lines.values():
        assert spans[0][0] == pytest.approx(MARGIN) and spans[-1][1] <= width - MARGIN + 1e-6
        for left, right in zip(spans, spans[1:], strict=False):
            assert right[0] - left[1] == pytest.approx(GAP, abs=1e-6)
    axes = next(axes for axes in figure.axes if axes.get_label() == "tokens")
    for dpi in (100, 200, 300):
        figure.set_dpi(dpi)
        renderer = FigureCanvasAgg(figure).get_renderer()
        for box, text in zip(boxes(figure), axes.texts, strict=True):
            drawn, around = text.get_window_extent(renderer), box.get_window_extent(renderer)
            assert drawn.x0 >= around.x0 - 1 and drawn.x1 <= around.x1 + 1  # pixels


def test_both_renderers_draw_the_same_colours(of: Any) -> None:
    table = table_of()
    strip = strip_of(table, of)
    scale, chosen = colours(strip.kind), steps(strip.levels, strip.kind)
    drawn = boxes(token_strip(table, of, renderer="matplotlib"))
    assert len(drawn) == len(table)
    for box, step in zip(drawn, chosen, strict=True):
        assert (box.get_hatch() is not None) == (step < 0)
        if step >= 0:
            assert to_hex(box.get_facecolor()) == scale[step]


def test_printed_tokens_stand_as_they_are(of: Any, recwarn: pytest.WarningsRecorder) -> None:
    table = table_of()
    figure = token_strip(table, of, renderer="matplotlib")
    axes = next(axes for axes in figure.axes if axes.get_label() == "tokens")
    assert not any(text.get_parse_math() for text in axes.texts)
    drawn = [text.get_text() for text in axes.texts]
    for shown, text in zip(drawn, table.visible, strict=True):
        assert shown == text.replace("猫", MISSING).replace("🦉", MISSING) or len(text) > 100
    assert any(f"{MISSING}: a character that" in text.get_text() for text in figure.texts)
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_printed_tokens_are_saved(tmp_path: Path, suffix: str) -> None:
    few = table_of(HOSTILE[:6], rows=1)
    first, again = (
        plots.save(token_strip(few, "logp", renderer="matplotlib", width=3.25), tmp_path / f"{name}{suffix}", dpi=60)
        for name in "ab"
    )
    assert first.read_bytes() == again.read_bytes()


# -- both --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("renderer", ["plotly", "matplotlib"])
@pytest.mark.parametrize("texts", [("one",), ("one", "two")])
def test_tables_of_next_to_nothing_are_drawn(of: Any, renderer: Any, texts: tuple[str, ...]) -> None:
    table = table_of(texts, rows=1, draws=0)
    assert isinstance(strip_of(table, of), TokenStrip)
    token_strip(table, of, renderer=renderer)
    nothing = Tokens(**{**vars(table), "base": np.full(len(texts), np.nan), "shift": np.zeros(len(texts))})
    token_strip(nothing, of, renderer=renderer)


def test_a_run_draws_the_table_that_it_holds(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with pytest.raises(NotMeasuredError, match="text-tokens"):
        token_strip(run)
    with pytest.raises(NotMeasuredError, match="text-attention"):
        attention(run)
    on = {"edit": edit_digest(run.edit)}
    save_table(run, "text-tokens", table_of(), on)
    save_table(run, "text-attention", patterns_of(), on)
    assert token_strip(run, "logp").page == token_strip(table_of(), "logp").page
    assert attention(run).to_json() == attention(patterns_of()).to_json()


@pytest.mark.parametrize("draw", [token_strip, attention])
def test_renderer_and_width_are_checked_first(draw: Any) -> None:
    with pytest.raises(ValueError, match="renderer must be plotly or matplotlib"):
        draw(None, renderer="ascii")
    with pytest.raises(ValueError, match="width is the printed width"):
        draw(None, width=3)


# -- attention ---------------------------------------------------------------------------------------------------------


def patterns_of(text: tuple[str, ...] = HOSTILE, draws: int = 3) -> AttentionPatterns:
    """Two heads on one row, of which the first cannot move."""
    generator, length = np.random.default_rng(0), len(text)
    weights = np.tril(generator.exponential(1.0, (2 + draws, 1, 2, length, length)))
    before, after, *random = weights / weights.sum(-1, keepdims=True)
    after[:, 0] = before[:, 0]
    return AttentionPatterns(
        title="tiny on $toy$",
        names=("row 0",),
        heads=("L0H0", "L2H3"),
        text=(tuple(map(visible, text)),),
        before=before,
        after=after,
        random_distance=np.array([total_variation(before, other) for other in random]).reshape(draws, 1, 2, length),
        random_first=np.array([other[..., 0] for other in random]).reshape(draws, 1, 2, length),
        random_entropy=np.array([entropy(other) for other in random]).reshape(draws, 1, 2, length),
        acting=(0, 2),
    )


def test_both_renderers_draw_the_patterns(recwarn: pytest.WarningsRecorder) -> None:
    table = patterns_of()
    sheet = attention_sheet(table)
    screen = [trace for trace in attention(table).data if isinstance(trace, go.Heatmap)]
    figure = attention(table, renderer="matplotlib")
    paper = [
        mesh
        for axes in figure.axes
        if axes.get_label() != "colour bar"
        for mesh in axes.collections
        if isinstance(mesh, QuadMesh)
    ]
    assert len(screen) == len(paper) == len(sheet.panels) == 6
    for panel, trace, mesh in zip(sheet.panels, screen, paper, strict=True):
        assert np.array_equal(np.array(trace.z, dtype=float), panel.values, equal_nan=True)
        drawn = np.ma.filled(mesh.get_array().astype(float), np.nan).reshape(panel.shape)
        assert np.array_equal(drawn, panel.values, equal_nan=True)
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


@pytest.mark.parametrize("renderer", ["plotly", "matplotlib"])
@pytest.mark.parametrize("length", [1, 2, 60, 150])
def test_patterns_of_any_length_are_drawn(renderer: Any, length: int) -> None:
    for log in (False, True):
        assert attention(patterns_of(("tok",) * length, draws=0), heads=["L2H3"], log=log, renderer=renderer)


def test_first_queries_stand_at_the_top_with_their_tokens() -> None:
    table = patterns_of(("a", " b", "<i>"))
    figure = attention(table, heads=["L2H3"])
    low, high = figure.layout.yaxis.range
    assert low > high  # downwards
    assert list(figure.layout.yaxis.ticktext) == ["a", "·b", "&lt;i&gt;"]
    axes = attention(table, heads=["L2H3"], renderer="matplotlib").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "·b", "<i>"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
