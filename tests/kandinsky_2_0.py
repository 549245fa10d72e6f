"""Kandinsky 2.0 stated once more, in plain functions of the published state dictionary, and tiny folders as published.

Nothing here uses the library's networks but the autoencoder, which has tests of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import calotype
from tests.parity.kandinsky_parts import multilingual_tokenizer, vocabulary
from tests.tiny import VAE, randomise
from tests.unit.test_single_file import original_vae

State = dict[str, torch.Tensor]
HEAD = 64


class Layer(NamedTuple):
    """``kind``: conv, block, attention, up or down."""

    kind: str
    inward: int
    outward: int


@dataclass(frozen=True)
class Sizes:
    """What the published architecture has numbers for."""

    width: int = 64
    factors: tuple[int, ...] = (1, 2)
    blocks: int = 1
    attends: tuple[int, ...] = (1,)
    """The levels that attend."""
    channels: int = 4
    context: int = 48
    text: int = 32
    pooled: int = 24
    text_2: int = 16

    @property
    def layers(self) -> dict[str, list[Layer]]:
        """Place -> the layers that stand there, in the order in which they run."""
        now = self.width
        found = {"input_blocks.0": [Layer("conv", self.channels, now)]}
        skips, last = [now], len(self.factors) - 1

        def add(half: str, *layers: Layer) -> None:
            found[f"{half}.{sum(name.startswith(half) for name in found)}"] = list(layers)

        for level, factor in enumerate(self.factors):
            wide = factor * self.width
            attention = [Layer("attention", wide, wide)] * (level in self.attends)
            for _ in range(self.blocks):
                add("input_blocks", Layer("block", now, wide), *attention)
                now = wide
                skips.append(now)
            if level < last:
                add("input_blocks", Layer("down", now, now))
                skips.append(now)
        found["middle_block"] = [Layer(kind, now, now) for kind in ("block", "attention", "block")]
        for level in range(last, -1, -1):
            wide = self.factors[level] * self.width
            attention = [Layer("attention", wide, wide)] * (level in self.attends)
            for number in range(self.blocks + 1):
                up = [Layer("up", wide, wide)] * (level > 0 and number == self.blocks)
                add("output_blocks", Layer("block", now + skips.pop(), wide), *attention, *up)
                now = wide
        return found


PUBLISHED = Sizes(
    width=384,
    factors=(1, 2, 3, 4),
    blocks=3,
    attends=(1, 2, 3),
    context=768,
    text=1024,
    pooled=640,
    text_2=512,
)


def random_state(sizes: Sizes, seed: int = 0, device: str = "cpu") -> State:
    """A denoiser's checkpoint as published; no parameter is zero, no norm one. On ``meta`` it has shapes alone."""
    generator = torch.Generator().manual_seed(seed)
    time, state = 4 * sizes.width, State()

    def tensor(*shape: int, scale: float) -> torch.Tensor:
        if device == "meta":
            return torch.empty(shape, device=device)
        return torch.randn(shape, generator=generator) * scale

    def linear(name: str, inward: int, outward: int, *places: int) -> None:
        state[f"{name}.weight"] = tensor(outward, inward, *places, scale=(inward * math.prod(places)) ** -0.5)
        state[f"{name}.bias"] = tensor(outward, scale=0.2)

    def norm(name: str, width: int) -> None:
        state[f"{name}.weight"] = 1 + tensor(width, scale=0.2)
        state[f"{name}.bias"] = tensor(width, scale=0.2)

    linear("time_embed.0", sizes.width, time)
    linear("time_embed.2", time, time)
    for place, layers in sizes.layers.items():
        for number, (kind, inward, outward) in enumerate(layers):
            name = f"{place}.{number}"
            if kind == "conv":
                linear(name, inward, outward, 3, 3)
            elif kind == "attention":
                norm(f"{name}.norm", inward)
                linear(f"{name}.qkv", inward, 3 * inward, 1)
                linear(f"{name}.encoder_kv", sizes.context, 2 * inward, 1)
                linear(f"{name}.proj_out", inward, inward, 1)
            else:
                norm(f"{name}.in_layers.0", inward)
                linear(f"{name}.in_layers.2", inward, outward, 3, 3)
                linear(f"{name}.emb_layers.1", time, 2 * outward)
                norm(f"{name}.out_layers.0", outward)
                linear(f"{name}.out_layers.3", outward, outward, 3, 3)
                if inward != outward:
                    linear(f"{name}.skip_connection", inward, outward, 1, 1)
    norm("out.0", sizes.width)
    linear("out.2", sizes.width, 8, 3, 3)
    state["out.2.weight"] *= 0.25  # so calm that rounding does not grow from step to step
    linear("to_model_dim", sizes.text, sizes.context)
    linear("proj", sizes.pooled, time)
    for name in ("q_linear", "v_linear", "k_linear"):
        linear(f"proj2.{name}", sizes.text_2, sizes.text_2)
    linear("proj2.out", sizes.text_2, time)
    linear("to_model_dim2", sizes.text_2, sizes.context)
    for number, width in ((1, sizes.context), (2, time), (3, time)):
        norm(f"ln_model{number}", width)
    return state


# -- the forward pass ------------------------------------------------------------------------------------------


def linear(w: Mapping[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def conv(w: Mapping[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    weight = w[f"{name}.weight"]
    return F.conv2d(x, weight, w[f"{name}.bias"], padding=weight.shape[-1] // 2)


def group_norm(w: Mapping[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    return F.group_norm(x, 32, w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)


def layer_norm(w: Mapping[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


def told(
    w: Mapping[str, torch.Tensor], states: torch.Tensor, pooled: torch.Tensor, states_2: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The context and the addition to the time."""
    heads = 8
    q, k, v = (linear(w, f"proj2.{name}_linear", states_2).unflatten(-1, (heads, -1)) for name in "qkv")
    scores = torch.einsum("bnhc,bmhc->bhnm", q, k) / math.sqrt(q.shape[-1])
    mixed = torch.einsum("bhnm,bmhc->bnhc", scores.softmax(dim=-1), v).flatten(2)
    second = layer_norm(w, "ln_model3", linear(w, "proj2.out", mixed)[:, 0])
    both = torch.cat([linear(w, "to_model_dim", states), linear(w, "to_model_dim2", states_2)], dim=1)
    return layer_norm(w, "ln_model1", both), layer_norm(w, "ln_model2", linear(w, "proj", pooled)) + second


def denoised(
    w: Mapping[str, torch.Tensor],
    sizes: Sizes,
    x: torch.Tensor,
    timestep: float,
    context: torch.Tensor,
    addition: torch.Tensor,
) -> torch.Tensor:
    """The network's eight channels."""
    half = sizes.width // 2
    angles = timestep * torch.exp(-math.log(10_000) * torch.arange(half) / half)
    time = linear(w, "time_embed.0", torch.cat([angles.cos(), angles.sin()])[None])
    time = linear(w, "time_embed.2", F.silu(time)) + addition

    def run(place: str, x: torch.Tensor) -> torch.Tensor:
        for number, (kind, *_) in enumerate(sizes.layers[place]):
            name = f"{place}.{number}"
            if kind == "conv":
                x = conv(w, name, x)
            elif kind == "attention":
                x = attended(w, name, x, context)
            else:
                x = residual(w, name, kind, x, time)
        return x

    skips = []
    for place in [place for place in sizes.layers if place.startswith("input")]:
        x = run(place, x)
        skips.append(x)
    x = run("middle_block", x)
    for place in [place for place in sizes.layers if place.startswith("output")]:
        x = run(place, torch.cat([x, skips.pop()], dim=1))
    return conv(w, "out.2", F.silu(group_norm(w, "out.0", x)))


def residual(
    w: Mapping[str, torch.Tensor], name: str, kind: str, x: torch.Tensor, time: torch.Tensor
) -> torch.Tensor:
    def resized(y: torch.Tensor) -> torch.Tensor:
        if kind == "up":
            return y.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        return F.avg_pool2d(y, 2) if kind == "down" else y

    h = conv(w, f"{name}.in_layers.2", resized(F.silu(group_norm(w, f"{name}.in_layers.0", x))))
    scale, shift = linear(w, f"{name}.emb_layers.1", F.silu(time))[:, :, None, None].chunk(2, dim=1)
    h = F.silu(group_norm(w, f"{name}.out_layers.0", h) * (1 + scale) + shift)
    x = resized(x)
    if f"{name}.skip_connection.weight" in w:
        x = conv(w, f"{name}.skip_connection", x)
    return x + conv(w, f"{name}.out_layers.3", h)


def attended(
    w: Mapping[str, torch.Tensor], name: str, x: torch.Tensor, context: torch.Tensor
) -> torch.Tensor:
    """Every pixel sees the context and all pixels; what a head reads lies side by side in the projections."""
    own = linear_over(w, f"{name}.qkv", group_norm(w, f"{name}.norm", x).flatten(2))
    given = linear_over(w, f"{name}.encoder_kv", context.transpose(1, 2))
    out = []
    for head in range(x.shape[1] // HEAD):
        q, k, v = own[:, 3 * HEAD * head : 3 * HEAD * (head + 1)].chunk(3, dim=1)
        key, value = given[:, 2 * HEAD * head : 2 * HEAD * (head + 1)].chunk(2, dim=1)
        scores = torch.einsum("bct,bcs->bts", q, torch.cat([key, k], dim=2)) / math.sqrt(HEAD)
        out.append(torch.einsum("bts,bcs->bct", scores.softmax(dim=-1), torch.cat([value, v], dim=2)))
    return x + linear_over(w, f"{name}.proj_out", torch.cat(out, dim=1)).view(x.shape)


def linear_over(w: Mapping[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    """A convolution over single places of (batch, channels, places)."""
    return torch.einsum("oi,bit->bot", w[f"{name}.weight"][:, :, 0], x) + w[f"{name}.bias"][:, None]


# -- folders ---------------------------------------------------------------------------------------------------

INPAINTING = Sizes(channels=9)
SMALL_VAE = {**VAE, "block_out_channels": (32,) * 4, "norm_num_groups": 32, "layers_per_block": 1}
STATES = {"Kandinsky-2-0": Sizes(), "Kandinsky-2-0-inpainting": INPAINTING}


def state_of(stem: str) -> State:
    """The same for a name at each call."""
    return random_state(STATES[stem], seed=len(stem))


def published(folder: Path, *stems: str, safe: bool) -> Path:
    """A tiny random checkpoint in the published layout, of pickles or, if ``safe``, of safetensors."""
    from transformers import MT5Config, MT5EncoderModel, T5Tokenizer, XLMRobertaConfig, XLMRobertaModel

    sizes = Sizes()

    def write(state: State, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if safe:
            save_file({k: v.contiguous().clone() for k, v in state.items()}, path.with_suffix(".safetensors"))
        else:
            torch.save({"state_dict": state} if path.suffix == ".ckpt" else state, path)

    for stem in stems:
        write(state_of(stem), folder / f"{stem}.pt")
    write(original_vae(randomise(calotype.AutoencoderKL(**SMALL_VAE), 2), ""), folder / "vae.ckpt")

    first, second = folder / "text_encoder1", folder / "text_encoder2"
    tokenizer = multilingual_tokenizer()
    tokenizer.save_pretrained(first)
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=sizes.text,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=20,
        max_position_embeddings=80,
    )
    state = {f"transformer.{k}": v for k, v in randomise(XLMRobertaModel(config), 8).state_dict().items()}
    generator = torch.Generator().manual_seed(9)
    state["LinearTransformation.weight"] = torch.randn(sizes.pooled, sizes.text, generator=generator) * 0.2
    state["LinearTransformation.bias"] = torch.randn(sizes.pooled, generator=generator)
    write(state, first / ("model.safetensors" if safe else "pytorch_model.bin"))
    (first / "config.json").write_text(json.dumps(config.to_dict()))

    other = T5Tokenizer(vocab=vocabulary("<pad>", "</s>", "<unk>"), extra_ids=0)
    other.save_pretrained(second)
    described = MT5Config(
        vocab_size=len(other), d_model=sizes.text_2, d_kv=8, d_ff=24, num_layers=2, num_heads=2
    )
    encoder = randomise(MT5EncoderModel(described), 10)
    write(dict(encoder.state_dict()), second / ("model.safetensors" if safe else "pytorch_model.bin"))
    (second / "config.json").write_text(json.dumps(described.to_dict()))
    return folder


def read(pipe: Any, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """States and vectors of the first encoder, and states of the second, of 77 tokens each."""
    options: dict[str, Any] = {"padding": "max_length", "max_length": 77, "return_tensors": "pt"}
    first, second = pipe.tokenizer(texts, **options), pipe.tokenizer_2(texts, **options)
    seen = first.attention_mask
    states = pipe.text_encoder.transformer(first.input_ids, attention_mask=seen).last_hidden_state
    mean = (states * seen[:, :, None]).sum(dim=1) / seen.sum(dim=1, keepdim=True)
    pooled = linear(pipe.text_encoder.state_dict(), "LinearTransformation", mean)
    encoder = pipe.text_encoder_2.encoder
    return states, pooled, encoder(second.input_ids, attention_mask=second.attention_mask).last_hidden_state
