"""The Triton kernels of acceleration beside the same in PyTorch, in Triton's interpreter (TRITON_INTERPRET=1)."""

from __future__ import annotations

from typing import Any

import torch

from calotype.acceleration import row_scales
from calotype.acceleration.kernels import (
    gate_products,
    group_norm,
    layer_norm,
    pointwise,
    products,
    rows,
    short_attention,
    softmax,
)

LAST = torch.channels_last


def compare() -> None:
    """Small shapes with every branch of the kernels, beside PyTorch."""
    torch.manual_seed(0)
    group_norm.PROGRAMS = 16  # so that programs walk over several tiles

    def close(found: Any, right: Any) -> None:
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)

    for shape, groups, lasts in (((2, 12, 5, 7), 4, (True, False)), ((1, 128, 7, 16), 4, (True,))):
        w, b, o = (torch.randn(shape[1]) for _ in range(3))
        s = torch.randn(shape[:2])
        for last in lasts:
            x = torch.randn(shape) + 30
            x = x.contiguous(memory_format=torch.channels_last) if last else x
            for silu, shift, offset in ((True, s, o), (False, None, None)):
                found = group_norm.fused(x, groups, w, b, 1e-5, silu=silu, shift=shift, offset=offset)
                # PyTorch's own loses digits in float32 where maps are channels-last and means large
                d, wd, bd, sd, od = (None if t is None else t.double() for t in (x, w, b, shift, offset))
                right = group_norm.plain(d, groups, wd, bd, 1e-5, silu=silu, shift=sd, offset=od)
                close(found.double(), right)
    # two maps whose border lies within a group, in blocks of 64 channels and of 128
    for first, second, groups in ((72, 56, 4), (128, 256, 3)):
        x, beside = (torch.randn(2, n, 7, 16).contiguous(memory_format=LAST) + 9 for n in (first, second))
        w, b, o = (torch.randn(first + second) for _ in range(3))
        s = torch.randn(2, first + second)
        found = group_norm.fused(x, groups, w, b, 1e-5, silu=True, shift=s, offset=o, beside=beside)
        assert found.is_contiguous(memory_format=LAST)
        d, wd, bd, sd, od, beside_d = (t.double() for t in (x, w, b, s, o, beside))
        right = group_norm.plain(d, groups, wd, bd, 1e-5, silu=True, shift=sd, offset=od, beside=beside_d)
        close(found.double(), right)
        beside = beside.contiguous()
        close(group_norm.fused(x, groups, w, b, 1e-5, silu=True, shift=s, offset=o, beside=beside), found)
    print("group")
    x, more, w, b = torch.randn(3, 5, 24), torch.randn(3, 5, 24), torch.randn(24), torch.randn(24)
    for one in (None, more):
        close(layer_norm.fused(x, w, b, 1e-5, one), layer_norm.plain(x, w, b, 1e-5, one))
    print("layer")
    close(pointwise.geglu(x), pointwise.plain_geglu(x))
    print("gate")
    x, more = torch.randn(2, 24, 5, 7), torch.randn(2, 24, 5, 7)
    for last in (True, False):
        x = x.contiguous(memory_format=torch.channels_last) if last else x.contiguous()
        close(pointwise.residual(x, more, w, b), pointwise.plain_residual(x, more, w, b))
        close(pointwise.residual(x, None, w), pointwise.plain_residual(x, None, w))
    print("sum")
    for shape in ((2, 24, 5, 7), (1, 128, 3, 1)):
        x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
        close(pointwise.twice(x), pointwise.plain_twice(x))
    print("twice")
    x = torch.randn(3, 5, 70) * 10
    close(softmax.fused(x, 0.3, torch.float32), softmax.plain(x, 0.3, torch.float32))
    print("softmax")
    for count, width in ((5, 64), (16, 64), (77, 128)):
        x = torch.randn(1, count, width)
        groups = [[torch.randn(n, width) for n in sizes] for sizes in ((40, 40), (256, 130), (7,), (64,))]
        some: list[list[torch.Tensor | None]] = [[torch.randn(len(w)) for w in group] for group in groups]
        some[1][0] = None
        assert all(products.fit(x, weight) for group in groups for weight in group)
        for biases in (None, some):
            table = products.Table(x, groups, biases)
            found, right = products.fused(x, table), products.plain(x, groups, biases)
            for one, other in zip(found, right, strict=True):
                close(one, other)
                assert one[0].data_ptr() % 16 == 0
    assert products.fit(x, groups[0][0], some[0][0])
    assert not products.fit(x, groups[0][0], torch.randn(41)[1:])
    assert not products.fit(x, groups[0][0], torch.randn(40).double())
    assert not products.fit(x, torch.randn(8, 96))
    assert not products.fit(x, torch.randn(8, width).double())
    print("products")
    x, w, b = torch.randn(3, 50, 128), torch.randn(512, 128) * 0.1, torch.randn(512)
    close(gate_products.fused(x, w, b), gate_products.plain(x, w, b))
    print("gates")
    for keys, heads, channels in ((77, 2, 40), (113, 1, 64)):
        q, whole = torch.randn(2, 70, heads * channels) * 3, torch.randn(2, keys, 2 * heads * channels)
        k, v = whole.chunk(2, dim=-1)
        found = short_attention.fused(q, k, v, heads, channels**-0.5)
        close(found, short_attention.plain(q, k, v, heads, channels**-0.5))
        fit = short_attention.fit
        q, (k, v) = q.half(), whole.half().chunk(2, dim=-1)
        assert fit(q, k, v, heads)
        assert not fit(q.float(), k.float(), v.float(), heads)
        assert not fit(q[:1], k, v, heads)
        assert not fit(q, k, v.contiguous(), heads)
    assert not fit(*(torch.zeros(1, 257, 64).half() for _ in range(3)), 1)
    print("short")
    x, b = torch.randn(5, 70) * torch.tensor([1.0, 1e-3, 50.0, 0.0, 7.0])[:, None], torch.randn(600)
    values, scales = rows.quantised(x, *row_scales.TYPES["int8"])
    right = row_scales.plain_quantised(x, "int8")
    close(scales, right[1])
    torch.testing.assert_close(values.int(), right[0].int(), rtol=0, atol=1)  # ties
    assert (values != right[0]).sum() <= 2
    sums, columns = torch.randint(-9000, 9000, (5, 600), dtype=torch.int32), torch.rand(600, 1)
    for bias in (b, None):
        given = (sums, scales, columns, bias, torch.float32)
        close(rows.dequantised(*given), row_scales.plain_dequantised(*given))
    print("rows")


if __name__ == "__main__":
    compare()
