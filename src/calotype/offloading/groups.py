"""Group offloading: the public arguments of it, checked, as an accelerator."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from calotype.core.errors import InputError
from calotype.offloading.accelerator import Accelerator
from calotype.offloading.homes import Home, OnDisk, in_memory, in_pinned_memory
from calotype.offloading.pieces import Division, by_blocks, layers
from calotype.offloading.transfers import Streamed, Transfer

HOST = torch.device("cpu")
KINDS = ("block_level", "leaf_level")

Names = str | Collection[str] | None


@dataclass(frozen=True)
class Grouping:
    """How models are divided and brought; the fields are arguments of ``enable_group_offload``.

    Raises ``InputError`` for arguments that mean nothing or that this machine cannot follow.
    """

    onload_device: torch.device | str
    offload_device: torch.device | str = HOST
    offload_type: Any = "block_level"
    num_blocks_per_group: int | None = None
    non_blocking: bool = False
    use_stream: bool = False
    record_stream: bool = False
    low_cpu_mem_usage: bool = False
    offload_to_disk_path: str | os.PathLike[str] | None = None
    block_modules: Names = None
    exclude_kwargs: Names = None

    def __post_init__(self) -> None:
        kind = self.kind
        if kind not in KINDS:
            raise InputError(f"offload_type={kind!r} is not one of {', '.join(map(repr, KINDS))}.")
        size = self.num_blocks_per_group
        if kind == "block_level" and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
            raise InputError(
                f"offload_type='block_level' needs num_blocks_per_group, a whole number from 1 on, not {size!r}."
            )
        place, home = _device("onload_device", self.onload_device), self.home
        if place.type not in ("cpu", "meta") and not torch.get_device_module(place).is_available():
            raise InputError(f"onload_device={str(place)!r} is not on this machine.")
        if self.use_stream and place.type in ("cpu", "meta"):
            raise InputError(
                f"use_stream=True needs a device with streams, such as 'cuda', not {str(place)!r}."
            )
        if self.record_stream and not self.use_stream:
            raise InputError("record_stream=True concerns streams: pass use_stream=True too.")
        if self.offload_to_disk_path is not None and home.type != "cpu":
            raise InputError(
                f"offload_to_disk_path keeps weights in files, not on {str(home)!r}: pass one of both."
            )

    @property
    def kind(self) -> str:
        """The offload type as a text, also if it was given as the member of an enumeration."""
        return str(getattr(self.offload_type, "value", self.offload_type))

    @property
    def home(self) -> torch.device:
        """Where the weights are when they are not needed."""
        return _device("offload_device", self.offload_device)

    def accelerator(self, exclude: Collection[str] = (), *, shared: bool) -> Accelerator:
        """An accelerator that models may visit in this way."""
        return Accelerator(
            torch.device(self.onload_device),
            None,
            tuple(exclude),
            division=self._division(),
            transfer=self._transfer(),
            home=self._keeping(),
            unplaced=names_of(self.exclude_kwargs),
            shared=shared,
        )

    def _division(self) -> Division:
        if self.kind == "leaf_level":
            return layers
        return by_blocks(self.num_blocks_per_group or 1, names_of(self.block_modules))

    def _transfer(self) -> Transfer:
        place = torch.device(self.onload_device)
        if not self.use_stream:
            return Transfer(place, self.non_blocking)
        pin = self.low_cpu_mem_usage and self.offload_to_disk_path is None
        return Streamed(place, record=self.record_stream, pin=pin)

    def _keeping(self) -> Home:
        if self.offload_to_disk_path is not None:
            return OnDisk(Path(self.offload_to_disk_path))
        pins = self.use_stream and not self.low_cpu_mem_usage and self.home.type == "cpu"
        return in_pinned_memory if pins else in_memory


def names_of(given: Names) -> tuple[str, ...]:
    """One name, several or none, as a tuple."""
    return (given,) if isinstance(given, str) else tuple(given or ())


def _device(name: str, value: Any) -> torch.device:
    try:
        return torch.device(value)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"{name}={value!r} is not a device: {str(error).splitlines()[0]}") from None
