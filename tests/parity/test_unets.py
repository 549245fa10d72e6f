"""U-Nets against the reference: one table of architectures, each run with every input that it takes.

Weights are random everywhere, zero-initialised and norm layers included, so that no part can be wrong unseen.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch

import calotype
from calotype.models.unet_conditioning import project_context
from calotype.nn.stage import Conditioning
from calotype.nn.unet_paths import down_path
from tests.parity.unet_table import (
    BATCH,
    CONDITIONAL,
    SIDE,
    TABLE,
    TOLERANCE,
    UNCONDITIONAL,
    WIDTH,
    check,
    config_of,
    inputs,
    k_unet,
    noise,
    pair,
    randomise,
    run,
    simple,
    unet,
    without_values,
)


@pytest.mark.parametrize(("cls", "name"), TABLE)
def test_same_numbers(cls: str, name: str) -> None:
    config = config_of(cls, name)
    reference, ours = pair(cls, config)
    check(f"unets/{cls}/{name}", reference, ours, inputs(cls, config))


@pytest.mark.parametrize(("cls", "name"), TABLE)
def test_same_gradients(cls: str, name: str) -> None:
    config = config_of(cls, name)
    reference, ours = pair(cls, config)
    call = inputs(cls, config)
    weight = None
    for model in (reference, ours):
        output = model(**call).sample
        weight = noise(*output.shape, seed=9) if weight is None else weight
        (output * weight).sum().backward()
    theirs = {key: value.grad for key, value in reference.named_parameters()}
    largest = max(gradient.abs().max() for gradient in theirs.values() if gradient is not None)
    for key, parameter in ours.named_parameters():
        if theirs[key] is None:
            assert parameter.grad is None or not parameter.grad.any(), key
            continue
        assert parameter.grad is not None, key
        assert (parameter.grad - theirs[key]).abs().max() <= 1e-4 * largest, key


def kept_shapes(model: Any, call: dict[str, Any]) -> list[torch.Size]:
    """Shapes of what the way down keeps, which a ControlNet's residuals have."""
    width = model.time_embedding.linear_2.out_features
    with torch.no_grad():
        h = model.conv_in(call["sample"])
        context = project_context(model, call["encoder_hidden_states"], call.get("added_cond_kwargs", {}))
        given = Conditioning(temb=noise(BATCH, width), context=context)
        return [feature.shape for feature in down_path(model.down_blocks, h, given)[1]]


def with_controlnet(model: Any, call: dict[str, Any]) -> dict[str, Any]:
    shapes = kept_shapes(model, call)
    return {
        "down_block_additional_residuals": tuple(noise(*s, seed=i) for i, s in enumerate(shapes)),
        "mid_block_additional_residual": noise(*shapes[-1], seed=99),
    }


def adapter_features(model: Any, call: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    """One feature for each stage: before its downsampler if it reads the context, after it if not."""
    features, side = [], SIDE
    for index, stage in enumerate(model.down_blocks):
        width = model.config.block_out_channels[index]
        after = side // 2 if stage.downsamplers is not None else side
        where = side if stage.has_cross_attention else after
        features.append(noise(BATCH, width, where, where, seed=index))
        side = after
    return tuple(features)


OPTIONS: dict[str, Callable[[Any, dict[str, Any]], dict[str, Any]]] = {
    "timesteps": lambda m, c: {"timestep": torch.tensor([3, 900])},
    "timestep_0d": lambda m, c: {"timestep": torch.tensor(11)},
    "timestep_float": lambda m, c: {"timestep": 11.25},
    "encoder_attention_mask": lambda m, c: {
        "encoder_attention_mask": torch.tensor([[1, 1, 0, 1, 0], [1, 1, 1, 1, 1]])
    },
    "controlnet": with_controlnet,
    "adapter": lambda m, c: {"down_intrablock_additional_residuals": list(adapter_features(m, c))},
    "adapter_old_name": lambda m, c: {"down_block_additional_residuals": list(adapter_features(m, c))},
    "adapter_with_middle": lambda m, c: {
        "down_intrablock_additional_residuals": [
            *adapter_features(m, c),
            noise(*kept_shapes(m, c)[-1], seed=77),
        ]
    },
    "controlnet_and_adapter": lambda m, c: (
        with_controlnet(m, c) | {"down_intrablock_additional_residuals": list(adapter_features(m, c))}
    ),
}
OPTION_CASES = [(name, option) for name in ("sd1", "sdxl") for option in OPTIONS] + [
    ("if_1", "encoder_attention_mask"),
    ("if_1", "controlnet"),
    ("kandinsky_2_2", "timesteps"),
    ("k_upscaler", "encoder_attention_mask"),
    ("plain_middle", "adapter_with_middle"),
    ("no_middle", "adapter"),
]


@pytest.mark.filterwarnings("ignore:Passing intrablock residual:FutureWarning")
@pytest.mark.parametrize(("name", "option"), OPTION_CASES)
def test_optional_inputs(name: str, option: str) -> None:
    cls = "UNet2DConditionModel"
    config = config_of(cls, name)
    reference, ours = pair(cls, config)
    call = inputs(cls, config)
    before = run(ours, call)
    for model in (reference, ours):
        # made anew for each, since the reference empties the lists that it is given
        changes = OPTIONS[option](ours, call)
        if model is reference:
            expected = run(reference, call | changes)
        else:
            actual = run(ours, call | changes)
    assert (actual - before).abs().max() > 1e-4, "the option has no effect"
    error = ((actual - expected).abs().max() / expected.abs().max()).item()
    assert error <= TOLERANCE, f"unets/{name}/{option}: relative error {error:.2g}"


def one_stage(**changes: Any) -> dict[str, Any]:
    """One resolution only, so that a mask of the pixels fits everywhere."""
    return unet(
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        block_out_channels=(16,),
        **changes,
    )


MORE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "attention_mask": (
        one_stage(),
        {"attention_mask": (noise(BATCH, SIDE * SIDE) > 0).long()},
    ),
    "attention_mask_both": (
        one_stage(),
        {
            "attention_mask": (noise(BATCH, SIDE * SIDE) > 0).long(),
            "encoder_attention_mask": torch.tensor([[1, 1, 0, 1, 0], [1, 1, 1, 1, 1]]),
        },
    ),
    "attention_mask_added_kv": (simple(), {"attention_mask": torch.tensor([[1, 1, 0, 1, 0], [1] * 5])}),
    "timestep_cond": (unet(time_cond_proj_dim=10), {"timestep_cond": noise(BATCH, 10)}),
    "timestep_cond_k": (k_unet(), {"timestep_cond": noise(BATCH, 20)}),
    "gligen": (
        unet(attention_type="gated"),
        {
            "cross_attention_kwargs": {
                "gligen": {
                    "boxes": noise(BATCH, 3, 4).sigmoid(),
                    "masks": torch.tensor([[1.0, 0, 1], [0, 0, 1]]),
                    "positive_embeddings": noise(BATCH, 3, WIDTH),
                }
            }
        },
    ),
    "gligen_images": (
        unet(attention_type="gated-text-image"),
        {
            "cross_attention_kwargs": {
                "gligen": {
                    "boxes": noise(BATCH, 3, 4).sigmoid(),
                    "masks": torch.tensor([[1.0, 0, 1], [0, 0, 1]]),
                    "phrases_masks": torch.tensor([[1.0, 1, 0], [0, 0, 1]]),
                    "image_masks": torch.tensor([[0.0, 1, 0], [1, 0, 1]]),
                    "phrases_embeddings": noise(BATCH, 3, WIDTH),
                    "image_embeddings": noise(BATCH, 3, WIDTH, seed=4),
                }
            }
        },
    ),
    "scale_without_adapter": (unet(), {"cross_attention_kwargs": {"scale": 0.5}, "timestep": 8}),
}


@pytest.mark.parametrize("name", MORE)
def test_special_inputs(name: str) -> None:
    cls = "UNet2DConditionModel"
    config, changes = MORE[name]
    reference, ours = pair(cls, config)
    call = inputs(cls, config)
    before = run(ours, call)
    assert (run(ours, call | changes) - before).abs().max() > 1e-4, "the option has no effect"
    check(f"unets/{cls}/{name}", reference, ours, call | changes)


@pytest.mark.parametrize("side", [9, 12, 15])
@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd2"])
def test_sides_that_cannot_be_halved(name: str, side: int) -> None:
    config = config_of("UNet2DConditionModel", name)
    reference, ours = pair("UNet2DConditionModel", config)
    check(f"unets/{name}/side={side}", reference, ours, inputs("UNet2DConditionModel", config, side))


@pytest.mark.parametrize("name", ["sd1", "sdxl", "attn_blocks", "if_1"])
def test_freeu(name: str) -> None:
    config = config_of("UNet2DConditionModel", name)
    reference, ours = pair("UNet2DConditionModel", config)
    call = inputs("UNet2DConditionModel", config)
    before = run(ours, call)
    for model in (reference, ours):
        model.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    check(f"unets/{name}/freeu", reference, ours, call)
    if name != "if_1":  # whose blocks do not take it
        assert not torch.equal(run(ours, call), before)
    ours.disable_freeu()
    assert torch.equal(run(ours, call), before)


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl", "attn_blocks", "audioldm"])
def test_fused_projections(name: str) -> None:
    config = config_of("UNet2DConditionModel", name)
    reference, ours = pair("UNet2DConditionModel", config)
    keys = set(ours.state_dict())
    ours.fuse_qkv_projections()
    assert set(ours.state_dict()) == keys
    check(f"unets/{name}/fused", reference, ours, inputs("UNet2DConditionModel", config))
    ours.unfuse_qkv_projections()
    check(f"unets/{name}/unfused", reference, ours, inputs("UNet2DConditionModel", config))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("cls", "name"), [("UNet2DConditionModel", "sdxl"), ("UNet2DModel", "ddpm")])
def test_half_precision(cls: str, name: str, dtype: torch.dtype) -> None:
    config = config_of(cls, name)
    reference, ours = pair(cls, config)
    call = inputs(cls, config)
    exact = run(reference, call)
    half = {k: v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v for k, v in call.items()}
    if "added_cond_kwargs" in half:
        half["added_cond_kwargs"] = {
            k: v.to(dtype) if v.is_floating_point() else v for k, v in call["added_cond_kwargs"].items()
        }
    theirs, mine = run(reference.to(dtype), half), run(ours.to(dtype), half)
    assert mine.dtype == theirs.dtype == dtype
    worst = (theirs.float() - exact).abs().max()
    assert (mine.float() - exact).abs().max() <= 1.5 * worst


@pytest.mark.parametrize(("cls", "name"), [("UNet2DConditionModel", "if_1"), ("UNet2DModel", "consistency")])
def test_folders_go_both_ways(cls: str, name: str, tmp_path: Any) -> None:
    config = config_of(cls, name)
    reference, ours = pair(cls, config)
    call = inputs(cls, config)
    expected = run(reference, call)
    reference.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    loaded = getattr(calotype, cls).from_pretrained(tmp_path / "theirs")
    back = getattr(diffusers, cls).from_pretrained(tmp_path / "ours")
    scale = TOLERANCE * expected.abs().max()
    assert (run(loaded, call) - expected).abs().max() <= scale
    assert torch.equal(run(back, call), expected)
    skipped = ("_name_or_path", "_use_default_values", "_class_name", "_diffusers_version")
    theirs = {k: v for k, v in dict(reference.config).items() if k not in skipped}
    mine = {k: v for k, v in dict(loaded.config).items() if k not in skipped}
    assert {k: list(v) if isinstance(v, tuple) else v for k, v in mine.items()} == {
        k: list(v) if isinstance(v, tuple) else v for k, v in theirs.items()
    }


@pytest.mark.parametrize("cls", ["UNet2DModel", "UNet2DConditionModel"])
@pytest.mark.parametrize("method", ["__init__", "forward"])
def test_same_signatures(cls: str, method: str) -> None:
    def facts(owner: Any) -> list[tuple[str, Any, Any]]:
        parameters = inspect.signature(getattr(owner, method)).parameters.values()
        return [(p.name, p.kind, p.default) for p in parameters]

    assert facts(getattr(calotype, cls)) == facts(getattr(diffusers, cls))


@pytest.mark.parametrize("cls", ["UNet2DModel", "UNet2DConditionModel"])
def test_same_default_architecture(cls: str) -> None:
    with torch.device("meta"):
        theirs = getattr(diffusers, cls)().state_dict()
        mine = getattr(calotype, cls)().state_dict()
    assert {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in theirs.items()}


def test_same_methods() -> None:
    """Every method by which scripts change how the model computes takes the same arguments."""
    for method in (
        "enable_freeu",
        "disable_freeu",
        "set_attention_slice",
        "fuse_qkv_projections",
        "unfuse_qkv_projections",
        "set_default_attn_processor",
    ):
        theirs = inspect.signature(getattr(diffusers.UNet2DConditionModel, method)).parameters
        mine = inspect.signature(getattr(calotype.UNet2DConditionModel, method)).parameters
        assert list(mine) == list(theirs), method


def test_same_processor_names() -> None:
    reference, ours = pair("UNet2DConditionModel", CONDITIONAL["sdxl"])
    assert set(ours.attn_processors) == set(reference.attn_processors)


def test_processors_of_the_reference_work() -> None:
    """A processor written for the reference's attention layers computes the same on ours."""
    from diffusers.models.attention_processor import AttnProcessor

    reference, ours = pair("UNet2DConditionModel", CONDITIONAL["sd1"])
    call = inputs("UNet2DConditionModel", CONDITIONAL["sd1"])
    expected = run(reference, call)
    ours.set_attn_processor(AttnProcessor())
    assert (run(ours, call) - expected).abs().max() <= TOLERANCE * expected.abs().max()
    ours.set_default_attn_processor()
    assert (run(ours, call) - expected).abs().max() <= TOLERANCE * expected.abs().max()


def test_noise_level_as_a_number() -> None:
    config = UNCONDITIONAL["ncsnpp"]
    reference, ours = pair("UNet2DModel", config)
    call = inputs("UNet2DModel", config) | {"timestep": 1.75}
    check("unets/UNet2DModel/ncsnpp/timestep=1.75", reference, ours, call)


@pytest.mark.parametrize(("cls", "name"), TABLE)
def test_no_value_is_awaited_from_the_device(cls: str, name: str) -> None:
    """With tensors that have shapes and no values, any read of a value on the host raises."""
    config = config_of(cls, name)
    call = inputs(cls, config)
    with torch.device("meta"):
        model = getattr(calotype, cls)(**config).eval()
    with torch.no_grad():
        sample = model(**without_values(call)).sample
    assert sample.shape[0] == BATCH


def test_dual_cross_attention() -> None:
    """The reference has the parts of Versatile Diffusion's U-Net and cannot run the whole; so the part and the keys."""
    from diffusers.models.transformers.dual_transformer_2d import DualTransformer2DModel

    from calotype.nn.transformer import DualTransformer

    settings = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 16,
        "cross_attention_dim": WIDTH,
        "norm_num_groups": 8,
    }
    reference, ours = DualTransformer2DModel(**settings), DualTransformer(**settings)
    randomise(reference)
    ours.load_state_dict(reference.state_dict())
    h, context = noise(BATCH, 16, 4, 4), noise(BATCH, 77 + 257, WIDTH)
    with torch.no_grad():
        expected, actual = reference(h, context)[0], ours(h, context)
    assert (actual - expected).abs().max() <= TOLERANCE * expected.abs().max()

    config = unet(dual_cross_attention=True)
    theirs, mine = diffusers.UNet2DConditionModel(**config), calotype.UNet2DConditionModel(**config)
    assert {k: v.shape for k, v in mine.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }
    call = inputs("UNet2DConditionModel", config) | {"encoder_hidden_states": context}
    assert run(mine, call).isfinite().all()
