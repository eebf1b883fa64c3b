"""How far apart the ways to one edited model are: three backends on every architecture, six ways on a trained Run.

    python benchmarks/parity.py                              tiny random models and edits; about a minute on 2 cores
    python benchmarks/parity.py --run RUN                    and the trained edit of a Run, on its own model
    python benchmarks/parity.py --run RUN --architectures    that alone

Rows of different lengths are padded on the left, then on the right. Compared are the logits of every real token of the
prompts ("prefill") and those of each of --steps new tokens ("steps"). All ways are fed the tokens that the reference
writes greedily, so that a step is compared on the same text: on the left through `generate`, whose choice is forced; on
the right, behind which `generate` cannot write, token by token with the cache. A difference is the largest of any
logit, over the largest logit of the reference, which is `hooks`. "change" is the same between the reference and the
model without the edit: of the prompts, and of that step at which it is least. In how many steps and rows the greedy
token is the same stands behind it.

On random models the edit is a dense JoLA at heads, attention and MLP outputs, drawn with a standard deviation of STD,
gates open; attention is eager on both sides, or, where "SDPA" says so, fused under `hooks` and `nnsight` (`lens` has
its own). Of a Run: lens, hooks and nnsight are attached, fold and LoRA exported and loaded by stock transformers and
peft, and IA3 stands beside the multiplicative part of the edit alone.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
import torch
import transformers
from recovery import tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, LogitsProcessorList

import jola_interp as ji
from jola_interp import export
from jola_interp.backends import BackendName, attach
from jola_interp.batching import left_pad, pad_id
from jola_interp.edits import JoLA
from jola_interp.evaluation.generation import encode_prompts
from jola_interp.models import Model, load_model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PADDINGS = ("left", "right")
STD = 0.5
MULTIPLICATIVE = ["multiplicative"]
LENGTHS = (11, 24, 17, 20)
"""Tokens of the rows of random models."""
SIZES: dict[str, Any] = {
    "vocab_size": 258, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 128, "bos_token_id": 257, "eos_token_id": 257, "pad_token_id": 256,
    "tie_word_embeddings": False, "initializer_range": 0.16,
}  # fmt: skip
GROUPED = {**SIZES, "num_key_value_heads": 2}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", GROUPED),
    "qwen2": ("Qwen2Config", GROUPED),
    "qwen3": ("Qwen3Config", {**GROUPED, "head_dim": 8}),
    "gemma3": ("Gemma3TextConfig", {**GROUPED, "head_dim": 16, "sliding_window": 16}),
    "mistral": ("MistralConfig", {**GROUPED, "sliding_window": None}),
    "gpt2": ("GPT2Config", SIZES),  # which knows these sizes by these names, too
    "pythia": ("GPTNeoXConfig", SIZES),
    "phi3": ("Phi3Config", GROUPED),
    "olmo2": ("Olmo2Config", GROUPED),
}


@dataclass(frozen=True, eq=False)
class Outputs:
    """Logits in float32 on the CPU: padding to [token, vocab] of the prompts and [step, row, vocab] of new tokens."""

    prefill: dict[str, Tensor]
    steps: dict[str, Tensor]
    written: Tensor
    """[row, step] the tokens that were fed, or chosen."""


@dataclass(frozen=True)
class Row:
    """One comparison; see the columns above. ``worst_step`` counts from 1; 0 is of the prompts."""

    model: str
    dtype: str
    way: str
    against: str
    padding: str
    phase: str
    difference: float
    change: float
    largest_logit: float
    worst_step: int
    alike: int
    tokens: int


def main() -> None:
    options = read_options()
    if options.threads:
        torch.set_num_threads(options.threads)
    ji.set_verbosity("error")
    transformers.logging.set_verbosity_error()
    parts, rows = ["# Parity of the ways to an edited model\n"], []
    for name in options.dtypes if options.architectures else ():
        made = [of_architecture(architecture, DTYPES[name], options.steps) for architecture in options.architectures]
        found = [row for one, _ in made for row in one]
        parts += section(f"Random models, {name}", found, ("model", "way", "against"), [told for _, told in made])
        rows += found
    if options.run:
        run = ji.Run.load(options.run)
        for name in options.dtypes:
            found, exports = of_run(run, DTYPES[name], options)
            parts += section(f"{label(run)}, {name}", found, ("way", "against"), exports)
            rows += found
    text = "\n".join(parts)
    sys.stdout.write(text)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text, encoding="utf-8")
    pd.DataFrame([asdict(row) for row in rows]).to_csv(options.out.with_suffix(".csv"), index=False)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", nargs="*", default=list(ARCHITECTURES), choices=list(ARCHITECTURES))
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--steps", type=int, default=32, help="new tokens")
    parser.add_argument("--run", type=pathlib.Path, help="directory of a Run of JoLA on heads")
    parser.add_argument("--rows", type=int, default=4, help="prompts of the Run's task")
    parser.add_argument("--source", default="hub", help="where the task is from, if the Run keeps no predictions")
    parser.add_argument("--threads", type=int, help="threads of PyTorch")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent / "results" / "parity.md")
    return parser.parse_args()


# -- what one model says -------------------------------------------------------------------------------------------


@torch.no_grad()
def outputs(model: Model, rows: Sequence[Sequence[int]], steps: int, forced: Tensor | None = None) -> Outputs:
    """Everything that is compared, of the model as it stands; greedy tokens are taken where none are forced."""
    prefill = {}
    for padding in PADDINGS:
        ids, mask = padded(model, rows, padding)
        prefill[padding] = model.logits(ids, mask)[mask.bool()].float().cpu()
    written, left = generated(model, rows, steps, forced)
    return Outputs(prefill, {"left": left, "right": cached(model, rows, written)}, written)


def padded(model: Model, rows: Sequence[Sequence[int]], padding: str) -> tuple[Tensor, Tensor]:
    """(input_ids, attention_mask), both [row, pos]."""
    pad = pad_id(model.tokenizer) if model.tokenizer else 0
    if padding == "left":
        ids, mask = left_pad(rows, pad)
    else:
        ids, mask = (part.flip(1) for part in left_pad([row[::-1] for row in rows], pad))
    return ids.to(model.device), mask.to(model.device)


def generated(model: Model, rows: Sequence[Sequence[int]], steps: int, forced: Tensor | None) -> tuple[Tensor, Tensor]:
    """(tokens [row, step], logits [step, row, vocab]) of `generate`, behind padding on the left."""
    ids, mask = padded(model, rows, "left")
    choice = LogitsProcessorList([] if forced is None else [Forced(forced.to(model.device), ids.shape[1])])
    found = model.hf.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=steps, min_new_tokens=steps, do_sample=False,
        pad_token_id=pad_id(model.tokenizer) if model.tokenizer else 0, logits_processor=choice, output_logits=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    return found.sequences[:, ids.shape[1] :].cpu(), torch.stack(found.logits).float().cpu()


class Forced:
    """Leaves one token to choose from; the logits that `generate` returns are those before it."""

    def __init__(self, tokens: Tensor, start: int):
        self.tokens, self.start = tokens, start

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        step = ids.shape[1] - self.start
        return torch.full_like(scores, -torch.inf).scatter(1, self.tokens[:, step : step + 1], 0.0)


def cached(model: Model, rows: Sequence[Sequence[int]], tokens: Tensor) -> Tensor:
    """Logits [step, row, vocab] token by token behind padding on the right, which stays between prompt and tokens."""
    ids, mask = padded(model, rows, "right")
    first = model.forward(ids, mask, use_cache=True)
    last = mask.sum(1) - 1
    found, cache = [first.logits[torch.arange(len(rows), device=model.device), last]], first.past_key_values
    for token in tokens[:, :-1].to(model.device).unbind(1):
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
        step = model.forward(token[:, None], mask, cache=cache, use_cache=True)
        found.append(step.logits[:, -1])
        cache = step.past_key_values
    return torch.stack(found).float().cpu()


def compared(found: Outputs, reference: Outputs, base: Outputs, **names: str) -> list[Row]:
    """A row for each padding and phase."""
    rows = []
    for padding in PADDINGS:
        for phase in ("prefill", "steps"):
            one, other, plain = (getattr(part, phase)[padding] for part in (found, reference, base))
            largest = float(other.abs().max())
            apart, moved = ((value - other).abs().flatten(1).amax(1) / largest for value in (one, plain))
            decoding, alike = phase == "steps", one.argmax(-1) == other.argmax(-1)
            row = Row(
                **names, padding=padding, phase=phase, difference=float(apart.max()),
                change=float(moved.min() if decoding else moved.max()), largest_logit=largest,
                worst_step=int(apart.argmax()) + 1 if decoding else 0, alike=int(alike.sum()), tokens=alike.numel(),
            )  # fmt: skip
            rows.append(row)
    return rows


# -- random models -------------------------------------------------------------------------------------------------


def of_architecture(name: str, dtype: torch.dtype, steps: int) -> tuple[list[Row], str]:
    """(lens and nnsight against hooks; under SDPA, too; what TransformerLens has to say against the model)."""
    drawn = torch.randint(256, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(0)).tolist()
    prompts = [row[:length] for row, length in zip(drawn, LENGTHS, strict=True)]
    plain = built(name, dtype, "eager")
    edit = JoLA(plain.head_shape, sites=("heads", "attention", "mlp"), init_std=STD, init_log_alpha=2.0)
    edit.initialise(torch.Generator().manual_seed(1)).requires_grad_(False)

    def under(backend: BackendName, attention: str, forced: Tensor | None = None) -> Outputs:
        model = built(name, dtype, attention)
        with attach(edit, model, backend) as live:
            found = outputs(model, prompts, steps, forced)
        live.check_live()
        return found

    eager = under("hooks", "eager")
    text = eager.written
    base, fused = outputs(plain, prompts, steps, text), under("hooks", "sdpa", text)
    places = {"model": name, "dtype": str(dtype).removeprefix("torch.")}
    rows = [
        *compared(under("nnsight", "eager", text), eager, base, way="nnsight", against="hooks", **places),
        *compared(under("nnsight", "sdpa", text), fused, base, way="nnsight", against="hooks, SDPA", **places),
    ]
    if told := refusal(built(name, dtype, "eager"), prompts):
        return rows, f"{name}, {told}"
    lens = under("lens", "eager", text)
    rows += compared(lens, eager, base, way="lens", against="hooks", **places)
    return [*rows, *compared(lens, fused, base, way="lens", against="hooks, SDPA", **places)], ""


@torch.no_grad()
def refusal(model: Model, prompts: Sequence[Sequence[int]]) -> str:
    """The error with which TransformerLens runs a model that has no edit; empty if there is none."""
    assert model.bridge is not None
    try:
        model.logits(*padded(model, prompts, "left"))
    except RuntimeError as error:
        return f"booted by TransformerLens, without an edit: {error}"
    return ""


def built(name: str, dtype: torch.dtype, attention: str) -> Model:
    """A tiny model, always with the same weights, which are large enough for an edit to matter."""
    kind, sizes = ARCHITECTURES[name]
    config = getattr(transformers, kind)(**sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    return load_model(hf.eval(), tokenizer=tokenizer())


# -- a Run ---------------------------------------------------------------------------------------------------------


def of_run(run: ji.Run, dtype: torch.dtype, options: argparse.Namespace) -> tuple[list[Row], list[str]]:
    """(comparisons, what was exported in words)."""
    prompts, names = prompts_of(run, options), {"model": label(run), "dtype": str(dtype).removeprefix("torch.")}
    text: Tensor | None = None
    rows: list[Row] = []

    def under(way: AbstractContextManager[Model]) -> Outputs:
        with way as model:
            return outputs(model, prompts, options.steps, text)

    def add(way: str, found: Outputs, reference: Outputs, against: str) -> None:
        rows.extend(compared(found, reference, base, way=way, against=against, **names))

    with tempfile.TemporaryDirectory() as scratch:
        ways = Ways(run, dtype, pathlib.Path(scratch))
        hooks = under(ways.attached("hooks"))
        text = hooks.written
        base, eager = under(ways.plain()), under(ways.attached("hooks", attention="eager"))
        lens = under(ways.attached("lens"))
        add("lens", lens, eager, "hooks")
        add("lens", lens, hooks, "hooks, SDPA")
        del lens, eager
        add("nnsight", under(ways.attached("nnsight")), hooks, "hooks, SDPA")
        add("fold", under(ways.fold()), hooks, "hooks, SDPA")
        add("lora", under(ways.peft("lora")), hooks, "hooks, SDPA")
        hooks = under(ways.attached("hooks", MULTIPLICATIVE))
        add("ia3", under(ways.peft("ia3", MULTIPLICATIVE)), hooks, "hooks, SDPA, multiplicative part")
    return rows, ways.told


class Ways:
    """The edited model in different forms, each on weights that were loaded for it alone; ``told``: the exports."""

    def __init__(self, run: ji.Run, dtype: torch.dtype, folder: pathlib.Path):
        self.run, self.dtype, self.folder = run, dtype, folder
        self.told: list[str] = []

    @contextmanager
    def plain(self, attention: str = "sdpa") -> Iterator[Model]:
        """The base model."""
        own = self.run.model
        if own.source is None:
            raise ValueError(
                f"{self.run.path}: trained on a model that was handed in: it cannot be loaded for each way"
            )
        yield load_model(own.source, tokenizer=own.tokenizer, dtype=self.dtype, attn_implementation=attention)

    @contextmanager
    def attached(self, backend: BackendName, kinds: Any = None, attention: str = "sdpa") -> Iterator[Model]:
        with self.plain(attention) as model:
            with self.run.attach(model, kinds=kinds, backend=backend) as live:
                yield model
            live.check_live()

    @contextmanager
    def fold(self) -> Iterator[Model]:
        made = export.fold(self.run, self.folder / "fold", dtype=self.dtype)
        self.told.append(in_a_line(made))
        hf = AutoModelForCausalLM.from_pretrained(made.path, dtype=self.dtype)
        yield load_model(hf, tokenizer=self.run.model.tokenizer)

    @contextmanager
    def peft(self, kind: Any, kinds: Any = None) -> Iterator[Model]:
        from peft import PeftModel

        made = export.to_peft(self.run, self.folder / kind, kind, dtype=self.dtype, kinds=kinds)
        self.told.append(in_a_line(made))
        with self.plain() as base, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`lora_bias=True` was passed|`is_gradient_checkpointing` is")
            adapted: Any = PeftModel.from_pretrained(base.hf, str(made.path))
            yield load_model(adapted.get_base_model(), tokenizer=base.tokenizer)


def in_a_line(made: export.Export) -> str:
    """An export in words, without its path."""
    return ": ".join(made.in_words().splitlines()[:-1])


def prompts_of(run: ji.Run, options: argparse.Namespace) -> list[list[int]]:
    """Prompts of test rows, as evaluation makes them, from the shortest to the longest."""
    train, name = run.config["train"], run.config["task"]["name"]
    asked = [str(row["instruction"]) for row in run.predictions]
    if not asked:
        places = {"source": options.source} if "/" in name else {}
        asked = [row.instruction for row in ji.load_task(name, seed=run.config["task"]["seed"], **places).test]
    ids, _ = encode_prompts(run.model, asked, train["wrapper"], train["max_length"])
    ordered = sorted((list(row) for row in ids), key=len)
    n = min(options.rows, len(ordered))
    return [ordered[round(place * (len(ordered) - 1) / max(1, n - 1))] for place in range(n)]


def label(run: ji.Run) -> str:
    return f"{run.config['model']['name']} on {run.config['task']['name']}"


# -- tables --------------------------------------------------------------------------------------------------------


def table(rows: Sequence[Row], lead: Sequence[str]) -> str:
    """A line for each way, a column for each phase and padding."""
    frame = pd.DataFrame([asdict(row) for row in rows])
    frame["place"] = frame["phase"] + ", " + frame["padding"]
    wide = frame.pivot_table(index=[*lead], columns="place", values="difference", sort=False)
    by = frame.groupby([*lead, "phase"], sort=False)["change"].min().unstack()
    wide[["change, prefill", "change, steps"]] = by[["prefill", "steps"]]
    steps = frame[frame["phase"] == "steps"].groupby(list(lead), sort=False)[["alike", "tokens"]].sum()
    wide["same greedy tokens"] = [f"{a} of {n}" for a, n in zip(steps["alike"], steps["tokens"], strict=True)]
    return wide.reset_index().to_markdown(index=False, floatfmt=".1e")


def section(title: str, rows: Sequence[Row], lead: Sequence[str], notes: Sequence[str]) -> list[str]:
    listed = "".join(f"* {note}\n" for note in notes if note)
    return [f"## {title}\n", f"{table(rows, lead)}\n", *([listed] if listed else []), closing(rows)]


def closing(rows: Sequence[Row]) -> str:
    """The largest differences of each way, and the unit they come in."""
    frame = pd.DataFrame([asdict(row) for row in rows])
    largest = frame.groupby(["way", "against"], sort=False)["difference"].max()
    told = "; ".join(f"{way} against {against} {value:.1e}" for (way, against), value in largest.items())
    return f"Largest: {told}. One rounding: {torch.finfo(DTYPES[rows[0].dtype]).eps / 2:.1e}.\n"


if __name__ == "__main__":
    main()
