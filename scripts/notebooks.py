"""Run every notebook top to bottom, in a copy of its folder, and say which one fails.

    python scripts/notebooks.py                        check that none holds outputs, then run them all
    python scripts/notebooks.py --keep FOLDER          and leave them there with their outputs (for the documentation)
    python scripts/notebooks.py --outputs FILE...      only check these for outputs (standard library only)

A notebook should take under two minutes, all of them together under twelve: longer ones are named, but only one that
is still running after ten minutes fails, since a machine may be slow. In the copy the later notebooks of a tour find
what the earlier ones wrote, and the checkout stays as it was.
"""

import argparse
import asyncio
import json
import logging
import pathlib
import shutil
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
LOOKED_AT = (ROOT / "figures" / "runs", ROOT / "figures" / "studies")
"""Which some notebooks look at."""
SECONDS_EACH, SECONDS_ALL, SECONDS_STUCK = 120, 720, 600
log = logging.getLogger("notebooks")


def has_outputs(path: pathlib.Path) -> bool:
    """Whether any code cell holds an output or a count of its execution."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


def check_outputs(paths: list[pathlib.Path]) -> int:
    """How many of these notebooks hold outputs; each is named."""
    stained = [path for path in paths if has_outputs(path)]
    for path in stained:
        log.error("%s holds outputs; clear them before committing (Clear Outputs of All Cells)", path.name)
    return len(stained)


def execute(path: pathlib.Path) -> None:
    """Run one notebook from its own folder; raises what nbclient raises, TimeoutError among it."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(path.parent)}})
    client.extra_arguments = ["--log-level=ERROR", "--colors=nocolor"]  # to the kernel
    asyncio.run(asyncio.wait_for(client.async_execute(), SECONDS_STUCK))
    nbformat.write(notebook, path)


def run_one(path: pathlib.Path) -> bool:
    """Run one notebook and say how it went; a failing cell is shown with its traceback."""
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    start = time.monotonic()
    try:
        execute(path)
    except (CellExecutionError, DeadKernelError, TimeoutError) as error:
        late = time.monotonic() - start >= SECONDS_STUCK  # the kernel is stopped then, which looks like its death
        log.error("%s: %s", path.name, f"still running after {SECONDS_STUCK} s" if late else error)
        return False
    took = time.monotonic() - start
    log.log(level(took, SECONDS_EACH), "%s: %.0f s (aim: under %d)", path.name, took, SECONDS_EACH)
    return True


def level(took: float, aim: float) -> int:
    """A warning for what takes longer than it should."""
    return logging.WARNING if took > aim else logging.INFO


def run_all(keep: pathlib.Path | None = None) -> int:
    """Run all notebooks in order in a temporary copy; returns how many failed.

    Args:
        keep: where to leave them with their outputs, those that ran.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        copy = pathlib.Path(folder, FOLDER.name)
        shutil.copytree(FOLDER, copy, ignore=shutil.ignore_patterns("runs", ".ipynb_checkpoints"))
        for place in LOOKED_AT:
            if place.exists():
                shutil.copytree(place, pathlib.Path(folder, place.relative_to(ROOT)))
        failed = sum(not run_one(path) for path in sorted(copy.glob("*.ipynb")))
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            for path in copy.glob("*.ipynb"):
                shutil.copy(path, keep)
    took = time.monotonic() - start
    log.log(level(took, SECONDS_ALL), "all notebooks: %.0f s (aim: under %d)", took, SECONDS_ALL)
    return failed


def main() -> int:
    """0 when all is well, 1 otherwise."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    logging.getLogger("traitlets").setLevel(logging.WARNING)
    parser = argparse.ArgumentParser(description="Run the notebooks, or only look for outputs in them.")
    parser.add_argument("--outputs", nargs="+", type=pathlib.Path, metavar="FILE")
    parser.add_argument("--keep", type=pathlib.Path, metavar="FOLDER")
    options = parser.parse_args()
    if options.outputs is not None:
        return int(check_outputs(options.outputs) > 0)
    paths = sorted(FOLDER.glob("*.ipynb"))
    if not paths:
        log.error("no notebook in %s/", FOLDER.name)
        return 1
    return int(check_outputs(paths) > 0 or run_all(options.keep) > 0)


if __name__ == "__main__":
    sys.exit(main())
