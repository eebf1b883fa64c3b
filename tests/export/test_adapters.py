"""An adapter that peft loads is the edited model; IA3 on the output projections is an edit of heads, and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from jola_interp import export
from jola_interp.backends import attach
from jola_interp.edits import RED, FullFineTuning, LoRA
from jola_interp.models import Model, load_model
from jola_interp.runs import Run
from tests.conftest import ARCHITECTURES, build_hf
from tests.export.conftest import RunOf, difference, edited_logits, logits, made

MakeModel = Callable[..., Model]
pytestmark = [
    pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
]


def adapted(architecture: str, path: Path, merge: bool = False, **changes: Any) -> Tensor:
    """Logits of a new base model with the adapter, by stock peft."""
    loaded: Any = PeftModel.from_pretrained(build_hf(architecture, **changes), str(path))
    return logits(load_model(loaded.merge_and_unload() if merge else loaded.get_base_model()))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_lora_and_ia3_are_the_edited_model(
    make_model: MakeModel, run_of: RunOf, tmp_path: Path, architecture: str
) -> None:
    model = make_model(architecture)
    run = run_of(model, made(model))
    lora = export.to_peft(run, tmp_path / "lora")
    assert difference(adapted(architecture, lora.path), edited_logits(run, model)) <= 1e-5
    ia3 = export.to_peft(run, tmp_path / "ia3", "ia3", kinds=["multiplicative"])
    expected = edited_logits(run, model, kinds=["multiplicative"])
    assert difference(adapted(architecture, ia3.path), expected) <= 1e-5 < difference(logits(model), expected)
    assert lora.bytes > ia3.bytes > 0 and ia3.rank == 0 and lora.layers == ia3.layers == ("L0", "L1")


def test_six_ways_to_the_same_logits(make_model: MakeModel, run_of: RunOf, tmp_path: Path) -> None:
    """Bridge, hooks, fold, LoRA and its merge, IA3: largest difference 1e-5 of the largest logit between any two."""
    plain, booted = make_model(), make_model()
    run = run_of(plain, made(plain))
    only: Any = {"kinds": ["multiplicative"]}
    with run.attach(booted, backend="lens", **only):
        lens = logits(booted)
    paths = {
        "fold": export.fold(run, tmp_path / "fold", **only).path,
        "lora": export.to_peft(run, tmp_path / "lora", **only).path,
        "ia3": export.to_peft(run, tmp_path / "ia3", "ia3", **only).path,
    }
    found = {
        "lens": lens,
        "hooks": edited_logits(run, plain, **only),
        "fold": logits(load_model(AutoModelForCausalLM.from_pretrained(paths["fold"]))),
        "lora": adapted("llama", paths["lora"]),
        "merged lora": adapted("llama", paths["lora"], merge=True),
        "ia3": adapted("llama", paths["ia3"]),
    }
    for name, one in found.items():
        assert difference(one, found["hooks"]) <= 1e-5, name
    assert difference(logits(plain), found["hooks"]) > 0.01


@pytest.mark.parametrize("architecture", ["gpt2", "pythia"])
def test_a_merged_adapter_is_the_fold_where_there_is_a_bias(
    make_model: MakeModel, run_of: RunOf, tmp_path: Path, architecture: str
) -> None:
    model = make_model(architecture)
    run = run_of(model, made(model))
    fold, lora = export.fold(run, tmp_path / "fold"), export.to_peft(run, tmp_path / "lora")
    loaded: Any = PeftModel.from_pretrained(build_hf(architecture), str(lora.path))
    merged, folded = loaded.merge_and_unload().state_dict(), AutoModelForCausalLM.from_pretrained(fold.path)
    for name, value in folded.state_dict().items():
        torch.testing.assert_close(merged[name], value, rtol=1e-6, atol=1e-6)


def test_the_rank_is_the_number_of_scaled_components_and_never_more_than_there_are_rows(
    make_model: MakeModel, run_of: RunOf, tmp_path: Path
) -> None:
    model = make_model("gemma3")  # 4 heads of 16 in a stream of 32
    only = made(model, operations="add", gates="none", heads=["L1H0"])
    both = made(model, gates="none", heads=["L0H1", "L1H0", "L1H2", "L1H3"])
    one, some = (export.to_peft(run_of(model, e, n), tmp_path / f"{n} out") for n, e in (("a", only), ("b", both)))
    assert one.ranks == {"L1": 1} and some.ranks == {"L0": 16, "L1": 32} and some.rank == 32
    assert some.to_frame()["rank"].tolist() == [16, 32]
    assert json.loads((some.path / "adapter_config.json").read_text())["lora_bias"] is True
    tensors = load_file(some.path / "adapter_model.safetensors")
    assert sum(value.numel() for value in tensors.values()) == 16 * (64 + 32) + 32 * (64 + 32) + 2 * 32


def test_a_trained_lora_is_written_as_it_is(make_model: MakeModel, run_of: RunOf, tmp_path: Path) -> None:
    for architecture in ("llama", "gpt2"):
        model = make_model(architecture)
        edit = LoRA.of(model.hf, r=3, alpha=6).initialise(torch.Generator().manual_seed(0))
        for up in edit.B.values():
            up.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
        done = export.to_peft(run_of(model, edit, architecture), tmp_path / f"{architecture} out")
        with attach(edit, model, "hooks"):
            expected = logits(model)
        assert difference(adapted(architecture, done.path), expected) <= 1e-5
        assert done.rank == 3 and len(done.ranks) == len(edit.sizes)
        stored = load_file(done.path / "adapter_model.safetensors")
        assert all(any(torch.equal(value, held) for held in stored.values()) for value in edit.tensors().values())


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
def test_from_peft_of_to_peft_is_the_edit(
    make_model: MakeModel, run_of: RunOf, tmp_path: Path, architecture: str
) -> None:
    model = make_model(architecture)
    run = run_of(model, made(model, operations="multiply", init_std=0.1))
    done = export.to_peft(run, tmp_path / "out", "ia3")
    base: Any = PeftModel.from_pretrained(build_hf(architecture), str(done.path))
    for source in (done.path, base):
        edit = export.from_peft(source, model)
        assert (edit.gates, edit.operations) == ("none", "multiply")
        found, expected = (e.at_inference()["multiplicative"] for e in (edit, run.edit))
        assert torch.equal(1 + found, 1 + expected)
        with attach(edit, model, "hooks"):
            assert torch.equal(logits(model), edited_logits_of(run, make_model(architecture)))
    again = export.to_peft(run_of(model, edit, "again"), tmp_path / "again out", "ia3")
    assert (again.path / "adapter_model.safetensors").read_bytes() == (
        done.path / "adapter_model.safetensors"
    ).read_bytes()


def edited_logits_of(run: Run, model: Model) -> Tensor:
    with run.attach(model, backend="hooks"):
        return logits(model)


def test_from_peft_takes_an_ia3_that_peft_made_and_no_other_adapter(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    shapes: dict[str, Any] = {
        "right": {"target_modules": ["o_proj"], "feedforward_modules": ["o_proj"]},
        "output": {"target_modules": ["o_proj"], "feedforward_modules": []},
        "elsewhere": {"target_modules": ["o_proj", "down_proj"], "feedforward_modules": ["o_proj", "down_proj"]},
    }
    peft_models: dict[str, Any] = {}
    for name, options in shapes.items():
        peft_models[name] = get_peft_model(build_hf("llama"), IA3Config(**options))
        for key, value in peft_models[name].named_parameters():
            if "ia3_l" in key:
                value.data.uniform_(0.5, 2, generator=torch.Generator().manual_seed(0))
        peft_models[name].save_pretrained(tmp_path / name)
    edit = export.from_peft(tmp_path / "right", model)
    with attach(edit, model, "hooks"):
        found = logits(model)
    assert difference(found, logits(load_model(peft_models["right"].get_base_model()))) <= 1e-6
    with pytest.raises(ValueError, match=r"expected \[1, 32\], which scales what goes into"):
        export.from_peft(tmp_path / "output", model)
    with pytest.raises(ValueError, match="mlp.down_proj.*expected ia3_l at model.layers.0.self_attn.o_proj"):
        export.from_peft(peft_models["elsewhere"], model)
    with pytest.raises(FileNotFoundError, match="no adapter_config.json"):
        export.from_peft(tmp_path, model)
    with pytest.raises(TypeError, match="a directory or a PeftModel"):
        export.from_peft(model, model)


def test_what_an_adapter_cannot_hold_is_refused_and_leaves_nothing(
    make_model: MakeModel, run_of: RunOf, tmp_path: Path
) -> None:
    model = make_model()
    adding = run_of(model, made(model), "adding")
    red = RED(model.head_shape)
    red.b.data.fill_(1.0)
    bitten, full = run_of(model, red, "red"), FullFineTuning.of(model.hf).initialise(torch.Generator())
    whole = run_of(model, full, "full")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(export.ExportError, match="cannot add.*layer 0.*kinds="):
        export.to_peft(adding, tmp_path / "out", "ia3")
    with pytest.raises(export.ExportError, match="acts at mlp"):
        export.to_peft(bitten, tmp_path / "out")
    with pytest.raises(export.ExportError, match="changes weights"):
        export.to_peft(whole, tmp_path / "out")
    with pytest.raises(ValueError, match="kind must be lora or ia3; got 'dora'"):
        export.to_peft(adding, tmp_path / "out", "dora")  # type: ignore[arg-type]
    assert sorted(tmp_path.iterdir()) == before


def test_a_closed_edit_is_an_adapter_that_does_nothing(make_model: MakeModel, run_of: RunOf, tmp_path: Path) -> None:
    model = make_model()
    closed = run_of(model, made(model, init_log_alpha=-20.0))
    for kind in ("lora", "ia3"):
        done = export.to_peft(closed, tmp_path / kind, kind)  # type: ignore[arg-type]
        assert torch.equal(adapted("llama", done.path), logits(model))


def test_an_adapter_in_half_precision_keeps_its_numbers_in_float32(
    run_of: RunOf, tokenizer: Any, tmp_path: Path
) -> None:
    model = load_model(build_hf("llama").to(torch.bfloat16), tokenizer=tokenizer)
    run = run_of(model, made(model))
    done = export.to_peft(run, tmp_path / "out", "ia3", kinds=["multiplicative"])
    loaded: Any = PeftModel.from_pretrained(build_hf("llama").to(torch.bfloat16), str(done.path))
    expected = 1 + run.edit.at_inference()["multiplicative"][1].flatten()
    assert torch.equal(loaded.base_model.model.model.layers[1].self_attn.o_proj.ia3_l["default"][0], expected)


def test_peft_exports_leave_the_base_model_as_it_was(make_model: MakeModel, run_of: RunOf, tmp_path: Path) -> None:
    model = make_model()
    run = run_of(model, made(model))
    modules = {name: id(module) for name, module in model.hf.named_modules()}
    attributes, base = set(vars(model.hf)), logits(model)
    export.to_peft(run, tmp_path / "out")
    assert {name: id(module) for name, module in model.hf.named_modules()} == modules
    assert set(vars(model.hf)) == attributes and torch.equal(logits(model), base)
