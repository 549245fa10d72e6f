"""How much memory one library's models take on a device, with all that their calls add."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from benchmarks._gpu.timing import Timer

PLACE = 512
"""Bytes that addresses of weights are multiples of, as PyTorch's are."""
WHOLE = 2**21
"""Bytes of which PyTorch takes whole numbers from the device, so that nothing beside a block is free."""


class Peak:
    """The most memory of one library's models and all that their calls add, from now on.

    It is what a process would hold that has these models alone, though others lie beside them. What PyTorch has taken
    from the device and tensors do not fill is given to whatever comes next: free pieces between weights that were cast
    to float32 and back, or beside a result of the call before, would serve the library that is measured next and be
    counted for nobody. So there are none at first. The models ``beside`` lie in one block each, those measured have
    been put where nothing was taken before, one weight after another and laid out as they are when they are loaded,
    and what cuBLAS computes in is given up, which each library then takes anew.

    Calls captured of the models must have been forgotten. Results that are kept from measurement to measurement belong
    on the host.
    """

    def __init__(self, timer: Timer, models: Iterable[nn.Module], beside: Iterable[nn.Module] = ()) -> None:
        self.timer = timer
        timer.settle()
        if timer.cuda:
            models = list(models)
            for model in (*beside, *models):
                timer.clear()  # a block is never a part of what another model has left
                together(model)
            torch._C._cuda_clearCublasWorkspaces()  # type: ignore[attr-defined]
            timer.clear()
            own = weight_bytes(models)
            self.before = torch.cuda.memory_allocated() - own, torch.cuda.memory_reserved() - own
            for model in models:
                timer.clear()
                apart(model)
            timer.clear()
            timer.settle()
            torch.cuda.reset_peak_memory_stats()

    def gib(self) -> tuple[float | None, float | None]:
        """What tensors took, and what PyTorch held for them; nothing is known of a CPU."""
        if not self.timer.cuda:
            return None, None
        held = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        return (held[0] - self.before[0]) / 2**30, (held[1] - self.before[1]) / 2**30


def together(model: nn.Module) -> None:
    """Bring a model's weights into one block of memory, if they are not in one."""
    tensors = list(tensors_of(model))
    if len({tensor.untyped_storage().data_ptr() for tensor in tensors}) <= 1:
        return
    ends = [0]
    for tensor in tensors:
        ends.append(-(-(ends[-1] + tensor.nbytes) // PLACE) * PLACE)
    block = torch.empty(-(-ends[-1] // WHOLE) * WHOLE, dtype=torch.uint8, device=tensors[0].device)
    for tensor, start in zip(tensors, ends, strict=False):
        place = block[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        tensor.data = place.copy_(tensor.data)


def apart(model: nn.Module) -> None:
    """Give each of a model's weights memory of its own, contiguous."""
    for tensor in tensors_of(model):
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)


def tensors_of(model: nn.Module) -> Iterator[Tensor]:
    """Its parameters and buffers."""
    yield from model.parameters()
    yield from model.buffers()


def weight_bytes(models: Iterable[nn.Module]) -> int:
    """Bytes of the models' parameters and buffers, each memory once."""
    found = {}
    for model in models:
        for tensor in tensors_of(model):
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())
