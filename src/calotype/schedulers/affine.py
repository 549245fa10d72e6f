"""Weighted sums of tensors: nearly every step of every method is one of these."""

from __future__ import annotations

import torch


def affine(*terms: tuple[float, torch.Tensor]) -> torch.Tensor:
    """Σ c·x over the ``(c, x)`` given; a term with c = 0 is not read. The result has the promoted dtype."""
    total: torch.Tensor | None = None
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
