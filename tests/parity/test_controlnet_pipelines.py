"""ControlNets in every task of Stable Diffusion and Stable Diffusion XL, against the reference."""

from __future__ import annotations

import inspect
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import calotype
from calotype.core.errors import InputError
from tests.parity.deviations import deviation
from tests.parity.packs import packed
from tests.parity.pipeline_runs import Case, compare, quiet, seeded
from tests.parity.test_image_pipelines import mask, photo
from tests.tiny import randomise, stable_diffusion_folder, stable_diffusion_xl_folder

TASKS = {"": {}, "Img2Img": {"image": True}, "Inpaint": {"image": True, "mask": True}}
FAMILIES = {"StableDiffusion": stable_diffusion_folder, "StableDiffusionXL": stable_diffusion_xl_folder}
SETTLED = {"clip_sample": False, "steps_offset": 1}
"""What the scheduler files of early checkpoints leave out; see deviations.py for what happens to them."""
NAMES = [f"{family}ControlNet{task}Pipeline" for family in FAMILIES for task in TASKS]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of both families, and two ControlNets for each."""
    root = tmp_path_factory.mktemp("models")
    found = {}
    for family, make in FAMILIES.items():
        found[family] = make(root / family, diffusers)
        unet = diffusers.UNet2DConditionModel.from_pretrained(found[family], subfolder="unet")
        for number in range(2):
            net = diffusers.ControlNetModel.from_unet(
                unet, conditioning_embedding_out_channels=(8, 8, 16, 16)
            )
            randomise(net, 20 + number).save_pretrained(root / f"{family}-control-{number}")
            found[f"{family}-{number}"] = root / f"{family}-control-{number}"
    return found


def family_of(name: str) -> str:
    return "StableDiffusionXL" if name.startswith("StableDiffusionXL") else "StableDiffusion"


@cache
def kept(library: Any, name: str, folder: Path, controls: tuple[Path, ...]) -> Any:
    nets = [library.ControlNetModel.from_pretrained(control) for control in controls]
    pipe = getattr(library, name).from_pretrained(folder, controlnet=nets if len(nets) > 1 else nets[0])
    return quiet(pipe)


def pair(name: str, folders: dict[str, Path], nets: int = 1) -> tuple[Any, Any]:
    """The two pipelines, each loaded once, with schedulers of their own."""
    pipes = []
    for library in (diffusers, calotype):
        family = family_of(name)
        controls = tuple(folders[f"{family}-{n}"] for n in range(nets))
        pipe = kept(library, name, folders[family], controls)
        pipe.scheduler = library.DDIMScheduler.from_config(pipe.scheduler.config, **SETTLED)
        pipes.append(pipe)
    return pipes[0], pipes[1]


def arguments(name: str, make: Case, nets: int = 1) -> Case:
    """The pictures that this task takes, under its own names, and the case's arguments."""
    task = name.removesuffix("Pipeline").partition("ControlNet")[2]
    control = [photo(seed=3), photo(seed=4)] if nets > 1 else photo(seed=3)

    def build() -> dict[str, Any]:
        found: dict[str, Any] = {
            "num_inference_steps": 4,
            "image" if task == "" else "control_image": control,
        }
        if task:
            found |= {"image": photo(), "strength": 0.8}
        if task == "Inpaint":
            found["mask_image"] = mask()
        given = make()
        if "control" in given:
            found["image" if task == "" else "control_image"] = given.pop("control")
        return found | given

    return build


CALLS: dict[str, Case] = {
    "plain": dict,
    "scale": lambda: {"controlnet_conditioning_scale": 0.3},
    "part of the way": lambda: {"control_guidance_start": 0.3, "control_guidance_end": 0.8},
    "guess": lambda: {"guess_mode": True},
    "guess without guidance": lambda: {"guess_mode": True, "guidance_scale": 1.0},
    "no guidance": lambda: {"guidance_scale": 1.0},
    "batch": lambda: {"prompt": ["a ball", "a cube"], "negative_prompt": ["night", "day"]},
    "a control for each": lambda: {
        "prompt": ["a ball", "a cube"],
        "control": [photo(seed=3), photo(seed=4)],
        "num_images_per_prompt": 2,
    },
    "generators": lambda: {"num_images_per_prompt": 2, "generator": [seeded(3), seeded(4)]},
    "tensor": lambda: {"control": torch.rand(1, 3, 64, 64, generator=seeded(5))},
    "latent output": lambda: {"output_type": "latent"},
    "pil": lambda: {"output_type": "pil"},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", packed(CALLS))
@pytest.mark.parametrize("name", NAMES)
def test_one_network(folders: dict[str, Path], name: str, case: str) -> None:
    compare(*pair(name, folders), arguments(name, packed(CALLS)[case]))


SEVERAL: dict[str, Case] = {
    "plain": dict,
    "a scale and a range each": lambda: {
        "controlnet_conditioning_scale": [0.4, 1.3],
        "control_guidance_start": [0.0, 0.5],
        "control_guidance_end": [0.6, 1.0],
    },
    "guess": lambda: {"guess_mode": True},
    "several pictures": lambda: {"num_images_per_prompt": 2},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", packed(SEVERAL))
@pytest.mark.parametrize("name", NAMES)
def test_two_networks(folders: dict[str, Path], name: str, case: str) -> None:
    compare(*pair(name, folders, nets=2), arguments(name, packed(SEVERAL)[case], nets=2))


ENDING = {
    "denoising_end": 0.6,
    "control_guidance_end": 0.5,
    "num_inference_steps": 8,
    "output_type": "latent",
}


@pytest.mark.filterwarnings("ignore")
def test_a_range_is_of_the_whole_way(folders: dict[str, Path]) -> None:
    """Also where the call goes only a part of it."""
    name = "StableDiffusionXLControlNetPipeline"
    compare(*pair(name, folders), arguments(name, lambda: dict(ENDING)))


@pytest.mark.filterwarnings("ignore")
def test_what_the_mask_keeps_has_the_level_that_the_way_ends_at(folders: dict[str, Path]) -> None:
    """In the reference it is clean there, in the midst of noise; what is new is the same."""
    name = "StableDiffusionXLControlNetInpaintPipeline"
    assert deviation(f"pipelines/{name}/denoising_end")
    make = arguments(name, lambda: dict(ENDING))
    theirs, ours = (pipe("a ball", **make(), generator=seeded()).images for pipe in pair(name, folders))
    new = torch.nn.functional.interpolate(
        torch.tensor(np.asarray(mask())[None, None] > 127).float(), size=(8, 8)
    )
    assert 0.1 < new.mean() < 0.9
    torch.testing.assert_close(ours * new, theirs * new, atol=1e-4, rtol=0)
    assert ((ours - theirs) * (1 - new)).std() > 0.1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in NAMES if "Inpaint" in name])
def test_cropping_to_the_mask_crops_the_control(folders: dict[str, Path], name: str) -> None:
    options = {"padding_mask_crop": 6, "output_type": "pil"}
    compare(*pair(name, folders), arguments(name, lambda: dict(options)))


def test_a_network_that_pools(folders: dict[str, Path]) -> None:
    """It sees the prompt's branch alone, as in guess mode."""
    pipes = pair(NAMES[0], folders)
    try:
        for pipe in pipes:
            pipe.controlnet.register_to_config(global_pool_conditions=True)
        compare(*pipes, arguments(NAMES[0], dict))
    finally:
        for pipe in pipes:
            pipe.controlnet.register_to_config(global_pool_conditions=False)


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


@pytest.mark.parametrize("nets", [1, 2])
def test_files_go_both_ways(folders: dict[str, Path], nets: int, tmp_path: Path) -> None:
    theirs, ours = pair(NAMES[0], folders, nets)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    compare(
        quiet(diffusers.StableDiffusionControlNetPipeline.from_pretrained(tmp_path / "ours")),
        quiet(calotype.DiffusionPipeline.from_pretrained(tmp_path / "theirs")),
        arguments(NAMES[0], dict, nets),
    )


def test_a_control_that_is_off_changes_nothing(folders: dict[str, Path]) -> None:
    _, pipe = pair(NAMES[0], folders)
    plain = calotype.StableDiffusionPipeline.from_pipe(pipe)
    options = {"num_inference_steps": 3, "output_type": "pt"}
    made = pipe(
        "a ball", image=photo(), controlnet_conditioning_scale=0.0, generator=seeded(), **options
    ).images
    expected = quiet(plain)("a ball", generator=seeded(), height=64, width=64, **options).images
    torch.testing.assert_close(made, expected)


REFUSED: dict[str, tuple[int, dict[str, Any], str]] = {
    "no picture": (1, {}, "image is not given"),
    "a range that is none": (
        1,
        {"image": photo(), "control_guidance_start": 0.8, "control_guidance_end": 0.2},
        "cannot steer from 0.8 to 0.2",
    ),
    "no picture at all": (1, {"image": "canny.png"}, "A picture must be"),
    "one picture for two": (2, {"image": photo()}, "There are 2 ControlNets"),
    "three scales for two": (
        2,
        {"image": [photo(), photo()], "controlnet_conditioning_scale": [1.0, 1.0, 1.0]},
        "3 values of controlnet_conditioning_scale for 2",
    ),
    "pictures do not match": (
        1,
        {"image": [photo()] * 3, "prompt": ["a", "b"]},
        "3 control pictures for 2 prompts",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_arguments_are_refused(folders: dict[str, Path], case: str) -> None:
    nets, given, words = REFUSED[case]
    _, pipe = pair(NAMES[0], folders, nets)
    with pytest.raises(InputError, match=words):
        pipe(**{"prompt": "a ball", "num_inference_steps": 2, **given})


def test_early_scheduler_settings_are_repaired_here_too(folders: dict[str, Path]) -> None:
    assert deviation("pipelines/StableDiffusionControlNetPipeline/clip_sample=True")
    seen = []
    for library in (diffusers, calotype):
        net = library.ControlNetModel.from_pretrained(folders["StableDiffusion-0"])
        scheduler = library.DDIMScheduler(clip_sample=True)
        pipe = library.StableDiffusionControlNetPipeline.from_pretrained(
            folders["StableDiffusion"], controlnet=net, scheduler=scheduler
        )
        seen.append(pipe.scheduler.config.clip_sample)
    assert seen == [True, False]


AUTO = {
    "AutoPipelineForText2Image": "",
    "AutoPipelineForImage2Image": "Img2Img",
    "AutoPipelineForInpainting": "Inpaint",
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", AUTO)
def test_auto_pipelines(folders: dict[str, Path], name: str, family: str) -> None:
    """With a ControlNet, from a pipeline that has one, and without it again."""
    for library in (diffusers, calotype):
        auto = getattr(library, name)
        net = library.ControlNetModel.from_pretrained(folders[f"{family}-0"])
        loaded = auto.from_pretrained(folders[family], controlnet=net)
        assert type(loaded).__name__ == f"{family}ControlNet{AUTO[name]}Pipeline"
        kept = library.AutoPipelineForInpainting.from_pipe(loaded)
        assert type(kept).__name__ == f"{family}ControlNetInpaintPipeline"
        assert kept.controlnet is loaded.controlnet
        plain = auto.from_pipe(loaded, controlnet=None)
        assert type(plain).__name__ == f"{family}{AUTO[name]}Pipeline"
        again = auto.from_pipe(plain, controlnet=net)
        assert type(again) is type(loaded)
        assert again.unet is loaded.unet
