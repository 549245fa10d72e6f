"""The commands with a tiny random model: what they write, what they print, and how they refuse."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file
from typer.testing import CliRunner

from calotype.cli import making
from calotype.cli.app import app
from calotype.core import progress
from calotype.utils.metadata import read_settings, write_png
from tests.parity import ip_adapter_parts
from tests.tiny import stable_diffusion_folder

QUICK = ["--steps", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return stable_diffusion_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CALOTYPE_DEBUG", raising=False)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeeded(result):
    assert result.exit_code == 0, result.stderr or result.exception
    return result


def pixels(path):
    return np.asarray(PIL.Image.open(path))


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_generate_names_each_picture_and_records_how_it_was_made(tiny, tmp_path):
    result = succeeded(
        run("generate", "a red ball", "a [blue] cube", "-m", tiny, *QUICK, "--seed", 7, "-n", 2, "--negative", "grey",
            "--guidance", 3, "-o", "out/", "--sheet", "out/sheet.png")
    )  # fmt: skip
    names = ["a-red-ball-7.png", "a-red-ball-8.png", "a-blue-cube-7.png", "a-blue-cube-8.png", "sheet.png"]
    assert result.stdout.splitlines() == [f"out/{name}" for name in names]
    assert files(tmp_path) == sorted(f"out/{name}" for name in names)
    assert "4 pictures in" in result.stderr
    assert "contact sheet" in result.stderr

    made = read_settings("out/a-blue-cube-8.png")
    assert (made.prompt, made.negative_prompt, made.seed, made.index) == ("a [blue] cube", "grey", 8, 3)
    assert (made.steps, made.guidance, made.size, made.dtype, made.device) == (
        2,
        3.0,
        (64, 64),
        "float32",
        "cpu",
    )
    assert (made.model, made.pipeline) == (str(tiny), "StableDiffusionPipeline")
    assert made.scheduler["class"] == "PNDMScheduler"
    assert made.scheduler["config"]["beta_end"] == 0.012
    assert len(made.fingerprint) == 64
    assert {"calotype", "torch", "python", "transformers"} <= set(made.versions)
    assert (
        PIL.Image.open("out/a-red-ball-7.png")
        .text["parameters"]
        .startswith("a red ball\nNegative prompt: grey\n")
    )
    assert not np.array_equal(pixels("out/a-red-ball-7.png"), pixels("out/a-red-ball-8.png"))

    succeeded(
        run("generate", "a red ball", "-m", tiny, *QUICK, "--seed", 8, "--negative", "grey", "--guidance", 3)
    )
    assert np.array_equal(pixels("a-red-ball-8.png"), pixels("out/a-red-ball-8.png"))


def test_like_makes_the_same_pixels(tiny):
    succeeded(
        run("generate", "a ball", "-m", tiny, *QUICK, "--scheduler", "DPM++ 2M Karras", "--width", 32, "--height", 48,
            "-n", 2, "--seed", 3, "-o", "a.png")
    )  # fmt: skip
    settings = read_settings("a-2.png")
    assert settings.scheduler["class"] == "DPMSolverMultistepScheduler"
    assert settings.scheduler["config"]["use_karras_sigmas"] is True
    assert pixels("a-2.png").shape == (48, 32, 3)

    result = succeeded(run("generate", "--like", "a-2.png", "-o", "b.png", "--json"))
    report = json.loads(result.stdout)
    assert report["same_pixels"] is True
    assert report["pictures"][0]["file"] == "b.png"
    assert report["pictures"][0]["seed"] == 4
    assert "pixel for pixel" in result.stderr
    assert np.array_equal(pixels("a-2.png"), pixels("b.png"))

    result = succeeded(run("generate", "--like", "a-2.png", "--seed", 5, "-o", "c.png", "--json"))
    assert "same_pixels" not in json.loads(result.stdout)
    assert read_settings("c.png").scheduler == settings.scheduler
    assert not np.array_equal(pixels("a-2.png"), pixels("c.png"))


def test_like_says_what_has_changed(tiny, tmp_path):
    model = shutil.copytree(tiny, tmp_path / "model")
    succeeded(run("generate", "a ball", "-m", model, *QUICK, "--seed", 3, "-o", "a.png"))
    config = json.loads((model / "vae" / "config.json").read_text())
    (model / "vae" / "config.json").write_text(
        json.dumps({**config, "scaling_factor": 2 * config["scaling_factor"]})
    )
    result = succeeded(run("generate", "--like", "a.png", "-o", "b.png", "--json"))
    assert json.loads(result.stdout)["same_pixels"] is False
    assert "the model's fingerprint was" in result.stderr


def test_like_on_a_machine_without_the_device(tiny):
    succeeded(run("generate", "a ball", "-m", tiny, *QUICK, "--seed", 3, "-o", "a.png"))
    made = read_settings("a.png")
    write_png("a.png", PIL.Image.open("a.png"), replace(made, device="cuda:99"))
    result = succeeded(run("generate", "--like", "a.png", "-o", "b.png"))
    assert "made on cuda:99, which this machine does not have" in result.stderr
    assert run("generate", "--like", "a.png", "--device", "cuda:99").exit_code == 2


def test_a_scheduler_that_is_no_more_is_named(tiny):
    succeeded(run("generate", "a ball", "-m", tiny, *QUICK, "-o", "a.png"))
    made = read_settings("a.png")
    write_png(
        "a.png", PIL.Image.open("a.png"), replace(made, scheduler={"class": "GoneScheduler", "config": {}})
    )
    result = run("generate", "--like", "a.png", "-o", "b.png")
    assert result.exit_code == 1
    assert "GoneScheduler, which this calotype does not have" in result.stderr
    succeeded(run("generate", "--like", "a.png", "--scheduler", "ddim", "-o", "b.png"))


def test_one_json_object_and_nothing_else_on_standard_output(tiny):
    report = json.loads(succeeded(run("generate", "a ball ü", "-m", tiny, *QUICK, "--json")).stdout)
    (picture,) = report["pictures"]
    assert picture["file"] == f"a-ball-u-{picture['seed']}.png"
    assert picture["prompt"] == "a ball ü"
    assert report["sheet"] is None
    assert report["seconds"] > 0


def test_no_metadata_leaves_nothing_in_the_picture(tiny):
    succeeded(run("generate", "a ball", "-m", tiny, *QUICK, "--no-metadata", "-o", "a.png"))
    assert PIL.Image.open("a.png").info == {}
    shown = run("show", "a.png")
    assert shown.exit_code == 2
    assert "does not say how it was made" in shown.stderr


def test_no_picture_is_written_over_by_accident(tiny, tmp_path):
    arguments = ("generate", "a ball", "-m", tiny, *QUICK, "--seed", 1)
    succeeded(run(*arguments))
    assert succeeded(run(*arguments)).stdout == "a-ball-1-2.png\n"
    refused = run(*arguments, "-o", "a-ball-1.png")
    assert refused.exit_code == 2
    assert "Loading" not in refused.stderr
    succeeded(run(*arguments, "-o", "a-ball-1.png", "--overwrite"))
    assert files(tmp_path) == ["a-ball-1-2.png", "a-ball-1.png"]


def test_ctrl_c_keeps_what_is_finished_and_names_it(tiny, tmp_path, monkeypatch):
    finished = making.picture

    def stop_at_the_second(pipe, asked, prompt, seed, reporter):
        if seed == 2:
            raise KeyboardInterrupt
        return finished(pipe, asked, prompt, seed, reporter)

    monkeypatch.setattr(making, "picture", stop_at_the_second)
    result = run("generate", "a ball", "-m", tiny, *QUICK, "--seed", 1, "-n", 3)
    assert result.exit_code == 130
    assert result.stdout == "a-ball-1.png\n"
    assert "Stopped" in result.stderr
    assert files(tmp_path) == ["a-ball-1.png"]
    assert progress.shown()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--steps", "0"], "num_inference_steps must be"),
        (["--steps", "-1"], "-1"),
        (["--steps", "many"], "--steps"),
        (["--guidance", "nan"], "guidance_scale must be a finite number"),
        (["--guidance", "inf"], "guidance_scale must be a finite number"),
        (["--width", "60"], "width must be divisible by 8 for this model, and 60 is not; near it: 56 and 64"),
        (["--height", "0"], "--height"),
        (["--height", "1000000000"], "over the limit"),
        (["--count", "0"], "--count"),
        (["--count", "1000000000"], "over the limit"),
        (["--seed", "-1"], "--seed"),
        (["--scheduler", "ddimm"], "Did you mean DDIM?"),
        (["--device", "quantum"], "--device"),
        (["--dtype", "int3"], "--dtype"),
        (["-o", "a.jpg"], "ends in .png"),
        (["--sheet", "sheet.gif"], "--sheet"),
        (["--like", "absent.png"], "There is no file"),
        (["--unknown"], "--unknown"),
    ],
)
def test_bad_input_is_refused_in_words_with_code_2(tiny, tmp_path, arguments, words):
    result = run("generate", "a ball", "-m", tiny, *QUICK, *arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert files(tmp_path) == []


def test_generate_without_a_prompt_shows_how(tmp_path):
    result = run("generate")
    assert result.exit_code == 2
    assert 'calotype generate "a red ball on grass"' in result.stderr


@pytest.mark.parametrize("damage", ["absent", "no index", "truncated", "pointer", "unknown class"])
def test_broken_models_are_refused_in_words_with_code_1(tiny, tmp_path, damage, tmp_path_factory):
    model = shutil.copytree(tiny, tmp_path_factory.mktemp("broken") / "model")
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    index = model / "model_index.json"
    words = {
        "absent": "nowhere",
        "no index": "model_index.json",
        "truncated": "cut off",
        "pointer": "git lfs pull",
        "unknown class": "StableDifusionPipeline",
    }[damage]
    if damage == "absent":
        model = "nowhere"
    elif damage == "no index":
        index.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "pointer":
        weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    else:
        index.write_text(index.read_text().replace("StableDiffusionPipeline", "StableDifusionPipeline"))
    result = run("generate", "a ball", "-m", model, *QUICK)
    assert result.exit_code == 1
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert files(tmp_path) == []


def test_an_unwritable_place_is_an_error(tiny, tmp_path):
    (tmp_path / "file").touch()
    result = run("generate", "a ball", "-m", tiny, *QUICK, "-o", "file/a.png")
    assert result.exit_code == 1
    assert "file" in result.stderr
    assert files(tmp_path) == ["file"]


def test_a_model_that_takes_no_prompt_is_named(tmp_path):
    import calotype
    from tests.tiny import randomise

    unet = calotype.UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    pipe = calotype.DDPMPipeline(unet=randomise(unet), scheduler=calotype.DDPMScheduler())
    pipe.save_pretrained(tmp_path / "ddpm")
    result = run("generate", "a ball", "-m", "ddpm", *QUICK)
    assert result.exit_code == 2
    assert "DDPMPipeline, which takes no prompt" in result.stderr
    assert "unconditional generation" in succeeded(run("info", "ddpm")).stdout


def test_show_prints_what_a_person_wants_to_know(tiny):
    succeeded(run("generate", "a [red] ball\non two lines", "-m", tiny, *QUICK, "--seed", 5, "-o", "a.png"))
    lines = succeeded(run("show", "a.png")).stdout.splitlines()
    assert lines[0].split("  ", 1) == ["Prompt", "     a [red] ball"]
    assert lines[1].strip() == "on two lines"
    text = " ".join(" ".join(lines).split())
    for expected in ("Seed 5", "Steps 2", "Guidance 7.5", "Size 64 x 64", "Scheduler PLMS (PNDMScheduler)"):
        assert expected in text
    shown = json.loads(succeeded(run("show", "a.png", "--json")).stdout)
    assert shown["source"] == "calotype"
    assert shown["prompt"] == "a [red] ball\non two lines"


def test_show_reads_the_settings_of_other_programs():
    chunks = PngInfo()
    chunks.add_text(
        "parameters", "a fox\nNegative prompt: dull\nSteps: 9, Sampler: Euler a, Seed: 4, Size: 8x8"
    )
    PIL.Image.new("RGB", (8, 8)).save("a.png", pnginfo=chunks)
    assert "Sampler          Euler a" in succeeded(run("show", "a.png")).stdout.splitlines()
    assert json.loads(succeeded(run("show", "a.png", "--json")).stdout)["Negative prompt"] == "dull"
    result = run("generate", "--like", "a.png")
    assert result.exit_code == 2
    assert "another program" in result.stderr


def test_info_counts_parameters_and_bytes(tiny):
    result = succeeded(run("info", tiny, "--json"))
    model = json.loads(result.stdout)
    assert model["class_name"] == "StableDiffusionPipeline"
    assert model["tasks"][0] == "text-to-image"
    parts = {part["name"]: part for part in model["components"]}
    assert set(parts) == {"scheduler", "text_encoder", "tokenizer", "unet", "vae"}
    assert parts["scheduler"]["weights"] == []
    import calotype

    unet = calotype.UNet2DConditionModel.from_pretrained(tiny, subfolder="unet")
    (weights,) = parts["unet"]["weights"]
    assert weights["parameters"] == unet.num_parameters()
    assert weights["bytes"] == (tiny / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert weights["dtypes"] == ["F32"]
    assert all(part["available"] for part in parts.values())


def test_info_prints_a_table_with_variants_shards_pickles_and_missing_classes(tiny, tmp_path):
    import torch

    import calotype

    model = shutil.copytree(tiny, tmp_path / "model")
    unet = calotype.UNet2DConditionModel.from_pretrained(tiny, subfolder="unet")
    count = f"{unet.num_parameters() / 1e3:.1f} k"
    unet.save_pretrained(model / "unet", max_shard_size="1MB")
    unet.to(torch.float16).save_pretrained(model / "unet", variant="fp16")
    (model / "vae" / "diffusion_pytorch_model.safetensors").rename(
        model / "vae" / "diffusion_pytorch_model.bin"
    )
    index = json.loads((model / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "NewScheduler"]
    (model / "model_index.json").write_text(json.dumps(index))
    rows = {line.split()[0]: line for line in succeeded(run("info", "model")).stdout.splitlines() if line}
    assert count in rows["unet"]
    assert "F32" in rows["unet"]
    assert "also fp16 (" in rows["unet"]
    assert "pickled, so not read" in rows["vae"]
    assert "calotype does not have this class" in rows["scheduler"]

    alone = succeeded(run("info", "model/unet")).stdout
    assert alone.startswith("model/unet: UNet2DConditionModel\n")
    assert count in alone


def test_info_refuses_what_is_no_model(tmp_path):
    (tmp_path / "empty").mkdir()
    result = run("info", "empty")
    assert result.exit_code == 1
    assert "neither a pipeline (model_index.json) nor a single model (config.json)" in result.stderr


def test_show_refuses_what_is_no_picture(tmp_path):
    write_png("a.png", PIL.Image.new("RGB", (8, 8)))
    for name, words in [
        ("a.png", "does not say"),
        ("absent.png", "There is no file"),
        (".", "There is no file"),
    ]:
        result = run("show", name)
        assert result.exit_code == 2
        assert words in result.stderr


def test_training_is_mounted():
    listed = succeeded(run("train", "--help")).stdout
    for recipe in (
        "pocket",
        "pocket-motion",
        "pocket-family",
        "text-to-image",
        "lora",
        "textual-inversion",
        "dreambooth",
    ):
        assert f" {recipe} " in listed
    for recipe in ("unconditional", "vae"):
        assert f" {recipe} " in listed
    assert "--max-minutes" in succeeded(run("train", "pocket-motion", "--help")).stdout


def test_options_that_a_recipe_has_not_are_refused(in_an_empty_folder):
    for recipe, option in (("pocket", "--base"), ("pocket-motion", "--vae")):
        result = run("train", recipe, "--out", "out", "--preset", "tiny", option, "there")
        assert result.exit_code == 2
        assert f"The recipe {recipe} has no {option}." in result.stderr


# -- pictures that go in ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network(tiny, tmp_path_factory):
    """A ControlNet for the tiny model."""
    import calotype
    from tests.tiny import randomise

    unet = calotype.UNet2DConditionModel.from_pretrained(tiny, subfolder="unet")
    net = calotype.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 16, 16))
    folder = tmp_path_factory.mktemp("models") / "network"
    randomise(net, 20).save_pretrained(folder)
    return folder


@pytest.fixture
def drawn(in_an_empty_folder):
    """A photo, a mask and a control picture."""
    coarse = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    photo = PIL.Image.fromarray(coarse).resize((75, 50), PIL.Image.Resampling.BICUBIC)
    photo.save("photo.png")
    mask = PIL.Image.new("L", (75, 50))
    mask.paste(255, (20, 10, 50, 40))
    mask.save("mask.png")
    photo.transpose(PIL.Image.Transpose.ROTATE_180).save("edges.png")


def test_a_picture_from_a_picture_can_be_made_again(tiny, drawn):
    given = ("a ball", "-m", tiny, *QUICK, "--image", "photo.png", "--strength", 0.9, "--seed", 3)
    succeeded(run("generate", *given, "-n", 2, "-o", "a.png"))
    made = read_settings("a-2.png")
    assert made.inputs["image"]["file"] == "photo.png"
    assert made.inputs["strength"] == 0.9
    assert pixels("a-2.png").shape == (48, 72, 3)
    assert not np.array_equal(pixels("a-1.png"), pixels("a-2.png"))
    result = succeeded(run("generate", "--like", "a-2.png", "-o", "b.png", "--json"))
    assert json.loads(result.stdout)["same_pixels"] is True
    shown = " ".join(succeeded(run("show", "b.png")).stdout.split())
    assert "Image photo.png" in shown
    assert "Strength 0.9" in shown
    weaker = succeeded(run("generate", "--like", "a-2.png", "--strength", 0.5, "-o", "c.png", "--json"))
    assert "same_pixels" not in json.loads(weaker.stdout)
    assert read_settings("c.png").inputs["image"] == made.inputs["image"]


def test_a_picture_that_has_changed_is_not_taken_for_the_former(tiny, drawn):
    succeeded(
        run("generate", "a ball", "-m", tiny, *QUICK, "-i", "photo.png", "--strength", 0.9, "-o", "a.png")
    )
    PIL.Image.open("edges.png").save("photo.png")
    result = run("generate", "--like", "a.png", "-o", "b.png")
    assert result.exit_code == 2
    assert "'photo.png' has changed since" in result.stderr
    succeeded(run("generate", "--like", "a.png", "--image", "photo.png", "-o", "b.png"))
    assert not np.array_equal(pixels("a.png"), pixels("b.png"))


def test_what_a_mask_does_not_mark_stays(tiny, drawn):
    succeeded(
        run(
            "generate",
            "a ball",
            "-m",
            tiny,
            *QUICK,
            "--image",
            "photo.png",
            "--mask",
            "mask.png",
            "-o",
            "a.png",
        )
    )
    kept = pixels("mask.png") == 0
    assert np.array_equal(pixels("a.png")[kept], pixels("photo.png")[kept])
    assert not np.array_equal(pixels("a.png")[~kept], pixels("photo.png")[~kept])
    result = succeeded(run("generate", "--like", "a.png", "-o", "b.png", "--json"))
    assert json.loads(result.stdout)["same_pixels"] is True


def test_controls_are_followed_and_recorded(tiny, network, drawn):
    given = ("a ball", "-m", tiny, *QUICK, "--seed", 3, "--control", "edges.png", "--controlnet", network)
    succeeded(run("generate", *given, "-o", "a.png"))
    made = read_settings("a.png")
    assert made.inputs["control"][0]["file"] == "edges.png"
    assert made.inputs["controlnet"][0]["model"] == str(network)
    assert len(made.inputs["controlnet"][0]["fingerprint"]) == 64
    succeeded(
        run("generate", *given[:-2], "--controlnet", network, "--width", 64, "--height", 64, "-o", "c.png")
    )
    assert pixels("c.png").shape == (64, 64, 3)
    result = succeeded(run("generate", "--like", "c.png", "-o", "d.png", "--json"))
    assert json.loads(result.stdout)["same_pixels"] is True
    result = succeeded(run("generate", "--like", "a.png", "-o", "b.png", "--json"))
    assert json.loads(result.stdout)["same_pixels"] is True


def test_adapters_act_and_are_recorded(tiny, tmp_path):
    draw = torch.Generator().manual_seed(0)
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    parts = {"A": (4, 64), "B": (64, 4)}
    lora = {f"{layer}.lora_{x}.weight": torch.randn(shape, generator=draw) for x, shape in parts.items()}
    save_file(lora, "style.safetensors")
    save_file({"emb_params": torch.randn(2, 32, generator=draw)}, "owl.safetensors")
    given = ("an owl", "-m", tiny, *QUICK, "--seed", 3)
    succeeded(run("generate", *given, "-o", "plain.png"))
    succeeded(run("generate", *given, "--lora", "style.safetensors", "-o", "full.png"))
    succeeded(run("generate", *given, "--lora", "style.safetensors:0", "-o", "none.png"))
    assert np.array_equal(pixels("plain.png"), pixels("none.png"))
    assert not np.array_equal(pixels("plain.png"), pixels("full.png"))
    both = ("--lora", "style.safetensors:0.5", "--embedding", "owl.safetensors")
    succeeded(run("generate", *given, *both, "--width", 32, "-o", "a.png"))
    made = read_settings("a.png")
    assert made.inputs["lora"][0] | {"sha256": ""} == {
        "file": "style.safetensors",
        "scale": 0.5,
        "sha256": "",
    }
    assert made.inputs["embedding"][0]["file"] == "owl.safetensors"
    result = succeeded(run("generate", "--like", "a.png", "-o", "b.png", "--json"))
    assert json.loads(result.stdout)["same_pixels"] is True
    save_file({key: tensor * 2 for key, tensor in lora.items()}, "style.safetensors")
    result = run("generate", "--like", "a.png", "-o", "c.png")
    assert result.exit_code != 0
    assert "has changed since" in result.stderr
    succeeded(run("generate", "--like", "a.png", "--lora", "style.safetensors", "-o", "c.png"))
    (tmp_path / "pickled.pt").write_bytes(b"")
    result = run("generate", *given, "--embedding", "pickled.pt")
    assert "only safetensors are read here" in result.stderr


def test_a_picture_for_a_prompt_can_be_made_again(tiny, drawn, tmp_path):
    import calotype

    unet = calotype.UNet2DConditionModel.from_pretrained(tiny / "unet")
    ip_adapter_parts.save(ip_adapter_parts.adapter(unet, "plain", 1), tmp_path / "look.safetensors")
    ip_adapter_parts.image_encoder_folder(tmp_path / "image_encoder")
    given = ("a ball", "-m", tiny, *QUICK, "--seed", 3)
    look = ("--ip-adapter", "look.safetensors:0.7", "--ip-image", "photo.png")
    succeeded(run("generate", *given, "-o", "plain.png"))
    succeeded(run("generate", *given, *look, "-o", "a.png"))
    assert not np.array_equal(pixels("plain.png"), pixels("a.png"))
    made = read_settings("a.png")
    assert made.inputs["ip_adapter"][0]["scale"] == 0.7
    assert made.inputs["ip_image"][0]["file"] == "photo.png"
    shown = " ".join(succeeded(run("show", "a.png")).stdout.split())
    assert "IP-Adapter look.safetensors (0.7) Its picture photo.png" in shown
    result = succeeded(run("generate", "--like", "a.png", "-o", "b.png", "--json"))
    assert json.loads(result.stdout)["same_pixels"] is True
    succeeded(run("generate", "--like", "a.png", "--ip-adapter", "look.safetensors:0", "-o", "c.png"))
    assert np.array_equal(pixels("plain.png"), pixels("c.png"))
    edges = ("--image", "photo.png", "--strength", 0.9, "--ip-image", "edges.png")
    succeeded(run("generate", "--like", "a.png", *edges, "-o", "d.png"))
    assert not np.array_equal(pixels("a.png"), pixels("d.png"))
    PIL.Image.new("RGB", (8, 8)).save("photo.png")
    assert "has changed since" in run("generate", "--like", "a.png", "-o", "e.png").stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--lora", ":0.5"], "names no file"),
        (["--ip-adapter", "a.safetensors"], "1 --ip-adapter and 0 --ip-image"),
        (["--ip-adapter", "nowhere.safetensors", "--ip-image", "photo.png"], "is no file"),
        (["--mask", "mask.png"], "--mask needs --image"),
        (["--strength", "0.5"], "--strength needs --image"),
        (["--image", "photo.png", "--strength", "2"], "strength must be between 0 and 1"),
        (["--image", "nowhere.png"], "neither an existing file"),
        (
            ["--control", "edges.png", "--controlnet", "a", "--controlnet", "b"],
            "1 --control and 2 --controlnet",
        ),
        (["--control", "edges.png"], "0 models that read one"),
    ],
)
def test_pictures_that_mean_nothing_are_refused(tiny, drawn, options, words):
    result = run("generate", "a ball", "-m", tiny, *QUICK, *options, "-o", "a.png")
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())
    assert not Path("a.png").exists()


def test_a_model_that_steers_nothing_is_named(tiny, drawn):
    given = ("--control", "edges.png", "--controlnet", tiny / "unet")
    result = run("generate", "a ball", "-m", tiny, *QUICK, *given)
    assert result.exit_code == 2
    assert "a UNet2DConditionModel is no ControlNet and no T2I-Adapter" in result.stderr
