"""The nnsight backend gives what the others give, restores what it found, and is not there for who does not ask."""

from __future__ import annotations

import ast
import doctest
import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from jola_interp.backends import BackendName, EditNotLiveError, attach, traced
from jola_interp.backends.nnsight import wrapper
from jola_interp.backends.restart import recorded, restarted
from jola_interp.edits import JoLA
from jola_interp.edits.lora import LoRA
from jola_interp.edits.red import RED
from jola_interp.edits.reft import ReFT
from jola_interp.models import Model, load_model
from jola_interp.runs import Run
from jola_interp.tasks import Task
from jola_interp.training import fit
from tests.backends.test_backends import IDS, MASK, hooks_of, largest_difference, logits_and_gradients, made
from tests.conftest import ROOT, build_hf
from tests.runs_by_hand import make_run

MakeModel = Callable[..., Model]
NAMES: tuple[BackendName, ...] = ("nnsight", "hooks", "lens")
ARCHITECTURES = ("llama", "gpt2", "qwen2", "gemma3")
RIGHT = (IDS.roll(-3, 1).where(IDS[:, :1] == 256, IDS), MASK.roll(-3, 1).where(MASK[:, :1] == 0, MASK))
EVERY = ("heads", "mlp", "attention")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def generated(model: Model, edit: JoLA, backend: BackendName, steps: int = 32) -> tuple[Tensor, Tensor]:
    """(tokens, logits of every step) of a greedy generation behind left padding."""
    with torch.no_grad(), attach(edit, model, backend) as attached:
        found = model.hf.generate(
            input_ids=IDS, attention_mask=MASK, max_new_tokens=steps, min_new_tokens=steps, do_sample=False,
            pad_token_id=256, output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
    assert attached.forwards == steps
    attached.check_live()
    return found.sequences, torch.stack(found.logits).float()


@pytest.mark.filterwarnings("error:.*was never reached")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_three_backends_agree_at_prefill_and_at_every_step(tokenizer: Any, architecture: str, dtype: str) -> None:
    models = {
        name: load_model(build_hf(architecture, "eager").to(DTYPES[dtype]), tokenizer=tokenizer) for name in NAMES
    }
    edit = made(models["hooks"], sites=EVERY)
    bound = {"fp32": 1e-6, "bf16": 2**-7}[dtype]  # lens does its own attention: one rounding of bfloat16
    for ids, mask in ((IDS, MASK), RIGHT):
        found = {}
        for name, model in models.items():
            with torch.no_grad(), attach(edit, model, name):
                found[name] = model.logits(ids, mask)[mask.bool()].float()
        assert torch.equal(found["nnsight"], found["hooks"])
        assert largest_difference(found["lens"], found["nnsight"]) <= bound
    tokens, logits = generated(models["nnsight"], edit, "nnsight")
    others = {name: generated(models[name], edit, name) for name in ("hooks", "lens")}
    assert torch.equal(tokens, others["hooks"][0]) and torch.equal(logits, others["hooks"][1])
    assert torch.equal(tokens, others["lens"][0])
    assert largest_difference(others["lens"][1], logits) <= bound


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_three_backends_agree_on_gradients(make_model: MakeModel, architecture: str) -> None:
    models = {name: make_model(architecture, "eager") for name in NAMES}
    edit = made(models["hooks"], sites=EVERY)
    logits, gradients = logits_and_gradients(models["nnsight"], edit, "nnsight")
    same, exactly = logits_and_gradients(models["hooks"], edit, "hooks")
    assert torch.equal(same, logits) and all(torch.equal(a, b) for a, b in zip(exactly, gradients, strict=True))
    near, nearly = logits_and_gradients(models["lens"], edit, "lens")
    assert largest_difference(near, logits) <= 1e-6
    assert max(largest_difference(a, b) for a, b in zip(nearly, gradients, strict=True)) <= 1e-5
    fused, theirs = logits_and_gradients(make_model(architecture, "sdpa"), edit, "nnsight")
    assert largest_difference(fused, logits) <= 1e-5
    assert max(largest_difference(a, b) for a, b in zip(theirs, gradients, strict=True)) <= 1e-4


def test_training_and_evaluation_end_with_the_same_numbers(
    make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"max_steps": 4, "batch_size": 6, "max_new_tokens": 4, "wrapper": "plain", "lr": 0.1}
    runs = {
        name: fit(make_model("llama", "eager"), toy_task, backend=name, out=tmp_path / name, **options)
        for name in NAMES
    }
    tensors = {name: run.edit.tensors() for name, run in runs.items()}
    assert all(torch.equal(tensors["hooks"][key], value) for key, value in tensors["nnsight"].items())
    for key, value in tensors["nnsight"].items():
        torch.testing.assert_close(tensors["lens"][key].float(), value.float(), rtol=1e-5, atol=1e-6)
    assert runs["nnsight"].scores == runs["hooks"].scores and runs["nnsight"].predictions == runs["hooks"].predictions
    assert runs["nnsight"].config["backend"] == "nnsight"
    again = Run.load(tmp_path / "nnsight", make_model("llama", "eager"))
    edited = again.generate(["row 1: dog?"], max_new_tokens=4)  # checks that the edit was live
    assert edited.equals(
        Run.load(tmp_path / "hooks", make_model("llama", "eager")).generate("row 1: dog?", max_new_tokens=4)
    )


@pytest.mark.parametrize("site", ["residual", "query", "key", "value", "up", "gate", "norm1", "norm2"])
def test_every_site_of_hooks_is_reached(make_model: MakeModel, site: Any) -> None:
    class Doubling(RED):
        def points(self) -> list[Any]:
            return [(layer, site) for layer in range(self.shape.layers)]

        def forward(self, activation: Tensor, *_: Any) -> Tensor:
            assert activation.dim() == (4 if site in ("query", "key", "value") else 3)
            return 2 * activation

    found = []
    for backend in ("nnsight", "hooks"):
        model = make_model()
        with torch.no_grad():
            base = model.logits(IDS, MASK)
            with attach(Doubling(model.head_shape), model, backend) as attached:
                found.append(model.logits(IDS, MASK))
            attached.check_live()
    assert torch.equal(*found) and not torch.equal(found[0], base)


def test_edits_that_choose_their_tokens_see_the_masks(make_model: MakeModel) -> None:
    found = []
    for backend in ("nnsight", "hooks"):
        model = make_model()
        edits = [
            made(model, scope="not_first"),
            made(model, 1, scope="answer"),
            ReFT(model.head_shape, r=2, start="linear").initialise(torch.Generator().manual_seed(0)),
        ]
        with torch.no_grad(), attach(edits, model, backend):
            found.append(model.logits(IDS, MASK, prompt_mask=MASK.bool() & (torch.arange(7) < 5)))
    assert torch.equal(*found)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_leaving_restores_hooks_forwards_parameters_and_logits(make_model: MakeModel, architecture: str) -> None:
    model = make_model(architecture)
    expected = make_model(architecture).logits(IDS, MASK)  # by a model that nnsight never saw
    nn = wrapper(model)
    parameters = {name: value.clone() for name, value in model.hf.state_dict().items()}
    hooks, slots = hooks_of(model), {name: dict(module.__dict__) for name, module in model.hf.named_modules()}
    with pytest.raises(RuntimeError, match="in the middle"), attach(made(model), model, "nnsight"):
        model.logits(IDS, MASK)
        raise RuntimeError("in the middle")
    assert hooks_of(model) == hooks and nn._edits == []
    for name, module in model.hf.named_modules():
        assert module.__dict__.get("forward") is slots[name].get("forward"), name
    assert torch.equal(model.logits(IDS, MASK), expected)
    after = model.hf.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in parameters.items())
    assert not any(parameter.requires_grad for parameter in model.hf.parameters())


def test_an_error_inside_an_edit_comes_out_and_the_next_pass_is_right(make_model: MakeModel) -> None:
    model = make_model()

    class Failing(JoLA):
        failing = True

        def forward(self, activation: Tensor, layer: int, *rest: Any) -> Tensor:
            if self.failing and layer == 1:
                raise ArithmeticError("layer 1")
            return super().forward(activation, layer, *rest)

    edit = Failing(model.head_shape, init_std=0.5).initialise(torch.Generator().manual_seed(0))
    with torch.no_grad(), attach(edit, model, "nnsight"):
        with pytest.raises(ArithmeticError, match="layer 1"):
            model.logits(IDS, MASK)
        edit.failing = False
        found = model.logits(IDS, MASK)
    with torch.no_grad(), attach(edit, make := make_model(), "hooks"):
        assert torch.equal(make.logits(IDS, MASK), found)


def test_nested_edits_compose_in_any_order_of_leaving(make_model: MakeModel) -> None:
    model = make_model()
    first, second = made(model, 1), made(model, 2)
    with torch.no_grad():
        base = model.logits(IDS, MASK)
        with attach([first, second], model, "nnsight"):
            together = model.logits(IDS, MASK)
        outer, inner = attach(first, model, "nnsight"), attach(second, model, "nnsight")
        outer.__enter__()
        inner.__enter__()
        nested = model.logits(IDS, MASK)
        outer.__exit__(None, None, None)
        left = model.logits(IDS, MASK)
        inner.__exit__(None, None, None)
        with attach(second, model, "nnsight"):
            alone = model.logits(IDS, MASK)
        assert torch.equal(model.logits(IDS, MASK), base)
    assert torch.equal(together, nested) and torch.equal(left, alone) and not torch.equal(together, alone)


def test_removed_edits_are_noticed(make_model: MakeModel) -> None:
    model = make_model()
    nn = wrapper(model)
    with attach(made(model), model, "nnsight") as attached:
        model.logits(IDS, MASK)
        attached.check_live()
        nn.clear_edits()
        model.logits(IDS, MASK)
        with pytest.raises(EditNotLiveError, match="1 of 2 passes"):
            attached.check_live()


def test_the_other_backends_work_on_a_model_that_nnsight_has_wrapped(make_model: MakeModel) -> None:
    model, fresh = make_model("llama", "eager"), make_model("llama", "eager")
    edit = made(model)
    logits_and_gradients(model, edit, "nnsight")
    for name in ("hooks", "lens"):
        found, gradients = logits_and_gradients(model, edit, name)
        expected, others = logits_and_gradients(fresh, edit, name)
        assert torch.equal(found, expected) and all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True))
    with pytest.raises(ValueError, match=r"booted by TransformerLens.*load_model\('path'\)"):
        attach(edit, model, "nnsight").__enter__()
    with pytest.raises(ValueError, match="booted by TransformerLens"):
        wrapper(model)


def test_traces_on_the_wrapper_see_the_edit_and_cache_what_other_backends_see(make_model: MakeModel) -> None:
    model, hooked, lens = (make_model("llama", "eager") for _ in range(3))
    edit = made(model, sites=EVERY)
    nn, paths = wrapper(model), [f"model.layers.{layer}.self_attn.o_proj" for layer in range(2)]
    with torch.no_grad(), attach(edit, model, "nnsight"):
        with nn.trace(input_ids=IDS, attention_mask=MASK, position_ids=(MASK.cumsum(1) - 1).clamp(min=0)) as tracer:
            cache = tracer.cache(include_inputs=True)
            logits = nn.output.logits.save()
        assert torch.equal(logits, model.logits(IDS, MASK))
    seen: list[Tensor] = []
    with torch.no_grad(), attach(edit, hooked, "hooks"):
        handles = [hooked.o_proj(i).register_forward_pre_hook(lambda _, args: seen.append(args[0])) for i in range(2)]
        hooked.logits(IDS, MASK)
    with torch.no_grad(), attach(edit, lens, "lens"):
        _, kept = lens.bridge.run_with_cache(IDS, attention_mask=MASK)
    for layer, path in enumerate(paths):
        z = cache[f"model.{path}"].inputs[0][0]
        assert torch.equal(z, seen[layer])
        theirs = kept[f"blocks.{layer}.attn.hook_z"].flatten(-2)
        assert largest_difference(theirs[MASK.bool()], z[MASK.bool()]) <= 1e-6
    assert len(handles) == 2


def test_a_trace_on_another_wrapper_is_refused_while_an_edit_is_attached(make_model: MakeModel) -> None:
    from nnsight import NNsight

    model = make_model()
    theirs = NNsight(model.hf)
    with pytest.raises(ValueError, match="another nnsight wrapper"), attach(made(model), model, "nnsight"):
        nn = theirs  # a trace needs a `with` of its own
        with nn.trace(input_ids=IDS):
            nn.lm_head.output.save()
    with theirs.trace(input_ids=IDS):
        plain = theirs.lm_head.output.save()
    assert torch.equal(plain, make_model().hf(IDS).logits)


def test_gradient_checkpointing_is_refused(make_model: MakeModel) -> None:
    model = make_model()
    model.hf.activation_checkpointing_enable()
    with pytest.raises(ValueError, match="gradient checkpointing"):
        attach(made(model), model, "nnsight").__enter__()


def test_modules_that_nnsight_has_not_wrapped_are_refused(make_model: MakeModel) -> None:
    model = make_model()
    nn = wrapper(model)
    with pytest.raises(ValueError, match="LoRA acts on weights.*backend='hooks'"):
        attach(LoRA.of(model.hf, r=2).initialise(torch.Generator().manual_seed(0)), model, "nnsight").__enter__()
    layer = model.hf.get_submodule("model.layers.1.self_attn")
    layer.o_proj = torch.nn.Linear(32, 32, bias=False).requires_grad_(False)
    with pytest.raises(ValueError, match="o_proj .* no longer the module"):
        attach(made(model), model, "nnsight").__enter__()
    assert nn._edits == [] and not model.hf._forward_pre_hooks


def test_passes_that_begin_at_a_layer_equal_whole_ones(make_model: MakeModel) -> None:
    model = make_model()
    edit = made(model)
    read = torch.tensor([[False, True, True], [True, False, True]])
    with torch.no_grad(), attach(edit, model, "nnsight") as attached:
        with recorded(model, attached, read=read) as recording:
            model.logits(IDS, MASK, 3)
        edit.site("heads").vectors["additive"][1].mul_(3)
        with restarted(recording, 1):
            part = model.forward(IDS, MASK, 3).logits
        whole = model.logits(IDS, MASK, 3)[read][None]
        attached.check_live()
    torch.testing.assert_close(part, whole)


LAZY = """
import sys, torch
backward, save = torch.Tensor.backward, hasattr(object, "save")
import jola_interp as ji
from jola_interp.backends import BACKENDS, attach
import jola_interp.backends.nnsight, jola_interp.backends.traced, jola_interp.runs, jola_interp.training
from tests.conftest import build_hf
for name in ("hooks", "lens"):
    import pathlib, tempfile
    from tests.conftest import byte_tokenizer
    model = ji.load_model(build_hf("llama"), tokenizer=byte_tokenizer(pathlib.Path(tempfile.mkdtemp())))
    edit = ji.JoLA(model.head_shape).initialise(torch.Generator().manual_seed(0))
    ids = torch.tensor([[5, 17, 80]])
    with attach(edit, model, name):
        model.logits(ids, torch.ones_like(ids)).sum().backward()
found = sorted(name for name in sys.modules if name.split(".")[0] == "nnsight")
assert not found, found
assert torch.Tensor.backward is backward and hasattr(object, "save") == save
"""


def in_a_process(program: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, env=None, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_who_does_not_ask_for_nnsight_never_imports_it() -> None:
    in_a_process(LAZY)


def test_no_backward_call_of_the_package_stands_on_the_line_of_a_with() -> None:
    """There nnsight would take it for the head of a trace, and no gradient would be made."""
    for path in sorted((ROOT / "jola_interp").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        withs = [node for node in ast.walk(tree) if isinstance(node, ast.With)]
        heads = {node.lineno for node in withs} | {i.context_expr.lineno for node in withs for i in node.items}
        calls = {
            node.lineno
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "backward"
        }
        assert not heads & calls, path


# -- as_trace ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(make_model: MakeModel, tmp_path: Path) -> Run:
    return hand_made(make_model(), tmp_path / "run")


def hand_made(model: Model, folder: Path, **switches: Any) -> Run:
    """A Run whose edit is large and whose gates are all open."""
    shape = model.head_shape
    made_run = make_run(folder, shape.layers, shape.heads, shape.kv_heads, **switches)
    edit = made(model, init_log_alpha=20.0, sites=switches.get("sites", ("heads",)))
    made_run.edit = edit.requires_grad_(False)
    made_run.config["model"] |= model.identity()
    made_run._model = model
    return made_run


def attached_logits(run: Run, model: Model, text: str, **part: Any) -> Tensor:
    ids = torch.tensor([model.tokenizer(text).input_ids])  # type: ignore[misc]
    with torch.no_grad(), run.attach(model, backend="hooks", **part):
        return model.logits(ids, torch.ones_like(ids))[:, -1]


@pytest.mark.filterwarnings("error:.*was never reached")
def test_the_documented_example_runs_and_says_what_attach_says(run: Run, make_model: MakeModel, tmp_path: Path) -> None:
    """From a file: nnsight reads the source of its blocks."""
    assert traced.__doc__ is not None
    example = tmp_path / "example.py"
    example.write_text("".join(step.source for step in doctest.DocTestParser().get_examples(traced.__doc__)))
    model = make_model()
    found = runpy.run_path(str(example), {"run": run, "model": model})
    plain, rest = make_model(), [head for head in found["traced"].heads if head != found["first"]]
    torch.testing.assert_close(found["whole"], attached_logits(run, plain, "a cat"))
    torch.testing.assert_close(found["less"], attached_logits(run, plain, "a cat", heads=rest))
    torch.testing.assert_close(found["base"], attached_logits(run, plain, "a cat", strength=0.0))
    ids = torch.tensor([plain.tokenizer("a cat").input_ids])  # type: ignore[misc]
    with torch.no_grad(), run.attach(plain, heads=[found["first"]], backend="hooks"):
        expected = plain.hf.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, pad_token_id=256
        )
    assert torch.equal(found["tokens"], expected)


@pytest.mark.parametrize("part", [{}, {"heads": ["L1H2"]}, {"kinds": ["additive"]}, {"strength": 0.5}])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_traced_part_is_the_part_that_attach_takes(
    make_model: MakeModel, tmp_path: Path, architecture: str, part: dict[str, Any]
) -> None:
    model, plain = make_model(architecture), make_model(architecture)
    run = hand_made(model, tmp_path / "run", sites=EVERY if not part.get("heads") else ("heads",))
    for found in (run.as_trace(model, **part), run.as_trace(model).part(**part)):
        nn = found.model
        with nn.trace("an owl"):
            found.apply()
            logits = nn.lm_head.output[:, -1].save()
        with found.edited().trace("an owl"):
            stored = nn.lm_head.output[:, -1].save()
        torch.testing.assert_close(logits, attached_logits(run, plain, "an owl", **part))
        assert torch.equal(logits, stored)
    assert found.heads == (["L1H2"] if part.get("heads") else found.heads)
    with nn.trace("an owl"):  # nothing stays in the model itself
        base = nn.lm_head.output[:, -1].save()
    torch.testing.assert_close(base, attached_logits(run, plain, "an owl", strength=0.0))


def test_earlier_layers_can_be_read_above_a_part_and_later_ones_below(run: Run, make_model: MakeModel) -> None:
    model = make_model()
    found = run.as_trace(model, heads=["L1H0"])
    nn = found.model
    with nn.trace("an ant"):
        before = nn.model.layers[0].output.save()
        found.apply()
        after = nn.model.layers[1].output.save()
    assert before.shape == after.shape and len(found.points) == 1


def test_the_callers_tokenizer_is_left_alone(run: Run, make_model: MakeModel) -> None:
    model = make_model()
    model.tokenizer.padding_side = "right"  # type: ignore[union-attr]
    assert run.as_trace(model).model.tokenizer.padding_side == "left"
    assert model.tokenizer.padding_side == "right"  # type: ignore[union-attr]


def test_the_callers_nnsight_model_stays_trainable_and_in_its_modes(run: Run) -> None:
    from nnsight import NNsight

    hf = build_hf("llama").train()
    hf.lm_head.weight.requires_grad_(False)
    hf.model.layers[1].eval()
    flags = {name: parameter.requires_grad for name, parameter in hf.named_parameters()}
    modes = {name: module.training for name, module in hf.named_modules()}
    assert len(set(flags.values())) == len(set(modes.values())) == 2
    run.as_trace(NNsight(hf))
    assert {name: parameter.requires_grad for name, parameter in hf.named_parameters()} == flags
    assert {name: module.training for name, module in hf.named_modules()} == modes


def test_what_cannot_be_traced_is_refused(run: Run, make_model: MakeModel) -> None:
    model = make_model()
    with pytest.raises(ValueError, match="L9H9 is not in this model"):
        run.as_trace(model, heads=["L9H9"])
    with pytest.raises(ValueError, match="L9H9 not among those that act"):
        run.as_trace(model).without("L9H9")
    run.edit = made(model, scope="answer")
    with pytest.raises(ValueError, match="as_trace: this JoLA"):
        run.as_trace(model)
    assert model.bridge is not None
    with pytest.raises(ValueError, match="booted by TransformerLens"):
        run.as_trace(model)


NDIF = """
import sys, pathlib, warnings, torch
import nnsight.ndif
from nnsight import TransformersModel
from nnsight.intervention.backends import remote
from nnsight.modeling import huggingface
from nnsight.schema.request import RequestModel
from jola_interp.edits import JoLA
from jola_interp.models import load_model
from tests.backends.test_nnsight import hand_made, attached_logits

nnsight.ndif._PULLED_ENV = True  # as where jola_interp is installed: no more of it is shipped than asks to be
folder = pathlib.Path(sys.argv[1])
plain = load_model(str(folder / "model"), dtype="float32")
run = hand_made(plain, folder / "run")
nn = TransformersModel(str(folder / "model"), task="text-generation", tokenizer=plain.tokenizer)
with warnings.catch_warnings():
    warnings.simplefilter("error")  # such as other weights: these are not loaded
    found = run.as_trace(nn, heads=["L0H1", "L1H2"])
assert next(nn._module.parameters()).is_meta

asked = []
def request(self, envelope, tracer):
    asked.append((envelope, self._serialize(tracer)))
    return {"logits": torch.zeros(1)}
remote.RemoteBackend.request = request
huggingface._ID_CACHE[nn.repo_id] = "tiny/llama"
with nn.trace("a fox", remote=True):
    found.apply()
    logits = nn.lm_head.output[:, -1].save()
assert torch.equal(logits, torch.zeros(1)) and "tiny/llama" in asked[0][0].model_key
assert len(asked) == 1 and 0 < len(asked[0][1]) < 100_000
assert next(nn._module.parameters()).is_meta  # nothing was loaded for it

nn = TransformersModel(load_model(str(folder / "model"), dtype="float32").hf, tokenizer=plain.tokenizer)
found = run.as_trace(nn, heads=["L0H1", "L1H2"])
expected = attached_logits(run, plain, "a fox", heads=["L0H1", "L1H2"])
with nn.trace("a fox", remote="local"):
    found.apply()
    logits = nn.lm_head.output[:, -1].save()
torch.testing.assert_close(logits, expected)
edited = found.edited()
with edited.trace("a fox", remote="local"):
    stored = edited.lm_head.output[:, -1].save()
torch.testing.assert_close(stored, expected)
with edited.generate("a fox", max_new_tokens=6, min_new_tokens=6, do_sample=False, remote="local") as tracer:
    there = tracer.result.save()
with edited.generate("a fox", max_new_tokens=6, min_new_tokens=6, do_sample=False) as tracer:
    here = tracer.result.save()
assert torch.equal(there, here), (there, here)
"""


def test_a_trace_can_be_shipped_to_where_there_is_no_jola_interp(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    model.hf.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")  # type: ignore[union-attr]
    in_a_process(NDIF, str(tmp_path))


def test_the_notebook_runs_on_a_tiny_model(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("llama", max_position_embeddings=2048)
    model.hf.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")  # type: ignore[union-attr]
    cells = json.loads((ROOT / "notebooks" / "10_nnsight.ipynb").read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    small = f"\nMODEL, N_TRAIN, N_TEST, MAX_STEPS, K = {str(tmp_path / 'model')!r}, 8, 2, 2, 3\n"
    program = tmp_path / "notebook.py"
    program.write_text("\n".join([sources[0] + small, *sources[1:]]), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    found = runpy.run_path(str(program))
    found["axes"].figure.clear()
    import_module("matplotlib.pyplot").close("all")  # as Jupyter does behind a cell
    assert len(found["table"]) == 3 and found["rows"].shape == (2, 8)
    torch.testing.assert_close(found["inside"], found["attached"])
    assert found["tokens"].shape[1] <= found["ids"].shape[1] + 8
