"""What an offset writes: the lens is the first-order change of the logits, linear, and stands beside the true one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jola_interp.analysis.readout import TRUSTED, Readout, readout
from jola_interp.analysis.rows import output_weights
from jola_interp.analysis.tables import about, load_table, read_table, save_table, write_table
from jola_interp.analysis.token_texts import token_name
from jola_interp.backends.base import attached_edits
from jola_interp.models import Model
from jola_interp.tasks import Task
from tests.conftest import ARCHITECTURES
from tests.readout_by_hand import VOCABULARY, idle, one_token, run_of, small, whole

MakeModel = Callable[..., Model]


# -- the lens ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("booted", [False, True])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "granite", "cohere"])
def test_lens_is_the_true_change_where_later_layers_are_idle(
    build: MakeModel, toy_task: Task, tmp_path: Path, architecture: str, booted: bool
) -> None:
    model = idle(build(architecture))
    run = run_of(model, tmp_path, {"additive": small(model, (0, 1), (0, 3))})
    if booted:
        assert model.bridge is not None
    table = readout(run, toy_task, tokens=VOCABULARY, draws=3)
    assert table.labels == (*sorted(table.labels[:2], key=lambda x: -table.norm[table.labels.index(x)]), "L0", "L1")
    for place in range(3):
        lens, true = whole(table, place, "delta"), whole(table, place, "true")
        assert np.abs(true).max() > 0
        assert np.abs(lens - true).max() <= 1e-2 * np.abs(true).max()
        assert min(table.pearson[place], table.spearman[place]) > 0.99
    assert (table.pearson >= TRUSTED).tolist() == [True, True, True, False]
    assert not attached_edits(model)


def test_a_softcap_is_part_of_the_lens(build: MakeModel, tmp_path: Path) -> None:
    model = idle(build("gemma2"))
    run = run_of(model, tmp_path, {"additive": small(model, (0, 1))})
    table = readout(run, one_token(run), tokens=VOCABULARY, draws=1)
    lens, true = whole(table, 0, "delta"), whole(table, 0, "true")
    assert np.abs(lens - true).max() <= 1e-2 * np.abs(true).max()
    model.hf.config.final_logit_softcapping = 1e6  # nearly the same model without it
    uncapped = whole(readout(run, one_token(run), tokens=VOCABULARY, draws=1), 0, "delta")
    assert np.abs(uncapped - true).max() > 0.1 * np.abs(true).max()  # else the cap has not been seen


def test_planted_direction_of_a_token_names_it_first(build: MakeModel, tmp_path: Path) -> None:
    model = build(num_attention_heads=1, num_key_value_heads=1, num_hidden_layers=1)
    unembedding = model.hf.lm_head.weight
    token = int(unembedding.norm(dim=-1).argmax())  # by Cauchy and Schwarz no other can be raised more
    offset = torch.linalg.pinv(output_weights(model, 0)[0].T) @ unembedding[token].detach()
    table = readout(run_of(model, tmp_path, {"additive": {(0, 0): offset}}), draws=19)
    assert table.top_ids[:, 0].tolist() == [token, token]  # the head, and the layer that it is
    assert table.top_tokens[0][0] == token_name(token, model.tokenizer)
    assert table.p[0] == table.p_kurtosis[0] == 1 / 20


def test_without_a_task_the_lens_is_weight_times_centred(build: MakeModel, tmp_path: Path) -> None:
    model = build("gpt2")
    run = run_of(model, tmp_path, {"additive": small(model, (1, 2), size=1.0)})
    found = whole(readout(run, tokens=VOCABULARY, draws=1), 0, "delta")
    written = run.edit.site("heads").gated("additive", run.edit.site("heads").gate_values("expected", {}))[1, 2]
    v = written.detach() @ output_weights(model, 1)[2]
    expected = model.hf.lm_head.weight @ (model.hf.transformer.ln_f.weight * (v - v.mean()))
    expected = (expected - expected.mean()).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_lens_of_a_layer_is_the_sum_of_its_heads(build: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    model = build("olmo2")  # through a norm behind W_O as well
    run = run_of(model, tmp_path, {"additive": small(model, (1, 0), (1, 1), (1, 3), size=0.3)})
    table = readout(run, toy_task, tokens=VOCABULARY, draws=1)
    heads = sum(whole(table, place, "delta") for place in range(3))
    layer = whole(table, table.labels.index("L1"), "delta")
    np.testing.assert_allclose(heads, layer, atol=1e-4 * np.abs(layer).max())


def test_an_offset_of_zero_writes_nothing(build: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    model = build()
    table = readout(run_of(model, tmp_path, {}), toy_task)
    assert table.labels == ("L0", "L1")
    assert not table.norm.any() and not table.top_delta.any() and not table.top_true.any() and not table.peak.any()
    assert (table.p == 1).all() and not table.trusted.any()
    assert table.sentences == ("writes nothing",) * 2


# -- beside the null ---------------------------------------------------------------------------------------------------


def test_tokens_are_listed_only_where_the_lens_is_right(build: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    model = build()
    table = readout(run_of(model, tmp_path, {"additive": small(model, (0, 0), (1, 2))}), toy_task)
    r = np.array([TRUSTED, TRUSTED - 0.01, math.nan, -0.9], dtype=np.float32)
    beyond = np.full(4, 1 / 21)
    frame = replace(table, pearson=r, p=beyond).to_frame()
    listed = ", ".join(f"{t} {d:+.2f}" for t, d in zip(table.top_tokens[0], table.top_delta[0], strict=True))
    assert frame["top"][0] == listed
    assert frame["top"][1] == frame["bottom"][1] == "the lens does not predict what this head does (r = 0.49)"
    assert frame["top"][2] == "not held against the model"
    assert frame["top"][3] == "the lens does not predict what this layer does (r = -0.90)"
    within = replace(table, pearson=np.ones_like(r), p=np.array([2 / 21, *beyond[1:]]))
    assert within.trusted.tolist() == [False, True, True, True]
    assert within.to_frame()["top"][0] == "random vectors write as much (p = 0.10)"
    alone = readout(run_of(model, tmp_path / "again", {"additive": small(model, (0, 0))}))
    assert set(alone.to_frame()["top"]) == {"not held against the model: that needs a task", "writes nothing"}


def test_random_offsets_are_no_exception_under_the_null(build: MakeModel, tmp_path: Path) -> None:
    model = build(num_attention_heads=8, num_key_value_heads=8)
    units = [(layer, head) for layer in range(2) for head in range(8)]
    table = readout(run_of(model, tmp_path, {"additive": small(model, *units)}), heads=16, draws=39)
    p = table.of("head").p
    assert len(p) == 16 and (p >= 1 / 40).all() and 0.2 < p.mean() < 0.8


def test_null_has_the_norm_of_the_offset_and_follows_the_seed(build: MakeModel, tmp_path: Path) -> None:
    model = build()
    vectors = small(model, (0, 0))
    run = run_of(model, tmp_path / "a", {"additive": vectors})
    ten = run_of(model, tmp_path / "b", {"additive": {unit: 10 * v for unit, v in vectors.items()}})
    first, same, other, larger = readout(run), readout(run), readout(run, seed=1), readout(ten)
    assert np.array_equal(first.null_peak, same.null_peak)
    assert not np.array_equal(first.null_peak, other.null_peak)
    np.testing.assert_allclose(larger.null_peak[0], 10 * first.null_peak[0], rtol=1e-4)


def test_r_of_random_vectors_is_of_the_lens_and_the_change_that_is_their_own(
    build: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    model = idle(build())
    run = run_of(model, tmp_path, {"additive": small(model, (0, 1), (0, 3))})
    table = readout(run, toy_task, held=4)
    assert table.random_pearson is not None and table.random_pearson.shape == (len(table), 4)
    assert (table.random_pearson[:3] > 0.99).all()  # the lens is right for any vector here
    assert np.abs(table.null_pearson[:3, :4]).max() < 0.9  # which held against the offset's own change is not seen
    assert (table.p_pearson[:3] >= 1 / 5).all() and np.isnan(table.p_pearson[3])  # layer 1 writes nothing
    assert "4 such random vectors" in table.notes()[-1] and "of 3 vectors; 0.6 would be by chance" in table.notes()[-1]


def test_r_of_random_offsets_is_no_exception_under_its_null(build: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    model = build(num_attention_heads=8, num_key_value_heads=8)
    units = [(layer, head) for layer in range(2) for head in range(8)]
    table = readout(run_of(model, tmp_path, {"additive": small(model, *units, size=1.0)}), toy_task, heads=16)
    p = table.of("head").p_pearson
    assert len(p) == 16 and (p >= 1 / 4).all() and 0.4 < p.mean() < 0.85  # the mean of 1/4, …, 1 is .625


def test_without_random_passes_r_has_no_null_and_says_so(build: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    model = build()
    run = run_of(model, tmp_path, {"additive": small(model, (0, 0), (1, 2))})
    bare, beside = readout(run, toy_task, held=0), readout(run, toy_task)
    assert bare.random_pearson is None and np.isnan(bare.p_pearson).all() and "no null" in bare.notes()[-1]
    assert bare.top(1).random_pearson is None and beside.top(1).random_pearson.shape == (1, 3)
    for name in ("pearson", "null_pearson", "null_peak", "top_ids"):
        assert np.array_equal(getattr(bare, name), getattr(beside, name), equal_nan=name != "top_ids")


# -- the table ---------------------------------------------------------------------------------------------------------


def same(one: Readout, other: Readout) -> bool:
    pairs = [(getattr(one, name), getattr(other, name)) for name in Readout.__dataclass_fields__]
    return all(
        a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
        if isinstance(a, np.ndarray)
        else a == b
        for a, b in pairs
    )


def test_tables_come_back_as_they_were_stored(build: MakeModel, toy_task: Task, choices: Task, tmp_path: Path) -> None:
    model = build()
    run = run_of(model, tmp_path, {"additive": small(model, (0, 0)), "multiplicative": small(model, (1, 1))})
    for number, task in enumerate((None, toy_task, choices)):
        table = readout(run, task)
        write_table(table, tmp_path / f"{number}.safetensors", {})
        assert same(read_table(Readout, tmp_path / f"{number}.safetensors"), table)
    save_table(run, "readout", table, about(run, choices, model))
    assert same(load_table(run, "readout", Readout), table)


def test_top_and_of_take_whole_vectors(build: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    model = build()
    table = readout(run_of(model, tmp_path, {"additive": small(model, (0, 0), (1, 1), (1, 2))}), toy_task)
    best = table.top(2)
    assert best.peak.tolist() == sorted(table.peak.tolist(), reverse=True)[:2]
    place = table.labels.index(best.labels[1])
    assert best.top_tokens[1] == table.top_tokens[place] and best.norm[1] == table.norm[place]
    assert table.of("layer").labels == ("L0", "L1")
    assert len(table.of("head").to_frame()) == 3


def test_the_smallest_models_and_empty_selections_have_a_table(
    build: MakeModel, toy_task: Task, choices: Task, tmp_path: Path
) -> None:
    model = build(num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1)
    run = run_of(model, tmp_path / "one", {"additive": small(model, (0, 0))})
    assert readout(run, choices, rows=1).labels == ("L0H0", "L0")
    assert np.isnan(readout(run, choices, rows=1).attribution_se).all()
    run.edit.site("heads").log_alpha["additive"].data.fill_(-20.0)
    run.edit.site("heads").log_alpha["multiplicative"].data.fill_(-20.0)
    table = readout(run, toy_task)
    assert table.labels == ("L0",) and not table.of("head").labels and len(table.of("head").to_frame()) == 0
    scales = run_of(model, tmp_path / "scales", {}, operations="multiply")
    empty = readout(scales, choices)
    assert len(empty) == len(empty.to_frame()) == len(empty.top(3)) == 0
    write_table(empty, tmp_path / "empty.safetensors", {})
    assert same(read_table(Readout, tmp_path / "empty.safetensors"), empty)


@pytest.mark.parametrize("gates", ["shared", "none"])
def test_edits_with_a_shared_gate_or_none_are_read(
    build: MakeModel, toy_task: Task, tmp_path: Path, gates: str
) -> None:
    model = build()
    vectors = {"additive": small(model, (0, 0)), "multiplicative": small(model, (1, 1))}
    table = readout(run_of(model, tmp_path, vectors, gates=gates), toy_task)
    assert list(zip(table.labels, table.kinds, strict=True))[:2] == [("L0H0", "additive"), ("L1H1", "multiplicative")]


def test_selected_heads_are_those_that_write_most(build: MakeModel, tmp_path: Path) -> None:
    model = build()
    vectors = {unit: (1 + i) * v for i, (unit, v) in enumerate(small(model, *[(1, h) for h in range(4)]).items())}
    run = run_of(model, tmp_path, {"additive": vectors})
    weights = output_weights(model, 1)
    sizes = [float((vectors[1, head] @ weights[head]).norm()) for head in range(4)]
    order = [f"L1H{head}" for head in np.argsort(sizes)[::-1]]
    assert list(readout(run, heads=2, draws=1).of("head").labels) == order[:2]
    closed = int(order[0][-1])
    run.edit.site("heads").log_alpha["additive"].data[1, closed] = -1.0  # not selected, though it still acts
    table = readout(run, draws=1)
    assert list(table.of("head").labels) == order[1:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 0}, "heads must be an integer ≥ 1"),
        ({"tokens": 1.5}, "tokens must be an integer ≥ 1"),
        ({"draws": True}, "draws must be an integer ≥ 1"),
        ({"held": -1}, "held must be an integer ≥ 0"),
        ({"held": 1.0}, "held must be an integer ≥ 0"),
        ({"rows": 0}, "rows must be an integer ≥ 1"),
        ({"split": "train"}, "split must be one of"),
        ({"contrast": ("a", "a")}, "begin with different tokens"),
        ({"contrast": ("a", "")}, "begin with different tokens"),
        ({"contrast": ("a",)}, "contrast must be two texts"),
    ],
)
def test_bad_input_is_refused(
    build: MakeModel, toy_task: Task, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    model = build()
    run = run_of(model, tmp_path, {"additive": small(model, (0, 0))})
    with pytest.raises(ValueError, match=message):
        readout(run, toy_task, **options)


def test_what_cannot_be_read_without_a_task_is_refused(build: MakeModel, tmp_path: Path) -> None:
    model = build()
    run = run_of(model, tmp_path / "a", {"additive": small(model, (0, 0))})
    with pytest.raises(ValueError, match="task: a contrast can only be read on the rows of a task"):
        readout(run, contrast=("a", "b"))
    with pytest.raises(ValueError, match="task: this edit, which has no offsets"):
        readout(run_of(model, tmp_path / "b", {}, operations="multiply"))
    with pytest.raises(ValueError, match="acts at mlp, not on heads"):
        readout(run_of(model, tmp_path / "c", {}, sites=("mlp",)))
    with run.attach(model), pytest.raises(ValueError, match="readout needs the model without edits"):
        readout(run)
