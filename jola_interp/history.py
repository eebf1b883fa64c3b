"""Where every gate stood, over training: log α for all layers and heads; everything else is derived from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jola_interp import selection
from jola_interp.edits.base import Kind, Site, unit_label

if TYPE_CHECKING:
    import pandas as pd

Key = tuple[Site, Kind]


class GateHistory:
    """log α of every gate at step 0, every few steps, and at the end. Step k is the state after k optimiser steps.

    Attributes:
        steps: [S] optimiser steps at which gates were recorded.
        scalars: name to [S], what training logged in the step that led to each record (``ce``, ``penalty``,
            ``lambda_additive``, ``lr``, …); NaN where it was not logged, as at step 0. Filled when a Run is loaded.

    Args:
        masks: site to [layer, unit], True where a unit is editable.
        kinds: the (site, kind) pairs that there are gates for.
        capacity: how many records to make room for.
    """

    def __init__(self, masks: Mapping[Site, Bool[np.ndarray, "layer unit"]], kinds: list[Key], capacity: int):
        self._masks = dict(masks)
        self._steps = np.zeros(capacity, dtype=np.int64)
        self._log_alpha = {key: np.zeros((capacity, *masks[key[0]].shape), dtype=np.float32) for key in kinds}
        self._filled = 0
        self.scalars: dict[str, np.ndarray] = {}

    @property
    def steps(self) -> Int[np.ndarray, " step"]:
        return self._steps[: self._filled]

    @property
    def keys(self) -> list[Key]:
        """The (site, kind) pairs that there are gates for."""
        return list(self._log_alpha)

    def __len__(self) -> int:
        return self._filled

    def record(self, step: int, log_alphas: Mapping[Key, Tensor]) -> None:
        """Note the gates after ``step``; a second record of the same step replaces the first."""
        if self._filled and self._steps[self._filled - 1] == step:
            self._filled -= 1
        self._steps[self._filled] = step
        for key, value in log_alphas.items():
            self._log_alpha[key][self._filled] = value.cpu().numpy()
        self._filled += 1

    def truncate(self, step: int) -> None:
        """Forget what was recorded after ``step``."""
        self._filled = int(np.searchsorted(self.steps, step, side="right"))

    def log_alpha(self, kind: Kind, site: Site = "heads") -> Float[np.ndarray, "step layer unit"]:
        """log α [step, layer, head]; NaN where a unit is not editable. A shared gate answers for both kinds.

        Raises:
            KeyError: the edit has no gates of that kind at that site.
        """
        for found in (kind, "shared"):
            if (key := (site, found)) in self._log_alpha:
                return self._masked(key, slice(0, self._filled))
        have = ", ".join(f"{site} {kind}" for site, kind in self.keys) or "none"
        raise KeyError(f"no {kind} gates at {site}; this edit has: {have}")

    def p_open(self, kind: Kind, site: Site = "heads") -> Float[np.ndarray, "step layer unit"]:
        """P(g > 0) [step, layer, head]."""
        return selection.measure("p_open", self.log_alpha(kind, site))

    def expected(self, kind: Kind, site: Site = "heads") -> Float[np.ndarray, "step layer unit"]:
        """E[g] [step, layer, head]."""
        return selection.measure("expected", self.log_alpha(kind, site))

    def point(self, kind: Kind, site: Site = "heads") -> Float[np.ndarray, "step layer unit"]:
        """clamp(σ(log α)(ζ − γ) + γ, 0, 1) [step, layer, head]."""
        return selection.measure("point", self.log_alpha(kind, site))

    def at(self, step: int | None = None, site: Site = "heads") -> dict[str, Float[np.ndarray, "layer unit"]]:
        """Kind to log α [layer, head] at the last record not after ``step`` (None: the last)."""
        row = -1 if step is None else int(np.searchsorted(self.steps, step, side="right")) - 1
        if step is not None and row < 0:
            raise ValueError(f"step {step} is before the first record ({self.steps[0]})")
        place = row % max(self._filled, 1)
        return {key[1]: self._masked(key, place) for key in self.keys if key[0] == site}

    def status(self, rule: str = selection.DEFAULT_RULE, site: Site = "heads") -> Int[np.ndarray, "step layer unit"]:
        """How each head is used at each record: codes into ``selection.STATUSES``."""
        return np.stack([selection.status(self.at(int(step), site), rule) for step in self.steps])

    def to_frame(self) -> pd.DataFrame:
        """Tidy: step, site, layer, head, label, kind, log_alpha, p_open, expected, point; editable units only."""
        import pandas as pd

        frames = [self._frame_of(site, kind) for site, kind in self.keys]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def to_parquet(self, path: str | Path) -> Path:
        """Write :meth:`to_frame` as Parquet; returns the path."""
        self.to_frame().to_parquet(path)
        return Path(path)

    def tensors(self) -> dict[str, Tensor]:
        """``step`` [S] and ``log_alpha.<site>.<kind>`` [S, L, H], as stored in ``gates.safetensors``."""
        import torch

        stored = {"step": torch.from_numpy(self.steps.copy())}
        for (site, kind), values in self._log_alpha.items():
            stored[f"log_alpha.{site}.{kind}"] = torch.from_numpy(values[: self._filled].copy())
        return stored

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Tensor],
        masks: Mapping[Site, Bool[np.ndarray, "layer unit"]],
        capacity: int = 0,
    ) -> GateHistory:
        """The history that :meth:`tensors` gave, with room for ``capacity`` records in all."""
        steps = tensors["step"].numpy()
        keys = [_key_of(name) for name in tensors if name != "step"]
        history = cls(masks, keys, max(capacity, len(steps)))
        history._filled = len(steps)
        history._steps[: len(steps)] = steps
        for (site, kind), values in history._log_alpha.items():
            values[: len(steps)] = tensors[f"log_alpha.{site}.{kind}"].numpy()
        return history

    def _masked(self, key: Key, rows: slice | int) -> Float[np.ndarray, "*step layer unit"]:
        return np.where(self._masks[key[0]], self._log_alpha[key][rows], np.float32(np.nan))

    def _frame_of(self, site: Site, kind: Kind) -> pd.DataFrame:
        import pandas as pd

        log_alpha = self.log_alpha(kind, site)
        step, layer, unit = np.nonzero(~np.isnan(log_alpha))
        labels = np.array(
            [[unit_label(site, i, j) for j in range(log_alpha.shape[2])] for i in range(log_alpha.shape[1])]
        )
        values = log_alpha[step, layer, unit]
        columns = {
            "step": self.steps[step],
            "site": site,
            "layer": layer,
            "head": unit,
            "label": labels[layer, unit],
        }
        measured = {name: selection.measure(name, values) for name in selection.MEASURES}
        return pd.DataFrame({**columns, "kind": kind, "log_alpha": values, **measured})

    def __repr__(self) -> str:
        kinds = ", ".join(f"{site} {kind}" for site, kind in self.keys) or "no gates"
        last = f", steps {self.steps[0]}–{self.steps[-1]}" if len(self) else ""
        return f"GateHistory({kinds}: {len(self)} records{last})"


def _key_of(name: str) -> Key:
    _, site, kind = name.split(".")
    return site, kind  # type: ignore[return-value]
