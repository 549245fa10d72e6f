"""What a kernel does that may begin before the one before it has ended: it waits, and lets the next one begin."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def begin(NEXT: tl.constexpr):
    """Wait for the end of all kernels before; every program does so before it reads or writes any memory.

    The others' results are seen from then on, and nothing is overwritten that they still read. Parameters are no
    exception: they may have been changed in place just before. Without ``NEXT`` there is nothing to wait for.
    """
    if NEXT is not None:
        if NEXT == "while waiting":
            _let_next_begin()
        # Triton's own name for this cannot be compiled in 3.4
        tl.inline_asm_elementwise(
            "griddepcontrol.wait; mov.b32 $0, 0;", "=r", [], dtype=tl.int32, is_pure=False, pack=1
        )
        if NEXT == "at once":
            _let_next_begin()


@triton.jit
def loaded(NEXT: tl.constexpr):
    """A program has read the most of what it reads, and is about to write."""
    if NEXT == "once loaded":
        _let_next_begin()


@triton.jit
def _let_next_begin():
    tl.inline_asm_elementwise(
        "griddepcontrol.launch_dependents; mov.b32 $0, 0;", "=r", [], dtype=tl.int32, is_pure=False, pack=1
    )
