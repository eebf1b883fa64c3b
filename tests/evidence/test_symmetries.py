"""What the symmetries change and what they leave alone, to rounding; what they are applied to stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from jola_interp import gates as hardconcrete
from jola_interp.backends import attach
from jola_interp.edits import JoLA
from jola_interp.edits.base import HeadShape
from jola_interp.evidence import symmetries
from jola_interp.evidence.symmetries import (
    TurnedJoLA,
    fresh,
    hosted_share,
    logit_change,
    output_weight,
    probe,
    rehosted,
    rescaled,
    rotated,
    rotated_edit,
    rotations,
)
from jola_interp.models import Model, load_model
from tests.conftest import ARCHITECTURES, build_hf

MakeModel = Callable[..., Model]
EXACT = 1e-5
"""Of the largest |logit|, in float32."""
OWN_VALUES = ["llama", "qwen2", "qwen3", "gemma3", "mistral", "olmo2"]
FUSED = ["gpt2", "pythia", "phi3"]
SHAPE = HeadShape(2, 4, 2, 8, 32)


def made(shape: HeadShape, seed: int = 1, **switches: Any) -> JoLA:
    """An edit with vectors that matter, and gates on both sides of everything: closed, half open, open."""
    generator = torch.Generator().manual_seed(seed)
    edit = JoLA(shape, **{"init_std": 0.5, "sites": ("heads", "mlp"), **switches}).initialise(generator)
    if edit.units == "rms":
        edit.set_units({site: 0.2 + torch.rand(mask.shape, generator=generator) for site, mask in edit.masks().items()})
    if "init_log_alpha" not in switches:
        for value in edit.log_alphas().values():  # they share memory with the parameters
            places = torch.randperm(value.numel(), generator=generator).reshape(value.shape)
            value.copy_(torch.linspace(-4, 3, value.numel())[places])
    return edit


def live(edit: JoLA, model: Model) -> Tensor:
    with attach(edit, model, "hooks") as attached:
        found = probe(model)
    attached.check_live()
    return found


def acting(edit: JoLA, site: Any = "heads") -> dict[str, Tensor]:
    """g·v of each operation."""
    part = edit.site(site)
    values = part.gate_values(edit.inference, {})
    return {name: part.gated(name, values).detach() for name in part.operations}  # type: ignore[union-attr]


def kept(thing: JoLA | Model) -> dict[str, Tensor]:
    tensors = thing.tensors() if isinstance(thing, JoLA) else thing.hf.state_dict()
    return {name: value.clone() for name, value in tensors.items()}


def unchanged(thing: JoLA | Model, before: dict[str, Tensor]) -> bool:
    after = kept(thing)
    return after.keys() == before.keys() and all(torch.equal(value, after[name]) for name, value in before.items())


def with_value_bias(model: Model) -> Model:
    """Biases start at 0, where turning them could not be seen."""
    for name, parameter in model.hf.named_parameters():
        if name.endswith("v_proj.bias"):
            parameter.data.normal_(generator=torch.Generator().manual_seed(5))
    return model


# -- scale ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scale_keeps_logits_and_moves_every_open_gate_across_one_half(make_model: MakeModel, architecture: str) -> None:
    model = make_model(architecture)
    edit = made(model.head_shape)
    before, found = kept(edit), rescaled(edit)
    assert unchanged(edit, before)
    assert logit_change(probe(model), live(edit, model)) > 0.1  # the edit does something
    assert logit_change(live(edit, model), live(found, model)) <= EXACT
    for key, old in edit.log_alphas().items():
        new, opened = found.log_alphas()[key], hardconcrete.expected_or_closed(old) > 0
        assert 0 < int(opened.sum()) < opened.numel()
        assert torch.equal(old[~opened], new[~opened])
        assert torch.equal((hardconcrete.p_open(old) > 0.5)[opened], (hardconcrete.p_open(new) < 0.5)[opened])


@pytest.mark.parametrize("inference", ["expected", "point", "hard"])
@pytest.mark.parametrize("gates", ["separate", "shared"])
def test_scale_keeps_what_acts_under_each_inference_gate(inference: Any, gates: Any) -> None:
    edit = made(SHAPE, gates=gates, inference=inference)
    for target in (None, 0.55, 0.97):
        found = rescaled(edit, target)
        for site in ("heads", "mlp"):
            for name, value in acting(edit, site).items():
                torch.testing.assert_close(acting(found, site)[name], value, rtol=1e-5, atol=1e-7)
        for key, old in edit.log_alphas().items():
            opened = hardconcrete.INFERENCE[inference](old) > 0
            new = hardconcrete.p_open(found.log_alphas()[key])[opened]
            assert (new != hardconcrete.p_open(old)[opened]).all()
            if target is not None:
                torch.testing.assert_close(new, torch.full_like(new, target))


def test_under_the_hard_gate_p_open_moves_above_one_half_and_vectors_stay_bit_for_bit() -> None:
    edit = made(SHAPE, inference="hard")
    found = rescaled(edit)
    for name, value in edit.tensors().items():
        if not name.startswith("log_alpha"):
            assert torch.equal(value, found.tensors()[name])
    for key, old in edit.log_alphas().items():
        new, opened = hardconcrete.p_open(found.log_alphas()[key]), hardconcrete.hard(old) > 0
        assert (new[opened] > 0.5).all() and (new[opened] - hardconcrete.p_open(old)[opened]).abs().max() > 0.1


def test_an_edit_without_gates_has_no_scale_to_change() -> None:
    edit = made(SHAPE, gates="none")
    assert unchanged(rescaled(edit), kept(edit))


@pytest.mark.parametrize(("inference", "target"), [("expected", 0.16), ("point", 1.0), ("hard", 0.5), ("hard", 0.3)])
def test_a_target_at_which_the_gate_would_be_closed_is_refused(inference: Any, target: float) -> None:
    with pytest.raises(ValueError, match=f"p_open must lie between .*{inference}.*{target}"):
        rescaled(made(SHAPE, inference=inference), target)


# -- basis ---------------------------------------------------------------------------------------------------------


def test_rotations_are_orthogonal_one_per_group_and_the_seeds_own() -> None:
    found = rotations(SHAPE, 3)
    assert found.shape == (2, 2, 8, 8)
    torch.testing.assert_close(found @ found.mT, torch.eye(8, dtype=found.dtype).expand_as(found))
    assert torch.equal(found, rotations(SHAPE, 3)) and not torch.allclose(found, rotations(SHAPE, 4))
    assert not torch.allclose(found[0, 0], found[0, 1]) and not torch.allclose(found[0], found[1])


@pytest.mark.parametrize("architecture", OWN_VALUES)
def test_basis_keeps_base_and_edited_logits(make_model: MakeModel, architecture: str) -> None:
    model = with_value_bias(make_model(architecture))
    edit, before = made(model.head_shape), kept(model)
    tensors, turns = kept(edit), rotations(model.head_shape, 3)
    turned = rotated(model, 3)
    assert unchanged(model, before) and unchanged(edit, tensors)
    assert turned.fingerprint != model.fingerprint and not turned.booted
    assert logit_change(probe(model), probe(turned)) <= EXACT
    assert logit_change(live(edit, model), live(TurnedJoLA(edit, turns), turned)) <= EXACT
    # The check can fail: neither the old edit nor the nearest one without a dense matrix does the same there.
    for other in (edit, rotated_edit(edit, turns)):
        assert logit_change(live(edit, model), live(other, turned)) > 1e-3
    offsets = made(model.head_shape, operations="add")
    assert logit_change(live(offsets, model), live(rotated_edit(offsets, turns), turned)) <= EXACT
    assert unchanged(edit, tensors)


def test_the_nearest_multiplier_is_the_diagonal_of_the_turned_matrix() -> None:
    edit, turns = made(SHAPE, sites=("heads",)), rotations(SHAPE)
    found = rotated_edit(edit, turns).site("heads").vectors["multiplicative"]
    for layer, head in [(0, 0), (0, 3), (1, 2)]:
        turn = turns[layer, head // 2]
        matrix = turn.T @ torch.diag(edit.site("heads").vectors["multiplicative"][layer, head].double()) @ turn
        torch.testing.assert_close(found[layer, head].double(), matrix.diagonal(), rtol=1e-5, atol=1e-6)


def test_a_turned_edit_is_not_among_those_that_a_run_can_hold() -> None:
    assert TurnedJoLA not in JoLA.types.values() and JoLA.types["jola"] is JoLA


def test_a_rotated_model_can_be_booted_and_is_the_same_for_the_same_seed(make_model: MakeModel) -> None:
    model = make_model("qwen2")
    first, second, other = rotated(model, 1), rotated(model, 1), rotated(model, 2)
    assert first.weights_digest() == second.weights_digest() != other.weights_digest()
    expected = probe(first)
    assert first.bridge is not None
    assert logit_change(expected, probe(first)) <= EXACT


@pytest.mark.parametrize("architecture", FUSED)
def test_fused_values_are_refused_by_the_name_of_the_architecture(make_model: MakeModel, architecture: str) -> None:
    model = make_model(architecture)
    with pytest.raises(ValueError, match=f"{type(model.hf).__name__}.*layer 0 has no W_V of its own"):
        rotated(model)


def test_values_that_depend_on_their_basis_are_refused(make_model: MakeModel) -> None:
    model = make_model("llama")
    value = model.hf.get_submodule("model.layers.1.self_attn.v_proj")
    value.register_forward_hook(lambda _module, _args, output: output.tanh())
    with pytest.raises(ValueError, match="LlamaForCausalLM: logits move by .* depends on the basis"):
        rotated(model)


@pytest.mark.parametrize("seed", [-1, 1.5, True])
def test_a_seed_that_is_none_is_refused(make_model: MakeModel, seed: Any) -> None:
    with pytest.raises(ValueError, match="seed must be a whole number"):
        rotated(make_model(), seed)


# -- re-hosting ----------------------------------------------------------------------------------------------------


def least_squares(edit: JoLA, model: Model, layer: int, head: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(b, effect, residue) by numpy's own solver."""
    weight = output_weight(model, layer).numpy()
    effect = acting(edit)["additive"][layer, head].double().numpy() @ weight[head]
    others = np.delete(weight, head, 0).reshape(-1, weight.shape[-1])
    b = np.linalg.lstsq(others.T, effect, rcond=1e-9)[0]
    return b, effect, effect - b @ others


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_w_o_per_head_adds_up_to_the_models_own(make_model: MakeModel, architecture: str) -> None:
    model = make_model(architecture)
    z = torch.randn(5, model.head_shape.heads, model.head_shape.d_head, generator=torch.Generator().manual_seed(0))
    for layer in range(2):
        module = model.o_proj(layer)
        expected = (module(z.flatten(1)) - module(torch.zeros_like(z).flatten(1))).double()
        found = torch.einsum("nhd,hdm->nm", z.double(), output_weight(model, layer))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gates", ["separate", "shared", "none"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3", "olmo2"])
def test_where_the_others_span_everything_rehosting_keeps_logits(
    make_model: MakeModel, architecture: str, gates: Any
) -> None:
    model = make_model(architecture, head_dim=16)
    edit = made(model.head_shape, gates=gates)
    before, expected = kept(edit), live(edit, model)
    opened = acting(edit)["additive"].ne(0).any(-1)
    assert gates == "none" or not opened.all()  # some hosts are closed
    for layer, head in opened.nonzero().tolist():
        found = rehosted(edit, model, (layer, head))
        assert found.label == f"L{layer}H{head}"
        assert found.share == pytest.approx(1) and found.left < 1e-6 and found.cost > 0
        assert not acting(found.edit)["additive"][layer, head].any()
        assert logit_change(expected, live(found.edit, model)) <= EXACT
    assert unchanged(edit, before)
    alone = edit.restricted([(0, h) for h in range(4) if not opened[0, h] or h != int(opened[0].nonzero()[0])])
    assert logit_change(expected, live(alone, model)) > 1e-3  # dropping the offset, instead of moving it, is seen


@pytest.mark.parametrize("inference", ["expected", "point", "hard"])
def test_rehosting_reports_share_cost_and_residue_of_least_squares(make_model: MakeModel, inference: Any) -> None:
    model = make_model("llama")  # the others' 24 directions out of 32
    edit = made(model.head_shape, inference=inference)
    each = acting(edit)["additive"]
    for layer, head in each.ne(0).any(-1).nonzero().tolist():
        b, effect, residue = least_squares(edit, model, layer, head)
        found = rehosted(edit, model, f"L{layer}H{head}")
        total = torch.einsum("hd,hdm->m", each[layer].double(), output_weight(model, layer))
        assert 0.1 < found.share < 0.999
        assert found.share == pytest.approx(1 - float(residue @ residue / (effect @ effect)))
        assert found.cost == pytest.approx(float(np.linalg.norm(b) / each[layer, head].norm()), rel=1e-5)
        assert found.effect == pytest.approx(float(np.linalg.norm(effect)))
        assert found.left == pytest.approx(float(np.linalg.norm(residue) / total.norm()))
        moved = (acting(found.edit)["additive"] - each)[layer].double()
        hosts = [j for j in range(4) if j != head]
        np.testing.assert_allclose(moved[hosts].numpy().reshape(-1), b, rtol=1e-3, atol=1e-5)


def test_a_closed_host_takes_the_donors_gate_and_nothing_else_of_its_own_acts(make_model: MakeModel) -> None:
    model = make_model("llama", head_dim=16)
    edit = made(model.head_shape, gates="shared", heads=["L0H0", "L0H1", "L1H0"])
    with torch.no_grad():
        edit.site("heads").log_alpha["shared"][0] = torch.tensor([1.0, -5.0, 0.0, 0.0])
    found = rehosted(edit, model, "L0H0").edit
    part = found.site("heads")
    assert part.mask[0].all() and part.mask[1].tolist() == [True, False, False, False]
    assert part.log_alpha["shared"][0].tolist() == [1.0, 1.0, 1.0, 1.0]
    assert not part.vectors["multiplicative"][0, 1:].any()
    assert torch.equal(part.vectors["multiplicative"][0, 0], edit.site("heads").vectors["multiplicative"][0, 0])
    assert logit_change(live(edit, model), live(found, model)) <= EXACT


def test_the_donors_own_gate_is_closed_and_a_shared_one_is_not(make_model: MakeModel) -> None:
    model = make_model("llama", head_dim=16)
    for gates, kind, closed in (("separate", "additive", True), ("shared", "shared", False)):
        edit = made(model.head_shape, gates=gates, init_log_alpha=2.0, init_spread=0.1)
        log_alpha = rehosted(edit, model, "L1H2").edit.log_alphas()["heads", kind]  # type: ignore[index]
        assert (hardconcrete.expected_or_closed(log_alpha)[1, 2] == 0) == closed


def with_orthogonal_heads(model: Model) -> Model:
    """W_O of 4 heads × 4 with orthonormal rows in 32 dimensions: no head writes where another does."""
    for layer in range(2):
        drawn = torch.randn(32, 16, generator=torch.Generator().manual_seed(layer))
        model.o_proj(layer).weight.data.copy_(torch.linalg.qr(drawn)[0])
    return model


def test_heads_that_write_nowhere_in_common_cannot_host_each_other(make_model: MakeModel) -> None:
    model = with_orthogonal_heads(make_model("llama", head_dim=4))
    assert hosted_share(model).max() < 1e-10
    edit = made(model.head_shape, gates="none")
    assert rehosted(edit, model, "L1H3").share < 1e-10


def test_hosted_share_is_the_projection_onto_the_others_rows(make_model: MakeModel) -> None:
    model = make_model("llama")
    found = hosted_share(model)
    for layer, head in np.ndindex(2, 4):
        weight = output_weight(model, layer).numpy()
        others = np.delete(weight, head, 0).reshape(-1, 32)
        inside = weight[head] @ np.linalg.pinv(others) @ others
        assert found[layer, head] == pytest.approx((inside**2).sum() / (weight[head] ** 2).sum())
    np.testing.assert_allclose(hosted_share(make_model("llama", head_dim=16)), 1)
    single = make_model("llama", num_attention_heads=1, num_key_value_heads=1, head_dim=8)
    assert hosted_share(single).tolist() == [[0.0], [0.0]]


def test_what_cannot_be_moved_says_why(make_model: MakeModel) -> None:
    model = make_model()
    edit = made(model.head_shape)
    with torch.no_grad():
        edit.site("heads").log_alpha["additive"][0, 1] = -5
    single = make_model("llama", num_attention_heads=1, num_key_value_heads=1, head_dim=8)
    cases: list[tuple[JoLA, Model, Any, str]] = [
        (edit, model, "L0H1", "head: L0H1 adds nothing"),
        (edit, model, "L0H9", "L0H9 is not in this model"),
        (edit, model, "first", "is not a head"),
        (made(model.head_shape, operations="multiply"), model, "L0H0", "adds no offsets to heads"),
        (made(model.head_shape, sites=("mlp",)), model, "L0H0", "adds no offsets to heads"),
        (made(single.head_shape, gates="none"), single, "L0H0", "only head of its layer"),
    ]
    for given, on, head, match in cases:
        with pytest.raises(ValueError, match=match):
            rehosted(given, on, head)


# -- edits of every kind -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("units", ["raw", "rms"])
@pytest.mark.parametrize("scope", ["all", "not_first", "prompt", "answer"])
def test_all_three_hold_for_every_scope_unit_and_site(make_model: MakeModel, scope: Any, units: Any) -> None:
    model = make_model("qwen2", head_dim=16)
    edit = made(model.head_shape, scope=scope, units=units, sites=("heads", "mlp", "attention"))
    expected = live(edit, model)
    assert logit_change(probe(model), expected) > 0.1
    assert logit_change(expected, live(rescaled(edit), model)) <= EXACT
    turned = TurnedJoLA(edit, rotations(model.head_shape, 2))
    assert logit_change(expected, live(turned, rotated(model, 2))) <= EXACT
    layer, head = acting(edit)["additive"].ne(0).any(-1).nonzero()[0].tolist()
    assert logit_change(expected, live(rehosted(edit, model, (layer, head)).edit, model)) <= EXACT


# -- copies --------------------------------------------------------------------------------------------------------


def test_a_fresh_model_is_plain_float32_and_shares_nothing(make_model: MakeModel) -> None:
    model = load_model(build_hf("llama").bfloat16(), tokenizer=make_model().tokenizer)
    before, found = kept(model), fresh(model)
    assert found.dtype == torch.float32 and model.dtype == torch.bfloat16
    assert found.fingerprint == model.fingerprint
    for parameter in found.hf.parameters():
        parameter.data.zero_()
    assert unchanged(model, before)


def test_a_booted_model_is_loaded_anew_or_made_anew(make_model: MakeModel, tmp_path: Path) -> None:
    brought = make_model()
    brought.hf.save_pretrained(tmp_path)
    brought.tokenizer.save_pretrained(tmp_path)  # type: ignore[union-attr]
    loaded = load_model(tmp_path, dtype="float32")
    expected = probe(loaded)
    assert loaded.bridge is not None and brought.bridge is not None
    found = fresh(loaded)
    assert not found.booted and logit_change(expected, probe(found)) <= EXACT
    assert logit_change(expected, probe(rotated(loaded))) <= EXACT
    made_anew = fresh(brought)
    assert not made_anew.booted and brought.booted
    assert all(torch.equal(value, found.hf.state_dict()[name]) for name, value in made_anew.hf.state_dict().items())
    assert logit_change(expected, probe(rotated(brought))) <= EXACT
    build_hf("llama", scale=2.0).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds other weights"):
        fresh(loaded)


@pytest.mark.parametrize(
    ("architecture", "changes"), [("gpt2", {}), ("phi3", {}), ("llama", {"tie_word_embeddings": True})]
)
def test_a_booted_model_that_was_handed_in_is_made_again(
    make_model: MakeModel, architecture: str, changes: dict[str, Any]
) -> None:
    model = make_model(architecture, **changes)
    expected, drawn = probe(model), torch.get_rng_state()
    assert model.bridge is not None
    torch.set_rng_state(drawn)
    found = fresh(model)
    assert torch.equal(drawn, torch.get_rng_state())
    assert not found.booted and logit_change(expected, probe(found)) <= EXACT


def test_a_booted_model_that_its_weights_do_not_make_again_is_refused(make_model: MakeModel) -> None:
    model = make_model()
    assert model.bridge is not None
    model.o_proj(0).register_forward_hook(lambda _, __, out: 1.01 * out)
    with pytest.raises(ValueError, match=r"logits move by .*load_model\(path\)"):
        fresh(model)


def test_models_that_cannot_be_copied_exactly_are_refused(make_model: MakeModel) -> None:
    model = make_model()
    with attach(made(model.head_shape), model, "hooks"), pytest.raises(ValueError, match="without edits"):
        rotated(model)
    weight = model.hf.get_submodule("model.layers.0.mlp.up_proj").weight
    weight.requires_grad_(False).data = torch.zeros(48, 32, dtype=torch.int8)
    with pytest.raises(ValueError, match=r"up_proj.weight is torch.int8.*unquantised"):
        fresh(model)
    output = model.o_proj(0)
    output.weight = torch.nn.Parameter(torch.zeros(32, 31))
    with pytest.raises(ValueError, match="W_O of layer 0 is Linear, no plain matrix"):
        symmetries.output_weight(model, 0)
