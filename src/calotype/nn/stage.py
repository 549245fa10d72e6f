"""The stages of a U-Net: layers of one resolution, then a change of resolution.

A stage is a zip of lanes, ``resnets`` and ``attentions`` and those that work along time, followed by the lane that
resamples. The lanes' names are the keys of checkpoints. Which modules stand in the lanes is decided in
:mod:`calotype.nn.stage_table`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from calotype.core.errors import InputError
from calotype.nn.freeu import apply_freeu
from calotype.nn.replaceable import replaceable
from calotype.nn.resampling import Upsample2D
from calotype.nn.resnet import ResnetBlock2D
from calotype.nn.windows import Windows


class Conditioning(NamedTuple):
    """What every layer of a U-Net is told besides its input.

    ``temb`` (batch, temb_channels) embeds the time and what was added to it; ``context`` (batch, tokens,
    channels) is attended to; the masks (batch, 1, n) are added to the scores of attention to the pixels
    and to the context; ``kwargs`` reach the attention processors. Of the batch so many ``frames`` in a row are a video;
    attention along time is in ``windows``, where there are some.
    """

    temb: torch.Tensor | None = None
    context: Any = None
    self_mask: torch.Tensor | None = None
    context_mask: torch.Tensor | None = None
    kwargs: dict[str, Any] | None = None
    frames: int = 1
    windows: Windows | None = None


class AlongTime(NamedTuple):
    """The lanes that work along time, empty in U-Nets for pictures.

    ``temp_convs`` come after the residual blocks, ``temp_attentions`` and ``motion_modules`` after the attentions. The
    modules take the features with frames in the batch, the number of frames, what reaches attention processors, and the
    windows.
    """

    temp_convs: Sequence[nn.Module] = ()
    temp_attentions: Sequence[nn.Module] = ()
    motion_modules: Sequence[nn.Module] = ()


Attend = Callable[[nn.Module, torch.Tensor, Conditioning], torch.Tensor]
"""How a module of the attention lane is called."""


def attend_pixels(module: nn.Module, h: torch.Tensor, given: Conditioning) -> torch.Tensor:
    """Self-attention among the pixels."""
    return module(h, **(given.kwargs or {}))


def attend_transformer(module: nn.Module, h: torch.Tensor, given: Conditioning) -> torch.Tensor:
    """A transformer over the pixels that reads the context."""
    return module(h, given.context, given.self_mask, given.context_mask, given.kwargs)


def attend_added_kv(module: nn.Module, h: torch.Tensor, given: Conditioning) -> torch.Tensor:
    """Attention to the context's and the pixels' keys at once; a mask of the pixels comes first."""
    mask = given.self_mask
    if mask is None and given.context is not None:
        mask = given.context_mask
    return module(h, encoder_hidden_states=given.context, attention_mask=mask, **(given.kwargs or {}))


def attend_k(module: nn.Module, h: torch.Tensor, given: Conditioning) -> torch.Tensor:
    """Attention whose norms read the time embedding."""
    return module(h, given.context, given.temb, given.self_mask, given.context_mask, given.kwargs)


def joined(maps: list[torch.Tensor]) -> torch.Tensor:
    """The maps (batch, channels, height, width) as one of all their channels, or the only one; taken off their list."""
    h = maps[0] if len(maps) == 1 else torch.cat(maps, dim=1)
    maps.clear()
    return h


@replaceable
def of_joined(block: nn.Module, maps: list[torch.Tensor], temb: torch.Tensor | None) -> torch.Tensor:
    """A residual block of the maps joined, which are taken off their list, so that nothing holds them meanwhile."""
    return block(joined(maps), temb)


class _Stage(nn.Module):
    """The lanes, and how one layer runs; the subclasses say in which order."""

    temp_convs: nn.ModuleList

    def __init__(
        self,
        resnets: Sequence[nn.Module],
        attentions: Sequence[nn.Module],
        attend: Attend,
        along_time: AlongTime = AlongTime(),  # noqa: B008 (immutable)
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        if attentions:
            self.attentions = nn.ModuleList(attentions)
        for lane, modules in along_time._asdict().items():
            if modules:
                self.add_module(lane, nn.ModuleList(modules))
        self._mixing = tuple(lane for lane in AlongTime._fields[1:] if getattr(along_time, lane))
        self.has_temp_convs = bool(along_time.temp_convs)
        self.has_attention = bool(attentions)
        self.has_cross_attention = bool(attentions) and attend is not attend_pixels
        self._attend = attend
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Callable[..., torch.Tensor] = _recompute

    @property
    def recomputes(self) -> bool:
        """Whether what is inside of a layer is computed again for its gradient."""
        return self.gradient_checkpointing and torch.is_grad_enabled()

    def layer(self, index: int, features: list[torch.Tensor], given: Conditioning) -> torch.Tensor:
        """One residual block and the attention after it, of the ``features`` joined, which are taken off the list.

        So nothing holds a layer's input while the attention runs: in U-Nets over videos that is where memory is short.
        """
        if self.recomputes:
            return self.run(
                lambda h: self.mixed(index, self.refined(index, [h], given), given), joined(features)
            )
        return self.mixed(index, self.refined(index, features, given), given)

    def refined(self, index: int, features: list[torch.Tensor], given: Conditioning) -> torch.Tensor:
        """The residual block and the convolutions along time."""
        h = of_joined(self.resnets[index], features, given.temb)
        return self.temp_convs[index](h, given.frames) if self.has_temp_convs else h

    def mixed(self, index: int, h: torch.Tensor, given: Conditioning) -> torch.Tensor:
        """Attention within the pictures, then along time."""
        if self.has_attention:
            h = self._attend(self.attentions[index], h, given)
        for lane in self._mixing:
            h = getattr(self, lane)[index](h, given.frames, given.kwargs, given.windows)
        return h

    def run(self, function: Callable[[torch.Tensor], torch.Tensor], h: torch.Tensor) -> torch.Tensor:
        """``function(h)``, forgetting what is inside until the gradient needs it if checkpointing is on."""
        if self.recomputes:
            return self._gradient_checkpointing_func(function, h)
        return function(h)


class DownStage(_Stage):
    """Layers at one resolution, then half of it; the output of each is kept for the way up."""

    def __init__(
        self,
        resnets: Sequence[nn.Module],
        attentions: Sequence[nn.Module] = (),
        attend: Attend = attend_pixels,
        downsampler: nn.Module | None = None,
        keep_downsampled: bool = True,
        along_time: AlongTime = AlongTime(),  # noqa: B008 (immutable)
    ) -> None:
        super().__init__(resnets, attentions, attend, along_time)
        self.downsamplers = None if downsampler is None else nn.ModuleList([downsampler])
        self.keep_downsampled = keep_downsampled

    def forward(
        self,
        h: torch.Tensor,
        given: Conditioning = Conditioning(),  # noqa: B008 (immutable)
        residual: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """(batch, channels, height, width) -> the stage's output and the features for the way up.

        ``residual`` is added after the last layer, before the resolution changes.
        """
        kept: list[torch.Tensor] = []
        for index in range(len(self.resnets)):
            h = self.layer(index, [h], given)
            kept.append(h)
        if residual is not None:
            h = kept[-1] = h + residual
        if self.downsamplers is not None:
            h = resample(self.downsamplers[0], h, given)
            if self.keep_downsampled:
                kept.append(h)
        return h, kept


class UpStage(_Stage):
    """Layers that read the features kept on the way down, then twice the resolution.

    The features are joined before each layer, or the last of them once before the first layer, or never (``joins``).
    ``freeu`` holds the (skip, backbone) factors of FreeU, None without it.
    """

    def __init__(
        self,
        resnets: Sequence[nn.Module],
        attentions: Sequence[nn.Module] = (),
        attend: Attend = attend_pixels,
        upsampler: nn.Module | None = None,
        joins: Literal["each", "once", "never"] = "each",
        takes_freeu: bool = False,
        along_time: AlongTime = AlongTime(),  # noqa: B008 (immutable)
    ) -> None:
        super().__init__(resnets, attentions, attend, along_time)
        self.upsamplers = None if upsampler is None else nn.ModuleList([upsampler])
        self.joins = joins
        self.takes_freeu = takes_freeu
        self.freeu: tuple[float, float] | None = None

    def forward(
        self,
        h: torch.Tensor,
        kept: list[torch.Tensor],
        given: Conditioning = Conditioning(),  # noqa: B008 (immutable)
        upsample_size: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """(batch, channels, height, width) -> the stage's output, of ``upsample_size`` where 2x is not it.

        ``kept`` are as many features of the way down as the stage has layers, the last to be read first; they are taken
        off the list.
        """
        features = [self.begun(h, kept)]
        del h
        for index in range(len(self.resnets)):
            self.raised(index, features, kept, given)
        return self.finished(features.pop(), given, upsample_size)

    def begun(self, h: torch.Tensor, kept: list[torch.Tensor]) -> torch.Tensor:
        """What the first layer begins with."""
        return joined(self._to_join(h, kept[-1])) if self.joins == "once" else h

    def raised(
        self, index: int, features: list[torch.Tensor], kept: list[torch.Tensor], given: Conditioning
    ) -> None:
        """One layer, which reads the last of ``kept``; its output takes the place of the one of the ``features``."""
        skip = kept.pop()
        if self.joins == "each":
            features.extend(self._to_join(features.pop(), skip))
        del skip
        features.append(self.layer(index, features, given))

    def finished(
        self, h: torch.Tensor, given: Conditioning, upsample_size: Sequence[int] | None = None
    ) -> torch.Tensor:
        """What the stage gives, from what its last layer gave."""
        if self.upsamplers is not None:
            h = resample(self.upsamplers[0], h, given, upsample_size)
        return h

    def _to_join(self, h: torch.Tensor, skip: torch.Tensor) -> list[torch.Tensor]:
        if h.shape[2:] != skip.shape[2:]:
            raise InputError(
                f"The way up arrived at {tuple(h.shape[2:])} pixels where the way down left "
                f"{tuple(skip.shape[2:])}: give an input whose height and width can be halved that often."
            )
        if self.freeu is not None:
            h, skip = apply_freeu(h, skip, self.freeu)
        return [h, skip]


class MidStage(_Stage):
    """A residual block, then pairs of attention and residual block."""

    def forward(
        self,
        h: torch.Tensor,
        given: Conditioning = Conditioning(),  # noqa: B008 (immutable)
    ) -> torch.Tensor:
        """(batch, channels, height, width) -> the same shape."""
        h = self.refined(0, [h], given)
        for index in range(1, len(self.resnets)):
            h = self._pair(index, h, given)
        return h

    def _pair(self, index: int, h: torch.Tensor, given: Conditioning) -> torch.Tensor:
        return self.run(lambda h: self.refined(index, [self.mixed(index - 1, h, given)], given), h)


def resample(
    module: nn.Module, h: torch.Tensor, given: Conditioning, size: Sequence[int] | None = None
) -> torch.Tensor:
    """Run the module at a stage's end: a residual block is told the time, an upsampler the size."""
    if isinstance(module, ResnetBlock2D):
        return module(h, given.temb)
    if isinstance(module, Upsample2D):
        return module(h, size)
    return module(h)


def _recompute(function: Callable[[torch.Tensor], torch.Tensor], h: torch.Tensor) -> torch.Tensor:
    return checkpoint(function, h, use_reentrant=False)
