"""Does JoLA find the heads that are used, where it is known which are? A campaign on tiny random models.

    python benchmarks/recovery.py --out DIRECTORY                200 models, 40 each with 0, 1, 2, 4 and 8 planted heads
    python benchmarks/recovery.py --out DIRECTORY --models 10    the first ten of them
    python benchmarks/recovery.py --out DIRECTORY --settings selective    the same models under another training

In each model (2 or 3 layers of 4 to 8 heads, random weights, H·d_head < d_model) some heads are given an offset, a
scale or both, of a size at which each planted gate alone moves the model by at least MIN_EFFECT nats per answer token
(KL); draws below that are dropped and made again. JoLA is then trained on what the edited model says. Two kinds of
traps are in every model: a decoy, whose values are five times as large as those of any other head and which is never
planted, and a pair of twins, heads of one layer with the same W_Q, W_K, W_V and W_O, one of which is planted in every
second model that has planted heads. Nothing tells the training, or the count of what it found, which heads these are:
which head could host what was planted on another is worked out from weights and activations
(`evidence.planting.Ground.shares`).

Whatever is finished in the output directory is not computed again. Written there: recovery.md, recovery.csv (by number
of planted heads), models.csv, gates.csv (a row a planted gate) and calibration.json.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import sys
import time

import numpy as np
import pandas as pd
import torch

import jola_interp as ji
from jola_interp.config import preset
from jola_interp.evidence.calibration import Calibration, Rate, Trial, recorded, recover
from jola_interp.evidence.planting import EXCHANGEABLE, SIZES, Ground, Planting, Prior, default_prior, plant
from jola_interp.models import Model, load_model
from jola_interp.tasks import Example, Task

PLANTED = (0, 1, 2, 4, 8)
MIN_EFFECT = 0.05
"""Nats of KL per answer token that each planted gate alone is worth at least."""
PRICE = 0.5
"""What a gate costs, as a share of that: the penalty is PRICE · MIN_EFFECT · number of gates."""
D_MODEL = 96
SHAPES = ((2, 4, 16), (3, 4, 16), (2, 6, 8), (3, 6, 8), (2, 8, 8), (3, 8, 8))
"""Layers, heads, d_head."""
ROWS, VALIDATION, LETTERS = 256, 16, 6
SYMBOLS = "abcdefghijklmnopqrstuvwxyz0123456789"
DECOY = 5.0
DATA = {
    "epochs": 10_000, "max_steps": 350, "batch_size": 16, "patience": None, "restore_best": False, "evaluate": False,
    "wrapper": "{instruction}", "eos": False, "log_every": 50,
}  # fmt: skip
SETTINGS = {
    "recovery": ji.TrainConfig(
        lr=0.1, gate_lr=0.3, gate_lr_schedule="constant", gate_share=0.85, penalty_warmup=0.4, adam_betas=(0.9, 0.98),
        adam_epsilon=1e-8, **DATA,
    ),
    "selective": dataclasses.replace(preset("selective").train, **DATA),
    "paper": dataclasses.replace(preset("paper").train, **DATA),
}  # fmt: skip
"""All train as many steps on the same rows at the same price of a gate."""
TARGETS = {"power": 0.90, "false_discovery": 0.10, "null_open": 0.02}


def main() -> None:
    options = read_options()
    torch.set_num_threads(options.threads)
    ji.set_verbosity("error")
    folder = pathlib.Path(options.out)
    records = []
    for index in range(options.first, options.first + options.models):
        records.append(one(index, folder, options.settings))
        record = records[-1]
        sys.stdout.write(f"{record['index']} {sentence(record)}\n")
        sys.stdout.flush()
    text = report(records, folder, options.settings)
    sys.stdout.write(f"\n{text}")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="where Runs and tables go")
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="index of the first model")
    parser.add_argument("--settings", choices=sorted(SETTINGS), default="recovery")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    return parser.parse_args()


# -- models and rows -----------------------------------------------------------------------------------------------


def tokenizer() -> object:
    """256 bytes, <pad> and <eos>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<pad>", "<eos>"]
    inner = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", pad_token="<pad>")


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model and what is special in it, as (layer, head)."""

    model: Model
    task: Task
    decoy: tuple[int, int]
    twins: tuple[tuple[int, int], tuple[int, int]]


def subject(index: int, planted: int) -> Subject:
    """The index-th model and its rows; a shape with at least four heads more than are planted."""
    generator = np.random.default_rng([2024, index])
    roomy = [shape for shape in SHAPES if shape[0] * shape[1] >= planted + 4]
    layers, heads, d_head = roomy[generator.integers(len(roomy))]
    hf = random_llama(layers, heads, d_head, generator)
    decoy = (int(generator.integers(layers)), int(generator.integers(heads)))
    layer = int(generator.integers(layers))
    first, second = (int(head) for head in generator.permutation([h for h in range(heads) if (layer, h) != decoy])[:2])
    with torch.no_grad():
        magnify(hf, decoy, d_head)
        clone(hf, layer, first, second, d_head)
    model = load_model(hf, tokenizer=tokenizer())
    return Subject(model, rows(generator), decoy, ((layer, first), (layer, second)))


def random_llama(layers: int, heads: int, d_head: int, generator: np.random.Generator) -> torch.nn.Module:
    """Gaussian weights: attention sharp enough for z to differ from token to token, logits of standard deviation 2."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=258, hidden_size=D_MODEL, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads, head_dim=d_head, intermediate_size=64, max_position_embeddings=64, bos_token_id=257,
        eos_token_id=257, pad_token_id=256, tie_word_embeddings=False,
    )  # fmt: skip
    deviations = {
        "embed_tokens": 1.0,
        "q_proj": math.sqrt(2 / D_MODEL),
        "k_proj": math.sqrt(2 / D_MODEL),
        "v_proj": 1 / math.sqrt(D_MODEL),
        "o_proj": 0.7 / math.sqrt(d_head * heads),
        "gate_proj": 1 / math.sqrt(D_MODEL),
        "up_proj": 1 / math.sqrt(D_MODEL),
        "down_proj": 0.5 / math.sqrt(64),
        "lm_head": 2 / math.sqrt(D_MODEL),
    }
    hf = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in hf.named_parameters():
            part = name.split(".")[-2]
            if part in deviations:  # the norms stay 1
                drawn = generator.standard_normal(tuple(weight.shape)) * deviations[part]
                weight.copy_(torch.from_numpy(drawn))
    return hf


def magnify(hf: torch.nn.Module, decoy: tuple[int, int], d_head: int) -> None:
    layer, head = decoy
    hf.model.layers[layer].self_attn.v_proj.weight[head * d_head : (head + 1) * d_head] *= DECOY


def clone(hf: torch.nn.Module, layer: int, first: int, second: int, d_head: int) -> None:
    attention = hf.model.layers[layer].self_attn
    own, other = (slice(head * d_head, (head + 1) * d_head) for head in (first, second))
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        projection.weight[other] = projection.weight[own]
    attention.o_proj.weight[:, other] = attention.o_proj.weight[:, own]


def rows(generator: np.random.Generator) -> Task:
    """Random letters, to be answered by random letters: what is trained on is the teacher, not they."""
    drawn = generator.choice(list(SYMBOLS), size=(ROWS + VALIDATION, 2 * LETTERS))
    made = [Example("".join(row[:LETTERS]), "".join(row[LETTERS:]), id=str(i)) for i, row in enumerate(drawn)]
    return Task("letters", tuple(made[:ROWS]), tuple(made[ROWS:]), (), kind="text")


# -- one model -----------------------------------------------------------------------------------------------------


def one(index: int, folder: pathlib.Path, settings_name: str) -> dict:
    """What came of one model; read where it is there."""
    file = folder / "trials" / f"{index:04d}.json"
    if file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    started = time.perf_counter()
    planted = PLANTED[index % len(PLANTED)]
    made = subject(index, planted)
    settings = settings_of(settings_name, made.model)
    ground = Ground(made.model, made.task, settings, "hooks")
    planting = planted_edit(made, ground, planted, index)
    edit = student(settings_name, made.model)
    trial = recover(ground, made.task, planting, edit, settings, folder / "runs" / f"{index:04d}")
    shape = made.model.head_shape
    record = {
        "index": index, "layers": shape.layers, "heads": shape.heads, "d_head": shape.d_head, "planted": planted,
        "decoy": made.decoy, "twins": made.twins, "rejected": planting.rejected,
        "share_of_others": share_of_others(ground, planting), "twin_share": twin_share(ground, planting, made),
        "seconds": round(time.perf_counter() - started, 2), "trial": trial.to_dict(),
    }  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record) + "\n", encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


def settings_of(name: str, model: Model) -> ji.TrainConfig:
    """With the penalty at which a gate costs PRICE · MIN_EFFECT."""
    gates = 2 * model.head_shape.layers * model.head_shape.heads
    return dataclasses.replace(SETTINGS[name], penalty=PRICE * MIN_EFFECT * gates)


def student(name: str, model: Model) -> ji.JoLA:
    """The presets train offsets as they are, on ever so different rms(z); the campaign trains them in units of it."""
    if name == "recovery":
        return ji.JoLA(model.head_shape, inference="hard", init_log_alpha=2.0, units="rms")
    return ji.JoLA(model.head_shape, **preset(name).edit)


def planted_edit(made: Subject, ground: Ground, planted: int, index: int) -> Planting:
    """A twin comes first in every second model with planted heads; its copy and the decoy are never planted."""
    among = np.ones((ground.shape.layers, ground.shape.heads), bool)
    among[made.decoy] = among[made.twins[1]] = False
    first = made.twins[:1] if (index // len(PLANTED)) % 2 == 0 else ()
    prior = default_prior(ground.shape)
    prior = Prior(prior.statuses, dict.fromkeys(prior.operations, SIZES), prior.layers)
    generator = np.random.default_rng([2025, index])
    return plant(ground, prior, planted, generator, among=among, first=first, min_effect=MIN_EFFECT)


def share_of_others(ground: Ground, planting: Planting) -> float | None:
    """The largest share of a planted gate's effect that a head could write which does not count as its host."""
    part = planting.teacher.site("heads")
    found = []
    for gate in planting.gates:
        vector = part.vectors[gate.operation][gate.layer, gate.head]
        shares = ground.shares(gate.layer, gate.head, gate.operation, vector)
        found.append(max(np.delete(shares, [gate.head, *gate.hosts]), default=0.0))
    return max(found, default=None)


def twin_share(ground: Ground, planting: Planting, made: Subject) -> float | None:
    """The least share of a planted twin's effect that its copy could write."""
    (layer, first), (_, second) = made.twins
    part = planting.teacher.site("heads")
    shares = [
        float(ground.shares(layer, first, gate.operation, part.vectors[gate.operation][layer, first])[second])
        for gate in planting.gates
        if (gate.layer, gate.head) == (layer, first)
    ]
    return min(shares, default=None)


def sentence(record: dict) -> str:
    trial = Trial.from_dict(record["trial"])
    found = sum(any(trial.status[unit] for unit in group.members) for group in trial.groups)
    false = [unit for unit in trial.selected if unit not in trial.grouped]
    return (
        f"K={record['planted']} {record['layers']}×{record['heads']}: found {found}, false {len(false)}, "
        f"KL {trial.effect:.3f} → {trial.left:.4f}, {record['seconds']:.1f} s"
    )


# -- tables --------------------------------------------------------------------------------------------------------


def report(records: list[dict], folder: pathlib.Path, settings_name: str) -> str:
    """Write the tables; returns recovery.md."""
    trials = [Trial.from_dict(record["trial"]) for record in records]
    settings = {**recorded_of(settings_name), "price": PRICE * MIN_EFFECT}
    everything = Calibration("random Llama models", "letters", settings, tuple(trials))
    everything.save(folder / "calibration.json")
    by_number = numbers_table(records, trials, settings)
    by_number.to_csv(folder / "recovery.csv", index=False)
    models_table(records, trials).to_csv(folder / "models.csv", index=False)
    everything.planted_frame().to_csv(folder / "gates.csv", index=False)
    parts = [
        f"# Recovery of planted heads ({len(records)} models, settings {settings_name})\n",
        by_number.to_markdown(index=False, floatfmt=".3f"),
        f"\n{verdict(everything)}\n",
        "Heads by status, planted × found (a pair of twins counts as one head):\n",
        everything.confusion_frame().to_markdown(),
        "\nBy operation:\n",
        operations_table(everything).to_markdown(index=False),
        "\nPower by effect (KL in nats per answer token of a planted gate alone), gates found as what they are:\n",
        effects_table(everything).to_markdown(index=False, floatfmt=".3f"),
        f"\n{traps(records, trials)}\n",
        f"{certainty(everything)}\n",
        f"{costs(records)}\n",
    ]
    text = "\n".join(parts)
    (folder / "recovery.md").write_text(text, encoding="utf-8")
    return text


def recorded_of(settings_name: str) -> dict:
    shape = ji.HeadShape(2, 4, 4, 8, D_MODEL)
    edit = ji.JoLA(shape, inference="hard", init_log_alpha=2.0, units="rms")
    if settings_name != "recovery":
        edit = ji.JoLA(shape, **preset(settings_name).edit)
    return recorded(SETTINGS[settings_name], edit)


def numbers_table(records: list[dict], trials: list[Trial], settings: dict) -> pd.DataFrame:
    """A row a number of planted heads, and one for all."""
    table = []
    for number in (*PLANTED, None):
        chosen = [t for r, t in zip(records, trials, strict=True) if number in (None, r["planted"])]
        if not chosen:
            continue
        part = Calibration("", "", settings, tuple(chosen))
        gates = [bool(hit) for trial in chosen for value in trial.open.values() for hit in value.reshape(-1)]
        table.append({
            "K": "all" if number is None else number, "models": len(chosen),
            "heads": sum(t.status.size for t in chosen),
            "found": part.power.hits if part.power else 0, "planted": part.power.n if part.power else 0,
            **cells("power", part.power), "selected": sum(len(t.selected) for t in chosen),
            "false": part.false_discovery.hits if part.false_discovery else 0,
            "second_hosts": second_hosts(chosen),
            **cells("fdr", part.false_discovery), "open_gates_%": 100 * float(np.mean(gates)),
            "kl_left_%": 100 * sum(t.left for t in chosen) / sum(t.effect for t in chosen) if part.power else None,
        })  # fmt: skip
    return pd.DataFrame(table)


def second_hosts(trials: list[Trial]) -> int:
    """Heads selected beside another of their group: no false discoveries, but one would have been enough."""
    chosen = [sum(bool(trial.status[unit]) for unit in group.members) for trial in trials for group in trial.groups]
    return sum(max(0, number - 1) for number in chosen)


def cells(name: str, rate: Rate | None) -> dict:
    values = (rate.value, rate.low, rate.high) if rate else (None, None, None)
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


def models_table(records: list[dict], trials: list[Trial]) -> pd.DataFrame:
    table = []
    for record, trial in zip(records, trials, strict=True):
        found = sum(any(trial.status[unit] for unit in group.members) for group in trial.groups)
        false = sum(unit not in trial.grouped for unit in trial.selected)
        plain = {key: value for key, value in record.items() if key not in ("trial", "decoy", "twins")}
        table.append({**plain, "found": found, "selected": len(trial.selected), "false": false}
                     | {"effect": trial.effect, "left": trial.left})  # fmt: skip
    return pd.DataFrame(table)


def verdict(found: Calibration) -> str:
    """Each target, met or missed."""
    values = {"power": found.power, "false_discovery": found.false_discovery, "null_open": found.null_open}
    lines = []
    for name, target in TARGETS.items():
        rate = values[name]
        if rate is not None:
            met = rate.value >= target if name == "power" else rate.value <= target
            bound = "≥" if name == "power" else "≤"
            lines.append(f"* {name} {bound} {target:.2f}: {'met' if met else 'MISSED'}, {rate}")
    return "\n".join(lines)


def operations_table(found: Calibration) -> pd.DataFrame:
    return pd.DataFrame([
        {"operation": name, "power": str(power), "false discoveries": str(found.gate_false_discovery[name])}
        for name, power in found.gate_power.items()
    ])  # fmt: skip


def effects_table(found: Calibration) -> pd.DataFrame:
    frame = found.planted_frame()
    if frame.empty:
        return frame
    bounds = [MIN_EFFECT, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, np.inf]
    bins = pd.cut(frame["effect"], bounds, right=False).astype(str)
    return frame.groupby(bins)["found"].agg(gates="size", found="sum", power="mean").reset_index()


def traps(records: list[dict], trials: list[Trial]) -> str:
    """Decoys, twins and what else could have hosted something."""
    pairs = list(zip(records, trials, strict=True))
    decoys = sum(bool(trial.status[tuple(record["decoy"])]) for record, trial in pairs)
    planted = [(r, t) for r, t in pairs if any(tuple(r["twins"][0]) == group.unit for group in t.groups)]
    ways = {"the planted one": 0, "its copy": 0, "both": 0, "neither": 0}
    for record, trial in planted:
        first, second = (bool(trial.status[tuple(unit)]) for unit in record["twins"])
        ways[("neither", "its copy", "the planted one", "both")[2 * first + second]] += 1
    right = sum(
        gate.hosts == ((record["twins"][1][1],) if (gate.layer, gate.head) == tuple(record["twins"][0]) else ())
        for record, trial in pairs
        for gate in trial.planted
    )
    total = sum(len(trial.planted) for trial in trials)
    others = max((r["share_of_others"] for r in records if r["share_of_others"] is not None), default=float("nan"))
    least = min((r["twin_share"] for r in records if r["twin_share"] is not None), default=float("nan"))
    return (
        f"Decoys selected: {decoys} of {len(records)}. Twins planted: {len(planted)}; selected: "
        + ", ".join(f"{name} {count}" for name, count in ways.items())
        + f". Groups (share ≥ {EXCHANGEABLE}) that are exactly what was cloned: {right} of {total} planted gates; a "
        f"copy can write {least:.4f} or more of its twin's effect, any other head of the layer at most {others:.2f}."
    )


def certainty(found: Calibration) -> str:
    brier = found.brier
    told = f"{brier.before:.4f} of P(open), {brier.after:.4f} of the isotonic curve" if brier else "too few models"
    curves = "; ".join(
        f"{kind}: {curve.probability.min():.4f} to {curve.probability.max():.3f}"
        for kind, curve in found.curves.items()
    )
    return f"Brier score over all gates: {told} (each model judged by the others). P(really used | log α): {curves}."


def costs(records: list[dict]) -> str:
    seconds = sorted(record["seconds"] for record in records)
    rejected, kept = sum(r["rejected"] for r in records), sum(r["planted"] for r in records)
    return (
        f"A model took {np.median(seconds):.1f} s (median; {seconds[0]:.1f} to {seconds[-1]:.1f}). Heads drawn and "
        f"dropped because a gate of theirs was worth less than {MIN_EFFECT} nat: {rejected}, beside {kept} planted. A "
        f"gate cost {PRICE * MIN_EFFECT:g} nat per answer token."
    )


if __name__ == "__main__":
    main()
