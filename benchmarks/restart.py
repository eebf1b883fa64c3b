"""Leave-one-out of gates: passes restarted at the gate's layer, over whole passes.

    python benchmarks/restart.py                                             rows of the package's own restaurants
    python benchmarks/restart.py --source DIRECTORY --task gem/e2e_nlg       of a benchmark task
    python benchmarks/restart.py --json                                      ends with one line of JSON

A JoLA with random vectors and all gates open is on the model, in float32. Gates are taken evenly over the layers; on
every batch each of them is closed twice, in turn: by a restarted pass, then by a whole one. The ratio is of the summed
seconds; each side's pass with the whole edit (the recorded one, where there are restarts) counts as the share of one
gate among all gates of the edit. Beside it stands the largest difference between the two sides' losses.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

import jola_interp as ji
from jola_interp.analysis.effects import Gate, restarted_losses, select_gates, whole_losses
from jola_interp.backends import attach
from jola_interp.batching import Encoded, batches_of, encode_examples
from jola_interp.edits import JoLA
from jola_interp.models import Model, load_model

SIDES = ("restarted", "whole")


def main() -> None:
    options = read_options()
    if options.threads:
        torch.set_num_threads(options.threads)
    model = load_model(options.model, dtype="float32")
    rows = encoded_rows(model, options)
    edit = JoLA(model.head_shape, init_std=0.05, init_spread=0.0).initialise(torch.Generator().manual_seed(0))
    gates = spread(edit, options.gates)
    result: dict[str, Any] = {"threads": torch.get_num_threads(), "load_before": os.getloadavg()[0], "rows": len(rows)}
    seconds, difference = measure(model, edit.requires_grad_(False), rows, gates, options)
    result |= summary(seconds, gates, len(select_gates(edit)))
    result |= {"largest_relative_difference": difference, "load_after": os.getloadavg()[0]}
    for name, value in result.items():
        sys.stdout.write(f"{name:32} {value:.3g}\n")
    if options.json:
        sys.stdout.write(json.dumps(result) + "\n")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--task", default="restaurants")
    parser.add_argument("--source", help="directory of <suite>/<task>/{train,validation,test} files")
    parser.add_argument("--rows", type=int, default=64, help="test rows")
    parser.add_argument("--gates", type=int, default=10, help="gates to close, evenly over the layers")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--backend", choices=("lens", "hooks"), default="hooks")
    parser.add_argument("--threads", type=int, help="threads of PyTorch")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    return parser.parse_args()


def encoded_rows(model: Model, options: argparse.Namespace) -> list[Encoded]:
    """Test rows as ``fit`` would encode them."""
    places = {"source": options.source} if options.source else {}
    task = ji.load_task(options.task, n_test=options.rows, **places)
    assert model.tokenizer is not None
    return encode_examples(task.test[: options.rows], model.tokenizer, template=task.template)


def spread(edit: JoLA, n: int) -> list[Gate]:
    """``n`` gates, the i-th at layer ⌊(i + ½)·L/n⌋, heads and kinds in turn."""
    gates, layers = select_gates(edit), edit.shape.layers
    chosen = []
    for place in range(n):
        here = [gate for gate in gates if gate.layer == int((place + 0.5) * layers / n)]
        chosen.append(here[place % len(here)])
    return chosen


@torch.no_grad()
def measure(
    model: Model, edit: JoLA, rows: list[Encoded], gates: list[Gate], options: argparse.Namespace
) -> tuple[dict[str, np.ndarray], float]:
    """Seconds of each side, [whole edit and then each gate], and the largest difference of their losses."""
    seconds = {side: np.zeros(len(gates) + 1) for side in SIDES}
    difference = largest = 0.0
    with attach(edit, model, options.backend) as attached:
        list(restarted_losses(edit, attached, rows[:2], []))  # the check at first use
        for chunk in batches_of([len(row.ids) for row in rows], options.batch_size):
            some = [rows[i] for i in chunk]
            passes: dict[str, Iterator[np.ndarray]] = {
                "restarted": restarted_losses(edit, attached, some, gates),
                "whole": whole_losses(edit, attached, some, gates),
            }
            for place in range(len(gates) + 1):
                found = {}
                for side in SIDES:
                    started = time.perf_counter()
                    found[side] = next(passes[side])
                    seconds[side][place] += time.perf_counter() - started
                difference = max(difference, float(np.abs(found["restarted"] - found["whole"]).max()))
                largest = max(largest, float(found["whole"].max()))
        attached.check_live()
    return seconds, difference / largest


def summary(seconds: dict[str, np.ndarray], gates: list[Gate], n_gates: int) -> dict[str, float]:
    """Seconds a gate, and ratios: of all gates, and of the lower and the upper half of the layers."""
    result: dict[str, float] = {"gates": len(gates)}
    for side in SIDES:
        result[f"seconds_{side}_edit"] = float(seconds[side][0])
        result[f"seconds_{side}_gate"] = float(seconds[side][1:].mean())
    share = len(gates) / n_gates
    totals = {side: seconds[side][1:].sum() + share * seconds[side][0] for side in SIDES}
    result["ratio_whole_over_restarted"] = float(totals["whole"] / totals["restarted"])
    half = len(gates) // 2
    for name, part in (("lower", slice(1, half + 1)), ("upper", slice(half + 1, None))):
        if half:
            result[f"ratio_{name}_layers"] = float(seconds["whole"][part].sum() / seconds["restarted"][part].sum())
    return result


if __name__ == "__main__":
    main()
