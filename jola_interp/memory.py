"""How much memory a training takes at its highest."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """The highest memory since this was made: of the GPU's tensors, or of the whole process on a CPU.

    On a CPU it is the resident set, base model and libraries among it, which Linux alone lets one start anew; the
    allocator may keep what earlier work gave back, so that only Runs made in one way compare.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._known = True
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            self._known = device.type == "cpu" and _start_anew()

    def read(self) -> int | None:
        """Bytes; None where this system does not tell."""
        if not self._known:
            return None
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        with suppress(OSError):
            for line in _STATUS.read_text(encoding="ascii").splitlines():
                if line.startswith("VmHWM:"):
                    return 1024 * int(line.split()[1])
        return None


def _start_anew() -> bool:
    """Set the process's highest resident set to what it is now."""
    try:
        _RESET.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True
