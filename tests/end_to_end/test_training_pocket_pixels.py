"""The members of the pocket family that work on pixels: a depth estimator, a tiny autoencoder, a model of pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import calotype
from calotype.core.errors import InputError
from calotype.pocket.renderer import SKY_DEPTH
from calotype.training.recipes.base import load_base
from calotype.training.recipes.pocket_family import BASE, train_pocket_family
from calotype.training.recipes.pocket_family.member import member_of
from calotype.training.recipes.pocket_family.members.depth_estimator import UNIT, correlation, inverse_depth
from calotype.training.recipes.pocket_family.settings import member_settings
from calotype.training.recipes.pocket_family.views import ViewSet
from tests.tiny_pocket import tiny_pocket

DEPTH, VAE, DRAWS = "pocket-depth-estimator", "pocket-tiny-vae", "pocket-unconditional"
OWN = {
    DEPTH: ["depth_estimator", "feature_extractor"],
    VAE: ["vae"],
    DRAWS: ["model_index.json", "scheduler", "unet"],
}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pocket(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def work(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    few = ["views.count=6", "views.chunk=3", "views.validation=3"]
    train(folder / "out", base, work=folder, stages=["views"], changes=few)
    return folder


def train(out: Path, base: Path, **options: Any) -> None:
    train_pocket_family(out, preset="tiny", base=base, device="cpu", **options)


@pytest.fixture(scope="module")
def out(base: Path, work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each member after some steps."""
    folder = tmp_path_factory.mktemp("out")
    changes = ["train.steps=30", "train.learning_rate=0.005", "train.ema_decay=0.5"]
    for name in OWN:
        train(folder, base, work=work, member=name, stages=["train", "export"], changes=changes)
    return folder


def numbers(out: Path, name: str, what: str) -> list[float]:
    lines = (out / f"{name}-log.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry[what] for entry in map(json.loads, lines) if what in entry]


@pytest.mark.parametrize("name", OWN)
def test_a_member_is_its_own_parts_in_half_precision(name: str, out: Path) -> None:
    from safetensors.torch import load_file

    folder = out / name
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", *OWN[name]]
    (weights,) = folder.rglob("*.safetensors")
    assert {tensor.dtype for tensor in load_file(weights).values()} == {torch.float16}
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "| steps | 30 of 2 (60 samples) |" in card and "| validation loss |" in card and "nan" not in card
    for extra in {DEPTH: ["correlation"], VAE: ["psnr", "latents"], DRAWS: []}[name]:
        assert f"| validation {extra} |" in card
        assert numbers(out, name, f"validation_{extra}")


@pytest.mark.parametrize("name", OWN)
def test_a_short_training_lowers_the_loss(name: str, base: Path, work: Path) -> None:
    parts = load_base(base, CPU)
    member = member_of(name)
    settings = member_settings(member, "tiny", ["train.batch=4"], None)
    torch.manual_seed(0)
    objective = member.objective(settings, parts).train()
    views = ViewSet(work / "views", CPU, member.fields)
    views.look()
    batches = member.batches(views, parts, settings)
    assert all(torch.equal(value, batches(7)[key]) for key, value in batches(7).items())
    learned = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(learned, lr=4e-3)
    values = []
    for number in range(40):
        loss = objective(batches(number))["loss"]
        loss.backward()
        assert all(parameter.grad is not None for parameter in learned)
        optimizer.step()
        optimizer.zero_grad()
        values.append(loss.item())
    assert sum(values[-8:]) < 0.85 * sum(values[:8]), values
    assert all(parameter.grad is None for parameter in parts.vae.parameters())


@pytest.mark.parametrize("name", OWN)
def test_weights_are_read_back_and_those_of_other_sizes_refused(name: str, out: Path, base: Path) -> None:
    member, parts = member_of(name), load_base(base, CPU)
    settings = member.settings("tiny")
    objective = member.objective(settings, parts)
    before = [parameter.clone() for parameter in objective.parameters() if parameter.requires_grad]
    member.restore(objective, out / name)
    after = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    assert sum(not torch.equal(a, b) for a, b in zip(before, after, strict=True)) > len(after) / 2
    with pytest.raises(InputError, match="There is no"):
        member.restore(objective, out)
    larger = member_settings(
        member, "tiny", {DEPTH: ["shape.fusion=16"], VAE: ["shape.width=12"], DRAWS: ["unet.layers=2"]}[name], None
    )  # fmt: skip
    with pytest.raises(InputError, match="sizes"):
        member.restore(member.objective(larger, parts), out / name)


@pytest.mark.parametrize("name", OWN)
def test_it_compiles_whole(name: str, base: Path) -> None:
    parts, member = load_base(base, CPU), member_of(name)
    settings = member.settings("tiny")
    objective = member.objective(settings, parts).train()
    batch = member.batches(ViewSet.blank(parts, member.fields), parts, settings)(0)
    compiled = torch.compile(objective, backend="eager", fullgraph=True, dynamic=False)
    with torch.autocast("cpu", torch.bfloat16):
        assert compiled(batch)["loss"].isfinite()


def test_at_full_size_they_are_small() -> None:
    parts = load_base(BASE, CPU)
    for name, (least, most) in {DEPTH: (0.8e6, 1.3e6), VAE: (0.2e6, 0.5e6), DRAWS: (0.8e6, 1.3e6)}.items():
        objective = member_of(name).objective(member_of(name).settings("full"), parts)
        count = sum(parameter.numel() for parameter in objective.parameters() if parameter.requires_grad)
        assert least < count < most, name


# -- depth -----------------------------------------------------------------------------------------------------


def test_nearness_is_none_in_the_sky_and_one_at_the_unit() -> None:
    depth = torch.tensor([[SKY_DEPTH, UNIT, UNIT / 2]])
    assert inverse_depth(depth)[0, 0] == 0
    torch.testing.assert_close(inverse_depth(depth)[0, 1:], torch.tensor([1.0, 2.0]) - UNIT / SKY_DEPTH)
    exact = torch.rand(2, 4, 4)
    torch.testing.assert_close(correlation(3 * exact + 1, exact), torch.tensor(1.0))
    torch.testing.assert_close(correlation(-exact, exact), torch.tensor(-1.0))
    assert correlation(torch.zeros(2, 4, 4), exact) == 0


def test_the_estimator_serves_depth_to_image_here_and_in_the_reference(out: Path, base: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    from transformers import DPTForDepthEstimation, DPTImageProcessor

    estimator = DPTForDepthEstimation.from_pretrained(out / DEPTH / "depth_estimator")
    processor = DPTImageProcessor.from_pretrained(out / DEPTH / "feature_extractor")
    assert estimator.dtype == torch.float32
    picture = Image.fromarray((np.random.default_rng(0).random((40, 48, 3)) * 255).astype("uint8"))
    pixels = processor(images=picture, return_tensors="pt").pixel_values
    side = estimator.config.image_size
    assert pixels.shape == (1, 3, side, side) and pixels.abs().max() <= 1
    with torch.no_grad():
        assert estimator(pixels).predicted_depth.shape == (1, side, side)
    made: list[Any] = []
    unets: list[Any] = []
    for library in (calotype, diffusers):
        plain = library.StableDiffusionPipeline.from_pretrained(base)
        torch.manual_seed(0)
        unet = library.UNet2DConditionModel.from_config({**plain.unet.config, "in_channels": 5}).eval()
        pipe = library.StableDiffusionDepth2ImgPipeline(
            vae=plain.vae, text_encoder=plain.text_encoder, tokenizer=plain.tokenizer, unet=unet,
            scheduler=plain.scheduler, depth_estimator=estimator, feature_extractor=processor,
        )  # fmt: skip
        pipe.set_progress_bar_config(disable=True)
        unets.append(unet)
        unet.load_state_dict(unets[0].state_dict())
        generator = torch.Generator().manual_seed(0)
        made.append(
            pipe("a red ball", image=picture, num_inference_steps=2, strength=1.0, generator=generator,
                 output_type="np").images
        )  # fmt: skip
    np.testing.assert_allclose(*made, atol=1e-4)


# -- the tiny autoencoder --------------------------------------------------------------------------------------


def test_the_tiny_autoencoder_is_exchangeable_in_pipelines_of_both(out: Path, base: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    made, drawn = [], []
    picture = Image.new("RGB", (32, 32), "red")
    for library in (calotype, diffusers):
        pipe = library.StableDiffusionPipeline.from_pretrained(base)
        pipe.vae = library.AutoencoderTiny.from_pretrained(out / VAE / "vae")
        factor = pipe.vae.config.scaling_factor
        assert factor == 1.0 and pipe.vae.dtype == torch.float32
        variants = library.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
        for each in (pipe, variants):
            each.set_progress_bar_config(disable=True)
        options = {"num_inference_steps": 4, "output_type": "np"}
        generator = torch.Generator().manual_seed(0)
        made.append(pipe("a red ball", height=32, width=32, generator=generator, **options).images)
        generator = torch.Generator().manual_seed(0)
        drawn.append(variants("a red ball", image=picture, generator=generator, **options).images)
    np.testing.assert_allclose(*made, atol=1e-4)
    np.testing.assert_allclose(*drawn, atol=1e-4)


# -- a model of pictures alone ---------------------------------------------------------------------------------


def test_the_model_of_pictures_is_a_whole_pipeline_of_both(out: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    made = []
    for library, load in (
        (calotype, calotype.load),
        (diffusers, diffusers.DiffusionPipeline.from_pretrained),
    ):
        pipe = load(out / DRAWS)
        assert type(pipe).__name__ == "DDIMPipeline"
        config = pipe.scheduler.config
        assert (config.prediction_type, config.timestep_spacing) == ("v_prediction", "trailing")
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        made.append(pipe(batch_size=2, generator=generator, num_inference_steps=3, output_type="np").images)
        other = library.DDPMPipeline.from_pretrained(out / DRAWS)
        assert other.unet.config.sample_size == made[0].shape[1]
    np.testing.assert_allclose(*made, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [(DRAWS, "shrink=3", "can't be shrunk by 3"), (VAE, "shape.encoder=[1,1]", "has 3 stages")],
)
def test_shapes_that_do_not_fit_the_base_are_refused(
    name: str, change: str, message: str, base: Path
) -> None:
    parts, member = load_base(base, CPU), member_of(name)
    with pytest.raises(InputError, match=message):
        member.objective(member_settings(member, "tiny", [change], None), parts)
