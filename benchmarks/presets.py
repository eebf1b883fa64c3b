"""Do the gates decide, and what does it cost? The presets, and no gates at all, on the same rows and steps.

    python benchmarks/presets.py --tasks ioi                                          built-in tasks
    python benchmarks/presets.py --source DIRECTORY --tasks gem/e2e_nlg ioi           benchmarks from local files

For each task and preset: the share of decided gates, CE(sampled) − CE(hard) on validation rows, and the mean NLL of the
test rows with its paired difference from the better of two edits without gates. Whatever is finished in --out is not
trained again.
"""

import argparse
import pathlib
import sys

import numpy as np
import pandas as pd
import torch

import jola_interp as ji
from jola_interp.evidence.endpoint import Endpoint, paired

UNGATED = {"no gates, lr .02": 2e-2, "no gates, lr .05": 5e-2}
"""Gates and vectors trade scale, so an edit without gates has learning rates of its own."""
SETTINGS = ("selective", "paper", *UNGATED)


def main() -> None:
    options = read_options()
    if options.threads:
        torch.set_num_threads(options.threads)
    model = ji.load_model(options.model)
    rows = [row for name in options.tasks for row in compare(model, name, options)]
    sys.stdout.write(pd.DataFrame(rows).to_markdown(index=False, floatfmt=".3f") + "\n")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["ioi", "restaurants"])
    parser.add_argument("--source", default="hub", help="hub, or a directory of <suite>/<task> files")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--out", default="runs/presets")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--wrapper", default="plain")
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


def compare(model: ji.Model, name: str, options: argparse.Namespace) -> list[dict[str, object]]:
    """One row per preset."""
    source = {"source": options.source} if "/" in name else {}
    task = ji.load_task(name, n_train=200, n_validation=48, n_test=100, **source)
    runs = {setting: train(model, task, setting, options) for setting in SETTINGS}
    settings = ji.TrainConfig(wrapper=options.wrapper)
    endpoint = Endpoint(model, task, task.test, settings, "hooks")
    nll = {setting: endpoint.losses(run.edit).nll for setting, run in runs.items()}
    best = nll[min(UNGATED, key=lambda setting: float(nll[setting].mean()))]
    return [row_of(name, setting, runs[setting], nll[setting], best) for setting in SETTINGS]


def train(model: ji.Model, task: ji.Task, setting: str, options: argparse.Namespace) -> ji.Run:
    """The same rows, steps and batches; without gates there is no schedule for them."""
    preset = "paper" if setting in UNGATED else setting
    edit = ji.JoLA(model.head_shape, gates="none") if setting in UNGATED else "jola"
    out = pathlib.Path(options.out) / task.name / setting.replace(" ", "-").replace(",", "")
    fields = {"max_steps": options.steps, "batch_size": options.batch_size, "wrapper": options.wrapper}
    fields |= {"lr": UNGATED[setting]} if setting in UNGATED else {}
    return ji.fit(
        model, task, edit, preset=preset, backend="hooks", out=out, resume=True, evaluate=False, patience=None, **fields
    )


def row_of(name: str, setting: str, run: ji.Run, nll: np.ndarray, best: np.ndarray) -> dict[str, object]:
    stamp = run.convergence
    cost = paired(nll - best)
    return {
        "task": name,
        "preset": setting,
        "decided, %": 100 * stamp.decided_share if stamp else float("nan"),
        "CE(sampled) − CE(hard)": stamp.gap if stamp else float("nan"),
        "test NLL": float(nll.mean()),
        "over the best without gates": f"{cost.value:+.3f} [{cost.low:+.3f}, {cost.high:+.3f}]",
    }


if __name__ == "__main__":
    main()
