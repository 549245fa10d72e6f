"""CUDA C++ compiled where it runs, kept on disk beside Triton's kernels, and launched as these are (`ahead.py`).

The compiler is NVRTC and the driver is asked through ``cuda.bindings``; both come with PyTorch's builds for CUDA 13.
"""

from __future__ import annotations

import ctypes
import hashlib
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module, resources
from typing import Any, ClassVar

import torch
from torch import Tensor
from triton.runtime.cache import get_cache_manager

from calotype.acceleration.ahead import launched
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

    @classmethod
    def of(cls, name: str, dtype: torch.dtype, widths: Sequence[int] = (), **defined: int) -> Source:
        """A kernel for numbers of 16 bits, and products of these widths."""
        kind = {torch.bfloat16: "bf16", torch.float16: "f16"}[dtype]
        more = {"HALF": 1} if dtype == torch.float16 else {}
        return cls(name, (*sorted((defined | more).items()),), tuple((width, kind) for width in widths))


@dataclass(frozen=True)
class Tiles:
    """A tensor of 16 bits as the copy engine reads it, in boxes of so many elements along each dimension.

    ``shape`` and ``strides`` (in elements, without the last one's, 1) are those of ``tensor`` unless given; what a box
    has outside is zero. The last dimension of a box is 128, 64 or 32 bytes and lies as products read it.
    """

    tensor: Tensor
    box: tuple[int, ...]
    shape: tuple[int, ...] | None = None
    strides: tuple[int, ...] | None = None


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
    place = "sm_{}{}a".format(*capability)
    options = [f"--gpu-architecture={place}", "--std=c++17", "--extra-device-vectorization"]
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
        _checked(nvrtc, nvrtc.nvrtcGetProgramLog(program, log))
        said = log.decode().rstrip("\0 \n")
        if int(state) != 0:
            raise RuntimeError(f"{name}.cu was not compiled: {said}")
        code = b" " * _checked(nvrtc, nvrtc.nvrtcGetCUBINSize(program))
        _checked(nvrtc, nvrtc.nvrtcGetCUBIN(program, code))
        return code, said
    finally:
        nvrtc.nvrtcDestroyProgram(program)


class Loaded:
    """A kernel on one device."""

    def __init__(self, source: Source, device: torch.device, shared: int) -> None:
        self.driver, _ = bindings()
        code = compiled(source, torch.cuda.get_device_capability(device))
        torch.cuda.init()
        place = _checked(self.driver, self.driver.cuDeviceGet(device.index))
        self.context = _checked(self.driver, self.driver.cuDevicePrimaryCtxRetain(place))
        most = self.driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        with self.current():
            self.module = _checked(self.driver, self.driver.cuModuleLoadData(code))
            self.function = _checked(
                self.driver, self.driver.cuModuleGetFunction(self.module, source.name.encode())
            )
            _checked(self.driver, self.driver.cuFuncSetAttribute(self.function, most, shared))

    @contextmanager
    def current(self) -> Iterator[None]:
        """Within this, what the thread asks of the driver concerns the device; a new thread has none."""
        _checked(self.driver, self.driver.cuCtxPushCurrent(self.context))
        try:
            yield
        finally:
            _checked(self.driver, self.driver.cuCtxPopCurrent())


_LOADED: dict[Hashable, Loaded] = {}
_LOADING: dict[Hashable, threading.Lock] = {}
"""A lock for each kernel, so that those that differ are compiled side by side."""


def loaded(source: Source, device: torch.device, shared: int) -> Loaded:
    """The kernel on this device, with ``shared`` bytes beside a processor; compiled and loaded at most once."""
    key = source, device, shared
    if key not in _LOADED:
        with _LOADING.setdefault(key, threading.Lock()):
            if key not in _LOADED:
                _LOADED[key] = Loaded(source, device, shared)
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
) -> None:
    """Launch a kernel in the device's current stream; ``cluster`` programs that follow each other share memory.

    ``shared`` is how many bytes each has beside a processor.
    """
    if device.index is None:
        device = torch.device(device.type, torch.cuda.current_device())
    launched(_OfCuda(source, grid, threads, tuple(args), device, cluster, shared))


@dataclass(frozen=True)
class _OfCuda:
    """The launch of a kernel in CUDA C++."""

    source: Source
    grid: tuple[int, int, int]
    threads: int
    args: tuple[Tensor | Tiles | Number | None, ...]
    device: torch.device
    cluster: int
    shared: int

    known: ClassVar[set[Hashable]] = set()

    @property
    def form(self) -> Hashable:
        return self.source, self.device, self.shared

    def preparation(self) -> Callable[[], None]:
        return partial(_ready, self.source, self.device, self.shared)

    def now(self) -> None:
        kernel = loaded(self.source, self.device, self.shared)
        driver = kernel.driver
        values = tuple(_value(driver, arg) for arg in self.args)
        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = self.grid
        config.blockDimX, config.blockDimY, config.blockDimZ = self.threads, 1, 1
        config.sharedMemBytes = self.shared
        config.hStream = driver.CUstream(torch.cuda.current_stream(self.device).cuda_stream)
        attributes = []
        if self.cluster > 1:
            one = driver.CUlaunchAttribute()
            one.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
            size = one.value.clusterDim
            size.x, size.y, size.z = self.cluster, 1, 1
            attributes.append(one)
        # weights are read early, which kernels of graphs do not write
        if torch.cuda.is_current_stream_capturing():
            one = driver.CUlaunchAttribute()
            one.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            one.value.programmaticStreamSerializationAllowed = 1
            attributes.append(one)
        config.attrs, config.numAttrs = attributes, len(attributes)
        given = tuple(value for value, _ in values), tuple(kind for _, kind in values)
        with kernel.current():
            _checked(driver, driver.cuLaunchKernelEx(config, kernel.function, given, 0))


def _ready(source: Source, device: torch.device, shared: int) -> None:
    """Have the kernel compiled and on the device."""
    loaded(source, device, shared)


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
    }[tensor.dtype]
    size = tensor.element_size()
    shape = tuple(tensor.shape) if tiles.shape is None else tiles.shape
    strides = tuple(tensor.stride()[:-1]) if tiles.strides is None else tiles.strides
    swizzle = getattr(driver.CUtensorMapSwizzle, f"CU_TENSOR_MAP_SWIZZLE_{tiles.box[-1] * size}B")
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
