"""T2I-Adapters with Stable Diffusion and Stable Diffusion XL, against the reference."""

from __future__ import annotations

import inspect
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import calotype
from calotype.core.errors import InputError
from tests.parity.packs import packed
from tests.parity.pipeline_runs import Case, compare, quiet, seeded
from tests.parity.test_image_pipelines import photo
from tests.tiny import randomise, stable_diffusion_folder, stable_diffusion_xl_folder

MAKERS = {"StableDiffusion": stable_diffusion_folder, "StableDiffusionXL": stable_diffusion_xl_folder}
NAMES = [f"{family}AdapterPipeline" for family in MAKERS]
ADAPTERS: dict[str, dict[str, Any]] = {
    "StableDiffusion": {"channels": (32, 64), "num_res_blocks": 1, "downscale_factor": 8},
    "StableDiffusionXL": {
        "channels": (32, 64, 64, 64),
        "num_res_blocks": 1,
        "downscale_factor": 16,
        "adapter_type": "full_adapter_xl",
    },
}
THREE_STAGES = {
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (2, 4, 4),
    "transformer_layers_per_block": (1, 1, 1),
}
"""What a full adapter for SDXL is made for."""
SETTLED: dict[str, Any] = {
    "num_inference_steps": 4,
    "guidance_scale": 2.0,
    "adapter_conditioning_scale": 0.03,
}
"""Features of random weights are large; at full strength they amplify the rounding of either library."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    found = {}
    for family, make in MAKERS.items():
        options = {"unet": THREE_STAGES} if family == "StableDiffusionXL" else {}
        found[family] = make(root / family, diffusers, **options)
        for number in range(2):
            adapter = randomise(diffusers.T2IAdapter(**ADAPTERS[family]), 30 + number)
            found[f"{family}-{number}"] = root / f"{family}-adapter-{number}"
            adapter.save_pretrained(found[f"{family}-{number}"])
    return found


@cache
def kept(library: Any, name: str, folder: Path, paths: tuple[Path, ...]) -> Any:
    adapters = [library.T2IAdapter.from_pretrained(path) for path in paths]
    adapter = library.MultiAdapter(adapters) if len(adapters) > 1 else adapters[0]
    return quiet(getattr(library, name).from_pretrained(folder, adapter=adapter))


def pair(name: str, folders: dict[str, Path], count: int = 1) -> tuple[Any, Any]:
    """The two pipelines, each loaded once, with schedulers of their own."""
    pipes = []
    family = name.removesuffix("AdapterPipeline")
    for library in (diffusers, calotype):
        pipe = kept(library, name, folders[family], tuple(folders[f"{family}-{n}"] for n in range(count)))
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
        pipes.append(pipe)
    return pipes[0], pipes[1]


CALLS: dict[str, Case] = {
    "plain": dict,
    "scale": lambda: {"adapter_conditioning_scale": 0.06},
    "several": lambda: {"num_images_per_prompt": 2, "generator": [seeded(3), seeded(4)]},
    "no guidance": lambda: {"guidance_scale": 1.0},
    "prompts": lambda: {"prompt": ["a ball", "a cube"], "image": [photo(seed=3), photo(seed=4)]},
    "tensor": lambda: {"image": torch.rand(1, 3, 64, 64, generator=seeded(5))},
    "odd size": lambda: {"image": photo(75, 69)},
    "latent output": lambda: {"output_type": "latent"},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", packed(CALLS))
@pytest.mark.parametrize("name", NAMES)
def test_one_adapter(folders: dict[str, Path], name: str, case: str) -> None:
    compare(*pair(name, folders), lambda: {**SETTLED, "image": photo(seed=3), **packed(CALLS)[case]()})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_two_adapters(folders: dict[str, Path], name: str) -> None:
    options = {"image": [photo(seed=3), photo(seed=4)], "adapter_conditioning_scale": [0.02, 0.05]}
    compare(*pair(name, folders, count=2), lambda: {**SETTLED, **options})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("factor", [0.0, 0.5])
def test_part_of_the_way(folders: dict[str, Path], factor: float) -> None:
    options = {"image": photo(seed=3), "adapter_conditioning_factor": factor}
    compare(*pair(NAMES[1], folders), lambda: {**SETTLED, **options})


@pytest.mark.filterwarnings("ignore")
def test_part_of_a_way_that_ends_early(folders: dict[str, Path]) -> None:
    options = {"image": photo(seed=3), "adapter_conditioning_factor": 0.5, "denoising_end": 0.6}
    steps = {"num_inference_steps": 8, "output_type": "latent"}
    compare(*pair(NAMES[1], folders), lambda: {**SETTLED, **options, **steps})


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


def test_each_prompt_keeps_its_own_picture(folders: dict[str, Path]) -> None:
    """With several pictures a prompt as well; the reference mixes up whose is whose."""
    _, pipe = pair(NAMES[0], folders)
    pictures = [photo(seed=3), photo(seed=4)]
    options = {"num_inference_steps": 2, "output_type": "pt"}
    sources = [torch.Generator().manual_seed(n) for n in range(4)]
    made = pipe(["a ball", "a cube"], pictures, num_images_per_prompt=2, generator=sources, **options).images
    for number in range(4):
        prompt, picture = ("a ball", "a cube")[number // 2], pictures[number // 2]
        alone = pipe(prompt, picture, generator=torch.Generator().manual_seed(number), **options).images
        torch.testing.assert_close(made[number], alone[0], atol=1e-4, rtol=0)


REFUSED: dict[str, tuple[int, dict[str, Any], str]] = {
    "no picture": (1, {}, "image is not given"),
    "one picture for two": (2, {"image": photo()}, "There are 2 adapters"),
    "three scales for two": (
        2,
        {"image": [photo(), photo()], "adapter_conditioning_scale": [1.0] * 3},
        "3 values of adapter_conditioning_scale for 2",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_arguments_are_refused(folders: dict[str, Path], case: str) -> None:
    count, given, words = REFUSED[case]
    _, pipe = pair(NAMES[0], folders, count)
    with pytest.raises(InputError, match=words):
        pipe(**{"prompt": "a ball", "num_inference_steps": 2, **given})
