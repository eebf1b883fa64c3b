"""The card and the note beside an export say what it is, and nothing of where it was made."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from jola_interp import export, hub
from jola_interp.edits import JoLA, LoRA
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


def test_what_loads_the_base_model_names_its_revision(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run.config["model"]["source"] = "some/model"
    for kind in ("fold", "lora", "ia3", "run"):
        lines = model_card(run, kind, revision="abc").split("```")[1::2]
        loads = [line for block in lines for line in block.splitlines() if '("some/model"' in line]
        assert loads and all('"some/model", revision="abc"' in line for line in loads), kind
        assert "revision" not in model_card(run, kind).split("How to load")[1]


def test_an_edit_that_is_no_weights_is_not_said_to_become_some(make_model: MakeModel, run_of: RunOf) -> None:
    model = make_model()
    edit = JoLA(model.head_shape, scope="prompt").initialise(torch.Generator().manual_seed(0))
    card = model_card(run_of(model, edit), "run")
    assert "ji.Run.from_pretrained" in card and "export." not in card


def test_a_lora_that_was_trained_says_where_it_is(make_model: MakeModel, run_of: RunOf, tmp_path: Path) -> None:
    model = make_model()
    edit = LoRA.of(model.hf, r=2).initialise(torch.Generator().manual_seed(0))
    for parameter in edit.parameters():
        parameter.data.add_(0.02)
    words = (export.to_peft(run_of(model, edit), tmp_path / "own").path / "README.md").read_text()
    assert "on the output projections" not in words and "q_proj" in words.split("# toy")[1].split("##")[0]
    assert "on the output projections" in model_card(run_of(model, made(model), "heads"), "lora")


class FakeHub:
    """Takes what would go to the Hub."""

    def __init__(self, token: Any = None):
        self.token = token

    files: dict[str, bytes] = {}
    options: dict[str, Any] = {}
    together: list[str] = []

    def create_repo(self, repo_id: str, **options: Any) -> None:
        FakeHub.files, FakeHub.options, FakeHub.together = {}, {"repo": repo_id, **options}, []

    def create_commit(self, repo_id: str, operations: list[Any], *, commit_message: str) -> None:
        assert repo_id == self.options["repo"] and commit_message and not self.files
        self.files.update({added.path_in_repo: added.path_or_fileobj for added in operations})
        FakeHub.together = sorted(self.files)

    def upload_folder(self, *, folder_path: Path, allow_patterns: list[str], **_: Any) -> Any:
        found = [file for pattern in allow_patterns for file in folder_path.glob(pattern)]
        self.files.update({str(file.relative_to(folder_path)): file.read_bytes() for file in found})
        return type("Commit", (), {"commit_url": "https://hub/commit"})


def test_a_pushed_run_has_a_card_unless_it_has_one_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
    run = make_run(tmp_path / "run")
    before = sorted(run.path.iterdir())
    assert hub.push(run.path, "me/run") == "https://hub/commit" and FakeHub.options["private"]
    card = FakeHub.files["README.md"].decode()
    assert 'ji.Run.from_pretrained("me/run")' in card and "52.00" in card and "edit.safetensors" in FakeHub.files
    assert sorted(run.path.iterdir()) == before
    (run.path / "README.md").write_text("mine")
    hub.push(run, "me/run", private=False)
    assert FakeHub.files["README.md"] == b"mine" == (run.path / "README.md").read_bytes()
    assert not FakeHub.options["private"] and "heads.png" not in FakeHub.files


def test_the_card_shows_the_map_of_the_heads_that_goes_up_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
    run = make_run(tmp_path / "run", names=("tiny", "toy [v2]"))
    before = {file.name: file.read_bytes() for file in run.path.iterdir()}
    hub.push(run, "me/run")
    assert FakeHub.together == ["README.md", "heads.png"]
    drawn = FakeHub.files["heads.png"]
    assert drawn.startswith(b"\x89PNG") and 1200 <= int.from_bytes(drawn[16:20]) <= 2000
    shown = re.findall(r"^!\[(.*)\]\(heads\.png\)$", FakeHub.files["README.md"].decode(), re.MULTILINE)
    assert len(shown) == 1 and f"selects {len(run.selected())} of 12 heads" in shown[0]
    assert "toy \\[v2\\]" in shown[0] and "[v2" not in shown[0].replace("\\[", "")
    hub.push(run.path, "me/run")
    assert FakeHub.files["heads.png"] == drawn
    assert {file.name: file.read_bytes() for file in run.path.iterdir()} == before


def test_a_run_without_gates_at_heads_has_no_picture_and_no_broken_link(
    make_model: MakeModel, run_of: RunOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
    model = make_model()
    lora = run_of(model, LoRA.of(model.hf, r=2).initialise(torch.Generator().manual_seed(0)))
    for run in (lora, make_run(tmp_path / "mlp", sites=("mlp",))):
        hub.push(run, "me/run")
        assert FakeHub.together == ["README.md"] and "heads.png" not in FakeHub.files
        assert b"![" not in FakeHub.files["README.md"]
    assert "![" not in model_card(make_run(tmp_path / "heads"), "run")


@pytest.mark.parametrize("kind", ["run", "fold", "lora", "ia3"])
def test_what_a_card_says_of_loading_is_python_that_makes_what_it_uses(kind: str, tmp_path: Path) -> None:
    blocks = model_card(make_run(tmp_path / "run"), kind).split("How to load")[1].split("```")[1::2]
    assert len(blocks) == {"run": 3, "fold": 3}.get(kind, 2)
    for block in blocks:
        tree = ast.parse(block.removeprefix("python\n"))
        names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
        made = {node.id for node in names if isinstance(node.ctx, ast.Store)}
        imported = {alias.asname or alias.name for node in ast.walk(tree) for alias in getattr(node, "names", [])}
        assert {node.id for node in names} <= made | imported, block


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
