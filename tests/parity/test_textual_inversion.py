"""Learned words: the reference's pipelines and ours with the same vectors, from each form of file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import calotype
from calotype.core.errors import InputError, ModelFilesError, WeightsError
from tests import tiny
from tests.parity.pipeline_runs import arrays, compare, quiet, seeded
from tests.parity.test_image_pipelines import mask, photo

torch.set_num_threads(1)

VECTORS = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
TEXT = {"prompt": "a <cat> on grass", "num_inference_steps": 2}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("words")
    return {
        "sd": tiny.stable_diffusion_folder(place / "sd", diffusers),
        "xl": tiny.stable_diffusion_xl_folder(place / "xl", diffusers),
    }


@pytest.fixture(scope="module")
def pipes(folders: dict[str, Path]) -> dict[str, tuple[Any, Any]]:
    return {
        key: (
            quiet(getattr(diffusers, name).from_pretrained(folders[key])),
            quiet(getattr(calotype, name).from_pretrained(folders[key])),
        )
        for key, name in (("sd", "StableDiffusionPipeline"), ("xl", "StableDiffusionXLPipeline"))
    }


def state(pipe: Any) -> list[Any]:
    found: list[Any] = []
    for name in ("", "_2"):
        if (encoder := getattr(pipe, f"text_encoder{name}", None)) is not None:
            tokenizer = getattr(pipe, f"tokenizer{name}")
            found += [len(tokenizer), tokenizer.get_vocab(), tokenizer("a <cat> <cat>_1").input_ids]
            found += [encoder.config.vocab_size, encoder.get_input_embeddings().num_embeddings]
            found += [tensor.clone() for tensor in encoder.state_dict().values()]
    return found


def same(first: list[Any], second: list[Any]) -> bool:
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(first, second, strict=True)
    )


@pytest.fixture
def sd(pipes: dict[str, tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
    before = state(pipes["sd"][1])
    yield pipes["sd"]
    for pipe in pipes["sd"]:
        pipe.unload_textual_inversion()
    assert same(state(pipes["sd"][1]), before)


def written(folder: Path, form: str) -> tuple[Path, dict[str, Any]]:
    """A file with three vectors, and what to load it with."""
    if form == "safetensors":
        save_file({"<cat>": VECTORS}, folder / "learned_embeds.safetensors")
        return folder, {}
    if form == "safetensors, one vector":
        save_file({"<cat>": VECTORS[0]}, folder / "word.safetensors")
        return folder, {"weight_name": "word.safetensors"}
    if form == "safetensors, unnamed":
        save_file({"emb_params": VECTORS}, folder / "word.safetensors")
        return folder / "word.safetensors", {"token": "<cat>"}
    if form == "bin":
        torch.save({"<cat>": VECTORS}, folder / "learned_embeds.bin")
        return folder, {"use_safetensors": False}
    content = {"string_to_token": {"*": 265}, "string_to_param": {"*": VECTORS}, "name": "<cat>", "step": 7}
    torch.save(content, folder / "word.pt")
    return folder / "word.pt", {"use_safetensors": False}


@pytest.mark.parametrize(
    "form", ["safetensors", "safetensors, one vector", "safetensors, unnamed", "bin", "A1111"]
)
def test_files(sd: tuple[Any, Any], form: str, tmp_path: Path) -> None:
    source, options = written(tmp_path, form)
    plain = arrays(sd[1](**TEXT, output_type="np", generator=seeded()))
    for pipe in sd:
        pipe.load_textual_inversion(source, **options)
    compare(*sd, lambda: dict(TEXT))
    compare(*sd, lambda: {**TEXT, "prompt": "a cat", "negative_prompt": "<cat> at night"})
    assert np.abs(arrays(sd[1](**TEXT, output_type="np", generator=seeded())) - plain).max() > 0.001
    texts = ["a <cat> and <cat>", "a dog"]
    assert sd[1].maybe_convert_prompt(texts, sd[1].tokenizer) == sd[0].maybe_convert_prompt(
        texts, sd[0].tokenizer
    )


OTHER_TASKS = {
    "StableDiffusionImg2ImgPipeline": {"image": photo(seed=3), "strength": 0.7, "num_inference_steps": 4},
    "StableDiffusionInpaintPipeline": {"image": photo(seed=3), "mask_image": mask(), "strength": 1.0},
    "StableDiffusionControlNetPipeline": {"image": photo(seed=3), "controlnet_conditioning_scale": 0.3},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OTHER_TASKS)
def test_other_tasks(sd: tuple[Any, Any], name: str, tmp_path: Path) -> None:
    nets: list[dict[str, Any]] = [{}, {}]
    if "ControlNet" in name:
        net = tiny.randomise(
            diffusers.ControlNetModel.from_unet(
                sd[0].unet, conditioning_embedding_out_channels=(8, 16, 16, 16)
            ),
            9,
        )
        net.save_pretrained(tmp_path)
        nets = [{"controlnet": net}, {"controlnet": calotype.ControlNetModel.from_pretrained(tmp_path)}]
    libraries = (diffusers, calotype)
    pair = [
        quiet(getattr(library, name).from_pipe(pipe, **options))
        for library, pipe, options in zip(libraries, sd, nets, strict=True)
    ]
    for pipe in pair:
        pipe.load_textual_inversion({"<cat>": VECTORS})
    compare(*pair, lambda: {**TEXT, **OTHER_TASKS[name]})


def test_several_words_of_which_one_goes(sd: tuple[Any, Any]) -> None:
    for pipe in sd:
        pipe.load_textual_inversion([VECTORS, {"<dog>": VECTORS[:2] * 2}], token=["<cat>", "<dog>"])
    compare(*sd, lambda: {**TEXT, "prompt": "a <dog> left of the <cat>"})
    for pipe in sd:
        pipe.unload_textual_inversion("<cat>")
    compare(*sd, lambda: {**TEXT, "prompt": "a <dog> left of the cat"})
    with pytest.raises(InputError, match="no learned word '<cat>'; there are <dog>, <dog>_1"):
        sd[1].unload_textual_inversion("<cat>")


def test_two_text_encoders(pipes: dict[str, tuple[Any, Any]]) -> None:
    theirs, ours = pipes["xl"]
    before = state(ours)
    word = {"clip_l": VECTORS, "clip_g": VECTORS.flip(0)}
    for name, key in (("", "clip_l"), ("_2", "clip_g")):
        parts = {part: getattr(theirs, f"{part}{name}") for part in ("text_encoder", "tokenizer")}
        theirs.load_textual_inversion(word[key], token="<cat>", **parts)
    ours.load_textual_inversion(word, token="<cat>")
    compare(theirs, ours, lambda: dict(TEXT))
    ours.unload_textual_inversion()
    assert same(state(ours), before)
    ours.load_textual_inversion(word["clip_l"], token="<cat>")
    ours.load_textual_inversion(
        word["clip_g"], token="<cat>", text_encoder=ours.text_encoder_2, tokenizer=ours.tokenizer_2
    )
    compare(theirs, ours, lambda: dict(TEXT))
    for pipe in (theirs, ours):
        for name in ("", "_2"):
            parts = {part: getattr(pipe, f"{part}{name}") for part in ("text_encoder", "tokenizer")}
            pipe.unload_textual_inversion(**parts)
    assert same(state(ours), before)


def test_saved_with_the_pipeline(sd: tuple[Any, Any], tmp_path: Path) -> None:
    for pipe in sd:
        pipe.load_textual_inversion(VECTORS, token="<cat>")
    sd[1].save_pretrained(tmp_path)
    again = quiet(diffusers.StableDiffusionPipeline.from_pretrained(tmp_path))
    compare(again, sd[1], lambda: dict(TEXT))
    compare(sd[0], quiet(calotype.StableDiffusionPipeline.from_pretrained(tmp_path)), lambda: dict(TEXT))


def test_long_prompts_have_words_too(sd: tuple[Any, Any]) -> None:
    ours = sd[1]
    ours.load_textual_inversion(VECTORS, token="<cat>")
    short = ours("a <cat>", num_inference_steps=1, output_type="np", generator=seeded())
    chunked = ours("a <cat>", num_inference_steps=1, output_type="np", generator=seeded(), prompt_chunks=True)
    np.testing.assert_allclose(short.images, chunked.images, atol=1e-5)


def test_what_is_refused(sd: tuple[Any, Any], tmp_path: Path) -> None:
    ours = sd[1]
    source, _ = written(tmp_path, "A1111")
    with pytest.raises(ModelFilesError, match="pickle"):
        ours.load_textual_inversion(source)
    with pytest.raises(WeightsError, match="vectors of 7 channels and CLIPTextModel has 32"):
        ours.load_textual_inversion(torch.zeros(1, 7), token="<cat>")
    with pytest.raises(InputError, match="does not say how the word is written"):
        ours.load_textual_inversion(VECTORS)
    with pytest.raises(WeightsError, match="holds no learned word: there is one, two"):
        ours.load_textual_inversion({"one": VECTORS, "two": VECTORS})
    ours.load_textual_inversion(VECTORS, token="<cat>")
    with pytest.raises(InputError, match="'<cat>' is already"):
        ours.load_textual_inversion(VECTORS, token="<cat>")
    with pytest.raises(InputError, match="give a token for each"):
        ours.load_textual_inversion([VECTORS, VECTORS], token="<dog>")
    with pytest.raises(InputError, match="Two of the words"):
        ours.load_textual_inversion([VECTORS, VECTORS], token=["<dog>", "<dog>"])
    with pytest.raises(InputError, match="no argument weightname"):
        ours.load_textual_inversion(VECTORS, token="<dog>", weightname="x")
    assert "<dog>" not in ours.tokenizer.get_vocab()
