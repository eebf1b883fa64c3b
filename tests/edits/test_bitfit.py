"""BitFit trains what a bias of the model would be, and an edit at W_O's output is a bias of W_O."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import jola_interp as ji
from jola_interp.backends import attach
from jola_interp.edits.base import HeadShape
from jola_interp.edits.bitfit import ALL, QKV, BitFit
from jola_interp.methods.weights import WEIGHTS
from jola_interp.models import Model, load_model
from jola_interp.runs import Run, edit_from_settings, edit_settings
from jola_interp.tasks import Task
from tests.conftest import ARCHITECTURES, build_hf

MakeModel = Callable[..., Model]
IDS = torch.tensor([[256, 256, 256, 5, 17, 80, 3], [9, 44, 2, 71, 8, 120, 6]])
MASK = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
METHODS = {found.name: found for found in WEIGHTS}
OWN = {
    "llama": {
        "query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj",
        "attention": "self_attn.o_proj", "mlp": "mlp.down_proj", "up": "mlp.up_proj", "gate": "mlp.gate_proj",
        "norm1": "input_layernorm", "norm2": "post_attention_layernorm",
    },
    "gpt2": {
        "attention": "attn.c_proj", "mlp": "mlp.c_proj", "up": "mlp.c_fc", "norm1": "ln_1", "norm2": "ln_2",
    },
}  # fmt: skip
"""Site to the module whose output it is, in a block of the plain model."""
BLOCKS = {"llama": "model.layers", "gpt2": "transformer.h"}
EIGHT = {
    "llama-8b": ("LlamaConfig", 128256, 4096, 32, 32, 8, 14336),
    "qwen-7b": ("Qwen2Config", 152064, 3584, 28, 28, 4, 18944),
}


def made(model: Model, seed: int = 0, biases: str = "qkv") -> BitFit:
    """Biases that are not 0."""
    edit = METHODS["bitfit"](biases=biases).make(model)
    assert isinstance(edit, BitFit)
    generator = torch.Generator().manual_seed(seed)
    edit.initialise(generator)
    for bias in edit.b.values():
        bias.data.normal_(0, 0.3, generator=generator)
    return edit


def logits_and_gradients(model: Model, edit: BitFit, backend: Any) -> tuple[Tensor, dict[str, Tensor]]:
    with attach(edit, model, backend) as attached:
        logits = model.logits(IDS, MASK)
        loss = torch.logsumexp(logits, -1)[MASK.bool()].mean()
        gradients = torch.autograd.grad(loss, list(edit.b.values()))
    attached.check_live()
    return logits.detach()[MASK.bool()], dict(zip(edit.b, gradients, strict=True))


def largest_difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def with_biases(hf: Any, architecture: str, edit: BitFit) -> dict[tuple[str, int], nn.Parameter]:
    """Give a plain model real biases of those values; to an RMSNorm, which has none, a forward that adds it."""
    own: dict[tuple[str, int], nn.Parameter] = {}
    for site, bias in edit.b.items():
        for layer, value in enumerate(bias.detach()):
            module = hf.get_submodule(f"{BLOCKS[architecture]}.{layer}.{OWN[architecture][site]}")
            held = getattr(module, "bias", None)
            added = nn.Parameter(value.flatten() + (0 if held is None else held.detach()))
            own[site, layer] = module.bias = added
            if isinstance(module, LlamaRMSNorm):
                module.forward = partial(normed, module.forward, added)
    return own


def normed(forward: Callable[[Tensor], Tensor], bias: Tensor, x: Tensor) -> Tensor:
    return forward(x) + bias


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_logits_and_gradients_are_those_of_biases_of_the_model(make_model: MakeModel, architecture: str) -> None:
    model, twin = make_model(architecture, "eager"), make_model(architecture, "eager")
    edit = made(model, biases="all" if architecture == "llama" else "attention,mlp,up,norm1,norm2")
    own = with_biases(twin.hf, architecture, edit)
    expected = twin.logits(IDS, MASK)
    torch.logsumexp(expected, -1)[MASK.bool()].mean().backward()
    found, gradients = logits_and_gradients(model, edit, "hooks")
    assert set(edit.b) == set(OWN[architecture])
    assert largest_difference(found, expected.detach()[MASK.bool()]) <= 1e-6
    for (site, layer), parameter in own.items():
        assert parameter.grad is not None
        gradient = gradients[site][layer].flatten()
        floor = 1e-6 * max(float(value.abs().max()) for value in gradients.values())
        # Softmax does not see a key's bias: those gradients are rounding alone.
        assert float((gradient - parameter.grad).abs().max()) <= max(1e-5 * float(parameter.grad.abs().max()), floor)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("biases", ["qkv", "all"])
def test_backends_agree_or_the_fused_ones_name_the_other(make_model: MakeModel, architecture: str, biases: str) -> None:
    plain, booted = make_model(architecture, "eager"), make_model(architecture, "eager")
    edit = made(plain, biases=biases)
    assert booted.bridge is not None
    assert edit_settings(edit) == edit_settings(made(booted, biases=biases))
    found, gradients = logits_and_gradients(booted, edit, "lens")
    if architecture in ("gpt2", "pythia", "phi3"):
        with (
            pytest.raises(ValueError, match="backend='lens' splits those that are fused"),
            attach(edit, plain, "hooks"),
        ):
            pass
        return
    expected, others = logits_and_gradients(plain, edit, "hooks")
    assert largest_difference(found, expected) <= 1e-6
    largest = max(float(value.abs().max()) for value in others.values())
    assert max(float((gradients[site] - others[site]).abs().max()) for site in others) <= 1e-5 * largest


def test_sites_that_an_architecture_lacks_are_left_out_of_all_alone(make_model: MakeModel) -> None:
    lacking = {"gpt2": {"gate"}, "pythia": {"gate"}, "olmo2": {"norm1", "norm2"}, "llama": set(), "phi3": set()}
    for architecture, absent in lacking.items():
        model = make_model(architecture)
        edit = METHODS["bitfit"](biases="all").make(model)
        assert {site for _, site in edit.points()} == set(ALL) - absent
        for site in absent:
            with pytest.raises(ValueError, match=f"has no {site}"):
                METHODS["bitfit"](biases=f"query,{site}").make(model)


def test_fused_projections_are_refused_before_training(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="backend='lens'"):
        ji.fit(make_model("gpt2"), toy_task, METHODS["bitfit"], backend="hooks", out=tmp_path / "run", wrapper="plain")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", EIGHT)
def test_counts_are_the_formulas(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    kind, vocabulary, width, layers, heads, kv_heads, f = EIGHT[name]
    config = getattr(transformers, kind)(
        vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, intermediate_size=f, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        model = load_model(transformers.AutoModelForCausalLM.from_config(config), tokenizer=tokenizer)
    s = model.head_shape
    qkv = s.layers * (s.heads + 2 * s.kv_heads) * s.d_head
    assert METHODS["bitfit"].n_parameters(model) == qkv
    assert METHODS["bitfit"](biases="all").n_parameters(model) == qkv + s.layers * (4 * s.d_model + 2 * f)
    assert METHODS["red"].n_parameters(model) == 2 * s.layers * s.d_model
    assert METHODS["o-proj-bias"].n_parameters(model) == s.layers * s.d_model
    if name == "llama-8b":
        assert qkv == 196_608


def test_a_new_edit_is_the_identity_bit_for_bit(make_model: MakeModel) -> None:
    model = make_model()
    edit = METHODS["bitfit"](biases="all").make(model).initialise(torch.Generator().manual_seed(0))
    with torch.no_grad():
        base = model.logits(IDS, MASK)
        with attach(edit, model, "hooks"):
            assert torch.equal(model.logits(IDS, MASK), base)
        assert torch.equal(model.logits(IDS, MASK), base)
    assert edit.n_parameters() == sum(parameter.numel() for parameter in edit.parameters())


def test_parts_and_shares(make_model: MakeModel) -> None:
    model = make_model()
    edit = made(model, biases="all")
    half, none = edit.restricted(strength=0.5), edit.restricted(kinds=["multiplicative"])
    for site, bias in edit.b.items():
        assert torch.equal(half.tensors()[f"b.{site}"], bias / 2)
        assert not none.tensors()[f"b.{site}"].any()
    assert torch.equal(edit.restricted(kinds=["additive"]).tensors()["b.key"], edit.b["key"])
    for options, message in (
        ({"heads": ["L0H0"]}, "heads must be None for BitFit"),
        ({"kinds": ["shared"]}, "kinds must be a subset"),
        ({"strength": float("nan")}, "strength must be a finite number"),
    ):
        with pytest.raises(ValueError, match=message):
            edit.restricted(**options)  # type: ignore[arg-type]


def test_settings_and_tensors_make_an_equal_edit(make_model: MakeModel) -> None:
    model = make_model()
    edit = made(model, biases="all")
    again = edit_from_settings(edit_settings(edit), model.head_shape).load_tensors(edit.tensors())
    assert edit_settings(again) == edit_settings(edit)
    assert all(torch.equal(again.tensors()[name], value) for name, value in edit.tensors().items())
    shapes = {name: list(value.shape) for name, value in edit.tensors().items()}
    assert shapes["b.query"] == [2, 4, 8]
    assert shapes["b.key"] == shapes["b.value"] == [2, 2, 8]
    assert shapes["b.up"] == [2, 1, 48]


def test_bad_biases_are_named() -> None:
    shape = HeadShape(2, 4, 2, 8, 32)
    assert {site for _, site in BitFit(shape).points()} == set(QKV)
    for options, message in (
        ({"biases": "none"}, "biases must be qkv, all, or some of query, .*; got 'none'"),
        ({"biases": []}, "biases must be qkv"),
        ({"biases": "all"}, "d_mlp must be the width of the MLP"),
        ({"biases": ["gate"], "d_mlp": 0}, "d_mlp must be the width of the MLP"),
    ):
        with pytest.raises(ValueError, match=message):
            BitFit(shape, **options)  # type: ignore[arg-type]


def test_a_run_trains_saves_and_loads(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    model, other = make_model(), make_model()
    weights = {name: value.clone() for name, value in model.hf.state_dict().items()}
    options: dict[str, Any] = {"batch_size": 4, "wrapper": "plain", "max_steps": 3, "max_new_tokens": 2, "lr": 1e-2}
    for name in ("one", "two"):
        run = ji.fit(model, toy_task, METHODS["bitfit"](biases="all"), out=tmp_path / name, backend="hooks", **options)
    for file in ("edit.safetensors", "config.json", "metrics.jsonl", "scores.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert all(bool(value.ne(0).any()) for value in run.edit.tensors().values())
    assert all(torch.equal(value, weights[name]) for name, value in model.hf.state_dict().items())
    with torch.no_grad(), Run.load(run.path).attach(model), attach(run.edit, other, "hooks"):
        assert torch.equal(model.logits(IDS, MASK), other.logits(IDS, MASK))


def test_o_proj_bias_is_a_bias_of_o_proj(make_model: MakeModel) -> None:
    model, twin = make_model("llama"), make_model("llama")
    edit = METHODS["o-proj-bias"].make(model).initialise(torch.Generator().manual_seed(0))
    (offset,) = edit.parameters()
    assert not offset.any()
    biases = [twin.o_proj(layer) for layer in range(twin.head_shape.layers)]
    for layer in biases:
        layer.bias = nn.Parameter(torch.zeros(twin.head_shape.d_model))
    optimizers = [torch.optim.AdamW(edit.parameters(), 1e-2), torch.optim.AdamW([o.bias for o in biases], 1e-2)]
    with attach(edit, model, "hooks"):
        for _ in range(3):
            found, expected = model.logits(IDS, MASK), twin.logits(IDS, MASK)
            assert largest_difference(found.detach(), expected.detach()) <= 1e-6
            for logits in (found, expected):
                torch.logsumexp(logits, -1)[MASK.bool()].mean().backward()
            assert offset.grad is not None
            gradient = torch.stack([o.bias.grad for o in biases])[:, None]  # type: ignore[misc]
            assert largest_difference(offset.grad, gradient) <= 1e-6
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    trained = torch.stack([o.bias.detach() for o in biases])[:, None]
    assert largest_difference(offset.detach(), trained) <= 1e-6


def test_a_wrapped_model_counts_as_a_plain_one(make_model: MakeModel) -> None:
    plain, booted = make_model("phi3"), make_model("phi3")
    assert booted.bridge is not None
    for found in WEIGHTS:
        assert found.n_parameters(plain) == found.n_parameters(booted)
    assert build_hf("phi3").num_parameters() == METHODS["full"].n_parameters(booted)
