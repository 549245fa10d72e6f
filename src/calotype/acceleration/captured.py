"""Calls of a function captured on first use and replayed: the shapes of its arguments decide which capture serves."""

from __future__ import annotations

import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from calotype.acceleration.devices import Device, Replay
from calotype.acceleration.values import places, put_together, taken_apart

logger = logging.getLogger(__name__)


@dataclass
class Source:
    """The tensor that a prompt's buffer was filled from, and how often it had been changed then."""

    tensor: weakref.ref[Tensor]
    version: int

    @classmethod
    def of(cls, tensor: Tensor) -> Source | None:
        """None for a tensor that does not count its changes."""
        return None if tensor.is_inference() else cls(weakref.ref(tensor), tensor._version)

    def is_still(self, tensor: Tensor) -> bool:
        """Whether the buffer holds what this tensor holds now."""
        return self.tensor() is tensor and not tensor.is_inference() and tensor._version == self.version


class Stamp(NamedTuple):
    """What work on a prompt depends on beside it: the call that it is done in, how often weights were changed, and how
    often the numbers were that captured calls read from the device.

    Versions are counted only where all else is the same, and at leisure: after the work has been launched. ``settle``
    puts the numbers in their places and is called before any work.
    """

    epoch: int
    versions: Callable[[], object]
    settle: Callable[[], int] = lambda: 0


@dataclass
class Capture:
    """One captured call: its buffers, the work, the memory of its result."""

    buffers: list[Tensor]
    work: Replay
    results: list[Tensor]
    shape: Hashable
    """The form of what the call gives, whose tensors are the results."""
    before: Replay | None = None
    """Work that only the prompt decides, done when that has changed."""
    prompts: frozenset[int] = frozenset()
    sources: dict[int, Source | None] = field(default_factory=dict)
    stamp: tuple[tuple[int, int], object] | None = None
    """The epoch, changes of numbers, and versions that the work before was done for."""
    uses: int = 0
    memory: Any = None
    """What replays read of what was there before they were captured, as what the work before writes."""

    def run(self, tensors: list[Tensor], now: Stamp) -> Any:
        """The result for these tensors, in memory of its own; ``now`` is the stamp of what else counts."""
        then, self.stamp = self.stamp, None  # should anything fail, all is done again
        time = (now.epoch, now.settle())
        anew = self.before is None or then is None or then[0] != time or then[1] != now.versions()
        for i, (buffer, tensor) in enumerate(zip(self.buffers, tensors, strict=True)):
            if i in self.prompts and self.before is not None:
                source = self.sources.get(i)
                if not anew and source is not None and source.is_still(tensor):
                    continue
                self.sources[i] = Source.of(tensor)
                anew = True
            buffer.copy_(tensor, non_blocking=True)
        if self.before is not None and anew:
            self.before.replay()
        self.work.replay()
        self.uses += 1
        result = put_together(self.shape, copied(self.results))
        if self.before is not None:
            self.stamp = (time, now.versions()) if anew else then
        return result


@dataclass
class Prepared:
    """A function ready to be captured: the call, and the work on the prompt that is not done in each call.

    What the latter leaves for calls is in the ``memory``, which is there already: it was done once. So is whatever else
    of the device's memory a call reads.
    """

    call: Callable[[], Any]
    before: Callable[[], None] | None = None
    memory: Any = None


Prepare = Callable[[list[Tensor], Hashable, frozenset[int], Any], Prepared]
"""(buffers, form, which of them are the prompt, what the first call noted) -> the call on these buffers."""

ENOUGH = 4
"""Uses that pay for a capture."""


class Captures:
    """The captured calls of one function; safe to use from several threads, which take turns."""

    def __init__(self, name: str, device: Device, limit: int, prompts: frozenset[str]) -> None:
        self.name, self.device, self.limit, self.prompts = name, device, limit, prompts
        self.kept: OrderedDict[Hashable, Capture] = OrderedDict()
        self.seen: OrderedDict[Hashable, Any] = OrderedDict()
        """Forms of first calls, and what those noted."""
        self.failed: dict[Hashable, str] = {}
        self.count = 0
        """How many captures have been made."""
        self.wasted = 0
        """How many in a row were given up before they had paid."""
        self.lock = threading.RLock()

    def clear(self) -> None:
        """Forget all captures; their memory is given back once their work is done."""
        with self.lock:
            if self.kept:
                self.device.settle()
            self.kept.clear()
            self.seen.clear()
            self.failed.clear()
            self.wasted = 0

    def __call__(
        self,
        ordinary: Callable[[], Any],
        noting: Callable[[], tuple[Any, Any]],
        prepare: Prepare,
        stamp: Stamp,
        tensors: list[Tensor],
        form: Hashable,
    ) -> Any:
        """What ``ordinary`` gives for these tensors in this form, which computes where it must.

        The first time it is computed by ``noting``, which also gives what ``prepare`` is to know of it.
        """
        with self.lock:
            capture = self.kept.get(form)
            if capture is None:
                if form in self.failed or self.wasted >= self.limit:
                    return ordinary()
                if form not in self.seen:
                    # libraries choose and set up their kernels in an ordinary call
                    result, self.seen[form] = noting()
                    while len(self.seen) > 8 * self.limit:
                        self.seen.popitem(last=False)
                    return result
                capture = self._captured(prepare, form, tensors)
                if capture is None:
                    return ordinary()
            self.kept.move_to_end(form)
            with self.device.in_order():
                return capture.run(tensors, stamp)

    def _captured(self, prepare: Prepare, form: Hashable, tensors: list[Tensor]) -> Capture | None:
        keywords = form.parts[1]  # type: ignore[attr-defined]
        prompts = frozenset(places(keywords, lambda key: key in self.prompts))
        while len(self.kept) >= self.limit:
            self.device.settle()
            _, out = self.kept.popitem(last=False)
            self.wasted = self.wasted + 1 if out.uses < ENOUGH else 0
        try:
            with self.device.in_order(), torch.inference_mode(False), torch.no_grad():
                buffers = [torch.empty_like(tensor).copy_(tensor) for tensor in tensors]
                prepared = prepare(buffers, form, prompts, self.seen[form])
                before = None
                if prepared.before is not None:
                    before, _ = self.device.capture(prepared.before)
                work, result = self.device.capture(prepared.call)
                results, shape = taken_apart(result)
        except Exception as error:
            if len(self.failed) >= 8 * self.limit:
                self.failed.clear()
            self.failed[form] = f"{type(error).__name__}: {(str(error) or 'no reason given').splitlines()[0]}"
            logger.warning("%s is computed without a CUDA graph: %s.", self.name, self.failed[form])
            return None
        self.count += 1
        self.kept[form] = Capture(buffers, work, results, shape, before, prompts, memory=prepared.memory)
        return self.kept[form]


def copied(tensors: list[Tensor]) -> list[Tensor]:
    """The same tensors in memory of their own, which those alike get at once, as an encoder's hidden states."""
    alike: dict[Hashable, list[int]] = {}
    for i, tensor in enumerate(tensors):
        alike.setdefault((tensor.shape, tensor.dtype, -1 if tensor.is_contiguous() else i), []).append(i)
    found: dict[int, Tensor] = {}
    for several in alike.values():
        first = tensors[several[0]]
        if len(several) == 1:
            found[several[0]] = torch.empty_like(first)
        else:
            parts = first.new_empty(len(several), *first.shape).unbind()
            found.update((i, part.data) for i, part in zip(several, parts, strict=True))
    new = [found[i] for i in range(len(tensors))]
    if new:
        torch._foreach_copy_(new, tensors)
    return new


def put_back(form: Hashable, tensors: list[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments and keyword arguments of a form, which may have more parts."""
    args, kwargs, *_ = put_together(form, tensors)
    return args, kwargs
