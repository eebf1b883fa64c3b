"""Training step: with the edit, through both backends, over the same step of the frozen plain model.

    python benchmarks/step.py            the whole table, a few minutes on 2 cores
    python benchmarks/step.py --quick    ratios only, at 2 × 128 tokens
    python benchmarks/step.py --json     ends with one line of JSON: ratio_hooks, ratio_lens, …

The plain step is a forward and backward pass through the Hugging Face model (SDPA attention) without any edit, with the
gradient taken to the input embeddings. All variants run in turn in one process; a figure is the median over rounds, a
ratio the median of the ratios of each round.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch.nn import functional as F

import jola_interp as ji
from jola_interp.backends import BackendName, attach
from jola_interp.batching import Batch, Encoded, batches_of, collate, encode_examples
from jola_interp.edits import JoLA
from jola_interp.models import Model, load_model
from jola_interp.objective import cross_entropy

Step = Callable[[], None]
POSITIONS = 128


def plain_step(model: Model, ids: torch.Tensor) -> Step:
    """Forward and backward without an edit; every position is unembedded."""
    embeddings = model.hf.get_input_embeddings()

    def step() -> None:
        inputs = embeddings(ids).detach().requires_grad_()
        logits = model.hf(inputs_embeds=inputs, attention_mask=torch.ones_like(ids), use_cache=False).logits
        loss(logits, ids).backward()

    return step


def edited_step(model: Model, ids: torch.Tensor, backend: BackendName, stack: ExitStack) -> Step:
    """The same with JoLA's gates drawn and its parameters' gradients; the edit stays attached until ``stack`` ends."""
    edit = JoLA(model.head_shape).initialise(torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    attached = stack.enter_context(attach(edit, model, backend))

    def step() -> None:
        edit.zero_grad()
        attached.draw(generator)
        loss(model.logits(ids, torch.ones_like(ids)), ids).backward()

    return step


def loss(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten())


def measure(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Seconds of each step in each round, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for counted in range(-1, rounds):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if counted >= 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(seconds: dict[str, list[float]], name: str, base: str) -> float:
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[base], strict=True))


def backends(dtype: torch.dtype, batch: int, rounds: int) -> dict[str, float]:
    """Ratios of both backends over the plain model, and tokens per second."""
    models = {name: load_model("smollm2-135m", dtype=dtype) for name in ("plain", "hooks", "lens")}
    ids = torch.randint(100, 40_000, (batch, POSITIONS), generator=torch.Generator().manual_seed(0))
    steps = {"plain": plain_step(models["plain"], ids)}
    names: tuple[BackendName, ...] = ("hooks", "lens")
    with ExitStack() as stack:
        steps |= {name: edited_step(models[name], ids, name, stack) for name in names}
        seconds = measure(steps, rounds)
    result = {f"ratio_{name}": ratio(seconds, name, "plain") for name in names}
    return result | {f"tokens_per_second_{k}": ids.numel() / statistics.median(v) for k, v in seconds.items()}


def answer_only(rounds: int) -> dict[str, float]:
    """A step on real rows: logits at the answers only, over logits everywhere; bucketed over random batches."""
    model = load_model("smollm2-135m", dtype=torch.float32)
    edit = JoLA(model.head_shape).initialise(torch.Generator().manual_seed(0))
    rows = encode_examples(ji.load_task("restaurants", n_train=64).train, model.tokenizer)  # type: ignore[arg-type]
    first = collate(rows[:8], 0)
    everywhere = Batch(first.input_ids, first.attention_mask, first.prompt_mask, all_labels(first), first.rows)
    with attach(edit, model, "hooks") as attached:
        attached.draw(torch.Generator().manual_seed(1))
        seconds = measure(
            {
                "full": lambda: cross_entropy(model, everywhere).backward(),
                "answers": lambda: cross_entropy(model, first).backward(),
            },
            rounds,
        )
        epochs = {name: epoch(model, rows, name == "bucketed") for name in ("random", "bucketed")}
        spent = measure(epochs, max(1, rounds // 5))
    return {
        "ratio_answer_only_over_full": ratio(seconds, "answers", "full"),
        "ratio_bucketed_over_random": ratio(spent, "bucketed", "random"),
    }


def unembedding(rounds: int) -> dict[str, float]:
    """A forward pass of short rows that unembeds the last position of each: as one matrix, over row by row."""
    model = load_model("smollm2-135m", dtype=torch.bfloat16)
    ids = torch.randint(100, 40_000, (16, 30), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        seconds = measure(
            {
                "at once": lambda: model.forward(ids, mask, keep=1),
                "by row": lambda: model.hf(input_ids=ids, attention_mask=mask, logits_to_keep=1, use_cache=False),
            },
            rounds,
        )
    return {"ratio_unembedded_at_once_over_by_row": ratio(seconds, "at once", "by row")}


def all_labels(batch: Batch) -> torch.Tensor:
    """The answers' labels, padded so that every position but the last is unembedded."""
    labels = torch.full((batch.input_ids.shape[0], batch.input_ids.shape[1] - 1), -100)
    labels[:, -batch.labels.shape[1] :] = batch.labels
    return labels


def epoch(model: Model, rows: list[Encoded], bucketed: bool) -> Step:
    def step() -> None:
        for chosen in batches_of([len(r.ids) for r in rows], 8, torch.Generator().manual_seed(0), bucketed):
            cross_entropy(model, collate([rows[i] for i in chosen], 0)).backward()

    return step


def history_share(step_seconds: float) -> float:
    """Seconds of recording every gate once, over the seconds of a step."""
    edit = JoLA(load_model("smollm2-135m").head_shape).initialise(torch.Generator().manual_seed(0))
    masks = {site: mask.numpy() for site, mask in edit.masks().items()}
    history = ji.GateHistory(masks, list(edit.log_alphas()), 1000)
    started = time.perf_counter()
    for step in range(1000):
        history.record(step, edit.log_alphas())
    return (time.perf_counter() - started) / 1000 / step_seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 × 128 tokens in float32, ratios only")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--rounds", type=int, default=10, help="rounds that are counted (default 10)")
    options = parser.parse_args()
    ji.set_verbosity("ERROR")
    result: dict[str, float] = {"load_before": os.getloadavg()[0], "threads": torch.get_num_threads()}
    result |= backends(torch.float32, 2 if options.quick else 4, options.rounds)
    if not options.quick:
        result |= {f"bf16_{name}": value for name, value in backends(torch.bfloat16, 4, options.rounds).items()}
        result |= answer_only(options.rounds) | unembedding(options.rounds)
        result["history_share"] = history_share(4 * POSITIONS / result["tokens_per_second_plain"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result |= {"peak_memory_gib": peak / 2**20, "load_after": os.getloadavg()[0]}
    for name, value in result.items():
        sys.stdout.write(f"{name:36} {value:.3g}\n")
    if options.json:
        sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
