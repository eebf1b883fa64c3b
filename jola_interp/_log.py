"""The package's logger: quiet libraries stay quiet, ours says in one line what it decided."""

from __future__ import annotations

import logging

logger = logging.getLogger("jola_interp")


def default_verbosity() -> None:
    """INFO, unless logging has been set up already."""
    if logger.level == logging.NOTSET and not logger.handlers and not logging.getLogger().handlers:
        set_verbosity("INFO")


def set_verbosity(level: int | str) -> None:
    """Show messages of the package at ``level`` ("DEBUG", "INFO", "WARNING", … or a number) and above, on stderr.

    Raises:
        ValueError: an unknown level name.
    """
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("jola_interp: %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
    logger.setLevel(level.upper() if isinstance(level, str) else level)
