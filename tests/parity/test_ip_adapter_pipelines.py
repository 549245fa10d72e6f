"""Prompts that are pictures in the pipelines with other guidance, few steps, editing or T2I-Adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest

import calotype
from tests.parity import ip_adapter_parts as parts
from tests.parity.pipeline_runs import compare, quiet
from tests.parity.test_adapter_pipelines import ADAPTERS, SETTLED, THREE_STAGES
from tests.parity.test_image_pipelines import photo
from tests.tiny import SCHEDULER, randomise, stable_diffusion_parts, stable_diffusion_xl_parts

pytestmark = pytest.mark.filterwarnings("ignore")

BETAS = {key: value for key, value in SCHEDULER.items() if key.startswith("beta")}
CALLS: dict[str, dict[str, Any]] = {
    "StableDiffusionPAGPipeline": {"pag_scale": 2.0, "num_images_per_prompt": 2},
    "StableDiffusionXLPAGImg2ImgPipeline": {"image": True, "pag_scale": 2.0, "strength": 0.8},
    "LatentConsistencyModelPipeline": {"guidance_scale": 4.0},
    "StableDiffusionInstructPix2PixPipeline": {"image": True, "image_guidance_scale": 1.4},
    "StableDiffusionXLAdapterPipeline": {"image": True, **SETTLED},
}


def pipeline(library: Any, name: str, folder: Path) -> Any:
    """A pipeline whose weights are the same in both libraries."""
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    make = stable_diffusion_xl_parts if "XL" in name else stable_diffusion_parts
    unet: dict[str, Any] = {}
    if "Pix2Pix" in name:
        unet["in_channels"] = 8
    if "Consistency" in name:
        unet["time_cond_proj_dim"] = 32
    if "XLAdapter" in name:
        unet |= THREE_STAGES
    made = make(library, folder, unet=unet)
    made["image_encoder"] = CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder").eval()
    made["feature_extractor"] = CLIPImageProcessor(size=32, crop_size=32)
    if "Consistency" in name:
        made["scheduler"] = library.LCMScheduler(**BETAS)
    else:
        made["scheduler"] = library.DDIMScheduler(**SCHEDULER, clip_sample=False)
    if "XLAdapter" in name:
        made["adapter"] = randomise(library.T2IAdapter(**ADAPTERS["StableDiffusionXL"]), 30)
    if "XL" not in name:
        made["requires_safety_checker"] = False
    return quiet(getattr(library, name)(**made))


@pytest.mark.parametrize("name", CALLS)
def test_pipelines(tmp_path: Path, name: str) -> None:
    parts.image_encoder_folder(tmp_path / "image_encoder")
    theirs, ours = (pipeline(library, name, tmp_path) for library in (diffusers, calotype))
    adapters = [parts.adapter(theirs.unet, "plain", 1), parts.adapter(theirs.unet, "plus", 2)]
    for pipe in (theirs, ours):
        pipe.load_ip_adapter(adapters, subfolder=["", ""], weight_name=["", ""], image_encoder_folder=None)
        pipe.set_ip_adapter_scale([0.6, 0.4])

    def make() -> dict[str, Any]:
        given = {"ip_adapter_image": [photo(seed=7), [photo(seed=8), photo(seed=9)]], **CALLS[name]}
        return given | ({"image": photo(seed=3)} if "image" in given else {})

    compare(theirs, ours, make)
