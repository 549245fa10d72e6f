"""The members of the pocket family by name, with random weights: composed, saved, and used on the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import calotype
from calotype.cli.app import app
from calotype.core.errors import CalotypeError, ModelFilesError
from calotype.pipelines.bundled import BUNDLED, MEMBERS, folders_of, locate
from calotype.utils.metadata import read_settings
from tests.pocket_members import random_members

PROMPT = "a red ball on grass"


@pytest.fixture(scope="module", autouse=True)
def members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of members, which their names mean as long as these tests run."""
    folder = random_members(tmp_path_factory.mktemp("members"))
    with pytest.MonkeyPatch.context() as patch:
        for place in folder.iterdir():
            patch.setitem(BUNDLED, place.name, place)
        yield folder


def picture(side: int = 128) -> PIL.Image.Image:
    values = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return PIL.Image.fromarray(values).resize((side, side))


def mask() -> PIL.Image.Image:
    values = np.zeros((128, 128), dtype=np.uint8)
    values[32:96, 16:80] = 255
    return PIL.Image.fromarray(values)


GIVEN: dict[str, dict[str, Any]] = {
    "pocket-inpaint": {"image": picture(), "mask_image": mask()},
    "pocket-depth": {"image": picture(), "strength": 1.0},
    "pocket-upscale": {"image": picture(32)},
    "pocket-tiny-vae": {"image": picture(), "strength": 0.9},
    "pocket-unconditional": {},
    "pocket-xl-refiner": {"image": picture(), "strength": 1.0},
} | {f"pocket-controlnet-{kind}": {"control": picture()} for kind in ("canny", "depth", "segmentation")}


def make(pipe: Any, name: str, **more: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    text = {} if name == "pocket-unconditional" else {"prompt": PROMPT}
    noise = {"generator": torch.Generator().manual_seed(1), "output_type": "np"}
    return pipe(**{**text, "num_inference_steps": 3, **noise, **GIVEN.get(name, {}), **more}).images


# the other ControlNets have the same declaration
@pytest.mark.parametrize(
    "name", [name for name in MEMBERS if not name.endswith(("net-depth", "segmentation"))]
)
def test_every_member_works_by_its_name(name: str) -> None:
    pipe = calotype.load(name, device="cpu")
    assert type(pipe).__name__ == MEMBERS[name].pipeline
    assert Path(pipe.name_or_path).name == name
    images = make(pipe, name)
    assert images.std() > 0.01
    assert images.shape[1:] == ((32, 32, 3) if name == "pocket-unconditional" else (128, 128, 3))


def test_what_a_model_derives_is_not_taken_for_unknown(caplog: pytest.LogCaptureFixture) -> None:
    tiny = calotype.AutoencoderTiny.from_pretrained(BUNDLED["pocket-tiny-vae"] / "vae")
    assert tiny.config.block_out_channels == tiny.config.decoder_block_out_channels
    assert "no effect" not in caplog.text


def test_the_refiner_goes_on_where_the_first_model_ends() -> None:
    """Each takes its part of the steps; the refiner reads the second text encoder alone."""
    first, refiner = (calotype.load(name, device="cpu") for name in ("pocket-xl", "pocket-xl-refiner"))
    assert refiner.text_encoder is None and refiner.tokenizer is None
    assert refiner.config.requires_aesthetics_score
    steps: list[int] = []

    def count(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        steps.append(int(timestep))
        return values

    usual: dict[str, Any] = {"num_inference_steps": 10, "callback_on_step_end": count}
    latents = make(first, "pocket-xl", denoising_end=0.8, **{**usual, "output_type": "latent"})
    begun = len(steps)
    whole = make(refiner, "pocket-xl-refiner", image=latents, denoising_start=0.8, **usual)
    assert begun == 8 and len(steps) == 10 and steps == sorted(steps, reverse=True)
    assert whole.shape == (1, 128, 128, 3)


@pytest.mark.parametrize(
    "name",
    [
        "pocket-depth",
        "pocket-turbo",
        "pocket-unconditional",
        "pocket-upscale",
        "pocket-xl",
        "pocket-xl-refiner",
    ],
)
def test_the_reference_makes_the_same_picture_from_what_is_saved(name: str, tmp_path: Path) -> None:
    ours = calotype.load(name, device="cpu")
    ours.save_pretrained(tmp_path)
    theirs = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    assert type(theirs).__name__ == MEMBERS[name].pipeline
    usual = MEMBERS[name].usual
    np.testing.assert_allclose(make(ours, name, **usual), make(theirs, name, **usual), atol=1e-4)


def test_a_part_is_completed_by_the_checkpoints(members: Path) -> None:
    """Tensor by tensor: what its file has, and else what the checkpoint's of the same name has."""
    pipe = calotype.load("pocket-xl", device="cpu")
    for own, shared in (("unet", "unet"), ("text_encoder_2", "text_encoder")):
        (file,) = (members / "pocket-xl" / own).glob("*.safetensors")
        (theirs,) = (BUNDLED["pocket"] / shared).glob("*.safetensors")
        expected = load_file(theirs) | load_file(file)
        found = {
            key if key.startswith("text_") or own == "unet" else f"text_model.{key}": value
            for key, value in getattr(pipe, own).state_dict().items()
        }
        assert found.keys() == expected.keys() and len(load_file(file)) < len(expected) / 2
        assert all(torch.equal(found[key], value.float()) for key, value in expected.items())


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("unet", {"add_embedding.linear_1.weight": None}, "add_embedding.linear_1.weight"),
        ("unet", {"conv_in.fox": torch.zeros(2)}, "conv_in.fox"),
        ("unet", {"conv_in.bias": torch.zeros(2)}, "conv_in.bias"),
        ("text_encoder_2", {"text_projection.weight": None}, "text_projection.weight"),
    ],
    ids=["missing", "superfluous", "misshapen", "missing in a text encoder"],
)
def test_what_neither_has_or_both_have_otherwise_is_named(
    part: str, change: dict[str, torch.Tensor | None], message: str, members: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pocket-xl"
    shutil.copytree(members / "pocket-xl", folder)
    (file,) = (folder / part).glob("*.safetensors")
    tensors = {name: value for name, value in (load_file(file) | change).items() if value is not None}
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CalotypeError, match=message):
        calotype.load(folder, device="cpu")


def test_a_few_step_member_takes_few_steps_without_guidance() -> None:
    pipe = calotype.load("pocket-turbo", device="cpu")
    assert isinstance(pipe.scheduler, calotype.LCMScheduler)
    assert {name: pipe.usual({})[name] for name in ("num_inference_steps", "guidance_scale")} == {
        "num_inference_steps": 4,
        "guidance_scale": 1.0,
    }
    plain = calotype.load("pocket", device="cpu")
    key = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    assert not torch.equal(pipe.unet.state_dict()[key], plain.unet.state_dict()[key])
    assert plain.usual({})["num_inference_steps"] == 50


def test_low_rank_weights_are_loaded_by_their_name() -> None:
    pipe = calotype.load("pocket", device="cpu")
    before = make(pipe, "pocket")
    pipe.load_lora_weights("pocket-lora-heart")
    assert np.abs(make(pipe, "pocket") - before).max() > 1e-3
    np.testing.assert_allclose(
        make(calotype.load("pocket-lora-heart", device="cpu"), "pocket"), make(pipe, "pocket"), atol=1e-4
    )


def test_what_is_passed_stands_in_a_parts_place() -> None:
    unet = calotype.load("pocket-inpaint", device="cpu").unet
    assert calotype.load("pocket-inpaint", device="cpu", unet=unet).unet is unet


def test_absent_members_are_answered_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, members: Path
) -> None:
    monkeypatch.setitem(BUNDLED, "pocket-depth", tmp_path / "none")
    words = "has no pocket-depth: `calotype train pocket-family --member pocket-depth --out DIR`"
    for ask in (calotype.load, locate):
        with pytest.raises(ModelFilesError, match=words):
            ask("pocket-depth")
    for name, missing in (("pocket-inpaint", "unet"), ("pocket-turbo", "low-rank weights")):
        (tmp_path / name / "scheduler").mkdir(parents=True)
        (tmp_path / name / "scheduler" / "scheduler_config.json").write_text("{}")
        with pytest.raises(ModelFilesError, match=missing):
            calotype.load(tmp_path / name, device="cpu")


def test_what_is_the_checkpoints_is_counted() -> None:
    described = json.loads(run("info", "pocket-xl", "--json"))
    parts = {part["name"]: part["weights"] for part in described["components"]}
    pipe = calotype.load("pocket-xl", device="cpu")
    for name in ("unet", "text_encoder_2", "vae"):
        (found,) = parts[name]
        assert found["parameters"] == sum(
            value.numel() for value in getattr(pipe, name).state_dict().values()
        )
        assert (found["shared"] > found["parameters"] / 2) == (name != "vae")
    assert "are the checkpoint's" in run("info", "pocket-xl")


def run(*arguments: Any) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.stderr or result.exception
    return result.stdout


def test_the_command_line_knows_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run("generate", PROMPT, "-m", "pocket-turbo", "--device", "cpu", "-o", "turbo.png", "--seed", 1)
    made = read_settings("turbo.png")
    assert (made.model, made.steps, made.guidance) == ("pocket-turbo", 4, 1.0)
    assert made.scheduler["class"] == "LCMScheduler"

    picture().save("in.png")
    mask().save("mask.png")
    asked = [
        "-m",
        "pocket-inpaint",
        "--image",
        "in.png",
        "--mask",
        "mask.png",
        "--steps",
        2,
        "--device",
        "cpu",
    ]
    run("generate", PROMPT, *asked, "-o", "out.png")
    kept = np.asarray(mask()) == 0
    assert (np.asarray(PIL.Image.open("out.png"))[kept] == np.asarray(picture())[kept]).all()
    assert read_settings("out.png").pipeline == "StableDiffusionInpaintPipeline"

    pairs = [
        part
        for kind in ("canny", "depth")
        for part in ("--controlnet", f"pocket-controlnet-{kind}", "--control", "in.png")
    ]
    run("generate", PROMPT, "-m", "pocket", *pairs, "--steps", 2, "--device", "cpu", "-o", "both.png")
    assert [entry["model"] for entry in read_settings("both.png").inputs["controlnet"]] == [
        "pocket-controlnet-canny", "pocket-controlnet-depth"
    ]  # fmt: skip

    described = json.loads(run("info", "pocket-depth", "--json"))
    parts = {part["name"]: part for part in described["components"]}
    assert described["class_name"] == "StableDiffusionDepth2ImgPipeline"
    assert set(parts) == {
        "vae", "text_encoder", "tokenizer", "unet", "scheduler", "depth_estimator", "feature_extractor"
    }  # fmt: skip
    assert all(parts[name]["weights"][0]["parameters"] for name in ("unet", "vae", "depth_estimator"))
    assert [folder.name for folder in folders_of("pocket-depth")] == [
        "pocket-depth", "pocket-depth-estimator", "weights"
    ]  # fmt: skip
