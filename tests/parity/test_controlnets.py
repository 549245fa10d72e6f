"""ControlNets and T2I-Adapters against the reference, with random weights everywhere, zero convolutions included."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch.utils._pytree import tree_map_only

import calotype
from tests.parity.control_table import (
    ADAPTERS,
    CONTROLNETS,
    TABLE,
    UNIONS,
    check,
    config_of,
    controlnet,
    error,
    group,
    group_call,
    inputs,
    picture,
    reference_class,
    run,
    union,
)
from tests.parity.deviations import deviation
from tests.parity.unet_table import (
    BATCH,
    CONDITIONAL,
    SIDE,
    TOLERANCE,
    noise,
    pair,
    randomise,
    unet,
    without_values,
)

# -- numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cls", "name"), TABLE)
def test_same_numbers(cls: str, name: str) -> None:
    config = config_of(cls, name)
    reference, ours = pair(cls, config)
    call = inputs(cls, config)
    check(f"controlnets/{cls}/{name}", run(ours, call), run(reference, call))


@pytest.mark.parametrize(
    ("cls", "name"), [case for case in TABLE if not deviation("controlnets/" + "/".join(case))]
)
def test_same_gradients(cls: str, name: str) -> None:
    config = config_of(cls, name)
    reference, ours = pair(cls, config)
    ours.enable_gradient_checkpointing()
    call = inputs(cls, config)
    for model in (reference, ours):
        down, mid = model(**call, return_dict=False)
        torch.stack(
            [(h * noise(*h.shape, seed=i)).sum() for i, h in enumerate([*down, mid])]
        ).sum().backward()
    theirs = {key: value.grad for key, value in reference.named_parameters()}
    largest = max(gradient.abs().max() for gradient in theirs.values() if gradient is not None)
    for key, parameter in ours.named_parameters():
        if theirs[key] is None:
            assert parameter.grad is None or not parameter.grad.any(), key
            continue
        assert parameter.grad is not None, key
        assert (parameter.grad - theirs[key]).abs().max() <= 1e-4 * largest, key


OPTIONS: dict[str, dict[str, Any]] = {
    "scale": {"conditioning_scale": 0.3},
    "scale_tensor": {"conditioning_scale": torch.tensor(0.3)},
    "scale_of_samples": {"conditioning_scale": torch.tensor([0.3, 0.8]).reshape(2, 1, 1, 1)},
    "guess": {"guess_mode": True},
    "guess_scaled": {"guess_mode": True, "conditioning_scale": 0.7},
    "timesteps": {"timestep": torch.tensor([3, 400])},
    "float_timestep": {"timestep": 3.25},
    "lora_scale": {"cross_attention_kwargs": {"scale": 0.5}, "timestep": 8},
}
UNION_OPTIONS: dict[str, dict[str, Any]] = {
    "scales": {"conditioning_scale": [0.3, 0.9]},
    "from_multi": {"conditioning_scale": 0.7, "from_multi": True},
    "from_multi_guess": {"conditioning_scale": 0.7, "from_multi": True, "guess_mode": True},
    "guess_scales": {"guess_mode": True, "conditioning_scale": [0.3, 0.9]},
    "one_kind": {"controlnet_cond": [picture(union())], "control_type_idx": [2], "conditioning_scale": 0.6},
    "one_kind_guess": {
        "controlnet_cond": [picture(union())],
        "control_type_idx": [0],
        "conditioning_scale": 0.6,
        "guess_mode": True,
    },
    "same_kind_twice": {"control_type_idx": [2, 2]},
}
CASES = [("ControlNetModel", n, o) for n in ("sd1", "sdxl", "shuffle") for o in OPTIONS]
CASES += [("ControlNetUnionModel", n, o) for n in ("sd1", "sdxl", "shuffle") for o in UNION_OPTIONS]
CASES += [("ControlNetUnionModel", "sd1", o) for o in ("scale", "guess", "timesteps")]


@pytest.mark.parametrize(("cls", "name", "option"), CASES)
def test_options(cls: str, name: str, option: str) -> None:
    config = config_of(cls, name)
    reference, ours = pair(cls, config)
    call = inputs(cls, config)
    changed = call | {**OPTIONS, **UNION_OPTIONS}[option]
    actual = run(ours, changed)
    check(f"controlnets/{cls}/{name}/{option}", actual, run(reference, changed))
    same = all(torch.equal(a, b) for a, b in zip(actual, run(ours, call), strict=True))
    no_effect = name == "shuffle" and option == "guess"  # pooled residuals have no ramp
    assert same == no_effect, "the option has no effect" if same else "the option has an effect"


@pytest.mark.parametrize("cls", ["ControlNetModel", "ControlNetUnionModel"])
def test_mask_of_the_pixels(cls: str) -> None:
    one = {"block_out_channels": (16,), "down_block_types": ("CrossAttnDownBlock2D",)}
    config = (controlnet if cls == "ControlNetModel" else union)(**one)
    reference, ours = pair(cls, config)
    call = inputs(cls, config)
    masked = call | {"attention_mask": (noise(BATCH, SIDE * SIDE) > 0).long()}
    check(f"controlnets/{cls}/attention_mask", run(ours, masked), run(reference, masked))
    assert error(run(ours, masked), run(ours, call)) > 1e-4


@pytest.mark.parametrize("side", [9, 14])
@pytest.mark.parametrize(("cls", "name"), [("ControlNetModel", "sdxl"), ("ControlNetUnionModel", "sd1")])
def test_sides_that_cannot_be_halved(cls: str, name: str, side: int) -> None:
    config = config_of(cls, name)
    reference, ours = pair(cls, config)
    call = inputs(cls, config, side)
    check(f"controlnets/{cls}/{name}/side={side}", run(ours, call), run(reference, call))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("cls", "name"), [("ControlNetModel", "sdxl"), ("ControlNetUnionModel", "sdxl")])
def test_half_precision(cls: str, name: str, dtype: torch.dtype) -> None:
    config = config_of(cls, name)
    reference, ours = pair(cls, config)
    call = inputs(cls, config) | {"guess_mode": True, "conditioning_scale": 0.7}
    exact = run(reference, call)

    def narrow(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    half = tree_map_only(torch.Tensor, narrow, call)
    theirs, mine = run(reference.to(dtype), half), run(ours.to(dtype), half)
    assert {h.dtype for h in mine} == {h.dtype for h in theirs} == {dtype}
    for a, b, e in zip(mine, theirs, exact, strict=True):
        assert (a.float() - e).abs().max() <= 1.5 * (b.float() - e).abs().max() + 1e-3


@pytest.mark.parametrize(("cls", "name"), TABLE)
def test_no_value_is_awaited_from_the_device(cls: str, name: str) -> None:
    """With tensors that have shapes and no values, any read of a value on the host raises."""
    config = config_of(cls, name)
    call = inputs(cls, config) | {"guess_mode": True, "conditioning_scale": 0.7}
    with torch.device("meta"):
        model = getattr(calotype, cls)(**config).eval()
    with torch.no_grad():
        down, mid = model(**without_values(call), return_dict=False)
    assert all(h.shape[0] == BATCH for h in [*down, mid])


# -- from a U-Net --------------------------------------------------------------------------------------------------

FROM_UNET = "sd1 sd1_inpaint sd2 sd2_unclip sdxl x4_upscaler plain_middle mid_only_cross".split()


@pytest.mark.parametrize("name", FROM_UNET)
def test_from_unet(name: str) -> None:
    theirs_unet, our_unet = pair("UNet2DConditionModel", CONDITIONAL[name])
    options = {"conditioning_embedding_out_channels": (4, 8), "conditioning_channels": 1}
    options["controlnet_conditioning_channel_order"] = "bgr"
    theirs = diffusers.ControlNetModel.from_unet(theirs_unet, **options)
    ours = calotype.ControlNetModel.from_unet(our_unet, **options)
    same_configuration(ours, theirs)
    expected, actual = theirs.state_dict(), ours.state_dict()
    assert set(actual) == set(expected)
    for key, value in actual.items():
        if not key.startswith("controlnet_cond_embedding."):  # which is random
            assert torch.equal(value, expected[key]), key
    plain = calotype.ControlNetModel.from_unet(our_unet, load_weights_from_unet=False, **options)
    assert not torch.equal(plain.state_dict()["conv_in.weight"], actual["conv_in.weight"])


def test_union_from_unet() -> None:
    config = CONDITIONAL["sdxl"] | {"block_out_channels": (320, 32, 32)}  # a width that the reference assumes
    theirs_unet, our_unet = pair("UNet2DConditionModel", config)
    theirs = diffusers.ControlNetUnionModel.from_unet(theirs_unet)
    ours = calotype.ControlNetUnionModel.from_unet(our_unet)
    same_configuration(ours, theirs)
    expected, actual, source = theirs.state_dict(), ours.state_dict(), our_unet.state_dict()
    assert {k: v.shape for k, v in actual.items()} == {k: v.shape for k, v in expected.items()}
    for key, value in actual.items():
        if key in source:
            assert torch.equal(value, source[key]), key
            forgotten = not torch.equal(expected[key], value)
            assert forgotten == (deviation(f"controlnets/ControlNetUnionModel/from_unet/{key}") is not None)


def same_configuration(ours: Any, theirs: Any) -> None:
    def plain(config: Any) -> dict[str, Any]:
        entries = {k: v for k, v in dict(config).items() if not k.startswith("_")}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in entries.items()}

    assert plain(ours.config) == plain(theirs.config)


# -- several at once -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("changes", [{}, {"guess_mode": True}, {"conditioning_scale": [0.0, 0.4, 0.0]}])
@pytest.mark.parametrize("cls", ["MultiControlNetModel", "MultiControlNetUnionModel"])
def test_several_controlnets(cls: str, changes: dict[str, Any], count: int) -> None:
    if count == 1 and "conditioning_scale" in changes:
        changes = {"conditioning_scale": [0.4]}
    config = controlnet() if cls == "MultiControlNetModel" else union()
    reference, ours = group(cls, count, config)
    assert set(ours.state_dict()) == set(reference.state_dict())
    call = group_call(cls, config, count) | changes
    actual = run(ours, call)
    check(f"controlnets/{cls}/{count}", actual, run(reference, call))
    with torch.no_grad():
        output = ours(**call)
    assert all(torch.equal(a, b) for a, b in zip(output.down_block_res_samples, actual, strict=False))
    assert torch.equal(output.mid_block_res_sample, actual[-1])


def test_no_union_with_a_weight() -> None:
    reference, ours = group("MultiControlNetUnionModel", 2, union())
    call = group_call("MultiControlNetUnionModel", union(), 2) | {"conditioning_scale": [0.0, 0.0]}
    assert reference(**call, return_dict=False) == ours(**call, return_dict=False) == (None, None)


# -- adapters ------------------------------------------------------------------------------------------------------


def features(model: Any, *args: Any) -> list[torch.Tensor]:
    with torch.no_grad():
        return list(model(*args))


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters(name: str) -> None:
    config = ADAPTERS[name]
    reference, ours = pair("T2IAdapter", config)
    for height, width in ((64, 96), (48, 80)):
        x = noise(BATCH, config.get("in_channels", 3), height, width)
        check(f"adapters/T2IAdapter/{name}", features(ours, x), features(reference, x))
    assert ours.downscale_factor == reference.downscale_factor
    assert ours.total_downscale_factor == reference.total_downscale_factor


@pytest.mark.parametrize("weights", [None, [0.8, 0.3, 1.0]])
def test_several_adapters(weights: list[float] | None) -> None:
    reference, ours = group("MultiAdapter", 3, ADAPTERS["full"])
    assert set(ours.state_dict()) == set(reference.state_dict())
    pictures = [noise(BATCH, 3, 64, 64, seed=i) for i in range(3)]
    check("adapters/MultiAdapter", features(ours, pictures, weights), features(reference, pictures, weights))
    for name in ("num_adapter", "downscale_factor", "total_downscale_factor"):
        assert getattr(ours, name) == getattr(reference, name)


def test_together_in_a_unet() -> None:
    """A U-Net with two ControlNets and an adapter at once."""
    unets, nets = pair("UNet2DConditionModel", unet()), group("MultiControlNetModel", 2, controlnet())
    adapters = pair("T2IAdapter", {"channels": (16, 32), "downscale_factor": 8})
    call = group_call("MultiControlNetModel", controlnet(), 2)
    asked = {k: v for k, v in call.items() if k in ("sample", "timestep", "encoder_hidden_states")}
    results = []
    for model, net, adapter in zip(unets, nets, adapters, strict=True):
        with torch.no_grad():
            down, mid = net(**call, return_dict=False)
            inside = adapter(call["controlnet_cond"][0])
            # the last stage of a U-Net of two has no downsampler and no context: its feature has the size of the middle
            extras = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
            results.append(model(**asked, **extras, down_intrablock_additional_residuals=inside).sample)
    assert (results[1] - results[0]).abs().max() <= TOLERANCE * results[0].abs().max()


# -- files and signatures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "config"),
    [
        ("ControlNetModel", CONTROLNETS["sdxl"]),
        ("ControlNetUnionModel", UNIONS["sdxl"]),
        ("T2IAdapter", ADAPTERS["xl"]),
    ],
)
def test_folders_go_both_ways(cls: str, config: dict[str, Any], tmp_path: Path) -> None:
    reference, ours = pair(cls, config)
    reference.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    loaded = getattr(calotype, cls).from_pretrained(tmp_path / "theirs")
    back = getattr(diffusers, cls).from_pretrained(tmp_path / "ours")
    same_configuration(loaded, reference)
    same_configuration(back, reference)
    for key, value in reference.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value) and torch.equal(back.state_dict()[key], value)
    assert not loaded.training


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    ("cls", "config"),
    [
        ("MultiControlNetModel", controlnet()),
        ("MultiControlNetUnionModel", union()),
        ("MultiAdapter", ADAPTERS["full"]),
    ],
)
def test_groups_in_folders_go_both_ways(cls: str, config: dict[str, Any], count: int, tmp_path: Path) -> None:
    reference, ours = group(cls, count, config)
    for writer in ("theirs", "ours"):
        (tmp_path / writer).mkdir()
    reference.save_pretrained(str(tmp_path / "theirs" / "part"))
    ours.save_pretrained(tmp_path / "ours" / "part")
    written = {path.name for path in (tmp_path / "ours").iterdir()}
    assert written == {"part", "part_1", "part_2"} - ({"part_2"} if count == 2 else set())
    same = written == {path.name for path in (tmp_path / "theirs").iterdir()}
    assert same == (deviation(f"files/{cls}/{count}") is None)
    loaded = getattr(calotype, cls).from_pretrained(tmp_path / "theirs" / "part", torch_dtype=torch.float32)
    back = reference_class(cls).from_pretrained(str(tmp_path / "ours" / "part"))
    for model in (loaded, back):
        assert set(model.state_dict()) == set(reference.state_dict())
        for key, value in reference.state_dict().items():
            assert torch.equal(model.state_dict()[key], value), key


def facts(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    def default(value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    parameters = inspect.signature(function).parameters.values()
    return [(p.name, p.kind, default(p.default)) for p in parameters]


SINGLE = ["ControlNetModel", "ControlNetUnionModel", "T2IAdapter"]
GROUPS = ["MultiControlNetModel", "MultiControlNetUnionModel", "MultiAdapter"]
METHODS = [(cls, method) for cls in SINGLE + GROUPS for method in ("__init__", "forward")]
METHODS += [(cls, "from_unet") for cls in SINGLE[:2]]
METHODS += [(cls, method) for cls in GROUPS for method in ("save_pretrained", "from_pretrained")]


@pytest.mark.parametrize(("cls", "method"), METHODS)
def test_same_signatures(cls: str, method: str) -> None:
    mine, theirs = getattr(getattr(calotype, cls), method), getattr(reference_class(cls), method)
    assert facts(mine) == facts(theirs)


@pytest.mark.parametrize(
    ("cls", "config"),
    [("ControlNetModel", {}), ("ControlNetUnionModel", {"addition_time_embed_dim": 256}), ("T2IAdapter", {})],
)
def test_same_default_architecture(cls: str, config: dict[str, Any]) -> None:
    with torch.device("meta"):
        theirs = getattr(diffusers, cls)(**config).state_dict()
        mine = getattr(calotype, cls)(**config).state_dict()
    assert {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in theirs.items()}


def test_the_same_starts_at_zero() -> None:
    """What the reference initialises to zero is zero here, and nothing else."""
    for cls, config in (("ControlNetModel", controlnet()), ("ControlNetUnionModel", union())):
        theirs, mine = getattr(diffusers, cls)(**config), getattr(calotype, cls)(**config)
        zeros = [{k for k, v in m.named_parameters() if not v.any()} for m in (theirs, mine)]
        assert zeros[0] == zeros[1] and "controlnet_mid_block.weight" in zeros[1]
        randomise(theirs)
        assert all(v.any() for v in theirs.parameters())
