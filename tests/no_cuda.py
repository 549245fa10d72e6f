"""NVIDIA's compiler and driver that are not here: they only note what is asked of them."""

from __future__ import annotations

import threading
import time
from enum import IntEnum
from types import SimpleNamespace
from typing import Any


class State(IntEnum):
    FINE = 0
    COMPILATION = 6


class Compiler:
    """In the place of ``cuda.bindings.nvrtc``; with ``problem`` it refuses and says so."""

    __name__ = "cuda.bindings.nvrtc"

    def __init__(self, problem: str = "") -> None:
        self.problem = problem
        self.compiled: list[tuple[str, tuple[str, ...], str]] = []
        """File, options that define something, and thread of each compilation."""
        self.destroyed = 0

    def nvrtcVersion(self) -> Any:
        return State.FINE, 13, 0

    def nvrtcCreateProgram(self, text: bytes, name: bytes, count: int, texts: Any, names: Any) -> Any:
        assert count == len(texts) == len(names)
        return State.FINE, SimpleNamespace(name=name.decode(), text=text)

    def nvrtcCompileProgram(self, program: Any, count: int, options: list[bytes]) -> Any:
        assert count == len(options)
        time.sleep(0.02)
        defined = tuple(one.decode() for one in options if one.startswith(b"-D") or b"architecture" in one)
        self.compiled.append((program.name, defined, threading.current_thread().name))
        return (State.COMPILATION if self.problem else State.FINE,)

    def nvrtcGetProgramLogSize(self, program: Any) -> Any:
        return State.FINE, len(self.problem) + 1

    def nvrtcGetProgramLog(self, program: Any, log: bytes) -> Any:
        self.log = log
        return (State.FINE,)

    def nvrtcGetCUBINSize(self, program: Any) -> Any:
        return State.FINE, 4

    def nvrtcGetCUBIN(self, program: Any, code: bytes) -> Any:
        return (State.FINE,)

    def nvrtcDestroyProgram(self, program: Any) -> Any:
        self.destroyed += 1
        return (State.FINE,)


class Attribute:
    def __init__(self) -> None:
        self.id = ""
        self.value = SimpleNamespace(clusterDim=SimpleNamespace())


class Names:
    """Each of its attributes is its own name."""

    def __getattr__(self, name: str) -> str:
        return name


class Driver:
    """In the place of ``cuda.bindings.driver``."""

    __name__ = "cuda.bindings.driver"
    CUfunction_attribute = CUlaunchAttributeID = CUtensorMapDataType = CUtensorMapSwizzle = Names()
    CUtensorMapInterleave = CUtensorMapL2promotion = CUtensorMapFloatOOBfill = Names()
    CUlaunchConfig = SimpleNamespace
    CUlaunchAttribute = Attribute

    def __init__(self) -> None:
        self.loaded: list[bytes] = []
        self.launched: list[tuple[str, Any, Any]] = []
        """Name, configuration and arguments of each launch."""
        self.maps: list[dict[str, Any]] = []
        self.depth = 0

    def CUstream(self, number: int) -> int:
        return number

    def cuuint64_t(self, number: int) -> int:
        return number

    cuuint32_t = cuuint64_t

    def cuDeviceGet(self, index: int) -> Any:
        return State.FINE, index

    def cuDevicePrimaryCtxRetain(self, device: int) -> Any:
        return State.FINE, f"context {device}"

    def cuCtxPushCurrent(self, context: str) -> Any:
        self.depth += 1
        return (State.FINE,)

    def cuCtxPopCurrent(self) -> Any:
        self.depth -= 1
        return State.FINE, None

    def cuModuleLoadData(self, code: bytes) -> Any:
        assert self.depth
        self.loaded.append(code)
        return State.FINE, "module"

    def cuModuleGetFunction(self, module: str, name: bytes) -> Any:
        return State.FINE, name.decode()

    def cuFuncSetAttribute(self, function: str, attribute: str, value: int) -> Any:
        return (State.FINE,)

    def cuTensorMapEncodeTiled(self, kind: str, rank: int, address: int, *more: Any) -> Any:
        names = ("shape", "strides", "box", "steps", "interleave", "swizzle", "promotion", "outside")
        self.maps.append({"kind": kind, **dict(zip(names, more, strict=True))})
        assert len(self.maps[-1]["strides"]) == rank - 1
        assert all(stride % 16 == 0 for stride in self.maps[-1]["strides"])
        return State.FINE, "map"

    def cuLaunchKernelEx(self, config: Any, function: str, args: Any, extra: int) -> Any:
        assert self.depth
        self.launched.append((function, config, args))
        return (State.FINE,)
