"""The calls that concern speed and memory: the reference's signatures, and its pictures where they change some."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import calotype
from calotype.core.errors import InputError
from calotype.pipelines import efficiency
from tests.parity.pipeline_runs import compare, quiet
from tests.tiny import stable_diffusion_folder, stable_diffusion_xl_folder

CALLS = (
    "enable_model_cpu_offload",
    "enable_sequential_cpu_offload",
    "enable_group_offload",
    "remove_all_hooks",
    "maybe_free_model_hooks",
    "reset_device_map",
    "enable_xformers_memory_efficient_attention",
    "disable_xformers_memory_efficient_attention",
    "set_use_memory_efficient_attention_xformers",
    "enable_attention_slicing",
    "disable_attention_slicing",
    "set_attention_slice",
    "enable_freeu",
    "disable_freeu",
    "fuse_qkv_projections",
    "unfuse_qkv_projections",
)
FREEU = {"s1": 0.9, "s2": 0.2, "b1": 1.3, "b2": 1.4}


@pytest.fixture(scope="module", params=["StableDiffusionPipeline", "StableDiffusionXLPipeline"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """The reference's pipeline and ours from the same files."""
    make = stable_diffusion_xl_folder if "XL" in request.param else stable_diffusion_folder
    folder = make(tmp_path_factory.mktemp("models") / "tiny", diffusers)
    theirs, ours = (
        quiet(getattr(library, request.param).from_pretrained(folder)) for library in (diffusers, calotype)
    )
    return theirs, ours


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion_folder(tmp_path_factory.mktemp("models") / "tiny", diffusers)


def made(pipe: Any, **arguments: Any) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    return pipe("a ball", num_inference_steps=2, output_type="np", generator=generator, **arguments).images


@pytest.mark.parametrize(
    "name", [name for name in calotype.__all__ if name.endswith("Pipeline") and hasattr(diffusers, name)]
)
def test_signatures(name: str) -> None:
    theirs, ours = getattr(diffusers, name), getattr(calotype, name)
    for call in CALLS:
        if hasattr(theirs, call):
            expected, found = (
                [
                    (p.name, p.default, p.kind)
                    for p in inspect.signature(getattr(cls, call)).parameters.values()
                ]
                for cls in (theirs, ours)
            )
            assert found == expected, call


def test_freeu_makes_the_reference_s_pictures(pair: tuple[Any, Any]) -> None:
    before = made(pair[1])
    for pipe in pair:
        pipe.enable_freeu(**FREEU)
    compare(*pair, dict)
    compare(*pair, lambda: {"height": 40, "width": 72})
    assert np.abs(made(pair[1]) - before).max() > 0.01
    for pipe in pair:
        pipe.disable_freeu()
    compare(*pair, dict)
    assert np.array_equal(made(pair[1]), before)


def test_fused_projections_make_the_reference_s_pictures(pair: tuple[Any, Any]) -> None:
    before = made(pair[1])
    for pipe in pair:
        pipe.fuse_qkv_projections()
    compare(*pair, dict)
    assert all(layer.fused_weight is not None for layer in pair[1].unet._attention_layers().values())
    for pipe in pair:
        pipe.unfuse_qkv_projections()
    assert np.array_equal(made(pair[1]), before)


def test_one_part_may_be_fused_alone(pair: tuple[Any, Any]) -> None:
    pipe = pair[1]
    pipe.fuse_qkv_projections(unet=False)
    layers = {name: list(getattr(pipe, name)._attention_layers().values()) for name in ("unet", "vae")}
    assert all(layer.fused_weight is None for layer in layers["unet"])
    assert all(layer.fused_weight is not None for layer in layers["vae"])
    pipe.unfuse_qkv_projections()
    assert all(layer.fused_weight is None for layer in layers["vae"])


def test_files_saved_while_fused_are_the_published_ones(folder: Path, tmp_path: Path) -> None:
    pipe = quiet(calotype.StableDiffusionPipeline.from_pretrained(folder))
    expected = made(pipe)
    pipe.fuse_qkv_projections()
    pipe.save_pretrained(tmp_path / "fused")
    theirs = quiet(diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "fused"))
    np.testing.assert_allclose(made(theirs), expected, atol=1e-4, rtol=0)


SAME: dict[str, Callable[[Any], None]] = {
    "model offload": lambda pipe: pipe.enable_model_cpu_offload(),
    "sequential offload": lambda pipe: pipe.enable_sequential_cpu_offload(),
    "xformers": lambda pipe: pipe.enable_xformers_memory_efficient_attention(),
    "xformers off": lambda pipe: pipe.disable_xformers_memory_efficient_attention(),
    "slicing": lambda pipe: pipe.enable_attention_slicing(),
    "slicing of one": lambda pipe: pipe.enable_attention_slicing("max"),
    "slicing by number": lambda pipe: pipe.enable_attention_slicing(1),
    "slicing off": lambda pipe: pipe.disable_attention_slicing(),
    "vae slicing": lambda pipe: pipe.enable_vae_slicing(),
    "vae slicing off": lambda pipe: pipe.disable_vae_slicing(),
    "no device map": lambda pipe: pipe.reset_device_map(),
    "hooks freed": lambda pipe: pipe.maybe_free_model_hooks(),
    "hooks removed": lambda pipe: pipe.remove_all_hooks(),
}


@pytest.mark.parametrize("name", SAME)
def test_numbers_stay_the_same(pair: tuple[Any, Any], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficiency, "_accelerator", lambda gpu_id, device: torch.device("cpu"))
    pipe = pair[1]
    before = made(pipe, num_images_per_prompt=2)
    SAME[name](pipe)
    try:
        np.testing.assert_allclose(made(pipe, num_images_per_prompt=2), before, atol=1e-5, rtol=0)
    finally:
        pipe.remove_all_hooks()
        pipe.disable_vae_slicing()


def test_tiles_are_the_reference_s(pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    before = made(ours, height=128, width=128)
    theirs.vae.enable_tiling()
    ours.enable_vae_tiling()
    compare(theirs, ours, lambda: {"height": 128, "width": 128})
    assert not np.array_equal(made(ours, height=128, width=128), before)
    theirs.vae.disable_tiling()
    ours.disable_vae_tiling()
    assert np.array_equal(made(ours, height=128, width=128), before)


def test_what_serves_instead_is_said_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipe = calotype.StableDiffusionPipeline.from_pretrained(folder)
    efficiency._say_once.cache_clear()
    with caplog.at_level(logging.INFO, "calotype"):
        for _ in range(2):
            pipe.enable_xformers_memory_efficient_attention()
            pipe.enable_attention_slicing()
    assert [record.message for record in caplog.records if "xFormers" in record.message] == [
        "PyTorch's own attention serves in the place of xFormers; it is always in use."
    ]
    assert caplog.text.count("Attention needs no slicing") == 1


def test_what_a_pipeline_cannot_do_is_refused_in_words() -> None:
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8,), norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    pipe = calotype.DDPMPipeline(calotype.UNet2DModel.from_config(unet.config), calotype.DDPMScheduler())
    with pytest.raises(
        InputError, match="enable_slicing concerns the vae, and this DDPMPipeline has no such"
    ):
        pipe.enable_vae_slicing()
    with pytest.raises(InputError, match="enable_freeu concerns the unet.*a UNet2DModel there, which cannot"):
        pipe.enable_freeu(**FREEU)
    with pytest.raises(InputError, match="slice_size is 'auto', 'max'.*not 'half'"):
        calotype.UNet2DConditionModel(
            block_out_channels=(8,), norm_num_groups=4, cross_attention_dim=8, attention_head_dim=2,
            down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
        ).set_attention_slice("half")  # fmt: skip
