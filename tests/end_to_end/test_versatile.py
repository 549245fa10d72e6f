"""What `calotype.load` returns: tasks that follow from the inputs, controls that add up, in the public classes' bits."""

from __future__ import annotations

from collections.abc import Callable
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
from tests.tiny import randomise, stable_diffusion_folder, stable_diffusion_xl_folder

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
CONTROLS = ("none", "one network", "two networks", "adapter", "two adapters")


@pytest.mark.parametrize("controls", CONTROLS)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_bits_are_those_of_the_public_class(
    pipes: dict[str, Any], models: dict[str, list[Any]], family: str, task: str, controls: str
) -> None:
    """All defaults included; an adapter is compared in the one task for which there is a class."""
    end, given = TASKS[task]
    pictures = [photo(seed=3), photo(seed=4)]
    number = 2 if "two" in controls else 1
    nets, adapters = models[family][:number], models[family][2 : 2 + number]
    mine: list[Any] = []
    if controls == "none":
        public = getattr(calotype, f"{family}{end}Pipeline").from_pipe(pipes[family])
        theirs: dict[str, Any] = {}
    elif "network" in controls:
        name = "image" if task == "text-to-image" else "control_image"
        theirs = {name: pictures if number == 2 else pictures[0]}
        cls = getattr(calotype, f"{family}ControlNet{end}Pipeline")
        public = cls.from_pipe(pipes[family], controlnet=nets if number == 2 else nets[0])
        mine = [calotype.control(*each) for each in zip(nets, pictures, strict=False)]
    elif task != "text-to-image":
        return
    else:
        scale = {"adapter_conditioning_scale": [0.03] * 2 if number == 2 else 0.03}
        theirs = {"image": pictures if number == 2 else pictures[0], **scale}
        cls = getattr(calotype, f"{family}AdapterPipeline")
        public = cls.from_pipe(pipes[family], adapter=adapters if number == 2 else adapters[0])
        mine = [calotype.control(*each, scale=0.03) for each in zip(adapters, pictures, strict=False)]
    expected = run(quiet(public), **given(), **theirs)
    found = run(pipes[family], **given(), **({"control": mine} if mine else {}))
    assert torch.equal(found, expected)
