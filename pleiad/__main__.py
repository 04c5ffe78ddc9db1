"""``python -m pleiad`` is the ``pleiad`` command."""

from pleiad.command import main

main()
