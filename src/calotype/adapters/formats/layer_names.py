"""The names that files have for the layers of a model: its own, those with underscores, those of the first code."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_BLOCK = re.compile(
    r"(?P<side>down|up)_blocks\.(?P<stage>\d+)\.(?P<kind>resnets|attentions|\w+samplers)\.(?P<i>\d+)"
)


def known_as(layers: Iterable[str]) -> dict[str, str]:
    """Every name of a layer in files -> its name in the model, for the model with these ``layers``.

    Flat names have underscores in the place of dots.
    """
    layers = list(layers)
    first_code = _of_first_code(layers)
    names: dict[str, str] = {}
    for layer in layers:
        for other in (layer, *_with_and_without(layer, "text_model."), *first_code.get(layer, ())):
            names.setdefault(other, layer)
            names.setdefault(other.replace(".", "_"), layer)
    return names


def _with_and_without(layer: str, prefix: str) -> Iterator[str]:
    """The other name of a text encoder's layer: the library that it is from has put a prefix on and taken it off."""
    yield layer.removeprefix(prefix) if layer.startswith(prefix) else prefix + layer


def _of_first_code(layers: list[str]) -> dict[str, list[str]]:
    """The names that the code of latent diffusion had for a UNet's layers, in which stages are one long list."""
    stages: dict[tuple[str, int], dict[str, set[int]]] = {}
    for layer in layers:
        if match := _BLOCK.match(layer):
            kinds = stages.setdefault((match["side"], int(match["stage"])), {})
            kinds.setdefault(match["kind"], set()).add(int(match["i"]))
    if not any(side == "down" for side, _ in stages):
        return {}
    starts = {
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }
    place = {"down": 1, "up": 0}
    for (side, stage), kinds in sorted(stages.items()):
        listed = {"down": "input_blocks", "up": "output_blocks"}[side]
        own = f"{side}_blocks.{stage}"
        for i in sorted(kinds.get("resnets", ())):
            starts[f"{own}.resnets.{i}"] = f"{listed}.{place[side]}.0"
            starts[f"{own}.attentions.{i}"] = f"{listed}.{place[side]}.1"
            place[side] += 1
        if "downsamplers" in kinds:
            starts[f"{own}.downsamplers.0.conv"] = f"input_blocks.{place[side]}.0.op"
            place[side] += 1
        if "upsamplers" in kinds:
            after = 2 if "attentions" in kinds else 1
            starts[f"{own}.upsamplers.0.conv"] = f"output_blocks.{place[side] - 1}.{after}.conv"
    names: dict[str, list[str]] = {layer: [name] for layer, name in _ENDS.items()}
    for layer in layers:
        for start, first in starts.items():
            if layer == start or layer.startswith(f"{start}."):
                rest = layer[len(start) :].removeprefix(".")
                if ".resnets." in start:
                    rest = _RESNET.get(rest, rest)
                names[layer] = [f"{first}.{rest}" if rest else first]
    return names
