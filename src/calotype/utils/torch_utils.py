"""Tensor helpers under the names that scripts import them by."""

from __future__ import annotations

import torch

from calotype.core.random import randn_tensor

__all__ = ["is_compiled_module", "randn_tensor"]


def is_compiled_module(module: object) -> bool:
    """Whether a module is the wrapper that ``torch.compile`` returns."""
    return isinstance(module, torch._dynamo.eval_frame.OptimizedModule)
