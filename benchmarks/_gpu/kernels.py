"""Single kernels, and attention by shape, on a CUDA device."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from benchmarks._gpu.bench import Bench
from benchmarks._gpu.timing import RATE, error
from calotype.acceleration.options import Options


def kernels(bench: Bench) -> None:
    """Norms, gates and sums in Triton beside PyTorch."""
    from triton.testing import do_bench_cudagraph

    from calotype.acceleration.kernels import group_norm, layer_norm, pointwise

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda").bfloat16()

    def row(what: str, ours: Callable[[], Any], theirs: Callable[[], Any], bytes_: int) -> None:
        found, right = ours(), theirs()
        found, right = (y[-1] if isinstance(y, tuple) else y for y in (found, right))
        a, b = do_bench_cudagraph(ours, rep=15), do_bench_cudagraph(theirs, rep=15)
        bench.report.say(
            f"{what:52s} triton {a * 1e3:8.1f} us   torch {b * 1e3:8.1f} us   bytes "
            f"{bytes_ / 4.3e12 * 1e6:7.1f} us   apart {error(found, right):.1e}"
        )

    maps = [
        (2, 320, 64, 64), (2, 640, 32, 32), (2, 1280, 16, 16), (2, 2560, 16, 16), (2, 960, 64, 64),
        (16, 320, 64, 64), (2, 320, 128, 128), (2, 1280, 32, 32), (1, 512, 128, 128), (1, 512, 512, 512),
        (1, 256, 1024, 1024), (1, 128, 1024, 1024),
    ]  # fmt: skip
    for shape in maps:
        w, b, s = random(shape[1]), random(shape[1]), random(shape[0], shape[1])
        for last in (True, False):
            x = random(*shape)
            x = x.contiguous(memory_format=torch.channels_last) if last else x
            kind = "channels-last" if last else "contiguous"
            row(
                f"GroupNorm SiLU {shape} {kind}",
                lambda x=x, w=w, b=b, s=s: group_norm.fused(x, 32, w, b, 1e-5, silu=True, shift=s),
                lambda x=x, w=w, b=b, s=s: group_norm.plain(x, 32, w, b, 1e-5, silu=True, shift=s),
                2 * x.nbytes,
            )
            if last:
                row(
                    f"bias + sum {shape}",
                    lambda x=x, b=b: pointwise.residual(x, x, b),
                    lambda x=x, b=b: pointwise.plain_residual(x, x, b),
                    3 * x.nbytes,
                )
    for rows, width in ((8192, 320), (2048, 640), (512, 1280), (8192, 640), (2048, 1280), (65536, 320)):
        x, m, w, b = random(rows, width), random(rows, width), random(width), random(width)
        row(
            f"sum, LayerNorm ({rows}, {width})",
            lambda x=x, m=m, w=w, b=b: layer_norm.fused(x, w, b, 1e-5, m),
            lambda x=x, m=m, w=w, b=b: layer_norm.plain(x, w, b, 1e-5, m),
            4 * x.nbytes,
        )
        g = random(rows, 8 * width)
        row(
            f"GEGLU ({rows}, {8 * width})",
            lambda g=g: pointwise.geglu(g),
            lambda g=g: pointwise.plain_geglu(g),
            g.nbytes * 3 // 2,
        )


def backend(bench: Bench, name: str, q: Tensor, k: Tensor, v: Tensor) -> str:
    """The time of attention by one of PyTorch's backends, in microseconds; or "none"."""
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from triton.testing import do_bench_cudagraph

    def attend() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)

    wanted = [backend for backend in SDPBackend.__members__.values() if backend.name == name]
    try:
        with sdpa_kernel(wanted) if wanted else nullcontext():
            attend()
            return f"{do_bench_cudagraph(attend, rep=15) * 1e3:8.1f}"
    except Exception as problem:
        bench.report.note(f"{name} {tuple(q.shape)}: {str(problem)[:200]}")
        torch.cuda.synchronize()
        return "none"


def products(q: Tensor, k: Tensor, v: Tensor) -> str:
    """The time of attention by matrix products and a softmax, in microseconds."""
    from triton.testing import do_bench_cudagraph

    from calotype.acceleration.stand_ins import StandIns, kernels_for

    stand_ins = StandIns(Options(), kernels_for(q.device))
    q, k, v = (t.transpose(1, 2).flatten(2) for t in (q, k, v))
    return f"{do_bench_cudagraph(lambda: stand_ins.wide(q, k, v, 512**-0.5), rep=15) * 1e3:8.1f}"


def attention(bench: Bench) -> None:
    """Attention by PyTorch's kernels and, where a head is wide, by matrix products."""
    shapes = [
        (2, 8, 4096, 4096, 40), (2, 8, 4096, 77, 40), (2, 8, 1024, 1024, 80), (2, 8, 256, 256, 160),
        (16, 8, 4096, 4096, 40), (16, 8, 1024, 1024, 80), (2, 10, 4096, 4096, 64), (2, 10, 4096, 77, 64),
        (2, 20, 1024, 1024, 64), (2, 20, 1024, 77, 64), (1, 1, 4096, 4096, 512), (1, 1, 16384, 16384, 512),
    ]  # fmt: skip
    for batch, heads, n, m, width in shapes:
        q = torch.randn(batch, n, heads, width, device="cuda").bfloat16().transpose(1, 2)
        k, v = (
            torch.randn(batch, m, heads, width, device="cuda").bfloat16().transpose(1, 2) for _ in range(2)
        )
        floor = 4 * batch * heads * n * m * width / RATE * 1e6
        names = ["FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "default"]
        names += ["MATH"] if width == 512 else []
        cells = [f"{name.split('_')[0].lower()} {backend(bench, name, q, k, v)}" for name in names]
        if width == 512:
            cells.append(f"products {products(q, k, v)}")
        bench.report.say(
            f"attention {(batch, heads, n, m, width)!s:26s} us: {'  '.join(cells)}  floor {floor:.1f}"
        )
