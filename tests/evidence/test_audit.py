"""Tags follow what moved: measured on models where re-hosting is exact, nearly so, and impossible."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jola_interp.backends import attach
from jola_interp.batching import encode_examples
from jola_interp.edits import JoLA
from jola_interp.evaluation.likelihood import negative_log_likelihoods
from jola_interp.evidence import audit as module
from jola_interp.evidence.audit import ADDED, LAYER_SUM, SCORE, SELECTED, STATUSES, Audit, audit, change
from jola_interp.evidence.symmetries import output_weight, rehosted
from jola_interp.models import Model, load_model
from jola_interp.runs import Run
from jola_interp.selection import STATUSES as KINDS
from jola_interp.tasks import Example, Task
from tests.conftest import build_hf
from tests.runs_by_hand import make_run

MakeModel = Callable[..., Model]
EXACT = 1e-5


def run_for(model: Model, folder: Path, **switches: Any) -> Run:
    """A Run made by hand with gates at both ends and between, and vectors large enough to matter."""
    shape = model.head_shape
    run = make_run(folder / "run", shape.layers, shape.heads, shape.kv_heads, evaluated=False)
    generator = torch.Generator().manual_seed(3)
    edit = JoLA(shape, **{"init_std": 0.3, **switches}).initialise(generator)
    for value in edit.log_alphas().values():  # they share memory with the parameters
        places = torch.randperm(value.numel(), generator=generator).reshape(value.shape)
        value.copy_(torch.linspace(-4, 3, value.numel())[places])
    run.edit, run._model = edit.requires_grad_(False), model
    return run


@pytest.fixture
def audited(make_model: MakeModel, tmp_path: Path) -> Callable[..., Audit]:
    """``audited("llama", head_dim=16, gates="shared", span=.8)``: changes of the model, the edit and the audit."""

    def make(architecture: str = "llama", edit: dict[str, Any] | None = None, **options: Any) -> Audit:
        changes = {"head_dim": options.pop("head_dim")} if "head_dim" in options else {}
        return audit(run_for(make_model(architecture, **changes), tmp_path, **(edit or {})), **options)

    return make


def orthogonal(model: Model) -> Model:
    """4 heads × 4 that write into 32 dimensions, orthonormal: no head can stand in for another."""
    for layer in range(2):
        drawn = torch.randn(32, 16, generator=torch.Generator().manual_seed(layer))
        model.o_proj(layer).weight.data.copy_(torch.linalg.qr(drawn)[0])
    return model


def number(found: Audit, name: str) -> module.Number:
    return next(number for number in found.numbers if number.name == name)


# -- tags ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma3", "olmo2"])
def test_only_sums_products_and_the_function_are_invariant(audited: Callable[..., Audit], architecture: str) -> None:
    found = audited(architecture, head_dim=16)
    assert found.tags == {
        "P(open) additive": "not identified",
        "P(open) multiplicative": "not identified",
        SELECTED: "not identified",
        STATUSES: "not identified",
        "‖a‖": "not identified",
        "‖g_a a‖": "not identified",
        "‖m‖": "not identified",
        "‖g_m m‖": "basis-dependent",
        ADDED: "not identified",
        LAYER_SUM: "invariant",
        SCORE: "invariant",
    }
    assert number(found, "‖m‖").moved_by == ("scale", "basis")
    assert number(found, "‖g_m m‖").moved_by == ("basis",)
    assert number(found, ADDED).moved_by == ("re-hosting",)
    assert number(found, "P(open) multiplicative").moved_by == ("scale",)
    assert set(found.max_logit_change) == {"scale", "basis", "re-hosting"}
    assert max(found.max_logit_change.values()) <= EXACT
    assert number(found, SCORE).changes == found.max_logit_change


def test_where_no_head_can_host_another_what_a_head_adds_is_invariant(make_model: MakeModel, tmp_path: Path) -> None:
    found = audit(run_for(orthogonal(make_model("llama", head_dim=4)), tmp_path))
    assert found.tags[ADDED] == found.tags["‖g_a a‖"] == found.tags[LAYER_SUM] == found.tags[SCORE] == "invariant"
    assert found.tags["‖a‖"] == found.tags["P(open) additive"] == "not identified"  # the scale is enough
    assert "re-hosting" not in found.max_logit_change and "was not applied" in found.notes[0]
    adding = [head for head in found.heads if head.effect is not None]
    assert adding and all(head.identified and head.share < 1e-9 for head in adding)
    assert found.sentence(adding[0].label).startswith(f"{adding[0].label} adds an offset of norm")


def test_a_tag_follows_what_was_measured_and_is_not_declared(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_for(orthogonal(make_model("llama", head_dim=4)), tmp_path)
    monkeypatch.setattr(module, "rescaled", lambda edit: edit)
    tags = audit(run).tags
    assert tags["P(open) additive"] == tags[SELECTED] == tags["‖a‖"] == "invariant"
    assert tags["‖m‖"] == "basis-dependent"
    monkeypatch.setattr(module, "rescaled", lambda edit: edit.restricted(strength=1.5))
    assert audit(run).tags[SCORE] == "not identified"  # no symmetry: the function moves, and that is seen


def test_under_the_hard_gate_the_scale_moves_p_open_and_no_vector(audited: Callable[..., Audit]) -> None:
    found = audited(head_dim=4, edit={"inference": "hard"}, span=1.0)  # 12 rows: nothing is spanned whole
    assert number(found, "P(open) additive").moved_by == ("scale",)
    assert found.tags["‖a‖"] == found.tags[SELECTED] == found.tags[STATUSES] == "invariant"
    assert found.tags["‖m‖"] == "basis-dependent"


def test_numbers_are_those_that_the_edit_has(audited: Callable[..., Audit]) -> None:
    offsets = audited(edit={"operations": "add"}).tags
    assert not any("m" in name.split()[0] or "multiplicative" in name for name in offsets)
    scales = audited(edit={"operations": "multiply"})
    assert {"‖m‖", "‖g_m m‖"} < scales.tags.keys() and ADDED not in scales.tags and not scales.layer_sums
    assert all(head.share is None and head.identified for head in scales.heads) and not scales.notes
    free = audited(edit={"gates": "none"})
    assert not any(name.startswith("P(open)") for name in free.tags) and SELECTED not in free.tags
    assert free.tags["‖m‖"] == "basis-dependent" and len(free.heads) == 8
    shared = audited(edit={"gates": "shared"})
    assert shared.tags["P(open) shared"] == "not identified" and {head.status for head in shared.heads} == {"both"}
    mlp = audited(edit={"sites": ("mlp",)})
    assert mlp.tags["P(open) additive (mlp)"] == mlp.tags["‖a‖ (mlp)"] == "not identified"
    assert mlp.tags["‖g_a a‖ (mlp)"] == mlp.tags["‖g_m m‖ (mlp)"] == mlp.tags[SCORE] == "invariant"
    assert not mlp.heads and not mlp.layer_sums
    whole = audited(edit={"sites": ("attention",), "operations": "add", "gates": "none"})
    assert whole.tags == {"‖a‖ (attention)": "invariant", "‖g_a a‖ (attention)": "invariant", SCORE: "invariant"}


def test_a_nearly_exact_move_counts_beyond_what_it_leaves_behind(audited: Callable[..., Audit]) -> None:
    found = audited(span=0.5)  # the others span 24 of 32 dimensions
    moved = [head for head in found.heads if head.effect is not None and not head.identified]
    assert moved and all(0.5 <= head.share < 0.999 for head in moved)
    assert found.tags[ADDED] == "not identified" and found.tags[LAYER_SUM] == "invariant"
    best = min(moved, key=lambda head: head.left)
    assert number(found, LAYER_SUM).changes["re-hosting"] <= best.left
    assert best.label in found.notes[0] and EXACT < found.max_logit_change["re-hosting"] < 0.5
    strict = audited(span=0.9999)
    assert all(head.identified for head in strict.heads)
    assert strict.tags[ADDED] == "invariant" and "re-hosting" not in strict.max_logit_change


@pytest.mark.parametrize("architecture", ["gpt2", "pythia", "phi3"])
def test_where_values_are_fused_numbers_are_turned_and_the_score_is_said_not_to_be(
    audited: Callable[..., Audit], architecture: str
) -> None:
    found = audited(architecture, span=0.5)
    assert found.tags["‖g_m m‖"] == "basis-dependent" and found.tags[SCORE] == "invariant"
    assert "basis" not in found.max_logit_change and "basis" not in number(found, SCORE).changes
    assert number(found, LAYER_SUM).changes["basis"] < EXACT
    assert "the score was not taken again" in found.notes[0] and "has no W_V of its own" in found.notes[0]


# -- with a task ---------------------------------------------------------------------------------------------------


def losses_by_hand(run: Run, model: Model, task: Task, edit: JoLA) -> np.ndarray:
    train = run.config["train"]
    options = {key: train[key] for key in ("wrapper", "max_length", "eos")}
    rows = encode_examples(task.test, model.tokenizer, **options)  # type: ignore[arg-type]
    with attach(edit, model, "hooks"):
        totals, counts = negative_log_likelihoods(model, rows, 3)
    return totals / counts


def test_delta_is_the_mean_over_rows_of_what_the_move_costs(
    make_model: MakeModel, tmp_path: Path, toy_task: Task
) -> None:
    model = make_model("llama")
    run = run_for(model, tmp_path)
    found = audit(run, toy_task, span=0.5, margin=1e-3)
    before = losses_by_hand(run, model, toy_task, run.edit)
    assert found.rows == 6 and found.task == "toy"
    adding = [head for head in found.heads if head.effect is not None]
    for head in adding:
        after = losses_by_hand(run, model, toy_task, rehosted(run.edit, model, head.label).edit)
        assert head.delta.value == pytest.approx((after - before).mean(), abs=1e-5)
        assert head.delta.low <= head.delta.value <= head.delta.high and head.delta.n == 6
        assert head.identified == (head.share < 0.5 or head.delta.value > 1e-3)
    assert {head.identified for head in adding} == {True, False}  # both happen
    assert all(not head.identified for head in audit(run, toy_task, span=0.5, margin=1e6).heads if head.effect)
    assert audit(run, toy_task, rows=2).rows == 2


def test_an_exact_move_costs_nothing_on_the_task(audited: Callable[..., Audit], toy_task: Task) -> None:
    found = audited("gemma3", task=toy_task, batch_size=2)
    adding = [head for head in found.heads if head.effect is not None]
    assert adding and all(abs(head.delta.value) < 1e-4 and not head.identified for head in adding)
    assert found.tags[SCORE] == "invariant" and found.tags[ADDED] == "not identified"
    assert set(number(found, SCORE).changes) == {"scale", "basis", "re-hosting"}


# -- what is said --------------------------------------------------------------------------------------------------


def test_a_sentence_names_the_head_only_where_the_offset_is_its_own(audited: Callable[..., Audit]) -> None:
    found = audited("gemma3")
    by_status = {status: [head for head in found.heads if head.status == status] for status in KINDS}
    adding = by_status["additive"][0]
    said = found.sentence(adding.label)
    assert said.startswith(f"an offset of layer {adding.layer} that other heads could host as well (100 % of it")
    assert adding.label not in said
    [scaling] = by_status["multiplicative"][:1]
    assert found.sentence(scaling.label) == f"{scaling.label} scales its own output"
    both = by_status["both"][0]
    assert found.sentence(both.label).endswith(f"; {both.label} also scales its own output")
    absent = next(f"L0H{i}" for i in range(4) if found.head(f"L0H{i}") is None)
    assert found.sentence(absent) == f"{absent} is not selected"
    with pytest.raises(ValueError, match="label: 'head 3' is not a head"):
        found.sentence("head 3")


def test_effects_and_layer_sums_are_norms_in_the_residual_stream(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model("llama")
    run = run_for(model, tmp_path)
    found, part = audit(run), run.edit.site("heads")
    acting = part.gated("additive", part.gate_values("expected", {}))
    for layer in range(2):
        written = torch.einsum("hd,hdm->hm", acting[layer].double(), output_weight(model, layer))  # type: ignore[index]
        assert found.layer_sums[layer] == pytest.approx(float(written.sum(0).norm()))
        for head in found.heads:
            if head.layer == layer and head.effect is not None:
                assert head.effect == pytest.approx(float(written[head.head].norm()), rel=1e-5)


def test_norms_are_of_the_vectors_in_units_of_z(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model("llama")
    run = run_for(model, tmp_path, units="rms")
    run.edit.set_units({"heads": torch.full((2, 4), 0.25)})
    values = module.values_of(run.edit, lambda layer: output_weight(model, layer))
    trained = run.edit.site("heads").vectors["additive"].norm(dim=-1)
    np.testing.assert_allclose(values["‖a‖"], 0.25 * trained.numpy(), rtol=1e-6)


def test_the_dictionary_is_json_in_a_stable_order_and_the_same_again(
    audited: Callable[..., Audit], toy_task: Task
) -> None:
    first, second = (audited(span=0.5, task=toy_task) for _ in range(2))
    text = json.dumps(first.to_dict(), allow_nan=False)
    assert text == json.dumps(second.to_dict(), allow_nan=False)
    back = json.loads(text)
    assert [row["name"] for row in back["numbers"]] == [number.name for number in first.numbers]
    assert back["heads"][0]["label"] == first.heads[0].label
    assert list(back) == [*list(back)[:6], "tolerance", "numbers", "heads", "layer_sums", "max_logit_change", "notes"]


def test_tables_hold_a_row_per_number_and_per_head(audited: Callable[..., Audit], toy_task: Task) -> None:
    found = audited(span=0.5, task=toy_task)
    frame, heads = found.to_frame(), found.heads_frame()
    assert list(frame.index) == list(found.tags) and frame["tag"].to_dict() == found.tags
    assert list(heads["label"]) == [head.label for head in found.heads]
    assert heads["delta"].isna().tolist() == [head.delta is None for head in found.heads]
    assert "not identified" in repr(found) and "toy, 6 rows" in repr(found)
    hostile = Audit("<b>", "", 0, 0.9, 0.01, 0, (), (), (), {}, ("<i>",))
    assert "<b>" not in hostile._repr_html_() and "<i>" not in hostile._repr_html_()
    assert "‖m‖" in found._repr_html_() and found.heads[0].label in found._repr_html_()
    assert len(hostile.heads_frame()) == 0


# -- models --------------------------------------------------------------------------------------------------------


def test_run_and_model_are_left_as_they_were(make_model: MakeModel, tmp_path: Path, toy_task: Task) -> None:
    model = make_model("llama")
    run = run_for(model, tmp_path)
    edit = {name: value.clone() for name, value in run.edit.tensors().items()}
    weights = {name: value.clone() for name, value in model.hf.state_dict().items()}
    audit(run, toy_task, span=0.5)
    assert not model.booted
    assert all(torch.equal(value, run.edit.tensors()[name]) for name, value in edit.items())
    assert all(torch.equal(value, model.hf.state_dict()[name]) for name, value in weights.items())


def test_bfloat16_models_are_audited_in_float32(make_model: MakeModel, tmp_path: Path) -> None:
    model = load_model(build_hf("gemma3").bfloat16(), tokenizer=make_model().tokenizer)
    found = audit(run_for(model, tmp_path))
    assert max(found.max_logit_change.values()) <= EXACT and model.dtype == torch.bfloat16


def test_a_booted_model_is_loaded_or_made_anew(make_model: MakeModel, tmp_path: Path) -> None:
    brought = make_model("gemma3")
    brought.hf.save_pretrained(tmp_path / "model")
    brought.tokenizer.save_pretrained(tmp_path / "model")  # type: ignore[union-attr]
    loaded = load_model(tmp_path / "model", dtype="float32")
    run = run_for(loaded, tmp_path)
    plain = audit(run)
    assert brought.bridge is not None and loaded.bridge is not None
    assert audit(run).tags == plain.tags
    run._model = brought
    assert audit(run).tags == plain.tags


def test_the_rule_says_which_heads_are_audited(make_model: MakeModel, tmp_path: Path) -> None:
    run = run_for(make_model("llama"), tmp_path)
    found, usual = audit(run, rule="top=2:p_open"), audit(run)
    assert [head.label for head in found.heads] == list(run.selection("top=2:p_open").labels)
    assert len(usual.heads) > 2
    values = module.values_of(run.edit, lambda layer: output_weight(run.model, layer), "top=2:p_open")
    assert values[module.SELECTED] == {head.label for head in found.heads}


# -- asked for -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"span": 1.5}, "span must be a finite number from 0 to 1, not 1.5"),
        ({"span": float("nan")}, "span must be"),
        ({"margin": -0.1}, "margin must be"),
        ({"margin": float("inf")}, "margin must be"),
        ({"batch_size": 0}, "batch_size must be a whole number, 1 or more"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"rows": 0}, "rows must be a whole number"),
        ({"rule": "open"}, "rule"),
        ({"rows": 3}, "rows goes with a task"),
        ({"task": Task("bare", (Example("a", "b"),), (), (), kind="text", metric="bleu")}, "'bare' has no test rows"),
        ({"task": "no such task"}, "no such task"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], match: str
) -> None:
    run = run_for(make_model("llama"), tmp_path)
    monkeypatch.setattr(Model, "forward", lambda *_, **__: pytest.fail("a pass was run"))
    with pytest.raises(ValueError, match=match):
        audit(run, **options)


def test_an_attached_edit_and_a_missing_tokenizer_are_refused(
    make_model: MakeModel, tmp_path: Path, toy_task: Task
) -> None:
    model = make_model("llama")
    run = run_for(model, tmp_path)
    with run.attach(model, backend="hooks"), pytest.raises(ValueError, match="without edits"):
        audit(run)
    bare = load_model(build_hf("llama"))
    run._model = bare
    with pytest.raises(ValueError, match="no tokenizer"):
        audit(run, toy_task)
    assert audit(run).rows == 0  # without a task none is needed


def test_change_is_relative_to_the_larger_and_blind_to_rounding() -> None:
    assert change(np.array([1.0, 2.0]), np.array([1.0, 1.0])) == pytest.approx(0.5)
    assert change(np.array([0.0, 1.0]), np.array([0.5, 1.0])) == 1
    assert change(np.array([0.0, 1.0]), np.array([1e-9, 1.0])) == 0
    assert change(np.zeros(3), np.zeros(3)) == 0
    assert change(frozenset("ab"), frozenset("bc")) == pytest.approx(2 / 3)
    assert change(frozenset(), frozenset()) == 0
