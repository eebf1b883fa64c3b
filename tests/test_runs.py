"""A Run on disk: whole, checked, usable without the model, and never unpickled."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from jola_interp.models import Model
from jola_interp.runs import Run, RunError, require_replaceable
from jola_interp.tasks import Task
from jola_interp.training import fit

MakeModel = Callable[..., Model]
SMALL: dict[str, Any] = {
    "epochs": 4, "batch_size": 6, "max_new_tokens": 4, "wrapper": "plain", "lr": 0.1, "backend": "lens",
}  # fmt: skip
IDS, MASK = torch.tensor([[5, 17, 80, 3]]), torch.ones(1, 4, dtype=torch.long)


@pytest.fixture
def run(make_model: MakeModel, toy_task: Task, tmp_path: Path) -> Run:
    return fit(make_model(), toy_task, out=tmp_path / "run", **SMALL)


def logits(model: Model) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(IDS, MASK)


def test_a_loaded_run_is_the_run(run: Run) -> None:
    again = Run.load(run.path)
    assert again.config == run.config and again.scores == run.scores and again.predictions == run.predictions
    assert all(torch.equal(value, again.edit.tensors()[name]) for name, value in run.edit.tensors().items())
    assert again.selected().labels == run.selected().labels
    assert repr(again) == repr(run) and again._repr_html_() == run._repr_html_()


def test_paths_and_times_are_in_timing_alone(run: Run) -> None:
    for file in run.path.rglob("*"):
        if file.is_file() and file.name != "timing.json":
            assert str(run.path.parent).encode() not in file.read_bytes(), file.name
    assert run.timing["train_seconds"] > 0


def test_attach_fwd_hooks_and_generate_use_the_trained_edit(run: Run, make_model: MakeModel) -> None:
    model = make_model()
    assert model.bridge is not None
    base = logits(model)
    with run.attach(model):
        edited = logits(model)
    assert not torch.equal(edited, base) and torch.equal(logits(model), base)
    hooked = model.bridge.run_with_hooks(IDS, attention_mask=MASK, fwd_hooks=run.fwd_hooks())
    torch.testing.assert_close(hooked, edited)
    with run.attach(model, strength=0.0):
        assert torch.equal(logits(model), base)
    with run.attach(model, heads=list(run.selected()), kinds=["additive"]):
        part = logits(model)
    assert not torch.equal(part, edited) and not torch.equal(part, base)
    table = run.generate(["row 3: fox?", "row 4: bee?"], model, max_new_tokens=3)
    assert list(table.columns) == ["prompt", "base", "edited"] and len(table) == 2


def test_another_architecture_is_refused_and_other_weights_warn(run: Run, make_model: MakeModel) -> None:
    with pytest.raises(RunError, match=r"config.json: model.class: found LlamaForCausalLM, expected Gemma3"):
        run.check_model(make_model("gemma3"))
    with pytest.raises(RunError, match="model.head_shape"):
        run.check_model(make_model("llama", num_hidden_layers=3))
    with pytest.raises(RunError, match="model.vocab_size: found 258, expected 300"):
        run.check_model(make_model("llama", vocab_size=300))
    other = make_model("llama", scale=4.0)
    with pytest.warns(UserWarning, match="same shape, other weights"):
        run.check_model(other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.check_model(make_model())


def change_json(run: Run, change: Callable[[dict[str, Any]], None]) -> None:
    file = run.path / "config.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def change_tensors(run: Run, name: str, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(run.path / name)
    change(tensors)
    save_file(tensors, run.path / name)


DAMAGES: dict[str, tuple[Callable[[Run], Any], str]] = {
    "newer format": (lambda r: change_json(r, lambda c: c.update(format=99)), "config.json: format: found 99"),
    "unknown key": (lambda r: change_json(r, lambda c: c.update(extra=1)), "config.json: keys: found .'extra'"),
    "missing key": (lambda r: change_json(r, lambda c: c.pop("train")), "config.json: keys: found .'train'"),
    "no JSON": (lambda r: (r.path / "config.json").write_text("{"), "config.json: content"),
    "older than the first format": (lambda r: change_json(r, lambda c: c.update(format=0)), "format: found 0"),
    "unknown status": (lambda r: change_json(r, lambda c: c.update(status="perfect")), "status: found perfect"),
    "no section": (lambda r: change_json(r, lambda c: c.update(edit=3)), "config.json: edit: found 3"),
    "missing training field": (lambda r: change_json(r, lambda c: c["train"].pop("lr")), "train: found .'lr'"),
    "broken metrics": (lambda r: (r.path / "metrics.jsonl").write_text("{\n"), "metrics.jsonl: content"),
    "steps that are no numbers of steps": (
        lambda r: change_tensors(r, "gates.safetensors", lambda t: t.update(step=torch.tensor(1.5))),
        "gates.safetensors: step",
    ),
    "unknown edit": (lambda r: change_json(r, lambda c: c["edit"].update(type="x")), "edit.type: found x"),
    "unknown switch": (lambda r: change_json(r, lambda c: c["edit"].update(size=1)), "config.json: edit"),
    "wrong shape": (
        lambda r: change_tensors(r, "edit.safetensors", lambda t: t.update({"additive.heads": torch.zeros(2, 4, 9)})),
        r"edit.safetensors: tensors: found additive.heads: expected torch.float32 \[2, 4, 8\]",
    ),
    "not finite": (
        lambda r: change_tensors(r, "edit.safetensors", lambda t: t["additive.heads"].fill_(float("inf"))),
        "edit.safetensors.*finite",
    ),
    "unknown tensor": (
        lambda r: change_tensors(r, "edit.safetensors", lambda t: t.update(extra=torch.zeros(1))),
        "edit.safetensors.*unknown .'extra'",
    ),
    "gates missing": (
        lambda r: change_tensors(r, "gates.safetensors", lambda t: t.pop("log_alpha.heads.additive")),
        "gates.safetensors: tensors",
    ),
    "gates not finite": (
        lambda r: change_tensors(r, "gates.safetensors", lambda t: t["log_alpha.heads.additive"].fill_(float("nan"))),
        "gates.safetensors: log_alpha.heads.additive: found NaN",
    ),
    "a pickle": (
        lambda r: torch.save({"additive.heads": torch.zeros(1)}, r.path / "edit.safetensors"),
        "edit.safetensors: content",
    ),
    "no edit": (lambda r: (r.path / "edit.safetensors").unlink(), "edit.safetensors: file: found nothing"),
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """One Run for all damages; each test gets a copy."""
    from jola_interp.models import load_model
    from tests.conftest import build_hf

    rows = [{"instruction": f"{i}?", "answer": "a"} for i in range(12)]
    task = Task.from_rows(rows[:8], rows[8:10], rows[10:], name="kept", kind="text")
    model = load_model(build_hf("llama"), tokenizer=tokenizer)
    return fit(model, task, out=tmp_path_factory.mktemp("kept") / "run", **{**SMALL, "backend": "hooks"}).path


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_runs_are_refused_with_file_field_found_and_expected(kept: Path, tmp_path: Path, damage: str) -> None:
    shutil.copytree(kept, tmp_path / "run")
    break_it, match = DAMAGES[damage]
    break_it(Run.load(tmp_path / "run"))
    with pytest.raises(RunError, match=match):
        Run.load(tmp_path / "run")


def test_no_run_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no Run at"):
        Run.load(tmp_path)


def test_a_run_of_a_handed_in_model_asks_for_it(kept: Path) -> None:
    with pytest.raises(ValueError, match="pass model="):
        _ = Run.load(kept).model


class FakeHub:
    """Takes what would go to the Hub."""

    uploads: list[dict[str, Any]] = []

    def __init__(self, token: Any = None):
        self.token = token

    def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> None:
        self.uploads.append({"repo": repo_id, "private": private, "exist_ok": exist_ok})

    def upload_folder(self, **given: Any) -> Any:
        self.uploads.append(given)
        return type("Commit", (), {"commit_url": "https://hub/commit"})


def test_push_is_private_and_leaves_predictions_and_checkpoints_at_home(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
    assert Run.load(kept).push_to_hub("me/run") == "https://hub/commit"
    created, uploaded = FakeHub.uploads[-2:]
    assert created == {"repo": "me/run", "private": True, "exist_ok": True}
    assert "predictions.jsonl" not in uploaded["allow_patterns"]
    assert not any("checkpoint" in pattern or "timing" in pattern for pattern in uploaded["allow_patterns"])
    Run.load(kept).push_to_hub("me/run", include_predictions=True)
    assert "predictions.jsonl" in FakeHub.uploads[-1]["allow_patterns"]


def test_from_pretrained_takes_a_directory_or_what_the_hub_gives(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Run.from_pretrained(str(kept)).config == Run.load(kept).config
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(kept))
    assert Run.from_pretrained("me/run", revision="v1").config == Run.load(kept).config


def test_text_with_unusual_line_separators_comes_back(tmp_path: Path) -> None:
    from jola_interp import _files

    rows = [{"text": "one\u2028two\u0085three"}, {"text": "four"}]
    _files.write_jsonl(tmp_path / "rows.jsonl", rows)
    assert _files.read_jsonl(tmp_path / "rows.jsonl") == rows


def test_the_same_edit_cannot_act_twice_but_its_parts_compose(run: Run, make_model: MakeModel) -> None:
    model = make_model()
    with run.attach(model):
        with pytest.raises(ValueError, match="already"), run.attach(model):
            pass
        with pytest.raises(ValueError, match="one is attached"):
            run.generate("x", model)
        whole = logits(model)
    first, second = [(0, h) for h in range(4)], [(1, h) for h in range(4)]
    with run.attach(model, heads=first), run.attach(model, heads=second):
        torch.testing.assert_close(logits(model), whole)


def test_attached_edits_are_frozen_and_names_are_loaded(run: Run, make_model: MakeModel) -> None:
    model = make_model()
    with run.attach(model):
        assert not model.logits(IDS, MASK).requires_grad
    with pytest.raises(OSError, match="no/such-model"):
        run.attach("no/such-model")


def test_a_run_of_the_hooks_backend_acts_on_a_booted_model(kept: Path, make_model: MakeModel) -> None:
    found, model = Run.load(kept), make_model()
    assert found.config["backend"] == "hooks" and model.bridge is not None
    with found.attach(model) as attached:
        model.logits(IDS, MASK)
    attached.check_live()


@pytest.mark.parametrize("left", ["checkpoint/.state.safetensors-ab12", ".config.json-x", "checkpoint/"])
def test_what_a_killed_process_left_half_written_is_nothing(tmp_path: Path, left: str) -> None:
    place = tmp_path / left
    place.mkdir(parents=True) if left.endswith("/") else (place.parent.mkdir(exist_ok=True), place.write_text("half"))
    require_replaceable(tmp_path)
    (tmp_path / "checkpoint").mkdir(exist_ok=True)
    (tmp_path / "checkpoint" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty and holds no Run"):
        require_replaceable(tmp_path)
