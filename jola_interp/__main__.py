"""``python -m jola_interp`` is the command line."""

from jola_interp.cli import main

main()
