"""Prompts that are pictures, in every task and with every kind of IP-Adapter, against the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest

import calotype
from tests.parity import ip_adapter_parts as parts
from tests.parity.pipeline_runs import Case, compare, quiet
from tests.parity.test_image_pipelines import mask, photo
from tests.tiny import randomise, stable_diffusion_folder, stable_diffusion_xl_folder

FAMILIES = {"StableDiffusion": stable_diffusion_folder, "StableDiffusionXL": stable_diffusion_xl_folder}
KINDS = ("plain", "plus", "full face", "face", "face plus")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint and a ControlNet of both families, and a folder of adapters for each."""
    root = tmp_path_factory.mktemp("models")
    found = {}
    for family, make in FAMILIES.items():
        found[family] = make(root / family, diffusers)
        unet = diffusers.UNet2DConditionModel.from_pretrained(found[family], subfolder="unet")
        found[f"{family}-adapters"] = root / f"{family}-adapters"
        models = found[f"{family}-adapters"] / "models"
        parts.image_encoder_folder(models / "image_encoder")
        for seed, kind in enumerate(KINDS):
            parts.save(parts.adapter(unet, kind, seed), models / f"{kind}.safetensors")
        net = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 16, 16))
        found[f"{family}-control"] = root / f"{family}-control"
        randomise(net, 20).save_pretrained(found[f"{family}-control"])
    return found


def family_of(name: str) -> str:
    return "StableDiffusionXL" if name.startswith("StableDiffusionXL") else "StableDiffusion"


def pair(name: str, folders: dict[str, Path], *kinds: str, scale: Any = None) -> tuple[Any, Any]:
    """The reference's pipeline and ours, with adapters."""
    pipes = []
    family = family_of(name)
    for library in (diffusers, calotype):
        more = {}
        if "ControlNet" in name:
            more["controlnet"] = library.ControlNetModel.from_pretrained(folders[f"{family}-control"])
        pipe = quiet(getattr(library, name).from_pretrained(folders[family], **more))
        pipe.scheduler = library.DDIMScheduler.from_config(
            pipe.scheduler.config, clip_sample=False, steps_offset=1
        )
        pipe.load_ip_adapter(
            str(folders[f"{family}-adapters"]),
            subfolder="models",
            weight_name=[f"{kind}.safetensors" for kind in kinds],
        )
        if scale is not None:
            pipe.set_ip_adapter_scale(scale)
        pipes.append(pipe)
    return pipes[0], pipes[1]


NAMES = [
    f"{family}{kind}Pipeline"
    for family in FAMILIES
    for kind in ("", "Img2Img", "Inpaint", "ControlNet", "ControlNetImg2Img", "ControlNetInpaint")
]


def arguments(name: str, make: Case) -> Case:
    """The pictures that this task takes, under its own names, and the case's arguments."""
    task = name.removesuffix("Pipeline").removeprefix("StableDiffusion").removeprefix("XL")

    def build() -> dict[str, Any]:
        found: dict[str, Any] = {"ip_adapter_image": photo(seed=7)}
        if "ControlNet" in task:
            found["image" if task == "ControlNet" else "control_image"] = photo(seed=3)
        if "2Img" in task or "Inpaint" in task:
            found |= {"image": photo(), "strength": 0.8, "num_inference_steps": 4}
        if "Inpaint" in task:
            found["mask_image"] = mask()
        return found | make()

    return build


@pytest.mark.parametrize("scale", [1.0, 0.4])
@pytest.mark.parametrize("name", NAMES)
def test_tasks(folders: dict[str, Path], name: str, scale: float) -> None:
    compare(*pair(name, folders, "plain", scale=scale), arguments(name, dict))
