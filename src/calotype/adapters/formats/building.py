"""Tensors of a file made into the update of a layer, after their shapes have been compared."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from calotype.adapters.formats.keys import Piece
from calotype.adapters.updates import Decomposed, Hadamard, Kronecker, Layer, LowRank, Replaced, Update
from calotype.core.errors import WeightsError


def built(piece: Piece, layer: Layer, name: str) -> Update:
    """The update of the layer ``name`` that a piece holds, in the layer's type and where it is.

    Raises ``WeightsError`` for tensors that do not fit the layer or are not all there.
    """
    tensors = dict(piece.tensors)
    alpha = tensors.pop("alpha", None)
    magnitude, by_input = tensors.pop("magnitude", None), tensors.pop("dora_scale", None)
    kinds = {role.partition("_")[0] for role in tensors}
    if kinds <= {"down", "up", "mid"} and {"down", "up"} <= tensors.keys():
        update: Update = _low_rank(tensors, alpha, layer, piece.config, name)
    elif kinds == {"hada"} and tensors.keys() >= _HADAMARD:
        update = _hadamard(tensors, alpha, layer, name)
    elif kinds == {"whole"} and "whole_weight" in tensors:
        update = _whole(tensors, layer, name)
    elif kinds == {"lokr"}:
        update = _kronecker(tensors, alpha, layer, name)
    else:
        raise WeightsError(f"The tensors for {name} are not all there: there are {', '.join(piece.keys)}.")
    if magnitude is None and by_input is None:
        return update
    return Decomposed(update, _magnitude(magnitude, by_input, layer, name))


_HADAMARD = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}


def _low_rank(
    tensors: dict[str, torch.Tensor],
    alpha: torch.Tensor | None,
    layer: Layer,
    config: Mapping[str, Any],
    name: str,
) -> LowRank:
    axes = layer.weight.ndim
    down, up = (_with_axes(tensors[role], axes) for role in ("down", "up"))
    if "mid" in tensors:  # a core between two matrices: the first two are one convolution
        mid = tensors["mid"]
        down = torch.einsum("rs...,si->ri...", mid.float(), down.flatten(1).float()).to(down.dtype)
    out, *rest = layer.weight.shape
    if (
        (up.shape[0], *down.shape[1:]) != (out, *rest)
        or up.shape[1] != down.shape[0]
        or up[0, 0].numel() != 1
    ):
        raise _misfit(name, layer, f"{tuple(up.shape)} times {tuple(down.shape)}")
    rank = down.shape[0]
    factor = _configured(config, name, rank) if alpha is None else _factor(alpha, rank)
    return LowRank(_placed(down, layer), _placed(up if factor == 1.0 else up.float() * factor, layer))


def _hadamard(
    tensors: dict[str, torch.Tensor], alpha: torch.Tensor | None, layer: Layer, name: str
) -> Hadamard:
    factor = _factor(alpha, tensors["hada_w1_b"].shape[0])
    update = Hadamard(**_scaled(tensors, "hada_w1_a", factor, layer))
    _check(update, layer, name)
    return update


def _kronecker(
    tensors: dict[str, torch.Tensor], alpha: torch.Tensor | None, layer: Layer, name: str
) -> Kronecker:
    for part in ("lokr_w1", "lokr_w2"):
        if part not in tensors and not {f"{part}_a", f"{part}_b"} <= tensors.keys():
            raise WeightsError(
                f"The tensors for {name} are not all there: neither {part} nor its two factors."
            )
    ranks = [tensors[key].shape[0] for key in ("lokr_w1_b", "lokr_w2_b") if key in tensors]
    factor = _factor(alpha, ranks[0]) if ranks else 1.0
    first = "lokr_w1" if "lokr_w1" in tensors else "lokr_w1_a"
    update = Kronecker(**_scaled(tensors, first, factor, layer))
    _check(update, layer, name)
    return update


def _scaled(
    tensors: Mapping[str, torch.Tensor], one: str, factor: float, layer: Layer
) -> dict[str, torch.Tensor]:
    """The tensors in the layer's type, ``one`` of them times a factor."""
    return {
        name: _placed(tensor.float() * factor if name == one and factor != 1.0 else tensor, layer)
        for name, tensor in tensors.items()
    }


def _whole(tensors: dict[str, torch.Tensor], layer: Layer, name: str) -> Replaced:
    weight, bias = tensors["whole_weight"], tensors.get("whole_bias")
    if weight.shape != layer.weight.shape or (bias is not None and bias.shape != layer.weight.shape[:1]):
        raise _misfit(name, layer, f"{tuple(weight.shape)}")
    return Replaced(_placed(weight, layer), None if bias is None else _placed(bias, layer))


def _check(update: Hadamard | Kronecker, layer: Layer, name: str) -> None:
    try:
        type(update)(**{key: tensor.to("meta") for key, tensor in update.tensors().items()}).delta(layer)
    except (RuntimeError, KeyError) as error:
        shapes = ", ".join(f"{key} {tuple(tensor.shape)}" for key, tensor in update.tensors().items())
        raise _misfit(name, layer, shapes) from error


def _magnitude(
    by_output: torch.Tensor | None, either: torch.Tensor | None, layer: Layer, name: str
) -> torch.Tensor:
    """Magnitudes with the weight's number of axes, for each output or (in LyCORIS's earlier files) each input."""
    out, into = layer.weight.shape[:2]
    ones = [1] * (layer.weight.ndim - 2)
    given = by_output if by_output is not None else either
    assert given is not None
    rows = by_output is not None or given.ndim < 2 or given.shape[0] == out != 1
    if given.numel() != (out if rows else into):
        raise _misfit(name, layer, f"magnitudes {tuple(given.shape)}")
    return _placed(given.reshape(-1, 1, *ones) if rows else given.reshape(1, -1, *ones), layer)


def _with_axes(tensor: torch.Tensor, axes: int) -> torch.Tensor:
    """A matrix as a kernel of one pixel where the layer is a convolution, and the other way round."""
    if tensor.ndim == 2 and axes > 2:
        return tensor.reshape(*tensor.shape, *[1] * (axes - 2))
    if axes == 2 and tensor.ndim > 2 and tensor[0, 0].numel() == 1:
        return tensor.flatten(1)
    return tensor


def _factor(alpha: torch.Tensor | None, rank: int) -> float:
    return 1.0 if alpha is None else float(alpha) / rank


def _configured(config: Mapping[str, Any], name: str, rank: int) -> float:
    """α/r, or α/√r, as PEFT's settings have it; 1 without them."""
    alpha = config.get("lora_alpha")
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", name):
            alpha = value
    if alpha is None:
        return 1.0
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)


def _placed(tensor: torch.Tensor, layer: Layer) -> torch.Tensor:
    return tensor.detach().to(layer.weight.device, layer.weight.dtype)


def _misfit(name: str, layer: Layer, found: str) -> WeightsError:
    return WeightsError(
        f"{name} has a weight of {tuple(layer.weight.shape)}, and the file's update of it is {found}: the file is for "
        f"another model."
    )
