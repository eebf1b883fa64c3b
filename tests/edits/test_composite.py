"""A composite is its parts attached together: same numbers, one set of parameters, one file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import jola_interp as ji
from jola_interp.backends import attach
from jola_interp.callbacks import Callback
from jola_interp.edits.base import Edit
from jola_interp.edits.bitfit import BitFit
from jola_interp.edits.composite import Composite
from jola_interp.edits.head_gates import HeadGates
from jola_interp.edits.jola import JoLA
from jola_interp.edits.lora import LoRA
from jola_interp.edits.red import RED
from jola_interp.methods.table import Method
from jola_interp.methods.weights import BIASES
from jola_interp.models import Model
from jola_interp.runs import Run, edit_from_settings, edit_settings
from jola_interp.tasks import Task

MakeModel = Callable[..., Model]
IDS = torch.tensor([[256, 256, 256, 5, 17, 80, 3], [9, 44, 2, 71, 8, 120, 6]])
MASK = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])


def parts_of(model: Model, seed: int = 0) -> list[Edit]:
    """Gated JoLA, BitFit and RED, all of them acting; JoLA and RED meet at the MLP."""
    generator = torch.Generator().manual_seed(seed)
    shape = model.head_shape
    jola = JoLA(shape, sites=("heads", "mlp"), init_std=0.3).initialise(generator)
    parts: list[Edit] = [jola, BitFit(shape).initialise(generator), RED(shape).initialise(generator)]
    for part in parts[1:]:
        for parameter in part.parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return parts


def logits_and_gradients(model: Model, edits: Any, backend: Any) -> tuple[Tensor, list[Tensor]]:
    parameters = [p for edit in (edits if isinstance(edits, list) else [edits]) for p in edit.parameters()]
    with attach(edits, model, backend) as attached:
        attached.draw(torch.Generator().manual_seed(7))
        logits = model.logits(IDS, MASK)
        loss = torch.logsumexp(logits, -1)[MASK.bool()].sum()
        gradients = torch.autograd.grad(loss, parameters)
    attached.check_live()
    return logits.detach()[MASK.bool()], list(gradients)


@pytest.mark.parametrize("backend", ["lens", "hooks"])
def test_a_composite_is_its_parts_attached_together(make_model: MakeModel, backend: Any) -> None:
    model = make_model()
    parts = parts_of(model)
    together = Composite(model.head_shape, parts)
    expected, gradients = logits_and_gradients(model, parts, backend)
    found, others = logits_and_gradients(model, together, backend)
    assert torch.equal(found, expected)
    assert all(torch.equal(a, b) for a, b in zip(others, gradients, strict=True))
    swapped, _ = logits_and_gradients(model, Composite(model.head_shape, parts[::-1]), backend)
    assert not torch.equal(swapped, expected)  # at the MLP the order counts
    points = [point for part in parts for point in part.points()]
    assert together.points() == list(dict.fromkeys(points))


def test_counts_groups_gates_and_penalty_are_those_of_the_parts(make_model: MakeModel) -> None:
    model = make_model()
    jola, bitfit, red = parts_of(model)
    edit = Composite(model.head_shape, [bitfit, jola, red])
    assert edit.n_parameters() == sum(part.n_parameters() for part in (jola, bitfit, red))
    grouped = [id(p) for group in edit.parameter_groups().values() for p in group]
    assert sorted(grouped) == sorted(id(p) for p in edit.parameters())
    assert edit.parameter_groups()["gates"] == jola.parameter_groups()["gates"]
    assert edit.log_alphas().keys() == jola.log_alphas().keys()
    assert {site: mask.tolist() for site, mask in edit.masks().items()} == {
        site: mask.tolist() for site, mask in jola.masks().items()
    }
    ungated = JoLA(model.head_shape, gates="none", sites=("attention",))
    assert Composite(model.head_shape, [jola, ungated]).masks().keys() == jola.masks().keys()  # they count gates
    assert Composite(model.head_shape, [red, ungated]).masks().keys() == {"attention"}
    for form in ("mean", "reference"):
        assert edit.penalty(form) == jola.penalty(form)
    edit.inference = "point"
    assert jola.inference == "point"  # type: ignore[attr-defined]
    assert edit.site("heads") is jola.site("heads")  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="no part of this edit has gates: bitfit, red"):
        _ = Composite(model.head_shape, [bitfit, red]).inference


def test_mean_penalty_of_two_gated_parts_is_the_mean_over_all_gates(make_model: MakeModel) -> None:
    shape = make_model().head_shape
    both = JoLA(shape, sites=("heads", "mlp"), init_std=0.3).initialise(torch.Generator().manual_seed(0))
    heads, mlp = JoLA(shape), JoLA(shape, sites=("mlp",))
    for part, site in ((heads, "heads"), (mlp, "mlp")):
        part.site(site).load_state_dict(both.site(site).state_dict())  # type: ignore[arg-type]
    edit = Composite(shape, [heads, mlp])
    for form in ("mean", "reference"):
        for kind, share in both.penalty(form).items():
            torch.testing.assert_close(edit.penalty(form)[kind], share)


def test_settings_and_tensors_make_an_equal_edit(make_model: MakeModel) -> None:
    model = make_model()
    edit = Composite(model.head_shape, [*parts_of(model)[:2], LoRA.of(model.hf, r=2)])
    edit.initialise(torch.Generator().manual_seed(3))
    again = edit_from_settings(edit_settings(edit), model.head_shape)
    assert not again.initialised
    again.load_tensors(edit.tensors())
    assert again.initialised
    assert edit_settings(again) == edit_settings(edit)
    with torch.no_grad():
        with attach(edit, model, "hooks"):
            expected = model.logits(IDS, MASK)
        with attach(again, model, "hooks"):
            assert torch.equal(model.logits(IDS, MASK), expected)
    good = edit.tensors()
    for bad, message in (
        ({name: value for name, value in good.items() if not name.startswith("1.")}, r"part 1 \(bitfit\): .*missing"),
        ({**good, "7.b.key": good["1.b.key"]}, "7.b.key: expected <place>.<name>, the place below 3"),
    ):
        with pytest.raises(ValueError, match=message):
            again.load_tensors(bad)


def test_parts_that_have_values_keep_them(make_model: MakeModel) -> None:
    model = make_model()
    jola, fresh = parts_of(model)[0], JoLA(model.head_shape, gates="none", sites=("attention",), init_std=0.3)
    before = {name: value.clone() for name, value in jola.tensors().items()}
    edit = Composite(model.head_shape, [jola, fresh])
    assert not edit.initialised
    edit.initialise(torch.Generator().manual_seed(0))
    assert all(torch.equal(jola.tensors()[name], value) for name, value in before.items())
    assert bool(fresh.tensors()["additive.attention"].any())


def test_weights_and_activations_are_edited_together(make_model: MakeModel) -> None:
    model = make_model()
    lora = LoRA.of(model.hf, r=2).initialise(torch.Generator().manual_seed(0))
    for up in lora.B.values():
        up.data.fill_(0.05)
    jola = parts_of(model)[0]
    expected, gradients = logits_and_gradients(model, [lora, jola], "hooks")
    for parts in ([lora, jola], [jola, lora]):
        edit = Composite(model.head_shape, parts)
        assert edit.on_weights
        found, others = logits_and_gradients(model, edit, "hooks")
        assert torch.equal(found, expected)
        order = parts if parts[0] is lora else parts[::-1]
        assert len(others) == len(gradients) == sum(len(list(part.parameters())) for part in order)
    assert not Composite(model.head_shape, [jola]).on_weights
    assert not any("lora" in name for name, _ in model.hf.named_modules())


def test_a_composite_of_a_live_part_is_refused(make_model: MakeModel) -> None:
    model = make_model()
    parts = parts_of(model)
    edit = Composite(model.head_shape, parts)
    with attach(parts[1], model, "hooks"), pytest.raises(ValueError, match="already"), attach(edit, model, "hooks"):
        pass


def test_restricted_restricts_every_part_or_says_which_cannot(make_model: MakeModel) -> None:
    model = make_model()
    parts = parts_of(model)
    edit = Composite(model.head_shape, parts)
    with torch.no_grad():
        with attach([part.restricted(strength=0.5) for part in parts], model, "hooks"):
            expected = model.logits(IDS, MASK)
        with attach(edit.restricted(strength=0.5), model, "hooks"):
            assert torch.equal(model.logits(IDS, MASK), expected)
        base = model.logits(IDS, MASK)
        with attach(edit.restricted(strength=0.0), model, "hooks"):
            assert torch.equal(model.logits(IDS, MASK), base)
    with pytest.raises(ValueError, match="heads must be None for BitFit"):
        edit.restricted(heads=["L0H0"])
    only_heads = Composite(model.head_shape, [parts[0]]).restricted(heads=["L0H0"])
    assert only_heads.tensors()["0.additive.heads"].any(-1).nonzero().tolist() == [[0, 0]]


def test_bad_parts_are_named(make_model: MakeModel) -> None:
    shape, other = make_model().head_shape, make_model("gemma3").head_shape
    for parts, message in (
        ([], "at least one edit"),
        ([RED(other)], "a RED is made for HeadShape"),
        ([JoLA(shape), JoLA(shape)], "two have additive gates at heads"),
        ([JoLA(shape), HeadGates(shape)], "another chooses units there"),
        ([{"type": "nothing"}], "type must be one of .*; got 'nothing'"),
    ):
        with pytest.raises(ValueError, match=message):
            Composite(shape, parts)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="units='rms' needs its units first"):
        Composite(shape, [JoLA(shape, units="rms")]).initialise(torch.Generator())


class Interrupt(Callback):
    def on_step(self, state: Any) -> None:
        if state.step == 2:
            raise KeyboardInterrupt


def gated_with_biases(model: Model) -> Edit:
    return Composite(model.head_shape, [JoLA(model.head_shape), BitFit(model.head_shape)])


GATED = Method("gated-biases", "-", "-", "-", gated_with_biases)


@pytest.mark.parametrize("method", [BIASES[0], GATED], ids=lambda found: found.name)
def test_a_run_resumes_to_the_same_bytes_loads_and_reads_its_gates(
    make_model: MakeModel, toy_task: Task, tmp_path: Path, method: Method
) -> None:
    options: dict[str, Any] = {"batch_size": 4, "wrapper": "plain", "max_steps": 4, "max_new_tokens": 2, "lr": 1e-2}
    whole = ji.fit(make_model(), toy_task, method, out=tmp_path / "whole", **options)
    cut = ji.fit(make_model(), toy_task, method, out=tmp_path / "cut", callbacks=[Interrupt()], **options)
    assert cut.status == "interrupted"
    again = ji.fit(make_model(), toy_task, method, out=tmp_path / "cut", resume=True, **options)
    for file in ("edit.safetensors", "gates.safetensors", "metrics.jsonl", "scores.json", "config.json"):
        assert (whole.path / file).read_bytes() == (again.path / file).read_bytes()
    model = make_model()
    loaded = Run.load(whole.path, model)
    with torch.no_grad(), loaded.attach(model), attach(whole.edit, other := make_model()):
        assert torch.equal(model.logits(IDS, MASK), other.logits(IDS, MASK))
    assert bool(loaded.edit.tensors()["1.b.key"].any())
    if method is GATED:
        assert {kind for _, kind in loaded.gates.keys} == {"additive", "multiplicative"}
        assert loaded.convergence is not None
        assert len(loaded.selection().to_frame()) <= 8
        opened = loaded.metrics["open_additive"].dropna()
        assert opened.iloc[-1] == pytest.approx(loaded.gates.p_open("additive")[-1].sum(), rel=1e-5)
