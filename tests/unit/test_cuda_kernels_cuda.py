"""Kernels in CUDA C++ on a device that has their instructions, beside PyTorch in float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from calotype.acceleration.ahead import compiled_first
from calotype.acceleration.cuda.available import available
from calotype.acceleration.devices import CudaGraphs
from calotype.acceleration.kernels import (
    convolutions,
    gate_products,
    group_norm,
    group_norm_cluster,
    layer_norm,
    matrix_products,
    narrow_attention,
    short_attention,
)
from calotype.acceleration.kernels.limits import processors
from tests.on_cuda import error, random, whole_float32  # noqa: F401

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9,
    reason="needs a Hopper device",
)

TYPES = (torch.bfloat16, torch.float16)
BOUND = {torch.float16: 4e-4, torch.bfloat16: 3e-3}
"""What a rounding to the type makes at most, 2.4e-4 and 2e-3 of each number, with room for the sums."""
LAST = torch.channels_last


def right_however_launched(
    kernel: Callable[..., Tensor],
    plain: Callable[..., Tensor],
    given: tuple[Any, ...],
    bound: float,
    **how: Any,
) -> None:
    """At once and from a graph, with other numbers the second time."""
    with torch.inference_mode():
        compiled_first(lambda: kernel(*given, **how))
        graph, replayed = CudaGraphs(given[0].device).capture(lambda: kernel(*given, **how))
        for _ in range(2):
            right = plain(*(None if one is None else one.float() for one in given))
            found = kernel(*given, **how)
            graph.replay()
            assert found.shape == right.shape
            assert error(found, right) < bound
            assert torch.equal(replayed, found)
            given[0].copy_(torch.randn_like(given[0]))


def test_they_are_in_use_here() -> None:
    place = torch.device("cuda", torch.cuda.current_device())
    assert available(place)
    assert gate_products.available(place)
    assert convolutions.available(place)
    assert matrix_products.available(place)
    assert narrow_attention.available(place)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    "size",
    [(1, 2048, 1280, 5120), (3, 700, 320, 1280), (1, 1000, 640, 2560), (1, 77, 64, 128), (2, 4096, 64, 256)],
)
def test_gates_with_their_product(dtype: torch.dtype, size: tuple[int, ...]) -> None:
    batch, rows, width, half = size
    x, weight, bias = (
        random(*shape, dtype=dtype) for shape in ((batch, rows, width), (2 * half, width), (2 * half,))
    )
    weight *= width**-0.5
    tiles = -(-batch * rows // 256) * (half // 128)
    enough = gate_products.PAIRED_TURNS * (processors(x.device) // 2)
    assert (gate_products.fit(x, weight, bias) is gate_products.paired) == (tiles >= enough)
    right_however_launched(gate_products.paired, gate_products.plain, (x, weight, bias), BOUND[dtype])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("rows", "out", "depth", "beside"),
    [((2, 1024), 1280, 1280, 0), ((3, 700), 320, 128, 0), ((1, 5), 160, 320, 64), ((2, 9000), 480, 640, 320)],
)
@pytest.mark.parametrize(("bias", "other"), [(True, True), (True, False), (False, True), (False, False)])
def test_products(
    dtype: torch.dtype, rows: tuple[int, int], out: int, depth: int, beside: int, bias: bool, other: bool
) -> None:
    x, weight = random(*rows, depth, dtype=dtype), random(out, depth + beside, dtype=dtype)
    weight *= (depth + beside) ** -0.5
    given = (
        x,
        weight,
        random(out, dtype=dtype) if bias else None,
        random(*rows, out, dtype=dtype) if other else None,
        random(*rows, beside, dtype=dtype) if beside else None,
    )
    right_however_launched(matrix_products.fused, matrix_products.plain, given, BOUND[dtype])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    "size", [(2, 1024, 1280), (3, 333, 320), (1, 7, 640), (1, 1, 768), (2, 50, 2048), (5, 9, 8)]
)
@pytest.mark.parametrize("summed", [True, False])
def test_layer_norms(dtype: torch.dtype, size: tuple[int, int, int], summed: bool) -> None:
    width = size[-1]
    given = (
        random(*size, dtype=dtype), random(width, dtype=dtype), random(width, dtype=dtype), random(*size, dtype=dtype),
    )  # fmt: skip

    def kernel(x: Tensor, weight: Tensor, bias: Tensor, more: Tensor) -> Tensor:
        assert layer_norm._is_in_cuda(x, weight, bias, more)
        return torch.cat(layer_norm.fused(x, weight, bias, 1e-5, more if summed else None))

    def plain(x: Tensor, weight: Tensor, bias: Tensor, more: Tensor) -> Tensor:
        total = (x + more).to(dtype).float() if summed else x
        return torch.cat([total, torch.nn.functional.layer_norm(total, (width,), weight, bias, 1e-5)])

    right_however_launched(kernel, plain, given, BOUND[dtype])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("form", sorted({form[:3] for form in convolutions.FORMS}))
@pytest.mark.parametrize(
    ("size", "bias", "other"),
    [
        ((2, 320, 64, 64), True, True),
        ((3, 64, 24, 40), True, False),
        ((1, 128, 17, 23), False, True),
        ((5, 192, 8, 8), False, False),  # three boxes
        ((1, 64, 1, 1), True, True),
        ((2, 64, 3, 200), True, True),
    ],
)
def test_convolutions(
    dtype: torch.dtype, form: tuple[int, int, int], size: tuple[int, int, int, int], bias: bool, other: bool
) -> None:
    n, c, h, w = size
    o = 2 * form[0]
    x = random(*size, dtype=dtype).contiguous(memory_format=LAST)
    weight = (random(o, c, 3, 3, dtype=dtype) * (9 * c) ** -0.5).contiguous(memory_format=LAST)
    given = (
        x,
        weight,
        random(o, dtype=dtype) if bias else None,
        random(n, o, h, w, dtype=dtype).contiguous(memory_format=LAST) if other else None,
    )
    box = min(convolutions.BOXES, key=lambda box: box.covering(n, h, w))
    plan = convolutions.Plan(*form, box)
    # what is added to a rounded sum makes a second rounding
    bound = BOUND[dtype] * (1.5 if other else 1)
    right_however_launched(convolutions.fused, convolutions.plain, given, bound, divided=plan)


@pytest.mark.parametrize(
    "size", [(2, 320, 64, 64, 320), (2, 640, 32, 32, 640), (2, 1280, 16, 16, 1280), (2, 1280, 8, 8, 1280)]
)
def test_convolutions_as_they_are_planned(size: tuple[int, ...]) -> None:
    n, c, h, w, o = size
    x = random(n, c, h, w, dtype=torch.bfloat16).contiguous(memory_format=LAST)
    weight = (random(o, c, 3, 3, dtype=torch.bfloat16) * (9 * c) ** -0.5).contiguous(memory_format=LAST)
    assert convolutions.fit(x, weight)
    right_however_launched(convolutions.fused, convolutions.plain, (x, weight), BOUND[torch.bfloat16])


FORMS = [one for plans in narrow_attention.PLANS.values() for one in plans.values()]
"""Of attention: those in use, each for both types."""


def name_of(plan: narrow_attention.Plan) -> str:
    return f"{plan.channels}-{plan.warpgroups}-{plan.polynomial}"


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("sharpness", [1, 8])
@pytest.mark.parametrize("plan", FORMS, ids=name_of)
def test_attention(dtype: torch.dtype, sharpness: int, plan: narrow_attention.Plan) -> None:
    """Of numbers of queries and keys that fill no tile, read from one product; as exact as PyTorch's in 16 bits."""
    batch, heads, rows, keys = 4, 8, 1030, 1000
    packed = random(batch, rows, 3 * heads * plan.channels, dtype=dtype)

    def by(attention: Callable[..., Tensor], packed: Tensor, **how: Any) -> Tensor:
        q, k, v = packed.chunk(3, dim=-1)
        scale = sharpness * plan.channels**-0.5
        return attention(q, k[:, :keys], v[:, :keys], heads, scale, **how)

    plain = partial(by, narrow_attention.plain)
    bound = 1.25 * error(plain(packed), plain(packed.float()))
    right_however_launched(partial(by, narrow_attention.fused), plain, (packed,), bound, divided=plan)


def attended(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Of one head, by the formula, so that what is no number goes where it does."""
    q, k, v = (one.float() for one in (q, k, v))
    return (q @ k.mT * scale).softmax(-1) @ v


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("keys", [1000, 90])
@pytest.mark.parametrize("plan", FORMS, ids=name_of)
def test_attention_to_keys_whose_scores_are_far_above_the_first(
    dtype: torch.dtype, keys: int, plan: narrow_attention.Plan
) -> None:
    """In some rows, by powers of two that a sum of weights holds, and by some that it does not."""
    rows, channels = 300, plan.channels
    scale = channels**-0.5
    q, k, v = (random(100, n, channels, dtype=dtype) for n in (rows, keys, keys))  # several tiles a program
    above = torch.tensor([0.0, 40.0, 78.0, 300.0, -40.0, -300.0], device="cuda").repeat(rows // 6)
    q[..., 0] = above / (16 * scale * math.log2(math.e))
    k[..., 0] = torch.where(torch.arange(keys, device="cuda") < keys - 7, 0.0, 16.0)
    right = attended(q, k, v, scale)
    found = narrow_attention.fused(q, k, v, 1, scale, divided=plan)
    bound = 1.25 * error(narrow_attention.plain(q, k, v, 1, scale), right)
    assert error(found, right) < bound
    for part in range(6):  # the largest hide no others
        assert error(found[:, part::6], right[:, part::6]) < 2 * bound


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("plan", FORMS, ids=name_of)
def test_what_is_no_number_is_none_after_attention(dtype: torch.dtype, plan: narrow_attention.Plan) -> None:
    """Wherever it is, and nowhere else; keys that are infinite weigh nothing or make a row no number."""
    rows, keys, channels = 200, 600, plan.channels
    nan, inf = math.nan, math.inf
    at = [(1, r, c, nan) for r, c in ((0, 3), (9, 0), (330, 7))] + [(1, 440, 5, inf), (1, 2, 1, -inf)]
    at += [(0, 17, 2, nan), (0, 90, 4, inf), (2, 70, 6, nan), (2, 599, 8, inf)]
    at += [(1, key, 1, nan) for key in range(450, 466)]  # each place of a thread's
    clean = [random(1, n, channels, dtype=dtype) for n in (rows, keys, keys)]
    clean[0][:, 100, 5] = 0.0  # times infinity it is no number
    for which, row, channel, value in at:
        given = [one.clone() for one in clean]
        given[which][:, row, channel] = value
        right = attended(*given, channels**-0.5)
        found = narrow_attention.fused(*given, 1, channels**-0.5, divided=plan)
        assert torch.equal(found.isfinite(), right.isfinite()), (which, row, channel, value)
        some = right.isfinite()
        assert not some.any() or error(found[some], right[some]) < 2 * BOUND[dtype]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    "size",
    [
        (2, 8, 1030, 40, 77), (20, 8, 300, 40, 77), (2, 20, 1024, 64, 77), (2, 8, 1000, 80, 77), (2, 8, 256, 160, 77),
        (1, 8, 100, 40, 1), (16, 10, 40, 64, 128), (1, 3, 5, 16, 33), (1, 2, 70, 104, 113), (9, 16, 50, 160, 128),
    ],
)  # fmt: skip
def test_attention_to_few_keys(dtype: torch.dtype, size: tuple[int, ...]) -> None:
    """Read from one product, and of keys some more important than others."""
    batch, heads, rows, channels, keys = size
    inner, scale = heads * channels, channels**-0.5
    packed = random(batch, max(rows, keys), 3 * inner, dtype=dtype)

    def by(attention: Callable[..., Tensor], packed: Tensor) -> Tensor:
        q, k, v = packed.chunk(3, dim=-1)
        return attention(q[:, :rows], k[:, :keys], v[:, :keys], heads, 3 * scale)

    def kernel(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> Tensor:
        assert short_attention._is_in_cuda(q, k, v, heads, scale)
        y = q.new_empty(q.shape)
        short_attention._in_cuda(q, k, v, y, heads, scale)
        return y

    plain = partial(by, short_attention.plain)
    bound = max(1.5 * error(plain(packed), plain(packed.float())), BOUND[dtype])
    right_however_launched(partial(by, kernel), plain, (packed,), bound)


@pytest.mark.parametrize("size", [(2, 4096, 40), (8, 1100, 40), (2, 1024, 64), (2, 1024, 80)])
def test_attention_as_it_is_planned(size: tuple[int, int, int]) -> None:
    batch, rows, channels = size
    given = random(batch, rows, 3 * 8 * channels, dtype=torch.bfloat16).chunk(3, dim=-1)
    more = 8, channels**-0.5
    assert narrow_attention.fit(*given, *more)
    right = narrow_attention.plain(*(one.float() for one in given), *more)
    bound = 1.25 * error(narrow_attention.plain(*given, *more), right)
    assert error(narrow_attention.fused(*given, *more), right) < bound


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("size", "near"),
    [
        ((2, 64, 64, 640, 320), True),
        ((16, 32, 32, 1280, 640), True),
        ((2, 8, 8, 1280, 1280), True),
        ((3, 17, 33, 328, 312), True),  # the border lies in a group of 20
        ((2, 128, 128, 640, 320), False),
        ((1, 130, 99, 1280, 640), False),  # in blocks of 128 channels
        ((3, 17, 33, 332, 308), False),  # no whole vectors
    ],
)
def test_group_norms_of_two_maps(dtype: torch.dtype, size: tuple[int, ...], near: bool) -> None:
    """In one launch and in three; in one as of one map of all their channels, to the bit."""
    n, h, w, first, second = size
    channels = first + second
    x, beside = ((random(n, c, h, w) + 3).to(dtype).contiguous(memory_format=LAST) for c in (first, second))
    weight, bias, offset = (random(channels, dtype=dtype) for _ in range(3))
    shift = random(n, channels, dtype=dtype)
    more = shift, offset, weight, bias
    assert group_norm_cluster.fit(x, 32, *more, shift_row=channels, beside=beside) == near

    def by(norm: Callable[..., Tensor], *given: Tensor) -> Tensor:
        x, weight, bias, shift, offset, beside = given
        return norm(x, 32, weight, bias, 1e-5, silu=True, shift=shift, offset=offset, beside=beside)

    given = x, weight, bias, shift, offset, beside
    right_however_launched(partial(by, group_norm.fused), partial(by, group_norm.plain), given, BOUND[dtype])
    found, whole = by(group_norm.fused, *given), torch.cat([x, beside], dim=1)
    assert found.is_contiguous(memory_format=LAST)
    arguments = 32, weight, bias, 1e-5, True, shift, offset, channels
    three = group_norm._channels_last(x, *arguments, beside)
    right = by(group_norm.plain, *(one.float() for one in given))
    assert error(three, right) < BOUND[dtype]
    if near:
        assert torch.equal(found, group_norm_cluster.fused(whole, *arguments))
