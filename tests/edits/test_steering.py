"""Steering adds a fixed vector to the residual stream; a reading vector is what tells right from wrong, signed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from jola_interp.backends import attach
from jola_interp.edits import Context, HeadShape
from jola_interp.edits.repe import Steering, reading_vectors
from jola_interp.models import Model
from jola_interp.runs import edit_from_settings, edit_settings

MakeModel = Callable[..., Model]
SHAPE = HeadShape(layers=3, heads=4, kv_heads=2, d_head=8, d_model=32)
IDS = torch.tensor([[5, 17, 200, 33, 90, 12, 7]])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(shape: HeadShape = SHAPE, strength: tuple[float, ...] = (0.0, 3.0, -2.0)) -> Steering:
    direction = torch.nn.functional.normalize(torch.randn(shape.layers, shape.d_model, generator=seeded()), dim=-1)
    return Steering(shape).steer(direction, torch.tensor(strength))


def apply(edit: Steering, h: Tensor, layer: int = 1) -> Tensor:
    state = Context()
    state.prepared = edit.prepare(state, h.dtype)
    result: Tensor = edit(h, layer, "residual", state)
    return result


def logits(model: Model, edit: Steering | None = None, backend: Any = "hooks") -> Tensor:
    with torch.no_grad():
        if edit is None:
            return model.logits(IDS, torch.ones_like(IDS))
        with attach(edit, model, backend):
            return model.logits(IDS, torch.ones_like(IDS))


# -- the edit ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_edit_is_the_equation(dtype: torch.dtype) -> None:
    edit, h = made(), torch.randn(2, 5, 32, generator=seeded(1)).to(dtype)
    for layer, strength in ((1, 3.0), (2, -2.0)):
        expected = h + (strength * edit.direction[layer]).to(dtype)
        assert torch.equal(apply(edit, h, layer), expected)


def test_only_layers_with_a_strength_are_edited_and_nothing_trains() -> None:
    edit = made()
    assert edit.points() == [(1, "residual"), (2, "residual")]
    assert Steering(SHAPE).points() == []
    assert edit.n_parameters() == 0
    assert edit.parameter_groups() == {}
    assert list(edit.parameters()) == []


def test_both_backends_steer_alike_and_leave_the_model_as_it_was(make_model: MakeModel) -> None:
    model, other = make_model(attention="eager"), make_model(attention="eager")
    edit = made(model.head_shape, (2.0, -1.0))
    before = logits(model)
    hooked = logits(model, edit)
    assert torch.equal(logits(model), before)
    assert float((hooked - before).abs().max()) > 0.1
    torch.testing.assert_close(logits(other, edit, "lens"), hooked, atol=1e-6 * float(hooked.abs().max()), rtol=0)


def test_steering_the_last_layer_moves_the_stream_that_is_unembedded(make_model: MakeModel) -> None:
    model = make_model(attention="eager")
    edit = made(model.head_shape, (0.0, 3.0))
    inner = model.hf.model  # type: ignore[attr-defined]
    streams: list[Tensor] = []
    handle = inner.norm.register_forward_pre_hook(lambda _, args: streams.append(args[0]))
    logits(model)
    logits(model, edit)
    handle.remove()
    torch.testing.assert_close(streams[1], streams[0] + 3.0 * edit.direction[1])


@pytest.mark.parametrize("strength", [0.0, 0.5, -1.0])
def test_strength_scales_the_push(strength: float) -> None:
    edit, h = made(), torch.randn(2, 5, 32, generator=seeded(1))
    part = edit.restricted(strength=strength)
    torch.testing.assert_close(part.strength, strength * edit.strength)
    torch.testing.assert_close(apply(part, h), h + strength * (apply(edit, h) - h))
    assert bool(part.points()) == (strength != 0)


def test_settings_and_tensors_make_an_equal_edit() -> None:
    edit = made()
    tensors = {name: value.clone() for name, value in edit.tensors().items()}
    again = edit_from_settings(edit_settings(edit), SHAPE).load_tensors(tensors)
    h = torch.randn(2, 5, 32, generator=seeded(1))
    assert again.points() == edit.points()
    assert torch.equal(apply(again, h), apply(edit, h))  # type: ignore[arg-type]


def test_parts_and_tensors_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="heads must be None"):
        made().restricted(heads=["L0H1"])
    with pytest.raises(ValueError, match="kinds must be None"):
        made().restricted(kinds=["additive"])
    with pytest.raises(ValueError, match="strength must be a finite number, got inf"):
        made().restricted(strength=float("inf"))
    with pytest.raises(ValueError, match=r"direction: expected .*\[3, 32\], found .*\[2, 32\]"):
        Steering(SHAPE).steer(torch.zeros(2, 32), torch.zeros(2))
    with pytest.raises(ValueError, match="strength: expected finite numbers"):
        Steering(SHAPE).steer(torch.zeros(3, 32), torch.tensor([0.0, torch.nan, 0.0]))


# -- reading vectors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_a_planted_direction_is_found_again_with_its_sign(sign: float, spread: float) -> None:
    """Differences a_i·v + noise, a_i > 0; with spread 0 all of a layer's signal is in their mean."""
    planted = torch.nn.functional.normalize(torch.randn(4, 64, generator=seeded()), dim=-1)
    lengths = sign * (2 + spread * torch.randn(100, 4, 1, generator=seeded(1)))
    noise = 0.1 * torch.randn(100, 4, 64, generator=seeded(2))
    found = reading_vectors(lengths * planted + noise)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(4))
    assert float((found * sign * planted).sum(-1).min()) > 0.99


def test_it_is_the_top_eigenvector_of_the_second_moment_about_0() -> None:
    differences = torch.randn(50, 2, 16, generator=seeded()) + torch.arange(16) / 8
    for layer, vector in enumerate(reading_vectors(differences)):
        each = differences[:, layer].double()
        values, vectors = torch.linalg.eigh(each.mT @ each)
        assert values[-1] > 1.1 * values[-2]
        assert float((vectors[:, -1] @ vector.double()).abs()) == pytest.approx(1, abs=1e-6)


def test_which_of_a_pair_comes_first_changes_the_sign_alone_and_most_pairs_decide_it() -> None:
    differences = torch.randn(51, 1, 16, generator=seeded()) + 1
    torch.testing.assert_close(reading_vectors(-differences), -reading_vectors(differences))
    axis = torch.zeros(5, 1, 16)
    axis[:, 0, 3] = torch.tensor([1.0, 1.0, 1.0, -9.0, -9.0])  # the mean says −, three of five pairs say +
    assert reading_vectors(axis)[0, 3] == 1
    axis[2, 0, 3] = 0
    assert reading_vectors(axis)[0, 3] == -1  # two against two: the mean


def test_a_layer_without_differences_is_refused() -> None:
    differences = torch.randn(5, 2, 16, generator=seeded())
    differences[:, 1] = 0
    with pytest.raises(ValueError, match="those of layer 1 are all 0"):
        reading_vectors(differences)
