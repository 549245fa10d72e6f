"""Group normalisation with what stands around it: an offset before, SiLU after (https://arxiv.org/abs/1803.08494).

PyTorch takes three passes over contiguous memory for norm and activation, and turns channels-last maps around for it.
Here a map is read twice and written once, in the layout that it has; channels-last and small enough to stay near the
processors, it is read once (``group_norm_cluster``). Means and squared deviations are combined tile by
tile as in Chan, Golub and LeVeque (1979), so a large mean costs no digits.
"""

# mypy: disable-error-code="no-untyped-def, assignment"

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from calotype.acceleration.ahead import Kernel
from calotype.acceleration.kernels import group_norm_cluster

TILE = 4096
"""Elements that a program holds at a time."""
HALF_TILE = 2048
"""The same in the kernels for channels-last maps, which keep two sums for each."""
STATISTICS = 8192
"""Statistics of a group, a pair for each channel and chunk, that one program combines."""
PROGRAMS = 1024
"""Programs that fill the device a few times over."""
CHUNKS = 64
"""Pieces of a map at most, whose statistics every program of the second pass combines."""


@Kernel
@triton.jit
def statistics(
    x, shift, offset, means, deviations, size, image, channel, pixel, shift_row, width, groups, tiles, chunks,
    ROWS: tl.constexpr, GROUPS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared deviations of each group in a chunk of the pixels, for ``GROUPS`` groups at a time."""
    n = tl.program_id(0)
    chunk = tl.program_id(1)
    group = tl.program_id(2) * GROUPS + tl.arange(0, GROUPS)
    lane = tl.arange(0, LANES)
    c = group[:, None] * width + lane[None, :]
    here = (lane[None, :] < width) & (group[:, None] < groups)
    added = tl.load(shift + n * shift_row + c, mask=here, other=0.0).to(tl.float32)
    added += tl.load(offset + c, mask=here, other=0.0).to(tl.float32)
    base = x + n.to(tl.int64) * image
    count = tl.zeros((GROUPS,), dtype=tl.float32)
    mean = tl.zeros((GROUPS,), dtype=tl.float32)
    squares = tl.zeros((GROUPS,), dtype=tl.float32)
    tile = 0  # counted by hand: the interpreter knows no range over an argument
    while tile < tiles:
        p = (chunk * tiles + tile) * ROWS + tl.arange(0, ROWS)
        inside = (p < size)[:, None, None] & here[None, :, :]
        at = p.to(tl.int64)[:, None, None] * pixel + (c * channel)[None, :, :]
        value = tl.load(base + at, mask=inside, other=0.0).to(tl.float32) + added[None, :, :]
        value = tl.where(inside, value, 0.0)
        rows = tl.minimum(tl.maximum(size - (chunk * tiles + tile) * ROWS, 0), ROWS)
        some = tl.maximum(rows * width, 1).to(tl.float32)
        its_mean = tl.sum(tl.sum(value, axis=2), axis=0) / some
        apart = tl.where(inside, value - its_mean[None, :, None], 0.0)
        its_squares = tl.sum(tl.sum(apart * apart, axis=2), axis=0)
        new = (rows * width).to(tl.float32)
        total = count + new
        part = new / tl.maximum(total, 1.0)
        delta = its_mean - mean
        mean += delta * part
        squares += its_squares + delta * delta * count * part
        count = total
        tile += 1
    to = (n * groups + group) * chunks + chunk
    tl.store(means + to, mean, mask=group < groups)
    tl.store(deviations + to, squares, mask=group < groups)


@Kernel
@triton.jit
def normalise(
    x, y, shift, offset, weight, bias, means, deviations, size, image, channel, pixel, shift_row, width, groups,
    tiles, rows_of_chunk, chunks, eps, silu, ROWS: tl.constexpr, GROUPS: tl.constexpr, LANES: tl.constexpr,
    CHUNKS: tl.constexpr,
):  # fmt: skip
    """The map normalised by the statistics of all chunks, scaled, shifted and activated."""
    n = tl.program_id(0)
    group = tl.program_id(2) * GROUPS + tl.arange(0, GROUPS)
    lane = tl.arange(0, LANES)
    c = group[:, None] * width + lane[None, :]
    here = (lane[None, :] < width) & (group[:, None] < groups)
    chunk = tl.arange(0, CHUNKS)
    there = (chunk < chunks)[None, :] & (group < groups)[:, None]
    of = (n * groups + group)[:, None] * chunks + chunk[None, :]
    rows = tl.minimum(tl.maximum(size - chunk * rows_of_chunk, 0), rows_of_chunk)
    count = (rows * width).to(tl.float32)[None, :]
    some = size * width + 0.0
    its_mean = tl.load(means + of, mask=there, other=0.0)
    mean = tl.sum(its_mean * count, axis=1) / some
    apart = its_mean - mean[:, None]
    squares = tl.load(deviations + of, mask=there, other=0.0) + tl.where(there, count * apart * apart, 0.0)
    scale = tl.rsqrt(tl.sum(squares, axis=1) / some + eps)
    w = tl.load(weight + c, mask=here, other=0.0).to(tl.float32) * scale[:, None]
    b = tl.load(bias + c, mask=here, other=0.0).to(tl.float32) - mean[:, None] * w
    added = tl.load(shift + n * shift_row + c, mask=here, other=0.0).to(tl.float32)
    added += tl.load(offset + c, mask=here, other=0.0).to(tl.float32)
    b += added * w
    base = n.to(tl.int64) * image
    tile = 0
    while tile < tiles:
        p = (tl.program_id(1) * tiles + tile) * ROWS + tl.arange(0, ROWS)
        inside = (p < size)[:, None, None] & here[None, :, :]
        at = base + p.to(tl.int64)[:, None, None] * pixel + (c * channel)[None, :, :]
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) * w[None, :, :] + b[None, :, :]
        if silu == 1:
            value = value * tl.sigmoid(value)
        tl.store(y + at, value.to(y.dtype.element_ty), mask=inside)
        tile += 1


@Kernel
@triton.jit
def channel_sums(
    x, shift, offset, means, deviations, size, channels, shift_row, tiles, chunks,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared deviations of each channel in a chunk of a channels-last map's pixels.

    The sums are of differences from the chunk's first pixel, so a large mean costs no digits.
    """
    n = tl.program_id(0)
    chunk = tl.program_id(1)
    c = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    there = c < channels
    base = x + n.to(tl.int64) * size * channels
    first = chunk * tiles * ROWS
    pivot = tl.load(base + first.to(tl.int64) * channels + c, mask=there, other=0.0).to(tl.float32)
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    squares = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    tile = 0
    while tile < tiles:
        p = first + tile * ROWS + tl.arange(0, ROWS)
        inside = (p < size)[:, None] & there[None, :]
        at = p.to(tl.int64)[:, None] * channels + c[None, :]
        value = tl.load(base + at, mask=inside, other=0.0).to(tl.float32)
        apart = tl.where(inside, value - pivot[None, :], 0.0)
        total += apart
        squares += apart * apart
        tile += 1
    count = tl.minimum(size - first, tiles * ROWS).to(tl.float32)
    its_mean = tl.sum(total, axis=0) / count
    its_squares = tl.maximum(tl.sum(squares, axis=0) - its_mean * its_mean * count, 0.0)
    added = tl.load(shift + n * shift_row + c, mask=there, other=0.0).to(tl.float32)
    added += tl.load(offset + c, mask=there, other=0.0).to(tl.float32)
    to = (n * chunks + chunk) * channels + c
    tl.store(means + to, its_mean + pivot + added, mask=there)
    tl.store(deviations + to, its_squares, mask=there)


@Kernel
@triton.jit
def factors(
    means, deviations, shift, offset, weight, bias, scales, biases, size, channels, shift_row, width, rows_of_chunk,
    chunks, eps, CHUNKS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """What each channel is multiplied by and what is added then, from the statistics of a group's channels."""
    n = tl.program_id(0)
    lane = tl.arange(0, LANES)
    chunk = tl.arange(0, CHUNKS)
    c = tl.program_id(1) * width + lane
    here = lane < width
    there = (chunk < chunks)[:, None] & here[None, :]
    of = (n * chunks + chunk)[:, None] * channels + c[None, :]
    rows = tl.minimum(tl.maximum(size - chunk * rows_of_chunk, 0), rows_of_chunk).to(tl.float32)[:, None]
    some = size * width + 0.0
    its_mean = tl.load(means + of, mask=there, other=0.0)
    mean = tl.sum(tl.sum(its_mean * rows, axis=1), axis=0) / some
    apart = its_mean - mean
    squares = tl.load(deviations + of, mask=there, other=0.0)
    squares += tl.where(there, rows * apart * apart, 0.0)
    scale = tl.rsqrt(tl.sum(tl.sum(squares, axis=1), axis=0) / some + eps)
    w = tl.load(weight + c, mask=here, other=0.0).to(tl.float32) * scale
    added = tl.load(shift + n * shift_row + c, mask=here, other=0.0).to(tl.float32)
    added += tl.load(offset + c, mask=here, other=0.0).to(tl.float32)
    b = tl.load(bias + c, mask=here, other=0.0).to(tl.float32) + (added - mean) * w
    tl.store(scales + n * channels + c, w, mask=here)
    tl.store(biases + n * channels + c, b, mask=here)


@Kernel
@triton.jit
def scaled(
    x, y, scales, biases, size, channels, tiles, SILU: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Each channel of a channels-last map scaled, shifted and activated."""
    n = tl.program_id(0)
    c = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    there = c < channels
    w = tl.load(scales + n * channels + c, mask=there, other=0.0)
    b = tl.load(biases + n * channels + c, mask=there, other=0.0)
    base = n.to(tl.int64) * size * channels
    tile = 0
    while tile < tiles:
        p = (tl.program_id(1) * tiles + tile) * ROWS + tl.arange(0, ROWS)
        inside = (p < size)[:, None] & there[None, :]
        at = base + p.to(tl.int64)[:, None] * channels + c[None, :]
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) * w[None, :] + b[None, :]
        if SILU:
            value = value * tl.sigmoid(value)
        tl.store(y + at, value.to(y.dtype.element_ty), mask=inside)
        tile += 1


def plain(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    silu: bool = False,
    shift: Tensor | None = None,
    offset: Tensor | None = None,
) -> Tensor:
    """The same in PyTorch."""
    if offset is not None:
        x = x + offset[:, None, None]
    if shift is not None:
        x = x + shift[:, :, None, None]
    h = F.group_norm(x, groups, weight, bias, eps)
    return F.silu(h) if silu else h


def fused(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    silu: bool = False,
    shift: Tensor | None = None,
    offset: Tensor | None = None,
) -> Tensor:
    """Group normalisation of ``x`` + shift (batch, channels) + offset (channels,), then SiLU, in the layout of ``x``.

    ``x`` is (batch, channels, height, width), contiguous or channels-last.
    """
    if not (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)):
        x = x.contiguous(memory_format=torch.channels_last)
    none = nothing(x.shape[1], x)
    shift_row = 0 if shift is None else shift.stride(0)
    given = none if shift is None else shift, none if offset is None else offset
    if group_norm_cluster.fit(x, groups, *given, weight, bias, shift_row=shift_row):
        run = group_norm_cluster.fused
    else:
        run = _channels_last if x.is_contiguous(memory_format=torch.channels_last) else _contiguous
    return run(x, groups, weight, bias, eps, silu, *given, shift_row)


def _channels_last(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool, shift: Tensor, offset: Tensor,
    shift_row: int,
) -> Tensor:  # fmt: skip
    batch, channels, height, wide = x.shape
    size, width = height * wide, channels // groups
    columns = 128 if channels % 128 == 0 else 64
    rows = HALF_TILE // columns
    blocks, tiles = triton.cdiv(channels, columns), triton.cdiv(size, rows)
    lanes = triton.next_power_of_2(width)
    chunks = max(min(PROGRAMS // (batch * blocks), STATISTICS // lanes, tiles), 1)
    tiles_of_chunk = triton.cdiv(tiles, chunks)
    chunks = triton.cdiv(tiles, tiles_of_chunk)
    y = torch.empty_like(x)
    means = torch.empty(2, batch, chunks, channels, dtype=torch.float32, device=x.device)
    scales = torch.empty(2, batch, channels, dtype=torch.float32, device=x.device)
    channel_sums[(batch, chunks, blocks)](
        x, shift, offset, means[0], means[1], size, channels, shift_row, tiles_of_chunk, chunks, rows, columns,
        num_warps=4,
    )  # fmt: skip
    factors[(batch, groups)](
        means[0], means[1], shift, offset, weight, bias, scales[0], scales[1], size, channels, shift_row, width,
        tiles_of_chunk * rows, chunks, eps, triton.next_power_of_2(chunks), lanes, num_warps=4,
    )  # fmt: skip
    each = max(tiles * batch * blocks // (8 * PROGRAMS), 1)
    scaled[(batch, triton.cdiv(tiles, each), blocks)](
        x, y, scales[0], scales[1], size, channels, each, silu, rows, columns, num_warps=4
    )
    return y


def _contiguous(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool, shift: Tensor, offset: Tensor,
    shift_row: int,
) -> Tensor:  # fmt: skip
    batch, channels, height, wide = x.shape
    size, width = height * wide, channels // groups
    lanes = triton.next_power_of_2(width)
    rows = max(TILE // lanes, 16)
    tiles = triton.cdiv(size, rows)
    chunks = max(min(CHUNKS, PROGRAMS // max(batch * groups, 1), tiles), 1)
    tiles_of_chunk = triton.cdiv(tiles, chunks)
    chunks = triton.cdiv(tiles, tiles_of_chunk)
    y = torch.empty_like(x)
    means = torch.empty(batch, groups, chunks, dtype=torch.float32, device=x.device)
    deviations = torch.empty_like(means)
    image = channels * size
    statistics[(batch, chunks, groups)](
        x, shift, offset, means, deviations, size, image, size, 1, shift_row, width, groups, tiles_of_chunk, chunks,
        rows, 1, lanes, num_warps=4,
    )  # fmt: skip
    each = max(tiles * batch * groups // (4 * PROGRAMS), 1)
    normalise[(batch, triton.cdiv(tiles, each), groups)](
        x, y, shift, offset, weight, bias, means, deviations, size, image, size, 1, shift_row, width, groups,
        each, tiles_of_chunk * rows, chunks, eps, int(silu), rows, 1, lanes, CHUNKS, num_warps=4,
    )  # fmt: skip
    return y


_NOTHING: dict[tuple[torch.device, torch.dtype], Tensor] = {}


def nothing(channels: int, like: Tensor) -> Tensor:
    """Zeros for an offset that there is not; the same memory each time."""
    key = like.device, like.dtype
    found = _NOTHING.get(key)
    if found is None or len(found) < channels:
        found = torch.zeros(max(channels, 4096), dtype=like.dtype, device=like.device)
        _NOTHING[key] = found
    return found
