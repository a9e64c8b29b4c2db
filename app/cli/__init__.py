"""The `allrounder` command: thin entry points, one file each."""

from app.cli.main import main

__all__ = ["main"]
