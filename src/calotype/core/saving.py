"""State dictionaries into files: atomically, in shards of a given size, without leftovers of an older save."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from calotype.core.errors import InputError
from calotype.core.files import replacing, write_text
from calotype.core.weights import WEIGHTS_STEM, with_variant

_UNITS = {
    "": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


def parse_size(size: int | str) -> int:
    """Bytes from ``"10GB"`` (powers of 1000), ``"2GiB"`` (of 1024) or a number; ``InputError`` otherwise."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(size))
    unit = _UNITS.get(match[2].upper()) if match else None
    count = int(float(match[1]) * unit) if match and unit else 0
    if count <= 0:
        raise InputError(
            f"{size!r} is not a size: give a number of bytes or a string such as '5GB' or '500MB'."
        )
    return count


def plan_shards(state: Mapping[str, torch.Tensor], limit: int) -> list[dict[str, torch.Tensor]]:
    """The state in its order, cut into pieces of at most ``limit`` bytes; a larger tensor has a piece of its own."""
    shards: list[dict[str, torch.Tensor]] = [{}]
    filled = 0
    for name, tensor in state.items():
        if shards[-1] and filled + tensor.nbytes > limit:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.nbytes
    return shards


def save_state(
    state: Mapping[str, torch.Tensor],
    folder: Path,
    *,
    stem: str = WEIGHTS_STEM,
    variant: str | None = None,
    safe_serialization: bool = True,
    max_shard_size: int | str = "10GB",
    save_function: Callable[[Mapping[str, torch.Tensor], Path], Any] | None = None,
) -> tuple[Path, ...]:
    """Write a state dictionary as the reference lays it out; returns the weight files.

    Every file appears whole or not at all. The files of an older save of the same variant and format that the new
    one does not have are removed at the end. ``save_function(state, path)``, if given, writes each file.
    """
    ending = "safetensors" if safe_serialization else "bin"
    limit = parse_size(max_shard_size)
    shards = plan_shards(state, limit)
    name = with_variant(f"{stem}.{ending}", variant)
    base = name.removesuffix(f".{ending}")
    if len(shards) == 1:
        names = [name]
    else:
        names = [f"{base}-{i:05d}-of-{len(shards):05d}.{ending}" for i in range(1, len(shards) + 1)]
    index = folder / with_variant(f"{stem}.{ending}.index.json", variant)

    write = save_function or (_write_safetensors if safe_serialization else _write_pickle)
    with _all_or_none(folder, names) as temporary:
        for shard, path in zip(shards, temporary, strict=True):
            write(_independent(shard), path)
    if len(shards) > 1:
        weight_map = {key: file for file, shard in zip(names, shards, strict=True) for key in shard}
        total = sum(tensor.nbytes for tensor in state.values())
        content = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_text(index, json.dumps(content, indent=2, sort_keys=True) + "\n")

    ours = re.compile(re.escape(base) + r"(-\d{5}-of-\d{5})?\." + ending)
    stale = [file for file in folder.iterdir() if ours.fullmatch(file.name) and file.name not in names]
    if len(shards) == 1:
        stale.append(index)
    for file in stale:
        file.unlink(missing_ok=True)
    return tuple(folder / file for file in names)


@contextmanager
def _all_or_none(folder: Path, names: list[str]) -> Iterator[list[Path]]:
    """Temporary paths for all the files, which take their places only once every one of them is written."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield [stack.enter_context(replacing(folder / name)) for name in names]


def _independent(shard: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous tensors; one that stands under several names is written once for each."""
    seen: set[tuple[int, int]] = set()
    result = {}
    for name, tensor in shard.items():
        place = (tensor.data_ptr(), tensor.nbytes)
        result[name] = tensor.detach().clone() if place in seen else tensor.detach()
        result[name] = result[name].contiguous()
        seen.add(place)
    return result


def _write_safetensors(shard: Mapping[str, torch.Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    save_file(dict(shard), path, metadata={"format": "pt"})


def _write_pickle(shard: Mapping[str, torch.Tensor], path: Path) -> None:
    # a view of a larger storage would drag all of that storage into the pickle
    torch.save(
        {k: v if v.untyped_storage().nbytes() == v.nbytes else v.clone() for k, v in shard.items()}, path
    )
