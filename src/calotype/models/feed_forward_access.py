"""Feed-forward layers of a model computed in parts."""

from __future__ import annotations

from torch import nn

from calotype.core.errors import InputError
from calotype.nn.feed_forward import FeedForward


class FeedForwardAccess:
    """For models whose :class:`FeedForward` layers read so much at once that memory is short, as with videos."""

    def enable_forward_chunking(self, chunk_size: int | None = None, dim: int = 0) -> None:
        """Compute feed-forward layers ``chunk_size`` (1) items of dimension ``dim`` at a time, in less memory."""
        if dim not in (0, 1):
            raise InputError(f"Feed-forward layers are cut along dimension 0 or 1, not {dim!r}.")
        if chunk_size is not None and chunk_size < 1:
            raise InputError(f"A chunk has at least one item, not {chunk_size!r}.")
        self._chunk_feed_forward(chunk_size or 1, dim)

    def disable_forward_chunking(self) -> None:
        """Undo :meth:`enable_forward_chunking`."""
        self._chunk_feed_forward(None, 0)

    def _chunk_feed_forward(self, size: int | None, dim: int) -> None:
        assert isinstance(self, nn.Module)
        for part in self.modules():
            if isinstance(part, FeedForward):
                part.chunk_size, part.chunk_dim = size, dim
