"""A model in float32 is the same one: from the same place, with the same tokenizer and what it was loaded with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from jola_interp.analysis.rows import precise
from jola_interp.models import load_model, plain
from tests.conftest import build_hf


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    build_hf("llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("reloaded", [precise, plain])
def test_what_a_model_was_loaded_with_stays(
    checkpoint: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, reloaded: Any
) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []
    real = transformers.AutoModelForCausalLM.from_pretrained

    def from_pretrained(location: str, **options: Any) -> Any:
        calls.append((location, options))
        return real(checkpoint, dtype=options["dtype"], attn_implementation=options["attn_implementation"])

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    given = {"revision": "v2", "attn_implementation": "eager", "device_map": "cpu", "trust_remote_code": False}
    model = load_model("nobody/nothing", tokenizer=tokenizer, dtype="bfloat16", **given)
    if reloaded is plain:
        assert model.bridge is not None
    again = reloaded(model)
    assert [location for location, _ in calls] == ["nobody/nothing"] * 2
    (_, first), (_, second) = calls
    wanted = torch.float32 if reloaded is precise else torch.bfloat16
    assert first == {**given, "dtype": torch.bfloat16} and second == {**given, "dtype": wanted}
    assert again.tokenizer is tokenizer and again.dtype == wanted and again.source == model.source
    assert again.hf.config._attn_implementation == "eager"


def test_in_float32_the_weights_are_those_that_were_stored(checkpoint: Path, tokenizer: Any) -> None:
    model = load_model(checkpoint, tokenizer=tokenizer, dtype="bfloat16", attn_implementation="eager")
    exact, stored = precise(model), build_hf("llama")
    assert exact.hf.config._attn_implementation == "eager"
    for name, parameter in exact.hf.named_parameters():
        assert torch.equal(parameter, stored.get_parameter(name))
    assert precise(exact) is exact  # is so already
    brought = load_model(build_hf("llama").bfloat16(), tokenizer=tokenizer)
    assert precise(brought) is brought  # nowhere to load it from
