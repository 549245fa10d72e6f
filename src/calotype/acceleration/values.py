"""A call's arguments taken apart: the tensors in them, and the form that they stand in."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch
from torch import Tensor


class Place:
    """Where a tensor stands in a form; two forms are equal where the shapes, types and layouts are."""

    __slots__ = ("description", "index")

    def __init__(self, index: int, tensor: Tensor) -> None:
        self.index = index
        self.description = (index, tuple(tensor.shape), tensor.dtype, layout(tensor))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Place) and self.description == other.description

    def __hash__(self) -> int:
        return hash(self.description)


@dataclass(frozen=True)
class Entries:
    """A list, tuple or mapping in a form."""

    kind: type
    keys: tuple[Hashable, ...]
    parts: tuple[Hashable, ...]


def layout(tensor: Tensor) -> str:
    """How a tensor lies in memory, as far as the copy of it in a static buffer keeps that."""
    if (
        tensor.ndim == 4
        and not tensor.is_contiguous()
        and tensor.is_contiguous(memory_format=torch.channels_last)
    ):
        return "channels last"
    return "contiguous"


def taken_apart(value: Any) -> tuple[list[Tensor], Hashable]:
    """The tensors of ``value`` in their order, and its form; ``TypeError`` where a part cannot stand in a form."""
    tensors: list[Tensor] = []

    def form(part: Any) -> Hashable:
        if isinstance(part, Tensor):
            tensors.append(part)
            return Place(len(tensors) - 1, part)
        if isinstance(part, Mapping):
            kind = type(part) if is_dataclass(part) else dict
            return Entries(kind, tuple(part), tuple(form(entry) for entry in part.values()))
        if isinstance(part, list | tuple):
            return Entries(type(part), (), tuple(form(entry) for entry in part))
        hash(part)
        return part if part is None or isinstance(part, str) else (type(part), part)

    return tensors, form(value)


def put_together(form: Hashable, tensors: list[Tensor]) -> Any:
    """The value of a form with these tensors in it."""
    if isinstance(form, Place):
        return tensors[form.index]
    if isinstance(form, Entries):
        parts = [put_together(part, tensors) for part in form.parts]
        if form.kind is dict:
            return dict(zip(form.keys, parts, strict=True))
        if is_dataclass(form.kind):  # an output that is a mapping too, which leaves out what is None
            return form.kind(**dict(zip(form.keys, parts, strict=True)))  # type: ignore[arg-type]
        return form.kind(*parts) if hasattr(form.kind, "_fields") else form.kind(parts)
    return form[1] if isinstance(form, tuple) else form


def places(form: Hashable, wanted: Callable[[Hashable], bool]) -> Iterator[int]:
    """The tensors that stand in a form's top mapping under a key that is ``wanted``."""
    if isinstance(form, Entries):
        for key, part in zip(form.keys, form.parts, strict=False):
            if isinstance(part, Place) and wanted(key):
                yield part.index
