"""What training takes of a GPU's memory, counted on the meta device: no weights are loaded, no number is estimated.

    python benchmarks/memory.py                                 JoLA, a bias of W_O, RED and LoRA on two 7B-class models
    python benchmarks/memory.py --batch-size 8 --tokens 512     other batches
    python benchmarks/memory.py --csv FILE                      as CSV

Columns, in GiB: the frozen weights in bfloat16; what trains, in float32; its gradients and AdamW's two moments; and
what the forward pass of a batch keeps for the backward pass, counted tensor by tensor as autograd saves them (each
storage once, weights not among them), without and with gradient checkpointing. Attention is the fused kernel (flash)
that a GPU runs, which keeps no matrix of tokens × tokens. The logits of the answers (--answer tokens a row) are among
it. Not counted: what a kernel takes in passing, and what an allocator wastes.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
from typing import Any

import pandas as pd
import torch
from transformers import AttentionInterface, AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen2Config

import jola_interp as ji
from jola_interp.backends import attach
from jola_interp.models import Model

GIB = 2**30
METHODS = ("jola", "o-proj-bias", "red", "lora")
SIZES: dict[str, Any] = {
    "Llama-3.1-8B": LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=131072,
    ),
    "Qwen2.5-7B": Qwen2Config(
        vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4, max_position_embeddings=131072,
    ),
}  # fmt: skip
"""The models' published dimensions."""


@dataclasses.dataclass(frozen=True)
class Row:
    """Bytes of one method on one model; see the columns above."""

    model: str
    method: str
    trainable: int
    weights: float
    trained: float
    gradients: float
    moments: float
    activations: float
    checkpointed: float

    @property
    def cells(self) -> dict[str, Any]:
        """Numbers as people read them, and what it comes to."""
        found = dataclasses.asdict(self)
        own = self.trained + self.gradients + self.moments
        found |= {
            "total": self.weights + own + self.activations,
            "total checkpointed": self.weights + own + self.checkpointed,
        }
        return {name: round(value / GIB, 3) if isinstance(value, float) else value for name, value in found.items()}


def main() -> None:
    options = read_options()
    rows = [row_of(name, method, options) for name in SIZES for method in METHODS]
    frame = pd.DataFrame([row.cells for row in rows])
    sys.stdout.write(f"{frame.to_string(index=False)}\n")
    if options.csv:
        frame.to_csv(options.csv, index=False)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=256, help="of a row, prompt and answer")
    parser.add_argument("--answer", type=int, default=32, help="positions of a row that are unembedded")
    parser.add_argument("--csv", type=pathlib.Path)
    return parser.parse_args()


def row_of(name: str, method: str, options: argparse.Namespace) -> Row:
    model = built(name)
    edit = ji.method(method).make(model, ji.PRESETS["selective"].edit)
    trainable = edit.n_parameters()
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.hf.parameters())
    kept = saved(model, edit, options, checkpointing=False)
    less = saved(model, edit, options, checkpointing=True)
    own = 4.0 * trainable
    return Row(name, method, trainable, float(weights), own, own, 2 * own, float(kept), float(less))


def built(name: str) -> Model:
    AttentionInterface.register("fused_on_meta", flash)
    with torch.device("meta"):
        hf: PreTrainedModel = AutoModelForCausalLM.from_config(
            SIZES[name], dtype=torch.bfloat16, attn_implementation="fused_on_meta"
        )
    return ji.load_model(hf)


def flash(
    _module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _mask: Any,
    scaling: float | None = None, dropout: float = 0.0, **_: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Where there is no GPU PyTorch would take apart what it has to say of memory: the kernel is named."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention
    return kernel(query, key, value, dropout, True, scale=scaling)[0].transpose(1, 2).contiguous(), None


def saved(model: Model, edit: ji.Edit, options: argparse.Namespace, checkpointing: bool) -> int:
    """Bytes that autograd keeps from one forward pass."""
    ids = torch.zeros(options.batch_size, options.tokens, dtype=torch.long, device="meta")
    known = {storage_of(tensor) for tensor in (*model.hf.parameters(), *model.hf.buffers(), *edit.parameters())}
    found: dict[int, tuple[int, Any]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if (key := storage_of(tensor)) not in known:
            found[key] = (tensor.untyped_storage().nbytes(), tensor)  # held, so that no storage takes its place
        return tensor

    if checkpointing:
        model.hf.gradient_checkpointing_enable({"use_reentrant": False})
        model.hf.train()
    points = edit.points()
    edit.to("meta").points = lambda: points  # type: ignore[method-assign]  # where it acts cannot be read off meta masks
    with attach(edit, model, "hooks") as live, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        live.draw(torch.Generator())
        # A ready mask: whether one of tokens is all 1 cannot be read off the meta device.
        mask = torch.zeros(1, 1, options.tokens, options.tokens, dtype=model.dtype, device="meta")
        logits = model.hf(ids, attention_mask=mask, logits_to_keep=options.answer, use_cache=False).logits
        logits.float().log_softmax(-1).sum()
    if checkpointing:
        model.hf.gradient_checkpointing_disable()
        model.hf.eval()
    return sum(size for size, _ in found.values())


def storage_of(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


if __name__ == "__main__":
    main()
