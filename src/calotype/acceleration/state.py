"""What a captured call depends on beside its arguments: where a model's weights are, and what the model consists of."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from itertools import chain
from operator import attrgetter, itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from calotype.acceleration.concerned import is_encoder, is_known, is_record, settings_of
from calotype.adapters.layer import Adapted
from calotype.adapters.model import is_strength_hook
from calotype.nn.attention import Attention, AttnAddedKVProcessor, AttnProcessor

_PROCESSORS = (AttnProcessor, AttnAddedKVProcessor)
"""The attention procedures that compute the same each time, which a user's own need not."""
_TYPE, _VERSION = attrgetter("dtype"), attrgetter("_version")
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


class Weights:
    """The tensors of a model as they are now, kept so that their memory is not given away unnoticed."""

    def __init__(self, model: nn.Module) -> None:
        self.tensors: list[Tensor] = list(_tensors(model))
        self.addresses = list(map(Tensor.data_ptr, self.tensors))
        self.types = list(map(_TYPE, self.tensors))

    def stand(self) -> bool:
        """Whether all are where they were; their values may have changed."""
        return list(map(Tensor.data_ptr, self.tensors)) == self.addresses

    def are_alike(self) -> bool:
        """Whether all are of the type that they were."""
        return list(map(_TYPE, self.tensors)) == self.types

    def versions(self) -> tuple[int, ...]:
        """How often each has been changed in place, as far as PyTorch counts that."""
        try:
            return tuple(map(_VERSION, self.tensors))
        except RuntimeError:  # tensors made in inference mode count nothing
            return tuple(0 if tensor.is_inference() else tensor._version for tensor in self.tensors)


class Structure:
    """What a model consists of and how it is set, to be compared with what it is later.

    What is kept of each module are the values of its attributes, without those of ``nn.Module`` that only gradients and
    files concern, and the contents of those that are containers. Modules with attributes of the same names are read
    together, so that a comparison is some dozens of steps of Python's own; most values are found to be the same object.
    """

    def __init__(self, model: nn.Module) -> None:
        self.root = weakref.ref(model)
        modules = list(everything(model))
        self.tables = [module.__dict__ for module in modules]
        self.sizes = list(map(len, self.tables))
        self.alike: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        self.empty: list[Any] = list(_OF_ALL_MODULES)
        self.below: list[dict[Any, Any]] = []
        self.others: list[Any] = []
        self.acting: list[tuple[dict[str, Any], tuple[str, ...]]] = []
        """The attributes of adapted layers, and the names of the adapters that act there."""
        for module, own in zip(modules, self.tables, strict=True):
            names = tuple(name for name in own if name in _CONCERN or name not in _OF_ALL)
            if isinstance(module, Adapted):
                names = tuple(name for name in names if name != _STRENGTHS)
                self.acting.append((own, tuple(own[_STRENGTHS])))
            self.alike.setdefault(names, []).append(own)
            for value in map(own.__getitem__, names):
                if not isinstance(value, dict | list | set):
                    continue
                if not value:
                    self.empty.append(value)
                elif isinstance(value, dict):
                    self.below.append(value)
                else:
                    self.others.append(value)
        self.below += settings_of(model.modules())
        self.values = list(self._values())
        self.contents, self.keys = list(map(dict, self.below)), list(chain.from_iterable(self.below))
        self.entries = list(map(tuple, self.others))

    def _values(self) -> Iterator[Any]:
        return chain.from_iterable(
            chain.from_iterable(map(itemgetter(*names), tables)) for names, tables in self.alike.items()
        )

    def stands(self, model: nn.Module) -> bool:
        """Whether the model is what it was."""
        if self.root() is not model or any(self.empty):
            return False
        if any(tuple(own[_STRENGTHS]) != names for own, names in self.acting):
            return False
        try:
            return (
                list(map(len, self.tables)) == self.sizes
                and self.below == self.contents
                and list(chain.from_iterable(self.below)) == self.keys  # their order counts too
                and list(map(tuple, self.others)) == self.entries
                and list(self._values()) == self.values
            )
        except (KeyError, RuntimeError, TypeError, ValueError):  # gone, or not the same tensors or arrays
            return False


_CONCERN = frozenset(
    ("training", "_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks")
)
"""What a call without gradients depends on of the attributes that all modules have."""
_STRENGTHS = "strengths"
"""The attribute of adapted layers whose values are read anew in each call: :class:`numbers.Amounts`."""
_OF_ALL = frozenset(vars(nn.Module()))
_OF_ALL_MODULES = (nn.modules.module._global_forward_hooks, nn.modules.module._global_forward_pre_hooks)
"""Hooks that a user has put on whatever module is called."""


def everything(model: nn.Module) -> Iterator[nn.Module]:
    """All modules, and the layers in whose place adapted ones stand."""
    for module in model.modules():
        yield module
        if isinstance(module, Adapted):
            yield module.layer


def obstacle(model: nn.Module, kind: str = "cuda") -> str | None:
    """Why this model is left to compute by itself, if it is; ``kind`` is the device that its weights have to be on."""
    if hasattr(model, "_orig_mod") or not isinstance(model, nn.Module):
        return "it is compiled already"
    if not (type(model).__module__.startswith("calotype.models.") or is_encoder(type(model))):
        return f"its class {type(model).__name__} is not of this library"
    for module in model.modules():
        own = module.__dict__
        if own.get("_compiled_call_impl") is not None:
            return f"{_name(model, module)} is compiled already"
        if not is_known(module, model):
            return f"{_name(model, module)} computes by code that is not of this library"
        if own["training"] and not _has_no_modes(module):
            return "it is in training mode"
        for hooks in (own["_forward_hooks"], own["_forward_pre_hooks"]):
            if not all(is_strength_hook(hook) or is_record(hook) for hook in hooks.values()):
                return f"hooks are on {_name(model, module)}, as offloading puts them there"
        if own.get("freeu") is not None:
            return "FreeU is on"
        if isinstance(module, Attention):
            if type(module.processor) not in _PROCESSORS:
                name = _name(model, module)
                return (
                    f"{name} computes by a {type(module.processor).__name__}, which may do more than compute"
                )
            if module.image_sources is not None:
                return "an IP-Adapter is in it"
    if any(_OF_ALL_MODULES):
        return "hooks are on all modules"
    devices = set()
    for tensor in _tensors(model):
        if type(tensor) is not Tensor and type(tensor) is not nn.Parameter:
            return f"its weights are {type(tensor).__name__}s"
        if tensor.dtype not in _DTYPES and tensor.is_floating_point():
            return f"its weights are {tensor.dtype}"
        devices.add(tensor.device)
    if len(devices) != 1:
        return "its weights are not on one device"
    place = devices.pop().type
    return None if place == kind else f"its weights are on {place}"


def _has_no_modes(module: nn.Module) -> bool:
    """Whether training and evaluation are the same to a module: lists, and what adapters put in later."""
    return type(module) is nn.ModuleList or type(module).__module__.startswith("calotype.adapters.")


def _name(model: nn.Module, wanted: nn.Module) -> str:
    return next((name for name, module in model.named_modules() if module is wanted), "") or "it"


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    for module in everything(model):
        for table in (module._parameters, module._buffers):
            yield from (tensor for tensor in table.values() if tensor is not None)


def channels_last(model: nn.Module) -> None:
    """The weights of convolutions laid out as channels-last, one after another, in the model itself."""
    for module in everything(model):
        if isinstance(module, nn.Conv2d) and not module.weight.is_contiguous(
            memory_format=torch.channels_last
        ):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)


def pack(model: nn.Module) -> None:
    """Weights of what reads the same put one after the other in memory, names kept: see :func:`siblings`."""
    for module in model.modules():
        if not isinstance(module, Attention) or module.added_kv_proj_dim is not None:
            continue
        parts = siblings(module)
        if any(type(part) is not nn.Linear for part in parts):
            continue
        for name in ("weight", "bias"):
            tensors = [getattr(part, name) for part in parts]
            if any(tensor is None for tensor in tensors) or joined(tensors) is not None:
                continue
            whole = torch.cat([tensor.data for tensor in tensors])
            for tensor, piece in zip(tensors, whole.split([len(t) for t in tensors]), strict=True):
                tensor.data = piece


def siblings(layer: Attention) -> tuple[nn.Module | None, ...]:
    """The layers of an attention that read the same: queries, keys and values, or of a prompt keys and values."""
    if layer.is_cross_attention:
        return layer.to_k, layer.to_v
    return layer.to_q, layer.to_k, layer.to_v


def joined(tensors: list[Tensor]) -> Tensor | None:
    """Tensors that lie one after the other in one storage, as one along the first dimension; otherwise None."""
    first = tensors[0]
    at = first.data_ptr()
    for tensor in tensors:
        if (
            tensor.data_ptr() != at
            or not tensor.is_contiguous()
            or tensor.dtype != first.dtype
            or tensor.untyped_storage().data_ptr() != first.untyped_storage().data_ptr()
        ):
            return None
        at += tensor.nbytes
    rows = sum(len(tensor) for tensor in tensors)
    return first.detach().as_strided((rows, *first.shape[1:]), first.stride())
