"""Does `ji.rivals` count the sets of heads that can do a task, where it is known how many can? A campaign.

    python benchmarks/rivals.py --out DIRECTORY                80 models, 20 each with 1, 2, 3 and no sets of K heads
    python benchmarks/rivals.py --out DIRECTORY --models 8     the first eight of them

In each model (2 or 3 layers of 4 to 8 heads, random weights, H·d_head < d_model) the logits hear K directions of the
residual stream and nothing else, and each set has one head for each of them. K = 1: the answer's logit is u·h, so any
head that writes u can do the task alone. K = 2: the answer's logit is (u + v)·h, half of the other tokens' is (u − v)·h
and the other half's (v − u)·h, so that u alone leaves 129 tokens level: it takes a head that writes u and one that
writes v. No other head, no MLP and no embedding writes u or v. The heads that do read only directions that nothing but
the embedding writes, so that no other head can work through them. One head, which never writes u or v, has values five
times as large as any other (a decoy).

The models without a set are of two sorts. In one no head writes u. In the other three could, but which of two answers
is asked for is a coin's throw, so that there is nothing to be learnt; nor is there to be unlearnt, as the values of
those three are 0 (to quieten a head that writes u at random would be a gain).

Whether what was planted is what was meant is measured beside the search, by refits of the planted sets ("planted": the
smallest gain, as a share of the largest), of K heads with one too few that works ("partial") and of all heads that
write neither u nor v together ("others").

Whatever is finished in the output directory is not computed again. Written there: rivals.md, rivals.csv (by number of
sets) and models.csv.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch
from recovery import D_MODEL, SYMBOLS, magnify, random_llama, tokenizer

import jola_interp as ji
from jola_interp.evidence.case import Case, Heads, open_case
from jola_interp.evidence.rivals import Rivals
from jola_interp.models import Model, load_model
from jola_interp.tasks import Example, Task

SETS = (1, 2, 3, 0)
"""U*, by index modulo 4; every second round has K = 2."""
SEED = 2027
"""Settings were tried on the models of another seed."""
SHAPES = ((2, 4, 16), (3, 4, 16), (2, 6, 8), (3, 6, 8), (2, 8, 8), (3, 8, 8))
"""Layers, heads, d_head."""
LOGIT = 6.0
"""Logit per unit of the residual stream along u, when its rms is 1."""
STRENGTHS = (0.7, 1.4)
"""‖W_Oᵀu‖ of a head that writes u is drawn from between them."""
READ = 32
"""Directions that only the embedding writes and that the planted heads read."""
ROWS, VALIDATION, TEST, LETTERS = 128, 16, 64, 6
PRICE = 0.3
"""Nats that a gate costs: the penalty is PRICE · number of gates."""
MARGIN, MOST, STEPS = 0.9, 4, 80
TRAIN = {
    "epochs": 10_000, "max_steps": 200, "batch_size": 16, "patience": None, "restore_best": False, "evaluate": False,
    "wrapper": "{instruction}", "eos": False, "log_every": 50, "lr": 0.1, "gate_lr": 0.3, "gate_share": 0.8,
    "penalty_warmup": 0.3,
}  # fmt: skip
"""What differs from the preset ``selective``."""
ENOUGH = 19 / 20
"""Share of the models in which U has to be right."""


def main() -> None:
    options = read_options()
    torch.set_num_threads(options.threads)
    ji.set_verbosity("error")
    folder = pathlib.Path(options.out)
    records = []
    for index in range(options.first, options.first + options.models):
        records.append(one(index, folder))
        sys.stdout.write(f"{index} {sentence(records[-1])}\n")
        sys.stdout.flush()
    text = report(records, folder)
    sys.stdout.write(f"\n{text}")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="where Runs and tables go")
    parser.add_argument("--models", type=int, default=80)
    parser.add_argument("--first", type=int, default=0, help="index of the first model")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    return parser.parse_args()


# -- models and rows -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model, its rows, and who can do what in it.

    Attributes:
        k: heads in a set.
        sets: U*, the number of disjoint sets that can do the task.
        coin: the answers are thrown.
        roles: for each of the K directions the heads that write it.
        decoy: the head with large values.
    """

    model: Model
    task: Task
    k: int
    sets: int
    coin: bool
    roles: tuple[Heads, ...]
    decoy: tuple[int, int]

    @property
    def writers(self) -> set[tuple[int, int]]:
        return {head for role in self.roles for head in role}

    @property
    def idle(self) -> Heads:
        """Heads that write neither u nor v."""
        shape = self.model.head_shape
        every = ((layer, head) for layer in range(shape.layers) for head in range(shape.heads))
        return tuple(unit for unit in every if unit not in self.writers)

    def does(self, heads: Iterable[tuple[int, int]]) -> bool:
        """Whether a head for each direction is among them."""
        return not self.coin and all(set(role) & set(heads) for role in self.roles)

    @property
    def partial(self) -> Heads:
        """K heads of which K − 1 work: a second head for u in place of the one for v, or an idle one."""
        spare = self.roles[0][1:2] if self.k == 2 else ()
        return (*self.roles[0][: self.k - 1], *(spare or self.idle[:1]))


def subject(index: int) -> Subject:
    """The index-th model and its rows."""
    generator = np.random.default_rng([SEED, index])
    sets, k = SETS[index % len(SETS)], 1 + index // len(SETS) % 2
    coin = sets == 0 and index // (2 * len(SETS)) % 2 == 1
    layers, heads, d_head = SHAPES[generator.integers(len(SHAPES))]
    hf = random_llama(layers, heads, d_head, generator)
    units = generator.permutation([(layer, head) for layer in range(layers) for head in range(heads)]).tolist()
    decoy, *chosen = (tuple(unit) for unit in units)
    directions, number = (1, 3) if coin else (k, sets)
    roles = tuple(tuple(chosen[i * number : (i + 1) * number]) for i in range(directions))
    answers = generator.choice(list(SYMBOLS), 2, replace=False).tolist()
    words = tokenizer()
    with torch.no_grad():
        magnify(hf, decoy, d_head)
        basis = plant(hf, roles, d_head, generator)
        if coin:
            mute(hf, roles[0], d_head)
        hf.lm_head.weight.copy_(readout(basis, [words(answer).input_ids[0] for answer in answers], coin))
    task = rows(generator, answers if coin else answers[:1])
    return Subject(load_model(hf, tokenizer=words), task, k, sets, coin, roles, decoy)


def plant(hf: torch.nn.Module, roles: tuple[Heads, ...], d_head: int, generator: np.random.Generator) -> torch.Tensor:
    """Only the heads of ``roles[i]`` write the i-th direction, and they read only embeddings; [direction, d_model]."""
    drawn = np.linalg.qr(generator.standard_normal((D_MODEL, len(roles) + READ)))[0].T
    private = torch.from_numpy(np.ascontiguousarray(drawn)).float()
    heard, read = private[: len(roles)], private[len(roles) :]
    silence(hf.model.embed_tokens.weight.T, heard)
    for block in hf.model.layers:
        silence(block.self_attn.o_proj.weight, private)
        silence(block.mlp.down_proj.weight, private)
    for direction, role in zip(heard, roles, strict=True):
        for layer, head in role:
            attention, own = hf.model.layers[layer].self_attn, slice(head * d_head, (head + 1) * d_head)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
                kept = projection.weight[own] @ read.T @ read
                projection.weight[own] = kept * (D_MODEL / READ) ** 0.5
            across = torch.from_numpy(generator.standard_normal(d_head)).float()
            size = generator.uniform(*STRENGTHS) / across.norm()
            attention.o_proj.weight[:, own] += torch.outer(direction, size * across)
    return heard


def mute(hf: torch.nn.Module, heads: Heads, d_head: int) -> None:
    for layer, head in heads:
        hf.model.layers[layer].self_attn.v_proj.weight[head * d_head : (head + 1) * d_head] = 0


def silence(weight: torch.Tensor, directions: torch.Tensor) -> None:
    """Take the directions out of what a weight [d_model, in] writes, in place."""
    weight.sub_(directions.T @ (directions @ weight))


def readout(basis: torch.Tensor, answers: list[int], coin: bool) -> torch.Tensor:
    """The unembedding [vocabulary, d_model]; see the module's docstring."""
    weight = torch.zeros(258, D_MODEL)
    if len(basis) == 2:
        difference = (basis[0] - basis[1]) / 2**0.5
        weight[0::2], weight[1::2] = difference, -difference
        weight[answers[0]] = (basis[0] + basis[1]) / 2**0.5
    else:
        weight[answers[0]] = basis[0]
        if coin:
            weight[answers[1]] = -basis[0]
    return LOGIT * weight


def rows(generator: np.random.Generator, answers: list[str]) -> Task:
    """Random letters, to be answered by one of the answers, whichever comes."""
    number = ROWS + VALIDATION + TEST
    drawn = generator.choice(list(SYMBOLS), size=(number, LETTERS))
    thrown = generator.choice(answers, size=number)
    made = tuple(Example("".join(row), str(thrown[i]), id=str(i)) for i, row in enumerate(drawn))
    return Task("planted", made[:ROWS], made[ROWS : ROWS + VALIDATION], made[ROWS + VALIDATION :], kind="text")


# -- one model -----------------------------------------------------------------------------------------------------


def one(index: int, folder: pathlib.Path) -> dict:
    """What came of one model; read where it is there."""
    file = folder / "trials" / f"{index:04d}.json"
    if not file.exists():
        started = time.perf_counter()
        made = subject(index)
        shape = made.model.head_shape
        place = folder / "runs" / f"{index:04d}"
        run = ji.fit(
            made.model, made.task, preset="selective", backend="hooks", out=place, resume=True,
            penalty=PRICE * 2 * shape.layers * shape.heads, **TRAIN,
        )  # fmt: skip
        searched = ji.rivals(run, made.task, made.model, k=made.k, margin=MARGIN, most=MOST, steps=STEPS)
        record = {
            "index": index, "sets": made.sets, "k": made.k, "sort": sort_of(made), "layers": shape.layers,
            "heads": shape.heads, "d_head": shape.d_head, "decoy": made.decoy, "roles": made.roles,
            "selected": len(run.selection()), "converged": run.convergence.converged, **outcome(made, searched),
            **truth(made, open_case(run, made.task, made.model, steps=STEPS)),
            "seconds": round(time.perf_counter() - started, 2), "rivals": searched.to_dict(),
        }  # fmt: skip
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(record) + "\n", encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


def sort_of(made: Subject) -> str:
    return "coin" if made.coin else "planted" if made.sets else "nothing"


def outcome(made: Subject, found: Rivals) -> dict:
    """What the search said, and how many of the sets that it counted do the task by construction."""
    first = found.sets[0] if found.sets else found.failed
    return {
        "u": found.u, "ended": found.ended, "gain": first.gain.value, "gain_low": first.gain.low,
        "real": sum(made.does(one.heads) for one in found.sets),
        "least_kept": min((one.share for one in found.sets), default=None),
        "lost": found.failed.share if found.failed and found.sets else None,
    }  # fmt: skip


def truth(made: Subject, case: Case) -> dict:
    """Shares of the largest gain of a planted set, by refits that the search has no part in."""
    if sort_of(made) != "planted":
        return {"planted": None, "partial": None, "others": None}

    def gain(heads: Heads, name: str) -> float:
        return float((case.base.nll - case.refit(heads, f"truth/{name}").nll).mean())

    planted = [gain(heads, f"set-{i}") for i, heads in enumerate(zip(*made.roles, strict=True))]
    best = max(planted)
    return {
        "planted": min(planted) / best,
        "partial": gain(made.partial, "partial") / best,
        "others": gain(made.idle, "others") / best,
    }


def sentence(record: dict) -> str:
    shares = ", ".join(f"{key} {record[key]:.2f}" for key in ("planted", "partial", "others", "lost") if record[key])
    return (
        f"U*={record['sets']} K={record['k']} {record['sort']} {record['layers']}×{record['heads']}: U={record['u']} "
        f"({record['ended']}), {record['real']} real, gain {record['gain']:.3f}, {shares}, {record['seconds']:.1f} s"
    )


# -- tables --------------------------------------------------------------------------------------------------------


def report(records: list[dict], folder: pathlib.Path) -> str:
    """Write the tables; returns rivals.md."""
    models = pd.DataFrame(records).drop(columns=["rivals", "roles", "decoy"])
    models.to_csv(folder / "models.csv", index=False)
    table = sets_table(models)
    table.to_csv(folder / "rivals.csv", index=False)
    parts = [
        f"# Sets of K heads that can do the task ({len(records)} models)\n",
        table.to_markdown(index=False, floatfmt=".3f"),
        f"\n{verdict(table)}\n",
        notes(models),
    ]
    text = "\n".join(parts) + "\n"
    (folder / "rivals.md").write_text(text, encoding="utf-8")
    return text


def sets_table(models: pd.DataFrame) -> pd.DataFrame:
    """A row a (sort, U*, K)."""
    table = []
    for (sets, sort, k), part in models.groupby(["sets", "sort", "k"]):
        table.append({
            "U*": sets, "sort": sort, "K": k, "models": len(part), "right": int((part["u"] == sets).sum()),
            **{f"U={u}": int((part["u"] == u).sum()) for u in range(MOST + 1)},
            "sets counted": int(part["u"].sum()), "real": int(part["real"].sum()),
            "planted ≥": part["planted"].min(), "partial ≤": part["partial"].max(), "others ≤": part["others"].max(),
            "kept ≥": part["least_kept"].min(), "lost ≤": part["lost"].max(), "seconds": part["seconds"].median(),
        })  # fmt: skip
    return pd.DataFrame(table)


def verdict(table: pd.DataFrame) -> str:
    """Met or missed, by U*."""
    lines = []
    for sets, part in table.groupby("U*"):
        right, models = int(part["right"].sum()), int(part["models"].sum())
        met = "met" if right >= ENOUGH * models else "MISSED"
        lines.append(f"* U* = {sets}: U is right in {right} of {models} ({ENOUGH:.0%} asked): {met}")
    return "\n".join(lines)


def notes(models: pd.DataFrame) -> str:
    """Why searches ended, and what they cost."""
    ends = "; ".join(
        f"U* = {sets}: " + ", ".join(f"{end} {count}" for end, count in part["ended"].value_counts().items())
        for sets, part in models.groupby("sets")
    )
    seconds, decided = models["seconds"], models["converged"]
    more = models["selected"] > models["k"]
    return (
        f"Searches ended with: {ends}. Runs that converged: {int(decided.sum())} of {len(models)}; that selected more "
        f"than K heads: {int(more.sum())}. A model took {seconds.median():.1f} s (median; {seconds.min():.1f} to "
        f"{seconds.max():.1f}). Columns from `planted` on are shares of a gain; a set has to reach {MARGIN:g}."
    )


if __name__ == "__main__":
    main()
