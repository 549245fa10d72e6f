"""Kernels that may begin before the one before has ended: each waits before it touches memory."""

from __future__ import annotations

import ast
import inspect
import logging
import textwrap
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import pytest
import torch

from calotype.acceleration import ahead, overlapped
from calotype.acceleration.ahead import Kernel
from tests.hopper import pretended

pytest.importorskip("triton")
needed = pytest.mark.skipif(not overlapped.is_known(), reason="this Triton cannot launch kernels so")


def all_kernels() -> list[Kernel]:
    from calotype.acceleration import kernels

    modules = [import_module(f"{kernels.__name__}.{one.name}") for one in iter_modules(kernels.__path__)]
    return [value for module in modules for value in vars(module).values() if isinstance(value, Kernel)]


def calls(node: ast.AST) -> list[str]:
    """The names of all that is called, in the order of the text."""
    found = [one for one in ast.walk(node) if isinstance(one, ast.Call)]
    found.sort(key=lambda call: (call.lineno, call.col_offset))
    return [one.func.attr if isinstance(one.func, ast.Attribute) else one.func.id for one in found]  # type: ignore


@pytest.mark.parametrize("kernel", all_kernels(), ids=lambda kernel: kernel.function.fn.__name__)
def test_every_program_of_every_kernel_waits_before_it_touches_memory(kernel: Kernel) -> None:
    assert kernel.waits
    body = ast.parse(textwrap.dedent(inspect.getsource(kernel.function.fn))).body[0].body  # type: ignore[attr-defined]
    statements = [calls(one) for one in body]
    assert statements.count(["begin"]) == 1  # by itself: in no branch and no loop
    before = statements[: statements.index(["begin"])]
    assert not {"load", "store", "loaded"} & {name for names in before for name in names}
    assert sum(names.count("loaded") for names in statements) == 1


@needed
def test_what_triton_makes_waits_before_it_touches_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.runtime import driver

    from calotype.acceleration.kernels import gate_products, layer_norm

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(driver, "_active", pretended([]))
    monkeypatch.setattr(overlapped, "NEXT", "once loaded")
    x = torch.zeros(2, 128, 256, dtype=torch.bfloat16)
    w = torch.zeros(256, dtype=torch.bfloat16)
    kernels = layer_norm.rows_normalised, gate_products.gated_columns  # by addresses and by descriptors
    for kernel in kernels:
        kernel.function.device_caches.clear()
    try:
        with overlapped.overlapped(True):
            layer_norm.fused(x, w, w, 1e-5)
            gate_products.fused(x, x.view(-1, 256)[:256], w)
        for kernel in kernels:
            (compiled,) = kernel.function.device_caches[0][0].values()
            assert compiled.metadata.launch_pdl
            text = compiled.asm["ptx"]
            reads = [text.find(name) for name in ("ld.global", "cp.async.bulk.tensor") if name in text]
            wait, dependents = (
                text.index(f"griddepcontrol.{name}") for name in ("wait", "launch_dependents")
            )
            assert wait < min(reads) < dependents < text.index("st.global")
    finally:
        for kernel in kernels:
            kernel.function.device_caches.clear()


class Launches:
    """In the place of a Triton kernel: notes what it is launched with."""

    def __init__(self, waits: bool) -> None:
        def waiting(x, NEXT: tl.constexpr = None):  # type: ignore[no-untyped-def] # noqa: F821
            pass

        def other(x):  # type: ignore[no-untyped-def]
            pass

        self.fn = waiting if waits else other
        self.given: list[dict[str, Any]] = []

    def __getitem__(self, grid: Any) -> Any:
        return lambda *args, **options: self.given.append(options)


def test_a_kernel_is_launched_so_where_that_is_on_and_it_knows_how_to_wait() -> None:
    waiting, other = Launches(True), Launches(False)
    kernels = Kernel(waiting), Kernel(other)

    def call() -> None:
        for kernel in kernels:
            kernel[(1,)](torch.zeros(1), num_warps=4)

    for on in (False, True, False):
        with overlapped.overlapped(on):
            ahead.compiled_first(call)
    so = {"num_warps": 4, "NEXT": overlapped.NEXT, "launch_pdl": True}
    assert waiting.given == [{"num_warps": 4}, so, {"num_warps": 4}]
    assert other.given == 3 * [{"num_warps": 4}]


def test_it_is_for_devices_that_can_do_it_and_is_tried_out_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried: list[torch.device] = []

    def answer(
        device: torch.device, capability: tuple[int, int], problem: str = "", known: bool = True
    ) -> bool:
        def try_out(device: torch.device) -> None:
            tried.append(device)
            if problem:
                raise RuntimeError(problem)

        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(overlapped, "is_known", lambda: known)
        monkeypatch.setattr(overlapped, "_try_out", try_out)
        return overlapped.allowed(device)

    overlapped.allowed.cache_clear()
    try:
        with caplog.at_level(logging.INFO, "calotype.acceleration"):
            assert not answer(torch.device("cpu"), (9, 0))
            assert not answer(torch.device("cuda", 0), (8, 9))
            assert not caplog.records
            assert not answer(torch.device("cuda", 1), (9, 0), known=False)
            assert "Triton" in caplog.messages[-1]
            for _ in range(2):
                assert not answer(torch.device("cuda", 2), (9, 0), "operation not permitted\nmore")
            assert caplog.messages[1:] == ["Kernels are not overlapped: operation not permitted."]
            assert answer(torch.device("cuda", 3), (10, 0))
        assert tried == [torch.device("cuda", 2), torch.device("cuda", 3)]
    finally:
        overlapped.allowed.cache_clear()
