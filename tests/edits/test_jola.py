"""The edit itself: its equation, its switches, its penalty, its files."""

from __future__ import annotations

import pytest
import torch

from jola_interp import gates
from jola_interp.edits import Context, HeadShape, JoLA
from jola_interp.edits.jola import _check_switches

SHAPE = HeadShape(layers=3, heads=4, kv_heads=2, d_head=8, d_model=32)


def made(seed: int = 0, size: float = 1.0, **switches: object) -> JoLA:
    """An edit whose vectors are large enough to matter."""
    edit = JoLA(SHAPE, init_std=size, **switches)  # type: ignore[arg-type]
    return edit.initialise(torch.Generator().manual_seed(seed))


def apply(edit: JoLA, z: torch.Tensor, layer: int = 1, site: str = "heads", **context: object) -> torch.Tensor:
    state = Context(**context)  # type: ignore[arg-type]
    state.prepared = edit.prepare(state, z.dtype)
    result: torch.Tensor = edit(z, layer, site, state)
    return result


def test_edit_is_the_equation_of_the_paper() -> None:
    edit, z = made(inference="point"), torch.randn(2, 5, 4, 8, generator=torch.Generator().manual_seed(1))
    part = edit.site("heads")
    g_a, g_m = (gates.point(part.log_alpha[kind][1])[:, None] for kind in ("additive", "multiplicative"))
    expected = (1 + g_m * part.vectors["multiplicative"][1]) * z + g_a * part.vectors["additive"][1]
    torch.testing.assert_close(apply(edit, z), expected)


def test_closed_gates_are_the_identity_bit_for_bit() -> None:
    edit, z = made(), torch.randn(2, 5, 4, 8)
    for log_alpha in edit.site("heads").log_alpha.values():
        log_alpha.data.fill_(-10)
    assert torch.equal(apply(edit, z), z)


@pytest.mark.parametrize("operations", ["both", "add", "multiply"])
@pytest.mark.parametrize("gating", ["separate", "shared", "none"])
def test_parameters_are_counted_as_trained(gating: str, operations: str) -> None:
    edit = JoLA(SHAPE, gates=gating, operations=operations, sites=("heads", "mlp"))  # type: ignore[arg-type]
    trained = sum(parameter.numel() for group in edit.parameter_groups().values() for parameter in group)
    assert edit.n_parameters() == trained == sum(parameter.numel() for parameter in edit.parameters())


@pytest.mark.parametrize(
    ("shape", "count"),
    [(HeadShape(32, 32, 8, 128, 4096), 264_192), (HeadShape(28, 28, 4, 128, 3584), 202_272)],
    ids=["Llama-3.1-8B", "Qwen2.5-7B"],
)
def test_parameter_counts_of_the_papers_models(shape: HeadShape, count: int) -> None:
    assert JoLA(shape).n_parameters() == count


def test_only_chosen_units_train_and_act() -> None:
    edit = made(heads=["L1H2", (2, 0)])
    assert edit.points() == [(1, "heads"), (2, "heads")]
    assert edit.n_parameters() == 2 * (2 * 8 + 2)
    z = torch.randn(1, 3, 4, 8)
    changed = (apply(edit, z) != z).any(-1).any(0).any(0)
    assert changed.tolist() == [False, False, True, False]


def test_shared_gate_opens_both_operations_alike() -> None:
    edit = made(gates="shared")
    edit.site("heads").log_alpha["shared"].data.fill_(-10)
    z = torch.randn(1, 3, 4, 8)
    assert torch.equal(apply(edit, z), z)
    assert edit.penalty().keys() == {"shared"}


def test_mean_penalty_parts_add_up_to_the_mean_probability_of_all_gates() -> None:
    edit = made(sites=("heads", "mlp"), layers=[0, 2])
    opens = torch.cat([gates.p_open(value)[edit.site(site).mask] for (site, _), value in edit.log_alphas().items()])
    torch.testing.assert_close(sum(edit.penalty("mean").values()), opens.mean())


def test_one_draw_gives_the_same_gates_in_every_pass_and_a_new_draw_others() -> None:
    edit, z = made(), torch.randn(1, 3, 4, 8)
    generator = torch.Generator().manual_seed(5)
    noise, other = edit.draw(generator), edit.draw(generator)
    assert torch.equal(apply(edit, z, noise=noise), apply(edit, z, noise=noise))
    assert not torch.equal(apply(edit, z, noise=noise), apply(edit, z, noise=other))


def test_restricted_parts_add_up_to_the_whole_edit() -> None:
    edit, z = made(), torch.randn(1, 3, 4, 8)
    whole = apply(edit, z) - z
    parts = sum(apply(edit.restricted(kinds=[kind]), z) - z for kind in ("additive", "multiplicative"))
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)
    heads = sum(apply(edit.restricted(heads=[(1, head)]), z) - z for head in range(4))
    torch.testing.assert_close(heads, whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(apply(edit.restricted(strength=0.5), z) - z, 0.5 * whole, rtol=1e-4, atol=1e-5)
    assert torch.equal(apply(edit.restricted(strength=0.0), z), z)


def test_restricting_leaves_the_original_alone() -> None:
    edit = made()
    before = {name: value.clone() for name, value in edit.tensors().items()}
    edit.restricted(heads=["L0H0"], strength=3.0)
    assert all(torch.equal(before[name], value) for name, value in edit.tensors().items())


def test_half_precision_activations_keep_their_dtype_and_float32_gates() -> None:
    edit, z = made(), torch.randn(1, 3, 4, 8).bfloat16()
    assert apply(edit, z).dtype == torch.bfloat16
    assert all(parameter.dtype == torch.float32 for parameter in edit.parameters())


def test_tensors_travel_and_damaged_ones_are_refused() -> None:
    edit = made(sites=("heads", "mlp"))
    twin = JoLA(SHAPE, sites=("heads", "mlp")).load_tensors(edit.tensors())
    assert all(torch.equal(value, twin.tensors()[name]) for name, value in edit.tensors().items())
    damaged = {name: value.clone() for name, value in edit.tensors().items()}
    damaged["additive.heads"][0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="additive.heads.*finite"):
        twin.load_tensors(damaged)
    with pytest.raises(ValueError, match="missing.*mask.mlp"):
        twin.load_tensors({name: value for name, value in edit.tensors().items() if name != "mask.mlp"})
    with pytest.raises(ValueError, match="mask.heads: expected"):
        twin.load_tensors(edit.tensors() | {"mask.heads": torch.ones(3, 5, dtype=torch.bool)})


@pytest.mark.parametrize("field", ["gates", "operations", "inference"])
def test_unknown_switches_are_named(field: str) -> None:
    # Called apart, since these tests also check annotations, and those would be first to refuse.
    with pytest.raises(ValueError, match=f"{field} must be one of .*; got 'other'"):
        _check_switches(**{field: "other"})


@pytest.mark.parametrize(
    ("switches", "field"),
    [
        ({"sites": ()}, "sites"),
        ({"layers": [3]}, "layers"),
        ({"heads": ["3.7"]}, "L3H7"),
        ({"heads": ["L3H0"]}, "L3H0"),
        ({"layers": []}, "nothing is left"),
    ],
)
def test_bad_switches_are_named(switches: dict[str, object], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        JoLA(SHAPE, **switches)  # type: ignore[arg-type]


@pytest.mark.parametrize("operations", ["both", "add", "multiply"])
def test_what_acts_at_inference_is_what_passes_are_prepared_with(operations: str) -> None:
    edit = JoLA(HeadShape(2, 4, 2, 8, 32), operations=operations, heads=["L0H1", "L1H3"])  # type: ignore[arg-type]
    edit.initialise(torch.Generator().manual_seed(0))
    acting = edit.at_inference("heads")
    assert not any(vector.requires_grad for vector in acting.values())
    for layer, (scale, shift) in enumerate(edit.prepare(Context(), torch.float32)["heads"]):
        for found, prepared in ((acting.get("multiplicative"), scale), (acting.get("additive"), shift)):
            assert (found is None) == (prepared is None)
            if found is not None and prepared is not None:
                assert torch.equal(found[layer] + (found is acting.get("multiplicative")), prepared)


def test_heads_share_a_key_value_head_in_groups() -> None:
    assert HeadShape(1, 8, 2, 4, 32).group == 4 and HeadShape(1, 8, 1, 4, 32).group == 8
    assert HeadShape(1, 8, 8, 4, 32).group == 0  # every head has its own
