"""Settings go into a PNG and come back as they were; damaged ones are refused in words."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import PIL.Image
import pytest
from PIL.PngImagePlugin import PngInfo

from calotype.core.errors import InputError
from calotype.utils import metadata
from calotype.utils.metadata import MetadataError, Settings

PLAIN = Settings(
    prompt="a red ball",
    negative_prompt="blur, noise",
    model="pocket",
    seed=2**40,
    steps=20,
    guidance=4.5,
    scheduler={"class": "EulerDiscreteScheduler", "config": {"beta_start": 0.00085, "trained_betas": None}},
    size=(96, 64),
    index=3,
    pipeline="StableDiffusionPipeline",
    fingerprint="0123456789abcdef",
    versions={"calotype": "0.1.0", "torch": "2.13.0"},
)

PROMPTS = [
    "",
    "plain",
    "quotes \"double\" and 'single', commas, colons: and a \\ backslash",
    "two\nlines",
    "line\r\nends\rof all kinds\t",
    "\n  white space around \n\n",
    "Negative prompt: not really\nSteps: 3, Sampler: none, CFG scale: 9, Seed: 1",
    "ein Würfel, 赤いボール, كرة حمراء, 🔴🧊 e\u0301",
    "lone surrogate \udcff",
    "nul \0 and bell \a",
    "[bold]markup[/bold] {braces} <b>%s</b>",
    "long " * 3000,
]


def picture() -> PIL.Image.Image:
    pixels = np.arange(64 * 96 * 3, dtype=np.uint32).reshape(64, 96, 3) % 251
    return PIL.Image.fromarray(pixels.astype(np.uint8))


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_png_gives_back_settings_and_pixels(tmp_path, prompt):
    settings = replace(PLAIN, prompt=prompt, negative_prompt=prompt[::-1])
    metadata.write_png(tmp_path / "a.png", picture(), settings)
    assert metadata.read_settings(tmp_path / "a.png") == settings
    assert np.array_equal(PIL.Image.open(tmp_path / "a.png"), picture())
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_infinite_scheduler_options_survive_in_valid_json():
    config = {"lambda_min_clipped": -float("inf"), "nested": [float("inf"), "inf."]}
    settings = replace(PLAIN, scheduler={"class": "X", "config": config})

    def refuse(constant):
        raise AssertionError(constant)

    json.loads(settings.to_json(), parse_constant=refuse)
    assert Settings.from_json(settings.to_json()).scheduler["config"] == config


@pytest.mark.parametrize("prompt", ["a red ball", 'quotes ", commas, colons: x', "two\nlines", "Würfel 🔴"])
@pytest.mark.parametrize("negative", [None, "grey\nblue, dull: yes"])
def test_other_programs_can_read_the_plain_form(tmp_path, prompt, negative):
    settings = replace(PLAIN, prompt=prompt, negative_prompt=negative, model='odd, "name": x')
    metadata.write_png(tmp_path / "a.png", picture(), settings)
    text = PIL.Image.open(tmp_path / "a.png").text["parameters"]
    read = metadata.from_parameters(text)
    assert read.pop("Prompt") == prompt
    assert read.pop("Negative prompt", None) == negative
    assert read == {
        "Steps": "20",
        "Sampler": "Euler",
        "CFG scale": "4.5",
        "Seed": str(2**40),
        "Size": "96x64",
        "Model hash": "0123456789",
        "Model": 'odd, "name": x',
        "Version": "calotype 0.1.0",
    }


def test_plain_settings_of_another_program_are_read():
    text = (
        "masterpiece, (a fox:1.2) <lora:x:0.8>,\nforest\nNegative prompt: lowres, bad\nhands\nSteps: 28, Sampler: "
        'DPM++ 2M Karras, CFG scale: 7, Seed: 12, Size: 512x768, Model hash: 6ce0161689, Lora hashes: "a: 1, b: 2", '
        "Version: v1.6.0"
    )
    read = metadata.from_parameters(text)
    assert read["Prompt"] == "masterpiece, (a fox:1.2) <lora:x:0.8>,\nforest"
    assert read["Negative prompt"] == "lowres, bad\nhands"
    assert read["Sampler"] == "DPM++ 2M Karras"
    assert read["Lora hashes"] == "a: 1, b: 2"
    assert list(read)[-1] == "Version"


def test_a_prompt_alone_is_not_taken_for_settings():
    assert metadata.from_parameters("a cat: big, red") == {"Prompt": "a cat: big, red"}


@pytest.mark.parametrize(
    ("scheduler", "name"),
    [
        ({"class": "EulerAncestralDiscreteScheduler"}, "Euler a"),
        (
            {
                "class": "DPMSolverMultistepScheduler",
                "config": {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
            },
            "DPM++ 2M SDE Karras",
        ),
        ({"class": "NewScheduler", "config": None}, "NewScheduler"),
    ],
)
def test_sampler_names(scheduler, name):
    assert metadata.sampler_name(scheduler) == name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 99}, "version 99"),
        ({"schema": None}, "which version"),
        ({"seed": "7"}, "seed"),
        ({"steps": 2.5}, "steps"),
        ({"size": [64]}, "size"),
        ({"size": [64, -1]}, "size"),
        ({"size": 3}, "size"),
        ({"scheduler": "euler"}, "scheduler"),
        ({"prompt": None}, "prompt"),
    ],
)
def test_damaged_settings_are_named(change, words):
    with pytest.raises(MetadataError, match=words):
        Settings.from_json(json.dumps({"schema": 1, **asdict(PLAIN), **change}))


def test_missing_settings_are_named():
    with pytest.raises(MetadataError, match="guidance, scheduler, seed"):
        Settings.from_json(json.dumps({"schema": 1, "prompt": "a", "model": "b", "steps": 3, "size": [8, 8]}))
    with pytest.raises(MetadataError, match="size"):
        Settings.from_json(
            json.dumps({"schema": 1, **{k: v for k, v in asdict(PLAIN).items() if k != "size"}})
        )
    with pytest.raises(MetadataError, match="JSON"):
        Settings.from_json("{")


def test_a_later_writer_of_the_same_version_may_add_entries():
    text = json.dumps({"schema": 1, **asdict(PLAIN), "something_new": 1})
    assert Settings.from_json(text) == PLAIN


def test_files_without_settings_say_why(tmp_path):
    metadata.write_png(tmp_path / "bare.png", picture())
    assert metadata.read_chunks(tmp_path / "bare.png") == {}
    with pytest.raises(MetadataError, match="without settings"):
        metadata.read_settings(tmp_path / "bare.png")
    foreign = PngInfo()
    foreign.add_text("parameters", "a cat\nSteps: 1, Sampler: x, Seed: 2")
    picture().save(tmp_path / "foreign.png", pnginfo=foreign)
    with pytest.raises(MetadataError, match="another program"):
        metadata.read_settings(tmp_path / "foreign.png")
    with pytest.raises(InputError, match="no file"):
        metadata.read_settings(tmp_path / "absent.png")
    picture().save(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="not a PNG"):
        metadata.read_settings(tmp_path / "a.jpg")
    whole = (tmp_path / "bare.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        metadata.read_settings(tmp_path / "half.png")


def test_a_failed_write_leaves_the_old_picture(tmp_path):
    metadata.write_png(tmp_path / "a.png", picture(), PLAIN)

    class Unwritable:
        def save(self, *args, **kwargs):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        metadata.write_png(tmp_path / "a.png", Unwritable(), PLAIN)
    assert metadata.read_settings(tmp_path / "a.png") == PLAIN
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
