"""The import machinery: modules that bear the reference's names and hold calotype's."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from calotype.compat.names import REFERENCE, is_module, lacking, lookup, public_names


class Face(ModuleType):
    """A module of the reference as calotype answers it: names are looked up when they are asked for."""

    def __getattr__(self, name: str) -> Any:
        path = f"{self.__name__}.{name}"
        if name.startswith("__") and name != "__version__":
            raise AttributeError(name)
        if is_module(path):
            return importlib.import_module(path)
        try:
            value = lookup(self.__name__, name)
        except LookupError:
            raise AttributeError(lacking(self.__name__, name)) from None
        setattr(self, name, value)
        return value

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *public_names(self.__name__)})


class Finder(MetaPathFinder):
    """Finds every module of the reference that has a counterpart here; refuses the others by name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The place of a module, or None for one that is not of the reference."""
        if fullname != REFERENCE and not fullname.startswith(f"{REFERENCE}."):
            return None
        if not is_module(fullname):
            # `from module import name` comes here for a name that the module lacks
            module, _, name = fullname.rpartition(".")
            raise ImportError(lacking(module, name), name=fullname)
        return ModuleSpec(fullname, _Maker(), origin="calotype", is_package=True)


class _Maker(Loader):
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return Face(spec.name, "Answered by calotype.")

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__all__"] = public_names(module.__name__)
