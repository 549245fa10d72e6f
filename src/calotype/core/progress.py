"""Progress bars, and the one switch that silences them all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_shown = True


def show(shown: bool) -> None:
    """Switch the progress bars of the whole process on or off."""
    global _shown
    _shown = shown


def shown() -> bool:
    """Whether progress bars are shown at all."""
    return _shown


def progress_bar(iterable: Iterable[Any] | None = None, **options: Any) -> Any:
    """A ``tqdm`` bar (options are tqdm's) that draws nothing while bars are switched off."""
    from tqdm.auto import tqdm

    return tqdm(iterable, **{**options, "disable": not _shown or options.get("disable", False)})
