"""A Run on the Hugging Face Hub, with the card that says what it is and shows which heads it uses."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from jola_interp.export.card import PICTURE, model_card
from jola_interp.runs import CARD, Run

DPI = 200
"""Of the picture: 1350 pixels across, sharp where the Hub shows it at half of that."""


def push(run: Run | str | Path, repo_id: str, *, revision: str | None = None, **options: Any) -> str:
    """Upload a Run with a model card; returns the address of the commit. Private unless you say so.

    The card (``README.md``: task, base model, heads, scores, how to load it, and ``heads.png``, the map of its heads,
    where the edit has gates at heads) is written for the upload and replaces one that is on the Hub. A ``README.md`` of
    your own in the Run's directory goes up in its place, untouched and without the picture.

    Args:
        run: a Run, or its directory.
        repo_id: ``user/name``; made if it is not there.
        revision: of the base model, if it is not the newest.
        **options: ``private``, ``commit_message``, ``token``, ``include_predictions``: see :meth:`Run.push_to_hub`.
    """
    found = run if isinstance(run, Run) else Run.load(run)
    own = (found.path / CARD).exists()  # goes up in the place of all this
    picture, shows = (None if own else heads_picture(found)) or (None, None)
    card = model_card(found, kind="run", repo=repo_id, revision=revision, shows=shows)
    return found.push_to_hub(repo_id, card=card, pictures={PICTURE: picture} if picture else None, **options)


def heads_picture(run: Run) -> tuple[bytes, str] | None:
    """The map of the Run's heads as a PNG (equal Runs give equal bytes), and what it shows in words; None for an edit
    without gates at heads."""
    if all(site != "heads" for site, _ in run.edit.log_alphas()):
        return None
    from jola_interp import plots
    from jola_interp.analysis import head_maps

    table = head_maps(run)
    with tempfile.TemporaryDirectory() as folder:
        drawn = plots.save(plots.sheet(table, "matplotlib"), Path(folder) / PICTURE, dpi=DPI)
        return drawn.read_bytes(), " ".join([f"Layer × head maps of {table.title}.", *table.notes])
