"""Files that hold named tensors: checked before they are trusted, mapped into memory rather than read."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from calotype.core.errors import ModelFilesError
from calotype.core.pickles import read_pickle
from calotype.core.safetensors_header import TensorInfo, read_header

if TYPE_CHECKING:
    import torch

_WINDOW = 128 * 2**20  # bytes converted through one mapping before it is dropped


def tensor_infos(path: Path) -> dict[str, TensorInfo]:
    """The tensors that a file holds, in either format by the file's ending; ``ModelFilesError`` if it is damaged."""
    if path.suffix == ".safetensors":
        return read_header(path)
    return {
        name: TensorInfo(tuple(value.shape), str(value.dtype), value.nbytes)
        for name, value in read_pickle(path).items()
    }


def read_tensors(
    path: Path, names: Iterable[str], convert: Callable[[str, torch.Tensor], torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The named tensors of a file, each passed through ``convert(name, tensor)``.

    A tensor that ``convert`` returns unchanged stays a view of the mapped file, which costs no memory until it is
    used. The pages behind those that it copies are let go every 128 MiB, so that the peak is what is kept.
    """
    if path.suffix == ".safetensors":
        yield from _read_safetensors(path, names, convert)
        return
    state = read_pickle(path)
    for name in names:
        yield name, convert(name, state.pop(name))


def _read_safetensors(
    path: Path, names: Iterable[str], convert: Callable[[str, torch.Tensor], torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    from safetensors import SafetensorError, safe_open

    handle, spent = None, 0
    try:
        for name in names:
            if handle is None or spent > _WINDOW:
                handle, spent = safe_open(os.fspath(path), framework="pt"), 0
            stored = handle.get_tensor(name)
            result = convert(name, stored)
            spent += 0 if result is stored else stored.nbytes
            del stored
            yield name, result
    except SafetensorError as error:
        raise ModelFilesError(f"{path} is a damaged safetensors file: {error}. Download it again.") from error


def human_size(count: float) -> str:
    """A number of bytes as people write it: ``"1.7 GB"``."""
    power = min(int(math.log10(count) // 3), 4) if count >= 1000 else 0
    number = count / 1000**power
    return f"{number:.0f} B" if power == 0 else f"{number:.1f} {' KMGT'[power]}B"
