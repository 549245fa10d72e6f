"""Where weights are while they are not on the accelerator: in memory as they are, in pinned memory, or in files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn

from calotype.core.files import replacing
from calotype.offloading.transfers import pinned

Home = Callable[[str, Iterable[nn.Module]], None]
"""Brings the own weights of some modules, called by a name, to where they stay."""


def in_memory(name: str, owners: Iterable[nn.Module]) -> None:
    """They stay as they are."""


def in_pinned_memory(name: str, owners: Iterable[nn.Module]) -> None:
    """Each tensor is moved into pinned memory once, so that copies need not wait for the host."""
    for tensor in _tensors(owners).values():
        if not tensor.is_pinned():
            tensor.data = pinned(tensor.data)


class OnDisk:
    """A file for each piece in a folder; the weights are then views of the mapped file, which take no memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._mapped: set[int] = set()
        """Where the tensors are that have been written."""

    def __call__(self, name: str, owners: Iterable[nn.Module]) -> None:
        """Write what is in no file yet."""
        from safetensors import safe_open
        from safetensors.torch import save_file

        tensors = {k: t for k, t in _tensors(owners).items() if t.data_ptr() not in self._mapped}
        if not tensors:
            return
        path = self.folder / f"{name}.safetensors"
        with replacing(path) as temporary:
            save_file({key: tensor.detach().contiguous() for key, tensor in tensors.items()}, temporary)
        with safe_open(path, framework="pt") as file:
            for key, tensor in tensors.items():
                tensor.data = file.get_tensor(key)
                self._mapped.add(tensor.data_ptr())


def _tensors(owners: Iterable[nn.Module]) -> dict[str, torch.Tensor]:
    """The weights with elements of these modules, each once, by number."""
    found: dict[int, torch.Tensor] = {}
    for owner in owners:
        for tensor in (*owner._parameters.values(), *owner._buffers.values()):
            if tensor is not None and tensor.numel():
                found[id(tensor)] = tensor
    return {str(number): tensor for number, tensor in enumerate(found.values())}
