"""Edits: what is done to activations, apart from any model."""

from jola_interp.edits.base import Context, Edit, HeadShape
from jola_interp.edits.head_gates import HeadGates
from jola_interp.edits.jola import JoLA

__all__ = ["Context", "Edit", "HeadGates", "HeadShape", "JoLA"]
