"""``python -m calotype.compat SCRIPT.py …``: run a script that was written for Diffusers."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from calotype.compat import install


def main(arguments: list[str]) -> int:
    """Run the script that ``arguments`` begin with as the main program, with the rest as its arguments."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m calotype.compat SCRIPT.py [ARGUMENTS …]", file=sys.stderr)
        return 0 if arguments else 2
    script = Path(arguments[0])
    if not script.is_file():
        print(f"There is no script {script}.", file=sys.stderr)
        return 2
    install()
    sys.argv = arguments
    sys.path[0] = str(script.resolve().parent)
    runpy.run_path(str(script), run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
