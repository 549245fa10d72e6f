"""Reading and replacing how the attention layers of a model compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from calotype.core.errors import InputError
from calotype.nn.attention import Attention, Processor


class AttentionAccess:
    """For models with :class:`Attention` layers: their processors by name, and fused projections."""

    def _attention_layers(self) -> dict[str, Attention]:
        assert isinstance(self, nn.Module)
        return {name: part for name, part in self.named_modules() if isinstance(part, Attention)}

    @property
    def attn_processors(self) -> dict[str, Processor]:
        """The processors of all attention layers, by ``<layer>.processor``."""
        return {
            f"{name}.processor": layer.get_processor() for name, layer in self._attention_layers().items()
        }

    def set_attn_processor(self, processor: Processor | Mapping[str, Processor]) -> None:
        """Compute attention by ``processor``, or each layer by the one that the mapping has for it."""
        layers = self._attention_layers()
        if not isinstance(processor, Mapping):
            for layer in layers.values():
                layer.set_processor(processor)
            return
        expected = {f"{name}.processor" for name in layers}
        if wrong := expected.symmetric_difference(processor):
            raise InputError(
                f"A mapping of processors needs one for each of the {len(layers)} attention layers, and it has "
                f"{len(processor)}; {sorted(wrong)[0]!r} is missing or superfluous."
            )
        for name, layer in layers.items():
            layer.set_processor(processor[f"{name}.processor"])

    def set_default_attn_processor(self) -> None:
        """Compute attention in the ordinary way again."""
        for layer in self._attention_layers().values():
            layer.set_processor(layer.default_processor())

    def set_attention_slice(self, slice_size: str | int | list[int] | None = "auto") -> None:
        """Accepted for compatibility: PyTorch's attention never holds the matrix that slicing would cut up."""
        good = slice_size is None or slice_size in ("auto", "max")
        sizes: list[Any] = slice_size if isinstance(slice_size, list) else [slice_size]
        if not good and not all(isinstance(size, int) and size > 0 for size in sizes):
            raise InputError(
                f"slice_size is 'auto', 'max', a positive number or a list of them, not {slice_size!r}."
            )

    def fuse_qkv_projections(self) -> None:
        """Compute queries, keys and values in one matrix product; saved weights stay as they are."""
        for layer in self._attention_layers().values():
            layer.fuse_projections()

    def unfuse_qkv_projections(self) -> None:
        """Undo :meth:`fuse_qkv_projections`."""
        for layer in self._attention_layers().values():
            layer.unfuse_projections()
