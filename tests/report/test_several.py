"""The report of several Runs: one table of all, overlaps beside chance, each Run in short."""

from __future__ import annotations

from html import escape
from pathlib import Path

import pytest
import torch
from plotly.offline import get_plotlyjs
from typer.testing import CliRunner

from jola_interp import cli, plots
from jola_interp.evidence.overlap import overlap
from jola_interp.report import report, several
from jola_interp.runs import Run
from jola_interp.selection import DEFAULT_RULE
from tests.report.test_report import Strict
from tests.runs_by_hand import make_run


def written(runs: list[Run | Path], path: Path) -> str:
    return report(runs, path).read_text(encoding="utf-8").replace(get_plotlyjs(), "")


def other(run: Run) -> Run:
    """The same Run with the gates of each kind turned round."""
    for value in run.edit.log_alphas().values():
        value.copy_(torch.flip(value, (-1,)))
    return run


def test_it_is_one_complete_file_with_every_run_in_it(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name) for name in "abc"]
    text = written([run.path for run in runs], tmp_path / "new" / "all.html")
    parser = Strict()
    parser.feed(text)
    assert not parser.open and not parser.fetched and "http" not in text
    assert all(f"jola s42 ({name})" in text for name in "abc")
    assert text.count("11.0 [10.0, 12.0]") >= 3
    assert all(f'id="run{i}-heads"' in text for i in range(3)) and 'id="compared"' not in text


def test_the_overlap_of_each_pair_stands_beside_chance(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a"), other(make_run(tmp_path / "b"))
    text = written([a, b], tmp_path / "two.html")
    editable = a.edit.masks()["heads"].numpy()
    found = overlap(a.selection(DEFAULT_RULE).units, b.selection(DEFAULT_RULE).units, editable)
    assert found.jaccard < 1
    assert f"<td>{found.jaccard:.2f}</td><td>{found.chance:.2f}</td>" in text
    assert f"{found.shared} of {found.sizes[0]} and {found.sizes[1]}" in text


def test_two_runs_are_drawn_side_by_side(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a"), other(make_run(tmp_path / "b"))
    assert 'id="compared"' in written([a, b], tmp_path / "two.html")
    assert plots.compare_heads(a, b).data


def test_runs_of_other_models_share_no_heads(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", layers=2, names=("small", "toy"))
    text = written([a, b], tmp_path / "two.html")
    assert "their heads are not the same heads" in text and "Jaccard" not in text
    assert several.labels_of([a, b]) == ["tiny jola s42", "small jola s42"]


def test_runs_without_gates_or_scores_say_so(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a", gates="none"), make_run(tmp_path / "b", evaluated=False)
    text = written([a, b], tmp_path / "two.html")
    assert "no gates on heads" in text and "not evaluated" in text and "Jaccard" not in text


def test_names_from_outside_are_text(tmp_path: Path) -> None:
    names = ("<b>tiny</b>", "<img src=x>")
    text = written(
        [make_run(tmp_path / "<i>", names=names), make_run(tmp_path / "b", names=names)], tmp_path / "x.html"
    )
    assert "<img" not in text and "<b>tiny" not in text and "<i>)" not in text and escape("<img src=x>") in text


def test_the_number_of_pairs_is_bounded_and_what_is_left_out_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(several, "PAIRS", 2)
    text = written([make_run(tmp_path / name) for name in "abc"], tmp_path / "all.html")
    assert text.count("<td>1.00</td>") == 2 and "1 further pairs are left out" in text


def test_several_need_a_place_and_one_has_its_own(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name) for name in "ab"]
    with pytest.raises(ValueError, match="path: say where the report of 2 Runs"):
        report(runs)
    with pytest.raises(ValueError, match="runs is empty"):
        report([])
    assert report(runs[:1]) == report(runs[0].path) == tmp_path / "a" / "report.html"


def test_the_command_takes_several_runs(tmp_path: Path) -> None:
    folders = [str(make_run(tmp_path / name).path) for name in "ab"]
    found = CliRunner().invoke(cli.app, ["report", *folders, "--out", str(tmp_path / "two.html")])
    assert found.exit_code == 0 and (tmp_path / "two.html").exists()


def test_heads_that_a_run_could_not_edit_are_not_in_its_chance(tmp_path: Path) -> None:
    whole = make_run(tmp_path / "a")
    part = make_run(tmp_path / "b", only={"heads": [(layer, head) for layer in range(3) for head in range(2)]})
    masks = [run.edit.masks()["heads"].numpy() for run in (whole, part)]
    assert masks[0].sum() == 12 and masks[1].sum() == 6
    sets = [run.selection(DEFAULT_RULE).units for run in (whole, part)]
    found = overlap(sets[0], sets[1], masks[0], others=masks[1])
    assert found.chance != overlap(sets[0], sets[1], masks[0] | masks[1]).chance
    assert f"<td>{found.jaccard:.2f}</td><td>{found.chance:.2f}</td>" in written([whole, part], tmp_path / "two.html")


def test_cells_of_a_study_are_told_apart_by_the_cell(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name / "run") for name in ("first", "second")]
    assert several.labels_of(runs) == ["jola s42 (first)", "jola s42 (second)"]
