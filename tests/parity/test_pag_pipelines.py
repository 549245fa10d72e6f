"""Perturbed-attention guidance in every pipeline that has it, against the reference."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import calotype
from calotype.core.errors import InputError
from tests.parity.deviations import deviation
from tests.parity.packs import packed
from tests.parity.pipeline_runs import Case, compare, quiet, seeded
from tests.parity.test_image_pipelines import mask, photo
from tests.tiny import randomise, stable_diffusion_folder, stable_diffusion_xl_folder

SD = [f"StableDiffusion{middle}Pipeline" for middle in ("PAG", "PAGImg2Img", "PAGInpaint")]
SD += [f"StableDiffusionControlNet{middle}Pipeline" for middle in ("PAG", "PAGInpaint")]
XL = [f"StableDiffusionXL{middle}Pipeline" for middle in ("PAG", "PAGImg2Img", "PAGInpaint")]
XL += [f"StableDiffusionXLControlNet{middle}Pipeline" for middle in ("PAG", "PAGImg2Img")]
NAMES = SD + XL
FAMILIES = {"StableDiffusion": stable_diffusion_folder, "StableDiffusionXL": stable_diffusion_xl_folder}
SETTLED = {"clip_sample": False, "steps_offset": 1}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of both families, and a ControlNet for each."""
    root = tmp_path_factory.mktemp("models")
    found = {}
    for family, make in FAMILIES.items():
        found[family] = make(root / family, diffusers)
        unet = diffusers.UNet2DConditionModel.from_pretrained(found[family], subfolder="unet")
        net = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 16, 16))
        randomise(net, 20).save_pretrained(root / f"{family}-control")
        found[f"{family}-control"] = root / f"{family}-control"
    return found


def family_of(name: str) -> str:
    return "StableDiffusionXL" if name.startswith("StableDiffusionXL") else "StableDiffusion"


def load(library: Any, name: str, folders: dict[str, Path], **options: Any) -> Any:
    family = family_of(name)
    if "ControlNet" in name:
        options["controlnet"] = library.ControlNetModel.from_pretrained(folders[f"{family}-control"])
    pipe = getattr(library, name).from_pretrained(folders[family], **options)
    pipe.scheduler = library.DDIMScheduler.from_config(pipe.scheduler.config, **SETTLED)
    return quiet(pipe)


@pytest.fixture(scope="module")
def pairs(folders: dict[str, Path]) -> dict[str, tuple[Any, Any]]:
    """The reference's pipeline and ours by name, with the components shared among each library's."""
    return {name: (load(diffusers, name, folders), load(calotype, name, folders)) for name in NAMES}


def arguments(name: str, make: Case) -> Case:
    """The pictures that this task takes, under its own names, and the case's arguments."""
    from_image = "Img2Img" in name or "Inpaint" in name

    def build() -> dict[str, Any]:
        found: dict[str, Any] = {"num_inference_steps": 3}
        if from_image:
            found |= {"image": photo(), "strength": 0.8}
        if "ControlNet" in name:
            found["control_image" if from_image else "image"] = photo(seed=3)
        if "Inpaint" in name:
            found["mask_image"] = mask()
        return found | make()

    return build


CALLS: dict[str, Case] = {
    "plain": dict,
    "without a prompt's guidance": lambda: {"guidance_scale": 0.0},
    "adaptive": lambda: {"pag_scale": 2.0, "pag_adaptive_scale": 0.003},
    "batch": lambda: {
        "prompt": ["a ball", "a cube"],
        "negative_prompt": ["night", "day"],
        "num_images_per_prompt": 2,
    },
}
PACKED = packed(CALLS, alone=("adaptive",))  # which hides how strong it is otherwise


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", PACKED)
@pytest.mark.parametrize("name", NAMES)
def test_pictures(pairs: dict[str, tuple[Any, Any]], name: str, case: str) -> None:
    compare(*pairs[name], arguments(name, PACKED[case]))


MORE: dict[str, Case] = {
    "off": lambda: {"pag_scale": 0.0},
    "rescaled": lambda: {"guidance_rescale": 0.7},
    "rescaled without a prompt's guidance": lambda: {"guidance_rescale": 0.7, "guidance_scale": 1.0},
    "generators": lambda: {"num_images_per_prompt": 2, "generator": [seeded(3), seeded(4)]},
    "latent output": lambda: {"output_type": "latent"},
    "pil": lambda: {"output_type": "pil"},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", packed(MORE, alone=("off",)))
@pytest.mark.parametrize("name", [SD[0], XL[0]])
def test_more_calls(pairs: dict[str, tuple[Any, Any]], name: str, case: str) -> None:
    compare(*pairs[name], packed(MORE, alone=("off",))[case])


LAYERS = {
    "by part": ["down_blocks"],
    "several": ["mid", r"up_blocks.\d.attentions.0"],
    "expression": [r"(down|up)_blocks.(0|1).attentions.[01]"],
    "all": ["blocks"],
    "none": [],
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", LAYERS)
@pytest.mark.parametrize("name", [SD[0], XL[0]])
def test_layers(folders: dict[str, Path], name: str, case: str) -> None:
    """Given to the constructor, or set afterwards."""
    first = [
        load(library, name, folders, pag_applied_layers=LAYERS[case]) for library in (diffusers, calotype)
    ]
    compare(*first, dict)
    assert first[0].pag_applied_layers == first[1].pag_applied_layers == LAYERS[case]
    if case == "several":
        for pipe in first:
            pipe.set_pag_applied_layers("mid")
        compare(*first, dict)


@pytest.mark.parametrize("method", ["__init__", "__call__", "encode_prompt"])
@pytest.mark.parametrize("name", NAMES)
def test_signature(name: str, method: str) -> None:
    def shape(library: Any) -> list[tuple[Any, ...]]:
        parameters = inspect.signature(getattr(getattr(library, name), method)).parameters.values()
        return [
            (p.name, p.kind, tuple(p.default) if isinstance(p.default, list) else p.default)
            for p in parameters
        ]

    assert shape(calotype) == shape(diffusers)


@pytest.mark.parametrize("name", [SD[0], XL[4]])
def test_files_go_both_ways(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    load(diffusers, name, folders).save_pretrained(tmp_path / "theirs")
    load(calotype, name, folders, pag_applied_layers=["mid", "up"]).save_pretrained(tmp_path / "ours")
    theirs, ours = (
        quiet(library.DiffusionPipeline.from_pretrained(tmp_path / folder))
        for library, folder in ((diffusers, "ours"), (calotype, "theirs"))
    )
    assert type(theirs).__name__ == type(ours).__name__ == name
    compare(theirs, ours, arguments(name, dict))


def test_the_models_are_not_touched(pairs: dict[str, tuple[Any, Any]]) -> None:
    """The same UNet in a pipeline without perturbation gives the same picture before and after."""
    _, pipe = pairs[SD[0]]
    plain = quiet(calotype.StableDiffusionPipeline.from_pipe(pipe))
    before = dict(pipe.unet.attn_processors)
    options = {"prompt": "a ball", "num_inference_steps": 2, "output_type": "pt"}
    first = plain(**options, generator=seeded()).images
    seen = []

    def watch(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(pipe.unet.attn_processors == before)
        return tensors

    pipe(**options, callback_on_step_end=watch, generator=seeded())
    assert seen == [True, True]
    assert torch.equal(plain(**options, generator=seeded()).images, first)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no such layer": ({"pag_applied_layers": ["middle"]}, "No self-attention layer of .* is called 'middle'"),
    "no layer": ({"pag_applied_layers": 3}, "The layers to perturb must be"),
    "no expression": ({"pag_applied_layers": ["(mid"]}, "no regular expression"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_layers_are_refused(folders: dict[str, Path], case: str) -> None:
    options, words = REFUSED[case]
    with pytest.raises(InputError, match=words):
        load(calotype, SD[0], folders, **options)("a ball", num_inference_steps=2)


def test_processors_of_ones_own_are_refused(pairs: dict[str, tuple[Any, Any]]) -> None:
    _, pipe = pairs[SD[0]]
    with pytest.raises(InputError, match="takes no pag_attn_processors"):
        pipe.set_pag_applied_layers("mid", pag_attn_processors=(object(), object()))


def test_guess_mode_leaves_the_prompt_and_its_perturbation_to_the_network(
    pairs: dict[str, tuple[Any, Any]],
) -> None:
    assert deviation("pipelines/StableDiffusionControlNetPAGPipeline/guess_mode=True")
    theirs, ours = pairs[SD[3]]
    options = {"prompt": "a ball", "image": photo(seed=3), "guess_mode": True, "num_inference_steps": 2}
    with pytest.raises((RuntimeError, ValueError)):
        theirs(**options)
    made = ours(**options, output_type="pt", generator=seeded()).images
    without = ours(**options, output_type="pt", generator=seeded(), pag_scale=0.0).images
    assert not torch.allclose(made, without)


AUTO = {
    "AutoPipelineForText2Image": "",
    "AutoPipelineForImage2Image": "Img2Img",
    "AutoPipelineForInpainting": "Inpaint",
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("auto", AUTO)
def test_auto_pipelines(folders: dict[str, Path], auto: str, family: str) -> None:
    """Switched on when loading, kept from one task to the next, switched off and on again."""
    perturbed, plain = (f"{family}{middle}{AUTO[auto]}Pipeline" for middle in ("PAG", ""))
    for library in (diffusers, calotype):
        chosen = getattr(library, auto)
        loaded = chosen.from_pretrained(folders[family], enable_pag=True, pag_applied_layers=["down"])
        assert type(loaded).__name__ == perturbed
        assert loaded.pag_applied_layers == ["down"]
        other = library.AutoPipelineForText2Image.from_pipe(loaded)
        assert type(other).__name__ == f"{family}PAGPipeline"
        assert other.unet is loaded.unet
        off = chosen.from_pipe(loaded, enable_pag=False)
        assert type(off).__name__ == plain
        again = chosen.from_pipe(off, enable_pag=True, pag_applied_layers=["up", "mid"])
        assert type(again).__name__ == perturbed
        assert again.pag_applied_layers == ["up", "mid"]
        assert type(chosen.from_pretrained(folders[family], enable_pag=False)).__name__ == plain


WITH_NETWORK = {name for name in NAMES if "ControlNet" in name}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("auto", AUTO)
def test_auto_pipelines_with_a_network(folders: dict[str, Path], auto: str, family: str) -> None:
    """Where there is such a class; elsewhere the error says what to do instead."""
    name = f"{family}ControlNetPAG{AUTO[auto]}Pipeline"
    for library in (diffusers, calotype):
        chosen = getattr(library, auto)
        net = library.ControlNetModel.from_pretrained(folders[f"{family}-control"])
        options = {"controlnet": net, "enable_pag": True}
        if name in WITH_NETWORK:
            loaded = chosen.from_pretrained(folders[family], **options)
            assert type(loaded).__name__ == name
            assert loaded.controlnet is net
            assert type(chosen.from_pipe(loaded, enable_pag=False)).__name__ == name.replace("PAG", "")
        else:
            with pytest.raises(ValueError, match=None if library is diffusers else "takes guidance="):
                chosen.from_pretrained(folders[family], **options)


def test_layers_stay_from_task_to_task(folders: dict[str, Path]) -> None:
    assert deviation("pipelines/StableDiffusionPAGPipeline/from_pipe;pag_applied_layers")
    seen = []
    for library in (diffusers, calotype):
        first = load(library, SD[0], folders, pag_applied_layers=["down", "mid"])
        seen.append(library.AutoPipelineForInpainting.from_pipe(first).pag_applied_layers)
    assert seen == [["mid"], ["down", "mid"]]
