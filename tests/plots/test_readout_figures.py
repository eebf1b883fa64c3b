"""Figures of a readout show the table: tokens only where the lens is right, each size beside its null."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jola_interp import plots
from jola_interp.analysis.readout import TRUSTED, Readout
from jola_interp.analysis.tables import NotMeasuredError, save_table
from jola_interp.plots.readout import attribution_map, lens_against_truth, readout, token_chart, truth_chart
from jola_interp.plots.style import GREY, KINDS
from jola_interp.runs import edit_digest
from tests.runs_by_hand import make_run

RENDERERS = ("plotly", "matplotlib")


def made(vectors: int = 6, tokens: int = 4, layers: int = 3, heads: int = 4, task: bool = True) -> Readout:
    """A table by hand: heads first, the last third layers; r falls from .9 to −.3."""
    random = np.random.default_rng(0)
    units = tuple("layer" if i >= 2 * vectors / 3 else "head" for i in range(vectors))
    labels = tuple(f"L{i % layers}" + (f"H{i % heads}" if unit == "head" else "") for i, unit in enumerate(units))
    kinds = tuple("multiplicative" if i % 2 and unit == "head" else "additive" for i, unit in enumerate(units))
    top = -np.sort(-random.uniform(0.1, 2, (vectors, tokens))).astype(np.float32)
    words = ["·the", "<b>bold</b>", "$x$", "↵", "⇥", "·resta", "·a{b}%", "&amp;"]
    names = tuple(tuple(words[(i + j) % len(words)] for j in range(tokens)) for i in range(vectors))
    r = np.linspace(0.9, -0.3, vectors, dtype=np.float32) if task else np.full(vectors, np.nan, np.float32)
    null = random.uniform(0, 1, (vectors, 20)).astype(np.float32)
    grid = (layers, heads)

    def each() -> np.ndarray:
        return random.uniform(0.1, 1, vectors).astype(np.float32)

    return Readout(
        title="tiny on toy", split="test" if task else "", rows=6 if task else 0, positions=60 if task else 0,
        draws=20, labels=labels, kinds=kinds, units=units, layers=np.arange(vectors) % layers, norm=each(),
        stream=np.full(vectors, 10, np.float32), top_ids=np.zeros((vectors, tokens), int),
        bottom_ids=np.zeros((vectors, tokens), int), top_tokens=names, bottom_tokens=names, top_delta=top,
        bottom_delta=-top, top_true=0.8 * top if task else np.full_like(top, np.nan),
        bottom_true=-0.5 * top if task else np.full_like(top, np.nan), peak=top[:, 0] if tokens else each(),
        kurtosis=each(), null_peak=null, null_kurtosis=null.copy(), p=np.full(vectors, 1 / 21), p_kurtosis=each(),
        pearson=r,
        spearman=r.copy(),
        null_pearson=null - 0.5 if task else np.full_like(null, np.nan), mask=np.ones(grid, bool), group=2,
        contrast="logit of a − logit of b", attribution=random.normal(size=grid).astype(np.float32),
        attribution_se=np.full(grid, 0.1, np.float32), contrast_base=np.zeros(6), contrast_edited=np.ones(6),
        attribution_null=random.normal(size=(*grid, 20)).astype(np.float32),
        random_pearson=random.uniform(0.5, 1, (vectors, 3)).astype(np.float32) if task else None,
    )  # fmt: skip


def test_tokens_are_named_only_where_the_lens_is_trusted() -> None:
    table = made()
    shown = table.of("head").top(9)
    chart = token_chart(table, "head", 9, 3)
    assert len(chart.panels) == len(shown) == 4
    assert 0 < int(shown.trusted.sum()) < 4
    for place, panel in enumerate(chart.panels):
        lens, truth = panel.series
        ticks = tuple(text for _, text in panel.y_ticks)
        if shown.trusted[place]:
            assert ticks == lens.labels == (*shown.top_tokens[place][:3], *shown.bottom_tokens[place][:3][::-1])
            assert lens.colour == KINDS[shown.kinds[place]]
        else:
            assert set(ticks) == {" "} and lens.labels == truth.labels == () and lens.colour == GREY
            assert "the lens does not predict what this head does (r = " in panel.title
        assert list(lens.x) == [*shown.top_delta[place, :3], *shown.bottom_delta[place, :3][::-1]]
        assert list(truth.x) == [*shown.top_true[place, :3], *shown.bottom_true[place, :3][::-1]]


def test_the_null_stands_in_every_panel() -> None:
    table = made()
    for place, panel in enumerate(token_chart(table, "layer", 9, 3).panels):
        extent = float(np.quantile(table.of("layer").top(9).null_peak[place], 0.95))
        assert sorted(rule.at for rule in panel.rules) == pytest.approx([-extent, 0, extent])
    null, points = truth_chart(table).panels[0].series[:2]
    heads = table.of("head", "additive")
    assert heads.random_pearson is not None
    np.testing.assert_allclose(null.low, heads.random_pearson.min(1), rtol=1e-6)
    np.testing.assert_allclose(null.high, heads.random_pearson.max(1), rtol=1e-6)
    assert np.array_equal(points.y, heads.pearson) and points.labels == heads.labels
    shown = table.of("head").top(9)
    place = int(np.flatnonzero(shown.trusted)[0])
    title = token_chart(table, "head", 9, 3).panels[place].title
    assert f"(random {np.median(shown.random_pearson[place]):.2f})" in title


def test_a_table_without_the_null_of_r_is_drawn_without_it() -> None:
    earlier = replace(made(), random_pearson=None)
    chart = truth_chart(earlier)
    assert [series.name for series in chart.panels[0].series] == [
        "heads, additive",
        "heads, multiplicative",
        "layers, all offsets",
    ]
    assert any("no null" in note for note in chart.notes) and not any("Thin bars" in note for note in chart.notes)


def test_the_threshold_is_a_rule_and_every_kind_has_a_name() -> None:
    panel = truth_chart(made()).panels[0]
    assert {rule.at for rule in panel.rules} == {TRUSTED, 0.0}
    assert [series.name for series in panel.series if series.legend] == [
        "heads, additive",
        "heads, multiplicative",
        "layers, all offsets",
    ]


def test_without_a_task_there_is_no_true_change() -> None:
    table = made(task=False)
    assert all(
        [series.name for series in panel.series] == ["lens, not trusted"]
        for panel in token_chart(table, "head", 9, 3).panels
    )
    assert truth_chart(table).panels[0].empty


def test_what_writes_nothing_has_no_panel() -> None:
    table = made()
    silent = np.arange(6) < 3
    nothing = replace(table, norm=np.where(silent, 0, table.norm), peak=np.where(silent, 0, table.peak))
    assert [panel.title.split(" ")[0] for panel in token_chart(nothing, "head", 9, 3).panels] == [table.labels[3]]


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize(
    "table",
    [made(), made(1, 1, 1, 1), made(0), made(task=False), replace(made(), attribution=np.full((3, 4), np.nan))],
    ids=["whole", "smallest", "empty", "no task", "NaN"],
)
def test_every_figure_is_drawn(table: Readout, renderer: Any, tmp_path: Path) -> None:
    figures = [readout(table, unit, renderer=renderer) for unit in ("head", "layer")]  # type: ignore[arg-type]
    figures += [lens_against_truth(table, renderer=renderer), attribution_map(table, renderer=renderer)]
    suffix = "html" if renderer == "plotly" else "svg"
    for place, figure in enumerate(figures):
        assert plots.save(figure, tmp_path / f"{place}.{suffix}").stat().st_size > 1000


def test_a_run_gives_its_kept_table(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with pytest.raises(NotMeasuredError, match="readout"):
        readout(run)
    save_table(run, "readout", made(), {"edit": edit_digest(run.edit)})
    kept, given = readout(run), readout(made())
    assert len(kept.data) == len(given.data)
    assert all(np.array_equal(a.x, b.x) for a, b in zip(kept.data, given.data, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": "heads"}, "unit must be one of head, layer"),
        ({"most": 0}, "most must be an integer ≥ 1"),
        ({"tokens": 0}, "tokens must be an integer ≥ 1"),
        ({"renderer": "svg"}, "renderer must be"),
        ({"width": 3.25}, "width is the printed width"),
    ],
)
def test_bad_input_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        readout(made(), **options)


def test_a_table_without_a_contrast_has_no_map() -> None:
    with pytest.raises(ValueError, match="contrast: there is none"):
        attribution_map(replace(made(), attribution=None, attribution_null=None))
