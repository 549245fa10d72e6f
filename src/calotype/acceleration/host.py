"""What a processor has for models on a CPU."""

from __future__ import annotations

from collections.abc import Callable

import torch

INSTRUCTIONS: tuple[tuple[str, str], ...] = (
    ("_is_amx_tile_supported", "AMX"),
    ("_is_avx512_bf16_supported", "AVX-512"),
)
"""What PyTorch calls the question, and what the instructions are called that multiply bfloat16."""


def note(dtype: torch.dtype) -> str:
    """What is worth knowing of a type of weights on a CPU, if anything: how quick bfloat16 is there."""
    if dtype != torch.bfloat16:
        return ""
    for question, name in INSTRUCTIONS:
        has: Callable[[], bool] | None = getattr(torch.cpu, question, None)
        if has is not None and has():
            return f", in bfloat16 by {name}"
    return ", in bfloat16, for which the processor has no instructions: float32 is quicker"
