"""Coefficients of a batch whose items are at different steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def columns(rows: Sequence[Sequence[float]], like: torch.Tensor) -> list[torch.Tensor]:
    """Each coefficient of the items' rows as a tensor shaped to multiply ``like``, on its device, in its dtype."""
    table = torch.tensor(rows, dtype=torch.float64).to(like.device, like.dtype)
    return [column.reshape(-1, *(1,) * (like.dim() - 1)) for column in table.unbind(1)]
