"""The command ``calotype``."""

from __future__ import annotations

import importlib.util
import sys


def main() -> None:
    """Run the command line, or say what to install for it."""
    missing = [name for name in ("typer", "rich") if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"The command line needs {' and '.join(missing)}: pip install 'calotype[cli]'.")
    from calotype.cli.app import app

    app()
