"""What `calotype.load` returns: tasks follow from inputs, controls add up, and the bits are the public classes'."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import calotype
from calotype.core.errors import InputError
from tests.parity.pipeline_runs import quiet, seeded
from tests.parity.test_adapter_pipelines import ADAPTERS, THREE_STAGES
from tests.parity.test_editing_pipelines import PARTS
from tests.parity.test_image_pipelines import mask, photo
from tests.tiny import (
    randomise,
    stable_diffusion_folder,
    stable_diffusion_parts,
    stable_diffusion_xl_folder,
)

FAMILIES = ("StableDiffusion", "StableDiffusionXL")
DEPTH, UPSCALE = "StableDiffusionDepth2ImgPipeline", "StableDiffusionUpscalePipeline"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    found = {
        "StableDiffusion": stable_diffusion_folder(root / "sd"),
        "StableDiffusionXL": stable_diffusion_xl_folder(root / "xl", calotype, unet=THREE_STAGES),
        "inpainting": stable_diffusion_folder(root / "inpainting", unet={"in_channels": 9}),
        "editing": stable_diffusion_folder(root / "editing", unet={"in_channels": 8}),
    }
    for name in (DEPTH, UPSCALE):
        found[name] = root / name
        getattr(diffusers, name)(**PARTS[name](root / f"{name}-parts")).save_pretrained(found[name])
    return found


@pytest.fixture(scope="module")
def pipes(folders: dict[str, Path]) -> dict[str, Any]:
    return {name: quiet(calotype.load(folder, device="cpu")) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def models(pipes: dict[str, Any]) -> dict[str, list[Any]]:
    """Two ControlNets and two T2I-Adapters for each family."""
    found = {}
    for family in FAMILIES:
        unet = pipes[family].unet
        nets = [
            calotype.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 16, 16))
            for _ in range(2)
        ]
        adapters = [calotype.T2IAdapter(**ADAPTERS[family]) for _ in range(2)]
        found[family] = [randomise(model, 20 + n) for n, model in enumerate([*nets, *adapters])]
    return found


@pytest.fixture(scope="module")
def union(pipes: dict[str, Any]) -> Any:
    copied = calotype.ControlNetUnionModel.from_unet(
        pipes["StableDiffusionXL"].unet, conditioning_embedding_out_channels=(8, 8, 16, 16)
    )
    config = {**copied.config, "num_trans_channel": 32, "num_proj_channel": 32}
    return randomise(calotype.ControlNetUnionModel.from_config(config), 25)


def run(pipe: Any, **arguments: Any) -> torch.Tensor:
    arguments = {"prompt": "a red ball", "num_inference_steps": 2, "output_type": "pt", **arguments}
    if "seed" not in arguments:
        arguments.setdefault("generator", seeded())
    return pipe(**arguments).images


TASKS: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "text-to-image": ("", dict),
    "image-to-image": ("Img2Img", lambda: {"image": photo(), "strength": 0.8}),
    "inpainting": ("Inpaint", lambda: {"image": photo(), "mask_image": mask()}),
}
NETWORKS = {"none": 0, "one network": 1, "two networks": 2}


@pytest.mark.parametrize("networks", NETWORKS)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_bits_are_those_of_the_public_class(
    pipes: dict[str, Any], models: dict[str, list[Any]], family: str, task: str, networks: str
) -> None:
    """Its defaults included."""
    end, given = TASKS[task]
    count, pictures = NETWORKS[networks], [photo(seed=3), photo(seed=4)]
    nets = models[family][:count]
    theirs: dict[str, Any] = {}
    components: dict[str, Any] = {}
    if count:
        components = {"controlnet": nets if count > 1 else nets[0]}
        theirs = {"image" if not end else "control_image": pictures if count > 1 else pictures[0]}
    cls = getattr(calotype, f"{family}{'ControlNet' if count else ''}{end}Pipeline")
    expected = run(quiet(cls.from_pipe(pipes[family], **components)), **given(), **theirs)
    mine = [calotype.control(*each) for each in zip(nets, pictures, strict=False)]
    assert torch.equal(run(pipes[family], **given(), control=mine), expected)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_bits_are_those_of_the_public_class_with_adapters(
    pipes: dict[str, Any], models: dict[str, list[Any]], family: str, count: int
) -> None:
    adapters, pictures = models[family][2 : 2 + count], [photo(70, 64, seed=3), photo(seed=4)]
    cls = getattr(calotype, f"{family}AdapterPipeline")
    public = quiet(cls.from_pipe(pipes[family], adapter=adapters if count > 1 else adapters[0]))
    options = {"adapter_conditioning_scale": [0.03] * 2 if count > 1 else 0.03}
    expected = run(public, image=pictures if count > 1 else pictures[0], **options)
    mine = [calotype.control(*each, scale=0.03) for each in zip(adapters, pictures, strict=False)]
    assert torch.equal(run(pipes[family], control=mine), expected)


@pytest.mark.parametrize("task", TASKS)
def test_the_bits_are_those_of_the_public_class_with_a_union(
    pipes: dict[str, Any], union: Any, task: str
) -> None:
    end, given = TASKS[task]
    cls = getattr(calotype, f"StableDiffusionXLControlNetUnion{end}Pipeline")
    public = quiet(cls.from_pipe(pipes["StableDiffusionXL"], controlnet=union))
    pictures = [photo(seed=3), photo(seed=4)]
    expected = run(public, control_image=pictures, control_mode=[2, 5], **given())
    mine = calotype.control(union, pictures, kind=[2, 5])
    assert torch.equal(run(pipes["StableDiffusionXL"], control=mine, **given()), expected)
    keeping = pipes["StableDiffusionXL"].with_controls(controlnet=union)
    assert type(keeping).__name__ == "StableDiffusionXLControlNetUnionPipeline"


OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any], Callable[[], dict[str, Any]]]] = {
    "scale and range": (
        {"scale": 0.3, "start": 0.2, "end": 0.8},
        {"controlnet_conditioning_scale": 0.3, "control_guidance_start": 0.2, "control_guidance_end": 0.8},
        lambda: {"num_inference_steps": 5},
    ),
    "guess": ({"guess_mode": True}, {"guess_mode": True}, lambda: {"guidance_scale": 3.0}),
    "a batch": (
        {},
        {},
        lambda: {"prompt": ["a ball", "a cube"], "num_images_per_prompt": 2, "negative_prompt": "night"},
    ),
    "cut to the mask": ({}, {}, lambda: {"padding_mask_crop": 6, "output_type": "pil"}),
    "chunks and a guidance": (
        {},
        {},
        lambda: {"prompt_chunks": True, "guidance": calotype.guidance.ClassifierFree(3.0, rescale=0.5)},
    ),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_mean_what_they_do_in_the_public_class(
    pipes: dict[str, Any], models: dict[str, list[Any]], case: str
) -> None:
    mine, theirs, given = OPTIONS[case]
    pipe, net = pipes["StableDiffusion"], models["StableDiffusion"][0]
    public = quiet(calotype.StableDiffusionControlNetInpaintPipeline.from_pipe(pipe, controlnet=net))
    both = {"image": photo(), "mask_image": mask(), **given()}
    found = run(pipe, control=calotype.control(net, photo(seed=3), **mine), **both)
    expected = run(public, control_image=photo(seed=3), **theirs, **both)
    assert found == expected if isinstance(found, list) else torch.equal(found, expected)


# -- what no public class does ---------------------------------------------------------------------------------


def distances(pipe: Any, controls: list[Any], **given: Any) -> list[float]:
    """How far the picture moves with each more of the controls."""
    made = [run(pipe, control=controls[:count], **given) for count in range(len(controls) + 1)]
    return [(after - before).abs().mean().item() for before, after in pairwise(made)]


def test_inpainting_with_two_networks_and_an_adapter(
    pipes: dict[str, Any], models: dict[str, list[Any]]
) -> None:
    for family in FAMILIES:
        first, second, adapter, _ = models[family]
        controls = [
            calotype.control(first, photo(seed=3), scale=0.5),
            calotype.control(second, photo(seed=4), scale=0.5, end=0.5),
            calotype.control(adapter, photo(seed=5), scale=0.3, start=0.5),
        ]
        given = {"image": photo(), "mask_image": mask(), "num_inference_steps": 4, "guidance_scale": 3.0}
        assert min(distances(pipes[family], controls, **given)) > 1e-4
        turned = run(pipes[family], control=controls[::-1], **given)
        torch.testing.assert_close(turned, run(pipes[family], control=controls, **given), atol=1e-4, rtol=0)
        off = [calotype.control(each.model, each.picture, scale=0.0) for each in controls]
        # pictures of the control tasks are worked at their own size, which is the model's here
        torch.testing.assert_close(run(pipes[family], control=off, **given), run(pipes[family], **given))


def test_depth_with_a_network(pipes: dict[str, Any], models: dict[str, list[Any]]) -> None:
    """A step by hand: what the network makes of the latents is added inside of the U-Net that reads the depth."""
    pipe = pipes[DEPTH]
    net = models["StableDiffusion"][0]
    control = calotype.control(net, photo(seed=3), scale=0.7)
    given = {"image": photo(), "depth_map": torch.rand(1, 8, 8, generator=seeded(2)), "strength": 1.0}
    given |= {"num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "latent"}
    pipe.scheduler = calotype.DDIMScheduler.from_config(pipe.scheduler.config)
    found = run(pipe, control=control, **given)

    seen: list[torch.Tensor] = []
    hook = pipe.unet.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    plain = run(pipe, **given)
    hook.remove()
    assert not torch.equal(found, plain)
    with torch.no_grad():
        text, _ = pipe.encode_prompt("a red ball", "cpu", 1, False)
        pipe.scheduler.set_timesteps(1)
        time = pipe.scheduler.timesteps[0]
        (stacked,) = seen
        picture = calotype.image_processor.VaeImageProcessor(do_normalize=False).preprocess(photo(seed=3))
        down, mid = net(stacked[:, :4], time, text, picture, 0.7, return_dict=False)
        noise = pipe.unet(
            stacked,
            time,
            text,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
            return_dict=False,
        )[0]
        expected = pipe.scheduler.step(noise, time, stacked[:, :4], return_dict=False)[0]
    torch.testing.assert_close(found, expected)


def test_an_upscale_with_a_guidance_interval(pipes: dict[str, Any]) -> None:
    pipe, rows = pipes[UPSCALE], []
    hook = pipe.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    interval = calotype.guidance.Interval(calotype.guidance.ClassifierFree(4.0), start=0.25, end=0.75)
    pipe.scheduler = calotype.DDIMScheduler.from_config(pipe.scheduler.config)
    made = run(pipe, image=photo(20, 16), guidance=interval, num_inference_steps=4)
    hook.remove()
    assert made.shape == (1, 3, 64, 80)
    assert rows == [1, 2, 2, 1]


# -- what follows from the checkpoint --------------------------------------------------------------------------

SERVED = {
    "StableDiffusion": ("text-to-image", "image-to-image", "inpainting"),
    "StableDiffusionXL": ("text-to-image", "image-to-image", "inpainting"),
    "inpainting": ("inpainting",),
    "editing": ("editing",),
    DEPTH: ("depth-to-image",),
    UPSCALE: ("upscaling",),
}


@pytest.mark.parametrize("name", SERVED)
def test_tasks_follow_from_the_denoiser(pipes: dict[str, Any], name: str) -> None:
    assert pipes[name].tasks == SERVED[name]


@pytest.mark.parametrize("name", ["inpainting", "editing", DEPTH, UPSCALE])
def test_special_checkpoints_make_what_their_class_makes(pipes: dict[str, Any], name: str) -> None:
    classes = {
        "inpainting": "StableDiffusionInpaintPipeline",
        "editing": "StableDiffusionInstructPix2PixPipeline",
    }
    public = quiet(getattr(calotype, classes.get(name, name)).from_pipe(pipes[name]))
    given = {"image": photo(32, 32)} | ({"mask_image": mask(32, 32)} if name == "inpainting" else {})
    assert torch.equal(run(pipes[name], **given), run(public, **given))


REFUSED: dict[str, tuple[str, Callable[[Any], dict[str, Any]], type[Exception], str]] = {
    "a strength of nothing": (
        "StableDiffusion",
        lambda m: {"strength": 0.5},
        InputError,
        "strength has no meaning in text-to-image.*belongs to image-to-image, which needs image",
    ),
    "a mask alone": (
        "StableDiffusion",
        lambda m: {"mask_image": mask()},
        InputError,
        r"no task for mask_image .*inpainting \(image and mask_image\)",
    ),
    "no mask for an inpainter": (
        "inpainting",
        lambda m: {"image": photo()},
        InputError,
        "no task for image with this checkpoint",
    ),
    "no picture for an upscaler": (UPSCALE, lambda m: {}, InputError, r"upscaling \(image\)"),
    "a mask for depth": (
        DEPTH,
        lambda m: {"image": photo(), "mask_image": mask()},
        InputError,
        "no task for image and mask_image",
    ),
    "a word misspelt": (
        "StableDiffusion",
        lambda m: {"strenght": 0.5},
        TypeError,
        "no argument strenght; the nearest is strength",
    ),
    "the public class's own word": (
        "StableDiffusion",
        lambda m: {"control_image": photo()},
        TypeError,
        "control_image; give control",
    ),
    "seed and generator": (
        "StableDiffusion",
        lambda m: {"seed": 3, "generator": seeded()},
        InputError,
        "Both seed and generator",
    ),
    "no seed": ("StableDiffusion", lambda m: {"seed": -1}, InputError, "whole number from 0"),
    "a picture without a model": (
        "StableDiffusion",
        lambda m: {"control": photo()},
        InputError,
        "1 pictures, and the pipeline 0 models",
    ),
    "a model that steers nothing": (
        "StableDiffusion",
        lambda m: {"control": calotype.control(torch.nn.Linear(1, 1), photo())},
        InputError,
        "needs a ControlNetModel, ControlNetUnionModel or T2IAdapter, not Linear",
    ),
    "a kind for what knows none": (
        "StableDiffusion",
        lambda m: {"control": calotype.control(m[0], photo(), kind=2)},
        InputError,
        "ControlNetModel knows of no kinds",
    ),
    "a control without a picture": (
        "StableDiffusion",
        lambda m: {"control": calotype.control(m[0], None)},
        InputError,
        "ControlNetModel has no picture",
    ),
    "a range that is none": (
        "StableDiffusion",
        lambda m: {"control": calotype.control(m[0], photo(), start=0.8, end=0.2)},
        InputError,
        "cannot steer from 0.8 to 0.2",
    ),
    "a range that is none for an adapter": (
        "StableDiffusion",
        lambda m: {"control": calotype.control(m[2], photo(), start=0.8, end=0.2)},
        InputError,
        "cannot steer from 0.8 to 0.2",
    ),
    "an adapter that guesses": (
        "StableDiffusion",
        lambda m: {"control": calotype.control(m[2], photo(), guess_mode=True)},
        InputError,
        "guess_mode is for ControlNets",
    ),
    "a model of another type": (
        "StableDiffusion",
        lambda m: {
            "control": calotype.control(
                calotype.ControlNetModel(
                    block_out_channels=(8,), down_block_types=("DownBlock2D",), norm_num_groups=4
                ).half(),
                photo(),
            )
        },
        InputError,
        "in torch.float16, and the pipeline on cpu in torch.float32",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_meaning_is_refused_in_words(
    pipes: dict[str, Any], models: dict[str, list[Any]], case: str
) -> None:
    name, given, error, words = REFUSED[case]
    with pytest.raises(error, match=words):
        run(pipes[name], **given(models["StableDiffusion"]))


def test_a_model_of_few_steps(tmp_path: Path) -> None:
    """Its two tasks, and a control, which no public class of it takes."""
    parts = stable_diffusion_parts(calotype, tmp_path / "parts", unet={"time_cond_proj_dim": 8})
    parts["scheduler"] = calotype.LCMScheduler.from_config(calotype.DDIMScheduler().config)
    calotype.LatentConsistencyModelPipeline(**parts, requires_safety_checker=False).save_pretrained(
        tmp_path / "lcm"
    )
    pipe = quiet(calotype.load(tmp_path / "lcm", device="cpu"))
    assert pipe.tasks == ("text-to-image", "image-to-image")
    public = quiet(calotype.LatentConsistencyModelImg2ImgPipeline.from_pipe(pipe))
    assert torch.equal(run(pipe, image=photo()), run(public, image=photo()))
    net = calotype.ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 8, 16, 16))
    control = calotype.control(randomise(net, 20), photo(seed=3))
    assert (run(pipe, control=control) - run(pipe)).abs().mean() > 1e-3


def test_none_is_as_if_not_given(pipes: dict[str, Any]) -> None:
    pipe = pipes["StableDiffusion"]
    assert torch.equal(run(pipe, image=None, strength=None, control=None), run(pipe))


# -- models that the pipeline keeps ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keeping(folders: dict[str, Path], models: dict[str, list[Any]]) -> Any:
    """A pipeline with two ControlNets and an adapter of its own."""
    first, second, adapter, _ = models["StableDiffusion"]
    return quiet(
        calotype.load(folders["StableDiffusion"], device="cpu", controlnet=[first, second], adapter=adapter)
    )


def test_pictures_belong_to_the_models_in_their_order(
    keeping: Any, pipes: dict[str, Any], models: dict[str, list[Any]]
) -> None:
    given = {"image": photo(), "strength": 0.9}
    pictures = [photo(seed=3), photo(seed=4), photo(seed=5)]
    apart = [calotype.control(*each) for each in zip(models["StableDiffusion"], pictures, strict=False)]
    plain = pipes["StableDiffusion"]
    assert torch.equal(run(keeping, control=pictures, **given), run(plain, control=apart, **given))
    left_out = run(keeping, control=[None, pictures[1], None], **given)
    assert torch.equal(left_out, run(plain, control=apart[1], **given))
    assert torch.equal(run(keeping, **given), run(plain, **given))
    with pytest.raises(InputError, match="2 pictures, and the pipeline 3 models"):
        run(keeping, control=pictures[:2])


def test_models_join_and_leave(keeping: Any, pipes: dict[str, Any], models: dict[str, list[Any]]) -> None:
    plain, net = pipes["StableDiffusion"], models["StableDiffusion"][0]
    joined = quiet(plain.with_controls(controlnet=net))
    assert joined.unet is plain.unet
    assert joined.controlnet is net
    assert set(joined.components) - set(plain.components) == {"controlnet"}
    mine = run(plain, control=calotype.control(net, photo(seed=3)))
    assert torch.equal(run(joined, control=photo(seed=3)), mine)
    left = keeping.with_controls(controlnet=None, adapter=None)
    assert set(left.components) == set(plain.components)
    with pytest.raises(InputError, match="with_controls takes controlnet and adapter, not net"):
        plain.with_controls(net=net)


@pytest.mark.parametrize("kept", ["controlnet", "adapter", "both", "none"])
def test_files_are_those_of_the_public_class(
    pipes: dict[str, Any], models: dict[str, list[Any]], kept: str, tmp_path: Path
) -> None:
    first, _, adapter, _ = models["StableDiffusion"]
    components = {"controlnet": first, "adapter": adapter}
    chosen = {k: v for k, v in components.items() if kept in (k, "both")}
    pipe = quiet(pipes["StableDiffusion"].with_controls(**chosen))
    pipe.save_pretrained(tmp_path)
    name = {"adapter": "StableDiffusionAdapterPipeline", "none": "StableDiffusionPipeline"}.get(
        kept, "StableDiffusionControlNetPipeline"
    )
    public = calotype.DiffusionPipeline.from_pretrained(tmp_path)
    assert type(public) is getattr(calotype, name)
    assert type(diffusers.DiffusionPipeline.from_pretrained(tmp_path)).__name__ == name
    again = quiet(calotype.load(tmp_path, device="cpu"))
    control = {"control": [photo(seed=3)] * len(chosen)} if chosen else {}
    assert torch.equal(run(again, **control), run(pipe, **control))


def test_it_is_a_pipeline_like_any_other(pipes: dict[str, Any]) -> None:
    pipe = pipes["StableDiffusion"]
    assert isinstance(pipe, calotype.StableDiffusionPipeline)
    assert torch.equal(run(pipe), run(quiet(calotype.StableDiffusionPipeline.from_pipe(pipe))))
    inpainting = calotype.AutoPipelineForInpainting.from_pipe(pipe)
    assert type(inpainting) is calotype.StableDiffusionInpaintPipeline
    again = quiet(type(pipe).from_pipe(inpainting))
    assert again.unet is pipe.unet
    assert again.tasks == pipe.tasks
    assert {*pipe.components} == {*calotype.StableDiffusionPipeline.from_pipe(pipe).components}
    half = type(pipe)(**pipe.components).to(torch.bfloat16)
    assert half.dtype == torch.bfloat16
    half.to(torch.float32)
    assert torch.equal(
        pipe("a ball", 64, 64, 2, generator=seeded(), output_type="pt").images[0],
        run(pipe, prompt="a ball")[0],
    )
