"""Videos on the command line, with tiny random models: what is written, what it carries, and what is refused."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from typer.testing import CliRunner

import calotype
from calotype.cli import info, making, request
from calotype.cli.app import app
from calotype.utils import load_video
from calotype.utils.metadata import Settings, read_chunks, read_settings, write_clip
from tests.tiny import stable_diffusion_folder, stable_diffusion_parts
from tests.tiny_videos import stable_video, text_to_video

QUICK = ["--steps", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Text to video, image to video without a prompt, frames from a model of pictures, and pictures."""
    root = tmp_path_factory.mktemp("models")
    parts = stable_diffusion_parts(calotype, root / "parts")
    text_to_video(root / "text").save_pretrained(root / "text")
    calotype.TextToVideoZeroPipeline(**parts, requires_safety_checker=False).save_pretrained(root / "zero")
    stable_video().save_pretrained(root / "still")
    stable_diffusion_folder(root / "pictures")
    return {name: root / name for name in ("text", "zero", "still", "pictures")}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CALOTYPE_DEBUG", raising=False)


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeeded(result: Any) -> Any:
    assert result.exit_code == 0, result.stderr or result.exception
    return result


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", ["ball.mp4", "ball.gif"])
def test_a_video_that_says_how_it_was_made(models: dict[str, Path], tmp_path: Path, name: str) -> None:
    result = succeeded(
        run("generate", "a red ball", "-m", models["text"], *QUICK, "-o", name, "--frames", 3, "--fps", 5, "--seed", 7)
    )  # fmt: skip
    assert result.stdout == f"{name}\n" and "1 video in" in result.stderr
    assert files(tmp_path) == [name]
    pictures, fps = load_video(name, return_fps=True)
    assert (len(pictures), pictures[0].size, fps) == (3, (64, 64), 5)

    made = read_settings(name)
    assert (made.prompt, made.seed, made.size, made.pipeline) == (
        "a red ball",
        7,
        (64, 64),
        "TextToVideoSDPipeline",
    )
    assert made.inputs == {"frames": 3, "fps": 5.0} and json.loads(made.to_json())["schema"] == 4
    shown = succeeded(run("show", name)).stdout
    assert "a red ball" in shown and "5 frames a second" in shown

    again = succeeded(run("generate", "--like", name, "-o", f"again-{name}", "--json"))
    assert json.loads(again.stdout)["same_pixels"] is True
    assert "same video" in again.stderr
    assert read_settings(f"again-{name}").inputs == made.inputs
    other = succeeded(run("generate", "--like", name, "-o", f"longer-{name}", "--frames", 4))
    assert other.exit_code == 0 and len(load_video(f"longer-{name}")) == 4


def test_a_video_in_a_folder(models: dict[str, Path], tmp_path: Path) -> None:
    """Its name is made from prompt and seed; frames of a model of pictures; nothing said of how."""
    result = succeeded(
        run("generate", "a ball", "-m", models["zero"], "--steps", 50, "--device", "cpu", "--seed", 1, "--frames", 2,
            "--width", 32, "--height", 32, "-o", "out/", "--no-metadata", "--json")
    )  # fmt: skip
    assert files(tmp_path) == ["out/a-ball-1.mp4"]
    assert [video["file"] for video in json.loads(result.stdout)["videos"]] == ["out/a-ball-1.mp4"]
    assert load_video("out/a-ball-1.mp4", return_fps=True)[1] == making.USUAL_PACE
    assert read_chunks("out/a-ball-1.mp4") == {}


def test_a_picture_that_moves(models: dict[str, Path], tmp_path: Path) -> None:
    """The model reads no prompt; the picture is recorded, and the pace is told to the model, too."""
    PIL.Image.new("RGB", (40, 30), "red").save("first.png")
    size = ["--width", 32, "--height", 16, "--seed", 3]
    succeeded(run("generate", "-m", models["still"], *QUICK, "--image", "first.png", *size, "-o", "."))
    assert files(tmp_path) == ["first-3.mp4", "first.png"]
    made = read_settings("first-3.mp4")
    assert made.inputs["frames"] == 3 and made.inputs["fps"] == 7  # what the model was trained for
    assert made.inputs["image"]["file"] == "first.png" and made.prompt == ""
    again = succeeded(run("generate", "--like", "first-3.mp4", "-o", "b.mp4", "--json"))
    assert json.loads(again.stdout)["same_pixels"] is True
    succeeded(run("generate", "--like", "first-3.mp4", "-o", "c.mp4", "--fps", 24))
    frames = [np.asarray(load_video(name)[-1], dtype=int) for name in ("b.mp4", "c.mp4")]
    assert np.abs(frames[0] - frames[1]).max() > 0

    refused = run("generate", "a ball", "-m", models["still"], *QUICK, "--image", "first.png", "-o", "d.mp4")
    assert refused.exit_code == 2 and "takes no prompt" in refused.stderr
    refused = run("generate", "-m", models["text"], *QUICK, "--image", "first.png", "-o", "d.mp4")
    assert refused.exit_code == 2 and "Say what to show" in refused.stderr
    assert not Path("d.mp4").exists()


@pytest.mark.parametrize(
    ("model", "arguments", "words"),
    [
        ("pictures", ["-o", "a.mp4"], "makes pictures, so --output 'a.mp4' has no meaning"),
        ("pictures", ["-o", "a.gif"], "makes pictures, so --output"),
        ("pictures", ["--frames", "4"], "makes pictures, so --frames has no meaning"),
        ("pictures", ["--fps", "4"], "makes pictures, so --fps has no meaning"),
        ("text", ["-o", "a.png"], "makes videos, so the name ends in .mp4"),
        ("text", ["-o", "a.webm"], "makes videos, so the name ends in .mp4"),
        ("text", ["-o", "a.mp4", "--fps", "0"], "--fps must be above 0"),
        ("text", ["-o", "a.mp4", "--fps", "-2"], "--fps must be above 0"),
        ("text", ["-o", "a.mp4", "--fps", "nan"], "--fps must be above 0"),
        ("text", ["-o", "a.mp4", "--frames", "0"], "--frames must be at least 1, not 0"),
        ("text", ["-o", "a.mp4", "--frames", "100000"], "pixels"),
        ("text", ["-o", "a.mp4", "--sheet", "b.png"], "--sheet is for pictures"),
        ("text", ["-o", "a.mp4", "--image", "in.png"], "has no image"),
        ("text", ["-o", "there.mp4"], "exists already"),
        ("still", ["-o", "a.mp4"], "takes no prompt"),
    ],
)
def test_refused(
    models: dict[str, Path], tmp_path: Path, model: str, arguments: list[str], words: str
) -> None:
    """In words, and nothing is written."""
    PIL.Image.new("RGB", (16, 16)).save("in.png")
    Path("there.mp4").touch()
    before = files(tmp_path)
    result = run("generate", "a ball", "-m", models[model], *QUICK, *arguments)
    assert result.exit_code == 2 and words in result.stderr
    assert files(tmp_path) == before


def test_without_pyav(models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said before anything is loaded how to install it; a GIF needs none."""
    imported = builtins.__import__

    def without(name: str, *arguments: Any, **named: Any) -> Any:
        if name == "av":
            raise ImportError(name)
        return imported(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    video = ("generate", "a ball", "-m", models["text"], *QUICK, "--frames", "2")
    result = run(*video, "-o", "a.mp4")
    assert result.exit_code == 2 and "pip install 'calotype[video]'" in result.stderr
    assert "Loading" not in result.stderr and files(tmp_path) == []
    succeeded(run(*video, "-o", "a.gif"))
    assert read_settings("a.gif").prompt == "a ball"


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    frames = [PIL.Image.new("RGB", size) for size in ((16, 16), (16, 32))]
    for name in ("a.mp4", "a.gif"):
        with pytest.raises(calotype.core.errors.InputError, match="make them equal"):
            write_clip(name, frames, 8)
    assert files(tmp_path) == []


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.gif"])
def test_settings_in_every_container(name: str) -> None:
    made = Settings(
        prompt='Ein "Ball", rot: groß\nund rund', model="m", seed=1, steps=2, guidance=None, size=(16, 16),
        scheduler={"class": "DDIMScheduler", "config": {"sigma": float("inf")}}, inputs={"frames": 2, "fps": 8.0},
    )  # fmt: skip
    write_clip(name, [PIL.Image.new("RGB", (18, 16), colour) for colour in ("red", "blue")], 8, made)
    assert read_settings(name) == made
    assert load_video(name)[0].size == (18, 16)


def test_the_bundled_models_by_what_is_asked_for() -> None:
    assert request.default_model(False) == "pocket" and request.default_model(True) == "pocket-motion"
    prompts = {"prompts": ("a ball",)}
    assert request.from_options(prompts).model == "pocket"
    assert request.from_options(prompts, True).model == "pocket-motion"
    assert request.from_options({**prompts, "model": "mine"}, True).model == "mine"
    steps = {
        name: request.default_steps(name) for name in ("pocket", "pocket-turbo", "pocket-motion", "mine")
    }
    assert steps == {"pocket": 20, "pocket-turbo": 4, "pocket-motion": 16, "mine": 20}


def test_info_names_what_videos_are_made_of(models: dict[str, Path]) -> None:
    assert "text-to-video, video-to-video" in succeeded(run("info", models["text"])).stdout
    for name, tasks in {
        "StableVideoDiffusionPipeline": ("image-to-video",),
        "I2VGenXLPipeline": ("image-to-video",),
        "AnimateDiffPipeline": ("text-to-video",),
        "TextToVideoZeroSDXLPipeline": ("text-to-video",),
        "VideoToVideoSDPipeline": ("video-to-video",),
        "UNet3DConditionModel": (),
        "NoSuchPipeline": (),
    }.items():
        assert info.tasks_of(name) == tasks
