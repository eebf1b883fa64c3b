"""Methods beside each other: paired on the same rows, then over pairs, and what could not be compared is said."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import jola_interp as ji
from jola_interp import _files
from jola_interp.analysis.methods_table import MethodsTable, compare_methods, head_curves
from jola_interp.callbacks import TrainingState
from jola_interp.evaluation.compare import compare
from jola_interp.models import Model
from jola_interp.runs import Run
from tests.conftest import build_hf
from tests.runs_by_hand import make_run

PAIRS = ((42, 42), (43, 43), (44, 44))
ROWS = 30


def losses(pair: tuple[int, int], lower: float, noise: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """NLL of each row under the base, which every method shares, and under a method that is better by about so much."""
    base = 2 + np.random.default_rng(pair[1]).random(ROWS)
    return base, base - lower - 0.2 * np.random.default_rng([noise, *pair]).random(ROWS)


def predictions(pair: tuple[int, int], base: np.ndarray, edited: np.ndarray, right: int | None = None) -> list[Any]:
    """Rows of a choice, of which the edited model gets the first ``right`` right and the base every second."""
    rows = []
    for i in range(len(base)):
        row = {"id": f"{pair[1]}-{i}", "instruction": f"row {i} of draw {pair[1]}", "answer": "A"}
        row |= {"base_nll": float(base[i]), "edited_nll": float(edited[i])}
        if right is not None:
            row |= {"base_chosen": "AB"[i % 2], "edited_chosen": "A" if i < right else "B"}
        rows.append(row)
    return rows


def finished(
    folder: Path,
    name: str | None,
    pair: tuple[int, int],
    rows: list[Any],
    metric: str = "nll",
    timing: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    **made: Any,
) -> Run:
    run = make_run(folder, train={"seed": pair[0]}, **made)
    content = {**run.config, **(config or {})}
    content["task"] = {**content["task"], "seed": pair[1]}
    content["method"] = None if name is None else {"name": name, "options": options or {}}
    _files.write_json(folder / "config.json", content)
    _files.write_jsonl(folder / "predictions.jsonl", rows)
    _files.write_json(folder / "scores.json", {**run.scores, "metric": metric})
    if timing is not None:
        _files.write_json(folder / "timing.json", timing)
    return Run.load(folder)


def runs_of(tmp_path: Path, name: str, lower: float, pairs: Any = PAIRS, noise: int = 0, **options: Any) -> list[Run]:
    folder = tmp_path / f"{name}-{'-'.join(map(str, (options.get('options') or {}).values()))}"
    return [
        finished(folder / str(pair[0]), name, pair, predictions(pair, *losses(pair, lower, noise)), **options)
        for pair in pairs
    ]


def test_gain_and_difference_are_means_over_pairs_of_means_over_rows(tmp_path: Path) -> None:
    runs = [*runs_of(tmp_path, "jola", 0.5), *runs_of(tmp_path, "lora", 0.3, noise=1)]
    found = compare_methods(runs).standing("lora")
    gains, differences = [], []
    for pair in PAIRS:
        base, lora = losses(pair, 0.3, 1)
        _, jola = losses(pair, 0.5)
        gains.append((base - lora).mean())
        differences.append((jola - lora).mean())
    for contrast, values in ((found.gain, gains), (found.difference, differences)):
        assert contrast is not None and (contrast.over, contrast.n) == ("pairs", 3)
        assert contrast.value == pytest.approx(np.mean(values))
        low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
        assert (contrast.low, contrast.high) == pytest.approx((low, high))
        assert list(contrast.by_pair) == list(PAIRS)
        assert list(contrast.by_pair.values()) == pytest.approx(values)
        assert contrast.mde > 0
    assert found.gain.value > 0
    assert found.difference is not None and found.difference.value < 0
    assert found.base - found.value == pytest.approx(found.gain.value)


def test_one_pair_has_an_interval_over_its_rows_and_says_so(tmp_path: Path) -> None:
    runs = [*runs_of(tmp_path, "jola", 0.4, PAIRS[:1]), *runs_of(tmp_path, "lora", 0.4, PAIRS[:1], noise=1)]
    table = compare_methods(runs)
    found = table.standing("lora").difference
    first, second = (np.array([row["edited_nll"] for row in run.predictions]) for run in runs)
    assert found is not None and (found.over, found.n) == ("rows", ROWS)
    low, high = stats.t.interval(0.95, ROWS - 1, (first - second).mean(), stats.sem(first - second))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert any("rows of one pair" in note for note in table.notes)
    assert set(table.to_frame()["difference_over"]) == {"", f"{ROWS} rows"}


def test_the_difference_of_one_pair_is_that_of_compare(tmp_path: Path) -> None:
    rights = {"jola": 20, "lora": 11}
    runs = [
        finished(
            tmp_path / name, name, PAIRS[0], predictions(PAIRS[0], *losses(PAIRS[0], 0.3), right), "likelihood_accuracy"
        )
        for name, right in rights.items()
    ]
    table = compare_methods(runs)
    assert table.scores == ("nll", "likelihood_accuracy")
    known = compare(*runs)
    for score, sign in (("nll", -1), ("likelihood_accuracy", 1)):
        found = table.standing("lora", score)
        assert found.difference is not None
        assert found.difference.value == pytest.approx(sign * known[score].difference.value)
        assert found.value == pytest.approx(known[score].second.value)


def test_better_is_positive_in_every_score(tmp_path: Path) -> None:
    runs = []
    for name, lower, right in (("jola", 0.2, 10), ("lora", 0.6, 25)):
        for pair in PAIRS[:2]:
            rows = predictions(pair, *losses(pair, lower), right + pair[0] % 2)
            runs.append(finished(tmp_path / name / str(pair[0]), name, pair, rows, "likelihood_accuracy"))
    table = compare_methods(runs)
    for score in table.scores:
        found = table.standing("lora", score).difference
        assert found is not None and found.value > 0


def test_a_corpus_score_of_one_pair_has_a_bootstrap_interval(tmp_path: Path) -> None:
    runs = []
    for name, text in (("jola", "the cat sat on the mat today"), ("lora", "a cat sat on a mat")):
        rows = predictions(PAIRS[0], *losses(PAIRS[0], 0.2))
        for i, row in enumerate(rows):
            row |= {"answer": "the cat sat on the mat", "base": "no cat at all", "edited": text if i % 3 else "the cat"}
        runs.append(finished(tmp_path / name, name, PAIRS[0], rows, "bleu"))
    found = compare_methods(runs).standing("lora", "bleu").difference
    assert found is not None and found.over == "rows" and math.isnan(found.mde)
    assert found.value == pytest.approx(compare(*runs)["bleu"].difference.value)


def test_pairs_that_agree_by_chance_make_no_interval_of_width_0(tmp_path: Path) -> None:
    runs = []
    for name, right in (("jola", 20), ("lora", 21)):  # one row more in both draws
        for pair in PAIRS[:2]:
            rows = predictions(pair, *losses(pair, 0.2, right), right)
            runs.append(finished(tmp_path / name / str(pair[0]), name, pair, rows, "likelihood_accuracy"))
    table = compare_methods(runs)
    found = table.standing("lora", "likelihood_accuracy").difference
    assert found is not None and found.value == pytest.approx(100 / ROWS)
    assert all(math.isnan(getattr(found, name)) for name in ("low", "high", "p", "mde"))
    assert "nan" not in repr(table) and any("No interval where all pairs" in note for note in table.notes)


def test_the_reference_has_a_gain_and_no_difference(tmp_path: Path) -> None:
    table = compare_methods([*runs_of(tmp_path, "jola", 0.5), *runs_of(tmp_path, "lora", 0.3)])
    assert table.standing("jola").difference is None and table.standing("jola").gain.value > 0
    frame = table.to_frame().set_index("method")
    assert math.isnan(frame.loc["jola", "difference"]) and frame.loc["jola", "difference_over"] == ""


def test_a_method_with_a_prompt_of_its_own_is_held_against_the_base_of_the_reference(tmp_path: Path) -> None:
    jola = runs_of(tmp_path, "jola", 0.5, PAIRS[:2])
    few = []
    for pair in PAIRS[:2]:
        _, edited = losses(pair, 0.3)
        rows = predictions(pair, edited, edited)  # its base has the examples too
        config = {"train": {**jola[0].config["train"], "seed": pair[0], "wrapper": "x {instruction}"}}
        few.append(finished(tmp_path / "few" / str(pair[0]), "few-shot", pair, rows, config=config))
    table = compare_methods([*jola, *few])
    assert table.standing("few-shot").gain.value == pytest.approx(
        np.mean([(base - edited).mean() for base, edited in (losses(pair, 0.3) for pair in PAIRS[:2])])
    )
    assert "few-shot: scored with a prompt of its own." in table.notes
    alone = compare_methods(few)
    assert alone.standing("few-shot").gain.value == 0
    assert any("No Run of jola" in note for note in alone.notes)


def test_pairs_without_the_reference_count_for_the_gain_alone(tmp_path: Path) -> None:
    table = compare_methods([*runs_of(tmp_path, "jola", 0.5, PAIRS[:2]), *runs_of(tmp_path, "lora", 0.3, PAIRS[1:])])
    found = table.standing("lora")
    assert list(found.gain.by_pair) == list(PAIRS[1:])
    assert found.difference is not None and list(found.difference.by_pair) == [PAIRS[1]]
    assert found.difference.over == "rows"
    assert "lora: 1 of 2 pairs missing." in table.notes
    assert any(note.startswith("lora: no jola in 1 of its pairs") for note in table.notes)


def test_runs_of_one_name_are_told_apart_by_the_options_that_differ(tmp_path: Path) -> None:
    runs = [
        *runs_of(tmp_path, "jola", 0.5),
        *(run for k in (2, 4) for run in runs_of(tmp_path, "lofit", 0.3, options={"k": k, "l1": 0.1})),
    ]
    assert list(compare_methods(runs).methods) == ["jola", "lofit k=2", "lofit k=4"]


def test_a_run_without_a_method_goes_by_the_type_of_its_edit(tmp_path: Path) -> None:
    rows = predictions(PAIRS[0], *losses(PAIRS[0], 0.3))
    assert list(compare_methods([finished(tmp_path, None, PAIRS[0], rows)]).methods) == ["jola"]


def test_seconds_are_compared_on_one_host_and_per_step_of_the_last_session(tmp_path: Path) -> None:
    host = {"host": "h", "platform": "p", "torch": "2", "threads": 2}
    jola = runs_of(tmp_path, "jola", 0.5, PAIRS[:1], timing={**host, "train_seconds": 12.0, "steps": 12})
    resumed = runs_of(tmp_path, "lora", 0.5, PAIRS[:1], timing={**host, "train_seconds": 6.0, "steps": 3})
    older = runs_of(tmp_path, "bitfit", 0.5, PAIRS[:1], timing={**host, "train_seconds": 6.0})
    far = runs_of(tmp_path, "red", 0.5, PAIRS[:1], timing={**host, "host": "g", "train_seconds": 6.0, "steps": 12})
    bare = runs_of(tmp_path, "reft", 0.5, PAIRS[:1])
    frame = compare_methods([*jola, *resumed, *older, *far, *bare]).to_frame().set_index("method")
    assert frame.loc["jola", "seconds_ratio"] == 1
    assert frame.loc["lora", "seconds_ratio"] == 2
    assert frame.loc["bitfit", "seconds_ratio"] == 0.5  # 12 steps, as its config says
    assert frame.loc[["red", "reft"], "seconds_ratio"].isna().all()


class Stop(ji.Callback):
    """Ctrl-C behind the third step."""

    def on_step(self, state: TrainingState) -> None:
        if state.step == 3:
            raise KeyboardInterrupt


def test_a_training_says_how_many_steps_its_last_session_took(
    make_model: Callable[..., Model], toy_task: ji.Task, tmp_path: Path
) -> None:
    model = make_model()
    fields: dict[str, Any] = {"max_steps": 5, "batch_size": 4, "evaluate": False, "backend": "hooks"}
    first = ji.fit(model, toy_task, "attention", out=tmp_path, callbacks=[Stop()], **fields)
    assert (first.status, first.timing["steps"]) == ("interrupted", 3)
    second = ji.fit(model, toy_task, "attention", out=tmp_path, resume=True, **fields)
    assert (second.timing["steps"], second.config["progress"]["steps"]) == (2, 5)


def test_parameters_heads_and_steps_are_counted(tmp_path: Path) -> None:
    jola = runs_of(tmp_path, "jola", 0.5, PAIRS[:1])
    small = runs_of(tmp_path, "random-heads", 0.1, PAIRS[:1], gates="none", only={"heads": ["L0H1", "L2H3"]})
    make_run(small[0].path / "stages" / "scales", steps=9)
    table = compare_methods([*jola, *small])
    facts = table.methods["random-heads"]
    assert facts.parameters == small[0].edit.n_parameters() == 2 * 2 * 4
    assert facts.heads == 2
    assert facts.steps == table.methods["jola"].steps + 9
    assert math.isnan(table.to_frame()["share"].iloc[0])


def test_the_share_is_of_the_models_own_parameters(tmp_path: Path) -> None:
    hf = build_hf("llama")
    table = compare_methods(runs_of(tmp_path, "jola", 0.5, PAIRS[:1]), model=hf)
    total = sum(parameter.numel() for parameter in hf.parameters())
    assert table.to_frame()["share"].iloc[0] == pytest.approx(table.methods["jola"].parameters / total)


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    jola = runs_of(tmp_path, "jola", 0.5, PAIRS[:1])
    with pytest.raises(ValueError, match="runs is empty"):
        compare_methods([])
    with pytest.raises(ValueError, match="two Runs of 'jola', seed 42, data 42"):
        compare_methods([jola[0], jola[0].path])
    rows = predictions(PAIRS[0], *losses(PAIRS[0], 0.3))
    other = finished(tmp_path / "model", "lora", PAIRS[0], rows, names=("small", "toy"))
    with pytest.raises(ValueError, match="several models"):
        compare_methods([*jola, other])
    other = finished(tmp_path / "task", "lora", PAIRS[0], rows, names=("tiny", "other"))
    with pytest.raises(ValueError, match="several tasks"):
        compare_methods([*jola, other])
    cut = finished(tmp_path / "cut", "lora", PAIRS[0], rows, config={"status": "interrupted"})
    with pytest.raises(ValueError, match="is interrupted"):
        compare_methods([*jola, cut])
    with pytest.raises(ValueError, match="has no predictions"):
        compare_methods([make_run(tmp_path / "bare", evaluated=False)])
    fewer = finished(tmp_path / "fewer", "lora", PAIRS[0], rows[:-1])
    with pytest.raises(ValueError, match="not the same rows"):
        compare_methods([*jola, fewer])


def test_a_table_is_shown_and_told(tmp_path: Path) -> None:
    table = compare_methods([*runs_of(tmp_path, "jola", 0.5), *runs_of(tmp_path, "lora", 0.3)])
    assert isinstance(table, MethodsTable)
    assert "tiny on toy" in repr(table) and "lora" in repr(table)
    html = table._repr_html_()
    assert html.startswith("<div>") and "lora" in html
    assert json.loads(table.to_frame().to_json(orient="records"))[0]["pairs"] == 3
    with pytest.raises(ValueError, match="no 'nll' of 'reft': methods are jola, lora"):
        table.standing("reft")


def head_runs(tmp_path: Path) -> list[Run]:
    """Two ways to choose 1, 2 and 4 heads, one of them with two draws each; and JoLA."""
    units = ["L0H0", "L0H1", "L1H0", "L2H2"]
    runs = runs_of(tmp_path, "jola", 0.5, PAIRS[:2])
    for k in (4, 1, 2):
        made = {"gates": "none", "only": {"heads": units[:k]}}
        runs += runs_of(tmp_path, "norm-heads", 0.1 * k, PAIRS[:2], options={"k": k}, **made)
        for draw in (0, 1):
            runs += runs_of(
                tmp_path, "random-heads", 0.05 * k, PAIRS[:2], noise=draw, options={"k": k, "draw": draw}, **made
            )
    return runs


def test_curves_pool_pairs_and_draws_and_rise_in_heads(tmp_path: Path) -> None:
    table = compare_methods(head_runs(tmp_path))
    curves = {curve.way: curve for curve in head_curves(table)}
    assert list(curves) == ["jola", "norm-heads", "random-heads"]
    assert list(curves["norm-heads"].heads) == list(curves["random-heads"].heads) == [1, 2, 4]
    assert curves["norm-heads"].runs == (2, 2, 2) and curves["random-heads"].runs == (4, 4, 4)
    for curve in curves.values():
        assert (curve.low <= curve.gain).all() and (curve.gain <= curve.high).all()
    gains = [
        value for draw in (0, 1) for value in table.standing(f"random-heads k=2 draw={draw}").gain.by_pair.values()
    ]
    assert curves["random-heads"].gain[1] == pytest.approx(np.mean(gains))
    assert curves["random-heads"].low[1] == min(gains) and curves["random-heads"].high[1] == max(gains)
    with pytest.raises(ValueError, match="score must be one of nll; got 'bleu'"):
        head_curves(table, "bleu")


def test_draws_like_a_choice_are_one_method_though_their_counts_differ_by_pair(tmp_path: Path) -> None:
    """What is given is what another Run of the pair chose: no two pairs have the same counts per layer."""
    runs = runs_of(tmp_path, "jola", 0.5, PAIRS[:2])
    made = {"gates": "none", "only": {"heads": ["L0H0"]}}
    for pair, like in zip(PAIRS[:2], ([1, 0, 0], [0, 1, 0]), strict=True):
        runs += runs_of(tmp_path, "random-heads", 0.1, [pair], options={"k": 1, "like": like}, **made)
    runs += runs_of(tmp_path, "random-heads", 0.2, PAIRS[:2], options={"k": 1, "like": None}, **made)
    table = compare_methods(runs)
    assert list(table.methods) == ["jola", "random-heads like=layers", "random-heads like=None"]
    assert len(table.standing("random-heads like=layers").gain.by_pair) == 2
    assert [curve.way for curve in head_curves(table)] == list(table.methods)
