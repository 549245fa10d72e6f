"""How tensors get to a device: at once, or on a stream of their own while another computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch


class Transfer:
    """Copies that are there when the call returns (or, with ``non_blocking``, before what is computed next)."""

    ahead: ClassVar[bool] = False
    """Whether what comes next is worth sending while this computes."""

    def __init__(self, device: torch.device, non_blocking: bool = False) -> None:
        self.device = device
        self.non_blocking = non_blocking

    def send(self, tensors: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], Any]:
        """Copies of the tensors on the device, and a ticket to wait with."""
        return [tensor.to(self.device, non_blocking=self.non_blocking) for tensor in tensors], None

    def wait(self, copies: Sequence[torch.Tensor], ticket: Any) -> None:
        """What is computed from now on may use the copies."""

    def used(self) -> None:
        """Copies are about to be dropped that what was computed so far has used."""


class Streamed(Transfer):
    """Copies on a stream of their own, from pinned memory, while what came before computes.

    The memory of copies belongs to that stream, so what is sent next waits until those that it may replace were used;
    with ``record`` PyTorch's allocator waits instead. ``pin`` pins at each time what is not pinned.
    """

    ahead = True

    def __init__(self, device: torch.device, *, record: bool = False, pin: bool = False) -> None:
        super().__init__(device, non_blocking=True)
        self._backend: Any = torch.get_device_module(device)
        self._stream = self._backend.Stream(device)
        self._record = record
        self._pin = pin

    def send(self, tensors: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], Any]:
        """As for any transfer; the ticket is the event that the copies are there."""
        with self._backend.stream(self._stream):
            copies, _ = super().send([pinned(tensor) if self._pin else tensor for tensor in tensors])
            return copies, self._stream.record_event()

    def wait(self, copies: Sequence[torch.Tensor], ticket: Any) -> None:
        """The stream that computes waits for the copies; the host does not."""
        computing = self._backend.current_stream(self.device)
        computing.wait_event(ticket)
        if self._record:
            for copy in copies:
                copy.record_stream(computing)

    def used(self) -> None:
        """What is sent from now on comes after what was computed so far."""
        if not self._record:
            self._stream.wait_stream(self._backend.current_stream(self.device))


def pinned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in memory that a device can read by itself."""
    return tensor if tensor.is_pinned() or tensor.device.type != "cpu" else tensor.pin_memory()


def placed(value: Any, device: torch.device) -> Any:
    """``value`` with the tensors in it, also in lists, tuples and dictionaries, on ``device``."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if type(value) in (list, tuple):
        moved = [placed(item, device) for item in value]
        return value if all(new is old for new, old in zip(moved, value, strict=True)) else type(value)(moved)
    if type(value) is dict:
        entries = {key: placed(item, device) for key, item in value.items()}
        return value if all(entries[key] is value[key] for key in value) else entries
    return value
