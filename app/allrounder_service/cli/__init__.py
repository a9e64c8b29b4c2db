"""The `allrounder` command: thin entry points, one file each."""

from allrounder_service.cli.main import main

__all__ = ["main"]
