"""ControlNet Union in every task of Stable Diffusion XL, against the reference."""

from __future__ import annotations

import inspect
from functools import cache, partial
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.controlnets.multicontrolnet_union import MultiControlNetUnionModel

import calotype
from calotype.core.errors import InputError, UnknownClassError
from tests.parity.deviations import deviation
from tests.parity.packs import packed
from tests.parity.pipeline_runs import Case, compare, quiet, seeded
from tests.parity.test_image_pipelines import mask, photo
from tests.tiny import randomise, stable_diffusion_folder, stable_diffusion_xl_folder

TASKS = ("", "Img2Img", "Inpaint")
NAMES = [f"StableDiffusionXLControlNetUnion{task}Pipeline" for task in TASKS]
TEXT = NAMES[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, with two ControlNet Unions beside it."""
    path = stable_diffusion_xl_folder(tmp_path_factory.mktemp("models") / "xl", diffusers)
    unet = diffusers.UNet2DConditionModel.from_pretrained(path, subfolder="unet")
    for number in range(2):
        copied = diffusers.ControlNetUnionModel.from_unet(
            unet, conditioning_embedding_out_channels=(8, 8, 16, 16)
        )
        net = diffusers.ControlNetUnionModel.from_config(
            copied.config, num_trans_channel=32, num_proj_channel=32
        )
        randomise(net, 20 + number).save_pretrained(path.parent / f"union-{number}")
    return path


def unions(library: Any, folder: Path, count: int) -> Any:
    nets = [library.ControlNetUnionModel.from_pretrained(folder.parent / f"union-{n}") for n in range(count)]
    if count == 1:
        return nets[0]
    # the reference's class is no public name, and its pipelines do not make it of a list
    return MultiControlNetUnionModel(nets) if library is diffusers else nets


@cache
def pair(name: str, folder: Path, nets: int = 1) -> tuple[Any, Any]:
    pipes = []
    for library in (diffusers, calotype):
        pipe = getattr(library, name).from_pretrained(folder, controlnet=unions(library, folder, nets))
        pipe.scheduler = library.DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
        pipes.append(quiet(pipe))
    return pipes[0], pipes[1]


def arguments(name: str, make: Case, nets: int = 1) -> Case:
    """The pictures that this task takes, and the case's arguments."""

    def build() -> dict[str, Any]:
        found: dict[str, Any] = {"num_inference_steps": 4, "control_image": photo(seed=3), "control_mode": 2}
        if nets > 1:
            found |= {"control_image": [photo(seed=3), photo(seed=4)], "control_mode": [2, 5]}
        if "Img2Img" in name or "Inpaint" in name:
            found |= {"image": photo(), "strength": 0.8}
        if "Inpaint" in name:
            found["mask_image"] = mask()
        return found | make()

    return build


def two(**more: Any) -> dict[str, Any]:
    """Two pictures of two kinds for one network."""
    return {"control_image": [photo(seed=3), photo(seed=4)], "control_mode": [1, 4], **more}


CALLS: dict[str, Case] = {
    "one": dict,
    "scale": lambda: {"controlnet_conditioning_scale": 0.3},
    "part of the way": lambda: {"control_guidance_start": 0.3, "control_guidance_end": 0.8},
    "two kinds": two,
    "a scale and a range each": lambda: two(
        controlnet_conditioning_scale=[0.4, 1.3],
        control_guidance_start=[0.0, 0.5],
        control_guidance_end=[0.6, 1.0],
    ),
    "guess without guidance": lambda: two(guess_mode=True, guidance_scale=1.0),
    "batch": lambda: {
        "prompt": ["a ball", "a cube"],
        "negative_prompt": ["night", "day"],
        "num_images_per_prompt": 2,
    },
    "a control for each": lambda: {
        "prompt": ["a ball", "a cube"],
        "control_image": [[photo(seed=3), photo(seed=4)]],
        "control_mode": [3],
    },
    "generators": lambda: {"num_images_per_prompt": 2, "generator": [seeded(3), seeded(4)]},
    "tensor": lambda: {"control_image": [torch.rand(1, 3, 64, 64, generator=seeded(5))]},
    "pil": lambda: {"output_type": "pil"},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", packed(CALLS))
@pytest.mark.parametrize("name", NAMES)
def test_one_network(folder: Path, name: str, case: str) -> None:
    compare(*pair(name, folder), arguments(name, packed(CALLS)[case]))


SEVERAL: dict[str, Case] = {
    "plain": dict,
    "a scale and a range each": lambda: {
        "controlnet_conditioning_scale": [0.4, 1.3],
        "control_guidance_start": [0.0, 0.5],
        "control_guidance_end": [0.6, 1.0],
    },
    "both off at the end": lambda: {"control_guidance_end": 0.5},
    "several pictures": lambda: {"num_images_per_prompt": 2},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", packed(SEVERAL))
@pytest.mark.parametrize("name", NAMES)
def test_two_networks(folder: Path, name: str, case: str) -> None:
    compare(*pair(name, folder, nets=2), arguments(name, packed(SEVERAL)[case], nets=2))


@pytest.mark.filterwarnings("ignore")
def test_cropping_to_the_mask_crops_the_controls(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert deviation(f"pipelines/{NAMES[2]}/padding_mask_crop")
    options = {"padding_mask_crop": 6, "output_type": "pil"}
    theirs, ours = pair(NAMES[2], folder)
    make = arguments(NAMES[2], lambda: two(**options))
    with pytest.raises(ValueError, match="should be a PIL image when inpainting mask crop"):
        theirs("a ball", **make())
    monkeypatch.setattr(theirs, "check_inputs", lambda *given, **named: None)
    compare(theirs, ours, make)


def test_guessing_sees_the_prompts_branch_alone(folder: Path) -> None:
    """The reference fails: it tells the network the kinds for both branches, and the latents for one."""
    assert deviation("pipelines/StableDiffusionXLControlNetUnionPipeline/guess_mode=True")
    theirs, ours = pair(TEXT, folder)
    make = arguments(TEXT, lambda: two(guess_mode=True, prompt="a ball", output_type="pt"))
    with pytest.raises(RuntimeError):
        theirs(**make())
    seen = []
    hook = ours.controlnet.register_forward_pre_hook(lambda net, given: seen.append(len(given[0])))
    found = ours(**make(), generator=seeded()).images
    hook.remove()
    assert seen == [1] * 4
    # so it is with a network that pools, which guesses whatever is asked for
    ours.controlnet.register_to_config(global_pool_conditions=True)
    pooled = ours(**{**make(), "guess_mode": False}, generator=seeded()).images
    ours.controlnet.register_to_config(global_pool_conditions=False)
    assert (found - pooled).abs().max() > 1e-3
    assert torch.isfinite(pooled).all()


def test_several_pictures_for_each_of_several_networks(folder: Path) -> None:
    """A network's share is a list; the same network twice adds what it finds in its pictures."""
    _, pipe = pair(TEXT, folder, nets=2)
    options = {"prompt": "a ball", "num_inference_steps": 2, "output_type": "pt"}
    single, group = [], []
    pictures = [photo(seed=3), photo(seed=4), photo(seed=5)]
    for shown, kinds in (([pictures[0], pictures[1]], [0, 3]), ([pictures[1], pictures[0]], [3, 0])):
        entries = {"control_image": [shown, pictures[2]], "control_mode": [kinds, 1]}
        group.append(pipe(**options, **entries, generator=seeded()).images)
        entries = {"control_image": [shown[:1], pictures[2]], "control_mode": [kinds[:1], 1]}
        single.append(pipe(**options, **entries, generator=seeded()).images)
    torch.testing.assert_close(group[0], group[1], atol=1e-4, rtol=0)
    assert (group[0] - single[0]).abs().max() > 1e-3
    plain = {"control_image": [pictures[0], pictures[2]], "control_mode": [0, 1]}
    torch.testing.assert_close(pipe(**options, **plain, generator=seeded()).images, single[0])


def blackened(
    seen: list[Any], pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]
) -> dict[str, Any]:
    seen.append([tuple(one.shape) for one in tensors["control_image"]])
    return {"control_image": [torch.zeros_like(one) for one in tensors["control_image"]]}


def test_a_callback_sees_and_replaces_the_pictures(folder: Path) -> None:
    results = []
    for pipe in pair(NAMES[1], folder):
        shapes: list[Any] = []
        make = arguments(NAMES[1], partial(two, prompt="a ball", output_type="pt"))
        more = {
            "callback_on_step_end": partial(blackened, shapes),
            "callback_on_step_end_tensor_inputs": ["control_image"],
        }
        results.append((pipe(**make(), **more, generator=seeded()).images, shapes))
    assert results[0][1] == results[1][1]
    torch.testing.assert_close(results[1][0], results[0][0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", ["__init__", "__call__"])
@pytest.mark.parametrize("name", NAMES)
def test_signature(name: str, method: str) -> None:
    def shape(library: Any) -> list[tuple[Any, ...]]:
        parameters = inspect.signature(getattr(getattr(library, name), method)).parameters.values()
        return [
            (p.name, p.kind, tuple(p.default) if isinstance(p.default, list) else p.default)
            for p in parameters
        ]

    assert shape(calotype) == shape(diffusers)


def test_files_go_both_ways(folder: Path, tmp_path: Path) -> None:
    theirs, ours = pair(TEXT, folder)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    compare(
        quiet(diffusers.StableDiffusionXLControlNetUnionPipeline.from_pretrained(tmp_path / "ours")),
        quiet(calotype.DiffusionPipeline.from_pretrained(tmp_path / "theirs")),
        arguments(TEXT, dict),
    )


def test_files_of_several(folder: Path, tmp_path: Path) -> None:
    _, ours = pair(TEXT, folder, nets=2)
    ours.save_pretrained(tmp_path)
    make = arguments(TEXT, lambda: {"prompt": "a ball", "output_type": "pt"}, nets=2)
    loaded = quiet(calotype.AutoPipelineForText2Image.from_pretrained(tmp_path))
    assert type(loaded) is type(ours)
    found, expected = (pipe(**make(), generator=seeded()).images for pipe in (loaded, ours))
    torch.testing.assert_close(found, expected)


REFUSED: dict[str, tuple[int, dict[str, Any], str]] = {
    "no picture": (1, {"control_mode": 0}, "control_image is not given"),
    "no kind": (1, {"control_image": photo()}, "control_mode is not given"),
    "no such kind": (1, {"control_image": photo(), "control_mode": 6}, "control_mode has 6; .* 0 to 5"),
    "a name as kind": (1, {"control_image": photo(), "control_mode": "depth"}, "control_mode has 'depth'"),
    "kinds do not match": (
        1,
        {"control_image": photo(), "control_mode": [0, 1]},
        "1 pictures .* and 2 kinds",
    ),
    "scales do not match": (
        1,
        {"control_image": photo(), "control_mode": 0, "controlnet_conditioning_scale": [1.0, 1.0]},
        "2 values of controlnet_conditioning_scale for 1 pictures",
    ),
    "no picture at all": (1, {"control_image": "canny.png", "control_mode": 0}, "A picture must be"),
    "one entry for two": (2, {"control_image": photo(), "control_mode": 0}, "There are 2 ControlNets"),
    "a network's kinds do not match": (
        2,
        {"control_image": [photo(), [photo()]], "control_mode": [0, [1, 2]]},
        "ControlNet 1 is given 1 pictures and 2 kinds",
    ),
    "a range that is none": (
        1,
        {
            "control_image": photo(),
            "control_mode": 0,
            "control_guidance_start": 0.9,
            "control_guidance_end": 0.1,
        },
        "cannot steer from 0.9 to 0.1",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_arguments_are_refused(folder: Path, case: str) -> None:
    nets, given, words = REFUSED[case]
    _, pipe = pair(TEXT, folder, nets)
    with pytest.raises(InputError, match=words):
        pipe(**{"prompt": "a ball", "num_inference_steps": 2, **given})


def test_another_controlnet_is_refused(folder: Path) -> None:
    _, pipe = pair(TEXT, folder)
    net = calotype.ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 8, 16, 16))
    plain = calotype.StableDiffusionXLControlNetUnionPipeline(**{**pipe.components, "controlnet": net})
    with pytest.raises(InputError, match="takes a ControlNetUnionModel"):
        plain("a ball", control_image=photo(), control_mode=0)
    other = calotype.StableDiffusionXLControlNetPipeline(**pipe.components)
    with pytest.raises(InputError, match="needs the pipeline with Union in its name"):
        other("a ball", image=photo())
    with pytest.raises(InputError, match="controlnet is a list of ControlNetModel, ControlNetUnionModel"):
        calotype.StableDiffusionXLControlNetUnionPipeline(
            **{**pipe.components, "controlnet": [net, pipe.controlnet]}
        )


AUTO = dict(zip(NAMES, ("Text2Image", "Image2Image", "Inpainting"), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_auto_pipelines_choose_by_the_controlnet(folder: Path, name: str) -> None:
    """Loading, and from a pipeline with one; from one without, and leaving it out, the reference finds no class."""
    for library in (diffusers, calotype):
        auto = getattr(library, f"AutoPipelineFor{AUTO[name]}")
        net = unions(library, folder, 1)
        loaded = auto.from_pretrained(folder, controlnet=net)
        assert type(loaded).__name__ == name
        kept = library.AutoPipelineForInpainting.from_pipe(loaded)
        assert type(kept).__name__ == NAMES[2]
        assert kept.controlnet is net
    assert deviation(f"pipelines/{name}/from_pipe;*")
    plain = auto.from_pipe(loaded, controlnet=None)
    assert type(plain).__name__ == name.replace("ControlNetUnion", "")
    again = auto.from_pipe(plain, controlnet=net)
    assert type(again) is type(loaded)
    assert again.unet is loaded.unet


def test_auto_pipelines_take_several(folder: Path) -> None:
    nets = unions(calotype, folder, 2)
    loaded = calotype.AutoPipelineForText2Image.from_pretrained(folder, controlnet=nets)
    assert type(loaded).__name__ == TEXT
    assert type(loaded.controlnet).__name__ == "MultiControlNetUnionModel"
    assert type(calotype.AutoPipelineForImage2Image.from_pipe(loaded)).__name__ == NAMES[1]


def test_a_family_without_it_says_so(folder: Path, tmp_path: Path) -> None:
    plain = stable_diffusion_folder(tmp_path / "sd", calotype)
    with pytest.raises(UnknownClassError, match="no pipeline for text-to-image with controlnet-union"):
        calotype.AutoPipelineForText2Image.from_pretrained(plain, controlnet=unions(calotype, folder, 1))
