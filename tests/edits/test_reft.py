"""ReFT is its equation, at the ends of the prompt and nowhere else; R keeps orthonormal rows whatever training does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from jola_interp.backends import attach
from jola_interp.callbacks import Callback, TrainingState
from jola_interp.edits import Context, Edit, HeadShape, JoLA
from jola_interp.edits.reft import ReFT, _check_counts, _check_words, orthonormal_rows, prompt_ends
from jola_interp.methods.reft import REFT
from jola_interp.models import Model
from jola_interp.runs import Run, edit_from_settings, edit_settings
from jola_interp.tasks import Task
from jola_interp.training import fit

MakeModel = Callable[..., Model]
SHAPE = HeadShape(layers=3, heads=4, kv_heads=2, d_head=8, d_model=32)
FIELDS: dict[str, Any] = {
    "backend": "hooks", "batch_size": 4, "wrapper": "plain", "evaluate": False, "max_steps": 9, "patience": None,
    "lr": 0.05,
}  # fmt: skip
KINDS: list[dict[str, Any]] = [
    {"kind": "loreft"},
    {"kind": "loreft", "shared": False},
    {"kind": "direft"},
    {"kind": "direft", "shared": False},
    {"kind": "direft", "orthonormal": True},
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(shape: HeadShape = SHAPE, seed: int = 0, **switches: Any) -> ReFT:
    """An edit that moves h by about as much as h is long."""
    edit = ReFT(shape, **{"r": 4, "p": 2, "s": 3, **switches}).initialise(seeded(seed))
    for parameter in edit.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=seeded(seed + 1)) / 4)
    return edit


def padded(prompts: list[int], answers: list[int]) -> tuple[Tensor, Tensor]:
    """(attention mask, prompt mask) of left-padded rows with so many prompt and answer tokens."""
    width = max(p + a for p, a in zip(prompts, answers, strict=True))
    rows = [
        ([0] * (width - p - a) + [1] * (p + a), [0] * (width - p - a) + [1] * p + [0] * a)
        for p, a in zip(prompts, answers, strict=True)
    ]
    masks = torch.tensor(rows)
    return masks[:, 0], masks[:, 1].bool()


def apply(edit: ReFT, h: Tensor, context: Context, layer: int = 1) -> Tensor:
    context.prepared = edit.prepare(context, h.dtype)
    result: Tensor = edit(h, layer, "residual", context)
    return result


def ends_by_hand(prompt: list[int], first: int, last: int) -> tuple[list[int], list[int]]:
    """Columns of the prompt in reach of either end; one in reach of both is the nearer end's."""
    n = len(prompt)
    prefix = [prompt[i] for i in range(n) if i < first and (n - 1 - i >= last or i <= n - 1 - i)]
    return prefix, [prompt[i] for i in range(n) if n - 1 - i < last and prompt[i] not in prefix]


def by_hand(edit: ReFT, h: Tensor, prompt_mask: Tensor, layer: int = 1) -> Tensor:
    """The equation with explicit matrices, one position after the other."""
    result = h.clone()
    outer = edit.rows().detach()
    for row, mask in enumerate(prompt_mask.tolist()):
        sides = ends_by_hand([column for column, on in enumerate(mask) if on], edit.p, edit.s)
        for side, columns in enumerate(sides):
            number = side if len(outer) == 2 else 0
            r, w, b = outer[number, layer], edit.inner.detach()[number, layer], edit.bias.detach()[number, layer]
            for column in columns:
                x = h[row, column]
                change = r.T @ (w @ x + b - (r @ x if edit.kind == "loreft" else 0))
                result[row, column] = x + change
    return result


# -- the equation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("switches", KINDS)
def test_edit_is_the_equation_at_both_ends_of_each_prompt_and_nowhere_else(switches: dict[str, Any]) -> None:
    mask, prompt = padded([9, 6, 5, 4, 3, 2, 1], [1, 4, 2, 2, 6, 1, 3])
    edit, h = made(**switches), torch.randn(*mask.shape, 32, generator=seeded(5))
    found = apply(edit, h, Context(mask, prompt))
    expected = by_hand(edit, h, prompt)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close((found != h).any(-1), (expected != h).any(-1))
    assert bool((found != h).any(-1)[0].sum() == 5)


def test_loreft_with_w_equal_to_r_adds_r_transposed_b() -> None:
    mask, prompt = padded([4], [1])
    edit, h = made(p=2, s=2), torch.randn(1, 5, 32, generator=seeded(5))
    edit.inner.data.copy_(edit.rows())
    added = edit.rows()[0, 1].T @ edit.bias[0, 1]
    found = apply(edit, h, Context(mask, prompt))
    torch.testing.assert_close(found[:, :4], h[:, :4] + added)
    assert torch.equal(found[:, 4], h[:, 4])


def test_loreft_replaces_what_r_reads_by_w_h_plus_b() -> None:
    """R h' = W h + b, and h' − h lies in the rows of R."""
    mask, prompt = padded([5], [1])
    edit, h = made(), torch.randn(1, 6, 32, generator=seeded(5))
    after = apply(edit, h, Context(mask, prompt))[0, :5]
    rows = edit.rows()[0, 1]
    torch.testing.assert_close(after @ rows.T, h[0, :5] @ edit.inner[0, 1].T + edit.bias[0, 1])
    outside = torch.eye(32) - rows.T @ rows
    torch.testing.assert_close((after - h[0, :5]) @ outside, torch.zeros(5, 32), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("switches", KINDS)
def test_new_and_freshly_started_edits_are_the_identity_bit_for_bit(
    switches: dict[str, Any], dtype: torch.dtype
) -> None:
    mask, prompt = padded([6, 3], [2, 2])
    h = 100 * torch.randn(*mask.shape, 32, generator=seeded(5)).to(dtype)
    for edit in (ReFT(SHAPE, r=4, **switches), ReFT(SHAPE, r=4, **switches).initialise(seeded())):
        assert torch.equal(apply(edit, h, Context(mask, prompt)), h)


@pytest.mark.parametrize("switches", KINDS)
def test_from_the_identity_a_gradient_reaches_the_edit(switches: dict[str, Any]) -> None:
    mask, prompt = padded([6], [2])
    edit = ReFT(SHAPE, r=4, **switches).initialise(seeded())
    apply(edit, torch.randn(1, 8, 32), Context(mask, prompt)).square().sum().backward()
    assert any(bool(p.grad is not None and p.grad.ne(0).any()) for p in edit.parameters())


def test_the_linear_start_moves_h_as_far_as_the_docstring_says() -> None:
    shape = HeadShape(layers=8, heads=4, kv_heads=4, d_head=144, d_model=576)
    mask, prompt = padded([8], [1])
    edit = ReFT(shape, p=8, s=0, start="linear").initialise(seeded())
    h = torch.randn(1, 9, 576, generator=seeded(5))
    with torch.no_grad():
        moved = torch.stack([apply(edit, h, Context(mask, prompt), layer) - h for layer in range(8)])[:, :, :8]
    share = (moved.norm(dim=-1) / h[:, :8].norm(dim=-1)).square().mean().sqrt()
    assert float(share) == pytest.approx((4 * 8 / (3 * 576)) ** 0.5, rel=0.1)


def test_a_bfloat16_stream_is_edited_in_float32_and_rounded_once() -> None:
    mask, prompt = padded([5], [1])
    edit, h = made(), torch.randn(1, 6, 32, generator=seeded(5)).bfloat16()
    expected = by_hand(edit, h.float(), prompt)
    found = apply(edit, h, Context(mask, prompt))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=2**-8, atol=1e-6)


# -- orthonormal rows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize("size", [(2, 3, 8, 64), (1, 5, 1, 32), (6, 6)])
def test_any_reflectors_give_orthonormal_rows(size: tuple[int, ...], scale: float) -> None:
    rows = orthonormal_rows(scale * torch.randn(size, generator=seeded()))
    expected = torch.eye(size[-2]).expand(*size[:-2], -1, -1)
    torch.testing.assert_close(rows @ rows.mT, expected, atol=1e-6, rtol=0)


def test_rows_are_those_of_the_parametrization_in_torch_with_the_same_gradient() -> None:
    class Held(nn.Module):
        def __init__(self, weight: Tensor):
            super().__init__()
            self.weight = nn.Parameter(weight)

    held = orthogonal(Held(torch.randn(3, 4, 32, generator=seeded())), use_trivialization=False)
    original = held.parametrizations.weight.original  # type: ignore[union-attr,index]
    reflectors = original.detach().clone().requires_grad_()  # type: ignore[operator]
    signs = original.diagonal(dim1=-2, dim2=-1)[..., None]  # type: ignore[operator]
    rows, weights = orthonormal_rows(reflectors), torch.randn(3, 4, 32, generator=seeded(1))
    torch.testing.assert_close(signs * rows, held.weight)
    ours = torch.autograd.grad((signs * rows * weights).sum(), reflectors)
    theirs = torch.autograd.grad((held.weight * weights).sum(), original)  # type: ignore[operator,arg-type]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_rows_stay_orthonormal_while_they_train(
    make_model: MakeModel, toy_task: Task, tmp_path: Path, weight_decay: float
) -> None:
    model = make_model()
    start = ReFT(model.head_shape, r=4).initialise(seeded())
    run = fit(model, toy_task, start, out=tmp_path / "run", **{**FIELDS, "weight_decay": weight_decay})
    trained = run.edit.rows().detach()  # type: ignore[attr-defined]
    torch.testing.assert_close(trained @ trained.mT, torch.eye(4).expand(1, 2, 4, 4), atol=1e-5, rtol=0)
    assert float((trained - start.rows().detach()).abs().max()) > 0.05


def test_parameters_are_those_of_the_paper() -> None:
    """2·r·d + r per layer; Llama-3.1-8B at r = 8, all 32 layers, shared: 2,097,408."""
    llama = HeadShape(32, 32, 8, 128, 4096)
    for kind in ("loreft", "direft"):
        edit = ReFT(llama, kind=kind)  # type: ignore[arg-type]
        assert edit.n_parameters() == sum(p.numel() for p in edit.parameters()) == 2_097_408
    assert ReFT(llama, shared=False, layers=[3, 7]).n_parameters() == 2 * 2 * (2 * 8 * 4096 + 8)
    assert ReFT(llama, shared=False, p=0, layers=[3, 7]).n_parameters() == 2 * (2 * 8 * 4096 + 8)


# -- positions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 1, 3, 9])
@pytest.mark.parametrize("last", [0, 1, 4, 9])
def test_each_prompt_position_within_reach_is_edited_once_and_padding_never(first: int, last: int) -> None:
    lengths = list(range(1, 11))
    mask, prompt = padded(lengths, [11 - n for n in reversed(lengths)])
    sides = prompt_ends(Context(mask, prompt), first, last)
    assert sides is not None
    prefix, suffix = sides
    assert not bool((prefix & suffix).any())
    for row, on in enumerate(prompt.tolist()):
        expected = ends_by_hand([column for column, yes in enumerate(on) if yes], first, last)
        found = tuple(side[row].nonzero()[:, 0].tolist() for side in sides)
        assert found == expected
        assert len(found[0]) + len(found[1]) == min(first + last, lengths[row])


def test_prompt_tokens_that_are_padding_and_prompts_without_padding_are_told_apart() -> None:
    mask, prompt = padded([3, 5], [2, 2])
    careless = prompt | (mask == 0)
    for found, expected in zip(prompt_ends(Context(mask, careless), 2, 2), prompt_ends(Context(mask, prompt), 2, 2)):  # type: ignore[arg-type] # noqa: B905
        assert torch.equal(found, expected)


def test_without_a_prompt_mask_the_pass_that_fills_the_cache_is_prompt_and_later_ones_are_not_edited() -> None:
    mask, _ = padded([6, 3], [0, 0])
    edit, h = made(), torch.randn(2, 6, 32, generator=seeded(5))
    assert torch.equal(apply(edit, h, Context(mask)), apply(edit, h, Context(mask, mask.bool())))
    longer = torch.cat([mask, torch.ones(2, 1, dtype=mask.dtype)], 1)
    step = torch.randn(2, 1, 32, generator=seeded(6))
    assert torch.equal(apply(edit, step, Context(longer, decoding=True)), step)


@pytest.mark.parametrize("behind", [1, 4, 7])
def test_a_pass_over_the_last_tokens_alone_edits_those_of_them_that_a_whole_one_does(behind: int) -> None:
    mask, prompt = padded([6, 4], [2, 3])
    edit, h = made(shared=False), torch.randn(2, 8, 32, generator=seeded(5))
    whole = apply(edit, h, Context(mask, prompt))
    part = apply(edit, h[:, behind:], Context(mask, prompt, decoding=True))
    torch.testing.assert_close(part, whole[:, behind:])


def test_a_pass_without_masks_that_fit_is_refused() -> None:
    mask, prompt = padded([6], [2])
    for context in (Context(), Context(prompt_mask=prompt), Context(mask[:, None, None])):
        with pytest.raises(ValueError, match=r"needs the attention mask \[batch, pos\]"):
            made().prepare(context, torch.float32)
    with pytest.raises(ValueError, match=r"prompt_mask must be \[1, 8\].*got \[1, 6\]"):
        made().prepare(Context(mask, prompt[:, :6]), torch.float32)


# -- in a model --------------------------------------------------------------------------------------------------------


def batch_of_two() -> tuple[Tensor, Tensor, Tensor]:
    mask, prompt = padded([7, 4], [3, 2])
    ids = torch.randint(1, 250, mask.shape, generator=seeded(9))
    return ids.where(mask.bool(), 256), mask, prompt


@torch.no_grad()
def logits(model: Model, edit: ReFT | None = None, backend: Any = "hooks") -> Tensor:
    ids, mask, prompt = batch_of_two()
    if edit is None:
        return model.logits(ids, mask, 0, prompt)
    with attach(edit, model, backend) as attached:
        found = model.logits(ids, mask, 0, prompt)
    attached.check_live()
    return found


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("switches", KINDS[1:3])
def test_both_backends_edit_alike_and_leave_the_model_as_it_was(
    make_model: MakeModel, architecture: str, switches: dict[str, Any]
) -> None:
    model, other = make_model(architecture, attention="eager"), make_model(architecture, attention="eager")
    edit = made(model.head_shape, **switches)
    before, weights = logits(model), model.weights_digest()
    hooked = logits(model, edit)
    assert torch.equal(logits(model), before)
    assert model.weights_digest() == weights
    lensed = logits(other, edit, "lens")
    real = batch_of_two()[1].bool()
    torch.testing.assert_close(lensed[real], hooked[real], atol=1e-6 * float(hooked.abs().max()), rtol=0)
    assert float((hooked - before)[real].abs().max()) > 0.1


def test_rows_of_a_padded_batch_are_edited_as_they_are_alone(make_model: MakeModel) -> None:
    model = make_model("llama", attention="eager")
    edit = made(model.head_shape, shared=False)
    ids, mask, prompt = batch_of_two()
    batched = logits(model, edit)
    with attach(edit, model, "hooks"), torch.no_grad():
        for row in range(2):
            on = mask[row].bool()
            alone = model.logits(ids[row : row + 1, on], mask[row : row + 1, on], 0, prompt[row : row + 1, on])
            torch.testing.assert_close(batched[row, on], alone[0], atol=3e-5 * float(alone.abs().max()), rtol=0)


@pytest.mark.parametrize("backend", ["lens", "hooks"])
def test_decoding_with_a_cache_gives_the_logits_of_one_whole_pass(make_model: MakeModel, backend: Any) -> None:
    """Prompts of both rows fill the cache, then three tokens follow one by one, without any prompt mask."""
    model = make_model("llama", attention="eager")
    edit = made(model.head_shape)
    mask, prompt = padded([7, 4], [3, 3])
    ids = torch.randint(1, 250, mask.shape, generator=seeded(9))
    with attach(edit, model, backend), torch.no_grad():
        whole = model.logits(ids, mask, 4, prompt)
        output = model.forward(ids[:, :7], mask[:, :7], use_cache=True)
        steps = [output.logits[:, -1]]
        for place in range(7, 10):
            cache = output.past_key_values
            output = model.forward(ids[:, place : place + 1], mask[:, : place + 1], cache=cache, use_cache=True)
            steps.append(output.logits[:, -1])
    torch.testing.assert_close(torch.stack(steps, 1), whole, atol=3e-5 * float(whole.abs().max()), rtol=0)


@pytest.mark.parametrize("lengths", [[7, 4], [5, 5], [6]], ids=str)
@pytest.mark.parametrize("scope", [None, "prompt", "answer", "not_first"])
def test_generate_writes_what_whole_passes_with_the_prompt_mask_write(
    make_model: MakeModel, lengths: list[int], scope: Any
) -> None:
    """Also where `generate` drops the attention mask, which it does where no row is padded; JoLA beside it."""
    model = make_model("llama", attention="eager")
    edit: Edit = made(model.head_shape) if scope is None else JoLA(model.head_shape, scope=scope, init_std=1.0)
    if scope is not None:
        edit.initialise(seeded())
    mask, prompt = padded(lengths, [0] * len(lengths))
    ids = torch.randint(1, 250, mask.shape, generator=seeded(9))
    with attach(edit, model, "hooks"), torch.no_grad():
        written = model.hf.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=256
        )
        for _ in range(5):
            best = model.logits(ids, mask, 1, prompt)[:, -1:].argmax(-1)
            ids = torch.cat([ids, best], 1)
            mask = torch.cat([mask, torch.ones_like(best)], 1)
            prompt = torch.cat([prompt, torch.zeros_like(best).bool()], 1)
    assert torch.equal(written, ids)


# -- as an artefact ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.0, 0.5, -1.0, 2.0])
def test_strength_scales_the_change(strength: float) -> None:
    mask, prompt = padded([6, 3], [2, 2])
    edit, h = made(), torch.randn(2, 8, 32, generator=seeded(5))
    change = apply(edit, h, Context(mask, prompt)) - h
    part = apply(edit.restricted(strength=strength), h, Context(mask, prompt))
    torch.testing.assert_close(part, h + strength * change)
    if strength == 0:
        assert torch.equal(part, h)


def test_parts_that_it_does_not_have_are_refused() -> None:
    with pytest.raises(ValueError, match="heads must be None"):
        made().restricted(heads=["L0H1"])
    with pytest.raises(ValueError, match="kinds must be None"):
        made().restricted(kinds=["additive"])
    with pytest.raises(ValueError, match="strength must be a finite number, got nan"):
        made().restricted(strength=float("nan"))


@pytest.mark.parametrize("switches", [*KINDS, {"layers": [2, 0], "p": 0, "start": "linear"}])
def test_settings_and_tensors_make_an_equal_edit(switches: dict[str, Any]) -> None:
    edit = made(**switches).restricted(strength=0.5)
    tensors = {name: value.clone() for name, value in edit.tensors().items()}
    again = edit_from_settings(edit_settings(edit), SHAPE).load_tensors(tensors)
    assert again.settings() == edit.settings()
    assert again.points() == edit.points()
    assert again.initialised
    mask, prompt = padded([6, 3], [2, 2])
    h = torch.randn(2, 8, 32, generator=seeded(5))
    layer = edit.points()[0][0]
    assert torch.equal(apply(again, h, Context(mask, prompt), layer), apply(edit, h, Context(mask, prompt), layer))  # type: ignore[arg-type]


def test_tensors_of_another_edit_are_refused() -> None:
    tensors = made(shared=False).tensors()
    with pytest.raises(ValueError, match=r"outer: expected torch.float32 \[1, 3, 4, 32\], found .*\[2, 3, 4, 32\]"):
        made().load_tensors(tensors)


class InterruptAt(Callback):
    def __init__(self, step: int):
        self.step = step

    def on_step(self, state: TrainingState) -> None:
        if state.step == self.step:
            raise KeyboardInterrupt


def files_of(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "timing.json")
    return {path.name: path.read_bytes() for path in files}


@pytest.mark.parametrize("method", REFT, ids=lambda method: method.name)
def test_resumed_run_equals_uninterrupted_run_and_loads_as_it_was(
    make_model: MakeModel, toy_task: Task, tmp_path: Path, method: Any
) -> None:
    chosen = method(r=4, shared=False)
    whole = fit(make_model(), toy_task, chosen, out=tmp_path / "whole", **FIELDS)
    broken = fit(make_model(), toy_task, chosen, out=tmp_path / "broken", callbacks=[InterruptAt(4)], **FIELDS)
    assert broken.status == "interrupted"
    resumed = fit(make_model(), toy_task, chosen, out=tmp_path / "broken", resume=True, **FIELDS)
    assert resumed.status == "finished"
    assert files_of(tmp_path / "broken") == files_of(tmp_path / "whole")
    model = make_model()
    loaded = Run.load(tmp_path / "whole", model)
    first, again = (logits(model, run.edit.restricted()) for run in (whole, loaded))  # type: ignore[arg-type]
    assert torch.equal(first, again)
    assert not torch.equal(first, logits(model))
    losses = whole.metrics["validation_ce"].dropna().tolist()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"r": 0}, "r must be an integer from 1 to d_model = 32; got 0"),
        ({"r": 33}, "r must be an integer from 1 to d_model = 32; got 33"),
        ({"p": -1}, "p must be an integer ≥ 0; got -1"),
        ({"p": 0, "s": 0}, "p and s are both 0"),
        ({"layers": [3]}, r"layers must be some of 0 to 2, or None; got \[3\]"),
        ({"layers": []}, r"layers must be some of 0 to 2, or None; got \[\]"),
        ({"orthonormal": False}, "orthonormal must be True or None for kind 'loreft'"),
    ],
)
def test_bad_switches_are_named(switches: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReFT(SHAPE, **switches)


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: _check_words("reft", "identity", True, None), "kind must be one of loreft, direft; got 'reft'"),
        (lambda: _check_words("loreft", "zero", True, None), "start must be one of identity, linear; got 'zero'"),
        (lambda: _check_words("loreft", "linear", 1, None), "shared must be True or False; got 1"),
        (lambda: _check_words("direft", "linear", True, 0), "orthonormal must be True, False or None; got 0"),
        (lambda: _check_counts(SHAPE, 8, 7, 1.0), "s must be an integer ≥ 0; got 1.0"),
        (lambda: _check_counts(SHAPE, True, 7, 7), "r must be an integer from 1 to d_model = 32; got True"),
    ],
)
def test_switches_of_another_type_are_named_too(check: Callable[[], None], message: str) -> None:
    """By the checks themselves: in tests the constructor's annotations are checked before."""
    with pytest.raises(ValueError, match=message):
        check()


def test_a_run_of_it_has_no_hooks_without_masks(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> None:
    run = fit(make_model(), toy_task, REFT[0](r=4), out=tmp_path / "run", **{**FIELDS, "max_steps": 1})
    with pytest.raises(ValueError, match=r"this ReFT edits some tokens only, .*use attach\(\)"):
        run.fwd_hooks()
