"""Calls of a function captured on first use and replayed: the shapes of its arguments decide which capture serves."""

from __future__ import annotations

import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from calotype.acceleration.devices import Device, Replay
from calotype.acceleration.values import places, put_together, taken_apart

logger = logging.getLogger(__name__)

Function = Callable[..., Any]


@dataclass
class Source:
    """The tensor that a buffer was filled from, and how often it had been changed then."""

    tensor: weakref.ref[Tensor]
    version: int

    @classmethod
    def of(cls, tensor: Tensor) -> Source | None:
        """None for a tensor that does not count its changes."""
        return None if tensor.is_inference() else cls(weakref.ref(tensor), tensor._version)

    def is_still(self, tensor: Tensor) -> bool:
        """Whether the buffer holds what this tensor holds now."""
        return self.tensor() is tensor and not tensor.is_inference() and tensor._version == self.version


@dataclass
class Capture:
    """One captured call: its buffers, the work, the memory of its result."""

    buffers: list[Tensor]
    work: Replay
    result: Any
    before: Replay | None = None
    """Work that only the prompt decides, done when that has changed."""
    prompts: frozenset[int] = frozenset()
    sources: list[Source | None] = field(default_factory=list)

    def run(self, tensors: list[Tensor], prompts_stand: bool) -> Any:
        """The result for these tensors, in memory of its own."""
        changed = {
            i for i, source in enumerate(self.sources) if source is None or not source.is_still(tensors[i])
        }
        for i in sorted(changed):
            self.buffers[i].copy_(tensors[i], non_blocking=True)
            self.sources[i] = Source.of(tensors[i])
        if self.before is not None and (changed & self.prompts or not prompts_stand):
            self.before.replay()
        self.work.replay()
        return copied(self.result)


@dataclass
class Prepared:
    """A function ready to be captured: what comes before, the call itself, and how the latter is told of the former."""

    before: Callable[[], Any] | None
    call: Callable[[], Any]
    use: Callable[[Any], None] = lambda found: None


Prepare = Callable[[list[Tensor], Hashable, frozenset[int]], Prepared]
"""(buffers, form, which of them are the prompt) -> the call on these buffers."""


class Captures:
    """The captured calls of one function; safe to use from several threads, which take turns."""

    def __init__(
        self, name: str, device: Device, prepare: Prepare, limit: int, prompts: frozenset[str]
    ) -> None:
        self.name, self.device, self.prepare, self.limit, self.prompts = name, device, prepare, limit, prompts
        self.kept: OrderedDict[Hashable, Capture] = OrderedDict()
        self.seen: set[Hashable] = set()
        self.failed: dict[Hashable, str] = {}
        self.count = 0
        """How many captures have been made."""
        self.lock = threading.RLock()

    def clear(self) -> None:
        """Forget all captures; their memory is given back."""
        with self.lock:
            self.kept.clear()
            self.seen.clear()
            self.failed.clear()

    def __call__(self, ordinary: Function, prompts_stand: bool, *args: Any, **kwargs: Any) -> Any:
        """What ``ordinary`` gives for these arguments, which computes the first time and where nothing else can be."""
        try:
            tensors, form = taken_apart((args, kwargs))
        except TypeError as error:
            self._give_up("arguments", f"an argument cannot be kept ({error})")
            return ordinary(*args, **kwargs)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            return ordinary(*args, **kwargs)
        with self.lock:
            capture = self.kept.get(form)
            if capture is None:
                if form in self.failed:
                    return ordinary(*args, **kwargs)
                if form not in self.seen:
                    self.seen.add(form)  # libraries choose and set up their kernels in an ordinary call
                    return ordinary(*args, **kwargs)
                capture = self._captured(form, tensors)
                if capture is None:
                    return ordinary(*args, **kwargs)
                prompts_stand = False
            self.kept.move_to_end(form)
            with self.device.in_order():
                return capture.run(tensors, prompts_stand)

    def _captured(self, form: Hashable, tensors: list[Tensor]) -> Capture | None:
        keywords = form.parts[1]  # type: ignore[attr-defined]
        prompts = frozenset(places(keywords, lambda key: key in self.prompts))
        while len(self.kept) >= self.limit:
            self.kept.popitem(last=False)
        try:
            with self.device.in_order():
                buffers = [torch.empty_like(tensor).copy_(tensor) for tensor in tensors]
                prepared = self.prepare(buffers, form, prompts)
                before = None
                if prepared.before is not None:
                    before, found = self.device.capture(prepared.before)
                    prepared.use(found)
                work, result = self.device.capture(prepared.call)
        except Exception as error:
            self._give_up(form, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            return None
        self.count += 1
        self.kept[form] = Capture(buffers, work, result, before, prompts, [None] * len(buffers))
        return self.kept[form]

    def _give_up(self, form: Hashable, why: str) -> None:
        if form not in self.failed:
            self.failed[form] = why
            logger.warning("%s is computed without a CUDA graph: %s.", self.name, why)


def copied(result: Any) -> Any:
    """A result whose tensors are in memory of their own."""
    tensors, form = taken_apart(result)
    return put_together(form, [tensor.clone() for tensor in tensors])


def put_back(form: Hashable, tensors: list[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments and keyword arguments of a form."""
    args, kwargs = put_together(form, tensors)
    return args, kwargs
