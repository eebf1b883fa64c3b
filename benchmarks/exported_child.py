"""Generate and time two checkpoints with stock transformers; `exported.py` runs this without jola_interp.

    python -I benchmarks/exported_child.py JOB.json ANSWER.json

Texts are the new tokens up to EOS or the first newline, batches are of similar lengths and padded on the left. Every
timed round writes the same number of tokens with each model, EOS or not, the models in another order each time; "again"
is a second copy of the base model, whose ratio to the first is what the clock makes of no difference.
"""

import importlib.util
import json
import platform
import sys
import time
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, StoppingCriteriaList


def main(job_file: str, answer_file: str) -> None:
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    tokenizer = AutoTokenizer.from_pretrained(job["models"]["folded"])
    prompts = [encoded(text, tokenizer, job["special_tokens"]) for text in job["prompts"]]
    folders = {**job["models"], "again": job["models"]["base"]}
    models = {name: load(folder, job) for name, folder in folders.items()}
    answer = {
        "versions": {
            "python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__,
        },
        "ids": prompts,
        "texts": {name: written(models[name], tokenizer, prompts, job) for name in ("base", "folded")},
        "seconds": timed(models, tokenizer, prompts[: job["timed_rows"]], job),
        "classes": {name: type(model).__name__ for name, model in models.items()},
        "jola_interp": importlib.util.find_spec("jola_interp") is not None,
        "imported": "jola_interp" in sys.modules,
    }  # fmt: skip
    Path(answer_file).write_text(json.dumps(answer), encoding="utf-8")


def load(folder: str, job: dict) -> torch.nn.Module:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, job["dtype"])).to(job["device"]).eval()
    model.generation_config = GenerationConfig()  # `generate` would mix the model's own defaults in
    return model


def encoded(text: str, tokenizer: object, special_tokens: bool) -> list[int]:
    """The prompt as tokens; an EOS that the tokenizer puts behind every text would end it."""
    ids = tokenizer(text, add_special_tokens=special_tokens).input_ids
    return ids[:-1] if special_tokens and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids


def written(model: torch.nn.Module, tokenizer: object, prompts: list[list[int]], job: dict) -> list[str]:
    """What the model writes behind each prompt."""
    ends = torch.tensor(["\n" in text for text in tokenizer.batch_decode([[i] for i in range(len(tokenizer))])])
    ends = torch.nn.functional.pad(ends, (0, max(0, model.config.get_text_config().vocab_size - len(ends))))
    ends = ends.to(job["device"])
    stop = [lambda ids, _scores, **_: ends[ids[:, -1]]] if job["beams"] == 1 else []
    options = {"max_new_tokens": job["max_new_tokens"], "num_beams": job["beams"]}
    order = sorted(range(len(prompts)), key=lambda row: (-len(prompts[row]), row))
    texts = [""] * len(prompts)
    for start in range(0, len(order), job["batch_size"]):
        rows = order[start : start + job["batch_size"]]
        new = generate(model, tokenizer, [prompts[row] for row in rows], job, StoppingCriteriaList(stop), options)
        for row, tokens in zip(rows, new.tolist(), strict=True):
            texts[row] = tokenizer.decode(tokens, skip_special_tokens=True).split("\n", 1)[0].strip()
    return texts


def timed(models: dict, tokenizer: object, prompts: list[list[int]], job: dict) -> dict[str, list[float]]:
    """Seconds of each model in each round, after one round that is not counted."""
    seconds = {name: [] for name in models}
    options = {"max_new_tokens": job["timed_tokens"], "min_new_tokens": job["timed_tokens"]}
    names = list(models)
    for turn in range(job["rounds"] + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            started = time.perf_counter()
            new = generate(models[name], tokenizer, prompts, job, None, options)
            taken = time.perf_counter() - started  # the copy to the CPU waits for a GPU
            assert new.shape == (len(prompts), job["timed_tokens"])
            if turn:
                seconds[name].append(taken)
    return seconds


@torch.no_grad()
def generate(
    model: torch.nn.Module, tokenizer: object, prompts: list[list[int]], job: dict, stop: object, options: dict
) -> torch.Tensor:
    """New tokens [row, step] on the CPU."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in prompts])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
    config = GenerationConfig(do_sample=False, pad_token_id=pad, eos_token_id=tokenizer.eos_token_id, **options)
    found = model.generate(
        input_ids=ids.to(job["device"]), attention_mask=mask.to(job["device"]), generation_config=config,
        stopping_criteria=stop,
    )  # fmt: skip
    return found[:, width:].cpu()


if __name__ == "__main__":
    main(*sys.argv[1:])
