"""What an export leaves: a directory that appears whole or not at all, and a note of what is in it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jola_interp import _files
from jola_interp._version import __version__
from jola_interp.export.checking import Check
from jola_interp.runs import Run, edit_digest

if TYPE_CHECKING:
    import pandas as pd

    from jola_interp.edits.base import Edit
    from jola_interp.models import Model

ExportKind = Literal["fold", "lora", "ia3"]
FILE = "jola_export.json"
FORMAT = 1


class ExportError(ValueError):
    """An edit that this form cannot hold, or one whose export differs from it; says why, and what can."""


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        path: its directory.
        kind: ``fold`` a checkpoint · ``lora``, ``ia3`` an adapter.
        dtype: the precision of the base model that it was made and checked with.
        architecture: the class of the checkpoint, or of the base model of an adapter.
        bytes: the size of its weights.
        layers: those that differ from the base model's, such as "L3".
        check: how far it is from the edited model; None if that was not asked for.
        ranks: of a LoRA, layer (or linear, where it was one to begin with) to rank.
    """

    path: Path
    kind: ExportKind
    dtype: str
    architecture: str
    bytes: int
    layers: tuple[str, ...]
    check: Check | None = None
    ranks: Mapping[str, int] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """The largest rank of a LoRA; 0 of the others."""
        return max(self.ranks.values(), default=0)

    def in_words(self) -> str:
        """What it is, and how far from the edited model, in two lines and the path."""
        rank = f", rank {self.rank}" if self.ranks else ""
        what = f"{self.kind} of {self.architecture}, {self.dtype}, {self.bytes / 1e6:.1f} MB, {len(self.layers)} layers"
        return f"{what}{rank}\n{'not checked' if self.check is None else self.check.in_words()}\n{self.path}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the path."""
        return {name: value for name, value in asdict(self).items() if name != "path"}

    def to_frame(self) -> pd.DataFrame:
        """One row per layer that differs from the base model's: layer, and rank where it is a LoRA."""
        import pandas as pd

        return pd.DataFrame({"layer": self.layers} | ({"rank": list(self.ranks.values())} if self.ranks else {}))


def require_vacant(path: str | Path) -> Path:
    """The directory that is meant. Raises FileExistsError where something is already."""
    target = Path(path).expanduser()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(f"path: {target} exists and is not an empty directory; choose another")
    return target


@contextmanager
def writing(target: Path) -> Iterator[Path]:
    """A directory beside ``target`` that takes its name when the block ends, and is gone if that raises."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield scratch
        os.chmod(scratch, 0o755)
        if target.exists():
            target.rmdir()  # fails, as it should, where something has come into it
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def weight_bytes(folder: Path) -> int:
    """The size of all weights in a directory."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def write_note(folder: Path, made: Export, run: Run, edit: Edit, base: Model) -> None:
    """``jola_export.json``: what was exported, from which Run and model, and how it was checked. No paths, no times."""
    note = {
        "format": FORMAT,
        "jola_interp": __version__,
        **made.to_dict(),
        "run": {"identity": run.config["identity"], "task": run.config["task"]["name"]},
        "edit": {
            "type": edit.type_name,
            "digest": edit_digest(edit),
            "of_the_run": edit_digest(run.edit),
        },
        "model": {**base.identity(), "source": run.config["model"]["source"]},
    }
    _files.write_json(folder / FILE, note)
