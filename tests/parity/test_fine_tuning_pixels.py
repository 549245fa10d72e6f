"""Trainings on pixels of tiny models: an unconditional one from scratch and an autoencoder, and that both libraries
load the results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import calotype
from calotype.core.errors import InputError
from calotype.training.data.batches import Drawing, PictureSet
from calotype.training.data.folder import open_picture, same_for_all
from calotype.training.data.pixels import PixelBatches
from calotype.training.data.sizes import cut
from calotype.training.fine_tuning.pixel_settings import UnconditionalSettings
from calotype.training.fine_tuning.pixels import _unet, train_unconditional, train_vae
from calotype.training.unconditional import UnconditionalObjective
from calotype.training.vae import psnr
from tests.tiny import stable_diffusion_folder

QUICK: dict[str, Any] = {
    "train_batch_size": 2,
    "report_every": 0.0,
    "device": "cpu",
    "say": lambda line: None,
}
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pixels")


@pytest.fixture(scope="module")
def pictures(room: Path) -> Path:
    """Five pictures of different shapes, a light square on something dark."""
    folder = room / "pictures"
    folder.mkdir()
    for number, color in enumerate(("red", "green", "blue", "purple", "teal")):
        picture = PIL.Image.new("RGB", (40 + 8 * number, 40), color)
        picture.paste("white", (10, 8, 24, 20 + number))
        picture.save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def shape(room: Path) -> Path:
    """The configuration of a tiny model, of another size than what is trained."""
    model = calotype.UNet2DModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    model.save_config(room / "shape")
    return room / "shape"


@pytest.fixture(scope="module")
def model(room: Path) -> Path:
    return stable_diffusion_folder(room / "model")


def losses(folder: Path) -> list[float]:
    lines = (folder / "training" / "log.jsonl").read_text().splitlines()
    return [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]


# -- an unconditional model ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def options(pictures: Path, shape: Path) -> dict[str, Any]:
    return {
        "train_data_dir": pictures, "model_config_name_or_path": str(shape), "resolution": 16,
        "random_flip": True, "center_crop": False, "prediction_type": "v_prediction", "ddpm_num_steps": 50,
        "ddpm_beta_schedule": "squaredcos_cap_v2", "lr_scheduler": "constant", "lr_warmup_steps": 2,
        "learning_rate": 2e-3, "use_ema": True, "ema_decay": 0.5, "gradient_accumulation_steps": 2,
        "num_validation_images": 2, "ddpm_num_inference_steps": 2, **QUICK,
    }  # fmt: skip


@pytest.fixture(scope="module")
def drawn(room: Path, options: dict[str, Any]) -> Path:
    return train_unconditional(output_dir=room / "drawn", max_train_steps=6, **options)


def test_a_trained_pipeline_draws_the_same_here_and_in_the_reference(drawn: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    made = []
    for library in (calotype, diffusers):
        pipe = library.DDPMPipeline.from_pretrained(drawn)
        assert type(pipe.scheduler).__name__ == "DDPMScheduler"
        assert pipe.scheduler.config.prediction_type == "v_prediction"
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        made.append(pipe(generator=generator, num_inference_steps=3, output_type="np").images)
    assert made[0].shape == (1, 16, 16, 3)
    np.testing.assert_allclose(*made, atol=1e-4)
    names = {path.name for path in drawn.iterdir()}
    assert names == {"README.md", "model_index.json", "samples", "scheduler", "training", "unet"}
    assert [path.name for path in (drawn / "samples").iterdir()] == ["step-000006.png"]
    card = (drawn / "README.md").read_text()
    for words in (
        "pipeline_tag: unconditional",
        "| pictures | 5 |",
        "| steps | 6 |",
        "| pictures a step | 4 |",
    ):
        assert words in card
    assert "base" not in card


def test_a_resumed_training_has_the_same_losses_and_weights(
    drawn: Path, room: Path, options: dict[str, Any]
) -> None:
    out = room / "broken"
    train_unconditional(output_dir=out, max_train_steps=3, **options)
    with pytest.raises(InputError, match="other settings .ddpm_num_steps: 50 then, 60 now"):
        train_unconditional(
            output_dir=out, max_train_steps=6, resume=True, **{**options, "ddpm_num_steps": 60}
        )
    torch.manual_seed(77)
    train_unconditional(output_dir=out, max_train_steps=6, resume=True, **options)
    assert len(losses(out)) == 6 and losses(out) == losses(drawn)
    for name, value in load_file(out / "unet" / WEIGHTS).items():
        assert torch.equal(value, load_file(drawn / "unet" / WEIGHTS)[name]), name


def test_training_lowers_the_loss(pictures: Path, shape: Path, room: Path) -> None:
    out = train_unconditional(
        output_dir=room / "lower", train_data_dir=pictures, model_config_name_or_path=str(shape),
        resolution=16, max_train_steps=60, lr_warmup_steps=0, learning_rate=5e-3,
        num_validation_images=1, ddpm_num_inference_steps=2, prediction_type="sample", snr_gamma=1.0,
        mixed_precision="bf16", **QUICK,
    )  # fmt: skip
    values = losses(out)
    assert sum(values[-10:]) < 0.6 * sum(values[:10])
    assert [path.name for path in (out / "samples").iterdir()] == ["step-000060.png"]


def test_the_loss_is_that_of_the_reference_s_noise() -> None:
    """Also for the sample, whose error counts by the SNR as that of the noise does."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler()
    x, eps, steps = torch.randn(3, 3, 8, 8), torch.randn(3, 3, 8, 8), torch.tensor([3, 500, 990])

    class Doubles(torch.nn.Module):
        def forward(self, noisy: torch.Tensor, time: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor]:
            return (2 * noisy,)

    noisy, bar = scheduler.add_noise(x, eps, steps), scheduler.alphas_cumprod[steps].view(3, 1, 1, 1)
    wanted = {
        "epsilon": (2 * noisy - eps).square().mean(),
        "sample": ((2 * noisy - x).square() * bar / (1 - bar)).mean(),
    }
    batch = {"images": x, "noise": eps, "timesteps": steps}
    for prediction, gamma in (("epsilon", None), ("sample", float("inf"))):
        objective = UnconditionalObjective(Doubles(), scheduler.alphas_cumprod, prediction, gamma)  # type: ignore[arg-type]
        torch.testing.assert_close(objective(batch)["loss"], wanted[prediction], rtol=1e-4, atol=0)


def test_without_a_configuration_the_model_is_the_script_s() -> None:
    settings = UnconditionalSettings.of({"output_dir": "x", "train_data_dir": "x", "resolution": 96})
    with torch.device("meta"):
        unet = _unet(settings)
    assert sum(parameter.numel() for parameter in unet.parameters()) == 113_673_219
    assert unet.config.sample_size == 96
    assert unet.config.up_block_types[1] == "AttnUpBlock2D"
    assert unet.config.down_block_types[4] == "AttnDownBlock2D"


def test_pictures_are_a_function_of_the_number(pictures: Path) -> None:
    examples = tuple(same_for_all(pictures, []))
    sizes = ((16, 16),) * len(examples)

    def batches(*drawing: bool, seed: int = 0) -> PixelBatches:
        chosen = PictureSet(examples, sizes, 2, seed)
        return PixelBatches(chosen, (3, 16, 16), torch.device("cpu"), Drawing(*drawing), 10, seed=seed)

    moving, still = batches(True, True), batches(False, False)
    for name, value in moving(4).items():
        assert torch.equal(value, batches(True, True)(4)[name]), name
        assert not torch.equal(value, batches(True, True, seed=1)(4)[name]), name
    again = batches(False, False)
    assert torch.equal(still(0)["images"], again(0)["images"])
    flipped = batches(False, True)
    seen = [flipped(i)["images"] for i in range(4)]
    same = [torch.equal(a, still(i)["images"][j]) for i, part in enumerate(seen) for j, a in enumerate(part)]
    back = [
        torch.equal(a.flip(-1), still(i)["images"][j])
        for i, part in enumerate(seen)
        for j, a in enumerate(part)
    ]
    assert True in same and False in same
    assert all(x or y for x, y in zip(same, back, strict=True))
    shown = still.middle(0)
    assert shown.shape == (1, 3, 16, 16) and shown.amax() == 1 and shown.amin() == -1


# -- an autoencoder --------------------------------------------------------------------------------------------


def test_a_decoder_learns_while_the_encoder_stays(room: Path, model: Path, pictures: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    out = train_vae(
        pretrained_model_name_or_path=model, output_dir=room / "vae", train_data_dir=pictures, resolution=32,
        decoder_only=True, learning_rate=3e-3, max_train_steps=25, num_validation_images=2,
        validation_steps=5, mixed_precision="bf16", **QUICK,
    )  # fmt: skip
    old, new = (load_file(folder / WEIGHTS) for folder in (model / "vae", out))
    assert all(
        torch.equal(new[name], value) for name, value in old.items() if name.startswith(("enc", "quant"))
    )
    assert all(not torch.equal(new[name], value) for name, value in old.items() if name.startswith("dec"))
    values = losses(out)
    assert sum(values[-5:]) < 0.9 * sum(values[:5])
    entries = [json.loads(line) for line in (out / "training" / "log.jsonl").read_text().splitlines()]
    quality = [entry["psnr"] for entry in entries if "psnr" in entry]
    assert len(quality) == 5
    written = calotype.AutoencoderKL.from_pretrained(out)
    shown = [cut(open_picture(pictures / f"{i}.png"), (32, 32)).pixels[None] for i in range(2)]
    assert quality[-1] == pytest.approx(sum(psnr(written, one) for one in shown) / 2, abs=0.1)
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    made = [
        library.AutoencoderKL.from_pretrained(out)(image).sample.detach() for library in (calotype, diffusers)
    ]
    torch.testing.assert_close(*made, rtol=0, atol=1e-5)
    pipe = calotype.StableDiffusionPipeline.from_pretrained(model)
    pipe.vae = calotype.AutoencoderKL.from_pretrained(out)
    card = (out / "README.md").read_text()
    assert "| encoder | as it was |" in card and str(model) in card and "samples/step-000025.png" in card


def test_an_autoencoder_that_stands_alone_is_trained_as_a_whole(
    room: Path, model: Path, pictures: Path
) -> None:
    options = {
        "train_data_dir": pictures,
        "resolution": 32,
        "learning_rate": 1e-3,
        "num_validation_images": 0,
    }
    out = train_vae(
        pretrained_model_name_or_path=model / "vae", output_dir=room / "alone", subfolder="", kl_scale=0.1,
        max_train_steps=2, gradient_checkpointing=True, **options, **QUICK,
    )  # fmt: skip
    old, new = (load_file(folder / WEIGHTS) for folder in (model / "vae", out))
    assert all(
        not torch.equal(new[name], value) for name, value in old.items() if name.endswith("conv.weight")
    )
    part = {name for name, value in old.items() if not torch.equal(new[name], value)}
    assert any(name.startswith("encoder.") for name in part) and any(n.startswith("decoder.") for n in part)


# -- what is refused, and the command --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "options", "words"),
    [
        (train_unconditional, {"resolution": 48}, "multiple of 32, not 48"),
        (train_unconditional, {"prediction_type": "noise"}, "can be epsilon, v_prediction, sample"),
        (train_unconditional, {"validation_prompts": "a ball"}, "no option 'validation_prompts'"),
        (train_unconditional, {"train_data_dir": "nowhere"}, "no folder 'nowhere'"),
        (train_vae, {"resolution": 33}, "multiple of 8, not 33"),
        (train_vae, {"pretrained_model_name_or_path": None}, "'pretrained_model_name_or_path' is needed"),
    ],
)  # fmt: skip
def test_bad_options_write_nothing(
    tmp_path: Path, model: Path, pictures: Path, function: Any, options: dict[str, Any], words: str
) -> None:
    own = {"pretrained_model_name_or_path": model} if function is train_vae else {}
    with pytest.raises(InputError, match=words):
        function(output_dir=tmp_path / "out", **{"train_data_dir": pictures, **own, **QUICK, **options})
    assert list(tmp_path.iterdir()) == []


def test_the_commands_have_the_same_words(tmp_path: Path, model: Path, pictures: Path, shape: Path) -> None:
    from calotype.cli.app import app

    common = f"--train_data_dir {pictures} --max-train-steps 1 --device cpu --num-validation-images 0"
    for line, file in (
        (f"unconditional --model-config-name-or-path {shape} --resolution 16", "model_index.json"),
        (f"vae -m {model} --resolution 32 --decoder-only", "config.json"),
    ):
        out = tmp_path / file
        result = CliRunner().invoke(app, f"train {line} {common} --out {out}".split())
        assert result.exit_code == 0, result.stderr
        assert result.stdout.strip() == str(out)
        assert (out / file).is_file()
