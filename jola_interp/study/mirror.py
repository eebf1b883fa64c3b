"""Finished cells on an fsspec path (a bucket, another file system), laid out as in the study's own directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jola_interp.study.design import FILE
from jola_interp.study.place import CELLS

SKIPPED = "checkpoint"


def copy_study(study: Path, names: list[str], address: str) -> list[str]:
    """Copy ``study.yaml`` and those finished cells that are not there yet; returns their names.

    Args:
        study: its directory.
        names: of finished cells.
        address: an fsspec address such as ``s3://bucket/study``; its protocol's package must be installed.
    """
    system, root = _open(address)
    copy_description(study, address)
    missing = [name for name in names if not system.exists(f"{root}/{CELLS}/{name}/summary.json")]
    for name in missing:
        copy_cell(study, name, address)
    return missing


def copy_description(study: Path, address: str) -> None:
    """Copy ``study.yaml``, without which finished cells are no study."""
    system, root = _open(address)
    system.makedirs(root, exist_ok=True)
    system.put_file(str(study / FILE), f"{root}/{FILE}")


def copy_cell(study: Path, name: str, address: str) -> None:
    """Copy a finished cell: its Run, then its summary, with which it is there."""
    system, root = _open(address)
    cell = study / CELLS / name
    run = cell / "run"
    files = [path for path in sorted(run.rglob("*")) if path.is_file() and SKIPPED not in path.relative_to(run).parts]
    for file in [*files, cell / "summary.json"]:
        target = f"{root}/{file.relative_to(study).as_posix()}"
        system.makedirs(target.rpartition("/")[0], exist_ok=True)
        system.put_file(str(file), target)


def _open(address: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs  # type: ignore[import-untyped]

    system, root = url_to_fs(address)
    return system, str(root).rstrip("/")
