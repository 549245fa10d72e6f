"""Procedures that can be computed in another way, which is chosen from outside and for the time of a call.

The plain procedure stands where it is marked; what computes the same faster on some device is given as a table. The
table belongs to a thread's context, so models hold nothing of it and calls in other threads are not concerned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from types import MappingProxyType
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")

Table = Mapping[Callable[..., Any], Callable[..., Any]]
"""A marked procedure -> what is called in its place, with the same arguments."""

_TABLE: ContextVar[Table] = ContextVar("calotype_replaced", default=MappingProxyType({}))


def replaceable(plain: Callable[P, T]) -> Callable[P, T]:
    """Mark a procedure; compiled code always runs the plain one, which is its ``__wrapped__``."""

    @wraps(plain)
    def procedure(*args: P.args, **kwargs: P.kwargs) -> T:
        if torch.compiler.is_compiling():
            return plain(*args, **kwargs)
        instead = _TABLE.get().get(procedure)
        return plain(*args, **kwargs) if instead is None else instead(*args, **kwargs)

    return procedure


@contextmanager
def replaced(table: Table) -> Iterator[None]:
    """Within this, in this thread, the procedures of ``table`` are computed by what stands there, others as before."""
    token = _TABLE.set({**_TABLE.get(), **table})
    try:
        yield
    finally:
        _TABLE.reset(token)
