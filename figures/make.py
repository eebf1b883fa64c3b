"""Make every picture in this folder anew: train the demo if its Run is not there (some minutes), then draw it.

make figures                      from runs/demo
make figures ARGS="--run PATH"    from another Run
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jola_interp as ji
from jola_interp.cli import demo_run

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=HERE.parent / "runs" / "demo")
    path = parser.parse_args().run
    if not (path / "scores.json").exists():
        demo_run(path)
    run = ji.Run.load(path)
    for name in ("heads", "gate_snapshots", "gate_trajectories", "loss"):
        figure = getattr(ji.plots, name)(run, renderer="matplotlib")
        ji.plots.save(figure, HERE / f"{name}.png", dpi=150)


if __name__ == "__main__":
    main()
