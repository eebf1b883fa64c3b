"""Methods: every system that JoLA is compared with, by name, each made into an edit that ``fit`` trains."""

from jola_interp.methods.registry import method, methods
from jola_interp.methods.setup import Setup, Stage
from jola_interp.methods.table import Method, Methods

__all__ = ["Method", "Methods", "Setup", "Stage", "method", "methods"]
