"""Export: a trained edit as weights that need no jola_interp: a plain checkpoint, or an adapter of the peft library.

    from jola_interp import export
    export.fold(run, "checkpoint")              # a Hugging Face checkpoint with the edit in its weights
    export.to_peft(run, "adapter")              # a LoRA on the output projections, beside the base model

Both are compared with the edited model before anything is left at the path, and refused where they differ.
"""

from jola_interp.export.adapters import from_peft, to_peft
from jola_interp.export.checking import Check
from jola_interp.export.folding import fold
from jola_interp.export.written import Export, ExportError

__all__ = ["Check", "Export", "ExportError", "fold", "from_peft", "to_peft"]
