"""The header of a safetensors file: read, and checked in full before a byte of data is believed.

The file is a length (8 bytes, little-endian), a JSON object from each tensor's name to its dtype, shape and place, and
the data: https://github.com/huggingface/safetensors#format. A reader that trusts the places can be made to show the
same bytes as two tensors, or bytes that are no tensor's; so they must fill the data exactly.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from calotype.core.errors import ModelFilesError

MAX_HEADER = 100_000_000
"""The longest header that the format allows, in bytes."""

_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64,
    "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
"""Name of a dtype -> bits an element."""


class TensorInfo(NamedTuple):
    """What is known of a tensor without reading it; ``dtype`` as the file names it (``F32``, ``torch.float32``)."""

    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    begin: int | None = None
    """The byte of the file at which its data begins; ``None`` in a format that has no such place."""


class _Malformed(ValueError):
    """What is wrong with a header, as the end of a sentence."""


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors that a safetensors file holds; a ``ModelFilesError`` says in a sentence why it is not one."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(64)
        refuse_impostors(path, start, size)
        (length,) = struct.unpack("<Q", start[:8])
        if start[8:9] != b"{" and not 2 <= length <= MAX_HEADER:
            raise ModelFilesError(
                f"{path} is not a safetensors file: it does not begin with the length of a header."
            )
        if length > MAX_HEADER:
            raise ModelFilesError(
                f"{path} announces a header of {length:,} bytes; the format allows {MAX_HEADER:,}: the file is damaged "
                f"or made to exhaust the memory; download it again from where it was published."
            )
        if 8 + length > size:
            raise ModelFilesError(
                f"{path} ends before its header does (the header takes {length} bytes, the whole file has {size}): "
                f"it is cut off or not a safetensors file; download it again."
            )
        file.seek(8)
        header = file.read(length)
    try:
        places = _parse(header)
        end = max((end for *_, end in places.values()), default=0)
        if 8 + length + end > size:
            raise ModelFilesError(
                f"{path} is cut off: its header announces {8 + length + end} bytes and it has {size}; download it "
                f"again."
            )
        _check_places({name: (begin, end) for name, (_, begin, end) in places.items()}, size - 8 - length)
    except (ValueError, RecursionError) as error:
        if isinstance(error, ModelFilesError):
            raise
        raise ModelFilesError(
            f"{path} is not a safetensors file: its header cannot be read ({error}); download it again."
        ) from error
    return {name: info._replace(begin=8 + length + begin) for name, (info, begin, _) in places.items()}


def _parse(header: bytes) -> dict[str, tuple[TensorInfo, int, int]]:
    """Name -> (tensor, first byte, byte after the last), of entries that are each sound."""
    entries = json.loads(header, object_pairs_hook=_without_duplicates)
    if not isinstance(entries, dict):
        raise _Malformed(f"it is a JSON {type(entries).__name__}, not an object")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _Malformed("its __metadata__ does not map names to texts")
    return {name: _entry(name, entry) for name, entry in entries.items()}


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise _Malformed(f"it has the key {twice!r} twice")
    return result


def _entry(name: str, entry: Any) -> tuple[TensorInfo, int, int]:
    if not isinstance(entry, Mapping) or not {"dtype", "shape", "data_offsets"} <= set(entry):
        raise _Malformed(f"the entry {name!r} is not a dtype, a shape and two offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise _Malformed(f"{name!r} has the unknown dtype {dtype!r}")
    if not _naturals(shape):
        raise _Malformed(f"{name!r} has the shape {shape!r}")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _Malformed(f"{name!r} has the offsets {offsets!r}")
    bits = math.prod(shape) * _BITS[dtype]
    begin, end = offsets
    if bits != (end - begin) * 8:
        raise _Malformed(
            f"{name!r} of shape {shape} in {dtype} takes {bits / 8:,.0f} bytes, and its offsets give it {end - begin:,}"
        )
    return TensorInfo(tuple(shape), dtype, end - begin), begin, end


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in value
    )


def _check_places(places: Mapping[str, tuple[int, int]], size: int) -> None:
    """The tensors must follow one another without a gap from the first byte of the data to the last."""
    reached, before = 0, "the header"
    for name, (begin, end) in sorted(places.items(), key=lambda item: item[1]):
        if begin < reached:
            raise _Malformed(f"the tensors {before!r} and {name!r} overlap")
        if begin > reached:
            raise _Malformed(f"{begin - reached:,} bytes before {name!r} belong to no tensor")
        reached, before = end, name
    if reached < size:
        raise _Malformed(f"{size - reached:,} bytes at its end belong to no tensor")


def refuse_impostors(path: Path, start: bytes, size: int) -> None:
    """Recognises by its first bytes what usually stands in the place of weights by mistake."""
    if size == 0:
        raise ModelFilesError(f"{path} is empty; download it again.")
    if start.startswith(b"version https://git-lfs"):
        raise ModelFilesError(
            f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` in its folder, or download the file."
        )
    if start[8:9] == b"{":  # a header; the length before it may begin with any bytes
        return
    if start[:4] == b"PK\x03\x04" or start[:1] == b"\x80":
        raise ModelFilesError(
            f"{path} is a PyTorch pickle with the name of a safetensors file; rename or convert it."
        )
    if start.lstrip()[:1] == b"<":
        raise ModelFilesError(f"{path} is a web page, not weights: a download went wrong; download it again.")
    if size < 8:
        raise ModelFilesError(
            f"{path} is not a safetensors file: it has only {size} bytes; download it again."
        )
