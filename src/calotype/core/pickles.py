"""PyTorch pickles, read only on request and without running what is in them."""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calotype.core.errors import ModelFilesError
from calotype.core.safetensors_header import refuse_impostors

if TYPE_CHECKING:
    import torch

SAFE_TORCH = (2, 10)
"""The first PyTorch whose ``weights_only`` reader has no known way to run code."""

MAX_PROGRAM = 256 * 2**20
"""The most that the pickle inside of an archive, which only names tensors, may take, in bytes."""


def read_pickle(path: Path, *, nested: bool = False) -> dict[str, torch.Tensor]:
    """The state dictionary in a PyTorch pickle, also where it stands under ``state_dict``.

    With ``nested`` it may be one of state dictionaries, whose names then stand before those inside, as ``outer.inner``.

    Raises ``ModelFilesError`` if the file is none, if reading it would run code, or with a PyTorch that is too old to
    be sure of that.
    """
    import torch

    state = read_values(path)
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if nested and isinstance(state, Mapping):
        state = flattened(state)
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelFilesError(f"{path} does not hold a mapping from names to tensors.")
    return dict(state)


def read_values(path: Path) -> Any:
    """What a pickle holds: tensors, numbers, texts and collections of them; refused as by :func:`read_pickle`."""
    import torch

    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(64)
    if size == 0 or start.startswith(b"version https://git-lfs") or start.lstrip()[:1] == b"<":
        refuse_impostors(path, start, size)
    if _version(torch.__version__) < SAFE_TORCH:
        raise ModelFilesError(
            f"{path} is a pickle, which PyTorch {torch.__version__} may be made to run code by: install PyTorch "
            f"{'.'.join(map(str, SAFE_TORCH))} or newer, or take the weights as safetensors."
        )
    archive = _checked_archive(path, size)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except (
        pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError,
        AssertionError, OSError, MemoryError, OverflowError, NotImplementedError, struct.error,
    ) as error:  # fmt: skip
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelFilesError(
            f"{path} is not a PyTorch state dictionary that can be read safely: {reason}"
        ) from error


def flattened(state: Mapping[Any, Any]) -> dict[Any, Any]:
    """A mapping of mappings as one: the names outside stand before those inside, as ``outer.inner``."""
    flat: dict[Any, Any] = {}
    for name, value in state.items():
        flat |= (
            {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, Mapping) else {name: value}
        )
    return flat


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


def _checked_archive(path: Path, size: int) -> bool:
    """Whether the file is an archive; those that unpack to more than they are are refused, as PyTorch writes none."""
    try:
        if not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ModelFilesError(f"{path} is a damaged archive ({error}); download it again.") from error
    unpacked = sum(entry.file_size for entry in entries)
    packed = [entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if packed or unpacked > size:
        raise ModelFilesError(
            f"{path} is refused: its {size:,} bytes unpack to {unpacked:,}, and PyTorch writes weights uncompressed; "
            f"it is a zip bomb or not a file of weights. Take the weights as safetensors."
        )
    program = max((entry.file_size for entry in entries if entry.filename.endswith(".pkl")), default=0)
    if program > MAX_PROGRAM:
        raise ModelFilesError(
            f"{path} is refused: the list of its tensors alone takes {program:,} bytes; take the weights as "
            f"safetensors."
        )
    return True
