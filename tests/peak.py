"""How many bytes of tensors are alive at most while a function runs, seen from its operations."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Live(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.given: dict[int, torch.UntypedStorage] = {}
        self.made: dict[int, tuple[int, Any]] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for storage in _storages((args, kwargs)):
            if storage._cdata not in self.made:  # a weight or an input
                self.given[storage._cdata] = storage
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            key = storage._cdata
            if key not in self.given and key not in self.made:
                self.made[key] = storage.nbytes(), weakref.ref(storage, lambda _, key=key: self._gone(key))
                self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        return result

    def _gone(self, key: int) -> None:
        self.now -= self.made.pop(key)[0]


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


def peak_bytes(function: Callable[[], Any]) -> int:
    """Bytes of what ``function`` made and still held, at most; what an operation takes inside is not counted."""
    with _Live() as live:
        function()
    return live.peak
