"""CLIP text encoders out of a checkpoint in the original layout: as transformers names them, or as OpenCLIP does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from calotype.core.errors import WeightsError
from calotype.core.tensor_files import read_tensors, tensor_infos
from calotype.single_file.recognise import Infos

_OPEN = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
_OPEN_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}


def read_text_encoder(
    path: Path, prefix: str, *, dtype: torch.dtype | None, config: Mapping[str, Any] | None, drop_last: bool
) -> torch.nn.Module:
    """The text encoder whose keys begin with ``prefix``; ``drop_last`` leaves its last layer away, as SD 2 does."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    infos = {
        key.removeprefix(prefix): info for key, info in tensor_infos(path).items() if key.startswith(prefix)
    }
    opened = "ln_final.weight" in infos
    projected = opened and "text_projection" in infos and not drop_last
    settings = CLIPTextConfig(**(dict(config) if config is not None else text_config(infos, drop_last)))
    with torch.device("meta"):
        model = (CLIPTextModelWithProjection if projected else CLIPTextModel)(settings)
    expected = {key.removeprefix("text_model."): key for key in model.state_dict()}
    state: dict[str, torch.Tensor] = {}
    wanted = [prefix + key for key in infos]
    for stored, tensor in read_tensors(path, wanted, lambda key, value: value.to(dtype) if dtype else value):
        for key, value in _ours(stored.removeprefix(prefix), tensor, opened):
            if key in expected:
                state[expected[key]] = value
    if missing := [key for key in expected.values() if key not in state]:
        raise WeightsError(
            f"The text encoder in {path} (its keys begin with {prefix!r}) lacks {len(missing)} of "
            f"{type(model).__name__}'s parameters, such as {missing[0]!r}: the file is incomplete or of another model."
        )
    for key, tensor in model.state_dict().items():
        if tensor.shape != state[key].shape:
            raise WeightsError(
                f"{key} of the text encoder in {path} has the shape {list(state[key].shape)}, and "
                f"{type(model).__name__} {list(tensor.shape)}: its configuration is not of these weights."
            )
    model.load_state_dict(state, assign=True)
    _positions(model)
    return model.eval()


def text_config(infos: Infos, drop_last: bool) -> dict[str, Any]:
    """The configuration, read off names and shapes; heads have 64 channels in every published one."""
    opened = "ln_final.weight" in infos
    start = (
        "" if opened else next((s for s in ("text_model.", "") if f"{s}final_layer_norm.weight" in infos), "")
    )
    layer = r"transformer\.resblocks\.(\d+)\." if opened else re.escape(start) + r"encoder\.layers\.(\d+)\."
    layers = 1 + max((int(match[1]) for key in infos if (match := re.match(layer, key))), default=0)
    words = infos["token_embedding.weight" if opened else f"{start}embeddings.token_embedding.weight"].shape
    places = infos["positional_embedding" if opened else f"{start}embeddings.position_embedding.weight"].shape
    inner = "transformer.resblocks.0.mlp.c_fc.weight" if opened else f"{start}encoder.layers.0.mlp.fc1.weight"
    projection = infos.get("text_projection")
    return {
        "vocab_size": words[0],
        "hidden_size": words[1],
        "intermediate_size": infos[inner].shape[0],
        "num_hidden_layers": layers - drop_last,
        "num_attention_heads": max(words[1] // 64, 1),
        "max_position_embeddings": places[0],
        "projection_dim": projection.shape[1] if projection is not None else 768,
        "hidden_act": "gelu" if opened else "quick_gelu",
    }


def _ours(key: str, tensor: torch.Tensor, opened: bool) -> list[tuple[str, torch.Tensor]]:
    """Names and tensors of transformers' CLIP for one of the file; queries, keys and values are one in OpenCLIP."""
    if not opened:
        return [(key.removeprefix("text_model."), tensor)]
    if key in _OPEN:
        return [(_OPEN[key], tensor)]
    if key == "text_projection":
        return [("text_projection.weight", tensor.T.contiguous())]
    match = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)[._](weight|bias)", key)
    if match is None:
        return []
    layer, name, kind = match.groups()
    if name == "attn.in_proj":
        parts = zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3), strict=True)
        return [
            (f"encoder.layers.{layer}.self_attn.{part}.{kind}", value.contiguous()) for part, value in parts
        ]
    return [(f"encoder.layers.{layer}.{_OPEN_LAYER[name]}.{kind}", tensor)] if name in _OPEN_LAYER else []


def _positions(model: torch.nn.Module) -> None:
    """The numbers of the places, which no file holds."""
    for module in model.modules():
        for name, buffer in list(module._buffers.items()):
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.arange(buffer.shape[-1]).expand(buffer.shape).contiguous()
