"""Backends: how an edit and a model come together. The only place that knows hook names and aliases."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Literal

from jola_interp.backends.base import Attachment, Backend, EditNotLiveError, attached, require_unedited
from jola_interp.backends.hooks import HooksBackend
from jola_interp.backends.lens import LensBackend, hook_name
from jola_interp.backends.nnsight import NNsightBackend
from jola_interp.edits.base import Edit
from jola_interp.models import Model

BackendName = Literal["lens", "hooks", "nnsight"]
BACKENDS: dict[str, Backend] = {"lens": LensBackend(), "hooks": HooksBackend(), "nnsight": NNsightBackend()}

__all__ = ["BACKENDS", "Attachment", "BackendName", "EditNotLiveError", "attach", "hook_name", "require_unedited"]


def attach(
    edits: Edit | Sequence[Edit], model: Model, backend: BackendName = "lens"
) -> AbstractContextManager[Attachment]:
    """Make edits live on a model inside a ``with`` block.

    On leaving, also by an exception, hooks, parameters and logits are bit for bit as on entering (booting, which
    ``lens`` does on first use, and the wrapping that ``nnsight`` does come before that). The user's own hooks stay.
    Different edits compose in the order given; ``attach`` may be nested.

    Args:
        edits: one edit or several.
        model: a :class:`jola_interp.models.Model`.
        backend: ``lens`` TransformerLens hook points · ``hooks`` plain PyTorch hooks on a model that is not booted ·
            ``nnsight`` stored edits of an nnsight wrapper, for a model that is not booted
            (:mod:`jola_interp.backends.nnsight`).

    Raises:
        ValueError: the edit is made for another head shape, is attached already, or the backend cannot serve the model.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got {backend!r}")
    return attached([edits] if isinstance(edits, Edit) else list(edits), model, BACKENDS[backend])
