"""Guidance in calls: intervals, what they save, guidance as an argument, and perturbation without a trace."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image

import calotype
from calotype.core.errors import InputError
from calotype.diffusion.guidance import Moment
from calotype.guidance import (
    ClassifierFree,
    Guidance,
    Interval,
    NoiseInterval,
    PerturbedAttention,
    Rescaled,
    TextAndImage,
    Unguided,
)
from tests.tiny import UNET, randomise, stable_diffusion_parts, stable_diffusion_xl_parts

STEPS = 5


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photo(side: int = 64, seed: int = 0) -> Image.Image:
    pixels = torch.randint(0, 256, (5, 6, 3), generator=seeded(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy()).resize((side, side), Image.Resampling.BICUBIC)


def mask() -> Image.Image:
    image = Image.new("L", (64, 64))
    image.paste(255, (16, 8, 40, 32))
    return image


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The components of both families, denoisers that read more channels, ControlNets and an adapter."""
    root = tmp_path_factory.mktemp("models")
    sd, xl = stable_diffusion_parts(calotype, root / "sd"), stable_diffusion_xl_parts(calotype, root / "xl")
    wide = {
        f"unet_{channels}": randomise(
            calotype.UNet2DConditionModel(**{**UNET, "in_channels": channels, **more})
        )
        for channels, more in ((7, {"num_class_embeds": 1000}), (8, {}), (9, {}))
    }
    net = {
        name: randomise(
            calotype.ControlNetModel.from_unet(
                parts["unet"], conditioning_embedding_out_channels=(8, 8, 16, 16)
            )
        )
        for name, parts in (("controlnet", sd), ("xl_controlnet", xl))
    }
    adapter = randomise(calotype.T2IAdapter(channels=(32, 64), num_res_blocks=1, downscale_factor=8))
    return {"sd": sd, "xl": xl, "adapter": adapter, "low_res": calotype.DDPMScheduler(), **net, **wide}


def built(models: dict[str, Any], name: str, denoiser: str | None = None, **more: str | list[str]) -> Any:
    parts = {**models["xl" if "XL" in name else "sd"]}
    parts |= {
        key: [models[v] for v in value] if isinstance(value, list) else models[value]
        for key, value in more.items()
    }
    if denoiser is not None:
        parts["unet"] = models[denoiser]
    if "Upscale" in name:
        parts = {
            key: value for key, value in parts.items() if key not in ("safety_checker", "feature_extractor")
        }
    elif "XL" not in name:
        parts["requires_safety_checker"] = False
    pipe = getattr(calotype, name)(**parts)
    pipe.scheduler = calotype.DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextmanager
def counted(model: torch.nn.Module) -> Iterator[list[int]]:
    """The rows of the model's input in each of its calls."""
    rows: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(args[0])), with_kwargs=True
    )
    try:
        yield rows
    finally:
        hook.remove()


Setting = tuple[str, dict[str, Any], dict[str, Any]]
SETTINGS: dict[str, Setting] = {
    "text": ("StableDiffusionPipeline", {}, {"num_images_per_prompt": 2}),
    "image": ("StableDiffusionImg2ImgPipeline", {}, {"image": photo(), "strength": 1.0}),
    "inpaint": (
        "StableDiffusionInpaintPipeline",
        {"denoiser": "unet_9"},
        {"image": photo(), "mask_image": mask(), "height": 64, "width": 64},
    ),
    "enlarge": (
        "StableDiffusionUpscalePipeline",
        {"denoiser": "unet_7", "low_res_scheduler": "low_res"},
        {"image": photo(8)},
    ),
    "control": ("StableDiffusionControlNetPipeline", {"controlnet": "controlnet"}, {"image": photo()}),
    "controls": (
        "StableDiffusionControlNetPipeline",
        {"controlnet": ["controlnet", "controlnet"]},
        {"image": [photo(), photo(seed=1)]},
    ),
    "guess": (
        "StableDiffusionControlNetPipeline",
        {"controlnet": "controlnet"},
        {"image": photo(), "guess_mode": True},
    ),
    "adapter": ("StableDiffusionAdapterPipeline", {"adapter": "adapter"}, {"image": photo()}),
    "xl": (
        "StableDiffusionXLControlNetInpaintPipeline",
        {"controlnet": "xl_controlnet"},
        {"image": photo(), "mask_image": mask(), "control_image": photo(seed=2), "strength": 1.0},
    ),
}


def made(pipe: Any, arguments: dict[str, Any], **more: Any) -> torch.Tensor:
    given = {"prompt": "a red ball", "num_inference_steps": STEPS, "output_type": "pt", **arguments, **more}
    return pipe(**given, generator=seeded()).images


GUIDED, OFF = ClassifierFree(6.0), ClassifierFree(1.0)  # ε_uncond + 1·(ε_cond − ε_uncond) is ε_cond


@dataclass(frozen=True)
class Switched(Guidance):
    """On and off by the step's number, with the work of all branches in every step."""

    branches: ClassVar[tuple[str, ...]] = GUIDED.branches

    def at(self, moment: Moment) -> Guidance:
        return GUIDED if moment.index in (1, 2, 3) else OFF

    def combine(self, predictions: tuple[torch.Tensor, ...]) -> torch.Tensor:
        raise AssertionError("which guidance it is depends on the step")


@pytest.mark.parametrize("setting", [name for name in SETTINGS if name != "control"])  # two of it are below
def test_an_interval_is_switching_by_hand_for_less_work(models: dict[str, Any], setting: str):
    name, parts, arguments = SETTINGS[setting]
    pipe = built(models, name, **parts)
    with counted(pipe.unet) as rows:
        found = made(pipe, arguments, guidance=Interval(GUIDED, start=0.2, end=0.8))
    pictures = arguments.get("num_images_per_prompt", 1)
    assert rows == [pictures * count for count in (1, 2, 2, 2, 1)]
    by_hand = made(pipe, arguments, guidance=Switched())
    assert by_hand.std() > 0.01
    torch.testing.assert_close(found, by_hand, atol=1e-4, rtol=1e-3)


def test_an_interval_of_noise_levels_is_one_of_steps(models: dict[str, Any]):
    """The five steps have the levels 5.1, 2.3, 1.2, 0.57 and 0.04."""
    pipe = built(models, "StableDiffusionPipeline")
    with counted(pipe.unet) as rows:
        found = made(pipe, {}, guidance=NoiseInterval(GUIDED, low=0.3, high=4.0))
    assert rows == [1, 2, 2, 2, 1]
    assert torch.equal(found, made(pipe, {}, guidance=Interval(GUIDED, start=0.2, end=0.8)))


@pytest.mark.parametrize("setting", ["inpaint", "control", "xl"])
def test_an_interval_is_switching_in_a_callback(models: dict[str, Any], setting: str):
    name, parts, arguments = SETTINGS[setting]
    pipe = built(models, name, **parts)

    def switch(view: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        view._guidance_scale = 6.0 if index in (0, 1, 2) else 1.0
        return tensors

    found = made(pipe, arguments, guidance=Interval(GUIDED, end=0.8))
    by_hand = made(pipe, arguments, guidance_scale=6.0, callback_on_step_end=switch)
    torch.testing.assert_close(found, by_hand)


def test_an_interval_of_a_controlnet_runs_it_for_the_branches_that_are_there(models: dict[str, Any]):
    for setting, expected in (("control", [1, 2, 2, 2, 1]), ("guess", [1] * 5)):
        name, parts, arguments = SETTINGS[setting]
        pipe = built(models, name, **parts)
        with counted(pipe.controlnet) as rows:
            made(pipe, arguments, guidance=Interval(ClassifierFree(6.0), start=0.2, end=0.8))
        assert rows == expected


def test_a_scale_that_a_callback_switches_back_and_forth(models: dict[str, Any]):
    """Also by the scale's own name; the prompt embeddings stay as they are."""
    pipe = built(models, "StableDiffusionPipeline")

    def switch(view: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        view._guidance_scale = 1.0 if index == 1 else 6.0
        return tensors

    with counted(pipe.unet) as rows:
        found = made(pipe, {}, guidance_scale=6.0, callback_on_step_end=switch)
    assert rows == [2, 2, 1, 2, 2]
    parted = Interval(ClassifierFree(6.0), end=0.4) + Interval(ClassifierFree(6.0), start=0.6)
    torch.testing.assert_close(found, made(pipe, {}, guidance=parted))


def test_editing_guided_by_text_and_picture_in_an_interval(models: dict[str, Any]):
    pipe = built(models, "StableDiffusionInstructPix2PixPipeline", denoiser="unet_8")
    arguments = {"image": photo()}
    with counted(pipe.unet) as rows:
        made(pipe, arguments, guidance=Interval(TextAndImage(6.0, 1.4), end=0.4))
    assert rows == [3, 3, 1, 1, 1]
    same = made(pipe, arguments, guidance=TextAndImage(6.0, 1.4))
    assert torch.equal(same, made(pipe, arguments, guidance_scale=6.0, image_guidance_scale=1.4))


EQUAL: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "a number": ("StableDiffusionPipeline", 4.0, {"guidance_scale": 4.0}),
    "a whole number": ("StableDiffusionPipeline", 4, {"guidance_scale": 4.0}),
    "classifier-free": ("StableDiffusionPipeline", ClassifierFree(4.0), {"guidance_scale": 4.0}),
    "rescaled": (
        "StableDiffusionXLPipeline",
        ClassifierFree(4.0, rescale=0.7),
        {"guidance_scale": 4.0, "guidance_rescale": 0.7},
    ),
    "unguided": ("StableDiffusionPipeline", Unguided(), {"guidance_scale": 0.0}),
    "perturbed": (
        "StableDiffusionPAGPipeline",
        ClassifierFree(4.0) + PerturbedAttention(2.0, adaptive=0.001),
        {"guidance_scale": 4.0, "pag_scale": 2.0, "pag_adaptive_scale": 0.001},
    ),
    "perturbed and rescaled": (
        "StableDiffusionXLPAGPipeline",
        Rescaled(ClassifierFree(4.0) + PerturbedAttention(2.0), 0.6),
        {"guidance_scale": 4.0, "pag_scale": 2.0, "guidance_rescale": 0.6},
    ),
    "perturbed alone": (
        "StableDiffusionPAGPipeline",
        PerturbedAttention(2.0),
        {"guidance_scale": 0.0, "pag_scale": 2.0},
    ),
    "a number where layers are perturbed": ("StableDiffusionPAGPipeline", 4.0, {"guidance_scale": 4.0}),
}


@pytest.mark.parametrize("case", EQUAL)
def test_guidance_says_what_the_scales_say(models: dict[str, Any], case: str):
    name, guidance, scales = EQUAL[case]
    pipe = built(models, name)
    found, right = (
        made(pipe, {"num_inference_steps": 2}, **given) for given in ({"guidance": guidance}, scales)
    )
    assert torch.equal(found, right)


def test_any_pipeline_of_these_families_can_be_perturbed(models: dict[str, Any]):
    """What the reference has classes of its own for is an argument."""
    guidance = ClassifierFree(4.0) + PerturbedAttention(2.0, layers=["mid", "up_blocks"])
    plain = built(models, "StableDiffusionPipeline")
    own = built(models, "StableDiffusionPAGPipeline")
    own.set_pag_applied_layers(["mid", "up_blocks"])
    with counted(plain.unet) as rows:
        found = made(plain, {}, guidance=guidance)
    assert rows == [3] * STEPS
    assert torch.equal(found, made(own, {}, guidance_scale=4.0, pag_scale=2.0))


def test_a_call_of_each_branch_costs_as_many_rows(models: dict[str, Any]):
    pipe = built(models, "StableDiffusionPAGPipeline")
    for options, expected in (
        ({}, 3),
        ({"guidance_scale": 1.0}, 2),
        ({"pag_scale": 0.0}, 2),
        ({"pag_scale": 0.0, "guidance_scale": 0.0}, 1),
        ({"guidance": Unguided()}, 1),
    ):
        with counted(pipe.unet) as rows:
            made(pipe, options, num_inference_steps=2)
        assert rows == [expected] * 2


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "both": (
        "StableDiffusionPipeline",
        {"guidance": 4.0, "guidance_scale": 4.0},
        "Both guidance and guidance_scale",
    ),
    "both, for perturbation": (
        "StableDiffusionPAGPipeline",
        {"guidance": ClassifierFree(4.0), "pag_scale": 2.0},
        "Both guidance and pag_scale",
    ),
    "a word": ("StableDiffusionPipeline", {"guidance": "strong"}, "guidance must be a number or a guidance"),
    "no such branch": (
        "StableDiffusionPipeline",
        {"guidance": TextAndImage(4.0, 1.5)},
        "has none for image, only for cond, uncond, perturbed",
    ),
    "no such layer": (
        "StableDiffusionPipeline",
        {"guidance": PerturbedAttention(2.0, layers="middle")},
        "No self-attention layer of UNet2DConditionModel is called 'middle'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_guidance_without_meaning_is_refused(models: dict[str, Any], case: str):
    name, options, words = REFUSED[case]
    with pytest.raises(InputError, match=words):
        made(built(models, name), options)


def test_a_model_without_a_prompt_takes_no_scale(models: dict[str, Any]):
    unet = calotype.UNet2DModel(
        sample_size=8, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    pipe = calotype.DDPMPipeline(unet=unet, scheduler=calotype.DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(InputError, match="takes no guidance scale"):
        pipe(num_inference_steps=2, guidance=4.0)
    with pytest.raises(InputError, match="has none for uncond, only for cond"):
        pipe(num_inference_steps=2, guidance=ClassifierFree(4.0))
    assert pipe(num_inference_steps=2, guidance=Unguided()).images


def test_a_callback_sees_and_replaces_guidance_that_was_given(models: dict[str, Any]):
    pipe = built(models, "StableDiffusionPipeline")
    seen: list[Guidance] = []

    def watch(view: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(view.guidance)
        with pytest.raises(InputError, match="guidance as a value"):
            view._guidance_scale = 1.0
        with pytest.raises(InputError, match="guidance as a value"):
            view.guidance_scale  # noqa: B018
        view.guidance = Unguided()
        return tensors

    made(pipe, {}, guidance=ClassifierFree(3.0), callback_on_step_end=watch)
    assert seen == [ClassifierFree(3.0)] + [Unguided()] * (STEPS - 1)
    assert "guidance" not in vars(pipe)


def test_a_branch_that_the_call_did_not_begin_with_is_refused(models: dict[str, Any]):
    pipe = built(models, "StableDiffusionPipeline")

    def switch(view: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        view._guidance_scale = 7.5
        return tensors

    with pytest.raises(InputError, match="now needs the branch 'uncond'"):
        made(pipe, {}, guidance_scale=1.0, callback_on_step_end=switch)


def test_a_model_that_is_told_the_scale_may_be_perturbed_and_has_no_branch_without_the_prompt(
    models: dict[str, Any],
):
    unet = calotype.UNet2DConditionModel(**{**UNET, "time_cond_proj_dim": 16})
    told = {**models, "told": randomise(unet)}
    pipe = built(told, "StableDiffusionPAGPipeline", denoiser="told")
    options = {"num_images_per_prompt": 2}
    with counted(pipe.unet) as rows:
        weak, strong = (made(pipe, options, guidance_scale=scale, pag_scale=1.0) for scale in (2.0, 8.0))
    assert rows == [4] * STEPS * 2
    assert not torch.allclose(weak, strong)
    assert (
        torch.equal(strong, made(pipe, options, guidance=8.0)) is False
    )  # the usual pag_scale is another one
    with pytest.raises(InputError, match="has none for uncond"):
        made(pipe, options, guidance=ClassifierFree(8.0))


PIPELINES = [name for name in calotype.__all__ if name.endswith("Pipeline") and name != "DiffusionPipeline"]


def test_every_pipeline_takes_the_argument_and_no_signature_has_it():
    for name in PIPELINES:
        call = getattr(calotype, name).__call__
        assert "guidance" not in inspect.signature(call).parameters
        assert "guidance: Guidance as one value" in (call.__doc__ or ""), name


def test_threads_perturb_only_their_own_calls(models: dict[str, Any]):
    """Pipelines with and without perturbation share one denoiser."""
    pipes = [built(models, name) for name in ("StableDiffusionPAGPipeline", "StableDiffusionPipeline")]
    assert pipes[0].unet is pipes[1].unet
    expected = [made(pipe, {}) for pipe in pipes]
    found: dict[int, torch.Tensor] = {}

    def work(number: int) -> None:
        found[number] = made(pipes[number % 2], {})

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(torch.equal(found[number], expected[number % 2]) for number in found)
