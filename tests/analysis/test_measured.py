"""What is measured once is kept with the Run, found again, and drawn without the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import jola_interp as ji
from jola_interp import plots
from jola_interp.analysis import PARTS, Shifts, Usage, head_facts, measured, shifts, tables
from jola_interp.analysis.tables import NotMeasuredError, about_table, load_table, save_table
from jola_interp.models import Model
from jola_interp.runs import ANALYSIS, Run
from jola_interp.tasks import Task

MakeModel = Callable[..., Model]


@pytest.fixture
def run(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> Run:
    """A short training whose gates and vectors are then set by hand, so that some act."""
    fields = {"max_steps": 3, "batch_size": 4, "backend": "hooks", "evaluate": False, "wrapper": "plain"}
    found = ji.fit(make_model(), toy_task, out=tmp_path / "run", **fields)
    edit = found.edit
    with torch.no_grad():
        for value in edit.site("heads").log_alpha.values():
            value.copy_(torch.linspace(-6, 6, value.numel()).view(value.shape))
        for vector in edit.site("heads").vectors.values():
            vector.normal_(std=0.2, generator=torch.Generator().manual_seed(5))
    from jola_interp.runs import write_run

    write_run(found.path, found.config, edit, found.gates)
    return Run.load(found.path)


def test_every_part_is_measured_kept_and_drawn(run: Run, make_model: MakeModel, toy_task: Task) -> None:
    found = ji.analyse(run, toy_task, make_model(), rows=6)
    assert tuple(found) == PARTS
    assert {file.stem for file in (run.path / ANALYSIS).glob("*.safetensors")} == set(PARTS)
    elsewhere = Run.load(run.path)  # no model: the tables are all there is
    for renderer in ("plotly", "matplotlib"):
        drawn = {entry.name for entry, _ in plots.gallery(elsewhere, renderer=renderer)}  # type: ignore[arg-type]
        # Options would be a contrast, an evidence card would have controls.
        assert drawn == {entry.name for entry in plots.GALLERY} - {"attribution_map", "controls"}
    assert "Token by token" in ji.report(elsewhere).read_text(encoding="utf-8")


def test_what_was_measured_is_not_measured_again(
    run: Run, make_model: MakeModel, toy_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    ji.analyse(run, toy_task, model, "usage", rows=4)
    calls = []
    monkeypatch.setattr(measured, "even_without_restarts", lambda *_, **__: calls.append(1))
    ji.analyse(run, toy_task, model, "usage", rows=4)
    assert not calls
    with pytest.raises(TypeError):  # what the counter returns is no table
        ji.analyse(run, toy_task, model, "usage", rows=5)
    assert calls and about_table(run, "usage")["rows"] == 4


def test_a_table_says_by_what_it_was_measured(run: Run, make_model: MakeModel, toy_task: Task) -> None:
    ji.analyse(run, toy_task, make_model(), ["shifts", "effects"], rows=2)
    found = about_table(run, "shifts")
    assert found["version"] == ji.__version__
    assert (found["inference"], found["scope"]) == (run.edit.inference, run.edit.scope)
    assert {found["split"], found["controls"], found["seed"], found["rows"]} == {"test", 5, 0, 2}
    assert about_table(run, "effects")["estimate"] is True  # not the function's own default


@pytest.mark.parametrize("changed", ["inference", "scope", "version", "an option's default"])
def test_what_was_measured_otherwise_is_measured_again(
    run: Run, make_model: MakeModel, toy_task: Task, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    model = make_model()
    ji.analyse(run, toy_task, model, "shifts", rows=2)
    if changed == "inference":
        run.edit.inference = "point" if run.edit.inference != "point" else "hard"
    elif changed == "scope":
        run.edit.scope, run.edit.everywhere = "not_first", False
    elif changed == "version":
        monkeypatch.setattr(tables, "__version__", "0.0.1")
    else:
        monkeypatch.setitem(shifts.__wrapped__.__kwdefaults__, "controls", 2)  # beneath torch.no_grad
    if changed in ("inference", "scope"):
        with pytest.raises(NotMeasuredError, match="another edit"):
            load_table(run, "shifts", Shifts)
    calls: list[int] = []
    even = measured.even_without_restarts
    monkeypatch.setattr(
        measured, "even_without_restarts", lambda *args, **options: calls.append(1) or even(*args, **options)
    )
    for _ in range(2):
        ji.analyse(run, toy_task, model, "shifts", rows=2)
    assert calls == [1]


def test_a_table_that_tells_less_is_read_and_measured_again_by_analyse(
    run: Run, make_model: MakeModel, toy_task: Task
) -> None:
    """As earlier versions left them."""
    model = make_model()
    table = ji.analyse(run, toy_task, model, "usage", rows=2)["usage"]
    told = about_table(run, "usage")
    early = {key: told[key] for key in ("edit", "task", "rows_of", "model", "dtype", "rows")}
    save_table(run, "usage", table, early)
    assert load_table(run, "usage", Usage).rows == 2
    ji.analyse(run, toy_task, model, "usage", rows=2)
    assert about_table(run, "usage") == told


def test_a_dear_table_stays_unless_told_otherwise(run: Run, make_model: MakeModel, toy_task: Task) -> None:
    model = make_model()
    for rows, overwrite, kept in ((4, False, 4), (2, False, 4), (5, False, 5), (3, True, 3)):
        ji.analyse(run, toy_task, model, "effects", rows=rows, overwrite=overwrite)
        assert about_table(run, "effects")["rows"] == kept


def test_other_rows_than_the_run_s_are_refused(run: Run, make_model: MakeModel, toy_task: Task) -> None:
    other = dataclasses.replace(toy_task, test=toy_task.test[1:])
    with pytest.raises(ValueError, match="the Run was trained on 'toy'"):
        ji.analyse(run, other, make_model(), "usage", rows=2)
    assert not (run.path / ANALYSIS).exists()


def test_under_all_what_does_not_apply_is_left_out(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    model = make_model()
    edit = ji.JoLA(model.head_shape, gates="none")
    fields = {"max_steps": 2, "batch_size": 4, "backend": "hooks", "evaluate": False, "wrapper": "plain"}
    run = ji.fit(model, toy_task, edit, out=tmp_path / "run", **fields)
    found = ji.analyse(run, toy_task, model, rows=4)
    assert "usage" not in found and {"shifts", "readout", "effects"} <= set(found)
    with pytest.raises(ValueError, match="no gates at heads"):
        ji.analyse(run, toy_task, model, "usage", rows=4)


def test_facts_of_a_head_come_from_the_tables(run: Run, make_model: MakeModel, toy_task: Task) -> None:
    before = {fact.name: fact.text for fact in head_facts(run, "L1H3")}
    assert all("jola-interp analyse RUN" in before[name] for name in ("writes", "moves", "readout", "loss without it"))
    ji.analyse(run, toy_task, make_model(), ["usage", "shifts", "effects"], rows=4)
    after = {fact.name: fact.text for fact in head_facts(run, "L1H3")}
    assert "residual stream" in after["writes"] and "local" in after["moves"] and "nats" in after["loss without it"]
    assert "jola-interp analyse RUN --part readout" in after["readout"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"parts": "shift"}, "parts must be 'all' or names out of shifts"),
        ({"rows": 0}, "rows must be an integer ≥ 1"),
        ({"rows": True}, "rows must be an integer ≥ 1"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_any_work(run: Run, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ji.analyse(run, **arguments)
    assert not (run.path / ANALYSIS).exists()
