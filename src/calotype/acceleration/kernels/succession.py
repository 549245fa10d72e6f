"""What a kernel does that may begin before the one before it has ended: it waits, and lets the next one begin."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

try:
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
except ImportError:  # before Triton 3.4, where no kernel is launched so

    @triton.jit
    def gdc_wait():
        """Stands for the name."""

    @triton.jit
    def gdc_launch_dependents():
        """Stands for the name."""


@triton.jit
def begin(NEXT: tl.constexpr):
    """Wait for the end of all kernels before; every program does so before it reads or writes any memory.

    The others' results are seen from then on, and nothing is overwritten that they still read. Parameters are no
    exception: they may have been changed in place just before. Without ``NEXT`` there is nothing to wait for.
    """
    if NEXT is not None:
        if NEXT == "while waiting":
            gdc_launch_dependents()
        gdc_wait()
        if NEXT == "at once":
            gdc_launch_dependents()


@triton.jit
def loaded(NEXT: tl.constexpr):
    """A program has read the most of what it reads, and is about to write."""
    if NEXT == "once loaded":
        gdc_launch_dependents()
