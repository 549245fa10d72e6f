"""The UNet of guided diffusion (arXiv:2105.05233) that reads a text, in its original layout.

Its attention has queries, keys and values in one tensor, those of a head side by side, and so keys and values of the
text (arXiv:2112.10741).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from calotype.core import weights
from calotype.core.errors import WeightsError
from calotype.core.safetensors_header import TensorInfo
from calotype.core.tensor_files import read_tensors, tensor_infos
from calotype.single_file.recognise import Infos

HEAD = 64
"""Channels of a head, in all that were published."""

_RESIDUAL = "in_layers.0.weight"


def guided_unet_config(infos: Infos) -> dict[str, Any]:
    """The configuration of the UNet, read off names and shapes; ``KeyError`` where one is missing.

    What it is told beside the time is added to the time's embedding as ``class_labels``.
    """
    outputs = _count(infos, r"output_blocks\.(\d+)\.")
    ends = (
        number
        for number in range(outputs)
        if {f"output_blocks.{number}.{place}.{_RESIDUAL}" for place in (1, 2)} & infos.keys()
    )
    each = (
        next(ends, outputs - 1) + 1
    )  # blocks of a level: the last of them enlarges, and on the way down shrinks
    firsts = [f"input_blocks.{1 + level * each}" for level in range(outputs // each)]
    down = tuple(
        "SimpleCrossAttnDownBlock2D" if f"{first}.1.qkv.weight" in infos else "ResnetDownsampleBlock2D"
        for first in firsts
    )
    up = {
        "SimpleCrossAttnDownBlock2D": "SimpleCrossAttnUpBlock2D",
        "ResnetDownsampleBlock2D": "ResnetUpsampleBlock2D",
    }
    return {
        "in_channels": infos["input_blocks.0.0.weight"].shape[1],
        "out_channels": infos["out.2.weight"].shape[0],
        "block_out_channels": tuple(infos[f"{first}.0.out_layers.3.weight"].shape[0] for first in firsts),
        "layers_per_block": each - 1,
        "down_block_types": down,
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": tuple(up[kind] for kind in reversed(down)),
        "attention_head_dim": HEAD,
        "cross_attention_dim": infos["middle_block.1.encoder_kv.weight"].shape[1],
        "resnet_time_scale_shift": "scale_shift",
        "class_embed_type": "identity",
    }


def fill(
    module: nn.Module,
    path: Path,
    names: Mapping[str, str],
    *,
    dtype: torch.dtype | None,
    device: torch.device | None,
) -> None:
    """Give ``module`` the tensors of a file, all of which it must have; ``names``: its keys -> those of the file.

    Where several keys have one name, that tensor holds them all. Raises ``WeightsError``, in the file's own names, if
    one is missing, left over or has another shape.
    """
    own = module.state_dict()
    inside: dict[str, list[str]] = {}
    for key, name in names.items():
        inside.setdefault(name, []).append(key)
    expected = {name: _whole([own[key] for key in keys]) for name, keys in inside.items()}
    infos = {name: _without_places(info) for name, info in tensor_infos(path).items()}
    report = weights.compare(expected, infos)
    if problem := weights.describe(report, type(module).__name__, str(path)):
        raise WeightsError(problem)

    def convert(name: str, stored: torch.Tensor) -> torch.Tensor:
        return stored.to(device or "cpu", dtype or own[inside[name][0]].dtype)

    state: dict[str, torch.Tensor] = {}
    for name, tensor in read_tensors(path, expected, convert):
        keys = inside[name]
        if len(keys) == 1:
            state[keys[0]] = tensor.view(own[keys[0]].shape)
        else:
            state |= zip(keys, _pieces(tensor.view(expected[name].shape), len(keys)), strict=True)
    module.load_state_dict(state, assign=True)


def _whole(parts: list[torch.Tensor]) -> torch.Tensor:
    """What a file has for these tensors, without values; one by itself stays itself."""
    rows = sum(part.shape[0] for part in parts)
    return parts[0] if len(parts) == 1 else torch.empty(rows, *parts[0].shape[1:], device="meta")


def _pieces(packed: torch.Tensor, count: int) -> Iterator[torch.Tensor]:
    """The tensors that lie in one, head after head: (heads * count * HEAD, …) -> ``count`` times (heads * HEAD, …)."""
    by_head = packed.unflatten(0, (-1, count, HEAD))
    return (piece.flatten(0, 1).contiguous() for piece in by_head.unbind(1))


def _without_places(info: TensorInfo) -> TensorInfo:
    """A convolution over one place in a sequence is a linear layer here."""
    one_place = len(info.shape) == 3 and info.shape[2] == 1
    return info._replace(shape=info.shape[:2]) if one_place else info


def _count(infos: Infos, pattern: str) -> int:
    found = re.compile(pattern)
    return max((int(match[1]) + 1 for key in infos if (match := found.match(key))), default=0)
