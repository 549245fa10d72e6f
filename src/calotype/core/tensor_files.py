"""Files that hold named tensors: checked before they are trusted, mapped into memory rather than read."""

from __future__ import annotations

import json
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from calotype.core.errors import ModelFilesError

if TYPE_CHECKING:
    import torch

MAX_HEADER = 100_000_000
"""The longest header that the safetensors format allows, in bytes."""

_WINDOW = 128 * 2**20  # bytes converted through one mapping before it is dropped


class TensorInfo(NamedTuple):
    """What is known of a tensor without reading it; ``dtype`` as the file names it (``F32``, ``torch.float32``)."""

    shape: tuple[int, ...]
    dtype: str
    nbytes: int


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors that a safetensors file holds; a ``ModelFilesError`` says in a sentence why it is not one."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(64)
        _refuse_impostors(path, start, size)
        (length,) = struct.unpack("<Q", start[:8])
        if not 2 <= length <= MAX_HEADER:
            raise ModelFilesError(
                f"{path} is not a safetensors file: it does not begin with the length of a header."
            )
        if 8 + length > size:
            raise ModelFilesError(
                f"{path} ends before its header does (the header takes {length} bytes, the whole file has {size}): "
                f"it is cut off or not a safetensors file; download it again."
            )
        file.seek(8)
        header = file.read(length)
    try:
        entries = json.loads(header)
        infos = {
            name: TensorInfo(tuple(entry["shape"]), entry["dtype"], _extent(entry["data_offsets"]))
            for name, entry in entries.items()
            if name != "__metadata__"
        }
        end = max(
            (entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"), default=0
        )
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        raise ModelFilesError(
            f"{path} is not a safetensors file: its header cannot be read ({error})."
        ) from error
    if 8 + length + end > size:
        raise ModelFilesError(
            f"{path} is cut off: its header announces {8 + length + end} bytes and it has {size}; download it again."
        )
    return infos


def _extent(offsets: Iterable[int]) -> int:
    begin, end = offsets
    return end - begin


def _refuse_impostors(path: Path, start: bytes, size: int) -> None:
    """Recognises what usually stands in the place of weights by mistake."""
    if size == 0:
        raise ModelFilesError(f"{path} is empty; download it again.")
    if start.startswith(b"version https://git-lfs"):
        raise ModelFilesError(
            f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` in its folder, or download the file."
        )
    # the length of a safetensors header may begin with pickle's first byte, but the header itself with a brace
    if start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[8:9] != b"{"):
        raise ModelFilesError(
            f"{path} is a PyTorch pickle with the name of a safetensors file; rename or convert it."
        )
    if start.lstrip()[:1] == b"<":
        raise ModelFilesError(f"{path} is a web page, not weights: a download went wrong; download it again.")
    if size < 8:
        raise ModelFilesError(
            f"{path} is not a safetensors file: it has only {size} bytes; download it again."
        )


def tensor_infos(path: Path) -> dict[str, TensorInfo]:
    """As :func:`read_header`, for either format by the file's ending."""
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


def read_pickle(path: Path) -> dict[str, torch.Tensor]:
    """The state dictionary in a PyTorch pickle, read without running any code in it."""
    import torch

    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(64)
    if size == 0 or start.startswith(b"version https://git-lfs") or start.lstrip()[:1] == b"<":
        _refuse_impostors(path, start, size)
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ModelFilesError(
            f"{path} is not a PyTorch state dictionary that can be read safely: {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelFilesError(f"{path} does not hold a mapping from names to tensors.")
    return dict(state)


def human_size(count: float) -> str:
    """A number of bytes as people write it: ``"1.7 GB"``."""
    power = min(int(math.log10(count) // 3), 4) if count >= 1000 else 0
    number = count / 1000**power
    return f"{number:.0f} B" if power == 0 else f"{number:.1f} {' KMGT'[power]}B"
