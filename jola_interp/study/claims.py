"""Claims: who runs a cell. Of any number of processes on one file system at most one gets a cell.

A claim is a file ``claim-<generation>.json``, made by an exclusive create, touched by its holder as a heartbeat, and
never removed or rewritten. The holder is that of the highest generation. A claim is free once its holder has let go,
has died (seen at once on its own machine), or has not been heard of for ``takeover`` seconds; taking it over is
an exclusive create of the NEXT generation. Two processes that both find generation n stale therefore try to create the
same file, and one of them fails; a process that finds n stale late, when n + 1 is there, fails too. Nothing is
renamed or unlinked on the way, which is where takeovers usually let two win.
"""

from __future__ import annotations

import json
import os
import platform
import re
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

TAKEOVER = 600.0
"""Seconds without a heartbeat after which a claim is free."""
BEATS = 20
"""Heartbeats in that time."""
LONGEST = 30.0
"""Seconds between two heartbeats, at most."""
_NAME = re.compile(r"claim-(\d+)\.json")
_HELD: set[str] = set()
"""Owners that this process holds claims as: one that is not here belongs to an attempt that is over."""


class ClaimLostError(RuntimeError):
    """Another process has taken the cell over while this one was suspended, or cut off from the disk."""


@dataclass(frozen=True)
class Holder:
    """What the newest claim on a cell says.

    Attributes:
        generation: how often the cell was claimed before.
        owner: one per claim.
        host, machine, pid, process: where it runs; ``machine`` tells two containers of one name apart, and ``process``
            two processes that had one id after each other.
        since: when it was claimed, in seconds since 1970 by its own clock.
        takeover: seconds without a heartbeat after which it is free.
        age: seconds since the last heartbeat; infinite once it has let go.
    """

    generation: int
    owner: str
    host: str
    machine: str
    pid: int
    process: str
    since: float
    takeover: float
    age: float

    @property
    def alive(self) -> bool:
        """Whether the cell is taken."""
        return self.age < self.takeover and not self.dead

    @property
    def dead(self) -> bool:
        """Whether its process is known to be gone; False where this machine cannot tell."""
        if self.machine != machine():
            return False
        if self.pid == os.getpid():
            return self.owner not in _HELD
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # another user's, whose /proc may be hidden from us
            return False
        return process(self.pid) != self.process


class Claim:
    """A claim that this process holds, in ``with``: it beats until the block ends, then lets go."""

    def __init__(self, path: Path, generation: int, owner: str, takeover: float):
        self.path, self.generation, self.owner, self.takeover = path, generation, owner, takeover
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name=f"heartbeat {path.parent.name}")

    @property
    def lost(self) -> bool:
        """Whether another process has taken it over."""
        return path_of(self.path.parent, self.generation + 1).exists()

    def check(self) -> None:
        """Raises ClaimLostError where another process has taken it over."""
        if self.lost:
            raise ClaimLostError(f"{self.path.parent.name}: taken over by another process after {self.takeover:g} s")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        _HELD.discard(self.owner)
        # A heartbeat in 1970 needs no space on a full disk, and leaves no moment without the file.
        with suppress(OSError):
            os.utime(self.path, (0, 0))

    def _beat(self) -> None:
        while not self._over.wait(min(self.takeover / BEATS, LONGEST)):
            with suppress(OSError):  # a disk that is away for a while is no reason to die
                os.utime(self.path)


def acquire(folder: Path, takeover: float = TAKEOVER) -> Claim | None:
    """Claim the cell whose directory this is; None where another holds it, or was quicker.

    The winner must look again whether the cell is still to be done: the claim before may have ended well just now.

    Raises:
        OSError: the directory cannot be written to.
    """
    holder = latest(folder)
    if holder is not None and holder.alive:
        return None
    return _create(folder, 0 if holder is None else holder.generation + 1, takeover)


def latest(folder: Path) -> Holder | None:
    """The newest claim on a cell, held or not; None where it was never claimed."""
    try:
        found = [int(match[1]) for match in map(_NAME.fullmatch, os.listdir(folder)) if match]
    except FileNotFoundError:
        return None
    return _read(folder, max(found)) if found else None


def path_of(folder: Path, generation: int) -> Path:
    """The file of a claim."""
    return folder / f"claim-{generation}.json"


def _read(folder: Path, generation: int) -> Holder:
    path = path_of(folder, generation)
    beat = path.stat().st_mtime
    content: Mapping[str, Any] = {}
    with suppress(ValueError):  # it is being written just now
        content = json.loads(path.read_text(encoding="utf-8"))
    return Holder(
        generation=generation,
        owner=str(content.get("owner", "")),
        host=str(content.get("host", "")),
        machine=str(content.get("machine", "")),
        pid=int(content.get("pid", 0)),
        process=str(content.get("process", "")),
        since=float(content.get("since", beat)),
        takeover=float(content.get("takeover", TAKEOVER)),
        age=float("inf") if beat == 0 else _now(folder) - beat,
    )


def _create(folder: Path, generation: int, takeover: float) -> Claim | None:
    path, owner = path_of(folder, generation), uuid.uuid4().hex
    content = {
        "owner": owner, "host": platform.node(), "machine": machine(), "pid": os.getpid(),
        "process": process(os.getpid()), "since": round(time.time(), 3), "takeover": takeover,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    _HELD.add(owner)
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except BaseException as error:
        _HELD.discard(owner)
        if isinstance(error, FileExistsError):
            return None
        raise
    try:
        with os.fdopen(handle, "wb") as file:
            file.write((json.dumps(content) + "\n").encode())
    except BaseException:
        _HELD.discard(owner)
        with suppress(OSError):  # nobody has built on it: it is the newest, and fresh
            os.utime(path, (0, 0))
        raise
    return Claim(path, generation, owner, takeover)


def _now(folder: Path) -> float:
    """The file system's time, which on a shared disk is the server's; ours where nothing can be written."""
    try:
        with tempfile.NamedTemporaryFile(prefix=".clock-", dir=folder) as probe:
            return os.fstat(probe.fileno()).st_mtime
    except OSError:
        return time.time()


@cache
def machine() -> str:
    """What two processes must share for one to know whether the other lives: boot and process-id space, or the host."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def process(pid: int) -> str:
    """The start of a process in clock ticks since boot; "" of one that is gone, and where there is no ``/proc``."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]  # a zombie runs nothing any more
