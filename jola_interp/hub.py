"""A Run on the Hugging Face Hub, with the card that says what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jola_interp.export.card import model_card
from jola_interp.runs import Run


def push(run: Run | str | Path, repo_id: str, *, revision: str | None = None, **options: Any) -> str:
    """Upload a Run with a model card; returns the address of the commit. Private unless you say so.

    The card (``README.md``: task, base model, heads, scores, how to load it) is written for the upload and replaces one
    that is on the Hub. A ``README.md`` of your own in the Run's directory goes up in its place, untouched.

    Args:
        run: a Run, or its directory.
        repo_id: ``user/name``; made if it is not there.
        revision: of the base model, if it is not the newest.
        **options: ``private``, ``commit_message``, ``token``, ``include_predictions``: see :meth:`Run.push_to_hub`.
    """
    found = run if isinstance(run, Run) else Run.load(run)
    return found.push_to_hub(repo_id, card=model_card(found, kind="run", repo=repo_id, revision=revision), **options)
