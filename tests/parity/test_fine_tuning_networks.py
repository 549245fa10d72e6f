"""Training of networks for a task of their own on tiny checkpoints: distillation, ControlNets, inpainting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file

import calotype
from calotype.core.errors import InputError
from calotype.training.data.beside import hole
from calotype.training.fine_tuning.controlnet import widths
from calotype.training.fine_tuning.inpainting import reading_holes, widened
from tests.tiny import stable_diffusion_folder, stable_diffusion_xl_folder

QUICK = {"resolution": 64, "train_batch_size": 2, "report_every": 0.0, "device": "cpu", "learning_rate": 3e-3}
COLORS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220)}


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("networks")


@pytest.fixture(scope="module")
def model(room: Path) -> Path:
    return stable_diffusion_folder(room / "model")


@pytest.fixture(scope="module")
def xl(room: Path) -> Path:
    return stable_diffusion_xl_folder(room / "xl", calotype)


@pytest.fixture(scope="module")
def pictures(room: Path) -> Path:
    folder = room / "pictures"
    (folder / "edges").mkdir(parents=True)
    lines = []
    for number, (name, color) in enumerate(COLORS.items()):
        size = (64 + 16 * number, 64)
        PIL.Image.new("RGB", size, color).save(folder / f"{name}.png")
        PIL.Image.new("L", size, 80 * number).save(folder / "edges" / f"{name}.png")
        lines.append(
            {"file_name": f"{name}.png", "text": f"a {name} ball", "conditioning_image": f"edges/{name}.png"}
        )
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def train(function: Any, out: Path, model: Path, pictures: Path, **options: Any) -> Path:
    return function(
        pretrained_model_name_or_path=model, output_dir=out, train_data_dir=pictures, say=lambda line: None,
        **{**QUICK, **options},
    )  # fmt: skip


def losses(folder: Path) -> list[float]:
    lines = (folder / "training" / "log.jsonl").read_text().splitlines()
    return [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]


def draw(pipe: Any, **options: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe("a red ball", num_inference_steps=2, generator=generator, output_type="np", **options).images[
        0
    ]


CASES: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "lcm-lora": (calotype.train_lcm, "pytorch_lora_weights.safetensors", {"rank": 2}),
    "lcm-whole": (
        calotype.train_lcm, "unet/diffusion_pytorch_model.safetensors",
        {"lora": False, "gradient_checkpointing": True},
    ),
    "controlnet": (
        calotype.train_controlnet, "diffusion_pytorch_model.safetensors",
        {"random_flip": True, "center_crop": False, "gradient_checkpointing": True, "learning_rate": 0.03},
    ),
    "inpainting": (
        calotype.train_inpainting, "unet/diffusion_pytorch_model.safetensors", {"aspect_ratio_buckets": True}
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def results(room: Path, model: Path, pictures: Path) -> dict[str, Path]:
    """Each kind after three steps."""
    return {
        name: train(function, room / name, model, pictures, max_train_steps=3, seed=3, **options)
        for name, (function, _, options) in CASES.items()
    }


@pytest.mark.parametrize("case", ["lcm-whole", "controlnet", "inpainting"])
def test_a_resumed_run_ends_at_the_same_weights(
    case: str, results: dict[str, Path], room: Path, model: Path, pictures: Path
) -> None:
    function, file, options = CASES[case]
    out = room / f"{case}-broken"
    train(function, out, model, pictures, max_train_steps=1, seed=3, **options)
    torch.manual_seed(77)
    train(function, out, model, pictures, max_train_steps=3, seed=3, resume=True, **options)
    assert losses(out) == losses(results[case])
    assert len(set(losses(out))) == 3
    for name, value in load_file(out / file).items():
        assert torch.equal(value, load_file(results[case] / file)[name]), name
    card = (out / "README.md").read_text()
    assert f"tags: [stable-diffusion, text-to-image, {case.split('-')[0]}, calotype]" in card


def both(kind: str, folder: Path, **parts: Any) -> list[Any]:
    diffusers = pytest.importorskip("diffusers")
    return [getattr(library, kind).from_pretrained(folder, **parts) for library in (calotype, diffusers)]


def test_lcm_weights_draw_the_same_here_and_in_the_reference(results: dict[str, Path], model: Path) -> None:
    made = []
    libraries = (calotype, pytest.importorskip("diffusers"))
    for library, pipe in zip(libraries, both("StableDiffusionPipeline", model), strict=True):
        pipe.scheduler = library.LCMScheduler.from_config(pipe.scheduler.config)
        before = draw(pipe, guidance_scale=1.0)
        pipe.load_lora_weights(results["lcm-lora"])
        made.append(draw(pipe, guidance_scale=1.0))
        assert np.abs(made[-1] - before).max() > 1e-3
    np.testing.assert_allclose(*made, atol=1e-4)
    keys = load_file(results["lcm-lora"] / CASES["lcm-lora"][1])
    assert any(".resnets.0.conv1.lora_A" in key for key in keys)


def test_a_distilled_unet_is_told_the_guidance_in_both(results: dict[str, Path]) -> None:
    mine, theirs = both("LatentConsistencyModelPipeline", results["lcm-whole"])
    assert mine.scheduler.config.original_inference_steps == 50
    made = [draw(pipe, guidance_scale=8.5) for pipe in (mine, theirs)]
    np.testing.assert_allclose(*made, atol=1e-4)
    assert np.abs(made[0] - draw(mine, guidance_scale=3.0)).max() > 1e-5


def test_a_trained_controlnet_steers_both(results: dict[str, Path], model: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    made = []
    for library in (calotype, diffusers):
        controlnet = library.ControlNetModel.from_pretrained(results["controlnet"])
        pipe = library.StableDiffusionControlNetPipeline.from_pretrained(
            model, controlnet=controlnet, safety_checker=None
        )
        shown = [PIL.Image.new("RGB", (64, 64), color) for color in ("black", "white")]
        made.append([draw(pipe, image=picture) for picture in shown])
    np.testing.assert_allclose(*made, atol=1e-4)
    assert np.abs(made[0][0] - made[0][1]).max() > 1e-4


def test_a_widened_unet_fills_holes_in_both(results: dict[str, Path], model: Path) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 255
    pair = both("StableDiffusionInpaintPipeline", results["inpainting"])
    options = {"image": PIL.Image.new("RGB", (64, 64), "red"), "mask_image": PIL.Image.fromarray(mask)}
    np.testing.assert_allclose(*(draw(pipe, **options) for pipe in pair), atol=1e-4)
    assert pair[0].unet.config.in_channels == 9
    assert pair[0].unet.conv_in.weight[:, 4:].abs().max() > 0


def test_xl_and_what_begins_from_results(
    results: dict[str, Path], room: Path, model: Path, xl: Path, pictures: Path
) -> None:
    options: dict[str, Any] = {"max_train_steps": 1, "mixed_precision": "bf16"}
    shown = [str(pictures / "red.png")]
    say = {"validation_prompts": ["a red ball"], "validation_images": shown, "validation_inference_steps": 1}
    for name, function, more in (
        ("xl-lora", calotype.train_lcm, {"rank": 2, "target_modules": "to_q,conv1"}),
        ("xl-whole", calotype.train_lcm, {"lora": False, "loss_type": "l2"}),
        ("xl-control", calotype.train_controlnet, say),
        (
            "xl-fill",
            calotype.train_inpainting,
            {**say, "validation_masks": [str(pictures / "edges" / "blue.png")]},
        ),
    ):
        out = train(function, room / name, xl, pictures, **options, **more)
        assert np.isfinite(losses(out)).all()
        assert (out / "samples" / "step-000001.png").is_file() == ("validation_prompts" in more)
    again = train(
        calotype.train_controlnet, room / "again", model, pictures, max_train_steps=1,
        controlnet_model_name_or_path=str(results["controlnet"]),
    )  # fmt: skip
    old, new = (load_file(p / "diffusion_pytorch_model.safetensors") for p in (results["controlnet"], again))
    assert 0 < (old["conv_in.weight"] - new["conv_in.weight"]).abs().max() < 0.02
    train(calotype.train_inpainting, room / "filled", results["inpainting"], pictures, max_train_steps=1)


def test_widening_changes_nothing_yet(model: Path) -> None:
    unet = calotype.UNet2DConditionModel.from_pretrained(model, subfolder="unet")
    wide = widened(unet, 9)
    x, states = torch.randn(2, 9, 8, 8), torch.randn(2, 16, 32)
    torch.testing.assert_close(wide(x, 5, states).sample, unet(x[:, :4], 5, states).sample)
    pipe = calotype.StableDiffusionPipeline.from_pretrained(model, unet=widened(unet, 7))
    with pytest.raises(InputError, match="takes 7 channels: for inpainting it has 9, or 4"):
        reading_holes("x", pipe)


def test_holes_are_of_all_sizes_and_some_are_everything() -> None:
    generator = torch.Generator().manual_seed(0)
    shares = torch.stack([hole(40, 64, 0.25, generator).mean() for _ in range(200)])
    assert 0.15 < (shares == 1).float().mean() < 0.4
    assert 0 < shares.min() < 0.05
    assert 0.1 < shares[shares < 1].median() < 0.5
    assert (hole(8, 8, 0.0, generator).unique() >= 0).all()
    assert [widths(f) for f in (4, 8, 16)] == [(16, 32, 96), (16, 32, 96, 256), (16, 32, 96, 256, 256)]


@pytest.mark.parametrize(
    ("function", "options", "words"),
    [
        (calotype.train_lcm, {"w_min": 5.0, "w_max": 4.0}, "w_max must be at least w_min"),
        (calotype.train_lcm, {"snr_gamma": 5.0}, "a distillation does not have"),
        (calotype.train_lcm, {"target_modules": "to_x"}, "is called 'to_x'"),
        (calotype.train_lcm, {"num_ddim_timesteps": 2000}, "more than"),
        (calotype.train_controlnet, {"validation_prompts": ["x"]}, "needs one of validation_images"),
        (calotype.train_controlnet, {"conditioning_image_column": "depth"}, "has no 'depth'"),
        (calotype.train_inpainting, {"whole_mask": 1.5}, "whole_mask is from 0 to 1"),
    ],
)
def test_what_cannot_be_writes_nothing(
    tmp_path: Path, model: Path, pictures: Path, function: Any, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        train(function, tmp_path / "out", model, pictures, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_control_picture_of_another_shape_is_refused(
    tmp_path: Path, model: Path, pictures: Path, results: dict[str, Path]
) -> None:
    (tmp_path / "data").mkdir()
    for name, size in (("a", (64, 64)), ("b", (64, 80))):
        PIL.Image.new("RGB", size).save(tmp_path / "data" / f"{name}.png")
    row = {"file_name": "a.png", "text": "a ball", "conditioning_image": "b.png"}
    (tmp_path / "data" / "metadata.jsonl").write_text(json.dumps(row))
    with pytest.raises(InputError, match="need the same proportions"):
        train(calotype.train_controlnet, tmp_path / "out", model, tmp_path / "data")
    with pytest.raises(InputError, match="is for another model"):
        train(
            calotype.train_controlnet, tmp_path / "out", model, pictures,
            controlnet_model_name_or_path=str(_other_controlnet(tmp_path)),
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def _other_controlnet(folder: Path) -> Path:
    from tests.tiny import UNET

    config = {
        k: v for k, v in UNET.items() if k in ("down_block_types", "block_out_channels", "norm_num_groups")
    }
    calotype.ControlNetModel(**config, cross_attention_dim=48).save_pretrained(folder / "other")
    return folder / "other"
