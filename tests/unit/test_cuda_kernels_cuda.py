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
from calotype.acceleration.kernels import convolutions, gate_products, narrow_attention
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


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("sharpness", [1, 8])
@pytest.mark.parametrize(
    "plan",
    [one for plans in narrow_attention.PLANS.values() for one in plans],
    ids=lambda one: f"{one.channels}-{one.warpgroups}",
)
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


FORMS = [
    *(one for plans in narrow_attention.PLANS.values() for one in plans),
    narrow_attention.Plan(40, warpgroups=2, keys=128, slots=8, polynomial=2, ahead=1),
    narrow_attention.Plan(40, warpgroups=3, keys=64, slots=16, polynomial=3, ahead=2),
    narrow_attention.Plan(64, warpgroups=2, keys=112, slots=8, polynomial=1, ahead=1, across=True),
    narrow_attention.Plan(80, warpgroups=2, keys=64, slots=12, polynomial=1, ahead=2, across=True),
]
"""Of attention: those in use, and the other ways of asking for products and of summing weights."""


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("keys", [1000, 90])
@pytest.mark.parametrize("plan", FORMS, ids=lambda one: f"{one.channels}-{one.warpgroups}-{one.ahead}")
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
@pytest.mark.parametrize("plan", FORMS, ids=lambda one: f"{one.channels}-{one.warpgroups}-{one.ahead}")
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


@pytest.mark.parametrize("size", [(2, 4096, 40), (8, 1100, 40), (2, 1024, 80)])
def test_attention_as_it_is_planned(size: tuple[int, int, int]) -> None:
    batch, rows, channels = size
    given = random(batch, rows, 3 * 8 * channels, dtype=torch.bfloat16).chunk(3, dim=-1)
    more = 8, channels**-0.5
    assert narrow_attention.fit(*given, *more)
    right = narrow_attention.plain(*(one.float() for one in given), *more)
    bound = 1.25 * error(narrow_attention.plain(*given, *more), right)
    assert error(narrow_attention.fused(*given, *more), right) < bound
