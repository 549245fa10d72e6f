"""The recipe of the pocket family, views and members that both libraries load, at a size of seconds."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import calotype
from calotype.core.errors import InputError
from calotype.diffusion.tasks.depth import normalized
from calotype.pipelines.bundled import BUNDLED
from calotype.pocket.labels import PALETTE, SEGMENTS, painted
from calotype.training.__main__ import main
from calotype.training.loop import TrainingError
from calotype.training.objectives import diffuse, prediction_target
from calotype.training.recipes.base import Base, load_base
from calotype.training.recipes.chunks import DONE, VALIDATION, ChunkFolder, chunk_name, clear
from calotype.training.recipes.pocket.networks import build_unet
from calotype.training.recipes.pocket.settings import preset
from calotype.training.recipes.pocket_family import train_pocket_family
from calotype.training.recipes.pocket_family.conditions import canny_lines
from calotype.training.recipes.pocket_family.degraded import blown_up_at_random, cropped, spoilt
from calotype.training.recipes.pocket_family.denoising import Draw, words
from calotype.training.recipes.pocket_family.masks import MaskShares, draw_masks
from calotype.training.recipes.pocket_family.member import member_of
from calotype.training.recipes.pocket_family.members.controlnets import controlnet_of
from calotype.training.recipes.pocket_family.members.depth import depth_beside
from calotype.training.recipes.pocket_family.members.upscale import in_upscalers_unit
from calotype.training.recipes.pocket_family.members.xl import told_unet
from calotype.training.recipes.pocket_family.second_encoder import (
    build_second_encoder,
    grammar_ids,
    maps_to_base,
    read_both,
)
from calotype.training.recipes.pocket_family.variants import Variants, off_middle
from calotype.training.recipes.pocket_family.views import FIELDS, ViewSet
from calotype.training.text_to_image import TextToImageObjective
from tests.tiny import randomise
from tests.tiny_pocket import tiny_pocket

WEIGHTS = "diffusion_pytorch_model.safetensors"
OWN = {
    "pocket-inpaint": ["unet"],
    "pocket-depth": ["unet"],
    "pocket-upscale": ["low_res_scheduler", "unet", "vae"],
    "pocket-controlnet-canny": ["controlnet"],
    "pocket-controlnet-depth": ["controlnet"],
    "pocket-controlnet-segmentation": ["controlnet"],
    "pocket-xl": ["text_encoder_2", "tokenizer_2", "unet"],
}
"""Member -> the parts that are its own."""
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pocket(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def parts(base: Path) -> Base:
    return load_base(base, CPU)


def train(out: Path, base: Path, **options: Any) -> None:
    train_pocket_family(out, preset="tiny", base=base, device="cpu", **options)


@pytest.fixture(scope="module")
def work(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder with views, six of three scenes a chunk."""
    folder = tmp_path_factory.mktemp("work")
    few = ["views.count=6", "views.chunk=3", "views.validation=3"]
    train(folder / "out", base, work=folder, stages=["views"], changes=few)
    return folder


@pytest.fixture(scope="module")
def out(base: Path, work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every member after a dry run of its training."""
    folder = tmp_path_factory.mktemp("out")
    for name in OWN:
        train(folder, base, work=work, member=name, stages=["train", "export"])
    return folder


def test_views_are_what_is_known_of_the_pictures(work: Path, parts: Base) -> None:
    assert (work / "views" / DONE).exists()
    views = ViewSet(work / "views", CPU)
    with pytest.raises(AttributeError, match="have no latents; they have nothing yet"):
        _ = views.latents
    views.look()
    assert len(views) == 6 and len(views.validation()) == 3
    for name, kind in FIELDS.items():
        assert getattr(views, name).dtype == kind and len(getattr(views, name)) == 6
    assert views.latents.shape[1:] == parts.latent_shape
    assert (views.depth[views.instances == 0] == 100).all() and (views.labels == views.instances)[
        views.instances < 2
    ].all()
    assert (
        views.depth[views.instances > 1].float().max() < 20 and (views.labels[views.instances > 1] > 1).all()
    )
    torch.testing.assert_close(
        parts.latents(views.pictures / 255), views.latents.float(), atol=0.05, rtol=0.05
    )
    present = [[bool(text) for text in words(parts, row.long())] for row in views.object_ids]
    shown = [[bool((row == 2 + k).any()) for k in range(3)] for row in views.instances]
    assert all(p or not s for a, b in zip(present, shown, strict=True) for p, s in zip(a, b, strict=True))
    assert words(parts, views.object_ids[:1, 0].long())[0].startswith(("a ", "an "))
    assert len({tuple(row.tolist()) for row in views.ids[:, 0]}) == 6
    colors = painted(views.labels)
    assert len(PALETTE) == len(SEGMENTS) == len(set(PALETTE))
    row, column = 0, 0
    assert tuple((colors[0, :, row, column] * 255).round().int().tolist()) == PALETTE[views.labels[0, 0, 0]]


@pytest.mark.parametrize("name", OWN)
def test_a_member_is_its_own_parts_a_card_a_sheet_and_the_log(name: str, out: Path, parts: Base) -> None:
    folder = out / name
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", *OWN[name]]
    for file in folder.rglob(WEIGHTS):
        tensors = load_file(file)
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
        assert all(tensor.isfinite().all() for tensor in tensors.values())
    card = (folder / "README.md").read_text(encoding="utf-8")
    begun = {
        "pocket-upscale": "the pocket model's UNet",
        "pocket-xl": "the pocket model's UNet, twice, and its ",
    }
    assert f"# {name}" in card and "| steps | 3 of 2 (6 samples) |" in card
    assert f"| begun with | {begun.get(name, 'new weights')}" in card
    assert "nan" not in card and '"learning_rate": 0.001' in card
    with Image.open(out / f"{name}.png") as sheet:
        assert sheet.width > 3 * parts.pixels
    lines = (out / f"{name}-log.jsonl").read_text(encoding="utf-8").splitlines()
    assert any("validation_loss" in json.loads(line) for line in lines)


@pytest.mark.parametrize("name", ["pocket-inpaint", "pocket-controlnet-canny"])
def test_a_member_is_gone_on_from(name: str, out: Path, work: Path, base: Path, tmp_path: Path) -> None:
    """With hardly a step it is what it was; with a step it is not."""
    own = OWN[name][0]
    before = load_file(out / name / own / WEIGHTS)
    for rate in (1e-9, 0.05):
        changes = ["train.steps=1", f"train.learning_rate={rate}", "train.warmup=0", "train.ema_decay=0.0"]
        train(
            tmp_path,
            base,
            work=work,
            member=name,
            init=out / name,
            stages=["train", "export"],
            changes=changes,
        )
        after = load_file(tmp_path / name / own / WEIGHTS)
        assert before.keys() == after.keys()
        apart = max(float((after[n].float() - t.float()).abs().max()) for n, t in before.items())
        assert (apart < 1e-4) == (rate < 1e-4), apart
        assert "the weights of an earlier training" in (tmp_path / name / "README.md").read_text(
            encoding="utf-8"
        )


def test_only_the_member_is_trained(parts: Base) -> None:
    for name in ("pocket-inpaint", "pocket-controlnet-depth"):
        member = member_of(name)
        objective: Any = member.objective(member.settings("tiny"), parts)
        learning = {id(p) for p in objective.parameters() if p.requires_grad}
        own = objective.unet if name == "pocket-inpaint" else objective.unet.controlnet
        assert learning == {id(p) for p in own.parameters()}


def test_a_member_can_begin_as_the_base(parts: Base) -> None:
    member = member_of("pocket-depth")
    objective: Any = member.objective(replace(member.settings("tiny"), from_base=True), parts)  # type: ignore[type-var]
    x = torch.randn((2, 5, *parts.latent_shape[1:]), generator=torch.Generator().manual_seed(0))
    states = parts.read(parts.ids(["a red ball", ""]))
    with torch.no_grad():
        expected = parts.unet(x[:, :4], 500, states).sample
        torch.testing.assert_close(objective.unet(x, 500, states).sample, expected, atol=1e-5, rtol=1e-5)
    assert all(parameter.requires_grad for parameter in objective.unet.parameters())


def xl_batch(work: Path, parts: Base) -> dict[str, torch.Tensor]:
    """Eight views: four whole, two cropped, two blown up, with texts and without."""
    member: Any = member_of("pocket-xl")
    settings: Any = replace(member.settings("tiny"), shares=(0.5, 0.25))
    settings = replace(settings, train=replace(settings.train, batch=8, caption_dropout=0.5))
    views = ViewSet(work / "views", CPU, member.fields)
    views.look()
    batch: dict[str, torch.Tensor] = member.batches(views, parts, settings)(3)
    return batch


def test_what_the_base_knows_of_whole_pictures_is_taught(work: Path, parts: Base) -> None:
    """Of crops and small originals it is what was added."""
    batch, side = xl_batch(work, parts), parts.pixels
    original = batch["time_ids"][:, 0]
    assert (original[:4] == side).all() and (original[4:6] >= side).all() and (original[6:] < side).all()
    level = parts.scheduler.alphas_cumprod[batch["timesteps"]]
    own = prediction_target(batch["latents"], batch["noise"], level, "v_prediction")
    states = parts.read(batch["input_ids"])
    noisy = diffuse(batch["latents"], batch["noise"], level)
    with torch.no_grad():
        taught = parts.unet(noisy, batch["timesteps"], states).sample
    torch.testing.assert_close(batch["target"][:4], taught[:4], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(batch["target"][4:], own[4:])
    assert not torch.allclose(taught[:4], own[:4], atol=1e-2)
    told = {name: batch[name] for name in ("latents", "noise", "timesteps")} | {"states": states}
    base = TextToImageObjective(parts.unet, None, parts.scheduler.alphas_cumprod)
    assert float(base({**told, "target": taught})["loss"]) < 1e-9 < float(base(told)["loss"])
    # levels are not sorted, so all forms are at all of them
    assert (batch["timesteps"].diff() < 0).sum() not in (0, 1)


def test_pocket_xl_begins_as_the_base(parts: Base) -> None:
    """Its UNet draws what the base's draws of what a linear map makes of the states, whatever size it is told."""
    settings: Any = member_of("pocket-xl").settings("tiny")
    g = torch.Generator().manual_seed(0)
    width = parts.text_encoder.config.hidden_size
    states, by = torch.randn((2, 5, 2 * width), generator=g), torch.randn((width, 2 * width), generator=g) / 4
    unet = told_unet(parts, by, 6, settings)
    x = torch.randn((2, *parts.latent_shape), generator=g)
    told = {
        "text_embeds": torch.randn((2, settings.pooled), generator=g),
        "time_ids": torch.full((2, 6), 48.0),
    }
    with torch.no_grad():
        expected = parts.unet(x, 500, states @ by.T).sample
        found = unet(x, 500, states, added_cond_kwargs=told).sample
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_second_encoder_reads_what_the_base_reads(parts: Base) -> None:
    encoder = build_second_encoder(parts, 8)
    ids = grammar_ids(parts, 3, seed=1)
    with torch.no_grad():
        first, second = (
            model(input_ids=ids, output_hidden_states=True) for model in (parts.text_encoder, encoder)
        )
    told = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
    torch.testing.assert_close(told, read_both(parts, ids).told)
    both, alone = maps_to_base(parts, ids)
    last, width = first.last_hidden_state, told.shape[-1] // 2
    for read, by in ((told, both), (told[..., width:], alone)):
        assert (read @ by.T - last).square().mean() < 0.1 * last.square().mean()
    trained = [name for name, parameter in encoder.named_parameters() if parameter.requires_grad]
    layers = parts.text_encoder.config.num_hidden_layers
    assert len(trained) == 19 and all(
        f"layers.{layers}." in n or "final" in n or "projection" in n for n in trained
    )


def test_files_lack_what_is_still_the_bundled_checkpoints(tmp_path: Path) -> None:
    base = load_base(BUNDLED["pocket"], CPU)
    member: Any = member_of("pocket-upscale")
    objective = member.objective(member.settings("full"), base)
    randomise(objective.unet.conv_in, 1)
    member.save(objective, base, tmp_path)
    own = load_file(tmp_path / "unet" / WEIGHTS)
    assert sorted(own) == ["class_embedding.weight", "conv_in.bias", "conv_in.weight"]
    assert sorted(load_file(tmp_path / "vae" / WEIGHTS)) == [
        "post_quant_conv.weight", "quant_conv.bias", "quant_conv.weight",
    ]  # fmt: skip
    for part in ("unet", "vae"):  # where the base lay stays untold
        assert "_name_or_path" not in (tmp_path / part / "config.json").read_text(encoding="utf-8")
    again = member.objective(member.settings("full"), base)
    member.restore(again, tmp_path)
    for name, value in again.unet.state_dict().items():
        torch.testing.assert_close(value, objective.unet.state_dict()[name], atol=1e-3, rtol=1e-3)
    learning = {name for name, parameter in again.unet.named_parameters() if parameter.requires_grad}
    assert "conv_in.weight" in learning
    assert not any(".to_" in name or "mid_block.resnets.0.conv" in name for name in learning)


def test_a_controlnet_begins_as_the_encoder_of_the_base() -> None:
    """Also where it has to embed time more widely."""
    unet: Any = randomise(build_unet(preset("tiny")), 4)
    assert unet.config.time_embedding_dim == 16 < 4 * unet.config.block_out_channels[0]
    controlnet = controlnet_of(unet, (4, 8, 8))
    nn.init.eye_(controlnet.controlnet_mid_block.weight[..., 0, 0])
    middle: list[torch.Tensor] = []
    unet.mid_block.register_forward_hook(lambda module, given, found: middle.append(found))
    g = torch.Generator().manual_seed(0)
    x, states = torch.randn((2, 4, 8, 8), generator=g), torch.randn((2, 5, 16), generator=g)
    with torch.no_grad():
        unet(x, 300, states)
        down, found = controlnet(x, 300, states, torch.rand((2, 3, 32, 32), generator=g), return_dict=False)
    torch.testing.assert_close(found, middle[0], atol=1e-5, rtol=1e-5)
    assert all((residual == 0).all() for residual in down)


def test_batches_are_functions_of_their_number(work: Path, parts: Base) -> None:
    for name in OWN:
        member = member_of(name)
        views = ViewSet(work / "views", CPU, member.fields)
        views.look()
        batches = member.batches(views, parts, member.settings("tiny"))
        first, other, again = batches(1), batches(2), batches(1)
        assert all(torch.equal(value, again[key]) for key, value in first.items())
        assert not torch.equal(first["noise"], other["noise"])


def test_what_is_inpainted_may_not_be_what_stood_there(work: Path, parts: Base) -> None:
    """All of both objects is in the hole, and around it is the scene that was."""
    member = member_of("pocket-inpaint")
    views = ViewSet(work / "views", CPU, member.fields)
    views.look()
    settings: Any = replace(member.settings("tiny"), swapped=1.0)  # type: ignore[type-var]
    settings = replace(settings, train=replace(settings.train, batch=8, caption_dropout=0.0))
    batch = member.batches(views, parts, settings)(1)
    names = words(parts, batch["input_ids"])
    index = [(views.swapped_ids.long() == row).all(1).nonzero()[0].item() for row in batch["input_ids"]]
    assert all(name.startswith(("a ", "an ")) for name in names)
    for mine, mask, i in zip(batch["pictures"], batch["mask"], index, strict=True):
        hole = mask[0] > 0
        shown = ((mine + 1) * 127.5).round().byte()
        assert torch.equal(shown[:, ~hole], views.pictures[i][:, ~hole])
        assert torch.equal(shown[:, hole], views.swapped[i][:, hole])
        assert ((views.instances[i] == 2) | (views.swapped_first[i] > 0))[~hole].sum() <= 2
    changed = (views.swapped != views.pictures).flatten(1).any(1)
    assert changed.float().mean() > 0.5


def test_crops_are_what_their_numbers_say() -> None:
    side, count = 32, 200
    line = torch.linspace(-1, 1, side).expand(side, side)
    pictures = torch.stack((line, line.T, line * 0)).expand(count, -1, -1, -1)
    draw = Draw(torch.arange(count), {"generator": torch.Generator().manual_seed(0), "device": CPU})
    seen, numbers = cropped(pictures, draw)
    assert seen.shape == pictures.shape and numbers.shape == (count, 6)
    original, top, left = numbers[:, 0], numbers[:, 2], numbers[:, 3]
    assert (numbers[:, 4:] == side).all() and (numbers[:, 1] == original).all()
    assert original.min() < 1.3 * side and original.max() > 1.5 * side
    for edge in (left == 0, left == original - side):
        assert 0.2 < edge.double().mean() < 0.4
    # the ramps tell where the crop's middle was
    middle = torch.stack((left, top), dim=1) + side / 2
    found = (seen[:, :2].mean((2, 3)) * (side - 1) / side + 1) / 2 * original[:, None]
    torch.testing.assert_close(found, middle, atol=1.0, rtol=0)
    small, numbers = blown_up_at_random(pictures, draw)
    assert numbers[:, 0].unique().tolist() == [12, 16, 24] and (numbers[:, 2:4] == 0).all()
    assert (numbers[:, 4:] == side).all() and not torch.equal(small, pictures)
    clean, score = spoilt(pictures, draw)
    assert score.min() < 3 and score.max() == 6 and torch.equal(clean[score == 6], pictures[score == 6])
    error = (clean - pictures).abs().mean((1, 2, 3))
    assert error[score < 4].mean() > 3 * error[score > 5].mean()


def test_forms_of_views_are_made_as_views_come(work: Path, parts: Base) -> None:
    fields = ("pictures", "latents", "instances")
    views = ViewSet(work / "views", CPU, fields)
    views.look()
    few = ViewSet.of({name: getattr(views, name)[:3] for name in fields}, CPU)
    forms = Variants(few, parts, 2, seed=5)
    forms.look()
    before = forms["spoilt"].clone()
    few._room, few._made = views._room, len(views)
    forms.look()
    assert len(forms["small"]) == len(forms["scores"]) == 6
    # of each three, two crops of the two whose objects stand nearest to the middle
    assert len(forms["crops"]) == len(forms["crop_sizes"]) == 8
    aside = off_middle(views.instances)
    for first, cut in ((0, forms["crop_views"][:4]), (3, forms["crop_views"][4:])):
        left_out = {first, first + 1, first + 2} - set(cut.tolist())
        assert len(left_out) == 1 and aside[left_out.pop()] >= aside[cut].max()
    assert torch.equal(forms["spoilt"][:3], before)
    # what is clean is the view itself
    clean = forms["scores"] == 6
    assert clean.any() and not clean.all()
    torch.testing.assert_close(forms["spoilt"][clean], views.latents[clean], atol=0.05, rtol=0.05)


def test_masks_about_objects_hide_them(work: Path) -> None:
    views = ViewSet(work / "views", CPU)
    views.look()
    instances = views.instances.repeat(20, 1, 1)
    options = {"generator": torch.Generator().manual_seed(0), "device": CPU}
    draw = Draw(torch.arange(len(instances)), options)
    masks = draw_masks(instances, draw, MaskShares(boxes=0, blobs=0, everything=0))
    assert masks.hidden.all()
    left = (instances == 2 + masks.slot[:, None, None]) & (masks.mask[:, 0] < 0.5)
    assert left.flatten(1).sum(1).max() <= 1  # a corner outside of an ellipse at most
    share = masks.mask.mean((1, 2, 3))
    assert share.min() > 0.003 and share.mean() < 0.5
    every = draw_masks(instances, draw, MaskShares(boxes=0.3, blobs=0.3, everything=0.2))
    assert (every.mask.mean((1, 2, 3)) == 1).float().mean() > 0.1 and not every.hidden.all()


def test_depth_is_told_as_the_pipeline_tells_it(work: Path, parts: Base) -> None:
    views = ViewSet(work / "views", CPU)
    views.look()
    expected = normalized(1 / views.depth.float(), parts.latent_shape[1:])
    torch.testing.assert_close(depth_beside(views.depth, parts), expected, atol=1e-5, rtol=1e-5)


def test_lines_are_those_of_the_annotator(work: Path) -> None:
    pytest.importorskip("cv2")
    from calotype.annotators import canny

    noise = torch.randint(
        0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    views = ViewSet(work / "views", CPU)
    views.look()
    pictures = torch.cat([views.pictures, noise])
    ours = canny_lines(pictures, reach=200)
    assert 0.01 < ours.mean() < 0.5
    for picture, lines in zip(pictures, ours, strict=True):
        theirs = np.asarray(canny(Image.fromarray(picture.permute(1, 2, 0).numpy())))[..., 0] > 0
        np.testing.assert_array_equal(lines[0].numpy() > 0, theirs)


def test_an_autoencoder_in_the_upscalers_unit_is_the_same(parts: Base) -> None:
    other = in_upscalers_unit(parts.vae)
    pictures = torch.rand((2, 3, 32, 32), generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents, theirs = (vae.encode(pictures).latent_dist.mean for vae in (parts.vae, other))
    torch.testing.assert_close(
        theirs * other.config.scaling_factor, latents * parts.vae.config.scaling_factor, atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(
        other.decode(theirs).sample, parts.vae.decode(latents).sample, atol=1e-4, rtol=1e-4
    )


def test_the_reference_draws_the_same(out: Path, base: Path, tmp_path: Path) -> None:
    import diffusers

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    mask = Image.fromarray(np.pad(np.full((16, 16), 255, np.uint8), 8))

    def drawn(library: Any, name: str) -> np.ndarray[Any, Any]:
        folder = out / name
        none: dict[str, Any] = {"safety_checker": None, "feature_extractor": None}
        if name == "pocket-inpaint":
            unet = library.UNet2DConditionModel.from_pretrained(folder / "unet")
            pipe = library.StableDiffusionInpaintPipeline.from_pretrained(base, unet=unet, **none)
            given = {"image": picture, "mask_image": mask, "height": 32, "width": 32}
        elif name == "pocket-upscale":
            parts = {
                "unet": library.UNet2DConditionModel.from_pretrained(folder / "unet"),
                "vae": library.AutoencoderKL.from_pretrained(folder / "vae"),
                "low_res_scheduler": library.DDPMScheduler.from_pretrained(folder / "low_res_scheduler"),
            }
            pipe = library.StableDiffusionUpscalePipeline.from_pretrained(base, **parts, **none)
            given = {"image": picture.resize((8, 8))}
        elif name == "pocket-xl":
            load_xl = library.StableDiffusionXLPipeline.from_pretrained
            pipe = load_xl(calotype_xl)
            given = {"original_size": (48, 48), "crops_coords_top_left": (0, 16)}
        else:
            net = library.ControlNetModel.from_pretrained(folder / "controlnet")
            pipe = library.StableDiffusionControlNetPipeline.from_pretrained(base, controlnet=net, **none)
            given = {"image": picture}
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        images = pipe(
            "a red ball",
            num_inference_steps=2,
            guidance_scale=3.0,
            generator=generator,
            output_type="np",
            **given,
        ).images
        return np.asarray(images)

    calotype_xl = tmp_path / "xl"
    own, shared = out / "pocket-xl", base
    shutil.copytree(shared, calotype_xl)
    shutil.copytree(own, calotype_xl, dirs_exist_ok=True)
    index = json.loads((shared / "model_index.json").read_text(encoding="utf-8"))
    index |= {
        "_class_name": "StableDiffusionXLPipeline",
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
    }
    for name in ("safety_checker", "feature_extractor", "image_encoder", "requires_safety_checker"):
        index.pop(name, None)
    (calotype_xl / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    for name in ("pocket-inpaint", "pocket-upscale", "pocket-controlnet-canny", "pocket-xl"):
        expected = drawn(diffusers, name)
        assert expected.shape == (1, 32, 32, 3) and expected.std() > 0.01
        np.testing.assert_allclose(drawn(calotype, name), expected, atol=1e-4, rtol=0)


def test_views_are_waited_for(work: Path, base: Path, tmp_path: Path) -> None:
    """A member that begins before there is anything, within its minutes."""
    later = tmp_path / "work"
    later.mkdir()
    maker = threading.Timer(1.0, lambda: (later / "views").symlink_to(work / "views"))
    maker.start()
    train(
        tmp_path / "out", base, work=later, member="pocket-depth", stages=["train"],
        max_minutes=0.25, changes=["train.steps=null"],
    )  # fmt: skip
    maker.join()
    entries = [
        json.loads(line)
        for line in (tmp_path / "out" / "pocket-depth-log.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert entries[-1]["step"] > 3 and entries[-1]["seconds"] < 14


def test_chunks_of_an_earlier_run_are_taken_away(tmp_path: Path) -> None:
    for name in (chunk_name(0), VALIDATION, DONE):
        (tmp_path / name).touch()
    clear(tmp_path)
    assert not list(tmp_path.iterdir())
    chunks = ChunkFolder(tmp_path, "views", patience=0.3)
    with pytest.raises(TrainingError, match="run the stage views first"):
        chunks.wait(chunk_name(0))
    (tmp_path / chunk_name(0)).touch()
    assert [path.name for path in chunks.fresh()] == [chunk_name(0)] and not chunks.fresh()
    assert not chunks.complete
    (tmp_path / DONE).touch()
    assert not chunks.fresh() and chunks.complete


@pytest.mark.parametrize(
    ("words_given", "message"),
    [
        ([], "No member is named of pocket-family; there are pocket-depth-estimator, pocket-inpaint"),
        (["--member", "pocket-fox"], "no member 'pocket-fox'"),
        (["--member", "pocket-inpaint", "--preset", "cpu"], "no preset 'cpu' of pocket-family"),
        (
            ["--member", "pocket-inpaint", "--stage", "clips"],
            "no stage clips; there are views, train, export",
        ),
        (["--member", "pocket-inpaint", "--stage", "train"], "run the stage views first"),
        (["--member", "pocket-inpaint", "--stage", "export"], "run the stage train first"),
        (
            ["--member", "pocket-depth", "--stage", "train", "--init", "nowhere"],
            "no UNet2DConditionModel in nowhere",
        ),
        (["--stage", "views", "--set", "train.batch=3"], "no setting 'train.batch=3'"),
        (["--member", "pocket-depth", "--set", "views.length=3"], "no setting 'views.length=3'"),
    ],
)
def test_mistakes_are_one_line_and_a_code(
    words_given: list[str], message: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = ["--preset", "tiny", "--base", str(base), "--device", "cpu"]
    code = main(
        ["pocket-family", "--out", str(tmp_path), "--work", str(tmp_path / "work"), *usual, *words_given]
    )
    *_, error = capsys.readouterr().err.splitlines()
    assert code == 1
    assert error.startswith("error: ") and message in error


def test_weights_of_other_sizes_are_refused(out: Path, parts: Base) -> None:
    member = member_of("pocket-depth")
    objective = member.objective(member.settings("tiny"), parts)
    with pytest.raises(InputError, match="not of this preset's sizes"):
        member.restore(objective, out / "pocket-inpaint")
