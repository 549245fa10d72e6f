"""Stable unCLIP, unCLIP and latent diffusion against the reference: the same files and arguments, the same pictures."""

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
from calotype.guidance import ClassifierFree
from tests.parity import unclip_parts
from tests.parity.deviations import deviation
from tests.parity.packs import packed
from tests.parity.pipeline_runs import TOLERANCE, Case, arrays, compare, quiet, seeded

pytestmark = pytest.mark.filterwarnings("ignore")

MAKE: dict[str, Callable[[Path], Any]] = {
    "StableUnCLIPPipeline": lambda folder: unclip_parts.stable_unclip(folder, variation=False),
    "StableUnCLIPImg2ImgPipeline": lambda folder: unclip_parts.stable_unclip(folder, variation=True),
    "UnCLIPPipeline": lambda folder: unclip_parts.unclip(folder, variation=False),
    "UnCLIPImageVariationPipeline": lambda folder: unclip_parts.unclip(folder, variation=True),
    "LDMTextToImagePipeline": lambda folder: unclip_parts.latent_diffusion(folder, vq=False),
    "LDMTextToImagePipeline, VQ": lambda folder: unclip_parts.latent_diffusion(folder, vq=True),
    "LDMSuperResolutionPipeline": unclip_parts.latent_super_resolution,
}
KARLO = ("UnCLIPPipeline", "UnCLIPImageVariationPipeline")
NAMES = [name for name in MAKE if "," not in name]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    """The reference's pipelines, and ours from the files that they saved."""
    found = {}
    for name, make in MAKE.items():
        folder = tmp_path_factory.mktemp("models") / "checkpoint"
        theirs = quiet(make(folder))
        found[name] = theirs, quiet(calotype.DiffusionPipeline.from_pretrained(folder))
    return found


def photo(width: int = 64, height: int = 64, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def noise(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(seed))


def without(pipe: Any, *names: str) -> Any:
    """The pipeline, called without arguments that every call of ``compare`` has and this one does not take."""
    return lambda **arguments: pipe(**{k: v for k, v in arguments.items() if k not in names})


def callers(pairs: dict[str, tuple[Any, Any]], name: str) -> tuple[Any, Any]:
    """Both pipelines, which take of the usual arguments those that they have."""
    takes = inspect.signature(pairs[name][1].__call__).parameters
    theirs, ours = (without(pipe, *({"prompt", "num_inference_steps"} - set(takes))) for pipe in pairs[name])
    return theirs, ours


SHORT_KARLO = {"decoder_num_inference_steps": 3, "super_res_num_inference_steps": 3}

OF_PICTURES = ("StableUnCLIPImg2ImgPipeline", "UnCLIPImageVariationPipeline")

CALLS: dict[str, dict[str, Case]] = {
    "StableUnCLIPPipeline": {
        "plain": dict,
        "negative": lambda: {"negative_prompt": "blue cube"},
        "batch": lambda: {"prompt": ["a red ball", "a big cube"], "negative_prompt": ["night", "day"]},
        "pictures a prompt": lambda: {"prompt": ["a ball", "a cube"], "num_images_per_prompt": 2},
        "generators": lambda: {"num_images_per_prompt": 2, "generator": [seeded(3), seeded(4)]},
        "no guidance": lambda: {"guidance_scale": 1.0},
        "prior not guided": lambda: {"prior_guidance_scale": 1.0},
        "nothing guided": lambda: {"prior_guidance_scale": 0.0, "guidance_scale": 0.0},
        "noisy": lambda: {"noise_level": 700},
        "size": lambda: {"height": 40, "width": 72},
        "latents": lambda: {"latents": noise(1, 4, 8, 8), "prior_latents": noise(1, unclip_parts.WIDTH)},
        "stochastic": lambda: {"eta": 0.7},
        "more steps": lambda: {"prior_num_inference_steps": 4, "num_inference_steps": 5},
        "attention arguments": lambda: {"cross_attention_kwargs": {"scale": 1.0}},
        "latent output": lambda: {"output_type": "latent"},
        "tensor output": lambda: {"output_type": "pt"},
        "pil output": lambda: {"output_type": "pil"},
        "tuple": lambda: {"return_dict": False},
    },
    "StableUnCLIPImg2ImgPipeline": {
        "plain": lambda: {"prompt": None},
        "prompt": lambda: {"negative_prompt": "blue cube"},
        "one picture, several prompts": lambda: {"prompt": ["a ball", "a cube"]},
        "several pictures": lambda: {"image": [photo(), photo(seed=1)], "prompt": None},
        "pictures of each": lambda: {
            "image": [photo(), photo(seed=1)],
            "prompt": ["a ball", "a cube"],
            "num_images_per_prompt": 2,
        },
        "pixels": lambda: {"image": noise(2, 3, 30, 30), "prompt": ["a ball", "a cube"]},
        "embeds": lambda: {"prompt": None, "image_embeds": noise(1, unclip_parts.WIDTH)},
        "generators": lambda: {
            "image": [photo(), photo(seed=1)],
            "prompt": None,
            "generator": [seeded(3), seeded(4)],
        },
        "no guidance": lambda: {"guidance_scale": 1.0},
        "noisy": lambda: {"noise_level": 700},
        "size": lambda: {"height": 40, "width": 72},
        "prompt embeds": lambda: {
            "prompt": None,
            "prompt_embeds": noise(1, 16, 32),
            "negative_prompt_embeds": noise(1, 16, 32, seed=6),
        },
        "latents": lambda: {"latents": noise(1, 4, 8, 8)},
    },
    "UnCLIPPipeline": {
        "plain": dict,
        "batch": lambda: {"prompt": ["a ball", "a cube"], "num_images_per_prompt": 2},
        "more steps": lambda: {"decoder_num_inference_steps": 6, "super_res_num_inference_steps": 4},
        "generators": lambda: {
            "num_images_per_prompt": 2,
            "generator": [seeded(3), seeded(4)],
        },
        "nothing guided": lambda: {
            "prior_guidance_scale": 1.0,
            "decoder_guidance_scale": 1.0,
        },
        "prior alone guided": lambda: {"decoder_guidance_scale": 1.0},
        "decoder alone guided": lambda: {"prior_guidance_scale": 1.0},
        "latents": lambda: {
            "prior_latents": noise(1, unclip_parts.WIDTH),
            "decoder_latents": noise(1, 3, 16, 16),
            "super_res_latents": noise(1, 3, 32, 32),
        },
        "text as it was read": lambda: {
            "prompt": None,
            "text_model_output": (noise(2, unclip_parts.WIDTH), noise(2, 16, unclip_parts.WIDTH)),
            "text_attention_mask": torch.arange(16)[None] < torch.tensor([[5], [16]]),
        },
        "pil output": lambda: {"output_type": "pil"},
        "tuple": lambda: {"return_dict": False},
    },
    "UnCLIPImageVariationPipeline": {
        "plain": dict,
        "several": lambda: {
            "image": [photo(), photo(seed=1)],
            "num_images_per_prompt": 2,
        },
        "pixels": lambda: {"image": noise(2, 3, 30, 30)},
        "embeds": lambda: {"image_embeddings": noise(2, unclip_parts.WIDTH)},
        "not guided": lambda: {"decoder_guidance_scale": 1.0},
        "latents": lambda: {
            "decoder_latents": noise(1, 3, 16, 16),
            "super_res_latents": noise(1, 3, 32, 32),
        },
    },
    "LDMTextToImagePipeline": {
        "plain": dict,
        "batch": lambda: {"prompt": ["a ball", "a red cube on grass"], "guidance_scale": 4.0},
        "held back": lambda: {"guidance_scale": 0.5},
        "size": lambda: {"height": 40, "width": 72, "guidance_scale": 3.0},
        "latents": lambda: {"latents": noise(1, 4, 8, 8)},
        "generators": lambda: {"prompt": ["a ball", "a cube"], "generator": [seeded(3), seeded(4)]},
        "tensor output": lambda: {"output_type": "pt"},
        "pil output": lambda: {"output_type": "pil"},
    },
    "LDMTextToImagePipeline, VQ": {"plain": dict, "guided": lambda: {"guidance_scale": 5.0}},
    "LDMSuperResolutionPipeline": {
        "plain": lambda: {"image": photo(32, 32)},
        "not divisible": lambda: {"image": photo(70, 40)},
        "pixels": lambda: {"image": noise(2, 3, 32, 32).clamp(-1, 1)},
        "generators": lambda: {
            "image": noise(2, 3, 32, 32).clamp(-1, 1),
            "generator": [seeded(3), seeded(4)],
        },
        "tensor output": lambda: {"image": photo(32, 32), "output_type": "pt"},
        "pil output": lambda: {"image": photo(32, 32), "output_type": "pil"},
    },
}


ALONE = {"UnCLIPPipeline": "latents", "UnCLIPImageVariationPipeline": "latents"}
"""Beside the plain calls of LDM, which nothing guides."""
PACKED = {name: packed(cases, (ALONE.get(name, "plain"),)) for name, cases in CALLS.items()}


@pytest.mark.parametrize(("name", "case"), [(name, case) for name, cases in PACKED.items() for case in cases])
def test_call(pairs: dict[str, tuple[Any, Any]], name: str, case: str) -> None:
    make = PACKED[name][case]

    def arguments() -> dict[str, Any]:
        given = make()
        usual = {"prior_num_inference_steps": 3} if name in ("StableUnCLIPPipeline", "UnCLIPPipeline") else {}
        if name.startswith("UnCLIP"):
            usual |= SHORT_KARLO
        if name in OF_PICTURES and not {"image_embeds", "image_embeddings"} & given.keys():
            usual |= {"image": photo()}
        return {**usual, **given}

    compare(*callers(pairs, name), arguments)


def rescheduled(library: Any, pipe: Any, name: str, **options: Any) -> Any:
    """The same pipeline with a scheduler of another class."""
    options = {"timestep_spacing": "leading", **options}
    scheduler = getattr(library, name).from_config(pipe.scheduler.config, **options)
    return quiet(type(pipe)(**{**pipe.components, "scheduler": scheduler}))


SCHEDULERS: dict[str, dict[str, Any]] = {
    "DDPMScheduler": {},
    "PNDMScheduler": {"skip_prk_steps": True},
    "EulerDiscreteScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "DPMSolverMultistepScheduler": {},
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers(pairs: dict[str, tuple[Any, Any]], name: str) -> None:
    pipes = [
        rescheduled(library, pipe, name, **SCHEDULERS[name])
        for library, pipe in zip((diffusers, calotype), pairs["StableUnCLIPPipeline"], strict=True)
    ]
    compare(*pipes, lambda: {"prior_num_inference_steps": 3})


def test_the_callback_sees_the_prior_and_the_decoder(pairs: dict[str, tuple[Any, Any]]) -> None:
    seen: list[list[tuple[int, int, torch.Tensor]]] = []
    for pipe in pairs["StableUnCLIPPipeline"]:
        steps: list[tuple[int, int, torch.Tensor]] = []
        pipe(
            "a red ball",
            prior_num_inference_steps=4,
            num_inference_steps=4,
            generator=seeded(),
            callback=lambda i, t, latents, steps=steps: steps.append((i, int(t), latents)),
            callback_steps=2,
        )
        seen.append(steps)
    assert [step[:2] for step in seen[0]] == [step[:2] for step in seen[1]]
    assert len(seen[0]) == 4
    for theirs, ours in zip(*seen, strict=True):
        torch.testing.assert_close(ours[2], theirs[2], atol=TOLERANCE, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in KARLO])
def test_what_we_save_the_reference_loads(
    pairs: dict[str, tuple[Any, Any]], tmp_path: Path, name: str
) -> None:
    theirs, ours = pairs[name]
    ours.save_pretrained(tmp_path)
    loaded = quiet(diffusers.DiffusionPipeline.from_pretrained(tmp_path))
    assert type(loaded) is type(theirs)
    takes = inspect.signature(type(theirs).__call__).parameters
    given = {"image": photo(32, 32)} if "image" in takes else {}
    drop = () if "prompt" in takes else ("prompt",)
    compare(without(theirs, *drop), without(loaded, *drop), lambda: given)


@pytest.mark.parametrize("name", KARLO)
def test_what_we_save_of_karlo_is_named_as_published(
    pairs: dict[str, tuple[Any, Any]], tmp_path: Path, name: str
) -> None:
    """The reference has moved ``UnCLIPTextProjModel`` to where its own loader does not find it."""
    _, ours = pairs[name]
    ours.save_pretrained(tmp_path)
    again = quiet(calotype.DiffusionPipeline.from_pretrained(tmp_path))
    assert again.config.text_proj == ("unclip", "UnCLIPTextProjModel")
    steps = {"decoder_num_inference_steps": 2, "super_res_num_inference_steps": 2, "output_type": "np"}
    given = {"prompt": "a ball", "prior_num_inference_steps": 2} if "Variation" not in name else {}
    given = given or {"image": photo()}
    first, second = (pipe(**given, **steps, generator=seeded()).images for pipe in (ours, again))
    assert np.array_equal(first, second)


@pytest.mark.parametrize("method", ["__init__", "__call__"])
@pytest.mark.parametrize("name", NAMES)
def test_signature(name: str, method: str) -> None:
    """Names, order, kinds and defaults of the arguments are the reference's."""

    def shape(library: Any) -> list[tuple[Any, ...]]:
        parameters = inspect.signature(getattr(getattr(library, name), method)).parameters.values()
        return [(p.name, p.kind, p.default) for p in parameters]

    assert shape(calotype) == shape(diffusers)


def test_noise_image_embeddings(pairs: dict[str, tuple[Any, Any]]) -> None:
    embeds = noise(3, unclip_parts.WIDTH)
    for more in ({"noise": noise(3, unclip_parts.WIDTH, seed=9)}, {"generator": 4}):
        results = []
        for pipe in pairs["StableUnCLIPImg2ImgPipeline"]:
            given = {k: seeded(v) if k == "generator" else v for k, v in more.items()}
            results.append(pipe.noise_image_embeddings(embeds, 300, **given))
        torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)


# -- deviations ------------------------------------------------------------------------------------------------


def both(pairs: dict[str, tuple[Any, Any]], name: str, make: Case) -> tuple[np.ndarray, np.ndarray]:
    results = []
    for pipe in callers(pairs, name):
        usual = {"prompt": "a red ball", "num_inference_steps": 3, "output_type": "np"}
        results.append(arrays(pipe(**{"generator": seeded(), **usual, **make()})))
    return results[0], results[1]


DIFFERENT: dict[str, tuple[str, Case]] = {
    "guidance below 1": (
        "UnCLIPPipeline",
        lambda: {"prior_guidance_scale": 0.5, "prior_num_inference_steps": 2, **SHORT_KARLO},
    ),
    "clip_skip": (
        "StableUnCLIPImg2ImgPipeline",
        lambda: {"image": photo(), "prompt": "a red ball", "clip_skip": 1},
    ),
    "eta=1": ("LDMTextToImagePipeline", lambda: {"eta": 1.0}),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_deviations(pairs: dict[str, tuple[Any, Any]], case: str) -> None:
    name, make = DIFFERENT[case]
    assert deviation(f"pipelines/{name}/{case}")
    theirs, ours = both(pairs, name, make)
    assert np.abs(theirs - ours).max() > 1e-3


def test_the_noise_of_steps_is_the_reference_s_without_a_generator(
    pairs: dict[str, tuple[Any, Any]],
) -> None:
    results = []
    for pipe in pairs["LDMTextToImagePipeline"]:
        torch.manual_seed(3)
        results.append(pipe("a ball", num_inference_steps=3, eta=1.0, output_type="np").images)
    np.testing.assert_allclose(*results, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["LDMTextToImagePipeline", "LDMSuperResolutionPipeline"])
def test_the_input_is_scaled_as_schedulers_ask(pairs: dict[str, tuple[Any, Any]], name: str) -> None:
    assert deviation(f"pipelines/{name}/scheduler=Euler")
    theirs, ours = (
        rescheduled(library, pipe, "EulerDiscreteScheduler")
        for library, pipe in zip((diffusers, calotype), pairs[name], strict=True)
    )
    given = {"image": photo(32, 32)} if "Super" in name else {}
    expected, found = both({name: (theirs, ours)}, name, lambda: given)
    assert np.abs(expected - found).max() > 1e-3


def test_tensors_come_as_tensors(pairs: dict[str, tuple[Any, Any]]) -> None:
    assert deviation("pipelines/UnCLIPPipeline/output_type=pt")
    theirs, ours = (
        pipe(
            "a ball",
            prior_num_inference_steps=2,
            output_type="pt",
            generator=seeded(),
            **SHORT_KARLO,
        ).images
        for pipe in pairs["UnCLIPPipeline"]
    )
    assert isinstance(theirs, np.ndarray)
    np.testing.assert_allclose(ours.permute(0, 2, 3, 1).numpy(), theirs, atol=TOLERANCE)


# -- what is refused, and what the reference has no word for ------------------------------------------------------


REFUSED: dict[str, tuple[str, Case, str]] = {
    "noise level": ("StableUnCLIPPipeline", lambda: {"noise_level": 1000}, "between 0 and 999"),
    "no text for the prior": (
        "StableUnCLIPPipeline",
        lambda: {"prompt": None, "prompt_embeds": noise(1, 16, 32)},
        "prompt is not given",
    ),
    "prior steps": ("StableUnCLIPPipeline", lambda: {"prior_num_inference_steps": 0}, "at least 1"),
    "neither": ("StableUnCLIPImg2ImgPipeline", dict, "either image or image_embeds"),
    "both": (
        "UnCLIPImageVariationPipeline",
        lambda: {"image": photo(), "image_embeddings": noise(1, unclip_parts.WIDTH)},
        "either image or image_embeddings",
    ),
    "three pictures, two prompts": (
        "StableUnCLIPImg2ImgPipeline",
        lambda: {"image": [photo()] * 3, "prompt": ["a", "b"]},
        "3 pictures for 2 prompts",
    ),
    "text twice": (
        "UnCLIPPipeline",
        lambda: {
            "text_model_output": (noise(1, 32), noise(1, 16, 32)),
            "text_attention_mask": torch.ones(1, 16),
        },
        "Both prompt and text_model_output",
    ),
    "no mask": (
        "UnCLIPPipeline",
        lambda: {"prompt": None, "text_model_output": (noise(1, 32), noise(1, 16, 32))},
        "go together",
    ),
    "guidance of what is not guided": (
        "LDMSuperResolutionPipeline",
        lambda: {"image": photo(32, 32), "guidance": ClassifierFree(3.0)},
        "none for uncond",
    ),
    "batch size": (
        "LDMSuperResolutionPipeline",
        lambda: {"image": photo(32, 32), "batch_size": 3},
        "batch_size=3",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(pairs: dict[str, tuple[Any, Any]], case: str) -> None:
    name, make, words = REFUSED[case]
    _, ours = callers(pairs, name)
    with pytest.raises(InputError, match=words):
        ours(**{"prompt": "a ball", "num_inference_steps": 2, **make()})


def test_the_scheduler_knows_what_follows() -> None:
    """Each call of a run is told the next timestep, not the next training step."""
    sample, output = noise(1, 4), noise(1, 4, seed=6)
    scheduler = calotype.UnCLIPScheduler()
    scheduler.set_timesteps(4)
    for t, following in zip(scheduler.timesteps, [*scheduler.timesteps[1:], None], strict=True):
        told, looked_up = (
            scheduler.step(output, t, sample, prev_timestep=given, generator=seeded()).prev_sample
            for given in (following, "next")
        )
        assert torch.equal(told, looked_up)


def test_a_picture_of_a_batch_can_be_made_again_alone(pairs: dict[str, tuple[Any, Any]]) -> None:
    """All that is drawn for a picture, in every sampling, comes from its own generator."""
    _, ours = pairs["UnCLIPPipeline"]
    steps = {"prior_num_inference_steps": 2, "output_type": "np", **SHORT_KARLO}
    batch = ours("a ball", num_images_per_prompt=3, generator=calotype.seeds(7), **steps).images
    alone = ours("a ball", generator=calotype.seeds(9), **steps).images
    np.testing.assert_allclose(batch[2:], alone, atol=TOLERANCE)
    assert np.abs(batch[0] - batch[2]).max() > 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_and_offloading(pairs: dict[str, tuple[Any, Any]], tmp_path: Path, name: str) -> None:
    pairs[name][1].save_pretrained(tmp_path)
    takes = inspect.signature(pairs[name][1].__call__).parameters
    given: dict[str, Any] = {"image": photo(32, 32)} if "image" in takes else {"prompt": "a red ball"}
    given |= {step: 2 for step in takes if step.endswith("num_inference_steps")}

    def made(pipe: Any) -> np.ndarray:
        return quiet(pipe)(**given, generator=seeded(), output_type="np").images

    expected = made(calotype.DiffusionPipeline.from_pretrained(tmp_path))
    for how in ("enable_model_cpu_offload", "enable_sequential_cpu_offload"):
        offloaded = calotype.DiffusionPipeline.from_pretrained(tmp_path)
        getattr(offloaded, how)(device="cpu")
        assert np.array_equal(made(offloaded), expected)
    half = made(calotype.DiffusionPipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16))
    assert half.shape == expected.shape
    assert half.std() > 0.01


def test_guidance_as_a_value_is_the_decoder_s(pairs: dict[str, tuple[Any, Any]]) -> None:
    _, ours = pairs["StableUnCLIPPipeline"]
    steps = {"prior_num_inference_steps": 2, "num_inference_steps": 2, "output_type": "np"}
    by_value = ours("a ball", guidance=ClassifierFree(5.0), generator=seeded(), **steps).images
    by_scale = ours("a ball", guidance_scale=5.0, generator=seeded(), **steps).images
    assert np.array_equal(by_value, by_scale)


def test_an_interruption_ends_the_samplings_that_follow(pairs: dict[str, tuple[Any, Any]]) -> None:
    _, ours = pairs["StableUnCLIPPipeline"]
    steps = []

    def note(index: int, timestep: int, latents: torch.Tensor) -> None:
        steps.append(latents.ndim)
        ours._interrupt = True

    ours("a ball", prior_num_inference_steps=4, num_inference_steps=4, callback=note)
    assert steps == [2, 4]
