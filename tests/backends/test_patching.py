"""TransformerLens' own patching and attribution tools, with a Run: what they say of it is what its edit does.

    with run.attach(model, backend="lens"):
        _, edited = model.bridge.run_with_cache(ids)
    patching.get_act_patch_attn_head_out_all_pos(model.bridge, ids, edited, metric)     # [layer, head]

puts the z of single heads as the edited run has them (Δz total) into the base run. The tools pass no attention mask:
tokens must be unpadded.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens import patching
from transformer_lens.tools.analysis.attribution_patching import attribution_patch, cache_activation_and_gradient

import jola_interp as ji
from jola_interp import export
from jola_interp.models import Model, load_model
from jola_interp.runs import Run
from jola_interp.tasks import Task
from tests.conftest import build_hf

MakeModel = Callable[..., Model]
LAYERS, HEADS = 3, 4
IDS = torch.tensor([[12, 40, 7, 5, 17, 80, 3], [9, 44, 2, 71, 8, 120, 6]])
OTHERS = torch.tensor([[12, 40, 7, 55, 17, 80, 3], [9, 44, 2, 71, 88, 120, 6]])
CLOSED = ((0, 1), (1, 2), (2, 0))


def metric(logits: Tensor) -> Tensor:
    return (logits[:, -1, 5] - logits[:, -1, 9]).mean()


@pytest.fixture
def trained(tokenizer: Any, toy_task: Task, tmp_path: Path) -> Callable[..., tuple[Run, Model]]:
    """A Run of three layers, some heads of which the edit leaves alone, and its model."""

    def train(architecture: str = "llama", dtype: torch.dtype = torch.float32) -> tuple[Run, Model]:
        depth = "n_layer" if architecture == "gpt2" else "num_hidden_layers"
        model = load_model(build_hf(architecture, **{depth: LAYERS}).to(dtype), tokenizer=tokenizer)
        open_heads = [(i, j) for i in range(LAYERS) for j in range(HEADS) if (i, j) not in CLOSED]
        edit = ji.JoLA(model.head_shape, heads=open_heads)
        options: Any = {"max_steps": 3, "lr": 0.3, "wrapper": "plain", "evaluate": False}
        with torch.enable_grad():
            return ji.fit(model, toy_task, edit, backend="hooks", out=tmp_path / architecture, **options), model

    return train


def cache_of(run: Run, model: Model, **part: Any) -> Any:
    with torch.no_grad(), run.attach(model, backend="lens", **part):
        return model.bridge.run_with_cache(IDS)[1]


@torch.no_grad()
def edited(run: Run, model: Model, **part: Any) -> Tensor:
    with run.attach(model, backend="lens", **part):
        logits: Tensor = model.bridge(IDS)
    return logits


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "pythia"])
def test_patching_a_head_is_the_edit_of_that_head(trained: Callable[..., tuple[Run, Model]], architecture: str) -> None:
    """Where all below is the base model: in layer 0 of the whole edit, and in the only edited layer of a part."""
    run, model = trained(architecture)
    sweep = partial(patching.get_act_patch_attn_head_out_all_pos, model.bridge, IDS, patching_metric=metric)
    alone = torch.tensor([[metric(edited(run, model, heads=[(i, j)])) for j in range(HEADS)] for i in range(LAYERS)])
    base = metric(model.bridge(IDS))
    assert [tuple(unit) for unit in (alone == base).nonzero().tolist()] == list(CLOSED)
    whole = sweep(clean_cache=cache_of(run, model))
    assert torch.equal(whole[0], alone[0])
    assert not torch.equal(whole, alone)  # further up, z has also moved by what is below
    for layer in range(LAYERS):
        part = cache_of(run, model, heads=[(layer, head) for head in range(HEADS)])
        assert torch.equal(sweep(clean_cache=part)[layer], alone[layer])


@torch.no_grad()
def test_all_heads_together_are_the_edited_run(trained: Callable[..., tuple[Run, Model]]) -> None:
    run, model = trained()
    cache = cache_of(run, model)
    names = [f"blocks.{layer}.attn.hook_z" for layer in range(LAYERS)]
    hooks = [(name, lambda z, hook, value=cache[name]: value) for name in names]  # noqa: ARG005
    whole = edited(run, model)
    assert torch.equal(model.bridge.run_with_hooks(IDS, fwd_hooks=hooks), whole)
    assert not torch.equal(model.bridge(IDS), whole)


@torch.no_grad()
def test_in_the_last_layer_only_the_position_that_is_read_matters(trained: Callable[..., tuple[Run, Model]]) -> None:
    run, model = trained()
    cache = cache_of(run, model)
    everywhere = patching.get_act_patch_attn_head_out_all_pos(model.bridge, IDS, cache, metric)
    places = patching.get_act_patch_attn_head_out_by_pos(model.bridge, IDS, cache, metric)  # [layer, pos, head]
    base = metric(model.bridge(IDS))
    torch.testing.assert_close(places[-1, -1], everywhere[-1])
    torch.testing.assert_close(places[-1, :-1], base.expand_as(places[-1, :-1]))
    assert (places[0, :-1] - base).abs().max() > 1e-3


@torch.no_grad()
def test_a_path_from_a_head_that_is_left_alone_carries_nothing(trained: Callable[..., tuple[Run, Model]]) -> None:
    run, model = trained()
    clean, corrupted = cache_of(run, model), model.bridge.run_with_cache(IDS)[1]
    base = metric(model.bridge(IDS))
    for head in range(HEADS):
        found = patching.get_act_patch_direct_path(
            model.bridge, IDS, clean, corrupted, metric, src_layer=0, src_head=head, verbose=False
        )
        moved = (found[1:] - base).abs().max()  # queries of their own for each head: sums in another order
        assert moved <= 1e-6 if (0, head) in CLOSED else moved > 1e-3


def test_attribution_patching_sees_the_edit_as_the_folded_model(
    trained: Callable[..., tuple[Run, Model]], tokenizer: Any, tmp_path: Path
) -> None:
    """(z'₁ − z'₂)·∂/∂z' = (z₁ − z₂)·∂/∂z, with z' = (1 + g_m m) z + g_a a: a fold into W_O changes no head's score."""
    run, model = trained(dtype=torch.float64)
    plain = load_model(build_hf("llama", num_hidden_layers=LAYERS).double(), tokenizer=tokenizer)
    folded = load_model(export.fold(run, tmp_path / "folded", model=plain).path, dtype="float64", device="cpu")
    with run.attach(model, backend="lens"):
        found = scores(model)
    expected, base = scores(folded), scores(model)
    largest = max(map(abs, expected.values()))
    assert found.keys() == expected.keys()
    assert max(abs(found[node] - expected[node]) for node in expected) <= 1e-5 * largest  # norms are in float32
    assert max(abs(base[node] - expected[node]) for node in expected) >= 1e-2 * largest


def scores(model: Model) -> dict[Any, float]:
    bridge = differentiable(model)
    return dict(attribution_patch(bridge, IDS, OTHERS, metric).node_scores)


def differentiable(model: Model) -> Any:
    """All weights are frozen, and TransformerLens' gradients need something to reach back to."""
    bridge = model.bridge
    model.hf.enable_input_require_grads()
    return bridge


def test_attribution_is_the_derivative_by_the_strength_of_the_edit(trained: Callable[..., tuple[Run, Model]]) -> None:
    """d metric/ds at 0 of z + s·Δz(z) = Σ_heads Δz·∂metric/∂z, with Δz = edit(z) − z on the base run's z (local)."""
    run, model = trained(dtype=torch.float64)
    edits = dict(run.fwd_hooks())
    found = cache_activation_and_gradient(differentiable(model), IDS, metric)

    strength = torch.zeros((), dtype=torch.float64, requires_grad=True)

    def partly(z: Tensor, hook: Any, edit: Any) -> Tensor:  # noqa: ARG001
        return z + strength * (edit(z) - z)

    hooks = [(name, partial(partly, edit=edit)) for name, edit in edits.items()]
    (expected,) = torch.autograd.grad(metric(model.bridge.run_with_hooks(IDS, fwd_hooks=hooks)), [strength])
    total = 0.0
    for name, edit in edits.items():
        z, gradient = found.activations[name], found.gradients[name]
        assert gradient is not None
        total += float(((edit(z) - z) * gradient).sum().detach())
    assert total == pytest.approx(float(expected), rel=1e-5) and abs(total) > 1e-2


def test_gradients_are_those_of_the_edits_own_vectors(trained: Callable[..., tuple[Run, Model]]) -> None:
    """∂metric/∂a = g_a · Σ_positions ∂metric/∂z', as TransformerLens caches it with the edit attached."""
    run, model = trained(dtype=torch.float64)
    names = [f"blocks.{layer}.attn.hook_z" for layer in range(LAYERS)]
    edit = run.edit.restricted().requires_grad_(True)
    with ji.attach(edit, model, backend="lens"):
        found = cache_activation_and_gradient(differentiable(model), IDS, metric)
        (expected,) = torch.autograd.grad(metric(model.bridge(IDS)), [edit.site("heads").vectors["additive"]])
    gates = run.edit.site("heads").gate_values(run.edit.inference, {})["additive"].detach()
    pulled = torch.stack([found.gradients[name].sum((0, 1)) for name in names])  # type: ignore[union-attr]
    torch.testing.assert_close((pulled * gates[..., None] * run.edit.site("heads").mask[..., None]).float(), expected)
