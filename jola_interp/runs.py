"""A Run: everything that training leaves, as a directory that can be read without the model."""

from __future__ import annotations

import dataclasses
import hashlib
import html
import json
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import torch
from torch import Tensor

from jola_interp import _files, checkpoint, convergence, selection, sketch
from jola_interp.backends import BACKENDS, Attachment, BackendName, attach, hook_name, require_unedited
from jola_interp.config import TrainConfig
from jola_interp.edits.base import Context, Edit, HeadShape, Site
from jola_interp.edits.jola import JoLA, Operation
from jola_interp.history import GateHistory
from jola_interp.models import Model, load_model, plain

if TYPE_CHECKING:
    import pandas as pd

    from jola_interp.backends.traced import TracedEdit

FORMAT = 5
"""Version of the directory's layout; a newer one is refused, an older one brought up to date when it is read."""
CONFIG_KEYS = {
    "format", "jola_interp", "identity", "status", "preset", "backend", "method", "model", "task", "edit", "train",
    "progress",
}  # fmt: skip
SECTIONS = ("model", "task", "edit", "train", "progress")
STAGES = "stages"
"""The trainings that a method made first, to choose heads by or to start from."""
STATUSES = ("finished", "interrupted", "diverged")
EVIDENCE = "evidence.json"
SHARED_FILES = (
    "config.json", "edit.safetensors", "gates.safetensors", "metrics.jsonl", "scores.json", convergence.FILE, EVIDENCE,
)  # fmt: skip
"""What goes to the Hub; predictions hold text from the data and go only if asked for."""
OWN_FILES = (*SHARED_FILES, "predictions.jsonl", "timing.json", "report.html")
"""What a Run may hold beside its checkpoint and its transfer scores."""
CARD = "README.md"
"""The Hub's card of a Run."""
TRANSFER = "transfer"
"""Scores on other tasks, a directory each."""
ANALYSIS = "analysis"
"""Tables that were measured on the edit, a file each."""
WITH_TEXT = "text-*.safetensors"
"""Those of them that hold text from the data."""
PARTIAL = "partial-*.jsonl"
"""What an evaluation that was cut short has left."""


ADDED: dict[str, dict[str, Any]] = {
    "train": {
        "answers": "bare",
        "lr_ratio": 1.0,
        "gate_lr_schedule": None,
        "gate_share": 1.0,
        "penalty_warmup": 0.0,
        "target_heads": None,
    },
    "task": {"teacher": None},
}
"""Fields that older formats lack, and what was done before they were there."""


class RunError(ValueError):
    """A Run that cannot be read: names the file, the field, what was found and what was expected."""

    def __init__(self, file: Path, field: str, found: object, expected: object):
        super().__init__(f"{file}: {field}: found {found}, expected {expected}")


class Run:
    """A trained edit with its history, scores and configuration. Made by ``fit`` or :meth:`load`.

    Attributes:
        path: its directory.
        config: what ``config.json`` holds: model, task, edit, training fields, preset, backend, status, progress.
        edit: the trained edit (the best epoch's, if the configuration asks for that).
        gates: where every gate stood over training (:class:`GateHistory`).
    """

    def __init__(self, path: Path, config: dict[str, Any], edit: JoLA, gates: GateHistory, model: Model | None = None):
        self.path, self.config, self.edit, self.gates = path, config, edit, gates
        self._model = model

    # -- reading ---------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: str | Path, model: Model | None = None) -> Self:
        """Read a Run; the model is not needed.

        Raises:
            FileNotFoundError: no Run there.
            RunError: a newer format, unknown keys or tensors, wrong shapes, or numbers that are not finite.
        """
        folder = Path(path)
        file = folder / "config.json"
        if not file.exists():
            raise FileNotFoundError(f"no Run at {folder}: there is no config.json")
        config = read_config(file)
        edit = _load_edit(folder / "edit.safetensors", config)
        gates = _load_gates(folder / "gates.safetensors", edit)
        run = cls(folder, config, edit, gates)
        gates.scalars = run._scalars_at(gates.steps)
        if model is not None:
            run.check_model(model)
            run._model = model
        return run

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Download a Run from the Hub (or find it in the cache) and load it. A local directory works too."""
        if Path(repo_id).is_dir():
            return cls.load(repo_id)
        from huggingface_hub import snapshot_download

        folder = snapshot_download(
            repo_id,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            allow_patterns=[*SHARED_FILES, "predictions.jsonl", f"{TRANSFER}/*.json*", f"{ANALYSIS}/*.safetensors"],
        )
        return cls.load(folder)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = True,
        commit_message: str = "Upload JoLA run",
        token: str | bool | None = None,
        include_predictions: bool = False,
        card: str | None = None,
        pictures: Mapping[str, bytes] | None = None,
    ) -> str:
        """Upload the Run (never its checkpoint) and return the address of the commit. Private unless you say so.

        Args:
            repo_id: ``user/name``; made if it is not there.
            private: whether a repository that is made now is private.
            commit_message: of the commit.
            token: as everywhere in ``huggingface_hub``.
            include_predictions: upload texts of the data, too.
            card: Markdown for ``README.md``, uploaded first, in a commit of its own; :func:`jola_interp.hub.push`
                writes one. A ``README.md`` in the Run's directory is yours: it goes up in place of the card, and
                nothing is written there.
            pictures: file name to content of what the card shows; they go up with it, or not at all.
        """
        from huggingface_hub import CommitOperationAdd, HfApi

        if "few-shot" in str((self.config["method"] or {}).get("name")) and not include_predictions:
            raise ValueError(
                "the prompt of a few-shot Run, in config.json, holds training rows: include_predictions=True uploads "
                "text of the data"
            )
        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        own = (self.path / CARD).exists()
        if card is not None and not own:
            shown = {CARD: card.encode(), **(pictures or {})}
            added = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=shown[name]) for name in shown]
            api.create_commit(repo_id, added, commit_message=commit_message)
        files = [*SHARED_FILES, *([CARD] if own else []), f"{TRANSFER}/*scores.json", f"{ANALYSIS}/*.safetensors"]
        if include_predictions:
            files += ["predictions.jsonl", f"{TRANSFER}/*predictions.jsonl"]
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=self.path,
            allow_patterns=files,
            ignore_patterns=None if include_predictions else [f"{ANALYSIS}/{WITH_TEXT}"],
            commit_message=commit_message,
        )
        return str(commit.commit_url)

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """``metrics.jsonl``: one row per optimiser step, and one per validation."""
        import pandas as pd

        return pd.DataFrame(self._rows("metrics.jsonl"))

    @property
    def scores(self) -> dict[str, Any]:
        """``scores.json``: base beside edited, with intervals; empty before an evaluation."""
        return self._json("scores.json")

    @property
    def timing(self) -> dict[str, Any]:
        """``timing.json``: seconds, host and paths; the only file that differs between two equal Runs."""
        return self._json("timing.json")

    @property
    def predictions(self) -> list[dict[str, Any]]:
        """``predictions.jsonl``: one row per test row, base beside edited."""
        return self._rows("predictions.jsonl")

    def ready(self, model: str | Path | Model | None, what: str) -> Model:
        """The model for base and edited passes: checked, without an edit, and booted where the Run's backend boots it.

        Booted now, so that both passes are of the same arithmetic.

        Raises:
            ValueError: an edit is attached to it; ``what`` says what it was wanted for.
        """
        target = self.model_or(model)
        require_unedited(target, what)
        if not target.booted:
            BACKENDS[self.config["backend"]].ready(target)
        return target

    def folder_of(self, task: str) -> Path:
        """Where scores on a task lie: the Run's own directory, or ``transfer/<task>`` in it."""
        own = task == self.config["task"]["name"]
        return self.path if own else self.path / TRANSFER / task

    @property
    def transfer(self) -> dict[str, dict[str, Any]]:
        """Task to ``scores.json`` of each task that the Run was scored on beside its own."""
        files = sorted((self.path / TRANSFER).rglob("scores.json"))
        found = [_read(file, partial(_read_json, file), "JSON") for file in files]
        return {scores["task"]: scores for scores in found}

    @property
    def status(self) -> str:
        """``finished``, ``interrupted`` or ``diverged``."""
        return str(self.config["status"])

    def model_or(self, model: str | Path | Model | None) -> Model:
        """``model``, loaded if it is a name and checked against the Run; None is the Run's own."""
        if model is None:
            return self.model
        found = model if isinstance(model, Model) else load_model(model, dtype=self.config["model"]["dtype"])
        if found is not self._model:
            self.check_model(found)
        return found

    # -- heads -----------------------------------------------------------------------------------------------------

    def selected(self, rule: str = selection.DEFAULT_RULE, site: Site = "heads") -> selection.Selection:
        """The heads that ``rule`` selects in the kept edit, best first (see :mod:`jola_interp.selection`).

        Warns (``NotConvergedWarning``) where the gates have not decided: another learning rate would select others.

        Raises:
            ValueError: a rule outside the grammar, or an edit without gates at ``site``.
        """
        stamp = self.convergence
        if stamp is not None and not stamp.converged:
            warnings.warn(f"{self.path}: {stamp.sentence()}", convergence.NotConvergedWarning, stacklevel=2)
        return self.selection(rule, site)

    def selection(self, rule: str = selection.DEFAULT_RULE, site: Site = "heads") -> selection.Selection:
        """:meth:`selected` without its warning, for what shows the stamp itself."""
        return selection.select(self.log_alphas(site), rule, site)

    @property
    def convergence(self) -> convergence.Convergence | None:
        """Whether the gates have decided (``convergence.json``); None for edits without gates, Runs that were cut short
        and those of older versions."""
        stored = self._json(convergence.FILE)
        if not stored:
            return None
        file = self.path / convergence.FILE
        return cast(convergence.Convergence, _read(file, lambda: convergence.Convergence.from_dict(stored), "a stamp"))

    def log_alphas(self, site: Site = "heads") -> dict[str, np.ndarray]:
        """Kind of gate to log α [layer, head] of the kept edit; NaN where a head is not editable."""
        found = {kind: value for (at, kind), value in self.edit.log_alphas().items() if at == site}
        if not found:
            raise ValueError(f"this edit has no gates at {site}: nothing was selected, all of it acts")
        mask = self.edit.masks()[site]
        return {kind: torch.where(mask, value, torch.nan).cpu().numpy() for kind, value in found.items()}

    # -- use -------------------------------------------------------------------------------------------------------

    @property
    def model(self) -> Model:
        """The model that the Run was trained on, loaded when first asked for.

        Raises:
            ValueError: the Run does not say where its model came from (you brought it): hand it to the call instead.
        """
        if self._model is None:
            source = self.timing.get("model_source") or self.config["model"]["source"]
            if source is None:
                raise ValueError(f"{self.path}: trained on a model that was handed in; pass model=load_model(...)")
            model = load_model(source, dtype=self.config["model"]["dtype"])
            self.check_model(model)
            self._model = model
        return self._model

    def check_model(self, model: Model) -> None:
        """Refuse another architecture; warn about other weights of the same shape."""
        recorded, found = self.config["model"], model.identity()
        for field in ("class", "head_shape", "vocab_size"):
            if found[field] != recorded[field]:
                raise RunError(
                    self.path / "config.json",
                    f"model.{field}",
                    recorded[field],
                    f"{found[field]} (the model)",
                )
        known = not next(model.hf.parameters()).is_meta  # weights that are not loaded cannot be compared
        if known and found["fingerprint"] != recorded["fingerprint"]:
            warnings.warn(
                f"the Run was trained on {recorded['name']} ({recorded['fingerprint'][:12]}), this is {model.name} "
                f"({model.fingerprint[:12]}): same shape, other weights",
                stacklevel=2,
            )

    def attach(
        self,
        model: str | Model | None = None,
        heads: Iterable[str | tuple[int, int]] | None = None,
        kinds: Iterable[Operation] | None = None,
        strength: float = 1.0,
        backend: BackendName | None = None,
    ) -> AbstractContextManager[Attachment]:
        """``with run.attach(model):`` makes the trained edit, or a part of it, live on the model.

        Args:
            model: None is the Run's own.
            heads: only these heads ("L3H7", (3, 7), or a Selection); None is all.
            kinds: only these operations, out of "additive" and "multiplicative"; None is both.
            strength: z + strength·(z' − z).
            backend: None is the one that it was trained with.
        """
        target = self.model_or(model)
        part = self.edit.restricted(heads, kinds, strength).to(target.device).requires_grad_(False)
        # A model that is booted already can only be reached through its bridge.
        return attach(part, target, backend or ("lens" if target.booted else self.config["backend"]))

    def fwd_hooks(self, dtype: torch.dtype | None = None) -> list[tuple[str, Callable[..., Tensor]]]:
        """(hook name, function) pairs for TransformerLens' ``run_with_hooks`` and ``hooks``: the gates at inference.

        Use them on a bridge in its default mode: in compatibility mode a named hook is called once per alias.
        """
        context = Context()
        if self.edit.on_weights:
            raise ValueError(f"fwd_hooks: {type(self.edit).__name__} acts on weights, not at hook points: use attach()")
        if not self.edit.everywhere:
            raise ValueError(
                f"fwd_hooks: this {type(self.edit).__name__} edits some tokens only, for which it needs the masks of a "
                "pass: use attach()"
            )
        with torch.no_grad():
            context.prepared = self.edit.prepare(context, dtype or getattr(torch, self.config["model"]["dtype"]))

        def hook_at(layer: int, site: Site) -> Callable[..., Tensor]:
            def edit_activation(activation: Tensor, **_: Any) -> Tensor:
                return cast(Tensor, self.edit(activation, layer, site, context))

            return edit_activation

        return [(hook_name(layer, site), hook_at(layer, site)) for layer, site in self.edit.points()]

    def as_trace(
        self,
        model: Any = None,
        heads: Iterable[str | tuple[int, int]] | None = None,
        kinds: Iterable[Operation] | None = None,
        strength: float = 1.0,
    ) -> TracedEdit:
        """The trained edit, or a part of it, for nnsight traces of your own (:mod:`jola_interp.backends.traced`).

        Args:
            model: an nnsight model, which stays as it is, and whose weights may be on NDIF alone; or what
                :meth:`attach` takes, which is wrapped (loaded anew first, where it has been booted by TransformerLens).
            heads, kinds, strength: as for :meth:`attach`.
        """
        from jola_interp.backends import traced

        part, given = self.edit.restricted(heads, kinds, strength), traced.is_wrapped(model)
        target = self.model_or(traced.unwrapped(model) if given else model)
        target = target if given else plain(target)
        return traced.trace_edit(part, target, model if given else traced.wrap(target))

    def generate(
        self,
        prompts: str | Sequence[str],
        model: str | Model | None = None,
        *,
        max_new_tokens: int = 64,
        beams: int = 1,
    ) -> pd.DataFrame:
        """What the base and the edited model write: one row per prompt, columns prompt, base, edited.

        Prompts are instructions; they are wrapped as in training.
        """
        import pandas as pd

        from jola_interp.evaluation.generation import generate_texts

        target = self.model_or(model)
        require_unedited(target, "generate")
        rows = [prompts] if isinstance(prompts, str) else list(prompts)
        options = {
            "wrapper": self.config["train"]["wrapper"],
            "max_length": self.config["train"]["max_length"],
            "max_new_tokens": max_new_tokens,
            "beams": beams,
        }
        base = generate_texts(target, rows, **options)
        with self.attach(target) as attached:
            edited = generate_texts(target, rows, **options)
        attached.check_live()
        return pd.DataFrame({"prompt": rows, "base": base, "edited": edited})

    # -- showing ---------------------------------------------------------------------------------------------------

    def summary(self) -> str:
        """One line: model, task, heads by status, scores."""
        parts = [f"{self.config['model']['name']} on {self.config['task']['name']}", self.status]
        if self._has_head_gates():
            counts = self.selection().counts()
            parts.append(", ".join(f"{count} {name}" for name, count in counts.items()))
        if (stamp := self.convergence) is not None and not stamp.converged:
            parts.append("not converged")
        if scores := self.scores:
            name = scores["metric"]
            base, edited = scores["base"][name], scores["edited"][name]
            parts.append(
                f"{name} {base['value']:.1f} → {edited['value']:.1f} [{edited['low']:.1f}, {edited['high']:.1f}]"
            )
        return " · ".join(parts)

    def __repr__(self) -> str:
        return f"Run({self.path}: {self.summary()})"

    def _repr_html_(self) -> str:
        text = f"<p><b>{html.escape(str(self.path))}</b><br>{html.escape(self.summary())}</p>"
        if not self._has_head_gates():
            return text
        maps = {kind: selection.measure("p_open", value) for kind, value in self.log_alphas().items()}
        return text + sketch.heads_svg(maps)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _has_head_gates(self) -> bool:
        return any(site == "heads" for site, _ in self.edit.log_alphas())

    def _json(self, name: str) -> dict[str, Any]:
        file = self.path / name
        if not file.exists():
            return {}
        return cast(dict[str, Any], _read(file, partial(_read_json, file), "JSON"))

    def _rows(self, name: str) -> list[dict[str, Any]]:
        file = self.path / name
        rows = _read(file, lambda: _files.read_jsonl(file), "one JSON object a line")
        if any(not isinstance(row, dict) for row in rows):
            raise RunError(file, "content", "a line that is no object", "one JSON object a line")
        return cast(list[dict[str, Any]], rows)

    def _scalars_at(self, steps: np.ndarray) -> dict[str, np.ndarray]:
        """Training scalars aligned with the recorded steps."""
        frame = self.metrics
        if not {"ce", "step"} <= set(frame):
            return {}
        rows = frame[frame["ce"].notna()].set_index("step").reindex(steps)
        return {str(name): rows[name].to_numpy(dtype=float) for name in rows if not str(name).startswith("validation")}


def read_config(file: Path) -> dict[str, Any]:
    """``config.json``, checked. Raises RunError."""
    config = _read(file, partial(_read_json, file), "JSON")
    if not isinstance(config, dict) or not isinstance(config.get("format"), int):
        raise RunError(file, "format", config.get("format") if isinstance(config, dict) else type(config), FORMAT)
    if not 1 <= config["format"] <= FORMAT:
        raise RunError(file, "format", config["format"], f"1 to {FORMAT}; a newer jola_interp wrote this Run")
    if config["format"] < FORMAT:
        _bring_up_to_date(config)
    if config.keys() != CONFIG_KEYS:
        raise RunError(file, "keys", sorted(config.keys() ^ CONFIG_KEYS), "no missing and no unknown keys")
    for section in SECTIONS:
        if not isinstance(config[section], dict):
            raise RunError(file, section, config[section], "an object")
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    if config["train"].keys() != fields:
        raise RunError(file, "train", sorted(config["train"].keys() ^ fields), "no missing and no unknown fields")
    choices = {"status": (config["status"], STATUSES), "edit.type": (config["edit"].get("type"), tuple(Edit.types))}
    for field, (found, allowed) in choices.items():
        if found not in allowed:
            raise RunError(file, field, found, f"one of {', '.join(allowed)}")
    return config


def _bring_up_to_date(config: dict[str, Any]) -> None:
    """Fill in the fields that came later, with what the older version did."""
    config.setdefault("method", None)
    for section, added in ADDED.items():
        if isinstance(config.get(section), dict):
            config[section] = {**added, **config[section]}


def write_run(folder: Path, config: Mapping[str, Any], edit: Edit, gates: GateHistory) -> None:
    """Write edit, gates and, last, the configuration: with it the Run exists."""
    folder.mkdir(parents=True, exist_ok=True)
    _files.write_tensors(folder / "edit.safetensors", edit.tensors())
    _files.write_tensors(folder / "gates.safetensors", gates.tensors())
    _files.write_json(folder / "config.json", config)


def require_replaceable(folder: Path) -> None:
    """Refuse a directory that holds something but neither a Run nor a checkpoint of one.

    Raises:
        FileExistsError: it does.
    """
    if not folder.exists() or not _others(folder) and _only_ours(folder / STAGES):
        return
    if (folder / "checkpoint" / checkpoint.FILE).exists():
        return
    with suppress(OSError, ValueError, AttributeError):
        if json.loads((folder / "config.json").read_text(encoding="utf-8")).keys() & {"jola_interp"}:
            return
    raise FileExistsError(f"out: {folder} is not empty and holds no Run; choose another directory")


def _others(folder: Path) -> set[Path]:
    """What is neither stages nor left by a process that was killed while it wrote a Run's first files."""
    begun = folder / "checkpoint"
    cut_short = begun.is_dir() and all(path.name.startswith(f".{checkpoint.FILE}-") for path in begun.iterdir())
    scratch = {path for name in OWN_FILES for path in folder.glob(f".{name}-*")}
    return set(folder.iterdir()) - {folder / STAGES} - scratch - ({begun} if cut_short else set())


def clear_run(folder: Path, stages: bool = True) -> None:
    """Remove a Run's own files from its directory, and nothing else; ``stages``: its method's trainings, too."""
    clear_scores(folder)
    for name in OWN_FILES:
        (folder / name).unlink(missing_ok=True)
    for stage in _stages(folder) if stages else ():
        shutil.rmtree(stage) if stage.is_dir() else stage.unlink()
    with suppress(OSError):
        (folder / STAGES).rmdir()
    for file in (folder / ANALYSIS).glob("*.safetensors"):
        file.unlink()
    with suppress(OSError):  # something of the user's is in it, or it is not there
        (folder / ANALYSIS).rmdir()
    checkpoint.remove(folder / "checkpoint")


def _stages(folder: Path) -> list[Path]:
    """What methods have left in ``stages/``: Runs, begun or finished, and their notes."""
    own = folder / STAGES
    found = [path for path in own.iterdir() if path.is_dir()] if own.is_dir() else []
    runs = [
        path
        for path in found
        if any((path / name).exists() for name in ("config.json", f"checkpoint/{checkpoint.FILE}"))
    ]
    return [*runs, *own.glob("*.json")]


def _only_ours(stages: Path) -> bool:
    return not stages.exists() or set(stages.iterdir()) == set(_stages(stages.parent))


def clear_scores(folder: Path) -> None:
    """Remove what tells of an edit that is about to change: scores, predictions, what is left of them, the report."""
    transfer = folder / TRANSFER
    places = [folder, *(path.parent for path in sorted(transfer.rglob("*.json*")))]
    for place in places:
        for name in ("scores.json", "predictions.jsonl", "report.html"):
            (place / name).unlink(missing_ok=True)
        for file in place.glob(PARTIAL):
            file.unlink()
    for place in sorted({*places[1:], transfer}, reverse=True):  # the deepest first
        with suppress(OSError):  # something of the user's is in it, or it is not there
            place.rmdir()


def edit_from_settings(settings: Mapping[str, Any], shape: HeadShape) -> JoLA:
    """An edit with the recorded switches; its tensors are still to be loaded."""
    options = dict(settings)
    return cast(JoLA, Edit.types[options.pop("type")](shape, **options))


def edit_digest(edit: Edit) -> str:
    """SHA-256 over an edit's tensors."""
    content = b"".join(value.cpu().contiguous().numpy().tobytes() for _, value in sorted(edit.tensors().items()))
    return hashlib.sha256(content).hexdigest()


def edit_settings(edit: Edit) -> dict[str, Any]:
    """What ``config.json`` records of an edit."""
    return {"type": edit.type_name, **edit.settings()}


def _load_edit(file: Path, config: Mapping[str, Any]) -> JoLA:
    try:
        shape = HeadShape(**config["model"]["head_shape"])
        edit = edit_from_settings(config["edit"], shape)
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(file.parent / "config.json", "edit", error, "settings of an edit") from error
    try:
        return edit.load_tensors(_read_tensors(file))
    except ValueError as error:
        raise RunError(file, "tensors", error, "the tensors of this edit") from error


def _load_gates(file: Path, edit: JoLA) -> GateHistory:
    tensors = _read_tensors(file)
    masks = {site: mask.numpy() for site, mask in edit.masks().items()}
    expected = {f"log_alpha.{site}.{kind}": value for (site, kind), value in edit.log_alphas().items()}
    if tensors.keys() != expected.keys() | {"step"}:
        raise RunError(file, "tensors", sorted(tensors), sorted(expected.keys() | {"step"}))
    if tensors["step"].dim() != 1 or tensors["step"].is_floating_point():
        raise RunError(file, "step", f"{tensors['step'].dtype} {list(tensors['step'].shape)}", "integers [records]")
    records = tensors["step"].shape[0]
    for name, value in expected.items():
        if tensors[name].shape != (records, *value.shape):
            raise RunError(file, name, list(tensors[name].shape), [records, *value.shape])
        if not bool(torch.isfinite(tensors[name]).all()):
            raise RunError(file, name, "NaN or infinity", "finite numbers")
    return GateHistory.from_tensors(tensors, masks)


def _read_tensors(file: Path) -> dict[str, Tensor]:
    if not file.exists():
        raise RunError(file, "file", "nothing", "a safetensors file")
    return cast(dict[str, Tensor], _read(file, lambda: _files.read_tensors(file), "a safetensors file"))


def _read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _read(file: Path, reader: Callable[[], Any], expected: str) -> Any:
    try:
        return reader()
    except Exception as error:  # each reader has errors of its own; safetensors' is no ValueError
        raise RunError(file, "content", error, expected) from error
