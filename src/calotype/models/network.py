"""What every network has, one model or several: facts of its weights, and how its gradients are computed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from calotype.core.errors import InputError
from calotype.offloading.accelerator import release
from calotype.offloading.groups import HOST, Grouping, names_of

_INSTEAD = {
    "dequantize": "quantised weights are not loaded, so there is nothing to undo",
    "enable_layerwise_casting": "convert the model with to(torch.float16) or to(torch.bfloat16)",
    "enable_npu_flash_attention": "PyTorch's own attention chooses the kernel for the device",
    "enable_parallelism": "one model computes on one device",
    "enable_xla_flash_attention": "PyTorch's own attention chooses the kernel for the device",
    "set_attention_backend": "PyTorch's own attention chooses the kernel, or torch.nn.attention.sdpa_kernel around the "
    "call",
}
"""Calls of the reference's models that are not offered, and what to do."""


class Network(nn.Module):
    """A module with ``dtype``, ``device`` and gradient checkpointing."""

    _supports_gradient_checkpointing: ClassVar[bool] = False
    _repeated_blocks: ClassVar[tuple[str, ...]] = ()
    _keep_in_fp32_modules: ClassVar[tuple[str, ...]] = ()

    def __getattr__(self, name: str) -> Any:
        if name in _INSTEAD:
            raise AttributeError(f"{type(self).__name__} has no {name}: {_INSTEAD[name]}.")
        return super().__getattr__(name)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the first floating-point parameter (or buffer) that is not kept in float32 on purpose."""
        last = torch.get_default_dtype()
        for name, tensor in chain(self.named_parameters(), self.named_buffers()):
            if tensor.is_floating_point() and not any(part in name for part in self._keep_in_fp32_modules):
                return tensor.dtype
            last = tensor.dtype
        return last

    @property
    def device(self) -> torch.device:
        """Where the first parameter or buffer is."""
        first = next(chain(self.parameters(), self.buffers()), None)
        return torch.device("cpu") if first is None else first.device

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """The number of parameters; without those of ``nn.Embedding`` or without frozen ones on request."""
        tables = {
            id(part.weight)
            for part in self.modules()
            if exclude_embeddings and isinstance(part, nn.Embedding)
        }
        return sum(
            tensor.numel()
            for tensor in self.parameters()
            if id(tensor) not in tables and (tensor.requires_grad or not only_trainable)
        )

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """The bytes that parameters, and buffers unless told otherwise, take."""
        tensors = [*self.parameters(), *(self.buffers() if return_buffers else ())]
        return sum(tensor.nbytes for tensor in tensors)

    # -- gradient checkpointing --------------------------------------------------------------------------------

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether any part recomputes its activations in the backward pass."""
        return any(getattr(part, "gradient_checkpointing", False) for part in self.modules())

    def enable_gradient_checkpointing(
        self, gradient_checkpointing_func: Callable[..., Any] | None = None
    ) -> None:
        """Trade time for memory in training: activations of whole blocks are computed again when needed.

        ``gradient_checkpointing_func(module, *args)`` replaces ``torch.utils.checkpoint``.
        """
        if not self._supports_gradient_checkpointing:
            raise InputError(f"{type(self).__name__} does not support gradient checkpointing.")
        self._set_checkpointing(True, gradient_checkpointing_func or recompute)

    def disable_gradient_checkpointing(self) -> None:
        """Keep activations again."""
        self._set_checkpointing(False, recompute)

    def _set_checkpointing(self, enabled: bool, function: Callable[..., Any]) -> None:
        for part in self.modules():
            if hasattr(part, "gradient_checkpointing"):
                vars(part).update(gradient_checkpointing=enabled, _gradient_checkpointing_func=function)

    # -- offloading --------------------------------------------------------------------------------------------

    def enable_group_offload(
        self,
        onload_device: torch.device,
        offload_device: torch.device = HOST,
        offload_type: str = "block_level",
        num_blocks_per_group: int | None = None,
        non_blocking: bool = False,
        use_stream: bool = False,
        record_stream: bool = False,
        low_cpu_mem_usage: bool = False,
        offload_to_disk_path: str | None = None,
        block_modules: str | None = None,
        exclude_kwargs: str | None = None,
    ) -> None:
        """Keep the weights in the host's memory; groups of blocks are on the accelerator while they compute.

        As the pipeline's call of this name. ``block_modules`` names the children that are blocks, or lists of them, in
        place of all lists in the model; ``exclude_kwargs`` names arguments of ``forward`` that stay where they are.
        """
        grouping = Grouping(
            onload_device, offload_device, offload_type, num_blocks_per_group, non_blocking, use_stream,
            record_stream, low_cpu_mem_usage, offload_to_disk_path, block_modules, exclude_kwargs,
        )  # fmt: skip
        names = dict(self.named_children())
        if unknown := [name for name in names_of(block_modules) if name not in names]:
            raise InputError(f"block_modules names {unknown[0]!r}; the children are {', '.join(names)}.")
        release([self])
        self.to(grouping.home)
        grouping.accelerator(shared=False).host(type(self).__name__, self)

    # -- compiling ---------------------------------------------------------------------------------------------

    def compile_repeated_blocks(self, *args: Any, **kwargs: Any) -> None:
        """Compile each of the blocks that the model has many of, which takes less time than compiling it whole.

        The arguments are those of ``torch.compile``. Raises ``InputError`` where no block repeats.
        """
        blocks = [part for part in self.modules() if type(part).__name__ in self._repeated_blocks]
        if not blocks:
            raise InputError(
                f"{type(self).__name__} has no blocks that repeat; compile it whole with compile()."
            )
        for block in blocks:
            block.compile(*args, **kwargs)

    # -- attention: PyTorch's own serves -----------------------------------------------------------------------

    def enable_xformers_memory_efficient_attention(
        self, attention_op: Callable[..., Any] | None = None
    ) -> None:
        """Accepted for compatibility: PyTorch's attention, which is always used, saves the same memory."""

    def disable_xformers_memory_efficient_attention(self) -> None:
        """Accepted for compatibility; see :meth:`enable_xformers_memory_efficient_attention`."""

    def set_use_memory_efficient_attention_xformers(
        self, valid: bool, attention_op: Callable[..., Any] | None = None
    ) -> None:
        """Accepted for compatibility; see :meth:`enable_xformers_memory_efficient_attention`."""


def recompute(module: Callable[..., Any], *args: Any) -> Any:
    """``module(*args)`` whose activations are not kept for the backward pass."""
    return checkpoint(module, *args, use_reentrant=False)
