"""What an edit does at each token of a text: how far it moves the stream, by which heads, and what it makes likelier.

    Δ log p[t] = log p(t | before) under the edited model − under the base model, in nats
    shift[t]   = mean over layers of ‖Σ_h Δz_h[t] W_O[h]‖ / ‖stream[t]‖,    Δz = edit(z) − z in one edited pass (local)

The two are not of one place: log p of a token is read at the position before it, the shift at the token itself. The
first token of a row is predicted by nothing (NaN), and its stream is no measure for that of others: it is kept apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from jola_interp.analysis.rows import Rows, Seen, Split, output_weights, prepared, watched
from jola_interp.analysis.token_texts import token_texts, visible
from jola_interp.backends import attach
from jola_interp.batching import Encoded, encode_prompt, warn_of_cuts
from jola_interp.edits.base import Edit, HeadShape, unit_label
from jola_interp.edits.jola import JoLA
from jola_interp.evaluation.side_effects import random_control
from jola_interp.tasks import Example, Task
from jola_interp.tasks.example import check_text

if TYPE_CHECKING:
    import pandas as pd

    from jola_interp.backends import BackendName
    from jola_interp.models import Model
    from jola_interp.runs import Run

Of = Literal["shift", "logp"]
TABLE = "text-tokens"
"""The name under which a Run keeps the table: it holds text from the data."""
CHUNK = 64
"""Positions whose log p is computed at a time: in float32 a vocabulary of 50,000 then takes 13 MB a row."""


@dataclass(frozen=True)
class Cost:
    """Mean −log p over some tokens of a row, in nats per token.

    Attributes:
        what: "answer", or "text" where a row has none (then all tokens but the first).
        n: how many tokens.
        base, edited: under the base and the edited model; NaN without a token.
        random: under each of the random edits.
    """

    what: str
    n: int
    base: float
    edited: float
    random: tuple[float, ...]

    def sentence(self) -> str:
        """Base and edited, the change, and what random directions change."""
        if not self.n:
            return f"{self.what}: no token"
        changed = f"{self.what} ({self.n} tokens): −log p {self.base:.3f} → {self.edited:.3f} nats a token"
        if not self.random:
            return f"{changed} ({self.edited - self.base:+.3f})"
        others = ", ".join(f"{value - self.base:+.3f}" for value in self.random)
        return f"{changed} ({self.edited - self.base:+.3f}; random directions of the same norms {others})"


@dataclass(frozen=True, eq=False)
class Tokens:
    """One entry per token, row after row; made by :func:`tokens` and :func:`tokens_of`.

    Attributes:
        title: model, task or "free text".
        wrapper: what stands around the instructions: a style, a template, or "raw" for nothing.
        names: of the rows.
        labels: of the heads, layer by layer.
        text: of each token, as it stands; "" where it only goes on with a character that an earlier one began.
        ids: [token] in the vocabulary.
        row, position: [token] which row, and which of its tokens.
        prompt: [token] whether it is of the prompt (else of the answer).
        base, edited: [token] log p in nats; NaN at the first token of a row.
        random: [draw, token] log p under edits with vectors of the same norms and random directions.
        shift: [token] see above.
        random_shift: [token] the same under the first of the random edits; NaN where there is none.
        heads: [token, top] the heads that write most, as indices of ``labels``.
        moved: [token, top] ‖Δz_h W_O[h]‖ / ‖stream‖ of each, in its own layer.
    """

    title: str
    wrapper: str
    names: tuple[str, ...]
    labels: tuple[str, ...] = field(repr=False)
    text: tuple[str, ...] = field(repr=False)
    ids: Int[np.ndarray, " token"] = field(repr=False)
    row: Int[np.ndarray, " token"] = field(repr=False)
    position: Int[np.ndarray, " token"] = field(repr=False)
    prompt: Bool[np.ndarray, " token"] = field(repr=False)
    base: Float[np.ndarray, " token"] = field(repr=False)
    edited: Float[np.ndarray, " token"] = field(repr=False)
    random: Float[np.ndarray, "draw token"] = field(repr=False)
    shift: Float[np.ndarray, " token"] = field(repr=False)
    random_shift: Float[np.ndarray, " token"] = field(repr=False)
    heads: Int[np.ndarray, "token top"] = field(repr=False)
    moved: Float[np.ndarray, "token top"] = field(repr=False)

    def __len__(self) -> int:
        return len(self.text)

    @property
    def first(self) -> Bool[np.ndarray, " token"]:
        """Whether a token is the first of its row."""
        return np.asarray(self.position == 0)

    @property
    def change(self) -> Float[np.ndarray, " token"]:
        """Δ log p, nats."""
        return np.asarray(self.edited - self.base)

    @property
    def visible(self) -> tuple[str, ...]:
        """The texts with · for a space, ↵ for a new line, ⇥ for a tabulator, ⋯ for the rest of a character."""
        return tuple(map(visible, self.text))

    def values(self, of: Of) -> Float[np.ndarray, " token"]:
        """``shift``, or ``change`` for "logp".

        Raises:
            ValueError: an unknown measure.
        """
        if of not in get_args(Of):
            raise ValueError(f"of must be one of {', '.join(get_args(Of))}; got {of!r}")
        return self.shift if of == "shift" else self.change

    def top_heads(self, token: int) -> list[tuple[str, float]]:
        """(label, share of the stream) of the heads that write most at a token, without those that write nothing.

        Args:
            token: its place in the table.
        """
        pairs = zip(self.heads[token], self.moved[token], strict=True)
        return [(self.labels[head], float(value)) for head, value in pairs if value > 0]

    def top(self, k: int, of: Of = "logp") -> Tokens:
        """The ``k`` tokens whose log p changes most, either way, or that are shifted most; never a row's first.

        Raises:
            ValueError: an unknown measure.
        """
        values = np.where(self.first, -1.0, np.abs(self.values(of)))
        return self._take(np.argsort(-values, kind="stable")[: min(max(k, 0), int((~self.first).sum()))])

    def cost(self, row: int) -> Cost:
        """What the row's answer costs before and after; of all its text where it has no answer."""
        here = (self.row == row) & ~self.first
        answer = here & ~self.prompt
        what, chosen = ("answer", answer) if answer.any() else ("text", here)
        n = int(chosen.sum())
        base, edited, *random = (
            -float(x[chosen].mean()) if n else np.nan for x in (self.base, self.edited, *self.random)
        )
        return Cost(what, n, base, edited, tuple(random))

    def to_frame(self) -> pd.DataFrame:
        """One row per token: row, position, token, text, id, part, first, log p and its change, shift, top heads."""
        import pandas as pd

        columns: dict[str, Any] = {
            "row": [self.names[row] for row in self.row],
            "position": self.position,
            "token": self.visible,
            "text": self.text,
            "id": self.ids,
            "part": np.where(self.prompt, "prompt", "answer"),
            "first": self.first,
            "logp_base": self.base,
            "logp_edited": self.edited,
            "change": self.change,
            "change_random": (self.random - self.base).mean(0) if len(self.random) else np.nan,
            "shift": self.shift,
            "shift_random": self.random_shift,
            "heads": [", ".join(f"{name} {x:.3g}" for name, x in self.top_heads(i)) for i in range(len(self))],
        }
        return pd.DataFrame(columns)

    def _take(self, chosen: Int[np.ndarray, " chosen"]) -> Tokens:
        names = ("ids", "row", "position", "prompt", "base", "edited", "shift", "random_shift", "heads", "moved")
        taken = {name: getattr(self, name)[chosen] for name in names}
        text = tuple(self.text[i] for i in chosen)
        return Tokens(self.title, self.wrapper, self.names, self.labels, text, random=self.random[:, chosen], **taken)


def tokens(
    run: Run,
    task: str | Task,
    model: str | Model | None = None,
    *,
    split: Split = "test",
    rows: int = 4,
    top: int = 3,
    controls: int = 3,
    seed: int = 0,
    batch_size: int = 4,
) -> Tokens:
    """Δ log p and shift of every token of the first rows of a split, prompt and answer, encoded as in training.

    Costs three passes over the rows for the shifts, and 2 + ``controls`` whose logits are wanted at all positions:
    batch_size · positions · vocabulary numbers.

    Args:
        run: whose kept edit, which must act on heads (what it does elsewhere counts in log p, not in the shift).
        task: a name or a Task.
        model: None is the Run's own.
        split: ``test`` or ``validation``.
        rows: how many.
        top: how many heads to name at each token.
        controls: how many edits with vectors of the same norms and random directions to hold Δ log p against (the
            shift is held against the first of them).
        seed: of the first of them.
        batch_size: rows in one pass.

    Raises:
        ValueError: a field outside its range, an empty split, an edit that does not act on heads, a model without
            tokenizer or with an edit on it.
    """
    _check(top, controls, batch_size)
    read = prepared(run, task, model, split=split, rows=rows, what="tokens")
    names = tuple(example.id or f"{split} row {i}" for i, example in enumerate(read.examples))
    title = f"{run.config['model']['name']} on {read.task.name}, {split}"
    labelled = (title, str(run.config["train"]["wrapper"]), names)
    return _measured(read, labelled, top, range(seed, seed + controls), batch_size)


def tokens_of(
    run: Run,
    texts: str | Sequence[str],
    model: str | Model | None = None,
    *,
    wrapper: str = "run",
    top: int = 3,
    controls: int = 3,
    seed: int = 0,
    batch_size: int = 4,
) -> Tokens:
    """:func:`tokens` of texts of your own: all of each is prompt.

    Args:
        run, model, top, controls, seed, batch_size: as there.
        texts: one or several; one over the training's ``max_length`` tokens loses its start.
        wrapper: "run" what training puts around an instruction · "raw" nothing but the tokenizer's own special tokens
            · a style or template (see :mod:`jola_interp.prompts`).

    Raises:
        ValueError: as there; no text, an empty one, or a wrapper that cannot be used.
    """
    _check(top, controls, batch_size)
    read, name = free_text(run, texts, model, wrapper, "tokens_of")
    title = f"{run.config['model']['name']} on free text, edit of {run.config['task']['name']}"
    labelled = (title, name, tuple(f"text {i}" for i in range(len(read.encoded))))
    return _measured(read, labelled, top, range(seed, seed + controls), batch_size)


def free_text(
    run: Run, texts: str | Sequence[str], model: str | Model | None, wrapper: str, what: str
) -> tuple[Rows, str]:
    """Texts as rows that are all prompt, and the name of what stands around them; arguments as in :func:`tokens_of`.

    Raises:
        ValueError: no text, an empty one, one of no tokens, or a wrapper that cannot be used.
    """
    given = [check_text(text, "texts") for text in ([texts] if isinstance(texts, str) else texts)]
    if not given:
        raise ValueError("texts must be one text or more; got none")
    target = run.ready(model, what)
    if target.tokenizer is None:
        raise ValueError("the model has no tokenizer: load_model(model, tokenizer=...)")
    name, longest = (
        wrapper if wrapper != "run" else str(run.config["train"]["wrapper"]),
        run.config["train"]["max_length"],
    )
    prompts = [encode_prompt(text, target.tokenizer, "{instruction}" if name == "raw" else name) for text in given]
    kept = [prompt.within(longest) for prompt in prompts]
    if empty := [text for text, ids in zip(given, kept, strict=True) if not ids]:
        raise ValueError(f"texts: {empty[0]!r} has no tokens")
    warn_of_cuts([len(ids) < len(prompt.ids) for ids, prompt in zip(kept, prompts, strict=True)], longest)
    encoded = tuple(Encoded(ids, len(ids), row) for row, ids in enumerate(kept))
    task = Task("free text", (), (), tuple(Example(text, text) for text in given))
    backend = "lens" if target.booted else cast("BackendName", run.config["backend"])
    return Rows(run, target, task, task.test, encoded, backend), name


# -- passes ------------------------------------------------------------------------------------------------------------


def _measured(
    rows: Rows, labelled: tuple[str, str, tuple[str, ...]], top: int, seeds: Sequence[int], batch_size: int
) -> Tokens:
    others = [random_control(rows.run.edit, seed) for seed in seeds]
    shifts, parts = _shifts(rows, others[0] if others else None, batch_size)  # first: it refuses some edits
    heads = np.argsort(-parts, axis=1, kind="stable")[:, :top]
    base, edited = (log_p(rows, edit, batch_size) for edit in (None, rows.run.edit))
    random = [log_p(rows, other, batch_size) for other in others]
    encoded = rows.encoded
    lengths = [len(row.ids) for row in encoded]
    return Tokens(
        *labelled,
        labels=head_labels(rows.model.head_shape),
        text=tuple(text for row in encoded for text in token_texts(row.ids, rows.model.tokenizer)),  # type: ignore[arg-type]
        ids=np.concatenate([row.ids for row in encoded]).astype(np.int64),
        row=np.repeat(np.arange(len(encoded)), lengths),
        position=np.concatenate([np.arange(length) for length in lengths]),
        prompt=np.concatenate([np.arange(len(row.ids)) < row.n_prompt for row in encoded]),
        base=base,
        edited=edited,
        random=np.array(random).reshape(len(others), len(base)),
        shift=shifts[0],
        random_shift=shifts[1],
        heads=heads,
        moved=np.take_along_axis(parts, heads, axis=1),
    )


def head_labels(shape: HeadShape) -> tuple[str, ...]:
    """Of all heads, layer by layer."""
    return tuple(unit_label("heads", layer, head) for layer in range(shape.layers) for head in range(shape.heads))


@torch.no_grad()
def log_p(rows: Rows, edit: Edit | None, batch_size: int) -> Float[np.ndarray, " token"]:
    """log p of every token given those before it, row after row, in nats; NaN at each row's first.

    Args:
        edit: put on the model for these passes; None is the base model.
    """
    model, found = rows.model, [np.empty(0)] * len(rows.encoded)
    live = None if edit is None else edit.restricted().to(model.device).requires_grad_(False)
    with nullcontext() if live is None else attach(live, model, rows.backend) as attached:
        for places, batch in rows.batches(batch_size):
            logits = model.logits(batch.input_ids, batch.attention_mask, 0, batch.prompt_mask)
            values = _next_log_p(logits, batch.input_ids).cpu().numpy()
            for place, row in zip(places, values, strict=True):
                found[place] = row[len(row) - len(rows.encoded[place].ids) :]  # padding is on the left
                found[place][0] = np.nan
        if attached is not None:
            attached.check_live()
    return np.concatenate(found)


def _next_log_p(logits: Float[Tensor, "row pos vocab"], ids: Int[Tensor, "row pos"]) -> Float[Tensor, "row pos"]:
    """log p of the token at each position by the logits of the one before; 0 at the first."""
    found = torch.zeros(ids.shape, dtype=torch.float64, device=ids.device)
    for start in range(0, ids.shape[1] - 1, CHUNK):
        some = slice(start, min(start + CHUNK, ids.shape[1] - 1))
        following = ids[:, some.start + 1 : some.stop + 1]
        losses = F.cross_entropy(logits[:, some].float().transpose(1, 2), following, reduction="none")
        found[:, some.start + 1 : some.stop + 1] = -losses.double()
    return found


def _shifts(
    rows: Rows, other: JoLA | None, batch_size: int
) -> tuple[Float[np.ndarray, "edit token"], Float[np.ndarray, "token head"]]:
    """Shifts by the edit and by the other (NaN without one), and what each head writes, row after row."""
    found: list[tuple[np.ndarray, np.ndarray]] = [(np.empty(0), np.empty(0))] * len(rows.encoded)
    for seen in watched(rows, batch_size, other=other):
        own, parts = _written(seen, rows.model, seen.before, seen.after)
        beside = np.full_like(own, np.nan)
        if seen.other_before is not None and seen.other_after is not None:
            beside, _ = _written(seen, rows.model, seen.other_before, seen.other_after)
        owners = seen.real.nonzero()[:, 0].cpu().numpy()
        for index, place in enumerate(seen.places):
            found[place] = (np.stack([own, beside])[:, owners == index], parts[owners == index])
    return np.concatenate([row[0] for row in found], axis=1), np.concatenate([row[1] for row in found])


@torch.no_grad()
def _written(
    seen: Seen, model: Model, before: Sequence[Tensor], after: Sequence[Tensor]
) -> tuple[Float[np.ndarray, " token"], Float[np.ndarray, "token head"]]:
    """Shares of the stream at the real tokens of a batch: of all heads together, mean over layers, and of each head.

    Args:
        before, after: [layer] z as it reached an edit, and as it left it.
    """
    together, apart = [], []
    for layer, (old, new, stream) in enumerate(zip(before, after, seen.residual, strict=True)):
        real = seen.real.to(new.device)
        moved = new[real].float() - old[real].float()  # [token, head, d_head]
        weights = output_weights(model, layer).to(moved.device)
        norm = stream[seen.real.to(stream.device)].float().norm(dim=-1).to(moved.device).clamp(min=1e-30)
        parts = [moved[:, head] @ weights[head] for head in range(len(weights))]  # each [token, d_model]
        apart += [part.norm(dim=-1) / norm for part in parts]
        together.append(sum(parts[1:], parts[0]).norm(dim=-1) / norm)
    means = torch.stack([value.cpu() for value in together]).mean(0)
    return means.numpy(), torch.stack([value.cpu() for value in apart], dim=1).numpy()


def _check(top: int, controls: int, batch_size: int) -> None:
    """ValueError unless these are whole numbers, and at least 1, 0 and 1."""
    for name, value, least in (("top", top, 1), ("controls", controls, 0), ("batch_size", batch_size, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer ≥ {least}; got {value!r}")
