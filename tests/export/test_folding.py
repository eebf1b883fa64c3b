"""A folded checkpoint is the edited model, for stock transformers, or it is not there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from jola_interp import export
from jola_interp.backends import attach
from jola_interp.edits import (
    RED,
    BitFit,
    Composite,
    Edit,
    FullFineTuning,
    HeadGates,
    HeadScales,
    Identity,
    JoLA,
    LoRA,
    ReFT,
    Steering,
    Subset,
)
from jola_interp.edits.base import Context
from jola_interp.export import folding
from jola_interp.models import Model, load_model
from tests.conftest import ARCHITECTURES, build_hf
from tests.export.conftest import IDS, MASK, RunOf, difference, edited_logits, logits, made

MakeModel = Callable[..., Model]
BECOMES = {"qwen2": "LlamaForCausalLM", "mistral": "LlamaForCausalLM"}
GENERATOR_SEED = 3


def stock(path: Path, dtype: torch.dtype, tokenizer: Any = None) -> Model:
    """What transformers reads there."""
    return load_model(AutoModelForCausalLM.from_pretrained(path, dtype=dtype), tokenizer=tokenizer)


def model_in(dtype: torch.dtype, architecture: str, tokenizer: Any, **changes: Any) -> Model:
    return load_model(build_hf(architecture, **changes).to(dtype), tokenizer=tokenizer)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fold_is_the_edited_model(
    tokenizer: Any, run_of: RunOf, tmp_path: Path, architecture: str, dtype: torch.dtype
) -> None:
    model = model_in(dtype, architecture, tokenizer)
    # Phi-3 has no place for an offset: the part that scales has one in every architecture.
    kinds: Any = ["multiplicative"] if architecture == "phi3" else None
    run = run_of(model, made(model))
    done = export.fold(run, tmp_path / "out", kinds=kinds)
    assert done.architecture == BECOMES.get(architecture, type(model.hf).__name__)
    assert done.check is not None and done.check.at_o_proj is not None
    assert done.check.at_o_proj <= (1e-12 if dtype == torch.float64 else torch.finfo(dtype).eps)
    found, expected = logits(stock(done.path, dtype)), edited_logits(run, model, kinds=kinds)
    assert difference(found, expected) <= 1e-5 and difference(logits(model), expected) > 0.01
    assert ("Saved as | LlamaForCausalLM" in (done.path / "README.md").read_text()) == (architecture in BECOMES)
    assert done.layers == ("L0", "L1") and done.bytes == (done.path / "model.safetensors").stat().st_size


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_folding_a_closed_edit_gives_the_bytes_of_the_base_model(
    make_model: MakeModel, run_of: RunOf, tmp_path: Path, architecture: str
) -> None:
    model = make_model(architecture)
    done = export.fold(run_of(model, made(model, init_log_alpha=-20.0)), tmp_path / "out")
    model.hf.save_pretrained(tmp_path / "base")
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        assert (done.path / name).read_bytes() == (tmp_path / "base" / name).read_bytes(), name
    assert done.layers == () and done.check is not None and done.check.logits == 0.0


def test_a_fresh_process_without_the_package_reads_the_same_model(
    make_model: MakeModel, run_of: RunOf, tmp_path: Path
) -> None:
    model = make_model("qwen2")
    done = export.fold(run_of(model, made(model)), tmp_path / "out")
    save_file({"ids": IDS, "mask": MASK}, tmp_path / "batch.safetensors")
    code = """
import sys, torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, batch, out = sys.argv[1:]
model, given = AutoModelForCausalLM.from_pretrained(folder), load_file(batch)
positions = (given["mask"].cumsum(1) - 1).clamp(min=0)
with torch.no_grad():
    logits = model(given["ids"], attention_mask=given["mask"], position_ids=positions).logits
text = AutoTokenizer.from_pretrained(folder)("owl?").input_ids
save_file({"logits": logits.contiguous(), "text": torch.tensor(text)}, out)
assert not any(name.split(".")[0] == "jola_interp" for name in sys.modules)
"""
    arguments = [str(done.path), str(tmp_path / "batch.safetensors"), str(tmp_path / "logits.safetensors")]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, cwd=tmp_path, capture_output=True)
    found = load_file(tmp_path / "logits.safetensors")
    own = load_model(str(done.path), dtype="float32")
    assert difference(found["logits"][MASK.bool()], logits(own)) <= 1e-6
    assert model.tokenizer is not None and found["text"].tolist() == model.tokenizer("owl?").input_ids


@torch.no_grad()
def test_32_greedy_steps_are_those_of_the_edited_model(make_model: MakeModel, run_of: RunOf, tmp_path: Path) -> None:
    model = make_model()
    run = run_of(model, made(model))
    folded = stock(export.fold(run, tmp_path / "out").path, torch.float32)
    ids, mask = IDS[:2], MASK[:2]
    options: Any = {"attention_mask": mask, "max_new_tokens": 32, "min_new_tokens": 32, "do_sample": False}
    with run.attach(model):
        expected = model.hf.generate(ids, **options)
    assert torch.equal(folded.hf.generate(ids, **options), expected)
    assert not torch.equal(model.hf.generate(ids, **options), expected) and expected.shape == (2, 39)


# -- other edits -----------------------------------------------------------------------------------------------------


def disturbed(edit: Edit, scale: float = 0.2) -> Edit:
    """Every parameter moved, so that the edit acts."""
    generator = torch.Generator().manual_seed(GENERATOR_SEED)
    for parameter in edit.initialise(generator).parameters():
        parameter.data.add_(scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return edit


def steering(model: Model) -> Edit:
    shape = model.head_shape
    direction = torch.randn(shape.layers, shape.d_model, generator=torch.Generator().manual_seed(0))
    return Steering(shape).steer(direction, torch.linspace(1, 2, shape.layers))


def several(model: Model) -> Edit:
    """Two edits on the input of W_O, one of its output, one at the MLP and one behind it."""
    scales = disturbed(HeadScales(model.head_shape))
    red, lora = disturbed(RED(model.head_shape)), disturbed(LoRA.of(model.hf, r=2), 0.02)
    attention = made(model, 1, sites=("attention", "mlp"), gates="none")
    heads = made(model, 2, gates="none", heads=["L0H1", "L1H3"])
    return Composite(model.head_shape, [heads, scales, attention, red, steering(model), lora])


OTHERS: dict[str, Callable[[Model], Edit]] = {
    "mlp": lambda m: made(m, sites=("heads", "mlp")),
    "attention": lambda m: made(m, sites=("attention",), gates="none"),
    "one gate": lambda m: made(m, gates="shared", inference="point"),
    "hard gates, rms units": lambda m: made(m, inference="hard", units="rms").set_units(
        {"heads": torch.full((2, 4), 0.5)}
    ),
    "bitfit": lambda m: disturbed(BitFit(m.head_shape, biases="all", d_mlp=48)),
    "red": lambda m: disturbed(RED(m.head_shape)),
    "head scales": lambda m: disturbed(HeadScales(m.head_shape)),
    "head gates": lambda m: disturbed(HeadGates(m.head_shape), 2.0),
    "subset": lambda m: disturbed(Subset(m.head_shape, k=3)),
    "steering": steering,
    "lora": lambda m: disturbed(LoRA.of(m.hf, r=2), 0.02),
    "full": lambda m: disturbed(FullFineTuning.of(m.hf), 0.05),
    "several": several,
}


@pytest.mark.parametrize("name", OTHERS)
def test_whatever_is_a_scale_an_offset_or_a_weight_folds(
    make_model: MakeModel, run_of: RunOf, tmp_path: Path, name: str
) -> None:
    model = make_model()
    edit = OTHERS[name](model)
    done = export.fold(run_of(model, edit), tmp_path / "out")
    with attach(edit, model, "hooks"):
        expected = logits(model)
    assert difference(logits(model), expected) > 0.01
    assert difference(logits(stock(done.path, torch.float32)), expected) <= 1e-5


def test_a_tied_unembedding_stays_tied(make_model: MakeModel, run_of: RunOf, tmp_path: Path) -> None:
    model = make_model(tie_word_embeddings=True)
    for number, edit in enumerate([made(model), disturbed(FullFineTuning.of(model.hf), 0.05)]):
        done = export.fold(run_of(model, edit, f"run {number}"), tmp_path / str(number))
        read = AutoModelForCausalLM.from_pretrained(done.path)
        assert read.lm_head.weight is read.model.embed_tokens.weight
        assert "lm_head.weight" not in load_file(done.path / "model.safetensors")


@pytest.mark.parametrize("architecture", ["gpt2", "pythia"])
def test_an_mlp_with_biases_takes_the_edit_of_its_output(
    make_model: MakeModel, run_of: RunOf, tmp_path: Path, architecture: str
) -> None:
    model = make_model(architecture)
    run = run_of(model, Composite(model.head_shape, [made(model, sites=("heads", "mlp")), steering(model)]))
    done = export.fold(run, tmp_path / "out")
    assert difference(logits(stock(done.path, torch.float32)), edited_logits(run, model)) <= 1e-5


# -- refusals --------------------------------------------------------------------------------------------------------


def reft(model: Model) -> Edit:
    return disturbed(ReFT(model.head_shape, r=2))


REFUSED: dict[str, tuple[str, dict[str, Any], Callable[[Model], Edit], str]] = {
    "answer tokens only": ("llama", {}, lambda m: made(m, scope="answer"), "some tokens only"),
    "all but the first token": ("llama", {}, lambda m: made(m, scope="not_first"), "some tokens only"),
    "ReFT": ("llama", {}, reft, "some tokens only"),
    "a part of several": ("llama", {}, lambda m: Composite(m.head_shape, [made(m), reft(m)]), "some tokens only"),
    "no edit": ("llama", {}, lambda m: Identity(m.head_shape), "edits nothing"),
    "Phi-3 has no bias": ("phi3", {}, made, "Phi3ForCausalLM has no bias at model.layers.0.self_attn.o_proj.*to_peft"),
    "a sliding Mistral": ("mistral", {"sliding_window": 4}, made, "sliding_window=4"),
    "no bias in the MLP": ("qwen3", {}, lambda m: made(m, sites=("mlp",)), "no bias at .*down_proj"),
    "a norm behind the MLP": ("gemma3", {}, steering, "norm between the MLP"),
    "fused queries": ("gpt2", {}, lambda m: disturbed(BitFit(m.head_shape)), "no linear of its own at attn.q"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_weights_cannot_hold_is_refused_with_the_reason(
    make_model: MakeModel, run_of: RunOf, tmp_path: Path, name: str
) -> None:
    architecture, changes, edit, reason = REFUSED[name]
    model = make_model(architecture, **changes)
    run = run_of(model, edit(model))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(export.ExportError, match=reason):
        export.fold(run, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


class Bent(JoLA):
    """An edit whose vectors are not all that it does."""

    type_name = "bent"

    def forward(self, activation: Any, layer: int, site: Any, context: Context) -> Any:
        return super().forward(activation, layer, site, context) * 1.001


def test_an_export_that_differs_is_refused_and_leaves_nothing(
    make_model: MakeModel, run_of: RunOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    bent = run_of(model, Bent(model.head_shape, init_std=0.3).initialise(torch.Generator().manual_seed(0)), "bent")
    whole = run_of(model, made(model))
    before = sorted(tmp_path.iterdir())
    for make in (export.fold, export.to_peft):
        with pytest.raises(export.ExportError, match=r"differs by \d.*the bound is 1e-07.*nothing was written"):
            make(bent, tmp_path / "out")
    right = folding.folded
    monkeypatch.setattr(folding, "folded", lambda w, b, change: (right(w, b, change)[0], b))
    with pytest.raises(export.ExportError, match="the bound is"):
        export.fold(whole, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_logits_alone_are_judged_too(make_model: MakeModel, run_of: RunOf, tmp_path: Path) -> None:
    """A wrong MLP is seen although W_O is right."""
    model = make_model()
    run = run_of(model, made(model))
    right, calls = folding.carrier, []

    def wrong(hf: Any, needed: set[str]) -> Any:
        calls.append(needed)
        carried = right(hf, needed)
        carried.config.rms_norm_eps = 0.1
        return carried

    with pytest.MonkeyPatch.context() as patched, pytest.raises(export.ExportError, match="logits differ by"):
        patched.setattr(folding, "carrier", wrong)
        export.fold(run, tmp_path / "out")
    assert calls and not (tmp_path / "out").exists()


def test_a_path_that_is_taken_is_left_as_it_is(make_model: MakeModel, run_of: RunOf, tmp_path: Path) -> None:
    model = make_model()
    run = run_of(model, made(model))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    (tmp_path / "empty").mkdir()
    for make in (export.fold, export.to_peft):
        for name in ("file", "full"):
            with pytest.raises(FileExistsError, match=f"{name} exists"):
                make(run, tmp_path / name)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]
    assert (tmp_path / "file").read_text() == "mine"
    assert export.fold(run, tmp_path / "empty").path == tmp_path / "empty"


# -- which model, which precision ------------------------------------------------------------------------------------


def test_a_booted_model_is_loaded_anew_or_refused(
    make_model: MakeModel, run_of: RunOf, tokenizer: Any, tmp_path: Path
) -> None:
    build_hf("llama").save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    model = load_model(tmp_path / "base", dtype="float32")
    run = run_of(model, made(model))
    assert model.bridge is not None
    done = export.fold(run, tmp_path / "out")
    with run.attach(model, backend="lens"):
        assert difference(logits(stock(done.path, torch.float32)), logits(model)) <= 1e-5
    brought = make_model()
    assert brought.bridge is not None
    with pytest.raises(ValueError, match="booted"):
        export.fold(run, tmp_path / "other", model=brought)
    with run.attach(model, backend="lens"), pytest.raises(ValueError, match="without edits"):
        export.fold(run, tmp_path / "other")
    with pytest.raises(ValueError, match="dtype must be auto or one of .*got 'float31'"):
        export.fold(run, tmp_path / "other", dtype="float31")


def test_half_precision_reports_its_drift_and_float32_has_none(
    run_of: RunOf, tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = model_in(torch.bfloat16, "llama", tokenizer)
    run = run_of(model, made(model))
    before = {name: value.clone() for name, value in model.hf.state_dict().items()}
    with caplog.at_level("WARNING", logger="jola_interp"):
        half = export.fold(run, tmp_path / "half")
    assert "rounds weights" in caplog.text
    whole = export.fold(run, tmp_path / "whole", dtype="float32")
    adapter = export.to_peft(run, tmp_path / "adapter")
    assert half.check is not None and whole.check is not None and adapter.check is not None
    assert half.check.bound is None and half.check.logits > 0 and half.check.kl > 0 and half.dtype == "bfloat16"
    assert half.check.kl < half.check.kl_base / 10 and 0.5 < half.check.stored <= 1 and adapter.check.stored is None  # type: ignore[operator]
    assert whole.check.bound == 1e-5 and whole.check.share <= 1e-5 and whole.dtype == "float32"
    assert half.check.at_o_proj > 1e-4 > 1e-6 > max(whole.check.at_o_proj, adapter.check.at_o_proj)  # type: ignore
    assert load_file(half.path / "model.safetensors")["model.layers.0.self_attn.o_proj.bias"].dtype == torch.bfloat16
    after = model.hf.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items()) and len(after) == len(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_refuses_a_loss_that_is_no_rounding(
    run_of: RunOf, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """All offsets lost although they are smaller than what bounds W_O z; an MLP's, too; and what no weight shows."""
    model = model_in(dtype, "gpt2", tokenizer)
    right, carried = folding.folded, folding.carrier
    for number, sites in enumerate([("heads",), ("mlp",)]):
        run = run_of(model, made(model, init_std=0.02, sites=sites, operations="add"), f"run {number}")
        with monkeypatch.context() as patched, pytest.raises(export.ExportError, match="roundings away|W_O z differs"):
            patched.setattr(folding, "folded", lambda w, b, change: (right(w, b, change)[0], b))
            export.fold(run, tmp_path / "out")
    run = run_of(model, made(model))

    def wrong(hf: Any, needed: set[str]) -> Any:
        made_model = carried(hf, needed)
        made_model.config.layer_norm_epsilon = 1.0
        return made_model

    with monkeypatch.context() as patched, pytest.raises(export.ExportError, match="the bound is 10% of it"):
        patched.setattr(folding, "carrier", wrong)
        export.fold(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert export.fold(run, tmp_path / "out").check.stored <= 1  # type: ignore[union-attr, operator]


def test_a_weight_that_nothing_changes_is_the_base_models(
    make_model: MakeModel, run_of: RunOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    carried = folding.carrier

    def wrong(hf: Any, needed: set[str]) -> Any:
        made_model = carried(hf, needed)
        load = made_model.load_state_dict

        def nudged(state: Any, **options: Any) -> Any:
            name = "model.layers.0.mlp.up_proj.weight"
            return load({**state, name: state[name] * (1 + 3e-7)}, **options)

        made_model.load_state_dict = nudged
        return made_model

    monkeypatch.setattr(folding, "carrier", wrong)
    with pytest.raises(export.ExportError, match="roundings away"):
        export.fold(run_of(model, made(model)), tmp_path / "out")


def test_what_a_gguf_file_leaves_in_a_configuration_is_not_exported(
    make_model: MakeModel, run_of: RunOf, tmp_path: Path
) -> None:
    model = make_model()
    run = run_of(model, made(model))
    model.hf.config.quantization_config = {"quant_method": "gguf"}
    done = export.fold(run, tmp_path / "out")
    assert "quantization_config" not in json.loads((done.path / "config.json").read_text())
    assert model.hf.config.quantization_config == {"quant_method": "gguf"}


def test_a_part_of_an_edit_is_that_part(make_model: MakeModel, run_of: RunOf, tmp_path: Path) -> None:
    model = make_model("gpt2")
    run = run_of(model, made(model))
    part: Any = {"heads": ["L1H2"], "kinds": ["additive"], "strength": 0.5}
    done = export.fold(run, tmp_path / "out", **part)
    assert done.layers == ("L1",)
    assert difference(logits(stock(done.path, torch.float32)), edited_logits(run, model, **part)) <= 1e-5


def test_unchecked_is_the_same_checkpoint(make_model: MakeModel, run_of: RunOf, tmp_path: Path) -> None:
    model = make_model()
    run = run_of(model, made(model))
    first = export.fold(run, tmp_path / "one")
    second = export.fold(run.path, tmp_path / "two", model=model, check=False)
    for name in ("model.safetensors", "config.json"):
        assert (first.path / name).read_bytes() == (second.path / name).read_bytes()
    assert second.check is None and first.check is not None


def test_tokenizer_and_generation_configuration_come_along(
    make_model: MakeModel, run_of: RunOf, tmp_path: Path
) -> None:
    model = make_model()
    model.hf.generation_config.max_new_tokens = 7
    run = run_of(model, made(model))
    done = export.fold(run, tmp_path / "out")
    assert AutoModelForCausalLM.from_pretrained(done.path).generation_config.max_new_tokens == 7
    other = export.fold(run, tmp_path / "other", dtype="float64")  # a copy of a model that was handed in
    assert AutoModelForCausalLM.from_pretrained(other.path).generation_config.max_new_tokens == 7
    assert torch.get_default_dtype() == torch.float32
    assert len(AutoTokenizer.from_pretrained(done.path)) == 258
