"""Data in chunk files: one process writes them, others read those that are there and wait for those to come."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calotype.training.loop import TrainingError

DONE = "done"
"""An empty file that says that no more chunks come."""
VALIDATION = "validation.pt"


def chunk_name(number: int) -> str:
    """The file of a chunk."""
    return f"{number:05d}.pt"


def clear(folder: Path) -> None:
    """Make the folder, and take away chunks that were made earlier, of whatever settings."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in (folder / DONE, *folder.glob("*.pt")):
        path.unlink(missing_ok=True)


@dataclass
class ChunkFolder:
    """The chunks of a folder, in their order, as they are written."""

    folder: Path
    stage: str
    """the stage that writes them, for what is said if nobody does"""
    maker: Any = None
    """the process that writes them, if this one has started it"""
    patience: float = 0.0
    """seconds to wait for a process that was started elsewhere"""
    taken: int = 0
    complete: bool = False

    def fresh(self) -> list[Path]:
        """The chunks that have been written since the last call."""
        if self.complete:
            return []
        # looked at first: what is there afterwards is then all
        done = (self.folder / DONE).exists() or (self.maker is not None and not self.maker.is_alive())
        found = []
        while (path := self.folder / chunk_name(self.taken)).exists():
            found.append(path)
            self.taken += 1
        self.complete = done
        return found

    def wait(self, name: str) -> Path:
        """The path of a file that is being made. ``TrainingError`` if nobody makes it."""
        path, began = self.folder / name, time.monotonic()
        while not path.exists():
            at_work = self.maker is not None and self.maker.is_alive()
            if not at_work and time.monotonic() - began > self.patience:
                if path.exists():
                    break
                raise TrainingError(
                    f"There is no {path}: run the stage {self.stage} first, and see what it says."
                )
            time.sleep(0.2)
        return path
