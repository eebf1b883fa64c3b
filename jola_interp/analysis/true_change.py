"""What parts of an edit, and random vectors in their place, truly do to the logits: passes in which one acts alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from jola_interp._log import logger
from jola_interp.analysis.contrast import Contrast
from jola_interp.analysis.lens import Lens, inputs
from jola_interp.analysis.parts import BATCH, Drawn, Part
from jola_interp.analysis.rows import Rows
from jola_interp.backends import Attachment, attach
from jola_interp.backends.restart import Recording, RestartError, recorded, restarted
from jola_interp.batching import IGNORED, Batch
from jola_interp.edits.jola import JoLA


@dataclass(eq=False)
class Truth:
    """What the passes with parts of the edit show at the positions that predict answer tokens.

    Attributes:
        change: [part, k, vocab] mean change of the logits when only that part acts, then when each of a few random
            vectors acts in its place.
        slope: [vocab] mean of 1 − (logit/cap)² in the base model.
        streams: name of a norm to what enters it in the base model, a tensor [answer, d_model] per row.
        logits: of each contrast's tokens in the base model.
        base, edited: each contrast's value.
        positions: how many.
    """

    change: Tensor
    slope: Tensor
    streams: dict[str | int, list[Tensor]]
    logits: dict[int, Tensor]
    base: Float[np.ndarray, " contrast"]
    edited: Float[np.ndarray, " contrast"]
    positions: int = 0


def true_change(
    rows: Rows, lens: Lens, parts: Sequence[tuple[Part, Drawn]], held: int, contrasts: Sequence[Contrast]
) -> Truth:
    """Run the rows without the edit, with each part alone, and with all of it where there is a contrast.

    In the place of each part so do the first ``held`` of the random vectors that were drawn for it.
    """
    device = lens.weight.device
    found = Truth(
        change=torch.zeros(len(parts), 1 + held, lens.vocabulary, device=device),
        slope=torch.zeros(lens.vocabulary, device=device),
        streams={name: [torch.empty(0)] * len(rows.encoded) for name in lens.modules},
        logits={},
        base=np.zeros(len(contrasts)),
        edited=np.zeros(len(contrasts)),
    )
    edit = rows.run.edit.restricted().to(rows.model.device).requires_grad_(False)
    stored = {(site, name): v.detach().clone() for site in edit.sites for name, v in edit.site(site).vectors.items()}  # type: ignore[arg-type]
    _set(edit, {})
    with attach(edit, rows.model, rows.backend) as attached, _bar(len(parts) * (1 + held), rows) as bar:
        for places, batch in rows.batches(BATCH):
            _one_batch(found, lens, _Bench(edit, stored, attached, batch, places), parts, contrasts, bar)
        attached.check_live()
    found.change /= found.positions
    found.slope /= found.positions
    return found


@dataclass(frozen=True, eq=False)
class _Bench:
    """A batch, and an edit on the model that can be made to act in part."""

    edit: JoLA
    stored: dict[tuple[str, str], Tensor]
    attached: Attachment
    batch: Batch
    places: list[int]

    @property
    def read(self) -> Bool[Tensor, "row kept"]:
        """The positions that predict answer tokens, out of the last ``kept``."""
        return F.pad(self.batch.labels != IGNORED, (0, 1))

    def whole(self) -> dict[tuple[str, str], Tensor]:
        """All of the edit's vectors."""
        return self.stored

    def alone(self, part: Part, gated: Float[Tensor, "unit d_head"]) -> dict[tuple[str, str], Tensor]:
        """The edit's vectors for which g·v is ``gated`` at a part's heads, and 0 elsewhere."""
        vectors, heads = self.stored["heads", part.kind], list(part.heads)
        kept = torch.zeros_like(vectors)
        own = vectors[part.layer, heads]  # g·v is v times a number for each head: its gate, and its unit
        kept[part.layer, heads] = (gated * own.norm(dim=-1, keepdim=True).cpu() / part.size).to(own)
        return {("heads", part.kind): kept}

    def logits(self, vectors: dict[tuple[str, str], Tensor], begun: AbstractContextManager[Any]) -> Tensor:
        """[position, vocab] float32 with only these vectors, in a pass inside ``begun``."""
        model, batch, read = self.attached.model, self.batch, self.read
        _set(self.edit, vectors)
        try:
            with begun:
                output = model.forward(batch.input_ids, batch.attention_mask, batch.keep, batch.prompt_mask)
        finally:
            _set(self.edit, {})
        logits: Tensor = output.logits
        # In recorded and restarted passes the marked positions alone are given.
        marked = logits.shape[:2] == (1, int(read.sum()))
        return (logits[0] if marked else logits[:, -read.shape[1] :][read]).float()


def _one_batch(
    found: Truth,
    lens: Lens,
    bench: _Bench,
    parts: Sequence[tuple[Part, Drawn]],
    contrasts: Sequence[Contrast],
    bar: Any,
) -> None:
    counts = (bench.batch.labels != IGNORED).sum(1).tolist()
    with inputs(lens.modules) as kept, _recording(bench) as recording:
        base = bench.logits({}, nullcontext())
    for name, stream in kept.items():
        marked = stream[:, -bench.read.shape[1] :][bench.read].float().to(lens.weight.device)
        for row, own in zip(bench.places, marked.split(counts), strict=True):
            found.streams[name][row] = own
    found.positions += len(base)
    if lens.cap is not None:
        found.slope += (1 - (base / lens.cap).square()).sum(0).to(found.slope)
    for (part, beside), changes in zip(parts, found.change, strict=True):
        for gated, change in zip(beside.vectors, changes, strict=False):  # as many as are held
            if part.heads:
                logits = bench.logits(bench.alone(part, gated), _from(recording, part.layer))
                change += (logits - base).sum(0).to(change)
            bar.update()
    own = [(i, contrast) for i, contrast in enumerate(contrasts) if contrast.row in bench.places]
    if own:
        edited = bench.logits(bench.whole(), _from(recording, 0)).split(counts)
        rows = base.split(counts)
        for i, contrast in own:
            row = bench.places.index(contrast.row)
            found.base[i], found.edited[i] = contrast.of(rows[row]), contrast.of(edited[row])
            found.logits[i] = rows[row][contrast.place, list(contrast.tokens)]


@contextmanager
def _recording(bench: _Bench) -> Iterator[Recording | None]:
    """The next pass is kept, so that others can begin at a layer; None where the architecture does not allow that."""
    recording = None
    with ExitStack() as stack:
        try:
            recording = stack.enter_context(recorded(bench.attached.model, bench.attached, read=bench.read))
        except RestartError as error:
            logger.info("readout: whole passes, since %s", error)
        yield recording


def _from(recording: Recording | None, layer: int) -> AbstractContextManager[None]:
    return nullcontext() if recording is None else restarted(recording, layer)


def _set(edit: JoLA, vectors: Mapping[tuple[str, str], Tensor]) -> None:
    """Give an edit these vectors, and 0 for all others."""
    for site in edit.sites:
        for name, vector in edit.site(site).vectors.items():  # type: ignore[arg-type]
            vector.data.copy_(vectors.get((site, name), torch.zeros(())))


def _bar(passes: int, rows: Rows) -> Any:
    from tqdm.auto import tqdm

    total = passes * math.ceil(len(rows.encoded) / BATCH)
    return tqdm(total=total, desc="readout", disable=logger.getEffectiveLevel() > 30, leave=False)
