"""How heads are used, and how large what they do is: as explicit matrices say it, 0 where a gate is closed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jola_interp as ji
from jola_interp.analysis.tables import about, load_table, read_table, save_table, write_table
from jola_interp.analysis.usage import FIRST, KINDS, OTHERS, WHOLE, Share, Usage, usage, with_evidence
from jola_interp.batching import encode_examples
from jola_interp.config import preset
from jola_interp.edits import JoLA
from jola_interp.models import Model
from jola_interp.runs import Run
from jola_interp.selection import STATUSES
from jola_interp.tasks import Task
from tests.evidence_by_hand import question
from tests.runs_by_hand import make_run

MakeModel = Callable[..., Model]
Planted = Callable[..., tuple[Run, Model]]
OPEN, SHUT = 6.0, -6.0
ROWS = 4


@pytest.fixture
def planted(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> Planted:
    """``planted(...)``: a Run with random vectors, open everywhere but for two gates, and its model in float32."""

    def plant(architecture: str = "llama", train: dict[str, Any] | None = None, **switches: Any) -> tuple[Run, Model]:
        model = make_model(architecture)
        edit = JoLA(model.head_shape, **{**preset("paper").edit, **switches})
        settings = {"max_steps": 1, "wrapper": "{instruction}", "evaluate": False, **(train or {})}
        run = ji.fit(model, toy_task, edit, preset="paper", backend="hooks", out=tmp_path / "run", **settings)
        draws = torch.Generator().manual_seed(3)
        part = run.edit.site("heads")
        for vector in part.vectors.values():
            vector.data = 0.3 * torch.randn(vector.shape, generator=draws) * part.mask[..., None]
        for gate in part.log_alpha.values():
            gate.data = OPEN * torch.ones(gate.shape) - torch.rand(gate.shape, generator=draws)
        if "additive" in part.log_alpha and "multiplicative" in part.log_alpha:
            part.log_alpha["additive"].data[0, 1] = SHUT
            part.log_alpha["multiplicative"].data[1, 2] = SHUT
            part.log_alpha["multiplicative"].data[0, 1] = SHUT
        return run, model

    return plant


def z_and_streams(run: Run, model: Model, task: Task) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Per row, by hooks of this test's own: z before the edit [layer, pos, head, d_head], streams of the base."""
    shape, found = model.head_shape, []
    encoded = encode_examples(task.test[:ROWS], model.tokenizer, wrapper="{instruction}", eos=True)
    projections = [model.o_proj(layer) for layer in range(shape.layers)]
    for row in encoded:
        ids = torch.tensor([row.ids])
        streams = seen_by(blocks_of(model), lambda ids=ids: model.hf(input_ids=ids))
        with run.attach(model):
            zs = seen_by(projections, lambda ids=ids: model.hf(input_ids=ids))
        found.append((torch.stack(zs)[:, 0].unflatten(-1, (shape.heads, shape.d_head)), torch.stack(streams)[:, 0]))
    return found


@torch.no_grad()
def seen_by(modules: list[torch.nn.Module], forward: Callable[[], Any]) -> list[torch.Tensor]:
    """The first input of each module as it comes, before any hook that stands there already."""
    found: list[torch.Tensor] = []

    def keep(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append((args or tuple(kwargs.values()))[0].detach())

    handles = [module.register_forward_pre_hook(keep, with_kwargs=True, prepend=True) for module in modules]
    forward()
    for handle in handles:
        handle.remove()
    return found


def blocks_of(model: Model) -> list[torch.nn.Module]:
    return list(model.hf.transformer.h if hasattr(model.hf, "transformer") else model.hf.model.layers)


def explicit_weights(model: Model, layer: int) -> torch.Tensor:
    """W_O [head, d_head, d_model] as the parameter holds it."""
    weight, shape = model.o_proj(layer).weight.detach(), model.head_shape
    flat = weight if model.hf.config.model_type == "gpt2" else weight.T
    return flat.reshape(shape.heads, shape.d_head, shape.d_model)


def by_hand(run: Run, model: Model, task: Task, first: bool) -> dict[str, np.ndarray]:
    """Every size, one token and one head at a time."""
    shape, seen = model.head_shape, z_and_streams(run, model, task)
    part = run.edit.site("heads")
    gates = {kind: value.detach() for kind, value in part.gate_values(run.edit.inference, {}).items()}
    found = {name: np.zeros((shape.layers, shape.heads)) for name in ("ha", "hm", "sa", "sm")}
    sums = np.zeros((3, shape.layers))
    for layer in range(shape.layers):
        w = explicit_weights(model, layer)
        z = torch.cat([row[layer, :1] if first else row[layer, 1:] for row, _ in seen])  # [token, head, d_head]
        stream = torch.cat([row[layer, :1] if first else row[layer, 1:] for _, row in seen]).norm(dim=-1).mean()
        together = torch.zeros(3, len(z), shape.d_model)
        for head in range(shape.heads):
            a = part.gated("additive", gates)[layer, head].detach()  # type: ignore[index]
            m = part.gated("multiplicative", gates)[layer, head].detach() * z[:, head]  # type: ignore[index]
            rms = z[:, head].square().sum(-1).mean().sqrt()
            found["ha"][layer, head], found["hm"][layer, head] = a.norm() / rms, m.norm(dim=-1).mean() / rms
            found["sa"][layer, head] = (a @ w[head]).norm() / stream
            found["sm"][layer, head] = (m @ w[head]).norm(dim=-1).mean() / stream
            together += torch.stack([(a @ w[head]).expand(len(z), -1), m @ w[head], a @ w[head] + m @ w[head]])
        sums[:, layer] = together.norm(dim=-1).mean(1) / stream
    return found | {"sums": sums}


# -- sizes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_sizes_are_what_explicit_matrices_give(planted: Planted, toy_task: Task, architecture: str) -> None:
    run, model = planted(architecture)
    table = usage(run, toy_task, model, rows=ROWS)
    for place, first in ((OTHERS, False), (FIRST, True)):
        expected = by_hand(run, model, toy_task, first)
        for key, (kind, at) in {
            "ha": ("additive", "head"), "hm": ("multiplicative", "head"),
            "sa": ("additive", "stream"), "sm": ("multiplicative", "stream"),
        }.items():  # fmt: skip
            found = table.size(kind, at, first=first)  # type: ignore[arg-type]
            np.testing.assert_allclose(found, expected[key], rtol=1e-5, err_msg=f"{key}, first={first}")
        for row, kind in enumerate((*KINDS, WHOLE)):
            np.testing.assert_allclose(table.layer_sums[kind][place], expected["sums"][row], rtol=1e-5)
        bars = sum(table.size(kind, first=first).sum(1) for kind in KINDS)
        assert (table.layer_sums[WHOLE][place] <= bars * (1 + 1e-6)).all()


def test_closed_gates_give_exactly_zero_and_no_others_do(planted: Planted, toy_task: Task) -> None:
    run, model = planted()
    table = usage(run, toy_task, model, rows=2)
    for kind, gate in run.edit.site("heads").log_alpha.items():
        for place in ("head", "stream"):
            for first in (False, True):
                size = table.size(kind, place, first=first)  # type: ignore[arg-type]
                assert np.array_equal(size == 0, gate.detach().numpy() == SHUT)
        assert (table.size(kind, gate="expected") > 0).all()  # type: ignore[arg-type]


def test_expected_sizes_are_those_of_the_expected_gate(planted: Planted, toy_task: Task) -> None:
    run, model = planted(inference="hard")
    table = usage(run, toy_task, model, rows=2)
    for kind in KINDS:
        opened = table.gate[kind] == 1
        found, hard = table.size(kind, gate="expected")[opened], table.size(kind)[opened]
        np.testing.assert_allclose(found, (hard * table.expected[kind][opened]), rtol=1e-6)
        assert (found < hard).all()


def test_doubling_a_doubles_what_is_added_and_nothing_else_at_the_first_layer(planted: Planted, toy_task: Task) -> None:
    run, model = planted()
    before = usage(run, toy_task, model, rows=2)
    run.edit.site("heads").vectors["additive"].data[0, 3] *= 2
    after = usage(run, toy_task, model, rows=2)
    places: tuple[Any, ...] = ("head", "stream")
    for place in places:
        one, two = before.size("additive", place)[0], after.size("additive", place)[0]
        np.testing.assert_allclose(two, one * [1, 1, 1, 2], rtol=1e-6)
        same, again = before.size("multiplicative", place)[0], after.size("multiplicative", place)[0]
        np.testing.assert_allclose(again, same, rtol=1e-6)
    np.testing.assert_allclose(after.stream, before.stream, rtol=1e-6)  # the base model's
    assert not np.allclose(after.z_norm[OTHERS, 1], before.z_norm[OTHERS, 1], rtol=1e-3)  # the edited model's


def test_a_dead_head_has_no_size_at_the_head_and_its_offset_one_in_the_stream(planted: Planted, toy_task: Task) -> None:
    run, model = planted()
    values = model.hf.model.layers[0].self_attn.v_proj.weight
    values.data[: values.shape[0] // 2] = 0  # of the key-value head of L0H0 and L0H1
    table = usage(run, toy_task, model, rows=2)
    assert np.isnan(table.size("additive", "head")[0, 0]) and table.size("additive", "head")[0, 1] == 0
    assert table.size("additive")[0, 0] > 0 and table.size("multiplicative")[0, 0] == 0
    assert table.answer() and np.isfinite(table.share().value)


def test_batches_and_padding_do_not_matter(planted: Planted, toy_task: Task) -> None:
    run, model = planted()
    long = dataclasses.replace(toy_task.test[0], instruction="a much longer row: " + toy_task.test[0].instruction)
    task = dataclasses.replace(toy_task, test=(long, *toy_task.test[1:]))
    one, all_at_once = (usage(run, task, model, rows=5, batch_size=size) for size in (1, 5))
    assert one.tokens == all_at_once.tokens and one.tokens[FIRST] == 5
    for kind in KINDS:
        np.testing.assert_allclose(one.per_gate[kind], all_at_once.per_gate[kind], rtol=1e-5)
    np.testing.assert_allclose(one.z_norm, all_at_once.z_norm, rtol=1e-5)
    np.testing.assert_allclose(one.stream, all_at_once.stream, rtol=1e-5)


def test_a_booted_model_gives_the_same(planted: Planted, toy_task: Task) -> None:
    run, model = planted()
    plain = usage(run, toy_task, model, rows=2)
    assert model.bridge is not None
    booted = usage(run, toy_task, model, rows=2)
    for kind in KINDS:
        np.testing.assert_allclose(plain.per_gate[kind], booted.per_gate[kind], rtol=1e-4)
    np.testing.assert_allclose(plain.layer_sums[WHOLE], booted.layer_sums[WHOLE], rtol=1e-4)


def test_first_tokens_are_apart(planted: Planted, toy_task: Task) -> None:
    """The stream that enters layer 0 is the embedding: its norm at first tokens, and at all others."""
    run, model = planted(scope="not_first")
    table = usage(run, toy_task, model, rows=3)
    for kind in KINDS:
        assert (table.size(kind, first=True) == 0).all()
        assert (table.size(kind) >= 0).all() and table.size(kind).any()
    embedded = model.hf.get_input_embeddings()
    rows = encode_examples(toy_task.test[:3], model.tokenizer, wrapper="{instruction}", eos=True)
    norms = torch.cat([embedded(torch.tensor(row.ids)).norm(dim=-1) for row in rows]).detach().double().numpy()
    starts = np.cumsum([0, *[len(row.ids) for row in rows]])[:-1]
    assert table.stream[FIRST, 0] == pytest.approx(norms[starts].mean(), rel=1e-6)
    assert table.stream[OTHERS, 0] == pytest.approx(np.delete(norms, starts).mean(), rel=1e-6)
    assert table.tokens == (len(norms) - 3, 3)


@pytest.mark.parametrize("scope", ["prompt", "answer"])
def test_where_the_edit_does_not_act_it_writes_nothing_and_the_tokens_count(
    planted: Planted, toy_task: Task, scope: str
) -> None:
    run, model = planted(scope=scope)
    table = usage(run, toy_task, model, rows=3)
    rows = encode_examples(toy_task.test[:3], model.tokenizer, wrapper="{instruction}", eos=True)
    inside = sum(row.n_answer if scope == "answer" else row.n_prompt - 1 for row in rows)
    a = run.edit.site("heads").vector("additive").detach()[1, 0]
    written = float((a @ explicit_weights(model, 1)[0]).norm()) * float(table.gate["additive"][1, 0])
    expected = written * inside / table.tokens[OTHERS] / table.stream[OTHERS, 1]
    assert table.size("additive")[1, 0] == pytest.approx(expected, rel=1e-5)
    assert (table.size("additive", first=True) == 0).all() == (scope == "answer")
    assert any("acts on some tokens only" in line for line in table.caveats())


@pytest.mark.parametrize(("architecture", "normalised"), [("olmo2", True), ("qwen2", False)])
def test_a_norm_behind_w_o_is_told(planted: Planted, toy_task: Task, architecture: str, normalised: bool) -> None:
    run, model = planted(architecture)
    table = usage(run, toy_task, model, rows=1)
    assert table.normalised == normalised
    assert ("normalises what attention writes" in table.sentence()) == normalised


# -- statuses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["p_open>0.5", "expected>0.0881", "top=3:p_open"])
def test_statuses_are_those_of_the_selection(planted: Planted, toy_task: Task, rule: str) -> None:
    run, model = planted()
    table, chosen = usage(run, toy_task, model, rows=1, rule=rule), run.selection(rule)
    assert table.counts() == chosen.counts()
    assert {table.labels[unit]: STATUSES[table.status[unit]] for unit in zip(*table.status.nonzero(), strict=True)} == (
        dict(zip(chosen.labels, chosen.statuses, strict=True))
    )
    for kind in KINDS:
        assert table.open(kind) == sum(status in (kind, "both") for status in chosen.statuses)


def test_gate_values_are_those_of_the_run(planted: Planted, toy_task: Task) -> None:
    run, model = planted(inference="point")
    table = usage(run, toy_task, model, rows=1)
    values = run.edit.site("heads").gate_values("point", {})
    for kind in KINDS:
        np.testing.assert_allclose(table.gate[kind], values[kind].detach(), rtol=1e-6)
        assert (table.p_open[kind] > table.expected[kind]).all()


@pytest.mark.parametrize(
    "switches", [{"operations": "add"}, {"operations": "multiply"}, {"gates": "shared"}, {"heads": ["L1H3"]}], ids=str
)
def test_every_kind_of_edit_has_a_table(
    planted: Planted, toy_task: Task, switches: dict[str, Any], tmp_path: Path
) -> None:
    run, model = planted(**switches)
    table = usage(run, toy_task, model, rows=2)
    frame = table.to_frame()
    assert len(frame) == table.editable.sum() == int(run.edit.masks()["heads"].sum())
    for kind in KINDS:
        size = table.size(kind)
        assert np.array_equal(np.isfinite(size), table.editable)
        assert (kind in table.operations) == bool(np.nansum(size))
    assert table.sentence() and table.answer()
    saved(table, tmp_path)


def saved(table: Usage, folder: Path) -> Usage:
    """Written and read, and found equal."""
    write_table(table, folder / "usage.safetensors", {})
    found = read_table(Usage, folder / "usage.safetensors")
    for field in dataclasses.fields(Usage):
        before, after = getattr(table, field.name), getattr(found, field.name)
        if isinstance(before, dict | np.ndarray):
            np.testing.assert_equal(after, before)
        else:
            assert after == before, field.name
    assert found.sentence() == table.sentence()
    return found


def test_the_table_is_kept_beside_its_run(planted: Planted, toy_task: Task) -> None:
    run, model = planted()
    table = usage(run, toy_task, model, rows=1)
    save_table(run, "usage", table, about(run, toy_task, model))
    assert load_table(run, "usage", Usage).to_frame().equals(table.to_frame())


def test_bad_input_is_refused_before_any_pass(
    planted: Planted, toy_task: Task, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run, model = planted()

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a pass was run")

    monkeypatch.setattr(Model, "forward", never)
    bad = {
        "split": ("train", "split must be one of validation, test; got 'train'"),
        "rows": (0, "rows must be an integer ≥ 1; got 0"),
        "batch_size": (True, "batch_size must be an integer ≥ 1; got True"),
        "rule": ("open a bit", "rule: 'open a bit' reads neither"),
    }
    for name, (value, message) in bad.items():
        with pytest.raises(ValueError, match=message):
            usage(run, toy_task, model, **{name: value})
    with pytest.raises(ValueError, match="no gates at heads"):
        usage(make_run(tmp_path / "b", gates="none"), toy_task)
    with pytest.raises(ValueError, match="no gates at heads"):
        usage(make_run(tmp_path / "c", sites=("mlp",)), toy_task)


# -- additive or multiplicative? ---------------------------------------------------------------------------------------


def sized(folder: Path, additive: np.ndarray, multiplicative: np.ndarray, **changes: Any) -> Usage:
    """A table by hand: written sizes [layer, head], gates of 1 where they are above 0."""
    run = make_run(folder, layers=additive.shape[0], heads=additive.shape[1], kv_heads=additive.shape[1])
    sizes = dict(zip(KINDS, (additive, multiplicative), strict=True))
    gate = {kind: (size > 0).astype(np.float32) for kind, size in sizes.items()}
    given: dict[str, Any] = {
        "title": "tiny on toy", "task": "toy", "split": "test", "rows": 2, "tokens": (20, 2), "rule": "p_open>0.5",
        "gates": "separate", "operations": KINDS, "training": trained(run),
        "status": (gate["additive"] + 2 * gate["multiplicative"]).astype(np.int64),
        "editable": np.ones(additive.shape, bool), "p_open": gate, "expected": gate, "gate": gate,
        "per_gate": {kind: np.broadcast_to(size, (2, 2, *size.shape)).copy() for kind, size in sizes.items()},
        "layer_sums": {kind: np.ones((2, len(additive))) for kind in (*KINDS, WHOLE)},
        "z_norm": np.ones((2, *additive.shape)), "stream": np.ones((2, len(additive))), "d_head": 4,
    }  # fmt: skip
    return Usage(**{**given, **changes})


def trained(run: Run) -> Any:
    from jola_interp.analysis.usage import _training

    return _training(run)


def test_shares_are_of_sizes_and_of_squares(tmp_path: Path) -> None:
    table = sized(tmp_path, np.array([[3.0, 1.0], [0.0, 0.0]]), np.array([[0.0, 2.0], [2.0, 0.0]]))
    assert table.share().value == pytest.approx(4 / 8)
    assert table.share("squared").value == pytest.approx(10 / 18)
    for share in (table.share(), table.share("squared")):
        assert share.low <= share.value <= share.high
        assert share.null == pytest.approx(2 / 4) and (share.heads, share.gates) == (3, 4)


def test_exchanging_kinds_by_all_permutations_gives_p() -> None:
    """Six gates, one alone large: by hand, 3 of 6 places of the kind hold it."""
    from jola_interp.analysis.usage import _share

    written = np.array([[9.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    share = _share("absolute", written, written > 0, 0)
    assert share.value == pytest.approx(11 / 14) and share.null == pytest.approx(0.5)
    assert share.p == 1.0  # the large gate is of either kind, and always as far from a half
    graded = np.zeros((8, 2))
    graded[:4, 0], graded[4:, 1] = (8, 7, 6, 5), (4, 3, 2, 1)
    assert _share("absolute", graded, graded > 0, 0).p == pytest.approx(2 / math.comb(8, 4), abs=0.02)


def opened(only_additive: int, only_multiplicative: int, both: int) -> tuple[np.ndarray, np.ndarray]:
    """Sizes of so many heads of each status."""
    counts = (only_additive, only_multiplicative, both)
    return tuple(np.repeat(np.array([status], dtype=float), counts, axis=1) for status in ([1, 0, 1], [0, 1, 1]))  # type: ignore[return-value]


@pytest.mark.parametrize("counts", [(12, 3, 4), (9, 6, 0), (3, 12, 30), (6, 0, 2), (1, 0, 0), (0, 0, 5)])
def test_the_count_of_kinds_has_an_interval_over_heads(tmp_path: Path, counts: tuple[int, int, int]) -> None:
    """Tails of the binomial, summed up by hand; heads with both kinds tell nothing of which is the more frequent."""
    table = sized(tmp_path, *opened(*counts))
    share, (additive, other, both) = table.count_share(), counts
    alone, gates = additive + other, additive + other + 2 * both
    assert share.value == pytest.approx((additive + both) / gates) and (share.heads, share.gates) == (
        sum(counts),
        gates,
    )
    assert share.low <= share.value <= share.high

    def tail(at_least: int, chance: float) -> float:
        return sum(math.comb(alone, k) * chance**k * (1 - chance) ** (alone - k) for k in range(at_least, alone + 1))

    low, high = ((end * gates - both) / max(alone, 1) for end in (share.low, share.high))
    if additive:
        assert tail(additive, low) == pytest.approx(0.025, rel=1e-6)
    if other:
        assert 1 - tail(additive + 1, high) == pytest.approx(0.025, rel=1e-6)
    assert (share.p < 0.05) == (not share.low <= 0.5 <= share.high)
    assert (
        f"({share} of them additive: 95 %, exact binomial over the {alone} heads with one kind alone"
        in table.sentence()
    )


def test_a_count_within_chance_is_no_answer(tmp_path: Path) -> None:
    """Nine against six heads, though the nine write more."""
    additive, multiplicative = opened(9, 6, 0)
    table = sized(tmp_path, 100 * additive, multiplicative)
    assert table.share().low > 0.5 and table.open("additive") > table.open("multiplicative")
    assert table.answer() == "undecided" and "Count (undecided) and size (additive) differ" in table.sentence()
    assert math.isnan(sized(tmp_path / "b", np.zeros((1, 2)), np.zeros((1, 2))).count_share().value)


def test_sizes_that_go_with_number_alone_are_no_finding(tmp_path: Path) -> None:
    """Three quarters of the gates are additive and all are alike in size: the share is that of the count."""
    draws = np.random.default_rng(0)
    additive, multiplicative = np.zeros((10, 40)), np.zeros((10, 40))
    additive[:, :30] = draws.uniform(0.5, 1.5, (10, 30))
    multiplicative[:, 30:] = draws.uniform(0.5, 1.5, (10, 10))
    share = sized(tmp_path, additive, multiplicative).share()
    assert share.low < share.null == 0.75 < share.high and share.p > 0.05
    larger = sized(tmp_path / "b", 3 * additive, multiplicative).share()
    assert larger.p < 0.01 and larger.low > 0.75


def test_the_answer_needs_count_and_size(tmp_path: Path) -> None:
    few = np.zeros((2, 10))
    few[0, 0] = 1.0
    many = np.ones((2, 10))
    assert sized(tmp_path / "a", many, 0.1 * few).answer() == "additive"
    assert sized(tmp_path / "b", 0.1 * few, many).answer() == "multiplicative"
    assert sized(tmp_path / "c", 1e-3 * many, 5 * few).answer() == "undecided"  # many small ones against a large one
    assert sized(tmp_path / "d", 0 * many, 0 * many).answer() == "nothing"
    assert sized(tmp_path / "e", many, 0 * many, operations=("additive",)).answer() == "additive"


def test_nothing_that_acts_is_said_plainly(tmp_path: Path) -> None:
    table = sized(tmp_path, np.zeros((1, 1)), np.zeros((1, 1)))
    assert math.isnan(table.share().value) and str(table.share()) == "nothing"
    assert "writes nothing" in table.sentence() and table.top(3) == ()
    unknown = sized(tmp_path / "b", np.full((2, 2), np.nan), np.full((2, 2), np.nan))
    assert math.isnan(unknown.share().value) and unknown.top(3) == () and unknown.sentence()


@pytest.mark.parametrize(
    ("train", "logged", "words"),
    [
        ({}, True, "under one λ for both kinds (0.4 at the last step)"),
        ({"additive_weight": 2.0}, False, "under UNEQUAL λ (additive 0.8, multiplicative 0.4)"),
        (
            {"penalty_form": "reference", "penalty": 0.1}, False,
            "under UNEQUAL λ (additive 0.1, multiplicative 0.9, λ and 1 − λ as in the released code)",
        ),
        ({"penalty": 0.0}, False, "without a penalty (λ = 0)"),
    ],
)  # fmt: skip
def test_the_count_says_under_which_penalty(tmp_path: Path, train: dict[str, Any], logged: bool, words: str) -> None:
    run = make_run(tmp_path / "run", train=train)
    if not logged:
        (run.path / "metrics.jsonl").write_text("")
        run = Run.load(run.path)
    one = np.ones((1, 2))
    assert words in sized(tmp_path / "b", one, one, training=trained(run)).sentence()


def test_units_are_warned_of_unless_the_card_knows_better(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", train={"lr_ratio": 4.0})
    table = sized(tmp_path / "b", np.ones((2, 3)), np.zeros((2, 3)), training=trained(run))
    assert (
        "rms(z) about 0.5 a component and lr_ratio 4 in raw units, a step of a moves z about 8 times"
        in table.sentence()
    )
    relative = dataclasses.replace(table.training, units="rms")
    assert "a step of a moves z about 4 times" in dataclasses.replace(table, training=relative).sentence()
    assert table.answer() == "additive"
    found = question(run, ["units", "audit"]).parts["units"]
    known = with_evidence(table, run)
    assert "is an artefact of units here" in known.sentence() and known.answer() == "an artefact of units"
    question(run, ["units"], units={**found, "changes_sign": False})
    known = with_evidence(table, run)
    assert "stays the same" in known.sentence() and "Units decide" not in known.sentence()
    question(run, ["units"], units={"not_applicable": "why"})
    assert "Units decide" in with_evidence(table, run).sentence()


def test_a_card_of_another_edit_says_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    question(run, ["units"])
    run.edit.site("heads").vectors["additive"].data += 1
    assert trained(run).units_test == "not run"


def test_the_audits_tag_of_offsets_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    audit = question(run, ["audit"]).parts["audit"]
    tagged = [*audit["numbers"], {"name": "‖g_a a W_O‖", "tag": "not identified", "moved_by": [], "changes": {}}]
    question(run, ["audit"], audit={**audit, "numbers": tagged})
    table = sized(tmp_path / "b", np.ones((2, 3)), np.zeros((2, 3)))
    assert "could host it (the audit of this Run: not identified)." in with_evidence(table, run).sentence()
    assert "could host it." in table.sentence()


# -- order and words ---------------------------------------------------------------------------------------------------


def test_top_is_by_what_is_asked_for(tmp_path: Path) -> None:
    table = sized(tmp_path, np.array([[3.0, 1.0], [0.0, 0.0]]), np.array([[0.0, 2.5], [2.0, 0.0]]))
    assert [use.label for use in table.top(9)] == ["L0H1", "L0H0", "L1H0"]
    assert [use.label for use in table.top(9, by="additive")] == ["L0H0", "L0H1"]
    assert [use.label for use in table.top(1, by="multiplicative")] == ["L0H1"]
    use = table.top(1)[0]
    assert (use.layer, use.head, use.status, use.additive, use.multiplicative) == (0, 1, "both", 1.0, 2.5)
    for call, message in (
        (lambda: table.top(-1), "k must be an integer"),
        (lambda: table.top(1, by="size"), "by must be one of additive, multiplicative, both; got 'size'"),  # type: ignore[arg-type]
        (lambda: table.size("shared"), "kind must be one of"),  # type: ignore[arg-type]
        (lambda: table.size("additive", "mlp"), "place must be one of"),  # type: ignore[arg-type]
        (lambda: table.size("additive", gate="point"), "gate must be one of"),  # type: ignore[arg-type]
        (lambda: table.share("cubed"), "measure must be one of"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_shares_in_words_have_their_interval() -> None:
    share = Share("absolute", 0.831, 0.7, 0.92, 0.6, 0.01, 9, 12)
    assert str(share) == "83 % [70 %, 92 %]"
