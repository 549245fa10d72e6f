"""Modules made without memory: their tensors have shapes and types, and get their values from files.

What is done here holds for one thread alone, unlike anything done to ``torch.nn`` itself, which other threads would run
into.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_Made = Callable[[torch.Tensor], None]

_LISTS = frozenset(getattr(torch, name) for name in "as_tensor arange linspace logspace eye".split())
"""What makes tensors of values that a constructor computes."""
_LARGE = frozenset(
    getattr(torch, name) for name in "empty zeros ones full tensor eye rand randn randint as_tensor".split()
)
"""What makes tensors that may become parameters."""
_SETS = frozenset(
    [
        *(getattr(nn.init, f"{name}_") for name in "uniform normal constant ones zeros trunc_normal".split()),
        *(
            getattr(nn.init, f"{kind}_{how}_")
            for kind in ("kaiming", "xavier")
            for how in ("uniform", "normal")
        ),
        *(getattr(torch.Tensor, f"{name}_") for name in "uniform normal fill zero".split()),
    ]
)
"""What sets the values of a tensor."""
_NOTED = _SETS | _LISTS | _LARGE


class _WithoutValues(TorchFunctionMode):
    """What sets the values of tensors on the meta device does nothing: there are none to set.

    What ``there`` says is made there, and ``made`` is told of what may become a parameter. This takes half the time of
    ``torch.device("meta")``.
    """

    def __init__(
        self, there: Callable[[Any, dict[str, Any]], bool] | None, made: _Made | None = None
    ) -> None:
        super().__init__()
        self._there, self._made = there, made

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in _NOTED:
            return func(*args, **kwargs) if kwargs else func(*args)
        kwargs = kwargs or {}
        if func in _SETS:
            tensor = args[0] if args else kwargs["tensor"]
            return tensor if tensor.is_meta else func(*args, **kwargs)
        if self._there is not None and kwargs.get("device") is None and self._there(func, kwargs):
            kwargs["device"] = "meta"
        result = func(*args, **kwargs)
        if self._made is not None and func in _LARGE:
            self._made(result)
        return result


def on_meta(made: _Made | None = None) -> AbstractContextManager[Any]:
    """Within this, modules are made without memory, ready to be filled; ``made`` is told of each tensor."""
    return _WithoutValues(lambda func, kwargs: True, made)


def weights_on_meta(made: _Made | None = None) -> AbstractContextManager[Any]:
    """As :func:`on_meta`, with the numbers that a constructor computes, such as positions, where they always are."""

    def there(func: Any, kwargs: dict[str, Any]) -> bool:
        kind = kwargs.get("dtype")
        return func not in _LISTS and (kind is None or kind.is_floating_point)

    return _WithoutValues(there, made)


def telling(made: _Made) -> AbstractContextManager[Any]:
    """Within this, ``made`` is told of each new tensor that may become a parameter."""
    return _WithoutValues(None, made)


def no_values_on_meta() -> AbstractContextManager[Any]:
    """Within this, no time is spent on the values of tensors on the meta device."""
    return _WithoutValues(None)
