"""Updates of weights beside their layers: what they do to a model, and that they leave it as it was."""

from __future__ import annotations

import copy
import gc
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import calotype
from calotype.adapters import loading, model, strength
from calotype.adapters.formats.keys import sorted_out
from calotype.adapters.formats.layer_names import known_as
from calotype.adapters.layer import Adapted
from calotype.core.errors import InputError, ModelFilesError, WeightsError
from calotype.offloading.accelerator import Accelerator
from calotype.pipelines import efficiency
from tests import tiny

torch.set_num_threads(1)


def unet() -> Any:
    return tiny.randomise(calotype.UNet2DConditionModel(**tiny.UNET), 3)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lora(
    module: nn.Module, ends: str = "to_q", rank: int = 4, seed: int = 0, prefix: str = "unet."
) -> dict[str, Any]:
    """Random updates for the layers whose names end so, in the language of today."""
    state = {}
    for name, layer in model.layers_of(module).items():
        if name.endswith(ends):
            out, *rest = layer.weight.shape
            state[f"{prefix}{name}.lora_A.weight"] = 0.3 * draw(rank, *rest, seed=seed + len(state))
            state[f"{prefix}{name}.lora_B.weight"] = 0.3 * draw(
                out, rank, *[1] * (len(rest) - 1), seed=len(state)
            )
    return state


INPUTS = draw(2, 4, 8, 8), 5, draw(2, 7, 32, seed=1)


def predicted(module: Any, **kwargs: Any) -> torch.Tensor:
    with torch.no_grad():
        return module(*INPUTS, **kwargs).sample


@pytest.fixture(scope="module")
def shared() -> Any:
    return unet()


@pytest.fixture
def net(shared: Any) -> Iterator[Any]:
    yield shared
    shared.unload_lora()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.stable_diffusion_folder(tmp_path_factory.mktemp("lora") / "sd")


@pytest.fixture
def pipe(folder: Path) -> Any:
    made = calotype.StableDiffusionPipeline.from_pretrained(folder)
    made.set_progress_bar_config(disable=True)
    return made


# -- one update, against the weight that it stands for ----------------------------------------------------------


def merged(layer: Any, delta: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """What the layer computes with ``delta`` in its weight."""
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.weight += delta
        return other(x)


LAYERS = {
    "linear": (nn.Linear(12, 20), (3, 12)),
    "convolution": (nn.Conv2d(12, 20, 3, stride=2, padding=1), (2, 12, 8, 8)),
    "pixels": (nn.Conv2d(12, 20, 1), (2, 12, 4, 4)),
}


def pieces(kind: str, layer: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Tensors of one layer in LyCORIS's language, and ΔW by the papers' formulas."""
    out, into, *kernel = layer.weight.shape
    ones = [1] * len(kernel)
    shape = layer.weight.shape
    if kind in ("lora", "locon, core"):
        down, up = draw(4, into, *kernel), draw(out, 4, *ones, seed=1)
        tensors = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(2.0)}
        if kind == "lora":
            return tensors, (up.flatten(1) @ down.flatten(1)).reshape(shape) * 2 / 4
        core, down = draw(4, 4, *kernel, seed=2), draw(4, into, *ones)
        tensors |= {"lora_mid.weight": core, "lora_down.weight": down}
        delta = torch.einsum("or,rs...,si->oi...", up.flatten(1), core, down.flatten(1))
        return tensors, delta * 2 / 4
    if kind == "loha":
        parts = {
            f"hada_w{i}_{x}": draw(*s, seed=i)
            for i in (1, 2)
            for x, s in (("a", (out, 4)), ("b", (4, layer.weight[0].numel())))
        }
        delta = (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
        return {**parts, "alpha": torch.tensor(1.0)}, delta.reshape(shape) / 4
    if kind == "loha, core":
        parts = {}
        factors = []
        for i in (1, 2):
            a, b, core = draw(4, out, seed=i), draw(4, into, seed=i + 2), draw(4, 4, *kernel, seed=i + 4)
            parts |= {f"hada_w{i}_a": a, f"hada_w{i}_b": b, f"hada_t{i}": core}
            factors.append(torch.einsum("po,pq...,qi->oi...", a, core, b))
        return parts, factors[0] * factors[1]
    if kind == "lokr":
        first, second = draw(4, 3), draw(out // 4, into // 3, *kernel, seed=1)
        return {"lokr_w1": first, "lokr_w2": second, "alpha": torch.tensor(7.0)}, torch.kron(
            first.reshape(4, 3, *ones), second
        )
    a, b = draw(4, 2), draw(2, 3, seed=1)
    c, d = draw(out // 4, 2, seed=2), draw(2, into // 3, *kernel, seed=3)
    whole = torch.einsum("or,ri...->oi...", c, d)
    parts = {"lokr_w1_a": a, "lokr_w1_b": b, "lokr_w2_a": c, "lokr_w2_b": d, "alpha": torch.tensor(1.0)}
    return parts, torch.kron((a @ b).reshape(4, 3, *ones), whole) / 2


@pytest.mark.parametrize("shape", LAYERS)
@pytest.mark.parametrize("kind", ["lora", "locon, core", "loha", "loha, core", "lokr", "lokr, factors"])
def test_kinds(kind: str, shape: str) -> None:
    layer, size = LAYERS[shape]
    if "core" in kind and shape != "convolution":
        pytest.skip("cores are for kernels")
    tensors, delta = pieces(kind, layer)
    host = nn.ModuleDict({"layer": copy.deepcopy(layer)})
    state = {f"lora_unet_layer.{key}": tensor for key, tensor in tensors.items()}
    loading.load({"unet": host}, sorted_out(state, "here"), "unet", "one", False, None)
    x = draw(*size)
    expected = merged(layer, delta, x)
    torch.testing.assert_close(host["layer"](x), expected, atol=1e-4, rtol=1e-5)
    with strength.at_strength(0.5):
        torch.testing.assert_close(host["layer"](x), merged(layer, 0.5 * delta, x), atol=1e-4, rtol=1e-5)
    model.fuse(host, None, 1.0)
    torch.testing.assert_close(host["layer"](x), expected, atol=1e-4, rtol=1e-5)
    model.unfuse(host)
    model.unload(host)
    assert type(host["layer"]) is type(layer)
    torch.testing.assert_close(host["layer"](x), layer(x), atol=0, rtol=0)


@pytest.mark.parametrize("shape", LAYERS)
@pytest.mark.parametrize("by", ["output", "input"])
def test_magnitudes(shape: str, by: str) -> None:
    layer, size = LAYERS[shape]
    tensors, delta = pieces("lora", layer)
    axis = 0 if by == "output" else 1
    count = layer.weight.shape[axis]
    places = [1] * layer.weight.ndim
    places[axis] = count
    magnitude = (1 + draw(count, seed=9).abs()).reshape(places)
    host = nn.ModuleDict({"layer": copy.deepcopy(layer)})
    state = {f"lora_unet_layer.{key}": tensor for key, tensor in {**tensors, "dora_scale": magnitude}.items()}
    loading.load({"unet": host}, sorted_out(state, "here"), "unet", "one", False, None)
    axes = [i for i in range(layer.weight.ndim) if i != axis]
    for amount in (1.0, 0.3):
        moved = layer.weight + amount * delta
        wanted = magnitude * moved / torch.linalg.vector_norm(moved, dim=axes, keepdim=True)
        x = draw(*size)
        with strength.at_strength(amount):
            torch.testing.assert_close(
                host["layer"](x), merged(layer, wanted - layer.weight, x), atol=1e-4, rtol=1e-4
            )


def test_alpha_of_each_layer_and_of_peft_s_settings(net: Any) -> None:
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    down, up = draw(4, 64), draw(64, 4)
    layer = net.get_submodule(name)
    x = draw(1, 64)
    for configs, more, factor in (
        ({}, {f"unet.{name}.alpha": torch.tensor(1.0)}, 1 / 4),
        ({"unet": {"lora_alpha": 8}}, {}, 2),
        ({"": {"lora_alpha": 8, "alpha_pattern": {"attn1.to_q": 2}}}, {}, 1 / 2),
        ({"unet": {"lora_alpha": 4, "use_rslora": True}}, {}, 2),
    ):
        state = {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up, **more}
        loading.load({"unet": net}, sorted_out(state, "here", configs), "unet", None, False, None)
        expected = merged(layer, factor * up @ down, x)
        torch.testing.assert_close(net.get_submodule(name)(x), expected, atol=1e-4, rtol=1e-4)
        net.unload_lora()


# -- a model is as it was ----------------------------------------------------------------------------------------


def test_keys_stay_and_everything_goes_away_again(net: Any) -> None:
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    modules = list(net.modules())
    hooks = len(net._forward_pre_hooks), len(net._forward_hooks)
    plain = predicted(net)
    for ends, seed in (("to_q", 0), ("conv1", 1)):
        net.load_lora_adapter(lora(net, ends, seed=seed), adapter_name=ends)
        assert list(net.state_dict()) == list(before)
        assert net.num_parameters() == sum(t.numel() for t in before.values())
    net.set_adapters(["to_q", "conv1"], [0.5, 2.0])
    net.fuse_lora()
    fused = predicted(net)
    assert (fused - plain).abs().max() > 0.01
    net.unfuse_lora()
    net.delete_adapters("conv1")
    predicted(net, cross_attention_kwargs={"scale": 0.3})
    net.delete_adapters("to_q")
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())
    assert all(new is old for new, old in zip(net.modules(), modules, strict=True))
    assert (len(net._forward_pre_hooks), len(net._forward_hooks)) == hooks
    assert torch.equal(predicted(net), plain)


def test_memory_is_given_back(net: Any) -> None:
    def held() -> int:
        gc.collect()
        return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())

    predicted(net)
    before = held()
    net.load_lora_adapter(lora(net), adapter_name="one")
    net.fuse_lora()
    predicted(net)
    assert held() > before
    net.unfuse_lora()
    net.unload_lora()
    assert held() == before


def test_converted_and_copied_with_the_model() -> None:
    net = unet()
    plain = predicted(net)
    net.load_lora_adapter(lora(net), adapter_name="one")
    with_it = predicted(net)
    other = copy.deepcopy(net)
    other.unload_lora()
    assert torch.equal(predicted(other), plain)
    assert torch.equal(predicted(net), with_it)
    net.to(torch.float64)
    assert all(
        t.dtype == torch.float64
        for layer in model.adapted_layers(net).values()
        for t in layer.updates.buffers()
    )
    net.to(torch.float32)
    net.unload_lora()
    assert torch.equal(predicted(net), plain)


def test_fused_projections_stand_aside_and_are_made_anew(net: Any) -> None:
    net.fuse_qkv_projections()
    net.load_lora_adapter(lora(net), adapter_name="one")
    apart = predicted(net)
    net.unfuse_qkv_projections()
    torch.testing.assert_close(predicted(net), apart, atol=1e-5, rtol=0)
    net.fuse_qkv_projections()
    net.unload_lora()
    net.unfuse_qkv_projections()

    other = unet()
    other.fuse_qkv_projections()
    other.load_lora_adapter(lora(other), adapter_name="one")
    other.fuse_lora()
    other.unload_lora()
    torch.testing.assert_close(predicted(other), apart, atol=1e-4, rtol=0)


# -- in place ----------------------------------------------------------------------------------------------------


def addresses(net: Any) -> dict[str, int]:
    return {
        f"{path}.{key}": tensor.data_ptr()
        for path, layer in model.adapted_layers(net).items()
        for key, tensor in layer.updates.named_buffers()
    }


def test_exchanged_in_place(net: Any) -> None:
    net.load_lora_adapter(lora(net, rank=4), adapter_name="one")
    places = addresses(net)
    for rank, ends in ((4, "to_q"), (2, "to_q"), (3, "attn1.to_q")):
        state = lora(net, ends, rank=rank, seed=7)
        net.load_lora_adapter(state, adapter_name="one", hotswap=True)
        assert addresses(net) == places
        other = unet()
        other.load_lora_adapter(state)
        torch.testing.assert_close(predicted(net), predicted(other), atol=1e-5, rtol=0)
    now = predicted(net)
    with pytest.raises(InputError, match="enable_lora_hotswap"):
        net.load_lora_adapter(lora(net, rank=5), adapter_name="one", hotswap=True)
    with pytest.raises(InputError, match="for which it has none"):
        net.load_lora_adapter(lora(net, "to_v"), adapter_name="one", hotswap=True)
    with pytest.raises(InputError, match="no adapter 'two' to exchange"):
        net.load_lora_adapter(lora(net), adapter_name="two", hotswap=True)
    assert torch.equal(predicted(net), now)


def test_the_caller_s_tensors_stay_as_they_are(net: Any) -> None:
    state = lora(net, rank=4)
    before = {key: tensor.clone() for key, tensor in state.items()}
    net.load_lora_adapter(state, adapter_name="one")
    net.load_lora_adapter(lora(net, rank=4, seed=7), adapter_name="one", hotswap=True)
    assert all(torch.equal(state[key], before[key]) for key in state)


def test_a_compiled_model_takes_adapters(pipe: Any) -> None:
    state, plain = lora(pipe.unet), pipe.unet
    pipe.unet = torch.compile(plain, backend="eager", fullgraph=False)
    try:
        pipe.load_lora_weights(state)
        assert pipe.get_list_adapters() == {"unet": ["default_0"]}
        assert [*model.adapters(plain)] == ["default_0"]
        pipe.unload_lora_weights()
        assert not model.adapted_layers(plain)
    finally:
        pipe.unet = plain


def test_room_for_a_higher_rank(pipe: Any) -> None:
    pipe.enable_lora_hotswap(target_rank=8)
    pipe.load_lora_weights(lora(pipe.unet, rank=2), adapter_name="one")
    places = addresses(pipe.unet)
    state = lora(pipe.unet, rank=8, seed=3)
    pipe.load_lora_weights(state, adapter_name="one", hotswap=True)
    assert addresses(pipe.unet) == places
    other = unet()
    other.load_lora_adapter(state)
    torch.testing.assert_close(predicted(pipe.unet), predicted(other), atol=1e-5, rtol=0)


# -- strengths ----------------------------------------------------------------------------------------------------


def test_threads_have_strengths_of_their_own(net: Any) -> None:
    net.load_lora_adapter(lora(net), adapter_name="one")
    expected = {scale: predicted(net, cross_attention_kwargs={"scale": scale}) for scale in (0.0, 0.5, 1.0)}
    found: dict[float, list[bool]] = {scale: [] for scale in expected}
    start = threading.Barrier(len(expected))

    def run(scale: float) -> None:
        start.wait()
        for _ in range(4):
            found[scale].append(
                torch.equal(predicted(net, cross_attention_kwargs={"scale": scale}), expected[scale])
            )

    threads = [threading.Thread(target=run, args=(scale,)) for scale in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(right) == 4 and all(right) for right in found.values())
    assert not torch.equal(expected[0.5], expected[1.0])


def test_a_failed_call_leaves_no_strength(net: Any) -> None:
    net.load_lora_adapter(lora(net), adapter_name="one")
    with pytest.raises(Exception):  # noqa: B017  any error of a wrong shape
        net(draw(1, 3, 8, 8), 5, INPUTS[2], cross_attention_kwargs={"scale": 0.1})
    assert strength.strength() == 1.0
    with pytest.raises(InputError, match="scale must be a number"):
        predicted(net, cross_attention_kwargs={"scale": "much"})
    assert strength.strength() == 1.0


class Told(nn.Module):
    """A layer in a model that is told the scale as U-Nets are."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, cross_attention_kwargs: dict[str, Any] | None = None) -> torch.Tensor:
        return self.layer(x)


def test_compiled_layers_see_the_strength() -> None:
    net, x = Told(), draw(2, 4)
    state = {"layer.lora_A.weight": draw(2, 4), "layer.lora_B.weight": draw(4, 2)}
    loading.load({"unet": net}, sorted_out(state, "here"), "unet", "one", False, None)
    expected = {scale: net(x, cross_attention_kwargs={"scale": scale}) for scale in (1.0, 0.5)}
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    for scale in (1.0, 0.5, 1.0):
        told = {} if scale == 1.0 else {"cross_attention_kwargs": {"scale": scale}}
        torch.testing.assert_close(compiled(x, **told), expected[scale], atol=1e-5, rtol=0)
    assert (expected[1.0] - expected[0.5]).abs().max() > 0.01


def test_whole_blocks_have_their_weight() -> None:
    layers = [
        "conv_in",
        "mid_block.resnets.0.conv1",
        "down_blocks.0.resnets.0.conv1",
        "down_blocks.1.attentions.0.proj_in",
    ]
    layers += [
        "up_blocks.0.attentions.0.proj_in",
        "up_blocks.0.attentions.1.proj_in",
        "up_blocks.1.resnets.0.conv1",
    ]
    from calotype.adapters.blocks import strengths

    amount = strengths({"down": 0.1, "mid": 0.2, "up": {"block_0": [0.3, 0.4]}}, layers)
    assert [amount(layer) for layer in layers] == [1.0, 0.2, 0.1, 0.1, 0.3, 0.4, 1.0]
    for wrong in (
        {"middle": 1},
        {"up": {"block_7": 1}},
        {"up": {"block_0": [1, 2, 3]}},
        {"up": {"block_1": 1}},
    ):
        with pytest.raises(InputError, match="middle|block_7|3 weights|no transformers"):
            strengths(wrong, layers)


# -- what is refused ----------------------------------------------------------------------------------------------


def test_nothing_matches(pipe: Any) -> None:
    other = {"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": draw(2, 2)}
    with pytest.raises(WeightsError, match=r"nothing for unet or text_encoder.*Flux"):
        pipe.load_lora_weights(other)
    with pytest.raises(WeightsError, match="it is empty"):
        pipe.load_lora_weights({})
    with pytest.raises(WeightsError, match="another model"):
        pipe.load_lora_weights(
            {
                key: tensor.repeat(1, 3) if "lora_A" in key else tensor
                for key, tensor in lora(pipe.unet).items()
            }
        )
    wide = {"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": (draw(4, 2048), draw(32, 4))}
    state = {f"{k}.lora_{x}.weight": t for k, pair in wide.items() for x, t in zip("AB", pair, strict=True)}
    with pytest.raises(WeightsError, match="made for Stable Diffusion XL"):
        pipe.load_lora_weights(state)
    assert not model.adapted_layers(pipe.unet)


def test_a_part_without_a_place_is_counted(pipe: Any, caplog: pytest.LogCaptureFixture) -> None:
    state = lora(pipe.unet) | {
        "unet.nowhere.lora_A.weight": draw(2, 2),
        "unet.nowhere.lora_B.weight": draw(2, 2),
    }
    with caplog.at_level(logging.WARNING, logger="calotype"):
        pipe.load_lora_weights(state)
    assert "8 layers have got an update, and 2 keys have no place, such as unet.nowhere" in caplog.text


def test_names(pipe: Any) -> None:
    pipe.load_lora_weights(lora(pipe.unet), adapter_name="one")
    with pytest.raises(InputError, match="'one' is already in use"):
        pipe.load_lora_weights(lora(pipe.unet), adapter_name="one")
    with pytest.raises(InputError, match="no adapter 'two'; there are 'one'"):
        pipe.set_adapters("two")
    with pytest.raises(InputError, match="2 weights for 1 adapters"):
        pipe.set_adapters(["one"], [1.0, 2.0])
    with pytest.raises(InputError, match="for unet, text_encoder here, not 'vae'"):
        pipe.set_adapters(["one"], [{"vae": 1.0}])
    with pytest.raises(InputError, match="no argument wight_name"):
        pipe.load_lora_weights(lora(pipe.unet), wight_name="x")


def test_infinite_weights_are_not_fused(net: Any) -> None:
    state = lora(net)
    last = list(state)[-1]
    state[last] = state[last] * float("inf")
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    net.load_lora_adapter(state, adapter_name="one")
    with pytest.raises(InputError, match="not finite"):
        net.fuse_lora()
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())


# -- files ---------------------------------------------------------------------------------------------------------


def test_which_file(pipe: Any, tmp_path: Path) -> None:
    state = lora(pipe.unet)
    save_file(state, tmp_path / "mine.safetensors")
    pipe.load_lora_weights(tmp_path)
    pipe.unload_lora_weights()
    pipe.load_lora_weights(tmp_path / "mine.safetensors")
    pipe.unload_lora_weights()
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(ModelFilesError, match=r"mine.safetensors, other.safetensors; pass weight_name"):
        pipe.load_lora_weights(tmp_path)
    pipe.load_lora_weights(tmp_path, weight_name="other.safetensors")
    torch.save(state, tmp_path / "pickled.bin")
    with pytest.raises(ModelFilesError, match="pickle"):
        pipe.load_lora_weights(tmp_path / "pickled.bin", adapter_name="p")
    pipe.load_lora_weights(tmp_path / "pickled.bin", adapter_name="p", use_safetensors=False)


def test_saved_and_loaded(net: Any, tmp_path: Path) -> None:
    state = lora(net) | {
        "unet.conv_in.lora_A.weight": draw(2, 4, 3, 3),
        "unet.conv_in.lora_B.weight": draw(32, 2, 1, 1),
    }
    state["unet.conv_in.lora_magnitude_vector"] = 1 + draw(1, 32, 1, 1).abs()
    net.load_lora_adapter(state, adapter_name="one")
    expected = predicted(net)
    net.save_lora_adapter(tmp_path, "one")
    net.unload_lora()
    net.load_lora_adapter(tmp_path)
    assert torch.equal(predicted(net), expected)
    with pytest.raises(InputError, match="no adapter 'two'"):
        net.save_lora_adapter(tmp_path, "two")


def test_names_of_the_first_code() -> None:
    with torch.device("meta"):
        net = calotype.UNet2DConditionModel(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(320, 640, 1280),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
            cross_attention_dim=2048,
        )
    names = known_as(model.layers_of(net))
    for first, own in {
        "input_blocks_4_1_transformer_blocks_1_attn1_to_q": "down_blocks.1.attentions.0.transformer_blocks.1"
        ".attn1.to_q",
        "input_blocks_8_1_proj_in": "down_blocks.2.attentions.1.proj_in",
        "input_blocks_6_0_op": "down_blocks.1.downsamplers.0.conv",
        "input_blocks_4_0_skip_connection": "down_blocks.1.resnets.0.conv_shortcut",
        "middle_block_1_transformer_blocks_9_ff_net_2": "mid_block.attentions.0.transformer_blocks.9.ff.net.2",
        "middle_block_2_in_layers_2": "mid_block.resnets.1.conv1",
        "output_blocks_2_2_conv": "up_blocks.0.upsamplers.0.conv",
        "output_blocks_5_1_proj_out": "up_blocks.1.attentions.2.proj_out",
        "output_blocks_8_0_emb_layers_1": "up_blocks.2.resnets.2.time_emb_proj",
        "time_embed_2": "time_embedding.linear_2",
        "label_emb_0_0": "add_embedding.linear_1",
        "out_2": "conv_out",
    }.items():
        assert names[first] == own


def test_an_adapted_layer_answers_for_the_layer() -> None:
    layer = nn.Conv2d(4, 8, 3, padding=1)
    wrapped = Adapted(layer)
    assert wrapped.weight is layer.weight
    assert wrapped.out_channels == 8
    assert list(wrapped.state_dict()) == ["weight", "bias"]
    with pytest.raises(AttributeError):
        wrapped.nothing  # noqa: B018


# -- offloaded models -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [None, ("net",)], ids=["by layer", "by model"])
@pytest.mark.parametrize("magnitudes", [False, True])
def test_adapters_visit_the_accelerator_with_their_layers(order: Any, magnitudes: bool) -> None:
    host = nn.Sequential(nn.Linear(12, 20), nn.Linear(20, 4)).eval()
    state = {"0.lora_A.weight": draw(4, 12), "0.lora_B.weight": draw(20, 4)}
    if magnitudes:
        state["0.lora_magnitude_vector"] = draw(20).abs()
    loading.load({"unet": host}, sorted_out(state, "here"), "unet", "one", False, None)
    meta = torch.device("meta")
    accelerator = Accelerator(meta, order)
    accelerator.host("net", host)
    assert host(torch.randn(2, 12)).device == meta
    accelerator.clear()
    assert {tensor.device.type for tensor in (*host.parameters(), *host.buffers())} == {"cpu"}


@pytest.mark.parametrize("enable", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offloaded_pipelines_take_adapters(pipe: Any, monkeypatch: pytest.MonkeyPatch, enable: str) -> None:
    def picture() -> torch.Tensor:
        draws = torch.Generator().manual_seed(0)
        return pipe("a ball", num_inference_steps=1, generator=draws, output_type="pt").images

    monkeypatch.setattr(efficiency, "_accelerator", lambda gpu_id, device: torch.device("cpu"))
    plain = picture()
    state = lora(pipe.unet) | lora(pipe.text_encoder, "q_proj", prefix="text_encoder.")
    pipe.load_lora_weights(state)
    expected = picture()
    pipe.unload_lora_weights()
    getattr(pipe, enable)()
    assert torch.equal(picture(), plain)
    pipe.load_lora_weights(state)
    assert torch.equal(picture(), expected)
    assert (expected - plain).abs().max() > 0.01
    pipe.fuse_lora()
    torch.testing.assert_close(picture(), expected, atol=1e-4, rtol=0)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    assert torch.equal(picture(), plain)
