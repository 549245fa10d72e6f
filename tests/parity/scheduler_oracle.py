"""The reference's scheduler classes, the two included that it hides where the package `torchsde` is missing."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from typing import Any

import diffusers
import torch

from calotype.core.brownian import BrownianPath

NEEDS_TORCHSDE = {
    "DPMSolverSDEScheduler": "scheduling_dpmsolver_sde",
    "CosineDPMSolverMultistepScheduler": "scheduling_cosine_dpmsolver_multistep",
}


class BrownianInterval:
    """What the reference uses of `torchsde`, over our path, whose values a test of its own compares with torchsde's."""

    def __init__(
        self, t0: Any, t1: Any, size: Any, dtype: Any, device: Any, entropy: int, **tree: Any
    ) -> None:
        assert tree["halfway_tree"] and tree["tol"] == 1e-6 and tree["pool_size"] == 24, tree
        like = torch.empty(size, dtype=dtype, device=device)
        self.path = BrownianPath(like, float(t0), float(t1), int(entropy))

    def __call__(self, start: Any, end: Any) -> torch.Tensor:
        return self.path.increment(float(start), float(end))


def oracle(name: str) -> Any:
    """The reference's class of this name."""
    if name not in NEEDS_TORCHSDE:
        return getattr(diffusers, name)
    if "torchsde" not in sys.modules and importlib.util.find_spec("torchsde") is None:
        sys.modules["torchsde"] = stand_in = types.ModuleType("torchsde")
        stand_in.BrownianInterval = BrownianInterval  # type: ignore[attr-defined]
    module = importlib.import_module(f"diffusers.schedulers.{NEEDS_TORCHSDE[name]}")
    return getattr(module, name)
