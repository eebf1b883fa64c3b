"""What is exported: the edit of a Run, or a part of it, and the plain model that it belongs to."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from jola_interp.backends import require_unedited
from jola_interp.edits import Edit, Identity
from jola_interp.edits.jola import Operation
from jola_interp.export.affine import affine
from jola_interp.export.checking import Check
from jola_interp.export.written import ExportError
from jola_interp.models import Model, _resolve_dtype, anew, plain
from jola_interp.runs import Run


@dataclass(frozen=True, eq=False)
class Subject:
    """An edit on the CPU, and its base model: plain, without an edit, in the precision of the export."""

    run: Run
    edit: Edit
    base: Model
    whole: bool
    """Whether it is all of the Run's edit, so that the Run's scores are its."""

    @property
    def dtype(self) -> str:
        return str(self.base.dtype).removeprefix("torch.")

    def require(self, found: Check) -> None:
        """Raise ExportError over a bound."""
        if found.failure is not None:
            raise ExportError(
                f"{found.failure} ({type(self.edit).__name__} on {self.base.name}, {self.dtype}, {found.tokens} "
                "tokens): nothing was written"
            )


def opened(
    run: Run | str | Path,
    model: str | Path | Model | None,
    dtype: str | torch.dtype | None,
    *,
    heads: Iterable[str | tuple[int, int]] | None,
    kinds: Iterable[Operation] | None,
    strength: float,
) -> Subject:
    """What is to be exported; the edit is looked at before any model is loaded.

    Raises:
        ExportError: an edit that is on some tokens only, or of an unknown kind, or none at all.
        ValueError: an edit is attached to the model, a booted one that cannot be loaded anew, or an unknown dtype.
    """
    if dtype is not None:
        _resolve_dtype(dtype, torch.device("cpu"))  # an unknown one is refused now
    found = run if isinstance(run, Run) else Run.load(run)
    chosen = None if heads is None else list(heads)
    some = None if kinds is None else list(kinds)
    whole = chosen is None and some is None and strength == 1
    edit = copy.deepcopy(found.edit) if whole else found.edit.restricted(chosen, some, strength)
    edit = edit.cpu().requires_grad_(False)
    if isinstance(edit, Identity):
        raise ExportError(
            "this Run edits nothing (what it changes, if anything, is the prompt): its export is its base model"
        )
    affine(edit)
    return Subject(found, edit, _base(found.model_or(model), dtype), whole)


def _base(model: Model, dtype: str | torch.dtype | None) -> Model:
    """The plain model in ``dtype``: itself, loaded anew, or, of one that was handed in, a copy."""
    require_unedited(model, "export")
    wanted = model.dtype if dtype is None else _resolve_dtype(dtype, model.device)
    if model.dtype == wanted:
        return plain(model)
    if model.source is not None:
        return anew(model, wanted)
    return Model(_cast(plain(model).hf, wanted), model.tokenizer, name=model.name, options=model.options)


def _cast(hf: Any, dtype: torch.dtype) -> Any:
    """The model built anew in ``dtype``, as ``from_pretrained`` would build it, with the same weights and generation
    configuration: ``hf.to(dtype)`` would also round, or leave as it once was rounded, what a model computes for itself
    (rotary frequencies), which the export of it would not."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # so that weights go from their own precision to this one, and through no other
    try:
        made = type(hf)(copy.deepcopy(hf.config))
    finally:
        torch.set_default_dtype(usual)
    made.to(hf.device).load_state_dict(hf.state_dict())
    if hf.can_generate():
        made.generation_config = copy.deepcopy(hf.generation_config)
    return made
