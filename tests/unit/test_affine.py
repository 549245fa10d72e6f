"""The sums of a step computed together are the same as one after the other; the kernel runs in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

import calotype
from calotype.schedulers import affine as sums_of_steps
from calotype.schedulers.affine import Sum, Term, affine, evaluate, one_by_one
from tests.unit.test_schedulers_kernels_cuda import CASES, STEPS, run

NAN = float("nan")


def later(*terms: Term, divisor: float = 1.0, bound: float | None = None, dtype: Any = None) -> Sum:
    """What ``affine`` gives on CUDA."""
    return Sum(terms, divisor, bound, dtype)


def step(made: Any, dtype: torch.dtype) -> list[Any]:
    """The sums of a step with everything in it: a clipped quotient, sums over it, a term that must not be read."""
    x, m, z = (
        torch.randn(2, 4, 9, 9, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(3)
    )
    x0 = made((1.0, x), (-0.6, m), divisor=0.8, bound=1.0)
    end = made((0.5, x), (0.3, x0), (0.1, z), dtype=torch.float32)
    return [
        end,
        x0,
        made((0.0, torch.full_like(x, NAN)), (2.0, x0)),
        made((0.5, end), (-1.0, x0), dtype=dtype),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_put_off_are_those_computed_at_once(dtype: torch.dtype) -> None:
    at_once, put_off = step(affine, dtype), step(later, dtype)
    assert [x.dtype for x in put_off] == [torch.float32, dtype, dtype, dtype]
    for x, y in zip(evaluate(*at_once), one_by_one(put_off), strict=True):
        assert x.dtype == y.dtype
        assert torch.equal(x, y)


class Counted:
    """In the place of the kernels: counts, and computes one sum after the other."""

    programs = 0

    def evaluated(self, wanted: list[Sum]) -> list[torch.Tensor]:
        self.programs += 1
        return one_by_one(wanted)


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_step_is_one_program_and_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA, but computed on the CPU: the same bits, and all of a step's sums are asked for together."""
    alone = run(name, "cpu", torch.float32, torch.Generator().manual_seed(5))
    counted = Counted()
    monkeypatch.setattr(sums_of_steps, "deferred", lambda x: True)
    monkeypatch.setattr(sums_of_steps, "kernels", lambda: counted)
    assert torch.equal(run(name, "cpu", torch.float32, torch.Generator().manual_seed(5)), alone)
    scheduler = getattr(calotype, name)(**CASES[name])
    scheduler.set_timesteps(STEPS)
    assert 0 < counted.programs <= len(scheduler.timesteps)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernel_computes_the_same() -> None:
    """In a process of its own: Triton decides at import whether it interprets."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("same") == 4


def compare() -> None:
    """The kernel beside PyTorch, over two dtypes and for tensors that lie in memory in different ways."""
    from calotype.acceleration import affine_kernel

    for dtype in (torch.float32, torch.bfloat16):
        sums = step(later, dtype)
        for x, y in zip(affine_kernel.evaluated(sums), one_by_one(sums), strict=True):
            assert x.dtype == y.dtype
            torch.testing.assert_close(x, y, rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)
        print("same", dtype)
    x, y = torch.randn(2, 4, 5, 6), torch.randn(2, 4, 5, 6).to(memory_format=torch.channels_last)
    halves = torch.randn(1, 8, 5, 6).split(4, dim=1)
    for pair in ((x, y), (y[:1], x[1:]), halves):
        found = affine_kernel.evaluated([later((2.0, pair[0]), (-1.0, pair[1]))])[0]
        torch.testing.assert_close(found, 2 * pair[0] - pair[1])
    infinite = affine_kernel.evaluated(
        [later((1.0, x), divisor=0.0, bound=2.0), later((1.0, x * NAN), bound=1.0)]
    )
    assert infinite[0].abs().eq(2.0).all()
    assert infinite[1].isnan().all()
    print("same wherever they lie; clips bring infinities back and keep NaN")
    nothing, grown = later((0.0, x * NAN)), later((1.0, x), (1.0, x[:1]))
    learned = later((3.0, x.clone().requires_grad_()))
    assert [affine_kernel.evaluated([wanted]) for wanted in (nothing, grown, learned)] == [None] * 3
    sums_of_steps.kernels = lambda: affine_kernel
    assert torch.equal(evaluate(nothing)[0], torch.zeros_like(x))
    assert torch.equal(evaluate(grown)[0], x + x[:1])
    assert evaluate(learned)[0].requires_grad
    print("same where the kernel cannot be used")


if __name__ == "__main__":
    compare()
