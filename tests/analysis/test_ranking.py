"""Parts of an edit: all of it is the edit and none the base; heads that are planted come first; ρ is 1 where it is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jola_interp as ji
from jola_interp.analysis.effects import Effects, Gate, add_one_in, alone_effects, exact_effects, select_gates
from jola_interp.analysis.faithfulness import Faithfulness, faithfulness, rank_agreement
from jola_interp.analysis.interplay import Interplay, effect_sheet, interplay
from jola_interp.analysis.ranking import (
    RANDOM,
    KeepCurves,
    Refitted,
    acting_units,
    keep_curves,
    part_losses,
    refitted,
)
from jola_interp.analysis.tables import about, read_table, save_table, write_table
from jola_interp.analysis.usage import usage
from jola_interp.backends import attach
from jola_interp.batching import Encoded, encode_examples
from jola_interp.edits import JoLA
from jola_interp.evaluation.likelihood import negative_log_likelihoods
from jola_interp.models import Model, load_model
from jola_interp.runs import Run
from jola_interp.selection import measure
from jola_interp.tasks import Example, Task
from tests.conftest import build_hf
from tests.evidence_by_hand import question
from tests.runs_by_hand import make_run

OPEN, SHUT = 6.0, -8.0
SHUT_GATES = {("additive", 0, 2), ("multiplicative", 0, 2), ("multiplicative", 1, 1), ("additive", 2, 3)}
ROWS, DRAWS = 9, 6
Made = tuple[Run, Task, Model]


def animals(count: int) -> tuple[Example, ...]:
    names = ["cat", "dog", "owl", "fox", "bee", "ant", "heron"]
    return tuple(Example(f"row {i}: {names[i % 7]}?", f"a {names[i % 7]}.", id=str(i)) for i in range(count))


def randomised(run: Run) -> None:
    """Vectors that matter, and gates that are open by different amounts, but for some."""
    draws = torch.Generator().manual_seed(3)
    part = run.edit.site("heads")
    for vector in part.vectors.values():
        vector.data = 0.3 * torch.randn(vector.shape, generator=draws)
    for kind, gate in part.log_alpha.items():
        gate.data = OPEN * torch.rand(gate.shape, generator=draws)
        for name, layer, head in SHUT_GATES:
            if name == kind:
                gate.data[layer, head] = SHUT


def fitted(model: Model, task: Task, folder: Path, **settings: Any) -> Run:
    options = {"max_steps": 1, "wrapper": "{instruction}", "evaluate": False, "preset": "paper", **settings}
    return ji.fit(model, task, backend="hooks", out=folder, **options)


@pytest.fixture(scope="module")
def made(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A Run of three layers with random vectors, its task and its model."""
    rows = animals(16 + 4 + 12)
    task = Task("animals", rows[:16], rows[16:20], rows[20:], kind="text", metric="bleu")
    model = load_model(build_hf("llama", num_hidden_layers=3), tokenizer=tokenizer)
    run = fitted(model, task, tmp_path_factory.mktemp("made") / "run")
    randomised(run)
    return run, task, model


@pytest.fixture(scope="module")
def curves(made: Made) -> KeepCurves:
    return keep_curves(*made, rows=ROWS, draws=DRAWS, batch_size=3)


def encoded(made: Made) -> list[Encoded]:
    run, task, model = made
    train = run.config["train"]
    settings: dict[str, Any] = {"max_length": train["max_length"], "eos": train["eos"]}
    return encode_examples(task.test, model.tokenizer, wrapper="{instruction}", **settings)  # type: ignore[arg-type]


def nll(model: Model, rows: Sequence[Encoded], edit: JoLA | None = None, batch_size: int = 16) -> np.ndarray:
    """Mean NLL of each row's answer by a whole pass, of the base or of an edit."""
    if edit is None:
        totals, counts = negative_log_likelihoods(model, rows, batch_size)
    else:
        with attach(edit, model, "hooks"):
            totals, counts = negative_log_likelihoods(model, rows, batch_size)
    return np.asarray(totals / counts)


# -- parts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("booted", [False, True])
def test_restarted_parts_are_what_whole_passes_give(tokenizer: Any, booted: bool) -> None:
    model = load_model(build_hf("llama", num_hidden_layers=3), tokenizer=tokenizer)
    if booted:
        assert model.bridge is not None
    edit = JoLA(model.head_shape, sites=("heads", "mlp"), init_std=0.3, init_spread=0.0)
    edit.initialise(torch.Generator().manual_seed(0))
    units = acting_units(edit)
    assert len(units) == 3 * 5
    kept = np.random.default_rng(0).random((8, len(units))) < 0.5
    kept[0], kept[1] = False, True
    kept[2, [unit[1] < 2 for unit in units]] = False  # the last layer alone
    kept[3] = ~kept[2]
    rows = encode_examples(animals(5), tokenizer, wrapper="{instruction}")
    options: dict[str, Any] = {"backend": "lens" if booted else "hooks", "batch_size": 2}
    found = part_losses(edit, model, rows, kept, units, **options)
    expected = part_losses(edit, model, rows, kept, units, naive=True, **options)
    assert len(np.unique(expected[:, 0])) == len(kept)  # every part is another, else equality would mean nothing
    np.testing.assert_allclose(found, expected, atol=1e-6 * expected.max())


def test_a_part_is_the_edit_restricted_to_its_heads(made: Made) -> None:
    run, _, model = made
    rows, units = encoded(made)[:5], acting_units(run.edit)
    kept = np.random.default_rng(1).random((4, len(units))) < 0.4
    found = part_losses(run.edit, model, rows, kept, units, backend="hooks")
    for part, losses in zip(kept, found, strict=True):
        heads = [(layer, head) for (_, layer, head), there in zip(units, part, strict=True) if there]
        np.testing.assert_allclose(losses, nll(model, rows, run.edit.restricted(heads=heads)), atol=1e-5)


def test_heads_without_a_gate_that_acts_are_no_part(made: Made) -> None:
    labels = {(layer, head) for _, layer, head in acting_units(made[0].edit)}
    assert labels == {(layer, head) for layer in range(3) for head in range(4)} - {(0, 2)}


def test_parts_leave_edit_and_model_as_they_were(made: Made) -> None:
    run, _, model = made
    before = {name: value.clone() for name, value in run.edit.tensors().items()}
    rows = encoded(made)[:3]
    bare = nll(model, rows)
    part_losses(run.edit, model, rows, np.zeros((1, 11), bool), acting_units(run.edit), backend="hooks")
    assert all(torch.equal(value, before[name]) for name, value in run.edit.tensors().items())
    assert np.array_equal(nll(model, rows), bare)


# -- keep and drop -------------------------------------------------------------------------------------------------


def test_keeping_all_is_the_edit_and_dropping_all_the_base(curves: KeepCurves) -> None:
    assert set(curves.orders) == {"p_open", "size", "effect"}
    assert curves.sizes[0] == 0 and curves.sizes[-1] == len(curves.labels) == 11
    kept = [*curves.keep.values(), *curves.random_keep]
    dropped = [*curves.drop.values(), *curves.random_drop]
    for keep, drop in zip(kept, dropped, strict=True):
        assert np.array_equal(keep[-1], curves.gain) and not drop[-1].any()
        assert np.array_equal(drop[0], curves.gain) and not keep[0].any()


@pytest.mark.parametrize("naive", [False, True])
def test_base_and_edited_are_the_scores_of_the_model_without_and_with_the_run(made: Made, naive: bool) -> None:
    run, task, model = made
    found = keep_curves(*made, rows=6, orders=["p_open"], sizes=[1], draws=1, naive=naive)
    rows = encoded(made)[:6]
    base, edited = nll(model, rows), nll(model, rows, run.edit.restricted())
    assert task.test[:6] and np.abs(base - edited).max() > 0.01
    if naive:  # the same passes
        assert np.array_equal(found.base, base) and np.array_equal(found.edited, edited)
    np.testing.assert_allclose(found.base, base, atol=1e-6 * base.max())
    np.testing.assert_allclose(found.edited, edited, atol=1e-6 * base.max())


def test_each_size_is_the_edit_with_its_first_heads_or_without_them(made: Made, curves: KeepCurves) -> None:
    run, _, model = made
    rows = encoded(made)[ROWS // 2 : ROWS]  # the others gave the order
    assert len(curves.base) == len(rows)
    for name, order in curves.orders.items():
        for place, size in enumerate(curves.sizes):
            for values, chosen in ((curves.keep, order[:size]), (curves.drop, order[size:])):
                part = run.edit.restricted(heads=[curves.labels[i] for i in chosen])
                np.testing.assert_allclose(curves.base - values[name][place], nll(model, rows, part), atol=1e-5)


def test_orders_are_descending_and_by_what_they_say(made: Made, curves: KeepCurves) -> None:
    run, task, model = made
    opens = np.max([measure("p_open", x) for x in run.log_alphas().values()], axis=0)
    table = usage(run, task, model, rows=ROWS)
    sizes = table.size("additive") + table.size("multiplicative")
    effects = exact_effects(run.edit, model, encoded(made)[: ROWS // 2], backend="hooks")
    summed = np.zeros((3, 4))
    np.add.at(summed, (effects.layers, effects.units), effects.effect)
    for name, score in (("p_open", opens), ("size", sizes), ("effect", summed)):
        found = [score[int(label[1]), int(label[3])] for label in curves.top(99, name)]
        assert found == sorted(found, reverse=True), name
    assert curves.ordered_on == ROWS // 2
    assert curves.selected == (opens > 0.5).sum() == 11


def test_random_orders_differ_and_their_band_holds_their_mean(curves: KeepCurves) -> None:
    assert curves.random_keep.shape == (DRAWS, len(curves.sizes), len(curves.base))
    assert len(np.unique(curves.random_keep[:, 1].mean(1))) > 1
    for what in ("keep", "drop"):
        found = curves.curve(RANDOM, what)
        assert (found.low <= found.gain).all() and (found.gain <= found.high).all()
        assert (found.low < found.high)[1:-1].any()
    assert 1 / (1 + DRAWS) <= curves.p("effect") <= 1


def test_the_order_by_effect_never_sees_the_rows_of_the_curves(made: Made) -> None:
    """The stored table says one thing on the rows of the curves and the opposite on all others."""
    run, task, model = made
    gates = select_gates(run.edit)
    acts = np.array([gate.acts for gate in gates])
    by_row = np.zeros((len(gates), 12))
    by_row[acts] = np.random.default_rng(0).permutation(int(acts.sum()))[:, None] + 1.0
    honest = Effects("exact", gates, by_row, np.ones(12), acts)
    shown = by_row.copy()
    shown[:, 4:8] *= -1000
    try:
        save_table(run, "effects", dataclasses.replace(honest, by_row=shown), about(run, task, model, rows=12))
        found = keep_curves(*made, rows=8, orders=["effect"], sizes=[1], draws=1)
        assert found.ordered_on == 4 + 4
        units = dict.fromkeys(honest.labels, 0.0)
        for label, effect in zip(honest.labels, honest.effect, strict=True):
            units[label] += effect
        known = [units[label] for label in found.top(99)]
        assert known == sorted(known, reverse=True)
        assert found.top(99) != keep_curves(*made, rows=8, orders=["p_open"], sizes=[1], draws=1).top(99)
        other = dataclasses.replace(task, test=task.test[::-1])  # the table is not of these rows
        assert keep_curves(run, other, model, rows=8, orders=["effect"], sizes=[1], draws=1).ordered_on == 4
    finally:
        (run.path / "analysis" / "effects.safetensors").unlink()


def test_what_cannot_be_used_is_refused_before_any_pass(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a pass was run")

    monkeypatch.setattr(Model, "forward", never)
    bad: dict[str, tuple[Any, str]] = {
        "rows": (0, "rows must be an integer ≥ 1; got 0"),
        "draws": (0, "draws must be an integer ≥ 1; got 0"),
        "batch_size": (True, "batch_size must be an integer ≥ 1; got True"),
        "split": ("train", "split must be one of validation, test"),
        "orders": (["best"], r"orders must be some of p_open, size, effect, each once; got \('best',\)"),
        "sizes": ([12], "sizes must be integers from 0 to 11, the heads that act; got 12"),
    }
    for name, (value, message) in bad.items():
        with pytest.raises(ValueError, match=message):
            keep_curves(*made, **{name: value})
    with pytest.raises(ValueError, match="the order by effect takes half of them"):
        keep_curves(*made, rows=1)


def test_an_edit_without_gates_is_ordered_by_effect_alone(made: Made, tmp_path: Path) -> None:
    _, task, model = made
    run = fitted(model, task, tmp_path / "run", edit=JoLA(model.head_shape, gates="none"), preset="paper")
    found = keep_curves(run, task, model, rows=4, sizes=[1], draws=1)
    assert list(found.orders) == ["effect"] and found.selected is None
    with pytest.raises(ValueError, match="orders: p_open need gates"):
        keep_curves(run, task, model, orders=["p_open"])


def test_an_edit_that_does_nothing_keeps_nothing(made: Made, tmp_path: Path) -> None:
    _, task, model = made
    run = fitted(model, task, tmp_path / "run")
    for gate in run.edit.site("heads").log_alpha.values():
        gate.data.fill_(SHUT)
    found = keep_curves(run, task, model, rows=4, draws=2)
    assert found.labels == () and list(found.sizes) == [0] and not found.gain.any()
    assert found.heads_for().heads is None and math.isnan(found.p())
    assert "no gain" in found.sentence()
    assert len(found.to_frame()) == 2 * 4


# -- planted heads -------------------------------------------------------------------------------------------------


def two_planted(tokenizer: Any) -> tuple[Model, torch.Tensor]:
    """Only one direction u of the stream reaches the answer's logit; only L0H1 and L0H3 write to it."""
    hf = build_hf("llama")
    answer = tokenizer("a").input_ids[0]
    with torch.no_grad():
        u = torch.randn(32, generator=torch.Generator().manual_seed(0))
        u /= u.norm()
        hf.lm_head.weight.zero_()
        hf.lm_head.weight[answer] = u
        hf.model.embed_tokens.weight.sub_(torch.outer(hf.model.embed_tokens.weight @ u, u))
        for layer in range(2):
            block = hf.model.layers[layer]
            kept = block.self_attn.o_proj.weight.clone()
            for weight in (block.self_attn.o_proj.weight, block.mlp.down_proj.weight):
                weight.sub_(torch.outer(u, u @ weight))
            for head in (1, 3) if layer == 0 else ():
                own = slice(8 * head, 8 * head + 8)
                block.self_attn.o_proj.weight[:, own] = kept[:, own]
        towards = hf.model.layers[0].self_attn.o_proj.weight.T @ u  # [head · d_head]
    return load_model(hf, tokenizer=tokenizer), towards.view(4, 8)


def test_planted_heads_come_first_in_every_exact_order(tokenizer: Any, tmp_path: Path) -> None:
    model, towards = two_planted(tokenizer)
    rows = tuple(Example(f"{i * 7919 % 1000:03d}?", "a", id=str(i)) for i in range(24))
    task = Task("planted", rows[:8], rows[8:12], rows[12:], kind="text")
    run = fitted(model, task, tmp_path / "run", eos=False)
    part = run.edit.site("heads")
    draws = torch.Generator().manual_seed(0)
    for kind, vector in part.vectors.items():
        vector.data = 0.3 * torch.randn(vector.shape, generator=draws) if kind == "additive" else 0 * vector.data
        part.log_alpha[kind].data.fill_(OPEN)
        part.log_alpha[kind].data[0, [1, 3]] = 2.0  # the least open of all: only what is exact finds them
    for head in (1, 3):  # their offsets point to the answer
        part.vectors["additive"].data[0, head] = towards[head] / towards[head].norm()
    planted = {"L0H1", "L0H3"}
    found = keep_curves(run, task, model, rows=12, draws=20)
    assert set(found.top(2, "effect")) == planted
    assert set(found.top(6, "p_open")).isdisjoint(planted)
    alone = add_one_in(run, task, model, rows=12)
    assert alone.method == "alone" and set(alone.top(2).labels) == planted
    assert found.p("effect") == 1 / 21
    enough = found.heads_for(0.9, "effect")
    assert enough.heads == 2 and enough.above == 1
    blind, random = found.heads_for(0.9, "p_open").heads, found.heads_for(0.9, RANDOM).heads
    assert blind is not None and random is not None and 2 < random <= blind == 8


# -- opened alone --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("naive", [False, True])
def test_a_gate_alone_gains_what_the_edit_with_that_gate_only_gains(made: Made, naive: bool) -> None:
    run, task, model = made
    found = add_one_in(run, task, model, rows=5, naive=naive, batch_size=2)
    rows = encoded(made)[:5]
    base = nll(model, rows)
    np.testing.assert_allclose(found.nll, base, atol=1e-6 * base.max())
    for gate, gained, measured in zip(found.gates, found.by_row, found.measured, strict=True):
        assert measured == gate.acts == bool(gained.any())
        assert gate.acts == ((gate.kind, gate.layer, gate.unit) not in SHUT_GATES)
        part = run.edit.restricted(heads=[(gate.layer, gate.unit)], kinds=[gate.kind])
        np.testing.assert_allclose(base - gained, nll(model, rows, part), atol=1e-5)


def test_the_only_gate_gains_alone_what_it_costs_when_closed(made: Made) -> None:
    _, _, model = made
    edit = JoLA(model.head_shape, heads=["L1H2"], operations="add", init_std=0.3)
    edit.initialise(torch.Generator().manual_seed(0))
    rows = encoded(made)[:5]
    out, alone = (measured(edit, model, rows, backend="hooks") for measured in (exact_effects, alone_effects))
    assert np.abs(out.by_row).min() > 1e-4
    np.testing.assert_allclose(alone.by_row, out.by_row, atol=1e-5)
    np.testing.assert_allclose(interplay(out, alone).gain, out.by_row[0], atol=1e-5)


# -- how many heads ------------------------------------------------------------------------------------------------


def by_hand(kept: np.ndarray, noise: float = 0.0, rows: int = 40, draws: int = 20) -> KeepCurves:
    """Curves with these mean gains; whole gain 1 unless ``kept`` ends elsewhere; random orders gain in proportion."""
    n = len(kept) - 1
    generator = np.random.default_rng(0)
    gains = kept[:, None] + noise * generator.normal(size=(1, rows))
    gains[0] = 0
    line = np.linspace(0, kept[-1], n + 1)[:, None] + np.zeros(rows)
    random = line + 0.01 * generator.normal(size=(draws, n + 1, 1)) * (np.arange(n + 1) % n > 0)[:, None]
    return KeepCurves(
        title="tiny on toy",
        labels=tuple(f"L0H{i}" for i in range(n)),
        sizes=np.arange(n + 1),
        orders={"effect": np.arange(n)},
        keep={"effect": gains},
        drop={"effect": gains[-1] - gains},
        random_keep=random,
        random_drop=random[:, ::-1],
        base=np.full(rows, 3.0),
        edited=3.0 - gains[-1],
        selected=2,
        refits=Refitted(2, 0.9, (0.1, 0.2), None),
    )


def test_heads_for_is_the_first_size_that_reaches_the_share() -> None:
    found = by_hand(np.array([0, 0.5, 0.8, 0.96, 0.9, 1.0]))
    assert found.heads_for(0.95).heads == 3 and found.heads_for(0.95).above == 2
    assert found.heads_for(0.5).heads == 1 and found.heads_for(1.0).heads == 5
    assert (found.heads_for(0.95).low, found.heads_for(0.95).high) == (3, 3)  # all rows say the same
    assert found.heads_for(0.95, RANDOM).heads == 5
    assert found.p() == 1 / 21
    for share in (0, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"share must be in \(0, 1\]"):
            found.heads_for(share)
    with pytest.raises(ValueError, match="order must be one of effect, random; got 'size'"):
        found.heads_for(order="size")


def test_rows_that_disagree_widen_the_number_of_heads() -> None:
    steep = np.array([0, 0.5, 0.8, 0.94, 0.96, 1.0])
    spread = by_hand(steep, noise=3.0).heads_for(0.95)
    assert spread.low is not None and spread.high is not None
    assert spread.high - spread.low >= 1


def test_no_gain_has_no_share() -> None:
    found = by_hand(np.array([0, 0.2, -0.1]))
    assert found.heads_for().heads is None
    assert "There is no gain to keep" in found.sentence()


def test_sentences_give_the_refits_and_the_random_orders() -> None:
    found = by_hand(np.array([0, 0.5, 0.96, 1.0]))
    text = found.sentence()
    assert "2 [2, 2] by exact effect (p = 0.048)" in text and "3 [3, 3] in random order" in text
    assert (
        "the 2 selected heads gain +0.900" in text and "random sets of the same layer profile +0.100 to +0.200" in text
    )
    assert "selected heads gain" not in dataclasses.replace(found, refits=None).sentence()


def test_refits_are_those_of_the_card_of_this_edit(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert refitted(run) is None
    card = question(run)
    found, stored = refitted(run), card.parts["refits"]
    assert found is not None
    assert found.selected == stored["base"] - stored["selected"] and len(found.random) == len(stored["random"])
    assert found.complement == stored["base"] - stored["complement"]
    next(iter(run.edit.site("heads").vectors.values())).data += 1.0
    assert refitted(run) is None


# -- faithfulness --------------------------------------------------------------------------------------------------


def wide_run(folder: Path) -> Run:
    return make_run(folder, layers=12, heads=12, kv_heads=12)


def effects_like(run: Run, signal: np.ndarray, noise: float, rows: int = 40) -> Effects:
    """Effects of all gates of a Run: a signal and noise that is another in each row."""
    gates = select_gates(run.edit)
    values = signal[:, None] + noise * np.random.default_rng(0).normal(size=(len(gates), rows))
    measured = np.array([gate.acts for gate in gates])
    return Effects("exact", gates, np.where(measured[:, None], values, 0.0), np.ones(rows), measured)


def opens(run: Run) -> np.ndarray:
    found = {kind: measure("p_open", x) for kind, x in run.log_alphas().items()}
    return np.array([found[gate.kind][gate.layer, gate.unit] for gate in select_gates(run.edit)], dtype=float)


def test_a_ranking_that_is_the_effects_own_is_faithful(tmp_path: Path) -> None:
    run = wide_run(tmp_path)
    found = faithfulness(run, effects_like(run, opens(run) ** 3, noise=1e-6))
    assert {gate.kind for gate in found.gates} == {"additive", "multiplicative"}
    for kind in ("all", "additive", "multiplicative"):
        agreement = found.of("p_open", kind)
        assert agreement.rho == pytest.approx(1) and agreement.corrected == pytest.approx(1)
        assert agreement.low == pytest.approx(1) and agreement.p == pytest.approx(1 / 1001)
        assert agreement.null < 0.4
    assert len(found.gates) == sum(gate.acts for gate in select_gates(run.edit))


def test_the_noise_of_the_effects_is_taken_off(tmp_path: Path) -> None:
    run = wide_run(tmp_path)
    signal = np.random.default_rng(1).normal(size=len(select_gates(run.edit)))
    noisy = effects_like(run, signal, noise=6.0)
    exact = dataclasses.replace(noisy, method="gradient", by_row=np.repeat(signal[:, None], 4, 1))
    found = faithfulness(run, noisy, exact).of("gradient")
    assert found.reliability == pytest.approx(1 / (1 + 36 / 40), abs=0.1)
    assert found.rho < 0.85 and found.corrected == pytest.approx(1, abs=0.1)
    assert found.low < found.rho < found.high


def test_a_ranking_at_random_is_within_the_null_nineteen_times_in_twenty() -> None:
    generator = np.random.default_rng(0)
    found = [rank_agreement(*generator.normal(size=(2, 25)), seed=seed) for seed in range(100)]
    inside = [abs(rho) <= null for rho, _, _, null, _ in found]
    assert 88 <= sum(inside) <= 100
    assert np.mean([p < 0.05 for *_, p in found]) < 0.12
    covered = np.mean([low <= 0 <= high for _, low, high, _, _ in found])
    assert covered > 0.85


def test_agreement_is_spearmans_with_ties() -> None:
    from scipy.stats import spearmanr

    generator = np.random.default_rng(0)
    first, second = generator.integers(4, size=30).astype(float), generator.normal(size=30)
    assert rank_agreement(first, second)[0] == pytest.approx(spearmanr(first, second).statistic)


@pytest.mark.parametrize("values", [np.ones(9), np.arange(2.0), np.empty(0), np.full(5, np.nan)])
def test_agreement_is_nan_where_it_is_not_defined(values: np.ndarray) -> None:
    assert np.isnan(rank_agreement(values, np.arange(len(values), dtype=float))).all()


def test_sizes_of_different_kinds_are_ranked_together_only_in_one_unit(made: Made) -> None:
    run, task, model = made
    effects = exact_effects(run.edit, model, encoded(made)[:6], backend="hooks")
    raw = faithfulness(run, effects)
    assert math.isnan(raw.of("size").rho) and not math.isnan(raw.of("size", "additive").rho)
    assert raw.heading("size").startswith("ρ: additive") and raw.heading("p_open") == str(raw.of("p_open"))
    part = run.edit.site("heads")
    vector = part.vectors["multiplicative"].detach()
    for place, gate in enumerate(raw.gates):
        if gate.kind == "multiplicative":
            expected = gate.value * float(vector[gate.layer, gate.unit].norm())
            assert raw.scores["size"][place] == pytest.approx(expected, rel=1e-5)
    table = usage(run, task, model, rows=4)
    told = faithfulness(run, effects, usage=table)
    assert not math.isnan(told.of("size").rho) and "stream" in told.units["size"]
    for gate, size in zip(told.gates, told.scores["size"], strict=True):
        assert size == pytest.approx(float(table.size(gate.kind)[gate.layer, gate.unit]))  # type: ignore[arg-type]


def test_estimates_are_of_the_same_gates(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    effects = effects_like(run, opens(run), noise=0.1)
    guessed = dataclasses.replace(effects, method="gradient", by_row=2 * effects.by_row)
    shuffled = guessed.top(99)
    found = faithfulness(run, effects, shuffled)
    np.testing.assert_allclose(found.scores["gradient"], 2 * found.effect)
    column = faithfulness(run, dataclasses.replace(effects, estimate=guessed.effect))
    assert np.array_equal(column.scores["gradient"], found.scores["gradient"])
    with pytest.raises(ValueError, match="estimate lacks 1 of the gates"):
        faithfulness(run, effects, guessed.top(int(guessed.measured.sum()) - 1))
    with pytest.raises(ValueError, match="effects must be exact"):
        faithfulness(run, guessed)


def test_faithfulness_of_nothing_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    effects = effects_like(run, opens(run), noise=0.1)
    nothing = dataclasses.replace(effects, measured=np.zeros(len(effects), dtype=bool))
    found = faithfulness(run, nothing)
    assert found.gates == () and found.agreements == () and "No gate" in found.sentence()
    two = dataclasses.replace(effects, measured=effects.measured & (np.cumsum(effects.measured) <= 2))
    assert "ρ undefined" in faithfulness(run, two).sentence()


# -- side by side --------------------------------------------------------------------------------------------------


def pair(run: Run, rows: int = 20) -> tuple[Effects, Effects]:
    out = effects_like(run, np.where(opens(run) > 0.5, 0.02, 0.0), noise=0.01, rows=rows)
    both = (
        out.by_row + np.array([0.1 if gate.layer == 0 else 0.0 for gate in out.gates])[:, None] * out.measured[:, None]
    )
    return out, dataclasses.replace(out, method="alone", by_row=both, nll=out.nll + 0.5)


def test_gates_that_gain_more_alone_are_redundant(tmp_path: Path) -> None:
    out, alone = pair(make_run(tmp_path))
    found = interplay(out, alone)
    layers = np.array([gate.layer for gate in found.gates])
    assert (layers == 0).any() and np.array_equal(found.clear, layers == 0)
    np.testing.assert_allclose(found.surplus, np.where(layers == 0, 0.1, 0.0), atol=1e-12)
    np.testing.assert_allclose(found.gain, 0.5)
    assert f"{(layers == 0).sum()} gain clearly more alone" in found.sentence()
    assert list(found.to_frame()["clear"]) == list(found.clear)


def test_tables_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    out, alone = pair(make_run(tmp_path))
    with pytest.raises(ValueError, match="alone must be a table of method 'alone'; got 'exact'"):
        interplay(out, out)
    short = dataclasses.replace(alone, by_row=alone.by_row[:, :3], nll=alone.nll[:3])
    with pytest.raises(ValueError, match="rows: 20 left out and 3 alone"):
        interplay(out, short)
    first, second = np.flatnonzero(out.measured)[:2]
    with pytest.raises(ValueError, match="no measured gate in common"):
        interplay(out._take(np.array([first])), alone._take(np.array([second])))


def test_maps_hold_each_effect_at_its_head_and_are_blank_where_nothing_acts(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    effects, _ = pair(run)
    found = effect_sheet(effects, run.edit.shape, "tiny on toy")
    assert [panel.title for panel in found.panels] == ["additive", "multiplicative"]
    for panel in found.panels:
        assert panel.shape == (3, 4) and panel.group == 2 and panel.range == found.panels[0].range
        assert panel.range[0] == -panel.range[1] and panel.range[1] == pytest.approx(np.abs(effects.effect).max())
        for gate, effect, there in zip(effects.gates, effects.effect, effects.measured, strict=True):
            if gate.kind == panel.title:
                at = (gate.layer, gate.unit)
                assert panel.values[at] == effect if there else np.isnan(panel.values[at])
                assert panel.mask[at] == there
        assert panel.absent == "does not act"
    assert "not asked for" in effect_sheet(effects.top(3), run.edit.shape).panels[0].absent
    times = effects.effect[effects.measured] / effects.se[effects.measured]
    words = " ".join(found.notes)
    assert f"{(np.abs(times) > 2).sum()} of {effects.measured.sum()} gates" in words
    assert f"{(times < -2).sum()} of them below it" in words
    nothing = dataclasses.replace(effects, measured=np.zeros(len(effects), dtype=bool))
    assert all(np.isnan(panel.values).all() for panel in effect_sheet(nothing).panels)
    mlp = Effects("exact", (Gate("mlp", "additive", 0, 0, 1.0, True),), np.ones((1, 3)), np.ones(3), np.ones(1, bool))
    with pytest.raises(ValueError, match="no gate at heads"):
        effect_sheet(mlp)


# -- kept ----------------------------------------------------------------------------------------------------------


def same(first: Any, second: Any) -> None:
    for field in dataclasses.fields(first):
        one, other = getattr(first, field.name), getattr(second, field.name)
        if isinstance(one, np.ndarray):
            assert np.array_equal(one, other, equal_nan=one.dtype.kind == "f"), field.name
        elif isinstance(one, dict) and one and isinstance(next(iter(one.values())), np.ndarray):
            assert list(one) == list(other)
            assert all(np.array_equal(one[key], other[key], equal_nan=True) for key in one), field.name
        else:
            assert repr(one) == repr(other), field.name  # NaN equals itself in words


def test_tables_come_back_as_they_were(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    out, alone = pair(run)
    tables: list[Any] = [
        by_hand(np.array([0, 0.5, 1.0])),
        faithfulness(run, out),
        interplay(out, alone, "tiny"),
        alone,
    ]
    assert isinstance(tables[1], Faithfulness) and isinstance(tables[2], Interplay)
    for table in tables:
        write_table(table, tmp_path / "t.safetensors", {})
        same(table, read_table(type(table), tmp_path / "t.safetensors"))
