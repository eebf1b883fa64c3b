"""The lens: the derivative of the final norm is the model's, and its logits are what the model unembeds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from jola_interp.analysis.lens import Lens, LinearNorm, component
from jola_interp.analysis.readout import readout
from jola_interp.models import Model, _unwrapped
from tests.conftest import ARCHITECTURES
from tests.readout_by_hand import MORE, run_of, small

MakeModel = Callable[..., Model]


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *MORE])
def test_derivative_of_the_final_norm_is_that_of_the_model(build: MakeModel, architecture: str) -> None:
    model = build(architecture)
    module = component(model, "ln_final")
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


def test_lens_of_a_booted_model_reads_the_plain_modules(build: MakeModel) -> None:
    plain, booted = build("gemma3"), build("gemma3")
    assert booted.bridge is not None
    one, other = Lens(plain), Lens(booted)
    assert one.modules.keys() == other.modules.keys() == {"final", 0, 1}
    v = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(one.logits(one.through(v, 1)), other.logits(other.through(v, 1)))
    assert isinstance(_unwrapped(other.modules["final"]), type(one.modules["final"]))
    assert F.cosine_similarity(one.norms[1].weight, other.norms[1].weight, dim=0) == pytest.approx(1)
