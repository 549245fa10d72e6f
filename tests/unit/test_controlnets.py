"""ControlNets and T2I-Adapters by themselves: what is refused and why, and what holds besides the numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from calotype import (
    ControlNetModel,
    ControlNetUnionModel,
    MultiAdapter,
    MultiControlNetModel,
    MultiControlNetUnionModel,
    T2IAdapter,
    UNet2DConditionModel,
)
from calotype.adapters import ip_adapter, ip_adapter_files
from calotype.core.errors import InputError, ModelFilesError
from calotype.models.control_encoder import zeroed
from calotype.pipelines.components import Loading, load_components, save_component

ENCODER: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "cross_attention_dim": 6,
    "attention_head_dim": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
}
TINY = ENCODER | {"conditioning_embedding_out_channels": (4, 4, 8)}
UNION = TINY | {
    "num_control_type": 3,
    "addition_time_embed_dim": 4,
    "num_trans_channel": 8,
    "num_proj_channel": 8,
    "num_trans_head": 2,
}


def randomised(model: Any, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def controlnet(seed: int = 0, **changes: Any) -> ControlNetModel:
    return randomised(ControlNetModel(**TINY | changes), seed)


def union(seed: int = 0) -> ControlNetUnionModel:
    return randomised(ControlNetUnionModel(**UNION), seed)


def unet(**changes: Any) -> UNet2DConditionModel:
    up = {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
    return randomised(UNet2DConditionModel(**ENCODER | up | changes))


def asked(**changes: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {
        "sample": torch.randn(2, 4, 8, 8, generator=generator),
        "timestep": 3,
        "encoder_hidden_states": torch.randn(2, 5, 6, generator=generator),
    } | changes


def call(**changes: Any) -> dict[str, Any]:
    picture = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    return asked() | {"controlnet_cond": picture} | changes


def union_call(**changes: Any) -> dict[str, Any]:
    kinds = {"control_type": torch.tensor([[1.0, 0, 1]] * 2), "control_type_idx": [0, 2]}
    return call(controlnet_cond=[call()["controlnet_cond"]] * 2) | kinds | changes


def residuals(model: Any, **arguments: Any) -> list[torch.Tensor]:
    with torch.no_grad():
        down, mid = model(**arguments, return_dict=False)
    return [*down, mid]


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "changes", "says"),
    [
        (ControlNetModel, {"controlnet_conditioning_channel_order": "gbr"}, "'rgb' or 'bgr', not 'gbr'"),
        (
            ControlNetModel,
            {"conditioning_embedding_out_channels": ()},
            "conditioning_embedding_out_channels is empty",
        ),
        (ControlNetModel, {"addition_embed_type": "image_hint"}, "addition_embed_type.*'image_hint'"),
        (ControlNetModel, {"encoder_hid_dim_type": "text_proj"}, "needs an encoder_hid_dim"),
        (ControlNetModel, {"block_out_channels": (8,)}, "block_out_channels has 1 entries"),
        (ControlNetModel, {"mid_block_type": "MidBlock"}, "mid_block_type.*'MidBlock'"),
        (ControlNetUnionModel, {"controlnet_conditioning_channel_order": "bgr"}, "is 'rgb', not 'bgr'"),
        (ControlNetUnionModel, {"addition_time_embed_dim": None}, "addition_time_embed_dim"),
        (ControlNetUnionModel, {"encoder_hid_dim": 4}, "reads the context as it is"),
        (ControlNetUnionModel, {"addition_embed_type": "image"}, "addition_embed_type.*'image'"),
        (ControlNetUnionModel, {"num_trans_channel": 16}, "num_trans_channel=16.*must be equal"),
        (ControlNetUnionModel, {"num_trans_head": 3}, "cannot be split into 3 heads"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(cls: Any, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=f"(?s){says}"):
        cls(**(TINY if cls is ControlNetModel else UNION) | changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"controlnet_cond": torch.zeros(2, 3, 64, 64)}, r"\(64, 64\) pixels.*pictures 4 times as large"),
        (
            {"controlnet_cond": torch.zeros(2, 1, 32, 32)},
            r"\(batch, 3, height, width\), not \(2, 1, 32, 32\)",
        ),
        ({"controlnet_cond": torch.zeros(3, 32, 32)}, r"not \(3, 32, 32\)"),
        ({"conditioning_scale": [0.5]}, "a list is for several ControlNets"),
        ({"conditioning_scale": torch.ones(3)}, r"shape \(3,\).*2 samples"),
        ({"timestep_cond": torch.zeros(2, 3)}, "time_cond_proj_dim"),
        ({"timestep": torch.tensor([1, 2, 3])}, "3 timesteps for a batch of 2"),
    ],
)
def test_calls_that_do_not_fit_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=f"(?s){says}"):
        controlnet()(**call(**changes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"controlnet_cond": [torch.zeros(2, 3, 32, 32)]}, "controlnet_cond has 1 entries for 2 pictures"),
        ({"conditioning_scale": [1.0]}, "conditioning_scale has 1 entries for 2 pictures"),
        ({"control_type_idx": [0, 3]}, "control_type_idx has 3.*0 to 2"),
        ({"control_type": torch.zeros(2, 6)}, r"shape \(2, 6\).*3 values.*2 samples"),
        ({"control_type": torch.zeros(3, 3)}, r"shape \(3, 3\)"),
    ],
)
def test_calls_of_a_union_that_do_not_fit_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=f"(?s){says}"):
        union()(**union_call(**changes))


def test_lists_for_several_need_an_entry_for_each() -> None:
    both = MultiControlNetModel([controlnet(), controlnet(1)])
    pictures, scales = [call()["controlnet_cond"]] * 2, [1.0, 1.0]
    with pytest.raises(InputError, match="conditioning_scale has 1 entries for 2 ControlNets"):
        both(**call(controlnet_cond=pictures, conditioning_scale=scales[:1]))
    with pytest.raises(InputError, match="conditioning_scale is a list.*not float"):
        both(**call(controlnet_cond=pictures, conditioning_scale=1.0))
    with pytest.raises(InputError, match=r"A control picture is a tensor"):
        both(**call(conditioning_scale=scales))  # one batch of two pictures, not two pictures
    other = controlnet(layers_per_block=2)
    with pytest.raises(InputError, match="4 and 6 residuals"):
        MultiControlNetModel([controlnet(), other])(
            **call(controlnet_cond=pictures, conditioning_scale=scales)
        )
    with pytest.raises(InputError, match="at least one ControlNetModel"):
        MultiControlNetModel([])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"adapter_type": "full"}, "'full_adapter_xl'.*not 'full'"),
        ({"channels": ()}, "channels is empty"),
        ({"downscale_factor": 0}, "at least 1, not 0"),
    ],
)
def test_adapters_that_do_not_fit_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        T2IAdapter(**{"channels": (8, 16)} | changes)


def test_pictures_that_do_not_fit_an_adapter_are_refused() -> None:
    adapter = T2IAdapter(channels=(8, 16))
    with pytest.raises(InputError, match=r"\(60, 64\) pixels.*divisible by 8"):
        adapter(torch.zeros(1, 3, 60, 64))
    with pytest.raises(InputError, match=r"\(batch, 3, height, width\), not \(1, 1, 64, 64\)"):
        adapter(torch.zeros(1, 1, 64, 64))
    two = MultiAdapter([adapter, T2IAdapter(channels=(8, 16))])
    with pytest.raises(InputError, match="xs has 1 entries for 2 adapters"):
        two([torch.zeros(1, 3, 64, 64)])
    with pytest.raises(InputError, match="adapter_weights has 3 entries"):
        two([torch.zeros(1, 3, 64, 64)] * 2, [1.0] * 3)
    with pytest.raises(InputError, match="use the T2IAdapter itself"):
        MultiAdapter([adapter])
    with pytest.raises(InputError, match="differ in downscale_factor"):
        MultiAdapter([adapter, T2IAdapter(channels=(8, 16), downscale_factor=4)])


# -- from a U-Net --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"center_input_sample": True}, "center_input_sample=True"),
        ({"conv_in_kernel": 1}, "conv_in_kernel=1"),
        ({"attention_type": "gated"}, "attention_type='gated'"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type='fourier'"),
    ],
)
def test_unets_whose_encoder_no_controlnet_can_have(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        ControlNetModel.from_unet(unet(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"mid_block_type": None},
        {"layers_per_block": (1, 2)},
        {"cross_attention_dim": (6, 6)},
        {"time_cond_proj_dim": 5},
        {"class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 3},
        {
            "transformer_layers_per_block": ((2,), (1,)),
            "reverse_transformer_layers_per_block": ((1, 1), (1, 2)),
        },
        {"encoder_hid_dim": 6},
    ],
)
def test_a_fresh_controlnet_changes_nothing_and_learns(changes: dict[str, Any]) -> None:
    model = unet(**changes)
    net = ControlNetModel.from_unet(model, conditioning_embedding_out_channels=(4, 4, 8))
    own = net.state_dict()
    taken = {key: value for key, value in model.state_dict().items() if key in own}
    assert {key for key in own if key not in taken} == {key for key in own if key.startswith("controlnet_")}
    assert all(torch.equal(own[key], value) for key, value in taken.items())

    extra = {"class_labels": torch.randn(2, 3)} if "class_embed_type" in changes else {}
    down, mid = net(**call(**extra), return_dict=False)
    assert not any(h.any() for h in [*down, mid])
    plain = model(**asked(**extra)).sample
    controlled = model(
        **asked(**extra), down_block_additional_residuals=down, mid_block_additional_residual=mid
    ).sample
    assert torch.equal(controlled, plain)
    controlled.square().mean().backward()
    for conv in (*net.controlnet_down_blocks, net.controlnet_mid_block):
        assert conv.weight.grad is not None and conv.weight.grad.any()


def test_a_unet_with_an_ip_adapter_gives_the_controlnet_of_the_unet_alone() -> None:
    model = unet(encoder_hid_dim=9)
    alone = ControlNetModel.from_unet(model)
    context = model.config.cross_attention_dim
    matrices = {}
    for index, layer in enumerate(ip_adapter.readers(model).values()):
        for kind in "kv":
            matrices[f"{2 * index + 1}.to_{kind}_ip.weight"] = torch.zeros(layer.inner_dim, context)
    projection = {"proj.weight": torch.zeros(4 * context, 3), "proj.bias": torch.zeros(4 * context)}
    projection |= {"norm.weight": torch.ones(context), "norm.bias": torch.zeros(context)}
    ip_adapter.install(model, [ip_adapter_files.read({"image_proj": projection, "ip_adapter": matrices})])
    assert model.config.encoder_hid_dim_type == "ip_image_proj"
    beside = ControlNetModel.from_unet(model)
    assert beside.config.encoder_hid_dim_type == "text_proj"
    for key, value in alone.state_dict().items():
        if not key.startswith("controlnet_cond_embedding"):
            assert torch.equal(beside.state_dict()[key], value), key


def test_a_unet_that_lacks_weights_is_refused() -> None:
    model = unet(mid_block_type=None)
    model.register_to_config(mid_block_type="UNetMidBlock2D")
    with pytest.raises(InputError, match="lacks the weight 'mid_block"):
        ControlNetModel.from_unet(model)


# -- numbers -------------------------------------------------------------------------------------------------------


def test_the_context_is_projected() -> None:
    """A context of another width than attention's goes through the ControlNet's own projection."""
    net = controlnet(encoder_hid_dim=9)
    wide = torch.randn(2, 5, 9)
    expected = controlnet()
    expected.load_state_dict(
        {k: v for k, v in net.state_dict().items() if not k.startswith("encoder_hid_proj")}
    )
    narrow = net.encoder_hid_proj(wide)
    for a, b in zip(
        residuals(net, **call(encoder_hidden_states=wide)),
        residuals(expected, **call(encoder_hidden_states=narrow)),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("guess_mode", [False, True])
def test_a_scale_for_each_sample(guess_mode: bool) -> None:
    net = controlnet()
    both = residuals(net, **call(conditioning_scale=torch.tensor([0.2, 0.9]), guess_mode=guess_mode))
    for index, scale in enumerate([0.2, 0.9]):
        one = residuals(net, **call(conditioning_scale=scale, guess_mode=guess_mode))
        for a, b in zip(both, one, strict=True):
            torch.testing.assert_close(a[index], b[index])


def test_a_batch_is_its_samples() -> None:
    net, arguments = controlnet(), call()
    both = residuals(net, **arguments)
    for index in range(2):
        alone = {k: v[index : index + 1] if torch.is_tensor(v) else v for k, v in arguments.items()}
        for a, b in zip(both, residuals(net, **alone), strict=True):
            torch.testing.assert_close(a[index : index + 1], b)


def test_one_row_of_kinds_is_for_all_samples() -> None:
    model = union()
    row = union_call()["control_type"][:1]
    for a, b in zip(
        residuals(model, **union_call()), residuals(model, **union_call(control_type=row)), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_output_forms() -> None:
    with torch.no_grad():
        output = controlnet()(**call())
    down, mid = residuals(controlnet(), **call())[:-1], residuals(controlnet(), **call())[-1]
    assert torch.equal(output.mid_block_res_sample, mid) and torch.equal(output[1], mid)
    assert all(torch.equal(a, b) for a, b in zip(output["down_block_res_samples"], down, strict=True))


def test_arguments_stay_as_they_are() -> None:
    arguments = call(cross_attention_kwargs={"scale": 0.5}, conditioning_scale=torch.tensor([0.5, 1.0]))
    before = {k: v.clone() if torch.is_tensor(v) else v for k, v in arguments.items()}
    residuals(controlnet(controlnet_conditioning_channel_order="bgr"), **arguments)
    assert arguments["cross_attention_kwargs"] == {"scale": 0.5}
    for key, value in before.items():
        assert torch.equal(arguments[key], value) if torch.is_tensor(value) else arguments[key] == value


class Counting(nn.Module):
    """A ControlNet that counts its calls."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.calls = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.net(*args, **kwargs)


@pytest.mark.parametrize(
    ("scales", "calls"),
    [([0.0, 1.0], [0, 1]), ([1.0, 0], [1, 0]), ([0.0, 0.0], [1, 0]), ([0.5, 0.5], [1, 1])],
)
def test_controlnets_without_weight_are_not_run(scales: list[float], calls: list[int]) -> None:
    nets = [Counting(controlnet()), Counting(controlnet(1))]
    pictures = [call()["controlnet_cond"]] * 2
    total = residuals(
        MultiControlNetModel(nets),  # type: ignore[arg-type]
        **call(controlnet_cond=pictures, conditioning_scale=scales),
    )
    assert [net.calls for net in nets] == calls
    parts = [residuals(net, **call(conditioning_scale=s)) for net, s in zip(nets, scales, strict=True)]
    for h, a, b in zip(total, *parts, strict=True):
        torch.testing.assert_close(h, a + b)


def test_gradient_checkpointing_and_types_of_a_group() -> None:
    both = MultiControlNetModel([controlnet(), controlnet(1)])
    both.enable_gradient_checkpointing()
    assert both.is_gradient_checkpointing and both.nets[1].is_gradient_checkpointing
    assert both.half().dtype == torch.float16 and both.device == torch.device("cpu")
    assert both.num_parameters() == 2 * controlnet().num_parameters()


def test_processors_have_names() -> None:
    names = list(controlnet().attn_processors)
    assert "mid_block.attentions.0.transformer_blocks.0.attn2.processor" in names
    assert len(names) == 4 and not any(
        name.startswith("transformer_layes") for name in union().attn_processors
    )


def test_construction_on_meta_makes_no_values() -> None:
    with torch.device("meta"):
        models = (ControlNetModel(**TINY), ControlNetUnionModel(**UNION), T2IAdapter())
    assert all(tensor.is_meta for model in models for tensor in model.state_dict().values())


def test_zeroed() -> None:
    layer = zeroed(nn.Linear(3, 3))
    assert not layer.weight.any() and not layer.bias.any() and layer.weight.requires_grad


# -- folders -------------------------------------------------------------------------------------------------------


def test_a_group_refuses_a_folder_where_a_larger_one_was(tmp_path: Path) -> None:
    three = MultiControlNetModel([controlnet(seed) for seed in range(3)])
    three.save_pretrained(tmp_path / "controlnet")
    three.save_pretrained(tmp_path / "controlnet")  # the same again is fine
    two = MultiControlNetModel([controlnet(5), controlnet(6)])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    with pytest.raises(ModelFilesError, match="controlnet_2 is there from an earlier save"):
        two.save_pretrained(tmp_path / "controlnet")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()} == before


def test_a_group_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelFilesError, match="no folder .*controlnet, where the first ControlNetModel"):
        MultiControlNetModel.from_pretrained(tmp_path / "controlnet")
    with pytest.raises(InputError, match="output_loading_info"):
        MultiControlNetModel.from_pretrained(tmp_path, output_loading_info=True)


@pytest.mark.parametrize("cls", [MultiControlNetModel, MultiControlNetUnionModel])
def test_a_group_is_a_component_of_a_pipeline(cls: Any, tmp_path: Path) -> None:
    members = [controlnet(0), controlnet(1)] if cls is MultiControlNetModel else [union(0), union(1)]
    saved = cls(members)
    save_component(
        saved, tmp_path / "controlnet", safe_serialization=True, variant="fp16", max_shard_size="1GB"
    )
    loading = Loading(dtype=torch.bfloat16, variant="fp16")
    entry = ("diffusers", cls.__name__)
    loaded = load_components(tmp_path, {"controlnet": entry}, loading, lambda: None)["controlnet"]
    assert type(loaded) is cls and loaded.dtype == torch.bfloat16 and not loaded.training
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["controlnet", "controlnet_1"]
    for key, value in saved.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], value.bfloat16())
    again = cls.from_pretrained(tmp_path, subfolder="controlnet", variant="fp16")
    assert again.dtype == torch.float32 and len(again.nets) == 2
