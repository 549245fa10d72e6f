"""AnimateDiff beyond text to video, FreeInit and FreeNoise, against the reference."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import calotype
from calotype.core.errors import InputError
from tests.parity.deviations import deviation
from tests.parity.pipeline_runs import TOLERANCE, Case, quiet, seeded
from tests.parity.video_runs import ADAPTER, as_array, clip
from tests.tiny import randomise, stable_diffusion_folder, stable_diffusion_xl_folder

LIBRARIES = (diffusers, calotype)
TEXT, XL = "AnimateDiffPipeline", "AnimateDiffSDXLPipeline"
VIDEO, STEERED = "AnimateDiffVideoToVideoPipeline", "AnimateDiffControlNetPipeline"
STEERED_VIDEO, SPARSE = "AnimateDiffVideoToVideoControlNetPipeline", "AnimateDiffSparseControlNetPipeline"
PERTURBED = "AnimateDiffPAGPipeline"
NAMES = (VIDEO, STEERED, STEERED_VIDEO, SPARSE, PERTURBED, XL)
LENGTH = 4

pytestmark = pytest.mark.filterwarnings("ignore")

SPARSE_NET: dict[str, Any] = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
    "motion_num_attention_heads": 2,
    "conditioning_embedding_out_channels": (4, 4, 8, 8),
}
ON_PICTURES = {"use_simplified_condition_embedding": False, "conditioning_channels": 3}
NETS = {"latents": {}, "pictures": {**ON_PICTURES, "concat_conditioning_mask": False}}


def frames(count: int = LENGTH, seed: int = 5) -> list[Image.Image]:
    return [Image.fromarray((frame * 255).astype(np.uint8)) for frame in as_array(clip(count, seed=seed))]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of Stable Diffusion and XL, motion for both, and ControlNets."""
    root = tmp_path_factory.mktemp("models")
    stable_diffusion_folder(root / "plain", diffusers)
    stable_diffusion_xl_folder(root / "xl", diffusers)
    randomise(diffusers.MotionAdapter(**ADAPTER), 5).save_pretrained(root / "motion")
    unet = diffusers.UNet2DConditionModel.from_pretrained(root / "plain", subfolder="unet")
    for number in range(2):
        net = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 4, 8, 8))
        randomise(net, 20 + number).save_pretrained(root / f"net-{number}")
    for name, changes in NETS.items():
        randomise(diffusers.SparseControlNetModel(**SPARSE_NET | changes), 30).save_pretrained(root / name)
    return root


@pytest.fixture(scope="module")
def models(root: Path) -> dict[str, Any]:
    """What the two libraries' pipelines share among themselves."""
    found: dict[str, Any] = {}
    for library in LIBRARIES:
        motion = library.MotionAdapter.from_pretrained(root / "motion")
        text = library.AnimateDiffPipeline.from_pretrained(root / "plain", motion_adapter=motion)
        # the reference draws the latents of sparse control pictures without the generator: none are drawn here
        with torch.no_grad():
            text.vae.quant_conv.weight[4:], text.vae.quant_conv.bias[4:] = 0.0, -60.0
        text.scheduler = library.DDIMScheduler.from_config(text.scheduler.config, clip_sample=False)
        nets = [library.ControlNetModel.from_pretrained(root / f"net-{n}") for n in range(2)]
        sparse = {name: library.SparseControlNetModel.from_pretrained(root / name) for name in NETS}
        xl = library.AnimateDiffSDXLPipeline.from_pretrained(root / "xl", motion_adapter=motion)
        xl.scheduler = library.DDIMScheduler.from_config(xl.scheduler.config, clip_sample=False)
        found[library.__name__] = {"parts": text.components, "nets": nets, "sparse": sparse, "xl": xl}
    return found


def made(models: dict[str, Any], library: Any, name: str, nets: Any = 1) -> Any:
    """A pipeline of one library; ``nets`` are how many ControlNets, or which sparse one."""
    own = models[library.__name__]
    if name == XL:
        return quiet(own["xl"])
    parts = dict(own["parts"])
    if name == SPARSE:
        parts["controlnet"] = own["sparse"]["latents" if nets == 1 else nets]
    elif "ControlNet" in name:
        parts["controlnet"] = own["nets"][0] if nets == 1 else own["nets"]
    return quiet(getattr(library, name)(**parts))


@pytest.fixture
def pair(models: dict[str, Any]) -> Iterator[Any]:
    """Makes the pipeline of a name of both; what is enabled in them ends with the test."""
    pipes: list[Any] = []

    def make(name: str, nets: Any = 1) -> tuple[Any, Any]:
        two = [made(models, library, name, nets) for library in LIBRARIES]
        pipes.extend(two)
        return two[0], two[1]

    yield make
    for pipe in pipes:
        pipe.disable_free_init()
        if hasattr(pipe, "disable_free_noise"):
            pipe.disable_free_noise()


def arguments(name: str, nets: Any, make: Case) -> dict[str, Any]:
    """What the task takes, and the case's own arguments."""
    found: dict[str, Any] = {"prompt": "a red ball", "num_inference_steps": 3, "output_type": "np"}
    found |= {"video": frames()} if "Video" in name else {"num_frames": LENGTH}
    if name == SPARSE:
        found |= {"conditioning_frames": frames(2, 7), "controlnet_frame_indices": [0, 2]}
    elif "ControlNet" in name:
        found["conditioning_frames"] = frames(seed=7) if nets == 1 else [frames(seed=7), frames(seed=8)]
    return {"generator": seeded(), **found, **make()}


def videos(pipe: Any, name: str, make: Case, nets: Any = 1) -> np.ndarray:
    found = pipe(**arguments(name, nets, make))[0]
    return found.numpy() if isinstance(found, torch.Tensor) else np.asarray(found)


def compare(two: tuple[Any, Any], name: str, make: Case = dict, nets: Any = 1) -> np.ndarray:
    expected, found = (videos(pipe, name, make, nets) for pipe in two)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert expected.std() > 0.01
    np.testing.assert_allclose(found, expected, atol=TOLERANCE * max(1.0, float(expected.std())), rtol=0)
    return found


COMMON: dict[str, Case] = {
    "plain": dict,
    "no guidance, latents out": lambda: {"guidance_scale": 1.0, "output_type": "latent"},
    "other size": lambda: {"height": 48, "width": 80, "negative_prompt": "night", "eta": 0.6},
}
PARTLY = {"control_guidance_start": 0.3, "control_guidance_end": 0.8, "controlnet_conditioning_scale": 0.6}
OWN: dict[str, dict[str, Case]] = {
    VIDEO: {
        "parts": lambda: {"decode_chunk_size": 3, "strength": 0.5, "clip_skip": 1},
        "enforced": lambda: {"enforce_inference_steps": True, "strength": 0.6},
        "latents": lambda: {"video": None, "latents": torch.randn(1, 4, 3, 8, 8, generator=seeded(6))},
        "batch": lambda: {
            "prompt": ["a ball", "a cube"],
            "video": [frames(3), frames(3, 9)],
            "generator": [seeded(1), seeded(2)],
        },
        "batch by one": lambda: {"prompt": ["a ball", "a cube"], "video": [frames(3), frames(3, 9)]},
    },
    STEERED: {
        "a part of the way": lambda: dict(PARTLY),
        "guess": lambda: {"guess_mode": True, "guidance_scale": 1.0},
        "arrays": lambda: {"conditioning_frames": list(as_array(clip(LENGTH)))},
    },
    STEERED_VIDEO: {
        "enforced, a part of the way": lambda: {**PARTLY, "enforce_inference_steps": True, "strength": 0.5},
    },
    SPARSE: {
        "guess": lambda: {"guess_mode": True, "guidance_scale": 1.0},
        "strength": lambda: {"controlnet_conditioning_scale": 0.4, "controlnet_frame_indices": [3, 1]},
        "batch": lambda: {"prompt": ["a ball", "a cube"]},
        "one picture": lambda: {"conditioning_frames": frames()[0], "controlnet_frame_indices": [0]},
    },
    PERTURBED: {"adaptive": lambda: {"pag_scale": 2.0, "pag_adaptive_scale": 0.002}},
    XL: {
        "two prompts": lambda: {"prompt_2": "a cube", "negative_prompt": "night", "guidance_rescale": 0.4},
        "sizes": lambda: {"original_size": (30, 40), "crops_coords_top_left": (3, 4), "denoising_end": 0.7},
    },
}
CASES = [(name, case) for name in NAMES for case in (*COMMON, *OWN[name])]


@pytest.mark.parametrize(("name", "case"), CASES)
def test_calls(pair: Any, name: str, case: str) -> None:
    compare(pair(name), name, {**COMMON, **OWN[name]}[case])


@pytest.mark.parametrize("name", [STEERED, STEERED_VIDEO])
def test_two_networks(pair: Any, name: str) -> None:
    make = lambda: {"controlnet_conditioning_scale": [0.5, 1.2], "control_guidance_end": [0.7, 1.0]}  # noqa: E731
    compare(pair(name, 2), name, make, 2)


def test_sparse_pictures(pair: Any) -> None:
    """A network that reads pictures, and is not told where they are."""
    compare(pair(SPARSE, "pictures"), SPARSE, nets="pictures")


def test_perturbed_layers(pair: Any) -> None:
    """Also those along time."""
    two = pair(PERTURBED)
    for pipe in two:
        pipe.set_pag_applied_layers("down_blocks.*motion.*attn1")
    compare(two, PERTURBED)


# -- FreeInit ------------------------------------------------------------------------------------------------------

FREE_INIT: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "butterworth": (TEXT, {"num_iters": 2}, {}),
    "gaussian": (TEXT, {"num_iters": 2, "method": "gaussian", "spatial_stop_frequency": 0.4}, {}),
    "ideal": (TEXT, {"num_iters": 2, "method": "ideal", "temporal_stop_frequency": 0.6}, {}),
    "nothing stays": (TEXT, {"num_iters": 2, "spatial_stop_frequency": 0.0}, {}),
    "fast": (TEXT, {"use_fast_sampling": True, "order": 2}, {"num_inference_steps": 4}),
    "video": (VIDEO, {"num_iters": 2}, {"strength": 1.0}),
    "steered": (STEERED, {"use_fast_sampling": True}, {"control_guidance_start": 0.4}),
    "sparse": (SPARSE, {"num_iters": 2}, {}),
    "xl": (XL, {"num_iters": 2}, {}),
}


@pytest.mark.parametrize("case", FREE_INIT)
def test_free_init(pair: Any, case: str) -> None:
    name, options, given = FREE_INIT[case]
    two = pair(name)
    once = videos(two[1], name, lambda: dict(given))
    for pipe in two:
        assert not pipe.free_init_enabled
        pipe.enable_free_init(**options)
        assert pipe.free_init_enabled
    found = compare(two, name, lambda: dict(given))
    assert np.abs(found - once).max() > 0.01
    two[1].disable_free_init()
    np.testing.assert_array_equal(videos(two[1], name, lambda: dict(given)), once)
