"""What of a model visits the accelerator together: all of it, single layers, or some of its blocks.

A piece names the modules by whose ``forward`` it begins and ends, so the models are divided from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from torch import nn

READS_BELOW = "reads_weights_below"
"""Set on a class of modules that read the weights of their children without calling them."""

Owners = Callable[[nn.Module], Iterable[nn.Module]]
"""The modules whose own weights a piece takes, as they are now, from the module that the piece belongs to."""


@dataclass(frozen=True)
class Piece:
    """A part of a model: whose weights, where it is entered, and by leaving which module it has ended."""

    module: nn.Module
    owners: Owners
    entries: tuple[nn.Module, ...]
    last: nn.Module | None = None
    """The last of several entries that take their turns; None where leaving any entry from outside ends it."""


Division = Callable[[nn.Module], Iterable[Piece]]


def own(module: nn.Module) -> Iterator[nn.Module]:
    """The module alone."""
    yield module


def whole(module: nn.Module) -> Iterator[nn.Module]:
    """The module and all below it."""
    yield from module.modules()


def some(start: int, stop: int, blocks: nn.Module) -> Iterator[nn.Module]:
    """The blocks ``start`` to ``stop`` of a list and all below them."""
    for block in list(blocks.children())[start:stop]:
        yield from block.modules()


def rest(names: Collection[str], module: nn.Module) -> Iterator[nn.Module]:
    """The module and what is below it but in none of its blocks."""
    taken = {part for block in _blocks(module, names) for part in block.modules()}
    yield from (part for part in module.modules() if part not in taken)


def together(model: nn.Module) -> Iterator[Piece]:
    """The whole model as one piece."""
    yield Piece(model, whole, _entries(model))


def layers(model: nn.Module) -> Iterator[Piece]:
    """Each module that has weights of its own, and the model itself, for its arguments."""
    below: set[nn.Module] = set()
    for module in model.modules():
        if module in below:
            continue
        reads = _reads_below(module)
        if reads:
            below.update(module.modules())
        if reads or module is model or _has_own(module):
            yield Piece(module, whole if reads else own, _entries(module) if reads else (module,))


def blocks(size: int, names: Collection[str], model: nn.Module) -> Iterator[Piece]:
    """``size`` blocks at a time of each list of blocks in the model, and the rest of it, which stays for its forward.

    With ``names`` only these children of the model are blocks, or lists of them.
    """
    for found in _blocks(model, names):
        parts = tuple(found.children()) if isinstance(found, nn.ModuleList | nn.Sequential) else ()
        if not parts:
            yield Piece(found, whole, (found,))
        for start in range(0, len(parts), size):
            group = parts[start : start + size]
            if len(group) == 1:
                yield Piece(group[0], whole, group)
            else:
                yield Piece(found, partial(some, start, start + size), group, last=group[-1])
    yield Piece(model, partial(rest, tuple(names)), _entries(model))


def by_blocks(size: int, names: Collection[str] = ()) -> Division:
    """:func:`blocks` of so many, and of these names, as a division."""
    return partial(blocks, size, tuple(names))


def _blocks(model: nn.Module, names: Collection[str]) -> Iterator[nn.Module]:
    """The outermost lists of blocks with weights, or the children of these names."""
    for name, child in model.named_children():
        if names:
            if name in names:
                yield child
        elif isinstance(child, nn.ModuleList | nn.Sequential):
            if next(child.parameters(), None) is not None:
                yield child
        elif not _reads_below(child):
            yield from _blocks(child, names)


def _entries(model: nn.Module) -> tuple[nn.Module, ...]:
    """The model and its parts, by which other methods than ``forward`` (an autoencoder's ``encode``) begin."""
    entries = [model]
    for part in model.children():
        entries += part if isinstance(part, nn.ModuleList) else [part]
    return tuple(entries)


def _reads_below(module: nn.Module) -> bool:
    return isinstance(module, nn.MultiheadAttention) or getattr(type(module), READS_BELOW, False)


def _has_own(module: nn.Module) -> bool:
    return any(tensor is not None for tensor in (*module._parameters.values(), *module._buffers.values()))
