"""One Triton kernel for all the weighted sums of a scheduler's step, where PyTorch launches one for each term.

The sums (`schedulers/affine.py`, which imports this only for tensors on CUDA and where Triton is installed) are a short
program whose operands are tensors or sums before them. Its shape is compiled in, once for each; the weights are
arguments. Everything between loading and storing is float32.

What launches a kernel is written in C by Triton for the number of its arguments, and takes longer to compile than the
kernel; a multistep method has one kernel for each of its first steps, which nothing computes beside. So there are
always as many arguments as six tensors, two results and eight numbers, or multiples of these.
"""

# mypy: disable-error-code="no-untyped-def, assignment"

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor

from calotype.acceleration.ahead import Kernel

if TYPE_CHECKING:
    from calotype.schedulers.affine import Sum, Value

logger = logging.getLogger(__name__)

T = TypeVar("T")
BLOCK = 1024
LIMIT = 12
"""Programs over more tensors than this are computed one sum after the other."""
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
UNITS = (6, 2, 8)
"""Multiples of so many tensors, results and numbers are given; what a program has not is not read."""


@Kernel
@triton.jit
def sums(
    tensors,
    results,
    numbers,
    size,
    COUNT: tl.constexpr,
    OPERANDS: tl.constexpr,
    LAST: tl.constexpr,
    DIVISORS: tl.constexpr,
    BOUNDS: tl.constexpr,
    RESULTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A ``Program`` over ``COUNT`` tensors, element by element."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    values = ()
    for j in tl.static_range(COUNT):
        values = values + (tl.load(tensors[j] + at, mask=inside).to(tl.float32),)  # noqa: RUF005
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for j in tl.static_range(len(OPERANDS)):
        total = total + numbers[j] * values[OPERANDS[j]]
        if LAST[j]:
            if DIVISORS[j] >= 0:
                total = total / numbers[DIVISORS[j]]
            if BOUNDS[j] >= 0:
                bound = numbers[BOUNDS[j]]
                total = tl.clamp(total, -bound, bound, propagate_nan=tl.PropagateNan.ALL)
            if RESULTS[j] >= 0:
                target = results[RESULTS[j]]
                tl.store(target + at, total.to(target.dtype.element_ty), mask=inside)
            values = values + (total,)  # noqa: RUF005
            total = tl.zeros((BLOCK,), dtype=tl.float32)


class Program(NamedTuple):
    """Sums in the order in which they can be computed, as the kernel takes them.

    For each term of each sum: its operand (``tensors`` first, then the sums), whether it is its sum's last, and if so
    where in ``numbers`` (the weights, then these) the sum's divisor and bound are and which result it is; or -1.
    """

    tensors: tuple[Tensor, ...]
    numbers: tuple[float, ...]
    shape: tuple[tuple[int, ...], ...]


def program(wanted: Sequence[Sum]) -> Program:
    """The program that computes the sums ``wanted``."""
    tensors: list[Tensor] = []
    order: list[Sum] = []
    seen: set[int] = set()

    def visit(x: Value) -> None:
        if id(x) in seen:
            return
        seen.add(id(x))
        if isinstance(x, Tensor):
            tensors.append(x)
            return
        for _, y in x.terms:
            visit(y)
        order.append(x)

    for x in wanted:
        visit(x)
    place = {id(x): i for i, x in enumerate([*tensors, *order])}
    results = {id(x): i for i, x in enumerate(wanted)}
    weights = [float(c) for x in order for c, _ in x.terms]
    limits: list[float] = []

    def limit(value: float | None) -> int:
        if value is None:
            return -1
        limits.append(value)
        return len(weights) + len(limits) - 1

    rows: list[tuple[int, int, int, int, int]] = []
    for x in order:
        rows += [(place[id(y)], 0, -1, -1, -1) for _, y in x.terms[:-1]]
        divisor = limit(None if x.divisor == 1.0 else x.divisor)
        rows.append((place[id(x.terms[-1][1])], 1, divisor, limit(x.bound), results.get(id(x), -1)))
    return Program(tuple(tensors), (*weights, *limits), tuple(zip(*rows, strict=True)))


def evaluated(wanted: list[Sum]) -> list[Tensor] | None:
    """The tensors of these sums; None if the kernel cannot compute them."""
    todo = list({id(x): x for x in wanted}.values())
    made = program(todo)
    idle = 0.0 in made.numbers[: len(made.shape[0])]  # a sum of nothing, whose term must not be read
    if idle or not alike(made.tensors) or any(x.dtype not in DTYPES for x in todo):
        return None
    found = run(made, [x.dtype for x in todo])
    by_id = {id(x): tensor for x, tensor in zip(todo, found, strict=True)}
    return [by_id[id(x)] for x in wanted]


def alike(tensors: Sequence[Tensor]) -> bool:
    """Whether a kernel may read these tensors side by side: plain ones of a shape and device, no gradient wanted."""
    first = tensors[0]
    if len(tensors) > LIMIT or first.numel() == 0 or torch.compiler.is_compiling():
        return False
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return False
    where = first.shape, first.device
    return all(type(x) is Tensor and x.dtype in DTYPES and (x.shape, x.device) == where for x in tensors)


def run(made: Program, dtypes: Sequence[torch.dtype]) -> list[Tensor]:
    """The results of a program, in ``dtypes``, laid out in memory as its first tensor is."""
    first = made.tensors[0]
    if not (
        first.is_contiguous() or (first.dim() == 4 and first.is_contiguous(memory_format=torch.channels_last))
    ):
        first = first.contiguous()
    tensors = tuple(
        x if _order(x) == _order(first) else torch.empty_like(first, dtype=x.dtype).copy_(x)
        for x in made.tensors
    )
    results = tuple(torch.empty_like(first, dtype=dtype) for dtype in dtypes)
    size = first.numel()
    grid = (-(-size // BLOCK),)
    elsewhere = first.is_cuda and first.device.index != torch.cuda.current_device()
    with torch.cuda.device(first.device) if elsewhere else nullcontext():
        given = map(filled, (tensors, results, made.numbers), UNITS)
        sums[grid](*given, size, len(tensors), *made.shape, BLOCK)
    return list(results)


def filled(values: tuple[T, ...], unit: int) -> tuple[T, ...]:
    """The values, and the first one again until there are a multiple of ``unit``."""
    return (*values, *values[:1] * (-len(values) % unit))


class _Example(NamedTuple):
    """What a sum has; those of schedulers are not known here."""

    terms: tuple[Any, ...]
    divisor: float
    bound: float | None
    dtype: torch.dtype | None


def _example(sum_of: Callable[..., T], device: torch.device | str) -> T:
    """A sum over a clipped quotient."""
    x, y = torch.linspace(-2, 2, 2 * 1500, device=device).view(2, 1, 1500)
    inner = sum_of(((0.5, x), (-1.5, y)), 0.25, 1.0, None)
    return sum_of(((2.0, inner), (3.0, x)), 1.0, None, None)


def tried(device: torch.device | str) -> list[Tensor]:
    """What :func:`proven` looks at, launched on ``device``, so that it is compiled when other kernels are."""
    return run(program([_example(_Example, device)]), [torch.float32])  # type: ignore[list-item]


def proven(sum_of: Callable[..., Sum], one_by_one: Callable[[list[Sum]], list[Tensor]]) -> bool:
    """Whether the kernel can be compiled and run here (that needs a C compiler) and computes what PyTorch does."""
    try:
        outer = _example(sum_of, "cuda")
        right = torch.allclose(run(program([outer]), [outer.dtype])[0], one_by_one([outer])[0], atol=1e-5)
        why = "its results differ from PyTorch's"
    except Exception as error:  # whatever is wrong with the toolchain, PyTorch's own kernels serve
        right, why = False, f"{type(error).__name__}: {error}"
    if not right:
        logger.warning("Scheduler steps are not fused into one kernel on this machine: %s", why[:500])
    return right


def _order(x: Tensor) -> list[int]:
    """How the elements lie in memory: the strides of the dimensions that have any."""
    return [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1]
