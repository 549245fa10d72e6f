"""Files that hold named tensors: checked before they are trusted, mapped into memory rather than read."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from calotype.core.errors import ModelFilesError
from calotype.core.pickles import read_pickle
from calotype.core.safetensors_header import TensorInfo, read_header

if TYPE_CHECKING:
    import torch

    from calotype.core.sending import Job, Sender

_WINDOW = 128 * 2**20  # bytes of tensors that share one mapping

_SENT = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
"""Name of a dtype in a safetensors file -> PyTorch's, of those that :func:`send_tensors` takes."""


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
    used. There is one mapping for every 128 MiB of tensors, whose pages go when the last of them goes: so what is
    copied, now or later, is in memory once and not twice.
    """
    if path.suffix == ".safetensors":
        yield from _read_safetensors(path, names, convert)
        return
    state = read_pickle(path)
    for name in names:
        yield name, convert(name, state.pop(name))


def can_be_sent(infos: Mapping[str, TensorInfo]) -> bool:
    """Whether :func:`send_tensors` takes these: of a safetensors file, in types that PyTorch converts."""
    return all(info.begin is not None and info.dtype in _SENT for info in infos.values())


def send_tensors(
    path: Path,
    infos: Mapping[str, TensorInfo],
    dtype_of: Callable[[str, torch.dtype], torch.dtype],
    sender: Sender,
) -> dict[str, torch.Tensor]:
    """The tensors ``infos`` of a safetensors file on an accelerator, filled by the time that ``sender`` ends.

    ``dtype_of(name, stored)`` says what each is converted to there.
    """
    import torch

    from calotype.core.sending import Job

    source = sender.open(path)
    sent: dict[str, torch.Tensor] = {}

    def jobs() -> Iterator[Job]:
        for name, info in sorted(
            infos.items(), key=lambda item: item[1].begin or 0
        ):  # as they lie in the file
            stored = getattr(torch, _SENT[info.dtype])
            sent[name] = torch.empty(info.shape, dtype=dtype_of(name, stored), device=sender.device)
            yield Job(sent[name], source, info.begin or 0, stored)

    sender.send(jobs())
    return sent


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
            spent += stored.nbytes
            del stored
            yield name, result
    except SafetensorError as error:
        raise ModelFilesError(f"{path} is a damaged safetensors file: {error}. Download it again.") from error


def human_size(count: float) -> str:
    """A number of bytes as people write it: ``"1.7 GB"``."""
    power = min(int(math.log10(count) // 3), 4) if count >= 1000 else 0
    number = count / 1000**power
    return f"{number:.0f} B" if power == 0 else f"{number:.1f} {' KMGT'[power]}B"
