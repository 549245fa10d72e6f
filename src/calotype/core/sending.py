"""Weights on their way to an accelerator, in pieces through a little pinned memory.

Files are read, not mapped, so of the host's memory no more than the pieces is taken, whatever the size of a model; what
has to be converted is converted on the device, a piece at a time.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from calotype.core.errors import ModelFilesError

PIECE = 8 * 2**20
"""Bytes of a piece."""
_READERS = 4
_IN_TURN = 2  # pieces of a reader: one is read while the other is on its way
_ALIGNED = 64

_ONE_AT_A_TIME = threading.Lock()  # several models are loaded at once, and share the pieces and the bus


class Source(Protocol):
    """Where the bytes of a tensor are."""

    @property
    def dtype(self) -> torch.dtype:
        """The type that they are of."""
        ...

    def read(self, into: torch.Tensor, start: int) -> None:
        """Fill ``into``, of type uint8, with the bytes of the tensor from ``start`` on."""
        ...

    def sent(self) -> None:
        """All has been read and is on its way, before whatever the device is asked to do next."""
        ...


@dataclass(frozen=True)
class InFile:
    """A tensor that begins at the byte ``begin`` of an open file."""

    path: Path
    descriptor: int
    begin: int
    dtype: torch.dtype

    def read(self, into: torch.Tensor, start: int) -> None:
        """``ModelFilesError`` if the file has become shorter."""
        left, place = into.numpy().data, self.begin + start
        while left:
            count = os.preadv(self.descriptor, [left], place)
            if count == 0:
                raise ModelFilesError(f"{self.path} was cut off while it was read; download it again.")
            left, place = left[count:], place + count

    def sent(self) -> None:
        """Nothing is left to do."""


class InMemory:
    """A tensor of the host, which takes ``target`` for its values once that has them and lets go of its own."""

    def __init__(self, tensor: torch.Tensor, target: torch.Tensor) -> None:
        self._tensor, self._target = tensor, target
        self.dtype = tensor.dtype

    def read(self, into: torch.Tensor, start: int) -> None:
        """Copies; of a mapped file this reads it."""
        values = self._tensor.detach().view(-1).view(torch.uint8)
        into.copy_(values[start : start + len(into)])

    def sent(self) -> None:
        """The exchange."""
        self._tensor.data = self._target


def can_send(device: torch.device) -> bool:
    """Whether tensors for the device are worth sending in pieces; elsewhere they are copied as they are."""
    return device.type == "cuda" and hasattr(os, "preadv")


def send(jobs: Iterable[tuple[torch.Tensor, Source]], device: torch.device, piece: int = PIECE) -> None:
    """Fill each job's tensor, contiguous and on ``device``, from its source, converted to the tensor's type.

    All is there when this returns. What ``jobs`` yields is asked for as it is needed. Raises what reading raises.
    """
    some = _batches(jobs, piece)
    first = next(some, None)
    if first is None:
        return
    batches = chain([first], some)
    backend: Any = torch.get_device_module(device) if device.type != "cpu" else None
    stream = backend.current_stream(device) if backend else None
    inference = torch.is_inference_mode_enabled()  # which holds for one thread alone
    lock, stop = threading.Lock(), threading.Event()

    def following() -> list[_Part] | None:
        with lock:
            return None if stop.is_set() else next(batches, None)

    def work() -> None:
        try:
            with torch.inference_mode(inference), backend.stream(stream) if backend else nullcontext():
                turns = [_Turn(piece, stream) for _ in range(_IN_TURN)]
                while (batch := following()) is not None:
                    turns[0].take(batch)
                    turns.reverse()
                    for part in batch:
                        part.job.done(part.nbytes)
                for turn in turns:
                    turn.wait()
        finally:
            stop.set()  # after a failure, and when nothing is left

    with _ONE_AT_A_TIME, ThreadPoolExecutor(_READERS, "calotype-sending") as readers:
        for done in [readers.submit(work) for _ in range(_READERS)]:
            done.result()


class _Job:
    """One tensor, which several readers may have parts of."""

    def __init__(self, source: Source, nbytes: int) -> None:
        self.source = source
        self._left, self._lock = nbytes, threading.Lock()

    def done(self, nbytes: int) -> None:
        with self._lock:
            self._left -= nbytes
            if self._left == 0:
                self.source.sent()


@dataclass(frozen=True)
class _Part:
    """Some elements of one tensor, and where their bytes are."""

    target: torch.Tensor
    job: _Job
    start: int
    nbytes: int


def _batches(jobs: Iterable[tuple[torch.Tensor, Source]], piece: int) -> Iterator[list[_Part]]:
    """The jobs in parts, several together while they fit into one piece."""
    batch: list[_Part] = []
    filled = 0
    for target, source in jobs:
        flat, size = target.view(-1), source.dtype.itemsize
        job = _Job(source, len(flat) * size)
        for first in range(0, len(flat), piece // size):
            some = flat[first : first + piece // size]
            if batch and filled + len(some) * size > piece:
                yield batch
                batch, filled = [], 0
            batch.append(_Part(some, job, first * size, len(some) * size))
            filled += -(-len(some) * size // _ALIGNED) * _ALIGNED
    if batch:
        yield batch


class _Turn:
    """One piece of memory: filled by the host, emptied by the device."""

    def __init__(self, piece: int, stream: Any) -> None:
        self._memory = torch.empty(piece, dtype=torch.uint8, device="cpu", pin_memory=stream is not None)
        self._stream = stream
        self._emptied: Any = None

    def take(self, batch: list[_Part]) -> None:
        """Read the parts and set them on their way."""
        self.wait()
        place, read = 0, []
        for part in batch:
            some = self._memory[place : place + part.nbytes]
            part.job.source.read(some, part.start)
            read.append((part.target, some.view(part.job.source.dtype)))
            place += -(-part.nbytes // _ALIGNED) * _ALIGNED
        for target, values in read:
            if values.dtype != target.dtype:
                values = values.to(target.device, non_blocking=True)  # to be converted there
            target.copy_(values, non_blocking=True)
        if self._stream is not None:
            self._emptied = self._stream.record_event()

    def wait(self) -> None:
        """Until the device has what was last read."""
        if self._emptied is not None:
            self._emptied.synchronize()


def send_module(
    module: nn.Module, device: torch.device, dtype: torch.dtype | None = None, piece: int = PIECE
) -> None:
    """Send the weights that are in the host's pageable memory to the device, floating-point ones as ``dtype``.

    Each leaves the host as soon as it is there. Those that anything else hangs on, as gradients do, stay for
    ``module.to``.
    """
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}

    def jobs() -> Iterator[tuple[torch.Tensor, Source]]:
        for tensor in tensors.values():
            if not _is_plain(tensor):
                continue
            kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
            target = torch.empty(tensor.shape, dtype=kind, device=device)
            yield target, InMemory(tensor, target)

    send(jobs(), device, piece)


def move(module: nn.Module, device: torch.device | None, dtype: torch.dtype | None = None) -> None:
    """``module.to(device, dtype)``, which leaves no more than the pieces in the host's memory on the way."""
    if device is not None and can_send(device):
        send_module(module, device, dtype)
    module.to(device=device, dtype=dtype)


def _is_plain(tensor: torch.Tensor) -> bool:
    return (
        type(tensor) in (torch.Tensor, nn.Parameter)
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and tensor.is_contiguous()
        and tensor.grad is None
        and tensor.nbytes > 0
        and not tensor.is_pinned()
    )
