"""Prompts that are pictures, in every task and with every kind of IP-Adapter, against the reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import calotype
from calotype.image_processor import IPAdapterMaskProcessor
from tests.parity import ip_adapter_parts as parts
from tests.parity.deviations import deviation
from tests.parity.packs import packed
from tests.parity.pipeline_runs import Case, compare, quiet, seeded
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


Pipes = dict[str, tuple[Any, Any]]
Pair = Callable[..., tuple[Any, Any]]


@pytest.fixture(scope="module")
def pipes() -> Pipes:
    """The reference's pipeline and ours by name, as they are needed."""
    return {}


@pytest.fixture
def pair(folders: dict[str, Path], pipes: Pipes) -> Pair:
    """Makes a pair by its name, the kinds of its adapters and their scale."""

    def made(name: str) -> tuple[Any, Any]:
        family, found = family_of(name), []
        for library in (diffusers, calotype):
            more = {}
            if "ControlNet" in name:
                more["controlnet"] = library.ControlNetModel.from_pretrained(folders[f"{family}-control"])
            pipe = quiet(getattr(library, name).from_pretrained(folders[family], **more))
            pipe.scheduler = library.DDIMScheduler.from_config(
                pipe.scheduler.config, clip_sample=False, steps_offset=1
            )
            found.append(pipe)
        return found[0], found[1]

    def with_adapters(
        name: str, *kinds: str, scale: Any = None, suffix: str = "safetensors"
    ) -> tuple[Any, Any]:
        both = pipes[name] if name in pipes else pipes.setdefault(name, made(name))
        both[0].unload_lora_weights()  # which the reference keeps; see deviations.py
        for pipe in both:
            pipe.load_ip_adapter(
                str(folders[f"{family_of(name)}-adapters"]),
                subfolder="models",
                weight_name=[f"{kind}.{suffix}" for kind in kinds],
            )
            if scale is not None:
                pipe.set_ip_adapter_scale(scale)
        return both

    return with_adapters


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


@pytest.mark.parametrize("name", NAMES)
def test_tasks(pair: Pair, name: str) -> None:
    compare(*pair(name, "plain", scale=0.7), arguments(name, dict))


EVERY = ["StableDiffusionPipeline", "StableDiffusionXLPipeline"]


def faces(rows: int, pictures: int = 1, seed: int = 8) -> torch.Tensor:
    """Embeddings of faces: (rows, pictures, channels)."""
    return torch.randn(rows, pictures, parts.FACE, generator=seeded(seed))


@pytest.mark.parametrize("guidance", [5.0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", EVERY)
def test_kinds(pair: Pair, name: str, kind: str, guidance: float) -> None:
    pipes = pair(name, kind, scale=0.7)
    more: dict[str, Any] = {}
    if "face" in kind and kind != "full face":
        more = {"ip_adapter_image": None, "ip_adapter_image_embeds": [faces(2 if guidance > 1 else 1)]}
    if kind == "face plus":
        for pipe in pipes:
            states = pipe.prepare_ip_adapter_image_embeds([[photo(seed=7)]], None, "cpu", 1, guidance > 1)[0]
            pipe.unet.encoder_hid_proj.image_projection_layers[0].clip_embeds = states
    compare(*pipes, arguments(name, lambda: {"guidance_scale": guidance, **more}))


def test_a_face_and_what_its_picture_adds(pair: Pair) -> None:
    pipes = pair(EVERY[0], "face plus")
    for pipe in pipes:
        layer = pipe.unet.encoder_hid_proj.image_projection_layers[0]
        layer.clip_embeds = pipe.prepare_ip_adapter_image_embeds([[photo(seed=7)] * 2], None, "cpu", 3, True)[
            0
        ]
        layer.shortcut, layer.shortcut_scale = True, 0.6
    more = {"ip_adapter_image": None, "ip_adapter_image_embeds": [faces(2, 2)], "num_images_per_prompt": 3}
    compare(*pipes, arguments(EVERY[0], lambda: dict(more)))


STYLE = {"up": {"block_1": [0.0, 1.0]}}
LAYOUT = {"down": {"block_0": 0.8}, "mid": 0.3}
CALLS: dict[str, Case] = {
    "no guidance": lambda: {"guidance_scale": 1.0},
    "pictures a prompt": lambda: {"num_images_per_prompt": 2},
    "batch": lambda: {"prompt": ["a ball", "a cube"], "negative_prompt": ["night", "day"]},
    "several pictures": lambda: {"ip_adapter_image": [[photo(seed=7), photo(seed=8)]]},
    "array": lambda: {"ip_adapter_image": np.asarray(photo(seed=7))},
    "tensor": lambda: {"ip_adapter_image": torch.rand(1, 3, 32, 32, generator=seeded(5))},
    "embeds": lambda: {
        "ip_adapter_image": None,
        "ip_adapter_image_embeds": [torch.randn(2, 3, parts.EMBED, generator=seeded(5))],
    },
    "masks": lambda: {
        "ip_adapter_image": [[photo(seed=7), photo(seed=8)]],
        "cross_attention_kwargs": {"ip_adapter_masks": [masks(2)]},
    },
    "a wide mask": lambda: {
        "height": 64, "width": 96, "cross_attention_kwargs": {"ip_adapter_masks": [masks(1, 64, 96)]},
    },
}  # fmt: skip


def masks(pictures: int, height: int = 64, width: int = 64) -> torch.Tensor:
    """Masks for several pictures of an adapter: (1, pictures, height, width)."""
    given = [mask().rotate(90 * turn) for turn in range(pictures)]
    return IPAdapterMaskProcessor().preprocess(given, height=height, width=width).transpose(0, 1)


@pytest.mark.parametrize("case", packed(CALLS))
@pytest.mark.parametrize("name", EVERY)
def test_calls(pair: Pair, name: str, case: str) -> None:
    compare(*pair(name, "plain"), arguments(name, packed(CALLS)[case]))


SCALES: dict[str, Any] = {
    "one for all": 0.5,
    "one each": [0.3, 0.9],
    "none of one": [0.0, 0.9],
    "by block": LAYOUT,
    "by block for one": [STYLE, 0.4],
    "by block for each": [STYLE, LAYOUT],
}


@pytest.mark.parametrize("case", SCALES)
def test_two_adapters(pair: Pair, case: str) -> None:
    scale = SCALES[case]
    ours_too = scale if isinstance(scale, list) else [scale, scale]  # the reference takes a list alone
    more = {"ip_adapter_image": [photo(seed=7), [photo(seed=8), photo(seed=9)]]}
    theirs, ours = pair(EVERY[0], "plain", "plus")
    theirs.set_ip_adapter_scale(ours_too)
    ours.set_ip_adapter_scale(scale)
    compare(theirs, ours, arguments(EVERY[0], lambda: dict(more)))


def test_masks_for_two_adapters(pair: Pair) -> None:
    more = {
        "ip_adapter_image": [photo(seed=7), [photo(seed=8), photo(seed=9)]],
        "cross_attention_kwargs": {"ip_adapter_masks": [masks(1), masks(2)]},
    }
    pipes = pair(EVERY[0], "plain", "plus", scale=[0.6, [0.9, 0.3]])
    compare(*pipes, arguments(EVERY[0], lambda: dict(more)))


def test_pictures_as_the_reference_encodes_them(pair: Pair) -> None:
    """``prepare_ip_adapter_image_embeds`` and ``encode_image``, which scripts call to encode once."""
    theirs, ours = pair(EVERY[0], "plain", "plus")
    images = [photo(seed=7), [photo(seed=8), photo(seed=9)]]
    for guided in (True, False):
        expected, found = (
            pipe.prepare_ip_adapter_image_embeds(images, None, "cpu", 2, guided) for pipe in (theirs, ours)
        )
        assert [one.shape for one in found] == [one.shape for one in expected]
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    for states in (None, True):
        expected, found = (pipe.encode_image(photo(), "cpu", 2, states) for pipe in (theirs, ours))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_masks_as_the_reference_makes_them() -> None:
    given = [mask(), mask().rotate(90)]
    theirs, ours = (library.image_processor.IPAdapterMaskProcessor() for library in (diffusers, calotype))
    expected = theirs.preprocess(given, height=40, width=72)
    assert torch.equal(ours.preprocess(given, height=40, width=72), expected)
    for queries in (45, 90, 180, 12, 44):
        torch.testing.assert_close(
            ours.downsample(expected[:1, 0], 3, queries, 4), theirs.downsample(expected[:1, 0], 3, queries, 4)
        )


def test_one_scale_for_all(pair: Pair) -> None:
    assert deviation("pipelines/StableDiffusionPipeline/set_ip_adapter_scale")
    theirs, ours = pair(EVERY[0], "plain", "plus")
    with pytest.raises(ValueError, match="Cannot assign 1"):
        theirs.set_ip_adapter_scale(0.5)
    ours.set_ip_adapter_scale(0.5)


def test_what_came_with_an_adapter_goes_with_it(pair: Pair) -> None:
    assert deviation("pipelines/StableDiffusionPipeline/unload_ip_adapter")
    theirs, ours = pair(EVERY[0], "face")
    for pipe in (theirs, ours):
        pipe.unload_ip_adapter()
    assert theirs.get_list_adapters() == {"unet": ["faceid_0"]}
    assert ours.get_list_adapters() == {}
