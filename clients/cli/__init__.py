"""`workspace`: the API on the command line, for people and for programs (--json)."""

from clients.cli.app import main

__all__ = ["main"]
