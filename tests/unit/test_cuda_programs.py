"""CUDA C++ that is compiled where it runs: when that is, what is said of errors, and how kernels are launched."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from calotype.acceleration import usable
from calotype.acceleration.ahead import compiled_first
from calotype.acceleration.cuda import available, program
from calotype.acceleration.cuda.program import Source, Tiles, compiled, launch
from tests.no_cuda import Compiler, Driver

HERE = torch.device("cuda", 0)


@pytest.fixture
def pretended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Driver, Compiler]:
    driver, compiler = Driver(), Compiler()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(program, "bindings", lambda: (driver, compiler))
    for table in ("_LOADED", "_LOADING"):
        monkeypatch.setattr(program, table, {})
    monkeypatch.setattr(program._OfCuda, "known", set())
    stubs: dict[str, Callable[..., Any]] = {
        "init": lambda: None,
        "get_device_capability": lambda device: (9, 0),
        "current_stream": lambda device: SimpleNamespace(cuda_stream=7),
        "device": lambda device: nullcontext(),
        "current_device": lambda: 0,
        "is_current_stream_capturing": lambda: False,
    }
    for name, stub in stubs.items():
        monkeypatch.setattr(torch.cuda, name, stub)
    return driver, compiler


def test_what_is_on_disk_is_not_compiled_again(pretended: tuple[Driver, Compiler]) -> None:
    _, compiler = pretended
    some = Source.of("gated", torch.bfloat16, (256,), STAGES=4)
    for source in (some, some, Source.of("gated", torch.float16, (256,), STAGES=4)):
        assert len(compiled(source, (9, 0))) == 4
    names = [(name, defined) for name, defined, _ in compiler.compiled]
    first = "--gpu-architecture=sm_90a"
    assert names == [
        ("gated.cu", (first, "-DSTAGES=4")),
        ("gated.cu", (first, "-DHALF=1", "-DSTAGES=4")),
    ]
    assert compiler.destroyed == 2


def test_what_the_compiler_refuses_is_said_with_its_log(pretended: tuple[Driver, Compiler]) -> None:
    _, compiler = pretended
    compiler.problem = "line 3: no such thing"
    # the real one writes into the memory that it is given
    compiler.nvrtcGetProgramLog = lambda of, log: (  # type: ignore[method-assign]
        ctypes.memmove(log, compiler.problem.encode(), len(compiler.problem))
        and (compiler.nvrtcVersion()[0],)
    )
    for _ in range(2):  # nothing is kept of it
        with pytest.raises(RuntimeError, match=r"gated\.cu was not compiled: line 3: no such thing"):
            compiled(Source("gated"), (9, 0))
    assert (len(compiler.compiled), compiler.destroyed) == (2, 2)


def test_kernels_are_launched_with_their_arguments_and_in_clusters(
    pretended: tuple[Driver, Compiler],
) -> None:
    driver, _ = pretended
    x = torch.zeros(10, 64, dtype=torch.bfloat16)
    tiles = Tiles(x, (8, 64))
    given = (tiles, x, None, 3, 0.5)
    for cluster in (1, 2):
        launch(Source("gated"), (4, 2, 1), 384, given, device=HERE, cluster=cluster, shared=999)
    assert (len(driver.loaded), driver.depth) == (1, 0)
    (shape,) = {str(one) for one in driver.maps}
    assert all(part in shape for part in ("'shape': [64, 10]", "'strides': [128]", "'box': [64, 8]", "128B"))
    clusters = [[vars(one.value.clusterDim) for one in config.attrs] for _, config, _ in driver.launched]
    assert clusters == [[], [{"x": 2, "y": 1, "z": 1}]]
    for name, config, args in driver.launched:
        assert name == "gated"
        assert (config.gridDimX, config.gridDimY, config.blockDimX) == (4, 2, 384)
        assert (config.sharedMemBytes, config.hStream) == (999, 7)
        assert len(config.attrs) == config.numAttrs
        values, kinds = args
        assert values == ("map", x.data_ptr(), 0, 3, 0.5)
        assert kinds == (None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_float)


def test_kernels_of_captures_may_come_before_the_one_before_has_ended(
    pretended: tuple[Driver, Compiler], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, _ = pretended
    for captured in (False, True):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda found=captured: found)
        launch(Source("gated"), (1, 1, 1), 384, (), device=HERE)
    early = [
        [one.value.programmaticStreamSerializationAllowed for one in config.attrs]
        for _, config, _ in driver.launched
    ]
    assert early == [[], [1]]


def test_new_kernels_are_compiled_by_threads_before_anything_is_launched(
    pretended: tuple[Driver, Compiler],
) -> None:
    driver, compiler = pretended
    calls = []

    def call() -> str:
        calls.append(len(driver.launched))
        for name in ("gated", "convolved", "gated"):
            launch(Source(name), (1, 1, 1), 384, (torch.zeros(8),), device=torch.device("cuda"))
        return "result"

    for _ in range(2):
        assert compiled_first(call) == "result"
    assert calls == [0, 0, 0, 3]  # given up, gone through, computed; then all is known
    assert sorted(name for name, *_ in compiler.compiled) == ["convolved.cu", "gated.cu"]
    assert {thread[:16] for *_, thread in compiler.compiled} == {"calotype-kernels"}
    assert [name for name, *_ in driver.launched] == 2 * ["gated", "convolved", "gated"]


def test_what_is_not_compiled_ahead_says_so_where_it_is_launched(pretended: tuple[Driver, Compiler]) -> None:
    driver, compiler = pretended
    compiler.problem = "no"
    with pytest.raises(RuntimeError, match="was not compiled"):
        compiled_first(lambda: launch(Source("gated"), (1, 1, 1), 384, (), device=HERE))
    assert not driver.launched


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Whether kernels run on a device of this capability, whose check does this."""

    def ask(device: torch.device, major: int, check: Callable[[], Any]) -> bool:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
        monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
        for name in available.CHECKED:
            module = import_module(f"calotype.acceleration.kernels.{name}")
            monkeypatch.setattr(module, "check", lambda device: check())
        return available.available(device)

    available.available.cache_clear()
    yield ask
    available.available.cache_clear()


def test_devices_are_tried_out_once_and_what_is_wrong_is_said(
    asked: Any, caplog: pytest.LogCaptureFixture
) -> None:
    counted = []

    def right() -> Any:
        counted.append(1)
        return torch.ones(2), torch.ones(2)

    def missing() -> Any:
        raise program.Missing("no bindings\nmore")

    with caplog.at_level(logging.INFO, "calotype.acceleration"):
        assert not asked(torch.device("cpu"), 9, right)
        assert not asked(torch.device("cuda", 0), 8, right)
        assert not asked(torch.device("cuda", 1), 12, right)  # where this code does not run
        assert not counted
        for _ in range(2):
            assert asked(torch.device("cuda", 2), 9, right)
        assert len(counted) == len(available.CHECKED)
        assert not caplog.records
        for _ in range(2):
            assert not asked(torch.device("cuda", 3), 9, missing)
        assert not asked(torch.device("cuda", 4), 9, lambda: (torch.ones(2), torch.zeros(2)))
    assert caplog.messages[0].endswith("without CUDA C++: no bindings.")
    assert len(caplog.messages) == 2


@pytest.mark.parametrize("broken", [False, True])
def test_what_is_tried_out_first_is_gone_through_together(
    broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, ones = [], (torch.ones(2), torch.ones(2))

    def normalised(module: Any, device: torch.device) -> tuple[Tensor, Tensor]:
        asked.append("norm")
        return ones

    def tried(device: torch.device) -> list[Any]:
        asked.append("tried")
        if broken:
            raise RuntimeError("does not compile")
        return [ones]

    monkeypatch.setattr(usable, "_normalised", normalised)
    monkeypatch.setattr(available, "as_ever", lambda device: nullcontext())
    monkeypatch.setattr(available, "tried", tried)
    monkeypatch.setattr(available, "available", lambda device: asked.append("all"))
    found = usable.kernels_for.__wrapped__(torch.device("cuda", 0))
    assert found is not None  # Triton's kernels, whether or not others can be used
    # together, so that what is new is compiled side by side; then each by itself
    assert asked == ["norm", "tried", "norm", "all"]
