"""Weights on their way to an accelerator, in pieces through a little pinned memory.

Files are read, not mapped, so of the host's memory no more than the pieces is taken, whatever the size of a model; what
has to be converted is converted on the device, a piece at a time. A piece is read in one call and goes to all tensors
that lie in it in another: each call that waits gives the interpreter away, and gets it back late from a thread that
makes modules meanwhile.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, Self

import numpy as np
import torch
from torch import nn

from calotype.core.errors import ModelFilesError
from calotype.core.interpreter import switching_often

PIECE = 16 * 2**20
"""Bytes of a piece."""
READERS = 8
"""Threads at most, each with one piece: while one waits for the device, the others read."""
_ALIGNED = 64


class Source(Protocol):
    """Where bytes of tensors are."""

    def read(self, into: torch.Tensor, start: int) -> None:
        """Fill ``into``, of type uint8, with the bytes from ``start`` on."""
        ...


@dataclass(frozen=True)
class InFile:
    """An open file."""

    path: Path
    descriptor: int

    def read(self, into: torch.Tensor, start: int) -> None:
        """``ModelFilesError`` if the file has become shorter."""
        left, place = into.numpy().data, start
        while left:
            count = os.preadv(self.descriptor, [left], place)
            if count == 0:
                raise ModelFilesError(f"{self.path} was cut off while it was read; download it again.")
            left, place = left[count:], place + count


class InMemory:
    """A tensor of the host, as long as it is needed."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._bytes = tensor.detach().view(-1).view(torch.uint8).numpy()

    def read(self, into: torch.Tensor, start: int) -> None:
        """Copies; of a mapped file this reads it."""
        np.copyto(
            into.numpy(), self._bytes[start : start + len(into)]
        )  # PyTorch would start threads of its own


class Job(NamedTuple):
    """A tensor to fill, contiguous and on the device, and where its bytes are, of what type."""

    target: torch.Tensor
    source: Source
    start: int
    dtype: torch.dtype
    sent: Callable[[], None] | None = None
    """Called when all has been read and is on its way, before whatever the device is asked to do next."""


def can_send(device: torch.device) -> bool:
    """Whether tensors for the device are worth sending in pieces; elsewhere they are copied as they are."""
    return device.type == "cuda" and hasattr(os, "preadv")


class Sender:
    """Fills tensors on ``device`` while others are being made; within its context, on the stream that is current there.

    All is there when the context ends, which raises what reading raised. If it ends with an error, what has not been
    read by then is left.
    """

    def __init__(self, device: torch.device, piece: int | None = None) -> None:
        self.device, self._piece = device, piece or PIECE
        self._backend: Any = torch.get_device_module(device) if device.type != "cpu" else None
        self._stream = self._backend.current_stream(device) if self._backend else None
        self._inference = torch.is_inference_mode_enabled()  # which holds for one thread alone
        self._queue: deque[list[_Span]] = deque()
        self._changed = threading.Condition()
        self._converting = threading.Lock()  # one piece at a time is in the device's memory twice
        self._threads: list[threading.Thread] = []
        self._idle, self._ended = 0, False
        self._failed: BaseException | None = None
        self._open = ExitStack()
        self._exchanged: dict[int, torch.Tensor] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        with self._changed:
            self._ended = True
            if error is not None:
                self._queue.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._open.close()
        if error is None and self._failed is not None:
            raise self._failed

    def open(self, path: Path) -> InFile:
        """The file, until the context ends."""
        file: BinaryIO = self._open.enter_context(path.open("rb"))
        return InFile(path, file.fileno())

    def is_new(self, tensor: torch.Tensor) -> bool:
        """Whether this is asked of a tensor for the first time.

        One that several modules share is sent once: a reader may be giving it what it has sent, in another type, while
        it would be looked at again.
        """
        if id(tensor) in self._exchanged:
            return False
        self._exchanged[id(tensor)] = tensor  # and kept, so that no other gets its place
        return True

    def expect(self, nbytes: int) -> None:
        """Start as many readers as so much to send will need, so that they have their memory when it comes."""
        while len(self._threads) < min(READERS, -(-nbytes // self._piece)):
            self._start()

    def send(self, jobs: Iterable[Job]) -> None:
        """Have these done meanwhile. Raises what reading has raised so far."""
        for batch in _batches(jobs, self._piece):
            with self._changed:
                if self._failed is not None:
                    raise self._failed
                self._queue.append(batch)
                more = self._idle == 0 and len(self._threads) < READERS
                self._changed.notify()
            if more:
                self._start()

    def _start(self) -> None:
        """One more reader."""
        if not self._threads and self._backend is not None:
            self._open.enter_context(switching_often())
        name = f"calotype-sending-{len(self._threads)}"
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _work(self) -> None:
        try:
            on_stream = self._backend.stream(self._stream) if self._backend else nullcontext()
            with torch.inference_mode(self._inference), on_stream:
                memory = _Memory(self._piece, self._backend is not None)
                emptied: Any = None
                while (batch := self._next()) is not None:
                    if emptied is not None:
                        emptied.synchronize()
                    self._take(memory, batch)
                    emptied = self._stream.record_event() if self._stream is not None else None
                    for span in batch:
                        for tally, nbytes in span.tallies:
                            tally.add(nbytes)
                if emptied is not None:
                    emptied.synchronize()
        except BaseException as error:  # whatever it is, the thread that waits is told
            with self._changed:
                self._failed = self._failed or error
                self._queue.clear()
                self._changed.notify_all()

    def _next(self) -> list[_Span] | None:
        with self._changed:
            self._idle += 1
            self._changed.wait_for(lambda: self._queue or self._ended or self._failed is not None)
            self._idle -= 1
            return self._queue.popleft() if self._queue else None

    def _take(self, memory: _Memory, batch: list[_Span]) -> None:
        """Read what a piece holds and set it on its way."""
        for span in batch:
            span.source.read(memory.bytes(span.at, span.nbytes), span.start)
        for span in batch:
            if span.dtype == span.targets[0].dtype:
                torch._foreach_copy_(span.targets, memory.split(span), non_blocking=True)
                continue
            with self._converting:
                values = memory.values(span).to(self.device, non_blocking=True)
                torch._foreach_copy_(span.targets, values.split(span.sizes), non_blocking=True)
                del values


class _Tally:
    """How much of one tensor has to be read yet; several readers may have parts of it."""

    def __init__(self, nbytes: int, done: Callable[[], None]) -> None:
        self._left, self._done, self._lock = nbytes, done, threading.Lock()

    def add(self, nbytes: int) -> None:
        with self._lock:
            self._left -= nbytes
            if self._left == 0:
                self._done()


@dataclass
class _Span:
    """Bytes of one source that follow one another, of one type, for tensors of one type; ``at`` in the piece."""

    source: Source
    start: int
    dtype: torch.dtype
    at: int
    nbytes: int = 0
    targets: list[torch.Tensor] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    tallies: list[tuple[_Tally, int]] = field(default_factory=list)

    def goes_on(self, job: Job, start: int) -> bool:
        """Whether the bytes of the job from ``start`` on can be read together with these."""
        return (
            self.source is job.source
            and self.start + self.nbytes == start
            and self.dtype == job.dtype
            and self.targets[0].dtype == job.target.dtype
        )


def _batches(jobs: Iterable[Job], piece: int) -> Iterator[list[_Span]]:
    """The jobs in pieces, of which each but the last is full."""
    batch: list[_Span] = []
    filled = 0
    for job in jobs:
        flat, size, done = job.target.view(-1), job.dtype.itemsize, 0
        count = flat.numel()
        tally = _Tally(count * size, job.sent) if job.sent is not None else None
        while done < count:
            start = job.start + done * size
            if batch and batch[-1].goes_on(job, start):
                span = batch[-1]
            else:
                span = _Span(job.source, start, job.dtype, -(-filled // _ALIGNED) * _ALIGNED)
            fits = min(max(piece - span.at - span.nbytes, 0) // size, count - done)
            if fits == 0:
                yield batch
                batch, filled = [], 0
                continue
            if span.nbytes == 0:
                batch.append(span)
            span.nbytes += fits * size
            span.targets.append(flat if fits == count else flat[done : done + fits])
            span.sizes.append(fits)
            if tally is not None:
                span.tallies.append((tally, fits * size))
            filled, done = span.at + span.nbytes, done + fits
    if batch:
        yield batch


class _Memory:
    """One piece of the host's memory, seen as tensors of any type."""

    def __init__(self, piece: int, pinned: bool) -> None:
        self._whole = torch.empty(piece, dtype=torch.uint8, device="cpu", pin_memory=pinned)
        self._typed: dict[torch.dtype, torch.Tensor] = {}

    def bytes(self, at: int, count: int) -> torch.Tensor:
        """So many bytes."""
        return self._whole[at : at + count]

    def values(self, span: _Span) -> torch.Tensor:
        """What was read of a span, as a list of its numbers."""
        first = span.at // span.dtype.itemsize
        return self._as(span.dtype)[first : first + sum(span.sizes)]

    def split(self, span: _Span) -> list[torch.Tensor]:
        """The same for each of its tensors."""
        whole = self._as(span.dtype)
        first, some = span.at // span.dtype.itemsize, sum(span.sizes)
        return list(whole.split_with_sizes([first, *span.sizes, len(whole) - first - some])[1:-1])

    def _as(self, dtype: torch.dtype) -> torch.Tensor:
        if dtype not in self._typed:
            size = dtype.itemsize
            self._typed[dtype] = self._whole[: len(self._whole) // size * size].view(dtype)
        return self._typed[dtype]


@contextmanager
def sending(device: torch.device, sender: Sender | None = None) -> Iterator[Sender | None]:
    """The sender, or one that ends with this, or ``None`` for a device to which tensors are copied as they are."""
    if sender is not None or not can_send(device):
        yield sender
        return
    with Sender(device) as own:
        yield own


def send_module(module: nn.Module, sender: Sender, dtype: torch.dtype | None = None) -> None:
    """Send the weights that are in the host's pageable memory to the device, floating-point ones as ``dtype``.

    Each leaves the host as soon as it is there. Those that anything else hangs on, as gradients do, stay for
    ``module.to``.
    """
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}

    def jobs() -> Iterator[Job]:
        for tensor in tensors.values():
            if sender.is_new(tensor) and _is_plain(tensor):
                kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
                target = torch.empty(tensor.shape, dtype=kind, device=sender.device)
                yield Job(target, InMemory(tensor), 0, tensor.dtype, partial(_exchange, tensor, target))

    sender.send(jobs())


def _exchange(tensor: torch.Tensor, target: torch.Tensor) -> None:
    tensor.data = target


def move(module: nn.Module, device: torch.device | None, dtype: torch.dtype | None = None) -> None:
    """``module.to(device, dtype)``, which leaves no more than the pieces in the host's memory on the way."""
    move_all([(module, device)], dtype)


def move_all(
    places: Sequence[tuple[nn.Module, torch.device | None]], dtype: torch.dtype | None = None
) -> None:
    """:func:`move` of each module to its device, all on one way."""
    with ExitStack() as open_senders:
        senders: dict[torch.device, Sender] = {}
        for module, device in places:
            if device is None or not can_send(device):
                continue
            if device not in senders:
                senders[device] = open_senders.enter_context(Sender(device))
            send_module(module, senders[device], dtype)
    for module, device in places:
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
