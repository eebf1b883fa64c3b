"""LoRA is peft's LoRA to the last digit, and leaves the model as it found it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

import jola_interp as ji
from jola_interp.backends import attach
from jola_interp.callbacks import Callback
from jola_interp.edits.jola import JoLA
from jola_interp.edits.lora import LoRA
from jola_interp.methods.weights import WEIGHTS
from jola_interp.models import Model, load_model
from jola_interp.runs import Run, edit_from_settings, edit_settings
from jola_interp.tasks import Task
from tests.conftest import ARCHITECTURES, build_hf

MakeModel = Callable[..., Model]
IDS = torch.tensor([[5, 17, 200, 33, 90, 12, 7], [9, 44, 2, 71, 8, 120, 6]])
METHOD = {found.name: found for found in WEIGHTS}["lora"]
SMALL: dict[str, Any] = {"batch_size": 4, "wrapper": "plain", "backend": "hooks", "patience": None}


def made(hf: nn.Module, seed: int = 0, **options: Any) -> LoRA:
    """A LoRA whose B is not 0, so that it acts and A has a gradient."""
    generator = torch.Generator().manual_seed(seed)
    edit = LoRA.of(hf, **options).initialise(generator)
    for up in edit.B.values():
        up.data.normal_(0, 0.1, generator=generator)
    return edit


def stock(hf: nn.Module, edit: LoRA, **options: Any) -> Any:
    """A copy of the model under peft itself, from the same starting values."""
    config = LoraConfig(r=edit.r, lora_alpha=int(edit.alpha), **({"target_modules": "all-linear"} | options))
    peft_model = get_peft_model(copy.deepcopy(hf), config)
    for name, parameter in stock_parameters(peft_model).items():
        parameter.data.copy_(edit.tensors()[name])
    return peft_model


def stock_parameters(peft_model: Any) -> dict[str, nn.Parameter]:
    """peft's parameters, by our names."""
    found = {}
    for name, parameter in peft_model.named_parameters():
        if ".lora_" in name:
            module, _, rest = name.removeprefix("base_model.model.").partition(".lora_")
            found[f"{rest[0]}.{module}"] = parameter
    return found


def loss_of(hf: Any) -> tuple[Tensor, Tensor]:
    logits = hf(input_ids=IDS).logits
    return logits.detach(), torch.logsumexp(logits.float(), -1).mean()


def largest_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max(
        float((found[name].float() - value.float()).abs().max() / value.float().abs().max().clamp(min=1e-30))
        for name, value in expected.items()
    )


def everything_of(hf: nn.Module) -> dict[str, Any]:
    """What an edit could leave changed: module and parameter objects, flags, hooks, attributes."""
    state: dict[str, Any] = {}
    for name, module in hf.named_modules():
        hooks = {key: list(value) for key, value in vars(module).items() if key.endswith("hooks") and value is not None}
        state[name] = (id(module), module.training, list(vars(module)), hooks, list(module._modules))
    flags = {name: (id(p), p.requires_grad, p._version) for name, p in hf.named_parameters()}
    return {"modules": state, "parameters": flags}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi3"])
def test_three_steps_are_those_of_stock_peft(architecture: str, dtype: torch.dtype) -> None:
    hf = build_hf(architecture).to(dtype).requires_grad_(False)
    edit = made(hf, r=4, alpha=12)
    other = stock(hf, edit)
    own = {"edit": torch.optim.AdamW(edit.parameters(), 1e-2)}
    own["stock"] = torch.optim.AdamW(stock_parameters(other).values(), 1e-2)
    with edit.installed(hf):
        for _ in range(3):
            (logits, loss), (expected, expected_loss) = loss_of(hf), loss_of(other)
            assert largest_difference({"": logits}, {"": expected}) <= 1e-6
            loss.backward()
            expected_loss.backward()
            gradients = {name.replace("/", "."): p.grad for name, p in edit.named_parameters()}
            theirs = {name: p.grad for name, p in stock_parameters(other).items()}
            assert largest_difference(gradients, theirs) <= 1e-6  # type: ignore[arg-type]
            assert all(float(gradient.abs().max()) > 0 for gradient in theirs.values())  # type: ignore[union-attr]
            for optimizer in own.values():
                optimizer.step()
                optimizer.zero_grad()
    trained = {name: p.data for name, p in stock_parameters(other).items()}
    assert largest_difference(edit.tensors(), trained) <= 1e-6
    assert all(value.dtype == torch.float32 for value in edit.tensors().values())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_linear_is_what_peft_takes_it_to_be(architecture: str) -> None:
    hf = build_hf(architecture)
    edit = LoRA.of(hf)
    found = stock(hf, edit)
    assert {name.partition(".")[2] for name in stock_parameters(found)} == set(edit.sizes)
    assert edit.n_parameters() == sum(p.numel() for p in stock_parameters(found).values())
    assert len(edit.sizes) % 2 == 0  # two blocks, alike


def test_named_targets_are_those_of_peft() -> None:
    hf = build_hf("llama")
    edit = made(hf, targets="q_proj, mlp.down_proj")
    other = stock(hf, edit, target_modules=["q_proj", "mlp.down_proj"])
    assert len(edit.sizes) == 4
    with torch.no_grad(), edit.installed(hf):
        assert torch.equal(loss_of(hf)[0], loss_of(other)[0])


def test_a_new_lora_is_the_identity_bit_for_bit_and_starts_as_peft_does() -> None:
    hf = build_hf("llama")
    edit = LoRA.of(hf, r=64).initialise(torch.Generator().manual_seed(0))
    with torch.no_grad():
        base = loss_of(hf)[0]
        with edit.installed(hf):
            assert torch.equal(loss_of(hf)[0], base)
    for name, (d_in, _) in edit.sizes.items():
        down = edit.tensors()[f"A.{name}"]
        layer = nn.Linear(d_in, 64, bias=False)
        nn.init.kaiming_uniform_(layer.weight, a=5**0.5, generator=torch.Generator().manual_seed(0))
        limit = layer.weight.detach().abs().max() * 1.01
        assert limit * 0.9 < float(down.abs().max()) < limit
        assert float(down.std()) == pytest.approx(float(limit / 3**0.5), rel=0.1)
    again = LoRA.of(hf, r=64).initialise(torch.Generator().manual_seed(0))
    assert all(torch.equal(again.tensors()[name], value) for name, value in edit.tensors().items())


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_leaving_restores_everything_also_by_an_exception(architecture: str) -> None:
    hf = build_hf(architecture)
    next(hf.parameters()).requires_grad_(False)  # the others are left to train: leaving must tell them apart
    linear = next(module for name, module in hf.named_modules() if name.endswith(("q_proj", "c_attn")))
    seen: list[int] = []
    linear.register_forward_hook(lambda *_: seen.append(1))
    linear.train()
    before, random, base = everything_of(hf), torch.get_rng_state(), loss_of(hf)[0]
    flags = {id(parameter): parameter.requires_grad for parameter in hf.parameters()}
    with pytest.raises(RuntimeError, match="in the middle"), made(hf).installed(hf):
        assert not torch.equal(loss_of(hf)[0], base)
        assert hasattr(hf, "peft_config")
        assert {id(p): p.requires_grad for p in hf.parameters()}.items() >= flags.items()
        raise RuntimeError("in the middle")
    assert everything_of(hf) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(loss_of(hf)[0], base)
    assert len(seen) == 3


def test_a_failing_injection_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    hf = build_hf("llama")
    before = everything_of(hf)

    def failing(*args: Any, **options: Any) -> None:
        inject_adapter_in_model(*args, **options)
        raise RuntimeError("half-way")

    monkeypatch.setattr(peft, "inject_adapter_in_model", failing)
    with pytest.raises(RuntimeError, match="half-way"), made(hf).installed(hf):
        pass
    assert everything_of(hf) == before


def test_hooks_act_on_the_whole_weight_in_whatever_order_they_come(make_model: MakeModel) -> None:
    """A head edit before or after LoRA equals the head edit on a model with B A added to its weights."""
    model, merged = make_model("llama"), make_model("llama")
    edit = made(model.hf)
    heads = JoLA(model.head_shape, gates="none", init_std=0.5).initialise(torch.Generator().manual_seed(1))
    for name in edit.sizes:
        linear = merged.hf.get_submodule(name)
        change = edit.tensors()[f"B.{name}"] @ edit.tensors()[f"A.{name}"]
        linear.weight.data += edit.alpha / edit.r * change
    with torch.no_grad():
        with attach(heads, merged, "hooks"):
            expected = loss_of(merged.hf)[0]
        for order in ([heads, edit], [edit, heads]):
            with attach(order, model, "hooks") as attached:
                assert largest_difference({"": loss_of(model.hf)[0]}, {"": expected}) <= 1e-5
            attached.check_live()
            with attach(order[0], model, "hooks"), attach(order[1], model, "hooks"):
                assert largest_difference({"": loss_of(model.hf)[0]}, {"": expected}) <= 1e-5


def test_a_share_of_the_change_is_what_strength_says() -> None:
    hf = build_hf("llama").double()
    edit, merged = made(hf).double(), build_hf("llama").double()
    for name in edit.sizes:
        change = edit.tensors()[f"B.{name}"] @ edit.tensors()[f"A.{name}"]
        merged.get_submodule(name).weight.data += 0.5 * edit.alpha / edit.r * change
    with torch.no_grad(), edit.restricted(strength=0.5).installed(hf):
        assert largest_difference({"": loss_of(hf)[0]}, {"": loss_of(merged)[0]}) <= 1e-6
    for options in ({"heads": ["L0H0"]}, {"kinds": ["additive"]}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} must be None for LoRA"):
            edit.restricted(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="strength must be a finite number"):
        edit.restricted(strength=float("inf"))


def test_settings_and_tensors_make_an_equal_edit(make_model: MakeModel) -> None:
    model = make_model("llama")
    edit = made(model.hf, r=3, alpha=5.0, targets=["q_proj", "up_proj"])
    again = edit_from_settings(edit_settings(edit), model.head_shape).load_tensors(edit.tensors())
    assert edit_settings(again) == edit_settings(edit)
    assert again.n_parameters() == edit.n_parameters() == sum(p.numel() for p in edit.parameters())
    with torch.no_grad():
        with edit.installed(model.hf):
            expected = loss_of(model.hf)[0]
        with again.installed(model.hf):
            assert torch.equal(loss_of(model.hf)[0], expected)


def test_count_for_llama_8b_is_the_formulas(tokenizer: PreTrainedTokenizerFast) -> None:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=128256, hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        intermediate_size=14336, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        model = load_model(transformers.AutoModelForCausalLM.from_config(config), tokenizer=tokenizer)
    s, f, r = model.head_shape, 14336, 8
    per_block = 2 * (s.d_model + s.heads * s.d_head) + 2 * (s.d_model + s.kv_heads * s.d_head) + 3 * (s.d_model + f)
    assert METHOD.n_parameters(model) == s.layers * r * per_block == 20_971_520


class Interrupt(Callback):
    def on_step(self, state: Any) -> None:
        if state.step == 2:
            raise KeyboardInterrupt


def test_a_run_trains_a_copy_resumes_to_the_same_bytes_and_loads(
    make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.hf.state_dict().items()}
    options = {**SMALL, "max_steps": 4, "max_new_tokens": 2, "lr": 1e-2}
    whole = ji.fit(model, toy_task, METHOD(r=2), out=tmp_path / "whole", **options)
    cut = ji.fit(model, toy_task, METHOD(r=2), out=tmp_path / "cut", callbacks=[Interrupt()], **options)
    assert cut.status == "interrupted"
    again = ji.fit(model, toy_task, METHOD(r=2), out=tmp_path / "cut", resume=True, **options)
    for file in ("edit.safetensors", "metrics.jsonl", "scores.json", "config.json"):
        assert (whole.path / file).read_bytes() == (again.path / file).read_bytes()
    assert all(torch.equal(value, before[name]) for name, value in model.hf.state_dict().items())
    assert any(bool(value.ne(0).any()) for name, value in whole.edit.tensors().items() if name.startswith("B."))
    other = make_model()
    with torch.no_grad(), Run.load(whole.path, model).attach(model), again.edit.installed(other.hf):
        assert torch.equal(loss_of(model.hf)[0], loss_of(other.hf)[0])


def test_what_cannot_be_adapted_is_refused_before_anything_is_touched(make_model: MakeModel) -> None:
    model, other = make_model("llama"), build_hf("qwen3", hidden_size=64)
    edit, before = made(model.hf), everything_of(model.hf)
    with pytest.raises(ValueError, match="not of this model's size"), edit.installed(other):
        pass
    with attach(edit, model, "hooks"):
        with (
            pytest.raises(ValueError, match="has an adapter of peft on it already"),
            made_twice(edit).installed(model.hf),
        ):
            pass
        with pytest.raises(ValueError, match="has an adapter of peft on it already"):
            LoRA.of(model.hf)
    with pytest.raises(ValueError, match="its LoRA on meta"), copy.deepcopy(edit).to("meta").installed(model.hf):
        pass
    assert everything_of(model.hf) == before
    assert model.bridge is not None
    with pytest.raises(ValueError, match="acts on weights.*load_model"), attach(edit, model):
        pass


def made_twice(edit: LoRA) -> LoRA:
    return LoRA(edit.shape, sizes=edit.sizes).initialise(torch.Generator())


def test_bad_options_and_tensors_are_named() -> None:
    hf = build_hf("llama")
    edit = LoRA.of(hf)
    for options, message in (
        ({"r": 0}, "r must be an integer ≥ 1; got 0"),
        ({"r": True}, "r must be an integer ≥ 1; got True"),
        ({"alpha": -1}, "alpha must be a positive number; got -1"),
        ({"targets": []}, "targets must be 'all-linear' or names"),
        ({"targets": ["o_proj", "c_attn"]}, "no linear is named c_attn; there are down_proj, .*v_proj"),
    ):
        with pytest.raises(ValueError, match=message):
            LoRA.of(hf, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has not seen a model"):
        LoRA(edit.shape).initialise(torch.Generator())
    name = next(iter(edit.sizes))
    for bad, message in (
        ({}, "expected A.<module> and B.<module>"),
        ({f"A.{name}": torch.zeros(8, 3)}, "both of them"),
        ({f"A.{name}": torch.zeros(4, 3), f"B.{name}": torch.zeros(3, 4)}, r"expected torch.float32 \[8, 3\]"),
        ({f"A.{name}": torch.full((8, 3), torch.nan), f"B.{name}": torch.zeros(3, 8)}, "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            LoRA(edit.shape).load_tensors(bad)
