"""Draw the studies that are kept in figures/studies: every figure as PNG and SVG, every table as CSV, no Run needed.

python figures/studies.py              all of them
python figures/studies.py heads        these
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jola_interp as ji
from jola_interp.report.studies import figures_of
from jola_interp.study.answers import Answers

HERE = Path(__file__).resolve().parent / "studies"


def main() -> None:
    kept = sorted(file.parent.name for file in HERE.glob("*/study.yaml"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=kept, help=f"any of: {', '.join(kept) or 'none is kept'}")
    for name in parser.parse_args().names:
        draw(ji.Study.load(HERE / name), HERE / name)


def draw(study: ji.Study, folder: Path) -> None:
    found, frame = study.ask(), study.frame()
    for name, _, figure, _ in figures_of(found, frame, renderer="matplotlib"):
        for kind in ("png", "svg"):
            ji.plots.save(figure, folder / f"{name}.{kind}")
    frame.to_csv(folder / "cells.csv", index=False)
    for name, table in tables(found).items():
        table.to_csv(folder / f"{name}.csv", index=False)


def tables(found: Answers) -> dict[str, object]:
    made = {
        "overlaps": found.overlaps.to_frame(),
        "overlap_summary": found.overlaps.summary_frame(),
        "stability": found.stability.to_frame(),
        "frequency": found.stability.frequency_frame(),
    }
    if found.shared is not None:
        made |= {"shared_heads": found.shared.to_frame(), "shared_counts": found.shared.counts_frame()}
    if found.cosines is not None:
        made["offset_cosines"] = found.cosines.to_frame()
    for name, one in (("transfer", found.transfer), ("heads", found.heads)):
        if one is not None:
            made[name] = one.to_frame()
    return made


if __name__ == "__main__":
    main()
