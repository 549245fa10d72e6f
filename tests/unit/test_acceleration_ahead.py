"""Kernels compiled ahead of a call: which forms are, by what threads, and that launching finds them."""

from __future__ import annotations

import importlib.util
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from calotype.acceleration import ahead
from calotype.acceleration.ahead import Kernel, compiled_first


@pytest.fixture(autouse=True)
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead.torch.cuda, "device", lambda place: nullcontext())


class Compiler:
    """In the place of a Triton kernel: notes what is compiled and what is launched."""

    def __init__(self, problem: Exception | None = None) -> None:
        def fn(x, y, size, rows, ROWS: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: F821
            pass

        self.fn, self.problem = fn, problem
        self.compiled: list[Any] = []
        self.launched: list[Any] = []

    def warmup(self, *args: Any, grid: Any, **options: Any) -> Any:
        time.sleep(0.02)
        self.compiled.append((args, options, threading.current_thread().name))
        if self.problem is not None:
            raise self.problem
        return SimpleNamespace(run=None)

    def __getitem__(self, grid: Any) -> Any:
        return lambda *args, **options: self.launched.append((grid, args, options))


def test_new_forms_are_compiled_by_threads_before_anything_is_launched() -> None:
    compiler = Compiler()
    kernel = Kernel(compiler)
    x, half = torch.zeros(64), torch.zeros(64).half()
    calls = []

    def call() -> str:
        calls.append(len(compiler.launched))
        for size, rows, chosen in (
            (64, 1, 2),
            (128, 1, 2),
            (64, 3, 2),
            (64, 1, 4),
        ):  # the second is as the first
            kernel[(size,)](x, half, size, rows, chosen, num_warps=4)
        return "result"

    assert compiled_first(call) == "result"
    assert calls == [0, 0, 0]  # given up, gone through, computed
    assert sorted(args[2:] for args, *_ in compiler.compiled) == [(64, 1, 2), (64, 1, 4), (64, 3, 2)]
    for args, options, name in compiler.compiled:
        assert args[:2] == (torch.float32, torch.float16)  # no memory is kept for the compiler
        assert options == {"num_warps": 4}
        assert name.startswith("calotype-kernels")
    assert [grid for grid, *_ in compiler.launched] == [(64,), (128,), (64,), (64,)]
    assert compiled_first(call) == "result"
    assert calls[3:] == [4]  # all is known
    assert len(compiler.compiled) == 3


def test_forms_of_a_kernel_are_loaded_one_after_another_and_compiled_side_by_side() -> None:
    at_once = {"compile": [0, 0], "load": [0, 0]}
    lock = threading.Lock()

    def watched(what: str) -> None:
        now = at_once[what]
        with lock:
            now[:] = now[0] + 1, max(now[0] + 1, now[1])
        time.sleep(0.05)
        with lock:
            now[0] -= 1

    class Compiled:
        @property
        def run(self) -> None:
            watched("load")

    class Slow(Compiler):
        def warmup(self, *args: Any, grid: Any, **options: Any) -> Any:
            watched("compile")
            return Compiled()

    kernel = Kernel(Slow())
    compiled_first(lambda: [kernel[(1,)](torch.zeros(8), torch.zeros(8), 8, 1, n) for n in (2, 4, 8)])
    assert at_once["load"][1] == 1 < at_once["compile"][1]


def test_what_cannot_be_compiled_ahead_is_left_to_the_launch() -> None:
    compiler = Compiler(RuntimeError("no compiler"))
    kernel = Kernel(compiler)
    given = []

    def call() -> int:
        kernel[(1,)](
            torch.zeros(8), torch.zeros(9)[1:], 8, 1, 2
        )  # memory that is not aligned is a form of its own
        kernel[(1,)](torch.zeros(8), torch.zeros(8), 8, 1, 2)
        given.append(1)
        if len(given) == 1:
            raise ValueError("garbage leads to no result")
        return len(given)

    assert compiled_first(call) == 2
    assert len(compiler.compiled) == 1
    assert len(compiler.launched) == 2


def test_other_threads_launch_as_ever() -> None:
    compiler = Compiler()
    kernel = Kernel(compiler)

    def call() -> None:
        thread = threading.Thread(target=lambda: kernel[(2,)](torch.zeros(8), torch.zeros(8), 8, 1, 2))
        thread.start()
        thread.join()

    compiled_first(call)
    assert (len(compiler.compiled), len(compiler.launched)) == (0, 1)


def test_what_is_found_out_within_a_call_is_computed_even_where_nothing_is_launched() -> None:
    within, outside = Compiler(), Compiler()
    one, two = Kernel(within), Kernel(outside)
    counts: list[int] = []

    def call() -> None:
        two[(1,)](torch.zeros(8), torch.zeros(8), 8, 1, 2)

    def found_out() -> None:
        before = len(within.launched)
        compiled_first(lambda: one[(1,)](torch.zeros(8), torch.zeros(8), 8, 1, 2))
        counts.append(len(within.launched) - before)
        call()

    compiled_first(found_out)
    assert counts == [1, 1, 1]  # given up, gone through, computed
    assert len(outside.launched) == 1


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_triton_compiles_for_a_device_that_is_not_here_what_a_launch_then_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    from calotype.acceleration import affine_kernel
    from calotype.acceleration.kernels import gate_products, layer_norm

    launched, given = [], set()

    def launcher(src: Any, metadata: Any) -> Any:
        if metadata.name == "sums":
            given.add(str([kind for kind in src.signature.values() if kind != "constexpr"]))
        return lambda *args: launched.append(metadata.name)

    pretended = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
        launcher_cls=launcher,
        utils=SimpleNamespace(
            load_binary=lambda *args: (object(), 1, 8, 0, 1024),
            get_device_properties=lambda device: {"max_shared_mem": 2**20},
        ),
    )
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiled = []
    monkeypatch.setattr(
        triton.knobs.compilation, "listener", lambda **what: compiled.append(what["src"].name)
    )
    x = torch.zeros(2, 128, 256, dtype=torch.bfloat16)
    w = torch.zeros(256, dtype=torch.bfloat16)
    described = gate_products.TensorDescriptor is not None
    # by a descriptor, by addresses, and by addresses in tuples
    names = [*(["gated_columns"] if described else []), "rows_normalised", "sums", "sums"]
    one, other = torch.zeros(1500), torch.ones(1500)
    shape = ((0, 1, 2), (0, 0, 1), (-1,) * 3, (-1,) * 3, (-1, -1, 0))

    def call() -> None:
        layer_norm.fused(x, w, w, 1e-5)
        if described:
            gate_products.fused(x, x.view(-1, 256)[:256], w)
        affine_kernel.tried("cpu")
        affine_kernel.run(affine_kernel.Program((one, other, one), (1.0, 2.0, 3.0), shape), [torch.float32])

    monkeypatch.setattr(driver, "_active", pretended)
    try:
        compiled_first(call)
        assert sorted(compiled) == sorted(launched) == names
        compiled_first(call)
        assert len(compiled) == len(names)
        assert len(launched) == 2 * len(names)
        assert len(given) == 1  # other sums, of more tensors, are launched by the same
    finally:
        for kernel in (layer_norm.rows_normalised, gate_products.gated_columns, affine_kernel.sums):
            kernel.function.device_caches.clear()
            kernel.known.clear()
