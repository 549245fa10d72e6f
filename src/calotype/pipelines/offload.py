"""Models that live in the host's memory and visit the accelerator while they are needed.

Hooks before and after ``forward`` do it, from outside of the models. A visit puts copies of the weights in the place of
those at home, which are kept, so leaving costs nothing. One thread at a time computes with models that come and go.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from calotype.adapters.layer import Adapted
from calotype.models.vector_quantizer import VectorQuantizer

_READ_WEIGHTS_BELOW = (nn.MultiheadAttention, VectorQuantizer, Adapted)
"""Modules that read the weights of their children without calling them."""


class Stay(enum.Enum):
    """How long a module's weights stay on the accelerator once they are there."""

    FORWARD = "until its forward returns"
    TURN = "until the next model takes its turn"
    CALL = "until the pipeline's call ends"
    ALWAYS = "until offloading is switched off"


class Accelerator:
    """A device with the modules that are on it now."""

    def __init__(
        self, device: torch.device, order: Sequence[str] | None, exclude: Sequence[str] = ()
    ) -> None:
        """``order`` names the models that take turns, None brings single layers; ``exclude`` names those that stay."""
        self.device = device
        self.by_layer = order is None
        self.lock = threading.RLock()
        self._turns = tuple(order or ())
        self._exclude = tuple(exclude)
        self._guests: list[Guest] = []

    def host(self, name: str, model: nn.Module) -> None:
        """From now on the model ``name`` computes on this device, with the parts that it has now."""
        if name in self._exclude:
            stay = Stay.ALWAYS
        elif self.by_layer:
            stay = Stay.FORWARD
        else:
            stay = Stay.TURN if name in self._turns else Stay.CALL
        if stay is Stay.FORWARD:
            for layer in _layers(model):
                whole = isinstance(layer, _READ_WEIGHTS_BELOW)
                self._attach(Guest(layer, self, stay, whole=whole), _entries(layer) if whole else [layer])
            return
        known = [guest for guest in _guests_of(model) if guest.accelerator is self]
        guest = known[0] if known else Guest(model, self, stay, whole=True)
        self._attach(guest, _entries(model))
        if stay is Stay.ALWAYS:
            with self.lock:
                self.admit(guest)

    def _attach(self, guest: Guest, entries: Iterable[nn.Module]) -> None:
        for module in entries:
            if not any(known.accelerator is self for known in _guests_of(module)):
                module.register_forward_pre_hook(guest.enter, with_kwargs=True)
                module.register_forward_hook(guest.leave, always_call=True)

    def admit(self, guest: Guest) -> None:
        """Bring the guest's weights, after those whose turn ends have left; the caller holds the lock."""
        if guest in self._guests:
            return
        if guest.stay is Stay.TURN:
            self.dismiss([other for other in self._guests if other.stay is Stay.TURN])
        guest.arrive()
        self._guests.append(guest)

    def dismiss(self, guests: Iterable[Guest]) -> None:
        """Drop the copies of these guests' weights; the caller holds the lock."""
        leaving = [guest for guest in guests if guest in self._guests]
        for guest in leaving:
            guest.depart()
            self._guests.remove(guest)
        if any(guest.stay is not Stay.FORWARD for guest in leaving):
            empty_cache(self.device)

    def clear(self) -> None:
        """Drop all copies but those that stay for good."""
        with self.lock:
            self.dismiss([guest for guest in self._guests if guest.stay is not Stay.ALWAYS])


class Guest:
    """A module whose weights visit an accelerator: all below it, or only its own."""

    def __init__(self, module: nn.Module, accelerator: Accelerator, stay: Stay, *, whole: bool) -> None:
        self.module = module
        self.accelerator = accelerator
        self.stay = stay
        self.whole = whole
        self._inside = 0
        self._home: list[tuple[dict[str, Any], str, torch.Tensor]] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Guest:
        """A copy of a module is a guest of its own."""
        if id(self) not in memo:
            module = memo.get(id(self.module), self.module)
            memo[id(self)] = Guest(module, self.accelerator, self.stay, whole=self.whole)
        return memo[id(self)]

    def arrive(self) -> None:
        """Put copies on the accelerator in the place of the weights; all or, if that fails, none."""
        copies: dict[int, torch.Tensor] = {}
        try:
            for owner in self.module.modules() if self.whole else (self.module,):
                tables: tuple[dict[str, Any], ...] = (owner._parameters, owner._buffers)
                for table in tables:
                    for name, tensor in table.items():
                        if tensor is not None:
                            self._home.append((table, name, tensor))
                            if id(tensor) not in copies:
                                copies[id(tensor)] = _copied(tensor, self.accelerator.device)
                            table[name] = copies[id(tensor)]
        except BaseException:
            self.depart()
            raise

    def depart(self) -> None:
        """Put the weights at home back in their place."""
        while self._home:
            table, name, tensor = self._home.pop()
            table[name] = tensor

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Before ``forward``: weights and arguments come to the accelerator."""
        self.accelerator.lock.acquire()
        self._inside += 1
        self.accelerator.admit(self)
        return placed(args, self.accelerator.device), placed(kwargs, self.accelerator.device)

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """After ``forward``, also one that failed."""
        self._inside -= 1
        if self.stay is Stay.FORWARD and not self._inside:
            self.accelerator.dismiss([self])
        self.accelerator.lock.release()


def accelerators_of(models: Iterable[nn.Module]) -> list[Accelerator]:
    """The accelerators that the models visit."""
    found = (guest.accelerator for model in models for guest in _guests_of(model))
    return list(dict.fromkeys(found))


def release(models: Iterable[nn.Module]) -> None:
    """The models stay at home from now on, as if they had never been offloaded."""
    for model in models:
        for module in model.modules():
            for guest in list(_guests_of(module)):
                with guest.accelerator.lock:
                    guest.accelerator.dismiss([guest])
            _unhook(module)


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


def empty_cache(device: torch.device) -> None:
    """Give memory that is not in use back to the device, where its backend keeps some."""
    if device.type not in ("cpu", "meta"):
        getattr(torch.get_device_module(device), "empty_cache", lambda: None)()


def _guests_of(module: nn.Module) -> Iterator[Guest]:
    for hook in module._forward_pre_hooks.values():
        if isinstance(guest := getattr(hook, "__self__", None), Guest):
            yield guest


def _unhook(module: nn.Module) -> None:
    """Take the guests' hooks away, also those that came with a copied module, for which no handles exist."""
    marks = (module._forward_pre_hooks_with_kwargs, module._forward_hooks_always_called)
    for hooks, marked in zip((module._forward_pre_hooks, module._forward_hooks), marks, strict=True):
        for key, hook in list(hooks.items()):
            if isinstance(getattr(hook, "__self__", None), Guest):
                del hooks[key]
                marked.pop(key, None)


def _entries(model: nn.Module) -> list[nn.Module]:
    """The model and its parts, by which other methods than ``forward`` (an autoencoder's ``encode``) begin."""
    entries = [model]
    for part in model.children():
        entries += part if isinstance(part, nn.ModuleList) else [part]
    return entries


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    """The model itself, for its arguments, and every module that has weights of its own."""
    below: set[nn.Module] = set()
    for module in model.modules():
        if module in below:
            continue
        reads = isinstance(module, _READ_WEIGHTS_BELOW)
        if reads:
            below.update(module.modules())
        own = (*module._parameters.values(), *module._buffers.values())
        if reads or module is model or any(tensor is not None for tensor in own):
            yield module


def _copied(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    copy = tensor.detach().to(device)
    return nn.Parameter(copy, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copy
