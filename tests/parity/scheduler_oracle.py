"""The reference's scheduler classes, the two included that it hides where the package `torchsde` is missing."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from typing import Any
from unittest import mock

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


class LMSDiscreteScheduler(diffusers.LMSDiscreteScheduler):
    """The reference integrates with levels that are tensors of no dimension, which takes ten times as long as the same
    operations on NumPy's single precision."""

    def get_lms_coefficient(self, order: int, t: int, current_order: int) -> float:
        sigmas = self.sigmas
        self.sigmas = sigmas.numpy()
        try:
            return super().get_lms_coefficient(order, t, current_order)
        finally:
            self.sigmas = sigmas


def oracle(name: str) -> Any:
    """The reference's class of this name."""
    if name == "LMSDiscreteScheduler":
        return LMSDiscreteScheduler
    if name not in NEEDS_TORCHSDE:
        return getattr(diffusers, name)
    if "torchsde" not in sys.modules and importlib.util.find_spec("torchsde") is None:
        sys.modules["torchsde"] = stand_in = types.ModuleType("torchsde")
        stand_in.BrownianInterval = BrownianInterval  # type: ignore[attr-defined]
    module = importlib.import_module(f"diffusers.schedulers.{NEEDS_TORCHSDE[name]}")
    return getattr(module, name)


LAYS_OUT = (
    "DPMSolverSDEScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
)
"""Classes whose reference lays out a run of all training steps when it is made, which takes some a second."""


def _shorter(method: Any) -> Any:
    return lambda self, steps, *rest, **more: method(self, min(steps, 10), *rest, **more)


@contextlib.contextmanager
def without_layout() -> Iterator[None]:
    """Objects of the reference made inside have a run of ten steps laid out; ``set_timesteps`` lays out anew."""
    with contextlib.ExitStack() as stack:
        for cls in map(oracle, LAYS_OUT):
            stack.enter_context(mock.patch.object(cls, "set_timesteps", _shorter(cls.set_timesteps)))
        yield
