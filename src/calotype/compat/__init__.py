"""Run programs that were written for Diffusers: their imports are answered with calotype's names.

``python -m calotype.compat SCRIPT.py …`` runs a script so, and :func:`install` does it for the process that calls it.
"""

from __future__ import annotations

import sys
from types import ModuleType

from calotype.compat.finder import Finder
from calotype.compat.names import REFERENCE

__all__ = ["install", "uninstall"]

_finder = Finder()
_shadowed: dict[str, ModuleType] = {}
"""The reference's own modules while ours stand in their place."""


def install() -> None:
    """Answer ``import diffusers`` and what lies beneath with calotype's names, in this process from now on.

    An installed Diffusers is shadowed; modules that hold names of it already keep them. A name that calotype lacks is
    an ``ImportError`` that says so. Doing it twice changes nothing.
    """
    if _finder in sys.meta_path:
        return
    _shadowed.update(_take_out())
    sys.meta_path.insert(0, _finder)


def uninstall() -> None:
    """Undo :func:`install`: imports of Diffusers find what they found before."""
    if _finder not in sys.meta_path:
        return
    sys.meta_path.remove(_finder)
    _take_out()
    sys.modules.update(_shadowed)
    _shadowed.clear()


def _take_out() -> dict[str, ModuleType]:
    names = [name for name in sys.modules if name == REFERENCE or name.startswith(f"{REFERENCE}.")]
    return {name: sys.modules.pop(name) for name in names}
