"""All benchmarks, or those that are named, one after another in processes of their own.

python -m benchmarks                    # everything that takes minutes, not hours
python -m benchmarks imports loading    # these
"""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

import benchmarks

ON_REQUEST = {
    "pocket_quality": "draws 200 pictures with the bundled checkpoint",
    "gpu": "needs a GPU with some 40 GB, and four minutes of it",
    "soak_gpu": "needs a GPU",
    "calls_gpu": "needs a GPU with some 20 GB",
    "video_gpu": "needs a GPU with some 40 GB",
}
"""Benchmarks that run only when they are named, and why."""


def available() -> list[str]:
    """The names of the benchmarks."""
    return sorted(m.name for m in pkgutil.iter_modules(benchmarks.__path__) if not m.name.startswith("_"))


def main() -> int:
    wanted = sys.argv[1:] or [name for name in available() if name not in ON_REQUEST]
    unknown = [name for name in wanted if name not in available()]
    if unknown:
        print(
            f"There is no benchmark {', '.join(unknown)}; there are {', '.join(available())}.",
            file=sys.stderr,
        )
        return 2
    failed = []
    for name in wanted:
        command = [sys.executable, "-m", f"benchmarks.{name}"]
        if subprocess.run(command, cwd=Path(benchmarks.__file__).parents[1]).returncode:
            failed.append(name)
    if not sys.argv[1:]:
        for name in sorted(ON_REQUEST.keys() & set(available())):
            print(f"\nNot run: {name}, which {ON_REQUEST[name]}; python -m benchmarks {name}")
    if failed:
        print(f"\nFailed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
