"""Forward and backward pass of a batch, on a CPU in parts side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext

import torch

Batch = Mapping[str, torch.Tensor]
Compute = Callable[[Batch], Mapping[str, torch.Tensor]]


def precision(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Autocast to ``dtype``; none without one."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def accumulate_gradients(
    compute: Compute,
    batch: Batch,
    *,
    share: float,
    device: torch.device,
    dtype: torch.dtype | None,
    threads: int = 1,
) -> Mapping[str, torch.Tensor]:
    """Add ``share`` times the gradient of the batch's loss to the parameters, and return what was computed, detached.

    With ``threads`` above one the batch is cut into as many parts, each of which goes forward and backward in a
    thread of its own; the values are the parts' means. On few processors that others use too this is faster than
    threads within every operation, which wait for each other thousands of times a step. Gradients of the parts add
    up in no fixed order, so runs agree only up to rounding.
    """

    def run(part: Batch, weight: float) -> Mapping[str, torch.Tensor]:
        with precision(device, dtype):  # autocast is a thread's own
            values = compute(part)
        (values["loss"] * weight).backward()
        return {name: value.detach().float() for name, value in values.items()}

    size = len(next(iter(batch.values())))
    count = min(threads, size)
    if count == 1:
        return run(batch, share)
    cut = {name: value.chunk(count) for name, value in batch.items()}
    lengths = [len(part) for part in next(iter(cut.values()))]
    parts = [{name: pieces[i] for name, pieces in cut.items()} for i in range(len(lengths))]
    with ThreadPoolExecutor(len(parts)) as pool:
        results = list(pool.map(run, parts, [share * n / size for n in lengths]))
    return {
        name: torch.stack([r[name] * (n / size) for r, n in zip(results, lengths, strict=True)]).sum(0)
        for name in results[0]
    }
