"""Weighted sums of tensors: nearly every step of every method is a few of these, some over others.

On the CPU a sum is computed at once. On CUDA, where Triton is installed, it is put off, and `evaluate` computes all
that a step needs in one kernel (`acceleration/affine_kernel.py`).
"""

from __future__ import annotations

from functools import cache, reduce
from types import ModuleType
from typing import TypeAlias

import torch
from torch import Tensor


class Sum:
    """(Σ c·x)/divisor, clipped to ±bound, of ``dtype``: not computed yet. The x are tensors or other sums."""

    __slots__ = ("bound", "divisor", "dtype", "terms")

    def __init__(
        self, terms: tuple[Term, ...], divisor: float, bound: float | None, dtype: torch.dtype | None
    ) -> None:
        self.terms = tuple(term for term in terms if term[0] != 0) or terms[:1]
        self.divisor, self.bound = divisor, bound
        self.dtype: torch.dtype = dtype or reduce(torch.promote_types, (x.dtype for _, x in self.terms))


Value: TypeAlias = Tensor | Sum
Term: TypeAlias = tuple[float, Value]


def affine(
    *terms: Term, divisor: float = 1.0, bound: float | None = None, dtype: torch.dtype | None = None
) -> Value:
    """(Σ c·x)/divisor over the ``(c, x)`` given, clipped to ±``bound``, in ``dtype`` (default: the promoted one).

    A term with c = 0 is not read. The result shares no memory with a term.
    """
    first = terms[0][1]
    if isinstance(first, Sum) or deferred(first):
        return Sum(terms, divisor, bound, dtype)
    total = _added(terms)  # type: ignore[arg-type]
    if divisor != 1.0:
        total.div_(divisor)
    if bound is not None:
        total.clamp_(-bound, bound)
    return total if dtype is None else total.to(dtype)


def cast(x: Tensor, dtype: torch.dtype) -> Value:
    """``x`` in another dtype."""
    if x.dtype is dtype:
        return x
    return Sum(((1.0, x),), 1.0, None, dtype) if deferred(x) else x.to(dtype)


def evaluate(*values: Value) -> tuple[Tensor, ...]:
    """The tensors that sums stand for, all in one kernel where that can be; tensors are handed through."""
    wanted = [value for value in values if type(value) is Sum]
    if not wanted:
        return values  # type: ignore[return-value]
    computed = kernels().evaluated(wanted) or one_by_one(wanted)  # type: ignore[union-attr]
    found = {id(x): tensor for x, tensor in zip(wanted, computed, strict=True)}
    return tuple(found.get(id(value), value) for value in values)


def combined(*terms: tuple[float, Tensor]) -> Tensor:
    """``affine``, computed."""
    return evaluate(affine(*terms))[0]


def one_by_one(wanted: list[Sum]) -> list[Tensor]:
    """The sums computed by PyTorch, those that they stand on first."""
    known: dict[int, Tensor] = {}

    def computed(x: Value) -> Tensor:
        if isinstance(x, Tensor):
            return x
        if id(x) not in known:
            total = _added(tuple((c, computed(y)) for c, y in x.terms))
            total = total if x.divisor == 1.0 else total.div_(x.divisor)
            total = total if x.bound is None else total.clamp_(-x.bound, x.bound)
            known[id(x)] = total.to(x.dtype)
        return known[id(x)]

    return [computed(x) for x in wanted]


def _added(terms: tuple[tuple[float, Tensor], ...]) -> Tensor:
    total: Tensor | None = None
    owned = False
    rest = terms
    for i, (c, x) in enumerate(terms):  # a term with c = 1 goes first: it needs no pass of its own
        if c == 1:
            total, rest = x, terms[:i] + terms[i + 1 :]
            break
    for c, x in rest:
        if c == 0:
            continue
        if total is None:
            total, owned = x * c, True
        elif owned and x.dtype is total.dtype and x.shape == total.shape:
            total.add_(x, alpha=c)
        else:
            total, owned = torch.add(total, x, alpha=c), True
    if total is None:
        return torch.zeros_like(terms[0][1])
    return total if owned else total.clone()


def deferred(x: Tensor) -> bool:
    """Whether sums over this tensor are put off."""
    return x.is_cuda and kernels() is not None


@cache
def kernels() -> ModuleType | None:
    """`affine_kernel`, if Triton is there, new enough (3.3: its kernels take tuples) and proven on this machine."""
    try:
        import triton
    except ImportError:
        return None
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 3):
        return None
    from calotype.acceleration import affine_kernel

    return affine_kernel if affine_kernel.proven(Sum, one_by_one) else None
