"""The command line: ``caplet``. Thin over :mod:`caplet.api`; one file per sub-command; nothing heavy is imported."""

from caplet.cli.main import main

__all__ = ["main"]
