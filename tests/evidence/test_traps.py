"""Traps: what each check measures, on models where the answer is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from jola_interp.edits import JoLA
from jola_interp.evidence import traps
from jola_interp.evidence.case import Case, fresh, open_case
from jola_interp.tasks import Example, Task
from tests.evidence.conftest import Trained


def test_the_whole_scope_is_the_edit_and_a_scope_without_tokens_is_the_base(case: Case) -> None:
    found = traps.scope(case)
    assert found["all"]["value"] == pytest.approx(float(case.gain.mean()), abs=1e-7)
    assert len({round(one["value"], 9) for one in found.values()}) > 2


def test_no_prefix_is_the_run_itself_and_a_prefix_moves_the_base(case: Case) -> None:
    found = traps.prefixes(case, lengths=(0, 9))
    assert found["0"]["gain"]["value"] == pytest.approx(float(case.gain.mean()), abs=1e-7)
    assert found["9"]["base"] != pytest.approx(found["0"]["base"], abs=1e-6)
    with pytest.raises(ValueError, match="lengths must be 0 or more, got -1"):
        traps.prefixes(case, lengths=(-1,))


def test_a_choice_whose_labels_follow_nothing_is_untestable(trained: Trained) -> None:
    generator = np.random.default_rng(0)
    rows = [
        Example(f"{i:03d}?", str(generator.choice(["ab1", "ab2"])), options=("ab1", "ab2"), id=str(i))
        for i in range(80)
    ]
    task = Task("coin", tuple(rows[:32]), tuple(rows[32:40]), tuple(rows[40:]), kind="choice")
    run, task, model = trained(task, max_steps=40)
    found = traps.content(open_case(run, task, model))
    assert not found["testable"]
    assert found["majority"] <= found["chance"] == pytest.approx(np.log(2))
    assert found["label"]["base"] > 0 < found["label"]["edited"]


def test_texts_have_no_label_to_test(case: Case) -> None:
    assert traps.content(case) == {"testable": True, "label": None}


def test_all_offsets_together_reach_what_a_bias_of_the_output_reaches(case: Case) -> None:
    """On the tiny llama H·d_head = d_model: both have as many parameters and span the same biases."""
    found = traps.bias_baseline(case)
    shape = case.model.head_shape
    assert found["parameters"] == {
        "offsets": shape.layers * shape.heads * shape.d_head,
        "bias": shape.layers * shape.d_model,
    }
    assert shape.heads * shape.d_head == shape.d_model
    assert found["gain"]["bias"]["value"] > 0 < found["gain"]["offsets"]["value"]
    assert np.sign(found["difference"]["value"]) == np.sign(found["nll"]["offsets"] - found["nll"]["bias"])


def test_the_noise_tax_takes_each_at_its_own_best_rate(case: Case) -> None:
    found = traps.noise_tax(case, rates=(1.0, 1e-6))
    assert found["rates"]["ungated"] == 1.0  # the other hardly trains
    assert found["tax"]["value"] == pytest.approx(found["nll"]["gated"] - found["nll"]["ungated"])


def test_units_are_trained_at_every_ratio_and_the_sign_is_read_off_the_counts(case: Case) -> None:
    found = traps.units(case, ratios=(0.25, 4.0), kinds=("raw", "rms"))
    assert [(row["units"], row["ratio"]) for row in found["rows"]] == [
        ("raw", 0.25),
        ("raw", 4.0),
        ("rms", 0.25),
        ("rms", 4.0),
    ]
    signs = {np.sign(row["additive"] - row["multiplicative"]) for row in found["rows"]} - {0.0}
    assert found["changes_sign"] == (len(signs) > 1)


def test_another_basis_is_the_same_base_model(case: Case) -> None:
    found = traps.basis(case, seed=1)
    assert set(found["counts"]) == {"run", "rotated"}
    assert sum(found["counts"]["run"].values()) == sum(found["counts"]["rotated"].values()) == 8


def test_fresh_edits_keep_switches_and_mask_and_lose_values(case: Case) -> None:
    shape = case.model.head_shape
    edit = JoLA(shape, operations="add", heads=["L0H1", "L1H3"], inference="point").initialise(torch.Generator())
    clone = fresh(edit, units="rms")
    assert clone.settings() == {**edit.settings(), "units": "rms"} and not clone.initialised
    assert torch.equal(clone.masks()["heads"], edit.masks()["heads"])


def test_a_case_is_not_changed_by_being_questioned(case: Case) -> None:
    edit = {name: value.clone() for name, value in case.run.edit.tensors().items()}
    weights = case.model.weights_digest()
    traps.scope(case)
    traps.prefixes(case, lengths=(3,))
    assert all(torch.equal(value, edit[name]) for name, value in case.run.edit.tensors().items())
    assert case.model.weights_digest() == weights
    assert dataclasses.replace(case).selected == case.selected
