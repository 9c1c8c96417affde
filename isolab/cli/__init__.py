"""The command ``isolab``."""

from isolab.cli.main import app

__all__ = ["app"]
