"""Fine-tuning of tiny checkpoints: what is learned and what is left, and that the reference loads the results."""

from __future__ import annotations

import json
import sys
import types
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
from calotype.training.checkpoint import Position
from calotype.training.data.folder import read_captioned
from calotype.training.fine_tuning import recipes
from calotype.training.fine_tuning.base import Base
from calotype.training.fine_tuning.run import _board, begin, picture_set, teach
from calotype.training.fine_tuning.settings import LoraSettings
from calotype.training.text_to_image import TextToImageObjective
from tests.tiny import stable_diffusion_folder, stable_diffusion_xl_folder

COLORS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "night": (10, 10, 10)}
QUICK = {"resolution": 64, "train_batch_size": 2, "report_every": 0.0, "device": "cpu"}


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fine-tuning")


@pytest.fixture(scope="module")
def model(room: Path) -> Path:
    return stable_diffusion_folder(room / "model")


@pytest.fixture(scope="module")
def pictures(room: Path) -> Path:
    folder = room / "pictures"
    folder.mkdir()
    for number, (name, color) in enumerate(COLORS.items()):
        PIL.Image.new("RGB", (64 + 16 * number, 64), color).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a {name} ball")
    return folder


@pytest.fixture(scope="module")
def reference(model: Path) -> Any:
    diffusers = pytest.importorskip("diffusers")
    return diffusers.StableDiffusionPipeline.from_pretrained(model)


def train(function: Any, out: Path, model: Path, **options: Any) -> Path:
    return function(
        pretrained_model_name_or_path=model, output_dir=out, say=lambda line: None, **{**QUICK, **options}
    )


def draw(pipe: Any, prompt: str) -> Any:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe(prompt, num_inference_steps=2, generator=generator, output_type="np").images[0]


def losses(folder: Path) -> list[float]:
    lines = (folder / "training" / "log.jsonl").read_text().splitlines()
    return [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]


# -- LoRA ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lora(room: Path, model: Path, pictures: Path) -> Path:
    return train(
        recipes.train_lora, room / "lora", model, train_data_dir=pictures, train_text_encoder=True, rank=2,
        lora_alpha=4.0, learning_rate=3e-3, max_train_steps=6, random_flip=True, center_crop=False,
        use_ema=True, ema_decay=0.5, proportion_empty_prompts=0.2, noise_offset=0.1, seed=3,
        gradient_checkpointing=True,
    )  # fmt: skip


def test_lora_looks_the_same_here_and_in_the_reference(lora: Path, model: Path, reference: Any) -> None:
    pipe = calotype.StableDiffusionPipeline.from_pretrained(model)
    before = draw(pipe, "a red ball")
    pipe.load_lora_weights(lora)
    assert set(pipe.get_list_adapters()) == {"unet", "text_encoder"}
    mine = draw(pipe, "a red ball")
    reference.load_lora_weights(lora)
    theirs = draw(reference, "a red ball")
    reference.unload_lora_weights()
    np.testing.assert_allclose(mine, theirs, atol=1e-4)
    assert np.abs(mine - before).max() > 1e-3


def test_a_resumed_run_has_the_same_losses_and_result(
    lora: Path, room: Path, model: Path, pictures: Path
) -> None:
    options = {
        "train_data_dir": pictures, "train_text_encoder": True, "rank": 2, "lora_alpha": 4.0,
        "learning_rate": 3e-3, "random_flip": True, "center_crop": False, "use_ema": True, "ema_decay": 0.5,
        "proportion_empty_prompts": 0.2, "noise_offset": 0.1, "seed": 3, "gradient_checkpointing": True,
    }  # fmt: skip
    out = room / "broken"
    train(recipes.train_lora, out, model, max_train_steps=2, **options)
    with pytest.raises(InputError, match="is not empty"):
        train(recipes.train_lora, out, model, max_train_steps=6, **options)
    with pytest.raises(InputError, match="other settings .rank: 2 then, 3 now"):
        train(recipes.train_lora, out, model, max_train_steps=6, resume=True, **{**options, "rank": 3})
    torch.manual_seed(77)
    train(recipes.train_lora, out, model, max_train_steps=6, resume=True, **options)
    assert losses(out) == losses(lora)
    assert len(losses(out)) == 6
    for name, value in load_file(out / "pytorch_lora_weights.safetensors").items():
        assert torch.equal(value, load_file(lora / "pytorch_lora_weights.safetensors")[name]), name


def test_lora_lowers_the_loss_and_changes_nothing_else(room: Path, model: Path, pictures: Path) -> None:
    settings = LoraSettings.of(
        {
            **QUICK, "pretrained_model_name_or_path": str(model), "output_dir": room / "inner",
            "train_data_dir": pictures, "max_train_steps": 16, "learning_rate": 1e-2, "rank": 4,
            "validation_prompts": ["a red ball"], "validation_inference_steps": 1,
            "target_modules": "to_k,to_q,to_v,to_out.0,proj_in,conv1",
        }
    )  # fmt: skip
    examples = read_captioned(pictures)
    base = begin(settings, examples)
    before = {name: value.clone() for name, value in base.pipe.unet.state_dict().items()}
    lesson = recipes._low_rank(settings, base, "lora")
    generator = torch.Generator().manual_seed(0)
    fixed = {
        "latents": torch.randn(4, 4, 8, 8, generator=generator),
        "noise": torch.randn(4, 4, 8, 8, generator=generator),
        "timesteps": torch.tensor([100, 300, 500, 700]),
        "states": base.states(["a red ball"] * 4)["states"],
    }
    values = [lesson.objective(fixed)["loss"].item()]
    teach(settings, base, lesson, [(picture_set(settings, base, examples), 1.0)], lambda line: None)
    values.append(lesson.objective(fixed)["loss"].item())
    assert values[1] < 0.95 * values[0], values
    after = base.pipe.unet.state_dict()
    for name, value in before.items():
        assert torch.equal(after[name], value), name
    assert [path.name for path in (room / "inner" / "samples").iterdir()] == ["step-000016.png"]
    card = (room / "inner" / "README.md").read_text()
    for words in ("| pictures | 4 |", "| steps | 16 |", "`learning_rate` | 0.01", "samples/step-000016.png"):
        assert words in card


def test_lora_of_xl_loads_in_the_reference(room: Path, pictures: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    model = stable_diffusion_xl_folder(room / "xl", calotype)
    options = {"train_data_dir": pictures, "aspect_ratio_buckets": True, "learning_rate": 3e-3}
    out = train(recipes.train_lora, room / "xl-lora", model, max_train_steps=3, **options)
    made = []
    for library in (calotype, diffusers):
        pipe = library.StableDiffusionXLPipeline.from_pretrained(model)
        pipe.load_lora_weights(out)
        made.append(draw(pipe, "a red ball"))
    np.testing.assert_allclose(*made, atol=1e-4)
    with pytest.raises(InputError, match="one text encoder"):
        train(recipes.train_lora, room / "no", model, train_text_encoder=True, **options)
    assert not (room / "no").exists()


# -- all weights -----------------------------------------------------------------------------------------------


def test_a_fine_tuned_folder_loads_in_the_reference(room: Path, pictures: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    model = stable_diffusion_folder(room / "v")
    pipe = calotype.StableDiffusionPipeline.from_pretrained(model)
    pipe.scheduler = calotype.DDIMScheduler.from_config(
        pipe.scheduler.config,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    pipe.save_pretrained(model)
    base = Base.load(str(model), torch.device("cpu"))
    assert base.prediction == "v_prediction"
    assert base.training_scheduler.alphas_cumprod[-1] == 0
    out = train(
        recipes.train_text_to_image, room / "full", model, train_data_dir=pictures, max_train_steps=3,
        learning_rate=1e-3, use_ema=True, mixed_precision="bf16", gradient_accumulation_steps=2,
        cache_dir=str(room / "cache"), lr_scheduler="cosine",
    )  # fmt: skip
    assert len(list((room / "cache").glob("*.safetensors"))) == 4 + 5  # pictures; captions and the empty one
    mine = draw(calotype.StableDiffusionPipeline.from_pretrained(out), "a red ball")
    theirs = draw(diffusers.StableDiffusionPipeline.from_pretrained(out), "a red ball")
    np.testing.assert_allclose(mine, theirs, atol=1e-4)
    assert np.abs(mine - draw(pipe, "a red ball")).max() > 1e-3
    for part in ("vae", "text_encoder"):
        (old,), (new,) = ((folder / part).glob("*.safetensors") for folder in (model, out))
        assert old.read_bytes() == new.read_bytes(), part


# -- a word ----------------------------------------------------------------------------------------------------


def test_textual_inversion_learns_new_rows_alone(
    room: Path, model: Path, pictures: Path, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Base] = []
    load = Base.load
    monkeypatch.setattr(Base, "load", lambda *args: seen.append(load(*args)) or seen[-1])
    out = train(
        recipes.train_textual_inversion, room / "word", model, train_data_dir=pictures, max_train_steps=4,
        placeholder_token="<thing>", initializer_token="ball", num_vectors=2, learning_rate=0.1,
    )  # fmt: skip
    pipe = calotype.StableDiffusionPipeline.from_pretrained(model)
    (base,) = seen
    for part in ("unet", "vae", "text_encoder"):
        old, new = getattr(pipe, part).state_dict(), getattr(base.pipe, part).state_dict()
        for name, value in old.items():
            assert torch.equal(new[name][: len(value)], value), name
    vectors = load_file(out / "learned_embeds.safetensors")["<thing>"]
    beginning = pipe.text_encoder.get_input_embeddings().weight[pipe.tokenizer("ball").input_ids[1]]
    assert vectors.shape == (2, 32)
    assert (vectors - beginning).abs().min(dim=1).values.max() > 0
    assert not torch.equal(vectors[0], vectors[1])
    pipe.load_textual_inversion(out)
    reference.load_textual_inversion(out)
    made = [draw(each, "<thing> on grass") for each in (pipe, reference)]
    reference.unload_textual_inversion()
    np.testing.assert_allclose(*made, atol=1e-4)


# -- DreamBooth ------------------------------------------------------------------------------------------------


def test_dreambooth_makes_class_pictures_and_weighs_them(room: Path, model: Path, pictures: Path) -> None:
    kept = room / "class"
    kept.mkdir()
    PIL.Image.new("RGB", (64, 64), "white").save(kept / "own.png")
    options = {
        "instance_data_dir": pictures, "instance_prompt": "a red ball", "with_prior_preservation": True,
        "class_data_dir": str(kept), "class_prompt": "a ball", "num_class_images": 4, "sample_batch_size": 2,
        "validation_inference_steps": 1, "max_train_steps": 1, "lora": True,
    }  # fmt: skip
    heavy = train(recipes.train_dreambooth, room / "dream", model, prior_loss_weight=3.0, **options)
    assert sorted(path.name for path in kept.iterdir()) == [
        "class-0-000000.png", "class-0-000001.png", "class-0-000002.png", "own.png",
    ]  # fmt: skip
    light = train(recipes.train_dreambooth, room / "dream-2", model, prior_loss_weight=1.0, **options)
    none = train(recipes.train_dreambooth, room / "dream-3", model, prior_loss_weight=0.0, **options)
    (a,), (b,), (c,) = losses(none), losses(light), losses(heavy)
    assert b > a
    assert c == pytest.approx(a + 3 * (b - a), rel=1e-3)
    assert (heavy / "pytorch_lora_weights.safetensors").is_file()


def test_lora_learns_beside_what_shall_stay(room: Path, model: Path, pictures: Path) -> None:
    """The loss is one folder's plus the weight times the other's."""
    kept = room / "kept"
    kept.mkdir()
    for name in ("white", "gray"):
        PIL.Image.new("RGB", (64, 64), name).save(kept / f"{name}.png")
        (kept / f"{name}.txt").write_text(f"a {name} ball")
    options = {"train_data_dir": pictures, "prior_data_dir": kept, "max_train_steps": 1}
    found = [
        losses(
            train(recipes.train_lora, room / f"beside-{weight}", model, prior_loss_weight=weight, **options)
        )[0]
        for weight in (0.0, 1.0, 3.0)
    ]
    assert found[1] > found[0]
    assert found[2] == pytest.approx(found[0] + 3 * (found[1] - found[0]), rel=1e-3)
    with pytest.raises(InputError, match="prior_data_dir trains pictures of two folders together"):
        train(recipes.train_lora, room / "no", model, aspect_ratio_buckets=True, **options)


# -- the loss --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("gamma", [None, 5.0])
def test_the_loss_is_that_of_the_reference_s_noise(prediction: str, gamma: float | None) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(beta_schedule="scaled_linear", prediction_type=prediction)
    x, eps, weights = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([1.0, 2.0, 0.5])
    steps = torch.tensor([3, 500, 990])

    class Doubles(torch.nn.Module):
        def forward(self, noisy: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor]:
            return (2 * noisy,)

    objective = TextToImageObjective(Doubles(), None, scheduler.alphas_cumprod, prediction, gamma)  # type: ignore[arg-type]
    batch = {
        "latents": x,
        "noise": eps,
        "timesteps": steps,
        "states": torch.zeros(3, 1, 1),
        "weights": weights,
    }
    target = eps if prediction == "epsilon" else scheduler.get_velocity(x, eps, steps)
    error = (2 * scheduler.add_noise(x, eps, steps) - target).square().mean((1, 2, 3))
    if gamma is not None:
        bar = scheduler.alphas_cumprod[steps]
        snr = bar / (1 - bar)
        error = error * snr.clamp(max=gamma) / (snr if prediction == "epsilon" else snr + 1)
    torch.testing.assert_close(objective(batch)["loss"], (error * weights).mean(), rtol=1e-4, atol=0)


def test_the_noise_is_that_of_any_scheduler_of_the_checkpoint() -> None:
    scheduler = calotype.DPMSolverMultistepScheduler(
        beta_schedule="scaled_linear", prediction_type="v_prediction"
    )
    base = Base("x", types.SimpleNamespace(scheduler=scheduler), torch.device("cpu"))
    assert base.prediction == "v_prediction"
    assert torch.equal(base.training_scheduler.alphas_cumprod, scheduler.alphas_cumprod)


# -- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"resolutoin": 64}, "no option 'resolutoin'; did you mean resolution"),
        ({"rank": 0}, "rank must be at least 1"),
        ({"rank": "4"}, "rank is of type int"),
        ({"mixed_precision": "fp8"}, "mixed_precision can be no, fp16, bf16"),
        ({"resolution": 60}, "multiple of 16, not 60"),
        ({"target_modules": "to_k,to_x"}, "is called 'to_x'"),
        ({"train_data_dir": None}, "'train_data_dir' is needed"),
        ({"resume": True}, "nothing to resume"),
        ({"device": "cuda:77"}, "device"),
        ({"learning_rate": float("nan")}, "learning_rate"),
    ],
)
def test_bad_options_write_nothing(
    tmp_path: Path, model: Path, pictures: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        train(recipes.train_lora, tmp_path / "out", model, **{"train_data_dir": pictures, **options})
    assert list(tmp_path.iterdir()) == []


def test_a_broken_picture_writes_nothing(tmp_path: Path, model: Path, pictures: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    whole = (pictures / "red.png").read_bytes()
    (data / "red.png").write_bytes(whole[: len(whole) // 2])
    (data / "red.txt").write_text("a red ball")
    with pytest.raises(InputError, match=r"cannot be read: .*red\.png"):
        train(recipes.train_lora, tmp_path / "out", model, train_data_dir=data)
    assert not (tmp_path / "out").exists()


def test_the_command_has_the_same_words(tmp_path: Path, model: Path, pictures: Path) -> None:
    from calotype.cli.app import app

    line = (
        f"train lora --model {model} --train_data_dir {pictures} --out {tmp_path / 'out'} --resolution 64 "
        f"--max_train_steps 1 --rank 1 --no-center-crop --mixed_precision fp16 --device cpu"
    )
    result = CliRunner().invoke(app, line.split())
    assert result.exit_code == 0, result.stderr
    assert result.stdout.strip() == str(tmp_path / "out")
    weights = load_file(tmp_path / "out" / "pytorch_lora_weights.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert "`center_crop`" not in (tmp_path / "out" / "README.md").read_text()
    again = CliRunner().invoke(app, line.split())
    assert again.exit_code == 2
    assert "is not empty" in again.stderr


def test_the_log_goes_to_tensorboard_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[str, float, int]] = []

    class SummaryWriter:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def flush(self) -> None:
            pass

    module = types.ModuleType("torch.utils.tensorboard")
    vars(module)["SummaryWriter"] = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    watch = _board(tmp_path)
    assert watch is not None
    watch(Position(step=3), {"loss": 0.5})
    assert written == [("loss", 0.5, 3)]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert _board(tmp_path) is None
