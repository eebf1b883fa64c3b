"""How far activations move: against the formulas spelt out, at closed gates, by batches, padding and random edits."""

from __future__ import annotations

import dataclasses
import gc
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jola_interp.analysis.rows import Rows, Seen, output_weights, prepared, watched
from jola_interp.analysis.shifts import (
    CLASSES,
    KINDS,
    MEANS,
    MEASURES,
    NOTIONS,
    SOURCES,
    Shifts,
    _drawn,
    shifts,
    token_kinds,
)
from jola_interp.analysis.tables import read_table, write_table
from jola_interp.config import preset
from jola_interp.edits import JoLA
from jola_interp.edits.base import Context
from jola_interp.evaluation.side_effects import random_control
from jola_interp.history import GateHistory
from jola_interp.models import Model, load_model
from jola_interp.runs import Run
from jola_interp.tasks import Example, Task
from tests.conftest import build_hf

MakeModel = Callable[..., Model]
MODULE = importlib.import_module("jola_interp.analysis.shifts")  # the package has a function of that name
ARCHITECTURES = ("llama", "gpt2", "gemma3", "pythia")


def made(model: Model, **switches: Any) -> JoLA:
    """A random edit large enough to matter, whose gates are all open unless said otherwise.

    Not from seed 0: the control's directions would be the edit's own.
    """
    given = {"init_std": 0.3, "init_spread": 0.0, **switches}
    return JoLA(model.head_shape, **given).initialise(torch.Generator().manual_seed(7))


def run_of(model: Model, edit: JoLA, folder: Path, backend: str = "hooks") -> Run:
    """A Run of an edit that was not trained."""
    train = {**preset("paper").train.to_dict(), "wrapper": "{instruction}"}
    config = {"model": model.identity(), "task": {"name": "toy"}, "backend": backend, "train": train}
    return Run(folder, config, edit, GateHistory({"heads": edit.site("heads").mask.numpy()}, [], 1), model)


def task_of(rows: tuple[Example, ...]) -> Task:
    return Task("toy", (Example("other", "row"),), (), rows, kind="text", metric="bleu")


@pytest.fixture
def task() -> Task:
    """Prompts and answers of several lengths."""
    words = ["cat", "doggy", "owl 1", "foxes", "bee", "antelope", "ox"]
    rows = tuple(Example(f"{'x' * (i % 4)}{i}: {word}?", f"a {word}.", id=str(i)) for i, word in enumerate(words))
    return task_of(rows)


@pytest.fixture
def run(make_model: MakeModel, tmp_path: Path) -> Run:
    model = make_model(num_hidden_layers=3)
    return run_of(model, made(model), tmp_path)


def read(run: Run, task: Task) -> Rows:
    return prepared(run, task, None, rows=7, what="test")


def flat(seen: Seen, values: torch.Tensor) -> np.ndarray:
    """The batch's tokens, row by row."""
    rows = [row[mask] for row, mask in zip(values, seen.real, strict=True)]
    return torch.cat(rows).double().numpy()


def classes_of(seen: Seen) -> np.ndarray:
    found = []
    for i, mask in enumerate(seen.real):
        count, prompt = int(mask.sum()), int((seen.prompt[i] & mask).sum())
        found += [0] + [1] * (prompt - 1) + [2] * (count - prompt)
    return np.array(found)


def same(found: Shifts, expected: Shifts, bound: float = 0.0) -> None:
    """All numbers agree, within ``bound`` of the largest of their field, and everything else is equal."""
    for field in dataclasses.fields(Shifts):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        if not isinstance(one, dict):
            one, other = {"": one}, {"": other}
        assert one.keys() == other.keys()
        for key in one:
            if not isinstance(one[key], np.ndarray) or one[key].dtype.kind != "f":
                assert np.array_equal(one[key], other[key]), field.name
                continue
            scale = np.nanmax(np.abs(one[key]), initial=0)
            np.testing.assert_allclose(one[key], other[key], rtol=0, atol=bound * scale, err_msg=f"{field.name} {key}")


# -- what the passes show ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("booted", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_passes_show_the_stream_and_both_sides_of_the_edit(
    make_model: MakeModel, task: Task, tmp_path: Path, architecture: str, booted: bool
) -> None:
    model = make_model(architecture)
    if booted:
        assert model.bridge is not None
    edit, other = made(model), made(model, operations="add", heads=["L1H2"])
    rows = read(run_of(model, edit, tmp_path), task)
    context = Context()
    for seen in watched(rows, 3, other=other):
        hidden = model.hf(
            input_ids=seen.ids,
            attention_mask=seen.real.long(),
            position_ids=(seen.real.cumsum(1) - 1).clamp(min=0),
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states
        assert len(seen.base) == len(seen.residual) == model.head_shape.layers
        for layer in range(model.head_shape.layers):
            torch.testing.assert_close(seen.residual[layer][seen.real], hidden[layer][seen.real])
            context.prepared = edit.prepare(context, torch.float32)
            assert torch.equal(edit(seen.before[layer], layer, "heads", context), seen.after[layer])
        assert torch.equal(seen.base[0], seen.before[0]) and not torch.equal(seen.base[1], seen.before[1])
        assert seen.other_before is not None and seen.other_after is not None
        assert torch.equal(seen.base[1], seen.other_before[1])  # L0 is not edited
        moved = (seen.other_after[1] - seen.base[1]).abs().amax((0, 1, 3))
        assert moved.nonzero().flatten().tolist() == [2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_heads_write_what_the_projection_gives_without_its_bias(
    tokenizer: Any, architecture: str, dtype: torch.dtype
) -> None:
    hf = build_hf(architecture, **({"attention_bias": True} if architecture == "llama" else {})).to(dtype)
    model = load_model(hf, tokenizer=tokenizer)
    shape = model.head_shape
    projection = model.o_proj(1)
    if projection.bias is not None:
        projection.bias.data.fill_(30.0)  # next to it, bfloat16 knows nothing of W_O
    z = torch.randn(5, shape.heads, shape.d_head, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = torch.einsum("thd,hdm->tm", z.float(), output_weights(model, 1))
    exact = projection.float()
    expected = exact(z.float().flatten(1)) - (0 if exact.bias is None else exact.bias)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# -- the numbers -------------------------------------------------------------------------------------------------------


def spelt_out(run: Run, task: Task, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Every token's numbers by the formulas, head by head, with all that heads write; [layer][token, …]."""
    rows = read(run, task)
    found: dict[str, dict[str, Any]] = {
        source: {"class": [], "head": [], "layer": [], "whole": []} for source in SOURCES
    }
    for seen in watched(rows, 2, other=random_control(run.edit, seed)):
        assert seen.other_before is not None and seen.other_after is not None
        pairs = (
            (seen.before, seen.after),
            (seen.base, seen.after),
            (seen.other_before, seen.other_after),
            (seen.base, seen.other_after),
        )
        for source, (olds, news) in zip(SOURCES, pairs, strict=True):
            heads, layers, whole = [], [], []
            for layer in range(run.edit.shape.layers):
                old, new, stream = (flat(seen, one[layer]) for one in (olds, news, seen.residual))
                written = np.einsum("thd,hdm->thm", new - old, output_weights(rows.model, layer).double().numpy())
                delta, size, width = (np.linalg.norm(x, axis=-1) for x in (new - old, old, stream))
                cosine = (old * new).sum(-1) / size / np.linalg.norm(new, axis=-1)
                share = np.linalg.norm(written, axis=-1) / width[:, None]
                heads.append(np.stack([delta / size, cosine, share, delta, size], 1))
                write = written.sum(1)
                length = np.linalg.norm(write, axis=-1)
                layers.append(np.stack([length / width, (write * stream).sum(-1) / length / width], 1))
                sides = (x.reshape(len(x), -1) for x in (new - old, old))
                whole.append(np.divide(*(np.linalg.norm(x, axis=-1) for x in sides)))
            here = found[source]
            here["class"].append(classes_of(seen))
            for name, values in (("head", heads), ("layer", layers), ("whole", whole)):
                here[name].append(np.stack(values))
    return {
        source: {name: np.concatenate(parts, 0 if name == "class" else 1) for name, parts in one.items()}
        for source, one in found.items()
    }


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_table_is_the_mean_and_sd_of_the_formulas(
    make_model: MakeModel, task: Task, tmp_path: Path, architecture: str
) -> None:
    model = make_model(architecture)
    run = run_of(model, made(model), tmp_path)
    table = shifts(run, task, rows=7, heads=0, batch_size=3, controls=1)
    for source, expected in spelt_out(run, task).items():
        assert table.tokens.tolist() == np.bincount(expected["class"]).tolist()
        for group in range(len(CLASSES)):
            chosen = expected["class"] == group
            for name, axis, mean, sd in (
                ("head", "layer token measure head", table.mean, table.sd),
                ("layer", "layer token measure", table.layer_mean, table.layer_sd),
            ):
                values = expected[name][:, chosen]
                at = np.moveaxis(mean[source][:, group], 0, 1), np.moveaxis(sd[source][:, group], 0, 1)
                np.testing.assert_allclose(at[0], values.mean(1), rtol=2e-5, atol=2e-6, err_msg=axis)
                np.testing.assert_allclose(at[1], values.std(1), rtol=2e-3, atol=2e-5, err_msg=axis)
        # bins, kinds and classes all divide up the same tokens
        total = expected["whole"].sum(1)
        np.testing.assert_allclose(table.position_tokens @ table.position[source], total, rtol=1e-5)
        present = table.kind_tokens > 0
        np.testing.assert_allclose(table.kind_tokens[present] @ table.kind[source][present], total, rtol=1e-5)
        inner = expected["whole"][:, expected["class"] > 0].sum(1)
        np.testing.assert_allclose(table.answer_tokens @ table.answer[source], inner, rtol=1e-5)


def test_random_edits_are_several_draws_each_of_which_is_kept(run: Run, task: Task) -> None:
    several = shifts(run, task, rows=7, heads=0, controls=3)
    single = [shifts(run, task, rows=7, heads=0, controls=1, seed=seed) for seed in range(3)]
    assert single[0].draws is None and single[0].drawn("mean", "total").shape[0] == 1
    for name in MEANS:
        assert np.array_equal(getattr(several, name)["local"], getattr(single[0], name)["local"], equal_nan=True)
        for which in NOTIONS:
            draws = np.stack([getattr(one, name)[f"random_{which}"] for one in single])
            np.testing.assert_array_equal(several.drawn(name, which), draws)
            np.testing.assert_allclose(getattr(several, name)[f"random_{which}"], draws.mean(0), rtol=1e-12)
    assert not np.array_equal(several.drawn("mean", "local")[0], several.drawn("mean", "local")[1])
    assert "mean of 3 draws" in several.random_words() and "one draw" in single[0].random_words()


def test_an_edit_is_beyond_random_ones_where_none_reaches_it(run: Run, task: Task) -> None:
    table = shifts(run, task, rows=7, heads=0, controls=3)
    draws = dict(table.draws or {})
    own = table.mean["local"][None]
    far, around = np.concatenate([2 * own, 3 * own]), np.concatenate([0.5 * own, 2 * own])
    assert dataclasses.replace(table, draws={**draws, "mean/random_local": far}).beyond("local", "norm") == (12, 12)
    assert dataclasses.replace(table, draws={**draws, "mean/random_local": around}).beyond("local", "norm") == (0, 12)
    alike = np.concatenate([own * (1 - 1e-6), own * (1 - 2e-6)])  # but for rounding
    assert dataclasses.replace(table, draws={**draws, "mean/random_local": alike}).beyond("local", "norm") == (0, 12)


def test_closed_gates_move_nothing_at_all(make_model: MakeModel, task: Task, tmp_path: Path) -> None:
    model = make_model()
    edit = made(model, init_log_alpha=-20.0)
    table = shifts(run_of(model, edit, tmp_path), task, rows=7)
    for source in SOURCES:
        for measure in ("norm", "residual", "delta"):
            assert not table.mean[source][MEASURES.index(measure)].any()
            assert not table.sd[source][MEASURES.index(measure)].any()
        assert (table.mean[source][MEASURES.index("cosine")] == 1).all()
        assert not table.layer_mean[source][0].any() and np.isnan(table.layer_mean[source][1]).all()
        assert not table.position[source].any()
    assert table.plane_heads == () and table.planes == ()


def test_a_closed_head_does_not_move_itself_but_is_moved_from_below(run: Run, task: Task) -> None:
    with torch.no_grad():
        for log_alpha in run.edit.site("heads").log_alpha.values():
            log_alpha[1:] = -20.0
    table = shifts(run, task, rows=7)
    local, total = table.of("local", "delta"), table.of("total", "delta")
    assert (local[:, 0] > 0).all() and not local[:, 1:].any()
    assert (total[1:, 1:] > 0).all()
    # The first token attends to itself alone, but what stands there was moved by layer 0, so its z moves too.
    assert (total[0, 1:] > 0).all()


def test_total_is_local_in_the_first_layer(run: Run, task: Task) -> None:
    table = shifts(run, task, rows=7)
    for measure in MEASURES:
        for random in (False, True):
            local, total = (table.of(which, measure, random=random) for which in ("local", "total"))
            assert np.array_equal(local[:, 0], total[:, 0])
            assert not np.array_equal(local[:, 1], total[:, 1])


def test_an_open_offset_moves_every_token_by_its_length(make_model: MakeModel, task: Task, tmp_path: Path) -> None:
    model = make_model()
    edit = made(model, gates="none", operations="add")
    table = shifts(run_of(model, edit, tmp_path), task, rows=7)
    length = edit.site("heads").vectors["additive"].detach().norm(dim=-1).double().numpy()
    for random in (False, True):
        for found in table.of("local", "delta", random=random):
            np.testing.assert_allclose(found, length, rtol=1e-5)
        assert (table.of("local", "delta", random=random, sd=True) < 1e-5 * length.max()).all()


def test_what_the_heads_write_is_the_change_behind_w_o(make_model: MakeModel, task: Task, tmp_path: Path) -> None:
    """At the first edited layer, by hooks on the attention's output of their own."""
    model = make_model(num_hidden_layers=3, attention_bias=True)
    edit = made(model, layers=[1, 2])
    rows = read(run_of(model, edit, tmp_path), task)
    table = shifts(rows.run, task, rows=7)
    assert not table.of("local", "delta")[:, 0].any()
    seen_at: list[torch.Tensor] = []
    hook = model.o_proj(1).register_forward_hook(lambda _m, _a, output: seen_at.append(output))
    shares, classes, cosines = [], [], []
    for seen in watched(rows, 4):
        base, edited = (flat(seen, output) for output in seen_at)
        seen_at.clear()
        stream, written = flat(seen, seen.residual[1]), edited - base
        weights = output_weights(model, 1)
        for old in (seen.before, seen.base):
            summed = np.einsum("thd,hdm->tm", flat(seen, seen.after[1] - old[1]), weights.double().numpy())
            assert np.abs(summed - written).max() <= 1e-5 * np.abs(written).max()
        shares.append(np.linalg.norm(written, axis=1) / np.linalg.norm(stream, axis=1))
        cosines.append((written * stream).sum(1) / np.linalg.norm(written, axis=1) / np.linalg.norm(stream, axis=1))
        classes.append(classes_of(seen))
    hook.remove()
    for place in range(len(CLASSES)):
        chosen = np.concatenate(classes) == place
        for which in ("local", "total"):
            share, cosine = (table.of_layer(which, name)[place, 1] for name in ("residual", "cosine"))
            np.testing.assert_allclose(share, np.concatenate(shares)[chosen].mean(), rtol=1e-5)
            np.testing.assert_allclose(cosine, np.concatenate(cosines)[chosen].mean(), atol=1e-5)


# -- what must not matter ----------------------------------------------------------------------------------------------


def test_batches_do_not_change_the_table(task: Task, tokenizer: Any, tmp_path: Path) -> None:
    """In float64, on an architecture that keeps to it throughout: else the passes themselves differ by rounding."""
    model = load_model(build_hf("gpt2").double(), tokenizer=tokenizer)
    run = run_of(model, made(model), tmp_path)
    one = shifts(run, task, rows=7, batch_size=1)
    for size in (3, 7):
        same(shifts(run, task, rows=7, batch_size=size), one, 1e-6)


def test_the_backend_does_not_change_the_table(make_model: MakeModel, task: Task, tmp_path: Path) -> None:
    model = make_model()
    run = run_of(model, made(model), tmp_path)
    plain = shifts(run, task, rows=7)
    assert model.bridge is not None
    same(shifts(run, task, rows=7), plain, 1e-4)  # the backends' passes differ by 1e-5 of their largest number


def on_the_right(seen: Seen) -> Seen:
    """The same batch with its padding on the other side, and rubbish in it."""

    def moved(values: Any, fill: float) -> Any:
        if isinstance(values, list):
            return [moved(one, fill) for one in values]
        found = torch.full_like(values, fill)
        for i, mask in enumerate(seen.real):
            found[i, : int(mask.sum())] = values[i][mask]
        return found

    names = ("base", "before", "after", "residual", "other_before", "other_after")
    changes = {name: moved(getattr(seen, name), 1e6) for name in names}
    changes |= {"ids": moved(seen.ids, 3), "real": moved(seen.real, False), "first": moved(seen.first, False)}
    return dataclasses.replace(seen, prompt=moved(seen.prompt, True), **changes)


def test_padding_never_counts_on_either_side(run: Run, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    left = shifts(run, task, rows=7, batch_size=7)
    monkeypatch.setitem(
        shifts.__globals__, "watched", lambda *args, **options: map(on_the_right, watched(*args, **options))
    )
    same(shifts(run, task, rows=7, batch_size=7), left)


def test_memory_does_not_grow_with_the_rows(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that tensors hold when a batch has been counted in: as many after the last as after the second."""
    alive: dict[int, int] = {}

    def counting(*args: Any, **options: Any) -> Any:
        for place, seen in enumerate(watched(*args, **options)):
            yield seen
            del seen
            if place in (1, 7):
                gc.collect()
                storages = [one.untyped_storage() for one in gc.get_objects() if type(one) is torch.Tensor]
                alive[place] = sum({one.data_ptr(): one.nbytes() for one in storages}.values())

    rows = tuple(Example(f"row {i}?", "an owl", id=str(i)) for i in range(8))
    monkeypatch.setattr(MODULE, "watched", counting)
    shifts(run, task_of(rows), rows=8, batch_size=1, tokens=20)
    assert alive[7] == alive[1]


def test_bad_input_is_refused_before_any_pass(run: Run, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a pass was run")

    monkeypatch.setattr(Model, "forward", never)
    bad = {
        "split": ("train", "split must be one of validation, test; got 'train'"),
        "rows": (0, "rows must be an integer ≥ 1; got 0"),
        "heads": (-1, "heads must be an integer ≥ 0; got -1"),
        "tokens": (0, "tokens must be an integer ≥ 1; got 0"),
        "batch_size": (True, "batch_size must be an integer ≥ 1; got True"),
        "seed": (0.5, "seed must be an integer ≥ 0; got 0.5"),
        "controls": (0, "controls must be an integer ≥ 1; got 0"),
    }
    for name, (value, message) in bad.items():
        with pytest.raises(ValueError, match=message):
            shifts(run, task, **{name: value})  # type: ignore[arg-type]
    run.edit = made(run.model, sites=("mlp",))
    with pytest.raises(ValueError, match="this edit acts at mlp, not on heads"):
        shifts(run, task)


# -- which token -------------------------------------------------------------------------------------------------------


def test_bins_are_powers_of_two_and_answers_count_from_their_start(run: Run, task: Task) -> None:
    rows = read(run, task)
    table = shifts(run, task, rows=7, heads=0)
    assert table.position_bins[:4] == ("0", "1", "2–3", "4–7")
    start = table.answer_bins.index("0")
    assert table.answer_bins[start - 2 : start + 3] == ("−3…−2", "−1", "0", "+1", "+2…+3")
    places, around = [], []
    for row in rows.encoded:
        places += list(range(len(row.ids)))
        around += [place - row.n_prompt for place in range(1, len(row.ids))]
    for place, name in enumerate(table.position_bins):
        ends = [int(end) for end in name.split("–")]
        assert table.position_tokens[place] == sum(ends[0] <= one <= ends[-1] for one in places)
    for place, name in enumerate(table.answer_bins):
        ends = [int(end.replace("−", "-")) for end in name.split("…")]
        assert table.answer_tokens[place] == sum(ends[0] <= one <= ends[-1] for one in around)
    assert table.position_tokens.sum() == len(places) and table.answer_tokens.sum() == len(around)


def test_first_tokens_are_apart_in_every_table(run: Run, task: Task) -> None:
    table = shifts(run, task, rows=7, heads=0)
    assert table.tokens[0] == table.position_tokens[0] == table.kind_tokens[KINDS.index("first")] == 7
    for source in SOURCES:
        np.testing.assert_allclose(table.position[source][0], table.kind[source][KINDS.index("first")])
    assert table.tokens[1:].sum() == table.answer_tokens.sum() == table.position_tokens[1:].sum()


def test_tokens_are_told_by_their_text(tokenizer: Any) -> None:
    text = "x It's 42,\n\nno é3rd"
    ids = [*tokenizer(text).input_ids, tokenizer.eos_token_id]
    found = token_kinds(ids, tokenizer)
    start, inner, mark = "word start", "word continuation", "punctuation"
    space = "space or newline"
    expected = ["first", space, start, inner, mark, start, space, "digit", "digit", mark, space, space, start, inner]
    expected += [space, start, inner, "digit", inner, inner, "special"]  # é is two bytes
    assert found == expected


def test_pieces_that_begin_with_a_space_start_words() -> None:
    class Pieces:
        """Of sentencepiece: decoding one piece drops its space."""

        all_special_ids = (0,)
        pieces = ("<s>", "▁un", "break", "able", "▁", "▁7", "x", "▁(", "<0x0A>")

        def decode(self, ids: list[int], **_: Any) -> str:
            return {"<0x0A>": "\n"}.get(self.pieces[ids[0]], self.pieces[ids[0]].replace("▁", " ").lstrip())

        def convert_ids_to_tokens(self, token: int) -> str:
            return self.pieces[token]

    found = token_kinds([0, 1, 2, 3, 4, 2, 5, 6, 7, 8, 0], Pieces())  # type: ignore[arg-type]
    word, inner, space = "word start", "word continuation", "space or newline"
    assert found == ["first", word, inner, inner, space, word, "digit", inner, "punctuation", space, "special"]


# -- planes ------------------------------------------------------------------------------------------------------------


def test_planes_are_of_the_base_activations_and_arrows_are_total_shifts(run: Run, task: Task) -> None:
    table = shifts(run, task, rows=7, heads=3, tokens=1000)
    rows = read(run, task)
    offsets = run.edit.site("heads").gated("additive", run.edit.site("heads").gate_values("expected", {}))
    assert offsets is not None and len(table.planes) == 3
    for plane in table.planes:
        base, edited, classes = [], [], []
        for seen in watched(rows, 1):
            for values, kept in ((seen.base, base), (seen.after, edited)):
                kept.append(flat(seen, values[plane.layer][:, :, plane.head])[1:])
            classes.append(classes_of(seen)[1:])
        z, moved, answer = np.concatenate(base), np.concatenate(edited), np.concatenate(classes) == 2
        centred = z - z.mean(0)
        _, values, vectors = np.linalg.svd(centred, full_matrices=False)
        np.testing.assert_allclose(np.abs((vectors[:2] * plane.components).sum(1)), 1, rtol=1e-6)
        np.testing.assert_allclose(plane.explained, (values**2 / (values**2).sum())[:2], rtol=1e-6)
        points = centred @ plane.components.T
        arrows = (moved - z.mean(0)) @ plane.components.T
        expected = np.column_stack([points, arrows, answer])
        found = np.column_stack([plane.base, plane.edited, plane.answer])
        by_value = [one[np.lexsort(one.round(4).T)] for one in (expected, found)]
        np.testing.assert_allclose(by_value[1], by_value[0], atol=1e-5)
        offset = offsets[plane.layer, plane.head].detach().double().numpy()
        np.testing.assert_allclose(plane.offset, plane.components @ offset, rtol=1e-6)
        share = (plane.offset**2).sum() / (offset**2).sum()
        assert 0 < plane.offset_share < 1 and plane.offset_share == pytest.approx(share)
        whole = ((moved - z) ** 2).sum()
        assert plane.moved_share == pytest.approx((((moved - z) @ plane.components.T) ** 2).sum() / whole, rel=1e-5)


def test_planes_are_kept_for_the_heads_whose_edit_is_largest(run: Run, task: Task) -> None:
    part = run.edit.site("heads")
    with torch.no_grad():
        for vector in part.vectors.values():
            vector.mul_(1e-3)
        part.vectors["additive"][2, 1] *= 3e3
        part.vectors["multiplicative"][0, 3] *= 1e3
        part.log_alpha["additive"][1] = -20.0
        part.log_alpha["multiplicative"][1] = -20.0
    table = shifts(run, task, rows=7, heads=2, tokens=5)
    assert set(table.plane_heads) == {"L2H1", "L0H3"}
    assert len(table.planes[0].base) == 5
    every = shifts(run, task, rows=7, heads=100, tokens=5)
    assert len(every.plane_heads) == 8 and not any(label.startswith("L1") for label in every.plane_heads)
    assert every.plane_heads[:2] == table.plane_heads


def test_planes_are_kept_for_the_heads_that_move_most_for_their_size(
    make_model: MakeModel, task: Task, tmp_path: Path
) -> None:
    """Heads 0 and 1 have ten times the z, and a hundred times the W_O: equal offsets write most and move least."""
    model = make_model()
    with torch.no_grad():
        for block in model.hf.model.layers:
            block.self_attn.v_proj.weight[:8] *= 10  # of the key-value head that both share
            block.self_attn.o_proj.weight[:, :16] *= 100
    edit = made(model, operations="add", gates="none")
    with torch.no_grad():
        offsets = edit.site("heads").vectors["additive"]
        offsets.div_(offsets.norm(dim=-1, keepdim=True))
    table = shifts(run_of(model, edit, tmp_path), task, rows=7, heads=4, tokens=5)
    assert set(table.plane_heads) == {"L0H2", "L0H3", "L1H2", "L1H3"} == set(table.top(4, "local", "norm"))
    written = torch.einsum("hd,hdm->hm", offsets[0].detach(), output_weights(model, 0)).norm(dim=-1)
    assert written[:2].min() > 10 * written[2:].max()
    assert table.planes_by == "local ‖Δz‖/‖z‖"


def test_drawn_tokens_are_even_and_never_first() -> None:
    slots, count = _drawn([5, 1, 9, 3], 7)
    found = sorted((slot, row, place) for row, places in slots.items() for place, slot in places)
    assert count == 7 and [slot for slot, _, _ in found] == list(range(7))
    order = [(row, place) for row, length in enumerate([5, 1, 9, 3]) for place in range(1, length)]
    ranks = [order.index((row, place)) for _, row, place in found]
    assert ranks[0] == 0 and ranks[-1] == len(order) - 1 and set(np.diff(ranks)) <= {2, 3}
    assert _drawn([5, 1, 9, 3], 99)[1] == len(order) and _drawn([1, 1], 9) == ({}, 0)


# -- the null and the table --------------------------------------------------------------------------------------------


def test_the_random_edit_is_as_long_and_points_elsewhere(run: Run, task: Task) -> None:
    run.edit = made(run.model, operations="add", gates="none")
    table, other = shifts(run, task, rows=7), shifts(run, task, rows=7, seed=1)
    own, random = (table.of("local", "delta", random=random) for random in (False, True))
    np.testing.assert_allclose(own, random, rtol=1e-4)
    for measure in ("cosine", "residual"):
        one, null = (table.of("local", measure, random=random) for random in (False, True))  # type: ignore[arg-type]
        again = other.of("local", measure, random=True)  # type: ignore[arg-type]
        for x, y in ((one, null), (one, again), (null, again)):
            assert np.median(np.abs(x - y)) > 1e-3 * np.median(np.abs(one))  # one direction would agree to 1e-6
        assert np.array_equal(table.of("total", measure), other.of("total", measure))  # type: ignore[arg-type]


def test_a_head_that_is_silent_has_no_ratio(task: Task, tokenizer: Any, tmp_path: Path) -> None:
    hf = build_hf("llama")
    hf.model.layers[0].self_attn.v_proj.weight.data.zero_()
    model = load_model(hf, tokenizer=tokenizer)
    table = shifts(run_of(model, made(model), tmp_path), task, rows=7)
    assert not table.of("local", "size")[:, 0].any() and (table.of("local", "delta")[:, 0] > 0).all()
    assert np.isnan(table.of("local", "norm")[:, 0]).all() and np.isnan(table.of("local", "cosine")[:, 0]).all()
    assert np.isfinite(table.of("local", "residual")).all() and np.isfinite(table.of("local", "norm")[:, 1]).all()
    assert np.isnan(table.pooled("local", "norm")[0]).all()


def test_the_table_is_stored_and_read_again(run: Run, task: Task, tmp_path: Path) -> None:
    for heads in (2, 0):
        table = shifts(run, task, rows=3, heads=heads, tokens=9)
        write_table(table, tmp_path / "shifts.safetensors", {})
        again = read_table(Shifts, tmp_path / "shifts.safetensors")
        same(again, table)
        assert [plane.label for plane in again.planes] == [plane.label for plane in table.planes]


def test_pooled_means_weigh_tokens_and_order_heads(run: Run, task: Task) -> None:
    table = shifts(run, task, rows=7, heads=0)
    values, counts = table.of("local", "residual"), table.tokens
    pooled = (values[1] * counts[1] + values[2] * counts[2]) / (counts[1] + counts[2])
    np.testing.assert_allclose(table.pooled("local", "residual"), pooled)
    layer, head = divmod(int(pooled.argmax()), pooled.shape[1])
    assert table.top(1) == (f"L{layer}H{head}",) and len(table.top(99)) == pooled.size
    frame = table.to_frame()
    assert len(frame) == len(SOURCES) * values.size
    line = frame[
        (frame["notion"] == "total")
        & (frame["edit"] == "random")
        & (frame["tokens_of"] == "answer")
        & (frame["label"] == "L1H2")
    ]
    assert len(line) == 1 and line["tokens"].item() == counts[2]
    assert line["norm"].item() == table.of("total", "norm", random=True)[2, 1, 2]
    assert line["cosine_sd"].item() == table.of("total", "cosine", random=True, sd=True)[2, 1, 2]
    with pytest.raises(ValueError, match="which must be one of local, total; got 'both'"):
        table.of("both", "norm")  # type: ignore[arg-type]


def test_the_smallest_model_has_a_table(make_model: MakeModel, task: Task, tmp_path: Path) -> None:
    model = make_model(num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, hidden_size=8)
    table = shifts(run_of(model, made(model), tmp_path), task, rows=1)
    assert table.plane_heads == ("L0H0",) and table.group == 0
    assert table.of("local", "norm").shape == (3, 1, 1)
