"""The card and the note beside an export say what it is, and nothing of where it was made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from jola_interp import export
from jola_interp.export.affine import affine
from jola_interp.export.card import heads_by_kind, model_card
from jola_interp.models import Model
from jola_interp.runs import edit_digest
from tests.export.conftest import RunOf, made
from tests.runs_by_hand import make_run

MakeModel = Callable[..., Model]


def test_a_card_says_task_model_heads_scores_and_how_to_load(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run.config["model"]["source"] = "some/model"
    for kind, words in {
        "fold": ["library_name: transformers", 'from_pretrained("PATH"', "run.attach(model)"],
        "lora": ["library_name: peft", 'PeftModel.from_pretrained(model, "PATH")', "run.attach(model)"],
        "ia3": ["library_name: peft", 'export.from_peft("PATH", model)'],
        "run": ["library_name: jola_interp", 'ji.Run.from_pretrained("PATH")', "export.fold(run"],
    }.items():
        card = model_card(run, kind, revision="abc")
        header = yaml.safe_load(card.split("---")[1])
        assert header["base_model"] == "some/model" and header["base_model_revision"] == "abc"
        assert "toy" in card and "52.00 [51.00, 53.00]" in card and "11.00 [10.00, 12.00]" in card
        assert all(word in card for word in words), kind
    assert "bleu" in card and "95 % intervals" in card


def test_heads_by_kind_are_those_that_act_at_inference(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    found = heads_by_kind(affine(run.edit), run.edit.shape.d_head)
    acting: dict[str, Any] = {kind: value.abs().amax(-1) > 0 for kind, value in run.edit.at_inference().items()}
    add, scale = acting["additive"], acting["multiplicative"]
    for status, mask in {"additive": add & ~scale, "multiplicative": scale & ~add, "both": add & scale}.items():
        assert found[status] == [f"L{layer}H{head}" for layer, head in mask.nonzero().tolist()], status
    assert sum(map(len, found.values())) > 3
    assert all(label in model_card(run, "fold") for labels in found.values() for label in labels[:3])


def test_no_scores_are_claimed_for_a_part_or_before_an_evaluation(
    make_model: MakeModel, run_of: RunOf, tmp_path: Path
) -> None:
    scored = make_run(tmp_path / "scored")
    assert "52.00" not in model_card(scored, "fold", whole=False)
    model = make_model()
    done = export.fold(run_of(model, made(model)), tmp_path / "out", kinds=["additive"])
    assert "Only a part" in (done.path / "README.md").read_text()
    assert "not been scored" in model_card(run_of(model, made(model), "other"), "fold")


def test_a_base_model_that_is_on_no_hub_is_not_named_in_the_header(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert "base_model" not in model_card(run, "fold").split("---")[1]
    run.config["model"]["source"] = "smollm2-135m"
    assert "base_model" not in model_card(run, "lora").split("---")[1]
    assert "packaged model" in model_card(run, "lora")


@pytest.mark.parametrize("kind", ["fold", "lora", "ia3"])
def test_the_note_says_what_was_checked_and_nothing_names_a_local_path(
    make_model: MakeModel, run_of: RunOf, tmp_path: Path, kind: Any
) -> None:
    model = make_model()
    run = run_of(model, made(model, operations="multiply"))
    done = export.fold(run, tmp_path / "out") if kind == "fold" else export.to_peft(run, tmp_path / "out", kind)
    note = json.loads((done.path / "jola_export.json").read_text())
    assert note["kind"] == kind and note["dtype"] == "float32" and note["bytes"] == done.bytes
    assert note["model"]["fingerprint"] == model.fingerprint and note["edit"]["digest"] == edit_digest(run.edit)
    assert note["check"]["logits"] == done.check.logits and note["check"]["bound"] == 1e-5  # type: ignore[union-attr]
    for file in done.path.iterdir():
        assert str(tmp_path).encode() not in file.read_bytes(), file.name
    assert done.check is not None and done.check.in_words()[1:] in (done.path / "README.md").read_text()
    assert f"{len(done.layers)} layers" in done.in_words() and str(done.path) in done.in_words()
