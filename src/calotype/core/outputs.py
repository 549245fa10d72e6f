"""Output values: dataclasses that also read as an ordered mapping and as a tuple."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import fields
from typing import Any


class BaseOutput(OrderedDict):
    """Base of all output dataclasses; a field that is ``None`` is left out of the mapping and the tuple.

    ``output.images``, ``output["images"]`` and ``output[0]`` are the same value.
    """

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if value is not None:
                super().__setitem__(field.name, value)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return super().__getitem__(key)
        return self.to_tuple()[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.keys():
            super().__setitem__(name, value)
        super().__setattr__(name, value)

    def _refuse(self, *_: Any, **__: Any) -> None:
        raise TypeError(f"The fields of a {type(self).__name__} are fixed; assign to one of them instead.")

    __delitem__ = _refuse
    setdefault = _refuse
    pop = _refuse
    update = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]

    def to_tuple(self) -> tuple[Any, ...]:
        """The values that are not ``None``, in the order of the fields."""
        return tuple(self.values())
