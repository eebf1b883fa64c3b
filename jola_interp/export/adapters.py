"""Adapters of the peft library: JoLA on heads as a LoRA or an IA3 of the output projections, and back."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jola_interp import _files
from jola_interp.edits import JoLA, LoRA
from jola_interp.edits.jola import Operation
from jola_interp.export import card
from jola_interp.export.affine import Affine, Points, affine
from jola_interp.export.checking import Linear, as_linear, compare
from jola_interp.export.folding import Change, folded, labels, require_plain
from jola_interp.export.subject import Subject, opened
from jola_interp.export.written import Export, ExportError, require_vacant, weight_bytes, write_note, writing
from jola_interp.models import Model, load_model
from jola_interp.runs import Run

AdapterKind = Literal["lora", "ia3"]
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."


def to_peft(
    run: Run | str | Path,
    path: str | Path,
    kind: AdapterKind = "lora",
    *,
    model: str | Path | Model | None = None,
    dtype: str | torch.dtype | None = None,
    heads: Iterable[str | tuple[int, int]] | None = None,
    kinds: Iterable[Operation] | None = None,
    strength: float = 1.0,
    check: bool = True,
) -> Export:
    """An adapter that stock ``peft`` loads on the base model.

    ``lora``: W' = W + B·A at W_O, with A = diag(g_m·m) and B = W_O on the columns that m changes, and a bias
    W_O·(g_a·a) (``lora_bias``): exact, of rank (heads that are scaled in the layer)·d_head or less, at least 1. Such a
    bias cannot be merged by peft into an architecture without one; :func:`fold` can. A Run of LoRA is written as it is.

    ``ia3``: x ↦ (1 + g_m·m) ⊙ x before W_O; for edits that only multiply.

    Args:
        run: a Run, or its directory.
        path: where to; must not exist, or be an empty directory. With the adapter go a model card and
            ``jola_export.json``.
        kind: ``lora`` or ``ia3``.
        model: the base model; None is the Run's own.
        dtype: the precision of the base model, by which it is checked; None is the model's. The adapter itself is at
            least of float32, but for the copies of W_O in it.
        heads, kinds, strength: only a part of the edit, as for ``run.attach``: ``kinds=["multiplicative"]``.
        check: compare with the edited model, as peft loads it, before the directory appears.

    Returns:
        Its path, layers, ranks, size, and how far it is from the edited model (:class:`Export`).

    Raises:
        ExportError: an edit that this adapter cannot hold, or a difference over its bound. Nothing is left at ``path``.
        FileExistsError: ``path`` is taken.
    """
    if kind not in ("lora", "ia3"):
        raise ValueError(f"kind must be lora or ia3; got {kind!r}")
    target = require_vacant(path)
    subject = opened(run, model, dtype, heads=heads, kinds=kinds, strength=strength)
    make = _of_lora if isinstance(subject.edit, LoRA) and kind == "lora" else {"lora": _lora, "ia3": _ia3}[kind]
    tensors, config, layers, ranks = make(subject)
    with writing(target) as scratch:
        _files.write_tensors(scratch / WEIGHTS, {f"{_PREFIX}{name}": value for name, value in tensors.items()})
        _write_config(scratch / CONFIG, config, subject)
        made = Export(
            target, kind, subject.dtype, type(subject.base.hf).__name__, weight_bytes(scratch), layers, ranks=ranks
        )
        if check:
            made = _checked(made, subject, scratch)
        write_note(scratch, made, subject.run, subject.edit, subject.base)
        card.write(scratch, made, subject)
    return made


def from_peft(source: str | Path | Any, model: str | Path | Model) -> JoLA:
    """z' = (1 + m) ⊙ z with 1 + m = ia3_l: the edit of an IA3 adapter on W_O, without gates.

    Args:
        source: a directory with ``adapter_config.json`` and ``adapter_model.safetensors``, or a ``PeftModel``, whose
            active adapter is read.
        model: whose heads it edits.

    Raises:
        ValueError: no IA3, one that scales outputs of linears and not what goes into them, or one at other places than
            W_O.
        FileNotFoundError: no such files; other formats are not opened.
    """
    config, tensors = _read(source)
    if str(config["peft_type"]).rpartition(".")[2] != "IA3":
        raise ValueError(f"peft_type must be IA3, which alone is an edit of heads; got {config['peft_type']}")
    base = load_model(model)
    names = _o_proj_names(base)
    edit = JoLA(base.head_shape, gates="none", operations="multiply", init_std=0.0)
    vectors = edit.site("heads").vectors["multiplicative"]
    for key, value in tensors.items():
        name = key.removeprefix(_PREFIX).removesuffix(".ia3_l")
        if name not in names:
            raise ValueError(f"{key}: expected ia3_l at {names[0]} and the like, the output projections, and no others")
        if value.shape != (1, base.head_shape.heads * base.head_shape.d_head):
            raise ValueError(
                f"{key}: expected [1, {base.head_shape.heads * base.head_shape.d_head}], which scales what goes into "
                f"W_O (feedforward_modules); found {list(value.shape)}"
            )
        scale = value.detach().cpu().double().view(base.head_shape.heads, base.head_shape.d_head)
        vectors.data[names.index(name)] = (scale - 1).to(vectors.dtype)
    edit.initialised = True
    return edit


# -- what goes into an adapter ---------------------------------------------------------------------------------------

Made = tuple[dict[str, Tensor], Any, tuple[str, ...], dict[str, int]]
"""Tensors by name, peft's configuration, layers, ranks."""


def _lora(subject: Subject) -> Made:
    """Each changed W_O as W + B·A."""
    from peft import LoraConfig

    base, changes = subject.base, _changes(subject, affine(subject.edit))
    names, biased = _o_proj_names(base), any(map(_shifts, changes.values()))
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for layer in sorted(changes) or [0]:
        module: Any = base.o_proj(layer)
        require_plain(module, names[layer])
        change = changes.get(layer, Change())
        down, up, offset = _factors(module, change)
        ranks[f"L{layer}"] = len(down)
        tensors[f"{names[layer]}.lora_A.weight"] = down.to(_at_least_float32(module))
        # Columns of W_O are what they are in its own dtype; everything else would lose by that.
        exact = torch.equal(up.to(module.weight.dtype).double(), up)
        tensors[f"{names[layer]}.lora_B.weight"] = up.to(module.weight.dtype if exact else _at_least_float32(module))
        if biased:
            tensors[f"{names[layer]}.lora_B.bias"] = offset.to(_at_least_float32(module))
    patterns = {names[int(label[1:])]: rank for label, rank in ranks.items()}
    config = LoraConfig(
        r=max(ranks.values()),
        lora_alpha=max(ranks.values()),  # so that B·A is multiplied by 1
        rank_pattern=patterns,
        alpha_pattern=dict(patterns),
        target_modules=list(patterns),
        lora_bias=biased,
        fan_in_fan_out=not isinstance(base.o_proj(0), nn.Linear),
    )
    return tensors, config, tuple(ranks), ranks


def _of_lora(subject: Subject) -> Made:
    """A trained LoRA, which is one already."""
    from peft import LoraConfig

    edit = subject.edit
    assert isinstance(edit, LoRA)
    held = {f"{name[2:]}.lora_{name[0]}.weight": value for name, value in edit.tensors().items()}
    plain = all(isinstance(subject.base.hf.get_submodule(name), nn.Linear) for name in edit.sizes)
    config = LoraConfig(
        r=edit.r,
        lora_alpha=edit.alpha,  # type: ignore[arg-type]
        target_modules=list(edit.sizes),
        fan_in_fan_out=not plain,
    )
    return held, config, labels(edit.sizes), dict.fromkeys(edit.sizes, edit.r)


def _ia3(subject: Subject) -> Made:
    """1 + g·m of every layer."""
    from peft import IA3Config

    base, changes = subject.base, _changes(subject, affine(subject.edit))
    if shifted := [layer for layer in sorted(changes) if _shifts(changes[layer])]:
        raise ExportError(
            f"IA3 multiplies and cannot add, and this edit has offsets (layer {shifted[0]}): kind='lora' holds them, "
            "kinds=['multiplicative'] leaves them out"
        )
    names = _o_proj_names(base)
    tensors = {}
    for layer, name in enumerate(names):
        inputs = changes.get(layer, Change()).inputs
        width = base.head_shape.heads * base.head_shape.d_head
        scale = torch.ones(width, dtype=torch.float64) if inputs is None else inputs.scale
        tensors[f"{name}.ia3_l"] = scale.to(_at_least_float32(base.o_proj(layer)))[None]
    short = _short(names, base.hf)
    config = IA3Config(
        target_modules=list(short),
        feedforward_modules=list(short),
        fan_in_fan_out=not isinstance(base.o_proj(0), nn.Linear),
    )
    return tensors, config, tuple(f"L{layer}" for layer in sorted(changes)), {}


def _changes(subject: Subject, points: Points) -> dict[int, Change]:
    """Layer to what is done before and behind W_O.

    Raises:
        ExportError: something is done elsewhere, or W_O's output is scaled.
    """
    found: dict[int, Change] = {}
    if subject.edit.on_weights:
        raise ExportError(
            f"{type(subject.edit).__name__} changes weights: only a LoRA alone can be written as an adapter"
        )
    for (layer, site), given in points.items():
        if site not in ("heads", "attention") or (site == "attention" and given.scales):
            raise ExportError(
                f"this edit acts at {site} (layer {layer}), and an adapter of W_O holds scales and offsets of heads "
                "and offsets of the attention's output: fold(run, path) may hold it"
            )
    for layer in sorted({layer for layer, _ in points}):
        found[layer] = Change(points.get((layer, "heads")), points.get((layer, "attention")))
    return found


def _shifts(change: Change) -> bool:
    return any(part is not None and part.shifts for part in (change.inputs, change.outputs))


def _factors(
    module: Any, change: Change
) -> tuple[Float[Tensor, "rank in"], Float[Tensor, "out rank"], Float[Tensor, " out"]]:
    """A, B and the bias with W' = W + B·A and b' = b + bias, in float64, of the smaller of two exact ranks: the number
    of scaled components, or of rows."""
    weight, bias = as_linear(module)
    new, shifted = folded(weight, bias, change)
    scale = weight.new_ones(weight.shape[1]) if change.inputs is None else change.inputs.scale
    columns = (scale != 1).nonzero()[:, 0]
    if len(columns) > len(weight):
        return new - weight, torch.eye(len(weight), dtype=torch.float64), shifted - bias
    columns = columns if len(columns) else columns.new_zeros(1)  # A is then 0: peft knows no rank 0
    down = weight.new_zeros(len(columns), weight.shape[1])
    down[torch.arange(len(columns)), columns] = scale[columns] - 1
    return down, weight[:, columns], shifted - bias


def _at_least_float32(module: Any) -> torch.dtype:
    return torch.promote_types(module.weight.dtype, torch.float32)


def _o_proj_names(base: Model) -> list[str]:
    """Names of W_O by layer, in the plain model."""
    return [base._path(f"blocks.{layer}.attn.o") for layer in range(base.head_shape.layers)]


def _short(names: list[str], hf: nn.Module) -> set[str]:
    """The end of their names that names them and nothing else: "o_proj", or "attn.c_proj"."""
    everything = [name for name, _ in hf.named_modules()]
    for parts in range(1, 4):
        ends = {".".join(name.split(".")[-parts:]) for name in names}
        # peft takes a name for one of these by its end, whether or not that begins at a dot.
        if sum(name.endswith(tuple(ends)) for name in everything) == len(names):
            return ends
    return set(names)


# -- files -----------------------------------------------------------------------------------------------------------


def _write_config(file: Path, config: Any, subject: Subject) -> None:
    """``adapter_config.json``, with the names in order."""
    recorded = subject.run.config["model"]
    config.base_model_name_or_path = recorded["source"] or recorded["name"]
    config.revision = subject.base.options.get("revision")
    config.task_type, config.inference_mode = "CAUSAL_LM", True
    config.save_pretrained(file.parent)
    content = json.loads(file.read_text(encoding="utf-8"))
    for name in ("target_modules", "feedforward_modules"):
        if isinstance(content.get(name), list):
            content[name] = sorted(content[name])
    _files.write_json(file, content)


def _read(source: Any) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    """(configuration, tensors) of an adapter."""
    if isinstance(source, str | Path):
        folder = Path(source).expanduser()
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"no adapter at {folder}: there is no {name}")
        return json.loads((folder / CONFIG).read_text(encoding="utf-8")), _files.read_tensors(folder / WEIGHTS)
    from peft import PeftModel, get_peft_model_state_dict

    if not isinstance(source, PeftModel):
        raise TypeError(f"source must be a directory or a PeftModel; got {type(source).__name__}")
    name = source.active_adapter
    return source.peft_config[name].to_dict(), get_peft_model_state_dict(
        source, adapter_name=name, save_embedding_layers=False
    )


def _checked(made: Export, subject: Subject, scratch: Path) -> Export:
    """``made`` with the comparison of what peft loads. Raises ExportError over a bound."""
    from peft import PeftModel

    base = subject.base
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`lora_bias=True` was passed")  # said in `to_peft`
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # peft asks for it
        loaded: Any = PeftModel.from_pretrained(_shared(base.hf), str(scratch))
    exported = Model(loaded.get_base_model(), base.tokenizer, name=base.name)
    linear = _effective(made, base, _files.read_tensors(scratch / WEIGHTS))
    stored = torch.promote_types(base.dtype, torch.float32)
    found = compare(subject.run, subject.edit, base, exported, linear, stored)
    subject.require(found)
    return replace(made, check=found)


def _effective(made: Export, base: Model, tensors: Mapping[str, Tensor]) -> Callable[[int], Linear]:
    """Layer to W + B·A and b + bias, or W·diag(ia3_l), of what was written."""
    names = _o_proj_names(base)

    def linear(layer: int) -> Linear:
        weight, bias = as_linear(base.o_proj(layer))
        own = {
            key.removeprefix(f"{_PREFIX}{names[layer]}."): value.double()
            for key, value in tensors.items()
            if key.startswith(f"{_PREFIX}{names[layer]}.")
        }
        if made.kind == "ia3":
            one = torch.ones_like(weight[0])
            return folded(weight, bias, Change(inputs=Affine(own["ia3_l"][0], torch.zeros_like(one))))
        if not own:
            return weight, bias
        offset = own.get("lora_B.bias", torch.zeros_like(bias))
        return weight + own["lora_B.weight"] @ own["lora_A.weight"], bias + offset

    return linear


def _shared(hf: Any) -> Any:
    """Another model of the same tensors, for peft to change: it wraps modules in place."""
    memo = {id(tensor): tensor for tensor in (*hf.parameters(), *hf.buffers())}
    return copy.deepcopy(hf, memo)
