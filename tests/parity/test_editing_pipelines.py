"""Editing, depth, enlarging and varying against the reference."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import calotype
from calotype.core.errors import InputError
from tests.parity.packs import packed
from tests.parity.pipeline_runs import Case, compare, loaded, quiet, seeded
from tests.tiny import SCHEDULER, VAE, randomise, stable_diffusion_parts

EDIT, DEPTH, UPSCALE, LATENTS, VARY = (
    "StableDiffusionInstructPix2PixPipeline",
    "StableDiffusionDepth2ImgPipeline",
    "StableDiffusionUpscalePipeline",
    "StableDiffusionLatentUpscalePipeline",
    "StableDiffusionImageVariationPipeline",
)

pytestmark = pytest.mark.filterwarnings("ignore")


def photo(width: int = 64, height: int = 64, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def noise(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(seed))


def uniform(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.rand(*shape, generator=seeded(seed))


# -- checkpoints -----------------------------------------------------------------------------------------------


def editing_parts(folder: Path) -> dict[str, Any]:
    return stable_diffusion_parts(diffusers, folder, unet={"in_channels": 8})


def depth_parts(folder: Path) -> dict[str, Any]:
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    parts = stable_diffusion_parts(diffusers, folder, unet={"in_channels": 5})
    del parts["safety_checker"]
    config = DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        is_hybrid=False,
    )
    return {
        **parts,
        "depth_estimator": randomise(DPTForDepthEstimation(config), 5),
        "feature_extractor": DPTImageProcessor(size={"height": 32, "width": 32}),
    }


def upscaling_parts(folder: Path) -> dict[str, Any]:
    unet = {"in_channels": 7, "num_class_embeds": 1000}
    parts = stable_diffusion_parts(diffusers, folder, unet=unet)
    vae = {**VAE, "block_out_channels": (16, 32, 32), "scaling_factor": 0.08333}
    vae |= {key: value[:3] for key, value in VAE.items() if key.endswith("block_types")}
    low = {k: v for k, v in SCHEDULER.items() if k in ("beta_start", "beta_end", "beta_schedule")}
    return {
        **parts,
        "vae": randomise(diffusers.AutoencoderKL(**vae), 2),
        "low_res_scheduler": diffusers.DDPMScheduler(**low),
    }


def latent_upscaling_parts(folder: Path) -> dict[str, Any]:
    unet = {
        "in_channels": 8,
        "out_channels": 5,
        "time_cond_proj_dim": 128 + 32,
        "time_embedding_type": "fourier",
        "conv_in_kernel": 1,
        "conv_out_kernel": 1,
    }
    parts = stable_diffusion_parts(diffusers, folder, unet=unet)
    scheduler = diffusers.EulerDiscreteScheduler.from_config(parts["scheduler"].config)
    names = ("vae", "text_encoder", "tokenizer", "unet")
    return {**{name: parts[name] for name in names}, "scheduler": scheduler}


def varying_parts(folder: Path) -> dict[str, Any]:
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    parts = stable_diffusion_parts(diffusers, folder)
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        projection_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    return {
        **{name: parts[name] for name in ("vae", "unet", "scheduler", "safety_checker")},
        "image_encoder": randomise(CLIPVisionModelWithProjection(config), 6),
        "feature_extractor": CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ),
    }


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    EDIT: editing_parts,
    DEPTH: depth_parts,
    UPSCALE: upscaling_parts,
    LATENTS: latent_upscaling_parts,
    VARY: varying_parts,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny random checkpoint for each class, saved by the reference."""
    made = {}
    for name, parts in PARTS.items():
        path = tmp_path_factory.mktemp(name)
        made[name] = path / "checkpoint"
        getattr(diffusers, name)(**parts(path / "parts")).save_pretrained(made[name])
    return made


def pair(name: str, folder: Path, scheduler: str | None = None) -> tuple[Any, Any]:
    pipes = [loaded(library, name, folder, scheduler) for library in (diffusers, calotype)]
    if name == VARY:  # takes no prompt
        return tuple(lambda prompt, pipe=pipe, **arguments: pipe(**arguments) for pipe in pipes)  # type: ignore
    if not hasattr(pipes[0].text_encoder, "text_model"):
        # the reference's clip_skip reads this attribute, which transformers 5 took away
        pipes[0].text_encoder.__dict__["text_model"] = pipes[0].text_encoder
    return pipes[0], pipes[1]


# -- calls -----------------------------------------------------------------------------------------------------


def dimmed(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor * 0.8 for name, tensor in tensors.items() if name != "latents"}


PROMPTS = {"prompt": ["a red ball", "a cube"], "negative_prompt": ["night", "day"]}

EARLIER: list[tuple[int, float]] = []


def earlier_callback(step: int, timestep: Any, latents: torch.Tensor) -> None:
    EARLIER.append((step, float(latents.double().std())))


COMMON: dict[str, Case] = {
    "plain": dict,
    "negative": lambda: {"negative_prompt": "blue cube"},
    "size": lambda: {"image": photo(75, 50)},
    "batch": lambda: {**PROMPTS, "image": [photo(), photo(seed=1)]},
    "pictures a prompt": lambda: {"num_images_per_prompt": 3},
    "generators": lambda: {"num_images_per_prompt": 2, "generator": [seeded(3), seeded(4)]},
    "generators for prompts": lambda: {
        **PROMPTS,
        "image": [photo(), photo(seed=1)],
        "generator": [seeded(3), seeded(4)],
    },
    "no guidance": lambda: {"guidance_scale": 1.0},
    "strong guidance": lambda: {"guidance_scale": 12.0},
    "tensor": lambda: {"image": uniform(1, 3, 64, 64)},
    "embeds": lambda: {
        "prompt": None,
        "prompt_embeds": noise(1, 16, 32),
        "negative_prompt_embeds": noise(1, 16, 32, seed=6),
    },
    "one step": lambda: {"num_inference_steps": 1},
    "latent output": lambda: {"output_type": "latent"},
    "tensor output": lambda: {"output_type": "pt"},
    "pil output": lambda: {"output_type": "pil"},
    "tuple": lambda: {"return_dict": False},
}

OWN: dict[str, dict[str, Case]] = {
    EDIT: {
        "array": lambda: {"image": uniform(1, 48, 64, 3).numpy()},
        "near the picture": lambda: {"image_guidance_scale": 2.5},
        "image guidance of one": lambda: {"image_guidance_scale": 1.0},
        "no image guidance": lambda: {"image_guidance_scale": 0.5},
        "latents": lambda: {"latents": noise(1, 4, 8, 8)},
        "latents as picture": lambda: {"image": noise(1, 4, 8, 8)},
        "callback": lambda: {
            "callback_on_step_end": dimmed,
            "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds", "image_latents"],
        },
    },
    DEPTH: {
        "depth given": lambda: {"depth_map": uniform(1, 40, 48)},
        "depths given": lambda: {
            **PROMPTS,
            "image": [photo(), photo(seed=1)],
            "depth_map": uniform(2, 64, 64) * 900,
        },
        "weak": lambda: {"strength": 0.3},
        "full": lambda: {"strength": 1.0},
        "one step of many": lambda: {"strength": 0.01, "num_inference_steps": 100},
        "array": lambda: {"image": uniform(1, 64, 64, 3).numpy()},
        "clip skip": lambda: {"clip_skip": 1},
        "callback": lambda: {
            "callback_on_step_end": dimmed,
            "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds", "depth_mask"],
        },
    },
    UPSCALE: {
        "array": lambda: {"image": uniform(1, 16, 24, 3).numpy()},
        "no noise": lambda: {"noise_level": 0},
        "much noise": lambda: {"noise_level": 300},
        "latents": lambda: {"latents": noise(1, 4, 16, 20)},
        "clip skip": lambda: {"clip_skip": 1},
    },
}
OWN |= {
    LATENTS: {
        "array": lambda: {"image": uniform(1, 32, 24, 3).numpy()},
        "latents": lambda: {"latents": noise(1, 4, 10, 8)},
        "latents as picture": lambda: {"image": noise(1, 4, 6, 5)},
        "many latents as picture": lambda: {**PROMPTS, "image": noise(2, 4, 6, 5)},
        "no text": lambda: {"guidance_scale": 0},
    },
    VARY: {
        "wide": lambda: {"height": 40, "width": 72},
        "latents": lambda: {"latents": noise(1, 4, 8, 8)},
        "pictures": lambda: {"image": [photo(), photo(seed=1)], "num_images_per_prompt": 2},
    },
}

SIZES = {UPSCALE: (20, 16), LATENTS: (32, 40)}
REPLACED: dict[str, dict[str, Case]] = {
    LATENTS: {
        "batch": lambda: {**PROMPTS, "image": [photo(32, 32), photo(32, 32, seed=1)]},
        "size": lambda: {"image": photo(37, 50)},
        "tensor": lambda: {"image": uniform(1, 3, 32, 40)},
        "generators for prompts": lambda: {
            **PROMPTS,
            "image": [photo(32, 24), photo(32, 24, seed=1)],
            "generator": [seeded(3), seeded(4)],
        },
        "embeds": lambda: {
            "prompt": None,
            "prompt_embeds": noise(1, 16, 32),
            "negative_prompt_embeds": noise(1, 16, 32, seed=6),
            "pooled_prompt_embeds": noise(1, 32, seed=7),
            "negative_pooled_prompt_embeds": noise(1, 32, seed=8),
        },
    },
    VARY: {"tensor": lambda: {"image": noise(2, 3, 32, 32)}},
    DEPTH: {"one step": lambda: {"num_inference_steps": 1, "strength": 1.0}},
    UPSCALE: {
        "size": lambda: {"image": photo(27, 18)},
        "batch": lambda: {**PROMPTS, "image": [photo(16, 12), photo(16, 12, seed=1)]},
        "generators for prompts": lambda: {
            **PROMPTS,
            "image": [photo(16, 12), photo(16, 12, seed=1)],
            "generator": [seeded(3), seeded(4)],
        },
        "tensor": lambda: {"image": uniform(1, 3, 12, 16)},
    },
}


WITHOUT = {
    LATENTS: ("pictures a prompt", "generators"),
    VARY: ("negative", "batch", "generators for prompts", "embeds"),
}


def cases(name: str) -> dict[str, Case]:
    made = {**COMMON, **REPLACED.get(name, {}), **OWN[name]}
    return packed({case: make for case, make in made.items() if case not in WITHOUT.get(name, ())})


def call(name: str, make: Case) -> Case:
    return lambda: {"image": photo(*SIZES.get(name, (64, 64))), "num_inference_steps": 4, **make()}


@pytest.mark.parametrize(("name", "case"), [(name, case) for name in PARTS for case in cases(name)])
def test_call(folders: dict[str, Path], name: str, case: str) -> None:
    compare(*pair(name, folders[name]), call(name, cases(name)[case]))


@pytest.mark.parametrize("name", [UPSCALE, LATENTS, VARY])
def test_the_callback_of_the_first_releases(folders: dict[str, Path], name: str) -> None:
    options = {"callback": earlier_callback, "callback_steps": 2, "num_inference_steps": 5}
    EARLIER.clear()
    compare(*pair(name, folders[name], "EulerDiscreteScheduler"), call(name, lambda: options))
    half = len(EARLIER) // 2
    theirs, ours = EARLIER[:half], EARLIER[half:]
    assert [step for step, _ in ours] == [step for step, _ in theirs] == [0, 2, 4]
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


SCHEDULERS: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {"eta": 0.6},
    "EulerDiscreteScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "HeunDiscreteScheduler": {},
    "DPMSolverMultistepScheduler": {},
}


@pytest.mark.parametrize(
    ("name", "scheduler"),
    [(name, scheduler) for name in PARTS for scheduler in SCHEDULERS if name != LATENTS],
)
def test_scheduler(folders: dict[str, Path], name: str, scheduler: str) -> None:
    options = {"num_inference_steps": 5, **SCHEDULERS[scheduler]}
    compare(*pair(name, folders[name], scheduler), call(name, lambda: options))


@pytest.mark.parametrize("name", PARTS)
def test_what_we_save_the_reference_loads(folders: dict[str, Path], name: str, tmp_path: Path) -> None:
    ours = getattr(calotype, name).from_pretrained(folders[name])
    ours.save_pretrained(tmp_path)
    loaded = quiet(diffusers.DiffusionPipeline.from_pretrained(tmp_path))
    assert type(loaded) is getattr(diffusers, name)
    assert {k for k, v in loaded.components.items() if v is not None} == {
        k for k, v in ours.components.items() if v is not None
    }
    again = quiet(calotype.DiffusionPipeline.from_pretrained(tmp_path))
    assert type(again) is getattr(calotype, name)


@pytest.mark.parametrize("method", ["__init__", "__call__"])
@pytest.mark.parametrize("name", PARTS)
def test_signature(name: str, method: str) -> None:
    def shape(library: Any) -> list[tuple[Any, ...]]:
        parameters = inspect.signature(getattr(getattr(library, name), method)).parameters.values()
        return [
            (p.name, p.kind, tuple(p.default) if isinstance(p.default, list) else p.default)
            for p in parameters
        ]

    assert shape(calotype) == shape(diffusers)


# -- what is refused -------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "no picture to edit": (EDIT, {"image": None}, "image is not given"),
    "image guidance of nan": (EDIT, {"image_guidance_scale": float("nan")}, "image_guidance_scale must be a"),
    "no picture": (DEPTH, {"image": None}, "image is not given"),
    "flat depth": (DEPTH, {"depth_map": torch.ones(1, 8, 8)}, "same value everywhere"),
    "depth of four dimensions": (DEPTH, {"depth_map": torch.ones(1, 1, 8, 8)}, "depth_map must be a tensor"),
    "depth of latents": (DEPTH, {"image": torch.zeros(1, 4, 8, 8)}, "depth of latents cannot be estimated"),
    "depths do not match": (DEPTH, {"depth_map": uniform(2, 8, 8)}, "2 pictures .* for 1"),
    "nothing to do": (DEPTH, {"strength": 0.1}, "leaves none to take"),
    "no picture to enlarge": (UPSCALE, {"image": None}, "image is not given"),
    "too much noise": (
        UPSCALE,
        {"noise_level": 351},
        "noise_level must be at most 350 for this model, not 351",
    ),
    "less than no noise": (
        UPSCALE,
        {"noise_level": -1},
        "noise_level must be a whole number, 0 or more, not -1",
    ),
    "fractional noise": (UPSCALE, {"noise_level": 2.5}, "noise_level must be a whole number"),
    "latents of another size": (EDIT, {"latents": noise(1, 4, 6, 8)}, "this picture needs .1, 4, 8, 8."),
    "nothing to vary": (VARY, {"image": None}, "image is not given"),
    "an array to vary": (VARY, {"image": np.zeros((8, 8, 3))}, "not an array"),
    "one tensor to vary": (VARY, {"image": torch.zeros(3, 8, 8)}, "tensor .batch, 3, height, width., not"),
    "embeds without their pooled form": (
        LATENTS,
        {"prompt": None, "prompt_embeds": noise(1, 16, 32)},
        "without pooled_prompt_embeds",
    ),
    "transparency": (UPSCALE, {"image": photo(16, 16).convert("RGBA")}, "4 channels; convert it to 3"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_arguments_are_refused(folders: dict[str, Path], case: str) -> None:
    name, arguments, words = REFUSED[case]
    pipe = quiet(getattr(calotype, name).from_pretrained(folders[name]))
    with pytest.raises(InputError, match=words):
        prompt = {} if name == VARY else {"prompt": "a ball"}
        pipe(**{**prompt, "image": photo(), "num_inference_steps": 3, "output_type": "np", **arguments})


@pytest.mark.parametrize("name", [EDIT, DEPTH, UPSCALE, LATENTS])
def test_a_denoiser_that_does_not_fit_is_refused(folders: dict[str, Path], name: str, tmp_path: Path) -> None:
    pipe = getattr(calotype, name).from_pretrained(folders[name])
    pipe.unet = stable_diffusion_parts(calotype, tmp_path)["unet"]
    with pytest.raises(InputError, match="reads 4 channels; this task needs one that reads"):
        pipe("a ball", image=photo())


def test_an_upscaler_of_early_files_gets_the_unit_of_its_latents(tmp_path: Path) -> None:
    parts = upscaling_parts(tmp_path)
    parts["vae"].register_to_config(scaling_factor=0.18215)
    ours = {**parts, "vae": calotype.AutoencoderKL.from_config(dict(parts["vae"].config))}
    for library, made in ((diffusers, parts), (calotype, ours)):
        pipe = getattr(library, UPSCALE)(**made)
        assert pipe.vae.config.scaling_factor == 0.08333
