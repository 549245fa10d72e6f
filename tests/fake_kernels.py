"""What stands in the kernels' place where there is no device that has them."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor

from calotype.acceleration import usable
from calotype.acceleration.kernels import (
    convolutions,
    group_norm,
    layer_norm,
    matrix_products,
    narrow_attention,
    pointwise,
)
from calotype.acceleration.options import Options
from calotype.acceleration.stand_ins import StandIns


class Fake:
    """In the place of the kernels: what they would compute, and for which shapes that was asked of which."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[str] = []
        monkeypatch.setattr(usable.Kernels, "take", staticmethod(lambda *tensors: True))
        modules: dict[str, Any] = {one.name: None for one in fields(usable.Kernels)}
        modules["group_norm"] = SimpleNamespace(fused=self.normalised)
        modules["layer_norm"] = SimpleNamespace(fused=layer_norm.plain)
        modules["matrix_products"] = SimpleNamespace(fit=lambda *given, **more: True, fused=self.multiplied)
        modules["gate_products"] = SimpleNamespace(fit=lambda *given: None)
        modules["convolutions"] = SimpleNamespace(fit=lambda *given: True, fused=self.convolved)
        modules["short_attention"] = SimpleNamespace(fit=lambda *given: False)
        modules["narrow_attention"] = SimpleNamespace(fit=lambda *given: True, fused=self.attended)
        modules["pointwise"] = SimpleNamespace(
            residual=self.residual, twice=pointwise.plain_twice, geglu=pointwise.plain_geglu
        )
        self.kernels = usable.Kernels(**modules)

    def normalised(self, x: Tensor, *given: Any, beside: Any = None, **more: Any) -> Tensor:
        if beside is not None:
            self.seen.append("two maps")
        return group_norm.plain(x, *given, beside=beside, **more)

    def convolved(self, x: Tensor, weight: Tensor, bias: Any = None, other: Any = None) -> Tensor:
        self.seen.append("convolved" + " bias" * (bias is not None) + " other" * (other is not None))
        return convolutions.plain(x, weight, bias, other)

    def attended(self, *given: Any) -> Tensor:
        self.seen.append("attended")
        return narrow_attention.plain(*given)

    def multiplied(
        self, x: Tensor, weight: Tensor, bias: Any = None, other: Any = None, beside: Any = None
    ) -> Tensor:
        self.seen.append("product" + " other" * (other is not None) + " beside" * (beside is not None))
        return matrix_products.plain(x, weight, bias, other, beside)

    def residual(self, *given: Any) -> Tensor:
        self.seen.append("residual")
        return pointwise.plain_residual(*given)

    def stand_ins(self, **options: bool) -> StandIns:
        return StandIns(Options(**options), self.kernels)
