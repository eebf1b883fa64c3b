"""What a study is asked: labels come from its cells, answers outlive its Runs, and transfer is measured once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from plotly.offline import get_plotlyjs
from typer.testing import CliRunner

import jola_interp as ji
from jola_interp import cli
from jola_interp.evidence.endpoint import Endpoint
from jola_interp.report import report, studies
from jola_interp.study import Cell, Study
from jola_interp.study.answers import HEADS, TRANSFER, keep_table
from jola_interp.study.place import Place
from jola_interp.study.transfer import RANDOM, _generator, groups
from jola_interp.study.worker import rows_of
from tests.report.test_report import Strict
from tests.study.conftest import FAST, write_task


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory, tiny: str, rows: str) -> Study:
    """Two tasks, two seeds, and one cell with shuffled labels."""
    other = write_task(tmp_path_factory.mktemp("more") / "beasts")
    also = [{"labels": "shuffled", "tasks": [rows], "seeds": [0]}]
    study = Study(
        tmp_path_factory.mktemp("studies") / "asked", models=tiny, tasks=[rows, other], seeds=[0, 1], also=also,
        evaluate=False, **FAST,
    )  # fmt: skip
    assert study.run().counts["finished"] == 5
    return study


def test_labels_come_from_the_cells(asked: Study) -> None:
    found = asked.selections()
    assert len(found) == 5 and len(found.tasks) == 2
    assert [origin.labels for origin in found.origins].count("shuffled") == 1
    assert {origin.seed for origin in found.origins} == {0, 1}
    assert {origin.n_train for origin in found.origins} == {8}
    for cell, run in asked.runs().items():
        place = [origin.path for origin in found.origins].index(str(run.path))
        assert np.array_equal(
            found.log_alpha[place, found.kinds.index("additive")], run.log_alphas()["additive"], equal_nan=True
        )
        assert found.origins[place].labels == cell.labels


def test_answers_outlive_the_runs(asked: Study, tmp_path: Path) -> None:
    whole = asked.ask()
    asked.transfer(rows=2)
    small = Study.load(asked.keep(tmp_path / "small"))
    assert not list(small.path.rglob("edit.safetensors"))
    again = small.ask()
    matrix, same = whole.overlaps.matrix("jaccard"), again.overlaps.matrix("jaccard")
    assert np.array_equal(matrix.value, same.value, equal_nan=True)
    assert again.stability.to_frame().equals(whole.stability.to_frame())
    assert whole.cosines is not None and again.cosines is not None
    assert np.array_equal(whole.cosines.pair_value, again.cosines.pair_value, equal_nan=True)
    assert small.ask("top=2:p_open").cosines is None  # nobody has asked that where the Runs are
    assert small.ask(task=list(small.selections().tasks)).cosines is not None  # the same cells in other words
    assert again.transfer is not None
    assert asked.frame().equals(small.frame())
    assert str(asked.path) not in (small.path / "answers" / "selections.safetensors").read_bytes().decode("latin-1")
    with pytest.raises(FileExistsError, match="holds no study"):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "notes.txt").write_text("mine")
        asked.keep(tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"


def test_a_study_that_nobody_asked_is_kept_with_its_answers(asked: Study, tmp_path: Path) -> None:
    copy = shutil.copytree(asked.path, tmp_path / "study", ignore=shutil.ignore_patterns("answers"))
    small = Study.load(Study.load(copy).keep(tmp_path / "small"))
    assert small.ask().stability.to_frame().equals(asked.ask().stability.to_frame())
    assert small.ask().cosines is not None


def test_keeping_replaces_nothing_but_an_earlier_copy(tmp_path: Path) -> None:
    one, other = (
        Study(tmp_path / name, models="m", tasks="t", seeds=seeds) for name, seeds in (("a", [0]), ("b", [1]))
    )
    for study in (one, other):
        study.save()
        run = Place.of(study.path, study.cells[0]).run
        run.mkdir(parents=True)
        (run / "config.json").write_text("{}")
    (tmp_path / ".copy").mkdir()
    for place in (one.path, one.path / ".." / "a", one.path.parent, one.path / "answers" / "copy", other.path):
        with pytest.raises(FileExistsError, match="path: .* choose another"):
            one.keep(place)
    copy = one.keep(tmp_path / "copy")
    assert one.keep(copy) == copy
    with pytest.raises(FileExistsError, match="holds another study"):
        other.keep(copy)
    (copy / "figure.png").write_text("mine")
    (copy / "cells" / "gone").mkdir()
    one.keep(copy)
    assert (copy / "figure.png").read_text() == "mine" and not (copy / "cells" / "gone").exists()
    assert len(list(tmp_path.glob("*/cells/*/run/config.json"))) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "copy", ".copy"}


def test_transfer_of_cells_that_were_not_asked_about_is_left_out(asked: Study) -> None:
    frame = asked.transfer(rows=2)
    expected = asked.ask()
    assert expected.transfer is not None and expected.carried is not None and expected.cosines is not None
    assert np.array_equal(expected.carried.gain, expected.transfer.gain, equal_nan=True)
    assert expected.carried.overlap is not None and expected.carried.overlap_name == "cosine of offsets"
    first, second = (expected.cosines.groups.index(name) for name in expected.carried.tasks)
    assert expected.carried.overlap[0, 1] == expected.cosines.value[first, second]
    others = frame.assign(source_cell="other", target_cell="other", score=1e6)
    for name in (TRANSFER, HEADS):
        keep_table(asked, name, pd.concat([frame, others, others.assign(source=RANDOM, source_cell="")]))
    found = asked.ask()
    assert found.transfer is not None and found.heads is not None
    assert np.array_equal(found.transfer.gain, expected.transfer.gain, equal_nan=True)
    assert np.array_equal(found.transfer.rows, expected.transfer.rows)
    assert not found.random_heads
    keep_table(asked, TRANSFER, others)
    assert asked.ask().transfer is None
    (asked.path / "answers" / HEADS).unlink()


def test_random_heads_are_drawn_anew_for_every_target_seed_and_draw() -> None:
    cells = [Cell("m", task, seed=seed, draw=draw) for task in ("t", "u") for seed in (0, 1) for draw in (0, 1)]
    drawn = {tuple(_generator(cell, number).random(4)) for cell in cells for number in (0, 1)}
    assert len(drawn) == 2 * len(cells)
    assert tuple(_generator(cells[0], 0).random(4)) in drawn


def test_curves_and_tables_average_over_seeds_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    axes: dict[str, Any] = {"tasks": ["t", "u"], "seeds": [0, 1], "penalty": [0.1, 0.4], "n_train": [8, 16]}
    study = Study(tmp_path, models=["m", "n"], labels=["real", "shuffled"], methods=["jola", "lofit"], **axes)
    study.save()
    for cell in study.cells:
        place = Place.of(study.path, cell)
        place.path.mkdir(parents=True)
        nll = cell.n_train + 100 * (cell.labels == "shuffled") + 10 * cell.value("penalty") + 1000 * (cell.model == "n")
        measured = {"nll": nll + 3 * (cell.method == "lofit") + 30 * (cell.task == "u"), "base_nll": 2.0}
        place.summary.write_text(json.dumps({"train": dict(cell.train), "measured": measured, "seconds": 1}))
    drawn: list[Any] = []
    monkeypatch.setattr(studies.plots, "study_curves", drawn.append)
    rows = studies.rows_of(study, study.frame(), {"model": "m"})
    assert [name for name, *_ in studies._curves(rows, {"n_train": 16, "penalty": 0.4})] == [
        "nll-n_train",
        "nll-penalty",
    ]
    assert all(sum(line.seeds) == 2 * 2 for one in drawn for line in one.lines)  # real labels, two seeds at two places
    drawn = drawn[1:]
    assert [line.name for line in drawn[0].lines] == ["t · jola", "t · lofit", "u · jola", "u · lofit"]
    for line, more in zip(drawn[0].lines, (0, 3, 30, 33), strict=True):
        assert line.points_y == pytest.approx([17 + more, 20 + more] * 2)
    text = studies._cells(study.frame())
    assert text.count("<tr>") == 1 + len(study) / 2 and "<th>Penalty</th>" in text


def test_a_carried_edit_scores_what_the_edit_scores_there(asked: Study) -> None:
    frame = asked.transfer(rows=2)
    assert len(frame) == 2 * 2 * 2  # seeds, sources, targets
    own = frame[frame["source"] == frame["target"]]
    assert (own["score"] == own["own"]).all()
    cells = {(cell.task, cell.seed): run for cell, run in asked.runs(labels="real").items()}
    row = frame[(frame["source"] != frame["target"]) & (frame["seed"] == 1)].iloc[0]
    target = next(cell for cell in asked.runs(labels="real") if (cell.task, cell.seed) == (row["target"], 1))
    model = ji.load_model(target.model, dtype="float32")
    settings = ji.TrainConfig(**{**cells[row["target"], 1].config["train"], "adam_betas": (0.9, 0.999)})
    task = rows_of(target)
    endpoint = Endpoint(model, task, task.test[:2], settings, "hooks")
    expected = endpoint.losses(cells[row["source"], 1].edit.restricted()).nll.mean()
    assert row["score"] == pytest.approx(float(expected), rel=1e-6)
    assert row["base"] == pytest.approx(float(endpoint.losses().nll.mean()), rel=1e-6)


def test_what_is_known_of_transfer_is_not_computed_again(asked: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    first = asked.transfer(rows=2)

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(Endpoint, "losses", refused)
    assert asked.transfer(rows=2).equals(first)
    with pytest.raises(AssertionError, match="computed again"):
        asked.transfer(rows=3)


def test_heads_are_trained_anew_beside_random_ones(asked: Study, rows: str) -> None:
    frame = asked.retrain([rows], steps=1, random=2)
    assert set(frame["target"]) == {rows} and (frame["source"] == RANDOM).sum() == 2 * 2
    own = frame[frame["source"] == rows]
    assert (own["score"] == own["own"]).all()
    found = asked.ask()
    assert found.heads is not None and RANDOM not in found.heads.tasks
    random = frame[frame["source"] == RANDOM]
    expected = (random["score"].mean() - random["base"].mean()) / (random["own"].mean() - random["base"].mean())
    assert found.random_heads == {rows: pytest.approx(expected)}


def test_cells_that_differ_in_more_than_their_task_are_no_group(asked: Study) -> None:
    assert [len(group) for group in groups(asked)] == [2, 2]
    with pytest.raises(ValueError, match="differ in nothing but their task"):
        list(groups(asked, task=asked.cells[0].task))
    with pytest.raises(ValueError, match="targets: nowhere is no task"):
        asked.retrain(["nowhere"])
    with pytest.raises(ValueError, match="rows must be 2 or more, got 1"):
        asked.transfer(rows=1)


def test_the_report_of_a_study_is_one_complete_file(asked: Study, tmp_path: Path) -> None:
    asked.transfer(rows=2)
    text = report(asked, tmp_path / "study.html").read_text(encoding="utf-8").replace(get_plotlyjs(), "")
    parser = Strict()
    parser.feed(text)
    assert not parser.open and not parser.fetched and "http" not in text
    for name in ("overlaps", "overlap-rules", "stability", "frequency", "shared", "transfer"):
        assert f'id="{name}"' in text, name
    assert "Nogueira" in text and "5 finished" in text


def test_the_commands_of_transfer_report_and_keep(asked: Study, tmp_path: Path) -> None:
    def call(*arguments: str) -> str:
        found = CliRunner().invoke(cli.app, ["study", *arguments])
        assert found.exit_code == 0, found.output
        return found.output

    assert call("transfer", str(asked.path), "--rows", "2").startswith("source,target,")
    assert Path(call("report", str(asked.path)).strip()).exists()
    assert (Path(call("keep", str(asked.path), str(tmp_path / "kept")).strip()) / "study.yaml").exists()


def test_an_unfinished_study_says_so(tmp_path: Path, tiny: str, rows: str) -> None:
    study = Study(tmp_path / "none", models=tiny, tasks=[rows], seeds=[0], **FAST)
    study.save()
    with pytest.raises(ValueError, match="no Runs of finished cells"):
        study.ask()
