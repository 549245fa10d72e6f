"""Weighted sums of tensors: nearly every step of every method is one of these."""

from __future__ import annotations

import torch


def affine(*terms: tuple[float, torch.Tensor]) -> torch.Tensor:
    """Σ c·x over the ``(c, x)`` given; a term with c = 0 is not read. The result has the promoted dtype."""
    live = [(c, x) for c, x in terms if c != 0]
    if not live:
        return torch.zeros_like(terms[0][1])
    lead = next((i for i, (c, _) in enumerate(live) if c == 1), None)
    if lead is None:
        c, total = live.pop(0)
        total = total * c
        owned = True
    else:
        total = live.pop(lead)[1]
        owned = False
    for c, x in live:
        if owned and x.dtype == total.dtype and x.shape == total.shape:
            total.add_(x, alpha=c)
        else:
            total, owned = torch.add(total, x, alpha=c), True
    return total if owned else total.clone()
