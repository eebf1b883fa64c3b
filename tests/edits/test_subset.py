"""The relaxed top K and the edit on it: K in all, hard in the limit, exactly K heads at inference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import jola_interp as ji
from jola_interp.backends import attach
from jola_interp.callbacks import Callback
from jola_interp.edits import Context, HeadShape
from jola_interp.edits.subset import Subset, gumbel, relaxed_top_k, top_k
from jola_interp.models import Model
from jola_interp.runs import Run, edit_from_settings, edit_settings
from jola_interp.tasks import Task

MakeModel = Callable[..., Model]
SHAPE = HeadShape(layers=3, heads=4, kv_heads=2, d_head=8, d_model=32)
IDS = torch.tensor([[5, 17, 200, 33, 90, 12, 7]])
FIELDS: dict[str, Any] = {
    "backend": "hooks", "batch_size": 4, "wrapper": "plain", "evaluate": False, "max_steps": 8, "gate_share": 0.5,
    "patience": None,
}  # fmt: skip


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(seed: int = 0, k: int = 3, **switches: Any) -> Subset:
    """An edit whose vectors are large enough to matter, and whose logits are all different."""
    edit = Subset(SHAPE, k=k, init_std=1.0, **switches).initialise(seeded(seed))
    edit.logits.data.copy_(torch.randn(edit.logits.shape, generator=seeded(seed + 1)))
    return edit


def apply(edit: Any, z: torch.Tensor, layer: int = 1, noise: Any = None) -> torch.Tensor:
    state = Context(noise=noise)
    state.prepared = edit.prepare(state, z.dtype)
    result: torch.Tensor = edit(z, layer, "heads", state)
    return result


def logits(model: Model, edit: Any, backend: Any = "hooks") -> torch.Tensor:
    with torch.no_grad(), attach(edit, model, backend):
        return model.logits(IDS, torch.ones_like(IDS), 1)


# -- the relaxed top K -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1e-8, 0.1, 0.5, 1.0, 5.0, 1e3])
@pytest.mark.parametrize("k", [1, 2, 32, 269, 270])
def test_relaxed_top_k_sums_to_k(k: int, temperature: float) -> None:
    scores = 10 * torch.randn(270, generator=seeded())
    gates = relaxed_top_k(scores, k, temperature)
    assert gates.dtype == scores.dtype
    assert bool((gates >= 0).all())
    torch.testing.assert_close(gates.double().sum().item(), float(k), rtol=1e-5, atol=0)


@pytest.mark.parametrize("spread", [1.0, 30.0, 1000.0])
def test_relaxed_top_k_tends_to_the_hard_one_as_the_temperature_falls(spread: float) -> None:
    scores = spread * torch.randperm(50, generator=seeded()) / 50
    neighbours = spread / 50
    hard = top_k(scores, 7)
    warm, cold = (relaxed_top_k(scores, 7, neighbours * share) for share in (10, 0.03))
    assert (warm - hard).abs().max() > 0.1
    assert (cold - hard).abs().max() < 1e-6


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
@pytest.mark.parametrize(("n", "k"), [(8, 2), (270, 32), (1024, 128)])
def test_at_a_temperature_of_one_half_gates_hardly_exceed_1(n: int, k: int, spread: float) -> None:
    for seed in range(5):
        scores = gumbel(torch.rand(n, generator=seeded(seed))) + spread * torch.randn(n, generator=seeded(seed))
        assert relaxed_top_k(scores, k, 0.5).max() < 1.1


def test_relaxed_top_1_is_the_softmax() -> None:
    scores = torch.randn(12, generator=seeded())
    torch.testing.assert_close(relaxed_top_k(scores, 1, 0.3), (scores / 0.3).softmax(0))


def test_what_was_taken_is_taken_off_before_the_next() -> None:
    """The definition, step by step, where nothing is near its limits."""
    scores = 0.3 * torch.randn(6, generator=seeded()).double()
    first = (scores / 0.7).softmax(0)
    second = ((scores + (1 - first).log()) / 0.7).softmax(0)
    third = ((scores + (1 - first - second).log()) / 0.7).softmax(0)
    torch.testing.assert_close(relaxed_top_k(scores, 3, 0.7), first + second + third)


def test_gradient_is_the_functions_own() -> None:
    scores = torch.randn(9, generator=seeded()).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: relaxed_top_k(x, 4, 0.5), (scores,))


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0, 100.0])
@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0, 1e4])
def test_gradient_is_finite_for_equal_and_for_far_scores(spread: float, temperature: float) -> None:
    for k in (1, 5, 20):
        scores = (spread * torch.randn(20, generator=seeded())).requires_grad_()
        weights = torch.randn(20, generator=seeded(1))
        (relaxed_top_k(scores, k, temperature) * weights).sum().backward()
        assert scores.grad is not None
        assert bool(scores.grad.isfinite().all())


def test_hard_top_k_takes_the_first_of_equal_scores() -> None:
    assert top_k(torch.tensor([1.0, 2.0, 2.0, 0.0, 2.0]), 2).tolist() == [0, 1, 1, 0, 0]
    assert top_k(torch.zeros(4), 4).tolist() == [1, 1, 1, 1]


def test_gumbel_noise_draws_by_the_softmax_of_the_scores() -> None:
    scores = torch.tensor([1.0, 0.0, -1.0, 0.5])
    draws = (scores + gumbel(torch.rand(100_000, 4, generator=seeded()))).argmax(-1)
    torch.testing.assert_close(draws.bincount() / 100_000, scores.softmax(0), atol=0.01, rtol=0)


# -- the edit ----------------------------------------------------------------------------------------------------------


def test_at_inference_exactly_k_heads_are_edited_by_the_equation() -> None:
    edit, z = made(k=3), torch.randn(2, 5, 4, 8)
    part, seen = edit.site("heads"), []
    for layer in range(3):
        result = apply(edit, z, layer)
        for head in range(4):
            if torch.equal(result[:, :, head], z[:, :, head]):
                continue
            seen.append((layer, head))
            m, a = (part.vectors[name][layer, head] for name in ("multiplicative", "additive"))
            torch.testing.assert_close(result[:, :, head], (1 + m) * z[:, :, head] + a)
    assert seen == sorted(edit.chosen())
    assert len(seen) == 3
    ranked = edit.logits.flatten().sort(descending=True).values
    assert [edit.logits[unit].item() for unit in edit.chosen()] == ranked[:3].tolist()


def test_in_training_the_gate_is_the_relaxed_top_k_of_noisy_logits() -> None:
    edit, z = made(k=3, temperature=0.4), torch.randn(2, 5, 4, 8)
    noise = edit.draw(seeded(5))
    (uniform,) = noise.values()
    gates = relaxed_top_k((edit.logits + gumbel(uniform)).flatten(), 3, 0.4).reshape(3, 4)
    part = edit.site("heads")
    m, a = (gates[1][:, None] * part.vectors[name][1] for name in ("multiplicative", "additive"))
    torch.testing.assert_close(apply(edit, z, noise=noise), (1 + m) * z + a)
    assert torch.equal(apply(edit, z, noise=edit.draw(seeded(5))), apply(edit, z, noise=noise))
    assert not torch.equal(apply(edit, z, noise=edit.draw(seeded(6))), apply(edit, z, noise=noise))


def test_every_logit_is_moved_by_a_draw_and_none_at_inference() -> None:
    edit, z = made(), torch.randn(2, 5, 4, 8, generator=seeded(2))
    apply(edit, z, noise=edit.draw(seeded())).square().sum().backward()
    assert edit.logits.grad is not None
    assert bool((edit.logits.grad != 0).all())
    assert bool(edit.logits.grad.isfinite().all())
    edit.zero_grad()
    apply(edit, z).square().sum().backward()
    assert edit.logits.grad is None


def test_gates_are_not_taken_for_hardconcrete_ones() -> None:
    edit = made()
    assert edit.log_alphas() == {}
    assert edit.penalty() == {}


def test_parameters_are_counted_as_trained() -> None:
    edit = Subset(SHAPE, k=2)
    groups = edit.parameter_groups()
    assert set(groups) == {"additive", "multiplicative", "gates"}
    trained = sum(p.numel() for group in groups.values() for p in group)
    assert edit.n_parameters() == trained == sum(p.numel() for p in edit.parameters()) == 3 * 4 * (2 * 8 + 1)


def test_only_heads_to_choose_from_are_chosen_and_draw() -> None:
    edit = made(k=2, heads=["L1H2", "L2H0", "L0H1"])
    assert set(edit.chosen()) <= {(1, 2), (2, 0), (0, 1)}
    apply(edit, torch.randn(1, 2, 4, 8), noise=edit.draw(seeded())).square().sum().backward()
    assert edit.logits.grad is not None
    assert {tuple(unit) for unit in edit.logits.grad.nonzero().tolist()} <= {(1, 2), (2, 0), (0, 1)}
    assert edit.n_parameters() == 3 * (2 * 8 + 1)


@pytest.mark.parametrize("strength", [0.0, 0.5, 2.0])
def test_a_part_of_an_edit_goes_a_share_of_the_way_at_its_heads_alone(strength: float) -> None:
    edit, z = made(k=8), torch.randn(2, 5, 4, 8)
    layer, head = edit.chosen()[0]
    part = apply(edit.restricted([(layer, head)], strength=strength), z, layer)
    expected = z.clone()
    expected[:, :, head] += strength * (apply(edit, z, layer) - z)[:, :, head]
    torch.testing.assert_close(part, expected)


def test_settings_and_tensors_make_an_equal_edit() -> None:
    edit, z = made(k=2, heads=["L1H2", "L1H0", "L0H1"], temperature=0.2), torch.randn(2, 5, 4, 8)
    tensors = {name: value.clone() for name, value in edit.tensors().items()}
    again: Any = edit_from_settings(edit_settings(edit), SHAPE).load_tensors(tensors)
    assert isinstance(again, Subset)
    assert edit_settings(again) == edit_settings(edit)
    assert again.chosen() == edit.chosen()
    assert torch.equal(apply(again, z), apply(edit, z))


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"k": 13}, "k must be an integer from 1 to 12, .*got 13"),
        ({"k": 0}, "k must be an integer from 1 to 12, .*got 0"),
        ({"k": 2, "heads": ["L0H1"]}, "from 1 to 1, .*got 2"),
        ({"k": 2, "temperature": 0.0}, "temperature must be a finite number above 0; got 0"),
        ({"k": 2, "heads": ["L9H0"]}, "L9H0 is not in this model"),
    ],
)
def test_bad_switches_are_refused(switches: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Subset(SHAPE, **switches)


# -- trained -----------------------------------------------------------------------------------------------------------


class Watch(Callback):
    """Notes the logits after every step; interrupts where told."""

    def __init__(self, stop: int | None = None):
        self.stop, self.seen = stop, []  # type: ignore[var-annotated]

    def on_step(self, state: Any) -> None:
        self.seen.append(state.edit.logits.detach().clone())
        if state.step == self.stop:
            raise KeyboardInterrupt


def test_logits_train_for_their_share_of_the_steps_and_then_stand(
    make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    model, watch = make_model(), Watch()
    before = model.weights_digest()
    run = ji.fit(model, toy_task, Subset(model.head_shape, k=2), out=tmp_path / "run", callbacks=[watch], **FIELDS)
    steps = list(zip(watch.seen, watch.seen[1:], strict=False))
    assert [torch.equal(one, two) for one, two in steps] == [False, False, False, True, True, True, True]
    assert model.weights_digest() == before
    assert not run.gates.keys
    assert not [name for name in run.metrics if name.startswith(("open_", "lambda_"))]
    assert len(run.edit.chosen()) == 2  # type: ignore[attr-defined]


def test_resumed_training_equals_uninterrupted(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    def train(name: str, **options: Any) -> Run:
        model = make_model()
        return ji.fit(model, toy_task, Subset(model.head_shape, k=2), out=tmp_path / name, **FIELDS, **options)

    train("whole")
    assert train("parts", callbacks=[Watch(stop=3)]).status == "interrupted"
    train("parts", resume=True)
    for file in ("edit.safetensors", "config.json", "metrics.jsonl"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes()


def test_its_run_loads_to_the_same_logits_and_both_backends_agree(
    make_model: MakeModel, toy_task: Task, tmp_path: Path
) -> None:
    model = make_model(attention="eager")
    edit = Subset(model.head_shape, k=2, init_std=0.3)
    run = ji.fit(model, toy_task, edit, out=tmp_path / "run", **FIELDS)
    again = Run.load(run.path)
    assert isinstance(again.edit, Subset)
    expected = logits(model, run.edit)
    assert torch.equal(logits(model, again.edit), expected)
    other = logits(make_model(attention="eager"), again.edit, "lens")
    assert (other - expected).abs().max() <= 1e-6 * expected.abs().max()
