"""What an offset writes: the lens is the first-order change of the logits, linear, and stands beside the true one."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from jola_interp.analysis.readout import TRUSTED, Lens, LinearNorm, Readout, _component, readout, visible
from jola_interp.analysis.rows import output_weights
from jola_interp.analysis.tables import about, load_table, read_table, save_table, write_table
from jola_interp.backends.base import attached_edits
from jola_interp.edits import JoLA
from jola_interp.models import Model, _unwrapped, load_model
from jola_interp.runs import Run
from jola_interp.tasks import Example, Task
from tests.conftest import ARCHITECTURES, build_hf
from tests.runs_by_hand import make_run

MakeModel = Callable[..., Model]
VOCABULARY = 258
_GROUPED = ARCHITECTURES["llama"][1]
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "granite": ("GraniteConfig", {**_GROUPED, "residual_multiplier": 0.25, "logits_scaling": 4.0}),
    "gemma2": ("Gemma2Config", {**_GROUPED, "head_dim": 8, "final_logit_softcapping": 1.0}),
    "cohere": ("CohereConfig", {**_GROUPED, "logit_scale": 0.5}),
}
"""A residual multiplier, a softcap and a logit scale."""


@pytest.fixture
def build(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> MakeModel:
    for name, entry in MORE.items():
        monkeypatch.setitem(ARCHITECTURES, name, entry)

    def make(architecture: str = "llama", **changes: Any) -> Model:
        attention = "eager" if architecture == "gemma2" else "sdpa"
        return load_model(build_hf(architecture, attention, **changes), tokenizer=tokenizer)

    return make


def run_of(model: Model, folder: Path, vectors: dict[str, dict[tuple[int, int], Any]], **switches: Any) -> Run:
    """A Run of an edit with open gates that has just these vectors."""
    shape = model.head_shape
    run = make_run(folder, shape.layers, shape.heads, shape.kv_heads)
    edit = JoLA(shape, init_log_alpha=8.0, init_spread=0.0, init_std=0.0, **switches)
    edit.initialise(torch.Generator().manual_seed(0))
    for kind, heads in vectors.items():
        for unit, vector in heads.items():
            edit.site("heads").vectors[kind].data[unit] = torch.as_tensor(vector, dtype=torch.float32)
    train = {**run.config["train"], "wrapper": "{instruction}"}
    config = {**run.config, "model": {**model.identity(), "source": None}, "train": train, "backend": "hooks"}
    return Run(run.path, config, edit, run.gates, model)


def small(model: Model, *units: tuple[int, int], size: float = 1e-3, seed: int = 0) -> dict[tuple[int, int], Any]:
    generator = torch.Generator().manual_seed(seed)
    return {unit: size * torch.randn(model.head_shape.d_head, generator=generator) for unit in units}


def idle(model: Model) -> Model:
    """Nothing behind the attention of layer 0 does anything."""
    with torch.no_grad():
        for layer in range(model.head_shape.layers):
            for parameter in model.component(layer, "mlp").parameters():
                parameter.zero_()
            for parameter in model.o_proj(layer).parameters() if layer else ():
                parameter.zero_()
    return model


@pytest.fixture
def choices() -> Task:
    rows = [
        Example(f"{i}: {animal}?", f"answer{1 + i % 2}", id=str(i))
        for i, animal in enumerate(["cat", "doggy", "owl", "foxes", "bee", "antelope", "ox", "ant"])
    ]
    return Task("pick", tuple(rows[:2]), (), tuple(rows[2:]), kind="choice", options=("answer1", "answer2", "answer3"))


def one_token(run: Run) -> Task:
    """A row whose answer is one token without EOS: a single position is read."""
    run.config["train"] = {**run.config["train"], "eos": False}
    return Task("one", (Example("x", "y"),), (), (Example("which?", "a"),), kind="text")


def whole(table: Readout, place: int, name: str) -> np.ndarray:
    """[vocab] of a table that kept every token, by id."""
    found = np.zeros(VOCABULARY)
    found[table.top_ids[place]] = getattr(table, f"top_{name}")[place]
    return found


# -- the lens ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *MORE])
def test_derivative_of_the_final_norm_is_that_of_the_model(build: MakeModel, architecture: str) -> None:
    model = build(architecture)
    module = _component(model, "ln_final")
    assert module is not None
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    norm = LinearNorm(module, 32, model.device)
    stream, v, u = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(2)).mul(3).unbind()
    expected = torch.func.jvp(module, (stream,), (v,))[1]
    point = norm.at(stream)
    torch.testing.assert_close(norm.forward(v, point), expected, rtol=1e-3, atol=1e-4)
    pulled = torch.func.vjp(module, stream)[1](u)[0]
    torch.testing.assert_close(norm.backward(u, point), pulled, rtol=1e-3, atol=1e-4)
    assert norm.centred == (architecture in ("gpt2", "pythia", "cohere"))


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
    assert table.top_tokens[0][0] == visible(model.tokenizer, token)
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


def test_logits_that_are_not_the_unembedding_of_the_norm_are_refused(build: MakeModel, tmp_path: Path) -> None:
    model = build()
    run = run_of(model, tmp_path, {"additive": small(model, (0, 0))})
    model.hf.lm_head.register_forward_hook(lambda *args: args[2].square())
    with pytest.raises(ValueError, match="are not the unembedding of its final norm"):
        readout(run)


def test_a_final_layer_that_is_no_norm_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear is neither a LayerNorm nor an RMSNorm"):
        LinearNorm(torch.nn.Linear(6, 6), 6, torch.device("cpu"))


@pytest.mark.parametrize("width", [5, 6])
def test_norms_are_read_at_any_width(width: int) -> None:
    module = torch.nn.LayerNorm(width)
    torch.nn.init.normal_(module.weight)
    norm = LinearNorm(module, width, torch.device("cpu"))
    torch.testing.assert_close(norm.weight, module.weight, rtol=1e-4, atol=1e-4)
    assert norm.centred


# -- beside the truth and the null -------------------------------------------------------------------------------------


@pytest.mark.parametrize("booted", [False, True])
def test_true_change_is_that_of_whole_passes_with_the_part_alone(
    build: MakeModel, toy_task: Task, tmp_path: Path, booted: bool
) -> None:
    model = build(num_hidden_layers=3)
    vectors = {kind: small(model, (1, 0), (1, 2), (2, 3), size=0.5, seed=7) for kind in ("additive", "multiplicative")}
    run = run_of(model, tmp_path, vectors)
    if booted:
        assert model.bridge is not None
    table = readout(run, toy_task, tokens=VOCABULARY, draws=1)
    base = mean_logits(model, toy_task)
    for place, (label, kind) in enumerate(zip(table.labels, table.kinds, strict=True)):
        heads = [label] if "H" in label else [f"{label}H{head}" for head in range(4)]
        with run.attach(model, heads=heads, kinds=[kind]):
            change = mean_logits(model, toy_task) - base
        change -= change.mean()
        np.testing.assert_allclose(whole(table, place, "true"), change, atol=1e-5 * np.abs(base).max())
    assert set(table.kinds[: len(table) - 3]) == {"additive", "multiplicative"}


def mean_logits(model: Model, task: Task) -> np.ndarray:
    """Over the positions that predict answer tokens, a row at a time."""
    found = []
    for example in task.test:
        prompt = model.tokenizer(example.instruction).input_ids
        answer = [*model.tokenizer(example.answer).input_ids, model.tokenizer.eos_token_id]
        ids = torch.tensor([[*prompt, *answer]])
        with torch.no_grad():
            logits = model.logits(ids, torch.ones_like(ids))[0]
        found.append(logits[len(prompt) - 1 : -1])
    return np.asarray(torch.cat(found).double().mean(0))


def test_whole_passes_give_what_restarted_ones_give(
    build: MakeModel, toy_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("jola_interp.analysis.readout")  # the package has a function of that name
    from jola_interp.backends.restart import RestartError

    model = build()
    run = run_of(model, tmp_path, {"additive": small(model, (0, 0), (1, 2), size=0.5)})
    restarted = readout(run, toy_task, tokens=VOCABULARY, contrast=("a", "b"))

    def refuse(*_: Any, **__: Any) -> Any:
        raise RestartError("no")

    monkeypatch.setattr(module, "recorded", refuse)
    naive = readout(run, toy_task, tokens=VOCABULARY, contrast=("a", "b"))
    for place in range(len(naive)):
        lens, true = whole(naive, place, "delta"), whole(naive, place, "true")
        np.testing.assert_allclose(whole(restarted, place, "delta"), lens, atol=1e-4 * np.abs(lens).max())
        np.testing.assert_allclose(whole(restarted, place, "true"), true, atol=1e-4 * np.abs(true).max())
    np.testing.assert_allclose(restarted.contrast_edited, naive.contrast_edited, rtol=1e-4, atol=1e-4)


def test_multiplicative_part_is_the_mean_scaled_z_of_tokens_that_are_not_first(
    build: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    model = build()
    m = small(model, (0, 2), size=0.5)
    table = readout(run_of(model, tmp_path, {"multiplicative": m}), toy_task, draws=1)
    seen: list[torch.Tensor] = []
    handle = model.o_proj(0).register_forward_pre_hook(lambda _, args: seen.append(args[0][0, 1:]))
    mean_logits(model, toy_task)
    handle.remove()
    z = torch.cat(seen).view(-1, 4, 8)[:, 2].mean(0)
    assert (table.labels[0], table.kinds[0]) == ("L0H2", "multiplicative")
    expected = float(((m[0, 2] * z) @ output_weights(model, 0)[2]).norm())
    assert table.norm[0] == pytest.approx(expected, rel=1e-2)  # the gate is .9996 at inference


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


# -- attribution -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3", "granite"])
def test_attributions_add_up_to_the_true_change_where_later_layers_are_idle(
    build: MakeModel, choices: Task, tmp_path: Path, architecture: str
) -> None:
    model = idle(build(architecture))
    vectors = {kind: small(model, (0, 1), (0, 2), size=1e-3) for kind in ("additive", "multiplicative")}
    table = readout(run_of(model, tmp_path, vectors), choices)
    assert table.attribution is not None and table.attribution_null is not None
    assert set(np.flatnonzero(table.attribution)) == {1, 2}
    change = float((table.contrast_edited - table.contrast_base).mean())
    assert float(table.attribution.sum()) == pytest.approx(change, rel=1e-2)
    assert not table.attribution_null[1].any() and table.attribution_null[0, 1].all()


def test_contrast_is_right_against_wrong_at_the_token_that_tells(
    build: MakeModel, choices: Task, tmp_path: Path
) -> None:
    model = build()
    run = run_of(model, tmp_path, {"additive": small(model, (0, 1), size=0.5)})
    table = readout(run, choices, rows=4)
    digits = {name: model.tokenizer(name).input_ids[0] for name in "123"}

    def contrasts() -> list[float]:
        found = []
        for example in choices.test[:4]:
            ids = torch.tensor([model.tokenizer(f"{example.instruction}answer").input_ids])
            with torch.no_grad():
                logits = model.logits(ids, torch.ones_like(ids))[0, -1]
            right = example.answer[-1]
            wrong = [float(logits[token]) for name, token in digits.items() if name != right]
            found.append(float(logits[digits[right]]) - sum(wrong) / 2)
        return found

    np.testing.assert_allclose(table.contrast_base, contrasts(), rtol=1e-4, atol=1e-4)
    with run.attach(model):
        np.testing.assert_allclose(table.contrast_edited, contrasts(), rtol=1e-4, atol=1e-4)


def test_a_text_task_has_an_attribution_only_for_a_contrast(build: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    run = run_of(build(), tmp_path, {"additive": {(0, 0): torch.ones(8)}})
    plain, asked = readout(run, toy_task), readout(run, toy_task, contrast=(" a", "bc"))
    assert plain.attribution is None and plain.contrast == ""
    with pytest.raises(ValueError, match="contrast: there is none"):
        plain.attribution_sheet()
    assert asked.contrast == "logit of ·a − logit of bc"
    frame = asked.attributions()
    assert frame["label"][0] == "L0H0" and len(frame) == 8
    assert (frame["p"][1:] == 1).all() and frame["se"][0] > 0
    sheet = asked.attribution_sheet()
    assert [panel.kind for panel in sheet.panels] == ["signed", "signed"]
    assert sheet.panels[0].range == sheet.panels[1].range
    assert f"{len(toy_task.test)} test rows" in sheet.notes[0]


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


# -- tokens ------------------------------------------------------------------------------------------------------------


def test_white_space_is_visible(tokenizer: Any) -> None:
    ids: Sequence[int] = tokenizer(" \n\tx").input_ids
    assert [visible(tokenizer, token) for token in ids] == ["·", "↵", "⇥", "x"]
    assert visible(tokenizer, 10_000) == visible(None, 10_000) == "#10000"
    assert visible(tokenizer, tokenizer.eos_token_id) == "<eos>"
    part = tokenizer("é").input_ids[0]  # half of a character
    assert visible(tokenizer, part) == tokenizer.convert_ids_to_tokens(part)


def test_a_leading_space_survives_sentencepiece() -> None:
    class Pieces:
        def __len__(self) -> int:
            return 2

        def convert_ids_to_tokens(self, token: int) -> str:
            return ("▁the", "▁")[token]

        def decode(self, ids: list[int], **_: Any) -> str:
            return ("the", "")[ids[0]]

    assert [visible(Pieces(), token) for token in range(2)] == ["·the", "·"]


def test_lens_of_a_booted_model_reads_the_plain_modules(build: MakeModel) -> None:
    plain, booted = build("gemma3"), build("gemma3")
    assert booted.bridge is not None
    one, other = Lens(plain), Lens(booted)
    assert one.modules.keys() == other.modules.keys() == {"final", 0, 1}
    v = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(one.logits(one.through(v, 1)), other.logits(other.through(v, 1)))
    assert isinstance(_unwrapped(other.modules["final"]), type(one.modules["final"]))
    assert F.cosine_similarity(one.norms[1].weight, other.norms[1].weight, dim=0) == pytest.approx(1)
