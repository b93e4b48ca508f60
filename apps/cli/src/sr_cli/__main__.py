"""``python -m sr_cli``: the same as ``sr-distill``, for launchers that start modules."""

from sr_cli.main import main

main()
