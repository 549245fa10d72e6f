"""The reference reads the files that the inverse map writes as the same networks: the map is the original's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import calotype
from tests.tiny import stable_diffusion_parts, stable_diffusion_xl_parts
from tests.unit.test_single_file import KINDS, saved, whole

NETWORKS = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}


@pytest.mark.parametrize("kind", ["sd1", "sd1-inpainting", "sd2", "sdxl", "sdxl-refiner"])
def test_the_reference_finds_the_same_networks(kind: str, tmp_path: Path) -> None:
    class_name, unet = KINDS[kind]
    if "xl" in kind:
        parts = stable_diffusion_xl_parts(calotype, tmp_path, refiner="refiner" in kind, unet=unet)
    else:
        parts = stable_diffusion_parts(calotype, tmp_path, unet=unet)
    getattr(calotype, class_name)(**parts).save_pretrained(tmp_path / "folder")
    file = saved(whole(parts, kind), tmp_path / "one.safetensors")
    for name, network in NETWORKS.items():
        place: dict[str, Any] = {"config": str(tmp_path / "folder"), "subfolder": name}
        theirs = getattr(diffusers, network).from_single_file(str(file), **place).state_dict()
        ours = getattr(calotype, network).from_single_file(file, **place).state_dict()
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(theirs[key], ours[key]) for key in ours), name
