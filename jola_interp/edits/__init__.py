"""Edits: what is done to activations or weights, apart from any model."""

from jola_interp.edits.base import Context, Edit, HeadShape
from jola_interp.edits.bitfit import BitFit
from jola_interp.edits.composite import Composite
from jola_interp.edits.full import FullFineTuning
from jola_interp.edits.head_gates import HeadGates
from jola_interp.edits.identity import Identity
from jola_interp.edits.jola import JoLA
from jola_interp.edits.lofit import HeadScales
from jola_interp.edits.lora import LoRA
from jola_interp.edits.red import RED
from jola_interp.edits.reft import ReFT
from jola_interp.edits.repe import Steering
from jola_interp.edits.subset import Subset

__all__ = [
    "RED", "BitFit", "Composite", "Context", "Edit", "FullFineTuning", "HeadGates", "HeadScales", "HeadShape",
    "Identity", "JoLA", "LoRA", "ReFT", "Steering", "Subset",
]  # fmt: skip
