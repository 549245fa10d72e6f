"""CUDA C++ compiled where it runs, kept on disk, and launched.

The compiler is NVRTC and the driver is asked through ``cuda.bindings``; both come with PyTorch's builds for CUDA 13.
"""

from __future__ import annotations

import ctypes
import hashlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module, resources
from typing import Any

import torch
from torch import Tensor
from triton.runtime.cache import get_cache_manager

from calotype.acceleration.cuda.instructions import products

Number = int | float
"""Integers are passed as ``int``, other numbers as ``float``."""


@dataclass(frozen=True)
class Source:
    """A file of this package with one kernel of the same name, and what is defined for it."""

    name: str
    defined: tuple[tuple[str, str | int | float], ...] = ()
    products: tuple[tuple[int, str], ...] = ()
    """Widths and types (``bf16``, ``f16``) of the warpgroups' products that it uses."""


@dataclass(frozen=True)
class Tiles:
    """A tensor as the copy engine reads it, in boxes of some elements along each dimension, the last one first.

    ``shape`` and ``strides`` (in elements, without the last one's, 1) are those of ``tensor`` unless given; what a box
    has outside is zero. With ``swizzled``, the last dimension of a box is 128, 64 or 32 bytes and lies as products read it.
    """

    tensor: Tensor
    box: tuple[int, ...]
    shape: tuple[int, ...] | None = None
    strides: tuple[int, ...] | None = None
    swizzled: bool = True


class Missing(RuntimeError):
    """What compiles or launches is not installed."""


@cache
def bindings() -> tuple[Any, Any]:
    """The driver's and the compiler's functions; raises ``Missing``."""
    try:
        return import_module("cuda.bindings.driver"), import_module("cuda.bindings.nvrtc")
    except Exception as error:
        raise Missing(f"cuda.bindings does not come with this PyTorch ({error})") from error


def _checked(module: Any, found: tuple[Any, ...]) -> Any:
    """What a function of the bindings returned, after its state."""
    if int(found[0]) != 0:
        raise RuntimeError(f"{module.__name__.rpartition('.')[2]}: {found[0].name}.")
    return found[1] if len(found) == 2 else found[1:]


@cache
def _headers() -> dict[str, str]:
    here = resources.files(__package__)
    return {name: (here / name).read_text() for name in ("hopper.cuh",)}


def compiled(source: Source, capability: tuple[int, int]) -> bytes:
    """Machine code of a source for a compute capability, from the disk or compiled and kept there."""
    _, nvrtc = bindings()
    text = (resources.files(__package__) / f"{source.name}.cu").read_text()
    headers = _headers() | {"products.cuh": "".join(products(width, kind) for width, kind in source.products)}
    options = [f"--gpu-architecture=sm_{capability[0]}{capability[1]}a", "--std=c++17", "--extra-device-vectorization"]
    options += [f"-D{name}={value}" for name, value in source.defined]
    version = _checked(nvrtc, nvrtc.nvrtcVersion())
    key = hashlib.sha256(repr((text, headers, options, version)).encode()).hexdigest()
    kept = get_cache_manager(key)
    if (path := kept.get_file(f"{source.name}.cubin")) is not None:
        with open(path, "rb") as file:
            return file.read()
    code = build(text, headers, options, source.name)[0]
    kept.put(code, f"{source.name}.cubin", binary=True)
    return code


def build(text: str, headers: Mapping[str, str], options: Sequence[str], name: str) -> tuple[bytes, str]:
    """Machine code, and what the compiler says. Raises ``RuntimeError`` with that if it refuses."""
    _, nvrtc = bindings()
    names, texts = [n.encode() for n in headers], [t.encode() for t in headers.values()]
    program = _checked(
        nvrtc, nvrtc.nvrtcCreateProgram(text.encode(), f"{name}.cu".encode(), len(names), texts, names)
    )
    try:
        state = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])[0]
        log = b" " * _checked(nvrtc, nvrtc.nvrtcGetProgramLogSize(program))
        nvrtc.nvrtcGetProgramLog(program, log)
        said = log.decode().rstrip("\0 \n")
        if int(state) != 0:
            raise RuntimeError(f"{name}.cu was not compiled: {said}")
        code = b" " * _checked(nvrtc, nvrtc.nvrtcGetCUBINSize(program))
        _checked(nvrtc, (*nvrtc.nvrtcGetCUBIN(program, code), None))
        return code, said
    finally:
        nvrtc.nvrtcDestroyProgram(program)


class Loaded:
    """A kernel on one device."""

    def __init__(self, source: Source, device: torch.device, shared: int) -> None:
        self.driver, _ = bindings()
        code = compiled(source, torch.cuda.get_device_capability(device))
        with torch.cuda.device(device):
            torch.cuda.current_stream()  # which makes the device's context
            self.module = _checked(self.driver, self.driver.cuModuleLoadData(code))
            self.function = _checked(
                self.driver, self.driver.cuModuleGetFunction(self.module, source.name.encode())
            )
        most = self.driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        _checked(self.driver, (*self.driver.cuFuncSetAttribute(self.function, most, shared), None))
        self.shared = shared


_LOADED: dict[tuple[Source, int, int], Loaded] = {}
_LOADING = threading.Lock()


def loaded(source: Source, device: torch.device, shared: int) -> Loaded:
    """The kernel on this device, with ``shared`` bytes beside a processor; compiled and loaded at most once."""
    index = torch.cuda.current_device() if device.index is None else device.index
    key = source, index, shared
    if key not in _LOADED:
        with _LOADING:
            if key not in _LOADED:
                _LOADED[key] = Loaded(source, torch.device("cuda", index), shared)
    return _LOADED[key]


def launch(
    source: Source,
    grid: tuple[int, int, int],
    threads: int,
    args: Sequence[Tensor | Tiles | Number | None],
    *,
    device: torch.device,
    cluster: int = 1,
    shared: int = 0,
    overlapped: bool = False,
) -> None:
    """Launch a kernel in the device's current stream; ``cluster`` programs that follow each other share memory.

    ``overlapped`` lets it begin before its predecessor has ended: it must wait by itself (``wait_for_predecessor``).
    """
    kernel = loaded(source, device, shared)
    driver = kernel.driver
    values = tuple(_value(driver, arg) for arg in args)
    config = driver.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = grid
    config.blockDimX, config.blockDimY, config.blockDimZ = threads, 1, 1
    config.sharedMemBytes = shared
    config.hStream = driver.CUstream(torch.cuda.current_stream(device).cuda_stream)
    attributes = []
    if cluster > 1:
        attributes.append(driver.CUlaunchAttribute())
        attributes[-1].id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        size = attributes[-1].value.clusterDim
        size.x, size.y, size.z = cluster, 1, 1
    if overlapped:
        attributes.append(driver.CUlaunchAttribute())
        attributes[-1].id = (
            driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        )
        attributes[-1].value.programmaticStreamSerializationAllowed = 1
    config.attrs, config.numAttrs = attributes, len(attributes)
    given = tuple(value for value, _ in values), tuple(kind for _, kind in values)
    _checked(driver, (*driver.cuLaunchKernelEx(config, kernel.function, given, 0), None))


def _value(driver: Any, arg: Tensor | Tiles | Number | None) -> tuple[Any, Any]:
    if arg is None or isinstance(arg, Tensor):
        return 0 if arg is None else arg.data_ptr(), ctypes.c_void_p
    if isinstance(arg, Tiles):
        return _map(driver, arg), None
    return arg, ctypes.c_int if isinstance(arg, int) else ctypes.c_float


def _map(driver: Any, tiles: Tiles) -> Any:
    tensor = tiles.tensor
    kinds = driver.CUtensorMapDataType
    kind = {
        torch.bfloat16: kinds.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        torch.float16: kinds.CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        torch.float32: kinds.CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
    }[tensor.dtype]
    size = tensor.element_size()
    shape = tuple(tensor.shape) if tiles.shape is None else tiles.shape
    strides = tuple(tensor.stride()[:-1]) if tiles.strides is None else tiles.strides
    swizzles = driver.CUtensorMapSwizzle
    swizzle = swizzles.CU_TENSOR_MAP_SWIZZLE_NONE
    if tiles.swizzled:
        swizzle = getattr(swizzles, f"CU_TENSOR_MAP_SWIZZLE_{tiles.box[-1] * size}B")
    return _checked(
        driver,
        driver.cuTensorMapEncodeTiled(
            kind,
            len(shape),
            tensor.data_ptr(),
            [driver.cuuint64_t(n) for n in reversed(shape)],
            [driver.cuuint64_t(n * size) for n in reversed(strides)],
            [driver.cuuint32_t(n) for n in reversed(tiles.box)],
            [driver.cuuint32_t(1)] * len(shape),
            driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        ),
    )
