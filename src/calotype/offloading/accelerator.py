"""An accelerator and the models that visit it: who is there when.

Hooks before and after ``forward`` do it, from outside of the models. A visit puts copies of the weights in the place of
those at home, which are kept, so leaving costs nothing. One thread at a time computes with models that come and go.
"""

from __future__ import annotations

import copy
import enum
import threading
import weakref
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from calotype.core.memory import empty_cache
from calotype.offloading.homes import Home, in_memory
from calotype.offloading.pieces import Division, Owners, Piece, layers, together
from calotype.offloading.transfers import Transfer, placed


class Stay(enum.Enum):
    """How long weights stay on the accelerator once they are there."""

    FORWARD = "until its forward returns"
    TURN = "until the next model takes its turn"
    CALL = "until the pipeline's call ends"
    ALWAYS = "until offloading is switched off"


class Accelerator:
    """A device with the pieces of models that are on it now."""

    def __init__(
        self,
        device: torch.device,
        order: Sequence[str] | None,
        exclude: Sequence[str] = (),
        *,
        division: Division = layers,
        transfer: Transfer | None = None,
        home: Home = in_memory,
        unplaced: Collection[str] = (),
        shared: bool = True,
    ) -> None:
        """``order`` names the models that take turns, None brings the pieces that ``division`` makes of each model;
        ``exclude`` names those that stay. Arguments named in ``unplaced`` are not brought to the device. A ``shared``
        accelerator is that of a pipeline, whose new models come to it; another is that of one model alone."""
        self.device = device
        self.by_piece = order is None
        self.shared = shared
        self.lock = threading.RLock()
        self.transfer = transfer or Transfer(device)
        self.unplaced = frozenset(unplaced)
        self._turns = tuple(order or ())
        self._exclude = tuple(exclude)
        self._division = division
        self._home = home
        self._guests: list[Guest] = []
        self._depth = 0
        self._route = Route()

    def host(self, name: str, model: nn.Module) -> None:
        """From now on the model ``name`` computes on this device, with the parts that it has now."""
        if name in self._exclude:
            stay = Stay.ALWAYS
        elif self.by_piece:
            stay = Stay.FORWARD
        else:
            stay = Stay.TURN if name in self._turns else Stay.CALL
        pieces = self._division(model) if stay is Stay.FORWARD else together(model)
        for number, piece in enumerate(pieces):
            known = [guest for guest in _guests_of(piece.entries[0]) if guest.accelerator is self]
            guest = next((one for one in known if one.module is piece.module), None) or Guest(
                piece, self, stay
            )
            self._attach(guest, piece.entries)
            with self.lock:
                if stay is Stay.ALWAYS:
                    self.admit(guest)
                elif guest not in self._guests:
                    self._home(f"{name}.{number:04d}", piece.owners(piece.module))

    def _attach(self, guest: Guest, entries: Iterable[nn.Module]) -> None:
        for module in entries:
            if not any(known.accelerator is self for known in _guests_of(module)):
                module.register_forward_pre_hook(guest.enter, with_kwargs=True)
                module.register_forward_hook(guest.leave, always_call=True)

    def admit(self, guest: Guest) -> None:
        """Bring the guest's weights, after those whose turn ends have left; the caller holds the lock."""
        if guest not in self._guests:
            if guest.stay is Stay.TURN:
                self.dismiss([other for other in self._guests if other.stay is Stay.TURN])
            self._receive(guest)
        guest.settle()

    def _receive(self, guest: Guest) -> None:
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
        """Drop all copies but those that stay for good; for when no ``forward`` is running in this thread.

        One that Ctrl-C broke off, after which PyTorch calls no hooks, has then left too.
        """
        with self.lock:
            while self._depth:
                self._depth -= 1
                self.lock.release()
            for guest in self._guests:
                guest.inside = 0
            self._route.stop()
            self.dismiss([guest for guest in self._guests if guest.stay is not Stay.ALWAYS])

    def begin(self, guest: Guest) -> None:
        """A ``forward`` that needs the guest begins; the lock is held until :meth:`end`."""
        self.lock.acquire()
        self._depth += 1
        guest.inside += 1
        self.admit(guest)
        if self.transfer.ahead and guest.stay is Stay.FORWARD and guest.inside == 1:
            self._send_ahead(guest)

    def end(self, guest: Guest, module: nn.Module) -> None:
        """The ``forward`` of ``module`` has ended; with the outermost one all leave that came for it."""
        self._depth -= 1
        guest.inside -= 1
        if guest.stay is Stay.FORWARD and guest.ends_with(module):
            self.dismiss([guest])
        if not self._depth:
            self._route.stop()
            self.dismiss([other for other in self._guests if other.stay is Stay.FORWARD])
        self.lock.release()

    def _send_ahead(self, guest: Guest) -> None:
        """Send what came after this guest the last time; one that was sent and did not come next leaves."""
        expected, following = self._route.step(guest)
        if expected is not None and expected not in (guest, following) and not expected.inside:
            self.dismiss([expected])
        if following is not None and following not in self._guests:
            try:
                self._receive(following)
            except torch.OutOfMemoryError:
                self._route.expected = None  # it comes when it is needed, and others have left


class Route:
    """In which order guests were needed, forward by forward, and who is expected next."""

    def __init__(self) -> None:
        self._after: weakref.WeakKeyDictionary[Guest, weakref.ref[Guest]] = weakref.WeakKeyDictionary()
        self._here: Guest | None = None
        self.expected: Guest | None = None

    def step(self, guest: Guest) -> tuple[Guest | None, Guest | None]:
        """Go to ``guest``: who was expected, and who follows as far as is known."""
        if self._here is not None and self._here is not guest:
            self._after[self._here] = weakref.ref(guest)
        self._here = guest
        following = self._after[guest]() if guest in self._after else None
        before, self.expected = self.expected, following
        return before, following

    def stop(self) -> None:
        """The way ends here; the next begins anew."""
        self._here = self.expected = None


class Guest:
    """Weights that visit an accelerator together."""

    def __init__(self, piece: Piece, accelerator: Accelerator, stay: Stay) -> None:
        self.module = piece.module
        self.owners: Owners = piece.owners
        self.accelerator = accelerator
        self.stay = stay
        self.inside = 0
        self._last = piece.last
        self._home: list[tuple[dict[str, Any], str, torch.Tensor]] = []
        self._sent: tuple[list[torch.Tensor], Any] | None = None
        """The copies that nobody has waited for yet, and what to wait with."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Guest:
        """A copy of a module is a guest of its own."""
        if id(self) not in memo:
            twin = memo[id(self)] = object.__new__(Guest)
            vars(twin).update(vars(self), inside=0, _home=[], _sent=None)
            if self._last is None:
                twin.module = memo.get(id(self.module), self.module)
            else:
                twin.module, twin._last = copy.deepcopy((self.module, self._last), memo)
        return memo[id(self)]

    def arrive(self) -> None:
        """Put copies on the accelerator in the place of the weights; all or, if that fails, none."""
        self._home = [
            (table, name, tensor)
            for owner in self.owners(self.module)
            for table in _tables(owner)
            for name, tensor in table.items()
            if tensor is not None
        ]
        tensors = {id(tensor): tensor for _, _, tensor in self._home}
        try:
            copies, ticket = self.accelerator.transfer.send([tensor.detach() for tensor in tensors.values()])
        except BaseException:
            self._home = []
            raise
        found = {
            key: nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
            for (key, old), new in zip(tensors.items(), copies, strict=True)
        }
        for table, name, tensor in self._home:
            table[name] = found[id(tensor)]
        self._sent = copies, ticket

    def ends_with(self, module: nn.Module) -> bool:
        """Whether the weights have been used when ``module`` returns."""
        return not self.inside and (self._last is None or self._last is module)

    def settle(self) -> None:
        """What is computed from now on may use the copies."""
        if self._sent is not None:
            self.accelerator.transfer.wait(*self._sent)
            self._sent = None

    def depart(self) -> None:
        """Put the weights at home back in their place."""
        self.accelerator.transfer.used()
        self._sent = None
        while self._home:
            table, name, tensor = self._home.pop()
            table[name] = tensor

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Before ``forward``: weights and arguments come to the accelerator."""
        self.accelerator.begin(self)
        device, unplaced = self.accelerator.device, self.accelerator.unplaced
        named = placed(kwargs, device)
        return placed(args, device), {**named, **{key: kwargs[key] for key in unplaced & kwargs.keys()}}

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """After ``forward``, also one that failed."""
        self.accelerator.end(self, module)


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


def _tables(owner: nn.Module) -> tuple[dict[str, Any], ...]:
    return owner._parameters, owner._buffers


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
